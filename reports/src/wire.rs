//! The shapes of JSON that both exporters of requests share: field names and order are a contract, so they are written
//! out here and not derived from the model's types.

use crate::text;
use meshdiff_analyzer::{AttributedRequest, CoverageClass, SocketRef, Try};
use meshdiff_model::{
    Crossing, Detail, DurationNs, Evidence, HopProtocol, MonotonicNs, Segment, SegmentMap, SocketCookie, WallTime,
    Workload,
};
use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

/// An instant as RFC 3339 with nanoseconds.
pub(crate) struct Rfc3339(pub(crate) WallTime);

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text::rfc3339(self.0))
    }
}

/// One request, as DESIGN's contract has it, with what `--instants` adds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestLine<'a> {
    id: &'a str,
    request_id: Option<&'a str>,
    protocol: HopProtocol,
    method: Option<&'a str>,
    path: Option<&'a str>,
    response_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    response_flags: &'a [std::sync::Arc<str>],
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tries: Vec<TryLine<'a>>,
    client: &'a Workload,
    server: &'a Workload,
    start: Rfc3339,
    total_ns: DurationNs,
    total_vantage: &'static str,
    segments: &'a SegmentMap,
    details: Details<'a>,
    evidence: &'a SegmentMap<Evidence>,
    coverage: CoverageLine,
    #[serde(flatten)]
    instants: Option<Instants<'a>>,
}

/// One attempt of several. Instants are counted from the total's begin.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TryLine<'a> {
    address: Option<&'a str>,
    response_code: Option<u16>,
    response_flags: &'a [std::sync::Arc<str>],
    answered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    began_ns: Option<DurationNs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_ns: Option<DurationNs>,
    /// From the end of the attempt before; negative if that was still under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ns: Option<DurationNs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerHalf<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sockets: Option<Sockets<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crossings: Option<Crossings<'a>>,
}

/// The server's half of an attempt.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServerHalf<'a> {
    total_ns: DurationNs,
    segments: &'a SegmentMap,
}

fn try_lines(r: &AttributedRequest, instants: bool) -> Vec<TryLine<'_>> {
    let since = |at: Option<MonotonicNs>| Some(at? - r.start_monotonic?);
    let line = |i: usize| {
        let one: &Try = &r.tries[i];
        let before = i.checked_sub(1).and_then(|b| r.tries[b].ended);
        TryLine {
            address: one.address.as_deref(),
            response_code: one.response_code,
            response_flags: &one.response_flags,
            answered: one.answered,
            began_ns: since(one.began),
            ended_ns: since(one.ended),
            wait_ns: one.began.zip(before).map(|(began, before)| began - before),
            server: one.server.as_ref().map(|split| ServerHalf { total_ns: split.total(), segments: split.segments() }),
            reason: one.reason,
            sockets: instants.then_some(Sockets(2, &one.sockets)),
            crossings: instants.then(|| Crossings {
                request: Links::beyond_client(&one.request_crossings),
                response: Links::beyond_client(&one.response_crossings),
            }),
        }
    };
    (0..r.tries.len()).map(line).collect()
}

#[derive(Serialize)]
struct CoverageLine {
    full: bool,
    halves: &'static str,
    kernel: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ambiguous: bool,
}

/// Details by segment; their list is in order of segment.
struct Details<'a>(&'a [(Segment, Detail, DurationNs)]);

impl Serialize for Details<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Of<'a>(&'a [(Segment, Detail, DurationNs)]);
        impl Serialize for Of<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(_, d, v)| (d.as_str(), v)))
            }
        }
        let mut map = serializer.serialize_map(None)?;
        for group in self.0.chunk_by(|a, b| a.0 == b.0) {
            map.serialize_entry(group[0].0.as_str(), &Of(group))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Instants<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    start_monotonic_ns: Option<MonotonicNs>,
    sockets: Sockets<'a>,
    crossings: Crossings<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_setup: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_connect_ns: Option<DurationNs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_ids: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    start_ns: MonotonicNs,
    end_ns: MonotonicNs,
}

/// Sockets of a request's way, from the one with this index on.
struct Sockets<'a>(usize, &'a [Option<SocketRef>]);

impl Serialize for Sockets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line {
            local: String,
            remote: String,
            cookie: SocketCookie,
        }
        const NAMES: [&str; 6] = ["s1", "s2", "s3", "s4", "s5", "s6"];
        serializer.collect_map(NAMES.into_iter().skip(self.0).zip(self.1).filter_map(|(name, socket)| {
            let s = socket.as_ref()?;
            Some((name, Line { local: s.local.to_string(), remote: s.remote.to_string(), cookie: s.cookie }))
        }))
    }
}

#[derive(Serialize)]
struct Crossings<'a> {
    request: Links<'a>,
    response: Links<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Links<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_loopback: Option<CrossingLine<'a>>,
    network: CrossingLine<'a>,
    server_loopback: CrossingLine<'a>,
}

impl<'a> Links<'a> {
    fn of([a, b, c]: &'a [Crossing; 3]) -> Self {
        Self { client_loopback: Some(CrossingLine(a)), network: CrossingLine(b), server_loopback: CrossingLine(c) }
    }

    /// An attempt's, which has no loopback of the client's.
    fn beyond_client([b, c]: &'a [Crossing; 2]) -> Self {
        Self { client_loopback: None, network: CrossingLine(b), server_loopback: CrossingLine(c) }
    }
}

struct CrossingLine<'a>(&'a Crossing);

impl Serialize for CrossingLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let c = self.0;
        let mut out = serializer.serialize_struct("Crossing", 7)?;
        for (name, instant) in [
            ("sendNs", c.send),
            ("readyNs", c.ready),
            ("recvNs", c.recv),
            ("lastSendNs", c.last_send),
            ("lastReadyNs", c.last_ready),
            ("lastRecvNs", c.last_recv),
        ] {
            match instant {
                Some(at) => out.serialize_field(name, &at)?,
                None => out.skip_field(name)?,
            }
        }
        out.serialize_field("bytes", &c.bytes)?;
        out.end()
    }
}

impl<'a> RequestLine<'a> {
    /// The line of one request; `siblings` is the list that its `parent` and `children` index into, if it is at hand.
    pub(crate) fn of(r: &'a AttributedRequest, instants: bool, siblings: Option<&'a [AttributedRequest]>) -> Self {
        let id = |i: &usize| siblings.and_then(|all| all.get(*i)).map(|other| other.id.as_str());
        let a = &r.attribution;
        Self {
            id: &r.id,
            request_id: r.request_id.as_ref().map(|id| &*id.0),
            protocol: r.protocol,
            method: r.method.as_deref(),
            path: r.path.as_deref(),
            response_code: r.response_code,
            grpc_status: r.grpc_status,
            response_flags: &r.response_flags,
            attempts: r.attempts,
            tries: try_lines(r, instants),
            client: &r.client,
            server: &r.server,
            start: Rfc3339(r.start),
            total_ns: a.total(),
            total_vantage: r.vantage.as_str(),
            segments: a.segments(),
            details: Details(a.details()),
            evidence: a.evidence(),
            coverage: CoverageLine {
                full: r.coverage.is_full(),
                halves: r.coverage.halves.as_str(),
                kernel: r.coverage.kernel.as_str(),
                reason: r.coverage.reason,
                ambiguous: r.coverage.class == CoverageClass::Ambiguous,
            },
            instants: instants.then(|| Instants {
                start_monotonic_ns: r.start_monotonic,
                sockets: Sockets(0, &r.sockets),
                crossings: Crossings {
                    request: Links::of(&r.request_crossings),
                    response: Links::of(&r.response_crossings),
                },
                connection_setup: r.connection_setup.map(|(start_ns, end_ns)| Span { start_ns, end_ns }),
                client_connect_ns: r.client_connect,
                parent_id: r.parent.as_ref().and_then(id),
                child_ids: siblings.map(|_| r.children.iter().filter_map(id).collect()),
            }),
        }
    }
}

//! One hop: a request with a nonce of its own, sent, awaited and written down.

use std::net::SocketAddr;

use rand::Rng;

use crate::client::{Connect, Connection, Pool};
use crate::clock::{MonotonicNs, duration_ns};
use crate::http::{Headers, ReadError, render};
use crate::logbook::Logbook;
use crate::truth::{ClientRecord, Nonce, Record};

/// The header that names a hop.
pub const NONCE: &str = "x-lab-nonce";
/// The nonce that the sender was serving.
pub const PARENT: &str = "x-lab-parent";
/// The nonce of the load generator's request.
pub const ROOT: &str = "x-lab-root";
/// What is delayed where; see [`crate::delay`].
pub const DELAY: &str = "x-lab-delay";
/// How large the bodies of all hops are: `REQUEST/RESPONSE` in bytes.
pub const BYTES: &str = "x-lab-bytes";
/// Envoy's request id.
pub const REQUEST_ID: &str = "x-request-id";
/// What an application must hand on for tracing to work, as Istio asks of applications.
const HANDED_ON: [&str; 3] = [REQUEST_ID, "traceparent", "tracestate"];

/// The sizes of the bodies of each hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Of the request; with any, the method is POST.
    pub request: usize,
    /// Of the response.
    pub response: usize,
}

impl Bytes {
    /// Reads `x-lab-bytes`; anything else than two numbers counts as none.
    pub fn from_header(value: Option<&str>) -> Self {
        let parse = |text: &str| {
            let (request, response) = text.split_once('/')?;
            Some(Self { request: request.parse().ok()?, response: response.parse().ok()? })
        };
        value.and_then(parse).unwrap_or_default()
    }
}

/// What a request hands on to the hops that serve it.
#[derive(Clone, Debug)]
pub struct Context {
    /// The hop that is being served; absent for the load generator.
    pub parent: Option<Nonce>,
    /// The tree's root; absent if the next hop is the root.
    pub root: Option<Nonce>,
    /// Request id and trace context, name and value.
    pub handed_on: Vec<(&'static str, String)>,
    /// `x-lab-delay` as it is.
    pub delays: Option<String>,
    /// The bodies' sizes.
    pub bytes: Bytes,
}

impl Context {
    /// The context of a request that starts a tree.
    pub fn root(delays: Option<String>, bytes: Bytes) -> Self {
        let request_id = uuid_v4(rand::rng().random());
        Self { parent: None, root: None, handed_on: vec![(REQUEST_ID, request_id)], delays, bytes }
    }

    /// The context that a received request hands on.
    pub fn of_request(headers: &Headers) -> Self {
        let nonce = |name| headers.get(name).and_then(|text| text.parse().ok());
        Self {
            parent: nonce(NONCE),
            root: nonce(ROOT),
            handed_on: HANDED_ON.iter().filter_map(|name| Some((*name, headers.get(name)?.to_owned()))).collect(),
            delays: headers.get(DELAY).map(str::to_owned),
            bytes: Bytes::from_header(headers.get(BYTES)),
        }
    }

    /// The request id.
    pub fn request_id(&self) -> Option<&str> {
        self.handed_on.iter().find(|(name, _)| *name == REQUEST_ID).map(|(_, value)| value.as_str())
    }
}

/// Formats 128 random bits as a version 4 UUID, which is what Envoy generates.
pub(crate) fn uuid_v4(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whom to ask for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The service's name, for the `Host` header.
    pub host: String,
    /// The service's virtual IP and port.
    pub address: SocketAddr,
    /// The path.
    pub path: String,
}

/// Sends requests from one pod and logs each.
#[derive(Debug)]
pub struct Caller {
    /// The pod's workload.
    pub pod: String,
    /// Its connections.
    pub pool: Pool,
    /// Where hops are written down.
    pub log: Logbook,
}

/// How a hop ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The response's status, or why there was none.
    pub status: Result<u16, String>,
    /// Right before the first `write` of the attempt that counts.
    pub send_start: MonotonicNs,
    /// Right after the response's last byte was read, or when the failure was known.
    pub end: MonotonicNs,
}

impl Caller {
    /// Makes one hop. A kept connection that the peer closed in the meantime is replaced once, as every HTTP client
    /// does; the attempt that failed is logged too, under its own nonce.
    pub fn call(&self, to: &Destination, context: &Context, intended: Option<MonotonicNs>) -> Outcome {
        loop {
            let (outcome, stale) = self.attempt(to, context, intended);
            if !stale {
                return outcome;
            }
        }
    }

    fn attempt(&self, to: &Destination, context: &Context, intended: Option<MonotonicNs>) -> (Outcome, bool) {
        let nonce = Nonce::new();
        let root = context.root.unwrap_or(nonce);
        let method = if context.bytes.request > 0 { "POST" } else { "GET" };
        let request = request_bytes(to, context, nonce, root, method);
        let taken = self.pool.take(to.address);
        let connect = taken.as_ref().ok().and_then(|(_, connect)| *connect);
        let mut record = ClientRecord {
            pod: self.pod.clone(),
            nonce,
            parent: context.parent,
            root,
            request_id: context.request_id().map(str::to_owned),
            host: to.host.clone(),
            local: SocketAddr::from(([0, 0, 0, 0], 0)),
            remote: to.address,
            method: method.to_owned(),
            path: to.path.clone(),
            status: None,
            intended_ns: intended,
            send_start_ns: MonotonicNs::now(),
            first_byte_ns: None,
            recv_end_ns: None,
            connect_start_ns: connect.map(|c: Connect| c.start),
            connect_ns: connect.map(|c| duration_ns(c.took)),
            request_bytes: context.bytes.request,
            response_bytes: 0,
            delays: context.parent.is_none().then(|| context.delays.clone()).flatten(),
            error: None,
        };
        let mut stale = false;
        match taken {
            Err(error) => record.error = Some(format!("connecting failed: {error}")),
            Ok((connection, _)) => stale = self.exchange(connection, &request, &mut record),
        }
        let end = record.recv_end_ns.unwrap_or_else(MonotonicNs::now);
        let status = record.status.ok_or_else(|| record.error.clone().unwrap_or_default());
        let outcome = Outcome { status, send_start: record.send_start_ns, end };
        self.log.append(&Record::Client(record));
        (outcome, stale)
    }

    /// Fills the record in; says whether a kept connection turned out to be closed.
    fn exchange(&self, mut connection: Connection, request: &[u8], record: &mut ClientRecord) -> bool {
        record.local = connection.local;
        let kept = connection.used();
        let (send_start, received) = connection.exchange(request);
        record.send_start_ns = send_start;
        match received {
            Ok(response) => {
                record.status = Some(response.head.status);
                record.first_byte_ns = Some(response.first_byte);
                record.recv_end_ns = Some(response.end);
                record.response_bytes = response.body_bytes;
                if !response.head.headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                    self.pool.give_back(connection);
                }
                false
            }
            Err(error) => {
                record.error = Some(error.to_string());
                kept && is_stale(&error)
            }
        }
    }
}

/// Whether a failure on a kept connection means only that the peer had closed it before the request came.
fn is_stale(error: &ReadError) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error {
        ReadError::Closed => true,
        ReadError::Io(error) => matches!(error.kind(), BrokenPipe | ConnectionReset),
        ReadError::Cut | ReadError::Malformed(_) => false,
    }
}

fn request_bytes(to: &Destination, context: &Context, nonce: Nonce, root: Nonce, method: &str) -> Vec<u8> {
    let (nonce, root) = (nonce.to_string(), root.to_string());
    let parent = context.parent.map(|parent| parent.to_string());
    let bytes = format!("{}/{}", context.bytes.request, context.bytes.response);
    let mut headers = vec![("host", to.host.as_str()), ("user-agent", "meshdiff-lab"), ("accept", "*/*")];
    headers.push((NONCE, &nonce));
    headers.push((ROOT, &root));
    headers.extend(parent.as_deref().map(|parent| (PARENT, parent)));
    headers.extend(context.delays.as_deref().map(|delays| (DELAY, delays)));
    if context.bytes != Bytes::default() {
        headers.push((BYTES, &bytes));
    }
    headers.extend(context.handed_on.iter().map(|(name, value)| (*name, value.as_str())));
    render(&format!("{method} {} HTTP/1.1", to.path), &headers, context.bytes.request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::MessageReader;

    #[test]
    fn a_request_id_is_a_version_4_uuid() {
        assert_eq!(uuid_v4(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_v4(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn what_arrives_is_what_is_handed_on() {
        let to = Destination {
            host: "reviews:9080".into(),
            address: "10.96.0.3:9080".parse().unwrap(),
            path: "/reviews/0".into(),
        };
        let mut context = Context::root(Some("reviews.app=5us".into()), Bytes { request: 10, response: 20 });
        context.handed_on.push(("traceparent", "00-1-2-01".into()));
        let wire = request_bytes(&to, &context, Nonce(5), Nonce(5), "POST");
        let received = MessageReader::new(wire.as_slice()).request().unwrap();
        let next = Context::of_request(&received.head.headers);
        assert_eq!((next.parent, next.root), (Some(Nonce(5)), Some(Nonce(5))));
        assert_eq!((next.handed_on, next.delays, next.bytes), (context.handed_on, context.delays, context.bytes));
        assert_eq!(received.body_bytes, 10);
    }
}

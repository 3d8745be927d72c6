//! Holds what meshdiff says about the exchanges of the protocol workloads against what really happened.
//!
//! Every exchange has a request id of its own, so a line of meshdiff names its exchange also on a connection that
//! carries many at once. What the line then says about sockets and instants must be what that exchange's two ends wrote
//! down: an instant of a send or a recv must lie within the very call that carried the byte.

use crate::{Crossing, Request, median};
use meshdiff_lab::clock::MonotonicNs;
use meshdiff_lab::truth::{ExchangeRecord, Leg, Mark, Nonce, Role, Truth};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

/// What came of one case.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Exchanges that the client made.
    pub sent: usize,
    /// Lines of meshdiff about them.
    pub lines: usize,
    /// Of those, full ones.
    pub full: usize,
    /// Exchanges with more than one line of which one is full, by nonce. There must be none.
    pub doubled: Vec<String>,
    /// Exchanges with more than one line, none of them full: what the kernel saw and what the sidecars logged did not find each other.
    pub split: usize,
    /// Sockets or instants that are another exchange's. There must be none.
    pub wrong: Vec<String>,
    /// Instants that were held against a call of the truth.
    pub checked: usize,
    /// Heads whose recv was given, and of those the ones that lie in the very call that brought the head's last byte
    /// (others lie in a later call of the same message).
    pub heads: (usize, usize),
    /// Lines whose segments do not sum to their total. There must be none.
    pub inexact: usize,
    /// How often each protocol was named.
    pub protocols: BTreeMap<String, usize>,
    /// Why lines are not full.
    pub reasons: BTreeMap<String, usize>,
    /// Lines and the exchange that each is about.
    pub pairs: Vec<(usize, Nonce)>,
}

impl Case {
    /// The share of exchanges that are full.
    #[must_use]
    pub fn full_share(&self) -> f64 {
        self.full as f64 / self.sent.max(1) as f64
    }
}

/// All cases by name, and lines about nothing that the client did.
#[derive(Clone, Debug, Default)]
pub struct Exchanges {
    /// By case.
    pub cases: BTreeMap<String, Case>,
    /// Lines without an exchange. There must be none.
    pub unknown: Vec<String>,
    /// Lines that name no request at all, and are not full: a sidecar's log of what it could not read.
    pub nameless: usize,
}

/// Judges the lines of a recording of `meshdiff-lab drive`.
#[must_use]
pub fn judge_exchanges(requests: &[Request], truth: &Truth) -> Exchanges {
    let mut result = Exchanges::default();
    let clients = || truth.exchanges().iter().filter(|e| e.role == Role::Client);
    let mut by_id: HashMap<String, &ExchangeRecord> = HashMap::new();
    // What does not name one exchange alone names none.
    let mut shared: HashSet<String> = HashSet::new();
    for sent in clients() {
        result.cases.entry(sent.case.clone()).or_default().sent += 1;
        if let Some(id) = id_of(sent, truth)
            && by_id.insert(id.clone(), sent).is_some()
        {
            shared.insert(id);
        }
    }
    by_id.retain(|id, _| !shared.contains(id));
    let mut seen: HashMap<Nonce, usize> = HashMap::new();
    for (i, request) in requests.iter().enumerate() {
        let by_its_id = || by_id.get(&without_sampling(request.request_id.as_deref()?)).copied();
        // A request that the sidecar refused never got as far as having its id read.
        // One call can send several requests of a connection: then the line is about one of them that nothing in it speaks against, and that
        // no other line is about.
        let at_one_place = || clients().filter(|sent| is_at(request, sent));
        let fits = |sent: &&ExchangeRecord| {
            let mut trial = Case::default();
            check(&mut trial, request, sent, truth);
            trial.wrong.is_empty() && !seen.contains_key(&sent.nonce)
        };
        let by_its_place = || {
            let at_place = at_one_place().find(fits).or_else(|| at_one_place().next());
            at_place.or_else(|| served_at(request, truth))
        };
        let Some(sent) = by_its_id().or_else(by_its_place) else {
            if request.path.is_none() && !request.coverage.full {
                result.nameless += 1;
                continue;
            }
            result.unknown.push(format!("{} {} {:?}", request.id, request.hop(), request.path));
            continue;
        };
        let case = result.cases.entry(sent.case.clone()).or_default();
        case.lines += 1;
        if let Some(other) = seen.insert(sent.nonce, i) {
            if request.coverage.full || requests[other].coverage.full {
                case.doubled.push(sent.nonce.to_string());
            } else {
                case.split += 1;
            }
        }
        case.full += usize::from(request.coverage.full);
        case.inexact += usize::from(!request.sums());
        *case.protocols.entry(request.protocol.clone().unwrap_or_default()).or_default() += 1;
        if !request.coverage.full {
            *case.reasons.entry(request.coverage.reason.clone().unwrap_or_default()).or_default() += 1;
        }
        check(case, request, sent, truth);
        case.pairs.push((i, sent.nonce));
    }
    result
}

/// The id under which an exchange went: the one that its client gave it, or else the one that the sidecar made, which the server got.
fn id_of(sent: &ExchangeRecord, truth: &Truth) -> Option<String> {
    let made = || truth.exchange(sent.nonce, Role::Server)?.request_id.as_deref();
    sent.request_id.as_deref().or_else(made).map(without_sampling)
}

/// The exchange whose server was answering on a line's S6.
fn served_at<'t>(request: &Request, truth: &'t Truth) -> Option<&'t ExchangeRecord> {
    let socket = request.sockets.get("s6")?;
    let at = MonotonicNs(request.crossings.response.get("serverLoopback")?.send_ns?);
    let on_socket =
        |e: &&ExchangeRecord| e.role == Role::Server && (e.local, e.remote) == (socket.local, socket.remote);
    let served = truth.exchanges().iter().filter(on_socket);
    let mut at_that_time = served.filter(|e| e.response.first.is_some_and(|call| call.contains(at)));
    truth.exchange(at_that_time.next()?.nonce, Role::Client)
}

/// Envoy writes its decision about tracing into character 14 of the id.
fn without_sampling(id: &str) -> String {
    id.char_indices().map(|(i, c)| if i == 14 { '-' } else { c }).collect()
}

/// Whether a line's first send is the client's.
fn is_at(request: &Request, sent: &ExchangeRecord) -> bool {
    let socket = request.sockets.get("s1").is_some_and(|s| s.local == sent.local);
    let at = request.crossings.request.get("clientLoopback").and_then(|c| c.send_ns);
    socket && at.zip(sent.request.first).is_some_and(|(at, call)| call.contains(MonotonicNs(at)))
}

/// Holds a line against the two ends of the exchange that it is about.
fn check(case: &mut Case, request: &Request, sent: &ExchangeRecord, truth: &Truth) {
    let what = format!("{} {} stream {:?}", request.id, sent.case, sent.stream);
    let mut check = Check { case, what };
    check.client(request, sent);
    if let Some(served) = truth.answered(sent.nonce) {
        check.server(request, served);
    }
}

struct Check<'c> {
    case: &'c mut Case,
    what: String,
}

impl Check<'_> {
    fn client(&mut self, request: &Request, sent: &ExchangeRecord) {
        self.socket(request, "s1", sent.local, sent.remote);
        let there = request.crossings.request.get("clientLoopback");
        let back = request.crossings.response.get("clientLoopback");
        self.within("the request's first send", there.and_then(|c| c.send_ns), sent.request.first, sent.request.first);
        self.recv("the response's recv", back, &sent.response);
    }

    fn server(&mut self, request: &Request, served: &ExchangeRecord) {
        self.socket(request, "s6", served.local, served.remote);
        let there: Option<&Crossing> = request.crossings.request.get("serverLoopback");
        let back = request.crossings.response.get("serverLoopback");
        self.recv("the request's recv", there, &served.request);
        let first = served.response.first;
        // An interim response may come before, and is none.
        self.within("the response's first send", back.and_then(|c| c.send_ns), first, first);
    }

    fn socket(&mut self, request: &Request, name: &str, local: SocketAddr, remote: SocketAddr) {
        let Some(socket) = request.sockets.get(name) else { return };
        self.case.checked += 1;
        if (socket.local, socket.remote) != (local, remote) {
            let is = format!("{} {}", socket.local, socket.remote);
            self.case.wrong.push(format!("{}: {name} is {is}, in truth {local} {remote}", self.what));
        }
    }

    /// The recv of a head: not before the call that brought the first byte, not after the one that brought the last. Who
    /// stopped in the middle of a message may have gone on reading, to throw it away.
    fn recv(&mut self, name: &str, crossing: Option<&Crossing>, leg: &Leg) {
        let Some(at) = crossing.and_then(|c| c.recv_ns) else { return };
        let end = leg.last.unwrap_or(Mark { before: MonotonicNs(0), after: MonotonicNs(u64::MAX) });
        self.within(name, Some(at), leg.first, Some(end));
        self.case.heads.0 += 1;
        self.case.heads.1 += usize::from(leg.head.is_some_and(|call| call.contains(MonotonicNs(at))));
    }

    /// An instant that must lie between the begin of one call and the end of another.
    fn within(&mut self, name: &str, at: Option<u64>, from: Option<Mark>, to: Option<Mark>) {
        let Some(at) = at else { return };
        self.case.checked += 1;
        let (Some(from), Some(to)) = (from, to) else {
            self.case.wrong.push(format!("{}: {name} at {at}, in truth there was none", self.what));
            return;
        };
        if at < from.before.0 || at > to.after.0 {
            let (early, late) = (from.before.0 as i128 - i128::from(at), i128::from(at) - to.after.0 as i128);
            let off = if early > 0 { format!("{early} ns too early") } else { format!("{late} ns too late") };
            self.case.wrong.push(format!("{}: {name} is {off}", self.what));
        }
    }
}

impl Exchanges {
    /// A case.
    ///
    /// # Panics
    /// If it did not run.
    #[must_use]
    pub fn case(&self, name: &str) -> &Case {
        self.cases.get(name).unwrap_or_else(|| panic!("{name} did not run"))
    }

    /// The median of something over the full lines of a case and their exchanges; none if there are none.
    #[must_use]
    pub fn median_of(
        &self,
        name: &str,
        requests: &[Request],
        truth: &Truth,
        what: impl Fn(&Request, &ExchangeRecord, Option<&ExchangeRecord>) -> Option<f64>,
    ) -> Option<f64> {
        let pairs = self.case(name).pairs.iter().filter(|(i, _)| requests[*i].coverage.full);
        let values: Vec<f64> = pairs
            .filter_map(|&(i, nonce)| {
                let sent = truth.exchange(nonce, Role::Client)?;
                what(&requests[i], sent, truth.exchange(nonce, Role::Server))
            })
            .collect();
        (!values.is_empty()).then(|| median(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(nonce: u64, first: (u64, u64)) -> ExchangeRecord {
        let mark = |(before, after): (u64, u64)| Mark { before: MonotonicNs(before), after: MonotonicNs(after) };
        let call = mark(first);
        let line = serde_json::json!({
            "role": "client", "pod": "loadgen", "case": "http2-get", "protocol": "http/2",
            "nonce": format!("{nonce:016x}"), "requestId": format!("00000000-0000-4000-8000-{nonce:012x}"),
            "local": "10.0.0.1:1000", "remote": "10.96.0.1:8001", "stream": 1, "method": "GET", "path": "/", "status": 200,
            "request": { "first": call, "head": call, "last": call, "bytes": 0 },
            "response": { "first": null, "head": null, "last": null, "bytes": 0 },
            "error": null,
        });
        serde_json::from_value(line).expect("a record")
    }

    fn line(id: &str, local: &str, at: u64) -> Request {
        let line = serde_json::json!({
            "id": "1", "requestId": id, "protocol": "http/2", "path": null, "responseCode": 200,
            "client": {"namespace": null, "workload": null, "pod": null},
            "server": {"namespace": null, "workload": null, "pod": null},
            "totalNs": 5, "totalVantage": "app", "segments": {"client_app": 5},
            "coverage": {"full": true, "halves": "both", "kernel": "both", "reason": null},
            "startMonotonicNs": at, "parentId": null,
            "sockets": {"s1": {"local": local, "remote": "10.96.0.1:8001", "cookie": 1}},
            "crossings": {"request": {"clientLoopback": {"sendNs": at, "readyNs": null, "recvNs": null}}},
        });
        serde_json::from_value(line).expect("a line")
    }

    #[test]
    fn an_instant_of_another_stream_is_found_out() {
        use meshdiff_lab::truth::Record;
        let record = |e: ExchangeRecord| Record::Exchange(Box::new(e));
        let truth = Truth::from_records([record(sent(1, (100, 110))), record(sent(2, (200, 210)))]);
        // Character 14 is the sampling decision.
        let id = "00000000-0000-9000-8000-000000000001";
        let judged = |lines: &[Request]| judge_exchanges(lines, &truth).cases["http2-get"].clone();
        let right = judged(&[line(id, "10.0.0.1:1000", 105)]);
        assert_eq!((right.sent, right.lines, right.full, right.wrong.len(), right.checked), (2, 1, 1, 0, 2));
        assert_eq!(judged(&[line(id, "10.0.0.1:1000", 205)]).wrong.len(), 1, "the other stream's send");
        assert_eq!(judged(&[line(id, "10.0.0.1:1001", 105)]).wrong.len(), 1, "another connection");
        assert_eq!(judged(&[line(id, "10.0.0.1:1000", 105), line(id, "10.0.0.1:1000", 105)]).doubled.len(), 1);
        let unknown = judge_exchanges(&[line("x", "10.0.0.1:1000", 150)], &truth);
        assert_eq!((unknown.unknown.len(), unknown.nameless), (1, 0), "a full line is of something");
        let by_place = judge_exchanges(&[line("x", "10.0.0.1:1000", 205)], &truth);
        assert_eq!(by_place.cases["http2-get"].pairs, [(0, Nonce(2))]);
    }
}

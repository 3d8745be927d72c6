//! Judges hops against the truth.

use super::world::{TrueCrossing, TrueRequest, World};
use meshdiff_graph::{Directory, Hop, HopInput, MeshGraph};
use meshdiff_model::{Crossing, Flow, JoinOutcome, JoinedHop, MonotonicNs, NodeId, UnmatchedReason, Workload};
use std::collections::HashMap;
use std::net::IpAddr;

/// Nobody is known.
pub(crate) struct Nobody;

impl Directory for Nobody {
    fn by_proxy(&self, _: &NodeId) -> Option<Workload> {
        None
    }
    fn by_address(&self, _: IpAddr) -> Option<Workload> {
        None
    }
    fn service_of_cluster(&self, _: &str) -> Option<(String, Option<String>)> {
        None
    }
}

pub(crate) fn join(world: &World) -> MeshGraph {
    let input = HopInput {
        sockets: &world.sockets,
        messages: &world.messages,
        http2: &world.streams,
        access_logs: &world.logs,
        clock: &world.clock,
        window: world.window,
    };
    MeshGraph::build(input, &[], &Nobody)
}

/// What came out, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Requests that nothing excuses.
    pub(crate) ordinary: usize,
    /// Of these, the full ones.
    pub(crate) full: usize,
}

fn number(path: &str) -> usize {
    path.strip_prefix("/r").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("a strange path {path}"))
}

/// Which request a hop is, by its logs and by the first socket and instant; panics if these disagree.
pub(crate) fn identity(hop: &JoinedHop, by_first_send: &HashMap<(u64, u64), usize>) -> Option<usize> {
    let client = hop.client_log.as_ref().and_then(|l| l.path.as_deref()).map(number);
    let server = hop.server_log.as_ref().and_then(|l| l.path.as_deref()).map(number);
    let kernel = match (hop.sockets[0], hop.request[0].send) {
        (Some(socket), Some(send)) => by_first_send.get(&(socket.0, send.0)).copied(),
        _ => None,
    };
    let mut all = [client, server, kernel].into_iter().flatten();
    let first = all.next()?;
    assert!(
        all.all(|n| n == first),
        "a wrong join: client's log {client:?}, server's {server:?}, kernel {kernel:?}\n{hop:#?}"
    );
    Some(first)
}

fn exact(what: &str, n: usize, seen: &Crossing, truth: Option<&TrueCrossing>, hop: &JoinedHop) {
    let Some(truth) = truth else {
        panic!("request {n} {what}: instants of a connection that it did not use\n{hop:#?}");
    };
    for (name, seen, truth) in [
        ("send", seen.send, truth.send),
        ("ready", seen.ready, truth.ready),
        ("recv", seen.recv, truth.recv),
        ("last_send", seen.last_send, truth.last_send),
        ("last_ready", seen.last_ready, truth.last_ready),
        ("last_recv", seen.last_recv, truth.last_recv),
    ] {
        if let Some(MonotonicNs(seen)) = seen {
            assert_eq!(seen, truth, "request {n} {what} {name} is wrong: {hop:#?}");
        }
    }
}

/// What a flow says of each instant holds for the bytes that truly moved: sent on one socket, ready and read on the other.
fn flow_holds(what: &str, world: &World, flow: Option<&Flow>, sockets: (u64, u64), (from, to): (u64, u64)) {
    let Some(flow) = flow else { return };
    assert_eq!(flow.bytes, to - from, "{what}: {flow:?}");
    let (sender, receiver) = (&world.moved[&sockets.0], &world.moved[&sockets.1]);
    let of = [(&flow.sent, &sender.sent), (&flow.ready, &receiver.arrived), (&flow.read, &receiver.read)];
    for (progress, moved) in of {
        for (i, &(at, sum)) in moved.iter().enumerate() {
            // What moved at one instant in several events counts as the last of them.
            if moved.get(i + 1).is_some_and(|next| next.0 == at) {
                continue;
            }
            let (truth, (low, high)) = (sum.clamp(from, to) - from, progress.at(MonotonicNs(at)));
            assert!((low..=high).contains(&truth), "{what}: {truth} at {at} is not in {low}..={high}: {flow:?}");
        }
    }
}

/// True if nothing excuses that a request is not full.
pub(crate) fn ordinary(world: &World, request: &TrueRequest) -> bool {
    // Where anything was lost, the end of a connection that nothing follows may have been, too.
    let recorded = || world.requests.iter().filter(|r| r.request.send <= world.window.1.0);
    let last_of_s1 = || recorded().filter(|r| r.sockets == request.sockets).map(|r| r.request.send).max();
    let closed = || world.sockets.iter().any(|s| s.cookie.0 == request.sockets[1] && s.closed.is_some());
    if !world.lossy.is_empty() && last_of_s1() == Some(request.request.send) && !closed() {
        return false;
    }
    let attempt = request.attempts.iter();
    let sockets = request.sockets.iter().chain(attempt.clone().flat_map(|a| &a.sockets));
    request.request.send >= world.window.0.0
        && request.response.last_recv + 5_000_000 <= world.window.1.0
        && !request.client_log_lost
        && (request.attempts.len() < 2 || world.attempts_logged)
        && attempt.clone().all(|a| !a.server_log_lost)
        && sockets.clone().all(|s| !world.lossy.contains(s))
}

/// Every other attempt is a true one, with its true sockets and instants.
fn others_are_right(n: usize, joined: &JoinedHop, truth: &TrueRequest) {
    assert!(joined.attempts.len() < truth.attempts.len().max(1), "request {n} has too many attempts\n{joined:#?}");
    for (other, of) in joined.attempts.iter().zip(&truth.attempts) {
        for (seen, truth) in other.hop.sockets[2..].iter().zip(of.sockets) {
            assert!(seen.is_none_or(|s| s.0 == truth), "request {n}: a wrong join of an attempt\n{other:#?}");
        }
        for link in [1, 2] {
            exact("an attempt's request", n, &other.hop.request[link], Some(&of.request[link - 1]), &other.hop);
            exact("an attempt's response", n, &other.hop.response[link], Some(&of.response[link - 1]), &other.hop);
        }
        let path = |log: &Option<std::sync::Arc<meshdiff_model::HopSide>>| log.as_ref().map(|l| l.path.clone());
        let paths = [path(&other.hop.client_log), path(&other.hop.server_log), path(&joined.client_log)];
        let mut told = paths.into_iter().flatten();
        let first = told.next();
        assert!(told.all(|p| Some(p) == first), "request {n}: an attempt of another request\n{other:#?}");
        if let Some(MonotonicNs(began)) = other.began {
            assert_eq!(began, of.request[0].send, "request {n}: an attempt's beginning");
        }
    }
}

/// Judges every hop.
pub(crate) fn judge(world: &World, hops: &[Hop]) -> Tally {
    let firsts = || world.requests.iter().enumerate();
    let by_first_send: HashMap<(u64, u64), usize> =
        firsts().map(|(n, r)| ((r.sockets[0], r.request.send), n)).collect();
    let mut tally = Tally::default();
    let mut of_request: Vec<Vec<&JoinedHop>> = vec![Vec::new(); world.requests.len()];
    for hop in hops {
        let joined = &hop.joined;
        let Some(n) = identity(joined, &by_first_send) else {
            // Without a log there must be the beginning of an application's request, or what is left of it after a loss.
            let lossy = joined.sockets.iter().flatten().any(|s| world.lossy.contains(&s.0));
            assert!(lossy, "a hop that is no request: {joined:#?}");
            continue;
        };
        of_request[n].push(joined);
        let truth = &world.requests[n];
        // Which attempt it is: the last, but for entries of servers that only an earlier attempt explains.
        let attempt = truth.attempts.iter().rev().find(|a| {
            joined.sockets[2..].iter().zip(a.sockets).all(|(seen, truth)| seen.is_none_or(|s| s.0 == truth))
                && joined.request[1]
                    .send
                    .or(joined.request[2].send)
                    .is_none_or(|at| [a.request[0].send, a.request[1].send].contains(&at.0))
        });
        if attempt.is_none() && joined.sockets[2..].iter().any(Option::is_some) {
            panic!("request {n}: a wrong join of sockets\n{joined:#?}\n{truth:#?}");
        }
        for (seen, truth) in joined.sockets[..2].iter().zip(truth.sockets) {
            assert!(seen.is_none_or(|s| s.0 == truth), "request {n}: a wrong join of S1 or S2\n{joined:#?}");
        }
        exact("request on S1/S2", n, &joined.request[0], Some(&truth.request), joined);
        exact("response on S1/S2", n, &joined.response[0], Some(&truth.response), joined);
        let (there, back) = (&joined.flows.request, &joined.flows.response);
        let [s1, s2] = truth.sockets;
        flow_holds("request from S1 to S2", world, there[0].as_deref(), (s1, s2), truth.bytes[0]);
        flow_holds("response from S2 to S1", world, back[0].as_deref(), (s2, s1), truth.bytes[1]);
        if let Some(attempt) = attempt {
            let [.., s5, s6] = attempt.sockets;
            flow_holds("request from S5 to S6", world, there[2].as_deref(), (s5, s6), attempt.bytes[0]);
            flow_holds("response from S6 to S5", world, back[2].as_deref(), (s6, s5), attempt.bytes[1]);
        }
        for link in [1, 2] {
            if joined.sockets[2 * link].is_some() || joined.sockets[2 * link + 1].is_some() {
                let (there, back) = (attempt.map(|a| &a.request[link - 1]), attempt.map(|a| &a.response[link - 1]));
                exact(&format!("request on link {link}"), n, &joined.request[link], there, joined);
                exact(&format!("response on link {link}"), n, &joined.response[link], back, joined);
            }
        }
        others_are_right(n, joined, truth);
        if let Some((start, end)) = joined.connection_setup {
            // Where all attempts are known it is the first one's.
            let first = joined.first_attempt().filter(|_| joined.is_retried()).and(truth.attempts.first());
            let connected = first.or(attempt).and_then(|a| a.connected);
            let (true_start, usable) = connected.unwrap_or_else(|| panic!("request {n} did not wait for a connect"));
            assert_eq!(start.0, true_start, "request {n}: connect");
            assert!(end.0 <= usable + 1 && end > start, "request {n}: connect until {end:?}, usable at {usable}");
        }
    }
    for (n, request) in firsts() {
        let hops = &of_request[n];
        let of_client = hops.iter().filter(|h| h.client_log.is_some() || h.request[0].send.is_some()).count();
        assert!(of_client <= 1, "request {n} is counted {of_client} times: {hops:#?}");
        if !ordinary(world, request) {
            continue;
        }
        tally.ordinary += 1;
        assert_eq!(hops.len(), 1, "request {n} is ordinary and has not one hop: {hops:#?}\n{request:#?}");
        let hop = hops[0];
        let local = request.attempts.is_empty();
        let full = hop.client_half == JoinOutcome::Matched(())
            && match hop.server_half {
                JoinOutcome::Matched(()) => !local,
                JoinOutcome::Unmatched(UnmatchedReason::LocalReply) => local,
                _ => false,
            };
        let count = |list: &[Crossing]| list.iter().filter(|c| complete(c)).count();
        let links = if local { 1 } else { 3 };
        // Ends on the inner connections may be doubted: between the sidecars where the next turn is nobody's, at the server where
        // anything was lost and nothing follows.
        let doubted = [false, true, !world.lossy.is_empty()];
        let believed = |crossings: [Crossing; 3]| {
            let mut crossings = crossings;
            for (crossing, doubted) in crossings.iter_mut().zip(doubted) {
                if doubted && crossing.last_send.is_none() {
                    *crossing = Crossing { last_send: crossing.send, last_ready: crossing.ready, ..*crossing };
                }
            }
            count(&crossings)
        };
        let whole = believed(hop.request) == links && believed(hop.response) == links;
        let setup = request.attempts.first().is_none_or(|a| a.connected.is_some() == hop.connection_setup.is_some());
        let attempts = hop.attempts.len() + 1 == request.attempts.len().max(1)
            && (request.attempts.len() < 2 || hop.first_attempt().is_some());
        if full && whole && setup && attempts && hop.response[0].last_recv.is_some() {
            tally.full += 1;
        } else if std::env::var_os("TRUTH_VERBOSE").is_some() {
            println!("request {n} is ordinary and not full: setup {setup} whole {whole}\n{hop:#?}\n{request:#?}");
        }
    }
    tally
}

/// A read that comes so late that assembly had to let two messages go before may be missing (documented in
/// `probes/src/assembly/mod.rs`): only a detail hangs on it.
fn complete(c: &Crossing) -> bool {
    [c.send, c.ready, c.last_send, c.last_ready].iter().all(Option::is_some)
}

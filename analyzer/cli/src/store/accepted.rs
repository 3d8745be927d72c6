//! The accepting end of an encrypted connection, where it alone cannot tell which bytes are a request: those of the handshake come before
//! the first one.
//!
//! What is taken for it is what had come when the server's sidecar passed the request on, and what the sidecar sent next after it had the
//! answer. That is no more than a proposal: the client's half has to name the same sequence numbers at both ends, or they are no pair.

use meshdiff_capture::CaptureData;
use meshdiff_model::{Crossing, Direction, JoinedHop, Link, Message, Socket, SocketCookie};
use std::collections::HashMap;
use std::net::SocketAddr;

/// What sockets that accepted connections from other pods saw.
pub(super) struct Accepted<'a> {
    by_peer: HashMap<SocketAddr, Vec<&'a Socket>>,
    messages: HashMap<(SocketCookie, Direction), Vec<&'a Message>>,
}

impl<'a> Accepted<'a> {
    /// Those that these hops' logs name.
    pub(super) fn of<'h>(data: &'a CaptureData, hops: impl Iterator<Item = &'h JoinedHop>) -> Self {
        let mut by_peer: HashMap<SocketAddr, Vec<&Socket>> = hops.filter_map(peer).map(|p| (p, Vec::new())).collect();
        for socket in &data.sockets {
            if let Some(list) = by_peer.get_mut(&socket.remote.0) {
                list.push(socket);
            }
        }
        let mut messages: HashMap<(SocketCookie, Direction), Vec<&Message>> = HashMap::new();
        for socket in by_peer.values().flatten() {
            for direction in [Direction::Egress, Direction::Ingress] {
                messages.insert((socket.cookie, direction), Vec::new());
            }
        }
        for message in &data.messages {
            if let Some(list) = messages.get_mut(&(message.socket, message.direction)) {
                list.push(message);
            }
        }
        Self { by_peer, messages }
    }

    /// Proposes the accepting end for a server's half that has none.
    pub(super) fn propose(&self, hop: &mut JoinedHop) {
        if let Some((socket, request, response)) = self.found(hop) {
            hop.sockets[3] = Some(socket);
            hop.request[Link::Network as usize] = request;
            hop.response[Link::Network as usize] = response;
        }
    }

    fn found(&self, hop: &JoinedHop) -> Option<(SocketCookie, Crossing, Crossing)> {
        let passed_on = hop.request_on(Link::ServerLoopback).send?;
        let answered = hop.response_on(Link::ServerLoopback).ready?;
        let alive = |s: &&&Socket| s.first_seen <= passed_on && answered <= s.last_seen;
        let mut sockets = self.by_peer.get(&peer(hop)?)?.iter().filter(alive);
        let (Some(socket), None) = (sockets.next(), sockets.next()) else { return None };
        let of = |direction| self.messages.get(&(socket.cookie, direction)).into_iter().flatten();
        let came = of(Direction::Ingress).flat_map(|m| &m.readies).rfind(|r| r.at <= passed_on)?;
        let read = of(Direction::Ingress).flat_map(|m| &m.recvs).find(|r| came.seq.distance(r.seq) >= 0)?;
        let (message, first) =
            of(Direction::Egress).find_map(|m| Some((m, m.sends.iter().find(|s| s.at >= answered)?)))?;
        let last = message.sends.iter().map(|s| s.at).max()?;
        let bytes = u32::try_from(first.seq.distance(message.seq.end)).ok()?;
        let request = Crossing { last_ready: Some(came.at), last_recv: Some(read.at), ..Crossing::default() };
        let response = Crossing { send: Some(first.at), last_send: Some(last), bytes, ..Crossing::default() };
        let in_order = came.at <= read.at && read.at <= passed_on && message.elided == 0;
        in_order.then_some((socket.cookie, request, response))
    }
}

/// The address from which the client's sidecar connected, of a server's half whose accepting end is not known.
fn peer(hop: &JoinedHop) -> Option<SocketAddr> {
    let request = hop.request_on(Link::Network);
    let untold = hop.sockets[3].is_none() || (request.ready.is_none() && request.last_ready.is_none());
    let log = hop.server_log.as_ref().filter(|_| untold && hop.client_log.is_none())?;
    log.downstream_direct_remote_address.map(|a| a.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_model::{JoinOutcome, MonotonicNs, UnmatchedReason};

    #[test]
    fn nothing_is_proposed_without_the_way_beyond() {
        let unmatched = JoinOutcome::Unmatched(UnmatchedReason::ClientLogMissing);
        let mut hop = JoinedHop::empty(unmatched, unmatched);
        let accepted = Accepted { by_peer: HashMap::new(), messages: HashMap::new() };
        accepted.propose(&mut hop);
        assert!(hop.sockets[3].is_none() && hop.request_on(Link::Network).last_ready.is_none());
        hop.request[2].send = Some(MonotonicNs(1));
        accepted.propose(&mut hop);
        assert!(hop.sockets[3].is_none());
    }
}

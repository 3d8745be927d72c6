//! What is known of one request, put together.

use super::{Entry, Joiner, TOLERANCE};
use crate::exchange::{Exchange, SWITCHING_PROTOCOLS};
use meshdiff_model::{
    ClockAnchor, Closer, Content, Crossing, DurationNs, HopSide, Http2Fields, JoinOutcome, JoinedHop, Link,
    LoggedCrossing, MonotonicNs, SocketCookie, UnmatchedReason,
};
use std::sync::Arc;

impl Joiner<'_> {
    /// Fills in one connection of a hop.
    pub(super) fn put(
        &self,
        hop: &mut JoinedHop,
        link: Link,
        exchange: &Exchange,
        response_not_before: Option<MonotonicNs>,
    ) {
        let connection = &self.connections[exchange.connection];
        let at = link as usize;
        hop.sockets[2 * at] = connection.client.map(|i| self.endpoints[i].socket.cookie);
        hop.sockets[2 * at + 1] = connection.server.map(|i| self.endpoints[i].socket.cookie);
        hop.request[at] = exchange.request_crossing(connection, &self.endpoints);
        hop.response[at] = exchange.response_crossing(connection, &self.endpoints, response_not_before);
        // A loss is noticed by what comes after it: where there was any, what seems not to have happened may have.
        let seen_until = self.lossy.is_empty().then_some(self.input.window.1);
        hop.flows.request[at] = exchange.request_flow(connection, &self.endpoints, seen_until).map(Arc::new);
        hop.flows.response[at] =
            exchange.response_flow(connection, &self.endpoints, response_not_before, seen_until).map(Arc::new);
        hop.flows.behind[at] = self.waited_behind(exchange, &hop.request[at]);
        hop.free_since[at] = self
            .before(exchange)
            .and_then(|before| before.response_crossing(connection, &self.endpoints, None).last_recv);
        if let Some(stream) = &exchange.stream {
            let before = hop.http2.take();
            hop.http2 = Some(nearest(stream.fields.clone(), before));
        }
        if link == Link::ClientLoopback {
            hop.request_content = exchange.request_content.clone();
            hop.response_content = exchange.response_content.clone();
            let client = connection.client.map(|i| &self.endpoints[i].socket);
            if exchange.first_on_connection
                && let Some((start, end)) = client.and_then(|s| s.connect_start.zip(s.established))
            {
                hop.client_connect = Some(end - start);
            }
        }
    }

    pub(super) fn hop(&self, client: Option<&Entry>, server: JoinOutcome<&Entry>) -> JoinedHop {
        let mut hop = JoinedHop::empty(
            JoinOutcome::Unmatched(UnmatchedReason::ClientLogMissing),
            match &server {
                JoinOutcome::Matched(_) => JoinOutcome::Matched(()),
                JoinOutcome::Ambiguous(r) => JoinOutcome::Ambiguous(*r),
                JoinOutcome::Unmatched(r) => JoinOutcome::Unmatched(*r),
            },
        );
        let server = server.matched();
        // Inside out: what marks a response on an outer connection must come after it was ready on the inner one.
        let mut inner: Option<MonotonicNs> = None;
        if let Some(server) = server {
            hop.server_log = Some(server.log.clone());
            hop.router_logs[1] = server.router_log.clone();
            if let JoinOutcome::Matched(e) = server.upstream {
                self.put(&mut hop, Link::ServerLoopback, &self.exchanges[e], None);
                self.doubt_end(&mut hop, Link::ServerLoopback, &self.exchanges[e], None);
                inner = hop.response[Link::ServerLoopback as usize].ready;
            }
            // Envoy says when it began to encode the response: the bytes leave after that.
            let mark = server.log.timings.time_to_first_downstream_tx_byte;
            inner = inner.or_else(|| Some(server.start?.offset(mark?).offset(-TOLERANCE)));
        }
        let network = server.and_then(|s| s.downstream.matched()).or_else(|| client.and_then(|c| c.upstream.matched()));
        if let Some(e) = network {
            self.put(&mut hop, Link::Network, &self.exchanges[e], inner);
            self.doubt_end(&mut hop, Link::Network, &self.exchanges[e], server);
            if self.parted.contains(&e) {
                forget_end(&mut hop, Link::Network);
            }
            let setup = self.setup_of(&self.exchanges[e], client);
            (hop.connection_setup, hop.connected) = (setup.map(|s| s.0), setup.and_then(|s| s.1));
        } else {
            self.put_shared_network(&mut hop, client, server);
        }
        if let Some(client) = client {
            hop.client_log = Some(client.log.clone());
            hop.router_logs[0] = client.router_log.clone();
            if let JoinOutcome::Matched(e) = client.downstream {
                self.put(&mut hop, Link::ClientLoopback, &self.exchanges[e], None);
                self.doubt_end(&mut hop, Link::ClientLoopback, &self.exchanges[e], Some(client));
                hop.gave_up = self.gave_up(&hop, &self.exchanges[e], client);
                if let Some(inner) = server.and_then(|s| s.upstream.matched()) {
                    self.infer_head(&mut hop, &self.exchanges[e], &self.exchanges[inner]);
                }
            }
        }
        if client.or(server).is_some_and(|e| self.near_the_end(e)) {
            forget_ends(&mut hop);
        }
        if hop.gave_up.is_none() {
            hop.abandoned = self.abandoned(&hop, network, client, server);
        }
        self.judge(&mut hop, client, server);
        hop
    }

    /// Names S3 and S4 where their connection is encrypted and carries several requests at once: it was seen, and no more can be.
    fn put_shared_network(&self, hop: &mut JoinedHop, client: Option<&Entry>, server: Option<&Entry>) {
        const SHARED: JoinOutcome<usize> = JoinOutcome::Unmatched(UnmatchedReason::MultiplexedEncrypted);
        let by_client = client.filter(|c| c.upstream == SHARED).and_then(|c| c.upstream_connection);
        let by_server = server.filter(|s| s.downstream == SHARED).and_then(|s| s.downstream_connection);
        // Each half names the connection; where both do, it must be the same.
        let connection = match (client, server) {
            (Some(_), Some(_)) => by_client.filter(|_| by_client == by_server),
            _ => by_client.or(by_server),
        };
        if let Some(connection) = connection.map(|c| &self.connections[c])
            && let (Some(s3), Some(s4)) = (connection.client, connection.server)
        {
            hop.sockets[2] = Some(self.endpoints[s3].socket.cookie);
            hop.sockets[3] = Some(self.endpoints[s4].socket.cookie);
            hop.network_by_log = true;
            let at = |entry: Option<&Entry>, mark: fn(&HopSide) -> Option<DurationNs>| {
                entry.and_then(|e| Some(e.start?.offset(mark(&e.log)?)))
            };
            hop.logged = LoggedCrossing {
                sent: at(client, |log| log.timings.time_to_first_upstream_tx_byte),
                arrived: at(server, |_| Some(DurationNs::ZERO)),
                answered: at(server, |log| log.timings.time_to_first_downstream_tx_byte),
                returned: at(client, |log| log.timings.time_to_first_upstream_rx_byte),
            };
        }
    }

    /// A loss is noticed by what comes after it. Where nothing comes after an exchange on its connection, its last bytes may have been
    /// lost without a trace: then they count only if nothing was lost in the whole recording, and both ends and the log of the proxy that
    /// sent the response bear each other out. A close comes after, too.
    fn doubt_end(&self, hop: &mut JoinedHop, link: Link, exchange: &Exchange, proxy: Option<&Entry>) {
        // A stream says itself where it ends, and no instant is taken from bytes that follow a loss.
        if exchange.stream.is_some() {
            return;
        }
        let connection = &self.connections[exchange.connection];
        let ends = || [connection.client, connection.server].into_iter().flatten().map(|i| &self.endpoints[i].socket);
        if !self.is_last(exchange) || ends().all(|s| s.closed.is_some() && s.lost_events == 0) {
            return;
        }
        let mark = proxy.and_then(|p| Some(p.start?.offset(p.log.timings.time_to_last_downstream_tx_byte?)));
        let response = &hop.response[link as usize];
        let unheard = mark.is_some_and(|mark| response.last_send.is_none_or(|at| at.offset(TOLERANCE) < mark));
        // What was lost elsewhere may have been lost here.
        let unheard = unheard || !self.lossy.is_empty();
        let one_sided = connection.client.is_none() || connection.server.is_none();
        if unheard || one_sided {
            forget_end(hop, link);
        }
    }

    /// Finds the end of the request's head on the server's loopback, where it is longer than what the probe saw of it and went out with a part
    /// of the body in one send call: it is what the body, as the application sent it, leaves. Both proxies' logs must give the body
    /// this size, so that it was neither cut short nor encoded anew.
    fn infer_head(&self, hop: &mut JoinedHop, outer: &Exchange, inner: &Exchange) {
        let connection = |e: &Exchange| &self.connections[e.connection];
        let at = Link::ServerLoopback as usize;
        let known =
            self.exchange_head(inner).is_some() || inner.stream.is_some() || hop.request[at].last_ready.is_none();
        let Some(head) = self.exchange_head(outer).filter(|_| !known) else { return };
        let body = u64::from(hop.request[Link::ClientLoopback as usize].bytes).saturating_sub(head);
        let logged = [&hop.client_log, &hop.server_log].map(|l| l.as_ref().map(|l| l.request_body_bytes));
        let inferred = u64::from(hop.request[at].bytes).saturating_sub(body);
        // A proxy adds headers; Envoy takes up to 60 KiB of them.
        if body == 0 || logged != [Some(body); 2] || !(head..=65_536).contains(&inferred) {
            return;
        }
        if let Some((ready, recv)) = inner.request_arrival(connection(inner), &self.endpoints, inferred) {
            hop.request[at].ready = Some(ready);
            hop.request[at].recv = recv;
            if let Some(flow) = &mut hop.flows.request[at] {
                Arc::make_mut(flow).head = Some(inferred);
            }
        }
    }

    fn exchange_head(&self, exchange: &Exchange) -> Option<u64> {
        exchange.request_head(&self.connections[exchange.connection], &self.endpoints)
    }

    /// When the client application gave up a request: it reset its stream, or it closed or reset its connection while the proxy had not
    /// sent all of the response.
    fn gave_up(&self, hop: &JoinedHop, exchange: &Exchange, client: &Entry) -> Option<MonotonicNs> {
        let at = Link::ClientLoopback as usize;
        let had_all = |given: MonotonicNs| hop.response[at].last_recv.is_some_and(|last| last <= given);
        if let Some(stream) = &exchange.stream {
            return stream.cancelled.filter(|reset| !had_all(*reset));
        }
        // An upgraded connection ends when its client is done with it.
        if exchange.response_content == SWITCHING_PROTOCOLS {
            return None;
        }
        // Envoy's flag for a client that went away (`DC`); the end of a connection ends a response without a length as well.
        let went_away = client.log.response_flags.iter().any(|flag| &**flag == "DC");
        if !(went_away || hop.response[at].send.is_none()) || !self.is_last(exchange) {
            return None;
        }
        let socket = &self.endpoints[self.connections[exchange.connection].client?].socket;
        let close = socket.close.filter(|close| close.by == Closer::Local)?;
        let closed = socket.closed?;
        let given = closed.offset(-close.duration.unwrap_or_default());
        hop.request[at].send.is_some_and(|sent| sent <= given).then_some(given)
    }

    /// When upstream connections ended without a response, of proxies that answered all the same (or tried again).
    fn abandoned(
        &self,
        hop: &JoinedHop,
        network: Option<usize>,
        client: Option<&Entry>,
        server: Option<&Entry>,
    ) -> [Option<MonotonicNs>; 2] {
        let ended = |proxy: &Entry, exchange: Option<usize>, link: Link, back: Option<MonotonicNs>| {
            // It may end its connection a little after it has answered, or keep it (and reset a stream).
            let ended = self.end_of(&self.exchanges[exchange?]);
            let end = ended.map_or(back, |end| Some(back.map_or(end, |back| end.min(back))))?;
            // The proxy itself says that the request's head was sent, and that no response's head came.
            let marks = &proxy.log.timings;
            let unanswered = hop.response_on(link).ready.is_none()
                && marks.time_to_first_upstream_tx_byte.is_some()
                && marks.time_to_first_upstream_rx_byte.is_none()
                && hop.request_on(link).send? <= end;
            unanswered.then_some(end)
        };
        let back = hop.response_on(Link::ClientLoopback).send;
        let of_client = client.filter(|c| c.attempt_of.is_some() || back.is_some());
        // On a shared connection nobody sees the stream's end: the log of an attempt tells it, of a request the answer.
        let shared = || {
            let client = client.filter(|_| hop.network_by_log && hop.logged.returned.is_none())?;
            let logged = || Some(client.start?.offset(client.log.timings.extent()?));
            let end = if client.attempt_of.is_some() { logged() } else { back };
            end.filter(|end| hop.logged.sent.is_some_and(|sent| sent <= *end))
        };
        let by_client = of_client.and_then(|c| ended(c, network, Link::Network, back)).or_else(shared);
        let back = hop.response_on(Link::Network).send;
        let of_server = server.filter(|_| back.is_some() || by_client.is_some());
        let by_server = of_server.and_then(|s| ended(s, s.upstream.matched(), Link::ServerLoopback, back));
        [by_client, by_server]
    }

    /// When the connecting end was done with an exchange that got no response: it reset its stream, or its connection, on which nothing
    /// came after, ended.
    pub(super) fn end_of(&self, exchange: &Exchange) -> Option<MonotonicNs> {
        if let Some(stream) = &exchange.stream {
            return stream.cancelled;
        }
        let connection = &self.connections[exchange.connection];
        let socket = &self.endpoints[connection.client.or(connection.server)?].socket;
        let began = socket.closed?.offset(-socket.close.and_then(|c| c.duration).unwrap_or_default());
        self.is_last(exchange).then_some(began)
    }

    /// When the accepting end had sent its last byte of the response to the request before this one on the same connection, if this one
    /// was ready there before that: requests of HTTP/1 are answered one after the other.
    fn waited_behind(&self, exchange: &Exchange, request: &Crossing) -> Option<MonotonicNs> {
        let before = self.before(exchange)?;
        let connection = &self.connections[exchange.connection];
        let done = before.response_crossing(connection, &self.endpoints, None).last_send?;
        (request.ready? < done).then_some(done)
    }

    /// The exchange before this one on its connection, where they follow one another.
    fn before(&self, exchange: &Exchange) -> Option<&Exchange> {
        if exchange.stream.is_some() {
            return None;
        }
        let list = &self.exchanges[self.of_connection[exchange.connection].clone()];
        let from = list.partition_point(|e| e.first < exchange.first);
        let place = from + list[from..].iter().position(|e| std::ptr::eq(e, exchange))?;
        list.get(place.checked_sub(1)?)
    }

    /// S3's connect and handshake, if this exchange is the first on it and the connect began after the proxy had the request; and when
    /// the connect alone was done.
    pub(super) fn setup_of(
        &self,
        exchange: &Exchange,
        client: Option<&Entry>,
    ) -> Option<((MonotonicNs, MonotonicNs), Option<MonotonicNs>)> {
        let connection = &self.connections[exchange.connection];
        let end = &self.endpoints[connection.client?];
        let start = end.socket.connect_start?;
        let served = client?.downstream.matched()?;
        let had = self.read_by_server(&self.exchanges[served])?;
        let sent = exchange.request_crossing(connection, &self.endpoints).send?;
        if !exchange.first_on_connection || start < had || start > sent {
            return None;
        }
        let handshake = end.egress.pieces.iter().filter(|p| p.content == Content::TlsHandshake && p.last <= sent);
        let done = handshake.map(|p| p.last).max().or(end.socket.established)?;
        let done = done.min(sent);
        Some(((start, done), end.socket.established.filter(|at| start <= *at && *at <= done)))
    }

    /// Sets both halves' outcomes from what is there.
    fn judge(&self, hop: &mut JoinedHop, client: Option<&Entry>, server: Option<&Entry>) {
        let whole = |c: &Crossing| c.send.is_some() && c.ready.is_some();
        if let Some(client) = client {
            let local = client.log.answered_by_itself();
            let loopback = client.downstream.map(|_| ());
            hop.client_half = match (loopback, &client.upstream) {
                (JoinOutcome::Matched(()), _) if local || hop.network_by_log => JoinOutcome::Matched(()),
                (JoinOutcome::Matched(()), up) => up.map(|_| ()),
                (other, _) => other,
            };
            let one = local || hop.network_by_log;
            let links: &[Link] = if one { &[Link::ClientLoopback] } else { &[Link::ClientLoopback, Link::Network] };
            let sent = |l: Link| {
                // Without a sidecar at the other end, the client's half is all that there is: S3's own instants tell it.
                let to_itself = l == Link::Network && server.is_none() && hop.request_on(l).send.is_some();
                let at_gateway =
                    l == Link::ClientLoopback && hop.begins_at_gateway() && hop.request_on(l).ready.is_some();
                whole(hop.request_on(l)) || to_itself || at_gateway
            };
            let answered = |l: Link| {
                // Where its head ends only its sender can tell, and what followed may be of the next response: that it came is known.
                let to_itself = l == Link::Network && server.is_none() && hop.response_on(l).bytes > 0;
                let at_gateway =
                    l == Link::ClientLoopback && hop.begins_at_gateway() && hop.response_on(l).send.is_some();
                let given_up = l == Link::Network && hop.abandoned[0].is_some();
                whole(hop.response_on(l)) || to_itself || at_gateway || given_up
            };
            let back = hop.response_on(Link::ClientLoopback);
            let ended = if hop.begins_at_gateway() { back.last_send } else { back.last_recv };
            let seen = links.iter().all(|&l| sent(l) && answered(l)) && ended.is_some() && hop.gave_up.is_none();
            if matches!(hop.client_half, JoinOutcome::Matched(())) && !seen {
                hop.client_half = JoinOutcome::Unmatched(self.why_unseen(hop, client));
            }
        }
        if let Some(server) = server {
            let came = if hop.network_by_log { JoinOutcome::Matched(()) } else { server.downstream.map(|_| ()) };
            hop.server_half = match (came, server.upstream.map(|_| ())) {
                (JoinOutcome::Matched(()), _) if server.log.answered_by_itself() => JoinOutcome::Matched(()),
                (JoinOutcome::Matched(()), up) => up,
                (other, _) => other,
            };
            let links = if server.log.answered_by_itself() { &[][..] } else { &[Link::ServerLoopback][..] };
            // Whose client does not wait any more need not answer.
            let cut_off = hop.abandoned.iter().any(Option::is_some);
            let seen = links.iter().all(|&l| whole(hop.request_on(l)) && (cut_off || whole(hop.response_on(l))));
            if matches!(hop.server_half, JoinOutcome::Matched(())) && !seen {
                hop.server_half = JoinOutcome::Unmatched(self.why_unseen(hop, server));
            }
        }
        self.admit_the_end(&mut hop.client_half, client);
        self.admit_the_end(&mut hop.server_half, server);
    }

    /// What was not seen of a request that outlasted the recording was not over.
    fn admit_the_end(&self, half: &mut JoinOutcome<()>, entry: Option<&Entry>) {
        let unseen =
            matches!(half, JoinOutcome::Unmatched(UnmatchedReason::ExchangeNotSeen | UnmatchedReason::SocketNotSeen));
        if unseen && entry.is_some_and(|e| self.near_the_end(e)) {
            *half = JoinOutcome::Unmatched(UnmatchedReason::StillOpen);
        }
    }

    /// Order of start: by the earliest instant known.
    pub(super) fn start_key(&self, hop: &JoinedHop) -> StartKey {
        start_key(hop, self.input.clock)
    }

    /// Why a socket's instants are missing although its exchange was found.
    fn why_unseen(&self, hop: &JoinedHop, entry: &Entry) -> UnmatchedReason {
        let lost = hop.sockets.iter().flatten().any(|cookie| self.lossy.contains(cookie));
        if hop.gave_up.is_some() {
            UnmatchedReason::GaveUp
        } else if lost {
            UnmatchedReason::EventsLost
        } else if self.near_the_end(entry) {
            UnmatchedReason::StillOpen
        } else if !self.lossy.is_empty() && hop.sockets[..4].iter().all(Option::is_some) {
            // The last exchange of its connection, in a recording with losses.
            UnmatchedReason::EventsLost
        } else {
            UnmatchedReason::SocketNotSeen
        }
    }
}

/// What requests are ordered by.
pub(crate) type StartKey = (MonotonicNs, Option<SocketCookie>);

/// The earliest instant that is known of a request, and its first socket.
pub(crate) fn start_key(hop: &JoinedHop, clock: &ClockAnchor) -> StartKey {
    let kernel = hop.request.iter().filter_map(|c| c.send.or(c.ready)).min();
    let log = || {
        let log = hop.client_log.as_ref().or(hop.server_log.as_ref())?;
        clock.to_monotonic(log.start_time)
    };
    (kernel.or_else(log).unwrap_or_default(), hop.sockets.iter().flatten().next().copied())
}

/// What frames say, nearest to the client application first.
fn nearest(near: Http2Fields, far: Option<Http2Fields>) -> Http2Fields {
    let far = far.unwrap_or_default();
    Http2Fields {
        method: near.method.or(far.method),
        path: near.path.or(far.path),
        status: near.status.or(far.status),
        grpc: near.grpc.or(far.grpc),
        grpc_status: near.grpc_status.or(far.grpc_status),
        request_id: near.request_id.or(far.request_id),
    }
}

/// Takes away what is said of last bytes: the recording ended before these messages did, or may have.
pub(super) fn forget_ends(hop: &mut JoinedHop) {
    Link::ALL.into_iter().for_each(|link| forget_end(hop, link));
}

fn forget_end(hop: &mut JoinedHop, link: Link) {
    let at = link as usize;
    for crossing in [&mut hop.request[at], &mut hop.response[at]] {
        *crossing = Crossing { last_send: None, last_ready: None, last_recv: None, ..*crossing };
    }
    hop.flows.request[at] = None;
    hop.flows.response[at] = None;
}

//! What probes and access logs record of a world that is made.

use super::wire::Raw;
use super::{Builder, Moved, WALL, World};
use meshdiff_model::{
    ClockAnchor, ClockSample, Http2Stream, LocalAddr, Message, MonotonicNs, NetnsId, PeerAddr, SeqNo, Socket,
    SocketCookie, TcpState, Tgid, WallTime,
};
use meshdiff_probes::{Assembler, Collected, Extra, Identity, Limits, RawEvent, RawKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};

pub(super) fn finish(mut b: Builder) -> World {
    let mut starts: Vec<u64> = b.requests.iter().map(|r| r.request.send).collect();
    starts.sort_unstable();
    let at = |percent: u32| starts[(starts.len() - 1) * percent as usize / 100];
    let from = if b.config.window.0 == 0 { 0 } else { at(b.config.window.0) };
    let latest = b.socks.iter().flat_map(|s| s.events.iter().map(|e| e.0)).max().unwrap_or(0);
    let to = if b.config.window.1 >= 100 { latest + 5_000_000 } else { at(b.config.window.1) };
    let mut lossy = HashSet::new();
    let mut moved: BTreeMap<u64, Moved> = BTreeMap::new();
    let mut delivered: Vec<Delivered> = Vec::new();
    let loss = b.config.loss;
    let mut rng = StdRng::seed_from_u64(b.config.seed ^ 0x5eed);
    for (i, sock) in b.socks.iter_mut().enumerate() {
        sock.events.sort_by_key(|e| e.0);
        let (mut written, mut arrived, mut read) = (sock.isn, sock.peer_isn, sock.peer_isn);
        let mut counter = 0;
        let mut told = false;
        let mut all = Moved::default();
        let mut sums = [0u64; 3];
        for (at, raw) in &sock.events {
            match raw {
                Raw::Send { len, .. } => {
                    sums[0] += u64::from(*len);
                    all.sent.push((*at, sums[0]));
                }
                Raw::Arrive { len } => {
                    sums[1] += u64::from(*len);
                    all.arrived.push((*at, sums[1]));
                }
                Raw::Read => {
                    sums[2] = sums[1];
                    all.read.push((*at, sums[2]));
                }
                Raw::State(..) => {}
            }
        }
        moved.insert(i as u64 + 1, all);
        for (at, raw) in &sock.events {
            let kind = match raw {
                Raw::Send { len, prefix } => {
                    let seq = SeqNo(written);
                    written = written.wrapping_add(*len);
                    Owned::Send { seq, len: *len, prefix: prefix.clone() }
                }
                Raw::Arrive { len } => {
                    arrived = arrived.wrapping_add(*len);
                    Owned::Ready { rcv_nxt: SeqNo(arrived), copied_seq: SeqNo(read) }
                }
                Raw::Read => {
                    let len = arrived.wrapping_sub(read);
                    read = arrived;
                    if len == 0 {
                        continue;
                    }
                    Owned::Recv { copied_seq: SeqNo(read), len }
                }
                Raw::State(old, new) => Owned::State { old: *old, new: *new, write_seq: SeqNo(written) },
            };
            if *at < from || *at > to {
                continue;
            }
            let cookie = SocketCookie(i as u64 + 1);
            let identity =
                Identity { netns: NetnsId(sock.netns), local: LocalAddr(sock.local), remote: PeerAddr(sock.remote) };
            let lost = rng.random_range(0..10_000) < loss;
            if lost {
                lossy.insert(cookie.0);
            } else {
                let announce = (!told).then_some(identity);
                told = true;
                delivered.push((*at, cookie, counter, Tgid(i as u32 % 7 + 1), kind, announce));
            }
            counter += 1;
        }
    }
    delivered.sort_by_key(|e| (e.0, e.1, e.2));
    let (sockets, messages, streams) = assemble(&delivered, to);
    let mut samples = Vec::new();
    for second in 0..=(to / 1_000_000_000 + 1) {
        let monotonic = second * 1_000_000_000;
        let noise = rng.random_range(-1_500..1_500);
        samples.push(ClockSample {
            monotonic: MonotonicNs(monotonic),
            wall: WallTime(monotonic.cast_signed() + WALL + noise),
        });
    }
    // Envoy flushes once a second: what ended less than that before the beginning still comes.
    let logs = b.logs.into_iter().filter(|(ended, _)| *ended + 1_000_000_000 > from).map(|(_, log)| log).collect();
    World {
        sockets,
        messages,
        streams,
        logs,
        clock: ClockAnchor::new(samples),
        window: (MonotonicNs(from), MonotonicNs(to)),
        attempts_logged: b.config.logs_attempts() && b.config.log_loss == 0,
        requests: b.requests,
        lossy,
        moved,
    }
}

/// Instant, socket, counter, process, what happened, and who the socket is where that is announced.
type Delivered = (u64, SocketCookie, u32, Tgid, Owned, Option<Identity>);

/// A probe's record that owns its bytes.
enum Owned {
    Send { seq: SeqNo, len: u32, prefix: Vec<u8> },
    Ready { rcv_nxt: SeqNo, copied_seq: SeqNo },
    Recv { copied_seq: SeqNo, len: u32 },
    State { old: TcpState, new: TcpState, write_seq: SeqNo },
}

fn assemble(events: &[Delivered], end: u64) -> (Vec<Socket>, Vec<Message>, Vec<Http2Stream>) {
    let mut assembler = Assembler::new(Limits::default());
    let mut sink = Collected::default();
    let mut tick = 0;
    for (at, socket, counter, tgid, owned, announce) in events {
        while tick + 20_000_000 < *at {
            tick = if tick == 0 { *at } else { tick + 20_000_000 };
            assembler.tick(MonotonicNs(tick), &mut sink);
        }
        let event = |kind| RawEvent {
            socket: *socket,
            counter: *counter,
            at: MonotonicNs(*at),
            tgid: *tgid,
            srtt: None,
            extra: Extra::default(),
            kind,
        };
        if let Some(identity) = announce {
            assembler.push(&event(RawKind::Announce(*identity)), &mut sink);
        }
        let kind = match owned {
            Owned::Send { seq, len, prefix } => {
                RawKind::Send { seq: *seq, len: *len, prefix: &prefix[..prefix.len().min(512)] }
            }
            Owned::Ready { rcv_nxt, copied_seq } => {
                RawKind::Ready { rcv_nxt: *rcv_nxt, copied_seq: *copied_seq, fin: false }
            }
            Owned::Recv { copied_seq, len } => RawKind::Recv { copied_seq: *copied_seq, len: *len, fin: false },
            Owned::State { old, new, write_seq } => RawKind::State { old: *old, new: *new, write_seq: *write_seq },
        };
        assembler.push(&event(kind), &mut sink);
    }
    assembler.tick(MonotonicNs(end), &mut sink);
    assembler.finish(&mut sink);
    let mut sockets: BTreeMap<SocketCookie, Socket> = BTreeMap::new();
    for socket in sink.sockets {
        sockets.insert(socket.cookie, socket);
    }
    (sockets.into_values().collect(), sink.messages, sink.streams)
}

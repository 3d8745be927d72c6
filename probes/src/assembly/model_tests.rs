//! Assembly against a stream whose truth is known: whatever is coalesced, split, lost, late, repeated or out of order, no
//! instant may be wrong, and nothing may be missing that was not lost.

use super::*;
use crate::event::{Extra, RawKind};
use meshdiff_model::{Direction, SeqInstant, SeqNo, SocketCookie, TcpState, Tgid};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the true socket does next.
#[derive(Clone, Debug)]
enum Op {
    /// A send call asks for `asked` bytes and TCP takes this share of them, in percent.
    Send { asked: u32, taken: u32, prefix: usize },
    /// Bytes arrive; the reader may not be told (SO_RCVLOWAT).
    Arrive { bytes: u32, told: bool },
    /// The reader is told again of what it was told before (a retransmit, or late).
    TellAgain,
    /// A read of at most so many bytes.
    Read { most: u32 },
    /// Time passes, in ms.
    Wait(u64),
}

const PREFIXES: [&[u8]; 6] = [
    b"",
    b"GET /x HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    &[22, 3, 3, 0, 9, 1],
    &[23, 3, 3, 0, 9, 1],
];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u32..3000, prop_oneof![5 => Just(100u32), 1 => 0u32..100], 0..PREFIXES.len())
            .prop_map(|(asked, taken, prefix)| Op::Send { asked, taken, prefix }),
        4 => (1u32..3000, prop::bool::weighted(0.9)).prop_map(|(bytes, told)| Op::Arrive { bytes, told }),
        1 => Just(Op::TellAgain),
        4 => (1u32..5000).prop_map(|most| Op::Read { most }),
        1 => prop_oneof![1u64..50, 900u64..2500].prop_map(Op::Wait),
    ]
}

/// One event, with what is true of it. Positions count bytes from the stream's beginning.
#[derive(Clone, Debug)]
struct True {
    counter: u32,
    at: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Born,
    Send { begin: u64, asked: u32, taken: u32, prefix: usize },
    Ready { end: u64, copied: u64, fin: bool },
    Recv { begin: u64, end: u64, fin: bool },
    Closed { write: u64 },
}

/// Runs the true socket.
fn simulate(ops: &[Op], born: bool, fin: bool) -> Vec<True> {
    let (mut now, mut written, mut arrived, mut read) = (1_000_000u64, 0u64, 0u64, 0u64);
    let mut events: Vec<(u64, Kind)> = Vec::new();
    if born {
        events.push((now, Kind::Born));
    }
    for op in ops {
        now += 1_000;
        match *op {
            Op::Send { asked, taken, prefix } => {
                let taken = asked * taken / 100;
                events.push((now, Kind::Send { begin: written, asked, taken, prefix }));
                written += u64::from(taken);
            }
            Op::Arrive { bytes, told: tell } => {
                arrived += u64::from(bytes);
                if tell {
                    events.push((now, Kind::Ready { end: arrived, copied: read, fin: false }));
                }
            }
            // However late it comes, it tells of all that is there (`rcv_nxt`).
            Op::TellAgain => events.push((now, Kind::Ready { end: arrived, copied: read, fin: false })),
            Op::Read { most } if read < arrived => {
                let begin = read;
                read = arrived.min(read + u64::from(most));
                events.push((now, Kind::Recv { begin, end: read, fin: false }));
            }
            Op::Read { .. } => {}
            Op::Wait(ms) => now += ms * 1_000_000,
        }
    }
    if fin {
        events.push((now + 1, Kind::Ready { end: arrived, copied: read, fin: true }));
        events.push((now + 2, Kind::Recv { begin: read, end: arrived, fin: true }));
        events.push((now + 3, Kind::Closed { write: written }));
    }
    events.into_iter().zip(0..).map(|((at, kind), counter)| True { counter, at, kind }).collect()
}

/// Sequence numbers of the two directions' beginnings, near the wrap.
#[derive(Clone, Copy, Debug)]
struct Isn {
    egress: u32,
    ingress: u32,
}

impl Isn {
    fn seq(self, direction: Direction, position: u64) -> SeqNo {
        let base = if direction == Direction::Egress { self.egress } else { self.ingress };
        SeqNo(base.wrapping_add(position as u32))
    }
    fn position(self, direction: Direction, seq: SeqNo) -> u64 {
        let base = if direction == Direction::Egress { self.egress } else { self.ingress };
        u64::from(seq.0.wrapping_sub(base))
    }
}

fn raw(event: &True, isn: Isn) -> RawEvent<'static> {
    let (e, i) = (|p| isn.seq(Direction::Egress, p), |p| isn.seq(Direction::Ingress, p));
    let kind = match event.kind {
        Kind::Born => RawKind::State { old: TcpState::SynRecv, new: TcpState::Established, write_seq: e(0) },
        Kind::Send { begin, asked, prefix, .. } => {
            let prefix = PREFIXES[prefix];
            RawKind::Send { seq: e(begin), len: asked, prefix: &prefix[..prefix.len().min(asked as usize)] }
        }
        Kind::Ready { end, copied, fin } => {
            RawKind::Ready { rcv_nxt: i(end + u64::from(fin)), copied_seq: i(copied), fin }
        }
        Kind::Recv { begin, end, fin } => {
            RawKind::Recv { copied_seq: i(end + u64::from(fin)), len: (end - begin) as u32, fin }
        }
        Kind::Closed { write } => RawKind::State { old: TcpState::LastAck, new: TcpState::Close, write_seq: e(write) },
    };
    RawEvent {
        socket: SocketCookie(1),
        counter: event.counter,
        at: MonotonicNs(event.at),
        tgid: Tgid(1),
        srtt: None,
        extra: Extra::default(),
        kind,
    }
}

/// Feeds what is not lost, in batches with a tick after each, some events out of order.
fn assemble(events: &[True], lost: &[u32], swaps: &[usize], isn: Isn) -> (Collected, AssemblyStats) {
    let mut delivered: Vec<&True> = events.iter().filter(|e| !lost.contains(&e.counter)).collect();
    let mut next = 0;
    for swap in swaps {
        let at = next + swap;
        if at + 2 < delivered.len() {
            // One event is overtaken by the two behind it.
            delivered[at..at + 3].rotate_left(1);
        }
        next = at + 3;
    }
    let (mut assembler, mut sink) =
        (Assembler::new(Limits { instants: 1000, ..Limits::default() }), Collected::default());
    let mut now = 0;
    for batch in delivered.chunks(5) {
        for event in batch {
            now = now.max(event.at);
            assembler.push(&raw(event, isn), &mut sink);
        }
        assembler.tick(MonotonicNs(now + 10), &mut sink);
    }
    assembler.finish(&mut sink);
    (sink, assembler.stats())
}

/// The true events, to be asked.
struct Truth<'a> {
    events: &'a [True],
    lost: &'a [u32],
    by_time: BTreeMap<u64, &'a True>,
}

impl<'a> Truth<'a> {
    fn new(events: &'a [True], lost: &'a [u32]) -> Self {
        Self { events, lost, by_time: events.iter().map(|e| (e.at, e)).collect() }
    }
    fn at(&self, instant: &SeqInstant) -> &True {
        self.by_time.get(&instant.at.0).copied().unwrap_or_else(|| panic!("nothing happened at {instant:?}"))
    }
    /// When the byte at a position was first readable, as far as anybody was told, or read.
    fn ready(&self, position: u64) -> u64 {
        let end = |e: &True| match e.kind {
            Kind::Ready { end, .. } | Kind::Recv { end, .. } => end,
            _ => 0,
        };
        self.events.iter().find(|e| end(e) > position).expect("it arrived").at
    }
    fn read(&self, position: u64) -> u64 {
        let end = |e: &True| if let Kind::Recv { end, .. } = e.kind { end } else { 0 };
        self.events.iter().find(|e| end(e) > position).expect("it was read").at
    }
    /// When the send began that took the byte at a position, counted from the first offer of that send's bytes.
    fn sent(&self, position: u64) -> Option<u64> {
        let begin_of = self.events.iter().find_map(|e| match e.kind {
            Kind::Send { begin, taken, .. } if (begin..begin + u64::from(taken)).contains(&position) => Some(begin),
            _ => None,
        })?;
        self.events.iter().find(|e| matches!(e.kind, Kind::Send { begin, .. } if begin == begin_of)).map(|e| e.at)
    }
    fn is_lost_between(&self, a: u32, b: u32) -> bool {
        self.lost.iter().any(|c| (a.min(b)..a.max(b)).contains(c))
    }
}

/// Positions worth checking of a range: its ends, and around each instant.
fn probes(m: &Message, isn: Isn) -> Vec<u64> {
    let pos = |s: SeqNo| isn.position(m.direction, s);
    let (start, end) = (pos(m.seq.start), pos(m.seq.end));
    let mut all = vec![start, end - 1];
    for i in m.sends.iter().chain(&m.readies).chain(&m.recvs) {
        let p = pos(i.seq);
        all.extend([p.saturating_sub(1), p, p + 1]);
    }
    all.retain(|p| (start..end).contains(p));
    all
}

/// No instant that a message gives is wrong. `end_may_be_asked`: nothing told how much of the last send was taken.
/// `overlaps`: the message before grew old and ended beyond this one's start.
fn check_message(m: &Message, truth: &Truth<'_>, isn: Isn, end_may_be_asked: bool, overlaps: bool) {
    let pos = |s: SeqNo| isn.position(m.direction, s);
    for i in &m.sends {
        assert!(matches!(truth.at(i).kind, Kind::Send { begin, .. } if begin == pos(i.seq)), "{i:?} of {m:?}");
    }
    for i in &m.readies {
        assert!(
            matches!(truth.at(i).kind, Kind::Ready { end, .. } | Kind::Recv { end, .. } if end == pos(i.seq)),
            "{i:?} of {m:?}"
        );
    }
    for i in &m.recvs {
        let end = if let Kind::Recv { end, .. } = truth.at(i).kind { end } else { panic!("{i:?} of {m:?}") };
        assert!(end == pos(i.seq) || (end > pos(i.seq) && i.seq == m.seq.end), "{i:?} of {m:?}");
    }
    for p in probes(m, isn) {
        for (list, is_ready) in [(&m.readies, true), (&m.recvs, false)] {
            let Some(i) = list.iter().position(|i| pos(i.seq) > p) else { continue };
            let (claimed, is_bound) = (list[i].at.0, m.gap_before && i == 0);
            let known = if is_ready { truth.ready(p) } else { truth.read(p) };
            assert!(claimed == known || (is_bound && claimed > known), "byte {p}: {claimed} for {known} in {m:?}");
        }
        if let Some(i) = m.sends.iter().rposition(|i| pos(i.seq) <= p) {
            let known = truth.sent(p);
            let (claimed, is_last, is_first) = (m.sends[i].at.0, i + 1 == m.sends.len(), i == 0);
            let taken = truth.at(&m.sends[i]);
            let offered_before = is_first && (m.gap_before || overlaps) && known.is_some_and(|k| k < claimed);
            let beyond = matches!(taken.kind, Kind::Send { begin, taken, .. } if p >= begin + u64::from(taken));
            assert!(
                known == Some(claimed) || offered_before || (is_last && beyond && end_may_be_asked),
                "byte {p}: {claimed} for {known:?} in {m:?}"
            );
        }
    }
}

fn check(events: &[True], lost: &[u32], swaps: &[usize], isn: Isn, born: bool) {
    let truth = Truth::new(events, lost);
    let (all, stats) = assemble(events, lost, swaps, isn);

    let last_delivered = events.iter().rev().find(|e| !lost.contains(&e.counter)).map(|e| e.counter);
    let known_lost = lost.iter().filter(|c| last_delivered.is_some_and(|last| **c < last)).count();
    assert_eq!((stats.lost_events, stats.late_events), (known_lost as u64, 0));

    for direction in [Direction::Egress, Direction::Ingress] {
        let messages: Vec<&Message> = all.messages.iter().filter(|m| m.direction == direction).collect();
        let span = |m: &Message| {
            let counters = || m.sends.iter().chain(&m.readies).chain(&m.recvs).map(|i| truth.at(i).counter);
            (counters().min().expect("has instants"), counters().max().expect("has instants"))
        };
        let (mut before, mut covered) = (None, 0);
        for (i, m) in messages.iter().enumerate() {
            let (first, last) = span(m);
            let start = isn.position(direction, m.seq.start);
            assert!(!truth.is_lost_between(first, last), "spans a loss: {m:?}");
            let gap = match before {
                Some(before) => truth.is_lost_between(before, first),
                None => !born || truth.is_lost_between(0, first),
            };
            assert!(m.gap_before || !gap, "a gap is not said: {m:?}");
            assert!(m.gap_before || i == 0 || start <= covered, "a hole before {m:?}");
            let overlaps = start < covered;
            covered = covered.max(isn.position(direction, m.seq.end));
            if lost.is_empty() {
                // Only what was open when the probes came, and then from the first message on.
                assert!(
                    !m.gap_before || (!born && messages[..i].iter().all(|m| m.gap_before || m.recvs.is_empty())),
                    "no gap before {m:?}"
                );
            }
            before = Some(last);
            // Its end is what was asked for where no later send could tell better.
            let next = messages.get(i + 1);
            let asked = next.is_none_or(|n| n.gap_before || n.seq.start.before(m.seq.end));
            check_message(m, &truth, isn, asked, overlaps);
        }
    }
    if lost.is_empty() {
        check_complete(&all, events, isn, born);
    }
}

/// Without losses every byte is in a message, and every byte that was read has its instant.
fn check_complete(all: &Collected, events: &[True], isn: Isn, born: bool) {
    let holds = |direction, p: u64| {
        let seq = isn.seq(direction, p);
        all.messages.iter().any(|m| m.direction == direction && m.seq.contains(seq))
    };
    let mut seen_from = if born { Some(0) } else { None };
    for event in events {
        match event.kind {
            Kind::Send { begin, taken, .. } if taken > 0 => {
                assert!(holds(Direction::Egress, begin) && holds(Direction::Egress, begin + u64::from(taken) - 1));
            }
            Kind::Ready { end, copied, .. } if end > copied => {
                seen_from.get_or_insert(copied);
                assert!(holds(Direction::Ingress, end - 1), "byte {} is in no message", end - 1);
            }
            Kind::Recv { begin, end, .. } if end > begin => {
                seen_from.get_or_insert(begin);
                assert!(holds(Direction::Ingress, end - 1));
                let told = all.messages.iter().any(|m| m.recvs.iter().any(|i| i.at.0 == event.at));
                assert!(told, "the read at {} is in no message", event.at);
            }
            _ => {}
        }
    }
}

fn isn() -> impl Strategy<Value = Isn> {
    let near_wrap = || prop_oneof![any::<u32>(), (0u32..20_000).prop_map(|n| u32::MAX - n)];
    (near_wrap(), near_wrap()).prop_map(|(egress, ingress)| Isn { egress, ingress })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_wrong_or_missing_without_losses(
        ops in proptest::collection::vec(op(), 1..60), born: bool, fin: bool, isn in isn(),
    ) {
        check(&simulate(&ops, born, fin), &[], &[], isn, born);
    }

    #[test]
    fn events_out_of_order_change_nothing(
        ops in proptest::collection::vec(op(), 1..60),
        born: bool, isn in isn(), swaps in proptest::collection::vec(0usize..6, 0..12),
    ) {
        check(&simulate(&ops, born, true), &[], &swaps, isn, born);
    }

    #[test]
    fn losses_are_said_and_never_guessed(
        ops in proptest::collection::vec(op(), 1..60), born: bool, fin: bool, isn in isn(),
        lost in proptest::collection::btree_set(0u32..60, 1..8), swaps in proptest::collection::vec(0usize..6, 0..6),
    ) {
        let events = simulate(&ops, born, fin);
        let lost: Vec<u32> = lost.into_iter().filter(|c| (*c as usize) < events.len()).collect();
        // A socket whose beginning is lost was not seen to be born.
        let born = born && !lost.contains(&0);
        check(&events, &lost, &swaps, isn, born);
    }

    #[test]
    fn one_lost_event_of_each_kind_is_said(ops in proptest::collection::vec(op(), 8..30), which in any::<proptest::sample::Index>()) {
        let isn = Isn { egress: 7, ingress: u32::MAX - 100 };
        let events = simulate(&ops, true, true);
        let lost = [1 + which.index(events.len() - 1) as u32];
        check(&events, &lost, &[], isn, true);
    }
}

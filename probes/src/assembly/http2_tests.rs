//! Streams of HTTP/2 against a connection whose truth is known: however frames are interleaved, cut into sends, taken in part by
//! TCP, lost, or joined in the middle, what is told of a stream is true, and without trouble all of it is told.

use super::*;
use crate::event::{Chunk, Frames, RawKind};
use meshdiff_model::{Http2Data, Http2Gap, SeqNo, SocketCookie, TcpState, Tgid};
use proptest::prelude::*;
use std::collections::BTreeMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a stream is to be.
#[derive(Clone, Debug)]
struct Plan {
    /// Interim blocks before the head (responses only).
    interim: usize,
    /// The header block is so long, and cut into so many frames.
    padding: usize,
    fragments: usize,
    data: Vec<u16>,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    WithHead,
    WithData,
    Trailers,
    Reset(u32),
    Never,
}

fn plan() -> impl Strategy<Value = Plan> {
    let end = prop_oneof![
        3 => Just(End::WithHead),
        4 => Just(End::WithData),
        2 => Just(End::Trailers),
        1 => (0u32..14).prop_map(End::Reset),
        1 => Just(End::Never),
    ];
    let padding = prop_oneof![4 => 0usize..60, 1 => 0usize..700];
    (0usize..3, padding, 1usize..4, proptest::collection::vec(0u16..9_000, 0..4), end)
        .prop_map(|(interim, padding, fragments, data, end)| Plan { interim, padding, fragments, data, end })
}

/// What is true of a stream; positions count from the connection's first byte.
#[derive(Clone, Debug, Default)]
struct True {
    first: u64,
    head: (u64, u64),
    end: Option<u64>,
    last: u64,
    data: u64,
    reset: Option<u32>,
    interim: u32,
    path: String,
}

fn frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    to.extend(&u32::try_from(payload.len()).expect("short").to_be_bytes()[1..]);
    to.extend([kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
}

/// A literal field that is added to the table, by name.
fn literal(to: &mut Vec<u8>, name: &str, value: &str) {
    to.push(0x40);
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(len @ ..127) => to.push(len),
            _ => {
                to.push(0x7f);
                let mut left = text.len() - 127;
                while left >= 0x80 {
                    to.push((left & 0x7f) as u8 | 0x80);
                    left >>= 7;
                }
                to.push(left as u8);
            }
        }
        to.extend(text.bytes());
    }
}

/// The frames of a stream, the ones that must follow one another at once together, and which of the truth they make.
enum Step {
    Interim,
    Head { end: bool },
    Data { len: u16, end: bool },
    Trailers,
    Reset(u32),
}

fn steps(plan: &Plan, response: bool) -> Vec<Step> {
    let mut list: Vec<Step> = Vec::new();
    if response {
        list.extend((0..plan.interim).map(|_| Step::Interim));
    }
    let with_head = plan.end == End::WithHead || (plan.end == End::WithData && plan.data.is_empty());
    list.push(Step::Head { end: with_head });
    if !with_head {
        let last = plan.data.len().wrapping_sub(1);
        let data = plan.data.iter().enumerate();
        list.extend(data.map(|(i, &len)| Step::Data { len, end: i == last && plan.end == End::WithData }));
    }
    match plan.end {
        End::Trailers => list.push(Step::Trailers),
        End::Reset(code) => list.push(Step::Reset(code)),
        _ => {}
    }
    list
}

/// All that one end sends, and the positions at which frames begin.
fn connection(plans: &[Plan], picks: &[u8], response: bool) -> (Vec<u8>, Vec<u64>, BTreeMap<u32, True>) {
    let mut bytes = if response { Vec::new() } else { PREFACE.to_vec() };
    frame(&mut bytes, 4, 0, 0, &[0, 4, 0, 0, 255, 255]);
    let mut bounds = vec![0, bytes.len() as u64];
    let mut truth: BTreeMap<u32, True> = BTreeMap::new();
    let mut waiting: Vec<(u32, std::vec::IntoIter<Step>)> = Vec::new();
    let mut next = plans.iter().enumerate();
    let mut picks = picks.iter().map(|&p| usize::from(p)).chain(1..);
    loop {
        let pick = picks.next().expect("no end");
        // Requests begin in the order of their numbers.
        if pick.is_multiple_of(3) || waiting.is_empty() {
            if let Some((i, plan)) = next.next() {
                waiting.push((i as u32 * 2 + 1, steps(plan, response).into_iter()));
                truth.insert(i as u32 * 2 + 1, True::default());
                let (stream, steps) = waiting.last_mut().expect("just added");
                step(&mut bytes, &mut truth, *stream, steps.next(), &plans[i], response);
                bounds.push(bytes.len() as u64);
                continue;
            }
            if waiting.is_empty() {
                break;
            }
        }
        if pick.is_multiple_of(7) {
            frame(&mut bytes, 8, 0, 0, &[0, 1, 0, 0]);
        } else if pick.is_multiple_of(11) {
            frame(&mut bytes, 6, 0, 0, &[7; 8]);
        } else {
            let at = pick % waiting.len();
            let (stream, steps) = &mut waiting[at];
            let plan = &plans[*stream as usize / 2];
            if !step(&mut bytes, &mut truth, *stream, steps.next(), plan, response) {
                waiting.remove(at);
            }
        }
        bounds.push(bytes.len() as u64);
    }
    (bytes, bounds, truth)
}

fn step(
    bytes: &mut Vec<u8>,
    truth: &mut BTreeMap<u32, True>,
    stream: u32,
    step: Option<Step>,
    plan: &Plan,
    response: bool,
) -> bool {
    let start = bytes.len() as u64;
    let of = truth.get_mut(&stream).expect("known");
    if of.last == 0 {
        of.first = start;
    }
    match step {
        None => return false,
        Some(Step::Interim) => {
            frame(bytes, 1, 4, stream, b"\x08\x03103");
            of.interim += 1;
        }
        Some(Step::Head { end }) => {
            let mut block = Vec::new();
            if response {
                block.push(0x88);
                literal(&mut block, "content-type", "application/grpc+proto");
            } else {
                block.push(0x83);
                of.path = format!("/call/{stream}");
                literal(&mut block, ":path", &format!("{}?secret", of.path));
            }
            literal(&mut block, "x-padding", &"p".repeat(plan.padding));
            let flags = u8::from(end);
            let size = block.len().div_ceil(plan.fragments);
            let parts: Vec<&[u8]> = block.chunks(size).collect();
            for (i, part) in parts.iter().enumerate() {
                let last = if i + 1 == parts.len() { 4 } else { 0 };
                let (kind, flags) = if i == 0 { (1, flags | last) } else { (9, last) };
                frame(bytes, kind, flags, stream, part);
            }
            of.head = (start, bytes.len() as u64);
            of.end = end.then_some(bytes.len() as u64);
        }
        Some(Step::Data { len, end }) => {
            // What looks like a frame, a frame's beginning, and nothing.
            let mut payload = Vec::new();
            while payload.len() < usize::from(len) {
                frame(&mut payload, 0, 0, stream, b"not a frame");
            }
            payload.truncate(usize::from(len));
            frame(bytes, 0, u8::from(end), stream, &payload);
            of.data += u64::from(len);
            of.end = end.then_some(bytes.len() as u64);
        }
        Some(Step::Trailers) => {
            let mut block = Vec::new();
            literal(&mut block, "grpc-status", "13");
            frame(bytes, 1, 5, stream, &block);
            of.end = Some(bytes.len() as u64);
        }
        Some(Step::Reset(code)) => {
            frame(bytes, 3, 0, stream, &code.to_be_bytes());
            of.reset = Some(code);
        }
    }
    of.last = bytes.len() as u64;
    true
}

/// Does what the probe does (bpf/frames.h).
#[derive(Default)]
struct Probe {
    follows: bool,
    at: u64,
    skip: u64,
    rest: u64,
    part: Vec<u8>,
}

fn is_frame(h: &[u8]) -> bool {
    let len = u32::from_be_bytes([0, h[0], h[1], h[2]]);
    let stream = u32::from_be_bytes([h[5], h[6], h[7], h[8]]);
    len <= 1 << 20
        && stream < 1 << 31
        && match h[3] {
            0 | 1 | 5 | 9 => stream != 0,
            2 => stream != 0 && len == 5,
            3 => stream != 0 && len == 4,
            4 => stream == 0 && len.is_multiple_of(6) && len < 600,
            6 => stream == 0 && len == 8,
            7 => stream == 0 && len >= 8,
            8 => len == 4,
            kind => (0x0a..=0x10).contains(&kind) || kind == 0x4d,
        }
}

impl Probe {
    /// What it keeps of a send of `bytes`, of which the first is at `begin`; `None` if it does not follow frames.
    fn send(&mut self, begin: u64, bytes: &[u8]) -> Option<(bool, bool, bool, Vec<u8>)> {
        let (mut start, mut preface) = (false, false);
        let mut at = 0;
        if !self.follows {
            preface = bytes.starts_with(PREFACE);
            start = preface || (bytes.len() >= 9 && bytes[0] == 0 && is_frame(bytes));
            if !start {
                return None;
            }
            *self = Self { follows: true, at: begin, skip: if preface { 24 } else { 0 }, ..Self::default() };
        }
        let mut chunks = Vec::new();
        let end = begin + bytes.len() as u64;
        if self.at >= end {
            return Some((start, preface, false, chunks));
        }
        at += (self.at - begin) as usize;
        let mut open: Option<(i32, bool, Vec<u8>)> = None;
        if !self.part.is_empty() {
            let part = std::mem::take(&mut self.part);
            open = Some((at as i32 - part.len() as i32, false, part));
        } else if self.rest > 0 {
            open = Some((at as i32, true, Vec::new()));
        }
        let mut cut = false;
        while at < bytes.len() {
            if self.rest > 0 {
                let n = (self.rest as usize).min(bytes.len() - at);
                open.as_mut().expect("a chunk").2.extend(&bytes[at..at + n]);
                self.rest -= n as u64;
                at += n;
            } else if self.skip > 0 {
                let n = (self.skip as usize).min(bytes.len() - at);
                self.skip -= n as u64;
                at += n;
            } else {
                let header = match &mut open {
                    Some((_, false, part)) if part.len() < 9 => part,
                    _ => {
                        if let Some((offset, is_rest, bytes)) = open.take() {
                            Frames::write_chunk(&mut chunks, &Chunk { offset, is_rest, bytes: &bytes });
                        }
                        &mut open.insert((at as i32, false, Vec::new())).2
                    }
                };
                let n = (9 - header.len()).min(bytes.len() - at);
                header.extend(&bytes[at..at + n]);
                at += n;
                if header.len() == 9 {
                    if !is_frame(header) {
                        cut = true;
                        break;
                    }
                    let len = u64::from(u32::from_be_bytes([0, header[0], header[1], header[2]]));
                    self.rest = match header[3] {
                        1 | 5 | 9 => len.min(16_384),
                        3 | 4 | 7 | 8 => len.min(64),
                        _ => 0,
                    };
                    self.skip = len - self.rest;
                }
            }
        }
        if let Some((offset, is_rest, bytes)) = open {
            if !is_rest && bytes.len() < 9 {
                self.part.clone_from(&bytes);
            }
            Frames::write_chunk(&mut chunks, &Chunk { offset, is_rest, bytes: &bytes });
        }
        self.at = end;
        self.follows = !cut;
        Some((start, preface, cut, chunks))
    }
}

struct Trouble {
    isn: u32,
    /// Sends before this one were not seen, nor was the connection's beginning.
    from: usize,
    /// Counters of events that are lost.
    lost: Vec<u32>,
    /// From this byte on there is no HTTP/2.
    garbage: Option<(u64, u8)>,
}

/// Sends the bytes in pieces that end at `cuts`; every third or so is offered with bytes that TCP takes later.
fn record(bytes: &[u8], cuts: &[u64], greedy: &[bool], trouble: &Trouble) -> (Vec<Http2Stream>, BTreeMap<u64, u64>) {
    let mut probe = Probe::default();
    let mut assembler = Assembler::new(Limits::default());
    let mut sink = Collected::default();
    let mut sent_at = BTreeMap::new();
    let mut counter = 0;
    let mut now = 1_000;
    let mut begin = 0;
    let push = |assembler: &mut Assembler, sink: &mut Collected, now: u64, counter: u32, kind: RawKind<'_>| {
        if !trouble.lost.contains(&counter) {
            let at = MonotonicNs(now);
            let extra = crate::event::Extra::default();
            assembler
                .push(&RawEvent { socket: SocketCookie(1), counter, at, tgid: Tgid(1), srtt: None, extra, kind }, sink);
        }
    };
    let seq = |at: u64| SeqNo(trouble.isn.wrapping_add(at as u32));
    if trouble.from == 0 {
        let kind = RawKind::State { old: TcpState::SynSent, new: TcpState::Established, write_seq: seq(0) };
        push(&mut assembler, &mut sink, now, counter, kind);
        counter += 1;
    }
    for (i, &end) in cuts.iter().enumerate() {
        now += 1_000;
        sent_at.insert(begin, now);
        if i >= trouble.from {
            // What is offered beyond `end` is not taken, and offered again.
            let asked = if greedy[i % greedy.len()] { cuts.get(i + 1).copied().unwrap_or(end) } else { end };
            let offered = &bytes[begin as usize..asked as usize];
            let (start, len) = (seq(begin), offered.len() as u32);
            let kept = probe.send(begin, offered);
            let kind = match &kept {
                Some((begun, preface, cut, chunks)) => {
                    let frames = Frames { start: *begun, preface: *preface, cut: *cut, bytes: chunks };
                    RawKind::SendFrames { seq: start, len, frames }
                }
                None => RawKind::Send { seq: start, len, prefix: &offered[..offered.len().min(32)] },
            };
            push(&mut assembler, &mut sink, now, counter, kind);
            counter += 1;
            assembler.tick(MonotonicNs(now), &mut sink);
        }
        begin = end;
    }
    for _ in 0..4 {
        assembler.tick(MonotonicNs(now), &mut sink);
    }
    assembler.finish(&mut sink);
    (sink.streams, sent_at)
}

/// Nothing that is told is wrong.
fn check(rows: &[Http2Stream], truth: &BTreeMap<u32, True>, trouble: &Trouble, response: bool) {
    let position = |s: SeqNo| u64::from(s.0.wrapping_sub(trouble.isn));
    let clean = trouble.garbage.map_or(u64::MAX, |g| g.0);
    for row in rows.iter().filter(|r| r.stream != 0) {
        if position(row.last.seq) > clean {
            // It ends in what is no HTTP/2, and says so or is not to be told from a frame.
            continue;
        }
        let of = truth.get(&row.stream).unwrap_or_else(|| panic!("there is no stream {}: {row:?}", row.stream));
        if let Some(head) = row.head {
            assert_eq!((position(head.start), position(head.end)), of.head, "{row:?} {of:?}");
            assert!(position(row.first.seq) >= of.first);
        }
        if let Some(end) = row.end {
            assert_eq!(Some(position(end)), of.end, "{row:?}");
            assert!(row.head.is_none() || row.data_bytes == of.data, "{row:?}");
            let in_frames: u64 = row.data.iter().map(|d| u64::from(d.first.seq.distance(d.end).cast_unsigned())).sum();
            assert_eq!(row.data.last().map_or(0, |d| d.bytes), row.data_bytes, "{row:?}");
            assert!(row.data.windows(2).all(|d| d[0].end.distance(d[1].first.seq) >= 0), "{row:?}");
            assert!(
                row.data.len() > Http2Data::NEVER_MERGED || in_frames == row.data_bytes + 9 * row.data.len() as u64,
                "{row:?}"
            );
        }
        assert!(row.data_bytes <= of.data && position(row.last.seq) <= of.last.max(clean), "{row:?}");
        assert!(row.reset.is_none() || row.reset == of.reset, "{row:?}");
        assert!(row.fields.path.as_deref().is_none_or(|p| p == of.path), "{row:?}");
        assert!(row.fields.status.is_none_or(|s| response && s == 200), "{row:?}");
        assert!(row.fields.grpc_status.is_none_or(|s| s == 13), "{row:?}");
    }
}

/// Where sends end: mostly with frames, now and then anywhere.
fn cuts(bounds: &[u64], noise: &[u16], all: u64) -> Vec<u64> {
    let mut list: Vec<u64> =
        bounds.iter().zip(noise.iter().cycle()).filter(|(_, n)| *n % 3 != 0).map(|(b, _)| *b).collect();
    list.extend(noise.iter().filter(|n| *n % 4 == 0).map(|&n| u64::from(n) * all / 65_536));
    list.push(all);
    list.retain(|&c| c > 0);
    list.sort_unstable();
    list.dedup();
    list
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_trouble_every_stream_is_told(
        plans in proptest::collection::vec(plan(), 1..12), picks in proptest::collection::vec(any::<u8>(), 8..64),
        noise in proptest::collection::vec(any::<u16>(), 4..40), greedy in proptest::collection::vec(any::<bool>(), 1..9),
        isn: u32, response: bool,
    ) {
        let (bytes, bounds, truth) = connection(&plans, &picks, response);
        let mut cuts = cuts(&bounds, &noise, bytes.len() as u64);
        // The preface and SETTINGS leave whole.
        let first = bounds[1];
        cuts.retain(|&c| c >= first);
        if cuts.first() != Some(&first) {
            cuts.insert(0, first);
        }
        let trouble = Trouble { isn, from: 0, lost: vec![], garbage: None };
        let (rows, sent_at) = record(&bytes, &cuts, &greedy, &trouble);
        check(&rows, &truth, &trouble, response);
        for (stream, of) in &truth {
            let row = rows.iter().find(|r| r.stream == *stream).expect("a row");
            prop_assert_eq!(row.end.map(|e| u64::from(e.0.wrapping_sub(isn))), of.end);
            prop_assert_eq!(row.data_bytes, of.data);
            prop_assert_eq!((row.interim, row.reset), (of.interim, of.reset));
            prop_assert!(row.head.is_some());
            prop_assert_eq!(row.gap.is_none(), of.end.is_some() || of.reset.is_some());
            prop_assert!(response || row.fields.path.as_deref() == Some(&of.path));
            prop_assert!(!response || row.fields.grpc == Some(true));
            let offered = sent_at.range(..=of.first).next_back().map(|(_, at)| *at);
            prop_assert!(Some(row.first.at.0) <= offered, "offered later than it was sent");
        }
        let whole = rows.iter().find(|r| r.stream == 0).expect("the connection's row");
        prop_assert!(whole.from_the_beginning && whole.gap == Some(Http2Gap::StillOpen));
    }

    #[test]
    fn with_trouble_nothing_that_is_told_is_wrong(
        plans in proptest::collection::vec(plan(), 1..16), picks in proptest::collection::vec(any::<u8>(), 8..64),
        noise in proptest::collection::vec(any::<u16>(), 4..60), greedy in proptest::collection::vec(any::<bool>(), 1..9),
        isn: u32, response: bool, from in 0usize..12, lost in proptest::collection::vec(0u32..60, 0..5),
        garbage in proptest::option::of((any::<u16>(), any::<u8>())),
    ) {
        let (mut bytes, bounds, truth) = connection(&plans, &picks, response);
        let garbage = garbage.map(|(at, fill)| (u64::from(at) * bytes.len() as u64 / 65_536, fill));
        if let Some((at, fill)) = garbage {
            let mut value = fill;
            bytes[at as usize..].iter_mut().for_each(|b| {
                value = value.wrapping_mul(181).wrapping_add(97);
                *b = value;
            });
        }
        let cuts = cuts(&bounds, &noise, bytes.len() as u64);
        let trouble = Trouble { isn, from: from.min(cuts.len() - 1), lost, garbage };
        let (rows, _) = record(&bytes, &cuts, &greedy, &trouble);
        check(&rows, &truth, &trouble, response);
    }

    #[test]
    fn arbitrary_chunks_never_panic(
        sends in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200), any::<[bool; 3]>(), any::<u16>()), 1..40),
    ) {
        let mut assembler = Assembler::new(Limits::default());
        let mut sink = Collected::default();
        let mut seq = SeqNo(0);
        for (counter, (bytes, [start, preface, cut], len)) in (0..).zip(&sends) {
            let frames = Frames { start: *start, preface: *preface, cut: *cut, bytes };
            let kind = RawKind::SendFrames { seq, len: u32::from(*len), frames };
            let extra = crate::event::Extra::default();
            let at = MonotonicNs(u64::from(counter) + 1);
            assembler.push(&RawEvent { socket: SocketCookie(1), counter, at, tgid: Tgid(1), srtt: None, extra, kind }, &mut sink);
            seq = seq.advance(u32::from(*len));
        }
        assembler.finish(&mut sink);
    }
}

#[test]
fn more_streams_than_are_remembered_do_not_grow_without_bound() {
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, 4, 0, 0, &[]);
    let begin = bytes.len() as u64;
    let mut ends = vec![begin];
    for i in 0..3_000u32 {
        frame(&mut bytes, 1, 4, i * 2 + 1, &[0x83, 0x84]);
        ends.push(bytes.len() as u64);
    }
    let trouble = Trouble { isn: 9, from: 0, lost: vec![], garbage: None };
    let (rows, _) = record(&bytes, &ends, &[false], &trouble);
    let given_up = rows.iter().filter(|r| r.gap == Some(Http2Gap::TooMany)).count();
    assert!((1_900..3_000).contains(&given_up), "{given_up}");
    assert_eq!(rows.iter().filter(|r| r.stream != 0).count(), 3_000, "each is told once all the same");
}

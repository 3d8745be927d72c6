//! A connection whose client sends some bytes as HTTP/2 frames, as the probe would tell of them, through the whole assembly.

use meshdiff_model::{Direction, LocalAddr, MonotonicNs, NetnsId, PeerAddr, SeqNo, SocketCookie, TcpState, Tgid};
use meshdiff_probes::{Assembler, Chunk, Collected, Extra, Frames, Identity, Limits, RawEvent, RawKind, monotonic_now};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const HEADER: usize = 9;

/// Cuts bytes into sends at random, and the sends into the chunks that a probe keeps: headers, and the beginnings of payloads. The
/// numbers begin shortly before they wrap.
pub(crate) fn follow(bytes: &[u8], noise: u64) {
    let mut random = StdRng::seed_from_u64(noise);
    let mut feed = Feed::new();
    let begin = SeqNo(u32::MAX - random.random_range(0..200));
    let (mut at, mut rest, mut preface) = (0, 0, true);
    while at < bytes.len() {
        let to = random.random_range(at + 1..=bytes.len());
        let mut kept = Vec::new();
        rest = chunks(bytes, at, to, rest, &mut random, &mut kept);
        let start = at == 0 || random.random_range(0..40) == 0;
        let cut = random.random_range(0..60) == 0;
        let frames = Frames { start, preface: std::mem::take(&mut preface), cut, bytes: &kept };
        let seq = begin.advance(at as u32);
        feed.event(RawKind::SendFrames { seq, len: (to - at) as u32, frames });
        match random.random_range(0..12) {
            0 => feed.counter += random.random_range(1..3),
            1 => feed.event(RawKind::Ready { rcv_nxt: SeqNo(9), copied_seq: SeqNo(1), fin: false }),
            2 => {
                feed.event(RawKind::Send { seq: begin.advance(to as u32), len: 0, prefix: &bytes[at..to.min(at + 32)] })
            }
            3 => feed.assembler.tick(monotonic_now(), &mut feed.sink),
            _ => {}
        }
        at = to;
    }
    feed.event(RawKind::State {
        old: TcpState::Established,
        new: TcpState::Close,
        write_seq: begin.advance(at as u32),
    });
    feed.finish();
}

/// The chunks of one send; how much of the last frame's payload is still to come.
fn chunks(bytes: &[u8], from: usize, to: usize, rest: usize, random: &mut StdRng, kept: &mut Vec<u8>) -> usize {
    let mut at = from;
    if rest > 0 {
        let end = (from + rest).min(to);
        if random.random_range(0..4) > 0 {
            Frames::write_chunk(kept, &Chunk { offset: 0, is_rest: true, bytes: &bytes[from..end] });
        }
        if end == to {
            return rest - (end - from);
        }
        at = end;
    }
    while at < to {
        let Some(header) = bytes.get(at..at + HEADER).filter(|_| at + HEADER <= to) else {
            // The probe keeps a header that is cut off, and tells it whole with the next send.
            Frames::write_chunk(kept, &Chunk { offset: (at - from) as i32, is_rest: false, bytes: &bytes[at..to] });
            return 0;
        };
        let payload = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let end = at + HEADER + payload;
        let most = if matches!(header[3], 1 | 5 | 9) { end } else { at + HEADER + random.random_range(0..16) };
        let kept_to = most.min(end).min(to);
        Frames::write_chunk(kept, &Chunk { offset: (at - from) as i32, is_rest: false, bytes: &bytes[at..kept_to] });
        if end > to {
            return end - to;
        }
        at = end;
    }
    0
}

struct Feed {
    assembler: Assembler,
    sink: Collected,
    counter: u32,
    clock: u64,
}

impl Feed {
    fn new() -> Self {
        let (assembler, sink) = (Assembler::new(Limits::default()), Collected::default());
        let mut feed = Self { assembler, sink, counter: 0, clock: monotonic_now().0 };
        let address = |text: &str| text.parse().expect("an address");
        let (local, remote) = (LocalAddr(address("10.0.0.1:5000")), PeerAddr(address("10.0.0.2:80")));
        feed.push(0, RawKind::Announce(Identity { netns: NetnsId(5), local, remote }));
        feed.event(RawKind::State { old: TcpState::SynSent, new: TcpState::Established, write_seq: SeqNo(0) });
        feed
    }

    fn push(&mut self, counter: u32, kind: RawKind<'_>) {
        self.clock += 1;
        let (socket, at) = (SocketCookie(7), MonotonicNs(self.clock));
        let event = RawEvent { socket, counter, at, tgid: Tgid(9), srtt: None, extra: Extra::default(), kind };
        self.assembler.push(&event, &mut self.sink);
    }

    fn event(&mut self, kind: RawKind<'_>) {
        self.push(self.counter, kind);
        self.counter += 1;
    }

    fn finish(mut self) {
        self.assembler.finish(&mut self.sink);
        assert_eq!(self.assembler.open_sockets(), 0);
        let text = |t: &str| !t.chars().any(char::is_control) && t.chars().count() <= 256;
        for stream in &self.sink.streams {
            let fields = &stream.fields;
            let texts = [fields.method.as_deref(), fields.path.as_deref()];
            assert!(texts.into_iter().flatten().all(text), "{stream:?}");
            assert!(fields.path.as_deref().is_none_or(|p| !p.contains('?')), "{stream:?}");
            assert!(stream.first.at <= stream.last.at && !stream.last.seq.before(stream.first.seq), "{stream:?}");
            if let Some(head) = stream.head {
                assert!(!head.start.before(stream.first.seq) && !head.is_empty(), "{stream:?}");
            }
        }
        let sent = self.sink.messages.iter().filter(|m| m.direction == Direction::Egress);
        for message in sent {
            assert!(!message.seq.is_empty() && !message.sends.is_empty(), "{message:?}");
            assert!(message.sends.iter().is_sorted_by_key(|s| s.at), "{message:?}");
        }
    }
}

//! One direction of one socket as functions from a byte's position to instants.

use meshdiff_model::{Content, Direction, Mark, Message, MonotonicNs, Progress, SeqInstant, SeqNo, SeqRange};

/// A position in a direction's byte stream: bytes since the stream's first byte that was seen. Unlike a sequence number
/// it does not wrap.
pub(crate) type Offset = i64;

/// By when all bytes before `end` were ready (or read).
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Only bytes after this position: what the message, or the step before, does not cover.
    from: Offset,
    end: Offset,
    at: MonotonicNs,
    /// False for the first step after lost events: the bytes may have been ready earlier.
    known: bool,
    /// True if steps before this one may have been left out of the message's list: only `end` itself is told by it.
    only_its_end: bool,
}

/// A message's place in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) content: Content,
    pub(crate) head_end: Option<Offset>,
    pub(crate) first: MonotonicNs,
    pub(crate) last: MonotonicNs,
    pub(crate) gap_before: bool,
}

/// All that was seen of one direction of one socket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    base: SeqNo,
    last: Option<(SeqNo, Offset)>,
    pub(crate) pieces: Vec<Piece>,
    sends: Vec<(Offset, MonotonicNs)>,
    /// Indices of sends before which others may have been left out.
    thinned_sends: Vec<usize>,
    held: Vec<(Offset, MonotonicNs)>,
    retransmits: Vec<(Offset, MonotonicNs)>,
    readies: Vec<Step>,
    recvs: Vec<Step>,
    /// True if events of the socket were lost: not even its first message is then known to be free of a gap.
    lossy: bool,
    extent: Option<(Offset, Offset)>,
    pub(crate) bytes: u64,
    pub(crate) calls: u64,
    pub(crate) spoken: Spoken,
    /// How many messages were added, and how many there are, where that is known before.
    added: u64,
    expected: u64,
}

/// What a direction's messages were seen to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spoken {
    /// Heads of HTTP/1 requests.
    pub(crate) requests: bool,
    /// Heads of HTTP/1 responses.
    pub(crate) responses: bool,
    /// The preface of HTTP/2.
    pub(crate) preface: bool,
    /// TLS records.
    pub(crate) tls: bool,
}

impl Spoken {
    const fn add(&mut self, content: &Content) {
        match content {
            Content::Http1Request { .. } => self.requests = true,
            Content::Http1Response { .. } => self.responses = true,
            Content::Http2Preface => self.preface = true,
            Content::TlsHandshake | Content::TlsApplicationData => self.tls = true,
            Content::Unknown => {}
        }
    }
}

/// What is known of one direction of one socket before its messages are looked at: where it begins and ends, and what it is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outline {
    base: SeqNo,
    last: (SeqNo, Offset),
    extent: (Offset, Offset),
    spoken: Spoken,
    messages: u64,
}

impl Outline {
    /// Of its first message.
    pub(crate) fn of(seq: SeqRange, content: &Content) -> Self {
        let start = (seq.start, 0);
        let spoken = Spoken::default();
        let mut outline = Self { base: seq.start, last: start, extent: (0, 0), spoken, messages: 0 };
        outline.add(seq, content);
        outline
    }

    /// Adds the next message, in the order of assembly.
    pub(crate) fn add(&mut self, seq: SeqRange, content: &Content) {
        let start = self.last.1 + distance(self.last.0, seq.start);
        let end = start + i64::from(seq.len());
        self.extent = (self.extent.0.min(start), self.extent.1.max(end));
        self.last = (seq.end, end);
        self.spoken.add(content);
        self.messages += 1;
    }
}

impl Stream {
    /// The stream of a socket of which events were lost, or were not.
    pub(crate) fn new(lossy: bool) -> Self {
        Self { lossy, ..Self::default() }
    }

    /// The same, of which messages are still to come.
    pub(crate) fn expecting(lossy: bool, outline: Option<&Outline>) -> Self {
        let Some(outline) = outline else { return Self::new(lossy) };
        Self {
            base: outline.base,
            extent: Some(outline.extent),
            spoken: outline.spoken,
            expected: outline.messages,
            ..Self::new(lossy)
        }
    }

    /// True if no message is still to come.
    pub(crate) const fn is_complete(&self) -> bool {
        self.added >= self.expected
    }

    /// Drops what lies before a position, as far as messages lie wholly before it. Positions stay what they are.
    pub(crate) fn forget(&mut self, before: Offset) {
        let dropped = self.pieces.partition_point(|p| p.end <= before);
        if dropped == 0 {
            return;
        }
        self.pieces.drain(..dropped);
        let floor = self.pieces.first().map_or(before, |p| p.start);
        let sends = self.sends.partition_point(|&(at, _)| at < floor);
        self.sends.drain(..sends);
        self.thinned_sends.retain(|&i| i >= sends);
        self.thinned_sends.iter_mut().for_each(|i| *i -= sends);
        self.held.retain(|&(at, _)| at >= floor);
        self.retransmits.retain(|&(at, _)| at >= floor);
        for steps in [&mut self.readies, &mut self.recvs] {
            let before = steps.partition_point(|s| s.end <= floor);
            steps.drain(..before);
        }
    }

    /// Drops everything but what is known of the whole.
    pub(crate) fn forget_all(&mut self) {
        (self.pieces, self.sends, self.thinned_sends) = (Vec::new(), Vec::new(), Vec::new());
        (self.held, self.retransmits) = (Vec::new(), Vec::new());
        (self.readies, self.recvs) = (Vec::new(), Vec::new());
    }

    /// Adds the next message of this direction, in the order in which assembly emitted them.
    pub(crate) fn push(&mut self, message: &Message) {
        self.added += 1;
        let Some(first) = message.first_instant() else { return };
        let last = message.last_instant().unwrap_or(first);
        let begun = self.last.is_some();
        if !begun {
            self.base = message.seq.start;
            self.last = Some((message.seq.start, 0));
        }
        // A socket that was open before the probes were begins with a gap as well. What it does from then on is all seen: its
        // first instants count, and whoever asks for bytes from before finds none.
        // Without a loss, a later gap of what was received is the same beginning (its first read was seen before its first ready);
        // a later gap of what was sent is a way to send that the probes do not see.
        let later = message.direction == Direction::Egress && begun;
        let gap = message.gap_before && (self.lossy || later);
        let start = self.unwrap(message.seq.start);
        let end = start + i64::from(message.seq.len());
        match message.direction {
            Direction::Egress => {
                let place = |s: &SeqInstant| (start + distance(message.seq.start, s.seq), s.at);
                let thinned = (0..message.sends.len()).filter(|&i| is_thinned(message, &message.sends, i));
                self.thinned_sends.extend(thinned.map(|i| self.sends.len() + i));
                self.sends.extend(message.sends.iter().map(place));
                self.held.extend(message.held.iter().map(place));
                self.retransmits.extend(message.retransmits.iter().map(place));
                self.calls += message.sends.len() as u64 + u64::from(message.elided);
            }
            Direction::Ingress => {
                // Where the first thing ever seen of a socket is a read, its bytes were ready at some time before.
                let read_first = message.gap_before
                    && !begun
                    && message.readies.first().map(|r| r.at) == message.recvs.first().map(|r| r.at);
                push_steps(&mut self.readies, start, message, &message.readies, gap || read_first);
                push_steps(&mut self.recvs, start, message, &message.recvs, gap);
                self.calls += message.recvs.len() as u64;
            }
        }
        self.extent = Some(self.extent.map_or((start, end), |(low, high)| (low.min(start), high.max(end))));
        self.bytes += u64::from(message.seq.len());
        self.spoken.add(&message.content);
        self.pieces.push(Piece {
            start,
            end,
            content: message.content.clone(),
            head_end: message.head_end.map(|s| start + distance(message.seq.start, s)),
            first,
            last,
            gap_before: gap,
        });
        self.last = Some((message.seq.end, end));
    }

    fn unwrap(&self, seq: SeqNo) -> Offset {
        let (near, offset) = self.last.unwrap_or((self.base, 0));
        offset + distance(near, seq)
    }

    /// The number of the first byte that was seen.
    pub(crate) fn first(&self) -> Option<SeqNo> {
        self.extent.map(|_| self.base)
    }

    /// True if not a byte was seen.
    pub(crate) const fn is_empty(&self) -> bool {
        self.extent.is_none()
    }

    /// First and last position seen.
    pub(crate) const fn extent(&self) -> Option<(Offset, Offset)> {
        self.extent
    }

    /// What must be added to a position in `self` to get the position in `other` of the same byte, if both are the
    /// two ends of one direction.
    pub(crate) fn shift_to(&self, other: &Self) -> Offset {
        distance(other.base, self.base)
    }

    /// The position of a byte of which the number is known and about when it was sent.
    pub(crate) fn place(&self, seq: SeqNo, about: MonotonicNs) -> Offset {
        let index = self.sends.partition_point(|&(_, at)| at <= about).saturating_sub(1);
        let near = self.sends.get(index).map_or(0, |&(offset, _)| offset);
        // Truncation is the wrapping that sequence numbers have.
        near + distance(self.base.advance(near as u32), seq)
    }

    /// When the send call that holds the byte at `at` began. `None` if that byte's send was not seen.
    pub(crate) fn send_of(&self, at: Offset) -> Option<MonotonicNs> {
        let index = self.sends.partition_point(|&(start, _)| start <= at).checked_sub(1)?;
        let (start, when) = self.sends[index];
        let piece = self.piece_at(at)?;
        // Of several sends that count as one, only the first one's first byte is told.
        let told = start == at || !self.is_thinned_after(index);
        (start >= piece.start && told).then_some(when)
    }

    /// Where the send call that holds the byte at `at` ends: the next call's first byte, or the message's end.
    pub(crate) fn send_end(&self, at: Offset) -> Option<Offset> {
        let piece = self.piece_at(at)?;
        let next = self.sends.partition_point(|&(start, _)| start <= at);
        Some(self.sends.get(next).map_or(piece.end, |&(start, _)| start.min(piece.end)))
    }

    /// The last send call that has bytes before `end`. `None` if the send of the last byte was not seen.
    pub(crate) fn last_send(&self, end: Offset) -> Option<MonotonicNs> {
        let piece = self.piece_at(end - 1)?;
        let index = self.sends.partition_point(|&(at, _)| at < end).checked_sub(1)?;
        let (at, when) = self.sends[index];
        // It may have begun before `start`, and hold what came before as well.
        (at >= piece.start && !self.is_thinned_after(index)).then_some(when)
    }

    /// True if sends may have been left out between the one at `index` and the next.
    fn is_thinned_after(&self, index: usize) -> bool {
        self.thinned_sends.binary_search(&(index + 1)).is_ok()
    }

    /// The first send call in `start..end` that began at or after `not_before`: its first byte.
    pub(crate) fn first_send_from(&self, start: Offset, end: Offset, not_before: MonotonicNs) -> Option<Offset> {
        let from = self.sends.partition_point(|&(at, _)| at < start);
        self.sends[from..].iter().take_while(|&&(at, _)| at < end).find(|(_, when)| *when >= not_before).map(|s| s.0)
    }

    /// The message that holds the byte at `at`.
    pub(crate) fn piece_at(&self, at: Offset) -> Option<&Piece> {
        let index = self.pieces.partition_point(|p| p.start <= at).checked_sub(1)?;
        let piece = &self.pieces[index];
        (at < piece.end).then_some(piece)
    }

    /// The messages that have bytes in `start..end`.
    pub(crate) fn pieces_in(&self, start: Offset, end: Offset) -> impl Iterator<Item = &Piece> {
        let from = self.pieces.partition_point(|p| p.end <= start);
        self.pieces[from..].iter().take_while(move |p| p.start < end)
    }

    /// True if no byte of `start..end` is missing.
    pub(crate) fn covers(&self, start: Offset, end: Offset) -> bool {
        let mut at = start;
        for piece in self.pieces_in(start, end) {
            if piece.start > at {
                return false;
            }
            at = at.max(piece.end);
        }
        at >= end
    }

    /// How the bytes `start..end` were sent.
    pub(crate) fn sent_progress(&self, start: Offset, end: Offset) -> Progress {
        let mut marks: Vec<Mark> = Vec::new();
        let first = self.sends.partition_point(|&(at, _)| at <= start).saturating_sub(1);
        for (i, &(begin, at)) in self.sends.iter().enumerate().skip(first).take_while(|(_, s)| s.0 < end) {
            let ends = self.piece_at(begin).map_or(begin, |p| p.end);
            if ends <= start {
                continue;
            }
            if marks.is_empty() && begin > start {
                may_be(&mut marks, count(start, begin));
            }
            let next = self.sends.get(i + 1).map(|s| s.0);
            let high = next.unwrap_or(ends).min(end);
            let low = if self.is_thinned_after(i) { begin } else { ends.min(high) };
            // What was not seen to be sent was sent at some time all the same.
            let high = if next.is_none() { end } else { high };
            marks.push(Mark { at, low: count(start, low.max(start)), high: count(start, high) });
        }
        if marks.is_empty() {
            return Progress::unknown();
        }
        Progress::new(marks)
    }

    /// How the bytes `start..end` became readable.
    pub(crate) fn ready_progress(&self, start: Offset, end: Offset, seen_until: Option<MonotonicNs>) -> Progress {
        progress(&self.readies, start, end, seen_until.filter(|_| !self.lossy))
    }

    /// How the bytes `start..end` were read.
    pub(crate) fn recv_progress(&self, start: Offset, end: Offset, seen_until: Option<MonotonicNs>) -> Progress {
        progress(&self.recvs, start, end, seen_until.filter(|_| !self.lossy))
    }

    /// Where and when TCP held bytes of `start..end` back, and which of them it sent again; counted from `start`.
    pub(crate) fn hindrances(&self, start: Offset, end: Offset) -> [Vec<(u64, MonotonicNs)>; 2] {
        [&self.held, &self.retransmits].map(|list| {
            let within = list.iter().filter(|(at, _)| (start..end).contains(at));
            within.map(|&(at, when)| (count(start, at), when)).collect()
        })
    }

    /// When all bytes before `end` were readable. `None` if unknown.
    pub(crate) fn ready(&self, end: Offset) -> Option<MonotonicNs> {
        step(&self.readies, end)
    }

    /// When all bytes before `end` had been read. `None` if unknown.
    pub(crate) fn recv(&self, end: Offset) -> Option<MonotonicNs> {
        step(&self.recvs, end)
    }
}

fn distance(from: SeqNo, to: SeqNo) -> Offset {
    i64::from(from.distance(to))
}

fn push_steps(to: &mut Vec<Step>, start: Offset, message: &Message, list: &[SeqInstant], gap: bool) {
    let mut from = start;
    for (i, instant) in list.iter().enumerate() {
        let end = start + distance(message.seq.start, instant.seq);
        to.push(Step {
            from,
            end,
            at: instant.at,
            known: !(gap && i == 0),
            only_its_end: is_thinned(message, list, i),
        });
        from = end;
    }
}

/// True if instants may have been left out before the one at `i`.
fn is_thinned(message: &Message, list: &[SeqInstant], i: usize) -> bool {
    if message.elided == 0 || i < Message::NEVER_THINNED {
        return false;
    }
    let close = |i: usize| list[i].at - list[i - 1].at < Message::THINNED_BELOW;
    // Captures of before there was thinning left out all but the last, however far apart.
    let replaced = i + 1 == list.len() && i == Message::NEVER_THINNED;
    close(i) || replaced
}

/// Marks of `steps` for the bytes `start..end`, counted from `start`. What was not seen by `seen_until` had not happened.
fn progress(steps: &[Step], start: Offset, end: Offset, seen_until: Option<MonotonicNs>) -> Progress {
    let mut marks: Vec<Mark> = Vec::new();
    let mut before = start;
    let first = steps.partition_point(|s| s.end <= start);
    for step in &steps[first..] {
        let until = step.end.min(end);
        if !step.known || step.only_its_end || step.from > before {
            may_be(&mut marks, count(start, until));
        }
        let bytes = count(start, until);
        marks.push(Mark { at: step.at, low: bytes, high: bytes });
        before = until;
        if until == end {
            break;
        }
    }
    if before < end {
        let (low, high) = (count(start, before), count(start, end));
        match seen_until {
            Some(at) if !marks.is_empty() => marks.push(Mark { at, low, high }),
            _ => may_be(&mut marks, high),
        }
    }
    Progress::new(marks)
}

/// From the last mark on, up to `high` bytes may have been there.
fn may_be(marks: &mut Vec<Mark>, high: u64) {
    match marks.last_mut() {
        Some(last) => last.high = last.high.max(high),
        None => marks.push(Mark { at: MonotonicNs(0), low: 0, high }),
    }
}

/// Bytes from one position to another.
fn count(from: Offset, to: Offset) -> u64 {
    u64::try_from(to - from).unwrap_or(0)
}

fn step(steps: &[Step], end: Offset) -> Option<MonotonicNs> {
    let step = steps.get(steps.partition_point(|s| s.end < end))?;
    let told = step.known && step.from < end && (!step.only_its_end || step.end == end);
    told.then_some(step.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_model::{Instants, SocketCookie};

    fn instants(list: &[(u32, u64)]) -> Instants {
        list.iter().map(|&(seq, at)| SeqInstant { seq: SeqNo(seq), at: MonotonicNs(at) }).collect()
    }

    fn ingress(start: u32, end: u32, readies: &[(u32, u64)], recvs: &[(u32, u64)]) -> Message {
        Message {
            socket: SocketCookie(1),
            direction: Direction::Ingress,
            seq: SeqRange { start: SeqNo(start), end: SeqNo(end) },
            sends: Instants::new(),
            readies: instants(readies),
            recvs: instants(recvs),
            held: Instants::new(),
            retransmits: Instants::new(),
            elided: 0,
            gap_before: false,
            content: Content::Unknown,
            head_end: None,
        }
    }

    #[test]
    fn positions_do_not_wrap() {
        let mut stream = Stream::default();
        stream.push(&ingress(u32::MAX - 9, 0, &[(0, 5)], &[(0, 6)]));
        stream.push(&ingress(0, 10, &[(10, 7)], &[(10, 9)]));
        assert_eq!(stream.extent(), Some((0, 20)));
        assert_eq!(stream.ready(10), Some(MonotonicNs(5)));
        assert_eq!(stream.ready(11), Some(MonotonicNs(7)));
        assert_eq!(stream.recv(20), Some(MonotonicNs(9)));
        assert_eq!(stream.recv(21), None);
    }

    #[test]
    fn instants_around_a_loss_are_unknown() {
        let mut stream = Stream::new(true);
        stream.push(&ingress(0, 10, &[(10, 5)], &[(10, 6)]));
        let mut after = ingress(10, 30, &[(20, 15), (30, 18)], &[(30, 20)]);
        after.gap_before = true;
        stream.push(&after);
        assert_eq!(stream.ready(15), None);
        assert_eq!(stream.ready(25), Some(MonotonicNs(18)));
        assert_eq!(stream.recv(30), None);
    }

    #[test]
    fn a_later_message_does_not_tell_of_an_earlier_one() {
        let mut stream = Stream::default();
        stream.push(&ingress(0, 10, &[], &[(10, 6)]));
        stream.push(&ingress(10, 30, &[(30, 18)], &[(30, 20)]));
        assert_eq!(stream.ready(10), None);
        assert_eq!(stream.recv(10), Some(MonotonicNs(6)));
        assert_eq!(stream.ready(11), Some(MonotonicNs(18)));
    }

    #[test]
    fn what_was_open_before_the_probes_counts_from_then_on() {
        let mut first = ingress(0, 10, &[(10, 5)], &[(10, 6)]);
        first.gap_before = true;
        let mut stream = Stream::default();
        stream.push(&first);
        assert_eq!(stream.ready(10), Some(MonotonicNs(5)));
        let mut lossy = Stream::new(true);
        lossy.push(&first);
        assert_eq!(lossy.ready(10), None);
    }

    #[test]
    fn a_list_that_was_thinned_tells_only_its_ends() {
        let mut stream = Stream::default();
        let mut readies: Vec<(u32, u64)> = (1..=15).map(|i| (i * 10, u64::from(i))).collect();
        readies.push((400, 60));
        let mut message = ingress(0, 400, &readies, &[]);
        message.elided = 5;
        stream.push(&message);
        assert_eq!(stream.ready(150), Some(MonotonicNs(15)));
        assert_eq!(stream.ready(160), None);
        assert_eq!(stream.ready(400), Some(MonotonicNs(60)));
    }

    #[test]
    fn of_thinned_sends_only_beginnings_are_told() {
        let mut stream = Stream::default();
        let mut message = ingress(0, 1_000, &[], &[]);
        message.direction = Direction::Egress;
        let sends: Vec<(u32, u64)> = (0..15).map(|i| (i * 10, u64::from(i))).chain([(900, 60)]).collect();
        (message.sends, message.elided) = (instants(&sends), 5);
        stream.push(&message);
        assert_eq!(
            [139, 140, 141, 900].map(|at| stream.send_of(at)),
            [Some(MonotonicNs(13)), Some(MonotonicNs(14)), None, Some(MonotonicNs(60))]
        );
        assert_eq!((stream.last_send(500), stream.last_send(950)), (None, Some(MonotonicNs(60))));
        assert_eq!(stream.sent_progress(0, 1_000).at(MonotonicNs(20)), (140, 900));
    }

    #[test]
    fn progress_tells_what_was_left_out() {
        let us = |n: u64| n * 1_000;
        let mut readies: Vec<(u32, u64)> = (1..=15).map(|i| (i * 10, us(u64::from(i)))).collect();
        // Some are missing before the first, none before the second: they lie too far apart.
        readies.extend([(400, us(60)), (410, us(900))]);
        let mut message = ingress(0, 410, &readies, &[(100, us(10))]);
        message.elided = 7;
        let mut stream = Stream::default();
        stream.push(&message);
        let ready = stream.ready_progress(5, 410, None);
        let at = |t| ready.at(MonotonicNs(us(t)));
        assert_eq!(
            [at(0), at(1), at(14), at(15), at(60), at(899), at(900)],
            [(0, 0), (5, 5), (135, 135), (145, 395), (395, 395), (395, 395), (405, 405)]
        );
        let read = stream.recv_progress(0, 410, Some(MonotonicNs(us(5_000))));
        assert_eq!([4_999, 5_000].map(|t| read.at(MonotonicNs(us(t)))), [(100, 100), (100, 410)]);
        assert_eq!(stream.recv_progress(0, 410, None).at(MonotonicNs(us(11))), (100, 410));
    }

    #[test]
    fn sends_make_progress_where_they_begin() {
        let mut stream = Stream::default();
        let mut message = ingress(0, 100, &[], &[]);
        message.direction = Direction::Egress;
        message.sends = instants(&[(0, 10), (40, 20)]);
        message.held = instants(&[(60, 25)]);
        stream.push(&message);
        let mut later = ingress(130, 200, &[], &[]);
        later.direction = Direction::Egress;
        later.gap_before = true;
        later.sends = instants(&[(130, 50)]);
        stream.push(&later);
        let sent = stream.sent_progress(0, 200);
        assert_eq!([9, 10, 20, 50].map(|t| sent.at(MonotonicNs(t))), [(0, 0), (40, 40), (100, 130), (200, 200)]);
        assert_eq!(stream.sent_progress(50, 90).at(MonotonicNs(20)), (40, 40));
        assert_eq!(stream.hindrances(50, 90), [vec![(10, MonotonicNs(25))], vec![]]);
    }

    #[test]
    fn sends_are_found_by_byte() {
        let mut stream = Stream::default();
        let mut message = ingress(1000, 1100, &[], &[]);
        message.direction = Direction::Egress;
        message.sends = instants(&[(1000, 1), (1040, 2)]);
        stream.push(&message);
        assert_eq!(stream.send_of(39), Some(MonotonicNs(1)));
        assert_eq!(stream.send_of(40), Some(MonotonicNs(2)));
        assert_eq!(stream.send_of(100), None);
        assert_eq!(stream.send_end(0), Some(40));
        assert_eq!(stream.send_end(50), Some(100));
        assert_eq!(stream.last_send(100), Some(MonotonicNs(2)));
        assert_eq!(stream.last_send(40), Some(MonotonicNs(1)));
        assert_eq!(stream.first_send_from(0, 100, MonotonicNs(2)), Some(40));
    }
}

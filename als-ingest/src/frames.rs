//! gRPC's framing of messages, taken apart without losing a stream: a message that cannot be had is skipped, and the next one read.
//!
//! tonic's own decoder ends the stream at the first message that is too large, compressed or cut short, and copies every message. Here one that
//! lies in one piece of the connection's data is handed on as it lies there.

use crate::proto::InvalidMessage;
use crate::queue::{Assembly, Held};
use bytes::{Buf, Bytes};
use std::sync::Arc;

/// A flag and a length come before each message
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, `Length-Prefixed-Message`).
const HEAD: usize = 5;

/// Messages smaller than this are copied: as a part of the data that they came with they would keep all of that in memory.
const COPY_BELOW: usize = 4 << 10;

/// Room that is taken at once for a message that comes in parts; what its length claims beyond that must come first.
const FIRST_ROOM: usize = 20 << 10;

/// Whole messages that came in one piece: the first one, and behind it the others, each with its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Messages {
    data: Bytes,
    first: usize,
}

impl Messages {
    /// One message.
    pub(crate) fn one(message: Bytes) -> Self {
        Self { first: message.len(), data: message }
    }

    /// Each of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let (first, mut rest) = self.data.split_at(self.first);
        std::iter::once(first).chain(std::iter::from_fn(move || {
            let (message, after) = whole(rest, usize::MAX)?;
            rest = after;
            Some(message)
        }))
    }

    /// Each of them by itself.
    pub(crate) fn apart(&self) -> impl Iterator<Item = Self> {
        self.iter().map(|message| Self::one(self.data.slice_ref(message)))
    }

    /// True if there is but one.
    pub(crate) fn is_one(&self) -> bool {
        self.first == self.data.len()
    }
}

/// The message that begins here and what follows it, if it is there as a whole, is wanted and not too long.
#[inline]
fn whole(data: &[u8], max_message: usize) -> Option<(&[u8], &[u8])> {
    let ([0, len @ ..], after) = data.split_first_chunk::<HEAD>()? else { return None };
    let len = u32::from_be_bytes(*len) as usize;
    if len > max_message { None } else { after.split_at_checked(len) }
}

/// What was found next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Whole messages.
    Messages(Messages),
    /// A message that is skipped.
    Skipped(InvalidMessage),
    /// What comes is not gRPC: nothing of the rest of the stream can be read.
    NotGrpc,
}

/// The messages of one stream.
#[derive(Debug)]
pub(crate) struct Frames {
    max_message: usize,
    assembly: Arc<Assembly>,
    /// What came last and has not been looked at.
    data: Bytes,
    state: State,
}

#[derive(Debug)]
enum State {
    /// This much of a head is there.
    Head([u8; HEAD], usize),
    /// A message of which parts are there.
    Parts { have: Vec<u8>, len: usize, held: Held },
    /// This much of a message that is not wanted is still to come.
    Skip(usize),
    /// Nothing that comes can be understood.
    Lost,
}

impl State {
    const START: Self = Self::Head([0; HEAD], 0);
}

impl Frames {
    pub(crate) fn new(max_message: usize, assembly: Arc<Assembly>) -> Self {
        Self { max_message, assembly, data: Bytes::new(), state: State::START }
    }

    /// Takes what came. Everything before must have been taken out with [`next`](Self::next).
    pub(crate) fn push(&mut self, data: Bytes) {
        debug_assert!(self.data.is_empty(), "what came before was read to its end");
        self.data = data;
    }

    /// True if the stream ends here in the middle of a message.
    pub(crate) const fn is_cut(&self) -> bool {
        match self.state {
            State::Head(_, have) => have > 0,
            State::Parts { .. } | State::Skip(_) => true,
            State::Lost => false,
        }
    }

    /// The next message; `None` when more has to come first.
    pub(crate) fn next(&mut self) -> Option<Found> {
        loop {
            match &mut self.state {
                State::Head(head, have) => {
                    let more = (HEAD - *have).min(self.data.len());
                    self.data.copy_to_slice(&mut head[*have..*have + more]);
                    *have += more;
                    if *have < HEAD {
                        return None;
                    }
                    let [flag, len @ ..] = *head;
                    self.state = State::START;
                    if let Some(found) = self.begin(flag, u32::from_be_bytes(len) as usize) {
                        return Some(found);
                    }
                }
                State::Parts { have, len, held } => {
                    let more = (*len - have.len()).min(self.data.len());
                    if more == 0 {
                        return None;
                    }
                    if !held.grow(more) {
                        let rest = *len - have.len();
                        self.state = State::Skip(rest);
                        return Some(Found::Skipped(InvalidMessage::NoRoom));
                    }
                    have.extend_from_slice(&self.data[..more]);
                    self.data.advance(more);
                    if have.len() == *len {
                        let whole = std::mem::take(have);
                        self.state = State::START;
                        return Some(Found::Messages(Messages::one(whole.into())));
                    }
                }
                State::Skip(rest) => {
                    let more = (*rest).min(self.data.len());
                    self.data.advance(more);
                    *rest -= more;
                    if *rest > 0 {
                        return None;
                    }
                    self.state = State::START;
                }
                State::Lost => {
                    self.data.clear();
                    return None;
                }
            }
        }
    }

    /// Begins with a message whose head is read; `None` if it comes in parts.
    fn begin(&mut self, flag: u8, len: usize) -> Option<Found> {
        let unwanted = match flag {
            0 if len <= self.max_message => None,
            0 => Some(InvalidMessage::TooLarge),
            // None was offered, so nobody may compress.
            1 => Some(InvalidMessage::Compressed),
            _ => {
                self.state = State::Lost;
                return Some(Found::NotGrpc);
            }
        };
        if let Some(why) = unwanted {
            self.state = State::Skip(len);
            return Some(Found::Skipped(why));
        }
        if self.data.len() >= len {
            let mut rest = &self.data[len..];
            while let Some((_, after)) = whole(rest, self.max_message) {
                rest = after;
            }
            let all = self.data.len() - rest.len();
            let messages = self.data.split_to(all);
            let data = if all < COPY_BELOW { Bytes::copy_from_slice(&messages) } else { messages };
            return Some(Found::Messages(Messages { data, first: len }));
        }
        let have = Vec::with_capacity(len.min(FIRST_ROOM));
        self.state = State::Parts { have, len, held: Held::new(Arc::clone(&self.assembly)) };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 10_000;

    fn frames(room: usize) -> Frames {
        Frames::new(MAX, Assembly::new(room))
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).expect("small");
        [&[flag][..], &len.to_be_bytes(), message].concat()
    }

    fn all(frames: &mut Frames, data: &[u8]) -> Vec<Found> {
        frames.push(Bytes::copy_from_slice(data));
        let found = std::iter::from_fn(|| frames.next());
        let apart = |found| match found {
            Found::Messages(messages) => messages.apart().map(Found::Messages).collect(),
            other => vec![other],
        };
        found.flat_map(apart).collect()
    }

    fn message(message: impl Into<Bytes>) -> Found {
        Found::Messages(Messages::one(message.into()))
    }

    #[test]
    fn what_comes_together_stays_together() {
        let mut stream = frames(1 << 20);
        let data = [framed(0, b"a"), framed(0, b""), framed(0, b"bc"), framed(1, b"zipped"), framed(0, b"d")].concat();
        stream.push(data.into());
        let Some(Found::Messages(first)) = stream.next() else { panic!("three messages") };
        assert_eq!(first.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"bc"]);
        assert!(!first.is_one());
        assert_eq!(stream.next(), Some(Found::Skipped(InvalidMessage::Compressed)));
        assert_eq!(stream.next(), Some(message(&b"d"[..])));
        assert_eq!(stream.next(), None);
    }

    #[test]
    fn what_is_skipped_does_not_end_the_stream() {
        let mut stream = frames(1 << 20);
        let data =
            [framed(0, b"a"), framed(0, &[7; MAX + 1]), framed(1, b"zipped"), framed(0, b""), framed(0, b"b")].concat();
        assert_eq!(
            all(&mut stream, &data),
            [
                message(&b"a"[..]),
                Found::Skipped(InvalidMessage::TooLarge),
                Found::Skipped(InvalidMessage::Compressed),
                message(&b""[..]),
                message(&b"b"[..])
            ]
        );
        assert!(!stream.is_cut());
        assert_eq!(all(&mut stream, &framed(0, b"half")[..7]), []);
        assert!(stream.is_cut());
    }

    #[test]
    fn what_is_no_grpc_is_said_once_and_swallowed() {
        let mut stream = frames(1 << 20);
        assert_eq!(all(&mut stream, b"GET / HTTP/1.1\r\n\r\n"), [Found::NotGrpc]);
        assert_eq!(all(&mut stream, &framed(0, b"late")), []);
        assert!(!stream.is_cut());
    }

    #[test]
    fn parts_take_room_as_they_come_and_give_it_back() {
        let assembly = Assembly::new(6_000);
        let mut streams = [(); 3].map(|()| Frames::new(MAX, Arc::clone(&assembly)));
        let data = framed(0, &[1; 5_000]);
        // A head alone takes nothing, whatever it claims.
        for stream in &mut streams {
            assert_eq!(all(stream, &data[..5]), []);
        }
        assert_eq!(assembly.used(), 0);
        let [a, b, c] = &mut streams;
        assert_eq!(all(a, &data[5..4_000]), []);
        assert_eq!(all(b, &data[5..4_000]), [Found::Skipped(InvalidMessage::NoRoom)]);
        assert_eq!(assembly.used(), 3_995);
        assert!(matches!(all(a, &data[4_000..])[..], [Found::Messages(_)]));
        assert_eq!(assembly.used(), 0);
        // The one that was skipped goes on with the next.
        assert_eq!(all(b, &data[4_000..]), []);
        assert!(matches!(all(b, &framed(0, b"next"))[..], [Found::Messages(_)]));
        assert_eq!(all(c, &data[5..100]), []);
        drop(streams);
        assert_eq!(assembly.used(), 0);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_messages_are_the_same(lens in prop::collection::vec(0..MAX + 20, 0..8), cuts in prop::collection::vec(1..9_000_usize, 1..40)) {
            let messages: Vec<Vec<u8>> = lens.iter().enumerate().map(|(n, &len)| vec![u8::try_from(n).expect("few"); len]).collect();
            let data: Vec<u8> = messages.iter().flat_map(|m| framed(0, m)).collect();
            let mut stream = frames(1 << 20);
            let (mut rest, mut found) = (&data[..], Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                found.extend(all(&mut stream, now));
                rest = later;
            }
            let want: Vec<Found> = messages
                .into_iter()
                .map(|m| if m.len() > MAX { Found::Skipped(InvalidMessage::TooLarge) } else { message(m) })
                .collect();
            prop_assert_eq!(found, want);
            prop_assert!(!stream.is_cut());
        }

        #[test]
        fn any_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut stream = frames(1 << 10);
            for piece in pieces {
                all(&mut stream, &piece);
            }
        }
    }
}

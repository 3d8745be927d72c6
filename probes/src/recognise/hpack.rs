//! HPACK (RFC 7541), as far as it tells what a request is: a decoder that keeps the values of six fields and nothing else, not
//! even in its dynamic table, and that goes on after a gap.
//!
//! After a gap the table's entries are unknown, but new ones are counted from the newest on, so that what is inserted from then
//! on is known again, and what refers to something older is unknown and not an error.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

/// Largest dynamic table that is kept, in bytes as RFC 7541 counts them (section 4.1). What an encoder keeps beyond it is unknown.
const MAX_TABLE: usize = 64 << 10;
/// The table's size until the encoder says otherwise (RFC 9113, section 6.5.2).
const DEFAULT_TABLE: usize = 4096;
/// What an entry counts beyond its texts.
const ENTRY_OVERHEAD: usize = 32;
/// Longest value that is kept.
const MAX_VALUE: usize = 2048;

/// A field whose value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Method,
    Path,
    Status,
    ContentType,
    GrpcStatus,
    RequestId,
}

/// A name as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Read(Field),
    Other,
    /// It was given before a gap.
    Unknown,
}

fn name_of(bytes: &[u8]) -> Name {
    Name::Read(match bytes {
        b":method" => Field::Method,
        b":path" => Field::Path,
        b":status" => Field::Status,
        b"content-type" => Field::ContentType,
        b"grpc-status" => Field::GrpcStatus,
        b"x-request-id" => Field::RequestId,
        _ => return Name::Other,
    })
}

type Value = Arc<[u8]>;

/// The bytes are no header block: nothing is known of the table after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

#[derive(Clone, Debug)]
struct Entry {
    name: Name,
    /// The name's length; 0 where it is not known.
    name_len: usize,
    /// Kept where the name is one that is read.
    value: Option<Value>,
    /// At least what the entry counts.
    size: usize,
}

/// What one direction of a connection has told so far.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// All entries that the encoder knows are in `table`.
    whole: bool,
}

impl Decoder {
    /// At the beginning of a connection, or somewhere within one.
    pub(super) fn new(from_the_beginning: bool) -> Self {
        Self { table: VecDeque::new(), size: 0, limit: DEFAULT_TABLE, whole: from_the_beginning }
    }

    /// Header blocks were missed.
    pub(super) fn forget(&mut self) {
        self.table.clear();
        self.size = 0;
        self.whole = false;
    }

    /// Decodes one block, and tells the fields whose values are known.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn decode(&mut self, block: &[u8], mut each: impl FnMut(Field, &[u8])) -> Result<(), Broken> {
        let mut input = Input { left: block };
        while let Some(&first) = input.left.first() {
            if first & 0x80 != 0 {
                let (name, _, value) = self.lookup(input.integer(7)?)?;
                if let (Name::Read(field), Some(value)) = (name, value) {
                    each(field, &value);
                }
            } else if first & 0xc0 == 0x40 {
                let (name, name_len) = self.name(&mut input, 6)?;
                let (value, len) = input.text(matches!(name, Name::Read(_)))?;
                if let (Name::Read(field), Some(value)) = (name, &value) {
                    each(field, value);
                }
                self.insert(name, name_len, value.map(Arc::from), len);
            } else if first & 0xe0 == 0x20 {
                self.resize(input.integer(5)?);
            } else {
                let (name, _) = self.name(&mut input, 4)?;
                let (value, _) = input.text(matches!(name, Name::Read(_)))?;
                if let (Name::Read(field), Some(value)) = (name, &value) {
                    each(field, value);
                }
            }
        }
        Ok(())
    }

    fn name(&self, input: &mut Input<'_>, bits: u32) -> Result<(Name, usize), Broken> {
        match input.integer(bits)? {
            0 => {
                let (name, len) = input.text(true)?;
                Ok((name.map_or(Name::Other, |n| name_of(&n)), len))
            }
            index => self.lookup(index).map(|(name, len, _)| (name, len)),
        }
    }

    /// The name at an index, its length, and the value if it is kept.
    fn lookup(&self, index: usize) -> Result<(Name, usize, Option<Value>), Broken> {
        if index == 0 {
            return Err(Broken);
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            return Ok((name_of(name.as_bytes()), name.len(), Some(value.as_bytes().into())));
        }
        match self.table.get(index - 1 - STATIC.len()) {
            Some(entry) => Ok((entry.name, entry.name_len, entry.value.clone())),
            None if self.whole => Err(Broken),
            None => Ok((Name::Unknown, 0, None)),
        }
    }

    fn insert(&mut self, name: Name, name_len: usize, value: Option<Value>, value_len: usize) {
        let size = name_len + value_len + ENTRY_OVERHEAD;
        self.table.push_front(Entry { name, name_len, value, size });
        self.size += size;
        self.evict();
    }

    fn resize(&mut self, limit: usize) {
        self.limit = limit.min(MAX_TABLE);
        self.whole &= limit <= MAX_TABLE;
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

struct Input<'a> {
    left: &'a [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Broken> {
        let (&first, rest) = self.left.split_first().ok_or(Broken)?;
        self.left = rest;
        Ok(first)
    }

    /// An integer with a prefix of so many bits (section 5.1); none that matters here has more than 28.
    fn integer(&mut self, bits: u32) -> Result<usize, Broken> {
        let most = (1usize << bits) - 1;
        let mut value = usize::from(self.byte()?) & most;
        if value < most {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken)
    }

    /// A text (section 5.2), if it is wanted and not too long, and how long it is.
    fn text(&mut self, wanted: bool) -> Result<(Option<Vec<u8>>, usize), Broken> {
        let coded = self.left.first().ok_or(Broken)? & 0x80 != 0;
        let len = self.integer(7)?;
        if len > self.left.len() {
            return Err(Broken);
        }
        let (bytes, rest) = self.left.split_at(len);
        self.left = rest;
        if !coded {
            return Ok((Some(bytes).filter(|b| wanted && b.len() <= MAX_VALUE).map(<[u8]>::to_vec), len));
        }
        let mut text = Vec::new();
        let mut len = 0;
        huffman(bytes, |byte| {
            len += 1;
            if wanted && len <= MAX_VALUE {
                text.push(byte);
            }
        })?;
        Ok((Some(text).filter(|_| wanted && len <= MAX_VALUE), len))
    }
}

/// Where the codes of one length begin, in the order of the code (it is canonical).
#[derive(Clone, Copy, Default)]
struct Length {
    first: u32,
    codes: u32,
    at: usize,
}

struct Code {
    by_length: [Length; 31],
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut symbols: Vec<u16> = (0..=256).collect();
    symbols.sort_by_key(|&s| LENGTHS[usize::from(s)]);
    let mut by_length = [Length::default(); 31];
    let (mut code, mut at) = (0, 0);
    for (len, entry) in by_length.iter_mut().enumerate() {
        code <<= 1;
        let codes = symbols[at..].iter().take_while(|&&s| usize::from(LENGTHS[usize::from(s)]) == len).count();
        *entry = Length { first: code, codes: codes as u32, at };
        code += codes as u32;
        at += codes;
    }
    Code { by_length, symbols }
});

/// Decodes a text in the code of RFC 7541, appendix B.
fn huffman(bytes: &[u8], mut each: impl FnMut(u8)) -> Result<(), Broken> {
    let (mut code, mut len) = (0u32, 0usize);
    for byte in bytes {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            len += 1;
            let of = CODE.by_length.get(len).ok_or(Broken)?;
            let place = code.wrapping_sub(of.first);
            if code >= of.first && place < of.codes {
                // The symbol beyond the bytes is the end, which no text holds (section 5.2).
                each(u8::try_from(CODE.symbols[of.at + place as usize]).map_err(|_| Broken)?);
                (code, len) = (0, 0);
            }
        }
    }
    // What is left is padding: fewer than eight bits, all ones.
    if len < 8 && code == (1 << len) - 1 { Ok(()) } else { Err(Broken) }
}

/// How many bits each symbol's code has: 256 bytes, and the end.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("a byte");
        digits.chunks(2).map(byte).collect()
    }

    fn told(decoder: &mut Decoder, block: &str) -> Vec<(Field, String)> {
        let mut list = Vec::new();
        decoder
            .decode(&hex(block), |field, value| list.push((field, String::from_utf8_lossy(value).into_owned())))
            .expect("a header block");
        list
    }

    // RFC 7541, appendices C.4 and C.6: requests and responses with Huffman coding.
    #[test]
    fn the_examples_of_the_rfc() {
        let mut d = Decoder::new(true);
        let first = told(&mut d, "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        assert_eq!(first, [(Field::Method, "GET".into()), (Field::Path, "/".into())]);
        told(&mut d, "8286 84be 5886 a8eb 1064 9cbf");
        let third = told(&mut d, "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(third, [(Field::Method, "GET".into()), (Field::Path, "/index.html".into())]);
        assert_eq!((d.table.len(), d.size), (3, 164));

        let mut d = Decoder::new(true);
        d.resize(256);
        let first = told(
            &mut d,
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
             1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        assert_eq!(first, [(Field::Status, "302".into())]);
        assert_eq!(d.size, 222);
        assert_eq!(told(&mut d, "4883 640e ffc1 c0bf"), [(Field::Status, "307".into())]);
        assert_eq!((d.table.len(), d.size), (4, 222));
    }

    #[test]
    fn after_a_gap_only_what_is_new_is_known() {
        let mut d = Decoder::new(true);
        told(&mut d, "40 0c 782d726571756573742d6964 01 61");
        assert_eq!(told(&mut d, "be"), [(Field::RequestId, "a".into())]);
        d.forget();
        assert_eq!(told(&mut d, "be"), [], "what it is was said before the gap");
        // Static entries always are known; so is what is inserted now, and what refers to that.
        assert_eq!(
            told(&mut d, "83 40 0c 782d726571756573742d6964 01 62"),
            [(Field::Method, "POST".into()), (Field::RequestId, "b".into())]
        );
        assert_eq!(told(&mut d, "be bf"), [(Field::RequestId, "b".into())]);
        let mut whole = Decoder::new(true);
        assert_eq!(whole.decode(&[0xbe], |_, _| {}), Err(Broken), "nothing was inserted");
    }

    #[test]
    fn values_of_other_fields_are_not_kept() {
        let mut d = Decoder::new(true);
        told(&mut d, "40 0d 617574686f72697a6174696f6e 06 736563726574");
        assert!(d.table.iter().all(|e| e.value.is_none()));
        assert_eq!(d.size, 13 + 6 + 32);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for bad in ["80", "ff ff ff ff ff ff", "41", "41 85 ff", "40 81 ff 00", "40 01 61 82 00 00", "7f 80"] {
            assert_eq!(Decoder::new(true).decode(&hex(bad), |_, _| {}), Err(Broken), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_memory_is_bounded(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40), whole: bool,
        ) {
            let mut d = Decoder::new(whole);
            for block in blocks {
                if d.decode(&block, |_, value| assert!(value.len() <= MAX_VALUE)).is_err() {
                    d.forget();
                }
                prop_assert!(d.size <= MAX_TABLE && d.table.len() <= MAX_TABLE / ENTRY_OVERHEAD);
            }
        }
    }
}

//! The protobuf wire format, field by field, without allocation.
//!
//! What is accepted and what is refused is what prost accepts and refuses, to the last quirk: the tests compare the two on
//! mutated messages. References are to prost 0.14, `src/encoding.rs` and `src/encoding/varint.rs`.

/// How deep messages and groups may nest (prost's `RECURSION_LIMIT`).
const MAX_DEPTH: u32 = 100;

/// The bytes are not the message that they should be. Why is not told apart: it costs the entry either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Undecodable;

/// How a field's value is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WireType {
    Varint,
    Fixed64,
    LengthDelimited,
    StartGroup,
    EndGroup,
    Fixed32,
}

/// The start of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The field's number in its message.
    pub(super) number: u32,
    wire: WireType,
}

impl Key {
    #[inline(always)]
    fn expect(self, wire: WireType) -> Result<(), Undecodable> {
        if self.wire == wire { Ok(()) } else { Err(Undecodable) }
    }
}

/// Reads the fields of one message: [`key`](Self::key), then the value in the way that the field's type asks for.
///
/// prost reads all nested messages from one buffer and compares lengths afterwards; a reader has its own message only. A
/// value that runs past the end of its message is an error either way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// How many levels of messages or groups may still follow.
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Reads an outermost message.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: MAX_DEPTH }
    }

    /// Reads a message that was found at some depth ([`rest`](Self::rest), [`depth`](Self::depth)).
    pub(super) const fn nested(bytes: &'a [u8], depth: u32) -> Self {
        Self { rest: bytes, depth }
    }

    /// What is left of the message.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many levels may still follow.
    pub(super) const fn depth(&self) -> u32 {
        self.depth
    }

    /// The next field's key, or `None` at the end of the message.
    ///
    /// # Errors
    /// If the key is cut short or exceeds 32 bits, its wire type does not exist, or its number is 0.
    #[inline(always)]
    pub(super) fn key(&mut self) -> Result<Option<Key>, Undecodable> {
        if self.rest.is_empty() { Ok(None) } else { self.key_of_field().map(Some) }
    }

    #[inline(always)]
    fn key_of_field(&mut self) -> Result<Key, Undecodable> {
        let key = u32::try_from(self.varint()?).map_err(|_| Undecodable)?;
        let wire = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::LengthDelimited,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::Fixed32,
            _ => return Err(Undecodable),
        };
        let number = key >> 3;
        if number == 0 { Err(Undecodable) } else { Ok(Key { number, wire }) }
    }

    /// A `bool`, an enum or an integer that is not fixed or zigzag, as 64 bits; narrower types keep the lower ones.
    ///
    /// # Errors
    /// If the field is of another type, or the value is cut short or longer than 64 bits.
    #[inline(always)]
    pub(super) fn integer(&mut self, key: Key) -> Result<u64, Undecodable> {
        key.expect(WireType::Varint)?;
        self.varint()
    }

    /// An `int32` or an enum.
    ///
    /// # Errors
    /// As of [`integer`](Self::integer).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "protobuf drops the upper bits, and so does prost")]
    pub(super) fn int32(&mut self, key: Key) -> Result<i32, Undecodable> {
        self.integer(key).map(|value| value as i32)
    }

    /// A `uint32`.
    ///
    /// # Errors
    /// As of [`integer`](Self::integer).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "protobuf drops the upper bits, and so does prost")]
    pub(super) fn uint32(&mut self, key: Key) -> Result<u32, Undecodable> {
        self.integer(key).map(|value| value as u32)
    }

    /// Skips a `double`.
    ///
    /// # Errors
    /// If the field is of another type, or cut short.
    #[inline(always)]
    pub(super) fn skip_double(&mut self, key: Key) -> Result<(), Undecodable> {
        key.expect(WireType::Fixed64)?;
        self.take(8).map(drop)
    }

    /// A `string`.
    ///
    /// # Errors
    /// If the field is of another type, cut short, or not UTF-8.
    #[inline(always)]
    pub(super) fn string(&mut self, key: Key) -> Result<&'a str, Undecodable> {
        let bytes = self.bytes(key)?;
        if is_utf8(bytes) {
            // SAFETY: just checked.
            Ok(unsafe { std::str::from_utf8_unchecked(bytes) })
        } else {
            Err(Undecodable)
        }
    }

    /// A `string` as its bytes, where it is not needed as text.
    ///
    /// # Errors
    /// If the field is of another type, cut short, or not UTF-8.
    #[inline(always)]
    pub(super) fn utf8(&mut self, key: Key) -> Result<&'a [u8], Undecodable> {
        let bytes = self.bytes(key)?;
        if is_utf8(bytes) { Ok(bytes) } else { Err(Undecodable) }
    }

    /// A `bytes`.
    ///
    /// # Errors
    /// If the field is of another type, or cut short.
    #[inline(always)]
    pub(super) fn bytes(&mut self, key: Key) -> Result<&'a [u8], Undecodable> {
        key.expect(WireType::LengthDelimited)?;
        self.length_delimited()
    }

    /// A nested message.
    ///
    /// # Errors
    /// If the field is of another type, cut short, or nested too deeply.
    #[inline(always)]
    pub(super) fn message(&mut self, key: Key) -> Result<Self, Undecodable> {
        key.expect(WireType::LengthDelimited)?;
        let depth = self.depth.checked_sub(1).ok_or(Undecodable)?;
        Ok(Self { rest: self.length_delimited()?, depth })
    }

    /// Skips a field that nobody knows, a whole group included (`skip_field`).
    ///
    /// # Errors
    /// If the field is cut short or nested too deeply, or a group does not end as it began.
    #[inline(always)]
    pub(super) fn skip(&mut self, key: Key) -> Result<(), Undecodable> {
        *self = self.after(key)?;
        Ok(())
    }

    /// By value, so that the readers of its callers need no address.
    fn after(mut self, key: Key) -> Result<Self, Undecodable> {
        if self.depth == 0 {
            return Err(Undecodable);
        }
        match key.wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.take(8).map(drop),
            WireType::LengthDelimited => self.length_delimited().map(drop),
            WireType::Fixed32 => self.take(4).map(drop),
            WireType::StartGroup => self.skip_group(key.number),
            WireType::EndGroup => Err(Undecodable),
        }?;
        Ok(self)
    }

    fn skip_group(&mut self, number: u32) -> Result<(), Undecodable> {
        loop {
            let key = self.key_of_field()?;
            if key.wire == WireType::EndGroup {
                return if key.number == number { Ok(()) } else { Err(Undecodable) };
            }
            let inner = Self { rest: self.rest, depth: self.depth - 1 };
            self.rest = inner.after(key)?.rest;
        }
    }

    #[inline(always)]
    fn length_delimited(&mut self) -> Result<&'a [u8], Undecodable> {
        let len = usize::try_from(self.varint()?).map_err(|_| Undecodable)?;
        self.take(len)
    }

    #[inline(always)]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Undecodable> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Undecodable)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Most varints are keys and lengths of one or two bytes.
    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Undecodable> {
        let (value, rest) = match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => (u64::from(a), rest),
            [a, b, ref rest @ ..] if b < 0x80 => (u64::from(a & 0x7f) | u64::from(b) << 7, rest),
            _ => long_varint(self.rest)?,
        };
        self.rest = rest;
        Ok(value)
    }
}

/// A varint of more than two bytes, or one that is none; and what follows it.
fn long_varint(bytes: &[u8]) -> Result<(u64, &[u8]), Undecodable> {
    const LAST: u64 = 0x8080_8080_8080_8080;
    let low = |byte: u8, at: u32| u64::from(byte & 0x7f) << (7 * at);
    // The nanoseconds of a span, mostly, which are the last thing in their message.
    match *bytes {
        [a, b, c, ref rest @ ..] if a & b >= 0x80 && c < 0x80 => return Ok((low(a, 0) | low(b, 1) | low(c, 2), rest)),
        [a, b, c, d, ref rest @ ..] if a & b & c >= 0x80 && d < 0x80 => {
            return Ok((low(a, 0) | low(b, 1) | low(c, 2) | low(d, 3), rest));
        }
        _ => {}
    }
    let Some(&chunk) = bytes.first_chunk() else { return varint_by_bytes(bytes) };
    let word = u64::from_le_bytes(chunk);
    // The first byte whose upper bit is not set ends the number.
    let ends = !word & LAST;
    if ends == 0 {
        return varint_by_bytes(bytes);
    }
    let bits = ends.trailing_zeros() + 1;
    let word = word & (u64::MAX >> (64 - bits));
    // Eight times 7 bits, four times 14, two times 28, 56.
    let word = (word & 0x007f_007f_007f_007f) | (word & 0x7f00_7f00_7f00_7f00) >> 1;
    let word = (word & 0x0000_3fff_0000_3fff) | (word & 0x3fff_0000_3fff_0000) >> 2;
    let word = (word & 0x0fff_ffff) | (word & 0x0fff_ffff_0000_0000) >> 4;
    Ok((word, &bytes[bits as usize / 8..]))
}

fn varint_by_bytes(bytes: &[u8]) -> Result<(u64, &[u8]), Undecodable> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        // The tenth byte holds the 64th bit only.
        if i == 9 && byte > 1 {
            return Err(Undecodable);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok((value, &bytes[i + 1..]));
        }
    }
    Err(Undecodable)
}

/// If these bytes are UTF-8. Most text is short and ASCII, which takes no call to see.
#[inline]
fn is_utf8(bytes: &[u8]) -> bool {
    const UPPER: u64 = 0x8080_8080_8080_8080;
    let mut words = bytes.chunks_exact(8);
    let upper = words.by_ref().fold(0, |upper, word| upper | word.try_into().map_or(UPPER, u64::from_le_bytes));
    let rest = words.remainder().iter().fold(0, |upper, &byte| upper | byte);
    (upper & UPPER == 0 && rest < 0x80) || std::str::from_utf8(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::encoding::{decode_varint, encode_varint};

    fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
        let mut reader = Reader::new(bytes);
        reader.varint().ok().map(|value| (value, reader.rest.len()))
    }

    #[test]
    fn varints_end_after_ten_bytes() {
        let mut ten = [0xff; 11];
        ten[9] = 1;
        assert_eq!(varint(&ten), Some((u64::MAX, 1)));
        ten[9] = 2;
        assert_eq!(varint(&ten), None);
        ten[9] = 0x81;
        ten[10] = 0;
        assert_eq!(varint(&ten), None);
        // Longer than it need be, as prost takes it.
        assert_eq!(varint(&[0x80, 0x80, 0]), Some((0, 0)));
        assert_eq!(varint(&[]), None);
        assert_eq!(varint(&[0x80]), None);
    }

    #[test]
    fn keys_have_32_bits_a_number_and_a_wire_type() {
        let key = |value: u64| {
            let mut bytes = Vec::new();
            encode_varint(value, &mut bytes);
            Reader::new(&bytes).key().map(|key| key.map(|key| key.number))
        };
        assert_eq!(key(0xffff_fff8), Ok(Some(0x1fff_ffff)));
        assert_eq!(key(1 << 32 | 8), Err(Undecodable));
        assert_eq!(key(2), Err(Undecodable), "number 0");
        assert_eq!((key(8 | 6), key(8 | 7)), (Err(Undecodable), Err(Undecodable)));
        assert_eq!(Reader::new(&[]).key(), Ok(None));
    }

    #[test]
    fn groups_are_skipped_if_they_end() {
        let skip = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            let key = reader.key()?.ok_or(Undecodable)?;
            reader.skip(key).map(|()| reader.rest.len())
        };
        // Group 1 with a varint and group 2 in it, and a byte after it.
        assert_eq!(skip(&[0x0b, 0x08, 5, 0x13, 0x14, 0x0c, 9]), Ok(1));
        assert_eq!(skip(&[0x0b, 0x14]), Err(Undecodable), "another group's end");
        assert_eq!(skip(&[0x0b, 0x08, 5]), Err(Undecodable), "no end");
        assert_eq!(skip(&[0x0c]), Err(Undecodable), "no start");
        let nested = |levels: usize| [vec![0x0b; levels], vec![0x0c; levels]].concat();
        assert_eq!((skip(&nested(100)), skip(&nested(101))), (Ok(0), Err(Undecodable)));
    }

    proptest! {
        #[test]
        fn text_is_told_from_other_bytes(text in any::<String>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            prop_assert!(is_utf8(text.as_bytes()));
            let mut bytes = format!("{text}.").into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assert_eq!(is_utf8(&bytes), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn varints_are_those_of_prost(bytes in proptest::collection::vec(prop_oneof![Just(0xff), Just(0x80), 0..4_u8, any::<u8>()], 0..13)) {
            let mut rest = &bytes[..];
            let prost = decode_varint(&mut rest).ok().map(|value| (value, rest.len()));
            prop_assert_eq!(varint(&bytes), prost);
        }
    }
}

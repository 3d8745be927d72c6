//! An entry read only as far as it takes to see what it shares with others, and what is its own.
//!
//! Of most entries all but times, ports, ids, paths and sizes is, byte for byte, as it was in one before: that part is gathered undecoded
//! here ([`KindBytes`]), to be [looked for](super::known). Only entries as Envoy writes them are read in this way, with their fields in
//! ascending order and each once, so that nothing here has to be merged. All others are for the [view](super::view) of the whole entry.

use super::reader::{Reader, Undecodable};
use super::schema;
use super::view::{Message, Tags, address_parts, is_peer_entry, span_nanos};
use super::{EntryKind, time};
use envoy_types::pb::google::protobuf::{Duration, Timestamp};
use meshdiff_model::LogSizes;

/// Most pieces of an entry that its kind depends on: as many as there can be between fields that it does not depend on.
pub(super) const PARTS: usize = 14;

/// The entry is not as Envoy writes one, or is none: the view of the whole entry tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Irregular;

impl From<Undecodable> for Irregular {
    fn from(_: Undecodable) -> Self {
        Self
    }
}

/// The bytes that the kind of an entry depends on, in their order.
#[derive(Debug, Default)]
pub(super) struct KindBytes<'a> {
    parts: [&'a [u8]; PARTS],
    pub(super) lens: [u16; PARTS],
    count: usize,
    pub(super) numbers: Numbers,
    pub(super) hash: u64,
}

/// Numbers that the kind depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) tcp: bool,
    pub(super) intermediate: bool,
    pub(super) access_log_type: i32,
    protocol_version: i32,
    attempts: u32,
    /// How many parts there were up to the end of the common properties and of the request, and before the upstream's local address: what
    /// the parts are depends on where they are.
    until: [u8; 3],
}

impl<'a> KindBytes<'a> {
    pub(super) fn parts(&self) -> &[&'a [u8]] {
        &self.parts[..self.count]
    }

    #[inline(always)]
    fn add(&mut self, part: &'a [u8]) -> Result<(), Irregular> {
        *self.parts.get_mut(self.count).ok_or(Irregular)? = part;
        self.lens[self.count] = u16::try_from(part.len()).map_err(|_| Irregular)?;
        self.count += 1;
        self.hash = mix(self.hash, part);
        Ok(())
    }

    #[inline(always)]
    fn count(&self) -> u8 {
        self.count.to_le_bytes()[0]
    }
}

/// Mixes bytes into a number. Bytes that were chosen to collide push others out of the table, which costs what not having it would.
#[inline(always)]
fn mix(hash: u64, bytes: &[u8]) -> u64 {
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xd6e8_feb8_6659_fd93;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        u64::try_from(product >> 64).unwrap_or_default()
            ^ u64::try_from(product & u128::from(u64::MAX)).unwrap_or_default()
    };
    let word = |chunk: [u8; 8]| u64::from_le_bytes(chunk);
    let mut hash = hash ^ bytes.len() as u64;
    let mut rest = bytes;
    while let Some((pair, after)) = rest.split_first_chunk::<16>() {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *pair;
        hash = fold(word([a, b, c, d, e, f, g, h]) ^ hash ^ A, word([i, j, k, l, m, n, o, p]) ^ B);
        rest = after;
    }
    // Up to 15 are left: the last of them, and those before.
    let (first, last) = match (rest.first_chunk::<8>(), rest.last_chunk::<8>()) {
        (Some(first), Some(last)) => (word(*first), word(*last)),
        _ => match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
            (Some(first), Some(last)) => (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into()),
            _ => (rest.iter().fold(0, |all, &byte| all << 8 | u64::from(byte)), 0),
        },
    };
    fold(first ^ hash ^ A, last ^ B)
}

/// Fields of a message that the kind depends on and that follow each other: one part.
struct Run<'a> {
    message: &'a [u8],
    start: usize,
    end: usize,
}

impl<'a> Run<'a> {
    const fn of(message: &'a [u8]) -> Self {
        Self { message, start: 0, end: 0 }
    }

    /// Adds the field from here to where the reader is now.
    #[inline(always)]
    fn field(&mut self, from: usize, reader: &Reader<'a>, parts: &mut KindBytes<'a>) -> Result<(), Irregular> {
        if from != self.end {
            self.flush(parts)?;
            self.start = from;
        }
        self.end = self.message.len() - reader.rest().len();
        Ok(())
    }

    #[inline(always)]
    fn flush(&mut self, parts: &mut KindBytes<'a>) -> Result<(), Irregular> {
        if self.start < self.end {
            parts.add(&self.message[self.start..self.end])?;
            self.start = self.end;
        }
        Ok(())
    }
}

/// An undecoded address, and how deep what is in it may nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawAddress<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) depth: u32,
}

/// What was read of an entry.
#[derive(Debug, Default)]
pub(super) struct Skim<'a> {
    pub(super) kind: KindBytes<'a>,
    pub(super) start_time: Timestamp,
    /// As in a [`LogRow`](meshdiff_model::LogRow).
    pub(super) spans: [i64; 8],
    pub(super) present: u8,
    pub(super) direct: Option<RawAddress<'a>>,
    pub(super) remote: Option<RawAddress<'a>>,
    /// The address is among the kind's bytes.
    pub(super) upstream_local_port: u16,
    pub(super) path: &'a str,
    pub(super) request_id: &'a [u8],
    pub(super) stream_id: &'a [u8],
    pub(super) tags: Tags<'a>,
    pub(super) tagged: bool,
    pub(super) sizes: LogSizes,
}

/// Ascending order, in which each field comes once.
#[inline(always)]
fn ascend(last: &mut u32, number: u32) -> Result<(), Irregular> {
    if number <= *last {
        return Err(Irregular);
    }
    *last = number;
    Ok(())
}

impl<'a> Skim<'a> {
    /// Reads an entry.
    ///
    /// # Errors
    /// If it has to be looked at as a whole.
    #[inline(always)]
    pub(super) fn read(&mut self, kind: EntryKind, entry: &'a [u8]) -> Result<(), Irregular> {
        let (mut reader, mut last, mut common) = (Reader::new(entry), 0, false);
        let tcp = kind == EntryKind::Tcp;
        self.kind.numbers.tcp = tcp;
        while let Some(key) = reader.key()? {
            ascend(&mut last, key.number)?;
            match key.number {
                1 => {
                    self.common(reader.message(key)?)?;
                    common = true;
                }
                2 if tcp => self.connection(reader.message(key)?)?,
                2 => self.kind.numbers.protocol_version = reader.int32(key)?,
                3 if !tcp => self.request(reader.message(key)?)?,
                4 if !tcp => self.response(reader.message(key)?)?,
                _ => return Err(Irregular),
            }
            // The request is 3: what comes before it leaves it empty.
            if key.number < 4 {
                self.kind.numbers.until[1] = self.kind.count();
            }
        }
        if common { Ok(()) } else { Err(Irregular) }
    }

    #[inline(always)]
    fn common(&mut self, mut reader: Reader<'a>) -> Result<(), Irregular> {
        let message = reader.rest();
        let (mut run, mut last, mut start) = (Run::of(message), 0, false);
        loop {
            let at = message.len() - reader.rest().len();
            let Some(key) = reader.key()? else { break };
            let number = key.number;
            // Maps come in a field for each of their entries.
            if !matches!(number, 21 | 22) || number != last {
                ascend(&mut last, number)?;
            }
            match number {
                6..=12 => self.span(number - 6, reader.message(key)?)?,
                3 | 4 | 13 | 15 | 16 | 18 | 19 | 25 | 28 => {
                    reader.bytes(key)?;
                    run.field(at, &reader, &mut self.kind)?;
                }
                2 => self.remote = Some(raw_address(reader.message(key)?)),
                20 => self.direct = Some(raw_address(reader.message(key)?)),
                5 => {
                    self.start_time.merge(reader.message(key)?)?;
                    start = true;
                }
                14 => {
                    let (ip, port) = address_parts(reader.bytes(key)?).ok_or(Irregular)?;
                    run.flush(&mut self.kind)?;
                    self.kind.add(ip)?;
                    self.kind.numbers.until[2] = self.kind.count();
                    self.upstream_local_port = port;
                }
                21 => {
                    let entry = reader.message(key)?;
                    if is_peer_entry(entry)? {
                        run.field(at, &reader, &mut self.kind)?;
                    }
                }
                22 => {
                    self.tags.entry(reader.message(key)?)?;
                    self.tagged = true;
                }
                23 => self.span(7, reader.message(key)?)?,
                24 => self.kind.numbers.attempts = reader.uint32(key)?,
                26 => self.stream_id = reader.bytes(key)?,
                27 => self.kind.numbers.intermediate = reader.integer(key)? != 0,
                29 => self.sizes.counts[0] = reader.integer(key)?,
                30 => self.sizes.counts[1] = reader.integer(key)?,
                31 => self.sizes.counts[2] = reader.integer(key)?,
                32 => self.sizes.counts[3] = reader.integer(key)?,
                33 => self.kind.numbers.access_log_type = reader.int32(key)?,
                1 | 17 => schema::COMMON.check(key, &mut reader)?,
                _ => return Err(Irregular),
            }
        }
        run.flush(&mut self.kind)?;
        self.kind.numbers.until[0] = self.kind.count();
        // Without a start it is no entry.
        if start { Ok(()) } else { Err(Irregular) }
    }

    #[inline(always)]
    fn span(&mut self, n: u32, reader: Reader<'a>) -> Result<(), Irregular> {
        self.spans[n as usize] = match span_nanos(reader.rest()) {
            Some(nanos) => nanos.into(),
            None => {
                let mut span = Duration::default();
                span.merge(reader)?;
                time::duration(span).map_err(|_| Irregular)?.0
            }
        };
        self.present |= 1 << n;
        Ok(())
    }

    #[inline(always)]
    fn request(&mut self, mut reader: Reader<'a>) -> Result<(), Irregular> {
        let message = reader.rest();
        let (mut run, mut last) = (Run::of(message), 0);
        loop {
            let at = message.len() - reader.rest().len();
            let Some(key) = reader.key()? else { break };
            if key.number != 13 || last != 13 {
                ascend(&mut last, key.number)?;
            }
            match key.number {
                1 => {
                    reader.integer(key)?;
                    run.field(at, &reader, &mut self.kind)?;
                }
                2..=4 => {
                    reader.bytes(key)?;
                    run.field(at, &reader, &mut self.kind)?;
                }
                5 => self.path = reader.string(key)?,
                // What no kind depends on and many values can have: the user agent and the like.
                6..=8 | 10 => drop(reader.utf8(key)?),
                9 => self.request_id = reader.bytes(key)?,
                11 => self.sizes.counts[8] = reader.integer(key)?,
                12 => self.sizes.request_body = reader.integer(key)?,
                13 => schema::REQUEST.check(key, &mut reader)?,
                14 => self.sizes.counts[6] = reader.integer(key)?,
                15 => self.sizes.counts[5] = reader.integer(key)?,
                _ => return Err(Irregular),
            }
        }
        run.flush(&mut self.kind)
    }

    #[inline(always)]
    fn response(&mut self, mut reader: Reader<'a>) -> Result<(), Irregular> {
        let message = reader.rest();
        let (mut run, mut last) = (Run::of(message), 0);
        loop {
            let at = message.len() - reader.rest().len();
            let Some(key) = reader.key()? else { break };
            if !matches!(key.number, 4 | 5) || key.number != last {
                ascend(&mut last, key.number)?;
            }
            match key.number {
                1 | 6 => {
                    reader.bytes(key)?;
                    run.field(at, &reader, &mut self.kind)?;
                }
                2 => self.sizes.counts[9] = reader.integer(key)?,
                3 => self.sizes.response_body = reader.integer(key)?,
                4 | 5 => schema::RESPONSE.check(key, &mut reader)?,
                7 => self.sizes.counts[7] = reader.integer(key)?,
                8 => self.sizes.counts[4] = reader.integer(key)?,
                _ => return Err(Irregular),
            }
        }
        run.flush(&mut self.kind)
    }

    fn connection(&mut self, mut reader: Reader<'a>) -> Result<(), Irregular> {
        let mut last = 0;
        while let Some(key) = reader.key()? {
            ascend(&mut last, key.number)?;
            match key.number {
                1 => self.sizes.request_body = reader.integer(key)?,
                2 => self.sizes.response_body = reader.integer(key)?,
                _ => return Err(Irregular),
            }
        }
        Ok(())
    }
}

const fn raw_address(reader: Reader<'_>) -> RawAddress<'_> {
    RawAddress { bytes: reader.rest(), depth: reader.depth() }
}

//! TLS, peers and tags: parts of an entry of which most is left undecoded.

use super::{Code, Message, merge_optional};
use crate::proto::details::{Certificate, DOWNSTREAM_PEERS, EncodedPeer, TAGS, UPSTREAM_PEERS};
use crate::proto::reader::{Key, Reader, Undecodable};
use crate::proto::schema;
use std::borrow::Cow;

/// `TLSProperties`. The certificates stay undecoded: those of the next entry are mostly the same.
#[derive(Debug, Default)]
pub(in crate::proto) struct Tls<'a> {
    pub(in crate::proto) tls_version: i32,
    pub(in crate::proto) tls_cipher_suite: Option<Code>,
    pub(in crate::proto) tls_sni_hostname: &'a str,
    pub(in crate::proto) local_certificate: Undecoded<'a>,
    pub(in crate::proto) peer_certificate: Undecoded<'a>,
}

impl<'a> Message<'a> for Tls<'a> {
    #[inline(always)]
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.int32(key).map(|v| self.tls_version = v),
            2 => merge_optional(&mut self.tls_cipher_suite, key, reader),
            3 => reader.string(key).map(|v| self.tls_sni_hostname = v),
            4 => self.local_certificate.append(reader.message(key)?),
            5 => self.peer_certificate.append(reader.message(key)?),
            _ => schema::TLS.check(key, reader),
        }
    }
}

/// A message whose decoding is left for later, if ever. Several occurrences merge as their bytes do one after the other.
#[derive(Debug, Default)]
pub(in crate::proto) struct Undecoded<'a> {
    pub(in crate::proto) bytes: Cow<'a, [u8]>,
    depth: u32,
}

impl<'a> Undecoded<'a> {
    fn append(&mut self, again: Reader<'a>) -> Result<(), Undecodable> {
        self.depth = again.depth();
        if self.bytes.is_empty() {
            self.bytes = Cow::Borrowed(again.rest());
            return Ok(());
        }
        // A field must not run from one occurrence into the next.
        schema::CERTIFICATE.check_all(again)?;
        schema::CERTIFICATE.check_all(self.reader())?;
        self.bytes.to_mut().extend_from_slice(again.rest());
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader::nested(&self.bytes, self.depth)
    }

    /// Decodes it as `CertificateProperties`.
    ///
    /// # Errors
    /// If prost would refuse it.
    pub(in crate::proto) fn certificate(&self) -> Result<Certificate<'_>, Undecodable> {
        let mut certificate = Certificate::default();
        let mut reader = self.reader();
        while let Some(key) = reader.key()? {
            match key.number {
                1 => {
                    let mut name = AltName::default();
                    name.merge(reader.message(key)?)?;
                    certificate.names.push(name.0);
                }
                2 => certificate.subject = reader.string(key)?,
                _ => schema::CERTIFICATE.check(key, &mut reader)?,
            }
        }
        Ok(certificate)
    }
}

/// `SubjectAltName`: the oneof's member that came last.
#[derive(Debug, Default)]
struct AltName<'a>(&'a str);

impl<'a> Message<'a> for AltName<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 | 2 => reader.string(key).map(|v| self.0 = v),
            _ => reader.skip(key),
        }
    }
}

/// `filter_state_objects`, of which only the peers are kept.
#[derive(Debug, Default)]
pub(in crate::proto) struct FilterState<'a> {
    pub(in crate::proto) downstream: [Option<EncodedPeer<'a>>; 3],
    pub(in crate::proto) upstream: [Option<EncodedPeer<'a>>; 3],
}

impl<'a> FilterState<'a> {
    pub(super) fn entry(&mut self, reader: Reader<'a>) -> Result<(), Undecodable> {
        let mut entry = AnyEntry::default();
        entry.merge(reader)?;
        let at = |keys: [&str; 3]| keys.iter().position(|&key| key == entry.key);
        if let Some(at) = at(DOWNSTREAM_PEERS) {
            self.downstream[at] = Some(entry.value);
        } else if let Some(at) = at(UPSTREAM_PEERS) {
            self.upstream[at] = Some(entry.value);
        }
        Ok(())
    }
}

/// If an entry of `filter_state_objects` could be a peer. One that begins with the name of a peer is not read any further.
///
/// # Errors
/// If prost would refuse one of which all was read.
#[inline]
pub(in crate::proto) fn is_peer_entry(entry: Reader<'_>) -> Result<bool, Undecodable> {
    const KEY: u8 = 1 << 3 | 2;
    let named =
        |name: &[u8]| [DOWNSTREAM_PEERS, UPSTREAM_PEERS].as_flattened().iter().any(|key| key.as_bytes() == name);
    if let [KEY, len @ ..0x80, ref rest @ ..] = *entry.rest()
        && rest.get(..usize::from(len)).is_some_and(named)
    {
        return Ok(true);
    }
    let mut whole = AnyEntry::default();
    whole.merge(entry)?;
    Ok(named(whole.key.as_bytes()))
}

/// An entry of a `map<string, Any>`.
#[derive(Debug, Default)]
struct AnyEntry<'a> {
    key: &'a str,
    value: EncodedPeer<'a>,
}

impl<'a> Message<'a> for AnyEntry<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.key = v),
            2 => self.value.merge(reader.message(key)?),
            _ => reader.skip(key),
        }
    }
}

impl<'a> Message<'a> for EncodedPeer<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.type_url = v),
            2 => reader.bytes(key).map(|v| self.value = v),
            _ => reader.skip(key),
        }
    }
}

/// `custom_tags`, of which only those in [`TAGS`] are kept.
#[derive(Debug, Default)]
pub(in crate::proto) struct Tags<'a>(pub(in crate::proto) [Option<&'a str>; TAGS.len()]);

impl<'a> Tags<'a> {
    pub(in crate::proto) fn entry(&mut self, reader: Reader<'a>) -> Result<(), Undecodable> {
        let mut entry = TextEntry::default();
        entry.merge(reader)?;
        if let Some(at) = TAGS.iter().position(|&key| key == entry.key) {
            self.0[at] = Some(entry.value);
        }
        Ok(())
    }
}

/// An entry of a `map<string, string>`.
#[derive(Debug, Default)]
struct TextEntry<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Message<'a> for TextEntry<'a> {
    fn field(&mut self, key: Key, reader: &mut Reader<'a>) -> Result<(), Undecodable> {
        match key.number {
            1 => reader.string(key).map(|v| self.key = v),
            2 => reader.string(key).map(|v| self.value = v),
            _ => reader.skip(key),
        }
    }
}

//! The types of the fields that are not needed.
//!
//! A known field of another type, or a string that is no UTF-8, makes an entry malformed wherever it is, so fields that are skipped are
//! checked as well. The tables have what `envoy.data.accesslog.v3` declares; a number that they leave out is either
//! unknown or read by the [`view`](super::view) of its message.

use super::reader::{Key, Reader, Undecodable};

/// The type of a field.
#[derive(Clone, Copy, Debug)]
enum Type {
    /// Not in this message, or not looked up here.
    Unknown,
    /// `bool`, an enum, `int32`, `uint32`, `uint64`.
    Integer,
    /// `double`.
    Double,
    /// `string`.
    Text,
    /// `bytes`.
    Bytes,
    /// A message, repeated or not. The entries of a map are messages too.
    Message(&'static Schema),
}

use Type::{Bytes, Double, Integer, Message, Text, Unknown};

/// Field types of a message by field number.
#[derive(Debug)]
pub(super) struct Schema(&'static [Type]);

impl Schema {
    /// Checks a field, and skips it.
    ///
    /// # Errors
    /// If prost would refuse it.
    #[inline(always)]
    pub(super) fn check(&self, key: Key, reader: &mut Reader<'_>) -> Result<(), Undecodable> {
        *reader = self.after(key, *reader)?;
        Ok(())
    }

    fn after<'a>(&self, key: Key, mut reader: Reader<'a>) -> Result<Reader<'a>, Undecodable> {
        let declared = usize::try_from(key.number).ok().and_then(|n| self.0.get(n));
        match declared.unwrap_or(&Unknown) {
            Unknown => reader.skip(key),
            Integer => reader.integer(key).map(drop),
            Double => reader.skip_double(key),
            Text => reader.utf8(key).map(drop),
            Bytes => reader.bytes(key).map(drop),
            Message(schema) => schema.check_all(reader.message(key)?),
        }?;
        Ok(reader)
    }

    /// Checks all fields of a message.
    ///
    /// # Errors
    /// If prost would refuse one of them.
    pub(super) fn check_all(&self, mut reader: Reader<'_>) -> Result<(), Undecodable> {
        while let Some(key) = reader.key()? {
            self.check(key, &mut reader)?;
        }
        Ok(())
    }
}

/// What `AccessLogCommon` has beside the fields of its view.
pub(super) static COMMON: Schema = Schema(&{
    let mut fields = [Unknown; 18];
    fields[1] = Double; // sample_rate
    fields[17] = Message(&METADATA);
    fields
});

/// What `TLSProperties` has beside the fields of its view.
pub(super) static TLS: Schema = Schema(&{
    let mut fields = [Unknown; 8];
    fields[6] = Text; // tls_session_id
    fields[7] = Text; // ja3_fingerprint
    fields
});

/// What `HTTPRequestProperties` has beside the fields of its view.
pub(super) static REQUEST: Schema = Schema(&{
    let mut fields = [Unknown; 14];
    fields[2] = Text; // scheme
    fields[4] = Message(&INTEGER); // port
    fields[6] = Text; // user_agent
    fields[7] = Text; // referer
    fields[8] = Text; // forwarded_for
    fields[10] = Text; // original_path
    fields[13] = Message(&TEXT_ENTRY); // request_headers
    fields
});

/// What `HTTPResponseProperties` has beside the fields of its view.
pub(super) static RESPONSE: Schema = Schema(&{
    let mut fields = [Unknown; 6];
    fields[4] = Message(&TEXT_ENTRY); // response_headers
    fields[5] = Message(&TEXT_ENTRY); // response_trailers
    fields
});

/// What `SocketAddress` has beside the fields of its view.
pub(super) static SOCKET_ADDRESS: Schema = Schema(&[
    Unknown, Integer, // protocol
    Unknown, // read
    Unknown, // read
    Unknown, // read
    Text,    // resolver_name
    Integer, // ipv4_compat
    Text,    // network_namespace_filepath
]);

/// `Pipe`: path, mode.
pub(super) static PIPE: Schema = Schema(&[Unknown, Text, Integer]);
/// `EnvoyInternalAddress`: server_listener_name, endpoint_id.
pub(super) static INTERNAL_ADDRESS: Schema = Schema(&[Unknown, Text, Text]);
/// `ResponseFlags.Unauthorized` (reason), and `UInt32Value`.
pub(super) static INTEGER: Schema = Schema(&[Unknown, Integer]);

/// `TLSProperties.CertificateProperties`: subject_alt_name, subject, issuer.
pub(super) static CERTIFICATE: Schema = Schema(&[Unknown, Message(&ALT_NAME), Text, Text]);
/// `SubjectAltName`: uri or dns.
static ALT_NAME: Schema = Schema(&[Unknown, Text, Text]);
/// `core.v3.Metadata`: filter_metadata, typed_filter_metadata.
static METADATA: Schema = Schema(&[Unknown, Message(&STRUCT_ENTRY), Message(&ANY_ENTRY)]);
/// `Any`: type_url, value.
static ANY: Schema = Schema(&[Unknown, Text, Bytes]);
/// `Struct`: fields.
static STRUCT: Schema = Schema(&[Unknown, Message(&VALUE_ENTRY)]);
/// `Value`: null_value, number_value, string_value, bool_value, struct_value, list_value.
static VALUE: Schema = Schema(&[Unknown, Integer, Double, Text, Integer, Message(&STRUCT), Message(&LIST)]);
/// `ListValue`: values.
static LIST: Schema = Schema(&[Unknown, Message(&VALUE)]);

/// `map<string, string>`.
static TEXT_ENTRY: Schema = Schema(&[Unknown, Text, Text]);
/// `map<string, Any>`.
static ANY_ENTRY: Schema = Schema(&[Unknown, Text, Message(&ANY)]);
/// `map<string, Struct>`.
static STRUCT_ENTRY: Schema = Schema(&[Unknown, Text, Message(&STRUCT)]);
/// `map<string, Value>`.
static VALUE_ENTRY: Schema = Schema(&[Unknown, Text, Message(&VALUE)]);

//! `messages`: runs of bytes in one direction of one socket, with their instants.

use super::{Decoded, Row, decode_rows};
use crate::by_parts::MessageOutline;
use crate::column::{Column, flag, instants, named, opt_text, opt_u16, opt_u32, text, u32, u64};
use crate::damage::PartError;
use crate::part::Outlined;
use crate::table::Table;
use crate::view::{Interner, View};
use arrow::datatypes::{UInt16Type, UInt32Type, UInt64Type};
use meshdiff_model::{Content, Instants, Message, SeqNo, SeqRange, SocketCookie};

const UNKNOWN: &str = "unknown";
const REQUEST: &str = "http1_request";
const RESPONSE: &str = "http1_response";
const PREFACE: &str = "http2_preface";
const HANDSHAKE: &str = "tls_handshake";
const APPLICATION_DATA: &str = "tls_application_data";

fn content_name(content: &Content) -> &'static str {
    match content {
        Content::Unknown => UNKNOWN,
        Content::Http1Request { .. } => REQUEST,
        Content::Http1Response { .. } => RESPONSE,
        Content::Http2Preface => PREFACE,
        Content::TlsHandshake => HANDSHAKE,
        Content::TlsApplicationData => APPLICATION_DATA,
    }
}

impl Outlined for MessageOutline {
    const COLUMNS: &[&str] = &["cookie", "direction", "seq_start", "seq_end", "content"];

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let cookie = view.number::<UInt64Type>("cookie")?;
        let direction = view.text("direction")?;
        let seq_start = view.number::<UInt32Type>("seq_start")?;
        let seq_end = view.number::<UInt32Type>("seq_end")?;
        let content = view.text("content")?;
        let untold = strings.get("");
        let request = Content::Http1Request { method: untold.clone(), path: untold };
        Ok(decode_rows(view, |i| {
            Ok(Self {
                socket: SocketCookie(cookie.get(i)?),
                direction: direction.named(i)?,
                seq: SeqRange { start: SeqNo(seq_start.get(i)?), end: SeqNo(seq_end.get(i)?) },
                content: match content.get(i)? {
                    UNKNOWN => Content::Unknown,
                    REQUEST => request.clone(),
                    RESPONSE => Content::Http1Response { status: 0 },
                    PREFACE => Content::Http2Preface,
                    HANDSHAKE => Content::TlsHandshake,
                    APPLICATION_DATA => Content::TlsApplicationData,
                    _ => return Err(content.bad()),
                },
            })
        }))
    }
}

impl Row for Message {
    const TABLE: Table = Table::Messages;

    /// By socket and direction, which is also how they are read: then numbers go on where the row before left off.
    fn arrange(rows: &mut [Self]) {
        // Rows are large: their keys are sorted, and each row is moved once.
        rows.sort_by_cached_key(|m| (m.socket, m.direction));
    }

    fn columns() -> Vec<Column<Self>> {
        vec![
            u64("cookie", |m: &Self| m.socket.0).doc("The socket (`sockets.cookie`)."),
            named("direction", |m: &Self| m.direction).doc("`egress`: sent by the socket, `ingress`: received by it."),
            u32("seq_start", |m: &Self| m.seq.start.0).delta().doc("TCP sequence number of the first byte. Wraps."),
            u32("seq_end", |m: &Self| m.seq.end.0).delta().doc("TCP sequence number after the last byte."),
            instants("sends", |m: &Self| &m.sends)
                .unit("at_ns: ns, monotonic")
                .doc("Egress: for each send call the number of its first byte, and when the bytes were handed to TCP."),
            instants("readies", |m: &Self| &m.readies)
                .unit("at_ns: ns, monotonic")
                .doc("Ingress: by when all bytes before `seq` were readable."),
            instants("recvs", |m: &Self| &m.recvs)
                .unit("at_ns: ns, monotonic")
                .doc("Ingress: by when the process had read all bytes before `seq`."),
            instants("held", |m: &Self| &m.held).unit("at_ns: ns, monotonic").doc(
                "Egress: instants at which TCP held bytes back after a send call: all bytes before `seq` had left, the rest had not.",
            ),
            instants("retransmits", |m: &Self| &m.retransmits)
                .unit("at_ns: ns, monotonic")
                .doc("Egress: each segment that was sent again, by its first byte."),
            u32("elided", |m: &Self| m.elided).doc(
                "Instants that were left out of the lists; the first ones and the last one are always there.",
            ),
            flag("gap_before", |m: &Self| m.gap_before)
                .doc("Events of this socket were lost just before: instants at the message's start are unknown."),
            text("content", |m: &Self| content_name(&m.content)).doc(
                "What the first bytes are: `unknown`, `http1_request`, `http1_response`, `http2_preface`, \
                 `tls_handshake` or `tls_application_data`. Always `unknown` for ingress.",
            ),
            opt_text("http_method", |m: &Self| match &m.content {
                Content::Http1Request { method, .. } => Some(method),
                _ => None,
            })
            .doc("Method of an HTTP/1 request."),
            opt_text("http_path", |m: &Self| match &m.content {
                Content::Http1Request { path, .. } => Some(path),
                _ => None,
            })
            .doc("Target of an HTTP/1 request without its query, possibly cut short."),
            opt_u16("http_status", |m: &Self| match m.content {
                Content::Http1Response { status } => Some(status),
                _ => None,
            })
            .doc("Status of an HTTP/1 response."),
            opt_u32("head_end", |m: &Self| m.head_end.map(|s| s.0))
                .delta()
                .doc("TCP sequence number after the head's last byte, where the recogniser saw all of it."),
        ]
    }

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let cookie = view.number::<UInt64Type>("cookie")?;
        let direction = view.text("direction")?;
        let seq_start = view.number::<UInt32Type>("seq_start")?;
        let seq_end = view.number::<UInt32Type>("seq_end")?;
        let sends = view.instants("sends")?;
        let readies = view.instants("readies")?;
        let recvs = view.instants("recvs")?;
        // Captures did not have these from the beginning.
        let held = view.has("held").then(|| view.instants("held")).transpose()?;
        let retransmits = view.has("retransmits").then(|| view.instants("retransmits")).transpose()?;
        let elided = view.number::<UInt32Type>("elided")?;
        let gap_before = view.flag("gap_before")?;
        let content = view.text("content")?;
        let method = view.text("http_method")?;
        let path = view.text("http_path")?;
        let status = view.number::<UInt16Type>("http_status")?;
        let head_end = view.number::<UInt32Type>("head_end")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                socket: SocketCookie(cookie.get(i)?),
                direction: direction.named(i)?,
                seq: SeqRange { start: SeqNo(seq_start.get(i)?), end: SeqNo(seq_end.get(i)?) },
                sends: sends.get(i)?,
                readies: readies.get(i)?,
                recvs: recvs.get(i)?,
                held: held.as_ref().map_or(Ok(Instants::new()), |list| list.get(i))?,
                retransmits: retransmits.as_ref().map_or(Ok(Instants::new()), |list| list.get(i))?,
                elided: elided.get(i)?,
                gap_before: gap_before.get(i)?,
                content: match content.get(i)? {
                    UNKNOWN => Content::Unknown,
                    REQUEST => {
                        Content::Http1Request { method: strings.get(method.get(i)?), path: strings.get(path.get(i)?) }
                    }
                    RESPONSE => Content::Http1Response { status: status.get(i)? },
                    PREFACE => Content::Http2Preface,
                    HANDSHAKE => Content::TlsHandshake,
                    APPLICATION_DATA => Content::TlsApplicationData,
                    _ => return Err(content.bad()),
                },
                head_end: head_end.opt(i).map(SeqNo),
            })
        }))
    }
}

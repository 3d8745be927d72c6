//! `http2_streams`: what each socket sent of each HTTP/2 stream.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, data_runs, flag, opt_flag, opt_named, opt_text, opt_u16, opt_u32, u32, u64};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{Interner, View};
use arrow::datatypes::{UInt16Type, UInt32Type, UInt64Type};
use meshdiff_model::{Http2Fields, Http2Stream, MonotonicNs, RequestId, SeqInstant, SeqNo, SeqRange, SocketCookie};

impl Row for Http2Stream {
    const TABLE: Table = Table::Http2Streams;

    fn columns() -> Vec<Column<Self>> {
        vec![
            u64("cookie", |s: &Self| s.socket.0).doc("The socket that sent it (`sockets.cookie`)."),
            u32("stream", |s: &Self| s.stream)
                .doc("The stream's number. 0 is the connection: from where to where its frames were followed."),
            u32("first_seq", |s: &Self| s.first.seq.0).delta().doc("TCP sequence number of its first byte."),
            u64("first_ns", |s: &Self| s.first.at.0)
                .unit("ns, monotonic")
                .delta()
                .doc("When the send call began that first offered that byte."),
            u32("last_seq", |s: &Self| s.last.seq.0).delta().doc("TCP sequence number after its last byte."),
            u64("last_ns", |s: &Self| s.last.at.0)
                .unit("ns, monotonic")
                .delta()
                .doc("When the send call began that offered the last frame's header."),
            opt_u32("head_start", |s: &Self| s.head.map(|h| h.start.0)).delta().doc(
                "TCP sequence number of the first byte of the request's or response's header block, interim ones left out.",
            ),
            opt_u32("head_end", |s: &Self| s.head.map(|h| h.end.0))
                .delta()
                .doc("TCP sequence number after that header block."),
            opt_u32("end_seq", |s: &Self| s.end.map(|e| e.0))
                .delta()
                .doc("TCP sequence number after the frame that ended the stream in this direction."),
            u32("frames", |s: &Self| s.frames).doc("Frames."),
            u64("data_bytes", |s: &Self| s.data_bytes).unit("bytes").doc("Payload of its DATA frames."),
            data_runs("data", |s: &Self| &s.data).doc(
                "Its DATA frames in order: number of the first byte of the header (`seq`), when its send call began, number after the last byte, payload of all up to there, and how many frames the entry stands for.",
            ),
            u32("interim", |s: &Self| s.interim).doc("Interim responses before the response."),
            opt_u32("reset", |s: &Self| s.reset).doc("Error code of RST_STREAM (of stream 0: of GOAWAY)."),
            opt_named("gap", |s: &Self| s.gap).doc(
                "Why the rest is not known: `still_open`, `events_lost`, `not_seen`, `garbage` or `too_many`; null if it is whole.",
            ),
            flag("from_the_beginning", |s: &Self| s.from_the_beginning)
                .doc("Of stream 0: it was followed since the connection began."),
            opt_text("method", |s: &Self| s.fields.method.as_deref()).doc("`:method`, where it could be decoded."),
            opt_text("path", |s: &Self| s.fields.path.as_deref()).doc("`:path` without its query."),
            opt_u16("status", |s: &Self| s.fields.status).doc("`:status`."),
            opt_flag("grpc", |s: &Self| s.fields.grpc).doc("Whether `content-type` is one of gRPC's."),
            opt_u16("grpc_status", |s: &Self| s.fields.grpc_status).doc("`grpc-status`."),
            opt_text("request_id", |s: &Self| s.fields.request_id.as_ref().map(|r| &*r.0)).doc("`x-request-id`."),
        ]
    }

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let cookie = view.number::<UInt64Type>("cookie")?;
        let stream = view.number::<UInt32Type>("stream")?;
        let first_seq = view.number::<UInt32Type>("first_seq")?;
        let first = view.number::<UInt64Type>("first_ns")?;
        let last_seq = view.number::<UInt32Type>("last_seq")?;
        let last = view.number::<UInt64Type>("last_ns")?;
        let head_start = view.number::<UInt32Type>("head_start")?;
        let head_end = view.number::<UInt32Type>("head_end")?;
        let end = view.number::<UInt32Type>("end_seq")?;
        let frames = view.number::<UInt32Type>("frames")?;
        let data_bytes = view.number::<UInt64Type>("data_bytes")?;
        // Captures did not have this from the beginning.
        let data = view.has("data").then(|| view.data_runs("data")).transpose()?;
        let interim = view.number::<UInt32Type>("interim")?;
        let reset = view.number::<UInt32Type>("reset")?;
        let gap = view.text("gap")?;
        let from_the_beginning = view.flag("from_the_beginning")?;
        let method = view.text("method")?;
        let path = view.text("path")?;
        let status = view.number::<UInt16Type>("status")?;
        let grpc = view.flag("grpc")?;
        let grpc_status = view.number::<UInt16Type>("grpc_status")?;
        let request_id = view.text("request_id")?;
        Ok(decode_rows(view, |i| {
            let instant = |seq: u32, at: u64| SeqInstant { seq: SeqNo(seq), at: MonotonicNs(at) };
            let head = head_start.opt(i).zip(head_end.opt(i));
            Ok(Self {
                socket: SocketCookie(cookie.get(i)?),
                stream: stream.get(i)?,
                first: instant(first_seq.get(i)?, first.get(i)?),
                last: instant(last_seq.get(i)?, last.get(i)?),
                head: head.map(|(start, end)| SeqRange { start: SeqNo(start), end: SeqNo(end) }),
                end: end.opt(i).map(SeqNo),
                frames: frames.get(i)?,
                data_bytes: data_bytes.get(i)?,
                data: data.as_ref().map_or(Ok(Vec::new()), |list| list.get(i))?,
                interim: interim.get(i)?,
                reset: reset.opt(i),
                gap: gap.opt_named(i)?,
                from_the_beginning: from_the_beginning.get(i)?,
                fields: Http2Fields {
                    method: method.opt(i).map(|t| strings.get(t)),
                    path: path.opt(i).map(|t| strings.get(t)),
                    status: status.opt(i),
                    grpc: grpc.opt(i),
                    grpc_status: grpc_status.opt(i),
                    request_id: request_id.opt(i).map(|t| RequestId(t.into())),
                },
            })
        }))
    }
}

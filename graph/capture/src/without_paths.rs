//! A recording that keeps no path.

use crate::error::CaptureError;
use crate::meta::Meta;
use crate::sink::CaptureSink;
use meshdiff_model::{
    Content, HopSide, Http2Stream, LogBatch, LogRow, Message, Place, Process, Proxy, Socket, SocketEvent, SocketMetrics,
};
use std::sync::Arc;

/// Leaves the path out of everything that can carry one, before the sink behind it sees it. Of an HTTP/1 request's head the path is
/// empty then, elsewhere it is absent.
///
/// What the joins do not need paths for is joined as before. Where only the path told two requests apart, they are ambiguous.
pub struct WithoutPaths<S>(pub S);

impl<S: CaptureSink> CaptureSink for WithoutPaths<S> {
    fn write_message(&mut self, mut message: Message) -> Result<(), CaptureError> {
        if let Content::Http1Request { path, .. } = &mut message.content {
            *path = Arc::default();
        }
        self.0.write_message(message)
    }

    fn write_http2(&mut self, mut stream: Http2Stream) -> Result<(), CaptureError> {
        stream.fields.path = None;
        self.0.write_http2(stream)
    }

    fn write_socket(&mut self, socket: Socket) -> Result<(), CaptureError> {
        self.0.write_socket(socket)
    }

    fn write_metrics(&mut self, row: SocketMetrics) -> Result<(), CaptureError> {
        self.0.write_metrics(row)
    }

    fn write_access_log(&mut self, mut entry: HopSide) -> Result<(), CaptureError> {
        entry.path = None;
        self.0.write_access_log(entry)
    }

    fn write_access_logs(&mut self, batch: &LogBatch) -> Result<(), CaptureError> {
        let rows = batch.rows.iter().map(|row| LogRow { path: Place::NONE, ..*row }).collect();
        self.0.write_access_logs(&LogBatch { rows, ..batch.clone() })
    }

    fn write_proxy(&mut self, proxy: Proxy) -> Result<(), CaptureError> {
        self.0.write_proxy(proxy)
    }

    fn write_process(&mut self, process: Process) -> Result<(), CaptureError> {
        self.0.write_process(process)
    }

    fn write_event(&mut self, event: SocketEvent) -> Result<(), CaptureError> {
        self.0.write_event(event)
    }

    fn roll(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        self.0.roll(meta)
    }

    fn roll_soon(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        self.0.roll_soon(meta)
    }

    fn finish(&mut self, meta: Meta) -> Result<Meta, CaptureError> {
        self.0.finish(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capture, CaptureWriter, WriterOptions};
    use meshdiff_model::{
        AccessLogType, Direction, HopProtocol, Http2Fields, Instants, LogBatchBuilder, MonotonicNs, NodeId, SeqInstant,
        SeqNo, SeqRange, SocketCookie, WallTime,
    };

    const SECRET: &str = "/customers/4711";

    fn entry(path: &str) -> HopSide {
        HopSide {
            method: Some("GET".into()),
            path: Some(path.into()),
            ..HopSide::bare(NodeId("sidecar~a".into()), HopProtocol::Http, AccessLogType::DownstreamEnd, WallTime(1))
        }
    }

    fn batch() -> LogBatch {
        // The second one's authority is the first one's path: one text, of which only one use is a path.
        let mut named_alike = entry("/other");
        named_alike.authority = Some(SECRET.into());
        let mut batch = LogBatchBuilder::default();
        batch.push(&entry(SECRET));
        batch.push(&named_alike);
        batch.take()
    }

    const AT: SeqInstant = SeqInstant { seq: SeqNo(1), at: MonotonicNs(7) };

    fn message() -> Message {
        Message {
            socket: SocketCookie(1),
            direction: Direction::Egress,
            seq: SeqRange::of(SeqNo(1), 100),
            sends: vec![AT].into(),
            readies: Instants::new(),
            recvs: Instants::new(),
            held: Instants::new(),
            retransmits: Instants::new(),
            elided: 0,
            gap_before: false,
            content: Content::Http1Request { method: "GET".into(), path: SECRET.into() },
            head_end: None,
        }
    }

    fn stream() -> Http2Stream {
        Http2Stream {
            socket: SocketCookie(1),
            stream: 1,
            first: AT,
            last: AT,
            head: None,
            end: None,
            frames: 1,
            data_bytes: 0,
            data: Vec::new(),
            interim: 0,
            reset: None,
            gap: None,
            from_the_beginning: true,
            fields: Http2Fields { method: Some("PUT".into()), path: Some(SECRET.into()), ..Http2Fields::default() },
        }
    }

    #[test]
    fn no_path_gets_into_the_capture_and_everything_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("capture");
        let options = WriterOptions::default();
        let mut sink = WithoutPaths(CaptureWriter::create(&dir, &Meta::default(), options).expect("a writer"));
        sink.write_message(message()).expect("written");
        sink.write_http2(stream()).expect("written");
        sink.write_access_log(entry(SECRET)).expect("written");
        sink.write_access_logs(&batch()).expect("written");
        sink.finish(Meta::default()).expect("finished");

        let data = Capture::open(&dir).expect("a capture").read().expect("readable");
        assert_eq!(data.messages[0].content, Content::Http1Request { method: "GET".into(), path: "".into() });
        assert_eq!(
            (&data.http2_streams[0].fields.path, data.http2_streams[0].fields.method.as_deref()),
            (&None, Some("PUT"))
        );
        assert_eq!(data.access_logs.len(), 3);
        assert!(data.access_logs.iter().all(|l| l.path.is_none() && l.method.as_deref() == Some("GET")));
        assert_eq!(data.access_logs[2].authority.as_deref(), Some(SECRET), "no path, though it reads like one");
    }
}

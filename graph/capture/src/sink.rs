//! Where a recording goes.

use crate::error::CaptureError;
use crate::meta::Meta;
use meshdiff_model::{HopSide, Http2Stream, LogBatch, Message, Process, Proxy, Socket, SocketEvent, SocketMetrics};

/// Takes what a recording yields. The Parquet folder ([`CaptureWriter`](crate::CaptureWriter)) is one; a database can be
/// another.
///
/// A method that fails has given up the rows that it names, has counted them, and can be called again: the
/// recorder decides whether to go on.
///
/// # Errors
/// All methods fail as the sink's storage does.
#[expect(clippy::missing_errors_doc, reason = "said once for all methods above")]
pub trait CaptureSink: Send {
    /// Adds a message. Messages of one socket and direction must come in stream order.
    fn write_message(&mut self, message: Message) -> Result<(), CaptureError>;
    /// Adds what a socket sent of an HTTP/2 stream.
    fn write_http2(&mut self, stream: Http2Stream) -> Result<(), CaptureError>;
    /// Adds what is known of a socket; supersedes what was written of it before.
    fn write_socket(&mut self, socket: Socket) -> Result<(), CaptureError>;
    /// Adds what a socket did in a window; rows of one socket and window add up.
    fn write_metrics(&mut self, row: SocketMetrics) -> Result<(), CaptureError>;
    /// Adds an access log entry.
    fn write_access_log(&mut self, entry: HopSide) -> Result<(), CaptureError>;
    /// Adds access log entries. The same as adding each of them, and cheaper where a sink has its own way for it.
    fn write_access_logs(&mut self, batch: &LogBatch) -> Result<(), CaptureError> {
        batch.hops().try_for_each(|entry| self.write_access_log(entry))
    }
    /// Adds a proxy; supersedes what was written of the same node id before.
    fn write_proxy(&mut self, proxy: Proxy) -> Result<(), CaptureError>;
    /// Adds a process; supersedes what was written of the same process id before.
    fn write_process(&mut self, process: Process) -> Result<(), CaptureError>;
    /// Adds a single socket event (`--raw`).
    fn write_event(&mut self, event: SocketEvent) -> Result<(), CaptureError>;
    /// Makes everything that was written until now survive a crash, and `meta` with it. Call it about once a second.
    fn roll(&mut self, meta: &Meta) -> Result<(), CaptureError>;
    /// The same without waiting until it would survive: that is so at the latest when the next [`roll`](Self::roll) or
    /// [`finish`](Self::finish) returns. An error can be that of one before.
    fn roll_soon(&mut self, meta: &Meta) -> Result<(), CaptureError> {
        self.roll(meta)
    }
    /// Ends the recording. Returns the meta as it was stored, with the fields that the sink fills in.
    fn finish(&mut self, meta: Meta) -> Result<Meta, CaptureError>;
}

//! What the test keeps of what assembly makes: hundreds of thousands of messages, so only what is judged.

use meshdiff_model::{Content, Direction, Http2Stream, Message, SeqRange, Socket, SocketCookie, SocketMetrics};
use meshdiff_probes::Sink;
use std::collections::HashMap;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request of the connection that its path names.
    Request(usize),
    /// A response.
    Response,
    /// What arrives (payload is read where it is sent), or a part that was cut off by a loss.
    Other,
}

/// A message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) socket: SocketCookie,
    pub(crate) direction: Direction,
    pub(crate) seq: SeqRange,
    pub(crate) kind: Kind,
    pub(crate) gap_before: bool,
}

/// A sink.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) messages: Vec<Note>,
    pub(crate) sockets: HashMap<SocketCookie, Socket>,
}

impl Sink for Notes {
    fn message(&mut self, message: Message) {
        let kind = match &message.content {
            Content::Http1Request { path, .. } => {
                let named = path.strip_prefix('/').and_then(|n| n.parse().ok());
                Kind::Request(named.unwrap_or_else(|| panic!("nobody asked for {path}")))
            }
            Content::Http1Response { status } => {
                assert_eq!(*status, 200, "nobody answered that");
                Kind::Response
            }
            _ => Kind::Other,
        };
        let Message { socket, direction, seq, gap_before, .. } = message;
        self.messages.push(Note { socket, direction, seq, kind, gap_before });
    }

    fn socket(&mut self, socket: Socket) {
        self.sockets.insert(socket.cookie, socket);
    }

    fn metrics(&mut self, _row: SocketMetrics) {}

    fn http2(&mut self, stream: Http2Stream) {
        panic!("nobody speaks HTTP/2 here: {stream:?}");
    }
}

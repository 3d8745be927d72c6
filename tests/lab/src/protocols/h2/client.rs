//! The asking end of the HTTP/2 and gRPC cases.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;

use super::Windows;
use super::message::{Notes, Receiver, grpc_status, large_fields, send_flow, send_message};
use super::tap::{Tap, Tracks};
use crate::hop::{NONCE, REQUEST_ID};
use crate::protocols::ask::{ASK, ATTEMPT, Ask, Flow, Id, Pause};
use crate::protocols::http1::client::{GIVE_UP, To};
use crate::topology::LOADGEN;
use crate::truth::{ExchangeRecord, Leg, Nonce, Protocol, Role, Sockets};

/// One exchange as the client makes it.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Whether it is a gRPC call.
    pub grpc: bool,
    /// The request's messages.
    pub request: Flow,
    /// A wait while reading the response's body; the window stays closed meanwhile.
    pub read_pause: Option<Pause>,
    /// Reset the stream after so many bytes of the response's body.
    pub give_up_after: Option<u64>,
    /// Bytes of header fields in the request's head.
    pub large_head: usize,
    /// The request's id.
    pub id: Id,
    /// What the server is asked.
    pub ask: Ask,
}

impl Exchange {
    /// A GET of that case.
    pub fn get(case: &str) -> Self {
        Self {
            grpc: false,
            request: Flow::default(),
            read_pause: None,
            give_up_after: None,
            large_head: 0,
            id: Id::Own,
            ask: Ask { case: case.to_owned(), response: Flow::of(1, 64), ..Ask::default() },
        }
    }

    /// A POST of that case with that body.
    pub fn post(case: &str, request: Flow) -> Self {
        Self { request, ..Self::get(case) }
    }

    /// A gRPC call of that case with these messages.
    pub fn call(case: &str, request: Flow, response: Flow) -> Self {
        let mut call = Self { grpc: true, ..Self::post(case, request) };
        call.ask.response = response;
        call
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    sender: SendRequest<Bytes>,
    tracks: Arc<Tracks>,
    local: SocketAddr,
    remote: SocketAddr,
    host: String,
}

impl Client {
    /// Dials, and speaks HTTP/2 without asking.
    ///
    /// # Errors
    /// When dialling or the preface fails.
    pub async fn open(to: &To, windows: Windows) -> io::Result<Self> {
        let stream = tokio::time::timeout(GIVE_UP, TcpStream::connect(to.address)).await??;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let tracks = Arc::new(Tracks::client());
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false);
        windows.stream.map(|bytes| builder.initial_window_size(bytes));
        windows.connection.map(|bytes| builder.initial_connection_window_size(bytes));
        let tap = Tap::new(stream, Arc::clone(&tracks));
        let (sender, connection) = builder.handshake(tap).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // A connection's failure is each of its streams' too, and is written down there.
            let _ = connection.await;
        });
        Ok(Self { sender, tracks, local, remote: to.address, host: to.host.clone() })
    }

    /// Makes one exchange; several may be under way at once.
    pub async fn exchange(&self, what: &Exchange) -> ExchangeRecord {
        let nonce = Nonce::new();
        let case = &what.ask.case;
        let protocol = if what.grpc { Protocol::Grpc } else { Protocol::Http2 };
        let sockets = Sockets { local: self.local, remote: self.remote };
        let mut record = ExchangeRecord {
            request_id: what.id.choose(),
            method: if what.grpc || what.request.messages > 0 { "POST" } else { "GET" }.to_owned(),
            // gRPC's paths name a method, not a request.
            path: if what.grpc { format!("/lab.Echo/{case}") } else { what.id.path(case, nonce) },
            ..ExchangeRecord::begin(Role::Client, LOADGEN, (case, nonce), protocol, sockets)
        };
        let mut notes = [Notes::default(), Notes::default()];
        let made = tokio::time::timeout(GIVE_UP, self.make(what, &mut record, &mut notes)).await;
        record.error = match made {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(late) => Some(late.to_string()),
        };
        let [sent, received] = notes;
        if let Some(stream) = record.stream {
            record.request = Leg { stalled_ns: Some(sent.stalled_ns), ..self.tracks.written(stream).leg };
            record.response = self.tracks.read(stream).leg;
        }
        record.waits.extend(sent.waits.into_iter().chain(received.waits));
        record.messages.extend(sent.messages.into_iter().chain(received.messages));
        record.messages.sort_by_key(|message| message.at);
        record
    }

    fn head(&self, what: &Exchange, record: &ExchangeRecord) -> Result<http::Request<()>, http::Error> {
        let mut head = http::Request::builder()
            .method(record.method.as_str())
            .uri(format!("http://{}{}", self.host, record.path))
            .header("user-agent", "meshdiff-lab")
            .header(NONCE, record.nonce.to_string())
            .header(ASK, what.ask.header());
        if let Some(id) = &record.request_id {
            head = head.header(REQUEST_ID, id);
        }
        if what.grpc {
            head = head.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in large_fields(what.large_head) {
            head = head.header(name, value);
        }
        head.body(())
    }

    async fn make(
        &self,
        what: &Exchange,
        record: &mut ExchangeRecord,
        [sent, received]: &mut [Notes; 2],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let head = self.head(what, record)?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(head, what.request.messages == 0)?;
        record.stream = Some(response.stream_id().as_u32());
        if what.ask.ping_pong {
            let response = response.await?;
            record.status = Some(response.status().as_u16());
            let mut receiver = Receiver::new(response.into_body(), what.grpc);
            for n in 0..what.request.messages {
                let last = n + 1 == what.request.messages;
                send_message(&mut body, what.request.bytes, what.grpc, last, sent).await?;
                while received.messages.len() <= n as usize && receiver.receive(what.read_pause, received).await? {}
            }
            while receiver.receive(None, received).await? {}
            record.grpc_status = receiver.trailers().await?.as_ref().and_then(grpc_status);
            return Ok(());
        }
        let sending = send_flow(&mut body, &what.request, what.grpc, true, sent);
        let receiving = async {
            let response = response.await?;
            let status = response.status().as_u16();
            let in_head = grpc_status(response.headers());
            let attempt = response.headers().get(ATTEMPT).and_then(|value| value.to_str().ok()?.parse().ok());
            let mut receiver = Receiver::new(response.into_body(), what.grpc);
            while receiver.receive(what.read_pause, received).await? {
                if what.give_up_after.is_some_and(|most| receiver.bytes >= most) {
                    return Ok((status, in_head, attempt, true));
                }
            }
            let trailers = receiver.trailers().await?;
            Ok::<_, h2::Error>((status, trailers.as_ref().and_then(grpc_status).or(in_head), attempt, false))
        };
        let (sent, answered) = tokio::join!(sending, receiving);
        let (status, grpc_status, attempt, gave_up) = answered?;
        (record.status, record.grpc_status) = (Some(status), grpc_status);
        (record.attempt, record.gave_up) = (attempt, gave_up);
        if gave_up {
            body.send_reset(h2::Reason::CANCEL);
            return Ok(());
        }
        Ok(sent?)
    }
}

//! The answering end of the HTTP/2 and gRPC cases.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use tokio::net::TcpStream;

use super::Windows;
use super::message::{Notes, Receiver, large_fields, send_flow, send_message};
use super::tap::{Tap, Tracks};
use crate::clock::MonotonicNs;
use crate::hop::{NONCE, REQUEST_ID};
use crate::protocols::ask::{ASK, ATTEMPT, ATTEMPT_COUNT, Ask, Failing, Pause};
use crate::protocols::server::Shared;
use crate::truth::{Doing, ExchangeRecord, Leg, Protocol, Role, Sockets};

/// gRPC's status of a server that may answer the next time.
const GRPC_UNAVAILABLE: u16 = 14;

/// How long the end of a response may take to leave.
const LEAVING: Duration = Duration::from_secs(5);

/// Serves on a thread of its own until accepting fails.
///
/// # Errors
/// When the runtime cannot be made, or accepting fails.
pub fn serve(listener: TcpListener, shared: Arc<Shared>, windows: Windows) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                // Sidecars end connections as they like; whoever still waits for an answer notes the failure.
                let _ = connection(shared, stream, peer, windows).await;
            });
        }
    })
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    windows: Windows,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let local = stream.local_addr()?;
    let tracks = Arc::new(Tracks::server());
    let mut builder = h2::server::Builder::new();
    windows.stream.map(|bytes| builder.initial_window_size(bytes));
    windows.connection.map(|bytes| builder.initial_connection_window_size(bytes));
    let mut connection = builder.handshake::<_, Bytes>(Tap::new(stream, Arc::clone(&tracks))).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let (shared, tracks) = (Arc::clone(&shared), Arc::clone(&tracks));
        tokio::spawn(async move { stream_of(&shared, &tracks, request, respond, (local, peer)).await });
    }
    Ok(())
}

async fn stream_of(
    shared: &Shared,
    tracks: &Tracks,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (local, peer): (SocketAddr, SocketAddr),
) {
    let stream = respond.stream_id().as_u32();
    let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let ask = Ask::from_header(field(ASK));
    let grpc = field("content-type").is_some_and(|kind| kind.starts_with("application/grpc"));
    let protocol = if grpc { Protocol::Grpc } else { Protocol::Http2 };
    let nonce = field(NONCE).and_then(|text| text.parse().ok()).unwrap_or_default();
    let sockets = Sockets { local, remote: peer };
    let mut record = ExchangeRecord {
        request_id: field(REQUEST_ID).map(str::to_owned),
        stream: Some(stream),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        attempt: field(ATTEMPT_COUNT).and_then(|text| text.parse().ok()),
        ..ExchangeRecord::begin(Role::Server, &shared.workload, (&ask.case, nonce), protocol, sockets)
    };
    let mut notes = [Notes::default(), Notes::default()];
    let answered = answer(request, &mut respond, &ask, grpc, &mut record, &mut notes).await;
    record.error = answered.err().map(|error| error.to_string());
    // The end of the response was handed over, and leaves with the connection's next write.
    let deadline = MonotonicNs::now().plus(LEAVING);
    while record.error.is_none() && !tracks.written(stream).is_over() && !tracks.read(stream).reset {
        if MonotonicNs::now() >= deadline {
            record.error = Some("the response did not leave".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let [received, sent] = notes;
    record.request = tracks.read(stream).leg;
    record.response = Leg { stalled_ns: Some(sent.stalled_ns), ..tracks.written(stream).leg };
    record.waits.extend(received.waits.into_iter().chain(sent.waits));
    record.messages.extend(received.messages.into_iter().chain(sent.messages));
    record.messages.sort_by_key(|message| message.at);
    shared.log(record);
}

async fn answer(
    request: http::Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    ask: &Ask,
    grpc: bool,
    record: &mut ExchangeRecord,
    [received, sent]: &mut [Notes; 2],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut receiver = Receiver::new(request.into_body(), grpc);
    let fails = ask.failing(record.attempt);
    let failed = fails == Some(Failing::Status);
    let status = if failed && !grpc { 503 } else { ask.status.unwrap_or(200) };
    let grpc_status = if failed { GRPC_UNAVAILABLE } else { ask.grpc_status };
    let think_ns = if let Some(Failing::Slow { ns }) = fails { ns } else { ask.think_ns };
    let trailers_only = grpc && ((ask.response.messages == 0 && !ask.ping_pong) || failed);
    let mut head = http::Response::builder().status(status);
    head = head.header("content-type", if grpc { "application/grpc" } else { "application/octet-stream" });
    for (name, value) in large_fields(ask.large_head) {
        head = head.header(name, value);
    }
    if let Some(attempt) = record.attempt {
        head = head.header(ATTEMPT, attempt);
    }
    if trailers_only {
        head = head.header("grpc-status", grpc_status).header("grpc-message", "asked for");
    }
    let head = head.body(())?;
    if fails == Some(Failing::Close) {
        while receiver.receive(None, received).await? {}
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    record.status = Some(status);
    record.grpc_status = grpc.then_some(grpc_status);
    let mut body = if ask.ping_pong {
        let mut body = respond.send_response(head, false)?;
        let mut answered = 0;
        while receiver.receive(ask.read_pause, received).await? {
            while answered < received.messages.len() {
                if ask.think_ns > 0 {
                    let think = Pause { after: receiver.bytes, ns: ask.think_ns };
                    received.waits.push(think.wait_async(Doing::Thinking).await);
                }
                send_message(&mut body, ask.response.bytes, grpc, false, sent).await?;
                answered += 1;
            }
        }
        body
    } else {
        while receiver.receive(ask.read_pause, received).await? {}
        if think_ns > 0 {
            let think = Pause { after: receiver.bytes, ns: think_ns };
            received.waits.push(think.wait_async(Doing::Thinking).await);
        }
        let empty = trailers_only || (!grpc && ask.response.total() == 0);
        let mut body = respond.send_response(head, empty)?;
        if empty {
            return Ok(());
        }
        send_flow(&mut body, &ask.response, grpc, !grpc, sent).await?;
        body
    };
    if grpc {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from(grpc_status));
        body.send_trailers(trailers)?;
    }
    Ok(())
}

//! The gRPC method, and what happens to a stream: bytes are taken off the wire at once, and decoded in another task.

use crate::decoder::{AlsBatch, Identity, MessageDecoder};
use crate::proto::scan;
use crate::queue::{Budget, Permit};
use crate::settings::AlsSettings;
use crate::stats::{Counters, ShedReason, StreamFailure, Tally};
use bytes::{Buf, Bytes};
use meshdiff_model::{NodeId, Proxy};
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, watch};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError, http};
use tonic::server::{ClientStreamingService, Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};

/// The one method of `envoy.service.accesslog.v3.AccessLogService`.
const STREAM_ACCESS_LOGS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// Messages that a stream may still hand over once the receiver is closing: what had arrived by then, but not a flood.
const MESSAGES_AFTER_CLOSE: usize = 256;

/// Nodes that are remembered; beyond that each new stream announces its own.
const MAX_PROXIES: usize = 1 << 16;

/// Where streams put what they decoded. There only while the receiver serves.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    pub(crate) sink: mpsc::Sender<AlsBatch>,
    /// Never sent on: when the last clone is dropped, no decoder runs any more.
    pub(crate) _alive: mpsc::Sender<Infallible>,
}

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) budget: Arc<Budget>,
    pub(crate) outlet: Mutex<Option<Outlet>>,
    pub(crate) closing: watch::Sender<bool>,
    proxies: Mutex<HashMap<NodeId, Arc<Proxy>>>,
    max_message_bytes: usize,
}

impl Shared {
    pub(crate) fn new(settings: AlsSettings) -> Self {
        Self {
            counters: Counters::default(),
            budget: Budget::new(settings.queue_bytes, settings.queue_entries),
            outlet: Mutex::new(None),
            closing: watch::Sender::new(false),
            proxies: Mutex::new(HashMap::new()),
            max_message_bytes: settings.max_message_bytes,
        }
    }

    pub(crate) fn set_outlet(&self, outlet: Option<Outlet>) {
        *self.outlet.lock().unwrap_or_else(PoisonError::into_inner) = outlet;
    }

    /// Ends the streams: they hand over what has arrived, and their decoders finish what is queued.
    pub(crate) fn close(&self) {
        self.set_outlet(None);
        self.closing.send_replace(true);
    }

    fn outlet(&self) -> Option<Outlet> {
        self.outlet.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True if the proxy is new, or not as it was.
    fn announce(&self, proxy: &Arc<Proxy>) -> bool {
        let mut known = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(&proxy.node).is_some_and(|before| before == proxy) {
            return false;
        }
        if known.len() < MAX_PROXIES || known.contains_key(&proxy.node) {
            known.insert(proxy.node.clone(), Arc::clone(proxy));
        }
        true
    }
}

/// A message that waits to be decoded.
struct Queued {
    message: Bytes,
    entries: usize,
    from: Identity,
    _room: Permit,
}

/// Counts a stream as open for as long as it lives.
struct OpenStream(Arc<Shared>);

impl OpenStream {
    fn new(shared: Arc<Shared>) -> Self {
        shared.counters.streams_opened.fetch_add(1, Relaxed);
        shared.counters.streams_open.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.counters.streams_open.fetch_sub(1, Relaxed);
    }
}

/// Takes messages off one stream until its sender ends it, or the receiver closes. Nothing is answered before.
async fn receive(shared: Arc<Shared>, request: Request<Streaming<Bytes>>) -> Result<Response<()>, Status> {
    let ended = || Status::unavailable("this recording of access logs has ended");
    let Some(outlet) = shared.outlet() else { return Err(ended()) };
    let _open = OpenStream::new(Arc::clone(&shared));
    let mut identity = Identity::unknown(request.remote_addr().map(|peer| peer.ip()));
    let mut stream = request.into_inner();
    let mut closing = shared.closing.subscribe();
    let mut after_close = 0;

    // Not bounded by itself: every message in it holds a permit of the budget that all streams share.
    let (queue, queued) = mpsc::unbounded_channel();
    tokio::spawn(decode(Arc::clone(&shared), outlet, queued));

    loop {
        let message = tokio::select! {
            biased;
            message = stream.message() => message,
            _ = closing.wait_for(|&closing| closing) => return Err(ended()),
        };
        match message {
            Ok(Some(message)) => take(&shared, &mut identity, message, &queue),
            Ok(None) => return Ok(Response::new(())),
            Err(status) => {
                // A connection that a peer drops when the receiver has told it to is no failure.
                if !*closing.borrow() {
                    shared.counters.failed(failure(&status));
                    tracing::debug!(node = %identity.proxy.node, %status, "access log stream broke");
                }
                return Err(status);
            }
        }
        if *closing.borrow() {
            after_close += 1;
            if after_close > MESSAGES_AFTER_CLOSE {
                return Err(ended());
            }
        }
    }
}

/// Counts a message and queues it, or sheds it.
fn take(shared: &Shared, identity: &mut Identity, message: Bytes, queue: &mpsc::UnboundedSender<Queued>) {
    shared.counters.received_message(message.len());
    let mut tally = Tally::default();
    match scan(&message) {
        Ok(found) => {
            let entries = found.http + found.tcp;
            shared.counters.received_entries(found.http, found.tcp);
            // Here and not in the decoder: Envoy says who it is but once, so it must not be shed with its message.
            if let Some(identifier) = found.identifier {
                identity.update(identifier, &mut tally);
            }
            if entries > 0 {
                match shared.budget.acquire(message.len(), entries) {
                    Some(room) => {
                        let queued = Queued { message, entries, from: identity.clone(), _room: room };
                        // The decoder lives for as long as its queue.
                        if queue.send(queued).is_err() {
                            tally.shed[ShedReason::ConsumerGone as usize] += entries as u64;
                        }
                    }
                    None => tally.shed[ShedReason::QueueFull as usize] += entries as u64,
                }
            }
        }
        Err(invalid) => tally.invalid_messages[invalid as usize] += 1,
    }
    shared.counters.add(&tally);
}

/// Decodes the messages of one stream until it has ended and its queue is empty.
async fn decode(shared: Arc<Shared>, outlet: Outlet, mut queue: mpsc::UnboundedReceiver<Queued>) {
    let mut decoder = MessageDecoder::new();
    let mut last: Option<Arc<Proxy>> = None;
    while let Some(Queued { message, entries, from, _room }) = queue.recv().await {
        let mut tally = Tally::default();
        let mut batch = AlsBatch::default();
        if last.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &from.proxy)) {
            batch.proxy = shared.announce(&from.proxy).then(|| Arc::clone(&from.proxy));
            last = Some(Arc::clone(&from.proxy));
        }
        batch.entries = decoder.decode(&message, entries, &from, &mut tally);
        drop(message);
        if !batch.is_empty() && outlet.sink.send(batch).await.is_err() {
            tally.shed[ShedReason::ConsumerGone as usize] += std::mem::take(&mut tally.kept);
        }
        shared.counters.add(&tally);
        // A queue that is never empty must not keep its thread from the other streams.
        tokio::task::consume_budget().await;
    }
}

fn failure(status: &Status) -> StreamFailure {
    // The codes with which `tonic::Streaming` reports its own findings; what the transport says has others.
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => StreamFailure::MessageTooLarge,
        Code::Internal if !is_transport(status) => StreamFailure::Framing,
        _ => StreamFailure::Connection,
    }
}

fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The service, as tonic's router wants it. Written out rather than generated, because the generated one decodes on the
/// stream: there one bad message ends it.
#[derive(Clone, Debug)]
pub(crate) struct AccessLogs {
    shared: Arc<Shared>,
}

impl AccessLogs {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl NamedService for AccessLogs {
    const NAME: &'static str = "envoy.service.accesslog.v3.AccessLogService";
}

impl ClientStreamingService<Bytes> for AccessLogs {
    type Response = ();
    type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(receive(Arc::clone(&self.shared), request))
    }
}

impl<B> Service<http::Request<B>> for AccessLogs
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != STREAM_ACCESS_LOGS {
                return Ok(Status::unimplemented("only StreamAccessLogs of version 3 is served").into_http());
            }
            let limit = service.shared.max_message_bytes;
            let mut grpc = Grpc::new(RawCodec).apply_max_message_size_config(Some(limit), None);
            Ok(grpc.client_streaming(service, request).await)
        })
    }
}

/// Hands messages on as the bytes that they are, sharing the read buffer.
#[derive(Clone, Copy, Debug, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = ();
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = ();
    type Error = Status;

    /// `StreamAccessLogsResponse` has no field.
    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

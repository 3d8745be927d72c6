//! The gRPC method, and what happens to a stream: bytes are taken off the wire at once, and decoded in another task.

use crate::decoder::{AlsBatch, Identity, decode_message};
use crate::frames::{Found, Frames, Messages};
use crate::proto::{EntryDecoder, InvalidMessage, Scan, scan};
use crate::queue::{Assembly, Budget, Permit};
use crate::settings::AlsSettings;
use crate::stats::{Counters, ShedReason, StreamFailure, Tally};
use meshdiff_model::{HopTags, LogBatch, LogKind, LogRow, LogSizes, NodeId, Proxy};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{EncodeBody, EncodeBuf, Encoder, SingleMessageCompressionOverride};
use tonic::codegen::{Body as _, BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TcpConnectInfo;

/// The one method of `envoy.service.accesslog.v3.AccessLogService`.
const STREAM_ACCESS_LOGS: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// Pieces of data that a stream may still hand over once the receiver is closing: what had arrived by then, but not a flood.
const FRAMES_AFTER_CLOSE: usize = 256;

/// Nodes that are remembered; beyond that each new stream announces its own.
const MAX_PROXIES: usize = 1 << 16;

/// Messages that a decoder takes out of its queue at once.
const TAKEN: usize = 64;

/// Entries after which a batch is handed on. A row is about 150 bytes: so many stay in the processor's cache until the next one has taken
/// them, and their memory is given back to be used again rather than to the kernel.
const BATCH: usize = 512;

/// How long a batch waits for more entries: handing on costs as much as decoding several of them, and nobody waits for a single one
/// (Envoy itself flushes once a second).
const LINGER: Duration = Duration::from_millis(20);

/// Where streams put what they received. There only while the receiver serves.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    /// One queue for each decoder. Not bounded by themselves: every message in them holds a permit of the budget that all streams share.
    queues: Arc<[mpsc::UnboundedSender<Queued>]>,
}

impl Outlet {
    /// Starts this many decoders, which hand on what they decode to `sink` and end when the last clone of the outlet is gone. All of them
    /// hold `alive` until then.
    ///
    /// A few for all streams rather than one for each: thousands of streams then share the memory in which repeated strings are kept, and a
    /// batch can hold the entries of several.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        sink: &mpsc::Sender<AlsBatch>,
        decoders: usize,
        alive: &mpsc::Sender<Infallible>,
    ) -> Self {
        let start = |_| {
            let (queue, queued) = mpsc::unbounded_channel();
            let (shared, sink, alive) = (Arc::clone(shared), sink.clone(), alive.clone());
            tokio::spawn(async move {
                decode(shared, sink, queued).await;
                drop(alive);
            });
            queue
        };
        Self { queues: (0..decoders).map(start).collect() }
    }

    /// The queue of a stream: always the same, so that its entries stay in order.
    fn queue(&self, stream: u64) -> mpsc::UnboundedSender<Queued> {
        self.queues[usize::try_from(stream).unwrap_or_default() % self.queues.len()].clone()
    }
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
    pub(crate) assembly: Arc<Assembly>,
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
            assembly: Assembly::new(settings.assembly_bytes),
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

    /// Counts a message that nobody will decode.
    fn skipped(&self, why: InvalidMessage) {
        let mut tally = Tally::default();
        tally.message(why);
        self.counters.add(&tally);
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

/// Messages that wait to be decoded.
#[derive(Debug)]
struct Queued {
    messages: Messages,
    from: Identity,
    room: Permit,
}

/// Counts a stream as open for as long as it lives.
struct OpenStream(Arc<Shared>);

impl OpenStream {
    /// Counts it, and returns its number.
    fn new(shared: Arc<Shared>) -> (Self, u64) {
        let number = shared.counters.streams_opened.fetch_add(1, Relaxed);
        shared.counters.streams_open.fetch_add(1, Relaxed);
        (Self(shared), number)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.counters.streams_open.fetch_sub(1, Relaxed);
    }
}

/// Takes messages off one stream until its sender ends it, or the receiver closes. Nothing is answered before.
async fn receive(shared: Arc<Shared>, peer: Option<IpAddr>, mut body: Body) -> Result<(), Status> {
    let ended = || Status::unavailable("this recording of access logs has ended");
    let Some(outlet) = shared.outlet() else { return Err(ended()) };
    let (_open, number) = OpenStream::new(Arc::clone(&shared));
    let queue = outlet.queue(number);
    drop(outlet);
    let mut identity = Identity::unknown(peer);
    let mut frames = Frames::new(shared.max_message_bytes, Arc::clone(&shared.assembly));
    let mut closing = shared.closing.subscribe();
    let mut after_close = 0;

    loop {
        let frame = tokio::select! {
            biased;
            frame = poll_fn(|cx| pin!(&mut body).poll_frame(cx)) => frame,
            _ = closing.wait_for(|&closing| closing) => return Err(ended()),
        };
        match frame {
            // A frame that is no data holds trailers, which say nothing.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    frames.push(data);
                    while let Some(found) = frames.next() {
                        take(&shared, &mut identity, found, &queue);
                    }
                }
            }
            None => {
                if frames.is_cut() {
                    shared.skipped(InvalidMessage::CutShort);
                }
                return Ok(());
            }
            Some(Err(status)) => {
                // A connection that a peer drops when the receiver has told it to is no failure.
                if !*closing.borrow() {
                    shared.counters.failed(StreamFailure::Connection);
                    if frames.is_cut() {
                        shared.skipped(InvalidMessage::CutShort);
                    }
                    tracing::debug!(node = %identity.proxy.node, %status, "access log stream broke");
                }
                return Err(status);
            }
        }
        if *closing.borrow() {
            after_close += 1;
            if after_close > FRAMES_AFTER_CLOSE {
                return Err(ended());
            }
        }
    }
}

/// Counts messages and queues them, or sheds them.
fn take(shared: &Shared, identity: &mut Identity, found: Found, queue: &mpsc::UnboundedSender<Queued>) {
    let messages = match found {
        Found::Messages(messages) => messages,
        Found::Skipped(why) => return shared.skipped(why),
        Found::NotGrpc => return shared.counters.failed(StreamFailure::Framing),
    };
    // Most say nothing but entries, and go on together.
    let messages = if messages.is_one() {
        messages
    } else {
        match together(shared, identity, messages, queue) {
            Ok(()) => return,
            Err(messages) => messages,
        }
    };
    for message in messages.apart() {
        take_one(shared, identity, message, queue);
    }
}

/// Queues messages that came together; gives them back if they have to be looked at one by one.
fn together(
    shared: &Shared,
    identity: &Identity,
    messages: Messages,
    queue: &mpsc::UnboundedSender<Queued>,
) -> Result<(), Messages> {
    let sums = messages.iter().try_fold((0, 0, 0, 0), |(count, bytes, http, tcp), message| match scan(message) {
        Ok(found @ Scan { identifier: None, .. }) => {
            Some((count + 1, bytes + message.len(), http + found.http, tcp + found.tcp))
        }
        _ => None,
    });
    let Some((count, bytes, http, tcp)) = sums.filter(|(_, _, http, tcp)| http + tcp > 0 && !identity.new) else {
        return Err(messages);
    };
    let Some(room) = shared.budget.acquire(bytes, http + tcp) else { return Err(messages) };
    shared.counters.received_messages(count, bytes);
    shared.counters.received_entries(http, tcp);
    let queued = Queued { messages, from: identity.clone(), room };
    // The decoder lives for as long as its queue.
    if queue.send(queued).is_err() {
        let mut tally = Tally::default();
        tally.shed(ShedReason::ConsumerGone, http + tcp);
        shared.counters.add(&tally);
    }
    Ok(())
}

fn take_one(shared: &Shared, identity: &mut Identity, messages: Messages, queue: &mpsc::UnboundedSender<Queued>) {
    let Some(message) = messages.iter().next() else { return };
    let bytes = message.len();
    shared.counters.received_messages(1, bytes);
    let mut tally = Tally::default();
    match scan(message) {
        Ok(found) => {
            let entries = found.http + found.tcp;
            shared.counters.received_entries(found.http, found.tcp);
            // Here and not in the decoder: Envoy says who it is but once, so it must not be shed with its message.
            if let Some(identifier) = found.identifier {
                identity.update(identifier, &mut tally);
            }
            if entries > 0 {
                match shared.budget.acquire(bytes, entries) {
                    Some(room) => {
                        let queued = Queued { messages, from: identity.clone(), room };
                        // The decoder lives for as long as its queue.
                        if queue.send(queued).is_err() {
                            tally.shed(ShedReason::ConsumerGone, entries);
                        }
                        identity.new = false;
                    }
                    None => tally.shed(ShedReason::QueueFull, entries),
                }
            }
        }
        Err(invalid) => tally.message(invalid),
    }
    shared.counters.add(&tally);
}

/// Decodes what its streams queue, until all of them have ended and the queue is empty.
async fn decode(shared: Arc<Shared>, sink: mpsc::Sender<AlsBatch>, mut queue: mpsc::UnboundedReceiver<Queued>) {
    let mut work = Work { decoder: EntryDecoder::new(), proxy: None, tally: Tally::default(), room: None };
    let mut taken = Vec::with_capacity(TAKEN);
    let mut due = pin!(tokio::time::sleep(LINGER));
    loop {
        let more = if work.is_empty() {
            let more = queue.recv_many(&mut taken, TAKEN).await;
            due.as_mut().reset(Instant::now() + LINGER);
            more
        } else {
            tokio::select! {
                biased;
                more = queue.recv_many(&mut taken, TAKEN) => more,
                () = &mut due => {
                    work.hand_on(&shared, &sink).await;
                    continue;
                }
            }
        };
        if more == 0 {
            break;
        }
        for Queued { messages, from, room } in taken.drain(..) {
            if from.new && shared.announce(&from.proxy) {
                // A batch has room for one proxy.
                if work.proxy.is_some() {
                    work.hand_on(&shared, &sink).await;
                }
                work.proxy = Some(Arc::clone(&from.proxy));
            }
            let Work { decoder, tally, .. } = &mut work;
            decoder.begin(&from.proxy);
            for message in messages.iter() {
                decode_message(message, &from, tally, |kind, bytes, tally| {
                    decoder.decode(kind, bytes, &from.proxy, tally)
                });
            }
            match &mut work.room {
                Some(all) => all.add(room),
                none => *none = Some(room),
            }
            if work.decoder.len() >= BATCH {
                work.hand_on(&shared, &sink).await;
            }
        }
        // A queue that is never empty must not keep its thread from the streams.
        tokio::task::consume_budget().await;
    }
    work.hand_on(&shared, &sink).await;
}

/// What was decoded and is not handed on yet.
struct Work {
    decoder: EntryDecoder,
    proxy: Option<Arc<Proxy>>,
    tally: Tally,
    /// Entries count as waiting until whoever took them is done with them.
    room: Option<Permit>,
}

impl Work {
    /// True if nothing waits to be handed on.
    fn is_empty(&self) -> bool {
        self.proxy.is_none() && self.room.is_none()
    }

    async fn hand_on(&mut self, shared: &Shared, sink: &mpsc::Sender<AlsBatch>) {
        let rows = self.decoder.take();
        let room = self.room.take().map(|mut room| {
            room.resize(bytes_of(&rows));
            Arc::new(room)
        });
        let batch = AlsBatch { proxy: self.proxy.take(), rows, room };
        let mut tally = std::mem::take(&mut self.tally);
        if !batch.is_empty() && sink.send(batch).await.is_err() {
            tally.lose();
        }
        shared.counters.add(&tally);
    }
}

/// What a batch takes in memory, about: what it shares with others counts here as well.
fn bytes_of(batch: &LogBatch) -> usize {
    /// A text or a list with its count of holders.
    const SHARED: usize = 64;
    batch.rows.len() * size_of::<LogRow>()
        + batch.kinds.len() * size_of::<LogKind>()
        + batch.sizes.len() * size_of::<LogSizes>()
        + batch.tags.len() * size_of::<HopTags>()
        + batch.texts.iter().map(|text| text.len() + SHARED).sum::<usize>()
        + (batch.ips.len() + batch.flags.len() + batch.tls.len() + batch.peers.len()) * SHARED
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

impl Service<http::Request<Body>> for AccessLogs {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            if request.uri().path() != STREAM_ACCESS_LOGS {
                return Ok(Status::unimplemented("only StreamAccessLogs of version 3 is served").into_http());
            }
            let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
            let ended = receive(shared, peer.map(|addr| addr.ip()), request.into_body()).await;
            Ok(ended.map_or_else(Status::into_http, |()| answer()))
        })
    }
}

/// The answer to a sender that has ended its stream.
fn answer() -> http::Response<Body> {
    let message = tokio_stream::once(Ok(()));
    let body = EncodeBody::new_server(Empty, message, None, SingleMessageCompressionOverride::default(), None);
    let mut response = http::Response::new(Body::new(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

/// `StreamAccessLogsResponse` has no field.
#[derive(Clone, Copy, Debug)]
struct Empty;

impl Encoder for Empty {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

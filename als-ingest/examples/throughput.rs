//! How many entries a second of CPU take: decoding alone, beside the decoder that builds prost's messages; and through servers over
//! loopback, beside the receiver that tonic and prost generate.
//!
//! ```text
//! cargo run -p meshdiff-als --example throughput -- [SECONDS]
//! cargo run -p meshdiff-als --example throughput -- SECONDS RECEIVER BATCH STREAMS
//! ```
//!
//! The second form runs one receiver alone (`ours`, `ours-columns`, `generated`, `generated-columns`) in a thread of the name `receiver`, for a profiler.
//!
//! What is compared takes turns within one run, in rounds, and the medians of the rounds are compared: what else the machine does meets
//! all of them. Each comparison has a control, the same against itself, which says how far two equal medians lie apart.
//!
//! Four receivers: ours, which hands rows on; ours with what `record` does with them, writing the columns of a capture (Parquet, zstd); the
//! generated one, which decodes each message and drops it; and the generated one with prost's messages turned into the same columns of the
//! same capture. Each has one thread for all of it but the syncing of files; what counts is the CPU time of the process without the sender's thread.

#[path = "../tests/common/raw.rs"]
mod raw;

use bytes::Bytes;
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use meshdiff_als::{AlsServer, AlsSettings, OracleDecoder, StreamDecoder};
use meshdiff_capture::{CaptureSink, CaptureWriter, Meta, WriterOptions};
use nix::time::{ClockId, clock_gettime};
use prost::Message;
use raw::Raw;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// Recorded from a real Envoy: the identifier, then its entries.
const RECORDED: &[u8] = include_bytes!("../tests/fixtures/client-http.bin");

/// Entries in one message, and streams of one connection.
const BATCHES: [usize; 3] = [1, 25, 100];
const STREAMS: [usize; 2] = [1, 64];

/// How long one decoder works before it is the other's turn.
const ROUND: Duration = Duration::from_millis(5);
/// Rounds of each server.
const ROUNDS: u32 = 5;

/// Which receiver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Ours,
    OursToColumns,
    Generated,
    GeneratedToColumns,
}

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).map(|s| s.parse()).transpose()?.unwrap_or(3);
    let time = Duration::from_secs(seconds);
    if let Some(receiver) = std::env::args().nth(2) {
        return alone(&receiver, time);
    }
    for entries in BATCHES {
        compare(&batch(entries)?, entries, time);
    }
    for entries in BATCHES {
        let message = batch(entries)?;
        for streams in STREAMS {
            servers(&message, entries, streams, time / ROUNDS)?;
        }
    }
    Ok(())
}

/// One receiver, for a profiler.
fn alone(receiver: &str, time: Duration) -> anyhow::Result<()> {
    let receiver = match receiver {
        "ours" => Receiver::Ours,
        "ours-columns" => Receiver::OursToColumns,
        "generated" => Receiver::Generated,
        "generated-columns" => Receiver::GeneratedToColumns,
        other => anyhow::bail!("no receiver is called {other:?}"),
    };
    let number = |n, or| std::env::args().nth(n).map_or(Ok(or), |a| a.parse());
    let (entries, streams) = (number(3, 25)?, number(4, 1)?);
    let (ns, shed) = serve(receiver, &batch(entries)?, entries, streams, time)?;
    println!("{entries} a message, {streams} streams: {ns:.0} ns of CPU an entry, {shed} shed");
    Ok(())
}

/// Lets the receivers take turns, and prints the medians of what an entry cost them.
fn servers(message: &Bytes, entries: usize, streams: usize, round: Duration) -> anyhow::Result<()> {
    const TURNS: [Receiver; 5] = [
        Receiver::Ours,
        Receiver::Generated,
        Receiver::OursToColumns,
        Receiver::GeneratedToColumns,
        Receiver::OursToColumns,
    ];
    let mut costs = [const { Vec::new() }; TURNS.len()];
    let mut shed = 0;
    for _ in 0..ROUNDS {
        for (cost, receiver) in costs.iter_mut().zip(TURNS) {
            let (ns, lost) = serve(receiver, message, entries, streams, round)?;
            cost.push(ns);
            shed += lost;
        }
    }
    let [ours, generated, columns, generated_columns, again] = costs.map(median);
    println!(
        "{entries} a message, {streams} streams, ns of CPU an entry: ours {ours:.0}, with columns {columns:.0} ({:.2} M/s); generated \
         {generated:.0}, with columns {generated_columns:.0}. Ours with columns is {:.2} times as fast as the generated one that stores nothing, \
         {:.2} times as fast as the one with columns; ours without, {:.2} times; against itself {:.2}; {shed} shed",
        1e3 / columns,
        generated / columns,
        generated_columns / columns,
        generated / ours,
        again / columns,
    );
    Ok(())
}

/// Nanoseconds of CPU that an entry took a receiver with a thread of its own, and the entries that it shed.
fn serve(
    receiver: Receiver,
    message: &Bytes,
    entries: usize,
    streams: usize,
    time: Duration,
) -> anyhow::Result<(f64, u64)> {
    let (listening, bound) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("receiver".to_owned());
    let before = cpu_time()?;
    let serving = thread.spawn(move || -> anyhow::Result<(u64, u64)> {
        one_thread()?.block_on(async move {
            match receiver {
                Receiver::Generated | Receiver::GeneratedToColumns => {
                    let columns = receiver == Receiver::GeneratedToColumns;
                    Ok((generated(listening, stopped, entries as u64, columns).await?, 0))
                }
                Receiver::Ours | Receiver::OursToColumns => {
                    ours(listening, stopped, receiver == Receiver::OursToColumns).await
                }
            }
        })
    })?;
    let uri = format!("http://{}", bound.recv()?);
    one_thread()?.block_on(send(uri, message.clone(), streams, time))?;
    drop(stop);
    let (taken, shed) = serving.join().expect("the server does not panic")?;
    let cpu = cpu_time()? - before;
    Ok((cpu.as_nanos() as f64 / taken as f64, shed))
}

async fn ours(
    listening: std::sync::mpsc::Sender<SocketAddr>,
    stopped: oneshot::Receiver<()>,
    columns: bool,
) -> anyhow::Result<(u64, u64)> {
    let server = AlsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), AlsSettings::default())?;
    let handle = server.handle();
    listening.send(handle.local_addr())?;
    let (sink, mut batches) = mpsc::channel(64);
    let receiver = tokio::spawn(server.serve(sink));
    let mut store = if columns { Some(Store::new()?) } else { None };
    let taking = async {
        while let Some(batch) = batches.recv().await {
            if let Some(store) = &mut store {
                store.writer.write_access_logs(&batch.rows)?;
            }
        }
        store.map_or(Ok(()), Store::finish)
    };
    let stopping = async {
        drop(stopped.await);
        handle.stop(Duration::ZERO).await
    };
    let (taken, stats) = tokio::join!(taking, stopping);
    taken?;
    receiver.await??;
    Ok((stats.kept, stats.shed.values().sum()))
}

/// A capture that is written and thrown away.
struct Store {
    writer: CaptureWriter,
    _folder: tempfile::TempDir,
}

impl Store {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let writer = CaptureWriter::create(folder.path().join("capture"), &Meta::default(), WriterOptions::default())?;
        Ok(Self { writer, _folder: folder })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.writer.finish(Meta::default())?;
        Ok(())
    }
}

/// What tonic and prost make of the service's definition.
struct Counting {
    messages: Arc<AtomicU64>,
    store: Option<Arc<Mutex<Store>>>,
}

#[tonic::async_trait]
impl AccessLogService for Counting {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut stream = request.into_inner();
        let mut decoder = OracleDecoder::new(None);
        while let Some(message) = stream.message().await? {
            if message.identifier.is_none() {
                self.messages.fetch_add(1, Relaxed);
            }
            let Some(store) = &self.store else {
                drop(std::hint::black_box(message));
                continue;
            };
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            for hop in decoder.convert(message) {
                store.writer.write_access_log(hop).map_err(|e| Status::internal(e.to_string()))?;
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

async fn generated(
    listening: std::sync::mpsc::Sender<SocketAddr>,
    stopped: oneshot::Receiver<()>,
    entries: u64,
    columns: bool,
) -> anyhow::Result<u64> {
    let store = if columns { Some(Arc::new(Mutex::new(Store::new()?))) } else { None };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    listening.send(listener.local_addr()?)?;
    let messages = Arc::new(AtomicU64::new(0));
    let service = AccessLogServiceServer::new(Counting { messages: Arc::clone(&messages), store: store.clone() });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    // The same windows as ours.
    Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(64 << 10)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move { drop(stopped.await) })
        .await?;
    if let Some(store) = store.and_then(Arc::into_inner) {
        store.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
    }
    Ok(messages.load(Relaxed) * entries)
}

fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// CPU time of the process without that of the calling thread, which is the one that sends.
fn cpu_time() -> anyhow::Result<Duration> {
    // In this order: what the process took includes all that its thread had taken before.
    let [own, all] = [ClockId::CLOCK_THREAD_CPUTIME_ID, ClockId::CLOCK_PROCESS_CPUTIME_ID].map(clock_gettime);
    Ok(Duration::from(all?).saturating_sub(Duration::from(own?)))
}

/// Decodes messages of one size in both ways by turns, and prints the medians.
fn compare(message: &[u8], entries: usize, time: Duration) {
    let (mut new, mut again, mut prost) =
        (StreamDecoder::new(None), StreamDecoder::new(None), OracleDecoder::new(None));
    let (mut new_ns, mut again_ns, mut prost_ns) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < time {
        new_ns.push(round(|| new.decode(std::hint::black_box(message)).rows.len()));
        prost_ns.push(round(|| prost.decode(std::hint::black_box(message)).1.len()));
        again_ns.push(round(|| again.decode(std::hint::black_box(message)).rows.len()));
    }
    let (rounds, new, again, prost) = (new_ns.len(), median(new_ns), median(again_ns), median(prost_ns));
    println!(
        "decoding, {entries} a message: {:.0} ns an entry ({:.2} M/s), through prost {:.0} ns ({:.2} M/s): {:.2} times as fast; against itself {:.2}; {rounds} rounds",
        new,
        1e3 / new,
        prost,
        1e3 / prost,
        prost / new,
        again / new,
    );
}

/// Nanoseconds that an entry took in one round of a decoder, which returns how many it decoded.
fn round(mut decode: impl FnMut() -> usize) -> f64 {
    let (start, mut entries) = (Instant::now(), 0);
    loop {
        for _ in 0..16 {
            entries += decode();
        }
        let elapsed = start.elapsed();
        if elapsed >= ROUND {
            return elapsed.as_nanos() as f64 / entries as f64;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A message of this many entries, and no identifier.
fn batch(entries: usize) -> anyhow::Result<Bytes> {
    with_entries(|recorded| recorded.into_iter().cycle().take(entries).collect())
}

fn with_entries(choose: impl FnOnce(Vec<HttpAccessLogEntry>) -> Vec<HttpAccessLogEntry>) -> anyhow::Result<Bytes> {
    let mut message = StreamAccessLogsMessage::decode(RECORDED)?;
    message.identifier = None;
    if let Some(LogEntries::HttpLogs(logs)) = &mut message.log_entries {
        logs.log_entry = choose(std::mem::take(&mut logs.log_entry));
    }
    Ok(message.encode_to_vec().into())
}

async fn send(uri: String, message: Bytes, streams: usize, time: Duration) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(uri)?.connect().await?;
    let mut open = Vec::new();
    for _ in 0..streams {
        let (messages, outgoing) = mpsc::channel(4);
        let mut client = tonic::client::Grpc::new(channel.clone());
        let answer = tokio::spawn(async move {
            client.ready().await?;
            let path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs".parse()?;
            client.client_streaming(Request::new(ReceiverStream::new(outgoing)), path, Raw).await?;
            anyhow::Ok(())
        });
        let message = message.clone();
        let sending = tokio::spawn(async move {
            messages.send(Bytes::from_static(RECORDED)).await?;
            let start = Instant::now();
            while start.elapsed() < time {
                messages.send(message.clone()).await?;
            }
            anyhow::Ok(())
        });
        open.push((sending, answer));
    }
    for (sending, answer) in open {
        sending.await??;
        answer.await??;
    }
    Ok(())
}

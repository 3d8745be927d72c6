//! How many entries a second one core takes: decoding alone, beside the decoder that builds prost's messages, and through the
//! server over loopback.
//!
//! ```text
//! cargo run -p meshdiff-als --example throughput -- [SECONDS]
//! ```
//!
//! The two decoders take turns within one run, in rounds of a few milliseconds, and the medians of their rounds are
//! compared: what else the machine does meets both. The second line of each size is the same decoder against itself, which
//! says how far two equal medians lie apart.

use bytes::{BufMut, Bytes};
use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use meshdiff_als::{AlsServer, AlsSettings, StreamDecoder};
use prost::Message;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, transport::Endpoint};

/// Recorded from a real Envoy: the identifier, then eight entries.
const RECORDED: &[u8] = include_bytes!("../tests/fixtures/client-http.bin");

/// The size at which Envoy flushes.
const FLUSH_BYTES: usize = 16 << 10;

const STREAMS: usize = 4;

/// Entries in one message.
const BATCHES: [usize; 3] = [1, 25, 100];

/// How long one decoder works before it is the other's turn.
const ROUND: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).map(|s| s.parse()).transpose()?.unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let message = typical_message()?;
    let entries = StreamDecoder::new(None).decode(&message).entries.len();
    println!("{} bytes and {entries} entries a message, {} bytes an entry", message.len(), message.len() / entries);

    for entries in BATCHES {
        compare(&batch(entries)?, entries, time);
    }

    // The server has one thread of its own, and so has the client.
    let server = AlsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), AlsSettings::default())?;
    let handle = server.handle();
    let (uri, stats) = (format!("http://{}", handle.local_addr()), handle.clone());
    let client = std::thread::spawn(move || one_thread()?.block_on(send(uri, message, time)));
    let serving = std::thread::spawn(move || -> anyhow::Result<Duration> {
        one_thread()?.block_on(async move {
            let (sink, mut batches) = mpsc::channel(64);
            let receiver = tokio::spawn(server.serve(sink));
            while batches.recv().await.is_some() {}
            receiver.await??;
            thread_cpu_time()
        })
    });
    let start = Instant::now();
    client.join().expect("the client does not panic")?;
    let elapsed = start.elapsed();
    one_thread()?.block_on(handle.stop(Duration::ZERO));
    let cpu = serving.join().expect("the server does not panic")?;
    let stats = stats.stats();
    println!(
        "through the server: {:.0} entries/s of wall time, {:.0} a second of the server's CPU; shed {:?}",
        stats.kept as f64 / elapsed.as_secs_f64(),
        stats.kept as f64 / cpu.as_secs_f64(),
        stats.shed
    );
    Ok(())
}

fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// CPU time of the calling thread (`/proc/thread-self/schedstat`, its first number, in ns).
fn thread_cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = stat.split_whitespace().next().ok_or_else(|| anyhow::anyhow!("schedstat is empty"))?;
    Ok(Duration::from_nanos(ns.parse()?))
}

/// Decodes messages of one size in both ways by turns, and prints the medians.
fn compare(message: &[u8], entries: usize, time: Duration) {
    let (mut new, mut again, mut prost) =
        (StreamDecoder::new(None), StreamDecoder::new(None), StreamDecoder::oracle(None));
    let (mut new_ns, mut again_ns, mut prost_ns) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < time {
        new_ns.push(round(&mut new, message));
        prost_ns.push(round(&mut prost, message));
        again_ns.push(round(&mut again, message));
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

/// Nanoseconds that an entry took in one round.
fn round(decoder: &mut StreamDecoder, message: &[u8]) -> f64 {
    let (start, mut entries) = (Instant::now(), 0);
    loop {
        for _ in 0..16 {
            entries += std::hint::black_box(decoder.decode(std::hint::black_box(message))).entries.len();
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

/// The recorded entries without the identifier, as often as fit a flush.
fn typical_message() -> anyhow::Result<Bytes> {
    with_entries(|recorded| {
        let mut bytes = 0;
        let fits = |e: &HttpAccessLogEntry| {
            bytes += e.encoded_len();
            bytes < FLUSH_BYTES
        };
        recorded.into_iter().cycle().take_while(fits).collect()
    })
}

fn with_entries(choose: impl FnOnce(Vec<HttpAccessLogEntry>) -> Vec<HttpAccessLogEntry>) -> anyhow::Result<Bytes> {
    let mut message = StreamAccessLogsMessage::decode(RECORDED)?;
    message.identifier = None;
    if let Some(LogEntries::HttpLogs(logs)) = &mut message.log_entries {
        logs.log_entry = choose(std::mem::take(&mut logs.log_entry));
    }
    Ok(message.encode_to_vec().into())
}

async fn send(uri: String, message: Bytes, time: Duration) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(uri)?.connect().await?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
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
        streams.push((sending, answer));
    }
    for (sending, answer) in streams {
        sending.await??;
        answer.await??;
    }
    Ok(())
}

/// Sends bytes as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;
    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}

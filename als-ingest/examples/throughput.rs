//! How many entries a second one core takes: decoding alone, and through the server over loopback. Prints both.
//!
//! ```text
//! cargo run -p meshdiff-als --example throughput -- [SECONDS]
//! ```

use bytes::{BufMut, Bytes};
use meshdiff_als::{AlsServer, AlsSettings, StreamDecoder};
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

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().nth(1).map(|s| s.parse()).transpose()?.unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let message = typical_message()?;
    let entries = StreamDecoder::new(None).decode(&message).entries.len();
    println!("{} bytes and {entries} entries a message, {} bytes an entry", message.len(), message.len() / entries);

    let mut decoder = StreamDecoder::new(None);
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < time {
        n += decoder.decode(&message).entries.len();
    }
    println!("decoding alone: {:.0} entries/s", n as f64 / start.elapsed().as_secs_f64());

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

/// The recorded entries without the identifier, as often as fit a flush.
fn typical_message() -> anyhow::Result<Bytes> {
    use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
    use prost::Message;
    let mut message = StreamAccessLogsMessage::decode(RECORDED)?;
    message.identifier = None;
    if let Some(LogEntries::HttpLogs(logs)) = &mut message.log_entries {
        let recorded = std::mem::take(&mut logs.log_entry);
        let mut bytes = 0;
        for entry in recorded.into_iter().cycle().take_while(|e| {
            bytes += e.encoded_len();
            bytes < FLUSH_BYTES
        }) {
            logs.log_entry.push(entry);
        }
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

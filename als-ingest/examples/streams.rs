//! Many streams at once, from another process: whether entries are lost, and how much memory the receiver takes.
//!
//! ```text
//! cargo run -p meshdiff-als --example streams -- [STREAMS [SECONDS]]
//! ```
//!
//! Each stream sends 25 entries every quarter of a second. Both processes share the machine: what the client cannot send is not counted
//! as lost, but shown as missing from the rate that was asked for.

use bytes::{BufMut, Bytes};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use meshdiff_als::{AlsServer, AlsSettings};
use prost::Message;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, transport::Endpoint};

const RECORDED: &[u8] = include_bytes!("../tests/fixtures/client-http.bin");
const PER_BATCH: usize = 25;
const EVERY: Duration = Duration::from_millis(250);
/// An Envoy has a stream for each worker, logger and kind of entry.
const STREAMS_PER_CONNECTION: usize = 10;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default| args.get(n).map_or(Ok(default), |a| a.parse::<usize>());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if let [mode, uri, streams, seconds] = &args[..]
        && mode == "client"
    {
        let sent = runtime.block_on(send(uri, streams.parse()?, Duration::from_secs(seconds.parse()?)))?;
        println!("{sent}");
        return Ok(());
    }
    let (streams, seconds) = (number(0, 5_000)?, number(1, 10)?);
    runtime.block_on(receive(streams, seconds))
}

async fn receive(streams: usize, seconds: usize) -> anyhow::Result<()> {
    let server = AlsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), AlsSettings::default())?;
    let handle = server.handle();
    let (sink, mut batches) = mpsc::channel(64);
    let serving = tokio::spawn(server.serve(sink));
    let taking = tokio::spawn(async move { while batches.recv().await.is_some() {} });
    let client = Command::new(std::env::current_exe()?)
        .args(["client", &format!("http://{}", handle.local_addr()), &streams.to_string(), &seconds.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let start = Instant::now();
    let output = tokio::task::spawn_blocking(move || client.wait_with_output()).await??;
    let elapsed = start.elapsed();
    let stats = handle.stop(Duration::from_secs(2)).await;
    serving.await??;
    taking.await?;
    let sent: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or(" unknown").trim();
    println!(
        "{} streams, {sent} entries sent in {:.1} s ({:.0} of {} a second), {} kept, {} shed, {} of messages skipped; peak memory {peak}",
        stats.streams_opened,
        elapsed.as_secs_f64(),
        sent as f64 / seconds as f64,
        streams * PER_BATCH * 4,
        stats.kept,
        stats.shed.values().sum::<u64>(),
        stats.malformed_messages.values().sum::<u64>(),
    );
    anyhow::ensure!(stats.kept == sent, "entries were lost: {stats:?}");
    Ok(())
}

async fn send(uri: &str, streams: usize, time: Duration) -> anyhow::Result<u64> {
    let mut message = StreamAccessLogsMessage::decode(RECORDED)?;
    let identifier = message.identifier.take();
    if let Some(LogEntries::HttpLogs(logs)) = &mut message.log_entries {
        logs.log_entry = std::mem::take(&mut logs.log_entry).into_iter().cycle().take(PER_BATCH).collect();
    }
    let batch: Bytes = message.encode_to_vec().into();
    let first: Bytes = StreamAccessLogsMessage { identifier, log_entries: None }.encode_to_vec().into();
    let mut open = Vec::new();
    let mut channel = None;
    for n in 0..streams {
        if n % STREAMS_PER_CONNECTION == 0 {
            channel = Some(Endpoint::from_shared(uri.to_owned())?.connect().await?);
        }
        let Some(channel) = channel.clone() else { break };
        let (messages, outgoing) = mpsc::unbounded_channel();
        messages.send(first.clone())?;
        let answer = tokio::spawn(async move {
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await?;
            let path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs".parse()?;
            client.client_streaming(Request::new(UnboundedReceiverStream::new(outgoing)), path, Raw).await?;
            anyhow::Ok(())
        });
        open.push((messages, answer));
    }
    let mut ticks = tokio::time::interval(EVERY);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        ticks.tick().await;
        for (n, (messages, _)) in open.iter().enumerate() {
            messages.send(batch.clone())?;
            sent += PER_BATCH as u64;
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    for (messages, answer) in open {
        drop(messages);
        answer.await??;
    }
    Ok(sent)
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

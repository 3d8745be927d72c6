//! Many streams at once, from another process, into a capture: whether entries are lost, and how much memory and CPU the receiver takes.
//!
//! ```text
//! cargo run -p meshdiff-als --example streams -- [STREAMS [SECONDS]]
//! ```
//!
//! Each stream sends 25 entries every quarter of a second. The entries are decoded and their columns are written, as `meshdiff record` does. Both
//! processes share the machine, so the client is as cheap as it can be: it writes HTTP/2 frames that were made before, and reads nothing.
//! What it cannot send is not counted as lost, but shown as missing from the rate that was asked for.

use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use meshdiff_als::{AlsServer, AlsSettings};
use meshdiff_capture::{CaptureSink, CaptureWriter, Meta, WriterOptions};
use prost::Message;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const RECORDED: &[u8] = include_bytes!("../tests/fixtures/client-http.bin");
const PER_BATCH: usize = 25;
const EVERY: Duration = Duration::from_millis(250);
/// An Envoy has a stream for each worker, logger and kind of entry.
const STREAMS_PER_CONNECTION: u32 = 10;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default| args.get(n).map_or(Ok(default), |a| a.parse::<u32>());
    if let [mode, addr, streams, seconds] = &args[..]
        && mode == "client"
    {
        let sent = send(addr.parse()?, streams.parse()?, Duration::from_secs(seconds.parse()?))?;
        println!("{sent} {}", cpu_seconds()?);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(receive(number(0, 5_000)?, number(1, 10)?))
}

async fn receive(streams: u32, seconds: u32) -> anyhow::Result<()> {
    let server = AlsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), AlsSettings::default())?;
    let handle = server.handle();
    let (sink, mut batches) = mpsc::channel(64);
    let serving = tokio::spawn(server.serve(sink));
    let storing = std::thread::spawn(move || {
        let folder = tempfile::tempdir()?;
        let meta = Meta::default();
        let mut writer = CaptureWriter::create(folder.path().join("capture"), &meta, WriterOptions::default())?;
        let mut last_roll = Instant::now();
        while let Some(batch) = batches.blocking_recv() {
            writer.write_access_logs(&batch.rows)?;
            if last_roll.elapsed() > Duration::from_secs(1) {
                writer.roll(&meta)?;
                last_roll = Instant::now();
            }
        }
        let stored = writer.finish(meta)?;
        anyhow::Ok(
            stored
                .tables
                .into_values()
                .map(|table| (table.rows, table.bytes))
                .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        )
    });
    let client = Command::new(std::env::current_exe()?)
        .args(["client", &handle.local_addr().to_string(), &streams.to_string(), &seconds.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let start = Instant::now();
    let output = tokio::task::spawn_blocking(move || client.wait_with_output()).await??;
    let elapsed = start.elapsed();
    let stats = handle.stop(Duration::from_secs(2)).await;
    serving.await??;
    let (rows, bytes) =
        tokio::task::spawn_blocking(move || storing.join()).await?.expect("the writer does not panic")?;
    let said = String::from_utf8(output.stdout)?;
    let (sent, client_cpu) = said.trim().split_once(' ').ok_or_else(|| anyhow::anyhow!("the client failed"))?;
    let sent: u64 = sent.parse()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or(" unknown").trim();
    println!(
        "{} streams, {sent} entries sent in {:.1} s ({:.0} of {} a second), {} kept, {rows} rows in {bytes} bytes, {} shed, {} of messages skipped, {} streams \
         broke; CPU {:.1} s, the client's {client_cpu} s; peak memory {peak}",
        stats.streams_opened,
        elapsed.as_secs_f64(),
        sent as f64 / f64::from(seconds),
        streams * PER_BATCH as u32 * 4,
        stats.kept,
        stats.shed.values().sum::<u64>(),
        stats.malformed_messages.values().sum::<u64>(),
        stats.streams_failed.values().sum::<u64>(),
        cpu_seconds()?,
    );
    anyhow::ensure!(stats.kept == sent && rows == sent, "entries were lost: {stats:?}");
    Ok(())
}

/// CPU time that this process took until now, in seconds.
fn cpu_seconds() -> anyhow::Result<f64> {
    /// `USER_HZ`, the same on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // What comes after the name in brackets begins with the third field; user and system time are the 14th and the 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields.iter().skip(11).take(2).map(|f| f.parse::<f64>()).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS)
}

/// Sends on time, as far as the server lets it. Windows are not minded: what is on its way stays far below them while the server reads.
fn send(addr: SocketAddr, streams: u32, time: Duration) -> anyhow::Result<u64> {
    let mut message = StreamAccessLogsMessage::decode(RECORDED)?;
    let identifier = message.identifier.take();
    if let Some(LogEntries::HttpLogs(logs)) = &mut message.log_entries {
        logs.log_entry = std::mem::take(&mut logs.log_entry).into_iter().cycle().take(PER_BATCH).collect();
    }
    let first = StreamAccessLogsMessage { identifier, log_entries: None };
    let ids: Vec<u32> = (0..STREAMS_PER_CONNECTION).map(|n| 2 * n + 1).collect();
    let each =
        |payload: &[u8], kind, flags| ids.iter().flat_map(|id| frame(kind, flags, *id, payload)).collect::<Vec<u8>>();
    let data = |message: &StreamAccessLogsMessage| each(&framed(&message.encode_to_vec()), 0, 0);
    let (first, batch, end) = (data(&first), data(&message), each(&[], 0, 1));

    let mut open = Vec::new();
    for _ in 0..streams / STREAMS_PER_CONNECTION {
        let mut tcp = TcpStream::connect(addr)?;
        tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        // Our settings are the defaults; the server's, with the windows that it gives, hold once they are acknowledged.
        tcp.write_all(&frame(4, 0, 0, &[]))?;
        let mut head = [0; 9];
        tcp.read_exact(&mut head)?;
        anyhow::ensure!(head[3] == 4, "its settings come first");
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        std::io::copy(&mut (&mut tcp).take(len.into()), &mut std::io::sink())?;
        tcp.write_all(&frame(4, 1, 0, &[]))?;
        tcp.write_all(&each(&headers(), 1, 4))?;
        tcp.write_all(&first)?;
        open.push(tcp);
    }
    let (start, mut sent, mut next) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < time {
        std::thread::sleep(next.saturating_sub(start.elapsed()));
        next += EVERY;
        for (n, tcp) in open.iter_mut().enumerate() {
            // Spread over the quarter of a second, as thousands of Envoys are.
            if n % 16 == 0 {
                let due = next - EVERY + EVERY * u32::try_from(n)? / (streams / STREAMS_PER_CONNECTION);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
            tcp.write_all(&batch)?;
            sent += PER_BATCH as u64 * u64::from(STREAMS_PER_CONNECTION);
        }
    }
    for tcp in &mut open {
        tcp.write_all(&end)?;
    }
    // The server answers each call when it has read all of it.
    for tcp in &mut open {
        let mut answered = 0;
        while answered < STREAMS_PER_CONNECTION {
            let mut head = [0; 9];
            tcp.read_exact(&mut head)?;
            let [a, b, c, kind, flags, ..] = head;
            std::io::copy(&mut tcp.take(u32::from_be_bytes([0, a, b, c]).into()), &mut std::io::sink())?;
            // Trailers: HEADERS with END_STREAM.
            answered += u32::from(kind == 1 && flags & 1 == 1);
        }
    }
    Ok(sent)
}

/// The head of a call, as literal fields without indexing and without Huffman coding (RFC 7541, 6.2.2).
fn headers() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"),
        (":authority", "als"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).expect("below 127")][..], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A gRPC message with what stands before it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).expect("small").to_be_bytes(), message].concat()
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

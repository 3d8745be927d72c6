//! Many streams, slow ones, stalled ones and huge ones: all are read, none is ended, and what is kept meanwhile is bounded.

#[expect(dead_code, reason = "each test crate uses a part of it")]
mod common;

use common::{DEADLINE, NODE, Stream, bytes, connect, http, identifier, numbered, start};
use envoy_types::pb::envoy::config::core::v3::Extension;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use meshdiff_als::AlsSettings;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Both ends of all streams live in this process, so the bound is on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_for_some_seconds_lose_nothing() {
    const STREAMS: usize = 1_000;
    const CONNECTIONS: usize = 50;
    /// Each stream sends this many batches of 25, one about every 250 ms: 100 entries a second.
    const BATCHES: usize = 8;
    const PER_BATCH: usize = 25;

    let mut server = start(AlsSettings::default(), 64);
    let before = resident();
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(connect(&server.handle).await);
    }
    let streams: Vec<Stream> = (0..STREAMS).map(|n| Stream::open(&channels[n % CONNECTIONS])).collect();
    let sending = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        let rest = bytes(&http(None, numbered("x", PER_BATCH)));
        for batch in 0..BATCHES {
            ticks.tick().await;
            for (n, stream) in streams.iter().enumerate() {
                if batch == 0 {
                    let node = format!("sidecar~10.77.{}.{}~pod-{n}.default~x", n / 250, n % 250);
                    stream.send(bytes(&http(Some(&node), numbered("x", PER_BATCH))));
                } else {
                    stream.send(rest.clone());
                }
            }
        }
        streams
    });
    let (proxies, hops) = server.receive(STREAMS * BATCHES * PER_BATCH).await;
    let grown = resident().saturating_sub(before);
    let streams = sending.await.expect("no panic");
    assert_eq!((proxies.len(), hops.len()), (STREAMS, STREAMS * BATCHES * PER_BATCH));
    assert!(streams.iter().all(|s| !s.answer.is_finished()), "no stream was ended");
    let stats = server.handle.stats();
    assert_eq!((stats.streams_open, stats.shed.len(), stats.streams_failed.len()), (STREAMS as u64, 0, 0), "{stats:?}");
    // The test itself holds 200,000 hops, which are most of it.
    let held = hops.len() as u64 * 1_200;
    assert!(grown < held + (256 << 20), "{} MiB", grown >> 20);
}

/// Heads and halves of messages, and then silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_stall_in_the_middle_hold_up_nobody_and_bounded_memory() {
    const STALLED: usize = 64;
    /// With the message behind it, below the 1 MiB that a stream's window is at first: `RawStream` minds no window.
    const CLAIMED: usize = 900_000;
    let settings = AlsSettings { assembly_bytes: 8 << 20, ..AlsSettings::default() };
    let mut server = start(settings, 16);
    let channel = connect(&server.handle).await;
    let mut raw = Vec::new();
    for _ in 0..STALLED {
        raw.push(RawStream::open(server.handle.local_addr()).await);
    }
    // Each sends 300 kB of what it claims: more than the room for all of them.
    for stream in &mut raw {
        stream.data(&grpc_head(CLAIMED)).await;
        for _ in 0..30 {
            stream.data(&[0x0a; 10_000]).await;
        }
    }
    let stats = server.wait_for("some find no room", |s| s.malformed_messages.contains_key("no_room")).await;
    assert!(stats.assembling_bytes <= 8 << 20, "{stats:?}");
    // Everybody else is served as before.
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("a", 100))));
    server.receive(100).await;
    // A stalled stream that finds its way again is read again: the rest of what it claimed, then a message.
    let first = &mut raw[0];
    for _ in 30..CLAIMED / 10_000 {
        first.data(&[0x0a; 10_000]).await;
    }
    let message = bytes(&http(Some("late"), numbered("late", 3)));
    first.data(&[&grpc_head(message.len()), &message[..]].concat()).await;
    let (_, hops) = server.receive(3).await;
    assert!(hops.iter().all(|h| &*h.node.0 == "late"));
    assert_eq!(server.handle.stats().streams_open, STALLED as u64 + 1);
    drop(raw);
    let stats = server.wait_for("the stalled ones are gone", |s| s.streams_open == 1).await;
    assert_eq!(stats.assembling_bytes, 0, "what they held is free again");
    assert!(stats.malformed_messages["cut_short"] > 0, "{stats:?}");
}

/// A node of megabytes, as many extensions and labels as that takes.
#[tokio::test]
async fn a_node_of_megabytes_is_read_and_cut() {
    let mut server = start(AlsSettings::default(), 16);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    let mut message = http(None, numbered("a", 2));
    message.identifier = identifier(NODE);
    let node = message.identifier.as_mut().and_then(|i| i.node.as_mut()).expect("a node");
    let extension = |n| Extension { name: format!("extension.{n}"), category: "x".repeat(200), ..Default::default() };
    node.extensions = (0..20_000).map(extension).collect();
    let value = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let labels = Struct { fields: (0..5_000).map(|n| (format!("l{n}"), value("v".repeat(200)))).collect() };
    let labels = Value { kind: Some(Kind::StructValue(labels)) };
    node.metadata = Some(Struct { fields: [("LABELS".to_owned(), labels)].into() });
    let encoded = bytes(&message);
    assert!(encoded.len() > 5 << 20, "{}", encoded.len());
    stream.send(encoded);
    stream.send(bytes(&http(None, numbered("b", 1))));
    let (proxies, hops) = server.receive(3).await;
    assert!(hops.iter().all(|h| &*h.node.0 == NODE));
    let [proxy] = &proxies[..] else { panic!("one, not {}", proxies.len()) };
    assert_eq!(proxy.labels.len(), 128);
    assert_eq!(server.handle.stats().malformed_fields["too_many_node_values"], 1);
}

/// What is not gRPC is swallowed, and what is not even HTTP/2 costs its connection only.
#[tokio::test]
async fn strangers_on_the_port_do_no_harm() {
    let mut server = start(AlsSettings::default(), 16);
    let mut strange = RawStream::open(server.handle.local_addr()).await;
    strange.data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    server.wait_for("it is counted", |s| s.streams_failed.get("framing") == Some(&1)).await;
    strange.data(&[0; 100]).await;
    let mut garbage = TcpStream::connect(server.handle.local_addr()).await.expect("it listens");
    garbage.write_all(&[0x16; 1_000]).await.expect("sent");
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("a", 5))));
    server.receive(5).await;
    let stats = server.handle.stats();
    assert_eq!((stats.streams_open, stats.messages), (2, 1), "the strange stream is still open");
}

/// One stream on a connection of its own, whose data frames are written as they are given.
struct RawStream {
    tcp: TcpStream,
}

impl RawStream {
    async fn open(addr: SocketAddr) -> Self {
        let mut tcp = TcpStream::connect(addr).await.expect("it listens");
        // Literal header fields without indexing and without Huffman coding (RFC 7541, 6.2.2).
        let field = |name: &str, value: &str| {
            let len = |text: &str| u8::try_from(text.len()).expect("below 127");
            [&[0, len(name)][..], name.as_bytes(), &[len(value)], value.as_bytes()].concat()
        };
        let headers = [
            field(":method", "POST"),
            field(":scheme", "http"),
            field(":path", "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"),
            field(":authority", "als"),
            field("content-type", "application/grpc"),
            field("te", "trailers"),
        ]
        .concat();
        let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        opening.extend(frame(4, 0, 0, &[]));
        // END_HEADERS
        opening.extend(frame(1, 4, 1, &headers));
        tcp.write_all(&opening).await.expect("sent");
        // The server's settings, with the window that it gives, hold once they are acknowledged.
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.expect("it answers");
        assert_eq!(head[3], 4, "its settings come first");
        tcp.write_all(&frame(4, 1, 0, &[])).await.expect("sent");
        Self { tcp }
    }

    /// Sends data. Windows are not minded: all that one stream sends has to fit the window that it begins with.
    async fn data(&mut self, data: &[u8]) {
        let deadline = Instant::now() + DEADLINE;
        let sent = tokio::time::timeout_at(deadline, self.tcp.write_all(&frame(0, 0, 1, data))).await;
        sent.expect("the server reads").expect("the connection is open");
    }
}

/// What stands before each gRPC message: not compressed, and its length.
fn grpc_head(len: usize) -> Vec<u8> {
    [&[0][..], &u32::try_from(len).expect("small").to_be_bytes()].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

//! The receiver over a real connection, from clients that behave as Envoy does, and from some that do not.

mod common;

use common::{DEADLINE, NODE, Stream, bytes, connect, http, numbered, start, tcp, wait_for};
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use meshdiff_als::{AlsServer, AlsSettings, BindError};
use meshdiff_model::{AccessLogType, HopProtocol, ProxyKind, Side};
use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_lose_nothing() {
    const CONNECTIONS: usize = 8;
    const STREAMS: usize = 64;
    const ENTRIES: usize = 1_000;
    const PER_MESSAGE: usize = 25;

    let mut server = start(AlsSettings::default(), 16);
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(connect(&server.handle).await);
    }
    let streams: Vec<Stream> = (0..STREAMS).map(|n| Stream::open(&channels[n % CONNECTIONS])).collect();
    for (n, stream) in streams.iter().enumerate() {
        let node = format!("sidecar~10.77.1.{n}~pod-{n}.default~default.svc.cluster.local");
        let ids: Vec<String> = numbered(&n.to_string(), ENTRIES).collect();
        for (i, ids) in ids.chunks(PER_MESSAGE).enumerate() {
            stream.send(bytes(&http((i == 0).then_some(&node), ids.to_vec())));
        }
    }
    let (proxies, hops) = server.receive(STREAMS * ENTRIES).await;

    let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for hop in hops {
        assert_eq!(hop.side, Some(Side::Client));
        assert_eq!(hop.path.as_deref(), Some("/reviews/0"));
        by_node.entry(hop.node.to_string()).or_default().push(hop.request_id.expect("an id").to_string());
    }
    assert_eq!(by_node.len(), STREAMS);
    for (node, ids) in &by_node {
        let n = ids[0].split('-').next().expect("a prefix");
        assert!(node.contains(&format!("pod-{n}.")), "{node} has its own entries");
        assert!(ids.iter().cloned().eq(numbered(n, ENTRIES)), "all of {node}'s, in their order");
    }
    assert_eq!(proxies.iter().map(|p| p.node.clone()).collect::<HashSet<_>>().len(), STREAMS);
    assert!(proxies.iter().all(|p| p.kind == ProxyKind::Sidecar));

    // Nothing was answered.
    assert!(streams.iter().all(|s| !s.answer.is_finished()));
    let stats = server.handle.stats();
    assert_eq!((stats.streams_opened, stats.streams_open), (STREAMS as u64, STREAMS as u64));

    let stats = server.handle.stop(Duration::ZERO).await;
    assert_eq!(stats.kept, (STREAMS * ENTRIES) as u64);
    assert_eq!(stats.entries(), stats.accounted());
    assert_eq!((stats.queued_bytes, stats.queued_entries, stats.streams_open), (0, 0, 0));
    assert_eq!((stats.shed.len(), stats.streams_failed.len(), stats.malformed_fields.len()), (0, 0, 0), "{stats:?}");
    assert_eq!(server.serving.await.expect("no panic").expect("no failure"), stats);
}

#[tokio::test]
async fn the_generated_client_is_understood_and_answered_when_it_ends_its_stream() {
    let mut server = start(AlsSettings::default(), 16);
    let mut client = AccessLogServiceClient::new(connect(&server.handle).await);
    let messages = [http(Some(NODE), numbered("a", 2)), tcp(None, 3, 4)];
    client.stream_access_logs(tokio_stream::iter(messages)).await.expect("answered at the end");
    let (proxies, hops) = server.receive(5).await;
    assert_eq!(proxies.len(), 1);
    assert_eq!(hops.iter().filter(|h| h.protocol == HopProtocol::Tcp).count(), 3);
    assert_eq!(server.progress.len(), 4);
    assert!(server.progress.iter().all(|h| h.access_log_type == AccessLogType::TcpPeriodic));
    let stats = server.handle.stop(Duration::ZERO).await;
    assert_eq!((stats.entries_http, stats.entries_tcp, stats.kept), (2, 7, 5));
    assert_eq!(stats.not_terminal, BTreeMap::from([("TcpPeriodic".to_owned(), 4)]));
    assert_eq!(stats.entries(), stats.accounted());
}

#[tokio::test]
async fn a_malformed_message_costs_itself_and_not_its_stream() {
    let mut server = start(AlsSettings::default(), 16);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("before", 2))));
    stream.send(&[0xff, 0xff, 0xff][..]);
    // Cut short in the middle of an entry.
    let whole = bytes(&http(None, numbered("cut", 3)));
    stream.send(whole[..whole.len() - 5].to_vec());
    // Two entries, the first of them with a string that is no UTF-8 (`request.authority`).
    let mut list = vec![0x0a, 5, 0x1a, 3, 0x1a, 1, 0xff];
    let good = bytes(&http(None, numbered("beside", 1)));
    list.extend_from_slice(&good[good.len() - usize::from(good[1])..]);
    let mut message = vec![0x12, u8::try_from(list.len()).expect("short")];
    message.extend(list);
    stream.send(message);
    stream.send(bytes(&http(None, numbered("after", 2))));

    let (_, hops) = server.receive(5).await;
    let ids: Vec<_> = hops.iter().map(|h| h.request_id.as_ref().expect("an id").to_string()).collect();
    assert_eq!(ids, ["before-0", "before-1", "beside-0", "after-0", "after-1"]);
    assert!(hops.iter().all(|h| &*h.node.0 == NODE));
    assert!(!stream.answer.is_finished());
    let stats = server.handle.stop(Duration::ZERO).await;
    assert_eq!(stats.malformed_messages, BTreeMap::from([("undecodable".to_owned(), 2)]));
    assert_eq!(stats.malformed_entries, BTreeMap::from([("undecodable".to_owned(), 1)]));
    assert_eq!((stats.messages, stats.entries(), stats.accounted()), (5, 6, 6));
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_skipped_and_the_stream_goes_on() {
    let mut server = start(AlsSettings { max_message_bytes: 4_096, ..AlsSettings::default() }, 16);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("ok", 1))));
    stream.send(vec![0; 5_000_000]);
    stream.send(bytes(&http(None, numbered("after", 1))));
    let (_, hops) = server.receive(2).await;
    assert!(hops.iter().all(|h| &*h.node.0 == NODE));
    let stats = server.handle.stats();
    assert_eq!(stats.malformed_messages, BTreeMap::from([("too_large".to_owned(), 1)]));
    assert_eq!((stats.streams_opened, stats.streams_open, stats.streams_failed.len()), (1, 1, 0));
    assert!(!stream.answer.is_finished());
}

#[tokio::test]
async fn a_stream_that_does_not_say_who_it_is_is_kept_under_its_address() {
    let mut server = start(AlsSettings::default(), 16);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(None, numbered("early", 2))));
    stream.send(bytes(&http(Some(NODE), numbered("late", 1))));
    let (proxies, hops) = server.receive(3).await;
    let nodes: Vec<_> = hops.iter().map(|h| h.node.to_string()).collect();
    assert_eq!(nodes, ["unknown~127.0.0.1", "unknown~127.0.0.1", NODE]);
    assert_eq!(proxies.iter().map(|p| p.node.to_string()).collect::<Vec<_>>(), ["unknown~127.0.0.1", NODE]);
    let stats = server.handle.stop(Duration::ZERO).await;
    assert_eq!(stats.malformed_fields, BTreeMap::from([("missing_identifier".to_owned(), 2)]));
    assert_eq!((stats.kept, stats.accounted()), (3, 3));
}

#[tokio::test]
async fn a_proxy_is_announced_once_and_again_when_it_changes() {
    let mut server = start(AlsSettings::default(), 64);
    let channel = connect(&server.handle).await;
    let streams: Vec<Stream> = (0..4).map(|_| Stream::open(&channel)).collect();
    for stream in &streams {
        stream.send(bytes(&http(Some(NODE), numbered("a", 1))));
        stream.send(bytes(&http(Some(NODE), numbered("a", 1))));
    }
    let (proxies, _) = server.receive(8).await;
    assert_eq!(proxies.len(), 1);
    let mut message = http(Some(NODE), numbered("b", 1));
    let node = message.identifier.as_mut().and_then(|i| i.node.as_mut()).expect("a node");
    node.locality = Some(Default::default());
    node.locality.as_mut().expect("set").region = "moved".to_owned();
    streams[0].send(bytes(&message));
    let (proxies, _) = server.receive(1).await;
    assert_eq!(proxies.first().and_then(|p| p.locality.as_deref()), Some("moved"));
}

#[tokio::test]
async fn what_the_queue_has_no_room_for_is_counted_exactly() {
    const MESSAGES: u64 = 200;
    let settings = AlsSettings { queue_entries: 50, ..AlsSettings::default() };
    // Nobody takes batches: one waits in the sink, one in the decoder's hands, the rest fills the queue.
    let mut server = start(settings, 1);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    // The stream's first message, with the node, is one that may be shed: who sends must be known all the same.
    let filler = Stream::open(&channel);
    for _ in 0..MESSAGES / 2 {
        filler.send(bytes(&http(Some("filler"), numbered("f", 10))));
    }
    server.wait_for("the queue is full", |s| s.shed.contains_key("queue_full")).await;
    stream.send(bytes(&http(Some(NODE), numbered("s", 10))));
    for _ in 1..MESSAGES / 2 {
        stream.send(bytes(&http(None, numbered("s", 10))));
    }
    let stats = server.wait_for("everything is received", |s| s.messages == MESSAGES).await;
    assert_eq!(stats.entries(), MESSAGES * 10);
    assert_eq!(stats.streams_open, 2, "a full queue ends no stream");
    assert!(stats.queued_entries <= 50, "{stats:?}");

    // The consumer comes back: what waited comes, and what follows is taken again.
    // What is in the sink counts as kept and is still there.
    let waiting = stats.queued_entries;
    let (_, first) = server.receive(usize::try_from(waiting).expect("small")).await;
    stream.send(bytes(&http(None, numbered("late", 10))));
    let (_, late) = server.receive(10).await;
    assert!(late.iter().all(|h| &*h.node.0 == NODE), "known although its introduction was shed");
    let stats = server.handle.stop(Duration::ZERO).await;
    assert_eq!(stats.kept, (first.len() + late.len()) as u64);
    assert_eq!(stats.shed["queue_full"] + stats.kept, stats.entries());
    assert_eq!(stats.accounted(), stats.entries());
    assert_eq!(stats.malformed_fields, BTreeMap::new());
}

#[tokio::test]
async fn stopping_drains_first_and_then_delivers_what_is_queued() {
    let mut server = start(AlsSettings::default(), 1);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("before", 1))));
    server.wait_for("the stream is open", |s| s.messages == 1).await;
    let handle = server.handle.clone();
    let long = tokio::spawn(async move { handle.stop(DEADLINE).await });
    // During the drain period entries are still taken.
    for _ in 0..50 {
        stream.send(bytes(&http(None, numbered("during", 2))));
    }
    server.wait_for("everything is received", |s| s.messages == 51).await;
    assert!(!stream.answer.is_finished() && !long.is_finished());
    // A second call cuts the drain short. The consumer is slow, yet nothing that was received is lost.
    let handle = server.handle.clone();
    let short = tokio::spawn(async move { handle.stop(Duration::ZERO).await });
    let (_, hops) = server.receive(101).await;
    assert_eq!(hops.len(), 101);
    let stats = tokio::time::timeout(DEADLINE, short).await.expect("in time").expect("no panic");
    assert_eq!((stats.kept, stats.accounted(), stats.entries()), (101, 101, 101));
    assert!(server.batches.recv().await.is_none(), "the sink ends with the receiver");
    assert_eq!(long.await.expect("no panic"), stats);
    // The port is free again.
    TcpListener::bind(server.handle.local_addr()).expect("nobody listens any more");
}

#[tokio::test]
async fn a_consumer_that_left_is_counted_and_blocks_nobody() {
    let server = start(AlsSettings::default(), 1);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    let (handle, serving) = (server.handle, server.serving);
    drop(server.batches);
    stream.send(bytes(&http(Some(NODE), numbered("a", 7))));
    wait_for(&handle, "the loss is counted", |s| s.shed.get("consumer_gone") == Some(&7)).await;
    let stats = handle.stop(Duration::ZERO).await;
    assert_eq!((stats.kept, stats.entries(), stats.accounted()), (0, 7, 7));
    serving.await.expect("no panic").expect("no failure");
}

#[tokio::test]
async fn an_envoy_that_exits_leaves_nothing_open() {
    let mut server = start(AlsSettings::default(), 16);
    let channel = connect(&server.handle).await;
    let stream = Stream::open(&channel);
    stream.send(bytes(&http(Some(NODE), numbered("a", 1))));
    server.receive(1).await;
    drop((stream, channel));
    let stats = server.wait_for("the stream is closed", |s| s.streams_open == 0).await;
    assert_eq!(stats.streams_opened, 1);
}

#[tokio::test]
async fn dropping_the_server_or_its_future_ends_it() {
    let server = start(AlsSettings::default(), 16);
    server.serving.abort();
    tokio::time::timeout(DEADLINE, server.handle.stop(DEADLINE)).await.expect("does not wait for what is gone");

    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let never_served = AlsServer::bind(addr, AlsSettings::default()).expect("binds");
    let handle = never_served.handle();
    drop(never_served);
    tokio::time::timeout(DEADLINE, handle.stop(DEADLINE)).await.expect("does not wait for what never was");
}

#[test]
fn addresses_that_cannot_be_had_say_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("bound");
    let error = AlsServer::bind(addr, AlsSettings::default()).expect_err("taken");
    assert!(matches!(error, BindError::InUse(a) if a == addr), "{error}");
    assert!(error.to_string().contains(&format!("ss -ltnp 'sport = :{}'", addr.port())), "{error}");

    // TEST-NET-1: no machine has it.
    let elsewhere: SocketAddr = "192.0.2.1:9901".parse().expect("an address");
    let error = AlsServer::bind(elsewhere, AlsSettings::default()).expect_err("not ours");
    assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
    assert!(error.to_string().contains("0.0.0.0"), "{error}");
}

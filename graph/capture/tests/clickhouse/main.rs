//! Captures in the store: written, written again, kept while it is away, and read back as what they were.

#[path = "../common/mod.rs"]
mod common;
mod requests;
#[path = "../../../../tests/clickhouse/server.rs"]
mod server;

use meshdiff_capture::clickhouse::{Choice, Shipper, ShipperOptions, ShipperStats, Store, StoreError, StoreUrl};
use meshdiff_capture::{Capture, CaptureData, CaptureSink, CaptureWriter, WriterOptions};
use meshdiff_model::{
    ClockAnchor, ClockSample, DropReason, DurationNs, MonotonicNs, SocketCookie, SocketMetrics, WallTime,
};
use server::Server;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Long enough for the busiest machine.
const PATIENCE: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3_600);

fn fixture() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/bookinfo-hidden-delay/capture"))
}

fn url(text: &str) -> StoreUrl {
    text.parse().expect("an address")
}

fn options(store: &str, spool: &Path) -> ShipperOptions {
    let mut options = ShipperOptions::new(url(store), spool.to_owned());
    options.first_wait = Duration::from_millis(10);
    options.longest_wait = Duration::from_millis(200);
    options
}

/// Stores captures and waits until they are there.
fn ship(store: &str, captures: &[&Path]) -> ShipperStats {
    let spool = tempfile::tempdir().expect("a folder");
    let shipper = Shipper::start(options(store, spool.path())).expect("starts");
    for capture in captures {
        shipper.add(capture).expect("taken");
    }
    shipper.finish(PATIENCE)
}

fn everything() -> Choice {
    Choice { since: 24 * HOUR, namespace: None }
}

/// A segment of an agent's window: from `from` to `to` seconds, with messages of the given numbers.
fn segment(dir: &Path, from: u64, to: u64, messages: std::ops::Range<u64>) -> PathBuf {
    let at = |s: u64| ClockSample {
        monotonic: MonotonicNs(1_000_000_000_000 + s * 1_000_000_000),
        wall: WallTime(1_790_000_000_000_000_000 + i64::try_from(s).expect("small") * 1_000_000_000),
    };
    let mut meta = common::meta();
    meta.host.boot_id = "boot".into();
    meta.host.hostname = "node-1".into();
    (meta.start, meta.end, meta.clock) = (at(from), Some(at(to)), ClockAnchor::new(vec![at(from), at(to)]));
    let path = dir.join(format!("segment-{from}"));
    let mut writer = CaptureWriter::create(&path, &meta, WriterOptions::default()).expect("created");
    for i in messages {
        writer.write_message(common::message(i)).expect("written");
        if i % 40 == 0 {
            writer.roll(&meta).expect("rolled");
        }
        writer.write_access_log(common::access_log(i)).expect("written");
        let mut socket = common::socket(40_000 + i % 8);
        socket.last_seen.0 += i;
        writer.write_socket(socket).expect("written");
        writer.write_metrics(metrics(i)).expect("written");
    }
    writer.write_proxy(common::proxy(from)).expect("written");
    writer.finish(meta).expect("finished");
    path
}

/// Rows of a few sockets and windows, with and without each of the histograms.
fn metrics(i: u64) -> SocketMetrics {
    let mut row = SocketMetrics::at(SocketCookie(40_000 + i % 3), MonotonicNs(20_000_000_000 * (1 + i % 2)));
    row.write.calls = i;
    row.write.bytes = 100 * i;
    row.rtt.record(i * 1_000);
    if i.is_multiple_of(3) {
        row.write.record_duration(DurationNs(i64::try_from(i * 777).expect("small")), None);
        row.read.record_duration(DurationNs(5_000), Some(DurationNs(0)));
    }
    if i.is_multiple_of(5) {
        row.drops.insert(DropReason("TCP_CSUM".into()), i);
        row.drops.insert(DropReason(format!("a 'reason' of {}", i % 2).into()), 1);
    }
    row.retransmits = i % 4;
    row
}

fn assert_equal(stored: &CaptureData, embedded: &CaptureData) {
    assert_eq!(stored.meta, embedded.meta);
    assert_eq!(stored.state, embedded.state);
    assert_eq!(stored.sockets, embedded.sockets);
    assert_eq!(stored.messages, embedded.messages);
    assert_eq!(stored.http2_streams, embedded.http2_streams);
    assert_eq!(stored.metrics, embedded.metrics);
    assert_eq!(stored.access_logs, embedded.access_logs);
    assert_eq!(stored.proxies, embedded.proxies);
    assert_eq!(stored.processes, embedded.processes);
    assert_eq!(stored.warnings(), embedded.warnings());
}

/// One server for all of it: starting the engine takes longer than what is asked of it.
#[test]
fn captures_in_clickhouse() {
    if server::left_out() {
        return;
    }
    let server = Server::start();
    what_was_stored_is_read_back(&server);
    segments_become_one_recording(&server);
    what_is_sent_again_replaces_itself(&server);
    the_store_may_be_away(&server);
    what_can_never_be_stored_does_not_hold_up_the_rest(&server);
    errors_say_what_to_do_and_no_password(&server);
    names_and_values_are_hostile(&server);
    tables_of_an_earlier_version_get_what_they_lack(&server);
    what_the_store_lost_is_said(&server);
    requests::halves_are_joined(&server);
}

fn what_was_stored_is_read_back(server: &Server) {
    let store = server.database("fixture");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    reader.create_tables().expect("made again");
    let stats = ship(&store, &[&fixture()]);
    assert_eq!((stats.stored, stats.waiting, stats.failures), (1, 0, 0), "{stats:?}");
    let found = reader.read(&everything()).expect("read");
    let [recording] = &found[..] else { panic!("{} recordings", found.len()) };
    let embedded = Capture::open(fixture()).expect("opens").read().expect("read");
    assert!(embedded.messages.len() > 1_000);
    assert_equal(&recording.data, &embedded);
    assert_eq!(recording.metas, [embedded.meta]);
    assert!(recording.notes.is_empty() && !recording.pruned, "{:?}", recording.notes);
}

/// Sockets superseded, windows summed, messages in order: as if one recorder had written one folder.
fn segments_become_one_recording(server: &Server) {
    let store = server.database("segments");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let parts = [
        segment(dir.path(), 0, 30, 0..100),
        segment(dir.path(), 30, 60, 100..170),
        segment(dir.path(), 60, 90, 170..300),
    ];
    let one = segment(&dir.path().join("whole"), 0, 90, 0..300);
    // Sent in any order.
    ship(&store, &[&parts[2], &parts[0], &parts[1]]);
    let mut found = reader.read(&everything()).expect("read");
    assert_eq!(found.len(), 1);
    let mut recording = found.remove(0);
    assert_eq!(recording.metas.len(), 3);
    let embedded = Capture::open(one).expect("opens").read().expect("read");
    assert!(!embedded.metrics.is_empty() && embedded.sockets.len() == 8);
    recording.data.meta = embedded.meta.clone();
    // Each segment names the proxies again, with what it knew.
    recording.data.proxies.clone_from(&embedded.proxies);
    assert_equal(&recording.data, &embedded);

    // Time is chosen by whole segments, and those of the minute before.
    let short = reader.read(&Choice { since: Duration::from_secs(1), namespace: None }).expect("read");
    assert_eq!(short[0].metas.len(), 3, "within a minute");
    let later = segment(dir.path(), 200, 230, 300..310);
    ship(&store, &[&later]);
    let short = reader.read(&Choice { since: Duration::from_secs(1), namespace: None }).expect("read");
    assert_eq!((short[0].metas.len(), short[0].data.messages.len()), (1, 10));

    // What another recorder saw at the same time would count twice.
    let second = segment(&dir.path().join("second"), 205, 225, 300..310);
    ship(&store, &[&second]);
    let short = reader.read(&Choice { since: Duration::from_secs(1), namespace: None }).expect("read");
    assert_eq!(short[0].data.messages.len(), 10);
    assert!(short[0].notes[0].contains("at the same time"), "{:?}", short[0].notes);
}

/// Answers that did not arrive, errors after the work was done, a shipper that was killed: no row is there twice.
fn what_is_sent_again_replaces_itself(server: &Server) {
    let store = server.database("again");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let capture = segment(dir.path(), 0, 30, 0..200);
    let expected = Capture::open(&capture).expect("opens").read().expect("read");
    server.trouble("after", 2, "messages");
    server.trouble("cut", 1, "access_logs");
    server.trouble("before", 1, "sockets");
    server.trouble("cut", 1, "`captures`");
    let stats = ship(&store, &[&capture]);
    assert_eq!((stats.stored, stats.failures), (1, 5), "{stats:?}");
    // And all of it once more, as another meshdiff.
    assert_eq!(ship(&store, &[&capture]).stored, 1);
    let found = reader.read(&everything()).expect("read");
    assert_eq!(found.len(), 1);
    assert!(found[0].notes.is_empty(), "{:?}", found[0].notes);
    assert_equal(&found[0].data, &expected);
    let count = |table: &str| server.ask(&format!("SELECT count() FROM again.{table} FINAL")).trim().to_owned();
    assert_eq!((count("messages"), count("access_logs"), count("captures")), ("200".into(), "200".into(), "1".into()));
    // Without the server's own deduplication of inserts, the key alone does it.
    server.ask("ALTER TABLE again.messages MODIFY SETTING non_replicated_deduplication_window = 0");
    assert_eq!(ship(&store, &[&capture]).stored, 1);
    let raw: u64 = server.ask("SELECT count() FROM again.messages").trim().parse().expect("a number");
    assert!(raw > 200, "the rows did arrive twice: {raw}");
    assert_eq!(count("messages"), "200");
    assert_equal(&reader.read(&everything()).expect("read")[0].data, &expected);
}

/// Nobody listens: captures wait, the oldest go when there are too many, and what an ended meshdiff left is sent by the next.
fn the_store_may_be_away(server: &Server) {
    let store = server.database("away");
    Store::open(url(&store)).expect("opens").create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let spool = tempfile::tempdir().expect("a folder");
    let nobody = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        format!("clickhouse://u:p@127.0.0.1:{port}/away")
    };
    let captures: Vec<PathBuf> =
        (0..5).map(|i| segment(dir.path(), i * 30, i * 30 + 30, i * 20..i * 20 + 20)).collect();
    let mut small = options(&nobody, spool.path());
    let shipper = Shipper::start(small.clone()).expect("starts");
    shipper.add(&captures[0]).expect("taken");
    let one = shipper.stats().waiting_bytes;
    let before = Instant::now();
    while shipper.stats().failures < 2 {
        assert!(before.elapsed() < PATIENCE, "{:?}", shipper.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    let stats = shipper.finish(Duration::ZERO);
    assert_eq!((stats.stored, stats.waiting), (0, 1));
    assert!(stats.last_error.expect("an error").contains("no answer from 127.0.0.1"));

    small.spool_bytes = 3 * one + one / 2;
    let shipper = Shipper::start(small.clone()).expect("starts");
    for capture in &captures {
        // The folder may go once it was taken.
        shipper.add(capture).expect("taken");
    }
    let stats = shipper.finish(Duration::ZERO);
    assert_eq!((stats.waiting, stats.dropped), (3, 2), "{stats:?}");
    assert!(stats.waiting_bytes <= small.spool_bytes);

    let shipper = Shipper::start(options(&store, spool.path())).expect("starts");
    let stats = shipper.finish(PATIENCE);
    assert_eq!((stats.stored, stats.waiting), (3, 0), "{stats:?}");
    assert_eq!(std::fs::read_dir(spool.path()).expect("a folder").count(), 0);
}

fn what_can_never_be_stored_does_not_hold_up_the_rest(server: &Server) {
    let store = server.database("refused");
    Store::open(url(&store)).expect("opens").create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let captures = [segment(dir.path(), 0, 30, 0..10), segment(dir.path(), 30, 60, 10..20)];
    server.trouble("data", 1, "INTO `messages`");
    let stats = ship(&store, &[&captures[0], &captures[1]]);
    assert_eq!((stats.stored, stats.refused, stats.waiting), (1, 1, 0), "{stats:?}");
    let found = Store::open(url(&store)).expect("opens").read(&everything()).expect("read");
    assert_eq!(
        (found.len(), found[0].metas.len(), found[0].data.messages.len()),
        (1, 1, 10),
        "half a capture does not count"
    );
}

fn errors_say_what_to_do_and_no_password(server: &Server) {
    let store = server.database("bare");
    let error = Store::open(url(&store)).expect("opens").read(&everything()).expect_err("no tables").to_string();
    assert!(error.contains("meshdiff store --create") && error.contains("ClickHouse error 60"), "{error}");
    let wrong = store.replace("s3cret", "wr0ng");
    let reader = Store::open(url(&wrong)).expect("opens");
    let error = reader.read(&everything()).expect_err("a wrong password");
    assert!(matches!(error, StoreError::Refused { code: Some(516), .. }), "{error}");
    for shown in [error.to_string(), format!("{error:?}"), format!("{reader:?}")] {
        assert!(!shown.contains("wr0ng"), "{shown}");
    }
    let unknown = store.replace("/bare", "/nowhere");
    let error = Store::open(url(&unknown)).expect("opens").read(&everything()).expect_err("no database").to_string();
    assert!(error.contains("ClickHouse error 81"), "{error}");
    // Credentials travel in headers: addresses are logged everywhere.
    assert!(server.seen().iter().all(|line| !line.contains("s3cret") && !line.contains("wr0ng")));
}

fn names_and_values_are_hostile(server: &Server) {
    let store = server.database("hostile");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    let capture = segment(dir.path(), 0, 30, 0..50);
    let node = "no'de\\ \t\n{x:String} `; DROP TABLE messages -- é";
    let spool = tempfile::tempdir().expect("a folder");
    let mut hostile = options(&store, spool.path());
    hostile.node = Some(node.to_owned());
    let shipper = Shipper::start(hostile).expect("starts");
    shipper.add(&capture).expect("taken");
    assert_eq!(shipper.finish(PATIENCE).stored, 1);
    let choice = Choice { since: HOUR, namespace: Some("x' OR 1=1 \\ \n".into()) };
    let found = reader.read(&choice).expect("read");
    assert_eq!((found[0].node.as_str(), found[0].data.messages.len()), (node, 50));
    assert!(!found[0].pruned, "nothing is of that namespace: all is there to say so");
}

fn tables_of_an_earlier_version_get_what_they_lack(server: &Server) {
    let store = server.database("earlier");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    server.ask("ALTER TABLE earlier.messages DROP COLUMN head_end");
    let dir = tempfile::tempdir().expect("a folder");
    let capture = segment(dir.path(), 0, 30, 0..20);
    let spool = tempfile::tempdir().expect("a folder");
    let shipper = Shipper::start(options(&store, spool.path())).expect("starts");
    shipper.add(&capture).expect("taken");
    let before = Instant::now();
    while shipper.stats().failures == 0 {
        assert!(before.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let stats = shipper.stats();
    assert_eq!((stats.refused, stats.waiting), (0, 1), "it waits for the operator: {stats:?}");
    assert!(stats.last_error.as_ref().expect("an error").contains("earlier version"), "{stats:?}");
    reader.create_tables().expect("mended");
    assert_eq!(shipper.finish(PATIENCE).stored, 1);
    let expected = Capture::open(&capture).expect("opens").read().expect("read");
    assert_equal(&reader.read(&everything()).expect("read")[0].data, &expected);
}

fn what_the_store_lost_is_said(server: &Server) {
    let store = server.database("lost");
    let reader = Store::open(url(&store)).expect("opens");
    reader.create_tables().expect("made");
    let dir = tempfile::tempdir().expect("a folder");
    ship(&store, &[&segment(dir.path(), 0, 30, 0..20)]);
    server.ask("ALTER TABLE lost.messages DELETE WHERE row < 3 SETTINGS mutations_sync = 2");
    let found = reader.read(&everything()).expect("read");
    assert!(found[0].notes.iter().any(|n| n.contains("of the 20 rows of messages")), "{:?}", found[0].notes);
}

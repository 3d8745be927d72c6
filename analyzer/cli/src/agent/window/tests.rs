//! The window, with a recording of the lab.

use super::*;
use crate::agent::pods::KnownProxies;
use meshdiff_capture::{Capture, CaptureData, CaptureSink, Meta};
use meshdiff_model::ProbeStats;
use std::collections::BTreeSet;
use tempfile::TempDir;

pub(crate) fn fixture() -> CaptureData {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bookinfo-hidden-delay/capture");
    Capture::open(path).and_then(|c| c.read()).expect("the repository's capture")
}

/// The meta of an agent, as it begins.
pub(crate) fn meta() -> Meta {
    let mut meta = Meta::default();
    meta.host.boot_id = "this-boot".into();
    meta.probes.stats = ProbeStats { events: 100, ..ProbeStats::default() };
    meta
}

pub(crate) fn window(dir: &Path, keep: Duration, keep_bytes: u64) -> Arc<Window> {
    Arc::new(Window::open(dir, Limits { keep, keep_bytes }, "this-boot".into()).expect("a window"))
}

const HOUR: Duration = Duration::from_secs(3600);

fn sink(window: &Arc<Window>, pulse: &Pulse) -> RollingSink {
    RollingSink::new(Arc::clone(window), HOUR, &meta(), pulse.clone(), None, Arc::new(KnownProxies::default()))
}

/// Writes a recording in so many segments of equally many rows each.
pub(crate) fn write_segments(window: &Arc<Window>, data: &CaptureData, segments: usize) {
    let pulse = Pulse::new();
    let mut sink = sink(window, &pulse);
    fn slice<T: Clone>(rows: &[T], i: usize, of: usize) -> Vec<T> {
        rows[rows.len() * i / of..rows.len() * (i + 1) / of].to_vec()
    }
    let mut meta = meta();
    for proxy in &data.proxies {
        sink.write_proxy(proxy.clone()).expect("never fails");
    }
    for i in 0..segments {
        slice(&data.processes, i, segments).into_iter().for_each(|r| sink.write_process(r).expect("never fails"));
        slice(&data.sockets, i, segments).into_iter().for_each(|r| sink.write_socket(r).expect("never fails"));
        slice(&data.messages, i, segments).into_iter().for_each(|r| sink.write_message(r).expect("never fails"));
        slice(&data.metrics, i, segments).into_iter().for_each(|r| sink.write_metrics(r).expect("never fails"));
        slice(&data.http2_streams, i, segments).into_iter().for_each(|r| sink.write_http2(r).expect("never fails"));
        slice(&data.access_logs, i, segments).into_iter().for_each(|r| sink.write_access_log(r).expect("never fails"));
        meta.probes.stats.events += 10;
        if i + 1 < segments {
            let asked = pulse.ask();
            sink.roll(&meta).expect("never fails");
            assert!(asked.has_changed().expect("the sink is there"), "a segment was asked to be closed");
        }
    }
    sink.finish(meta).expect("never fails");
}

#[test]
fn every_segment_is_a_capture_of_its_own_with_its_own_counts() {
    let dir = TempDir::new().expect("a folder");
    let mut data = fixture();
    // Those that were closed when this was recorded are not named again.
    data.sockets.iter_mut().for_each(|s| s.closed = None);
    let window = window(dir.path(), HOUR, u64::MAX);
    write_segments(&window, &data, 3);
    let segments = window.since(None, clock::sample());
    assert_eq!(segments.len(), 3);
    let mut messages = 0;
    for segment in &segments {
        let read = Capture::open(segment.dir()).and_then(|c| c.read()).expect("a capture");
        assert!(read.damage.is_empty() && read.warnings().is_empty(), "{:?}", read.warnings());
        assert_eq!(read.meta.probes.stats.events, 10, "counts are of the segment alone");
        assert!(read.meta.end.is_some_and(|end| end.monotonic >= read.meta.start.monotonic));
        assert_eq!(read.proxies.len(), data.proxies.len(), "who is there is told in each");
        let known: BTreeSet<_> = read.sockets.iter().map(|s| s.cookie).collect();
        let recorded: BTreeSet<_> = data.sockets.iter().map(|s| s.cookie).collect();
        let lacking =
            read.messages.iter().filter(|m| recorded.contains(&m.socket) && !known.contains(&m.socket)).count();
        // Sockets that come in a later third of the rows are told there; none that came before is missing.
        assert!(segment.start() != segments[2].start() || lacking == 0, "{lacking}");
        messages += read.messages.len();
    }
    assert_eq!(messages, data.messages.len());
    assert!(
        !dir.path()
            .read_dir()
            .expect("a folder")
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with("open-"))
    );
}

#[test]
fn what_a_killed_agent_leaves_is_taken_over() {
    let dir = TempDir::new().expect("a folder");
    let data = fixture();
    {
        let window = window(dir.path(), HOUR, u64::MAX);
        let mut sink = sink(&window, &Pulse::new());
        data.messages.iter().take(500).for_each(|m| sink.write_message(m.clone()).expect("never fails"));
        sink.roll(&meta()).expect("never fails");
        data.messages.iter().skip(500).for_each(|m| sink.write_message(m.clone()).expect("never fails"));
        // As after a kill: nothing is finished, and the last rows were never rolled.
    }
    // Another one died before it had written anything, and somebody put a file there.
    std::fs::create_dir(dir.path().join("open-00000000000000000007")).expect("a folder");
    std::fs::write(dir.path().join("notes.txt"), "mine").expect("a file");
    let window = window(dir.path(), HOUR, u64::MAX);
    let segments = window.since(None, clock::sample());
    assert_eq!(segments.len(), 1);
    assert!(segments[0].is_interrupted());
    let read = Capture::open(segments[0].dir()).and_then(|c| c.read()).expect("a capture");
    assert_eq!(read.messages.len(), 500);
    let count = |n: &AtomicU64| n.load(Relaxed);
    assert_eq!((count(&window.counters.recovered), count(&window.counters.unreadable)), (1, 1));
    assert!(dir.path().join("notes.txt").exists() && !dir.path().join("open-00000000000000000007").exists());
}

#[test]
fn old_and_large_windows_lose_their_oldest_segments() {
    let data = fixture();
    let dir = TempDir::new().expect("a folder");
    let all = window(dir.path(), HOUR, u64::MAX);
    write_segments(&all, &data, 4);
    let (_, bytes, _) = all.size();
    let segments = all.since(None, clock::sample());
    let (first, last) = (segments[0].dir().to_owned(), segments[3].dir().to_owned());
    drop((segments, all));
    let small = window(dir.path(), HOUR, bytes - 1);
    assert!(small.counters.over_bytes.load(Relaxed) >= 1);
    assert!(last.exists() && !first.exists(), "the oldest goes");
    drop(small);
    std::thread::sleep(Duration::from_millis(5));
    let short = window(dir.path(), Duration::from_nanos(1), u64::MAX);
    assert_eq!(short.size().0, 0);
    assert!(short.counters.expired.load(Relaxed) >= 1 && !last.exists());
}

#[test]
fn a_segment_that_is_read_is_deleted_afterwards() {
    let dir = TempDir::new().expect("a folder");
    let window = window(dir.path(), HOUR, u64::MAX);
    write_segments(&window, &fixture(), 2);
    let reading = window.since(None, clock::sample());
    assert!(window.make_room() && window.make_room() && !window.make_room());
    assert!(reading.iter().all(|s| s.dir().exists()), "somebody reads them");
    let dirs: Vec<_> = reading.iter().map(|s| s.dir().to_owned()).collect();
    drop(reading);
    assert!(dirs.iter().all(|d| !d.exists()));
}

#[test]
fn segments_of_an_earlier_boot_are_kept_but_not_served() {
    let dir = TempDir::new().expect("a folder");
    write_segments(&window(dir.path(), HOUR, u64::MAX), &fixture(), 1);
    let limits = Limits { keep: HOUR, keep_bytes: u64::MAX };
    let after = Window::open(dir.path(), limits, "another-boot".into()).expect("a window");
    assert_eq!((after.size().0, after.size().2), (1, 1));
    assert!(after.since(None, clock::sample()).is_empty());
}

#[test]
fn one_window_has_one_agent() {
    let dir = TempDir::new().expect("a folder");
    let _first = window(dir.path(), HOUR, u64::MAX);
    let limits = Limits { keep: HOUR, keep_bytes: u64::MAX };
    let second = Window::open(dir.path(), limits, "this-boot".into());
    assert!(second.unwrap_err().to_string().contains("another agent"));
    let missing = Window::open(Path::new("/proc/nowhere"), limits, "this-boot".into());
    assert!(missing.unwrap_err().to_string().contains("--window"));
}

#[test]
fn only_what_was_asked_for_is_given() {
    let dir = TempDir::new().expect("a folder");
    let window = window(dir.path(), HOUR, u64::MAX);
    write_segments(&window, &fixture(), 2);
    let now = clock::sample();
    assert_eq!(window.since(Some(HOUR), now).len(), 2);
    let mut later = now;
    later.monotonic.0 += 2 * u64::try_from(HOUR.as_nanos()).expect("fits");
    assert!(window.since(Some(HOUR), later).is_empty());
}

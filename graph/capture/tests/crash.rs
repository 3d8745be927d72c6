//! A recorder that is killed, and a disk that fills up.

use meshdiff_capture::{Capture, CaptureError, CaptureSink, CaptureState, CaptureWriter, Table, WriterOptions};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod common;

const CHILD: &str = "MESHDIFF_TEST_CAPTURE_CHILD";

/// Not a test of its own: what [`a_killed_recorder_leaves_what_it_rolled`] runs in a process that it kills. Rolls without pause.
#[test]
fn child_records_until_it_is_killed() {
    let Some(dir) = env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut writer = CaptureWriter::create(&dir, &common::meta(), WriterOptions::default()).expect("created");
    for i in 0.. {
        for m in 0..100 {
            writer.write_message(common::message(i * 100 + m)).expect("written");
        }
        writer.write_socket(common::socket(i)).expect("written");
        writer.roll(&common::meta()).expect("rolled");
    }
}

fn parts(dir: &Path) -> usize {
    let is_part = |e: &fs::DirEntry| e.path().extension().is_some_and(|x| x == "parquet");
    fs::read_dir(dir.join("messages")).map_or(0, |entries| entries.flatten().filter(is_part).count())
}

#[test]
fn a_killed_recorder_leaves_what_it_rolled() {
    let tmp = tempfile::tempdir().expect("a folder");
    for round in 0..8_u64 {
        let dir = tmp.path().join(format!("c{round}"));
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "child_records_until_it_is_killed"])
            .env(CHILD, &dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let deadline = Instant::now() + Duration::from_secs(30);
        while parts(&dir) < 3 + usize::try_from(round).expect("small") {
            assert!(Instant::now() < deadline, "the recorder rolled nothing");
            std::thread::sleep(Duration::from_micros(300 + 137 * round));
        }
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGKILL).expect("killed");
        child.wait().expect("ended");

        let capture = Capture::open(&dir).expect("opens");
        assert_eq!(capture.state(), CaptureState::Interrupted);
        let data = capture.read().expect("reads");
        assert!(data.damage.parts.is_empty() && data.damage.missing_parts.is_empty(), "{:?}", data.damage);
        assert!(data.messages.len() >= 200 && data.messages.len().is_multiple_of(100), "{}", data.messages.len());
        assert!(data.messages.len() as u64 >= data.meta.tables[&Table::Messages].rows);
        assert!(data.warnings().iter().any(|w| w.contains("not ended properly")));
    }
}

#[test]
fn a_full_disk_keeps_what_was_saved_and_counts_the_rest() {
    if env::var_os("MESHDIFF_SKIP_PRIVILEGED").is_some_and(|v| v == "1") {
        println!("left out: MESHDIFF_SKIP_PRIVILEGED=1");
        return;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts a small disk and needs root; MESHDIFF_SKIP_PRIVILEGED=1 leaves it out"
    );
    // A mount namespace of this thread alone: the disk is gone with it.
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private");
    let tmp = tempfile::tempdir().expect("a folder");
    mount(Some("tmpfs"), tmp.path(), Some("tmpfs"), MsFlags::empty(), Some("size=512k")).expect("a small disk");
    let dir = tmp.path().join("c");
    let mut writer = CaptureWriter::create(&dir, &common::meta(), WriterOptions::default()).expect("created");
    let (mut given, mut full) = (0_u64, None);
    for second in 0..200 {
        for i in 0..500 {
            writer.write_message(common::message(second * 500 + i)).expect("in memory");
            given += 1;
        }
        match writer.roll(&common::meta()) {
            Ok(()) if full.is_none() => {}
            // Smaller things may fit again.
            Ok(()) => break,
            Err(e) => full = Some(full.unwrap_or(e)),
        }
        if full.is_some() && second > 50 {
            break;
        }
    }
    let error = full.expect("the disk filled up");
    assert!(error.is_disk_full(), "{error}");
    let CaptureError::DiskFull { saved_rows, dropped_rows, .. } = error else { unreachable!() };
    assert!(saved_rows > 0 && dropped_rows > 0);
    assert!(error_text_is_clear(&writer, &dir));
    let stats = writer.stats()[&Table::Messages];
    assert_eq!(stats.rows + stats.dropped_rows, given);
    let finished = writer.finish(common::meta());
    drop(writer);
    let capture = Capture::open(&dir).expect("opens");
    let data = capture.read().expect("reads");
    assert_eq!(data.messages.len() as u64, stats.rows);
    assert!(data.damage.is_empty(), "{:?}", data.damage);
    if let Ok(meta) = finished {
        assert_eq!(capture.state(), CaptureState::Complete);
        assert!(meta.warnings.iter().any(|w| w.contains("could not be written")), "{:?}", meta.warnings);
    }
}

/// No unfinished file is left to take room.
fn error_text_is_clear(writer: &CaptureWriter, dir: &Path) -> bool {
    let leftovers = fs::read_dir(dir.join("messages")).expect("list").flatten();
    writer.dir() == dir && leftovers.filter(|e| e.path().extension().is_some_and(|x| x == "tmp")).count() == 0
}

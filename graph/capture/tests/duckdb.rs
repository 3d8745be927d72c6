//! DuckDB opens a capture and understands it.

use meshdiff_capture::{CaptureSink, CaptureWriter, WriterOptions};
use meshdiff_model::{Content, Direction, SocketCookie};
use std::collections::BTreeMap;
use std::process::Command;

mod common;

#[test]
fn duckdb_reads_a_capture() {
    if std::env::var_os("MESHDIFF_SKIP_DUCKDB").is_some_and(|v| v == "1") {
        println!("left out: MESHDIFF_SKIP_DUCKDB=1");
        return;
    }
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("capture");
    let messages: Vec<_> = (0..400).map(common::message).collect();
    let mut logs: Vec<_> = (0..100).map(common::access_log).collect();
    logs[3].response_flags = vec!["URX".into(), "UF".into()];
    let mut writer = CaptureWriter::create(&dir, &common::meta(), WriterOptions::default()).expect("created");
    for (i, message) in messages.iter().enumerate() {
        writer.write_message(message.clone()).expect("written");
        if i % 150 == 0 {
            // Half of the sockets, known better each time.
            for cookie in (40_000..40_064).step_by(2) {
                let mut socket = common::socket(cookie);
                socket.last_seen.0 += i as u64;
                writer.write_socket(socket).expect("written");
            }
            writer.roll(&common::meta()).expect("rolled");
        }
    }
    for log in &logs {
        writer.write_access_log(log.clone()).expect("written");
    }
    writer.write_proxy(common::proxy(1)).expect("written");
    writer.finish(common::meta()).expect("finished");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/duckdb.sh");
    let output = Command::new(script).arg(&dir).output().expect("the script starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let found: BTreeMap<_, _> = text.lines().filter_map(|l| l.split_once(' ')).collect();

    let sends: Vec<_> = messages.iter().flat_map(|m| &m.sends).collect();
    let first = sends.iter().map(|s| s.at.0).min().expect("sends");
    let seqs: u64 = sends.iter().map(|s| u64::from(s.seq.0)).sum();
    let known = |c: SocketCookie| c.0.is_multiple_of(2);
    let joined: Vec<_> = messages
        .iter()
        .filter(|m| m.direction == Direction::Egress && known(m.socket))
        .filter(|m| matches!(m.content, Content::Http1Request { .. }))
        .map(|m| common::socket(m.socket.0).local)
        .collect();
    let mut ips: Vec<_> = joined.iter().map(|a| a.ip()).collect();
    ips.sort();
    ips.dedup();
    let port = joined.iter().map(|a| a.port()).min().expect("joined");
    assert_eq!(found["messages"], "400");
    assert_eq!(found["empty"], "0");
    assert_eq!(found["sockets"], format!("32 {}", common::socket(40_062).last_seen.0 + 300));
    assert_eq!(found["sends"], format!("{} {first} {seqs}", sends.len()));
    assert_eq!(found["joined"], format!("{} {} {port}", joined.len(), ips.len()));
    assert!(found["logs"].starts_with("50 ") && found["logs"].ends_with(" 2026-02-02"), "{}", found["logs"]);
    assert_eq!(found["labels"], "reviews 2");
    assert_eq!(found["flags"], "['UF', 'URX']");
}

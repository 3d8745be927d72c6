//! Folders that are no capture, captures that are damaged, and outputs that must not be written to.

use meshdiff_capture::{
    Capture, CaptureError, CaptureSink, CaptureState, CaptureWriter, Existing, PartError, ReadOptions, Table,
    WriterOptions,
};
use std::fs;
use std::path::Path;

mod common;

const REPLACE: WriterOptions =
    WriterOptions { existing: Existing::ReplaceCapture, raw: false, max_rows_in_memory: 1_000, sync: false };

/// A complete capture with three parts of messages (the first one is empty) of ten rows each.
fn capture(dir: &Path) {
    let mut writer = CaptureWriter::create(dir, &common::meta(), REPLACE).expect("created");
    for part in 0..2 {
        for i in 0..10 {
            writer.write_message(common::message(part * 10 + i)).expect("written");
        }
        writer.write_socket(common::socket(part)).expect("written");
        writer.roll(&common::meta()).expect("rolled");
    }
    writer.finish(common::meta()).expect("finished");
}

fn open_error(dir: &Path) -> CaptureError {
    Capture::open(dir).expect_err("must be refused")
}

#[test]
fn what_is_no_capture_is_named() {
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("c");
    assert!(matches!(open_error(&dir), CaptureError::NotFound(_)));
    fs::write(&dir, "x").expect("written");
    assert!(matches!(open_error(&dir), CaptureError::NotAFolder(_)));
    assert!(matches!(CaptureWriter::create(&dir, &common::meta(), REPLACE), Err(CaptureError::NotAFolder(_))));
    fs::remove_file(&dir).expect("removed");
    fs::create_dir(&dir).expect("made");
    let error = open_error(&dir);
    assert!(matches!(error, CaptureError::NoMeta(_)), "{error}");
    assert!(error.to_string().contains("meshdiff record --output"), "{error}");

    let meta = dir.join("meta.json");
    for (json, expected) in [
        ("", "EOF"),
        ("[]", "does not describe a capture"),
        ("{\"a\":1}", "no schemaVersion"),
        ("{\"schemaVersion\":7}", "does not describe a capture"),
        ("{\"schemaVersion\":\"other/v1\"}", "other/v1"),
        ("{\"schemaVersion\":\"meshdiff.capture/v1\",\"state\":5}", "does not describe a capture"),
    ] {
        fs::write(&meta, json).expect("written");
        let error = open_error(&dir);
        assert!(matches!(error, CaptureError::BadMeta { .. }), "{json}: {error:?}");
        assert!(error.to_string().contains(expected), "{json}: {error}");
    }
    fs::write(&meta, "{\"schemaVersion\":\"meshdiff.capture/v3\",\"state\":{\"new\":1}}").expect("written");
    let error = open_error(&dir);
    assert!(matches!(error, CaptureError::NewerSchema { .. }), "{error:?}");
    assert!(error.to_string().contains("upgrade"), "{error}");
    // Fields that are missing or unknown do not matter within a version.
    fs::write(&meta, "{\"schemaVersion\":\"meshdiff.capture/v1\",\"later\":1}").expect("written");
    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert!(data.messages.is_empty() && data.state == CaptureState::Interrupted);
}

#[test]
fn a_damaged_part_is_left_out_counted_and_named() {
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("c");
    capture(&dir);
    let part = dir.join("messages/part-00001.parquet");
    let whole = fs::read(&part).expect("read");
    fs::write(&part, &whole[..whole.len() / 2]).expect("written");
    fs::write(dir.join("messages/part-00003.parquet.tmp"), "half").expect("written");
    fs::remove_file(dir.join("sockets/part-00002.parquet")).expect("removed");

    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert_eq!(data.messages.len(), 10);
    assert_eq!(data.damage.parts.len(), 1);
    assert_eq!(data.damage.parts[0].reason, PartError::Truncated);
    assert_eq!(data.damage.leftover_temporary_files, 1);
    assert_eq!(data.damage.missing_parts, [(Table::Sockets, 1)].into());
    let warnings = data.warnings().join("\n");
    assert!(warnings.contains("messages/part-00001.parquet was left out: it is cut short"), "{warnings}");

    let strict = Capture::open(&dir).expect("opens").read_with(ReadOptions { strict: true });
    assert!(matches!(strict, Err(CaptureError::Damaged(_))), "{strict:?}");

    let mut flipped = whole.clone();
    flipped[300] ^= 4;
    fs::write(&part, flipped).expect("written");
    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert_eq!(data.damage.parts[0].reason, PartError::Checksum);
    // A part of another table in its place.
    fs::copy(dir.join("processes/part-00000.parquet"), &part).expect("copied");
    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert_eq!(data.damage.parts[0].reason, PartError::MissingColumn { column: "cookie" });
    // A folder in its place.
    fs::remove_file(&part).expect("removed");
    fs::create_dir(&part).expect("made");
    let data = Capture::open(&dir).expect("opens").read().expect("reads");
    assert!(matches!(data.damage.parts[0].reason, PartError::Io(_)));
}

#[test]
fn an_output_that_holds_something_is_refused() {
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("c");
    capture(&dir);
    let refuse = WriterOptions { existing: Existing::Refuse, ..REPLACE };
    let error = CaptureWriter::create(&dir, &common::meta(), refuse).err().expect("refused");
    assert!(matches!(error, CaptureError::OutputExists(_)) && error.to_string().contains("--force"), "{error}");
    assert_eq!(Capture::open(&dir).expect("still there").read().expect("reads").messages.len(), 20);
    // Replacing deletes a capture, and nothing else.
    fs::write(dir.join("sockets/notes.txt"), "mine").expect("written");
    let error = CaptureWriter::create(&dir, &common::meta(), REPLACE).err().expect("refused");
    assert!(matches!(&error, CaptureError::OutputForeign { found, .. } if found == "sockets/notes.txt"), "{error}");
    assert_eq!(Capture::open(&dir).expect("still there").read().expect("reads").messages.len(), 20);
    fs::remove_file(dir.join("sockets/notes.txt")).expect("removed");
    let writer = CaptureWriter::create(&dir, &common::meta(), REPLACE).expect("replaced");
    let now = Capture::open(&dir).expect("opens");
    assert_eq!(now.state(), CaptureState::InProgress);
    assert!(now.read().expect("reads").messages.is_empty());
    let busy = CaptureWriter::create(&dir, &common::meta(), REPLACE).err().expect("refused");
    assert!(matches!(busy, CaptureError::OutputBusy(_)), "{busy}");
    drop(writer);
    assert_eq!(Capture::open(&dir).expect("opens").state(), CaptureState::Interrupted);
    // An empty folder is fine, and nothing is added to what is finished.
    let empty = tmp.path().join("empty");
    fs::create_dir(&empty).expect("made");
    let mut writer = CaptureWriter::create(&empty, &common::meta(), refuse).expect("created");
    writer.finish(common::meta()).expect("finished");
    assert!(matches!(writer.write_message(common::message(0)), Err(CaptureError::Finished(_))));
}

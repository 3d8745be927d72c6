//! `/v1/capture`: segments of the window as one capture, streamed as an uncompressed tar.
//!
//! The parts of all segments are numbered through, in order of time; what readers join, they join over all of it, so that a request
//! which straddles two segments is whole. Nothing is decoded on the way, unless pods that have nothing to do with the namespaces that
//! were asked for are left out.

mod chosen;
mod merged;
#[cfg(test)]
mod tests;

pub(crate) use chosen::{Chosen, REACH, Reach};
pub(crate) use merged::{AGENT_START, merged, merged_metas};

use super::window::{PartFile, Segment};
use bytes::{Bytes, BytesMut};
use meshdiff_capture::{Meta, PartFilter, Table};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What is sent at once.
const CHUNK: usize = 64 * 1024;

/// Writes segments as one capture. `chosen` says which rows; without, all.
pub(crate) fn write_tar(
    segments: &[Arc<Segment>],
    mut meta: Meta,
    chosen: Option<&Chosen>,
    to: impl Write,
) -> io::Result<()> {
    let modified = u64::try_from(segments.last().map_or(0, |s| s.end.wall.0) / 1_000_000_000).unwrap_or(0);
    if let Some(chosen) = chosen {
        if let Some(kubernetes) = &mut meta.kubernetes {
            kubernetes.pods.retain(|pod| chosen.pod(pod));
        }
        // What will be left of them is known only when it was written.
        meta.tables.clear();
    }
    let mut tar = Tar { builder: tar::Builder::new(to), modified };
    let mut json = serde_json::to_vec_pretty(&meta).map_err(io::Error::other)?;
    json.push(b'\n');
    tar.file("meta.json", json.len() as u64, &json[..])?;
    let mut next: BTreeMap<Table, u64> = BTreeMap::new();
    let mut filter = PartFilter::default();
    for segment in segments {
        for part in segment.parts()? {
            let number = next.entry(part.table).or_default();
            let name = format!("{}/part-{number:05}.parquet", part.table);
            let written = match chosen {
                None => tar.copy(&name, &part).map(|()| true)?,
                Some(chosen) => {
                    let bytes = Bytes::from(fs::read(&part.path)?);
                    match filter.apply(part.table, bytes, chosen) {
                        Ok(Some(kept)) => tar.file(&name, kept.len() as u64, &kept[..]).map(|()| true)?,
                        Ok(None) => false,
                        Err(reason) => {
                            tracing::warn!(part = %part.path.display(), %reason, "a damaged part is left out");
                            false
                        }
                    }
                }
            };
            *number += u64::from(written);
        }
    }
    tar.builder.into_inner()?.flush()
}

struct Tar<W: Write> {
    builder: tar::Builder<W>,
    modified: u64,
}

impl<W: Write> Tar<W> {
    fn file(&mut self, name: &str, bytes: u64, from: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_mtime(self.modified);
        self.builder.append_data(&mut header, name, from)
    }

    fn copy(&mut self, name: &str, part: &PartFile) -> io::Result<()> {
        let file = File::open(&part.path)?;
        if file.metadata()?.len() != part.bytes {
            return Err(io::Error::other(format!("{} changed while it was read", part.path.display())));
        }
        self.file(name, part.bytes, file)
    }
}

/// Sends what is written in chunks; fails when nobody takes them any more.
pub(crate) struct ToChannel {
    chunk: BytesMut,
    to: mpsc::Sender<Result<Bytes, io::Error>>,
}

impl ToChannel {
    pub(crate) fn new(to: mpsc::Sender<Result<Bytes, io::Error>>) -> Self {
        Self { chunk: BytesMut::with_capacity(CHUNK), to }
    }

    fn send(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK)).freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked has gone");
        self.to.blocking_send(Ok(chunk)).map_err(gone)
    }
}

impl Write for ToChannel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { self.send() }
    }
}

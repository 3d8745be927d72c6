//! The recording on disk: a capture for each node, and what is to be known of them together.

use crate::cluster::fetch::Fetched;
use crate::cluster::merge::{Merged, together};
use crate::exit::Failure;
use anyhow::{Context, anyhow};
use meshdiff_capture::{Capture, Table};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Beside the nodes' folders.
const FILE: &str = "recording.json";
const SCHEMA: &str = "meshdiff.recording/v1";
/// Where captures are until they are whole.
const INCOMING: &str = ".incoming";

/// `recording.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct About {
    schema_version: String,
    /// The cluster, as the kubeconfig calls it.
    pub(super) cluster: String,
    /// `None` for all.
    pub(super) namespace: Option<String>,
    /// How long all agents recorded.
    pub(super) seconds: f64,
    /// The nodes, each of which has a folder of its name.
    pub(super) nodes: Vec<String>,
    /// What limits it, in sentences.
    pub(super) notes: Vec<String>,
}

impl About {
    pub(super) fn new(cluster: &str, namespace: Option<&str>, recorded: Duration, notes: Vec<String>) -> Self {
        Self {
            schema_version: SCHEMA.to_owned(),
            cluster: cluster.to_owned(),
            namespace: namespace.map(str::to_owned),
            seconds: recorded.as_secs_f64(),
            nodes: Vec::new(),
            notes,
        }
    }
}

/// The output folder while a recording is made. Without [`Self::finish`] it is gone as if it had never been there.
pub(super) struct Output {
    path: PathBuf,
    finished: bool,
}

impl Output {
    /// Makes it, before anything is asked of a cluster: what cannot be written is not worth recording.
    pub(super) fn create(path: &Path, force: bool) -> anyhow::Result<Self> {
        let context = || format!("cannot write {}", path.display());
        // What a recording was about to fetch that was killed is nothing.
        let is_old = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|e| e.file_name() == INCOMING);
        match fs::read_dir(path).map(|mut entries| entries.all(is_old)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(context),
            Ok(true) => {}
            Ok(false) if force => remove_recording(path)?,
            Ok(false) => {
                return Err(anyhow!(
                    "the output folder {} exists and is not empty: choose another --output, move it away, or replace the recording in it with --force",
                    path.display()
                ));
            }
        }
        match fs::remove_dir_all(path.join(INCOMING)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(context),
            _ => {}
        }
        fs::create_dir_all(path.join(INCOMING)).with_context(context)?;
        Ok(Self { path: path.to_owned(), finished: false })
    }

    /// Where captures are put that come in.
    pub(super) fn incoming(&self) -> PathBuf {
        self.path.join(INCOMING)
    }

    /// Gives the captures their places, and says what they are.
    pub(super) fn finish(mut self, fetched: &[Fetched], mut about: About) -> anyhow::Result<()> {
        let context = || format!("cannot write {}", self.path.display());
        for capture in fetched {
            fs::rename(&capture.folder, self.path.join(&capture.node)).with_context(context)?;
            about.nodes.push(capture.node.clone());
        }
        fs::remove_dir_all(self.incoming()).with_context(context)?;
        let text = serde_json::to_string_pretty(&about).context("recording.json")?;
        fs::write(self.path.join(FILE), text + "\n").with_context(context)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            drop(fs::remove_dir_all(self.incoming()));
            // Only if nothing else is in it.
            drop(fs::remove_dir(&self.path));
        }
    }
}

/// Takes a recording away to make room for another. What is none is not touched.
fn remove_recording(path: &Path) -> anyhow::Result<()> {
    let foreign = |what: &Path| {
        anyhow!(
            "the output folder {} holds something that is not a recording of a cluster ({}): it is not touched, choose another --output",
            path.display(),
            what.strip_prefix(path).unwrap_or(what).display()
        )
    };
    let list = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        Ok(entries.collect::<io::Result<Vec<_>>>()?.into_iter().map(|e| e.path()).collect())
    };
    let about = read(path)?.ok_or_else(|| foreign(path))?;
    let mut folders = Vec::new();
    // Everything is looked at before anything is deleted.
    for entry in list(path)? {
        let name = entry.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if about.nodes.contains(&name) && entry.is_dir() {
            for part in list(&entry)? {
                let part_name = part.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                if part_name != "meta.json" && !Table::ALL.iter().any(|t| t.as_str() == part_name) {
                    return Err(foreign(&part));
                }
            }
            folders.push(entry);
        } else if name != FILE && name != INCOMING {
            return Err(foreign(&entry));
        }
    }
    // Its description first: what is half deleted must not look like a recording.
    fs::remove_file(path.join(FILE))?;
    for folder in folders {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Option<About>> {
    let file = path.join(FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
    };
    let about: About = serde_json::from_str(&text)
        .with_context(|| format!("{} does not describe a recording: it is damaged", file.display()))?;
    let later = about.schema_version != SCHEMA;
    if later {
        return Err(anyhow!(
            "{} has the version {:?}, and this meshdiff reads {SCHEMA}: use the meshdiff that wrote it",
            file.display(),
            about.schema_version
        ));
    }
    // Names become paths.
    if let Some(strange) = about.nodes.iter().find(|n| !crate::cluster::is_name(n)) {
        return Err(anyhow!("{} names a node {strange:?}, which cannot be one", file.display()));
    }
    Ok(Some(about))
}

/// The captures of a recording's nodes; `None` if this is not a recording of a cluster.
pub(crate) fn nodes_of(path: &Path) -> Result<Option<Vec<(String, PathBuf)>>, Failure> {
    let about = read(path)?;
    Ok(about.map(|a| a.nodes.into_iter().map(|n| (n.clone(), path.join(n))).collect()))
}

/// A recording, as one capture.
pub(crate) struct Recorded {
    /// All nodes on one timeline.
    pub(crate) merged: Merged,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// How long all agents recorded: some have more, from before the others were ready.
    pub(crate) recorded: Duration,
}

/// Reads a recording of a cluster; `None` if this is not one.
pub(crate) fn recorded(path: &Path) -> Result<Option<Recorded>, Failure> {
    let Some(about) = read(path)? else { return Ok(None) };
    let mut captures = Vec::new();
    for node in &about.nodes {
        captures.push((node.clone(), Capture::open(path.join(node))?.read()?));
    }
    let mut merged = together(captures)?;
    merged.notes.extend(about.notes);
    let recorded = Duration::try_from_secs_f64(about.seconds).unwrap_or(Duration::MAX);
    Ok(Some(Recorded { merged, cluster: about.cluster, recorded }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_capture::{CaptureSink, CaptureWriter, Meta, WriterOptions};

    fn about() -> About {
        About::new("kind-x", Some("shop"), Duration::from_millis(61_500), vec!["a note".to_owned()])
    }

    fn capture(folder: &Path) -> Fetched {
        let meta = Meta::default();
        let mut writer = CaptureWriter::create(folder, &meta, WriterOptions::default()).expect("a capture");
        writer.finish(meta).expect("finished");
        Fetched { node: "node-a.example".to_owned(), folder: folder.to_owned() }
    }

    #[test]
    fn a_recording_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("recording");
        let output = Output::create(&path, false).expect("made");
        let fetched = capture(&output.incoming().join("node-0"));
        output.finish(&[fetched], about()).expect("finished");
        let nodes = nodes_of(&path).unwrap_or_else(|_| panic!("read")).expect("a recording");
        assert_eq!(nodes, [("node-a.example".to_owned(), path.join("node-a.example"))]);
        let read = recorded(&path).unwrap_or_else(|_| panic!("read")).expect("a recording");
        assert_eq!((read.cluster.as_str(), read.recorded), ("kind-x", Duration::from_millis(61_500)));
        assert!(read.merged.notes.contains(&"a note".to_owned()));
        assert!(!path.join(INCOMING).exists());
        // A second one does not fall on top of it, but takes its place if it is told to.
        assert!(Output::create(&path, false).map(|_| ()).unwrap_err().to_string().contains("--force"));
        drop(Output::create(&path, true).expect("made"));
        assert!(!path.exists(), "what was not finished left something");
        // One that was killed has not even that.
        fs::create_dir_all(path.join(INCOMING).join("node-0")).expect("made");
        let output = Output::create(&path, false).expect("made");
        assert_eq!(fs::read_dir(output.incoming()).expect("a folder").count(), 0);
    }

    #[test]
    fn what_is_not_a_recording_is_not_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path();
        fs::write(path.join("letter"), "dear").expect("written");
        assert!(Output::create(path, true).map(|_| ()).unwrap_err().to_string().contains("not touched"));
        fs::write(path.join(FILE), serde_json::to_string(&about()).expect("JSON")).expect("written");
        let refused = Output::create(path, true).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("letter") && path.join("letter").exists(), "{refused}");
        assert!(nodes_of(&path.join("nowhere")).unwrap_or_else(|_| panic!("no error")).is_none());
        let hostile = About { nodes: vec!["../../etc".to_owned()], ..about() };
        fs::write(path.join(FILE), serde_json::to_string(&hostile).expect("JSON")).expect("written");
        assert!(nodes_of(path).is_err());
    }
}

//! `meshdiff record` around something, and what it recorded.

use crate::{Request, binary};
use meshdiff_lab::clock::MonotonicNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long an end may take: the drain of 3 s, and a slow machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running `meshdiff record`. Killed if it is dropped before it was stopped.
#[derive(Debug)]
pub struct Recorder {
    child: Child,
    output: PathBuf,
    said: std::thread::JoinHandle<String>,
}

impl Recorder {
    /// Starts recording into a folder, and waits until it does.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn start(output: &Path, als_port: u16, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary("meshdiff"))
            .args(["record", "--als-listen", &format!("0.0.0.0:{als_port}")])
            .arg("--output")
            .arg(output)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("meshdiff runs");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            for line in lines.map_while(Result::ok) {
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        if !first.starts_with("Recording") {
            drop(child.kill());
            drop(child.wait());
            panic!("meshdiff does not record: {first}\n{}", said.join().unwrap_or_default());
        }
        Self { child, output: output.to_owned(), said }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the recording as Ctrl-C does. Returns the capture's folder and what was said on stderr.
    ///
    /// # Panics
    /// If it does not end well.
    #[must_use]
    pub fn stop(mut self) -> (PathBuf, String) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"));
        kill(pid, Signal::SIGINT).expect("the recorder is running");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the recorder is ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "meshdiff does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = std::mem::replace(&mut self.said, std::thread::spawn(String::new)).join().expect("the reader lives");
        assert!(status.success(), "meshdiff record failed: {said}");
        (self.output.clone(), said)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The first and the last instant of a capture.
///
/// # Panics
/// If it does not say.
#[must_use]
pub fn window(capture: &Path) -> [MonotonicNs; 2] {
    let text = std::fs::read_to_string(capture.join("meta.json")).expect("a capture says what it is");
    let meta: Value = serde_json::from_str(&text).expect("meta.json is JSON");
    ["start", "end"].map(|end| MonotonicNs(meta[end]["monotonic"].as_u64().expect("a whole capture has both ends")))
}

/// The requests of a capture, with all their instants.
///
/// # Panics
/// If meshdiff fails, or prints what is no request.
#[must_use]
pub fn requests(capture: &Path) -> Vec<Request> {
    let output = Command::new(binary("meshdiff"))
        .args(["requests", "--instants", "--capture"])
        .arg(capture)
        .stderr(Stdio::inherit())
        .output()
        .expect("meshdiff runs");
    assert!(output.status.success(), "meshdiff requests failed");
    let lines = String::from_utf8(output.stdout).expect("the output is UTF-8");
    lines.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l}"))).collect()
}

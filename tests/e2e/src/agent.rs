//! `meshdiff agent` as a process, and its HTTP server as a caller sees it.

use crate::binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a start, an answer or an end may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The token of all agents of the tests.
pub const TOKEN: &str = "a-token-that-only-tests-know";

/// A running agent. Killed if it is dropped before it was ended.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    port: u16,
    logs: PathBuf,
}

/// What an agent answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {} {}", self.head, String::from_utf8_lossy(&self.body)))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Agent {
    /// Starts an agent with its window, its token and its logs in a folder, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become so.
    #[must_use]
    pub fn start(folder: &Path, als_port: u16, arguments: &[&str]) -> Self {
        let token = folder.join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).expect("a token");
        let logs = folder.join("agent.log");
        let log = File::options().create(true).append(true).open(&logs).expect("a log");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let child = Command::new(binary("meshdiff"))
            .args(["agent", "--no-kube", "--log-format", "json", "--node-name", "lab-node"])
            .args(["--als-listen", &format!("0.0.0.0:{als_port}"), "--listen", &format!("127.0.0.1:{port}")])
            .arg("--window")
            .arg(folder.join("window"))
            .arg("--token-file")
            .arg(&token)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("meshdiff runs");
        let mut agent = Self { child, port, logs };
        let deadline = Instant::now() + PATIENCE;
        while agent.try_get("/readyz", None).is_none_or(|a| a.status != 200) {
            let ended = agent.child.try_wait().expect("the agent is ours");
            assert!(ended.is_none() && Instant::now() < deadline, "the agent is not ready: {}", agent.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged, and those before it in the same folder.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.logs).unwrap_or_default()
    }

    /// Asks with the token.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.get_with(path, Some(TOKEN))
    }

    /// Asks with another token, or none.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn get_with(&self, path: &str, token: Option<&str>) -> Answer {
        self.try_get(path, token).unwrap_or_else(|| panic!("no answer to {path}: {}", self.said()))
    }

    /// In HTTP/1.0, so that the body is all that comes until the connection ends.
    fn try_get(&self, path: &str, token: Option<&str>) -> Option<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let token = token.map(|t| format!("X-Meshdiff-Token: {t}\r\n")).unwrap_or_default();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n{token}\r\n").ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok()?;
        let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&all[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body: all.split_off(end + 4) })
    }

    /// Fetches a capture into a new folder.
    ///
    /// # Panics
    /// If what comes is none.
    pub fn fetch(&self, query: &str, into: &Path) {
        let answer = self.get(&format!("/v1/capture{query}"));
        assert_eq!(answer.status, 200, "{}: {}", answer.head, answer.text());
        let head = answer.head.to_ascii_lowercase();
        assert!(head.contains("content-type: application/x-tar"), "{head}");
        assert!(head.contains("x-meshdiff-schema: meshdiff.capture/v"), "{head}");
        assert!(answer.body.ends_with(&[0; 1024]), "the tar has no end");
        tar::Archive::new(&answer.body[..]).unpack(into).expect("a tar");
    }

    /// The value of a metric without labels, or the sum over all labels.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get_with("/metrics", None).text();
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next()? == name).then(|| value.parse::<f64>().ok())?
        };
        let values: Vec<f64> = text.lines().filter_map(value).collect();
        assert!(!values.is_empty(), "no metric {name} in:\n{text}");
        values.iter().sum()
    }

    /// Kills it, as the kernel does when memory is short.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the agent is running");
        self.child.wait().expect("the agent is ours");
    }

    /// Ends it, as a node does.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn end(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits")), Signal::SIGTERM).expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the agent is ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "the agent does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

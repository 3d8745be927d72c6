//! A ClickHouse for tests: chdb behind ClickHouse's HTTP protocol (`server.py`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

/// The one user's password. Has what addresses and headers can stumble over.
pub(crate) const PASSWORD: &str = "s3cret:/@ %";

/// True if tests with it are to be left out.
pub(crate) fn left_out() -> bool {
    let out = std::env::var_os("MESHDIFF_SKIP_CLICKHOUSE").is_some_and(|v| v == "1");
    if out {
        println!("left out: MESHDIFF_SKIP_CLICKHOUSE=1");
    }
    out
}

/// A server, which ends with this.
pub(crate) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let tests = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clickhouse"));
        let setup = Command::new(tests.join("setup.sh")).output().expect("the script starts");
        assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
        let python = String::from_utf8(setup.stdout).expect("a path");
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = Command::new(python.trim())
            .arg(tests.join("server.py"))
            .args([folder.path().as_os_str(), "re@der".as_ref(), PASSWORD.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let port = line.trim().parse().expect("a port");
        Self { child, stdin, port, _folder: folder }
    }

    /// The address of one of its databases, with or without the tables' being there.
    pub(crate) fn database(&self, name: &str) -> String {
        self.ask(&format!("CREATE DATABASE IF NOT EXISTS `{name}`"));
        format!("clickhouse://re%40der:s3cret%3A%2F%40%20%25@127.0.0.1:{}/{name}", self.port)
    }

    /// What a statement answers, as text.
    pub(crate) fn ask(&self, statement: &str) -> String {
        let (status, body) = self.request("POST", "/", statement);
        assert!(status == 200, "{statement}: {body}");
        body
    }

    /// Makes the next statements fail that hold a text.
    pub(crate) fn trouble(&self, kind: &str, times: u32, matching: &str) {
        let matching = matching.replace(' ', "%20").replace('`', "%60");
        let path = format!("/trouble?kind={kind}&times={times}&match={matching}");
        assert_eq!(self.request("POST", &path, "").0, 200);
    }

    /// What came, a line for each statement.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.request("GET", "/seen", "").1.lines().map(str::to_owned).collect()
    }

    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\nX-ClickHouse-User: re@der\r\n\
             X-ClickHouse-Key: {PASSWORD}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        drop(self.child.wait());
    }
}

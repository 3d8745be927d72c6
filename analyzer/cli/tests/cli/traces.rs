//! `report --otlp`: what a collector receives. What is in it is the business of the tests of `reports`.

use crate::support::{fixture, meshdiff};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

/// Answers each request with the next of some answers, and hands on what came: head and body.
fn collector(answers: Vec<&'static str>) -> (u16, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (to, received) = channel();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        while let Ok((stream, _)) = listener.accept() {
            let Some(answer) = answers.next() else { break };
            let asked = exchange(stream, answer);
            if to.send(asked).is_err() {
                break;
            }
        }
    });
    (port, received)
}

fn exchange(mut stream: TcpStream, answer: &str) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec()).expect("a head");
            let length =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            let length: usize = length.expect("a length").trim().parse().expect("a number");
            if bytes.len() >= end + 4 + length {
                stream.write_all(answer.as_bytes()).expect("answered");
                return (head, bytes[end + 4..].to_vec());
            }
        }
        let n = stream.read(&mut chunk).expect("read");
        assert!(n > 0, "the request broke off");
        bytes.extend_from_slice(&chunk[..n]);
    }
}

const OK: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const REFUSED: &str = "HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 9\r\n\r\nno thanks";

fn report(port: u16, more: &[&str]) -> crate::support::Ended {
    let capture = fixture();
    let endpoint = format!("http://127.0.0.1:{port}");
    let args = ["report", "--capture", capture.to_str().expect("UTF-8"), "--otlp", &endpoint];
    meshdiff(Path::new("/"), &[&args[..], more].concat())
}

#[test]
fn a_collector_gets_the_traces_also_if_it_was_busy() {
    let (port, received) = collector(vec![BUSY, OK]);
    let ended = report(port, &["--otlp-sample", "3"]).says(0, &["Sent ", " spans to 127.0.0.1"]);
    assert!(!ended.stdout.is_empty(), "the report is there as well");
    let [first, second] = [received.recv().expect("once"), received.recv().expect("again")];
    assert_eq!(first.1, second.1, "the same again");
    let head = second.0.to_lowercase();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let traces: Value = serde_json::from_slice(&second.1).expect("JSON");
    let resources = traces["resourceSpans"].as_array().expect("resources");
    let spans = resources.iter().flat_map(|r| r["scopeSpans"][0]["spans"].as_array().expect("spans"));
    let roots = spans.filter(|s| s["parentSpanId"] == "").count();
    assert_eq!(roots, 3);
}

#[test]
fn a_refusal_is_said() {
    let (port, _received) = collector(vec![REFUSED]);
    report(port, &["--otlp-sample", "1"]).says(1, &["HTTP 400", "no thanks"]);
    let capture = fixture();
    let args = ["report", "--capture", capture.to_str().expect("UTF-8"), "--otlp", "localhost:4318"];
    meshdiff(Path::new("/"), &args).says(2, &["http://localhost:4318"]);
}

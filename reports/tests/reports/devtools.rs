//! A browser that is driven: real clicks and keys by Chromium's DevTools protocol, over its pipe (`--remote-debugging-pipe`: JSON
//! messages that end in a zero byte, on file descriptors 3 and 4).

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// For every answer and every condition.
const PATIENCE: Duration = Duration::from_secs(40);

/// A page in a browser of its own.
pub(crate) struct Page {
    browser: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// What the page logged or threw.
    pub(crate) complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Page {
    /// Opens a file. The window is as large as a laptop's.
    pub(crate) fn open(chromium: &str, file: &Path) -> Self {
        let profile = tempfile::tempdir().expect("an empty profile");
        // `timeout` ends the browser and all its processes also if this test is killed.
        let script = "exec 3<&0 4>&1; exec timeout --kill-after=5 120 \"$@\" >/dev/null 2>&1 </dev/null";
        let mut browser = Command::new("sh")
            .args(["-c", script, "sh", chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
            .args(["--disable-sync", "--window-size=1280,900", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let input = browser.stdin.take().expect("a pipe");
        let mut output = BufReader::new(browser.stdout.take().expect("a pipe"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while output.read_until(0, &mut bytes).is_ok_and(|n| n > 0) {
                bytes.pop();
                let message = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                if sender.send(message).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        let mut page = Self { browser, input, messages, session: None, next: 0, complaints: vec![], _profile: profile };
        let target = page.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attached = page.ask("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        page.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.ask(domain, json!({}));
        }
        page.ask("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        page.wait("document.body && document.body.dataset.ready === 'true'");
        page
    }

    /// Sends a command and waits for its answer.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message).expect("JSON");
        bytes.push(0);
        self.input.write_all(&bytes).expect("the browser listens");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.messages.recv_timeout(left).unwrap_or_else(|e| panic!("no answer to {method}: {e}"));
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            if matches!(
                message["method"].as_str(),
                Some("Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded")
            ) {
                self.complaints.push(message["params"].to_string());
            }
        }
    }

    /// The value of an expression.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let answer = self.ask("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of an expression.
    pub(crate) fn text(&mut self, expression: &str) -> String {
        let value = self.value(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}, which is no text")).to_owned()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.value(expression) != json!(true) {
            assert!(Instant::now() < deadline, "never became true: {expression}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks on the middle of what an expression yields: an element, or half-way along a path. It is scrolled to first.
    pub(crate) fn click(&mut self, element: &str) {
        let point = format!(
            "(() => {{ const e = {element}; document.documentElement.style.scrollBehavior = 'auto'; \
             e.scrollIntoView({{ block: 'center', inline: 'center' }}); \
             if (e.getPointAtLength) {{ const p = e.getPointAtLength(e.getTotalLength() / 2).matrixTransform(e.getScreenCTM()); \
             return [p.x, p.y]; }} \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let point = self.value(&point);
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let mouse = json!({ "type": kind, "x": point[0], "y": point[1], "button": "left", "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", mouse);
        }
    }

    /// Presses a key: `Tab`, `Escape`.
    pub(crate) fn key(&mut self, key: &str) {
        let code = if key == "Tab" { 9 } else { 27 };
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.ask("Input.dispatchKeyEvent", event);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        drop(self.browser.kill());
        drop(self.browser.wait());
    }
}

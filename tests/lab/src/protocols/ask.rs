//! What a client asks its server to do, in a header of the request.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::clock::{MonotonicNs, sleep_until};
use crate::hop::uuid_v4;
use crate::truth::{Doing, Nonce, Wait};

/// The header that carries an [`Ask`] as JSON.
pub const ASK: &str = "x-lab-ask";

/// By which a sidecar tells its server which attempt it is.
pub const ATTEMPT_COUNT: &str = "x-envoy-attempt-count";

/// The header by which a server says which attempt it answers.
pub const ATTEMPT: &str = "x-lab-attempt";

/// A wait within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// After so many bytes.
    pub after: u64,
    /// How long, in nanoseconds.
    pub ns: u64,
}

impl Pause {
    /// Milliseconds after so many bytes.
    pub const fn ms(after: u64, ms: u64) -> Self {
        Self { after, ns: ms * 1_000_000 }
    }

    /// Waits, blocking the thread.
    pub fn wait(self, doing: Doing) -> Wait {
        let start = MonotonicNs::now();
        sleep_until(MonotonicNs(start.0 + self.ns));
        Wait { doing, after_bytes: self.after, start, end: MonotonicNs::now() }
    }

    /// Waits, letting other tasks run. tokio's timer counts in milliseconds; what is noted is what it really was.
    pub async fn wait_async(self, doing: Doing) -> Wait {
        let start = MonotonicNs::now();
        tokio::time::sleep(std::time::Duration::from_nanos(self.ns)).await;
        Wait { doing, after_bytes: self.after, start, end: MonotonicNs::now() }
    }
}

/// A body: so many messages of that size, with a gap between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Flow {
    /// How many messages.
    pub messages: u32,
    /// Bytes of each.
    pub bytes: usize,
    /// Between two of them, in nanoseconds.
    pub gap_ns: u64,
    /// One longer wait.
    pub pause: Option<Pause>,
}

impl Flow {
    /// A body without gaps.
    pub const fn of(messages: u32, bytes: usize) -> Self {
        Self { messages, bytes, gap_ns: 0, pause: None }
    }

    /// The same with a gap between its messages.
    pub const fn gap_ms(self, ms: u64) -> Self {
        Self { gap_ns: ms * 1_000_000, ..self }
    }

    /// The same with one wait.
    pub const fn pause(self, pause: Pause) -> Self {
        Self { pause: Some(pause), ..self }
    }

    /// The body's size.
    pub const fn total(&self) -> usize {
        self.messages as usize * self.bytes
    }

    /// The wait that is due when `from` bytes became `to`.
    pub fn due(&self, from: u64, to: u64) -> Option<Pause> {
        due(self.pause, from, to)
    }
}

/// The pause, if it falls between `from` (exclusive) and `to` bytes.
pub fn due(pause: Option<Pause>, from: u64, to: u64) -> Option<Pause> {
    pause.filter(|pause| from < pause.after && pause.after <= to)
}

/// What is asked of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ask {
    /// The case.
    pub case: String,
    /// The status to answer; 200 if absent.
    pub status: Option<u16>,
    /// gRPC: the status to answer.
    pub grpc_status: u16,
    /// The response's body.
    pub response: Flow,
    /// How long to wait between request and response, in nanoseconds.
    pub think_ns: u64,
    /// What becomes of a sidecar's first attempts.
    pub fail: Option<Fail>,
    /// A wait while reading the request's body.
    pub read_pause: Option<Pause>,
    /// Answer after so many bytes of the request's body, without reading the rest.
    pub early_after: Option<u64>,
    /// HTTP/1.1: chunked instead of content-length.
    pub chunked: bool,
    /// Answer in HTTP/1.0, ended by closing.
    pub http10: bool,
    /// Streams: one message back for each one that comes.
    pub ping_pong: bool,
    /// HTTP/2: bytes of header fields in the response's head.
    pub large_head: usize,
    /// HTTP/1: whom to ask before answering.
    pub calls: Vec<Call>,
    /// All of them at once instead of one after the other.
    pub together: bool,
}

/// What becomes of the first attempts at a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fail {
    /// How many.
    pub first: u32,
    /// In which way.
    pub how: Failing,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failing {
    /// With a 503; a gRPC call with UNAVAILABLE.
    Status,
    /// The connection is closed instead of an answer; of HTTP/2, the stream is reset.
    Close,
    /// It takes so long instead of `thinkNs`.
    Slow {
        /// In nanoseconds.
        ns: u64,
    },
}

/// Which `x-request-id` a request carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Id {
    /// One that no other has.
    #[default]
    Own,
    /// None: the sidecar makes one.
    None,
    /// This one. The path does not tell such requests apart either.
    Given(String),
}

impl Id {
    /// The id to send.
    pub fn choose(&self) -> Option<String> {
        match self {
            Self::Own => Some(uuid_v4(rand::rng().random())),
            Self::None => None,
            Self::Given(id) => Some(id.clone()),
        }
    }

    /// The path of a request of that case.
    pub fn path(&self, case: &str, nonce: Nonce) -> String {
        match self {
            Self::Given(_) => format!("/{case}"),
            Self::Own | Self::None => format!("/{case}/{nonce}"),
        }
    }
}

/// What an application that calls on does with the id of the request that it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HandOn {
    /// It hands it on, as Istio asks of applications.
    #[default]
    Same,
    /// It makes another one.
    Another,
    /// It sends none.
    None,
}

/// A request that a server makes while it serves another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The `Host`.
    pub host: String,
    /// Where to.
    pub address: std::net::SocketAddr,
    /// What becomes of the id.
    pub id: HandOn,
    /// What is asked there.
    pub ask: Ask,
}

impl Ask {
    /// As the header's value.
    pub fn header(&self) -> String {
        // Serialising strings and numbers into memory does not fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How this attempt is to fail, if it is.
    pub fn failing(&self, attempt: Option<u32>) -> Option<Failing> {
        let fail = self.fail.filter(|fail| attempt.is_some_and(|n| n <= fail.first));
        fail.map(|fail| fail.how)
    }

    /// From the header's value; what is no ask asks for nothing.
    pub fn from_header(value: Option<&str>) -> Self {
        value.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}

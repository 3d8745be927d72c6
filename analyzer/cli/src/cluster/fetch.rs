//! Captures from the agents, several at once, each tried again where that may help.

use super::agents::Agent;
use super::connect::{Cluster, PATIENCE};
use super::error::{ClusterError, root, sentence};
use super::progress::Progress;
use super::unpack::{Limits, UnpackError, unpack};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Where agents listen (deploy/), and what they are asked with.
const PORT: u16 = 9902;
/// Besides `Authorization`, which the API server's proxy drops.
const TOKEN_HEADER: &str = "x-meshdiff-token";
/// How many agents are asked at once: the API server's proxy is shared.
const AT_ONCE: usize = 8;
/// How often one is asked, and how long is waited in between, the first time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// An answer that says why not is no longer than this.
const MOST_EXPLANATION: usize = 64 << 10;

/// What every agent is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// `None` for all.
    pub(super) namespace: Option<&'a str>,
    /// Back from now, by the agent's clock.
    pub(super) since: Duration,
}

impl Question<'_> {
    fn path(&self) -> String {
        // Whole seconds, and none of the time that was asked for cut off.
        let seconds = self.since.as_secs() + u64::from(self.since.subsec_nanos() > 0);
        let namespace = self.namespace.map(|n| format!("namespace={n}&")).unwrap_or_default();
        format!("v1/capture?{namespace}since={seconds}s")
    }
}

/// A capture that was fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    /// The node that it is of.
    pub(super) node: String,
    /// Where it is.
    pub(super) folder: PathBuf,
}

/// What came of asking everybody.
#[derive(Debug)]
pub(super) struct All {
    /// By node.
    pub(super) captures: Vec<Fetched>,
    /// Who did not answer, and why.
    pub(super) notes: Vec<String>,
}

/// Why an agent gave no capture.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// It is not running.
    #[error("{0}")]
    NotRunning(String),
    /// It wants another token.
    #[error(
        "it does not accept the token ({0}): the Secret meshdiff-token was changed since the agent started, or another token was given"
    )]
    WrongToken(String),
    /// The API server does not let us.
    #[error(
        "the API server does not let you ask it ({0}): you need the verb \"get\" on \"pods/proxy\" there, which the Role meshdiff-user grants"
    )]
    Forbidden(String),
    /// The API server does not know us (any more).
    #[error("the API server does not accept the kubeconfig's credentials any more ({0})")]
    Unauthorized(String),
    /// The API server cannot reach it.
    #[error("the API server cannot reach it: {0}")]
    Unreachable(String),
    /// It answered something else than a capture.
    #[error("it answered {status}: {text}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// Its words, or the proxy's.
        text: String,
    },
    /// Nothing came any more.
    #[error("nothing came from it for {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// What it sent is no capture.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// It speaks of other things than we do.
    #[error(
        "it writes captures as {0:?}, which this meshdiff cannot read: use the version of meshdiff that runs in the cluster"
    )]
    OtherSchema(String),
}

impl AgentError {
    /// True if asking again may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent(_) | Self::Broken(_) | Self::Unpack(UnpackError::Stream(_)) => true,
            Self::Refused { status, .. } => {
                matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }
}

/// Asks all agents. Fails if none has an answer.
pub(super) async fn all(
    cluster: &Cluster,
    agents: &[Agent],
    token: &HeaderValue,
    question: &Question<'_>,
    folder: &Path,
) -> Result<All, ClusterError> {
    let progress = Progress::new(agents.len());
    let asking = agents.iter().enumerate().map(|(i, agent)| {
        let (progress, place) = (&progress, folder.join(format!("node-{i}")));
        async move {
            let result = one(cluster, agent, token, question, &place, progress).await;
            progress.answered(&agent.node, result.is_ok());
            (agent, place, result)
        }
    });
    let mut answers: Vec<_> = futures::stream::iter(asking).buffer_unordered(AT_ONCE).collect().await;
    drop(progress);
    answers.sort_by(|a, b| (&a.0.node, &a.0.pod).cmp(&(&b.0.node, &b.0.pod)));
    let mut all = All { captures: Vec::new(), notes: Vec::new() };
    for (agent, folder, result) in answers {
        match result {
            Ok(()) => all.captures.push(Fetched { node: agent.node.clone(), folder }),
            Err(error) => all.notes.push(format!("the agent on {} was not asked: {error}", agent.node)),
        }
    }
    if all.captures.is_empty() {
        let reasons: Vec<String> = all.notes.iter().map(|n| format!("  {n}")).collect();
        return Err(ClusterError::AllAgentsFailed { count: agents.len(), reasons: reasons.join("\n") });
    }
    Ok(all)
}

/// Asks one agent until it has answered, or asking no longer helps.
async fn one(
    cluster: &Cluster,
    agent: &Agent,
    token: &HeaderValue,
    question: &Question<'_>,
    place: &Path,
    progress: &Progress,
) -> Result<(), AgentError> {
    if let Some(why) = &agent.not_running {
        return Err(AgentError::NotRunning(why.clone()));
    }
    let mut pause = PAUSE;
    for attempt in 1.. {
        // What an attempt before left is not mixed with this one's.
        if place.exists() {
            fs::remove_dir_all(place).map_err(|source| UnpackError::Write { path: place.to_owned(), source })?;
        }
        fs::create_dir_all(place).map_err(|source| UnpackError::Write { path: place.to_owned(), source })?;
        match capture(cluster, agent, token, question, place, progress).await {
            Err(error) if error.may_pass() && attempt < ATTEMPTS => {
                tracing::info!(node = agent.node, %error, attempt, "asking again");
                tokio::time::sleep(pause).await;
                pause *= 4;
            }
            result => return result,
        }
    }
    unreachable!("attempts end with a result")
}

async fn capture(
    cluster: &Cluster,
    agent: &Agent,
    token: &HeaderValue,
    question: &Question<'_>,
    place: &Path,
    progress: &Progress,
) -> Result<(), AgentError> {
    let response = get(cluster, &agent.pod, &question.path(), token).await?;
    if let Some(schema) = response.headers().get("x-meshdiff-schema").and_then(|s| s.to_str().ok())
        && !is_read(schema)
    {
        return Err(AgentError::OtherSchema(sentence(schema)));
    }
    let mut body = response.into_body();
    let (to_tar, chunks) = mpsc::channel(16);
    let folder = place.to_owned();
    let unpacking =
        tokio::task::spawn_blocking(move || unpack(Chunks { chunks, rest: Bytes::new() }, &folder, Limits::DEFAULT));
    let mut trouble = None;
    loop {
        let chunk = match tokio::time::timeout(PATIENCE, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => {
                trouble = Some(AgentError::Broken(root(&error)));
                break;
            }
            Err(_) => {
                trouble = Some(AgentError::Silent(PATIENCE));
                break;
            }
        };
        progress.received(chunk.len());
        // Who unpacks may have seen enough.
        if to_tar.send(Ok(chunk)).await.is_err() {
            break;
        }
    }
    if trouble.is_some() {
        drop(to_tar.send(Err(io::Error::from(io::ErrorKind::UnexpectedEof))).await);
    }
    drop(to_tar);
    let unpacked = unpacking.await.unwrap_or_else(|e| Err(UnpackError::Stream(io::Error::other(e))));
    match trouble {
        Some(trouble) => Err(trouble),
        None => Ok(unpacked.map(|_| ())?),
    }
}

/// Asks an agent through the API server. An answer that is not a good one is an error.
pub(super) async fn get(
    cluster: &Cluster,
    pod: &str,
    path: &str,
    token: &HeaderValue,
) -> Result<Response<Body>, AgentError> {
    let namespace = &cluster.agent_namespace;
    let uri = format!("/api/v1/namespaces/{namespace}/pods/http:{pod}:{PORT}/proxy/{path}");
    let request = Request::get(uri).header(TOKEN_HEADER, token.clone()).body(Body::empty());
    let request = request.map_err(|e| AgentError::Broken(e.to_string()))?;
    let response = match tokio::time::timeout(PATIENCE, cluster.client.send(request)).await {
        Err(_) => return Err(AgentError::Silent(PATIENCE)),
        Ok(Err(error)) => return Err(AgentError::Broken(root(&error))),
        Ok(Ok(response)) => response,
    };
    if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
}

async fn refusal(response: Response<Body>) -> AgentError {
    let status = response.status();
    let limited = http_body_util::Limited::new(response.into_body(), MOST_EXPLANATION);
    let text = match tokio::time::timeout(PATIENCE, limited.collect()).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        _ => String::new(),
    };
    explain(status, &text)
}

/// False for captures that a later version of meshdiff writes. Of older ones the reader says whether it still reads them.
pub(super) fn is_read(schema: &str) -> bool {
    let number = |schema: &str| schema.rsplit_once("/v").and_then(|(_, n)| n.parse::<u32>().ok());
    number(schema).is_some_and(|n| Some(n) <= number(meshdiff_capture::SCHEMA_VERSION))
}

/// Who says no: the API server answers with a `Status`, an agent with an error of its own.
fn explain(status: StatusCode, text: &str) -> AgentError {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let of_api_server = json["kind"] == "Status";
    let words = json["error"].as_str().or_else(|| json["message"].as_str()).unwrap_or(text);
    let words = sentence(words);
    match (status.as_u16(), of_api_server) {
        (401, true) => AgentError::Unauthorized(words),
        (401, false) => AgentError::WrongToken(words),
        (403, true) => AgentError::Forbidden(words),
        (404, true) => AgentError::Unreachable(format!("its pod is gone ({words})")),
        (502..=504, _) => AgentError::Unreachable(if words.is_empty() { status.to_string() } else { words }),
        _ => AgentError::Refused { status, text: words },
    }
}

/// The chunks of a body, for who reads and waits.
struct Chunks {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.rest = chunk?,
            }
        }
        let n = self.rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_no_is_told_apart() {
        let of = |code: u16, text: &str| explain(StatusCode::from_u16(code).expect("a status"), text);
        let agent = of(401, r#"{"error":"the token is missing"}"#);
        assert!(matches!(&agent, AgentError::WrongToken(w) if w == "the token is missing"), "{agent:?}");
        let server = of(401, r#"{"kind":"Status","code":401,"message":"Unauthorized"}"#);
        assert!(matches!(server, AgentError::Unauthorized(_)), "{server:?}");
        let forbidden = of(403, r#"{"kind":"Status","message":"pods \"x\" is forbidden"}"#);
        assert!(forbidden.to_string().contains("pods/proxy"), "{forbidden}");
        let down =
            of(503, r#"{"kind":"Status","message":"error trying to reach service: dial tcp: connection refused"}"#);
        assert!(down.may_pass() && down.to_string().contains("connection refused"), "{down}");
        let odd = of(418, "<html>\u{1b}[31m");
        assert!(!odd.may_pass() && !odd.to_string().contains('\u{1b}'), "{odd}");
    }

    #[test]
    fn later_schemas_are_not_read() {
        assert!(is_read(meshdiff_capture::SCHEMA_VERSION) && is_read("meshdiff.capture/v1"));
        assert!(!is_read("meshdiff.capture/v99") && !is_read("something else"));
    }

    #[test]
    fn questions_lose_no_time() {
        let question = |ms: u64| Question { namespace: Some("default"), since: Duration::from_millis(ms) }.path();
        assert_eq!(question(900_000), "v1/capture?namespace=default&since=900s");
        assert_eq!(question(1_500), "v1/capture?namespace=default&since=2s");
        let all = Question { namespace: None, since: Duration::from_secs(60) };
        assert_eq!(all.path(), "v1/capture?since=60s");
    }
}

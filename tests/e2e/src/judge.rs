//! Holds what meshdiff says against what really happened.

use crate::Request;
use meshdiff_lab::clock::MonotonicNs;
use meshdiff_lab::truth::{ClientRecord, Nonce, Truth};
use std::collections::HashMap;

/// What came of judging.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Requests that crossed two sidecars according to meshdiff, and whose two ends the truth knows.
    pub judged: usize,
    /// Requests whose two ends are different requests in truth. There must be none.
    pub wrong: Vec<String>,
    /// Full requests of which the truth does not know one end. There should be none.
    pub unknown: Vec<String>,
    /// Requests that meshdiff hangs under another one than the truth does. There must be none.
    pub wrong_parents: Vec<String>,
    /// Requests with the right parent.
    pub right_parents: usize,
    /// Requests whose segments do not sum to their total. There must be none.
    pub inexact: Vec<String>,
    /// For each request with both ends known: its nonce and its place in the list.
    pub nonces: Vec<(Nonce, usize)>,
}

/// Judges requests.
#[must_use]
pub fn judge(requests: &[Request], truth: &Truth) -> Judgement {
    let mut result = Judgement::default();
    let mut nonce_of: HashMap<&str, Nonce> = HashMap::new();
    for (i, request) in requests.iter().enumerate() {
        if !request.sums() {
            result.inexact.push(request.id.clone());
        }
        let sent = sent(request, truth).map(|c| c.nonce);
        let served = served(request, truth);
        match (sent, served) {
            (Some(sent), Some(served)) => {
                result.judged += 1;
                if sent == served {
                    nonce_of.insert(&request.id, sent);
                    result.nonces.push((sent, i));
                } else {
                    result.wrong.push(format!("{} {}", request.id, request.hop()));
                }
            }
            _ if request.coverage.full => result.unknown.push(format!("{} {}", request.id, request.hop())),
            _ => {}
        }
    }
    for request in requests {
        let (Some(parent), Some(nonce)) = (&request.parent_id, nonce_of.get(request.id.as_str())) else { continue };
        let truly = truth.client_by_nonce(*nonce).and_then(|c| c.parent);
        if truly.is_some() && nonce_of.get(parent.as_str()).copied() == truly {
            result.right_parents += 1;
        } else {
            result.wrong_parents.push(format!("{} {}", request.id, request.hop()));
        }
    }
    result
}

/// The request that the client application was sending on S1 at the instant that meshdiff names.
fn sent<'t>(request: &Request, truth: &'t Truth) -> Option<&'t ClientRecord> {
    let at = request.crossings.request.get("clientLoopback")?.send_ns?;
    truth.client_at(request.sockets.get("s1")?.local, MonotonicNs(at))
}

/// The request that the server application was answering on S6 at the instant that meshdiff names.
fn served(request: &Request, truth: &Truth) -> Option<Nonce> {
    let at = request.crossings.response.get("serverLoopback")?.send_ns?;
    let socket = request.sockets.get("s6")?;
    truth.server_at(socket.local, socket.remote, MonotonicNs(at))?.nonce
}

//! Requests as traces: OTLP's JSON, which Tempo, Jaeger and every OpenTelemetry collector take at `/v1/traces`.
//!
//! One tree of requests is one trace: what a client waited for is a span of kind CLIENT, the application that served it one of kind SERVER
//! beneath it, and each stretch of the way between them, told apart by direction, an INTERNAL one. Requests that the server made meanwhile
//! hang beneath the server's span. Attributes have the names of OpenTelemetry's semantic conventions where these have one
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), and begin with `meshdiff.` where they do not.
//!
//! A trace's id is the `x-request-id` where that is a UUID, as Envoy makes them (without the digit that Envoy's sampling rewrites), else
//! a hash of it: the same request has the same trace, whoever exports it how often. Texts are sent as they are, never markup.

mod ids;
mod spans;
mod wire;

use meshdiff_analyzer::AttributedRequest;
use std::collections::BTreeMap;
use wire::{Resource, Traces};

/// Spans in one body, about: collectors take 4 MiB by default.
const MOST_SPANS: usize = 1_000;

/// A body for a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// `ExportTraceServiceRequest` in protobuf's JSON mapping.
    pub json: String,
    /// How many requests it tells of.
    pub requests: usize,
    /// How many spans it holds.
    pub spans: usize,
}

/// Chooses about `sample` trees of requests, evenly over the list, and turns them into bodies.
///
/// # Errors
/// If a value has no JSON: a defect.
pub fn bodies(requests: &[AttributedRequest], sample: usize, version: &str) -> Result<Vec<Body>, serde_json::Error> {
    let mut bodies = Vec::new();
    let mut open = Open::default();
    for root in sampled(requests, sample) {
        open.add_tree(requests, root);
        if open.spans >= MOST_SPANS {
            bodies.push(std::mem::take(&mut open).close(version)?);
        }
    }
    if open.requests > 0 {
        bodies.push(open.close(version)?);
    }
    Ok(bodies)
}

/// Requests that no other one caused: all of them, or as many as asked for at equal distances.
fn sampled(requests: &[AttributedRequest], sample: usize) -> Vec<usize> {
    let roots: Vec<usize> = (0..requests.len()).filter(|&i| parent_of(requests, i).is_none()).collect();
    let n = sample.min(roots.len());
    (0..n).map(|i| roots[i * roots.len() / n]).collect()
}

/// Lists are in order of start, so that a parent comes first: what says otherwise is none.
fn parent_of(requests: &[AttributedRequest], i: usize) -> Option<usize> {
    requests[i].parent.filter(|p| *p < i)
}

/// A body in the making: spans by whose they are.
#[derive(Default)]
struct Open {
    by_resource: BTreeMap<Resource, Vec<wire::Span>>,
    requests: usize,
    spans: usize,
}

impl Open {
    fn add_tree(&mut self, requests: &[AttributedRequest], root: usize) {
        let trace = ids::trace(&requests[root]);
        let mut waiting = vec![(root, None)];
        while let Some((i, parent)) = waiting.pop() {
            let made = spans::of(&requests[i], trace, parent);
            let below = made.server;
            for (resource, span) in made.spans {
                self.by_resource.entry(resource).or_default().push(span);
                self.spans += 1;
            }
            self.requests += 1;
            let children = requests[i].children.iter().copied();
            waiting.extend(children.filter(|&c| c > i && c < requests.len()).map(|c| (c, Some(below))));
        }
    }

    fn close(self, version: &str) -> Result<Body, serde_json::Error> {
        let (requests, spans) = (self.requests, self.spans);
        let json = serde_json::to_string(&Traces::of(self.by_resource, version))?;
        Ok(Body { json, requests, spans })
    }
}

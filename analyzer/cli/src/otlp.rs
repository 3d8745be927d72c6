//! `report --otlp`: sampled requests as traces, sent to a collector.

use crate::analysis::Analysis;
use crate::args::OtlpArgs;
use crate::exit::Failure;
use anyhow::{Context, anyhow};
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use meshdiff_capture::http::{Answer, HttpClient, HttpError};
use meshdiff_reports::otlp::bodies;
use serde::Deserialize;
use std::time::Duration;

/// Headers for the collector, as OpenTelemetry's exporters read them: `name=value,name=value`.
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const TIMEOUT: Duration = Duration::from_secs(30);
const MOST_ANSWER: usize = 1 << 20;
/// Repetitions of what a collector did not take for a reason that passes.
const REPETITIONS: usize = 4;

/// Exports what was asked for, and says what came of it on stderr.
pub(crate) fn export(args: &OtlpArgs, analysis: &Analysis) -> Result<(), Failure> {
    let Some(endpoint) = &args.otlp else { return Ok(()) };
    let uri = endpoint_of(endpoint)?;
    let headers = headers(std::env::var(HEADERS).ok().as_deref())?;
    let bodies =
        bodies(&analysis.requests, args.otlp_sample, env!("CARGO_PKG_VERSION")).context("cannot make traces")?;
    let client = HttpClient::new(None)?;
    let (mut requests, mut spans) = (0, 0);
    for body in bodies {
        let rejected = send(&client, &uri, &headers, Bytes::from(body.json))?;
        if let Some(rejected) = rejected {
            eprintln!("meshdiff: note: {rejected}");
        }
        requests += body.requests;
        spans += body.spans;
    }
    eprintln!("Sent {requests} requests as {spans} spans to {}.", uri.authority().map_or("", |a| a.as_str()));
    Ok(())
}

/// `http://host:4318` stands for `/v1/traces` there, as OpenTelemetry's exporters have it.
fn endpoint_of(text: &str) -> Result<Uri, Failure> {
    let bad = |why: &str| {
        Failure::Usage(format!(
            "--otlp takes the address of an OTLP/HTTP receiver, for instance http://localhost:4318: {why}"
        ))
    };
    let uri: Uri = text.parse().map_err(|_| bad("this is no address"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad("it must begin with http:// or https://"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(bad(&format!("credentials go into {HEADERS}")));
    }
    if uri.path() != "/" {
        return Ok(uri);
    }
    format!("{}/v1/traces", text.trim_end_matches('/')).parse().map_err(|_| bad("this is no address"))
}

fn headers(text: Option<&str>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
    let mut list = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    for pair in text.unwrap_or_default().split(',').filter(|p| !p.trim().is_empty()) {
        // The value is not repeated: it is most likely a secret.
        let parsed = pair.split_once('=').and_then(|(name, value)| {
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
        });
        list.push(parsed.ok_or_else(|| Failure::Usage(format!("{HEADERS} must be like name=value,name=value")))?);
    }
    Ok(list)
}

/// Sends a body; what the collector did not take of it, if it says so.
fn send(
    client: &HttpClient,
    uri: &Uri,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
) -> Result<Option<String>, Failure> {
    let mut pauses = ExponentialBuilder::default().with_max_times(REPETITIONS).with_jitter().build();
    loop {
        let answer = client.post(uri.clone(), headers.to_vec(), body.clone(), TIMEOUT, MOST_ANSWER);
        match (answer, pauses.next()) {
            (Ok(answer), _) if answer.status.is_success() => return Ok(rejected(&answer)),
            (Ok(answer), Some(pause)) if passes(answer.status) => std::thread::sleep(pause),
            (Err(HttpError::Unreachable { .. } | HttpError::TimedOut { .. }), Some(pause)) => std::thread::sleep(pause),
            (Ok(answer), _) => {
                let text: String =
                    String::from_utf8_lossy(&answer.body).chars().filter(|c| !c.is_control()).take(300).collect();
                return Err(
                    anyhow!("the OTLP receiver refused the traces (HTTP {}): {text}", answer.status.as_u16()).into()
                );
            }
            (Err(error), _) => return Err(anyhow::Error::new(error).context("cannot send traces").into()),
        }
    }
}

/// The answers after which OTLP/HTTP asks to try again.
fn passes(status: StatusCode) -> bool {
    [429, 502, 503, 504].contains(&status.as_u16())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    partial_success: PartialSuccess,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PartialSuccess {
    rejected_spans: serde_json::Value,
    error_message: String,
}

fn rejected(answer: &Answer) -> Option<String> {
    let Response { partial_success: partial } = serde_json::from_slice(&answer.body).unwrap_or_default();
    // 64-bit numbers are texts in this mapping; some receivers write numbers.
    let spans = partial.rejected_spans.as_u64().or_else(|| partial.rejected_spans.as_str()?.parse().ok()).unwrap_or(0);
    (spans > 0 || !partial.error_message.is_empty()).then(|| {
        let why: String = partial.error_message.chars().filter(|c| !c.is_control()).take(300).collect();
        format!("the OTLP receiver rejected {spans} spans: {why}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_is_that_of_traces() {
        let of = |text| endpoint_of(text).map(|uri| uri.to_string()).ok();
        assert_eq!(of("http://localhost:4318").as_deref(), Some("http://localhost:4318/v1/traces"));
        assert_eq!(of("https://tempo/").as_deref(), Some("https://tempo/v1/traces"));
        assert_eq!(of("http://gateway/otlp/v1/traces").as_deref(), Some("http://gateway/otlp/v1/traces"));
        for bad in ["localhost:4318", "grpc://localhost:4317", "http://user:secret@host", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn headers_are_read_as_other_exporters_read_them() {
        let list = headers(Some("authorization=Bearer x, X-Scope-OrgID=7")).expect("headers");
        assert_eq!(list.len(), 3);
        assert_eq!((list[2].0.as_str(), list[2].1.to_str().ok()), ("x-scope-orgid", Some("7")));
        assert!(headers(Some("no header")).is_err());
    }

    #[test]
    fn what_was_not_taken_is_said() {
        let answer = |body: &str| Answer {
            status: StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: Bytes::from(body.to_owned()),
        };
        assert_eq!(rejected(&answer("{}")), None);
        assert_eq!(rejected(&answer("")), None);
        let text = rejected(&answer(r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}"#));
        assert_eq!(text.as_deref(), Some("the OTLP receiver rejected 3 spans: too old"));
    }
}

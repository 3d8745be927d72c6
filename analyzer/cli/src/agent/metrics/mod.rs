//! `/metrics`: the requests of this node, what the agent lost, and what it costs.

#[cfg(test)]
mod dashboard;
mod own;
mod requests;
#[cfg(test)]
mod tests;

pub(crate) use own::Own;
pub(crate) use requests::{RequestMetrics, seconds};

use prometheus_client::encoding::{prometheus_protobuf, text};
use prometheus_client::registry::Registry;

/// What Prometheus asks for where native histograms are wanted (`scrape_native_histograms`).
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics in the best format that the scraper takes: content type and body. Only protobuf has native histograms; the text has classic
/// ones.
pub(crate) fn render(registry: &Registry, accept: &str) -> Result<(&'static str, Vec<u8>), String> {
    let wants_protobuf = accept
        .split(',')
        .any(|t| t.contains("application/vnd.google.protobuf") && t.contains("io.prometheus.client.MetricFamily"));
    if wants_protobuf {
        let body = prometheus_protobuf::encode_to_vec(registry).map_err(|e| e.to_string())?;
        return Ok((PROTOBUF, body));
    }
    let mut body = String::new();
    text::encode(&mut body, registry).map_err(|e| e.to_string())?;
    Ok((TEXT, body.into_bytes()))
}

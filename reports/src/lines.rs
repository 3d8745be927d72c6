//! What the exporters for people share of the process topology: names of ends, and metrics as short texts.

use crate::safe::{shorten, visible};
use crate::text;
use meshdiff_analyzer::{Coverage, EndRole, LineEnd, LineMetrics, LineSummary};
use meshdiff_model::{DurationNs, ExponentialHistogram, IoMetrics};
use std::fmt::Write as _;

/// What stands for a number that was not measured, or of which there is none.
pub(crate) const NOTHING: &str = "–";

/// The program at an end: the process, `sidecar` where only the role is known.
pub(crate) fn process(e: &LineEnd) -> String {
    match (&e.process, e.role) {
        (Some(name), _) => visible(name),
        (None, EndRole::Sidecar) => "sidecar".into(),
        (None, EndRole::Application) => "application".into(),
        (None, EndRole::Unknown | EndRole::Outside) => "unknown process".into(),
    }
}

/// The pod at an end, or what is known in its place.
pub(crate) fn pod(e: &LineEnd) -> String {
    e.pod.as_deref().or(e.workload.as_deref()).or(e.address.as_deref()).map_or_else(|| "unknown pod".into(), visible)
}

/// A peer outside.
pub(crate) fn outside(e: &LineEnd) -> String {
    match (&e.service, &e.address) {
        (Some(service), Some(address)) => format!("{} ({})", visible(service), visible(address)),
        (Some(one), None) | (None, Some(one)) => visible(one),
        (None, None) => "unknown".into(),
    }
}

/// An end in one word: `reviews-v1-7d9f/envoy`, `192.0.2.1:443`.
pub(crate) fn end(e: &LineEnd) -> String {
    if e.role == EndRole::Outside { outside(e) } else { format!("{}/{}", pod(e), process(e)) }
}

/// What is spoken: `http/1.1`, `http/1.1 over TLS`.
pub(crate) fn protocol(l: &LineSummary) -> String {
    match (l.protocol.as_str(), l.tls) {
        (name @ "tls", _) => name.to_owned(),
        (name, Some(true)) => format!("{name} over TLS"),
        (name, _) => name.to_owned(),
    }
}

/// What is known of its encryption beyond that there is any: `TLS 1.3, SNI reviews.default, ALPN h2`.
pub(crate) fn tls_details(l: &LineSummary) -> Option<String> {
    let said = &l.tls_said;
    let mut out: Vec<String> = said.versions.keys().map(|v| v.name().to_owned()).collect();
    let mut list = |what: &str, names: &std::collections::BTreeMap<std::sync::Arc<str>, u64>| {
        if !names.is_empty() {
            let mut text = format!("{what} ");
            for (i, name) in names.keys().take(3).enumerate() {
                let _ = write!(text, "{}{}", if i > 0 { ", " } else { "" }, shorten(&visible(name), 64));
            }
            if names.len() > 3 {
                let _ = write!(text, " and {} more", names.len() - 3);
            }
            out.push(text);
        }
    };
    list("SNI", &said.server_names);
    list("ALPN", &said.alpn);
    if said.alpn.is_empty() {
        list("ALPN offered", &said.alpn_offered);
    }
    (!out.is_empty()).then(|| out.join(" · "))
}

/// A histogram's quantile.
pub(crate) fn quantile(h: Option<&ExponentialHistogram>, q: f64) -> String {
    h.and_then(|h| h.quantile(q)).map_or_else(|| NOTHING.into(), ns)
}

/// Nanoseconds that a histogram tells.
pub(crate) fn ns(value: f64) -> String {
    // An i64 of nanoseconds lasts 292 years.
    text::duration(DurationNs(value.round() as i64))
}

/// A count, if there is one.
pub(crate) fn count(n: Option<u64>) -> String {
    n.map_or_else(|| NOTHING.into(), text::count)
}

/// Bytes, if there are any counted.
pub(crate) fn bytes(io: Option<&IoMetrics>) -> String {
    io.map_or_else(|| NOTHING.into(), |io| text::bytes(io.bytes))
}

/// Numbers of an end that need more than a count: errors of connects, reasons of drops, who closed first, losses.
pub(crate) fn remarks(m: &LineMetrics) -> Vec<String> {
    let mut out = Vec::new();
    let mut add = |what: &str, list: Vec<String>| {
        if !list.is_empty() {
            out.push(format!("{what}: {}", list.join(", ")));
        }
    };
    let failures = m.connect.iter().flat_map(|c| c.failures.iter().flatten());
    add("connects failed", failures.map(|(e, n)| format!("{e} {}", text::count(*n))).collect());
    let drops = m.drops.iter().flatten();
    add("dropped", drops.map(|(reason, n)| format!("{} {}", visible(&reason.0), text::count(*n))).collect());
    if m.lost_events > 0 {
        out.push(format!("{} lost: counts are lower bounds", text::counted(m.lost_events, "event was", "events were")));
    }
    out
}

/// All drops.
pub(crate) fn dropped(m: &LineMetrics) -> Option<u64> {
    m.drops.as_ref().map(|d| d.values().fold(0_u64, |sum, n| sum.saturating_add(*n)))
}

/// All connects that failed.
pub(crate) fn failed(m: &LineMetrics) -> Option<u64> {
    Some(m.connect.as_ref()?.failures.as_ref()?.values().fold(0_u64, |sum, n| sum.saturating_add(*n)))
}

/// What was not measured, by reason, as sentences.
pub(crate) fn missing(c: &Coverage) -> Vec<String> {
    let mut by_reason: Vec<(&str, Vec<&'static str>)> = Vec::new();
    for (metric, why) in &c.missing_metrics {
        match by_reason.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, list)) => list.push(metric.as_str()),
            None => by_reason.push((why, vec![metric.as_str()])),
        }
    }
    by_reason
        .into_iter()
        .map(|(why, list)| format!("Not measured: {} ({})", list.join(", "), visible(why).trim_end_matches('.')))
        .collect()
}

//! The parts of the page that are mostly words: verdict, coverage, findings, connections.

use super::MAX_CONNECTIONS;
use super::bars::{Bar, RawPart, percent};
use super::hops::EndView;
use crate::safe::{shorten, visible};
use crate::verdict::{self, Piece, Trust};
use crate::{table, text};
use meshdiff_analyzer::{ConnectionSummary, Coverage, Finding, Report};
use meshdiff_model::ProbeTier;

/// Places listed beneath the verdict; the rest is in the JSON.
const MAX_PLACES: usize = 8;

/// The answer.
pub(super) struct VerdictView {
    pub(super) sentence: Vec<Piece>,
    pub(super) bar: Option<Bar>,
    pub(super) kinds: Vec<KindView>,
    pub(super) places: Vec<PlaceView>,
    pub(super) hidden_places: usize,
    /// What the sentence is over.
    pub(super) basis: Option<String>,
}

/// A kind's share.
pub(super) struct KindView {
    pub(super) class: String,
    pub(super) name: &'static str,
    pub(super) share: String,
    pub(super) mean: String,
}

/// A place.
pub(super) struct PlaceView {
    pub(super) class: String,
    pub(super) workload: EndView,
    pub(super) what: &'static str,
    pub(super) mean: String,
    pub(super) share: String,
    pub(super) width: String,
}

impl VerdictView {
    pub(super) fn of(report: &Report) -> Self {
        let sentence = verdict::sentence(report);
        let Some(v) = &report.verdict else {
            return Self { sentence, bar: None, kinds: vec![], places: vec![], hidden_places: 0, basis: None };
        };
        let class = |kind: meshdiff_analyzer::PartKind| format!("k-{}", kind.as_str());
        let parts =
            v.parts.iter().map(|p| RawPart { class: class(p.kind), name: text::kind(p.kind).into(), value: p.mean });
        let largest = v.places.iter().map(|p| p.mean.0).max().unwrap_or(1).max(1);
        Self {
            sentence,
            bar: Some(Bar::of(parts.collect())),
            kinds: v
                .parts
                .iter()
                .filter(|p| p.mean.0 != 0)
                .map(|p| KindView {
                    class: class(p.kind),
                    name: text::kind(p.kind),
                    share: text::share(p.share),
                    mean: text::duration(p.mean),
                })
                .collect(),
            places: v
                .places
                .iter()
                .take(MAX_PLACES)
                .map(|p| PlaceView {
                    class: class(p.kind),
                    workload: EndView::of(&p.workload),
                    what: text::place(p.kind),
                    mean: text::duration(p.mean),
                    share: text::share(p.share),
                    width: percent((p.mean.0.max(0) as f64) / largest as f64),
                })
                .collect(),
            hidden_places: v.places.len().saturating_sub(MAX_PLACES),
            basis: Some(format!(
                "Over {} from end to end, each with all the calls that it caused; median {}.",
                text::counted(v.n, "request", "requests"),
                text::duration(v.p50_total)
            )),
        }
    }
}

/// How much was seen.
pub(super) struct CoverageView {
    /// `good`, `limited` or `poor`.
    pub(super) trust: &'static str,
    pub(super) headline: String,
    pub(super) why: Vec<String>,
    pub(super) rows: Vec<CoverageRow>,
    pub(super) reasons: Vec<(String, String)>,
    pub(super) facts: Vec<CoverageFact>,
    pub(super) notes: Vec<String>,
}

/// A class of requests.
pub(super) struct CoverageRow {
    pub(super) class: &'static str,
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    pub(super) count: String,
    pub(super) share: String,
    pub(super) width: String,
    pub(super) zero: bool,
}

/// A number beside the classes.
pub(super) struct CoverageFact {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) bad: bool,
}

impl CoverageView {
    pub(super) fn of(c: &Coverage) -> Self {
        let (trust, why) = verdict::trust(c);
        let row = |class, name, meaning, n: u64| CoverageRow {
            class,
            name,
            meaning,
            count: text::count(n),
            share: text::ratio(n, c.requests),
            width: percent(if c.requests == 0 { 0.0 } else { n as f64 / c.requests as f64 }),
            zero: n == 0,
        };
        let fact = |name, value, bad| CoverageFact { name, value, bad };
        Self {
            trust: match trust {
                Trust::Good => "good",
                Trust::Limited => "limited",
                Trust::Poor => "poor",
            },
            headline: if c.requests == 0 {
                "No request was recorded".into()
            } else {
                format!("{} fully seen", text::ratio(c.full, c.requests))
            },
            why,
            rows: vec![
                row("full", "Full", "every socket was seen; statistics are over these", c.full),
                row("partial", "Partial, client", "socket instants of the client's half only", c.partial_client),
                row("partial", "Partial, server", "socket instants of the server's half only", c.partial_server),
                row("als", "Access log only", "no socket instants", c.partial_als),
                row("ambiguous", "Ambiguous", "more than one partner fits; none was chosen", c.ambiguous),
                row("unmatched", "Unmatched", "no partner was found", c.unmatched.values().sum()),
            ],
            reasons: c
                .partial_reasons
                .iter()
                .chain(&c.unmatched)
                .map(|(reason, n)| (text::reason(reason), text::count(*n)))
                .collect(),
            facts: vec![
                fact("Requests", text::count(c.requests), c.requests == 0),
                fact("Sends seen by the kernel", text::count(c.client_messages_seen), false),
                fact("Kernel events lost", text::count(c.lost_kernel_events), c.lost_kernel_events > 0),
                fact(
                    "Log entries lost (estimate)",
                    text::count(c.lost_access_logs_estimate),
                    c.lost_access_logs_estimate > 0,
                ),
                fact("Segments below zero", text::count(c.negative_segments), c.negative_segments > 0),
                fact(
                    "Probe tier",
                    c.probe_tier.map_or("unknown", |t| t.as_str()).into(),
                    c.probe_tier.is_none_or(|t| t == ProbeTier::None),
                ),
                fact(
                    "Probe cost",
                    c.probe_cost_ns_per_event
                        .map_or_else(|| "not counted".into(), |n| format!("{} ns an event", text::count(n))),
                    false,
                ),
            ],
            notes: c.notes.iter().map(|n| visible(n)).collect(),
        }
    }
}

/// A finding.
pub(super) struct FindingView {
    pub(super) code: &'static str,
    pub(super) level: &'static str,
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) evidence: Vec<(String, String)>,
    pub(super) fix: String,
}

impl FindingView {
    pub(super) fn of(f: &Finding) -> Self {
        Self {
            code: f.code,
            level: f.level.as_str(),
            subject: visible(&f.subject),
            text: visible(&f.text),
            evidence: f.evidence.iter().map(|(k, v)| (visible(k), table::evidence(k, *v))).collect(),
            fix: visible(&f.fix),
        }
    }
}

/// The process topology as a table.
pub(super) struct ConnectionsView {
    pub(super) rows: Vec<ConnectionView>,
    pub(super) hidden: usize,
}

/// A line of it.
pub(super) struct ConnectionView {
    pub(super) pod: Name,
    pub(super) process: Name,
    pub(super) peer: Name,
    pub(super) side: &'static str,
    pub(super) protocol: &'static str,
    pub(super) sockets: String,
    pub(super) sent: String,
    pub(super) received: String,
    pub(super) rtt: Option<(String, String)>,
    pub(super) connects: String,
    pub(super) connect: Option<String>,
    pub(super) closes: String,
}

/// A name, short to read and whole on hover.
pub(super) struct Name {
    pub(super) short: String,
    pub(super) full: String,
}

impl Name {
    fn of(s: &str) -> Self {
        let full = visible(s);
        Self { short: shorten(&full, 36), full }
    }
}

impl ConnectionsView {
    pub(super) fn of(all: &[ConnectionSummary]) -> Self {
        let row = |c: &ConnectionSummary| ConnectionView {
            pod: Name::of(&c.pod),
            process: Name::of(&c.process),
            peer: Name::of(&c.peer),
            side: if c.is_client { "client" } else { "server" },
            protocol: c.protocol,
            sockets: text::count(c.sockets),
            sent: text::bytes(c.write_bytes),
            received: text::bytes(c.read_bytes),
            rtt: c.rtt.as_ref().map(|d| (text::duration(d.p50), text::duration(d.p99))),
            connects: text::count(c.connects),
            connect: c.connect.as_ref().map(|d| text::duration(d.p50)),
            closes: text::count(c.closes),
        };
        Self {
            rows: all.iter().take(MAX_CONNECTIONS).map(row).collect(),
            hidden: all.len().saturating_sub(MAX_CONNECTIONS),
        }
    }
}

//! The parts of the page that are mostly words: verdict, coverage, findings, connections.

use super::MAX_CONNECTIONS;
use super::bars::{Bar, RawPart, percent};
use super::hops::EndView;
use super::lines::{Name, anchor};
use crate::safe::visible;
use crate::verdict::{self, Piece, Trust};
use crate::{lines, table, text};
use meshdiff_analyzer::{Coverage, Finding, LineEnd, LineSummary, Report};
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
    pub(super) lines: usize,
    pub(super) hidden: usize,
    /// What was not measured, and why.
    pub(super) missing: Vec<String>,
}

/// One side's view of a line.
pub(super) struct ConnectionView {
    /// The line's panel, where there is one.
    pub(super) anchor: Option<String>,
    pub(super) who: Name,
    pub(super) side: &'static str,
    pub(super) peer: Name,
    pub(super) protocol: String,
    pub(super) known: &'static str,
    /// Connections, sent, received, RTT p50 and p99, connects, failed, handshake, closes, resets, resent, dropped.
    pub(super) numbers: [String; 12],
}

impl ConnectionsView {
    pub(super) fn of(report: &Report, drawn: &[usize]) -> Self {
        let all = &report.lines;
        Self {
            rows: all
                .iter()
                .enumerate()
                .take(MAX_CONNECTIONS)
                .flat_map(|(i, l)| rows(l, drawn.binary_search(&i).is_ok().then(|| anchor(i))))
                .collect(),
            lines: all.len(),
            hidden: all.len().saturating_sub(MAX_CONNECTIONS),
            missing: if all.is_empty() { vec![] } else { lines::missing(&report.coverage) },
        }
    }
}

fn rows(l: &LineSummary, anchor: Option<String>) -> Vec<ConnectionView> {
    let view = |side, end: &LineEnd, peer: &LineEnd| {
        let m = &end.metrics.as_ref()?.total;
        Some(ConnectionView {
            anchor: anchor.clone(),
            who: Name::of(&lines::end(end)),
            side,
            peer: Name::of(&lines::end(peer)),
            protocol: lines::protocol(l),
            known: l.peer_known_by.as_str(),
            numbers: [
                text::count(l.connections),
                lines::bytes(m.write.as_ref()),
                lines::bytes(m.read.as_ref()),
                lines::quantile(m.rtt.as_ref(), 0.5),
                lines::quantile(m.rtt.as_ref(), 0.99),
                lines::count(m.connect.as_ref().map(|c| c.count)),
                lines::count(lines::failed(m)),
                lines::quantile(m.connect.as_ref().and_then(|c| c.handshake.as_ref()), 0.5),
                lines::count(m.close.as_ref().map(|c| c.count)),
                lines::count(m.close.as_ref().and_then(|c| c.resets)),
                lines::count(m.retransmits),
                lines::count(lines::dropped(m)),
            ],
        })
    };
    [view("client", &l.client, &l.server), view("server", &l.server, &l.client)].into_iter().flatten().collect()
}

//! The answer in one sentence, and what stands in its place when the data does not allow one.

use crate::{safe, text};
use meshdiff_analyzer::{Coverage, PartKind, Report, Verdict};
use meshdiff_model::{DurationNs, Workload};

/// A piece of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// A number or name that carries the statement.
    pub(crate) strong: bool,
}

/// The sentence in pieces, so that an exporter can set off the numbers.
pub(crate) fn sentence(report: &Report) -> Vec<Piece> {
    match &report.verdict {
        Some(v) => measured(v),
        None => {
            vec![
                Piece { text: "Too little data to say where the time went: ".into(), strong: true },
                plain(why_none(&report.coverage)),
            ]
        }
    }
}

/// The sentence without emphasis.
pub(crate) fn sentence_text(report: &Report) -> String {
    sentence(report).into_iter().map(|p| p.text).collect()
}

fn plain(text: impl Into<String>) -> Piece {
    Piece { text: text.into(), strong: false }
}

fn strong(text: impl Into<String>) -> Piece {
    Piece { text: text.into(), strong: true }
}

/// A name that leaves room for the rest of the sentence.
fn name(w: &Workload) -> String {
    safe::shorten(&text::workload(w), 48)
}

fn measured(v: &Verdict) -> Vec<Piece> {
    let mut out = vec![
        plain("Of the "),
        strong(text::duration(v.mean_total)),
        plain(format!(" that a request from {} to {} took on average, ", name(&v.client), name(&v.server))),
    ];
    let mut parts: Vec<_> = v.parts.iter().filter(|p| p.mean != DurationNs::ZERO).collect();
    parts.sort_by(|a, b| b.mean.cmp(&a.mean).then(a.kind.cmp(&b.kind)));
    if parts.is_empty() {
        out.push(plain("nothing could be attributed."));
        return out;
    }
    let last = parts.len() - 1;
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push(plain(if i == last { " and " } else { ", " }));
        }
        out.push(strong(text::share(part.share)));
        let whereto = text::kind_where(part.kind);
        out.push(plain(match (i, part.kind) {
            (_, PartKind::Unattributed) => format!(" {whereto}"),
            (0, _) => format!(" was spent {whereto}"),
            _ => format!(" {whereto}"),
        }));
        if i == 0
            && let Some(place) = v.places.iter().filter(|p| p.kind == part.kind).max_by_key(|p| p.mean)
        {
            let (time, name) = (strong(text::duration(place.mean)), name(&place.workload));
            if place.mean.0.saturating_mul(2) > part.mean.0 {
                out.extend([plain(format!(" (mostly {name}: ")), time, plain(")")]);
            } else {
                out.extend([plain(" ("), time, plain(format!(" of it in {name})"))]);
            }
        }
    }
    out.push(plain("."));
    out
}

/// Why no verdict can be given, as the rest of a sentence.
fn why_none(c: &Coverage) -> String {
    if c.requests == 0 {
        return if c.client_messages_seen > 0 {
            format!(
                "the kernel saw {}, but no access log entry arrived. Check that the sidecars send their access log to meshdiff.",
                text::counted(c.client_messages_seen, "request being sent", "requests being sent")
            )
        } else {
            "no request was recorded. Check that there was traffic between workloads with sidecars, and that it fell into the window.".into()
        };
    }
    if c.full == 0 {
        let reasons = c.partial_reasons.iter().chain(&c.unmatched).max_by_key(|(_, n)| **n);
        let because = reasons.map_or_else(String::new, |(name, n)| {
            format!(" Most frequent reason: {} ({}).", text::reason(name), text::count(*n))
        });
        return format!(
            "none of the {} was seen on every socket that it should have used.{because}",
            text::counted(c.requests, "request", "requests")
        );
    }
    format!(
        "{} seen on every socket, but none of those that entered the mesh together with all the calls that it caused. The hops below still hold.",
        if c.full == 1 { "1 request was".into() } else { format!("{} requests were", text::count(c.full)) }
    )
}

/// How far the report can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nearly everything was seen.
    Good,
    /// Something is missing.
    Limited,
    /// Most is missing.
    Poor,
}

/// Below this share of full requests a report warns.
const GOOD_SHARE: (u64, u64) = (95, 100);

/// Judges the coverage, with the reasons for anything but [`Trust::Good`].
pub(crate) fn trust(c: &Coverage) -> (Trust, Vec<String>) {
    let mut why = Vec::new();
    let mut trust = Trust::Good;
    if c.full * GOOD_SHARE.1 < c.requests * GOOD_SHARE.0 || c.requests == 0 {
        trust = if c.full * 2 < c.requests || c.requests == 0 { Trust::Poor } else { Trust::Limited };
        why.push(if c.requests == 0 {
            "No request was recorded.".to_owned()
        } else {
            format!("Only {} of the requests were fully seen.", text::ratio(c.full, c.requests))
        });
    }
    let mut limit = |text: String| {
        if trust == Trust::Good {
            trust = Trust::Limited;
        }
        why.push(text);
    };
    if c.lost_kernel_events > 0 {
        limit(format!(
            "{} lost: the ring buffer was full.",
            text::counted(c.lost_kernel_events, "kernel event was", "kernel events were")
        ));
    }
    if c.lost_access_logs_estimate > 0 {
        limit(format!(
            "About {} lost.",
            text::counted(c.lost_access_logs_estimate, "access log entry was", "access log entries were")
        ));
    }
    if c.negative_segments > 0 {
        limit(format!(
            "{} below zero: a wrong join, or clocks that disagree.",
            text::counted(c.negative_segments, "segment is", "segments are")
        ));
    }
    // Few of them are usual, and what they would have told may not matter: they are said, and judged by what is not full.
    if c.skipped_runs > 0 {
        why.push(format!(
            "The kernel left out {} of probes: events may be missing.",
            text::counted(c.skipped_runs, "run", "runs")
        ));
    }
    if c.vanished_sockets > 0 {
        why.push(format!("The end of {} was not seen.", text::counted(c.vanished_sockets, "socket", "sockets")));
    }
    (trust, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshdiff_analyzer::{Part, Place};
    use meshdiff_model::Workload;

    fn named(name: &str) -> Workload {
        Workload { workload: Some(name.into()), ..Workload::unknown() }
    }

    fn verdict() -> Verdict {
        let part = |kind, ms: i64, share| Part { kind, mean: DurationNs::from_millis(ms), share };
        Verdict {
            client: named("loadgen"),
            server: named("productpage"),
            n: 3,
            mean_total: DurationNs(12_300_000),
            p50_total: DurationNs(12_000_000),
            parts: vec![
                part(PartKind::Application, 3, 0.25),
                part(PartKind::Sidecar, 9, 0.75),
                part(PartKind::Transfer, 0, 0.0),
            ],
            places: vec![Place {
                kind: PartKind::Sidecar,
                workload: named("reviews-v2"),
                mean: DurationNs::from_millis(8),
                share: 0.66,
            }],
        }
    }

    fn report(verdict: Option<Verdict>, coverage: Coverage) -> Report {
        Report {
            window: Default::default(),
            namespace: None,
            coverage,
            verdict,
            hops: vec![],
            breakdowns: vec![],
            lines: vec![],
            findings: vec![],
            slowest: vec![],
        }
    }

    #[test]
    fn names_the_largest_part_first_and_where() {
        assert_eq!(
            sentence_text(&report(Some(verdict()), Coverage::default())),
            "Of the 12.3 ms that a request from loadgen to productpage took on average, 75% was spent in the sidecars \
             (mostly reviews-v2: 8.00 ms) and 25% in the applications."
        );
    }

    #[test]
    fn without_a_verdict_it_says_why() {
        let says = |c: Coverage, text: &str| {
            let sentence = sentence_text(&report(None, c));
            assert!(sentence.contains(text), "{sentence}");
        };
        says(Coverage::default(), "no request was recorded");
        says(Coverage { client_messages_seen: 1_200, ..Coverage::default() }, "saw 1,200 requests being sent, but");
        let partial_reasons = [("no_probes".to_owned(), 7)].into();
        says(
            Coverage { requests: 7, partial_als: 7, partial_reasons, ..Coverage::default() },
            "no kernel events were recorded (7)",
        );
        says(Coverage { requests: 7, full: 2, ..Coverage::default() }, "2 requests were seen on every socket, but");
    }

    #[test]
    fn losses_are_never_good() {
        let full = Coverage { requests: 100, full: 100, ..Coverage::default() };
        assert_eq!(trust(&full), (Trust::Good, vec![]));
        assert_eq!(trust(&Coverage { lost_kernel_events: 1, ..full.clone() }).0, Trust::Limited);
        let (good, said) = trust(&Coverage { skipped_runs: 3, vanished_sockets: 1, ..full.clone() });
        assert_eq!(good, Trust::Good);
        assert_eq!(
            said,
            ["The kernel left out 3 runs of probes: events may be missing.", "The end of 1 socket was not seen."]
        );
        assert_eq!(trust(&Coverage { full: 94, ..full.clone() }).0, Trust::Limited);
        assert_eq!(trust(&Coverage { full: 49, ..full }).0, Trust::Poor);
        assert_eq!(trust(&Coverage::default()).0, Trust::Poor);
    }
}

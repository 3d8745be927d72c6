//! `breakdowns`: hops told apart by zone, subset, version or node.

use super::{End, Numbers};
use meshdiff_analyzer::{Breakdown, BreakdownHop, BreakdownRow, Crossed, Dimension};
use meshdiff_model::{DurationNs, Fact, HopProtocol, NotKnown};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BreakdownLine<'a> {
    by: &'static str,
    /// Ends of requests of which the value is not known, by reason.
    unknown: BTreeMap<&'static str, u64>,
    hops: Vec<HopLine<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HopLine<'a> {
    client: End<'a>,
    server: End<'a>,
    protocol: HopProtocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    crossed: Option<CrossedLine>,
    rows: Vec<RowLine<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CrossedLine {
    same_requests: u64,
    same_network_p50_ns: DurationNs,
    crossing_requests: u64,
    crossing_network_p50_ns: DurationNs,
    crossing_total_p50_ns: DurationNs,
    mann_whitney_p: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RowLine<'a> {
    /// Absent where clients have no such value.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<Value<'a>>,
    server: Value<'a>,
    /// Absent where it cannot be told, and for what is no place.
    #[serde(skip_serializing_if = "Option::is_none")]
    crossing: Option<bool>,
    few: bool,
    partial_reasons: &'a BTreeMap<&'static str, u64>,
    #[serde(flatten)]
    numbers: Numbers<'a>,
}

/// A value, or `null` and why.
#[derive(Serialize)]
struct Value<'a> {
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl<'a> Value<'a> {
    fn of(fact: &'a Fact) -> Self {
        Self { value: fact.as_deref().ok(), reason: fact.as_ref().err().map(|why: &NotKnown| why.as_str()) }
    }
}

impl<'a> BreakdownLine<'a> {
    pub(super) fn of(b: &'a Breakdown) -> Self {
        let by: Dimension = b.by;
        Self {
            by: by.as_str(),
            unknown: b.unknown.iter().map(|(why, n)| (why.as_str(), *n)).collect(),
            hops: b.hops.iter().map(HopLine::of).collect(),
        }
    }
}

impl<'a> HopLine<'a> {
    fn of(h: &'a BreakdownHop) -> Self {
        Self {
            client: End::of(&h.client),
            server: End::of(&h.server),
            protocol: h.protocol,
            crossed: h.crossed.as_ref().map(CrossedLine::of),
            rows: h.rows.iter().map(RowLine::of).collect(),
        }
    }
}

impl CrossedLine {
    const fn of(c: &Crossed) -> Self {
        Self {
            same_requests: c.same,
            same_network_p50_ns: c.same_p50,
            crossing_requests: c.crossing,
            crossing_network_p50_ns: c.crossing_p50,
            crossing_total_p50_ns: c.crossing_total_p50,
            mann_whitney_p: c.p,
        }
    }
}

impl<'a> RowLine<'a> {
    fn of(row: &'a BreakdownRow) -> Self {
        Self {
            client: row.client.as_ref().map(Value::of),
            server: Value::of(&row.server),
            crossing: row.crossing,
            few: row.few,
            partial_reasons: &row.reasons,
            numbers: Numbers::of(&row.summary),
        }
    }
}

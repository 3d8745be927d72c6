//! A report that is summed up in the store: what comes from there are counts, sums and order statistics of each hop, and the slowest
//! requests; and of the raw rows what tells the lines between programs.
//!
//! Only where that cannot change a number: else `None`, and everything is read and joined here.

use super::line::{self, Told};
use super::read::{self, SINCE, Stored};
use super::store_url;
use crate::analysis::{self, window_end};
use crate::args::SourceArgs;
use crate::exit::Failure;
use anyhow::Context;
use meshdiff_analyzer::parts::{self, Entries, Stretch, Summed};
use meshdiff_analyzer::{
    AttributedRequest, Coverage, Distribution, HopSummary, NearQuantile, Report, ReportInput, SegmentStats,
};
use meshdiff_capture::clickhouse::{Choice, Cut, EntrySums, Found, HopSums, NearSums, Series, SlowRow, Store};
use meshdiff_capture::{Meta, Table};
use meshdiff_model::{Detail, DurationNs, HopProtocol, Segment, SegmentMap, WallTime, Workload};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// A report, and what it is of.
pub(crate) struct SummedReport {
    pub(crate) report: Report,
    pub(crate) meta: Meta,
    pub(crate) source: String,
}

/// Sums up in the store what was asked for; `None` if that is not certain to be the same as joining here.
pub(crate) fn summed(store: &str, args: &SourceArgs) -> Result<Option<SummedReport>, Failure> {
    let url = store_url(store)?;
    let name = url.to_string();
    let store = Store::open(url)?;
    let choice = Choice { since: args.since.unwrap_or(SINCE), namespace: args.namespace.clone() };
    let found = store.find(&choice)?;
    if let Some(why) = found.metas().is_empty().then_some("there are no captures").or_else(|| unmeasured(&found)) {
        return Ok(not(&why));
    }
    // Whether there are requests at all is asked before anything is read.
    if let Some(why) = store.why_not(&found, &Cut::default())? {
        return Ok(not(&why));
    }
    let Stored { mut data, notes, whole, .. } = read::put_together(store.read_lines(&found)?, name.clone())?;
    let end = window_end(&data);
    let wall = |at| data.meta.clock.to_wall(at).unwrap_or(data.meta.start.wall);
    let (start_wall, end_wall) = (wall(data.meta.start.monotonic), wall(end));
    let since = args.since.map(|s| back(end_wall, s));
    let several = whole.map(|_| (start_wall, end_wall));
    let cut =
        Cut { namespace: args.namespace.clone(), from: since.max(several.map(|s| s.0)), until: several.map(|s| s.1) };
    let counts = store.counts(&found, &cut)?;
    if counts.is_empty() {
        return Ok(not(&"there are no requests in it"));
    }
    let coverage = coverage(&counts);
    let entries = store.entries(&found, &cut)?;
    let Some(verdict) = verdict(&store, &found, &cut, entries)? else {
        return Ok(not(&"calls at the same time, or while a body was under way, count by a part of their time"));
    };
    let hops = hops(&store, &found, &cut)?;
    let slowest = slowest(store.slowest(&found, &cut)?)?;

    // Of the raw rows there are those that tell the lines; requests are not made of them.
    let mut mesh = analysis::join(&mut data, whole).mesh;
    let mut notes = notes;
    odd(&store, &found, &cut, &mut mesh, &data.meta, &mut notes)?;
    let since_monotonic = since.and_then(|s| data.meta.clock.to_monotonic(s));
    let missing_metrics = analysis::measure(&mut mesh, &data, since_monotonic);
    let start = since.map_or(data.meta.start.wall, |s| WallTime(s.0.max(data.meta.start.wall.0)));
    let input = ReportInput {
        window: (start, end_wall),
        namespace: args.namespace.clone(),
        probe_tier: Some(data.meta.probes.tier),
        probe_stats: data.meta.probes.stats,
        notes,
        missing_metrics,
        clock: data.meta.clock.clone(),
    };
    tracing::info!(requests = coverage.requests, hops = hops.len(), "summed up in the store");
    let report = parts::report_of(Summed { coverage, verdict, hops, slowest }, &mesh, input);
    Ok(Some(SummedReport { report, meta: data.meta, source: format!("store {name}") }))
}

fn not<T>(why: &dyn std::fmt::Display) -> Option<T> {
    tracing::info!("not summed up in the store, but joined here: {why}");
    None
}

/// What messages stand in for, first and last ones do not tell.
fn unmeasured(found: &Found) -> Option<&'static str> {
    let without = found.rows(Table::Messages) > 0 && found.rows(Table::SocketMetrics) == 0;
    without.then_some("the captures have no connection metrics")
}

fn back(from: WallTime, by: Duration) -> WallTime {
    WallTime(from.0.saturating_sub(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)))
}

fn coverage(counts: &[meshdiff_capture::clickhouse::ClassCount]) -> Coverage {
    let mut c = Coverage::default();
    for row in counts {
        let reason = if row.reason.is_empty() { "unknown" } else { &row.reason };
        c.requests += row.requests;
        c.client_messages_seen += row.seen;
        c.negative_segments += row.negative;
        if row.reason == meshdiff_model::UnmatchedReason::ClientLogMissing.as_str() {
            c.lost_access_logs_estimate += row.seen;
        }
        let partial = !matches!(row.class.as_str(), "full" | "unmatched");
        let count = match row.class.as_str() {
            "full" => &mut c.full,
            "partial_client" => &mut c.partial_client,
            "partial_server" => &mut c.partial_server,
            "partial_als" => &mut c.partial_als,
            "ambiguous" => &mut c.ambiguous,
            _ => c.unmatched.entry(reason.to_owned()).or_default(),
        };
        *count += row.requests;
        if partial {
            *c.partial_reasons.entry(reason.to_owned()).or_default() += row.requests;
        }
    }
    c
}

/// Adds what is counted and is no request.
fn odd(
    store: &Store,
    found: &Found,
    cut: &Cut,
    mesh: &mut meshdiff_graph::MeshGraph,
    meta: &Meta,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    mesh.unlogged_by_servers.clear();
    let mut contradictions = Vec::new();
    for oddity in store.oddities(found, cut)? {
        if oddity.class == "contradiction" {
            contradictions.push(oddity.reason);
        } else if let Some(at) = meta.clock.to_monotonic(WallTime(oddity.start_ns)) {
            let namespace = Some(oddity.server_namespace).filter(|n| !n.is_empty());
            mesh.unlogged_by_servers.push((at, Workload { namespace, ..Workload::unknown() }));
        }
    }
    notes.extend(analysis::notes_of(mesh, contradictions.len(), contradictions.first()));
    Ok(())
}

fn number(text: &str) -> anyhow::Result<i128> {
    text.parse().with_context(|| format!("the store's answer {text:?} is no number"))
}

fn time(text: &str) -> anyhow::Result<DurationNs> {
    Ok(DurationNs(i64::try_from(number(text)?)?))
}

fn workload(json: &str) -> anyhow::Result<Workload> {
    serde_json::from_str(json).with_context(|| format!("the store's answer {json:?} is no workload"))
}

fn distribution(n: u64, [sum, _, p50, p90, p99, p999]: &Series) -> anyhow::Result<Distribution> {
    Ok(Distribution {
        mean: parts::mean(number(sum)?, n),
        p50: time(p50)?,
        p90: time(p90)?,
        p99: time(p99)?,
        p999: time(p999)?,
    })
}

type HopKey = (String, String, String, String);

fn hops(store: &Store, found: &Found, cut: &Cut) -> Result<Vec<HopSummary>, Failure> {
    let (hops, near) = store.hops(found, cut)?;
    let mut by_hop: HashMap<HopKey, Vec<NearSums>> = HashMap::new();
    for n in near {
        let key = (n.client.clone(), n.server.clone(), n.service.clone(), n.protocol.clone());
        by_hop.entry(key).or_default().push(n);
    }
    let mut list = Vec::with_capacity(hops.len());
    for hop in hops {
        let key = (hop.client.clone(), hop.server.clone(), hop.service.clone(), hop.protocol.clone());
        list.push(hop_of(hop, by_hop.remove(&key).unwrap_or_default())?);
    }
    Ok(list)
}

fn hop_of(sums: HopSums, near: Vec<NearSums>) -> anyhow::Result<HopSummary> {
    let mut server = workload(&sums.server)?;
    server.service = Some(sums.service).filter(|s| !s.is_empty());
    let details = details(&sums.detail_names, &sums.detail_sums)?;
    let all = number(&sums.total[0])?;
    let mut segments = BTreeMap::new();
    for ((segment, series), occurs) in Segment::ALL.into_iter().zip(&sums.segments).zip(&sums.occurs) {
        if *occurs == 0 {
            continue;
        }
        let (sum, squares) = (number(&series[0])?, number(&series[1])?);
        let of = details.iter().filter(|(s, ..)| *s == segment);
        let stats = SegmentStats {
            distribution: distribution(sums.n, series)?,
            mean_ci95: parts::mean_ci95(sums.n, sum, squares),
            share: if all == 0 { 0.0 } else { sum as f64 / all as f64 },
            details: of.map(|&(_, detail, sum)| (detail, parts::mean(sum.0.into(), sums.n))).collect(),
        };
        segments.insert(segment, stats);
    }
    Ok(HopSummary {
        client: workload(&sums.client)?,
        server,
        protocol: serde_json::from_value::<HopProtocol>(sums.protocol.into())?,
        requests: sums.requests,
        n: sums.n,
        response_codes: sums.codes.into_iter().zip(sums.code_counts).collect(),
        total: (sums.n > 0).then(|| distribution(sums.n, &sums.total)).transpose()?,
        segments,
        near: near.iter().map(near_of).collect::<anyhow::Result<_>>()?,
    })
}

fn near_of(sums: &NearSums) -> anyhow::Result<NearQuantile> {
    let mut segments = SegmentMap::empty();
    for ((segment, sum), occurs) in Segment::ALL.into_iter().zip(&sums.segments).zip(&sums.occurs) {
        if *occurs > 0 {
            segments.set(segment, parts::mean(number(sum)?, sums.n));
        }
    }
    let total = parts::mean(number(&sums.total)?, sums.n);
    Ok(NearQuantile { per_mille: sums.per_mille, n: sums.n, total, segments })
}

/// Details by their names, `segment.part`, in order.
fn details(names: &[String], times: &[i64]) -> anyhow::Result<Vec<(Segment, Detail, DurationNs)>> {
    let one = |(name, time): (&String, &i64)| {
        let (segment, detail) = name.split_once('.').with_context(|| format!("{name:?} is no part of a segment"))?;
        let segment = serde_json::from_value::<Segment>(segment.into())?;
        anyhow::Ok((segment, serde_json::from_value::<Detail>(detail.into())?, DurationNs(*time)))
    };
    let mut list = names.iter().zip(times).map(one).collect::<anyhow::Result<Vec<_>>>()?;
    list.sort_by_key(|&(s, d, _)| (s, d));
    Ok(list)
}

/// The verdict; `None` if sums do not tell it.
#[expect(clippy::option_option, reason = "there may be no verdict, and it may not be told")]
fn verdict(
    store: &Store,
    found: &Found,
    cut: &Cut,
    entries: Vec<EntrySums>,
) -> Result<Option<Option<meshdiff_analyzer::Verdict>>, Failure> {
    let of = |e: &EntrySums| {
        anyhow::Ok(Entries {
            client: workload(&e.client)?,
            server: workload(&e.server)?,
            n: e.n,
            total: number(&e.total)?,
            p50_total: DurationNs(e.p50),
        })
    };
    let all = entries.iter().map(of).collect::<anyhow::Result<Vec<Entries>>>()?;
    let Some(most) = parts::most_time(all) else { return Ok(Some(None)) };
    let same = |e: &&EntrySums| of(e).is_ok_and(|o| (o.client, o.server) == (most.client.clone(), most.server.clone()));
    let Some(sums) = entries.iter().find(same).filter(|e| e.whole) else { return Ok(None) };
    let mut stretches = Vec::new();
    for row in store.stretches(found, cut, sums)? {
        let mut segments = parts::no_time();
        for (segment, sum) in Segment::ALL.into_iter().zip(&row.segments) {
            segments.set(segment, number(sum)?);
        }
        stretches.push(Stretch {
            client: workload(&row.client)?,
            server: workload(&row.server)?,
            waited_by: (!row.waited_by.is_empty()).then(|| workload(&row.waited_by)).transpose()?,
            segments,
            total: number(&row.total)?,
        });
    }
    Ok(Some(Some(parts::verdict(most, &stretches))))
}

/// The slowest requests, each followed by what it caused.
fn slowest(rows: Vec<SlowRow>) -> Result<Vec<AttributedRequest>, Failure> {
    let mut caused: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, row) in rows.iter().enumerate().filter(|(_, r)| !r.parent.is_empty()) {
        caused.entry(&row.parent).or_default().push(i);
    }
    let requests = rows.iter().map(request_of).collect::<anyhow::Result<Vec<_>>>()?;
    let mut list = Vec::new();
    for (root, _) in rows.iter().enumerate().filter(|(_, r)| r.parent.is_empty()) {
        add_tree(root, None, (&rows, &requests, &caused), &mut list);
    }
    Ok(list)
}

fn add_tree(
    i: usize,
    parent: Option<usize>,
    from: (&[SlowRow], &[AttributedRequest], &HashMap<&str, Vec<usize>>),
    to: &mut Vec<AttributedRequest>,
) -> usize {
    let (rows, requests, caused) = from;
    let at = to.len();
    to.push(AttributedRequest { parent, ..requests[i].clone() });
    for &child in caused.get(rows[i].name.as_str()).into_iter().flatten() {
        let added = add_tree(child, Some(at), from, to);
        to[at].children.push(added);
    }
    at
}

fn request_of(row: &SlowRow) -> anyhow::Result<AttributedRequest> {
    let times = Segment::ALL.into_iter().zip(&row.times).filter_map(|(s, t)| Some((s, DurationNs((*t)?)))).collect();
    let details = details(&row.detail_names, &row.detail_ns)?;
    let told = Told { class: &row.class, reason: &row.reason, times, details };
    let mut request = line::read(&row.line, &told).context("a request of the store cannot be read")?;
    if !row.server_line.is_empty() {
        line::complete(&mut request, &row.server_line).context("half a request of the store cannot be read")?;
    }
    Ok(request)
}

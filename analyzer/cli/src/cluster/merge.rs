//! What several agents sent, as one capture.

use super::fetch::Fetched;
use crate::analysis::window_end;
use anyhow::Context;
use meshdiff_capture::{
    AlsStats, Capture, CaptureData, CaptureState, EntryCounts, HostInfo, KubernetesInfo, Meta, ProbeInfo,
    RecordingState, Unmeasured,
};
use meshdiff_graph::nodes::{MergedNode, NodeRecording, merge};
use meshdiff_model::{ClockSample, DurationNs, MonotonicNs, NodeId, ProbeTier, Proxy, WallTime};
use std::collections::{BTreeMap, BTreeSet};

/// Wall clocks that differ by more than this are worth a sentence.
const CLOCK_NOTED: DurationNs = DurationNs::from_millis(100);
/// Recordings that begin or end within this of each other are cut to what they have in common.
const TOGETHER: DurationNs = DurationNs::from_millis(60_000);

/// An agent's window reaches until now, and Envoy sends its access logs once a second: of what began this shortly before the end, logs may
/// not have come yet.
const SETTLES: DurationNs = DurationNs::from_millis(2_000);

/// Several captures as one.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) data: CaptureData,
    pub(crate) notes: Vec<String>,
    /// How many nodes there were.
    pub(super) nodes: usize,
    /// First and last instant of all.
    pub(crate) whole: (MonotonicNs, MonotonicNs),
}

/// Reads captures that were fetched and puts them together.
pub(super) fn read(fetched: Vec<Fetched>) -> anyhow::Result<Merged> {
    let mut captures = Vec::new();
    for Fetched { node, folder } in fetched {
        let read = || Capture::open(&folder)?.read();
        let data = read().with_context(|| format!("what the agent on {node} sent"))?;
        // Disks are for what is not in memory yet.
        drop(std::fs::remove_dir_all(&folder));
        captures.push((node, data));
    }
    together(captures)
}

/// Puts captures together.
pub(crate) fn together(captures: Vec<(String, CaptureData)>) -> anyhow::Result<Merged> {
    let mut metas: Vec<(String, Meta)> = Vec::new();
    let mut proxies: BTreeMap<NodeId, Proxy> = BTreeMap::new();
    let mut recordings = Vec::new();
    let mut notes = Vec::new();
    for (node, mut data) in captures {
        // A window of a recording that goes on has no proper end, and needs none.
        data.state = CaptureState::Complete;
        let named = |w: String| if w.contains(&node) { w } else { format!("node {node}: {w}") };
        notes.extend(data.warnings().into_iter().map(named));
        let window = (data.meta.start.monotonic, window_end(&data));
        proxies.extend(data.proxies.into_iter().map(|p| (p.node.clone(), p)));
        recordings.push(NodeRecording {
            name: node.clone(),
            sockets: data.sockets,
            messages: data.messages,
            http2_streams: data.http2_streams,
            metrics: data.metrics,
            access_logs: data.access_logs,
            processes: data.processes,
            namespaces: data.meta.watched_netns.iter().map(|w| w.netns).collect(),
            clock: data.meta.clock.clone(),
            window,
        });
        metas.push((node, data.meta));
    }
    let merged = merge(recordings)?;
    notes.extend(clock_notes(&merged.nodes));
    let (window, cut) = common(&merged.nodes);
    notes.extend(cut);
    let meta = meta(&metas, &merged.nodes, merged.all.clock.clone(), window);
    notes.extend(tier_note(&metas));
    let nodes = metas.len();
    let all = merged.all;
    let whole = all.window;
    let data = CaptureData {
        meta,
        state: CaptureState::Complete,
        sockets: all.sockets,
        messages: all.messages,
        http2_streams: all.http2_streams,
        metrics: all.metrics,
        access_logs: all.access_logs,
        proxies: proxies.into_values().collect(),
        processes: all.processes,
        // Said already, with the node's name.
        damage: meshdiff_capture::Damage::default(),
    };
    Ok(Merged { data, notes, nodes, whole })
}

/// Says which clocks are wrong, and how that is known.
fn clock_notes(nodes: &[MergedNode]) -> Vec<String> {
    let reference = nodes.iter().find(|n| n.reference).map_or("", |n| n.name.as_str());
    let mut notes = Vec::new();
    for node in nodes.iter().filter(|n| !n.reference) {
        match node.ahead {
            Some(ahead) if ahead > CLOCK_NOTED || ahead < -CLOCK_NOTED => {
                let (by, word) =
                    (ahead.0.unsigned_abs() as f64 / 1e9, if ahead.is_negative() { "behind" } else { "ahead of" });
                notes.push(format!(
                    "the wall clock of {} is {by:.3} s {word} that of {reference}, by {} instants of messages between nodes: times are given \
                     by the clock of {reference}, and joins and segments do not depend on it",
                    node.name, node.instants
                ));
            }
            _ => {}
        }
        if node.contradiction > DurationNs::ZERO {
            notes.push(format!(
                "the clock of {} did not run evenly against the others': messages seem to arrive up to {} µs before they were sent",
                node.name,
                node.contradiction.0 / 1_000
            ));
        }
    }
    notes
}

/// The time that is reported: what all nodes recorded, where they began and ended about together. Else the whole, and what that means.
fn common(nodes: &[MergedNode]) -> ((MonotonicNs, MonotonicNs), Option<String>) {
    let starts = || nodes.iter().map(|n| n.window.0);
    let ends = || nodes.iter().map(|n| n.window.1);
    let (first, latest_start) = (starts().min().unwrap_or_default(), starts().max().unwrap_or_default());
    let (first_end, last) = (ends().min().unwrap_or_default(), ends().max().unwrap_or_default());
    // A window that is not longer than that is taken as it is.
    let settled = |end: MonotonicNs| if end - first > SETTLES + SETTLES { end.offset(-SETTLES) } else { end };
    let (first_end, last) = (settled(first_end), settled(last));
    let start = if latest_start - first <= TOGETHER { latest_start } else { first };
    let end = if last - first_end <= TOGETHER { first_end } else { last };
    let together = (start, end) == (latest_start, first_end);
    if together && start < end {
        return ((start, end), None);
    }
    let late = nodes.iter().filter(|n| n.window.0 - first > TOGETHER || last - n.window.1 > TOGETHER);
    let list: Vec<String> = late.map(|n| n.name.clone()).collect();
    let note = format!(
        "the recording of {} covers only a part of the time: of requests to and from there the other node's half alone is known for the rest",
        list.join(", ")
    );
    let whole = if start < end { (start, end) } else { (first, last) };
    (whole, (!list.is_empty()).then_some(note))
}

fn tier_note(metas: &[(String, Meta)]) -> Option<String> {
    let tiers: BTreeSet<ProbeTier> = metas.iter().map(|(_, m)| m.probes.tier).collect();
    let without: Vec<&str> =
        metas.iter().filter(|(_, m)| m.probes.tier == ProbeTier::None).map(|(n, _)| n.as_str()).collect();
    (tiers.len() > 1 && !without.is_empty()).then(|| {
        format!(
            "no probes on {}: of requests there only bounds are known (`meshdiff check` says why)",
            without.join(", ")
        )
    })
}

fn meta(
    metas: &[(String, Meta)],
    nodes: &[MergedNode],
    clock: meshdiff_model::ClockAnchor,
    window: (MonotonicNs, MonotonicNs),
) -> Meta {
    let sample =
        |at: MonotonicNs| ClockSample { monotonic: at, wall: WallTime(i64::try_from(at.0).unwrap_or(i64::MAX)) };
    let each = || metas.iter().map(|(_, m)| m);
    let texts = |of: fn(&Meta) -> &String| {
        let all: BTreeSet<&str> = each().map(|m| of(m).as_str()).filter(|t| !t.is_empty()).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let mut envoy_versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut watched_netns = Vec::new();
    let mut kubernetes: Option<KubernetesInfo> = None;
    for (m, node) in each().zip(nodes) {
        if let Some(told) = &m.kubernetes {
            // Times are those of the node that told.
            let told = told.clone().by_clock(node.ahead.unwrap_or_default());
            kubernetes.get_or_insert_default().absorb(&told);
        }
        for (version, n) in &m.envoy_versions {
            *envoy_versions.entry(version.clone()).or_default() += n;
        }
        for (watched, netns) in m.watched_netns.iter().zip(&node.namespaces) {
            watched_netns.push(meshdiff_capture::WatchedNetns { netns: *netns, ..watched.clone() });
        }
    }
    Meta {
        state: RecordingState::Complete,
        start: sample(window.0),
        end: Some(sample(window.1)),
        clock,
        host: HostInfo {
            hostname: metas.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "),
            kernel_release: texts(|m| &m.host.kernel_release),
            architecture: texts(|m| &m.host.architecture),
            boot_id: String::new(),
            cpus: each().map(|m| m.host.cpus).sum(),
        },
        tool: each().next().map(|m| m.tool.clone()).unwrap_or_default(),
        probes: probes(metas),
        als: als(metas),
        watched_netns,
        kubernetes,
        envoy_versions,
        ..Meta::default()
    }
}

fn probes(metas: &[(String, Meta)]) -> ProbeInfo {
    let each = || metas.iter().map(|(_, m)| &m.probes);
    let mut all = ProbeInfo {
        // What all nodes have at least; a node without any is said apart.
        tier: each().map(|p| p.tier).filter(|t| *t != ProbeTier::None).max().unwrap_or(ProbeTier::None),
        ..ProbeInfo::default()
    };
    for (node, meta) in metas {
        let (sum, one) = (&mut all.stats, &meta.probes.stats);
        sum.events = sum.events.saturating_add(one.events);
        sum.lost_events = sum.lost_events.saturating_add(one.lost_events);
        sum.skipped_runs = sum.skipped_runs.saturating_add(one.skipped_runs);
        sum.vanished_sockets = sum.vanished_sockets.saturating_add(one.vanished_sockets);
        sum.runs = sum.runs.saturating_add(one.runs);
        sum.run_time_ns = sum.run_time_ns.saturating_add(one.run_time_ns);
        all.tls_libraries.extend(meta.probes.tls_libraries.iter().cloned());
        // A metric is missing as a whole only where no node measured it.
        for unmeasured in &meta.probes.unmeasured {
            let everywhere = each().all(|p| p.unmeasured.iter().any(|u| u.metric == unmeasured.metric));
            if everywhere && !all.unmeasured.iter().any(|u| u.metric == unmeasured.metric) {
                all.unmeasured
                    .push(Unmeasured { metric: unmeasured.metric, reason: format!("{node}: {}", unmeasured.reason) });
            }
        }
    }
    all
}

fn als(metas: &[(String, Meta)]) -> AlsStats {
    let mut all = AlsStats::default();
    let add = |sum: &mut EntryCounts, one: &EntryCounts| {
        sum.received += one.received;
        sum.kept += one.kept;
        sum.dropped += one.dropped;
        sum.malformed += one.malformed;
    };
    for (_, meta) in metas {
        let one = &meta.als;
        all.streams += one.streams;
        all.malformed_messages += one.malformed_messages;
        add(&mut all.http, &one.http);
        add(&mut all.tcp, &one.tcp);
        if let Some(lost) = one.lost_estimate {
            *all.lost_estimate.get_or_insert(0) += lost;
        }
        for (kind, n) in &one.trouble {
            *all.trouble.entry(kind.clone()).or_default() += n;
        }
    }
    all
}

#[cfg(test)]
mod tests;

//! Where the pods of the simulation run.

use super::simulation::{EPOCH, simulated};
use super::{HOSTILE, Service};
use meshdiff_analyzer::{Dimension, Facts, Report, break_down};
use meshdiff_model::{Fact, NotKnown, PodFacts, WallTime, Workload};

/// Zones in turn; productpage has pods in two of them, and nobody says where details runs.
struct Places;

impl Facts for Places {
    fn of_pod(&self, end: &Workload, at: WallTime) -> PodFacts {
        let Some(name) = end.workload.as_deref() else { return PodFacts::unknown(NotKnown::NoPod) };
        let zone: Fact = match name.split('-').next().unwrap_or_default() {
            "details" => Err(NotKnown::NotSaid),
            "productpage" if (at.0 - EPOCH) / 5_000_000 % 2 == 0 => Ok("eu-1b".into()),
            "ratings" => Ok("eu-1b".into()),
            _ => Ok("eu-1a".into()),
        };
        let version = name.rsplit_once('-').map_or(Err(NotKnown::NotSaid), |(_, v)| Ok(v.into()));
        PodFacts { node: zone.as_ref().map(|z| format!("node-{z}").into()).map_err(|why| *why), zone, version }
    }

    fn subset_of_cluster(&self, cluster: &str) -> Fact {
        match cluster.split('|').nth(2) {
            Some(subset) if !subset.is_empty() => Ok(subset.into()),
            _ => Err(NotKnown::NoSubset),
        }
    }
}

/// Names that are none.
struct Hostile;

impl Facts for Hostile {
    fn of_pod(&self, _: &Workload, _: WallTime) -> PodFacts {
        PodFacts { zone: Ok(HOSTILE.into()), version: Ok(HOSTILE.into()), node: Err(NotKnown::Ambiguous) }
    }
    fn subset_of_cluster(&self, _: &str) -> Fact {
        Ok(HOSTILE.into())
    }
}

/// A report over `entries` entry requests, broken down by these.
pub(crate) fn broken_down(services: &[Service], entries: usize, by: &[Dimension]) -> Report {
    let (report, requests) = simulated(services, entries);
    report.with_breakdowns(break_down(&requests, by, &Places))
}

/// Breaks a report's slowest requests down by names that are none.
pub(super) fn hostile(report: Report) -> Report {
    let breakdowns = break_down(&report.slowest, &Dimension::ALL, &Hostile);
    // The hostile finding is alone in its report.
    Report { breakdowns, ..report }
}

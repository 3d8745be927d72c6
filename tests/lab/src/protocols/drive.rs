//! Running cases, a bounded number of times and within a bounded time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::cases::{self, Case, Place};
use crate::clock::MonotonicNs;
use crate::logbook::Logbook;
use crate::settings::Workload;
use crate::truth::{ExchangeRecord, Record};

/// The cases that these words mean, in the words' order; all that the lab can run if there are none.
///
/// # Errors
/// A word that means no case, or a case that this lab does not run, in words for its writer.
pub fn chosen(words: &[String], workloads: &[Workload]) -> Result<Vec<Case>, String> {
    let possible = |case: &&Case| workloads.contains(&case.workload);
    if words.is_empty() {
        return Ok(cases::all().filter(possible).filter(|case| !case.only_if_named).copied().collect());
    }
    let mut chosen = Vec::new();
    for word in words {
        let meant = |case: &&Case| match word.strip_suffix('*') {
            Some(begin) => case.name.starts_with(begin) && !case.only_if_named,
            None => case.name == word || (case.workload.name() == word && !case.only_if_named),
        };
        let found: Vec<_> = cases::all().filter(meant).collect();
        let able: Vec<_> = found.iter().copied().filter(possible).copied().collect();
        match (found.first(), able.is_empty()) {
            (None, _) => return Err(format!("`{word}` is no case: `meshdiff-lab drive --list` names them")),
            (Some(case), true) => {
                let missing = case.workload.name();
                return Err(format!("`{word}` needs a lab with --workloads {missing} (and what else it is to run)"));
            }
            _ => chosen.extend(able),
        }
    }
    Ok(chosen)
}

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Rounds of each case.
    pub rounds: u32,
    /// No round of a case begins later than this after its first.
    pub case_limit: Duration,
    /// Between two cases.
    pub gap: Duration,
}

/// What came of a case.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseReport {
    /// Its name.
    pub case: &'static str,
    /// Rounds that were made.
    pub rounds: u32,
    /// Exchanges of those rounds.
    pub exchanges: usize,
    /// Exchanges that ended as they should.
    pub ok: usize,
    /// Why the others did not, the first few.
    pub failures: Vec<String>,
    /// Before the first.
    pub start_ns: MonotonicNs,
    /// After the last.
    pub end_ns: MonotonicNs,
}

/// Runs cases one after the other, and writes every exchange down.
pub fn drive(cases: &[Case], bounds: Bounds, place: &Place, log: &Logbook, stop: &AtomicBool) -> Vec<CaseReport> {
    let mut reports = Vec::new();
    for case in cases {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        reports.push(run(case, bounds, place, log, stop));
        std::thread::sleep(bounds.gap);
    }
    log.flush();
    reports
}

fn run(case: &Case, bounds: Bounds, place: &Place, log: &Logbook, stop: &AtomicBool) -> CaseReport {
    let start_ns = MonotonicNs::now();
    let mut report = CaseReport {
        case: case.name,
        rounds: 0,
        exchanges: 0,
        ok: 0,
        failures: Vec::new(),
        start_ns,
        end_ns: start_ns,
    };
    for _ in 0..bounds.rounds {
        if stop.load(Ordering::Relaxed) || MonotonicNs::now() >= start_ns.plus(bounds.case_limit) {
            break;
        }
        report.rounds += 1;
        let failures = match (case.round)(place, case.name) {
            Ok(records) => {
                report.exchanges += records.len();
                let failures: Vec<_> = records.iter().filter_map(|record| failure(case, record)).collect();
                report.ok += records.len() - failures.len();
                records.into_iter().for_each(|record| log.append(&Record::Exchange(Box::new(record))));
                failures
            }
            Err(error) => vec![error.to_string()],
        };
        report.failures.extend(failures);
        report.failures.truncate(5);
    }
    report.end_ns = MonotonicNs::now();
    report
}

/// Why an exchange did not end as its case wants it.
pub fn failure(case: &Case, record: &ExchangeRecord) -> Option<String> {
    if let Some(error) = &record.error {
        return Some(error.clone());
    }
    (record.status != case.status).then(|| format!("answered {:?} instead of {:?}", record.status, case.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name_beginning_and_workload() {
        let all = [Workload::Bodies, Workload::Grpc];
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let names = |text: &str| Ok::<_, String>(chosen(&words(text), &all)?.iter().map(|case| case.name).collect());
        assert_eq!(names("http1-get,grpc-b*"), Ok(vec!["http1-get", "grpc-bidi"]));
        assert!(names("grpc").is_ok_and(|cases: Vec<_>| cases.len() > 4));
        assert!(names("nonsense").is_err_and(|why| why.contains("no case")));
        assert!(names("websocket").is_err_and(|why| why.contains("--workloads websocket")));
        assert!(chosen(&[], &[Workload::Bookinfo]).is_ok_and(|cases| cases.is_empty()));
        let mut names: Vec<_> = cases::all().map(|case| case.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "each name once");
    }
}

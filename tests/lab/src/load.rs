//! The load generator: a constant rate (open loop) or a number of connections that are always busy (closed loop).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use procfs::CurrentSI;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::clock::{MonotonicNs, duration_ns, sleep_until, tighten_timers};
use crate::delay::{DelayPlan, DrawMode};
use crate::hop::{Bytes, Caller, Context, Destination};

/// When the next request is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many requests per second, whether or not the earlier ones have come back.
    Rate(f64),
    /// As soon as the request before it on the same connection has come back.
    Closed,
}

/// A load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// When to send.
    pub pace: Pace,
    /// Closed loop: how many connections. Constant rate: how many requests may be in flight at once.
    pub workers: usize,
    /// How long to send.
    pub duration: Duration,
    /// What to delay.
    pub delays: DelayPlan,
    /// How to draw the delays.
    pub mode: DrawMode,
    /// The seed of the delays: the same seed draws the same delays for the same request number.
    pub seed: u64,
    /// Body sizes.
    pub bytes: Bytes,
}

/// Latencies in nanoseconds (three significant digits).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Arithmetic mean.
    pub mean_ns: u64,
    /// Smallest.
    pub min_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        (!histogram.is_empty()).then(|| Self {
            mean_ns: histogram.mean() as u64,
            min_ns: histogram.min(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        })
    }
}

/// What the load generator saw.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `rate` or `closed`.
    pub mode: &'static str,
    /// Constant rate only: what was asked for, per second.
    pub asked_rate: Option<f64>,
    /// Connections or requests in flight at most.
    pub workers: usize,
    /// The first request's time, CLOCK_MONOTONIC.
    pub start_ns: MonotonicNs,
    /// The last response's time, CLOCK_MONOTONIC.
    pub end_ns: MonotonicNs,
    /// Requests sent.
    pub requests: u64,
    /// Requests answered with 200.
    pub ok: u64,
    /// Requests without an answer, and what happened.
    pub errors: BTreeMap<String, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Constant rate only: requests that were due and could not be sent in time.
    pub unsent: u64,
    /// Answers per second.
    pub achieved_rate: f64,
    /// From right before the request's `write` to its last byte's `read`.
    pub latency: Option<Latency>,
    /// Constant rate only: from when the request was due, which also counts the time it waited to be sent.
    pub latency_from_due: Option<Latency>,
    /// The share of all CPUs' time that was idle meanwhile, 0 to 1.
    pub idle_cpu_share: Option<f64>,
    /// How many CPUs the lab's own processes (sidecars, applications, this load generator) kept busy meanwhile.
    pub lab_cpus: Option<f64>,
    /// Where every request is written down.
    pub log: std::path::PathBuf,
}

struct Tally {
    ok: u64,
    errors: BTreeMap<String, u64>,
    statuses: BTreeMap<u16, u64>,
    latency: Histogram<u64>,
    from_due: Histogram<u64>,
    end: MonotonicNs,
}

impl Tally {
    fn new(start: MonotonicNs) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("constant bounds that the crate allows");
        Self {
            ok: 0,
            errors: BTreeMap::new(),
            statuses: BTreeMap::new(),
            latency: histogram(),
            from_due: histogram(),
            end: start,
        }
    }

    fn merge(&mut self, other: Self) {
        self.ok += other.ok;
        for (why, count) in other.errors {
            *self.errors.entry(why).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        // Same bounds, so adding cannot fail.
        let _ = self.latency.add(other.latency);
        let _ = self.from_due.add(other.from_due);
        self.end = self.end.max(other.end);
    }
}

/// Sends the load. `stop` ends it early, with a report over what was sent.
pub fn run(plan: &Plan, caller: &Caller, to: &Destination, log: &std::path::Path, stop: &AtomicBool) -> Report {
    tighten_timers();
    let cpu_before = cpu_times();
    let start = MonotonicNs::now();
    let end_of_sending = start.plus(plan.duration);
    let number = AtomicU64::new(0);
    let total = Mutex::new(Tally::new(start));
    std::thread::scope(|scope| {
        for _ in 0..plan.workers {
            let spawned = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, || {
                let mut tally = Tally::new(start);
                while !stop.load(Ordering::Relaxed) {
                    let i = number.fetch_add(1, Ordering::Relaxed);
                    let due = due(plan.pace, start, i);
                    if due.unwrap_or_else(MonotonicNs::now) >= end_of_sending {
                        number.fetch_sub(1, Ordering::Relaxed);
                        break;
                    }
                    if let Some(due) = due {
                        sleep_until(due);
                        if MonotonicNs::now() >= end_of_sending {
                            number.fetch_sub(1, Ordering::Relaxed);
                            break;
                        }
                    }
                    one(plan, caller, to, i, due, &mut tally);
                }
                total.lock().unwrap_or_else(std::sync::PoisonError::into_inner).merge(tally);
            });
            if let Err(error) = spawned {
                eprintln!("the load runs with fewer workers than asked, the system refuses another thread: {error}");
                break;
            }
        }
    });
    let tally = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    caller.log.flush();
    let requests = number.into_inner();
    let answered: u64 = tally.statuses.values().sum();
    let elapsed = tally.end.since(start).as_secs_f64();
    let rate = match plan.pace {
        Pace::Rate(rate) => Some(rate),
        Pace::Closed => None,
    };
    Report {
        mode: if rate.is_some() { "rate" } else { "closed" },
        asked_rate: rate,
        workers: plan.workers,
        start_ns: start,
        end_ns: tally.end,
        requests,
        ok: tally.ok,
        errors: tally.errors,
        statuses: tally.statuses,
        unsent: rate.map_or(0, |rate| ((rate * plan.duration.as_secs_f64()) as u64).saturating_sub(requests)),
        achieved_rate: if elapsed > 0.0 { answered as f64 / elapsed } else { 0.0 },
        latency: Latency::of(&tally.latency),
        latency_from_due: rate.and_then(|_| Latency::of(&tally.from_due)),
        idle_cpu_share: idle_share(cpu_before, cpu_times()),
        lab_cpus: None,
        log: log.to_owned(),
    }
}

fn due(pace: Pace, start: MonotonicNs, i: u64) -> Option<MonotonicNs> {
    match pace {
        Pace::Rate(rate) => Some(start.plus(Duration::from_secs_f64(i as f64 / rate))),
        Pace::Closed => None,
    }
}

fn one(plan: &Plan, caller: &Caller, to: &Destination, i: u64, due: Option<MonotonicNs>, tally: &mut Tally) {
    // Seeded per request: the draw does not depend on which worker sends it.
    let mut rng = StdRng::seed_from_u64(plan.seed ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let delays = plan.delays.draw(plan.mode, &mut rng);
    let context = Context::root((!delays.is_empty()).then(|| delays.to_string()), plan.bytes);
    let outcome = caller.call(to, &context, due);
    tally.end = tally.end.max(outcome.end);
    match outcome.status {
        Ok(status) => {
            *tally.statuses.entry(status).or_default() += 1;
            tally.ok += u64::from(status == 200);
            tally.latency.saturating_record(duration_ns(outcome.end.since(outcome.send_start)));
            if let Some(due) = due {
                tally.from_due.saturating_record(duration_ns(outcome.end.since(due)));
            }
        }
        Err(why) => *tally.errors.entry(why).or_default() += 1,
    }
}

/// Idle and total CPU time of the machine, in ticks.
fn cpu_times() -> Option<(u64, u64)> {
    let cpu = procfs::KernelStats::current().ok()?.total;
    let idle = cpu.idle + cpu.iowait.unwrap_or(0);
    let busy =
        cpu.user + cpu.nice + cpu.system + cpu.irq.unwrap_or(0) + cpu.softirq.unwrap_or(0) + cpu.steal.unwrap_or(0);
    Some((idle, idle + busy))
}

fn idle_share(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<f64> {
    let ((idle_before, all_before), (idle_after, all_after)) = (before?, after?);
    let all = all_after.checked_sub(all_before).filter(|all| *all > 0)?;
    Some(idle_after.saturating_sub(idle_before) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Pool;
    use crate::http::{MessageReader, render};
    use crate::logbook::Logbook;
    use crate::truth::Truth;
    use std::io::Write;

    fn server() -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = MessageReader::new(stream.unwrap());
                std::thread::spawn(move || {
                    while reader.request().is_ok() {
                        reader.stream().write_all(&render("HTTP/1.1 200 OK", &[], 3)).unwrap();
                    }
                });
            }
        });
        address
    }

    fn drive(pace: Pace, workers: usize, millis: u64) -> (Report, Truth) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loadgen.ndjson");
        let caller = Caller { pod: "loadgen".into(), pool: Pool::default(), log: Logbook::open(&path).unwrap() };
        let to = Destination { host: "x".into(), address: server(), path: "/".into() };
        let plan = Plan {
            pace,
            workers,
            duration: Duration::from_millis(millis),
            delays: "x.app=0,1ms".parse().unwrap(),
            mode: DrawMode::Independent,
            seed: 1,
            bytes: Bytes::default(),
        };
        let report = run(&plan, &caller, &to, &path, &AtomicBool::new(false));
        (report, Truth::read([path]).unwrap())
    }

    #[test]
    fn a_rate_is_kept_and_every_request_logged() {
        let (report, truth) = drive(Pace::Rate(500.0), 8, 400);
        assert_eq!((report.requests, report.ok, report.unsent), (200, 200, 0), "{report:?}");
        assert_eq!(truth.clients().len(), 200);
        assert!(truth.clients().iter().all(|sent| sent.intended_ns.unwrap() <= sent.send_start_ns));
        assert!(report.latency_from_due.unwrap().p50_ns >= report.latency.unwrap().min_ns);
        let zeros = truth.clients().iter().filter(|sent| sent.delays.as_deref() == Some("x.app=0us")).count();
        assert!((40..=160).contains(&zeros), "{zeros} of 200 were drawn as 0");
    }

    #[test]
    fn a_closed_loop_keeps_its_connections_busy() {
        let (report, truth) = drive(Pace::Closed, 3, 200);
        assert_eq!(report.requests, report.ok, "{report:?}");
        assert_eq!(truth.clients().len() as u64, report.ok);
        let sockets: std::collections::BTreeSet<_> = truth.clients().iter().map(|sent| sent.local).collect();
        assert!(sockets.len() <= 3);
        assert!(report.latency_from_due.is_none());
    }
}

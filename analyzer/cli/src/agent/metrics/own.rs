//! What the agent costs and loses, read when somebody asks.

use crate::agent::http::HttpCounters;
use crate::agent::live::LiveCounters;
use crate::agent::window::Window;
use crate::store::SegmentSender;
use meshdiff_als::AlsHandle;
use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the figures are.
pub(crate) struct Own {
    pub(crate) window: Arc<Window>,
    pub(crate) live: Arc<LiveCounters>,
    pub(crate) http: Arc<HttpCounters>,
    pub(crate) als: AlsHandle,
    /// Where segments are sent to a store.
    pub(crate) sender: Option<Arc<SegmentSender>>,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

/// What a process used.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Seconds in user space, and in the kernel on its behalf (most of the latter writes the window).
    cpu: [f64; 2],
    /// Bytes in memory: its own, and all with files and shared memory (the probes' ring).
    memory: [u64; 2],
}

/// What this process used until now.
fn usage() -> Usage {
    let mut usage = Usage::default();
    if let Ok(times) = getrusage(UsageWho::RUSAGE_SELF) {
        let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        usage.cpu = [seconds(times.user_time()), seconds(times.system_time())];
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    usage.memory = ["RssAnon:", "VmRSS:"].map(|name| kib(name).unwrap_or_default() * 1024);
    usage
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }
    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }
    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }
}

impl Collector for Own {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let get = |n: &AtomicU64| n.load(Relaxed);
        let usage = usage();
        out.seconds("meshdiff_agent_cpu_user_seconds", "Processor time of the agent in user space", usage.cpu[0])?;
        out.seconds(
            "meshdiff_agent_cpu_system_seconds",
            "Processor time of the kernel for the agent, the probes' left out",
            usage.cpu[1],
        )?;
        out.gauge("meshdiff_agent_memory_bytes", "Memory of the agent's own (anonymous)", usage.memory[0])?;
        out.gauge(
            "meshdiff_agent_resident_bytes",
            "Resident memory of the agent, with the probes' ring and its program's file",
            usage.memory[1],
        )?;

        let counted = self.window.counted();
        let probes = counted.probes;
        let probe_seconds = probes.run_time_ns as f64 / 1e9;
        out.seconds(
            "meshdiff_probe_run_seconds",
            "Time inside the probes, on all processors, as the kernel counts it",
            probe_seconds,
        )?;
        out.counter("meshdiff_probe_runs", "Times that a probe ran", probes.runs)?;
        out.counter("meshdiff_kernel_events", "Socket events that the probes sent", probes.events)?;
        out.counter("meshdiff_kernel_events_lost", "Socket events that found the ring full", probes.lost_events)?;
        out.counter("meshdiff_probe_skipped_runs", "Runs of probes that the kernel left out", probes.skipped_runs)?;

        let als = self.als.stats();
        let sum = |map: &std::collections::BTreeMap<String, u64>| map.values().sum::<u64>();
        out.gauge("meshdiff_als_streams_open", "Access log streams that are open", als.streams_open)?;
        out.counter("meshdiff_als_entries", "Access log entries that came", als.entries())?;
        out.counter("meshdiff_als_entries_shed", "Access log entries that the agent had no room for", sum(&als.shed))?;
        let malformed = sum(&als.malformed_entries) + sum(&als.malformed_messages);
        out.counter(
            "meshdiff_als_entries_malformed",
            "Access log entries and messages that could not be understood",
            malformed,
        )?;

        let (segments, bytes, _) = self.window.size();
        let w = &self.window.counters;
        out.gauge("meshdiff_window_segments", "Closed segments in the window", segments as u64)?;
        out.gauge("meshdiff_window_bytes", "Bytes of the window on the disk", bytes)?;
        out.counter("meshdiff_window_segments_closed", "Segments closed", get(&w.closed))?;
        out.counter("meshdiff_window_segments_expired", "Segments deleted because of their age", get(&w.expired))?;
        out.counter(
            "meshdiff_window_segments_over_bytes",
            "Segments deleted because the window took too many bytes",
            get(&w.over_bytes),
        )?;
        out.counter(
            "meshdiff_window_segments_disk_full",
            "Segments deleted because the disk was full",
            get(&w.disk_full),
        )?;
        out.counter(
            "meshdiff_window_segments_recovered",
            "Segments taken over from an agent that was killed",
            get(&w.recovered),
        )?;
        out.counter(
            "meshdiff_window_segments_unreadable",
            "Segments that could not be read and were deleted",
            get(&w.unreadable),
        )?;
        out.counter(
            "meshdiff_window_write_errors",
            "Times that the window could not be written",
            get(&w.write_errors),
        )?;
        out.counter("meshdiff_window_disk_full_errors", "Of these, because the disk was full", get(&w.full_errors))?;
        out.counter("meshdiff_window_rows_lost", "Rows that could not be written", get(&w.lost_rows))?;

        out.counter(
            "meshdiff_join_rows_shed",
            "Rows that are in the window but not in these metrics, because too many waited",
            get(&self.live.shed_rows),
        )?;
        out.counter(
            "meshdiff_join_contradictions",
            "Requests that contradict themselves and are in no metric",
            get(&self.live.contradictions),
        )?;
        out.counter("meshdiff_joins", "Joins made for these metrics", get(&self.live.joins))?;
        let join_seconds = get(&self.live.join_ns) as f64 / 1e9;
        out.seconds("meshdiff_join_seconds", "Time that these joins took", join_seconds)?;

        let (sent, shed) = self.sender.as_ref().map(|s| s.stats()).unwrap_or_default();
        out.counter("meshdiff_store_segments", "Segments that the store has", sent.stored)?;
        out.gauge("meshdiff_store_segments_waiting", "Segments that wait for the store", sent.waiting)?;
        out.gauge("meshdiff_store_waiting_bytes", "Their bytes in the spool", sent.waiting_bytes)?;
        out.counter(
            "meshdiff_store_segments_dropped",
            "Segments that did not get into the store: dropped to keep to the spool's limit, refused, or passed over",
            sent.dropped + sent.refused + shed,
        )?;
        out.counter("meshdiff_store_failures", "Attempts to store a segment that failed", sent.failures)?;

        out.counter("meshdiff_captures_served", "Captures that were served whole", get(&self.http.captures))?;
        out.counter("meshdiff_captures_failed", "Captures that were cut off", get(&self.http.failed))?;
        out.counter("meshdiff_requests_denied", "Requests to the agent without the right token", get(&self.http.denied))
    }
}

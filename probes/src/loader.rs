//! Loading, attaching and asking the probes.

use crate::cost::CostMeter;
use crate::error::{ProbeError, kernel_release};
use crate::optional::{self, Unmeasured};
use crate::ring::{Drained, Ring};
use crate::tier::{self, TIERS};
use crate::uprobe::{Library, LibraryError, Reach, Uprobes};
use crate::{RawEvent, filter::NamespaceFilter};
use aya::maps::{MapData, MapError, PerCpuArray};
use aya::programs::ProgramFd;
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use meshdiff_model::{Metric, MonotonicNs, ProbeStats, ProbeTier};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// The built probes of the tiers tp_btf and fentry. `make bpf` builds them anew; a test proves that they belong to the source beside
/// them.
static SOCKET: &[u8] = include_bytes_aligned!("../bpf/socket.bpf.o");
/// Those of the tier kprobe.
static KPROBE: &[u8] = include_bytes_aligned!("../bpf/kprobe.bpf.o");

/// Smallest ring buffer, in bytes: a page (the loader rounds up where pages are larger).
const SMALLEST_RING: u32 = 4096;

/// How the probes are to run.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// Size of the ring buffer in bytes: a power of two, at least a page. A record takes 48 bytes, one with payload up to 560;
    /// 16 MiB hold about 60,000 requests' worth of one socket pair.
    pub ring_bytes: u32,
    /// Watch every network namespace, whatever [`NamespaceFilter`] says.
    pub watch_all: bool,
    /// Let the kernel measure the probes' run time, one second in five (measuring costs about 80 ns a run of any BPF program on the
    /// machine, hence not always).
    pub measure_cost: bool,
    /// How long the drain sleeps when there is little to do.
    pub drain_interval: Duration,
    /// Kinds of probes to try, best first; usually all of [`TIERS`].
    pub tiers: Vec<ProbeTier>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 16 << 20,
            watch_all: false,
            measure_cost: true,
            drain_interval: Duration::from_millis(20),
            tiers: TIERS.to_vec(),
        }
    }
}

/// Consumes what the probes record.
pub trait Handler {
    /// One record. Keep it short: the ring fills meanwhile.
    fn event(&mut self, event: &RawEvent<'_>);
    /// Called after every drain, with the monotonic clock.
    fn tick(&mut self, now: MonotonicNs);
}

/// What the probes themselves count, since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters {
    /// Records that the kernel wrote to the ring, announcements included.
    pub emitted: u64,
    /// Events that found the ring full. Each is a gap in its socket's counter.
    pub lost: u64,
    /// Announcements that found the ring full; each was tried again with its socket's next event.
    pub announcements_delayed: u64,
    /// Events dropped because the kernel could not allocate the socket's state.
    pub untracked: u64,
    /// Runs that the kernel left out, of any socket's, because the same program was running on the processor already.
    pub skipped: u64,
    /// Records that user space took from the ring.
    pub consumed: u64,
    /// Records among those that could not be decoded.
    pub undecodable: u64,
}

/// How the programs read payload.
#[derive(Clone, Copy, Debug)]
struct Payload {
    text: bool,
    vector: Vector,
    /// Follow HTTP/2 frames.
    frames: bool,
}

/// How they read the first element of a vector: `VECTOR_*` of the C file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Vector {
    Directly = 0,
    ByHelper = 1,
    Never = 2,
}

/// The probes, loaded and attached. Dropping them detaches them.
pub struct Probes {
    tier: ProbeTier,
    refused: Vec<(ProbeTier, ProbeError)>,
    links: Vec<tier::Attached>,
    unmeasured: Vec<Unmeasured>,
    uprobes: Uprobes,
    programs: Ebpf,
    ring: Ring,
    counts: PerCpuArray<MapData, u64>,
    filter: NamespaceFilter,
    cost: CostMeter,
    interval: Duration,
}

impl Probes {
    /// Loads and attaches the best kind of probes that the kernel takes, found by trying. From here on they record the sockets
    /// of watched namespaces.
    ///
    /// # Errors
    /// If the process may not, or the kernel cannot.
    pub fn load(config: &ProbeConfig) -> Result<Self, ProbeError> {
        check_capabilities()?;
        check_ring_size(config.ring_bytes)?;
        let btf = Btf::from_sys_fs().map_err(|source| ProbeError::NoBtf { source })?;
        let mut refused = Vec::new();
        for tier in &config.tiers {
            match Self::load_tier(config, &btf, *tier) {
                Ok(probes) => return Ok(Self { refused, ..probes }),
                Err(error) if error.is_about_the_tier() => refused.push((*tier, error)),
                Err(error) => return Err(error),
            }
        }
        Err(ProbeError::NoTier { refused })
    }

    /// Loads one tier, with the best way of reading payload that its programs can have.
    fn load_tier(config: &ProbeConfig, btf: &Btf, tier: ProbeTier) -> Result<Self, ProbeError> {
        if tier == ProbeTier::Kprobe {
            return Self::load_kprobes(config, btf);
        }
        let text = text_payload();
        let mut refusal = None;
        for vector in [Vector::Directly, Vector::ByHelper, Vector::Never] {
            if text && vector == Vector::ByHelper {
                continue;
            }
            for frames in [true, false] {
                if frames && (text || vector == Vector::Never) {
                    continue;
                }
                match Self::load_with(config, btf, tier, Payload { text, vector, frames }) {
                    Ok(probes) => return Ok(probes),
                    // The verifier spoke: of another program it may say something else.
                    Err(error @ ProbeError::ProgramRefused { .. }) if error.has_log() => {
                        tracing::debug!(?vector, frames, %error, "not loaded");
                        refusal.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Err(refusal.unwrap_or(ProbeError::NoSuchTier { tier }))
    }

    fn load_with(config: &ProbeConfig, btf: &Btf, tier: ProbeTier, payload: Payload) -> Result<Self, ProbeError> {
        let text_payload = u8::from(payload.text);
        let vector = payload.vector as u8;
        let frames = u8::from(payload.frames);
        let arm64 = u8::from(cfg!(target_arch = "aarch64"));
        let mut loader = EbpfLoader::new();
        loader.override_global("tls_arm64", &arm64, true);
        loader.override_global("text_payload", &text_payload, true).override_global("vector", &vector, true);
        loader.override_global("frames", &frames, true);
        let mut probes = Self::load_object(config, btf, tier, loader, SOCKET)?;
        if payload.text {
            probes.uprobes.refuse("kernel lockdown forbids to read what an application hands to its TLS library");
        }
        Ok(probes)
    }

    /// Kprobes read all memory by a helper, or not at all.
    fn load_kprobes(config: &ProbeConfig, btf: &Btf) -> Result<Self, ProbeError> {
        if !aya::features().bpf_probe_read_kernel() {
            return Err(ProbeError::MemoryForbidden { kernel: kernel_release(), lockdown: lockdown() });
        }
        if !matches!(std::env::consts::ARCH, "x86_64" | "aarch64") {
            return Err(ProbeError::Architecture { architecture: std::env::consts::ARCH });
        }
        let arm64 = u8::from(cfg!(target_arch = "aarch64"));
        let mut refusal = None;
        for frames in [1u8, 0] {
            let mut loader = EbpfLoader::new();
            loader.override_global("tls_arm64", &arm64, true).override_global("frames", &frames, true);
            match Self::load_object(config, btf, ProbeTier::Kprobe, loader, KPROBE) {
                Ok(probes) => return Ok(probes),
                Err(error @ ProbeError::ProgramRefused { .. }) if error.has_log() => {
                    tracing::debug!(frames, %error, "not loaded");
                    refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or(ProbeError::NoSuchTier { tier: ProbeTier::Kprobe }))
    }

    fn load_object<'a>(
        config: &ProbeConfig,
        btf: &'a Btf,
        tier: ProbeTier,
        mut loader: EbpfLoader<'a>,
        object: &[u8],
    ) -> Result<Self, ProbeError> {
        let watch_all: &'static u8 = if config.watch_all { &1 } else { &0 };
        let mut programs = loader
            .btf(Some(btf))
            .allow_unsupported_maps()
            .map_max_entries("ring", config.ring_bytes)
            .override_global("watch_all", watch_all, true)
            .load(object)
            .map_err(load_error)?;
        let ring = Ring::new(map(&mut programs, "ring")?, config.ring_bytes)?;
        let counts = PerCpuArray::try_from(map(&mut programs, "counts")?)
            .map_err(|source| ProbeError::Map { map: "counts", source })?;
        let filter = NamespaceFilter::new(map(&mut programs, "watched")?, map(&mut programs, ".data")?)?;
        let mut links = tier::attach(&mut programs, btf, tier)?;
        let (more, unmeasured) = optional::attach(&mut programs, btf, tier);
        links.extend(more);
        let cost = CostMeter::new(config.measure_cost);
        let interval = config.drain_interval;
        Ok(Self {
            tier,
            refused: Vec::new(),
            links,
            unmeasured,
            uprobes: Uprobes::default(),
            programs,
            ring,
            counts,
            filter,
            cost,
            interval,
        })
    }

    /// Which kind of probes these are.
    #[must_use]
    pub const fn tier(&self) -> ProbeTier {
        self.tier
    }

    /// Better kinds of probes that the kernel refused, and why.
    #[must_use]
    pub fn refused(&self) -> &[(ProbeTier, ProbeError)] {
        &self.refused
    }

    /// What is not measured, because the kernel refused the programs for it, and why.
    #[must_use]
    pub fn unmeasured(&self) -> &[(Metric, ProbeError)] {
        &self.unmeasured
    }

    /// The set of watched namespaces, to be changed at any time from any thread.
    #[must_use]
    pub fn filter(&self) -> NamespaceFilter {
        self.filter.clone()
    }

    /// Takes everything that is in the ring.
    pub fn drain(&mut self, handler: impl FnMut(&RawEvent<'_>)) -> Drained {
        let drained = self.ring.drain(handler);
        if self.cost.is_due() {
            let events = self.sum(0) + self.sum(1);
            self.cost.turn(events);
        }
        drained
    }

    /// Drains on a timer until `stop` says so, then detaches and drains what is left. The timer runs faster while the
    /// ring fills fast.
    pub fn run(&mut self, stop: impl Fn() -> bool, handler: &mut impl Handler) {
        while !stop() {
            let began = Instant::now();
            let drained = self.drain(|event| handler.event(event));
            handler.tick(monotonic_now());
            let pause = self.ring.pause_after(&drained, self.interval);
            if let Some(rest) = pause.checked_sub(began.elapsed()) {
                std::thread::sleep(rest);
            }
        }
        self.detach();
        // A probe that was running when its link went still commits its record: wait for one that is unfinished.
        for _ in 0..3 {
            self.drain(|event| handler.event(event));
            std::thread::sleep(Duration::from_millis(1));
        }
        handler.tick(monotonic_now());
    }

    /// Detaches the probes; what is in the ring stays there to be drained. Attached probes are detached by dropping, too.
    pub fn detach(&mut self) {
        if !self.links.is_empty() {
            let events = self.sum(0) + self.sum(1);
            self.cost.stop(events);
        }
        self.links.clear();
        self.uprobes.detach();
    }

    /// Follows the calls of a library with which applications do TLS themselves: what watched sockets send of theirs is then told as
    /// [`RawKind::SendPlaintext`](crate::RawKind::SendPlaintext). Takes some ms.
    ///
    /// # Errors
    /// If the library is another one, its process has ended, or the kernel refuses. The other probes go on.
    pub fn attach_library(&mut self, library: &Library, reach: Reach) -> Result<(), LibraryError> {
        self.uprobes.attach(&mut self.programs, library, reach)
    }

    /// Lets go of what [`Self::attach_library`] placed in a process that has ended.
    pub fn forget_process(&mut self, pid: u32) {
        self.uprobes.forget(pid);
    }

    /// Tries whether the kernel takes the programs of [`Self::attach_library`], without placing any.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_library_probes(&mut self) -> Result<(), LibraryError> {
        self.uprobes.load(&mut self.programs)
    }

    /// How many sockets the kernel side remembers something of. `None` where that is kept with the sockets and goes with them: with
    /// every tier but [`ProbeTier::Kprobe`].
    #[must_use]
    pub fn remembered(&self) -> Option<usize> {
        if self.tier != ProbeTier::Kprobe {
            return None;
        }
        let remembered: PerCpuArray<_, u64> = PerCpuArray::try_from(self.programs.map("remembered")?).ok()?;
        // A processor can forget what another one remembered.
        let sum = remembered.get(&0, 0).ok()?.iter().fold(0u64, |sum, n| sum.wrapping_add(*n));
        usize::try_from(sum).ok()
    }

    /// What the probes count.
    ///
    /// # Errors
    /// If the kernel does not give the counters.
    pub fn counters(&self) -> Result<ProbeCounters, ProbeError> {
        let sum = |slot| self.try_sum(slot).map_err(|source| ProbeError::Map { map: "counts", source });
        Ok(ProbeCounters {
            emitted: sum(0)?,
            lost: sum(1)?,
            announcements_delayed: sum(2)?,
            untracked: sum(3)?,
            skipped: self.skipped(),
            consumed: self.ring.consumed(),
            undecodable: self.ring.undecodable(),
        })
    }

    /// What the probes did and cost. `run_time_ns` and `runs` are scaled up from the seconds in which the kernel measured
    /// them (one in five), by the share of events in those; they are 0 if too little was measured.
    ///
    /// # Errors
    /// If the kernel does not give the counters.
    pub fn stats(&self) -> Result<ProbeStats, ProbeError> {
        let counters = self.counters()?;
        let (runs, run_time_ns) = self.cost.scaled(self.runs(), counters.emitted + counters.lost);
        Ok(ProbeStats {
            events: counters.emitted,
            lost_events: counters.lost + counters.untracked,
            skipped_runs: counters.skipped,
            // Who assembles messages knows.
            vanished_sockets: 0,
            runs,
            run_time_ns,
        })
    }

    /// Runs of all programs that the kernel left out.
    fn skipped(&self) -> u64 {
        let misses = |fd: &ProgramFd| {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
            recursion_misses(&info)
        };
        self.programs.programs().filter_map(|(_, p)| misses(p.fd().ok()?)).sum()
    }

    /// Run count and run time of all programs, as far as the kernel measured them.
    fn runs(&self) -> (u64, Duration) {
        self.programs
            .programs()
            .filter_map(|(_, p)| p.info().ok())
            .fold((0, Duration::ZERO), |(n, t), info| (n + info.run_count(), t + info.run_time()))
    }

    fn try_sum(&self, slot: u32) -> Result<u64, MapError> {
        Ok(self.counts.get(&slot, 0)?.iter().sum())
    }

    fn sum(&self, slot: u32) -> u64 {
        self.try_sum(slot).unwrap_or(0)
    }
}

/// The clock in which the probes measure (`bpf_ktime_get_ns`).
#[must_use]
pub fn monotonic_now() -> MonotonicNs {
    // CLOCK_MONOTONIC cannot fail where Linux runs; 0 would only make nothing grow old.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    MonotonicNs(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn map(programs: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, ProbeError> {
    programs.take_map(name).ok_or_else(|| ProbeError::DoesNotFit {
        kernel: kernel_release(),
        reason: format!("the object has no map {name}"),
    })
}

/// True if payload can be read as text only: up to its first zero byte behind the header of a TLS record, which is enough for that
/// and for the heads of HTTP/1.
///
/// Kernel lockdown at its level `confidentiality` forbids `bpf_probe_read_kernel` and leaves `bpf_probe_read_user` alone. But where
/// the former does not load, aya takes the kernel for one from before 5.5 and turns the latter into `bpf_probe_read`
/// (`Function::sanitize` in aya-obj), which is forbidden too.
fn text_payload() -> bool {
    !aya::features().bpf_probe_read_kernel()
}

/// What the kernel says of a program's descriptor (`bpf_prog_show_fdinfo`).
fn recursion_misses(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

/// The level of kernel lockdown that is in force, as far as it is to be seen.
fn lockdown() -> Option<String> {
    let file = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    file.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
}

fn load_error(error: EbpfError) -> ProbeError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            ProbeError::MapRefused { map: name, errno: io_error }
        }
        other => ProbeError::does_not_fit(&other),
    }
}

fn check_ring_size(bytes: u32) -> Result<(), ProbeError> {
    if bytes.is_power_of_two() && bytes >= SMALLEST_RING { Ok(()) } else { Err(ProbeError::BadRingSize { bytes }) }
}

/// Says which capabilities are missing before the kernel says no more than EPERM.
fn check_capabilities() -> Result<(), ProbeError> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    let Some(effective) = effective_capabilities() else { return Ok(()) };
    if effective & CAP_SYS_ADMIN != 0 {
        return Ok(());
    }
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(bit, _)| effective & bit == 0)
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(ProbeError::NotPermitted { missing: missing.join(", ") }) }
}

fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_ring_sizes_are_refused_before_the_kernel_sees_them() {
        assert!(check_ring_size(SMALLEST_RING).is_ok());
        assert!(matches!(check_ring_size(5000), Err(ProbeError::BadRingSize { bytes: 5000 })));
        assert!(check_ring_size(0).is_err());
    }

    #[test]
    fn a_map_that_cannot_be_made_is_named() {
        let map = MapError::CreateError { name: "ring".to_owned(), io_error: std::io::Error::from_raw_os_error(12) };
        let error = load_error(EbpfError::MapError(map));
        assert!(matches!(&error, ProbeError::MapRefused { map, .. } if map == "ring"), "{error}");
    }

    #[test]
    fn runs_left_out_are_read_from_a_descriptor() {
        let info = "pos:\t0\nprog_type:\t26\nrun_cnt:\t9\nrecursion_misses:\t8\nverified_insns:\t120\n";
        assert_eq!(recursion_misses(info), Some(8));
        assert_eq!(recursion_misses("prog_type:\t26\n"), None);
    }

    #[test]
    fn the_clock_does_not_run_backwards() {
        let a = monotonic_now();
        assert!(monotonic_now() >= a && a.0 > 0);
    }
}

//! `check`: what this machine allows, found by trying, and what to do about what it does not.

pub(crate) mod show;

use crate::args::CheckArgs;
use crate::exit::Failure;
use meshdiff_discovery::{NetnsScanner, ProcessTable, Selection};
use meshdiff_model::{Metric, NetnsId, ProbeTier, Process, Tgid};
use meshdiff_probes::{LibraryError, LibraryFinder, ProbeConfig, ProbeError, Probes, TIERS};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `meshdiff check`.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    if args.cluster || crate::cluster::is_named(&args.of) {
        return crate::cluster::check(args);
    }
    let machine = look(args.als_listen);
    let text = if args.json { show::json(&machine) } else { show::table(&machine) };
    io::stdout().lock().write_all(text.as_bytes())?;
    if machine.ready() { Ok(()) } else { Err(Failure::Answered) }
}

/// How an answer is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// As it should be.
    Good,
    /// Works without, or something is to be known.
    Note,
    /// `record` would not work because of it.
    Bad,
}

/// The answer to one question.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) name: Cow<'static, str>,
    pub(crate) status: Status,
    pub(crate) text: String,
    pub(crate) fix: Option<String>,
}

impl Answer {
    pub(crate) fn good(name: impl Into<Cow<'static, str>>, text: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Good, text: text.into(), fix: None }
    }

    pub(crate) fn note(name: impl Into<Cow<'static, str>>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Note, text: text.into(), fix: Some(fix.into()) }
    }

    pub(crate) fn bad(name: impl Into<Cow<'static, str>>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Bad, text: text.into(), fix: Some(fix.into()) }
    }
}

/// A kind of probes, tried.
#[derive(Clone, Debug)]
struct Tried {
    tier: ProbeTier,
    /// Why it does not work, and what to do about it.
    refusal: Option<(String, &'static str)>,
    /// Where it works: what it does not measure all the same.
    unmeasured: Vec<Unmeasured>,
}

/// A metric that a kind of probes does not measure here.
#[derive(Clone, Debug)]
struct Unmeasured {
    metric: Metric,
    reason: String,
    fix: &'static str,
}

/// A namespace that `record` would watch.
#[derive(Clone, Debug)]
struct Namespace {
    netns: NetnsId,
    why: String,
    processes: Vec<Process>,
}

/// Everything that was found.
#[derive(Clone, Debug)]
struct Machine {
    answers: Vec<Answer>,
    tiers: Vec<Tried>,
    namespaces: Vec<Namespace>,
}

impl Machine {
    /// The kind of probes that `record` would use.
    fn tier(&self) -> Option<ProbeTier> {
        self.tiers.iter().find(|t| t.refusal.is_none()).map(|t| t.tier)
    }

    /// True if `record` would work, with probes.
    fn ready(&self) -> bool {
        self.tier().is_some() && self.answers.iter().all(|a| a.status != Status::Bad)
    }

    fn conclusion(&self) -> String {
        let Some(tier) = self.tier() else {
            return "meshdiff record would not work with probes here: it needs --no-probes until a kind of probes works".to_owned();
        };
        if let Some(bad) = self.answers.iter().find(|a| a.status == Status::Bad) {
            return format!("the {} probes work here, but meshdiff record would not: {}", tier.as_str(), bad.text);
        }
        let watched = match self.namespaces.len() {
            0 => "no network namespace yet".to_owned(),
            1 => "1 network namespace".to_owned(),
            n => format!("{n} network namespaces"),
        };
        format!("meshdiff record would work with {} probes and watch {watched}", tier.as_str())
    }
}

fn look(als_listen: SocketAddr) -> Machine {
    let mut libraries = None;
    let tiers: Vec<Tried> = TIERS.into_iter().map(|tier| attempt(tier, &mut libraries)).collect();
    let mut answers = vec![kernel(), btf(Path::new("/sys/kernel/btf/vmlinux")), capabilities()];
    answers.push(lockdown(std::fs::read_to_string("/sys/kernel/security/lockdown").ok().as_deref()));
    answers.push(port(als_listen));
    let (namespaces, watching) = namespaces();
    answers.push(watching);
    if let Some(usable) = libraries {
        let watched: BTreeSet<NetnsId> = namespaces.iter().map(|n| n.netns).collect();
        let found = LibraryFinder::new().look(|netns| watched.contains(&netns)).new;
        answers.push(tls_libraries(found.len(), usable));
    }
    Machine { answers, tiers, namespaces }
}

/// Loads and attaches a kind of probes, watching nothing, and takes it away again. The first that works is asked whether it can follow
/// the calls of libraries.
fn attempt(tier: ProbeTier, libraries: &mut Option<Result<(), LibraryError>>) -> Tried {
    let config = ProbeConfig { tiers: vec![tier], measure_cost: false, ..ProbeConfig::default() };
    let loaded = Probes::load(&config).map(|mut probes| {
        libraries.get_or_insert_with(|| probes.check_library_probes());
        probes.unmeasured().iter().map(unmeasured).collect()
    });
    let (unmeasured, error) = match loaded {
        Ok(unmeasured) => (unmeasured, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let refusal = error.map(|error| match error {
        ProbeError::NoTier { mut refused } if refused.len() == 1 => {
            let (_, error) = refused.remove(0);
            (error.to_string(), error.remedy())
        }
        other => (other.to_string(), other.remedy()),
    });
    Tried { tier, refusal, unmeasured }
}

fn unmeasured((metric, error): &(Metric, ProbeError)) -> Unmeasured {
    Unmeasured { metric: *metric, reason: error.to_string(), fix: error.remedy() }
}

/// Whether the requests of applications that do TLS themselves would be told.
fn tls_libraries(found: usize, usable: Result<(), LibraryError>) -> Answer {
    const NAME: &str = "TLS of applications";
    let files = match found {
        0 => "no process in those namespaces uses one".to_owned(),
        1 => "1 process in those namespaces uses one".to_owned(),
        n => format!("{n} processes in those namespaces use one"),
    };
    match usable {
        Ok(()) => {
            Answer::good(NAME, format!("uprobes work: requests that a shared OpenSSL encrypts are told; {files}"))
        }
        Err(error) => Answer::note(
            NAME,
            format!("such requests are told as TLS only ({error}); {files}"),
            "nothing, where applications leave TLS to their sidecars; else use a kernel with CONFIG_UPROBE_EVENTS=y",
        ),
    }
}

fn kernel() -> Answer {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Answer::good("kernel", format!("Linux {} on {}", release.trim(), std::env::consts::ARCH))
}

fn btf(path: &Path) -> Answer {
    match std::fs::metadata(path) {
        Ok(meta) => Answer::good("type information", format!("{} ({} KiB)", path.display(), meta.len() / 1024)),
        Err(error) => Answer::note(
            "type information",
            format!("{}: {error}", path.display()),
            "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y, and mount sysfs",
        ),
    }
}

/// Name, bit, and what it is needed for (include/uapi/linux/capability.h).
const CAPABILITIES: [(&str, u32, &str); 3] = [
    ("CAP_BPF", 39, "probes"),
    ("CAP_PERFMON", 38, "probes"),
    ("CAP_SYS_PTRACE", 19, "to look at other users' processes"),
];
const CAP_SYS_ADMIN: u32 = 21;

fn capabilities() -> Answer {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    judge_capabilities(effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()))
}

fn judge_capabilities(effective: Option<u64>) -> Answer {
    const NAME: &str = "capabilities";
    let Some(effective) = effective else {
        return Answer::note(NAME, "/proc does not tell", "mount proc at /proc");
    };
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<String> = CAPABILITIES
        .into_iter()
        // CAP_SYS_ADMIN stands for the two that were split off it (Linux 5.8).
        .filter(|(_, bit, _)| !(has(*bit) || *bit > CAP_SYS_ADMIN && has(CAP_SYS_ADMIN)))
        .map(|(name, _, purpose)| format!("{name} ({purpose})"))
        .collect();
    if missing.is_empty() {
        Answer::good(NAME, "all that is needed")
    } else {
        Answer::note(NAME, format!("missing: {}", missing.join(", ")), "run as root, or grant them to the container")
    }
}

/// The level in force is in brackets (security/lockdown/lockdown.c).
fn lockdown(file: Option<&str>) -> Answer {
    const NAME: &str = "kernel lockdown";
    let Some(file) = file else {
        return Answer::good(NAME, "off, or not to be seen (no /sys/kernel/security/lockdown)");
    };
    let level = file.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match level {
        Some("none") | None => Answer::good(NAME, "none"),
        Some("confidentiality") => Answer::note(
            NAME,
            "confidentiality: probes work, but kprobes; HTTP/1 and TLS are recognised (not in vectored sends on Linux 6.4 to 6.16), \
             the streams of HTTP/2 are not told",
            "boot with lockdown=integrity if that matters",
        ),
        Some(level) => Answer::good(NAME, format!("{level}: does not concern the probes")),
    }
}

fn port(address: SocketAddr) -> Answer {
    const NAME: &str = "access log endpoint";
    match TcpListener::bind(address) {
        Ok(_) => Answer::good(NAME, format!("{address} is free")),
        Err(error) => Answer::bad(
            NAME,
            format!("{address} cannot be listened on: {error}"),
            format!("end what uses port {} (`ss -ltnp`), or choose another with --als-listen", address.port()),
        ),
    }
}

/// What `record` would watch by default, and what is to be said about it.
fn namespaces() -> (Vec<Namespace>, Answer) {
    const NAME: &str = "namespaces";
    let scanned = NetnsScanner::new(Selection::Mesh).and_then(|mut scanner| scanner.scan());
    let scan = match scanned {
        Ok(scan) => scan,
        Err(error) => return (Vec::new(), Answer::bad(NAME, error.to_string(), "mount proc at /proc and run as root")),
    };
    let mut by_netns = processes_in(&scan.watched.iter().map(|w| w.netns).collect());
    let found: Vec<Namespace> = scan
        .watched
        .iter()
        .map(|w| Namespace {
            netns: w.netns,
            why: w.why.to_string(),
            processes: by_netns.remove(&w.netns).unwrap_or_default(),
        })
        .collect();
    let answer = if found.is_empty() {
        Answer::note(
            NAME,
            format!(
                "none of {} processes is an Envoy, and none listens on 15001 or 15006 outside the host's namespace",
                scan.processes
            ),
            "start the mesh (record looks again every second), or name a namespace with --netns, --pid or --all-netns",
        )
    } else if scan.denied > 0 {
        Answer::note(
            NAME,
            format!("{} found; {} processes may not be looked at", found.len(), scan.denied),
            "run as root, or grant CAP_SYS_PTRACE",
        )
    } else {
        Answer::good(NAME, format!("{} found", found.len()))
    };
    (found, answer)
}

/// The processes of some namespaces, by number. Others are not looked at: it may be forbidden, and they do not matter.
fn processes_in(wanted: &BTreeSet<NetnsId>) -> BTreeMap<NetnsId, Vec<Process>> {
    let mut table = ProcessTable::new();
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut found: BTreeMap<NetnsId, Vec<Process>> = BTreeMap::new();
    for pid in pids {
        let inode = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok().and_then(|m| u32::try_from(m.ino()).ok());
        if inode.is_some_and(|inode| wanted.contains(&NetnsId(inode)))
            && let Some(process) = table.lookup(Tgid(pid))
        {
            found.entry(process.netns).or_default().push(process.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn machine(refusals: [bool; 3]) -> Machine {
        let refusal = |refused: bool| refused.then(|| ("the kernel refused it".to_owned(), "upgrade"));
        let drops = Unmeasured { metric: Metric::Drops, reason: "there is no kfree_skb".to_owned(), fix: "upgrade" };
        let tried = |(tier, no): (ProbeTier, bool)| Tried {
            tier,
            refusal: refusal(no),
            unmeasured: if no { Vec::new() } else { vec![drops.clone()] },
        };
        let tiers = TIERS.into_iter().zip(refusals).map(tried).collect();
        Machine { answers: vec![Answer::good("kernel", "Linux")], tiers, namespaces: Vec::new() }
    }

    #[test]
    fn one_kind_of_probes_is_enough() {
        assert!(machine([false, true, true]).ready());
        let second = machine([true, false, false]);
        assert!(second.ready() && second.tier() == Some(ProbeTier::Fentry));
        assert!(second.conclusion().contains("would work with fentry probes"), "{}", second.conclusion());
        let last = machine([true, true, false]);
        assert!(last.ready() && last.tier() == Some(ProbeTier::Kprobe));
        let none = machine([true, true, true]);
        assert!(!none.ready() && none.conclusion().contains("--no-probes"), "{}", none.conclusion());
    }

    #[test]
    fn a_port_that_is_taken_is_said_with_its_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = taken.local_addr().expect("an address");
        let answer = port(address);
        assert_eq!(answer.status, Status::Bad);
        assert!(answer.fix.as_deref().is_some_and(|f| f.contains("--als-listen")), "{answer:?}");
        let mut machine = machine([false, false, true]);
        machine.answers.push(answer);
        assert!(!machine.ready() && machine.conclusion().contains("cannot be listened on"), "{}", machine.conclusion());
        drop(taken);
        assert_eq!(port(address).status, Status::Good);
    }

    #[test]
    fn libraries_that_cannot_be_followed_stop_nothing() {
        let good = tls_libraries(1, Ok(()));
        assert!(
            good.status == Status::Good && good.text.contains("1 process in those namespaces uses one"),
            "{good:?}"
        );
        let error = LibraryError::NotLoaded { reason: "Operation not permitted".to_owned() };
        let note = tls_libraries(0, Err(error));
        assert!(note.status == Status::Note && note.text.contains("Operation not permitted"), "{note:?}");
    }

    #[test]
    fn lockdown_levels() {
        assert_eq!(lockdown(None).status, Status::Good);
        assert_eq!(lockdown(Some("[none] integrity confidentiality\n")).text, "none");
        assert_eq!(lockdown(Some("none [integrity] confidentiality\n")).status, Status::Good);
        assert_eq!(lockdown(Some("none integrity [confidentiality]\n")).status, Status::Note);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(judge_capabilities(Some(u64::MAX)).status, Status::Good);
        assert_eq!(judge_capabilities(Some(1 << 21 | 1 << 19)).status, Status::Good);
        let answer = judge_capabilities(Some(1 << 39));
        assert!(answer.text.contains("CAP_PERFMON") && answer.text.contains("CAP_SYS_PTRACE"), "{answer:?}");
        assert!(!answer.text.contains("CAP_BPF"), "{answer:?}");
        assert_eq!(btf(Path::new("/nowhere/vmlinux")).status, Status::Note);
    }
}

//! What the tests of all machines have in common.

use meshdiff_kernels::delay::Phase;
use meshdiff_kernels::initramfs::Contents;
use meshdiff_kernels::network::{LINK_MODULES, LINK_PROGRAMS, MODULES};
use meshdiff_kernels::vm::{self, Machine, Run};
use meshdiff_kernels::{guest, kernels};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub(crate) const CONVERSATION: &str = env!("CARGO_BIN_EXE_probes-conversation");
pub(crate) const EXPECTED: &str = include_str!("../../conversation.log");

pub(crate) fn asked_to_skip(variable: &str, test: &str) -> bool {
    let skip = std::env::var_os(variable).is_some_and(|v| v == "1");
    if skip {
        println!("left out: {test}, because {variable}=1");
    }
    skip
}

#[track_caller]
pub(crate) fn compare(told: &str, expected: &str, who: &str) {
    assert!(told == expected, "{who} tells the conversations differently:\n{}", differences(told, expected).join("\n"));
}

/// The conversations that differ.
fn differences(told: &str, expected: &str) -> Vec<String> {
    let parts = |text: &str| text.split("== ").skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (told, expected) = (parts(told), parts(expected));
    if told.len() != expected.len() {
        return vec![format!("{} conversations instead of {}", told.len(), expected.len())];
    }
    let differing = told.iter().zip(&expected).filter(|(t, e)| t != e);
    differing.map(|(t, e)| format!("---- told:\n{t}---- expected:\n{e}")).collect()
}

/// What is expected where of vectors only the first element can be read, or (`blind`) none.
pub(crate) fn with_less_of_vectors(blind: bool) -> String {
    let parts = EXPECTED.split_inclusive("== ");
    let less = |part: &str| {
        let headless = part.replace(" head ..55", "");
        if blind { headless.replace("GET /hello/world", "-") } else { headless }
    };
    parts.map(|part| if part.starts_with("pieces\n") { less(part) } else { part.to_owned() }).collect()
}

/// A machine and what it is to do.
pub(crate) struct Boot {
    pub(crate) kernel: &'static str,
    pub(crate) machine: Machine,
    pub(crate) program: PathBuf,
    pub(crate) lockdown: &'static str,
    /// Tiers under which the conversations are held.
    pub(crate) tiers: &'static str,
    /// Tiers under which many connections follow each other.
    pub(crate) churn: &'static str,
    /// Tiers under which programs are made to wait in their calls.
    pub(crate) waits: &'static str,
    /// Tiers under which they are held over a link with netem.
    pub(crate) link: &'static str,
}

impl Boot {
    pub(crate) fn new(kernel: &'static str) -> Self {
        let program = PathBuf::from(CONVERSATION);
        Self { kernel, machine: vm::X86_64, program, lockdown: "none", tiers: "best", churn: "", waits: "", link: "" }
    }

    /// An arm64 machine. Its program is compiled here.
    /// `None` if virtual machines are to be left out.
    pub(crate) fn arm64(kernel: &'static str) -> Option<Self> {
        static COMPILED: LazyLock<Result<PathBuf, String>> =
            LazyLock::new(|| kernels::for_arm64(Path::new(CONVERSATION)));
        if asked_to_skip("MESHDIFF_SKIP_QEMU", &format!("Linux {kernel} in a virtual machine")) {
            return None;
        }
        let program = COMPILED.as_ref().unwrap_or_else(|e| panic!("{e}")).clone();
        Some(Self { machine: vm::ARM64, program, ..Self::new(kernel) })
    }

    /// `None` if virtual machines are to be left out.
    pub(crate) fn run(self) -> Option<Report> {
        if asked_to_skip("MESHDIFF_SKIP_QEMU", &format!("Linux {} in a virtual machine", self.kernel)) {
            return None;
        }
        let image = kernels::image(self.kernel).unwrap_or_else(|e| panic!("{e}"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), self.contents().archive()).expect("written");
        let mut parameters = format!("{}{}", guest::TIERS, self.tiers);
        if !self.churn.is_empty() {
            parameters = format!("{parameters} {}{}", guest::CHURN, self.churn);
        }
        if !self.waits.is_empty() {
            parameters = format!("{parameters} {}{}", guest::WAITS, self.waits);
        }
        if !self.link.is_empty() {
            parameters = format!("{parameters} {}{}", guest::LINK, self.link);
        }
        if self.lockdown != "none" {
            parameters = format!("{parameters} lockdown={}", self.lockdown);
        }
        let report = vm::boot(self.machine, &image, file.path(), &parameters).unwrap_or_else(|e| panic!("{e}"));
        println!("Linux {}: {} runs in {:.1} s", report.kernel, report.runs.len(), report.took.as_secs_f32());
        let series = self.kernel.split('-').next().expect("a name");
        assert!(report.kernel.starts_with(&format!("{series}.")), "{report:?}");
        assert!(report.lockdown.contains(&format!("[{}]", self.lockdown)), "{}", report.lockdown);
        Some(Report(report))
    }

    fn contents(&self) -> Contents {
        let mut contents = Contents::with_init(&self.program).unwrap_or_else(|e| panic!("{e}"));
        if self.link.is_empty() {
            return contents;
        }
        for module in LINK_MODULES {
            let file = kernels::module(self.kernel, module);
            contents.file(&format!("{MODULES}/{module}.ko"), &file).unwrap_or_else(|e| panic!("{e}"));
        }
        for at in LINK_PROGRAMS {
            let name = Path::new(at).file_name().and_then(|n| n.to_str()).expect("a name");
            let program = kernels::program(name).unwrap_or_else(|| panic!("there is no {name} here: run setup.sh"));
            contents.program(at, &program).unwrap_or_else(|e| panic!("{e}"));
        }
        contents
    }
}

/// What a machine told.
pub(crate) struct Report(vm::Report);

impl Report {
    #[track_caller]
    fn run_of(&self, wanted: &str, kind: impl Fn(&Run) -> bool) -> &Run {
        let found = self.0.runs.iter().find(|r| r.wanted == wanted && kind(r));
        found.unwrap_or_else(|| panic!("{wanted} was not run: {:?}", self.0))
    }

    /// The probes chose this tier after these refusals, and told it as it was.
    #[track_caller]
    pub(crate) fn best(&self, tier: &str, refused: &[&str], expected: &str) {
        let run = self.run_of("best", |_| true);
        assert_eq!(run.tier, tier, "{run:?}");
        let as_expected = |(said, begins): (&String, &&str)| said.starts_with(*begins);
        assert!(run.refused.len() == refused.len() && run.refused.iter().zip(refused).all(as_expected), "{run:?}");
        if tier == "fentry" {
            // Everything is measured, but before Linux 6.11 no drops of received packets.
            let mut version = self.0.kernel.split('.').map_while(|n| n.parse::<u32>().ok());
            let old = (version.next(), version.next()) < (Some(6), Some(11));
            let partly = |u: &String| u.starts_with("drops: ") && u.contains("drops of received packets");
            assert!(run.unmeasured.len() == usize::from(old) && run.unmeasured.iter().all(partly), "{run:?}");
        }
        compare(&run.log, expected, &format!("Linux {} ({tier})", self.0.kernel));
    }

    /// Kprobes told it as it was, too.
    #[track_caller]
    pub(crate) fn kprobe(&self, expected: &str) {
        let run = self.run_of("kprobe", |r| r.phases.is_empty() && r.churn.is_none() && r.waits.is_empty());
        assert_eq!((run.tier.as_str(), &run.refused[..]), ("kprobe", &[][..]), "{run:?}");
        compare(&run.log, expected, &format!("Linux {} (kprobe)", self.0.kernel));
    }

    /// Kprobes are refused, and it is said why.
    #[track_caller]
    pub(crate) fn forbids_kprobes(&self) {
        let run = self.run_of("kprobe", |_| true);
        assert_eq!(run.tier, "", "{run:?}");
        assert!(run.refused.iter().any(|r| r.contains("lockdown is at confidentiality")), "{run:?}");
    }

    /// A tier kept the sockets of many connections apart, and remembers none of them.
    #[track_caller]
    pub(crate) fn churn(&self, tier: &str) {
        let run = self.run_of(tier, |r| r.churn.is_some());
        let churn = run.churn.expect("it is there");
        assert!(churn.opened > 10 * churn.ports, "the ports were to be used again: {churn:?}");
        assert_eq!((churn.told, churn.whole), (churn.opened, churn.opened), "{churn:?}");
        assert_eq!(churn.remembered, Some(0), "{churn:?}");
    }

    /// A tier timed the calls that were made to wait, and of reads how much of that was waiting; `writes` says whether it times writes.
    #[track_caller]
    pub(crate) fn waits(&self, tier: &str, writes: bool) {
        let run = self.run_of(tier, |r| !r.waits.is_empty());
        for (name, timed) in &run.waits {
            println!("{tier}: {name} {timed:?}");
            if name == "write" && !writes {
                assert_eq!(timed.told, 0, "{tier}: {name} {timed:?}");
                continue;
            }
            assert_eq!(timed.told, timed.calls, "{tier}: {name} {timed:?}");
            assert!((timed.least..=timed.most).contains(&timed.ns), "{tier}: {name} {timed:?}");
        }
        assert_eq!(run.waits.len(), 6, "{run:?}");
    }

    /// A tier saw how slow the network was made, and no more.
    #[track_caller]
    pub(crate) fn link(&self, tier: &str) {
        let run = self.run_of(tier, |r| !r.phases.is_empty());
        let phase = |name: &str| {
            run.phases.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("{tier} lacks {name}: {run:?}"))
        };
        for (name, delay) in [("delay0", 0), ("delay20", 20_000_000), ("loss", 2_000_000)] {
            check_delays(tier, phase(name), delay);
        }
        for name in ["delay0", "delay20"] {
            assert_eq!((phase(name).resent, phase(name).resent_seen), (0, 0), "{tier} {name}: nothing was lost");
        }
        let undelayed = median(phase("delay0"), |e| e.request);
        let delayed = median(phase("delay20"), |e| e.request);
        println!("{tier}: median {undelayed} ns without delay, {delayed} ns with 20 ms, {:?}", phase("loss").resent);
        // It moves by the delay: less than half of it, or more than twice, would be something else.
        let moved = delayed - undelayed;
        assert!((15_000_000..40_000_000).contains(&moved), "{tier}: 20 ms of delay move it by {moved} ns");
        // Something was lost (in 40 exchanges nothing is with a probability of 1 in 100,000), and what was lost was sent
        // again, after 30 ms at the earliest.
        let loss = phase("loss");
        assert!(loss.resent > 0, "{tier}: nothing was lost");
        assert_eq!(loss.resent_seen, loss.resent, "{tier}: retransmits as the probes and as the kernel count them");
        let late = loss.exchanges.iter().filter(|e| e.request >= 30_000_000).count();
        assert!(late > 0 && late <= loss.resent as usize, "{tier}: {late} late of {} resent: {loss:?}", loss.resent);
    }
}

/// No packet is early, which no noise can change; and the probes' intervals lie within the client's.
#[track_caller]
fn check_delays(tier: &str, phase: &Phase, delay: i64) {
    for exchange in &phase.exchanges {
        assert!(exchange.request >= delay, "{tier} {}: {exchange:?} is earlier than the network", phase.name);
        assert!(exchange.response >= 0, "{tier} {}: {exchange:?}", phase.name);
        let within = exchange.request + exchange.response;
        assert!(within <= exchange.round, "{tier} {}: {exchange:?} is longer than the client waited", phase.name);
    }
}

fn median(phase: &Phase, of: impl Fn(&meshdiff_kernels::delay::Exchange) -> i64) -> i64 {
    let mut values: Vec<i64> = phase.exchanges.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

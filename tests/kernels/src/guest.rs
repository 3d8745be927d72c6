//! Process 1 of a virtual machine: holds the conversations, says what was seen on the console, and ends the machine.

use crate::churn;
use crate::delay::{self, Phase};
use crate::record::{Told, tell};
use crate::waits;
use meshdiff_model::ProbeTier;
use nix::mount::{MsFlags, mount};

/// Before every line of the report, which shares the console with the kernel.
pub const MARK: &str = "meshdiff| ";
/// The last line of the report.
pub const DONE: &str = "done";
/// On the kernel's command line: the tiers under which the conversations are held, one after the other, with commas between them;
/// `best` is what the probes choose. Without it: the best alone.
pub const TIERS: &str = "meshdiff.tiers=";
/// The tiers under which they are held over a link with netem. Without it: none.
pub const LINK: &str = "meshdiff.link=";
/// The tiers under which many connections follow each other. Without it: none.
pub const CHURN: &str = "meshdiff.churn=";
/// The tiers under which programs are made to wait in their calls. Without it: none.
pub const WAITS: &str = "meshdiff.waits=";
const BEST: &str = "best";

/// Runs the guest's part. Never returns: the machine ends with it.
pub fn run() -> ! {
    // A panic has been printed by then, without the mark; the host misses the last line and shows the console.
    if std::panic::catch_unwind(report).is_ok() {
        say(DONE);
    }
    // SAFETY: nothing is written anywhere in this machine. As qemu runs with -no-reboot, this ends it.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    // Process 1 must not return.
    loop {
        std::thread::park();
    }
}

fn report() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("securityfs", "/sys/kernel/security")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|e| panic!("cannot mount {at}: {e}"));
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    say(&format!("kernel {}", read("/proc/sys/kernel/osrelease").trim()));
    say(&format!("lockdown {}", read("/sys/kernel/security/lockdown").trim()));
    let command_line = read("/proc/cmdline");
    let listed = |option: &str, default: &str| -> Vec<String> {
        let value = command_line.split_whitespace().find_map(|word| word.strip_prefix(option));
        value.unwrap_or(default).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    for name in listed(TIERS, BEST) {
        say(&format!("run {name}"));
        let wanted = (name != BEST).then(|| tier(&name).unwrap_or_else(|| panic!("there is no tier {name}")));
        match tell(wanted) {
            Ok(told) => say_told(&told),
            Err(error) => say(&format!("error {}", error.to_string().replace('\n', " / "))),
        }
    }
    for name in listed(CHURN, "") {
        say(&format!("run {name}"));
        match churn::measure(tier(&name).unwrap_or_else(|| panic!("there is no tier {name}"))) {
            Ok(churn) => {
                let remembered = churn.remembered.map_or("-".to_owned(), |n| n.to_string());
                say(&format!("churn {} {} {} {} {remembered}", churn.opened, churn.told, churn.whole, churn.ports));
            }
            Err(error) => say(&format!("error {}", error.to_string().replace('\n', " / "))),
        }
    }
    for name in listed(WAITS, "") {
        say(&format!("run {name}"));
        match waits::measure(tier(&name).unwrap_or_else(|| panic!("there is no tier {name}"))) {
            Ok(waits) => {
                for (what, t) in waits {
                    say(&format!("timed {what} {} {} {} {} {}", t.calls, t.told, t.ns, t.least, t.most));
                }
            }
            Err(error) => say(&format!("error {}", error.to_string().replace('\n', " / "))),
        }
    }
    for name in listed(LINK, "") {
        say(&format!("run {name}"));
        match delay::measure(tier(&name).unwrap_or_else(|| panic!("there is no tier {name}"))) {
            Ok(phases) => phases.iter().for_each(say_phase),
            Err(error) => say(&format!("error {}", error.to_string().replace('\n', " / "))),
        }
    }
}

fn say_told(told: &Told) {
    say(&format!("tier {}", told.tier.as_str()));
    for refusal in &told.refused {
        say(&format!("refused {}", refusal.replace('\n', " / ")));
    }
    for missing in &told.unmeasured {
        say(&format!("unmeasured {}", missing.replace('\n', " / ")));
    }
    for line in told.log.lines() {
        say(&format!("log {line}"));
    }
}

fn say_phase(phase: &Phase) {
    say(&format!("phase {} {} {}", phase.name, phase.resent, phase.resent_seen));
    for exchange in &phase.exchanges {
        say(&format!("exchange {} {} {}", exchange.request, exchange.response, exchange.round));
    }
}

fn say(line: &str) {
    println!("{MARK}{line}");
}

/// A tier by its name.
#[must_use]
pub fn tier(name: &str) -> Option<ProbeTier> {
    meshdiff_probes::TIERS.into_iter().find(|tier| tier.as_str() == name)
}

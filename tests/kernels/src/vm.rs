//! One run of a virtual machine.

use crate::churn::Churn;
use crate::delay::{Exchange, Phase};
use crate::guest::{DONE, MARK};
use crate::waits::Timed;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long a machine may take. It takes 4 to 8 s where nothing else runs.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// What a machine reported.
#[derive(Debug, Default)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// What is in /sys/kernel/security/lockdown; the level in force is in brackets.
    pub lockdown: String,
    /// What was run, in order.
    pub runs: Vec<Run>,
    /// How long it took from qemu's start to the last line.
    pub took: Duration,
}

/// What was reported of one tier.
#[derive(Debug, Default)]
pub struct Run {
    /// What was asked for.
    pub wanted: String,
    /// The tier of the probes; empty if none worked.
    pub tier: String,
    /// Refusals of better tiers, and the error if no tier worked.
    pub refused: Vec<String>,
    /// What is not measured, and why.
    pub unmeasured: Vec<String>,
    /// The conversations.
    pub log: String,
    /// What was seen of many connections.
    pub churn: Option<Churn>,
    /// How long calls took that were made to wait.
    pub waits: Vec<(String, Timed)>,
    /// What was measured over a link with netem.
    pub phases: Vec<Phase>,
}

/// A kind of machine that qemu plays.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    qemu: &'static str,
    /// Debian's package of it.
    package: &'static str,
    /// Which board, and with which processor.
    board: &'static [&'static str],
    console: &'static str,
}

/// A PC.
pub const X86_64: Machine =
    Machine { qemu: "qemu-system-x86_64", package: "qemu-system-x86", board: &["-cpu", "max"], console: "ttyS0" };
/// An ARM machine of qemu's own design. Of pointer authentication, which is costly to emulate, the cheap kind.
pub const ARM64: Machine = Machine {
    qemu: "qemu-system-aarch64",
    package: "qemu-system-arm",
    board: &["-M", "virt", "-cpu", "max,pauth-impdef=on"],
    console: "ttyAMA0",
};

/// Boots a kernel with software emulation and returns what its process 1 reported.
///
/// # Errors
/// If qemu does not run, or the machine does not report within [`DEADLINE`]: with the end of its console.
pub fn boot(machine: Machine, kernel: &Path, initramfs: &Path, parameters: &str) -> Result<Report, String> {
    let started = Instant::now();
    let Machine { qemu, package, board, console: port } = machine;
    let child = Command::new(qemu)
        .args(board)
        .args(["-accel", "tcg,thread=multi", "-m", "1024", "-smp", "2", "-no-reboot"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &format!("console={port} quiet panic=-1 {parameters}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => Running(child),
        Err(error) => {
            return Err(format!(
                "{qemu} does not run ({error}): install it (on Debian: apt-get install {package}, or tests/kernels/setup.sh \
                 as root), or set MESHDIFF_SKIP_QEMU=1 to leave the kernel matrix out"
            ));
        }
    };
    let lines = lines_of(&mut child.0);
    let mut console = Vec::new();
    let mut report = Report::default();
    loop {
        let left = DEADLINE.saturating_sub(started.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if let Some(said) = line.strip_prefix(MARK) {
                    if said == DONE {
                        report.took = started.elapsed();
                        return Ok(report);
                    }
                    report.take(said);
                }
                console.push(line);
            }
            Err(ended) => {
                let why = match ended {
                    RecvTimeoutError::Timeout => format!("did not report within {DEADLINE:?}"),
                    RecvTimeoutError::Disconnected => "ended without a report".to_owned(),
                };
                let tail = &console[console.len().saturating_sub(60)..];
                return Err(format!("the machine with {} {why}; its console:\n{}", kernel.display(), tail.join("\n")));
            }
        }
    }
}

impl Report {
    fn take(&mut self, said: &str) {
        let (what, rest) = said.split_once(' ').unwrap_or((said, ""));
        match what {
            "kernel" => self.kernel = rest.to_owned(),
            "lockdown" => self.lockdown = rest.to_owned(),
            "run" => self.runs.push(Run { wanted: rest.to_owned(), ..Run::default() }),
            _ => {
                if let Some(run) = self.runs.last_mut() {
                    run.take(what, rest);
                }
            }
        }
    }
}

impl Run {
    fn take(&mut self, what: &str, rest: &str) {
        let words: Vec<&str> = rest.split(' ').collect();
        match (what, &words[..]) {
            ("tier", _) => self.tier = rest.to_owned(),
            ("refused" | "error", _) => self.refused.push(rest.to_owned()),
            ("unmeasured", _) => self.unmeasured.push(rest.to_owned()),
            ("log", _) => {
                self.log.push_str(rest);
                self.log.push('\n');
            }
            ("churn", [opened, told, whole, ports, remembered]) => {
                let remembered = (*remembered != "-").then(|| number(remembered));
                let (opened, told, whole) = (number(opened), number(told), number(whole));
                self.churn = Some(Churn { opened, told, whole, ports: number(ports), remembered });
            }
            ("timed", [name, calls, told, ns, least, most]) => {
                let (calls, told, ns) = (number(calls), number(told), number(ns));
                let timed = Timed { calls, told, ns, least: number(least), most: number(most) };
                self.waits.push(((*name).to_owned(), timed));
            }
            ("phase", [name, resent, seen]) => self.phases.push(Phase {
                name: (*name).to_owned(),
                exchanges: Vec::new(),
                resent: number(resent),
                resent_seen: number(seen),
            }),
            ("exchange", [request, response, round]) => {
                let exchange = Exchange { request: number(request), response: number(response), round: number(round) };
                self.phases.last_mut().expect("a phase begins before its exchanges").exchanges.push(exchange);
            }
            _ => panic!("the machine says what nobody understands: {what} {rest}"),
        }
    }
}

fn number<N: std::str::FromStr>(word: &str) -> N {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

/// A qemu that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is just as well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The console's and qemu's own lines, as they come. The channel ends when qemu does.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
        child.stderr.take().map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // The firmware writes bytes that are no text.
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_put_together_from_its_lines() {
        let mut report = Report::default();
        for line in [
            "kernel 6.1.0",
            "lockdown none [integrity]",
            "run best",
            "tier fentry",
            "refused tp_btf: no",
            "log == a",
            "log b c",
            "run kprobe",
            "churn 6 5 4 3 0",
            "timed read 8 7 6 5 4",
            "phase loss 3 2",
            "exchange 1 -2 3",
        ] {
            report.take(line);
        }
        assert_eq!(report.kernel, "6.1.0");
        let [best, kprobe] = &report.runs[..] else { panic!("{report:?}") };
        assert_eq!((best.wanted.as_str(), best.tier.as_str()), ("best", "fentry"));
        assert_eq!((best.log.as_str(), best.refused.len()), ("== a\nb c\n", 1));
        assert_eq!(kprobe.churn, Some(Churn { opened: 6, told: 5, whole: 4, ports: 3, remembered: Some(0) }));
        let read = Timed { calls: 8, told: 7, ns: 6, least: 5, most: 4 };
        assert_eq!(kprobe.waits, [("read".to_owned(), read)]);
        let phase = &kprobe.phases[0];
        assert_eq!((phase.name.as_str(), phase.resent, phase.resent_seen), ("loss", 3, 2));
        assert_eq!(phase.exchanges, [Exchange { request: 1, response: -2, round: 3 }]);
    }
}

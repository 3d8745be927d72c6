//! One run of a virtual machine.

use crate::guest::{DONE, MARK};
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
    /// The tier of the probes; empty if none worked.
    pub tier: String,
    /// Refusals of better tiers, and the error if no tier worked.
    pub refused: Vec<String>,
    /// The conversations.
    pub log: String,
    /// How long it took from qemu's start to the last line.
    pub took: Duration,
}

/// The emulator's program.
const QEMU: &str = "qemu-system-x86_64";

/// Boots a kernel with software emulation and returns what its process 1 reported.
///
/// # Errors
/// If qemu does not run, or the machine does not report within [`DEADLINE`]: with the end of its console.
pub fn boot(kernel: &Path, initramfs: &Path, parameters: &str) -> Result<Report, String> {
    let started = Instant::now();
    let child = Command::new(QEMU)
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1024", "-smp", "2", "-no-reboot"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 {parameters}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut qemu = match child {
        Ok(child) => Running(child),
        Err(error) => {
            return Err(format!(
                "{QEMU} does not run ({error}): install it (on Debian: apt-get install qemu-system-x86, or tests/kernels/setup.sh \
                 as root), or set MESHDIFF_SKIP_QEMU=1 to leave the kernel matrix out"
            ));
        }
    };
    let lines = lines_of(&mut qemu.0);
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
            "tier" => self.tier = rest.to_owned(),
            "refused" | "error" => self.refused.push(rest.to_owned()),
            "log" => {
                self.log.push_str(rest);
                self.log.push('\n');
            }
            _ => {}
        }
    }
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
        for line in
            ["kernel 6.1.0", "lockdown none [integrity]", "tier fentry", "refused tp_btf: no", "log == a", "log b c"]
        {
            report.take(line);
        }
        assert_eq!((report.kernel.as_str(), report.tier.as_str()), ("6.1.0", "fentry"));
        assert_eq!((report.log.as_str(), report.refused.len()), ("== a\nb c\n", 1));
    }
}

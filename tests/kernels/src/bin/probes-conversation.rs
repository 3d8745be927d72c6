//! Holds the scripted conversations under the probes and prints what they saw. As process 1 it is a virtual machine's.
//!
//! `probes-conversation [tp_btf|fentry|kprobe]` on a machine, as root; `meshdiff.tiers=best,kprobe` on the command line of a kernel.

use meshdiff_kernels::{guest, record};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::run();
    }
    let tier = match std::env::args().nth(1) {
        None => None,
        Some(name) => match guest::tier(&name) {
            Some(tier) => Some(tier),
            None => {
                eprintln!("usage: probes-conversation [tp_btf|fentry|kprobe]");
                return ExitCode::from(2);
            }
        },
    };
    match record::tell(tier) {
        Ok(told) => {
            eprintln!("tier {}", told.tier.as_str());
            for refusal in &told.refused {
                eprintln!("refused {refusal}");
            }
            print!("{}", told.log);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

//! What recording costs the recorded: the throughput of the lab at saturation without anything, with the probes attached and their
//! output thrown away, and with `meshdiff record` on the same processors.
//!
//! Interleaved rounds, each with every condition once in an order that rotates, and with an A/A control: absolute rates of these
//! machines mean nothing, and a difference that the control shows too is noise.

use meshdiff_e2e::{Lab, LabOptions, Recorder, build_folder, median};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const LOAD: [&str; 4] = ["--connections", "64", "--duration", "4s"];

#[derive(Clone, Copy, PartialEq, Debug)]
enum Condition {
    Nothing,
    NothingAgain,
    Probes,
    Record,
}

const ALL: [Condition; 4] = [Condition::Nothing, Condition::NothingAgain, Condition::Probes, Condition::Record];

/// The probes with their output thrown away.
struct Discard(Child);

impl Discard {
    fn start(namespaces: &[String]) -> Self {
        let program = build_folder().join("examples/discard");
        assert!(
            program.exists(),
            "{} is not there: run `cargo build -p meshdiff-probes --example discard`",
            program.display()
        );
        let mut child = Command::new(program)
            .args(namespaces)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("stdout is piped")).read_line(&mut line).expect("it speaks");
        assert_eq!(line.trim(), "attached");
        Self(child)
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(9, |n| n.parse().expect("a number of rounds"));
    assert!(meshdiff_e2e::privileged(), "nothing can be measured without root");
    let lab = Lab::up("cost", &LabOptions::default());
    let namespaces = lab.namespaces();
    // Connections, caches and the allocators of seven Envoys warm up.
    drop(lab.load(&LOAD));
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        for i in 0..ALL.len() {
            let condition = ALL[(i + round) % ALL.len()];
            let rate = measure(&lab, &namespaces, condition);
            rates[condition as usize].push(rate);
            eprintln!("round {}/{rounds}: {condition:?} {rate:.0} requests/s", round + 1);
        }
    }
    println!("| condition | throughput against nothing, median of {rounds} rounds | smallest | largest |");
    println!("|---|--:|--:|--:|");
    for condition in &ALL[1..] {
        let name = match condition {
            Condition::NothingAgain => "nothing again (A/A control)",
            Condition::Probes => "probes attached, output discarded",
            _ => "`meshdiff record`",
        };
        let pairs = rates[*condition as usize].iter().zip(&rates[Condition::Nothing as usize]);
        let ratios: Vec<f64> = pairs.map(|(with, without)| (with / without - 1.0) * 100.0).collect();
        let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(l, h), &r| (l.min(r), h.max(r)));
        println!("| {name} | {:+.1}% | {low:+.1}% | {high:+.1}% |", median(ratios));
    }
}

fn measure(lab: &Lab, namespaces: &[String], condition: Condition) -> f64 {
    match condition {
        Condition::Nothing | Condition::NothingAgain => lab.load(&LOAD).rate(),
        Condition::Probes => {
            let probes = Discard::start(namespaces);
            let rate = lab.load(&LOAD).rate();
            drop(probes);
            rate
        }
        Condition::Record => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &[]);
            let rate = lab.load(&LOAD).rate();
            drop(recorder.stop());
            rate
        }
    }
}

//! Which programs of an object make up a tier, and how they are loaded and attached.

use crate::error::{ProbeError, kernel_release, log_tail, with_causes};
use aya::programs::kprobe::KProbeLink;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf, BtfError, Ebpf};
use meshdiff_model::ProbeTier;
use std::io;

/// The tiers that there are programs for, best first.
pub const TIERS: [ProbeTier; 3] = [ProbeTier::TpBtf, ProbeTier::Fentry, ProbeTier::Kprobe];

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Tracepoint,
    Entry,
    Exit,
    Kprobe,
    RawTracepoint,
}

/// A program that runs until this is dropped.
pub(crate) enum Attached {
    Link(#[expect(dead_code, reason = "kept for its Drop")] FdLink),
    Kprobe(#[expect(dead_code, reason = "kept for its Drop")] KProbeLink),
}

/// One program of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    program: &'static str,
    hook: Hook,
    /// The tracepoint or the function.
    target: &'static str,
}

/// Something that a tier must see, and the programs that can: the first that the kernel takes is used.
#[derive(Clone, Copy, Debug)]
struct Need {
    choices: &'static [Probe],
    /// Not needed where the function does not exist.
    if_present: bool,
}

const fn need(choices: &'static [Probe]) -> Need {
    Need { choices, if_present: false }
}

pub(crate) const fn probe(program: &'static str, hook: Hook, target: &'static str) -> Probe {
    Probe { program, hook, target }
}

const STATE: Need = need(&[probe("on_state", Hook::Tracepoint, "inet_sock_set_state")]);

/// The youngest of these came with Linux 6.16: it is loaded first.
const TP_BTF: [Need; 4] = [
    need(&[probe("on_send", Hook::Tracepoint, "tcp_sendmsg_locked")]),
    need(&[probe("on_ready", Hook::Tracepoint, "sk_data_ready")]),
    need(&[probe("on_recv", Hook::Tracepoint, "sock_recv_length")]),
    STATE,
];

const FENTRY: [Need; 5] = [
    need(&[probe("enter_send", Hook::Entry, "tcp_sendmsg_locked")]),
    Need { choices: &[probe("enter_page", Hook::Entry, "do_tcp_sendpages")], if_present: true },
    need(&[probe("enter_ready", Hook::Entry, "sock_def_readable")]),
    // Before Linux 5.19 the function has six arguments; the program for those is refused where it has five.
    need(&[probe("exit_recv_6", Hook::Exit, "tcp_recvmsg"), probe("exit_recv", Hook::Exit, "tcp_recvmsg")]),
    STATE,
];

const KPROBE: [Need; 7] = [
    need(&[probe("kprobe_send", Hook::Kprobe, "tcp_sendmsg_locked")]),
    Need { choices: &[probe("kprobe_page", Hook::Kprobe, "do_tcp_sendpages")], if_present: true },
    need(&[probe("kprobe_ready", Hook::Kprobe, "sock_def_readable")]),
    need(&[probe("kprobe_recv_begins", Hook::Kprobe, "tcp_recvmsg")]),
    need(&[probe("kprobe_recv", Hook::Kprobe, "tcp_cleanup_rbuf")]),
    need(&[probe("kprobe_destroy", Hook::Kprobe, "tcp_v4_destroy_sock")]),
    need(&[probe("on_state", Hook::RawTracepoint, "inet_sock_set_state")]),
];

fn needs(tier: ProbeTier) -> Result<&'static [Need], ProbeError> {
    match tier {
        ProbeTier::TpBtf => Ok(&TP_BTF),
        ProbeTier::Fentry => Ok(&FENTRY),
        ProbeTier::Kprobe => Ok(&KPROBE),
        ProbeTier::None => Err(ProbeError::NoSuchTier { tier }),
    }
}

/// Loads a tier's programs and attaches them. All are loaded before any is attached, so that a refusal leaves nothing half on.
pub(crate) fn attach(programs: &mut Ebpf, btf: &Btf, tier: ProbeTier) -> Result<Vec<Attached>, ProbeError> {
    let mut loaded = Vec::new();
    for need in needs(tier)? {
        match load_first(programs, btf, need.choices) {
            Ok(probe) => loaded.push((probe, need.if_present)),
            Err(ProbeError::FunctionMissing { .. }) if need.if_present => {}
            Err(error) => return Err(error),
        }
    }
    let mut attached = Vec::new();
    for (probe, if_present) in loaded {
        match probe.attach(programs) {
            Ok(link) => attached.push(link),
            // A kprobe is not told of its function before it is placed.
            Err(ProbeError::FunctionMissing { .. }) if if_present => {}
            Err(error) => return Err(error),
        }
    }
    Ok(attached)
}

/// Loads and attaches the first of the choices that the kernel takes; the error is the last one's.
pub(crate) fn attach_first(programs: &mut Ebpf, btf: &Btf, choices: &[Probe]) -> Result<(Probe, Attached), ProbeError> {
    let mut refusal = None;
    for choice in choices {
        match choice.load(programs, btf).and_then(|()| choice.attach(programs)) {
            Ok(link) => return Ok((*choice, link)),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or_else(|| damaged("it lists nothing to load")))
}

/// Loads the first of the choices that the kernel takes; the error is the last one's.
fn load_first(programs: &mut Ebpf, btf: &Btf, choices: &[Probe]) -> Result<Probe, ProbeError> {
    let mut refusal = None;
    for choice in choices {
        match choice.load(programs, btf) {
            Ok(()) => return Ok(*choice),
            Err(error) => {
                tracing::debug!(program = choice.program, %error, "not loaded");
                refusal = Some(error);
            }
        }
    }
    Err(refusal.unwrap_or_else(|| damaged("it lists nothing to load")))
}

impl Probe {
    /// True for the program of this name.
    pub(crate) fn is(&self, program: &str) -> bool {
        self.program == program
    }

    fn load(&self, programs: &mut Ebpf, btf: &Btf) -> Result<(), ProbeError> {
        let program = find(programs, self.program)?;
        let loaded = match self.hook {
            Hook::Tracepoint => <&mut BtfTracePoint>::try_from(program).and_then(|p| p.load(self.target, btf)),
            Hook::Entry => <&mut FEntry>::try_from(program).and_then(|p| p.load(self.target, btf)),
            Hook::Exit => <&mut FExit>::try_from(program).and_then(|p| p.load(self.target, btf)),
            Hook::Kprobe => <&mut KProbe>::try_from(program).and_then(KProbe::load),
            Hook::RawTracepoint => <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::load),
        };
        loaded.map_err(|error| refused(self, error))
    }

    fn attach(&self, programs: &mut Ebpf) -> Result<Attached, ProbeError> {
        let program = find(programs, self.program)?;
        let link: Result<Attached, ProgramError> = match self.hook {
            Hook::Tracepoint => <&mut BtfTracePoint>::try_from(program).and_then(|p| {
                let id = p.attach()?;
                Ok(Attached::Link(p.take_link(id)?.into()))
            }),
            Hook::Entry => <&mut FEntry>::try_from(program).and_then(|p| {
                let id = p.attach()?;
                Ok(Attached::Link(p.take_link(id)?.into()))
            }),
            Hook::Exit => <&mut FExit>::try_from(program).and_then(|p| {
                let id = p.attach()?;
                Ok(Attached::Link(p.take_link(id)?.into()))
            }),
            Hook::Kprobe => <&mut KProbe>::try_from(program).and_then(|p| {
                let id = p.attach(self.target, 0)?;
                Ok(Attached::Kprobe(p.take_link(id)?))
            }),
            Hook::RawTracepoint => <&mut RawTracePoint>::try_from(program).and_then(|p| {
                let id = p.attach(self.target)?;
                Ok(Attached::Link(p.take_link(id)?.into()))
            }),
        };
        link.map_err(|source| self.not_attached(source))
    }

    fn not_attached(&self, source: ProgramError) -> ProbeError {
        match (self.hook, source) {
            // perf_event_open says ENOENT where kallsyms does not have the function.
            (Hook::Kprobe, ProgramError::SyscallError(call)) if call.io_error.kind() == io::ErrorKind::NotFound => {
                ProbeError::FunctionMissing { function: self.target, kernel: kernel_release() }
            }
            (Hook::Kprobe, source) => ProbeError::KprobeRefused { function: self.target, reason: with_causes(&source) },
            (_, source) => ProbeError::AttachRefused { program: self.program, target: self.target, source },
        }
    }
}

fn find<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, ProbeError> {
    programs.program_mut(name).ok_or_else(|| damaged(&format!("it has no program {name}")))
}

fn damaged(what: &str) -> ProbeError {
    ProbeError::DoesNotFit { kernel: kernel_release(), reason: format!("the object is damaged: {what}") }
}

fn refused(probe: &Probe, error: ProgramError) -> ProbeError {
    let kernel = kernel_release();
    match (error, probe.hook) {
        (ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }), Hook::Tracepoint) => {
            ProbeError::TracepointMissing { tracepoint: probe.target, kernel }
        }
        (ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }), _) => {
            ProbeError::FunctionMissing { function: probe.target, kernel }
        }
        (ProgramError::LoadError { io_error, verifier_log }, _) => ProbeError::ProgramRefused {
            program: probe.program,
            errno: io_error,
            log: log_tail(&verifier_log.to_string()),
        },
        (other, _) => ProbeError::does_not_fit(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_missing_is_told_from_other_refusals() {
        let unknown = |name: &str| ProgramError::Btf(BtfError::UnknownBtfTypeName { type_name: name.to_owned() });
        let tracepoint = refused(&TP_BTF[0].choices[0], unknown("btf_trace_tcp_sendmsg_locked"));
        assert!(matches!(&tracepoint, ProbeError::TracepointMissing { .. }), "{tracepoint}");
        assert!(tracepoint.remedy().contains("6.16"), "{}", tracepoint.remedy());
        let function = refused(&FENTRY[1].choices[0], unknown("do_tcp_sendpages"));
        assert!(matches!(&function, ProbeError::FunctionMissing { .. }), "{function}");
    }

    #[test]
    fn every_tier_sees_the_same_four_instants() {
        for tier in TIERS {
            let needs = needs(tier).expect("there are programs for it");
            // Kprobes need to be told when a read begins and when a socket is destroyed, too.
            let instants = if tier == ProbeTier::Kprobe { 6 } else { 4 };
            assert_eq!(needs.iter().filter(|n| !n.if_present).count(), instants, "{tier:?}");
            let names: BTreeSet<_> = needs.iter().flat_map(|n| n.choices).map(|p| p.program).collect();
            assert_eq!(names.len(), needs.iter().map(|n| n.choices.len()).sum::<usize>(), "{tier:?}: {names:?}");
        }
        assert!(needs(ProbeTier::None).is_err());
    }
}

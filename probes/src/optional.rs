//! Programs that measure more than the instants. Without one of them its metric is not measured, which is said; the rest works.

use crate::error::{ProbeError, kernel_release};
use crate::tier::{Attached, Hook, Probe, attach_first, probe};
use aya::{Btf, Ebpf};
use meshdiff_model::{Metric, ProbeTier};

/// What it takes to measure something: one program of each group, the first that the kernel takes.
struct Wanted {
    metric: Metric,
    groups: &'static [&'static [Probe]],
}

const READ_TIME: Wanted =
    Wanted { metric: Metric::ReadTime, groups: &[&[probe("enter_recv", Hook::Entry, "tcp_recvmsg")]] };
const RETRANSMITS: Wanted = Wanted {
    metric: Metric::Retransmits,
    groups: &[&[
        probe("on_retransmit", Hook::Tracepoint, "tcp_retransmit_skb"),
        probe("on_retransmit_2", Hook::Tracepoint, "tcp_retransmit_skb"),
    ]],
};
const RESETS: Wanted = Wanted {
    metric: Metric::Resets,
    groups: &[
        &[probe("on_reset_sent", Hook::Tracepoint, "tcp_send_reset")],
        &[probe("on_reset_received", Hook::Tracepoint, "tcp_receive_reset")],
    ],
};
const DROPS: Wanted = Wanted {
    metric: Metric::Drops,
    groups: &[&[probe("on_drop", Hook::Tracepoint, "kfree_skb"), probe("on_drop_3", Hook::Tracepoint, "kfree_skb")]],
};

const TP_BTF: [Wanted; 5] = [
    Wanted { metric: Metric::WriteTime, groups: &[&[probe("on_sent", Hook::Tracepoint, "sock_send_length")]] },
    READ_TIME,
    RETRANSMITS,
    RESETS,
    DROPS,
];
const FENTRY: [Wanted; 5] = [
    Wanted { metric: Metric::WriteTime, groups: &[&[probe("exit_send", Hook::Exit, "tcp_sendmsg")]] },
    READ_TIME,
    RETRANSMITS,
    RESETS,
    DROPS,
];

/// The end of a write would have to be a function's return, of which the kernel has a fixed number at a time (see kprobe.bpf.c); the
/// beginning of a read is one of the tier's own probes.
const KPROBE: [Wanted; 4] = [
    Wanted { metric: Metric::ReadTime, groups: &[] },
    Wanted {
        metric: Metric::Retransmits,
        groups: &[&[
            probe("on_retransmit", Hook::RawTracepoint, "tcp_retransmit_skb"),
            probe("on_retransmit_2", Hook::RawTracepoint, "tcp_retransmit_skb"),
        ]],
    },
    Wanted {
        metric: Metric::Resets,
        groups: &[
            &[probe("on_reset_sent", Hook::RawTracepoint, "tcp_send_reset")],
            &[probe("on_reset_received", Hook::RawTracepoint, "tcp_receive_reset")],
        ],
    },
    // A raw tracepoint is not attached to a program that reads more arguments than it has.
    Wanted {
        metric: Metric::Drops,
        groups: &[&[
            probe("on_drop", Hook::RawTracepoint, "kfree_skb"),
            probe("on_drop_3", Hook::RawTracepoint, "kfree_skb"),
        ]],
    },
];

/// Sees only packets that carry their socket: those that it sends.
const SENT_DROPS_ONLY: &str = "on_drop_3";

/// Something that is not measured, or not wholly, and why.
pub(crate) type Unmeasured = (Metric, ProbeError);

/// Attaches what the kernel takes.
pub(crate) fn attach(programs: &mut Ebpf, btf: &Btf, tier: ProbeTier) -> (Vec<Attached>, Vec<Unmeasured>) {
    let wanted: &[Wanted] = match tier {
        ProbeTier::TpBtf => &TP_BTF,
        ProbeTier::Fentry => &FENTRY,
        ProbeTier::Kprobe => &KPROBE,
        ProbeTier::None => &[],
    };
    let (mut links, mut missing) = (Vec::new(), Vec::new());
    for Wanted { metric, groups } in wanted {
        // All or none: half of it would be counted as all.
        let attached: Result<Vec<_>, _> = groups.iter().map(|group| attach_first(programs, btf, group)).collect();
        match attached {
            Ok(attached) => {
                // Such a kernel's drops are counted as far as they are seen, and said not to be all.
                if attached.iter().any(|(probe, _)| probe.is(SENT_DROPS_ONLY)) {
                    missing.push((*metric, ProbeError::SentDropsOnly { kernel: kernel_release() }));
                }
                links.extend(attached.into_iter().map(|(_, link)| link));
            }
            Err(error) => {
                tracing::debug!(metric = metric.as_str(), %error, "not measured");
                missing.push((*metric, error));
            }
        }
    }
    for metric in Metric::ALL {
        if !wanted.iter().any(|w| w.metric == metric) {
            missing.push((metric, ProbeError::NotInTier { metric, tier }));
        }
    }
    (links, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tiers_want_every_metric() {
        for wanted in [&TP_BTF, &FENTRY] {
            let metrics: Vec<_> = wanted.iter().map(|w| w.metric).collect();
            assert_eq!(metrics, Metric::ALL);
        }
    }
}

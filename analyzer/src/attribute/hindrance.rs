//! When a link's TCP kept bytes from arriving.

use meshdiff_model::{Flow, MonotonicNs};

/// Why bytes that were sent did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The sender's TCP held them back.
    Held,
    /// They were lost, and sent again.
    Lost,
}

/// The stretches of time in which a link's bytes waited for TCP.
pub(super) struct Hindrances(Vec<(MonotonicNs, MonotonicNs, Cause)>);

impl Hindrances {
    /// Held bytes wait from then on until they are ready at the peer. Lost bytes stop the receiver, which can take no later ones
    /// before them: from its last progress before they were sent again until they are ready. Where their arrival is not
    /// known, neither is told.
    pub(super) fn of(flow: &Flow) -> Self {
        let ready = flow.ready.marks();
        let arrival = |byte: u64, after: MonotonicNs| {
            let first = ready.partition_point(|m| m.low <= byte);
            ready.get(first).filter(|m| m.at >= after && (first == 0 || ready[first - 1].high <= byte)).map(|m| m.at)
        };
        let mut list = Vec::new();
        for &(byte, at) in &flow.held {
            if let Some(until) = arrival(byte, at) {
                list.push((at, until, Cause::Held));
            }
        }
        for &(byte, at) in &flow.retransmits {
            let sent = flow.sent.marks().iter().find(|m| m.low > byte).map(|m| m.at);
            if let (Some(until), Some(sent)) = (arrival(byte, at), sent) {
                let stopped = flow.ready.last_until(at).map_or(sent, |last| last.max(sent));
                list.push((stopped.min(at), until, Cause::Lost));
            }
        }
        Self(list)
    }

    /// What hindered at an instant; a loss explains more than what was held back meanwhile.
    pub(super) fn at(&self, at: MonotonicNs) -> Option<Cause> {
        let now = || self.0.iter().filter(|(from, to, _)| *from <= at && at < *to);
        now().find(|h| h.2 == Cause::Lost).or_else(|| now().next()).map(|h| h.2)
    }

    /// Instants at which the answer changes.
    pub(super) fn changes(&self) -> impl Iterator<Item = MonotonicNs> + '_ {
        self.0.iter().flat_map(|&(from, to, _)| [from, to])
    }

    /// How long each cause hindered within a stretch of time: held, lost. A loss explains more than what was held back meanwhile.
    pub(super) fn within(&self, from: MonotonicNs, to: MonotonicNs) -> [meshdiff_model::DurationNs; 2] {
        let mut cuts: Vec<MonotonicNs> = self.changes().filter(|at| from < *at && *at < to).collect();
        cuts.extend([from, to]);
        cuts.sort_unstable();
        let mut sums = [meshdiff_model::DurationNs::ZERO; 2];
        for pair in cuts.windows(2) {
            match self.at(pair[0]) {
                Some(Cause::Held) => sums[0] += pair[1] - pair[0],
                Some(Cause::Lost) => sums[1] += pair[1] - pair[0],
                None => {}
            }
        }
        sums
    }
}

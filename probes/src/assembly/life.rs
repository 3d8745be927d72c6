//! How a socket's connection began and ended, from its changes of state.

use meshdiff_model::{Close, Closer, DurationNs, Errno, MonotonicNs, SocketRole, TcpState};

/// A change of state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) old: TcpState,
    pub(super) new: TcpState,
    pub(super) at: MonotonicNs,
    /// The smoothed round-trip time at that instant.
    pub(super) srtt: Option<DurationNs>,
    pub(super) error: Option<Errno>,
}

/// What is known of beginning and end.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) role: Option<SocketRole>,
    pub(super) handshake: Option<DurationNs>,
    pub(super) connect_error: Option<Errno>,
    pub(super) close: Option<Close>,
    /// The SYN was sent, and no answer has come.
    connecting: Option<MonotonicNs>,
    first_fin: Option<MonotonicNs>,
}

impl Life {
    pub(super) const fn new() -> Self {
        Self { role: None, handshake: None, connect_error: None, close: None, connecting: None, first_fin: None }
    }

    pub(super) fn change(&mut self, change: Change) {
        let Change { old, new, at, srtt, error } = change;
        match new {
            TcpState::SynSent => {
                self.role = Some(SocketRole::Connected);
                self.connecting = Some(at);
            }
            TcpState::Established => match old {
                TcpState::SynSent => {
                    self.role = Some(SocketRole::Connected);
                    self.handshake = self.connecting.take().map(|began| at - began);
                }
                // The child's first sample of the round-trip time is that of the SYN-ACK (tcp_synack_rtt_meas, which
                // tcp_check_req calls before the state changes), and a first sample is not smoothed.
                TcpState::SynRecv | TcpState::NewSynRecv => {
                    self.role = Some(SocketRole::Accepted);
                    self.handshake = srtt;
                }
                _ => {}
            },
            TcpState::FinWait1 => self.fin(Closer::Local, at),
            TcpState::CloseWait => self.fin(Closer::Remote, at),
            // Its CLOSE_WAIT was lost.
            TcpState::LastAck => _ = self.close.get_or_insert(ended(Closer::Remote)),
            TcpState::Close if old == TcpState::SynSent => {
                self.connecting = None;
                self.connect_error = error;
            }
            TcpState::Close => self.closed(old, at, error),
            _ => {}
        }
    }

    fn fin(&mut self, by: Closer, at: MonotonicNs) {
        if self.close.is_none() {
            self.close = Some(ended(by));
            self.first_fin = Some(at);
        }
    }

    fn closed(&mut self, old: TcpState, at: MonotonicNs, error: Option<Errno>) {
        let (by, reset) = match error {
            // tcp_reset() in net/ipv4/tcp_input.c.
            Some(Errno::CONNECTION_RESET | Errno::BROKEN_PIPE) => (Closer::Remote, true),
            Some(_) => (Closer::Kernel, false),
            // Without a FIN of its own it was aborted (unread bytes, SO_LINGER of 0).
            None => (Closer::Local, matches!(old, TcpState::Established | TcpState::CloseWait)),
        };
        let close = self.close.get_or_insert(ended(by));
        close.reset |= reset;
        close.duration = self.first_fin.map(|fin| at - fin);
    }

    /// A reset was sent or received.
    pub(super) fn reset(&mut self, received: bool) {
        // The answer to a SYN: the connect's error tells of it.
        if self.connecting.is_some() || self.connect_error.is_some() {
            return;
        }
        let by = if received { Closer::Remote } else { Closer::Local };
        self.close.get_or_insert(ended(by)).reset = true;
    }
}

const fn ended(by: Closer) -> Close {
    Close { by, reset: false, duration: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TcpState::{Close as Closed, CloseWait, Established, FinWait1, FinWait2, LastAck, SynRecv, SynSent};

    fn live(changes: &[(TcpState, TcpState, u64, u16)]) -> Life {
        let mut life = Life::new();
        for (old, new, at, error) in changes {
            life.change(Change {
                old: *old,
                new: *new,
                at: MonotonicNs(*at),
                srtt: Some(DurationNs::from_micros(70)),
                error: (*error != 0).then_some(Errno(*error)),
            });
        }
        life
    }

    fn end(changes: &[(TcpState, TcpState, u64, u16)]) -> Option<(Closer, bool, Option<i64>)> {
        live(changes).close.map(|c| (c.by, c.reset, c.duration.map(|d| d.0)))
    }

    #[test]
    fn handshakes_of_both_ends() {
        let client = live(&[(Closed, SynSent, 100, 0), (SynSent, Established, 350, 0)]);
        assert_eq!((client.role, client.handshake), (Some(SocketRole::Connected), Some(DurationNs(250))));
        let server = live(&[(SynRecv, Established, 400, 0)]);
        assert_eq!((server.role, server.handshake), (Some(SocketRole::Accepted), Some(DurationNs(70_000))));
        assert_eq!(live(&[(Established, FinWait1, 1, 0)]).role, None);
    }

    #[test]
    fn failed_connects_are_no_closes() {
        let mut refused = live(&[(Closed, SynSent, 100, 0)]);
        refused.reset(true);
        refused.change(Change { old: SynSent, new: Closed, at: MonotonicNs(120), srtt: None, error: Some(Errno(111)) });
        refused.reset(true);
        assert_eq!((refused.connect_error, refused.close, refused.handshake), (Some(Errno(111)), None, None));
        let given_up = live(&[(Closed, SynSent, 100, 0), (SynSent, Closed, 900, 0)]);
        assert_eq!((given_up.connect_error, given_up.close), (None, None));
    }

    #[test]
    fn who_closed_first_and_how_long_it_took() {
        let first = [(Established, FinWait1, 10, 0), (FinWait1, FinWait2, 20, 0), (FinWait2, Closed, 30, 0)];
        assert_eq!(end(&first), Some((Closer::Local, false, Some(20))));
        let second = [(Established, CloseWait, 10, 0), (CloseWait, LastAck, 50, 0), (LastAck, Closed, 60, 0)];
        assert_eq!(end(&second), Some((Closer::Remote, false, Some(50))));
        assert_eq!(end(&second[1..]), Some((Closer::Remote, false, None)), "its beginning was not seen");
        assert_eq!(end(&first[..1]), Some((Closer::Local, false, None)), "half open");
    }

    #[test]
    fn resets_are_told_from_fins() {
        assert_eq!(end(&[(Established, Closed, 10, 104)]), Some((Closer::Remote, true, None)));
        assert_eq!(end(&[(Established, Closed, 10, 0)]), Some((Closer::Local, true, None)));
        assert_eq!(end(&[(Established, Closed, 10, 110)]), Some((Closer::Kernel, false, None)));
        let unread = [(Established, CloseWait, 10, 0), (CloseWait, Closed, 15, 0)];
        assert_eq!(end(&unread), Some((Closer::Remote, true, Some(5))), "a FIN, answered with a reset");
        let mut late = live(&[(Established, FinWait1, 10, 0), (FinWait1, Closed, 12, 0)]);
        late.reset(false);
        assert_eq!(late.close, Some(Close { by: Closer::Local, reset: true, duration: Some(DurationNs(2)) }));
    }
}

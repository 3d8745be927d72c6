//! Where a request's instants lie in time, as a picture of it or a trace shows them.
//!
//! Instants of two nodes are never subtracted. Within one node (client application, client sidecar) they are; the server's
//! half is placed by its own instants if both directions of the network then take no negative time, which they do
//! when both halves were stamped by one clock, and in the middle of the network's time otherwise.

use meshdiff_analyzer::AttributedRequest;
use meshdiff_model::MonotonicNs;

/// How a node's clock is shown: display time = instant − origin.
#[derive(Clone, Copy)]
pub(crate) struct Origin(i128);

impl Origin {
    pub(crate) fn show(self, at: MonotonicNs) -> i64 {
        i64::try_from(i128::from(at.0) - self.0).unwrap_or(0)
    }
}

/// How the clocks of a request's two nodes are shown.
#[derive(Clone, Copy)]
pub(crate) struct Origins {
    pub(crate) client: Option<Origin>,
    pub(crate) server: Option<Origin>,
    /// The server's half was put in the middle.
    pub(crate) centred: bool,
}

impl Origins {
    /// `inherited` is the client's, where it is known already; without, the request begins at `wall`.
    pub(crate) fn of(r: &AttributedRequest, inherited: Option<Origin>, wall: i128) -> Self {
        let client = r.start_monotonic.map(|start| inherited.unwrap_or(Origin(i128::from(start.0) - wall)));
        let (sent, got) = (r.request_crossings[1].send, r.response_crossings[1].ready);
        let (arrived, answered) = (r.request_crossings[1].ready, r.response_crossings[1].send);
        let (server, centred) = match (client, sent, got, arrived, answered) {
            (Some(client), Some(sent), Some(got), Some(arrived), Some(answered)) => {
                if arrived >= sent && got >= answered {
                    (Some(client), false)
                } else {
                    // Two durations of two clocks; what is left is the network's, half of it on each way.
                    let network = (got - sent).0 - (answered - arrived).0;
                    let shown = i128::from(client.show(sent)) + i128::from(network / 2);
                    (Some(Origin(i128::from(arrived.0) - shown)), true)
                }
            }
            // Without the network's instants only a half is known; one clock is the likeliest, and bounds it.
            (client, ..) => (client, false),
        };
        Self { client, server, centred }
    }
}

//! What Envoy's own clock says of the way through it, on the kernel's clock: its marks are counted from the instant at which it had the
//! head, which is that of the read. (Parsing comes between the two; it counts with what follows the last mark.)

use meshdiff_model::{AttributionBuilder, Detail, DurationNs, HopSide, JoinedHop, Link, MonotonicNs, Segment};

/// Waiting that ends promptly when a connection became free was waiting for it: what follows is at most this share of the wait.
const PROMPTLY: i64 = 16;

/// A proxy's own words about a request.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    log: &'a HopSide,
    /// The router's entry of the attempt that was sent first.
    router: Option<&'a HopSide>,
    /// When the first attempt was encoded, counted from the stream's start; of a request that the proxy answered itself, its response.
    encoded: DurationNs,
}

impl<'a> Words<'a> {
    /// Those of the proxy at the accepting end of a link.
    pub(super) fn of(hop: &'a JoinedHop, downstream: Link) -> Option<Self> {
        let client = downstream == Link::ClientLoopback;
        let log = if client { hop.client_log.as_deref()? } else { hop.server_log.as_deref()? };
        let own = hop.router_logs[usize::from(!client)].as_deref();
        if log.answered_by_itself() && !(client && hop.is_retried()) {
            let encoded = log.timings.time_to_first_downstream_tx_byte?;
            return Some(Self { log, router: own, encoded });
        }
        if !(client && hop.is_retried()) {
            return Some(Self { log, router: own, encoded: log.timings.time_to_first_upstream_tx_byte? });
        }
        let others = hop.attempts.iter().map(|a| a.hop.client_log.as_deref());
        let all = others.chain([own]).collect::<Option<Vec<_>>>()?;
        let first = all.into_iter().min_by_key(|attempt| attempt.start_time)?;
        let encoded = since(log, first) + first.timings.time_to_first_upstream_tx_byte?;
        Some(Self { log, router: Some(first), encoded })
    }

    /// The parts of the time between the request `read` and `sent` on, of which `setup` is not the proxy's and `body` was spent waiting for
    /// the body; `free` is when the connection on which it went on became free.
    pub(super) fn with_request(
        self,
        split: AttributionBuilder,
        segment: Segment,
        (read, sent): (MonotonicNs, MonotonicNs),
        setup: Option<(MonotonicNs, MonotonicNs)>,
        body: DurationNs,
        free: Option<MonotonicNs>,
    ) -> AttributionBuilder {
        let zero = DurationNs::ZERO;
        let room = (sent - read).max(zero);
        let encoded = self.encoded.min(room).max(zero);
        let decoded =
            self.log.timings.time_to_last_rx_byte.filter(|d| *d <= encoded).unwrap_or(zero).max(body).max(zero);
        let setup = setup.map(|(start, end)| (start.max(read).min(sent), end.max(read).min(sent)));
        let of_setup = setup.map_or(zero, |(start, end)| (end - start).max(zero));
        let mut left = (room - decoded - of_setup).max(zero);
        let mut take = |time: DurationNs| {
            let taken = time.max(zero).min(left);
            left = left - taken;
            taken
        };
        let chosen = self.router.map(|router| since(self.log, router));
        // Whose last request kept the connection busy until then, and which went on as soon as it was free.
        let waited = free.filter(|free| {
            let (waited, after) = (*free - read, sent - *free);
            waited > zero && after >= zero && after.0.saturating_mul(PROMPTLY) <= waited.0
        });
        let (filters, pool) = match (chosen, setup, waited) {
            (Some(chosen), ..) => {
                let filters = take(chosen.min(encoded) - decoded);
                (Some(filters), Some(take(encoded - decoded - filters - of_setup)))
            }
            (None, Some((start, _)), _) => (Some(take((start - read) - decoded)), None),
            (None, None, Some(free)) => (None, Some(take((free - read) - decoded))),
            (None, None, None) => (Some(take(encoded - decoded)), None),
        };
        let flush = take(room - encoded);
        let told = [(Detail::Filters, filters), (Detail::PoolWait, pool), (Detail::Flush, Some(flush))];
        told.into_iter().filter_map(|(d, t)| Some((d, t?))).fold(split, |s, (d, t)| s.detail(segment, d, t))
    }

    /// The parts of the time between the response `read` and sent `back`.
    pub(super) fn with_response(
        self,
        split: AttributionBuilder,
        segment: Segment,
        (read, back): (MonotonicNs, MonotonicNs),
    ) -> AttributionBuilder {
        let timings = &self.log.timings;
        let (Some(parsed), Some(encoded)) =
            (timings.time_to_first_upstream_rx_byte, timings.time_to_first_downstream_tx_byte)
        else {
            return split;
        };
        let whole = (back - read).max(DurationNs::ZERO);
        let filters = (encoded - parsed).max(DurationNs::ZERO).min(whole);
        split.detail(segment, Detail::Filters, filters).detail(segment, Detail::Flush, whole - filters)
    }
}

/// When the client's proxy encoded the first attempt, counted from the stream's start; `None` if the logs do not tell.
pub(super) fn first_sent(hop: &JoinedHop) -> Option<DurationNs> {
    let log = hop.client_log.as_deref()?;
    let own = log.timings.time_to_first_upstream_tx_byte?;
    if !hop.is_retried() {
        return Some(own);
    }
    if usize::try_from(log.upstream_request_attempt_count?).ok()? != hop.attempts.len() + 1 {
        return None;
    }
    // What was never sent began with the connect that failed, as an attempt does.
    let encoded = |attempt: &HopSide| match attempt.timings.time_to_first_upstream_tx_byte {
        None if attempt.answered_by_itself() => Some(since(log, attempt)),
        mark => Some(since(log, attempt) + mark?),
    };
    let others = hop.attempts.iter().map(|a| encoded(a.hop.client_log.as_deref()?)).collect::<Option<Vec<_>>>()?;
    others.into_iter().chain([own]).min()
}

/// When an attempt began, counted from its request's start: both by the proxy's wall clock.
fn since(request: &HopSide, attempt: &HopSide) -> DurationNs {
    DurationNs(attempt.start_time.0.saturating_sub(request.start_time.0))
}

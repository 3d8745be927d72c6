//! The only place where units become text: one formatter for all times, one for shares, one for counts, one for
//! instants. Also the words that people read for a segment, a reason or a workload.

use crate::safe::visible;
use jiff::Timestamp;
use meshdiff_analyzer::{PartKind, PeerKnownBy};
use meshdiff_model::{Detail, DurationNs, Evidence, Segment, WallTime, Workload};

/// A time with three significant digits and the unit that fits: `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`. Never
/// `0.00 ms`: only zero itself is shown as zero.
pub(crate) fn duration(d: DurationNs) -> String {
    const UNITS: [(u64, &str); 4] = [(1, "ns"), (1_000, "µs"), (1_000_000, "ms"), (1_000_000_000, "s")];
    let sign = if d.is_negative() { "-" } else { "" };
    let ns = d.0.unsigned_abs();
    if ns < 1_000 {
        return format!("{sign}{ns} ns");
    }
    for (unit, name) in UNITS.into_iter().skip(1) {
        // Decimals that leave three significant digits; integers only, so that equal inputs print equally everywhere.
        for decimals in [2u32, 1, 0] {
            let scale = 10u64.pow(decimals);
            let scaled = (u128::from(ns) * u128::from(scale) + u128::from(unit) / 2) / u128::from(unit);
            if scaled < 1_000 {
                let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
                return match decimals {
                    0 => format!("{sign}{scaled} {name}"),
                    _ => {
                        format!("{sign}{}.{:0width$} {name}", scaled / scale, scaled % scale, width = decimals as usize)
                    }
                };
            }
        }
    }
    format!("{sign}{} s", count((ns + 500_000_000) / 1_000_000_000))
}

/// A time to the last nanosecond: `1,234,567 ns`.
pub(crate) fn exact(d: DurationNs) -> String {
    format!("{}{} ns", if d.is_negative() { "-" } else { "" }, count(d.0.unsigned_abs()))
}

/// A count with thousands separated: `12,345`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1 request`, `2 requests`.
pub(crate) fn counted(n: u64, singular: &str, plural: &str) -> String {
    format!("{} {}", count(n), if n == 1 { singular } else { plural })
}

/// A share of one: `61%`, `6.4%`, `<0.1%`, and never `100%` for what is not all.
pub(crate) fn share(s: f64) -> String {
    if !s.is_finite() {
        return "–".into();
    }
    let percent = s.abs() * 100.0;
    let sign = if s < 0.0 { "-" } else { "" };
    if percent == 0.0 {
        "0%".into()
    } else if percent < 0.1 {
        format!("{}0.1%", if s < 0.0 { ">-" } else { "<" })
    } else if percent < 9.95 {
        format!("{sign}{percent:.1}%")
    } else if percent < 99.0 || percent == 100.0 {
        format!("{sign}{percent:.0}%")
    } else if percent < 99.9 {
        format!("{sign}{percent:.1}%")
    } else if percent < 100.0 {
        ">99.9%".into()
    } else {
        format!("{sign}{percent:.0}%")
    }
}

/// `part` of `whole` as a share; a dash if there is no whole.
pub(crate) fn ratio(part: u64, whole: u64) -> String {
    // Counts below 2^53 are exact in f64, and a recording has fewer.
    if whole == 0 { "–".into() } else { share(part as f64 / whole as f64) }
}

/// An instant in RFC 3339 with nanoseconds, UTC.
pub(crate) fn rfc3339(t: WallTime) -> String {
    let ts = Timestamp::from_nanosecond(i128::from(t.0)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{ts:.9}")
}

/// An instant for people: date and time to the second, UTC.
pub(crate) fn instant(t: WallTime) -> String {
    let ts = Timestamp::from_nanosecond(i128::from(t.0)).unwrap_or(Timestamp::UNIX_EPOCH);
    ts.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Bytes: `850 B`, `12.3 KiB`, `4.56 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A segment's name for people.
pub(crate) const fn segment(s: Segment) -> &'static str {
    match s {
        Segment::ClientApp => "Client application",
        Segment::ClientLoopback => "Client loopback",
        Segment::ClientSidecar => "Client sidecar",
        Segment::ConnectionSetup => "Connection set-up",
        Segment::Retry => "Retries",
        Segment::Network => "Network",
        Segment::ServerSidecar => "Server sidecar",
        Segment::ServerLoopback => "Server loopback",
        Segment::ServerApp => "Server application",
        Segment::Transfer => "Transfer",
        Segment::Unattributed => "Unattributed",
    }
}

/// What a segment is, by the instants on the six sockets.
pub(crate) const fn definition(s: Segment) -> &'static str {
    match s {
        Segment::ClientApp => {
            "The client application is slow: bytes that S6 still waits for while nothing is in flight, and bytes ready at S1 and not yet read."
        }
        Segment::ClientLoopback => "S1.send → S2.ready with the request, S2.send → S1.ready with the response.",
        Segment::ClientSidecar => "S2.ready → S3.send with the request, S3.ready → S2.send with the response.",
        Segment::ConnectionSetup => {
            "TCP connect and TLS handshake of S3, only for the request that waited for it (taken out of the client sidecar)."
        }
        Segment::Retry => "S3.send of the first attempt → S3.send of the last.",
        Segment::Network => {
            "(S3.send → S3.ready of the response) less (S4.ready → S4.send): a difference of two durations, so the clocks of two nodes never mix."
        }
        Segment::ServerSidecar => "S4.ready → S5.send with the request, S5.ready → S4.send with the response.",
        Segment::ServerLoopback => "S5.send → S6.ready with the request, S6.send → S5.ready with the response.",
        Segment::ServerApp => {
            "S6.ready → S6.send, and the span of the response's sends at S6. Holds the calls that it made itself, shown striped."
        }
        Segment::Transfer => "The rest of the time in which a body was under way, up to S1.recv of the last byte.",
        Segment::Unattributed => "Whatever could not be measured; never spread over the others.",
    }
}

/// A detail's name for people.
pub(crate) const fn detail(d: Detail) -> &'static str {
    match d {
        Detail::Queue => "queue (ready, not yet read)",
        Detail::Hol => "behind an earlier request",
        Detail::Backpressure => "backpressure (the next hop takes no more)",
        Detail::AwaitBody => "a filter waiting for the body",
        Detail::TcpHeld => "held back by TCP (sender)",
        Detail::Retransmit => "lost and sent again",
        Detail::Filters => "filters and routing",
        Detail::PoolWait => "waiting for a connection of the pool",
        Detail::Connect => "TCP connect",
        Detail::Tls => "TLS handshake",
        Detail::Flush => "flush",
        Detail::DownstreamCalls => "its own calls",
        Detail::Streaming => "streaming the response",
        Detail::SelfTime => "itself",
        Detail::Other => "other",
    }
}

/// Where a value comes from, for people.
pub(crate) const fn evidence(e: Evidence) -> &'static str {
    match e {
        Evidence::Kernel => "socket instants",
        Evidence::Als => "Envoy's own timings",
        Evidence::Bound => "a bound",
    }
}

/// Where a kind's time was spent, as the end of a sentence that begins with its share.
pub(crate) const fn kind_where(k: PartKind) -> &'static str {
    match k {
        PartKind::Application => "in the applications",
        PartKind::Sidecar => "in the sidecars",
        PartKind::Loopback => "on the loopback",
        PartKind::Network => "on the network",
        PartKind::Transfer => "on bodies under way",
        PartKind::Unattributed => "could not be attributed",
    }
}

/// A kind of the verdict as a heading.
pub(crate) const fn kind(k: PartKind) -> &'static str {
    match k {
        PartKind::Application => "Applications",
        PartKind::Sidecar => "Sidecars",
        PartKind::Loopback => "Loopback",
        PartKind::Network => "Network",
        PartKind::Transfer => "Transfer",
        PartKind::Unattributed => "Unattributed",
    }
}

/// A place of the verdict: `reviews-v2, application`.
pub(crate) const fn place(k: PartKind) -> &'static str {
    match k {
        PartKind::Application => "application",
        PartKind::Sidecar => "sidecar",
        PartKind::Loopback => "loopback",
        PartKind::Network => "network to it",
        PartKind::Transfer => "transfer from it",
        PartKind::Unattributed => "unattributed",
    }
}

/// How a line's peer is known, for people.
pub(crate) const fn known_by(k: PeerKnownBy) -> &'static str {
    match k {
        PeerKnownBy::Matched => "matched: both sockets were seen, and their sequence numbers prove it",
        PeerKnownBy::Inferred => "inferred from addresses, access logs, Istio’s ports or node metadata",
        PeerKnownBy::Unknown => "unknown: only its address was seen",
    }
}

/// Why a request is not full, for people. Unknown reasons are shown as they are.
pub(crate) fn reason(name: &str) -> String {
    match name {
        "no_probes" => "no kernel events were recorded",
        "address_missing" => "the access log entry lacks an address to join on",
        "socket_not_seen" => "a socket was not seen by the probes",
        "exchange_not_seen" => "its exchange was not seen on the socket",
        "events_lost" => "kernel events around it were lost",
        "before_recording" => "it began before the recording",
        "still_open" => "it was still under way at the end",
        "client_log_missing" => "no access log entry of the client's sidecar",
        "server_log_missing" => "no access log entry of the server's sidecar",
        "local_reply" => "Envoy answered by itself",
        "retried" => "more attempts than the access log names sockets for",
        "protocol_not_read" => "an encrypted multiplexed connection, or a protocol that is not read yet",
        "encrypted_by_application" => "its application encrypted it, and its connections do not tell all of its way",
        "contradiction" => "the halves contradict each other",
        "several_sockets" => "several sockets fit",
        "several_exchanges" => "several exchanges fit",
        "several_logs" => "several access log entries claim it",
        other => return visible(other),
    }
    .into()
}

/// A workload's shortest honest name: workload, else service, else address, else pod.
pub(crate) fn workload(w: &Workload) -> String {
    let named = w.workload.as_deref().or(w.service.as_deref()).or(w.address.as_deref()).or(w.pod.as_deref());
    named.map_or_else(|| "unknown".into(), visible)
}

/// The same with its namespace, where one is known: `default/reviews-v1`.
pub(crate) fn workload_full(w: &Workload) -> String {
    match &w.namespace {
        Some(ns) => format!("{}/{}", visible(ns), workload(w)),
        None => workload(w),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_three_significant_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (1, "1 ns"),
            (850, "850 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_340, "12.3 µs"),
            (99_950, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (4_560_000, "4.56 ms"),
            (1_200_000_000, "1.20 s"),
            (61_000_000_000, "61.0 s"),
            (5_000_000_000_000, "5,000 s"),
            (-3_200, "-3.20 µs"),
        ] {
            assert_eq!(duration(DurationNs(ns)), text, "{ns}");
        }
        assert_eq!(exact(DurationNs(-1_234_567)), "-1,234,567 ns");
    }

    #[test]
    fn shares_never_round_to_all_or_nothing() {
        for (s, text) in [
            (0.0, "0%"),
            (0.000_1, "<0.1%"),
            (0.064, "6.4%"),
            (0.099_6, "10%"),
            (0.61, "61%"),
            (0.994, "99.4%"),
            (0.999_99, ">99.9%"),
            (1.0, "100%"),
            (-0.02, "-2.0%"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(share(s), text, "{s}");
        }
    }

    #[test]
    fn instants_have_nanoseconds() {
        assert_eq!(rfc3339(WallTime(1_767_225_600_000_000_001)), "2026-01-01T00:00:00.000000001Z");
        assert_eq!(bytes(1_300_000), "1.24 MiB");
        assert_eq!(bytes(1_000), "1000 B");
    }

    proptest! {
        #[test]
        fn a_time_that_is_not_zero_never_reads_as_zero(ns in any::<i64>()) {
            let text = duration(DurationNs(ns));
            prop_assert_eq!(ns == 0, !text.chars().any(|c| ('1'..='9').contains(&c)), "{}", text);
        }

        #[test]
        fn a_larger_time_never_reads_smaller(a in 0i64..5_000_000_000, b in 0i64..5_000_000_000) {
            let value = |text: String| {
                let (number, unit) = text.split_once(' ').expect("a number and a unit");
                let factor = match unit { "ns" => 1.0, "µs" => 1e3, "ms" => 1e6, _ => 1e9 };
                number.replace(',', "").parse::<f64>().expect("a number") * factor
            };
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(value(duration(DurationNs(low))) <= value(duration(DurationNs(high))) * (1.0 + 1e-12));
        }
    }
}

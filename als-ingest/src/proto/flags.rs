//! Response flags by the short names that Envoy's `%RESPONSE_FLAGS%` prints.

use super::view::Flags;
use envoy_types::pb::envoy::data::accesslog::v3::ResponseFlags;
use std::sync::{Arc, LazyLock};

/// Names and field numbers, in order of name (`source/common/stream_info/utility.h`, `ResponseFlagUtils`).
const NAMES: [(&str, u32); 28] = [
    ("DC", 15),
    ("DF", 27),
    ("DI", 10),
    ("DPE", 19),
    ("DR", 28),
    ("DT", 23),
    ("FI", 11),
    ("IH", 18),
    ("LH", 1),
    ("LR", 4),
    ("NC", 25),
    ("NFCF", 22),
    ("NR", 9),
    ("OM", 26),
    ("RFCF", 21),
    ("RL", 12),
    ("RLSE", 14),
    ("SI", 17),
    ("UAEX", 13),
    ("UC", 7),
    ("UF", 6),
    ("UH", 2),
    ("UMSDR", 20),
    ("UO", 8),
    ("UPE", 24),
    ("UR", 5),
    ("URX", 16),
    ("UT", 3),
];

/// One shared copy of each name.
static SHARED: LazyLock<[(Arc<str>, u32); NAMES.len()]> = LazyLock::new(|| NAMES.map(|(name, n)| (name.into(), n)));

/// The short names of the flags that are set, sorted.
pub(super) fn short_names(flags: Flags) -> Vec<Arc<str>> {
    if flags == Flags::default() {
        return Vec::new();
    }
    SHARED.iter().filter(|&&(_, n)| flags.0 & 1 << n != 0).map(|(name, _)| Arc::clone(name)).collect()
}

/// The flags of prost's message.
pub(super) fn of_prost(flags: &ResponseFlags) -> Flags {
    let set = [
        (1, flags.failed_local_healthcheck),
        (2, flags.no_healthy_upstream),
        (3, flags.upstream_request_timeout),
        (4, flags.local_reset),
        (5, flags.upstream_remote_reset),
        (6, flags.upstream_connection_failure),
        (7, flags.upstream_connection_termination),
        (8, flags.upstream_overflow),
        (9, flags.no_route_found),
        (10, flags.delay_injected),
        (11, flags.fault_injected),
        (12, flags.rate_limited),
        (13, flags.unauthorized_details.is_some()),
        (14, flags.rate_limit_service_error),
        (15, flags.downstream_connection_termination),
        (16, flags.upstream_retry_limit_exceeded),
        (17, flags.stream_idle_timeout),
        (18, flags.invalid_envoy_request_headers),
        (19, flags.downstream_protocol_error),
        (20, flags.upstream_max_stream_duration_reached),
        (21, flags.response_from_cache_filter),
        (22, flags.no_filter_config_found),
        (23, flags.duration_timeout),
        (24, flags.upstream_protocol_error),
        (25, flags.no_cluster_found),
        (26, flags.overload_manager),
        (27, flags.dns_resolution_failure),
        (28, flags.downstream_remote_reset),
    ];
    Flags(set.into_iter().filter(|&(_, set)| set).fold(0, |bits, (n, _)| bits | 1 << n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted() {
        assert!(NAMES.is_sorted_by_key(|(name, _)| name));
    }

    #[test]
    fn flags_have_envoys_names() {
        let one = |f: fn(&mut ResponseFlags)| {
            let mut flags = ResponseFlags::default();
            f(&mut flags);
            short_names(of_prost(&flags)).iter().map(|n| n.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(one(|_| {}), Vec::<String>::new());
        assert_eq!(one(|f| f.upstream_connection_failure = true), ["UF"]);
        assert_eq!(one(|f| f.no_route_found = true), ["NR"]);
        assert_eq!(one(|f| f.downstream_connection_termination = true), ["DC"]);
        assert_eq!(one(|f| f.unauthorized_details = Some(Default::default())), ["UAEX"]);
        assert_eq!(one(|f| f.upstream_request_timeout = true), ["UT"]);
        assert_eq!(one(|f| f.failed_local_healthcheck = true), ["LH"]);
        assert_eq!(one(|f| f.no_healthy_upstream = true), ["UH"]);
        assert_eq!(one(|f| f.no_cluster_found = true), ["NC"]);
        assert_eq!(
            one(|f| (f.upstream_retry_limit_exceeded, f.upstream_connection_failure) = (true, true)),
            ["UF", "URX"]
        );
    }
}

//! Response flags by the short names that Envoy's `%RESPONSE_FLAGS%` prints.

use envoy_types::pb::envoy::data::accesslog::v3::ResponseFlags;
use std::sync::{Arc, LazyLock};

/// In order of name (`source/common/stream_info/utility.h`, `ResponseFlagUtils`).
const NAMES: [&str; 28] = [
    "DC", "DF", "DI", "DPE", "DR", "DT", "FI", "IH", "LH", "LR", "NC", "NFCF", "NR", "OM", "RFCF", "RL", "RLSE", "SI",
    "UAEX", "UC", "UF", "UH", "UMSDR", "UO", "UPE", "UR", "URX", "UT",
];

/// One shared copy of each name.
static SHARED: LazyLock<[Arc<str>; NAMES.len()]> = LazyLock::new(|| NAMES.map(Into::into));

/// The short names of the flags that are set, sorted.
pub(super) fn short_names(flags: &ResponseFlags) -> Vec<Arc<str>> {
    let set = [
        flags.downstream_connection_termination,
        flags.dns_resolution_failure,
        flags.delay_injected,
        flags.downstream_protocol_error,
        flags.downstream_remote_reset,
        flags.duration_timeout,
        flags.fault_injected,
        flags.invalid_envoy_request_headers,
        flags.failed_local_healthcheck,
        flags.local_reset,
        flags.no_cluster_found,
        flags.no_filter_config_found,
        flags.no_route_found,
        flags.overload_manager,
        flags.response_from_cache_filter,
        flags.rate_limited,
        flags.rate_limit_service_error,
        flags.stream_idle_timeout,
        flags.unauthorized_details.is_some(),
        flags.upstream_connection_termination,
        flags.upstream_connection_failure,
        flags.no_healthy_upstream,
        flags.upstream_max_stream_duration_reached,
        flags.upstream_overflow,
        flags.upstream_protocol_error,
        flags.upstream_remote_reset,
        flags.upstream_retry_limit_exceeded,
        flags.upstream_request_timeout,
    ];
    SHARED.iter().zip(set).filter(|&(_, set)| set).map(|(name, _)| Arc::clone(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted() {
        assert!(NAMES.is_sorted());
    }

    #[test]
    fn flags_have_envoys_names() {
        let one = |f: fn(&mut ResponseFlags)| {
            let mut flags = ResponseFlags::default();
            f(&mut flags);
            short_names(&flags).iter().map(|n| n.to_string()).collect::<Vec<_>>()
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

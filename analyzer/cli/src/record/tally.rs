//! From the receiver's counters to the capture's.

use meshdiff_als::AlsStats as Received;
use meshdiff_capture::{AlsStats, EntryCounts};
use std::collections::BTreeMap;

/// Takes over what the receiver counted. `kept_*` are the entries that were written.
pub(crate) fn als(to: &mut AlsStats, from: &Received, kept_http: u64, kept_tcp: u64) {
    let sum = |map: &BTreeMap<String, u64>| map.values().sum::<u64>();
    to.streams = from.streams_opened;
    to.malformed_messages = sum(&from.malformed_messages);
    // What is dropped or malformed is not told apart by the receiver: nearly all of it is HTTP.
    to.http = EntryCounts {
        received: from.entries_http,
        kept: kept_http,
        dropped: sum(&from.shed),
        malformed: sum(&from.malformed_entries),
    };
    to.tcp = EntryCounts { received: from.entries_tcp, kept: kept_tcp, ..EntryCounts::default() };
    to.trouble.clear();
    for (what, kinds) in [
        ("shed", &from.shed),
        ("malformed_messages", &from.malformed_messages),
        ("malformed_entries", &from.malformed_entries),
        ("malformed_fields", &from.malformed_fields),
        ("streams_failed", &from.streams_failed),
        ("not_terminal", &from.not_terminal),
    ] {
        to.trouble.extend(kinds.iter().map(|(kind, n)| (format!("{what}.{kind}"), *n)));
    }
    for (what, times) in [
        ("accept_errors", from.accept_errors),
        ("tls_failed", from.tls_failed),
        ("tls_reloads_failed", from.tls_reloads_failed),
    ] {
        if times > 0 {
            to.trouble.insert(what.to_owned(), times);
        }
    }
}

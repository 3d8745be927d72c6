//! Conclusions from the lines of the process topology: connects that fail, segments sent again, resets, packets dropped, handshakes that
//! lost their SYN.

use crate::connections::{EndRole, LineEnd, LineMetrics, LineSummary};
use crate::report::{Finding, Level};
use meshdiff_model::{DurationNs, IoMetrics, Link};
use std::collections::BTreeMap;

/// Fewer failures, resets or drops than this are chance.
const SOME: u64 = 5;
/// Segments sent again, of those sent, above which a line is worth a look. Healthy networks stay below 0.1%; from 1% on, throughput and
/// tail latency suffer (Mathis et al., "The macroscopic behavior of the TCP congestion avoidance algorithm", 1997).
const RETRANSMIT_RATE: f64 = 0.01;
/// The bytes that a segment carries on an Ethernet with IPv4 and timestamps. Where segments are larger (loopback) there are fewer of them, and
/// the rate is understated; where they are smaller (an overlay, a VPN) it is overstated by as much, a few percent.
const SEGMENT_BYTES: u64 = 1_448;
/// Linux sends a SYN again after 1 s (`TCP_TIMEOUT_INIT`, RFC 6298): a handshake this long lost one.
const SYN_TIMEOUT: DurationNs = DurationNs::from_millis(990);
/// What ordinary traffic is dropped for, without harm: duplicates, and what comes for a connection that has just closed.
const HARMLESS_DROPS: [&str; 11] = [
    "NOT_SPECIFIED",
    "QUEUE_PURGE",
    "TCP_OLD_DATA",
    "TCP_OLD_ACK",
    "TCP_OLD_SEQUENCE",
    "TCP_OFOMERGE",
    "TCP_CLOSE",
    "TCP_FASTOPEN",
    "TCP_RESET",
    "TCP_INVALID_SYN",
    "TCP_ABORT_ON_DATA",
];

/// The findings of all lines.
pub(crate) fn findings(lines: &[LineSummary]) -> Vec<Finding> {
    let mut list = Vec::new();
    for line in lines {
        list.extend(connect_failures(line));
        list.extend(lost_syns(line));
        for (end, peer) in [(&line.client, &line.server), (&line.server, &line.client)] {
            let Some(total) = end.metrics.as_ref().map(|m| &m.total) else { continue };
            list.extend(retransmits(line, end, peer, total));
            list.extend(drops(end, peer, total));
        }
        list.extend(resets(line));
    }
    list
}

fn name(end: &LineEnd) -> String {
    let whose = end.workload.as_ref().or(end.pod.as_ref()).or(end.service.as_ref()).or(end.address.as_ref());
    let whose = whose.map_or("unknown", String::as_str);
    let whose = end.namespace.as_ref().map_or_else(|| whose.to_owned(), |n| format!("{n}/{whose}"));
    match end.role {
        EndRole::Sidecar => format!("{whose} (sidecar)"),
        EndRole::Application | EndRole::Unknown => {
            let process = end.process.as_deref().unwrap_or("unknown process");
            format!("{whose} ({process})")
        }
        EndRole::Outside => whose,
    }
}

fn subject(from: &LineEnd, to: &LineEnd) -> String {
    format!("{} → {}", name(from), name(to))
}

fn evidence<const N: usize>(list: [(&str, f64); N]) -> BTreeMap<String, f64> {
    list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn connect_failures(line: &LineSummary) -> Option<Finding> {
    let connect = line.client.metrics.as_ref()?.total.connect.as_ref()?;
    let failures = connect.failures.as_ref()?;
    let failed: u64 = failures.values().sum();
    let all = failed > 0 && failed >= connect.count;
    if failed == 0 || (failed < SOME && !all) {
        return None;
    }
    let (&errno, _) = failures.iter().max_by_key(|(_, n)| **n)?;
    let mut numbers = evidence([("connects", connect.count as f64), ("failed", failed as f64)]);
    numbers.extend(failures.iter().map(|(e, n)| (e.to_string(), *n as f64)));
    Some(Finding {
        code: "MD0201",
        level: if all { Level::Error } else { Level::Warning },
        subject: subject(&line.client, &line.server),
        text: format!("{failed} of {} connects failed, most of them with {errno}", connect.count),
        evidence: numbers,
        fix: match errno.name() {
            Some("ECONNREFUSED") => {
                "Nobody listens on that port there: check that the peer is up and ready, and that the Service's targetPort is the port that the \
                 application listens on."
            }
            Some("ETIMEDOUT" | "EHOSTUNREACH" | "ENETUNREACH" | "EHOSTDOWN") => {
                "No answer came: look for a NetworkPolicy, a firewall or security group, a route that is missing, or a peer that is gone while its \
                 address is still handed out."
            }
            Some("EADDRNOTAVAIL") => {
                "The client ran out of local ports: keep connections open and use them again, or widen net.ipv4.ip_local_port_range."
            }
            Some("ECONNRESET") => "The peer or something between answered with a reset: look at what listens there, and at its limits.",
            _ => "Look up the error, and what the client's log says of it.",
        }
        .to_owned(),
    })
}

fn lost_syns(line: &LineSummary) -> Option<Finding> {
    let connect = line.client.metrics.as_ref()?.total.connect.as_ref()?;
    let handshake = connect.handshake.as_ref()?;
    let slow: u64 = handshake.buckets().filter(|b| b.lower >= SYN_TIMEOUT.0 as f64).map(|b| b.count).sum();
    (slow > 0).then(|| Finding {
        code: "MD0205",
        level: Level::Warning,
        subject: subject(&line.client, &line.server),
        text: format!(
            "{slow} of {} handshakes took a second or more: their SYN or its answer was lost, and the kernel sent it again",
            handshake.count()
        ),
        evidence: evidence([
            ("slowHandshakes", slow as f64),
            ("handshakes", handshake.count() as f64),
            ("longestNs", handshake.max().unwrap_or(0) as f64),
        ]),
        fix: "Look for a full accept queue on the server (`nstat -az TcpExtListenOverflows`; raise net.core.somaxconn and the backlog that the \
              application asks for), then for loss on the way."
            .to_owned(),
    })
}

/// At least so many segments were sent.
fn segments(write: &IoMetrics) -> u64 {
    write.calls.max(write.bytes.div_ceil(SEGMENT_BYTES))
}

fn retransmits(line: &LineSummary, end: &LineEnd, peer: &LineEnd, total: &LineMetrics) -> Option<Finding> {
    let (again, write) = (total.retransmits?, total.write.as_ref()?);
    let sent = segments(write).max(1);
    let rate = again as f64 / sent as f64;
    if again < SOME || rate < RETRANSMIT_RATE {
        return None;
    }
    let loopback = matches!(line.link, Some(Link::ClientLoopback | Link::ServerLoopback));
    Some(Finding {
        code: "MD0202",
        level: Level::Warning,
        subject: subject(end, peer),
        text: format!("{again} segments were sent again, about {:.1}% of what was sent", rate * 100.0),
        evidence: evidence([
            ("retransmits", again as f64),
            ("segmentsAtLeast", sent as f64),
            ("writeBytes", write.bytes as f64),
        ]),
        fix: if loopback {
            "Nothing is lost on a loopback but by a receiver whose buffer is full or by a packet filter: look at the drops of this line, and at \
             net.ipv4.tcp_rmem."
        } else {
            "Look for loss between the two nodes: `ethtool -S` of both for drops, a policer or a full queue on the way, an MTU that is too large \
             for an overlay."
        }
        .to_owned(),
    })
}

fn resets(line: &LineSummary) -> Option<Finding> {
    // Both ends see the same reset: of either side's counts the larger.
    let seen = |end: &LineEnd| {
        let close = end.metrics.as_ref()?.total.close.as_ref()?;
        Some((close.resets?, close.count))
    };
    let (resets, closes) = line.ends().into_iter().filter_map(seen).max()?;
    (resets >= SOME && resets * 10 >= closes).then(|| Finding {
        code: "MD0203",
        level: Level::Warning,
        subject: subject(&line.client, &line.server),
        text: format!("{resets} of {closes} connections ended with a reset"),
        evidence: evidence([("resets", resets as f64), ("closes", closes as f64)]),
        fix: "A reset throws away what is under way. See who closed first on this line: an application that closes with data unread, an idle timeout \
              that is shorter than the other end's keep-alive, or a process that was killed."
            .to_owned(),
    })
}

fn drops(end: &LineEnd, peer: &LineEnd, total: &LineMetrics) -> Option<Finding> {
    let drops = total.drops.as_ref()?;
    let harmful = || drops.iter().filter(|(reason, _)| !HARMLESS_DROPS.contains(&&*reason.0));
    let dropped: u64 = harmful().map(|(_, n)| *n).sum();
    if dropped < SOME {
        return None;
    }
    let (reason, _) = harmful().max_by_key(|(_, n)| **n)?;
    Some(Finding {
        code: "MD0204",
        level: Level::Warning,
        subject: subject(end, peer),
        text: format!("the kernel dropped {dropped} packets, most of them for {reason}"),
        evidence: harmful().map(|(reason, n)| (reason.to_string(), *n as f64)).collect(),
        fix: match &*reason.0 {
            "SOCKET_RCVBUFF" | "SOCKET_BACKLOG" | "PROTO_MEM" | "TCP_OVERWINDOW" | "TCP_ZEROWINDOW" | "TCP_RFC7323_PAWS" => {
                "The receiver does not keep up: find out why it reads so late, then look at net.ipv4.tcp_rmem and tcp_mem."
            }
            "NETFILTER_DROP" | "SOCKET_FILTER" | "BPF_CGROUP_EGRESS" | "TC_INGRESS" | "TC_EGRESS" | "XDP" => {
                "A packet filter drops them: look at NetworkPolicy, `iptables -vnL` and `nft list ruleset` in the pod's network namespace."
            }
            "TCP_CSUM" | "IP_CSUM" | "SKB_CSUM" => "Checksums do not fit: look at the network card's offloads (`ethtool -k`) and at the cabling.",
            _ => "Look the reason up in the kernel's include/net/dropreason-core.h.",
        }
        .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::{Closes, Connects, EndMetrics};
    use meshdiff_graph::lines::{LineProtocol, PeerKnownBy, TlsTally};
    use meshdiff_model::{DropReason, Errno};

    fn end(name: &str, total: LineMetrics) -> LineEnd {
        LineEnd {
            role: EndRole::Application,
            namespace: Some("shop".into()),
            workload: Some(name.into()),
            pod: None,
            process: Some("java".into()),
            pids: vec![],
            address: None,
            service: None,
            metrics: Some(EndMetrics { sockets: 1, total, windows: vec![] }),
        }
    }

    fn line(client: LineMetrics) -> LineSummary {
        LineSummary {
            client: end("cart", client),
            server: end("price", LineMetrics::default()),
            protocol: LineProtocol::Tcp,
            tls: None,
            tls_said: TlsTally::default(),
            link: None,
            peer_known_by: PeerKnownBy::Matched,
            known_by: BTreeMap::new(),
            connections: 1,
            destinations: BTreeMap::new(),
        }
    }

    fn codes(metrics: LineMetrics) -> Vec<(&'static str, Level)> {
        findings(&[line(metrics)]).into_iter().map(|f| (f.code, f.level)).collect()
    }

    fn connects(count: u64, failures: &[(u16, u64)]) -> LineMetrics {
        let failures = failures.iter().map(|(e, n)| (Errno(*e), *n)).collect();
        LineMetrics {
            connect: Some(Connects { count, handshake: None, failures: Some(failures) }),
            ..LineMetrics::default()
        }
    }

    #[test]
    fn connects_that_fail() {
        assert_eq!(codes(connects(100, &[])), []);
        assert_eq!(codes(connects(100, &[(111, 4)])), [], "a few of many are chance");
        assert_eq!(codes(connects(100, &[(111, 4), (110, 1)])), [("MD0201", Level::Warning)]);
        assert_eq!(codes(connects(1, &[(111, 1)])), [("MD0201", Level::Error)], "not one came through");
        let found = findings(&[line(connects(9, &[(111, 5), (110, 4)]))]);
        assert_eq!(found[0].subject, "shop/cart (java) → shop/price (java)");
        assert!(found[0].text.contains("9 of 9") && found[0].text.contains("ECONNREFUSED"), "{}", found[0].text);
        assert_eq!(found[0].evidence["ETIMEDOUT"], 4.0);
        assert!(found[0].fix.contains("Nobody listens"));
    }

    #[test]
    fn what_was_not_measured_is_no_finding() {
        assert_eq!(codes(LineMetrics::default()), []);
        let unknown = Connects { count: 9, handshake: None, failures: None };
        assert_eq!(codes(LineMetrics { connect: Some(unknown), ..LineMetrics::default() }), []);
    }

    #[test]
    fn segments_sent_again_are_judged_by_what_was_sent() {
        let metrics = |again, bytes| LineMetrics {
            write: Some(IoMetrics { calls: 10, bytes, ..IoMetrics::default() }),
            retransmits: Some(again),
            ..LineMetrics::default()
        };
        // 1,000 segments.
        assert_eq!(codes(metrics(9, 1_448_000)), []);
        assert_eq!(codes(metrics(10, 1_448_000)), [("MD0202", Level::Warning)]);
        assert_eq!(codes(metrics(4, 100)), [], "too few to say");
    }

    #[test]
    fn resets_drops_and_lost_syns() {
        let closes = |count, resets| LineMetrics {
            close: Some(Closes { count, by: None, resets: Some(resets), duration: None }),
            ..LineMetrics::default()
        };
        assert_eq!(codes(closes(100, 9)), []);
        assert_eq!(codes(closes(50, 5)), [("MD0203", Level::Warning)]);
        let drops = |reason: &str, n| LineMetrics {
            drops: Some([(DropReason(reason.into()), n)].into()),
            ..LineMetrics::default()
        };
        assert_eq!(codes(drops("TCP_OLD_DATA", 500)), [], "duplicates do no harm");
        assert_eq!(codes(drops("NETFILTER_DROP", 5)), [("MD0204", Level::Warning)]);
        let handshakes = |ms: &[u64]| LineMetrics {
            connect: Some(Connects {
                count: ms.len() as u64,
                handshake: Some(ms.iter().map(|ms| ms * 1_000_000).collect()),
                failures: None,
            }),
            ..LineMetrics::default()
        };
        assert_eq!(codes(handshakes(&[1, 800])), []);
        assert_eq!(codes(handshakes(&[1, 1_001])), [("MD0205", Level::Warning)]);
    }
}

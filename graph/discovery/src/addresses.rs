//! The addresses of a process's network namespace.

use meshdiff_model::normalise_ip;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

/// The addresses of the interfaces in the network namespace of a process, loopback and link-local ones left out, in order. Empty for a
/// process that is gone or may not be looked at.
#[must_use]
pub fn local_addresses(pid: u32) -> Vec<IpAddr> {
    in_proc(Path::new("/proc"), pid)
}

fn in_proc(root: &Path, pid: u32) -> Vec<IpAddr> {
    let read = |name: &str| std::fs::read_to_string(root.join(format!("{pid}/net/{name}"))).unwrap_or_default();
    let mut found: Vec<IpAddr> = v4(&read("fib_trie")).chain(v6(&read("if_inet6"))).map(normalise_ip).collect();
    found.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    found.sort_unstable();
    found.dedup();
    found
}

/// The kernel's routes to itself: a line `|-- ADDRESS`, and below it `/32 host LOCAL` (`fib_trie_seq_show` in `net/ipv4/fib_trie.c`).
fn v4(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    let mut last = None;
    table.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse().ok();
            return None;
        }
        if line.starts_with("/32 host LOCAL") { last } else { None }
    })
}

/// Lines that begin with 32 hexadecimal digits.
fn v6(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    table.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next().filter(|d| d.len() == 32)?;
        Some(IpAddr::V6(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_understood() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.77.0.0/24 2 0 2\n        |-- 10.77.0.0\n           /24 link UNICAST\nLocal:\n     |-- 10.77.0.2\n        /32 host LOCAL\n     |-- 10.77.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(v4(trie).map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.77.0.2", "127.0.0.1"]);
        let six = "00000000000000000000000000000001 01 80 10 80       lo\nfd000010024400010000000000000007 02 40 00 80     eth0\nfe800000000000000000000000000001 02 40 20 80 eth0\n";
        let found: Vec<_> = v6(six).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["::1", "fd00:10:244:1::7", "fe80::1"]);
        for cut in 0..trie.len() {
            let _ = v4(&trie[..cut]).count();
        }
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert!(local_addresses(u32::MAX).is_empty());
        let own = local_addresses(std::process::id());
        assert!(own.iter().all(|ip| !ip.is_loopback()), "{own:?}");
    }
}

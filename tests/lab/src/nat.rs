//! Istio's rules, as `istio-iptables` sets them (`tools/istio-iptables/pkg/capture/run.go` of 1.27): REDIRECT for both families, and
//! TPROXY for inbound connections where a pod asks for that.

use crate::bootstrap::PROXY_UID;
use crate::error::LabError;
use crate::netns;
use crate::topology::{Pod, Proxy};

/// What a packet's mark is by which policy routing takes it for local (`INBOUND_TPROXY_MARK` and `…_ROUTE_TABLE`).
const TPROXY_MARK: u32 = 1337;
const TPROXY_TABLE: u32 = 133;
/// The mark of what a sidecar sends to its own pod's address as anybody's client.
const OUTBOUND_MARK: u32 = 1338;

/// An address family, as the commands and the rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Four,
    Six,
}

impl Family {
    /// The commands to try: nftables behind iptables' syntax is the default of most distributions, the legacy one works on
    /// kernels without nf_tables.
    const fn flavours(self) -> [&'static str; 3] {
        match self {
            Self::Four => ["iptables-restore", "iptables-nft-restore", "iptables-legacy-restore"],
            Self::Six => ["ip6tables-restore", "ip6tables-nft-restore", "ip6tables-legacy-restore"],
        }
    }

    const fn localhost(self) -> &'static str {
        match self {
            Self::Four => "127.0.0.1/32",
            Self::Six => "::1/128",
        }
    }

    /// From where a sidecar speaks to its application.
    const fn passthrough(self) -> &'static str {
        match self {
            Self::Four => "127.0.0.6/32",
            Self::Six => "::6/128",
        }
    }
}

/// The rules in `iptables-restore`'s format, in Istio's order.
fn rules(family: Family, proxy: Proxy) -> String {
    let uid = PROXY_UID;
    let (localhost, passthrough) = (family.localhost(), family.passthrough());
    let inbound = if proxy == Proxy::Tproxy { "" } else { "-A PREROUTING -p tcp -j ISTIO_INBOUND\n" };
    let nat = format!(
        "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
{inbound}-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s {passthrough} -o lo -j RETURN
-A ISTIO_OUTPUT ! -d {localhost} -o lo -m owner --uid-owner {uid} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT ! -d {localhost} -o lo -m owner --gid-owner {uid} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -d {localhost} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"
    );
    if proxy == Proxy::Tproxy { nat + &tproxy(family) } else { nat }
}

/// What leads inbound connections to the sidecar without touching their addresses, and their answers back to it.
fn tproxy(family: Family) -> String {
    let uid = PROXY_UID;
    let (localhost, passthrough) = (family.localhost(), family.passthrough());
    format!(
        "*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ISTIO_DIVERT - [0:0]
:ISTIO_TPROXY - [0:0]
:ISTIO_INBOUND - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp -m mark --mark {TPROXY_MARK} -j CONNMARK --save-mark
-A OUTPUT -p tcp -o lo -m mark --mark {TPROXY_MARK} -j RETURN
-A OUTPUT ! -d {localhost} -p tcp -o lo -m owner --uid-owner {uid} -j MARK --set-mark {OUTBOUND_MARK}
-A OUTPUT ! -d {localhost} -p tcp -o lo -m owner --gid-owner {uid} -j MARK --set-mark {OUTBOUND_MARK}
-A OUTPUT -p tcp -m connmark --mark {TPROXY_MARK} -j CONNMARK --restore-mark
-A ISTIO_DIVERT -j MARK --set-mark {TPROXY_MARK}
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_TPROXY ! -d {localhost} -p tcp -j TPROXY --tproxy-mark {TPROXY_MARK}/0xffffffff --on-port 15006
-A ISTIO_INBOUND -p tcp -m mark --mark {TPROXY_MARK} -j RETURN
-A ISTIO_INBOUND -p tcp -s {passthrough} -i lo -j RETURN
-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark {OUTBOUND_MARK} -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
COMMIT
"
    )
}

/// Sets a pod's rules in its namespace; says by which command. A pod without a sidecar has none.
///
/// # Errors
/// When no flavour of iptables takes them.
pub fn apply(namespace: &str, pod: &Pod) -> Result<Option<&'static str>, LabError> {
    if matches!(pod.proxy, Proxy::Gateway | Proxy::None) {
        return Ok(None);
    }
    if pod.proxy == Proxy::Tproxy {
        let (mark, table) = (TPROXY_MARK.to_string(), TPROXY_TABLE.to_string());
        netns::ip(&["-n", namespace, "rule", "add", "fwmark", &mark, "lookup", &table])?;
        netns::ip(&["-n", namespace, "route", "add", "local", "default", "dev", "lo", "table", &table])?;
    }
    let flavour = set(namespace, Family::Four, &rules(Family::Four, pod.proxy))?;
    if pod.ip6.is_some() {
        set(namespace, Family::Six, &rules(Family::Six, pod.proxy))?;
    }
    Ok(Some(flavour))
}

fn set(namespace: &str, family: Family, rules: &str) -> Result<&'static str, LabError> {
    netns::within(namespace, || {
        let mut failures = Vec::new();
        for flavour in family.flavours() {
            // Waiting for the lock: another lab may be at it (the legacy lock is one per machine).
            let waiting: &[&str] = if flavour.contains("nft") { &[] } else { &["-w", "10"] };
            match netns::run(flavour, waiting, Some(rules)) {
                Ok(_) => return Ok(flavour),
                Err(LabError::Command { why, .. }) => failures.push(format!("{flavour} ({why})")),
                Err(other) => return Err(other),
            }
        }
        Err(LabError::Nat(failures))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tproxy_intercepts_by_the_mangle_table_only_and_redirect_by_nat_only() {
        let [redirect, tproxy] = [Proxy::Sidecar, Proxy::Tproxy].map(|proxy| rules(Family::Four, proxy));
        assert!(redirect.contains("-A PREROUTING -p tcp -j ISTIO_INBOUND") && !redirect.contains("*mangle"));
        let (nat, mangle) = tproxy.split_once("*mangle").unwrap();
        assert!(!nat.contains("-A PREROUTING") && nat.contains("--to-ports 15001"));
        assert!(mangle.contains("--on-port 15006"));
    }

    #[test]
    fn families_keep_their_addresses_apart() {
        let six = rules(Family::Six, Proxy::Sidecar);
        assert!(six.contains("-s ::6/128") && six.contains("-d ::1/128") && !six.contains("127.0.0"));
    }
}

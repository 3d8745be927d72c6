//! Istio's nat rules, as `istio-iptables` sets them in REDIRECT mode.

use crate::bootstrap::PROXY_UID;
use crate::error::LabError;
use crate::netns;

/// The commands to try: nftables behind iptables' syntax is the default of most distributions, the legacy one works on
/// kernels without nf_tables.
const FLAVOURS: [&str; 3] = ["iptables-restore", "iptables-nft-restore", "iptables-legacy-restore"];

/// The rules in `iptables-restore`'s format, in Istio's order.
pub fn rules() -> String {
    let uid = PROXY_UID;
    format!(
        "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -m owner --uid-owner {uid} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner {uid} -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -m owner --gid-owner {uid} -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner {uid} -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"
    )
}

/// Sets the rules in a namespace; says by which command.
///
/// # Errors
/// When no flavour of iptables takes them.
pub fn apply(namespace: &str) -> Result<&'static str, LabError> {
    netns::within(namespace, || {
        let mut failures = Vec::new();
        for flavour in FLAVOURS {
            // Waiting for the lock: another lab may be at it (the legacy lock is one per machine).
            let waiting: &[&str] = if flavour.contains("nft") { &[] } else { &["-w", "10"] };
            match netns::run(flavour, waiting, Some(&rules())) {
                Ok(_) => return Ok(flavour),
                Err(LabError::Command { why, .. }) => failures.push(format!("{flavour} ({why})")),
                Err(other) => return Err(other),
            }
        }
        Err(LabError::Nat(failures))
    })?
}

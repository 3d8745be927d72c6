//! The pods' network: a bridge in a namespace of its own (the fabric), one cable from it to each pod and one to the
//! machine.
//!
//! The bridge is not in the machine's own namespace so that the machine's firewall (Docker's FORWARD rules, for one)
//! has no say in it, and so that one link is all that the lab leaves there.

use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::error::LabError;
use crate::netns::{self, ip, ip_batch};
use crate::settings::Settings;
use crate::topology::Topology;

/// The namespace that holds the bridge.
pub const FABRIC: &str = "fabric";

/// Refuses addresses that the machine already uses.
///
/// # Errors
/// When a route of the machine overlaps the lab's subnet.
pub fn check_subnet(settings: &Settings) -> Result<(), LabError> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
        #[serde(default)]
        dev: String,
    }
    let listing = ip(&["-j", "-4", "route", "show"])?;
    let routes: Vec<Route> = serde_json::from_str(if listing.trim().is_empty() { "[]" } else { &listing })
        .map_err(|error| LabError::Command { command: "ip -j -4 route show".into(), why: error.to_string() })?;
    for route in routes.iter().filter(|route| route.dst != "default" && route.dev != settings.name.host_link()) {
        let (address, prefix) = route.dst.split_once('/').unwrap_or((&route.dst, "32"));
        if let (Ok(address), Ok(prefix)) = (address.parse::<Ipv4Addr>(), prefix.parse())
            && settings.subnet.overlaps(address, prefix)
        {
            let route = format!("{} through {}", route.dst, route.dev);
            return Err(LabError::SubnetTaken { subnet: settings.subnet, route });
        }
    }
    Ok(())
}

/// Makes the namespaces and connects them.
///
/// # Errors
/// When `ip` refuses.
pub fn create(settings: &Settings, topology: &Topology) -> Result<(), LabError> {
    let fabric = settings.name.namespace(FABRIC);
    ip(&["netns", "add", &fabric])?;
    without_ipv6(&fabric)?;
    // No learning delay and no multicast bookkeeping: packets pass from the first one on.
    ip_batch(
        &fabric,
        "link set lo up\nlink add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n",
    )?;

    let host = settings.name.host_link();
    ip(&["link", "add", "name", &host, "type", "veth", "peer", "name", "host", "netns", &fabric])?;
    ip(&["link", "set", "dev", &host, "alias", &format!("meshdiff-lab {}", settings.name)])?;
    ip(&["addr", "add", &format!("{}/24", settings.subnet.gateway()), "dev", &host])?;
    ip(&["link", "set", &host, "up"])?;
    ip_batch(&fabric, "link set host master br0 up\n")?;

    for (i, pod) in topology.pods.iter().enumerate() {
        let namespace = settings.name.namespace(&pod.workload);
        ip(&["netns", "add", &namespace])?;
        if pod.ip6.is_some() {
            with_ipv6(&namespace)?;
        } else {
            without_ipv6(&namespace)?;
        }
        // The link's address follows the pod's, so that nobody's neighbour table is wrong when another pod takes it over.
        let [a, b, c, d] = pod.ip.octets();
        let ether = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        let pair = format!("link add name p{i} type veth peer name eth0 address {ether} netns {namespace}\n");
        let plug = if pod.spare { String::new() } else { plug(i) };
        ip_batch(&fabric, &(pair + &plug))?;
        let gateway = settings.subnet.gateway();
        let six = pod.ip6.map_or_else(String::new, |ip6| {
            // Istio's init container gives lo the address from which sidecars speak to applications.
            format!("addr add ::6/128 dev lo\naddr add {ip6}/64 dev eth0 nodad\nroute add ::/0 dev eth0\n")
        });
        ip_batch(
            &namespace,
            &format!(
                "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n{six}",
                pod.ip
            ),
        )?;
    }
    Ok(())
}

fn plug(pod: usize) -> String {
    format!("link set p{pod} master br0 up\n")
}

/// Connects a pod in the place of another.
///
/// # Errors
/// When `ip` refuses.
pub fn exchange(settings: &Settings, old: usize, new: usize) -> Result<(), LabError> {
    ip_batch(&settings.name.namespace(FABRIC), &format!("link set p{old} nomaster down\n{}", plug(new)))
}

/// Addresses count from the moment at which they are set: nobody asks whether somebody has them already.
fn with_ipv6(namespace: &str) -> Result<(), LabError> {
    let settings = ["accept_dad", "accept_ra", "router_solicitations"];
    netns::within(namespace, || {
        settings.iter().try_for_each(|name| std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), "0"))
    })?
    .map_err(LabError::io("this kernel has no IPv6, which the scenarios need".to_owned()))
}

/// Duplicate address detection and router solicitations would only add packets.
fn without_ipv6(namespace: &str) -> Result<(), LabError> {
    // A kernel without IPv6 has no such file, and nothing to switch off.
    netns::within(namespace, || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).map(drop)
}

/// Gives every namespace the same congestion control: cubic, which Linux has by default.
///
/// A machine with bbr hands that on to new namespaces, and its pacing moves the instants between send and ready. A
/// namespace may only choose what the machine allows to everybody; where cubic is not in that list, it is there for the
/// moment of choosing.
///
/// # Errors
/// When neither cubic nor anything else can be chosen, or a namespace is gone.
pub fn set_congestion_control(settings: &Settings, topology: &Topology) -> Result<String, LabError> {
    const WANTED: &str = "cubic";
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    const CHOSEN: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    let _one_at_a_time = crate::state::Lock::machine()?;
    let allowed = std::fs::read_to_string(ALLOWED).unwrap_or_default();
    let widen = !allowed.split_whitespace().any(|name| name == WANTED);
    if widen {
        // Where this is refused, choosing below fails, and the result says what is in force.
        let _ = std::fs::write(ALLOWED, format!("{} {WANTED}", allowed.trim()));
    }
    let mut in_force = Vec::new();
    for pod in &topology.pods {
        let chosen = netns::within(&settings.name.namespace(&pod.workload), || {
            // The file says afterwards what is in force, whether the write went through or not.
            let _ = std::fs::write(CHOSEN, WANTED);
            std::fs::read_to_string(CHOSEN).unwrap_or_default().trim().to_owned()
        })?;
        if !in_force.contains(&chosen) {
            in_force.push(chosen);
        }
    }
    if widen {
        std::fs::write(ALLOWED, allowed.trim()).map_err(LabError::io(format!("{ALLOWED} cannot be set back")))?;
    }
    Ok(in_force.join(","))
}

/// Removes all namespaces and links of a lab, by their names.
///
/// # Errors
/// When `ip` refuses to remove what is there.
pub fn remove(name: &crate::settings::LabName) -> Result<(), LabError> {
    for namespace in netns::named(&name.namespace_prefix()) {
        ip(&["netns", "del", &namespace])?;
    }
    let host = name.host_link();
    // The link goes with its peer's namespace, a moment later; asking for what is gone is no failure.
    if std::path::Path::new("/sys/class/net").join(&host).exists() {
        match ip(&["link", "del", &host]) {
            Err(error) if std::path::Path::new("/sys/class/net").join(&host).exists() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

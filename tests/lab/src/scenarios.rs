//! The pods and services of the scenarios: what a mesh has beside pods with sidecars that ask each other's virtual IPs.

use crate::settings::Settings;
use crate::topology::{ECHO, Pod, Proxy, Serves, Service, ServicePort, Topology};

/// It calls on while it serves, itself too.
pub const RELAY: &str = "relay";
/// Pod and service without a sidecar.
pub const BARE: &str = "bare";
/// Beyond the mesh: no sidecar, and no service that anybody knows.
pub const OUTSIDE: &str = "outside";
/// Its sidecar refuses what is not in the mesh.
pub const STRICT: &str = "strict";
/// The ingress gateway.
pub const GATEWAY: &str = "istio-ingressgateway";
/// Inbound connections come to it by TPROXY.
pub const TPROXY: &str = "tproxy";
/// Two workloads, of which the second gets the first one's address when that is gone.
pub const REUSED: &str = "reused";
/// A service without a virtual IP, in front of the echo.
pub const HEADLESS: &str = "headless";
/// A service of IPv6 only, in front of the echo.
pub const SIX: &str = "echo-six";

/// The port on which the gateway listens, as Istio's charts have it.
pub const GATEWAY_PORT: u16 = 8080;

/// The workload of a pod of the scenarios.
pub fn workload(app: &str) -> String {
    if app == GATEWAY { app.to_owned() } else { format!("{app}-v1") }
}

/// Adds them.
pub(crate) fn add(topology: &mut Topology, settings: &Settings) {
    let Topology { pods, services } = topology;
    // Load generator and echo are dual stack; the applications listen to both families on one socket.
    for pod in pods.iter_mut() {
        pod.ip6 = Some(settings.subnet.host6(pod.ip.octets()[3]));
    }
    let mut last = pods.len() as u8 + 9;
    let mut add = |app: &'static str, version: &str, change: fn(&mut Pod)| {
        if version == "v1" {
            last += 1;
        }
        let workload = if version == "v1" { workload(app) } else { format!("{app}-{version}") };
        let mut pod = Pod::new(app, workload, version, settings.subnet.host(last), Serves::Protocols);
        change(&mut pod);
        pods.push(pod);
    };
    add(RELAY, "v1", |_| ());
    add(BARE, "v1", |pod| pod.proxy = Proxy::None);
    add(OUTSIDE, "v1", |pod| pod.proxy = Proxy::None);
    add(STRICT, "v1", |pod| (pod.serves, pod.registry_only) = (Serves::Nothing, true));
    add(GATEWAY, "v1", |pod| (pod.serves, pod.proxy) = (Serves::Nothing, Proxy::Gateway));
    add(TPROXY, "v1", |pod| pod.proxy = Proxy::Tproxy);
    add(REUSED, "v1", |_| ());
    add(REUSED, "v2", |pod| pod.spare = true);

    let echo = || pods.iter().filter(|pod| pod.app == ECHO);
    let pods_of = |app: &str| {
        let of_app = pods.iter().filter(|pod| pod.app == app && !pod.spare);
        of_app.map(|pod| pod.ip.into()).collect::<Vec<_>>()
    };
    let mut vip = services.len() as u8 + 10;
    let mut service = |name: &'static str, app: &'static str| {
        vip += 1;
        let (vip, endpoints) = (Some(settings.subnet.vip(vip).into()), pods_of(app));
        Service { name, app, vip, endpoints, ports: vec![ServicePort::HTTP, ServicePort::HTTP2], meshed: true }
    };
    let mut more = vec![
        service(RELAY, RELAY),
        Service { meshed: false, ..service(BARE, BARE) },
        service(TPROXY, TPROXY),
        service(REUSED, REUSED),
        Service { vip: None, ..service(HEADLESS, ECHO) },
    ];
    let six = echo().filter_map(|pod| Some(pod.ip6?.into())).collect();
    more.push(Service { vip: Some(settings.subnet.vip6(10).into()), endpoints: six, ..service(SIX, ECHO) });
    services.extend(more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Workload;

    fn topology() -> Topology {
        let mut settings = crate::settings::tests::example();
        settings.workloads = vec![Workload::Scenarios];
        Topology::of(&settings)
    }

    #[test]
    fn only_the_reused_address_is_there_twice() {
        let topology = topology();
        let shares =
            |pod: &&Pod| topology.pods.iter().any(|other| other.ip == pod.ip && other.workload != pod.workload);
        let shared: Vec<_> = topology.pods.iter().filter(shares).map(|pod| pod.workload.as_str()).collect();
        assert_eq!(shared, ["reused-v1", "reused-v2"]);
        let reused = topology.service(REUSED).unwrap();
        assert_eq!(reused.endpoints.len(), 1);
        let mut names: Vec<_> = topology.services.iter().filter_map(|service| service.vip).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), topology.services.len() - 1, "each its own virtual IP, the headless one none");
    }

    #[test]
    fn services_of_one_family_have_endpoints_of_that_family() {
        let topology = topology();
        assert!(topology.service(SIX).unwrap().endpoints.iter().all(std::net::IpAddr::is_ipv6));
        assert_eq!(topology.service(HEADLESS).unwrap().endpoints, topology.service(ECHO).unwrap().endpoints);
        assert_eq!(topology.service(HEADLESS).unwrap().spiffe_id(), topology.service(ECHO).unwrap().spiffe_id());
    }
}

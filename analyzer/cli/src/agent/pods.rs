//! Which pods of the node are traced: those with a sidecar in the chosen namespaces.

use crate::record::kernel::Gate;
use meshdiff_discovery::kube::Informers;
use meshdiff_discovery::local_addresses;
use meshdiff_model::{NetnsId, Proxy, normalise_ip};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is left out unless it is asked for.
const SYSTEM: &str = "kube-system";
/// Network namespaces whose addresses are remembered; beyond that all are looked up anew.
const MOST: usize = 4096;

/// The namespaces that were chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces(Vec<String>);

impl Namespaces {
    /// These; all but kube-system if there are none.
    pub(crate) fn new(chosen: Vec<String>) -> Self {
        Self(chosen)
    }

    /// True if pods of this namespace are traced.
    pub(crate) fn contains(&self, namespace: &str) -> bool {
        if self.0.is_empty() { namespace != SYSTEM } else { self.0.iter().any(|n| n == namespace) }
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        if self.0.is_empty() { format!("all but {SYSTEM}") } else { self.0.join(", ") }
    }
}

/// The namespaces of the pods whose proxies said who they are. For agents without access to the API.
#[derive(Debug, Default)]
pub(crate) struct KnownProxies(Mutex<BTreeMap<IpAddr, String>>);

impl KnownProxies {
    /// Takes note of a proxy.
    pub(crate) fn add(&self, proxy: &Proxy) {
        if let (Some(ip), Some(namespace)) = (proxy.address, &proxy.namespace) {
            self.lock().insert(normalise_ip(ip), namespace.clone());
        }
    }

    fn namespace_of(&self, ips: &[IpAddr]) -> Option<String> {
        let known = self.lock();
        ips.iter().find_map(|ip| known.get(ip).cloned())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets in the network namespaces of pods that are to be traced.
pub(crate) struct PodGate {
    pub(crate) namespaces: Namespaces,
    pub(crate) informers: Option<Arc<Informers>>,
    pub(crate) proxies: Arc<KnownProxies>,
    /// The addresses of network namespaces, which do not change once they have some.
    pub(crate) addresses: Mutex<HashMap<NetnsId, Vec<IpAddr>>>,
}

impl PodGate {
    fn addresses(&self, netns: NetnsId, processes: &[u32]) -> Vec<IpAddr> {
        let mut known = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&netns) {
            return found.clone();
        }
        let found =
            processes.iter().take(3).map(|pid| local_addresses(*pid)).find(|a| !a.is_empty()).unwrap_or_default();
        // A pod that is just being made has none yet.
        if !found.is_empty() {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(netns, found.clone());
        }
        found
    }

    fn judge(&self, addresses: &[IpAddr]) -> bool {
        let said = self.proxies.namespace_of(addresses).map(|ns| self.namespaces.contains(&ns));
        // Without an answer of the API, what has a sidecar is traced: too much rather than nothing, and said in /v1/info.
        let Some(informers) = self.informers.as_deref().filter(|i| i.pods_are_known()) else {
            return said.unwrap_or(true);
        };
        informers.read(|cluster| match addresses.iter().find_map(|ip| cluster.pod_at(*ip)) {
            Some(pod) => pod.has_sidecar && self.namespaces.contains(&pod.namespace),
            // The API does not know it, or not yet: it may be anybody's, unless its sidecar said who it is.
            None => said.unwrap_or(false),
        })
    }
}

impl Gate for PodGate {
    fn admits(&self, netns: NetnsId, processes: &[u32]) -> bool {
        self.judge(&self.addresses(netns, processes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_system_is_left_out_unless_it_is_asked_for() {
        let all = Namespaces::new(vec![]);
        assert!(all.contains("default") && !all.contains("kube-system"));
        let some = Namespaces::new(vec!["shop".into(), "kube-system".into()]);
        assert!(some.contains("kube-system") && some.contains("shop") && !some.contains("default"));
        assert_eq!((all.describe().as_str(), some.describe().as_str()), ("all but kube-system", "shop, kube-system"));
    }

    #[test]
    fn without_the_api_only_what_a_proxy_says_to_be_elsewhere_is_left_out() {
        let gate = PodGate {
            namespaces: Namespaces::new(vec!["shop".into()]),
            informers: None,
            proxies: Arc::default(),
            addresses: Mutex::default(),
        };
        let ip: IpAddr = "10.0.0.1".parse().expect("an address");
        assert!(gate.judge(&[ip]) && gate.judge(&[]));
        gate.proxies.lock().insert(ip, "default".into());
        assert!(!gate.judge(&[ip]));
        gate.proxies.lock().insert(ip, "shop".into());
        assert!(gate.judge(&[ip]));
    }
}

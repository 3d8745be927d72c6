//! Which pods held an address, one after the other.

use super::objects::Pod;
use meshdiff_model::{Tenure, WallTime};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Addresses and the pods that have or had them, by identity.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders(HashMap<IpAddr, BTreeSet<String>>);

impl Holders {
    pub(super) fn add(&mut self, pod: &Pod) {
        for ip in &pod.addresses {
            self.0.entry(*ip).or_default().insert(pod.uid.clone());
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        for ip in &pod.addresses {
            if let Some(uids) = self.0.get_mut(ip) {
                uids.remove(&pod.uid);
                if uids.is_empty() {
                    self.0.remove(ip);
                }
            }
        }
    }

    /// The pods that may have held an address at an instant: one, unless it passed from one to the next at that time.
    pub(super) fn at<'p>(&self, ip: IpAddr, at: WallTime, pods: &'p BTreeMap<String, Pod>) -> Vec<&'p Pod> {
        let of_address = self.0.get(&ip).into_iter().flatten().filter_map(|uid| pods.get(uid));
        Tenure::at(at, of_address, |pod| pod.tenure)
    }

    /// The pod that has an address now: of several that are not known to have ended, the one that came last.
    pub(super) fn now<'p>(&self, ip: IpAddr, pods: &'p BTreeMap<String, Pod>) -> Option<&'p Pod> {
        let of_address = self.0.get(&ip).into_iter().flatten().filter_map(|uid| pods.get(uid));
        of_address.filter(|p| p.tenure.until.is_none()).max_by_key(|p| p.tenure.from)
    }
}

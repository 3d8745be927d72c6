//! What a lab looks like: validated, comparable, and kept in its state so that `up` knows whether anything changed.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::delay::parse_duration;
use crate::topology::fnv1a;

/// What is wrong with a setting, in the words of its writer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// The lab's name.
    #[error("`{0}` is no name for a lab: 1 to 24 of a-z, 0-9 and - are, beginning with a letter or digit")]
    Name(String),
    /// The subnet.
    #[error("`{0}` is no subnet for a lab: a /24 of private IPv4 addresses is, such as 10.77.0.0/24")]
    Subnet(String),
    /// A delayed link.
    #[error("`{0}` is no network delay: write POD:POD=DURATION[,LOSS%], such as reviews-v2:ratings-v1=1ms or …=1ms,2%")]
    NetDelay(String),
    /// A starved sidecar.
    #[error("`{0}` is no CPU share: write POD=PERCENT%, such as reviews-v1=20%, between 1% and 400%")]
    Starve(String),
    /// A version of reviews.
    #[error("`{0}` is no version of reviews: v1, v2 and v3 are, each at most once")]
    ReviewsVersion(String),
    /// A pod that the lab does not have.
    #[error("there is no pod `{name}`: this lab has {}", pods.join(", "))]
    UnknownPod {
        /// What was asked for.
        name: String,
        /// What there is.
        pods: Vec<String>,
    },
    /// The same link or pod twice.
    #[error("`{0}` is given twice")]
    Twice(String),
}

/// The name of a lab. Namespaces are called `meshlab.NAME.POD`, and a name has no dot: no lab's names are a prefix of
/// another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The network namespace of a pod (or of the `fabric` that connects them).
    pub fn namespace(&self, pod: &str) -> String {
        format!("{}{pod}", self.namespace_prefix())
    }

    /// What all namespaces of this lab begin with, and no other's.
    pub fn namespace_prefix(&self) -> String {
        format!("meshlab.{}.", self.0)
    }

    /// The one link in the machine's own namespace. Link names are short, hence the hash.
    pub fn host_link(&self) -> String {
        format!("mlab{:08x}", fnv1a(&self.0) as u32)
    }
}

impl FromStr for LabName {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let valid = letters && (1..=24).contains(&text.len()) && !text.starts_with('-');
        valid.then(|| Self(text.to_owned())).ok_or_else(|| SettingsError::Name(text.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = SettingsError;

    fn try_from(text: String) -> Result<Self, SettingsError> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The /24 of the pods; `.1` is the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet([u8; 3]);

impl Subnet {
    /// A subnet that depends on the lab's name only, so that two labs can run side by side.
    pub fn of_lab(name: &LabName) -> Self {
        if name.as_str() == "lab" {
            return Self([10, 77, 0]);
        }
        let hash = fnv1a(name.as_str());
        Self([10, 78 + (hash % 16) as u8, (hash >> 8) as u8])
    }

    /// The IPv6 address of the host with this last number, in a unique local network (RFC 4193) of the lab's own.
    pub fn host6(self, last: u8) -> Ipv6Addr {
        let [a, b, c] = self.0.map(u16::from);
        Ipv6Addr::new(0xfd77, a, b, c, 0, 0, 0, u16::from(last))
    }

    /// A virtual service IP of that family; no pod is in its network.
    pub fn vip6(self, last: u8) -> Ipv6Addr {
        let [a, b, c] = self.0.map(u16::from);
        Ipv6Addr::new(0xfd96, a, b, c, 0, 0, 0, u16::from(last))
    }

    /// The address with this last number.
    pub fn host(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], self.0[2], last)
    }

    /// The machine's own address on the pods' network.
    pub fn gateway(self) -> Ipv4Addr {
        self.host(1)
    }

    /// A virtual service IP, in Kubernetes' usual range.
    pub fn vip(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, self.0[2], last)
    }

    /// Whether this subnet and another network share an address.
    pub fn overlaps(self, network: Ipv4Addr, prefix: u8) -> bool {
        let bits = u32::from(prefix.min(24));
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        u32::from(self.host(0)) & mask == u32::from(network) & mask
    }
}

impl FromStr for Subnet {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Subnet(text.to_owned());
        let address: Ipv4Addr = text.strip_suffix("/24").ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        let [a, b, c, last] = address.octets();
        if last != 0 || !address.is_private() || (a, b) == (10, 96) {
            return Err(wrong());
        }
        Ok(Self([a, b, c]))
    }
}

impl TryFrom<String> for Subnet {
    type Error = SettingsError;

    fn try_from(text: String) -> Result<Self, SettingsError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.host(0))
    }
}

/// A link between two pods that holds every packet for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetDelay {
    /// One pod.
    pub from: String,
    /// The other one.
    pub to: String,
    /// How long, in nanoseconds, each way.
    pub one_way_ns: u64,
    /// How many of a hundred TCP packets are lost, each way.
    #[serde(default)]
    pub loss_percent: u32,
}

impl FromStr for NetDelay {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::NetDelay(text.to_owned());
        let (pods, delay) = text.split_once('=').ok_or_else(wrong)?;
        let (from, to) = pods.split_once(':').ok_or_else(wrong)?;
        let (delay, loss) = match delay.split_once(',') {
            Some((delay, loss)) => (delay, loss.strip_suffix('%').ok_or_else(wrong)?),
            None => (delay, "0"),
        };
        let delay = parse_duration(delay).map_err(|_| wrong())?;
        let loss_percent = loss.parse().map_err(|_| wrong())?;
        // A connection needs some of its packets.
        if from.is_empty() || to.is_empty() || from == to || delay > Duration::from_secs(10) || loss_percent > 50 {
            return Err(wrong());
        }
        Ok(Self { from: from.into(), to: to.into(), one_way_ns: crate::clock::duration_ns(delay), loss_percent })
    }
}

/// A sidecar that gets only a share of one CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Starve {
    /// The pod.
    pub pod: String,
    /// The share of one CPU, in percent.
    pub percent: u32,
}

impl FromStr for Starve {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Starve(text.to_owned());
        let (pod, share) = text.split_once('=').ok_or_else(wrong)?;
        let percent = share.strip_suffix('%').unwrap_or(share).parse().map_err(|_| wrong())?;
        if pod.is_empty() || !(1..=400).contains(&percent) {
            return Err(wrong());
        }
        Ok(Self { pod: pod.into(), percent })
    }
}

/// What runs in a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Bookinfo, which `load` drives.
    Bookinfo,
    /// HTTP/2 with prior knowledge; this one and those below are what `drive` drives.
    Http2,
    /// gRPC.
    Grpc,
    /// HTTP/1.1 with bodies of every kind.
    Bodies,
    /// HTTP/1.1 upgraded to WebSocket.
    Websocket,
    /// Bytes.
    Tcp,
    /// An application that does TLS itself, by the system's libssl.
    Tls,
    /// Ways through a mesh beyond the plain one: pods without sidecars, a gateway, IPv6, TPROXY. The sidecars take plain text too.
    Scenarios,
    /// Requests that are retried, hedged, given up, refused and held up.
    Trouble,
}

impl Workload {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bookinfo => "bookinfo",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Bodies => "bodies",
            Self::Websocket => "websocket",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Scenarios => "scenarios",
            Self::Trouble => "trouble",
        }
    }

    fn only_bookinfo() -> Vec<Self> {
        vec![Self::Bookinfo]
    }
}

/// Everything that defines a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Its name.
    pub name: LabName,
    /// Its addresses.
    pub subnet: Subnet,
    /// Where the sidecars send their access logs.
    pub als: SocketAddr,
    /// Mutual TLS between sidecars.
    pub mtls: bool,
    /// Whether the sidecars ask the waiting server about every request.
    pub ext_authz: bool,
    /// What runs, each once, in the order of [`Workload`].
    #[serde(default = "Workload::only_bookinfo")]
    pub workloads: Vec<Workload>,
    /// Which versions of reviews run.
    pub reviews_versions: Vec<String>,
    /// Whether reviews has a subset for each version, and its requests are shared out among them.
    #[serde(default)]
    pub subsets: bool,
    /// Whether productpage asks details and reviews at once.
    pub parallel: bool,
    /// Delayed links.
    pub net_delays: Vec<NetDelay>,
    /// Starved sidecars.
    pub starved: Vec<Starve>,
    /// Envoy's worker threads.
    pub concurrency: u32,
    /// Request headers that access logs carry besides `x-request-id` and `traceparent`.
    pub als_headers: Vec<String>,
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// Where the applications log; absent for the state folder.
    pub out: Option<PathBuf>,
}

impl Settings {
    /// Refuses what contradicts itself: pods that do not exist, and things that are given twice.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), SettingsError> {
        for (i, version) in self.reviews_versions.iter().enumerate() {
            let known = ["v1", "v2", "v3"].contains(&version.as_str());
            if !known || self.reviews_versions[..i].contains(version) {
                return Err(SettingsError::ReviewsVersion(version.clone()));
            }
        }
        let pods: Vec<_> = crate::topology::Topology::of(self).pods.into_iter().map(|pod| pod.workload).collect();
        let must_exist = |name: &String| {
            let unknown = || SettingsError::UnknownPod { name: name.clone(), pods: pods.clone() };
            if pods.contains(name) { Ok(()) } else { Err(unknown()) }
        };
        for (i, link) in self.net_delays.iter().enumerate() {
            must_exist(&link.from)?;
            must_exist(&link.to)?;
            let same = |other: &NetDelay| {
                (&other.from, &other.to) == (&link.from, &link.to) || (&other.from, &other.to) == (&link.to, &link.from)
            };
            if self.net_delays[..i].iter().any(same) {
                return Err(SettingsError::Twice(format!("{}:{}", link.from, link.to)));
            }
        }
        for (i, starve) in self.starved.iter().enumerate() {
            must_exist(&starve.pod)?;
            if self.starved[..i].iter().any(|other| other.pod == starve.pod) {
                return Err(SettingsError::Twice(starve.pod.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Settings {
        let name: LabName = "lab".parse().unwrap();
        Settings {
            subnet: Subnet::of_lab(&name),
            name,
            als: "10.77.0.1:9901".parse().unwrap(),
            mtls: true,
            ext_authz: false,
            workloads: Workload::only_bookinfo(),
            reviews_versions: ["v1", "v2", "v3"].map(String::from).to_vec(),
            subsets: false,
            parallel: false,
            net_delays: Vec::new(),
            starved: Vec::new(),
            concurrency: 2,
            als_headers: Vec::new(),
            envoy: "/envoy".into(),
            out: None,
        }
    }

    #[test]
    fn names_stay_apart() {
        for bad in ["", "Lab", "a.b", "-a", "a/b", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        let [a, b]: [LabName; 2] = ["lab", "lab-2"].map(|name| name.parse().unwrap());
        assert!(!b.namespace("x").starts_with(&a.namespace_prefix()));
        assert_ne!(a.host_link(), b.host_link());
        assert!(a.host_link().len() <= 15, "the kernel's limit for link names");
        assert_ne!(Subnet::of_lab(&a), Subnet::of_lab(&b));
    }

    #[test]
    fn subnets_are_private_slash_24s() {
        assert_eq!("10.77.0.0/24".parse::<Subnet>().unwrap().gateway(), Ipv4Addr::new(10, 77, 0, 1));
        for bad in ["10.77.0.1/24", "10.77.0.0/16", "8.8.8.0/24", "10.96.1.0/24", "10.77.0.0", "x/24"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let subnet: Subnet = "10.77.0.0/24".parse().unwrap();
        let cases = [
            ("10.77.0.0", 24, true),
            ("10.77.0.128", 25, true),
            ("10.0.0.0", 8, true),
            ("10.77.1.0", 24, false),
            ("10.76.0.0", 16, false),
            ("0.0.0.0", 0, true),
        ];
        for (network, prefix, overlaps) in cases {
            assert_eq!(subnet.overlaps(network.parse().unwrap(), prefix), overlaps, "{network}/{prefix}");
        }
    }

    #[test]
    fn links_and_shares_are_read() {
        let link: NetDelay = "reviews-v1:ratings-v1=1ms".parse().unwrap();
        assert_eq!((link.from.as_str(), link.to.as_str(), link.one_way_ns), ("reviews-v1", "ratings-v1", 1_000_000));
        let lossy: NetDelay = "a:b=250us,2%".parse().unwrap();
        assert_eq!((lossy.one_way_ns, lossy.loss_percent, link.loss_percent), (250_000, 2, 0));
        assert!(["a:b=1ms,2", "a:b=1ms,51%", "a:b=1ms,", "a:b=,2%"].iter().all(|bad| bad.parse::<NetDelay>().is_err()));
        assert_eq!("a=20%".parse(), Ok(Starve { pod: "a".into(), percent: 20 }));
        assert!(["a:a=1ms", "a=1ms", "a:b", "a:b=x", "a:b=1min"].iter().all(|bad| bad.parse::<NetDelay>().is_err()));
        assert!(["a=0%", "=5%", "a", "a=401%", "a=x"].iter().all(|bad| bad.parse::<Starve>().is_err()));
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(example().check(), Ok(()));
        let mut unknown = example();
        unknown.starved = vec!["reviews-v9=5%".parse().unwrap()];
        assert!(matches!(unknown.check(), Err(SettingsError::UnknownPod { .. })));
        let mut twice = example();
        twice.net_delays =
            vec!["details-v1:ratings-v1=1ms".parse().unwrap(), "ratings-v1:details-v1=2ms".parse().unwrap()];
        assert!(matches!(twice.check(), Err(SettingsError::Twice(_))));
        let mut version = example();
        version.reviews_versions = vec!["v1".into(), "v1".into()];
        assert!(matches!(version.check(), Err(SettingsError::ReviewsVersion(_))));
    }

    #[test]
    fn settings_survive_the_state_file() {
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), example());
    }
}

//! The pods of the lab and who calls whom: Bookinfo, with the load generator as a pod of its own.

use std::net::{Ipv4Addr, SocketAddr};

use crate::hop::Destination;
use crate::settings::{Settings, Workload};

/// The port of every service, as in Bookinfo.
pub const SERVICE_PORT: u16 = 9080;
/// The Kubernetes namespace that the pods claim to be in.
pub const NAMESPACE: &str = "default";
/// The mesh's trust domain and cluster domain.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The pod that the load comes from.
pub const LOADGEN: &str = "loadgen";

/// The pod and service of the protocol workloads.
pub const ECHO: &str = "echo";

/// What Istio takes a port for, by its name's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// `http`: HTTP/1.1 upstream.
    Http,
    /// `http2` and `grpc`: HTTP/2 upstream, both between the sidecars and to the application.
    Http2,
    /// `tcp`: bytes.
    Tcp,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The number, which is also the pods'.
    pub number: u16,
    /// As in the Service's manifest.
    pub name: &'static str,
    /// What follows from the name.
    pub protocol: PortProtocol,
    /// Whether sidecars take HTTP/1.0 from applications there, as in a mesh whose istiod runs with PILOT_HTTP10=1.
    pub http10: bool,
}

impl ServicePort {
    const fn new(number: u16, name: &'static str, protocol: PortProtocol) -> Self {
        Self { number, name, protocol, http10: false }
    }

    /// The only port of Bookinfo's services.
    pub const BOOKINFO: Self = Self::new(SERVICE_PORT, "http", PortProtocol::Http);
    /// HTTP/1.1 with every kind of body; WebSocket.
    pub const HTTP: Self = Self::new(8000, "http", PortProtocol::Http);
    /// HTTP/2 with prior knowledge.
    pub const HTTP2: Self = Self::new(8001, "http2", PortProtocol::Http2);
    /// The same with a server whose flow-control windows are small.
    pub const HTTP2_NARROW: Self = Self::new(8002, "http2-narrow", PortProtocol::Http2);
    /// gRPC.
    pub const GRPC: Self = Self::new(8003, "grpc", PortProtocol::Http2);
    /// Where HTTP/1.0 is allowed.
    pub const HTTP10: Self = Self { http10: true, ..Self::new(8004, "http-10", PortProtocol::Http) };
    /// Bytes that come back.
    pub const TCP_ECHO: Self = Self::new(9000, "tcp-echo", PortProtocol::Tcp);
    /// A server that speaks first.
    pub const TCP_GREETING: Self = Self::new(9001, "tcp-greeting", PortProtocol::Tcp);
    /// An application that does TLS itself.
    pub const TCP_TLS: Self = Self::new(9443, "tcp-tls", PortProtocol::Tcp);

    /// The ports that the protocol workloads need, in order of their numbers.
    pub fn of(workloads: &[Workload]) -> Vec<Self> {
        let any = |list: &[Workload]| list.iter().any(|workload| workloads.contains(workload));
        let ports: [(Self, &[Workload]); 8] = [
            (Self::HTTP, &[Workload::Bodies, Workload::Websocket]),
            (Self::HTTP2, &[Workload::Http2]),
            (Self::HTTP2_NARROW, &[Workload::Http2]),
            (Self::GRPC, &[Workload::Grpc]),
            (Self::HTTP10, &[Workload::Bodies]),
            (Self::TCP_ECHO, &[Workload::Tcp]),
            (Self::TCP_GREETING, &[Workload::Tcp]),
            (Self::TCP_TLS, &[Workload::Tls]),
        ];
        ports.into_iter().filter(|(_, needed_by)| any(needed_by)).map(|(port, _)| port).collect()
    }
}

/// A service: a name, a virtual IP, and the pods behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Short name, such as `reviews`.
    pub name: &'static str,
    /// Virtual IP; nothing has it, the sidecars know what it means.
    pub vip: Ipv4Addr,
    /// The pods' addresses.
    pub endpoints: Vec<Ipv4Addr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// `reviews.default.svc.cluster.local`
    pub fn fqdn(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}", self.name)
    }

    /// The identity of its pods, as Bookinfo names its service accounts.
    pub fn spiffe_id(&self) -> String {
        spiffe_id(self.name)
    }

    /// How an application asks it for `path`.
    pub fn destination(&self, path: &str) -> Destination {
        Destination {
            host: format!("{}:{SERVICE_PORT}", self.name),
            address: SocketAddr::from((self.vip, SERVICE_PORT)),
            path: path.to_owned(),
        }
    }
}

fn spiffe_id(app: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/bookinfo-{app}")
}

/// A pod: one network namespace with an application and its sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The workload's name, which also names the pod within the lab: `reviews-v1`.
    pub workload: String,
    /// The `app` label, which is the service's name: `reviews`.
    pub app: &'static str,
    /// The `version` label.
    pub version: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// The services that its application asks, with the path.
    pub calls: Vec<(&'static str, &'static str)>,
}

impl Pod {
    /// A name such as Kubernetes gives: the workload's, the replica set's hash and five more characters. The same lab
    /// name gives the same pod names.
    pub fn full_name(&self, lab: &str) -> String {
        // The alphabet of Kubernetes' own generated names: no vowels, no digits that look like letters.
        const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut hash = fnv1a(&format!("{lab}/{}", self.workload));
        let mut letters = |count: usize| {
            let mut take = || {
                let letter = ALPHABET[(hash % 27) as usize];
                hash /= 27;
                char::from(letter)
            };
            (0..count).map(|_| take()).collect::<String>()
        };
        format!("{}-{}-{}", self.workload, letters(8), letters(5))
    }

    /// Its identity.
    pub fn spiffe_id(&self) -> String {
        spiffe_id(self.app)
    }
}

/// 64-bit FNV-1a: stable across builds, which `DefaultHasher` does not promise.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// All pods and services of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// In order of their addresses.
    pub pods: Vec<Pod>,
    /// In order of their virtual IPs.
    pub services: Vec<Service>,
}

impl Topology {
    /// The mesh that the settings describe.
    pub fn of(settings: &Settings) -> Self {
        let mut pods = Vec::new();
        let mut add = |app: &'static str, version: &str, calls: &[(&'static str, &'static str)]| {
            let workload = if app == LOADGEN { app.to_owned() } else { format!("{app}-{version}") };
            let ip = settings.subnet.host(10 + pods.len() as u8);
            pods.push(Pod { workload, app, version: version.to_owned(), ip, calls: calls.to_vec() });
        };
        let bookinfo = settings.workloads.contains(&Workload::Bookinfo);
        let ports = ServicePort::of(&settings.workloads);
        add(LOADGEN, "v1", if bookinfo { &[("productpage", "/productpage")] } else { &[] });
        if bookinfo {
            add("productpage", "v1", &[("details", "/details/0"), ("reviews", "/reviews/0")]);
            add("details", "v1", &[]);
            for version in &settings.reviews_versions {
                // Bookinfo's v1 shows no stars.
                let calls: &[_] = if version == "v1" { &[] } else { &[("ratings", "/ratings/0")] };
                add("reviews", version, calls);
            }
            add("ratings", "v1", &[]);
        }
        if !ports.is_empty() {
            add(ECHO, "v1", &[]);
        }
        let names: &[&str] = if bookinfo { &["productpage", "details", "reviews", "ratings"] } else { &[] };
        let names = names.iter().copied().chain((!ports.is_empty()).then_some(ECHO));
        let service = |(i, name): (usize, &'static str)| Service {
            name,
            vip: settings.subnet.vip(10 + i as u8),
            endpoints: pods.iter().filter(|pod| pod.app == name).map(|pod| pod.ip).collect(),
            ports: if name == ECHO { ports.clone() } else { vec![ServicePort::BOOKINFO] },
        };
        let services = names.enumerate().map(service).collect();
        Self { pods, services }
    }

    /// The pod of a workload.
    pub fn pod(&self, workload: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.workload == workload)
    }

    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The ports on which the application of a pod serves.
    pub fn ports(&self, pod: &Pod) -> Vec<ServicePort> {
        self.service(pod.app).map_or_else(|| vec![ServicePort::BOOKINFO], |service| service.ports.clone())
    }

    /// Whom the application of a pod asks.
    pub fn destinations(&self, pod: &Pod) -> Vec<Destination> {
        pod.calls.iter().filter_map(|(name, path)| Some(self.service(name)?.destination(path))).collect()
    }
}

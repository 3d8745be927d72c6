//! The pods of the lab and who calls whom: Bookinfo, with the load generator as a pod of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::hop::Destination;
use crate::scenarios;
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

/// The version of the echo that only some routes of trouble lead to.
const OTHER_ECHO: &str = "v2";

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
    /// Where sidecars retry, hedge and give up, by the path.
    pub const TROUBLE: Self = Self::new(8020, "http-trouble", PortProtocol::Http);
    /// The same with routers that do not log attempts.
    pub const QUIET: Self = Self::new(8021, "http-quiet", PortProtocol::Http);
    /// A single connection for all requests of a sidecar.
    pub const POOL: Self = Self::new(8022, "http-pool", PortProtocol::Http);
    /// A new connection for each request of a sidecar.
    pub const FRESH: Self = Self::new(8023, "http-fresh", PortProtocol::Http);
    /// As [`Self::TROUBLE`], with HTTP/2 between the sidecars and to the application.
    pub const HTTP2_TROUBLE: Self = Self::new(8024, "http2-trouble", PortProtocol::Http2);
    /// The same with routers that do not log attempts.
    pub const HTTP2_QUIET: Self = Self::new(8025, "http2-quiet", PortProtocol::Http2);
    /// Bytes that come back.
    pub const TCP_ECHO: Self = Self::new(9000, "tcp-echo", PortProtocol::Tcp);
    /// A server that speaks first.
    pub const TCP_GREETING: Self = Self::new(9001, "tcp-greeting", PortProtocol::Tcp);
    /// An application that does TLS itself.
    pub const TCP_TLS: Self = Self::new(9443, "tcp-tls", PortProtocol::Tcp);

    /// Whether sidecars have trouble there on purpose.
    pub fn is_of_trouble(self) -> bool {
        let http1 = [Self::TROUBLE, Self::QUIET, Self::POOL, Self::FRESH].contains(&self);
        http1 || [Self::HTTP2_TROUBLE, Self::HTTP2_QUIET].contains(&self)
    }

    /// Whether the routers of sidecars log attempts there.
    pub fn logs_attempts(self) -> bool {
        self.is_of_trouble() && ![Self::QUIET, Self::HTTP2_QUIET].contains(&self)
    }

    /// The ports that the protocol workloads need, in order of their numbers.
    pub fn of(workloads: &[Workload]) -> Vec<Self> {
        let any = |list: &[Workload]| list.iter().any(|workload| workloads.contains(workload));
        let ports: [(Self, &[Workload]); 14] = [
            (Self::HTTP, &[Workload::Bodies, Workload::Websocket, Workload::Scenarios]),
            (Self::HTTP2, &[Workload::Http2, Workload::Scenarios]),
            (Self::HTTP2_NARROW, &[Workload::Http2]),
            (Self::GRPC, &[Workload::Grpc]),
            (Self::HTTP10, &[Workload::Bodies]),
            (Self::TROUBLE, &[Workload::Trouble]),
            (Self::QUIET, &[Workload::Trouble]),
            (Self::POOL, &[Workload::Trouble]),
            (Self::FRESH, &[Workload::Trouble]),
            (Self::HTTP2_TROUBLE, &[Workload::Trouble]),
            (Self::HTTP2_QUIET, &[Workload::Trouble]),
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
    /// The `app` label of the pods behind it.
    pub app: &'static str,
    /// Virtual IP; nothing has it, the sidecars know what it means. None of a headless service: its clients ask the pods themselves.
    pub vip: Option<IpAddr>,
    /// The pods' addresses.
    pub endpoints: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether its pods have sidecars, so that others speak mutual TLS with them where the mesh does.
    pub meshed: bool,
}

impl Service {
    /// `reviews.default.svc.cluster.local`
    pub fn fqdn(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{TRUST_DOMAIN}", self.name)
    }

    /// The identity of its pods, as Bookinfo names its service accounts.
    pub fn spiffe_id(&self) -> String {
        spiffe_id(self.app)
    }

    /// Where an application finds it: its virtual IP, or else its first pod.
    pub fn address(&self) -> Option<IpAddr> {
        self.vip.or_else(|| self.endpoints.first().copied())
    }

    /// How an application asks it for `path`.
    pub fn destination(&self, path: &str) -> Option<Destination> {
        Some(Destination {
            host: format!("{}:{SERVICE_PORT}", self.name),
            address: SocketAddr::from((self.address()?, SERVICE_PORT)),
            path: path.to_owned(),
        })
    }
}

fn spiffe_id(app: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/bookinfo-{app}")
}

/// What stands between a pod's application and the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// A sidecar, to which REDIRECT rules lead what comes and goes.
    Sidecar,
    /// A sidecar to which inbound connections come by TPROXY, so that the application sees its clients' addresses.
    Tproxy,
    /// A gateway: it listens on a port of its own and has no application.
    Gateway,
    /// Nothing: the pod is not in the mesh.
    None,
}

/// What a pod's application serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// There is none: it only asks, if anybody does.
    Nothing,
    /// Bookinfo.
    Bookinfo,
    /// The protocol workloads.
    Protocols,
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
    /// Its other address, if it is dual stack.
    pub ip6: Option<Ipv6Addr>,
    /// Its sidecar.
    pub proxy: Proxy,
    /// Its application.
    pub serves: Serves,
    /// Whether its sidecar refuses what is not in the mesh (`outboundTrafficPolicy: REGISTRY_ONLY`).
    pub registry_only: bool,
    /// Whether it is not connected at first, as a pod that will get another one's address.
    pub spare: bool,
    /// The services that its application asks, with the path.
    pub calls: Vec<(&'static str, &'static str)>,
}

impl Pod {
    /// A pod with a sidecar.
    pub(crate) fn new(app: &'static str, workload: String, version: &str, ip: Ipv4Addr, serves: Serves) -> Self {
        let version = version.to_owned();
        let (ip6, proxy, calls) = (None, Proxy::Sidecar, Vec::new());
        Self { workload, app, version, ip, ip6, proxy, serves, registry_only: false, spare: false, calls }
    }

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

    /// Whether it is the echo that only some routes of trouble lead to.
    pub fn is_other_echo(&self) -> bool {
        self.app == ECHO && self.version == OTHER_ECHO
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
            let serves = match app {
                LOADGEN => Serves::Nothing,
                ECHO => Serves::Protocols,
                _ => Serves::Bookinfo,
            };
            pods.push(Pod { calls: calls.to_vec(), ..Pod::new(app, workload, version, ip, serves) });
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
        if settings.workloads.contains(&Workload::Trouble) {
            add(ECHO, OTHER_ECHO, &[]);
        }
        let names: &[&str] = if bookinfo { &["productpage", "details", "reviews", "ratings"] } else { &[] };
        let names = names.iter().copied().chain((!ports.is_empty()).then_some(ECHO));
        let service = |(i, name): (usize, &'static str)| Service {
            name,
            app: name,
            vip: Some(settings.subnet.vip(10 + i as u8).into()),
            endpoints: pods
                .iter()
                .filter(|pod| pod.app == name && !pod.is_other_echo())
                .map(|pod| pod.ip.into())
                .collect(),
            ports: if name == ECHO { ports.clone() } else { vec![ServicePort::BOOKINFO] },
            meshed: true,
        };
        let services = names.enumerate().map(service).collect();
        let mut topology = Self { pods, services };
        if settings.workloads.contains(&Workload::Scenarios) {
            scenarios::add(&mut topology, settings);
        }
        topology
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
        let service = self.services.iter().find(|service| service.app == pod.app);
        match service {
            Some(service) => service.ports.clone(),
            // One that is outside of the mesh serves what the echo does.
            None if pod.serves == Serves::Protocols => {
                self.service(ECHO).map_or_else(Vec::new, |echo| echo.ports.clone())
            }
            None => vec![ServicePort::BOOKINFO],
        }
    }

    /// Whom the application of a pod asks.
    pub fn destinations(&self, pod: &Pod) -> Vec<Destination> {
        pod.calls.iter().filter_map(|(name, path)| self.service(name)?.destination(path)).collect()
    }
}

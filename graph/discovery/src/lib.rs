//! Who owns an address, a socket or a network namespace: from `/proc` ([`NetnsScanner`], [`ProcessTable`]), from what the
//! proxies say of themselves ([`Owners`]), and from Kubernetes ([`kube`]).
//!
//! Processes and namespaces come and go while one looks: that something is gone is never an error here.

mod addresses;
mod cluster;
mod error;
pub mod kube;
mod listeners;
mod netns;
mod owners;
mod proc_fs;
mod processes;
mod scan;

pub use addresses::local_addresses;
pub use cluster::{ClusterDirection, ClusterName, ServiceName, service_of_cluster};
pub use error::DiscoveryError;
pub use netns::NetnsRef;
pub use owners::Owners;
pub use processes::ProcessTable;
pub use scan::{NetnsScanner, Scan, Selection, Watched, Why};

/// The user that Istio's sidecar runs as.
pub const SIDECAR_UID: u32 = 1337;

/// The ports of Istio's virtual listeners: outbound and inbound.
pub const SIDECAR_PORTS: [u16; 2] = [15001, 15006];

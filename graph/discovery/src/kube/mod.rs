//! Who owns an address, by what Kubernetes says: pods with the workloads that made them, services and nodes, kept up to date by
//! informers.
//!
//! An address is given to one pod after the other, so every lookup names an instant. Objects that come from the API server are taken
//! apart in this module, and their types stop at its door.

mod cluster;
mod holders;
mod informers;
mod objects;
#[cfg(test)]
mod samples;

pub use cluster::Cluster;
pub use informers::{Informers, KubeError, Scope, Status};
pub use objects::{Controller, Node, Pod, Service};

//! A service mesh on one machine, built so that the truth about every request is known.
//!
//! Each pod is a network namespace with a real Envoy behind Istio's nat rules and an application of Bookinfo's shape.
//! The applications write down, for every hop, when they handed bytes to the kernel and when they got them back; the
//! delays that are put into the mesh are logged with their *actual* duration. [`truth`] reads those logs, and is what
//! tests judge meshdiff by. Nothing here shares code with what it judges.

pub mod app;
pub mod authz;
pub mod bootstrap;
pub mod certs;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod delay;
pub mod error;
pub mod forward;
pub mod hop;
pub mod http;
pub mod lifecycle;
pub mod load;
pub mod logbook;
pub mod nat;
pub mod netns;
pub mod network;
pub mod process;
pub mod protocols;
pub mod ready;
pub mod scenarios;
pub mod settings;
pub mod signals;
pub mod state;
pub mod status;
pub mod topology;
pub mod truth;
pub mod tun;

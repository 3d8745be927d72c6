//! The probes on other kernels than this machine's.
//!
//! `probes-conversation` attaches the probes, holds a few [`conversation`]s over the loopback, of which everything is known, and
//! prints what the probes said in a form that is the same wherever they work: order, byte ranges, numbers relative to the
//! first byte's, recognised content. The test runs it on this machine and, as process 1 of virtual machines ([`vm`]), on
//! the kernels that `setup.sh` fetches, and compares.

pub mod churn;
pub mod conversation;
pub mod delay;
pub mod guest;
pub mod initramfs;
pub mod kernels;
pub mod network;
pub mod record;
pub mod vm;
pub mod waits;

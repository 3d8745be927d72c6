//! meshdiff and its manifests against a real API server.
//!
//! Most agents here have one recorded capture each (the one of tests/fixtures, split in two): what is tested is everything between them and
//! who asks. One program, because each has a control plane of its own.

mod agent;
mod check;
mod common;
mod manifests;
mod owners;
mod record;
mod report;
mod rights;
mod trouble;

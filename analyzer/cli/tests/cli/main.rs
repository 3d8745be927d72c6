//! The binary as its users meet it: what it says, its exit codes, and what it leaves behind.

mod breakdowns;
mod by_parts;
mod errors;
mod fixture;
mod recording;
mod store;
mod support;
mod traces;

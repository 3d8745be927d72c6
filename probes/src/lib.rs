//! The kernel side: probes on the TCP sockets of watched network namespaces, and the assembly of what they see into
//! messages.
//!
//! [`Probes`] loads the programs of `bpf/` and drains their ring buffer; it needs root (or `CAP_BPF` and
//! `CAP_PERFMON`) and a kernel that takes one of the [`TIERS`]. [`Assembler`] is pure and needs neither: it turns [`RawEvent`]s into
//! [`Message`](meshdiff_model::Message)s and [`Socket`](meshdiff_model::Socket)s.
//!
//! ```no_run
//! use meshdiff_probes::{Assembler, Collected, Limits, ProbeConfig, Probes, monotonic_now};
//!
//! let mut probes = Probes::load(&ProbeConfig::default())?;
//! probes.filter().watch(meshdiff_model::NetnsId(4_026_531_840))?;
//! let (mut assembler, mut sink) = (Assembler::new(Limits::default()), Collected::default());
//! probes.drain(|event| assembler.push(event, &mut sink));
//! assembler.tick(monotonic_now(), &mut sink);
//! assembler.finish(&mut sink);
//! # Ok::<(), meshdiff_probes::ProbeError>(())
//! ```

mod assembly;
mod cost;
mod error;
mod event;
mod existing;
mod filter;
mod loader;
mod metrics;
mod optional;
mod recognise;
mod ring;
mod tier;
mod uprobe;

pub use assembly::{Assembler, AssemblyStats, Collected, Limits, Sink};
pub use error::ProbeError;
pub use event::{Chunk, DecodeError, Extra, Frames, Identity, RawEvent, RawKind};
pub use existing::{ExistingError, OpenSocket, open_sockets};
pub use filter::NamespaceFilter;
pub use loader::{Handler, ProbeConfig, ProbeCounters, Probes, monotonic_now};
pub use metrics::DropReasons;
pub use recognise::{Recognised, recognise, recognise_hello, recognise_plaintext};
pub use ring::Drained;
pub use tier::TIERS;
pub use uprobe::{Library, LibraryError, LibraryFinder, Look, Reach};

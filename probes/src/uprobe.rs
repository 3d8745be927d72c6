//! Plaintext of applications that do TLS themselves with a shared libssl: probes on its `SSL_write`. The programs are in
//! `bpf/plaintext.h`.
//!
//! A process that is followed pays the traps of a uprobe and of a uretprobe for each call. [`Reach`] says who is.

mod find;

pub use find::{Library, LibraryFinder, Look};

use crate::error::with_causes;
use aya::Ebpf;
use aya::programs::uprobe::{UProbeError, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use find::FileId;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

const ENTER: &str = "enter_tls_write";
const EXIT: &str = "exit_tls_write";
/// OpenSSL has the second since 1.1.1.
const FUNCTIONS: [&str; 2] = ["SSL_write", "SSL_write_ex"];

/// Whose calls of a library are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the process in which it was found. Others that map the same file (containers of one image, or of one base image, do)
    /// pay nothing; whom the process forks is another process.
    Process,
    /// Everybody's who maps the file, now or later: also of processes that live for less than a second, and of processes that are in
    /// no watched namespace.
    File,
}

/// Why a library's calls are not followed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It only has the name.
    #[error("{library} has no SSL_write: it is another library of that name")]
    NotOpenSsl {
        /// As its processes know it.
        library: String,
    },
    /// The process that it was found in has ended.
    #[error("{library}: the process that used it has ended")]
    Gone {
        /// As its processes know it.
        library: String,
    },
    /// The kernel takes no such programs, or the tier has none.
    #[error("uprobes cannot be used here: {reason}")]
    NotLoaded {
        /// In the kernel's words.
        reason: String,
    },
    /// The kernel refused to place them.
    #[error("the kernel refused a probe on {function} of {library}: {reason}")]
    Refused {
        /// As its processes know it.
        library: String,
        /// Where.
        function: &'static str,
        /// In the kernel's words.
        reason: String,
    },
}

/// The probes on libraries, as far as they are placed. Dropping them removes them.
#[derive(Default)]
pub(crate) struct Uprobes {
    /// By process.
    links: BTreeMap<u32, Vec<UProbeLink>>,
    /// By file.
    files: HashMap<FileId, Vec<UProbeLink>>,
    /// Whether the programs could be loaded; `None` before the first need.
    loaded: Option<Result<(), String>>,
}

impl Uprobes {
    /// Says that there is no use in the programs, and why.
    pub(crate) fn refuse(&mut self, reason: &str) {
        self.loaded = Some(Err(reason.to_owned()));
    }

    /// Loads the programs, once.
    pub(crate) fn load(&mut self, programs: &mut Ebpf) -> Result<(), LibraryError> {
        let loaded = self.loaded.get_or_insert_with(|| {
            [ENTER, EXIT].into_iter().try_for_each(|name| program(programs, name)?.load().map_err(|e| with_causes(&e)))
        });
        loaded.clone().map_err(|reason| LibraryError::NotLoaded { reason })
    }

    /// Follows a library's calls.
    pub(crate) fn attach(&mut self, programs: &mut Ebpf, library: &Library, reach: Reach) -> Result<(), LibraryError> {
        self.load(programs)?;
        if self.files.contains_key(&library.id) {
            return Ok(());
        }
        let mut links = Vec::new();
        for function in FUNCTIONS {
            // The return first: a call that is seen to begin is then also seen to end.
            for name in [EXIT, ENTER] {
                match attach(programs, name, function, (library, reach)) {
                    Ok(link) => links.push(link),
                    Err(LibraryError::NotOpenSsl { .. }) if function != FUNCTIONS[0] => break,
                    Err(error) => return Err(error),
                }
            }
        }
        match reach {
            Reach::Process => self.links.entry(library.pid).or_default().append(&mut links),
            Reach::File => self.files.entry(library.id.clone()).or_default().append(&mut links),
        }
        Ok(())
    }

    /// Lets go of a process that has ended.
    pub(crate) fn forget(&mut self, pid: u32) {
        self.links.remove(&pid);
    }

    pub(crate) fn detach(&mut self) {
        self.links.clear();
        self.files.clear();
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, String> {
    let program = programs.program_mut(name).ok_or("this kind of probes has no programs for libraries")?;
    program.try_into().map_err(|e: ProgramError| e.to_string())
}

fn attach(
    programs: &mut Ebpf,
    name: &str,
    function: &'static str,
    (library, reach): (&Library, Reach),
) -> Result<UProbeLink, LibraryError> {
    let program = program(programs, name).map_err(|reason| LibraryError::NotLoaded { reason })?;
    let gone = || LibraryError::Gone { library: library.name.clone() };
    let scope = match reach {
        Reach::Process => UProbeScope::OneProcess(NonZeroU32::new(library.pid).ok_or_else(gone)?),
        Reach::File => UProbeScope::AllProcesses,
    };
    let link = program.attach(function, &library.path, scope).and_then(|id| program.take_link(id));
    link.map_err(|error| {
        let name = library.name.clone();
        match &error {
            _ if !library.path.exists() => gone(),
            ProgramError::UProbeError(UProbeError::SymbolError { .. }) => LibraryError::NotOpenSsl { library: name },
            _ => LibraryError::Refused { library: name, function, reason: with_causes(&error) },
        }
    })
}

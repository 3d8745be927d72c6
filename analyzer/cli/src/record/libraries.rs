//! Applications that do TLS themselves: their libraries are found by the thread that looks for namespaces, and their calls followed by
//! the thread that has the probes.

use meshdiff_capture::TlsLibrary;
use meshdiff_model::NetnsId;
use meshdiff_probes::{Library, LibraryError, LibraryFinder, Probes};
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};

/// What looks.
pub(super) struct Finder {
    finder: LibraryFinder,
    found: Sender<Library>,
    gone: Receiver<Library>,
}

/// What follows.
pub(super) struct Follower {
    found: Receiver<Library>,
    gone: Sender<Library>,
}

pub(super) fn pair() -> (Finder, Follower) {
    let (to_follower, found) = channel();
    let (to_finder, gone) = channel();
    let finder = Finder { finder: LibraryFinder::new(), found: to_follower, gone };
    (finder, Follower { found, gone: to_finder })
}

impl Finder {
    /// Hands on the libraries of processes in these namespaces that were not handed on before.
    pub(super) fn look(&mut self, watched: &BTreeSet<NetnsId>) {
        for library in self.gone.try_iter() {
            self.finder.forget(&library);
        }
        for library in self.finder.look(|netns| watched.contains(&netns)) {
            // Without a follower the recording is about to end.
            let _: Result<_, _> = self.found.send(library);
        }
    }
}

impl Follower {
    /// Follows what was found since; what is to be said of it in the capture.
    pub(super) fn follow(&self, probes: &mut Probes) -> Vec<TlsLibrary> {
        self.found.try_iter().filter_map(|library| self.attach(probes, library)).collect()
    }

    fn attach(&self, probes: &mut Probes, library: Library) -> Option<TlsLibrary> {
        let reason = match probes.attach_library(&library) {
            Ok(()) => {
                tracing::info!(library = %library.name, pid = library.pid, "following what is encrypted with it");
                None
            }
            Err(error @ LibraryError::NotOpenSsl { .. }) => {
                tracing::debug!(%error, "not followed");
                return None;
            }
            Err(error @ LibraryError::Gone { .. }) => {
                tracing::debug!(%error, "not followed");
                let _: Result<_, _> = self.gone.send(library);
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "requests that are encrypted with it are told as TLS only");
                Some(error.to_string())
            }
        };
        Some(TlsLibrary { path: library.name, found_in: library.pid, followed: reason.is_none(), reason })
    }
}

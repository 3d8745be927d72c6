//! Applications that do TLS themselves: the thread that looks for namespaces finds which of their processes do, and the thread that has
//! the probes follows them.

use meshdiff_capture::TlsLibrary;
use meshdiff_model::NetnsId;
use meshdiff_probes::{Library, LibraryError, LibraryFinder, Look, Probes, Reach};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long following what was found may keep the ring from being drained; the rest waits for the next turn. One library takes some ms.
pub(super) const TURN: Duration = Duration::from_millis(10);

/// What looks.
pub(super) struct Finder {
    finder: LibraryFinder,
    found: Sender<Look>,
}

/// What follows.
pub(super) struct Follower {
    found: Receiver<Look>,
    queue: RefCell<VecDeque<Step>>,
    reach: Reach,
}

/// What is to be done about something that was found, in the order in which it was.
enum Step {
    Forget(u32),
    Attach(Library),
}

pub(super) fn pair(reach: Reach) -> (Finder, Follower) {
    // Each process takes four descriptors or more. Where no more are allowed, those beyond are said not to be followed.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _: Result<_, _> = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let (to_follower, found) = channel();
    (Finder { finder: LibraryFinder::new(), found: to_follower }, Follower { found, queue: RefCell::default(), reach })
}

impl Finder {
    /// Hands on the libraries of processes in these namespaces that were not handed on before.
    pub(super) fn look(&mut self, watched: &BTreeSet<NetnsId>) {
        let look = self.finder.look(|netns| watched.contains(&netns));
        if look != Look::default() {
            // Without a follower the recording is about to end.
            let _: Result<_, _> = self.found.send(look);
        }
    }
}

impl Follower {
    /// Follows what was found since, for about as long as `most`; what is to be said of it in the capture.
    pub(super) fn follow(&self, probes: &mut Probes, most: Duration) -> Vec<TlsLibrary> {
        let mut list = Vec::new();
        let mut queue = self.queue.borrow_mut();
        for look in self.found.try_iter() {
            queue.extend(look.ended.into_iter().map(Step::Forget).chain(look.new.into_iter().map(Step::Attach)));
        }
        within(&mut queue, most, |step| match step {
            Step::Forget(pid) => probes.forget_process(pid),
            Step::Attach(library) => add(&mut list, attach(probes, library, self.reach)),
        });
        list
    }
}

/// Does what is in a queue until the time is up; at least one step, so that there is an end to it.
fn within<T>(queue: &mut VecDeque<T>, most: Duration, mut act: impl FnMut(T)) {
    let began = Instant::now();
    while let Some(step) = queue.pop_front() {
        act(step);
        if began.elapsed() >= most {
            break;
        }
    }
}

fn attach(probes: &mut Probes, library: Library, reach: Reach) -> Option<TlsLibrary> {
    let (name, pid) = (&library.name, library.pid);
    let reason = match probes.attach_library(&library, reach) {
        Ok(()) => {
            tracing::debug!(name, pid, "following what is encrypted with it");
            None
        }
        Err(error @ (LibraryError::NotOpenSsl { .. } | LibraryError::Gone { .. })) => {
            tracing::debug!(%error, pid, "not followed");
            return None;
        }
        Err(error) => {
            tracing::warn!(%error, pid, "requests that it encrypts are told as TLS only");
            Some(error.to_string())
        }
    };
    Some(TlsLibrary { path: library.name, processes: 1, followed: reason.is_none(), reason })
}

/// Adds to a list, in which processes of which the same is to be said are counted.
pub(super) fn add(list: &mut Vec<TlsLibrary>, more: impl IntoIterator<Item = TlsLibrary>) {
    for new in more {
        let same = |l: &&mut TlsLibrary| l.path == new.path && l.reason == new.reason && l.followed == new.followed;
        match list.iter_mut().find(same) {
            Some(known) => known.processes += new.processes,
            None => list.push(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_done_bit_by_bit() {
        let mut queue: VecDeque<_> = (0..3).collect();
        let mut done = Vec::new();
        within(&mut queue, Duration::ZERO, |n| done.push(n));
        assert_eq!((&done[..], queue.len()), (&[0][..], 2));
        within(&mut queue, Duration::MAX, |n| done.push(n));
        assert_eq!((&done[..], queue.len()), (&[0, 1, 2][..], 0));
        within(&mut queue, Duration::MAX, |n| done.push(n));
        assert_eq!(done.len(), 3);
    }

    #[test]
    fn processes_of_one_library_are_one_line() {
        let library = |path: &str, reason: Option<&str>| TlsLibrary {
            path: path.to_owned(),
            processes: 1,
            followed: reason.is_none(),
            reason: reason.map(str::to_owned),
        };
        let mut list = Vec::new();
        add(&mut list, [library("/a", None), library("/b", None), library("/a", None), library("/a", Some("full"))]);
        let counted: Vec<_> = list.iter().map(|l| (l.path.as_str(), l.processes, l.followed)).collect();
        assert_eq!(counted, [("/a", 2, true), ("/b", 1, true), ("/a", 1, false)]);
    }
}

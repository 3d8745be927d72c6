//! The sockets that are remembered.

use super::socket::SocketState;
use meshdiff_model::SocketCookie;
use rustc_hash::FxHashMap;

/// Where a socket is kept. It stays there as long as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// Sockets by cookie.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    by_cookie: FxHashMap<SocketCookie, Slot>,
    kept: Vec<Option<Box<SocketState>>>,
    free: Vec<Slot>,
}

impl Sockets {
    /// Where a socket is kept, from now on if it was not known.
    #[inline]
    pub(super) fn slot_of(&mut self, cookie: SocketCookie) -> Slot {
        // Almost always it is known, and then nothing is to be made ready for another one.
        match self.by_cookie.get(&cookie) {
            Some(slot) => *slot,
            None => self.begin(cookie),
        }
    }

    #[cold]
    fn begin(&mut self, cookie: SocketCookie) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.kept.push(None);
            // One takes more than a KiB: memory ends long before the numbers do.
            Slot(self.kept.len() as u32 - 1)
        });
        self.kept[slot.0 as usize] = Some(Box::new(SocketState::new(cookie)));
        self.by_cookie.insert(cookie, slot);
        slot
    }

    /// The socket that is kept there; `None` if it is remembered no longer.
    #[inline]
    pub(super) fn get(&mut self, slot: Slot) -> Option<&mut SocketState> {
        self.kept.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    /// Tells the processor that what is remembered there is to be read soon.
    #[inline]
    pub(super) fn prefetch(&self, slot: Slot) {
        if let Some(Some(socket)) = self.kept.get(slot.0 as usize) {
            prefetch(&**socket);
        }
    }

    /// Shows all of them, in no order.
    pub(super) fn each(&mut self, show: impl FnMut(&mut SocketState)) {
        self.kept.iter_mut().flatten().map(|socket| &mut **socket).for_each(show);
    }

    /// Forgets the sockets that `keep` is false for.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut SocketState) -> bool) {
        let (kept, free) = (&mut self.kept, &mut self.free);
        self.by_cookie.retain(|_, slot| {
            let Some(place) = kept.get_mut(slot.0 as usize) else { return false };
            let keeps = place.as_deref_mut().is_some_and(&mut keep);
            if !keeps {
                *place = None;
                free.push(*slot);
            }
            keeps
        });
    }

    /// All of them, in order of cookie; none is remembered afterwards.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Box<SocketState>> {
        let Self { by_cookie, mut kept, free: _ } = std::mem::take(self);
        let mut slots: Vec<_> = by_cookie.into_iter().collect();
        slots.sort_unstable_by_key(|(cookie, _)| *cookie);
        slots.into_iter().filter_map(move |(_, slot)| kept.get_mut(slot.0 as usize)?.take())
    }

    pub(super) fn len(&self) -> usize {
        self.by_cookie.len()
    }
}

/// Tells the processor that all of `state` is to be read soon.
#[inline]
fn prefetch<T>(state: &T) {
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of::<T>()).step_by(LINE) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is within `state`; SSE is part of x86-64, and a prefetch changes nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(state).cast::<i8>().add(at)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (state, LINE);
}

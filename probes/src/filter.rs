//! The set of watched network namespaces, which the kernel side consults.

use crate::error::ProbeError;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use meshdiff_model::NetnsId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Changes which network namespaces are watched while the probes run. Clones speak of the same set.
#[derive(Clone)]
pub struct NamespaceFilter(Arc<Mutex<Kernel>>);

struct Kernel {
    watched: HashMap<MapData, u32, u8>,
    /// The C file's `generation`: sockets remember in which one they were decided upon.
    generation: Array<MapData, u32>,
    current: u32,
    /// What the kernel map holds, so that nothing needs to be read back.
    set: BTreeSet<NetnsId>,
}

impl NamespaceFilter {
    pub(crate) fn new(watched: Map, data: Map) -> Result<Self, ProbeError> {
        let watched = HashMap::try_from(watched).map_err(|source| ProbeError::Map { map: "watched", source })?;
        let generation = Array::try_from(data).map_err(|source| ProbeError::Map { map: ".data", source })?;
        Ok(Self(Arc::new(Mutex::new(Kernel { watched, generation, current: 1, set: BTreeSet::new() }))))
    }

    /// Watches a namespace: its sockets are recorded from their next event on. True if it was not watched before.
    ///
    /// # Errors
    /// If the kernel does not take it (65,536 namespaces are the limit).
    pub fn watch(&self, netns: NetnsId) -> Result<bool, ProbeError> {
        let mut kernel = self.lock();
        if kernel.set.contains(&netns) {
            return Ok(false);
        }
        kernel.watched.insert(netns.0, 1, 0).map_err(|source| ProbeError::Map { map: "watched", source })?;
        kernel.set.insert(netns);
        kernel.next_generation()?;
        Ok(true)
    }

    /// Stops watching a namespace. True if it was watched.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn unwatch(&self, netns: NetnsId) -> Result<bool, ProbeError> {
        let mut kernel = self.lock();
        if !kernel.set.contains(&netns) {
            return Ok(false);
        }
        match kernel.watched.remove(&netns.0) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(source) => return Err(ProbeError::Map { map: "watched", source }),
        }
        kernel.set.remove(&netns);
        kernel.next_generation()?;
        Ok(true)
    }

    /// The watched namespaces, in order.
    #[must_use]
    pub fn watched(&self) -> Vec<NetnsId> {
        self.lock().set.iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kernel> {
        // Every change leaves the set usable, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel {
    /// Makes every socket decide anew. The order matters: first the set, then the generation.
    fn next_generation(&mut self) -> Result<(), ProbeError> {
        self.current = self.current.wrapping_add(1);
        self.generation.set(0, self.current, 0).map_err(|source| ProbeError::Map { map: ".data", source })
    }
}

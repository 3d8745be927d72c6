//! Values that were seen, each once, in the order in which they came.

use std::collections::HashMap;
use std::hash::Hash;

/// A map with a fast function that is keyed anew in each process: what comes from outside cannot be made to collide.
pub(super) type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Values by number.
pub(super) struct Set<T> {
    list: Vec<T>,
    places: Map<T, u32>,
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self { list: Vec::new(), places: Map::default() }
    }
}

impl<T: Clone + Eq + Hash> Set<T> {
    /// The value's number, from 1.
    pub(super) fn place(&mut self, value: &T) -> u32 {
        if let Some(place) = self.places.get(value) {
            return *place;
        }
        self.list.push(value.clone());
        // A part has far fewer rows than that.
        let place = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.places.insert(value.clone(), place);
        place
    }

    /// All values: number *n* is at *n* − 1.
    pub(super) fn list(&self) -> &[T] {
        &self.list
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.places.clear();
    }
}

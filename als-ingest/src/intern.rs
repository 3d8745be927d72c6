//! Strings that repeat are kept once.

use meshdiff_model::Place;
use std::collections::HashSet;
use std::sync::Arc;

/// Strings that the fast table holds, a power of two.
const RECENT: usize = 256;

/// A bounded table of strings. When it is full it starts over: what repeats is back after one round, and what does not
/// repeat (hostile or random values) cannot grow it.
///
/// Before it stands a smaller one that finds most strings without hashing them whole: where each has one place only, strings that are made
/// to collide cost no more than the hash that they would have cost without it.
#[derive(Debug)]
pub(crate) struct Interner {
    recent: Box<[Option<Arc<str>>; RECENT]>,
    seen: HashSet<Arc<str>>,
    limit: usize,
}

impl Interner {
    pub(crate) fn new(limit: usize) -> Self {
        Self { recent: Box::new([const { None }; RECENT]), seen: HashSet::new(), limit }
    }

    /// The one copy of `text`.
    pub(crate) fn intern(&mut self, text: &str) -> Arc<str> {
        let place = place(text.as_bytes());
        match &self.recent[place] {
            Some(known) if **known == *text => Arc::clone(known),
            _ => {
                let copy = self.find(text);
                self.recent[place] = Some(Arc::clone(&copy));
                copy
            }
        }
    }

    fn find(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.seen.get(text) {
            return Arc::clone(known);
        }
        if self.seen.len() >= self.limit {
            self.seen.clear();
            // Else a string could be in both tables, and not be the same.
            self.recent.fill(None);
        }
        let new: Arc<str> = text.into();
        self.seen.insert(Arc::clone(&new));
        new
    }
}

/// Where in the fast table a string goes.
fn place(text: &[u8]) -> usize {
    (ends(text) >> (u64::BITS - RECENT.ilog2())) as usize
}

/// A string's length and its ends mixed into a number.
#[inline]
fn ends(text: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let ends = match (text.first_chunk(), text.last_chunk()) {
        (Some(&first), Some(&last)) => u64::from_le_bytes(first).rotate_left(25) ^ u64::from_le_bytes(last),
        _ => text.iter().fold(0, |all, &byte| all << 8 | u64::from(byte)),
    };
    (ends ^ text.len() as u64).wrapping_mul(ODD)
}

/// Where values are in a batch's list. Each has one place only in this table: one whose place another has taken is listed again.
#[derive(Debug)]
pub(crate) struct Places<T> {
    slots: Box<[Slot<T>]>,
    /// The batch that places are of.
    batch: u32,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    value: Option<T>,
    batch: u32,
    place: Place,
}

impl<T: Clone + PartialEq> Places<T> {
    /// A table of this many places, a power of two.
    pub(crate) fn new(slots: usize) -> Self {
        let empty = || Slot { value: None, batch: 0, place: Place::NONE };
        Self { slots: std::iter::repeat_with(empty).take(slots).collect(), batch: 1 }
    }

    /// A new batch begins: its lists are empty. Values stay known, so that they need not be made again.
    pub(crate) fn forget(&mut self) {
        self.batch = self.batch.wrapping_add(1);
        if self.batch == 0 {
            self.slots.iter_mut().for_each(|slot| slot.batch = 0);
            self.batch = 1;
        }
    }

    /// The value's place in the list, to which it is added if need be.
    #[inline]
    pub(crate) fn find(&mut self, hash: u64, value: &T, list: &mut Vec<T>) -> Place {
        let at = (hash >> 32) as usize & (self.slots.len() - 1);
        let slot = &mut self.slots[at];
        if slot.batch == self.batch && slot.value.as_ref() == Some(value) {
            return slot.place;
        }
        list.push(value.clone());
        *slot = Slot { value: Some(value.clone()), batch: self.batch, place: Place::at(list.len() - 1) };
        slot.place
    }
}

impl Places<Arc<str>> {
    /// The same of a text.
    #[inline]
    pub(crate) fn find_text(&mut self, text: &str, list: &mut Vec<Arc<str>>) -> Place {
        let at = (ends(text.as_bytes()) >> 32) as usize & (self.slots.len() - 1);
        let slot = &mut self.slots[at];
        let known = slot.value.as_ref().filter(|known| ***known == *text);
        if slot.batch == self.batch && known.is_some() {
            return slot.place;
        }
        let value = known.cloned().unwrap_or_else(|| text.into());
        list.push(Arc::clone(&value));
        *slot = Slot { value: Some(value), batch: self.batch, place: Place::at(list.len() - 1) };
        slot.place
    }
}

/// Values by the bytes that they were decoded from, for bytes that repeat on many entries.
///
/// Each key has one place only: bytes that share it replace each other and are decoded again, so nothing can make the table grow or be
/// searched for long.
#[derive(Debug)]
pub(crate) struct Memo<V> {
    places: Box<[Option<Known<V>>]>,
}

/// Bytes, and what they were decoded to.
#[derive(Clone, Debug)]
struct Known<V> {
    key: Box<[u8]>,
    value: V,
}

/// Longest key that is remembered, in bytes.
const MAX_KEY: usize = 4 << 10;

impl<V: Clone> Memo<V> {
    /// A table of this many places, a power of two.
    pub(crate) fn new(places: usize) -> Self {
        Self { places: std::iter::repeat_with(|| None).take(places).collect() }
    }

    /// The value of these bytes, if it is known.
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Option<V> {
        match &self.places[self.place(key)] {
            Some(known) if *known.key == *key => Some(known.value.clone()),
            _ => None,
        }
    }

    /// Remembers a value, in place of another if need be.
    pub(crate) fn put(&mut self, key: &[u8], value: &V) {
        if key.len() <= MAX_KEY {
            let place = self.place(key);
            self.places[place] = Some(Known { key: key.into(), value: value.clone() });
        }
    }

    fn place(&self, key: &[u8]) -> usize {
        (mix(key) >> 32) as usize & (self.places.len() - 1)
    }
}

/// Bytes mixed into a number; not safe against bytes that were chosen to collide.
#[inline]
fn mix(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = bytes.as_chunks::<8>();
    let add = |all: u64, word: u64| (all.rotate_left(5) ^ word).wrapping_mul(ODD);
    // Of long ones a third, and the end: certificates that differ do so in more than one word.
    let step = if words.len() > 8 { 3 } else { 1 };
    let some = words.iter().step_by(step).chain(words.last());
    let mixed = some.fold(bytes.len() as u64, |all, word| add(all, u64::from_le_bytes(*word)));
    rest.iter().fold(mixed, |all, &byte| add(all, u64::from(byte)))
}

/// The first `max` bytes of `text`, or a few less where that would cut a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max { text } else { &text[..text.floor_char_boundary(max)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_share_memory_and_the_table_stays_bounded() {
        let mut names = Interner::new(2);
        let a = names.intern("a");
        assert!(Arc::ptr_eq(&a, &names.intern("a")));
        for n in 0..100 {
            names.intern(&n.to_string());
            assert!(names.seen.len() <= 2);
            assert!(names.recent.iter().flatten().count() <= 2);
        }
        assert_eq!(&*names.intern("a"), "a");
    }

    #[test]
    fn strings_with_the_same_place_are_told_apart() {
        let mut names = Interner::new(1_000);
        let texts: Vec<String> = (0..900).map(|n| format!("the same {n:03} at both ends")).collect();
        let first: Vec<Arc<str>> = texts.iter().map(|text| names.intern(text)).collect();
        for (text, first) in texts.iter().zip(&first) {
            assert_eq!(**text, **first);
            assert!(Arc::ptr_eq(first, &names.intern(text)));
        }
    }

    #[test]
    fn places_are_those_of_this_batch_and_of_this_value() {
        let (mut texts, mut numbers) = (Places::new(16), Places::new(16));
        for _ in 0..3 {
            let (mut listed, mut counted) = (Vec::new(), Vec::new());
            for n in (0..100_u64).chain(0..100).chain([7, 7]) {
                let text = format!("text {n}");
                let place = texts.find_text(&text, &mut listed);
                assert_eq!(place.of(&listed).map(|t| &**t), Some(&*text));
                // All of them collide, or none.
                let place = numbers.find(if n < 50 { n << 32 } else { 0 }, &n, &mut counted);
                assert_eq!(place.of(&counted), Some(&n));
            }
            let before = listed.len();
            texts.find_text("text 7", &mut listed);
            assert_eq!(listed.len(), before, "found again");
            texts.forget();
            numbers.forget();
        }
        assert_eq!(texts.slots.len(), 16);
    }

    #[test]
    fn what_is_remembered_is_of_the_same_bytes() {
        let mut memo = Memo::new(16);
        for n in 0..1_000_u32 {
            let key = n.to_le_bytes();
            assert_eq!(memo.get(&key), None);
            memo.put(&key, &n);
            assert_eq!(memo.get(&key), Some(n));
        }
        assert_eq!(memo.places.len(), 16);
        let long = vec![7; MAX_KEY + 1];
        memo.put(&long, &0);
        assert_eq!(memo.get(&long), None, "too long to be remembered");
    }

    #[test]
    fn cuts_on_character_boundaries() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("é", 0), "");
    }
}

//! Strings that repeat are kept once.

use std::collections::HashSet;
use std::sync::Arc;

/// A bounded table of strings. When it is full it starts over: what repeats is back after one round, and what does not
/// repeat (hostile or random values) cannot grow it.
#[derive(Debug)]
pub(crate) struct Interner {
    seen: HashSet<Arc<str>>,
    limit: usize,
}

impl Interner {
    pub(crate) fn new(limit: usize) -> Self {
        Self { seen: HashSet::new(), limit }
    }

    /// The one copy of `text`.
    pub(crate) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.seen.get(text) {
            return Arc::clone(known);
        }
        if self.seen.len() >= self.limit {
            self.seen.clear();
        }
        let new: Arc<str> = text.into();
        self.seen.insert(Arc::clone(&new));
        new
    }
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
        }
        assert_eq!(&*names.intern("a"), "a");
    }

    #[test]
    fn cuts_on_character_boundaries() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("é", 0), "");
    }
}

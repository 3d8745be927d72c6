//! Short lists of instants.

use crate::SeqInstant;
use serde::{Deserialize, Serialize};
use std::ops::{Deref, DerefMut};

/// Instants of one kind, in order. Nearly every message has one or none of a kind, and those are kept where the list is: a
/// recording makes millions of messages, and memory that had to be found for each would be most of what they cost.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<SeqInstant>", into = "Vec<SeqInstant>")]
pub struct Instants(Kept);

#[derive(Clone, Default)]
enum Kept {
    #[default]
    None,
    One(SeqInstant),
    Many(Vec<SeqInstant>),
}

// No more than a `Vec` of them takes.
const _: () = assert!(size_of::<Instants>() == size_of::<Vec<SeqInstant>>());

impl Instants {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Kept::None)
    }

    /// Adds one at the end.
    #[inline]
    pub fn push(&mut self, instant: SeqInstant) {
        match &mut self.0 {
            Kept::None => self.0 = Kept::One(instant),
            Kept::One(first) => self.0 = Kept::Many(vec![*first, instant]),
            Kept::Many(list) => list.push(instant),
        }
    }

    /// Takes the last one away.
    pub fn pop(&mut self) -> Option<SeqInstant> {
        match &mut self.0 {
            Kept::None => None,
            Kept::One(only) => {
                let only = *only;
                self.0 = Kept::None;
                Some(only)
            }
            Kept::Many(list) => list.pop(),
        }
    }
}

impl Deref for Instants {
    type Target = [SeqInstant];
    #[inline]
    fn deref(&self) -> &[SeqInstant] {
        match &self.0 {
            Kept::None => &[],
            Kept::One(only) => std::slice::from_ref(only),
            Kept::Many(list) => list,
        }
    }
}

impl DerefMut for Instants {
    #[inline]
    fn deref_mut(&mut self) -> &mut [SeqInstant] {
        match &mut self.0 {
            Kept::None => &mut [],
            Kept::One(only) => std::slice::from_mut(only),
            Kept::Many(list) => list,
        }
    }
}

impl PartialEq for Instants {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl Eq for Instants {}

impl std::fmt::Debug for Instants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl From<Vec<SeqInstant>> for Instants {
    fn from(list: Vec<SeqInstant>) -> Self {
        match list.as_slice() {
            [] => Self::new(),
            [only] => Self(Kept::One(*only)),
            _ => Self(Kept::Many(list)),
        }
    }
}

impl From<Instants> for Vec<SeqInstant> {
    fn from(instants: Instants) -> Self {
        match instants.0 {
            Kept::Many(list) => list,
            _ => instants.to_vec(),
        }
    }
}

impl FromIterator<SeqInstant> for Instants {
    fn from_iter<I: IntoIterator<Item = SeqInstant>>(instants: I) -> Self {
        let mut list = Self::new();
        instants.into_iter().for_each(|instant| list.push(instant));
        list
    }
}

impl<'a> IntoIterator for &'a Instants {
    type Item = &'a SeqInstant;
    type IntoIter = std::slice::Iter<'a, SeqInstant>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Instants {
    type Item = &'a mut SeqInstant;
    type IntoIter = std::slice::IterMut<'a, SeqInstant>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MonotonicNs, SeqNo};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_what_a_vec_is(steps in proptest::collection::vec(proptest::option::weighted(0.7, any::<u32>()), 0..12)) {
            let (mut list, mut expected) = (Instants::new(), Vec::new());
            for step in steps {
                match step {
                    Some(n) => {
                        let instant = SeqInstant { seq: SeqNo(n), at: MonotonicNs(u64::from(n)) };
                        list.push(instant);
                        expected.push(instant);
                    }
                    None => prop_assert_eq!(list.pop(), expected.pop()),
                }
                prop_assert_eq!(&*list, &*expected);
                // However it came to be what it is.
                prop_assert_eq!(&list, &Instants::from(expected.clone()));
                prop_assert_eq!(&list, &expected.iter().copied().collect::<Instants>());
                prop_assert_eq!(&Vec::from(list.clone()), &expected);
                list.iter_mut().for_each(|i| i.at.0 += 1);
                expected.iter_mut().for_each(|i| i.at.0 += 1);
            }
        }
    }
}

//! Which bytes of a file are free.

use std::{collections::BTreeMap, ops::Range};

/// The free bytes of a file of a fixed size.
#[derive(Debug)]
pub(super) struct Extents {
    /// The ends of free extents by their starts. No two touch.
    free: BTreeMap<u64, u64>,
}

impl Extents {
    /// All bytes are free.
    pub(super) fn new(bytes: u64) -> Self {
        Self { free: (bytes > 0).then_some((0, bytes)).into_iter().collect() }
    }

    /// Takes so many bytes: of the first extent that has them, or else of several, in order. `None` when there are not as
    /// many.
    pub(super) fn take(&mut self, bytes: u64) -> Option<Vec<Range<u64>>> {
        let whole = self.free.iter().find(|(start, end)| *end - *start >= bytes).map(|(start, _)| *start);
        let mut taken = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let entry = match whole {
                Some(start) => self.free.remove_entry(&start),
                None => self.free.pop_first(),
            };
            let Some((start, end)) = entry else {
                self.give_back(&taken);
                return None;
            };
            let cut = end.min(start + left);
            if cut < end {
                self.free.insert(cut, end);
            }
            left -= cut - start;
            taken.push(start..cut);
        }
        Some(taken)
    }

    /// Makes extents free that were taken.
    pub(super) fn give_back(&mut self, extents: &[Range<u64>]) {
        for Range { mut start, mut end } in extents.iter().filter(|extent| !extent.is_empty()).cloned() {
            let before = self.free.range(..start).next_back().map(|(start, end)| (*start, *end));
            if let Some((from, _)) = before.filter(|(_, to)| *to == start) {
                self.free.remove(&from);
                start = from;
            }
            if let Some(to) = self.free.remove(&end) {
                end = to;
            }
            self.free.insert(start, end);
        }
    }
}

/// Cuts extents after so many of their bytes.
pub(super) fn cut(extents: &[Range<u64>], at: u64) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let (mut head, mut tail, mut left) = (Vec::new(), Vec::new(), at);
    for Range { start, end } in extents.iter().cloned() {
        let middle = end.min(start + left);
        left -= middle - start;
        head.extend(Some(start..middle).filter(|extent| !extent.is_empty()));
        tail.extend(Some(middle..end).filter(|extent| !extent.is_empty()));
    }
    (head, tail)
}

/// How many bytes they have together.
pub(super) fn length(extents: &[Range<u64>]) -> u64 {
    extents.iter().map(|extent| extent.end - extent.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Checks what is taken against a map of bytes, and that free extents do not touch.
    fn check(extents: &Extents, taken: &[Vec<Range<u64>>], size: u64) {
        let mut owners = vec![0; size as usize];
        let free = extents.free.iter().map(|(start, end)| *start..*end);
        for extent in taken.iter().flatten().cloned().chain(free) {
            assert!(!extent.is_empty());
            extent.for_each(|byte| owners[byte as usize] += 1);
        }
        assert!(owners.iter().all(|owners| *owners == 1), "{extents:?} beside {taken:?}");
        let mut ends = extents.free.values();
        assert!(extents.free.keys().skip(1).all(|start| ends.next().is_some_and(|end| end < start)), "{extents:?}");
    }

    proptest! {
        #[test]
        fn every_byte_has_one_owner(size in 1..200_u64, inputs in prop::collection::vec((any::<bool>(), 0..60_u64), 1..60)) {
            let mut extents = Extents::new(size);
            let mut taken: Vec<Vec<Range<u64>>> = Vec::new();
            for (takes, number) in inputs {
                let held: u64 = taken.iter().map(|taken| length(taken)).sum();
                if takes {
                    match extents.take(number) {
                        Some(more) => {
                            prop_assert_eq!(length(&more), number);
                            taken.push(more);
                        }
                        None => prop_assert!(held + number > size),
                    }
                } else if !taken.is_empty() {
                    let given = taken.swap_remove(number as usize % taken.len());
                    // In two parts, as halves of a run go.
                    let (head, tail) = cut(&given, number);
                    prop_assert_eq!(length(&head), number.min(length(&given)));
                    extents.give_back(&tail);
                    extents.give_back(&head);
                }
                check(&extents, &taken, size);
            }
            taken.iter().for_each(|taken| extents.give_back(taken));
            prop_assert_eq!(extents.free, BTreeMap::from([(0, size)]));
        }
    }

    #[test]
    fn what_fits_into_one_extent_is_not_scattered() {
        let mut extents = Extents::new(100);
        let taken: Vec<_> = (0..10).map(|_| extents.take(10).unwrap()).collect();
        [1, 3, 5, 6].into_iter().for_each(|index: usize| extents.give_back(&taken[index]));
        assert_eq!(extents.take(20).unwrap().as_slice(), std::slice::from_ref(&(50..70)));
        assert_eq!(extents.take(15), Some(vec![10..20, 30..35]));
        assert_eq!(extents.take(6), None);
        assert_eq!(extents.take(5).unwrap().as_slice(), std::slice::from_ref(&(35..40)));
    }
}

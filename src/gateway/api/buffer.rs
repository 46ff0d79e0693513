//! The memory of one request body, which goes back to the system with it.
//!
//! An allocator keeps what was freed for as long as it pleases, and after a rush of large bodies that is all of them. So a
//! large one gets pages of its own, of which those that nothing was written to cost nothing.

use std::io;

use memmap2::{MmapMut, MmapOptions};

/// What is larger than this gets pages of its own, in bytes.
const LARGE: usize = 1 << 20;

/// Bytes of a body in a row.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Memory,
    /// The most that it will hold, in bytes.
    max: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Pages { pages: MmapMut, len: usize },
}

impl Buffer {
    /// An empty buffer for at most `max` bytes, which are `expected` as a rule.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub(super) fn new(expected: usize, max: usize) -> io::Result<Self> {
        let memory = if expected > LARGE {
            Memory::Pages { pages: pages(expected)?, len: 0 }
        } else {
            Memory::Heap(Vec::with_capacity(expected))
        };
        Ok(Self { memory, max })
    }

    pub(super) fn len(&self) -> usize {
        match &self.memory {
            Memory::Heap(bytes) => bytes.len(),
            Memory::Pages { len, .. } => *len,
        }
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// When the system has no memory for it, or it is beyond the most that there may be.
    pub(super) fn push(&mut self, piece: &[u8]) -> io::Result<()> {
        let end = self.len() + piece.len();
        let has_room = match &self.memory {
            Memory::Heap(_) => end <= LARGE,
            Memory::Pages { pages, .. } => end <= pages.len(),
        };
        if !has_room {
            // Room for the largest one, so that it never moves again.
            let mut pages = pages(self.max.max(1))?;
            let len = self.len();
            pages.get_mut(..len).ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(self.as_ref());
            self.memory = Memory::Pages { pages, len };
        }
        match &mut self.memory {
            Memory::Heap(bytes) => bytes.extend_from_slice(piece),
            Memory::Pages { pages, len } => {
                pages.get_mut(*len..end).ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(piece);
                *len = end;
            }
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Pages { pages, len } => pages.get(..*len).unwrap_or_default(),
        }
    }
}

fn pages(bytes: usize) -> io::Result<MmapMut> {
    MmapOptions::new().len(bytes).no_reserve_swap().map_anon()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_stays_in_order_however_large_it_gets() {
        let max = 3 * LARGE;
        for expected in [0, 10, LARGE, LARGE + 1, max] {
            let mut buffer = Buffer::new(expected, max).unwrap();
            let mut wanted = Vec::new();
            for (index, size) in [0, 1, 1000, LARGE - 1001, 1, LARGE, LARGE - 1].into_iter().enumerate() {
                let piece = vec![index as u8; size];
                buffer.push(&piece).unwrap();
                wanted.extend(piece);
                assert_eq!(buffer.len(), wanted.len());
                assert!(buffer.as_ref() == wanted, "{expected} {index}");
            }
            assert!(buffer.push(&[1]).is_err() == (wanted.len() == max), "{}", wanted.len());
        }
    }
}

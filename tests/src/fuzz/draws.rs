//! Random choices that are the same for the same seed, on every machine.

use alip_plan::philox::{counter, philox4x32, stream_key};

pub(super) struct Draws {
    key: [u32; 2],
    at: u64,
}

impl Draws {
    pub(super) fn new(seed: u64) -> Draws {
        Draws { key: stream_key(seed, 0, 0), at: 0 }
    }

    pub(super) fn word(&mut self) -> u32 {
        self.at += 1;
        philox4x32(counter(self.at, 0), self.key)[0]
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.word() as usize % limit.max(1)
    }

    /// From 1 to `limit`.
    pub(super) fn size(&mut self, limit: usize) -> u64 {
        1 + self.below(limit) as u64
    }

    pub(super) fn flip(&mut self) -> bool {
        self.below(2) == 0
    }

    pub(super) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

//! Random draws about one sample.
//!
//! Nothing here has state that outlives a sample: a draw is a function of (seed, split, purpose, index) and of its rank
//! among the draws for that purpose.

use alip_plan::philox::{counter, philox4x32, stream_key, uniform};

/// What a series of draws is for. Each purpose has its own stream, so that a change in how one part of a sample is made (a
/// new raw wording) leaves the others (the picture) as they were.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Look = 0,
    Noise = 1,
    Caption = 2,
    Raw = 3,
    Swap = 4,
}

/// Streams of this data set start here, so that they meet no stream of a training step that has the same seed.
const FIRST_STREAM: u32 = 0x5348_0000; // "SH"

/// The Philox key of a purpose; `split` stands where a training step would have its step number.
pub(super) fn key(seed: u64, split: u64, purpose: Purpose) -> [u32; 2] {
    stream_key(seed, split, FIRST_STREAM + purpose as u32)
}

/// A short series of draws about one sample.
pub(super) struct Draws {
    key: [u32; 2],
    index: u64,
    block: u64,
    words: [u32; 4],
    left: usize,
}

impl Draws {
    pub(super) fn new(key: [u32; 2], index: u64) -> Self {
        Draws { key, index, block: 0, words: [0; 4], left: 0 }
    }

    pub(super) fn word(&mut self) -> u32 {
        if self.left == 0 {
            self.words = philox4x32(counter(self.index, self.block), self.key);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// Uniform in [0, 1).
    pub(super) fn unit(&mut self) -> f32 {
        uniform(self.word())
    }

    /// Uniform in [low, high).
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Uniform below `n` (at least 1), with a bias below n / 2^32.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_repeatable() {
        let series = |index| {
            let mut draws = Draws::new(key(7, 0, Purpose::Look), index);
            (0..4000).map(|_| draws.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(series(3), series(3));
        assert_ne!(series(3), series(4));
        for digit in 0..10 {
            // 4000 draws of probability 1/10: mean 400, standard deviation 19; five of them.
            let count = series(3).iter().filter(|&&d| d == digit).count();
            assert!((305..=495).contains(&count), "{digit} came {count} times");
        }
    }
}

//! The order of samples: a seeded bijection per epoch, and the keys of everything random about a sample.
//!
//! The bijection is a Feistel network over the smallest even number of bits that can number the samples, with Philox as its
//! round function; results beyond the last sample are fed in again (cycle walking) until they fall below it. So any position
//! of any epoch is computed on its own in constant time and without memory: resuming in the middle of epoch 31 of 15 million
//! samples costs nothing, where a Fisher-Yates shuffle would need 60 to 120 MB and a pass over the epoch. The price is that
//! not every one of the n! orders can occur; with 8 rounds no test here tells the difference (Luby and Rackoff 1988: four
//! rounds of random functions are already indistinguishable to an adversary who sees fewer than 2^(bits/4) positions; the
//! rest is margin for the small domains of tests).

use alip_plan::philox::{counter, philox4x32, stream_key};

const ROUNDS: u64 = 8;

/// Streams of random numbers of the data pipeline; different from those of a graph by their high half.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Stream {
    /// Feistel rounds.
    Shuffle = 0xDA7A_0001,
    /// Augmentation; block = position of the op.
    Augment = 0xDA7A_0002,
    /// Replacements of samples that cannot be read.
    Reserve = 0xDA7A_0003,
    /// Which raw texts of a folder are swapped, and with whose.
    Swap = 0xDA7A_0004,
}

/// The order of `len` samples under a seed.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    len: u64,
    seed: u64,
    shuffled: bool,
    half_bits: u32,
}

impl Order {
    /// The order of `len` (at least 1) samples: shuffled anew in every epoch, or as the source has them.
    pub fn new(len: u64, seed: u64, shuffled: bool) -> Order {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Order { len: len.max(1), seed, shuffled, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Number of samples in an epoch.
    pub fn epoch_len(&self) -> u64 {
        self.len
    }

    /// Epoch and source index of global sample `global`.
    pub fn at(&self, global: u64) -> (u64, u64) {
        let (epoch, position) = (global / self.len, global % self.len);
        (epoch, if self.shuffled { self.shuffle(epoch, position) } else { position })
    }

    /// The `attempt`-th stand-in for global sample `global`.
    pub fn reserve(&self, global: u64, attempt: u32) -> u64 {
        let key = stream_key(self.seed, 0, Stream::Reserve as u32);
        let bits = philox4x32(counter(global, u64::from(attempt)), key);
        below(self.len, bits)
    }

    /// Key of the augmentation in an epoch; the counter is (source index, position of the op).
    pub(crate) fn augment_key(&self, epoch: u64) -> [u32; 2] {
        stream_key(self.seed, epoch, Stream::Augment as u32)
    }

    /// Optimiser steps of `epochs` epochs with global batches of `batch`: the last one may reach into the next epoch.
    pub fn steps(&self, epochs: u64, batch: u64) -> u64 {
        (self.len * epochs).div_ceil(batch.max(1))
    }

    fn shuffle(&self, epoch: u64, position: u64) -> u64 {
        let key = stream_key(self.seed, epoch, Stream::Shuffle as u32);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = position;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..ROUNDS {
                let bits = philox4x32(counter(right, round), key);
                let mixed = (u64::from(bits[0]) << 32 | u64::from(bits[1])) & mask;
                (left, right) = (right, left ^ mixed);
            }
            value = left << self.half_bits | right;
            // The domain is less than 8 times the samples (4 times, from five samples on), so few walks are needed.
            if value < self.len {
                return value;
            }
        }
    }
}

/// A number below `n` from 64 random bits, by a multiplication; its bias is n / 2^64.
pub(crate) fn below(n: u64, bits: [u32; 4]) -> u64 {
    let word = u64::from(bits[0]) << 32 | u64::from(bits[1]);
    ((u128::from(word) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions far apart are computed alone and still make up a permutation.
    #[test]
    fn every_epoch_is_a_permutation() {
        for len in [1, 2, 3, 4, 5, 17, 1000, 4096, 6001] {
            let order = Order::new(len, 7, true);
            for epoch in 0..3 {
                let mut seen = vec![false; len as usize];
                for position in (0..len).rev() {
                    let (e, index) = order.at(epoch * len + position);
                    assert_eq!(e, epoch);
                    assert!(
                        !std::mem::replace(&mut seen[index as usize], true),
                        "{len}: {index} twice in epoch {epoch}"
                    );
                }
            }
        }
    }

    #[test]
    fn unshuffled_is_the_identity() {
        let order = Order::new(10, 7, false);
        assert_eq!((0..12).map(|g| order.at(g)).collect::<Vec<_>>()[8..], [(0, 8), (0, 9), (1, 0), (1, 1)]);
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let line =
            |seed, epoch: u64| (0..100).map(|p| Order::new(100, seed, true).at(epoch * 100 + p).1).collect::<Vec<_>>();
        assert_ne!(line(0, 0), line(1, 0));
        assert_ne!(line(0, 0), line(0, 1));
        assert_ne!(line(0, 0), line(1 << 40, 0));
    }

    /// Chi-square of where each sample lands over many seeds, and of the distance between neighbours.
    #[test]
    fn positions_are_uniform() {
        let (len, seeds) = (12u64, 6_000u64);
        let mut lands = vec![vec![0f64; len as usize]; len as usize];
        let mut gaps = vec![0f64; len as usize];
        for seed in 0..seeds {
            let order = Order::new(len, seed, true);
            let row: Vec<u64> = (0..len).map(|g| order.at(g).1).collect();
            for (position, index) in row.iter().enumerate() {
                lands[position][*index as usize] += 1.0;
            }
            gaps[((row[1] + len - row[0]) % len) as usize] += 1.0;
        }
        let chi2 =
            |counts: &[f64], expected: f64| counts.iter().map(|c| (c - expected).powi(2) / expected).sum::<f64>();
        let flat: Vec<f64> = lands.into_iter().flatten().collect();
        // (len - 1)^2 and len - 2 degrees of freedom; 6 standard deviations of a chi-square variable above its mean.
        let bound = |freedom: f64| freedom + 6.0 * (2.0 * freedom).sqrt();
        let (got, most) = (chi2(&flat, seeds as f64 / len as f64), bound(((len - 1) * (len - 1)) as f64));
        assert!(got < most, "positions: chi2 {got} > {most}");
        let (got, most) = (chi2(&gaps[1..], seeds as f64 / (len - 1) as f64), bound((len - 2) as f64));
        assert!(got < most, "neighbours: chi2 {got} > {most}");
    }

    #[test]
    fn steps_carry_on() {
        let order = Order::new(6000, 0, true);
        assert_eq!((order.steps(1, 64), order.steps(10, 64), order.steps(1, 6000)), (94, 938, 1));
    }
}

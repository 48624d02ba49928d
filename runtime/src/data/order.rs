//! The order of samples: a seeded bijection per epoch, and the keys of everything random about a sample.
//!
//! The bijection is a Feistel network over the smallest even number of bits that can number the samples, with Philox as its
//! round function; results beyond the last sample are fed in again (cycle walking) until they fall below it. So any position
//! of any epoch is computed on its own in constant time and without memory: resuming in the middle of epoch 31 of 15 million
//! samples costs nothing, where a Fisher-Yates shuffle would need 60 to 120 MB and a pass over the epoch. The price is that
//! not every one of the n! orders can occur; with 8 rounds no test here tells the difference (Luby and Rackoff 1988: four
//! rounds of random functions are already indistinguishable to an adversary who sees fewer than 2^(bits/4) positions; the
//! rest is margin for the small domains of tests).
//!
//! Batches follow one another across epochs, so one batch may hold the end of an epoch and the beginning of the next. No batch
//! holds a sample twice, and every epoch still holds each sample once:
//! - From two batches on, samples of the beginning that are in the same batch's end of the epoch before are exchanged with the
//!   first samples behind that batch which are not. Only the first `batch` places of an epoch are touched, the last ones never
//!   are, so what is exchanged follows from the plain orders of two epochs.
//! - Between one batch and two, samples keep to blocks of `len - batch + 1` places, which are shuffled in every epoch: between
//!   two places of a sample there are then at least `batch - 1` others.
//! - A set smaller than a batch repeats within it; who starts a run is told ([`too_few`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alip_plan::philox::{counter, philox4x32, stream_key};

use super::mixture::{MixedOrder, Mixture};

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
    /// Where in a batch the samples of several sources stand.
    Mix = 0xDA7A_0005,
    /// Where the windows of a shard begin that is read in sequence.
    Windows = 0xDA7A_0010,
}

/// A seeded bijection of the numbers below `len`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bijection {
    len: u64,
    half_bits: u32,
}

impl Bijection {
    pub(crate) fn new(len: u64) -> Bijection {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Bijection { len: len.max(1), half_bits: bits.div_ceil(2).max(1) }
    }

    /// The image of a number under the bijection number `which` of an epoch.
    pub(crate) fn at(&self, (seed, epoch, which): (u64, u64, u64), number: u64) -> u64 {
        let key = stream_key(seed, epoch, Stream::Shuffle as u32);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = number;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..ROUNDS {
                let bits = philox4x32(counter(right, which * ROUNDS + round), key);
                let mixed = (u64::from(bits[0]) << 32 | u64::from(bits[1])) & mask;
                (left, right) = (right, left ^ mixed);
            }
            value = left << self.half_bits | right;
            // The domain is less than 8 times the numbers (4 times, from five on), so few walks are needed.
            if value < self.len {
                return value;
            }
        }
    }
}

/// The order of `len` samples under a seed, in batches.
#[derive(Clone, Debug)]
pub struct Order {
    len: u64,
    /// Samples of an epoch: all of them, unless they are mixed.
    epoch: u64,
    seed: u64,
    shuffled: bool,
    batch: u64,
    mixed: Option<Arc<MixedOrder>>,
}

impl Order {
    /// The order of `len` (at least 1) samples: shuffled anew in every epoch, or as the source has them. Batches are global,
    /// of `batch` (at least 1) samples, and begin at multiples of it.
    pub fn new(len: u64, seed: u64, shuffled: bool, batch: u64) -> Order {
        let (len, batch) = (len.max(1), batch.max(1));
        Order { len, epoch: len, seed, shuffled, batch, mixed: None }
    }

    /// The order of the samples of several sources, in batches of which each has its share.
    ///
    /// # Errors
    /// The batch has fewer samples than there are sources.
    pub fn mixed(mixture: &Mixture, seed: u64, batch: u64) -> Result<Order, String> {
        let len = mixture.parts.iter().map(|part| part.len).sum();
        let mixed = MixedOrder::new(mixture, seed, batch.max(1))?;
        Ok(Order { epoch: mixture.samples.max(1), mixed: Some(Arc::new(mixed)), ..Order::new(len, seed, true, batch) })
    }

    /// Number of samples in an epoch.
    pub fn epoch_len(&self) -> u64 {
        self.epoch
    }

    /// Number of samples that are drawn from.
    pub(super) fn source_len(&self) -> u64 {
        self.len
    }

    /// Epoch and source index of `count` samples from global sample `first` on. Of several sources each has its own epochs: how
    /// often its samples came before.
    pub fn samples(&self, first: u64, count: u64) -> Vec<(u64, u64)> {
        if let Some(mixed) = &self.mixed {
            return mixed.samples(first, count);
        }
        let mut found = Vec::with_capacity(count as usize);
        let mut exchanged: Option<(u64, HashMap<u64, u64>)> = None;
        for global in first..first + count {
            let (epoch, position) = (global / self.len, global % self.len);
            if position < self.batch && exchanged.as_ref().is_none_or(|(known, _)| *known != epoch) {
                exchanged = Some((epoch, self.exchanged(epoch)));
            }
            let moved =
                exchanged.as_ref().filter(|(known, _)| *known == epoch).and_then(|(_, moved)| moved.get(&position));
            found.push((epoch, moved.copied().unwrap_or_else(|| self.plain(epoch, position))));
        }
        found
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

    /// Optimiser steps of `epochs` epochs: the last one may reach into the next epoch.
    pub fn steps(&self, epochs: u64) -> u64 {
        (self.epoch * epochs).div_ceil(self.batch)
    }

    /// The sample at a place of an epoch, before any is exchanged.
    fn plain(&self, epoch: u64, position: u64) -> u64 {
        if !self.shuffled {
            return position;
        }
        let all = Bijection::new(self.len);
        if self.len < self.batch || self.len >= 2 * self.batch {
            return all.at((self.seed, epoch, 0), position);
        }
        let block = self.len - self.batch + 1;
        let (number, offset) = (position / block, position % block);
        let own = Bijection::new(block.min(self.len - number * block));
        all.at((self.seed, 0, 0), number * block + own.at((self.seed, epoch, number + 1), offset))
    }

    /// Places of an epoch that hold other samples than the plain order has there.
    fn exchanged(&self, epoch: u64) -> HashMap<u64, u64> {
        // Samples of the batch at the turn that belong to the epoch before.
        let end = epoch * self.len % self.batch;
        if !self.shuffled || end == 0 || self.len < 2 * self.batch {
            return HashMap::new();
        }
        let before: HashSet<u64> = (self.len - end..self.len).map(|position| self.plain(epoch - 1, position)).collect();
        let begin = self.batch - end;
        let at = |position: u64| (position, self.plain(epoch, position));
        let repeated = (0..begin).map(at).filter(|(_, sample)| before.contains(sample));
        // There are enough of them among the next `end` places: those of `before` that are not repeated are all that is in the way.
        let fresh = (begin..).map(at).filter(|(_, sample)| !before.contains(sample));
        repeated.zip(fresh).flat_map(|((here, old), (there, new))| [(here, new), (there, old)]).collect()
    }
}

/// What to tell who trains on fewer samples than a batch has; 0 are some that nobody has counted.
pub(super) fn too_few(samples: u64, batch: u64) -> Option<String> {
    (0 < samples && samples < batch).then(|| {
        format!(
            "the data have {samples} samples, fewer than a batch of {batch}: every batch holds samples more than once, and a \
             contrastive loss takes them for different ones; use a --batch of {samples} or less, or more data"
        )
    })
}

/// A number below `n` from 64 random bits, by a multiplication; its bias is n / 2^64.
pub(crate) fn below(n: u64, bits: [u32; 4]) -> u64 {
    let word = u64::from(bits[0]) << 32 | u64::from(bits[1]);
    ((u128::from(word) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(order: &Order, global: u64) -> (u64, u64) {
        order.samples(global, 1)[0]
    }

    /// Positions far apart are computed alone and still make up a permutation; of all lengths and batches, also where a batch
    /// holds more than one epoch.
    #[test]
    fn every_epoch_is_a_permutation() {
        let check = |len: u64, batch: u64| {
            let order = Order::new(len, 7, true, batch);
            for epoch in 0..5 {
                let mut seen = vec![false; len as usize];
                for position in (0..len).rev() {
                    let (e, index) = at(&order, epoch * len + position);
                    assert_eq!(e, epoch);
                    let twice = std::mem::replace(&mut seen[index as usize], true);
                    assert!(!twice, "{len} in batches of {batch}: {index} twice in epoch {epoch}");
                }
            }
        };
        (1..=24).flat_map(|len| (1..=26).map(move |batch| (len, batch))).for_each(|(len, batch)| check(len, batch));
        [(1000, 64), (4096, 64), (6001, 256)].into_iter().for_each(|(len, batch)| check(len, batch));
    }

    /// Where there are enough samples; whole batches and slices of them are the same samples.
    #[test]
    fn no_batch_holds_a_sample_twice() {
        let check = |len: u64, batch: u64, batches: u64| {
            let order = Order::new(len, 3, true, batch);
            for first in (0..batches).map(|number| number * batch) {
                let samples = order.samples(first, batch);
                let distinct: HashSet<u64> = samples.iter().map(|&(_, index)| index).collect();
                assert_eq!(distinct.len() as u64, batch, "{len} in batches of {batch}, at {first}: {samples:?}");
                let half = batch / 2;
                let slices = [order.samples(first, half), order.samples(first + half, batch - half)].concat();
                assert_eq!(slices, samples);
            }
        };
        for (len, batch) in (1..=40).flat_map(|len| (1..=len).map(move |batch| (len, batch))) {
            check(len, batch, 7 * len / batch + 2);
        }
        check(20, 8, 1000);
        check(6000, 2048, 100);
        check(6000, 4096, 50);
    }

    /// At the turn of an epoch, too, every sample is as likely as any other at every place, and epochs differ.
    #[test]
    fn turns_are_as_random_as_they_can_be() {
        for (len, batch) in [(20u64, 8u64), (12, 8)] {
            let seeds = 3_000u64;
            let mut lands = vec![0f64; (len * len) as usize];
            for seed in 0..seeds {
                let order = Order::new(len, seed, true, batch);
                for (position, (_, index)) in order.samples(len, len).into_iter().enumerate() {
                    lands[position * len as usize + index as usize] += 1.0;
                }
            }
            let expected = seeds as f64 / len as f64;
            let chi2: f64 = lands.iter().map(|count| (count - expected).powi(2) / expected).sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            assert!(chi2 < freedom + 6.0 * (2.0 * freedom).sqrt(), "{len} in batches of {batch}: chi2 {chi2}");
            let order = Order::new(len, 0, true, batch);
            assert_ne!(
                order.samples(0, len)[..].iter().map(|s| s.1).collect::<Vec<_>>(),
                order.samples(len, len).iter().map(|s| s.1).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn unshuffled_is_the_identity() {
        let order = Order::new(10, 7, false, 4);
        assert_eq!(order.samples(8, 4), [(0, 8), (0, 9), (1, 0), (1, 1)]);
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let line = |seed, epoch: u64| Order::new(100, seed, true, 10).samples(epoch * 100, 100);
        let indices = |seed, epoch| line(seed, epoch).into_iter().map(|(_, index)| index).collect::<Vec<_>>();
        assert_ne!(indices(0, 0), indices(1, 0));
        assert_ne!(indices(0, 0), indices(0, 1));
        assert_ne!(indices(0, 0), indices(1 << 40, 0));
    }

    /// Chi-square of where each sample lands over many seeds, and of the distance between neighbours.
    #[test]
    fn positions_are_uniform() {
        let (len, seeds) = (12u64, 6_000u64);
        let mut lands = vec![vec![0f64; len as usize]; len as usize];
        let mut gaps = vec![0f64; len as usize];
        for seed in 0..seeds {
            let row: Vec<u64> =
                Order::new(len, seed, true, 1).samples(0, len).into_iter().map(|(_, index)| index).collect();
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
        let steps = |epochs, batch| Order::new(6000, 0, true, batch).steps(epochs);
        assert_eq!((steps(1, 64), steps(10, 64), steps(1, 6000)), (94, 938, 1));
    }

    #[test]
    fn too_few_samples_are_told() {
        assert_eq!(too_few(8, 8), None);
        assert_eq!(
            too_few(20, 64).as_deref(),
            Some(
                "the data have 20 samples, fewer than a batch of 64: every batch holds samples more than once, and a \
                 contrastive loss takes them for different ones; use a --batch of 20 or less, or more data"
            )
        );
    }
}

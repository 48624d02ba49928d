//! Batches of several sources, each of which has its share of every batch.
//!
//! A batch of `b` samples takes the same number `c` of samples of a source as every other batch: its share of `b`, rounded so that
//! the numbers add up. So a source is read as if it were trained on alone, in batches of `c`, with an [`Order`] of its own: its
//! samples come once before any comes twice, and no batch holds one twice, whatever the other sources do. Where in a batch they
//! stand is drawn for each batch, since ranks take slices of it.

use alip_plan::philox::{counter, philox4x32, stream_key};

use super::order::{Bijection, Order, Stream};

/// Sources that are mixed, in the order of their samples' indices.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The sources.
    pub parts: Vec<Part>,
    /// Samples of an epoch.
    pub samples: u64,
}

/// A source of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Number of its samples, at least 1.
    pub len: u64,
    /// Its share of every batch, in proportion.
    pub weight: f64,
}

impl Mixture {
    /// How many samples of each source a batch has: at least one, and their shares rounded by largest remainders, of equal ones
    /// the first.
    ///
    /// # Errors
    /// The batch has fewer samples than there are sources.
    pub fn counts(&self, batch: u64) -> Result<Vec<u64>, String> {
        if batch < self.parts.len() as u64 {
            let sources = self.parts.len();
            return Err(format!("a batch of {batch} cannot hold samples of all {sources} sources of the mixture"));
        }
        let total: f64 = self.parts.iter().map(|part| part.weight).sum();
        let exact: Vec<f64> = self.parts.iter().map(|part| batch as f64 * (part.weight / total)).collect();
        let mut counts: Vec<u64> = exact.iter().map(|exact| (exact.floor() as u64).max(1)).collect();
        // How much less than its share a source has; the first of equal ones.
        let neediest = |counts: &[u64], sign: f64, may: &dyn Fn(usize) -> bool| {
            let lacks = |at: usize| sign * (exact[at] - counts[at] as f64);
            (0..counts.len()).filter(|&at| may(at)).min_by(|&a, &b| lacks(b).total_cmp(&lacks(a))).unwrap_or(0)
        };
        while counts.iter().sum::<u64>() < batch {
            let at = neediest(&counts, 1.0, &|_| true);
            counts[at] += 1;
        }
        while counts.iter().sum::<u64>() > batch {
            let at = neediest(&counts, -1.0, &|at| counts[at] > 1);
            counts[at] -= 1;
        }
        Ok(counts)
    }

    /// What to tell who trains with so large a batch: a source whose samples come more than once in it.
    pub fn too_few(&self, batch: u64) -> Option<String> {
        let counts = self.counts(batch).ok()?;
        let (part, count) = self.parts.iter().zip(counts).find(|(part, count)| part.len < *count)?;
        Some(format!(
            "`{}` has {} samples, but every batch of {batch} takes {count} of it: it holds some more than once, and a contrastive \
             loss takes them for different ones; use a smaller --batch, a smaller weight, or more data",
            part.name, part.len
        ))
    }
}

/// The order of a mixture's samples, in batches.
#[derive(Clone, Debug)]
pub(crate) struct MixedOrder {
    parts: Vec<MixedPart>,
    batch: u64,
    seed: u64,
}

#[derive(Clone, Debug)]
struct MixedPart {
    /// Index of its first sample.
    start: u64,
    /// Its samples in a batch.
    count: u64,
    order: Order,
}

impl MixedOrder {
    /// # Errors
    /// The batch is too small.
    pub(crate) fn new(mixture: &Mixture, seed: u64, batch: u64) -> Result<MixedOrder, String> {
        let counts = mixture.counts(batch)?;
        let key = stream_key(seed, 0, Stream::Mix as u32);
        let mut start = 0;
        let mut parts = Vec::with_capacity(counts.len());
        for (number, (part, count)) in (0u64..).zip(mixture.parts.iter().zip(counts)) {
            // Sources of one length are not to be shuffled alike.
            let bits = philox4x32(counter(number, 0), key);
            let own = u64::from(bits[0]) << 32 | u64::from(bits[1]);
            parts.push(MixedPart { start, count, order: Order::new(part.len, own, true, count) });
            start += part.len;
        }
        Ok(MixedOrder { parts, batch, seed })
    }

    /// Epoch within its source, and index, of `count` samples from global sample `first` on.
    pub(crate) fn samples(&self, first: u64, count: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::with_capacity(count as usize);
        for number in first / self.batch..(first + count).div_ceil(self.batch) {
            let begin = number * self.batch;
            let (from, to) = (first.max(begin) - begin, (first + count).min(begin + self.batch) - begin);
            let batch = self.batch_at(number);
            let place = Bijection::new(self.batch);
            // Apart from the epochs of any order under this seed.
            let at = |position| place.at((self.seed, number, Stream::Mix as u64), position) as usize;
            found.extend((from..to).map(|position| batch[at(position)]));
        }
        found
    }

    /// The samples of a batch, source after source.
    fn batch_at(&self, number: u64) -> Vec<(u64, u64)> {
        let of = |part: &MixedPart| {
            let samples = part.order.samples(number * part.count, part.count);
            samples.into_iter().map(|(epoch, index)| (epoch, part.start + index)).collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn mixture(parts: &[(u64, f64)]) -> Mixture {
        let part = |(number, &(len, weight)): (usize, &(u64, f64))| Part { name: format!("p{number}"), len, weight };
        Mixture { parts: parts.iter().enumerate().map(part).collect(), samples: 1 }
    }

    #[test]
    fn batches_are_shared_out() {
        let check = |weights: &[f64], batch: u64, expected: Result<&[u64], &str>| {
            let parts: Vec<_> = weights.iter().map(|&weight| (10, weight)).collect();
            let counts = mixture(&parts).counts(batch);
            assert_eq!(counts.as_deref(), expected.map_err(str::to_string).as_deref(), "{weights:?} of {batch}");
        };
        check(&[3.0, 1.0], 8, Ok(&[6, 2]));
        check(&[7.0, 3.0], 1024, Ok(&[717, 307]));
        check(&[1.0, 1.0, 1.0], 8, Ok(&[3, 3, 2]));
        check(&[1e6, 1.0, 1.0], 8, Ok(&[6, 1, 1]));
        check(&[1e308, 1e308], 4, Ok(&[2, 2]));
        check(&[1.0, 1.0, 1.0], 2, Err("a batch of 2 cannot hold samples of all 3 sources of the mixture"));
    }

    /// Every batch has the same shares and no sample twice; every source is gone through before it begins again; slices of
    /// batches are the same samples.
    #[test]
    fn every_batch_has_its_shares() {
        let mixture = mixture(&[(40, 1.0), (7, 1.0), (100, 2.0)]);
        let (batch, counts) = (13, mixture.counts(13).unwrap());
        let order = MixedOrder::new(&mixture, 5, batch).unwrap();
        let mut seen: HashMap<u64, u64> = HashMap::new();
        for number in 0..200 {
            let samples = order.samples(number * batch, batch);
            let part = |index: u64| usize::from(index >= 40) + usize::from(index >= 47);
            let mut have = vec![0; 3];
            for &(epoch, index) in &samples {
                have[part(index)] += 1;
                let times = seen.entry(index).or_default();
                assert_eq!(*times, epoch, "{index} in batch {number}");
                *times += 1;
            }
            assert_eq!(have, counts, "batch {number}");
            let distinct: HashSet<u64> = samples.iter().map(|&(_, index)| index).collect();
            assert_eq!(distinct.len(), 13, "batch {number}");
            let slices = [order.samples(number * batch, 5), order.samples(number * batch + 5, 8)].concat();
            assert_eq!(slices, samples);
        }
        assert_eq!(order.samples(6, 20)[7..], order.samples(13, 13)[..]);
    }

    /// Every source is as likely at one place of a batch as at another.
    #[test]
    fn places_in_a_batch_are_drawn() {
        let order = MixedOrder::new(&mixture(&[(50, 1.0), (50, 3.0)]), 1, 8).unwrap();
        let mut first = [0f64; 8];
        for number in 0..4_000 {
            let samples = order.samples(number * 8, 8);
            samples.iter().enumerate().filter(|(_, sample)| sample.1 < 50).for_each(|(place, _)| first[place] += 1.0);
        }
        let chi2: f64 = first.iter().map(|count| (count - 1_000.0).powi(2) / 1_000.0).sum();
        // 7 degrees of freedom; six standard deviations above the mean.
        assert!(chi2 < 7.0 + 6.0 * 14f64.sqrt(), "{chi2}: {first:?}");
    }

    #[test]
    fn a_source_too_small_for_its_share_is_told() {
        let mixture = mixture(&[(40, 1.0), (7, 1.0)]);
        assert_eq!(mixture.too_few(14), None);
        assert_eq!(
            mixture.too_few(16).as_deref(),
            Some(
                "`p1` has 7 samples, but every batch of 16 takes 8 of it: it holds some more than once, and a contrastive loss \
                 takes them for different ones; use a smaller --batch, a smaller weight, or more data"
            )
        );
    }
}

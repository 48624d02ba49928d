//! Words of a source's texts, for a vocabulary.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::data::SampleError;
use crate::data::text::{clean, split_words};

/// The words of all captions, by falling frequency, equally frequent ones in alphabetical order; at most `limit`.
///
/// # Errors
/// The first caption that cannot be read.
pub(super) fn count_words(
    samples: usize,
    captions: impl Fn(usize) -> Result<Vec<String>, SampleError> + Sync,
    limit: usize,
) -> Result<Vec<String>, SampleError> {
    let count = |mut counts: HashMap<String, u64>, index| {
        for word in captions(index)?.iter().flat_map(|caption| split_words(&clean(caption))) {
            *counts.entry(word).or_default() += 1;
        }
        Ok(counts)
    };
    let add = |mut all: HashMap<String, u64>, part: HashMap<String, u64>| {
        part.into_iter().for_each(|(word, count)| *all.entry(word).or_default() += count);
        Ok(all)
    };
    let counts = (0..samples).into_par_iter().try_fold(HashMap::new, count).try_reduce(HashMap::new, add)?;
    let mut words: Vec<(String, u64)> = counts.into_iter().collect();
    words.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    Ok(words.into_iter().map(|(word, _)| word).take(limit).collect())
}

//! Measures of a trained model: retrieval, zero-shot classification, and how well a score tells two groups apart.
//!
//! Pure functions of embeddings; nothing here knows a model, a data set or a device. Scores are computed for a bounded block
//! of queries at a time, in parallel, so memory does not grow with the product of images and texts.
//!
//! Ties are settled against the model where it retrieves (a foreign item that scores as high as the right one counts as
//! ahead of it, so a model that has collapsed to one point finds nothing), and by the lowest number where it must choose (the
//! predicted class, the list of nearest items).

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// Why a measure cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasuresError {
    /// Embeddings that are no table of `dim` columns.
    #[error("{what}: {len} numbers are no rows of {dim}")]
    Shape {
        /// Which embeddings.
        what: &'static str,
        /// How many numbers they have.
        len: usize,
        /// The length of a row.
        dim: usize,
    },
    /// A NaN or an infinity.
    #[error("{what}: row {row} holds a number that is not finite; the model has diverged, lower the learning rate")]
    NotFinite {
        /// Which embeddings.
        what: &'static str,
        /// The first such row.
        row: usize,
    },
    /// Two embeddings that do not belong together.
    #[error("{what} have {found} columns where {expected} are needed: both towers must embed into the same space")]
    Dim {
        /// Which embeddings.
        what: &'static str,
        /// Columns they have.
        found: usize,
        /// Columns of the other side.
        expected: usize,
    },
    /// A list whose length does not fit.
    #[error("{what}: {found} where {expected} are needed")]
    Count {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A number that points nowhere.
    #[error("{what} {found} does not exist, there are {count}")]
    Index {
        /// What is numbered.
        what: &'static str,
        /// The number.
        found: usize,
        /// How many there are.
        count: usize,
    },
}

/// A table of embeddings, one per row, all numbers finite.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    dim: usize,
}

impl<'a> Rows<'a> {
    /// A row-major table of `dim` columns; `what` names it in errors.
    ///
    /// # Errors
    /// When the length is no multiple of `dim`, `dim` is 0, or a number is not finite.
    pub fn new(what: &'static str, data: &'a [f32], dim: usize) -> Result<Rows<'a>, MeasuresError> {
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(MeasuresError::Shape { what, len: data.len(), dim });
        }
        match data.par_iter().position_first(|value| !value.is_finite()) {
            Some(at) => Err(MeasuresError::NotFinite { what, row: at / dim }),
            None => Ok(Rows { data, dim }),
        }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.data.len() / self.dim
    }

    /// A row; empty beyond the last.
    pub fn row(&self, index: usize) -> &'a [f32] {
        self.data.get(index * self.dim..(index + 1) * self.dim).unwrap_or(&[])
    }
}

/// Numbers in one block of scores: 4 MiB of f32, about what a core's caches hold.
const BLOCK_SCORES: usize = 1 << 20;

/// Calls `visit(query, scores of all items)` for every query, in parallel by blocks; results are in the order of queries.
fn for_each_query<R: Send>(
    queries: Rows<'_>,
    items: Rows<'_>,
    visit: impl Fn(usize, &[f32]) -> R + Sync,
) -> Result<Vec<R>, MeasuresError> {
    if queries.dim != items.dim {
        return Err(MeasuresError::Dim { what: "texts or classes", found: items.dim, expected: queries.dim });
    }
    let count = items.count();
    let per_block = (BLOCK_SCORES / count.max(1)).clamp(1, 256);
    let blocks = queries.data.par_chunks(per_block * queries.dim).enumerate().map(|(block, rows)| {
        let scores = products(rows, items.data, queries.dim);
        let first = block * per_block;
        let visited = scores.chunks_exact(count.max(1)).enumerate().map(|(row, scores)| visit(first + row, scores));
        visited.collect::<Vec<R>>()
    });
    Ok(blocks.collect::<Vec<_>>().into_iter().flatten().collect())
}

/// The products of all rows of `left` with all rows of `right`, [left rows, right rows], on the calling thread.
fn products(left: &[f32], right: &[f32], dim: usize) -> Vec<f32> {
    let (rows, columns) = (left.len() / dim, right.len() / dim);
    let mut out = vec![0f32; rows * columns];
    // SAFETY: `out` holds rows * columns numbers, `left` rows * dim and `right` columns * dim, all addressed with their
    // row-major strides within bounds; `out` aliases neither, and is not read.
    unsafe {
        gemm(
            rows,
            columns,
            dim,
            out.as_mut_ptr(),
            1,
            columns as isize,
            false,
            left.as_ptr(),
            1,
            dim as isize,
            right.as_ptr(),
            dim as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    out
}

/// The share of queries that find a right item among the first `k`, and the share that random order would give.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recall {
    /// How many items are looked at.
    pub k: usize,
    /// Share of queries, 0 to 1.
    pub recall: f64,
    /// Expected share under random order.
    pub chance: f64,
}

/// Retrieval in both directions.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Retrieval {
    /// Images as queries; any text of the image counts. Images without a text are left out.
    pub image_to_text: Vec<Recall>,
    /// Texts as queries; each belongs to one image.
    pub text_to_image: Vec<Recall>,
    /// Images that were queries.
    pub images: usize,
    /// Texts that were queries.
    pub texts: usize,
}

/// Recall at each of `ks`. Text `t` belongs to image `owner[t]`; an image may have any number of texts. Embeddings are
/// compared by inner product: make them unit vectors for cosines.
///
/// # Errors
/// When columns or counts do not fit, or an owner does not exist.
pub fn retrieval(images: Rows<'_>, texts: Rows<'_>, owner: &[usize], ks: &[usize]) -> Result<Retrieval, MeasuresError> {
    if owner.len() != texts.count() {
        return Err(MeasuresError::Count { what: "owners of texts", found: owner.len(), expected: texts.count() });
    }
    let mut own_texts = vec![Vec::new(); images.count()];
    for (text, &image) in owner.iter().enumerate() {
        let count = images.count();
        own_texts.get_mut(image).ok_or(MeasuresError::Index { what: "image", found: image, count })?.push(text);
    }
    let text_ranks = for_each_query(images, texts, |image, scores| {
        let own = &own_texts[image];
        (!own.is_empty()).then(|| (rank(scores, own), own.len()))
    })?;
    let image_ranks = for_each_query(texts, images, |text, scores| (rank(scores, &owner[text..=text]), 1))?;
    let text_ranks: Vec<_> = text_ranks.into_iter().flatten().collect();
    Ok(Retrieval {
        image_to_text: ks.iter().map(|&k| recall(k, &text_ranks, texts.count())).collect(),
        text_to_image: ks.iter().map(|&k| recall(k, &image_ranks, images.count())).collect(),
        images: text_ranks.len(),
        texts: image_ranks.len(),
    })
}

/// How many foreign items are not worse than the best of the right ones.
fn rank(scores: &[f32], right: &[usize]) -> usize {
    let best = right.iter().map(|&item| scores[item]).fold(f32::NEG_INFINITY, f32::max);
    let not_worse = scores.iter().filter(|&&score| score >= best).count();
    not_worse - right.iter().filter(|&&item| scores[item] >= best).count()
}

/// From the rank and the number of right items of each query.
fn recall(k: usize, ranks: &[(usize, usize)], items: usize) -> Recall {
    let queries = ranks.len().max(1) as f64;
    let found = ranks.iter().filter(|(rank, _)| *rank < k).count() as f64;
    let chance = ranks.iter().map(|&(_, right)| chance_of_one(k, right, items)).sum::<f64>();
    Recall { k, recall: found / queries, chance: chance / queries }
}

/// The probability that `k` items drawn from `items` without replacement hold at least one of the `right` ones.
fn chance_of_one(k: usize, right: usize, items: usize) -> f64 {
    let none = (0..k.min(items)).map(|drawn| {
        let left = (items - drawn) as f64;
        ((left - right as f64) / left).max(0.0)
    });
    1.0 - none.product::<f64>()
}

/// The `k` items with the highest inner product with `query`, best first, with their scores; the lower index first on ties.
///
/// # Errors
/// When the query has another length than the items.
pub fn nearest(query: &[f32], items: Rows<'_>, k: usize) -> Result<Vec<(usize, f32)>, MeasuresError> {
    if query.len() != items.dim {
        return Err(MeasuresError::Dim { what: "the query", found: query.len(), expected: items.dim });
    }
    let mut scored: Vec<(usize, f32)> = products(query, items.data, items.dim).into_iter().enumerate().collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(k);
    Ok(scored)
}

/// Class embeddings [classes, dim]: the mean over a class's prompts of their unit embeddings, made unit again (Radford et
/// al., *Learning transferable visual models from natural language supervision*, section 3.1.4). `class_of[p]` is the class
/// of prompt `p`; a class without prompts gets zeros.
///
/// # Errors
/// When counts do not fit or a class does not exist.
pub fn class_embeddings(prompts: Rows<'_>, class_of: &[usize], classes: usize) -> Result<Vec<f32>, MeasuresError> {
    if class_of.len() != prompts.count() {
        let found = class_of.len();
        return Err(MeasuresError::Count { what: "classes of prompts", found, expected: prompts.count() });
    }
    let mut sums = vec![0f64; classes * prompts.dim];
    for (prompt, &class) in class_of.iter().enumerate() {
        let range = class.saturating_mul(prompts.dim)..class.saturating_add(1).saturating_mul(prompts.dim);
        let sum = sums.get_mut(range).ok_or(MeasuresError::Index { what: "class", found: class, count: classes })?;
        let row = prompts.row(prompt);
        let norm = norm(row.iter().map(|&value| f64::from(value)));
        sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) / norm);
    }
    // The mean differs from the sum by a factor, which the norm takes away.
    let unit = |sum: &[f64]| {
        let norm = norm(sum.iter().copied());
        sum.iter().map(|&value| (value / norm) as f32).collect::<Vec<_>>()
    };
    Ok(sums.chunks_exact(prompts.dim).flat_map(unit).collect())
}

/// The Euclidean norm, kept from zero as the towers do.
fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt().max(1e-12)
}

/// Classification accuracy.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ZeroShot {
    /// Share of images whose class is predicted.
    pub top1: f64,
    /// Mean over classes that have images of the share within the class.
    pub mean_per_class: f64,
    /// Right predictions and images of each class.
    pub per_class: Vec<(usize, usize)>,
    /// Accuracy of a guess: one over the number of classes.
    pub chance: f64,
    /// Number of images.
    pub images: usize,
}

/// Zero-shot classification: an image belongs to the class with the highest inner product (the lowest class on ties).
///
/// # Errors
/// When columns or counts do not fit, or a label does not exist.
pub fn zero_shot(images: Rows<'_>, classes: Rows<'_>, labels: &[usize]) -> Result<ZeroShot, MeasuresError> {
    let count = classes.count();
    if labels.len() != images.count() {
        return Err(MeasuresError::Count { what: "labels", found: labels.len(), expected: images.count() });
    }
    let predicted = for_each_query(images, classes, |_, scores| {
        let first = (0, f32::NEG_INFINITY);
        scores.iter().copied().enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best }).0
    })?;
    let mut per_class = vec![(0usize, 0usize); count];
    for (&label, &predicted) in labels.iter().zip(&predicted) {
        let entry = per_class.get_mut(label).ok_or(MeasuresError::Index { what: "class", found: label, count })?;
        entry.0 += usize::from(label == predicted);
        entry.1 += 1;
    }
    let shares: Vec<f64> =
        per_class.iter().filter(|c| c.1 > 0).map(|&(right, all)| right as f64 / all as f64).collect();
    let right: usize = per_class.iter().map(|c| c.0).sum();
    Ok(ZeroShot {
        top1: right as f64 / labels.len().max(1) as f64,
        mean_per_class: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
        per_class,
        chance: 1.0 / count.max(1) as f64,
        images: labels.len(),
    })
}

/// Area under the ROC curve: the probability that a random score of `high` exceeds a random one of `low`, ties counting half
/// (Mann and Whitney's U over the number of pairs). `None` when a group is empty or a score is NaN.
pub fn auc(high: &[f32], low: &[f32]) -> Option<f64> {
    if high.is_empty() || low.is_empty() || high.iter().chain(low).any(|score| score.is_nan()) {
        return None;
    }
    let mut low = low.to_vec();
    low.sort_by(f32::total_cmp);
    // Comparisons, not total_cmp: 0 and -0 tie.
    let won = high.iter().map(|&score| {
        let below = low.partition_point(|&other| other < score);
        let not_above = low.partition_point(|&other| other <= score);
        (below + not_above) as f64 / 2.0
    });
    Some(won.sum::<f64>() / (high.len() as f64 * low.len() as f64))
}

/// Counts of values in equal bins.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Histogram {
    /// Lower end of the first bin.
    pub low: f64,
    /// Upper end of the last bin.
    pub high: f64,
    /// Count of each bin; values beyond the ends count in the end bins, and a value on a border in the bin above it.
    pub counts: Vec<usize>,
    /// Values that are not a number.
    pub nan: usize,
}

/// The histogram of `values` in `bins` equal bins from `low` to `high`.
pub fn histogram(values: &[f32], low: f64, high: f64, bins: usize) -> Histogram {
    let bins = bins.max(1);
    let mut histogram = Histogram { low, high, counts: vec![0; bins], nan: 0 };
    for &value in values {
        if value.is_nan() {
            histogram.nan += 1;
            continue;
        }
        let place = (f64::from(value) - low) / (high - low) * bins as f64;
        // `as` saturates, and takes a NaN of an empty range to the first bin.
        histogram.counts[(place as usize).min(bins - 1)] += 1;
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(data: &[f32], dim: usize) -> Rows<'_> {
        Rows::new("embeddings", data, dim).unwrap()
    }

    /// Three images on the axes; scores of text t with image i are the entries of its row.
    const AXES: [f32; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

    #[test]
    fn retrieval_by_hand() {
        #[rustfmt::skip]
        let texts = [
            0.9, 0.1, 0.0, // of image 0: right
            0.2, 0.3, 0.8, // of image 0: its image comes last
            0.1, 0.8, 0.7, // of image 1: right
            0.0, 0.9, 0.6, // of image 2: second
        ];
        let found = retrieval(rows(&AXES, 3), rows(&texts, 3), &[0, 0, 1, 2], &[1, 2, 3]).unwrap();
        let recalls = |of: &[Recall]| of.iter().map(|r| r.recall).collect::<Vec<_>>();
        let chances = |of: &[Recall]| of.iter().map(|r| r.chance).collect::<Vec<_>>();
        assert_eq!(recalls(&found.text_to_image), [0.5, 0.75, 1.0]);
        // Image 0 finds its first text; image 1 prefers the text of image 2; image 2 prefers a text of 0, then one of 1.
        assert_eq!(recalls(&found.image_to_text), [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        let close = |a: Vec<f64>, b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(chances(&found.text_to_image), [1.0 / 3.0, 2.0 / 3.0, 1.0]));
        // With two of four texts: 1/2, 5/6, 1; with one: 1/4, 1/2, 3/4.
        assert!(close(chances(&found.image_to_text), [1.0 / 3.0, 11.0 / 18.0, 5.0 / 6.0]));
        assert_eq!((found.images, found.texts), (3, 4));
    }

    #[test]
    fn a_collapsed_model_retrieves_nothing() {
        let same = [0.6, 0.8].repeat(50);
        let owner: Vec<usize> = (0..50).collect();
        let found = retrieval(rows(&same, 2), rows(&same, 2), &owner, &[1, 10]).unwrap();
        assert!(found.image_to_text.iter().chain(&found.text_to_image).all(|r| r.recall == 0.0), "{found:?}");
    }

    #[test]
    fn blocks_and_queries_do_not_matter() {
        // 700 images and 1400 texts take several blocks; text t is its image plus a little of the next axis.
        let dim = 700;
        let axis = |at: usize| (0..dim).map(move |d| f32::from(u8::from(d == at)));
        let images: Vec<f32> = (0..dim).flat_map(axis).collect();
        let texts: Vec<f32> =
            (0..2 * dim).flat_map(|t| axis(t / 2).zip(axis((t + 1) % dim)).map(|(a, b)| a + 0.5 * b)).collect();
        let owner: Vec<usize> = (0..2 * dim).map(|t| t / 2).collect();
        let found = retrieval(rows(&images, dim), rows(&texts, dim), &owner, &[1]).unwrap();
        assert_eq!((found.image_to_text[0].recall, found.text_to_image[0].recall), (1.0, 1.0));
        let wrong: Vec<usize> = (0..2 * dim).map(|t| (t / 2 + 350) % dim).collect();
        let found = retrieval(rows(&images, dim), rows(&texts, dim), &wrong, &[1]).unwrap();
        assert_eq!((found.image_to_text[0].recall, found.text_to_image[0].recall), (0.0, 0.0));
    }

    #[test]
    fn images_without_texts_are_left_out() {
        let found = retrieval(rows(&AXES, 3), rows(&AXES[..3], 3), &[0], &[1]).unwrap();
        assert_eq!((found.images, found.texts, found.image_to_text[0].recall), (1, 1, 1.0));
    }

    #[test]
    fn nearest_items_come_best_first_and_ties_by_index() {
        let items = [0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0];
        let found = nearest(&[1.0, 0.0], rows(&items, 2), 3).unwrap();
        assert_eq!(found, [(1, 1.0), (0, 0.5), (2, 0.5)]);
    }

    #[test]
    fn zero_shot_by_hand() {
        // Class 0 from two prompts of different lengths, which count alike; class 1 from one.
        let prompts = [3.0, 0.0, 0.0, 0.5, -2.0, 0.0];
        let classes = class_embeddings(rows(&prompts, 2), &[0, 0, 1], 2).unwrap();
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert!(classes.iter().zip([half, half, -1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{classes:?}");
        let images = [1.0, 0.0, 0.0, 1.0, -1.0, 0.1, 0.5, 0.0];
        let found = zero_shot(rows(&images, 2), rows(&classes, 2), &[0, 0, 0, 1]).unwrap();
        assert_eq!(found.per_class, [(2, 3), (0, 1)]);
        assert_eq!((found.top1, found.mean_per_class, found.chance), (0.5, 1.0 / 3.0, 0.5));
    }

    #[test]
    fn auc_by_hand() {
        assert_eq!(auc(&[0.9, 0.8], &[0.1, 0.2]), Some(1.0));
        assert_eq!(auc(&[0.1], &[0.9]), Some(0.0));
        assert_eq!(auc(&[1.0, 1.0], &[1.0]), Some(0.5));
        // Pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2: 3.5 of 4.
        assert_eq!(auc(&[3.0, 2.0], &[1.0, 2.0]), Some(0.875));
        assert_eq!(auc(&[0.0], &[-0.0]), Some(0.5));
        assert_eq!(auc(&[], &[1.0]), None);
        assert_eq!(auc(&[f32::NAN], &[1.0]), None);
    }

    #[test]
    fn histograms_count_every_value() {
        let found = histogram(&[0.0, 0.24, 0.25, 0.99, 1.0, 7.0, -3.0, f32::NAN], 0.0, 1.0, 4);
        assert_eq!((found.counts, found.nan), (vec![3, 1, 0, 3], 1));
    }

    #[test]
    fn mistakes_are_errors_that_say_what_is_wrong() {
        let check = |result: Result<(), MeasuresError>, message: &str| {
            assert_eq!(result.unwrap_err().to_string(), message);
        };
        let axes = rows(&AXES, 3);
        check(Rows::new("images", &[0.0; 5], 2).map(drop), "images: 5 numbers are no rows of 2");
        check(
            Rows::new("images", &[0.0, 1.0, f32::NAN, 0.0], 2).map(drop),
            "images: row 1 holds a number that is not finite; the model has diverged, lower the learning rate",
        );
        check(
            retrieval(axes, rows(&[0.0; 6], 2), &[0, 1, 2], &[1]).map(drop),
            "texts or classes have 2 columns where 3 are needed: both towers must embed into the same space",
        );
        check(retrieval(axes, axes, &[0, 1], &[1]).map(drop), "owners of texts: 2 where 3 are needed");
        check(retrieval(axes, axes, &[0, 1, 3], &[1]).map(drop), "image 3 does not exist, there are 3");
        check(class_embeddings(axes, &[0, 1, 9], 2).map(drop), "class 9 does not exist, there are 2");
        check(zero_shot(axes, axes, &[0, 1]).map(drop), "labels: 2 where 3 are needed");
    }
}

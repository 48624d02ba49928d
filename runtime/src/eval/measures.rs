//! Measures of a trained model: retrieval, zero-shot classification, and how well a score tells two groups apart.
//!
//! Pure functions of embeddings; nothing here knows a model, a data set or a device. Scores are computed in f64, for a bounded
//! block of queries at a time, in parallel, so memory does not grow with the product of images and texts. Items that are equal bit by
//! bit score alike.
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

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All of it, row by row.
    pub(super) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// A row; empty beyond the last.
    pub fn row(&self, index: usize) -> &'a [f32] {
        self.data.get(index * self.dim..(index + 1) * self.dim).unwrap_or(&[])
    }
}

/// Numbers in one block of scores: 8 MiB, about what the caches of a few cores hold.
const BLOCK_SCORES: usize = 1 << 20;

/// Items to be found by queries, in f64.
struct Items {
    data: Vec<f64>,
    dim: usize,
}

impl Items {
    fn new(rows: Rows<'_>) -> Items {
        Items { data: wide(rows.data), dim: rows.dim }
    }

    fn count(&self) -> usize {
        self.data.len() / self.dim
    }

    /// Calls `visit(query, scores of all items)` for every query, in parallel by blocks; results are in the order of queries.
    fn for_each_query<R: Send>(
        &self,
        queries: Rows<'_>,
        visit: impl Fn(usize, &[f64]) -> R + Sync,
    ) -> Result<Vec<R>, MeasuresError> {
        if queries.dim != self.dim {
            return Err(MeasuresError::Dim { what: "texts or classes", found: self.dim, expected: queries.dim });
        }
        let count = self.count();
        let per_block = (BLOCK_SCORES / count.max(1)).clamp(1, 256);
        let blocks = queries.data.par_chunks(per_block * queries.dim).enumerate().map(|(block, rows)| {
            let scores = self.scores(rows);
            let first = block * per_block;
            let visited = scores.chunks_exact(count.max(1)).enumerate().map(|(row, scores)| visit(first + row, scores));
            visited.collect::<Vec<R>>()
        });
        Ok(blocks.collect::<Vec<_>>().into_iter().flatten().collect())
    }

    /// The inner products of all rows of `queries` with all items, [queries, items], on the calling thread.
    fn scores(&self, queries: &[f32]) -> Vec<f64> {
        products(&wide(queries), &self.data, self.dim)
    }
}

/// The inner products of all rows of `left` with all rows of `right`, [left rows, right rows], on the calling thread.
pub(super) fn products(left: &[f64], right: &[f64], dim: usize) -> Vec<f64> {
    let (rows, columns) = (left.len() / dim, right.len() / dim);
    let mut out = vec![0f64; rows * columns];
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

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
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

/// How far the right items are from being found: of every query, how many foreign items are not worse than the best of the right
/// ones. 0 means that a right item comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    /// Of every image among the texts; an image without a text has none.
    pub image_to_text: Vec<Option<usize>>,
    /// Of every text among the images.
    pub text_to_image: Vec<usize>,
    /// How many texts each image has.
    own: Vec<usize>,
}

impl Ranks {
    /// Text `t` belongs to image `owner[t]`; an image may have any number of texts. Embeddings are compared by inner product: make
    /// them unit vectors for cosines.
    ///
    /// # Errors
    /// When columns or counts do not fit, or an owner does not exist.
    pub fn new(images: Rows<'_>, texts: Rows<'_>, owner: &[usize]) -> Result<Ranks, MeasuresError> {
        if owner.len() != texts.count() {
            return Err(MeasuresError::Count { what: "owners of texts", found: owner.len(), expected: texts.count() });
        }
        let mut own_texts = vec![Vec::new(); images.count()];
        for (text, &image) in owner.iter().enumerate() {
            let count = images.count();
            own_texts.get_mut(image).ok_or(MeasuresError::Index { what: "image", found: image, count })?.push(text);
        }
        let image_to_text = Items::new(texts).for_each_query(images, |image, scores| {
            let own = &own_texts[image];
            (!own.is_empty()).then(|| rank(scores, own))
        })?;
        let text_to_image =
            Items::new(images).for_each_query(texts, |text, scores| rank(scores, &owner[text..=text]))?;
        Ok(Ranks { image_to_text, text_to_image, own: own_texts.iter().map(Vec::len).collect() })
    }

    /// Recall at each of `ks`.
    pub fn recall(&self, ks: &[usize]) -> Retrieval {
        let (images, texts) = (self.image_to_text.len(), self.text_to_image.len());
        let of_images: Vec<(usize, usize)> =
            self.image_to_text.iter().zip(&self.own).filter_map(|(rank, &own)| Some(((*rank)?, own))).collect();
        let of_texts: Vec<(usize, usize)> = self.text_to_image.iter().map(|&rank| (rank, 1)).collect();
        Retrieval {
            image_to_text: ks.iter().map(|&k| recall(k, &of_images, texts)).collect(),
            text_to_image: ks.iter().map(|&k| recall(k, &of_texts, images)).collect(),
            images: of_images.len(),
            texts,
        }
    }
}

/// Recall at each of `ks`, as [`Ranks::new`] and [`Ranks::recall`].
///
/// # Errors
/// As [`Ranks::new`].
pub fn retrieval(images: Rows<'_>, texts: Rows<'_>, owner: &[usize], ks: &[usize]) -> Result<Retrieval, MeasuresError> {
    Ok(Ranks::new(images, texts, owner)?.recall(ks))
}

/// How many foreign items are not worse than the best of the right ones.
fn rank(scores: &[f64], right: &[usize]) -> usize {
    let best = right.iter().map(|&item| scores[item]).fold(f64::NEG_INFINITY, f64::max);
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
    let mut scored: Vec<(usize, f64)> = Items::new(items).scores(query).into_iter().enumerate().collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok(scored.into_iter().take(k).map(|(item, score)| (item, score as f32)).collect())
}

/// Embeddings of classes, in f64.
pub struct Classes(Items);

impl Classes {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// The inner products of an embedding with all of them; it has as many numbers as they have.
    pub fn products(&self, image: &[f32]) -> Vec<f64> {
        self.0.scores(image)
    }
}

/// Embeddings of classes: the mean over a class's prompts of their unit embeddings, made unit again (Radford et
/// al., *Learning transferable visual models from natural language supervision*, section 3.1.4). `class_of[p]` is the class
/// of prompt `p`; a class without prompts gets zeros.
///
/// # Errors
/// When counts do not fit or a class does not exist.
pub fn class_embeddings(prompts: Rows<'_>, class_of: &[usize], classes: usize) -> Result<Classes, MeasuresError> {
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
        sum.iter().map(|&value| value / norm).collect::<Vec<_>>()
    };
    Ok(Classes(Items { data: sums.chunks_exact(prompts.dim).flat_map(unit).collect(), dim: prompts.dim }))
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

/// What becomes of the logits, which are 100 times the cosines, before classes are ranked by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Logits {
    /// They are taken as they are.
    Exact,
    /// Their fractions are cut off, as the code published with ALIP does by storing them as integers: ties decide some images.
    Whole,
}

/// Every image among the classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// The class of the highest logit, the lowest of them on ties.
    pub predicted: Vec<usize>,
    /// How many classes come before the right one, by logit and on ties by number.
    pub rank: Vec<usize>,
}

/// Ranks the classes for every image.
///
/// # Errors
/// When columns or counts do not fit, or a label does not exist.
pub fn classify(
    images: Rows<'_>,
    classes: &Classes,
    labels: &[usize],
    logits: Logits,
) -> Result<Classified, MeasuresError> {
    let count = classes.count();
    if labels.len() != images.count() {
        return Err(MeasuresError::Count { what: "labels", found: labels.len(), expected: images.count() });
    }
    if let Some(&found) = labels.iter().find(|&&label| label >= count) {
        return Err(MeasuresError::Index { what: "class", found, count });
    }
    let logit = |score: f64| match logits {
        Logits::Exact => score,
        Logits::Whole => (100.0 * score).trunc(),
    };
    let found = classes.0.for_each_query(images, |image, scores| {
        let logits: Vec<f64> = scores.iter().map(|&score| logit(score)).collect();
        placed(&logits, labels[image])
    })?;
    let (predicted, rank) = found.into_iter().unzip();
    Ok(Classified { predicted, rank })
}

/// The class of the highest logit, and how many classes come before the right one.
fn placed(logits: &[f64], right: usize) -> (usize, usize) {
    let first = (0, f64::NEG_INFINITY);
    let all = || logits.iter().copied().enumerate();
    let predicted = all().fold(first, |best, next| if next.1 > best.1 { next } else { best }).0;
    let own = logits[right];
    (predicted, all().filter(|&(class, other)| other > own || (other == own && class < right)).count())
}

impl Classified {
    /// From the logits of every image, [images, classes], and the right class of each, which is one of them.
    pub(super) fn of_logits(logits: &[f64], labels: &[usize]) -> Classified {
        let rows = logits.chunks_exact(logits.len() / labels.len().max(1));
        let (predicted, rank) = rows.zip(labels).map(|(logits, &label)| placed(logits, label)).unzip();
        Classified { predicted, rank }
    }

    /// The share of images whose class is among the first `k`.
    pub fn top(&self, k: usize) -> f64 {
        self.rank.iter().filter(|&&rank| rank < k).count() as f64 / self.rank.len().max(1) as f64
    }

    /// How many images of each class were taken for each: [classes, classes], a row for each right class.
    pub fn confusion(&self, labels: &[usize], classes: usize) -> Vec<Vec<usize>> {
        let mut table = vec![vec![0; classes]; classes];
        labels.iter().zip(&self.predicted).for_each(|(&label, &predicted)| table[label][predicted] += 1);
        table
    }

    /// Accuracy, by class too.
    pub fn accuracy(&self, labels: &[usize], classes: usize) -> ZeroShot {
        let mut per_class = vec![(0usize, 0usize); classes];
        for (&label, &rank) in labels.iter().zip(&self.rank) {
            per_class[label].0 += usize::from(rank == 0);
            per_class[label].1 += 1;
        }
        let shares: Vec<f64> =
            per_class.iter().filter(|c| c.1 > 0).map(|&(right, all)| right as f64 / all as f64).collect();
        ZeroShot {
            top1: self.top(1),
            mean_per_class: shares.iter().sum::<f64>() / shares.len().max(1) as f64,
            per_class,
            chance: 1.0 / classes.max(1) as f64,
            images: labels.len(),
        }
    }
}

/// Zero-shot classification: an image belongs to the class with the highest inner product (the lowest class on ties).
///
/// # Errors
/// As [`classify`].
pub fn zero_shot(images: Rows<'_>, classes: &Classes, labels: &[usize]) -> Result<ZeroShot, MeasuresError> {
    Ok(classify(images, classes, labels, Logits::Exact)?.accuracy(labels, classes.count()))
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
mod tests;

//! Linear probes: how well a linear classifier of frozen embeddings does (Radford et al., *Learning transferable visual models from
//! natural language supervision*, section 3.2 and appendix A).
//!
//! The classifier is multinomial logistic regression with an L2 penalty on its weights, not on its biases, fitted by L-BFGS. How strong
//! the penalty is is validated on a fifth of the training images; then all of them are fitted again. It is given as `c`, in the
//! terms of scikit-learn: the objective is `c * (sum of losses) + |weights|^2 / 2`. Embeddings of a model often lie close to each other, so
//! they are seen from their mean and in units of their spread: with biases that nobody penalises and a penalty in the same units this
//! is the same objective, and far fewer steps. Sums are split by shapes, so a probe has the same bits on any number of threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use argmin::core::{CostFunction, Error, Executor, Gradient, State, TerminationReason};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::measures::{Classified, MeasuresError, Rows, ZeroShot, products, wide};

/// Powers of ten of `c` that are tried first, and how far around the best of them further ones are, halved again and again: what
/// CLIP's search ends with, eight steps to a decade.
const FIRST: [f64; 5] = [-2.0, 0.0, 2.0, 4.0, 6.0];
const STEPS: [f64; 4] = [1.0, 0.5, 0.25, 0.125];

/// One in so many training images of a class is held out to validate.
const HELD_OUT: usize = 5;

/// Pairs of steps and gradients that L-BFGS remembers: the number that scikit-learn's solver keeps.
const MEMORY: usize = 10;

/// The gradient of the mean loss at which a fit ends; a tenth of that moves no accuracy.
const TOLERANCE: f64 = 1e-6;

/// Most steps of a fit, which is that of CLIP's probes.
const MOST_STEPS: u64 = 1000;

/// Parts that sums over images are split into.
const PARTS: usize = 16;

/// A linear probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The penalty that was chosen.
    pub c: f64,
    /// All that were tried, with the share of held-out training images that were right, by rising `c`.
    pub sweep: Vec<(f64, f64)>,
    /// Training images.
    pub trained_on: usize,
    /// Accuracy on the images that are measured.
    pub accuracy: ZeroShot,
    /// The share of images whose class is among the first five.
    pub top5: f64,
    /// Whether the last fit took as many steps as it may and was not done.
    #[serde(default)]
    pub unfinished: bool,
}

/// Why there is no probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Counts or columns do not fit.
    #[error(transparent)]
    Measures(#[from] MeasuresError),
    /// Nothing to learn from.
    #[error("class {class} has no training image that could be read, of {classes} classes")]
    Untaught {
        /// The class.
        class: usize,
        /// How many there are.
        classes: usize,
    },
    /// Somebody asked to stop.
    #[error("stopped before the probe was fitted")]
    Stopped,
    /// The optimiser failed.
    #[error("the probe could not be fitted: {0}")]
    Optimiser(String),
}

/// Trains a classifier on embeddings with their classes and measures it on others; `stop` is set from outside to end it between two
/// steps.
///
/// # Errors
/// Counts or columns do not fit, a label does not exist, a class has no training image, the optimiser fails, or somebody stopped it.
pub fn probe(
    train: (Rows<'_>, &[usize]),
    test: (Rows<'_>, &[usize]),
    classes: usize,
    stop: &AtomicBool,
) -> Result<(Probe, Classified), ProbeError> {
    for (images, labels) in [train, test] {
        if labels.len() != images.count() {
            let (found, expected) = (labels.len(), images.count());
            return Err(MeasuresError::Count { what: "labels", found, expected }.into());
        }
        if let Some(&found) = labels.iter().find(|&&label| label >= classes) {
            return Err(MeasuresError::Index { what: "class", found, count: classes }.into());
        }
    }
    if train.0.dim() != test.0.dim() {
        let (found, expected) = (train.0.dim(), test.0.dim());
        return Err(MeasuresError::Dim { what: "training images", found, expected }.into());
    }
    if let Some(class) = (0..classes).find(|class| !train.1.contains(class)) {
        return Err(ProbeError::Untaught { class, classes });
    }
    let units = Units::of(train.0);
    let all = Samples::new(train, &units, classes);
    let (fitted, validated) = all.held_out();
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut start = vec![0.0; classes * all.width];
    let mut attempt = |power: f64, tried: &mut Vec<(f64, f64)>| -> Result<(), ProbeError> {
        if tried.iter().any(|(known, _)| *known == power) {
            return Ok(());
        }
        start = fitted.fit(10f64.powf(power), &start, stop)?.0;
        tried.push((power, validated.classified(&start).top(1)));
        Ok(())
    };
    // Without images to validate on there is nothing to choose by.
    let powers: &[f64] = if validated.labels.is_empty() { &[] } else { &FIRST };
    powers.iter().try_for_each(|&power| attempt(power, &mut tried))?;
    for step in STEPS {
        if let Some(best) = best(&tried) {
            [best - step, best + step].into_iter().try_for_each(|power| attempt(power, &mut tried))?;
        }
    }
    let power = best(&tried).unwrap_or(0.0);
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    let c = 10f64.powf(power);
    let (weights, is_done) = all.fit(c, &vec![0.0; classes * all.width], stop)?;
    let classified = Samples::new(test, &units, classes).classified(&weights);
    let probe = Probe {
        c,
        sweep: tried.into_iter().map(|(power, share)| (10f64.powf(power), share)).collect(),
        trained_on: train.1.len(),
        accuracy: classified.accuracy(test.1, classes),
        top5: classified.top(5),
        unfinished: !is_done,
    };
    Ok((probe, classified))
}

/// The power with the largest share; of equal ones the smallest, the strongest penalty.
fn best(tried: &[(f64, f64)]) -> Option<f64> {
    let better = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1).then(b.0.total_cmp(&a.0));
    tried.iter().max_by(better).map(|(power, _)| *power)
}

/// Where embeddings are seen from, and what is 1 there.
struct Units {
    mean: Vec<f64>,
    /// The root of the mean square of what is left of a number without its mean; 1 where all embeddings are the same.
    spread: f64,
}

impl Units {
    fn of(images: Rows<'_>) -> Units {
        let (dim, count) = (images.dim(), images.count().max(1) as f64);
        let mut mean = vec![0.0; dim];
        for row in images.data().chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(mean, &value)| *mean += f64::from(value) / count);
        }
        let columns = images.data().iter().zip(mean.iter().cycle());
        let squares: f64 = columns.map(|(&value, mean)| (f64::from(value) - mean).powi(2)).sum();
        let spread = (squares / (count * dim as f64)).sqrt();
        Units { mean, spread: if spread > 0.0 { spread } else { 1.0 } }
    }
}

/// Embeddings in these units with a last column of ones, which the biases belong to, and their classes.
struct Samples {
    data: Vec<f64>,
    width: usize,
    spread: f64,
    labels: Vec<usize>,
    classes: usize,
}

impl Samples {
    fn new((images, labels): (Rows<'_>, &[usize]), Units { mean, spread }: &Units, classes: usize) -> Samples {
        let seen = |row: &[f32]| -> Vec<f64> {
            let centred = wide(row).into_iter().zip(mean).map(|(value, mean)| (value - mean) / spread);
            centred.chain([1.0]).collect()
        };
        let data = images.data().chunks_exact(images.dim()).flat_map(seen).collect();
        Samples { data, width: images.dim() + 1, spread: *spread, labels: labels.to_vec(), classes }
    }

    /// Those that are fitted, and those that validate: of every class every fifth, or the last of fewer, but never its only one.
    fn held_out(&self) -> (Samples, Samples) {
        let mut of_class = vec![0; self.classes];
        self.labels.iter().for_each(|&label| of_class[label] += 1);
        let mut seen = vec![0; self.classes];
        let is_held_out = |label: usize| {
            seen[label] += 1;
            let (at, all) = (seen[label], of_class[label]);
            if all < HELD_OUT { all > 1 && at == all } else { at % HELD_OUT == 0 }
        };
        let held_out: Vec<bool> = self.labels.iter().copied().map(is_held_out).collect();
        let part = |of: bool| {
            let kept = || held_out.iter().enumerate().filter(move |(_, held_out)| **held_out == of).map(|(at, _)| at);
            let row = |at: usize| self.data[at * self.width..(at + 1) * self.width].iter().copied();
            Samples {
                data: kept().flat_map(row).collect(),
                labels: kept().map(|at| self.labels[at]).collect(),
                ..*self
            }
        };
        (part(false), part(true))
    }

    fn classified(&self, weights: &[f64]) -> Classified {
        Classified::of_logits(&products(&self.data, weights, self.width), &self.labels)
    }

    /// What half the sum of squares of the weights counts, beside the mean loss. A weight is as many times larger in these units as they
    /// are smaller.
    fn penalty(&self, c: f64) -> f64 {
        1.0 / (c * self.labels.len() as f64 * self.spread.powi(2))
    }

    /// The weights [classes, width] that are best for a penalty, found from others, and whether the search for them came to its end
    /// within [`MOST_STEPS`].
    fn fit(&self, c: f64, start: &[f64], stop: &AtomicBool) -> Result<(Vec<f64>, bool), ProbeError> {
        let objective = Objective { samples: self, penalty: self.penalty(c), stop, last: RefCell::default() };
        let fail = |error: Error| match stop.load(Ordering::Relaxed) {
            true => ProbeError::Stopped,
            false => ProbeError::Optimiser(error.to_string()),
        };
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY).with_tolerance_grad(TOLERANCE).map_err(fail)?;
        let run = Executor::new(objective, solver)
            .configure(|state| state.param(start.to_vec()).max_iters(MOST_STEPS))
            .run()
            .map_err(fail)?;
        let mut state = run.state;
        let is_done = state.get_termination_reason() != Some(&TerminationReason::MaxItersReached);
        let weights = state.take_best_param().ok_or_else(|| ProbeError::Optimiser("it took no step".into()))?;
        Ok((weights, is_done))
    }
}

/// The mean loss with its penalty, over the weights.
struct Objective<'a> {
    samples: &'a Samples,
    penalty: f64,
    /// Looked at whenever a solver asks.
    stop: &'a AtomicBool,
    /// The weights that were asked for last, with value and gradient: a solver asks for them one after the other.
    last: RefCell<(Vec<f64>, f64, Vec<f64>)>,
}

impl Objective<'_> {
    fn at<T>(&self, weights: &[f64], take: impl Fn(f64, &Vec<f64>) -> T) -> Result<T, Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(ProbeError::Stopped.into());
        }
        let mut last = self.last.borrow_mut();
        if last.0 != weights {
            let (value, gradient) = self.evaluated(weights);
            *last = (weights.to_vec(), value, gradient);
        }
        Ok(take(last.1, &last.2))
    }

    fn evaluated(&self, weights: &[f64]) -> (f64, Vec<f64>) {
        let Samples { width, classes, .. } = *self.samples;
        let count = self.samples.labels.len();
        let rows = count.div_ceil(PARTS).max(1);
        let parts: Vec<(f64, Vec<f64>)> = self
            .samples
            .data
            .par_chunks(rows * width)
            .zip(self.samples.labels.par_chunks(rows))
            .map(|(data, labels)| of_part(data, labels, weights, width))
            .collect();
        let (mut value, mut gradient) = (0.0, vec![0.0; classes * width]);
        for (loss, part) in parts {
            value += loss;
            gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        value /= count as f64;
        for (class, (gradient, weights)) in
            gradient.chunks_exact_mut(width).zip(weights.chunks_exact(width)).enumerate()
        {
            debug_assert!(class < classes);
            for (column, (gradient, weight)) in gradient.iter_mut().zip(weights).enumerate() {
                *gradient /= count as f64;
                if column + 1 < width {
                    *gradient += self.penalty * weight;
                    value += self.penalty * weight * weight / 2.0;
                }
            }
        }
        (value, gradient)
    }
}

/// The sum of losses of some samples, and its gradient by the weights.
fn of_part(data: &[f64], labels: &[usize], weights: &[f64], width: usize) -> (f64, Vec<f64>) {
    let mut logits = products(data, weights, width);
    let classes = weights.len() / width;
    let mut sum = 0.0;
    for (logits, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let own = logits[label] - largest;
        logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
        let all: f64 = logits.iter().sum();
        sum += all.ln() - own;
        logits.iter_mut().for_each(|share| *share /= all);
        logits[label] -= 1.0;
    }
    // The shares' columns with the data's: both are read with their rows as the inner dimension.
    let transposed = |table: &[f64], columns: usize| -> Vec<f64> {
        let rows = table.len() / columns;
        (0..columns)
            .flat_map(|column| (0..rows).map(move |row| (row, column)))
            .map(|(row, column)| table[row * columns + column])
            .collect()
    };
    (sum, products(&transposed(&logits, classes), &transposed(data, width), labels.len()))
}

impl CostFunction for Objective<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, weights: &Vec<f64>) -> Result<f64, Error> {
        self.at(weights, |value, _| value)
    }
}

impl Gradient for Objective<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, weights: &Vec<f64>) -> Result<Vec<f64>, Error> {
        self.at(weights, |_, gradient| gradient.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// Points of `classes` clouds on a circle, a row each; every seventh is labelled as the next class.
    fn clouds(count: usize, classes: usize, phase: f64) -> (Vec<f32>, Vec<usize>) {
        let point = |at: usize| {
            let class = at % classes;
            let angle =
                class as f64 / classes as f64 * std::f64::consts::TAU + 0.3 * ((at * 7919) as f64 + phase).sin();
            let radius = 1.0 + 0.2 * ((at * 104_729) as f64 + phase).cos();
            [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
        };
        let label = |at: usize| (at + usize::from(at % 7 == 3)) % classes;
        ((0..count).flat_map(point).collect(), (0..count).map(label).collect())
    }

    fn samples(data: &[f32], dim: usize, labels: &[usize], classes: usize) -> Samples {
        let rows = Rows::new("points", data, dim).unwrap();
        Samples::new((rows, labels), &Units::of(rows), classes)
    }

    /// Where points lie and how far apart they are changes nothing but the numbers in which weights are written.
    #[test]
    fn the_objective_is_that_of_plain_embeddings() {
        let (data, labels) = clouds(30, 3, 0.0);
        let moved: Vec<f32> = data.iter().map(|value| value * 0.25 + 8.0).collect();
        let c = 3.0;
        let own = samples(&moved, 2, &labels, 3);
        let (fitted, _) = own.fit(c, &[0.0; 9], &NEVER).unwrap();
        let units = Units::of(Rows::new("points", &moved, 2).unwrap());
        let plain_units = Units { mean: vec![0.0; 2], spread: 1.0 };
        let plain = Samples::new((Rows::new("points", &moved, 2).unwrap(), &labels), &plain_units, 3);
        // The same weights for plain embeddings: w x + b with x = mean + spread * seen.
        let as_plain = |row: &[f64]| {
            let weights = [row[0] / units.spread, row[1] / units.spread];
            let bias = row[2] - weights.iter().zip(&units.mean).map(|(weight, mean)| weight * mean).sum::<f64>();
            [weights[0], weights[1], bias]
        };
        let weights: Vec<f64> = fitted.chunks(3).flat_map(as_plain).collect();
        let value = |of: &Samples, weights: &[f64]| {
            Objective { samples: of, penalty: of.penalty(c), stop: &NEVER, last: RefCell::default() }.evaluated(weights)
        };
        let ((ours, _), (plainly, gradient)) = (value(&own, &fitted), value(&plain, &weights));
        assert!((ours - plainly).abs() < 1e-12, "{ours} and {plainly}");
        assert!(gradient.iter().all(|part| part.abs() < 1e-4), "{gradient:?}");
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        let (data, labels) = clouds(40, 3, 0.0);
        let samples = samples(&data, 2, &labels, 3);
        let objective = Objective { samples: &samples, penalty: 0.1, stop: &NEVER, last: RefCell::default() };
        let weights: Vec<f64> = (0..9).map(|at| f64::from(at).sin()).collect();
        let (_, gradient) = objective.evaluated(&weights);
        for at in 0..weights.len() {
            let moved = |by: f64| {
                let mut weights = weights.clone();
                weights[at] += by;
                objective.evaluated(&weights).0
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - gradient[at]).abs() < 1e-9, "weight {at}: {slope} and {}", gradient[at]);
        }
    }

    #[test]
    fn a_fit_leaves_no_gradient() {
        let (data, labels) = clouds(90, 3, 0.0);
        let samples = samples(&data, 2, &labels, 3);
        for c in [0.01, 1.0, 1e4] {
            let (weights, is_done) = samples.fit(c, &[0.0; 9], &NEVER).unwrap();
            let objective =
                Objective { samples: &samples, penalty: samples.penalty(c), stop: &NEVER, last: RefCell::default() };
            let (_, gradient) = objective.evaluated(&weights);
            let norm = gradient.iter().map(|part| part * part).sum::<f64>().sqrt();
            assert!(is_done && norm < TOLERANCE, "c {c}: a gradient of {norm}");
        }
    }

    #[test]
    fn a_probe_learns_what_can_be_told_by_a_line() {
        let ((train, labels), (test, right)) = (clouds(140, 4, 0.0), clouds(80, 4, 1.0));
        let [train, test] = [&train, &test].map(|data| Rows::new("points", data, 2).unwrap());
        let (probe, _) = super::probe((train, &labels), (test, &right), 4, &NEVER).unwrap();
        // One in seven is labelled wrongly, also among those that are measured.
        let wrong = (0..80).filter(|at| at % 7 == 3).count();
        assert_eq!(probe.accuracy.top1, (80 - wrong) as f64 / 80.0);
        assert_eq!((probe.trained_on, probe.accuracy.images), (140, 80));
        assert!(probe.sweep.len() >= FIRST.len() + STEPS.len(), "{:?}", probe.sweep);
        assert!(probe.sweep.is_sorted_by(|a, b| a.0 < b.0) && probe.sweep.iter().any(|(c, _)| *c == probe.c));
    }

    #[test]
    fn a_fifth_of_each_class_validates() {
        let labels = [0, 0, 0, 0, 0, 0, 1, 1, 2];
        let data = [1.0f32; 9];
        let samples = samples(&data, 1, &labels, 3);
        let (fitted, validated) = samples.held_out();
        assert_eq!((fitted.labels, validated.labels), (vec![0, 0, 0, 0, 0, 1, 2], vec![0, 1]));
    }

    #[test]
    fn mistakes_are_errors_that_say_what_is_wrong() {
        let rows = Rows::new("points", &[0.0, 1.0], 1).unwrap();
        let check = |train: &[usize], test: &[usize], message: &str| {
            assert_eq!(super::probe((rows, train), (rows, test), 2, &NEVER).unwrap_err().to_string(), message);
        };
        check(&[0], &[0, 1], "labels: 1 where 2 are needed");
        check(&[0, 1], &[0, 2], "class 2 does not exist, there are 2");
        check(&[0, 0], &[0, 1], "class 1 has no training image that could be read, of 2 classes");
    }

    #[test]
    fn a_fit_can_be_stopped() {
        let (data, labels) = clouds(30, 3, 0.0);
        let rows = Rows::new("points", &data, 2).unwrap();
        let found = super::probe((rows, &labels), (rows, &labels), 3, &AtomicBool::new(true));
        assert_eq!(found.unwrap_err().to_string(), "stopped before the probe was fitted");
    }
}

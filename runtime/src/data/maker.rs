//! What makes batches: several at a time, on threads that samples share.
//!
//! A maker's thread has one batch in hand: it takes the next number, gives a task per sample to the pool, waits for them, lets
//! others stand in for bad samples, and holds the batch until it is taken. Tasks are begun in the order of the samples, and a
//! worker that finds none left of one batch goes on with the next: a slow sample holds up its own batch and no worker but one.
//! Tasks write into the batch's tensors; which rows each of them has is fixed before they begin.
//!
//! What a batch holds is a function of its first sample ([`Recipe`]); who makes it when is the business of [`Maker`].

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alip_plan::pipeline::Source;

use super::panics::caught;
use super::samples::{MAX_ATTEMPTS, Samples, Unusable};
use super::spares::Spares;
use super::transform::{Row, check_fields};
use super::work::Clock;
use super::{Batch, DataError, Order, Passes, SampleError, Skipped, Transform};
use crate::tensor::{Data, HostTensor};

/// Where a batch will be delivered.
pub(super) type Place = Receiver<Result<Batch, DataError>>;

/// Whose turn it is.
pub(super) struct Turn {
    /// First sample of the next batch.
    pub(super) first: u64,
    /// Takes the places of the batches, in their order.
    pub(super) places: Sender<Place>,
}

/// What batches are made of.
pub(super) struct Recipe {
    pub(super) declared: Source,
    pub(super) samples: Samples,
    pub(super) transform: Arc<Transform>,
    /// The keys of what is drawn, and the length of an epoch.
    pub(super) order: Order,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) batch: usize,
    pub(super) passes: Passes,
    pub(super) pool: rayon::ThreadPool,
    pub(super) clock: Clock,
}

/// What all makers share.
pub(super) struct Maker {
    pub(super) recipe: Arc<Recipe>,
    pub(super) spares: Arc<Spares>,
    pub(super) turn: Mutex<Turn>,
}

/// What is known about a sample, by name.
type Labels = BTreeMap<String, i64>;

/// What was read into the rows of a batch; none where it was not begun.
type Read = Vec<Option<Result<Labels, Unusable>>>;

/// What became of one row.
struct Made {
    index: u64,
    labels: Labels,
    skipped: Option<Skipped>,
}

impl Maker {
    /// Makes batches until there are no more, or nobody takes them.
    pub(super) fn make_all(&self) {
        while !self.recipe.stop.load(Ordering::Relaxed) && self.make_next().is_some() {}
    }

    /// Makes the next batch and waits until it is taken; `None` when there is nothing more to do.
    fn make_next(&self) -> Option<()> {
        let recipe = &self.recipe;
        // Kept until all tasks are given, so that those of the batch after it come behind them.
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let first = turn.first;
        if recipe.valid(first) == 0 {
            return None;
        }
        // Without room: a batch that is not taken yet stays with its maker.
        let (deliver, place) = sync_channel(0);
        turn.places.send(place).ok()?;
        turn.first += recipe.batch as u64;
        let tensors = match self.spares.take(&recipe.transform) {
            Ok(tensors) => tensors,
            Err(error) => return deliver.send(Err(error.into())).ok(),
        };
        let made = recipe.make(first, tensors, || drop(turn))?;
        let failed = made.is_err();
        deliver.send(made).ok().filter(|()| !failed)
    }
}

impl Recipe {
    /// Rows that count of the batch that begins at a sample.
    fn valid(&self, first: u64) -> usize {
        match self.passes {
            Passes::Endless => self.batch,
            Passes::Once => self.order.epoch_len().saturating_sub(first).min(self.batch as u64) as usize,
        }
    }

    /// Makes the batch that begins at a sample in these tensors, and says when all its tasks are given; `None` when it was
    /// stopped.
    pub(super) fn make(
        &self,
        first: u64,
        mut tensors: Vec<HostTensor>,
        given: impl FnOnce(),
    ) -> Option<Result<Batch, DataError>> {
        let samples = self.samples.at(first, self.batch as u64);
        let mut rows = rows_of(&mut tensors, self.batch);
        let mut read: Read = (0..self.batch).map(|_| None).collect();
        self.pool.in_place_scope(|tasks| {
            for ((slots, read), &(epoch, index)) in rows.iter_mut().zip(&mut read).zip(&samples) {
                tasks.spawn(move |_| {
                    let stopped = self.stop.load(Ordering::Relaxed);
                    *read = (!stopped).then(|| self.clock.sample(|| self.read(epoch, index, false, slots)));
                });
            }
            given();
        });
        let read: Vec<_> = read.into_iter().collect::<Option<_>>()?;
        let made = self.replace((first, &samples), read, &mut rows);
        drop(rows);
        Some(made.map(|made| self.batch_of(first, made, tensors)))
    }

    fn batch_of(&self, first: u64, all: Vec<Made>, tensors: Vec<HostTensor>) -> Batch {
        let valid = self.valid(first);
        let names = self.transform.outputs().map(|(name, _)| name.to_string());
        let mut batch = Batch {
            tensors: names.zip(tensors).collect(),
            first_sample: first,
            valid,
            rows: Vec::with_capacity(self.batch),
            labels: BTreeMap::new(),
            skipped: Vec::new(),
            waited: Duration::ZERO,
        };
        for made in all {
            batch.rows.push(made.index);
            batch.skipped.extend(made.skipped);
            for (name, label) in made.labels {
                batch.labels.entry(name).or_default().push(label);
            }
        }
        // Rows beyond the end of a pass were counted in their own place.
        batch.skipped.retain(|skipped| skipped.row < valid);
        batch
    }

    /// Rows with what was read into them, or with a stand-in for what could not be. One row after the other, so that the same
    /// samples stand in whatever was read first, and no sample stands in twice.
    fn replace(
        &self,
        (first, samples): (u64, &[(u64, u64)]),
        read: Vec<Result<Labels, Unusable>>,
        rows: &mut [Vec<Row<'_>>],
    ) -> Result<Vec<Made>, DataError> {
        let mut present: HashSet<u64> = samples.iter().map(|&(_, index)| index).collect();
        let mut all = Vec::with_capacity(read.len());
        for (row, (read, slots)) in read.into_iter().zip(rows).enumerate() {
            let (sample, (epoch, index)) = (first + row as u64, samples[row]);
            let made = match read {
                Ok(labels) => Made { index, labels, skipped: None },
                Err(Unusable::Ends(error)) => return Err(error),
                Err(Unusable::Bad(reason)) => {
                    let (name, reason) = (self.samples.name(index), reason.to_string());
                    self.stand_in(Skipped { sample, row, index, name, reason }, epoch, &present, slots)?
                }
            };
            present.insert(made.index);
            all.push(made);
        }
        Ok(all)
    }

    /// Fills a row with the first usable stand-in: a sample that is in the batch already only if there is no other.
    fn stand_in(
        &self,
        skipped: Skipped,
        epoch: u64,
        present: &HashSet<u64>,
        slots: &mut [Row<'_>],
    ) -> Result<Made, DataError> {
        let mut tried = HashSet::from([skipped.index]);
        let candidates = self.samples.stand_ins(skipped.sample, present)?.filter(|&index| tried.insert(index));
        let mut attempts = 0;
        for index in candidates.take(MAX_ATTEMPTS as usize) {
            if self.stop.load(Ordering::Relaxed) {
                // Nobody is there to be told.
                return Err(DataError::Stopped);
            }
            attempts += 1;
            match self.read(epoch, index, true, slots) {
                Ok(labels) => return Ok(Made { index, labels, skipped: Some(skipped) }),
                // A stand-in that is bad too is not counted: it will be in its own place.
                Err(Unusable::Bad(_)) => {}
                Err(Unusable::Ends(error)) => return Err(error),
            }
        }
        Err(DataError::NoReplacement { first: skipped.to_string(), attempts })
    }

    fn read(&self, epoch: u64, index: u64, stands_in: bool, slots: &mut [Row<'_>]) -> Result<Labels, Unusable> {
        // A decoder that panics on a hostile file loses that sample and nothing else; rows are overwritten by the next try.
        let read = caught(|| {
            let sample = self.clock.source(|| self.samples.read(index, stands_in))?;
            check_fields(&self.declared, &sample)?;
            let labels = sample.labels.clone();
            self.transform.run(sample, (&self.order, epoch, index), slots, &self.clock)?;
            Ok(labels)
        });
        read.unwrap_or_else(|words| Err(SampleError(format!("the decoder panicked: {words}")).into()))
    }
}

/// Cuts the tensors into the rows of each sample.
fn rows_of(tensors: &mut [HostTensor], batch: usize) -> Vec<Vec<Row<'_>>> {
    let mut rows: Vec<Vec<Row<'_>>> = (0..batch).map(|_| Vec::with_capacity(tensors.len())).collect();
    for tensor in tensors {
        match tensor.data_mut() {
            Data::F32(data) => {
                let length = (data.len() / batch).max(1);
                data.chunks_exact_mut(length).zip(&mut rows).for_each(|(chunk, row)| row.push(Row::F32(chunk)));
            }
            Data::I32(data) => {
                let length = (data.len() / batch).max(1);
                data.chunks_exact_mut(length).zip(&mut rows).for_each(|(chunk, row)| row.push(Row::I32(chunk)));
            }
            Data::U8(data) => {
                let length = (data.len() / batch).max(1);
                data.chunks_exact_mut(length).zip(&mut rows).for_each(|(chunk, row)| row.push(Row::U8(chunk)));
            }
            // `Transform::allocate` makes no others.
            Data::Bf16(_) | Data::F16(_) | Data::Bool(_) => {}
        }
    }
    rows
}

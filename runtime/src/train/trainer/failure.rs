//! What ends a run, and where it can go on from.

use std::path::PathBuf;

use crate::data::DataError;
use crate::exec::{ExecError, NonFinite};
use crate::file::FileError;
use crate::run::checkpoint::CheckpointError;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The plan cannot train.
    #[error("the plan of `{0}` has no program `train`: its spec has no `train` section")]
    NoTraining(String),
    /// A run was killed after it was begun and before the weights that it starts from were saved.
    #[error(
        "{}: the run starts from other weights ({start}), and was killed before they were saved; remove the directory and begin it anew",
        path.display()
    )]
    NeverStarted {
        /// The run's directory.
        path: PathBuf,
        /// What it starts from.
        start: String,
    },
    /// The program failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The data cannot be delivered.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A count that the plan's 32-bit counters cannot hold.
    #[error("{what} {value} is too large: at most {}", i32::MAX)]
    TooLarge {
        /// `--steps`, `--seed`.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// A loss or gradient is not a number.
    #[error("{0}")]
    Diverged(Box<Divergence>),
    /// Training cannot go on, and the state is on disk.
    #[error("{why}. The state after step {step} is saved in {}; --resume continues from there", path.display())]
    Saved {
        /// What ended the run.
        why: Box<TrainError>,
        /// Steps taken.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
    },
    /// Training cannot go on, and its state cannot be saved.
    #[error("{why}. The state after step {step} could not be saved: {unsaved}. {}", newest(*step, saved.as_ref()))]
    Unsaved {
        /// What ended the run.
        why: Box<TrainError>,
        /// Steps taken.
        step: u64,
        /// Why the state is not on disk.
        unsaved: Box<TrainError>,
        /// Step and file of the newest checkpoint.
        saved: Option<(u64, PathBuf)>,
    },
    /// A step failed half way: what the device holds is the state of no step.
    #[error("step {step}: {why}. {}", newest(step.saturating_sub(1), saved.as_ref()))]
    Lost {
        /// What the device said.
        why: Box<ExecError>,
        /// The step that failed, counted from 1.
        step: u64,
        /// Step and file of the newest checkpoint.
        saved: Option<(u64, PathBuf)>,
    },
}

/// Where a run that has taken `step` steps can go on from.
fn newest(step: u64, saved: Option<&(u64, PathBuf)>) -> String {
    match saved {
        Some((at, path)) => {
            let lost = step.saturating_sub(*at);
            let lost = if lost == 0 { String::new() } else { format!(", {lost} steps before") };
            format!("The newest checkpoint is {}{lost}; --resume continues from there", path.display())
        }
        None => "There is no checkpoint yet; --resume begins anew".into(),
    }
}

/// A step whose loss or gradient is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The step that failed, counted from 1.
    pub step: u64,
    /// The metric that showed it; `None` when only the state did not move.
    pub metric: Option<(String, f64)>,
    /// The first value of the step that is not finite, and the number of launches of the program; or why there was no search.
    pub first: Result<Option<(NonFinite, usize)>, String>,
    /// Global indices of the first sample of the batch and of the one after the last.
    pub samples: (u64, u64),
    /// Where the state before the step is.
    pub saved: Option<PathBuf>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}: ", self.step)?;
        match &self.metric {
            Some((name, value)) => write!(f, "metric `{name}` is {value}.")?,
            None => write!(f, "the gradient is not finite, so the step was not taken.")?,
        }
        match &self.first {
            Ok(Some((first, launches))) => {
                let place = if first.origin.is_empty() { "the top of the graph" } else { &first.origin };
                let (step, element, value) = (first.step + 1, first.element, first.value);
                write!(f, " The first value that is not finite was made by `{place}`")?;
                write!(f, " ({value} at element {element}, launch {step} of {launches}).")?;
            }
            Ok(None) => write!(f, " No single operation of the step gave NaN or infinity when it was run again.")?,
            Err(why) => write!(f, " The step could not be run again to find out where that came from ({why}).")?,
        }
        write!(f, " The batch was samples {} to {}.", self.samples.0, self.samples.1.saturating_sub(1))?;
        match &self.saved {
            Some(path) => write!(f, " The state before the step is saved in {}.", path.display())?,
            None => write!(f, " The last checkpoint is the newest state that is sound.")?,
        }
        write!(f, " A new run with a lower learning rate or a longer warm-up is the usual cure")
    }
}

//! Training and what surrounds it.
//!
//! [`Trainer`] is the loop; around it a run directory ([`RunDir`]) with checkpoints and the log. [`evaluate`] measures
//! embeddings, [`report`] shows them. Nothing here knows a terminal or the compiler.

pub mod checkpoint;
pub mod evaluate;
mod events;
pub mod file;
pub mod measure;
pub mod metrics;
pub mod replay;
pub mod report;
mod run_dir;
pub mod summary;
#[cfg(test)]
pub(crate) mod testing;
mod trainer;

pub use metrics::StepRecord;
pub use run_dir::{PLAN, RunDir, RunDirError, RunInfo, bytes, read_plan};
pub use trainer::{Divergence, Feed, Position, Summary, TrainError, Trainer, Watch, begin, resume};

/// A plan on the reference device, for tests.
#[cfg(test)]
pub(crate) fn session(plan: &alip_plan::Plan) -> crate::exec::Session {
    let choice = crate::device::choose("reference", &crate::device::DeviceOptions::default()).unwrap();
    crate::exec::Session::new(std::sync::Arc::new(plan.clone()), choice.device).unwrap()
}

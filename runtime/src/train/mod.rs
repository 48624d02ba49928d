//! Training and what surrounds it.
//!
//! [`Trainer`] is the loop, whose run lies in a directory ([`crate::run`]). [`measure`] measures a model, [`report`] shows
//! it. Nothing here knows a terminal or the compiler.

pub mod measure;
pub mod replay;
pub mod report;
pub mod start;
pub mod summary;
#[cfg(test)]
pub(crate) mod testing;
mod trainer;

pub use trainer::{
    Cadence, Divergence, Feed, Measures, OnTheWay, Position, Summary, TrainError, Trainer, Unmeasured, Watch, begin,
    needs_total_steps, resume,
};

/// A plan on the reference device, for tests.
#[cfg(test)]
pub(crate) fn session(plan: &alip_plan::Plan) -> crate::exec::Session {
    let choice = crate::device::choose("reference", &crate::device::DeviceOptions::default()).unwrap();
    crate::exec::Session::new(std::sync::Arc::new(plan.clone()), choice.device).unwrap()
}

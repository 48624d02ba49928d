//! The last word on a region: what the schedule really makes of it.
//!
//! The model of costs that extraction adds up a thousand times cannot know everything that grouping does, so what was chosen
//! is scheduled and lowered, once, as is what it replaces, and taken only if its kernels cost less.

use alip_plan::Target;

use crate::codegen::{BackEnd, Unwatched};
use crate::ir::Graph;
use crate::launch::{Cost, Neighbours, predict};
use crate::schedule::ScheduleOptions;

/// What the kernels of a region cost; `None` if it cannot be scheduled, which only a defect can cause. What is computed again
/// is a matter of whole programs, and of their state which tensors lie together.
pub(crate) fn judge(graph: &Graph, target: &Target) -> Option<Cost> {
    let options = ScheduleOptions { fuse: true, recompute: false };
    let back_end = BackEnd { target, options, neighbours: &Neighbours::default() };
    let lowered = back_end.lower(graph, &mut Unwatched).ok()??;
    Some(predict(&lowered.launches, &target.rates))
}

//! The last word on a region: what the schedule really makes of it.
//!
//! The model of costs that extraction adds up a thousand times cannot know everything that grouping does, so what was chosen
//! is scheduled and lowered, once, as is what it replaces, and taken only if its kernels cost less.

use alip_plan::Target;

use crate::codegen::lower;
use crate::ir::Graph;
use crate::launch::{Cost, Machine, predict};
use crate::schedule::{Neighbours, ScheduleOptions, normal_form, schedule};

/// What the kernels of a program cost; `None` if it cannot be scheduled, which only a defect can cause.
pub(crate) fn judge(graph: &Graph, target: &Target, machine: &Machine) -> Option<Cost> {
    let options = ScheduleOptions::default();
    let graph = normal_form(graph, target, options).ok()?;
    Some(predict(&lower(&schedule(&graph, &Neighbours::default(), target, options)), machine))
}

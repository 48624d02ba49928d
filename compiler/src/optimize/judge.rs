//! The last word on a region: what the schedule really makes of it.
//!
//! The model of costs that extraction adds up a thousand times cannot know everything that grouping does, so what was chosen
//! is scheduled, once, as is what it replaces, and taken only if its kernels cost less.

use alip_plan::Target;

use super::cost::{Cost, Machine, weight};
use crate::ir::Graph;
use crate::ops::Op;
use crate::schedule::{ScheduleOptions, normal_form, schedule};

/// What the kernels of a program cost; `None` if it cannot be scheduled, which only a defect can cause.
pub(crate) fn judge(graph: &Graph, target: &Target, machine: &Machine) -> Option<Cost> {
    let options = ScheduleOptions::default();
    let graph = normal_form(graph, target, options).ok()?;
    let scheduled = schedule(&graph, target, options);
    let mut seconds = 0.0;
    for group in &scheduled.order {
        let group = &scheduled.groups.groups[*group];
        let kept = group.kept.iter().product::<u64>() as f64;
        let points = kept * group.reduced.iter().product::<u64>() as f64;
        let bytes = |id| graph.shape(id).elements() * graph.ty(id).dtype.bytes();
        let moved = group.operands.iter().map(|id| bytes(*id)).sum::<u64>() as f64;
        seconds += machine.launch + moved / machine.bandwidth;
        for member in &group.members {
            let member = &scheduled.groups.members[*member];
            let node = graph.node(member.node);
            let types: Vec<_> = node.inputs.iter().map(|input| graph.ty(*input)).collect();
            let flops = || node.op.flops(&types, &node.ty) as f64;
            seconds += match &node.op {
                Op::Pointwise(op) if member.row => f64::from(weight(*op)) * kept / machine.point_rate,
                Op::Pointwise(op) => f64::from(weight(*op)) * points / machine.point_rate,
                Op::Reduce { .. } => points / machine.point_rate,
                Op::Conv2d(_) => flops() / machine.conv_rate,
                _ => flops() / machine.product_rate,
            };
        }
    }
    Some(Cost { seconds, launches: scheduled.order.len() as u32 })
}

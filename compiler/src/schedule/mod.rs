//! From a graph to groups: what becomes one kernel, in which order, and where its operands lie in memory.
//!
//! - [`normal_form`]: `pads` and `sums` join what can be written as parts of one value, `prepare` does the rest (with
//!   `commute`).
//! - `facts` gathers what is known of each node, `place` (with `attention`) decides where nodes are computed, `siblings` what
//!   is near enough to be one kernel, `order` what runs when, `recompute` what is computed again rather than kept, `group`
//!   holds the decisions and refuses what no kernel can be, over a `space` each; `reads` says what every op asks of its
//!   operands and finds what a group reads, `prologue` what is computed of an image as it is read, `layout` and `operands`
//!   know which views are affine.
//! - [`memory`] gives every stored value its place; [`check`] replays a program and proves that nothing live is overwritten.
//!
//! Invariants: deterministic (no clocks, no iteration over hash maps), linear in the number of nodes (`linear` holds that by what
//! is `looked` at; [`memory`] alone compares values that live together), and what is computed does not depend on
//! [`ScheduleOptions`] beyond rounding.

mod attention;
pub mod check;
mod commute;
mod explain;
mod facts;
mod group;
mod layout;
#[cfg(test)]
mod linear;
mod looked;
pub mod memory;
mod operands;
mod order;
mod pads;
mod place;
mod prepare;
mod prologue;
mod reads;
mod recompute;
mod siblings;
mod space;
mod split;
mod sums;

use alip_plan::Target;

pub use self::attention::has_kernel;
pub(crate) use self::explain::explain;
pub use self::explain::{Explained, Explanation, computes};
pub(crate) use self::group::{Group, GroupId, Groups, Input, Kind, MemberId, Store, What};
pub(crate) use self::layout::{Layout, ViewOp};
pub(crate) use self::looked::looked;
pub(crate) use self::operands::{ProductOperand, gather, product};
pub use self::pads::join_pads;
pub use self::prepare::prepare;
pub(crate) use self::prologue::{Pixel, Prologue};
pub use self::recompute::{Choice, Recomputed, recompute, same_nodes};
pub use self::sums::join_sums;
use crate::diag::Diagnostics;
use crate::ir::{Graph, NodeId};
pub use crate::launch::Neighbours;

/// What the schedule may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// Compute several nodes in one kernel. Without it every node but constants and views has a kernel of its own.
    pub fuse: bool,
    /// Compute large values again for late readers, instead of keeping them; not without `fuse`.
    pub recompute: bool,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        ScheduleOptions { fuse: true, recompute: true }
    }
}

/// The same program in the form that [`schedule`] expects.
///
/// # Errors
/// An op refuses its inputs, which only a defect of a pass can cause.
pub fn normal_form(graph: &Graph, target: &Target, options: ScheduleOptions) -> Result<Graph, Diagnostics> {
    if !options.fuse {
        return prepare(graph, target);
    }
    let graph = join_pads(graph)?;
    let graph = join_sums(&graph, target)?;
    prepare(&graph, target)
}

/// Groups of a prepared graph, in an order in which they can run.
pub struct Schedule<'g> {
    pub(crate) groups: Groups<'g>,
    pub(crate) order: Vec<GroupId>,
}

/// Groups the nodes of a prepared graph.
///
/// # Errors
/// The graph is not in the form that [`normal_form`] makes, which only a defect of a pass can cause.
pub fn schedule<'g>(
    graph: &'g Graph,
    neighbours: &Neighbours,
    target: &Target,
    options: ScheduleOptions,
) -> Result<Schedule<'g>, Diagnostics> {
    grouped(graph, &[], neighbours, target, options)
}

/// Groups the nodes of a program that computes values again.
///
/// # Errors
/// As [`schedule`].
pub fn schedule_again<'g>(
    again: &'g Recomputed,
    neighbours: &Neighbours,
    target: &Target,
    options: ScheduleOptions,
) -> Result<Schedule<'g>, Diagnostics> {
    grouped(&again.graph, &again.late, neighbours, target, options)
}

fn grouped<'g>(
    graph: &'g Graph,
    late: &[NodeId],
    neighbours: &Neighbours,
    target: &Target,
    options: ScheduleOptions,
) -> Result<Schedule<'g>, Diagnostics> {
    let mut groups = Groups::new(graph, target, options.fuse);
    if options.fuse {
        groups.adjoin(neighbours);
    }
    late.iter().for_each(|id| groups.late[id.index()] = true);
    for id in graph.ids().rev() {
        groups.place(id)?;
    }
    let mut order = groups.in_order()?;
    if options.fuse {
        groups.merge_siblings(&order);
        order = groups.in_order()?;
    }
    Ok(Schedule { groups, order })
}

impl Schedule<'_> {
    /// One line per kernel: archetype, domain, what it covers, what it stores.
    pub fn table(&self) -> String {
        let graph = self.groups.graph;
        let mut lines = Vec::new();
        for group in &self.order {
            let group = self.groups.group(*group);
            let (kind, space) = (group.kind().name(), group.space());
            let domain = match space.reduced() {
                [] => format!("{:?}", space.kept()),
                reduced => format!("{:?} x {reduced:?}", space.kept()),
            };
            let mut covers: Vec<NodeId> = group.members().iter().map(|m| self.groups.member(*m).node).collect();
            covers.sort_unstable();
            covers.dedup();
            let names = |ids: &mut dyn Iterator<Item = NodeId>| {
                ids.map(|id| format!("%{}", id.0)).collect::<Vec<_>>().join(" ")
            };
            let covers = covers.into_iter().filter(|id| !graph.node(*id).inputs.is_empty());
            let mut stores: Vec<NodeId> = group.stores().iter().map(|store| store.target).collect();
            stores.sort_unstable();
            stores.dedup();
            lines.push(format!("{kind} {domain}: {} -> {}", names(&mut { covers }), names(&mut stores.into_iter())));
        }
        lines.join("\n") + "\n"
    }
}

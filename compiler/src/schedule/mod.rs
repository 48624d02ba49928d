//! From a graph to groups: what becomes one kernel, in which order, and where its operands lie in memory.
//!
//! - [`normal_form`]: `pads` and `sums` join what can be written as parts of one value, `prepare` does the rest (with
//!   `commute`).
//! - `facts` gathers what is known of each node, `place` (with `attention`) decides where nodes are computed, `siblings` what
//!   is near enough to be one kernel, `recompute` what is computed again rather than kept, `late` what runs just before it is
//!   read, `group` holds the decisions,
//!   `layout` and `operands` know which views are affine.
//! - [`memory`] gives every stored value its place; [`check`] replays a program and proves that nothing live is overwritten.
//!
//! Invariants: deterministic (no clocks, no iteration over hash maps), time nearly linear in the number of nodes, and what
//! is computed does not depend on [`ScheduleOptions`] beyond rounding.

mod attention;
pub mod check;
mod commute;
mod explain;
mod facts;
mod group;
mod late;
mod layout;
pub mod memory;
mod operands;
mod pads;
mod place;
mod prepare;
mod recompute;
mod siblings;
mod sums;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use alip_plan::Target;

pub use self::attention::has_kernel;
pub(crate) use self::explain::explain;
pub use self::explain::{Explained, Explanation, computes};
pub(crate) use self::group::{Group, GroupId, Groups, Input, Kind, MemberId, What};
pub(crate) use self::layout::{Layout, ViewOp};
pub(crate) use self::operands::{gather, product};
pub use self::pads::join_pads;
pub use self::prepare::prepare;
pub use self::recompute::{Recomputed, recompute};
pub use self::sums::join_sums;
use crate::diag::Diagnostics;
use crate::ir::{Graph, NodeId};

/// What the schedule may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// Compute several nodes in one kernel. Without it every node but constants and views has a kernel of its own.
    pub fuse: bool,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        ScheduleOptions { fuse: true }
    }
}

/// The same program in the form that [`schedule`] expects.
///
/// # Errors
/// An op refuses its inputs, which only a defect of a pass can cause.
pub fn normal_form(graph: &Graph, target: &Target, options: ScheduleOptions) -> Result<Graph, Diagnostics> {
    if options.fuse { prepare(&join_sums(&join_pads(graph)?, target)?) } else { prepare(graph) }
}

/// Groups of a prepared graph, in an order in which they can run.
pub struct Schedule<'g> {
    pub(crate) groups: Groups<'g>,
    pub(crate) order: Vec<GroupId>,
}

/// Groups the nodes of a prepared graph.
pub fn schedule<'g>(graph: &'g Graph, target: &Target, options: ScheduleOptions) -> Schedule<'g> {
    grouped(graph, &[], target, options)
}

/// Groups the nodes of a program that computes values again.
pub fn schedule_again<'g>(again: &'g Recomputed, target: &Target, options: ScheduleOptions) -> Schedule<'g> {
    grouped(&again.graph, &again.late, target, options)
}

fn grouped<'g>(graph: &'g Graph, late: &[NodeId], target: &Target, options: ScheduleOptions) -> Schedule<'g> {
    let mut groups = Groups::new(graph, target.max_operands as usize, options.fuse);
    late.iter().for_each(|id| groups.late[id.index()] = true);
    for id in graph.ids().rev() {
        groups.place(id);
    }
    let mut order = self::order(&groups);
    if options.fuse {
        groups.merge_siblings(&order);
        order = self::order(&groups);
    }
    Schedule { groups, order }
}

/// An order in which every group runs after those it reads from: as early as the last node it computes to store
/// stood in the graph, but for those that only wait then (`late`).
fn order(groups: &Groups<'_>) -> Vec<GroupId> {
    let alive = (0..groups.groups.len()).filter(|group| groups.is_alive(*group));
    let mut waits = vec![0u32; groups.groups.len()];
    let mut next: Vec<Vec<GroupId>> = vec![Vec::new(); groups.groups.len()];
    for group in alive.clone() {
        let here = &groups.groups[group];
        let readers = here.stores.iter().flat_map(|store| &groups.loads[store.target.index()]);
        let readers = readers.map(|member| groups.members[*member].group).chain(here.before.iter().copied());
        let mut readers: Vec<GroupId> = readers.map(|reader| groups.find(reader)).filter(|r| *r != group).collect();
        readers.sort_unstable();
        readers.dedup();
        for reader in &readers {
            waits[*reader] += 1;
        }
        next[group] = readers;
    }
    let key = |group: GroupId| {
        let last = groups.groups[group].stores.iter().map(|store| groups.stored(store)).max();
        Reverse((last.unwrap_or(NodeId(0)), group))
    };
    let mut ready: BinaryHeap<_> = alive.clone().filter(|group| waits[*group] == 0).map(key).collect();
    let mut order = Vec::new();
    while let Some(Reverse((_, group))) = ready.pop() {
        order.push(group);
        for reader in &next[group] {
            waits[*reader] -= 1;
            if waits[*reader] == 0 {
                ready.push(key(*reader));
            }
        }
    }
    assert_eq!(order.len(), alive.count(), "groups wait for each other");
    if groups.fuse { groups.late(&order, &next) } else { order }
}

impl Schedule<'_> {
    /// One line per kernel: archetype, domain, what it covers, what it stores.
    pub fn table(&self) -> String {
        let graph = self.groups.graph;
        let mut lines = Vec::new();
        for group in &self.order {
            let group = &self.groups.groups[*group];
            let kind = group.kind.name();
            let domain = match group.reduced.as_slice() {
                [] => format!("{:?}", group.kept),
                reduced => format!("{:?} x {reduced:?}", group.kept),
            };
            let mut covers: Vec<NodeId> = group.members.iter().map(|m| self.groups.members[*m].node).collect();
            covers.sort_unstable();
            covers.dedup();
            let names = |ids: &mut dyn Iterator<Item = NodeId>| {
                ids.map(|id| format!("%{}", id.0)).collect::<Vec<_>>().join(" ")
            };
            let covers = covers.into_iter().filter(|id| !graph.node(*id).inputs.is_empty());
            let mut stores: Vec<NodeId> = group.stores.iter().map(|store| store.target).collect();
            stores.sort_unstable();
            stores.dedup();
            lines.push(format!("{kind} {domain}: {} -> {}", names(&mut { covers }), names(&mut stores.into_iter())));
        }
        lines.join("\n") + "\n"
    }
}

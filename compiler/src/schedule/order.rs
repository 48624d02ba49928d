//! An order in which groups run: each after those it reads from, where it stood in the graph, unless less memory waits
//! otherwise.
//!
//! The order of a graph's nodes says when a value can be there, not when it is needed, nor what waits for it.
//!
//! - *Sums over rows run as soon as they can*: they let go of all that they read. Gradients of biases and norms stand at the
//!   end of a graph, as parts of one value; run there, they keep every layer's gradients until the last layer is done.
//! - *What would run long before anything reads it runs just before its first reader.* What is computed again for the backward
//!   pass (`recompute`) reads what the forward pass left, and could run at its end, where it would wait as long as what it
//!   replaces. A group moves if that lets less memory wait: its results wait no longer, but what it alone reads does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::group::{GroupId, Groups, Store};
use super::looked;
use crate::diag::Diagnostic;
use crate::ir::NodeId;

/// A group that reads this many times what it makes runs as soon as it can.
const MUCH: u64 = 8;

/// Place of a group: before the group at this position of the order, which itself has step 0; the highest step runs first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    anchor: usize,
    step: Reverse<usize>,
}

impl Groups<'_> {
    /// Groups in the order in which they run.
    ///
    /// # Errors
    /// Groups wait for each other, which only a defect of grouping can cause.
    pub(super) fn in_order(&self) -> Result<Vec<GroupId>, Diagnostic> {
        let alive: Vec<GroupId> = (0..self.count()).filter(|group| self.is_alive(*group)).collect();
        let reads = self.reads();
        let mut waits = Waits::new(self, &alive, &reads);
        let key = |group: GroupId| {
            let last = self.group(group).stores().iter().map(|store| self.stored(store)).max();
            let soon = self.fuse && self.lets_go(group);
            Reverse((last.filter(|_| !soon).unwrap_or(NodeId(0)), group))
        };
        let ready = alive.iter().filter(|group| waits.of_group[**group] == 0);
        let mut ready: BinaryHeap<_> = ready.map(|group| key(*group)).collect();
        let mut order = Vec::new();
        while let Some(Reverse((_, group))) = ready.pop() {
            order.push(group);
            waits.run(self, group, |next| ready.push(key(next)));
        }
        if let Some(stuck) = alive.iter().find(|group| waits.of_group[**group] > 0) {
            let id = self.group(*stuck).stores().first().map_or(NodeId(0), |store| store.target);
            return Err(self.fault(id, "groups wait for each other"));
        }
        Ok(if self.fuse { self.late(&order, &reads) } else { order })
    }

    /// Per group, the values it loads that other groups store.
    fn reads(&self) -> Vec<Vec<NodeId>> {
        let mut reads: Vec<Vec<NodeId>> = vec![Vec::new(); self.count()];
        for id in self.graph.ids().filter(|id| !self.writers(*id).is_empty()) {
            for group in self.readers(id) {
                looked("readers of a value", 1);
                if reads[group].last() != Some(&id) {
                    reads[group].push(id);
                }
            }
        }
        reads
    }

    /// Values that a group stores, each once.
    fn targets(&self, group: GroupId) -> Vec<NodeId> {
        let mut targets: Vec<NodeId> = self.group(group).stores().iter().map(|store| store.target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Whether a group makes little of much.
    fn lets_go(&self, group: GroupId) -> bool {
        let stores = self.group(group).stores();
        let stored = |id: &NodeId| stores.iter().any(|store: &Store| store.target == *id);
        let made: u64 = stores.iter().map(|store| self.graph.bytes(self.stored(store))).sum();
        let operands = self.group(group).operands().iter().filter(|id| !stored(id));
        made.saturating_mul(MUCH) <= operands.map(|id| self.graph.bytes(*id)).sum()
    }

    /// The order with groups moved back, given what each reads.
    fn late(&self, order: &[GroupId], reads: &[Vec<NodeId>]) -> Vec<GroupId> {
        let mut places: Vec<Option<Place>> = vec![None; self.count()];
        // Per value, its first and its last reader among groups that have their places: from the last group on.
        let mut spans: Vec<Option<(Place, Place)>> = vec![None; self.graph.nodes().len()];
        for (position, group) in order.iter().enumerate().rev() {
            let here = Place { anchor: position, step: Reverse(0) };
            let readers = self.targets(*group).into_iter().filter_map(|id| Some(spans[id.index()]?.0));
            let first = readers.chain(self.ordered_after(*group).filter_map(|later| places[later])).min();
            let place = match first {
                Some(first) if first.anchor > position + 1 && self.gains(*group, &reads[*group], first, &spans) => {
                    Place { anchor: first.anchor, step: Reverse(first.step.0 + 1) }
                }
                _ => here,
            };
            places[*group] = Some(place);
            for id in &reads[*group] {
                let span = &mut spans[id.index()];
                *span = Some(span.map_or((place, place), |(first, last)| (first.min(place), last.max(place))));
            }
        }
        let mut moved: Vec<(Option<Place>, usize)> =
            order.iter().enumerate().map(|(position, group)| (places[*group], position)).collect();
        moved.sort_unstable();
        moved.into_iter().map(|(_, position)| order[position]).collect()
    }

    /// Whether what a group makes is more than what must wait for it until `first`.
    fn gains(&self, group: GroupId, reads: &[NodeId], first: Place, spans: &[Option<(Place, Place)>]) -> bool {
        // What is one part of a value of several is in memory from the first part on.
        let alone = |id: &NodeId| self.writers(*id).len() == 1;
        let stores = self.group(group).stores().iter().map(|store| store.target);
        let made: u64 = stores.filter(alone).map(|id| self.graph.bytes(id)).sum();
        // Readers before this group have no place yet, and let nothing wait.
        let waits = |id: &NodeId| spans[id.index()].is_some_and(|(_, last)| last >= first);
        let kept: u64 = reads.iter().filter(|id| !waits(id)).map(|id| self.graph.bytes(*id)).sum();
        made > kept
    }
}

/// What is waited for: by values until all their parts are stored, by groups until all that they read is there.
struct Waits {
    of_group: Vec<u32>,
    /// Groups that store a part of a value and have not run.
    of_value: Vec<u32>,
    /// Groups that wait for a value.
    readers: Vec<Vec<GroupId>>,
    /// Groups that wait for another one, whatever it stores.
    after: Vec<Vec<GroupId>>,
}

impl Waits {
    fn new(groups: &Groups<'_>, alive: &[GroupId], reads: &[Vec<NodeId>]) -> Waits {
        let (count, values) = (groups.count(), groups.graph.nodes().len());
        let mut waits = Waits {
            of_group: vec![0; count],
            of_value: vec![0; values],
            readers: vec![Vec::new(); values],
            after: vec![Vec::new(); count],
        };
        for group in alive {
            let targets = groups.targets(*group);
            targets.iter().for_each(|id| waits.of_value[id.index()] += 1);
            for id in &reads[*group] {
                if targets.binary_search(id).is_err() {
                    waits.readers[id.index()].push(*group);
                    waits.of_group[*group] += 1;
                    continue;
                }
                // It stores a part and reads others.
                for writer in groups.writers(*id).iter().map(|writer| groups.find(*writer)) {
                    looked("writers of a value", 1);
                    if writer != *group {
                        waits.order(writer, *group);
                    }
                }
            }
            groups.ordered_after(*group).filter(|later| later != group).for_each(|later| waits.order(*group, later));
        }
        waits
    }

    fn order(&mut self, first: GroupId, then: GroupId) {
        self.after[first].push(then);
        self.of_group[then] += 1;
    }

    /// Notes that a group has run; `ready` learns of groups that wait for nothing any more.
    fn run(&mut self, groups: &Groups<'_>, group: GroupId, mut ready: impl FnMut(GroupId)) {
        let mut next = std::mem::take(&mut self.after[group]);
        for id in groups.targets(group) {
            self.of_value[id.index()] -= 1;
            if self.of_value[id.index()] == 0 {
                next.append(&mut self.readers[id.index()]);
            }
        }
        for reader in next {
            looked("what waits for a group", 1);
            self.of_group[reader] -= 1;
            if self.of_group[reader] == 0 {
                ready(reader);
            }
        }
    }
}

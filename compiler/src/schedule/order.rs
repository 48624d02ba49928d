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
    pub(super) fn in_order(&self) -> Vec<GroupId> {
        let alive: Vec<GroupId> = (0..self.groups.len()).filter(|group| self.is_alive(*group)).collect();
        let mut waits = vec![0u32; self.groups.len()];
        let mut next: Vec<Vec<GroupId>> = vec![Vec::new(); self.groups.len()];
        for group in &alive {
            let here = &self.groups[*group];
            let readers = here.stores.iter().flat_map(|store| self.readers(store.target));
            let readers = readers.chain(here.before.iter().map(|later| self.find(*later)));
            let mut readers: Vec<GroupId> = readers.filter(|reader| reader != group).collect();
            readers.sort_unstable();
            readers.dedup();
            for reader in &readers {
                waits[*reader] += 1;
            }
            next[*group] = readers;
        }
        let key = |group: GroupId| {
            let last = self.groups[group].stores.iter().map(|store| self.stored(store)).max();
            let soon = self.fuse && self.lets_go(group);
            Reverse((last.filter(|_| !soon).unwrap_or(NodeId(0)), group))
        };
        let ready = alive.iter().filter(|group| waits[**group] == 0);
        let mut ready: BinaryHeap<_> = ready.map(|group| key(*group)).collect();
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
        assert_eq!(order.len(), alive.len(), "groups wait for each other");
        if self.fuse { self.late(&order, &next) } else { order }
    }

    /// Whether a group makes little of much.
    fn lets_go(&self, group: GroupId) -> bool {
        let stores = &self.groups[group].stores;
        let stored = |id: &NodeId| stores.iter().any(|store: &Store| store.target == *id);
        let made: u64 = stores.iter().map(|store| self.graph.bytes(self.stored(store))).sum();
        let operands = self.groups[group].operands.iter().filter(|id| !stored(id));
        made.saturating_mul(MUCH) <= operands.map(|id| self.graph.bytes(*id)).sum()
    }

    /// The order with groups moved back, given what follows each directly.
    fn late(&self, order: &[GroupId], next: &[Vec<GroupId>]) -> Vec<GroupId> {
        let mut reads: Vec<Vec<NodeId>> = vec![Vec::new(); self.groups.len()];
        for id in self.graph.ids().filter(|id| !self.writers[id.index()].is_empty()) {
            for group in self.readers(id) {
                if reads[group].last() != Some(&id) {
                    reads[group].push(id);
                }
            }
        }
        let stays = |position| Place { anchor: position, step: Reverse(0) };
        let mut places: Vec<Option<Place>> = vec![None; self.groups.len()];
        for (position, group) in order.iter().enumerate().rev() {
            let here = stays(position);
            let first = next[*group].iter().filter_map(|reader| places[*reader]).min();
            let place = match first {
                Some(first) if first.anchor > position + 1 && self.gains(*group, &reads[*group], first, &places) => {
                    Place { anchor: first.anchor, step: Reverse(first.step.0 + 1) }
                }
                _ => here,
            };
            places[*group] = Some(place);
        }
        let mut moved: Vec<(Option<Place>, usize)> =
            order.iter().enumerate().map(|(position, group)| (places[*group], position)).collect();
        moved.sort_unstable();
        moved.into_iter().map(|(_, position)| order[position]).collect()
    }

    /// Whether what a group makes is more than what must wait for it until `first`.
    fn gains(&self, group: GroupId, reads: &[NodeId], first: Place, places: &[Option<Place>]) -> bool {
        // What is one part of a value of several is in memory from the first part on.
        let alone = |id: &NodeId| self.writers[id.index()].len() == 1;
        let made: u64 = self.groups[group]
            .stores
            .iter()
            .map(|store| store.target)
            .filter(alone)
            .map(|id| self.graph.bytes(id))
            .sum();
        // Readers before this group have no place yet, and let nothing wait.
        let waits = |id: &NodeId| self.readers(*id).any(|reader| places[reader] >= Some(first));
        let kept: u64 = reads.iter().filter(|id| !waits(id)).map(|id| self.graph.bytes(*id)).sum();
        made > kept
    }

    fn readers(&self, id: NodeId) -> impl Iterator<Item = GroupId> {
        self.loads[id.index()].iter().map(|member| self.find(self.members[*member].group))
    }
}

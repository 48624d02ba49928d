//! Groups that would run long before anything reads what they make run just before their first reader.
//!
//! The order of a graph's nodes says when a value can be there, not when it is needed: what is computed again for the
//! backward pass (`recompute`) reads what the forward pass left, and could run at its end, where it would wait as long as
//! what it replaces. A group moves if that lets less memory wait: its results wait no longer, but what it alone reads does.

use super::group::{GroupId, Groups};
use crate::ir::NodeId;

/// Place of a group: before the group at this position of the order, which itself has step 0; the highest step runs first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    anchor: usize,
    step: std::cmp::Reverse<usize>,
}

impl Groups<'_> {
    /// The order with groups moved back, given what follows each directly.
    pub(super) fn late(&self, order: &[GroupId], next: &[Vec<GroupId>]) -> Vec<GroupId> {
        let mut reads: Vec<Vec<NodeId>> = vec![Vec::new(); self.groups.len()];
        for id in self.graph.ids().filter(|id| !self.writers[id.index()].is_empty()) {
            for group in self.readers(id) {
                if reads[group].last() != Some(&id) {
                    reads[group].push(id);
                }
            }
        }
        let stays = |position| Place { anchor: position, step: std::cmp::Reverse(0) };
        let mut places: Vec<Option<Place>> = vec![None; self.groups.len()];
        for (position, group) in order.iter().enumerate().rev() {
            let here = stays(position);
            let first = next[*group].iter().filter_map(|reader| places[*reader]).min();
            let place = match first {
                Some(first) if first.anchor > position + 1 && self.gains(*group, &reads[*group], first, &places) => {
                    Place { anchor: first.anchor, step: std::cmp::Reverse(first.step.0 + 1) }
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
        let bytes = |id: NodeId| self.graph.shape(id).elements() * self.graph.ty(id).dtype.bytes();
        // What is one part of a value of several is in memory from the first part on.
        let alone = |id: &NodeId| self.writers[id.index()].len() == 1;
        let made: u64 = self.groups[group].stores.iter().map(|store| store.target).filter(alone).map(bytes).sum();
        // Readers before this group have no place yet, and let nothing wait.
        let waits = |id: &NodeId| self.readers(*id).any(|reader| places[reader] >= Some(first));
        let kept: u64 = reads.iter().filter(|id| !waits(id)).map(|id| bytes(*id)).sum();
        made > kept
    }

    fn readers(&self, id: NodeId) -> impl Iterator<Item = GroupId> {
        self.loads[id.index()].iter().map(|member| self.find(self.members[*member].group))
    }
}

//! Kernels that are near each other and walk the same memory become one.
//!
//! - *Reductions over the same rows and columns.* The gradients of a bias and of a layer norm's weight and bias are sums over
//!   the same rows; one of them alone gives a launch too little to do. None waits for another, so one kernel computes them
//!   all, where the last of them stood. The others' operands live that much longer, which bounds how far apart they may be.
//! - *What is computed again, and a reduction or product that reads a value at the same points.* The backward pass computes
//!   again what a kernel beside it reads the input of: a gelu's input is read by the gelu's derivative, a layer norm's by its
//!   gradient. The input is read once, and the launch is saved.

use super::group::{Group, GroupId, Groups, Kind, MemberId, Refusal};
use super::layout::{Chain, Layout, ViewOp};
use super::looked;
use crate::hash::HashMap;
use crate::ir::NodeId;

/// Most launches between the first and the last of a kernel's reductions: about two layers of a transformer's backward
/// pass.
const WINDOW: usize = 32;

impl Groups<'_> {
    /// Merges reductions of one domain, then what is computed again into what reads the same, given the order in which groups would run.
    pub(super) fn merge_siblings(&mut self, order: &[GroupId]) {
        type Domain = (Vec<u64>, Vec<u64>);
        let mut open: HashMap<Domain, (GroupId, usize)> = HashMap::default();
        for (position, group) in order.iter().enumerate() {
            let here = self.group(*group);
            // A kernel of one row has no other way to use many threads than one launch each.
            if here.kind() != Kind::Reduction || here.space().rows() < 2 {
                continue;
            }
            let domain = (here.space().kept().to_vec(), here.space().reduced().to_vec());
            match open.get(&domain) {
                Some((into, first)) if position - first <= WINDOW && self.merge(*into, *group).is_ok() => {}
                _ => {
                    open.insert(domain, (*group, position));
                }
            }
        }
        let mut at: HashMap<GroupId, usize> = HashMap::default();
        for (position, group) in order.iter().enumerate() {
            at.entry(self.find(*group)).or_insert(position);
        }
        for (position, map) in order.iter().enumerate() {
            if self.is_alive(*map) && self.group(*map).is_late() && self.group(*map).kind() == Kind::Map {
                let hosts = self.neighbours(*map, position, &at);
                let _ = hosts.into_iter().any(|host| self.join_beside(host, *map).is_ok());
            }
        }
    }

    /// Reductions and products that read, at all of their points, what a map reads at all of its own; the nearest first.
    fn neighbours(&self, map: GroupId, position: usize, at: &HashMap<GroupId, usize>) -> Vec<GroupId> {
        let mut found: Vec<(usize, GroupId)> = Vec::new();
        let all = self.group(map).space().points();
        let whole = |id: &&NodeId| self.graph.shape(**id).elements() == all;
        for id in self.group(map).operands().iter().filter(whole) {
            for group in self.readers(*id) {
                looked("readers of a value", 1);
                let rows = matches!(self.group(group).kind(), Kind::Reduction | Kind::Product(..));
                let distance = at.get(&group).map_or(usize::MAX, |there| there.abs_diff(position));
                if rows && distance <= WINDOW && self.group(group).space().points() == all {
                    found.push((distance, group));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|(_, group)| group).collect()
    }

    /// Adds a map to a reduction or product that reads the same value at the same points, if neither waits for the other.
    fn join_beside(&mut self, host: GroupId, map: GroupId) -> Result<(), Refusal> {
        self.room_for_both(host, map)?;
        let (into, gone) = (self.group(host), self.group(map));
        let back: Chain = vec![ViewOp::Reshape(into.space().sizes())];
        let gathers = |member: &MemberId| self.reads_memory(self.member(*member).node);
        if gone.members().iter().any(gathers) {
            return Err(Refusal::Kind);
        }
        if !self.aligned(into, gone, &back) {
            return Err(Refusal::Space);
        }
        let cuts = self.cuts_over(gone, &back, into.space().cuts().clone()).ok_or(Refusal::Access)?;
        self.absorb(host, map, &back, cuts)
    }

    /// Whether both groups read one value at each point the same element, where `back` leads from one domain to the other.
    fn aligned(&self, into: &Group<'_>, gone: &Group<'_>, back: &Chain) -> bool {
        let reads = |group: &Group<'_>, back: &Chain| -> Vec<(NodeId, Layout)> {
            let own = group.members().iter().filter(|member| !self.member(**member).row);
            let own = own.filter(|member| !self.reads_memory(self.member(**member).node));
            own.flat_map(|member| (self.member(*member).inputs.iter().enumerate()).map(move |input| (*member, input)))
                .filter_map(|(member, (operand, input))| {
                    let value = input.loaded()?;
                    let mut chain = self.chain_to(member, operand, value);
                    chain.extend(back.iter().cloned());
                    let whole = self.graph.shape(value).elements() == group.space().points();
                    Some((value, self.layout(value, &chain).filter(|_| whole)?))
                })
                .collect()
        };
        let there = reads(into, &Chain::new());
        reads(gone, back).iter().any(|read| there.contains(read))
    }
}

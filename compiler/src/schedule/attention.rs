//! Placing of attention: results of one call share a kernel, which reads its operands where they lie and stores a result
//! straight into the value it becomes a part of.
//!
//! A call is known by what its results have in common: `Out` and `Lse` the queries, keys and rows, gradients also `lse` and
//! their upstream gradient. A result joins the kernel of its call if the target allows that many operands and no reader of
//! it runs before. If all that happens to a result is that it is copied into its part of a concatenation (the gradient of a
//! packed projection) or around zeros, the copy is not made: the result is stored there.

use alip_plan::Target;

use super::group::{Group, GroupId, Groups, Kind, MemberId, Site, Store, What};
use super::layout::{Chain, Layout, inverse};
use crate::ir::{Graph, NodeId};
use crate::ops::Op;
use crate::ops::attention::{Attention, AttentionResult, Role};

/// What results of one kernel have in common: the call, with `Out` or `GradQ` for all results, and its shared inputs.
pub(crate) type CallKey = (Attention, Vec<NodeId>);

/// Whether the target has a kernel for a semantic op of a graph; what has none is expanded into primitives. For
/// attention there are kernels in the types that the target names.
pub fn has_kernel(graph: &Graph, id: NodeId, target: &Target) -> bool {
    let node = graph.node(id);
    let takes = |input: &NodeId| {
        let dtype = graph.ty(*input).dtype;
        !dtype.is_float() || target.attention.contains(&dtype)
    };
    let attention = matches!(node.op, Op::Attention(_)) && node.inputs.iter().all(takes);
    attention && node.inputs.len() < target.max_operands as usize
}

impl Groups<'_> {
    pub(super) fn place_attention(&mut self, id: NodeId, op: &Attention, uses: Vec<(MemberId, usize)>) {
        let (sites, whole) = self.sites(id, uses);
        let alone = self.fuse && whole.is_empty() && !self.required[id.index()];
        let part = if alone { self.part_of(id, &sites) } else { None };
        let target = part.as_ref().map_or(id, |(group, _)| self.groups[*group].stores[0].target);
        let key = self.call(id, op);
        let group = match self.call_group(id, op, &key, target, part.as_ref().map(|part| part.0)) {
            Some(group) => group,
            None => {
                let [q, k] = [0, 1].map(|input| self.sizes(self.graph.node(id).inputs[input]));
                let (samples, heads) = (&q[..op.lead() - 1], q[op.lead()]);
                let pairs = [heads, q[op.lead() - 1], k[op.lead() - 1]];
                let group = self.new_group(Kind::Attention, [samples, &pairs].concat(), vec![]);
                self.calls.entry(key).or_default().push(group);
                group
            }
        };
        let (copy, chain) = part.map_or((None, Chain::new()), |(copy, chain)| (Some(copy), chain));
        let inputs = self.inputs(&self.groups[group], id, What::Node, &Chain::new());
        let inputs = inputs.expect("on its own domain a node reads its operands as they are");
        let member = self.add_member(group, id, What::Node, false, chain, 0, inputs);
        if let Some(copy) = copy {
            return self.take_over(group, copy, member);
        }
        self.store(member, id, None);
        for site in &sites {
            self.load(id, &site.uses);
        }
        self.load(id, &whole);
    }

    fn call(&self, id: NodeId, op: &Attention) -> CallKey {
        use AttentionResult::*;
        let result = if matches!(op.result, Out | Lse) { Out } else { GradQ };
        let inputs = op.roles().into_iter().zip(self.graph.node(id).inputs.iter().copied());
        let shared = inputs.filter(|(role, _)| !matches!(role, Role::V | Role::Delta)).map(|(_, input)| input);
        (Attention { result, ..op.clone() }, shared.collect())
    }

    /// The kernel of this call that the result can join.
    fn call_group(
        &mut self,
        id: NodeId,
        op: &Attention,
        key: &CallKey,
        target: NodeId,
        copy: Option<GroupId>,
    ) -> Option<GroupId> {
        let candidates = if self.fuse { self.calls.get(key)?.clone() } else { return None };
        candidates.into_iter().find(|group| {
            let inputs = self.inputs(&self.groups[*group], id, What::Node, &Chain::new());
            let needed = inputs.into_iter().flat_map(|inputs| inputs.operands);
            let mut operands = self.groups[*group].operands.clone();
            operands.extend(needed.chain([target]));
            let agrees = self.groups[*group].members.iter().all(|member| {
                let other = self.graph.node(self.members[*member].node);
                let Op::Attention(with) = &other.op else { return false };
                let differs = |(role, input): (Role, &NodeId)| {
                    let mine = op.roles().iter().position(|r| *r == role);
                    mine.is_some_and(|at| self.graph.node(id).inputs[at] != *input)
                };
                with.result != op.result && !with.roles().into_iter().zip(&other.inputs).any(differs)
            });
            let before = copy.map_or(Vec::new(), |copy| self.groups[copy].after.clone());
            agrees
                && operands.len() <= self.max_operands
                && self.no_reader_before(*group)
                && before.into_iter().all(|first| !self.reaches(*group, self.find(first)))
        })
    }

    /// The group that does nothing but copy this value into its part of another one, and the views from the value's own
    /// shape to what the group loops over, undone.
    fn part_of(&self, id: NodeId, sites: &[Site]) -> Option<(GroupId, Chain)> {
        let [Site { group, row: false, chain, split: None, .. }] = sites else { return None };
        let copying = &self.groups[*group];
        let ([member], [store]) = (copying.members.as_slice(), copying.stores.as_slice()) else { return None };
        if copying.kind != Kind::Map || !matches!(self.members[*member].what, What::Copy(_)) {
            return None;
        }
        let back = inverse(&self.sizes(id), chain)?;
        let through: Chain = self.store_chain(store).into_iter().chain(back.iter().cloned()).collect();
        let layout = Layout::through(&self.sizes(store.target), &through)?;
        strided(&layout).then_some((*group, back))
    }

    /// Makes the group's member store what another group copied.
    fn take_over(&mut self, group: GroupId, copy: GroupId, member: MemberId) {
        let remains = Group { merged_into: Some(group), ..self.groups[group].clone() };
        let gone = std::mem::replace(&mut self.groups[copy], remains);
        let into = &mut self.groups[group];
        into.stores.extend(gone.stores.into_iter().map(|store| Store { member, ..store }));
        into.operands.extend(into.stores.iter().map(|store| store.target));
        into.before.extend(gone.before);
        into.after.extend(gone.after);
        if gone.level > into.level {
            self.relevel(group, gone.level - 1);
        }
    }
}

/// Can a kernel walk this layout with one stride per dimension?
pub(super) fn strided(layout: &Layout) -> bool {
    layout.dims.iter().all(|atoms| atoms.len() <= 1)
}

//! Placing of attention: results of one call share a kernel, which reads its operands where they lie and stores a result
//! straight into the value it becomes a part of.
//!
//! A call is known by what its results have in common: `Out` and `Lse` the queries, keys and rows, gradients also `lse` and
//! their upstream gradient. A result joins the kernel of its call if the target allows that many operands and no reader of
//! it runs before. If all that happens to a result is that it is copied into its part of a concatenation (the gradient of a
//! packed projection) or around zeros, the copy is not made: the result is stored there.

use alip_plan::Target;

use super::group::{GroupId, Groups, Kind, Member, Use, What};
use super::layout::{Chain, Layout, inverse};
use super::place::Site;
use super::space::Space;
use crate::diag::Diagnostic;
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

impl<'g> Groups<'g> {
    pub(super) fn place_attention(&mut self, id: NodeId, op: &'g Attention, uses: Vec<Use>) -> Result<(), Diagnostic> {
        let (sites, whole) = self.sites(id, uses);
        let alone = self.fuse && whole.is_empty() && !self.required[id.index()];
        let part = if alone { self.part_of(id, &sites) } else { None };
        let target = part.as_ref().map_or(id, |part| part.target);
        let key = self.call(id, op);
        let group = match self.call_group(id, op, &key, target, part.as_ref().map(|part| part.copy)) {
            Some(group) => group,
            None => {
                let [q, k] = [0, 1].map(|input| self.sizes(self.graph.node(id).inputs[input]));
                let (samples, heads) = (&q[..op.lead() - 1], q[op.lead()]);
                let pairs = [heads, q[op.lead() - 1], k[op.lead() - 1]];
                let group = self.new_group(Kind::Attention(op), Space::new([samples, &pairs].concat(), vec![]));
                self.calls.entry(key).or_default().push(group);
                group
            }
        };
        let (copy, chain) = part.map_or((None, Chain::new()), |part| (Some(part.copy), part.back));
        let inputs = self.inputs(self.group(group).space(), id, What::Node, &Chain::new());
        let inputs = inputs.map_err(|why| self.fault(id, &why.to_string()))?;
        let member = self.add(Member { chain, ..Member::new(group, id, What::Node) }, inputs);
        if let Some(copy) = copy {
            self.take_over(group, copy, member);
            return Ok(());
        }
        self.store(member, id, None);
        for site in &sites {
            self.load(id, &site.uses);
        }
        self.load(id, &whole);
        Ok(())
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
            let Ok(inputs) = self.inputs(self.group(*group).space(), id, What::Node, &Chain::new()) else {
                return false;
            };
            let more: Vec<NodeId> = inputs.operands.iter().copied().chain([target]).collect();
            let agrees = self.group(*group).members().iter().all(|member| {
                let other = self.graph.node(self.member(*member).node);
                let Op::Attention(with) = &other.op else { return false };
                let differs = |(role, input): (Role, &NodeId)| {
                    let mine = op.roles().iter().position(|r| *r == role);
                    mine.is_some_and(|at| self.graph.node(id).inputs[at] != *input)
                };
                with.result != op.result && !with.roles().into_iter().zip(&other.inputs).any(differs)
            });
            agrees
                && self.admits(*group, &more, None).is_ok()
                && self.no_reader_before(*group)
                && copy.is_none_or(|copy| self.can_follow_all_before(*group, copy))
        })
    }

    /// What happens to this value, if all of it is that a group copies it into its part of another one.
    fn part_of(&self, id: NodeId, sites: &[Site]) -> Option<Part> {
        let [Site { group, row: false, chain, split: None, .. }] = sites else { return None };
        let copying = self.group(*group);
        let ([member], [store]) = (copying.members(), copying.stores()) else { return None };
        if copying.kind() != Kind::Map || !matches!(self.member(*member).what, What::Copy(_)) {
            return None;
        }
        let back = inverse(&self.sizes(id), chain)?;
        let through: Chain = self.store_chain(store).into_iter().chain(back.iter().cloned()).collect();
        Layout::through(&self.sizes(store.target), &through)?.strides()?;
        Some(Part { copy: *group, target: store.target, back })
    }
}

/// The part of a value that a result becomes.
struct Part {
    /// The group that would copy the result there.
    copy: GroupId,
    /// The value.
    target: NodeId,
    /// From what that group loops over to the result's own shape.
    back: Chain,
}

//! How a group reads: from an operand as it stands in the graph, down through views, to a value that can be read where the
//! group's domain is walked.
//!
//! Invariant: what is found is affine over the domain refined by the group's cuts, and agrees with all that the group reads
//! already. A view that does not compose to that becomes a value of its own.

use smallvec::{SmallVec, smallvec};

use super::attention::strided;
use super::group::{Group, Groups, MemberId, What};
use super::layout::{Chain, Cuts, Layout, ViewOp, view_op};
use super::operands;
use crate::ir::NodeId;
use crate::ops::Op;

/// An operand of a member to be, found below its views.
pub(crate) struct Found {
    pub(super) value: NodeId,
    pub(super) chain: Chain,
}

/// Inputs of a member to be, and the group's cuts with them.
pub(crate) struct Inputs {
    pub(super) found: Vec<Found>,
    pub(crate) cuts: Cuts,
    /// What the member adds to the group's operands.
    pub(crate) operands: SmallVec<[NodeId; 3]>,
}

impl Groups<'_> {
    /// The operand of a member as it stands in the graph, and the chain from it to the domain on which it is read.
    pub(crate) fn operand(
        &self,
        node: NodeId,
        what: What,
        operand: usize,
        chain: &Chain,
        group: &Group,
    ) -> (NodeId, Chain) {
        let from = self.graph.node(node);
        match (what, &from.op) {
            (What::Copy(_), Op::Concat { .. } | Op::Pad { .. }) => {
                let What::Copy(part) = what else { unreachable!("matched above") };
                (from.inputs[part], chain.clone())
            }
            (What::Copy(_), _) => {
                let view = view_op(self.graph, node);
                (from.inputs[0], view.into_iter().chain(chain.iter().cloned()).collect())
            }
            (_, Op::Reduce { axes, .. }) => {
                let input = from.inputs[operand];
                (input, lifted(&self.sizes(input), axes, chain, group))
            }
            // Operands of these are read on domains of their own.
            (_, Op::Dot(_) | Op::Conv2d(_) | Op::ScatterAdd { .. } | Op::Gather { .. } | Op::Attention(_)) => {
                (from.inputs[operand], Chain::new())
            }
            // Seed and step; counters are read where they are drawn for.
            (_, Op::Random { .. }) if operand < 2 => {
                let scalar = ViewOp::Broadcast(self.sizes(node), vec![]);
                (from.inputs[operand], std::iter::once(scalar).chain(chain.iter().cloned()).collect())
            }
            _ => (from.inputs[operand], chain.clone()),
        }
    }

    /// Where the elements of a value lie that is read through a chain; coordinates and constants are not in memory, but
    /// have their place in the same form.
    pub(crate) fn layout(&self, value: NodeId, chain: &[ViewOp]) -> Option<Layout> {
        let sizes = self.sizes(value);
        match &self.graph.node(value).op {
            Op::Const { .. } => Some(Layout { offset: 0, dims: smallvec![] }),
            Op::Iota { axis, .. } => Layout::coordinate(&sizes, *axis, chain),
            _ => Layout::through(&sizes, chain),
        }
    }

    /// The views from `value` up to `top`, which lies above it.
    pub(crate) fn views(&self, mut top: NodeId, value: NodeId) -> Chain {
        let mut chain = Chain::new();
        while top != value {
            let Some(view) = view_op(self.graph, top) else { break };
            chain.push(view);
            top = self.graph.node(top).inputs[0];
        }
        chain.reverse();
        chain
    }

    /// The chain through which a member reads the value below one of its operands.
    pub(crate) fn chain_to(&self, member: MemberId, operand: usize, value: NodeId) -> Chain {
        let m = &self.members[member];
        let (top, chain) = self.operand(m.node, m.what, operand, &m.chain, &self.groups[self.find(m.group)]);
        let mut all = self.views(top, value);
        all.extend(chain);
        all
    }

    /// Number of operands of a member.
    pub(crate) fn arity(&self, node: NodeId, what: What) -> usize {
        match what {
            What::Zero => 0,
            What::Copy(_) => 1,
            What::Node => self.graph.node(node).inputs.len(),
        }
    }

    /// Finds the inputs of a member to be below their views. Where views do not compose to something affine that agrees
    /// with the rest of the group, the topmost view that does not becomes a value of its own.
    ///
    /// `None` if even the operands themselves cannot be read along this chain (only a reduction's can fail so).
    pub(crate) fn inputs(&self, group: &Group, node: NodeId, what: What, chain: &Chain) -> Option<Inputs> {
        let mut cuts = group.cuts.clone();
        let mut found = Vec::new();
        let mut operands = SmallVec::new();
        for operand in 0..self.arity(node, what) {
            let (top, chain) = self.operand(node, what, operand, chain, group);
            let below = self.below(node, operand, top, chain, &mut cuts)?;
            if !self.facts[below.value.index()].trivial || self.whole_operands(node) {
                operands.push(below.value);
            }
            found.push(below);
        }
        if let (What::Node, Op::Gather { batch }) = (what, &self.graph.node(node).op)
            && !self.gathers(node, *batch, &found, chain, &mut cuts)
        {
            let tops = self.graph.node(node).inputs.iter();
            found = tops.map(|top| Found { value: *top, chain: Chain::new() }).collect();
            self.gathers(node, *batch, &found, chain, &mut cuts).then_some(())?;
            operands = self.graph.node(node).inputs.iter().copied().collect();
        }
        Some(Inputs { found, cuts, operands })
    }

    /// Does the node read its operands from memory, never from registers?
    pub(crate) fn whole_operands(&self, node: NodeId) -> bool {
        let op = &self.graph.node(node).op;
        matches!(op, Op::Dot(_) | Op::Conv2d(_) | Op::ScatterAdd { .. } | Op::Gather { .. } | Op::Attention(_))
    }

    /// The deepest value below `top` that can be read through the views above it.
    fn below(&self, node: NodeId, operand: usize, top: NodeId, chain: Chain, cuts: &mut Cuts) -> Option<Found> {
        let mut candidates = vec![Found { value: top, chain }];
        while let Some(last) = candidates.last()
            && let Some(view) = view_op(self.graph, last.value)
        {
            let chain = std::iter::once(view).chain(last.chain.iter().cloned()).collect();
            candidates.push(Found { value: self.graph.node(last.value).inputs[0], chain });
        }
        candidates.into_iter().rev().find(|candidate| self.readable(node, operand, candidate, cuts))
    }

    fn readable(&self, node: NodeId, operand: usize, found: &Found, cuts: &mut Cuts) -> bool {
        let whole = self.whole_operands(node);
        let layout = if whole {
            Layout::through(&self.sizes(found.value), &found.chain)
        } else {
            self.layout(found.value, &found.chain)
        };
        let Some(layout) = layout else { return false };
        match &self.graph.node(node).op {
            Op::Dot(dot) => {
                let batch = Layout { offset: 0, dims: layout.dims[..dot.batch.len()].iter().cloned().collect() };
                operands::product(&layout, dot.batch.len(), dot.contract.len()).is_some() && cuts.add(&batch)
            }
            Op::Attention(_) => strided(&layout),
            Op::Conv2d(_) | Op::ScatterAdd { .. } => layout.is_identity(self.graph.shape(found.value).elements()),
            // The member's own chain is over the gathered rows; `gathers` checks the whole.
            Op::Gather { batch } if operand == 0 => layout.dims[*batch].len() <= 1,
            Op::Gather { .. } => true,
            _ => cuts.add(&layout),
        }
    }

    /// Can a gather be read through these views and its own chain?
    fn gathers(&self, node: NodeId, batch: usize, found: &[Found], chain: &Chain, cuts: &mut Cuts) -> bool {
        let [data, index] = found else { return false };
        let views = [(data.value, &data.chain), (index.value, &index.chain)];
        let views = views.map(|(value, views)| Layout::through(&self.sizes(value), views));
        let [Some(data), Some(index)] = views else { return false };
        let rank = self.graph.shape(self.graph.node(node).inputs[1]).rank();
        let Some(gathered) = operands::gather(&data, &index, batch, rank, chain) else { return false };
        cuts.add(&gathered.data) && cuts.add(&gathered.index)
    }
}

/// The chain from the input of a reduction to the points of a group, given the chain from its result to the group's rows:
/// reduced dimensions go last, and what happens to the result happens to the input beside them.
fn lifted(sizes: &[u64], axes: &[usize], chain: &Chain, group: &Group) -> Chain {
    let kept: Vec<usize> = (0..sizes.len()).filter(|dim| !axes.contains(dim)).collect();
    let tail: Vec<u64> = axes.iter().map(|axis| sizes[*axis]).collect();
    let mut rank = kept.len();
    let mut result = vec![ViewOp::Transpose(kept.iter().chain(axes).copied().collect())];
    for view in chain {
        result.push(match view {
            ViewOp::Reshape(new) => {
                rank = new.len();
                ViewOp::Reshape([new.as_slice(), &tail].concat())
            }
            ViewOp::Transpose(perm) => {
                ViewOp::Transpose(perm.iter().copied().chain((0..tail.len()).map(|i| rank + i)).collect())
            }
            ViewOp::Broadcast(new, places) => {
                rank = new.len();
                let tail_places = (0..tail.len()).map(|i| rank + i);
                ViewOp::Broadcast([new.as_slice(), &tail].concat(), places.iter().copied().chain(tail_places).collect())
            }
            ViewOp::Slice(ranges) => {
                ViewOp::Slice(ranges.iter().copied().chain(tail.iter().map(|size| (0, *size, 1))).collect())
            }
        });
    }
    result.push(ViewOp::Reshape([group.kept.as_slice(), &group.reduced].concat()));
    result
}

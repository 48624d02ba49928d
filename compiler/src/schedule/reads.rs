//! How a group reads: from an operand as it stands in the graph, down through views, to a value that can be read where the
//! group's domain is walked.
//!
//! Invariant: what is found is affine over the domain refined by the group's cuts, and agrees with all that the group reads
//! already. A view that does not compose to that becomes a value of its own.
//!
//! [`Form`] is what every op says of its operands. It is the one scheme of all archetypes: grouping admits what has the form
//! asked for, and code generation makes a view of it.

use alip_plan::kernel::ConvKind;
use smallvec::{SmallVec, smallvec};

use super::group::{Groups, MemberId, Refusal, Store, What};
use super::layout::{Chain, Cuts, Layout, ViewOp, view_op};
use super::operands;
use super::space::Space;
use crate::diag::Diagnostic;
use crate::ir::NodeId;
use crate::ops::Op;

/// How an op reads an operand. All but [`Form::Points`] are read from memory, on a domain of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// At the points of the group or once per row, from wherever it is.
    Points,
    /// As `[batch.., free.., contracted..]`, with one stride each for what is free and what is contracted.
    Factor { batch: usize, contracted: usize },
    /// With one stride per dimension.
    Strided,
    /// Every element, in the order in which they lie.
    Dense,
    /// The same, or what a prologue makes of bytes.
    Image,
    /// As `[batch.., n, rest..]`, of which rows are picked along `n`, with one stride.
    Table { batch: usize },
    /// As the indices that pick them.
    Picks,
}

impl Form {
    /// What an op asks of an operand.
    pub(super) fn of(op: &Op, operand: usize) -> Form {
        match op {
            Op::Dot(dot) => Form::Factor { batch: dot.batch.len(), contracted: dot.contract.len() },
            Op::Conv2d(conv) if operand == 0 && conv.kind != ConvKind::ImageGrad => Form::Image,
            Op::Conv2d(_) | Op::ScatterAdd { .. } => Form::Dense,
            Op::Attention(_) => Form::Strided,
            Op::Gather { batch } if operand == 0 => Form::Table { batch: *batch },
            Op::Gather { .. } => Form::Picks,
            _ => Form::Points,
        }
    }

    /// Whether an operand that lies so can be read; cuts are those of the group, refined where it walks the operand.
    fn admits(self, layout: &Layout, elements: u64, cuts: &mut Cuts) -> bool {
        match self {
            Form::Points => cuts.add(layout),
            Form::Factor { batch, contracted } => {
                let over_batch = Layout { offset: 0, dims: layout.dims[..batch].iter().cloned().collect() };
                operands::product(layout, batch, contracted).is_some() && cuts.add(&over_batch)
            }
            Form::Strided => layout.strides().is_some(),
            Form::Dense | Form::Image => layout.is_identity(elements),
            // The member's own chain is over the gathered rows; `gathers` checks the whole.
            Form::Table { batch } => layout.dims[batch].len() <= 1,
            Form::Picks => true,
        }
    }
}

/// An operand of a member to be, found below its views.
pub(super) struct Found {
    pub(super) value: NodeId,
    pub(super) chain: Chain,
}

/// Inputs of a member to be, and the group's cuts with them.
pub(super) struct Inputs {
    pub(super) found: Vec<Found>,
    pub(super) cuts: Cuts,
    /// What the member adds to the group's operands.
    pub(super) operands: SmallVec<[NodeId; 3]>,
}

impl Groups<'_> {
    /// The operand of a member as it stands in the graph, and the chain from it to the domain on which it is read.
    fn operand(&self, node: NodeId, what: What, operand: usize, chain: &Chain, space: &Space) -> (NodeId, Chain) {
        let from = self.graph.node(node);
        match (what, &from.op) {
            (What::Copy(part), Op::Concat { .. } | Op::Pad { .. }) => (from.inputs[part], chain.clone()),
            (What::Copy(_), _) => {
                let view = view_op(self.graph, node);
                (from.inputs[0], view.into_iter().chain(chain.iter().cloned()).collect())
            }
            (_, Op::Reduce { axes, .. }) => {
                let input = from.inputs[operand];
                (input, lifted(&self.sizes(input), axes, chain, space))
            }
            (_, op) if Form::of(op, operand) != Form::Points => (from.inputs[operand], Chain::new()),
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
    fn views(&self, mut top: NodeId, value: NodeId) -> Chain {
        let mut chain = Chain::new();
        while top != value {
            let Some(view) = view_op(self.graph, top) else { break };
            chain.push(view);
            top = self.graph.node(top).inputs[0];
        }
        chain.reverse();
        chain
    }

    /// The value in memory that an operand of a member is, or lies below, and where its elements lie on the domain on which
    /// the member reads it.
    ///
    /// # Errors
    /// The operand is not loaded, or has no such layout: neither leaves grouping.
    pub(crate) fn access(&self, member: MemberId, operand: usize) -> Result<(NodeId, Layout), Diagnostic> {
        let access = || {
            let value = self.member(member).inputs.get(operand)?.loaded()?;
            Some((value, Layout::through(&self.sizes(value), &self.chain_to(member, operand, value))?))
        };
        access().ok_or_else(|| self.fault(self.member(member).node, "an operand that cannot be loaded"))
    }

    /// Where the elements lie that a group stores, on the group's space.
    ///
    /// # Errors
    /// They have no such layout: none leaves grouping.
    pub(crate) fn store_layout(&self, store: &Store) -> Result<Layout, Diagnostic> {
        let layout = Layout::through(&self.sizes(store.target), &self.store_chain(store));
        layout.ok_or_else(|| self.fault(store.target, "a value that cannot be stored"))
    }

    /// The chain through which a member reads the value below one of its operands.
    pub(super) fn chain_to(&self, member: MemberId, operand: usize, value: NodeId) -> Chain {
        let m = self.member(member);
        let space = self.group(self.group_of(member)).space();
        let (top, chain) = self.operand(m.node, m.what, operand, &m.chain, space);
        let mut all = self.views(top, value);
        all.extend(chain);
        all
    }

    /// Number of operands of a member.
    fn arity(&self, node: NodeId, what: What) -> usize {
        match what {
            What::Zero => 0,
            What::Copy(_) => 1,
            What::Node => self.graph.node(node).inputs.len(),
        }
    }

    /// Finds the inputs of a member to be below their views. Where views do not compose to something affine that agrees
    /// with the rest of the group, the topmost view that does not becomes a value of its own.
    ///
    /// # Errors
    /// [`Refusal::Access`] if even the operands themselves cannot be read along this chain (only a reduction's can fail so).
    pub(super) fn inputs(&self, space: &Space, node: NodeId, what: What, chain: &Chain) -> Result<Inputs, Refusal> {
        let mut cuts = space.cuts().clone();
        let mut found = Vec::new();
        let mut operands = SmallVec::new();
        for operand in 0..self.arity(node, what) {
            let (top, chain) = self.operand(node, what, operand, chain, space);
            let below = self.below(node, operand, top, chain, &mut cuts).ok_or(Refusal::Access)?;
            if !self.facts[below.value.index()].trivial || self.reads_memory(node) {
                operands.push(below.value);
            }
            found.push(below);
        }
        if let (What::Node, Op::Gather { batch }) = (what, &self.graph.node(node).op)
            && !self.gathers(node, *batch, &found, chain, &mut cuts)
        {
            let tops = self.graph.node(node).inputs.iter();
            found = tops.map(|top| Found { value: *top, chain: Chain::new() }).collect();
            self.gathers(node, *batch, &found, chain, &mut cuts).then_some(()).ok_or(Refusal::Access)?;
            operands = self.graph.node(node).inputs.iter().copied().collect();
        }
        Ok(Inputs { found, cuts, operands })
    }

    /// Does the node read its operands from memory, never from registers?
    pub(super) fn reads_memory(&self, node: NodeId) -> bool {
        Form::of(&self.graph.node(node).op, 0) != Form::Points
    }

    /// The deepest value below `top` that can be read through the views above it.
    fn below(&self, node: NodeId, operand: usize, top: NodeId, chain: Chain, cuts: &mut Cuts) -> Option<Found> {
        if Form::of(&self.graph.node(node).op, operand) == Form::Image
            && let Ok(prologue) = self.pixels(top)
        {
            return Some(Found { value: prologue.value, chain: Chain::new() });
        }
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
        let form = Form::of(&self.graph.node(node).op, operand);
        let layout = match form {
            Form::Points => self.layout(found.value, &found.chain),
            _ => Layout::through(&self.sizes(found.value), &found.chain),
        };
        layout.is_some_and(|layout| form.admits(&layout, self.graph.shape(found.value).elements(), cuts))
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
fn lifted(sizes: &[u64], axes: &[usize], chain: &Chain, space: &Space) -> Chain {
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
    result.push(ViewOp::Reshape(space.sizes()));
    result
}

//! Value numbering, cheap folds and dead code elimination.
//!
//! Only folds that are exact and never make a graph larger stand here; they exist so that differentiation and module
//! inlining leave no litter (`x * 1`, a broadcast of a broadcast, arithmetic on constants). Everything that weighs one
//! form against another belongs to the optimiser.

use alip_plan::fault::{Fault, planted};
use smallvec::SmallVec;

use super::{DType, Graph, NodeId, OriginId, Shape, TensorType};
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ops::{Op, OpError, ReduceKind, ScalarOp, constant, fold, widened_from};

/// A new graph, and where the nodes of the old one went; `None` for those that are gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Simplified {
    /// The new graph.
    pub graph: Graph,
    /// By old id.
    pub map: Vec<Option<NodeId>>,
}

/// What becomes of `stop_gradient`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopGradients {
    /// Kept: differentiation is still to come.
    Keep,
    /// Replaced by their operand, which they are once everything is differentiated.
    Drop,
}

/// Folds, merges equal nodes and drops dead ones, in one pass over the graph.
///
/// # Errors
/// A fold built a node its op refuses: a fault of this pass.
pub fn simplify(graph: &Graph, stops: StopGradients) -> Result<Simplified, Diagnostics> {
    let mut simplifier =
        Simplifier { graph: graph.successor(), known: HashMap::default(), origin: OriginId::default(), stops };
    let mut map = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        simplifier.origin = node.origin;
        let inputs: Operands = node.inputs.iter().map(|input| map[input.index()]).collect();
        let new = simplifier.node(node.op.clone(), &inputs).map_err(|error| fault(graph, id, &error))?;
        map.push(new);
    }
    let mut merged = simplifier.graph;
    let map: Vec<Option<NodeId>> = map.into_iter().map(Some).collect();
    merged.take_names(graph, |id| map[id.index()]);
    let live = eliminate_dead(&merged)?;
    let map = map.into_iter().map(|id| id.and_then(|id| live.map[id.index()])).collect();
    Ok(Simplified { graph: live.graph, map })
}

/// Drops nodes that no output, no update and no input of the program needs. Named values stay while their node does.
///
/// # Errors
/// As [`simplify`].
pub fn eliminate_dead(graph: &Graph) -> Result<Simplified, Diagnostics> {
    let live = graph.live(graph.outputs.values().chain(graph.updates.values()).chain(graph.inputs.values()));
    let mut new = graph.successor();
    let mut map: Vec<Option<NodeId>> = Vec::with_capacity(live.len());
    for id in graph.ids() {
        if !live[id.index()] {
            map.push(None);
            continue;
        }
        // The inputs of a live node are live.
        let inputs = graph.node(id).inputs.iter().filter_map(|input| map[input.index()]).collect();
        map.push(Some(new.copy(graph, id, inputs).map_err(|error| fault(graph, id, &error))?));
    }
    new.take_names(graph, |id| map[id.index()]);
    Ok(Simplified { graph: new, map })
}

type Operands = SmallVec<[NodeId; 3]>;

fn fault(graph: &Graph, id: NodeId, error: &OpError) -> Diagnostics {
    let message = format!("simplifying `{}` failed: {}", graph.node(id).op.name(), error.message);
    let help = "this is a fault of the compiler; please report it with the spec";
    OpError::new(message).help(help).diagnose(graph.origin(id)).into()
}

struct Simplifier {
    graph: Graph,
    /// Value numbering.
    known: HashMap<(Op, Operands), NodeId>,
    origin: OriginId,
    stops: StopGradients,
}

impl Simplifier {
    /// The node that stands for this application: an existing one, or one that is added.
    fn node(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, OpError> {
        let folded = match &op {
            Op::Pointwise(scalar) => self.fold_pointwise(*scalar, inputs)?,
            op => self.fold_view(op, inputs)?,
        };
        if let Some(id) = folded {
            return Ok(id);
        }
        let mut inputs: Operands = inputs.into();
        if let Op::Pointwise(scalar) = op
            && commutes(scalar)
        {
            // Constants last, for readers; the order within each kind only has to be one.
            inputs.sort_by_key(|id| (self.graph.splat(*id).is_some(), *id));
        }
        let key = (op, inputs);
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        let id = self.graph.add(key.0.clone(), &key.1, self.origin)?;
        self.known.insert(key, id);
        Ok(id)
    }

    fn op(&self, id: NodeId) -> &Op {
        &self.graph.node(id).op
    }

    fn input(&self, id: NodeId) -> NodeId {
        self.graph.node(id).inputs[0]
    }

    fn make_splat(&mut self, value: f64, dtype: DType, shape: &Shape) -> Result<NodeId, OpError> {
        let scalar = self.node(constant(value, dtype), &[])?;
        self.node(Op::Broadcast { shape: shape.clone(), dims: vec![] }, &[scalar])
    }

    fn fold_pointwise(&mut self, op: ScalarOp, inputs: &[NodeId]) -> Result<Option<NodeId>, OpError> {
        let values: SmallVec<[Option<f64>; 3]> = inputs.iter().map(|id| self.graph.splat(*id)).collect();
        let Some(last) = inputs.last() else { return Ok(None) };
        if let Some(values) = values.iter().copied().collect::<Option<SmallVec<[f64; 3]>>>() {
            let dtype = self.graph.ty(*last).dtype;
            let ty = Op::Pointwise(op).infer(&inputs.iter().map(|id| self.graph.ty(*id)).collect::<Vec<_>>())?;
            if let Some(value) = fold(op, dtype, &values) {
                return self.make_splat(value, ty.dtype, &ty.shape).map(Some);
            }
        }
        if let Some(id) = self.identity(op, inputs, &values) {
            return Ok(Some(id));
        }
        match self.hoist(op, inputs)? {
            Some(id) => Ok(Some(id)),
            None => self.hoist_ones(op, inputs),
        }
    }

    /// Operations that give back one of their operands.
    fn identity(&self, op: ScalarOp, inputs: &[NodeId], values: &[Option<f64>]) -> Option<NodeId> {
        use ScalarOp::*;
        let is = |position: usize, value: f64| values[position] == Some(value);
        let twice = |op: ScalarOp| *self.op(inputs[0]) == Op::Pointwise(op);
        match op {
            Add | Or if is(1, 0.0) => Some(inputs[0]),
            Add | Or if is(0, 0.0) => Some(inputs[1]),
            Mul | And if is(1, 1.0) => Some(inputs[0]),
            Mul | And if is(0, 1.0) => Some(inputs[1]),
            Mul if is(1, 0.0) && planted(Fault::TimesZeroIsIdentity) => Some(inputs[0]),
            Sub if is(1, 0.0) => Some(inputs[0]),
            Div | Pow if is(1, 1.0) => Some(inputs[0]),
            Min | Max | And | Or if inputs[0] == inputs[1] => Some(inputs[0]),
            Select if inputs[1] == inputs[2] => Some(inputs[1]),
            Select => values[0].map(|condition| if condition == 0.0 { inputs[2] } else { inputs[1] }),
            Neg if twice(Neg) => Some(self.input(inputs[0])),
            Not if twice(Not) => Some(self.input(inputs[0])),
            Cast(dtype) if self.graph.ty(inputs[0]).dtype == dtype => Some(inputs[0]),
            Cast(dtype) => widened_from(&self.graph, inputs[0]).filter(|id| self.graph.ty(*id).dtype == dtype),
            _ => None,
        }
    }

    /// A scalar operation on tensors that are repeated alike is done once, then repeated.
    fn hoist(&mut self, op: ScalarOp, inputs: &[NodeId]) -> Result<Option<NodeId>, OpError> {
        let mut pattern: Option<(Shape, Vec<usize>, Shape)> = None;
        for id in inputs.iter().filter(|id| self.graph.splat(**id).is_none()) {
            let Op::Broadcast { shape, dims } = self.op(*id) else { return Ok(None) };
            let inner = self.graph.shape(self.input(*id));
            match &pattern {
                None => pattern = Some((shape.clone(), dims.clone(), inner.clone())),
                Some((_, other, from)) if other == dims && from == inner => {}
                Some(_) => return Ok(None),
            }
        }
        let Some((shape, dims, inner)) = pattern else { return Ok(None) };
        let mut operands = Operands::new();
        for id in inputs {
            operands.push(match self.graph.splat(*id) {
                Some(value) => self.make_splat(value, self.graph.ty(*id).dtype, &inner)?,
                None => self.input(*id),
            });
        }
        let once = self.node(Op::Pointwise(op), &operands)?;
        self.node(Op::Broadcast { shape, dims }, &[once]).map(Some)
    }

    /// A scalar operation on tensors that were all given the same dimensions of size 1 is done before they are.
    fn hoist_ones(&mut self, op: ScalarOp, inputs: &[NodeId]) -> Result<Option<NodeId>, OpError> {
        let mut inner: Option<Shape> = None;
        for id in inputs.iter().filter(|id| self.graph.splat(**id).is_none()) {
            let Op::Reshape { .. } = self.op(*id) else { return Ok(None) };
            let from = self.graph.shape(self.input(*id));
            if inner.as_ref().is_some_and(|inner| inner != from) || !same_but_ones(from, self.graph.shape(*id)) {
                return Ok(None);
            }
            inner = Some(from.clone());
        }
        let (Some(inner), Some(shape)) = (inner, inputs.last().map(|id| self.graph.shape(*id).clone())) else {
            return Ok(None);
        };
        let mut operands = Operands::new();
        for id in inputs {
            operands.push(match self.graph.splat(*id) {
                Some(value) => self.make_splat(value, self.graph.ty(*id).dtype, &inner)?,
                None => self.input(*id),
            });
        }
        let before = self.node(Op::Pointwise(op), &operands)?;
        self.node(Op::Reshape { shape }, &[before]).map(Some)
    }

    /// A transpose goes behind a slice, a gradient stop, and a reshape that only adds or drops dimensions of size 1: so
    /// transposes meet, and cancel. Reshapes and broadcasts go behind gradient stops.
    fn later(&mut self, op: &Op, x: NodeId) -> Result<Option<NodeId>, OpError> {
        let source = self.graph.node(x).inputs.first().copied().unwrap_or(x);
        let (inner, outer) = match (op, self.op(x).clone()) {
            (Op::StopGradient, view @ (Op::Transpose { .. } | Op::Reshape { .. } | Op::Broadcast { .. })) => {
                (Op::StopGradient, view)
            }
            (Op::Slice { start, end, step }, Op::Transpose { perm }) => {
                let back = |ranges: &[u64]| {
                    let mut moved = vec![0; perm.len()];
                    perm.iter().zip(ranges).for_each(|(axis, range)| moved[*axis] = *range);
                    moved
                };
                (Op::Slice { start: back(start), end: back(end), step: back(step) }, Op::Transpose { perm })
            }
            (Op::Reshape { shape }, Op::Transpose { perm }) => {
                let (from, to) = (self.graph.shape(x), shape);
                if !same_but_ones(from, to) {
                    return Ok(None);
                }
                // The source's dimensions that are not 1, in its order, by their place in the result; ones come first.
                let kept = |shape: &Shape| (0..shape.rank()).filter(|axis| shape.size(*axis) != 1).collect::<Vec<_>>();
                let place = |axis: usize| kept(from).iter().position(|i| perm[*i] == axis);
                let wide = kept(to);
                let source_shape = self.graph.shape(source);
                let mut order: Vec<usize> = (0..to.rank()).filter(|axis| to.size(*axis) == 1).collect();
                order.extend(kept(source_shape).into_iter().filter_map(place).map(|i| wide[i]));
                if order.len() != to.rank() {
                    return Ok(None);
                }
                let mut back = vec![0; order.len()];
                order.iter().enumerate().for_each(|(from, axis)| back[*axis] = from);
                let shape = order.iter().map(|axis| to.0[*axis]).collect();
                (Op::Reshape { shape }, Op::Transpose { perm: back })
            }
            _ => return Ok(None),
        };
        let inner = self.node(inner, &[source])?;
        self.node(outer, &[inner]).map(Some)
    }

    fn fold_view(&mut self, op: &Op, inputs: &[NodeId]) -> Result<Option<NodeId>, OpError> {
        let Some(&x) = inputs.first() else { return Ok(None) };
        let TensorType { dtype, shape: from } = self.graph.ty(x).clone();
        let composed = match (op, self.op(x)) {
            (Op::StopGradient, _) if self.stops == StopGradients::Drop => return Ok(Some(x)),
            (Op::StopGradient, Op::StopGradient | Op::Const { .. }) => return Ok(Some(x)),
            (Op::Reduce { kind, axes }, _) if axes.is_empty() && *kind != ReduceKind::ArgMax => return Ok(Some(x)),
            (Op::Concat { .. }, _) if inputs.len() == 1 => return Ok(Some(x)),
            (Op::Reduce { kind, axes }, _)
                if axes.iter().all(|a| from.size(*a) == 1) && *kind != ReduceKind::ArgMax =>
            {
                let kept = (0..from.rank()).filter(|axis| !axes.contains(axis));
                return self.node(Op::Reshape { shape: kept.map(|axis| from.0[axis]).collect() }, &[x]).map(Some);
            }
            (Op::Reshape { shape }, _) if *shape == from => return Ok(Some(x)),
            (Op::Broadcast { shape, .. }, _) if *shape == from => return Ok(Some(x)),
            (Op::Transpose { perm }, _) if perm.is_sorted() => return Ok(Some(x)),
            (Op::Slice { end, start, step }, _)
                if *end == from.sizes() && start.iter().all(|n| *n == 0) && step.iter().all(|n| *n == 1) =>
            {
                return Ok(Some(x));
            }
            (Op::Pad { low, high, interior }, _) if low.iter().chain(high).chain(interior).all(|n| *n == 0) => {
                return Ok(Some(x));
            }
            (Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }, _) if self.graph.splat(x).is_some() => {
                let ty = op.infer(&[self.graph.ty(x)])?;
                let value = self.graph.splat(x).unwrap_or_default();
                return self.make_splat(value, dtype, &ty.shape).map(Some);
            }
            (Op::Reshape { shape }, Op::Reshape { .. }) => Op::Reshape { shape: shape.clone() },
            (Op::Transpose { perm }, Op::Transpose { perm: first }) => {
                let (outer, inner) =
                    if planted(Fault::TransposesComposedBackwards) { (first, perm) } else { (perm, first) };
                Op::Transpose { perm: outer.iter().map(|axis| inner[*axis]).collect() }
            }
            (Op::Broadcast { shape, dims }, Op::Broadcast { dims: first, .. }) => {
                Op::Broadcast { shape: shape.clone(), dims: first.iter().map(|axis| dims[*axis]).collect() }
            }
            (Op::Broadcast { shape, dims }, Op::Reshape { .. }) => match self.without_ones(x) {
                Some(kept) => {
                    Op::Broadcast { shape: shape.clone(), dims: kept.iter().map(|axis| dims[*axis]).collect() }
                }
                None => return Ok(None),
            },
            _ => return self.later(op, x),
        };
        let source = self.input(x);
        self.node(composed, &[source]).map(Some)
    }

    /// For a reshape that only adds dimensions of size 1 (what `keep: true` does): where the others went.
    fn without_ones(&self, reshape: NodeId) -> Option<Vec<usize>> {
        let (from, to) = (self.graph.shape(self.input(reshape)), self.graph.shape(reshape));
        let kept: Vec<usize> = (0..to.rank()).filter(|axis| to.size(*axis) != 1).collect();
        let same = from.rank() == kept.len() && kept.iter().zip(&from.0).all(|(axis, dim)| to.size(*axis) == dim.size);
        same.then_some(kept)
    }
}

/// Whether two shapes differ only in dimensions of size 1.
fn same_but_ones(a: &Shape, b: &Shape) -> bool {
    let wide =
        |shape: &Shape| shape.0.iter().map(|dim| dim.size).filter(|size| *size != 1).collect::<SmallVec<[u64; 4]>>();
    wide(a) == wide(b)
}

/// Whether the operands may change places.
pub(crate) fn commutes(op: ScalarOp) -> bool {
    use ScalarOp::*;
    matches!(op, Add | Mul | Min | Max | Eq | And | Or)
}

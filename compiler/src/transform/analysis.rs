//! What the rewrites ask of a graph: along which dimensions an operation works row by row, and what a program costs.
//!
//! An op is *row-wise* along a dimension of its result when each position there needs, of every operand, either the same
//! position along one dimension or the operand as a whole. Such an op commutes with picking positions (push-down) and with
//! joining tensors along that dimension (batching). What is not known to be row-wise is taken not to be.

use indexmap::IndexMap;
use smallvec::SmallVec;

use super::Cost;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Dim, Graph, NodeId, Shape};
use crate::launch::joined;
use crate::ops::attention::Rows;
use crate::ops::{ConvKind, Op, OpError, ReduceKind};

/// For each operand: the dimension that runs along with the result's, or none when it is read whole.
pub(super) type Along = SmallVec<[Option<usize>; 3]>;

/// How the op of a node works along dimension `axis` of its result; `None` when it is not row-wise there.
pub(super) fn along(graph: &Graph, id: NodeId, axis: usize) -> Option<Along> {
    let node = graph.node(id);
    let all = |axis: usize| Some(node.inputs.iter().map(|_| Some(axis)).collect::<Along>());
    let two = |first: Option<usize>, second: Option<usize>| Some(Along::from_slice(&[first, second]));
    let shape = |operand: usize| graph.shape(node.inputs[operand]);
    match &node.op {
        Op::Pointwise(_) | Op::StopGradient => all(axis),
        Op::Softmax { axes } | Op::LayerNorm { axes, .. } if !axes.contains(&axis) => all(axis),
        Op::CrossEntropy => all(axis),
        Op::Reduce { axes, .. } | Op::LogSumExp { axes } => {
            all((0..shape(0).rank()).filter(|axis| !axes.contains(axis)).nth(axis)?)
        }
        Op::Dot(dot) => match axis.checked_sub(dot.batch.len()) {
            None => two(Some(dot.batch[axis].0), Some(dot.batch[axis].1)),
            Some(free) => {
                let left = dot.lhs_free(shape(0).rank());
                match free.checked_sub(left.len()) {
                    None => two(Some(left[free]), None),
                    Some(right) => two(None, Some(*dot.rhs_free(shape(1).rank()).get(right)?)),
                }
            }
        },
        Op::Conv2d(conv) if conv.kind == ConvKind::Forward => match axis {
            0 => two(Some(0), None),
            1 => two(None, Some(0)),
            _ => None,
        },
        Op::Reshape { shape: to } => all(same_place(shape(0), to, axis)?),
        Op::Transpose { perm } => all(perm[axis]),
        Op::Broadcast { shape: to, dims } => {
            let from = dims.iter().position(|to| *to == axis);
            let repeats = |from: &usize| shape(0).size(*from) != to.size(axis);
            Some(Along::from_slice(&[from.filter(|from| !repeats(from))]))
        }
        Op::Slice { start, end, step } => {
            let whole = (start[axis], end[axis], step[axis]) == (0, shape(0).size(axis), 1);
            if whole { all(axis) } else { None }
        }
        Op::Pad { low, high, interior } if [low[axis], high[axis], interior[axis]] == [0; 3] => all(axis),
        Op::Concat { axis: joined } if *joined != axis => all(axis),
        Op::Gather { batch } => {
            let indices = shape(1).rank();
            match axis.checked_sub(indices) {
                None if axis < *batch => two(Some(axis), Some(axis)),
                None => two(None, Some(axis)),
                Some(inner) => two(Some(batch + 1 + inner), None),
            }
        }
        Op::ScatterAdd { batch, .. } if axis < *batch => all(axis),
        Op::ScatterAdd { batch, .. } if axis > *batch => two(None, Some(shape(0).rank() + axis - batch - 1)),
        Op::Iota { axis: counted, .. } if *counted != axis => Some(Along::new()),
        Op::Attention(attention) => attention_along(attention.rows, attention.causal, node.inputs.len(), axis),
        _ => None,
    }
}

/// Of [`Op::Attention`], `Out` or `Lse`: inputs q, k, (v), (lengths or segments). Gradients do not stand in forward graphs,
/// and have more inputs than this admits.
fn attention_along(rows: Rows, causal: bool, inputs: usize, axis: usize) -> Option<Along> {
    let tensors = inputs - usize::from(rows != Rows::Dense);
    let heads = if rows == Rows::Segments { 1 } else { 2 };
    let of = |q: Option<usize>, k: Option<usize>, v: Option<usize>, extra: Option<usize>| {
        let all = [q, k, v].into_iter().take(tensors).chain((rows != Rows::Dense).then_some(extra));
        (tensors <= 3).then(|| all.collect::<Along>())
    };
    match axis {
        axis if axis == heads => of(Some(heads), Some(heads), Some(heads), None),
        axis if axis == heads + 1 && tensors == 3 => of(None, None, Some(heads + 1), None),
        0 if rows != Rows::Segments => of(Some(0), Some(0), Some(0), Some(0)),
        // The lengths are per sample, not per query.
        1 if rows != Rows::Segments && !causal => of(Some(1), None, None, None),
        _ => None,
    }
}

/// The dimension that is dimension `axis` of `to` before a reshape: of the same size, with as many elements before it.
pub(super) fn same_place(from: &Shape, to: &Shape, axis: usize) -> Option<usize> {
    let before = |shape: &Shape, axis: usize| shape.0[..axis].iter().map(|dim| dim.size).product::<u64>();
    let elements = before(to, axis);
    (0..from.rank()).find(|place| from.size(*place) == to.size(axis) && before(from, *place) == elements)
}

/// The op with another size of its result along a dimension along which it is row-wise.
pub(super) fn resized(op: &Op, axis: usize, size: u64) -> Op {
    let with = |shape: &Shape| {
        let mut shape = shape.clone();
        shape.0[axis] = Dim::from(size);
        shape
    };
    match op {
        Op::Reshape { shape } => Op::Reshape { shape: with(shape) },
        Op::Broadcast { shape, dims } => Op::Broadcast { shape: with(shape), dims: dims.clone() },
        Op::Iota { shape, axis } => Op::Iota { shape: with(shape), axis: *axis },
        Op::Slice { start, end, step } => {
            let mut end = end.clone();
            end[axis] = size;
            Op::Slice { start: start.clone(), end, step: step.clone() }
        }
        op => op.clone(),
    }
}

/// Whether readers find the result in its operand's memory.
fn is_shared(op: &Op) -> bool {
    matches!(op, Op::Reshape { .. } | Op::Broadcast { .. } | Op::StopGradient)
}

/// Whether nothing is computed or moved.
fn is_free(graph: &Graph, id: NodeId) -> bool {
    let op = &graph.node(id).op;
    is_shared(op)
        || matches!(op, Op::Input { .. } | Op::State { .. } | Op::Const { .. } | Op::Slice { .. })
        || joined(graph, id).is_some()
}

/// What the results of a program need: operations and bytes, each op reading its operands and writing its result.
pub(super) fn cost(graph: &Graph) -> Cost {
    let live = graph.live(graph.outputs.values().chain(graph.updates.values()));
    let mut cost = Cost::default();
    for id in graph.ids().rev().filter(|id| live[id.index()] && !is_free(graph, *id)) {
        let node = graph.node(id);
        let types: SmallVec<[_; 3]> = node.inputs.iter().map(|input| graph.ty(*input)).collect();
        // What is repeated is read once, and of what is picked from, the rows that are picked.
        let stored = |mut id: NodeId| {
            while is_shared(&graph.node(id).op) {
                id = graph.node(id).inputs[0];
            }
            graph.bytes(id)
        };
        let read = |operand: (usize, &NodeId)| match (&node.op, operand) {
            (Op::Gather { .. }, (0, _)) => graph.bytes(id),
            (_, (_, input)) => stored(*input),
        };
        cost.flops += node.op.flops(&types, &node.ty);
        cost.bytes += graph.bytes(id) + node.inputs.iter().enumerate().map(read).sum::<u64>();
    }
    cost
}

/// A node that its op refuses: a fault of the rewrite.
pub(super) fn fault(graph: &Graph, rewrite: &str, error: &OpError) -> Diagnostics {
    let message = format!("internal: `{rewrite}` of program `{}` failed: {}", graph.name, error.message);
    let help = format!("please report it with the spec; `--no-rule {rewrite}` compiles without");
    Diagnostic::error(message).help(help).into()
}

/// Where something was done, in short: per first step of the paths, the longest path that leads to all of them.
pub(super) fn places<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut parts: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for path in paths {
        let mut steps: Vec<&str> = path.split('.').collect();
        match parts.get_mut(steps[0]) {
            Some(common) => {
                let same = steps.iter().zip(common.iter()).take_while(|(a, b)| a == b).count();
                common.truncate(same);
            }
            None => {
                parts.insert(steps[0], std::mem::take(&mut steps));
            }
        }
    }
    parts.into_values().map(|steps| steps.join(".")).collect()
}

/// The length that ends behind a position: integers plus one, of which none wraps around. A position may be any integer, as
/// an index is limited to what there is.
pub(super) fn one_more(b: &mut Builder<'_>, position: NodeId) -> Result<NodeId, OpError> {
    let mut from = position;
    while let Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } =
        b.graph.node(from).op
    {
        from = b.graph.node(from).inputs[0];
    }
    let mut last = position;
    if !matches!(b.graph.node(from).op, Op::Reduce { kind: ReduceKind::ArgMax, .. } | Op::Iota { .. }) {
        let most = b.constant(f64::from(i32::MAX - 1), DType::I32)?;
        last = b.min(position, most)?;
    }
    let one = b.constant(1.0, DType::I32)?;
    b.add(last, one)
}

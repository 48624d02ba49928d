//! Views: composed, moved to where they vanish, folded into the products and reductions that read them.

use egg::Id;

use super::Rule;
use super::Tag::{Exact, Reassociates};
use crate::ir::Shape;
use crate::ops::{Dot, Op};
use crate::optimize::language::{Kind, Operands};
use crate::optimize::pattern::*;
use crate::optimize::site::{Site, composed, inverse, sides};

pub(super) fn rules() -> Vec<Rule> {
    let any = |operands: &[Pat]| Pat::Point(operands.to_vec());
    vec![
        Rule::build("transpose-transpose", Exact, transpose(transpose(X)), transpose_transpose),
        Rule::build("reshape-reshape", Exact, reshape(reshape(X)), reshape_reshape),
        Rule::build("broadcast-broadcast", Exact, broadcast(broadcast(X)), broadcast_broadcast),
        Rule::build("slice-slice", Exact, slice(slice(X)), slice_slice),
        Rule::build("transpose-of-ones", Exact, transpose(X), transpose_as_reshape),
        Rule::build("reshape-of-transpose", Exact, reshape(transpose(reshape(X))), reshape_undoing_transpose),
        Rule::build("broadcast-of-reshape", Exact, broadcast(reshape(X)), broadcast_of_reshape),
        Rule::build("transpose-of-broadcast", Exact, transpose(broadcast(X)), transpose_of_broadcast),
        Rule::build("reshape-of-broadcast", Exact, reshape(broadcast(X)), reshape_of_broadcast),
        Rule::build("slice-of-broadcast", Exact, slice(broadcast(X)), slice_of_broadcast),
        Rule::build("slice-of-transpose", Exact, slice(transpose(X)), slice_of_transpose),
        Rule::build("slice-of-point", Exact, slice(any(&[X])), slice_of_point),
        Rule::build("slice-of-points", Exact, slice(any(&[X, Y])), slice_of_point),
        Rule::build("point-of-view", Exact, any(&[X]), point_of_view).tried_on([
            any(&[broadcast(X)]),
            any(&[transpose(X)]),
            any(&[reshape(X)]),
        ]),
        Rule::build("points-of-views", Exact, any(&[X, Y]), point_of_view).tried_on([
            any(&[broadcast(X), broadcast(Y)]),
            any(&[transpose(X), transpose(Y)]),
            any(&[reshape(X), C]),
        ]),
        Rule::build("choice-of-views", Exact, any(&[X, Y, Z]), point_of_view)
            .tried_on([any(&[broadcast(X), broadcast(Y), C]), select(C, transpose(X), transpose(Y))]),
        Rule::build("transpose-of-point", Exact, transpose(any(&[transpose(X)])), transpose_of_point),
        Rule::build("transpose-of-points", Exact, transpose(any(&[transpose(X), Y])), transpose_of_point),
        Rule::build("dot-of-transpose", Exact, dot(transpose(X), Y), dot_of_transpose::<0>),
        Rule::build("dot-by-transpose", Exact, dot(X, transpose(Y)), dot_of_transpose::<1>),
        Rule::build("transpose-of-dot", Reassociates, transpose(dot(X, Y)), transpose_of_dot),
        Rule::build("dot-of-reshape", Exact, dot(reshape(X), Y), dot_of_reshape::<0>),
        Rule::build("dot-by-reshape", Exact, dot(X, reshape(Y)), dot_of_reshape::<1>),
        Rule::build("sum-of-transpose", Reassociates, sum(transpose(X)), reduce_of_transpose),
        Rule::build("max-of-transpose", Exact, row_max(transpose(X)), reduce_of_transpose),
    ]
}

fn transpose_transpose(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Transpose { perm: outer }, Op::Transpose { perm: inner }) = (s.op(0), s.op(1)) else { return None };
    s.transpose(s.var(&X)?, composed(&outer, &inner))
}

fn reshape_reshape(s: &mut Site<'_>) -> Option<Id> {
    s.reshape(s.var(&X)?, s.shape(s.root()))
}

fn broadcast_broadcast(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Broadcast { shape, dims }, Op::Broadcast { dims: inner, .. }) = (s.op(0), s.op(1)) else { return None };
    s.broadcast(s.var(&X)?, shape, composed_dims(&inner, &dims))
}

fn composed_dims(inner: &[usize], outer: &[usize]) -> Vec<usize> {
    inner.iter().map(|axis| outer[*axis]).collect()
}

fn slice_slice(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Slice { start, end, step }, Op::Slice { start: first, step: by, .. }) = (s.op(0), s.op(1)) else {
        return None;
    };
    let at = |axis: usize, index: u64| first[axis] + index * by[axis];
    let axes = 0..start.len();
    // Of one element any step would do, and composed again and again it would grow without end.
    let one = |axis: usize| start[axis] + 1 == end[axis];
    let step = axes.clone().map(|axis| if one(axis) { 1 } else { step[axis] * by[axis] }).collect();
    // The last index that is read, and one more.
    let end = axes.clone().map(|axis| at(axis, end[axis] - 1) + 1).collect();
    s.add(Op::Slice { start: axes.map(|axis| at(axis, start[axis])).collect(), end, step }, &[s.var(&X)?])
}

/// A transpose that only moves dimensions of size 1 is a reshape.
fn transpose_as_reshape(s: &mut Site<'_>) -> Option<Id> {
    let Op::Transpose { perm } = s.op(0) else { return None };
    let sizes = s.sizes(s.var(&X)?);
    let moved: Vec<usize> = perm.into_iter().filter(|axis| sizes[*axis] != 1).collect();
    if !moved.is_sorted() {
        return None;
    }
    s.reshape(s.var(&X)?, s.shape(s.root()))
}

/// Dimensions that are split, moved and joined again as they were; nothing but the order of whole dimensions is left.
fn reshape_undoing_transpose(s: &mut Site<'_>) -> Option<Id> {
    let x = s.var(&X)?;
    let Op::Transpose { perm } = s.op(1) else { return None };
    let split = s.operands(1)[0];
    let groups = dims_of_groups(&s.sizes(x), &s.sizes(split))?;
    // The transpose must keep the parts of every dimension together and in order.
    let mut order = Vec::new();
    let mut at = 0;
    while at < perm.len() {
        let axis = groups.iter().position(|group| group.contains(&perm[at]))?;
        let group = &groups[axis];
        if perm.get(at..at + group.len())? != group.as_slice() {
            return None;
        }
        order.push(axis);
        at += group.len();
    }
    if order.len() != s.rank(x) {
        return None;
    }
    let moved = s.transpose(x, order)?;
    s.reshape(moved, s.shape(s.root()))
}

/// For a reshape that only splits dimensions: the new dimensions of each old one, none empty.
fn dims_of_groups(from: &[u64], to: &[u64]) -> Option<Vec<Vec<usize>>> {
    let mut groups = Vec::new();
    let mut next = 0;
    for size in from {
        let mut group = vec![next];
        let mut product = *to.get(next)?;
        next += 1;
        while product < *size {
            product *= to.get(next)?;
            group.push(next);
            next += 1;
        }
        if product != *size {
            return None;
        }
        groups.push(group);
    }
    (next == to.len()).then_some(groups)
}

/// A reshape that only adds dimensions of size 1 says nothing that a broadcast does not.
fn broadcast_of_reshape(s: &mut Site<'_>) -> Option<Id> {
    let Op::Broadcast { shape, dims } = s.op(0) else { return None };
    let x = s.var(&X)?;
    let middle = s.sizes(s.operands(0)[0]);
    let kept: Vec<usize> = (0..middle.len()).filter(|axis| middle[*axis] != 1).collect();
    if !kept.iter().map(|axis| middle[*axis]).eq(s.sizes(x)) {
        return None;
    }
    s.broadcast(x, shape, kept.iter().map(|axis| dims[*axis]).collect())
}

fn transpose_of_broadcast(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Transpose { perm }, Op::Broadcast { dims, .. }) = (s.op(0), s.op(1)) else { return None };
    let to = inverse(&perm);
    let places: Vec<usize> = dims.iter().map(|dim| to[*dim]).collect();
    // The operand's dimensions in the order in which the result has them.
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|axis| places[*axis]);
    let x = s.transpose(s.var(&X)?, order.clone())?;
    s.broadcast(x, s.shape(s.root()), order.iter().map(|axis| places[*axis]).collect())
}

/// What repeats one number, or repeats along whole leading dimensions, does so under any shape.
fn reshape_of_broadcast(s: &mut Site<'_>) -> Option<Id> {
    let Op::Broadcast { shape, dims } = s.op(1) else { return None };
    let (x, to) = (s.var(&X)?, s.shape(s.root()));
    if s.shape(x).elements() == 1 {
        let x = s.reshape(x, Shape::scalar())?;
        return s.broadcast(x, to, vec![]);
    }
    // Trailing dimensions that both shapes have, and that hold all of the operand.
    let same = shape.0.iter().rev().zip(to.0.iter().rev()).take_while(|(a, b)| a.size == b.size).count();
    let (before, after) = (shape.rank() - same, to.rank() - same);
    if dims.iter().any(|dim| *dim < before) {
        return None;
    }
    s.broadcast(x, to, dims.iter().map(|dim| dim - before + after).collect())
}

fn slice_of_broadcast(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Slice { start, end, step }, Op::Broadcast { dims, .. }) = (s.op(0), s.op(1)) else { return None };
    let x = s.var(&X)?;
    let sizes = s.sizes(x);
    let along = |of: &[u64], repeated: u64| -> Vec<u64> {
        dims.iter().zip(&sizes).map(|(dim, size)| if *size == 1 { repeated } else { of[*dim] }).collect()
    };
    let part = Op::Slice { start: along(&start, 0), end: along(&end, 1), step: along(&step, 1) };
    let part = s.add(part, &[x])?;
    s.broadcast(part, s.shape(s.root()), dims)
}

fn slice_of_transpose(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Slice { start, end, step }, Op::Transpose { perm }) = (s.op(0), s.op(1)) else { return None };
    let to = inverse(&perm);
    let pick = |of: &[u64]| -> Vec<u64> { to.iter().map(|axis| of[*axis]).collect() };
    let part = s.add(Op::Slice { start: pick(&start), end: pick(&end), step: pick(&step) }, &[s.var(&X)?])?;
    s.transpose(part, perm)
}

/// Only what is read is computed.
fn slice_of_point(s: &mut Site<'_>) -> Option<Id> {
    let (slice, op) = (s.op(0), s.op(1));
    let parts: Option<Operands> = s.operands(1).iter().map(|operand| s.add(slice.clone(), &[*operand])).collect();
    s.add(op, &parts?)
}

/// A view under which pointwise ops commute with taking it.
fn movable(op: &Op) -> bool {
    matches!(op, Op::Transpose { .. } | Op::Reshape { .. } | Op::Broadcast { .. })
}

/// A pointwise op whose operands lie under one and the same view, constants aside, is computed before the view: once instead
/// of repeatedly, and where other views may cancel.
fn point_of_view(s: &mut Site<'_>) -> Option<Id> {
    let operands = s.operands(0);
    let leader = operands.iter().position(|id| s.fact(*id).splat.is_none())?;
    let kinds = [Kind::Broadcast, Kind::Transpose, Kind::Reshape];
    let views = kinds.iter().flat_map(|kind| s.terms_of(operands[leader], *kind)).collect::<Vec<_>>();
    for (view, below) in views.into_iter().filter(|(view, _)| movable(view)) {
        let inner = s.fact(below[0]).ty.clone();
        let mut bases = Operands::new();
        for operand in &operands {
            let base = match s.fact(*operand).splat {
                Some(value) => {
                    let dtype = s.fact(*operand).ty.dtype;
                    s.number_of(value, &crate::ir::TensorType { dtype, shape: inner.shape.clone() })
                }
                None => {
                    let terms = s.terms_of(*operand, Kind::of(&view));
                    let same = |(op, below): &(Op, Operands)| *op == view && s.shape(below[0]) == inner.shape;
                    terms.iter().find(|term| same(term)).map(|(_, below)| below[0])
                }
            };
            let Some(base) = base else { break };
            bases.push(base);
        }
        if bases.len() == operands.len() {
            let once = s.add(s.op(0), &bases)?;
            return s.add(view, &[once]);
        }
    }
    None
}

/// A transpose of what was computed under a transpose: one of the two may vanish.
fn transpose_of_point(s: &mut Site<'_>) -> Option<Id> {
    let (outer, op) = (s.op(0), s.op(1));
    let moved: Option<Operands> = s.operands(1).iter().map(|operand| s.add(outer.clone(), &[*operand])).collect();
    s.add(op, &moved?)
}

/// Products read their operands in any order of dimensions.
fn dot_of_transpose<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Dot(dot), Op::Transpose { perm }) = (s.op(0), s.op(1)) else { return None };
    let mut operands = s.operands(0);
    let ranks = [s.rank(operands[0]), s.rank(operands[1])];
    let free = &sides(&dot, ranks)[SIDE].free;
    operands[SIDE] = if SIDE == 0 { s.var(&X)? } else { s.var(&Y)? };
    let renamed = |pair: &(usize, usize)| if SIDE == 0 { (perm[pair.0], pair.1) } else { (pair.0, perm[pair.1]) };
    let (batch, contract): (Vec<_>, Vec<_>) =
        (dot.batch.iter().map(renamed).collect(), dot.contract.iter().map(renamed).collect());
    let product = s.dot(operands[0], operands[1], Dot { batch, contract })?;
    // Free dimensions now come in the order of the operand itself.
    let moved: Vec<usize> = free.iter().map(|axis| perm[*axis]).collect();
    let mut order = moved.clone();
    order.sort_unstable();
    let first = dot.batch.len() + if SIDE == 0 { 0 } else { ranks[0] - dot.batch.len() - dot.contract.len() };
    let mut back: Vec<usize> = (0..s.rank(product)).collect();
    for (at, axis) in moved.iter().enumerate() {
        back[first + at] = first + order.iter().position(|other| other == axis)?;
    }
    s.transpose(product, back)
}

/// `(x y)^T` is `y^T x^T`: exchanging the operands exchanges the free dimensions.
fn transpose_of_dot(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Transpose { perm }, Op::Dot(dot)) = (s.op(0), s.op(1)) else { return None };
    let (x, y) = (s.var(&X)?, s.var(&Y)?);
    let [left, right] = sides(&dot, [s.rank(x), s.rank(y)]);
    let (batch, l, r) = (dot.batch.len(), left.free.len(), right.free.len());
    let exchanged = (0..batch).chain(batch + l..batch + l + r).chain(batch..batch + l);
    if l == 0 || r == 0 || !perm.iter().copied().eq(exchanged) {
        return None;
    }
    let swap = |pairs: &[(usize, usize)]| pairs.iter().map(|(a, b)| (*b, *a)).collect();
    s.dot(y, x, Dot { batch: swap(&dot.batch), contract: swap(&dot.contract) })
}

/// A reshape that leaves batch and contracted dimensions alone is one of the result.
fn dot_of_reshape<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let Op::Dot(dot) = s.op(0) else { return None };
    let mut operands = s.operands(0);
    let reshaped = operands[SIDE];
    operands[SIDE] = if SIDE == 0 { s.var(&X)? } else { s.var(&Y)? };
    let (from, to) = (s.sizes(operands[SIDE]), s.sizes(reshaped));
    // Dimensions that stand before and after all that the reshape changes.
    let before = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let after = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a == b).count();
    let after = after.min(from.len().min(to.len()) - before);
    let at = |axis: usize| match axis {
        _ if axis < before => Some(axis),
        _ if axis >= to.len() - after => Some(axis + from.len() - to.len()),
        _ => None,
    };
    let renamed = |pair: &(usize, usize)| {
        if SIDE == 0 { Some((at(pair.0)?, pair.1)) } else { Some((pair.0, at(pair.1)?)) }
    };
    let batch: Option<Vec<_>> = dot.batch.iter().map(renamed).collect();
    let contract: Option<Vec<_>> = dot.contract.iter().map(renamed).collect();
    let product = s.dot(operands[0], operands[1], Dot { batch: batch?, contract: contract? })?;
    s.reshape(product, s.shape(s.root()))
}

fn reduce_of_transpose(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Reduce { kind, axes }, Op::Transpose { perm }) = (s.op(0), s.op(1)) else { return None };
    let x = s.var(&X)?;
    let mut reduced: Vec<usize> = axes.iter().map(|axis| perm[*axis]).collect();
    let kept: Vec<usize> = (0..perm.len()).filter(|axis| !axes.contains(axis)).map(|axis| perm[axis]).collect();
    reduced.sort_unstable();
    let result = s.reduce(kind, x, reduced)?;
    let mut order = kept.clone();
    order.sort_unstable();
    let back: Option<Vec<usize>> = kept.iter().map(|axis| order.iter().position(|other| other == axis)).collect();
    s.transpose(result, back?)
}

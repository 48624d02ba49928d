//! Concatenations, slices and paddings: the gradient of a tensor that was split is the concatenation of the gradients of
//! its parts, not a sum of paddings.

use egg::Id;

use super::Rule;
use super::Tag::Exact;
use crate::ops::Op;
use crate::optimize::language::Kind;
use crate::optimize::pattern::*;
use crate::optimize::site::Site;

/// Most parts of one concatenation that rules make.
const MOST_PARTS: usize = 16;

pub(super) fn rules() -> Vec<Rule> {
    let concat = |operands: &[Pat]| Pat::Node(Kind::Concat, operands.to_vec());
    vec![
        Rule::build("slice-of-concat", Exact, slice(Pat::Any(Kind::Concat)), slice_of_concat)
            .tried_on([slice(concat(&[X, Y])), slice(concat(&[X, Y, Z]))]),
        Rule::build("concat-of-slices", Exact, Pat::Any(Kind::Concat), concat_of_slices)
            .tried_on([concat(&[slice(X), slice(X)])]),
        Rule::build("concat-of-concat", Exact, Pat::Any(Kind::Concat), concat_of_concat)
            .tried_on([concat(&[concat(&[X, Y]), Z]), concat(&[X, concat(&[Y, Z])])]),
        Rule::build("sum-of-pads", Exact, add(X, Y), sum_of_pads)
            .tried_on([add(pad(X), pad(Y)), add(add(pad(X), pad(Y)), pad(Z))]),
        Rule::build("slice-of-pad", Exact, slice(pad(X)), slice_of_pad),
    ]
}

/// Whole along all dimensions but one: that one, with its range.
fn along_one(op: &Op, sizes: &[u64]) -> Option<(usize, u64, u64)> {
    let Op::Slice { start, end, step } = op else { return None };
    let partial = |axis: &usize| (start[*axis], end[*axis]) != (0, sizes[*axis]);
    let mut partials = (0..sizes.len()).filter(partial);
    let axis = partials.next()?;
    (partials.next().is_none() && step.iter().all(|step| *step == 1)).then(|| (axis, start[axis], end[axis]))
}

fn slice_of_concat(s: &mut Site<'_>) -> Option<Id> {
    let (slice, Op::Concat { axis }, parts) = (s.op(0), s.op(1), s.operands(1)) else { return None };
    let Op::Slice { start, end, step } = &slice else { return None };
    let mut pieces = Vec::new();
    let mut offset = 0;
    for part in parts {
        let size = s.shape(part).size(axis);
        let (from, to) = (start[axis].max(offset), end[axis].min(offset + size));
        if from < to {
            if step[axis] != 1 && (from, to) != (start[axis], end[axis]) {
                return None;
            }
            let (mut start, mut end) = (start.clone(), end.clone());
            (start[axis], end[axis]) = (from - offset, to - offset);
            pieces.push(s.add(Op::Slice { start, end, step: step.clone() }, &[part])?);
        }
        offset += size;
    }
    s.concat(&pieces, axis)
}

fn concat_of_slices(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Concat { axis }, parts) = (s.op(0), s.operands(0)) else { return None };
    let (first, rest) = parts.split_first()?;
    for (op, below) in s.terms_of(*first, Kind::Slice) {
        let whole = below[0];
        let sizes = s.sizes(whole);
        let Some((along, start, mut end)) = along_one(&op, &sizes).filter(|(along, ..)| *along == axis) else {
            continue;
        };
        let continues = |part: &Id| {
            let terms = s.terms_of(*part, Kind::Slice);
            let mut next = terms.iter().filter(|(_, below)| s.egraph.find(below[0]) == s.egraph.find(whole));
            let found =
                next.find_map(|(op, _)| along_one(op, &sizes).filter(|(a, from, _)| (*a, *from) == (axis, end)));
            end = found?.2;
            Some(())
        };
        if rest.iter().map(continues).collect::<Option<Vec<_>>>().is_some() {
            return s.slice_axis(whole, along, start, end);
        }
    }
    None
}

fn concat_of_concat(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Concat { axis }, parts) = (s.op(0), s.operands(0)) else { return None };
    let mut flat = Vec::new();
    for part in &parts {
        match s.terms_of(*part, Kind::Concat).into_iter().find(|(op, _)| *op == s.op(0)) {
            Some((_, below)) => flat.extend(below),
            None => flat.push(*part),
        }
    }
    let fits = flat.len() > parts.len() && flat.len() <= MOST_PARTS;
    if fits { s.concat(&flat, axis) } else { None }
}

/// A padded value: where it begins along the one dimension that is padded.
struct Padded {
    axis: usize,
    low: u64,
    size: u64,
    value: Id,
}

/// The paddings that a sum adds up; `None` where it adds anything else.
fn pads(s: &Site<'_>, class: Id, room: usize, found: &mut Vec<Padded>) -> Option<()> {
    for (op, below) in s.terms_of(class, Kind::Pad) {
        let Op::Pad { low, high, interior } = op else { continue };
        let mut axes = (0..low.len()).filter(|axis| low[*axis] + high[*axis] + interior[*axis] > 0);
        if let (Some(axis), None) = (axes.next(), axes.next())
            && interior[axis] == 0
            && found.len() < MOST_PARTS
        {
            found.push(Padded { axis, low: low[axis], size: s.shape(below[0]).size(axis), value: below[0] });
            return Some(());
        }
    }
    let add = Kind::Point(crate::ops::ScalarOp::Add);
    let (_, terms) = s.terms_of(class, add).into_iter().next().filter(|_| room > 0)?;
    terms.iter().try_for_each(|term| pads(s, *term, room - 1, found))
}

/// Paddings that together cover a tensor, each element once.
fn sum_of_pads(s: &mut Site<'_>) -> Option<Id> {
    let mut found = Vec::new();
    for operand in s.operands(0) {
        pads(s, operand, MOST_PARTS, &mut found)?;
    }
    let axis = found.first()?.axis;
    found.sort_by_key(|padded| padded.low);
    let mut end = 0;
    for padded in &found {
        if padded.axis != axis || padded.low != end {
            return None;
        }
        end += padded.size;
    }
    if end != s.shape(s.root()).size(axis) {
        return None;
    }
    let parts: Vec<Id> = found.iter().map(|padded| padded.value).collect();
    s.concat(&parts, axis)
}

/// A slice that reads only what was padded, or only the padding.
fn slice_of_pad(s: &mut Site<'_>) -> Option<Id> {
    let (Op::Slice { start, end, step }, Op::Pad { low, interior, .. }) = (s.op(0), s.op(1)) else { return None };
    let x = s.var(&X)?;
    let sizes = s.sizes(x);
    if interior.iter().any(|gap| *gap > 0) {
        return None;
    }
    let axes = 0..sizes.len();
    if axes.clone().any(|axis| end[axis] <= low[axis] || start[axis] >= low[axis] + sizes[axis]) {
        return s.number(0.0, s.root());
    }
    if axes.clone().any(|axis| start[axis] < low[axis] || end[axis] > low[axis] + sizes[axis]) {
        return None;
    }
    let moved = |of: &[u64]| axes.clone().map(|axis| of[axis] - low[axis]).collect::<Vec<_>>();
    s.add(Op::Slice { start: moved(&start), end: moved(&end), step }, &[x])
}

//! Groups of one operation over dense operands to kernels: convolutions and scatters.

use alip_plan::kernel::{Conv2d, ConvKind, Loop, ScatterAdd, View};

use super::operands::Operands;
use crate::diag::Diagnostic;
use crate::ir::NodeId;
use crate::ops::Conv;
use crate::schedule::{Group, Groups, Layout, MemberId, ViewOp};

/// The kernel of a convolution, and its operations.
pub(super) fn conv2d(
    groups: &Groups<'_>,
    group: &Group<'_>,
    member: MemberId,
    conv: &Conv,
    operands: &mut Operands,
) -> Result<(Loop, u64), Diagnostic> {
    let [a, b, out] = views(groups, group, member, [None, None, None], operands)?;
    let node = groups.member(member).node;
    let [first, second] = operand_sizes(groups, member)?;
    let result = groups.sizes(node);
    let (image, weight, pixels) = match conv.kind {
        ConvKind::Forward => (first, second, result),
        ConvKind::ImageGrad => (result, second, first),
        ConvKind::WeightGrad => (first, result, second),
    };
    let ([n, c, h, w], [o, _, kh, kw]) = (image.as_slice(), weight.as_slice()) else {
        return Err(groups.fault(node, "a convolution of other than four dimensions"));
    };
    let (stride, padding) = (conv.stride, conv.padding);
    let (n, c, h, w, o, kh, kw) = (*n, *c, *h, *w, *o, *kh, *kw);
    let kernel = Conv2d { kind: conv.kind, n, c, h, w, o, kh, kw, stride, padding, a, b, out };
    let flops = 2 * pixels.iter().product::<u64>() * weight[1..].iter().product::<u64>();
    Ok((Loop::Conv2d(kernel), flops))
}

/// The kernel of a scatter with so many batch dimensions into so many rows, and its operations.
pub(super) fn scatter_add(
    groups: &Groups<'_>,
    group: &Group<'_>,
    member: MemberId,
    (batch, rows): (usize, u64),
    operands: &mut Operands,
) -> Result<(Loop, u64), Diagnostic> {
    let [picks, added] = operand_sizes(groups, member)?;
    let (tables, count) = picks.split_at(batch);
    let (tables, count): (u64, u64) = (tables.iter().product(), count.iter().product());
    let inner = added[picks.len()..].iter().product();
    let domains = [vec![tables, count], vec![tables, count, inner], vec![tables, rows, inner]];
    let [index, updates, out] = views(groups, group, member, domains.map(Some), operands)?;
    let kernel = ScatterAdd { batch: tables, count, rows, inner, index, updates, out };
    Ok((Loop::ScatterAdd(kernel), added.iter().product()))
}

fn operand_sizes(groups: &Groups<'_>, member: MemberId) -> Result<[Vec<u64>; 2], Diagnostic> {
    let node = groups.member(member).node;
    match groups.graph.node(node).inputs.as_slice() {
        [first, second] => Ok([groups.sizes(*first), groups.sizes(*second)]),
        _ => Err(groups.fault(node, "an operation that has not two operands")),
    }
}

/// Views of both operands of a member and of what it stores, over these domains or their own shapes.
fn views(
    groups: &Groups<'_>,
    group: &Group<'_>,
    member: MemberId,
    domains: [Option<Vec<u64>>; 3],
    operands: &mut Operands,
) -> Result<[View; 3], Diagnostic> {
    let node = groups.member(member).node;
    let store = group.stores().first().ok_or_else(|| groups.fault(node, "a kernel that stores nothing"))?;
    let [first, second, third] = domains;
    let stored = (store.target, groups.store_layout(store)?);
    let mut view = |(value, layout): (NodeId, Layout), domain: Option<Vec<u64>>| {
        let layout = match domain {
            Some(sizes) => layout.apply(&ViewOp::Reshape(sizes)),
            None => Some(layout),
        };
        let layout = layout.ok_or_else(|| groups.fault(value, "an operand that is not dense"))?;
        operands.strided(groups, value, &layout)
    };
    Ok([view(groups.access(member, 0)?, first)?, view(groups.access(member, 1)?, second)?, view(stored, third)?])
}

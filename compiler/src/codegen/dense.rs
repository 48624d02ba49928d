//! Groups of one operation over dense operands to kernels: convolutions and scatters.

use alip_plan::DType;
use alip_plan::check::register_type;
use alip_plan::kernel::{Code, Conv2d, ConvKind, Loop, ScalarOp, ScatterAdd, View};

use super::domain::{Access, Block, Domain, Form, PreOp};
use super::operands::Operands;
use crate::diag::Diagnostic;
use crate::ir::NodeId;
use crate::ops::Conv;
use crate::schedule::{Group, Groups, Layout, MemberId, Pixel, Prologue, ViewOp};

/// The kernel of a convolution, and its operations.
pub(super) fn conv2d(
    groups: &Groups<'_>,
    group: &Group<'_>,
    member: MemberId,
    conv: &Conv,
    operands: &mut Operands,
) -> Result<(Loop, u64), Diagnostic> {
    let node = groups.member(member).node;
    let [first, second] = operand_sizes(groups, member)?;
    let (a, prologue, each) = match groups.prologue(member) {
        Some(prologue) => pixels(groups, &prologue, &first, operands)?,
        None => (strided(groups, groups.access(member, 0)?, operands)?, Code::default(), 0),
    };
    let b = strided(groups, groups.access(member, 1)?, operands)?;
    let out = strided(groups, stored(groups, group, node)?, operands)?;
    let result = groups.sizes(node);
    let (image, weight, sums) = match conv.kind {
        ConvKind::Forward => (&first, &second, &result),
        ConvKind::ImageGrad => (&result, &second, &first),
        ConvKind::WeightGrad => (&first, &result, &second),
    };
    let ([n, c, h, w], [o, _, kh, kw]) = (image.as_slice(), weight.as_slice()) else {
        return Err(groups.fault(node, "a convolution of other than four dimensions"));
    };
    let (stride, padding) = (conv.stride, conv.padding);
    let (n, c, h, w, o, kh, kw) = (*n, *c, *h, *w, *o, *kh, *kw);
    let kernel = Conv2d { kind: conv.kind, n, c, h, w, o, kh, kw, stride, padding, a, b, out, prologue };
    let flops =
        each * first.iter().product::<u64>() + 2 * sums.iter().product::<u64>() * weight[1..].iter().product::<u64>();
    Ok((Loop::Conv2d(kernel), flops))
}

/// An image that is made as it is read: the view of its bytes, the code, and the operations for a pixel.
fn pixels(
    groups: &Groups<'_>,
    prologue: &Prologue,
    image: &[u64],
    operands: &mut Operands,
) -> Result<(View, Code, u64), Diagnostic> {
    let mut domain = Domain { sizes: image.to_vec(), ..Domain::default() };
    let mut block = Block::default();
    let form = |layout: &Layout| {
        let strides = layout.strides().ok_or_else(|| groups.fault(prologue.value, "bytes without strides"))?;
        Ok::<_, Diagnostic>(Form { offset: layout.offset, strides })
    };
    let mut values: Vec<u16> = Vec::new();
    for step in &prologue.steps {
        values.push(match step {
            Pixel::Const(value, dtype) => block.push(PreOp::Op(ScalarOp::Const(*value)), register_type(*dtype), &[]),
            Pixel::Coordinate(layout) => {
                let coordinate = domain.form(form(layout)?);
                block.push(coordinate, DType::I32, &[])
            }
            Pixel::Load(layout) => {
                let access = Access { value: prologue.value, dtype: DType::U8, at: form(layout)?, gather: None };
                let view = domain.view(access);
                block.push(PreOp::Op(ScalarOp::Load(view)), register_type(DType::U8), &[])
            }
            Pixel::Point(op, dtype, args) => {
                let args: Vec<u16> = args.iter().map(|arg| values[usize::from(*arg)]).collect();
                block.push(PreOp::Op(*op), register_type(*dtype), &args)
            }
        });
    }
    let view = domain.views(operands).into_iter().next();
    let view = view.ok_or_else(|| groups.fault(prologue.value, "an image of no bytes"))?;
    Ok((view, domain.code(&block).0, block.flops()))
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
    let stored = stored(groups, group, groups.member(member).node)?;
    let all = [groups.access(member, 0)?, groups.access(member, 1)?, stored];
    let [index, updates, out] = all;
    let mut view = |(value, layout): (NodeId, Layout), sizes: Vec<u64>| {
        let layout = layout.apply(&ViewOp::Reshape(sizes));
        let layout = layout.ok_or_else(|| groups.fault(value, "an operand that is not dense"))?;
        operands.strided(groups, value, &layout)
    };
    let (index, updates) = (view(index, vec![tables, count])?, view(updates, vec![tables, count, inner])?);
    let out = view(out, vec![tables, rows, inner])?;
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

/// What a group stores, and where its elements lie.
fn stored(groups: &Groups<'_>, group: &Group<'_>, node: NodeId) -> Result<(NodeId, Layout), Diagnostic> {
    let store = group.stores().first().ok_or_else(|| groups.fault(node, "a kernel that stores nothing"))?;
    Ok((store.target, groups.store_layout(store)?))
}

fn strided(
    groups: &Groups<'_>,
    (value, layout): (NodeId, Layout),
    operands: &mut Operands,
) -> Result<View, Diagnostic> {
    operands.strided(groups, value, &layout)
}

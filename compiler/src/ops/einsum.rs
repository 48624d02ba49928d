//! The two pattern languages, einsum and rearrange: patterns to dots, reductions and views.

use super::{Builder, OpError};
use crate::graph::{Dim, Dot, NodeId, Op, ReduceKind, Shape};

type Result<T = NodeId> = std::result::Result<T, OpError>;

/// One axis of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Axis {
    Name(String),
    /// An axis that `...` stands for, counted from the last one.
    Rest(usize),
    /// `1`
    One,
}

impl std::fmt::Display for Axis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Axis::Name(name) => f.write_str(name),
            Axis::Rest(_) => f.write_str("..."),
            Axis::One => f.write_str("1"),
        }
    }
}

/// One side of a pattern, before `...` is spelled out: groups of axes, `None` for `...`.
type Side = Vec<Option<Vec<Axis>>>;

fn sides(pattern: &str) -> Result<(&str, &str)> {
    match pattern.split_once("->") {
        Some((left, right)) if !right.contains("->") => Ok((left, right)),
        _ => Err(OpError::new(format!("the pattern '{pattern}' has no single `->`")).help("write 'inputs -> output'")),
    }
}

/// Reads `b l (h d)`.
fn side(text: &str, pattern: &str, groups: bool) -> Result<Side> {
    let wrong = |what: String| OpError::new(format!("{what} in the pattern '{pattern}'"));
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let mut result: Side = Vec::new();
    let mut group: Option<Vec<Axis>> = None;
    for word in spaced.split_whitespace() {
        let name_like =
            word.chars().all(|c| c.is_alphanumeric() || c == '_') && !word.starts_with(|c: char| c.is_ascii_digit());
        match word {
            "(" if groups && group.is_none() => group = Some(Vec::new()),
            ")" if group.is_some() => result.push(group.take()),
            "..." if group.is_none() => {
                if result.contains(&None) {
                    return Err(wrong("`...` stands twice on one side".into()));
                }
                result.push(None);
            }
            "1" if groups && group.is_none() => result.push(Some(vec![Axis::One])),
            word if name_like => match &mut group {
                Some(group) => group.push(Axis::Name(word.into())),
                None => result.push(Some(vec![Axis::Name(word.into())])),
            },
            word => {
                return Err(wrong(format!("unexpected `{word}`")).help("axes are names separated by spaces: 'b l d'"));
            }
        }
    }
    if group.is_some() {
        return Err(wrong("a parenthesis is not closed".into()));
    }
    Ok(result)
}

/// Spells `...` out as `rest` axes.
fn expand(side: &Side, rest: usize) -> Vec<Vec<Axis>> {
    let mut result = Vec::new();
    for group in side {
        match group {
            Some(group) => result.push(group.clone()),
            None => result.extend((0..rest).rev().map(|i| vec![Axis::Rest(i)])),
        }
    }
    result
}

/// The number of axes that `...` stands for when a side describes a shape.
fn rest(side: &Side, shape: &Shape, text: &str) -> Result<usize> {
    let written = side.iter().filter(|group| group.is_some()).count();
    let open = written < side.len();
    if written == shape.rank() || (open && written < shape.rank()) {
        return Ok(shape.rank() - written);
    }
    let plural = if written == 1 { "axis" } else { "axes" };
    Err(OpError::new(format!("'{}' has {written} {plural}, but the tensor is {shape}", text.trim())))
}

fn no_repeats(axes: &[Axis], text: &str) -> Result<()> {
    match axes.iter().enumerate().find(|(i, axis)| **axis != Axis::One && axes[..*i].contains(axis)) {
        Some((_, axis)) => Err(OpError::new(format!("axis `{axis}` is repeated in '{}'", text.trim()))
            .help("each axis stands once per operand; give the second one another name")),
        None => Ok(()),
    }
}

/// A tensor whose dimensions have names.
struct Operand {
    node: NodeId,
    axes: Vec<Axis>,
}

impl Operand {
    fn position(&self, axis: &Axis) -> usize {
        self.axes.iter().position(|other| other == axis).unwrap_or(self.axes.len())
    }
}

pub(super) fn einsum(b: &mut Builder<'_>, pattern: &str, nodes: &[NodeId]) -> Result {
    let (left, right) = sides(pattern)?;
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != nodes.len() || nodes.is_empty() {
        let message = format!("the pattern '{pattern}' is for {} tensors, but {} were given", texts.len(), nodes.len());
        return Err(OpError::new(message));
    }
    let mut operands = Vec::new();
    let mut widest = 0;
    for (text, node) in texts.iter().zip(nodes) {
        let side = side(text, pattern, false)?;
        let rest = rest(&side, b.graph.shape(*node), text)?;
        widest = widest.max(rest);
        let axes: Vec<Axis> = expand(&side, rest).concat();
        no_repeats(&axes, text)?;
        operands.push(Operand { node: *node, axes });
    }
    let output: Vec<Axis> = expand(&side(right, pattern, false)?, widest).concat();
    no_repeats(&output, right)?;
    check_sizes(b, pattern, &operands)?;
    if let Some(axis) = output.iter().find(|axis| operands.iter().all(|operand| !operand.axes.contains(axis))) {
        let message = format!("axis `{axis}` of the result stands in no operand of the pattern '{pattern}'");
        return Err(OpError::new(message));
    }
    // From the left: after each product only axes that a later operand or the result reads remain.
    let mut rest = operands.into_iter();
    let Some(mut product) = rest.next() else { return Err(OpError::new("`einsum` without operands")) };
    while let Some(next) = rest.next() {
        let later = rest.as_slice();
        let needed = |axis: &Axis| output.contains(axis) || later.iter().any(|operand| operand.axes.contains(axis));
        product = multiply(b, product, next, needed)?;
    }
    let product = sum_unless(b, product, |axis| output.contains(axis))?;
    let perm: Vec<usize> = output.iter().map(|axis| product.position(axis)).collect();
    b.transpose(product.node, &perm)
}

fn check_sizes(b: &Builder<'_>, pattern: &str, operands: &[Operand]) -> Result<()> {
    let mut seen: Vec<(&Axis, NodeId, Dim)> = Vec::new();
    for operand in operands {
        let shape = b.graph.shape(operand.node);
        for (axis, dim) in operand.axes.iter().zip(&shape.0) {
            match seen.iter().find(|(other, ..)| *other == axis) {
                Some((_, first, other)) if other != dim => {
                    let first = b.graph.shape(*first);
                    return Err(OpError::new(format!(
                        "axis `{axis}` of '{pattern}' has size {other} in {first} and {dim} in {shape}"
                    )));
                }
                Some(_) => {}
                None => seen.push((axis, operand.node, *dim)),
            }
        }
    }
    Ok(())
}

/// Sums the axes that are not kept.
fn sum_unless(b: &mut Builder<'_>, operand: Operand, kept: impl Fn(&Axis) -> bool) -> Result<Operand> {
    let axes: Vec<usize> = (0..operand.axes.len()).filter(|i| !kept(&operand.axes[*i])).collect();
    let node = b.reduce(ReduceKind::Sum, operand.node, &axes, false)?;
    Ok(Operand { node, axes: operand.axes.into_iter().filter(kept).collect() })
}

fn multiply(b: &mut Builder<'_>, left: Operand, right: Operand, needed: impl Fn(&Axis) -> bool) -> Result<Operand> {
    let left = sum_unless(b, left, |axis| needed(axis) || right.axes.contains(axis))?;
    let right = sum_unless(b, right, |axis| needed(axis) || left.axes.contains(axis))?;
    let shared = |axis: &&Axis| right.axes.contains(axis);
    let pair = |axis: &Axis| (left.position(axis), right.position(axis));
    let batch: Vec<&Axis> = left.axes.iter().filter(shared).filter(|axis| needed(axis)).collect();
    let contract: Vec<&Axis> = left.axes.iter().filter(shared).filter(|axis| !needed(axis)).collect();
    let free = |operand: &Operand, other: &Operand| -> Vec<Axis> {
        operand.axes.iter().filter(|axis| !other.axes.contains(axis)).cloned().collect()
    };
    let axes: Vec<Axis> =
        batch.iter().map(|axis| (*axis).clone()).chain(free(&left, &right)).chain(free(&right, &left)).collect();
    if contract.is_empty() {
        // Nothing is summed: a pointwise product, which fuses better than a product of matrices with inner size 1.
        let left = spread(b, &left, &right, &axes)?;
        let right = spread(b, &right, &Operand { node: left, axes: axes.clone() }, &axes)?;
        return Ok(Operand { node: b.mul(left, right)?, axes });
    }
    let pairs = |axes: Vec<&Axis>| axes.into_iter().map(pair).collect();
    let dot = Dot { batch: pairs(batch), contract: pairs(contract) };
    Ok(Operand { node: b.dot(left.node, right.node, dot)?, axes })
}

/// The operand with its dimensions in the order of `axes`, repeated along those it does not have; their sizes are those
/// of `other`.
fn spread(b: &mut Builder<'_>, operand: &Operand, other: &Operand, axes: &[Axis]) -> Result {
    let present: Vec<&Axis> = axes.iter().filter(|axis| operand.axes.contains(axis)).collect();
    let perm: Vec<usize> = present.iter().map(|axis| operand.position(axis)).collect();
    let node = b.transpose(operand.node, &perm)?;
    let size = |axis: &Axis| {
        let holder = if operand.axes.contains(axis) { operand } else { other };
        b.graph.shape(holder.node).0[holder.position(axis)]
    };
    let shape: Shape = axes.iter().map(size).collect();
    let dims: Vec<usize> = (0..axes.len()).filter(|i| operand.axes.contains(&axes[*i])).collect();
    if dims.len() == axes.len() {
        return Ok(node);
    }
    b.op(Op::Broadcast { shape, dims }, &[node])
}

pub(super) fn rearrange(b: &mut Builder<'_>, x: NodeId, pattern: &str, sizes: &[(&str, u64)]) -> Result {
    let (left_text, right_text) = sides(pattern)?;
    let (left, right) = (side(left_text, pattern, true)?, side(right_text, pattern, true)?);
    let shape = b.graph.shape(x).clone();
    let rest = rest(&left, &shape, left_text)?;
    if left.contains(&None) != right.contains(&None) {
        return Err(OpError::new(format!("`...` stands on one side only of the pattern '{pattern}'")));
    }
    let (left, right) = (expand(&left, rest), expand(&right, rest));
    let (from, to) = (left.concat(), right.concat());
    no_repeats(&from, left_text)?;
    no_repeats(&to, right_text)?;
    let only =
        |one: &[Axis], other: &[Axis]| one.iter().find(|axis| **axis != Axis::One && !other.contains(axis)).cloned();
    if let Some(axis) = only(&to, &from) {
        return Err(OpError::new(format!("axis `{axis}` stands only on the right of '{pattern}'"))
            .help("`rearrange` makes no new axes but `1`; use `broadcast_to`"));
    }
    if let Some(axis) = only(&from, &to) {
        return Err(OpError::new(format!("axis `{axis}` stands only on the left of '{pattern}'"))
            .help("`rearrange` drops no axes; reduce it with `sum` or `mean`"));
    }
    if let Some((name, _)) = sizes.iter().find(|(name, _)| !from.contains(&Axis::Name((*name).into()))) {
        return Err(OpError::new(format!("a size is given for `{name}`, which is no axis of '{pattern}'")));
    }
    let mut named: Vec<(Axis, Dim)> = Vec::new();
    for (group, dim) in left.iter().zip(&shape.0) {
        split(group, dim, pattern, sizes, &mut named)?;
    }
    let dim = |axis: &Axis| named.iter().find(|(other, _)| other == axis).map_or(Dim::from(1), |(_, dim)| *dim);
    let elementary: Vec<&Axis> = from.iter().filter(|axis| **axis != Axis::One).collect();
    let split = b.reshape(x, elementary.iter().map(|axis| dim(axis)).collect())?;
    let order = to.iter().filter_map(|axis| elementary.iter().position(|other| *other == axis));
    let ordered = b.transpose(split, &order.collect::<Vec<_>>())?;
    let merged = right.iter().map(|group| match group.as_slice() {
        [axis] => dim(axis),
        group => Dim::from(group.iter().map(|axis| dim(axis).size).product::<u64>()),
    });
    b.reshape(ordered, merged.collect())
}

/// Sizes of the axes of one group: given ones, and one that follows from the others.
fn split(group: &[Axis], dim: &Dim, pattern: &str, sizes: &[(&str, u64)], named: &mut Vec<(Axis, Dim)>) -> Result<()> {
    let given = |axis: &Axis| match axis {
        Axis::Name(name) => sizes.iter().find(|(other, _)| other == name).map(|(_, size)| *size),
        Axis::One => Some(1),
        Axis::Rest(_) => None,
    };
    let unknown: Vec<&Axis> = group.iter().filter(|axis| given(axis).is_none()).collect();
    let known = group.iter().filter_map(given).try_fold(1u64, u64::checked_mul);
    let text = || group.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    if unknown.len() > 1 {
        let (first, second) = (unknown[0], unknown[1]);
        return Err(OpError::new(format!("the sizes of `{first}` and `{second}` in '({})' are both unknown", text()))
            .help(format!("give one: `rearrange(x, '{pattern}', {first}: ...)`")));
    }
    let found = match known {
        Some(known) if known > 0 && dim.size.is_multiple_of(known) => dim.size / known,
        _ => 0,
    };
    if found == 0 || (unknown.is_empty() && found != 1) {
        let parts = group.iter().map(|axis| match given(axis) {
            Some(size) => format!("{axis}={size}"),
            None => axis.to_string(),
        });
        let parts = parts.collect::<Vec<_>>().join(" ");
        let verb = if unknown.is_empty() { "is not the product of" } else { "is not divisible into" };
        let error = OpError::new(format!("{dim} {verb} ({parts}) in '{pattern}'"));
        return Err(match unknown.is_empty() {
            true => error,
            false => error.help("choose sizes that divide it, such as a number of heads that divides the width"),
        });
    }
    for axis in group {
        let size = match given(axis) {
            // A lone axis keeps the name of its dimension.
            _ if group.len() == 1 => *dim,
            Some(size) => size.into(),
            None => found.into(),
        };
        named.push((axis.clone(), size));
    }
    Ok(())
}

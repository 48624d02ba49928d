//! Reverse-mode differentiation of a graph.
//!
//! Only nodes between the differentiated tensors and the loss are visited, from the last to the first, so contributions
//! to a gradient are added in a fixed order. A gradient has the origin of what it differentiates. Nothing flows through
//! `stop_gradient`, integers, bools and comparisons.
//!
//! Gradients are f32, also of values of 16 bits: they are sums over all readers, and where they round should not depend on
//! how a graph is spelled. Only the operands of products and of attention have a type to which a gradient that they multiply
//! is rounded. So the gradient of a weight of 16 bits, or of one that products read in 16 bits, is a sum in f32.
//! Mixed precision rounds more ([`gradients_in`]): its casts stand where a pass has put them, and no spelling moves them.
//! What each op's gradient is stands with the op (`ops/`).

use crate::diag::Diagnostics;
use crate::ir::{Builder, DType, Graph, Node, NodeId};
use crate::ops::{Call, Op, OpError, ScalarOp};

/// Gradients of a scalar with respect to some nodes, in f32; `None` where there is no path to the loss.
///
/// Nodes are added behind those of the graph; existing ones keep their ids.
///
/// # Errors
/// The loss is not a scalar float.
pub fn gradients(graph: &mut Graph, loss: NodeId, wrt: &[NodeId]) -> Result<Vec<Option<NodeId>>, Diagnostics> {
    gradients_in(graph, loss, wrt, DType::F32)
}

/// The same where products are of a type of 16 bits by a pass that came before: what was rounded to that type has a gradient that is
/// rounded to it too, once, when all of it has been summed.
///
/// # Errors
/// As [`gradients`].
pub fn gradients_in(
    graph: &mut Graph,
    loss: NodeId,
    wrt: &[NodeId],
    low: DType,
) -> Result<Vec<Option<NodeId>>, Diagnostics> {
    let ty = graph.ty(loss);
    if !ty.dtype.is_float() || ty.shape.rank() != 0 {
        let error = OpError::new(format!("the loss is {ty}, but only a scalar float can be minimised"));
        return Err(error.help("reduce it: `mean(loss)` or `sum(loss)`").diagnose(graph.origin(loss)).into());
    }
    let depends = dependents(graph, loss, wrt);
    let mut adjoints: Vec<Option<NodeId>> = vec![None; loss.index() + 1];
    let origin = graph.node(loss).origin;
    let one = Builder::new(graph, origin).constant(1.0, DType::F32);
    adjoints[loss.index()] = Some(one.map_err(|error| fault(graph, loss, error))?);
    for index in (0..=loss.index()).rev() {
        let id = NodeId(index as u32);
        let Some(g) = adjoints[index].filter(|_| depends[index]) else { continue };
        propagate(graph, id, (g, low), &depends, &mut adjoints).map_err(|error| fault(graph, id, error))?;
    }
    let reached = |id: &NodeId| adjoints.get(id.index()).copied().flatten().filter(|_| depends[id.index()]);
    Ok(wrt.iter().map(reached).collect())
}

/// Which nodes up to the loss depend differentiably on one of `wrt`, themselves included.
fn dependents(graph: &Graph, loss: NodeId, wrt: &[NodeId]) -> Vec<bool> {
    let mut depends = vec![false; loss.index() + 1];
    for id in wrt.iter().filter(|id| id.index() <= loss.index()) {
        depends[id.index()] = graph.ty(*id).dtype.is_float();
    }
    for (index, node) in graph.nodes()[..=loss.index()].iter().enumerate() {
        let passes = node.ty.dtype.is_float() && node.op != Op::StopGradient;
        depends[index] |= passes && node.inputs.iter().any(|input| depends[input.index()]);
    }
    depends
}

/// Adds the contributions of one node to the gradients of its inputs.
fn propagate(
    graph: &mut Graph,
    id: NodeId,
    (g, low): (NodeId, DType),
    depends: &[bool],
    adjoints: &mut [Option<NodeId>],
) -> Result<(), OpError> {
    let node = graph.node(id).clone();
    if node.op == Op::StopGradient {
        return Ok(());
    }
    let mut b = Builder::new(graph, node.origin);
    // Slopes of arithmetic in 16 bits are worked out in f32 too.
    let multiplies = matches!(node.op, Op::Dot(_) | Op::Conv2d(_) | Op::Attention(_));
    let widen = |b: &mut Builder<'_>, id: NodeId| match b.graph.ty(id).dtype {
        dtype if dtype.is_narrow() && !multiplies => b.cast(id, DType::F32),
        _ => Ok(id),
    };
    let inputs = node.inputs.iter().map(|input| widen(&mut b, *input)).collect::<Result<Vec<_>, _>>()?;
    let output = widen(&mut b, id)?;
    let g = rounded(&mut b, &node, g, low)?;
    for (position, input) in node.inputs.iter().enumerate() {
        if !depends[input.index()] {
            continue;
        }
        let call = Call { inputs: &inputs, output };
        let Some(contribution) = node.op.vjp(&mut b, call, g, position)? else { continue };
        let contribution = b.cast(contribution, DType::F32)?;
        let sum = match adjoints[input.index()] {
            Some(earlier) => b.add(earlier, contribution)?,
            None => contribution,
        };
        debug_assert_eq!(b.graph.shape(sum), b.graph.shape(*input), "gradient of {:?}", node.op);
        adjoints[input.index()] = Some(sum);
    }
    Ok(())
}

/// The gradient of a value that was rounded to 16 bits, rounded alike: so much of it is kept where the value is, and what sums it (a
/// bias) reads what a product reads. That of a weight stays the f32 sum that it is.
fn rounded(b: &mut Builder<'_>, node: &Node, g: NodeId, low: DType) -> Result<NodeId, OpError> {
    let Op::Pointwise(ScalarOp::Cast(to)) = node.op else { return Ok(g) };
    let mut source = node.inputs[0];
    while b.graph.node(source).op.is_view() {
        source = b.graph.node(source).inputs[0];
    }
    if !to.is_narrow() || to != low || matches!(b.graph.node(source).op, Op::State { .. }) {
        return Ok(g);
    }
    let narrow = b.cast(g, to)?;
    b.cast(narrow, DType::F32)
}

/// A gradient that breaks an op's rule: a fault of that op's definition, shown at the node it belongs to.
fn fault(graph: &Graph, id: NodeId, error: OpError) -> Diagnostics {
    let message = format!("the gradient of `{}` failed: {}", graph.node(id).op.name(), error.message);
    let help = "this is a fault of the compiler; please report it with the spec";
    OpError::new(message).help(help).diagnose(graph.origin(id)).into()
}

//! A sum of paddings that do not overlap is a concatenation.
//!
//! The gradient of a value that is read in slices (queries, keys and values of one projection) is a sum of paddings, one per
//! slice: as it stands, zeros are written and added. As a concatenation every part is written once, by whoever computes it,
//! where it belongs; and where the sum is only read transposed, the parts are transposed instead, so that they come to lie
//! as they are read.
//!
//! Parts that were widened from 16 bits are joined as they were, and widened together: whoever rounds the whole reads it as it is.
//!
//! Exact, but for the sign of a zero.

use std::borrow::Cow;

use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::HashMap;
use crate::ir::{Builder, DType, Graph, NodeId, OriginId, Shape};
use crate::ops::{Op, OpError, Real, ScalarOp};

/// A sum of paddings along one axis: the padded values, each with where it starts, in order.
struct Sum {
    axis: usize,
    parts: Vec<(u64, NodeId)>,
    shape: Shape,
    perm: Option<Vec<usize>>,
}

/// The same program with sums of paddings as concatenations.
///
/// # Errors
/// An op refuses its inputs, which only a defect of this pass can cause.
pub fn join_pads(graph: &Graph) -> Result<Cow<'_, Graph>, Diagnostics> {
    let sums = find(graph);
    if sums.is_empty() {
        return Ok(Cow::Borrowed(graph));
    }
    rebuild(graph, &sums).map(Cow::Owned).map_err(|error| {
        let message = format!("internal: joining paddings of program `{}`", graph.name);
        Diagnostic::error(message).note(error.message).into()
    })
}

fn find(graph: &Graph) -> HashMap<NodeId, Sum> {
    let mut readers = graph.readers();
    for id in graph.outputs.values().chain(graph.updates.values()) {
        readers[id.index()].push(*id);
    }
    let is_sum = |id: NodeId| graph.node(id).op == Op::Pointwise(ScalarOp::Add);
    let only = |id: NodeId| match readers[id.index()].as_slice() {
        [one] if *one != id => Some(*one),
        _ => None,
    };
    let mut sums = HashMap::default();
    for root in graph.ids().filter(|id| is_sum(*id) && !only(*id).is_some_and(is_sum)) {
        let mut open = vec![root];
        let mut pads = Vec::new();
        while let Some(id) = open.pop() {
            match &graph.node(id).op {
                _ if id == root || is_sum(id) && only(id).is_some() => open.extend(&graph.node(id).inputs),
                _ => pads.push(id),
            }
        }
        let Some(mut sum) = disjoint(graph, root, &pads) else { continue };
        match only(root).map(|reader| (reader, &graph.node(reader).op)) {
            Some((reader, Op::Transpose { perm })) => {
                sum.perm = Some(perm.clone());
                sums.insert(reader, sum);
            }
            _ => {
                sums.insert(root, sum);
            }
        }
    }
    sums
}

/// The sum of these nodes, if all are paddings along one axis and none overlaps another.
fn disjoint(graph: &Graph, root: NodeId, pads: &[NodeId]) -> Option<Sum> {
    let mut axis = None;
    let mut parts = Vec::new();
    for id in pads {
        let node = graph.node(*id);
        let Op::Pad { low, high, interior } = &node.op else { return None };
        let mut padded = (0..low.len()).filter(|dim| low[*dim] + high[*dim] + interior[*dim] > 0);
        let along = padded.next()?;
        if padded.next().is_some() || interior[along] > 0 || axis.is_some_and(|axis| axis != along) {
            return None;
        }
        axis = Some(along);
        parts.push((low[along], node.inputs[0]));
    }
    parts.sort_unstable();
    let axis = axis?;
    let ends = parts.iter().map(|(start, id)| start + graph.shape(*id).size(axis));
    let apart = ends.zip(&parts[1..]).all(|(end, (next, _))| end <= *next);
    apart.then(|| Sum { axis, parts, shape: graph.shape(root).clone(), perm: None })
}

fn rebuild(graph: &Graph, sums: &HashMap<NodeId, Sum>) -> Result<Graph, OpError> {
    let mut new = graph.successor();
    let mut moved: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let inputs = node.inputs.iter().map(|input| moved[input.index()]).collect();
        moved.push(match sums.get(&id) {
            Some(sum) => concat(&mut new, sum, &moved, node.origin)?,
            None => match node.op {
                Op::Pointwise(ScalarOp::Cast(to)) if to.is_narrow() => {
                    Builder::new(&mut new, node.origin).cast(moved[node.inputs[0].index()], to)?
                }
                _ => new.copy(graph, id, inputs)?,
            },
        });
    }
    new.take_names(graph, |id| Some(moved[id.index()]));
    Ok(new)
}

/// The parts, and zeros where none is.
fn concat(new: &mut Graph, sum: &Sum, moved: &[NodeId], origin: OriginId) -> Result<NodeId, OpError> {
    let given: Vec<NodeId> = sum.parts.iter().map(|(_, id)| moved[id.index()]).collect();
    let dtype = new.ty(given[0]).dtype;
    let (given, narrow) = match as_they_were(new, &given, origin)? {
        Some((narrow, dtype)) => (narrow, Some(dtype)),
        None => (given, None),
    };
    let mut parts = Vec::new();
    let mut end = 0;
    let last = (sum.shape.size(sum.axis), None);
    let starts = sum.parts.iter().map(|(start, _)| *start);
    for (start, part) in starts.zip(given.into_iter().map(Some)).chain([last]) {
        if start > end {
            let mut shape = sum.shape.clone();
            shape.0[sum.axis] = (start - end).into();
            let dtype = narrow.unwrap_or(dtype);
            let zero = new.add(Op::Const { value: Real(0.0), dtype }, &[], origin)?;
            parts.push(new.add(Op::Broadcast { shape, dims: vec![] }, &[zero], origin)?);
        }
        if let Some(part) = part {
            end = start + new.shape(part).size(sum.axis);
            parts.push(part);
        }
    }
    let mut axis = sum.axis;
    if let Some(perm) = &sum.perm {
        for part in &mut parts {
            *part = new.add(Op::Transpose { perm: perm.clone() }, &[*part], origin)?;
        }
        axis = perm.iter().position(|from| *from == axis).unwrap_or(axis);
    }
    let joined = new.add(Op::Concat { axis }, &parts, origin)?;
    if narrow.is_none() { Ok(joined) } else { Builder::new(new, origin).cast(joined, dtype) }
}

/// Values before they were widened, if all were of one type of 16 bits.
fn as_they_were(new: &mut Graph, wide: &[NodeId], origin: OriginId) -> Result<Option<(Vec<NodeId>, DType)>, OpError> {
    let mut b = Builder::new(new, origin);
    for dtype in [DType::Bf16, DType::F16] {
        let narrow = wide.iter().map(|id| b.narrow(*id, dtype)).collect::<Result<Option<Vec<NodeId>>, _>>()?;
        if let Some(narrow) = narrow {
            return Ok(Some((narrow, dtype)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ir::{TensorType, Value, interpret};

    /// Sums gradients of slices of [n, 6, 2]: is it a concatenation, of how many parts, and the same value?
    fn check(slices: &[(u64, u64)], turned: bool, joined: Option<usize>) {
        let mut graph = Graph::new("pads");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let mut build = || -> Result<NodeId, OpError> {
            let mut pads = Vec::new();
            for (index, (start, end)) in slices.iter().enumerate() {
                let x = b.input(&format!("x{index}"), TensorType::f32([3, end - start, 2]))?;
                pads.push(b.pad(x, &[0, *start, 0], &[0, 6 - end, 0])?);
            }
            let sum = pads[1..].iter().try_fold(pads[0], |sum, pad| b.add(sum, *pad))?;
            if turned { b.transpose(sum, &[1, 2, 0]) } else { Ok(sum) }
        };
        let out = build().expect("well typed");
        graph.outputs.insert("out".into(), out);
        let new = join_pads(&graph).expect("well typed");
        crate::ir::verify(&new).expect("well typed");
        let node = new.node(new.outputs["out"]);
        assert_eq!(matches!(node.op, Op::Concat { .. }).then_some(node.inputs.len()), joined, "{slices:?}");
        let value = |(name, id): (&String, &NodeId)| {
            let ty = graph.ty(*id).clone();
            let numbers = (0..ty.shape.elements()).map(|i| i as f64 + name.len() as f64).collect();
            (name.clone(), Value::new(ty, numbers))
        };
        let inputs: BTreeMap<String, Value> = graph.inputs.iter().map(value).collect();
        let run = |graph: &Graph| interpret(graph, &inputs, &BTreeMap::new()).expect("it runs").outputs;
        assert_eq!(run(&graph)["out"], run(&new)["out"]);
    }

    #[test]
    fn paddings_that_do_not_overlap_are_a_concatenation() {
        check(&[(0, 2), (2, 4), (4, 6)], false, Some(3));
        check(&[(4, 6), (0, 2), (2, 4)], true, Some(3));
        check(&[(1, 2), (3, 5)], false, Some(5)); // zeros before, between and behind
        check(&[(0, 3), (2, 6)], false, None);
        check(&[(0, 6), (2, 4)], false, None);
    }
}

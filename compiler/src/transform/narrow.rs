//! Values of 16 bits in terms of what devices do: registers hold f32, and a cast rounds.
//!
//! A value of 16 bits is the nearest of its type to what its op computes of its operands in f32. Here that is written out,
//! so that nothing below has to know of it: arithmetic is in f32, and its result goes through a cast. What moves, chooses
//! or compares rounds nothing, and products take operands of 16 bits as they are.
//!
//! A target that stores no 16 bits ([`Storage::F32`]) keeps the same values in f32: a cast becomes a rounding of f32, and so
//! does what enters as an input or a state. So what is computed does not depend on what is stored how.

use std::borrow::Cow;

use alip_plan::Target;
use smallvec::SmallVec;

use super::fault;
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ir::{Builder, DType, Graph, Model, NodeId, TensorType};
use crate::ops::{Op, OpError, ReduceKind, ScalarOp, rounding, rounds_to};

/// Where values of 16 bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In 16 bits.
    Narrow,
    /// In f32, rounded.
    F32,
}

/// Whether a graph has values of 16 bits.
pub fn is_narrow(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| node.ty.dtype.is_narrow())
}

/// A model as a target computes it. Only one with values of 16 bits changes.
///
/// # Errors
/// A node its op refuses: a fault of this pass.
pub fn for_target<'m>(model: &'m Model, target: &Target) -> Result<Cow<'m, Model>, Diagnostics> {
    let stored = |dtype: DType| !dtype.is_narrow();
    if model.all_programs().all(|(_, graph)| !is_narrow(graph)) && model.state.values().all(|s| stored(s.ty.dtype)) {
        return Ok(Cow::Borrowed(model));
    }
    let storage = if target.narrow_memory { Storage::Narrow } else { Storage::F32 };
    let mut model = model.clone();
    let fewer = model.packed.values_mut().flat_map(|packed| packed.fewer.iter_mut().map(|(_, graph)| graph));
    for graph in model.programs.values_mut().chain(fewer) {
        *graph = spelled(graph, storage)?;
    }
    if storage == Storage::F32 {
        model.state.values_mut().filter(|decl| !stored(decl.ty.dtype)).for_each(|decl| decl.ty.dtype = DType::F32);
    }
    Ok(Cow::Owned(model))
}

/// The same values in f32 arithmetic with every rounding a node of its own.
///
/// # Errors
/// A node its op refuses: a fault of this pass.
pub fn spelled(graph: &Graph, storage: Storage) -> Result<Graph, Diagnostics> {
    if !is_narrow(graph) {
        return Ok(graph.clone());
    }
    let mut pass = Spelling { new: graph.successor(), storage, map: Vec::new(), wide: HashMap::default() };
    let mut inputs = HashMap::default();
    for id in graph.ids() {
        let (made, source) = pass.node(graph, id).map_err(|error| fault("16 bits", graph, id, &error))?;
        pass.map.push(made);
        inputs.insert(id, source);
    }
    let Spelling { mut new, map, .. } = pass;
    new.take_names(graph, |id| Some(map[id.index()]));
    for (name, id) in &graph.inputs {
        new.inputs.insert(name.clone(), inputs[id]);
    }
    Ok(new)
}

/// The graph in which nothing is rounded to 16 bits: what its gradients are the slopes of.
///
/// # Errors
/// A node its op refuses: a fault of this pass.
pub fn unrounded(graph: &Graph) -> Result<Graph, Diagnostics> {
    let spelled = spelled(graph, Storage::F32)?;
    let mut new = spelled.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(spelled.nodes().len());
    for id in spelled.ids() {
        let node = spelled.node(id);
        let inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| map[input.index()]).collect();
        map.push(match node.op {
            Op::Pointwise(op) if rounds_to(op).is_some() => inputs[0],
            _ => new.push(node, inputs),
        });
    }
    new.take_names(&spelled, |id| Some(map[id.index()]));
    Ok(new)
}

struct Spelling {
    new: Graph,
    storage: Storage,
    map: Vec<NodeId>,
    /// What was widened already.
    wide: HashMap<NodeId, NodeId>,
}

impl Spelling {
    /// The node that holds the value of an old one, and the node of its op.
    fn node(&mut self, old: &Graph, id: NodeId) -> Result<(NodeId, NodeId), OpError> {
        let node = old.node(id);
        let mut inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| self.map[input.index()]).collect();
        let into = Some(node.ty.dtype).filter(|dtype| dtype.is_narrow());
        let (op, rounds) = match (&node.op, self.storage, into) {
            (Op::Input { name, ty }, Storage::F32, Some(_)) => {
                (Op::Input { name: name.clone(), ty: widened(ty) }, true)
            }
            (Op::State { path, ty }, Storage::F32, Some(_)) => {
                (Op::State { path: path.clone(), ty: widened(ty) }, true)
            }
            (Op::Const { value, .. }, Storage::F32, Some(_)) => (Op::Const { value: *value, dtype: DType::F32 }, false),
            // Integers become floats first, as in registers.
            (Op::Pointwise(ScalarOp::Cast(_)), _, Some(_)) => (Op::Pointwise(ScalarOp::Cast(DType::F32)), true),
            (op, Storage::Narrow, _) if takes_narrow(op) => (op.clone(), false),
            (op, _, into) => {
                for input in &mut inputs {
                    *input = self.widen(*input, node.origin)?;
                }
                (op.clone(), into.is_some() && !is_exact(op))
            }
        };
        let own = match (&op, inputs.as_slice()) {
            (Op::Pointwise(ScalarOp::Cast(to)), [input]) if self.new.ty(*input).dtype == *to => *input,
            (_, inputs) => self.new.add(op, inputs, node.origin)?,
        };
        let Some(dtype) = into.filter(|_| rounds) else { return Ok((own, own)) };
        let round = match self.storage {
            Storage::Narrow => ScalarOp::Cast(dtype),
            Storage::F32 => rounding(dtype).unwrap_or(ScalarOp::Cast(dtype)),
        };
        Ok((self.new.add(Op::Pointwise(round), &[own], node.origin)?, own))
    }

    fn widen(&mut self, id: NodeId, origin: crate::ir::OriginId) -> Result<NodeId, OpError> {
        if !self.new.ty(id).dtype.is_narrow() {
            return Ok(id);
        }
        if let Some(wide) = self.wide.get(&id) {
            return Ok(*wide);
        }
        let wide = Builder::new(&mut self.new, origin).cast(id, DType::F32)?;
        self.wide.insert(id, wide);
        Ok(wide)
    }
}

fn widened(ty: &TensorType) -> TensorType {
    TensorType { dtype: DType::F32, shape: ty.shape.clone() }
}

/// Whether an op's result is among the values of its operands, so that nothing is rounded.
fn is_exact(op: &Op) -> bool {
    use ScalarOp::{Abs, Floor, Max, Min, Neg, Select};
    match op {
        Op::Pointwise(op) => matches!(op, Neg | Abs | Floor | Max | Min | Select),
        Op::Reduce { kind, .. } => matches!(kind, ReduceKind::Max | ReduceKind::Min),
        Op::Input { .. } | Op::State { .. } | Op::Const { .. } | Op::Iota { .. } | Op::StopGradient => true,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => true,
        Op::Pad { .. } | Op::Concat { .. } | Op::Gather { .. } => true,
        _ => false,
    }
}

/// Whether devices have an op for operands of 16 bits: what rounds nothing, sums in f32, or rounds its results itself.
pub(crate) fn takes_narrow(op: &Op) -> bool {
    let compares = matches!(op, Op::Pointwise(ScalarOp::Lt | ScalarOp::Le | ScalarOp::Eq | ScalarOp::Cast(_)));
    let chooses = matches!(op, Op::Reduce { kind: ReduceKind::ArgMax, .. });
    compares || chooses || is_exact(op) || matches!(op, Op::Dot(_) | Op::Conv2d(_) | Op::Attention(_))
}

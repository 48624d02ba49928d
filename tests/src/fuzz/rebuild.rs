//! A case with some of its nodes replaced or resized.

use std::collections::BTreeMap;

use alip_compiler::ir::{Graph, NodeId, OriginId, Shape, TensorType, Value};
use alip_compiler::ops::Op;

use super::Case;
use crate::compiled::Values;

/// What stands for a node.
#[derive(Clone)]
pub(super) enum Other {
    /// An earlier node of the same type.
    Node(NodeId),
    /// A new input of this name and value.
    Input(String, Value),
}

/// The case with some nodes replaced and some sizes changed, without what nothing needs. `None` where an op refuses.
pub(super) fn rebuilt(
    case: &Case,
    other: impl Fn(NodeId, &Graph) -> Option<Other>,
    size: impl Fn(u64) -> Option<u64>,
) -> Option<Case> {
    let from = &case.graph;
    let resized = |n: u64| size(n).unwrap_or(n);
    let mut live = vec![false; from.nodes().len()];
    let ends = from.outputs.values().chain(from.updates.values()).chain(from.values.values());
    ends.for_each(|id| live[id.index()] = true);
    for id in from.ids().rev() {
        match other(id, from) {
            _ if !live[id.index()] => {}
            Some(Other::Node(instead)) => live[instead.index()] = true,
            Some(Other::Input(..)) => {}
            None => from.node(id).inputs.iter().for_each(|input| live[input.index()] = true),
        }
    }
    let mut new = Case { graph: Graph::new(&from.name), inputs: Values::new(), state: Values::new() };
    let mut map: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for id in from.ids().filter(|id| live[id.index()]) {
        let node = from.node(id);
        let made = match other(id, from) {
            Some(Other::Node(instead)) => *map.get(&instead)?,
            Some(Other::Input(name, value)) => {
                let op = Op::Input { name: name.as_str().into(), ty: value.ty.clone() };
                let made = new.graph.add(op, &[], OriginId(0)).ok()?;
                new.graph.inputs.insert(name.clone(), made);
                new.inputs.insert(name, value);
                made
            }
            None => {
                let inputs = node.inputs.iter().map(|input| map.get(input).copied()).collect::<Option<Vec<_>>>()?;
                let op = with_sizes(&node.op, &resized);
                match &op {
                    Op::Input { name, ty } => {
                        drop(new.inputs.insert(name.to_string(), fitted(case.inputs.get(&**name)?, ty)))
                    }
                    Op::State { path, ty } => {
                        drop(new.state.insert(path.to_string(), fitted(case.state.get(&**path)?, ty)))
                    }
                    _ => {}
                }
                let made = new.graph.add(op.clone(), &inputs, OriginId(0)).ok()?;
                if let Op::Input { name, .. } = &op {
                    new.graph.inputs.insert(name.to_string(), made);
                }
                made
            }
        };
        map.insert(id, made);
    }
    for (old, new) in [
        (&from.outputs, &mut new.graph.outputs),
        (&from.updates, &mut new.graph.updates),
        (&from.values, &mut new.graph.values),
    ] {
        for (name, id) in old {
            new.insert(name.clone(), *map.get(id)?);
        }
    }
    let states = |path: &String| new.state.get(path).map(|value| &value.ty);
    let fits = new.graph.updates.iter().all(|(path, id)| states(path) == Some(new.graph.ty(*id)));
    fits.then_some(new)
}

/// As many elements as the type asks for, the first ones again where there are not enough.
fn fitted(value: &Value, ty: &TensorType) -> Value {
    let data = value.data.iter().cycle().take(ty.shape.elements() as usize).copied().collect();
    Value::new(ty.clone(), data)
}

fn with_sizes(op: &Op, size: &impl Fn(u64) -> u64) -> Op {
    let shape = |shape: &Shape| shape.sizes().into_iter().map(size).collect::<Shape>();
    let ty = |ty: &TensorType| TensorType::new(ty.dtype, shape(&ty.shape));
    match op.clone() {
        Op::Input { name, ty: own } => Op::Input { name, ty: ty(&own) },
        Op::State { path, ty: own } => Op::State { path, ty: ty(&own) },
        Op::Reshape { shape: own } => Op::Reshape { shape: shape(&own) },
        Op::Broadcast { shape: own, dims } => Op::Broadcast { shape: shape(&own), dims },
        Op::Iota { shape: own, axis } => Op::Iota { shape: shape(&own), axis },
        Op::Random { shape: own, stream, lane } => Op::Random { shape: shape(&own), stream, lane },
        Op::ScatterAdd { batch, rows } => Op::ScatterAdd { batch, rows: size(rows) },
        Op::Slice { start, end, step } => Op::Slice { start, end: end.into_iter().map(size).collect(), step },
        op => op,
    }
}

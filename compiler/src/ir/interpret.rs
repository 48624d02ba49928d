//! The reference interpreter: every op by its reference meaning, in f64.
//!
//! Numbers are exact but for those of 16 bits, which are rounded where they are made: at a cast, where an op of such a type
//! has its result, where an input or a state enters.
//!
//! It judges everything else, so it is simple; products and convolutions use a library so that it can also judge wide
//! layers, and a value is dropped after its last use.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use super::{DType, Graph, Names, NodeId, TensorType, Value};
use crate::ops::{Op, Tensor};

/// What a program made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// Outputs by name.
    pub outputs: BTreeMap<String, Value>,
    /// New values of state by path.
    pub updates: BTreeMap<String, Value>,
    /// Named values of the top-level body.
    pub values: BTreeMap<String, Value>,
}

/// An input or a state tensor that was not given, or is of another type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterpretError {
    /// What is wrong with which tensor.
    pub message: String,
}

impl fmt::Display for InterpretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for InterpretError {}

/// Runs a program.
///
/// # Errors
/// An input or a state tensor is missing or of another type.
pub fn interpret(
    graph: &Graph,
    inputs: &BTreeMap<String, Value>,
    state: &BTreeMap<String, Value>,
) -> Result<Evaluated, InterpretError> {
    interpret_with(graph, inputs, state, |_, _| {})
}

/// Runs a program whose results `change` may change, node by node, before anything reads them.
///
/// # Errors
/// As [`interpret`].
pub fn interpret_with(
    graph: &Graph,
    inputs: &BTreeMap<String, Value>,
    state: &BTreeMap<String, Value>,
    mut change: impl FnMut(NodeId, &mut [f64]),
) -> Result<Evaluated, InterpretError> {
    let mut result = Evaluated::default();
    let last_use = last_uses(graph);
    let mut slots: Vec<Option<Cow<'_, [f64]>>> = vec![None; graph.nodes().len()];
    for id in graph.ids() {
        let node = graph.node(id);
        let value = match &node.op {
            Op::Input { name, ty } => rounded(given("input", inputs, name, ty)?, ty.dtype),
            Op::State { path, ty } => rounded(given("state", state, path, ty)?, ty.dtype),
            op => {
                let operand =
                    |id: &NodeId| Tensor { ty: graph.ty(*id), data: slots[id.index()].as_deref().unwrap_or(&[]) };
                let operands: Vec<Tensor<'_>> = node.inputs.iter().map(operand).collect();
                let mut value = op.eval(&operands, &node.ty);
                change(id, &mut value);
                Cow::Owned(value)
            }
        };
        slots[id.index()] = Some(value);
        for input in node.inputs.iter().chain([&id]) {
            if last_use[input.index()] == id {
                slots[input.index()] = None;
            }
        }
    }
    let value =
        |id: &NodeId| Value { ty: graph.ty(*id).clone(), data: slots[id.index()].as_deref().unwrap_or(&[]).to_vec() };
    let named = |map: &Names| map.iter().map(|(name, id)| (name.clone(), value(id))).collect();
    result.outputs = named(&graph.outputs);
    result.updates = named(&graph.updates);
    result.values = named(&graph.values);
    Ok(result)
}

/// What is given as a type of 16 bits is rounded where it enters, as on a device.
fn rounded(values: &[f64], dtype: DType) -> Cow<'_, [f64]> {
    match dtype.is_narrow() {
        true => values.iter().map(|x| dtype.rounded(*x)).collect(),
        false => Cow::Borrowed(values),
    }
}

fn given<'a>(
    kind: &'static str,
    map: &'a BTreeMap<String, Value>,
    name: &str,
    ty: &TensorType,
) -> Result<&'a [f64], InterpretError> {
    let wrong = |message| InterpretError { message };
    let value = map.get(name).ok_or_else(|| wrong(format!("no value for {kind} `{name}`")))?;
    if value.ty != *ty {
        return Err(wrong(format!("{kind} `{name}` is {ty}, but {} was given", value.ty)));
    }
    if value.data.len() as u64 != ty.shape.elements() {
        return Err(wrong(format!("{kind} `{name}` is {ty}, but {} elements were given", value.data.len())));
    }
    Ok(&value.data)
}

/// The last node that reads each node's value: itself when nothing does, none (a node beyond all) for results.
fn last_uses(graph: &Graph) -> Vec<NodeId> {
    let mut last: Vec<NodeId> = graph.ids().collect();
    for id in graph.ids() {
        for input in &graph.node(id).inputs {
            last[input.index()] = id;
        }
    }
    for id in graph.outputs.values().chain(graph.updates.values()).chain(graph.values.values()) {
        last[id.index()] = NodeId(u32::MAX);
    }
    last
}

//! The text form of a graph: one node per line, its type beside it.
//!
//! ```text
//! graph train
//! origin 1 "text.ln_final" "layer_norm"
//! %0 = input "x" : f32[B=8, D=4] @0
//! %1 = state "scale" : f32[4] @1
//! %2 = const 0.5 : f32[] @1
//! %3 = broadcast(shape:"[B=8, D=4]",dims:[1]) %1 : f32[B=8, D=4] @1
//! %4 = mul %0 %3 : f32[B=8, D=4] @1
//! output "y" = %4
//! ```
//!
//! `@n` names an origin. [`super::parse`] reads the text back to an equal graph; only the spans of origins are left out,
//! since the text carries no sources.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use super::{Graph, Node, NodeId, Shape, TensorType};
use crate::ops::{Op, pointwise};

/// The text of a graph, ending in a line break.
pub fn print(graph: &Graph) -> String {
    let mut text = format!("graph {}\n", graph.name);
    for (index, origin) in graph.origins().iter().enumerate() {
        let line = format!("origin {index} {} {}\n", quoted(&origin.path), quoted(&origin.module));
        text.push_str(&line);
    }
    for (index, node) in graph.nodes().iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "%{index} = {}", head(node));
        for input in &node.inputs {
            let _ = write!(text, " %{}", input.0);
        }
        let _ = writeln!(text, " : {} @{}", node.ty, node.origin.0);
    }
    for (kind, map) in [("output", &graph.outputs), ("update", &graph.updates), ("value", &graph.values)] {
        for (name, id) in map {
            let _ = writeln!(text, "{kind} {} = %{}", quoted(name), id.0);
        }
    }
    text
}

/// A node without its names: the op with its attributes, the types it takes and gives.
pub fn describe(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let inputs: Vec<String> = node.inputs.iter().map(|input| graph.ty(*input).to_string()).collect();
    let arrow = if inputs.is_empty() { "" } else { " -> " };
    format!("{} {}{arrow}{}", head(node), inputs.join(", "), node.ty)
}

/// RON without the wrappings of newtypes, for attributes.
pub(super) fn ron_options() -> ron::Options {
    use ron::extensions::Extensions;
    ron::Options::default().with_default_extension(Extensions::UNWRAP_VARIANT_NEWTYPES | Extensions::UNWRAP_NEWTYPES)
}

fn quoted(text: &str) -> String {
    ron_options().to_string(text).unwrap_or_default()
}

/// The op with its attributes. Sources whose type stands beside them anyway and scalar operations have a short form.
fn head(node: &Node) -> String {
    match &node.op {
        Op::Input { name, .. } => format!("input {}", quoted(name)),
        Op::State { path, .. } => format!("state {}", quoted(path)),
        Op::Const { value, .. } => format!("const {value}"),
        Op::Pointwise(op) => pointwise(*op).map_or_else(|| format!("{op:?}"), |row| row.name.to_owned()),
        // Ops are plain data, which serialises without fail.
        op => ron_options().to_string(op).unwrap_or_default(),
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for TensorType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

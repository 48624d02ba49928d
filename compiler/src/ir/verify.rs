//! Checks the contract of graphs and models; run after each pass.

use smallvec::SmallVec;

use super::{Graph, Model, Names, NodeId, TensorType};
use crate::diag::{Diagnostic, Diagnostics};
use crate::ops::{Op, OpError};

/// Checks that nodes are in topological order, that their types are what their ops infer, that inputs are known by
/// their names, and that outputs, updates and values exist.
///
/// # Errors
/// One diagnostic per violation. A user cannot cause one: it is a fault of the pass that ran before.
pub fn verify(graph: &Graph) -> Result<(), Diagnostics> {
    let mut found = Vec::new();
    for id in graph.ids() {
        if let Err(error) = verify_node(graph, id) {
            let at = format!("program `{}`, node %{} ({})", graph.name, id.0, graph.node(id).op.name());
            found.push(OpError::new(format!("{at}: {}", error.message)).diagnose(graph.origin(id)));
        }
    }
    for (kind, map) in [("output", &graph.outputs), ("update", &graph.updates), ("value", &graph.values)] {
        found.extend(names(graph, map).map(|name| {
            Diagnostic::error(format!("program `{}`: {kind} `{name}` names a node that does not exist", graph.name))
        }));
    }
    for (name, id) in &graph.inputs {
        if id.index() >= graph.nodes().len()
            || !matches!(&graph.node(*id).op, Op::Input { name: own, .. } if **own == **name)
        {
            found.push(Diagnostic::error(format!("program `{}`: input `{name}` is not at %{}", graph.name, id.0)));
        }
    }
    Diagnostics::check((), found)
}

fn names<'a>(graph: &Graph, map: &'a Names) -> impl Iterator<Item = &'a str> + use<'a> {
    let count = graph.nodes().len();
    map.iter().filter(move |(_, id)| id.index() >= count).map(|(name, _)| name.as_str())
}

fn verify_node(graph: &Graph, id: NodeId) -> Result<(), OpError> {
    let node = graph.node(id);
    if let Some(input) = node.inputs.iter().find(|input| **input >= id) {
        return Err(OpError::new(format!("reads %{}, which does not come before it", input.0)));
    }
    if node.origin.0 as usize >= graph.origins().len() {
        return Err(OpError::new(format!("has origin {}, which does not exist", node.origin.0)));
    }
    let types: SmallVec<[&TensorType; 3]> = node.inputs.iter().map(|input| graph.ty(*input)).collect();
    let ty = node.op.infer(&types)?;
    if ty != node.ty {
        return Err(OpError::new(format!("is typed {}, but the op gives {ty}", node.ty)));
    }
    if let Op::Input { name, .. } = &node.op
        && graph.inputs.get(&**name) != Some(&id)
    {
        return Err(OpError::new(format!("input `{name}` is not listed among the program's inputs")));
    }
    Ok(())
}

/// Checks every program, and that what programs read and update is declared with that type.
///
/// # Errors
/// As [`verify`].
pub fn verify_model(model: &Model) -> Result<(), Diagnostics> {
    let mut found = Vec::new();
    for graph in model.programs.values() {
        if let Err(errors) = verify(graph) {
            found.extend(errors.into_vec());
        }
        let read = graph.nodes().iter().filter_map(|node| match &node.op {
            Op::State { path, ty } => Some(("reads", &**path, ty)),
            _ => None,
        });
        let existing = graph.updates.iter().filter(|(_, id)| id.index() < graph.nodes().len());
        let written = existing.map(|(path, id)| ("updates", path.as_str(), graph.ty(*id)));
        for (verb, path, ty) in read.chain(written) {
            let message = match model.state.get(path) {
                Some(declared) if declared.ty == *ty => continue,
                Some(declared) => format!("{verb} state `{path}` as {ty}, but it is {}", declared.ty),
                None => format!("{verb} state `{path}`, which is not declared"),
            };
            found.push(Diagnostic::error(format!("program `{}` {message}", graph.name)));
        }
    }
    Diagnostics::check((), found)
}

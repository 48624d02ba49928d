//! How far a computation in floats may be from the same one in exact numbers, derived from its graph.
//!
//! Running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3): beside every node
//! stands a bound on its error, which is a graph too: what the errors of its inputs become, plus what its own rounding adds,
//! by the rule that its op states ([`crate::ops::rounding`]). Both are evaluated together by the f64 interpreter, so there is a
//! bound for every element. It holds whatever is fused, in whichever order sums run.
//!
//! A rounding to 16 bits is a step like any other: what was off before it decides between which numbers it may choose, and
//! what is exact, or far enough from the middle between two of them, is rounded right or is wrong.
//!
//! Semantic ops are bounded as what they expand to, in the order of operations that rounds most.

use alip_plan::bounds::FloatFormat;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, Graph, NodeId, OriginId};
use crate::ops::rounding::Rounding;
use crate::transform::expand::expand;
use crate::transform::narrow::{Storage, spelled};

/// Name of the output of [`with_bounds`] that bounds the error of another one.
pub fn bound_of(name: &str) -> String {
    format!("bound of {name}")
}

/// Name of the output of [`with_bounds`] that is the new value of a state.
pub fn update_of(path: &str) -> String {
    format!("update of {path}")
}

/// A graph that yields all outputs and new states (as [`update_of`]) of this one, and a bound ([`bound_of`]) for each that is
/// not exact: floats with the error of a float, integers and truth values with whether they may be others. `format` is that
/// of f32; values of 16 bits are rounded to their own.
///
/// # Errors
/// A rule built a node its op refuses: a fault of this module.
pub fn with_bounds(graph: &Graph, format: FloatFormat) -> Result<Graph, Diagnostics> {
    let graph = &expand(&spelled(graph, Storage::F32)?, |_| true)?;
    let mut bounded = Graph::new(&graph.name);
    let mut values: Vec<NodeId> = Vec::new();
    let mut errors: Vec<Option<NodeId>> = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let x: Vec<NodeId> = node.inputs.iter().map(|input| values[input.index()]).collect();
        let e: Vec<Option<NodeId>> = node.inputs.iter().map(|input| errors[input.index()]).collect();
        let added = bounded.add(node.op.clone(), &x, OriginId(0)).and_then(|y| {
            // An integer or a truth value that follows from what is exact is the right one.
            if !node.ty.dtype.is_float() && e.iter().all(Option::is_none) {
                return Ok((y, None));
            }
            let b = Builder::new(&mut bounded, OriginId(0));
            let mut rounding = Rounding { b, u: format.unit_roundoff, x: &x, e: &e, y };
            Ok((y, node.op.error(&mut rounding)?))
        });
        let (y, error) = added.map_err(|error| {
            Diagnostic::error(format!("internal: the bound of `{}`", node.op.name())).note(error.message)
        })?;
        errors.push(error);
        values.push(y);
    }
    bounded.inputs = graph.inputs.iter().map(|(name, id)| (name.clone(), values[id.index()])).collect();
    let results = graph.outputs.iter().map(|(name, id)| (name.clone(), *id));
    let results = results.chain(graph.updates.iter().map(|(path, id)| (update_of(path), *id)));
    for (name, id) in results {
        if let Some(error) = errors[id.index()] {
            bounded.outputs.insert(bound_of(&name), error);
        }
        bounded.outputs.insert(name, values[id.index()]);
    }
    Ok(bounded)
}

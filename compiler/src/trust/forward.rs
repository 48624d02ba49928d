//! Whether what is done to a whole graph before it is differentiated keeps what a training step yields.
//!
//! Lifting, the rewrites of the whole graph and packing make another graph, whose nodes are not those of the graph as
//! written; but outputs, named values, gradients and new states keep their names. Both graphs are interpreted in f64, so that
//! no device takes part, and every value that both have under one name is compared, in the order of the graph as written:
//! the first that differs by more than the rounding of f64 lies closest behind what is wrong.

use alip_plan::bounds::{Violation, assert_within_each};

use super::rounding::update_of;
use super::sensitivity::{Constants, sampled};
use super::{Judged, Values};
use crate::diag::Diagnostics;
use crate::ir::{Graph, NodeId};

/// What a graph as written yields, by name, in its order.
#[derive(Clone, Debug)]
pub struct Written {
    values: Vec<(NodeId, String, Judged)>,
}

/// A value that a rewritten graph computes otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Its name: an output, or a new state as [`update_of`].
    pub name: String,
    /// The node of the graph as written.
    pub node: NodeId,
    /// How it differs.
    pub how: Violation,
}

impl Written {
    /// Interprets a graph as written.
    ///
    /// # Errors
    /// Inputs or state are not the graph's.
    pub fn new(graph: &Graph, inputs: &Values, state: &Values) -> Result<Written, Diagnostics> {
        let mut judged = sampled(graph, inputs, state, Constants::Written)?;
        let outputs = graph.outputs.iter().map(|(name, id)| (*id, name.clone()));
        let updates = graph.updates.iter().map(|(path, id)| (*id, update_of(path)));
        let mut names: Vec<(NodeId, String)> = outputs.chain(updates).collect();
        names.sort();
        let values = names.into_iter().filter_map(|(node, name)| {
            let judged = judged.remove(&name)?;
            Some((node, name, judged))
        });
        Ok(Written { values: values.collect() })
    }

    /// The first value that is NaN or infinite: its node, its name, and the number. What depends on it is not compared with
    /// anything, since it is the same whatever is wrong. Masks may hold -infinity.
    pub fn first_nonfinite(&self) -> Option<(NodeId, &str, f64)> {
        self.values.iter().find_map(|(node, name, Judged { value, .. })| {
            let number = value.iter().find(|x| x.is_nan() || **x == f64::INFINITY)?;
            Some((*node, name.as_str(), *number))
        })
    }

    /// The first value that another graph computes otherwise. Inputs of the other may be more: those that the runtime makes.
    ///
    /// # Errors
    /// Inputs or state are not the graph's.
    pub fn first_changed(
        &self,
        graph: &Graph,
        inputs: &Values,
        state: &Values,
    ) -> Result<Option<Changed>, Diagnostics> {
        let found = sampled(graph, inputs, state, Constants::Written)?;
        let changed = self.values.iter().find_map(|(node, name, Judged { value, bounds })| {
            let other = found.get(name)?;
            let both: Vec<f64> = bounds.iter().zip(&other.bounds).map(|(a, b)| a + b).collect();
            let how = assert_within_each(&other.value, value, &both).err()?;
            Some(Changed { name: name.clone(), node: *node, how })
        });
        Ok(changed)
    }
}

//! Which values each step of a program reads and writes, as nodes of the graph that it was made from.
//!
//! A step can so be judged on its own: the interpreter computes what it writes from what it really read, and no error of an
//! earlier step is in the way.

use std::collections::{BTreeMap, BTreeSet};

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, NodeId};
use crate::ops::Op;

/// A program with the values of its steps.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The graph that was scheduled.
    pub graph: Graph,
    /// One for each step of the program.
    pub steps: Vec<Traced>,
}

/// A step: buffers of the program and what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// Before it.
    pub reads: Vec<(u32, NodeId)>,
    /// After it. A value may be written by several steps, and is whole after the last.
    pub writes: Vec<(u32, NodeId)>,
}

/// Name of a node as an input or output of a part of its graph.
pub fn name_of(id: NodeId) -> String {
    format!("%{}", id.0)
}

impl Trace {
    /// Per value, the last step that writes it.
    pub fn last_writers(&self) -> BTreeMap<NodeId, usize> {
        let writes = self.steps.iter().enumerate();
        writes.flat_map(|(step, traced)| traced.writes.iter().map(move |(_, id)| (*id, step))).collect()
    }

    /// The part of the graph between some values and others: `from` are its inputs, `to` its outputs, both by [`name_of`].
    /// Beside it, the nodes that lie between.
    ///
    /// # Errors
    /// `to` depends on an input or a state that is not among `from`.
    pub fn part(&self, from: &BTreeSet<NodeId>, to: &BTreeSet<NodeId>) -> Result<(Graph, Vec<NodeId>), Diagnostics> {
        let graph = &self.graph;
        let live = graph.live_from(to, |id| from.contains(&id));
        let mut part = graph.successor();
        let (mut map, mut between) = (BTreeMap::new(), Vec::new());
        for id in graph.ids().filter(|id| live[id.index()]) {
            let node = graph.node(id);
            let given = from.contains(&id);
            if !given && matches!(node.op, Op::Input { .. } | Op::State { .. }) {
                let message = format!("internal: a step depends on {} without reading it", name_of(id));
                return Err(Diagnostic::error(message).into());
            }
            let (op, inputs) = if given {
                (Op::Input { name: name_of(id).into(), ty: node.ty.clone() }, Vec::new())
            } else {
                between.push(id);
                (node.op.clone(), node.inputs.iter().map(|input| map[input]).collect())
            };
            let new = part.add(op, &inputs, node.origin).map_err(|error| error.diagnose(graph.origin(id)))?;
            if given {
                part.inputs.insert(name_of(id), new);
            }
            map.insert(id, new);
        }
        part.outputs = to.iter().map(|id| (name_of(*id), map[id])).collect();
        Ok((part, between))
    }
}

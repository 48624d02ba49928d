//! A program without what regions would trip over: `stop_gradient`, dead nodes, scalars and constants that stand in it many
//! times.
//!
//! Larger values that are computed twice stay twice. Whether to merge them is for the schedule, which may want each with its
//! own readers: the sum that is a parameter's gradient lies in another place than the equal one that a layer's gradient reads.

use smallvec::SmallVec;

use super::region::trivial;
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId, eliminate_dead};
use crate::ops::Op;

/// The same program, tidied.
///
/// # Errors
/// An op refuses its inputs, which only a defect can cause.
pub(super) fn tidy(graph: &Graph) -> Result<Graph, Diagnostics> {
    let graph = &eliminate_dead(graph)?.graph;
    let trivial = trivial(graph);
    let mut known: HashMap<(Op, SmallVec<[NodeId; 3]>), NodeId> = HashMap::default();
    let mut new = graph.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| map[input.index()]).collect();
        if node.op == Op::StopGradient {
            map.push(inputs[0]);
            continue;
        }
        let mut add = |op: &Op, inputs: &[NodeId]| {
            new.add(op.clone(), inputs, node.origin).map_err(|error| error.diagnose(graph.origin(id)))
        };
        map.push(if trivial[id.index()] || graph.shape(id).elements() == 1 {
            let key = (node.op.clone(), inputs);
            match known.get(&key) {
                Some(id) => *id,
                None => {
                    let id = add(&key.0, &key.1)?;
                    known.insert(key, id);
                    id
                }
            }
        } else {
            add(&node.op, &inputs)?
        });
    }
    new.take_names(graph, |id| Some(map[id.index()]));
    Ok(new)
}

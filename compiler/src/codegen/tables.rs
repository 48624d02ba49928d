//! Which tables the inputs of a program are indices of.

use crate::hash::HashMap;
use crate::ir::{Graph, NodeId, ScalarOp};
use crate::ops::Op;

/// Of every node whose elements are used as indices, as they are or moved elsewhere, the rows of the smallest table.
pub(super) fn tables(graph: &Graph) -> HashMap<NodeId, u64> {
    let mut tables: HashMap<NodeId, u64> = HashMap::default();
    let note = |tables: &mut HashMap<NodeId, u64>, id: NodeId, rows: u64| {
        tables.entry(id).and_modify(|known| *known = rows.min(*known)).or_insert(rows);
    };
    // Readers come after what they read.
    for id in graph.ids().rev() {
        let node = graph.node(id);
        match (&node.op, node.inputs.as_slice()) {
            (Op::Gather { batch }, [table, index]) => note(&mut tables, *index, graph.shape(*table).size(*batch)),
            (Op::ScatterAdd { rows, .. }, [index, _]) => note(&mut tables, *index, *rows),
            (Op::CrossEntropy, [scores, target]) => {
                let classes = graph.shape(*scores);
                note(&mut tables, *target, classes.size(classes.rank() - 1));
            }
            _ => {}
        }
        let Some(rows) = tables.get(&id).copied() else { continue };
        let moved = match &node.op {
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } | Op::Pad { .. } => {
                0..1
            }
            Op::Gather { .. } => 0..1,
            Op::Concat { .. } => 0..node.inputs.len(),
            Op::Pointwise(ScalarOp::Select) => 1..3,
            _ => 0..0,
        };
        node.inputs[moved].iter().for_each(|input| note(&mut tables, *input, rows));
    }
    tables
}

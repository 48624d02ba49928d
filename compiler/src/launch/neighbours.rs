//! Concatenations of state tensors that cost nothing, because these tensors lie one after another in memory.
//!
//! Where a state tensor lies is the plan's choice, and its name does not depend on it. So a concatenation of whole state
//! tensors along their outermost dimension need not be written: it is what lies there, once the plan puts them there.
//!
//! Invariants: all programs of a compile agree, since they share one state. A tensor has one place, so of two
//! concatenations that want it beside different neighbours the longer one has its way, then the one that stands first; the
//! other is written like any value. A tensor is followed by another only if it ends where the target lets one begin.

use alip_plan::Target;
use indexmap::IndexSet;

use crate::hash::{HashMap, HashSet};
use crate::ir::{Graph, NodeId};
use crate::ops::Op;

/// State tensors that lie one after another, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    runs: Vec<Vec<Box<str>>>,
    /// Of each tensor of a run: the run, and its place in it.
    places: HashMap<Box<str>, (usize, usize)>,
}

impl Neighbours {
    /// What the programs of a compile read as one.
    pub fn find<'g>(graphs: impl Iterator<Item = &'g Graph>, target: &Target) -> Neighbours {
        let mut wanted: IndexSet<Vec<Box<str>>> = IndexSet::new();
        for graph in graphs {
            for id in graph.ids() {
                if let Some(states) = joined(graph, id)
                    && fits(graph, &states, target)
                {
                    wanted.insert(states.iter().filter_map(|state| path(graph, *state)).map(Into::into).collect());
                }
            }
        }
        let mut wanted = Vec::from_iter(wanted);
        wanted.sort_by_key(|paths| std::cmp::Reverse(paths.len()));
        let mut found = Neighbours::default();
        for paths in wanted {
            let distinct = paths.iter().collect::<HashSet<_>>().len() == paths.len();
            if distinct && paths.iter().all(|path| !found.places.contains_key(path)) {
                let run = found.runs.len();
                found.places.extend(paths.iter().enumerate().map(|(at, path)| (path.clone(), (run, at))));
                found.runs.push(paths);
            }
        }
        found
    }

    /// The state tensors that a node is, if it is a concatenation of neighbours.
    pub(crate) fn of(&self, graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
        if self.runs.is_empty() {
            return None;
        }
        let states = joined(graph, id)?;
        let mut places = states.iter().map(|state| self.places.get(path(graph, *state)?));
        let (run, first) = *places.next()??;
        let mut next = first + 1..;
        places.all(|place| place.copied() == next.next().map(|at| (run, at))).then_some(states)
    }

    /// The neighbours of a state tensor and itself, in order; none if it may lie anywhere.
    pub(crate) fn around(&self, path: &str) -> &[Box<str>] {
        self.places.get(path).map_or(&[], |(run, _)| &self.runs[*run])
    }
}

/// The path of a state tensor.
pub(crate) fn path(graph: &Graph, id: NodeId) -> Option<&str> {
    match &graph.node(id).op {
        Op::State { path, .. } => Some(path),
        _ => None,
    }
}

/// The state tensors of a concatenation along the outermost dimension.
pub(crate) fn joined(graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
    let node = graph.node(id);
    let Op::Concat { axis } = node.op else { return None };
    let outermost = (0..axis).all(|axis| node.ty.shape.size(axis) == 1);
    (outermost && node.inputs.iter().all(|input| path(graph, *input).is_some())).then(|| node.inputs.to_vec())
}

/// Can tensors lie one after another, in one segment and one operand?
fn fits(graph: &Graph, states: &[NodeId], target: &Target) -> bool {
    adjoin(graph, states, target.alignment.max(4), target.max_binding_bytes.min(target.max_segment_bytes))
}

/// Can tensors that begin at multiples of `alignment` lie one after another, in no more than `most` bytes?
pub(crate) fn adjoin(graph: &Graph, states: &[NodeId], alignment: u64, most: u64) -> bool {
    let total: u64 = states.iter().map(|id| graph.bytes(*id)).sum();
    total <= most && states.iter().rev().skip(1).all(|id| graph.bytes(*id).is_multiple_of(alignment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, OriginId, TensorType};

    /// Which of the concatenations are views of what lies there; each is an axis and the numbers of its tensors, of shapes
    /// [16, 16] but for the last, [3, 16].
    fn check(concats: &[(usize, &[usize])], free: &[bool]) {
        let mut graph = Graph::new("neighbours");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let shapes = [[16, 16], [16, 16], [16, 16], [16, 16], [3, 16]];
        let states = shapes.iter().enumerate().map(|(at, shape)| b.state(&format!("s{at}"), TensorType::f32(*shape)));
        let states = states.collect::<Result<Vec<_>, _>>().expect("well typed");
        let concat = |(axis, of): &(usize, &[usize])| {
            b.concat(&of.iter().map(|at| states[*at]).collect::<Vec<_>>(), *axis).expect("well typed")
        };
        let ids: Vec<NodeId> = concats.iter().map(concat).collect();
        let target = Target { alignment: 256, max_binding_bytes: 3 * 1024, ..Target::cpu() };
        let found = Neighbours::find(std::iter::once(&graph), &target);
        let all: Vec<bool> = ids.iter().map(|id| found.of(&graph, *id).is_some()).collect();
        assert_eq!(all, free, "{concats:?}");
    }

    #[test]
    fn a_tensor_has_one_place() {
        check(&[(0, &[0, 1, 2])], &[true]);
        check(&[(0, &[0, 1]), (0, &[2, 3])], &[true, true]);
        check(&[(0, &[0, 1]), (0, &[1, 0])], &[true, false]);
        // The longer one has its way, and what is part of it.
        check(&[(0, &[1, 0]), (0, &[1, 2]), (0, &[0, 1, 2])], &[false, true, true]);
        check(&[(0, &[0, 0])], &[false]);
    }

    #[test]
    fn only_what_lies_there_is_free() {
        check(&[(1, &[0, 1])], &[false]); // side by side
        check(&[(0, &[0, 4])], &[true]); // nothing follows the last
        check(&[(0, &[4, 0])], &[false]); // 192 bytes: the next begins at 256
        check(&[(0, &[0, 1, 2, 3])], &[false]); // more than an operand covers
    }
}

//! Makes a failing case small: fewer results, fewer nodes, smaller sizes, as long as it keeps failing.
//!
//! Every change is tried and kept only if the case still fails, so none has to be right: one that no op accepts, or that
//! makes the failure go away, is dropped.

use alip_compiler::ir::{Graph, NodeId, Value, interpret};
use alip_compiler::ops::Op;

use super::Case;
use super::rebuild::{Other, rebuilt};

/// How many changes are tried: graphs have about a hundred nodes, and each may go in a few ways.
const TRIES: usize = 3000;

/// The smallest case found that still fails, which may be the one given.
pub fn shrunk(case: &Case, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut shrinker = Shrinker { case: case.clone(), left: TRIES, fails: &mut fails };
    loop {
        let before = shrinker.case.clone();
        shrinker.drop_results();
        shrinker.cut_nodes();
        shrinker.shrink_sizes();
        if shrinker.case == before || shrinker.left == 0 {
            return shrinker.case;
        }
    }
}

struct Shrinker<'a> {
    case: Case,
    left: usize,
    fails: &'a mut dyn FnMut(&Case) -> bool,
}

impl Shrinker<'_> {
    /// Takes the candidate if it fails as well.
    fn keep(&mut self, candidate: Option<Case>) -> bool {
        let Some(candidate) = candidate.filter(|candidate| self.left > 0 && *candidate != self.case) else {
            return false;
        };
        self.left -= 1;
        let fails = (self.fails)(&candidate);
        if fails {
            self.case = candidate;
        }
        fails
    }

    /// Drops outputs, updates and wishes: large parts of them first, then one by one.
    fn drop_results(&mut self) {
        let mut part = results(&self.case.graph).len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < results(&self.case.graph).len() {
                let dropped = results(&self.case.graph).into_iter().skip(at).take(part).collect::<Vec<_>>();
                let mut graph = self.case.graph.clone();
                for (kind, name) in &dropped {
                    match kind {
                        0 => graph.outputs.shift_remove(name),
                        1 => graph.updates.shift_remove(name),
                        _ => graph.values.shift_remove(name),
                    };
                }
                let candidate = Case { graph, ..self.case.clone() };
                if !self.keep(rebuilt(&candidate, |_, _| None, |_| None)) {
                    at += part;
                }
            }
            part /= 2;
        }
    }

    /// Replaces nodes, the last first: by one of their inputs, or by a new input with the value that they had.
    fn cut_nodes(&mut self) {
        let mut at = self.case.graph.nodes().len();
        while at > 0 {
            at = (at - 1).min(self.case.graph.nodes().len().saturating_sub(1));
            let (graph, id) = (self.case.graph.clone(), NodeId(at as u32));
            let node = graph.node(id).clone();
            // Those of another type do where its readers take them, or when there are none but an output.
            let (alike, others): (Vec<NodeId>, Vec<NodeId>) =
                node.inputs.iter().partition(|input| graph.ty(**input) == &node.ty);
            let bypassed = alike.into_iter().chain(others).any(|input| {
                let candidate = rebuilt(&self.case, |n, _| (n == id).then_some(Other::Node(input)), |_| None);
                self.keep(candidate)
            });
            if bypassed || matches!(node.op, Op::Input { .. } | Op::State { .. } | Op::Const { .. }) {
                continue;
            }
            let candidate = value_of(&self.case, id).and_then(|value| {
                let input = Other::Input(format!("c{at}"), value);
                rebuilt(&self.case, move |n, _| (n == id).then(|| input.clone()), |_| None)
            });
            self.keep(candidate);
        }
    }

    /// Makes equal sizes smaller together, wherever they stand.
    fn shrink_sizes(&mut self) {
        let mut sizes: Vec<u64> = self.case.graph.nodes().iter().flat_map(|node| node.ty.shape.sizes()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes.into_iter().rev().filter(|size| *size > 1) {
            for smaller in [1, 2, size / 2, size - 1].into_iter().filter(|smaller| *smaller < size && *smaller > 0) {
                if self.keep(rebuilt(&self.case, |_, _| None, |n| (n == size).then_some(smaller))) {
                    break;
                }
            }
        }
    }
}

/// Outputs, updates and wishes, as kind and name.
fn results(graph: &Graph) -> Vec<(usize, String)> {
    let maps = [&graph.outputs, &graph.updates, &graph.values];
    maps.into_iter().enumerate().flat_map(|(kind, map)| map.keys().map(move |name| (kind, name.clone()))).collect()
}

/// The value of a node, as a device would receive it.
fn value_of(case: &Case, id: NodeId) -> Option<Value> {
    let mut graph = case.graph.clone();
    graph.outputs.clear();
    graph.outputs.insert("value".into(), id);
    let mut value = interpret(&graph, &case.inputs, &case.state).ok()?.outputs.remove("value")?;
    if value.ty.dtype.is_float() {
        value.data.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::super::{differentiated, random_case};
    use super::*;

    /// A case that "fails" as long as it holds a product shrinks to little more than that product:
    /// its operands, and reductions where the loss must stay a scalar.
    #[test]
    fn a_case_shrinks_to_what_makes_it_fail() {
        let holds = |case: &Case| case.graph.nodes().iter().any(|node| matches!(node.op, Op::Dot(_)));
        let mut shrunk_some = 0;
        for case in (0..20).map(|seed| random_case(seed, 18)).filter(holds) {
            let small = shrunk(&case, |case| holds(case) && differentiated(&case.graph).is_ok());
            let nodes = small.graph.nodes();
            assert!(holds(&small) && nodes.len() <= 5, "{}", alip_compiler::ir::print(&small.graph));
            assert!(
                nodes.iter().all(|node| node.ty.shape.elements() <= 1),
                "{}",
                alip_compiler::ir::print(&small.graph)
            );
            shrunk_some += 1;
        }
        assert!(shrunk_some > 3);
    }
}

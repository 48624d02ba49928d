//! From a region to its e-graph, from chosen terms to what stands in place of the region, and from there to a new graph.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use egg::Id;
use smallvec::SmallVec;

use super::Optimizer;
use super::decide::Kept;
use super::extract::{Choice, Extraction};
use super::language::{EGraph, Interner, Kind, Term};
use super::region::{Cut, Operand, Region, cut, leaf_op};
use super::rules::RuleId;
use super::saturate::{Saturated, canonical, empty};
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::{HashMap, HashSet};
use crate::ir::{Graph, Names, NodeId, OriginId};
use crate::launch::Neighbours;
use crate::ops::{Op, OpError};

/// A node of a solution.
pub(crate) struct Planned {
    op: Op,
    operands: SmallVec<[Operand; 3]>,
    /// The node of the region whose origin it takes.
    origin: usize,
    /// Whether it is a value that the region computes twice, the second time.
    again: bool,
}

/// What a region becomes.
#[derive(Default)]
pub(crate) struct Solution {
    /// Operands first.
    pub(crate) nodes: Vec<Planned>,
    /// What stands for each output of the region.
    outputs: Vec<Operand>,
    /// Leaves that are read.
    pub(crate) leaves: Vec<usize>,
    /// Rules whose results were taken, with the node of the region that they replaced.
    pub(crate) fired: Vec<(RuleId, usize)>,
}

/// What is known of a region: as it was written, and what it can become.
#[derive(Default)]
pub(crate) struct Forms {
    pub(crate) unchanged: Solution,
    /// If anything is cheaper by itself.
    pub(crate) changed: Option<Solution>,
    /// How often rules merged two values.
    pub(crate) applied: BTreeMap<RuleId, u32>,
    /// Rules that were found wrong.
    pub(crate) faults: Vec<(&'static str, String)>,
    /// Which report is about it; none if it was not looked into.
    pub(crate) report: Option<usize>,
}

impl Forms {
    /// Whether the region takes its new form.
    pub(crate) fn keeps(&self, kept: &Kept) -> bool {
        self.changed.is_some() && kept.allows()
    }

    /// The form that the region takes.
    pub(crate) fn taken(&self, kept: &Kept) -> &Solution {
        self.changed.as_ref().filter(|_| kept.allows()).unwrap_or(&self.unchanged)
    }
}

impl Solution {
    /// The region as it is.
    pub(crate) fn unchanged(graph: &Graph, region: &Region) -> Solution {
        let node = |at: usize| Planned {
            op: graph.node(region.nodes[at]).op.clone(),
            operands: region.operands(graph, at),
            origin: at,
            again: false,
        };
        Solution {
            nodes: (0..region.nodes.len()).map(node).collect(),
            outputs: region.outputs.iter().map(|at| Operand::Node(*at)).collect(),
            leaves: (0..region.leaves.len()).collect(),
            ..Solution::default()
        }
    }

    /// Reductions that the region computed twice, one of them to be read elsewhere, stay two (see `tidy`).
    fn separate(&mut self, region: &Region, repeated: &[bool]) {
        let mut used = vec![false; self.nodes.len()];
        for operand in self.nodes.iter().flat_map(|planned| &planned.operands) {
            if let Operand::Node(at) = operand {
                used[*at] = true;
            }
        }
        for (output, from) in self.outputs.iter_mut().zip(&region.outputs) {
            let Operand::Node(at) = *output else { continue };
            let planned = &self.nodes[at];
            if repeated[*from] && used[at] && matches!(planned.op, Op::Reduce { .. }) {
                let again =
                    Planned { op: planned.op.clone(), operands: planned.operands.clone(), origin: *from, again: true };
                *output = Operand::Node(self.nodes.len());
                self.nodes.push(again);
            }
            used[at] = true;
        }
    }

    /// The region as a program of its own, of which the values below outputs that are views are the results.
    pub(crate) fn graph(&self, from: &Graph, region: &Region) -> Option<Graph> {
        let mut graph = Graph::new(&from.name);
        let mut leaves: Vec<Option<NodeId>> = vec![None; region.leaves.len()];
        let mut placed: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        for planned in &self.nodes {
            let mut inputs: SmallVec<[NodeId; 3]> = SmallVec::new();
            for operand in &planned.operands {
                inputs.push(match operand {
                    Operand::Node(at) => placed[*at],
                    Operand::Leaf(leaf) => match leaves[*leaf] {
                        Some(id) => id,
                        None => {
                            let ty = from.ty(region.leaves[*leaf]).clone();
                            let op = Op::Input { name: leaf.to_string().into(), ty };
                            *leaves[*leaf].insert(graph.add(op, &[], OriginId::default()).ok()?)
                        }
                    },
                });
            }
            placed.push(graph.add(planned.op.clone(), &inputs, OriginId::default()).ok()?);
        }
        let inputs = leaves.iter().flatten().enumerate();
        graph.inputs = inputs.map(|(at, id)| (at.to_string(), *id)).collect();
        for operand in &self.outputs {
            let Operand::Node(at) = operand else { continue };
            let mut id = placed[*at];
            while Kind::of(&graph.node(id).op).is_view() {
                id = graph.node(id).inputs[0];
            }
            if !matches!(graph.node(id).op, Op::Input { .. }) {
                graph.outputs.insert(id.0.to_string(), id);
            }
        }
        Some(graph)
    }
}

/// A region with its forms.
pub(crate) struct Solved {
    pub(crate) region: Region,
    pub(crate) forms: Arc<Forms>,
}

/// The regions of a program, and those of their forms that were asked for so far.
pub(crate) struct Cuts<'g> {
    graph: &'g Graph,
    cut: Cut,
    /// By region and what is read of it.
    known: HashMap<(usize, Vec<NodeId>), Arc<Solved>>,
}

impl<'g> Cuts<'g> {
    pub(crate) fn new(graph: &'g Graph, neighbours: &Neighbours) -> Cuts<'g> {
        Cuts { graph, cut: cut(graph, neighbours), known: HashMap::default() }
    }

    /// Numbers of the regions that have new forms.
    pub(crate) fn changed(&mut self, optimizer: &mut Optimizer) -> BTreeSet<usize> {
        self.solve(optimizer, &Kept::All);
        self.known.iter().filter(|(_, part)| part.forms.changed.is_some()).map(|((number, _), _)| *number).collect()
    }

    /// The regions of which anything is read, first to last.
    pub(crate) fn solve(&mut self, optimizer: &mut Optimizer, kept: &Kept) -> Vec<Arc<Solved>> {
        let mut needed = vec![false; self.graph.nodes().len()];
        for id in self.graph.outputs.values().chain(self.graph.updates.values()) {
            needed[id.index()] = true;
        }
        let mut solved = Vec::new();
        // From last to first: what a region no longer reads, an earlier one need not make.
        for (number, core) in self.cut.regions.iter().enumerate().rev() {
            let outputs: Vec<NodeId> = core.iter().copied().filter(|id| needed[id.index()]).collect();
            if outputs.is_empty() {
                continue;
            }
            let part = self.known.entry((number, outputs)).or_insert_with_key(|(_, outputs)| {
                let region = Region::new(self.graph, core, &self.cut.trivial, outputs, &mut optimizer.ops);
                let forms = match kept.looks_at(number) {
                    true => optimizer.solve(self.graph, &region),
                    false => {
                        let unchanged = Solution::unchanged(self.graph, &region);
                        Arc::new(Forms { unchanged, ..Forms::default() })
                    }
                };
                Arc::new(Solved { region, forms })
            });
            for leaf in &part.forms.taken(kept).leaves {
                needed[part.region.leaves[*leaf].index()] = true;
            }
            solved.push(part.clone());
        }
        solved.reverse();
        solved
    }
}

/// The e-graph of a region, and where its nodes went.
pub(crate) struct Written {
    pub(crate) egraph: EGraph,
    leaves: Vec<Id>,
    /// The class of every node.
    classes: Vec<Id>,
    terms: Vec<Term>,
}

#[cfg(test)]
impl Written {
    /// The class of the last node.
    pub(crate) fn output_classes(&self) -> Vec<Id> {
        self.classes.last().copied().into_iter().collect()
    }
}

impl Written {
    pub(crate) fn new(graph: &Graph, region: &Region, ops: Interner) -> Written {
        let mut egraph = empty(ops);
        let mut leaves = Vec::with_capacity(region.leaves.len());
        for (at, id) in region.leaves.iter().enumerate() {
            let op = leaf_op(&mut egraph.analysis.ops, at, graph.ty(*id));
            leaves.push(egraph.add(Term { op, kind: Kind::Input, children: SmallVec::new() }));
        }
        let mut classes: Vec<Id> = Vec::with_capacity(region.nodes.len());
        let mut terms = Vec::with_capacity(region.nodes.len());
        for (at, id) in region.nodes.iter().enumerate() {
            let (op, kind) = egraph.analysis.ops.intern(&graph.node(*id).op);
            let class = |operand: &Operand| match operand {
                Operand::Leaf(leaf) => leaves[*leaf],
                Operand::Node(at) => classes[*at],
            };
            let children = region.operands(graph, at).iter().map(class).collect();
            let term = Term { op, kind, children };
            classes.push(egraph.add(term.clone()));
            terms.push(term);
        }
        egraph.rebuild();
        Written { egraph, leaves, classes, terms }
    }

    pub(crate) fn outputs(&self, region: &Region) -> Vec<Id> {
        region.outputs.iter().map(|at| self.classes[*at]).collect()
    }

    /// The region as it was written, as far as its classes are still apart: every class takes the first of its nodes, so
    /// that operands come from earlier ones and there is no circle. Classes without a node take the cheapest tree.
    pub(crate) fn choice(&self, extraction: &Extraction<'_>) -> Choice {
        let mut choice = extraction.cheapest_trees();
        let leaves = self.leaves.iter().map(|id| self.egraph.id_to_node(*id));
        let mut done = vec![false; choice.len()];
        for (id, term) in self.leaves.iter().zip(leaves).chain(self.classes.iter().zip(&self.terms)) {
            let term = canonical(&self.egraph, term);
            let Some(class) = extraction.class_of(self.egraph.find(*id)) else { continue };
            let candidates = &extraction.classes[class as usize].candidates;
            let number = candidates.iter().position(|candidate| candidate.term == term);
            if let Some(number) = number
                && !std::mem::replace(&mut done[class as usize], true)
            {
                choice[class as usize] = number as u32;
            }
        }
        choice
    }

    /// Chosen terms, operands first, as a solution.
    pub(crate) fn solution(&self, region: &Region, chosen: &[(Id, Term)], saturated: &Saturated) -> Solution {
        let first = self.first_nodes();
        let mut solution = Solution::default();
        let mut at: HashMap<Id, Operand> = HashMap::default();
        for (class, term) in chosen {
            let operand = match self.egraph.analysis.ops.op(term.op) {
                Op::Input { name, .. } => {
                    let leaf = name.parse().unwrap_or_default();
                    solution.leaves.push(leaf);
                    Operand::Leaf(leaf)
                }
                op => {
                    let operands = term.children.iter().map(|child| at[&self.egraph.find(*child)]).collect();
                    let origin = first.get(class).copied().unwrap_or(usize::MAX);
                    solution.nodes.push(Planned { op: op.clone(), operands, origin, again: false });
                    Operand::Node(solution.nodes.len() - 1)
                }
            };
            at.insert(*class, operand);
        }
        solution.leaves.sort_unstable();
        // What a rule made in between takes the origin of what reads it.
        for reader in (0..solution.nodes.len()).rev() {
            let origin = if solution.nodes[reader].origin == usize::MAX { 0 } else { solution.nodes[reader].origin };
            solution.nodes[reader].origin = origin;
            for operand in solution.nodes[reader].operands.clone() {
                if let Operand::Node(below) = operand
                    && solution.nodes[below].origin == usize::MAX
                {
                    solution.nodes[below].origin = origin;
                }
            }
        }
        solution.outputs = self.outputs(region).iter().map(|id| at[&self.egraph.find(*id)]).collect();
        solution.separate(region, &self.repeated());
        solution.fired = self.fired(chosen, &at, &solution, saturated);
        solution
    }

    /// Positions of nodes in whose class there are others.
    fn repeated(&self) -> Vec<bool> {
        let mut counts: HashMap<Id, u32> = HashMap::default();
        self.classes.iter().for_each(|id| *counts.entry(self.egraph.find(*id)).or_default() += 1);
        self.classes.iter().map(|id| counts[&self.egraph.find(*id)] > 1).collect()
    }

    /// The first node of the region in every class.
    fn first_nodes(&self) -> HashMap<Id, usize> {
        let mut first = HashMap::default();
        for (at, id) in self.classes.iter().enumerate() {
            first.entry(self.egraph.find(*id)).or_insert(at);
        }
        first
    }

    /// Which rules the chosen terms come from: those that made them, or those that found a node of the region to be another.
    fn fired(
        &self,
        chosen: &[(Id, Term)],
        at: &HashMap<Id, Operand>,
        solution: &Solution,
        saturated: &Saturated,
    ) -> Vec<(RuleId, usize)> {
        let mut made: HashMap<Term, RuleId> = HashMap::default();
        for (term, rule) in &saturated.made {
            made.entry(canonical(&self.egraph, term)).or_insert(*rule);
        }
        let mut merged: HashMap<Id, RuleId> = HashMap::default();
        for (id, rule) in &saturated.merged {
            merged.entry(self.egraph.find(*id)).or_insert(*rule);
        }
        let mut written: BTreeMap<Id, Vec<Term>> = BTreeMap::new();
        for (id, term) in self.classes.iter().zip(&self.terms) {
            written.entry(self.egraph.find(*id)).or_default().push(canonical(&self.egraph, term));
        }
        let leaves = self.leaves.iter().map(|id| self.egraph.find(*id)).collect::<HashSet<_>>();
        let mut fired = Vec::new();
        for (class, term) in chosen {
            let terms = written.get(class).map_or(&[][..], Vec::as_slice);
            let replaced = terms.iter().any(|other| other != term);
            let rule = match terms.contains(term) || leaves.contains(class) {
                true => merged.get(class).filter(|_| replaced),
                false => made.get(term),
            };
            let place = match at[class] {
                Operand::Node(node) => solution.nodes[node].origin,
                Operand::Leaf(_) => self.classes.iter().position(|id| self.egraph.find(*id) == *class).unwrap_or(0),
            };
            fired.extend(rule.map(|rule| (*rule, place)));
        }
        fired
    }
}

/// An op with its operands, the old node in whose place it stands, and whether it is that one's second copy.
type Placed = (Op, SmallVec<[NodeId; 3]>, NodeId, bool);

/// A new graph made of solutions.
///
/// Nodes come in the order of those that they stand for, since schedules follow it: a graph of which nothing was changed is
/// as it was, node by node.
pub(crate) struct Rebuild<'g> {
    old: &'g Graph,
    new: Graph,
    /// The old node in whose place a new one stands.
    rank: Vec<NodeId>,
    map: Vec<Option<NodeId>>,
    /// Copies of one node that several regions hold. Equal nodes that the program has twice stay two: whether to merge them
    /// is for the schedule, which may want each with its own readers.
    known: HashMap<Placed, NodeId>,
}

impl<'g> Rebuild<'g> {
    pub(crate) fn new(old: &'g Graph) -> Rebuild<'g> {
        let map = vec![None; old.nodes().len()];
        Rebuild { old, new: old.successor(), rank: Vec::new(), map, known: HashMap::default() }
    }

    fn fault(&self, id: NodeId, error: &OpError) -> Diagnostics {
        let (op, path) = (self.old.node(id).op.name(), &self.old.origin(id).path);
        Diagnostic::error(format!("internal: optimising `{op}` at `{path}` of program `{}`", self.old.name))
            .note(error.message.clone())
            .into()
    }

    fn add(&mut self, op: &Op, inputs: SmallVec<[NodeId; 3]>, old: NodeId, again: bool) -> Result<NodeId, OpError> {
        let key = (op.clone(), inputs, old, again);
        if let Some(id) = self.known.get(&key) {
            return Ok(*id);
        }
        let id = self.new.add(key.0.clone(), &key.1, self.old.node(old).origin)?;
        self.rank.push(old);
        self.known.insert(key, id);
        Ok(id)
    }

    /// The new node of an old one that no region makes: an input, a state, what is computed from constants.
    fn plain(&mut self, id: NodeId) -> Result<NodeId, Diagnostics> {
        if let Some(new) = self.map[id.index()] {
            return Ok(new);
        }
        let node = self.old.node(id);
        let inputs: Result<SmallVec<[NodeId; 3]>, Diagnostics> =
            node.inputs.iter().map(|input| self.plain(*input)).collect();
        let new = self.add(&node.op, inputs?, id, false).map_err(|error| self.fault(id, &error))?;
        self.map[id.index()] = Some(new);
        Ok(new)
    }

    /// The graph with all regions in the forms that they take.
    pub(crate) fn stamp_all(mut self, solved: &[Arc<Solved>], kept: &Kept) -> Result<Graph, Diagnostics> {
        for Solved { region, forms } in solved.iter().map(Arc::as_ref) {
            self.stamp(region, forms.taken(kept))?;
        }
        self.finish()
    }

    /// Puts a solution in place of a region; earlier regions are there.
    fn stamp(&mut self, region: &Region, solution: &Solution) -> Result<(), Diagnostics> {
        let mut placed: Vec<NodeId> = Vec::with_capacity(solution.nodes.len());
        for planned in &solution.nodes {
            let old = region.nodes[planned.origin];
            let mut inputs = SmallVec::new();
            for operand in &planned.operands {
                inputs.push(match operand {
                    Operand::Leaf(leaf) => self.plain(region.leaves[*leaf])?,
                    Operand::Node(at) => placed[*at],
                });
            }
            placed.push(self.add(&planned.op, inputs, old, planned.again).map_err(|error| self.fault(old, &error))?);
        }
        for (at, operand) in region.outputs.iter().zip(&solution.outputs) {
            let new = match operand {
                Operand::Leaf(leaf) => self.plain(region.leaves[*leaf])?,
                Operand::Node(at) => placed[*at],
            };
            self.map[region.nodes[*at].index()] = Some(new);
        }
        Ok(())
    }

    /// The new graph, with its names; named values that nothing computes any more have none.
    fn finish(mut self) -> Result<Graph, Diagnostics> {
        let old = self.old;
        let mut renamed = |names: &Names| -> Result<Names, Diagnostics> {
            names.iter().map(|(name, id)| Ok((name.clone(), self.plain(*id)?))).collect()
        };
        let (inputs, outputs, updates) = (renamed(&old.inputs)?, renamed(&old.outputs)?, renamed(&old.updates)?);
        let kept = |(name, id): (&String, &NodeId)| Some((name.clone(), self.map[id.index()]?));
        self.new.values = old.values.iter().filter_map(kept).collect();
        (self.new.inputs, self.new.outputs, self.new.updates) = (inputs, outputs, updates);
        Ok(self.in_old_order())
    }

    /// Operands first, else by rank.
    fn in_old_order(self) -> Graph {
        let Rebuild { new, rank, .. } = self;
        let count = new.nodes().len();
        let mut waits: Vec<usize> = new.nodes().iter().map(|node| node.inputs.len()).collect();
        let readers = new.readers();
        let mut ordered = new.successor();
        let mut map: Vec<Option<NodeId>> = vec![None; count];
        let ready = new.ids().filter(|id| waits[id.index()] == 0);
        let mut ready: BinaryHeap<_> = ready.map(|id| Reverse((rank[id.index()], id))).collect();
        while let Some(Reverse((_, id))) = ready.pop() {
            let node = new.node(id);
            let inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().filter_map(|input| map[input.index()]).collect();
            map[id.index()] = Some(ordered.push(node, inputs));
            for reader in &readers[id.index()] {
                waits[reader.index()] -= 1;
                if waits[reader.index()] == 0 {
                    ready.push(Reverse((rank[reader.index()], *reader)));
                }
            }
        }
        ordered.take_names(&new, |id| map[id.index()]);
        ordered
    }
}

//! Which terms to take of a saturated e-graph.
//!
//! One term per class, so that what is shared is computed once, without cycles. The search starts from two choices, the
//! region as it was written and the cheapest tree, and improves each as long as the cost of the whole falls:
//! - a class takes another of its terms;
//! - all classes that can are made from one class that is not used so far (a wider product, of which they are slices);
//! - all classes that can are made without one class that is used (a scaled copy that nothing needs once the scale moved).
//!
//! Deterministic, and bounded by counts. Where nothing is cheaper than the region, the region stays.

use std::collections::BTreeMap;

use egg::Id;
use smallvec::SmallVec;

use super::cost::{Cost, Evaluator, Machine, Role, Step};
use super::language::{EGraph, Term};
use crate::ir::TensorType;
use crate::ops::Op;

/// Most evaluations per region.
const MOST_EVALUATIONS: u32 = 3000;
/// A gain below this part of the whole is rounding of the sum.
const LEAST_GAIN: f64 = 1e-9;

/// A term that can be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) term: Term,
    role: Role,
    random_access: bool,
    children: SmallVec<[u32; 3]>,
}

/// A class of which one term can be chosen.
pub(crate) struct Class {
    pub(crate) id: Id,
    pub(crate) candidates: Vec<Candidate>,
    elements: f64,
    bytes: f64,
    output: bool,
}

/// The part of an e-graph that outputs are made of, with a choice: an index into the candidates of every class.
pub(crate) struct Extraction<'m> {
    machine: &'m Machine,
    pub(crate) classes: Vec<Class>,
    outputs: Vec<u32>,
    index: BTreeMap<Id, u32>,
    evaluator: Evaluator,
    evaluations: u32,
    /// Position of a class in the order of the evaluation that is being made.
    position: Vec<u32>,
}

/// One candidate per class.
pub(crate) type Choice = Vec<u32>;

const UNSEEN: u32 = u32::MAX;
const OPEN: u32 = u32::MAX - 1;

impl<'m> Extraction<'m> {
    pub(crate) fn new(egraph: &EGraph, outputs: &[Id], machine: &'m Machine) -> Extraction<'m> {
        let mut extraction = Extraction {
            machine,
            classes: Vec::new(),
            outputs: Vec::new(),
            index: BTreeMap::new(),
            evaluator: Evaluator::default(),
            evaluations: 0,
            position: Vec::new(),
        };
        for output in outputs {
            let class = extraction.class(egraph, egraph.find(*output));
            extraction.classes[class as usize].output = true;
            extraction.outputs.push(class);
        }
        let mut next = 0;
        while next < extraction.classes.len() {
            let id = extraction.classes[next].id;
            for term in &egraph[id].nodes {
                let candidate = extraction.candidate(egraph, id, term);
                extraction.classes[next].candidates.push(candidate);
            }
            next += 1;
        }
        extraction
    }

    fn class(&mut self, egraph: &EGraph, id: Id) -> u32 {
        if let Some(class) = self.index.get(&id) {
            return *class;
        }
        let ty = &egraph[id].data.ty;
        let elements = ty.shape.elements() as f64;
        let bytes = elements * ty.dtype.bytes() as f64;
        let class = self.classes.len() as u32;
        self.classes.push(Class { id, candidates: Vec::new(), elements, bytes, output: false });
        self.index.insert(id, class);
        class
    }

    fn candidate(&mut self, egraph: &EGraph, id: Id, term: &Term) -> Candidate {
        let types: SmallVec<[&TensorType; 3]> = term.children.iter().map(|child| &egraph[*child].data.ty).collect();
        let op = egraph.analysis.ops.op(term.op);
        let fact = &egraph[id].data;
        // A constant is one however it is written; as a literal it has nothing below it.
        let literal = fact.splat.is_some() && types.len() < 2;
        let role = Role::of(op, &types, &fact.ty, literal, self.machine);
        let random_access = matches!(op, Op::Gather { .. } | Op::Random { .. });
        let children = term.children.iter().map(|child| self.class(egraph, egraph.find(*child))).collect();
        Candidate { term: term.clone(), role, random_access, children }
    }

    pub(crate) fn class_of(&self, id: Id) -> Option<u32> {
        self.index.get(&id).copied()
    }

    fn candidate_of(&self, choice: &Choice, class: u32) -> &Candidate {
        &self.classes[class as usize].candidates[choice[class as usize] as usize]
    }

    /// Classes that the outputs need under a choice, operands first; `None` if the choice goes round in circles.
    pub(crate) fn order(&mut self, choice: &Choice) -> Option<Vec<u32>> {
        self.position.clear();
        self.position.resize(self.classes.len(), UNSEEN);
        let mut order = Vec::new();
        let mut stack: Vec<(u32, u32)> = Vec::new();
        for output in self.outputs.clone() {
            if self.position[output as usize] == UNSEEN {
                self.position[output as usize] = OPEN;
                stack.push((output, 0));
            }
            while let Some((class, next)) = stack.pop() {
                let children = &self.classes[class as usize].candidates[choice[class as usize] as usize].children;
                let Some(child) = children.get(next as usize).copied() else {
                    self.position[class as usize] = order.len() as u32;
                    order.push(class);
                    continue;
                };
                stack.push((class, next + 1));
                match self.position[child as usize] {
                    UNSEEN => {
                        self.position[child as usize] = OPEN;
                        stack.push((child, 0));
                    }
                    OPEN => return None,
                    _ => {}
                }
            }
        }
        Some(order)
    }

    /// The cost of a choice; `None` if it is none.
    pub(crate) fn cost(&mut self, choice: &Choice) -> Option<Cost> {
        self.evaluations += 1;
        let order = self.order(choice)?;
        let step = |class: &u32| {
            let candidate = self.candidate_of(choice, *class);
            let Class { elements, bytes, output, .. } = &self.classes[*class as usize];
            Step {
                role: candidate.role,
                elements: *elements,
                bytes: *bytes,
                operands: candidate.children.iter().map(|child| self.position[*child as usize]).collect(),
                output: *output,
                random_access: candidate.random_access,
            }
        };
        let steps: Vec<Step> = order.iter().map(step).collect();
        Some(self.evaluator.cost(&steps, self.machine))
    }

    /// The cheapest tree of every class: shared terms count at each place, which makes it no more than a start.
    pub(crate) fn cheapest_trees(&self) -> Choice {
        let mut best: Vec<Option<(f64, u32)>> = vec![None; self.classes.len()];
        // Costs only fall, and a term costs more than its operands, so this ends, after about as many rounds as the
        // deepest chain of classes that were found late.
        let mut changed = true;
        while changed {
            changed = false;
            for at in (0..self.classes.len()).rev() {
                let class = &self.classes[at];
                for (number, candidate) in class.candidates.iter().enumerate() {
                    let below = candidate.children.iter().map(|child| best[*child as usize].map(|(cost, _)| cost));
                    let Some(below) = below.sum::<Option<f64>>() else { continue };
                    let cost = self.alone(class, candidate) + below;
                    if best[at].is_none_or(|(least, _)| cost < least) {
                        best[at] = Some((cost, number as u32));
                        changed = true;
                    }
                }
            }
        }
        best.into_iter().map(|found| found.map_or(0, |(_, number)| number)).collect()
    }

    /// About what a term costs by itself.
    fn alone(&self, class: &Class, candidate: &Candidate) -> f64 {
        let machine = self.machine;
        // Above zero, so that no term is as cheap as its operands.
        let least = machine.launch * 1e-3;
        let stored = machine.launch + class.bytes / machine.bandwidth;
        let read = |children: &[u32]| {
            children.iter().map(|child| self.classes[*child as usize].elements).fold(0.0, f64::max) / machine.point_rate
        };
        least
            + match candidate.role {
                Role::Leaf | Role::Trivial | Role::View => 0.0,
                Role::Point(weight) => f64::from(weight) * class.elements / machine.point_rate,
                Role::Reduce => machine.launch + read(&candidate.children),
                Role::Product(seconds) | Role::Whole(seconds) => seconds + stored,
                Role::Concat => stored,
                Role::Pad => 2.0 * stored,
            }
    }

    /// The terms of the cheapest choice found, operands first, each with its class, and its cost; `None` if it is not below
    /// a bound.
    pub(crate) fn cheaper(&mut self, start: Choice, bound: Cost) -> Option<(Vec<(Id, Term)>, Cost)> {
        let mut best: Option<(Choice, Cost)> = None;
        for start in [start, self.cheapest_trees()] {
            let Some(cost) = self.cost(&start) else { continue };
            let (choice, cost) = self.improve(start, cost);
            let least = best.as_ref().map_or(bound.seconds, |(_, cost)| cost.seconds);
            if cost.seconds < least * (1.0 - LEAST_GAIN) {
                best = Some((choice, cost));
            }
        }
        let (choice, cost) = best?;
        let order = self.order(&choice)?;
        let term = |class: &u32| (self.classes[*class as usize].id, self.candidate_of(&choice, *class).term.clone());
        Some((order.iter().map(term).collect(), cost))
    }

    fn improve(&mut self, mut choice: Choice, mut cost: Cost) -> (Choice, Cost) {
        self.evaluations = 0;
        loop {
            let before = cost.seconds;
            for moved in self.moves(&choice) {
                if self.evaluations > MOST_EVALUATIONS {
                    return (choice, cost);
                }
                let mut changed = choice.clone();
                moved.iter().for_each(|(class, number)| changed[*class as usize] = *number);
                if changed == choice {
                    continue;
                }
                if let Some(after) = self.cost(&changed)
                    && after.seconds < cost.seconds * (1.0 - LEAST_GAIN)
                {
                    (choice, cost) = (changed, after);
                }
            }
            if cost.seconds >= before * (1.0 - LEAST_GAIN) {
                return (choice, cost);
            }
        }
    }

    /// Changes worth trying from here.
    fn moves(&mut self, choice: &Choice) -> Vec<SmallVec<[(u32, u32); 4]>> {
        let Some(order) = self.order(choice) else { return Vec::new() };
        let mut moves: Vec<SmallVec<[(u32, u32); 4]>> = Vec::new();
        let mut with: BTreeMap<u32, SmallVec<[(u32, u32); 4]>> = BTreeMap::new();
        let mut without: BTreeMap<u32, SmallVec<[(u32, u32); 4]>> = BTreeMap::new();
        for class in order.iter().rev() {
            let candidates = &self.classes[*class as usize].candidates;
            let chosen = &candidates[choice[*class as usize] as usize];
            for (number, candidate) in candidates.iter().enumerate() {
                if number as u32 == choice[*class as usize] {
                    continue;
                }
                let change = (*class, number as u32);
                moves.push(SmallVec::from_slice(&[change]));
                let unused = |child: &&u32| self.position[**child as usize] == UNSEEN;
                for child in candidate.children.iter().filter(unused) {
                    let list = with.entry(*child).or_default();
                    if list.last().is_none_or(|(last, _)| last != class) {
                        list.push(change);
                    }
                }
                for child in chosen.children.iter().filter(|child| !candidate.children.contains(child)) {
                    let list = without.entry(*child).or_default();
                    if list.last().is_none_or(|(last, _)| last != class) {
                        list.push(change);
                    }
                }
            }
        }
        moves.extend(with.into_values().chain(without.into_values()).filter(|list| list.len() > 1));
        moves
    }
}

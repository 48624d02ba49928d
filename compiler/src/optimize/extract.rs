//! Which terms to take of a saturated e-graph.
//!
//! One term per class, so that what is shared is computed once, without cycles. The search starts from two choices, the
//! region as it was written and the cheapest tree, and improves each as long as the cost of the whole falls:
//! - a class takes another of its terms;
//! - all classes that can are made from one class that is not used so far (a value in another layout, of which they are views);
//! - all classes that can are made without one class that is used (a scaled copy that nothing needs once the scale moved).
//!
//! Deterministic, and bounded by counts. Where nothing is cheaper than the region, the region stays.

use std::collections::BTreeMap;
use std::rc::Rc;

use alip_plan::Target;
use egg::Id;
use smallvec::SmallVec;

use super::cost::{Evaluator, Role, Step};
use super::language::{EGraph, OpId, Term};
use super::site::sides;
use crate::hash::HashMap;
use crate::ir::TensorType;
use crate::launch::Cost;
use crate::ops::{Dot, Op};
use crate::schedule::{Layout, ViewOp, product};

/// Most evaluations per region.
const MOST_EVALUATIONS: u32 = 3000;
/// Most choices of a region that are looked at more closely.
const MOST_FOUND: usize = 8;
/// A gain below this part of the whole is none: the model knows less than that, and a change that gains nothing may keep
/// kernels of equal regions from being joined.
pub(crate) const LEAST_GAIN: f64 = 1e-4;

/// A term that can be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) term: Term,
    role: Role,
    random_access: bool,
    children: SmallVec<[u32; 3]>,
    /// Of a product.
    dot: Option<Rc<Product>>,
    /// Of a view of one operand.
    view: Option<Rc<View>>,
}

/// How a product reads its operands.
#[derive(Debug)]
struct Product {
    batch: usize,
    contracted: usize,
    /// The dimensions of each operand as batch, free, contracted.
    order: [Vec<usize>; 2],
    /// The operand in memory as it is can be read.
    plain: [bool; 2],
}

/// A view as the schedule sees it.
#[derive(Debug)]
struct View {
    /// Distinct for distinct views of distinct shapes.
    number: u32,
    step: ViewOp,
}

fn reads(dot: &Dot, types: &[&TensorType]) -> Product {
    let mut contract = dot.contract.clone();
    contract.sort_unstable();
    let dot = Dot { batch: dot.batch.clone(), contract };
    let both = sides(&dot, [types[0].shape.rank(), types[1].shape.rank()]);
    let order = both.map(|side| [side.batch, side.free, side.contract].concat());
    let plain = [0, 1].map(|side: usize| {
        let layout = Layout::through(&types[side].shape.sizes(), &[ViewOp::Transpose(order[side].clone())]);
        layout.is_some_and(|layout| product(&layout, dot.batch.len(), dot.contract.len()).is_some())
    });
    Product { batch: dot.batch.len(), contracted: dot.contract.len(), order, plain }
}

/// A class of which one term can be chosen.
pub(crate) struct Class {
    pub(crate) id: Id,
    pub(crate) candidates: Vec<Candidate>,
    sizes: Vec<u64>,
    elements: f64,
    bytes: f64,
    output: bool,
}

/// The part of an e-graph that outputs are made of, with a choice: an index into the candidates of every class.
pub(crate) struct Extraction<'m> {
    target: &'m Target,
    /// See [`LEAST_GAIN`].
    pub(crate) least_gain: f64,
    /// Whether time may be bought with launches. Programs may not get more of them, however much there is to gain.
    pub(crate) more_launches: bool,
    pub(crate) classes: Vec<Class>,
    outputs: Vec<u32>,
    index: BTreeMap<Id, u32>,
    evaluator: Evaluator,
    evaluations: u32,
    /// Whether a product can read an operand through these views: by product, side and the classes' terms below.
    readable: HashMap<(OpId, bool, SmallVec<[u32; 8]>), bool>,
    /// Position of a class in the order of the evaluation that is being made.
    position: Vec<u32>,
}

/// One candidate per class.
pub(crate) type Choice = Vec<u32>;

const UNSEEN: u32 = u32::MAX;
const OPEN: u32 = u32::MAX - 1;

impl<'m> Extraction<'m> {
    pub(crate) fn new(egraph: &EGraph, outputs: &[Id], target: &'m Target) -> Extraction<'m> {
        let mut extraction = Extraction {
            target,
            least_gain: LEAST_GAIN,
            more_launches: false,
            classes: Vec::new(),
            outputs: Vec::new(),
            index: BTreeMap::new(),
            evaluator: Evaluator::default(),
            evaluations: 0,
            readable: HashMap::default(),
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
        let sizes = ty.shape.sizes();
        self.classes.push(Class { id, candidates: Vec::new(), sizes, elements, bytes, output: false });
        self.index.insert(id, class);
        class
    }

    fn candidate(&mut self, egraph: &EGraph, id: Id, term: &Term) -> Candidate {
        let types: SmallVec<[&TensorType; 3]> = term.children.iter().map(|child| &egraph[*child].data.ty).collect();
        let op = egraph.analysis.ops.op(term.op);
        let fact = &egraph[id].data;
        // A constant is one however it is written; as a literal it has nothing below it.
        let literal = fact.splat.is_some() && types.len() < 2;
        let role = Role::of(op, &types, &fact.ty, literal, &self.target.rates);
        let random_access = matches!(op, Op::Gather { .. } | Op::Random { .. });
        let dot = if let Op::Dot(dot) = op { Some(Rc::new(reads(dot, &types))) } else { None };
        let view = match role {
            Role::View => ViewOp::of(op, types[0].shape.elements(), &fact.ty.shape.sizes())
                .map(|step| Rc::new(View { number: term.op, step })),
            _ => None,
        };
        let children = term.children.iter().map(|child| self.class(egraph, egraph.find(*child))).collect();
        Candidate { term: term.clone(), role, random_access, children, dot, view }
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
        let copied: Vec<u8> = order.iter().map(|class| self.copied(choice, *class)).collect();
        let step = |(class, copied): (&u32, u8)| {
            let candidate = self.candidate_of(choice, *class);
            let Class { elements, bytes, output, .. } = &self.classes[*class as usize];
            Step {
                role: candidate.role,
                elements: *elements,
                bytes: *bytes,
                operands: candidate.children.iter().map(|child| self.position[*child as usize]).collect(),
                output: *output,
                random_access: candidate.random_access,
                copied,
            }
        };
        let steps: Vec<Step> = order.iter().zip(copied).map(step).collect();
        Some(self.evaluator.cost(&steps, self.target))
    }

    /// Which operands of a product lie so that it has to have them copied, one bit each.
    fn copied(&mut self, choice: &Choice, class: u32) -> u8 {
        let candidate = self.candidate_of(choice, class);
        let Some(dot) = &candidate.dot else { return 0 };
        let (dot, op, children) = (dot.clone(), candidate.term.op, candidate.children.clone());
        let mut bits = 0;
        for (side, child) in children.iter().enumerate() {
            let mut key = SmallVec::new();
            let mut base = *child;
            while let Some(view) = &self.candidate_of(choice, base).view {
                key.push(view.number);
                base = self.candidate_of(choice, base).children[0];
            }
            if key.is_empty() && dot.plain[side] {
                continue;
            }
            key.push(base);
            let key = (op, side == 1, key);
            let readable = match self.readable.get(&key) {
                Some(readable) => *readable,
                None => {
                    let readable = self.can_read(choice, &dot, side, *child);
                    self.readable.insert(key, readable);
                    readable
                }
            };
            bits |= u8::from(!readable) << side;
        }
        bits
    }

    fn can_read(&self, choice: &Choice, dot: &Product, side: usize, operand: u32) -> bool {
        let mut chain = Vec::new();
        let mut base = operand;
        while let Some(view) = &self.candidate_of(choice, base).view {
            chain.push(view.step.clone());
            base = self.candidate_of(choice, base).children[0];
        }
        chain.reverse();
        chain.push(ViewOp::Transpose(dot.order[side].clone()));
        let layout = Layout::through(&self.classes[base as usize].sizes, &chain);
        layout.is_some_and(|layout| product(&layout, dot.batch, dot.contracted).is_some())
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
        let rates = &self.target.rates;
        // Above zero, so that no term is as cheap as its operands.
        let least = rates.launch * 1e-3;
        let stored = rates.launch + class.bytes / rates.bandwidth;
        let read = |children: &[u32]| {
            children.iter().map(|child| self.classes[*child as usize].elements).fold(0.0, f64::max) / rates.points
        };
        least
            + match candidate.role {
                Role::Leaf | Role::Trivial | Role::View => 0.0,
                Role::Point(weight) => f64::from(weight) * class.elements / rates.points,
                Role::Reduce => rates.launch + read(&candidate.children),
                Role::Product(seconds) | Role::Whole(seconds) => seconds + stored,
                Role::Concat => stored,
                Role::Pad => 2.0 * stored,
            }
    }

    /// Choices that cost less than a bound, the cheapest first, each as terms with their classes, operands first, and its
    /// cost; fewer steps from the start come after those with more.
    pub(crate) fn cheaper(&mut self, start: Choice, bound: Cost) -> Vec<(Vec<(Id, Term)>, Cost)> {
        let mut found: Vec<(Choice, Cost)> = Vec::new();
        for start in [start, self.cheapest_trees()] {
            let Some(cost) = self.cost(&start) else { continue };
            let path = self.improve(start, cost);
            // All of the way, half of it, a quarter, ...
            let mut at = path.len();
            while at > 0 && found.len() < MOST_FOUND {
                found.push(path[at - 1].clone());
                at /= 2;
            }
        }
        found.retain(|(_, cost)| cost.seconds < bound.seconds * (1.0 - self.least_gain));
        found.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
        found.dedup_by(|a, b| a.0 == b.0);
        let mut chosen = Vec::new();
        for (choice, cost) in found {
            let Some(order) = self.order(&choice) else { continue };
            let term =
                |class: &u32| (self.classes[*class as usize].id, self.candidate_of(&choice, *class).term.clone());
            chosen.push((order.iter().map(term).collect(), cost));
        }
        chosen
    }

    /// The operands of a candidate.
    #[cfg(test)]
    pub(crate) fn children(&self, class: u32, number: usize) -> Vec<u32> {
        self.classes[class as usize].candidates[number].children.to_vec()
    }

    /// The choices on the way down from a start, itself first.
    fn improve(&mut self, choice: Choice, cost: Cost) -> Vec<(Choice, Cost)> {
        self.evaluations = 0;
        let mut path = vec![(choice.clone(), cost)];
        let (mut choice, mut cost) = (choice, cost);
        loop {
            let before = cost.seconds;
            for moved in self.moves(&choice) {
                if self.evaluations > MOST_EVALUATIONS {
                    return path;
                }
                let mut changed = choice.clone();
                moved.iter().for_each(|(class, number)| changed[*class as usize] = *number);
                if changed == choice {
                    continue;
                }
                if let Some(after) = self.cost(&changed)
                    && after.seconds < cost.seconds * (1.0 - self.least_gain)
                    && (after.launches <= cost.launches || self.more_launches)
                {
                    (choice, cost) = (changed, after);
                    path.push((choice.clone(), cost));
                }
            }
            if cost.seconds >= before * (1.0 - self.least_gain) {
                return path;
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

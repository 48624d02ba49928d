//! What differs between two compiled specs, as graphs rather than as text: parameters, operations, cost.
//!
//! Operations are compared as multisets per application of a module: renaming an intermediate value or moving an equation is
//! no difference, another constant, shape or operation is one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use smallvec::SmallVec;

use crate::compile::CompiledSpec;
use crate::hash::HashMap;
use crate::ir::{Graph, Model, Node, NodeId, Op, commutes, describe};

/// What differs; empty parts are equal in both.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diff {
    /// State tensors (parameters, optimiser moments, gate means) by path: type in the first and in the second.
    pub state: BTreeMap<String, (Option<String>, Option<String>)>,
    /// Operations per program and application.
    pub programs: BTreeMap<String, BTreeMap<String, Change>>,
    /// Figures of the plans by name, where they differ: `train launches`, `memory activations`, ...
    pub cost: BTreeMap<String, (u64, u64)>,
}

/// Operations that only one side has, each with how many more times.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    /// Only, or more often, in the first.
    pub removed: BTreeMap<String, usize>,
    /// Only, or more often, in the second.
    pub added: BTreeMap<String, usize>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Diff::default()
    }
}

/// Compares two specs, both compiled as far as the model.
pub fn diff(a: &CompiledSpec, b: &CompiledSpec) -> Diff {
    let (model_a, model_b) = (&a.model, &b.model);
    let mut found = Diff { state: state(model_a, model_b), ..Diff::default() };
    for name in union(model_a.programs.keys(), model_b.programs.keys()) {
        let [of_a, of_b] = [model_a, model_b].map(|model| model.programs.get(name).map(operations).unwrap_or_default());
        let mut changes = BTreeMap::new();
        for path in union(of_a.keys(), of_b.keys()) {
            let change = change(of_a.get(path), of_b.get(path));
            if change != Change::default() {
                changes.insert(path.clone(), change);
            }
        }
        if !changes.is_empty() {
            found.programs.insert(name.clone(), changes);
        }
    }
    let [cost_a, cost_b] = [a, b].map(cost);
    for name in union(cost_a.keys(), cost_b.keys()) {
        let of = |cost: &BTreeMap<String, u64>| cost.get(name).copied().unwrap_or(0);
        if of(&cost_a) != of(&cost_b) {
            found.cost.insert(name.clone(), (of(&cost_a), of(&cost_b)));
        }
    }
    found
}

/// The first operation that leads to a result of a program and that another program does not have on the same operands. Names of
/// inputs, modules and applications are no difference; those of parameters are. Both are in normal form ([`crate::ir::simplify`]).
pub fn beyond(program: &Graph, other: &Graph) -> Option<NodeId> {
    let mut known: HashMap<(Op, Operands), u32> = HashMap::default();
    let mut numbers = Vec::with_capacity(other.nodes().len());
    for node in other.nodes() {
        let number = known.len() as u32;
        numbers.push(*known.entry(key(node, &numbers)).or_insert(number));
    }
    let live = program.live(program.outputs.values());
    // What nothing reads has any number.
    let mut numbers = Vec::with_capacity(program.nodes().len());
    for id in program.ids() {
        let number = if live[id.index()] { known.get(&key(program.node(id), &numbers)).copied() } else { Some(0) };
        match number {
            Some(number) => numbers.push(number),
            None => return Some(id),
        }
    }
    None
}

type Operands = SmallVec<[u32; 3]>;

/// An operation on operands by their numbers. Which of two factors comes first is none of its meaning.
fn key(node: &Node, numbers: &[u32]) -> (Op, Operands) {
    let mut operands: Operands = node.inputs.iter().map(|input| numbers[input.index()]).collect();
    if matches!(&node.op, Op::Pointwise(op) if commutes(*op)) {
        operands.sort_unstable();
    }
    let op = match &node.op {
        Op::Input { ty, .. } => Op::Input { name: "".into(), ty: ty.clone() },
        op => op.clone(),
    };
    (op, operands)
}

fn union<'a, T: Ord>(a: impl Iterator<Item = &'a T>, b: impl Iterator<Item = &'a T>) -> BTreeSet<&'a T> {
    a.chain(b).collect()
}

fn state(a: &Model, b: &Model) -> BTreeMap<String, (Option<String>, Option<String>)> {
    let ty = |model: &Model, path: &String| model.state.get(path).map(|decl| decl.ty.to_string());
    let all = union(a.state.keys(), b.state.keys()).into_iter();
    all.map(|path| (path.clone(), (ty(a, path), ty(b, path)))).filter(|(_, (a, b))| a != b).collect()
}

/// How often each operation occurs, per application.
fn operations(graph: &Graph) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut all: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for id in graph.ids() {
        let of = all.entry(graph.origin(id).path.to_string()).or_default();
        *of.entry(describe(graph, id)).or_default() += 1;
    }
    all
}

fn change(a: Option<&BTreeMap<String, usize>>, b: Option<&BTreeMap<String, usize>>) -> Change {
    let more = |a: Option<&BTreeMap<String, usize>>, b: Option<&BTreeMap<String, usize>>| {
        let beyond = |(op, count): (&String, &usize)| {
            let there = b.and_then(|b| b.get(op)).copied().unwrap_or(0);
            (*count > there).then(|| (op.clone(), count - there))
        };
        a.into_iter().flatten().filter_map(beyond).collect()
    };
    Change { removed: more(a, b), added: more(b, a) }
}

fn cost(spec: &CompiledSpec) -> BTreeMap<String, u64> {
    let mut cost = BTreeMap::new();
    if let Some(plan) = &spec.plan {
        cost.insert("parameters".to_owned(), plan.report.parameters);
        for (name, program) in &plan.report.programs {
            cost.insert(format!("{name} launches"), program.launches);
            cost.insert(format!("{name} FLOP"), program.flops);
        }
        for (kind, bytes) in &plan.report.memory {
            cost.insert(format!("memory {kind} bytes"), *bytes);
        }
        cost.insert("memory peak bytes".to_owned(), plan.report.peak_bytes());
    }
    cost
}

//! Every rule, tried: random terms of the shape of its left side, on random inputs, against the reference interpreter.
//!
//! A rule is applied wherever it matches the term, and what it builds must have the type and the values of what it matched:
//! bit for bit if it says so, else within rounding in f64. A rule that never applies fails, too. Numbers of any size then say
//! whether a rule computes in f32 what its left side did.

mod terms;

use std::collections::BTreeMap;

use alip_plan::bounds::{F32, distance};
use alip_plan::philox::{counter, philox4x32, stream_key, uniform};
use egg::Id;
use smallvec::SmallVec;

use self::terms::example;
use super::language::{EGraph, Interner};
use super::pattern::{Match, Pat};
use super::region::Region;
use super::rules::{self, Rule, Tag};
use super::solution::Written;
use crate::ir::{DType, Graph, NodeId, OriginId, Value, interpret, interpret_with};
use crate::ops::Op;
use crate::trust::rounding::{bound_of, with_bounds};

/// Terms tried per rule.
const TRIALS: u64 = 300;
/// Fewer applications than this prove nothing.
const LEAST: usize = 8;
/// Powers of two that a rule may lose at either end of the range: those of a constant that changes places, and a few for
/// sums of as many terms as examples have.
const MORE: i32 = 30;

/// The e-graph of a whole graph.
fn written(graph: &Graph) -> Written {
    let core: Vec<NodeId> = graph.ids().filter(|id| !matches!(graph.node(*id).op, Op::Input { .. })).collect();
    let outputs: Vec<NodeId> = core.iter().copied().filter(|id| graph.outputs.values().any(|of| of == id)).collect();
    let mut ops = Interner::default();
    let region = Region::new(graph, &core, &vec![false; graph.nodes().len()], &outputs, &mut ops);
    Written::new(graph, &region, ops)
}

/// The values of classes: every class by its first term, which exists since nothing was merged.
struct Values {
    graph: Graph,
    made: BTreeMap<Id, NodeId>,
    leaves: Vec<NodeId>,
}

impl Values {
    fn node(&mut self, egraph: &EGraph, id: Id) -> NodeId {
        let id = egraph.find(id);
        if let Some(node) = self.made.get(&id) {
            return *node;
        }
        let term = egraph.id_to_node(id).clone();
        let inputs: SmallVec<[NodeId; 3]> = term.children.iter().map(|child| self.node(egraph, *child)).collect();
        let op = egraph.analysis.ops.op(term.op);
        let node = self.graph.add(op.clone(), &inputs, OriginId::default()).expect("terms are well typed");
        if matches!(op, Op::Input { .. }) {
            self.leaves.push(node);
        }
        self.made.insert(id, node);
        node
    }

    /// The graph with these outputs, by number.
    fn yields(&mut self, outputs: &[NodeId]) {
        self.graph.outputs = outputs.iter().enumerate().map(|(at, id)| (at.to_string(), *id)).collect();
    }

    /// Values for the leaves; floats are made of two random words.
    fn inputs(&self, seed: u64, float: fn([u32; 2]) -> f64) -> BTreeMap<String, Value> {
        let mut inputs = BTreeMap::new();
        for (at, id) in self.leaves.iter().enumerate() {
            let Op::Input { name, ty } = &self.graph.node(*id).op else { continue };
            let value = |i: u64| {
                let [draw, other, ..] = philox4x32(counter(i, at as u64), stream_key(seed, 1, 78));
                match ty.dtype {
                    DType::Bool => f64::from(draw % 2),
                    DType::I32 => f64::from(draw % 9) - 4.0,
                    _ => float([draw, other]),
                }
            };
            inputs.insert(name.to_string(), Value::new(ty.clone(), (0..ty.shape.elements()).map(value).collect()));
        }
        inputs
    }
}

/// Away from 0, where quotients explode.
fn of_order_one([draw, _]: [u32; 2]) -> f64 {
    let x = 0.3 + 1.5 * f64::from(uniform(draw));
    if draw % 2 == 0 { x } else { -x }
}

/// Anywhere in the range of f32, near its ends and near 1 more than elsewhere.
fn of_any_order([draw, other]: [u32; 2]) -> f64 {
    let near = [-116, -75, -37, 0, 0, 37, 75, 116][other as usize % 8];
    let exponent = near + (other >> 8) as i32 % 9;
    let x = in_range(1.0 + f64::from(uniform(draw)), 0) * f64::from(exponent).exp2();
    if draw % 2 == 0 { x } else { -x }
}

/// The nearest number of f32, if that had so many more powers of two at both ends: what is too large is infinite, what is too
/// small is 0.
fn in_range(x: f64, more: i32) -> f64 {
    // Veltkamp's splitting: the upper 24 of 53 bits.
    let scaled = x * f64::from((1 << 29) + 1);
    let rounded = if scaled.is_finite() { scaled - (scaled - x) } else { x };
    let power = |exponent: i32| f64::from(exponent).exp2();
    match rounded.abs() {
        size if size >= power(128 + more) => rounded * f64::INFINITY,
        size if size < power(-126 - more) => 0.0,
        _ => rounded,
    }
}

/// The e-graph of a random term that a rule is tried on.
pub(super) fn example_of(rule: &Rule, seed: u64) -> Option<Written> {
    let own = [rule.left.clone()];
    let patterns: &[Pat] = if rule.examples.is_empty() { &own } else { &rule.examples };
    example(rule, &patterns[seed as usize % patterns.len()], seed).map(|graph| written(&graph))
}

/// Applies a rule wherever it matches an example: a graph that yields what it matched and what it built, in turn.
fn applied(rule: &Rule, graph: &Graph) -> Result<Values, String> {
    let mut written = written(graph);
    let egraph = &mut written.egraph;
    let mut matches: Vec<Match> = Vec::new();
    let mut ids: Vec<Id> = egraph.classes().map(|class| class.id).collect();
    ids.sort_unstable();
    for id in ids {
        for term in egraph[id].nodes.clone() {
            rule.left.matches(egraph, id, &term, &mut matches);
        }
    }
    let mut pairs = Vec::new();
    for found in &matches {
        let Some(new) = rule.apply(egraph, found) else { continue };
        let (root, new) = (egraph.find(found.root), egraph.find(new));
        if root == new {
            continue;
        }
        if let Some(why) = egraph[root].data.contradicts(&egraph[new].data, egraph.analysis.roundings) {
            return Err(format!("`{}` merges {why}", rule.name));
        }
        pairs.push((root, new));
    }
    if let Some((rule, why)) = egraph.analysis.faults.first() {
        return Err(format!("`{rule}` builds what cannot be: {why}"));
    }
    let mut values = Values { graph: Graph::new("law"), made: BTreeMap::new(), leaves: Vec::new() };
    let outputs: Vec<NodeId> = pairs.iter().flat_map(|(a, b)| [*a, *b]).map(|id| values.node(egraph, id)).collect();
    values.yields(&outputs);
    Ok(values)
}

/// What both sides of each application are, on values of order 1; yields how many applications there were.
fn check_example(rule: &Rule, graph: &Graph, seed: u64) -> Result<usize, String> {
    let values = applied(rule, graph)?;
    let inputs = values.inputs(seed, of_order_one);
    let results = interpret(&values.graph, &inputs, &BTreeMap::new()).expect("inputs are there").outputs;
    let pairs = values.graph.outputs.len() / 2;
    for pair in 0..pairs {
        let side = |at: usize| &results[&(2 * pair + at).to_string()].data;
        let (left, right) = (side(0), side(1));
        let largest = left.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        let bound = if rule.tag == Tag::Reassociates { 1e-11 * (1.0 + largest) } else { 0.0 };
        let equal = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= bound;
        if let Some(at) = (0..left.len()).find(|at| !equal(left[*at], right[*at])) {
            let (a, b) = (left[at], right[at]);
            let text = crate::ir::print(graph);
            return Err(format!("`{}` turns {a:?} into {b:?} at element {at} in\n{text}", rule.name));
        }
    }
    Ok(pairs)
}

/// Where f32 computes what a rule matched as well as rounding lets it, whatever the size of its values, f32 of a little more
/// range ([`MORE`]) computes what the rule built as well. Yields how many elements said so.
fn check_range(rule: &Rule, graph: &Graph, seed: u64) -> Result<usize, String> {
    let values = applied(rule, graph)?;
    let inputs = values.inputs(seed, of_any_order);
    let none = BTreeMap::new();
    let bounded = with_bounds(&values.graph, F32).map_err(|errors| errors.to_string())?;
    let exact = interpret(&bounded, &inputs, &none).expect("inputs are there").outputs;
    let rounded = |more: i32| {
        let round = |id: NodeId, value: &mut [f64]| {
            if values.graph.ty(id).dtype.is_float() {
                value.iter_mut().for_each(|x| *x = in_range(*x, more));
            }
        };
        interpret_with(&values.graph, &inputs, &none, round).expect("inputs are there").outputs
    };
    let (as_is, roomy) = (rounded(0), rounded(MORE));
    let mut judged = 0;
    for pair in 0..values.graph.outputs.len() / 2 {
        let [left, right] = [0, 1].map(|at| (2 * pair + at).to_string());
        let off = |found: &BTreeMap<String, Value>, name: &String, at: usize| {
            let bound = exact.get(&bound_of(name)).map_or(0.0, |bound| bound.data[at]);
            let distance = distance(found[name].data[at], exact[name].data[at]);
            (distance > bound || !bound.is_finite()).then_some(distance)
        };
        for at in 0..exact[&left].data.len() {
            if !exact[&left].data[at].is_finite() || off(&as_is, &left, at).is_some() {
                continue;
            }
            judged += 1;
            if let Some(distance) = off(&roomy, &right, at) {
                let (value, text) = (exact[&left].data[at], crate::ir::print(graph));
                return Err(format!("`{}` is off by {distance:e} of {value:e} at element {at} in\n{text}", rule.name));
            }
        }
    }
    Ok(judged)
}

type Try = fn(&Rule, &Graph, u64) -> Result<usize, String>;

/// Tries a rule on random terms; yields what the trials add up to.
fn check(rule: &Rule, example_holds: Try) -> Result<usize, String> {
    let mut applied = 0;
    let own = [rule.left.clone()];
    let patterns: &[Pat] = if rule.examples.is_empty() { &own } else { &rule.examples };
    for seed in 0..TRIALS {
        let pattern = &patterns[seed as usize % patterns.len()];
        if let Some(graph) = example(rule, pattern, seed) {
            applied += example_holds(rule, &graph, seed)?;
        }
    }
    if applied < LEAST {
        return Err(format!("`{}` applied {applied} times in {TRIALS} trials", rule.name));
    }
    Ok(applied)
}

#[test]
fn every_rule_holds() {
    let failures: Vec<String> = rules::all().iter().filter_map(|rule| check(rule, check_example).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_rule_keeps_its_range() {
    let rules = rules::all();
    let moves = rules.iter().filter(|rule| rule.tag == Tag::Reassociates);
    let failures: Vec<String> = moves.filter_map(|rule| check(rule, check_range).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn rules_that_lose_range_are_caught() {
    use super::pattern::{X, Y, Z, div, mul};
    let wrong = [
        Rule::term("product-first", Tag::Reassociates, div(mul(X, Y), Z), mul(div(Y, Z), X)).floats(),
        Rule::term("divisors-first", Tag::Reassociates, div(div(X, Y), Z), div(X, mul(Y, Z))).floats(),
    ];
    for rule in &wrong {
        check(rule, check_example).expect("as real numbers they are the same");
        let said = check(rule, check_range).expect_err(rule.name);
        assert!(said.starts_with(&format!("`{}` is off by ", rule.name)), "{said}");
    }
}

#[test]
fn names_are_distinct() {
    let mut names: Vec<&str> = rules::all().iter().map(|rule| rule.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn wrong_rules_are_caught() {
    use super::pattern::{X, Y, Z, add, div, mul, num, sub, transpose};
    let term = |name, tag, left, right| Rule::term(name, tag, left, right);
    let wrong = [
        term("wrong-order", Tag::Exact, sub(X, Y), sub(Y, X)),
        term("wrong-sum", Tag::Reassociates, mul(X, add(Y, Z)), add(mul(X, Y), Z)),
        term("not-exact", Tag::Exact, div(div(X, Y), Z), div(X, mul(Y, Z))).floats(),
        term("wrong-constant", Tag::Exact, mul(num(2.0), num(3.0)), num(5.0)),
        Rule::build("wrong-type", Tag::Exact, transpose(X), |s| s.var(&X)),
        Rule::build("never", Tag::Exact, transpose(X), |_| None),
    ];
    let said: Vec<String> = wrong.iter().map(|rule| check(rule, check_example).expect_err(rule.name)).collect();
    assert!(said[0].starts_with("`wrong-order` turns"), "{}", said[0]);
    assert!(said[2].starts_with("`not-exact` turns"), "{}", said[2]);
    assert!(said[3].ends_with("merges the constants 6 and 5"), "{}", said[3]);
    assert!(said[4].starts_with("`wrong-type` "), "{}", said[4]);
    assert_eq!(said[5], "`never` applied 0 times in 300 trials");
}

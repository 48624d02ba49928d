//! Applying rules to an e-graph until nothing new comes of it, or enough.
//!
//! - All matches of a round are found before any is applied; classes are visited by number, rules in the order of the list,
//!   so that the same region gives the same e-graph.
//! - Rules are looked up by the family of their root: one without a match costs nothing. After the first round only what
//!   has changed, and what stands above it, is matched again.
//! - Everything ends on counts.

use std::collections::{BTreeMap, BTreeSet};

use egg::{Id, Language};

use super::language::{Analysis, EGraph, Kind, Term};
use super::pattern::Match;
use super::rules::{Right, Rule, RuleId, Tag};
use super::site::Site;

/// Rounds after which a region is left as it is; chains of views need about one per view.
const MOST_ROUNDS: u32 = 10;
/// An e-graph grows to at most this many terms per term of the region, and some: what rules yield beyond is repetition.
const GROWTH: usize = 6;
const ROOM: usize = 400;
/// Most applications of one rule in one round.
const MOST_APPLICATIONS: usize = 1000;

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing new comes of the rules.
    Saturated,
    /// The most rounds.
    Rounds,
    /// The most terms.
    Nodes,
    /// A rule merged unequal values; the region stays as it is.
    Fault,
}

/// What saturation did.
pub(crate) struct Saturated {
    pub(crate) stop: Stop,
    pub(crate) rounds: u32,
    /// Per rule that did anything: matches, and terms that it made.
    pub(crate) work: BTreeMap<RuleId, (u32, u32)>,
    /// The rule that made a term, for those that are not of the region.
    pub(crate) made: Vec<(Term, RuleId)>,
    /// Classes that a rule found to be the same as terms that were there already.
    pub(crate) merged: Vec<(Id, RuleId)>,
}

/// Rules by the family of their root.
pub(crate) struct RuleIndex<'r> {
    rules: &'r [Rule],
    by_kind: BTreeMap<Kind, Vec<RuleId>>,
    /// Rules whose root is any pointwise op.
    by_arity: [Vec<RuleId>; 4],
    /// How many classes above a change a match can begin.
    depth: usize,
}

impl<'r> RuleIndex<'r> {
    pub(crate) fn new(rules: &'r [Rule], enabled: &[RuleId]) -> RuleIndex<'r> {
        let mut index = RuleIndex { rules, by_kind: BTreeMap::new(), by_arity: Default::default(), depth: 0 };
        for id in enabled {
            use super::pattern::Pat;
            let rule = &rules[*id];
            index.depth = index.depth.max(rule.left.depth());
            match &rule.left {
                Pat::Node(kind, _) | Pat::Any(kind) => index.by_kind.entry(*kind).or_default().push(*id),
                Pat::Point(operands) => index.by_arity[operands.len()].push(*id),
                _ => {}
            }
        }
        index
    }

    fn rules_for(&self, term: &Term) -> impl Iterator<Item = RuleId> + '_ {
        let any = if matches!(term.kind, Kind::Point(_)) { self.by_arity[term.children.len()].as_slice() } else { &[] };
        let own = self.by_kind.get(&term.kind).map_or(&[][..], Vec::as_slice);
        own.iter().chain(any).copied()
    }

    /// Saturates an e-graph, which is rebuilt.
    pub(crate) fn saturate(&self, egraph: &mut EGraph) -> Saturated {
        let limit = GROWTH * egraph.total_size() + ROOM;
        let (work, made, merged) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut done = Saturated { stop: Stop::Rounds, rounds: 0, work, made, merged };
        let mut classes: Vec<Id> = egraph.classes().map(|class| class.id).collect();
        while done.rounds < MOST_ROUNDS {
            done.rounds += 1;
            classes.sort_unstable();
            let matches = self.search(egraph, &classes);
            let mut changed = self.apply(egraph, &matches, limit, &mut done);
            egraph.rebuild();
            if !egraph.analysis.faults.is_empty() {
                done.stop = Stop::Fault;
                break;
            }
            if egraph.total_size() > limit {
                done.stop = Stop::Nodes;
                break;
            }
            if changed.is_empty() {
                done.stop = Stop::Saturated;
                break;
            }
            changed.iter_mut().for_each(|id| *id = egraph.find(*id));
            classes = self.above(egraph, changed);
        }
        done
    }

    fn search(&self, egraph: &EGraph, classes: &[Id]) -> Vec<(RuleId, Match)> {
        let mut matches = Vec::new();
        let mut found = Vec::new();
        let mut counts = vec![0; self.rules.len()];
        for class in classes {
            for term in &egraph[*class].nodes {
                for rule in self.rules_for(term).filter(|rule| counts[*rule] < MOST_APPLICATIONS).collect::<Vec<_>>() {
                    self.rules[rule].left.matches(egraph, *class, term, &mut found);
                    counts[rule] += found.len();
                    matches.extend(found.drain(..).map(|found| (rule, found)));
                }
            }
        }
        matches
    }

    /// Applies matches; yields the classes that are new or were merged.
    fn apply(&self, egraph: &mut EGraph, matches: &[(RuleId, Match)], limit: usize, done: &mut Saturated) -> Vec<Id> {
        let mut changed = fold(egraph);
        for (rule, found) in matches {
            if egraph.total_size() > limit {
                break;
            }
            let before = egraph.nodes().len();
            let Some(new) = self.rules[*rule].apply(egraph, found) else { continue };
            let work = done.work.entry(*rule).or_default();
            work.0 += 1;
            work.1 += (egraph.nodes().len() - before) as u32;
            done.made.extend(egraph.nodes()[before..].iter().map(|term| (term.clone(), *rule)));
            changed.extend((before..egraph.nodes().len()).map(Id::from));
            let (root, new) = (egraph.find(found.root), egraph.find(new));
            if root == new {
                continue;
            }
            if let Some(why) = egraph[root].data.contradicts(&egraph[new].data, egraph.analysis.roundings) {
                egraph.analysis.faults.push((self.rules[*rule].name, why));
                continue;
            }
            egraph.union(root, new);
            done.merged.push((root, *rule));
            changed.push(root);
        }
        changed
    }

    /// Classes from which a match can reach a change.
    fn above(&self, egraph: &EGraph, changed: Vec<Id>) -> Vec<Id> {
        let mut all: BTreeSet<Id> = changed.iter().copied().collect();
        let mut last = all.clone();
        for _ in 1..self.depth {
            let parents = last.iter().flat_map(|class| egraph[*class].parents()).map(|parent| egraph.find(parent));
            let parents: BTreeSet<Id> = parents.collect();
            last = parents.difference(&all).copied().collect();
            all.extend(&last);
        }
        all.into_iter().collect()
    }
}

/// Constant folding: a class whose elements are all one number gets that number as a term.
fn fold(egraph: &mut EGraph) -> Vec<Id> {
    let literal = |term: &Term| matches!(term.kind, Kind::Const | Kind::Broadcast) && term.children.len() < 2;
    let known = |class: &&egg::EClass<Term, super::language::Fact>| {
        class.data.splat.is_some() && !class.nodes.iter().any(|term| term.kind == Kind::Const)
    };
    let mut ids: Vec<Id> = egraph.classes().filter(known).map(|class| class.id).collect();
    ids.sort_unstable();
    let mut changed = Vec::new();
    for id in ids {
        let of_constant = |term: &Term| {
            let below = |id: &Id| egraph[*id].nodes.iter().any(|term| term.kind == Kind::Const);
            literal(term) && term.children.iter().all(below)
        };
        if egraph[id].nodes.iter().any(of_constant) {
            continue;
        }
        egraph.analysis.rule = "constant folding";
        let found = Match { root: id, vars: [None; 5], terms: Default::default() };
        let Some(number) = egraph[id].data.splat else { continue };
        let Some(new) = (Site { egraph, found: &found }).number(number, id) else { continue };
        if egraph.union(id, new) {
            changed.push(id);
        }
    }
    changed
}

impl Rule {
    /// The class of the right side, built; `None` where the rule does not apply.
    pub(crate) fn apply(&self, egraph: &mut EGraph, found: &Match) -> Option<Id> {
        let mut bound = found.vars.iter().flatten();
        // What is only true of finite numbers is done only where they are known to be finite.
        if self.tag == Tag::FiniteOnly && bound.any(|id| egraph[*id].data.range.is_none()) {
            return None;
        }
        if self.floats && !egraph[found.root].data.ty.dtype.is_float() {
            return None;
        }
        egraph.analysis.rule = self.name;
        let mut site = Site { egraph, found };
        if self.when.is_some_and(|holds| !holds(&site)) {
            return None;
        }
        match &self.right {
            Right::Term(pattern) => site.term(pattern),
            Right::Build(build) => build(&mut site),
        }
    }
}

/// An empty e-graph with these ops.
pub(crate) fn empty(ops: super::language::Interner) -> EGraph {
    EGraph::new(Analysis { ops, ..Analysis::default() })
}

/// A term with canonical operands.
pub(crate) fn canonical(egraph: &EGraph, term: &Term) -> Term {
    term.clone().map_children(|id| egraph.find(id))
}

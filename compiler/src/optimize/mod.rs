//! The optimiser: equality saturation over the regions of a graph.
//!
//! [`region`] cuts a program into regions. Each distinct one is turned into an e-graph (`language`), the `rules` say what
//! else computes the same (`saturate`), and `extract` takes the cheapest way by the model in `cost`, if the schedule of the
//! region agrees that it is (`judge`). Which of these new forms stay is decided on the whole program (`decide`), and what
//! stays is put in place of all regions that are equal, in all programs of a compile.
//!
//! The e-graph decides algebra: which operations are computed, in which layout, how often. What becomes one kernel and what
//! is computed twice rather than stored is decided in one place, the schedule, which sees whole programs and every limit of
//! the target; as e-nodes, fused forms would have to know all of that a second time, and multiply the terms of every region
//! by the ways to cut it into kernels. Extraction only predicts those decisions (`cost` follows the schedule's rules), and
//! the schedule itself has the last word, twice.
//!
//! Invariants:
//! - What a program computes stays the same, within the rounding of sums and products in another order; where an operand may
//!   be infinite or NaN, so does that. Every rule is tried against the interpreter (`laws`).
//! - Deterministic: no clock decides anything, and no order of a hash map reaches the result.
//! - A region for which nothing cheaper is found stays as it is, node by node and in its place, since a schedule may depend
//!   on both; a program takes no longer by prediction, and gets more launches only where they buy much time.
//! - Time is nearly linear in the number of nodes: regions are small, and equal ones are done once.

mod cost;
mod decide;
#[cfg(test)]
mod exact;
mod extract;
mod judge;
mod language;
#[cfg(test)]
mod laws;
mod pattern;
mod region;
mod rules;
mod saturate;
mod site;
mod solution;
mod tidy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::decide::Kept;
use self::extract::{Extraction, LEAST_GAIN};
use self::judge::judge;
use self::language::Interner;
use self::region::{Key, Region};
use self::rules::{Rule, RuleId};
pub use self::rules::{Tag, rule_names};
use self::saturate::RuleIndex;
pub use self::saturate::Stop;
use self::solution::{Cuts, Forms, Rebuild, Solution, Solved, Written};
use self::tidy::tidy;
use crate::diag::{Diagnostic, Diagnostics, did_you_mean};
use crate::hash::HashMap;
use crate::ir::Graph;
pub use crate::launch::Cost;
use crate::launch::Neighbours;
use alip_plan::Target;

/// What the optimiser may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizeOptions {
    /// Whether it does anything.
    pub enabled: bool,
    /// Names of rules or themes that are left out.
    pub without: BTreeSet<String>,
}

impl Default for OptimizeOptions {
    fn default() -> Self {
        OptimizeOptions { enabled: true, without: BTreeSet::new() }
    }
}

/// One region of a program, as it was optimised.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionReport {
    /// Nodes before and after.
    pub nodes: (u32, u32),
    /// Terms and classes of the saturated e-graph.
    pub terms: u32,
    /// See `terms`.
    pub classes: u32,
    /// Rounds of rules.
    pub rounds: u32,
    /// Why there were no more.
    pub stop: Stop,
    /// The rule that made most terms, with their number.
    pub dearest: Option<(&'static str, u32)>,
    /// Predicted cost before and after.
    pub cost: (Cost, Cost),
    /// How often it stands in the programs of this compile.
    pub occurrences: u32,
}

/// `3 x 84 nodes to 77: 230 terms in 140 classes after 4 rounds, saturated, dearest mul-neg (12); 1.21 ms to 1.18 ms`.
impl std::fmt::Display for RegionReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RegionReport { nodes, terms, classes, rounds, dearest, cost, occurrences, .. } = self;
        let stop = match self.stop {
            Stop::Saturated => "saturated",
            Stop::Rounds => "out of rounds",
            Stop::Nodes => "too large",
            Stop::Fault => "a rule is wrong",
        };
        write!(f, "{occurrences} x {} nodes to {}: {terms} terms in {classes} classes", nodes.0, nodes.1)?;
        write!(f, " after {rounds} rounds, {stop}")?;
        if let Some((rule, made)) = dearest {
            write!(f, ", dearest {rule} ({made})")?;
        }
        write!(f, "; {:.3} ms to {:.3} ms", cost.0.seconds * 1e3, cost.1.seconds * 1e3)
    }
}

/// What was done to a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Nodes before and after.
    pub nodes: (u32, u32),
    /// Regions, and how many of them were new to this compile.
    pub regions: u32,
    /// See `regions`.
    pub distinct: u32,
    /// Predicted cost of all regions before and after.
    pub cost: (Cost, Cost),
    /// Rules whose right sides were taken, in how many regions, and the paths of the nodes that they replaced.
    pub fired: BTreeMap<&'static str, Vec<String>>,
    /// How often each rule found that two values of a region are the same.
    pub applied: BTreeMap<&'static str, u32>,
    /// Rules that were found wrong, and what they merged; their regions stay as they were.
    pub faults: Vec<(&'static str, String)>,
}

/// A program and what was done to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimized {
    /// The program.
    pub graph: Graph,
    /// What was done.
    pub report: Report,
}

/// A program and the forms that its regions take.
pub struct Chosen {
    graph: Graph,
    kept: Kept,
    solved: Vec<Arc<Solved>>,
    report: Report,
}

impl Chosen {
    /// The program with its regions in these forms.
    ///
    /// # Errors
    /// See [`optimize`].
    pub fn build(self) -> Result<Optimized, Diagnostics> {
        let Chosen { graph, kept, solved, mut report } = self;
        if kept == Kept::Nothing {
            return Ok(Optimized { graph, report });
        }
        if cfg!(debug_assertions)
            && let Some((rule, why)) = report.faults.first()
        {
            return Err(Diagnostic::error(format!("internal: rule `{rule}` merges {why}")).into());
        }
        let graph = Rebuild::new(&graph).stamp_all(&solved, &kept)?;
        report.nodes.1 = graph.nodes().len() as u32;
        Ok(Optimized { graph, report })
    }
}

/// A program as its regions are cut from; as it is if none of them is to change.
///
/// # Errors
/// See [`optimize`].
pub fn tidied(graph: Graph, kept: &Kept) -> Result<Graph, Diagnostics> {
    if *kept == Kept::Nothing { Ok(graph) } else { tidy(&graph) }
}

/// Optimises the programs of one compile; equal regions of different programs are done once.
pub struct Optimizer {
    rules: Vec<Rule>,
    enabled: Vec<RuleId>,
    target: Target,
    /// Concatenations that are no work.
    neighbours: Neighbours,
    ops: Interner,
    known: HashMap<Key, Arc<Forms>>,
    /// Every distinct region, in the order in which they were met.
    pub regions: Vec<RegionReport>,
}

/// Optimises one program.
///
/// # Errors
/// An option names no rule; a rule is wrong (in builds with debug assertions); an op refuses its inputs, which only a
/// defect can cause.
pub fn optimize(graph: &Graph, target: &Target, options: &OptimizeOptions) -> Result<Optimized, Diagnostics> {
    Optimizer::new(target, options)?.optimize(graph, &Kept::All)
}

impl Optimizer {
    /// An optimiser for a target.
    ///
    /// # Errors
    /// An option names no rule and no theme.
    pub fn new(target: &Target, options: &OptimizeOptions) -> Result<Optimizer, Diagnostics> {
        let rules = rules::all();
        let names: BTreeSet<&str> = rules.iter().flat_map(|rule| [rule.name, rule.theme]).collect();
        for name in &options.without {
            if !names.contains(name.as_str()) {
                let error = Diagnostic::error(format!("no rule or theme of rules is named `{name}`"));
                let near = did_you_mean(name, names.iter().copied());
                return Err(near.map_or(error.clone(), |near| error.help(format!("did you mean `{near}`?"))).into());
            }
        }
        let kept = |rule: &Rule| !options.without.contains(rule.name) && !options.without.contains(rule.theme);
        let enabled = if options.enabled { (0..rules.len()).filter(|id| kept(&rules[*id])).collect() } else { vec![] };
        Ok(Optimizer {
            rules,
            enabled,
            target: target.clone(),
            neighbours: Neighbours::default(),
            ops: Interner::default(),
            known: HashMap::default(),
            regions: vec![],
        })
    }

    /// The same where these state tensors lie one after another: what reads them as one reads a value in memory.
    pub fn with(self, neighbours: Neighbours) -> Optimizer {
        Optimizer { neighbours, ..self }
    }

    /// Whether there is any rule to apply.
    pub fn is_on(&self) -> bool {
        !self.enabled.is_empty()
    }

    /// Optimises a program: its regions take the new forms that are kept.
    ///
    /// # Errors
    /// See [`optimize`].
    pub fn optimize(&mut self, graph: &Graph, kept: &Kept) -> Result<Optimized, Diagnostics> {
        let kept = if self.is_on() { kept.clone() } else { Kept::Nothing };
        self.choose(tidied(graph.clone(), &kept)?, kept).build()
    }

    /// Chooses the forms of the regions of a program, which is [`tidied`].
    pub fn choose(&mut self, graph: Graph, kept: Kept) -> Chosen {
        let mut report = Report::default();
        if kept == Kept::Nothing {
            return Chosen { graph, kept, solved: Vec::new(), report };
        }
        let known = self.known.len();
        let solved = Cuts::new(&graph, &self.neighbours).solve(self, &kept);
        report.nodes.0 = graph.nodes().len() as u32;
        report.distinct = (self.known.len() - known) as u32;
        for part in &solved {
            self.note(&graph, part, &kept, &mut report);
        }
        Chosen { graph, kept, solved, report }
    }

    fn note(&mut self, graph: &Graph, part: &Solved, kept: &Kept, report: &mut Report) {
        let Solved { region, forms } = part;
        report.regions += 1;
        let Some(known) = forms.report.and_then(|report| self.regions.get_mut(report)) else { return };
        known.occurrences += 1;
        let (before, after) = known.cost;
        let taken = forms.taken(kept);
        let after = if forms.keeps(kept) { after } else { before };
        for (total, cost) in [(&mut report.cost.0, before), (&mut report.cost.1, after)] {
            total.seconds += cost.seconds;
            total.launches += cost.launches;
        }
        for (rule, at) in &taken.fired {
            let path = graph.origin(region.nodes[*at]).path.to_string();
            let paths = report.fired.entry(self.rules[*rule].name).or_default();
            if paths.last() != Some(&path) {
                paths.push(path);
            }
        }
        for (rule, count) in &forms.applied {
            *report.applied.entry(self.rules[*rule].name).or_default() += count;
        }
        report.faults.extend(forms.faults.iter().cloned());
    }

    fn solve(&mut self, graph: &Graph, region: &Region) -> Arc<Forms> {
        if let Some(forms) = self.known.get(&region.key) {
            return forms.clone();
        }
        let forms = Arc::new(self.saturate(graph, region));
        self.known.insert(region.key.clone(), forms.clone());
        forms
    }

    /// Turns a region into an e-graph, applies the rules, and takes the cheapest terms.
    fn saturate(&mut self, graph: &Graph, region: &Region) -> Forms {
        let mut written = Written::new(graph, region, std::mem::take(&mut self.ops));
        let outputs = written.outputs(region);
        let mut extraction = Extraction::new(&written.egraph, &outputs, &self.target);
        let only = vec![0; extraction.classes.len()];
        let before = extraction.cost(&only).unwrap_or_default();
        let saturated = RuleIndex::new(&self.rules, &self.enabled).saturate(&mut written.egraph);
        let mut found = Vec::new();
        if saturated.stop != Stop::Fault {
            let mut extraction = Extraction::new(&written.egraph, &outputs, &self.target);
            let start = written.choice(&extraction);
            found = extraction.cheaper(start, before);
        }
        let mut cost = (before, before);
        let mut forms = Forms { unchanged: Solution::unchanged(graph, region), ..Forms::default() };
        let judge = |solution: &Solution| judge(&solution.graph(graph, region)?, &self.target);
        if !found.is_empty()
            && let Some(before) = judge(&forms.unchanged)
        {
            cost = (before, before);
            for (terms, _) in found {
                let candidate = written.solution(region, &terms, &saturated);
                if let Some(after) = judge(&candidate)
                    && after.seconds < before.seconds * (1.0 - LEAST_GAIN)
                    && after.launches <= before.launches
                {
                    (forms.changed, cost) = (Some(candidate), (before, after));
                    break;
                }
            }
        }
        for (_, rule) in &saturated.merged {
            *forms.applied.entry(*rule).or_default() += 1;
        }
        let egraph = &mut written.egraph;
        let work = saturated.work.iter().max_by_key(|(rule, (_, made))| (*made, std::cmp::Reverse(**rule)));
        forms.report = Some(self.regions.len());
        let after = forms.changed.as_ref().unwrap_or(&forms.unchanged);
        self.regions.push(RegionReport {
            nodes: (region.nodes.len() as u32, after.nodes.len() as u32),
            terms: egraph.total_size() as u32,
            classes: egraph.number_of_classes() as u32,
            rounds: saturated.rounds,
            stop: saturated.stop,
            dearest: work.map(|(rule, (_, made))| (self.rules[*rule].name, *made)),
            cost,
            occurrences: 0,
        });
        forms.faults = std::mem::take(&mut egraph.analysis.faults);
        self.ops = std::mem::take(&mut egraph.analysis.ops);
        forms
    }
}

//! Whole-graph rewrites: functions from graph to graph, each exact, each found by analysis of the graph and never by the
//! name of a model or module.
//!
//! - [`forward`]: what is done to programs before gradients are added: [`lift`].
//! - [`expand`]: semantic ops in terms of primitives: their meaning, and what a target without a kernel for them runs.
//!
//! Every rewrite can be turned off by its name ([`Disabled`]).

pub mod expand;
pub mod lift;

use std::collections::BTreeSet;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, NodeId, StopGradients, simplify};
use crate::ops::OpError;
use crate::resolve::Resolved;

/// Names of rules and rewrites that are not to be used (`--no-rule NAME`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disabled(pub BTreeSet<String>);

impl Disabled {
    /// Whether the rule or rewrite of this name may be used.
    pub fn allows(&self, name: &str) -> bool {
        !self.0.contains(name)
    }
}

/// Which rewrites to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Semantic ops for what is written out in primitives (off: `--no-lift`).
    pub lift: bool,
    /// Rewrites that are not to be used.
    pub disabled: Disabled,
}

impl Default for Options {
    fn default() -> Self {
        Options { lift: true, disabled: Disabled::default() }
    }
}

/// What the rewrites did, and what they could not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What became a semantic op.
    pub lifted: Vec<lift::Lifted>,
    /// What looked like one, and why it is none.
    pub missed: Vec<lift::Missed>,
}

/// Rewrites the forward programs of a model, in place: between [`resolve`](crate::resolve::resolve) and
/// [`add_update`](crate::autodiff::update::add_update).
///
/// # Errors
/// A rewrite built a node that its op refuses: a fault of the compiler.
pub fn forward(resolved: &mut Resolved, options: &Options) -> Result<Report, Diagnostics> {
    let results = Results { values: resolved.values_read_later() };
    let mut report = Report::default();
    for graph in resolved.model.programs.values_mut() {
        if options.lift {
            *graph = lift::lift(graph, &results, &mut report)?;
        }
    }
    Ok(report)
}

/// What a forward program is for: outputs, new state, and the named values that the training step will read. Other named
/// values are for those who look at them; they keep nothing alive.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Names of values that later stages read.
    pub values: BTreeSet<String>,
}

impl Results {
    /// The nodes of a program that must stay what they are; its inputs among them.
    pub fn nodes(&self, graph: &Graph) -> Vec<NodeId> {
        // `lcg` stands for all of the part's values.
        let read = |name: &str| {
            self.values.contains(name) || name.split_once('.').is_some_and(|(part, _)| self.values.contains(part))
        };
        let values = graph.values.iter().filter(|(name, _)| read(name)).map(|(_, id)| id);
        graph
            .outputs
            .values()
            .chain(graph.updates.values())
            .chain(graph.inputs.values())
            .chain(values)
            .copied()
            .collect()
    }
}

/// Simplified, with the named values for which `keeps` holds.
///
/// # Errors
/// As [`simplify`].
pub(crate) fn tidy(graph: &Graph, keeps: impl Fn(&str) -> bool) -> Result<Graph, Diagnostics> {
    // Outputs are what simplification keeps; these names cannot stand in a spec.
    const MARK: &str = "value ";
    let mut marked = graph.clone();
    for (name, id) in graph.values.iter().filter(|(name, _)| keeps(name)) {
        marked.outputs.insert(format!("{MARK}{name}"), *id);
    }
    let mut simple = simplify(&marked, StopGradients::Keep)?.graph;
    simple.outputs.retain(|name, _| !name.starts_with(MARK));
    simple.values.retain(|name, _| keeps(name));
    Ok(simple)
}

/// A pass that built a node its op refuses.
pub(crate) fn fault(pass: &str, graph: &Graph, id: NodeId, error: &OpError) -> Diagnostics {
    let message = format!("internal: {pass} of `{}` in program `{}`", graph.node(id).op.name(), graph.name);
    Diagnostic::error(message).note(error.message.clone()).into()
}

//! Whole-graph rewrites: functions from graph to graph, each exact, each found by analysis of the graph and never by the
//! name of a model or module.
//!
//! - [`forward`]: what is done to programs before gradients are added, so that these inherit it: [`lift`], then the rewrites
//!   `push_down` (what is not read is not computed), `batching` (applications of the same parameters become one),
//!   `streaming` (the matrix of similarities of a contrastive loss is not stored) and `projections` (products of one value
//!   with several parameters become one); at last [`packing`], by which a program becomes several.
//! - [`precision`]: which products take operands of 16 bits; before gradients are added too.
//! - [`narrow`]: arithmetic of 16 bits, and what a target that stores none has in its place.
//! - [`expand`]: semantic ops in terms of primitives: their meaning, and what a target without a kernel for them runs.
//! - [`bytes`]: images that a pipeline delivers in bytes; after everything else.
//!
//! Every rewrite can be turned off by its name ([`Disabled`]).

mod analysis;
mod batching;
pub mod bytes;
pub mod expand;
pub mod lift;
pub mod lonely;
pub mod narrow;
pub mod packing;
pub mod precision;
mod projections;
mod push_down;
mod streaming;

use std::collections::BTreeSet;

use alip_plan::{Packing, Spacing};
use serde::Serialize;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{DType, Graph, Model, NodeId, PackedGraphs, StopGradients, simplify};
use crate::ops::OpError;
use crate::resolve::Resolved;

/// Names of rules and rewrites that are not to be used (`--no-rule NAME`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disabled(pub BTreeSet<String>);

impl Disabled {
    /// Nothing is rewritten.
    pub fn all() -> Disabled {
        Disabled(names().map(str::to_owned).collect())
    }

    /// This one is left out.
    pub fn only(name: &str) -> Disabled {
        Disabled(BTreeSet::from([name.to_owned()]))
    }

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
    /// What each rewrite gave.
    pub applied: Vec<Applied>,
    /// What kept rows from being packed, by program.
    pub unpacked: Vec<(String, packing::Stopped)>,
}

/// What a program needs when every op reads its operands from memory and writes its result to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Floating point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// One rewrite of one program, with the cost of the program before and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Name of the rewrite, as `--no-rule` takes it.
    pub rewrite: &'static str,
    /// Name of the program.
    pub program: String,
    /// Paths of what was rewritten.
    pub places: Vec<String>,
    /// Cost before. For a program that is trained this is its forward part; a training step costs about three times that.
    pub before: Cost,
    /// Cost after.
    pub after: Cost,
}

/// A program that was rewritten, and the paths of what was.
struct Changed {
    graph: Graph,
    places: Vec<String>,
}

/// Yields nothing where nothing is gained. Outputs and updates mean what they meant; named values whose nodes are gone
/// have lost their names.
type Rewrite = fn(&Graph) -> Result<Option<Changed>, Diagnostics>;

/// The rewrites before differentiation by name, in their order.
const REWRITES: [(&str, Rewrite); 4] = [
    ("push_down", push_down::push_down),
    ("batching", batching::batching),
    ("streaming", streaming::streaming),
    ("projections", projections::projections),
];

/// Names of all rewrites, for `--no-rule`.
pub fn names() -> impl Iterator<Item = &'static str> {
    REWRITES.iter().map(|(name, _)| *name).chain([packing::PACKING])
}

/// A model whose forward programs are rewritten: the stage between [`Resolved`] and `training::Training`.
#[derive(Debug)]
pub struct Rewritten {
    /// Its programs, and those for fewer rows.
    pub model: Model,
    /// What the rewrites did.
    pub report: Report,
    /// The type of the operands of products in the training step, and of what is kept for the backward pass.
    pub precision: DType,
    /// What is odd but not wrong.
    pub warnings: Vec<Diagnostic>,
}

impl Rewritten {
    /// A model as it is written.
    pub fn nothing(resolved: &Resolved) -> Rewritten {
        let model = resolved.model.clone();
        Rewritten { model, report: Report::default(), precision: DType::F32, warnings: Vec::new() }
    }
}

/// Rewrites the forward programs of a model and packs their rows: a packed program becomes several, one per number of rows,
/// which are the target's.
///
/// # Errors
/// A rewrite built a node that its op refuses: a fault of the compiler.
pub fn forward(resolved: &Resolved, options: &Options, packing: &Packing) -> Result<Rewritten, Diagnostics> {
    let results = Results { values: resolved.values_read_later() };
    let Resolved { model: Model { name, programs, state, tables, packed: _ }, .. } = resolved;
    let mut model = Model { name: name.clone(), state: state.clone(), tables: tables.clone(), ..Model::default() };
    let mut report = Report::default();
    for (name, graph) in programs {
        let graph = forward_program(graph, &results, options, &mut report)?;
        model.programs.insert(name.clone(), graph);
    }
    for (name, graph) in &mut model.programs {
        let trained = name == alip_plan::PROGRAM_TRAIN;
        let spacing = if trained { &packing.trained } else { &packing.untrained };
        if let Some((whole, packed)) = pack_program(graph, &results, options, spacing, &mut report)? {
            *graph = whole;
            model.packed.insert(name.clone(), packed);
        }
    }
    Ok(Rewritten { model, report, precision: DType::F32, warnings: Vec::new() })
}

/// Lifts and rewrites one program that is yet to be differentiated.
///
/// # Errors
/// As [`forward`].
pub fn forward_program(
    graph: &Graph,
    results: &Results,
    options: &Options,
    report: &mut Report,
) -> Result<Graph, Diagnostics> {
    let lifted = if options.lift { lift::lift(graph, results, report)? } else { graph.clone() };
    let (rewritten, applied) = rewrite(&lifted, results, &options.disabled)?;
    report.applied.extend(applied);
    Ok(rewritten)
}

/// Rewrites one program that is yet to be differentiated, and says what was done. A graph in which nothing is gained comes
/// back as it is.
///
/// # Errors
/// A rewrite built a node its op refuses: a fault of that rewrite, which is named.
pub fn rewrite(graph: &Graph, results: &Results, disabled: &Disabled) -> Result<(Graph, Vec<Applied>), Diagnostics> {
    let mut current = simplify(&marked(graph, |name| results.reads(name)), StopGradients::Keep)?.graph;
    let mut applied = Vec::new();
    for (rewrite, run) in REWRITES.into_iter().filter(|(name, _)| disabled.allows(name)) {
        let Some(Changed { graph: next, places }) = run(&current)? else { continue };
        let next = simplify(&next, StopGradients::Keep)?.graph;
        if cfg!(debug_assertions) {
            crate::ir::verify(&next)?;
        }
        let (before, after) = (analysis::cost(&current), analysis::cost(&next));
        applied.push(Applied { rewrite, program: graph.name.clone(), places, before, after });
        current = next;
    }
    if applied.is_empty() {
        return Ok((graph.clone(), applied));
    }
    Ok((unmarked(current), applied))
}

/// Ends the name of an output that stands for a named value; no name in a spec ends like this.
const KEPT: char = '\0';

/// The graph with outputs for the named values for which `keeps` holds, so that rewriting keeps them.
fn marked(graph: &Graph, keeps: impl Fn(&str) -> bool) -> Graph {
    let mut marked = graph.clone();
    let kept = graph.values.iter().filter(|(name, _)| keeps(name));
    marked.outputs.extend(kept.map(|(name, id)| (format!("{name}{KEPT}"), *id)));
    marked
}

/// Without the outputs that [`marked`] added: they name their values, whatever became of those names on the way.
fn unmarked(mut graph: Graph) -> Graph {
    for (name, id) in std::mem::take(&mut graph.outputs) {
        match name.strip_suffix(KEPT) {
            Some(value) => graph.values.insert(value.to_owned(), id),
            None => graph.outputs.insert(name, id),
        };
    }
    graph
}

/// Packs the rows of one program that is yet to be differentiated, if it can be: the program for all rows, and those for
/// fewer.
///
/// # Errors
/// As [`forward`].
pub fn pack_program(
    graph: &Graph,
    results: &Results,
    options: &Options,
    spacing: &Spacing,
    report: &mut Report,
) -> Result<Option<(Graph, PackedGraphs)>, Diagnostics> {
    if !options.disabled.allows(packing::PACKING) {
        return Ok(None);
    }
    let found = packing::find(graph, &results.nodes(graph));
    let packed = packing::pack(graph, &found, spacing)?;
    report.applied.extend(packed.iter().map(|(_, packed)| packing::gain(graph, packed)));
    report.unpacked.extend(found.stopped.into_iter().map(|stopped| (graph.name.clone(), stopped)));
    Ok(packed)
}

/// What a forward program is for: outputs, new state, and the named values that the training step will read. Other named
/// values are for those who look at them; they keep nothing alive.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Names of values that later stages read.
    pub values: BTreeSet<String>,
}

impl Results {
    /// Whether a named value is read later. `lcg` stands for all of the part's values.
    fn reads(&self, name: &str) -> bool {
        self.values.contains(name) || name.split_once(['.', '[']).is_some_and(|(part, _)| self.values.contains(part))
    }

    /// The nodes of a program that must stay what they are; its inputs among them.
    pub fn nodes(&self, graph: &Graph) -> Vec<NodeId> {
        let values = graph.values.iter().filter(|(name, _)| self.reads(name)).map(|(_, id)| id);
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
    let mut simple = unmarked(simplify(&marked(graph, &keeps), StopGradients::Keep)?.graph);
    simple.values.retain(|name, _| keeps(name));
    Ok(simple)
}

/// A pass that built a node its op refuses.
pub(crate) fn fault(pass: &str, graph: &Graph, id: NodeId, error: &OpError) -> Diagnostics {
    let message = format!("internal: {pass} of `{}` in program `{}`", graph.node(id).op.name(), graph.name);
    Diagnostic::error(message).note(error.message.clone()).into()
}

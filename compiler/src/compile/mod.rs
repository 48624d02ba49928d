//! From a spec to a plan.
//!
//! [`compile_spec`] takes a spec to a model with its training step, [`compile_model`] takes a model to a plan.

mod model;
mod options;
mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use alip_plan::pipeline::Pipeline;
use alip_plan::{DType, Plan, TrainInfo};

pub use self::model::{Compiled, compile_model};
use self::options::known_passes;
pub use self::options::{CompileOptions, SWITCHES, Switch};
pub use self::report::OptimizeReport;
use crate::diag::{Diagnostic, Diagnostics, SourceMap};
use crate::ir::Model;
use crate::resolve::{Resolved, resolve};
use crate::training::{Keep, training_step_in};
use crate::transform::{Rewritten, precision};
use crate::{ir, launch, resolve, schedule, transform};

/// All passes, in order: names for `--dump after:NAME` and `--stop-after NAME`.
pub const PASSES: [&str; 11] =
    ["resolve", "lift", "model", "optimize", "bytes", "prepare", "schedule", "lower", "join", "memory", "assemble"];

/// Who gives programs their inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feed {
    /// A caller with tensors of its own: every input is as the graph declares it.
    #[default]
    Caller,
    /// A loader of the spec's pipeline, if it has one: it delivers images in bytes, and programs normalise them.
    Loader,
}

/// Which programs of a spec are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// All of them.
    #[default]
    Train,
    /// Those under `programs`, over the parameters and the states of modules: for weights that somebody else has trained.
    Inference,
}

/// How to compile a spec; the default is the spec as it stands, for the embedded cpu target.
#[derive(Clone, Debug, Default)]
pub struct SpecOptions {
    /// Batch, `--set` and files in memory.
    pub spec: resolve::Options,
    /// The data pipeline in place of the spec's, by path or name (`--data`).
    pub data: Option<String>,
    /// Who gives programs their inputs.
    pub feed: Feed,
    /// Which programs are compiled.
    pub purpose: Purpose,
    /// What the training program yields besides its metrics.
    pub keep: Keep,
    /// Target, fusion, dumps and the last pass.
    pub compile: CompileOptions,
}

/// A compiled spec and what was found on the way.
#[derive(Debug)]
pub struct CompiledSpec {
    /// The spec with every name resolved: its forward programs as written, its inputs and pipeline.
    pub resolved: Resolved,
    /// The model as far as passes from graph to graph have taken it: with its training step, unless `stop_after` came first.
    /// Its inputs are those that the graph declares.
    pub model: Model,
    /// The plan; absent after `stop_after`.
    pub plan: Option<Plan>,
    /// What rewrites of the forward programs did.
    pub rewrites: transform::Report,
    /// The type of products' operands and stored activations in the training step.
    pub precision: DType,
    /// What is odd but not wrong, each with its place.
    pub warnings: Vec<Diagnostic>,
    /// Pass and program (`schedule train`) with its text, as asked for by `dump`.
    pub dumps: Vec<(String, String)>,
    /// Time per pass over all programs; no plan depends on it.
    pub timings: Vec<(&'static str, Duration)>,
    /// The kernels of each program, if asked for.
    pub explained: BTreeMap<String, schedule::Explanation>,
    /// What the steps of each program read and write, if asked for.
    pub traces: BTreeMap<String, launch::trace::Trace>,
    /// What the e-graph did.
    pub optimized: OptimizeReport,
}

/// Compiles a graph given by path or name: from text to plan.
///
/// # Errors
/// Everything that is wrong with the spec or a file it uses, each with its place; a tensor or kernel that the target cannot
/// hold; an unknown pass in the options.
pub fn compile_spec(sources: &mut SourceMap, spec: &str, options: &SpecOptions) -> Result<CompiledSpec, Diagnostics> {
    let passes = &options.compile;
    known_passes(passes)?;
    let mut found = Compiled::default();

    let resolved = found.timed("resolve", || resolve_with_data(sources, spec, options))?;
    dump(&mut found, passes, "resolve", &resolved.model);
    if passes.ends_with("resolve") {
        return Ok(CompiledSpec::of(Rewritten::nothing(&resolved), resolved, found));
    }
    let rewritten = found.timed("lift", || transform::forward(&resolved, &passes.transform, &passes.target.packing))?;
    dump(&mut found, passes, "lift", &rewritten.model);
    if passes.ends_with("lift") {
        return Ok(CompiledSpec::of(rewritten, resolved, found));
    }
    let mut rewritten = found.timed("model", || precision::apply(&resolved.spec, rewritten, &passes.target))?;
    let step =
        found.timed("model", || training_step_in(&resolved, rewritten.model, options.keep, rewritten.precision))?;
    let info = match options.feed {
        Feed::Caller => step.info,
        Feed::Loader => step.info.map(|info| TrainInfo { data: info.data.map(Pipeline::with_bytes), ..info }),
    };
    let compiled = compile_model(&step.model, info, passes)?;
    rewritten.warnings.extend(step.warnings);
    Ok(CompiledSpec::of(Rewritten { model: step.model, ..rewritten }, resolved, found.and(compiled)))
}

/// Resolves a spec with the pipeline that was asked for.
fn resolve_with_data(sources: &mut SourceMap, spec: &str, options: &SpecOptions) -> Result<Resolved, Diagnostics> {
    let mut resolved = resolve(sources, spec, &options.spec)?;
    if let Some(data) = &options.data {
        resolved.pipeline = Some(resolved.pipeline_named(sources, data)?);
    }
    if options.purpose == Purpose::Inference {
        return resolved.without_training();
    }
    resolved.warnings.extend(transform::lonely::warning(&resolved));
    Ok(resolved)
}

impl CompiledSpec {
    fn of(rewritten: Rewritten, resolved: Resolved, found: Compiled) -> CompiledSpec {
        let Rewritten { model, report: rewrites, precision, warnings } = rewritten;
        let Compiled { plan, dumps, timings, explained, traces, optimized, warnings: faults } = found;
        let warnings = resolved.warnings.iter().cloned().chain(warnings).chain(faults).collect();
        CompiledSpec {
            resolved,
            model,
            plan,
            rewrites,
            precision,
            warnings,
            dumps,
            timings,
            explained,
            traces,
            optimized,
        }
    }
}

/// Keeps the text of all programs, if it is asked for after this pass.
fn dump(found: &mut Compiled, options: &CompileOptions, pass: &str, model: &Model) {
    if options.shows(pass) {
        let text = |(name, graph)| (format!("{pass} {name}"), ir::print(graph));
        found.dumps.extend(model.programs.iter().map(text));
    }
}

//! From a spec to a plan.
//!
//! [`compile_spec`] takes a spec to a model with its training step, [`compile_model`] takes a model to a plan.

mod model;
mod options;
mod report;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alip_plan::{DType, Plan};

pub use self::model::{Compiled, compile_model};
use self::options::known_passes;
pub use self::options::{CompileOptions, SWITCHES, Switch};
pub use self::report::OptimizeReport;
use crate::diag::{Diagnostic, Diagnostics, SourceMap};
use crate::resolve::{Resolved, resolve};
use crate::training::{Keep, add_update};
use crate::{ir, launch, resolve, schedule, transform};

/// All passes, in order: names for `--dump after:NAME` and `--stop-after NAME`.
pub const PASSES: [&str; 10] =
    ["resolve", "lift", "model", "optimize", "prepare", "schedule", "lower", "join", "memory", "assemble"];

/// How to compile a spec; the default is the spec as it stands, for the embedded cpu target.
#[derive(Clone, Debug, Default)]
pub struct SpecOptions {
    /// Batch, `--set` and files in memory.
    pub spec: resolve::Options,
    /// The data pipeline in place of the spec's, by path or name (`--data`).
    pub data: Option<String>,
    /// What the training program yields besides its metrics.
    pub keep: Keep,
    /// Target, fusion, dumps and the last pass.
    pub compile: CompileOptions,
}

/// A compiled spec and what was found on the way.
#[derive(Debug)]
pub struct CompiledSpec {
    /// The model with its training step, the merged spec, its inputs and pipeline.
    pub resolved: Resolved,
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
    let CompileOptions { dump, stop_after, .. } = &options.compile;
    known_passes(&options.compile)?;
    let stops = |pass| stop_after.as_deref() == Some(pass);

    let start = Instant::now();
    let mut resolved = resolve(sources, spec, &options.spec)?;
    if let Some(data) = &options.data {
        resolved.pipeline = Some(resolved.pipeline_named(sources, data)?);
    }
    resolved.warnings.extend(transform::lonely::warning(&resolved));
    let mut timings = vec![("resolve", start.elapsed())];
    let mut dumps = Vec::new();
    if dump.iter().any(|pass| pass == "resolve") {
        let text = |(name, graph)| (format!("resolve {name}"), ir::print(graph));
        dumps.extend(resolved.model.programs.iter().map(text));
    }

    let (mut plan, mut explained, mut traces) = (None, BTreeMap::new(), BTreeMap::new());
    let mut optimized = OptimizeReport::default();
    let mut rewrites = transform::Report::default();
    let mut faults = Vec::new();
    let mut precision = DType::F32;
    if !stops("resolve") {
        let start = Instant::now();
        rewrites = transform::forward(&mut resolved, &options.compile.transform)?;
        transform::pack(&mut resolved, &options.compile.transform, &options.compile.target.packing, &mut rewrites)?;
        timings.push(("lift", start.elapsed()));
        if dump.iter().any(|pass| pass == "lift") {
            let text = |(name, graph)| (format!("lift {name}"), ir::print(graph));
            dumps.extend(resolved.model.programs.iter().map(text));
        }
    }
    if !stops("resolve") && !stops("lift") {
        let start = Instant::now();
        precision = transform::precision::apply(&mut resolved, &options.compile.target)?;
        add_update(&mut resolved, options.keep)?;
        timings.push(("model", start.elapsed()));

        let compiled = compile_model(&resolved.model, resolved.train_info(), &options.compile)?;
        plan = compiled.plan;
        explained = compiled.explained;
        traces = compiled.traces;
        dumps.extend(compiled.dumps);
        timings.extend(compiled.timings);
        optimized = compiled.optimized;
        faults = compiled.warnings;
    }
    let mut warnings = resolved.warnings.clone();
    warnings.extend(faults);
    Ok(CompiledSpec { resolved, plan, rewrites, precision, warnings, dumps, timings, explained, optimized, traces })
}

//! From a model to a plan: one list of named passes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use alip_plan::packing::{Bucket, Lengths, PROGRAM_LENGTHS, Packed};
use alip_plan::{Buffer, Plan, Program, Target, TrainInfo};

use crate::PASSES;
use crate::codegen::{self, Assembly, Launch, Part, lower};
use crate::diag::{Diagnostic, Diagnostics, did_you_mean};
use crate::ir::{Model, PackedGraphs, name_with_rows};
use crate::optimize::{OptimizeOptions, Optimized, Optimizer, RegionReport, Report};
use crate::schedule::{self, Explanation, ScheduleOptions, memory};
use crate::transform;

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What to compile for.
    pub target: Target,
    /// What the e-graph may do.
    pub optimize: OptimizeOptions,
    /// What the schedule may do.
    pub schedule: ScheduleOptions,
    /// Which rewrites of whole programs to use.
    pub transform: transform::Options,
    /// Passes after which to show the program (`--dump after:NAME`).
    pub dump: Vec<String>,
    /// The last pass to run (`--stop-after NAME`).
    pub stop_after: Option<String>,
    /// Keep what became of each node ([`Compiled::explained`]).
    pub explain: bool,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            target: Target::cpu(),
            optimize: OptimizeOptions::default(),
            schedule: ScheduleOptions::default(),
            transform: transform::Options::default(),
            dump: Vec::new(),
            stop_after: None,
            explain: false,
        }
    }
}

/// A compiled model and what was asked for on the way.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The plan; absent after `stop_after`.
    pub plan: Option<Plan>,
    /// Pass and program (`schedule train`) with its text, as asked for by `dump`.
    pub dumps: Vec<(String, String)>,
    /// Time per pass over all programs (`--timings`); nothing in a plan depends on it.
    pub timings: Vec<(&'static str, Duration)>,
    /// The kernels of each program, if asked for.
    pub explained: BTreeMap<String, Explanation>,
    /// What the e-graph did.
    pub optimized: OptimizeReport,
}

/// What the e-graph did to all programs.
#[derive(Clone, Debug, Default)]
pub struct OptimizeReport {
    /// By program.
    pub programs: Vec<(String, Report)>,
    /// Every distinct region.
    pub regions: Vec<RegionReport>,
}

/// Compiles all programs of a model.
///
/// # Errors
/// A tensor that does not fit the target's limits, a kernel that the target cannot run, an unknown pass in the options.
pub fn compile_model(
    model: &Model,
    train: Option<TrainInfo>,
    options: &CompileOptions,
) -> Result<Compiled, Diagnostics> {
    known_passes(options)?;
    let mut run = Run { options, model, compiled: Compiled::default() };
    let target = &options.target;
    if cfg!(debug_assertions) {
        for (_, graph) in model.all_programs() {
            crate::ir::verify(graph)?;
        }
    }
    for (name, graph) in &model.programs {
        run.dump("model", name, || crate::ir::print(graph));
    }
    if run.stops("model") {
        return Ok(run.compiled);
    }
    let mut optimizer = Optimizer::new(target, &options.optimize)?;
    let mut optimized = Vec::new();
    for (name, graph) in model.all_programs() {
        let Optimized { graph, report } = run.timed("optimize", || {
            let graph = transform::expand::expand(graph, |id| !schedule::has_kernel(graph, id, target))?;
            optimizer.optimize(&graph)
        })?;
        if cfg!(debug_assertions) {
            crate::ir::verify(&graph)?;
        }
        run.dump("optimize", &name, || crate::ir::print(&graph));
        run.compiled.optimized.programs.push((name.clone(), report));
        optimized.push((name, graph));
    }
    run.compiled.optimized.regions = optimizer.regions;
    if run.stops("optimize") {
        return Ok(run.compiled);
    }
    let mut graphs = Vec::new();
    for (name, graph) in optimized {
        let graph = run.timed("prepare", || schedule::normal_form(&graph, target, options.schedule))?;
        if cfg!(debug_assertions) {
            crate::ir::verify(&graph)?;
        }
        run.dump("prepare", &name, || crate::ir::print(&graph));
        graphs.push((name, graph));
    }
    if run.stops("prepare") {
        return Ok(run.compiled);
    }
    let mut lowered = Vec::new();
    for (name, graph) in graphs {
        let scheduled = run.timed("schedule", || schedule::schedule(&graph, target, options.schedule));
        run.dump("schedule", &name, || scheduled.table());
        if run.stops("schedule") {
            continue;
        }
        let launches = run.timed("lower", || lower(&scheduled));
        if options.explain && model.programs.contains_key(&name) {
            run.compiled.explained.insert(name.clone(), schedule::explain(&scheduled, &launches));
        }
        drop(scheduled);
        run.dump("lower", &name, || table(&launches));
        lowered.push((name, graph, launches));
    }
    if ["schedule", "lower"].into_iter().any(|pass| run.stops(pass)) {
        return Ok(run.compiled);
    }
    let order = run.timed("join", || match options.schedule.fuse {
        true => {
            codegen::order(model, &lowered.iter().map(|(_, graph, all)| (graph, all.as_slice())).collect::<Vec<_>>())
        }
        false => (0..model.state.len()).collect(),
    });
    let mut assembly = Assembly::new(model, &order, target)?;
    let mut parts = Vec::new();
    for (name, graph, mut launches) in lowered {
        if options.schedule.fuse {
            launches = run.timed("join", || codegen::join(model, &graph, launches, assembly.state(), target));
        }
        run.dump("join", &name, || table(&launches));
        if run.stops("join") {
            continue;
        }
        let state = |path: &str| model.state.get_index_of(path);
        let placement = run.timed("memory", || memory::place(&graph, &launches, &state, target))?;
        run.dump("memory", &name, || placement.table(&graph));
        parts.push((name, Part { graph, launches, placement }));
    }
    if ["join", "memory"].into_iter().any(|pass| run.stops(pass)) {
        return Ok(run.compiled);
    }
    let mut programs = BTreeMap::new();
    for (name, part) in &parts {
        let (program, intents) = run.timed("assemble", || assembly.program(part))?;
        // Always: what overwrites a live value would train something else without a word.
        run.timed("check", || schedule::check::check(&program, assembly.state(), &intents))
            .map_err(|why| Diagnostic::error(format!("internal: memory of program `{name}`: {why}")))?;
        run.dump("assemble", name, || steps(&program));
        programs.insert(name.clone(), program);
    }
    let inputs = parts.iter().map(|(_, part)| part.placement.input_bytes).max().unwrap_or(0);
    let mut plan = assembly.finish(model, programs, inputs, train);
    for (name, packed) in &model.packed {
        plan.packed.insert(name.clone(), run.timed("assemble", || packed_program(name, packed))?);
    }
    crate::codegen::report_buckets(&mut plan, |program| {
        let part = parts.iter().find(|(name, _)| name == program);
        part.map_or(0, |(_, part)| part.placement.segments.iter().sum())
    });
    run.timed("check", || alip_plan::check::check(&plan))
        .map_err(|why| Diagnostic::error(format!("internal: the plan is not valid: {why}")))?;
    run.compiled.plan = Some(plan);
    Ok(run.compiled)
}

/// What a plan says of a program that there are several of.
fn packed_program(name: &str, packed: &PackedGraphs) -> Result<Packed, Diagnostics> {
    let mut model = Model { name: PROGRAM_LENGTHS.into(), ..Model::default() };
    model.programs.insert(PROGRAM_LENGTHS.into(), packed.lengths.clone());
    let missing = || Diagnostic::error(format!("internal: no program computes the lengths of `{name}`"));
    let plan = compile_model(&model, None, &CompileOptions::default())?.plan.ok_or_else(missing)?;
    let program = plan.programs.get(PROGRAM_LENGTHS).cloned().ok_or_else(missing)?;
    let fewer = packed.fewer.iter().map(|(rows, _)| Bucket { rows: rows.clone(), program: name_with_rows(name, rows) });
    let rows = packed.groups.iter().map(|group| group.samples * group.context).collect();
    Ok(Packed {
        groups: packed.groups.clone(),
        lengths: Lengths { segments: plan.segments, kernels: plan.kernels, program },
        buckets: fewer.chain([Bucket { rows, program: name.into() }]).collect(),
    })
}

struct Run<'a> {
    options: &'a CompileOptions,
    model: &'a Model,
    compiled: Compiled,
}

impl Run<'_> {
    fn timed<T>(&mut self, pass: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let spent = start.elapsed();
        match self.compiled.timings.iter_mut().find(|(name, _)| *name == pass) {
            Some((_, total)) => *total += spent,
            None => self.compiled.timings.push((pass, spent)),
        }
        result
    }

    /// Programs for fewer rows differ from their program in sizes alone, and are not shown.
    fn dump(&mut self, pass: &str, program: &str, text: impl FnOnce() -> String) {
        if self.model.programs.contains_key(program) && self.options.dump.iter().any(|name| name == pass) {
            self.compiled.dumps.push((format!("{pass} {program}"), text()));
        }
    }

    fn stops(&self, pass: &str) -> bool {
        self.options.stop_after.as_deref() == Some(pass)
    }
}

/// One line per launch: its operands and its kernel.
fn table(launches: &[Launch]) -> String {
    launches.iter().fold(String::new(), |mut text, launch| {
        let _ = writeln!(text, "{:?} {:?}", launch.operands, launch.kernel);
        text
    })
}

/// One line per launch of a program: the bytes it reads and writes, what it costs, where it comes from.
fn steps(program: &Program) -> String {
    let mut text = String::new();
    for step in &program.steps {
        for operand in &step.operands {
            let Buffer { segment, offset, dtype, shape } = &program.buffers[*operand as usize];
            let _ = write!(text, "{dtype}{shape:?} at {segment}+{offset}, ");
        }
        let _ = writeln!(text, "{} flops: {}", step.flops, step.origin);
    }
    text
}

/// Refuses names in the options that are no passes.
pub(crate) fn known_passes(options: &CompileOptions) -> Result<(), Diagnostics> {
    for name in options.dump.iter().chain(&options.stop_after) {
        if !PASSES.contains(&name.as_str()) {
            let error = Diagnostic::error(format!("unknown pass `{name}`"));
            let error = match did_you_mean(name, PASSES) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help(format!("passes are {}", PASSES.join(", "))),
            };
            return Err(error.into());
        }
    }
    Ok(())
}

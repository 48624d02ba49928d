//! From a model to a plan: one list of named passes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use alip_plan::packing::{Bucket, Lengths, PROGRAM_LENGTHS, Packed};
use alip_plan::pipeline::{Normalization, Pipeline};
use alip_plan::{Plan, Program, StateTensor, TrainInfo};

use super::options::{CompileOptions, known_passes};
use super::report::{OptimizeReport, steps, table};
use crate::codegen::{self, Assembly, BackEnd, Lowered, Part, Stage, Unwatched, Watch};
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, Model, PackedGraphs, name_with_rows};
use crate::launch::trace::Trace;
use crate::launch::{Cost, Neighbours, predict};
use crate::optimize::{self, Chosen, Kept, Optimized, Optimizer};
use crate::parallel;
use crate::schedule::{self, Explanation, memory};
use crate::transform;

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
    /// What the steps of each program read and write, if asked for.
    pub traces: BTreeMap<String, Trace>,
    /// What the e-graph did.
    pub optimized: OptimizeReport,
    /// Faults that were worked around.
    pub warnings: Vec<Diagnostic>,
}

impl Compiled {
    /// Runs a part of a pass.
    pub(super) fn timed<T>(&mut self, pass: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add_time(pass, start.elapsed());
        result
    }

    fn add_time(&mut self, pass: &'static str, spent: Duration) {
        match self.timings.iter_mut().find(|(name, _)| *name == pass) {
            Some((_, total)) => *total += spent,
            None => self.timings.push((pass, spent)),
        }
    }

    /// With what was found after it, on the way to a plan.
    pub(super) fn and(self, later: Compiled) -> Compiled {
        let dumps = self.dumps.into_iter().chain(later.dumps).collect();
        let timings = self.timings.into_iter().chain(later.timings).collect();
        Compiled { dumps, timings, ..later }
    }
}

/// Compiles all programs of a model. Inputs that the pipeline of `train` delivers in bytes are bytes in the plan.
///
/// # Errors
/// A tensor that does not fit the target's limits, a kernel that the target cannot run, an unknown pass in the options.
pub fn compile_model(
    model: &Model,
    train: Option<TrainInfo>,
    options: &CompileOptions,
) -> Result<Compiled, Diagnostics> {
    known_passes(options)?;
    let model = &*transform::narrow::for_target(model, &options.target)?;
    let mut run = Run { options, model, compiled: Compiled::default() };
    run.plan(train)?;
    Ok(run.compiled)
}

/// What a program will cost, down to its launches.
fn predicted(model: &Model, graph: &Graph, back_end: BackEnd<'_>) -> Result<Cost, Diagnostics> {
    let BackEnd { target, neighbours, .. } = back_end;
    let Some(Lowered { graph, launches, .. }) = back_end.lower(graph, &mut Unwatched)? else {
        return Ok(Cost::default());
    };
    let order = codegen::order(model, neighbours, &[(&graph, launches.as_slice())]);
    let assembly = Assembly::new(model, &order, neighbours, target)?;
    let launches = codegen::join(model, &graph, launches, assembly.state(), target);
    Ok(predict(&launches, &target.rates))
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

/// Whether a program is another one for fewer rows, by its name.
fn is_fewer(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.starts_with('@'))
}

struct Run<'a> {
    options: &'a CompileOptions,
    model: &'a Model,
    compiled: Compiled,
}

/// Keeps what is asked for of a program on its way to launches.
struct Watching<'r, 'a> {
    run: &'r mut Run<'a>,
    name: &'r str,
}

impl Watch for Watching<'_, '_> {
    fn timed<T>(&mut self, pass: &'static str, work: impl FnOnce() -> T) -> T {
        self.run.timed(pass, work)
    }

    fn goes_on(&mut self, stage: Stage<'_, '_>) -> Result<bool, Diagnostics> {
        let Watching { run, name } = self;
        let pass = match stage {
            Stage::Prepared(graph) => {
                if cfg!(debug_assertions) {
                    crate::ir::verify(graph)?;
                }
                run.dump("prepare", name, || crate::ir::print(graph));
                "prepare"
            }
            Stage::Scheduled(schedule) => {
                run.dump("schedule", name, || schedule.table());
                "schedule"
            }
            Stage::Lowered(schedule, launches) => {
                if run.options.explain && run.model.programs.contains_key(*name) {
                    run.compiled.explained.insert(name.to_string(), schedule::explain(schedule, launches));
                }
                run.dump("lower", name, || table(launches));
                "lower"
            }
        };
        Ok(!run.stops(pass))
    }
}

impl<'a> Run<'a> {
    /// Takes all programs from stage to stage, down to a plan or to the last pass that was asked for.
    fn plan(&mut self, train: Option<TrainInfo>) -> Result<(), Diagnostics> {
        self.begin()?;
        if self.stops("model") {
            return Ok(());
        }
        let neighbours = self.neighbours();
        let optimized = self.optimize(&neighbours)?;
        if self.stops("optimize") {
            return Ok(());
        }
        let images = train.as_ref().and_then(|train| train.data.as_ref()).map(Pipeline::in_bytes);
        let given = self.in_bytes(optimized, &images.unwrap_or_default())?;
        if self.stops("bytes") {
            return Ok(());
        }
        let Some(lowered) = self.lower(given, &neighbours)? else { return Ok(()) };
        let mut assembly = self.lay_out(&lowered, &neighbours)?;
        let loss = train.as_ref().map(|train| train.loss.as_str());
        let Some(placed) = self.place(lowered, assembly.state(), loss)? else { return Ok(()) };
        let programs = self.assemble(&placed, &mut assembly)?;
        let plan = assembly.finish(self.model, programs, &placed, train);
        self.compiled.plan = Some(self.finish(plan, &placed)?);
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Diagnostics> {
        if cfg!(debug_assertions) {
            for (_, graph) in self.model.all_programs() {
                crate::ir::verify(graph)?;
            }
        }
        for (name, graph) in &self.model.programs {
            self.dump("model", name, || crate::ir::print(graph));
        }
        Ok(())
    }

    /// State tensors that are read as one.
    fn neighbours(&self) -> Neighbours {
        match self.options.schedule.fuse {
            true => Neighbours::find(self.model.all_programs().map(|(_, graph)| graph), &self.options.target),
            false => Neighbours::default(),
        }
    }

    /// Programs whose images come in bytes.
    fn in_bytes(
        &mut self,
        programs: Vec<(String, Graph)>,
        images: &BTreeMap<String, Normalization>,
    ) -> Result<Vec<(String, Graph)>, Diagnostics> {
        self.each(programs, |run, (name, graph)| {
            let graph = run.timed("bytes", || transform::bytes::in_bytes(graph, images))?;
            run.dump("bytes", &name, || crate::ir::print(&graph));
            Ok(Some((name, graph)))
        })
    }

    /// From graphs to launches; none if the last pass is on the way. Programs for fewer rows come after the programs that
    /// they are like.
    fn lower(
        &mut self,
        optimized: Vec<(String, Graph)>,
        neighbours: &Neighbours,
    ) -> Result<Option<Vec<(String, Lowered)>>, Diagnostics> {
        let Run { options, model, .. } = *self;
        let back_end = BackEnd { target: &options.target, options: options.schedule, neighbours };
        let (count, own) = (optimized.len(), |(name, _): &(String, Graph)| model.programs.contains_key(name));
        let (programs, fewer): (Vec<_>, Vec<_>) = optimized.into_iter().partition(own);
        let lower = |run: &mut Run<'a>, (name, graph): (String, Graph), like: Option<&Lowered>| {
            let lowered = back_end.lower_like(&graph, like, &mut Watching { run, name: &name })?;
            Ok(lowered.map(|lowered| (name, lowered)))
        };
        let mut lowered = self.each(programs, |run, program| lower(run, program, None))?;
        let fewer = self.each(fewer, |run, program| {
            let like = lowered.iter().find(|(of, _)| is_fewer(&program.0, of)).map(|(_, of)| of);
            lower(run, program, like)
        })?;
        lowered.extend(fewer);
        Ok((lowered.len() == count).then_some(lowered))
    }

    /// The state's places in memory, in the order that joins most launches.
    fn lay_out(&mut self, lowered: &[(String, Lowered)], neighbours: &Neighbours) -> Result<Assembly<'a>, Diagnostics> {
        let Run { options, model, .. } = *self;
        let order = self.timed("join", || match options.schedule.fuse {
            true => {
                let launches: Vec<_> = lowered.iter().map(|(_, all)| (&all.graph, all.launches.as_slice())).collect();
                codegen::order(model, neighbours, &launches)
            }
            false => (0..model.state.len()).collect(),
        });
        Ok(Assembly::new(model, &order, neighbours, &options.target)?)
    }

    /// Joins launches and gives every value its place; none if the last pass is on the way.
    fn place(
        &mut self,
        lowered: Vec<(String, Lowered)>,
        state: &[StateTensor],
        loss: Option<&str>,
    ) -> Result<Option<Vec<(String, Part)>>, Diagnostics> {
        let count = lowered.len();
        let placed = self.each(lowered, |run, lowered| run.place_one(lowered, state, loss))?;
        Ok((placed.len() == count).then_some(placed))
    }

    /// Steps and buffers of all programs.
    fn assemble(
        &mut self,
        placed: &[(String, Part)],
        assembly: &mut Assembly<'_>,
    ) -> Result<BTreeMap<String, Program>, Diagnostics> {
        let mut assembled = Vec::new();
        for (name, part) in placed {
            let (program, intents, steps) = self.timed("assemble", || assembly.program(part))?;
            if self.options.explain {
                let trace = Trace { graph: part.graph.clone(), steps };
                self.compiled.traces.insert(name.clone(), trace);
            }
            assembled.push((name, (program, intents)));
        }
        // Always: what overwrites a live value would train something else without a word.
        let programs = self.each(assembled, |run, (name, (program, intents))| {
            run.timed("check", || schedule::check::check(&program, assembly.state(), &intents))
                .map_err(|why| Diagnostic::error(format!("internal: memory of program `{name}`: {why}")))?;
            run.dump("assemble", name, || steps(&program));
            Ok(Some((name.clone(), program)))
        })?;
        Ok(programs.into_iter().collect())
    }

    /// The plan with what it says of packed programs.
    fn finish(&mut self, mut plan: Plan, placed: &[(String, Part)]) -> Result<Plan, Diagnostics> {
        for (name, packed) in &self.model.packed {
            plan.packed.insert(name.clone(), self.timed("assemble", || packed_program(name, packed))?);
        }
        codegen::report_buckets(&mut plan, placed);
        self.timed("check", || alip_plan::check::check(&plan))
            .map_err(|why| Diagnostic::error(format!("internal: the plan is not valid: {why}")))?;
        Ok(plan)
    }

    /// Programs are compiled independently of each other, on all cores. What was found on the way is kept in their order.
    /// Those that the last pass asked for ends before yield nothing.
    fn each<T: Send, R: Send>(
        &mut self,
        items: Vec<T>,
        work: impl Fn(&mut Run<'a>, T) -> Result<Option<R>, Diagnostics> + Sync,
    ) -> Result<Vec<R>, Diagnostics> {
        let (options, model) = (self.options, self.model);
        let done = parallel::map(items, |item| {
            let mut run = Run { options, model, compiled: Compiled::default() };
            let result = work(&mut run, item);
            (run.compiled, result)
        });
        let mut results = Vec::new();
        for (compiled, result) in done {
            self.compiled.dumps.extend(compiled.dumps);
            self.compiled.explained.extend(compiled.explained);
            for (pass, time) in compiled.timings {
                self.compiled.add_time(pass, time);
            }
            results.extend(result?);
        }
        Ok(results)
    }

    /// Takes all programs through the e-graph. What is known of regions is one thing for all programs, so they are looked
    /// into one after the other; what comes before and after is done on all cores.
    fn optimize(&mut self, neighbours: &Neighbours) -> Result<Vec<(String, Graph)>, Diagnostics> {
        let Run { options, model, .. } = *self;
        let (target, fuse) = (&options.target, options.schedule.fuse);
        let back_end = BackEnd { target, options: options.schedule, neighbours };
        let mut optimizer = Optimizer::new(target, &options.optimize)?.with(neighbours.clone());
        let expanded = self.each(model.all_programs().collect(), |run, (name, graph)| {
            let primitive = |id| !schedule::has_kernel(graph, id, target);
            Ok(Some((name, run.timed("optimize", || transform::expand::expand(graph, primitive))?)))
        })?;
        let mut decided: BTreeMap<String, Kept> = BTreeMap::new();
        let mut programs = Vec::new();
        for (name, graph) in expanded {
            // A program for fewer rows is its program once more.
            let kept = match model.packed.keys().find(|of| is_fewer(&name, of)).and_then(|of| decided.get(of).cloned())
            {
                Some(kept) => kept,
                // Without fusion there are no kernels that a change could keep from being joined.
                None if !fuse && optimizer.is_on() => Kept::All,
                None => {
                    self.timed("optimize", || optimizer.decide(&graph, |graph| predicted(model, graph, back_end)))?
                }
            };
            decided.insert(name.clone(), kept.clone());
            programs.push((name, graph, kept));
        }
        let tidy = self.each(programs, |run, (name, graph, kept)| {
            Ok(Some((name, run.timed("optimize", || optimize::tidied(graph, &kept))?, kept)))
        })?;
        let choose = |(name, graph, kept)| (name, optimizer.choose(graph, kept));
        let chosen: Vec<(String, Chosen)> = self.timed("optimize", || tidy.into_iter().map(choose).collect());
        let optimized = self.each(chosen, |run, (name, chosen)| {
            let Optimized { graph, report } = run.timed("optimize", || chosen.build())?;
            if cfg!(debug_assertions) {
                crate::ir::verify(&graph)?;
            }
            run.dump("optimize", &name, || crate::ir::print(&graph));
            Ok(Some((name, graph, report)))
        })?;
        self.compiled.optimized.regions = optimizer.regions;
        let mut graphs = Vec::new();
        for (name, graph, report) in optimized {
            self.compiled.warnings.extend(report.faults.iter().map(|(rule, why)| {
                Diagnostic::warning(format!("rule `{rule}` merges {why}; what it was applied to stays as it is"))
                    .help("this is a fault of the compiler; please report it with the spec")
            }));
            self.compiled.optimized.programs.push((name.clone(), report));
            graphs.push((name, graph));
        }
        Ok(graphs)
    }

    fn place_one(
        &mut self,
        (name, lowered): (String, Lowered),
        state: &[StateTensor],
        loss: Option<&str>,
    ) -> Result<Option<(String, Part)>, Diagnostics> {
        let Run { options, model, .. } = *self;
        let (Lowered { graph, mut launches, .. }, target) = (lowered, &options.target);
        if options.schedule.fuse {
            launches = self.timed("join", || codegen::join(model, &graph, launches, state, target));
        }
        self.dump("join", &name, || table(&launches));
        if self.stops("join") {
            return Ok(None);
        }
        let index = |path: &str| model.state.get_index_of(path);
        let placement = self.timed("memory", || memory::place(&graph, &launches, &index, target, loss))?;
        self.dump("memory", &name, || placement.table(&graph));
        let part = Part { graph, launches, placement };
        Ok((!self.stops("memory")).then_some((name, part)))
    }

    fn timed<T>(&mut self, pass: &'static str, work: impl FnOnce() -> T) -> T {
        self.compiled.timed(pass, work)
    }

    /// Programs for fewer rows differ from their program in sizes alone, and are not shown.
    fn dump(&mut self, pass: &str, program: &str, text: impl FnOnce() -> String) {
        if self.model.programs.contains_key(program) && self.options.shows(pass) {
            self.compiled.dumps.push((format!("{pass} {program}"), text()));
        }
    }

    fn stops(&self, pass: &str) -> bool {
        self.options.ends_with(pass)
    }
}

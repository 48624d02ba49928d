//! What commands have in common: where plan, data and device come from.

use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "compile")]
use alip_plan::Target;
use alip_plan::pipeline::Pipeline;
use alip_plan::{DType, PROGRAM_TRAIN, Plan};
use alip_runtime::data::SampleSource;
use alip_runtime::device::{self, Choice, Device, DeviceError, DeviceOptions};
use alip_runtime::exec::{ExecError, Session};
use alip_runtime::run::{DeviceIdentity, RunDir, RunError, SpecFile, SpecSources, read_plan};

use crate::moved::{is_data, moved};
use crate::{Failure, Outcome, fits};

/// Which model.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Name or path of a graph spec, or a directory with a plan that `alipc compile -o` wrote
    #[arg(value_name = "SPEC|PLAN")]
    spec: String,
    #[command(flatten)]
    how: CompileArgs,
}

/// How to compile it.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct CompileArgs {
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What to compile for, in place of `cpu` or `wgpu`: `native` takes the limits of the device at hand and prints the target
    /// that they make, `cpu_mixed` stores bf16 and f16 where a spec asks for them
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Do without a rewrite, rule or theme of rules
    #[arg(long, value_name = "NAME")]
    no_rule: Vec<String>,
    /// Do without the e-graph
    #[arg(long)]
    no_egraph: bool,
}

/// Which samples may be bad.
#[derive(clap::Args)]
pub(crate) struct BadArgs {
    /// Largest share of samples that may be unreadable. Judged whenever one is, over all that this process has read of these data,
    /// from the 1,000th sample on; training and packing save before they stop. A suite judges each of its sets by itself, shows one
    /// that has more as not measured, and measures the others. What is skipped is named
    #[arg(long, default_value_t = 0.01, value_name = "SHARE", value_parser = share)]
    pub(crate) max_bad: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share of samples between 0 and 1".into())
}

/// Which device.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// `cpu`, `wgpu` for the fastest adapter, `wgpu:1` for the second that `alip-run devices` lists; `auto` takes a hardware
    /// adapter, else cpu. A run keeps to its own [default: auto]
    #[arg(long)]
    device: Option<String>,
    /// Threads of the cpu device; results do not depend on it
    #[arg(long)]
    threads: Option<u64>,
    /// Submit every launch by itself on cuda, in place of whole programs as recorded graphs; results do not depend on it
    #[arg(long)]
    launch_by_launch: bool,
}

impl DeviceArgs {
    /// Opens the device and says on stderr which it is.
    pub(crate) fn open(&self) -> Outcome<Box<dyn Device>> {
        self.open_as(None)
    }

    /// Opens the device asked for, else one like that which a run was started on, where this machine has it.
    pub(crate) fn open_as(&self, own: Option<&DeviceIdentity>) -> Outcome<Box<dyn Device>> {
        Ok(opened(self.choose(own)?))
    }

    /// Opens the device asked for, else one of the kind that the run in `root` was started on and no other.
    pub(crate) fn open_own(&self, root: &Path, own: &DeviceIdentity) -> Outcome<Box<dyn Device>> {
        if self.device.is_some() {
            return self.open();
        }
        let choice = device::choose_like(&own.name, &own.arithmetic, &self.options()?).map_err(|why| {
            let advice = "Continue it where there is one, or accept another device, as with `--device cpu --device-changed`: the \
                          run then no longer ends with the bits of one that was never stopped";
            Failure::message(format!("the run in {} was started on {own}, and {why}. {advice}", root.display()))
        })?;
        Ok(opened(choice))
    }

    /// As [`DeviceArgs::open_as`], without a word.
    pub(crate) fn choose(&self, own: Option<&DeviceIdentity>) -> Outcome<Choice> {
        let options = self.options()?;
        Ok(match (&self.device, own) {
            (Some(name), _) => device::choose(name, &options)?,
            (None, Some(own)) => device::choose_like(&own.name, &own.arithmetic, &options)
                .or_else(|_| device::choose("auto", &options))?,
            (None, None) => device::choose("auto", &options)?,
        })
    }

    fn options(&self) -> Outcome<DeviceOptions> {
        let threads = self.threads.map(|threads| bounded("--threads", threads)).transpose()?;
        Ok(DeviceOptions { threads, launch_by_launch: self.launch_by_launch })
    }
}

/// Says on stderr which device was taken.
fn opened(Choice { device, name, .. }: Choice) -> Box<dyn Device> {
    note!("device: {name}, {}", device.summary());
    device
}

/// More threads than this for each that the machine runs at a time only wait for each other.
const THREADS_PER_CORE: u64 = 8;

/// A number of threads that this machine can make use of.
pub(crate) fn bounded(option: &str, threads: u64) -> Outcome<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = cores as u64 * THREADS_PER_CORE;
    if (1..=most).contains(&threads) {
        return Ok(threads as usize);
    }
    let why = format!("this machine runs {cores} at a time; give a number from 1 to {most}");
    Err(Failure::message(format!("{option} {threads}: {why}")))
}

/// Who gives a plan its inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// A file, as the graph declares them.
    File,
    /// The loader, which delivers images in bytes.
    Loader,
}

/// What a plan is compiled for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything, training first; with what `train` yields besides its metrics.
    Train(Keep),
    /// The programs that use a trained model.
    Inference,
}

/// What `train` yields besides its metrics.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Keep {
    /// `grads.PATH`.
    pub(crate) grads: bool,
    /// `outputs.NAME`.
    pub(crate) outputs: bool,
}

impl ModelArgs {
    /// The plan in the directory, or of the spec compiled for a device.
    pub(crate) fn plan(&self, device: &dyn Device, keep: Keep, feed: Feed) -> Outcome<Plan> {
        Ok(self.how.plan_on(&self.spec, device, (keep, feed), None)?.0)
    }

    /// The plan of the spec with the largest batch for which the device has room.
    pub(crate) fn largest(&self, device: &dyn Device, (keep, feed): (Keep, Feed)) -> Outcome<Plan> {
        if Path::new(&self.spec).is_dir() {
            return Err(Failure::message(format!("--largest: the plan in {} has its batch; give a spec", self.spec)));
        }
        let target = self.how.target.as_deref();
        say_native(target, device);
        let sources = self.how.sources(&self.spec, None);
        fits::largest(device, &mut |batch| {
            let sources = SpecSources { batch: batch.or(sources.batch), ..sources.clone() };
            Ok(made(sources, target, device, (Purpose::Train(keep), feed))?.plan)
        })
    }
}

/// A plan, what it is trained on, and what it was compiled from, unless it was given compiled.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) pipeline: Pipeline,
    pub(crate) sources: Option<SpecSources>,
}

impl CompileArgs {
    /// Plan and data: the spec's own pipeline, the same on the files `data`, or the pipeline `data`.
    pub(crate) fn plan_and_data(&self, spec: &str, device: &dyn Device, data: Option<&str>) -> Outcome<Prepared> {
        let files = data.filter(|data| is_data(data));
        let other = data.filter(|_| files.is_none());
        let (plan, sources) = self.plan_on(spec, device, (Keep::default(), Feed::Loader), other)?;
        let pipeline = match (files, other) {
            (Some(files), _) => {
                moved(own(&plan)?, files).map_err(|why| Failure::message(format!("graph `{}`: {why}", plan.name)))?
            }
            (None, Some(name)) if sources.is_none() => {
                let pipeline = taken_by(&plan, named(name)?)?;
                fits(&plan, &pipeline)?;
                pipeline
            }
            _ => own(&plan)?,
        };
        Ok(Prepared { plan, pipeline, sources })
    }

    /// Whether nothing was asked for.
    pub(crate) fn is_plain(&self) -> bool {
        let CompileArgs { batch, set, target, no_rule, no_egraph } = self;
        batch.is_none() && set.is_empty() && target.is_none() && no_rule.is_empty() && !no_egraph
    }

    /// What a spec is compiled from.
    fn sources(&self, spec: &str, data: Option<&str>) -> SpecSources {
        SpecSources {
            spec: spec.to_string(),
            folder: std::env::current_dir().unwrap_or_default(),
            data: data.map(str::to_string),
            batch: self.batch,
            set: self.set.clone(),
            no_rule: self.no_rule.clone(),
            no_egraph: self.no_egraph,
            ..SpecSources::default()
        }
    }

    fn plan_on(
        &self,
        spec: &str,
        device: &dyn Device,
        (keep, feed): (Keep, Feed),
        data: Option<&str>,
    ) -> Outcome<(Plan, Option<SpecSources>)> {
        let path = Path::new(spec);
        if !path.is_dir() {
            let (sources, how) = (self.sources(spec, data), (Purpose::Train(keep), feed));
            let target = self.target.as_deref();
            let (plan, files) = compile(sources.clone(), target, device, how)?;
            fits::check(&plan, device, &mut |batch| {
                let sources = SpecSources { batch: batch.or(sources.batch), ..sources.clone() };
                Ok(made(sources, target, device, how)?.plan)
            })?;
            return Ok((plan, Some(files)));
        }
        if !self.is_plain() {
            let why = "is compiled: --batch, --set, --target, --no-rule and --no-egraph are for specs; give them to \
                       `alipc compile` and compile again";
            return Err(Failure::message(format!("the plan in {} {why}", path.display())));
        }
        if keep.grads || keep.outputs {
            let why = "a compiled plan keeps neither gradients nor outputs; give the spec, or --dump params,metrics";
            return Err(Failure::message(format!("{}: {why}", path.display())));
        }
        let plan = read_plan(path)?.1;
        if feed == Feed::File && reads_bytes(&plan) {
            let why =
                "takes images in bytes, as the loader delivers them; give the spec, whose images are those of a file";
            return Err(Failure::message(format!("the plan in {} {why}", path.display())));
        }
        Ok((plan, None))
    }
}

/// A run's plan on a device. Where it is of another kind of device, or of an adapter that allows more, the very files it was
/// compiled from are compiled for the one at hand.
pub(crate) fn session_on(run: &RunDir, device: &dyn Device) -> Outcome<Session> {
    let name = &run.info().spec;
    let plan = match run.plan() {
        Err(error @ RunError::OtherVersion { .. }) => return compiled_again(run, device, error),
        plan => Arc::new(plan?),
    };
    let (why, target) = match Session::on(device, Arc::clone(&plan)) {
        _ if !device.runs(plan.target.kind) => ("another kind of device".into(), None),
        Err(ExecError::Device(DeviceError::Limit { what, needed, allowed, .. })) => {
            (format!("another adapter ({what}: {needed}, and this one allows {allowed})"), Some("native"))
        }
        loaded => return Ok(loaded?),
    };
    let sources = run.sources()?.ok_or_else(|| {
        let why = "was started from a compiled plan, so there is no spec to compile for another device";
        Failure::message(format!("the run of `{name}` {why}; give the --device it was started on"))
    })?;
    note!("compiling `{name}` for {}, since the run was started on {why}", device.name());
    let (plan, _) = compile(sources, target, device, (Purpose::Train(Keep::default()), Feed::Loader))?;
    Ok(Session::on(device, Arc::new(plan))?)
}

/// A run whose plan only another version of this program reads: what it was compiled from is compiled by this one. That gives another
/// plan, by which the run cannot go on, but the same model.
fn compiled_again(run: &RunDir, device: &dyn Device, error: RunError) -> Outcome<Session> {
    let Some(sources) = run.sources()? else { return Err(error.into()) };
    note!("compiling `{}` again, since the plan of the run is of another version", run.info().spec);
    let (plan, _) = compile(sources, None, device, (Purpose::Train(Keep::default()), Feed::Loader))?;
    Ok(Session::on(device, Arc::new(plan))?)
}

/// The plan of a run, for what it says of its model; compiled again where only another version of this program reads it.
pub(crate) fn plan_of(run: &RunDir) -> Outcome<Plan> {
    match run.plan() {
        Err(error @ RunError::OtherVersion { .. }) => {
            let cpu = device::choose("cpu", &DeviceOptions::default())?.device;
            Ok((**compiled_again(run, cpu.as_ref(), error)?.plan()).clone())
        }
        plan => Ok(plan?),
    }
}

/// The files that a graph would be compiled from now, itself first; what is wrong with them does not matter here.
#[cfg(feature = "compile")]
pub(crate) fn files_now(graph: &str, then: &SpecSources) -> Vec<SpecFile> {
    use alip_compiler::check;
    use alip_compiler::diag::SourceMap;
    use alip_compiler::resolve::Options;
    let mut sources = SourceMap::new();
    let options = Options { batch: then.batch, set: then.set.clone(), ..Options::default() };
    for spec in [Some(graph), then.data.as_deref()].into_iter().flatten() {
        let _ = check(&mut sources, spec, &options);
    }
    sources.files().map(|(name, text)| SpecFile { name: name.into(), text: text.into() }).collect()
}

#[cfg(not(feature = "compile"))]
pub(crate) fn files_now(graph: &str, _: &SpecSources) -> Vec<SpecFile> {
    let text = std::fs::read_to_string(graph).ok();
    text.map(|text| SpecFile { name: graph.into(), text }).into_iter().collect()
}

/// Compiles a spec for a target by name, or that of the kind of device at hand. The files it was read from are added to what it came
/// from; those that are there already are taken as they are.
fn compile(
    from: SpecSources,
    target: Option<&str>,
    device: &dyn Device,
    how: (Purpose, Feed),
) -> Outcome<(Plan, SpecSources)> {
    let (plan, _, sources) = compile_all(from, target, device, how)?;
    Ok((plan, sources))
}

/// The same, with the pipeline that the spec names, which plans that do not train know nothing of.
pub(crate) fn compile_all(
    from: SpecSources,
    target_name: Option<&str>,
    device: &dyn Device,
    how: (Purpose, Feed),
) -> Outcome<(Plan, Option<Pipeline>, SpecSources)> {
    say_native(target_name, device);
    let Made { plan, pipeline, sources, warnings } = made(from, target_name, device, how)?;
    if let Some(warnings) = warnings {
        note!("{warnings}");
    }
    Ok((plan, pipeline, sources))
}

/// What a compilation makes.
struct Made {
    plan: Plan,
    pipeline: Option<Pipeline>,
    sources: SpecSources,
    /// As people read them.
    warnings: Option<String>,
}

/// Compiles without a word.
#[cfg(feature = "compile")]
fn made(
    from: SpecSources,
    target_name: Option<&str>,
    device: &dyn Device,
    (purpose, feed): (Purpose, Feed),
) -> Outcome<Made> {
    use alip_compiler::diag::{Diagnostics, SourceMap};
    use alip_compiler::training;
    use alip_compiler::{CompileOptions, SpecOptions, compile_spec, resolve};

    let mut compile = CompileOptions { target: target(target_name, device)?, ..Default::default() };
    compile.leave_out(&from.no_rule);
    compile.optimize.enabled = !from.no_egraph;
    let options = SpecOptions {
        spec: resolve::Options {
            batch: from.batch,
            set: from.set.clone(),
            files: from.files.clone(),
            ..Default::default()
        },
        data: from.data.clone(),
        feed: match feed {
            Feed::File => alip_compiler::Feed::Caller,
            Feed::Loader => alip_compiler::Feed::Loader,
        },
        keep: match purpose {
            Purpose::Train(keep) => training::Keep { grads: keep.grads, values: keep.outputs },
            Purpose::Inference => training::Keep::default(),
        },
        purpose: match purpose {
            Purpose::Train(_) => alip_compiler::Purpose::Train,
            Purpose::Inference => alip_compiler::Purpose::Inference,
        },
        compile,
    };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, &from.spec, &options)
        .map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
    // Who uses a model was told when it was trained.
    let warnings = if purpose == Purpose::Inference { Vec::new() } else { compiled.warnings };
    let warnings = Diagnostics::check((), warnings).err().map(|warnings| rendered(&warnings, &sources));
    // No pass was asked to be the last.
    let plan = compiled.plan.ok_or_else(|| Failure::message("the compiler made no plan"))?;
    let files = sources.files().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    Ok(Made { plan, pipeline: compiled.resolved.pipeline, sources: SpecSources { files, ..from }, warnings })
}

/// Says what the device's own limits are as a target, where that is asked for.
pub(crate) fn say_native(target: Option<&str>, device: &dyn Device) {
    if target == Some("native") {
        note!("target: {}", device.target().name);
    }
}

/// The target by name, which the device must be able to run; the device's own where none is named, for any machine.
#[cfg(feature = "compile")]
pub(crate) fn target(name: Option<&str>, device: &dyn Device) -> Outcome<Target> {
    let native = device.target();
    let Some(name) = name else { return Ok(native.portable()) };
    if name == "native" {
        return Ok(native);
    }
    let here = Target::all().into_iter().filter(|target| device.runs(target.kind));
    let names: Vec<String> = here.map(|target| target.name).collect();
    let fail = |why: &str| {
        Failure::message(format!("--target {name}: {why}the targets of this device are native, {}", names.join(", ")))
    };
    match Target::parse(name) {
        Ok(target) if device.runs(target.kind) => Ok(target),
        Err(why) if name.contains(':') => Err(fail(&format!("{why}; "))),
        _ => Err(fail("")),
    }
}

#[cfg(not(feature = "compile"))]
fn made(from: SpecSources, _: Option<&str>, _: &dyn Device, _: (Purpose, Feed)) -> Outcome<Made> {
    let why = "no such directory, and this program was built without the compiler (feature `compile`)";
    Err(Failure::message(format!("{}: {why}; give a directory that `alipc compile -o` wrote", from.spec)))
}

/// Diagnostics for people.
#[cfg(feature = "compile")]
pub(crate) fn rendered(
    diagnostics: &alip_compiler::diag::Diagnostics,
    sources: &alip_compiler::diag::SourceMap,
) -> String {
    use std::io::IsTerminal;
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    diagnostics.render(sources, color)
}

/// The pipeline of the plan's spec.
fn own(plan: &Plan) -> Outcome<Pipeline> {
    let why = "names no data; give a pipeline with --data, or `data:` in the spec";
    let own = plan.train.as_ref().and_then(|train| train.data.clone());
    own.ok_or_else(|| Failure::message(format!("graph `{}` {why}", plan.name)))
}

/// What to tell of data that are read in sequence.
pub(crate) fn order_of(source: &dyn SampleSource) -> Option<String> {
    source.sequence().map(|sequence| {
        let (shards, streams) = (sequence.shards(), sequence.streams());
        format!(
            "{shards} shards are read in sequence: their samples are mixed over at most {streams} streams and within windows of \
             each, which is no full shuffle"
        )
    })
}

/// A pipeline by path or name.
#[cfg(feature = "compile")]
pub(crate) fn named(name: &str) -> Outcome<Pipeline> {
    use alip_compiler::diag::SourceMap;
    use alip_compiler::resolve::resolve_pipeline;
    let mut sources = SourceMap::new();
    resolve_pipeline(&mut sources, name).map_err(|errors| Failure::rendered(rendered(&errors, &sources)))
}

#[cfg(not(feature = "compile"))]
pub(crate) fn named(name: &str) -> Outcome<Pipeline> {
    let why = "no such folder, and this program was built without the compiler, which reads pipelines";
    Err(Failure::message(format!("--data {name}: {why}")))
}

/// Whether a plan takes images in bytes.
fn reads_bytes(plan: &Plan) -> bool {
    let inputs = plan.programs.get(PROGRAM_TRAIN).into_iter().flat_map(|train| train.batch_inputs());
    inputs.into_iter().any(|(_, buffer)| buffer.dtype == DType::U8)
}

/// A pipeline as a plan takes from it: what its own pipeline delivers in bytes is normalised by the plan.
fn taken_by(plan: &Plan, pipeline: Pipeline) -> Outcome<Pipeline> {
    let Some(own) = plan.train.as_ref().and_then(|train| train.data.as_ref()) else { return Ok(pipeline) };
    let why = |why| format!("graph `{}` is compiled for its own pipeline: {why}; compile it with this one", plan.name);
    pipeline.like(own).map_err(|error| Failure::message(why(error)))
}

/// Whether a pipeline delivers what the plan's training step reads.
fn fits(plan: &Plan, pipeline: &Pipeline) -> Outcome<()> {
    let delivered = pipeline.check().map_err(Failure::message)?;
    let Some(train) = plan.programs.get(PROGRAM_TRAIN) else { return Ok(()) };
    for (name, buffer) in train.batch_inputs() {
        let wanted = format!("{} {:?}", buffer.dtype, buffer.shape.get(1..).unwrap_or_default());
        let found = delivered.get(name).map(|output| format!("{} {:?}", output.dtype, output.shape));
        if found.as_ref() != Some(&wanted) {
            let found = found.unwrap_or_else(|| "nothing".into());
            let what = format!("pipeline `{}` delivers {found} as `{name}`", pipeline.name);
            return Err(Failure::message(format!("{what}, but graph `{}` reads {wanted} per sample", plan.name)));
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "compile"))]
mod tests {
    use alip_runtime::data::Vocabularies;
    use alip_runtime::device::LoadedPlan;
    use alip_runtime::device::reference::Reference;
    use alip_runtime::run::{NewRun, RunInfo, Writer};

    use super::*;

    /// An adapter that allows less than what plans for others ask for.
    struct Narrow;

    impl Device for Narrow {
        fn name(&self) -> &'static str {
            "narrow"
        }
        fn description(&self) -> String {
            "an adapter".into()
        }
        fn target(&self) -> Target {
            Target { name: "narrow".into(), ..Target::cpu() }
        }
        fn summary(&self) -> String {
            self.description()
        }
        fn arithmetic(&self) -> String {
            self.description()
        }
        fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
            if plan.target.name == self.target().name {
                return Reference.load(plan);
            }
            let (what, device) = ("a memory segment in bytes".into(), self.name().into());
            Err(DeviceError::Limit { what, needed: 20, device, allowed: 10, limit: "max_buffer_size" })
        }
    }

    #[test]
    fn a_plan_of_another_adapter_is_compiled_again() {
        let spec = SpecSources { spec: "alip_tiny".into(), ..SpecSources::default() };
        let (plan, sources) = compile(spec, None, &Reference, (Purpose::Train(Keep::default()), Feed::Loader)).unwrap();
        let info = RunInfo::new(&plan, DeviceIdentity::of(&Reference), 1, 10, None);
        let folder = tempfile::tempdir().unwrap();
        let begin = |name: &str, sources: Option<&SpecSources>| {
            let new = NewRun { info: &info, plan: &plan, sources, vocabularies: &Vocabularies::default() };
            Writer::create(&folder.path().join(name), &new, 1).unwrap()
        };
        let of_spec = begin("of_spec", Some(&sources));
        assert_eq!(session_on(&of_spec, &Narrow).unwrap().plan().target.name, "narrow");
        assert_eq!(session_on(&of_spec, &Reference).unwrap().plan().target.name, "cpu");
        let of_plan = session_on(&begin("of_plan", None), &Narrow).err().unwrap().to_string();
        let why = "error: the run of `alip_tiny` was started from a compiled plan, so there is no spec to compile for another \
                   device; give the --device it was started on";
        assert_eq!(of_plan, why);
    }
}

//! What commands have in common: where plan, data and device come from.

use std::path::Path;

use alip_plan::pipeline::{Pipeline, Source};
use alip_plan::{PROGRAM_TRAIN, Plan, Target};
use alip_runtime::device::{self, Choice, DeviceOptions};
use alip_runtime::train::read_plan;

use crate::{Failure, Outcome};

/// Which model.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Name or path of a graph spec, or a directory with a plan that `alipc compile -o` wrote
    #[arg(value_name = "SPEC|PLAN")]
    pub(crate) spec: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    pub(crate) batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// What to compile for, in place of `cpu` or `wgpu`: `native` takes the limits of the device at hand and prints the target
    /// that they make, `cpu_mixed` stores bf16 and f16 where a spec asks for them
    #[arg(long, value_name = "NAME")]
    pub(crate) target: Option<String>,
    /// Do without a rewrite, rule or theme of rules
    #[arg(long, value_name = "NAME")]
    pub(crate) no_rule: Vec<String>,
    /// Do without the e-graph
    #[arg(long)]
    pub(crate) no_egraph: bool,
}

/// Which device.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// `auto` takes a hardware adapter, else cpu, and says which and why; `alip-run devices` lists them
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Threads of the cpu device; results do not depend on it
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

impl DeviceArgs {
    /// Opens the device and says on stderr which it is.
    pub(crate) fn open(&self) -> Outcome<Choice> {
        let choice = device::choose(&self.device, &DeviceOptions { threads: self.threads })?;
        note!("device: {}", choice.reason);
        Ok(choice)
    }
}

/// What `train` yields besides its metrics.
#[derive(Clone, Copy, Default)]
pub(crate) struct Keep {
    /// `grads.PATH`.
    pub(crate) grads: bool,
    /// `outputs.NAME`.
    pub(crate) outputs: bool,
}

impl ModelArgs {
    /// The plan in the directory, or of the spec compiled for a device, given as its native target.
    pub(crate) fn plan(&self, native: &Target, keep: Keep) -> Outcome<Plan> {
        self.plan_on(native, keep, None)
    }

    /// Plan and data: the spec's own pipeline, the same on the folder `data`, or the pipeline `data`.
    pub(crate) fn plan_and_data(&self, native: &Target, data: Option<&str>) -> Outcome<(Plan, Pipeline)> {
        let folder = data.filter(|data| Path::new(data).is_dir());
        let other = data.filter(|_| folder.is_none());
        let plan = self.plan_on(native, Keep::default(), other)?;
        let pipeline = match (folder, other) {
            (Some(folder), _) => on_folder(&plan, folder)?,
            (None, Some(name)) if self.is_plan() => {
                let pipeline = named(name)?;
                fits(&plan, &pipeline)?;
                pipeline
            }
            _ => own(&plan)?,
        };
        Ok((plan, pipeline))
    }

    fn is_plan(&self) -> bool {
        Path::new(&self.spec).is_dir()
    }

    fn plan_on(&self, native: &Target, keep: Keep, data: Option<&str>) -> Outcome<Plan> {
        if !self.is_plan() {
            return self.compile(native, keep, data);
        }
        let path = Path::new(&self.spec);
        let changed = self.batch.is_some() || !self.set.is_empty() || self.target.is_some();
        if changed || !self.no_rule.is_empty() || self.no_egraph {
            let why = "is compiled: --batch, --set, --target, --no-rule and --no-egraph are for specs; give them to \
                       `alipc compile` and compile again";
            return Err(Failure::message(format!("the plan in {} {why}", path.display())));
        }
        if keep.grads || keep.outputs {
            let why = "a compiled plan keeps neither gradients nor outputs; give the spec, or --dump params,metrics";
            return Err(Failure::message(format!("{}: {why}", path.display())));
        }
        Ok(read_plan(path)?)
    }

    /// A directory's or spec's last name, for what is named after it.
    pub(crate) fn stem(&self) -> String {
        let stem = Path::new(&self.spec).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        stem.unwrap_or_else(|| "run".into())
    }

    #[cfg(feature = "compile")]
    fn compile(&self, native: &Target, keep: Keep, data: Option<&str>) -> Outcome<Plan> {
        use alip_compiler::autodiff::update;
        use alip_compiler::diag::{Diagnostics, SourceMap};
        use alip_compiler::{CompileOptions, SpecOptions, compile_spec, resolve};

        let target = self.target(native)?;
        let mut compile = CompileOptions { target, ..Default::default() };
        compile.leave_out(&self.no_rule);
        compile.optimize.enabled = !self.no_egraph;
        let options = SpecOptions {
            spec: resolve::Options { batch: self.batch, set: self.set.clone(), ..Default::default() },
            data: data.map(str::to_string),
            keep: update::Keep { grads: keep.grads, values: keep.outputs },
            compile,
        };
        let mut sources = SourceMap::new();
        let compiled = compile_spec(&mut sources, &self.spec, &options)
            .map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
        if let Err(warnings) = Diagnostics::check((), compiled.warnings) {
            note!("{}", rendered(&warnings, &sources));
        }
        // No pass was asked to be the last.
        compiled.plan.ok_or_else(|| Failure::message("the compiler made no plan"))
    }

    /// The target by name, which the device must be able to run; that of its kind where none is named.
    #[cfg(feature = "compile")]
    fn target(&self, native: &Target) -> Outcome<Target> {
        let Some(name) = &self.target else { return Ok(native.portable()) };
        if name == "native" {
            note!("target: {}", native.name);
            return Ok(native.clone());
        }
        Target::named(name).filter(|target| target.kind == native.kind).ok_or_else(|| {
            let here = Target::all().into_iter().filter(|target| target.kind == native.kind);
            let names: Vec<String> = here.map(|target| target.name).collect();
            Failure::message(format!("--target {name}: the targets of this device are native, {}", names.join(", ")))
        })
    }

    #[cfg(not(feature = "compile"))]
    fn compile(&self, _: &Target, _: Keep, _: Option<&str>) -> Outcome<Plan> {
        let why = "no such directory, and this program was built without the compiler (feature `compile`)";
        Err(Failure::message(format!("{}: {why}; give a directory that `alipc compile -o` wrote", self.spec)))
    }
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
pub(crate) fn own(plan: &Plan) -> Outcome<Pipeline> {
    let why = "names no data; give a pipeline with --data, or `data:` in the spec";
    let own = plan.train.as_ref().and_then(|train| train.data.clone());
    own.ok_or_else(|| Failure::message(format!("graph `{}` {why}", plan.name)))
}

/// The pipeline of the plan's spec, on another folder.
pub(crate) fn on_folder(plan: &Plan, folder: &str) -> Outcome<Pipeline> {
    moved(own(plan)?, folder).map_err(|why| Failure::message(format!("graph `{}`: {why}", plan.name)))
}

/// A pipeline on another folder; the error says why it cannot be.
pub(crate) fn moved(mut pipeline: Pipeline, folder: &str) -> Result<Pipeline, String> {
    let Source::Folder { path, .. } = &mut pipeline.source else {
        let why = "reads no folder; give --data a pipeline whose source is `Folder`";
        return Err(format!("pipeline `{}` {why}", pipeline.name));
    };
    *path = std::path::absolute(folder).map_err(|error| error.to_string())?.to_string_lossy().into_owned();
    Ok(pipeline)
}

/// A pipeline by path or name.
#[cfg(feature = "compile")]
pub(crate) fn named(name: &str) -> Outcome<Pipeline> {
    use alip_compiler::diag::SourceMap;
    use alip_compiler::resolve::{Checked, check};
    let mut sources = SourceMap::new();
    match check(&mut sources, name, &Default::default()) {
        Ok(Checked::Pipeline(pipeline)) => Ok(pipeline),
        Ok(_) => Err(Failure::message(format!("{name}: this is no pipeline; give a file that holds `Pipeline(...)`"))),
        Err(errors) => Err(Failure::rendered(rendered(&errors, &sources))),
    }
}

#[cfg(not(feature = "compile"))]
pub(crate) fn named(name: &str) -> Outcome<Pipeline> {
    let why = "no such folder, and this program was built without the compiler, which reads pipelines";
    Err(Failure::message(format!("--data {name}: {why}")))
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

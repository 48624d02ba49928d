//! `alip-run bisect`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::ir::{Graph, NodeId, Shape, TensorType, Value, describe};
use alip_compiler::optimize::rule_names;
use alip_compiler::resolve::Resolved;
use alip_compiler::transform::packing::PACKING;
use alip_compiler::trust::rewritten::rewritten;
use alip_compiler::trust::trace::{Trace, name_of};
use alip_compiler::trust::{Values, judged};
use alip_compiler::{CompileOptions, SWITCHES, SpecOptions, compile_spec, resolve};
use alip_plan::bounds::F32;
use alip_plan::{PROGRAM_TRAIN, Plan, TargetKind};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{Moment, Session, Tensors};
use alip_runtime::tensor::{Data, HostTensor};
use alip_runtime::train::file::TensorFile;
use alip_runtime::train::replay;

use crate::model::{DeviceArgs, rendered};
use crate::{Failure, Outcome, bench};

/// Find the first operation of a training step that leaves its bound, and what is responsible
///
/// Compiles the graph twice, as it is and with something turned off, and takes one step with each. The graph that is scheduled
/// is held against the one written, both in f64; then every kernel against the interpreter, on what it really read, within
/// bounds on rounding that are derived for it. Batch and state are random unless files give them. Rows are not packed.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alip-run bisect alip_tiny --against no-fuse
  alip-run bisect alip_tiny --weights weights.safetensors --batches inputs.safetensors --device wgpu")]
pub(crate) struct Args {
    /// Name or path of a graph spec
    spec: String,
    /// What to turn off for the comparison
    #[arg(long, value_name = "NO-NAME", default_value = "no-fuse")]
    against: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Initial weights, as for `replay`
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Batches as for `replay`, of which the first is taken
    #[arg(long)]
    batches: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let names = || SWITCHES.iter().map(|switch| switch.name).collect::<Vec<_>>().join(", ");
    let Some(against) = SWITCHES.iter().find(|switch| switch.name == args.against) else {
        return Err(Failure::message(format!("--against {}: there is {}", args.against, names())));
    };
    let device = args.device.open()?.device;
    let kind = device.kind();
    drop(device);
    let whole = Build::new(args, kind, &|_| {})?;
    let less = Build::new(args, kind, &against.off)?;
    let data = Given::new(args, &whole)?;
    say!("{}: {} kernels, with {} {}", args.spec, whole.trace.steps.len(), against.name, less.trace.steps.len());

    let found = whole.first_wrong(args, &data)?;
    let other = less.first_wrong(args, &data)?;
    let Some(found) = found else {
        say!("every result is within its bound, and every kernel on its own");
        return match other {
            Some(wrong) => Err(Failure::message(format!("with {}, however:\n{}", against.name, wrong.text))),
            None => Ok(ExitCode::SUCCESS),
        };
    };
    say!("{}", found.text);
    let right =
        |change: &Change| -> Outcome<bool> { Ok(Build::new(args, kind, change)?.first_wrong(args, &data)?.is_none()) };
    let mut guilty = Vec::new();
    for switch in SWITCHES {
        let acquitted = if switch.name == against.name { other.is_none() } else { right(&switch.off)? };
        if acquitted {
            guilty.push(switch.name.to_string());
        }
    }
    if guilty.iter().any(|name| name == "no-egraph") {
        for (_, rule) in rule_names() {
            let without = |options: &mut CompileOptions| {
                options.optimize.without.insert(rule.to_string());
            };
            if right(&without)? {
                guilty.push(format!("no-rule {rule}"));
            }
        }
    }
    match guilty.as_slice() {
        [] => say!("responsible: the {} itself; nothing that can be turned off makes it right", found.guilty),
        names => say!("responsible: what {} turns off; everything is right without it", names.join(" or ")),
    }
    Ok(ExitCode::FAILURE)
}

/// What a compilation does otherwise.
type Change<'a> = dyn Fn(&mut CompileOptions) + 'a;

/// A wrong value, for people.
struct Wrong {
    text: String,
    /// `kernel` or `rewriting of the graph`.
    guilty: &'static str,
}

/// A compilation of the spec.
struct Build {
    options: CompileOptions,
    resolved: Resolved,
    sources: SourceMap,
    plan: Arc<Plan>,
    trace: Trace,
}

/// What a step is taken on.
struct Given {
    inputs: Tensors,
    state: Tensors,
}

impl Given {
    fn new(args: &Args, build: &Build) -> Outcome<Given> {
        let mut session = build.session(args)?;
        session.init(0)?;
        if let Some(path) = &args.weights {
            replay::load_weights(&mut session, path)?;
        }
        let inputs = match &args.batches {
            Some(path) => replay::batch(&build.plan, &mut TensorFile::open(path)?, 0)?,
            None => bench::synthetic(&build.plan)?,
        };
        let mut state = Tensors::new();
        for tensor in &build.plan.state {
            state.insert(tensor.path.clone(), session.read_state(&tensor.path)?);
        }
        Ok(Given { inputs, state })
    }
}

impl Build {
    fn new(args: &Args, kind: TargetKind, change: &Change<'_>) -> Outcome<Build> {
        let target = match kind {
            TargetKind::Cpu => alip_plan::Target::cpu(),
            TargetKind::Wgpu => alip_plan::Target::wgpu(),
            TargetKind::Cuda => return Err(Failure::message("this version compiles for cpu and wgpu")),
        };
        let mut compile = CompileOptions { target, explain: true, ..CompileOptions::default() };
        // One program stands for `train`; which rows are computed is not what is under suspicion.
        compile.transform.disabled.0.insert(PACKING.into());
        change(&mut compile);
        let spec = resolve::Options { batch: args.batch, set: args.set.clone(), ..Default::default() };
        let options = SpecOptions { spec, compile: compile.clone(), ..SpecOptions::default() };
        let mut sources = SourceMap::new();
        let mut compiled = compile_spec(&mut sources, &args.spec, &options)
            .map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
        let missing = || Failure::message(format!("graph `{}` does not train", args.spec));
        let trace = compiled.traces.remove(PROGRAM_TRAIN).ok_or_else(missing)?;
        let plan = Arc::new(compiled.plan.ok_or_else(missing)?);
        Ok(Build { options: compile, resolved: compiled.resolved, sources, plan, trace })
    }

    fn session(&self, args: &Args) -> Outcome<Session> {
        let choice = choose(&args.device.device, &DeviceOptions { threads: args.device.threads })?;
        Ok(Session::new(Arc::clone(&self.plan), choice.device)?)
    }

    fn first_wrong(&self, args: &Args, data: &Given) -> Outcome<Option<Wrong>> {
        if let Some(wrong) = self.wrong_graph(data)? {
            return Ok(Some(wrong));
        }
        self.wrong_kernel(args, data)
    }

    /// The first node of the program that the passes before the schedule change.
    fn wrong_graph(&self, data: &Given) -> Outcome<Option<Wrong>> {
        let model = &self.resolved.model;
        let Some(plain) = model.programs.get(PROGRAM_TRAIN) else { return Ok(None) };
        let (inputs, state) = (values(&data.inputs), values(&data.state));
        let found = rewritten(model, PROGRAM_TRAIN, &self.options, &inputs, &state);
        let found = found.map_err(|errors| self.failed(&errors))?;
        Ok(found.map(|found| {
            let (name, how) = &found.result;
            let node = match found.node {
                Some(node) => self.place(plain, node),
                None => "no node is wrong alone".into(),
            };
            let text =
                format!("the graph that is scheduled means something else\n  node    {node}\n  so that `{name}` {how}");
            Wrong { text, guilty: "rewriting of the graph" }
        }))
    }

    /// The first node, in the order of the graph, that a kernel computes wrongly from what it read.
    fn wrong_kernel(&self, args: &Args, data: &Given) -> Outcome<Option<Wrong>> {
        let mut session = self.session(args)?;
        for (path, tensor) in &data.state {
            session.write_state(path, tensor)?;
        }
        let last = self.trace.last_writers();
        let (mut given, mut wrong) = (BTreeMap::<NodeId, Values>::new(), Vec::new());
        let mut read_before = Values::new();
        session.observe(PROGRAM_TRAIN, &data.inputs, |step, moment, read| -> Outcome<()> {
            let Some(traced) = self.trace.steps.get(step) else { return Ok(()) };
            if moment == Moment::Before {
                read_before.clear();
                for (buffer, id) in &traced.reads {
                    read_before.insert(name_of(*id), self.value(*id, &read(*buffer)?));
                }
                return Ok(());
            }
            // A value that several steps write is judged by all that they have read.
            let (mut from, mut to) = (Values::new(), Values::new());
            for (buffer, id) in &traced.writes {
                let all = given.entry(*id).or_default();
                all.extend(read_before.iter().map(|(name, value)| (name.clone(), value.clone())));
                if last.get(id) == Some(&step) {
                    from.extend(given.remove(id).unwrap_or_default());
                    to.insert(name_of(*id), self.value(*id, &read(*buffer)?));
                }
            }
            wrong.extend(self.judge(step, &from, &to)?);
            Ok(())
        })?;
        wrong.sort_by_key(|(node, _)| *node);
        let count = wrong.len();
        Ok(wrong.into_iter().next().map(|(_, text)| {
            let more = if count > 1 { format!("\n  and {} more values of kernels", count - 1) } else { String::new() };
            Wrong { text: format!("a kernel leaves its bound\n{text}{more}"), guilty: "kernel" }
        }))
    }

    /// The values of a step that are not what the interpreter makes of what it read.
    fn judge(&self, step: usize, from: &Values, to: &Values) -> Outcome<Vec<(NodeId, String)>> {
        let ids = |values: &Values| -> BTreeSet<NodeId> {
            values.keys().filter_map(|name| name.get(1..)?.parse().ok().map(NodeId)).collect()
        };
        let failed = |errors: Diagnostics| self.failed(&errors);
        let (part, between) = self.trace.part(&ids(from), &ids(to)).map_err(failed)?;
        let from: Values = from
            .iter()
            .filter(|(name, _)| part.inputs.contains_key(*name))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        let expected = judged(&part, &from, &Values::new(), F32).map_err(failed)?;
        let mut wrong = Vec::new();
        for id in ids(to) {
            let name = name_of(id);
            let (Some(expected), Some(actual)) = (expected.get(&name), to.get(&name)) else { continue };
            let Err(how) = expected.admits(&actual.data) else { continue };
            let computes: Vec<&str> = between.iter().map(|id| self.trace.graph.node(*id).op.name()).collect();
            let place = self.place(&self.trace.graph, id);
            wrong.push((id, format!("  node    {place}\n  value   {how}\n  kernel  {step}: {}", computes.join(", "))));
        }
        Ok(wrong)
    }

    /// A node with its application and its line in a spec.
    fn place(&self, graph: &Graph, id: NodeId) -> String {
        let origin = graph.origin(id);
        let line = origin.span.map_or_else(String::new, |span| format!(" at {}", self.sources.place(span)));
        let path = if origin.path.is_empty() { "the graph itself" } else { &origin.path };
        format!("{} {} of {path}{line}", name_of(id), describe(graph, id))
    }

    fn value(&self, id: NodeId, tensor: &HostTensor) -> Value {
        Value::new(self.trace.graph.ty(id).clone(), numbers(tensor))
    }

    fn failed(&self, errors: &Diagnostics) -> Failure {
        Failure::rendered(rendered(errors, &self.sources))
    }
}

fn numbers(tensor: &HostTensor) -> Vec<f64> {
    match tensor.data() {
        Data::I32(values) => values.iter().map(|x| f64::from(*x)).collect(),
        Data::Bool(values) => values.iter().map(|x| f64::from(*x)).collect(),
        _ => tensor.to_f32().iter().map(|x| f64::from(*x)).collect(),
    }
}

fn values(tensors: &Tensors) -> Values {
    let value = |(name, tensor): (&String, &HostTensor)| {
        let ty = TensorType::new(tensor.dtype(), tensor.shape().iter().copied().collect::<Shape>());
        (name.clone(), Value::new(ty, numbers(tensor)))
    };
    tensors.iter().map(value).collect()
}

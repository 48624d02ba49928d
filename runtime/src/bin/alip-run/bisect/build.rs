//! A compilation under suspicion, and the three ways to judge it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::ir::{Graph, Model, NodeId, Shape, TensorType, Value, describe};
use alip_compiler::training::Keep;
use alip_compiler::transform::{self, Disabled};
use alip_compiler::trust::forward::Written;
use alip_compiler::trust::rewritten::{changed, rewritten};
use alip_compiler::trust::rows::{Chosen, chosen};
use alip_compiler::trust::trace::{Trace, name_of};
use alip_compiler::trust::{Values, judged};
use alip_compiler::{CompileOptions, CompiledSpec, SpecOptions, compile_spec, resolve};
use alip_plan::bounds::F32;
use alip_plan::{PROGRAM_TRAIN, Plan, Target};
use alip_runtime::exec::{Moment, Session, Tensors};
use alip_runtime::run::tensors::TensorFile;
use alip_runtime::tensor::{Data, HostTensor};
use alip_runtime::train::replay;

use super::Args;
use crate::model::rendered;
use crate::{Failure, Outcome, bench};

/// What a compilation does otherwise.
pub(super) type Change<'a> = dyn Fn(&mut CompileOptions) + 'a;

/// What is judged, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Lifting, rewrites of the whole graph, packing: before differentiation.
    Forward,
    /// From the differentiated program to the graph that is scheduled.
    Graph,
    /// What kernels compute.
    Kernel,
}

impl Stage {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::Forward => "rewriting of the whole graph",
            Stage::Graph => "rewriting of the graph",
            Stage::Kernel => "kernel",
        }
    }
}

/// A wrong value, for people.
pub(super) struct Wrong {
    pub(super) text: String,
    pub(super) stage: Stage,
}

/// What a step is taken on, and what it must yield.
pub(super) struct Given {
    inputs: Tensors,
    state: Tensors,
    /// The same for the interpreter.
    values: (Values, Values),
    /// The step as written, without any rewriting.
    model: Model,
    sources: SourceMap,
    written: Written,
}

impl Given {
    pub(super) fn new(args: &Args, build: &Build) -> Outcome<Given> {
        let mut session = build.session(args)?;
        session.init(0)?;
        if let Some(path) = &args.weights {
            replay::load_weights(&mut session, path)?;
        }
        let inputs = match &args.batches {
            Some(path) => replay::batch(&build.plan, &mut TensorFile::open(path)?, 0)?,
            None => bench::synthetic(&build.plan, bench::Texts::Captions)?,
        };
        let mut state = Tensors::new();
        for tensor in &build.plan.state {
            state.insert(tensor.path.clone(), session.read_state(&tensor.path)?);
        }
        let values = (values(&inputs), values(&state));
        let nothing = transform::Options { lift: false, disabled: Disabled::all() };
        let (model, sources) = rewritten_model(args, &nothing)?;
        let written = match model.programs.get(PROGRAM_TRAIN) {
            Some(graph) => Written::new(graph, &values.0, &values.1),
            None => return Err(untrained(args)),
        };
        let written = written.map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
        Ok(Given { inputs, state, values, model, sources, written })
    }
}

impl Given {
    /// What the step as written makes of batch and state that is not finite, if anything is.
    pub(super) fn nonfinite(&self) -> Option<String> {
        let (node, name, number) = self.written.first_nonfinite()?;
        let graph = self.model.programs.get(PROGRAM_TRAIN)?;
        Some(format!(
            "nothing computes anything wrong, but the step as written is not finite on this batch and state, so what depends on \
             it was not compared\n  value   `{name}` is {number}\n  node    {}",
            place(graph, &self.sources, node)
        ))
    }
}

fn untrained(args: &Args) -> Failure {
    Failure::message(format!("graph `{}` does not train", args.spec))
}

fn compiled(args: &Args, compile: &CompileOptions, keep: Keep) -> Outcome<(CompiledSpec, SourceMap)> {
    let spec = resolve::Options { batch: args.batch, set: args.set.clone(), ..Default::default() };
    let options = SpecOptions { spec, compile: compile.clone(), keep, ..SpecOptions::default() };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, &args.spec, &options)
        .map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
    Ok((compiled, sources))
}

/// The step as rewriting leaves it, with all that there is to compare among its outputs.
fn rewritten_model(args: &Args, transform: &transform::Options) -> Outcome<(Model, SourceMap)> {
    let stop_after = Some("model".to_owned());
    let compile = CompileOptions { transform: transform.clone(), stop_after, ..CompileOptions::default() };
    let (compiled, sources) = compiled(args, &compile, Keep { grads: true, values: true })?;
    Ok((compiled.model, sources))
}

/// A compilation of the spec.
pub(super) struct Build {
    options: CompileOptions,
    model: Model,
    sources: SourceMap,
    plan: Arc<Plan>,
    /// Of each program that `train` is one of by number of rows.
    traces: BTreeMap<String, Trace>,
    /// Rules of the e-graph that were used.
    pub(super) rules: BTreeSet<&'static str>,
}

impl Build {
    pub(super) fn new(args: &Args, target: &Target, change: &Change<'_>) -> Outcome<Build> {
        let target = target.clone();
        let mut options = CompileOptions { target, explain: true, ..CompileOptions::default() };
        change(&mut options);
        let (compiled, sources) = compiled(args, &options, Keep::default())?;
        let rules = compiled.optimized.programs.iter().flat_map(|(_, report)| report.fired.keys().copied()).collect();
        let CompiledSpec { model, plan, traces, .. } = compiled;
        let plan = Arc::new(plan.ok_or_else(|| untrained(args))?);
        Ok(Build { options, model, sources, plan, traces, rules })
    }

    fn session(&self, args: &Args) -> Outcome<Session> {
        Ok(Session::new(Arc::clone(&self.plan), args.device.choose(None)?.device)?)
    }

    /// The program that the batch runs, and what its steps read and write.
    fn ran(&self, data: &Given) -> Outcome<(Chosen<'_>, &Trace)> {
        let chosen = chosen(&self.model, PROGRAM_TRAIN, &data.values.0).map_err(|errors| self.failed(&errors))?;
        let missing = || Failure::message(format!("the plan has no program `{}`", chosen.name));
        let trace = self.traces.get(&chosen.name).ok_or_else(missing)?;
        Ok((chosen, trace))
    }

    /// Kernels of the step, and the rows it has if it is packed.
    pub(super) fn kernels(&self, data: &Given) -> Outcome<String> {
        let (chosen, trace) = self.ran(data)?;
        let rows: Vec<String> = chosen.rows.iter().map(u64::to_string).collect();
        let rows = if rows.is_empty() { String::new() } else { format!(" over {} packed rows", rows.join(" + ")) };
        Ok(format!("{} kernels{rows}", trace.steps.len()))
    }

    /// The first wrong value of the first stage that has one.
    pub(super) fn first_wrong(&self, args: &Args, data: &Given) -> Outcome<Option<Wrong>> {
        for stage in [Stage::Forward, Stage::Graph, Stage::Kernel] {
            let wrong = match stage {
                Stage::Forward => self.wrong_forward(args, data)?,
                Stage::Graph => self.wrong_graph(data)?,
                Stage::Kernel => self.wrong_kernel(args, data)?,
            };
            if wrong.is_some() {
                return Ok(wrong);
            }
        }
        Ok(None)
    }

    /// Whether anything is wrong at a stage; where is not looked for.
    pub(super) fn is_wrong_at(&self, stage: Stage, args: &Args, data: &Given) -> Outcome<bool> {
        match stage {
            Stage::Forward => Ok(self.wrong_forward(args, data)?.is_some()),
            Stage::Graph => {
                let (chosen, _) = self.ran(data)?;
                let found = changed(&self.model, chosen.graph, &self.options, &chosen.inputs, &data.values.1);
                Ok(found.map_err(|errors| self.failed(&errors))?.is_some())
            }
            Stage::Kernel => Ok(self.wrong_kernel(args, data)?.is_some()),
        }
    }

    /// The first value, in the order of the step as written, that rewriting the whole graph changes.
    fn wrong_forward(&self, args: &Args, data: &Given) -> Outcome<Option<Wrong>> {
        let (model, sources) = rewritten_model(args, &self.options.transform)?;
        let failed = |errors: Diagnostics| Failure::rendered(rendered(&errors, &sources));
        let chosen = chosen(&model, PROGRAM_TRAIN, &data.values.0).map_err(failed)?;
        let changed = data.written.first_changed(chosen.graph, &chosen.inputs, &data.values.1).map_err(failed)?;
        Ok(changed.map(|changed| {
            let node = match data.model.programs.get(PROGRAM_TRAIN) {
                Some(graph) => place(graph, &data.sources, changed.node),
                None => name_of(changed.node),
            };
            let text = format!(
                "the step that is differentiated means something else than the one written\n  value   `{}` {}\n  node    {node}",
                changed.name, changed.how
            );
            Wrong { text, stage: Stage::Forward }
        }))
    }

    /// The first node of the program that the passes before the schedule change.
    fn wrong_graph(&self, data: &Given) -> Outcome<Option<Wrong>> {
        let (chosen, _) = self.ran(data)?;
        let plain = chosen.graph;
        let found = rewritten(&self.model, plain, &self.options, &chosen.inputs, &data.values.1);
        let found = found.map_err(|errors| self.failed(&errors))?;
        Ok(found.map(|found| {
            let (name, how) = &found.result;
            let node = match found.node {
                Some(node) => place(plain, &self.sources, node),
                None => "no node is wrong alone".into(),
            };
            let text =
                format!("the graph that is scheduled means something else\n  node    {node}\n  so that `{name}` {how}");
            Wrong { text, stage: Stage::Graph }
        }))
    }

    /// The first node, in the order of the graph, that a kernel computes wrongly from what it read.
    fn wrong_kernel(&self, args: &Args, data: &Given) -> Outcome<Option<Wrong>> {
        let (_, trace) = self.ran(data)?;
        let mut session = self.session(args)?;
        for (path, tensor) in &data.state {
            session.write_state(path, tensor)?;
        }
        let last = trace.last_writers();
        let (mut given, mut wrong) = (BTreeMap::<NodeId, Values>::new(), Vec::new());
        let mut read_before = Values::new();
        session.observe(PROGRAM_TRAIN, &data.inputs, |step, moment, read| -> Outcome<()> {
            let Some(traced) = trace.steps.get(step) else { return Ok(()) };
            if moment == Moment::Before {
                read_before.clear();
                for (buffer, id) in &traced.reads {
                    read_before.insert(name_of(*id), value(trace, *id, &read(*buffer)?));
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
                    to.insert(name_of(*id), value(trace, *id, &read(*buffer)?));
                }
            }
            wrong.extend(self.judge(trace, step, &from, &to)?);
            Ok(())
        })?;
        wrong.sort_by_key(|(node, _)| *node);
        let count = wrong.len();
        Ok(wrong.into_iter().next().map(|(_, text)| {
            let more = if count > 1 { format!("\n  and {} more values of kernels", count - 1) } else { String::new() };
            Wrong { text: format!("a kernel leaves its bound\n{text}{more}"), stage: Stage::Kernel }
        }))
    }

    /// The values of a step that are not what the interpreter makes of what it read.
    fn judge(&self, trace: &Trace, step: usize, from: &Values, to: &Values) -> Outcome<Vec<(NodeId, String)>> {
        let ids = |values: &Values| -> BTreeSet<NodeId> {
            values.keys().filter_map(|name| name.get(1..)?.parse().ok().map(NodeId)).collect()
        };
        let failed = |errors: Diagnostics| self.failed(&errors);
        let (part, between) = trace.part(&ids(from), &ids(to)).map_err(failed)?;
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
            let computes: Vec<&str> = between.iter().map(|id| trace.graph.node(*id).op.name()).collect();
            let place = place(&trace.graph, &self.sources, id);
            wrong.push((id, format!("  node    {place}\n  value   {how}\n  kernel  {step}: {}", computes.join(", "))));
        }
        Ok(wrong)
    }

    fn failed(&self, errors: &Diagnostics) -> Failure {
        Failure::rendered(rendered(errors, &self.sources))
    }
}

/// A node with its application and its line in a spec.
fn place(graph: &Graph, sources: &SourceMap, id: NodeId) -> String {
    let origin = graph.origin(id);
    let line = origin.span.map_or_else(String::new, |span| format!(" at {}", sources.place(span)));
    let path = if origin.path.is_empty() { "the graph itself" } else { &origin.path };
    format!("{} {} of {path}{line}", name_of(id), describe(graph, id))
}

fn value(trace: &Trace, id: NodeId, tensor: &HostTensor) -> Value {
    Value::new(trace.graph.ty(id).clone(), numbers(tensor))
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

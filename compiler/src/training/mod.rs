//! From the forward part of `train` to a training step: gradients, clipping, schedule, optimiser, averages, metrics.
//!
//! - The schedule and the optimiser are modules of the language. A schedule is applied to `step` and `total_steps` (F32 []);
//!   its outputs, `lr` among them, are inputs of the optimiser by name, or take the place of the optimiser's arguments of the
//!   same name (so that one_cycle's beta1 replaces adamw's). The optimiser is applied to each parameter `w` and its clipped
//!   gradient `g`, and yields the new parameter; its state `m` for the parameter `PATH` is `optimizer.m.PATH`.
//! - Then come the parameter's clamp and its average, `average.PATH`.
//! - A step whose loss or gradient norm is not finite leaves all state as it was, but for the loss scale ([`guard`]).
//! - Frozen parameters, and those without a path to the loss, are not touched.

mod guard;
mod loss_scale;
mod untrained;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use alip_plan::Evaluate;
use alip_plan::{PROGRAM_TRAIN, STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS, StateKind, TrainInfo};

use self::loss_scale::objective;
use self::untrained::no_gradients;
use crate::autodiff::gradients_in;
use crate::diag::{Diagnostic, Diagnostics, Span};
use crate::ir::{DType, Graph, Model, Names, NodeId, TensorType};
use crate::ops::ReduceKind;
use crate::parallel;
use crate::resolve::training::{
    Entry, Evaluator, Frame, Given, Group, GroupValue, Init, Instance, Library, Mode, Place, Result, States, Template,
    Top, Value, decl, scalar, starts, wrong_kind,
};
use crate::resolve::{LOSS, Resolved};
use crate::spec::{EvaluateSpec, Expr, GraphSpec, ModuleSpec, Spanned, TrainSpec};

/// What `train` yields besides its metrics, for comparisons with other programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// `grads.PATH`: gradients before clipping.
    pub grads: bool,
    /// `outputs.NAME`: named values of the body, those of its parts as `outputs.PART.NAME`.
    pub values: bool,
}

/// A parameter that is trained.
pub(super) struct Param {
    path: String,
    node: NodeId,
    group: Group,
    pub(super) grad: NodeId,
}

/// A model whose `train` is a training step: the stage after the rewrites, and what is compiled.
#[derive(Debug)]
pub struct Training {
    /// Its programs over the state that a step keeps.
    pub model: Model,
    /// What the training loop must know; none for a graph that does not train.
    pub info: Option<TrainInfo>,
    /// What is odd but not wrong.
    pub warnings: Vec<Diagnostic>,
}

/// Makes `train` of its forward part in `model`; nothing happens to a graph that does not train. Programs for fewer rows
/// become steps over the same state.
///
/// # Errors
/// A loss, optimiser or schedule that is missing or does not fit; a group that selects nothing; a metric that is wrong.
pub fn training_step(resolved: &Resolved, model: Model, keep: Keep) -> Result<Training, Diagnostics> {
    training_step_in(resolved, model, keep, DType::F32)
}

/// The same where the products of its forward part are of a type of 16 bits ([`crate::transform::precision`]), to which gradients
/// of what was rounded are rounded too.
///
/// # Errors
/// As [`training_step`].
pub fn training_step_in(resolved: &Resolved, model: Model, keep: Keep, low: DType) -> Result<Training, Diagnostics> {
    let Resolved { spec, module, instance, library, states, .. } = resolved;
    let mut training = Training { model, info: None, warnings: Vec::new() };
    let Some(train) = &spec.train else { return Ok(training) };
    let model = &mut training.model;
    let forward: Vec<Graph> = model.all_of_mut(PROGRAM_TRAIN).map(std::mem::take).collect();
    let top = Top { spec, module, instance };
    // Each begins with the states as they are, and adds the same.
    let steps = parallel::map(forward, |graph| step(top, library, states.clone(), (graph, low), train, keep));
    let mut steps = steps.into_iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(Step { graph, loss, states, warnings }) = steps.first_mut() {
        let info = info(graph, *loss, train, resolved.batch);
        let start = starts(train, library, model)?;
        let evaluate = train.evaluate.as_ref().map(|spec| evaluated(spec, library));
        if let (Some(average), None) = (train.evaluate.as_ref().and_then(|spec| spec.average), &train.ema)
            && average.node
        {
            let error = Diagnostic::error("averages of the weights are to be measured, and none are kept");
            return Err(error.label(average.span, "").help("keep them: `ema: (decay: 0.999)`").into());
        }
        training.info = info.map(|info| TrainInfo { data: resolved.pipeline.clone(), start, evaluate, ..info });
        training.warnings = std::mem::take(warnings);
        model.state = states.decls();
        let init = states.init_program()?;
        model.programs.insert(init.name.clone(), init);
    }
    for (program, step) in model.all_of_mut(PROGRAM_TRAIN).zip(steps) {
        *program = step.graph;
    }
    Ok(training)
}

/// A training step, and the states it needs.
struct Step {
    graph: Graph,
    loss: NodeId,
    states: States,
    warnings: Vec<Diagnostic>,
}

/// Adds gradients and update to a forward program.
fn step(
    top: Top<'_>,
    library: &Library,
    mut states: States,
    (mut graph, low): (Graph, DType),
    train: &TrainSpec,
    keep: Keep,
) -> Result<Step, Diagnostics> {
    let Some(loss) = graph.values.get(LOSS).copied() else {
        return Err(missing(train, "loss", "`loss: \"loss\"`, the scalar that is minimised").into());
    };
    let mut warnings = Vec::new();
    let params = trained(top.spec, &mut states, &mut warnings, (&mut graph, low), train, loss)?;
    // A selector as wide as `*` means the model's statistics, not the moments and the loss scale of the step.
    states.groups = Default::default();
    let mut frame = top.frame(Some(Mode::Train));
    frame.values.extend(graph.values.iter().map(|(name, id)| (name.clone(), Value::Tensor(*id))));
    (frame.path, frame.module, frame.equation) = ("train".into(), "train".into(), "train".into());
    let evaluator = Evaluator::new(library, &mut states, graph, Mode::Train);
    let mut update = Update { evaluator, frame, train, top, keep, warnings };
    let built = update.build(loss, params);
    let Update { mut evaluator, warnings, .. } = update;
    match built {
        Ok(()) => {
            let graph = evaluator.graph;
            Ok(Step { graph, loss, states, warnings })
        }
        Err(error) => Err(evaluator.explain(error).into()),
    }
}

/// What the training loop must know, but for the data.
fn info(graph: &Graph, loss: NodeId, train: &TrainSpec, batch: Option<u64>) -> Option<TrainInfo> {
    let metric = |name: &&String| !name.starts_with("grads.") && !name.starts_with("outputs.");
    let (name, _) = graph.outputs.iter().find(|(_, node)| **node == loss)?;
    Some(TrainInfo {
        batch: batch.unwrap_or(1),
        epochs: train.epochs.map_or(1.0, |epochs| epochs.node as f64),
        loss: name.clone(),
        metrics: graph.outputs.keys().filter(metric).cloned().collect(),
        data: None,
        evaluate: None,
        start: Vec::new(),
    })
}

/// When the model is measured on the way. Files are seen from the folder of the spec that names them; what begins with an
/// environment variable is a place of its own.
fn evaluated(spec: &EvaluateSpec, library: &Library) -> Evaluate {
    let seen = |text: &Spanned<String>| library.seen_from(text.span.source, &text.node).to_string_lossy().into_owned();
    let EvaluateSpec { every, suite, data, best, average, .. } = spec;
    let is_file = |suite: &Spanned<String>| suite.node.ends_with(".ron");
    Evaluate {
        every: every.node,
        suite: suite.as_ref().map(|suite| if is_file(suite) { seen(suite) } else { suite.node.clone() }),
        data: data.as_ref().map(|data| if data.node.starts_with("${") { data.node.clone() } else { seen(data) }),
        best: best.as_ref().map(|best| best.node.clone()),
        average: average.is_some_and(|average| average.node),
    }
}

/// The parameters that are trained, with their gradients.
fn trained(
    spec: &GraphSpec,
    states: &mut States,
    warnings: &mut Vec<Diagnostic>,
    (graph, low): (&mut Graph, DType),
    train: &TrainSpec,
    loss: NodeId,
) -> Result<Vec<Param>, Diagnostics> {
    let reads = crate::resolve::training::reads(graph);
    let groups = states.groups.clone();
    let of_kind = |states: &States, kind| {
        let entries = states.entries.iter().filter(move |(_, entry)| entry.decl.kind == kind);
        entries.map(|(path, _)| path.clone()).collect::<Vec<_>>()
    };
    let (params, buffers) = (of_kind(states, StateKind::Param), of_kind(states, StateKind::Buffer));
    let of_part = |part: &str| {
        let inside = |entry: &Entry| entry.decl.origin.path.split(['.', '#']).next() == Some(part);
        let entries = states.entries.iter().filter(|(_, entry)| entry.decl.kind == StateKind::Param && inside(entry));
        entries.map(|(path, _)| path.clone()).collect()
    };
    let (errors, odd) = groups.check(&params, &buffers, of_part);
    Diagnostics::check((), errors)?;
    warnings.extend(odd);
    let mut found: Vec<(String, NodeId, Group)> = Vec::new();
    let mut untrained: Vec<String> = Vec::new();
    for (path, entry) in &mut states.entries {
        if entry.decl.kind != StateKind::Param {
            continue;
        }
        let group = groups.of(path);
        entry.decl.frozen = group.freeze;
        match reads.get(path) {
            Some(node) if !group.freeze => found.push((path.clone(), *node, group)),
            None if !group.freeze => untrained.push(path.clone()),
            _ => {}
        }
    }
    let nodes: Vec<NodeId> = found.iter().map(|(_, node, _)| *node).collect();
    let objective = objective(graph, loss, train)?;
    let grads = gradients_in(graph, objective, &nodes, low)?;
    let mut params = Vec::new();
    for ((path, node, group), grad) in found.into_iter().zip(grads) {
        match grad {
            Some(grad) => params.push(Param { path, node, group, grad }),
            None => untrained.push(path),
        }
    }
    warnings.extend(no_gradients(spec, states, &untrained));
    if params.is_empty() {
        return Err(Diagnostic::error("no parameter is trained")
            .label(train.span, "")
            .help("is everything frozen, or does the loss not depend on a parameter?")
            .into());
    }
    Ok(params)
}

pub(super) struct Update<'a> {
    pub(super) evaluator: Evaluator<'a>,
    /// What expressions of `train` see: the graph's values.
    frame: Frame,
    pub(super) train: &'a TrainSpec,
    top: Top<'a>,
    keep: Keep,
    warnings: Vec<Diagnostic>,
}

impl Update<'_> {
    fn build(&mut self, loss: NodeId, mut params: Vec<Param>) -> Result<()> {
        let scale = self.loss_scale();
        if let Some(scale) = scale {
            self.unscale(scale, &mut params)?;
        }
        let params = params.as_slice();
        if self.keep.grads {
            let grads = params.iter().map(|param| (format!("grads.{}", param.path), param.grad));
            self.evaluator.graph.outputs.extend(grads);
        }
        let step = self.counter(STATE_STEP, Init::Constant(0.0))?;
        let total = self.counter(STATE_TOTAL_STEPS, Init::Constant(0.0))?;
        self.counter(STATE_SEED, Init::Seed)?;
        let span = self.train.span;
        let as_f32 = |update: &mut Self, id| update.emit(span, |builder| builder.cast(id, DType::F32));
        let mut known: BTreeMap<String, Value> = BTreeMap::new();
        known.insert("step".into(), Value::Tensor(as_f32(self, step)?));
        known.insert("total_steps".into(), Value::Tensor(as_f32(self, total)?));
        let (norm, coef) = self.clip(params)?;
        let scheduled = self.schedule(&known)?;
        known.extend(scheduled.iter().map(|(name, value)| (name.clone(), value.clone())));
        self.optimize(params, coef, &known, &scheduled)?;
        self.averages(step)?;
        let next = self.emit(span, |builder| {
            let one = builder.constant(1.0, DType::I32)?;
            builder.add(step, one)
        })?;
        self.evaluator.graph.updates.insert(STATE_STEP.into(), next);
        self.guard(loss, norm)?;
        known.insert("grad_norm".into(), Value::Tensor(norm));
        known.insert("loss_scale".into(), scale.map_or(Value::Float(1.0), Value::Tensor));
        known.insert("clip_coef".into(), coef.map_or(Value::Float(1.0), Value::Tensor));
        self.metrics(loss, known)
    }

    pub(super) fn emit<T>(
        &mut self,
        span: Span,
        build: impl FnOnce(&mut crate::ir::Builder<'_>) -> Result<T, crate::ops::OpError>,
    ) -> Result<T> {
        self.evaluator.emit(&self.frame, span, build)
    }

    /// A state of the step itself, I32 [].
    fn counter(&mut self, path: &str, init: Init) -> Result<NodeId> {
        self.evaluator.step_state(&self.frame, path, init, self.train.span)
    }

    /// The norm of all gradients together, and the factor that bounds it.
    fn clip(&mut self, params: &[Param]) -> Result<(NodeId, Option<NodeId>)> {
        let bound = self.train.clip_grad_norm;
        self.emit(self.train.span, |builder| {
            let mut sum = None;
            for param in params {
                let square = builder.mul(param.grad, param.grad)?;
                let axes: Vec<usize> = (0..builder.graph.shape(square).rank()).collect();
                let part = builder.reduce(ReduceKind::Sum, square, &axes, false)?;
                sum = Some(match sum {
                    Some(sum) => builder.add(sum, part)?,
                    None => part,
                });
            }
            let sum = match sum {
                Some(sum) => sum,
                None => builder.scalar(0.0)?,
            };
            let norm = builder.sqrt(sum)?;
            let Some(bound) = bound else { return Ok((norm, None)) };
            // As torch.nn.utils.clip_grad_norm_, which keeps a zero norm from dividing by zero.
            let (bound, eps, one) = (builder.scalar(bound.node)?, builder.scalar(1e-6)?, builder.scalar(1.0)?);
            let safe = builder.add(norm, eps)?;
            let ratio = builder.div(bound, safe)?;
            Ok((norm, Some(builder.min(one, ratio)?)))
        })
    }

    /// The schedule's outputs by name.
    fn schedule(&mut self, known: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>> {
        let help = "`schedule: \"one_cycle(max_lr: 1e-3)\"`, or `constant(max_lr: 1e-3)` for a rate that stays";
        let Some(expr) = &self.train.schedule else { return Err(missing(self.train, "schedule", help)) };
        let (template, spec) = self.module(expr, "a schedule")?;
        if !spec.outputs.iter().any(|name| name.as_str() == "lr") {
            return Err(Diagnostic::error(format!("`{}` is not a schedule", spec.name))
                .label(expr.span, "has no output `lr`")
                .help("a schedule is applied to `step` and `total_steps` and yields `lr`"));
        }
        let instance = self.evaluator.instantiate(&template, "schedule".into(), Place::Unnamed, expr.span)?;
        let value = self.apply(&instance, &spec, known, expr)?;
        let values = match value {
            Value::Tuple(values) => values,
            value => vec![value],
        };
        Ok(spec.outputs.iter().map(|name| name.text.clone()).zip(values).collect())
    }

    /// A module with arguments, as `train` names it.
    pub(super) fn module(&mut self, expr: &Expr, what: &str) -> Result<(Template, Arc<ModuleSpec>)> {
        let frame = Frame { compile_time: true, ..self.top.frame(None) };
        match self.evaluator.eval(&frame, expr)? {
            Value::Template(template) => {
                let spec = self.evaluator.library.module(template.module).spec.clone();
                Ok(((*template).clone(), spec))
            }
            other => Err(wrong_kind(expr, &other, &format!("{what}, a module"))),
        }
    }

    /// Applies an instance to those of the known values that it has inputs for.
    pub(super) fn apply(
        &mut self,
        instance: &Arc<Instance>,
        spec: &ModuleSpec,
        known: &BTreeMap<String, Value>,
        expr: &Expr,
    ) -> Result<Value> {
        let mut given = Vec::new();
        for name in spec.inputs.keys() {
            match known.get(name.as_str()) {
                Some(value) => given.push(Given { name: Some(name), value: value.clone(), expr }),
                None => {
                    let has: Vec<&String> = known.keys().collect();
                    return Err(Diagnostic::error(format!(
                        "`{}` needs `{name}`, which the training step does not have",
                        spec.name
                    ))
                    .label(expr.span, "")
                    .context(name.span, "declared here")
                    .suggest(name, has.iter().map(|name| name.as_str()))
                    .help(format!("inputs may be {}", crate::resolve::training::listed(has))));
                }
            }
        }
        self.evaluator.apply(&self.frame, instance, given, expr.span)
    }

    fn optimize(
        &mut self,
        params: &[Param],
        coef: Option<NodeId>,
        known: &BTreeMap<String, Value>,
        scheduled: &BTreeMap<String, Value>,
    ) -> Result<()> {
        let help = "`optimizer: \"adamw(weight_decay: 0.2)\"`";
        let Some(expr) = &self.train.optimizer else { return Err(missing(self.train, "optimizer", help)) };
        let (mut template, spec) = self.module(expr, "an optimiser")?;
        let [_] = spec.outputs.as_slice() else {
            return Err(Diagnostic::error(format!("`{}` is not an optimiser", spec.name))
                .label(expr.span, format!("has {} outputs", spec.outputs.len()))
                .help("an optimiser is applied to a parameter `w` and its gradient `g` and yields the new parameter"));
        };
        for (name, value) in scheduled {
            if spec.args.contains_key(name.as_str()) {
                template.args.insert(name.clone(), value.clone());
            } else if !spec.inputs.contains_key(name.as_str()) && !self.groups_read(name) {
                self.warnings
                    .extend(self.train.schedule.as_ref().map(|schedule| not_taken(&spec, name, schedule, expr)));
            }
        }
        for param in params {
            let mut template = self.decayed(&template, &spec, &param.group, expr)?;
            let mut known = known.clone();
            if let Some(lr) = &param.group.lr {
                let value = self.group_lr(lr, scheduled)?;
                if spec.args.contains_key("lr") {
                    template.args.insert("lr".into(), value);
                } else if spec.inputs.contains_key("lr") {
                    known.insert("lr".into(), value);
                } else {
                    return Err(Diagnostic::error(format!("`{}` has no learning rate `lr`", spec.name))
                        .label(lr.0.span, "so a group cannot set it")
                        .context(expr.span, "the optimiser"));
                }
            }
            let name = format!("optimizer.{}", param.path).into();
            let place = Place::Optimizer(param.path.as_str().into());
            let instance = self.evaluator.instantiate(&template, name, place, expr.span)?;
            let grad = match coef {
                Some(coef) => self.emit(expr.span, |builder| builder.mul(param.grad, coef))?,
                None => param.grad,
            };
            // Of a parameter of 16 bits too the update is computed in f32, and rounded where the new value is made.
            let weight = self.emit(expr.span, |builder| builder.cast(param.node, DType::F32))?;
            known.insert("w".into(), Value::Tensor(weight));
            known.insert("g".into(), Value::Tensor(grad));
            let value = self.apply(&instance, &spec, &known, expr)?;
            let new = self.evaluator.tensor(&self.frame, &value, expr)?;
            let new = self.clamped(&param.path, new, expr.span)?;
            let new = match self.evaluator.graph.ty(param.node).dtype {
                dtype if self.evaluator.graph.ty(new).dtype == DType::F32 => {
                    self.emit(expr.span, |builder| builder.cast(new, dtype))?
                }
                _ => new,
            };
            let (old, new_ty) = (self.evaluator.graph.ty(param.node).clone(), self.evaluator.graph.ty(new).clone());
            if old != new_ty {
                return Err(Diagnostic::error(format!("`{}` turns {old} into {new_ty}", spec.name))
                    .label(expr.span, format!("for the parameter `{}`", param.path)));
            }
            self.evaluator.graph.updates.insert(param.path.clone(), new);
        }
        Ok(())
    }

    /// Whether a group's learning rate follows a value of the schedule.
    fn groups_read(&self, name: &str) -> bool {
        let rates = self.train.groups.iter().flatten().filter_map(|group| group.lr.as_ref());
        rates.into_iter().any(|lr| lr.reads(name))
    }

    /// The optimiser with a group's weight decay.
    fn decayed(&mut self, template: &Template, spec: &ModuleSpec, group: &Group, optimizer: &Expr) -> Result<Template> {
        let mut template = template.clone();
        if let Some((expr, captures)) = &group.weight_decay {
            let mut frame = Frame { compile_time: true, ..self.top.frame(None) };
            frame.values.extend(captures.iter().cloned());
            let value = Value::Float(self.evaluator.number(&frame, expr)?);
            if !spec.args.contains_key("weight_decay") {
                return Err(Diagnostic::error(format!("`{}` has no weight decay", spec.name))
                    .label(expr.span, "so a group cannot set it")
                    .context(optimizer.span, "the optimiser"));
            }
            template.give("weight_decay", value, expr.span);
        }
        Ok(template)
    }

    /// A group's learning rate, an expression of the schedule's values.
    fn group_lr(&mut self, (expr, captures): &GroupValue, scheduled: &BTreeMap<String, Value>) -> Result<Value> {
        let mut frame = self.frame.clone();
        frame.values = self.top.frame(None).values;
        frame.values.extend(captures.iter().cloned());
        frame.values.extend(scheduled.clone());
        scalar(&mut self.evaluator, &frame, expr, "a learning rate").map(Value::Tensor)
    }

    fn clamped(&mut self, path: &str, new: NodeId, span: Span) -> Result<NodeId> {
        let Some((low, high)) = self.evaluator.states.entries.get(path).and_then(|entry| entry.decl.clamp) else {
            return Ok(new);
        };
        self.emit(span, |builder| {
            let (low, high) = (builder.scalar(low)?, builder.scalar(high)?);
            let raised = builder.max(new, low)?;
            builder.min(raised, high)
        })
    }

    /// An exponential average of every parameter, which starts from the weights that the first step starts from, whether a
    /// seed drew them or they were loaded.
    fn averages(&mut self, step: NodeId) -> Result<()> {
        let Some(ema) = &self.train.ema else { return Ok(()) };
        let frame = Frame { compile_time: true, ..self.top.frame(None) };
        let decay = self.evaluator.number(&frame, &ema.decay)?;
        if !(0.0..1.0).contains(&decay) {
            return Err(Diagnostic::error(format!("a decay of {decay}"))
                .label(ema.decay.span, "expected at least 0 and less than 1")
                .help("0.999 averages over about a thousand steps"));
        }
        let params: Vec<(String, Entry)> = self
            .evaluator
            .states
            .entries
            .iter()
            .filter(|(_, entry)| entry.decl.kind == StateKind::Param && entry.decl.ty.dtype.is_float())
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect();
        for (path, entry) in params {
            let average = format!("average.{path}");
            // In f32 also of 16 bits, in which what is added to an average would round to nothing.
            let dtype = if entry.decl.ty.dtype.is_narrow() { DType::F32 } else { entry.decl.ty.dtype };
            let average_ty = TensorType { dtype, ..entry.decl.ty.clone() };
            let mut average_decl = decl(StateKind::Average, average_ty.clone(), entry.decl.origin.clone());
            average_decl.clamp = None;
            self.evaluator.states.declare(&average, 0, average_decl, entry.init)?;
            if let Some(declared) = self.evaluator.states.entries.get_mut(&average) {
                // The same random numbers as the parameter: both start equal.
                declared.stream.clone_from(&path);
            }
            let old = self.evaluator.read(&self.frame, &average, average_ty, ema.span)?;
            let first = self.evaluator.read(&self.frame, &path, entry.decl.ty.clone(), ema.span)?;
            let weight = self.evaluator.graph.updates.get(&path).copied().unwrap_or(first);
            let new = self.emit(ema.span, |builder| {
                let (first, weight) = (builder.cast(first, dtype)?, builder.cast(weight, dtype)?);
                let (keep, take) = (builder.scalar(decay)?, builder.scalar(1.0 - decay)?);
                let zero = builder.constant(0.0, DType::I32)?;
                let starts = builder.eq(step, zero)?;
                let old = builder.select(starts, first, old)?;
                let (kept, taken) = (builder.mul(old, keep)?, builder.mul(weight, take)?);
                builder.add(kept, taken)
            })?;
            self.evaluator.graph.updates.insert(average, new);
        }
        Ok(())
    }

    /// The metrics that read the update; all of them in the order of the spec.
    fn metrics(&mut self, loss: NodeId, train: BTreeMap<String, Value>) -> Result<()> {
        let mut frame = self.frame.clone();
        frame.values.insert("train".into(), Value::Record(Arc::new(train)));
        for name in self.top.spec.params.keys() {
            let reads: &HashMap<String, NodeId> = &self.evaluator.reads;
            let Some(old) = reads.get(name.as_str()).copied() else { continue };
            let new = self.evaluator.graph.updates.get(name.as_str()).copied().unwrap_or(old);
            frame.values.insert(name.text.clone(), Value::Tensor(old));
            frame.values.insert(format!("{name}'"), Value::Tensor(new));
        }
        let mut outputs = Names::default();
        for (name, expr) in &self.top.spec.metrics {
            let node = match self.evaluator.graph.outputs.get(name.as_str()) {
                Some(node) if !self.top.is_deferred(self.evaluator.library, expr) => *node,
                _ => self.top.metric(&mut self.evaluator, &mut frame, name, expr)?,
            };
            outputs.insert(name.text.clone(), node);
        }
        // A step always tells its loss, also where no metric does.
        if !outputs.values().any(|node| *node == loss) {
            let name = if outputs.contains_key("loss") { LOSS } else { "loss" };
            outputs.shift_insert(0, name.to_owned(), loss);
        }
        for (name, node) in std::mem::take(&mut self.evaluator.graph.outputs) {
            outputs.entry(name).or_insert(node);
        }
        if self.keep.values {
            let values = self.evaluator.graph.values.iter().filter(|(name, _)| *name != LOSS);
            outputs.extend(values.map(|(name, node)| (format!("outputs.{name}"), *node)));
        }
        self.evaluator.graph.outputs = outputs;
        Ok(())
    }
}

/// A value of the schedule that the optimiser has no use for.
fn not_taken(optimizer: &ModuleSpec, name: &str, schedule: &Expr, expr: &Expr) -> Diagnostic {
    Diagnostic::warning(format!("`{}` has no `{name}`, which the schedule yields", optimizer.name))
        .label(schedule.span, format!("`{name}` changes nothing"))
        .context(expr.span, "the optimiser")
}

fn missing(train: &TrainSpec, field: &str, help: &str) -> Diagnostic {
    Diagnostic::error(format!("`train` has no `{field}`")).label(train.span, "").help(format!("add {help}"))
}

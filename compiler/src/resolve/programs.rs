//! The programs of a graph: the forward part of `train`, and those named under `programs`, over one state.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alip_plan::PROGRAM_TRAIN;

use super::apply::dtype;
use super::check::each_name;
use super::eval::{Evaluator, Frame, Mode, Result, dotted};
use super::instance::{Instance, Place};
use super::library::{Library, Module};
use super::state::States;
use super::value::Value;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, NodeId, Shape, TensorType};
use crate::spec::{Equation, Expr, ExprKind, GraphSpec, Name, ProgramSpec};

/// Under this name [`Graph::values`] of `train` holds the loss.
pub const LOSS: &str = "train.loss";

/// A graph as the module it is, with its instances.
#[derive(Clone, Copy)]
pub(crate) struct Top<'a> {
    pub(crate) spec: &'a GraphSpec,
    pub(crate) module: &'a Module,
    pub(crate) instance: &'a Instance,
}

impl Top<'_> {
    /// What the body sees before its first equation, without inputs.
    pub(crate) fn frame(&self) -> Frame {
        let values = self.instance.args.clone().into_iter().chain(self.instance.parts.clone()).collect();
        Frame {
            scope: self.module.scope.clone(),
            values,
            path: "".into(),
            module: self.spec.name.as_str().into(),
            compile_time: false,
        }
    }

    /// The forward part of `train`: the whole body on all inputs, the loss, and the metrics that do not read the update.
    pub(crate) fn train(&self, library: &Library, states: &mut States) -> Result<Graph, Diagnostics> {
        let mode = if self.spec.train.is_some() { Mode::Train } else { Mode::Eval };
        let mut evaluator = Evaluator::new(library, states, Graph::new(PROGRAM_TRAIN), mode);
        match self.forward(&mut evaluator) {
            Ok(()) => Ok(evaluator.graph),
            Err(error) => Err(evaluator.explain(error).into()),
        }
    }

    fn forward(&self, evaluator: &mut Evaluator<'_>) -> Result<()> {
        let mut frame = self.frame();
        for name in self.spec.inputs.keys() {
            self.input(evaluator, &mut frame, name)?;
        }
        evaluator.declare(&mut frame, &self.module.spec, self.instance)?;
        evaluator.body(&mut frame, &self.spec.body)?;
        evaluator.next_states(&frame, &self.module.spec, self.instance)?;
        self.values(evaluator, &frame);
        if let Some(loss) = self.spec.train.as_ref().and_then(|train| train.loss.as_ref()) {
            let node = scalar(evaluator, &frame, loss, "the loss")?;
            evaluator.graph.values.insert(LOSS.into(), node);
        }
        for (name, expr) in &self.spec.metrics {
            if !self.is_deferred(expr) {
                let node = scalar(evaluator, &frame, expr, "a metric")?;
                evaluator.graph.outputs.insert(name.text.clone(), node);
            }
        }
        Ok(())
    }

    /// Whether a metric reads `train` or the next value of a parameter, which exist once the update is built.
    pub(crate) fn is_deferred(&self, expr: &Expr) -> bool {
        let mut deferred = false;
        each_name(expr, &mut |name, _| {
            deferred |=
                name == "train" || name.strip_suffix('\'').is_some_and(|name| self.spec.params.contains_key(name));
        });
        deferred
    }

    /// Names the tensors of the body, and those of parts applied once under `part.name`.
    fn values(&self, evaluator: &mut Evaluator<'_>, frame: &Frame) {
        let mut found: Vec<(String, NodeId)> = Vec::new();
        for target in self.spec.body.iter().flat_map(|equation| &equation.targets) {
            if let Some(Value::Tensor(id)) = frame.values.get(target.as_str()) {
                found.push((target.text.clone(), *id));
            }
        }
        for (part, value) in &self.instance.parts {
            let Value::Instance(instance) = value else { continue };
            let Some(applied) = evaluator.applied.get(&instance.id).filter(|applied| applied.count == 1) else {
                continue;
            };
            let spec = &evaluator.library.module(instance.module).spec;
            for target in spec.body.iter().flat_map(|equation| &equation.targets) {
                if let Some(Value::Tensor(id)) = applied.values.get(target.as_str()) {
                    found.push((format!("{part}.{target}"), *id));
                }
            }
        }
        evaluator.graph.values.extend(found);
    }

    fn input(&self, evaluator: &mut Evaluator<'_>, frame: &mut Frame, name: &Name) -> Result<()> {
        let Some(input) = self.spec.inputs.get(name.as_str()) else {
            return Err(Diagnostic::error(format!("`{name}` is not an input of the graph"))
                .label(name.span, "")
                .suggest(name, self.spec.inputs.keys().map(Name::as_str)));
        };
        let shape: Shape = evaluator.shape(frame, &input.shape)?;
        let declared = input.dtype.as_ref().and_then(|declared| dtype(declared.node));
        let Some(dtype) = declared else {
            let span = input.dtype.as_ref().map_or(name.span, |dtype| dtype.span);
            return Err(Diagnostic::error("inputs of a graph are F32, Bf16, F16, I32 or Bool")
                .label(span, "")
                .help("the data pipeline converts what it reads"));
        };
        let ty = TensorType::new(dtype, shape);
        let node = evaluator.emit(frame, name.span, |builder| builder.input(name, ty))?;
        frame.values.insert(name.text.clone(), Value::Tensor(node));
        Ok(())
    }

    /// One of `programs`: the equations that its outputs need, on its inputs.
    pub(crate) fn program(
        &self,
        library: &Library,
        states: &mut States,
        name: &Name,
        program: &ProgramSpec,
    ) -> Result<Graph, Diagnostics> {
        let needed = self.needed(program)?;
        let mut evaluator = Evaluator::new(library, states, Graph::new(name), Mode::Eval);
        let built = (|| {
            let mut frame = self.frame();
            for input in &program.inputs {
                self.input(&mut evaluator, &mut frame, input)?;
            }
            evaluator.declare(&mut frame, &self.module.spec, self.instance)?;
            evaluator.body(&mut frame, &needed)?;
            for output in &program.outputs {
                let expr = Expr { kind: ExprKind::Name(output.text.clone()), span: output.span };
                let value = evaluator.eval(&frame, &expr)?;
                let node = evaluator.tensor(&frame, &value, &expr)?;
                evaluator.graph.outputs.insert(output.text.clone(), node);
            }
            Ok(())
        })();
        match built {
            Ok(()) => Ok(evaluator.graph),
            Err(error) => Err(evaluator.explain(error).into()),
        }
    }

    /// The equations that a program's outputs need, in order.
    fn needed(&self, program: &ProgramSpec) -> Result<Vec<Equation>, Diagnostics> {
        let mut errors = Vec::new();
        let targets: HashSet<&str> =
            self.spec.body.iter().flat_map(|equation| &equation.targets).map(Name::as_str).collect();
        for output in &program.outputs {
            if !targets.contains(output.as_str()) && !self.spec.inputs.contains_key(output.as_str()) {
                errors.push(
                    Diagnostic::error(format!("output `{output}` names nothing"))
                        .label(output.span, "the body does not define it")
                        .suggest(output, targets.iter().copied()),
                );
            }
        }
        let mut picked: Vec<Equation> = Vec::new();
        for (index, output) in reachable(self.spec, program.outputs.iter().map(|name| (name.as_str(), name)).collect())
        {
            let equation = &self.spec.body[index];
            each_name(&equation.value, &mut |name, span| {
                if self.spec.inputs.contains_key(name) && !program.inputs.iter().any(|input| input.as_str() == name) {
                    errors.push(
                        Diagnostic::error(format!("`{output}` needs the input `{name}`"))
                            .label(output.span, format!("`{name}` is not among the program's inputs"))
                            .context(span, "read here")
                            .help(format!("add `{name}` to the program's inputs")),
                    );
                }
            });
            picked.push(equation.clone());
        }
        Diagnostics::check(picked, errors)
    }
}

/// The equations, by position and in order, that the wanted names need; each with the reason it is needed for.
fn reachable<'s, R: Copy>(spec: &'s GraphSpec, mut wanted: HashMap<&'s str, R>) -> Vec<(usize, R)> {
    let mut picked = Vec::new();
    for (index, equation) in spec.body.iter().enumerate().rev() {
        let mut reason = equation.targets.iter().find_map(|target| wanted.get(target.as_str()).copied());
        each_name(&equation.value, &mut |name, _| {
            // A part is wanted when one of its values is read: what applies it is needed.
            if spec.parts.contains_key(name) {
                reason = reason.or(wanted.get(name).copied());
            }
        });
        let Some(reason) = reason else { continue };
        want(spec, &equation.value, reason, &mut wanted);
        picked.push((index, reason));
    }
    picked.reverse();
    picked
}

/// Adds what an expression reads.
fn want<'s, R: Copy>(spec: &GraphSpec, expr: &'s Expr, reason: R, wanted: &mut HashMap<&'s str, R>) {
    let mut members = HashSet::new();
    parts_read(expr, &mut members);
    each_name(expr, &mut |name, _| {
        if !spec.parts.contains_key(name) || members.contains(name) {
            wanted.entry(name).or_insert(reason);
        }
    });
}

/// Takes away the equations that neither the loss, a metric, a state nor a program needs.
pub(crate) fn prune(spec: &mut GraphSpec) {
    let next: Vec<String> = spec.state.keys().map(|name| format!("{name}'")).collect();
    let mut wanted: HashMap<&str, ()> = next.iter().map(|name| (name.as_str(), ())).collect();
    wanted.extend(spec.programs.values().flat_map(|program| &program.outputs).map(|name| (name.as_str(), ())));
    let loss = spec.train.as_ref().and_then(|train| train.loss.as_ref());
    for expr in spec.metrics.values().chain(loss) {
        want(spec, expr, (), &mut wanted);
    }
    let keep: HashSet<usize> = reachable(spec, wanted).into_iter().map(|(index, ())| index).collect();
    let mut index = 0..spec.body.len();
    spec.body.retain(|_| index.next().is_some_and(|index| keep.contains(&index)));
}

/// Parts of which an expression reads a value, as in `lcg.sim`.
fn parts_read<'e>(expr: &'e Expr, found: &mut HashSet<&'e str>) {
    if let ExprKind::Member(inner, _) = &expr.kind
        && let ExprKind::Name(name) = &inner.kind
    {
        found.insert(name);
    }
    super::check::children(expr).into_iter().for_each(|child| parts_read(child, found));
}

/// The value of an expression that must be one F32 number.
pub(crate) fn scalar(evaluator: &mut Evaluator<'_>, frame: &Frame, expr: &Expr, what: &str) -> Result<NodeId> {
    let value = evaluator.eval(frame, expr)?;
    let node = evaluator.tensor(frame, &value, expr)?;
    let ty = evaluator.graph.ty(node).clone();
    if ty.shape.rank() > 0 {
        let shown = dotted(expr).unwrap_or_else(|| "...".into());
        return Err(Diagnostic::error(format!("{what} is not a scalar"))
            .label(expr.span, format!("this is {ty}"))
            .help(format!("reduce it to one number, such as `mean({shown})`")));
    }
    match ty.dtype.is_float() {
        true => Ok(node),
        false => evaluator.emit(frame, expr.span, |builder| builder.cast(node, crate::ir::DType::F32)),
    }
}

/// The instance that stands for the graph itself.
pub(crate) fn top_instance(
    library: &Library,
    states: &mut States,
    spec: &GraphSpec,
    module: &Module,
    id: super::library::ModuleId,
    dims: Vec<(String, Value)>,
) -> Result<Instance, Diagnostics> {
    let mut evaluator = Evaluator::new(library, states, Graph::default(), Mode::Train);
    let args: std::collections::BTreeMap<String, Value> = dims.into_iter().collect();
    let frame = Frame {
        scope: module.scope.clone(),
        values: args.clone().into_iter().collect(),
        path: "".into(),
        module: spec.name.as_str().into(),
        compile_time: true,
    };
    let place = Place::Path(String::new());
    match evaluator.parts(&spec.parts, &frame, &place) {
        Ok(parts) => {
            let name: Arc<str> = spec.name.as_str().into();
            let id_ = evaluator.states.new_id();
            Ok(Instance { id: id_, name, module: id, args, parts, place, span: spec.name.span })
        }
        Err(error) => Err(evaluator.explain(error).into()),
    }
}

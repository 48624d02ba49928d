//! The programs of a graph: the forward part of `train`, and those named under `programs`, over one state.

use std::collections::HashSet;
use std::sync::Arc;

use alip_plan::PROGRAM_TRAIN;

use super::apply::dtype;
use super::check::each_name;
use super::eval::{Evaluator, Frame, Mode, Result, dotted};
use super::instance::{Instance, Place};
use super::library::{Library, Module};
use super::needs::Uses;
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
    /// What the body sees before its first equation, without inputs; `mode` is none where it may not be read.
    pub(crate) fn frame(&self, mode: Option<Mode>) -> Frame {
        let values = self.instance.args.clone().into_iter().chain(self.instance.parts.clone()).collect();
        Frame {
            scope: self.module.scope.clone(),
            values,
            path: "".into(),
            stream: "".into(),
            module: self.spec.name.as_str().into(),
            equation: "".into(),
            mode,
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
        let frozen = evaluator.is_frozen(&self.module.spec, self.instance);
        let mut frame = self.frame(Some(if frozen { Mode::Eval } else { evaluator.mode }));
        for name in self.spec.inputs.keys() {
            self.input(evaluator, &mut frame, name)?;
        }
        evaluator.declare(&mut frame, &self.module.spec, self.instance)?;
        evaluator.body(&mut frame, &self.spec.body)?;
        evaluator.next_states(&frame, &self.module.spec, self.instance)?;
        self.values(evaluator, &frame);
        frame.equation = LOSS.into();
        if let Some(loss) = self.spec.train.as_ref().and_then(|train| train.loss.as_ref()) {
            let node = scalar(evaluator, &frame, loss, "the loss")?;
            evaluator.graph.values.insert(LOSS.into(), node);
        }
        for (name, expr) in &self.spec.metrics {
            if !self.is_deferred(evaluator.library, expr) {
                let node = self.metric(evaluator, &mut frame, name, expr)?;
                evaluator.graph.outputs.insert(name.text.clone(), node);
            }
        }
        Ok(())
    }

    /// The value of a metric; its draws of random numbers are named by it.
    pub(crate) fn metric(
        &self,
        evaluator: &mut Evaluator<'_>,
        frame: &mut Frame,
        name: &Name,
        expr: &Expr,
    ) -> Result<NodeId> {
        frame.equation = format!("metrics.{name}").into();
        scalar(evaluator, frame, expr, "a metric").map_err(|error| match name.span.source == self.spec.span.source {
            true => error,
            false => error
                .help(format!("the metric is one of the base: take it away with `metrics: {{ \"{name}\": None }}`")),
        })
    }

    /// Whether a metric reads `train` or the next value of a parameter, which exist once the update is built.
    pub(crate) fn is_deferred(&self, library: &Library, expr: &Expr) -> bool {
        let mut deferred = false;
        expr.walk(&mut |expr| {
            deferred |= match &expr.kind {
                ExprKind::Name(name) => {
                    name == "train" || name.strip_suffix('\'').is_some_and(|name| self.spec.params.contains_key(name))
                }
                ExprKind::Member(of, name) => {
                    let params = |part: &Instance| library.module(part.module).spec.params.clone();
                    name.next_of()
                        .is_some_and(|name| self.part(of).is_some_and(|part| params(&part).contains_key(name)))
                }
                _ => false,
            };
        });
        deferred
    }

    /// The part that an expression names, `text.transformer.resblocks[0]`.
    fn part(&self, expr: &Expr) -> Option<Arc<Instance>> {
        match self.instance.named(expr)? {
            Value::Instance(part) => Some(part),
            _ => None,
        }
    }

    /// Names the tensors of the body, those of parts applied once under `part.name`, and those further down that a metric
    /// of the update reads as it writes them.
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
        for expr in self.spec.metrics.values().filter(|expr| self.is_deferred(evaluator.library, expr)) {
            expr.walk(&mut |expr| {
                let ExprKind::Member(of, name) = &expr.kind else { return };
                // What a computed position names is known here, where sizes are.
                let Some(Value::Instance(part)) = self.part(of).and_then(|_| evaluator.eval(frame, of).ok()) else {
                    return;
                };
                let applied = evaluator.applied.get(&part.id).filter(|applied| applied.count == 1);
                if let Some(Value::Tensor(id)) = applied.and_then(|applied| applied.values.get(name.as_str())) {
                    found.push((expr.to_string(), *id));
                }
            });
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
        let body = self.chosen(library, Mode::Eval);
        let needed = self.needed((library, states), program, &body)?;
        let mut evaluator = Evaluator::new(library, states, Graph::new(name), Mode::Eval);
        let built = (|| {
            let mut frame = self.frame(Some(Mode::Eval));
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

    /// The body with every `if` in place of which one of its branches is known to stand: what is asked for by a branch that
    /// is not taken is not asked for.
    fn chosen(&self, library: &Library, mode: Mode) -> Vec<Equation> {
        // Values of conditions may be named by equations: `training = mode == 'train'`. There are no tensors here and no
        // part is applied, so that what depends on any has no value; nothing of the model is touched.
        let mut states = States::new(self.spec.train.is_some());
        let mut evaluator = Evaluator::new(library, &mut states, Graph::default(), mode);
        let mut frame = Frame { compile_time: true, ..self.frame(Some(mode)) };
        let mut body = self.spec.body.clone();
        for equation in &mut body {
            equation.value = choose(&mut evaluator, &frame, &equation.value);
            if let ([target], Ok(value)) = (equation.targets.as_slice(), evaluator.eval(&frame, &equation.value)) {
                frame.values.insert(target.text.clone(), value);
            }
        }
        body
    }

    /// The equations that a program's outputs need, in order.
    fn needed(
        &self,
        (library, states): (&Library, &States),
        program: &ProgramSpec,
        body: &[Equation],
    ) -> Result<Vec<Equation>, Diagnostics> {
        let mut errors = Vec::new();
        let targets: HashSet<&str> = body.iter().flat_map(|equation| &equation.targets).map(Name::as_str).collect();
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
        let wanted = program.outputs.iter().map(|name| (name.as_str(), name)).collect();
        // What training has made is there, whether its part is applied here or not.
        let uses = Uses { spec: self.spec, instance: Some(self.instance), library, made: Some(states) };
        for (index, output) in uses.reachable(body, wanted, |_| None) {
            let equation = &body[index];
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

/// The expression without the `if`s whose condition is known.
fn choose(evaluator: &mut Evaluator<'_>, frame: &Frame, expr: &Expr) -> Expr {
    let mut chosen = expr.clone();
    while let ExprKind::If { then, condition, otherwise } = chosen.kind {
        chosen = match evaluator.eval(frame, &condition) {
            Ok(Value::Bool(true)) => *then,
            Ok(Value::Bool(false)) => *otherwise,
            _ => {
                chosen.kind = ExprKind::If { then, condition, otherwise };
                break;
            }
        };
    }
    chosen.children_mut().into_iter().for_each(|child| *child = choose(evaluator, frame, child));
    chosen
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
        stream: "".into(),
        module: spec.name.as_str().into(),
        equation: "".into(),
        mode: None,
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

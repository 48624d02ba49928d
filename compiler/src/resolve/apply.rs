//! Applies modules: inputs are bound to patterns, parameters and states come into being, the body is evaluated.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_plan::StateKind;

use super::call::{Given, given_twice};
use super::eval::{Applied, Evaluator, Frame, Mode, Result, listed, op_error};
use super::instance::{Instance, Place, join, unknown_arg};
use super::state::{Init, decl};
use super::value::{Template, Value, wrong_kind};
use crate::diag::{Diagnostic, Span};
use crate::ir::{DType, Dim, NodeId, Origin, Shape, TensorType};
use crate::ops::{MAX_ELEMENTS, fits};
use crate::spec::{self, Equation, Expr, ExprKind, InputSpec, ModuleSpec, Name};

impl Evaluator<'_> {
    /// Applies a module by its name: positional values are inputs and, after those, arguments known at compile time; named
    /// ones are inputs or arguments.
    pub(crate) fn apply_template(
        &mut self,
        parent: &Frame,
        template: &Template,
        given: Vec<Given<'_>>,
        span: Span,
    ) -> Result<Value> {
        let spec = self.library.module(template.module).spec.clone();
        let mut template = template.clone();
        let mut inputs = Vec::new();
        let mut taken: BTreeMap<String, Span> = BTreeMap::new();
        for (position, given) in given.into_iter().enumerate() {
            let argument = match given.name {
                Some(name) => (!spec.inputs.contains_key(name.as_str())).then_some(name),
                None if given.value.has_tensor() => None,
                None => position.checked_sub(spec.inputs.len()).and_then(|at| Some(spec.args.get_index(at)?.0)),
            };
            let Some(name) = argument else {
                inputs.push(given);
                continue;
            };
            self.check_arg(&spec, name, &given.value, given.expr.span)?;
            if let Some(first) = taken.insert(name.text.clone(), given.expr.span) {
                return Err(given_twice(name, given.expr.span, first));
            }
            template.give(name, given.value, given.expr.span);
        }
        let instance = self.instantiate(&template, spec.name.as_str().into(), Place::Unnamed, span)?;
        self.apply(parent, &instance, inputs, span)
    }

    /// Applies an instance; yields its output, or a tuple of several.
    pub(crate) fn apply(
        &mut self,
        parent: &Frame,
        instance: &Arc<Instance>,
        given: Vec<Given<'_>>,
        span: Span,
    ) -> Result<Value> {
        let module = self.library.module(instance.module).clone();
        let spec = &module.spec;
        let tensors = self.match_inputs(parent, spec, given, span)?;
        self.enter(&instance.name, &spec.name, span)?;
        let mut frame = Frame {
            scope: module.scope.clone(),
            values: instance.args.clone().into_iter().collect(),
            path: self.numbered(join(&parent.path, &instance.name)),
            // By the equation, not by a count of the program's applications: programs have some equations in common.
            stream: self.numbered(format!("{}:{}", join(&parent.stream, &parent.equation), instance.name)),
            module: spec.name.as_str().into(),
            equation: "".into(),
            mode: self.mode_of(parent, spec, instance),
            compile_time: false,
        };
        for ((name, input), (value, at)) in spec.inputs.iter().zip(&tensors) {
            let ty = self.graph.ty(*value).clone();
            self.bind(&mut frame, spec, name, input, &ty, *at)?;
            frame.values.insert(name.text.clone(), Value::Tensor(*value));
        }
        frame.values.extend(instance.parts.clone());
        self.declare(&mut frame, spec, instance)?;
        self.applied_before(instance, spec, span)?;
        self.body(&mut frame, &spec.body)?;
        self.next_states(&frame, spec, instance)?;
        let outputs = spec.outputs.iter().map(|name| self.output(&frame, name)).collect::<Result<Vec<_>>>()?;
        let count = self.applied.get(&instance.id).map_or(0, |applied| applied.count) + 1;
        self.applied.insert(instance.id, Applied { count, span, values: Arc::new(frame.values) });
        self.leave();
        Ok(match <[Value; 1]>::try_from(outputs) {
            Ok([value]) => value,
            Err(outputs) => Value::Tuple(outputs),
        })
    }

    /// What `mode` is in an application. State decides, which groups name by its path: a part with state of its own is
    /// computed as they say of that, what has none as the part around it. Parts of the graph have nothing around them.
    fn mode_of(&self, parent: &Frame, spec: &ModuleSpec, instance: &Instance) -> Option<Mode> {
        let of_graph = parent.path.is_empty() && instance.place != Place::Unnamed;
        match () {
            () if self.is_frozen(spec, instance) => Some(Mode::Eval),
            () if of_graph || !spec.state.is_empty() => Some(self.mode),
            () => parent.mode,
        }
    }

    /// Whether a group keeps the states of an instance, which is then computed as in evaluation: all of them where it names
    /// one, since they belong together.
    pub(super) fn is_frozen(&self, spec: &ModuleSpec, instance: &Instance) -> bool {
        let kept = |name: &Name| {
            let path = instance.place.path(name);
            path.is_some_and(|path| self.states.groups.of(&path).frozen_statistics == Some(true))
        };
        spec.state.keys().any(kept)
    }

    fn output(&mut self, frame: &Frame, name: &Name) -> Result<Value> {
        let known = || frame.values.get(name.as_str()).cloned();
        known().ok_or_else(|| Diagnostic::error(format!("output `{name}` has no value")).label(name.span, ""))
    }

    fn applied_before(&self, instance: &Instance, spec: &ModuleSpec, span: Span) -> Result<()> {
        match self.applied.get(&instance.id) {
            Some(first) if !spec.state.is_empty() => {
                Err(Diagnostic::error(format!("`{}` has state and is applied twice", instance.name))
                    .label(span, "again here")
                    .context(first.span, "first here")
                    .note(format!(
                        "its state is {}; each state has one next value",
                        listed(spec.state.keys().map(Name::as_str))
                    ))
                    .help("declare a second part of the same module"))
            }
            _ => Ok(()),
        }
    }

    /// `text#2`: the path of an application, numbered from the second of the same name on.
    fn numbered(&mut self, path: String) -> Arc<str> {
        let count = self.paths.entry(path.clone()).or_default();
        *count += 1;
        if *count == 1 { path.into() } else { format!("{path}#{count}").into() }
    }

    /// Given values in the order of the module's inputs, as tensors with the place they come from.
    fn match_inputs(
        &mut self,
        parent: &Frame,
        spec: &ModuleSpec,
        given: Vec<Given<'_>>,
        span: Span,
    ) -> Result<Vec<(NodeId, Span)>> {
        let mut found: Vec<Option<(NodeId, Span)>> = vec![None; spec.inputs.len()];
        for (position, given) in given.into_iter().enumerate() {
            let index = match given.name {
                Some(name) => spec.inputs.get_index_of(name.as_str()).ok_or_else(|| not_an_input(spec, name))?,
                None => position,
            };
            let Some(slot) = found.get_mut(index) else {
                let takes = listed(spec.inputs.keys().map(Name::as_str));
                let error = Diagnostic::error(format!("too many inputs for `{}`", spec.name))
                    .label(given.expr.span, "one too many")
                    .context(spec.name.span, "the module");
                return Err(match takes.is_empty() {
                    true => error.help("it takes no inputs"),
                    false => error
                        .help(format!("it takes {takes}; arguments are given by name, or where the part is declared")),
                });
            };
            if let Some((_, first)) = slot {
                return Err(given_twice(&spec.inputs.keys()[index], given.expr.span, *first));
            }
            *slot = Some((self.tensor(parent, &given.value, given.expr)?, given.expr.span));
        }
        let missing: Vec<&str> = spec
            .inputs
            .keys()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(Diagnostic::error(format!("`{}` needs {}", spec.name, listed(&missing)))
                .label(span, format!("{} missing", listed(&missing)))
                .context(spec.name.span, "the module")
                .help(format!(
                    "it is applied as `{}({})`",
                    spec.name,
                    spec.inputs.keys().map(Name::as_str).collect::<Vec<_>>().join(", ")
                )));
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Matches a tensor with the shape of an input, which binds the pattern variables in it.
    fn bind(
        &mut self,
        frame: &mut Frame,
        spec: &ModuleSpec,
        name: &Name,
        input: &InputSpec,
        ty: &TensorType,
        at: Span,
    ) -> Result<()> {
        if let Some(expected) = input.dtype
            && dtype(expected.node) != Some(ty.dtype)
        {
            let want = dtype(expected.node).map_or_else(|| format!("{:?}", expected.node), |dtype| dtype.to_string());
            return Err(Diagnostic::error(format!("`{name}` of `{}` is {want}, not {}", spec.name, ty.dtype))
                .label(at, format!("this is {ty}"))
                .context(expected.span, "declared here")
                .help("convert with `cast(x, 'f32')` or `cast(x, 'i32')`"));
        }
        let dims = &input.shape.dims;
        let rest = dims.iter().position(|dim| matches!(dim.kind, ExprKind::Rest(_)));
        let actual = &ty.shape.0;
        let fits = if rest.is_some() { actual.len() + 1 >= dims.len() } else { actual.len() == dims.len() };
        let mut same = fits;
        if fits {
            let skipped = actual.len() + usize::from(rest.is_some()) - dims.len();
            let before = rest.unwrap_or(dims.len());
            for (index, dim) in dims.iter().enumerate() {
                if index == before {
                    if let ExprKind::Rest(Some(rest)) = &dim.kind {
                        let sizes = actual[index..index + skipped].iter().cloned().map(Value::Size).collect();
                        frame.values.insert(rest.text.clone(), Value::List(sizes));
                    }
                    continue;
                }
                let size = &actual[if index < before { index } else { index + skipped - 1 }];
                same &= self.bind_dim(frame, dim, size)?;
            }
        }
        if same {
            return Ok(());
        }
        let pattern = dims.iter().map(|dim| self.show_dim(frame, dim)).collect::<Vec<_>>().join(", ");
        Err(Diagnostic::error(format!("`{name}` of `{}` has shape [{pattern}], not {}", spec.name, ty.shape))
            .label(at, format!("this has shape {}", ty.shape))
            .context(input.shape.span, "declared here"))
    }

    fn bind_dim(&mut self, frame: &mut Frame, dim: &Expr, size: &Dim) -> Result<bool> {
        if let ExprKind::Name(name) = &dim.kind
            && !frame.values.contains_key(name)
        {
            let bound = Dim { size: size.size, name: size.name.or_else(|| Some(name.as_str().into())) };
            frame.values.insert(name.clone(), Value::Size(bound));
            return Ok(true);
        }
        let expected = self.int(frame, dim)?;
        Ok(u64::try_from(expected) == Ok(size.size))
    }

    /// A dimension of a pattern with what is known of it: `width=48`.
    fn show_dim(&mut self, frame: &Frame, dim: &Expr) -> String {
        let text = match &dim.kind {
            ExprKind::Name(name) => name.clone(),
            ExprKind::Rest(_) => return "..".into(),
            _ => String::new(),
        };
        match self.int(frame, dim) {
            Ok(size) if text.is_empty() => size.to_string(),
            Ok(size) => format!("{text}={size}"),
            Err(_) => text,
        }
    }

    /// A shape whose sizes are known; names become the names of the dimensions.
    pub(crate) fn shape(&mut self, frame: &Frame, shape: &spec::Shape) -> Result<Shape> {
        let mut dims: Vec<Dim> = Vec::new();
        for expr in &shape.dims {
            if let ExprKind::Rest(rest) = &expr.kind {
                let list = rest.as_ref().and_then(|name| frame.values.get(name.as_str()));
                let Some(Value::List(sizes)) = list else {
                    return Err(Diagnostic::error("`..` alone has no size here")
                        .label(expr.span, "")
                        .help("name it in an input's shape, `[..S]`, and use `..S`"));
                };
                dims.extend(sizes.iter().filter_map(Value::dim));
                continue;
            }
            let value = self.eval(frame, expr)?;
            let Some(mut dim) = value.dim() else {
                return Err(frame.values_in(expr, not_a_size(expr, &value)));
            };
            if let (None, ExprKind::Name(name)) = (&dim.name, &expr.kind) {
                dim.name = Some(name.as_str().into());
            }
            dims.push(dim);
        }
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(dim.size));
        match elements {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(dims.into_iter().collect()),
            _ => Err(Diagnostic::error("dimension overflow")
                .label(shape.span, format!("{} has more than 2^40 elements", dims.into_iter().collect::<Shape>()))
                .help("no device holds such a tensor; is a size wrong?")),
        }
    }

    /// Declares the parameters and states of an instance and makes them readable.
    pub(crate) fn declare(&mut self, frame: &mut Frame, spec: &ModuleSpec, instance: &Instance) -> Result<()> {
        for (name, param) in &spec.params {
            let Some(dtype) = dtype(param.dtype.node).filter(|dtype| *dtype != DType::Bool) else {
                return Err(Diagnostic::error(format!("a parameter cannot be {:?}", param.dtype.node))
                    .label(param.dtype.span, "")
                    .help("parameters are F32, Bf16, F16 or I32"));
            };
            let ty = TensorType::new(dtype, self.shape(frame, &param.shape)?);
            let clamp = match &param.clamp {
                Some(bounds) => Some(self.clamp(frame, bounds, dtype)?),
                None => None,
            };
            let init = self.init_of(frame, &param.init, dtype)?;
            self.declare_one(frame, spec, instance, name, (StateKind::Param, ty, clamp), init)?;
        }
        for (name, state) in &spec.state {
            let Some(dtype) = dtype(state.dtype.node) else {
                return Err(Diagnostic::error(format!("a state cannot be {:?}", state.dtype.node))
                    .label(state.dtype.span, "")
                    .help("states are F32, Bf16, F16, I32 or Bool"));
            };
            let ty = TensorType::new(dtype, self.shape(frame, &state.shape)?);
            let kind = match instance.place {
                Place::Optimizer(_) => StateKind::Optimizer,
                _ => StateKind::Buffer,
            };
            let init = self.init_of(frame, &state.init, dtype)?;
            self.declare_one(frame, spec, instance, name, (kind, ty, None), init)?;
        }
        Ok(())
    }

    /// The bounds of a parameter.
    fn clamp(&mut self, frame: &Frame, (low, high): &(Expr, Expr), dtype: DType) -> Result<(f64, f64)> {
        let bounds = (self.number(frame, low)?, self.number(frame, high)?);
        for (bound, written) in [(bounds.0, low), (bounds.1, high)].into_iter().filter(|_| dtype.is_narrow()) {
            let place = Origin { span: Some(written.span), ..Origin::default() };
            fits(bound, dtype).map_err(|error| error.diagnose(&place))?;
        }
        if bounds.0 > bounds.1 {
            return Err(Diagnostic::error(format!("no number is at least {} and at most {}", bounds.0, bounds.1))
                .label(low.span, "the lower bound comes first")
                .context(high.span, "then the upper one"));
        }
        Ok(bounds)
    }

    fn declare_one(
        &mut self,
        frame: &mut Frame,
        spec: &ModuleSpec,
        instance: &Instance,
        name: &Name,
        (kind, ty, clamp): (StateKind, TensorType, Option<(f64, f64)>),
        init: Init,
    ) -> Result<()> {
        let Some(path) = instance.place.path(name) else {
            return Err(Diagnostic::error(format!("`{}` has parameters or state, so it needs a name", spec.name))
                .label(instance.span, "applied without being a part")
                .context(name.span, "this one")
                .help(format!("declare it under `parts`, `\"my_part\": \"{}(...)\"`, and apply the part", spec.name)));
        };
        let origin = Origin { path: frame.path.clone(), module: frame.module.clone(), span: Some(name.span) };
        let mut decl = decl(kind, ty.clone(), origin);
        decl.clamp = clamp;
        self.states.declare(&path, instance.id, decl, init)?;
        let node = self.read(frame, &path, ty, name.span)?;
        frame.values.insert(name.text.clone(), Value::Tensor(node));
        Ok(())
    }

    /// The value of a state tensor at the start of the step.
    pub(crate) fn read(&mut self, frame: &Frame, path: &str, ty: TensorType, span: Span) -> Result<NodeId> {
        if let Some(node) = self.reads.get(path) {
            return Ok(*node);
        }
        let node = self.emit(frame, span, |builder| builder.state(path, ty))?;
        self.reads.insert(path.to_owned(), node);
        Ok(node)
    }

    /// How a parameter or state of this type starts.
    fn init_of(&mut self, frame: &Frame, expr: &Expr, dtype: DType) -> Result<Init> {
        let init = self.init(frame, expr)?;
        let why = match init {
            Init::Constant(value) => {
                return fits(value, dtype).map(|()| init).map_err(|error| op_error(error, expr.span));
            }
            Init::Normal(_) | Init::Uniform(_) if !dtype.is_float() => {
                format!("random numbers are floats, not {dtype}")
            }
            _ => return Ok(init),
        };
        Err(Diagnostic::error(why).label(expr.span, "the first value"))
    }

    fn init(&mut self, frame: &Frame, expr: &Expr) -> Result<Init> {
        let frame = &Frame { compile_time: true, mode: None, ..frame.clone() };
        match &expr.kind {
            ExprKind::If { then, condition, otherwise } => match self.eval(frame, condition)? {
                Value::Bool(true) => self.init(frame, then),
                Value::Bool(false) => self.init(frame, otherwise),
                other => Err(wrong_kind(condition, &other, "a compile-time truth value")),
            },
            ExprKind::Name(name) if name == "zeros" => Ok(Init::Constant(0.0)),
            ExprKind::Name(name) if name == "ones" => Ok(Init::Constant(1.0)),
            ExprKind::Name(name) if name == "normal" || name == "uniform" => Err(takes_one_number(name, expr.span)),
            ExprKind::Call(callee, args) => match (&callee.kind, args.as_slice()) {
                (ExprKind::Name(name), [arg]) if name == "normal" => self.number(frame, &arg.value).map(Init::Normal),
                (ExprKind::Name(name), [arg]) if name == "uniform" => self.number(frame, &arg.value).map(Init::Uniform),
                (ExprKind::Name(name), _) if name == "normal" || name == "uniform" => {
                    Err(takes_one_number(name, expr.span))
                }
                _ => self.number(frame, expr).map(Init::Constant),
            },
            _ => self.number(frame, expr).map(Init::Constant),
        }
    }

    /// Evaluates equations in order.
    pub(crate) fn body(&mut self, frame: &mut Frame, equations: &[Equation]) -> Result<()> {
        for equation in equations {
            frame.equation = equation.targets.first().map_or("", |target| target.as_str()).into();
            let value = self.eval(frame, &equation.value)?;
            let count = equation.targets.len();
            let values = match value {
                Value::Tuple(values) | Value::List(values) if count > 1 && values.len() == count => values,
                Value::Tuple(values) if count == 1 => {
                    return Err(Diagnostic::error(format!("{} values for one name", values.len()))
                        .label(equation.value.span, format!("yields {} values", values.len()))
                        .help("name all of them: `a, b = ...`"));
                }
                value if count == 1 => vec![value],
                other => {
                    return Err(Diagnostic::error(format!("{count} names for {}", other.describe()))
                        .label(equation.value.span, format!("yields {}", other.describe()))
                        .context(equation.targets[0].span, format!("{count} names")));
                }
            };
            for (target, value) in equation.targets.iter().zip(values) {
                frame.values.insert(target.text.clone(), value);
            }
        }
        Ok(())
    }

    /// Makes `x'` the new value of state `x`; only `train` changes state.
    pub(crate) fn next_states(&mut self, frame: &Frame, spec: &ModuleSpec, instance: &Instance) -> Result<()> {
        for name in spec.state.keys() {
            let next = format!("{name}'");
            let target = spec.body.iter().flat_map(|equation| &equation.targets).find(|target| target.as_str() == next);
            let (Some(target), Some(value), Some(path)) = (target, frame.values.get(&next), instance.place.path(name))
            else {
                continue;
            };
            let Some(declared) = self.states.entries.get(&path).map(|entry| entry.decl.ty.clone()) else { continue };
            let as_expr = Expr { kind: ExprKind::Name(next.clone()), span: target.span };
            let mut node = self.tensor(frame, value, &as_expr)?;
            if self.graph.shape(node).rank() == 0 {
                node = self.emit(frame, target.span, |builder| match builder.constant_value(node) {
                    Some((value, _)) => fits(value, declared.dtype).and_then(|()| builder.full(value, &declared)),
                    None => builder.broadcast_to(node, &declared.shape),
                })?;
            }
            if *self.graph.ty(node) != declared {
                return Err(Diagnostic::error(format!(
                    "`{next}` is {}, but the state is {declared}",
                    self.graph.ty(node)
                ))
                .label(target.span, "")
                .context(name.span, "declared here"));
            }
            if frame.mode == Some(Mode::Train) {
                self.graph.updates.insert(path, node);
            }
        }
        Ok(())
    }
}

fn takes_one_number(initialiser: &str, span: Span) -> Diagnostic {
    Diagnostic::error(format!("`{initialiser}` takes one number"))
        .label(span, "")
        .help("write `normal(0.02)`, a standard deviation, or `uniform(0.1)`, a bound on both sides of 0")
}

/// A name under which a module takes no input when it is applied.
fn not_an_input(spec: &ModuleSpec, name: &Name) -> Diagnostic {
    match spec.args.get_key_value(name.as_str()) {
        Some((declared, _)) => Diagnostic::error(format!("`{name}` of `{}` is no input", spec.name))
            .label(name.span, "an argument, which the part has already")
            .context(declared.span, "declared here")
            .help(format!("write it where the part is declared: `{}({name}: ...)`", spec.name)),
        None => unknown_arg(spec, name),
    }
}

/// Where a size is expected.
pub(super) fn not_a_size(expr: &Expr, value: &Value) -> Diagnostic {
    match value.number() {
        Some(number) if number.fract() != 0.0 => {
            let error = Diagnostic::error(format!("a size of {number}")).label(expr.span, "not a whole number");
            match expr.kind {
                ExprKind::Name(_) | ExprKind::Float(_) => error.help("sizes are whole numbers"),
                _ => error.help(format!("choose numbers of which `{expr}` is whole")),
            }
        }
        Some(number) => Diagnostic::error(format!("a size of {number}")).label(expr.span, "sizes are not negative"),
        None => wrong_kind(expr, value, "a size"),
    }
}

/// The graph's name for an element type of a spec; none for types that only data have.
pub(crate) fn dtype(dtype: spec::Dtype) -> Option<DType> {
    match dtype {
        spec::Dtype::F32 => Some(DType::F32),
        spec::Dtype::Bf16 => Some(DType::Bf16),
        spec::Dtype::F16 => Some(DType::F16),
        spec::Dtype::I32 => Some(DType::I32),
        spec::Dtype::Bool => Some(DType::Bool),
        _ => None,
    }
}

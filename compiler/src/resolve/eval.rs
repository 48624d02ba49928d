//! Evaluates expressions: what is known at compile time to values, the rest to nodes of a graph.
//!
//! Errors carry the place of the expression; [`Evaluator::explain`] adds the instances around it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::check::{CONSTANTS, each_name};
use super::instance::Instance;
use super::library::{Library, Scope};
use super::state::States;
use super::value::{FunctionRef, Template, Value, literal, wrong_kind};
use crate::diag::{Diagnostic, Span};
use crate::ir::{Builder, Graph, NodeId, Origin, OriginId, Subscript};
use crate::ops::OpError;
use crate::ops::functions::function;
use crate::spec::{BinaryOp, Expr, ExprKind, Index, Name, UnaryOp};

pub(crate) type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// Deepest nesting of instances. ALIP's is 6; the bound keeps a recursion that only arguments bring about off the stack's end.
const MAX_DEPTH: usize = 40;

/// Most copies that `[part; n]` makes, and most items of a list.
const MAX_ITEMS: i64 = 4096;

/// What modules read as `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In `train`.
    Train,
    /// In all other programs.
    Eval,
}

/// What an expression sees.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The modules.
    pub(crate) scope: Arc<Scope>,
    /// Values by name.
    pub(crate) values: HashMap<String, Value>,
    /// Node path of the application.
    pub(crate) path: Arc<str>,
    /// What draws of random numbers here are named by: the equations and parts on the way, which are those of every program.
    pub(crate) stream: Arc<str>,
    /// The module applied.
    pub(crate) module: Arc<str>,
    /// The first name of the equation at hand.
    pub(crate) equation: Arc<str>,
    /// What `mode` is; none where parts are declared, which are the same in all programs.
    pub(crate) mode: Option<Mode>,
    /// In `parts` and `args`: a module called here becomes a part instead of being applied, and there are no tensors.
    pub(crate) compile_time: bool,
}

impl Frame {
    /// Tells, of an error in an expression, what the names in it stand for, where that is a number.
    pub(super) fn values_in(&self, expr: &Expr, error: Diagnostic) -> Diagnostic {
        let mut told: Vec<String> = Vec::new();
        each_name(expr, &mut |name, _| {
            let value = self.values.get(name).filter(|value| value.number().is_some());
            let text = value.map(|value| format!("`{name}` is {value}"));
            told.extend(text.filter(|text| !told.contains(text)));
        });
        if told.is_empty() { error } else { error.note(told.join(", ")) }
    }

    /// Refuses a tensor where there are none.
    pub(super) fn admits_tensors(&self, span: Span) -> Result<()> {
        if !self.compile_time {
            return Ok(());
        }
        Err(Diagnostic::error("not known at compile time")
            .label(span, "this is a tensor")
            .help("arguments of modules, shapes and conditions are compile-time values"))
    }
}

/// An instance being made or applied.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    name: Arc<str>,
    module: Arc<str>,
    span: Span,
}

/// What the last application of an instance computed.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) count: u32,
    pub(crate) span: Span,
    pub(crate) values: Arc<HashMap<String, Value>>,
}

/// Builds one program.
pub(crate) struct Evaluator<'a> {
    pub(crate) library: &'a Library,
    /// Parameters and states of the model.
    pub(crate) states: &'a mut States,
    /// The program.
    pub(crate) graph: Graph,
    /// Of the program.
    pub(crate) mode: Mode,
    /// Nodes that read state tensors, by path.
    pub(crate) reads: HashMap<String, NodeId>,
    /// Applications by instance.
    pub(crate) applied: HashMap<usize, Applied>,
    /// How often each node path was taken.
    pub(crate) paths: HashMap<String, u32>,
    /// Streams of random numbers that are drawn from.
    pub(super) streams: HashSet<u64>,
    stack: Vec<Site>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator that adds to `graph`.
    pub(crate) fn new(library: &'a Library, states: &'a mut States, graph: Graph, mode: Mode) -> Evaluator<'a> {
        let (reads, streams) = (super::state::reads(&graph), super::noise::streams(&graph));
        let (applied, paths, stack) = (HashMap::new(), HashMap::new(), Vec::new());
        Evaluator { library, states, graph, mode, reads, applied, paths, streams, stack }
    }

    /// Goes into an instance.
    pub(crate) fn enter(&mut self, name: &str, module: &str, span: Span) -> Result<()> {
        self.stack.push(Site { name: name.into(), module: module.into(), span });
        if self.stack.len() > MAX_DEPTH {
            return Err(Diagnostic::error(format!("modules are nested more than {MAX_DEPTH} deep"))
                .label(span, "")
                .help("does a module reach itself through its arguments? repetition is written `[part; n]`"));
        }
        Ok(())
    }

    /// Comes back. Not called on an error, so that the stack then tells where it was.
    pub(crate) fn leave(&mut self) {
        self.stack.pop();
    }

    /// Adds to an error the chain of instances it happened in, from the graph down.
    pub(crate) fn explain(&mut self, mut error: Diagnostic) -> Diagnostic {
        let stack = std::mem::take(&mut self.stack);
        let Some(outermost) = stack.first() else { return error };
        let shown = |label: &crate::diag::Label| label.span.source == outermost.span.source;
        if !error.labels.iter().any(shown) {
            error = error.context(outermost.span, "applied from here");
        }
        let chain: Vec<String> = stack.iter().map(|site| format!("`{}` ({})", site.name, site.module)).collect();
        error.note(format!("inside {}", chain.join(" > ")))
    }

    /// Adds nodes for an expression.
    pub(crate) fn emit<T>(
        &mut self,
        frame: &Frame,
        span: Span,
        build: impl FnOnce(&mut Builder<'_>) -> Result<T, OpError>,
    ) -> Result<T> {
        self.emit_of(frame, span, &[], build)
    }

    /// Adds nodes for an expression of these operands; an error about one of them has its place.
    pub(super) fn emit_of<T>(
        &mut self,
        frame: &Frame,
        span: Span,
        operands: &[(&Value, Span)],
        build: impl FnOnce(&mut Builder<'_>) -> Result<T, OpError>,
    ) -> Result<T> {
        frame.admits_tensors(span)?;
        let origin = self.origin(frame, span);
        build(&mut Builder::strict(&mut self.graph, origin)).map_err(|error| {
            let number = error.number;
            let at = operands.iter().find(|(value, _)| number.is_some() && value.number() == number);
            op_error(error, at.map_or(span, |(_, at)| *at))
        })
    }

    fn origin(&mut self, frame: &Frame, span: Span) -> OriginId {
        self.graph.add_origin(Origin { path: frame.path.clone(), module: frame.module.clone(), span: Some(span) })
    }

    /// The value of an expression.
    pub(crate) fn eval(&mut self, frame: &Frame, expr: &Expr) -> Result<Value> {
        if let Some(value) = literal(expr) {
            return Ok(value);
        }
        match &expr.kind {
            ExprKind::Name(name) => self.name(frame, name, expr.span),
            ExprKind::Member(inner, name) => self.member(frame, expr, inner, name),
            ExprKind::Call(callee, args) => self.call(frame, expr, callee, args),
            ExprKind::Unary(op, inner) => self.unary(frame, expr, *op, inner),
            ExprKind::Binary(op, a, b) => self.binary(frame, expr, *op, a, b),
            ExprKind::Index(inner, items) => self.index(frame, expr, inner, items),
            ExprKind::Tuple(items) => {
                items.iter().map(|item| self.eval(frame, item)).collect::<Result<_>>().map(Value::Tuple)
            }
            ExprKind::List(items) => self.list(frame, items),
            ExprKind::Repeat { item, count } => {
                let n = self.int(frame, count)?;
                if !(0..=MAX_ITEMS).contains(&n) {
                    return Err(Diagnostic::error(format!("{n} copies"))
                        .label(count.span, format!("expected 0 to {MAX_ITEMS}")));
                }
                if n == 0 {
                    return Ok(Value::List(Vec::new())); // of what may have no meaning for none: `layers ** -0.5`
                }
                let value = self.eval(frame, item)?;
                if matches!(value, Value::List(_) | Value::Tuple(_)) {
                    return Err(
                        wrong_kind(item, &value, "one thing to repeat").help("join lists with `+`: `[a; 2] + [b; 3]`")
                    );
                }
                Ok(Value::List(vec![value; n as usize]))
            }
            ExprKind::If { then, condition, otherwise } => match self.eval(frame, condition)? {
                Value::Bool(true) => self.eval(frame, then),
                Value::Bool(false) => self.eval(frame, otherwise),
                other => Err(wrong_kind(condition, &other, "a compile-time truth value")
                    .help("`if` chooses at compile time; between tensors choose with `select(condition, a, b)`")),
            },
            _ => Err(Diagnostic::error("`..` stands in a shape or list only").label(expr.span, "")),
        }
    }

    /// The value of a name.
    fn name(&mut self, frame: &Frame, name: &str, span: Span) -> Result<Value> {
        if let Some(value) = frame.values.get(name) {
            return Ok(value.clone());
        }
        if name == "mode" {
            return mode(frame, span);
        }
        if let Some((_, value)) = CONSTANTS.iter().find(|(constant, _)| *constant == name) {
            return Ok(Value::Float(*value));
        }
        if let Some(module) = frame.scope.get(name) {
            return Ok(Value::Template(Arc::new(Template::new(*module))));
        }
        match function(name) {
            Some(function) => Ok(Value::Function(FunctionRef(function))),
            None => Err(Diagnostic::error(format!("`{name}` has no value here"))
                .label(span, "")
                .suggest(name, frame.values.keys().map(String::as_str))
                .help("shapes and parts read arguments; bodies also read inputs, parameters and earlier equations")),
        }
    }

    /// `part.name`, what the part's application called by that name.
    fn member(&mut self, frame: &Frame, expr: &Expr, inner: &Expr, name: &Name) -> Result<Value> {
        // Values of the forward program stand under their dotted name when the update is built on it.
        if let Some(value) = frame.values.get(&expr.to_string()) {
            return Ok(value.clone());
        }
        if matches!(&inner.kind, ExprKind::Name(name) if name == "train") && !frame.values.contains_key("train") {
            return self.step_value(frame, expr, name);
        }
        let value = self.eval(frame, inner)?;
        let unknown = |values: &mut dyn Iterator<Item = &String>| {
            Diagnostic::error(format!("no value named `{name}` there"))
                .label(name.span, "")
                .suggest(name, values.map(String::as_str))
        };
        match &value {
            Value::Record(values) => values
                .get(name.as_str())
                .cloned()
                .ok_or_else(|| unknown(&mut values.keys()).help(format!("it has {}", listed(values.keys())))),
            Value::Instance(instance) => match self.applied.get(&instance.id) {
                Some(Applied { count: 1, values, .. }) if values.contains_key(name.as_str()) => {
                    Ok(values[name.as_str()].clone())
                }
                _ if instance.parts.contains_key(name.as_str()) => Ok(instance.parts[name.as_str()].clone()),
                _ if self.has_state(instance, name) => self.state_of(frame, instance, name),
                _ if instance.args.contains_key(name.as_str()) => Ok(instance.args[name.as_str()].clone()),
                Some(applied) if applied.count == 1 => {
                    let mut names: Vec<&String> = applied.values.keys().collect();
                    names.sort();
                    Err(unknown(&mut names.iter().copied()).help(format!("`{}` has {}", instance.name, listed(&names))))
                }
                Some(applied) => Err(Diagnostic::error(format!("`{}` is applied more than once", instance.name))
                    .label(expr.span, format!("which `{name}` is meant?"))
                    .context(applied.span, "last applied here")
                    .help("give the value a name in the body and use that")),
                None => Err(Diagnostic::error(format!("`{}` is not applied before this", instance.name))
                    .label(expr.span, "its values exist once it is applied")
                    .context(instance.span, "declared here")),
            },
            other => Err(wrong_kind(inner, other, "a part").help("`part.name` reads a value of an applied part")),
        }
    }

    /// Whether a name is a parameter or state of a part that was applied, or the next value of one.
    fn has_state(&self, part: &Instance, name: &Name) -> bool {
        let name = name.next_of().unwrap_or(name);
        let spec = &self.library.module(part.module).spec;
        let declared = spec.params.contains_key(name) || spec.state.contains_key(name);
        declared && part.place.path(name).is_some_and(|path| self.states.entries.contains_key(&path))
    }

    /// A parameter or state of a part, or its next value, which that of a parameter is once the update is built.
    fn state_of(&mut self, frame: &Frame, part: &Instance, name: &Name) -> Result<Value> {
        let own = name.next_of().unwrap_or(name);
        let path = part.place.path(own).unwrap_or_default();
        let Some(ty) = self.states.entries.get(&path).map(|entry| entry.decl.ty.clone()) else {
            return Err(Diagnostic::error(format!("no value named `{name}` there")).label(name.span, ""));
        };
        let is_param = self.library.module(part.module).spec.params.contains_key(own);
        let updated = matches!(frame.values.get("train"), Some(Value::Record(_)));
        if is_param && name.next_of().is_some() && !updated {
            return Err(Diagnostic::error(format!("`{name}` is not known before the update"))
                .label(name.span, format!("the next value of the parameter `{path}`"))
                .help("only metrics read what parameters become"));
        }
        let next = name.next_of().and_then(|_| self.graph.updates.get(&path).copied());
        match next {
            Some(next) => Ok(Value::Tensor(next)),
            None => self.read(frame, &path, ty, name.span).map(Value::Tensor),
        }
    }

    fn list(&mut self, frame: &Frame, items: &[Expr]) -> Result<Value> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match &item.kind {
                ExprKind::Rest(Some(name)) => match self.name(frame, name, name.span)? {
                    Value::List(more) => values.extend(more),
                    other => return Err(wrong_kind(item, &other, "a list")),
                },
                _ => values.push(self.eval(frame, item)?),
            }
        }
        Ok(Value::List(values))
    }

    /// A whole number known at compile time.
    pub(crate) fn int(&mut self, frame: &Frame, expr: &Expr) -> Result<i64> {
        let value = self.eval(frame, expr)?;
        value.int().ok_or_else(|| frame.values_in(expr, wrong_kind(expr, &value, "a whole number")))
    }

    /// A number known at compile time.
    pub(crate) fn number(&mut self, frame: &Frame, expr: &Expr) -> Result<f64> {
        let value = self.eval(frame, expr)?;
        value.number().ok_or_else(|| wrong_kind(expr, &value, "a number known at compile time"))
    }

    /// A tensor; numbers and truth values become constants.
    pub(crate) fn tensor(&mut self, frame: &Frame, value: &Value, expr: &Expr) -> Result<NodeId> {
        match value {
            Value::Tensor(id) => Ok(*id),
            Value::Bool(b) => {
                self.emit(frame, expr.span, |builder| builder.constant(f64::from(*b), crate::ir::DType::Bool))
            }
            other => match other.number() {
                Some(x) => self.emit(frame, expr.span, |builder| builder.scalar(x)),
                None => Err(wrong_kind(expr, other, "a tensor")),
            },
        }
    }

    fn unary(&mut self, frame: &Frame, expr: &Expr, op: UnaryOp, inner: &Expr) -> Result<Value> {
        let value = self.eval(frame, inner)?;
        match (op, &value) {
            (UnaryOp::Neg, Value::Float(x)) => Ok(Value::Float(-x)),
            (UnaryOp::Neg, Value::Int(_) | Value::Size(_)) => {
                value.int().and_then(i64::checked_neg).map(Value::Int).ok_or_else(|| overflow(expr))
            }
            (UnaryOp::Not, Value::Bool(b)) => Ok(Value::Bool(!b)),
            (_, Value::Tensor(x)) => {
                let (x, span) = (*x, expr.span);
                let negate = op == UnaryOp::Neg;
                self.emit(frame, span, |builder| if negate { builder.neg(x) } else { builder.not(x) })
                    .map(Value::Tensor)
            }
            (UnaryOp::Neg, other) => Err(wrong_kind(inner, other, "a number or tensor")),
            (UnaryOp::Not, other) => Err(wrong_kind(inner, other, "a truth value or tensor")),
        }
    }

    fn binary(&mut self, frame: &Frame, expr: &Expr, op: BinaryOp, a: &Expr, b: &Expr) -> Result<Value> {
        let left = self.eval(frame, a)?;
        // `and` and `or` at compile time stop early, so that `x != none and x > 0` can be said.
        match (op, &left) {
            (BinaryOp::And, Value::Bool(false)) | (BinaryOp::Or, Value::Bool(true)) => return Ok(left),
            _ => {}
        }
        let right = self.eval(frame, b)?;
        if !matches!(left, Value::Tensor(_)) && !matches!(right, Value::Tensor(_)) {
            let value = super::constant::binary(expr, op, (&left, a), (&right, b));
            return value.map_err(|error| frame.values_in(expr, error));
        }
        let (x, y) = (self.tensor(frame, &left, a)?, self.tensor(frame, &right, b)?);
        self.emit_of(frame, expr.span, &[(&left, a.span), (&right, b.span)], |builder| match op {
            BinaryOp::Add => builder.add(x, y),
            BinaryOp::Sub => builder.sub(x, y),
            BinaryOp::Mul => builder.mul(x, y),
            BinaryOp::Div => builder.div(x, y),
            BinaryOp::Rem => builder.rem(x, y),
            BinaryOp::Pow => builder.pow(x, y),
            BinaryOp::MatMul => builder.matmul(x, y),
            BinaryOp::Lt => builder.lt(x, y),
            BinaryOp::Le => builder.le(x, y),
            BinaryOp::Gt => builder.gt(x, y),
            BinaryOp::Ge => builder.ge(x, y),
            BinaryOp::Eq => builder.eq(x, y),
            BinaryOp::Ne => builder.ne(x, y),
            BinaryOp::And => builder.and(x, y),
            BinaryOp::Or => builder.or(x, y),
        })
        .map(Value::Tensor)
    }

    fn index(&mut self, frame: &Frame, expr: &Expr, inner: &Expr, items: &[Index]) -> Result<Value> {
        let value = self.eval(frame, inner)?;
        if let Value::List(list) | Value::Tuple(list) = &value {
            let [Index::At(at)] = items else {
                return Err(Diagnostic::error("a list takes one position").label(expr.span, "write `list[0]`"));
            };
            let n = self.int(frame, at)?;
            let place = if n < 0 { n + list.len() as i64 } else { n };
            return usize::try_from(place).ok().and_then(|place| list.get(place)).cloned().ok_or_else(|| {
                Diagnostic::error(format!("position {n} of a list of {}", list.len())).label(at.span, "out of range")
            });
        }
        let x = self.tensor(frame, &value, inner)?;
        let mut subscripts = Vec::with_capacity(items.len());
        for item in items {
            subscripts.push(match item {
                Index::At(at) => Subscript::At(self.int(frame, at)?),
                Index::Rest(_) => Subscript::Rest,
                Index::Range { start, stop, step, .. } => {
                    let mut bound = |bound: &Option<Expr>| bound.as_ref().map(|e| self.int(frame, e)).transpose();
                    Subscript::Range { start: bound(start)?, stop: bound(stop)?, step: bound(step)? }
                }
            });
        }
        self.emit(frame, expr.span, |builder| builder.subscript(x, &subscripts)).map(Value::Tensor)
    }
}

/// The value of `mode`.
fn mode(frame: &Frame, span: Span) -> Result<Value> {
    match frame.mode {
        Some(Mode::Train) => Ok(Value::Str("train".into())),
        Some(Mode::Eval) => Ok(Value::Str("eval".into())),
        None => Err(Diagnostic::error("`mode` is not known here")
            .label(span, "parts, their arguments and parameters are the same in all programs")
            .help("choose in the body, where `mode` is 'train' or 'eval'")),
    }
}

/// `lcg.sim` as text, if the expression is a chain of names.
pub(crate) fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Name(name) => Some(name.clone()),
        ExprKind::Member(inner, name) => Some(format!("{}.{name}", dotted(inner)?)),
        _ => None,
    }
}

/// `a`, `b`, `c`
pub(crate) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// What an op says, at a place.
pub(crate) fn op_error(error: OpError, span: Span) -> Diagnostic {
    let diagnostic = Diagnostic::error(error.message).label(span, "");
    match error.help {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}

/// Arithmetic that leaves the range of whole numbers.
pub(crate) fn overflow(expr: &Expr) -> Diagnostic {
    Diagnostic::error("number overflow").label(expr.span, "does not fit in 64 bits")
}

//! Values of the expression language: tensors of the graph, and what is known at compile time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::instance::Instance;
use super::library::ModuleId;
use crate::diag::{Diagnostic, Span};
use crate::ir::{Dim, NodeId};
use crate::ops::functions::Function;
use crate::spec::{ArgKind, Expr, ExprKind};

/// What an expression is worth.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A node of the graph at hand.
    Tensor(NodeId),
    /// A whole number.
    Int(i64),
    /// A whole number that is the size of an axis; the name goes with it into shapes and errors.
    Size(Dim),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Str(Arc<str>),
    /// `none`
    None,
    /// `[a, b]`
    List(Vec<Value>),
    /// Several values, such as the outputs of a module.
    Tuple(Vec<Value>),
    /// A module with some of its arguments; not yet an instance.
    Template(Arc<Template>),
    /// An op by name.
    Function(FunctionRef),
    /// A part.
    Instance(Arc<Instance>),
    /// Named values: `train` in metrics.
    Record(Arc<BTreeMap<String, Value>>),
}

/// An entry of the op table.
#[derive(Clone, Copy)]
pub(crate) struct FunctionRef(pub(crate) &'static Function);

impl std::ops::Deref for FunctionRef {
    type Target = Function;

    fn deref(&self) -> &Function {
        self.0
    }
}

impl fmt::Debug for FunctionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

/// A module and arguments for it.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// The module.
    pub(crate) module: ModuleId,
    /// Arguments given so far.
    pub(crate) args: BTreeMap<String, Value>,
    /// Where they are written.
    pub(super) places: BTreeMap<String, Span>,
}

impl Template {
    /// A module without arguments.
    pub(super) fn new(module: ModuleId) -> Template {
        Template { module, args: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// With an argument, in place of the one before.
    pub(crate) fn give(&mut self, name: &str, value: Value, place: Span) {
        self.args.insert(name.to_owned(), value);
        self.places.insert(name.to_owned(), place);
    }
}

impl Value {
    /// As a whole number, if it is one.
    pub(crate) fn int(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            Value::Size(dim) => i64::try_from(dim.size).ok(),
            _ => None,
        }
    }

    /// As a number, if it is one.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            _ => self.int().map(|n| n as f64),
        }
    }

    /// As a size of an axis.
    pub(crate) fn dim(&self) -> Option<Dim> {
        match self {
            Value::Size(dim) => Some(*dim),
            Value::Int(n) => u64::try_from(*n).ok().map(Dim::from),
            _ => None,
        }
    }

    /// For "expected ..., found ...".
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Tensor(_) => "a tensor".into(),
            Value::Int(_) | Value::Size(_) | Value::Float(_) | Value::Bool(_) | Value::None => format!("`{self}`"),
            Value::Str(text) => format!("the string '{text}'"),
            Value::List(_) => "a list".into(),
            Value::Tuple(items) => format!("{} values", items.len()),
            Value::Template(_) => "a module".into(),
            Value::Function(function) => format!("the function `{}`", function.name),
            Value::Instance(instance) => format!("the part `{}`", instance.name),
            Value::Record(_) => "a group of values".into(),
        }
    }

    /// Whether an argument of this kind may have this value.
    pub(crate) fn is_kind(&self, kind: ArgKind) -> bool {
        match kind {
            ArgKind::Int => self.int().is_some(),
            ArgKind::Float => self.number().is_some(),
            ArgKind::Bool => matches!(self, Value::Bool(_)),
            ArgKind::Str => matches!(self, Value::Str(_)),
            ArgKind::List => matches!(self, Value::List(_) | Value::Tuple(_)),
            ArgKind::Module => matches!(self, Value::Template(_) | Value::Function(_)),
        }
    }

    /// The kind of argument that a default value stands for; `none` stands for any.
    pub(crate) fn kind(&self) -> Option<ArgKind> {
        match self {
            // A default written as 25 does not mean that 25.5 is wrong.
            Value::Int(_) | Value::Size(_) | Value::Float(_) => Some(ArgKind::Float),
            Value::Bool(_) => Some(ArgKind::Bool),
            Value::Str(_) => Some(ArgKind::Str),
            Value::List(_) | Value::Tuple(_) => Some(ArgKind::List),
            Value::Template(_) | Value::Function(_) => Some(ArgKind::Module),
            Value::None | Value::Tensor(_) | Value::Instance(_) | Value::Record(_) => None,
        }
    }

    /// Whether a tensor stands anywhere in it.
    pub(crate) fn has_tensor(&self) -> bool {
        match self {
            Value::Tensor(_) => true,
            Value::List(items) | Value::Tuple(items) => items.iter().any(Value::has_tensor),
            _ => false,
        }
    }
}

/// As it would be written in a spec.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Int(n) => write!(f, "{n}"),
            Value::Size(dim) => write!(f, "{}", dim.size),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Str(text) => write!(f, "'{text}'"),
            Value::None => f.write_str("none"),
            other => f.write_str(&other.describe()),
        }
    }
}

/// What an argument kind is called.
pub(crate) fn kind_name(kind: ArgKind) -> &'static str {
    match kind {
        ArgKind::Int => "a whole number",
        ArgKind::Float => "a number",
        ArgKind::Bool => "`true` or `false`",
        ArgKind::Str => "a string",
        ArgKind::List => "a list",
        ArgKind::Module => "a module or function by name",
    }
}

/// The value of an expression that is written as a plain number, string, truth value or `none`.
pub(crate) fn literal(expr: &Expr) -> Option<Value> {
    Some(match &expr.kind {
        ExprKind::Int(n) => Value::Int(*n),
        ExprKind::Float(x) => Value::Float(*x),
        ExprKind::Str(text) => Value::Str(text.as_str().into()),
        ExprKind::Bool(b) => Value::Bool(*b),
        ExprKind::None => Value::None,
        _ => return None,
    })
}

/// A value where another kind was expected.
pub(crate) fn wrong_kind(expr: &Expr, value: &Value, expected: &str) -> Diagnostic {
    Diagnostic::error(format!("expected {expected}, found {}", value.describe()))
        .label(expr.span, format!("expected {expected}"))
}

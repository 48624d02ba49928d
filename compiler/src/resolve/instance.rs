//! Instances: modules with all their arguments, at a path, with their parts.
//!
//! The tree of instances is made once per model and holds no tensors; programs apply it. Parameters and states come into
//! being when an instance is first applied, since their shapes may depend on what it is applied to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use indexmap::IndexMap;

use super::check::each_name;
use super::eval::{Evaluator, Frame};
use super::library::ModuleId;
use super::value::{Template, Value, kind_name, wrong_kind};
use crate::diag::{Diagnostic, Span};
use crate::spec::{ArgSpec, Expr, ExprKind, Index, ModuleSpec, Name, PartSpec, UnaryOp};

type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// Most instances of one model, those of its optimiser and of activations included. The largest graph of the house has about
/// 5,000; the bound keeps repetitions of repetitions from taking all memory.
const MAX_INSTANCES: usize = 200_000;

/// How the paths of an instance's parameters are made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// Below this path; `""` is the top.
    Path(String),
    /// State of the optimiser for a parameter: `optimizer.NAME.PARAMETER`.
    Optimizer(Arc<str>),
    /// Nowhere: a module applied by its name has no place for parameters or state.
    Unnamed,
}

/// A part.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Tells instances apart, also those of one module with equal arguments.
    pub(crate) id: usize,
    /// Its name in the instance it is part of: `attn`, `resblocks.3`.
    pub(crate) name: Arc<str>,
    /// What it is an instance of.
    pub(crate) module: ModuleId,
    /// All arguments.
    pub(crate) args: BTreeMap<String, Value>,
    /// Its own parts: instances, lists of them, functions or `none`.
    pub(crate) parts: IndexMap<String, Value>,
    /// Where its parameters live.
    pub(crate) place: Place,
    /// Where it was declared.
    pub(crate) span: Span,
}

/// Joins paths; the empty path is the top.
pub(crate) fn join(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", name) => name.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, name) => format!("{parent}.{name}"),
    }
}

impl Place {
    /// The path of a parameter or state.
    pub(crate) fn path(&self, name: &str) -> Option<String> {
        match self {
            Place::Path(prefix) => Some(join(prefix, name)),
            Place::Optimizer(parameter) => Some(format!("optimizer.{name}.{parameter}")),
            Place::Unnamed => None,
        }
    }

    /// The place of a part.
    fn part(&self, name: &str) -> Place {
        match self {
            Place::Path(prefix) => Place::Path(join(prefix, name)),
            Place::Optimizer(_) | Place::Unnamed => self.clone(),
        }
    }
}

impl Instance {
    /// What an expression such as `text.transformer.resblocks[-1]` names among its parts: a part, a list of them, a
    /// function or `none`.
    pub(super) fn named(&self, expr: &Expr) -> Option<Value> {
        let part_of = |value: Value, name: &str| match value {
            Value::Instance(part) => part.parts.get(name).cloned(),
            _ => None,
        };
        match &expr.kind {
            ExprKind::Name(name) => self.parts.get(name).cloned(),
            ExprKind::Member(of, name) => part_of(self.named(of)?, name),
            ExprKind::Index(of, at) => {
                let Value::List(parts) = self.named(of)? else { return None };
                let [Index::At(at)] = at.as_slice() else { return None };
                match position(at) {
                    Some(n) => {
                        parts.get(usize::try_from(if n < 0 { n + parts.len() as i64 } else { n }).ok()?).cloned()
                    }
                    // A computed position: parts of one list are alike.
                    None => parts.first().cloned(),
                }
            }
            _ => None,
        }
    }
}

/// A position that is written as a number.
fn position(at: &Expr) -> Option<i64> {
    match &at.kind {
        ExprKind::Int(n) => Some(*n),
        ExprKind::Unary(UnaryOp::Neg, inner) => position(inner)?.checked_neg(),
        _ => None,
    }
}

impl Evaluator<'_> {
    /// Makes an instance with all its parts.
    pub(crate) fn instantiate(
        &mut self,
        template: &Template,
        name: Arc<str>,
        place: Place,
        span: Span,
    ) -> Result<Arc<Instance>> {
        let module = self.library.module(template.module).clone();
        self.enter(&name, &module.spec.name, span)?;
        let mut frame = Frame {
            scope: module.scope.clone(),
            values: HashMap::new(),
            path: name.clone(),
            stream: "".into(),
            module: module.spec.name.as_str().into(),
            equation: "".into(),
            mode: None,
            compile_time: true,
        };
        let args = self.all_args(&module.spec, template, &mut frame, span)?;
        self.requirements(&module.spec, template, &frame, span)?;
        let parts = self.parts(&module.spec.parts, &frame, &place)?;
        let id = self.states.new_id();
        if id > MAX_INSTANCES {
            return Err(Diagnostic::error(format!("more than {MAX_INSTANCES} instances of modules"))
                .label(span, "")
                .help("is a repetition `[part; n]` larger than meant?"));
        }
        self.leave();
        Ok(Arc::new(Instance { id, name, module: template.module, args, parts, place, span }))
    }

    /// Instances for the `parts` of a module or graph.
    pub(crate) fn parts(
        &mut self,
        parts: &IndexMap<Name, PartSpec>,
        frame: &Frame,
        place: &Place,
    ) -> Result<IndexMap<String, Value>> {
        let mut made = IndexMap::new();
        for (name, part) in parts {
            let mut value = self.eval(frame, &part.module)?;
            for (argument, expr) in &part.set {
                let given = self.eval(frame, expr)?;
                value = self.with_argument(&value, argument, &given, expr, part.module.span)?;
            }
            let path = part.path.as_ref().map_or(name.as_str(), |path| path.as_str());
            made.insert(name.text.clone(), self.part(&value, name, &place.part(path), part.module.span)?);
        }
        Ok(made)
    }

    /// The module with another argument, or every one of a list.
    fn with_argument(
        &mut self,
        module: &Value,
        argument: &Name,
        given: &Value,
        expr: &Expr,
        span: Span,
    ) -> Result<Value> {
        match module {
            Value::Template(template) => {
                let spec = self.library.module(template.module).spec.clone();
                self.check_arg(&spec, argument, given, expr.span)?;
                let mut template = (**template).clone();
                template.give(argument, given.clone(), expr.span);
                Ok(Value::Template(Arc::new(template)))
            }
            Value::List(items) => {
                let items = items.iter().map(|item| self.with_argument(item, argument, given, expr, span));
                items.collect::<Result<_>>().map(Value::List)
            }
            other => Err(Diagnostic::error(format!("`{argument}` cannot be set: the part is {}", other.describe()))
                .label(argument.span, "an argument of no module")
                .context(span, "the part")),
        }
    }

    fn part(&mut self, value: &Value, name: &str, place: &Place, span: Span) -> Result<Value> {
        match value {
            Value::Template(template) => {
                self.instantiate(template, name.into(), place.clone(), span).map(Value::Instance)
            }
            Value::List(items) => {
                let part = |(index, item): (usize, &Value)| {
                    self.part(item, &format!("{name}.{index}"), &place.part(&index.to_string()), span)
                };
                items.iter().enumerate().map(part).collect::<Result<_>>().map(Value::List)
            }
            Value::Function(_) | Value::None => Ok(value.clone()),
            other => Err(Diagnostic::error(format!("part `{name}` is not a module"))
                .label(span, format!("this is {}", other.describe()))
                .help("a part is written `\"name\": \"module(argument, ...)\"`, `\"[module(...); n]\"`, or `none`")),
        }
    }

    /// Given arguments and defaults; defaults may read the arguments before them.
    fn all_args(
        &mut self,
        spec: &ModuleSpec,
        template: &Template,
        frame: &mut Frame,
        span: Span,
    ) -> Result<BTreeMap<String, Value>> {
        for (name, arg) in &spec.args {
            let value = match (template.args.get(name.as_str()), arg) {
                (Some(value), _) => value.clone(),
                (None, ArgSpec::Default(expr)) => self.eval(frame, expr)?,
                (None, ArgSpec::Required(kind)) => {
                    return Err(Diagnostic::error(format!("`{}` needs the argument `{name}`", spec.name))
                        .label(span, format!("`{name}` is missing"))
                        .context(name.span, "declared here")
                        .help(format!("add `{name}: ...`, {}", kind_name(kind.node))));
                }
            };
            frame.values.insert(name.text.clone(), value);
        }
        Ok(frame.values.clone().into_iter().collect())
    }

    /// Checks what a module requires of its arguments. Where a tensor takes the place of an argument, as a schedule's
    /// `beta1` does, nothing can be said of it.
    fn requirements(&mut self, spec: &ModuleSpec, template: &Template, frame: &Frame, span: Span) -> Result<()> {
        for required in &spec.require {
            let (mut computed, mut place) = (false, None);
            each_name(required, &mut |name, _| {
                computed |= frame.values.get(name).is_some_and(Value::has_tensor);
                place = place.or(template.places.get(name).copied());
            });
            if computed {
                continue;
            }
            match self.eval(frame, required)? {
                Value::Bool(true) => {}
                Value::Bool(false) => {
                    let error = Diagnostic::error(format!("`{}` requires `{required}`", spec.name))
                        .label(place.unwrap_or(span), "not so here")
                        .context(required.span, "required here");
                    return Err(frame.values_in(required, error));
                }
                other => return Err(wrong_kind(required, &other, "a truth value")),
            }
        }
        Ok(())
    }

    /// Checks the kind of a given argument.
    pub(crate) fn check_arg(&mut self, spec: &ModuleSpec, name: &Name, value: &Value, span: Span) -> Result<()> {
        let Some((declared, arg)) = spec.args.get_key_value(name.as_str()) else {
            return Err(unknown_arg(spec, name));
        };
        let kind = match arg {
            ArgSpec::Required(kind) => Some(kind.node),
            ArgSpec::Default(expr) => super::value::literal(expr).and_then(|value| value.kind()),
        };
        match kind {
            Some(kind) if !value.is_kind(kind) => Err(Diagnostic::error(format!(
                "`{name}` of `{}` is {}, not {}",
                spec.name,
                kind_name(kind),
                value.describe()
            ))
            .label(span, format!("expected {}", kind_name(kind)))
            .context(declared.span, "declared here")),
            _ if value.has_tensor() => Err(Diagnostic::error(format!("`{name}` is not known at compile time"))
                .label(span, "a tensor")
                .context(declared.span, "arguments are compile-time values")
                .help("tensors are passed as inputs, when the part is applied")),
            _ => Ok(()),
        }
    }
}

/// An argument that a module does not have.
pub(crate) fn unknown_arg(spec: &ModuleSpec, name: &Name) -> Diagnostic {
    let args = spec.args.keys().chain(spec.inputs.keys()).map(Name::as_str);
    let listed: Vec<String> = spec.args.keys().map(|arg| format!("`{arg}`")).collect();
    let error = Diagnostic::error(format!("`{}` has no argument `{name}`", spec.name))
        .label(name.span, "unknown argument")
        .context(spec.name.span, "the module")
        .suggest(name, args);
    if spec.inputs.contains_key(name.as_str()) {
        let help =
            format!("`{name}` is an input, given when it is applied; inputs of an optimiser come from the schedule");
        return error.help(help);
    }
    match listed.is_empty() {
        true => error.help("it takes no arguments"),
        false => error.help(format!("its arguments are {}", listed.join(", "))),
    }
}

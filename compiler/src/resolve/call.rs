//! Calls: of parts, modules, functions and the form `chain`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::eval::{Evaluator, Frame, Result, listed};
use super::value::{FunctionRef, Template, Value, wrong_kind};
use crate::diag::{Diagnostic, Span};
use crate::spec::{Arg, Expr, ExprKind, Name};

/// An argument as given.
#[derive(Clone, Debug)]
pub(crate) struct Given<'e> {
    pub(crate) name: Option<&'e Name>,
    pub(crate) value: Value,
    pub(crate) expr: &'e Expr,
}

/// An argument or input that a call gives two values.
pub(super) fn given_twice(name: &Name, again: Span, first: Span) -> Diagnostic {
    Diagnostic::error(format!("argument `{name}` is given twice"))
        .label(again, "again here")
        .context(first, "first here")
        .help("what is written by position has the order of the declaration; leave one of the two out")
}

fn hands_on_several(count: usize, parts: &Expr, span: Span) -> Diagnostic {
    Diagnostic::error(format!("{count} values, where `chain` hands on one"))
        .label(span, format!("each part is applied to the one value that the part before it yields, not to {count}"))
        .context(parts.span, "the parts")
        .help("apply such parts by themselves: `a, b = parts[0](a, b)`, `a, b = parts[1](a, b)`")
}

impl Evaluator<'_> {
    /// `callee(args)`.
    pub(crate) fn call(&mut self, frame: &Frame, expr: &Expr, callee: &Expr, args: &[Arg]) -> Result<Value> {
        if let ExprKind::Name(name) = &callee.kind
            && !frame.values.contains_key(name)
            && !frame.scope.contains_key(name)
        {
            match name.as_str() {
                "chain" => return self.chain(frame, expr, args),
                "noise" => return self.noise(frame, expr, args),
                "len" => return self.len(frame, expr, args),
                _ => {}
            }
        }
        let target = self.callee(frame, callee)?;
        let mut given = Vec::with_capacity(args.len());
        for arg in args {
            given.push(Given { name: arg.name.as_ref(), value: self.eval(frame, &arg.value)?, expr: &arg.value });
        }
        self.invoke(frame, &target, given, expr, callee.span)
    }

    /// What is called. A name that is both a value and something to call means the latter here: `mean = mean(x)`. A part
    /// that is `none` is no other part or module of its name.
    fn callee(&mut self, frame: &Frame, callee: &Expr) -> Result<Value> {
        if let ExprKind::Name(name) = &callee.kind
            && !matches!(
                frame.values.get(name),
                Some(Value::Instance(_) | Value::Template(_) | Value::Function(_) | Value::List(_) | Value::None)
            )
        {
            if let Some(module) = frame.scope.get(name) {
                return Ok(Value::Template(Arc::new(Template::new(*module))));
            }
            if let Some(function) = crate::ops::functions::function(name) {
                return Ok(Value::Function(FunctionRef(function)));
            }
        }
        self.eval(frame, callee)
    }

    /// Calls a value.
    fn invoke(
        &mut self,
        frame: &Frame,
        target: &Value,
        given: Vec<Given<'_>>,
        expr: &Expr,
        callee: Span,
    ) -> Result<Value> {
        match target {
            Value::Instance(instance) => {
                frame.admits_tensors(expr.span)?;
                self.apply(frame, instance, given, expr.span)
            }
            Value::Template(template) if frame.compile_time => self.with_args(template, given),
            Value::Template(template) => self.apply_template(frame, template, given, expr.span),
            Value::Function(function) => self.function(frame, function.0, given, expr),
            Value::List(_) => Err(Diagnostic::error("a list of parts cannot be called")
                .label(callee, "a list")
                .help("apply its parts one after the other with `chain(parts, x)`, or one of them with `parts[0](x)`")),
            Value::None => Err(Diagnostic::error("`none` cannot be called")
                .label(callee, "is `none` here")
                .help("say what is meant without it: `part(x) if part != none else x`")),
            other => Err(Diagnostic::error(format!("{} cannot be called", other.describe())).label(callee, "")),
        }
    }

    /// `chain(parts, x, more...)`: each part is applied to what the one before it yields.
    fn chain(&mut self, frame: &Frame, expr: &Expr, args: &[Arg]) -> Result<Value> {
        let [parts, first, more @ ..] = args else {
            return Err(Diagnostic::error("`chain` takes parts and what the first of them is applied to")
                .label(expr.span, "")
                .help("write `chain(blocks, x)`"));
        };
        if let Some(name) = parts.name.as_ref().or(first.name.as_ref()) {
            return Err(Diagnostic::error(format!("`chain` takes `{name}` by position"))
                .label(name.span, "named")
                .help("write `chain(blocks, x)`; only what comes after is given by name, to each part"));
        }
        let list = match self.eval(frame, &parts.value)? {
            Value::List(list) => list,
            Value::None => Vec::new(),
            other => {
                return Err(wrong_kind(&parts.value, &other, "a list of parts")
                    .help("declare one as `\"blocks\": \"[block(...); n]\"`"));
            }
        };
        let mut value = self.eval(frame, &first.value)?;
        for part in &list {
            if let Value::Tuple(values) = &value {
                return Err(hands_on_several(values.len(), &parts.value, expr.span));
            }
            let mut given = vec![Given { name: None, value, expr: &first.value }];
            for arg in more {
                given.push(Given { name: arg.name.as_ref(), value: self.eval(frame, &arg.value)?, expr: &arg.value });
            }
            value = self.invoke(frame, part, given, expr, parts.value.span)?;
        }
        Ok(value)
    }

    /// `len(list)`: how many items, at compile time.
    fn len(&mut self, frame: &Frame, expr: &Expr, args: &[Arg]) -> Result<Value> {
        let [Arg { name: None, value }] = args else {
            return Err(Diagnostic::error("`len` takes one list").label(expr.span, "").help("write `len(blocks)`"));
        };
        match self.eval(frame, value)? {
            Value::List(items) | Value::Tuple(items) => Ok(Value::Int(items.len() as i64)),
            other => Err(wrong_kind(value, &other, "a list")),
        }
    }

    /// A module with more arguments, positional ones in the order of their declaration.
    fn with_args(&mut self, template: &Template, given: Vec<Given<'_>>) -> Result<Value> {
        let spec = self.library.module(template.module).spec.clone();
        let mut template = template.clone();
        let mut taken: BTreeMap<String, Span> = BTreeMap::new();
        for (position, given) in given.into_iter().enumerate() {
            let name = match given.name {
                Some(name) => name.clone(),
                None => match spec.args.get_index(position) {
                    Some((name, _)) => Name::new(name.text.clone(), given.expr.span),
                    None => {
                        return Err(Diagnostic::error(format!("too many arguments for `{}`", spec.name))
                            .label(given.expr.span, "one too many")
                            .context(spec.name.span, "the module")
                            .help(format!("its arguments are: {}", listed(spec.args.keys().map(Name::as_str)))));
                    }
                },
            };
            self.check_arg(&spec, &name, &given.value, given.expr.span)?;
            if let Some(first) = taken.insert(name.text.clone(), given.expr.span) {
                return Err(given_twice(&name, given.expr.span, first));
            }
            template.give(&name, given.value, given.expr.span);
        }
        Ok(Value::Template(Arc::new(template)))
    }
}

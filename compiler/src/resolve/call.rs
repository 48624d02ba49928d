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

impl Evaluator<'_> {
    /// `callee(args)`.
    pub(crate) fn call(&mut self, frame: &Frame, expr: &Expr, callee: &Expr, args: &[Arg]) -> Result<Value> {
        if matches!(&callee.kind, ExprKind::Name(name) if name == "chain" && !frame.values.contains_key("chain")) {
            return self.chain(frame, expr, args);
        }
        let target = self.callee(frame, callee)?;
        let mut given = Vec::with_capacity(args.len());
        for arg in args {
            given.push(Given { name: arg.name.as_ref(), value: self.eval(frame, &arg.value)?, expr: &arg.value });
        }
        self.invoke(frame, &target, given, expr, callee.span)
    }

    /// What is called. A name that is both a value and something to call means the latter here: `mean = mean(x)`.
    fn callee(&mut self, frame: &Frame, callee: &Expr) -> Result<Value> {
        if let ExprKind::Name(name) = &callee.kind
            && !matches!(
                frame.values.get(name),
                Some(Value::Instance(_) | Value::Template(_) | Value::Function(_) | Value::List(_))
            )
        {
            if let Some(module) = frame.scope.get(name) {
                return Ok(Value::Template(Arc::new(Template { module: *module, args: BTreeMap::new() })));
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
            Value::Instance(instance) => self.apply(frame, instance, given, expr.span),
            Value::Template(template) if frame.compile_time => self.with_args(template, given),
            Value::Template(template) => self.apply_template(frame, template, given, expr.span),
            Value::Function(function) => self.function(frame, function.0, given, expr),
            Value::List(_) => Err(Diagnostic::error("a list of parts cannot be called")
                .label(callee, "a list")
                .help("apply its parts one after the other with `chain(parts, x)`, or one of them with `parts[0](x)`")),
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
            let mut given = vec![Given { name: None, value, expr: &first.value }];
            for arg in more {
                given.push(Given { name: arg.name.as_ref(), value: self.eval(frame, &arg.value)?, expr: &arg.value });
            }
            value = self.invoke(frame, part, given, expr, parts.value.span)?;
        }
        Ok(value)
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
                return Err(Diagnostic::error(format!("argument `{name}` is given twice"))
                    .label(given.expr.span, "again here")
                    .context(first, "first here"));
            }
            template.args.insert(name.text, given.value);
        }
        Ok(Value::Template(Arc::new(template)))
    }
}

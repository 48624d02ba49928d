//! Calls of the functions in the op table.

use super::call::Given;
use super::eval::{Evaluator, Frame, Result, op_error};
use super::value::Value;
use crate::diag::{Diagnostic, Span};
use crate::ops::functions::{ArgValue, Function};
use crate::spec::Expr;

impl Evaluator<'_> {
    /// Applies a function, at compile time where nothing given is a tensor and it is one of those that arguments use.
    pub(crate) fn function(
        &mut self,
        frame: &Frame,
        function: &'static Function,
        given: Vec<Given<'_>>,
        expr: &Expr,
    ) -> Result<Value> {
        if !given.iter().any(|given| given.value.has_tensor()) {
            let values: Vec<&Value> = given.iter().map(|given| &given.value).collect();
            if let Some(value) = super::constant::call(function.name, &values, expr) {
                return value.map_err(|error| frame.values_in(expr, error));
            }
        }
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        let operands: Vec<(&Value, Span)> = given.iter().map(|given| (&given.value, given.expr.span)).collect();
        for given in &given {
            let value = argument(function, given)?;
            match given.name {
                Some(name) => named.push((name.text.clone(), value)),
                None => positional.push(value),
            }
        }
        if frame.compile_time {
            return Err(Diagnostic::error(format!("`{}` is not known at compile time", function.name))
                .label(expr.span, "")
                .help("arguments, shapes and conditions are made of numbers, strings and names of arguments"));
        }
        let called = self.emit_of(frame, expr.span, &operands, |builder| function.call(builder, positional, named));
        called.map(Value::Tensor).map_err(|error| frame.values_in(expr, error))
    }
}

fn argument(function: &Function, given: &Given<'_>) -> Result<ArgValue> {
    let ints = |items: &[Value]| items.iter().map(Value::int).collect::<Option<Vec<i64>>>();
    Ok(match &given.value {
        Value::Tensor(id) => ArgValue::Tensor(*id),
        Value::Int(_) | Value::Size(_) => ArgValue::Int(given.value.int().unwrap_or(i64::MAX)),
        Value::Float(x) => ArgValue::Float(*x),
        Value::Bool(b) => ArgValue::Bool(*b),
        Value::Str(text) => ArgValue::Str(text.to_string()),
        Value::None => ArgValue::None,
        Value::List(items) | Value::Tuple(items) if ints(items).is_some() => {
            ArgValue::Ints(ints(items).unwrap_or_default())
        }
        other => {
            return Err(op_error(
                crate::ops::OpError::new(format!("`{}` cannot take {}", function.name, other.describe()))
                    .help(format!("it is called as `{}`", function.signature())),
                given.expr.span,
            ));
        }
    })
}

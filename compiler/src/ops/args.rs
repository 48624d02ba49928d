//! Arguments of language functions: kinds, defaults, binding by position and by name.

use std::fmt;

use super::Builder;
use super::OpError;
use super::functions::Function;
use crate::diag::did_you_mean;
use crate::graph::{DType, NodeId, Shape};

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tensor, or a number that becomes a constant.
    Tensor,
    /// One or more tensors by position; only the last positional parameter can be this.
    Tensors,
    /// An integer.
    Int,
    /// An integer or a list of them; `none` where that is the default.
    Ints,
    /// A number.
    Float,
    /// A string.
    Str,
    /// `true` or `false`.
    Bool,
    /// Integers under names of the caller's choice (`h: 8`); only the last parameter can be this.
    Sizes,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tensor => "a tensor",
            Kind::Tensors => "tensors",
            Kind::Int => "an integer",
            Kind::Ints => "an integer or a list of integers",
            Kind::Float => "a number",
            Kind::Str => "a string",
            Kind::Bool => "true or false",
            Kind::Sizes => "named sizes",
        })
    }
}

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when not given; absent: it must be given.
    pub default: Option<ArgValue>,
}

/// The value of an argument.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgValue {
    /// A tensor.
    Tensor(NodeId),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// Integers.
    Ints(Vec<i64>),
    /// A string.
    Str(String),
    /// A truth value.
    Bool(bool),
    /// `none`
    None,
}

impl fmt::Display for ArgValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgValue::Tensor(_) => f.write_str("a tensor"),
            ArgValue::Int(value) => write!(f, "{value}"),
            ArgValue::Float(value) => write!(f, "{value:?}"),
            ArgValue::Ints(values) => write!(f, "{values:?}"),
            ArgValue::Str(text) => write!(f, "'{text}'"),
            ArgValue::Bool(value) => write!(f, "{value}"),
            ArgValue::None => f.write_str("none"),
        }
    }
}

/// Arguments that fit a function's parameters, one value per parameter.
#[derive(Clone, Debug, Default)]
pub struct Args {
    values: Vec<ArgValue>,
    tensors: Vec<NodeId>,
    sizes: Vec<(String, u64)>,
}

impl Function {
    fn wrong(&self, message: impl fmt::Display) -> OpError {
        OpError::new(format!("`{}` {message}", self.name)).help(format!("it is called as `{}`", self.signature()))
    }

    /// Binds arguments to parameters; numbers given for tensors become F32 constants.
    ///
    /// # Errors
    /// Too many, missing, unknown, duplicate arguments, or one of a wrong kind.
    pub fn bind(
        &self,
        b: &mut Builder<'_>,
        positional: Vec<ArgValue>,
        named: Vec<(String, ArgValue)>,
    ) -> Result<Args, OpError> {
        let mut args = Args::default();
        let mut given: Vec<Option<ArgValue>> = vec![None; self.params.len()];
        for (position, value) in positional.into_iter().enumerate() {
            let variadic = self.params.iter().position(|param| param.kind == Kind::Tensors);
            match (variadic, self.params.get(position)) {
                (Some(first), _) if position >= first => {
                    let ArgValue::Tensor(id) = tensor(b, value)? else {
                        return Err(
                            self.wrong(format!("takes tensors by position, but argument {} is none", position + 1))
                        );
                    };
                    args.tensors.push(id);
                }
                (_, Some(param)) if param.kind != Kind::Sizes => given[position] = Some(value),
                _ => return Err(self.wrong(format!("takes {} arguments by position at most", position))),
            }
        }
        for (name, value) in named {
            match self.params.iter().position(|param| param.name == name) {
                Some(i) if given[i].is_some() => return Err(self.wrong(format!("gets `{name}` twice"))),
                Some(i) if self.params[i].kind == Kind::Tensors => {
                    return Err(self.wrong(format!("takes `{name}` by position")));
                }
                Some(i) => given[i] = Some(value),
                None if self.params.last().is_some_and(|param| param.kind == Kind::Sizes) => match value {
                    ArgValue::Int(size) if size > 0 => args.sizes.push((name, size as u64)),
                    value => return Err(self.wrong(format!("takes a size of at least 1 for `{name}`, not {value}"))),
                },
                None => {
                    let error = self.wrong(format!("has no argument `{name}`"));
                    let near = did_you_mean(&name, self.params.iter().map(|param| param.name));
                    return Err(match near {
                        Some(near) => error.help(format!("did you mean `{near}`?")),
                        None => error,
                    });
                }
            }
        }
        for (param, value) in self.params.iter().zip(given) {
            let value = match (value, &param.default) {
                (Some(value), default) => self.fit(b, param, value, default.as_ref())?,
                (None, Some(default)) => default.clone(),
                (None, None) if param.kind == Kind::Sizes => ArgValue::None,
                (None, None) if param.kind == Kind::Tensors && !args.tensors.is_empty() => ArgValue::None,
                (None, None) => return Err(self.wrong(format!("misses its argument `{}`", param.name))),
            };
            args.values.push(value);
        }
        Ok(args)
    }

    fn fit(
        &self,
        b: &mut Builder<'_>,
        param: &Param,
        value: ArgValue,
        default: Option<&ArgValue>,
    ) -> Result<ArgValue, OpError> {
        match (param.kind, value) {
            (Kind::Tensor, value @ (ArgValue::Int(_) | ArgValue::Float(_) | ArgValue::Bool(_))) => tensor(b, value),
            (Kind::Tensor, value @ ArgValue::Tensor(_))
            | (Kind::Int, value @ ArgValue::Int(_))
            | (Kind::Ints, value @ ArgValue::Ints(_))
            | (Kind::Float, value @ ArgValue::Float(_))
            | (Kind::Str, value @ ArgValue::Str(_))
            | (Kind::Bool, value @ ArgValue::Bool(_)) => Ok(value),
            (Kind::Ints, ArgValue::Int(value)) => Ok(ArgValue::Ints(vec![value])),
            (Kind::Float, ArgValue::Int(value)) => Ok(ArgValue::Float(value as f64)),
            (_, ArgValue::None) if default == Some(&ArgValue::None) => Ok(ArgValue::None),
            (kind, value) => Err(self.wrong(format!("takes {kind} for `{}`, not {value}", param.name))),
        }
    }
}

/// A number as a constant tensor.
fn tensor(b: &mut Builder<'_>, value: ArgValue) -> Result<ArgValue, OpError> {
    Ok(match value {
        ArgValue::Int(value) => ArgValue::Tensor(b.scalar(value as f64)?),
        ArgValue::Float(value) => ArgValue::Tensor(b.scalar(value)?),
        ArgValue::Bool(value) => ArgValue::Tensor(b.constant(f64::from(u8::from(value)), DType::Bool)?),
        value => value,
    })
}

fn unbound(position: usize) -> OpError {
    OpError::new(format!("argument {position} is not bound to its kind"))
}

/// Access by the position of the parameter; binding has checked kinds, so errors here are faults of a function's table
/// entry.
#[allow(clippy::missing_errors_doc)] // said above, once
impl Args {
    /// A tensor.
    pub fn tensor(&self, position: usize) -> Result<NodeId, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Tensor(id)) => Ok(*id),
            _ => Err(unbound(position)),
        }
    }

    /// The tensors of the variadic parameter.
    pub fn tensors(&self) -> &[NodeId] {
        &self.tensors
    }

    /// The named sizes.
    pub fn sizes(&self) -> Vec<(&str, u64)> {
        self.sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect()
    }

    /// An integer.
    pub fn int(&self, position: usize) -> Result<i64, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Int(value)) => Ok(*value),
            _ => Err(unbound(position)),
        }
    }

    /// An integer that is not negative.
    pub fn count(&self, position: usize) -> Result<u64, OpError> {
        let value = self.int(position)?;
        u64::try_from(value).map_err(|_| OpError::new(format!("{value} is negative")))
    }

    /// A number.
    pub fn float(&self, position: usize) -> Result<f64, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Float(value)) => Ok(*value),
            _ => Err(unbound(position)),
        }
    }

    /// A string.
    pub fn str(&self, position: usize) -> Result<&str, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Str(text)) => Ok(text),
            _ => Err(unbound(position)),
        }
    }

    /// A truth value.
    pub fn bool(&self, position: usize) -> Result<bool, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Bool(value)) => Ok(*value),
            _ => Err(unbound(position)),
        }
    }

    /// Integers, `None` for `none`.
    pub fn ints(&self, position: usize) -> Result<Option<&[i64]>, OpError> {
        match self.values.get(position) {
            Some(ArgValue::Ints(values)) => Ok(Some(values)),
            Some(ArgValue::None) => Ok(None),
            _ => Err(unbound(position)),
        }
    }

    /// Integers as a shape.
    pub fn shape(&self, position: usize) -> Result<Shape, OpError> {
        let sizes = self.ints(position)?.unwrap_or_default();
        match sizes.iter().find(|size| **size < 1) {
            Some(size) => Err(OpError::new(format!("a dimension has at least size 1, not {size}, in {sizes:?}"))),
            None => Ok(sizes.iter().map(|size| *size as u64).collect()),
        }
    }
}

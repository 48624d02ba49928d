//! How far a computation in floats may be from the same one in exact numbers, derived from its graph.
//!
//! Running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3): beside every node
//! stands a bound on its error, which is a graph too: what the errors of its inputs become, plus what its own rounding adds.
//! Both are evaluated together by the f64 interpreter, so there is a bound for every element. It holds whatever is fused, in
//! whichever order sums run.
//!
//! The error of a float is a float: the largest distance. The error of an integer or a truth value is a truth value: whether
//! it may be another one, since a comparison was closer than the errors of its sides. A float that depends on such a choice
//! is off by the distance of the alternatives. Where nothing can be said the bound is infinite, or not a number.
//!
//! A rounding to 16 bits is a step like any other: what was off before it decides between which numbers it may choose, and
//! what is exact, or far enough from the middle between two of them, is rounded right or is wrong.
//!
//! Semantic ops are bounded as what they expand to, in the order of operations that rounds most.

use alip_plan::bounds::FloatFormat;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Graph, Node, NodeId, OriginId};
use crate::ops::{Op, OpError, ReduceKind, ScalarOp};
use crate::transform::expand::expand;
use crate::transform::narrow::{Storage, spelled};

/// What transcendental functions of the devices may be wrong by, in units of the roundoff: a few units in the last place.
const FUNCTION: f64 = 8.0;

/// Name of the output of [`with_bounds`] that bounds the error of another one.
pub fn bound_of(name: &str) -> String {
    format!("bound of {name}")
}

/// Name of the output of [`with_bounds`] that is the new value of a state.
pub fn update_of(path: &str) -> String {
    format!("update of {path}")
}

/// A graph that yields all outputs and new states (as [`update_of`]) of this one, and a bound ([`bound_of`]) for each that is
/// not exact: floats with the error of a float, integers and truth values with whether they may be others. `format` is that
/// of f32; values of 16 bits are rounded to their own.
///
/// # Errors
/// A rule built a node its op refuses: a fault of this module.
pub fn with_bounds(graph: &Graph, format: FloatFormat) -> Result<Graph, Diagnostics> {
    let graph = &expand(&spelled(graph, Storage::F32)?, |_| true)?;
    let mut bounded = Graph::new(&graph.name);
    let mut values: Vec<NodeId> = Vec::new();
    let mut errors: Vec<Option<NodeId>> = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let x: Vec<NodeId> = node.inputs.iter().map(|input| values[input.index()]).collect();
        let e: Vec<Option<NodeId>> = node.inputs.iter().map(|input| errors[input.index()]).collect();
        let added = bounded.add(node.op.clone(), &x, OriginId(0)).and_then(|y| {
            let b = Builder::new(&mut bounded, OriginId(0));
            let mut rule = Rule { b, u: format.unit_roundoff, x: &x, e: &e, y };
            Ok((y, rule.error(node)?))
        });
        let (y, error) = added.map_err(|error| {
            Diagnostic::error(format!("internal: the bound of `{}`", node.op.name())).note(error.message)
        })?;
        errors.push(error);
        values.push(y);
    }
    bounded.inputs = graph.inputs.iter().map(|(name, id)| (name.clone(), values[id.index()])).collect();
    let results = graph.outputs.iter().map(|(name, id)| (name.clone(), *id));
    let results = results.chain(graph.updates.iter().map(|(path, id)| (update_of(path), *id)));
    for (name, id) in results {
        if let Some(error) = errors[id.index()] {
            bounded.outputs.insert(bound_of(&name), error);
        }
        bounded.outputs.insert(name, values[id.index()]);
    }
    Ok(bounded)
}

/// The rule for one node: inputs `x` with errors `e` (none: exact), result `y`.
struct Rule<'a, 'g> {
    b: Builder<'g>,
    u: f64,
    x: &'a [NodeId],
    e: &'a [Option<NodeId>],
    y: NodeId,
}

type Found<T = Option<NodeId>> = Result<T, OpError>;

impl Rule<'_, '_> {
    fn error(&mut self, node: &Node) -> Found {
        let exact = self.e.iter().all(Option::is_none);
        if !node.ty.dtype.is_float() {
            return if exact { Ok(None) } else { self.choice(node) };
        }
        match &node.op {
            Op::Input { .. } | Op::State { .. } | Op::Iota { .. } | Op::Random { .. } => Ok(None),
            Op::Const { value, .. } if f64::from(value.0 as f32) == value.0 => Ok(None),
            Op::Const { .. } => self.rounded(None, 1.0),
            Op::Concat { .. } | Op::Gather { .. } if exact => Ok(None),
            Op::Concat { .. } => self.joined(node),
            Op::Gather { .. } => {
                let (picked, other) = self.picked(node)?;
                let Some(other) = other else { return Ok(Some(picked)) };
                let unknown = self.b.scalar(f64::INFINITY)?;
                self.b.select(other, unknown, picked).map(Some)
            }
            Op::ScatterAdd { .. } if self.e[0].is_some() => {
                self.b.full(f64::INFINITY, &self.b.graph.ty(self.y).clone()).map(Some)
            }
            Op::ScatterAdd { .. } => {
                let terms = self.b.graph.shape(self.x[0]).elements();
                let carried = self.e[1].map(|e| self.b.op(node.op.clone(), &[self.x[0], e])).transpose()?;
                let magnitude = self.b.abs(self.x[1])?;
                let magnitude = self.b.op(node.op.clone(), &[self.x[0], magnitude])?;
                self.plus(carried, magnitude, terms as f64)
            }
            Op::Reduce { kind, axes } => self.reduce(*kind, axes, self.terms()),
            Op::Dot(dot) => {
                let terms: u64 =
                    dot.contract.iter().map(|(axis, _)| self.b.graph.shape(self.x[0]).size(*axis)).product();
                self.product(&node.op, terms)
            }
            // Every sum of a convolution or of its gradients is over a part of one of the inputs.
            Op::Conv2d(_) => {
                let elements = |x: &NodeId| self.b.graph.shape(*x).elements();
                let terms = self.x.iter().map(elements).max().unwrap_or(1);
                self.product(&node.op, terms)
            }
            Op::Pointwise(op) => self.pointwise(*op),
            // Views.
            op => self.e[0].map(|e| self.b.op(op.clone(), &[e])).transpose(),
        }
    }

    /// Errors of the parts, joined as the parts are.
    fn joined(&mut self, node: &Node) -> Found {
        let parts = (0..self.x.len()).map(|input| self.error_or_none(input)).collect::<Found<Vec<_>>>()?;
        self.b.op(node.op.clone(), &parts).map(Some)
    }

    /// Errors of the rows that are picked, and where another row may have been picked.
    fn picked(&mut self, node: &Node) -> Found<(NodeId, Option<NodeId>)> {
        let table = self.error_or_none(0)?;
        let picked = self.b.op(node.op.clone(), &[table, self.x[1]])?;
        let other = self.e[1].map(|e| self.along_index(e)).transpose()?;
        Ok((picked, other))
    }

    /// Elements that make one of the result.
    fn terms(&self) -> u64 {
        self.b.graph.shape(self.x[0]).elements() / self.b.graph.shape(self.y).elements()
    }

    fn reduce(&mut self, kind: ReduceKind, axes: &[usize], terms: u64) -> Found {
        let like = |kind| Op::Reduce { kind, axes: axes.to_vec() };
        match kind {
            ReduceKind::Sum => {
                let carried = self.e[0].map(|e| self.b.op(like(kind), &[e])).transpose()?;
                let magnitude = self.b.abs(self.x[0])?;
                let magnitude = self.b.op(like(kind), &[magnitude])?;
                self.plus(carried, magnitude, terms as f64)
            }
            // prod(|x| + e) - prod(|x|), and a rounding for each factor.
            ReduceKind::Prod => {
                let magnitude = self.b.abs(self.x[0])?;
                let least = self.b.op(like(kind), &[magnitude])?;
                let Some(e) = self.e[0] else { return self.plus(None, least, terms as f64) };
                let reach = self.b.add(magnitude, e)?;
                let most = self.b.op(like(kind), &[reach])?;
                let carried = self.b.sub(most, least)?;
                self.plus(Some(carried), most, terms as f64)
            }
            _ => self.e[0].map(|e| self.b.op(like(ReduceKind::Max), &[e])).transpose(),
        }
    }

    fn pointwise(&mut self, op: ScalarOp) -> Found {
        match op {
            ScalarOp::Cast(_) => self.cast_to_float(),
            ScalarOp::Neg | ScalarOp::Abs => Ok(self.e[0]),
            ScalarOp::Floor | ScalarOp::RoundBf16 | ScalarOp::RoundF16 => self.steps(op),
            ScalarOp::Add | ScalarOp::Sub => {
                let carried = self.sum(self.e[0], self.e[1])?;
                self.rounded(carried, 1.0)
            }
            ScalarOp::Max | ScalarOp::Min => self.sum(self.e[0], self.e[1]),
            ScalarOp::Mul => self.product(&Op::Pointwise(op), 1),
            ScalarOp::Div => self.quotient(),
            // sqrt(x + e) - sqrt(x) <= e / sqrt(x), and sqrt(x) - sqrt(x - e) <= e / sqrt(x) for e <= x.
            ScalarOp::Sqrt => {
                let carried = self.e[0].map(|e| self.b.div(e, self.y)).transpose()?;
                let rounded = self.rounded(carried, 1.0)?;
                self.inside(rounded, self.x[0], 1.0)
            }
            ScalarOp::Ln => {
                let below = self.b.abs(self.x[0])?;
                let carried = self.e[0].map(|e| self.b.div(e, below)).transpose()?;
                let rounded = self.twice(carried, FUNCTION)?;
                self.inside(rounded, self.x[0], 2.0)
            }
            ScalarOp::Exp => {
                let carried = self.e[0].map(|e| self.growth(e)).transpose()?;
                self.rounded(carried, FUNCTION)
            }
            // d(a^b) = a^b (b da / a + ln a db); the power itself is as well conditioned as its logarithm is large.
            ScalarOp::Pow => {
                let (magnitude, exponent, base) = (self.b.abs(self.y)?, self.b.abs(self.x[1])?, self.b.abs(self.x[0])?);
                let ln = self.b.ln(base)?;
                let ln = self.b.abs(ln)?;
                let by_base = self.e[0].map(|e| self.b.div(e, base)).transpose()?;
                let by_base = by_base.map(|e| self.b.mul(e, exponent)).transpose()?;
                // NaN, so nothing, where another exponent may not be whole.
                let slope = self.b.ln(self.x[0])?;
                let slope = self.b.abs(slope)?;
                let by_exponent = self.e[1].map(|e| self.b.mul(e, slope)).transpose()?;
                let relative = self.sum(by_base, by_exponent)?;
                let carried = relative.map(|e| self.b.mul(e, magnitude)).transpose()?;
                let condition = self.b.mul(ln, exponent)?;
                let condition = self.b.mul(condition, magnitude)?;
                let own = self.twice(carried, FUNCTION)?;
                let rounded = self.plus(own, condition, FUNCTION)?;
                self.inside(rounded, base, 2.0)
            }
            // Slopes are at most 1, for erf 2 / sqrt(pi). Sine and cosine are exact to the roundoff of 1, not of their value.
            ScalarOp::Tanh => self.rounded(self.e[0], FUNCTION),
            ScalarOp::Erf => self.twice(self.e[0], FUNCTION),
            ScalarOp::Sin | ScalarOp::Cos => {
                let one = self.b.full(1.0, &self.b.graph.ty(self.y).clone())?;
                self.plus(self.e[0], one, FUNCTION)
            }
            ScalarOp::Rem => self.remainder(),
            ScalarOp::Select => self.chosen(),
            op => Err(OpError::new(format!("there is no rule for {op:?}"))),
        }
    }

    /// `|y + dy - y| <= (da + |y| db) / (|b| - db)`; infinite where `db` is not below `|b| / 2`.
    fn quotient(&mut self) -> Found {
        let magnitude = self.b.abs(self.y)?;
        let second = self.e[1].map(|e| self.b.mul(e, magnitude)).transpose()?;
        let above = self.sum(self.e[0], second)?;
        let below = self.b.abs(self.x[1])?;
        let carried = above.map(|above| self.b.div(above, below)).transpose()?;
        let rounded = self.twice(carried, 1.0)?;
        let (Some(rounded), Some(e)) = (rounded, self.e[1]) else { return Ok(rounded) };
        let both = self.b.add(e, e)?;
        self.unless_below(both, below, rounded)
    }

    /// What is left may be off by what a is, and by what b is for each multiple; nothing is known where that reaches the next
    /// multiple.
    fn remainder(&mut self) -> Found {
        let size = self.b.abs(self.x[1])?;
        let multiples = self.b.div(self.x[0], self.x[1])?;
        let multiples = self.b.floor(multiples)?;
        let multiples = self.b.abs(multiples)?;
        let by_divisor = self.e[1].map(|e| self.b.mul(e, multiples)).transpose()?;
        let carried = self.sum(self.e[0], by_divisor)?;
        let rounded = self.plus(carried, size, 1.0)?;
        let (Some(rounded), Some(carried)) = (rounded, carried) else { return Ok(rounded) };
        let left = self.b.abs(self.y)?;
        let right = self.b.sub(size, left)?;
        let near = self.b.min(left, right)?;
        let reach = self.b.add(carried, carried)?;
        self.unless_below(reach, near, rounded)
    }

    /// This error, but an infinite one where `factor` times the error of the input reaches the end of the domain, which is
    /// so far away.
    fn inside(&mut self, error: Option<NodeId>, domain: NodeId, factor: f64) -> Found {
        let (Some(error), Some(e)) = (error, self.e[0]) else { return Ok(error) };
        let factor = self.b.scalar(factor)?;
        let reach = self.b.mul(e, factor)?;
        self.unless_below(reach, domain, error)
    }

    fn unless_below(&mut self, reach: NodeId, limit: NodeId, error: NodeId) -> Found {
        let below = self.b.lt(reach, limit)?;
        let unknown = self.b.scalar(f64::INFINITY)?;
        self.b.select(below, error, unknown).map(Some)
    }

    /// What an error of an exponent does: `exp(x + e) - exp(x) <= 2 e exp(x)` for `e < 1`.
    fn growth(&mut self, e: NodeId) -> Found<NodeId> {
        let (one, reach) = (self.b.scalar(1.0)?, self.b.add(self.x[0], e)?);
        let small = self.b.lt(e, one)?;
        let most = self.b.exp(reach)?;
        let slope = self.b.mul(e, self.y)?;
        let slope = self.b.add(slope, slope)?;
        self.b.select(small, slope, most)
    }

    /// Of a truth value that may be the other one: 1. Of an integer that may be another one: nothing is known.
    fn cast_to_float(&mut self) -> Found {
        let from = self.b.graph.ty(self.x[0]).dtype;
        let Some(e) = self.e[0].filter(|_| !from.is_float()) else { return Ok(self.e[0]) };
        let (distance, zero) = if from == DType::Bool { (1.0, 0.0) } else { (f64::INFINITY, 0.0) };
        let (distance, zero) = (self.b.scalar(distance)?, self.b.scalar(zero)?);
        let shape = self.b.graph.shape(self.y).clone();
        let chosen = self.b.select(e, distance, zero)?;
        self.b.broadcast_to(chosen, &shape).map(Some)
    }

    /// A function that is constant between its steps: how much it differs at the ends of what the input may be.
    fn steps(&mut self, step: ScalarOp) -> Found {
        let Some(e) = self.e[0] else { return Ok(None) };
        let (low, high) = (self.b.sub(self.x[0], e)?, self.b.add(self.x[0], e)?);
        let (low, high) = (self.b.pointwise(step, &[low])?, self.b.pointwise(step, &[high])?);
        let (apart, same, none) = (self.b.sub(high, low)?, self.b.eq(low, high)?, self.b.scalar(0.0)?);
        // Of infinities too.
        self.b.select(same, none, apart).map(Some)
    }

    fn chosen(&mut self) -> Found {
        let base = if self.e[1].is_none() && self.e[2].is_none() {
            None
        } else {
            let (a, b) = (self.error_or_none(1)?, self.error_or_none(2)?);
            Some(self.b.select(self.x[0], a, b)?)
        };
        let Some(other) = self.e[0] else { return Ok(base) };
        let apart = self.b.sub(self.x[1], self.x[2])?;
        let apart = self.b.abs(apart)?;
        let both = self.sum(self.e[1], self.e[2])?;
        let far = self.sum(Some(apart), both)?.unwrap_or(apart);
        let base = match base {
            Some(base) => base,
            None => self.b.scalar(0.0)?,
        };
        self.b.select(other, far, base).map(Some)
    }

    /// Whether an integer or a truth value may be another one.
    fn choice(&mut self, node: &Node) -> Found {
        let float = node.inputs.first().is_some_and(|_| self.b.graph.ty(self.x[0]).dtype.is_float());
        match &node.op {
            Op::Pointwise(ScalarOp::Lt | ScalarOp::Le | ScalarOp::Eq) if float => {
                let Some(reach) = self.sum(self.e[0], self.e[1])? else { return Ok(None) };
                let (reach, lost) = self.reach(reach)?;
                let apart = self.b.sub(self.x[0], self.x[1])?;
                let apart = self.b.abs(apart)?;
                let (close, zero) = (self.b.le(apart, reach)?, self.b.scalar(0.0)?);
                let unsure = self.b.gt(reach, zero)?;
                let close = self.b.and(close, unsure)?;
                self.b.or(close, lost).map(Some)
            }
            Op::Pointwise(ScalarOp::Cast(to)) if float => {
                let Some(e) = self.e[0] else { return Ok(None) };
                let (e, lost) = self.reach(e)?;
                let other = if *to == DType::Bool {
                    let magnitude = self.b.abs(self.x[0])?;
                    self.b.le(magnitude, e)?
                } else {
                    let (low, high) = (self.b.sub(self.x[0], e)?, self.b.add(self.x[0], e)?);
                    let (low, high) = (self.b.cast(low, *to)?, self.b.cast(high, *to)?);
                    self.b.ne(low, high)?
                };
                self.b.or(other, lost).map(Some)
            }
            Op::Pointwise(_) => {
                let mut any: Option<NodeId> = None;
                for e in self.e.iter().flatten() {
                    any = Some(match any {
                        Some(any) => self.b.or(any, *e)?,
                        None => *e,
                    });
                }
                Ok(any)
            }
            Op::Reduce { kind: ReduceKind::ArgMax, axes } if float => self.rivals(axes),
            Op::Reduce { axes, .. } => {
                let Some(e) = self.e[0] else { return Ok(None) };
                self.any(e, axes, 0.0)
            }
            Op::Concat { .. } => self.joined(node),
            Op::Gather { .. } => {
                let (picked, other) = self.picked(node)?;
                let Some(other) = other else { return Ok(Some(picked)) };
                self.b.or(picked, other).map(Some)
            }
            op => self.e[0].map(|e| self.b.op(op.clone(), &[e])).transpose(),
        }
    }

    /// An error with infinity where it is not a number, and where it is infinite: there the value may be any, and whatever is
    /// compared with it may come out either way.
    fn reach(&mut self, e: NodeId) -> Found<(NodeId, NodeId)> {
        let (unknown, infinity) = (self.b.ne(e, e)?, self.b.scalar(f64::INFINITY)?);
        let reach = self.b.select(unknown, infinity, e)?;
        Ok((reach, self.b.eq(reach, infinity)?))
    }

    /// Whether another element than the largest one may be the largest.
    fn rivals(&mut self, axes: &[usize]) -> Found {
        let Some(e) = self.e[0] else { return Ok(None) };
        let (e, lost) = self.reach(e)?;
        let (low, high) = (self.b.sub(self.x[0], e)?, self.b.add(self.x[0], e)?);
        let (least, most) = (self.b.scalar(f64::NEG_INFINITY)?, self.b.scalar(f64::INFINITY)?);
        let (low, high) = (self.b.select(lost, least, low)?, self.b.select(lost, most, high)?);
        let best = self.b.reduce(ReduceKind::Max, low, axes, true)?;
        let rival = self.b.le(best, high)?;
        self.any(rival, axes, 1.0)
    }

    /// Whether more than `few` along the axes hold.
    fn any(&mut self, e: NodeId, axes: &[usize], few: f64) -> Found {
        let count = self.b.cast(e, DType::F32)?;
        let count = self.b.reduce(ReduceKind::Sum, count, axes, false)?;
        let few = self.b.scalar(few)?;
        self.b.gt(count, few).map(Some)
    }

    /// What holds of an index, of all that it picks.
    fn along_index(&mut self, e: NodeId) -> Found<NodeId> {
        let shape = self.b.graph.shape(self.y).clone();
        let dims = (0..self.b.graph.shape(e).rank()).collect();
        self.b.op(Op::Broadcast { shape, dims }, &[e])
    }

    /// A product that is linear in both inputs: `|a| db + da (|b| + db)`, and a rounding for each of its terms and one more.
    fn product(&mut self, op: &Op, terms: u64) -> Found {
        let (a, b) = (self.b.abs(self.x[0])?, self.b.abs(self.x[1])?);
        let first = self.e[1].map(|e| self.b.op(op.clone(), &[a, e])).transpose()?;
        let reach = match self.e[1] {
            Some(e) => self.b.add(b, e)?,
            None => b,
        };
        let second = self.e[0].map(|e| self.b.op(op.clone(), &[e, reach])).transpose()?;
        let carried = self.sum(first, second)?;
        let magnitude = self.b.op(op.clone(), &[a, b])?;
        self.plus(carried, magnitude, (terms + 1) as f64)
    }

    /// The error of an input, zero or false where it has none.
    fn error_or_none(&mut self, input: usize) -> Found<NodeId> {
        match self.e[input] {
            Some(e) => Ok(e),
            None => {
                let mut ty = self.b.graph.ty(self.x[input]).clone();
                ty.dtype = if ty.dtype.is_float() { ty.dtype } else { DType::Bool };
                self.b.full(0.0, &ty)
            }
        }
    }

    fn sum(&mut self, a: Option<NodeId>, b: Option<NodeId>) -> Found {
        match (a, b) {
            (Some(a), Some(b)) => self.b.add(a, b).map(Some),
            (a, b) => Ok(a.or(b)),
        }
    }

    /// As many roundings of a magnitude beside what is carried; an infinite value is not rounded.
    fn plus(&mut self, carried: Option<NodeId>, magnitude: NodeId, roundings: f64) -> Found {
        let roundings = self.b.scalar(roundings * self.u)?;
        let own = self.b.mul(magnitude, roundings)?;
        let (infinity, zero) = (self.b.scalar(f64::INFINITY)?, self.b.scalar(0.0)?);
        let infinite = self.b.eq(magnitude, infinity)?;
        let own = self.b.select(infinite, zero, own)?;
        self.sum(carried, Some(own))
    }

    fn rounded(&mut self, carried: Option<NodeId>, roundings: f64) -> Found {
        let magnitude = self.b.abs(self.y)?;
        self.plus(carried, magnitude, roundings)
    }

    /// With twice the carried error, where its first order alone would be too little.
    fn twice(&mut self, carried: Option<NodeId>, roundings: f64) -> Found {
        let carried = self.sum(carried, carried)?;
        self.rounded(carried, roundings)
    }
}

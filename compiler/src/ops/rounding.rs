//! How far a result in floats may be from the exact one: the rules that ops state of themselves.
//!
//! A rule adds to a graph of values and bounds what the errors of the inputs become, plus what the op's own rounding adds.
//! [`crate::trust::rounding`] asks for it node by node, and says what the whole is good for.
//!
//! The error of a float is a float: the largest distance. The error of an integer or a truth value is a truth value: whether
//! it may be another one, since a comparison was closer than the errors of its sides. A float that depends on such a choice
//! is off by the distance of the alternatives. Where nothing can be said the bound is infinite, or not a number.

use super::{Builder, Op, OpError, ReduceKind};
use crate::graph::{DType, NodeId};

/// A bound; none where the value is exact.
pub(crate) type Found<T = Option<NodeId>> = Result<T, OpError>;

/// An application whose error is to be bounded: inputs `x` with errors `e` (none: exact), result `y`.
pub(crate) struct Rounding<'a, 'g> {
    /// Adds to the graph of values and bounds.
    pub(crate) b: Builder<'g>,
    /// The roundoff of f32.
    pub(crate) u: f64,
    pub(crate) x: &'a [NodeId],
    pub(crate) e: &'a [Option<NodeId>],
    pub(crate) y: NodeId,
}

impl Rounding<'_, '_> {
    /// Whether the result is a float.
    pub(super) fn is_float(&self) -> bool {
        self.b.graph.ty(self.y).dtype.is_float()
    }

    /// Whether the first input is a float.
    pub(super) fn of_floats(&self) -> bool {
        self.x.first().is_some_and(|x| self.b.graph.ty(*x).dtype.is_float())
    }

    /// The error of what only moves elements: moved alike.
    pub(super) fn moved(&mut self, op: Op) -> Found {
        self.e[0].map(|e| self.b.op(op, &[e])).transpose()
    }

    /// Semantic ops are bounded as what they expand to, in the order of operations that rounds most.
    pub(super) fn as_expanded(&self, name: &str) -> Found {
        Err(OpError::new(format!("`{name}` is bounded as what it expands to")))
    }

    /// Whether any input may be another one.
    pub(super) fn any_input(&mut self) -> Found {
        let mut any: Option<NodeId> = None;
        for e in self.e.iter().flatten() {
            any = Some(match any {
                Some(any) => self.b.or(any, *e)?,
                None => *e,
            });
        }
        Ok(any)
    }

    /// Elements that make one of the result.
    pub(super) fn terms(&self) -> u64 {
        self.b.graph.shape(self.x[0]).elements() / self.b.graph.shape(self.y).elements()
    }

    pub(super) fn unless_below(&mut self, reach: NodeId, limit: NodeId, error: NodeId) -> Found {
        let below = self.b.lt(reach, limit)?;
        let unknown = self.b.scalar(f64::INFINITY)?;
        self.b.select(below, error, unknown).map(Some)
    }

    /// This error, but an infinite one where `factor` times the error of the input reaches the end of the domain, which is
    /// so far away.
    pub(super) fn inside(&mut self, error: Option<NodeId>, domain: NodeId, factor: f64) -> Found {
        let (Some(error), Some(e)) = (error, self.e[0]) else { return Ok(error) };
        let factor = self.b.scalar(factor)?;
        let reach = self.b.mul(e, factor)?;
        self.unless_below(reach, domain, error)
    }

    /// An error with infinity where it is not a number, and where it is infinite: there the value may be any, and whatever is
    /// compared with it may come out either way.
    pub(super) fn reach(&mut self, e: NodeId) -> Found<(NodeId, NodeId)> {
        let (unknown, infinity) = (self.b.ne(e, e)?, self.b.scalar(f64::INFINITY)?);
        let reach = self.b.select(unknown, infinity, e)?;
        Ok((reach, self.b.eq(reach, infinity)?))
    }

    /// Whether more than `few` along the axes hold.
    pub(super) fn any(&mut self, e: NodeId, axes: &[usize], few: f64) -> Found {
        let count = self.b.cast(e, DType::F32)?;
        let count = self.b.reduce(ReduceKind::Sum, count, axes, false)?;
        let few = self.b.scalar(few)?;
        self.b.gt(count, few).map(Some)
    }

    /// The error of an input, zero or false where it has none.
    pub(super) fn error_or_none(&mut self, input: usize) -> Found<NodeId> {
        match self.e[input] {
            Some(e) => Ok(e),
            None => {
                let mut ty = self.b.graph.ty(self.x[input]).clone();
                ty.dtype = if ty.dtype.is_float() { ty.dtype } else { DType::Bool };
                self.b.full(0.0, &ty)
            }
        }
    }

    pub(super) fn sum(&mut self, a: Option<NodeId>, b: Option<NodeId>) -> Found {
        match (a, b) {
            (Some(a), Some(b)) => self.b.add(a, b).map(Some),
            (a, b) => Ok(a.or(b)),
        }
    }

    /// As many roundings of a magnitude beside what is carried; an infinite value is not rounded.
    pub(super) fn plus(&mut self, carried: Option<NodeId>, magnitude: NodeId, roundings: f64) -> Found {
        let roundings = self.b.scalar(roundings * self.u)?;
        let own = self.b.mul(magnitude, roundings)?;
        let (infinity, zero) = (self.b.scalar(f64::INFINITY)?, self.b.scalar(0.0)?);
        let infinite = self.b.eq(magnitude, infinity)?;
        let own = self.b.select(infinite, zero, own)?;
        self.sum(carried, Some(own))
    }

    pub(super) fn rounded(&mut self, carried: Option<NodeId>, roundings: f64) -> Found {
        let magnitude = self.b.abs(self.y)?;
        self.plus(carried, magnitude, roundings)
    }

    /// With twice the carried error, where its first order alone would be too little.
    pub(super) fn twice(&mut self, carried: Option<NodeId>, roundings: f64) -> Found {
        let carried = self.sum(carried, carried)?;
        self.rounded(carried, roundings)
    }

    /// A product that is linear in both inputs: `|a| db + da (|b| + db)`, and a rounding for each of its terms and one more.
    pub(super) fn product(&mut self, op: &Op, terms: u64) -> Found {
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
}

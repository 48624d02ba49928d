//! Softmax and its logarithm's sum, in any spelling.
//!
//! Both are recognised by what they compute: exponentials over their own sum, and the logarithm of a sum of exponentials.
//! Softmax does not change when something constant along its axes is taken from its argument, so what is subtracted (the
//! largest element, with or without a gradient stop, or anything else made of the argument) is taken away. A tensor that
//! occurs nowhere else stays: it has a gradient, which is zero, and a parameter with one still decays.

use super::known::Known;
use crate::ir::NodeId;
use crate::ops::{Op, ReduceKind, ScalarOp};

/// A function of `x` along `axes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Along {
    pub(super) x: NodeId,
    pub(super) axes: Vec<usize>,
}

impl Known<'_> {
    /// What was repeated along `axes`, if that is all that a broadcast does.
    pub(super) fn repeated(&self, id: NodeId, axes: &[usize]) -> Option<NodeId> {
        let Op::Broadcast { shape, dims } = self.op(id) else { return None };
        let kept = (0..shape.rank()).filter(|axis| !axes.contains(axis));
        let (x, to) = (self.graph.shape(self.inputs(id)[0]), shape);
        let whole = dims.iter().enumerate().all(|(from, axis)| x.size(from) == to.size(*axis));
        (whole && dims.iter().copied().eq(kept)).then(|| self.inputs(id)[0])
    }

    /// Whether a tensor is the same everywhere along `axes`.
    pub(super) fn constant_along(&self, id: NodeId, axes: &[usize]) -> bool {
        let Op::Broadcast { dims, .. } = self.op(id) else { return self.splat(id).is_some() };
        let x = self.graph.shape(self.inputs(id)[0]);
        dims.iter().enumerate().all(|(from, axis)| !axes.contains(axis) || x.size(from) == 1)
    }

    /// `sum(exp(z))` along axes: z, and the exponentials.
    fn sum_of_exponentials(&self, id: NodeId) -> Option<(Along, NodeId)> {
        let Op::Reduce { kind: ReduceKind::Sum, axes } = self.op(id) else { return None };
        let e = self.inputs(id)[0];
        match self.scalar(e)? {
            (ScalarOp::Exp, [z]) => Some((Along { x: *z, axes: axes.clone() }, e)),
            _ => None,
        }
    }

    /// `ln(sum(exp(z)))`, or that of `x - m` plus `m`, which is that of x.
    pub(super) fn logsumexp(&self, id: NodeId) -> Option<Along> {
        if let Some(known) = self.logsumexps.borrow().get(&id) {
            return known.clone();
        }
        let found = self.find_logsumexp(id);
        self.logsumexps.borrow_mut().insert(id, found.clone());
        found
    }

    fn find_logsumexp(&self, id: NodeId) -> Option<Along> {
        match self.scalar(id)? {
            (ScalarOp::Ln, [sum]) => self.sum_of_exponentials(*sum).map(|(along, _)| along),
            (ScalarOp::Add, [a, b]) => [(*a, *b), (*b, *a)].into_iter().find_map(|(lse, shift)| {
                let along = self.logsumexp(lse)?;
                match self.scalar(along.x)? {
                    (ScalarOp::Sub, [x, m]) if self.is_repeated(*m, shift, &along.axes) && self.inert(*m, *x) => {
                        Some(Along { x: *x, axes: along.axes })
                    }
                    _ => None,
                }
            }),
            _ => None,
        }
    }

    /// Whether `wide` repeats `narrow` along axes. Both must be stopped or neither: a shift whose gradient is stopped in one
    /// place only has a gradient of its own.
    fn is_repeated(&self, wide: NodeId, narrow: NodeId, axes: &[usize]) -> bool {
        match (self.repeated(wide, axes), self.splat(wide), self.splat(narrow)) {
            (Some(m), ..) => m == narrow,
            (None, Some(a), Some(b)) => a == b,
            _ => false,
        }
    }

    /// `exp(z) / sum(exp(z))`, with the division as a product too, or `exp(x - logsumexp(x))`.
    pub(super) fn softmax(&self, id: NodeId) -> Option<Along> {
        let over = |e: NodeId, wide: NodeId, inverse: bool| {
            let (Op::Broadcast { .. }, [below]) = (self.op(wide), self.inputs(wide)) else { return None };
            let sum = match (inverse, self.scalar(*below)) {
                (false, _) => *below,
                (true, Some((ScalarOp::Div, [one, sum]))) if self.splat(*one) == Some(1.0) => *sum,
                (true, Some((ScalarOp::Pow, [sum, minus]))) if self.splat(*minus) == Some(-1.0) => *sum,
                _ => return None,
            };
            let (along, exponentials) = self.sum_of_exponentials(sum)?;
            (exponentials == e && self.repeated(wide, &along.axes).is_some()).then_some(along)
        };
        let found = match self.scalar(id)? {
            (ScalarOp::Div, [e, sum]) => over(*e, *sum, false),
            (ScalarOp::Mul, [a, b]) => over(*a, *b, true).or_else(|| over(*b, *a, true)),
            (ScalarOp::Exp, [log]) => self.log_softmax(*log),
            _ => None,
        }?;
        let x = self.unshifted(found.x, &found.axes);
        Some(Along { x, ..found })
    }

    /// `x - logsumexp(x)`, or the logarithm of a softmax.
    pub(super) fn log_softmax(&self, id: NodeId) -> Option<Along> {
        let (x, wide) = match self.scalar(id)? {
            (ScalarOp::Sub, [x, wide]) => (x, wide),
            (ScalarOp::Ln, [p]) if matches!(self.scalar(*p), Some((ScalarOp::Div | ScalarOp::Mul, _))) => {
                return self.softmax(*p);
            }
            _ => return None,
        };
        let Op::Broadcast { .. } = self.op(*wide) else { return None };
        let along = self.logsumexp(self.inputs(*wide)[0])?;
        (self.repeated(*wide, &along.axes).is_some() && *x == along.x).then_some(along)
    }

    /// Without what is subtracted or added and constant along the axes.
    fn unshifted(&self, mut x: NodeId, axes: &[usize]) -> NodeId {
        loop {
            x = match self.scalar(x) {
                Some((ScalarOp::Sub | ScalarOp::Add, [a, m]))
                    if self.constant_along(*m, axes) && self.inert(*m, *a) =>
                {
                    *a
                }
                Some((ScalarOp::Add, [m, a])) if self.constant_along(*m, axes) && self.inert(*m, *a) => *a,
                _ => return x,
            };
        }
    }

    /// Whether every gradient that flows through `m` also flows through `x`: what `m` is made of is near in the making of
    /// `x`, constant, or behind a gradient stop.
    fn inert(&self, m: NodeId, x: NodeId) -> bool {
        /// Nodes looked at: a shift is made of few.
        const NEAR: usize = 32;
        let mut of_x = vec![x];
        for at in 0..NEAR {
            let Some(id) = of_x.get(at).copied() else { break };
            for input in self.inputs(id) {
                if !of_x.contains(input) {
                    of_x.push(*input);
                }
            }
        }
        let mut open = vec![m];
        for _ in 0..NEAR {
            let Some(id) = open.pop() else { return true };
            let stops = matches!(self.op(id), Op::StopGradient | Op::Const { .. } | Op::Iota { .. });
            if stops || of_x.contains(&id) || !self.graph.ty(id).dtype.is_float() {
                continue;
            }
            match self.inputs(id) {
                [] => return false,
                inputs => open.extend(inputs),
            }
        }
        open.is_empty()
    }
}

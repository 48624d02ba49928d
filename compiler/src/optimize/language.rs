//! Terms of the e-graph: the operations of a graph with their attributes interned, and the facts of each class.
//!
//! There is no second vocabulary: a term is an [`Op`] of the graph applied to classes, so that an op that is added to the
//! compiler is in the language at once (rules that should know it are still to be written). Leaves are inputs named by
//! number.
//!
//! Invariants:
//! - Terms are only made through [`Site`](super::saturate::Site) or from a graph, both of which ask the op for its type first.
//! - Operands of commutative operations stand in the order of their classes, constants last, so that no rule is needed that
//!   exchanges them.
//! - Equal terms have equal facts; two classes that a rule merges must have them too, or the rule is wrong.

use std::collections::HashMap;

use egg::{DidMerge, Id, Language};
use smallvec::SmallVec;

use crate::ir::{DType, TensorType};
use crate::ops::{ConvKind, Op, ReduceKind, ScalarOp, fold};

/// Index of an interned op.
pub(crate) type OpId = u32;
/// Operands of a term.
pub(crate) type Operands = SmallVec<[Id; 3]>;
/// The e-graph of one region.
pub(crate) type EGraph = egg::EGraph<Term, Analysis>;

/// Families of ops, which patterns name; attributes aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Input,
    Const,
    Iota,
    /// `Cast` stands for casts to every dtype.
    Point(ScalarOp),
    Sum,
    Prod,
    Max,
    Min,
    ArgMax,
    Dot,
    Conv,
    ImageGrad,
    WeightGrad,
    Reshape,
    Transpose,
    Broadcast,
    Slice,
    Pad,
    Concat,
    /// Ops without a rule.
    Other,
}

impl Kind {
    pub(crate) fn of(op: &Op) -> Kind {
        match op {
            Op::Input { .. } => Kind::Input,
            Op::Const { .. } => Kind::Const,
            Op::Iota { .. } => Kind::Iota,
            Op::Pointwise(ScalarOp::Cast(_)) => Kind::Point(ScalarOp::Cast(DType::F32)),
            Op::Pointwise(op) => Kind::Point(*op),
            Op::Reduce { kind, .. } => match kind {
                ReduceKind::Sum => Kind::Sum,
                ReduceKind::Prod => Kind::Prod,
                ReduceKind::Max => Kind::Max,
                ReduceKind::Min => Kind::Min,
                ReduceKind::ArgMax => Kind::ArgMax,
            },
            Op::Dot(_) => Kind::Dot,
            Op::Conv2d(conv) => match conv.kind {
                ConvKind::Forward => Kind::Conv,
                ConvKind::ImageGrad => Kind::ImageGrad,
                ConvKind::WeightGrad => Kind::WeightGrad,
            },
            Op::Reshape { .. } => Kind::Reshape,
            Op::Transpose { .. } => Kind::Transpose,
            Op::Broadcast { .. } => Kind::Broadcast,
            Op::Slice { .. } => Kind::Slice,
            Op::Pad { .. } => Kind::Pad,
            Op::Concat { .. } => Kind::Concat,
            _ => Kind::Other,
        }
    }

    pub(crate) fn is_view(self) -> bool {
        matches!(self, Kind::Reshape | Kind::Transpose | Kind::Broadcast | Kind::Slice)
    }

    /// Whether exchanging the two operands changes nothing.
    pub(crate) fn commutes(self) -> bool {
        use ScalarOp::*;
        matches!(self, Kind::Point(Add | Mul | Min | Max | Eq | And | Or))
    }
}

/// An op applied to classes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Term {
    pub(crate) op: OpId,
    pub(crate) kind: Kind,
    pub(crate) children: Operands,
}

impl Language for Term {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        self.kind
    }

    fn matches(&self, other: &Term) -> bool {
        self.op == other.op && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// Ops by number, numbered in the order in which they were first seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interner {
    ops: Vec<(Op, Kind)>,
    index: HashMap<Op, OpId>,
}

impl Interner {
    pub(crate) fn intern(&mut self, op: &Op) -> (OpId, Kind) {
        if let Some(id) = self.index.get(op) {
            return (*id, self.ops[*id as usize].1);
        }
        let (id, kind) = (self.ops.len() as OpId, Kind::of(op));
        self.ops.push((op.clone(), kind));
        self.index.insert(op.clone(), id);
        (id, kind)
    }

    pub(crate) fn op(&self, id: OpId) -> &Op {
        &self.ops[id as usize].0
    }
}

/// What is known of all terms of a class.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    /// Type.
    pub(crate) ty: TensorType,
    /// Every element is this finite number.
    pub(crate) splat: Option<f64>,
    /// No element is NaN or outside of this interval, whatever the inputs are.
    pub(crate) range: Option<(f64, f64)>,
}

/// Bounds on values are kept below this, far from overflow in f32, so that rounding cannot leave them.
const LARGEST: f64 = 1e30;
/// Relative difference of two constants that are the same number computed in two orders.
const ROUNDING: f64 = 1e-9;

impl Fact {
    fn of(op: &Op, ty: TensorType, inputs: &[&Fact]) -> Fact {
        let splat = splat(op, inputs).filter(|value| value.is_finite());
        let range = match splat {
            Some(value) => Some((value, value)),
            None => range(op, &ty, inputs),
        };
        Fact { ty, splat, range: range.filter(|(low, high)| *low >= -LARGEST && *high <= LARGEST) }
    }

    /// Why two classes with these facts cannot hold the same value.
    pub(crate) fn contradicts(&self, other: &Fact) -> Option<String> {
        if self.ty != other.ty {
            return Some(format!("{} and {}", self.ty, other.ty));
        }
        let margin = |a: f64, b: f64| ROUNDING * (1.0 + a.abs().max(b.abs()));
        if let (Some(a), Some(b)) = (self.splat, other.splat)
            && (a - b).abs() > margin(a, b)
        {
            return Some(format!("the constants {a} and {b}"));
        }
        let apart = |a: (f64, f64), b: (f64, f64)| a.1 + margin(a.1, b.0) < b.0;
        match (self.range, other.range) {
            (Some(a), Some(b)) if apart(a, b) || apart(b, a) => {
                Some(format!("values in {:?} and {:?}", [a.0, a.1], [b.0, b.1]))
            }
            _ => None,
        }
    }
}

fn splat(op: &Op, inputs: &[&Fact]) -> Option<f64> {
    match op {
        Op::Const { value, .. } => Some(value.0),
        Op::Pointwise(op) => {
            let values: Option<SmallVec<[f64; 3]>> = inputs.iter().map(|fact| fact.splat).collect();
            fold(*op, inputs.last()?.ty.dtype, &values?)
        }
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => inputs[0].splat,
        Op::Reduce { kind: ReduceKind::Sum, axes } if inputs[0].ty.dtype.is_float() => {
            let count: u64 = axes.iter().map(|axis| inputs[0].ty.shape.size(*axis)).product();
            inputs[0].splat.map(|value| value * count as f64)
        }
        Op::Reduce { kind: ReduceKind::Max | ReduceKind::Min, .. } => inputs[0].splat,
        Op::Pad { .. } => inputs[0].splat.filter(|value| *value == 0.0),
        Op::Concat { .. } => inputs[0].splat.filter(|value| inputs.iter().all(|fact| fact.splat == Some(*value))),
        _ => None,
    }
}

fn range(op: &Op, ty: &TensorType, inputs: &[&Fact]) -> Option<(f64, f64)> {
    use ScalarOp::*;
    let of = |index: usize| inputs.get(index).and_then(|fact| fact.range);
    let hull = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.max(b.1));
    let corners = |f: fn(f64, f64) -> f64| {
        let ((a, b), (c, d)) = (of(0)?, of(1)?);
        let all = [f(a, c), f(a, d), f(b, c), f(b, d)];
        Some(all.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |range, x| hull(range, (x, x))))
    };
    if !ty.dtype.is_float() {
        // Arithmetic of integers wraps.
        return if ty.dtype == DType::Bool { Some((0.0, 1.0)) } else { Some((-2147483648.0, 2147483647.0)) };
    }
    match op {
        Op::Pointwise(op) => match op {
            Cast(_) => of(0),
            Neg => of(0).map(|(low, high)| (-high, -low)),
            Abs => of(0).map(|(low, high)| (0.0, low.abs().max(high.abs()))),
            Sin | Cos | Tanh | Erf => of(0).map(|_| (-1.0, 1.0)),
            Exp => of(0).map(|(low, high)| (libm::exp(low), libm::exp(high))),
            Floor => of(0).map(|(low, high)| (low.floor(), high.floor())),
            Sqrt => of(0).filter(|(low, _)| *low >= 0.0).map(|(low, high)| (low.sqrt(), high.sqrt())),
            Add => corners(|a, b| a + b),
            Sub => corners(|a, b| a - b),
            Mul => corners(|a, b| a * b),
            Min => corners(f64::min),
            Max => corners(f64::max),
            Div => of(1).filter(|(low, high)| *low > 1e-30 || *high < -1e-30).and_then(|_| corners(|a, b| a / b)),
            Select => Some(hull(of(1)?, of(2)?)),
            _ => None,
        },
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => of(0),
        Op::Reduce { kind: ReduceKind::Max | ReduceKind::Min, .. } => of(0),
        Op::Reduce { kind: ReduceKind::Sum, axes } => {
            let count: u64 = axes.iter().map(|axis| inputs[0].ty.shape.size(*axis)).product();
            of(0).map(|(low, high)| (low * count as f64, high * count as f64))
        }
        Op::Pad { .. } => of(0).map(|range| hull(range, (0.0, 0.0))),
        Op::Concat { .. } => inputs.iter().map(|fact| fact.range).reduce(|a, b| Some(hull(a?, b?)))?,
        Op::Gather { .. } => of(0),
        Op::Random { .. } => Some((0.0, 1.0)),
        _ => None,
    }
}

/// Makes facts, and remembers what went wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Analysis {
    pub(crate) ops: Interner,
    /// The rule that is being applied.
    pub(crate) rule: &'static str,
    /// Merges of unequal facts: the rule, and what did not agree.
    pub(crate) faults: Vec<(&'static str, String)>,
}

impl egg::Analysis<Term> for Analysis {
    type Data = Fact;

    fn make(egraph: &mut EGraph, term: &Term, _: Id) -> Fact {
        let made = {
            let inputs: SmallVec<[&Fact; 3]> = term.children.iter().map(|id| &egraph[*id].data).collect();
            let types: SmallVec<[&TensorType; 3]> = inputs.iter().map(|fact| &fact.ty).collect();
            let op = egraph.analysis.ops.op(term.op);
            op.infer(&types).map(|ty| Fact::of(op, ty, &inputs))
        };
        made.unwrap_or_else(|error| {
            let fault = (egraph.analysis.rule, error.message);
            egraph.analysis.faults.push(fault);
            Fact { ty: TensorType::f32([]), splat: None, range: None }
        })
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        if let Some(why) = a.contradicts(&b) {
            self.faults.push((self.rule, why));
        }
        let before = a.clone();
        // Of two roundings of one constant the lower, so that the order of merges does not matter.
        a.splat = match (a.splat, b.splat) {
            (Some(x), Some(y)) => Some(x.min(y)),
            (x, y) => x.or(y),
        };
        // Never narrowed further: bounds of a class that contains itself would shrink forever.
        a.range = match a.splat {
            Some(value) => Some((value, value)),
            None => a.range.or(b.range),
        };
        let changed = |from: &Fact| a.splat != from.splat || a.range != from.range;
        DidMerge(changed(&before), changed(&b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Real, constant};

    fn fact(range: Option<(f64, f64)>) -> Fact {
        Fact { ty: TensorType::f32([2]), splat: None, range }
    }

    #[test]
    fn ranges_follow_intervals_and_stop_at_what_may_be_nan() {
        let (some, any) = (fact(Some((-2.0, 3.0))), fact(None));
        let point = |op, inputs: &[&Fact]| Fact::of(&Op::Pointwise(op), TensorType::f32([2]), inputs).range;
        assert_eq!(point(ScalarOp::Mul, &[&some, &some]), Some((-6.0, 9.0)));
        assert_eq!(point(ScalarOp::Sub, &[&some, &some]), Some((-5.0, 5.0)));
        assert_eq!(point(ScalarOp::Tanh, &[&any]), None, "tanh of NaN is NaN");
        assert_eq!(point(ScalarOp::Div, &[&some, &some]), None, "the divisor may be 0");
        assert_eq!(point(ScalarOp::Sqrt, &[&some]), None, "of a negative number");
        let huge = fact(Some((-1e20, 1e20)));
        assert_eq!(point(ScalarOp::Mul, &[&huge, &huge]), None, "may overflow");
    }

    #[test]
    fn unequal_facts_say_what_differs() {
        let one = Fact::of(&constant(1.0, DType::F32), TensorType::f32([]), &[]);
        let two = Fact::of(&Op::Const { value: Real(2.0), dtype: DType::F32 }, TensorType::f32([]), &[]);
        assert_eq!(one.contradicts(&two).as_deref(), Some("the constants 1 and 2"));
        assert_eq!(one.contradicts(&fact(None)).as_deref(), Some("f32[] and f32[2]"));
        assert_eq!(one.contradicts(&one), None);
        let wrong = fact(Some((3.0, 4.0))).contradicts(&fact(Some((0.0, 1.0))));
        assert_eq!(wrong.as_deref(), Some("values in [3.0, 4.0] and [0.0, 1.0]"));
    }
}

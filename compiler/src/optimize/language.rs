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

use egg::{DidMerge, Id, Language};
use smallvec::SmallVec;

use crate::hash::HashMap;
use crate::ir::{DType, TensorType};
use crate::ops::{ConvKind, Op, ReduceKind, ScalarOp, fold, jumps, rounds_to};

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

/// A number that every element of a class is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Splat {
    /// The number, in f64: a constant of the graph is rounded to its dtype by the kernel that reads it, never here.
    pub(crate) value: f64,
    /// What a relative rounding of one unit everywhere below is worth here: the size of the terms that it was computed of.
    size: f64,
}

/// What is known of all terms of a class.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    /// Type.
    pub(crate) ty: TensorType,
    /// Every element is this finite number.
    pub(crate) splat: Option<Splat>,
    /// No element is NaN or outside of this interval, whatever the inputs are.
    pub(crate) range: Option<(f64, f64)>,
}

/// Bounds on values are kept below this, far from overflow in f32, so that rounding cannot leave them.
const LARGEST: f64 = 1e30;
/// The same in f16, whose largest number is 65,504.
const LARGEST_F16: f64 = 6e4;
/// Relative rounding of one operation in f64; library functions are off by up to twice the half unit of arithmetic.
const UNIT: f64 = f64::EPSILON;
/// Relative step of the difference quotients that say how roundings are carried on: the root of a unit, where what the
/// difference rounds off and what it leaves out are alike.
const STEP: f64 = 1.0 / (1 << 26) as f64;

impl Splat {
    fn constant(value: f64) -> Splat {
        Splat { value, size: value.abs() }
    }

    /// A function of this number, known as well as that is.
    pub(crate) fn map(self, f: impl Fn(f64) -> f64) -> Option<Splat> {
        Splat::of(&[self], true, |x| Some(f(x[0])))
    }

    /// A function of two numbers, known as well as they are.
    pub(crate) fn with(self, other: Splat, f: impl Fn(f64, f64) -> f64) -> Option<Splat> {
        Splat::of(&[self, other], true, |x| Some(f(x[0], x[1])))
    }

    /// The number that a function of numbers is, if it is one whatever their roundings are: where it jumps it is unknown.
    fn of(inputs: &[Splat], float: bool, f: impl Fn(&[f64]) -> Option<f64>) -> Option<Splat> {
        let mut at: SmallVec<[f64; 3]> = inputs.iter().map(|input| input.value).collect();
        let value = f(&at)?;
        let mut size = value.abs();
        for (n, input) in inputs.iter().enumerate() {
            let mut carried = 0.0_f64;
            for by in [-STEP, STEP] {
                at[n] = input.value + by * input.size;
                carried = carried.max((f(&at)? - value).abs() / STEP);
            }
            at[n] = input.value;
            size += carried;
        }
        let jumps = !float && size > value.abs();
        (value.is_finite() && size.is_finite() && !jumps).then_some(Splat { value, size })
    }

    /// Of two roundings of one number, that of the smaller terms: what is computed of a class never takes its place, or a
    /// number that is a multiple of itself would drift. Which merge came first does not matter.
    fn better(self, other: Splat) -> Splat {
        let order = self.size.total_cmp(&other.size).then(self.value.total_cmp(&other.value));
        if order.is_le() { self } else { other }
    }
}

impl From<f64> for Splat {
    fn from(value: f64) -> Splat {
        Splat::constant(value)
    }
}

impl Fact {
    fn of(op: &Op, ty: TensorType, inputs: &[&Fact]) -> Fact {
        let splat = splat(op, &ty, inputs).filter(|splat| splat.value.is_finite());
        let range = match splat {
            Some(splat) => Some((splat.value, splat.value)),
            None => range(op, &ty, inputs),
        };
        let largest = if ty.dtype == DType::F16 { LARGEST_F16 } else { LARGEST };
        Fact { ty, splat, range: range.filter(|(low, high)| *low >= -largest && *high <= largest) }
    }

    /// The number that every element is.
    pub(crate) fn number(&self) -> Option<f64> {
        self.splat.map(|splat| splat.value)
    }

    /// Why two classes with these facts cannot hold the same value, after so many roundings in all of the e-graph. Rules
    /// hold for real numbers; what they merge differs by what has been rounded on the way from one to the other, each time
    /// by no more than a unit of the terms of these two.
    pub(crate) fn contradicts(&self, other: &Fact, roundings: u32) -> Option<String> {
        if self.ty != other.ty {
            return Some(format!("{} and {}", self.ty, other.ty));
        }
        let margin = |size: f64| f64::from(1 + roundings) * UNIT * size;
        if let (Some(a), Some(b)) = (self.splat, other.splat)
            && (a.value - b.value).abs() > margin(a.size + b.size)
        {
            return Some(format!("the constants {} and {}", a.value, b.value));
        }
        let sizes = [self, other].map(|fact| fact.splat.map_or(0.0, |splat| splat.size));
        let apart = |a: (f64, f64), b: (f64, f64)| a.1 + margin(a.1.abs() + b.0.abs() + sizes[0] + sizes[1]) < b.0;
        match (self.range, other.range) {
            (Some(a), Some(b)) if apart(a, b) || apart(b, a) => {
                Some(format!("values in {:?} and {:?}", [a.0, a.1], [b.0, b.1]))
            }
            _ => None,
        }
    }
}

fn splat(op: &Op, ty: &TensorType, inputs: &[&Fact]) -> Option<Splat> {
    match op {
        Op::Const { value, .. } if !ty.dtype.is_float() => Some(Splat { value: value.0, size: 0.0 }),
        Op::Const { value, .. } => Some(Splat::constant(value.0)),
        Op::Pointwise(op) => {
            let values: Option<SmallVec<[Splat; 3]>> = inputs.iter().map(|fact| fact.splat).collect();
            let dtype = inputs.last()?.ty.dtype;
            let smooth = ty.dtype.is_float() && !jumps(*op);
            let found = Splat::of(&values?, smooth, |values| fold(*op, dtype, values))?;
            Some(if ty.dtype.is_float() { found } else { Splat { size: 0.0, ..found } })
        }
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => inputs[0].splat,
        Op::Reduce { kind: ReduceKind::Sum, axes } if inputs[0].ty.dtype.is_float() => {
            let count: u64 = axes.iter().map(|axis| inputs[0].ty.shape.size(*axis)).product();
            inputs[0].splat.and_then(|one| Splat::of(&[one], true, |one| Some(one[0] * count as f64)))
        }
        Op::Reduce { kind: ReduceKind::Max | ReduceKind::Min, .. } => inputs[0].splat,
        Op::Pad { .. } => inputs[0].splat.filter(|splat| splat.value == 0.0),
        Op::Concat { .. } => {
            let first = inputs[0].splat?;
            inputs.iter().all(|fact| fact.number() == Some(first.value)).then_some(first)
        }
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
            Cast(_) | RoundBf16 | RoundF16 => {
                let round = |x| rounds_to(*op).map_or(x, |dtype| dtype.rounded(x));
                of(0).map(|(low, high)| (round(low), round(high)))
            }
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
    /// Numbers that were computed or taken for one another so far.
    pub(crate) roundings: u32,
    /// By their bits, constants that rules computed of terms that are larger than they are: what cancels is no better known
    /// once it is written as a number.
    pub(crate) computed: HashMap<u64, f64>,
}

impl Analysis {
    /// A constant is about to be made of this number.
    pub(crate) fn note(&mut self, number: Splat) {
        if number.size > number.value.abs() {
            let size = self.computed.entry(number.value.to_bits()).or_default();
            *size = size.max(number.size);
        }
    }
}

impl egg::Analysis<Term> for Analysis {
    type Data = Fact;

    fn make(egraph: &mut EGraph, term: &Term, _: Id) -> Fact {
        let made = {
            let inputs: SmallVec<[&Fact; 3]> = term.children.iter().map(|id| &egraph[*id].data).collect();
            let types: SmallVec<[&TensorType; 3]> = inputs.iter().map(|fact| &fact.ty).collect();
            let op = egraph.analysis.ops.op(term.op);
            let mut made = op.infer(&types).map(|ty| Fact::of(op, ty, &inputs));
            if let (Kind::Const, Ok(Fact { splat: Some(splat), .. })) = (term.kind, &mut made) {
                splat.size = egraph.analysis.computed.get(&splat.value.to_bits()).map_or(splat.size, |size| *size);
            }
            made
        };
        let computed = matches!(term.kind, Kind::Point(_) | Kind::Sum);
        egraph.analysis.roundings += u32::from(computed && made.as_ref().is_ok_and(|fact| fact.splat.is_some()));
        made.unwrap_or_else(|error| {
            let fault = (egraph.analysis.rule, error.message);
            egraph.analysis.faults.push(fault);
            Fact { ty: TensorType::f32([]), splat: None, range: None }
        })
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        if let Some(why) = a.contradicts(&b, self.roundings) {
            self.faults.push((self.rule, why));
        }
        let before = a.clone();
        a.splat = match (a.splat, b.splat) {
            (Some(x), Some(y)) => {
                self.roundings += u32::from(x.value != y.value);
                Some(x.better(y))
            }
            (x, y) => x.or(y),
        };
        // Never narrowed further: bounds of a class that contains itself would shrink forever.
        a.range = match a.number() {
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
        let half = TensorType::new(DType::F16, [2]);
        let cast = |fact: &Fact| Fact::of(&Op::Pointwise(ScalarOp::Cast(DType::F16)), half.clone(), &[fact]).range;
        assert_eq!((cast(&some), cast(&huge)), (some.range, None), "infinite in f16");
    }

    #[test]
    fn unequal_facts_say_what_differs() {
        let one = Fact::of(&constant(1.0, DType::F32), TensorType::f32([]), &[]);
        let two = Fact::of(&Op::Const { value: Real(2.0), dtype: DType::F32 }, TensorType::f32([]), &[]);
        assert_eq!(one.contradicts(&two, 0).as_deref(), Some("the constants 1 and 2"));
        assert_eq!(one.contradicts(&fact(None), 0).as_deref(), Some("f32[] and f32[2]"));
        assert_eq!(one.contradicts(&one, 0), None);
        let wrong = fact(Some((3.0, 4.0))).contradicts(&fact(Some((0.0, 1.0))), 0);
        assert_eq!(wrong.as_deref(), Some("values in [3.0, 4.0] and [0.0, 1.0]"));
    }

    /// `x = 49 (x p)` with `p` a part of 49: every power of `49 p` is 1, to as many roundings as it took.
    #[test]
    fn constants_differ_by_what_was_rounded_and_no_more() {
        let number = |value| Fact::of(&constant(value, DType::F32), TensorType::f32([]), &[]);
        let times = |a: &Fact, b: &Fact| Fact::of(&Op::Pointwise(ScalarOp::Mul), TensorType::f32([]), &[a, b]);
        let (many, part) = (number(49.0), number(1.0 / 49.0));
        let (mut power, mut roundings) = (number(1.0), 0);
        for _ in 0..5 {
            power = times(&times(&power, &many), &part);
            roundings += 2;
        }
        assert_ne!(power.number(), Some(1.0), "of a power that rounds");
        assert_eq!(power.contradicts(&number(1.0), roundings), None);
        let wrong = number(1.0 + 1e-12).contradicts(&power, roundings);
        assert!(wrong.is_some_and(|why| why.starts_with("the constants 1.000000000001 and 0.99999999")));
        // What cancels is known to a part of its terms, not of itself.
        let minus = |a: &Fact, b: &Fact| Fact::of(&Op::Pointwise(ScalarOp::Sub), TensorType::f32([]), &[a, b]);
        let rest = minus(&times(&number(1e6), &power), &number(1e6));
        assert_eq!(rest.contradicts(&number(0.0), roundings + 2), None);
        assert!(rest.contradicts(&number(1e-3), roundings + 2).is_some());
        // Where rounding decides, nothing is known.
        let floor = |x: &Fact| Fact::of(&Op::Pointwise(ScalarOp::Floor), TensorType::f32([]), &[x]).number();
        assert_eq!((floor(&power), floor(&number(1.5))), (None, Some(1.0)));
    }

    #[test]
    fn a_number_that_is_a_multiple_of_itself_does_not_drift() {
        let (one, below) = (Splat::constant(1.0), Splat::constant(1.0 - f64::EPSILON));
        let squared = Splat::of(&[below, below], true, |x| Some(x[0] * x[1])).unwrap();
        assert!(squared.value < below.value && below.better(squared) == below);
        assert_eq!(one.better(below), below.better(one));
    }
}

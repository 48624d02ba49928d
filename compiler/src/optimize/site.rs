//! Where a rule is applied: reading what its left side matched, and building its right side.

use egg::Id;
use smallvec::SmallVec;

use super::language::{EGraph, Fact, Kind, Operands, Splat, Term};
use super::pattern::{Match, Pat};
use crate::ir::{DType, Shape, TensorType};
use crate::ops::{Dot, Op, ReduceKind, ScalarOp, constant};
use crate::transform::narrow::takes_narrow;

/// The largest factor that is moderate.
const MODERATE: f64 = (1 << 24) as f64;
/// The same of f16, which has 30 powers of two.
const MODERATE_F16: f64 = 16.0;

/// The least and the largest magnitude that a type holds to full precision.
fn magnitudes(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F16 => (6.103_515_625e-5, 65_504.0),
        _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
    }
}

/// One match of a rule, and the e-graph it is applied to. What builds terms yields `None` where an op does not accept its
/// operands; the rule then does not apply.
pub(crate) struct Site<'a> {
    pub(crate) egraph: &'a mut EGraph,
    pub(crate) found: &'a Match,
}

impl Site<'_> {
    /// The class of a variable.
    pub(crate) fn var(&self, pattern: &Pat) -> Option<Id> {
        match pattern {
            Pat::Var(number) | Pat::Splat(number) => self.found.vars[*number],
            _ => None,
        }
    }

    /// The op of the n-th term, in the order in which the left side writes ops.
    pub(crate) fn op(&self, n: usize) -> Op {
        self.egraph.analysis.ops.op(self.found.terms[n].op).clone()
    }

    /// The operands of the n-th term.
    pub(crate) fn operands(&self, n: usize) -> Operands {
        self.found.terms[n].children.clone()
    }

    pub(crate) fn root(&self) -> Id {
        self.found.root
    }

    pub(crate) fn fact(&self, class: Id) -> &Fact {
        &self.egraph[class].data
    }

    /// Whether all elements are within 2^24 of 1, up or down: as factors they may change places with others, since what then
    /// over- or underflows would nearly have done so before. Integers wrap around, in any order alike.
    pub(crate) fn is_moderate(&self, class: Id) -> bool {
        let Fact { ty, range, .. } = self.fact(class);
        let most = if ty.dtype == DType::F16 { MODERATE_F16 } else { MODERATE };
        let within = |low: f64, high: f64| low >= 1.0 / most && high <= most;
        !ty.dtype.is_float() || range.is_some_and(|(low, high)| within(low, high) || within(-high, -low))
    }

    pub(crate) fn shape(&self, class: Id) -> Shape {
        self.fact(class).ty.shape.clone()
    }

    pub(crate) fn sizes(&self, class: Id) -> Vec<u64> {
        self.fact(class).ty.shape.sizes()
    }

    pub(crate) fn rank(&self, class: Id) -> usize {
        self.fact(class).ty.shape.rank()
    }

    /// The terms of a family in a class: op and operands.
    pub(crate) fn terms_of(&self, class: Id, kind: Kind) -> Vec<(Op, Operands)> {
        let op = |term: &Term| self.egraph.analysis.ops.op(term.op).clone();
        let terms = self.egraph[class].nodes.iter().filter(|term| term.kind == kind);
        terms.map(|term| (op(term), term.children.clone())).collect()
    }

    /// Adds an op; views that change nothing are their operand.
    pub(crate) fn add(&mut self, op: Op, operands: &[Id]) -> Option<Id> {
        let first = operands.first().map(|id| &self.egraph[*id].data.ty.shape);
        let nothing = match (&op, first) {
            (Op::Transpose { perm }, _) => perm.is_sorted(),
            (Op::Reshape { shape } | Op::Broadcast { shape, .. }, Some(from)) => shape == from,
            (Op::Slice { start, end, step }, Some(from)) => {
                *end == from.sizes() && start.iter().all(|n| *n == 0) && step.iter().all(|n| *n == 1)
            }
            (Op::Pad { low, high, interior }, _) => low.iter().chain(high).chain(interior).all(|n| *n == 0),
            (Op::Reduce { kind, axes }, _) => axes.is_empty() && *kind != ReduceKind::ArgMax,
            (Op::Concat { .. }, _) => operands.len() == 1,
            _ => false,
        };
        if nothing {
            return operands.first().copied();
        }
        {
            let types: SmallVec<[&TensorType; 3]> = operands.iter().map(|id| &self.egraph[*id].data.ty).collect();
            // Rules hold for real numbers: arithmetic that rounds to 16 bits is none of theirs (see `transform::narrow`).
            let ty = op.infer(&types).ok()?;
            if ty.dtype.is_narrow() && !takes_narrow(&op) {
                return None;
            }
        }
        let (op, kind) = self.egraph.analysis.ops.intern(&op);
        let mut children: Operands = operands.iter().map(|id| self.egraph.find(*id)).collect();
        if kind.commutes() {
            children.sort_by_key(|id| (self.egraph[*id].data.splat.is_some(), *id));
        }
        Some(self.egraph.add(Term { op, kind, children }))
    }

    pub(crate) fn point(&mut self, op: ScalarOp, operands: &[Id]) -> Option<Id> {
        self.add(Op::Pointwise(op), operands)
    }

    pub(crate) fn mul(&mut self, a: Id, b: Id) -> Option<Id> {
        self.point(ScalarOp::Mul, &[a, b])
    }

    /// This number at every element of a tensor like that of a class.
    pub(crate) fn number(&mut self, number: impl Into<Splat>, like: Id) -> Option<Id> {
        let ty = self.fact(like).ty.clone();
        self.number_of(number, &ty)
    }

    pub(crate) fn number_of(&mut self, number: impl Into<Splat>, ty: &TensorType) -> Option<Id> {
        let number = number.into();
        let (least, most) = magnitudes(ty.dtype);
        let full = number.value == 0.0 || (least..=most).contains(&number.value.abs());
        if ty.dtype.is_float() && !full {
            return None;
        }
        self.egraph.analysis.note(number);
        let scalar = self.add(constant(number.value, ty.dtype), &[])?;
        self.broadcast(scalar, ty.shape.clone(), vec![])
    }

    pub(crate) fn transpose(&mut self, x: Id, perm: Vec<usize>) -> Option<Id> {
        self.add(Op::Transpose { perm }, &[x])
    }

    pub(crate) fn reshape(&mut self, x: Id, shape: impl Into<Shape>) -> Option<Id> {
        self.add(Op::Reshape { shape: shape.into() }, &[x])
    }

    pub(crate) fn broadcast(&mut self, x: Id, shape: Shape, dims: Vec<usize>) -> Option<Id> {
        self.add(Op::Broadcast { shape, dims }, &[x])
    }

    /// All of a class along one axis from `start` to `end`.
    pub(crate) fn slice_axis(&mut self, x: Id, axis: usize, from: u64, to: u64) -> Option<Id> {
        let mut end = self.sizes(x);
        let (mut start, step) = (vec![0; end.len()], vec![1; end.len()]);
        (start[axis], end[axis]) = (from, to);
        self.add(Op::Slice { start, end, step }, &[x])
    }

    pub(crate) fn concat(&mut self, parts: &[Id], axis: usize) -> Option<Id> {
        self.add(Op::Concat { axis }, parts)
    }

    pub(crate) fn reduce(&mut self, kind: ReduceKind, x: Id, axes: Vec<usize>) -> Option<Id> {
        self.add(Op::Reduce { kind, axes }, &[x])
    }

    pub(crate) fn sum(&mut self, x: Id, axes: Vec<usize>) -> Option<Id> {
        self.reduce(ReduceKind::Sum, x, axes)
    }

    pub(crate) fn dot(&mut self, a: Id, b: Id, dot: Dot) -> Option<Id> {
        self.add(Op::Dot(dot), &[a, b])
    }

    /// A class without these dimensions, if its elements do not vary along them: a constant, or what is repeated.
    pub(crate) fn constant_along(&mut self, x: Id, axes: &[usize]) -> Option<Id> {
        let rank = self.rank(x);
        let kept = others(rank, axes);
        let shape: Shape = permuted(&self.shape(x), &kept);
        let fact = self.fact(x);
        if let Some(value) = fact.number() {
            let ty = TensorType { dtype: fact.ty.dtype, shape };
            return self.number_of(value, &ty);
        }
        for (op, below) in self.terms_of(x, Kind::Broadcast) {
            let Op::Broadcast { dims, .. } = op else { continue };
            let sizes = self.sizes(below[0]);
            let whole = self.sizes(x);
            let varies = |from: usize| axes.contains(&dims[from]) && (sizes[from] != 1 || whole[dims[from]] == 1);
            if (0..dims.len()).any(|from| varies(from) && whole[dims[from]] != 1) {
                continue;
            }
            let left: Vec<usize> = (0..dims.len()).filter(|from| !axes.contains(&dims[*from])).collect();
            let inner: Shape = permuted(&self.shape(below[0]), &left);
            let inner = self.reshape(below[0], inner)?;
            let place = |from: &usize| kept.iter().position(|axis| *axis == dims[*from]);
            return self.broadcast(inner, shape, left.iter().filter_map(place).collect());
        }
        None
    }

    /// A class repeated to a shape, with its dimensions at these places, in any order.
    pub(crate) fn spread(&mut self, x: Id, shape: Shape, places: &[usize]) -> Option<Id> {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|axis| places[*axis]);
        let x = self.transpose(x, order.clone())?;
        self.broadcast(x, shape, order.iter().map(|axis| places[*axis]).collect())
    }

    /// Builds a term from a pattern of variables, numbers and pointwise ops; numbers are like the root.
    pub(crate) fn term(&mut self, pattern: &Pat) -> Option<Id> {
        match pattern {
            Pat::Num(value) => self.number(*value, self.found.root),
            Pat::Node(Kind::Point(op), operands) => {
                let operands: Option<Operands> = operands.iter().map(|operand| self.term(operand)).collect();
                self.point(*op, &operands?)
            }
            other => self.var(other),
        }
    }
}

/// First the permutation `inner`, then `outer`.
pub(crate) fn composed(outer: &[usize], inner: &[usize]) -> Vec<usize> {
    outer.iter().map(|axis| inner[*axis]).collect()
}

pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    for (to, from) in perm.iter().enumerate() {
        inverse[*from] = to;
    }
    inverse
}

/// Dimensions of a shape that are not among `axes`.
pub(crate) fn others(rank: usize, axes: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !axes.contains(axis)).collect()
}

/// A shape with its dimensions in another order.
pub(crate) fn permuted(shape: &Shape, perm: &[usize]) -> Shape {
    perm.iter().map(|axis| shape.0[*axis]).collect()
}

/// Where the dimensions of one operand of a product go: batch, free and contracted axes, in the order of the result and of
/// the pairs.
pub(crate) struct Side {
    pub(crate) batch: Vec<usize>,
    pub(crate) free: Vec<usize>,
    pub(crate) contract: Vec<usize>,
}

/// Both operands of a product of these ranks.
pub(crate) fn sides(dot: &Dot, ranks: [usize; 2]) -> [Side; 2] {
    let side = |rank, of: fn(&(usize, usize)) -> usize| {
        let batch: Vec<usize> = dot.batch.iter().map(of).collect();
        let contract: Vec<usize> = dot.contract.iter().map(of).collect();
        let free = (0..rank).filter(|axis| !batch.contains(axis) && !contract.contains(axis)).collect();
        Side { batch, free, contract }
    };
    [side(ranks[0], |pair| pair.0), side(ranks[1], |pair| pair.1)]
}

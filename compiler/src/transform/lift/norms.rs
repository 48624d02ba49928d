//! Softmax, logsumexp, layer normalisation and cross entropy, and the diagonal of a product.
//!
//! Each is recognised from its last operation backwards. A layer normalisation is `x - mean(x)` over the root of a variance,
//! which is the mean of squares of that difference, or the mean of squares less the square of the mean; weights may have
//! been multiplied in before the division. A cross entropy picks, by a gather, one logit per row. Where the picked logit is
//! that of the row's own number, as contrastive losses do, and the logits are a product, only a sum of products per row is
//! needed of it: then the product itself has no reader left but its logsumexp.

use super::known::Known;
use super::softmax::Along;
use crate::hash::HashMap;
use crate::ir::{Builder, DType, NodeId};
use crate::ops::{Dot, Op, OpError, Real, ReduceKind, ScalarOp};

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Meaning {
    Softmax(Along),
    LogSumExp(Along),
    /// Times `weight`, if that was multiplied in before.
    LayerNorm {
        of: Along,
        eps: f64,
        weight: Option<NodeId>,
    },
    /// Of logits and targets; its negative if `negative`.
    CrossEntropy {
        logits: NodeId,
        target: NodeId,
        negative: bool,
    },
    /// The diagonal of a square matrix; its sum if `sum`.
    Diagonal {
        of: NodeId,
        sum: bool,
    },
    /// The diagonal of a log softmax.
    OwnLogProbability(Along),
}

/// Operations between a diagonal and the product; more than any spelling has.
const DEPTH: usize = 16;

/// Which element of each row is picked.
enum Picked {
    /// That of this number.
    By(NodeId),
    /// That of the row's own number.
    Own,
}

impl Known<'_> {
    /// The semantic op that a node is.
    pub(super) fn norm(&self, id: NodeId) -> Option<Meaning> {
        // Of 16 bits every operation of a spelling rounds; one op rounds once.
        if self.graph.ty(id).dtype != DType::F32 {
            return None;
        }
        self.diagonal(id)
            .or_else(|| self.cross_entropy(id))
            .or_else(|| self.softmax(id).map(Meaning::Softmax))
            .or_else(|| self.logsumexp(id).map(Meaning::LogSumExp))
            .or_else(|| self.layer_norm(id))
    }

    /// `sum(x) / count` along axes.
    fn mean(&self, id: NodeId) -> Option<(NodeId, NodeId)> {
        let (op, [sum, by]) = self.scalar(id)? else { return None };
        let factor = match (op, self.splat(*by)?) {
            (ScalarOp::Div, count) => 1.0 / count,
            (ScalarOp::Mul, factor) => factor,
            _ => return None,
        };
        let count = match self.op(*sum) {
            Op::Reduce { axes, .. } => {
                let x = self.graph.shape(self.inputs(*sum)[0]);
                axes.iter().map(|axis| x.size(*axis)).product::<u64>()
            }
            Op::Dot(dot) => {
                let x = self.graph.shape(self.inputs(*sum)[0]);
                dot.contract.iter().map(|(axis, _)| x.size(*axis)).product()
            }
            _ => return None,
        };
        // Constants may have been rounded to f32.
        ((factor * count as f64 - 1.0).abs() < 1e-7).then_some((*sum, *by))
    }

    fn mean_of(&self, id: NodeId) -> Option<Along> {
        let (sum, _) = self.mean(id)?;
        match self.op(sum) {
            Op::Reduce { kind: ReduceKind::Sum, axes } => Some(Along { x: self.inputs(sum)[0], axes: axes.clone() }),
            _ => None,
        }
    }

    fn square_of(&self, id: NodeId) -> Option<NodeId> {
        match self.scalar(id)? {
            (ScalarOp::Mul, [a, b]) if a == b => Some(*a),
            (ScalarOp::Pow, [a, two]) if self.splat(*two) == Some(2.0) => Some(*a),
            _ => None,
        }
    }

    /// `mean(x * x)`, also as a product of x with itself.
    fn mean_square_of(&self, id: NodeId) -> Option<Along> {
        let (sum, _) = self.mean(id)?;
        let inputs = self.inputs(sum);
        match self.op(sum) {
            Op::Reduce { kind: ReduceKind::Sum, axes } => {
                Some(Along { x: self.square_of(inputs[0])?, axes: axes.clone() })
            }
            Op::Dot(Dot { batch, contract }) if inputs[0] == inputs[1] => {
                let same = batch.iter().chain(contract).all(|(a, b)| a == b);
                let whole = batch.len() + contract.len() == self.graph.shape(inputs[0]).rank();
                let mut axes: Vec<usize> = contract.iter().map(|(axis, _)| *axis).collect();
                axes.sort_unstable();
                (same && whole && batch.is_sorted()).then_some(Along { x: inputs[0], axes })
            }
            _ => None,
        }
    }

    /// `x - mean(x)` along axes.
    fn centred(&self, id: NodeId) -> Option<Along> {
        let (ScalarOp::Sub, [x, wide]) = self.scalar(id)? else { return None };
        let Op::Broadcast { .. } = self.op(*wide) else { return None };
        let mean = self.mean_of(self.inputs(*wide)[0])?;
        (mean.x == *x && self.repeated(*wide, &mean.axes).is_some()).then_some(mean)
    }

    /// The biased variance of x along axes.
    fn variance(&self, id: NodeId) -> Option<Along> {
        match self.scalar(id)? {
            // A variance is not negative, rounding of a difference may be.
            (ScalarOp::Max, [variance, zero]) if self.splat(*zero) == Some(0.0) => self.variance(*variance),
            (ScalarOp::Sub, [squares, square]) => {
                let (of, mean) = (self.mean_square_of(*squares)?, self.mean_of(self.square_of(*square)?)?);
                (of == mean).then_some(of)
            }
            _ => {
                let squares = self.mean_square_of(id)?;
                self.centred(squares.x).filter(|of| of.axes == squares.axes)
            }
        }
    }

    fn layer_norm(&self, id: NodeId) -> Option<Meaning> {
        let over = |numerator: NodeId, wide: NodeId, inverse: bool| -> Option<Meaning> {
            let Op::Broadcast { .. } = self.op(wide) else { return None };
            let mut row = self.inputs(wide)[0];
            if inverse {
                row = match self.scalar(row)? {
                    (ScalarOp::Div, [one, root]) if self.splat(*one) == Some(1.0) => *root,
                    _ => return None,
                };
            }
            let (ScalarOp::Sqrt, [inside]) = self.scalar(row)? else { return None };
            let (variance, eps) = match self.scalar(*inside) {
                Some((ScalarOp::Add, [variance, eps])) => (*variance, self.splat(*eps)?),
                _ => (*inside, 0.0),
            };
            let of = self.variance(variance)?;
            self.repeated(wide, &of.axes)?;
            let is_centred = |id: NodeId| self.centred(id).is_some_and(|centred| centred == of);
            let weight = match self.scalar(numerator)? {
                _ if is_centred(numerator) => None,
                (ScalarOp::Mul, [a, b]) if is_centred(*a) => Some(*b),
                (ScalarOp::Mul, [a, b]) if is_centred(*b) => Some(*a),
                _ => return None,
            };
            Some(Meaning::LayerNorm { of, eps, weight })
        };
        match self.scalar(id)? {
            (ScalarOp::Div, [numerator, root]) => over(*numerator, *root, false),
            (ScalarOp::Mul, [a, b]) => over(*a, *b, true).or_else(|| over(*b, *a, true)),
            _ => None,
        }
    }

    /// The axis along which a tensor of integers counts from 0.
    fn ramp(&self, id: NodeId) -> Option<usize> {
        match self.op(id) {
            Op::Iota { axis, .. } => Some(*axis),
            Op::Broadcast { dims, .. } if dims.len() == 1 => {
                let x = self.inputs(id)[0];
                self.ramp(x)?;
                (self.graph.shape(x).size(0) == self.graph.shape(id).size(dims[0])).then(|| dims[0])
            }
            // Types that keep every row's number apart.
            Op::Pointwise(ScalarOp::Cast(DType::I32 | DType::F32)) => self.ramp(self.inputs(id)[0]),
            _ => None,
        }
    }

    /// Whether a tensor is, as a number or as a condition, 1 on the diagonal of a square and 0 elsewhere.
    fn is_eye(&self, id: NodeId) -> bool {
        match self.scalar(id) {
            Some((ScalarOp::Cast(_), [x])) => self.is_eye(*x),
            Some((ScalarOp::Select, [x, one, zero])) => {
                self.splat(*one) == Some(1.0) && self.splat(*zero) == Some(0.0) && self.is_eye(*x)
            }
            Some((ScalarOp::Eq, [a, b])) => {
                let shape = self.graph.shape(id);
                let square = shape.rank() == 2 && shape.size(0) == shape.size(1);
                square && matches!((self.ramp(*a), self.ramp(*b)), (Some(a), Some(b)) if a != b)
            }
            _ => false,
        }
    }

    /// What remains of a matrix of which all but the diagonal was multiplied by zero, or replaced by it.
    fn only_diagonal(&self, id: NodeId) -> Option<NodeId> {
        match self.scalar(id)? {
            (ScalarOp::Mul, [a, b]) if self.is_eye(*a) => Some(*b),
            (ScalarOp::Mul, [a, b]) if self.is_eye(*b) => Some(*a),
            (ScalarOp::Select, [eye, x, zero]) if self.splat(*zero) == Some(0.0) && self.is_eye(*eye) => Some(*x),
            _ => None,
        }
    }

    /// One element of each row of a tensor's last dimension.
    fn picked(&self, id: NodeId) -> Option<(NodeId, Picked)> {
        match self.op(id) {
            Op::Gather { batch } => {
                let (x, target) = (self.inputs(id)[0], self.inputs(id)[1]);
                let shape = self.graph.shape(x);
                if shape.rank() != batch + 1 || self.graph.shape(target).rank() != *batch {
                    return None;
                }
                let own = *batch == 1 && shape.size(0) == shape.size(1) && self.ramp(target) == Some(0);
                Some((x, if own { Picked::Own } else { Picked::By(target) }))
            }
            Op::Reduce { kind: ReduceKind::Sum, axes } if axes.len() == 1 => {
                let x = self.only_diagonal(self.inputs(id)[0])?;
                Some((x, Picked::Own))
            }
            _ => None,
        }
    }

    fn diagonal(&self, id: NodeId) -> Option<Meaning> {
        if let Some((ScalarOp::Ln, [own])) = self.scalar(id) {
            let (p, Picked::Own) = self.picked(*own)? else { return None };
            let along = self.softmax(p).filter(|along| along.axes.len() == 1)?;
            return (self.reaches_product(along.x, DEPTH) == Some(true)).then_some(Meaning::OwnLogProbability(along));
        }
        let (of, sum) = match (self.op(id), self.picked(id)) {
            (_, Some((x, Picked::Own))) => (x, false),
            (Op::Reduce { kind: ReduceKind::Sum, axes }, _) if *axes == [0, 1] => {
                (self.only_diagonal(self.inputs(id)[0])?, true)
            }
            _ => return None,
        };
        (self.reaches_product(of, DEPTH) == Some(true)).then_some(Meaning::Diagonal { of, sum })
    }

    /// Whether the diagonal of a matrix can be had without the matrix, and a product on the way to it be left out.
    fn reaches_product(&self, id: NodeId, depth: usize) -> Option<bool> {
        if let Some(known) = self.reach.borrow().get(&(id, depth)) {
            return *known;
        }
        let reaches = self.find_product(id, depth);
        self.reach.borrow_mut().insert((id, depth), reaches);
        reaches
    }

    fn find_product(&self, id: NodeId, depth: usize) -> Option<bool> {
        let depth = depth.checked_sub(1)?;
        let inputs = self.inputs(id);
        if self.splat(id).is_some() {
            return Some(false);
        }
        if let Some(along) = self.log_softmax(id) {
            return self.reaches_product(along.x, depth);
        }
        match self.op(id) {
            Op::Dot(dot) => {
                let free = |side: usize| self.graph.shape(inputs[side]).rank() - dot.contract.len();
                // A sum of products is computed in the type of its operands.
                let exact = self.graph.ty(inputs[0]).dtype == self.graph.ty(id).dtype;
                (exact && dot.batch.is_empty() && free(0) == 1 && free(1) == 1).then_some(true)
            }
            Op::Transpose { .. } => self.reaches_product(inputs[0], depth),
            Op::Broadcast { dims, shape } => {
                let x = self.graph.shape(inputs[0]);
                (dims.len() < 2 && dims.iter().enumerate().all(|(i, axis)| x.size(i) == shape.size(*axis)))
                    .then_some(false)
            }
            Op::Pointwise(_) => {
                let mut any = false;
                for input in inputs {
                    any |= self.reaches_product(*input, depth)?;
                }
                Some(any)
            }
            _ => None,
        }
    }

    fn cross_entropy(&self, id: NodeId) -> Option<Meaning> {
        let by = |picked: Option<(NodeId, Picked)>, from: NodeId| match picked? {
            (x, Picked::By(target)) => Some((x, target)),
            // Not of a product: then an ordinary one by the given targets.
            (x, Picked::Own)
                if matches!(self.op(from), Op::Gather { .. }) && self.reaches_product(x, DEPTH) != Some(true) =>
            {
                Some((x, self.inputs(from)[1]))
            }
            _ => None,
        };
        let last = |along: &Along| along.axes == [self.graph.shape(along.x).rank() - 1];
        match self.scalar(id) {
            Some((ScalarOp::Sub, [lse, own])) => {
                let (along, (x, target)) = (self.logsumexp(*lse)?, by(self.picked(*own), *own)?);
                (last(&along) && along.x == x).then_some(Meaning::CrossEntropy { logits: x, target, negative: false })
            }
            Some((ScalarOp::Ln, [own])) => {
                let (p, target) = by(self.picked(*own), *own)?;
                let along = self.softmax(p).filter(last)?;
                Some(Meaning::CrossEntropy { logits: along.x, target, negative: true })
            }
            Some(_) => None,
            None => {
                let (log, target) = by(self.picked(id), id)?;
                let (log, negative) = match self.scalar(log) {
                    Some((ScalarOp::Neg, [log])) => (*log, false),
                    _ => (log, true),
                };
                let along = self.log_softmax(log).filter(last)?;
                Some(Meaning::CrossEntropy { logits: along.x, target, negative })
            }
        }
    }
}

impl Meaning {
    /// Name of the op, for reports.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Meaning::Softmax(_) => "softmax",
            Meaning::LogSumExp(_) => "logsumexp",
            Meaning::LayerNorm { .. } => "layer_norm",
            Meaning::CrossEntropy { .. } => "cross_entropy",
            Meaning::Diagonal { .. } | Meaning::OwnLogProbability(_) => "diagonal of a product",
        }
    }

    /// Writes the op; `map` gives the nodes that stand for the old ones.
    pub(super) fn write(&self, known: &Known<'_>, b: &mut Builder<'_>, map: &[NodeId]) -> Result<NodeId, OpError> {
        let at = |id: &NodeId| map[id.index()];
        match self {
            Meaning::Softmax(Along { x, axes }) => b.op(Op::Softmax { axes: axes.clone() }, &[at(x)]),
            Meaning::LogSumExp(Along { x, axes }) => {
                // Of a transposed matrix: along the other dimension of the matrix itself.
                if let Op::Transpose { perm } = known.op(*x) {
                    let kept = (0..perm.len()).filter(|axis| !axes.contains(axis)).map(|axis| perm[axis]);
                    if kept.is_sorted() {
                        let mut axes: Vec<usize> = axes.iter().map(|axis| perm[*axis]).collect();
                        axes.sort_unstable();
                        return b.op(Op::LogSumExp { axes }, &[at(&known.inputs(*x)[0])]);
                    }
                }
                b.op(Op::LogSumExp { axes: axes.clone() }, &[at(x)])
            }
            Meaning::LayerNorm { of: Along { x, axes }, eps, weight } => {
                let y = b.op(Op::LayerNorm { axes: axes.clone(), eps: Real(*eps) }, &[at(x)])?;
                match weight {
                    Some(weight) => b.mul(y, at(weight)),
                    None => Ok(y),
                }
            }
            Meaning::CrossEntropy { logits, target, negative } => {
                let loss = b.op(Op::CrossEntropy, &[at(logits), at(target)])?;
                if *negative { b.neg(loss) } else { Ok(loss) }
            }
            Meaning::OwnLogProbability(along) => Diagonals::new(known, map).own_log_probability(b, along),
            Meaning::Diagonal { of, sum } => {
                let diagonal = Diagonals::new(known, map).of(b, *of)?;
                if *sum { b.reduce(ReduceKind::Sum, diagonal, &[0], false) } else { Ok(diagonal) }
            }
        }
    }
}

/// Writes diagonals of matrices for which [`Known::reaches_product`] holds. What is read twice on the way is written once.
struct Diagonals<'a> {
    known: &'a Known<'a>,
    /// The nodes that stand for the old ones.
    map: &'a [NodeId],
    written: HashMap<NodeId, NodeId>,
}

impl<'a> Diagonals<'a> {
    fn new(known: &'a Known<'a>, map: &'a [NodeId]) -> Diagonals<'a> {
        Diagonals { known, map, written: HashMap::default() }
    }

    fn of(&mut self, b: &mut Builder<'_>, id: NodeId) -> Result<NodeId, OpError> {
        if let Some(written) = self.written.get(&id) {
            return Ok(*written);
        }
        let diagonal = match self.known.log_softmax(id) {
            Some(along) => self.own_log_probability(b, &along)?,
            None => self.of_op(b, id)?,
        };
        self.written.insert(id, diagonal);
        Ok(diagonal)
    }

    /// The diagonal of `x - logsumexp(x)`; a row or a column of sums has the same diagonal.
    fn own_log_probability(&mut self, b: &mut Builder<'_>, of: &Along) -> Result<NodeId, OpError> {
        let own = self.of(b, of.x)?;
        let lse = Meaning::LogSumExp(of.clone()).write(self.known, b, self.map)?;
        b.sub(own, lse)
    }

    fn of_op(&mut self, b: &mut Builder<'_>, id: NodeId) -> Result<NodeId, OpError> {
        let (known, map) = (self.known, self.map);
        let inputs = known.inputs(id);
        match known.op(id) {
            Op::Dot(dot) => {
                let rows = |b: &mut Builder<'_>, side: usize| {
                    let contracted = |pair: &(usize, usize)| if side == 0 { pair.0 } else { pair.1 };
                    let axes: Vec<usize> = dot.contract.iter().map(contracted).collect();
                    let free = (0..=axes.len()).find(|axis| !axes.contains(axis)).unwrap_or_default();
                    b.transpose(map[inputs[side].index()], &[vec![free], axes].concat())
                };
                let (left, right) = (rows(b, 0)?, rows(b, 1)?);
                let product = b.mul(left, right)?;
                let axes: Vec<usize> = (1..=dot.contract.len()).collect();
                b.reduce(ReduceKind::Sum, product, &axes, false)
            }
            Op::Transpose { .. } => self.of(b, inputs[0]),
            Op::Pointwise(op) if known.splat(id).is_none() => {
                let operands = inputs.iter().map(|x| self.of(b, *x)).collect::<Result<Vec<_>, _>>()?;
                b.pointwise(*op, &operands)
            }
            // A row, a column, or one number, which every operation repeats.
            Op::Broadcast { dims, .. } if dims.len() == 1 => Ok(map[inputs[0].index()]),
            _ => match known.splat(id) {
                Some(value) => b.constant(value, known.graph.ty(id).dtype),
                None => Ok(map[inputs[0].index()]),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Graph, OriginId, TensorType};

    /// Twelve squares of squares: as many on the diagonal, not 2^12.
    #[test]
    fn what_a_diagonal_reads_twice_is_written_once() {
        let mut graph = Graph::new("squares");
        let mut b = Builder::new(&mut graph, OriginId(0));
        let [x, t] = ["x", "t"].map(|name| b.input(name, TensorType::f32([2, 3])).unwrap());
        let mut of = b.einsum("i d, j d -> i j", &[x, t]).unwrap();
        for _ in 0..12 {
            of = b.mul(of, of).unwrap();
        }
        let known = Known::new(&graph, &[of]);
        let (mut new, map) = (graph.clone(), graph.ids().collect::<Vec<_>>());
        let diagonal = Meaning::Diagonal { of, sum: false };
        diagonal.write(&known, &mut Builder::new(&mut new, OriginId(0)), &map).unwrap();
        assert_eq!(new.nodes().len() - graph.nodes().len(), 2 + 12, "a product, its sum, and the squares");
    }
}

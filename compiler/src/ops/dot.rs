//! Sums of products over paired dimensions.

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Dot, Op, OpError, Primitive, Tensor, disagree, strided};
use crate::graph::{DType, NodeId, Shape, TensorType};

/// Dimensions that are in none of the lists.
fn free(rank: usize, batch: &[usize], contract: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !batch.contains(axis) && !contract.contains(axis)).collect()
}

fn unzip(pairs: &[(usize, usize)]) -> (Vec<usize>, Vec<usize>) {
    pairs.iter().copied().unzip()
}

fn size(shape: &Shape, axes: &[usize]) -> usize {
    axes.iter().map(|axis| shape.size(*axis) as usize).product()
}

/// `out = a b` for row-major `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`; with `add`, `out += a b`.
pub(super) fn product(out: &mut [f64], a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(b.rows == k && out.len() == m * n && a.data.len() == m * k && b.data.len() == k * n);
    let ((a_row, a_col), (b_row, b_col)) = (a.strides(), b.strides());
    // SAFETY: the slices hold exactly the elements that these sizes and strides reach, as asserted above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a_col,
            a_row,
            b.data.as_ptr(),
            b_col,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A dense matrix, row-major, or the transpose of one.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f64],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) transposed: bool,
}

impl<'a> Matrix<'a> {
    pub(super) fn new(data: &'a [f64], rows: usize, cols: usize) -> Matrix<'a> {
        Matrix { data, rows, cols, transposed: false }
    }

    pub(super) fn t(self) -> Matrix<'a> {
        Matrix { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    fn strides(self) -> (isize, isize) {
        if self.transposed { (1, self.rows as isize) } else { (self.cols as isize, 1) }
    }
}

impl Dot {
    /// Free dimensions of the first operand, in the order they have in the result.
    pub(crate) fn lhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &unzip(&self.batch).0, &unzip(&self.contract).0)
    }

    /// Free dimensions of the second operand, which come last in the result.
    pub(crate) fn rhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &unzip(&self.batch).1, &unzip(&self.contract).1)
    }

    fn check_axes(&self, lhs: &Shape, rhs: &Shape) -> Result<(), OpError> {
        let (mut seen_lhs, mut seen_rhs) = (vec![false; lhs.rank()], vec![false; rhs.rank()]);
        for &(l, r) in self.batch.iter().chain(&self.contract) {
            if l >= lhs.rank() || r >= rhs.rank() {
                return Err(OpError::new(format!(
                    "`dot` pairs dimensions {l} and {r}, which {lhs} and {rhs} do not both have"
                )));
            }
            if std::mem::replace(&mut seen_lhs[l], true) || std::mem::replace(&mut seen_rhs[r], true) {
                return Err(OpError::new(format!("`dot` uses dimension {l} of {lhs} or {r} of {rhs} twice")));
            }
            if lhs.size(l) != rhs.size(r) {
                return Err(disagree(lhs, rhs, l, r));
            }
        }
        Ok(())
    }
}

impl Primitive for Dot {
    fn name(&self) -> &'static str {
        "dot"
    }

    fn arity(&self) -> Option<usize> {
        Some(2)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (lhs, rhs) = (inputs[0], inputs[1]);
        if !lhs.dtype.is_float() || lhs.dtype != rhs.dtype {
            return Err(OpError::new(format!("`dot` takes two tensors of one float dtype, not {lhs} and {rhs}"))
                .help("cast one of them: `cast(x, 'f32')`"));
        }
        self.check_axes(&lhs.shape, &rhs.shape)?;
        let batch = self.batch.iter().map(|(l, _)| &lhs.shape.0[*l]);
        let lhs_free = self.lhs_free(lhs.shape.rank());
        let rhs_free = self.rhs_free(rhs.shape.rank());
        let lhs_free = lhs_free.iter().map(|axis| &lhs.shape.0[*axis]);
        let rhs_free = rhs_free.iter().map(|axis| &rhs.shape.0[*axis]);
        let shape: Shape = batch.chain(lhs_free).chain(rhs_free).cloned().collect();
        // Products are summed in f32 whatever they are of; who wants the result in fewer bits casts it.
        Ok(TensorType::new(DType::F32, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let (lhs, rhs) = (inputs[0], inputs[1]);
        let (lhs_shape, rhs_shape) = (&lhs.ty.shape, &rhs.ty.shape);
        let (lhs_batch, rhs_batch) = unzip(&self.batch);
        let (lhs_contract, rhs_contract) = unzip(&self.contract);
        let (lhs_free, rhs_free) = (self.lhs_free(lhs_shape.rank()), self.rhs_free(rhs_shape.rank()));
        let (m, n) = (size(lhs_shape, &lhs_free), size(rhs_shape, &rhs_free));
        let k = size(lhs_shape, &lhs_contract);
        let a = strided::permuted(lhs.data, lhs_shape, &[lhs_batch, lhs_free, lhs_contract].concat());
        let b = strided::permuted(rhs.data, rhs_shape, &[rhs_batch, rhs_contract, rhs_free].concat());
        let mut y = vec![0.0; out.shape.elements() as usize];
        for ((y, a), b) in y.chunks_mut(m * n).zip(a.chunks(m * k)).zip(b.chunks(k * n)) {
            product(y, Matrix::new(a, m, k), Matrix::new(b, k, n), false);
        }
        y
    }

    /// The product of the gradient with the other operand over the other operand's free dimensions. Of the two operand
    /// orders the one is taken whose result already has its dimensions in the order of the input. The gradient is rounded to
    /// the operands' type before it is multiplied; the product is f32.
    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        let other = call.inputs[1 - input];
        let dtype = b.graph.ty(other).dtype;
        let g = b.cast(g, dtype)?;
        let ranks = call.inputs.iter().map(|id| b.graph.shape(*id).rank()).collect::<Vec<_>>();
        let flip = |pairs: &[(usize, usize)]| -> Vec<(usize, usize)> {
            pairs.iter().map(|(l, r)| if input == 0 { (*l, *r) } else { (*r, *l) }).collect()
        };
        // From here on: pairs (mine, theirs).
        let (batch, contract) = (flip(&self.batch), flip(&self.contract));
        let (my_batch, their_batch) = unzip(&batch);
        let (my_contract, their_contract) = unzip(&contract);
        let my_free = free(ranks[input], &my_batch, &my_contract);
        let their_free = free(ranks[1 - input], &their_batch, &their_contract);
        // Dimensions of g: batch, free of lhs, free of rhs.
        let first_of_theirs = batch.len() + if input == 0 { my_free.len() } else { 0 };
        let summed: Vec<(usize, usize)> =
            their_free.iter().enumerate().map(|(i, axis)| (first_of_theirs + i, *axis)).collect();
        let paired: Vec<(usize, usize)> = their_batch.iter().enumerate().map(|(i, axis)| (i, *axis)).collect();
        // Contracted dimensions come in the order of the other operand; find which of mine each one is.
        let mut by_theirs = contract.clone();
        by_theirs.sort_by_key(|(_, theirs)| *theirs);
        let from_contract: Vec<usize> = by_theirs.iter().map(|(mine, _)| *mine).collect();

        let g_first = [my_batch.clone(), my_free.clone(), from_contract.clone()].concat();
        let other_first = [my_batch, from_contract, my_free].concat();
        let swap = |pairs: &[(usize, usize)]| pairs.iter().map(|(a, b)| (*b, *a)).collect::<Vec<_>>();
        if !g_first.is_sorted() && other_first.is_sorted() {
            let dot = Dot { batch: swap(&paired), contract: swap(&summed) };
            return b.dot(other, g, dot).map(Some);
        }
        let product = b.dot(g, other, Dot { batch: paired, contract: summed })?;
        let mut perm = vec![0; g_first.len()];
        for (position, mine) in g_first.iter().enumerate() {
            perm[*mine] = position;
        }
        b.transpose(product, &perm).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], out: &TensorType) -> u64 {
        let k: u64 = self.contract.iter().map(|(l, _)| inputs[0].shape.size(*l)).product();
        out.shape.elements().saturating_mul(2 * k)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        let Some(free) = axis.checked_sub(self.batch.len()) else {
            return axes::two(Some(self.batch[axis].0), Some(self.batch[axis].1));
        };
        let left = self.lhs_free(inputs[0].shape.rank());
        match free.checked_sub(left.len()) {
            None => axes::two(Some(left[free]), None),
            Some(right) => match self.rhs_free(inputs[1].shape.rank()).get(right) {
                Some(axis) => axes::two(None, Some(*axis)),
                None => Err(No("the result has no such dimension")),
            },
        }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        let pairs = |pairs: &[(usize, usize)]| {
            pairs.iter().filter_map(|(left, right)| Some((call.axis(0, *left)?, call.axis(1, *right)?))).collect()
        };
        Some(Op::Dot(Dot { batch: pairs(&self.batch), contract: pairs(&self.contract) }))
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        let terms = self.contract.iter().map(|(axis, _)| r.b.graph.shape(r.x[0]).size(*axis)).product();
        r.product(&Op::Dot(self.clone()), terms)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let dot = |batch: &[(usize, usize)], contract: &[(usize, usize)]| {
        Op::Dot(Dot { batch: batch.to_vec(), contract: contract.to_vec() })
    };
    let table: [(&str, &[u64], &[u64], Op); 11] = [
        ("matrix", &[3, 4], &[4, 5], dot(&[], &[(1, 0)])),
        ("transposed_rhs", &[3, 4], &[5, 4], dot(&[], &[(1, 1)])),
        ("transposed_lhs", &[4, 3], &[4, 5], dot(&[], &[(0, 0)])),
        ("linear", &[2, 3, 4], &[5, 4], dot(&[], &[(2, 1)])),
        ("batched", &[2, 3, 4], &[2, 4, 5], dot(&[(0, 0)], &[(2, 1)])),
        ("attention_scores", &[2, 3, 4, 5], &[2, 3, 6, 5], dot(&[(0, 0), (1, 1)], &[(3, 3)])),
        ("strided_batch", &[3, 2, 4], &[4, 2, 5], dot(&[(1, 1)], &[(2, 0)])),
        ("two_contractions", &[2, 3, 4], &[4, 3, 5], dot(&[], &[(1, 1), (2, 0)])),
        ("inner", &[6], &[6], dot(&[], &[(0, 0)])),
        ("outer", &[3], &[4], dot(&[], &[])),
        ("odd_sizes", &[17, 33], &[33, 9], dot(&[], &[(1, 0)])),
    ];
    let mut cases = Vec::new();
    for (name, lhs, rhs, op) in table {
        let mut case = CaseBuilder::new(&format!("dot_{name}"));
        let lhs = case.uniform_of("a", TensorType::new(DType::F32, lhs.iter().copied().collect::<Shape>()), -1.0, 1.0);
        let rhs = case.uniform_of("b", TensorType::new(DType::F32, rhs.iter().copied().collect::<Shape>()), -1.0, 1.0);
        cases.push(case.op(op, &[lhs, rhs]));
    }
    // Operands in fewer bits, in both orders in memory; more contracted elements than a device takes at a time.
    for dtype in [DType::Bf16, DType::F16] {
        let table: [(&str, [u64; 2], [u64; 2], Op); 3] = [
            ("matrix", [17, 33], [33, 9], dot(&[], &[(1, 0)])),
            ("transposed", [33, 17], [9, 33], dot(&[], &[(0, 1)])),
            ("long", [3, 2500], [2500, 5], dot(&[], &[(1, 0)])),
        ];
        for (name, lhs, rhs, op) in table {
            let mut case = CaseBuilder::new(&format!("dot_{dtype}_{name}"));
            let a = case.uniform_of("a", TensorType::new(dtype, lhs), -1.0, 1.0);
            let b = case.uniform_of("b", TensorType::new(dtype, rhs), -1.0, 1.0);
            cases.push(case.op(op, &[a, b]));
        }
    }
    cases
}

//! Rows picked by index, and rows added by index: each the gradient of the other.

use std::cmp::Ordering;

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Op, OpError, Primitive, Tensor, disagree, strided};
use crate::graph::{DType, NodeId, Shape, TensorType};

pub(super) struct Gather {
    pub(super) batch: usize,
}

pub(super) struct ScatterAdd {
    pub(super) batch: usize,
    pub(super) rows: u64,
}

/// `[batch, indices, inner]` of `dims` split at the batch and the index rank.
fn check_index(name: &str, index: &TensorType, data: &TensorType, batch: usize, shared: usize) -> Result<(), OpError> {
    if index.dtype != DType::I32 {
        return Err(
            OpError::new(format!("`{name}` takes an i32 index, not {index}")).help("cast it: `cast(index, 'i32')`")
        );
    }
    if index.shape.rank() < batch || data.shape.rank() < shared {
        let message = format!("`{name}` over {batch} batch dimensions of {} by {}", data.shape, index.shape);
        return Err(OpError::new(message));
    }
    match (0..shared).find(|axis| index.shape.0.get(*axis).is_none_or(|dim| *dim != data.shape.0[*axis])) {
        Some(axis) if axis < index.shape.rank() => Err(disagree(&index.shape, &data.shape, axis, axis)),
        Some(_) => Err(OpError::new(format!("{} has fewer dimensions than {}", index.shape, data.shape))),
        None => Ok(()),
    }
}

/// Indices outside of the table are clamped to it, on every device: bad data cannot read foreign memory.
fn row(index: f64, rows: usize) -> usize {
    index.clamp(0.0, rows as f64 - 1.0) as usize
}

fn product(shape: &Shape, range: std::ops::Range<usize>) -> usize {
    strided::sizes(shape)[range].iter().product()
}

impl Primitive for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn arity(&self) -> Option<usize> {
        Some(2)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (x, index) = (inputs[0], inputs[1]);
        check_index("gather", index, x, self.batch, self.batch)?;
        if x.shape.rank() <= self.batch {
            return Err(OpError::new(format!(
                "`gather` picks along dimension {}, but {} has none",
                self.batch, x.shape
            )));
        }
        let shape: Shape = index.shape.0.iter().chain(&x.shape.0[self.batch + 1..]).cloned().collect();
        Ok(TensorType::new(x.dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let (x, index) = (inputs[0], inputs[1]);
        let batch = product(&x.ty.shape, 0..self.batch);
        let rows = x.ty.shape.size(self.batch) as usize;
        let inner = x.data.len() / (batch * rows);
        let count = index.data.len() / batch;
        let mut result = Vec::with_capacity(out.shape.elements() as usize);
        for (position, i) in index.data.iter().enumerate() {
            let start = (position / count * rows + row(*i, rows)) * inner;
            result.extend_from_slice(&x.data[start..start + inner]);
        }
        result
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let rows = b.graph.shape(call.inputs[0]).size(self.batch);
        let g = b.cast(g, DType::F32)?;
        b.op(Op::ScatterAdd { batch: self.batch, rows }, &[call.inputs[1], g]).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        match axis.checked_sub(inputs[1].shape.rank()) {
            None if axis < self.batch => axes::two(Some(axis), Some(axis)),
            None => axes::two(None, Some(axis)),
            Some(inner) => axes::two(Some(self.batch + 1 + inner), None),
        }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Gather { batch: self.batch - usize::from(call.layout.positions < self.batch) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        if r.e.iter().all(Option::is_none) {
            return Ok(None);
        }
        let table = r.error_or_none(0)?;
        let picked = r.b.gather(table, r.x[1], self.batch)?;
        // Where another row may have been picked, of all of the row.
        let Some(e) = r.e[1] else { return Ok(Some(picked)) };
        let shape = r.b.graph.shape(r.y).clone();
        let dims = (0..r.b.graph.shape(e).rank()).collect();
        let other = r.b.op(Op::Broadcast { shape, dims }, &[e])?;
        if !r.is_float() {
            return r.b.or(picked, other).map(Some);
        }
        let unknown = r.b.scalar(f64::INFINITY)?;
        r.b.select(other, unknown, picked).map(Some)
    }
}

impl Primitive for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }

    fn arity(&self) -> Option<usize> {
        Some(2)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (index, updates) = (inputs[0], inputs[1]);
        if updates.dtype != DType::F32 {
            return Err(OpError::new(format!("`scatter_add` adds f32, not {updates}")));
        }
        check_index("scatter_add", index, updates, self.batch, index.shape.rank())?;
        let (batch, inner) = (&index.shape.0[..self.batch], &updates.shape.0[index.shape.rank()..]);
        let shape: Shape = batch.iter().cloned().chain([self.rows.into()]).chain(inner.iter().cloned()).collect();
        Ok(TensorType::new(updates.dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let (index, updates) = (inputs[0], inputs[1]);
        let rows = self.rows as usize;
        let count = index.data.len() / product(&index.ty.shape, 0..self.batch);
        let inner = updates.data.len() / index.data.len();
        let mut result = vec![0.0; out.shape.elements() as usize];
        for (position, (i, update)) in index.data.iter().zip(updates.data.chunks(inner)).enumerate() {
            let start = (position / count * rows + row(*i, rows)) * inner;
            for (sum, x) in result[start..start + inner].iter_mut().zip(update) {
                *sum += x;
            }
        }
        result
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        b.gather(g, call.inputs[0], self.batch).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        inputs[1].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        match axis.cmp(&self.batch) {
            Ordering::Less => axes::all(inputs, axis),
            Ordering::Equal => Err(No("the index says which rows are added up")),
            Ordering::Greater => axes::two(None, Some(inputs[0].shape.rank() + axis - self.batch - 1)),
        }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::No("it adds up rows of all samples")
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        let op = Op::ScatterAdd { batch: self.batch, rows: self.rows };
        if r.e[0].is_some() {
            return r.b.full(f64::INFINITY, &r.b.graph.ty(r.y).clone()).map(Some);
        }
        let terms = r.b.graph.shape(r.x[0]).elements();
        let carried = r.e[1].map(|e| r.b.op(op.clone(), &[r.x[0], e])).transpose()?;
        let magnitude = r.b.abs(r.x[1])?;
        let magnitude = r.b.op(op, &[r.x[0], magnitude])?;
        r.plus(carried, magnitude, terms as f64)
    }
}

pub(super) fn cases() -> Vec<Case> {
    // name, x, index, batch; rows is the size of x at `batch`, and some indices repeat.
    let table: [(&str, &[u64], &[u64], usize); 4] = [
        ("rows", &[7, 5], &[2, 6], 0),
        ("positions", &[3, 4, 5], &[3], 1),
        ("several_positions", &[3, 4, 5], &[3, 6], 1),
        ("scalars", &[3, 4], &[3], 1),
    ];
    let shape = |sizes: &[u64]| sizes.iter().copied().collect::<Shape>();
    let mut cases = Vec::new();
    for (name, x, index, batch) in table {
        let rows = x[batch];
        let mut case = CaseBuilder::new(&format!("gather_{name}"));
        let table = case.uniform_of("x", TensorType::f32(shape(x)), -1.0, 1.0);
        let at = case.integers_of("index", shape(index), 0, rows as i32);
        cases.push(case.op(Op::Gather { batch }, &[table, at]));

        let mut case = CaseBuilder::new(&format!("scatter_add_{name}"));
        let at = case.integers_of("index", shape(index), 0, rows as i32);
        let updates = [index, &x[batch + 1..]].concat();
        let updates = case.uniform_of("updates", TensorType::f32(shape(&updates)), -1.0, 1.0);
        cases.push(case.op(Op::ScatterAdd { batch, rows }, &[at, updates]));
    }
    let mut case = CaseBuilder::new("gather_clamps");
    let x = case.uniform("x", [4, 3], -1.0, 1.0);
    let index = case.input("index", TensorType::new(DType::I32, [3]), vec![-2.0, 9.0, 1.0]);
    cases.push(case.op(Op::Gather { batch: 0 }, &[x, index]));
    cases
}

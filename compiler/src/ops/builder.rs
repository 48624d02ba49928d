//! Adds nodes to a graph in the terms of the language: operands broadcast as in numpy, constants take the dtype of the
//! other operand, and views that change nothing add no node.

use smallvec::SmallVec;

use super::einsum;
use super::{OpError, broadcast_shapes, constant, fits};
use crate::graph::{
    Conv, ConvKind, DType, Dim, Dot, Graph, NodeId, Op, OriginId, ReduceKind, ScalarOp, Shape, TensorType,
};

/// Adds nodes to a graph, all with one origin.
pub struct Builder<'g> {
    /// The graph.
    pub graph: &'g mut Graph,
    /// Origin of the nodes that are added.
    pub origin: OriginId,
    /// Whether constants are as a spec writes them: then one that its type of 16 bits does not hold is refused.
    strict: bool,
}

/// One item of `x[...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscript {
    /// One position (negative: from the end); the dimension goes away.
    At(i64),
    /// `start:stop:step`, as in Python.
    Range {
        /// First position; negative: from the end.
        start: Option<i64>,
        /// One past the last; negative: from the end.
        stop: Option<i64>,
        /// Distance, at least 1.
        step: Option<i64>,
    },
    /// As many whole dimensions as are left.
    Rest,
}

type Result<T = NodeId> = std::result::Result<T, OpError>;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&mut self, x: NodeId) -> Result {
            self.pointwise(ScalarOp::$op, &[x])
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&mut self, a: NodeId, b: NodeId) -> Result {
            self.pointwise(ScalarOp::$op, &[a, b])
        }
    )*};
}

/// Every method adds nodes and returns the last; its errors are those of the ops' rules.
#[allow(clippy::missing_errors_doc)] // one sentence above says it for all of them
impl<'g> Builder<'g> {
    /// A builder whose nodes have this origin.
    pub fn new(graph: &'g mut Graph, origin: OriginId) -> Builder<'g> {
        Builder { graph, origin, strict: false }
    }

    /// A builder for what a spec writes, whose numbers must mean what they say.
    pub fn strict(graph: &'g mut Graph, origin: OriginId) -> Builder<'g> {
        Builder { graph, origin, strict: true }
    }

    /// Adds an op as it stands.
    pub fn op(&mut self, op: Op, inputs: &[NodeId]) -> Result {
        self.graph.add(op, inputs, self.origin)
    }

    fn shape(&self, x: NodeId) -> &Shape {
        self.graph.shape(x)
    }

    /// An input of the program.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result {
        let id = self.op(Op::Input { name: name.into(), ty }, &[])?;
        self.graph.inputs.insert(name.into(), id);
        Ok(id)
    }

    /// The value of a state tensor at the start of the step.
    pub fn state(&mut self, path: &str, ty: TensorType) -> Result {
        self.op(Op::State { path: path.into(), ty }, &[])
    }

    /// A scalar constant.
    pub fn constant(&mut self, value: f64, dtype: DType) -> Result {
        self.op(constant(value, dtype), &[])
    }

    /// An F32 constant, which takes the dtype of what it is combined with.
    pub fn scalar(&mut self, value: f64) -> Result {
        self.constant(value, DType::F32)
    }

    /// A tensor with one value everywhere.
    pub fn full(&mut self, value: f64, ty: &TensorType) -> Result {
        let scalar = self.constant(value, ty.dtype)?;
        self.broadcast_to(scalar, &ty.shape)
    }

    /// A scalar operation; operands broadcast, constants take the dtype of the other operands.
    pub fn pointwise(&mut self, op: ScalarOp, inputs: &[NodeId]) -> Result {
        let mut operands: SmallVec<[NodeId; 3]> = inputs.into();
        let numbers = if op == ScalarOp::Select { 1.min(inputs.len()) } else { 0 };
        self.adapt_constants(&mut operands[numbers..])?;
        let mut shape = Shape::scalar();
        for operand in &operands {
            shape = broadcast_shapes(&shape, self.shape(*operand))?;
        }
        for operand in &mut operands {
            *operand = self.broadcast_to(*operand, &shape)?;
        }
        self.op(Op::Pointwise(op), &operands)
    }

    /// The value of a constant node.
    pub fn constant_value(&self, x: NodeId) -> Option<(f64, DType)> {
        match &self.graph.node(x).op {
            Op::Const { value, dtype } => Some((value.0, *dtype)),
            _ => None,
        }
    }

    fn adapt_constants(&mut self, operands: &mut [NodeId]) -> Result<()> {
        let is_constant = |b: &Builder<'_>, id: &NodeId| b.constant_value(*id).is_some();
        let Some(leader) = operands.iter().find(|id| !is_constant(self, id)) else { return Ok(()) };
        let dtype = self.graph.ty(*leader).dtype;
        for operand in operands {
            if let Some((value, from)) = self.constant_value(*operand)
                && from != dtype
                && dtype != DType::Bool
                && from != DType::Bool
            {
                if self.strict {
                    fits(value, dtype)?;
                }
                *operand = self.constant(value, dtype).map_err(|error| {
                    let help = "the other operand holds integers: cast it first, `cast(x, 'f32')`";
                    OpError { number: Some(value), ..error.help(help) }
                })?;
            }
        }
        Ok(())
    }

    unary! {
        /// -x
        neg Neg;
        /// |x|
        abs Abs;
        /// e^x
        exp Exp;
        /// Natural logarithm.
        ln Ln;
        /// Square root.
        sqrt Sqrt;
        /// Sine.
        sin Sin;
        /// Cosine.
        cos Cos;
        /// Hyperbolic tangent.
        tanh Tanh;
        /// Error function.
        erf Erf;
        /// Largest integer not above.
        floor Floor;
        /// Logical negation.
        not Not;
    }

    binary! {
        /// a + b
        add Add;
        /// a - b
        sub Sub;
        /// a * b
        mul Mul;
        /// a / b
        div Div;
        /// What is left of a, with the sign of b.
        rem Rem;
        /// The smaller.
        min Min;
        /// The larger.
        max Max;
        /// a < b
        lt Lt;
        /// a <= b
        le Le;
        /// a == b
        eq Eq;
        /// Logical and.
        and And;
        /// Logical or.
        or Or;
    }

    /// 1, 0 or -1, as x is; NaN of NaN. No gradient flows.
    pub fn sign(&mut self, x: NodeId) -> Result {
        let x = self.stop_gradient(x)?;
        let (minus, zero, one) = (self.scalar(-1.0)?, self.scalar(0.0)?, self.scalar(1.0)?);
        let (below, above) = (self.lt(x, zero)?, self.gt(x, zero)?);
        let rest = self.select(below, minus, x)?;
        self.select(above, one, rest)
    }

    /// a > b
    pub fn gt(&mut self, a: NodeId, b: NodeId) -> Result {
        self.lt(b, a)
    }

    /// a >= b
    pub fn ge(&mut self, a: NodeId, b: NodeId) -> Result {
        self.le(b, a)
    }

    /// a != b
    pub fn ne(&mut self, a: NodeId, b: NodeId) -> Result {
        let equal = self.eq(a, b)?;
        self.not(equal)
    }

    /// a to the power b. Small constant exponents become products, quotients and roots, which are cheaper and more exact.
    pub fn pow(&mut self, a: NodeId, b: NodeId) -> Result {
        let Some((exponent, _)) = self.constant_value(b) else { return self.pointwise(ScalarOp::Pow, &[a, b]) };
        let magnitude = exponent.abs();
        let power = if magnitude == 0.5 {
            self.sqrt(a)?
        } else if magnitude == 1.0 {
            a
        } else if magnitude == 2.0 {
            self.mul(a, a)?
        } else if magnitude == 3.0 {
            let square = self.mul(a, a)?;
            self.mul(square, a)?
        } else if magnitude == 4.0 {
            let square = self.mul(a, a)?;
            self.mul(square, square)?
        } else {
            return self.pointwise(ScalarOp::Pow, &[a, b]);
        };
        if exponent > 0.0 {
            return Ok(power);
        }
        let one = self.scalar(1.0)?;
        self.div(one, power)
    }

    /// `a` where `c` holds, `b` elsewhere.
    pub fn select(&mut self, c: NodeId, a: NodeId, b: NodeId) -> Result {
        self.pointwise(ScalarOp::Select, &[c, a, b])
    }

    /// Conversion to a dtype; what was widened from that dtype is taken from there.
    pub fn cast(&mut self, x: NodeId, dtype: DType) -> Result {
        if let Some(narrow) = self.narrow(x, dtype)? {
            return Ok(narrow);
        }
        if self.graph.ty(x).dtype == dtype {
            return Ok(x);
        }
        self.pointwise(ScalarOp::Cast(dtype), &[x])
    }

    /// What a value of this dtype has been widened to, perhaps seen through views, as it was.
    pub(crate) fn narrow(&mut self, x: NodeId, dtype: DType) -> Result<Option<NodeId>> {
        if let Some(narrow) = widened_from(self.graph, x) {
            return Ok(Some(narrow).filter(|id| self.graph.ty(*id).dtype == dtype));
        }
        let node = self.graph.node(x);
        if !matches!(node.op, Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }) {
            return Ok(None);
        }
        let (op, input) = (node.op.clone(), node.inputs[0]);
        match self.narrow(input, dtype)? {
            Some(input) => self.op(op, &[input]).map(Some),
            None => Ok(None),
        }
    }

    /// Whether every element is neither infinite (in F32) nor NaN.
    pub fn is_finite(&mut self, x: NodeId) -> Result {
        // As f32: the largest of these is infinite in a type of 16 bits.
        let x = self.cast(x, DType::F32)?;
        let magnitude = self.abs(x)?;
        let largest = self.scalar(f64::from(f32::MAX))?;
        self.le(magnitude, largest)
    }

    /// The nearest finite number of F32.
    pub fn bounded(&mut self, x: NodeId) -> Result {
        let (least, most) = (self.scalar(f64::from(f32::MIN))?, self.scalar(f64::from(f32::MAX))?);
        let raised = self.max(x, least)?;
        self.min(raised, most)
    }

    /// Repeats along new leading dimensions and dimensions of size 1, as numpy does.
    pub fn broadcast_to(&mut self, x: NodeId, shape: &Shape) -> Result {
        let from = self.shape(x);
        if from == shape {
            return Ok(x);
        }
        if from.rank() > shape.rank() {
            return Err(OpError::new(format!("{from} does not broadcast to {shape}, which has fewer dimensions")));
        }
        let dims = (shape.rank() - from.rank()..shape.rank()).collect();
        self.op(Op::Broadcast { shape: shape.clone(), dims }, &[x])
    }

    /// The same elements under another shape.
    pub fn reshape(&mut self, x: NodeId, shape: Shape) -> Result {
        if *self.shape(x) == shape {
            return Ok(x);
        }
        self.op(Op::Reshape { shape }, &[x])
    }

    /// Dimension `i` of the result is dimension `perm[i]`.
    pub fn transpose(&mut self, x: NodeId, perm: &[usize]) -> Result {
        if perm.len() == self.shape(x).rank() && perm.iter().enumerate().all(|(i, axis)| i == *axis) {
            return Ok(x);
        }
        self.op(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// Elements `start, start + step, ...` below `end` along each dimension.
    pub fn slice(&mut self, x: NodeId, start: &[u64], end: &[u64], step: &[u64]) -> Result {
        let whole = start.iter().all(|i| *i == 0) && step.iter().all(|i| *i == 1) && *end == self.shape(x).sizes();
        if whole && start.len() == end.len() && step.len() == end.len() {
            return Ok(x);
        }
        self.op(Op::Slice { start: start.to_vec(), end: end.to_vec(), step: step.to_vec() }, &[x])
    }

    /// Elements `start..end` along one dimension.
    pub fn slice_axis(&mut self, x: NodeId, axis: usize, start: u64, end: u64) -> Result {
        let mut ends = self.shape(x).sizes();
        let (mut starts, steps) = (vec![0; ends.len()], vec![1; ends.len()]);
        if let (Some(first), Some(last)) = (starts.get_mut(axis), ends.get_mut(axis)) {
            (*first, *last) = (start, end);
        }
        self.slice(x, &starts, &ends, &steps)
    }

    /// `x[items]`: positions and ranges of the leading dimensions, the others whole.
    pub fn subscript(&mut self, x: NodeId, items: &[Subscript]) -> Result {
        let shape = self.shape(x).clone();
        let named = items.iter().filter(|item| **item != Subscript::Rest).count();
        let rests = items.len() - named;
        if named > shape.rank() || rests > 1 {
            let message = format!("{named} positions for the {} dimensions of {shape}", shape.rank());
            return Err(OpError::new(if rests > 1 { "`..` stands twice in one index".into() } else { message }));
        }
        let whole = Subscript::Range { start: None, stop: None, step: None };
        let gap = shape.rank() - named;
        let mut all: Vec<Subscript> = Vec::new();
        for item in items {
            match item {
                Subscript::Rest => all.extend(std::iter::repeat_n(whole, gap)),
                item => all.push(*item),
            }
        }
        all.resize(shape.rank(), whole);
        let (mut start, mut end, mut step) = (shape.sizes(), shape.sizes(), vec![1; shape.rank()]);
        let mut kept = Shape::scalar();
        for (axis, item) in all.iter().enumerate() {
            let (range, dropped) = subscript_range(&shape, axis, *item)?;
            (start[axis], end[axis], step[axis]) = range;
            if !dropped {
                let size = (range.1 - range.0).div_ceil(range.2);
                kept.0.push(if size == shape.size(axis) { shape.0[axis] } else { size.into() });
            }
        }
        let sliced = self.slice(x, &start, &end, &step)?;
        self.reshape(sliced, kept)
    }

    /// Surrounds with zeros (false), `low` before and `high` after, per dimension.
    pub fn pad(&mut self, x: NodeId, low: &[u64], high: &[u64]) -> Result {
        if low.iter().chain(high).all(|n| *n == 0) && low.len() == self.shape(x).rank() {
            return Ok(x);
        }
        self.op(Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: vec![0; low.len()] }, &[x])
    }

    /// Joins along an axis.
    pub fn concat(&mut self, parts: &[NodeId], axis: usize) -> Result {
        self.op(Op::Concat { axis }, parts)
    }

    /// Reduces dimensions away, or to size 1 with `keep`.
    pub fn reduce(&mut self, kind: ReduceKind, x: NodeId, axes: &[usize], keep: bool) -> Result {
        if axes.is_empty() && kind != ReduceKind::ArgMax {
            return Ok(x);
        }
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        let mut kept = self.shape(x).clone();
        let reduced = self.op(Op::Reduce { kind, axes: axes.clone() }, &[x])?;
        if !keep {
            return Ok(reduced);
        }
        for axis in axes {
            kept.0[axis] = Dim::from(1);
        }
        self.reshape(reduced, kept)
    }

    /// Arithmetic mean.
    pub fn mean(&mut self, x: NodeId, axes: &[usize], keep: bool) -> Result {
        if !self.graph.ty(x).dtype.is_float() {
            return Err(OpError::new(format!("`mean` takes floats, not {}", self.graph.ty(x)))
                .help("cast it first: `cast(x, 'f32')`"));
        }
        // Of 16 bits the sum may be too large where the mean is not: in f32, and rounded once.
        let (dtype, wide) = (self.graph.ty(x).dtype, self.cast(x, DType::F32)?);
        let sum = self.reduce(ReduceKind::Sum, wide, axes, keep)?;
        let count: u64 = axes.iter().map(|axis| self.shape(x).size(*axis)).product();
        let count = self.scalar(count as f64)?;
        let mean = self.div(sum, count)?;
        self.cast(mean, dtype)
    }

    /// Index of the first largest element along an axis.
    pub fn argmax(&mut self, x: NodeId, axis: usize) -> Result {
        self.reduce(ReduceKind::ArgMax, x, &[axis], false)
    }

    /// Sum of products over paired dimensions.
    pub fn dot(&mut self, a: NodeId, b: NodeId, dot: Dot) -> Result {
        self.op(Op::Dot(dot), &[a, b])
    }

    /// `a @ b` as in numpy: matrices in the last two dimensions, the others are batch dimensions, which broadcast;
    /// vectors act as a row on the left and as a column on the right.
    pub fn matmul(&mut self, a: NodeId, b: NodeId) -> Result {
        let (left, right) = (self.shape(a).clone(), self.shape(b).clone());
        let (rank_a, rank_b) = (left.rank(), right.rank());
        if rank_a == 0 || rank_b == 0 {
            return Err(OpError::new(format!("`@` takes no scalars: {left} @ {right}")).help("multiply with `*`"));
        }
        let row = rank_b.saturating_sub(2);
        if left.size(rank_a - 1) != right.size(row) {
            let message = format!(
                "{left} @ {right}: the last dimension of the first ({}) and dimension {row} of the second ({}) disagree",
                left.0[rank_a - 1],
                right.0[row]
            );
            return Err(OpError::new(message));
        }
        let contract = vec![(rank_a - 1, row)];
        if rank_b <= 2 {
            return self.dot(a, b, Dot { batch: vec![], contract });
        }
        let matrix = 2.min(rank_a);
        let lead = |shape: &Shape, inner: usize| shape.0[..shape.rank() - inner].iter().cloned().collect::<Shape>();
        let batch = broadcast_shapes(&lead(&left, matrix), &lead(&right, 2))?;
        let full = |shape: &Shape, inner: usize| {
            batch.0.iter().chain(&shape.0[shape.rank() - inner..]).cloned().collect::<Shape>()
        };
        let a = self.broadcast_to(a, &full(&left, matrix))?;
        let b = self.broadcast_to(b, &full(&right, 2))?;
        let n = batch.rank();
        let pairs = (0..n).map(|axis| (axis, axis)).collect();
        self.dot(a, b, Dot { batch: pairs, contract: vec![(n + matrix - 1, n)] })
    }

    /// `out[b.., i.., r..] = x[b.., index[b.., i..], r..]`.
    pub fn gather(&mut self, x: NodeId, index: NodeId, batch: usize) -> Result {
        self.op(Op::Gather { batch }, &[x, index])
    }

    /// The adjoint of [`Builder::gather`] on a table of `rows` rows.
    pub fn scatter_add(&mut self, index: NodeId, updates: NodeId, batch: usize, rows: u64) -> Result {
        self.op(Op::ScatterAdd { batch, rows }, &[index, updates])
    }

    /// Two-dimensional cross-correlation of images `[n, c, h, w]` with weights `[o, c, kh, kw]`.
    pub fn conv2d(&mut self, x: NodeId, weight: NodeId, stride: u64, padding: u64) -> Result {
        self.op(Op::Conv2d(Conv { kind: ConvKind::Forward, stride, padding, size: (0, 0) }), &[x, weight])
    }

    /// I32 coordinate along an axis.
    pub fn iota(&mut self, shape: Shape, axis: usize) -> Result {
        self.op(Op::Iota { shape, axis }, &[])
    }

    /// Uniform F32 in [0, 1) from key (seed, step), both I32 [], and a stream number (see [`Op::Random`]).
    pub fn random_uniform(&mut self, seed: NodeId, step: NodeId, shape: Shape, stream: u64, lane: u8) -> Result {
        self.op(Op::Random { shape, stream, lane }, &[seed, step])
    }

    /// Normal F32 with mean 0 and standard deviation 1, from two words of each draw.
    pub fn random_normal(&mut self, seed: NodeId, step: NodeId, shape: Shape, stream: u64) -> Result {
        // Box and Muller, 1958: a radius from one uniform number and an angle from another.
        let first = self.random_uniform(seed, step, shape.clone(), stream, 0)?;
        let second = self.random_uniform(seed, step, shape, stream, 1)?;
        let (one, minus_two, turn) = (self.scalar(1.0)?, self.scalar(-2.0)?, self.scalar(std::f64::consts::TAU)?);
        // Draws lie in [0, 1), so this is never ln(0).
        let positive = self.sub(one, first)?;
        let log = self.ln(positive)?;
        let square = self.mul(minus_two, log)?;
        let radius = self.sqrt(square)?;
        let angle = self.mul(second, turn)?;
        let cosine = self.cos(angle)?;
        self.mul(radius, cosine)
    }

    /// The identity, through which no gradient flows.
    pub fn stop_gradient(&mut self, x: NodeId) -> Result {
        self.op(Op::StopGradient, &[x])
    }

    /// Sums of products by axis names: `'b l d, e d -> b l e'`. `...` stands for the same further axes everywhere.
    pub fn einsum(&mut self, pattern: &str, operands: &[NodeId]) -> Result {
        einsum::einsum(self, pattern, operands)
    }

    /// Splits, orders and merges axes by name: `'b l (h d) -> b h l d'` with `h` given. `1` is an axis of size 1, `...`
    /// stands for further axes.
    pub fn rearrange(&mut self, x: NodeId, pattern: &str, sizes: &[(&str, u64)]) -> Result {
        einsum::rearrange(self, x, pattern, sizes)
    }

    /// A dimension by number; negative ones count from the end.
    pub fn axis(&self, x: NodeId, axis: i64) -> Result<usize> {
        let rank = self.shape(x).rank();
        let index = if axis < 0 { axis + rank as i64 } else { axis };
        if (0..rank as i64).contains(&index) {
            return Ok(index as usize);
        }
        Err(OpError::new(format!("axis {axis} does not exist in {}", self.shape(x))).help(if rank == 0 {
            "a scalar has no axes".into()
        } else {
            format!("axes are {} to {}", -(rank as i64), rank - 1)
        }))
    }

    /// Several dimensions by number, each at most once.
    pub fn axes(&self, x: NodeId, axes: &[i64]) -> Result<Vec<usize>> {
        let found = axes.iter().map(|axis| self.axis(x, *axis)).collect::<Result<Vec<_>>>()?;
        match found.iter().enumerate().find(|(i, axis)| found[..*i].contains(axis)) {
            Some((i, _)) => Err(OpError::new(format!("axis {} of {} is named twice", axes[i], self.shape(x)))),
            None => Ok(found),
        }
    }
}

/// (start, end, step) of one item of an index, and whether its dimension goes away.
fn subscript_range(shape: &Shape, axis: usize, item: Subscript) -> Result<((u64, u64, u64), bool)> {
    let dim = &shape.0[axis];
    let size = i64::try_from(dim.size).unwrap_or(i64::MAX);
    let from_start = |i: i64| if i < 0 { i.saturating_add(size) } else { i };
    let (start, stop, step) = match item {
        Subscript::At(i) => {
            let at = from_start(i);
            if !(0..size).contains(&at) {
                return Err(OpError::new(format!("index {i} is outside of dimension {axis} ({dim}) of {shape}")));
            }
            return Ok(((at as u64, at as u64 + 1, 1), true));
        }
        Subscript::Range { start, stop, step } => (start, stop, step.unwrap_or(1)),
        Subscript::Rest => (None, None, 1),
    };
    let first = start.map_or(0, from_start).clamp(0, size);
    let last = stop.map_or(size, from_start).clamp(0, size);
    if step < 1 {
        return Err(OpError::new(format!("the step of a slice is at least 1, not {step}")));
    }
    if first >= last {
        let bound = |bound: Option<i64>| bound.map_or(String::new(), |bound| bound.to_string());
        let written = format!("{}:{}", bound(start), bound(stop));
        return Err(OpError::new(format!("the slice `{written}` of dimension {axis} ({dim}) of {shape} is empty")).help(
            "a slice runs from its first position up to, but without, its last; both count from 0, negative ones from the end",
        ));
    }
    Ok(((first as u64, last as u64, step as u64), false))
}

/// The value of 16 bits that a cast has made f32 of.
pub(crate) fn widened_from(graph: &Graph, x: NodeId) -> Option<NodeId> {
    let node = graph.node(x);
    let narrow = |id: &NodeId| graph.ty(*id).dtype.is_float() && graph.ty(*id).dtype.bytes() == 2;
    match node.op {
        Op::Pointwise(ScalarOp::Cast(DType::F32)) => node.inputs.first().copied().filter(narrow),
        _ => None,
    }
}

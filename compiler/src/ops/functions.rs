//! The functions of the expression language, beside its operators. `alipc ops` prints this table.
//!
//! Reductions of one tensor along axes are `sum`, `mean`, `prod`, `reduce_max`, `reduce_min`; `min` and `max` compare two
//! tensors. Everything composite (softmax, logsumexp, layer_norm, ...) is a module of `stdlib/`.

pub use super::args::{ArgValue, Args, Kind, Param};
use super::{Builder, OpError, ReduceKind};
use crate::graph::{DType, NodeId, TensorType};

type Build = fn(&mut Builder<'_>, &Args) -> Result<NodeId, OpError>;

/// A function of the language.
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Parameters, in the order of positional arguments.
    pub params: &'static [Param],
    /// What it computes.
    pub doc: &'static str,
    /// A call as one would write it.
    pub example: &'static str,
    /// Adds its nodes.
    pub build: Build,
}

impl Function {
    /// `sum(x, axis: none, keep: false)`.
    pub fn signature(&self) -> String {
        let params = self.params.iter().map(|param| match (&param.default, param.kind) {
            (Some(default), _) => format!("{}: {default}", param.name),
            (None, Kind::Tensors | Kind::Sizes) => format!("{}...", param.name),
            (None, _) => param.name.to_owned(),
        });
        format!("{}({})", self.name, params.collect::<Vec<_>>().join(", "))
    }

    /// Binds the arguments and adds the nodes.
    ///
    /// # Errors
    /// Arguments that do not fit (see [`Function::bind`]) or that the op refuses.
    pub fn call(
        &self,
        b: &mut Builder<'_>,
        positional: Vec<ArgValue>,
        named: Vec<(String, ArgValue)>,
    ) -> Result<NodeId, OpError> {
        let args = self.bind(b, positional, named)?;
        (self.build)(b, &args)
    }
}

/// All functions, by family.
pub fn functions() -> &'static [Function] {
    FUNCTIONS
}

/// The function with this name.
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

const fn required(name: &'static str, kind: Kind) -> Param {
    Param { name, kind, default: None }
}

const fn optional(name: &'static str, kind: Kind, default: ArgValue) -> Param {
    Param { name, kind, default: Some(default) }
}

const X: Param = required("x", Kind::Tensor);
const SHAPE: Param = required("shape", Kind::Ints);
const UNARY: &[Param] = &[X];
const BINARY: &[Param] = &[required("a", Kind::Tensor), required("b", Kind::Tensor)];
const REDUCTION: &[Param] =
    &[X, optional("axis", Kind::Ints, ArgValue::None), optional("keep", Kind::Bool, ArgValue::Bool(false))];

const fn unary(name: &'static str, doc: &'static str, example: &'static str, build: Build) -> Function {
    Function { name, params: UNARY, doc, example, build }
}

const fn binary(name: &'static str, doc: &'static str, example: &'static str, build: Build) -> Function {
    Function { name, params: BINARY, doc, example, build }
}

const fn reduction(name: &'static str, doc: &'static str, example: &'static str, build: Build) -> Function {
    Function { name, params: REDUCTION, doc, example, build }
}

fn reduce(b: &mut Builder<'_>, args: &Args, kind: ReduceKind) -> Result<NodeId, OpError> {
    let x = args.tensor(0)?;
    let axes = reduced_axes(b, args)?;
    b.reduce(kind, x, &axes, args.bool(2)?)
}

fn reduced_axes(b: &Builder<'_>, args: &Args) -> Result<Vec<usize>, OpError> {
    let x = args.tensor(0)?;
    match args.ints(1)? {
        Some(axes) => b.axes(x, axes),
        None => Ok((0..b.graph.shape(x).rank()).collect()),
    }
}

fn dtype(name: &str) -> Result<DType, OpError> {
    let all = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool];
    all.into_iter().find(|dtype| dtype.to_string() == name).ok_or_else(|| {
        OpError::new(format!("there is no dtype '{name}'")).help("dtypes are 'f32', 'bf16', 'f16', 'i32' and 'bool'")
    })
}

fn filled(b: &mut Builder<'_>, args: &Args, value: f64) -> Result<NodeId, OpError> {
    let shape = args.shape(0)?;
    b.full(value, &TensorType::new(DType::F32, shape))
}

/// Dimension `from` moved to position `to`, the others in order.
fn moved(rank: usize, from: usize, to: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).filter(|axis| *axis != from).collect();
    perm.insert(to, from);
    perm
}

fn gather(b: &mut Builder<'_>, args: &Args) -> Result<NodeId, OpError> {
    let (x, index, batch) = (args.tensor(0)?, args.tensor(1)?, args.count(3)? as usize);
    let axis = b.axis(x, args.int(2)?)?;
    let (rank, index_rank) = (b.graph.shape(x).rank(), b.graph.shape(index).rank());
    if batch > axis || batch > index_rank {
        let message = format!(
            "`gather` along axis {axis} shares {batch} leading dimensions, but there are only {}",
            axis.min(index_rank)
        );
        return Err(
            OpError::new(message).help("batch dimensions stand before the gathered axis, in x and in the index")
        );
    }
    let front = b.transpose(x, &moved(rank, axis, batch))?;
    let rows = b.gather(front, index, batch)?;
    // Now [batch, index, before the axis, after it]; the index belongs where the axis was.
    let (picked, before) = (index_rank - batch, axis - batch);
    let total = rank - 1 + picked;
    let perm: Vec<usize> = (0..batch)
        .chain(batch + picked..batch + picked + before)
        .chain(batch..batch + picked)
        .chain(batch + picked + before..total)
        .collect();
    b.transpose(rows, &perm)
}

fn stack(b: &mut Builder<'_>, args: &Args) -> Result<NodeId, OpError> {
    let Some(first) = args.tensors().first() else { return Err(OpError::new("`stack` takes tensors")) };
    let rank = b.graph.shape(*first).rank() as i64;
    let axis = args.int(1)?;
    let at = if axis < 0 { axis + rank + 1 } else { axis };
    if !(0..=rank).contains(&at) {
        return Err(OpError::new(format!("axis {axis} does not exist in a stack of {}", b.graph.shape(*first))));
    }
    let mut parts = Vec::new();
    for part in args.tensors() {
        let mut shape = b.graph.shape(*part).clone();
        shape.0.insert((at as usize).min(shape.rank()), 1.into());
        parts.push(b.reshape(*part, shape)?);
    }
    b.concat(&parts, at as usize)
}

fn pad(b: &mut Builder<'_>, args: &Args) -> Result<NodeId, OpError> {
    let x = args.tensor(0)?;
    let axis = b.axis(x, args.int(1)?)?;
    let (mut low, mut high) = (vec![0; b.graph.shape(x).rank()], vec![0; b.graph.shape(x).rank()]);
    (low[axis], high[axis]) = (args.count(2)?, args.count(3)?);
    b.pad(x, &low, &high)
}

static FUNCTIONS: &[Function] = &[
    unary("abs", "Magnitude; the gradient at 0 is 0.", "abs(x)", |b, a| b.abs(a.tensor(0)?)),
    unary("exp", "e^x.", "exp(logit_scale)", |b, a| b.exp(a.tensor(0)?)),
    unary("ln", "Natural logarithm.", "ln(x)", |b, a| b.ln(a.tensor(0)?)),
    unary("sqrt", "Square root; the gradient at 0 is infinite.", "sqrt(sum(x * x))", |b, a| b.sqrt(a.tensor(0)?)),
    unary("sin", "Sine of x in radians.", "sin(0.5 * x)", |b, a| b.sin(a.tensor(0)?)),
    unary("cos", "Cosine of x in radians.", "cos(x)", |b, a| b.cos(a.tensor(0)?)),
    unary("tanh", "Hyperbolic tangent.", "tanh(x)", |b, a| b.tanh(a.tensor(0)?)),
    unary("erf", "Error function.", "0.5 * x * (1 + erf(x / sqrt(2)))", |b, a| b.erf(a.tensor(0)?)),
    unary("floor", "Largest integer not above x, as a float; no gradient.", "floor(x)", |b, a| b.floor(a.tensor(0)?)),
    unary("sign", "1, 0 or -1, as x is; NaN of NaN; no gradient.", "sign(m)", |b, a| b.sign(a.tensor(0)?)),
    unary("is_finite", "Whether x is neither infinite nor NaN, a bool.", "is_finite(x)", |b, a| {
        b.is_finite(a.tensor(0)?)
    }),
    unary("stop_gradient", "x, through which no gradient flows.", "stop_gradient(sim)", |b, a| {
        b.stop_gradient(a.tensor(0)?)
    }),
    binary(
        "min",
        "The smaller of a and b, point by point; at ties each takes half of the gradient.",
        "min(gate, 1)",
        |b, a| b.min(a.tensor(0)?, a.tensor(1)?),
    ),
    binary(
        "max",
        "The larger of a and b, point by point; at ties each takes half of the gradient.",
        "max(norm, 1e-12)",
        |b, a| b.max(a.tensor(0)?, a.tensor(1)?),
    ),
    binary("pow", "a to the power b, as `a ** b`.", "pow(beta, t)", |b, a| b.pow(a.tensor(0)?, a.tensor(1)?)),
    binary(
        "matmul",
        "Product of matrices in the last two dimensions, as `a @ b`; leading ones broadcast.",
        "matmul(x, w)",
        |b, a| b.matmul(a.tensor(0)?, a.tensor(1)?),
    ),
    Function {
        name: "select",
        params: &[required("condition", Kind::Tensor), required("a", Kind::Tensor), required("b", Kind::Tensor)],
        doc: "a where the condition (bool) holds, b elsewhere.",
        example: "select(gate < 1, gate, 1)",
        build: |b, a| b.select(a.tensor(0)?, a.tensor(1)?, a.tensor(2)?),
    },
    Function {
        name: "cast",
        params: &[X, required("dtype", Kind::Str)],
        doc: "Conversion to 'f32', 'bf16', 'f16', 'i32' or 'bool'; to integers it truncates toward zero and ends where i32 does, with 0 for NaN; to bool it is `x != 0`.",
        example: "cast(step, 'f32')",
        build: |b, a| b.cast(a.tensor(0)?, dtype(a.str(1)?)?),
    },
    reduction(
        "sum",
        "Sum over an axis, several, or all; `keep` leaves them with size 1.",
        "sum(x * x, axis: -1, keep: true)",
        |b, a| reduce(b, a, ReduceKind::Sum),
    ),
    reduction("mean", "Arithmetic mean over an axis, several, or all.", "mean(x, axis: [2, 3])", |b, a| {
        let axes = reduced_axes(b, a)?;
        b.mean(a.tensor(0)?, &axes, a.bool(2)?)
    }),
    reduction("prod", "Product over an axis, several, or all.", "prod(x, axis: 0)", |b, a| {
        reduce(b, a, ReduceKind::Prod)
    }),
    reduction("reduce_max", "Largest element; equal ones share the gradient.", "reduce_max(x, axis: -1)", |b, a| {
        reduce(b, a, ReduceKind::Max)
    }),
    reduction("reduce_min", "Smallest element; equal ones share the gradient.", "reduce_min(x, axis: -1)", |b, a| {
        reduce(b, a, ReduceKind::Min)
    }),
    Function {
        name: "argmax",
        params: &[X, optional("axis", Kind::Int, ArgValue::Int(-1))],
        doc: "Index (i32) of the first largest element along an axis.",
        example: "argmax(tokens, axis: -1)",
        build: |b, a| b.argmax(a.tensor(0)?, b.axis(a.tensor(0)?, a.int(1)?)?),
    },
    Function {
        name: "einsum",
        params: &[required("pattern", Kind::Str), required("x", Kind::Tensors)],
        doc: "Sums of products by axis names; `...` stands for the same further axes in every operand.",
        example: "einsum('b l d, e d -> b l e', x, w)",
        build: |b, a| b.einsum(a.str(0)?, a.tensors()),
    },
    Function {
        name: "rearrange",
        params: &[X, required("pattern", Kind::Str), required("sizes", Kind::Sizes)],
        doc: "Splits, orders and merges axes by name; `1` is an axis of size 1, `...` stands for further axes.",
        example: "rearrange(x, 'b l (h d) -> b h l d', h: heads)",
        build: |b, a| b.rearrange(a.tensor(0)?, a.str(1)?, &a.sizes()),
    },
    Function {
        name: "reshape",
        params: &[X, SHAPE],
        doc: "The same elements in row-major order under another shape.",
        example: "reshape(x, [B, 49, 768])",
        build: |b, a| b.reshape(a.tensor(0)?, a.shape(1)?),
    },
    Function {
        name: "transpose",
        params: &[X, optional("perm", Kind::Ints, ArgValue::None)],
        doc: "Dimensions in another order, by default reversed: dimension i of the result is dimension perm[i].",
        example: "transpose(x, [0, 2, 1])",
        build: |b, a| {
            let x = a.tensor(0)?;
            let perm = match a.ints(1)? {
                Some(perm) => b.axes(x, perm)?,
                None => (0..b.graph.shape(x).rank()).rev().collect(),
            };
            b.transpose(x, &perm)
        },
    },
    Function {
        name: "broadcast_to",
        params: &[X, SHAPE],
        doc: "Repeats along new leading dimensions and those of size 1.",
        example: "broadcast_to(class_embedding, [B, 1, width])",
        build: |b, a| b.broadcast_to(a.tensor(0)?, &a.shape(1)?),
    },
    Function {
        name: "concat",
        params: &[required("x", Kind::Tensors), optional("axis", Kind::Int, ArgValue::Int(0))],
        doc: "Joins tensors along an axis.",
        example: "concat(class_token, patches, axis: 1)",
        build: |b, a| {
            let Some(first) = a.tensors().first() else { return Err(OpError::new("`concat` takes tensors")) };
            b.concat(a.tensors(), b.axis(*first, a.int(1)?)?)
        },
    },
    Function {
        name: "stack",
        params: &[required("x", Kind::Tensors), optional("axis", Kind::Int, ArgValue::Int(0))],
        doc: "Joins tensors of one shape along a new axis.",
        example: "stack(query, key, value)",
        build: stack,
    },
    Function {
        name: "pad",
        params: &[
            X,
            required("axis", Kind::Int),
            optional("low", Kind::Int, ArgValue::Int(0)),
            optional("high", Kind::Int, ArgValue::Int(0)),
        ],
        doc: "Adds zeros before and after along an axis.",
        example: "pad(x, axis: 1, low: 1)",
        build: pad,
    },
    Function {
        name: "take",
        params: &[required("table", Kind::Tensor), required("ids", Kind::Tensor)],
        doc: "Rows of a table by number: [rows, d] and ids of any shape give [ids.., d]. Numbers outside are clamped.",
        example: "take(token_embedding, tokens)",
        build: |b, a| b.gather(a.tensor(0)?, a.tensor(1)?, 0),
    },
    Function {
        name: "gather",
        params: &[
            X,
            required("index", Kind::Tensor),
            required("axis", Kind::Int),
            optional("batch", Kind::Int, ArgValue::Int(0)),
        ],
        doc: "Positions of x along an axis by number. The first `batch` dimensions are shared by x and the index; the index's other dimensions stand in the axis' place. Numbers outside are clamped.",
        example: "gather(h, argmax(tokens, axis: -1), axis: 1, batch: 1)",
        build: gather,
    },
    Function {
        name: "conv2d",
        params: &[
            X,
            required("weight", Kind::Tensor),
            optional("stride", Kind::Int, ArgValue::Int(1)),
            optional("padding", Kind::Int, ArgValue::Int(0)),
        ],
        doc: "Cross-correlation of images [n, c, h, w] with weights [o, c, kh, kw], zeros around.",
        example: "conv2d(image, weight, stride: 32)",
        build: |b, a| b.conv2d(a.tensor(0)?, a.tensor(1)?, a.count(2)?, a.count(3)?),
    },
    Function {
        name: "iota",
        params: &[SHAPE, optional("axis", Kind::Int, ArgValue::Int(0))],
        doc: "Coordinate (i32) along an axis.",
        example: "iota([L, L], axis: 0) >= iota([L, L], axis: 1)",
        build: |b, a| {
            let (shape, axis) = (a.shape(0)?, a.int(1)?);
            let index = if axis < 0 { axis + shape.rank() as i64 } else { axis };
            match usize::try_from(index) {
                Ok(index) => b.iota(shape, index),
                Err(_) => Err(OpError::new(format!("axis {axis} does not exist in {shape}"))),
            }
        },
    },
    Function {
        name: "zeros",
        params: &[SHAPE],
        doc: "0 everywhere.",
        example: "zeros([B, D])",
        build: |b, a| filled(b, a, 0.0),
    },
    Function {
        name: "ones",
        params: &[SHAPE],
        doc: "1 everywhere.",
        example: "ones([width])",
        build: |b, a| filled(b, a, 1.0),
    },
    Function {
        name: "full",
        params: &[SHAPE, required("value", Kind::Float)],
        doc: "One value everywhere.",
        example: "full([width], 0.02)",
        build: |b, a| filled(b, a, a.float(1)?),
    },
    Function {
        name: "eye",
        params: &[required("n", Kind::Int)],
        doc: "1 on the diagonal of an n x n matrix, 0 elsewhere.",
        example: "eye(B)",
        build: |b, a| {
            let shape = crate::graph::Shape::from([a.count(0)?, a.count(0)?]);
            let (row, column) = (b.iota(shape.clone(), 0)?, b.iota(shape, 1)?);
            let equal = b.eq(row, column)?;
            b.cast(equal, DType::F32)
        },
    },
];

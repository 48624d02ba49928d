//! The primitive operations.
//!
//! One file per family; a family's file holds everything there is to know of its ops: name, shape and dtype rule,
//! reference meaning in f64, gradient, rounding bound, how dimensions pass through it, and test cases. This file only lists
//! the families and dispatches to them: a new op is a variant of [`Op`] (`graph/op.rs`), a line in `Op::with`, and an
//! implementation of `Primitive` in its family's file.
//!
//! Laws (`tests/op_laws.rs`, driven by each op's own cases): what `infer` says is what `eval` makes; `vjp` equals finite
//! differences in mid-graph; `error` bounds what rounding to f32 does; picking positions and packing rows commute with every
//! op where it says so; every op has a case.
//!
//! Every tensor has at least one element and at most [`MAX_ELEMENTS`], so that neither empty reductions nor overflowing
//! offsets exist below this module.
//!
//! Composites (softmax, layer_norm, losses, optimisers) are modules in `stdlib/`. What of them an expert would give a kernel
//! or a gradient of its own is a semantic op here (`attention`, `norm`), which no spec names: `transform::lift` finds it.

mod args;
pub mod attention;
pub mod axes;
mod builder;
mod cases;
mod conv;
mod dot;
mod einsum;
pub mod functions;
mod gather;
pub(crate) mod norm;
mod pointwise;
mod reduce;
pub(crate) mod rounding;
mod source;
mod strided;
mod views;

use smallvec::SmallVec;

pub use crate::graph::{Conv, ConvKind, Dot, Op, Real, ReduceKind, ScalarOp};

use self::axes::{Along, Layout, No, PackedCall, Packs};
pub(crate) use self::builder::widened_from;
pub use self::builder::{Builder, Subscript};
pub use self::cases::{Case, cases};
pub use self::pointwise::{Pointwise, Rule, fold, pointwise, pointwise_rows};
pub(crate) use self::pointwise::{constant, jumps, rounding, rounds_to};
use self::rounding::{Found, Rounding};
pub(crate) use self::source::fits;
pub(crate) use self::views::broadcast_shapes;
use crate::diag::Diagnostic;
use crate::graph::{DType, Graph, Node, NodeId, Origin, OriginId, Shape, TensorType};

/// Why an op does not accept its inputs. The caller adds place and instance path.
#[derive(Clone, Debug, PartialEq)]
pub struct OpError {
    /// What is wrong, with both shapes where shapes disagree.
    pub message: String,
    /// A way out.
    pub help: Option<String>,
    /// The number that is at fault, where it is one of the operands.
    pub number: Option<f64>,
}

impl OpError {
    /// An error without advice.
    pub fn new(message: impl Into<String>) -> OpError {
        OpError { message: message.into(), help: None, number: None }
    }

    /// Adds advice.
    pub fn help(mut self, help: impl Into<String>) -> OpError {
        self.help = Some(help.into());
        self
    }

    /// The diagnostic for an error at a place: message, span, the instance path as a note, advice.
    pub fn diagnose(self, origin: &Origin) -> Diagnostic {
        let mut diagnostic = Diagnostic::error(self.message);
        if let Some(span) = origin.span {
            diagnostic = diagnostic.label(span, "");
        }
        if !origin.path.is_empty() {
            diagnostic = diagnostic.note(format!("in `{}` ({})", origin.path, origin.module));
        }
        match self.help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        }
    }
}

impl std::fmt::Display for OpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpError {}

/// Most elements of one tensor: 4 TiB of f32, beyond any device, and far from overflowing an i64 offset in bytes.
pub const MAX_ELEMENTS: u64 = 1 << 40;

/// A tensor's type and its elements in row-major order; I32 and Bool are exact in f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor<'a> {
    pub(crate) ty: &'a TensorType,
    pub(crate) data: &'a [f64],
}

/// An application of an op in a graph, seen by its gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) inputs: &'a [NodeId],
    pub(crate) output: NodeId,
}

/// All there is to know of a primitive.
pub(crate) trait Primitive {
    /// Name in errors and pictures.
    fn name(&self) -> &'static str;

    /// Number of inputs; `None` when any positive number will do.
    fn arity(&self) -> Option<usize>;

    /// Type of the result. The number of inputs has been checked; the size of the result will be.
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError>;

    /// Reference meaning in exact numbers. Inputs have the types that `infer` accepted, `out` is the type it gave.
    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64>;

    /// Gradient with respect to `inputs[input]` (a float), given the gradient `g` of the output; `None` when it is zero
    /// everywhere.
    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        let _ = (b, call, g, input);
        Ok(None)
    }

    /// A bound on the error of the result, given those of the inputs; asked of integers and truth values where an input is not
    /// exact.
    fn error(&self, rounding: &mut Rounding<'_, '_>) -> Found;

    /// How it works along dimension `axis` of its result.
    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No>;

    /// The op with another size of its result along a dimension along which it is row-wise; `None` when no attribute depends
    /// on sizes.
    fn resized(&self, axis: usize, size: u64) -> Option<Op> {
        let _ = (axis, size);
        None
    }

    /// What it is of packed rows, where `layout` says what it has them in place of.
    fn packs(&self, inputs: &[&TensorType], layout: Layout) -> Packs;

    /// The op of packed rows; `None` when no attribute names dimensions or sizes.
    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        let _ = call;
        None
    }

    /// Floating point operations.
    fn flops(&self, inputs: &[&TensorType], out: &TensorType) -> u64 {
        let _ = (inputs, out);
        0
    }
}

impl Graph {
    /// Adds a node; its type is what the op infers.
    ///
    /// # Errors
    /// The op does not accept inputs of these types.
    pub fn add(&mut self, op: Op, inputs: &[NodeId], origin: OriginId) -> Result<NodeId, OpError> {
        let ty = {
            let types: SmallVec<[&TensorType; 3]> = inputs.iter().map(|id| self.ty(*id)).collect();
            op.infer(&types)?
        };
        Ok(self.append(Node { op, inputs: inputs.into(), ty, origin }))
    }

    /// Adds a node of another graph, on these inputs. Its type is inferred again where theirs are others than they were.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub(crate) fn copy(&mut self, from: &Graph, id: NodeId, inputs: SmallVec<[NodeId; 3]>) -> Result<NodeId, OpError> {
        let node = from.node(id);
        let same = |(new, old): (&NodeId, &NodeId)| self.ty(*new) == from.ty(*old);
        if inputs.len() == node.inputs.len() && inputs.iter().zip(&node.inputs).all(same) {
            return Ok(self.push(node, inputs));
        }
        self.add(node.op.clone(), &inputs, node.origin)
    }
}

impl Op {
    /// The definition of this op.
    fn with<R>(&self, f: impl FnOnce(&dyn Primitive) -> R) -> R {
        match self {
            Op::Input { ty, .. } => f(&source::Given { name: "input", ty }),
            Op::State { ty, .. } => f(&source::Given { name: "state", ty }),
            Op::Const { value, dtype } => f(&source::Const { value: *value, dtype: *dtype }),
            Op::Iota { shape, axis } => f(&source::Iota { shape, axis: *axis }),
            Op::Random { shape, stream, lane } => f(&source::Random { shape, stream: *stream, lane: *lane }),
            Op::StopGradient => f(&source::StopGradient),
            Op::Pointwise(op) => f(op),
            Op::Reduce { kind, axes } => f(&reduce::Reduce { kind: *kind, axes }),
            Op::Dot(dot) => f(dot),
            Op::Conv2d(conv) => f(conv),
            Op::Reshape { shape } => f(&views::Reshape { shape }),
            Op::Transpose { perm } => f(&views::Transpose { perm }),
            Op::Broadcast { shape, dims } => f(&views::Broadcast { shape, dims }),
            Op::Slice { start, end, step } => f(&views::Slice { start, end, step }),
            Op::Pad { low, high, interior } => f(&views::Pad { low, high, interior }),
            Op::Concat { axis } => f(&views::Concat { axis: *axis }),
            Op::Gather { batch } => f(&gather::Gather { batch: *batch }),
            Op::Softmax { axes } => f(&norm::Softmax { axes }),
            Op::LogSumExp { axes } => f(&norm::LogSumExp { axes }),
            Op::LayerNorm { axes, eps } => f(&norm::LayerNorm { axes, eps: *eps }),
            Op::CrossEntropy => f(&norm::CrossEntropy),
            Op::Attention(attention) => f(attention),
            Op::ScatterAdd { batch, rows } => f(&gather::ScatterAdd { batch: *batch, rows: *rows }),
        }
    }

    /// Name of the op: `dot`, `reduce_max`, `exp`.
    pub fn name(&self) -> &'static str {
        self.with(|op| op.name())
    }

    /// Type of the result.
    ///
    /// # Errors
    /// The op does not accept inputs of these types, or the result is empty or has more than [`MAX_ELEMENTS`] elements.
    pub fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        self.with(|op| {
            let arity = op.arity();
            if arity.is_some_and(|arity| arity != inputs.len()) || (arity.is_none() && inputs.is_empty()) {
                let takes = arity.map_or("at least 1 input".into(), |n| format!("{n} input{}", plural(n)));
                return Err(OpError::new(format!("`{}` takes {takes}, not {}", op.name(), inputs.len())));
            }
            let in_bytes = |ty: &TensorType| ty.dtype == DType::U8;
            let reads = self.is_view() || matches!(self, Op::Pointwise(ScalarOp::Cast(_)));
            if !reads && inputs.iter().any(|ty| in_bytes(ty)) {
                return Err(
                    OpError::new(format!("`{}` takes no u8", op.name())).help("cast it first: `cast(x, 'f32')`")
                );
            }
            let ty = op.infer(inputs)?;
            if in_bytes(&ty) && !(self.is_view() || matches!(self, Op::Input { .. })) {
                return Err(OpError::new(format!("`{}` makes no u8, which inputs of a program alone are", op.name())));
            }
            check_size(&ty.shape)?;
            Ok(ty)
        })
    }

    /// Floating point operations of one application.
    pub fn flops(&self, inputs: &[&TensorType], out: &TensorType) -> u64 {
        self.with(|op| op.flops(inputs, out))
    }

    /// Reference meaning, see [`Primitive::eval`]; a value of 16 bits is rounded where it is made.
    pub(crate) fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let mut values = self.with(|op| op.eval(inputs, out));
        if out.dtype.is_narrow() {
            values.iter_mut().for_each(|x| *x = out.dtype.rounded(*x));
        }
        values
    }

    /// Bound on the error of the result, see [`Primitive::error`].
    pub(crate) fn error(&self, rounding: &mut Rounding<'_, '_>) -> Found {
        self.with(|op| op.error(rounding))
    }

    /// Gradient with respect to one input, see [`Primitive::vjp`].
    pub(crate) fn vjp(
        &self,
        b: &mut Builder<'_>,
        call: Call<'_>,
        g: NodeId,
        input: usize,
    ) -> Result<Option<NodeId>, OpError> {
        self.with(|op| op.vjp(b, call, g, input))
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn check_size(shape: &Shape) -> Result<(), OpError> {
    if let Some(axis) = shape.0.iter().position(|dim| dim.size == 0) {
        return Err(OpError::new(format!("{shape} is empty in dimension {axis}")));
    }
    match shape.checked_elements() {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(()),
        _ => {
            Err(OpError::new(format!("{shape} has more than 2^40 elements"))
                .help("a dimension overflows; check the sizes"))
        }
    }
}

/// `[B=8, T=16] and [B=8, 17] disagree in dimension 1 (T=16 and 17)`.
pub(crate) fn disagree(a: &Shape, b: &Shape, axis_a: usize, axis_b: usize) -> OpError {
    let place =
        if axis_a == axis_b { format!("dimension {axis_a}") } else { format!("dimensions {axis_a} and {axis_b}") };
    OpError::new(format!("{a} and {b} disagree in {place} ({} and {})", a.0[axis_a], b.0[axis_b]))
}

/// Checks that two shapes are equal, and takes each dimension's name from the first that has one.
pub(crate) fn same_shape(a: &Shape, b: &Shape) -> Result<Shape, OpError> {
    if a.rank() != b.rank() {
        return Err(OpError::new(format!("{a} and {b} have {} and {} dimensions", a.rank(), b.rank())));
    }
    if let Some(axis) = (0..a.rank()).find(|axis| a.size(*axis) != b.size(*axis)) {
        return Err(disagree(a, b, axis, axis));
    }
    let named = |(a, b): (&crate::graph::Dim, &crate::graph::Dim)| if a.name.is_some() { *a } else { *b };
    Ok(a.0.iter().zip(&b.0).map(named).collect())
}

//! Operations as data; what they mean is in [`crate::ops`].

use std::sync::Arc;

pub use alip_plan::Real;
pub use alip_plan::kernel::{AttentionResult, ConvKind, ReduceKind, Rows, ScalarOp};
use serde::{Deserialize, Serialize};

use super::{DType, Shape, TensorType};

/// A primitive operation with its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// An input of the program.
    Input {
        /// Its name.
        name: Arc<str>,
        /// Its type.
        ty: TensorType,
    },
    /// The value of a state tensor at the start of the step.
    State {
        /// Its path.
        path: Arc<str>,
        /// Its type.
        ty: TensorType,
    },
    /// A scalar constant, shape [].
    Const {
        /// The value.
        value: Real,
        /// F32, I32 or Bool.
        dtype: DType,
    },
    /// A scalar operation at every point; inputs have equal shapes.
    Pointwise(ScalarOp),
    /// Reduces `axes` (sorted, distinct) away.
    Reduce {
        /// How; ArgMax takes one axis and yields I32.
        kind: ReduceKind,
        /// The reduced dimensions.
        axes: Vec<usize>,
    },
    /// Sum of products: `[batch.., lhs free.., rhs free..]`, free dimensions in their own order. Operands are of one float
    /// type, the result is F32.
    Dot(Dot),
    /// Cross-correlation or one of its gradients; types as for [`Op::Dot`].
    Conv2d(Conv),
    /// The same elements in row-major order under another shape.
    Reshape {
        /// The new shape.
        shape: Shape,
    },
    /// Output dimension `i` is input dimension `perm[i]`.
    Transpose {
        /// A permutation of the dimensions.
        perm: Vec<usize>,
    },
    /// Repeats: input dimension `i` becomes output dimension `dims[i]` (strictly increasing), of equal size or from size 1.
    Broadcast {
        /// The new shape.
        shape: Shape,
        /// Where the input's dimensions go.
        dims: Vec<usize>,
    },
    /// Elements `start, start + step, ...` below `end` along each dimension.
    Slice {
        /// First index per dimension.
        start: Vec<u64>,
        /// End (exclusive) per dimension.
        end: Vec<u64>,
        /// Step per dimension, at least 1.
        step: Vec<u64>,
    },
    /// Surrounds with zeros (false); with `interior`, zeros also stand between neighbours (the adjoint of a stepped slice).
    Pad {
        /// Zeros before, per dimension.
        low: Vec<u64>,
        /// Zeros after, per dimension.
        high: Vec<u64>,
        /// Zeros between neighbours, per dimension.
        interior: Vec<u64>,
    },
    /// Joins along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// `out[b.., i.., r..] = x[b.., index[b.., i..], r..]`; inputs x `[b.., n, r..]` and index I32 `[b.., i..]`.
    Gather {
        /// Number of leading batch dimensions, which x and index share.
        batch: usize,
    },
    /// The adjoint of [`Op::Gather`]: `out[b.., index[b.., i..], r..] += updates[b.., i.., r..]` on zeros; inputs index
    /// and updates.
    ScatterAdd {
        /// Number of leading batch dimensions.
        batch: usize,
        /// Size of the scattered dimension of the result.
        rows: u64,
    },
    /// I32 coordinate along an axis.
    Iota {
        /// Shape of the result.
        shape: Shape,
        /// The axis counted.
        axis: usize,
    },
    /// Uniform F32 in [0, 1) from Philox4x32-10; inputs seed and step (I32 []); element `i` (row-major) is output word
    /// `lane` at key (seed, step), counter (i, low half of stream, high half, 0); or of the counter that a third input has
    /// for it (I32 of the result's shape), where elements of a larger draw are picked.
    Random {
        /// Shape of the result.
        shape: Shape,
        /// Distinguishes the random operations of a model.
        stream: u64,
        /// Which of the four output words.
        lane: u8,
    },
    /// `exp(x) / sum(exp(x))` along `axes` (sorted, distinct).
    Softmax {
        /// The dimensions of one distribution.
        axes: Vec<usize>,
    },
    /// `ln(sum(exp(x)))` along `axes` (sorted, distinct), which it reduces away.
    LogSumExp {
        /// The reduced dimensions.
        axes: Vec<usize>,
    },
    /// `(x - mean) / sqrt(variance + eps)` along `axes` (sorted, distinct), with the biased variance.
    LayerNorm {
        /// The dimensions that are normalised together.
        axes: Vec<usize>,
        /// Added to the variance.
        eps: Real,
    },
    /// `logsumexp(x) - x[target]` over the last dimension; inputs x `[b.., classes]` and target I32 `[b..]`. Targets
    /// outside of the classes are clamped to them.
    CrossEntropy,
    /// Attention, its logsumexp, or one of its gradients.
    Attention(Attention),
    /// The identity, through which no gradient flows.
    StopGradient,
}

impl Op {
    /// Whether it is a view of its only operand: nothing is computed, and every element is one of the operand's.
    pub fn is_view(&self) -> bool {
        use Op::*;
        matches!(self, Reshape { .. } | Transpose { .. } | Broadcast { .. } | Slice { .. } | StopGradient)
    }
}

/// Dimensions of a [`Op::Dot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Pairs (lhs, rhs) of batch dimensions, in the order they have in the result.
    pub batch: Vec<(usize, usize)>,
    /// Pairs (lhs, rhs) of contracted dimensions.
    pub contract: Vec<(usize, usize)>,
}

/// Attributes of [`Op::Conv2d`]; inputs as in [`ConvKind`], NCHW images, OIHW weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conv {
    /// Which product.
    pub kind: ConvKind,
    /// Step of the window, both ways.
    pub stride: u64,
    /// Zeros on each side, both ways.
    pub padding: u64,
    /// For `ImageGrad` the image's height and width, for `WeightGrad` the kernel's; for `Forward` unused (0, 0).
    pub size: (u64, u64),
}

/// A member of the family of attention; [`crate::ops::attention`] says what it computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attention {
    /// What is computed.
    pub result: AttentionResult,
    /// Which rows belong together.
    pub rows: Rows,
    /// Query `i` of `Lq` sees key `j` of `Lk` only if `j <= i + Lk - Lq`: the last query sees all.
    pub causal: bool,
    /// Factor of the scores.
    pub scale: Real,
}

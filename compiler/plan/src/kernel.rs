//! Kernels: one loop-nest form with a few archetypes.
//!
//! A [`Kernel`] says what is computed for every point of a domain, as a [`Loop`]; how (tiles, threads, workgroups) is the
//! business of its [`Implementation`] and of the device. The cpu device executes loops directly as register code over
//! tiles; for GPU targets the compiler emits text from the same loops. Whoever asks what a kernel does (the check of plans,
//! a profile, the reference device) asks the loop, and need not know the implementation.
//!
//! Contract of all archetypes:
//! - An operand is a dense buffer; a [`View`] says where in it the element of a domain point lies. Views never leave
//!   their buffer (the compiler guarantees it; `check` tests it). Several views may name one operand.
//! - [`Code`] is straight-line and SSA: value `i` is the result of instruction `i`, arguments refer to earlier values.
//! - A loop may store into a buffer it also loads from only through the same view (in-place pointwise update).
//! - Domain points are independent within a [`Map`], and rows are independent within a [`Reduction`].
//! - A float and a byte are F32 in registers whatever their storage type, and a cast to fewer bits rounds there; Bool is a
//!   truth value. Bytes are only loaded.

mod attention;

use serde::{Deserialize, Serialize};

pub use self::attention::{Attention, AttentionResult, Rows};
use crate::{DType, Real, TargetKind};

/// What one launch computes, and how the plan's target runs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    /// What is computed: operands by views, and code. It is all there is to know of the result.
    pub description: Loop,
    /// How it is run: what was made from the description, and computes what that says.
    pub implementation: Implementation,
}

impl Kernel {
    /// A kernel for a device that executes descriptions.
    pub fn as_described(description: Loop) -> Kernel {
        Kernel { description, implementation: Implementation::AsDescribed }
    }
}

/// How a target runs a kernel. Every variant belongs to one emitter, which makes it from a [`Loop`], and to one device, which
/// runs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Implementation {
    /// The cpu device executes the description itself.
    AsDescribed,
    /// A WGSL compute shader with entry point `main`; operand `i` is `@group(0) @binding(i)`, all `read_write` storage.
    Wgsl {
        /// The shader text.
        source: String,
        /// Workgroups to dispatch.
        workgroups: [u32; 3],
        /// Iterations of all loops together that one thread may take: some drivers end long loops.
        iterations: u64,
    },
    /// CUDA C++ for NVRTC: self-contained, and all but the entry `static`, so that several texts are one translation unit when
    /// each stands in a namespace of its own. The entry takes one pointer per operand, in order, each to a multiple of the
    /// target's alignment.
    Cuda {
        /// The text.
        source: String,
        /// Name of the kernel function, which is `extern "C"`; no other text has it.
        entry: String,
        /// Blocks to launch.
        grid: [u32; 3],
        /// Threads of a block.
        block: u32,
        /// Dynamic shared memory of a block, in bytes.
        shared_bytes: u32,
    },
    /// A call of cuBLASLt: the one that [`crate::library::Matmul::of`] makes of the description, a product. Operands begin at
    /// multiples of the target's alignment.
    CublasLt,
}

impl Implementation {
    /// Kind of the targets that run it.
    pub fn target(&self) -> TargetKind {
        match self {
            Implementation::AsDescribed => TargetKind::Cpu,
            Implementation::Wgsl { .. } => TargetKind::Wgpu,
            Implementation::Cuda { .. } | Implementation::CublasLt => TargetKind::Cuda,
        }
    }
}

/// What a kernel computes, whatever the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Loop {
    /// Pointwise over a domain.
    Map(Map),
    /// Reductions along rows, with pointwise stages around them.
    Reduction(Reduction),
    /// Matrix product with epilogue.
    Product(Product),
    /// Two-dimensional convolution or one of its gradients.
    Conv2d(Conv2d),
    /// Adds rows into a table.
    ScatterAdd(ScatterAdd),
    /// Attention or gradients of it.
    Attention(Box<Attention>),
}

impl Loop {
    /// Name of the archetype.
    pub fn kind(&self) -> &'static str {
        match self {
            Loop::Map(_) => "map",
            Loop::Reduction(_) => "reduction",
            Loop::Product(_) => "product",
            Loop::Conv2d(_) => "conv2d",
            Loop::ScatterAdd(_) => "scatter_add",
            Loop::Attention(_) => "attention",
        }
    }

    /// Its sizes, in words that tell kernels of a kind apart.
    pub fn sizes(&self) -> String {
        match self {
            Loop::Map(map) => {
                format!("{:?}, {} operands, {} instructions", map.domain, map.views.len(), map.code.instrs.len())
            }
            Loop::Reduction(reduction) => {
                let stages = reduction.stages.len();
                format!(
                    "{:?} over {:?}, {stages} stages, {:?} lanes",
                    reduction.kept, reduction.reduced, reduction.lanes
                )
            }
            Loop::Product(product) => {
                let strides = (&product.a.strides, &product.b.strides);
                format!("{:?} {}x{}x{} {strides:?}", product.batch, product.m, product.n, product.k)
            }
            Loop::Conv2d(conv) => {
                let Conv2d { kind, n, c, h, w, o, kh, kw, .. } = conv;
                format!("{kind:?} of {n}x{c}x{h}x{w} by {o}x{c}x{kh}x{kw}")
            }
            Loop::ScatterAdd(scatter) => {
                let ScatterAdd { batch, count, rows, inner, .. } = scatter;
                format!("{batch} of {count}x{inner} into {rows}x{inner}")
            }
            Loop::Attention(attention) => {
                let results: Vec<_> = attention.results.iter().map(|(result, _)| result).collect();
                format!("{results:?} of {:?}, {} keys", attention.q.strides, attention.keys)
            }
        }
    }

    /// All views, to give their operands other numbers or places. Operands are bound through views and nothing else,
    /// whatever the archetype.
    pub fn views_mut(&mut self) -> Vec<&mut View> {
        match self {
            Loop::Map(map) => map.views.iter_mut().collect(),
            Loop::Reduction(reduction) => reduction.views.iter_mut().collect(),
            Loop::Product(product) => product.views.iter_mut().chain([&mut product.a, &mut product.b]).collect(),
            Loop::Conv2d(conv) => vec![&mut conv.a, &mut conv.b, &mut conv.out],
            Loop::ScatterAdd(scatter) => vec![&mut scatter.index, &mut scatter.updates, &mut scatter.out],
            Loop::Attention(attention) => attention.views_mut().collect(),
        }
    }

    /// What runs at points and once per row, with the views that it names; none where an archetype has no code.
    pub fn codes(&self) -> (&[View], Vec<&Code>) {
        match self {
            Loop::Map(map) => (&map.views, vec![&map.code]),
            Loop::Reduction(reduction) => (&reduction.views, reduction.stages.iter().map(Stage::code).collect()),
            Loop::Product(product) => (&product.views, vec![&product.code]),
            Loop::Conv2d(conv) => (std::slice::from_ref(&conv.a), vec![&conv.prologue]),
            Loop::ScatterAdd(_) | Loop::Attention(_) => (&[], Vec::new()),
        }
    }

    /// The operands that are written, by position.
    pub fn written(&self) -> Vec<u16> {
        match self {
            Loop::Conv2d(conv) => vec![conv.out.operand],
            Loop::ScatterAdd(scatter) => vec![scatter.out.operand],
            Loop::Attention(attention) => attention.results.iter().map(|(_, view)| view.operand).collect(),
            Loop::Map(_) | Loop::Reduction(_) | Loop::Product(_) => {
                let (views, codes) = self.codes();
                let stored = |instr: &Instr| match instr.op {
                    ScalarOp::Store(view) => Some(views.get(view as usize)?.operand),
                    _ => None,
                };
                codes.into_iter().flat_map(|code| code.instrs.iter().filter_map(stored)).collect()
            }
        }
    }

    /// As [`Loop::codes`], to be changed.
    pub fn codes_mut(&mut self) -> (Option<&mut Vec<View>>, Vec<&mut Code>) {
        match self {
            Loop::Map(map) => (Some(&mut map.views), vec![&mut map.code]),
            Loop::Reduction(reduction) => {
                (Some(&mut reduction.views), reduction.stages.iter_mut().map(Stage::code_mut).collect())
            }
            Loop::Product(product) => (Some(&mut product.views), vec![&mut product.code]),
            Loop::Conv2d(_) | Loop::ScatterAdd(_) | Loop::Attention(_) => (None, Vec::new()),
        }
    }
}

impl View {
    /// All of a dense value of these sizes, row-major.
    pub fn dense(operand: u16, dtype: DType, sizes: &[u64]) -> View {
        let mut strides: Vec<i64> = Vec::with_capacity(sizes.len());
        let mut stride = 1i64;
        for &size in sizes.iter().rev() {
            strides.push(if size == 1 { 0 } else { stride });
            // What overflows is no size of a value; `check` refuses it.
            stride = stride.wrapping_mul(size as i64);
        }
        strides.reverse();
        View { operand, dtype, offset: 0, strides, gather: None }
    }

    /// Does it walk a dense value of these sizes, row-major, from its offset on?
    pub fn is_dense(&self, sizes: &[u64]) -> bool {
        let dense = View::dense(self.operand, self.dtype, sizes);
        let strides = self.strides.iter().zip(&dense.strides).zip(sizes);
        self.gather.is_none()
            && self.strides.len() == sizes.len()
            && strides.into_iter().all(|((stride, dense), size)| stride == dense || *size == 1)
    }
}

/// Where the element of a domain point lies in an operand:
/// `offset + sum(coordinate[d] * strides[d])`, plus `index * stride` when gathered; all in elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Position in the operand list of the step.
    pub operand: u16,
    /// Storage type of the operand.
    pub dtype: DType,
    /// Element offset of the domain's origin.
    pub offset: i64,
    /// One stride per domain dimension; 0 repeats the element along it.
    pub strides: Vec<i64>,
    /// Another coordinate read from an index tensor.
    pub gather: Option<Gather>,
}

/// A data-dependent coordinate of a [`View`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gather {
    /// The operand with the indices (I32); it lies at `offset + sum(coordinate[d] * strides[d])`.
    pub operand: u16,
    /// Element offset of the index.
    pub offset: i64,
    /// One stride per domain dimension of the index tensor.
    pub strides: Vec<i64>,
    /// Elements of the data operand per unit of the index.
    pub stride: i64,
    /// Indices are clamped to `0..limit`, so that bad data cannot read foreign memory.
    pub limit: i64,
}

/// A scalar operation. The dtype of its operands is in [`Instr::dtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScalarOp {
    /// A constant of the instruction's dtype (I32 and Bool values are exact in f32's range used here: `|x| < 2^24`).
    Const(Real),
    /// Coordinate of the point along this dimension of the domain, I32.
    Index(u8),
    /// The element of view `n` of the kernel.
    Load(u16),
    /// Stores the argument to view `n` of the kernel; yields its argument.
    Store(u16),
    /// The value of row slot `n` (reductions only).
    Slot(u16),
    /// The product's value at this point (product epilogues only).
    Product,
    /// Uniform in [0, 1), F32, from Philox4x32-10: arguments seed, step, element index (I32); key (seed, step),
    /// counter (index, low half of stream, high half, 0), output word `lane`.
    Uniform {
        /// Distinguishes the random operations of a program.
        stream: u64,
        /// Which of the four output words.
        lane: u8,
    },
    /// Conversion from the instruction's dtype to this one; float to integer truncates toward zero, anything to Bool
    /// is `!= 0`.
    Cast(DType),
    /// -x
    Neg,
    /// |x|
    Abs,
    /// e^x
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// Largest integer not above.
    Floor,
    /// Logical negation.
    Not,
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b; integers truncate toward zero.
    Div,
    /// a ^ b, F32; NaN for negative a unless b is whole.
    Pow,
    /// The smaller; NaN if either is NaN.
    Min,
    /// The larger; NaN if either is NaN.
    Max,
    /// a < b, Bool
    Lt,
    /// a <= b, Bool
    Le,
    /// a == b, Bool
    Eq,
    /// Logical and.
    And,
    /// Logical or.
    Or,
    /// a (Bool) ? b : c; the instruction's dtype is that of b and c.
    Select,
    /// a less the largest multiple of b that leaves the sign of b, exactly; of floats NaN where b is 0, of integers a.
    Rem,
    /// The nearest bf16, still as F32 (graphs only: a kernel casts, which rounds a register).
    RoundBf16,
    /// The nearest f16, still as F32 (graphs only).
    RoundF16,
}

impl ScalarOp {
    /// Number of arguments.
    pub fn arity(self) -> usize {
        use ScalarOp::*;
        match self {
            Const(_) | Index(_) | Load(_) | Slot(_) | Product => 0,
            Store(_) | Cast(_) | Neg | Abs | Exp | Ln | Sqrt | Sin | Cos | Tanh | Erf | Floor | Not | RoundBf16
            | RoundF16 => 1,
            Add | Sub | Mul | Div | Rem | Pow | Min | Max | Lt | Le | Eq | And | Or => 2,
            Uniform { .. } | Select => 3,
        }
    }
}

/// One instruction; its result is the value with its own index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instr {
    /// What to do.
    pub op: ScalarOp,
    /// Dtype of the arguments (of the result for `Const`, `Index`, `Load`, `Slot`, `Product`, `Uniform`): F32, I32 or Bool.
    pub dtype: DType,
    /// Indices of earlier instructions; unused ones are 0.
    pub args: [u16; 3],
}

/// Straight-line SSA code for one domain point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Code {
    /// The instructions, in order.
    pub instrs: Vec<Instr>,
}

/// Pointwise: for every point of `domain`, runs `code`, which loads and stores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Map {
    /// Sizes of the dimensions, outermost first; adjacent dimensions are merged where every view allows.
    pub domain: Vec<u64>,
    /// Operand views over `domain`.
    pub views: Vec<View>,
    /// What happens at a point.
    pub code: Code,
}

/// How a row's values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReduceKind {
    /// Sum.
    Sum,
    /// Product.
    Prod,
    /// Largest.
    Max,
    /// Smallest.
    Min,
    /// Index (I32) of the first largest element of the row; NaN is passed over, and a row of nothing else has index 0.
    ArgMax,
}

/// One reduction of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reduce {
    /// How.
    pub kind: ReduceKind,
    /// The value of the stage's code that is reduced.
    pub value: u16,
    /// Receives the result.
    pub slot: u16,
}

/// A part of a [`Reduction`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Runs `code` at every point of the row; reduces some of its values into slots.
    Points {
        /// What happens at a point.
        code: Code,
        /// What is reduced over the row.
        reduce: Vec<Reduce>,
    },
    /// Runs `code` once per row (views and indices with the row's first point), then sets slots: (value, slot).
    Row {
        /// What happens once.
        code: Code,
        /// Values that later stages read.
        slots: Vec<(u16, u16)>,
    },
}

impl Stage {
    /// What is run.
    pub fn code(&self) -> &Code {
        match self {
            Stage::Points { code, .. } | Stage::Row { code, .. } => code,
        }
    }

    /// The same, to be changed.
    pub fn code_mut(&mut self) -> &mut Code {
        match self {
            Stage::Points { code, .. } | Stage::Row { code, .. } => code,
        }
    }
}

/// Which way a cpu tile or a GPU workgroup lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lanes {
    /// Along the reduced dimensions: a workgroup per row. For rows whose elements are adjacent in memory.
    Reduced,
    /// Along the kept dimensions: a thread per row. For reductions over outer dimensions (a bias gradient).
    Kept,
}

/// For every point of `kept` (a row), runs the stages in order over the points of `reduced`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reduction {
    /// Dimensions that remain.
    pub kept: Vec<u64>,
    /// Dimensions that are reduced.
    pub reduced: Vec<u64>,
    /// Operand views over `kept` followed by `reduced`.
    pub views: Vec<View>,
    /// Softmax: maximum; sum of exp; quotient. Layer norm: mean; variance; row: rstd; normalise.
    pub stages: Vec<Stage>,
    /// Number of row slots.
    pub slots: u16,
    /// How to lay out the work.
    pub lanes: Lanes,
}

/// `out[batch, m, n] = epilogue(sum over k of a[batch, m, k] * b[batch, k, n])`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Product {
    /// Batch dimensions.
    pub batch: Vec<u64>,
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// Length of the sum.
    pub k: u64,
    /// View over `batch`, m, k; never gathered.
    pub a: View,
    /// View over `batch`, k, n; never gathered.
    pub b: View,
    /// Views of the epilogue over `batch`, m, n.
    pub views: Vec<View>,
    /// Reads [`ScalarOp::Product`] and stores; the plain product is `Product; Store`.
    pub code: Code,
}

/// Which of the three convolution products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConvKind {
    /// From image [n, c, h, w] and weight [o, c, kh, kw] to out [n, o, oh, ow].
    Forward,
    /// From out gradient [n, o, oh, ow] and weight to image gradient [n, c, h, w].
    ImageGrad,
    /// From image and out gradient to weight gradient [o, c, kh, kw].
    WeightGrad,
}

/// Two-dimensional cross-correlation without bias. Its views, in the order of [`ConvKind`], are dense: each operand from
/// the view's offset on, row-major. Both factors are of one float type, the result is F32.
///
/// An image (the first factor of a forward product or of a weight's gradient) may have a prologue: code over its own
/// domain that loads through `a`, which then has any dtype and any strides, and whose last value, F32, is the pixel. Around
/// the image lie zeros all the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conv2d {
    /// Which product.
    pub kind: ConvKind,
    /// Images.
    pub n: u64,
    /// Input channels.
    pub c: u64,
    /// Input height.
    pub h: u64,
    /// Input width.
    pub w: u64,
    /// Output channels.
    pub o: u64,
    /// Kernel height.
    pub kh: u64,
    /// Kernel width.
    pub kw: u64,
    /// Step of the window, both ways.
    pub stride: u64,
    /// Zeros added on each side, both ways.
    pub padding: u64,
    /// The first factor.
    pub a: View,
    /// The second factor.
    pub b: View,
    /// The result.
    pub out: View,
    /// What makes pixels of the elements of `a`, its only view; empty where they are the pixels.
    pub prologue: Code,
}

impl Conv2d {
    /// Output height and width.
    pub fn extent(&self) -> (u64, u64) {
        let size = |n: u64, k: u64| (n + 2 * self.padding - k) / self.stride + 1;
        (size(self.h, self.kh), size(self.w, self.kw))
    }

    /// The domains of `a`, `b` and `out`.
    pub fn domains(&self) -> [[u64; 4]; 3] {
        let (oh, ow) = self.extent();
        let image = [self.n, self.c, self.h, self.w];
        let weight = [self.o, self.c, self.kh, self.kw];
        let out = [self.n, self.o, oh, ow];
        match self.kind {
            ConvKind::Forward => [image, weight, out],
            ConvKind::ImageGrad => [out, weight, image],
            ConvKind::WeightGrad => [image, out, weight],
        }
    }
}

/// `out[b, index[b, i], :] += updates[b, i, :]` on a zeroed `out`, in the order of `i` (deterministic). Its views are dense:
/// each operand from the view's offset on, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScatterAdd {
    /// Independent tables.
    pub batch: u64,
    /// Rows added per table.
    pub count: u64,
    /// Rows of a table.
    pub rows: u64,
    /// Elements of a row.
    pub inner: u64,
    /// I32 over [batch, count]; clamped to `0..rows`.
    pub index: View,
    /// F32 over [batch, count, inner].
    pub updates: View,
    /// F32 over [batch, rows, inner].
    pub out: View,
}

impl ScatterAdd {
    /// The domains of `index`, `updates` and `out`.
    pub fn domains(&self) -> [Vec<u64>; 3] {
        let ScatterAdd { batch, count, rows, inner, .. } = *self;
        [vec![batch, count], vec![batch, count, inner], vec![batch, rows, inner]]
    }
}

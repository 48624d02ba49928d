//! Vector code: every scalar operation as a loop over the lanes of a tile, compiled once per instruction set.
//!
//! The loops are plain Rust over slices that do not overlap; `#[target_feature]` lets the compiler vectorise each copy for
//! its instruction set, and the device takes the best one the machine has. Invariants: an operation's lanes are
//! independent; it never reads its destination (the `accumulate` family excepted, which says so); a register holds 32-bit
//! patterns whose type the code knows, truth values being any non-zero pattern when read and 1 when written.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{ReduceKind, ScalarOp};
use alip_plan::{DType, philox};

use super::math;

/// `(destination, a, b, c, lanes)`: pointers to as many 32-bit lanes, or to a single one where the form says scalar.
pub(super) type LaneFn = unsafe fn(*mut u32, *const u32, *const u32, *const u32, usize);
/// `(accumulator, value, lanes)`: folds values into accumulators lane by lane.
pub(super) type FoldFn = unsafe fn(*mut u32, *const u32, usize);
/// `(value, lanes)`: all lanes folded into one, as a 32-bit pattern.
pub(super) type RowFn = unsafe fn(*const u32, usize) -> u32;

/// `(destination, indices, [seed, step], stream, lanes)`: random numbers of the elements with these indices.
pub(super) type UniformFn = unsafe fn(*mut u32, *const u32, [u32; 2], u64, usize);

/// `(values, shift, lanes)`: `e^(value - shift)` in the place of every value.
pub(super) type ExpFn = unsafe fn(*mut f32, f32, usize);
/// `(values, factors, centre, scale, lanes)`: `factor * (value - centre) * scale` in the place of every value.
pub(super) type CentreFn = unsafe fn(*mut f32, *const f32, f32, f32, usize);

/// Which arguments of a function are single values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// All arguments are lanes.
    Lanes,
    /// The last argument is a single value.
    LastScalar,
    /// The first argument (of a choice: the second) is a single value.
    FirstScalar,
    /// Both alternatives of a choice are single values.
    BothScalar,
}

/// A 32-bit lane.
trait Lane: Copy {
    fn of(bits: u32) -> Self;
    fn bits(self) -> u32;
}

impl Lane for f32 {
    #[inline(always)]
    fn of(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Lane for i32 {
    #[inline(always)]
    fn of(bits: u32) -> i32 {
        bits as i32
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        self as u32
    }
}

impl Lane for bool {
    #[inline(always)]
    fn of(bits: u32) -> bool {
        bits != 0
    }
    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self)
    }
}

/// An operation on one argument.
pub(super) trait Unary {
    fn apply<I: Isa>(a: u32) -> u32;
}

/// An operation on two arguments.
pub(super) trait Binary {
    fn apply<I: Isa>(a: u32, b: u32) -> u32;
}

/// Defines types that stand for operations.
macro_rules! operations {
    (unary: $($name:ident($a:ident: $t:ty) = $value:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<I: Isa>(a: u32) -> u32 {
                let $a = <$t as Lane>::of(a);
                Lane::bits($value)
            }
        }
    )*};
    (binary: $($name:ident($a:ident, $b:ident: $t:ty) = $value:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<I: Isa>(a: u32, b: u32) -> u32 {
                let ($a, $b) = (<$t as Lane>::of(a), <$t as Lane>::of(b));
                Lane::bits($value)
            }
        }
    )*};
}

operations! { unary:
    Copy32(a: i32) = a;
    NegF(a: f32) = -a;
    AbsF(a: f32) = a.abs();
    SqrtF(a: f32) = a.sqrt();
    FloorF(a: f32) = a.floor();
    NegI(a: i32) = a.wrapping_neg();
    AbsI(a: i32) = a.wrapping_abs();
    NotB(a: bool) = !a;
    FtoI(a: f32) = a as i32;
    FtoB(a: f32) = a != 0.0;
    ItoF(a: i32) = a as f32;
    ToB(a: bool) = a;
    BtoF(a: bool) = if a { 1.0f32 } else { 0.0 };
    FtoBf16(a: f32) = crate::tensor::bf16_to_f32(crate::tensor::f32_to_bf16(a));
    FtoF16(a: f32) = crate::tensor::f16_to_f32(crate::tensor::f32_to_f16(a));
    SinF(a: f32) = math::sin(a);
    CosF(a: f32) = math::cos(a);
}

/// Operations that use the instruction set's fused multiply-add.
macro_rules! fused {
    ($($name:ident = $function:path;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<I: Isa>(a: u32) -> u32 {
                $function(f32::from_bits(a), I::fma).to_bits()
            }
        }
    )*};
}

fused! {
    ExpF = math::exp;
    LnF = math::ln;
    TanhF = math::tanh;
    ErfF = math::erf;
}

operations! { binary:
    AddF(a, b: f32) = a + b;
    SubF(a, b: f32) = a - b;
    MulF(a, b: f32) = a * b;
    DivF(a, b: f32) = a / b;
    RemF(a, b: f32) = {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    PowF(a, b: f32) = math::pow(a, b);
    MinF(a, b: f32) = if a < b || a.is_nan() { a } else { b };
    MaxF(a, b: f32) = if a > b || a.is_nan() && !planted(Fault::MaxWithoutNan) { a } else { b };
    LtF(a, b: f32) = a < b;
    LeF(a, b: f32) = a <= b;
    EqF(a, b: f32) = a == b;
    AddI(a, b: i32) = a.wrapping_add(b);
    SubI(a, b: i32) = a.wrapping_sub(b);
    MulI(a, b: i32) = a.wrapping_mul(b);
    DivI(a, b: i32) = if b == 0 { a } else { a.wrapping_div(b) };
    RemI(a, b: i32) = {
        let rest = if b == 0 { a } else { a.wrapping_rem(b) };
        if b != 0 && rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
    };
    MinI(a, b: i32) = a.min(b);
    MaxI(a, b: i32) = a.max(b);
    LtI(a, b: i32) = a < b;
    LeI(a, b: i32) = a <= b;
    EqI(a, b: i32) = a == b;
    AndB(a, b: bool) = a & b;
    OrB(a, b: bool) = a | b;
    EqB(a, b: bool) = a == b;
}

/// An instruction set: how it multiplies and adds, and the loops compiled for it.
pub(super) trait Isa {
    /// `a * b + c`, fused where the hardware does it.
    fn fma(a: f32, b: f32, c: f32) -> f32;
    /// A loop of an operation on one argument.
    fn unary<O: Unary>() -> LaneFn;
    /// A loop of an operation on two arguments.
    fn binary<O: Binary>(form: Form) -> LaneFn;
    /// A loop of `a ? b : c`.
    fn choice(form: Form) -> LaneFn;
    /// A loop of `accumulator = accumulator op value`.
    fn fold<O: Binary>() -> FoldFn;
    /// A row folded into one value.
    fn row<O: Binary>() -> RowFn;
    /// A loop of random numbers from one of the four words of a draw.
    fn uniform(word: u8) -> UniformFn;
    /// Exponentials in place.
    fn exp() -> ExpFn;
    /// Values centred, weighted and scaled in place.
    fn centre() -> CentreFn;
}

macro_rules! instruction_set {
    ($(#[$doc:meta])* $name:ident, $fma:expr $(, $features:literal)?) => {
        $(#[$doc])*
        struct $name;

        impl Isa for $name {
            #[inline(always)]
            fn fma(a: f32, b: f32, c: f32) -> f32 {
                $fma(a, b, c)
            }

            fn unary<O: Unary>() -> LaneFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<O: Unary>(d: *mut u32, a: *const u32, _: *const u32, _: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { unary::<$name, O>(d, a, n) }
                }
                run::<O>
            }

            fn binary<O: Binary>(form: Form) -> LaneFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn lanes<O: Binary>(d: *mut u32, a: *const u32, b: *const u32, _: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { binary::<$name, O>(Form::Lanes, d, a, b, n) }
                }
                $(#[target_feature(enable = $features)])?
                unsafe fn last<O: Binary>(d: *mut u32, a: *const u32, b: *const u32, _: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { binary::<$name, O>(Form::LastScalar, d, a, b, n) }
                }
                $(#[target_feature(enable = $features)])?
                unsafe fn first<O: Binary>(d: *mut u32, a: *const u32, b: *const u32, _: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { binary::<$name, O>(Form::FirstScalar, d, a, b, n) }
                }
                match form {
                    Form::LastScalar => last::<O>,
                    Form::FirstScalar => first::<O>,
                    Form::Lanes | Form::BothScalar => lanes::<O>,
                }
            }

            fn choice(form: Form) -> LaneFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn lanes(d: *mut u32, a: *const u32, b: *const u32, c: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { choice(Form::Lanes, d, a, b, c, n) }
                }
                $(#[target_feature(enable = $features)])?
                unsafe fn last(d: *mut u32, a: *const u32, b: *const u32, c: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { choice(Form::LastScalar, d, a, b, c, n) }
                }
                $(#[target_feature(enable = $features)])?
                unsafe fn first(d: *mut u32, a: *const u32, b: *const u32, c: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { choice(Form::FirstScalar, d, a, b, c, n) }
                }
                $(#[target_feature(enable = $features)])?
                unsafe fn both(d: *mut u32, a: *const u32, b: *const u32, c: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { choice(Form::BothScalar, d, a, b, c, n) }
                }
                match form {
                    Form::Lanes => lanes,
                    Form::LastScalar => last,
                    Form::FirstScalar => first,
                    Form::BothScalar => both,
                }
            }

            fn fold<O: Binary>() -> FoldFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<O: Binary>(d: *mut u32, a: *const u32, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { fold::<$name, O>(d, a, n) }
                }
                run::<O>
            }

            fn row<O: Binary>() -> RowFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<O: Binary>(a: *const u32, n: usize) -> u32 {
                    // SAFETY: passed on to the caller.
                    unsafe { row::<$name, O>(a, n) }
                }
                run::<O>
            }

            fn uniform(word: u8) -> UniformFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<const W: usize>(d: *mut u32, index: *const u32, key: [u32; 2], stream: u64, n: usize) {
                    // SAFETY: passed on to the caller.
                    unsafe { uniform::<W>(d, index, key, stream, n) }
                }
                match word {
                    0 => run::<0>,
                    1 => run::<1>,
                    2 => run::<2>,
                    _ => run::<3>,
                }
            }

            fn exp() -> ExpFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(x: *mut f32, shift: f32, n: usize) {
                    // SAFETY: passed on to the caller.
                    let x = unsafe { from_raw_parts_mut(x, n) };
                    x.iter_mut().for_each(|x| *x = math::exp(*x - shift, $name::fma));
                }
                run
            }

            fn centre() -> CentreFn {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(x: *mut f32, p: *const f32, centre: f32, scale: f32, n: usize) {
                    // SAFETY: passed on to the caller.
                    let (x, p) = unsafe { (from_raw_parts_mut(x, n), from_raw_parts(p, n)) };
                    x.iter_mut().zip(p).for_each(|(x, p)| *x = p * (*x - centre) * scale);
                }
                run
            }
        }
    };
}

instruction_set! {
    /// What the compilation target guarantees.
    Base, |a: f32, b: f32, c: f32| if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}
#[cfg(target_arch = "x86_64")]
instruction_set! {
    /// Vectors of eight (x86-64-v3).
    Avx2, f32::mul_add, "avx2,fma"
}
#[cfg(target_arch = "x86_64")]
instruction_set! {
    /// Vectors of sixteen (x86-64-v4).
    Avx512, f32::mul_add, "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"
}

#[inline(always)]
unsafe fn unary<I: Isa, O: Unary>(d: *mut u32, a: *const u32, n: usize) {
    // SAFETY: the caller gives `n` lanes each, and a destination apart from the arguments.
    let (d, a) = unsafe { (from_raw_parts_mut(d, n), from_raw_parts(a, n)) };
    for (d, &a) in d.iter_mut().zip(a) {
        *d = O::apply::<I>(a);
    }
}

#[inline(always)]
unsafe fn binary<I: Isa, O: Binary>(form: Form, d: *mut u32, a: *const u32, b: *const u32, n: usize) {
    // SAFETY: as in `unary`; a scalar argument points to one lane.
    unsafe {
        let d = from_raw_parts_mut(d, n);
        match form {
            Form::LastScalar => {
                let b = *b;
                for (d, &a) in d.iter_mut().zip(from_raw_parts(a, n)) {
                    *d = O::apply::<I>(a, b);
                }
            }
            Form::FirstScalar => {
                let a = *a;
                for (d, &b) in d.iter_mut().zip(from_raw_parts(b, n)) {
                    *d = O::apply::<I>(a, b);
                }
            }
            Form::Lanes | Form::BothScalar => {
                for ((d, &a), &b) in d.iter_mut().zip(from_raw_parts(a, n)).zip(from_raw_parts(b, n)) {
                    *d = O::apply::<I>(a, b);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn choice(form: Form, d: *mut u32, a: *const u32, b: *const u32, c: *const u32, n: usize) {
    // SAFETY: as in `binary`.
    unsafe {
        let (d, a) = (from_raw_parts_mut(d, n), from_raw_parts(a, n));
        match form {
            Form::Lanes => {
                for (((d, &a), &b), &c) in d.iter_mut().zip(a).zip(from_raw_parts(b, n)).zip(from_raw_parts(c, n)) {
                    *d = if a != 0 { b } else { c };
                }
            }
            Form::LastScalar => {
                let c = *c;
                for ((d, &a), &b) in d.iter_mut().zip(a).zip(from_raw_parts(b, n)) {
                    *d = if a != 0 { b } else { c };
                }
            }
            Form::FirstScalar => {
                let b = *b;
                for ((d, &a), &c) in d.iter_mut().zip(a).zip(from_raw_parts(c, n)) {
                    *d = if a != 0 { b } else { c };
                }
            }
            Form::BothScalar => {
                let (b, c) = (*b, *c);
                for (d, &a) in d.iter_mut().zip(a) {
                    *d = if a != 0 { b } else { c };
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn fold<I: Isa, O: Binary>(d: *mut u32, a: *const u32, n: usize) {
    // SAFETY: as in `unary`.
    let (d, a) = unsafe { (from_raw_parts_mut(d, n), from_raw_parts(a, n)) };
    for (d, &a) in d.iter_mut().zip(a) {
        *d = O::apply::<I>(*d, a);
    }
}

#[inline(always)]
unsafe fn uniform<const WORD: usize>(d: *mut u32, index: *const u32, key: [u32; 2], stream: u64, n: usize) {
    // SAFETY: as in `unary`.
    let (d, index) = unsafe { (from_raw_parts_mut(d, n), from_raw_parts(index, n)) };
    for (d, &index) in d.iter_mut().zip(index) {
        *d = philox::uniform(philox::philox4x32(philox::drawn(index, stream), key)[WORD]).to_bits();
    }
}

/// Lanes of a row reduction: four vectors of sixteen, which hides the latency of addition on every instruction set.
const WIDTH: usize = 64;

/// Folds a row with `WIDTH` running values and then a tree, the same for every instruction set; shorter rows with eight,
/// the shortest one by one.
#[inline(always)]
unsafe fn row<I: Isa, O: Binary>(a: *const u32, n: usize) -> u32 {
    // SAFETY: the caller gives `n` lanes, at least one.
    let a = unsafe { from_raw_parts(a, n) };
    if let Some(value) = folded::<I, O, WIDTH>(a) {
        return value;
    }
    if let Some(value) = folded::<I, O, 8>(a) {
        return value;
    }
    a.iter().copied().reduce(|x, y| O::apply::<I>(x, y)).unwrap_or_default()
}

/// Folds a row with `N` running values; none if it has fewer.
#[inline(always)]
fn folded<I: Isa, O: Binary, const N: usize>(a: &[u32]) -> Option<u32> {
    let (blocks, rest) = a.as_chunks::<N>();
    let (first, blocks) = blocks.split_first()?;
    let mut lanes = *first;
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = O::apply::<I>(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = O::apply::<I>(*lane, value);
    }
    Some(tree::<I, O, _>(lanes))
}

#[inline(always)]
fn tree<I: Isa, O: Binary, const N: usize>(mut lanes: [u32; N]) -> u32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = O::apply::<I>(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The loops of one instruction set, chosen by operation.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    /// Name for people.
    pub(super) name: &'static str,
    /// The loop of an operation that needs nothing but its arguments; None for the others.
    pub(super) lanes: fn(ScalarOp, DType, Form) -> Option<LaneFn>,
    /// Folds values into accumulators lane by lane.
    pub(super) fold: fn(ReduceKind, DType) -> FoldFn,
    /// Folds a row.
    pub(super) row: fn(ReduceKind, DType) -> RowFn,
    /// Random numbers from a word of each draw.
    pub(super) uniform: fn(u8) -> UniformFn,
    /// Exponentials in place.
    pub(super) exp: ExpFn,
    /// Values centred, weighted and scaled in place.
    pub(super) centre: CentreFn,
}

/// The best loops this machine can run.
pub(super) fn detect() -> Loops {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("fma")
        {
            return loops::<Avx512>("avx512");
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return loops::<Avx2>("avx2");
        }
    }
    loops::<Base>("base")
}

fn loops<I: Isa>(name: &'static str) -> Loops {
    Loops {
        name,
        lanes: lanes::<I>,
        fold: fold_fn::<I>,
        row: row_fn::<I>,
        uniform: I::uniform,
        exp: I::exp(),
        centre: I::centre(),
    }
}

fn fold_fn<I: Isa>(kind: ReduceKind, dtype: DType) -> FoldFn {
    match (kind, dtype == DType::I32) {
        (ReduceKind::Sum, false) => I::fold::<AddF>(),
        (ReduceKind::Prod, false) => I::fold::<MulF>(),
        (ReduceKind::Max | ReduceKind::ArgMax, false) => I::fold::<MaxF>(),
        (ReduceKind::Min, false) => I::fold::<MinF>(),
        (ReduceKind::Sum, true) => I::fold::<AddI>(),
        (ReduceKind::Prod, true) => I::fold::<MulI>(),
        (ReduceKind::Max | ReduceKind::ArgMax, true) => I::fold::<MaxI>(),
        (ReduceKind::Min, true) => I::fold::<MinI>(),
    }
}

fn row_fn<I: Isa>(kind: ReduceKind, dtype: DType) -> RowFn {
    match (kind, dtype == DType::I32) {
        (ReduceKind::Sum, false) => I::row::<AddF>(),
        (ReduceKind::Prod, false) => I::row::<MulF>(),
        (ReduceKind::Max | ReduceKind::ArgMax, false) => I::row::<MaxF>(),
        (ReduceKind::Min, false) => I::row::<MinF>(),
        (ReduceKind::Sum, true) => I::row::<AddI>(),
        (ReduceKind::Prod, true) => I::row::<MulI>(),
        (ReduceKind::Max | ReduceKind::ArgMax, true) => I::row::<MaxI>(),
        (ReduceKind::Min, true) => I::row::<MinI>(),
    }
}

fn lanes<I: Isa>(op: ScalarOp, dtype: DType, form: Form) -> Option<LaneFn> {
    use ScalarOp::*;
    let float = dtype == DType::F32;
    Some(match op {
        Cast(to) => match (dtype, to) {
            (DType::F32, DType::I32) => I::unary::<FtoI>(),
            (DType::F32, DType::Bool) => I::unary::<FtoB>(),
            (DType::I32, DType::F32) => I::unary::<ItoF>(),
            (DType::I32 | DType::Bool, DType::Bool) => I::unary::<ToB>(),
            (DType::Bool, DType::F32) => I::unary::<BtoF>(),
            (DType::Bool, _) => I::unary::<ToB>(),
            (_, DType::Bf16) => I::unary::<FtoBf16>(),
            (_, DType::F16) => I::unary::<FtoF16>(),
            _ => I::unary::<Copy32>(),
        },
        Neg if float => I::unary::<NegF>(),
        Neg => I::unary::<NegI>(),
        Abs if float => I::unary::<AbsF>(),
        Abs => I::unary::<AbsI>(),
        Exp => I::unary::<ExpF>(),
        Ln => I::unary::<LnF>(),
        Sqrt => I::unary::<SqrtF>(),
        Sin => I::unary::<SinF>(),
        Cos => I::unary::<CosF>(),
        Tanh => I::unary::<TanhF>(),
        Erf => I::unary::<ErfF>(),
        Floor => I::unary::<FloorF>(),
        Not => I::unary::<NotB>(),
        Add if float => I::binary::<AddF>(form),
        Add => I::binary::<AddI>(form),
        Sub if float => I::binary::<SubF>(form),
        Sub => I::binary::<SubI>(form),
        Mul if float => I::binary::<MulF>(form),
        Mul => I::binary::<MulI>(form),
        Div if float => I::binary::<DivF>(form),
        Div => I::binary::<DivI>(form),
        Rem if float => I::binary::<RemF>(form),
        Rem => I::binary::<RemI>(form),
        Pow => I::binary::<PowF>(form),
        Min if float => I::binary::<MinF>(form),
        Min => I::binary::<MinI>(form),
        Max if float => I::binary::<MaxF>(form),
        Max => I::binary::<MaxI>(form),
        Lt if float => I::binary::<LtF>(form),
        Lt => I::binary::<LtI>(form),
        Le if float => I::binary::<LeF>(form),
        Le => I::binary::<LeI>(form),
        Eq if float => I::binary::<EqF>(form),
        Eq if dtype == DType::Bool => I::binary::<EqB>(form),
        Eq => I::binary::<EqI>(form),
        And => I::binary::<AndB>(form),
        Or => I::binary::<OrB>(form),
        Select => I::choice(form),
        // A store of a value that lies elsewhere is a copy.
        Store(_) => I::unary::<Copy32>(),
        Const(_) | Index(_) | Load(_) | Slot(_) | Product | Uniform { .. } | RoundBf16 | RoundF16 => return None,
    })
}

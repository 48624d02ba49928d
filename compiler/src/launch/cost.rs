//! What launches cost on a target: the time that the model of a machine predicts.
//!
//! A launch pays what it takes to begin one, every element that its views touch once, and its arithmetic, at the rates of
//! the target's [`Rates`]; of the last two the longer where they overlap. Reports state the sum, and the e-graph compares whole
//! programs by it: there is one prediction.

use alip_plan::kernel::{Code, Loop, Product, ScalarOp, Stage};
use alip_plan::{DType, Rates};

use super::{Launch, bytes_moved};

/// Seconds, and launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Predicted time.
    pub seconds: f64,
    /// Predicted kernels.
    pub launches: u32,
}

/// How much there is to do for a scalar operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Nothing is computed.
    None,
    /// An addition, a comparison.
    Simple,
    /// A division, a root.
    Division,
    /// A function that is a polynomial or more.
    Transcendental,
}

impl Effort {
    pub(crate) fn of(op: ScalarOp) -> Effort {
        use ScalarOp::*;
        match op {
            Const(_) | Load(_) | Store(_) | Slot(_) | Product => Effort::None,
            Index(_)
            | Uniform { .. }
            | Cast(_)
            | RoundBf16
            | RoundF16
            | Neg
            | Abs
            | Floor
            | Not
            | Add
            | Sub
            | Mul
            | Min
            | Max
            | Lt
            | Le
            | Eq
            | And
            | Or
            | Select => Effort::Simple,
            Div | Sqrt => Effort::Division,
            Exp | Ln | Sin | Cos | Tanh | Erf | Pow | Rem => Effort::Transcendental,
        }
    }
}

/// Operations that a scalar operation counts as.
pub(crate) fn weight(op: ScalarOp, rates: &Rates) -> u32 {
    match Effort::of(op) {
        Effort::None => 0,
        Effort::Simple => 1,
        Effort::Division => rates.division,
        Effort::Transcendental => rates.transcendental,
    }
}

/// What the launches of a program cost.
pub(crate) fn predict(launches: &[Launch], rates: &Rates) -> Cost {
    Cost { seconds: launches.iter().map(|launch| seconds(launch, rates)).sum(), launches: launches.len() as u32 }
}

/// Seconds that one launch is predicted to take.
pub(crate) fn seconds(launch: &Launch, rates: &Rates) -> f64 {
    let moved = bytes_moved(&launch.kernel) as f64 / rates.bandwidth;
    let computed = arithmetic(launch, rates);
    rates.launch + if rates.overlaps { moved.max(computed) } else { moved + computed }
}

/// Multiplications and additions of a product, of tiles that are no part of it too where it is computed in rounds of them.
fn multiplied(product: &Product, rates: &Rates) -> f64 {
    let batch: u64 = product.batch.iter().product();
    let results = match rates.waves {
        Some(waves) => {
            let tiles = batch * product.m.div_ceil(waves.tile) * product.n.div_ceil(waves.tile);
            tiles.next_multiple_of(waves.at_once) * waves.tile.pow(2)
        }
        None => batch * product.m * product.n,
    };
    2.0 * results as f64 * product.k as f64
}

/// How much slower factors of this type are multiplied than `products` says.
fn slower(dtype: DType, rates: &Rates) -> f64 {
    if dtype == DType::F32 { rates.wide_products } else { 1.0 }
}

/// Seconds of arithmetic.
fn arithmetic(launch: &Launch, rates: &Rates) -> f64 {
    let of = |code: &Code| code.instrs.iter().map(|instr| weight(instr.op, rates)).sum::<u32>();
    let at = |points: &[&[u64]], operations: u32| {
        let points: u64 = points.iter().copied().flatten().product();
        points as f64 * f64::from(operations) / rates.points
    };
    match &launch.kernel {
        Loop::Map(map) => at(&[&map.domain], of(&map.code)),
        Loop::Reduction(reduction) => {
            let seconds = |stage: &Stage| match stage {
                Stage::Points { code, reduce } => {
                    at(&[&reduction.kept, &reduction.reduced], of(code) + reduce.len() as u32)
                }
                Stage::Row { code, .. } => at(&[&reduction.kept], of(code)),
            };
            reduction.stages.iter().map(seconds).sum()
        }
        Loop::Product(product) => {
            let results: u64 = product.batch.iter().chain([&product.m, &product.n]).product();
            let products = multiplied(product, rates) * slower(product.a.dtype, rates);
            products / rates.products + at(&[&[results]], of(&product.code))
        }
        Loop::Conv2d(_) => launch.flops as f64 / rates.convolutions,
        Loop::Attention(attention) => launch.flops as f64 * slower(attention.q.dtype, rates) / rates.products,
        Loop::ScatterAdd(_) => launch.flops as f64 / rates.points,
    }
}

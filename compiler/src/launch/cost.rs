//! What launches cost on a target: the time that the model of a machine predicts.
//!
//! A launch pays what it takes to begin one, every element that its views touch once, and its arithmetic, at the rates of
//! the target's [`Rates`]. Reports state the sum, and the e-graph compares whole programs by it: there is one prediction.

use alip_plan::Rates;
use alip_plan::kernel::{Code, Loop, ScalarOp, Stage};

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
    let one = |launch: &Launch| {
        let moved = bytes_moved(&launch.kernel) as f64;
        rates.launch + moved / rates.bandwidth + arithmetic(launch, rates)
    };
    Cost { seconds: launches.iter().map(one).sum(), launches: launches.len() as u32 }
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
            let products = 2.0 * results as f64 * product.k as f64;
            products / rates.products + at(&[&[results]], of(&product.code))
        }
        Loop::Conv2d(_) => launch.flops as f64 / rates.convolutions,
        Loop::Attention(_) => launch.flops as f64 / rates.products,
        Loop::ScatterAdd(_) => launch.flops as f64 / rates.points,
    }
}

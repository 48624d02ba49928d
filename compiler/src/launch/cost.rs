//! What launches cost on a target: the time that the model of a machine predicts.
//!
//! A launch pays what it takes to begin one, every element that its views touch once, and its arithmetic, at the rates of
//! [`Machine`]. Reports state the sum, and the e-graph compares whole programs by it: there is one prediction.

use alip_plan::kernel::{Code, Loop, ScalarOp, Stage};
use alip_plan::{Target, TargetKind};

use super::{Launch, bytes_moved};

/// Rates of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Seconds per kernel that are not spent in it.
    pub launch: f64,
    /// Bytes per second between kernels and memory.
    pub bandwidth: f64,
    /// Floating point operations per second in products.
    pub product_rate: f64,
    /// The same in convolutions.
    pub conv_rate: f64,
    /// Scalar operations per second at points and in reductions.
    pub point_rate: f64,
}

impl Machine {
    /// The rates of a target, by what it is: figures of a typical machine of its kind, not of this one, so that the same
    /// target gives the same plan everywhere.
    pub fn of(target: &Target) -> Machine {
        match target.kind {
            // Two cores with AVX2, as `docs/performance.md` measures them: products at 80 GFLOP/s a core, a tenth less in
            // convolutions for gathering columns; main memory at what two cores draw from it; vectors of eight at about
            // a nanosecond; a launch wakes the threads.
            TargetKind::Cpu => {
                Machine { launch: 5e-6, bandwidth: 16e9, product_rate: 160e9, conv_rate: 145e9, point_rate: 12e9 }
            }
            // An integrated adapter: the memory of the host, generated products at a fraction of the peak, and a dispatch
            // with its barrier.
            TargetKind::Wgpu => {
                Machine { launch: 10e-6, bandwidth: 40e9, product_rate: 500e9, conv_rate: 250e9, point_rate: 200e9 }
            }
            // A data-centre card, in single precision.
            TargetKind::Cuda => {
                Machine { launch: 3e-6, bandwidth: 2e12, product_rate: 40e12, conv_rate: 20e12, point_rate: 10e12 }
            }
        }
    }
}

/// Seconds, and launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Predicted time.
    pub seconds: f64,
    /// Predicted kernels.
    pub launches: u32,
}

/// The weight of a transcendental function, in operations: that of the schedule.
pub(crate) const COSTLY: u32 = 4;

/// Operations that a scalar operation counts as.
pub(crate) fn weight(op: ScalarOp) -> u32 {
    use ScalarOp::*;
    match op {
        Exp | Ln | Sin | Cos | Tanh | Erf | Pow | Rem => COSTLY,
        // A division or root takes the time of some multiplications.
        Div | Sqrt => 3,
        Const(_) | Load(_) | Store(_) | Slot(_) | Product => 0,
        _ => 1,
    }
}

/// What the launches of a program cost.
pub(crate) fn predict(launches: &[Launch], machine: &Machine) -> Cost {
    let one = |launch: &Launch| {
        let moved = bytes_moved(&launch.kernel) as f64;
        machine.launch + moved / machine.bandwidth + arithmetic(launch, machine)
    };
    Cost { seconds: launches.iter().map(one).sum(), launches: launches.len() as u32 }
}

/// Seconds of arithmetic.
fn arithmetic(launch: &Launch, machine: &Machine) -> f64 {
    let of = |code: &Code| code.instrs.iter().map(|instr| weight(instr.op)).sum::<u32>();
    let at = |points: &[&[u64]], operations: u32| {
        let points: u64 = points.iter().copied().flatten().product();
        points as f64 * f64::from(operations) / machine.point_rate
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
            products / machine.product_rate + at(&[&[results]], of(&product.code))
        }
        Loop::Conv2d(_) => launch.flops as f64 / machine.conv_rate,
        Loop::Attention(_) => launch.flops as f64 / machine.product_rate,
        Loop::ScatterAdd(_) => launch.flops as f64 / machine.point_rate,
    }
}

//! Where the time of a training step goes, launch by launch.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use alip_plan::PROGRAM_TRAIN;
use alip_runtime::exec::{Session, Tensors};

use crate::Outcome;

/// Rows of each table.
const ROWS: usize = 24;

#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    launches: u64,
    flops: u64,
    /// Read and written.
    bytes: u64,
    /// By the rates of the target that the plan is for.
    predicted: Duration,
}

/// A kernel of the step.
struct Kernel {
    cost: Cost,
    kind: &'static str,
    /// Sizes.
    what: String,
    /// The first place that uses it.
    origin: String,
}

/// A step, launch by launch.
pub(crate) struct Profile {
    total: Cost,
    /// By kind of kernel, the longest first.
    kinds: Vec<(&'static str, Cost)>,
    /// The longest first.
    kernels: Vec<Kernel>,
}

/// Runs one step launch by launch.
pub(crate) fn profile(session: &mut Session, inputs: &Tensors) -> Outcome<Profile> {
    let plan = session.plan().clone();
    // Of a packed program, the one that ran for these inputs runs again.
    let train = session.ran(PROGRAM_TRAIN)?.clone();
    let mut kinds: BTreeMap<&'static str, Cost> = BTreeMap::new();
    let mut kernels: BTreeMap<u32, Kernel> = BTreeMap::new();
    let mut total = Cost::default();
    session.run_each(PROGRAM_TRAIN, inputs, |index, time| {
        let Some(step) = train.steps.get(index) else { return };
        let Some(kernel) = plan.kernels.get(step.kernel as usize) else { return };
        let kind = kernel.description.kind();
        let own = kernels.entry(step.kernel).or_insert_with(|| Kernel {
            cost: Cost::default(),
            kind,
            what: kernel.description.sizes(),
            origin: step.origin.clone(),
        });
        for cost in [kinds.entry(kind).or_default(), &mut own.cost, &mut total] {
            cost.time += time;
            cost.launches += 1;
            cost.flops += step.flops;
            cost.bytes += step.bytes;
            cost.predicted += Duration::from_nanos(step.predicted_ns);
        }
    })?;
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
    let mut kernels: Vec<_> = kernels.into_values().collect();
    kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.cost.time));
    Ok(Profile { total, kinds, kernels })
}

impl Profile {
    /// Tables for people: by kind of kernel, and of the most expensive kernels.
    pub(crate) fn text(&self) -> String {
        let total = &self.total;
        let mut text = format!("\nby kind of kernel, of {:.1} ms launch by launch\n", total.time.as_secs_f64() * 1e3);
        for (kind, cost) in &self.kinds {
            row(&mut text, cost, total, kind);
        }
        text += "by kernel, with the first place that uses it\n";
        for Kernel { cost, kind, what, origin } in self.kernels.iter().take(ROWS) {
            row(&mut text, cost, total, &format!("{kind} {what}  {origin}"));
        }
        text
    }

    /// All kernels for programs, the longest first.
    pub(crate) fn json(&self) -> serde_json::Value {
        let kernel = |Kernel { cost, kind, what, origin }: &Kernel| {
            serde_json::json!({
                "kind": kind, "what": what, "origin": origin, "launches": cost.launches,
                "seconds": cost.time.as_secs_f64(), "predicted_seconds": cost.predicted.as_secs_f64(),
                "flops": cost.flops, "bytes": cost.bytes,
            })
        };
        self.kernels.iter().map(kernel).collect()
    }
}

fn row(text: &mut String, cost: &Cost, total: &Cost, what: &str) {
    let seconds = cost.time.as_secs_f64();
    let share = 100.0 * seconds / total.time.as_secs_f64().max(1e-9);
    let rate = |work: u64| work as f64 / 1e9 / seconds.max(1e-9);
    let _ = writeln!(
        text,
        "{:>9.2} ms {share:>5.1} %  predicted {:>9.2} ms {:>5} x {:>7.1} GFLOP/s {:>6.1} GB/s  {what}",
        seconds * 1e3,
        cost.predicted.as_secs_f64() * 1e3,
        cost.launches,
        rate(cost.flops),
        rate(cost.bytes)
    );
}

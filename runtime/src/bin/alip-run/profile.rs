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
}

/// Runs one step launch by launch and shows the time by kind of kernel and by the most expensive kernels.
pub(crate) fn profile(session: &mut Session, inputs: &Tensors) -> Outcome<String> {
    let plan = session.plan().clone();
    // Of a packed program, the one that ran for these inputs runs again.
    let train = session.ran(PROGRAM_TRAIN)?.clone();
    let mut kinds: BTreeMap<&str, Cost> = BTreeMap::new();
    let mut kernels: BTreeMap<u32, (Cost, String)> = BTreeMap::new();
    let mut total = Cost::default();
    session.run_each(PROGRAM_TRAIN, inputs, |index, time| {
        let Some(step) = train.steps.get(index) else { return };
        let Some(kernel) = plan.kernels.get(step.kernel as usize) else { return };
        let kind = kernel.description.kind();
        let (own, _) = kernels.entry(step.kernel).or_insert_with(|| (Cost::default(), step.origin.clone()));
        for cost in [kinds.entry(kind).or_default(), own, &mut total] {
            cost.time += time;
            cost.launches += 1;
            cost.flops += step.flops;
        }
    })?;
    let mut text = format!("\nby kind of kernel, of {:.1} ms launch by launch\n", total.time.as_secs_f64() * 1e3);
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
    for (kind, cost) in kinds {
        row(&mut text, &cost, &total, kind);
    }
    text += "by kernel, with the first place that uses it\n";
    let mut kernels: Vec<_> = kernels.into_iter().collect();
    kernels.sort_by_key(|(_, (cost, _))| std::cmp::Reverse(cost.time));
    for (kernel, (cost, origin)) in kernels.into_iter().take(ROWS) {
        let what = &plan.kernels[kernel as usize].description;
        row(&mut text, &cost, &total, &format!("{} {}  {origin}", what.kind(), what.sizes()));
    }
    Ok(text)
}

fn row(text: &mut String, cost: &Cost, total: &Cost, what: &str) {
    let seconds = cost.time.as_secs_f64();
    let share = 100.0 * seconds / total.time.as_secs_f64().max(1e-9);
    let rate = cost.flops as f64 / 1e9 / seconds.max(1e-9);
    let _ =
        writeln!(text, "{:>9.2} ms {share:>5.1} % {:>5} x {rate:>7.1} GFLOP/s  {what}", seconds * 1e3, cost.launches);
}

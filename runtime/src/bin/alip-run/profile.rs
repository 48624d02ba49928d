//! Where the time of a training step goes, launch by launch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use alip_plan::kernel::{Conv2d, Loop, ScatterAdd};
use alip_plan::{PROGRAM_TRAIN, Program, Step};
use alip_runtime::exec::{Session, Tensors};

use crate::Outcome;

/// Rows of each table.
const ROWS: usize = 24;

#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    launches: u64,
    flops: u64,
    /// Of all operands, each once and as a whole, so at least as many as are moved.
    bytes: u64,
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
        let kind = kind(&kernel.description);
        let own = kernels.entry(step.kernel).or_insert_with(|| Kernel {
            cost: Cost::default(),
            kind,
            what: sizes(&kernel.description),
            origin: step.origin.clone(),
        });
        for cost in [kinds.entry(kind).or_default(), &mut own.cost, &mut total] {
            cost.time += time;
            cost.launches += 1;
            cost.flops += step.flops;
            cost.bytes += bytes(&train, step);
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
                "seconds": cost.time.as_secs_f64(), "flops": cost.flops, "bytes": cost.bytes,
            })
        };
        self.kernels.iter().map(kernel).collect()
    }
}

/// Bytes of the operands of a launch.
fn bytes(program: &Program, step: &Step) -> u64 {
    let operands: BTreeSet<u32> = step.operands.iter().copied().collect();
    operands.into_iter().filter_map(|operand| program.buffers.get(operand as usize)).map(|buffer| buffer.bytes()).sum()
}

fn row(text: &mut String, cost: &Cost, total: &Cost, what: &str) {
    let seconds = cost.time.as_secs_f64();
    let share = 100.0 * seconds / total.time.as_secs_f64().max(1e-9);
    let rate = |work: u64| work as f64 / 1e9 / seconds.max(1e-9);
    let _ = writeln!(
        text,
        "{:>9.2} ms {share:>5.1} % {:>5} x {:>7.1} GFLOP/s {:>6.1} GB/s  {what}",
        seconds * 1e3,
        cost.launches,
        rate(cost.flops),
        rate(cost.bytes)
    );
}

/// Kind of a kernel.
fn kind(description: &Loop) -> &'static str {
    match description {
        Loop::Map(_) => "map",
        Loop::Reduction(_) => "reduction",
        Loop::Product(_) => "product",
        Loop::Conv2d(_) => "conv2d",
        Loop::ScatterAdd(_) => "scatter_add",
        Loop::Attention(_) => "attention",
    }
}

/// Sizes of a kernel.
fn sizes(description: &Loop) -> String {
    match description {
        Loop::Map(map) => {
            format!("{:?}, {} operands, {} instructions", map.domain, map.views.len(), map.code.instrs.len())
        }
        Loop::Reduction(reduction) => {
            let stages = reduction.stages.len();
            format!("{:?} over {:?}, {stages} stages, {:?} lanes", reduction.kept, reduction.reduced, reduction.lanes)
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

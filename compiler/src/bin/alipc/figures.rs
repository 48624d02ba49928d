//! What `alipc compile` says of a compilation, in words and as JSON, and numbers with units for all commands.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use alip_compiler::CompiledSpec;
use alip_compiler::transform::Applied;
use alip_plan::{BucketReport, DType};
use serde_json::{Map, Value, json};

/// What came of it, for both ways to show it.
pub(crate) struct Done {
    pub(crate) compiled: CompiledSpec,
    pub(crate) target: String,
    pub(crate) files: Vec<PathBuf>,
    /// Rendered.
    pub(crate) warnings: Vec<String>,
}

/// For people.
pub(crate) fn in_words(done: &Done) -> String {
    let Done { compiled, target, files, .. } = done;
    let mut text = String::new();
    for (name, dump) in &compiled.dumps {
        let _ = writeln!(text, "== {name}\n{dump}");
    }
    let name = &compiled.model.name;
    let batch = compiled.resolved.batch.map_or(String::new(), |batch| format!(", batch {batch}"));
    let _ = writeln!(text, "{name} for {target}{batch}");
    compiled.rewrites.applied.iter().for_each(|rewrite| text.push_str(&rewritten(rewrite)));
    for (program, stopped) in &compiled.rewrites.unpacked {
        let _ = writeln!(text, "no packing    {program}, in `{}`: {}", stopped.at, stopped.why);
    }
    match &compiled.plan {
        Some(plan) => {
            let peak = plan.report.peak_bytes();
            let mut memory: Vec<_> = plan.report.memory.iter().filter(|(_, bytes)| **bytes > 0).collect();
            memory.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
            let memory: Vec<String> = memory.iter().map(|(kind, bytes)| format!("{kind} {}", size(**bytes))).collect();
            if plan.train.is_some() {
                let _ = writeln!(text, "{:14}{}", "precision", precision(compiled));
            }
            let _ = writeln!(text, "{:14}{}", "parameters", grouped(plan.report.parameters));
            let _ = writeln!(text, "{:14}{}", "kernels", grouped(plan.kernels.len() as u64));
            for (name, program) in &plan.report.programs {
                let mut launches = grouped(program.launches) + " launches";
                if program.library_calls > 0 {
                    let _ = write!(launches, " ({} of cuBLASLt)", grouped(program.library_calls));
                }
                let (flops, bytes) = (operations(program.flops), size(program.bytes));
                let time = duration(program.predicted_seconds);
                let _ = writeln!(text, "{name:13} {launches}, {flops}, {bytes} moved, predicted {time}");
                if !program.buckets.is_empty() {
                    text.push_str(&in_buckets("  by rows", &program.buckets));
                }
            }
            let _ = writeln!(text, "{:14}{}: {}", "peak memory", size(peak), memory.join(", "));
        }
        None => text.push_str("no plan: `--stop-after` came before the last pass\n"),
    }
    for file in files {
        let _ = writeln!(text, "wrote {}", file.display());
    }
    text
}

/// What the training step computes in.
fn precision(compiled: &CompiledSpec) -> String {
    match compiled.precision {
        DType::F32 => "f32".into(),
        low => format!("products of {low}, what lies between them stored as {low}; sums, weights and optimizer in f32"),
    }
}

/// What a rewrite gave, on one line.
pub(crate) fn rewritten(rewrite: &Applied) -> String {
    let Applied { rewrite, program, places, before, after } = rewrite;
    let [flops, then_flops] = [before, after].map(|cost| operations(cost.flops));
    let [bytes, then_bytes] = [before, after].map(|cost| size(cost.bytes));
    let places = places.join("; ");
    format!("{rewrite:13} {program} forward: {flops} to {then_flops}, {bytes} moved to {then_bytes}: {places}\n")
}

/// What a packed program costs for each number of rows, on one line: operations and the arena's peak.
pub(crate) fn in_buckets(label: &str, buckets: &[BucketReport]) -> String {
    let one = |bucket: &BucketReport| {
        let rows: Vec<String> = bucket.rows.iter().map(|rows| grouped(*rows)).collect();
        format!("{}: {}, {}", rows.join(" + "), operations(bucket.flops), size(bucket.arena_bytes))
    };
    let all: Vec<String> = buckets.iter().map(one).collect();
    format!("{label:13} {}\n", all.join("; "))
}

/// For programs.
pub(crate) fn in_json(done: &Done, timings: bool) -> String {
    let Done { compiled, target, files, warnings } = done;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.into(), value);
    put("name", json!(compiled.model.name));
    put("target", json!(target));
    put("batch", json!(compiled.resolved.batch));
    if let Some(plan) = &compiled.plan {
        put("precision", json!(compiled.precision.to_string()));
        put("parameters", json!(plan.report.parameters));
        put("kernels", json!(plan.kernels.len()));
        put("programs", json!(plan.report.programs));
        put("peak_bytes", json!(plan.report.peak_bytes()));
        put("memory", json!(plan.report.memory));
    }
    put("rewrites", json!(compiled.rewrites.applied));
    put("files", json!(files));
    put("warnings", json!(warnings));
    if !compiled.dumps.is_empty() {
        put("dumps", json!(compiled.dumps.iter().cloned().collect::<std::collections::BTreeMap<_, _>>()));
    }
    if timings {
        let seconds = compiled.timings.iter().map(|(pass, time)| ((*pass).to_owned(), json!(time.as_secs_f64())));
        put("seconds", Value::Object(seconds.collect()));
    }
    format!("{:#}\n", Value::Object(object))
}

/// Time per pass.
pub(crate) fn times(timings: &[(&'static str, Duration)]) -> String {
    let total = timings.iter().map(|(_, time)| *time).sum();
    let lines = timings.iter().copied().chain([("total", total)]);
    lines.map(|(pass, time)| format!("{pass:13} {:9.1} ms\n", time.as_secs_f64() * 1e3)).collect()
}

/// `151,277,313`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// MiB, or KiB where those would be less than one.
pub(crate) fn size(bytes: u64) -> String {
    let kibibytes = bytes.div_ceil(1 << 10);
    if kibibytes < 1 << 10 { format!("{kibibytes} KiB") } else { format!("{} MiB", grouped(bytes.div_ceil(1 << 20))) }
}

/// Seconds with a unit.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.2} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// Floating point operations with a unit that leaves at most four digits before the point.
pub(crate) fn operations(count: u64) -> String {
    let units = [(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")];
    let unit = units.iter().find(|(size, _)| count as f64 >= *size);
    unit.map_or_else(|| format!("{count} FLOP"), |(size, unit)| format!("{:.2} {unit}", count as f64 / size))
}

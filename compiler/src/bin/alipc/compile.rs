//! `alipc compile`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alip_compiler::diag::{Diagnostic, Diagnostics, SourceMap, did_you_mean};
use alip_compiler::optimize::OptimizeOptions;
use alip_compiler::picture::dot;
use alip_compiler::resolve::Options;
use alip_compiler::schedule::ScheduleOptions;
use alip_compiler::transform::{Applied, Disabled};
use alip_compiler::{CompileOptions, CompiledSpec, PASSES, SpecOptions, compile_spec, ir, transform};
use alip_plan::kernel::Kernel;
use alip_plan::{BucketReport, DType, Plan, Target};
use serde_json::{Map, Value, json};

use crate::files;

/// Compile a graph to a plan
///
/// Prints parameters, floating point operations, kernels and planned peak memory, and writes files into a folder if one is
/// given. The same spec, options and version give the same bytes.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alipc compile alip_b32 -o b32 --batch 16          writes b32/plan.alip
  alipc compile my_graph.ron --set train.epochs=3   writes nothing, says what it costs
  alipc compile alip_tiny --target wgpu -o tiny --emit plan,wgsl,ir,dot
  alipc compile alip_tiny --dump after:schedule --stop-after schedule

Files: plan.alip, for alip-run; wgsl/NNNN.wgsl, shaders (--target wgpu); PROGRAM.ir, graphs as text; PROGRAM.dot, graphs
for Graphviz.
Passes: resolve, lift, model, optimize, prepare, schedule, lower, join, memory, assemble.")]
pub(crate) struct Args {
    /// Path of a graph, or name of one that ships with alip
    spec: String,
    /// Folder to write to, made if it is not there; without it nothing is written
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What to compile for: cpu, cpu_mixed (stores bf16 and f16 where a spec asks for them; slower) or wgpu
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    target: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Data pipeline in place of the spec's, by path or name
    #[arg(long, value_name = "PIPELINE")]
    data: Option<String>,
    /// What to write
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_value = "plan", requires = "output")]
    emit: Vec<Emit>,
    /// Show all programs after a pass
    #[arg(long, value_name = "after:PASS")]
    dump: Vec<String>,
    /// Do no more than the passes up to this one
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Give every operation a kernel of its own
    #[arg(long)]
    no_fuse: bool,
    /// Leave softmax, attention and the like as they are written
    #[arg(long)]
    no_lift: bool,
    /// Do without a rewrite, rule or theme of rules
    #[arg(long, value_name = "NAME")]
    no_rule: Vec<String>,
    /// Optimise with the e-graph
    #[arg(long)]
    egraph: bool,
    /// Show the time of each pass and what the e-graph did with each region
    #[arg(long)]
    timings: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A kind of file.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// The plan
    Plan,
    /// Shaders
    Wgsl,
    /// Graphs as text
    Ir,
    /// Graphs for Graphviz
    Dot,
}

/// What came of it, for both ways to show it.
struct Done {
    compiled: CompiledSpec,
    target: String,
    files: Vec<PathBuf>,
    /// Rendered.
    warnings: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    match compile(args, &mut sources) {
        Ok(done) => {
            if let Err(warnings) = Diagnostics::check((), done.compiled.warnings.clone()) {
                crate::report(&warnings, &sources);
            }
            let text = if args.json { in_json(&done, args.timings) } else { in_words(&done) };
            if args.timings && !args.json {
                eprint!("{}{}", times(&done.compiled.timings), done.compiled.optimized);
            }
            crate::print(&text)
        }
        Err(diagnostics) => {
            crate::report(&diagnostics, &sources);
            ExitCode::FAILURE
        }
    }
}

fn compile(args: &Args, sources: &mut SourceMap) -> Result<Done, Diagnostics> {
    let options = options(args)?;
    let mut compiled = compile_spec(sources, &args.spec, &options)?;
    let start = Instant::now();
    let mut files = Vec::new();
    if let Some(folder) = &args.output {
        for emit in &args.emit {
            files.extend(write(*emit, folder, &compiled)?);
        }
        compiled.timings.push(("write", start.elapsed()));
    }
    let warnings = compiled.warnings.iter().map(|warning| warning.render(sources, false)).collect();
    Ok(Done { compiled, target: options.compile.target.name, files, warnings })
}

fn options(args: &Args) -> Result<SpecOptions, Diagnostic> {
    let target = target(&args.target)?;
    if args.emit.contains(&Emit::Wgsl) && target.name != "wgpu" {
        return Err(Diagnostic::error(format!("`--emit wgsl`: the target `{}` has no shaders", target.name))
            .help("add `--target wgpu`"));
    }
    let dump = args.dump.iter().map(|dump| after(dump).map(str::to_owned)).collect::<Result<_, _>>()?;
    let schedule = ScheduleOptions { fuse: !args.no_fuse };
    // Rewrites of whole programs and rules of the e-graph; that knows which names are neither.
    let is_rewrite = |name: &String| transform::names().any(|rewrite| rewrite == name);
    let (disabled, without) = args.no_rule.iter().cloned().partition(is_rewrite);
    let transform = transform::Options { lift: !args.no_lift, disabled: Disabled(disabled) };
    Ok(SpecOptions {
        spec: Options { batch: args.batch, set: args.set.clone(), ..Options::default() },
        data: args.data.clone(),
        compile: CompileOptions {
            target,
            schedule,
            transform,
            optimize: OptimizeOptions { enabled: args.egraph, without },
            dump,
            stop_after: args.stop_after.clone(),
            ..CompileOptions::default()
        },
        ..SpecOptions::default()
    })
}

pub(crate) fn target(name: &str) -> Result<Target, Diagnostic> {
    Target::named(name).ok_or_else(|| {
        let all = Target::all();
        let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        let error = Diagnostic::error(format!("unknown target `{name}`"));
        match did_you_mean(name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("targets are {}", names.join(", "))),
        }
    })
}

/// The pass of `after:PASS`.
fn after(dump: &str) -> Result<&str, Diagnostic> {
    dump.strip_prefix("after:").ok_or_else(|| {
        let error = Diagnostic::error(format!("`--dump {dump}` does not say after which pass"));
        let pass = if PASSES.contains(&dump) { dump } else { "schedule" };
        error.help(format!("write `--dump after:{pass}`"))
    })
}

/// Writes the files of one kind; their paths.
fn write(emit: Emit, folder: &Path, compiled: &CompiledSpec) -> Result<Vec<PathBuf>, Diagnostic> {
    let programs = |ending: &str, text: fn(&ir::Graph) -> String| {
        let programs = compiled.resolved.model.programs.iter();
        programs
            .map(|(name, graph)| files::write(folder, &format!("{name}.{ending}"), text(graph).as_bytes()))
            .collect()
    };
    match (emit, &compiled.plan) {
        (Emit::Ir, _) => programs("ir", ir::print),
        (Emit::Dot, _) => programs("dot", dot),
        (Emit::Plan, Some(plan)) => Ok(vec![files::write(folder, "plan.alip", &plan.to_bytes())?]),
        (Emit::Wgsl, Some(plan)) => shaders(&folder.join("wgsl"), plan),
        // After `--stop-after`; `in_words` says so.
        (Emit::Plan | Emit::Wgsl, None) => Ok(Vec::new()),
    }
}

/// One file per kernel, named by its index in the plan. Those of a longer plan before this one are removed.
fn shaders(folder: &Path, plan: &Plan) -> Result<Vec<PathBuf>, Diagnostic> {
    let mut written = Vec::new();
    for (index, kernel) in plan.kernels.iter().enumerate() {
        if let Kernel::Wgsl { source, .. } = kernel {
            written.push(files::write(folder, &format!("{index:04}.wgsl"), source.as_bytes())?);
        }
    }
    for index in plan.kernels.len().. {
        let old = folder.join(format!("{index:04}.wgsl"));
        if fs::remove_file(old).is_err() {
            break;
        }
    }
    Ok(written)
}

fn in_words(done: &Done) -> String {
    let Done { compiled, target, files, .. } = done;
    let mut text = String::new();
    for (name, dump) in &compiled.dumps {
        let _ = writeln!(text, "== {name}\n{dump}");
    }
    let name = &compiled.resolved.model.name;
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
                let launches = grouped(program.launches);
                let _ = writeln!(text, "{name:13} {launches} launches, {}", operations(program.flops));
                for bucket in &program.buckets {
                    text.push_str(&in_bucket(bucket));
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
fn rewritten(rewrite: &Applied) -> String {
    let Applied { rewrite, program, places, before, after } = rewrite;
    let [flops, then_flops] = [before, after].map(|cost| operations(cost.flops));
    let [bytes, then_bytes] = [before, after].map(|cost| size(cost.bytes));
    let places = places.join("; ");
    format!("{rewrite:13} {program} forward: {flops} to {then_flops}, {bytes} moved to {then_bytes}: {places}\n")
}

/// One line per number of rows of a packed program.
fn in_bucket(bucket: &BucketReport) -> String {
    let rows: Vec<String> = bucket.rows.iter().map(|rows| grouped(*rows)).collect();
    let (launches, flops) = (grouped(bucket.launches), operations(bucket.flops));
    format!("  {:>8} rows {launches} launches, {flops}, arena {}\n", rows.join(" + "), size(bucket.arena_bytes))
}

fn in_json(done: &Done, timings: bool) -> String {
    let Done { compiled, target, files, warnings } = done;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.into(), value);
    put("name", json!(compiled.resolved.model.name));
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

fn times(timings: &[(&'static str, Duration)]) -> String {
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

/// Floating point operations with a unit that leaves at most four digits before the point.
pub(crate) fn operations(count: u64) -> String {
    let units = [(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")];
    let unit = units.iter().find(|(size, _)| count as f64 >= *size);
    unit.map_or_else(|| format!("{count} FLOP"), |(size, unit)| format!("{:.2} {unit}", count as f64 / size))
}

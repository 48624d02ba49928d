//! `alipc compile`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use alip_compiler::diag::{Diagnostic, Diagnostics, SourceMap};
use alip_compiler::picture::dot;
use alip_compiler::{CompiledSpec, PASSES, SpecOptions, compile_spec, ir};
use alip_plan::kernel::Implementation;
use alip_plan::{Plan, TargetKind};

use crate::figures::{self, Done};
use crate::files;
use crate::options::SpecArgs;

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
  alipc compile alip_b32 --target sm_90a -o b32 --emit plan,cuda
  alipc compile alip_tiny --dump after:schedule --stop-after schedule

Files: plan.alip, for alip-run; wgsl/NNNN.wgsl, shaders (--target wgpu); cuda/NNNN.cu, kernels (--target sm_80, sm_90a,
sm_100); PROGRAM.ir, graphs as text; PROGRAM.dot, graphs for Graphviz.
Passes: resolve, lift, model, optimize, prepare, schedule, lower, join, memory, assemble.")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecArgs,
    /// Folder to write to, made if it is not there; without it nothing is written
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
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
    /// Kernels in CUDA C++
    Cuda,
    /// Graphs as text
    Ir,
    /// Graphs for Graphviz
    Dot,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    match compile(args, &mut sources) {
        Ok(done) => {
            if let Err(warnings) = Diagnostics::check((), done.compiled.warnings.clone()) {
                crate::report(&warnings, &sources);
            }
            let text = if args.json { figures::in_json(&done, args.timings) } else { figures::in_words(&done) };
            if args.timings && !args.json {
                eprint!("{}{}", figures::times(&done.compiled.timings), done.compiled.optimized);
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
    let mut compiled = compile_spec(sources, &args.spec.spec, &options)?;
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
    let mut options = args.spec.options()?;
    let target = &options.compile.target;
    check_emits(args, Emit::Wgsl, ("wgsl", "shaders", "wgpu"), target.kind == TargetKind::Wgpu, &target.name)?;
    check_emits(
        args,
        Emit::Cuda,
        ("cuda", "kernels in CUDA C++", "sm_80"),
        target.kind == TargetKind::Cuda,
        &target.name,
    )?;
    options.data = args.data.clone();
    options.compile.dump = args.dump.iter().map(|dump| after(dump).map(str::to_owned)).collect::<Result<_, _>>()?;
    options.compile.stop_after = args.stop_after.clone();
    Ok(options)
}

/// Refuses to write what the target has not.
fn check_emits(
    args: &Args,
    emit: Emit,
    (name, what, wanted): (&str, &str, &str),
    has: bool,
    target: &str,
) -> Result<(), Diagnostic> {
    if has || !args.emit.contains(&emit) {
        return Ok(());
    }
    let error = Diagnostic::error(format!("`--emit {name}`: the target `{target}` has no {what}"));
    Err(error.help(format!("add `--target {wanted}`")))
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
        let programs = compiled.model.programs.iter();
        programs
            .map(|(name, graph)| files::write(folder, &format!("{name}.{ending}"), text(graph).as_bytes()))
            .collect()
    };
    match (emit, &compiled.plan) {
        (Emit::Ir, _) => programs("ir", ir::print),
        (Emit::Dot, _) => programs("dot", dot),
        (Emit::Plan, Some(plan)) => Ok(vec![files::write(folder, "plan.alip", &plan.to_bytes())?]),
        (Emit::Wgsl, Some(plan)) => texts(&folder.join("wgsl"), "wgsl", plan),
        (Emit::Cuda, Some(plan)) => texts(&folder.join("cuda"), "cu", plan),
        // After `--stop-after`; `in_words` says so.
        (Emit::Plan | Emit::Wgsl | Emit::Cuda, None) => Ok(Vec::new()),
    }
}

/// One file per kernel, named by its index in the plan. Those of a longer plan before this one are removed.
fn texts(folder: &Path, ending: &str, plan: &Plan) -> Result<Vec<PathBuf>, Diagnostic> {
    let mut written = Vec::new();
    for (index, kernel) in plan.kernels.iter().enumerate() {
        if let Implementation::Wgsl { source, .. } | Implementation::Cuda { source, .. } = &kernel.implementation {
            written.push(files::write(folder, &format!("{index:04}.{ending}"), source.as_bytes())?);
        }
    }
    for index in plan.kernels.len().. {
        let old = folder.join(format!("{index:04}.{ending}"));
        if fs::remove_file(old).is_err() {
            break;
        }
    }
    Ok(written)
}

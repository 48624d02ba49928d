//! What to compile, and how: the options that commands share.

use alip_compiler::diag::{Diagnostic, did_you_mean};
use alip_compiler::optimize::OptimizeOptions;
use alip_compiler::resolve::Options;
use alip_compiler::schedule::ScheduleOptions;
use alip_compiler::{CompileOptions, Feed, SpecOptions, transform};
use alip_plan::Target;

/// A spec, a target, and what is turned off.
#[derive(clap::Args)]
pub(crate) struct SpecArgs {
    /// Path of a graph, or name of one that ships with alip
    pub(crate) spec: String,
    /// What to compile for: cpu, cpu_mixed (stores bf16 and f16 where a spec asks for them; slower), wgpu, or one with the limits
    /// of a machine, as `alip-run devices` prints it; sm_80, sm_90a, sm_100 (NVIDIA cards from the A100, H100 and B200 on)
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    target: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Give every operation a kernel of its own
    #[arg(long)]
    no_fuse: bool,
    /// Keep every value of the forward pass that the backward pass reads, instead of computing it again
    #[arg(long)]
    no_recompute: bool,
    /// Leave softmax, attention and the like as they are written
    #[arg(long)]
    no_lift: bool,
    /// Do without a rewrite, rule or theme of rules
    #[arg(long, value_name = "NAME")]
    no_rule: Vec<String>,
    /// Do without the e-graph
    #[arg(long)]
    no_egraph: bool,
    /// Compute all products by generated kernels (targets for NVIDIA cards)
    #[arg(long)]
    no_library: bool,
}

impl SpecArgs {
    /// Options of a compilation.
    ///
    /// # Errors
    /// An unknown target.
    pub(crate) fn options(&self) -> Result<SpecOptions, Diagnostic> {
        let mut compile = CompileOptions {
            target: target(&self.target)?,
            optimize: OptimizeOptions { enabled: !self.no_egraph, ..Default::default() },
            schedule: ScheduleOptions { fuse: !self.no_fuse, recompute: !self.no_recompute },
            transform: transform::Options { lift: !self.no_lift, ..Default::default() },
            ..CompileOptions::default()
        };
        compile.leave_out(&self.no_rule);
        if self.no_library {
            compile.target.library = None;
        }
        let spec = Options { batch: self.batch, set: self.set.clone(), ..Options::default() };
        Ok(SpecOptions { spec, compile, feed: Feed::Loader, ..SpecOptions::default() })
    }
}

fn target(name: &str) -> Result<Target, Diagnostic> {
    Target::parse(name).map_err(|why| {
        if name == "native" || name.contains(':') {
            let help = "`alip-run devices` prints the whole names of the targets that machine has; `alip-run` itself takes \
                        `--target native`";
            let native = || format!("this compiler sees no device, so `{name}` says too little");
            let error = if name == "native" { native() } else { format!("`{name}` is no target: {why}") };
            return Diagnostic::error(error).help(help);
        }
        let all = Target::all();
        let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        let error = Diagnostic::error(format!("unknown target `{name}`"));
        match did_you_mean(name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("targets are {}", names.join(", "))),
        }
    })
}

/// The error for a program that a graph does not have.
pub(crate) fn no_program<'a>(graph: &str, asked: &str, names: impl Iterator<Item = &'a str> + Clone) -> Diagnostic {
    let all = names.clone().collect::<Vec<_>>().join(", ");
    let error = Diagnostic::error(format!("`{graph}` has no program `{asked}`"));
    error.note(format!("its programs are {all}")).suggest(asked, names)
}

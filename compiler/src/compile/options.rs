//! How to compile, and what can be turned off.

use alip_plan::Target;

use super::PASSES;
use crate::diag::{Diagnostic, Diagnostics, did_you_mean};
use crate::optimize::OptimizeOptions;
use crate::schedule::ScheduleOptions;
use crate::transform;

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// What to compile for.
    pub target: Target,
    /// What the e-graph may do.
    pub optimize: OptimizeOptions,
    /// What the schedule may do.
    pub schedule: ScheduleOptions,
    /// Which rewrites of whole programs to use.
    pub transform: transform::Options,
    /// Passes after which to show the program (`--dump after:NAME`).
    pub dump: Vec<String>,
    /// The last pass to run (`--stop-after NAME`).
    pub stop_after: Option<String>,
    /// Keep what became of each node ([`Compiled::explained`], [`Compiled::traces`]).
    pub explain: bool,
}

/// Something that can be turned off.
pub struct Switch {
    /// The option that does so, without its dashes: `no-fuse`.
    pub name: &'static str,
    /// Turns it off.
    pub off: fn(&mut CompileOptions),
}

/// Everything that can be turned off, in the order of the passes: what `alip-run bisect` compares with, and random graphs run
/// without. A pass that can be turned off has a line here.
pub const SWITCHES: &[Switch] = &[
    Switch { name: "no-lift", off: |options| options.transform.lift = false },
    Switch { name: "no-rewrites", off: |options| options.transform.disabled = transform::Disabled::all() },
    Switch { name: "no-egraph", off: |options| options.optimize.enabled = false },
    Switch { name: "no-recompute", off: |options| options.schedule.recompute = false },
    Switch { name: "no-fuse", off: |options| options.schedule.fuse = false },
    Switch { name: "no-library", off: |options| options.target.library = None },
];

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            target: Target::cpu(),
            optimize: OptimizeOptions::default(),
            schedule: ScheduleOptions::default(),
            transform: transform::Options::default(),
            dump: Vec::new(),
            stop_after: None,
            explain: false,
        }
    }
}

impl CompileOptions {
    /// Whether this is the last pass.
    pub(super) fn ends_with(&self, pass: &str) -> bool {
        self.stop_after.as_deref() == Some(pass)
    }

    /// Whether programs are shown after this pass.
    pub(super) fn shows(&self, pass: &str) -> bool {
        self.dump.iter().any(|name| name == pass)
    }

    /// Does without these rewrites of whole programs, rules of the e-graph or themes of rules; compilation refuses a name
    /// that is none of them.
    pub fn leave_out(&mut self, names: &[String]) {
        let is_rewrite = |name: &String| transform::names().any(|rewrite| rewrite == name);
        let (rewrites, rules): (Vec<String>, Vec<String>) = names.iter().cloned().partition(is_rewrite);
        self.transform.disabled.0.extend(rewrites);
        self.optimize.without.extend(rules);
    }
}

/// Refuses names in the options that are no passes.
pub(super) fn known_passes(options: &CompileOptions) -> Result<(), Diagnostics> {
    for name in options.dump.iter().chain(&options.stop_after) {
        if !PASSES.contains(&name.as_str()) {
            let error = Diagnostic::error(format!("unknown pass `{name}`"));
            let error = match did_you_mean(name, PASSES) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help(format!("passes are {}", PASSES.join(", "))),
            };
            return Err(error.into());
        }
    }
    Ok(())
}

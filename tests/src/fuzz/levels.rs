//! Levels of optimisation at which every graph must mean the same.
//!
//! A pass that can be turned off gets a line here; random graphs, planted faults and kept cases then run with and without it.

use alip_compiler::CompileOptions;
use alip_compiler::diag::Diagnostics;
use alip_compiler::ir::{Graph, StopGradients, simplify};
use alip_compiler::schedule::ScheduleOptions;
use alip_plan::Target;

/// What a compilation may do.
pub struct Level {
    /// As one would ask for it: `no-fuse`.
    pub name: &'static str,
    /// What happens to the differentiated program before it is compiled, as it does to that of a spec.
    pub prepare: fn(&Graph) -> Result<Graph, Diagnostics>,
    /// The options, from those with everything on.
    change: fn(&mut CompileOptions),
}

/// All levels: everything on first, then with less.
pub const LEVELS: &[Level] = &[
    Level { name: "all", prepare: simplified, change: |_| {} },
    Level { name: "no-fuse", prepare: as_it_is, change: |options| options.schedule = ScheduleOptions { fuse: false } },
];

fn simplified(program: &Graph) -> Result<Graph, Diagnostics> {
    Ok(simplify(program, StopGradients::Drop)?.graph)
}

fn as_it_is(program: &Graph) -> Result<Graph, Diagnostics> {
    Ok(program.clone())
}

impl Level {
    /// Options of a compilation at this level.
    pub fn options(&self, target: Target) -> CompileOptions {
        let mut options = CompileOptions { target, ..CompileOptions::default() };
        (self.change)(&mut options);
        options
    }
}

//! Levels of optimisation at which every graph must mean the same: everything on, and less in every way that there is.
//!
//! What can be turned off stands in [`alip_compiler::SWITCHES`]; random graphs, planted faults and kept cases then run with
//! and without it.

use alip_compiler::diag::Diagnostics;
use alip_compiler::ir::{Graph, StopGradients, simplify};
use alip_compiler::transform::{self, Results, forward_program};
use alip_compiler::{CompileOptions, SWITCHES};
use alip_plan::Target;

use super::differentiated;

/// What a compilation may do.
pub struct Level {
    /// As one would ask for it: `no-fuse`.
    pub name: &'static str,
    /// Whether the program is simplified once it is differentiated, as that of a spec is.
    simplify: bool,
    /// The options, from those with everything on.
    change: fn(&mut CompileOptions),
}

/// All levels: everything on, without each thing that can be turned off, without all of them on the program as it stands.
pub fn levels() -> Vec<Level> {
    let all = Level { name: "all", simplify: true, change: |_| {} };
    let less = SWITCHES.iter().map(|switch| Level { name: switch.name, simplify: true, change: switch.off });
    let nothing = Level { name: "nothing", simplify: false, change: all_off };
    std::iter::once(all).chain(less).chain([nothing]).collect()
}

fn all_off(options: &mut CompileOptions) {
    SWITCHES.iter().for_each(|switch| (switch.off)(options));
}

impl Level {
    /// Options of a compilation at this level.
    pub fn options(&self, target: Target) -> CompileOptions {
        let mut options = CompileOptions { target, ..CompileOptions::default() };
        (self.change)(&mut options);
        options
    }

    /// The program that is compiled for a forward graph: rewritten, then differentiated, then simplified.
    ///
    /// # Errors
    /// A pass built a node its op refuses.
    pub fn program(&self, forward: &Graph, options: &CompileOptions) -> Result<Graph, Diagnostics> {
        let results = Results { values: forward.values.keys().cloned().collect() };
        let mut report = transform::Report::default();
        let rewritten = forward_program(forward, &results, &options.transform, &mut report)?;
        let program = differentiated(&rewritten)?;
        if !self.simplify {
            return Ok(program);
        }
        Ok(simplify(&program, StopGradients::Drop)?.graph)
    }
}

//! Levels of optimisation at which every graph must mean the same: everything on, and less in every way that there is.
//!
//! What can be turned off stands in [`alip_compiler::SWITCHES`]; random graphs, planted faults and kept cases then run with
//! and without it.

use alip_compiler::diag::Diagnostics;
use alip_compiler::ir::{Graph, Model, StopGradients, simplify};
use alip_compiler::transform::{self, Results, forward_program, pack_program};
use alip_compiler::{CompileOptions, SWITCHES};
use alip_plan::Target;

use super::{Case, differentiated};
use crate::compiled::model;

/// What a compilation may do.
pub struct Level {
    /// As one would ask for it: `no-fuse`.
    pub name: &'static str,
    /// Whether the program is simplified once it is differentiated, as that of a spec is.
    simplify: bool,
    /// The options, from those with everything on.
    change: fn(&mut CompileOptions),
}

/// All levels: everything on, without each thing that can be turned off, without all of them.
pub fn levels() -> Vec<Level> {
    let all = Level { name: "all", simplify: true, change: |_| {} };
    // Every other one leaves simplification out: rules of the optimiser meet what would be folded before they see it.
    let less = (SWITCHES.iter().enumerate()).map(|(at, switch)| Level {
        name: switch.name,
        simplify: at % 2 == 1,
        change: switch.off,
    });
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

    /// The model that is compiled for a case, as for a spec: its forward graph is rewritten, its rows are packed, then each
    /// program is differentiated and simplified. Beside it what the rewrites did.
    ///
    /// # Errors
    /// A pass built a node its op refuses.
    pub fn model(&self, case: &Case, options: &CompileOptions) -> Result<(Model, transform::Report), Diagnostics> {
        let results = Results { values: case.graph.values.keys().cloned().collect() };
        let mut report = transform::Report::default();
        let forward = forward_program(&case.graph, &results, &options.transform, &mut report)?;
        let packed =
            pack_program(&forward, &results, &options.transform, &options.target.packing.untrained, &mut report)?;
        let Some((whole, mut packed)) = packed else {
            return Ok((model("random", &self.finished(&forward)?, &case.state), report));
        };
        for (_, graph) in &mut packed.fewer {
            *graph = self.finished(graph)?;
        }
        let whole = self.finished(&whole)?;
        let mut model = model("random", &whole, &case.state);
        model.packed.insert(whole.name, packed);
        Ok((model, report))
    }

    fn finished(&self, forward: &Graph) -> Result<Graph, Diagnostics> {
        let program = differentiated(forward)?;
        if !self.simplify {
            return Ok(program);
        }
        Ok(simplify(&program, StopGradients::Drop)?.graph)
    }
}

//! What commands on weights ask the compiler about graphs.

use std::collections::BTreeSet;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::Model;
use alip_compiler::resolve::{Options, resolve};
use alip_runtime::weights::Wanted;

use crate::model::rendered;
use crate::{Failure, Outcome};

/// A graph as it is written, for what is asked of it.
pub(crate) struct Graph {
    model: Model,
}

impl Graph {
    /// The graph of a spec by name or path; `files` in memory come before those on disk.
    pub(crate) fn of(spec: &str, options: &Options) -> Outcome<Graph> {
        let mut sources = SourceMap::new();
        let resolved = resolve(&mut sources, spec, options);
        let resolved = resolved.map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
        Ok(Graph { model: resolved.model })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.model.name
    }

    /// Parameters and states.
    pub(crate) fn wanted(&self) -> Vec<Wanted> {
        let states = self.model.state.iter();
        let wanted = states.map(|(path, state)| Wanted {
            path: path.clone(),
            kind: state.kind,
            dtype: state.ty.dtype,
            shape: state.ty.shape.sizes(),
        });
        wanted.collect()
    }

    /// Modules applied in the mlps of a tower's blocks between their linear layers, by the program that runs the tower.
    pub(crate) fn activations(&self, program: &str) -> BTreeSet<String> {
        let Some(graph) = self.model.programs.get(program) else { return BTreeSet::new() };
        let of_mlp = |origin: &alip_compiler::ir::Origin| {
            let path = origin.path.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(".mlp"));
            (path && &*origin.module != "linear").then(|| origin.module.to_string())
        };
        graph.nodes().iter().filter_map(|node| of_mlp(&graph.origins()[node.origin.0 as usize])).collect()
    }
}

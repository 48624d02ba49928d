//! What commands on weights ask the compiler about graphs.

use std::collections::BTreeSet;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Model, Node, Origin};
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

    /// Modules that a program is made of, sorted; without the graph itself.
    pub(crate) fn modules(&self, program: &str) -> Vec<String> {
        let applied = self.nodes(program).filter(|(_, origin)| !origin.path.is_empty());
        let modules: BTreeSet<String> = applied.map(|(_, origin)| origin.module.to_string()).collect();
        modules.into_iter().collect()
    }

    /// Modules applied in the mlps of a tower's blocks between their linear layers, by the program that runs the tower.
    pub(crate) fn activations(&self, program: &str) -> BTreeSet<String> {
        let is_of_mlp = |path: &str| path.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(".mlp"));
        let applied = self.nodes(program).filter(|(_, origin)| is_of_mlp(&origin.path) && &*origin.module != "linear");
        applied.map(|(_, origin)| origin.module.to_string()).collect()
    }

    /// Heads of the attention of a program that has one tower, whose attention has this width: what a head reads of each position
    /// is the last dimension where heads lie apart, in a transformer beside the three projections, in a ResNet's pooling beside the
    /// positions.
    pub(crate) fn heads(&self, program: &str, width: u64) -> Option<u64> {
        let apart = [("multihead_attention", 5), ("attention_pool", 4)];
        let of_head = self.nodes(program).filter_map(|(node, origin)| {
            let is_apart =
                apart.iter().any(|&(module, rank)| *module == *origin.module && node.ty.shape.rank() == rank);
            is_apart.then(|| node.ty.shape.size(node.ty.shape.rank() - 1))
        });
        of_head.min().and_then(|head| width.checked_div(head))
    }

    /// Nodes of a program with where they come from.
    fn nodes(&self, program: &str) -> impl Iterator<Item = (&Node, &Origin)> {
        let graph = self.model.programs.get(program);
        graph.into_iter().flat_map(|graph| graph.ids().map(|id| (graph.node(id), graph.origin(id))))
    }
}

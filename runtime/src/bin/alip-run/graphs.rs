//! What commands on weights ask the compiler about graphs.

use std::collections::BTreeSet;

use alip_compiler::diag::SourceMap;
use alip_compiler::diff::beyond;
use alip_compiler::ir::{Model, Node, Op, Origin, StopGradients, describe, simplify};
use alip_compiler::resolve::{Options, resolve};
use alip_plan::pipeline::{Normalization, Pipeline, Vocab};
use alip_runtime::eval::{ENCODE_IMAGE, ENCODE_TEXT, normalization, vocabulary};
use alip_runtime::run::SpecSources;
use alip_runtime::weights::{Known, Wanted, Weights};

use crate::model::rendered;
use crate::{Failure, Outcome};

/// A graph as it is written, for what is asked of it.
pub(crate) struct Graph {
    model: Model,
    pipeline: Option<Pipeline>,
}

impl Graph {
    /// The graph of a spec by name or path; `files` in memory come before those on disk.
    pub(crate) fn of(spec: &str, options: &Options) -> Outcome<Graph> {
        let mut sources = SourceMap::new();
        let resolved = resolve(&mut sources, spec, options);
        let resolved = resolved.map_err(|errors| Failure::rendered(rendered(&errors, &sources)))?;
        Ok(Graph { model: resolved.model, pipeline: resolved.pipeline })
    }

    /// What a plan was compiled from.
    pub(crate) fn of_sources(from: &SpecSources) -> Outcome<Graph> {
        let options =
            Options { batch: from.batch, set: from.set.clone(), files: from.files.clone(), ..Default::default() };
        Graph::of(&from.spec, &options)
    }

    /// How its own pipeline normalises the images that it embeds.
    pub(crate) fn normalization(&self) -> Option<Normalization> {
        normalization(self.pipeline.as_ref()?, self.input(ENCODE_IMAGE)?)
    }

    /// The vocabulary of the texts of its own pipeline.
    pub(crate) fn vocabulary(&self) -> Option<Vocab> {
        vocabulary(self.pipeline.as_ref()?, self.input(ENCODE_TEXT)?)
    }

    /// The first input of a program.
    fn input(&self, program: &str) -> Option<&str> {
        self.nodes(program).find_map(|(node, _)| match &node.op {
            Op::Input { name, .. } => Some(&**name),
            _ => None,
        })
    }

    /// What weights were trained with and this graph has otherwise, a sentence each, of the towers of images and texts to which they
    /// come: shapes do not tell it.
    pub(crate) fn differences(&self, weights: &Weights, known: &Known, towers: [bool; 2]) -> Vec<String> {
        let Some(source) = &known.source else { return Vec::new() };
        let widths = weights.shapes().ok().map(|shapes| [shapes.vision.attention(), shapes.text.width]);
        let mut all = Vec::new();
        let of = [(ENCODE_IMAGE, "images", &known.vision), (ENCODE_TEXT, "texts", &known.text)];
        for (at, (program, of, tower)) in of.into_iter().enumerate().filter(|(at, _)| towers[*at]) {
            let own = self.activations(program);
            if let Some(act) = tower.act.as_ref().filter(|act| !own.is_empty() && !own.contains(*act)) {
                let own = own.into_iter().collect::<Vec<_>>().join(", ");
                all.push(format!(
                    "the tower of {of} has the activation {own}, but {source} says {act}: features will differ"
                ));
            }
            let own = widths.and_then(|widths| self.heads(program, widths[at]));
            if let (Some(own), Some(heads)) = (own, tower.heads)
                && own != heads
            {
                all.push(format!("the tower of {of} has {own} heads, but {source} says {heads}: features will differ"));
            }
        }
        if towers[0] {
            all.extend(known.normalized_otherwise(self.normalization().as_ref()));
        }
        all
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

    /// Samples of a batch of a program, by its first input.
    pub(crate) fn batch(&self, program: &str) -> Option<u64> {
        self.nodes(program).find_map(|(node, _)| match &node.op {
            Op::Input { ty, .. } if ty.shape.rank() > 0 => Some(ty.shape.size(0)),
            _ => None,
        })
    }

    /// What a program computes that the one of another graph does not, with where it stands; or a parameter that only the other reads.
    pub(crate) fn beyond(&self, other: &Graph, program: &str) -> Option<String> {
        let plain = |graph: &Graph| Some(simplify(graph.model.programs.get(program)?, StopGradients::Drop).ok()?.graph);
        let (own, theirs) = (plain(self)?, plain(other)?);
        if let Some(id) = beyond(&own, &theirs) {
            let path = &own.origin(id).path;
            let place = if path.is_empty() { "outside of all modules".into() } else { format!("in `{path}`") };
            return Some(format!("`{}` {place}", describe(&own, id)));
        }
        let read = |graph: &alip_compiler::ir::Graph| -> BTreeSet<String> {
            let paths = graph.nodes().iter().filter_map(|node| match &node.op {
                Op::State { path, .. } => Some(path.to_string()),
                _ => None,
            });
            paths.collect()
        };
        read(&theirs).difference(&read(&own)).next().map(|path| format!("its results without `{path}`"))
    }

    /// Nodes of a program with where they come from.
    fn nodes(&self, program: &str) -> impl Iterator<Item = (&Node, &Origin)> {
        let graph = self.model.programs.get(program);
        graph.into_iter().flat_map(|graph| graph.ids().map(|id| (graph.node(id), graph.origin(id))))
    }
}

//! Prefix liveness with packing (rewrite `packing`).
//!
//! A causal transformer that is read at one position per sample, `gather(h, e)`, computes positions after `e[n]` for
//! nobody: a position influences later ones only, and of those only position `e[n]` is read. So sample `n` has
//! `e[n] + 1` live rows, usually a small part of its context. This rewrite gives the rows of all samples one axis of `P`
//! rows instead of two of `N` samples and `T` positions:
//!
//! | as written | packed |
//! |---|---|
//! | a value `[N, T, ..]` computed row by row | the same op on `[P, ..]` |
//! | causal self-attention | attention within segments of rows |
//! | attention with one query per sample over `e + 1` keys | segments with one query |
//! | an input, embedding ids `[N, T]` | its rows, picked by index among `N * T` |
//! | noise `[N, T, ..]` | drawn for its rows, each element by the counter that it has among all |
//! | `[T, ..]` repeated over samples (position embeddings) | picked by position |
//! | `[N, ..]` repeated over positions | picked by sample |
//! | `gather(h, e)` | the last row of each segment |
//!
//! Gradients follow from these by differentiation: what was picked by index is added up by index.
//!
//! The rewrite is found from the reads. An index `e` that is computed from inputs of the program by integer operations is
//! known before the program runs. From everything it reads at that index, the walk goes back to what that is computed from,
//! as long as every op works row by row along samples and positions ([`crate::ops::axes`]) or is causal attention, and as long
//! as nobody else reads the value: a second reader may want the dead rows. It ends at inputs, at what does not vary along one
//! of the two axes, and at parameters. If it meets anything else the program is left as it is, and the reason is kept.
//!
//! The number of live rows is known when a batch is there, programs have fixed shapes: the rewrite is a function of `P`,
//! and a program is compiled for a few of them ([`buckets`], [`alip_plan::packing`]). Rows of padding repeat the first row
//! of the first sample in segments of their own, so they are numbers like any others, and since nothing reads them, what
//! they receive as gradient is zero and what they give is zero.

mod buckets;
mod region;
mod rewrite;

pub use buckets::buckets;

use alip_plan::Spacing;
use alip_plan::packing::{Group, lengths_output};

use super::{Applied, analysis};
use crate::diag::Diagnostics;
use crate::ir::{Builder, DType, Graph, NodeId, OriginId, PackedGraphs, Shape, TensorType};
use crate::ops::{Op, OpError};
use region::Region;

/// Name of the rewrite.
pub const PACKING: &str = "packing";

/// What can be packed of a program.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Regions that read their samples at different indices; each has rows of its own.
    regions: Vec<Region>,
    /// Reads at an index per sample whose rows cannot be packed.
    pub stopped: Vec<Stopped>,
}

/// A read at one position per sample that is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Where the read is, and what stands in the way there: `text.resblocks.3.attn`.
    pub at: String,
    /// Why.
    pub why: String,
}

/// Finds what can be packed; `kept` are values that something outside of the program reads, besides its results.
pub fn find(graph: &Graph, kept: &[NodeId]) -> Found {
    let mut found = Found::default();
    for reads in region::reads(graph) {
        match region::walk(graph, &reads, kept) {
            Ok(Some(region)) => found.regions.push(region),
            Ok(None) => {}
            Err(stopped) => found.stopped.push(stopped),
        }
    }
    found
}

impl Found {
    /// Whether there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Samples whose rows are packed together.
    pub fn groups(&self) -> Vec<Group> {
        self.regions.iter().map(|region| region.group).collect()
    }

    /// The program with so many rows of each group.
    ///
    /// # Errors
    /// A node that its op refuses: a fault of this rewrite.
    pub fn pack(&self, graph: &Graph, rows: &[u64]) -> Result<Graph, Diagnostics> {
        rewrite::rewrite(graph, &self.regions, rows).map_err(|error| analysis::fault(graph, PACKING, &error))
    }

    /// The program that computes the lengths of each group from inputs of the program.
    ///
    /// # Errors
    /// As [`Found::pack`].
    pub fn lengths(&self, graph: &Graph) -> Result<Graph, Diagnostics> {
        self.length_graph(graph).map_err(|error| analysis::fault(graph, PACKING, &error))
    }

    fn length_graph(&self, graph: &Graph) -> Result<Graph, OpError> {
        let mut wanted = vec![false; graph.nodes().len()];
        self.regions.iter().for_each(|region| wanted[region.index.index()] = true);
        for id in graph.ids().rev().filter(|id| wanted[id.index()]).collect::<Vec<_>>() {
            mark(graph, id, &mut wanted);
        }
        let mut new = graph.successor();
        new.name = alip_plan::packing::PROGRAM_LENGTHS.into();
        let mut map = vec![NodeId(0); wanted.len()];
        for id in graph.ids().filter(|id| wanted[id.index()]) {
            let node = graph.node(id);
            let inputs = node.inputs.iter().map(|input| map[input.index()]).collect();
            map[id.index()] = new.copy(graph, id, inputs)?;
            if let Op::Input { name, .. } = &node.op {
                new.inputs.insert(name.to_string(), map[id.index()]);
            }
        }
        for (number, region) in self.regions.iter().enumerate() {
            let Group { samples, context } = region.group;
            let mut b = Builder::new(&mut new, OriginId::default());
            // Limited before one is added, so that no index overflows.
            let index = b.reshape(map[region.index.index()], Shape::from([samples]))?;
            let ty = TensorType::new(DType::I32, [samples]);
            let (last, one) = (b.full(context as f64 - 1.0, &ty)?, b.full(1.0, &ty)?);
            let index = b.min(index, last)?;
            let length = b.add(index, one)?;
            new.outputs.insert(lengths_output(number), length);
        }
        Ok(new)
    }
}

fn mark(graph: &Graph, id: NodeId, wanted: &mut [bool]) {
    for input in &graph.node(id).inputs {
        if !std::mem::replace(&mut wanted[input.index()], true) {
            mark(graph, *input, wanted);
        }
    }
}

/// The program for all rows, and those for fewer; none when it cannot be packed.
///
/// # Errors
/// As [`Found::pack`].
pub fn pack(graph: &Graph, found: &Found, spacing: &Spacing) -> Result<Option<(Graph, PackedGraphs)>, Diagnostics> {
    if found.is_empty() {
        return Ok(None);
    }
    let groups = found.groups();
    let lengths = found.lengths(graph)?;
    let sized = |rows: Vec<u64>| found.pack(graph, &rows).map(|graph| (rows, graph));
    let mut fewer = buckets(&groups, spacing).into_iter().map(sized).collect::<Result<Vec<_>, Diagnostics>>()?;
    let whole = fewer.pop().map(|(_, graph)| graph);
    Ok(whole.map(|whole| (whole, PackedGraphs { groups, lengths, fewer })))
}

/// What packing gives at a fifth of the rows, which captions have.
pub(super) fn gain(graph: &Graph, packed: &PackedGraphs) -> Applied {
    let whole: u64 = packed.groups.iter().map(|group| group.samples * group.context).sum();
    let total = |rows: &Vec<u64>| rows.iter().sum::<u64>();
    let fifth = packed.fewer.iter().find(|(rows, _)| 5 * total(rows) >= whole);
    let (rows, typical) = fifth.map_or((whole, graph), |(rows, graph)| (total(rows), graph));
    let places = vec![format!("with {rows} of {whole} rows; {} programs", packed.fewer.len() + 1)];
    let (before, after) = (analysis::cost(graph), analysis::cost(typical));
    Applied { rewrite: PACKING, program: graph.name.clone(), places, before, after }
}

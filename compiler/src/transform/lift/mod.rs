//! Finds what a forward graph means where it is written out in primitives, and says so with semantic ops.
//!
//! Recognition is by analysis of the graph: what is computed along which axes, never names of modules or forms of a
//! particular spelling. It works on a graph in normal form ([`crate::ir::simplify`]) and changes neither values nor
//! gradients, up to the order of sums. Named values of the body that lay inside of what was lifted are gone, unless
//! something reads them: then nothing is lifted there.
//!
//! What looks like a semantic op but is none is reported with the reason ([`Missed`]).

mod attention;
mod axes;
mod known;
mod mask;
mod norms;
mod softmax;

use self::known::Known;
use super::{Report, Results, fault, tidy};
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ir::{Builder, Graph, NodeId, Origin};
use crate::ops::Op;

/// Everything that is lifted, as [`Lifted::what`] says it.
pub const NAMES: [&str; 6] =
    [ATTENTION, "softmax", "logsumexp", "layer_norm", "cross_entropy", "diagonal of a product"];
const ATTENTION: &str = "attention";

/// What was lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifted {
    /// Program.
    pub program: String,
    /// Where it stood.
    pub origin: Origin,
    /// What it is now: `attention`.
    pub what: &'static str,
}

/// What looks like a semantic op and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Program.
    pub program: String,
    /// Where it stands.
    pub origin: Origin,
    /// What it looks like: `attention`.
    pub like: &'static str,
    /// What stopped it.
    pub why: String,
}

/// What a node turned out to be.
enum Found {
    Attention(Box<attention::Site>),
    Norm(norms::Meaning),
}

/// The program with semantic ops, where it computes what they mean.
///
/// # Errors
/// The pass built a node that its op refuses: a fault of this pass.
pub(super) fn lift(graph: &Graph, results: &Results, report: &mut Report) -> Result<Graph, Diagnostics> {
    let graph = tidy(graph, |_| true)?;
    let ends = results.nodes(&graph);
    let known = Known::new(&graph, &ends);
    let mut found = HashMap::default();
    for id in graph.ids().filter(|id| known.live[id.index()]) {
        match &graph.node(id).op {
            Op::Dot(_) => match attention::site(&known, id) {
                Some(Ok(site)) => drop(found.insert(id, Found::Attention(Box::new(site)))),
                Some(Err(why)) => {
                    let (program, origin) = (graph.name.clone(), graph.origin(id).clone());
                    report.missed.push(Missed { program, origin, like: ATTENTION, why });
                }
                None => {}
            },
            _ => drop(known.norm(id).map(|norm| found.insert(id, Found::Norm(norm)))),
        }
    }
    let mut new = graph.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let added = match found.get(&id) {
            Some(Found::Attention(site)) => site.write(&mut Builder::new(&mut new, node.origin), &map),
            Some(Found::Norm(norm)) => norm.write(&known, &mut Builder::new(&mut new, node.origin), &map),
            None => {
                let inputs = node.inputs.iter().map(|input| map[input.index()]).collect();
                new.copy(&graph, id, inputs)
            }
        };
        map.push(added.map_err(|error| fault("lift", &graph, id, &error))?);
    }
    new.take_names(&graph, |id| Some(map[id.index()]));
    // Values that only what was lifted had in between.
    let needed = new.live(&results.nodes(&new));
    for id in graph.ids().filter(|id| needed[map[id.index()].index()]) {
        let what = match found.get(&id) {
            Some(Found::Attention(_)) => ATTENTION,
            Some(Found::Norm(norm)) => norm.name(),
            None => continue,
        };
        report.lifted.push(Lifted { program: graph.name.clone(), origin: graph.origin(id).clone(), what });
    }
    let gone = |name: &str| {
        let before = graph.values.get(name).is_some_and(|id| known.live[id.index()]);
        before && !new.values.get(name).is_some_and(|id| needed[id.index()])
    };
    tidy(&new, |name| !gone(name))
}

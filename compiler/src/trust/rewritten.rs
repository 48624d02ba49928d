//! Whether the graph that is scheduled still means what the program meant.
//!
//! Both are interpreted in f64, so that no device takes part: what differs by more than the rounding of f64 was rewritten
//! wrongly. The first wrong node is found by asking for nodes in the place of the program's own results, part by part.

use alip_plan::bounds::{Violation, assert_within_each};

use super::sensitivity::{Constants, sampled};
use super::trace::name_of;
use super::{Judged, Values};
use crate::compile::{CompileOptions, compile_model};
use crate::diag::Diagnostics;
use crate::ir::{Graph, Model, NodeId};

/// Parts that a range of nodes is cut into; each costs a compilation.
const PARTS: usize = 16;

/// Results of a program that a compilation changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewritten {
    /// The first node of the program, in its order, that comes out wrong; none if nodes are right as soon as they are asked for.
    pub node: Option<NodeId>,
    /// The name of a result of the program that is wrong, and how.
    pub result: (String, Violation),
}

/// What the passes before the schedule make wrong of a program over the model's state, if anything.
///
/// # Errors
/// Those of the compiler, or inputs and state that are not the program's.
pub fn rewritten(
    model: &Model,
    plain: &Graph,
    options: &CompileOptions,
    inputs: &Values,
    state: &Values,
) -> Result<Option<Rewritten>, Diagnostics> {
    let Some(result) = changed(model, plain, options, inputs, state)? else { return Ok(None) };
    let asked = Asked { model, options, inputs, state };
    let mut suspects: Vec<NodeId> = plain.ids().filter(|id| !plain.node(*id).inputs.is_empty()).collect();
    while suspects.len() > 1 {
        let size = suspects.len().div_ceil(PARTS);
        let mut guilty = None;
        for part in suspects.chunks(size) {
            if asked.wrong(&yielding(plain, part))?.is_some() {
                guilty = Some(part.to_vec());
                break;
            }
        }
        let Some(guilty) = guilty else { return Ok(Some(Rewritten { node: None, result })) };
        suspects = guilty;
    }
    Ok(Some(Rewritten { node: suspects.first().copied(), result }))
}

/// The same without the search for the node, which takes a compilation per part: a result of the program that is wrong, and how.
///
/// # Errors
/// As [`rewritten`].
pub fn changed(
    model: &Model,
    plain: &Graph,
    options: &CompileOptions,
    inputs: &Values,
    state: &Values,
) -> Result<Option<(String, Violation)>, Diagnostics> {
    Asked { model, options, inputs, state }.wrong(plain)
}

/// The program with some nodes as its results.
fn yielding(plain: &Graph, nodes: &[NodeId]) -> Graph {
    let mut graph = plain.clone();
    graph.updates.clear();
    graph.values.clear();
    graph.outputs = nodes.iter().map(|id| (name_of(*id), *id)).collect();
    graph
}

struct Asked<'a> {
    model: &'a Model,
    options: &'a CompileOptions,
    inputs: &'a Values,
    state: &'a Values,
}

impl Asked<'_> {
    /// A result that the compilation of a program changes.
    fn wrong(&self, program: &Graph) -> Result<Option<(String, Violation)>, Diagnostics> {
        let mut model = self.model.clone();
        model.packed.clear();
        model.programs.retain(|_, _| false);
        model.programs.insert(program.name.clone(), program.clone());
        let options = CompileOptions { explain: true, stop_after: None, dump: Vec::new(), ..self.options.clone() };
        let compiled = compile_model(&model, None, &options)?;
        let Some(trace) = compiled.traces.get(&program.name) else { return Ok(None) };
        let before = sampled(program, self.inputs, self.state, Constants::Rounded)?;
        let after = sampled(&trace.graph, self.inputs, self.state, Constants::Rounded)?;
        let wrong = before.into_iter().find_map(|(name, Judged { value, bounds })| {
            // A state whose new value is its old one has no update any more.
            let after = after.get(&name)?;
            let both: Vec<f64> = bounds.iter().zip(&after.bounds).map(|(a, b)| a + b).collect();
            Some((name, assert_within_each(&after.value, &value, &both).err()?))
        });
        Ok(wrong)
    }
}

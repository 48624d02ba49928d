//! Differential fuzzing: random graphs, compiled at every level of optimisation and run on every device, against the f64
//! interpreter, within bounds that are derived element by element ([`alip_compiler::trust::rounding`]).
//!
//! - [`random_case`] makes a graph and what it runs on from a seed: [`maker`] holds what there is to go on with, `steps` has
//!   one file per family of ops. A [`Case`] is the forward graph; gradients are taken at each level, behind what the level
//!   does to the forward graph.
//! - [`levels`] lists the levels of optimisation. A new pass that can be turned off is one more line there.
//! - [`judge`] says what must come out, and whether it did; `gradient` asks finite differences, since gradients that are wrong
//!   would be equally wrong at every level; [`campaign`] does so for many seeds in parallel and counts hits.
//! - [`shrink`] makes a failing case small, [`text`] keeps it as a file (`tests/fuzz/`), which a test replays.

pub mod campaign;
mod draws;
mod gradient;
pub mod judge;
pub mod levels;
pub mod maker;
mod rebuild;
pub mod shrink;
mod steps;
pub mod text;

use alip_compiler::autodiff::gradients;
use alip_compiler::diag::Diagnostics;
use alip_compiler::ir::{Builder, DType, Graph, Node, Origin, OriginId};
use alip_compiler::ops::Op;

use crate::compiled::Values;
pub use maker::random_case;

/// Named value of a forward graph that is to be differentiated.
pub const LOSS: &str = "loss";
/// Prefix of the named values whose gradients are wanted; the rest is the name of the result.
const GRADIENT: &str = "gradient of ";
/// The same for states that shall go a step against their gradient.
const DESCENT: &str = "descent of ";
/// How far: a power of two, so that the step itself adds one rounding, that of the difference.
const DESCENT_RATE: f64 = 0.125;

/// A forward graph and what it runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The graph. Its named values say what is to be differentiated, see [`differentiated`].
    pub graph: Graph,
    /// Inputs by name.
    pub inputs: Values,
    /// State by path.
    pub state: Values,
}

impl Case {
    /// Whether an input or a constant is NaN or an infinity, of which WGSL promises nothing.
    pub fn is_wild(&self) -> bool {
        let constant = |node: &Node| matches!(node.op, Op::Const { value, .. } if !value.0.is_finite());
        let values = self.inputs.values().chain(self.state.values());
        values.flat_map(|value| &value.data).any(|x| !x.is_finite()) || self.graph.nodes().iter().any(constant)
    }
}

/// The program that a forward graph asks for with its named values: the gradients of `loss` with respect to each
/// `gradient of NAME` are outputs, and each `descent of PATH` is a state that goes a step down.
///
/// # Errors
/// Those of differentiation.
pub fn differentiated(forward: &Graph) -> Result<Graph, Diagnostics> {
    let mut graph = forward.clone();
    let wishes = std::mem::take(&mut graph.values);
    let Some(loss) = wishes.get(LOSS) else { return Ok(graph) };
    let (names, wrt): (Vec<&String>, Vec<_>) = wishes.iter().filter(|(name, _)| *name != LOSS).unzip();
    let found = gradients(&mut graph, *loss, &wrt)?;
    for ((name, variable), gradient) in names.into_iter().zip(wrt).zip(found) {
        let shape = graph.shape(variable).clone();
        let mut b = Builder::new(&mut graph, OriginId(0));
        let gradient = match gradient {
            Some(gradient) => Ok(gradient),
            // A rewrite may find that the loss does not depend on it.
            None => b.scalar(0.0).and_then(|zero| b.broadcast_to(zero, &shape)),
        };
        let gradient = gradient.map_err(|error| error.diagnose(&Origin::default()))?;
        let Some(path) = name.strip_prefix(DESCENT) else {
            graph.outputs.insert(name.clone(), gradient);
            continue;
        };
        // In f32, as an optimiser does it, and rounded where the new value is made.
        let dtype = b.graph.ty(variable).dtype;
        let stepped = b.cast(variable, DType::F32).and_then(|old| {
            let rate = b.scalar(DESCENT_RATE)?;
            let step = b.mul(gradient, rate)?;
            let new = b.sub(old, step)?;
            b.cast(new, dtype)
        });
        let stepped = stepped.map_err(|error| error.diagnose(graph.origin(variable)))?;
        graph.updates.insert(path.to_string(), stepped);
    }
    Ok(graph)
}

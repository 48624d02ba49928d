//! The graph that every compiler pass reads and returns.
//!
//! Contract of a [`Graph`]:
//! - Nodes are in topological order: a node's inputs have smaller ids. Operand order lives in the node.
//! - Every node has a type that equals what its op infers from its inputs' types; `verify` tests it after each pass.
//! - Shapes are explicit: pointwise ops take equal shapes, broadcasting is an op of its own.
//! - Every node has an origin: the application of a module (a node path) and the place in a spec it came from. Passes
//!   hand origins on; autodiff gives a gradient the origin of what it differentiates.
//! - Nothing in a graph is mutable: state is read by [`crate::ops::Op::State`] and replaced by an entry of
//!   [`Graph::updates`].
//!
//! A [`Model`] is the set of programs of one spec over one state. There are no devices, kernels or byte sizes here.

mod builder;
mod einsum;
mod graph;
mod interpret;
mod parse;
mod print;
mod simplify;
mod types;
mod verify;

pub use builder::{Builder, Subscript};
pub use graph::*;
pub use interpret::*;
pub use parse::{ParseError, parse};
pub use print::{describe, print};
pub(crate) use simplify::commutes;
pub use simplify::{Simplified, StopGradients, eliminate_dead, simplify};
pub use types::*;
pub use verify::{verify, verify_model};

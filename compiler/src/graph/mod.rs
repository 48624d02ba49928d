//! Graphs as data: types, operations, programs, models. What operations mean is in [`crate::ops`], what can be done with any
//! graph in [`crate::ir`], which gives these names too.
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

mod op;
mod program;
mod types;
mod value;

pub use op::*;
pub use program::*;
pub use types::*;
pub use value::Value;

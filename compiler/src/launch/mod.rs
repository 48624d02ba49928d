//! What one launch reads, writes and computes: what the schedule decides on, code generation makes, and both and the e-graph
//! reckon with.
//!
//! - [`cost`]: the time that a launch is predicted to take; [`traffic`]: the bytes that it moves.
//! - [`neighbours`]: state tensors that lie one after another, so that a launch reads them as one.
//! - [`trace`]: which values of a graph the steps of a program read and write.
//!
//! Nothing here knows how launches come about.

mod cost;
mod neighbours;
pub mod trace;
mod traffic;

use std::collections::BTreeMap;

use alip_plan::kernel::Loop;

pub use self::cost::Cost;
pub(crate) use self::cost::{Effort, predict, seconds, weight};
pub use self::neighbours::Neighbours;
pub(crate) use self::neighbours::{adjoin, joined, path};
pub(crate) use self::traffic::bytes_moved;
use crate::ir::NodeId;

/// A kernel with the values it is applied to.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: Loop,
    /// By position; stored values and inputs and state of the program.
    pub(crate) operands: Vec<NodeId>,
    /// Operands that are several values, which lie one after another: by the operand, all of them.
    pub(crate) spans: BTreeMap<NodeId, Vec<NodeId>>,
    pub(crate) reads: Vec<NodeId>,
    pub(crate) writes: Vec<NodeId>,
    /// Pairs of a written and a read value which may share memory: the kernel reads an element only where and before it
    /// writes it.
    pub(crate) in_place: Vec<(NodeId, NodeId)>,
    /// Where the last value it stores is made.
    pub(crate) origin: String,
    pub(crate) flops: u64,
}

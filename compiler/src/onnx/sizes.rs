//! Which sizes of a graph grow with the batch.
//!
//! ONNX files take batches of any size, graphs have one. So a program is resolved for two batches, and what differs between the
//! two graphs is what depends on the batch: a size must be a multiple of it, or the same in both. Anything else that differs, such
//! as a constant, is a program that knows how many samples there are, and is refused.

use super::OnnxError;
use crate::ir::{Graph, NodeId, Op};

/// A size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// The same for every batch.
    Fixed(u64),
    /// So many times the batch.
    Batches(u64),
}

/// A program for two batches.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) first: &'a Graph,
    pub(super) second: &'a Graph,
    pub(super) batches: (u64, u64),
}

impl Pair<'_> {
    /// Checks that both are the same but for sizes.
    pub(super) fn check(&self) -> Result<(), OnnxError> {
        if self.first.nodes().len() != self.second.nodes().len() {
            return Err(self.differs(None));
        }
        for id in self.first.ids() {
            let (one, other) = (self.first.node(id), self.second.node(id));
            let same = one.inputs == other.inputs
                && one.ty.dtype == other.ty.dtype
                && match (&one.op, &other.op) {
                    (Op::Input { name, .. }, Op::Input { name: other, .. }) => name == other,
                    (Op::Reshape { .. }, Op::Reshape { .. }) => true,
                    (Op::Broadcast { dims, .. }, Op::Broadcast { dims: other, .. }) => dims == other,
                    (Op::Iota { axis, .. }, Op::Iota { axis: other, .. }) => axis == other,
                    (Op::Slice { start, step, .. }, Op::Slice { start: other, step: steps, .. }) => {
                        start == other && step == steps
                    }
                    (one, other) => one == other,
                };
            if !same {
                return Err(self.differs(Some(id)));
            }
            self.shape(id)?;
        }
        Ok(())
    }

    /// The shape of a node.
    pub(super) fn shape(&self, id: NodeId) -> Result<Vec<Size>, OnnxError> {
        let (first, second) = (self.first.shape(id), self.second.shape(id));
        if first.rank() != second.rank() {
            return Err(self.differs(Some(id)));
        }
        let sizes = first.0.iter().zip(&second.0);
        sizes.map(|(one, other)| self.size(one.size, other.size).ok_or_else(|| self.differs(Some(id)))).collect()
    }

    /// A size that is `one` in the first and `other` in the second.
    pub(super) fn size(&self, one: u64, other: u64) -> Option<Size> {
        if one == other {
            return Some(Size::Fixed(one));
        }
        let (batch, other_batch) = self.batches;
        let times = one / batch;
        (one == times * batch && other == times * other_batch).then_some(Size::Batches(times))
    }

    fn differs(&self, id: Option<NodeId>) -> OnnxError {
        let place = id.map_or_else(String::new, |id| self.first.origin(id).path.to_string());
        OnnxError::KnowsBatch { program: self.first.name.clone(), place }
    }
}

//! Operands of a kernel, by one scheme for all archetypes: a value is bound once, however many views of it there are, and
//! has its number from the first view that names it.

use alip_plan::kernel::View;
use indexmap::IndexSet;

use crate::diag::Diagnostic;
use crate::ir::NodeId;
use crate::schedule::{Groups, Layout};

/// The values that a kernel is applied to, in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Operands(IndexSet<NodeId>);

impl Operands {
    /// The number of a value.
    pub(super) fn bind(&mut self, value: NodeId) -> u16 {
        self.0.insert_full(value).0 as u16
    }

    /// The number of a value, if a view has named it.
    pub(super) fn number(&self, value: NodeId) -> Option<u16> {
        self.0.get_index_of(&value).map(|number| number as u16)
    }

    /// Values by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().copied()
    }

    /// The view of a value with one stride per dimension of its layout.
    ///
    /// # Errors
    /// A dimension needs several strides: grouping has admitted what this archetype cannot walk.
    pub(super) fn strided(&mut self, groups: &Groups<'_>, value: NodeId, layout: &Layout) -> Result<View, Diagnostic> {
        let strides = layout.strides().ok_or_else(|| groups.fault(value, "an operand without strides"))?;
        let (operand, dtype) = (self.bind(value), groups.graph.ty(value).dtype);
        Ok(View { operand, dtype, offset: layout.offset, strides, gather: None })
    }
}

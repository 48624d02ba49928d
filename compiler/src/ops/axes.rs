//! How dimensions pass through an op: along which of them it works row by row, and what becomes of it when the rows of all
//! samples are packed.
//!
//! An op is *row-wise* along a dimension of its result when each position there needs, of every operand, either the same
//! position along one dimension or the operand as a whole. Such an op commutes with picking positions and with joining
//! tensors along that dimension. Every op says so for every dimension of its result, or why not ([`No`]); the laws of the ops
//! hold it to that on numbers.

use smallvec::SmallVec;

use super::Op;
use crate::graph::{Dim, Shape, TensorType};

/// For each operand: the dimension that runs along with the result's, or none when it is read whole.
pub type Along = SmallVec<[Option<usize>; 3]>;

/// Why an op is not row-wise along a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct No(pub &'static str);

/// Along the same dimension of every operand.
pub(super) fn all(inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
    Ok(inputs.iter().map(|_| Some(axis)).collect())
}

/// Of two operands.
pub(super) fn two(first: Option<usize>, second: Option<usize>) -> Result<Along, No> {
    Ok(Along::from_slice(&[first, second]))
}

/// Along the dimensions of the result that a reduction along `axes` keeps.
pub(super) fn kept(inputs: &[&TensorType], axes: &[usize], axis: usize) -> Result<Along, No> {
    let mut kept = (0..inputs[0].shape.rank()).filter(|axis| !axes.contains(axis));
    all(inputs, kept.nth(axis).ok_or(No("the result has no such dimension"))?)
}

/// The dimension that is dimension `axis` of `to` before a reshape: of the same size, with as many elements before it.
pub(crate) fn same_place(from: &Shape, to: &Shape, axis: usize) -> Option<usize> {
    let before = |shape: &Shape, axis: usize| shape.0[..axis].iter().map(|dim| dim.size).product::<u64>();
    let elements = before(to, axis);
    (0..from.rank()).find(|place| from.size(*place) == to.size(axis) && before(from, *place) == elements)
}

/// The shape with another size along a dimension.
pub(super) fn with_size(shape: &Shape, axis: usize, size: u64) -> Shape {
    let mut shape = shape.clone();
    shape.0[axis] = Dim::from(size);
    shape
}

/// Where a value's dimensions of samples and positions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The dimension of samples.
    pub samples: usize,
    /// The dimension of positions.
    pub positions: usize,
}

impl Layout {
    /// That of `[N, T, ..]`.
    pub const FIRST: Layout = Layout { samples: 0, positions: 1 };

    /// Where a dimension is once rows have taken the place of samples; positions have none.
    pub fn packed(self, axis: usize) -> Option<usize> {
        (axis != self.positions).then(|| axis - usize::from(self.positions < axis))
    }

    /// Where the rows are.
    pub fn rows(self) -> usize {
        self.samples - usize::from(self.positions < self.samples)
    }

    /// The shape with so many rows in place of samples and positions.
    pub fn shape(self, shape: &Shape, rows: u64) -> Shape {
        let rows = Dim::named(rows, "rows");
        let dim = |(axis, dim): (usize, &Dim)| {
            let packed = if axis == self.samples { rows } else { *dim };
            (axis != self.positions).then_some(packed)
        };
        shape.0.iter().enumerate().filter_map(dim).collect()
    }
}

/// How an operand of a packed op follows the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// It has samples and positions.
    Rows(Layout),
    /// It has positions only, along this dimension.
    Positions(usize),
    /// It has samples only.
    Samples(usize),
    /// It has neither.
    Same,
}

/// How the operands of a packed op follow the rows.
pub type Operands = SmallVec<[Operand; 3]>;

/// What an op with a result of samples and positions is of packed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packs {
    /// Itself, with attributes for dimensions that are gone, where it is row-wise along samples and positions, and every
    /// operand has both or neither.
    Rows,
    /// As [`Packs::Rows`], and of operands that have one of the two, rows are picked.
    Repeats,
    /// Itself within the segments of rows that an operand more gives; all operands have samples and positions.
    Segments,
    /// Nothing.
    No(&'static str),
}

/// An application of an op to packed operands.
#[derive(Clone, Copy, Debug)]
pub struct PackedCall<'a> {
    /// Where samples and positions are in the result as it was.
    pub layout: Layout,
    /// How the operands follow the rows.
    pub operands: &'a [Operand],
    /// Shape of the result with rows.
    pub shape: &'a Shape,
}

impl PackedCall<'_> {
    /// Where a dimension of an operand is now; positions have none.
    pub(super) fn axis(&self, operand: usize, axis: usize) -> Option<usize> {
        match self.operands[operand] {
            Operand::Rows(from) => from.packed(axis),
            _ => Some(axis),
        }
    }

    /// Those of the first operand's dimensions that are left.
    pub(super) fn axes(&self, axes: &[usize]) -> Vec<usize> {
        axes.iter().filter_map(|axis| self.axis(0, *axis)).collect()
    }

    /// A number for each dimension of the result, with another one for the rows.
    pub(super) fn per_axis(&self, of: &[u64], of_rows: u64) -> Vec<u64> {
        let entry = |(axis, value): (usize, &u64)| {
            let value = if axis == self.layout.samples { of_rows } else { *value };
            (axis != self.layout.positions).then_some(value)
        };
        of.iter().enumerate().filter_map(entry).collect()
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.shape.size(self.layout.rows())
    }
}

impl Op {
    /// How the op works along dimension `axis` of its result.
    ///
    /// # Errors
    /// Why it is not row-wise there.
    pub fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        self.with(|op| op.along(inputs, axis))
    }

    /// The op with another size of its result along a dimension along which it is row-wise.
    pub fn resized(&self, axis: usize, size: u64) -> Op {
        self.with(|op| op.resized(axis, size)).unwrap_or_else(|| self.clone())
    }

    /// What the op is of packed rows, where `layout` says what it has them in place of.
    pub fn packs(&self, inputs: &[&TensorType], layout: Layout) -> Packs {
        self.with(|op| op.packs(inputs, layout))
    }

    /// The op of packed rows, if [`Op::packs`] says that there is one.
    pub fn packed(&self, call: &PackedCall<'_>) -> Op {
        self.with(|op| op.packed(call)).unwrap_or_else(|| self.clone())
    }
}

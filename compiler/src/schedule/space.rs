//! The iteration space of a group: rows, each over the points that are reduced.

use super::layout::Cuts;

/// Dimensions that are kept, then those that are reduced, and where accesses cut them.
///
/// Invariant: cuts are over the kept dimensions followed by the reduced ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Space {
    kept: Vec<u64>,
    reduced: Vec<u64>,
    cuts: Cuts,
}

impl Space {
    /// Uncut.
    pub(super) fn new(kept: Vec<u64>, reduced: Vec<u64>) -> Space {
        let cuts = Cuts::new(&[kept.as_slice(), &reduced].concat());
        Space { kept, reduced, cuts }
    }

    /// That of a product, `[batch.., m, n]`, whose rows and columns are never cut.
    pub(super) fn of_product(sizes: Vec<u64>) -> Space {
        let cuts = Cuts::frozen(&sizes, sizes.len().saturating_sub(2));
        Space { kept: sizes, reduced: Vec::new(), cuts }
    }

    /// Sizes of the dimensions that are kept.
    pub(crate) fn kept(&self) -> &[u64] {
        &self.kept
    }

    /// Sizes of the dimensions that are reduced.
    pub(crate) fn reduced(&self) -> &[u64] {
        &self.reduced
    }

    pub(crate) fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// Sizes of all dimensions.
    pub(crate) fn sizes(&self) -> Vec<u64> {
        [self.kept.as_slice(), &self.reduced].concat()
    }

    /// Number of rows; without reduced dimensions, of points.
    pub(super) fn rows(&self) -> u64 {
        self.kept.iter().product()
    }

    /// Number of points of all rows.
    pub(super) fn points(&self) -> u64 {
        self.kept.iter().chain(&self.reduced).product()
    }

    /// Points of a row.
    pub(super) fn row_length(&self) -> u64 {
        self.reduced.iter().product()
    }

    /// Whether both have the same dimensions, however they are cut.
    pub(super) fn is_like(&self, other: &Space) -> bool {
        self.kept == other.kept && self.reduced == other.reduced
    }

    /// The same points as rows that start at this kept dimension: the dimensions change their role, and stay.
    pub(super) fn split(&self, start: usize) -> Space {
        let (kept, row) = self.kept.split_at(start);
        Space { kept: kept.to_vec(), reduced: [row, &self.reduced].concat(), cuts: self.cuts.clone() }
    }

    /// The same points as rows over more dimensions.
    pub(super) fn over(&self, tail: &[u64]) -> Space {
        let reduced = [self.reduced.as_slice(), tail].concat();
        Space { kept: self.kept.clone(), reduced, cuts: self.cuts.extended(tail) }
    }

    /// Cuts the dimensions so; all accesses agree with these cuts.
    pub(super) fn refine(&mut self, cuts: Cuts) {
        self.cuts = cuts;
    }
}

//! How the values of a row become one: what a tile adds to a row's result, and how partial results join.
//!
//! Sums and products of floats over more than one tile are kept in f64; along kept dimensions they have two levels.

use alip_plan::DType;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Reduce, ReduceKind};

use super::isa::{FoldFn, Loops, RowFn};

/// Rows added up before they join the second level of a sum along kept dimensions.
pub(super) const LEVEL: usize = 32;

/// A reduction of a stage, with its loops.
pub(super) struct Folder {
    pub(super) kind: ReduceKind,
    float: bool,
    pub(super) slot: usize,
    row: RowFn,
    fold: FoldFn,
}

impl Folder {
    /// The folder of a reduction over values of a dtype.
    pub(super) fn new(reduce: &Reduce, dtype: DType, loops: &Loops) -> Folder {
        let (row, fold) = ((loops.row)(reduce.kind, dtype), (loops.fold)(reduce.kind, dtype));
        Folder { kind: reduce.kind, float: dtype == DType::F32, slot: reduce.slot as usize, row, fold }
    }

    /// The value of an empty row.
    pub(super) fn identity(&self) -> u32 {
        match (self.kind, self.float) {
            (ReduceKind::Sum, _) => 0,
            (ReduceKind::Prod, true) => 1f32.to_bits(),
            (ReduceKind::Prod, false) => 1,
            (ReduceKind::Max | ReduceKind::ArgMax, true) => f32::NEG_INFINITY.to_bits(),
            (ReduceKind::Max | ReduceKind::ArgMax, false) => i32::MIN as u32,
            (ReduceKind::Min, true) => f32::INFINITY.to_bits(),
            (ReduceKind::Min, false) => i32::MAX as u32,
        }
    }

    fn larger(&self, a: u32, b: u32) -> bool {
        if self.float { f32::from_bits(a) > f32::from_bits(b) } else { a as i32 > b as i32 }
    }

    /// A whole row.
    ///
    /// # Safety
    /// `values` has `lanes` lanes.
    pub(super) unsafe fn fold_row(&self, values: *const u32, lanes: usize) -> u32 {
        // SAFETY: passed on.
        unsafe {
            match self.kind {
                _ if lanes == 0 && self.kind != ReduceKind::ArgMax => self.identity(),
                ReduceKind::ArgMax => {
                    let mut total = Total::new(self);
                    total.add(self, values, lanes, 0);
                    total.index
                }
                _ if lanes > 16 && planted(Fault::LastLaneLost) => (self.row)(values, lanes - 1),
                _ => (self.row)(values, lanes),
            }
        }
    }
}

/// What a row has come to.
pub(super) struct Total {
    /// Sums and products of floats.
    wide: f64,
    /// Everything else.
    bits: u32,
    index: u32,
}

impl Total {
    pub(super) fn new(reduce: &Folder) -> Total {
        let wide = if reduce.kind == ReduceKind::Prod { 1.0 } else { 0.0 };
        Total { wide, bits: reduce.identity(), index: 0 }
    }

    fn is_wide(reduce: &Folder) -> bool {
        reduce.float && matches!(reduce.kind, ReduceKind::Sum | ReduceKind::Prod)
    }

    /// # Safety
    /// `values` has `lanes` lanes.
    pub(super) unsafe fn add(&mut self, reduce: &Folder, values: *const u32, lanes: usize, position: usize) {
        if lanes == 0 {
            return;
        }
        // SAFETY: passed on.
        unsafe {
            if reduce.kind == ReduceKind::ArgMax {
                for (lane, &value) in std::slice::from_raw_parts(values, lanes).iter().enumerate() {
                    if reduce.larger(value, self.bits) {
                        (self.bits, self.index) = (value, (position + lane) as u32);
                    }
                }
                return;
            }
            let bits = (reduce.row)(values, lanes);
            let wide = f64::from(f32::from_bits(bits));
            self.join(reduce, &Total { wide, bits, index: 0 });
        }
    }

    pub(super) fn join(&mut self, reduce: &Folder, other: &Total) {
        match reduce.kind {
            ReduceKind::Sum if reduce.float => self.wide += other.wide,
            ReduceKind::Prod if reduce.float => self.wide *= other.wide,
            ReduceKind::ArgMax => {
                if reduce.larger(other.bits, self.bits) {
                    (self.bits, self.index) = (other.bits, other.index);
                }
            }
            // SAFETY: one lane each.
            _ => unsafe { (reduce.fold)(&mut self.bits, &other.bits, 1) },
        }
    }

    pub(super) fn bits(&self, reduce: &Folder) -> u32 {
        match reduce.kind {
            ReduceKind::ArgMax => self.index,
            _ if Total::is_wide(reduce) => (self.wide as f32).to_bits(),
            _ => self.bits,
        }
    }
}

/// What the rows of a tile have come to, lane by lane.
pub(super) struct Columns {
    /// Up to `LEVEL` points, not yet in `total`.
    recent: Vec<u32>,
    pending: usize,
    pub(super) total: Vec<u32>,
    pub(super) index: Vec<u32>,
}

impl Columns {
    pub(super) fn new(reduce: &Folder, lanes: usize) -> Columns {
        let index = if reduce.kind == ReduceKind::ArgMax { lanes } else { 0 };
        let (recent, total) = (vec![reduce.identity(); lanes], vec![reduce.identity(); lanes]);
        Columns { recent, pending: 0, total, index: vec![0; index] }
    }

    /// # Safety
    /// `values` has as many lanes as the tile.
    pub(super) unsafe fn add(&mut self, reduce: &Folder, values: *const u32, point: usize) {
        let lanes = self.total.len();
        if reduce.kind == ReduceKind::ArgMax {
            // SAFETY: passed on.
            let values = unsafe { std::slice::from_raw_parts(values, lanes) };
            for ((&value, best), index) in values.iter().zip(&mut self.total).zip(&mut self.index) {
                if reduce.larger(value, *best) {
                    (*best, *index) = (value, point as u32);
                }
            }
            return;
        }
        // SAFETY: passed on; accumulators are apart from the values.
        unsafe { (reduce.fold)(self.recent.as_mut_ptr(), values, lanes) };
        self.pending += 1;
        if self.pending == LEVEL {
            self.flush(reduce);
        }
    }

    pub(super) fn flush(&mut self, reduce: &Folder) {
        if self.pending > 0 {
            // SAFETY: both have the lanes of the tile.
            unsafe { (reduce.fold)(self.total.as_mut_ptr(), self.recent.as_ptr(), self.total.len()) };
            self.recent.fill(reduce.identity());
            self.pending = 0;
        }
    }

    pub(super) fn join(&mut self, reduce: &Folder, other: &Columns) {
        if reduce.kind == ReduceKind::ArgMax {
            for (lane, (&value, &index)) in other.total.iter().zip(&other.index).enumerate() {
                if reduce.larger(value, self.total[lane]) {
                    (self.total[lane], self.index[lane]) = (value, index);
                }
            }
            return;
        }
        // SAFETY: parts of a tile have the same lanes.
        unsafe { (reduce.fold)(self.total.as_mut_ptr(), other.total.as_ptr(), self.total.len()) };
    }
}

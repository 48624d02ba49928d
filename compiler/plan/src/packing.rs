//! Packed programs: rows that no result depends on are left out, so that the number of rows varies with the batch.
//!
//! A group of a packed program is a set of samples of equal `context`, of which each has a length. Where the program as
//! written has `samples x context` rows, the packed one has as many as its bucket says, and the rows of all samples stand
//! one after the other: [`pack`] says which row is which. A program is compiled once per [`Bucket`]; the runtime computes
//! the lengths on the host, from the inputs of the batch, takes the smallest bucket that holds them all, and adds the
//! inputs that say where rows are. This module is what compiler, runtime and tests agree on.
//!
//! Invariants:
//! - Lengths are clamped to `1..=context`, so the last bucket, which has all rows, holds every batch.
//! - Rows of a bucket beyond those of the samples repeat the first row of the first sample, in segments of their own
//!   ([`pads`] of them): they hold numbers as good as any other row, and no result reads them.
//! - What a program computes does not depend on its bucket beyond rounding; which bucket runs is a function of the batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, planted};
use crate::kernel::Kernel;
use crate::{Plan, Program, Report, Segment, Target};

/// A program that is compiled once per number of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packed {
    /// Samples whose rows are packed together.
    pub groups: Vec<Group>,
    /// Computes the lengths of each group from the program's inputs.
    pub lengths: Lengths,
    /// By rising number of rows; the last has those of all positions, and the name of the program itself.
    pub buckets: Vec<Bucket>,
}

/// Samples of equal context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Number of samples.
    pub samples: u64,
    /// Positions of a sample.
    pub context: u64,
}

/// A program for batches of at most so many rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Rows of each group.
    pub rows: Vec<u64>,
    /// Name in [`Plan::programs`].
    pub program: String,
}

/// A program for the embedded cpu, whatever the plan's target: from inputs of the batch to `packing.K.lengths`, I32
/// `[samples]`, for each group K.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Its memory.
    pub segments: Vec<Segment>,
    /// Its kernels, all of them executed as they are described.
    pub kernels: Vec<Kernel>,
    /// The program.
    pub program: Program,
}

/// Name of the program in [`Lengths::plan`].
pub const PROGRAM_LENGTHS: &str = "lengths";

impl Lengths {
    /// As a plan, which is what a device loads.
    pub fn plan(&self) -> Plan {
        Plan {
            name: PROGRAM_LENGTHS.into(),
            compiler: env!("CARGO_PKG_VERSION").into(),
            target: Target::cpu(),
            segments: self.segments.clone(),
            state: Vec::new(),
            kernels: self.kernels.clone(),
            programs: BTreeMap::from([(PROGRAM_LENGTHS.to_string(), self.program.clone())]),
            packed: BTreeMap::new(),
            train: None,
            report: Report::default(),
        }
    }
}

/// What an input that the runtime makes says about the rows of a group; all are I32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `[rows]`: index of each row among the rows as written, `sample * context + position`.
    Source,
    /// `[rows]`: position of each row in its sample.
    Position,
    /// `[rows]`: sample of each row.
    Sample,
    /// `[2, samples + pads + 1]`: first row of each segment among queries and among keys, which are the same.
    Segments,
    /// The same for attention with one query per sample: segments of padding have none.
    Reads,
    /// `[samples]`: the last row of each sample, which is the one that is read.
    Last,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 6] = [Role::Source, Role::Position, Role::Sample, Role::Segments, Role::Reads, Role::Last];

    fn name(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Position => "position",
            Role::Sample => "sample",
            Role::Segments => "segments",
            Role::Reads => "reads",
            Role::Last => "last",
        }
    }

    /// Name of the input for a group: `packing.0.source`. No name in a spec has a dot.
    pub fn input(self, group: usize) -> String {
        format!("packing.{group}.{}", self.name())
    }

    /// Group and role of an input that the runtime makes; none for those of the batch.
    pub fn of_input(name: &str) -> Option<(usize, Role)> {
        let (group, role) = name.strip_prefix("packing.")?.split_once('.')?;
        Some((group.parse().ok()?, Role::ALL.into_iter().find(|known| known.name() == role)?))
    }

    /// Shape of the input for a bucket of so many rows.
    pub fn shape(self, group: Group, rows: u64) -> Vec<u64> {
        match self {
            Role::Source | Role::Position | Role::Sample => vec![rows],
            Role::Segments | Role::Reads => vec![2, group.samples + pads(rows) + 1],
            Role::Last => vec![group.samples],
        }
    }
}

/// Name of the output of [`Lengths`] for a group.
pub fn lengths_output(group: usize) -> String {
    format!("packing.{group}.lengths")
}

/// Segments of padding in a bucket. Padding is seldom more than a tenth of the rows, so that its segments are about as
/// long as short texts: attention within them, quadratic in their length, costs next to nothing, and so does their number.
pub fn pads(rows: u64) -> u64 {
    rows / 128 + 1
}

/// Where the rows of a batch are; one vector per [`Role`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedRows {
    tensors: [Vec<i32>; Role::ALL.len()],
}

impl PackedRows {
    /// The elements of an input, row-major.
    pub fn get(&self, role: Role) -> &[i32] {
        &self.tensors[role as usize]
    }
}

/// Rows that a sample of this length has.
fn clamped(length: i32, context: u64) -> u64 {
    u64::try_from(length).unwrap_or(0).clamp(1, context.max(1))
}

/// Rows of samples of these lengths, without padding.
pub fn rows(lengths: &[i32], context: u64) -> u64 {
    lengths.iter().map(|length| clamped(*length, context)).sum()
}

/// Packs samples of these lengths into `rows` rows; none when they do not fit.
pub fn pack(lengths: &[i32], context: u64, rows: u64) -> Option<PackedRows> {
    let total = self::rows(lengths, context);
    let padding = rows.checked_sub(total)?;
    let mut packed = PackedRows::default();
    let [source, position, sample, segments, reads, last] = &mut packed.tensors;
    let mut starts = vec![0];
    for (index, length) in lengths.iter().enumerate() {
        let length = clamped(*length, context);
        for at in 0..length {
            let shift = u64::from(index > 0 && planted(Fault::RowOffsetShifted));
            source.push((index as u64 * context + at - shift) as i32);
            position.push(at as i32);
            sample.push(index as i32);
        }
        starts.push(source.len() as i32);
        last.push(source.len() as i32 - 1);
    }
    for role in [source, position, sample] {
        role.resize(rows as usize, 0);
    }
    let mut queries: Vec<i32> = (0..=lengths.len() as i32).collect();
    for pad in 1..=pads(rows) {
        starts.push((total + padding * pad / pads(rows)) as i32);
        queries.push(lengths.len() as i32);
    }
    *segments = [starts.as_slice(), &starts].concat();
    *reads = [queries, starts].concat();
    Some(packed)
}

impl Packed {
    /// The smallest bucket that holds these rows of each group.
    pub fn bucket(&self, rows: &[u64]) -> Option<&Bucket> {
        let holds = |bucket: &&Bucket| bucket.rows.iter().zip(rows).all(|(room, rows)| rows <= room);
        self.buckets.iter().find(holds).or(self.buckets.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_one_sample_after_the_other_and_padding_repeats_the_first() {
        // An empty text (its length is taken as 1), a full one, one beyond the context, one in between.
        let packed = pack(&[0, 4, 9, 2], 4, 14).unwrap();
        let check = |role: Role, expected: &[i32]| assert_eq!(packed.get(role), expected, "{role:?}");
        check(Role::Source, &[0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 0]);
        check(Role::Position, &[0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 0, 0]);
        check(Role::Sample, &[0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0, 0]);
        check(Role::Segments, &[0, 1, 5, 9, 11, 14, 0, 1, 5, 9, 11, 14]);
        check(Role::Reads, &[0, 1, 2, 3, 4, 4, 0, 1, 5, 9, 11, 14]);
        check(Role::Last, &[0, 4, 8, 10]);
        assert_eq!(pack(&[0, 4, 9, 2], 4, 10), None);
    }

    #[test]
    fn every_row_is_in_a_segment_and_shapes_are_as_said() {
        let group = Group { samples: 32, context: 77 };
        for rows in [480, 992, 2464] {
            let packed = pack(&[14; 32], group.context, rows).unwrap();
            for role in Role::ALL {
                let elements = role.shape(group, rows).iter().product::<u64>();
                assert_eq!(packed.get(role).len() as u64, elements, "{role:?} of {rows}");
                assert_eq!(Role::of_input(&role.input(3)), Some((3, role)));
            }
            let starts = packed.get(Role::Segments);
            assert!(starts[..starts.len() / 2].is_sorted());
            assert_eq!(starts.last(), Some(&(rows as i32)));
        }
        assert_eq!(Role::of_input("source"), None);
        assert_eq!(Role::of_input("packing.0.lengths"), None);
    }
}

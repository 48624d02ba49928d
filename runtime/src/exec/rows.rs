//! Which of the programs of one name runs: the host's part of packed programs.
//!
//! Before a packed program runs, its lengths are computed by the embedded cpu, whatever the session's device; from them
//! follow the bucket and the inputs that say where rows are ([`alip_plan::packing`]). Nothing of it outlives the call but
//! the note of which program ran, so that its outputs are found.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use alip_plan::packing::{self, PROGRAM_LENGTHS, Packed, Role, lengths_output};
use alip_plan::{Plan, Program};

use super::{ExecError, Session, Tensors, given};
use crate::device::cpu::Cpu;
use crate::device::{Device, DeviceError};
use crate::tensor::HostTensor;

/// What a packed program ran with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsRun {
    /// The program of the plan that ran.
    pub program: String,
    /// Rows of the batch, per group of samples.
    pub rows: Vec<u64>,
    /// Rows that were computed: those of the batch and padding.
    pub room: Vec<u64>,
    /// Rows that the program has as written.
    pub bound: Vec<u64>,
}

/// Rows of several runs of a packed program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowTotals {
    /// Runs.
    pub runs: u64,
    /// Rows of their batches.
    pub rows: u64,
    /// Rows that were computed.
    pub room: u64,
    /// Rows that the program has as written.
    pub bound: u64,
}

impl RowTotals {
    /// Counts a run.
    pub fn add(&mut self, run: &RowsRun) {
        self.runs += 1;
        self.rows += run.rows.iter().sum::<u64>();
        self.room += run.room.iter().sum::<u64>();
        self.bound += run.bound.iter().sum::<u64>();
    }
}

/// `463 of 2464 on average, 496 with padding`.
impl fmt::Display for RowTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = |total: u64| total as f64 / self.runs.max(1) as f64;
        write!(f, "{:.0} of {:.0} on average, {:.0} with padding", mean(self.rows), mean(self.bound), mean(self.room))
    }
}

/// Counts the rows of a packed program's batches.
pub(super) struct RowCounter {
    packed: Packed,
    /// Inputs of the program that runs for each bucket.
    programs: BTreeMap<String, Program>,
    host: Session,
    last: Option<RowsRun>,
}

/// Counters of a plan's packed programs; they share a device of one thread, since there is little to compute.
pub(super) fn counters(plan: &Plan) -> Result<BTreeMap<String, RowCounter>, ExecError> {
    if plan.packed.is_empty() {
        return Ok(BTreeMap::new());
    }
    let cpu = Cpu::new(Some(1)).map_err(|why| DeviceError::Unavailable { name: "cpu".into(), why })?;
    let counter = |(name, packed): (&String, &Packed)| {
        let lengths = Arc::new(packed.lengths.plan());
        let host = Session { loaded: cpu.load(Arc::clone(&lengths))?, plan: lengths, counters: BTreeMap::new() };
        let without_steps = |program: &Program| Program { steps: Vec::new(), ..program.clone() };
        let programs = packed.buckets.iter().filter_map(|bucket| plan.programs.get_key_value(&bucket.program));
        let programs = programs.map(|(name, program)| (name.clone(), without_steps(program))).collect();
        Ok((name.clone(), RowCounter { packed: packed.clone(), programs, host, last: None }))
    };
    plan.packed.iter().map(counter).collect()
}

impl RowCounter {
    pub(super) fn last(&self) -> Option<&RowsRun> {
        self.last.as_ref()
    }

    /// The program for a batch and the inputs that the caller does not give. `what` names the program in errors.
    pub(super) fn count(&mut self, what: &str, inputs: &Tensors) -> Result<(String, Tensors), ExecError> {
        let mut read = Tensors::new();
        for (name, buffer) in self.packed.lengths.program.batch_inputs() {
            read.insert(name.to_string(), given(what, name, buffer, inputs)?.into_owned());
        }
        let lengths = self.host.run(PROGRAM_LENGTHS, &read)?;
        let lengths: Vec<&[i32]> = (0..self.packed.groups.len())
            .map(|group| lengths.get(&lengths_output(group)).and_then(HostTensor::as_i32).unwrap_or_default())
            .collect();
        let groups = self.packed.groups.iter().zip(&lengths);
        let rows: Vec<u64> = groups.map(|(group, lengths)| packing::rows(lengths, group.context)).collect();
        let broken = || DeviceError::InvalidPlan(format!("no program for {rows:?} rows"));
        let bucket = self.packed.bucket(&rows).ok_or_else(broken)?;
        let packed: Option<Vec<_>> = (self.packed.groups.iter().zip(&lengths).zip(&bucket.rows))
            .map(|((group, lengths), rows)| packing::pack(lengths, group.context, *rows))
            .collect();
        let packed = packed.ok_or_else(broken)?;
        let mut made = Tensors::new();
        let program = self.programs.get(&bucket.program).ok_or_else(broken)?;
        for port in &program.inputs {
            let Some((group, role)) = Role::of_input(&port.name) else { continue };
            let (Some(group_rows), Some(buffer)) = (packed.get(group), program.input(&port.name)) else { continue };
            made.insert(port.name.clone(), HostTensor::i32(&buffer.shape, group_rows.get(role).to_vec())?);
        }
        let bound = self.packed.groups.iter().map(|group| group.samples * group.context).collect();
        let run = RowsRun { program: bucket.program.clone(), room: bucket.rows.clone(), rows, bound };
        let name = run.program.clone();
        self.last = Some(run);
        Ok((name, made))
    }
}

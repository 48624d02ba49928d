//! Inputs that are indices of tables.

use std::collections::BTreeMap;

use alip_plan::{Plan, Program};

use super::{Batch, DataError};
use crate::tensor::HostTensor;

/// An index that no row of its table has. A program would take the nearest row that there is, and compute something else
/// without a word.
pub(crate) struct Beyond {
    pub(crate) input: String,
    /// The row of the batch that it is in.
    pub(crate) row: usize,
    pub(crate) index: i32,
    /// Rows of the table.
    pub(crate) rows: u64,
}

/// The first index among inputs of a program that is beyond its table.
pub(crate) fn beyond_table(program: &Program, inputs: &BTreeMap<String, HostTensor>) -> Option<Beyond> {
    program.inputs.iter().find_map(|port| {
        let (rows, tensor) = (port.rows?, inputs.get(&port.name)?);
        let ids = tensor.as_i32()?;
        let at = ids.iter().position(|id| u64::try_from(*id).map_or(true, |id| id >= rows))?;
        let batch = tensor.shape().first().map_or(1, |size| *size as usize);
        let row = at / (ids.len() / batch.max(1)).max(1);
        Some(Beyond { input: port.name.clone(), row, index: ids[at], rows })
    })
}

/// Whether every index of a batch is one of its table's; `name` says what the source calls the sample in a row.
pub(crate) fn check_indices(
    plan: &Plan,
    program: &str,
    batch: &Batch,
    name: impl Fn(u64) -> String,
) -> Result<(), DataError> {
    let found = plan.programs.get(program).and_then(|program| beyond_table(program, &batch.tensors));
    match found {
        Some(Beyond { input, row, index, rows }) => {
            let sample = batch.rows.get(row).map_or_else(String::new, |index| name(*index));
            Err(DataError::BeyondTable { sample, input, index, rows })
        }
        None => Ok(()),
    }
}

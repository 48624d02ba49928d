//! Inputs that are indices of tables.

use alip_plan::Program;

use crate::data::{Batch, DataError};

/// Whether every index of a batch is one of its table's; `name` says what the source calls a sample. A program would take the
/// nearest row that there is, and compute something else without a word.
pub(super) fn check_indices(
    program: Option<&Program>,
    batch: &Batch,
    name: impl Fn(u64) -> String,
) -> Result<(), DataError> {
    for port in program.iter().flat_map(|program| &program.inputs) {
        let ids = batch.tensors.get(&port.name).and_then(|tensor| tensor.as_i32());
        let (Some(rows), Some(ids)) = (port.rows, ids) else { continue };
        let beyond = |id: &i32| u64::try_from(*id).map_or(true, |id| id >= rows);
        let Some(at) = ids.iter().position(beyond) else { continue };
        let of_sample = (ids.len() / batch.rows.len().max(1)).max(1);
        let sample = batch.rows.get(at / of_sample).map_or_else(String::new, |index| name(*index));
        return Err(DataError::BeyondTable { sample, input: port.name.clone(), index: ids[at], rows });
    }
    Ok(())
}

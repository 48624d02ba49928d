//! Inputs that are indices of tables.

use std::collections::BTreeMap;

use alip_plan::pipeline::Pipeline;
use alip_plan::{PROGRAM_TRAIN, Plan, Program};

use super::{Batch, DataError, Vocabularies};
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

/// Whether the tables of a plan have a row for every id of the files' tokenizers that its pipeline makes inputs with; what whoever
/// trains with them must know. How many ids others have the compiler knows.
///
/// # Errors
/// A table with fewer rows than there are ids.
pub fn check_tokenizers(
    plan: &Plan,
    pipeline: &Pipeline,
    vocabularies: &Vocabularies,
) -> Result<Vec<String>, DataError> {
    let mut warnings: Vec<String> = Vec::new();
    let inputs = plan.programs.get(PROGRAM_TRAIN).into_iter().flat_map(|program| &program.inputs);
    for (port, rows) in inputs.filter_map(|port| Some((port, port.rows?))) {
        let vocab = pipeline.outputs.get(&port.name).and_then(|value| pipeline.vocabulary_of(value));
        let Some(vocab) = vocab.filter(|vocab| vocab.size().is_none()) else { continue };
        let Some(tokenizer) = vocabularies.tokenizer(vocab)? else { continue };
        let ids = u64::from(tokenizer.vocab_size());
        if ids > rows {
            let (input, largest) = (&port.name, ids - 1);
            let reason = format!(
                "`{input}` has ids of '{vocab}', up to {largest}, but the table of `{}` that they index has {rows} rows; give \
                 the table {ids} rows, or a tokenizer of at most {rows} ids",
                plan.name
            );
            return Err(DataError::Pipeline { pipeline: pipeline.name.clone(), reason });
        }
        warnings.extend(tokenizer.warning().filter(|warning| !warnings.contains(warning)));
    }
    Ok(warnings)
}

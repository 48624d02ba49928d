//! Tensors of batches that are done with, to be filled again.
//!
//! A batch of 64 images of 224 pixels is 10 MB in bytes and 38 MB in floats, which comes from the system page by page, each by
//! a fault, whenever it is allocated. What is in a spare is never seen: a row that is delivered was written to its end ([`Transform::run`]).

use std::sync::{Mutex, PoisonError};

use super::{Batch, Transform};
use crate::tensor::{HostTensor, TensorError};

/// Spare tensors of a loader's batches, one per output and in their order.
pub(super) struct Spares {
    batch: usize,
    /// Batches that are kept.
    most: usize,
    kept: Mutex<Vec<Vec<HostTensor>>>,
}

impl Spares {
    pub(super) fn new(batch: usize, most: usize) -> Spares {
        Spares { batch, most, kept: Mutex::new(Vec::new()) }
    }

    /// Tensors for a batch, with anything in them.
    pub(super) fn take(&self, transform: &Transform) -> Result<Vec<HostTensor>, TensorError> {
        let spare = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| transform.allocate(self.batch), Ok)
    }

    /// Keeps the tensors of a batch, if they are what `transform` fills and there are not enough.
    pub(super) fn give(&self, transform: &Transform, mut batch: Batch) {
        let outputs = transform.outputs();
        let tensors: Option<Vec<HostTensor>> = outputs
            .map(|(name, output)| {
                let tensor = batch.tensors.remove(name)?;
                let rows = tensor.shape().split_first().filter(|(rows, _)| **rows == self.batch as u64);
                let has_shape = rows.is_some_and(|(_, row)| row == output.shape);
                // The elements may have been exchanged.
                let elements = tensor.shape().iter().product::<u64>();
                let is_whole = tensor.data().len() as u64 == elements;
                (tensor.dtype() == output.dtype && has_shape && is_whole).then_some(tensor)
            })
            .collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensors) = tensors
            && kept.len() < self.most
        {
            kept.push(tensors);
        }
    }
}

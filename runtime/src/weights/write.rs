//! Weights into safetensors files.

use std::path::Path;

use alip_plan::DType;
use safetensors::tensor::Dtype as FileType;

use super::container::Weights;
use super::error::WeightsError;
use super::fit::Fit;
use super::raw::{RawTensor, is_float};
use crate::run::tensors::{self, Entry, file_type};

/// Types of the floats in a file that is written; integers keep theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// As they were.
    Same,
    /// Rounded to the nearest of this type.
    As(DType),
}

impl Floats {
    /// Type in the file of a tensor of this type.
    pub(super) fn of(self, dtype: FileType) -> FileType {
        match self {
            Floats::As(wanted) if is_float(dtype) => file_type(wanted),
            _ => dtype,
        }
    }

    /// The tensor as it is written to a file at `path`.
    pub(super) fn apply(self, name: &str, path: &Path, tensor: RawTensor) -> Result<RawTensor, WeightsError> {
        let Floats::As(wanted) = self else { return Ok(tensor) };
        let fail = |source| WeightsError::Tensor { path: path.to_path_buf(), name: name.into(), source };
        if wanted == DType::F16 && is_float(tensor.dtype) && tensor.dtype != FileType::F16 {
            /// What is at least half a step above the largest, 65504, is rounded to infinity.
            const TOO_LARGE: f32 = 65520.0;
            let values = tensor.to_host(DType::F32).map_err(fail)?;
            if let Some(value) = values.to_f32().iter().find(|value| value.is_finite() && value.abs() >= TOO_LARGE) {
                let why = format!("`{name}` has the number {value}, and f16 none above 65504; write bf16 or f32");
                return Err(WeightsError::Refused { path: path.to_path_buf(), why });
            }
        }
        tensor.as_float(wanted).map_err(fail)
    }
}

/// Writes those of some weights that were fitted, under their names.
///
/// # Errors
/// The system refuses, or a tensor cannot be read or converted; nothing has changed at `out` then.
pub fn save(
    weights: &mut Weights,
    fit: &Fit,
    floats: Floats,
    texts: &[(&str, String)],
    out: &Path,
) -> Result<(), WeightsError> {
    let entry = |name: &str| {
        let (dtype, shape) = fit.info(weights, name)?;
        Some(Entry { name: name.into(), dtype: floats.of(dtype), shape })
    };
    let entries: Vec<Entry> = fit.taken().filter_map(entry).collect();
    tensors::write(out, texts, &entries, |entry| {
        let tensor = fit.read(weights, &entry.name)?;
        Ok(floats.apply(&entry.name, weights.path(), tensor)?.bytes)
    })
}

/// Writes tensors of a file under other names: pairs of the new name and that in the file.
///
/// # Errors
/// As [`save`].
pub fn save_as(
    weights: &mut Weights,
    names: &[(String, String)],
    floats: Floats,
    texts: &[(&str, String)],
    out: &Path,
) -> Result<(), WeightsError> {
    let entry = |(name, stored): &(String, String)| {
        let (dtype, shape) = weights.info(stored)?;
        Some(Entry { name: name.clone(), dtype: floats.of(dtype), shape: shape.to_vec() })
    };
    let entries: Vec<Entry> = names.iter().filter_map(entry).collect();
    let mut stored = names
        .iter()
        .filter(|(_, stored)| weights.info(stored).is_some())
        .map(|(_, stored)| stored.clone())
        .collect::<Vec<_>>()
        .into_iter();
    tensors::write(out, texts, &entries, |entry| {
        // They are asked for in the order of the entries.
        let tensor = weights.read(&stored.next().unwrap_or_default())?;
        Ok(floats.apply(&entry.name, weights.path(), tensor)?.bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Infinities that were there stay; none are made.
    #[test]
    fn numbers_that_f16_cannot_hold_are_refused() {
        let write = |value: f32| {
            let bytes = [1.0, value].into_iter().flat_map(f32::to_le_bytes).collect();
            Floats::As(DType::F16).apply("w", Path::new("x"), RawTensor { dtype: FileType::F32, shape: vec![2], bytes })
        };
        let error = write(-65520.0).unwrap_err().to_string();
        assert_eq!(error, "x: `w` has the number -65520, and f16 none above 65504; write bf16 or f32");
        for value in [65519.0, f32::INFINITY] {
            assert!(write(value).is_ok(), "{value}");
        }
    }
}

//! Tensors as files hold them: any type of safetensors, little-endian bytes, row-major.

use alip_plan::DType;
use safetensors::tensor::{Dtype as FileType, TensorView};

use crate::run::tensors::file_type;
use crate::tensor::{HostTensor, TensorError};

/// A dense row-major tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// Type of its elements.
    pub dtype: FileType,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// The elements.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// The tensor as the runtime holds it, converted as [`HostTensor::from_view`] does.
    ///
    /// # Errors
    /// It is of another kind, or an integer is out of range.
    pub fn to_host(&self, dtype: DType) -> Result<HostTensor, TensorError> {
        let shape = self.shape.iter().map(|&size| size as usize).collect();
        let view = TensorView::new(self.dtype, shape, &self.bytes);
        let view = view.map_err(|_| TensorError::Shape { elements: self.bytes.len(), shape: self.shape.clone() })?;
        HostTensor::from_view(&view, dtype)
    }

    /// A tensor of the runtime.
    pub fn from_host(tensor: &HostTensor) -> RawTensor {
        RawTensor { dtype: file_type(tensor.dtype()), shape: tensor.shape().to_vec(), bytes: tensor.bytes().to_vec() }
    }

    /// Rounded to the nearest of another type, if both are floats; as it is otherwise.
    ///
    /// # Errors
    /// A float of a type that the runtime does not know.
    pub fn as_float(self, dtype: DType) -> Result<RawTensor, TensorError> {
        if !is_float(self.dtype) || self.dtype == file_type(dtype) {
            return Ok(self);
        }
        Ok(RawTensor::from_host(&self.to_host(dtype)?))
    }

    /// A matrix with rows and columns exchanged.
    pub(super) fn transposed(&self) -> RawTensor {
        let &[rows, columns] = &self.shape[..] else { return self.clone() };
        let size = element_bytes(self.dtype);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for column in 0..columns as usize {
            for row in 0..rows as usize {
                let at = (row * columns as usize + column) * size;
                bytes.extend_from_slice(&self.bytes[at..at + size]);
            }
        }
        RawTensor { dtype: self.dtype, shape: vec![columns, rows], bytes }
    }
}

impl RawTensor {
    /// One of `parts` equal parts along the first dimension.
    pub(super) fn part(&self, index: usize, parts: usize) -> RawTensor {
        let mut shape = self.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows /= parts as u64;
        }
        let length = self.bytes.len() / parts;
        RawTensor { dtype: self.dtype, shape, bytes: self.bytes[index * length..(index + 1) * length].to_vec() }
    }
}

/// Whether elements are real numbers with a fraction.
pub(super) fn is_float(dtype: FileType) -> bool {
    matches!(dtype, FileType::F64 | FileType::F32 | FileType::F16 | FileType::BF16)
}

/// Bytes of an element; 0 of the few types that are smaller.
pub(super) fn element_bytes(dtype: FileType) -> usize {
    dtype.bitsize() / 8
}

//! Values of tensors.

use super::{DType, Shape, TensorType};

/// A tensor in f64; I32 and Bool are exact in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Its type.
    pub ty: TensorType,
    /// Elements in row-major order.
    pub data: Vec<f64>,
}

impl Value {
    /// A value from its parts. Panics when the number of elements is not that of the shape.
    pub fn new(ty: TensorType, data: Vec<f64>) -> Value {
        assert_eq!(ty.shape.elements(), data.len() as u64, "elements of {ty}");
        Value { ty, data }
    }

    /// A scalar.
    pub fn scalar(dtype: DType, value: f64) -> Value {
        Value { ty: TensorType { dtype, shape: Shape::scalar() }, data: vec![value] }
    }
}

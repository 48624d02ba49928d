//! Dimensions, shapes and tensor types.

use std::fmt;
use std::sync::Arc;

pub use alip_plan::DType;
use smallvec::SmallVec;

/// Size of a dimension, with the name it has in the spec.
///
/// The name serves people only (errors, pictures, dumps): two dimensions are equal when their sizes are.
#[derive(Clone, Debug)]
pub struct Dim {
    /// Number of elements along the dimension.
    pub size: u64,
    /// `B`, `T`, `width`; absent for computed sizes.
    pub name: Option<Arc<str>>,
}

impl Dim {
    /// A dimension with a name.
    pub fn named(size: u64, name: &str) -> Dim {
        Dim { size, name: Some(name.into()) }
    }
}

impl From<u64> for Dim {
    fn from(size: u64) -> Dim {
        Dim { size, name: None }
    }
}

impl PartialEq for Dim {
    fn eq(&self, other: &Dim) -> bool {
        self.size == other.size
    }
}

impl Eq for Dim {}

impl std::hash::Hash for Dim {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.size.hash(state);
    }
}

/// `B=8` or `512`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}={}", self.size),
            None => write!(f, "{}", self.size),
        }
    }
}

/// Sizes of a tensor's dimensions, outermost first; `[]` is a scalar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(pub SmallVec<[Dim; 4]>);

impl Shape {
    /// The shape of a scalar.
    pub fn scalar() -> Shape {
        Shape::default()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Size along one dimension. Panics when `axis >= rank`, which the op rules exclude.
    pub fn size(&self, axis: usize) -> u64 {
        self.0[axis].size
    }

    /// All sizes.
    pub fn sizes(&self) -> Vec<u64> {
        self.0.iter().map(|dim| dim.size).collect()
    }

    /// Number of elements, `None` when it does not fit in 64 bits.
    pub fn checked_elements(&self) -> Option<u64> {
        self.0.iter().try_fold(1u64, |product, dim| product.checked_mul(dim.size))
    }

    /// Number of elements; shapes are checked against overflow where they are made.
    pub fn elements(&self) -> u64 {
        self.0.iter().map(|dim| dim.size).product()
    }
}

impl<D: Into<Dim>> FromIterator<D> for Shape {
    fn from_iter<I: IntoIterator<Item = D>>(dims: I) -> Shape {
        Shape(dims.into_iter().map(Into::into).collect())
    }
}

impl<const N: usize> From<[u64; N]> for Shape {
    fn from(sizes: [u64; N]) -> Shape {
        sizes.into_iter().collect()
    }
}

/// `[B=8, T=16, 48]`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if index > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Shape,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// F32 of this shape.
    pub fn f32(shape: impl Into<Shape>) -> TensorType {
        TensorType::new(DType::F32, shape)
    }
}

/// `f32[B=8, T=16, 48]`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

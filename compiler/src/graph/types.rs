//! Dimensions, shapes and tensor types.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

pub use alip_plan::DType;
use smallvec::SmallVec;

/// Size of a dimension, with the name it has in the spec.
///
/// The name serves people only (errors, pictures, dumps): two dimensions are equal when their sizes are.
#[derive(Clone, Copy, Debug)]
pub struct Dim {
    /// Number of elements along the dimension.
    pub size: u64,
    /// `B`, `T`, `width`; absent for computed sizes.
    pub name: Option<DimName>,
}

/// Name of a dimension: a number that stands for the text, since passes copy shapes all the time and look at no name.
/// Every text is kept until the process ends; specs have a few dozen of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DimName(NonZeroU32);

static NAMES: RwLock<Vec<Arc<str>>> = RwLock::new(Vec::new());

impl From<&str> for DimName {
    fn from(name: &str) -> DimName {
        let mut names = NAMES.write().unwrap_or_else(PoisonError::into_inner);
        let at = names.iter().position(|known| **known == *name).unwrap_or(names.len());
        if at == names.len() {
            names.push(name.into());
        }
        DimName(NonZeroU32::MIN.saturating_add(at as u32))
    }
}

impl DimName {
    fn text(self) -> Arc<str> {
        NAMES.read().unwrap_or_else(PoisonError::into_inner)[self.0.get() as usize - 1].clone()
    }
}

impl fmt::Display for DimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for DimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text())
    }
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
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(pub SmallVec<[Dim; 4]>);

/// As one copy of memory, which a derived clone is not.
impl Clone for Shape {
    fn clone(&self) -> Shape {
        Shape(SmallVec::from_slice(&self.0))
    }
}

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

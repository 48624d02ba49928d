//! Tensors in host memory: what is uploaded to a device, downloaded from it, and lies in weight files.

use std::borrow::Cow;
use std::fmt;

use alip_plan::DType;
use safetensors::tensor::{Dtype as FileType, TensorView};

/// The elements of a [`HostTensor`], row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// IEEE single precision.
    F32(Vec<f32>),
    /// bfloat16 as bits.
    Bf16(Vec<u16>),
    /// IEEE half precision as bits.
    F16(Vec<u16>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// Truth values, 0 or 1.
    Bool(Vec<u32>),
    /// Bytes.
    U8(Vec<u8>),
}

/// A dense row-major tensor in host memory. The number of elements always equals the product of the shape.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<u64>,
    data: Data,
}

/// Why a tensor could not be made or converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The shape does not fit the number of elements.
    #[error("{elements} elements cannot have the shape {}", Shape(.shape))]
    Shape {
        /// Elements given.
        elements: usize,
        /// Shape given.
        shape: Vec<u64>,
    },
    /// An element type the runtime has no use for.
    #[error("{found} tensors cannot be read as {wanted}; convert the file to {wanted}")]
    Type {
        /// Type found.
        found: String,
        /// Type wanted.
        wanted: DType,
    },
    /// An integer outside 32 bits.
    #[error("element {index} is {value}, outside the range of i32")]
    Range {
        /// Position, row-major.
        index: usize,
        /// The value found.
        value: i64,
    },
}

/// Shows a shape as `[2, 3]`.
pub(crate) struct Shape<'a>(pub(crate) &'a [u64]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl HostTensor {
    /// A tensor of these elements.
    ///
    /// # Errors
    /// The shape does not hold as many elements.
    pub fn new(shape: &[u64], data: Data) -> Result<HostTensor, TensorError> {
        let elements = data.len();
        match shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size)) {
            Some(product) if product == elements as u64 => Ok(HostTensor { shape: shape.to_vec(), data }),
            _ => Err(TensorError::Shape { elements, shape: shape.to_vec() }),
        }
    }

    /// A tensor of f32.
    ///
    /// # Errors
    /// The shape does not hold as many elements.
    pub fn f32(shape: &[u64], data: Vec<f32>) -> Result<HostTensor, TensorError> {
        HostTensor::new(shape, Data::F32(data))
    }

    /// A tensor of i32.
    ///
    /// # Errors
    /// The shape does not hold as many elements.
    pub fn i32(shape: &[u64], data: Vec<i32>) -> Result<HostTensor, TensorError> {
        HostTensor::new(shape, Data::I32(data))
    }

    /// A scalar f32.
    pub fn scalar_f32(value: f32) -> HostTensor {
        HostTensor { shape: Vec::new(), data: Data::F32(vec![value]) }
    }

    /// A scalar i32.
    pub fn scalar_i32(value: i32) -> HostTensor {
        HostTensor { shape: Vec::new(), data: Data::I32(vec![value]) }
    }

    /// A tensor from the bytes of device memory (little-endian).
    ///
    /// # Errors
    /// The bytes are not as many as the shape and dtype need.
    pub fn from_bytes(dtype: DType, shape: &[u64], bytes: &[u8]) -> Result<HostTensor, TensorError> {
        let size = dtype.bytes() as usize;
        if !bytes.len().is_multiple_of(size) {
            return Err(TensorError::Shape { elements: bytes.len() / size, shape: shape.to_vec() });
        }
        let data = match dtype {
            DType::F32 => Data::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::Bf16 => Data::Bf16(bytemuck::pod_collect_to_vec(bytes)),
            DType::F16 => Data::F16(bytemuck::pod_collect_to_vec(bytes)),
            DType::I32 => Data::I32(bytemuck::pod_collect_to_vec(bytes)),
            DType::Bool => Data::Bool(bytemuck::pod_collect_to_vec(bytes)),
            DType::U8 => Data::U8(bytes.to_vec()),
        };
        HostTensor::new(shape, data)
    }

    /// A tensor of a safetensors file as `dtype`: floats convert to floats by rounding to nearest, integers to i32 with
    /// a range check, truth values to truth values, bytes to bytes.
    ///
    /// # Errors
    /// The file's type is of another kind, or an integer is out of range.
    pub fn from_view(view: &TensorView<'_>, dtype: DType) -> Result<HostTensor, TensorError> {
        let shape: Vec<u64> = view.shape().iter().map(|&size| size as u64).collect();
        let bytes = view.data();
        let refused = || TensorError::Type { found: format!("{:?}", view.dtype()), wanted: dtype };
        let data = match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => {
                let values: Vec<f32> = match view.dtype() {
                    FileType::F32 => bytemuck::pod_collect_to_vec(bytes),
                    FileType::F64 => words(bytes).map(|word| f64::from_le_bytes(word) as f32).collect(),
                    FileType::BF16 => words(bytes).map(|word| bf16_to_f32(u16::from_le_bytes(word))).collect(),
                    FileType::F16 => words(bytes).map(|word| f16_to_f32(u16::from_le_bytes(word))).collect(),
                    _ => return Err(refused()),
                };
                floats(dtype, values)
            }
            DType::I32 => {
                let values: Vec<i64> = match view.dtype() {
                    FileType::I64 => words(bytes).map(i64::from_le_bytes).collect(),
                    FileType::I32 => words(bytes).map(|word| i64::from(i32::from_le_bytes(word))).collect(),
                    FileType::I16 => words(bytes).map(|word| i64::from(i16::from_le_bytes(word))).collect(),
                    FileType::U16 => words(bytes).map(|word| i64::from(u16::from_le_bytes(word))).collect(),
                    FileType::U32 => words(bytes).map(|word| i64::from(u32::from_le_bytes(word))).collect(),
                    FileType::U8 => bytes.iter().map(|&byte| i64::from(byte)).collect(),
                    FileType::I8 => bytes.iter().map(|&byte| i64::from(byte as i8)).collect(),
                    _ => return Err(refused()),
                };
                let narrow = |(index, value): (usize, i64)| {
                    i32::try_from(value).map_err(|_| TensorError::Range { index, value })
                };
                Data::I32(values.into_iter().enumerate().map(narrow).collect::<Result<_, _>>()?)
            }
            DType::Bool => match view.dtype() {
                FileType::BOOL | FileType::U8 => Data::Bool(bytes.iter().map(|&byte| u32::from(byte != 0)).collect()),
                FileType::U32 => {
                    Data::Bool(words(bytes).map(|word| u32::from(u32::from_le_bytes(word) != 0)).collect())
                }
                _ => return Err(refused()),
            },
            DType::U8 => match view.dtype() {
                FileType::U8 => Data::U8(bytes.to_vec()),
                _ => return Err(refused()),
            },
        };
        HostTensor::new(&shape, data)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::Bf16(_) => DType::Bf16,
            Data::F16(_) => DType::F16,
            Data::I32(_) => DType::I32,
            Data::Bool(_) => DType::Bool,
            Data::U8(_) => DType::U8,
        }
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, to be changed in place.
    pub fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    /// The bytes as they lie in device memory.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::F32(values) => bytemuck::cast_slice(values),
            Data::Bf16(values) | Data::F16(values) => bytemuck::cast_slice(values),
            Data::I32(values) => bytemuck::cast_slice(values),
            Data::Bool(values) => bytemuck::cast_slice(values),
            Data::U8(values) => values,
        }
    }

    /// The tensor as a file stores it; [`safetensors::serialize`] takes it. Bool is stored as U32, as in device memory.
    ///
    /// # Errors
    /// Never for a tensor whose size fits the host's address space.
    pub fn to_view(&self) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
        let dtype = match self.dtype() {
            DType::F32 => FileType::F32,
            DType::Bf16 => FileType::BF16,
            DType::F16 => FileType::F16,
            DType::I32 => FileType::I32,
            DType::Bool => FileType::U32,
            DType::U8 => FileType::U8,
        };
        TensorView::new(dtype, self.shape.iter().map(|&size| size as usize).collect(), self.bytes())
    }

    /// The elements as f32: in place for F32, converted for every other type.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::F32(values) => Cow::Borrowed(values),
            Data::Bf16(values) => values.iter().map(|&bits| bf16_to_f32(bits)).collect(),
            Data::F16(values) => values.iter().map(|&bits| f16_to_f32(bits)).collect(),
            Data::I32(values) => values.iter().map(|&value| value as f32).collect(),
            Data::Bool(values) => values.iter().map(|&value| value as f32).collect(),
            Data::U8(values) => values.iter().map(|&value| f32::from(value)).collect(),
        }
    }

    /// The tensor with elements of this type: floats are rounded to the nearest of any float. None if it is of another kind.
    pub fn converted(&self, dtype: DType) -> Option<Cow<'_, HostTensor>> {
        if self.dtype() == dtype {
            return Some(Cow::Borrowed(self));
        }
        let data = || floats(dtype, self.to_f32().into_owned());
        (self.dtype().is_float() && dtype.is_float())
            .then(|| Cow::Owned(HostTensor { shape: self.shape.clone(), data: data() }))
    }

    /// The elements, if they are i32.
    pub fn as_i32(&self) -> Option<&[i32]> {
        match &self.data {
            Data::I32(values) => Some(values),
            _ => None,
        }
    }

    /// The value of a scalar or the first element, as f64.
    pub fn first(&self) -> Option<f64> {
        match &self.data {
            Data::I32(values) => values.first().map(|&value| f64::from(value)),
            _ => self.to_f32().first().map(|&value| f64::from(value)),
        }
    }
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(values) => values.len(),
            Data::Bf16(values) | Data::F16(values) => values.len(),
            Data::I32(values) => values.len(),
            Data::Bool(values) => values.len(),
            Data::U8(values) => values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn floats(dtype: DType, values: Vec<f32>) -> Data {
    match dtype {
        DType::Bf16 => Data::Bf16(values.into_iter().map(f32_to_bf16).collect()),
        DType::F16 => Data::F16(values.into_iter().map(f32_to_f16).collect()),
        _ => Data::F32(values),
    }
}

/// The f32 with this bfloat16 pattern.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
#[inline]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a NaN's payload into an infinity; a quiet NaN of the same sign is its image.
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 }
}

/// The f32 with this half precision pattern.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    // Shift exponent and fraction into place, then scale by 2^(127 - 15): exact, also for subnormals.
    let magnitude = f32::from_bits(u32::from(bits & 0x7FFF) << 13) * f32::from_bits((254 - 15) << 23);
    let magnitude =
        if bits & 0x7C00 == 0x7C00 { f32::from_bits(0x7F80_0000 | u32::from(bits & 0x3FF) << 13) } else { magnitude };
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Rounds to the nearest half, ties to even; too large becomes infinite, NaN stays NaN.
#[inline]
pub fn f32_to_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7E00 | (magnitude.to_bits() >> 13 & 0x1FF) as u16;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7C00; // half way from the largest half, 65504, to the next power of two
    }
    if magnitude < 6.103_515_6e-5 {
        // Subnormal: adding 0.5 makes the unit of the sum 2^-24, the unit of subnormal halves, so that hardware rounds.
        return sign | ((magnitude + 0.5).to_bits() - 0.5f32.to_bits()) as u16;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0xFFF + (bits >> 13 & 1); // half a unit, ties to even
    sign | ((rounded - (112 << 23)) >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        let error = HostTensor::f32(&[2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "5 elements cannot have the shape [2, 3]");
        assert!(HostTensor::i32(&[u64::MAX, 2], vec![0]).is_err());
    }

    #[test]
    fn halves_round_to_nearest_even() {
        for bits in 0..=u16::MAX {
            let (brain, half) = (bf16_to_f32(bits), f16_to_f32(bits));
            if !brain.is_nan() {
                assert_eq!(f32_to_bf16(brain), bits);
            }
            if half.is_nan() {
                assert!(f16_to_f32(f32_to_f16(half)).is_nan());
            } else {
                assert_eq!(f32_to_f16(half), bits, "{half}");
            }
        }
        for (value, half) in
            [(1.0 + 1.0 / 2048.0, 0x3C00), (1.0 + 3.0 / 2048.0, 0x3C02), (65519.9, 0x7BFF), (1e9, 0x7C00)]
        {
            assert_eq!(f32_to_f16(value), half, "{value}");
        }
        assert_eq!(f32_to_bf16(1.0 + 1.0 / 256.0), 0x3F80);
        assert!(bf16_to_f32(f32_to_bf16(f32::from_bits(0x7F80_0001))).is_nan());
    }

    /// To the bit, NaNs too, what the crate `half` makes of them; that one asks at every number what the processor can, and
    /// turns NaNs that signal into quiet ones on the way to f32.
    #[test]
    fn conversions_are_those_of_a_library() {
        for bits in 0..=u16::MAX {
            let (brain, half) = (half::bf16::from_bits(bits), half::f16::from_bits(bits));
            let check = |own: f32, library: f32| {
                let quiet = if own.is_nan() { 0x40_0000 } else { 0 };
                assert_eq!(own.to_bits() | quiet, library.to_bits(), "{bits:#x}");
            };
            check(bf16_to_f32(bits), brain.to_f32());
            check(f16_to_f32(bits), half.to_f32());
            // The values themselves, what lies half way to the next, and what is next to that.
            for half_way in [bf16_to_f32(bits).to_bits() + 0x8000, f16_to_f32(bits).to_bits() + 0x1000] {
                for near in [half_way - 1, half_way, half_way + 1] {
                    let value = f32::from_bits(near);
                    assert_eq!(f32_to_bf16(value), half::bf16::from_f32(value).to_bits(), "{near:#x}");
                    assert_eq!(f32_to_f16(value), half::f16::from_f32(value).to_bits(), "{near:#x}");
                }
            }
        }
        // Half way between numbers of f16 that are subnormal, and beyond the smallest.
        for bits in (0..0x3900_0000).step_by(997) {
            let value = f32::from_bits(bits);
            assert_eq!(f32_to_f16(value), half::f16::from_f32_const(value).to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn files_convert_by_kind() {
        let ids: Vec<u8> = [3i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = TensorView::new(FileType::I64, vec![2], &ids).unwrap();
        assert_eq!(HostTensor::from_view(&view, DType::I32).unwrap().as_i32(), Some(&[3, -1][..]));
        let error = HostTensor::from_view(&view, DType::F32).unwrap_err();
        assert_eq!(error.to_string(), "I64 tensors cannot be read as f32; convert the file to f32");
        let big = (1i64 << 40).to_le_bytes();
        let view = TensorView::new(FileType::I64, vec![1], &big).unwrap();
        let error = HostTensor::from_view(&view, DType::I32).unwrap_err();
        assert_eq!(error.to_string(), "element 0 is 1099511627776, outside the range of i32");
        let tensor = HostTensor::f32(&[1, 2], vec![1.5, 2.5]).unwrap();
        let bytes = safetensors::serialize([("x", tensor.to_view().unwrap())], None).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(HostTensor::from_view(&file.tensor("x").unwrap(), DType::F32).unwrap(), tensor);
    }
}

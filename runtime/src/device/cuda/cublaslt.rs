//! Products by cuBLASLt: descriptors from what a plan says of a product, the algorithm that the library's heuristic puts first, and
//! the call.
//!
//! What is asked of the library is that a run gives the same bits again, and rounds once: sums of f32, of which parts may be added
//! up in the workspace in a fixed order, but not in the result, whose type may be narrower.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use alip_plan::DType;
use alip_plan::library::{Matmul, Matrix};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as Attribute;
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Preferred;
use cudarc::cublaslt::sys::cublasLtMatrixLayoutAttribute_t as OfLayout;

/// The oldest library that has all that is called.
const OLDEST: usize = 120_000;

/// The library, ready for the context that is current.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
}

// Safety: handles may be used by any thread.
unsafe impl Send for CublasLt {}
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Prepares the library, which must be open, for the context that is current.
    ///
    /// # Errors
    /// A library that is too old, or what it says.
    pub fn new() -> Result<Arc<CublasLt>, String> {
        // Safety: it takes nothing.
        let number = unsafe { sys::cublasLtGetVersion() };
        if number < OLDEST {
            let (found, needed) = (version_text(number), version_text(OLDEST));
            return Err(format!("cuBLASLt is {found}, and {needed} or newer is needed; update CUDA's libraries"));
        }
        let handle = result::create_handle().map_err(said("cublasLtCreate"))?;
        Ok(Arc::new(CublasLt { handle }))
    }
}

/// The version of the library, which must be open: `12.8.3`.
pub(super) fn version() -> String {
    // Safety: it takes nothing.
    version_text(unsafe { sys::cublasLtGetVersion() })
}

fn version_text(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // Safety: it was created once, and no call is left that uses it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// What the library says of a call.
fn said(call: &str) -> impl Fn(CublasError) -> String {
    move |error| format!("{call}: {:?}", error.0)
}

/// A product, ready to be submitted.
pub struct Call {
    library: Arc<CublasLt>,
    matmul: Matmul,
    operation: Operation,
    a: Layout,
    b: Layout,
    /// Of what is added, and of the result: one layout is that of both.
    c: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
}

impl Call {
    /// Prepares a product on operands at these addresses, or others of the same alignment; so many bytes of workspace may be used.
    ///
    /// # Errors
    /// What the library says to it.
    pub fn new(
        library: &Arc<CublasLt>,
        matmul: &Matmul,
        operands: &[u64],
        workspace_bytes: u64,
    ) -> Result<Call, String> {
        let Matmul { a, b, c, d, .. } = matmul;
        let layout = |matrix: &Matrix| Layout::new(matrix, matmul.batch);
        let operation = Operation::new(matmul)?;
        operation.set_bias(matmul, operands)?;
        let mut call = Call {
            library: library.clone(),
            matmul: matmul.clone(),
            operation,
            a: layout(a)?,
            b: layout(b)?,
            c: layout(c.as_ref().unwrap_or(d))?,
            d: layout(d)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace_bytes: 0,
        };
        let preference = Preference::new(matmul, operands, workspace_bytes)?;
        // Safety: all descriptors live.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                library.handle,
                call.operation.0,
                call.a.0,
                call.b.0,
                call.c.0,
                call.d.0,
                preference.0,
            )
        };
        let found =
            found.map_err(|error| format!("cublasLtMatmulAlgoGetHeuristic: {:?} for {}", error.0, Shown(matmul)))?;
        (call.algorithm, call.workspace_bytes) = (found.algo, found.workspaceSize);
        Ok(call)
    }

    /// Submits it to a stream.
    ///
    /// # Errors
    /// What the library says to it.
    ///
    /// # Safety
    /// At these addresses lie the operands of the step, which the product keeps to, and at that of the workspace as many bytes as
    /// were allowed; nothing else uses that at the same time.
    pub unsafe fn submit(&self, operands: &[u64], workspace: u64, stream: *mut c_void) -> Result<(), String> {
        let Matmul { a, b, c, d, alpha, .. } = &self.matmul;
        self.operation.set_bias(&self.matmul, operands)?;
        let at = |matrix: &Matrix| address(operands, matrix) as *const c_void;
        let beta = if c.is_some() { 1.0f32 } else { 0.0 };
        // Safety: all descriptors live, and the rest is as the caller says.
        let submitted = unsafe {
            result::matmul(
                self.library.handle,
                self.operation.0,
                std::ptr::from_ref(alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                at(a),
                self.a.0,
                at(b),
                self.b.0,
                at(c.as_ref().unwrap_or(d)),
                self.c.0,
                at(d).cast_mut(),
                self.d.0,
                &raw const self.algorithm,
                workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )
        };
        submitted.map_err(|error| format!("cublasLtMatmul: {:?} for {}", error.0, Shown(&self.matmul)))
    }
}

/// Where a matrix begins.
fn address(operands: &[u64], matrix: &Matrix) -> u64 {
    operands[usize::from(matrix.operand)] + matrix.offset * matrix.dtype.bytes()
}

/// What is multiplied, for messages.
struct Shown<'m>(&'m Matmul);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Matmul { batch, rows, columns, depth, a, d, .. } = self.0;
        if *batch > 1 {
            write!(out, "{batch} times ")?;
        }
        write!(out, "{rows} x {depth} by {depth} x {columns}, {} to {}", a.dtype, d.dtype)
    }
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType, String> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::Bf16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        DType::I32 | DType::Bool | DType::U8 => Err(format!("a product of {dtype}")),
    }
}

/// A value as the library takes it.
fn bytes<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

/// What is computed.
struct Operation(sys::cublasLtMatmulDesc_t);

// Safety: descriptors are memory of the host, and one thread at a time has this.
unsafe impl Send for Operation {}

impl Operation {
    fn new(matmul: &Matmul) -> Result<Operation, String> {
        use sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        use sys::cublasLtEpilogue_t::{CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_DEFAULT};
        // Sums of f32 by products of f32: no operand is rounded to fewer bits.
        let raw = result::create_matmul_desc(CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let made = Operation(raw.map_err(said("cublasLtMatmulDescCreate"))?);
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(matmul.a.transposed))?;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(matmul.b.transposed))?;
        let epilogue = if matmul.bias.is_some() { CUBLASLT_EPILOGUE_BIAS } else { CUBLASLT_EPILOGUE_DEFAULT };
        made.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as u32))?;
        Ok(made)
    }

    /// Tells where the bias is. The heuristic asks for it too, to see how it is aligned.
    fn set_bias(&self, matmul: &Matmul, operands: &[u64]) -> Result<(), String> {
        let Some(bias) = matmul.bias else { return Ok(()) };
        let address = operands[usize::from(bias.operand)] + bias.offset * matmul.d.dtype.bytes();
        self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), String> {
        let (at, size) = bytes(value);
        // Safety: it lives, and so many bytes are read.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, at, size) }
            .map_err(|error| format!("cublasLtMatmulDescSetAttribute {attribute:?}: {:?}", error.0))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // Safety: it was created once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How matrices lie in memory: column-major, as the library has it where nobody says otherwise.
struct Layout(sys::cublasLtMatrixLayout_t);

// Safety: as of `Operation`.
unsafe impl Send for Layout {}

impl Layout {
    fn new(matrix: &Matrix, batch: u64) -> Result<Layout, String> {
        let Matrix { dtype, rows, columns, leading, batch_stride, .. } = *matrix;
        let raw = result::create_matrix_layout(data_type(dtype)?, rows, columns, leading as i64);
        let made = Layout(raw.map_err(said("cublasLtMatrixLayoutCreate"))?);
        made.set(OfLayout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32))?;
        made.set(OfLayout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(batch_stride as i64))?;
        Ok(made)
    }

    fn set<T>(&self, attribute: OfLayout, value: &T) -> Result<(), String> {
        let (at, size) = bytes(value);
        // Safety: it lives, and so many bytes are read.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, at, size) }
            .map_err(|error| format!("cublasLtMatrixLayoutSetAttribute {attribute:?}: {:?}", error.0))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // Safety: it was created once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Which algorithms may be taken.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(matmul: &Matmul, operands: &[u64], workspace_bytes: u64) -> Result<Preference, String> {
        use sys::cublasLtReductionScheme_t::{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_NONE};
        let made = Preference(result::create_matmul_pref().map_err(said("cublasLtMatmulPreferenceCreate"))?);
        made.set(Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes)?;
        let schemes = CUBLASLT_REDUCTION_SCHEME_NONE as u32 | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        made.set(Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        let Matmul { a, b, c, d, .. } = matmul;
        for (attribute, matrix) in [
            (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c.as_ref().unwrap_or(d)),
            (Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            // More than that the library does not ask for.
            let alignment = 1u32 << address(operands, matrix).trailing_zeros().min(8);
            made.set(attribute, &alignment)?;
        }
        Ok(made)
    }

    fn set<T>(&self, attribute: Preferred, value: &T) -> Result<(), String> {
        let (at, size) = bytes(value);
        // Safety: it lives, and so many bytes are read.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, at, size) }
            .map_err(|error| format!("cublasLtMatmulPreferenceSetAttribute {attribute:?}: {:?}", error.0))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // Safety: it was created once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

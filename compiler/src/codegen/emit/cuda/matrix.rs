//! Products as tiles: a block computes a tile of the results, from tiles of both factors that pass through shared memory.
//!
//! A factor is a matrix of its free dimension and that of the sum. It lies in memory by strides, or is gathered element by element
//! (an image as a convolution sees it). Results go one by one to a function `finish` of the kernel.

use alip_plan::DType;
use alip_plan::kernel::View;

use super::{EmitError, Text, code, tensor, tiles};
use crate::codegen::emit::terms::offset;

/// Elements of 16 bytes of a type of 16 bits.
pub(super) const CHUNK: u64 = 8;

/// `finish(batch, row, column, sum over deep of a[row, deep] * b[column, deep])` for all rows and columns.
pub(super) struct Task<'a> {
    pub(super) batches: u64,
    pub(super) a: Matrix<'a>,
    pub(super) b: Matrix<'a>,
}

/// One factor.
pub(super) struct Matrix<'a> {
    /// `a`, whose free dimension is that of the rows, or `b`.
    pub(super) name: &'static str,
    /// Of the free dimension, and of the sum.
    pub(super) sizes: [u64; 2],
    /// Type of its elements, as they are multiplied.
    pub(super) dtype: DType,
    /// Whether neighbours along the sum lie side by side.
    pub(super) along_sum: bool,
    pub(super) source: Source<'a>,
}

/// Where elements come from.
pub(super) enum Source<'a> {
    /// An operand, from `base_a` or `base_b` on, by the strides of the free dimension and the sum.
    Strided {
        view: &'a View,
        strides: [i64; 2],
        /// Whether chunks of 16 bytes of rows begin at multiples of 16 bytes.
        chunks: bool,
    },
    /// What this writes for expressions of both coordinates.
    Gathered(Box<dyn Fn(&mut Text<'_>, &str, &str) -> Element + 'a>),
}

/// An element on its way into a tile.
pub(super) struct Element {
    /// Under which condition it is not 0, beyond that its coordinates are within the matrix.
    pub(super) inside: Option<String>,
    /// It, as it is stored.
    pub(super) stored: String,
    /// How it is stored.
    pub(super) dtype: DType,
}

impl<'a> Matrix<'a> {
    /// A factor by strides; those of its batch dimensions, `outer`, are added up in its base.
    pub(super) fn strided(
        name: &'static str,
        view: &'a View,
        strides: [i64; 2],
        sizes: [u64; 2],
        outer: &[i64],
    ) -> Matrix<'a> {
        let along_sum = strides[1] == 1 || strides[0] != 1 && strides[1] < strides[0];
        let (row, inner) = if along_sum { (0, 1) } else { (1, 0) };
        let multiple = |number: i64| number.rem_euclid(CHUNK as i64) == 0;
        let chunks = strides[inner] == 1
            && sizes[inner].is_multiple_of(CHUNK)
            && (sizes[row] == 1 || multiple(strides[row]))
            && multiple(view.offset)
            && outer.iter().all(|stride| multiple(*stride));
        let source = Source::Strided { view, strides, chunks };
        Matrix { name, sizes, dtype: view.dtype, along_sum, source }
    }

    /// The element at expressions of both coordinates.
    pub(super) fn element(&self, text: &mut Text<'_>, free: &str, deep: &str) -> Element {
        match &self.source {
            Source::Strided { view, strides, .. } => {
                let at = offset(&[free.into(), deep.into()], strides, 0);
                let stored = format!("p{}[base_{} + {at}]", view.operand, self.name);
                Element { inside: None, stored, dtype: view.dtype }
            }
            Source::Gathered(write) => write(text, free, deep),
        }
    }

    /// Declares `free` and `deep`, the place of an element of a tile, and `inside`, whether it is in the matrix; its value, as
    /// `convert` has it, or `zero`.
    pub(super) fn value(
        &self,
        text: &mut Text<'_>,
        [free, deep]: [&str; 2],
        zero: &str,
        convert: impl Fn(&mut Text<'_>, &Element) -> String,
    ) -> String {
        self.place(text, [free, deep]);
        let element = self.element(text, "free", "deep");
        let value = convert(text, &element);
        match &element.inside {
            Some(condition) => format!("inside && {condition} ? {value} : {zero}"),
            None => format!("inside ? {value} : {zero}"),
        }
    }

    /// Declares `free`, `deep` and `inside`.
    pub(super) fn place(&self, text: &mut Text<'_>, [free, deep]: [&str; 2]) {
        let tile = if self.name == "a" { "tile_m" } else { "tile_n" };
        text.unsigned("free", format!("{tile} + {free}"));
        text.unsigned("deep", deep);
        text.line(format!("const bool inside = free < {}u && deep < {}u;", self.sizes[0], self.sizes[1]));
    }
}

/// An element as f32.
pub(super) fn widened(text: &mut Text<'_>, element: &Element) -> String {
    code::decode(text, element.dtype, &element.stored)
}

/// Writes the kernel. `base` declares `base_a` and `base_b`, if they are needed, when `batch` is known; `finish` is the function's body.
///
/// # Errors
/// More work than a grid holds.
pub(super) fn multiply(
    task: &Task<'_>,
    text: &mut Text<'_>,
    base: impl FnOnce(&mut Text<'_>),
    finish: impl FnOnce(&mut Text<'_>) -> Result<(), EmitError>,
) -> Result<(), EmitError> {
    let on_tensor_cores = task.a.dtype == task.b.dtype && matches!(task.a.dtype, DType::Bf16 | DType::F16);
    let (tile, threads) = if on_tensor_cores { (tensor::TILE, tensor::THREADS) } else { tiles::shape(text) };
    let ([m, k], [n, _]) = (task.a.sizes, task.b.sizes);
    let (tiles_m, tiles_n) = (m.div_ceil(tile), n.div_ceil(tile));
    text.launch(tiles_m * tiles_n * task.batches, threads as u32);
    write_finish(text, [m, n], finish)?;
    // Tiles that share rows of the left factor come one after another.
    text.unsigned("batch", format!("blockIdx.x / {}u", tiles_m * tiles_n));
    text.unsigned("tile_m", format!("(blockIdx.x / {tiles_n}u) % {tiles_m}u * {tile}u"));
    text.unsigned("tile_n", format!("blockIdx.x % {tiles_n}u * {tile}u"));
    base(text);
    if on_tensor_cores {
        tensor::multiply(task, k, text)
    } else {
        tiles::multiply(task, k, text)
    }
    Ok(())
}

/// The function `finish(operands, batch, row, column, value)`.
fn write_finish(
    text: &mut Text<'_>,
    [m, n]: [u64; 2],
    write: impl FnOnce(&mut Text<'_>) -> Result<(), EmitError>,
) -> Result<(), EmitError> {
    let mark = text.body.len();
    text.line(format!("if (row >= {m}u || column >= {n}u) return;"));
    write(text)?;
    let body = text.take_since(mark);
    let parameters: String = (0..text.operands.len()).map(|index| text.parameter(index) + ", ").collect();
    text.globals += &format!(
        "static __device__ __forceinline__ void finish({parameters}unsigned batch, unsigned row, unsigned column, float value) {{\n\
         {body}}}\n"
    );
    Ok(())
}

/// A call of `finish`. All operands are declared by then.
pub(super) fn call_finish(text: &Text<'_>, row: &str, column: &str, value: &str) -> String {
    let operands: String = (0..text.operands.len()).map(|index| format!("p{index}, ")).collect();
    format!("finish({operands}batch, {row}, {column}, {value});")
}

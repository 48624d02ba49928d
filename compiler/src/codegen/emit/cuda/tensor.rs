//! Products of bf16 or f16 on tensor cores, with sums in f32.
//!
//! A block of eight warps computes 128 x 128 results, a warp 64 x 32 of them as 4 x 4 fragments of `mma.m16n8k16`. Tiles of 32 terms
//! pass through shared memory, two at a time: while one is multiplied, the next is copied. A factor lies there as in memory: along
//! the sum (rows of 32) or along its free dimension (rows of 128), whichever is contiguous; `ldmatrix` transposes the latter.
//! Rows are padded by 16 bytes, so that the eight rows that `ldmatrix` takes at a time lie in different banks.

use alip_plan::DType;

use super::matrix::{CHUNK, Element, Matrix, Source, Task, call_finish};
use super::{Text, code};

/// Rows and columns of a block's tile.
pub(super) const TILE: u64 = 128;
/// Threads: warps in two rows of four.
pub(super) const THREADS: u64 = 256;
/// Terms of a stage.
const DEPTH: u64 = 32;
/// Elements that a row is padded by.
const PAD: u64 = CHUNK;

pub(super) fn multiply(task: &Task<'_>, k: u64, text: &mut Text<'_>) {
    let Task { a, b, .. } = task;
    let mma = match a.dtype {
        DType::F16 => "mma_m16n8k16_f16",
        _ => "mma_m16n8k16_bf16",
    };
    text.functions.use_(mma);
    for name in ["cp_async_commit", "cp_async_wait"] {
        text.functions.use_(name);
    }
    for matrix in [a, b] {
        let [rows, _] = extent(matrix);
        text.share(format!("__align__(16) unsigned short t{}[2][{}]", matrix.name, rows * row(matrix)));
    }
    text.lines(
        "const unsigned lane = threadIdx.x % 32u, warp = threadIdx.x / 32u;
         const unsigned warp_m = warp / 4u * 64u, warp_n = warp % 4u * 32u;
         float sums[4][4][4] = {};
         unsigned stage = 0u;",
    );
    copy(a, text, "0u", "0u");
    copy(b, text, "0u", "0u");
    text.line("cp_async_commit();");
    text.line(format!("for (unsigned k0 = 0u; k0 < {k}u; k0 += {DEPTH}u) {{"));
    text.line(format!("if (k0 + {DEPTH}u < {k}u) {{"));
    copy(a, text, "stage ^ 1u", &format!("k0 + {DEPTH}u"));
    copy(b, text, "stage ^ 1u", &format!("k0 + {DEPTH}u"));
    text.line("}");
    text.lines(
        "cp_async_commit();
         cp_async_wait<1>();
         __syncthreads();
         #pragma unroll",
    );
    text.line(format!("for (unsigned q = 0u; q < {DEPTH}u; q += 16u) {{"));
    text.lines(
        "unsigned fa[4][4], fb[2][4];
         #pragma unroll
         for (unsigned i = 0u; i < 4u; i++) {",
    );
    fragment(a, text, "fa[i]", "warp_m + i * 16u");
    text.lines(
        "}
         #pragma unroll
         for (unsigned j = 0u; j < 2u; j++) {",
    );
    fragment(b, text, "fb[j]", "warp_n + j * 16u");
    text.lines(&format!(
        "}}
         #pragma unroll
         for (unsigned i = 0u; i < 4u; i++) {{
         #pragma unroll
         for (unsigned j = 0u; j < 4u; j++) {{
         const unsigned pair[2] = {{fb[j / 2u][j % 2u * 2u], fb[j / 2u][j % 2u * 2u + 1u]}};
         {mma}(sums[i][j], fa[i], pair);
         }}
         }}
         }}
         __syncthreads();
         stage ^= 1u;
         }}
         #pragma unroll
         for (unsigned i = 0u; i < 4u; i++) {{
         #pragma unroll
         for (unsigned j = 0u; j < 4u; j++) {{
         #pragma unroll
         for (unsigned e = 0u; e < 4u; e++) {{"
    ));
    text.line(call_finish(
        text,
        "tile_m + warp_m + i * 16u + lane / 4u + e / 2u * 8u",
        "tile_n + warp_n + j * 8u + lane % 4u * 2u + e % 2u",
        "sums[i][j][e]",
    ));
    (0..3).for_each(|_| text.line("}"));
}

/// Rows of a stage in shared memory, and their elements.
fn extent(matrix: &Matrix<'_>) -> [u64; 2] {
    if matrix.along_sum { [TILE, DEPTH] } else { [DEPTH, TILE] }
}

/// From one row to the next.
fn row(matrix: &Matrix<'_>) -> u64 {
    extent(matrix)[1] + PAD
}

/// Copies the terms from `k0` on into a stage; zeros beyond the edges.
fn copy(matrix: &Matrix<'_>, text: &mut Text<'_>, stage: &str, k0: &str) {
    let name = matrix.name;
    let [rows, width] = extent(matrix);
    let chunks = match &matrix.source {
        Source::Strided { view, chunks: true, .. } => Some(view.operand),
        _ => None,
    };
    let step = if chunks.is_some() { CHUNK } else { 1 };
    let per_row = width / step;
    text.line("#pragma unroll");
    text.line(format!("for (unsigned e = threadIdx.x; e < {}u; e += {THREADS}u) {{", rows * per_row));
    text.unsigned("row", format!("e / {per_row}u"));
    text.unsigned("column", format!("e % {per_row}u * {step}u"));
    let [free, deep] = if matrix.along_sum { ["row", "column"] } else { ["column", "row"] };
    let to = format!("t{name}[{stage}][row * {}u + column]", self::row(matrix));
    let deep = format!("{k0} + {deep}");
    if let Some(operand) = chunks {
        text.functions.use_("cp_async_16_zfill");
        matrix.place(text, [free, &deep]);
        let from = matrix.element(text, "free", "deep").stored;
        text.line(format!("cp_async_16_zfill(&{to}, inside ? &{from} : p{operand}, inside);"));
    } else {
        let dtype = matrix.dtype;
        let narrow = |text: &mut Text<'_>, element: &Element| {
            if element.dtype == dtype {
                return element.stored.clone();
            }
            let value = code::decode(text, element.dtype, &element.stored);
            code::encode(text, dtype, &value)
        };
        let value = matrix.value(text, [free, &deep], "(unsigned short)0", narrow);
        text.line(format!("{to} = {value};"));
    }
    text.line("}");
}

/// Loads 16 of the free dimension from `first` on and 16 terms, eight by eight for each register. A lane names a row of one of the
/// four. Of the left factor they are, by terms, the first eight rows and the next, then both at the next terms; of the right one
/// the first eight columns at both, then the next.
fn fragment(matrix: &Matrix<'_>, text: &mut Text<'_>, to: &str, first: &str) {
    let name = matrix.name;
    let row = row(matrix);
    let halves = ["lane % 16u", "lane / 16u * 8u"];
    let quarters = ["lane % 8u + lane / 16u * 8u", "lane / 8u % 2u * 8u"];
    let ([free, deep], [deep_across, free_across]) = if name == "a" { (halves, quarters) } else { (quarters, halves) };
    if matrix.along_sum {
        let load = text.functions.use_("ldmatrix_x4");
        text.line(format!("{load}({to}, &t{name}[stage][({first} + {free}) * {row}u + q + {deep}]);"));
    } else {
        let load = text.functions.use_("ldmatrix_x4_trans");
        text.line(format!("{load}({to}, &t{name}[stage][(q + {deep_across}) * {row}u + {first} + {free_across}]);"));
    }
}

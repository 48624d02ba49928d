//! Matrix products in f32: a block computes a tile, a thread 4 x 4 of its elements.
//!
//! Factors of other types are widened as they are read. Products of two factors of 16 bits are made by tensor cores (`tensor`).

use alip_plan::Tiles;
use alip_plan::kernel::{Product, View};

use super::code::{self, Scope};
use super::{EmitError, Text};
use crate::codegen::emit::terms::offset;

pub(super) fn emit(product: &Product, text: &mut Text<'_>) -> Result<(), EmitError> {
    let (m, n, k) = (product.m, product.n, product.k);
    let Tiles { product: tile, depth, .. } = text.tiles;
    // Threads on a side of the tile, each for four rows and four columns.
    let side = tile / 4;
    begin(product, tile, tile, (side * side) as u32, text)?;
    text.share(format!("__align__(16) float ta[{}]", tile * depth));
    text.share(format!("__align__(16) float tb[{}]", tile * depth));
    let finish = epilogue(product, text)?;
    text.globals.push_str(&finish);
    // Thread (ty, tx) owns rows 4 ty to 4 ty + 3 and columns 4 tx to 4 tx + 3 of the tile.
    text.unsigned("tx", format!("threadIdx.x % {side}u"));
    text.unsigned("ty", format!("threadIdx.x / {side}u"));
    text.line("float r[4][4] = {};");
    text.line(format!("for (unsigned k0 = 0u; k0 < {k}u; k0 += {depth}u) {{"));
    let rank = product.batch.len();
    let (a, b) = (&product.a, &product.b);
    Side { tile: "ta", view: a, base: "base_a", stride: a.strides[rank], start: "tile_m", size: m }.fill(
        text,
        a.strides[rank + 1],
        k,
    );
    Side { tile: "tb", view: b, base: "base_b", stride: b.strides[rank + 1], start: "tile_n", size: n }.fill(
        text,
        b.strides[rank],
        k,
    );
    text.line("__syncthreads();");
    text.count_to("q", depth);
    text.lines(&format!(
        "const float4 a = *(const float4*)(ta + q * {tile}u + ty * 4u);
         const float4 b = *(const float4*)(tb + q * {tile}u + tx * 4u);"
    ));
    for (i, x) in ["x", "y", "z", "w"].iter().enumerate() {
        for (j, y) in ["x", "y", "z", "w"].iter().enumerate() {
            text.line(format!("r[{i}][{j}] += a.{x} * b.{y};"));
        }
    }
    text.line("}");
    text.line("__syncthreads();");
    text.line("}");
    text.line("#pragma unroll");
    text.count_to("i", 4);
    text.line("#pragma unroll");
    text.count_to("j", 4);
    text.line(finish_call(text, "tile_m + ty * 4u + i", "tile_n + tx * 4u + j", "r[i][j]"));
    text.line("}");
    text.line("}");
    Ok(())
}

/// Declares `batch`, `tile_m`, `tile_n`, the tile's place, and `base_a` and `base_b`, where the factors of its batch begin. Tiles
/// that share columns of the right factor come one after another.
pub(super) fn begin(
    product: &Product,
    tile_m: u64,
    tile_n: u64,
    threads: u32,
    text: &mut Text<'_>,
) -> Result<(), EmitError> {
    let (tiles_m, tiles_n) = (product.m.div_ceil(tile_m), product.n.div_ceil(tile_n));
    let batches: u64 = product.batch.iter().product();
    text.launch(tiles_m * tiles_n * batches, threads);
    let (a, b) = (&product.a, &product.b);
    text.operands([a, b])?;
    text.unsigned("batch", format!("blockIdx.x / {}u", tiles_m * tiles_n));
    text.unsigned("tile_m", format!("(blockIdx.x / {tiles_n}u) % {tiles_m}u * {tile_m}u"));
    text.unsigned("tile_n", format!("blockIdx.x % {tiles_n}u * {tile_n}u"));
    let coords = code::unravel(text, "batch", &product.batch, "c");
    let rank = product.batch.len();
    text.unsigned("base_a", offset(&coords, &a.strides[..rank], a.offset));
    text.unsigned("base_b", offset(&coords, &b.strides[..rank], b.offset));
    Ok(())
}

/// The epilogue as a function `finish(operands, batch, row, column, value)`.
pub(super) fn epilogue(product: &Product, text: &mut Text<'_>) -> Result<String, EmitError> {
    let mark = text.body.len();
    text.line(format!("if (row >= {}u || column >= {}u) return;", product.m, product.n));
    let mut coords = code::unravel(text, "batch", &product.batch, "c");
    coords.extend(["row".to_string(), "column".to_string()]);
    let scope = Scope { product: Some("value"), ..Scope::plain(&product.views, &coords, "v") };
    code::write(text, &product.code, &scope)?;
    let body = text.take_since(mark);
    let parameters: String = (0..text.operands.len()).map(|index| text.parameter(index) + ", ").collect();
    Ok(format!(
        "static __device__ __forceinline__ void finish({parameters}unsigned batch, unsigned row, unsigned column, float value) {{\n\
         {body}}}\n"
    ))
}

/// A call of the epilogue. All operands are declared by then.
pub(super) fn finish_call(text: &Text<'_>, row: &str, column: &str, value: &str) -> String {
    let operands: String = (0..text.operands.len()).map(|index| format!("p{index}, ")).collect();
    format!("finish({operands}batch, {row}, {column}, {value});")
}

/// One factor of a product, seen along its free dimension.
struct Side<'a> {
    /// Shared array that holds the tile, k outermost.
    tile: &'a str,
    view: &'a View,
    /// Offset of the batch in the operand.
    base: &'a str,
    /// Stride of the free dimension.
    stride: i64,
    /// First index of the tile along the free dimension.
    start: &'a str,
    /// Size of the free dimension.
    size: u64,
}

impl Side<'_> {
    /// Loads its part of a tile, zeros beyond the edges; neighbouring threads read along the dimension with the smaller stride.
    fn fill(&self, text: &mut Text<'_>, k_stride: i64, k: u64) {
        let Side { tile, view, base, stride, start, size } = self;
        let Tiles { product: width, depth, .. } = text.tiles;
        let (elements, threads) = (width * depth, (width / 4).pow(2));
        text.line(format!("for (unsigned e = threadIdx.x; e < {elements}u; e += {threads}u) {{"));
        if k_stride < *stride {
            text.unsigned("q", format!("e % {depth}u"));
            text.unsigned("o", format!("e / {depth}u"));
        } else {
            text.unsigned("o", format!("e % {width}u"));
            text.unsigned("q", format!("e / {width}u"));
        }
        text.unsigned("free", format!("{start} + o"));
        text.unsigned("deep", "k0 + q");
        let at = offset(&["free".into(), "deep".into()], &[*stride, k_stride], 0);
        let element = code::decode(text, view.dtype, &format!("p{}[{base} + {at}]", view.operand));
        text.line(format!("{tile}[q * {width}u + o] = free < {size}u && deep < {k}u ? {element} : 0.0f;"));
        text.line("}");
    }
}

//! Products in f32: a thread computes 4 x 4 results of a block's tile. Factors of other types are widened as they are read.

use alip_plan::Tiles;

use super::Text;
use super::matrix::{Matrix, Task, call_finish, widened};

/// Rows and columns of a tile, and threads of a block: each has four rows and four columns.
pub(super) fn shape(text: &Text<'_>) -> (u64, u64) {
    let tile = text.tiles.product;
    (tile, (tile / 4).pow(2))
}

pub(super) fn multiply(task: &Task<'_>, k: u64, text: &mut Text<'_>) {
    let Tiles { product: tile, depth, .. } = text.tiles;
    let side = tile / 4;
    text.share(format!("__align__(16) float ta[{}]", tile * depth));
    text.share(format!("__align__(16) float tb[{}]", tile * depth));
    // Thread (ty, tx) owns rows 4 ty to 4 ty + 3 and columns 4 tx to 4 tx + 3 of the tile.
    text.unsigned("tx", format!("threadIdx.x % {side}u"));
    text.unsigned("ty", format!("threadIdx.x / {side}u"));
    text.line("float r[4][4] = {};");
    text.line(format!("for (unsigned k0 = 0u; k0 < {k}u; k0 += {depth}u) {{"));
    fill(&task.a, text);
    fill(&task.b, text);
    text.line("__syncthreads();");
    text.count_to("q", depth);
    text.lines(&format!(
        "const float4 a = *(const float4*)(ta + q * {tile}u + ty * 4u);
         const float4 b = *(const float4*)(tb + q * {tile}u + tx * 4u);"
    ));
    for (i, x) in ["x", "y", "z", "w"].iter().enumerate() {
        for (j, y) in ["x", "y", "z", "w"].iter().enumerate() {
            text.line(format!("r[{i}][{j}] = fmaf(a.{x}, b.{y}, r[{i}][{j}]);"));
        }
    }
    text.line("}");
    text.line("__syncthreads();");
    text.line("}");
    text.line("#pragma unroll");
    text.count_to("i", 4);
    text.line("#pragma unroll");
    text.count_to("j", 4);
    text.line(call_finish(text, "tile_m + ty * 4u + i", "tile_n + tx * 4u + j", "r[i][j]"));
    text.line("}");
    text.line("}");
}

/// Loads a factor's part of a tile, zeros beyond the edges; neighbouring threads read neighbours in memory.
fn fill(matrix: &Matrix<'_>, text: &mut Text<'_>) {
    let Tiles { product: width, depth, .. } = text.tiles;
    let (elements, threads) = (width * depth, (width / 4).pow(2));
    text.line(format!("for (unsigned e = threadIdx.x; e < {elements}u; e += {threads}u) {{"));
    if matrix.along_sum {
        text.unsigned("q", format!("e % {depth}u"));
        text.unsigned("o", format!("e / {depth}u"));
    } else {
        text.unsigned("o", format!("e % {width}u"));
        text.unsigned("q", format!("e / {width}u"));
    }
    let value = matrix.value(text, ["o", "k0 + q"], "0.0f", widened);
    text.line(format!("t{}[q * {width}u + o] = {value};", matrix.name));
    text.line("}");
}

//! Matrix products of bf16 or f16 on tensor cores, with sums in f32.
//!
//! A block of eight warps computes 128 x 128 results, a warp 64 x 32 of them as 4 x 4 fragments of `mma.m16n8k16`. Tiles of 32 terms
//! pass through shared memory, two at a time: while one is multiplied, the next is copied. A factor lies there as in memory: along
//! the sum (rows of 32) or along its free dimension (rows of 128), whichever is contiguous; `ldmatrix` transposes the latter.
//! Rows are padded by 16 bytes, so that the eight rows that `ldmatrix` takes at a time lie in different banks.

use alip_plan::DType;
use alip_plan::kernel::{Product, View};

use super::product::{begin, epilogue, finish_call};
use super::{EmitError, Text};
use crate::codegen::emit::terms::offset;

/// Rows and columns of a block's tile.
const TILE: u64 = 128;
/// Terms of a stage.
const DEPTH: u64 = 32;
/// Threads: warps in two rows of four.
const THREADS: u64 = 256;
/// Elements of a chunk of 16 bytes.
const CHUNK: u64 = 8;
/// Elements that a row is padded by.
const PAD: u64 = CHUNK;

/// Whether both factors are of one type of 16 bits.
pub(super) fn serves(product: &Product) -> bool {
    product.a.dtype == product.b.dtype && matches!(product.a.dtype, DType::Bf16 | DType::F16)
}

pub(super) fn emit(product: &Product, text: &mut Text<'_>) -> Result<(), EmitError> {
    begin(product, TILE, TILE, THREADS as u32, text)?;
    let rank = product.batch.len();
    let (a, b, k) = (&product.a, &product.b, product.k);
    let a = Factor::new("a", a, [a.strides[rank], a.strides[rank + 1]], [product.m, k], rank);
    let b = Factor::new("b", b, [b.strides[rank + 1], b.strides[rank]], [product.n, k], rank);
    let finish = epilogue(product, text)?;
    text.globals.push_str(&finish);
    let mma = match product.a.dtype {
        DType::F16 => "mma_m16n8k16_f16",
        _ => "mma_m16n8k16_bf16",
    };
    for name in [mma, "ldmatrix_x4", "ldmatrix_x4_trans", "cp_async_16_zfill", "cp_async_commit", "cp_async_wait"] {
        text.functions.use_(name);
    }
    for factor in [&a, &b] {
        text.share(format!("__align__(16) unsigned short t{}[2][{}]", factor.name, factor.stage()));
    }
    text.lines(
        "const unsigned lane = threadIdx.x % 32u, warp = threadIdx.x / 32u;
         const unsigned warp_m = warp / 4u * 64u, warp_n = warp % 4u * 32u;
         float sums[4][4][4] = {};",
    );
    let stages = k.div_ceil(DEPTH);
    text.line("unsigned stage = 0u;");
    a.copy(text, "0u", "0u");
    b.copy(text, "0u", "0u");
    text.line("cp_async_commit();");
    text.line(format!("for (unsigned k0 = 0u; k0 < {}u; k0 += {DEPTH}u) {{", stages * DEPTH));
    text.line(format!("if (k0 + {DEPTH}u < {k}u) {{"));
    a.copy(text, "stage ^ 1u", &format!("k0 + {DEPTH}u"));
    b.copy(text, "stage ^ 1u", &format!("k0 + {DEPTH}u"));
    text.line("}");
    text.lines(
        "cp_async_commit();
         cp_async_wait<1>();
         __syncthreads();
         #pragma unroll",
    );
    text.line(format!("for (unsigned q = 0u; q < {DEPTH}u; q += 16u) {{"));
    text.line("unsigned fa[4][4], fb[2][4];");
    text.line("#pragma unroll");
    text.line("for (unsigned i = 0u; i < 4u; i++) {");
    // Rows g and g + 8 at the first eight terms, then at the next.
    a.fragment(
        text,
        "fa[i]",
        "warp_m + i * 16u",
        ["lane % 16u", "lane / 16u * 8u"],
        ["lane % 8u + lane / 16u * 8u", "lane / 8u % 2u * 8u"],
    );
    text.line("}");
    text.line("#pragma unroll");
    text.line("for (unsigned j = 0u; j < 2u; j++) {");
    // Columns g at the first eight terms, then at the next; then columns g + 8.
    b.fragment(
        text,
        "fb[j]",
        "warp_n + j * 16u",
        ["lane % 8u + lane / 16u * 8u", "lane / 8u % 2u * 8u"],
        ["lane % 16u", "lane / 16u * 8u"],
    );
    text.line("}");
    text.line("#pragma unroll");
    text.line("for (unsigned i = 0u; i < 4u; i++) {");
    text.line("#pragma unroll");
    text.line("for (unsigned j = 0u; j < 4u; j++) {");
    text.line("const unsigned pair[2] = {fb[j / 2u][j % 2u * 2u], fb[j / 2u][j % 2u * 2u + 1u]};");
    text.line(format!("{mma}(sums[i][j], fa[i], pair);"));
    text.line("}");
    text.line("}");
    text.line("}");
    text.line("__syncthreads();");
    text.line("stage ^= 1u;");
    text.line("}");
    text.line("#pragma unroll");
    text.line("for (unsigned i = 0u; i < 4u; i++) {");
    text.line("#pragma unroll");
    text.line("for (unsigned j = 0u; j < 4u; j++) {");
    text.line("#pragma unroll");
    text.line("for (unsigned e = 0u; e < 4u; e++) {");
    text.line(finish_call(
        text,
        "tile_m + warp_m + i * 16u + lane / 4u + e / 2u * 8u",
        "tile_n + warp_n + j * 8u + lane % 4u * 2u + e % 2u",
        "sums[i][j][e]",
    ));
    text.line("}");
    text.line("}");
    text.line("}");
    Ok(())
}

/// One factor of a product: its free dimension and that of the sum.
struct Factor<'a> {
    name: &'static str,
    view: &'a View,
    /// Of the free dimension and of the sum's.
    strides: [i64; 2],
    sizes: [u64; 2],
    /// Whether rows of shared memory lie along the sum.
    along_sum: bool,
    /// Whether chunks of 16 bytes lie within rows and begin at multiples of 16 bytes.
    chunks: bool,
}

impl Factor<'_> {
    fn new<'a>(name: &'static str, view: &'a View, strides: [i64; 2], sizes: [u64; 2], rank: usize) -> Factor<'a> {
        let along_sum = strides[1] == 1 || strides[0] != 1 && strides[1] < strides[0];
        let (row, inner) = if along_sum { (0, 1) } else { (1, 0) };
        let multiple = |number: i64| number.rem_euclid(CHUNK as i64) == 0;
        let chunks = strides[inner] == 1
            && sizes[inner].is_multiple_of(CHUNK)
            && (sizes[row] == 1 || multiple(strides[row]))
            && multiple(view.offset)
            && view.strides[..rank].iter().all(|stride| multiple(*stride));
        Factor { name, view, strides, sizes, along_sum, chunks }
    }

    /// Rows and elements of a row of a stage.
    fn extent(&self) -> [u64; 2] {
        if self.along_sum { [TILE, DEPTH] } else { [DEPTH, TILE] }
    }

    fn row(&self) -> u64 {
        self.extent()[1] + PAD
    }

    /// Elements of a stage.
    fn stage(&self) -> u64 {
        self.extent()[0] * self.row()
    }

    /// Copies the terms from `k0` on into a stage; zeros beyond the edges.
    fn copy(&self, text: &mut Text<'_>, stage: &str, k0: &str) {
        let Factor { name, view, strides, sizes, .. } = self;
        let [rows, width] = self.extent();
        let step = if self.chunks { CHUNK } else { 1 };
        let per_row = width / step;
        text.line("#pragma unroll");
        text.line(format!("for (unsigned e = threadIdx.x; e < {}u; e += {THREADS}u) {{", rows * per_row));
        text.unsigned("row", format!("e / {per_row}u"));
        text.unsigned("column", format!("e % {per_row}u * {step}u"));
        let [free, deep] = if self.along_sum { ["row", "column"] } else { ["column", "row"] };
        text.unsigned("free", format!("tile_{} + {free}", if *name == "a" { "m" } else { "n" }));
        text.unsigned("deep", format!("{k0} + {deep}"));
        text.line(format!("const bool inside = free < {}u && deep < {}u;", sizes[0], sizes[1]));
        let at = offset(&["free".into(), "deep".into()], strides, 0);
        let (from, to) = (view.operand, format!("t{name}[{stage}][row * {}u + column]", self.row()));
        if self.chunks {
            text.line(format!("cp_async_16_zfill(&{to}, p{from} + (inside ? base_{name} + {at} : 0u), inside);"));
        } else {
            text.line(format!("{to} = inside ? p{from}[base_{name} + {at}] : (unsigned short)0;"));
        }
        text.line("}");
    }

    /// Loads 16 of the free dimension from `first` on and 16 terms: eight by eight elements for each register. A lane names a row of
    /// one of the four: its place along the free dimension and the sum, for rows along the sum or, transposed, for the others.
    fn fragment(&self, text: &mut Text<'_>, to: &str, first: &str, straight: [&str; 2], transposed: [&str; 2]) {
        let name = self.name;
        let row = self.row();
        if self.along_sum {
            let [free, deep] = straight;
            text.line(format!("ldmatrix_x4({to}, &t{name}[stage][({first} + {free}) * {row}u + q + {deep}]);"));
        } else {
            let [deep, free] = transposed;
            text.line(format!("ldmatrix_x4_trans({to}, &t{name}[stage][(q + {deep}) * {row}u + {first} + {free}]);"));
        }
    }
}

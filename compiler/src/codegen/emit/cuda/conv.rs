//! Convolutions: a thread per result, or a block for a weight's gradient, which sums over all images.

use alip_plan::Tiles;
use alip_plan::kernel::{Conv2d, ConvKind, View};

use super::code::{self, Scope};
use super::{EmitError, Text};

pub(super) fn emit(conv: &Conv2d, text: &mut Text<'_>) -> Result<(), EmitError> {
    text.operands([&conv.a, &conv.b, &conv.out])?;
    let pixel = first(conv, text)?;
    text.globals.push_str(&pixel);
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, o, kh, kw, stride, padding, .. } = *conv;
    // Each sum is cut into rows, whose partial sums are added: rounding errors grow with the root of the rows' number.
    let term = match conv.kind {
        ConvKind::Forward => {
            text.thread_per("point", n * o * oh * ow)?;
            let at = code::unravel(text, "point", &[n, o, oh, ow], "c");
            open_sum(text, c, kh);
            text.line(format!("const int y = (int)({} * {stride}u + ky) - {padding};", at[2]));
            text.line(format!("if (y < 0 || y >= {h}) continue;"));
            text.count_to("kx", kw);
            text.line(format!("const int x = (int)({} * {stride}u + kx) - {padding};", at[3]));
            text.line(format!("if (x < 0 || x >= {w}) continue;"));
            let weight = dense(text, &conv.b, &format!("(({} * {c}u + i) * {kh}u + ky) * {kw}u + kx", at[1]));
            format!("{} * {weight}", at_pixel(conv, &at[0], "i", "(unsigned)y", "(unsigned)x"))
        }
        ConvKind::ImageGrad => {
            text.thread_per("point", n * c * h * w)?;
            let at = code::unravel(text, "point", &[n, c, h, w], "c");
            open_sum(text, o, kh);
            text.line(format!("const int y = (int)({}) + {padding} - (int)ky;", at[2]));
            text.line(format!("if (y < 0 || y % {stride} != 0 || y / {stride} >= {oh}) continue;"));
            text.count_to("kx", kw);
            text.line(format!("const int x = (int)({}) + {padding} - (int)kx;", at[3]));
            text.line(format!("if (x < 0 || x % {stride} != 0 || x / {stride} >= {ow}) continue;"));
            let weight = dense(text, &conv.b, &format!("((i * {c}u + {}) * {kh}u + ky) * {kw}u + kx", at[1]));
            let [y, x] = ["y", "x"].map(|z| format!("(unsigned)({z} / {stride})"));
            format!("{} * {weight}", at_pixel(conv, &at[0], "i", &y, &x))
        }
        ConvKind::WeightGrad => return weight_grad(conv, text),
    };
    text.line(format!("part += {term};"));
    text.line("}");
    text.line("}");
    text.line("total += part;");
    text.line("}");
    store(conv, text, "total");
    Ok(())
}

/// Opens the loops over channels and rows of the window; `total` and `part` are their sums.
fn open_sum(text: &mut Text<'_>, channels: u64, rows: u64) {
    text.line("float total = 0.0f;");
    text.count_to("i", channels);
    text.line("float part = 0.0f;");
    text.count_to("ky", rows);
}

/// Long sums are shared by a block, a thread takes rows of the output.
fn weight_grad(conv: &Conv2d, text: &mut Text<'_>) -> Result<(), EmitError> {
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, o, kh, kw, stride, padding, .. } = *conv;
    let (weights, rows) = (o * c * kh * kw, n * oh);
    let Tiles { long_sum, sum_threads, .. } = text.tiles;
    let width = if rows * ow > long_sum { sum_threads } else { 1 };
    if width > 1 {
        text.launch(weights, width as u32);
        text.unsigned("point", "blockIdx.x");
    } else {
        text.thread_per("point", weights)?;
    }
    let at = code::unravel(text, "point", &[o, c, kh, kw], "c");
    text.line("float total = 0.0f;");
    let first = if width > 1 { "threadIdx.x" } else { "0u" };
    text.line(format!("for (unsigned row = {first}; row < {rows}u; row += {width}u) {{"));
    text.unsigned("i", format!("row / {oh}u"));
    text.unsigned("oy", format!("row % {oh}u"));
    text.line(format!("const int y = (int)(oy * {stride}u + {}) - {padding};", at[2]));
    text.line(format!("if (y < 0 || y >= {h}) continue;"));
    text.line("float part = 0.0f;");
    text.count_to("ox", ow);
    text.line(format!("const int x = (int)(ox * {stride}u + {}) - {padding};", at[3]));
    text.line(format!("if (x < 0 || x >= {w}) continue;"));
    let gradient = dense(text, &conv.b, &format!("((i * {o}u + {}) * {oh}u + oy) * {ow}u + ox", at[0]));
    text.line(format!("part += {} * {gradient};", at_pixel(conv, "i", &at[1], "(unsigned)y", "(unsigned)x")));
    text.line("}");
    text.line("total += part;");
    text.line("}");
    if width > 1 {
        text.share(format!("float totals[{width}]"));
        text.lines(&format!(
            "totals[threadIdx.x] = total;
             __syncthreads();
             for (unsigned half = {}u; half > 0u; half >>= 1) {{
             if (threadIdx.x < half) totals[threadIdx.x] += totals[threadIdx.x + half];
             __syncthreads();
             }}
             if (threadIdx.x != 0u) return;",
            width / 2
        ));
        store(conv, text, "totals[0]");
    } else {
        store(conv, text, "total");
    }
    Ok(())
}

fn store(conv: &Conv2d, text: &mut Text<'_>, value: &str) {
    let value = code::encode(text, conv.out.dtype, value);
    text.line(format!("p{}[{}u + point] = {value};", conv.out.operand, conv.out.offset as u32));
}

/// An element of a dense operand.
fn dense(text: &mut Text<'_>, view: &View, at: &str) -> String {
    code::decode(text, view.dtype, &format!("p{}[{}u + {at}]", view.operand, view.offset as u32))
}

/// The first factor as a function `pixel(operand, n, c, y, x)`: as it is stored, or what its prologue makes of it.
fn first(conv: &Conv2d, text: &mut Text<'_>) -> Result<String, EmitError> {
    let mark = text.body.len();
    let coords = ["n", "c", "y", "x"].map(String::from);
    let value = if conv.prologue.instrs.is_empty() {
        let [[_, channels, height, width], ..] = conv.domains();
        dense(text, &conv.a, &format!("((n * {channels}u + c) * {height}u + y) * {width}u + x"))
    } else {
        let scope = Scope::plain(std::slice::from_ref(&conv.a), &coords, "v");
        code::write(text, &conv.prologue, &scope)?.pop().unwrap_or_else(|| "0.0f".into())
    };
    text.line(format!("return {value};"));
    let body = text.take_since(mark);
    let operand = text.parameter(usize::from(conv.a.operand));
    Ok(format!(
        "static __device__ __forceinline__ float pixel({operand}, unsigned n, unsigned c, unsigned y, unsigned x) {{\n{body}}}\n"
    ))
}

fn at_pixel(conv: &Conv2d, n: &str, c: &str, y: &str, x: &str) -> String {
    format!("pixel(p{}, {n}, {c}, {y}, {x})", conv.a.operand)
}

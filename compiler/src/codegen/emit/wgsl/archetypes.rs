//! One function per archetype of kernel loops.

use alip_plan::Tiles;
use alip_plan::kernel::{Conv2d, ConvKind, Loop, Map, Product, ScatterAdd, View};

use super::code::{self, Scope};
use super::{EmitError, Shader, attention, reduction};

pub(super) fn emit(kernel: &Loop, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    match kernel {
        Loop::Map(map) => emit_map(map, shader),
        Loop::Reduction(reduction) => reduction::emit(reduction, shader),
        Loop::Product(product) => emit_product(product, shader),
        Loop::Conv2d(conv) => emit_conv(conv, shader),
        Loop::ScatterAdd(scatter) => emit_scatter(scatter, shader),
        Loop::Attention(attention) => attention::emit(attention, shader),
    }
}

/// A thread per point: declares `point` and leaves when it is beyond `count`.
pub(super) fn thread_per(shader: &mut Shader<'_>, count: u64) -> Result<(), EmitError> {
    if count > u64::from(u32::MAX) {
        return Err(EmitError(format!(
            "{count} points in one kernel are more than 32 bits number; use a smaller batch"
        )));
    }
    let size = shader.target.workgroup_size;
    shader.launch(count.div_ceil(u64::from(size)), size);
    shader.line(format!("let point = work * {size}u + lane;"));
    shader.leave_beyond(&[("point", count)]);
    Ok(())
}

fn emit_map(map: &Map, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    thread_per(shader, map.domain.iter().product())?;
    let coords = code::unravel(shader, "point", &map.domain, "c");
    let scope = Scope {
        views: &map.views,
        coords: &coords,
        slots: &[],
        prefix: "v",
        store_if: None,
        shared: false,
        product: None,
    };
    code::write(shader, &map.code, &scope)?;
    Ok(())
}

fn emit_product(product: &Product, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    let (m, n, k) = (product.m, product.n, product.k);
    let Tiles { product: tile, depth, .. } = shader.tiles;
    let (tiles_m, tiles_n) = (m.div_ceil(tile), n.div_ceil(tile));
    // Threads on a side of the tile, each for four rows and four columns.
    let side = tile / 4;
    let batch: u64 = product.batch.iter().product();
    shader.launch(tiles_m * tiles_n * batch, (side * side) as u32);
    shader.operand(product.a.operand, product.a.dtype)?;
    shader.operand(product.b.operand, product.b.dtype)?;
    let store = epilogue(product, shader)?;
    shader.globals.push_str(&format!(
        "var<workgroup> ta: array<vec4<f32>, {size}>;\nvar<workgroup> tb: array<vec4<f32>, {size}>;\n{store}",
        size = tile * depth / 4
    ));

    shader.line(format!("let batch = work / {}u;", tiles_m * tiles_n));
    shader.leave_beyond(&[("batch", batch)]);
    shader.line(format!("let tile_m = (work / {tiles_n}u) % {tiles_m}u * {tile}u;"));
    shader.line(format!("let tile_n = work % {tiles_n}u * {tile}u;"));
    let coords = code::unravel(shader, "batch", &product.batch, "c");
    let (a, b) = (&product.a, &product.b);
    let rank = product.batch.len();
    shader.line(format!("let base_a = {};", code::offset(&coords, &a.strides[..rank], a.offset)));
    shader.line(format!("let base_b = {};", code::offset(&coords, &b.strides[..rank], b.offset)));
    // Thread (ty, tx) owns rows 4 ty to 4 ty + 3 and columns 4 tx to 4 tx + 3 of the tile; r{i} is a row.
    shader.line(format!("let tx = lane % {side}u;"));
    shader.line(format!("let ty = lane / {side}u;"));
    for i in 0..4 {
        shader.line(format!("var r{i} = vec4<f32>();"));
    }
    shader.repeat(&format!("for (var k0 = 0u; k0 < {k}u; k0 += {depth}u)"), k.div_ceil(depth));
    let rows =
        Side { tile: "ta", operand: a.operand, base: "base_a", stride: a.strides[rank], start: "tile_m", size: m };
    rows.load_tile(shader, a.strides[rank + 1], k);
    let columns =
        Side { tile: "tb", operand: b.operand, base: "base_b", stride: b.strides[rank + 1], start: "tile_n", size: n };
    columns.load_tile(shader, b.strides[rank], k);
    shader.line("workgroupBarrier();");
    shader.repeat(&format!("for (var q = 0u; q < {depth}u; q++)"), depth);
    shader.line(format!("let a = ta[q * {side}u + ty];"));
    shader.line(format!("let b = tb[q * {side}u + tx];"));
    for i in 0..4 {
        shader.line(format!("r{i} += a[{i}] * b;"));
    }
    shader.line("}");
    shader.line("workgroupBarrier();");
    shader.line("}");
    for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
        shader.line(format!("finish(batch, tile_m + ty * 4u + {i}u, tile_n + tx * 4u + {j}u, r{i}[{j}]);"));
    }
    Ok(())
}

/// The epilogue as a function `finish(batch, row, column, value)`.
fn epilogue(product: &Product, shader: &mut Shader<'_>) -> Result<String, EmitError> {
    let mark = shader.body.len();
    shader.leave_beyond(&[("row", product.m), ("column", product.n)]);
    let mut coords = code::unravel(shader, "batch", &product.batch, "c");
    coords.extend(["row".to_string(), "column".to_string()]);
    let scope = Scope {
        views: &product.views,
        coords: &coords,
        slots: &[],
        prefix: "v",
        store_if: None,
        product: Some("value"),
        shared: false,
    };
    code::write(shader, &product.code, &scope)?;
    let body = shader.take_since(mark);
    Ok(format!("fn finish(batch: u32, row: u32, column: u32, value: f32) {{\n{body}}}\n"))
}

/// One factor of a product, seen along its free dimension.
struct Side<'a> {
    /// Workgroup array that holds the tile, k outermost, four neighbours of the free dimension in a vector.
    tile: &'a str,
    operand: u16,
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
    fn load_tile(&self, shader: &mut Shader<'_>, k_stride: i64, k: u64) {
        let Side { tile, operand, base, stride, start, size } = self;
        let Tiles { product: width, depth, .. } = shader.tiles;
        let (elements, threads) = (width * depth, (width / 4).pow(2));
        let head = format!("for (var e = lane; e < {elements}u; e += {threads}u)");
        shader.repeat(&head, elements.div_ceil(threads));
        if k_stride < *stride {
            shader.line(format!("let q = e % {depth}u;"));
            shader.line(format!("let o = e / {depth}u;"));
        } else {
            shader.line(format!("let o = e % {width}u;"));
            shader.line(format!("let q = e / {width}u;"));
        }
        shader.line(format!("let free = {start} + o;"));
        shader.line("let deep = k0 + q;");
        shader.line("var x = 0.0f;");
        shader.line(format!("if (free < {size}u && deep < {k}u) {{"));
        let at = code::offset(&["free".into(), "deep".into()], &[*stride, k_stride], 0);
        shader.line(format!("x = p{operand}[{base} + {at}];"));
        shader.line("}");
        shader.line(format!("{tile}[q * {}u + o / 4u][o % 4u] = x;", width / 4));
        shader.line("}");
    }
}

/// Declares an operand that is walked from a view's offset on; the text up to the number of an element there.
fn dense(shader: &mut Shader<'_>, view: &View) -> Result<String, EmitError> {
    shader.operand(view.operand, view.dtype)?;
    Ok(match view.offset {
        0 => format!("p{}[", view.operand),
        offset => format!("p{}[{offset}u + ", view.operand),
    })
}

/// The first factor of a convolution at a point of its domain, as an expression.
struct First<'a> {
    conv: &'a Conv2d,
    /// The text up to the number of an element; none where pixels are made of elements, by a function `pixel`.
    stored: Option<String>,
}

impl First<'_> {
    fn new<'a>(conv: &'a Conv2d, shader: &mut Shader<'_>) -> Result<First<'a>, EmitError> {
        let stored = if conv.prologue.instrs.is_empty() {
            Some(dense(shader, &conv.a)?)
        } else {
            let pixel = pixel(conv, shader)?;
            shader.globals.push_str(&pixel);
            None
        };
        Ok(First { conv, stored })
    }

    fn at(&self, [n, c, y, x]: [&str; 4]) -> String {
        let [[_, channels, height, width], ..] = self.conv.domains();
        match &self.stored {
            Some(a) => format!("{a}(({n} * {channels}u + {c}) * {height}u + {y}) * {width}u + {x}]"),
            None => format!("pixel({n}, {c}, {y}, {x})"),
        }
    }
}

/// The prologue of a convolution as a function `pixel(n, c, y, x)`.
fn pixel(conv: &Conv2d, shader: &mut Shader<'_>) -> Result<String, EmitError> {
    let mark = shader.body.len();
    let scope = Scope {
        views: std::slice::from_ref(&conv.a),
        coords: &["n", "c", "y", "x"].map(String::from),
        slots: &[],
        prefix: "v",
        store_if: None,
        product: None,
        shared: false,
    };
    let values = code::write(shader, &conv.prologue, &scope)?;
    let last = values.last().map_or("0.0f", String::as_str);
    shader.line(format!("return {last};"));
    let body = shader.take_since(mark);
    Ok(format!("fn pixel(n: u32, c: u32, y: u32, x: u32) -> f32 {{\n{body}}}\n"))
}

fn emit_conv(conv: &Conv2d, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    let a = First::new(conv, shader)?;
    let (b, result) = (dense(shader, &conv.b)?, dense(shader, &conv.out)?);
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, o, kh, kw, stride, padding, .. } = *conv;
    // Each sum is cut into rows, whose partial sums are added: rounding errors grow with the root of the rows' number.
    match conv.kind {
        ConvKind::Forward => {
            thread_per(shader, n * o * oh * ow)?;
            let at = code::unravel(shader, "point", &[n, o, oh, ow], "c");
            shader.line("var total = 0.0f;");
            shader.count_to("i", c);
            shader.line("var part = 0.0f;");
            shader.count_to("ky", kh);
            shader.line(format!("let y = i32({} * {stride}u + ky) - {padding};", at[2]));
            shader.line(format!("if (y < 0 || y >= {h}) {{ continue; }}"));
            shader.count_to("kx", kw);
            shader.line(format!("let x = i32({} * {stride}u + kx) - {padding};", at[3]));
            shader.line(format!("if (x < 0 || x >= {w}) {{ continue; }}"));
            shader.line(format!(
                "part += {} * {b}(({} * {c}u + i) * {kh}u + ky) * {kw}u + kx];",
                a.at([&at[0], "i", "u32(y)", "u32(x)"]),
                at[1]
            ));
        }
        ConvKind::ImageGrad => {
            thread_per(shader, n * c * h * w)?;
            let at = code::unravel(shader, "point", &[n, c, h, w], "c");
            shader.line("var total = 0.0f;");
            shader.count_to("i", o);
            shader.line("var part = 0.0f;");
            shader.count_to("ky", kh);
            shader.line(format!("let y = i32({}) + {padding} - i32(ky);", at[2]));
            shader.line(format!("if (y < 0 || y % {stride} != 0 || y / {stride} >= {oh}) {{ continue; }}"));
            shader.count_to("kx", kw);
            shader.line(format!("let x = i32({}) + {padding} - i32(kx);", at[3]));
            shader.line(format!("if (x < 0 || x % {stride} != 0 || x / {stride} >= {ow}) {{ continue; }}"));
            shader.line(format!(
                "part += {} * {b}((i * {c}u + {}) * {kh}u + ky) * {kw}u + kx];",
                a.at([&at[0], "i", &format!("u32(y / {stride})"), &format!("u32(x / {stride})")]),
                at[1]
            ));
        }
        ConvKind::WeightGrad => return emit_weight_grad(conv, &a, [&b, &result], shader),
    }
    shader.line("}");
    shader.line("}");
    shader.line("total += part;");
    shader.line("}");
    shader.line(format!("{result}point] = total;"));
    Ok(())
}

/// A weight's gradient sums over all images: long sums are shared by a workgroup, a thread takes rows of the output.
fn emit_weight_grad(
    conv: &Conv2d,
    a: &First<'_>,
    [b, result]: [&str; 2],
    shader: &mut Shader<'_>,
) -> Result<(), EmitError> {
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, o, kh, kw, stride, padding, .. } = *conv;
    let (weights, rows) = (o * c * kh * kw, n * oh);
    let Tiles { long_sum, sum_threads, .. } = shader.tiles;
    let width = if rows * ow > long_sum { sum_threads } else { 1 };
    if width > 1 {
        shader.launch(weights, width as u32);
        shader.line("let point = work;");
        shader.leave_beyond(&[("point", weights)]);
    } else {
        thread_per(shader, weights)?;
    }
    let at = code::unravel(shader, "point", &[o, c, kh, kw], "c");
    shader.line("var total = 0.0f;");
    let first = if width > 1 { "lane" } else { "0u" };
    shader.repeat(&format!("for (var row = {first}; row < {rows}u; row += {width}u)"), rows.div_ceil(width));
    shader.line(format!("let i = row / {oh}u;"));
    shader.line(format!("let oy = row % {oh}u;"));
    shader.line(format!("let y = i32(oy * {stride}u + {}) - {padding};", at[2]));
    shader.line(format!("if (y < 0 || y >= {h}) {{ continue; }}"));
    shader.line("var part = 0.0f;");
    shader.count_to("ox", ow);
    shader.line(format!("let x = i32(ox * {stride}u + {}) - {padding};", at[3]));
    shader.line(format!("if (x < 0 || x >= {w}) {{ continue; }}"));
    shader.line(format!(
        "part += {} * {b}((i * {o}u + {}) * {oh}u + oy) * {ow}u + ox];",
        a.at(["i", &at[1], "u32(y)", "u32(x)"]),
        at[0]
    ));
    shader.line("}");
    shader.line("total += part;");
    shader.line("}");
    if width == 1 {
        shader.line(format!("{result}point] = total;"));
        return Ok(());
    }
    shader.globals.push_str(&format!("var<workgroup> totals: array<f32, {width}>;\n"));
    shader.line("totals[lane] = total;");
    shader.line("workgroupBarrier();");
    shader.repeat(&format!("for (var half = {}u; half > 0u; half = half >> 1u)", width / 2), width.ilog2().into());
    shader.line("if (lane < half) { totals[lane] += totals[lane + half]; }");
    shader.line("workgroupBarrier();");
    shader.line("}");
    shader.line(format!("if (lane == 0u) {{ {result}point] = totals[0]; }}"));
    Ok(())
}

fn emit_scatter(scatter: &ScatterAdd, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    let ScatterAdd { batch, count, rows, inner, .. } = *scatter;
    let chunk = inner.clamp(1, shader.tiles.scatter_chunk);
    let chunks = inner.div_ceil(chunk);
    let index = dense(shader, &scatter.index)?;
    let (updates, result) = (dense(shader, &scatter.updates)?, dense(shader, &scatter.out)?);
    // Neighbouring threads own neighbouring rows, each a chunk of one: they scan the same indices together.
    thread_per(shader, batch * chunks * rows)?;
    let at = code::unravel(shader, "point", &[batch, chunks, rows], "c");
    shader.line(format!("let first = {} * {chunk}u;", at[1]));
    let inside = |e: u64, statement: String| match inner % chunk {
        0 => statement,
        _ => format!("if (first + {e}u < {inner}u) {{ {statement} }}"),
    };
    for e in 0..chunk {
        shader.line(format!("var a{e} = 0.0f;"));
    }
    shader.count_to("i", count);
    shader.line(format!("if (clamp({index}{} * {count}u + i], 0, {}) == i32({})) {{", at[0], rows - 1, at[2]));
    shader.line(format!("let update = ({} * {count}u + i) * {inner}u + first;", at[0]));
    for e in 0..chunk {
        shader.line(inside(e, format!("a{e} += {updates}update + {e}u];")));
    }
    shader.line("}");
    shader.line("}");
    shader.line(format!("let out = ({} * {rows}u + {}) * {inner}u + first;", at[0], at[2]));
    for e in 0..chunk {
        shader.line(inside(e, format!("{result}out + {e}u] = a{e};")));
    }
    Ok(())
}

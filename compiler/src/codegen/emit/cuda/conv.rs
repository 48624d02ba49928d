//! Convolutions as products: rows are points of the result, columns its channels, and a sum goes over the window.
//!
//! | kind | rows | columns | sum |
//! | --- | --- | --- | --- |
//! | forward | image, y, x of the output | output channel | input channel, window |
//! | image gradient | image, y, x of the input | input channel | output channel, window |
//! | weight gradient | output channel | input channel, window | image, y, x of the output |
//!
//! No matrix of windows is ever stored: elements are gathered as tiles are filled.

use alip_plan::DType;
use alip_plan::kernel::{Conv2d, ConvKind, ScalarOp, View};

use super::code::{self, Scope};
use super::matrix::{Element, Matrix, Source, Task, multiply};
use super::{EmitError, Text};

pub(super) fn emit(conv: &Conv2d, text: &mut Text<'_>) -> Result<(), EmitError> {
    text.operands([&conv.a, &conv.b, &conv.out])?;
    let pixel = first(conv, text)?;
    text.globals.push_str(&pixel);
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, o, kh, kw, .. } = *conv;
    let image = multiplied_as(conv);
    let gathered = |name, sizes, dtype, along_sum, write: Write| {
        let source = Source::Gathered(Box::new(move |text: &mut Text<'_>, free: &str, deep: &str| {
            write(conv, text, free, deep)
        }));
        Matrix { name, sizes, dtype, along_sum, source }
    };
    let window = c * kh * kw;
    let (a, b) = match conv.kind {
        ConvKind::Forward => (
            gathered("a", [n * oh * ow, window], image, true, window_of_image),
            gathered("b", [o, window], conv.b.dtype, true, weight),
        ),
        ConvKind::ImageGrad => (
            gathered("a", [n * h * w, o * kh * kw], conv.a.dtype, false, window_of_gradient),
            gathered("b", [c, o * kh * kw], conv.b.dtype, true, weight_across),
        ),
        ConvKind::WeightGrad => (
            gathered("a", [o, n * oh * ow], conv.b.dtype, true, gradient),
            gathered("b", [window, n * oh * ow], image, true, image_of_window),
        ),
    };
    multiply(
        &Task { batches: 1, a, b },
        text,
        |_| (),
        |text| {
            // Where the channel stands among the dimensions of the result.
            let (inner, channels) = match conv.kind {
                ConvKind::Forward => (oh * ow, o),
                ConvKind::ImageGrad => (h * w, c),
                ConvKind::WeightGrad => (1, window),
            };
            let place = match conv.kind {
                ConvKind::WeightGrad => format!("row * {channels}u + column"),
                _ => format!("(row / {inner}u * {channels}u + column) * {inner}u + row % {inner}u"),
            };
            let value = code::encode(text, conv.out.dtype, "value");
            text.line(format!("p{}[{}u + {place}] = {value};", conv.out.operand, conv.out.offset as u32));
            Ok(())
        },
    )
}

/// Writes what an element of a factor is, for expressions of the free dimension and the sum's.
type Write = fn(&Conv2d, &mut Text<'_>, &str, &str) -> Element;

/// The type in which an image is multiplied: of what its prologue makes, that of its last cast.
fn multiplied_as(conv: &Conv2d) -> DType {
    match conv.prologue.instrs.last().map(|instr| instr.op) {
        None => conv.a.dtype,
        Some(ScalarOp::Cast(to)) if to.is_float() => to,
        Some(_) => DType::F32,
    }
}

/// The pixel that a point of the output sees through a point of the window.
fn window_of_image(conv: &Conv2d, text: &mut Text<'_>, point: &str, window: &str) -> Element {
    let (oh, ow) = conv.extent();
    let Conv2d { n, c, h, w, kh, kw, stride, padding, .. } = *conv;
    let at = code::unravel(text, point, &[n, oh, ow], "c");
    let of = code::unravel(text, window, &[c, kh, kw], "d");
    text.line(format!("const int y = (int)({} * {stride}u + {}) - {padding};", at[1], of[1]));
    text.line(format!("const int x = (int)({} * {stride}u + {}) - {padding};", at[2], of[2]));
    let stored = format!("pixel(p{}, {}, {}, (unsigned)y, (unsigned)x)", conv.a.operand, at[0], of[0]);
    Element { inside: Some(format!("y >= 0 && y < {h} && x >= 0 && x < {w}")), stored, dtype: pixel_dtype(conv) }
}

/// The same, by the point of the window.
fn image_of_window(conv: &Conv2d, text: &mut Text<'_>, window: &str, point: &str) -> Element {
    window_of_image(conv, text, point, window)
}

/// The gradient of the output that a point of the input gets through a point of the window.
fn window_of_gradient(conv: &Conv2d, text: &mut Text<'_>, point: &str, window: &str) -> Element {
    let (oh, ow) = conv.extent();
    let Conv2d { n, h, w, o, kh, kw, stride, padding, .. } = *conv;
    let at = code::unravel(text, point, &[n, h, w], "c");
    let of = code::unravel(text, window, &[o, kh, kw], "d");
    text.line(format!("const int y = (int)({} + {padding}u) - (int)({});", at[1], of[1]));
    text.line(format!("const int x = (int)({} + {padding}u) - (int)({});", at[2], of[2]));
    let whole = if stride == 1 { String::new() } else { format!(" && y % {stride} == 0 && x % {stride} == 0") };
    let inside = format!("y >= 0 && y / {stride} < {oh} && x >= 0 && x / {stride} < {ow}{whole}");
    let [y, x] =
        ["y", "x"].map(|z| if stride == 1 { format!("(unsigned){z}") } else { format!("(unsigned)({z} / {stride})") });
    let stored = format!("pixel(p{}, {}, {}, {y}, {x})", conv.a.operand, at[0], of[0]);
    Element { inside: Some(inside), stored, dtype: pixel_dtype(conv) }
}

/// The weight of an output channel at a point of the window.
fn weight(conv: &Conv2d, _: &mut Text<'_>, channel: &str, window: &str) -> Element {
    stored(&conv.b, &format!("{channel} * {}u + {window}", conv.c * conv.kh * conv.kw))
}

/// The weight of an input channel at an output channel and a point of the window.
fn weight_across(conv: &Conv2d, text: &mut Text<'_>, channel: &str, window: &str) -> Element {
    let points = conv.kh * conv.kw;
    let of = code::unravel(text, window, &[conv.o, points], "d");
    stored(&conv.b, &format!("({} * {}u + {channel}) * {points}u + {}", of[0], conv.c, of[1]))
}

/// The gradient of an output channel at a point of the output.
fn gradient(conv: &Conv2d, text: &mut Text<'_>, channel: &str, point: &str) -> Element {
    let (oh, ow) = conv.extent();
    let at = code::unravel(text, point, &[conv.n, oh * ow], "c");
    stored(&conv.b, &format!("({} * {}u + {channel}) * {}u + {}", at[0], conv.o, oh * ow, at[1]))
}

/// An element of a dense operand.
fn stored(view: &View, at: &str) -> Element {
    let stored = format!("p{}[{}u + {at}]", view.operand, view.offset as u32);
    Element { inside: None, stored, dtype: view.dtype }
}

/// What `pixel` gives.
fn pixel_dtype(conv: &Conv2d) -> DType {
    if conv.prologue.instrs.is_empty() { conv.a.dtype } else { DType::F32 }
}

/// The first factor as a function `pixel(operand, n, c, y, x)`: as it is stored, or what its prologue makes of it, in f32.
fn first(conv: &Conv2d, text: &mut Text<'_>) -> Result<String, EmitError> {
    let mark = text.body.len();
    let coords = ["n", "c", "y", "x"].map(String::from);
    let value = if conv.prologue.instrs.is_empty() {
        let [[_, channels, height, width], ..] = conv.domains();
        stored(&conv.a, &format!("((n * {channels}u + c) * {height}u + y) * {width}u + x")).stored
    } else {
        let scope = Scope::plain(std::slice::from_ref(&conv.a), &coords, "v");
        code::write(text, &conv.prologue, &scope)?.pop().unwrap_or_else(|| "0.0f".into())
    };
    text.line(format!("return {value};"));
    let body = text.take_since(mark);
    let ty = super::storage_type(pixel_dtype(conv));
    let operand = text.parameter(usize::from(conv.a.operand));
    Ok(format!(
        "static __device__ __forceinline__ {ty} pixel({operand}, unsigned n, unsigned c, unsigned y, unsigned x) {{\n{body}}}\n"
    ))
}

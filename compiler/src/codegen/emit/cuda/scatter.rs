//! Rows added into a table: a thread owns a part of a row and adds what belongs to it in the order of the updates, so that sums are
//! the same every time.

use alip_plan::kernel::ScatterAdd;

use super::{EmitError, Text, code};

pub(super) fn emit(scatter: &ScatterAdd, text: &mut Text<'_>) -> Result<(), EmitError> {
    let ScatterAdd { batch, count, rows, inner, .. } = *scatter;
    let chunk = inner.clamp(1, text.tiles.scatter_chunk);
    let chunks = inner.div_ceil(chunk);
    text.operands([&scatter.index, &scatter.updates, &scatter.out])?;
    let [index, updates, out] = [&scatter.index, &scatter.updates, &scatter.out]
        .map(|view| format!("p{}[{}u + ", view.operand, view.offset as u32));
    // Neighbouring threads own neighbouring rows, each a chunk of one: they scan the same indices together.
    text.thread_per("point", batch * chunks * rows)?;
    let at = code::unravel(text, "point", &[batch, chunks, rows], "c");
    text.unsigned("first", format!("{} * {chunk}u", at[1]));
    let inside = match inner % chunk {
        0 => String::new(),
        _ => format!("if (first + e < {inner}u) "),
    };
    text.line(format!("float sums[{chunk}] = {{}};"));
    text.count_to("i", count);
    text.line(format!(
        "if (min(max({index}{} * {count}u + i], 0), {}) != (int)({})) continue;",
        at[0],
        rows - 1,
        at[2]
    ));
    text.unsigned("update", format!("({} * {count}u + i) * {inner}u + first", at[0]));
    text.line("#pragma unroll");
    text.line(format!("for (unsigned e = 0u; e < {chunk}u; e++) {inside}sums[e] += {updates}update + e];"));
    text.line("}");
    text.unsigned("place", format!("({} * {rows}u + {}) * {inner}u + first", at[0], at[2]));
    text.line("#pragma unroll");
    text.line(format!("for (unsigned e = 0u; e < {chunk}u; e++) {inside}{out}place + e] = sums[e];"));
    Ok(())
}

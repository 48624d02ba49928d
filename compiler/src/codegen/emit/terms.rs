//! What the texts of all languages say alike: places of elements, coordinates, types of values in registers.

use alip_plan::DType;
use alip_plan::kernel::{Code, Instr, ScalarOp, View};

/// `sum(coordinate * stride) + offset` as an expression of 32 bits without sign. Negative numbers wrap around, and so back,
/// modulo 2^32.
pub(super) fn offset(coords: &[String], strides: &[i64], offset: i64) -> String {
    let mut terms: Vec<String> = Vec::new();
    for (coord, stride) in coords.iter().zip(strides) {
        match stride {
            0 => {}
            1 => terms.push(coord.clone()),
            _ => terms.push(format!("{coord} * {}u", *stride as u32)),
        }
    }
    if offset != 0 || terms.is_empty() {
        terms.push(format!("{}u", offset as u32));
    }
    terms.join(" + ")
}

/// The linear number `index` over `sizes`, innermost last, as coordinates; `declare` is given the name and value of those that
/// need one.
pub(super) fn unravel(index: &str, sizes: &[u64], name: &str, mut declare: impl FnMut(String, String)) -> Vec<String> {
    let mut coords = vec![String::new(); sizes.len()];
    let mut rest = index.to_string();
    for (axis, size) in sizes.iter().enumerate().rev() {
        coords[axis] = if *size == 1 {
            "0u".into()
        } else if sizes[..axis].iter().all(|outer| *outer == 1) {
            rest.clone()
        } else {
            let coord = format!("{name}{axis}");
            declare(coord.clone(), format!("{rest} % {size}u"));
            declare(format!("{name}r{axis}"), format!("{rest} / {size}u"));
            rest = format!("{name}r{axis}");
            coord
        };
    }
    coords
}

/// Whether `code` reads the operand of this view.
pub(super) fn loads(code: &[Instr], views: &[View], stored: u16) -> bool {
    let operand = |view: u16| views[usize::from(view)].operand;
    code.iter().any(|instr| matches!(instr.op, ScalarOp::Load(view) if operand(view) == operand(stored)))
}

/// Dtype of a value in registers.
pub(super) fn register_dtype(code: &Code, value: u16) -> DType {
    use ScalarOp::*;
    let instr = code.instrs[usize::from(value)];
    match instr.op {
        Cast(to) if to.is_float() => DType::F32,
        Cast(to) => to,
        Lt | Le | Eq | And | Or | Not => DType::Bool,
        Index(_) => DType::I32,
        _ if instr.dtype.is_float() => DType::F32,
        _ => instr.dtype,
    }
}

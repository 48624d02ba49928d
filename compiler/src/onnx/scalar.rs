//! Scalar operations.

use super::nodes::{Emit, element};
use super::proto::AttributeProto;
use crate::ir::DType;
use crate::ops::ScalarOp;

/// What an operation becomes: an operator of ONNX on the same operands; `of` is the type of the first operand.
pub(super) fn operator(op: &ScalarOp, of: DType) -> Option<Emit> {
    use ScalarOp::*;
    let plain = |name| Some(Emit { name, attributes: Vec::new() });
    match op {
        Cast(to) => {
            matches!(to, DType::F32 | DType::I32 | DType::Bool).then_some(())?;
            let to = AttributeProto::int("to", i64::from(element(*to)));
            Some(Emit { name: "Cast", attributes: vec![to] })
        }
        Neg => plain("Neg"),
        Abs => plain("Abs"),
        Exp => plain("Exp"),
        Ln => plain("Log"),
        Sqrt => plain("Sqrt"),
        Sin => plain("Sin"),
        Cos => plain("Cos"),
        Tanh => plain("Tanh"),
        Erf => plain("Erf"),
        Floor => plain("Floor"),
        Not => plain("Not"),
        Add => plain("Add"),
        Sub => plain("Sub"),
        Mul => plain("Mul"),
        Div => plain("Div"),
        Pow => plain("Pow"),
        Min => plain("Min"),
        Max => plain("Max"),
        Lt => plain("Less"),
        Le => plain("LessOrEqual"),
        Eq => plain("Equal"),
        And => plain("And"),
        Or => plain("Or"),
        Select => plain("Where"),
        // Of floats ONNX has the remainder with the sign of the dividend alone.
        Rem if of == DType::I32 => plain("Mod"),
        _ => None,
    }
}

//! Cases of scalar operations.

use super::rows::ROWS;
use super::{Pointwise, Rule};
use crate::graph::{DType, NodeId, TensorType};
use crate::ops::cases::{Case, CaseBuilder};
use crate::ops::{Op, ScalarOp};

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in ROWS {
        let dtypes: &[DType] = match row.rule {
            Rule::Float | Rule::Cast => &[DType::F32],
            Rule::Logic => &[DType::Bool],
            _ => &[DType::F32, DType::I32],
        };
        for dtype in dtypes {
            cases.push(row_case(row, row.op, *dtype));
        }
    }
    for (from, to) in [
        (DType::F32, DType::I32),
        (DType::F32, DType::Bool),
        (DType::I32, DType::F32),
        (DType::Bool, DType::F32),
        (DType::F32, DType::Bf16),
        (DType::F32, DType::F16),
        (DType::Bf16, DType::F32),
        (DType::F16, DType::F32),
    ] {
        let row = &ROWS[0];
        cases.push(row_case(row, ScalarOp::Cast(to), from));
    }
    for (op, name) in
        [(ScalarOp::Min, "min_ties"), (ScalarOp::Max, "max_ties"), (ScalarOp::Le, "le_ties"), (ScalarOp::Eq, "eq_ties")]
    {
        let mut case = CaseBuilder::new(name);
        let a = case.input("a", TensorType::f32([4]), vec![1.0, -0.5, 2.0, 0.25]);
        let b = case.input("b", TensorType::f32([4]), vec![1.0, 0.5, 2.0, -0.25]);
        cases.push(case.op(Op::Pointwise(op), &[a, b]));
    }
    // Arithmetic wraps, division truncates toward zero.
    let edge = [i32::MAX, i32::MIN, -7, 7, -7, 46_341];
    let other = [1, -1, 2, -2, -2, 46_341];
    for (op, name) in [(ScalarOp::Add, "add_wraps"), (ScalarOp::Mul, "mul_wraps"), (ScalarOp::Div, "div_truncates")] {
        let mut case = CaseBuilder::new(name);
        let int = |values: [i32; 6]| values.iter().map(|x| f64::from(*x)).collect();
        let a = case.input("a", TensorType::new(DType::I32, [6]), int(edge));
        // i32::MIN / -1 is left out: devices disagree on it and nothing computes it.
        let b = case.input(
            "b",
            TensorType::new(DType::I32, [6]),
            if op == ScalarOp::Div { int([1, 3, 2, -2, -2, 5]) } else { int(other) },
        );
        cases.push(case.op(Op::Pointwise(op), &[a, b]));
    }
    // The sign of the divisor, of floats exactly whatever the quotient, of integers also by 0.
    let mut case = CaseBuilder::new("rem_signs");
    let a = case.input("a", TensorType::f32([6]), vec![5.5, -5.5, 5.5, -5.5, 7.25, 0.3]);
    let b = case.input("b", TensorType::f32([6]), vec![2.0, 2.0, -2.0, -2.0, 0.75, 1.1]);
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    // Quotients that round to the whole number above.
    let mut case = CaseBuilder::new("rem_below_whole");
    let a = case.input("a", TensorType::f32([3]), vec![1.0, 3.0, 0.75]);
    let b = case.input("b", TensorType::f32([3]), vec![f64::from(0.1f32), f64::from(0.3f32), f64::from(0.15f32)]);
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    let mut case = CaseBuilder::new("rem_signs_i32");
    let int = |values: [i32; 6]| values.iter().map(|x| f64::from(*x)).collect();
    let a = case.input("a", TensorType::new(DType::I32, [6]), int([7, -7, 7, -7, 7, i32::MIN]));
    let b = case.input("b", TensorType::new(DType::I32, [6]), int([3, 3, -3, -3, 0, -1]));
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    // More than one tile of a cpu kernel, not a multiple of anything.
    let mut case = CaseBuilder::new("add_long");
    let a = case.uniform("a", [5, 431], -1.0, 1.0);
    let b = case.uniform("b", [5, 431], -1.0, 1.0);
    cases.push(case.op(Op::Pointwise(ScalarOp::Add), &[a, b]));
    cases
}

fn row_case(row: &Pointwise, op: ScalarOp, dtype: DType) -> Case {
    let name = match op {
        ScalarOp::Cast(to) => format!("cast_{dtype}_{to}"),
        _ => format!("{}_{dtype}", row.name),
    };
    let mut case = CaseBuilder::new(&name);
    let inputs: Vec<NodeId> = (0..ScalarOp::arity(op))
        .map(|i| {
            let name = ["a", "b", "c"][i];
            match dtype {
                _ if row.rule == Rule::Select && i == 0 => case.bools(name, [3, 7]),
                DType::Bool => case.bools(name, [3, 7]),
                // No zero divisors.
                DType::I32 if matches!(op, ScalarOp::Div | ScalarOp::Rem) && i == 1 => {
                    case.integers(name, [3, 7], 1, 5)
                }
                DType::I32 => case.integers(name, [3, 7], -4, 5),
                _ => case.uniform_of(name, TensorType::new(dtype, [3, 7]), row.range.0, row.range.1),
            }
        })
        .collect();
    case.op(Op::Pointwise(op), &inputs)
}

//! Straight-line code as CUDA statements.

use alip_plan::DType;
use alip_plan::kernel::{Code, Gather, Instr, ScalarOp, View};

use super::super::terms::{self, loads, offset, register_dtype};
use super::{EmitError, Text, register_type};

/// What the code of a point can refer to.
pub(super) struct Scope<'a> {
    /// Views of the kernel.
    pub(super) views: &'a [View],
    /// Coordinates of the point, expressions without sign, one per domain dimension.
    pub(super) coords: &'a [String],
    /// What holds each row slot now, in a reduction.
    pub(super) slots: &'a [String],
    /// The product's value, in an epilogue.
    pub(super) product: Option<&'a str>,
    /// Prefix of the names of values, distinct among code of one block.
    pub(super) prefix: &'a str,
    /// Condition under which stores happen, if not always.
    pub(super) store_if: Option<&'a str>,
    /// The barrier that stands between what all threads read and what one of them writes, where many threads run the code for
    /// one point.
    pub(super) barrier: Option<&'a str>,
    /// Views whose elements lie in registers already: the variable that a load reads and a store sets. Empty, or one per view.
    pub(super) held: &'a [Option<String>],
}

impl<'a> Scope<'a> {
    /// Code that loads and stores at a point.
    pub(super) fn plain(views: &'a [View], coords: &'a [String], prefix: &'a str) -> Scope<'a> {
        Scope { views, coords, slots: &[], product: None, prefix, store_if: None, barrier: None, held: &[] }
    }

    fn held(&self, view: u16) -> Option<&'a str> {
        self.held.get(usize::from(view))?.as_deref()
    }
}

/// Splits the linear number `index` over `sizes`, innermost last, into named coordinates.
pub(super) fn unravel(text: &mut Text<'_>, index: &str, sizes: &[u64], name: &str) -> Vec<String> {
    terms::unravel(index, sizes, name, |name, value| text.unsigned(&name, value))
}

/// Writes `code` and gives the expression of each value.
///
/// # Errors
/// An operand of two types.
pub(super) fn write(text: &mut Text<'_>, code: &Code, scope: &Scope<'_>) -> Result<Vec<String>, EmitError> {
    let mut values: Vec<String> = Vec::with_capacity(code.instrs.len());
    for (index, instr) in code.instrs.iter().enumerate() {
        let arg = |n: usize| values.get(usize::from(instr.args[n])).map_or("", String::as_str);
        let (expression, simple) = match instr.op {
            ScalarOp::Const(value) => (constant(value.0, instr.dtype), true),
            ScalarOp::Index(axis) => (format!("(int)({})", scope.coords[usize::from(axis)]), false),
            ScalarOp::Slot(slot) => (scope.slots[usize::from(slot)].clone(), true),
            ScalarOp::Product => (scope.product.unwrap_or("0.0f").to_string(), true),
            ScalarOp::Load(view) => match scope.held(view) {
                Some(held) => (held.to_string(), false),
                None => (load(text, &scope.views[usize::from(view)], scope)?, false),
            },
            ScalarOp::Store(view) => {
                let value = arg(0).to_string();
                if let Some(barrier) = scope.barrier.filter(|_| loads(&code.instrs[..index], scope.views, view)) {
                    // Every thread has read the old value before one thread replaces it.
                    text.line(barrier);
                }
                match scope.held(view) {
                    Some(held) => text.line(format!("{held} = {value};")),
                    None => store(text, &scope.views[usize::from(view)], scope, &value)?,
                }
                (value, true)
            }
            // Registers are f32, so that a cast has to round.
            ScalarOp::Cast(to @ (DType::Bf16 | DType::F16)) => {
                let [encode, decode] = text.functions.narrow(to);
                (format!("{decode}({encode}({}))", cast(text, arg(0), instr.dtype, DType::F32)), false)
            }
            _ => (expression(text, instr, [arg(0), arg(1), arg(2)]), false),
        };
        if simple {
            values.push(expression);
        } else {
            let name = format!("{}{index}", scope.prefix);
            let ty = register_type(register_dtype(code, index as u16));
            text.line(format!("const {ty} {name} = {expression};"));
            values.push(name);
        }
    }
    Ok(values)
}

/// The number of a view's element in its operand.
///
/// # Errors
/// An operand of two types.
pub(super) fn place(text: &mut Text<'_>, view: &View, coords: &[String]) -> Result<String, EmitError> {
    text.operand(view.operand, view.dtype)?;
    let mut at = offset(coords, &view.strides, view.offset);
    if let Some(gather) = &view.gather {
        text.operand(gather.operand, DType::I32)?;
        at = format!("{at} + {}", gathered(gather, coords));
    }
    Ok(at)
}

fn gathered(gather: &Gather, coords: &[String]) -> String {
    let index = offset(coords, &gather.strides, gather.offset);
    format!("(unsigned)min(max(p{}[{index}], 0), {}) * {}u", gather.operand, gather.limit - 1, gather.stride as u32)
}

/// An element in memory as a value in registers.
pub(super) fn decode(text: &mut Text<'_>, dtype: DType, element: &str) -> String {
    match dtype {
        DType::F32 | DType::I32 => element.to_string(),
        DType::Bool => format!("({element} != 0u)"),
        DType::U8 => format!("(float){element}"),
        DType::Bf16 | DType::F16 => format!("{}({element})", text.functions.narrow(dtype)[1]),
    }
}

/// A value in registers as an element in memory.
pub(super) fn encode(text: &mut Text<'_>, dtype: DType, value: &str) -> String {
    match dtype {
        DType::F32 | DType::I32 | DType::U8 => value.to_string(),
        DType::Bool => format!("({value} ? 1u : 0u)"),
        DType::Bf16 | DType::F16 => format!("{}({value})", text.functions.narrow(dtype)[0]),
    }
}

fn load(text: &mut Text<'_>, view: &View, scope: &Scope<'_>) -> Result<String, EmitError> {
    let element = format!("p{}[{}]", view.operand, place(text, view, scope.coords)?);
    Ok(decode(text, view.dtype, &element))
}

fn store(text: &mut Text<'_>, view: &View, scope: &Scope<'_>, value: &str) -> Result<(), EmitError> {
    let element = format!("p{}[{}]", view.operand, place(text, view, scope.coords)?);
    let value = encode(text, view.dtype, value);
    match scope.store_if {
        Some(condition) => text.line(format!("if ({condition}) {element} = {value};")),
        None => text.line(format!("{element} = {value};")),
    }
    Ok(())
}

/// A literal, or what has none from its bits.
pub(super) fn constant(value: f64, dtype: DType) -> String {
    match dtype {
        DType::Bool => format!("{}", value != 0.0),
        DType::I32 if value <= f64::from(i32::MIN) => "(-2147483647 - 1)".into(),
        DType::I32 => format!("{}", value as i32),
        DType::F32 | DType::Bf16 | DType::F16 | DType::U8 => {
            let value = value as f32;
            if value.is_nan() {
                "__uint_as_float(0x7fc00000u)".into()
            } else if value.is_infinite() {
                format!("{}__uint_as_float(0x7f800000u)", if value < 0.0 { "-" } else { "" })
            } else {
                format!("{value:?}f")
            }
        }
    }
}

fn expression(text: &mut Text<'_>, instr: &Instr, [a, b, c]: [&str; 3]) -> String {
    use ScalarOp::*;
    let float = instr.dtype.is_float();
    let mut call = |name: &'static str, args: &str| format!("{}({args})", text.functions.use_(name));
    match instr.op {
        Neg => format!("-({a})"),
        Abs if float => format!("fabsf({a})"),
        Abs => format!("abs({a})"),
        Exp => format!("expf({a})"),
        Ln => format!("logf({a})"),
        Sqrt => format!("sqrtf({a})"),
        Sin => format!("sinf({a})"),
        Cos => format!("cosf({a})"),
        Tanh => format!("tanhf({a})"),
        Erf => format!("erff({a})"),
        Floor => format!("floorf({a})"),
        Not => format!("!{a}"),
        Add => format!("{a} + {b}"),
        Sub => format!("{a} - {b}"),
        Mul => format!("{a} * {b}"),
        Div if float => format!("{a} / {b}"),
        Div => call("div_i", &format!("{a}, {b}")),
        Rem if float => call("rem_f", &format!("{a}, {b}")),
        Rem => call("rem_i", &format!("{a}, {b}")),
        Pow => format!("powf({a}, {b})"),
        Min if float => call("min_f", &format!("{a}, {b}")),
        Max if float => call("max_f", &format!("{a}, {b}")),
        Min => format!("min({a}, {b})"),
        Max => format!("max({a}, {b})"),
        Lt => format!("{a} < {b}"),
        Le => format!("{a} <= {b}"),
        Eq => format!("{a} == {b}"),
        And => format!("{a} && {b}"),
        Or => format!("{a} || {b}"),
        Select => format!("{a} ? {b} : {c}"),
        Uniform { stream, lane } => {
            let (low, high) = (stream as u32, stream >> 32);
            call("uniform_f", &format!("{a}, {b}, {c}, {low}u, {high}u, {lane}u"))
        }
        Cast(to) => cast(text, a, instr.dtype, to),
        // Written by `write`, or of graphs only.
        Const(_) | Index(_) | Load(_) | Store(_) | Slot(_) | Product | RoundBf16 | RoundF16 => String::new(),
    }
}

fn cast(text: &mut Text<'_>, a: &str, from: DType, to: DType) -> String {
    match (from, to) {
        (DType::Bool, DType::Bool) | (DType::I32, DType::I32) => a.to_string(),
        (DType::Bool, DType::I32) => format!("{a} ? 1 : 0"),
        (DType::Bool, _) => format!("({a} ? 1.0f : 0.0f)"),
        (DType::I32, DType::Bool) => format!("{a} != 0"),
        (DType::I32, _) => format!("(float)({a})"),
        // NaN is not 0.
        (_, DType::Bool) => format!("{a} != 0.0f"),
        (_, DType::I32) => format!("{}({a})", text.functions.use_("int_of")),
        (_, _) => a.to_string(),
    }
}

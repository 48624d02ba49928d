//! Straight-line code as WGSL statements.

use alip_plan::DType;
use alip_plan::kernel::{Code, Gather, Instr, ScalarOp, View};

pub(super) use super::super::terms::offset;
use super::super::terms::{self, loads};
use super::{EmitError, Shader};

/// Iterations of the loop in `uniform_f`.
const PHILOX_ROUNDS: u64 = 10;
/// The same in `rem_f`, at most.
const EXPONENTS: u64 = 254;

/// What the code of a point can refer to.
pub(super) struct Scope<'a> {
    /// Views of the kernel.
    pub(super) views: &'a [View],
    /// Coordinates of the point, u32 expressions, one per domain dimension.
    pub(super) coords: &'a [String],
    /// What holds each row slot now, in a reduction.
    pub(super) slots: &'a [String],
    /// The product's value, in an epilogue.
    pub(super) product: Option<&'a str>,
    /// Prefix of the names of values, distinct among code of one block.
    pub(super) prefix: &'a str,
    /// Condition under which stores happen, if not always.
    pub(super) store_if: Option<&'a str>,
    /// Whether many threads run the code for one point, of which one stores.
    pub(super) shared: bool,
}

/// Splits the linear number `index` over `sizes`, innermost last, into named coordinates.
pub(super) fn unravel(shader: &mut Shader<'_>, index: &str, sizes: &[u64], name: &str) -> Vec<String> {
    terms::unravel(index, sizes, name, |name, value| shader.line(format!("let {name} = {value};")))
}

/// Writes `code` and gives the expression of each value.
///
/// # Errors
/// Storage types that WGSL lacks.
pub(super) fn write(shader: &mut Shader<'_>, code: &Code, scope: &Scope<'_>) -> Result<Vec<String>, EmitError> {
    let mut values: Vec<String> = Vec::with_capacity(code.instrs.len());
    for (index, instr) in code.instrs.iter().enumerate() {
        let arg = |n: usize| values[usize::from(instr.args[n])].as_str();
        let (text, simple) = match instr.op {
            ScalarOp::Const(value) => (constant(shader, value.0, instr.dtype), true),
            ScalarOp::Index(axis) => (format!("i32({})", scope.coords[usize::from(axis)]), true),
            ScalarOp::Slot(slot) => (scope.slots[usize::from(slot)].clone(), true),
            ScalarOp::Product => (scope.product.unwrap_or("0.0f").to_string(), true),
            ScalarOp::Load(view) => (load(shader, &scope.views[usize::from(view)], scope)?, false),
            ScalarOp::Store(view) => {
                let value = arg(0).to_string();
                if scope.shared && loads(&code.instrs[..index], scope.views, view) {
                    // Every thread has read the old value before one thread replaces it.
                    shader.line("storageBarrier();");
                }
                store(shader, &scope.views[usize::from(view)], scope, &value)?;
                (value, true)
            }
            ScalarOp::Le if instr.dtype == DType::F32 && is_largest(code, instr.args[1]) => {
                (format!("{}({})", shader.functions.use_("below_inf_f"), arg(0)), false)
            }
            // Registers are f32, so that a cast has to round.
            ScalarOp::Cast(to @ (DType::Bf16 | DType::F16)) => {
                let round = shader.functions.use_(if to == DType::F16 { "f16_f" } else { "bf16_f" });
                (format!("{round}({})", cast(arg(0), instr.dtype, DType::F32)), false)
            }
            _ => (expression(shader, instr, [arg(0), second(instr, &values), third(instr, &values)]), false),
        };
        if simple {
            values.push(text);
        } else {
            let name = format!("{}{index}", scope.prefix);
            shader.line(format!("let {name} = {text};"));
            values.push(name);
        }
    }
    Ok(values)
}

/// Whether value `index` is the largest finite number: a comparison with it asks for infinities and NaN.
fn is_largest(code: &Code, index: u16) -> bool {
    matches!(code.instrs.get(usize::from(index)), Some(Instr { op: ScalarOp::Const(value), .. }) if value.0 as f32 == f32::MAX)
}

fn second<'v>(instr: &Instr, values: &'v [String]) -> &'v str {
    values.get(usize::from(instr.args[1])).map_or("", String::as_str)
}

fn third<'v>(instr: &Instr, values: &'v [String]) -> &'v str {
    values.get(usize::from(instr.args[2])).map_or("", String::as_str)
}

fn element(shader: &mut Shader<'_>, view: &View, scope: &Scope<'_>) -> Result<String, EmitError> {
    Ok(format!("p{}[{}]", view.operand, place(shader, view, scope)?))
}

/// The number of a view's element in its operand.
fn place(shader: &mut Shader<'_>, view: &View, scope: &Scope<'_>) -> Result<String, EmitError> {
    shader.operand(view.operand, view.dtype)?;
    let mut at = offset(scope.coords, &view.strides, view.offset);
    if let Some(gather) = &view.gather {
        shader.operand(gather.operand, DType::I32)?;
        at = format!("{at} + {}", gathered(gather, scope));
    }
    Ok(at)
}

fn gathered(gather: &Gather, scope: &Scope<'_>) -> String {
    let index = offset(scope.coords, &gather.strides, gather.offset);
    format!("u32(clamp(p{}[{index}], 0, {})) * {}u", gather.operand, gather.limit - 1, gather.stride as u32)
}

fn load(shader: &mut Shader<'_>, view: &View, scope: &Scope<'_>) -> Result<String, EmitError> {
    Ok(match view.dtype {
        DType::Bool => format!("({} != 0u)", element(shader, view, scope)?),
        DType::U8 => {
            let at = place(shader, view, scope)?;
            format!("f32(extractBits(p{}[({at}) >> 2u], (({at}) & 3u) * 8u, 8u))", view.operand)
        }
        _ => element(shader, view, scope)?,
    })
}

fn store(shader: &mut Shader<'_>, view: &View, scope: &Scope<'_>, value: &str) -> Result<(), EmitError> {
    let element = element(shader, view, scope)?;
    let value = if view.dtype == DType::Bool { format!("select(0u, 1u, {value})") } else { value.to_string() };
    match scope.store_if {
        Some(condition) => shader.line(format!("if ({condition}) {{ {element} = {value}; }}")),
        None => shader.line(format!("{element} = {value};")),
    }
    Ok(())
}

/// A literal, or a call where WGSL has none.
pub(super) fn constant(shader: &mut Shader<'_>, value: f64, dtype: DType) -> String {
    match dtype {
        DType::Bool => format!("{}", value != 0.0),
        DType::I32 if value <= f64::from(i32::MIN) => "(-2147483647i - 1i)".into(),
        DType::I32 => format!("{}i", value as i32),
        DType::F32 | DType::Bf16 | DType::F16 | DType::U8 => {
            let value = value as f32;
            if value.is_nan() {
                format!("{}()", shader.functions.use_("nan_f"))
            } else if value.is_infinite() {
                format!("{}{}()", if value < 0.0 { "-" } else { "" }, shader.functions.use_("inf_f"))
            } else {
                format!("{value:?}f")
            }
        }
    }
}

fn expression(shader: &mut Shader<'_>, instr: &Instr, [a, b, c]: [&str; 3]) -> String {
    use ScalarOp::*;
    let float = instr.dtype.is_float();
    match instr.op {
        Uniform { .. } => shader.count(PHILOX_ROUNDS),
        Rem if float => shader.count(EXPONENTS),
        _ => {}
    }
    let mut call = |name: &'static str, args: &str| format!("{}({args})", shader.functions.use_(name));
    match instr.op {
        Neg => format!("-({a})"),
        Abs => format!("abs({a})"),
        Exp => call("exp_f", a),
        Ln => call("ln_f", a),
        Sqrt => format!("sqrt({a})"),
        Sin => call("sin_f", a),
        Cos => call("cos_f", a),
        Tanh => call("tanh_f", a),
        Erf => call("erf_f", a),
        Floor => format!("floor({a})"),
        Not => format!("!({a})"),
        Add => format!("{a} + {b}"),
        Sub => format!("{a} - {b}"),
        Mul => format!("{a} * {b}"),
        Div if float => format!("{a} / {b}"),
        Div => call("div_i", &format!("{a}, {b}")),
        Rem if float => call("rem_f", &format!("{a}, {b}")),
        Rem => call("rem_i", &format!("{a}, {b}")),
        Pow => call("pow_f", &format!("{a}, {b}")),
        Min if float => call("min_f", &format!("{a}, {b}")),
        Max if float => call("max_f", &format!("{a}, {b}")),
        Min => format!("min({a}, {b})"),
        Max => format!("max({a}, {b})"),
        Lt => format!("{a} < {b}"),
        Le => format!("{a} <= {b}"),
        Eq => format!("{a} == {b}"),
        And => format!("{a} && {b}"),
        Or => format!("{a} || {b}"),
        Select => format!("select({c}, {b}, {a})"),
        Uniform { stream, lane } => {
            let (low, high) = (stream as u32, stream >> 32);
            call("uniform_f", &format!("{a}, {b}, {c}, vec2<u32>({low}u, {high}u), {lane}u"))
        }
        Cast(DType::Bool) if float => call("bool_f", a),
        Cast(DType::I32) if float => call("i32_f", a),
        Cast(to) => cast(a, instr.dtype, to),
        Const(_) | Index(_) | Load(_) | Store(_) | Slot(_) | Product | RoundBf16 | RoundF16 => String::new(),
    }
}

fn cast(a: &str, from: DType, to: DType) -> String {
    match (from, to) {
        (DType::Bool, DType::Bool) => a.to_string(),
        (DType::Bool, DType::I32) => format!("select(0i, 1i, {a})"),
        (DType::Bool, _) => format!("select(0.0f, 1.0f, {a})"),
        (_, DType::Bool) => format!("({a} != 0i)"),
        (_, DType::I32) => a.to_string(),
        (_, _) => format!("f32({a})"),
    }
}

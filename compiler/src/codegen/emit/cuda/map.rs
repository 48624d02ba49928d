//! Pointwise kernels: a thread per few neighbouring points, which it reads and writes as vectors.

use alip_plan::DType;
use alip_plan::kernel::{Code, Map, ScalarOp, View};

use super::code::{self, Scope};
use super::{EmitError, Text, register_type};

pub(super) fn emit(map: &Map, text: &mut Text<'_>) -> Result<(), EmitError> {
    let width = width(map);
    let points: u64 = map.domain.iter().product();
    text.thread_per("item", points / width)?;
    if width == 1 {
        let coords = code::unravel(text, "item", &map.domain, "c");
        code::write(text, &map.code, &Scope::plain(&map.views, &coords, "v"))?;
        return Ok(());
    }
    let inner = map.domain.len() - 1;
    let mut tiled = map.domain.clone();
    tiled[inner] /= width;
    let mut first = code::unravel(text, "item", &tiled, "c");
    text.unsigned("x", format!("({}) * {width}u", first[inner]));
    first[inner] = "x".into();

    let vectors = Vectors::load(text, map, &first, width)?;
    text.line("#pragma unroll");
    text.count_to("e", width);
    let mut coords = first.clone();
    coords[inner] = "(x + e)".into();
    let scope = Scope { held: &vectors.held, ..Scope::plain(&map.views, &coords, "v") };
    code::write(text, &map.code, &scope)?;
    text.line("}");
    vectors.store(text, map, &first)
}

/// Views that are read or written as vectors, in arrays of registers.
struct Vectors {
    /// What of an array a point reads or sets, by view.
    held: Vec<Option<String>>,
}

impl Vectors {
    /// Declares the arrays, and fills those that the code reads. What lies still along a vector is read once.
    fn load(text: &mut Text<'_>, map: &Map, first: &[String], width: u64) -> Result<Vectors, EmitError> {
        let mut held = vec![None; map.views.len()];
        for (index, view) in map.views.iter().enumerate() {
            let (loaded, stored) = uses(&map.code, index);
            let ty = register_type(view.dtype);
            match moves(view) {
                Along::Still if loaded && !stored => {
                    let element = format!("p{}[{}]", view.operand, code::place(text, view, first)?);
                    let value = code::decode(text, view.dtype, &element);
                    text.line(format!("const {ty} y{index} = {value};"));
                    held[index] = Some(format!("y{index}"));
                }
                Along::Vector if loaded || stored => {
                    text.line(format!("{ty} y{index}[{width}];"));
                    if loaded {
                        let load = text.functions.use_(functions(view.dtype).0);
                        let at = code::place(text, view, first)?;
                        text.line(format!("{load}(y{index}, p{} + ({at}));", view.operand));
                    }
                    held[index] = Some(format!("y{index}[e]"));
                }
                _ => {}
            }
        }
        Ok(Vectors { held })
    }

    fn store(&self, text: &mut Text<'_>, map: &Map, first: &[String]) -> Result<(), EmitError> {
        for (index, view) in map.views.iter().enumerate() {
            if self.held[index].is_some() && uses(&map.code, index).1 {
                let store = text.functions.use_(functions(view.dtype).1);
                let at = code::place(text, view, first)?;
                text.line(format!("{store}(y{index}, p{} + ({at}));", view.operand));
            }
        }
        Ok(())
    }
}

/// Whether code loads and stores through a view.
fn uses(code: &Code, view: usize) -> (bool, bool) {
    let any = |wanted: fn(u16) -> ScalarOp| code.instrs.iter().any(|instr| instr.op == wanted(view as u16));
    (any(ScalarOp::Load), any(ScalarOp::Store))
}

/// How a view goes along the innermost dimension.
enum Along {
    Still,
    Vector,
    Scattered,
}

fn moves(view: &View) -> Along {
    let last = |strides: &[i64]| strides.last().copied().unwrap_or(0);
    let index = view.gather.as_ref().map_or(0, |gather| last(&gather.strides));
    match (last(&view.strides), index) {
        (0, 0) => Along::Still,
        (1, 0) => Along::Vector,
        _ => Along::Scattered,
    }
}

/// What reads and writes vectors of a type; bytes are never written.
fn functions(dtype: DType) -> (&'static str, &'static str) {
    match dtype {
        DType::F32 => ("load_f32", "store_f32"),
        DType::I32 => ("load_i32", "store_i32"),
        DType::Bool => ("load_bool", "store_bool"),
        DType::Bf16 => ("load_bf16", "store_bf16"),
        DType::F16 => ("load_f16", "store_f16"),
        DType::U8 => ("load_u8", "load_u8"),
    }
}

/// Points of a thread: so many that the narrowest type fills 16 bytes, if every view that goes along with them does so in
/// multiples, and at least half of what is read and written does.
fn width(map: &Map) -> u64 {
    let Some(inner) = map.domain.last() else { return 1 };
    if reads_what_it_stored(map) {
        return 1;
    }
    let vectors: Vec<&View> = map.views.iter().filter(|view| matches!(moves(view), Along::Vector)).collect();
    let scattered = map.views.iter().filter(|view| matches!(moves(view), Along::Scattered)).count();
    if vectors.is_empty() || scattered > vectors.len() {
        return 1;
    }
    let narrow = vectors.iter().any(|view| view.dtype.bytes() == 2);
    let fits = |width: &u64| {
        let multiple = |number: i64| number.rem_euclid(*width as i64) == 0;
        inner.is_multiple_of(*width)
            && vectors.iter().all(|view| {
                let (_, outer) = view.strides.split_last().unwrap_or((&0, &[]));
                let outer = outer.iter().zip(&map.domain).filter(|(_, size)| **size > 1);
                multiple(view.offset)
                    && outer.into_iter().all(|(stride, _)| multiple(*stride))
                    && view.gather.as_ref().is_none_or(|gather| multiple(gather.stride))
            })
    };
    let widths: &[u64] = if narrow { &[8, 4] } else { &[4] };
    widths.iter().copied().find(fits).unwrap_or(1)
}

/// Whether an element is read after it was written, which vectors that are written last would not see, or written twice.
fn reads_what_it_stored(map: &Map) -> bool {
    let operand = |view: u16| map.views[usize::from(view)].operand;
    let mut stored: Vec<u16> = Vec::new();
    map.code.instrs.iter().any(|instr| match instr.op {
        ScalarOp::Load(view) => stored.contains(&operand(view)),
        ScalarOp::Store(view) => {
            let again = stored.contains(&operand(view));
            stored.push(operand(view));
            again
        }
        _ => false,
    })
}

//! Laws of a plan, checked before anything runs it: a plan that passes cannot make a device read or write outside its
//! buffers, race with itself, or meet an operation it does not know.
//!
//! Kernels are checked by their descriptions, whatever target they are for; that a text computes what its description says is
//! the word of the emitter, which tests hold it to.
//!
//! The compiler's tests check what it emits, devices check what they load (a plan may come from a file).

mod attention;
mod dense;
mod packing;

use std::fmt;

use crate::kernel::{Code, Implementation, Instr, Kernel, Loop, ReduceKind, ScalarOp, Stage, View};
use crate::library::Matmul;
use crate::{Buffer, DType, Plan, Program, SegmentKind, Step, Target};

/// A law that a plan breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

type Checked<T = ()> = Result<T, String>;

/// Checks all laws of a plan.
///
/// # Errors
/// The first law broken: program, step, its origin, and what is wrong.
pub fn check(plan: &Plan) -> Result<(), Violation> {
    for state in &plan.state {
        state_buffer(plan, &state.buffer).map_err(|why| Violation(format!("state `{}`: {why}", state.path)))?;
    }
    for (name, program) in &plan.programs {
        self::program(plan, program).map_err(|why| Violation(format!("program `{name}`: {why}")))?;
    }
    for (name, packed) in &plan.packed {
        packing::packed(plan, name, packed).map_err(|why| Violation(format!("packed program `{name}`: {why}")))?;
    }
    Ok(())
}

fn program(plan: &Plan, program: &Program) -> Checked {
    for (index, operand) in program.buffers.iter().enumerate() {
        buffer(plan, operand).map_err(|why| format!("buffer {index}: {why}"))?;
    }
    for port in program.inputs.iter().chain(&program.outputs) {
        if port.buffer as usize >= program.buffers.len() {
            return Err(format!("`{}` is buffer {}, of {}", port.name, port.buffer, program.buffers.len()));
        }
    }
    for (index, step) in program.steps.iter().enumerate() {
        self::step(plan, program, step).map_err(|why| format!("step {index} ({}): {why}", step.origin))?;
    }
    Ok(())
}

/// State lies where nothing else does: what a device keeps several times, or programs share, keeps no state.
fn state_buffer(plan: &Plan, state: &Buffer) -> Checked {
    buffer(plan, state)?;
    match plan.segments.get(state.segment as usize).map(|segment| segment.kind) {
        Some(SegmentKind::State) => Ok(()),
        kind => Err(format!("segment {} is of kind {kind:?}, not State", state.segment)),
    }
}

fn buffer(plan: &Plan, buffer: &Buffer) -> Checked {
    let Some(segment) = plan.segments.get(buffer.segment as usize) else {
        return Err(format!("segment {} of {}", buffer.segment, plan.segments.len()));
    };
    let size = buffer.dtype.bytes();
    let bytes = buffer.shape.iter().try_fold(size, |bytes, &extent| bytes.checked_mul(extent));
    let end = bytes.and_then(|bytes| buffer.offset.checked_add(bytes));
    if end.is_none_or(|end| end > segment.bytes) {
        return Err(format!("{:?} at {} leaves its segment of {} bytes", buffer.shape, buffer.offset, segment.bytes));
    }
    if !buffer.offset.is_multiple_of(size) {
        return Err(format!("offset {} is not a multiple of the {size} bytes of {}", buffer.offset, buffer.dtype));
    }
    Ok(())
}

fn step(plan: &Plan, program: &Program, step: &Step) -> Checked {
    let operand = |&index: &u32| {
        program.buffers.get(index as usize).ok_or_else(|| format!("buffer {index} of {}", program.buffers.len()))
    };
    let operands = step.operands.iter().map(operand).collect::<Checked<Vec<&Buffer>>>()?;
    let kernel = plan.kernels.get(step.kernel as usize);
    let kernel = kernel.ok_or_else(|| format!("kernel {} of {}", step.kernel, plan.kernels.len()))?;
    let (made, wanted) = (kernel.implementation.target(), plan.target.kind);
    if made != wanted {
        return Err(format!("kernel {} is for targets of kind {made:?}, and the plan for {wanted:?}", step.kernel));
    }
    description(&kernel.description, &operands)?;
    let of = |operand: &u16| operands.get(*operand as usize).map(|buffer| buffer.segment as usize);
    let is_input = |segment: &usize| plan.segments.get(*segment).map(|of| of.kind) == Some(SegmentKind::Inputs);
    if let Some(operand) =
        kernel.description.written().iter().find(|operand| of(operand).as_ref().is_some_and(is_input))
    {
        return Err(format!("operand {operand} is written, and lies among the inputs"));
    }
    let aligned = |operand: &&Buffer| operand.offset.is_multiple_of(plan.target.alignment.max(VECTOR_BYTES));
    if let (Implementation::Cuda { .. } | Implementation::CublasLt, Some(operand)) =
        (&kernel.implementation, operands.iter().find(|operand| !aligned(operand)))
    {
        // Its text, or the library, reads and writes several elements at once.
        return Err(format!("an operand at {}, which is no multiple of {}", operand.offset, plan.target.alignment));
    }
    implementation(kernel, operands.len(), &plan.target)
}

/// The widest access of a CUDA kernel.
const VECTOR_BYTES: u64 = 16;

/// What an implementation needs beside its description, applied to so many operands.
fn implementation(kernel: &Kernel, operands: usize, target: &Target) -> Checked {
    match &kernel.implementation {
        Implementation::AsDescribed => Ok(()),
        Implementation::Wgsl { source, workgroups, .. } => {
            if source.trim().is_empty() {
                return Err("a shader without text".into());
            }
            if workgroups.contains(&0) {
                return Err(format!("a shader of {workgroups:?} workgroups computes nothing"));
            }
            let bindings = source.matches("@binding(").count();
            if bindings > operands {
                return Err(format!("a shader of {bindings} operands, applied to {operands}"));
            }
            Ok(())
        }
        Implementation::Cuda { source, entry, grid, block, .. } => {
            // The second and third dimension of a grid are shorter, and no emitter uses them.
            if grid[0] == 0 || grid[0] > i32::MAX as u32 || grid[1..] != [1, 1] || *block == 0 || *block > 1024 {
                return Err(format!("a kernel of {grid:?} blocks of {block} threads"));
            }
            let declaration = format!(" {entry}(");
            let Some((_, parameters)) = source.split_once(&declaration) else {
                return Err(format!("a text without its entry `{entry}`"));
            };
            let parameters = parameters.split(')').next().unwrap_or_default().matches('*').count();
            if parameters != operands {
                return Err(format!("a kernel of {parameters} operands, applied to {operands}"));
            }
            Ok(())
        }
        Implementation::CublasLt if target.library.is_none() => {
            Err("a call of cuBLASLt, of which the plan's target knows nothing".into())
        }
        Implementation::CublasLt => match &kernel.description {
            Loop::Product(product) => {
                Matmul::of(product).map(drop).map_err(|why| format!("a call of cuBLASLt, which has it not: {why}"))
            }
            _ => Err("a call of cuBLASLt for what is no product".into()),
        },
    }
}

/// Checks what a kernel computes against the buffers it is applied to.
fn description(description: &Loop, operands: &[&Buffer]) -> Checked {
    match description {
        Loop::Map(map) => {
            let mut accesses = Accesses::new(operands, &map.views, &map.domain, map.domain.len())?;
            Typing { views: &map.views, dims: map.domain.len(), slots: None, product: false }.check(&map.code)?;
            accesses.code(&map.code, false);
            accesses.check()
        }
        Loop::Reduction(reduction) => {
            let domain = [reduction.kept.as_slice(), &reduction.reduced].concat();
            let mut accesses = Accesses::new(operands, &reduction.views, &domain, reduction.kept.len())?;
            let mut slots = vec![None; reduction.slots as usize];
            for stage in &reduction.stages {
                let code = stage.code();
                let typing =
                    Typing { views: &reduction.views, dims: domain.len(), slots: Some(&slots), product: false };
                let types = typing.check(code)?;
                let set = stage_results(stage, &types)?;
                for (slot, dtype) in set {
                    *slots.get_mut(slot as usize).ok_or_else(|| format!("slot {slot} of {}", reduction.slots))? =
                        Some(dtype);
                }
                accesses.code(code, matches!(stage, Stage::Row { .. }));
            }
            accesses.check()
        }
        Loop::Product(product) => {
            let over = |tail: [u64; 2]| [product.batch.as_slice(), &tail].concat();
            let domain = over([product.m, product.n]);
            let mut accesses = Accesses::new(operands, &product.views, &domain, domain.len())?;
            Typing { views: &product.views, dims: domain.len(), slots: None, product: true }.check(&product.code)?;
            accesses.code(&product.code, false);
            for (name, view, domain) in
                [("a", &product.a, over([product.m, product.k])), ("b", &product.b, over([product.k, product.n]))]
            {
                if view.gather.is_some() || !view.dtype.is_float() {
                    return Err(format!("operand {name} of a product is gathered or not a float"));
                }
                let range = view_range(operands, view, &domain).map_err(|why| format!("operand {name}: {why}"))?;
                accesses.loads.extend(range.map(|range| (range, None)));
            }
            accesses.check()
        }
        Loop::Conv2d(conv) => dense::conv2d(conv, operands),
        Loop::ScatterAdd(scatter) => dense::scatter_add(scatter, operands),
        Loop::Attention(attention) => self::attention::check(attention, operands),
    }
}

/// Bytes of a segment that a view may touch.
#[derive(Clone, Copy)]
struct ByteRange {
    segment: u32,
    start: i128,
    end: i128,
}

impl ByteRange {
    fn overlaps(&self, other: &ByteRange) -> bool {
        self.segment == other.segment && self.start < other.end && other.start < self.end
    }
}

/// First and last element of an affine view; None when the domain is empty.
fn span(offset: i64, strides: &[i64], domain: &[u64]) -> Checked<Option<(i128, i128)>> {
    if strides.len() != domain.len() {
        return Err(format!("{} strides over {} dimensions", strides.len(), domain.len()));
    }
    let (mut first, mut last) = (i128::from(offset), i128::from(offset));
    for (&stride, &size) in strides.iter().zip(domain) {
        let Some(steps) = size.checked_sub(1) else { return Ok(None) };
        let reach = i128::from(stride).checked_mul(i128::from(steps)).ok_or("overflow")?;
        let bound = if reach < 0 { &mut first } else { &mut last };
        *bound = bound.checked_add(reach).ok_or("overflow")?;
    }
    Ok(Some((first, last)))
}

/// Checks that a view stays in its operand; the bytes it may touch.
fn view_range(operands: &[&Buffer], view: &View, domain: &[u64]) -> Checked<Option<ByteRange>> {
    let Some(operand) = operands.get(view.operand as usize) else {
        return Err(format!("operand {} of {}", view.operand, operands.len()));
    };
    if operand.dtype != view.dtype {
        return Err(format!("operand {} is {}, viewed as {}", view.operand, operand.dtype, view.dtype));
    }
    let Some((mut first, mut last)) = span(view.offset, &view.strides, domain)? else { return Ok(None) };
    if let Some(gather) = &view.gather {
        if gather.limit < 1 {
            return Err(format!("a gather from {} rows", gather.limit));
        }
        let reach = i128::from(gather.stride) * i128::from(gather.limit - 1);
        first += reach.min(0);
        last += reach.max(0);
    }
    if first < 0 || last >= i128::from(operand.elements()) {
        let elements = operand.elements();
        return Err(format!("elements {first} to {last} of operand {}, which has {elements}", view.operand));
    }
    let size = i128::from(operand.dtype.bytes());
    let at = |element: i128| i128::from(operand.offset) + element * size;
    Ok(Some(ByteRange { segment: operand.segment, start: at(first), end: at(last + 1) }))
}

/// What a kernel loads and stores.
struct Accesses<'a> {
    views: &'a [View],
    domain: &'a [u64],
    kept: usize,
    ranges: Vec<Option<ByteRange>>,
    /// Bytes loaded, with the view unless it is of another domain or gathered.
    loads: Vec<(ByteRange, Option<usize>)>,
    /// Views stored, and whether once per row.
    stores: Vec<(usize, bool)>,
}

impl<'a> Accesses<'a> {
    fn new(operands: &[&Buffer], views: &'a [View], domain: &'a [u64], kept: usize) -> Checked<Accesses<'a>> {
        if domain.iter().try_fold(1i64, |product, &size| product.checked_mul(i64::try_from(size).ok()?)).is_none() {
            return Err(format!("the domain {domain:?} is too large"));
        }
        let mut loads = Vec::new();
        let mut ranges = Vec::new();
        for (index, view) in views.iter().enumerate() {
            let named = |why| format!("view {index}: {why}");
            ranges.push(view_range(operands, view, domain).map_err(named)?);
            if let Some(gather) = &view.gather {
                let indices = View {
                    operand: gather.operand,
                    dtype: DType::I32,
                    offset: gather.offset,
                    strides: gather.strides.clone(),
                    gather: None,
                };
                let range = view_range(operands, &indices, domain).map_err(named)?;
                loads.extend(range.map(|range| (range, None)));
            }
        }
        Ok(Accesses { views, domain, kept, ranges, loads, stores: Vec::new() })
    }

    fn code(&mut self, code: &Code, per_row: bool) {
        for instr in &code.instrs {
            match instr.op {
                ScalarOp::Load(view) => {
                    let view = view as usize;
                    let plain = self.views[view].gather.is_none().then_some(view);
                    self.loads.extend(self.ranges[view].map(|range| (range, plain)));
                }
                ScalarOp::Store(view) => self.stores.push((view as usize, per_row)),
                _ => {}
            }
        }
    }

    /// Every point stores to its own element, and what is stored is loaded or stored only through the same view.
    fn check(&self) -> Checked {
        for (position, &(store, per_row)) in self.stores.iter().enumerate() {
            let Some(range) = self.ranges[store] else { continue };
            if self.views[store].gather.is_some() {
                return Err(format!("view {store} is stored to and gathered"));
            }
            let dims = if per_row { self.kept } else { self.domain.len() };
            self.injective(store, dims)?;
            let others = self.stores[..position]
                .iter()
                .filter_map(|&(other, _)| self.ranges[other].map(|range| (range, Some(other))));
            for (other, view) in self.loads.iter().copied().chain(others) {
                if range.overlaps(&other) && !view.is_some_and(|view| self.same(store, view, &range, &other)) {
                    return Err(format!("view {store} stores where another view loads or stores"));
                }
            }
        }
        Ok(())
    }

    fn same(&self, a: usize, b: usize, a_range: &ByteRange, b_range: &ByteRange) -> bool {
        let (x, y) = (&self.views[a], &self.views[b]);
        let strides = x.strides.iter().zip(&y.strides).zip(self.domain);
        a_range.start == b_range.start
            && x.dtype == y.dtype
            && strides.into_iter().all(|((s, t), &size)| s == t || size == 1)
    }

    fn injective(&self, store: usize, dims: usize) -> Checked {
        let dims = self.views[store].strides[..dims].iter().copied().zip(self.domain.iter().copied());
        if one_to_one(dims) { Ok(()) } else { Err(format!("view {store} stores several points to one element")) }
    }
}

/// Does every point of these dimensions, given as stride and size, have an element of its own? Sufficient: every stride
/// goes beyond all that the smaller ones reach together.
fn one_to_one(dims: impl Iterator<Item = (i64, u64)>) -> bool {
    let mut dims: Vec<(u128, u128)> =
        dims.filter(|dim| dim.1 > 1).map(|(stride, size)| (stride.unsigned_abs().into(), size.into())).collect();
    dims.sort_unstable();
    let mut reach = 0;
    for (stride, size) in dims {
        if stride <= reach {
            return false;
        }
        reach += stride * (size - 1);
    }
    true
}

/// Types of the slots a stage sets.
fn stage_results(stage: &Stage, types: &[DType]) -> Checked<Vec<(u16, DType)>> {
    let value =
        |value: u16| types.get(value as usize).copied().ok_or_else(|| format!("value {value} of {}", types.len()));
    match stage {
        Stage::Row { slots, .. } => slots.iter().map(|&(from, slot)| Ok((slot, value(from)?))).collect(),
        Stage::Points { reduce, .. } => reduce
            .iter()
            .map(|reduce| match (reduce.kind, value(reduce.value)?) {
                (_, DType::Bool) => Err("a reduction of truth values".to_string()),
                (ReduceKind::ArgMax, _) => Ok((reduce.slot, DType::I32)),
                (_, dtype) => Ok((reduce.slot, dtype)),
            })
            .collect(),
    }
}

/// Type of a value in registers for a storage type.
pub fn register_type(dtype: DType) -> DType {
    if dtype.is_float() || dtype == DType::U8 { DType::F32 } else { dtype }
}

/// Type of an instruction's result in registers.
pub fn result_type(instr: &Instr) -> DType {
    use ScalarOp::*;
    match instr.op {
        Cast(to) => register_type(to),
        Lt | Le | Eq => DType::Bool,
        _ => instr.dtype,
    }
}

/// What code may refer to.
struct Typing<'a> {
    views: &'a [View],
    dims: usize,
    /// Types of the slots set so far, in reductions.
    slots: Option<&'a [Option<DType>]>,
    product: bool,
}

impl Typing<'_> {
    /// Types of all values.
    fn check(&self, code: &Code) -> Checked<Vec<DType>> {
        let mut types: Vec<DType> = Vec::with_capacity(code.instrs.len());
        for (index, instr) in code.instrs.iter().enumerate() {
            let found = (|| {
                let args = &instr.args[..instr.op.arity()];
                let args = args.iter().map(|&arg| types.get(arg as usize).copied().ok_or("refers to a later value"));
                self.instr(instr, &args.collect::<Result<Vec<DType>, _>>()?)
            })();
            types.push(found.map_err(|why: String| format!("value {index}, {:?}: {why}", instr.op))?);
        }
        Ok(types)
    }

    fn instr(&self, instr: &Instr, args: &[DType]) -> Checked<DType> {
        use DType::{Bool, F32, I32};
        use ScalarOp::*;
        let dtype = instr.dtype;
        let view = |view: u16| {
            let known = self.views.get(view as usize).map(|view| register_type(view.dtype));
            known.ok_or_else(|| format!("view {view} of {}", self.views.len()))
        };
        let only = |allowed: &[DType]| {
            if allowed.contains(&dtype) { Ok(()) } else { Err(format!("not defined for {dtype}")) }
        };
        let (pair, choice) = ([dtype, dtype], [Bool, dtype, dtype]);
        let expected: &[DType] = match instr.op {
            Const(_) => &[],
            Index(dim) if (dim as usize) < self.dims => only(&[I32]).map(|()| &[])?,
            Index(dim) => return Err(format!("dimension {dim} of {}", self.dims)),
            Load(of) if view(of)? == dtype => &[],
            Store(of) if self.views.get(of as usize).is_some_and(|view| view.dtype == DType::U8) => {
                return Err("u8 is an input's type, which nothing is stored as".into());
            }
            Store(of) if view(of)? == dtype => &pair[..1],
            Load(of) | Store(of) => return Err(format!("{dtype} through a view of {}", view(of)?)),
            Slot(slot) => match self.slots.map(|slots| slots.get(slot as usize)) {
                Some(Some(Some(set))) if *set == dtype => &[],
                Some(Some(Some(set))) => return Err(format!("{dtype} from a slot that holds {set}")),
                _ => return Err("a slot that no earlier stage sets".into()),
            },
            Product if self.product => only(&[F32]).map(|()| &[])?,
            Product => return Err("outside a product".into()),
            Uniform { lane, .. } if lane < 4 => only(&[F32]).map(|()| &[I32, I32, I32])?,
            Uniform { lane, .. } => return Err(format!("word {lane} of 4")),
            Cast(DType::U8) => return Err("u8 is an input's type, which nothing becomes".into()),
            Cast(_) => &pair[..1],
            Exp | Ln | Sqrt | Sin | Cos | Tanh | Erf | Floor => only(&[F32]).map(|()| &[F32])?,
            Pow => only(&[F32]).map(|()| &[F32, F32])?,
            Neg | Abs => only(&[F32, I32]).map(|()| &pair[..1])?,
            Add | Sub | Mul | Div | Rem | Min | Max | Lt | Le => only(&[F32, I32]).map(|()| &pair[..])?,
            Eq => &pair,
            Not => only(&[Bool]).map(|()| &[Bool])?,
            And | Or => only(&[Bool]).map(|()| &[Bool, Bool])?,
            Select => &choice,
            RoundBf16 | RoundF16 => return Err("exists in graphs only".into()),
        };
        if register_type(dtype) != dtype {
            return Err(format!("{dtype} is a storage type, not one of registers"));
        }
        if args != expected {
            return Err(format!("arguments are {args:?}, not {expected:?}"));
        }
        Ok(result_type(instr))
    }
}

//! A device that follows the definition of every loop in f64, one point at a time: slow, and simple enough to be believed.
//! It runs plans of all targets, since it asks for the description of a kernel only: the same plan on another device tells
//! whether what the compiler says is wrong, or what the device makes of it.
//!
//! Values are f64 between loads and stores, whatever their dtype; memory holds the plan's storage types. Invariant: no
//! tiling, no threads, no reordering, nothing shared with the cpu device but memory and the check of the plan.

mod attention;

use std::ops::Range;
use std::sync::Arc;

use alip_plan::kernel::{
    Code, Conv2d, ConvKind, Gather, Instr, Loop, Map, Product, ReduceKind, Reduction, ScalarOp, ScatterAdd, Stage, View,
};
use alip_plan::{Buffer, DType, Plan, Target, TargetKind, philox};

use super::host::{HostMemory, check_steps};
use super::{Device, DeviceError, Download, LoadedPlan, MemoryFacts, Slice, check_plan};
use crate::tensor::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// The device.
pub struct Reference;

impl Device for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn description(&self) -> String {
        "f64, one point at a time, for comparison".into()
    }

    fn target(&self) -> Target {
        Target::cpu()
    }

    fn runs(&self, _: TargetKind) -> bool {
        true
    }

    fn summary(&self) -> String {
        "slow and exact".into()
    }

    fn arithmetic(&self) -> String {
        "f64".into()
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        check_plan(&plan, self)?;
        let memory = HostMemory::new(&plan, self.name())?;
        Ok(Box::new(LoadedReference { plan, memory }))
    }
}

struct LoadedReference {
    plan: Arc<Plan>,
    memory: HostMemory,
}

impl LoadedPlan for LoadedReference {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.memory.write(slice, bytes)
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        self.memory.read(slices)
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        let plan = Arc::clone(&self.plan);
        let program = check_steps(&plan, program, &steps)?;
        for step in program.steps.get(steps).unwrap_or_default() {
            // `check` made sure that all these exist.
            let Some(kernel) = plan.kernels.get(step.kernel as usize) else { continue };
            let operands = step.operands.iter().filter_map(|&operand| program.buffers.get(operand as usize)).collect();
            let mut memory = Memory { memory: &self.memory, operands };
            match &kernel.description {
                Loop::Map(map) => memory.map(map),
                Loop::Reduction(reduction) => memory.reduction(reduction),
                Loop::Product(product) => memory.product(product),
                Loop::Conv2d(conv) => memory.conv2d(conv),
                Loop::ScatterAdd(scatter) => memory.scatter_add(scatter),
                Loop::Attention(attention) => memory.attention(attention),
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> MemoryFacts {
        MemoryFacts { segments: self.memory.bytes(), scratch: 0 }
    }
}

/// The operands of a step.
struct Memory<'a> {
    memory: &'a HostMemory,
    operands: Vec<&'a Buffer>,
}

/// Where code runs: the point, and what `Slot` and `Product` read.
struct Point<'a> {
    at: &'a [u64],
    slots: &'a [f64],
    product: f64,
}

impl Memory<'_> {
    fn get(&self, operand: u16, element: i64) -> f64 {
        let buffer = self.operands[operand as usize];
        let at = self.at(buffer, element);
        // SAFETY: `check` keeps every view inside its buffer; loads are aligned to their size, as buffers are.
        unsafe {
            match buffer.dtype {
                DType::F32 => f64::from(at.cast::<f32>().read()),
                DType::I32 => f64::from(at.cast::<i32>().read()),
                DType::Bool => f64::from(u8::from(at.cast::<u32>().read() != 0)),
                DType::Bf16 => f64::from(bf16_to_f32(at.cast::<u16>().read())),
                DType::F16 => f64::from(f16_to_f32(at.cast::<u16>().read())),
                DType::U8 => f64::from(at.read()),
            }
        }
    }

    fn put(&mut self, operand: u16, element: i64, value: f64) {
        let buffer = self.operands[operand as usize];
        let at = self.at(buffer, element);
        // SAFETY: as in `get`; nothing else runs while this device does.
        unsafe {
            match buffer.dtype {
                DType::F32 => at.cast::<f32>().write(value as f32),
                DType::I32 => at.cast::<i32>().write(value as i32),
                DType::Bool => at.cast::<u32>().write(u32::from(value != 0.0)),
                DType::Bf16 => at.cast::<u16>().write(f32_to_bf16(value as f32)),
                DType::F16 => at.cast::<u16>().write(f32_to_f16(value as f32)),
                DType::U8 => {} // `check` admits no such store
            }
        }
    }

    fn at(&self, buffer: &Buffer, element: i64) -> *mut u8 {
        let bytes = buffer.offset as i64 + element * buffer.dtype.bytes() as i64;
        // SAFETY: inside the segment, by `check`.
        unsafe { self.memory.base(buffer.segment).offset(bytes as isize) }
    }

    fn element(&self, view: &View, at: &[u64]) -> i64 {
        let affine = |offset: i64, strides: &[i64]| {
            offset + strides.iter().zip(at).map(|(&stride, &coordinate)| stride * coordinate as i64).sum::<i64>()
        };
        let gathered = view.gather.as_ref().map_or(0, |Gather { operand, offset, strides, stride, limit }| {
            let index = self.get(*operand, affine(*offset, strides)) as i64;
            index.clamp(0, limit - 1) * stride
        });
        affine(view.offset, &view.strides) + gathered
    }

    /// Runs code at a point; the values of all instructions.
    fn run(&mut self, code: &Code, views: &[View], point: &Point<'_>) -> Vec<f64> {
        let mut values: Vec<f64> = Vec::with_capacity(code.instrs.len());
        for instr in &code.instrs {
            let arg = |n: usize| values[instr.args[n] as usize];
            let value = match instr.op {
                ScalarOp::Load(view) => self.viewed(&views[view as usize], point.at),
                ScalarOp::Store(view) => {
                    let view = &views[view as usize];
                    let (element, value) = (self.element(view, point.at), arg(0));
                    self.put(view.operand, element, value);
                    value
                }
                ScalarOp::Index(dim) => point.at[dim as usize] as f64,
                ScalarOp::Slot(slot) => point.slots[slot as usize],
                ScalarOp::Product => point.product,
                _ => scalar(instr, [0, 1, 2].map(|n| if n < instr.op.arity() { arg(n) } else { 0.0 })),
            };
            values.push(value);
        }
        values
    }

    fn map(&mut self, map: &Map) {
        for at in points(&map.domain) {
            self.run(&map.code, &map.views, &Point { at: &at, slots: &[], product: 0.0 });
        }
    }

    fn reduction(&mut self, reduction: &Reduction) {
        for kept in points(&reduction.kept) {
            let mut slots = vec![0.0; reduction.slots as usize];
            for stage in &reduction.stages {
                self.stage(reduction, stage, &kept, &mut slots);
            }
        }
    }

    fn stage(&mut self, reduction: &Reduction, stage: &Stage, kept: &[u64], slots: &mut [f64]) {
        match stage {
            Stage::Row { code, slots: set } => {
                let at = [kept, &vec![0; reduction.reduced.len()]].concat();
                let values = self.run(code, &reduction.views, &Point { at: &at, slots, product: 0.0 });
                for &(value, slot) in set {
                    slots[slot as usize] = values[value as usize];
                }
            }
            Stage::Points { code, reduce } => {
                let empty = reduce.iter().map(|reduce| match reduce.kind {
                    ReduceKind::Sum => 0.0,
                    ReduceKind::Prod => 1.0,
                    ReduceKind::Max | ReduceKind::ArgMax => f64::NEG_INFINITY,
                    ReduceKind::Min => f64::INFINITY,
                });
                let mut results: Vec<(f64, f64)> = empty.map(|value| (value, 0.0)).collect();
                for (position, reduced) in points(&reduction.reduced).enumerate() {
                    let at = [kept, &reduced].concat();
                    let values = self.run(code, &reduction.views, &Point { at: &at, slots, product: 0.0 });
                    for (reduce, (best, index)) in reduce.iter().zip(&mut results) {
                        let value = values[reduce.value as usize];
                        // Integers wrap around. A cast is known by what it takes.
                        let instr = &code.instrs[reduce.value as usize];
                        let dtype = if let ScalarOp::Cast(to) = instr.op { to } else { instr.dtype };
                        let integers = dtype == DType::I32;
                        let (x, y) = (*best as i32, value as i32);
                        match reduce.kind {
                            ReduceKind::Sum if integers => *best = f64::from(x.wrapping_add(y)),
                            ReduceKind::Prod if integers => *best = f64::from(x.wrapping_mul(y)),
                            ReduceKind::Sum => *best += value,
                            ReduceKind::Prod => *best *= value,
                            ReduceKind::Max => *best = maximum(*best, value),
                            ReduceKind::Min => *best = -maximum(-*best, -value),
                            ReduceKind::ArgMax if value > *best => (*best, *index) = (value, position as f64),
                            ReduceKind::ArgMax => {}
                        }
                    }
                }
                for (reduce, (best, index)) in reduce.iter().zip(results) {
                    slots[reduce.slot as usize] = if reduce.kind == ReduceKind::ArgMax { index } else { best };
                }
            }
        }
    }

    fn product(&mut self, product: &Product) {
        for at in points(&[product.batch.as_slice(), &[product.m, product.n]].concat()) {
            let (batch, mn) = at.split_at(product.batch.len());
            let sum = (0..product.k)
                .map(|k| {
                    self.viewed(&product.a, &[batch, &[mn[0], k]].concat())
                        * self.viewed(&product.b, &[batch, &[k, mn[1]]].concat())
                })
                .sum();
            self.run(&product.code, &product.views, &Point { at: &at, slots: &[], product: sum });
        }
    }

    fn conv2d(&mut self, conv: &Conv2d) {
        let (oh, ow) = conv.extent();
        let [_, _, result] = conv.domains();
        let mut sums = vec![0.0; result.iter().product::<u64>() as usize];
        for at in points(&[conv.n, conv.o, conv.c, oh, ow, conv.kh, conv.kw]) {
            let [n, o, c, y, x, ky, kx] = at[..] else { continue };
            let (iy, ix) = (y * conv.stride + ky, x * conv.stride + kx);
            let inside = |i: u64, size: u64| i.checked_sub(conv.padding).filter(|&i| i < size);
            let (Some(iy), Some(ix)) = (inside(iy, conv.h), inside(ix, conv.w)) else { continue };
            let (image, weight, out) = ([n, c, iy, ix], [o, c, ky, kx], [n, o, y, x]);
            let [a, b, to] = match conv.kind {
                ConvKind::Forward => [image, weight, out],
                ConvKind::ImageGrad => [out, weight, image],
                ConvKind::WeightGrad => [image, out, weight],
            };
            sums[linear(&to, &result)] += self.first(conv, &a) * self.viewed(&conv.b, &b);
        }
        self.put_all(&conv.out, &result, sums);
    }

    /// The first factor of a convolution at a point of its domain.
    fn first(&mut self, conv: &Conv2d, at: &[u64]) -> f64 {
        let views = std::slice::from_ref(&conv.a);
        let made = self.run(&conv.prologue, views, &Point { at, slots: &[], product: 0.0 });
        made.last().copied().unwrap_or_else(|| self.viewed(&conv.a, at))
    }

    fn scatter_add(&mut self, scatter: &ScatterAdd) {
        let ScatterAdd { batch, count, rows, inner, .. } = *scatter;
        let [_, _, result] = scatter.domains();
        let mut sums = vec![0.0; result.iter().product::<u64>() as usize];
        for at in points(&[batch, count, inner]) {
            let [b, i, e] = at[..] else { continue };
            let row = (self.viewed(&scatter.index, &[b, i]) as i64).clamp(0, rows as i64 - 1) as u64;
            sums[linear(&[b, row, e], &result)] += self.viewed(&scatter.updates, &at);
        }
        self.put_all(&scatter.out, &result, sums);
    }

    fn viewed(&self, view: &View, at: &[u64]) -> f64 {
        self.get(view.operand, self.element(view, at))
    }

    /// Writes a result, once all that it is made of has been read.
    fn put_all(&mut self, view: &View, domain: &[u64], values: Vec<f64>) {
        for (at, value) in points(domain).zip(values) {
            let element = self.element(view, &at);
            self.put(view.operand, element, value);
        }
    }
}

/// Number of a point of a domain, row-major.
fn linear(at: &[u64], domain: &[u64]) -> usize {
    at.iter().zip(domain).fold(0, |all, (&coordinate, &size)| all * size + coordinate) as usize
}

/// All points of a domain, row-major.
fn points(domain: &[u64]) -> impl Iterator<Item = Vec<u64>> + '_ {
    let total = domain.iter().product::<u64>();
    (0..total).map(move |linear| {
        let mut rest = linear;
        let mut at: Vec<u64> = domain
            .iter()
            .rev()
            .map(|&size| {
                let coordinate = rest % size;
                rest /= size;
                coordinate
            })
            .collect();
        at.reverse();
        at
    })
}

fn maximum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// An operation that needs nothing but its arguments.
fn scalar(instr: &Instr, [a, b, c]: [f64; 3]) -> f64 {
    use ScalarOp::*;
    let truth = |value: bool| f64::from(u8::from(value));
    if instr.dtype == DType::I32 {
        let (x, y) = (a as i32, b as i32);
        match instr.op {
            Neg => return f64::from(x.wrapping_neg()),
            Abs => return f64::from(x.wrapping_abs()),
            Add => return f64::from(x.wrapping_add(y)),
            Sub => return f64::from(x.wrapping_sub(y)),
            Mul => return f64::from(x.wrapping_mul(y)),
            Div => return f64::from(if y == 0 { x } else { x.wrapping_div(y) }),
            Rem => {
                let rest = if y == 0 { x } else { x.wrapping_rem(y) };
                return f64::from(if y != 0 && rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest });
            }
            _ => {}
        }
    }
    match instr.op {
        Const(value) => value.0,
        Uniform { stream, lane } => {
            let key = [a as i32 as u32, b as i32 as u32];
            let words = philox::philox4x32(philox::drawn(c as i32 as u32, stream), key);
            f64::from(philox::uniform(words[lane as usize]))
        }
        Cast(DType::Bool) => truth(a != 0.0),
        Cast(DType::I32) => f64::from(a as i32),
        Cast(to @ (DType::Bf16 | DType::F16)) => to.rounded(a),
        Cast(DType::U8) | RoundBf16 | RoundF16 => f64::NAN, // in no kernel that was checked
        // As in registers, also on the way to fewer bits.
        Cast(DType::F32) if instr.dtype == DType::I32 => f64::from(a as f32),
        Cast(DType::F32) | Load(_) | Store(_) | Index(_) | Slot(_) | Product => a,
        Neg => -a,
        Abs => a.abs(),
        Exp => libm::exp(a),
        Ln => libm::log(a),
        Sqrt => libm::sqrt(a),
        Sin => libm::sin(a),
        Cos => libm::cos(a),
        Tanh => libm::tanh(a),
        Erf => libm::erf(a),
        Floor => a.floor(),
        Not => truth(a == 0.0),
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a / b,
        Rem => {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
        }
        Pow => libm::pow(a, b),
        Min => -maximum(-a, -b),
        Max => maximum(a, b),
        Lt => truth(a < b),
        Le => truth(a <= b),
        Eq => truth(a == b),
        And => truth(a != 0.0 && b != 0.0),
        Or => truth(a != 0.0 || b != 0.0),
        Select => {
            if a != 0.0 {
                b
            } else {
                c
            }
        }
    }
}

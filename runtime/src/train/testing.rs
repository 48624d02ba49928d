//! A plan small enough to write by hand, for tests of everything around the kernels.
//!
//! It regresses the mean of a text's ids on the pixels: `loss = mean((image . w - mean(raw) / 100)^2)`, one step of gradient
//! descent with a falling rate, update guarded as the compiler's is; on request with a loss scale.

mod late;
mod wrapped;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use alip_plan::kernel::{
    Code, Instr, Kernel, Lanes, Loop, Map, Product, Reduce, ReduceKind, Reduction, ScalarOp, Stage, View,
};
use alip_plan::pipeline::{Argument, Pipeline, PipelineNode, PipelineOp, Shuffle, Source};
use alip_plan::{
    Buffer, DType, PROGRAM_INIT, PROGRAM_TRAIN, Plan, Port, Program, Real, Report, STATE_HALTED, STATE_LOSS_SCALE,
    STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS, Segment, SegmentKind, StateKind, StateTensor, Step, Target, TrainInfo,
};

use crate::run::{DeviceIdentity, RunInfo};

pub(crate) use late::{Pace, late};
pub(crate) use wrapped::Wrapped;

pub(crate) const BATCH: u64 = 4;
pub(crate) const SIDE: u64 = 4;
pub(crate) const CONTEXT: u64 = 6;
/// Rows of the table that its tokens are said to be of.
const TABLE: u64 = 8;
const PIXELS: u64 = 3 * SIDE * SIDE;

/// An empty folder for a test.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("alip-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What a run of this plan is asked to do.
pub(crate) fn info(plan: &Plan) -> RunInfo {
    let device = DeviceIdentity { name: "reference".into(), arithmetic: "f64".into() };
    RunInfo::new(plan, device, 1, 10, None)
}

/// Code as it is written: `op(kind, dtype, args)` gives the number of the value.
#[derive(Default)]
struct Writer(Code);

impl Writer {
    fn op(&mut self, op: ScalarOp, dtype: DType, args: &[u16]) -> u16 {
        let mut all = [0; 3];
        all[..args.len()].copy_from_slice(args);
        self.0.instrs.push(Instr { op, dtype, args: all });
        self.0.instrs.len() as u16 - 1
    }
    fn f(&mut self, op: ScalarOp, args: &[u16]) -> u16 {
        self.op(op, DType::F32, args)
    }
    fn constant(&mut self, value: f64, dtype: DType) -> u16 {
        self.op(ScalarOp::Const(Real(value)), dtype, &[])
    }
    /// Whether a value is finite.
    fn finite(&mut self, value: u16) -> u16 {
        let size = self.f(ScalarOp::Abs, &[value]);
        let infinity = self.constant(f64::INFINITY, DType::F32);
        self.f(ScalarOp::Lt, &[size, infinity])
    }
    /// Whether a step is taken, by the views of loss (scaled, where there is a scale) and flag.
    fn taken(&mut self, loss: u16, halted: u16) -> u16 {
        let loss = self.f(ScalarOp::Load(loss), &[]);
        let finite = self.finite(loss);
        let halted = self.op(ScalarOp::Load(halted), DType::I32, &[]);
        let zero = self.constant(0.0, DType::I32);
        let running = self.op(ScalarOp::Eq, DType::I32, &[halted, zero]);
        self.op(ScalarOp::And, DType::Bool, &[finite, running])
    }
}

fn view(operand: u16, dtype: DType, strides: &[i64]) -> View {
    View { operand, dtype, offset: 0, strides: strides.to_vec(), gather: None }
}

/// Places buffers one after the other.
struct Memory {
    end: [u64; 3],
}

impl Memory {
    fn buffer(&mut self, segment: u32, dtype: DType, shape: &[u64]) -> Buffer {
        let end = &mut self.end[segment as usize];
        let buffer = Buffer { segment, offset: *end, dtype, shape: shape.to_vec() };
        *end += buffer.bytes().next_multiple_of(64);
        buffer
    }
}

/// Buffers of `train`, by number.
const HALTED: u32 = 4;
const LOSS: u32 = 8;

/// The plan `linear`.
pub(crate) fn linear() -> Plan {
    use DType::{F32, I32};
    let mut memory = Memory { end: [0; 3] };
    let w = memory.buffer(0, F32, &[PIXELS]);
    let counters: Vec<Buffer> = (0..4).map(|_| memory.buffer(0, I32, &[])).collect();
    let state = |path: &str, kind, buffer: &Buffer| StateTensor { path: path.into(), kind, buffer: buffer.clone() };
    let states = vec![
        state("w", StateKind::Param, &w),
        state(STATE_STEP, StateKind::Optimizer, &counters[0]),
        state(STATE_TOTAL_STEPS, StateKind::Optimizer, &counters[1]),
        state(STATE_SEED, StateKind::Optimizer, &counters[2]),
        state(STATE_HALTED, StateKind::Optimizer, &counters[3]),
    ];
    let image = memory.buffer(2, F32, &[BATCH, 3, SIDE, SIDE]);
    let raw = memory.buffer(2, I32, &[BATCH, CONTEXT]);
    let error = memory.buffer(1, F32, &[BATCH]);
    let loss = memory.buffer(1, F32, &[]);
    let rate = memory.buffer(1, F32, &[]);
    let seed = memory.buffer(2, I32, &[]);

    let kernels = vec![init(), set(), forward(), residual(), mean_square(), schedule(), update(), count(), halt()];
    let given = vec![image, raw, error, loss, rate];
    let buffers = [std::slice::from_ref(&w), &counters, &given].concat();
    let step = |kernel, operands: &[u32], origin: &str| Step {
        kernel,
        operands: operands.to_vec(),
        origin: origin.into(),
        flops: 2 * BATCH * PIXELS,
        bytes: 0,
        predicted_ns: 0,
    };
    let steps = vec![
        step(2, &[5, 0, 7], "tower"),
        step(3, &[6, 7], "target"),
        step(4, &[7, LOSS], "loss"),
        step(5, &[1, 2, 9], "train.schedule"),
        step(6, &[7, 5, 0, LOSS, 9, HALTED], "train.update"),
        step(7, &[LOSS, 1, HALTED], "train.step"),
        step(8, &[LOSS, HALTED], "train.halted"),
    ];
    let port = |name: &str, buffer| Port::new(name, buffer);
    let train = Program {
        inputs: vec![port("image", 5), Port { rows: Some(TABLE), ..port("raw", 6) }],
        outputs: vec![port("loss", LOSS), port("lr", 9)],
        buffers: buffers.clone(),
        steps,
    };
    let start = Program {
        inputs: vec![port("seed", 5)],
        outputs: vec![],
        buffers: [&buffers[..5], &[seed]].concat(),
        steps: vec![step(0, &[5, 0], "w"), step(1, &[1, 2, 5, 3, 4], "train")],
    };
    Plan {
        name: "linear".into(),
        compiler: "by hand".into(),
        target: Target::cpu(),
        segments: vec![
            Segment { kind: SegmentKind::State, bytes: memory.end[0] },
            Segment { kind: SegmentKind::Arena, bytes: memory.end[1] },
            Segment { kind: SegmentKind::Inputs, bytes: memory.end[2] },
        ],
        state: states,
        kernels,
        programs: BTreeMap::from([(PROGRAM_INIT.to_string(), start), (PROGRAM_TRAIN.to_string(), train)]),
        packed: BTreeMap::new(),
        train: Some(TrainInfo {
            evaluate: None,
            batch: BATCH,
            epochs: 2.0,
            loss: "loss".into(),
            metrics: vec!["loss".into(), "lr".into()],
            data: Some(shapes(10)),
            start: Vec::new(),
        }),
        report: Report { parameters: PIXELS, ..Report::default() },
    }
}

/// The first loss scale, 2^100: a loss beyond 2^28 overflows with it.
pub(crate) const SCALE: f32 = (1u128 << 100) as f32;

/// The plan `linear` with a loss scale: a step is taken if `loss * scale` is finite, and halves the scale if that is not. Its metric
/// `grad_norm` is what a spec may make of that name: `ln(loss)`.
pub(crate) fn linear_scaled() -> Plan {
    let mut plan = linear();
    let mut add = |segment: usize| {
        let offset = plan.segments[segment].bytes.next_multiple_of(64);
        plan.segments[segment].bytes = offset + 64;
        Buffer { segment: segment as u32, offset, dtype: DType::F32, shape: vec![] }
    };
    let (scale, scaled, logarithm) = (add(0), add(1), add(1));
    let kernel = plan.kernels.len() as u32;
    plan.kernels.extend([first_scale(), scaled_loss(), next_scale()]);
    let step = |kernel, operands: &[u32], origin: &str| Step {
        kernel,
        operands: operands.to_vec(),
        origin: origin.into(),
        flops: 1,
        bytes: 0,
        predicted_ns: 0,
    };

    let start = plan.programs.get_mut(PROGRAM_INIT).unwrap();
    start.steps.push(step(kernel, &[start.buffers.len() as u32], "loss_scale"));
    start.buffers.push(scale.clone());

    let train = plan.programs.get_mut(PROGRAM_TRAIN).unwrap();
    let first = train.buffers.len() as u32;
    let (own, judged, metric) = (first, first + 1, first + 2);
    train.buffers.extend([scale.clone(), scaled, logarithm]);
    for guarded in train.steps.iter_mut().filter(|step| ["train.update", "train.step"].contains(&step.origin.as_str()))
    {
        guarded.operands.iter_mut().filter(|operand| **operand == LOSS).for_each(|operand| *operand = judged);
    }
    let loss = train.steps.iter().position(|step| step.origin == "loss").unwrap();
    train.steps.insert(loss + 1, step(kernel + 1, &[LOSS, own, judged, metric], "train.scaled"));
    let halt = train.steps.len() - 1;
    train.steps.insert(halt, step(kernel + 2, &[judged, HALTED, own], "loss_scale"));
    train.outputs.push(Port::new("grad_norm", metric));
    plan.train.as_mut().unwrap().metrics.push("grad_norm".into());
    plan.state.push(StateTensor { path: STATE_LOSS_SCALE.into(), kind: StateKind::Optimizer, buffer: scale });
    plan
}

/// A pipeline over `scenes` rendered scenes that fits the plan.
pub(crate) fn shapes(scenes: u64) -> Pipeline {
    let call = |name: &str, op: &str, inputs: &[&str], args: &[(&str, Argument)]| {
        let inputs: Vec<Argument> = inputs.iter().map(|input| Argument::Name(input.to_string())).collect();
        let named: Vec<(String, Argument)> =
            args.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let (op, inputs) = PipelineOp::from_call(op, &inputs, &named).unwrap();
        PipelineNode { name: name.into(), op, inputs }
    };
    let text = |text: &str| Argument::Text(text.into());
    let ops = vec![
        call("mirrored", "mirror", &["image"], &[]),
        call("pixels", "normalize_rgb", &["mirrored"], &[]),
        call(
            "ids",
            "tokenize",
            &["raw"],
            &[("context", Argument::Number(CONTEXT as f64)), ("vocab", text("words:512"))],
        ),
    ];
    let outputs = [("image", "pixels"), ("raw", "ids")];
    Pipeline {
        name: "shapes_test".into(),
        source: Source::Shapes { size: SIDE as u32, scenes, held_out: 8, seed: 0 },
        shuffle: Some(Shuffle::default()),
        ops,
        eval_ops: None,
        outputs: outputs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        bytes: BTreeSet::new(),
    }
}

/// `w = uniform(seed) / 100`; operands seed, w.
fn init() -> Kernel {
    let mut code = Writer::default();
    let seed = code.op(ScalarOp::Load(0), DType::I32, &[]);
    let zero = code.constant(0.0, DType::I32);
    let index = code.op(ScalarOp::Index(0), DType::I32, &[]);
    let draw = code.f(ScalarOp::Uniform { stream: 1, lane: 0 }, &[seed, zero, index]);
    let scale = code.constant(0.01, DType::F32);
    let value = code.f(ScalarOp::Mul, &[draw, scale]);
    code.f(ScalarOp::Store(1), &[value]);
    map(vec![PIXELS], vec![view(0, DType::I32, &[0]), view(1, DType::F32, &[1])], code)
}

/// `step = 0, total = 1, seed = seed, halted = 0`; operands step, total, seed given, seed, halted.
fn set() -> Kernel {
    let mut code = Writer::default();
    for (at, value) in [(0, 0.0), (1, 1.0), (4, 0.0)] {
        let value = code.constant(value, DType::I32);
        code.op(ScalarOp::Store(at), DType::I32, &[value]);
    }
    let seed = code.op(ScalarOp::Load(2), DType::I32, &[]);
    code.op(ScalarOp::Store(3), DType::I32, &[seed]);
    map(vec![1], (0..5).map(|operand| view(operand, DType::I32, &[0])).collect(), code)
}

/// `error = image @ w`; operands image, w, error.
fn forward() -> Kernel {
    let mut code = Writer::default();
    let product = code.f(ScalarOp::Product, &[]);
    code.f(ScalarOp::Store(0), &[product]);
    Kernel::as_described(Loop::Product(Product {
        batch: vec![],
        m: BATCH,
        n: 1,
        k: PIXELS,
        a: view(0, DType::F32, &[PIXELS as i64, 1]),
        b: view(1, DType::F32, &[1, 0]),
        views: vec![view(2, DType::F32, &[1, 0])],
        code: code.0,
    }))
}

/// `error -= mean(raw) / 100`; operands raw, error.
fn residual() -> Kernel {
    let mut points = Writer::default();
    let id = points.op(ScalarOp::Load(0), DType::I32, &[]);
    let value = points.op(ScalarOp::Cast(DType::F32), DType::I32, &[id]);
    let mut row = Writer::default();
    let sum = row.f(ScalarOp::Slot(0), &[]);
    let scale = row.constant(0.01 / CONTEXT as f64, DType::F32);
    let target = row.f(ScalarOp::Mul, &[sum, scale]);
    let product = row.f(ScalarOp::Load(1), &[]);
    let error = row.f(ScalarOp::Sub, &[product, target]);
    row.f(ScalarOp::Store(1), &[error]);
    reduction(
        (vec![BATCH], vec![CONTEXT]),
        vec![view(0, DType::I32, &[CONTEXT as i64, 1]), view(1, DType::F32, &[1, 0])],
        (points, value),
        row,
    )
}

/// `loss = mean(error^2)`; operands error, loss.
fn mean_square() -> Kernel {
    let mut points = Writer::default();
    let error = points.f(ScalarOp::Load(0), &[]);
    let square = points.f(ScalarOp::Mul, &[error, error]);
    let mut row = Writer::default();
    let sum = row.f(ScalarOp::Slot(0), &[]);
    let scale = row.constant(1.0 / BATCH as f64, DType::F32);
    let loss = row.f(ScalarOp::Mul, &[sum, scale]);
    row.f(ScalarOp::Store(1), &[loss]);
    let views = vec![view(0, DType::F32, &[0, 1]), view(1, DType::F32, &[0, 0])];
    reduction((vec![1], vec![BATCH]), views, (points, square), row)
}

/// `rate = (1 - step / total) / 1000`; operands step, total, rate.
fn schedule() -> Kernel {
    let mut code = Writer::default();
    let mut count = |at| {
        let value = code.op(ScalarOp::Load(at), DType::I32, &[]);
        code.op(ScalarOp::Cast(DType::F32), DType::I32, &[value])
    };
    let (step, total) = (count(0), count(1));
    let share = code.f(ScalarOp::Div, &[step, total]);
    let one = code.constant(1.0, DType::F32);
    let left = code.f(ScalarOp::Sub, &[one, share]);
    let scale = code.constant(0.001, DType::F32);
    let rate = code.f(ScalarOp::Mul, &[left, scale]);
    code.f(ScalarOp::Store(2), &[rate]);
    let counter = |operand| view(operand, DType::I32, &[0]);
    map(vec![1], vec![counter(0), counter(1), view(2, DType::F32, &[0])], code)
}

/// `w -= rate * 2 / batch * image^T @ error`, if the step is taken; operands error, image, w, loss, rate, halted.
fn update() -> Kernel {
    let mut code = Writer::default();
    let gradient = code.f(ScalarOp::Product, &[]);
    let rate = code.f(ScalarOp::Load(2), &[]);
    let scale = code.constant(2.0 / BATCH as f64, DType::F32);
    let scale = code.f(ScalarOp::Mul, &[rate, scale]);
    let change = code.f(ScalarOp::Mul, &[scale, gradient]);
    let old = code.f(ScalarOp::Load(0), &[]);
    let new = code.f(ScalarOp::Sub, &[old, change]);
    let taken = code.taken(1, 3);
    let next = code.f(ScalarOp::Select, &[taken, new, old]);
    code.f(ScalarOp::Store(0), &[next]);
    let scalar = |operand| view(operand, DType::F32, &[0, 0]);
    let halted = view(5, DType::I32, &[0, 0]);
    Kernel::as_described(Loop::Product(Product {
        batch: vec![],
        m: 1,
        n: PIXELS,
        k: BATCH,
        a: view(0, DType::F32, &[0, 1]),
        b: view(1, DType::F32, &[PIXELS as i64, 1]),
        views: vec![view(2, DType::F32, &[0, 1]), scalar(3), scalar(4), halted],
        code: code.0,
    }))
}

/// `step += 1`, if the step is taken; operands loss, step, halted.
fn count() -> Kernel {
    let mut code = Writer::default();
    let taken = code.taken(0, 2);
    let step = code.op(ScalarOp::Load(1), DType::I32, &[]);
    let one = code.constant(1.0, DType::I32);
    let next = code.op(ScalarOp::Add, DType::I32, &[step, one]);
    let next = code.op(ScalarOp::Select, DType::I32, &[taken, next, step]);
    code.op(ScalarOp::Store(1), DType::I32, &[next]);
    map(vec![1], vec![view(0, DType::F32, &[0]), view(1, DType::I32, &[0]), view(2, DType::I32, &[0])], code)
}

/// `halted = 1`, if the loss is not finite; operands loss, halted.
fn halt() -> Kernel {
    let mut code = Writer::default();
    let loss = code.f(ScalarOp::Load(0), &[]);
    let finite = code.finite(loss);
    let halted = code.op(ScalarOp::Load(1), DType::I32, &[]);
    let one = code.constant(1.0, DType::I32);
    let next = code.op(ScalarOp::Select, DType::I32, &[finite, halted, one]);
    code.op(ScalarOp::Store(1), DType::I32, &[next]);
    map(vec![1], vec![view(0, DType::F32, &[0]), view(1, DType::I32, &[0])], code)
}

/// `scale = SCALE`; operand scale.
fn first_scale() -> Kernel {
    let mut code = Writer::default();
    let scale = code.constant(SCALE.into(), DType::F32);
    code.f(ScalarOp::Store(0), &[scale]);
    map(vec![1], vec![view(0, DType::F32, &[0])], code)
}

/// `scaled = loss * scale, logarithm = ln(loss)`; operands loss, scale, scaled, logarithm.
fn scaled_loss() -> Kernel {
    let mut code = Writer::default();
    let (loss, scale) = (code.f(ScalarOp::Load(0), &[]), code.f(ScalarOp::Load(1), &[]));
    let scaled = code.f(ScalarOp::Mul, &[loss, scale]);
    code.f(ScalarOp::Store(2), &[scaled]);
    let logarithm = code.f(ScalarOp::Ln, &[loss]);
    code.f(ScalarOp::Store(3), &[logarithm]);
    map(vec![1], (0..4).map(|operand| view(operand, DType::F32, &[0])).collect(), code)
}

/// `scale /= 2`, if the scaled loss is not finite and the training not halted; operands scaled, halted, scale.
fn next_scale() -> Kernel {
    let mut code = Writer::default();
    let scaled = code.f(ScalarOp::Load(0), &[]);
    let finite = code.finite(scaled);
    let old = code.f(ScalarOp::Load(2), &[]);
    let half = code.constant(0.5, DType::F32);
    let half = code.f(ScalarOp::Mul, &[old, half]);
    let next = code.f(ScalarOp::Select, &[finite, old, half]);
    let halted = code.op(ScalarOp::Load(1), DType::I32, &[]);
    let zero = code.constant(0.0, DType::I32);
    let running = code.op(ScalarOp::Eq, DType::I32, &[halted, zero]);
    let next = code.f(ScalarOp::Select, &[running, next, old]);
    code.f(ScalarOp::Store(2), &[next]);
    map(vec![1], vec![view(0, DType::F32, &[0]), view(1, DType::I32, &[0]), view(2, DType::F32, &[0])], code)
}

fn map(domain: Vec<u64>, views: Vec<View>, code: Writer) -> Kernel {
    Kernel::as_described(Loop::Map(Map { domain, views, code: code.0 }))
}

fn reduction(
    (kept, reduced): (Vec<u64>, Vec<u64>),
    views: Vec<View>,
    (points, value): (Writer, u16),
    row: Writer,
) -> Kernel {
    let reduce = vec![Reduce { kind: ReduceKind::Sum, value, slot: 0 }];
    let stages = vec![Stage::Points { code: points.0, reduce }, Stage::Row { code: row.0, slots: vec![] }];
    Kernel::as_described(Loop::Reduction(Reduction { kept, reduced, views, stages, slots: 1, lanes: Lanes::Reduced }))
}

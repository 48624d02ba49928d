//! Random loops on the cpu and wgpu devices against the reference device.
//!
//! Tensors hold small integers and code keeps to operations that are exact on them, so all devices must agree bit for
//! bit: what is tested is where values come from, in which order stages run, and where results go. How far rounded
//! operations may be off is tested beside them (`device/cpu/math.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_compiler::codegen::emit::{cuda, wgsl};
use alip_plan::kernel::*;
use alip_plan::philox;
use alip_plan::*;
use alip_runtime::device::{self, Device, DeviceOptions};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::{Data, HostTensor, f32_to_bf16, f32_to_f16};
use alip_tests::skip;

/// One case in so many runs on the wgpu device too: an adapter takes long to compile a shader that runs once.
const WGPU_EVERY: u64 = 4;
/// And one in so many as emulated CUDA, where a kernel takes a C++ compiler a tenth of a second.
const CUDA_EVERY: u64 = 8;

/// A random number generator for test cases.
struct Random {
    key: [u32; 2],
    drawn: u64,
}

impl Random {
    fn new(case: u64) -> Random {
        Random { key: philox::stream_key(case, 0, 7), drawn: 0 }
    }
    fn below(&mut self, limit: usize) -> usize {
        self.drawn += 1;
        philox::philox4x32(philox::counter(self.drawn, 0), self.key)[0] as usize % limit.max(1)
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Builds a plan of one step; every operand is an input, the written ones are outputs as well.
#[derive(Clone, Default)]
struct Case {
    operands: Vec<(DType, u64)>,
    outputs: Vec<usize>,
    views: Vec<View>,
    instrs: Vec<Instr>,
}

impl Case {
    fn operand(&mut self, dtype: DType, elements: u64) -> u16 {
        self.operands.push((dtype, elements));
        self.operands.len() as u16 - 1
    }

    /// A dense view of an operand of its own, sometimes from a later element on.
    fn whole(&mut self, dtype: DType, sizes: &[u64], random: &mut Random) -> View {
        let offset = if random.chance(30) { random.below(5) as u64 } else { 0 };
        let operand = self.operand(dtype, sizes.iter().product::<u64>() + offset);
        View { offset: offset as i64, ..View::dense(operand, dtype, sizes) }
    }

    fn view(&mut self, view: View) -> u16 {
        self.views.push(view);
        self.views.len() as u16 - 1
    }

    fn op(&mut self, op: ScalarOp, dtype: DType, args: &[u16]) -> u16 {
        let mut all = [0; 3];
        all[..args.len()].copy_from_slice(args);
        self.instrs.push(Instr { op, dtype, args: all });
        self.instrs.len() as u16 - 1
    }

    fn constant(&mut self, value: f64) -> u16 {
        self.op(ScalarOp::Const(Real(value)), DType::F32, &[])
    }

    fn code(&mut self) -> Code {
        Code { instrs: std::mem::take(&mut self.instrs) }
    }

    /// A new operand that is dense over some dimensions in some order, perhaps with room around.
    fn dense(&mut self, random: &mut Random, dtype: DType, domain: &[u64], dims: &[usize]) -> View {
        let mut strides = vec![0; domain.len()];
        let mut size = 1;
        for &dim in dims.iter().rev() {
            strides[dim] = size as i64;
            size *= domain[dim];
            if random.chance(10) {
                size += 3;
            }
        }
        let offset = if random.chance(20) { 5 } else { 0 };
        let operand = self.operand(dtype, size + offset);
        View { operand, dtype, offset: offset as i64, strides, gather: None }
    }

    fn plan(&self, kernel: Kernel, target: Target) -> Plan {
        let mut buffers = Vec::new();
        let mut end = 0u64;
        for &(dtype, elements) in &self.operands {
            buffers.push(Buffer { segment: 0, offset: end, dtype, shape: vec![elements] });
            end = (end + elements * dtype.bytes()).next_multiple_of(target.alignment);
        }
        let port = |index: usize| Port::new(format!("t{index}"), index as u32);
        let step = Step {
            kernel: 0,
            operands: (0..buffers.len() as u32).collect(),
            origin: "case".into(),
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
        };
        let program = Program {
            inputs: (0..buffers.len()).map(port).collect(),
            outputs: self.outputs.iter().map(|&index| port(index)).collect(),
            buffers,
            steps: vec![step],
        };
        Plan {
            name: "case".into(),
            compiler: "test".into(),
            target,
            segments: vec![Segment { kind: SegmentKind::Arena, bytes: end.max(64) }],
            state: Vec::new(),
            kernels: vec![kernel],
            programs: BTreeMap::from([("p".to_string(), program)]),
            packed: BTreeMap::new(),
            train: None,
            report: Report::default(),
        }
    }

    /// Runs a kernel on a device with small integers in every operand.
    fn run(&self, plan: Plan, device: Box<dyn Device>, seed: u64) -> Result<Tensors, String> {
        let mut session = Session::new(Arc::new(plan), device).map_err(|error| error.to_string())?;
        let mut random = Random::new(seed ^ 0x5EED);
        let mut inputs = Tensors::new();
        for (index, &(dtype, elements)) in self.operands.iter().enumerate() {
            let tensor = match dtype {
                DType::I32 => {
                    HostTensor::i32(&[elements], (0..elements).map(|_| random.below(14) as i32 - 2).collect())
                }
                DType::U8 => {
                    let levels = (0..elements).map(|_| random.below(19) as u8 * 13);
                    HostTensor::new(&[elements], Data::U8(levels.collect()))
                }
                DType::F32 => {
                    HostTensor::f32(&[elements], (0..elements).map(|_| random.below(17) as f32 - 8.0).collect())
                }
                narrow => {
                    let round = if narrow == DType::F16 { f32_to_f16 } else { f32_to_bf16 };
                    let word = |_| round(random.below(17) as f32 - 8.0).to_le_bytes();
                    HostTensor::from_bytes(narrow, &[elements], &(0..elements).flat_map(word).collect::<Vec<u8>>())
                }
            };
            inputs.insert(format!("t{index}"), tensor.map_err(|error| error.to_string())?);
        }
        session.run("p", &inputs).map_err(|error| error.to_string())
    }

    /// Checks that the cpu device, with one thread and with three, and the wgpu device do what the reference does.
    fn check(&self, kernel: Loop, seed: u64) {
        let on_host = |device: &str, threads| {
            let device = device::choose(device, &DeviceOptions { threads: Some(threads), ..DeviceOptions::default() })
                .expect("always there")
                .device;
            self.run(self.plan(Kernel::as_described(kernel.clone()), Target::cpu()), device, seed)
                .unwrap_or_else(|why| panic!("case {seed}: {why}\n{kernel:#?}"))
        };
        let expected = on_host("reference", 1);
        let compare =
            |device: &str, found: Tensors| compare(&format!("case {seed}, {device}"), &kernel, &expected, &found);
        for threads in [1, 3] {
            compare(&format!("cpu with {threads} threads"), on_host("cpu", threads));
        }
        if seed.is_multiple_of(WGPU_EVERY)
            && let Some(found) = self.run_on_wgpu(&kernel, seed)
        {
            compare("wgpu", found);
        }
    }

    /// What the reference makes of it.
    fn expected(&self, kernel: &Loop, seed: u64) -> Tensors {
        let device = device::choose("reference", &DeviceOptions::default()).expect("always there").device;
        self.run(self.plan(Kernel::as_described(kernel.clone()), Target::cpu()), device, seed)
            .unwrap_or_else(|why| panic!("case {seed}: {why}\n{kernel:#?}"))
    }

    /// None without an adapter, and for more operands than a shader has.
    fn run_on_wgpu(&self, kernel: &Loop, seed: u64) -> Option<Tensors> {
        // So few workgroups per dimension that long dispatches are folded.
        let target = Target { max_workgroups: 64, ..Target::wgpu() };
        if self.operands.len() > target.max_operands as usize {
            return None;
        }
        let device = match device::choose("wgpu", &DeviceOptions::default()) {
            Ok(choice) => choice.device,
            Err(why) => {
                if seed == 0 {
                    skip::skipped_outside_ci(&why.to_string());
                }
                return None;
            }
        };
        let implementation = wgsl::emit(kernel, &target);
        let implementation = implementation.unwrap_or_else(|why| panic!("case {seed}: {why}\n{kernel:#?}"));
        let shader = Kernel { description: kernel.clone(), implementation };
        let found = self.run(self.plan(shader, target), device, seed);
        Some(found.unwrap_or_else(|why| panic!("case {seed}: {why}\n{kernel:#?}")))
    }
}

fn compare(what: &str, kernel: &Loop, expected: &Tensors, found: &Tensors) {
    for (name, expected) in expected {
        let (found, expected) = (found[name].to_f32(), expected.to_f32());
        if let Some(at) = found.iter().zip(expected.iter()).position(|(a, b)| a != b) {
            panic!("{what}: {name}[{at}] is {:?}\n{kernel:#?}", (found[at], expected[at]));
        }
    }
}

/// Cases that run as emulated CUDA, all of them compiled together.
#[derive(Default)]
struct Cards(Vec<(Case, Loop, u64)>);

impl Cards {
    fn add(&mut self, case: Case, kernel: Loop, seed: u64) {
        if seed.is_multiple_of(CUDA_EVERY) {
            self.0.push((case, kernel, seed));
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn check(self) {}

    /// Checks that they do what the reference does, by generated kernels and, where there are, by calls of the library.
    #[cfg(target_os = "linux")]
    fn check(self) {
        let plan = |(case, kernel, seed): &(Case, Loop, u64), target: Target| {
            let implementation =
                cuda::emit(kernel, &target).unwrap_or_else(|why| panic!("case {seed}: {why}\n{kernel:#?}"));
            case.plan(Kernel { description: kernel.clone(), implementation }, target)
        };
        let generated = self.0.iter().map(|of| (of, plan(of, Target { library: None, ..Target::sm_80() })));
        let calls = self.0.iter().map(|of| (of, plan(of, Target::sm_80())));
        let calls = calls.filter(|(_, plan)| plan.kernels[0].implementation == Implementation::CublasLt);
        let all: Vec<(&(Case, Loop, u64), Plan)> = generated.chain(calls).collect();
        let Some(device) = alip_tests::cuda::device_for(all.iter().map(|(_, plan)| plan)) else { return };
        for ((case, kernel, seed), plan) in all {
            let what = match &plan.kernels[0].implementation {
                Implementation::CublasLt => format!("case {seed}, emulated cuBLASLt"),
                _ => format!("case {seed}, emulated cuda"),
            };
            let found = case.run(plan, device(), *seed);
            let found = found.unwrap_or_else(|why| panic!("{what}: {why}\n{kernel:#?}"));
            compare(&what, kernel, &case.expected(kernel, *seed), &found);
        }
    }
}

/// A random domain of up to four dimensions and 6,000 points.
fn domain(random: &mut Random, dims: usize) -> Vec<u64> {
    let mut sizes: Vec<u64> = Vec::new();
    for _ in 0..dims {
        let room = 6000 / sizes.iter().product::<u64>();
        let fitting: Vec<u64> = [1, 2, 3, 5, 7, 12, 16, 31, 64, 77, 300, 1100, 2500]
            .into_iter()
            .filter(|&size| size <= room.max(1))
            .collect();
        sizes.push(random.pick(&fitting));
    }
    for i in (1..sizes.len()).rev() {
        sizes.swap(i, random.below(i + 1));
    }
    sizes
}

fn shuffled(random: &mut Random, dims: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..dims).collect();
    if random.chance(50) {
        for i in (1..dims).rev() {
            order.swap(i, random.below(i + 1));
        }
    }
    order
}

/// A view to load from: dense, permuted, broadcast, or gathered.
fn load_view(case: &mut Case, random: &mut Random, domain: &[u64]) -> u16 {
    let mut dims = shuffled(random, domain.len());
    if random.chance(40) {
        dims.retain(|_| random.below(2) == 0);
    }
    let mut view = case.dense(random, DType::F32, domain, &dims);
    if random.chance(20) {
        let mut over: Vec<usize> = (0..domain.len()).collect();
        over.retain(|_| random.below(2) == 0);
        let index = case.dense(random, DType::I32, domain, &over);
        let limit = 9;
        let row = case.operands[view.operand as usize].1;
        case.operands[view.operand as usize].1 = row * limit;
        view.gather = Some(Gather {
            operand: index.operand,
            offset: index.offset,
            strides: index.strides,
            stride: row as i64,
            limit: limit as i64,
        });
    }
    case.view(view)
}

/// Random exact operations on the values so far.
fn operations(case: &mut Case, random: &mut Random, values: &mut Vec<u16>, count: usize) {
    use ScalarOp::*;
    for _ in 0..count {
        let (a, b) = (random.pick(values), random.pick(values));
        let value = match random.below(9) {
            0 => case.op(Sub, DType::F32, &[a, b]),
            1 => case.op(Min, DType::F32, &[a, b]),
            2 => case.op(Max, DType::F32, &[a, b]),
            3 => case.op(Neg, DType::F32, &[a]),
            4 => {
                let two = case.constant(-2.0);
                case.op(Mul, DType::F32, &[a, two])
            }
            5 => {
                let less = case.op(Lt, DType::F32, &[a, b]);
                let other = random.pick(values);
                case.op(Select, DType::F32, &[less, a, other])
            }
            6 => {
                let whole = case.op(Cast(DType::I32), DType::F32, &[a]);
                let abs = case.op(Abs, DType::I32, &[whole]);
                case.op(Cast(DType::F32), DType::I32, &[abs])
            }
            _ => case.op(Add, DType::F32, &[a, b]),
        };
        values.push(value);
    }
}

#[test]
fn maps() {
    let mut cards = Cards::default();
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let dims = 1 + random.below(4);
        let domain = domain(&mut random, dims);
        let mut case = Case::default();
        let mut values = Vec::new();
        for _ in 0..1 + random.below(4) {
            let view = load_view(&mut case, &mut random, &domain);
            values.push(case.op(ScalarOp::Load(view), DType::F32, &[]));
        }
        if random.chance(30) {
            let dim = random.below(dims) as u8;
            let index = case.op(ScalarOp::Index(dim), DType::I32, &[]);
            values.push(case.op(ScalarOp::Cast(DType::F32), DType::I32, &[index]));
        }
        values.push(case.constant(3.0));
        for _ in 0..1 + random.below(3) {
            let count = 1 + random.below(4);
            operations(&mut case, &mut random, &mut values, count);
            // Store to a new buffer, or in place through a view that was loaded.
            let order = shuffled(&mut random, dims);
            let mut view = case.dense(&mut random, DType::F32, &domain, &order);
            if random.chance(40) {
                let old = case.view(view.clone());
                values.push(case.op(ScalarOp::Load(old), DType::F32, &[]));
                operations(&mut case, &mut random, &mut values, 1);
                view = case.views[old as usize].clone();
            }
            case.outputs.push(view.operand as usize);
            let view = case.view(view);
            let value = random.pick(&values);
            values.push(case.op(ScalarOp::Store(view), DType::F32, &[value]));
        }
        let code = case.code();
        let kernel = Loop::Map(Map { domain, views: case.views.clone(), code });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

#[test]
fn reductions() {
    let mut cards = Cards::default();
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let dims = 1 + random.below(4);
        let domain = match random.below(20) {
            0 => vec![2, 70_000], // cut into parts
            1 => vec![300, 1000],
            _ => domain(&mut random, dims),
        };
        let kept = random.below(domain.len() + 1);
        let kind = random.pick(&[ReduceKind::Sum, ReduceKind::Max, ReduceKind::Min, ReduceKind::ArgMax]);
        let mut case = Case::default();
        let x = load_view(&mut case, &mut random, &domain);
        let mut values = vec![case.op(ScalarOp::Load(x), DType::F32, &[])];
        operations(&mut case, &mut random, &mut values, 2);
        let last = values[values.len() - 1];
        let reduce =
            vec![Reduce { kind: ReduceKind::Sum, value: values[0], slot: 0 }, Reduce { kind, value: last, slot: 1 }];
        let mut stages = vec![Stage::Points { code: case.code(), reduce }];
        // Once per row: combine the slots, store one value per row.
        let row_dims: Vec<usize> = (0..kept).collect();
        let row_view = case.dense(&mut random, DType::F32, &domain, &row_dims);
        case.outputs.push(row_view.operand as usize);
        let row_view = case.view(row_view);
        let a = case.op(ScalarOp::Slot(0), DType::F32, &[]);
        let mut b = case.op(ScalarOp::Slot(1), if kind == ReduceKind::ArgMax { DType::I32 } else { DType::F32 }, &[]);
        if kind == ReduceKind::ArgMax {
            b = case.op(ScalarOp::Cast(DType::F32), DType::I32, &[b]);
        }
        let sum = case.op(ScalarOp::Sub, DType::F32, &[a, b]);
        case.op(ScalarOp::Store(row_view), DType::F32, &[sum]);
        stages.push(Stage::Row { code: case.code(), slots: vec![(sum, 2), (a, 0)] });
        if random.chance(60) {
            let order = shuffled(&mut random, domain.len());
            let out = case.dense(&mut random, DType::F32, &domain, &order);
            case.outputs.push(out.operand as usize);
            let out = case.view(out);
            let x = case.op(ScalarOp::Load(x), DType::F32, &[]);
            let slot = case.op(ScalarOp::Slot(2), DType::F32, &[]);
            let value = case.op(ScalarOp::Add, DType::F32, &[x, slot]);
            case.op(ScalarOp::Store(out), DType::F32, &[value]);
            stages.push(Stage::Points { code: case.code(), reduce: Vec::new() });
        }
        let kernel = Loop::Reduction(Reduction {
            kept: domain[..kept].to_vec(),
            reduced: domain[kept..].to_vec(),
            views: case.views.clone(),
            stages,
            slots: 3,
            lanes: random.pick(&[Lanes::Reduced, Lanes::Kept]),
        });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

#[test]
fn products() {
    let mut cards = Cards::default();
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let batches = random.below(3);
        let batch: Vec<u64> = (0..batches).map(|_| 1 + random.below(4) as u64).collect();
        let sizes = [1, 2, 5, 16, 33, 77];
        let (m, mut n, k) = (random.pick(&sizes), random.pick(&sizes), random.pick(&[1, 3, 16, 64]));
        if random.chance(5) {
            n = 1300; // several blocks
        }
        let over = |tail: [u64; 2]| [batch.as_slice(), &tail].concat();
        let dims = batch.len() + 2;
        let mut case = Case::default();
        let operand = |case: &mut Case, random: &mut Random, tail| {
            let mut order = shuffled(random, dims);
            order.retain(|&dim| dim >= batches || random.chance(80));
            case.dense(random, DType::F32, &over(tail), &order)
        };
        let a = operand(&mut case, &mut random, [m, k]);
        let b = operand(&mut case, &mut random, [k, n]);
        let domain = over([m, n]);
        let order = shuffled(&mut random, dims);
        let out = case.dense(&mut random, DType::F32, &domain, &order);
        case.outputs.push(out.operand as usize);
        let out = case.view(out);
        let mut value = case.op(ScalarOp::Product, DType::F32, &[]);
        match random.below(4) {
            0 => {}
            1 => {
                let two = case.constant(2.0);
                value = case.op(ScalarOp::Mul, DType::F32, &[value, two]);
            }
            _ => {
                // A bias, and what the result held before.
                let bias = load_view(&mut case, &mut random, &domain);
                let bias = case.op(ScalarOp::Load(bias), DType::F32, &[]);
                value = case.op(ScalarOp::Add, DType::F32, &[value, bias]);
                if random.chance(50) {
                    let old = case.op(ScalarOp::Load(out), DType::F32, &[]);
                    value = case.op(ScalarOp::Sub, DType::F32, &[value, old]);
                }
            }
        }
        case.op(ScalarOp::Store(out), DType::F32, &[value]);
        let code = case.code();
        let kernel = Loop::Product(Product { batch, m, n, k, a, b, views: case.views.clone(), code });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

#[test]
fn convolutions() {
    let mut cards = Cards::default();
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut small = |limit: usize| 1 + random.below(limit) as u64;
        let (n, c, o, kh, kw, stride) = (small(3), small(4), small(5), small(3), small(3), small(3));
        let padding = small(3) - 1;
        let (h, w) = (kh + small(9) - 1, kw + small(9) - 1);
        let kind = match seed % 3 {
            0 => ConvKind::Forward,
            1 => ConvKind::ImageGrad,
            _ => ConvKind::WeightGrad,
        };
        let mut case = Case::default();
        let none = View::dense(0, DType::F32, &[]);
        let [a, b, out] = [none.clone(), none.clone(), none];
        let prologue = Code::default();
        let conv = Conv2d { kind, n, c, h, w, o, kh, kw, stride, padding, a, b, out, prologue };
        let [a, b, out] = conv.domains();
        let image = kind != ConvKind::ImageGrad && random.chance(50);
        let a = if image {
            // Pixels in some order of their dimensions, twice a level less thrice the channel.
            let order = random.pick(&[[0, 1, 2, 3], [0, 2, 3, 1], [3, 1, 0, 2]]);
            let dtype = random.pick(&[DType::U8, DType::U8, DType::F32]);
            let channel = case.op(ScalarOp::Index(1), DType::I32, &[]);
            let channel = case.op(ScalarOp::Cast(DType::F32), DType::I32, &[channel]);
            let (two, three) = (case.constant(2.0), case.constant(3.0));
            let less = case.op(ScalarOp::Mul, DType::F32, &[three, channel]);
            let level = case.op(ScalarOp::Load(0), DType::F32, &[]);
            let twice = case.op(ScalarOp::Mul, DType::F32, &[level, two]);
            case.op(ScalarOp::Sub, DType::F32, &[twice, less]);
            case.dense(&mut random, dtype, &a, &order)
        } else {
            case.whole(DType::F32, &a, &mut random)
        };
        // Two views of one operand where both factors are alike.
        let b = if !image && conv.domains()[0] == b && random.chance(50) {
            a.clone()
        } else {
            case.whole(DType::F32, &b, &mut random)
        };
        let out = case.whole(DType::F32, &out, &mut random);
        case.outputs.push(out.operand as usize);
        let prologue = case.code();
        let kernel = Loop::Conv2d(Conv2d { a, b, out, prologue, ..conv });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

/// Bytes are read one by one, wherever they lie in a word.
#[test]
fn bytes() {
    let mut cards = Cards::default();
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let domain = domain(&mut random, 2);
        let mut case = Case::default();
        let order = random.pick(&[[0, 1], [1, 0]]);
        let bytes = case.dense(&mut random, DType::U8, &domain, &order);
        let out = case.dense(&mut random, DType::F32, &domain, &[0, 1]);
        case.outputs.push(1);
        let (bytes, out) = (case.view(bytes), case.view(out));
        let level = case.op(ScalarOp::Load(bytes), DType::F32, &[]);
        case.op(ScalarOp::Store(out), DType::F32, &[level]);
        let code = case.code();
        let kernel = Loop::Map(Map { domain, views: case.views.clone(), code });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

#[test]
fn scatters() {
    let mut cards = Cards::default();
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut small = |limit: usize| 1 + random.below(limit) as u64;
        let (batch, count, rows, inner) = (small(3), small(40), small(12), small(300));
        let mut case = Case::default();
        let index = case.whole(DType::I32, &[batch, count], &mut random);
        let updates = case.whole(DType::F32, &[batch, count, inner], &mut random);
        let out = case.whole(DType::F32, &[batch, rows, inner], &mut random);
        case.outputs.push(2);
        let kernel = Loop::ScatterAdd(ScatterAdd { batch, count, rows, inner, index, updates, out });
        case.check(kernel.clone(), seed);
        cards.add(case, kernel, seed);
    }
    cards.check();
}

/// Tensor cores: tiles of 128 and their edges, factors along the sum and across it, chunks of 16 bytes and single elements.
#[test]
fn products_of_16_bits() {
    let mut cards = Cards::default();
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let dtype = random.pick(&[DType::Bf16, DType::Bf16, DType::F16]);
        let batch: Vec<u64> = (0..random.below(2)).map(|_| 1 + random.below(3) as u64).collect();
        let sizes = [1, 8, 24, 77, 130, 264];
        let (m, n, k) = (random.pick(&sizes), random.pick(&sizes), random.pick(&[3, 8, 40, 64, 77, 136]));
        let over = |tail: [u64; 2]| [batch.as_slice(), &tail].concat();
        let mut case = Case::default();
        let mut factor = |case: &mut Case, tail| {
            let mut order: Vec<usize> = (0..batch.len() + 2).collect();
            if random.chance(50) {
                order.swap(batch.len(), batch.len() + 1);
            }
            let operand = case.operand(dtype, over(tail).iter().product());
            let mut strides = vec![0; order.len()];
            let mut stride = 1;
            for dim in order.into_iter().rev() {
                strides[dim] = stride;
                stride *= over(tail)[dim] as i64;
            }
            View { operand, dtype, offset: 0, strides, gather: None }
        };
        let (a, b) = (factor(&mut case, [m, k]), factor(&mut case, [k, n]));
        let out = case.whole(DType::F32, &over([m, n]), &mut random);
        case.outputs.push(out.operand as usize);
        case.view(out);
        let value = case.op(ScalarOp::Product, DType::F32, &[]);
        case.op(ScalarOp::Store(0), DType::F32, &[value]);
        let code = case.code();
        let kernel = Loop::Product(Product { batch, m, n, k, a, b, views: case.views.clone(), code });
        cards.add(case, kernel, CUDA_EVERY * seed);
    }
    cards.check();
}

/// Convolutions on tensor cores, also of images in bytes whose prologue rounds.
#[test]
fn convolutions_of_16_bits() {
    let mut cards = Cards::default();
    for seed in 0..36 {
        let mut random = Random::new(seed);
        let dtype = random.pick(&[DType::Bf16, DType::F16]);
        let mut small = |limit: usize| 1 + random.below(limit) as u64;
        let (n, c, o, kh, kw, stride) = (small(3), small(8), small(40), small(3), small(3), small(3));
        let padding = small(3) - 1;
        let (h, w) = (kh + small(9) - 1, kw + small(9) - 1);
        let kind = [ConvKind::Forward, ConvKind::ImageGrad, ConvKind::WeightGrad][seed as usize % 3];
        let mut case = Case::default();
        let none = View::dense(0, dtype, &[]);
        let prologue = Code::default();
        let (a, b, out) = (none.clone(), none.clone(), none);
        let conv = Conv2d { kind, n, c, h, w, o, kh, kw, stride, padding, a, b, out, prologue };
        let [a, b, out] = conv.domains();
        let image = kind != ConvKind::ImageGrad && random.chance(50);
        let a = if image {
            let level = case.op(ScalarOp::Load(0), DType::F32, &[]);
            case.op(ScalarOp::Cast(dtype), DType::F32, &[level]);
            case.dense(&mut random, DType::U8, &a, &[0, 2, 3, 1])
        } else {
            case.whole(dtype, &a, &mut random)
        };
        let b = case.whole(dtype, &b, &mut random);
        let out = case.whole(DType::F32, &out, &mut random);
        case.outputs.push(out.operand as usize);
        let prologue = case.code();
        cards.add(case, Loop::Conv2d(Conv2d { a, b, out, prologue, ..conv }), CUDA_EVERY * seed);
    }
    cards.check();
}

//! Values of 16 bits are rounded where they are made, on every device, whatever is fused: by tables, around every archetype
//! of kernel, in parameters and moments.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, TensorType, Value, interpret};
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_compiler::ops::{Op, OpError, ReduceKind};
use alip_compiler::resolve::Options;
use alip_compiler::transform::narrow::unrounded;
use alip_compiler::trust::{in_f32, judged};
use alip_compiler::{CompileOptions, SpecOptions, transform};
use alip_plan::bounds::F32;
use alip_plan::philox::{philox4x32, uniform};
use alip_plan::{PROGRAM_TRAIN, Real, Target};
use alip_runtime::exec::Tensors;
use alip_runtime::tensor::HostTensor;
use alip_tests::compiled::{Values, begun, devices, model, plan, run};

const INF: f64 = f64::INFINITY;

/// A number and the nearest of a type: ties go to even, beyond the largest is infinity, below the smallest normal the steps
/// stay as large as there.
const BF16: [(f64, f64); 9] = [
    (1.0 + 1.0 / 256.0, 1.0),
    (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
    (1.003_906_369_209_289_6, 1.0 + 2.0 / 256.0),
    (-257.0, -256.0),
    (-259.0, -260.0),
    (3.389_531_389_251_535_5e38, 3.389_531_389_251_535_5e38),
    (3.395_e38, 3.389_531_389_251_535_5e38),
    (3.4e38, INF),
    (-3.4e38, -INF),
];
const F16: [(f64, f64); 12] = [
    (1.0 + 1.0 / 2048.0, 1.0),
    (1.0 + 3.0 / 2048.0, 1.0 + 4.0 / 2048.0),
    (-2049.0, -2048.0),
    (-2051.0, -2052.0),
    (65_519.0, 65_504.0),
    (65_520.0, INF),
    (-1e9, -INF),
    (6.103_515_625e-5, 6.103_515_625e-5),
    (1.5 * 5.960_464_477_539_063e-8, 2.0 * 5.960_464_477_539_063e-8),
    (2.5 * 5.960_464_477_539_063e-8, 2.0 * 5.960_464_477_539_063e-8),
    (2.980_232_238_769_531_3e-8, 0.0),
    (3.0e-8, 5.960_464_477_539_063e-8),
];

fn x_of(b: &mut Builder<'_>, name: &str, sizes: &[u64]) -> NodeId {
    b.input(name, TensorType::new(DType::F32, sizes.iter().copied().collect::<alip_compiler::ir::Shape>())).unwrap()
}

#[test]
fn casts_round_to_the_nearest_even() {
    for (dtype, table) in [(DType::Bf16, &BF16[..]), (DType::F16, &F16[..])] {
        let given: Vec<f64> = table.iter().map(|(x, _)| *x).chain([0.0, INF, -INF]).collect();
        let expected: Vec<f64> = table.iter().map(|(_, y)| *y).chain([0.0, INF, -INF]).collect();
        let mut graph = Graph::new("cast");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let x = x_of(&mut b, "x", &[given.len() as u64]);
        let narrow = b.cast(x, dtype).unwrap();
        let wide = b.cast(narrow, DType::F32).unwrap();
        let two = b.scalar(2.0).unwrap();
        let twice = b.mul(wide, two).unwrap();
        let half = b.scalar(0.5).unwrap();
        let back = b.mul(twice, half).unwrap();
        graph.outputs.extend([("narrow".into(), narrow), ("fused".into(), back)]);
        let inputs = Values::from([("x".into(), Value::new(graph.ty(x).clone(), given.clone()))]);
        let meant = interpret(&graph, &inputs, &Values::new()).unwrap().outputs;
        assert_eq!(meant["narrow"].data, expected, "{dtype}: interpreter");
        for ((device, target), fuse) in devices().into_iter().flat_map(|at| [(at.clone(), true), (at, false)]) {
            let plan = plan(&model("cast", &graph, &Values::new()), target, fuse);
            let (outputs, _) = run(device, plan, "cast", &inputs, &Values::new());
            assert_eq!(outputs["narrow"], expected, "{device}: {dtype}");
            // Twice the largest bf16 overflows.
            for (y, expected) in outputs["fused"].iter().zip(&expected).filter(|(_, y)| y.abs() < 1e38) {
                assert_eq!(y, expected, "{device}: {dtype}, fused");
            }
        }
    }
    for dtype in [DType::Bf16, DType::F16] {
        assert!(dtype.rounded(f64::NAN).is_nan());
    }
    // Subnormals of bf16 are subnormals of f32, which shaders may flush.
    assert_eq!(DType::Bf16.rounded(1.5 * 2f64.powi(-133)), 2.0 * 2f64.powi(-133));
    assert_eq!(DType::Bf16.rounded(2f64.powi(-134)), 0.0);
}

type Built = Result<NodeId, OpError>;

/// What there is to round: `x` `[6, 8]`, `w` `[8, 8]`, `i` four rows of `x`.
struct Given {
    x: NodeId,
    w: NodeId,
    i: NodeId,
    dtype: DType,
}

impl Given {
    /// To 16 bits and back.
    fn round(&self, b: &mut Builder<'_>, x: NodeId) -> Built {
        let narrow = b.cast(x, self.dtype)?;
        b.cast(narrow, DType::F32)
    }
}

type Archetype = (&'static str, fn(&mut Builder<'_>, &Given) -> Built);

/// A rounding before, within and behind every kind of kernel.
const ARCHETYPES: [Archetype; 13] = [
    ("pointwise", |b, of| {
        let y = b.sin(of.x)?;
        let y = of.round(b, y)?;
        b.mul(y, of.x)
    }),
    ("prologue of a reduction", |b, of| {
        let y = b.exp(of.x)?;
        let y = of.round(b, y)?;
        b.reduce(ReduceKind::Sum, y, &[1], false)
    }),
    ("between two reductions", |b, of| {
        let sum = b.reduce(ReduceKind::Sum, of.x, &[1], true)?;
        let sum = of.round(b, sum)?;
        let y = b.sub(of.x, sum)?;
        let y = b.exp(y)?;
        b.reduce(ReduceKind::Sum, y, &[1], false)
    }),
    ("operands of a product", |b, of| {
        let (x, w) = (b.cast(of.x, of.dtype)?, b.cast(of.w, of.dtype)?);
        b.matmul(x, w)
    }),
    ("widened operand of a product", |b, of| {
        let x = of.round(b, of.x)?;
        b.matmul(x, of.w)
    }),
    ("epilogue of a product", |b, of| {
        let y = b.matmul(of.x, of.w)?;
        let y = of.round(b, y)?;
        b.tanh(y)
    }),
    ("convolution", |b, of| {
        let (x, w) = (b.reshape(of.x, [1, 1, 6, 8].into())?, b.reshape(of.w, [4, 1, 4, 4].into())?);
        let (x, w) = (b.cast(x, of.dtype)?, b.cast(w, of.dtype)?);
        let y = b.conv2d(x, w, 1, 0)?;
        of.round(b, y)
    }),
    ("rows of a table", |b, of| {
        let table = b.cast(of.x, of.dtype)?;
        let rows = b.gather(table, of.i, 0)?;
        let rows = b.cast(rows, DType::F32)?;
        b.mul(rows, rows)
    }),
    ("attention", |b, of| {
        let x = b.reshape(of.x, [1, 6, 2, 4].into())?;
        let x = b.cast(x, of.dtype)?;
        let op = Attention { result: AttentionResult::Out, rows: Rows::Dense, causal: true, scale: Real(0.5) };
        let y = b.op(Op::Attention(op), &[x, x, x])?;
        b.cast(y, DType::F32)
    }),
    ("arithmetic of its own", |b, of| {
        let x = b.cast(of.x, of.dtype)?;
        let third = b.scalar(1.0 / 3.0)?;
        let y = b.mul(x, third)?;
        let y = b.add(y, x)?;
        b.cast(y, DType::F32)
    }),
    ("a sum of its own", |b, of| {
        let y = b.exp(of.x)?;
        let y = b.cast(y, of.dtype)?;
        let sum = b.reduce(ReduceKind::Sum, y, &[1], false)?;
        b.cast(sum, DType::F32)
    }),
    ("views", |b, of| {
        let y = b.transpose(of.x, &[1, 0])?;
        let y = b.exp(y)?;
        let y = b.cast(y, of.dtype)?;
        let y = b.slice_axis(y, 0, 1, 7)?;
        let y = b.cast(y, DType::F32)?;
        b.neg(y)
    }),
    ("read twice, once late", |b, of| {
        let y = b.exp(of.x)?;
        let y = of.round(b, y)?;
        let sum = b.reduce(ReduceKind::Sum, y, &[0, 1], false)?;
        b.mul(y, sum)
    }),
];

/// Each yields its result and the gradients of what is made of it.
fn archetype((name, make): &Archetype, dtype: DType) -> (Graph, Values) {
    let mut graph = Graph::new("main");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let (x, w) = (x_of(&mut b, "x", &[6, 8]), x_of(&mut b, "w", &[8, 8]));
    let i = b.input("i", TensorType::new(DType::I32, [4])).unwrap();
    let y = make(&mut b, &Given { x, w, i, dtype }).unwrap_or_else(|error| panic!("{name}: {error}"));
    let square = b.mul(y, y).unwrap();
    let axes: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
    let loss = b.mean(square, &axes, false).unwrap();
    let found = gradients(&mut graph, loss, &[x, w]).unwrap_or_else(|errors| panic!("{name}: {errors}"));
    graph.outputs.insert("y".into(), y);
    for (of, gradient) in ["dx", "dw"].into_iter().zip(found) {
        if let Some(gradient) = gradient {
            graph.outputs.insert(of.into(), gradient);
        }
    }
    let value = |(name, id): (&String, &NodeId)| {
        let ty = graph.ty(*id).clone();
        let draw = |i: u64| philox4x32([i as u32, name.len() as u32, 7, 0], [3, u32::from(name.as_bytes()[0])])[0];
        let data = match ty.dtype {
            DType::I32 => vec![5.0, 0.0, 5.0, 2.0],
            _ => (0..ty.shape.elements()).map(|i| f64::from(2.0 * uniform(draw(i)) - 1.0)).collect(),
        };
        (name.clone(), Value::new(ty, data))
    };
    let inputs = graph.inputs.iter().map(value).collect();
    (graph, inputs)
}

#[test]
fn no_kernel_skips_a_rounding() {
    let none = Values::new();
    for (of, dtype) in ARCHETYPES.iter().flat_map(|of| [(of, DType::Bf16), (of, DType::F16)]) {
        let (graph, inputs) = archetype(of, dtype);
        let name = of.0;
        let judged = judged(&graph, &inputs, &none, F32).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        // The bounds see it if nothing is rounded.
        let smooth = unrounded(&graph).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        let smooth = interpret(&smooth, &in_f32(&inputs), &none).unwrap().outputs;
        assert!(judged["y"].admits(&smooth["y"].data).is_err(), "{name}, {dtype}: a skipped rounding would pass");
        for ((device, target), fuse) in devices().into_iter().flat_map(|at| [(at.clone(), true), (at, false)]) {
            let plan = plan(&model("main", &graph, &none), target, fuse);
            let (outputs, _) = run(device, plan, "main", &inputs, &none);
            for (output, judged) in &judged {
                let right = judged.admits(&outputs[output]);
                right.unwrap_or_else(|why| panic!("{name}, {dtype}, {device}, fused {fuse}: `{output}` {why}"));
            }
        }
    }
}

/// A training step of a spec on a device: its outputs and all its state.
fn trained(
    files: &[(&str, &str)],
    device: &str,
    target: Target,
    lift: bool,
    batch: &Tensors,
) -> BTreeMap<String, HostTensor> {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let transform = transform::Options { lift, ..transform::Options::default() };
    let options = SpecOptions {
        spec: Options { files, ..Options::default() },
        compile: CompileOptions { target, transform, ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let mut session = begun("spec", &options, device, 0);
    let mut results = session.run(PROGRAM_TRAIN, batch).expect("a step runs");
    let paths: Vec<String> = session.plan().state.iter().map(|state| state.path.clone()).collect();
    for path in paths {
        results.insert(path.clone(), session.read_state(&path).expect("it is there"));
    }
    results
}

/// Lifting must not take away the rounding of scores.
#[test]
fn rounded_scores_stay_rounded() {
    let spec = r#"Graph(name: "t", use: ["optim/sgd", "schedule/constant"], dims: { "B": Batch(4) },
        inputs: { "x": (dtype: F32, shape: "[B, 5, 8]") }, params: { "w": (shape: "[8, 8]", init: "0.1") },
        body: ["q = x @ w", "s = cast(cast(einsum('b i d, b j d -> b i j', q, x), 'bf16'), 'f32')",
            "e = exp(s - stop_gradient(reduce_max(s, axis: -1, keep: true)))", "p = e / sum(e, axis: -1, keep: true)",
            "o = einsum('b i j, b j d -> b i d', p, x)", "loss = mean(o * o)"],
        metrics: { "loss": "loss" },
        train: (loss: "loss", optimizer: "sgd(momentum: 0.0)", schedule: "constant(max_lr: 1.0)"))"#;
    let x: Vec<f32> = (0..160).map(|i| 4.0 * uniform(philox4x32([i, 0, 0, 0], [5, 6])[0]) - 2.0).collect();
    let batch = Tensors::from([("x".into(), HostTensor::f32(&[4, 5, 8], x).expect("160"))]);
    let rounded = |spec: &str, lift: bool, device: &str, target| {
        trained(&[("spec.ron", spec)], device, target, lift, &batch)["loss"].first().expect("a loss")
    };
    let plain =
        rounded(&spec.replace("cast(cast(", "((").replace(", 'bf16'), 'f32')", "))"), true, "cpu", Target::cpu());
    let meant = rounded(spec, false, "reference", Target::cpu());
    assert!((plain / meant - 1.0).abs() > 1e-5, "{plain} and {meant}: rounding shows");
    for ((device, target), lift) in devices().into_iter().flat_map(|at| [(at.clone(), true), (at, false)]) {
        let loss = rounded(spec, lift, device, target);
        assert!((loss / meant - 1.0).abs() < 2e-6, "{device}, lift {lift}: {loss}, but {meant} is meant");
    }
}

/// A parameter of 16 bits: gradients are f32, its update is rounded once; a moment of 16 bits by an optimiser's own word.
#[test]
fn parameters_and_moments_of_sixteen_bits_are_trained() {
    let low = r#"Module(name: "low", doc: "d", inputs: { "w": "[..S]", "g": "[..S]", "lr": "[]" },
        state: { "m": (shape: "[..S]", init: "0", dtype: Bf16) },
        body: ["m' = cast(0.9 * cast(m, 'f32') + g, 'bf16')", "y = w - lr * cast(m', 'f32')"], outputs: ["y"])"#;
    let spec = r#"Graph(name: "t", use: ["low", "schedule/constant"], dims: { "B": Batch(3) },
        inputs: { "x": (dtype: F32, shape: "[B]") },
        params: { "w": (shape: "[3]", init: "1.00390625", dtype: Bf16), "v": (shape: "[3]", init: "0.1", dtype: F16),
            "n": (shape: "[2]", init: "7", dtype: I32) },
        body: ["loss = sum(x * cast(w, 'f32') * cast(v, 'f32')) + 0.0 * sum(cast(n, 'f32'))"],
        metrics: { "loss": "loss" },
        train: (loss: "loss", optimizer: "low()", schedule: "constant(max_lr: 1)", ema: (decay: 0.5)))"#;
    let x = [1.0_f64, 0.1, 3.0];
    let batch = Tensors::from([("x".into(), HostTensor::f32(&[3], x.map(|x| x as f32).to_vec()).expect("three"))]);
    let (bf16, f16) = (|x| DType::Bf16.rounded(x), |x| DType::F16.rounded(x));
    for (device, target) in devices() {
        let found = trained(&[("spec.ron", spec), ("low.ron", low)], device, target, true, &batch);
        let numbers = |path: &str| found[path].to_f32().iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (w, v) = (1.0, f16(0.1)); // the first is half way between 1 and the next number
        let x = x.map(|x| f64::from(x as f32));
        let gradients = |other: f64| x.map(|x| bf16(f64::from((x * other) as f32)));
        let (mw, mv) = (gradients(v), gradients(w));
        assert_eq!(numbers("optimizer.m.w"), mw, "{device}");
        assert_eq!(numbers("optimizer.m.v"), mv, "{device}");
        assert_eq!(numbers("w"), mw.map(|m| bf16(f64::from((w - m) as f32))), "{device}");
        assert_eq!(numbers("v"), mv.map(|m| f16(f64::from((v - m) as f32))), "{device}");
        assert_eq!(numbers("n"), [7.0, 7.0], "{device}");
        // An average is f32: half way between the old and the new.
        let average: Vec<f64> = numbers("w").iter().map(|new| f64::from((0.5 * (w + new)) as f32)).collect();
        assert_eq!(numbers("average.w"), average, "{device}");
    }
}

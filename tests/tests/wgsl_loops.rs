//! What emitted shaders compute: each archetype on an adapter against the f64 reference device, on the same loop.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_compiler::codegen::emit::wgsl;
use alip_plan::bounds::{F32, Roundings, assert_within, bound, largest};
use alip_plan::kernel::*;
use alip_plan::philox;
use alip_plan::{
    Buffer, DType, Plan, Port, Program, Real, Report, Segment, SegmentKind, Step, Target, TargetKind, Tiles,
};
use alip_runtime::device::{self, DeviceOptions};
use alip_runtime::exec::Session;
use alip_runtime::tensor::HostTensor;
use alip_tests::skip;

/// An operand: dtype and shape; the last one of a list is the output.
type Operand = (DType, Vec<u64>);

const NONE: [u16; 3] = [0; 3];

/// Units in the last place that our own functions stay within, with room for adapters that contract to fma.
const FUNCTION_ULPS: f64 = 4.0;

/// A plan of one shader.
fn plan(name: &str, description: &Loop, target: Target, operands: &[Operand]) -> Plan {
    let implementation = wgsl::emit(description, &target).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut offset = 0;
    let mut buffers = Vec::new();
    for (dtype, shape) in operands {
        let buffer = Buffer { segment: 0, offset, dtype: *dtype, shape: shape.clone() };
        offset += buffer.bytes().next_multiple_of(256);
        buffers.push(buffer);
    }
    let port = |index: usize| Port::new(format!("p{index}"), index as u32);
    let last = operands.len() - 1;
    let program = Program {
        inputs: (0..last).map(port).collect(),
        outputs: vec![port(last)],
        buffers,
        steps: vec![Step {
            kernel: 0,
            operands: (0..=last as u32).collect(),
            origin: "test".into(),
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
        }],
    };
    Plan {
        name: "loops".into(),
        compiler: "test".into(),
        target,
        segments: vec![Segment { kind: SegmentKind::Arena, bytes: offset }],
        state: vec![],
        kernels: vec![Kernel { description: description.clone(), implementation }],
        programs: BTreeMap::from([("main".to_string(), program)]),
        packed: BTreeMap::new(),
        train: None,
        report: Report::default(),
    }
}

/// Floats in [-range, range], integers in 0..range.
fn inputs(operands: &[Operand], range: f32) -> BTreeMap<String, HostTensor> {
    let named = operands[..operands.len() - 1].iter().enumerate().map(|(index, (dtype, shape))| {
        let count: u64 = shape.iter().product();
        let uniform =
            (0..count).map(|i| philox::uniform(philox::philox4x32([i as u32, index as u32, 0, 0], [7, 9])[0]));
        let tensor = match dtype {
            DType::I32 => HostTensor::i32(shape, uniform.map(|u| (u * range) as i32).collect()),
            _ => HostTensor::f32(shape, uniform.map(|u| (2.0 * u - 1.0) * range).collect()),
        };
        (format!("p{index}"), tensor.expect("as many elements as the shape says"))
    });
    named.collect()
}

fn run(device: &str, plan: Plan, inputs: &BTreeMap<String, HostTensor>) -> Option<Vec<f64>> {
    let choice = match device::choose(device, &DeviceOptions::default()) {
        Ok(choice) => choice,
        Err(error) => {
            skip::skipped_outside_ci(&error.to_string());
            return None;
        }
    };
    let output = plan.programs["main"].outputs[0].name.clone();
    let mut session = Session::new(Arc::new(plan), choice.device).expect("the plan loads");
    let outputs = session.run("main", inputs).expect("the program runs");
    Some(outputs[&output].to_f32().iter().map(|value| f64::from(*value)).collect())
}

/// What the adapter makes of a plan, and what the reference device makes of the same; none without an adapter.
fn run_both(
    name: &str,
    kernel: &Loop,
    target: Target,
    operands: &[Operand],
    inputs: &BTreeMap<String, HostTensor>,
) -> Option<(Vec<f64>, Vec<f64>)> {
    let plan = plan(name, kernel, target, operands);
    let actual = run("wgpu", plan.clone(), inputs)?;
    let expected = run("reference", plan, inputs).expect("always there");
    Some((actual, expected))
}

/// Runs `kernel` on the adapter and on the reference device on uniform inputs. Results agree within `roundings` of `magnitude`, or of the
/// largest result when `magnitude` is 0.
fn check(name: &str, kernel: Loop, operands: &[Operand], range: f32, roundings: Roundings, magnitude: f64) {
    let inputs = inputs(operands, range);
    let shipped = Target::all().into_iter().filter(|target| target.kind == TargetKind::Wgpu);
    for target in shipped.chain([with_small_tiles()]) {
        let tiles = target.tiles;
        let Some((actual, expected)) = run_both(name, &kernel, target, operands, &inputs) else { return };
        let magnitude = if magnitude == 0.0 { largest(&expected) } else { magnitude };
        if let Err(violation) = assert_within(&actual, &expected, bound(F32, roundings, magnitude)) {
            panic!("{name}: {violation:?} with {tiles:?}");
        }
    }
}

/// A description that shares out work otherwise than those that ship, in every way there is.
fn with_small_tiles() -> Target {
    let tiles = Tiles {
        product: 16,
        depth: 8,
        attention: 16,
        long_sum: 100,
        sum_threads: 16,
        scatter_chunk: 4,
        short_row: 4,
        kept_rows: 8,
        workgroup_bytes: 4096,
    };
    Target { tiles: Some(tiles), ..Target::wgpu() }
}

fn view(operand: u16, dtype: DType, strides: &[i64]) -> View {
    View { operand, dtype, offset: 0, strides: strides.to_vec(), gather: None }
}

fn code(instrs: &[(ScalarOp, DType, [u16; 3])]) -> Code {
    Code { instrs: instrs.iter().map(|(op, dtype, args)| Instr { op: *op, dtype: *dtype, args: *args }).collect() }
}

/// `out[i] = op(x[i])`, or `op(|x[i]|)`.
fn unary(op: ScalarOp, positive: bool) -> Loop {
    let argument = if positive { ScalarOp::Abs } else { ScalarOp::Cast(DType::F32) };
    Loop::Map(Map {
        domain: vec![10_000],
        views: vec![view(0, DType::F32, &[1]), view(1, DType::F32, &[1])],
        code: code(&[
            (ScalarOp::Load(0), DType::F32, NONE),
            (argument, DType::F32, NONE),
            (op, DType::F32, [1, 0, 0]),
            (ScalarOp::Store(1), DType::F32, [2, 0, 0]),
        ]),
    })
}

#[test]
fn scalar_functions() {
    use ScalarOp::*;
    let operands = [(DType::F32, vec![10_000]), (DType::F32, vec![10_000])];
    // Small ranges show that small arguments keep their relative precision.
    let cases: [(ScalarOp, &[f32]); 10] = [
        (Exp, &[1e-3, 1.0, 20.0]),
        (Ln, &[1e-3, 50.0]),
        (Erf, &[1e-3, 0.5, 4.5]),
        (Tanh, &[1e-3, 0.5, 6.0]),
        (Sin, &[1e-3, 30.0]),
        (Cos, &[1.0, 30.0]),
        (Sqrt, &[100.0]),
        (Floor, &[9.0]),
        (Abs, &[3.0]),
        (Neg, &[3.0]),
    ];
    for (op, ranges) in cases {
        for range in ranges {
            let kernel = unary(op, matches!(op, Ln | Sqrt));
            check(&format!("{op:?} to {range}"), kernel, &operands, *range, Roundings::pointwise(FUNCTION_ULPS), 0.0);
        }
    }
}

/// Numbers that shaders may get wrong: not finite, zeros, the ends of the range, and where exp leaves it.
const SPECIAL: [f32; 20] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.5,
    -2.5,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    1e-30,
    -1e-30,
    88.7,
    88.8,
    -87.0,
    -110.0,
    1e4,
];

/// `out[i, j] = op(x[i], x[j])`, where unary operations ignore j and bool results become 0 and 1.
fn check_special(op: ScalarOp, with: Option<f32>, bool_result: bool) {
    let count = SPECIAL.len() as u64;
    let second = with.map_or(ScalarOp::Load(1), |value| ScalarOp::Const(Real(f64::from(value))));
    let from = if bool_result { DType::Bool } else { DType::F32 };
    let map = Map {
        domain: vec![count, count],
        views: vec![
            view(0, DType::F32, &[1, 0]),
            view(0, DType::F32, &[0, 1]),
            view(1, DType::F32, &[count as i64, 1]),
        ],
        code: code(&[
            (ScalarOp::Load(0), DType::F32, NONE),
            (second, DType::F32, NONE),
            (op, DType::F32, [0, 1, 0]),
            (ScalarOp::Cast(DType::F32), from, [2, 0, 0]),
            (ScalarOp::Store(2), DType::F32, [3, 0, 0]),
        ]),
    };
    let name = format!("{op:?} with {with:?}");
    let operands = [(DType::F32, vec![count]), (DType::F32, vec![count, count])];
    let inputs = BTreeMap::from([("p0".into(), HostTensor::f32(&[count], SPECIAL.to_vec()).expect("as many"))]);
    let Some((actual, expected)) = run_both(&name, &Loop::Map(map), Target::wgpu(), &operands, &inputs) else { return };
    for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        let size = if expected.is_finite() { *expected } else { 0.0 };
        let bound = bound(F32, Roundings::pointwise(FUNCTION_ULPS), size);
        if let Err(wrong) = assert_within(&[*actual], &[*expected], bound) {
            panic!("{name} of {} and {}: {wrong}", SPECIAL[index / SPECIAL.len()], SPECIAL[index % SPECIAL.len()]);
        }
    }
}

#[test]
fn numbers_that_are_not_finite_stay_what_they_are() {
    use ScalarOp::*;
    for op in [Neg, Abs, Exp, Ln, Sqrt, Erf, Tanh, Floor, Add, Sub, Mul, Div, Min, Max] {
        check_special(op, None, false);
    }
    for op in [Lt, Le, Eq] {
        check_special(op, None, true);
    }
    // What `is_finite` compiles to.
    check_special(Le, Some(f32::MAX), true);
}

#[test]
fn random_numbers_are_the_same_everywhere() {
    let map = Map {
        domain: vec![5000],
        views: vec![view(0, DType::I32, &[0]), view(1, DType::F32, &[1])],
        code: code(&[
            (ScalarOp::Load(0), DType::I32, NONE),
            (ScalarOp::Index(0), DType::I32, NONE),
            (ScalarOp::Uniform { stream: 77 | 5 << 32, lane: 2 }, DType::F32, [0, 0, 1]),
            (ScalarOp::Store(1), DType::F32, [2, 0, 0]),
        ]),
    };
    check("uniform", Loop::Map(map), &[(DType::I32, vec![1]), (DType::F32, vec![5000])], 1e6, Roundings::NONE, 1.0);
}

#[test]
fn gathered_and_strided_views() {
    // out[i, j] = table[index[i], 3 j + 1] where i < j, else -1.
    let table = View {
        offset: 1,
        gather: Some(Gather { operand: 1, offset: 0, strides: vec![1, 0], stride: 12, limit: 20 }),
        ..view(0, DType::F32, &[0, 3])
    };
    let map = Map {
        domain: vec![9, 4],
        views: vec![table, view(2, DType::F32, &[4, 1])],
        code: code(&[
            (ScalarOp::Load(0), DType::F32, NONE),
            (ScalarOp::Index(0), DType::I32, NONE),
            (ScalarOp::Index(1), DType::I32, NONE),
            (ScalarOp::Lt, DType::I32, [1, 2, 0]),
            (ScalarOp::Const(Real(-1.0)), DType::F32, NONE),
            (ScalarOp::Select, DType::F32, [3, 0, 4]),
            (ScalarOp::Store(1), DType::F32, [5, 0, 0]),
        ]),
    };
    let operands = [(DType::F32, vec![20, 12]), (DType::I32, vec![9]), (DType::F32, vec![9, 4])];
    // Indices up to 29 leave the table: they are clamped.
    check("gather", Loop::Map(map), &operands, 30.0, Roundings::NONE, 1.0);
}

fn softmax(lanes: Lanes, rows: u64, length: u64) -> Loop {
    use ScalarOp::*;
    let load = (Load(0), DType::F32, NONE);
    let exp = [load, (Slot(0), DType::F32, NONE), (Sub, DType::F32, [0, 1, 0]), (Exp, DType::F32, [2, 0, 0])];
    let tail = [(Slot(1), DType::F32, NONE), (Div, DType::F32, [3, 4, 0]), (Store(1), DType::F32, [5, 0, 0])];
    let last: Vec<_> = exp.iter().chain(&tail).copied().collect();
    let stages = vec![
        Stage::Points { code: code(&[load]), reduce: vec![Reduce { kind: ReduceKind::Max, value: 0, slot: 0 }] },
        Stage::Points { code: code(&exp), reduce: vec![Reduce { kind: ReduceKind::Sum, value: 3, slot: 1 }] },
        Stage::Points { code: code(&last), reduce: vec![] },
    ];
    // Kept lanes read columns: the elements of a row are `rows` apart.
    let strides = if lanes == Lanes::Kept { [1, rows as i64] } else { [length as i64, 1] };
    let views = vec![view(0, DType::F32, &strides), view(1, DType::F32, &strides)];
    Loop::Reduction(Reduction { kept: vec![rows], reduced: vec![length], views, stages, slots: 2, lanes })
}

#[test]
fn softmax_rows_and_columns() {
    use Lanes::*;
    for (lanes, rows, length) in [(Reduced, 37, 77), (Reduced, 300, 7), (Reduced, 3, 3000), (Kept, 70, 129)] {
        let operands = [(DType::F32, vec![rows, length]), (DType::F32, vec![rows, length])];
        // exp doubles the rounding of its argument by the argument's size, at most 16 here.
        let exp = Roundings::pointwise(FUNCTION_ULPS) + Roundings::ONE * 16;
        let roundings = exp * 2 + Roundings::reduction(length as usize);
        check(
            &format!("softmax {lanes:?} {rows} x {length}"),
            softmax(lanes, rows, length),
            &operands,
            8.0,
            roundings,
            0.0,
        );
    }
}

#[test]
fn argmax_takes_the_first_largest() {
    let reduction = Reduction {
        kept: vec![50],
        reduced: vec![77],
        views: vec![view(0, DType::I32, &[77, 1]), view(1, DType::I32, &[1, 0])],
        stages: vec![
            Stage::Points {
                code: code(&[(ScalarOp::Load(0), DType::I32, NONE)]),
                reduce: vec![Reduce { kind: ReduceKind::ArgMax, value: 0, slot: 0 }],
            },
            Stage::Row {
                code: code(&[(ScalarOp::Slot(0), DType::I32, NONE), (ScalarOp::Store(1), DType::I32, NONE)]),
                slots: vec![],
            },
        ],
        slots: 1,
        lanes: Lanes::Reduced,
    };
    // Values below 9 in rows of 77: every row has several largest ones.
    let operands = [(DType::I32, vec![50, 77]), (DType::I32, vec![50])];
    check("argmax", Loop::Reduction(reduction), &operands, 9.0, Roundings::NONE, 1.0);
}

#[test]
fn a_row_without_a_largest_element_gives_its_first() {
    for length in [5, 70] {
        let reduction = Reduction {
            kept: vec![3],
            reduced: vec![length],
            views: vec![view(0, DType::F32, &[length as i64, 1]), view(1, DType::I32, &[1, 0])],
            stages: vec![
                Stage::Points {
                    code: code(&[
                        (ScalarOp::Load(0), DType::F32, NONE),
                        (ScalarOp::Const(Real(f64::NAN)), DType::F32, NONE),
                        (ScalarOp::Add, DType::F32, [0, 1, 0]),
                    ]),
                    reduce: vec![Reduce { kind: ReduceKind::ArgMax, value: 2, slot: 0 }],
                },
                Stage::Row {
                    code: code(&[(ScalarOp::Slot(0), DType::I32, NONE), (ScalarOp::Store(1), DType::I32, NONE)]),
                    slots: vec![],
                },
            ],
            slots: 1,
            lanes: Lanes::Reduced,
        };
        let operands = [(DType::F32, vec![3, length]), (DType::I32, vec![3])];
        check("argmax of NaN", Loop::Reduction(reduction), &operands, 1.0, Roundings::NONE, 1.0);
    }
}

/// A gate's moving mean: `mean += x's mean` in its own place, and every point of the row sees the new value.
#[test]
fn a_value_replaced_once_per_row_is_the_same_for_all_points() {
    use ScalarOp::*;
    let (rows, length) = (40, 3000);
    let load = (Load(0), DType::F32, NONE);
    let replace = [
        (Slot(0), DType::F32, NONE),
        (Load(1), DType::F32, NONE),
        (Add, DType::F32, [0, 1, 0]),
        (Store(1), DType::F32, [2, 0, 0]),
    ];
    let spread = [load, (Slot(1), DType::F32, NONE), (Add, DType::F32, [0, 1, 0]), (Store(2), DType::F32, [2, 0, 0])];
    let reduction = Reduction {
        kept: vec![rows],
        reduced: vec![length],
        views: vec![
            view(0, DType::F32, &[length as i64, 1]),
            view(1, DType::F32, &[1, 0]),
            view(2, DType::F32, &[length as i64, 1]),
        ],
        stages: vec![
            Stage::Points { code: code(&[load]), reduce: vec![Reduce { kind: ReduceKind::Sum, value: 0, slot: 0 }] },
            Stage::Row { code: code(&replace), slots: vec![(2, 1)] },
            Stage::Points { code: code(&spread), reduce: vec![] },
        ],
        slots: 2,
        lanes: Lanes::Reduced,
    };
    let operands = [vec![rows, length], vec![rows], vec![rows, length]].map(|shape| (DType::F32, shape));
    let roundings = Roundings::reduction(length as usize) + Roundings::ONE * 2;
    check("replaced", Loop::Reduction(reduction), &operands, 1.0, roundings, length as f64);
}

#[test]
fn products_with_epilogue() {
    for (batch, m, n, k, transposed) in [(1, 65, 100, 50, false), (6, 17, 5, 64, true), (2, 130, 64, 33, true)] {
        let (b, shape) = if transposed { ([n * k, 1, k], [batch, n, k]) } else { ([n * k, n, 1], [batch, k, n]) };
        let product = Product {
            batch: vec![batch],
            m,
            n,
            k,
            a: view(0, DType::F32, &[(m * k) as i64, k as i64, 1]),
            b: view(1, DType::F32, &b.map(|stride| stride as i64)),
            views: vec![view(2, DType::F32, &[0, 0, 1]), view(3, DType::F32, &[(m * n) as i64, n as i64, 1])],
            code: code(&[
                (ScalarOp::Product, DType::F32, NONE),
                (ScalarOp::Load(0), DType::F32, NONE),
                (ScalarOp::Add, DType::F32, [0, 1, 0]),
                (ScalarOp::Store(1), DType::F32, [2, 0, 0]),
            ]),
        };
        let shapes = [vec![batch, m, k], shape.to_vec(), vec![n], vec![batch, m, n]];
        let operands = shapes.map(|shape| (DType::F32, shape));
        let roundings = Roundings::reduction(k as usize) + Roundings::ONE;
        check(
            &format!("product {batch} x {m} x {n} x {k}"),
            Loop::Product(product),
            &operands,
            1.0,
            roundings,
            k as f64,
        );
    }
}

#[test]
fn convolutions() {
    let small = Conv2d {
        kind: ConvKind::Forward,
        n: 2,
        c: 3,
        h: 9,
        w: 8,
        o: 5,
        kh: 3,
        kw: 2,
        stride: 2,
        padding: 1,
        a: View::dense(0, DType::F32, &[]),
        b: View::dense(1, DType::F32, &[]),
        out: View::dense(2, DType::F32, &[]),
        prologue: Code::default(),
    };
    // Sums over images so large that a workgroup shares them.
    let large = Conv2d { n: 4, h: 71, w: 73, ..small.clone() };
    for base in [small, large] {
        let Conv2d { n, c, h, w, o, kh, kw, .. } = base;
        let (oh, ow) = base.extent();
        let cases =
            [(ConvKind::Forward, c * kh * kw), (ConvKind::ImageGrad, o * kh * kw), (ConvKind::WeightGrad, n * oh * ow)];
        for (kind, length) in cases {
            let conv = Conv2d { kind, ..base.clone() };
            let domains = conv.domains();
            let operands = domains.map(|shape| (DType::F32, shape.to_vec()));
            let roundings = Roundings::reduction(length as usize);
            let [a, b, out] = [0, 1, 2].map(|at: u16| View::dense(at, DType::F32, &domains[at as usize]));
            let kernel = Loop::Conv2d(Conv2d { a, b, out, ..conv });
            check(&format!("{kind:?} of {h} x {w}"), kernel, &operands, 1.0, roundings, length as f64);
        }
    }
}

#[test]
fn scatter_adds_rows() {
    let scatter = ScatterAdd {
        batch: 2,
        count: 60,
        rows: 20,
        inner: 70,
        index: View::dense(0, DType::I32, &[2, 60]),
        updates: View::dense(1, DType::F32, &[2, 60, 70]),
        out: View::dense(2, DType::F32, &[2, 20, 70]),
    };
    let operands = [(DType::I32, vec![2, 60]), (DType::F32, vec![2, 60, 70]), (DType::F32, vec![2, 20, 70])];
    check("scatter", Loop::ScatterAdd(scatter), &operands, 19.0, Roundings::reduction(60), 19.0 * 60.0);
}

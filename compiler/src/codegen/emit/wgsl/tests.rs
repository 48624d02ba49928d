//! Every archetype and every scalar operation becomes a shader that naga accepts. What shaders compute is tested where
//! there is an adapter, in the runtime.

use alip_plan::kernel::*;
use alip_plan::{DType, Real, Target, Tiles};

use super::emit;

fn view(operand: u16, dtype: DType, strides: &[i64]) -> View {
    View { operand, dtype, offset: 0, strides: strides.to_vec(), gather: None }
}

fn instr(op: ScalarOp, dtype: DType, args: [u16; 3]) -> Instr {
    Instr { op, dtype, args }
}

fn code(instrs: &[(ScalarOp, DType, [u16; 3])]) -> Code {
    Code { instrs: instrs.iter().map(|(op, dtype, args)| instr(*op, *dtype, *args)).collect() }
}

/// Emits for the default wgpu target; the text holds each of `expected`.
fn check(kernel: Loop, workgroups: [u32; 3], expected: &[&str]) {
    check_for(&Target::wgpu(), kernel, workgroups, expected);
}

fn check_for(target: &Target, kernel: Loop, workgroups: [u32; 3], expected: &[&str]) {
    match emit(&kernel, target) {
        Ok(Implementation::Wgsl { source, workgroups: found, .. }) => {
            assert_eq!(found, workgroups, "workgroups of\n{source}");
            for part in expected {
                assert!(source.contains(part), "no `{part}` in\n{source}");
            }
        }
        Ok(other) => panic!("not a shader: {other:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_scalar_operation_is_valid() {
    use DType::*;
    use ScalarOp::*;
    let cases: &[(ScalarOp, DType, DType)] = &[
        (Neg, F32, F32),
        (Abs, F32, F32),
        (Exp, F32, F32),
        (Ln, F32, F32),
        (Sqrt, F32, F32),
        (Sin, F32, F32),
        (Cos, F32, F32),
        (Tanh, F32, F32),
        (Erf, F32, F32),
        (Floor, F32, F32),
        (Not, Bool, Bool),
        (Add, F32, F32),
        (Sub, F32, F32),
        (Mul, F32, F32),
        (Div, F32, F32),
        (Rem, F32, F32),
        (Rem, I32, I32),
        (Pow, F32, F32),
        (Min, F32, F32),
        (Max, F32, F32),
        (Lt, F32, Bool),
        (Le, F32, Bool),
        (Eq, F32, Bool),
        (And, Bool, Bool),
        (Or, Bool, Bool),
        (Neg, I32, I32),
        (Abs, I32, I32),
        (Add, I32, I32),
        (Sub, I32, I32),
        (Mul, I32, I32),
        (Div, I32, I32),
        (Min, I32, I32),
        (Max, I32, I32),
        (Lt, I32, Bool),
        (Le, I32, Bool),
        (Eq, I32, Bool),
        (Cast(F32), I32, F32),
        (Cast(I32), F32, I32),
        (Cast(Bool), F32, Bool),
        (Cast(Bool), I32, Bool),
        (Cast(F32), Bool, F32),
        (Cast(I32), Bool, I32),
        (Uniform { stream: 7, lane: 3 }, I32, F32),
    ];
    for (op, from, to) in cases {
        let map = Map {
            domain: vec![5, 7],
            views: vec![view(0, *from, &[7, 1]), view(1, *to, &[7, 1])],
            code: code(&[(Load(0), *from, [0; 3]), (*op, *from, [0; 3]), (Store(1), *to, [1, 0, 0])]),
        };
        check(Loop::Map(map), [1, 1, 1], &["p1["]);
    }
}

#[test]
fn constants_that_have_no_literal() {
    use ScalarOp::*;
    let consts = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-8, -0.0, f64::from(f32::MAX), 1e-44];
    for value in consts {
        let map = Map {
            domain: vec![3],
            views: vec![view(0, DType::F32, &[1])],
            code: code(&[(Const(Real(value)), DType::F32, [0; 3]), (Store(0), DType::F32, [0; 3])]),
        };
        check(Loop::Map(map), [1, 1, 1], &[]);
    }
}

#[test]
fn select_gather_and_index() {
    use ScalarOp::*;
    let gathered = View {
        gather: Some(Gather { operand: 1, offset: 0, strides: vec![1, 0], stride: 8, limit: 100 }),
        ..view(0, DType::F32, &[0, 1])
    };
    let map = Map {
        domain: vec![1 << 14, 1 << 14],
        views: vec![gathered, view(2, DType::F32, &[1 << 14, 1])],
        code: code(&[
            (Load(0), DType::F32, [0; 3]),
            (Index(0), DType::I32, [0; 3]),
            (Index(1), DType::I32, [0; 3]),
            (Lt, DType::I32, [1, 2, 0]),
            (Const(Real(f64::NEG_INFINITY)), DType::F32, [0; 3]),
            (Select, DType::F32, [3, 4, 0]),
            (Store(1), DType::F32, [5, 0, 0]),
        ]),
    };
    // 2^28 points in workgroups of 256 are 2^20 of them: folded over two dimensions of at most 65,535.
    check(Loop::Map(map), [65535, 17, 1], &["u32(clamp(p1[cr1], 0, 99)) * 8u", "-inf_f()"]);
}

fn softmax(lanes: Lanes, length: u64) -> Loop {
    use ScalarOp::*;
    let load = (Load(0), DType::F32, [0; 3]);
    let exp = [load, (Slot(0), DType::F32, [0; 3]), (Sub, DType::F32, [0, 1, 0]), (Exp, DType::F32, [2, 0, 0])];
    let stages = vec![
        Stage::Points { code: code(&[load]), reduce: vec![Reduce { kind: ReduceKind::Max, value: 0, slot: 0 }] },
        Stage::Points { code: code(&exp), reduce: vec![Reduce { kind: ReduceKind::Sum, value: 3, slot: 1 }] },
        Stage::Row {
            code: code(&[
                (Const(Real(1.0)), DType::F32, [0; 3]),
                (Slot(1), DType::F32, [0; 3]),
                (Div, DType::F32, [0, 1, 0]),
            ]),
            slots: vec![(2, 2)],
        },
        Stage::Points {
            code: code(&[
                exp[0],
                exp[1],
                exp[2],
                exp[3],
                (Slot(2), DType::F32, [0; 3]),
                (Mul, DType::F32, [3, 4, 0]),
                (Store(1), DType::F32, [5, 0, 0]),
            ]),
            reduce: vec![],
        },
    ];
    let strides = [length as i64, 1];
    let views = vec![view(0, DType::F32, &strides), view(1, DType::F32, &strides)];
    Loop::Reduction(Reduction { kept: vec![10], reduced: vec![length], views, stages, slots: 3, lanes })
}

#[test]
fn reductions() {
    check(softmax(Lanes::Reduced, 77), [10, 1, 1], &["workgroup_size(64)", "workgroupBarrier"]);
    check(softmax(Lanes::Reduced, 5), [1, 1, 1], &["workgroup_size(256)"]);
    check(softmax(Lanes::Kept, 300), [1, 1, 1], &["let part = lane / 16u;", "if (live) {"]);
    let argmax = Reduction {
        kept: vec![4],
        reduced: vec![100],
        views: vec![view(0, DType::I32, &[100, 1]), view(1, DType::I32, &[1, 0])],
        stages: vec![
            Stage::Points {
                code: code(&[(ScalarOp::Load(0), DType::I32, [0; 3])]),
                reduce: vec![Reduce { kind: ReduceKind::ArgMax, value: 0, slot: 0 }],
            },
            Stage::Row {
                code: code(&[(ScalarOp::Slot(0), DType::I32, [0; 3]), (ScalarOp::Store(1), DType::I32, [0; 3])]),
                slots: vec![],
            },
        ],
        slots: 1,
        lanes: Lanes::Reduced,
    };
    check(Loop::Reduction(argmax), [4, 1, 1], &["x0_0[lane]", "part == 0u"]);
}

#[test]
fn many_reductions_in_one_kernel_share_workgroup_memory() {
    let slots = 20;
    let reduction = Reduction {
        kept: vec![3],
        reduced: vec![5000],
        views: vec![view(0, DType::F32, &[5000, 1])],
        stages: vec![Stage::Points {
            code: code(&[(ScalarOp::Load(0), DType::F32, [0; 3])]),
            reduce: (0..slots).map(|slot| Reduce { kind: ReduceKind::Sum, value: 0, slot }).collect(),
        }],
        slots,
        lanes: Lanes::Reduced,
    };
    // 16 KiB hold 20 f32 of 204 threads.
    check(Loop::Reduction(reduction), [3, 1, 1], &["workgroup_size(128)", "w19_0: array<f32, 128>"]);
}

fn product_with_bias() -> Loop {
    use ScalarOp::{Add, Load, Store};
    Loop::Product(Product {
        batch: vec![2, 3],
        m: 65,
        n: 100,
        k: 50,
        a: view(0, DType::F32, &[9750, 50, 150, 1]),
        b: view(1, DType::F32, &[0, 5000, 1, 50]),
        views: vec![view(2, DType::F32, &[19500, 6500, 100, 1]), view(3, DType::F32, &[0, 0, 0, 1])],
        code: code(&[
            (ScalarOp::Product, DType::F32, [0; 3]),
            (Load(1), DType::F32, [0; 3]),
            (Add, DType::F32, [0, 1, 0]),
            (Store(0), DType::F32, [2, 0, 0]),
        ]),
    })
}

#[test]
fn products() {
    check(product_with_bias(), [24, 1, 1], &["fn finish(batch", "p3[column]"]);
}

#[test]
fn sizes_are_those_of_the_target() {
    let tiles = Tiles { product: 32, depth: 8, ..Target::wgpu().tiles.expect("its kernels are generated") };
    let target = Target { tiles: Some(tiles), ..Target::wgpu() };
    let expected = ["workgroup_size(64)", "ta: array<vec4<f32>, 64>", "k0 += 8u"];
    check_for(&target, product_with_bias(), [72, 1, 1], &expected);
    let error = emit(&product_with_bias(), &Target::cpu()).expect_err("cpu brings its loops along");
    assert_eq!(error.to_string(), "target cpu has no generated kernels");
}

#[test]
fn convolutions_and_scatter() {
    for kind in [ConvKind::Forward, ConvKind::ImageGrad, ConvKind::WeightGrad] {
        let conv = conv(kind, 3, 3);
        let result = format!("p{}[point] = total;", conv.out.operand);
        check(Loop::Conv2d(conv), [if kind == ConvKind::ImageGrad { 2 } else { 1 }, 1, 1], &[&result]);
    }
    // One operand as both factors, and a view that begins behind its first element.
    let square = conv(ConvKind::Forward, 3, 3);
    let a = View { offset: 7, ..square.a.clone() };
    let square = Conv2d { b: View { operand: 0, ..square.b }, out: View { operand: 1, ..square.out }, a, ..square };
    check(Loop::Conv2d(square), [1, 1, 1], &["part += p0[7u + ((", " * p0[((", "p1[point] = total;"]);
    // Bytes in the order of a decoded image, less the channel.
    let prologue = code(&[
        (ScalarOp::Load(0), DType::F32, [0; 3]),
        (ScalarOp::Index(1), DType::I32, [0; 3]),
        (ScalarOp::Cast(DType::F32), DType::I32, [1, 0, 0]),
        (ScalarOp::Sub, DType::F32, [0, 2, 0]),
    ]);
    for kind in [ConvKind::Forward, ConvKind::WeightGrad] {
        let bytes = view(0, DType::U8, &[243, 1, 27, 3]);
        let image = Conv2d { a: bytes, prologue: prologue.clone(), ..conv(kind, 3, 3) };
        let at = "n * 243u + c + y * 27u + x * 3u";
        let load = format!("f32(extractBits(p0[({at}) >> 2u], (({at}) & 3u) * 8u, 8u))");
        check(Loop::Conv2d(image), [1, 1, 1], &["fn pixel(n: u32, c: u32, y: u32, x: u32)", &load, "part += pixel("]);
    }
    check(Loop::ScatterAdd(scatter()), [8, 1, 1], &["clamp(p0["]);
}

/// Of 2 images of 9 x 9 with 4 outputs and a window of 3 rows.
fn conv(kind: ConvKind, c: u64, kw: u64) -> Conv2d {
    let none = |operand| View::dense(operand, DType::F32, &[]);
    let (a, b, out) = (none(0), none(1), none(2));
    let prologue = Code::default();
    let conv = Conv2d { kind, n: 2, c, h: 9, w: 9, o: 4, kh: 3, kw, stride: 2, padding: 1, a, b, out, prologue };
    let [a, b, out] = conv.domains();
    let dense = |operand, sizes| View::dense(operand, DType::F32, sizes);
    Conv2d { a: dense(0, &a), b: dense(1, &b), out: dense(2, &out), ..conv }
}

fn scatter() -> ScatterAdd {
    ScatterAdd {
        batch: 1,
        count: 20,
        rows: 512,
        inner: 100,
        index: View::dense(0, DType::I32, &[1, 20]),
        updates: View::dense(1, DType::F32, &[1, 20, 100]),
        out: View::dense(2, DType::F32, &[1, 512, 100]),
    }
}

/// Gradients of 5 queries and 100 keys.
fn attention(rows: Rows, extents: Option<View>) -> Attention {
    let over = |operand, rows: i64, width: i64| view(operand, DType::F32, &[rows * 3 * width, 3 * width, width, 1]);
    let stat = |operand| Some(view(operand, DType::F32, &[15, 3, 1]));
    Attention {
        rows,
        samples: if rows == Rows::Segments { 1 } else { 2 },
        segments: if rows == Rows::Segments { 9 } else { 0 },
        queries: 5,
        keys: 100,
        heads: 3,
        d: 4,
        e: 70,
        causal: true,
        scale: Real(0.5),
        q: over(0, 5, 4),
        k: over(0, 100, 4),
        v: Some(over(2, 100, 70)),
        extents,
        lse: stat(3),
        g: Some(over(4, 5, 70)),
        delta: stat(5),
        results: vec![(AttentionResult::GradQ, over(6, 5, 4)), (AttentionResult::GradK, over(7, 100, 4))],
    }
}

#[test]
fn attention_has_a_workgroup_per_row_and_head() {
    let kernel = |attention| Loop::Attention(Box::new(attention));
    let dense = attention(Rows::Dense, None);
    check(kernel(dense.clone()), [2 * 3 * (5 + 100), 1, 1], &["workgroup_size(64)", "slope(", "workgroupBarrier"]);
    let keys = Attention { results: dense.results[1..].to_vec(), ..dense.clone() };
    check(kernel(keys), [2 * 3 * 100, 1, 1], &["max(own + count, owns) - owns"]);
    let forward = view(6, DType::F32, &[1050, 210, 70, 1]);
    let out = Attention { results: vec![(AttentionResult::Out, forward)], lse: None, g: None, delta: None, ..dense };
    check(kernel(out), [2 * 3 * 5, 1, 1], &["let lse = first[0] + ln_f(second[0]);"]);
    let lengths = attention(Rows::Lengths, Some(view(1, DType::I32, &[1])));
    check(kernel(lengths), [2 * 3 * (5 + 100), 1, 1], &["workgroupUniformLoad(&found)"]);
    let segments = attention(Rows::Segments, Some(view(1, DType::I32, &[10, 1])));
    check(kernel(segments), [3 * (5 + 100), 1, 1], &["var high = 9u;", "workgroupUniformLoad(&found)"]);
}

#[test]
fn iterations_of_a_thread_are_counted() {
    let cases = [
        // 16 threads take 19 points each of one of 16 rows, and join two slots in 4 rounds.
        (softmax(Lanes::Kept, 300), 3 * 19 + 2 * 4),
        // 64 threads take 2 points each in three stages, and join two slots in 6 rounds.
        (softmax(Lanes::Reduced, 77), 3 * 2 + 2 * 6),
        (Loop::Conv2d(conv(ConvKind::Forward, 5, 2)), 5 + 5 * 3 + 5 * 3 * 2),
        (Loop::ScatterAdd(scatter()), 20),
        // Of a query: 2 tiles, in each a score, a product with a value and 64 rows; of a key one tile of 5 rows.
        (Loop::Attention(Box::new(attention(Rows::Dense, None))), 2 * (1 + 4 + 70 + 64) + (1 + 4 + 70 + 5)),
    ];
    for (kernel, expected) in cases {
        match emit(&kernel, &Target::wgpu()) {
            Ok(Implementation::Wgsl { iterations, source, .. }) => assert_eq!(iterations, expected, "{source}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn limits_are_errors() {
    let views: Vec<View> = (0..9).map(|operand| view(operand, DType::F32, &[1])).collect();
    let instrs = (0..9).map(|index| instr(ScalarOp::Load(index), DType::F32, [0; 3])).collect();
    let kernel = Loop::Map(Map { domain: vec![4], views, code: Code { instrs } });
    let error = emit(&kernel, &Target::wgpu()).map_err(|error| error.to_string());
    assert_eq!(error, Err("target wgpu: a kernel has 9 operands, the limit is 8".into()));
}

//! Mixed precision as graphs: the same step in exact arithmetic, types where they belong, and what is said when a target has
//! no such type.

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Graph, Model, NodeId, Value, interpret, verify};
use alip_compiler::ops::{Op, ScalarOp};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::narrow::unrounded;
use alip_compiler::transform::precision::lower;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::{PROGRAM_TRAIN, Target};

/// A graph's training step, with gradients; its products in this type.
fn trained(name: &str, low: Option<DType>) -> Model {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, name, &Options::default());
    let mut resolved = resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    if let Some(low) = low {
        let train = &mut resolved.model.programs[PROGRAM_TRAIN];
        *train = lower(train, low).unwrap_or_else(|errors| panic!("{errors}"));
        verify(train).unwrap_or_else(|errors| panic!("{errors}"));
    }
    let step = training_step(&resolved, resolved.model.clone(), Keep { grads: true, values: true });
    step.unwrap_or_else(|errors| panic!("{errors}")).model
}

fn inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |id: &NodeId| {
        let ty = graph.ty(*id).clone();
        let of =
            |i: u64| if ty.dtype.is_float() { (i * 7919 % 1000) as f64 / 500.0 - 1.0 } else { (i * 7919 % 300) as f64 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    graph.inputs.iter().map(|(name, id)| (name.clone(), value(id))).collect()
}

#[test]
fn without_rounding_it_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let (plain, mixed) = (trained(name, None), trained(name, Some(DType::Bf16)));
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
        let mut state = interpret(&plain.programs["init"], &seed, &BTreeMap::new()).unwrap().updates;
        state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
        let inputs = inputs(&plain.programs["train"]);
        let run = |model: &Model| interpret(&unrounded(&model.programs["train"]).unwrap(), &inputs, &state).unwrap();
        let (expected, found) = (run(&plain), run(&mixed));
        let pairs = expected.outputs.iter().map(|(name, value)| (name, value, &found.outputs[name]));
        let pairs = pairs.chain(expected.updates.iter().map(|(name, value)| (name, value, &found.updates[name])));
        for (of, a, b) in pairs {
            assert_eq!(a.ty, b.ty, "{name}: {of}");
            let largest = a.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
            for (a, b) in a.data.iter().zip(&b.data) {
                // Sums of thousands of terms in f64 in another order; key biases have gradients that are nothing else.
                assert!((a - b).abs() <= 1e-11 * largest + 1e-13, "{name}: {of}: {a} and {b}");
            }
        }
    }
}

/// Products of a graph by the type of their operands, with the origins of those in f32.
fn products(graph: &Graph) -> (usize, Vec<String>) {
    let (mut low, mut wide) = (0, Vec::new());
    for id in graph.ids() {
        let node = graph.node(id);
        if matches!(node.op, Op::Dot(_) | Op::Conv2d(_)) {
            assert_eq!(node.ty.dtype, DType::F32, "products are summed in f32");
            match graph.ty(node.inputs[0]).dtype {
                DType::F32 => wide.push(graph.origin(id).module.to_string()),
                _ => low += 1,
            }
        }
    }
    wide.sort_unstable();
    wide.dedup();
    (low, wide)
}

#[test]
fn types_stand_where_they_belong() {
    let model = trained("alip_tiny", Some(DType::F16));
    let train = &model.programs["train"];
    let (low, wide) = products(train);
    // Forward: a convolution, 4 per block of three towers of two blocks, three projections. Backward: two for each, but for
    // the image, which has no gradient.
    let forward = 1 + 3 * (2 * 4) + 3;
    assert_eq!(low, forward + 2 * forward - 1);
    assert_eq!(wide, ["contrastive_rows", "multihead_attention"], "scores that nothing has lifted, and similarities");
    let mut casts: BTreeMap<NodeId, u32> = BTreeMap::new();
    for id in train.ids() {
        let node = train.node(id);
        let narrows = matches!(node.op, Op::Pointwise(ScalarOp::Cast(DType::F16)));
        if narrows && matches!(train.node(node.inputs[0]).op, Op::State { .. }) {
            *casts.entry(node.inputs[0]).or_default() += 1;
        }
    }
    // One convolution, four per block of two towers, two projections: each once although the texts share theirs.
    assert_eq!(casts.len(), 1 + 2 * (2 * 4) + 2);
    assert!(casts.values().all(|count| *count == 1), "{casts:?}");
    for (name, id) in train.outputs.iter().filter(|(name, _)| name.starts_with("grads.")) {
        let node = train.node(*id);
        let cast = matches!(node.op, Op::Pointwise(ScalarOp::Cast(_)));
        assert!(node.ty.dtype == DType::F32 && !cast, "{name} was rounded");
    }
    for (name, decl) in &model.state {
        assert!(decl.ty.dtype.bytes() == 4, "{name} is {}", decl.ty);
    }
}

/// Noise follows from the seed and the step, but it is no weight: what it is multiplied with stays as it is computed.
#[test]
fn noise_is_no_weight() {
    let spec = r#"Graph(name: "g", use: ["nn"], inputs: { "x": (dtype: F32, shape: "[4, 8]") },
        parts: { "f": "linear(8, 8)" }, body: ["h = f(x)", "y = h @ noise([8, 8])"],
        programs: { "look": (inputs: ["x"], outputs: ["y"]) })"#;
    let options = Options { files: [("g.ron".to_owned(), spec.to_owned())].into(), ..Options::default() };
    let resolved = resolve(&mut SourceMap::new(), "g", &options).unwrap_or_else(|errors| panic!("{errors}"));
    let graph = lower(&resolved.model.programs["look"], DType::Bf16).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(products(&graph), (1, vec!["g".to_owned()]));
}

fn compiled(target: Target, precision: &str) -> (String, alip_plan::Plan) {
    let mut sources = SourceMap::new();
    let spec = Options { set: vec![format!("train.precision={precision}")], ..Options::default() };
    let options =
        SpecOptions { spec, compile: CompileOptions { target, ..CompileOptions::default() }, ..SpecOptions::default() };
    let compiled = compile_spec(&mut sources, "alip_tiny", &options);
    let compiled = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let warnings: Vec<String> = compiled.warnings.iter().map(|warning| warning.render(&sources, false)).collect();
    (warnings.join("\n"), compiled.plan.expect("no pass was asked to be the last"))
}

#[test]
fn a_target_without_the_type_says_what_it_uses_instead() {
    let table = [
        (Target::wgpu(), "Bf16", "target `wgpu` has no bf16: f32 is used", false),
        (Target::wgpu(), "F16", "target `wgpu` has no f16: f32 is used", false),
        (Target::cpu(), "Bf16", "target `cpu` has no bf16: f32 is used", true),
    ];
    for (target, precision, label, has_help) in table {
        let plain = compiled(target.clone(), "F32");
        assert_eq!(plain.0, "", "nothing to say");
        let (said, plan) = compiled(target, precision);
        assert!(said.contains(&format!("warning: `precision: {precision}` is computed in f32")), "{said}");
        assert!(said.contains(&format!("train.precision={precision}")) && said.contains(label), "{said}");
        assert_eq!(said.contains("= help: `--target cpu_mixed` stores bf16"), has_help, "{said}");
        assert_eq!(plan, plain.1, "the plan is that of f32");
    }
}

#[test]
fn activations_take_less_memory_and_products_as_many_operations() {
    let (_, plain) = compiled(Target::cpu_mixed(), "F32");
    for precision in ["Bf16", "F16"] {
        let (said, mixed) = compiled(Target::cpu_mixed(), precision);
        let scale = "`precision: F16` without a loss scale";
        assert_eq!(said.contains(scale), precision == "F16", "{said}");
        let flops = |plan: &alip_plan::Plan| plan.report.programs["train"].flops as f64;
        let difference = (flops(&mixed) / flops(&plain) - 1.0).abs();
        assert!(difference < 0.01, "operations differ by {difference}");
        let memory = |plan: &alip_plan::Plan| plan.report.memory["activations"];
        assert!(memory(&mixed) < memory(&plain), "{} and {}", memory(&mixed), memory(&plain));
        let narrow = |program: &str| mixed.programs[program].buffers.iter().any(|buffer| buffer.dtype.bytes() == 2);
        assert!(narrow("train") && !narrow("encode_image"), "only training is in 16 bits");
    }
}

//! Compiled programs against the interpreter: every op's cases and whole training steps, fused and not, on every device.
//! The reference device runs kernels in f64: when it alone agrees, the compiler is right and the other device wrong.

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Builder, DType, Graph, Model, OriginId, TensorType, Value, interpret};
use alip_compiler::ops::{ReduceKind, cases};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::packing::PACKING;
use alip_compiler::transform::{self, Disabled};
use alip_plan::Target;
use alip_plan::bounds::{F32, Roundings, assert_within, bound, largest};
use alip_runtime::device::{DeviceOptions, choose};
use alip_tests::compiled::{Values, devices, model, plan, rounded, run, run_on, stores};
use alip_tests::goldens;

/// Compiles and runs a program fused and not, on all devices and on a target of few operands, and compares with the interpreter.
/// `roundings` is how many roundings in f32 the deepest result goes through: stored values are f32.
fn check(model: &Model, program: &str, inputs: &Values, state: &Values, roundings: usize) {
    let (inputs, state) = (rounded(inputs), rounded(state));
    let expected = interpret(&model.programs[program], &inputs, &state).expect("the interpreter runs it");
    let few = ["reference", "cpu"].map(|device| (device, Target { max_operands: 8, ..Target::cpu() }));
    let here = devices().into_iter().filter(|(_, target)| stores(target, &model.programs[program]));
    for ((device, target), fuse) in here.chain(few).flat_map(|on| [(on.clone(), true), (on, false)]) {
        let name = format!("{device}, {} operands, fuse {fuse}", target.max_operands);
        let [plan, again] = [plan(model, target.clone(), fuse), plan(model, target, fuse)];
        assert_eq!(plan.to_bytes(), again.to_bytes(), "the same plan twice");
        alip_plan::check::check(&plan).unwrap_or_else(|why| panic!("{}, {name}: {why}", model.name));
        let (outputs, after) = run(device, plan, program, &inputs, &state);
        let outputs = expected.outputs.iter().map(|(name, value)| (name, value, &outputs[name]));
        let updates = expected.updates.iter().map(|(path, value)| (path, value, &after[path]));
        for (of, expected, actual) in outputs.chain(updates) {
            let size = largest(&expected.data);
            let bound = match expected.ty.dtype.format() {
                None => 0.0,
                Some(F32) => bound(F32, Roundings::reduction(roundings), size),
                // The result's own rounding, and those of weights and of gradients of scores within attention.
                Some(format) => bound(format, Roundings::reduction(3), size),
            };
            assert_within(actual, &expected.data, bound)
                .unwrap_or_else(|wrong| panic!("{}, {name}: `{of}` {wrong}", model.name));
        }
        for (path, value) in state.iter().filter(|(path, _)| !expected.updates.contains_key(*path)) {
            assert_eq!(after[path], value.data, "{}, {name}: `{path}` stays", model.name);
        }
    }
}

#[test]
fn every_case_of_every_op() {
    for case in cases() {
        let program = case.graph.name.clone();
        // One op on inputs of moderate size: a handful of roundings and short sums.
        check(&model(&case.name, &case.graph, &case.state), &program, &case.inputs, &case.state, 64);
    }
}

fn trained(graph: &str) -> Model {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, graph, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let options = transform::Options { disabled: Disabled::only(PACKING), ..transform::Options::default() };
    let model = transform::forward(&resolved, &options, &Target::cpu().packing)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .model;
    let step = training_step(&resolved, model, Keep { grads: true, values: false });
    step.unwrap_or_else(|errors| panic!("{errors}")).model
}

/// The golden weights and the first golden batch of a graph, as an f32 device receives them: inputs and state.
fn first_step(model: &Model, folder: &str) -> (Values, Values) {
    let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 0.0))]);
    let init = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs");
    let mut state = init.updates;
    let weights = goldens::load(&format!("{folder}/weights_initial.safetensors"));
    for (path, value) in &mut state {
        if weights.iter().any(|(name, _)| name == path) {
            value.data = weights[path].values.clone();
        }
    }
    state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
    let tensors = goldens::load(&format!("{folder}/inputs.safetensors"));
    let train = &model.programs["train"];
    let batch = |(name, id): (&String, &alip_compiler::ir::NodeId)| {
        (name.clone(), Value::new(train.ty(*id).clone(), tensors[&format!("batch.0.{name}")].values.clone()))
    };
    let inputs = train.inputs.iter().map(batch).collect();
    (rounded(&inputs), rounded(&state))
}

/// One training step from the golden weights.
fn check_step(graph: &str, folder: &str) {
    let model = trained(graph);
    let (inputs, state) = first_step(&model, folder);
    let train = &model.programs["train"];
    let expected = interpret(train, &inputs, &state).expect("the interpreter runs it");
    for ((device, target), fuse) in devices().into_iter().flat_map(|on| [(on.clone(), true), (on, false)]) {
        let (outputs, _) = run(device, plan(&model, target, fuse), "train", &inputs, &state);
        for (name, value) in &expected.outputs {
            let relative = if name.starts_with("grads.") { 2e-5 } else { 2e-6 };
            // The gradient of a key bias is exactly zero: what is computed is noise (goldens/README.md).
            if name.ends_with("in_proj_bias") || name.ends_with("k_proj.bias") || value.ty.dtype != DType::F32 {
                continue;
            }
            // A similarity is a sum of products of unit vectors, and a margin a difference of gates near 1: the size of the
            // terms, not of the result, is what rounds.
            let of_terms = name.ends_with("margin") || name.ends_with("sim_mean");
            let size = if of_terms { 1.0 } else { largest(&value.data) };
            let bound = relative * size.max(1e-6);
            assert_within(&outputs[name], &value.data, bound)
                .unwrap_or_else(|wrong| panic!("{graph}, {device}, fuse {fuse}: `{name}` {wrong}"));
        }
    }
}

#[test]
fn a_step_of_alip_tiny() {
    check_step("alip_tiny", "alip_tiny");
}

#[test]
fn a_step_of_alip_tiny_rn() {
    check_step("alip_tiny_rn", "alip_tiny_rn");
}

#[test]
fn a_step_on_the_cpu_does_not_depend_on_the_number_of_threads() {
    let model = trained("alip_tiny");
    let (inputs, state) = first_step(&model, "alip_tiny");
    let plan = plan(&model, Target::cpu(), true);
    let step = |threads| {
        let device = choose("cpu", &DeviceOptions { threads: Some(threads), ..DeviceOptions::default() })
            .expect("always there")
            .device;
        run_on(device, plan.clone(), "train", &inputs, &state)
    };
    let one = step(1);
    assert!(one.0.contains_key("loss"));
    for threads in [2, 3] {
        assert_eq!(one, step(threads), "{threads} threads");
    }
}

/// `x' = x - rate * m'` and `m' = 0.9 m + x` for tensors of these sizes, with a rate that is state; and a reader of all.
fn momentum(sizes: &[u64]) -> (Graph, Values) {
    let mut graph = Graph::new("step");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let mut state = Values::new();
    let rate = b.state("rate", TensorType::f32([])).unwrap();
    state.insert("rate".into(), Value::scalar(DType::F32, 0.25));
    let mut updates = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let ty = TensorType::f32([*size]);
        let [x, m] = ["x", "m"].map(|role| {
            let path = format!("{role}.{index}");
            let number = |i: u64| ((i * 7919 + index as u64) % 1000) as f64 / 500.0 - 1.0;
            state.insert(path.clone(), Value::new(ty.clone(), (0..*size).map(number).collect()));
            b.state(&path, ty.clone()).unwrap()
        });
        let keep = b.full(0.9, &ty).unwrap();
        let kept = b.mul(m, keep).unwrap();
        let new_m = b.add(kept, x).unwrap();
        let rates = b.broadcast_to(rate, &ty.shape).unwrap();
        let change = b.mul(new_m, rates).unwrap();
        let new_x = b.sub(x, change).unwrap();
        updates.extend([(format!("x.{index}"), new_x), (format!("m.{index}"), new_m)]);
    }
    graph.updates.extend(updates);
    (graph, state)
}

#[test]
fn the_same_update_of_many_tensors_is_one_launch() {
    // Sizes in elements, and the launches left: those of a size that keeps the next from its alignment (64 bytes) do not join.
    for (sizes, launches) in
        [(&[64, 128, 64, 256][..], 1), (&[1024; 20], 1), (&[64, 128, 7, 64], 2), (&[3, 5, 7], 3), (&[64], 1)]
    {
        let (graph, state) = momentum(sizes);
        let model = model("momentum", &graph, &state);
        let (fused, plain) = (plan(&model, Target::cpu(), true), plan(&model, Target::cpu(), false));
        assert_eq!(fused.programs["step"].steps.len(), launches, "{sizes:?}");
        let [fused, plain] = [fused, plain].map(|plan| run("cpu", plan, "step", &Values::new(), &state));
        assert_eq!(fused, plain, "the same bits");
        check(&model, "step", &Values::new(), &state, 8);
    }
}

#[test]
fn a_tensor_that_is_read_later_keeps_its_old_value() {
    let (mut graph, state) = momentum(&[64, 64, 64, 64]);
    let mut b = Builder::new(&mut graph, OriginId::default());
    // Reads the old value of one tensor after the new one of another.
    let (old, new) = (b.state("x.1", TensorType::f32([64])).unwrap(), graph.updates["x.3"]);
    let mut b = Builder::new(&mut graph, OriginId::default());
    let total = b.reduce(ReduceKind::Sum, new, &[0], false).unwrap();
    let total = b.broadcast_to(total, &[64].into()).unwrap();
    let both = b.mul(old, total).unwrap();
    graph.outputs.insert("both".into(), both);
    check(&model("late_reader", &graph, &state), "step", &Values::new(), &state, 128);
}

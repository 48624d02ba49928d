//! Compiled programs against the interpreter: every op's cases and whole training steps, fused and not, on every device.
//! The reference device runs kernels in f64: when it alone agrees, the compiler is right and the other device wrong.

use std::collections::BTreeMap;

use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Model, Value, interpret};
use alip_compiler::ops::cases;
use alip_compiler::resolve::{Options, resolve};
use alip_plan::Target;
use alip_plan::bounds::{F32, Roundings, assert_within, bound, largest};
use alip_runtime::device::{DeviceOptions, choose};
use alip_tests::compiled::{Values, devices, model, plan, rounded, run, run_on};
use alip_tests::goldens;

/// Compiles and runs a program fused and not, on all devices and on a target of few operands, and compares with the interpreter.
/// `roundings` is how many roundings in f32 the deepest result goes through: stored values are f32.
fn check(model: &Model, program: &str, inputs: &Values, state: &Values, roundings: usize) {
    let (inputs, state) = (rounded(inputs), rounded(state));
    let expected = interpret(&model.programs[program], &inputs, &state).expect("the interpreter runs it");
    let few = ["reference", "cpu"].map(|device| (device, Target { max_operands: 8, ..Target::cpu() }));
    for ((device, target), fuse) in devices().into_iter().chain(few).flat_map(|on| [(on.clone(), true), (on, false)]) {
        let name = format!("{device}, {} operands, fuse {fuse}", target.max_operands);
        let [plan, again] = [plan(model, target.clone(), fuse), plan(model, target, fuse)];
        assert_eq!(plan.to_bytes(), again.to_bytes(), "the same plan twice");
        alip_plan::check::check(&plan).unwrap_or_else(|why| panic!("{}, {name}: {why}", model.name));
        let (outputs, after) = run(device, plan, program, &inputs, &state);
        let outputs = expected.outputs.iter().map(|(name, value)| (name, value, &outputs[name]));
        let updates = expected.updates.iter().map(|(path, value)| (path, value, &after[path]));
        for (of, expected, actual) in outputs.chain(updates) {
            let exact = expected.ty.dtype != DType::F32;
            let size = largest(&expected.data);
            let bound = if exact { 0.0 } else { bound(F32, Roundings::reduction(roundings), size) };
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
    let mut resolved = resolve(&mut sources, graph, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    add_update(&mut resolved, Keep { grads: true, values: false }).unwrap_or_else(|errors| panic!("{errors}"));
    resolved.model
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
            // A margin is the difference of similarities and gates, which are near 1: their size, not its own, is what rounds.
            let size = if name.ends_with("margin") { 1.0 } else { largest(&value.data) };
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
        let device = choose("cpu", &DeviceOptions { threads: Some(threads) }).expect("always there").device;
        run_on(device, plan.clone(), "train", &inputs, &state)
    };
    let one = step(1);
    assert!(one.0.contains_key("loss"));
    for threads in [2, 3] {
        assert_eq!(one, step(threads), "{threads} threads");
    }
}

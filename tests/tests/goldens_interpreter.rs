//! The specs against the golden data, on the f64 interpreter: what the language says is what the paper's code computes.
//!
//! Both sides are f64 from the same f32 weights, so they agree to rounding: 1e-10 of the largest entry of each tensor.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Model, TensorType, Value, interpret};
use alip_compiler::resolve::{LOSS, Options, Resolved, resolve, resolve_source};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::packing::PACKING;
use alip_compiler::transform::{self, Disabled};
use alip_plan::bounds::{assert_within, golden};
use alip_plan::{StateKind, Target};
use alip_tests::goldens::{self, Tensors};

/// Of the largest entry: f64 rounding, with room for sums of thousands of terms and 20 steps.
const BOUND: f64 = 1e-10;

fn forward(graph: &str) -> Resolved {
    let mut sources = SourceMap::new();
    resolve(&mut sources, graph, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)))
}

fn trained(resolved: Resolved) -> Model {
    let options = transform::Options { disabled: Disabled::only(PACKING), ..transform::Options::default() };
    let model = transform::forward(&resolved, &options, &Target::cpu().packing)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .model;
    let step = training_step(&resolved, model, Keep { grads: true, values: true });
    step.unwrap_or_else(|errors| panic!("{errors}")).model
}

/// A model with its state, stepped by the interpreter.
struct Run {
    model: Model,
    state: BTreeMap<String, Value>,
}

impl Run {
    /// The first state, with the golden weights and the number of steps.
    fn new(model: Model, weights: &Tensors, total_steps: f64) -> Run {
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 0.0))]);
        let init = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs");
        let mut run = Run { model, state: init.updates };
        for (path, decl) in &run.model.state {
            if decl.kind == StateKind::Param {
                let golden = &weights[path];
                let shape: Vec<u64> = golden.shape.iter().map(|size| *size as u64).collect();
                assert_eq!(decl.ty.shape.sizes(), shape, "{path}");
                run.state.insert(path.clone(), Value::new(decl.ty.clone(), golden.values.clone()));
            }
        }
        let params = run.model.state.values().filter(|decl| decl.kind == StateKind::Param).count();
        assert_eq!(params, weights.iter().count(), "every golden weight has its parameter");
        run.set("train.total_steps", total_steps);
        run
    }

    fn set(&mut self, path: &str, value: f64) {
        let scalar = self.state.get_mut(path).unwrap_or_else(|| panic!("no state `{path}`"));
        scalar.data = vec![value];
    }

    /// One step: its outputs by name; the state moves on.
    fn step(&mut self, inputs: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
        let done = interpret(&self.model.programs["train"], inputs, &self.state).expect("the step runs");
        self.state.extend(done.updates);
        done.outputs
    }
}

/// The inputs of a program from batch `k`.
fn batch(model: &Model, program: &str, tensors: &Tensors, k: usize) -> BTreeMap<String, Value> {
    let graph = &model.programs[program];
    let input = |(name, id): (&String, &alip_compiler::ir::NodeId)| {
        (name.clone(), Value::new(graph.ty(*id).clone(), tensors[&format!("batch.{k}.{name}")].values.clone()))
    };
    graph.inputs.iter().map(input).collect()
}

fn check(what: &str, actual: &[f64], expected: &[f64], relative: f64) {
    if let Err(violation) = assert_within(actual, expected, golden::of_largest(relative, expected)) {
        panic!("{what}: {violation:?}");
    }
}

/// Compares every quantity of a golden `step1`.
fn check_step1(outputs: &BTreeMap<String, Value>, golden: &Tensors) {
    for (name, output, expected) in goldens::step1(golden) {
        check(name, &outputs[output].data, &expected.values, BOUND);
    }
}

/// Runs the steps of a golden trajectory and compares all its series.
fn check_trajectory(run: &mut Run, inputs: &Tensors, batches: usize, golden: &Tensors) {
    let series = golden.section("f64.");
    let steps = series["loss"].values.len();
    let mut found: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for step in 0..steps {
        let outputs = run.step(&batch(&run.model, "train", inputs, step % batches));
        for (name, _) in series.iter() {
            found.entry(name).or_default().push(outputs[name].data[0]);
        }
    }
    for (name, expected) in series.iter() {
        check(name, &found[name], &expected.values, BOUND);
    }
}

fn tiny() -> (Run, Tensors) {
    let run = Run::new(trained(forward("alip_tiny")), &goldens::load("alip_tiny/weights_initial.safetensors"), 20.0);
    (run, goldens::load("alip_tiny/inputs.safetensors"))
}

#[test]
fn alip_tiny_step_1_and_its_gradients() {
    let (mut run, inputs) = tiny();
    let outputs = run.step(&batch(&run.model, "train", &inputs, 0));
    check_step1(&outputs, &goldens::load("alip_tiny/step1.safetensors"));
    for (path, expected) in goldens::load("alip_tiny/grads_step1_f64.safetensors").iter() {
        let actual = goldens::without_key_bias(path, &outputs[&format!("grads.{path}")].data);
        check(path, &actual, &goldens::without_key_bias(path, &expected.values), BOUND);
    }
}

#[test]
fn alip_tiny_gradients_of_the_embeddings() {
    let resolved = forward("alip_tiny");
    let mut graph = resolved.model.programs["train"].clone();
    let names = [("x", "image"), ("tr", "raw"), ("tc", "caption")];
    let wrt = names.map(|(name, _)| graph.values[name]);
    let loss = graph.values[LOSS];
    let grads = gradients(&mut graph, loss, &wrt).expect("the loss is a scalar");
    for ((_, name), grad) in names.iter().zip(grads) {
        graph.outputs.insert((*name).to_owned(), grad.expect("the loss depends on it"));
    }
    let (mut run, inputs) = tiny();
    run.model.programs.insert("train".into(), graph);
    let outputs = run.step(&batch(&run.model, "train", &inputs, 0));
    let golden = goldens::load("alip_tiny/step1.safetensors");
    for (_, name) in names {
        check(name, &outputs[name].data, &golden[&format!("f64.embedding_grad.{name}")].values, BOUND);
    }
}

#[test]
fn alip_tiny_trajectory_and_final_weights() {
    let (mut run, inputs) = tiny();
    check_trajectory(&mut run, &inputs, 4, &goldens::load("alip_tiny/trajectory.safetensors"));
    for (path, expected) in goldens::load("alip_tiny/weights_final_f64.safetensors").iter() {
        let actual = goldens::without_key_bias(path, &run.state[path].data);
        // AdamW divides by the size of the gradient, so a rounding of 1e-16 in a tiny one moves a weight by more.
        check(path, &actual, &goldens::without_key_bias(path, &expected.values), 100.0 * BOUND);
    }
}

#[test]
fn alip_tiny_from_the_middle_of_a_training() {
    let (mut run, inputs) = tiny();
    for (path, momentum) in [("lcg.ema", 0.90625), ("dcg_raw.ema", -0.0625), ("dcg_caption.ema", -0.125)] {
        run.set(path, momentum);
    }
    let first = interpret(&run.model.programs["train"], &batch(&run.model, "train", &inputs, 0), &run.state);
    check_step1(&first.expect("the step runs").outputs, &goldens::load("alip_tiny/step1_mid.safetensors"));
    check_trajectory(&mut run, &inputs, 4, &goldens::load("alip_tiny/trajectory_mid.safetensors"));
}

#[test]
fn alip_tiny_rn_step_1_statistics_and_trajectory() {
    let weights = goldens::load("alip_tiny_rn/weights_initial.safetensors");
    let inputs = goldens::load("alip_tiny_rn/inputs.safetensors");
    let params: Vec<String> = forward("alip_tiny_rn").model.state.keys().cloned().collect();
    let mut only = weights.clone();
    only.retain(|name| params.iter().any(|path| path == name) && !is_statistic(name));
    let mut run = Run::new(trained(forward("alip_tiny_rn")), &only, 40.0);
    let start = run.state.clone();
    let outputs = run.step(&batch(&run.model, "train", &inputs, 0));
    check_step1(&outputs, &goldens::load("alip_tiny_rn/step1.safetensors"));
    for (path, expected) in goldens::load("alip_tiny_rn/grads_step1_f64.safetensors").iter() {
        let actual = goldens::without_key_bias(path, &outputs[&format!("grads.{path}")].data);
        check(path, &actual, &goldens::without_key_bias(path, &expected.values), BOUND);
    }
    let statistics = |run: &Run, file: &str| {
        for (path, expected) in goldens::load(file).section("f64.").iter() {
            check(path, &run.state[path].data, &expected.values, BOUND);
        }
    };
    statistics(&run, "alip_tiny_rn/batch_norm_after_step1.safetensors");
    // In evaluation mode: the initial weights with the statistics of the first step.
    let mut eval = start.clone();
    eval.extend(
        run.state.iter().filter(|(path, _)| is_statistic(path)).map(|(path, value)| (path.clone(), value.clone())),
    );
    let image = batch(&run.model, "encode_image", &inputs, 0);
    let encoded = interpret(&run.model.programs["encode_image"], &image, &eval).expect("the program runs");
    let golden = goldens::load("alip_tiny_rn/eval_after_step1.safetensors");
    check("eval", &encoded.outputs["x"].data, &golden["f64.embedding.image"].values, BOUND);
    assert!(encoded.updates.is_empty(), "only `train` changes state");
    run.state = start;
    check_trajectory(&mut run, &inputs, 3, &goldens::load("alip_tiny_rn/trajectory.safetensors"));
    statistics(&run, "alip_tiny_rn/batch_norm_final.safetensors");
}

fn is_statistic(path: &str) -> bool {
    ["running_mean", "running_var", "num_batches_tracked"].iter().any(|name| path.ends_with(name))
}

/// A graph whose gradient with respect to `w` is its input `g`, trained by an optimiser and a schedule.
fn optimise(optimizer: &str, schedule: &str, size: u64, total_steps: f64) -> Run {
    let text = format!(
        r#"Graph(
            name: "optimise",
            use: ["optim/adamw", "optim/sgd", "schedule/one_cycle", "schedule/cosine", "schedule/linear", "schedule/constant"],
            dims: {{ "N": {size} }},
            inputs: {{ "g": (dtype: F32, shape: "[N]") }},
            params: {{ "w": (shape: "[N]", init: "0") }},
            body: ["loss = sum(w * g)"],
            metrics: {{ "lr": "train.lr" {} }},
            train: (loss: "loss", optimizer: "{optimizer}", schedule: "{schedule}"),
        )"#,
        if schedule.starts_with("one_cycle") { r#", "beta1": "train.beta1""# } else { "" }
    );
    let mut sources = SourceMap::new();
    let source = sources.add("optimise.ron", text);
    let resolved = resolve_source(&mut sources, source, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let model = trained(resolved);
    let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 0.0))]);
    let state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs").updates;
    let mut run = Run { model, state };
    run.set("train.total_steps", total_steps);
    run
}

fn gradient(values: &[f64]) -> BTreeMap<String, Value> {
    BTreeMap::from([("g".to_owned(), Value::new(TensorType::f32([values.len() as u64]), values.to_vec()))])
}

/// What a schedule yields at every step of a run.
fn series(schedule: &str, total: usize, steps: usize, name: &str) -> Vec<f64> {
    let mut run = optimise("adamw()", schedule, 1, total as f64);
    (0..steps).map(|_| run.step(&gradient(&[1.0]))[name].data[0]).collect()
}

fn numbers(json: &serde_json::Value) -> Vec<f64> {
    json.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn one_cycle_is_pytorchs() {
    for total in [200, 37, 20, 7] {
        let golden = goldens::json(&format!("optim/one_cycle_{total}.json"));
        for name in ["lr", "beta1"] {
            let actual = series("one_cycle(max_lr: 1e-3, pct_start: 0.1)", total, total, name);
            check(&format!("one_cycle_{total} {name}"), &actual, &numbers(&golden[name]), 1e-12);
        }
    }
}

#[test]
fn one_cycle_where_pytorch_stops() {
    let schedule = "one_cycle(max_lr: 1e-3, pct_start: 0.1)";
    // The peak is step 0: it has the largest rate, and the fall begins.
    let ten = series(schedule, 10, 10, "lr");
    check("10 steps", &ten[..1], &[1e-3], 1e-12);
    assert!(ten.windows(2).all(|pair| pair[1] < pair[0]), "{ten:?}");
    // Past the end the rate stays at its floor.
    let past = series(schedule, 20, 23, "lr");
    check("past the end", &past[19..], &[4e-9; 4], 1e-9);
}

#[test]
fn cosine_is_open_clips() {
    for (file, warmup) in [("warmup_cosine_200", 20), ("warmup_cosine_50_no_warmup", 0)] {
        let golden = goldens::json(&format!("optim/{file}.json"));
        let expected = numbers(&golden["lr"]);
        let schedule = format!("cosine(max_lr: {}, warmup: {warmup})", golden["base_lr"]);
        check(file, &series(&schedule, expected.len(), expected.len(), "lr"), &expected, 1e-12);
    }
}

#[test]
fn linear_and_constant_warm_up_and_end_where_they_say() {
    let linear = series("linear_decay(max_lr: 1.0, warmup: 2, final_lr: 0.2)", 6, 8, "lr");
    check("linear", &linear, &[0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2], 1e-12);
    check("constant", &series("constant(max_lr: 0.5, warmup: 2)", 4, 4, "lr"), &[0.25, 0.5, 0.5, 0.5], 1e-12);
}

#[test]
fn adamw_is_pytorchs() {
    let golden = goldens::load("optim/adamw.safetensors");
    let mut run = optimise(
        "adamw(beta2: 0.98, eps: 1e-8, weight_decay: 0.2)",
        "one_cycle(max_lr: 1e-3, pct_start: 0.1)",
        12,
        60.0,
    );
    run.state.get_mut("w").expect("the parameter").data.clone_from(&golden["initial"].values);
    for step in 0..60 {
        let row = |name: &str| golden[name].values[12 * step..12 * (step + 1)].to_vec();
        run.step(&gradient(&row("gradients")));
        let states = [("w", "weight"), ("optimizer.m.w", "first_moment"), ("optimizer.v.w", "second_moment")];
        for (path, name) in states {
            check(&format!("{name} at step {step}"), &run.state[path].data, &row(&format!("f64.{name}")), 1e-12);
        }
    }
}

#[test]
fn sgd_with_momentum_by_hand() {
    let mut run = optimise("sgd(momentum: 0.5, weight_decay: 0.1)", "constant(max_lr: 0.1)", 1, 10.0);
    run.set("train.step", 0.0);
    run.state.get_mut("w").expect("the parameter").data = vec![1.0];
    // Slopes g + 0.1 w: 1.1, then 1 + 0.1 * 0.89; velocities 1.1, then 0.55 + 1.089.
    run.step(&gradient(&[1.0]));
    check("first", &run.state["w"].data, &[0.89], 1e-12);
    run.step(&gradient(&[1.0]));
    check("second", &run.state["w"].data, &[0.89 - 0.1 * (0.55 + 1.089)], 1e-12);
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let mut run = optimise("adamw()", "constant(max_lr: 0.1)", 2, 10.0);
    run.step(&gradient(&[1.0, 2.0]));
    let before = run.state.clone();
    for bad in [f64::NAN, f64::INFINITY] {
        run.step(&gradient(&[1.0, bad]));
        assert_eq!(run.state["train.halted"].data, [1.0]);
        run.set("train.halted", 0.0);
        assert_eq!(run.state, before, "after a gradient of {bad}");
    }
    assert_eq!(run.state["train.step"].data, [1.0]);
}

/// The gate modules alone: similarities come in as the products of one-number embeddings.
fn gates() -> Run {
    let text = r#"Graph(
        name: "gates",
        use: ["gates", "optim/sgd", "schedule/constant"],
        dims: { "N": 48 },
        inputs: {
            "text_sim": (dtype: F32, shape: "[N, 1]"),
            "raw_sim": (dtype: F32, shape: "[N, 1]"),
            "caption_sim": (dtype: F32, shape: "[N, 1]"),
        },
        parts: {
            "lcg": "language_consistency_gate()",
            "dcg_raw": "description_consistency_gate()",
            "dcg_caption": "description_consistency_gate()",
        },
        params: { "w": (shape: "[]", init: "1") },
        body: [
            "one = 0 * text_sim + 1",
            "sample_weight, gate = lcg(text_sim, one)",
            "raw_weight = dcg_raw(raw_sim, one, gate)",
            "caption_weight = dcg_caption(caption_sim, one, gate)",
            "loss = w * mean(sample_weight)",
        ],
        metrics: { "text_momentum": "lcg.ema'", "raw_momentum": "dcg_raw.ema'", "caption_momentum": "dcg_caption.ema'" },
        train: (loss: "loss", optimizer: "sgd()", schedule: "constant(max_lr: 0.1)"),
    )"#;
    let mut sources = SourceMap::new();
    let source = sources.add("gates.ron", text);
    let resolved = resolve_source(&mut sources, source, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let model = trained(resolved);
    let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 0.0))]);
    let state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs").updates;
    Run { model, state }
}

#[test]
fn gates_alone_over_six_steps_from_two_starts() {
    let golden = goldens::load("alip_tiny/gate_cases.safetensors");
    let starts = [("unit_start", [1.0, 1.0, 1.0]), ("mid_training", [0.4375, 0.1875, 0.25])];
    let outputs = [
        ("sample_weight_unclamped", "outputs.gate"),
        ("sample_weight", "outputs.sample_weight"),
        ("raw_weight_ungated", "outputs.dcg_raw.ungated"),
        ("raw_weight", "outputs.raw_weight"),
        ("caption_weight_ungated", "outputs.dcg_caption.ungated"),
        ("caption_weight", "outputs.caption_weight"),
    ];
    for (start, momenta) in starts {
        let mut run = gates();
        for (path, momentum) in ["lcg.ema", "dcg_raw.ema", "dcg_caption.ema"].into_iter().zip(momenta) {
            run.set(path, momentum);
        }
        for step in 0..6 {
            let row = |name: &str| golden[name].values[48 * step..48 * (step + 1)].to_vec();
            let input =
                |name: &str| (name.to_owned(), Value::new(TensorType::f32([48, 1]), row(&format!("input.{name}"))));
            let found = run.step(&["text_sim", "raw_sim", "caption_sim"].map(input).into());
            for (name, output) in outputs {
                check(
                    &format!("{start} {name} {step}"),
                    &found[output].data,
                    &row(&format!("{start}.f64.{name}")),
                    1e-12,
                );
            }
            for name in ["text_momentum", "raw_momentum", "caption_momentum"] {
                let expected = golden[&format!("{start}.f64.{name}")].values[step];
                check(&format!("{start} {name} {step}"), &found[name].data, &[expected], 1e-12);
            }
        }
    }
}

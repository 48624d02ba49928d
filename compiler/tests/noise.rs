//! Noise: which draws differ, and what they follow from; what graphs read of the step.

use std::collections::{BTreeMap, HashMap};

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Graph, Model, Value, interpret};
use alip_compiler::ops::Op;
use alip_compiler::resolve::{Options, resolve_source};
use alip_compiler::training::{Keep, training_step};

/// Each application draws a uniform and a normal mask.
const NOISY: &str = r#"Module(name: "noisy", inputs: { "x": "[N, D]" }, body: [
    "keep = noise([N, D])", "more = noise([N, D], kind: 'normal')", "y = x * keep + more"], outputs: ["y"])"#;

fn build(spec: &str) -> Model {
    let mut sources = SourceMap::new();
    let source = sources.add("spec.ron", spec);
    let files = BTreeMap::from([("noisy.ron".to_owned(), NOISY.to_owned())]);
    let options = Options { files, ..Options::default() };
    let built = resolve_source(&mut sources, source, &options)
        .and_then(|resolved| training_step(&resolved, resolved.model.clone(), Keep::default()));
    built.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).model
}

/// A graph over `x`, of 4 samples of 6 numbers, with this body and these entries.
fn graph(body: &str, entries: &str) -> Model {
    build(&format!(
        r#"Graph(name: "g", use: ["noisy", "dropout", "optim/sgd", "schedule/constant"], dims: {{ "B": Batch(4) }},
        inputs: {{ "x": (dtype: F32, shape: "[B, 6]") }}, params: {{ "w": (shape: "[6]", init: "1") }},
        body: [{body}], {entries})"#
    ))
}

const TRAIN: &str = r#"train: (loss: "loss", optimizer: "sgd()", schedule: "constant(max_lr: 1)")"#;

/// Path of the part that draws, by stream and word. No draw is that of another.
fn draws(graph: &Graph) -> BTreeMap<(u64, u8), String> {
    let mut found = BTreeMap::new();
    for id in graph.ids() {
        if let Op::Random { stream, lane, .. } = graph.node(id).op {
            let path = graph.origin(id).path.to_string();
            assert_eq!(found.insert((stream, lane), path), None, "one stream for two draws");
        }
    }
    found
}

/// Outputs of a program for this seed and step.
fn run(model: &Model, program: &str, seed: i32, step: i32) -> HashMap<String, Vec<f64>> {
    let of = |value: i32| Value::scalar(DType::I32, f64::from(value));
    let inputs = BTreeMap::from([("seed".to_owned(), of(seed))]);
    let mut state = interpret(&model.programs["init"], &inputs, &BTreeMap::new()).expect("init runs").updates;
    state.insert("train.step".into(), of(step));
    state.insert("train.total_steps".into(), of(20));
    let graph = &model.programs[program];
    let inputs = graph.inputs.iter().map(|(name, id)| {
        let ty = graph.ty(*id).clone();
        let count = ty.shape.elements() as usize;
        (name.clone(), Value::new(ty, vec![1.0; count]))
    });
    let outputs = interpret(graph, &inputs.collect(), &state).expect("it runs").outputs;
    outputs.into_iter().map(|(name, value)| (name, value.data)).collect()
}

#[test]
fn layers_applications_and_places_draw_for_themselves() {
    let parts = r#"parts: { "layers": "[noisy(); 3]", "twice": "noisy()" },"#;
    let body = r#""a = chain(layers, x)", "b = twice(x)", "c = twice(x)", "d = noisy(x) + noisy(x)",
        "e = noise([B, 6]) - noise([B, 6])", "f = noise([B, 6])", "loss = mean((a + b + c + d + e + f) * w)""#;
    let model = graph(body, &format!("{parts} {TRAIN}"));
    let draws = draws(&model.programs["train"]);
    // 7 applications with one uniform and one normal draw, the latter of two words; 3 draws of the graph itself.
    assert_eq!(draws.len(), 7 * 3 + 3);
    let mut paths: Vec<&str> = draws.values().map(String::as_str).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths, ["", "layers.0", "layers.1", "layers.2", "noisy", "noisy#2", "twice", "twice#2"]);
}

/// What three layers of one repetition keep, for any seed: not the same.
#[test]
fn layers_leave_out_different_samples() {
    let body = r#""a = w * x", "h = drop_path(a, p: 0.5)", "g = drop_path(a, p: 0.5)", "loss = mean(h + g)",
        "_same = mean(abs(h - g))""#;
    let metrics = r#"metrics: { "h": "sum(h)", "same": "_same" },"#;
    let model = graph(body, &format!("{metrics} {TRAIN}"));
    let mut differ = 0;
    for seed in 0..8 {
        let out = run(&model, "train", seed, 0);
        differ += usize::from(out["same"][0] > 0.0);
        // Whole samples are kept, at twice their size.
        assert_eq!(out["h"][0] % 12.0, 0.0);
    }
    // Four samples are dropped alike by chance once in 16.
    assert!(differ >= 6, "{differ} of 8");
}

#[test]
fn draws_follow_seed_and_step_in_all_programs() {
    let entries = r#"programs: { "look": (inputs: ["x"], outputs: ["n"]) }, metrics: { "n": "sum(n)" },"#;
    let trained = graph(r#""n = noise([B, 6], 'normal')", "loss = mean(x * w)""#, &format!("{entries} {TRAIN}"));
    let untrained = graph(r#""n = noise([B, 6], 'normal')""#, entries);
    let of = |seed, step| run(&trained, "look", seed, step).remove("n").expect("an output");
    assert_eq!(of(3, 5), of(3, 5));
    assert_ne!(of(3, 5), of(3, 6));
    assert_ne!(of(3, 5), of(4, 5));
    let sum: f64 = of(3, 5).iter().sum();
    assert!((run(&trained, "train", 3, 5)["n"][0] - sum).abs() < 1e-12, "training draws what the program draws");
    assert_eq!(run(&untrained, "look", 3, 0)["n"], of(3, 0), "a graph that does not train is at step 0");
    let init = &untrained.state;
    assert!(init.contains_key("train.seed") && !init.contains_key("train.total_steps"));
}

/// A place is its equation and the application in that, not how many others a program has: what a program for evaluation
/// applies draws what it draws in training, though training applies the part once more before.
#[test]
fn programs_draw_alike_in_the_same_place() {
    let parts = r#"parts: { "twice": "noisy()" },"#;
    let body = r#""a = twice(x)", "b = sum(twice(x) - 2 * twice(x))", "loss = mean(a * w) + b""#;
    let entries = r#"programs: { "look": (inputs: ["x"], outputs: ["b"]) }, metrics: { "b": "b" },"#;
    let model = graph(body, &format!("{parts} {entries} {TRAIN}"));
    let (look, train) = (run(&model, "look", 3, 5), run(&model, "train", 3, 5));
    assert!((look["b"][0] - train["b"][0]).abs() < 1e-12, "{} and {}", look["b"][0], train["b"][0]);
}

/// Loss and metrics draw for themselves, whatever the last equation is.
#[test]
fn loss_and_metrics_are_places() {
    let of = |last: &str| {
        let train = r#"train: (loss: "mean(x * w) + noise([])", optimizer: "sgd()", schedule: "constant(max_lr: 1)")"#;
        let metrics = r#"metrics: { "m": "noise([])", "n": "noise([])", "rate": "noise([]) * train.lr" },"#;
        let model = graph(&format!(r#""{last} = mean(w)", "_{last} = {last}""#), &format!("{metrics} {train}"));
        run(&model, "train", 1, 1)
    };
    let (one, other) = (of("a"), of("b"));
    assert_eq!(one, other);
    let drawn: Vec<f64> = ["m", "n", "rate", "loss"].iter().map(|name| one[*name][0].fract()).collect();
    assert!((0..4).all(|i| (0..i).all(|j| drawn[i] != drawn[j])), "{drawn:?}");
}

#[test]
fn uniform_and_normal_are_what_they_are_called() {
    let metrics = r#"metrics: { "least": "reduce_min(u)", "most": "reduce_max(u)", "mean": "mean(u)", "square": "mean(u * u)",
        "normal_mean": "mean(n)", "normal_square": "mean(n * n)", "kept": "mean(kept)" },"#;
    let body = r#""u = noise([200, 50])", "n = noise(shape: [200, 50], kind: 'normal')",
        "kept = dropout(broadcast_to(w, [2000, 6]), p: 0.25)", "loss = mean(x * w)""#;
    let out = run(&graph(body, &format!("{metrics} {TRAIN}")), "train", 1, 1);
    assert!(out["least"][0] >= 0.0 && out["most"][0] < 1.0);
    // Five standard errors of 10,000 numbers.
    let near = |name: &str, expected: f64, variance: f64| {
        let error = (out[name][0] - expected).abs();
        assert!(error < 5.0 * (variance / 1e4).sqrt(), "{name}: {}", out[name][0]);
    };
    near("mean", 0.5, 1.0 / 12.0);
    near("square", 1.0 / 3.0, 4.0 / 45.0);
    near("normal_mean", 0.0, 1.0);
    near("normal_square", 1.0, 2.0);
    near("kept", 1.0, 1.0 / 3.0);
}

#[test]
fn evaluation_leaves_nothing_out() {
    let body = r#""y = dropout(x * w, p: 0.5)", "z = drop_path(y, p: 0.5)", "loss = mean(z)""#;
    let model = graph(body, &format!(r#"programs: {{ "look": (inputs: ["x"], outputs: ["z"]) }}, {TRAIN}"#));
    assert_eq!(draws(&model.programs["look"]), BTreeMap::new());
    assert_eq!(draws(&model.programs["train"]).len(), 2);
    assert_eq!(run(&model, "look", 1, 1)["z"], [1.0; 24]);
}

/// `train.step` and `train.total_steps` are F32, in bodies, modules, schedules and groups, in every program.
#[test]
fn graphs_read_the_step() {
    let train = r#"train: (loss: "loss", optimizer: "sgd(momentum: 0)", schedule: "constant(max_lr: 1)",
        groups: [(select: "w", lr: "lr * train.step / train.total_steps")])"#;
    let entries =
        r#"programs: { "look": (inputs: ["x"], outputs: ["at"]) }, metrics: { "at": "at", "w": "mean(w')" },"#;
    let body = r#""at = 2 * train.step / train.total_steps", "loss = sum(mean(x, axis: 0) * w) + 0 * at""#;
    let model = graph(body, &format!("{entries} {train}"));
    for (step, at) in [(0, 0.0), (5, 0.5), (20, 2.0)] {
        assert_eq!(run(&model, "look", 0, step)["at"], [at]);
        let out = run(&model, "train", 0, step);
        assert_eq!(out["at"], [at]);
        // The gradient is 1 everywhere, and the rate of the group half of `at`.
        assert!((out["w"][0] - (1.0 - at / 2.0)).abs() < 1e-12, "step {step}: {:?}", out["w"]);
    }
}

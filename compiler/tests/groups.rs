//! Groups: captures in expressions, which group wins, and what stays of a frozen part.

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Model, Value, interpret};
use alip_compiler::resolve::{Options, resolve_source};
use alip_compiler::training::{Keep, training_step};

fn build(spec: &str) -> Model {
    build_with(spec, &[])
}

fn build_with(spec: &str, files: &[(&str, &str)]) -> Model {
    let mut sources = SourceMap::new();
    let source = sources.add("spec.ron", spec);
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let options = Options { files, ..Options::default() };
    let built = resolve_source(&mut sources, source, &options)
        .and_then(|resolved| training_step(&resolved, resolved.model.clone(), Keep::default()));
    built.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).model
}

/// Three layers whose biases have a gradient of 1 each.
fn layers(groups: &str) -> Model {
    build(&format!(
        r#"Graph(name: "g", use: ["nn", "optim/sgd", "schedule/constant"], dims: {{ "L": 3 }},
        inputs: {{ "x": (dtype: F32, shape: "[1, 1]") }}, parts: {{ "layers": "[linear(1, 1); L]" }},
        body: ["loss = sum(layers[0](x) + layers[1](x) + layers[2](x))"],
        train: (loss: "loss", optimizer: "sgd(momentum: 0)", schedule: "constant(max_lr: 1)", groups: [{groups}]))"#
    ))
}

/// What a step does to the bias of each layer, when all state and input is 0.
fn steps(model: &Model) -> Vec<f64> {
    let graph = &model.programs["train"];
    let zeros = |ty: &alip_compiler::ir::TensorType| Value::new(ty.clone(), vec![0.0; ty.shape.elements() as usize]);
    let inputs: BTreeMap<_, _> = graph.inputs.iter().map(|(name, id)| (name.clone(), zeros(graph.ty(*id)))).collect();
    let state: BTreeMap<_, _> = model.state.iter().map(|(path, decl)| (path.clone(), zeros(&decl.ty))).collect();
    let updates = interpret(graph, &inputs, &state).expect("it runs").updates;
    (0..3).map(|layer| updates.get(&format!("layers.{layer}.bias")).map_or(0.0, |bias| bias.data[0])).collect()
}

#[test]
fn captures_and_the_last_group_decide() {
    let table = [
        ("", [-1.0, -1.0, -1.0]),
        (r#"(select: "layers.{i}.*", lr: "lr * 0.5 ** (L - 1 - i)")"#, [-0.25, -0.5, -1.0]),
        (r#"(select: "layers[{i}].bias", lr: "lr * (i + 1)"), (select: "layers[1].*", lr: "3")"#, [-1.0, -3.0, -3.0]),
        (r#"(select: "*", freeze: true), (select: "layers.2.*", freeze: false)"#, [0.0, 0.0, -1.0]),
        (
            r#"(select: "*", lr: "4 * lr"), (select: "layers.0.*", freeze: true), (select: "*.1.*", weight_decay: 0)"#,
            [0.0, -4.0, -4.0],
        ),
    ];
    for (groups, expected) in table {
        assert_eq!(steps(&layers(groups)), expected, "{groups}");
    }
}

/// With `frozen_statistics` a frozen tower is computed in training as in evaluation, and nothing of it moves.
#[test]
fn frozen_statistics_stay_and_are_used() {
    let graph = |more: &str| {
        build(&format!(
            r#"Graph(name: "g", base: "alip_tiny_rn", metrics: {{ "image": "mean(x)" }},
            train: (groups: [(select: "visual.*", freeze: true, {more})]))"#
        ))
    };
    let moving = graph("frozen_statistics: false");
    let frozen = graph("frozen_statistics: true");
    assert_eq!(moving.state.keys().collect::<Vec<_>>(), frozen.state.keys().collect::<Vec<_>>());
    let updated = |model: &Model| {
        let paths = model.programs["train"].updates.keys().filter(|path| path.starts_with("visual."));
        paths.cloned().collect::<Vec<_>>()
    };
    assert!(updated(&moving).iter().all(|path| path.contains("running_") || path.ends_with("num_batches_tracked")));
    assert!(!updated(&moving).is_empty());
    assert_eq!(updated(&frozen), Vec::<String>::new());
    // Batch statistics are means over the batch; a tower in evaluation has none.
    let batch_means = |model: &Model| {
        let graph = &model.programs["train"];
        let of_batch = |id| graph.origin(id).path.starts_with("visual") && graph.origin(id).path.contains("bn");
        graph.ids().filter(|id| of_batch(*id) && graph.node(*id).op.name() == "sum").count()
    };
    assert!(batch_means(&moving) > 0);
    assert_eq!(batch_means(&frozen), 0);
}

/// Selectors name state by path: of a part, of one inside of it, of the graph; nothing stops that is not named, and what is
/// named is computed as in evaluation, with what in it has no state.
#[test]
fn frozen_statistics_stop_what_is_named() {
    let mine = r#"[
        Module(name: "outer", inputs: { "x": "[N]" }, parts: { "inner": "counted()", "plain": "plain()" },
            state: { "n": (shape: "[]", init: "0") },
            body: ["n' = n + 1 if mode == 'train' else n", "y = inner(x) + plain(x) + n'"], outputs: ["y"]),
        Module(name: "counted", inputs: { "x": "[N]" }, state: { "n": (shape: "[]", init: "0") },
            body: ["n' = n + 1 if mode == 'train' else n", "y = 0 * x"], outputs: ["y"]),
        Module(name: "plain", inputs: { "x": "[N]" }, body: ["y = (2 if mode == 'train' else 1) * x"], outputs: ["y"]),
    ]"#;
    let graph = |selected: &[&str]| {
        let group = |select: &&str| format!(r#"(select: "{select}", frozen_statistics: true)"#);
        let groups: Vec<String> = selected.iter().map(group).collect();
        let spec = format!(
            r#"Graph(name: "g", use: ["mine", "optim/sgd", "schedule/constant"],
            inputs: {{ "x": (dtype: F32, shape: "[3]") }}, params: {{ "w": (shape: "[3]", init: "0") }},
            parts: {{ "outer": "outer()", "apart": "plain()" }}, state: {{ "n": (shape: "[]", init: "0") }},
            body: ["n' = n + 1 if mode == 'train' else n", "a = outer(x)", "b = apart(x)", "c = plain(x)",
                "loss = sum(a * w)"],
            metrics: {{ "inside": "sum(outer.plain.y)", "apart": "sum(b)", "by_name": "sum(c)", "n": "n'" }},
            train: (loss: "loss", optimizer: "sgd()", schedule: "constant(max_lr: 1)", groups: [{}]))"#,
            groups.join(", ")
        );
        build_with(&spec, &[("mine.ron", mine)])
    };
    // The next value of each state, and three times what modules without state see as the mode: 2 in training.
    let after = |selected: &[&str]| {
        let model = graph(selected);
        let graph = &model.programs["train"];
        let value = |id, x: f64| {
            let ty: alip_compiler::ir::TensorType = graph.ty(id).clone();
            Value::new(ty.clone(), vec![x; ty.shape.elements() as usize])
        };
        let inputs: BTreeMap<_, _> = graph.inputs.iter().map(|(name, id)| (name.clone(), value(*id, 1.0))).collect();
        let zero = |ty: &alip_compiler::ir::TensorType| Value::new(ty.clone(), vec![0.0; ty.shape.elements() as usize]);
        let state: BTreeMap<_, _> = model.state.iter().map(|(path, decl)| (path.clone(), zero(&decl.ty))).collect();
        let run = interpret(graph, &inputs, &state).expect("it runs");
        let next = ["n", "outer.n", "outer.inner.n"].map(|path| run.updates.get(path).map_or(0.0, |n| n.data[0]));
        let seen = ["inside", "apart", "by_name"].map(|metric| run.outputs[metric].data[0] / 3.0);
        assert_eq!(run.outputs["n"].data[0], next[0], "what is read is what is kept");
        (next, seen)
    };
    assert_eq!(after(&[]), ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]));
    assert_eq!(after(&["outer.n"]), ([1.0, 0.0, 1.0], [1.0, 2.0, 2.0]));
    assert_eq!(after(&["outer.inner.*"]), ([1.0, 1.0, 0.0], [2.0, 2.0, 2.0]));
    assert_eq!(after(&["outer.*"]), ([1.0, 0.0, 0.0], [1.0, 2.0, 2.0]));
    assert_eq!(after(&["n"]), ([0.0, 1.0, 1.0], [2.0, 2.0, 1.0]));
    assert_eq!(after(&["*"]), ([0.0, 0.0, 0.0], [1.0, 2.0, 1.0]));
}

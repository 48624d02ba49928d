//! Groups: captures in expressions, which group wins, and what stays of a frozen part.

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Model, Value, interpret};
use alip_compiler::resolve::{Options, resolve_source};
use alip_compiler::training::{Keep, add_update};

fn build(spec: &str) -> Model {
    let mut sources = SourceMap::new();
    let source = sources.add("spec.ron", spec);
    let built = resolve_source(&mut sources, source, &Options::default()).and_then(|mut resolved| {
        add_update(&mut resolved, Keep::default())?;
        Ok(resolved.model)
    });
    built.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)))
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

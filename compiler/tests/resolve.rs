//! Every graph of the house resolves to programs that verify, and has the parameters it should have.

use std::collections::BTreeMap;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::ir::{DType, TensorType, Value, interpret};
use alip_compiler::resolve::{Options, Resolved, graph_names, resolve};
use alip_compiler::training::{Keep, Training, training_step};
use alip_plan::{STATE_HALTED, STATE_LOSS_SCALE, StateKind};

fn build(graph: &str, options: &Options) -> Training {
    built(graph, options).1
}

fn built(graph: &str, options: &Options) -> (Resolved, Training) {
    let mut sources = SourceMap::new();
    let built = resolve(&mut sources, graph, options).and_then(|resolved| {
        let step = training_step(&resolved, resolved.model.clone(), Keep::default())?;
        Ok((resolved, step))
    });
    built.unwrap_or_else(|errors: Diagnostics| panic!("{graph}\n{}", errors.render(&sources, false)))
}

fn parameters(step: &Training) -> u64 {
    let params = step.model.state.values().filter(|decl| decl.kind == StateKind::Param);
    params.map(|decl| decl.ty.shape.elements()).sum()
}

#[test]
fn every_graph_resolves_to_a_step_over_its_whole_state() {
    for name in graph_names() {
        let (resolved, step) = built(&name, &Options { batch: Some(4), ..Options::default() });
        let warned: Vec<&str> =
            resolved.warnings.iter().chain(&step.warnings).map(|warning| warning.message.as_str()).collect();
        assert!(warned.is_empty(), "{name}: {warned:?}");
        let info = step.info.expect("it trains");
        assert_eq!((info.batch, info.loss.as_str()), (4, "loss"), "{name}");
        assert_eq!(
            info.metrics,
            resolved.spec.metrics.keys().map(|name| name.text.clone()).collect::<Vec<_>>(),
            "{name}"
        );
        let init = &step.model.programs["init"];
        let train = &step.model.programs["train"];
        for (path, decl) in &step.model.state {
            let first = init.updates.get(path).unwrap_or_else(|| panic!("{name}: {path} has no first value"));
            assert_eq!(init.ty(*first), &decl.ty, "{name}: {path}");
            let fixed = path == "train.total_steps" || path == "train.seed";
            assert_eq!(train.updates.contains_key(path), !fixed, "{name}: {path}");
        }
        for metric in resolved.spec.metrics.keys() {
            let node = train.outputs[metric.as_str()];
            assert_eq!(train.shape(node).rank(), 0, "{name}: {metric}");
        }
    }
}

#[test]
fn towers_have_as_many_parameters_as_published() {
    let published =
        [("alip_b32", 151_277_313), ("clip_b32", 151_277_313), ("alip_rn50", 100_695_905), ("alip_tiny", 199_233)];
    for (name, count) in published {
        assert_eq!(parameters(&build(name, &Options { batch: Some(2), ..Options::default() })), count, "{name}");
    }
}

#[test]
fn every_variant_differs_from_its_base_where_it_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/variants");
    let base = build("alip_shapes", &Options::default());
    let variant = |name: &str| build(&folder.join(format!("{name}.ron")).to_string_lossy(), &Options::default());
    // Same parameters or not, and whether the training step is another one.
    let table = [
        ("linear_gate", 0),
        ("quick_gelu", 0),
        ("gamma_1", 0),
        ("no_dcg", 0),
        ("sigmoid_loss", 2),
        // A block of width w has 12 w^2 + 13 w numbers.
        ("shallow_text", -(12 * 96 * 96 + 13 * 96)),
        ("frozen_image", 0),
        ("averaged_sgd", 0),
        ("half_precision", 0),
    ];
    for (name, more) in table {
        let resolved = variant(name);
        assert_eq!(parameters(&resolved) as i64 - parameters(&base) as i64, more, "{name}");
        assert_ne!(resolved.model.programs["train"], base.model.programs["train"], "{name}");
    }
    let count = std::fs::read_dir(&folder).expect("the folder is there");
    let files = count.filter_map(Result::ok).filter(|entry| entry.path().extension().is_some_and(|e| e == "ron"));
    assert_eq!(files.count(), table.len(), "every variant is in the table");
}

#[test]
fn groups_freeze_and_average() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/variants");
    let build = |name: &str| build(&folder.join(name).to_string_lossy(), &Options::default());
    let frozen = build("frozen_image.ron");
    let train = &frozen.model.programs["train"];
    for (path, decl) in frozen.model.state.iter().filter(|(_, decl)| decl.kind == StateKind::Param) {
        assert_eq!(decl.frozen, path.starts_with("visual."), "{path}");
        assert_eq!(train.updates.contains_key(path), !decl.frozen, "{path}");
        assert_eq!(frozen.model.state.contains_key(&format!("optimizer.m.{path}")), !decl.frozen, "{path}");
    }
    let averaged = build("averaged_sgd.ron");
    for (path, _) in averaged.model.state.iter().filter(|(_, decl)| decl.kind == StateKind::Param) {
        let kind = averaged.model.state[&format!("average.{path}")].kind;
        assert_eq!(kind, StateKind::Average, "{path}");
    }
}

/// An optimiser may take the learning rate as an input or as an argument; a group's own reaches both.
#[test]
fn a_group_has_its_own_learning_rate() {
    let graph = |module: &str, lr: &str| {
        let text = format!(
            r#"Graph(name: "g", use: ["nn", "plain", "schedule/constant"], inputs: {{ "x": (dtype: F32, shape: "[2, 3]") }},
            parts: {{ "f": "linear(3, 1)" }}, body: ["loss = mean(f(x))"],
            train: (loss: "loss", optimizer: "plain()", schedule: "constant(max_lr: 1e-3)", groups: [{lr}]))"#
        );
        let files = [("g.ron".to_owned(), text), ("plain.ron".to_owned(), module.to_owned())].into();
        build("g", &Options { files, ..Options::default() }).model
    };
    let by_argument = r#"Module(name: "plain", args: { "lr": 1.0 }, inputs: { "w": "[..S]", "g": "[..S]" },
        body: ["y = w - lr * g"], outputs: ["y"])"#;
    let by_input = r#"Module(name: "plain", inputs: { "w": "[..S]", "g": "[..S]", "lr": "[]" },
        body: ["y = w - lr * g"], outputs: ["y"])"#;
    for module in [by_argument, by_input] {
        // d loss / d bias is 1, so that a step takes the rate off it.
        let step = |lr: &str| {
            let model = graph(module, lr);
            let inputs = model.programs["train"].inputs.iter().map(|(name, id)| {
                let ty = model.programs["train"].ty(*id).clone();
                let count = ty.shape.elements() as usize;
                (name.clone(), Value::new(ty, vec![1.0; count]))
            });
            let state = model.state.iter().map(|(path, decl)| {
                let (count, one) = (decl.ty.shape.elements() as usize, f64::from(path != STATE_HALTED));
                (path.clone(), Value::new(decl.ty.clone(), vec![one; count]))
            });
            let (inputs, state) = (inputs.collect(), state.collect());
            interpret(&model.programs["train"], &inputs, &state).expect("it runs").updates["f.bias"].data[0]
        };
        assert_eq!(step(""), 1.0 - 1e-3, "{module}");
        assert_eq!(step(r#"(select: "*.bias", lr: "100 * lr")"#), 1.0 - 0.1, "{module}");
    }
}

/// A step is taken from the first state, with a gradient of this size, and then a good one.
fn check_halted(loss_scale: &str, size: f64, halts: bool) {
    let text = format!(
        r#"Graph(name: "g", use: ["optim/sgd", "optim/loss_scale", "schedule/constant"],
            inputs: {{ "g": (dtype: F32, shape: "[2]") }}, params: {{ "w": (shape: "[2]", init: "0") }},
            body: ["loss = sum(w * g)"],
            train: (loss: "loss", optimizer: "sgd()", schedule: "constant(max_lr: 0.1)" {loss_scale}))"#
    );
    let files = [("g.ron".to_owned(), text)].into();
    let resolved = build("g", &Options { files, ..Options::default() });
    let start = first_state(&resolved, 0.0);
    let step = |state: &BTreeMap<String, Value>, size: f64| {
        let inputs = [("g".to_owned(), Value::new(TensorType::f32([2]), vec![1.0, size]))].into();
        let updates = interpret(&resolved.model.programs["train"], &inputs, state).expect("it runs").updates;
        state.clone().into_iter().chain(updates).collect::<BTreeMap<_, _>>()
    };
    let moved = |from: &BTreeMap<String, Value>, to: &BTreeMap<String, Value>| -> Vec<String> {
        to.iter().filter(|(path, value)| from[*path] != **value).map(|(path, _)| path.clone()).collect()
    };
    let after = step(&start, size);
    let scale = (!loss_scale.is_empty()).then_some(STATE_LOSS_SCALE);
    let expected: Vec<&str> = scale.into_iter().chain(halts.then_some(STATE_HALTED)).collect();
    assert_eq!(moved(&start, &after), expected, "{loss_scale} {size}");
    // Nothing moves any more, until the flag is cleared.
    let mut good = step(&after, 2.0);
    assert_eq!(good == after, halts, "{loss_scale} {size}");
    let mut cleared = after.clone();
    cleared.insert(STATE_HALTED.into(), Value::scalar(DType::I32, 0.0));
    good = step(&cleared, 2.0);
    assert_eq!((&good["w"].data, &good["train.step"].data), (&vec![-0.1, -0.2], &vec![1.0]));
}

#[test]
fn what_no_loss_scale_excuses_halts() {
    // The norm overflows, the loss does not, since the weights are 0; times infinity they are NaN.
    check_halted("", 1e200, true);
    check_halted("", f64::INFINITY, true);
    let scale = |init: &str| format!(r#", loss_scale: "dynamic_loss_scale(init: {init})""#);
    check_halted(&scale("2"), 1e200, false);
    check_halted(&scale("2"), f64::INFINITY, true);
    check_halted(&scale("1"), 1e200, true);
}

#[test]
fn disk_files_win_over_embedded_ones_and_are_found_beside_the_spec() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gates = "Module(name: \"mine\", inputs: { \"x\": \"[..]\" }, body: [\"y = x * 2\"], outputs: [\"y\"])";
    std::fs::write(folder.path().join("gates.ron"), gates).expect("written");
    let graph = r#"Graph(name: "g", use: ["gates"], inputs: { "x": (dtype: F32, shape: "[4]") }, body: ["y = mine(x)"],
        programs: { "run": (inputs: ["x"], outputs: ["y"]) })"#;
    let path = folder.path().join("g.ron");
    std::fs::write(&path, graph).expect("written");
    let resolved = build(&path.to_string_lossy(), &Options::default());
    assert!(resolved.model.programs.contains_key("run"));
}

/// The first state of a model.
fn first_state(step: &Training, seed: f64) -> BTreeMap<String, Value> {
    let inputs = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, seed))]);
    interpret(&step.model.programs["init"], &inputs, &BTreeMap::new()).expect("init runs").updates
}

/// Root of the mean square.
fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn parameters_start_as_published() {
    let resolved = build("alip_tiny", &Options { set: vec!["train.ema.decay=0.9".into()], ..Options::default() });
    let state = first_state(&resolved, 7.0);
    // Normal: spread within four standard errors of what it should be. Widths are 64 (image) and 48 (text), 2 layers.
    let normal = [
        ("token_embedding.weight", 0.02),
        ("positional_embedding", 0.01),
        ("text_projection", 48f64.powf(-0.5)),
        ("transformer.resblocks.0.attn.in_proj_weight", 48f64.powf(-0.5)),
        ("transformer.resblocks.1.attn.out_proj.weight", 48f64.powf(-0.5) * 4f64.powf(-0.5)),
        ("transformer.resblocks.0.mlp.c_fc.weight", 96f64.powf(-0.5)),
        ("transformer.resblocks.0.mlp.c_proj.weight", 48f64.powf(-0.5) * 4f64.powf(-0.5)),
        ("visual.positional_embedding", 64f64.powf(-0.5)),
        ("visual.proj", 64f64.powf(-0.5)),
    ];
    for (path, std) in normal {
        let data = &state[path].data;
        let error = std / (2.0 * data.len() as f64).sqrt();
        assert!((rms(data) - std).abs() < 4.0 * error, "{path}: {} instead of {std}", rms(data));
        assert!(data.iter().any(|x| x.abs() > 2.5 * std), "{path} has tails");
    }
    let uniform = [
        ("visual.conv1.weight", 1.0 / (3.0 * 64f64).sqrt()),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", (6.0 / 256f64).sqrt()),
        ("visual.transformer.resblocks.0.attn.out_proj.weight", 1.0 / 8.0),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", 1.0 / 8.0),
        ("visual.transformer.resblocks.0.mlp.c_proj.bias", 1.0 / 16.0),
        ("transformer.resblocks.0.mlp.c_fc.bias", 48f64.powf(-0.5)),
    ];
    for (path, bound) in uniform {
        let largest = state[path].data.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{path}: {largest} of {bound}");
    }
    let constant = [
        ("logit_scale", (1.0 / 0.07f64).ln()),
        ("lcg.ema", 1.0),
        ("visual.transformer.resblocks.0.attn.in_proj_bias", 0.0),
        ("transformer.resblocks.0.attn.out_proj.bias", 0.0),
        ("visual.ln_pre.weight", 1.0),
        ("optimizer.v.visual.proj", 0.0),
        ("train.step", 0.0),
        ("train.seed", 7.0),
        ("train.halted", 0.0),
    ];
    for (path, value) in constant {
        assert!(state[path].data.iter().all(|x| (x - value).abs() < 1e-15), "{path}");
    }
    assert_eq!(state["average.visual.proj"], state["visual.proj"], "an average starts as its parameter");
    assert_eq!(first_state(&resolved, 7.0), state, "the same seed gives the same numbers");
    assert_ne!(first_state(&resolved, 8.0)["visual.proj"], state["visual.proj"], "another seed does not");
    assert_eq!(
        rms(&first_state(&build("alip_tiny_rn", &Options::default()), 0.0)["visual.layer1.0.bn3.weight"].data),
        0.0
    );
}

#[test]
fn types_of_parameters_and_states_are_checked() {
    let table = [
        ("params", "init: \"0\", dtype: Bool", "a parameter cannot be Bool", "parameters are F32, Bf16, F16 or I32"),
        ("state", "init: \"0\", dtype: U8", "a state cannot be U8", "states are F32, Bf16, F16, I32 or Bool"),
        ("params", "init: \"1e6\", dtype: F16", "1e6 is infinite in f16", "write 65504"),
        ("state", "init: \"normal(1)\", dtype: I32", "random numbers are floats, not i32", "the first value"),
    ];
    for (section, with, message, help) in table {
        let spec = format!(
            r#"Graph(name: "g", inputs: {{ "x": (dtype: F32, shape: "[2]") }}, {section}: {{ "w": (shape: "[2]", {with}) }},
            body: ["y = x + 0 * cast(w, 'f32')"], programs: {{ "f": (inputs: ["x"], outputs: ["y"]) }})"#
        );
        let spec = if section == "state" { spec.replace("body: [", "body: [\"w' = w\", ") } else { spec };
        let mut sources = SourceMap::new();
        let files = [("g.ron".to_owned(), spec)].into();
        let errors = resolve(&mut sources, "g", &Options { files, ..Options::default() }).expect_err(message);
        let text = errors.render(&sources, false);
        assert!(text.contains(message) && text.contains(help), "{text}");
    }
}

//! The whole-graph rewrites against the plain graph in f64: every output and every gradient of a training step.

mod batching;
mod noise;
mod projections;
mod push_down;
mod streaming;

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{
    Builder, DType, Graph, Model, NodeId, OriginId, TensorType, Value, interpret, verify, verify_model,
};
use alip_compiler::ops::{Op, ReduceKind};
use alip_compiler::resolve::{Options, resolve_source};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::packing::PACKING;
use alip_compiler::transform::{self, Applied, Disabled, Results};
use alip_plan::philox::philox4x32;
use alip_plan::{StateKind, Target};

/// Of the largest entry of a tensor: both sides are f64, with sums of a few thousand terms in another order.
const RELATIVE: f64 = 1e-12;
/// Gradients that are zero but for rounding (of key biases) have no larger entry to compare with.
const ABSOLUTE: f64 = 1e-15;

/// Towers that the counter-examples are built of.
const TOWERS: &str = r#"[
    Module(
        name: "centred",
        doc: "Two products, between which the batch is centred.",
        args: { "width": Int },
        inputs: { "x": "[N, width]" },
        params: { "v": (shape: "[width, width]", init: "normal(0.3)"), "w": (shape: "[width, width]", init: "normal(0.3)") },
        body: ["h = x @ v", "y = (h - mean(h, axis: 0, keep: true)) @ w"],
        outputs: ["y"],
    ),
    Module(
        name: "deep",
        doc: "The same product three times, one after the other.",
        args: { "width": Int },
        inputs: { "x": "[N, width]" },
        params: { "w": (shape: "[width, width]", init: "normal(0.3)"), "b": (shape: "[width]", init: "normal(0.3)") },
        body: ["h = tanh(x @ w + b)", "g = tanh(h @ w + b)", "y = tanh(g @ w + b)"],
        outputs: ["y"],
    ),
    Module(
        name: "reader",
        doc: "A transformer over tokens that is read at the end, at two positions of each sample, or everywhere.",
        use: ["nn", "activation", "attention"],
        args: { "read": Str, "mask": "none", "context": Int, "out": Int },
        inputs: { "tokens": (dtype: I32, shape: "[N, context]") },
        parts: { "token_embedding": "embedding(512, 32)", "transformer": "residual_stack(32, 2, 2, mask: mask)" },
        params: { "proj": (shape: "[32, out]", init: "normal(0.2)") },
        body: [
            "h = transformer(token_embedding(tokens))",
            "end = gather(h, argmax(tokens, axis: -1), axis: 1, batch: 1)",
            "two = mean(gather(h, tokens[:, 1:3], axis: 1, batch: 1), axis: 1)",
            "y = (end if read == 'end' else two if read == 'two' else mean(h, axis: 1)) @ proj",
        ],
        outputs: ["y"],
    ),
]"#;

/// A number in [0, 1).
fn uniform(tensor: usize, element: u64) -> f64 {
    f64::from(philox4x32([element as u32, tensor as u32, 0, 0], [7, 0])[0]) / 2f64.powi(32)
}

/// Images of unit size, and texts: a start, words, an end of text (the largest id), padding. Some have the end twice, some
/// none but padding, some begin with it.
fn inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let of = |(tensor, ty): (usize, &TensorType)| -> Vec<f64> {
        let row = ty.shape.0.last().map_or(1, |dim| dim.size);
        let number = |i: u64| {
            if ty.dtype.is_float() {
                return 2.0 * uniform(tensor, i) - 1.0;
            }
            let (text, at) = (i / row, i % row);
            let end = [row - 1, 0, 3, 5, row / 2][(text + tensor as u64) as usize % 5];
            match at {
                at if at == end || (at == end + 2 && text % 2 == 0) => 511.0,
                at if at > end => 0.0,
                _ => 1.0 + (uniform(tensor, i) * 500.0).floor(),
            }
        };
        (0..ty.shape.elements()).map(number).collect()
    };
    let types = graph.inputs.values().map(|id| graph.ty(*id)).enumerate();
    let values = types.map(|(tensor, ty)| Value::new(ty.clone(), of((tensor, ty))));
    graph.inputs.keys().cloned().zip(values).collect()
}

/// The initial state, parameters moved a little, so that nothing is zero or one by chance.
fn state(model: &Model) -> BTreeMap<String, Value> {
    let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
    let mut state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs").updates;
    let params = state.iter_mut().filter(|(path, _)| model.state[*path].kind == StateKind::Param);
    for (tensor, (_, value)) in params.enumerate() {
        let moved = |(i, x): (usize, &mut f64)| *x += 0.02 * (uniform(100 + tensor, i as u64) - 0.5);
        value.data.iter_mut().enumerate().for_each(moved);
    }
    state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
    state
}

/// A spec's programs with its training step, and what was rewritten.
fn model(spec: &str, lift: bool, disabled: &Disabled) -> (Model, Vec<Applied>) {
    let mut sources = SourceMap::new();
    let source = sources.add("spec.ron", spec);
    let files = BTreeMap::from([("towers.ron".to_owned(), TOWERS.to_owned())]);
    let options = Options { batch: Some(5), files, ..Options::default() };
    let resolved = resolve_source(&mut sources, source, &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let mut disabled = disabled.clone();
    disabled.0.insert(PACKING.into());
    let options = transform::Options { lift, disabled };
    let rewritten =
        transform::forward(&resolved, &options, &Target::cpu().packing).unwrap_or_else(|errors| panic!("{errors}"));
    let step = training_step(&resolved, rewritten.model, Keep { grads: true, values: false });
    let model = step.unwrap_or_else(|errors| panic!("{errors}")).model;
    verify_model(&model).unwrap_or_else(|errors| panic!("{errors}"));
    (model, rewritten.report.applied)
}

fn all_but(rewrites: &[&str]) -> Disabled {
    Disabled(transform::names().filter(|name| !rewrites.contains(name)).map(str::to_owned).collect())
}

fn assert_equal(what: &str, plain: &BTreeMap<String, Value>, rewritten: &BTreeMap<String, Value>) {
    assert_eq!(plain.keys().collect::<Vec<_>>(), rewritten.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in plain {
        let largest = value.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        for (a, b) in rewritten[name].data.iter().zip(&value.data) {
            assert!((a - b).abs() <= RELATIVE * largest + ABSOLUTE, "{what}: {name}: {a} was {b}");
        }
    }
}

/// Compares a spec with these rewrites, with semantic ops and without, to the spec without any: all programs, all outputs
/// and gradients. Yields what was rewritten in `train`, which but for streaming is the same for both.
fn check(spec: &str, rewrites: &[&str]) -> Vec<Applied> {
    let (as_written, lifted) = compare(spec, rewrites);
    // Streaming begins with the logsumexps that lifting finds.
    let places = |applied: &[Applied]| {
        let without = applied.iter().filter(|done| done.rewrite != "streaming");
        without.map(|done| (done.rewrite, done.places.clone())).collect::<Vec<_>>()
    };
    assert_eq!(places(&as_written), places(&lifted), "{spec}");
    lifted
}

/// The comparison alone; what was rewritten without semantic ops and with them.
fn compare(spec: &str, rewrites: &[&str]) -> (Vec<Applied>, Vec<Applied>) {
    let (plain, _) = model(spec, false, &all_but(&[]));
    let state = state(&plain);
    let run = |model: &Model| -> Vec<(String, BTreeMap<String, Value>)> {
        let programs = model.programs.iter().filter(|(name, _)| *name != "init");
        let run = |graph: &Graph| interpret(graph, &inputs(graph), &state).expect("the program runs").outputs;
        programs.map(|(name, graph)| (name.clone(), run(graph))).collect()
    };
    let expected = run(&plain);
    let rewritten = |lift: bool| {
        let (rewritten, applied) = model(spec, lift, &all_but(rewrites));
        assert_eq!(plain.state, rewritten.state, "{spec}");
        for ((name, plain), (_, rewritten)) in expected.iter().zip(run(&rewritten)) {
            assert_equal(&format!("{spec}: {name}, lift {lift}"), plain, &rewritten);
        }
        applied.into_iter().filter(|done| done.program == "train").collect::<Vec<_>>()
    };
    (rewritten(false), rewritten(true))
}

/// The places at which one rewrite alone was done in `train`.
fn places(spec: &str, rewrite: &str) -> Vec<String> {
    check(spec, &[rewrite]).into_iter().flat_map(|done| done.places).collect()
}

/// Compares a program and its gradients by all state with what one rewrite makes of it; none if it does nothing.
fn check_graph(graph: &Graph, rewrite: &str) -> Option<Graph> {
    let (rewritten, applied) =
        transform::rewrite(graph, &Results::default(), &all_but(&[rewrite])).expect("it rewrites");
    verify(&rewritten).unwrap_or_else(|errors| panic!("{errors}"));
    let floats = |(i, x): (u64, &mut f64)| *x = 2.0 * uniform(31, i) - 1.0;
    let value = |ty: &TensorType| {
        let mut data = vec![0.0; ty.shape.elements() as usize];
        match ty.dtype.is_float() {
            true => (0..).zip(&mut data).for_each(floats),
            // Two that are clamped, and some between.
            false => (0..).zip(&mut data).for_each(|(i, x)| *x = [2.0, 9.0, -1.0, 0.0][i % 4]),
        }
        Value::new(ty.clone(), data)
    };
    let inputs: BTreeMap<String, Value> =
        graph.inputs.iter().map(|(name, id)| (name.clone(), value(graph.ty(*id)))).collect();
    let states = |graph: &Graph| -> BTreeMap<String, NodeId> {
        let path = |id: NodeId| match &graph.node(id).op {
            Op::State { path, .. } => Some((path.to_string(), id)),
            _ => None,
        };
        graph.ids().filter_map(path).collect()
    };
    let state = states(graph).into_iter().map(|(path, id)| (path, value(graph.ty(id)))).collect();
    let run = |graph: &Graph| {
        let mut graph = graph.clone();
        let states = states(&graph);
        let outputs: Vec<NodeId> = graph.outputs.values().copied().collect();
        let mut b = Builder::new(&mut graph, OriginId::default());
        let mut loss = b.scalar(0.0).expect("a scalar");
        for y in outputs {
            let all: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
            let square = b.mul(y, y).expect("floats");
            let sum = b.reduce(ReduceKind::Sum, square, &all, false).expect("floats");
            loss = b.add(loss, sum).expect("scalars");
        }
        let wrt: Vec<NodeId> = states.values().copied().collect();
        let grads = gradients(&mut graph, loss, &wrt).expect("a scalar loss");
        let grads = states.keys().zip(grads).filter_map(|(path, grad)| Some((format!("grads.{path}"), grad?)));
        graph.outputs.extend(grads.collect::<Vec<_>>());
        interpret(&graph, &inputs, &state).expect("it runs").outputs
    };
    assert_equal(&graph.name, &run(graph), &run(&rewritten));
    (!applied.is_empty()).then_some(rewritten)
}

const NOTHING: [&str; 0] = [];

/// A graph like another one but for these entries.
fn variant(base: &str, entries: &str) -> String {
    format!("Graph(name: \"variant\", base: \"{base}\", {entries})")
}

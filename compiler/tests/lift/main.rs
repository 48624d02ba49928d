//! What `lift` finds, and that nothing changes by it: values and gradients of the lifted graph are those of the plain one.

mod attention;
mod norms;
#[path = "../steps/mod.rs"]
mod steps;

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, Value, interpret, verify, verify_model};
use alip_compiler::ops::{Op, ReduceKind};
use alip_compiler::resolve::{Options, resolve, resolve_source};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::{self, Disabled, Report, Rewritten};
use alip_plan::Target;
use steps::{Within, assert_close, first_state};

/// Both sides are sums of a few dozen terms in f64, in another order.
const WITHIN: Within = Within { relative: 1e-12, absolute: 1e-14 };

/// A spec of one program `f` of some inputs, with `y` as its output.
fn spec(inputs: &str, body: &[&str], outputs: &str) -> String {
    let body: Vec<String> = body.iter().map(|line| format!("\"{line}\",")).collect();
    let named: Vec<&str> = inputs.split(", ").filter_map(|input| input.split(':').next()).collect();
    let inputs: Vec<String> = inputs
        .split(", ")
        .map(|input| input.split_once(": ").expect("NAME: SIZE x SIZE"))
        .map(|(name, sizes)| {
            let (dtype, sizes) = match sizes.strip_prefix("i32 ") {
                Some(sizes) => ("I32", sizes),
                None => ("F32", sizes),
            };
            format!("\"{name}\": (dtype: {dtype}, shape: \"[{}]\"),", sizes.replace('x', ", "))
        })
        .collect();
    let names: Vec<String> = named.iter().map(|name| format!("\"{name}\"")).collect();
    let outputs: Vec<String> = outputs.split(", ").map(|name| format!("\"{name}\"")).collect();
    format!(
        "Graph(name: \"t\", use: [\"nn\", \"activation\", \"attention\", \"losses\"], inputs: {{ {} }}, body: [ {} ], \
         programs: {{ \"f\": (inputs: [{}], outputs: [{}]) }})",
        inputs.join(" "),
        body.join(" "),
        names.join(", "),
        outputs.join(", ")
    )
}

fn program(spec: &str, lift: bool) -> (Graph, Report) {
    let mut sources = SourceMap::new();
    let id = sources.add("spec", spec);
    let resolved = resolve_source(&mut sources, id, &Options::default());
    let resolved = resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let options = transform::Options { lift, disabled: Disabled::all() };
    let Rewritten { model, report, .. } =
        transform::forward(&resolved, &options, &Target::cpu().packing).unwrap_or_else(|errors| panic!("{errors}"));
    let graph = model.programs["f"].clone();
    verify(&graph).unwrap_or_else(|errors| panic!("{errors}"));
    (graph, report)
}

/// Floats of either sign below 1, in no order; integers from 0 to 4.
fn some(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |seed: u64, ty: &alip_compiler::ir::TensorType| {
        let number = |i: u64| ((i + 17 * seed) * 7919 % 1009) as f64;
        let of = |i: u64| if ty.dtype == DType::I32 { number(i) % 5.0 } else { number(i) / 504.0 - 1.0 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    graph.inputs.iter().enumerate().map(|(i, (name, id))| (name.clone(), value(i as u64, graph.ty(*id)))).collect()
}

/// Adds gradients of `sum(y * y)` over all outputs with respect to all float inputs, as outputs.
fn differentiated(mut graph: Graph) -> Graph {
    let outputs: Vec<NodeId> = graph.outputs.values().copied().collect();
    let variables: Vec<(String, NodeId)> = graph.inputs.iter().map(|(name, id)| (name.clone(), *id)).collect();
    let variables: Vec<_> = variables.into_iter().filter(|(_, id)| graph.ty(*id).dtype.is_float()).collect();
    let origin = graph.node(outputs[0]).origin;
    let mut b = Builder::new(&mut graph, origin);
    let mut loss = b.scalar(0.0).unwrap();
    for y in outputs {
        let square = b.mul(y, y).unwrap();
        let axes: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
        let sum = b.reduce(ReduceKind::Sum, square, &axes, false).unwrap();
        loss = b.add(loss, sum).unwrap();
    }
    let ids: Vec<NodeId> = variables.iter().map(|(_, id)| *id).collect();
    let found = gradients(&mut graph, loss, &ids).unwrap();
    for ((name, _), grad) in variables.iter().zip(found) {
        graph.outputs.insert(format!("grad {name}"), grad.unwrap_or_else(|| panic!("no gradient of {name}")));
    }
    graph
}

/// Lifts a spec, compares values and gradients with the plain program, and gives what the report says in short.
fn lifted(name: &str, spec: &str) -> (Graph, String) {
    let (plain, _) = program(spec, false);
    let (graph, report) = program(spec, true);
    let inputs = some(&plain);
    let run = |graph: &Graph| interpret(&differentiated(graph.clone()), &inputs, &BTreeMap::new()).unwrap().outputs;
    let (expected, found) = (run(&plain), run(&graph));
    assert_close(name, &expected, &found, WITHIN);
    let lifted = report.lifted.iter().map(|lifted| lifted.what.to_owned());
    let missed = report.missed.iter().map(|missed| format!("no {}: {}", missed.like, missed.why));
    (graph, lifted.chain(missed).collect::<Vec<_>>().join("; "))
}

fn count(graph: &Graph, wanted: impl Fn(&Op) -> bool) -> usize {
    graph.nodes().iter().filter(|node| wanted(&node.op)).count()
}

/// The towers of a whole model: everything it trains on is the same with attention lifted.
#[test]
fn a_training_step_stays_the_same() {
    let step = |lift: bool| {
        let mut sources = SourceMap::new();
        let resolved = resolve(&mut sources, "alip_tiny", &Options::default()).unwrap();
        let options = transform::Options { lift, disabled: Disabled::all() };
        let Rewritten { model, report, .. } = transform::forward(&resolved, &options, &Target::cpu().packing).unwrap();
        let step = training_step(&resolved, model, Keep { grads: true, values: true }).unwrap();
        (step.model, report)
    };
    let ((plain, _), (lifted, report)) = (step(false), step(true));
    // Three towers of two layers.
    let in_train = report.lifted.iter().filter(|lifted| lifted.what == "attention" && lifted.program == "train");
    assert_eq!(in_train.count(), 6);
    // Two per layer, one before and one after the image tower, one after each text tower.
    let norms = report.lifted.iter().filter(|lifted| lifted.what == "layer_norm" && lifted.program == "train");
    assert_eq!(norms.count(), 2 * 6 + 4);
    assert_eq!(report.missed, []);
    verify_model(&lifted).unwrap();
    let state = first_state(&plain);
    for (program, graph) in plain.programs.iter().filter(|(name, _)| *name != "init") {
        let inputs = some(graph);
        let run = |graph: &Graph| interpret(graph, &inputs, &state).unwrap();
        let (expected, found) = (run(graph), run(&lifted.programs[program]));
        // Metrics, named values and gradients; the optimiser makes steps of the rounding that is all the gradient of a key's
        // bias has.
        assert_close(program, &expected.outputs, &found.outputs, WITHIN);
    }
}

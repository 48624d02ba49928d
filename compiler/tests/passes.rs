//! Passes over whole training steps: verified, smaller, the same values, readable back from text.

use std::collections::BTreeMap;
use std::time::Instant;

use alip_compiler::autodiff::gradients;
use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{
    Builder, DType, Graph, Model, NodeId, OriginId, Simplified, StopGradients, TensorType, Value, interpret, parse,
    print, simplify, verify, verify_model,
};
use alip_compiler::ops::{Op, ScalarOp};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::schedule::{ScheduleOptions, join_sums, normal_form, recompute, schedule};
use alip_plan::Target;

fn trained(name: &str) -> Model {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, name, &Options::default());
    let mut resolved = resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    add_update(&mut resolved, Keep { grads: true, values: true }).unwrap_or_else(|errors| panic!("{errors}"));
    resolved.model
}

/// Some inputs of the right types: floats in [-1, 1), small token ids.
fn some_inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |ty: &TensorType| {
        let number = |i: u64| (i * 7919 % 1000) as f64;
        let of = |i: u64| if ty.dtype.is_float() { number(i) / 500.0 - 1.0 } else { number(i) % 300.0 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    graph.inputs.iter().map(|(name, id)| (name.clone(), value(graph.ty(*id)))).collect()
}

fn assert_close(expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, value) in expected {
        let largest = value.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        for (a, b) in found[name].data.iter().zip(&value.data) {
            // Rounding of f64 over sums of thousands of terms; key biases have gradients that are nothing else.
            assert!((a - b).abs() <= 1e-11 * largest + 1e-13, "{name}: {a} was {b}");
        }
    }
}

#[test]
fn a_simplified_training_step_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name);
        verify_model(&model).unwrap();
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
        let mut state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).unwrap().updates;
        // A schedule without steps has no learning rate.
        state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
        for (program, graph) in &model.programs {
            let Simplified { graph: simple, .. } = simplify(graph, StopGradients::Drop).unwrap();
            verify(&simple).unwrap();
            assert!(simple.nodes().len() < graph.nodes().len(), "{name} {program} did not get smaller");
            let text = print(&simple);
            assert_eq!(print(&parse(&text).unwrap()), text, "{name} {program}");
            let inputs = if program == "init" { seed.clone() } else { some_inputs(graph) };
            let state = if program == "init" { BTreeMap::new() } else { state.clone() };
            let start = Instant::now();
            let before = interpret(graph, &inputs, &state).unwrap();
            let time = start.elapsed();
            let after = interpret(&simple, &inputs, &state).unwrap();
            println!("{name} {program}: {} nodes to {}, {time:?}", graph.nodes().len(), simple.nodes().len());
            assert_close(&before.outputs, &after.outputs);
            assert_close(&before.updates, &after.updates);
        }
    }
}

#[test]
fn a_step_with_joined_sums_is_the_same_step() {
    for (name, fewest) in [("alip_tiny", 60), ("alip_tiny_rn", 60)] {
        let mut sources = SourceMap::new();
        let mut resolved = resolve(&mut sources, name, &Options::default()).unwrap();
        add_update(&mut resolved, Keep::default()).unwrap();
        let graph = &resolved.model.programs["train"];
        let joined = join_sums(graph, &Target::cpu()).unwrap();
        verify(&joined).unwrap();
        let is_concat = |id: &NodeId| matches!(joined.node(*id).op, Op::Concat { axis: 0 });
        let parts = joined.ids().filter(is_concat).map(|id| joined.node(id).inputs.len()).max();
        assert!(parts.is_some_and(|parts| parts >= fewest), "{name}: {parts:?} gradients joined");
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
        let mut state = interpret(&resolved.model.programs["init"], &seed, &BTreeMap::new()).unwrap().updates;
        state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
        let inputs = some_inputs(graph);
        let [before, after] = [graph, &joined].map(|graph| interpret(graph, &inputs, &state).unwrap());
        assert_close(&before.outputs, &after.outputs);
        assert_close(&before.updates, &after.updates);
    }
}

#[test]
fn a_step_that_computes_values_again_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name);
        let target = Target::cpu();
        let graph = normal_form(&model.programs["train"], &target, ScheduleOptions::default()).unwrap();
        let again = recompute(&schedule(&graph, &target, ScheduleOptions::default())).unwrap();
        let again = again.expect("a gelu is worth it");
        verify(&again).unwrap();
        let erfs = |graph: &Graph| graph.nodes().iter().filter(|node| node.op == Op::Pointwise(ScalarOp::Erf)).count();
        println!("{name}: {} of {} erf again", erfs(&again) - erfs(&graph), erfs(&graph));
        assert!(erfs(&again) > erfs(&graph), "{name}");
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
        let mut state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).unwrap().updates;
        state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
        let inputs = some_inputs(&graph);
        let [before, after] = [&graph, &again].map(|graph| interpret(graph, &inputs, &state).unwrap());
        assert_eq!((before.outputs, before.updates), (after.outputs, after.updates), "{name}: the same bits");
    }
}

#[test]
fn differentiation_is_linear_in_the_size_of_the_graph() {
    let mut graph = Graph::new("long");
    let start = Instant::now();
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([4, 8])).unwrap();
    let w = b.state("w", TensorType::f32([8, 8])).unwrap();
    let mut y = x;
    for _ in 0..2500 {
        let product = b.matmul(y, w).unwrap();
        let squashed = b.tanh(product).unwrap();
        y = b.add(y, squashed).unwrap();
        y = b.neg(y).unwrap();
    }
    let loss = b.mean(y, &[0, 1], false).unwrap();
    let forward = graph.nodes().len();
    let found = gradients(&mut graph, loss, &[w]).unwrap();
    assert!(found[0].is_some());
    let backward = graph.nodes().len() - forward;
    println!("{forward} nodes and {backward} of gradients in {:?}", start.elapsed());
    // Per layer: two products, tanh's slope, an addition where paths join, with constants and their broadcasts.
    assert!(backward < 4 * forward, "{backward} nodes of gradients for {forward}");
    let start = Instant::now();
    let simple = simplify(&graph, StopGradients::Drop).unwrap().graph;
    println!("simplified in {:?}", start.elapsed());
    assert!(simple.nodes().len() < graph.nodes().len());
}

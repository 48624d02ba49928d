//! Passes over whole training steps: verified, smaller, the same values, readable back from text.

mod steps;

use std::collections::BTreeMap;
use std::time::Instant;

use alip_compiler::autodiff::gradients;
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{
    Builder, Graph, NodeId, OriginId, Simplified, StopGradients, TensorType, interpret, parse, print, simplify, verify,
    verify_model,
};
use alip_compiler::ops::{Op, ScalarOp};
use alip_compiler::schedule::{Neighbours, ScheduleOptions, join_sums, normal_form, recompute, schedule};
use alip_compiler::training::Keep;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::Target;
use steps::{Within, assert_close, first_state, seed, some_inputs, trained};

const ALL: Keep = Keep { grads: true, values: true };
/// Rounding of f64 over sums of thousands of terms.
const WITHIN: Within = Within { relative: 1e-11, absolute: 1e-13 };

#[test]
fn a_simplified_training_step_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name, ALL);
        verify_model(&model).unwrap();
        let state = first_state(&model);
        for (program, graph) in &model.programs {
            let Simplified { graph: simple, .. } = simplify(graph, StopGradients::Drop).unwrap();
            verify(&simple).unwrap();
            assert!(simple.nodes().len() < graph.nodes().len(), "{name} {program} did not get smaller");
            let text = print(&simple);
            assert_eq!(print(&parse(&text).unwrap()), text, "{name} {program}");
            let inputs = if program == "init" { seed() } else { some_inputs(graph) };
            let state = if program == "init" { BTreeMap::new() } else { state.clone() };
            let start = Instant::now();
            let before = interpret(graph, &inputs, &state).unwrap();
            let time = start.elapsed();
            let after = interpret(&simple, &inputs, &state).unwrap();
            println!("{name} {program}: {} nodes to {}, {time:?}", graph.nodes().len(), simple.nodes().len());
            let what = format!("{name} {program}");
            assert_close(&what, &before.outputs, &after.outputs, WITHIN);
            assert_close(&what, &before.updates, &after.updates, WITHIN);
        }
    }
}

#[test]
fn a_step_with_joined_sums_is_the_same_step() {
    for (name, fewest) in [("alip_tiny", 60), ("alip_tiny_rn", 60)] {
        let model = trained(name, Keep::default());
        let graph = &model.programs["train"];
        let joined = join_sums(graph, &Target::cpu()).unwrap();
        verify(&joined).unwrap();
        let is_concat = |id: &NodeId| matches!(joined.node(*id).op, Op::Concat { axis: 0 });
        let parts = joined.ids().filter(is_concat).map(|id| joined.node(id).inputs.len()).max();
        assert!(parts.is_some_and(|parts| parts >= fewest), "{name}: {parts:?} gradients joined");
        let state = first_state(&model);
        let inputs = some_inputs(graph);
        let [before, after] = [graph, &joined].map(|graph| interpret(graph, &inputs, &state).unwrap());
        assert_close(name, &before.outputs, &after.outputs, WITHIN);
        assert_close(name, &before.updates, &after.updates, WITHIN);
    }
}

#[test]
fn a_step_that_computes_values_again_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name, ALL);
        let target = Target::cpu();
        let graph = normal_form(&model.programs["train"], &target, ScheduleOptions::default()).unwrap();
        let options = ScheduleOptions::default();
        let again = recompute(&schedule(&graph, &Neighbours::default(), &target, options).unwrap(), options).unwrap();
        let again = again.expect("a gelu is worth it").graph;
        verify(&again).unwrap();
        let erfs = |graph: &Graph| graph.nodes().iter().filter(|node| node.op == Op::Pointwise(ScalarOp::Erf)).count();
        println!("{name}: {} of {} erf again", erfs(&again) - erfs(&graph), erfs(&graph));
        assert!(erfs(&again) > erfs(&graph), "{name}");
        let state = first_state(&model);
        let inputs = some_inputs(&graph);
        let [before, after] = [&graph, &again].map(|graph| interpret(graph, &inputs, &state).unwrap());
        assert_eq!((before.outputs, before.updates), (after.outputs, after.updates), "{name}: the same bits");
    }
}

#[test]
fn what_is_computed_again_is_computed_late_and_beside_what_reads_the_same() {
    let mut sources = SourceMap::new();
    let compile = CompileOptions { dump: vec!["schedule".into()], ..CompileOptions::default() };
    let options = SpecOptions { compile, ..SpecOptions::default() };
    let compiled = compile_spec(&mut sources, "alip_tiny", &options).unwrap();
    let (_, table) = compiled.dumps.iter().find(|(name, _)| name == "schedule train").expect("it was asked for");
    let lines: Vec<&str> = table.lines().collect();
    // The hidden layer of the image tower: 8 samples, 17 positions, 256 wide. Its gelu has no kernel of its own.
    assert!(!lines.iter().any(|line| line.starts_with("map [8, 17, 256]")), "{table}");
    // A product that stores two values: before the gelu and after it, and the slope's with the gelu again.
    let stores_two = |line: &&str| line.split(" -> ").last().is_some_and(|stores| stores.split(' ').count() == 2);
    let places: Vec<usize> =
        (0..lines.len()).filter(|at| lines[*at].starts_with("product [136, 256]") && stores_two(&lines[*at])).collect();
    assert!(places.len() == 2 && places[1] > lines.len() / 3, "{places:?} of {}", lines.len());
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

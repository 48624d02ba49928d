//! The optimiser on whole training steps: the same values, the same text each time, rules that can be left out.

use std::collections::BTreeMap;

use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Graph, Model, TensorType, Value, interpret, print, verify};
use alip_compiler::optimize::{OptimizeOptions, Optimizer, optimize, rule_names};
use alip_compiler::resolve::{Options, resolve};
use alip_plan::Target;

fn trained(name: &str) -> Model {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, name, &Options::default());
    let mut resolved = resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    add_update(&mut resolved, Keep { grads: true, values: true }).unwrap_or_else(|errors| panic!("{errors}"));
    resolved.model
}

fn all_rules() -> OptimizeOptions {
    OptimizeOptions { enabled: true, ..OptimizeOptions::default() }
}

/// Floats in [-1, 1), small token ids; no two inputs are equal, since the gate of equal texts is a tie that rounding decides.
fn some_inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |input: usize, ty: &TensorType| {
        let number = |i: u64| ((i * 7919 + 131 * input as u64) % 1000) as f64;
        let of = |i: u64| if ty.dtype.is_float() { number(i) / 500.0 - 1.0 } else { number(i) % 300.0 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    let inputs = graph.inputs.iter().enumerate();
    inputs.map(|(input, (name, id))| (name.clone(), value(input, graph.ty(*id)))).collect()
}

fn assert_close(what: &str, expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in expected {
        let largest = value.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        for (a, b) in found[name].data.iter().zip(&value.data) {
            // Rounding of f64 over sums of thousands of terms; key biases have gradients that are nothing else.
            assert!((a - b).abs() <= 1e-9 * largest + 1e-12, "{what}: {name} is {a} and was {b}");
        }
    }
}

#[test]
fn an_optimised_training_step_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name);
        let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
        let mut state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).unwrap().updates;
        state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
        let mut optimizer = Optimizer::new(&Target::cpu(), &all_rules()).unwrap();
        for (program, graph) in &model.programs {
            let optimized = optimizer.optimize(graph).unwrap_or_else(|errors| panic!("{errors}"));
            verify(&optimized.graph).unwrap();
            let (before, after) = optimized.report.cost;
            println!(
                "{name} {program}: {} regions, {} distinct, {:.3} ms to {:.3} ms, {} rules taken",
                optimized.report.regions,
                optimized.report.distinct,
                before.seconds * 1e3,
                after.seconds * 1e3,
                optimized.report.fired.len(),
            );
            assert!(after.seconds <= before.seconds, "{name} {program}");
            let inputs = if program == "init" { seed.clone() } else { some_inputs(graph) };
            let state = if program == "init" { BTreeMap::new() } else { state.clone() };
            let what = format!("{name} {program}");
            let expected = interpret(graph, &inputs, &state).unwrap();
            let found = interpret(&optimized.graph, &inputs, &state).unwrap();
            assert_close(&what, &expected.outputs, &found.outputs);
            assert_close(&what, &expected.updates, &found.updates);
        }
    }
}

#[test]
fn the_same_graph_gives_the_same_text_and_each_region_is_done_once() {
    let model = trained("alip_tiny");
    let graph = &model.programs["train"];
    let once = optimize(graph, &Target::cpu(), &all_rules()).unwrap();
    let again = optimize(graph, &Target::cpu(), &all_rules()).unwrap();
    assert_eq!(print(&once.graph), print(&again.graph));
    assert_eq!(once.report, again.report);
    let mut optimizer = Optimizer::new(&Target::cpu(), &all_rules()).unwrap();
    optimizer.optimize(graph).unwrap();
    let known = optimizer.optimize(graph).unwrap();
    assert_eq!((known.report.distinct, print(&known.graph)), (0, print(&once.graph)));
}

#[test]
fn rules_and_themes_can_be_left_out() {
    let model = trained("alip_tiny");
    let graph = &model.programs["train"];
    let without = |names: &[&str]| OptimizeOptions {
        without: names.iter().map(|name| (*name).to_owned()).collect(),
        ..all_rules()
    };
    let all = optimize(graph, &Target::cpu(), &all_rules()).unwrap();
    let themes: Vec<&str> = rule_names().iter().map(|(theme, _)| *theme).collect();
    let none = optimize(graph, &Target::cpu(), &without(&themes)).unwrap();
    assert!(!all.report.fired.is_empty() && none.report.fired.is_empty());
    let (some, _) = all.report.applied.iter().next().unwrap();
    let less = optimize(graph, &Target::cpu(), &without(&[some])).unwrap();
    assert!(!less.report.applied.contains_key(some));
    let error = optimize(graph, &Target::cpu(), &without(&["mul-won"])).expect_err("no such rule");
    let text = error.render(&SourceMap::new(), false);
    assert!(text.contains("no rule or theme of rules is named `mul-won`"), "{text}");
    assert!(text.contains("did you mean `mul-one`?"), "{text}");
}

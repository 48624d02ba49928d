//! The optimiser on whole training steps: the same values, the same text each time, rules that can be left out.

mod steps;

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{interpret, print, verify};
use alip_compiler::optimize::{Kept, OptimizeOptions, Optimizer, optimize, rule_names};
use alip_compiler::training::Keep;
use alip_plan::Target;
use steps::{Within, assert_close, first_state, seed, some_inputs, trained};

const ALL: Keep = Keep { grads: true, values: true };
/// Rounding of f64 where rules change the order of sums and products.
const WITHIN: Within = Within { relative: 1e-9, absolute: 1e-12 };

fn all_rules() -> OptimizeOptions {
    OptimizeOptions { enabled: true, ..OptimizeOptions::default() }
}

#[test]
fn an_optimised_training_step_is_the_same_step() {
    for name in ["alip_tiny", "alip_tiny_rn"] {
        let model = trained(name, ALL);
        let state = first_state(&model);
        let mut optimizer = Optimizer::new(&Target::cpu(), &all_rules()).unwrap();
        for (program, graph) in &model.programs {
            let optimized = optimizer.optimize(graph, &Kept::All).unwrap_or_else(|errors| panic!("{errors}"));
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
            let inputs = if program == "init" { seed() } else { some_inputs(graph) };
            let state = if program == "init" { BTreeMap::new() } else { state.clone() };
            let what = format!("{name} {program}");
            let expected = interpret(graph, &inputs, &state).unwrap();
            let found = interpret(&optimized.graph, &inputs, &state).unwrap();
            assert_close(&what, &expected.outputs, &found.outputs, WITHIN);
            assert_close(&what, &expected.updates, &found.updates, WITHIN);
        }
    }
}

#[test]
fn the_same_graph_gives_the_same_text_and_each_region_is_done_once() {
    let model = trained("alip_tiny", ALL);
    let graph = &model.programs["train"];
    let once = optimize(graph, &Target::cpu(), &all_rules()).unwrap();
    let again = optimize(graph, &Target::cpu(), &all_rules()).unwrap();
    assert_eq!(print(&once.graph), print(&again.graph));
    assert_eq!(once.report, again.report);
    let mut optimizer = Optimizer::new(&Target::cpu(), &all_rules()).unwrap();
    optimizer.optimize(graph, &Kept::All).unwrap();
    let known = optimizer.optimize(graph, &Kept::All).unwrap();
    assert_eq!((known.report.distinct, print(&known.graph)), (0, print(&once.graph)));
}

#[test]
fn rules_and_themes_can_be_left_out() {
    let model = trained("alip_tiny", ALL);
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

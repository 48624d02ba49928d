//! What the e-graph is worth: no program pays for it, and what is written as several projections costs what one costs.

use std::collections::{BTreeMap, BTreeSet};

use alip_compiler::diag::SourceMap;
use alip_compiler::optimize::{OptimizeOptions, rule_names};
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::{ProgramReport, Report, Target};

fn compiled(spec: &str, options: Options, optimize: OptimizeOptions) -> Report {
    let compile = CompileOptions { optimize, ..CompileOptions::default() };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, spec, &SpecOptions { spec: options, compile, ..SpecOptions::default() });
    compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).plan.expect("a plan").report
}

fn report(spec: &str, options: Options, enabled: bool) -> Report {
    compiled(spec, options, OptimizeOptions { enabled, ..OptimizeOptions::default() })
}

#[test]
fn no_program_takes_longer_and_more_launches_are_paid_for() {
    for spec in ["alip_tiny", "alip_tiny_rn", "alip_shapes", "clip_shapes", "alip_b32"] {
        let options = Options { batch: Some(16), ..Options::default() };
        let [without, with] = [false, true].map(|egraph| report(spec, options.clone(), egraph).programs);
        for (name, program) in &with {
            let written = &without[name];
            let more = program.launches.saturating_sub(written.launches) as f64;
            let rates = Target::cpu().rates;
            let dear = more * rates.dear_launch * rates.launch;
            let seconds = (program.predicted_seconds, written.predicted_seconds);
            assert!(seconds.0 + dear <= seconds.1, "{spec} {name}: {program:?}, was {written:?}");
        }
        assert_ne!(with, without, "{spec}: the e-graph changes nothing");
    }
}

/// Every theme of rules, with a graph that ships and is another without it: the smallest found.
const THEMES: &[(&str, &str)] = &[
    ("algebra", "alip_tiny"),
    ("layout", "alip_rn50"),
    ("scale", "alip_tiny"),
    ("reduce", "alip_rn50"),
    ("concat", "alip_rn50"),
    ("conv", "alip_tiny_rn"),
];

#[test]
fn every_theme_changes_a_graph_that_ships() {
    let mut with = BTreeMap::new();
    let options = Options { batch: Some(16), ..Options::default() };
    for (theme, spec) in THEMES {
        let all = with.entry(spec).or_insert_with(|| report(spec, options.clone(), true).programs);
        let optimize = OptimizeOptions { without: BTreeSet::from([(*theme).to_owned()]), ..OptimizeOptions::default() };
        let less = compiled(spec, options.clone(), optimize).programs;
        let of = |program: &ProgramReport| (program.launches, program.flops, program.predicted_seconds);
        let changed: Vec<&String> = all.keys().filter(|name| of(&all[*name]) != of(&less[*name])).collect();
        println!("{theme}: {changed:?} of {spec}");
        assert!(!changed.is_empty(), "{theme} changes nothing in {spec}");
    }
    let tested: BTreeSet<&str> = THEMES.iter().map(|(theme, _)| *theme).collect();
    assert_eq!(tested, rule_names().iter().map(|(theme, _)| *theme).collect());
}

/// Attention whose queries, keys and values are parts of one projection, or three projections.
fn attention(projections: &str, [q, k, v]: [&str; 3]) -> String {
    format!(
        r#"Graph(
    name: "projections",
    use: ["nn", "optim/adamw", "schedule/constant"],
    dims: {{ "B": Batch(64), "L": 50, "D": 256 }},
    inputs: {{ "x": (dtype: F32, shape: "[B, L, D]") }},
    parts: {{ {projections}, "out": "linear(D, D)" }},
    body: [
        "a = rearrange({q}, 'n l (h d) -> n h l d', h: 4)",
        "b = rearrange({k}, 'n l (h d) -> n h d l', h: 4)",
        "c = rearrange({v}, 'n l (h d) -> n h l d', h: 4)",
        "y = out(rearrange(softmax(a @ b / 8) @ c, 'n h l d -> n l (h d)'))",
        "loss = mean(y * y)",
    ],
    programs: {{ "f": (inputs: ["x"], outputs: ["y"]) }},
    metrics: {{ "loss": "loss" }},
    train: (loss: "loss", optimizer: "adamw()", schedule: "constant(max_lr: 1e-3)"),
)"#
    )
}

fn of_spec(text: String) -> [ProgramReport; 2] {
    let files = [("projections.ron".to_owned(), text)].into();
    let programs = report("projections", Options { files, ..Options::default() }, true).programs;
    ["f", "train"].map(|name| programs[name].clone())
}

#[test]
fn three_projections_cost_what_one_does() {
    let one = of_spec(attention(
        r#""qkv": "linear(D, 3 * D)""#,
        ["qkv(x)[:, :, 0:D]", "qkv(x)[:, :, D:2 * D]", "qkv(x)[:, :, 2 * D:3 * D]"],
    ));
    let three = of_spec(attention(
        r#""q": "linear(D, D)", "k": "linear(D, D)", "v": "linear(D, D)""#,
        ["q(x)", "k(x)", "v(x)"],
    ));
    for (one, three) in one.iter().zip(&three) {
        assert_eq!((one.flops, one.launches, one.bytes), (three.flops, three.launches, three.bytes));
        assert!(three.predicted_seconds <= one.predicted_seconds, "{three:?}, packed {one:?}");
    }
}

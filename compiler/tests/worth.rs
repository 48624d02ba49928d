//! What the e-graph is worth: no program pays for it, and what is written as several projections costs what one costs.

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::{ProgramReport, Report};

fn report(spec: &str, options: Options, egraph: bool) -> Report {
    let mut compile = CompileOptions::default();
    compile.optimize.enabled = egraph;
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, spec, &SpecOptions { spec: options, compile, ..SpecOptions::default() });
    compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).plan.expect("a plan").report
}

#[test]
fn no_program_gets_more_launches_or_takes_longer() {
    for spec in ["alip_tiny", "alip_tiny_rn", "alip_shapes", "clip_shapes", "alip_b32"] {
        let options = Options { batch: Some(16), ..Options::default() };
        let [without, with] = [false, true].map(|egraph| report(spec, options.clone(), egraph).programs);
        for (name, program) in &with {
            let written = &without[name];
            assert!(program.launches <= written.launches, "{spec} {name}: {program:?}, was {written:?}");
            let seconds = (program.predicted_seconds, written.predicted_seconds);
            assert!(seconds.0 <= seconds.1, "{spec} {name}: {} s, was {} s", seconds.0, seconds.1);
        }
        assert_ne!(with, without, "{spec}: the e-graph changes nothing");
    }
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

//! Every graph in `graphs/`, made small: the step that is scheduled with everything on is the step that was written.
//!
//! Both in f64, where the order of sums is all that may differ: outputs, gradients and new states of the graph as written, and
//! of the one that is lifted, rewritten, packed for the batch, fused and laid out. What devices compute of it is judged kernel
//! by kernel, within derived bounds, in `runtime/tests/every_graph.rs`.

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Model, interpret, name_with_rows};
use alip_compiler::resolve::{Options, graph_names, resolve};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::trust::rows::chosen;
use alip_compiler::{CompileOptions, CompiledSpec, SpecOptions, compile_spec};
use alip_plan::PROGRAM_TRAIN;
use alip_plan::bounds::golden::INTERPRETER;
use alip_plan::bounds::{assert_within_each, largest};
use alip_tests::compiled::Values;
use alip_tests::packing::{Texts, batch, start};
use alip_tests::small::{NAME, small};

/// Of small models; the largest id ends a text.
const VOCABULARY: u64 = 300;

const KEEP: Keep = Keep { grads: true, values: false };

/// The training step as it is written.
fn written(spec: &Options) -> Model {
    let mut sources = SourceMap::new();
    let step =
        resolve(&mut sources, NAME, spec).and_then(|resolved| training_step(&resolved, resolved.model.clone(), KEEP));
    step.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).model
}

/// The same, compiled with everything on.
fn compiled(spec: &Options) -> CompiledSpec {
    let compile = CompileOptions { explain: true, ..CompileOptions::default() };
    let options = SpecOptions { spec: spec.clone(), keep: KEEP, compile, ..SpecOptions::default() };
    let mut sources = SourceMap::new();
    compile_spec(&mut sources, NAME, &options).unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)))
}

/// How far each element of a new state may be off. The first step of Adam moves a weight by the learning rate times `g / |g|`:
/// where the gradient is nearly nothing but rounding, so is its sign.
fn bounds_of_state(path: &str, state: &[f64], outputs: &Values) -> Vec<f64> {
    let size = INTERPRETER * largest(state).max(1e-6);
    let Some(gradient) = outputs.get(&format!("grads.{path}")) else { return vec![size; state.len()] };
    let (rate, noise) = (outputs["lr"].data[0], INTERPRETER * largest(&gradient.data));
    gradient.data.iter().map(|g| size + 2.0 * rate * (noise / g.abs()).min(1.0)).collect()
}

fn check(graph: &str, texts: Texts) {
    let spec = small(graph);
    let written = written(&spec);
    let state = start(&written);
    let size: usize = state.values().map(|value| value.data.len()).sum();
    assert!(size < 5_000_000, "{graph} is not small: {size} numbers of state");
    let inputs = batch(&written.programs[PROGRAM_TRAIN], texts, VOCABULARY);
    let expected = interpret(&written.programs[PROGRAM_TRAIN], &inputs, &state).expect("the step runs");

    let compiled = compiled(&spec);
    let model = &compiled.model;
    let chosen = chosen(model, PROGRAM_TRAIN, &inputs).expect("the program is there");
    let whole = std::ptr::eq(chosen.graph, &model.programs[PROGRAM_TRAIN]);
    assert!(!(whole && matches!(texts, Texts::Short)), "{graph}: short texts are packed");
    let name = if whole { PROGRAM_TRAIN.to_owned() } else { name_with_rows(PROGRAM_TRAIN, &chosen.rows) };
    let found = interpret(&compiled.traces[&name].graph, &chosen.inputs, &state).expect("the step runs");

    assert!(expected.outputs.keys().any(|name| name.starts_with("grads.")), "{graph} yields gradients");
    for (name, value) in &expected.outputs {
        // A margin is a difference of numbers near 1, and means of similarities are sums of signs.
        let size =
            if name.starts_with("grads.") { largest(&value.data).max(1e-6) } else { largest(&value.data).max(1.0) };
        let bounds = vec![INTERPRETER * size; value.data.len()];
        assert_within_each(&found.outputs[name].data, &value.data, &bounds)
            .unwrap_or_else(|wrong| panic!("{graph}, {texts:?}: {name} {wrong}"));
    }
    for (path, value) in &expected.updates {
        // A state that keeps its value has no update any more.
        let after = found.updates.get(path).unwrap_or(&state[path]);
        let bounds = bounds_of_state(path, &value.data, &expected.outputs);
        assert_within_each(&after.data, &value.data, &bounds)
            .unwrap_or_else(|wrong| panic!("{graph}, {texts:?}: new `{path}` {wrong}"));
    }
}

#[test]
fn what_is_scheduled_is_what_was_written() {
    for graph in graph_names() {
        for texts in [Texts::Mixed, Texts::Short] {
            check(&graph, texts);
        }
    }
}

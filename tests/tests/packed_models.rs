//! Whole models with packed rows: in f64 the same step as without packing, and on devices the same as in f64, whichever
//! texts a batch holds.

use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Model, interpret};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::Disabled;
use alip_compiler::transform::packing::PACKING;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec, transform};
use alip_plan::bounds::golden::{GRADIENT, STEP_ONE};
use alip_plan::bounds::{assert_within, largest};
use alip_plan::{Plan, Target};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{Session, Tensors};
use alip_tests::compiled::{self, Numbers, Values};
use alip_tests::packing::{self, Texts, batch, start};

/// Sums in another order, in f64.
const EXACT: f64 = 1e-12;

fn model(graph: &str, set: &[&str], packed: bool) -> Model {
    let mut sources = SourceMap::new();
    let options = Options { set: set.iter().map(|set| (*set).to_owned()).collect(), ..Options::default() };
    let resolved =
        resolve(&mut sources, graph, &options).unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let disabled = if packed { Disabled::default() } else { Disabled::only(PACKING) };
    let options = transform::Options { disabled, ..transform::Options::default() };
    let rewritten =
        transform::forward(&resolved, &options, &Target::cpu().packing).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(rewritten.report.unpacked, []);
    let step = training_step(&resolved, rewritten.model, Keep { grads: true, values: false });
    step.unwrap_or_else(|errors| panic!("{errors}")).model
}

/// Whether a value is noise around zero: the gradient of a key bias.
fn is_noise(name: &str) -> bool {
    name.ends_with("in_proj_bias") || name.ends_with("k_proj.bias")
}

fn check_exact(what: &str, found: &Values, expected: &Values) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected.iter().filter(|(name, _)| !is_noise(name)) {
        let bound = EXACT * largest(&expected.data).max(1e-6);
        assert_within(&found[name].data, &expected.data, bound).unwrap_or_else(|why| panic!("{what}, {name}: {why}"));
    }
}

/// Every program of a model with and without packing.
fn check_model(graph: &str, set: &[&str], vocabulary: u64) {
    let (plain, packed) = (model(graph, set, false), model(graph, set, true));
    assert!(packed.packed.contains_key("train") && packed.packed.contains_key("encode_text"), "{graph}");
    assert_eq!(plain.state, packed.state);
    let state = start(&plain);
    for program in plain.programs.keys().filter(|name| *name != "init") {
        let mut buckets = Vec::new();
        for texts in [Texts::Empty, Texts::Full, Texts::Short, Texts::Mixed] {
            let inputs = batch(&plain.programs[program], texts, vocabulary);
            let expected = interpret(&plain.programs[program], &inputs, &state).expect("the program runs");
            let (found, rows) = packing::run(&packed, program, &inputs, &state);
            let what = format!("{graph} {program} {texts:?} {rows:?}");
            check_exact(&what, &found.outputs, &expected.outputs);
            // One step of the optimiser divides by the size of gradients, so that noise in tiny ones shows: states of the
            // model follow from outputs and gradients, which were compared.
            assert_eq!(found.updates.keys().collect::<Vec<_>>(), expected.updates.keys().collect::<Vec<_>>());
            buckets.push(rows);
        }
        if packed.packed.contains_key(program) {
            buckets.dedup();
            assert!(buckets.len() >= 3, "{graph} {program}: {buckets:?}");
        }
    }
}

#[test]
fn alip_with_a_transformer_is_exact() {
    check_model("alip_tiny", &[], 512);
}

#[test]
fn alip_with_a_resnet_is_exact() {
    check_model("alip_tiny_rn", &[], 512);
}

/// Rows that are packed take the numbers that were drawn for them.
#[test]
fn noise_in_the_towers_is_exact() {
    for arguments in ["dropout: 0.2", "drop_path: 0.3, dropout: 0.1"] {
        let text = format!(
            "parts.text=text_transformer(vocab: 512, context: T, width: 48, layers: 2, heads: 4, out: D, {arguments})"
        );
        check_model("alip_tiny", &[&text], 512);
    }
}

#[test]
fn clip_is_exact() {
    check_model("clip_shapes", &["dims.B=4"], 400);
}

fn plan(target: Target, keep: Keep) -> Plan {
    let mut sources = SourceMap::new();
    let compile = CompileOptions { target, ..CompileOptions::default() };
    let options = SpecOptions { compile, keep, ..SpecOptions::default() };
    let compiled = compile_spec(&mut sources, "alip_tiny", &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    compiled.plan.expect("no pass was asked to be the last")
}

/// Runs one step from a state: outputs as numbers.
fn step(session: &mut Session, state: &Values, inputs: &Values) -> Numbers {
    for (path, value) in state {
        session.write_state(path, &compiled::tensor(value)).expect("state fits");
    }
    let inputs: Tensors = inputs.iter().map(|(name, value)| (name.clone(), compiled::tensor(value))).collect();
    let outputs = session.run("train", &inputs).expect("the step runs");
    outputs.iter().map(|(name, tensor)| (name.clone(), compiled::numbers(tensor))).collect()
}

#[test]
fn devices_compute_what_the_interpreter_does_in_every_bucket() {
    let plain = model("alip_tiny", &[], false);
    let state = start(&plain);
    let batches: Vec<Values> = [Texts::Full, Texts::Short, Texts::Empty, Texts::Mixed, Texts::Short]
        .map(|texts| compiled::rounded(&batch(&plain.programs["train"], texts, 512)))
        .into();
    let expected: Vec<Values> = batches
        .iter()
        .map(|inputs| interpret(&plain.programs["train"], inputs, &state).expect("the step runs").outputs)
        .collect();
    // Where all texts are equal, as the empty ones are, the image tower's gradients are differences of equal terms: the size
    // of the terms, which is that of the same gradients of other batches, is what rounds.
    let size = |output: &str| expected.iter().map(|values| largest(&values[output].data)).fold(0.0, f64::max);
    for (device, target) in compiled::devices() {
        let plan = Arc::new(plan(target, Keep { grads: true, values: false }));
        let device = choose(device, &DeviceOptions::default()).expect("it was there before").device;
        let name = device.name();
        let mut session = Session::new(plan, device).expect("the plan loads");
        let mut rooms = Vec::new();
        let mut outputs = Vec::new();
        for (inputs, expected) in batches.iter().zip(&expected) {
            let found = step(&mut session, &state, inputs);
            let run = session.rows_run("train").expect("the step is packed");
            for (output, expected) in expected.iter().filter(|(name, _)| !is_noise(name)) {
                let relative = if output.starts_with("grads.") { GRADIENT } else { STEP_ONE };
                // A margin is a difference of numbers near 1, whose size is what rounds.
                let size = if output.ends_with("margin") { 1.0 } else { size(output) };
                assert_within(&found[output], &expected.data, relative * size.max(1e-6))
                    .unwrap_or_else(|why| panic!("{name}, {:?} rows: {output} {why}", run.room));
            }
            rooms.push(run.room.clone());
            outputs.push(found);
        }
        assert_eq!(outputs[1], outputs[4], "{name}: a batch gives the same bits whatever ran before it");
        rooms.sort();
        rooms.dedup();
        assert!(rooms.len() >= 3, "{name}: {rooms:?}");
    }
}

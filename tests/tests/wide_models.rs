//! Models of the published widths on two devices: what small models cannot show, such as long sums, many workgroups and
//! large tables, computes the same on `wgpu` as on `cpu`. The software adapter takes a minute for two layers, so all
//! twelve run only on request.

use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::bounds::assert_within;
use alip_plan::bounds::golden::{GRADIENT, STEP_ONE};
use alip_plan::{DType, Plan, STATE_TOTAL_STEPS, Target, philox};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::HostTensor;
use alip_tests::skip;

/// The end of a text in the published vocabulary, its largest token: where the text tower reads.
const END: u32 = 49_407;

/// `alip_b32` without its data, so that texts may be short.
const SPEC: &str = r#"Graph(name: "wide", base: "alip_b32", data: None)"#;

fn plan(target: Target, batch: u64, set: &[&str]) -> Arc<Plan> {
    let mut sources = SourceMap::new();
    let options = SpecOptions {
        spec: Options {
            batch: Some(batch),
            set: set.iter().map(ToString::to_string).collect(),
            files: [("wide.ron".into(), SPEC.into())].into(),
            embedded_only: false,
        },
        compile: CompileOptions { target, ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let compiled = compile_spec(&mut sources, "wide", &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    Arc::new(compiled.plan.expect("no pass was asked to be the last"))
}

fn session(device: &str, plan: &Arc<Plan>) -> Option<Session> {
    match choose(device, &DeviceOptions::default()) {
        Ok(choice) => Some(Session::new(Arc::clone(plan), choice.device).expect("the plan loads")),
        Err(why) => {
            skip::skipped_outside_ci(&why.to_string());
            None
        }
    }
}

/// Images of uniform noise, and texts of 5 to 13 tokens.
fn batch(plan: &Plan) -> Tensors {
    let train = &plan.programs["train"];
    let tensor = |(stream, name): (usize, &str)| {
        let shape = &train.input(name).expect("named by the program").shape;
        let uniform = |i: u64| philox::uniform(philox::philox4x32([i as u32, stream as u32, 0, 0], [3, 5])[0]);
        let token = |i: u64| {
            let (text, position) = (i / shape[1], i % shape[1]);
            let length = 5 + (3 * text + 2 * stream as u64) % 9;
            match position {
                _ if position < length => (uniform(i) * (END - 1) as f32) as i32,
                _ if position == length => END as i32,
                _ => 0,
            }
        };
        let count: u64 = shape.iter().product();
        let tensor = match train.input(name).expect("named by the program").dtype {
            DType::I32 => HostTensor::i32(shape, (0..count).map(token).collect()),
            _ => HostTensor::f32(shape, (0..count).map(|i| 4.0 * uniform(i) - 2.0).collect()),
        };
        (name.to_owned(), tensor.expect("as many elements as the shape says"))
    };
    train.batch_inputs().map(|(name, _)| name).enumerate().map(tensor).collect()
}

/// Takes `steps` steps on both devices from the same state and compares all metrics.
fn check(batch_size: u64, set: &[&str], steps: usize) {
    let plans = [plan(Target::cpu(), batch_size, set), plan(Target::wgpu(), batch_size, set)];
    let (Some(mut cpu), Some(mut wgpu)) = (session("cpu", &plans[0]), session("wgpu", &plans[1])) else { return };
    cpu.init(0).expect("init runs");
    cpu.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(20)).expect("every plan that trains has it");
    for state in &plans[0].state {
        let value = cpu.read_state(&state.path).expect("state is there");
        wgpu.write_state(&state.path, &value).expect("the same state on every target");
    }
    let inputs = batch(&plans[0]);
    for step in 0..steps {
        let [expected, actual] = [&mut cpu, &mut wgpu].map(|session| session.run("train", &inputs).expect("it runs"));
        for (name, expected) in &expected {
            let number = |tensor: &HostTensor| f64::from(tensor.to_f32()[0]);
            let (actual, expected) = (number(&actual[name]), number(expected));
            // Each of the two may be off by what the golden data allow a run in f32.
            let relative = 2.0 * if ["grad_norm", "clip_coef"].contains(&name.as_str()) { GRADIENT } else { STEP_ONE };
            // Cosines and differences of gates: what rounds is terms of up to 1.
            let size = if name.ends_with("sim_mean") || name.ends_with("margin") { 1.0 } else { expected.abs() };
            assert_within(&[actual], &[expected], relative * size)
                .unwrap_or_else(|wrong| panic!("step {step}: `{name}` {wrong}"));
        }
    }
}

#[test]
fn two_layers_of_the_published_widths() {
    check(4, &["parts.visual.layers=2", "parts.text.layers=2", "dims.T=16"], 2);
}

#[test]
fn all_of_alip_b32() {
    if std::env::var_os("ALIP_WIDE").is_none() {
        return skip::skipped("takes minutes on a software adapter; ALIP_WIDE=1 runs it");
    }
    check(4, &[], 1);
}

//! Training in 16 bits on the cpu device: near the golden runs, and what a loss scale does when gradients overflow.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::bounds::{BF16, F16, FloatFormat, assert_within_each, golden};
use alip_plan::{DType, PROGRAM_TRAIN, STATE_LOSS_SCALE, STATE_STEP, STATE_TOTAL_STEPS, Target};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::HostTensor;
use alip_tests::goldens;

/// `alip_tiny` with this `train` section, at the golden weights.
fn session(train: &str) -> Session {
    let variant = format!(
        r#"Graph(name: "variant", base: "alip_tiny", use: ["optim/loss_scale"], metrics: {{ "loss_scale": "train.loss_scale" }}, train: ({train}))"#
    );
    let files = BTreeMap::from([("variant.ron".to_owned(), variant)]);
    let options = SpecOptions {
        spec: Options { files, ..Options::default() },
        compile: CompileOptions { target: Target::cpu_mixed(), ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, "variant", &options);
    let compiled = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let plan = compiled.plan.expect("no pass was asked to be the last");
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    session.init(0).expect("init runs");
    for (path, tensor) in goldens::load("alip_tiny/weights_initial.safetensors").iter() {
        let shape: Vec<u64> = tensor.shape.iter().map(|size| *size as u64).collect();
        let values = tensor.values.iter().map(|value| *value as f32).collect();
        session.write_state(path, &HostTensor::f32(&shape, values).expect("a golden tensor")).expect("it fits");
    }
    session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(20)).expect("it is there");
    session
}

/// The golden batches in turn.
fn batch(session: &Session, step: usize) -> Tensors {
    let golden = goldens::load("alip_tiny/inputs.safetensors");
    let tensor = |name: &str| {
        let tensor = &golden[&format!("batch.{}.{name}", step % 4)];
        let shape: Vec<u64> = tensor.shape.iter().map(|size| *size as u64).collect();
        let made = match session.plan().programs[PROGRAM_TRAIN].input(name).expect("an input").dtype {
            DType::I32 => HostTensor::i32(&shape, tensor.values.iter().map(|x| *x as i32).collect()),
            _ => HostTensor::f32(&shape, tensor.values.iter().map(|x| *x as f32).collect()),
        };
        (name.to_owned(), made.expect("a golden tensor"))
    };
    ["image", "raw", "caption"].into_iter().map(tensor).collect()
}

fn step(session: &mut Session, step: usize) -> BTreeMap<String, f64> {
    let batch = batch(session, step);
    let outputs = session.run(PROGRAM_TRAIN, &batch).expect("a step runs");
    outputs.iter().filter_map(|(name, tensor)| Some((name.clone(), tensor.first()?))).collect()
}

#[test]
fn a_run_stays_as_near_to_the_golden_one_as_its_roundings_allow() {
    let trajectory = goldens::load("alip_tiny/trajectory.safetensors");
    let sensitivity = trajectory.section("sensitivity.");
    let table: [(&str, FloatFormat); 2] =
        [("precision: Bf16", BF16), (r#"precision: F16, loss_scale: "dynamic_loss_scale(init: 128)""#, F16)];
    for (train, format) in table {
        let mut session = session(train);
        let narrow = session.plan().programs[PROGRAM_TRAIN].buffers.iter().filter(|b| b.dtype.bytes() == 2).count();
        assert!(narrow > 50, "{narrow} tensors of 16 bits");
        let steps: Vec<BTreeMap<String, f64>> = (0..20).map(|at| step(&mut session, at)).collect();
        for name in ["loss", "loss_raw", "loss_caption", "grad_norm", "sample_weight_mean", "logit_scale_after"] {
            let expected = &trajectory[&format!("f64.{name}")].values;
            let actual: Vec<f64> = steps.iter().map(|step| step[name]).collect();
            let in_f32 = golden::trajectory(expected, &sensitivity[name].values);
            let bounds: Vec<f64> = in_f32.iter().map(|bound| golden::in_format(*bound, format)).collect();
            assert_within_each(&actual, expected, &bounds).unwrap_or_else(|wrong| panic!("{train}: {name} {wrong}"));
            let is_f32 = assert_within_each(&actual, expected, &in_f32).is_ok();
            assert!(name != "grad_norm" || !is_f32, "{train}: it is f32 under another name");
        }
    }
}

#[test]
fn a_step_that_overflows_changes_the_scale_and_nothing_else() {
    let scale = r#"precision: F16, loss_scale: "dynamic_loss_scale(init: 1073741824, growth_interval: 2)""#;
    let mut session = session(scale);
    let paths: Vec<String> = session.plan().state.iter().map(|state| state.path.clone()).collect();
    let state = |session: &mut Session| -> BTreeMap<String, HostTensor> {
        paths.iter().map(|path| (path.clone(), session.read_state(path).expect("it is there"))).collect()
    };
    let first = |session: &mut Session, path: &str| session.read_state(path).ok().and_then(|tensor| tensor.first());
    let mut expected = 1_073_741_824.0;
    let mut overflows = 0;
    loop {
        let before = state(&mut session);
        let metrics = step(&mut session, 0);
        assert_eq!(metrics["loss_scale"], expected, "the scale of this step");
        assert!(metrics["loss"].is_finite(), "the loss is not scaled");
        if metrics["grad_norm"].is_finite() {
            break;
        }
        overflows += 1;
        expected /= 2.0;
        for (path, after) in state(&mut session) {
            if path == STATE_LOSS_SCALE {
                assert_eq!(after.first(), Some(expected), "halved");
            } else {
                assert_eq!(after, before[&path], "{path} moved in a step that was not taken");
            }
        }
        assert!(overflows < 30, "it never recovers");
    }
    assert!(overflows > 3, "2^30 times the gradient does not fit f16");
    assert_eq!(first(&mut session, STATE_STEP), Some(1.0), "the first step that was taken");
    assert_eq!(first(&mut session, "loss_scale.finite_steps"), Some(1.0));
    assert_eq!(first(&mut session, STATE_LOSS_SCALE), Some(expected), "as it was");
    let metrics = step(&mut session, 0);
    if metrics["grad_norm"].is_finite() {
        assert_eq!(first(&mut session, STATE_LOSS_SCALE), Some(2.0 * expected), "two finite steps in a row");
        assert_eq!(first(&mut session, "loss_scale.finite_steps"), Some(0.0));
    }
}

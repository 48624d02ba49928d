//! Training on every device against the golden data, through the same function as `alip-run replay`.
//!
//! Bounds are those of the goldens' README, stated in `alip_plan::bounds::golden`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::training::Keep;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::bounds::golden::{GRADIENT, GRADIENT_RESNET, STEP_ONE};
use alip_plan::bounds::{assert_within, golden::of_largest};
use alip_plan::{PROGRAM_TRAIN, Target};
use alip_runtime::device::{Device, DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::file::FileError;
use alip_runtime::run::tensors::{Entry, write};
use alip_runtime::train::replay::{Dump, Replay, replay};
use alip_tests::goldens::{self, Tensors};
use alip_tests::skip;
use safetensors::Dtype;

/// A golden run.
struct Case {
    graph: &'static str,
    /// State that differs from the first one.
    state: &'static [(&'static str, f32)],
    step1: &'static str,
    /// Gradients of the first step; only of the ordinary start.
    grads: Option<&'static str>,
    trajectory: &'static str,
    total_steps: u64,
    gradient: f64,
}

const CASES: [Case; 3] = [
    Case {
        graph: "alip_tiny",
        state: &[],
        step1: "step1",
        grads: Some("grads_step1_f64"),
        trajectory: "trajectory",
        total_steps: 20,
        gradient: GRADIENT,
    },
    Case {
        graph: "alip_tiny",
        state: &[("lcg.ema", 0.90625), ("dcg_raw.ema", -0.0625), ("dcg_caption.ema", -0.125)],
        step1: "step1_mid",
        grads: None,
        trajectory: "trajectory_mid",
        total_steps: 20,
        gradient: GRADIENT,
    },
    Case {
        graph: "alip_tiny_rn",
        state: &[],
        step1: "step1",
        grads: Some("grads_step1_f64"),
        trajectory: "trajectory",
        total_steps: 40,
        gradient: GRADIENT_RESNET,
    },
];

/// The golden weights and the state of a case in one file.
fn weights(case: &Case, folder: &Path) -> PathBuf {
    let golden = goldens::load(&format!("{}/weights_initial.safetensors", case.graph));
    let mut contents: Vec<(Entry, Vec<f32>)> = golden
        .iter()
        // The reference counts batches in i64, which the ordinary start has at zero anyway.
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .map(|(name, tensor)| {
            let shape = tensor.shape.iter().map(|size| *size as u64).collect();
            let entry = Entry { name: name.into(), dtype: Dtype::F32, shape };
            (entry, tensor.values.iter().map(|value| *value as f32).collect())
        })
        .collect();
    for (path, value) in case.state {
        let entry = Entry { name: format!("state.{path}"), dtype: Dtype::F32, shape: vec![] };
        contents.push((entry, vec![*value]));
    }
    let (entries, mut values): (Vec<Entry>, std::collections::VecDeque<Vec<f32>>) = contents.into_iter().unzip();
    let path = folder.join("weights.safetensors");
    write(&path, &[], &entries, |_| -> Result<_, FileError> {
        Ok(values.pop_front().unwrap_or_default().iter().flat_map(|value| value.to_le_bytes()).collect())
    })
    .expect("a temporary folder");
    path
}

fn replayed(case: &Case, on: &On, steps: u64) -> Tensors {
    let keep = Keep { grads: true, values: true };
    let compile = CompileOptions { target: on.target.clone(), ..Default::default() };
    let options = SpecOptions { keep, compile, ..SpecOptions::default() };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, case.graph, &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let plan = compiled.plan.expect("no pass was asked to be the last");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut session = Session::new(Arc::new(plan), (on.device)()).expect("the plan loads");
    let out = folder.path().join("replay.safetensors");
    let dump = BTreeSet::from([Dump::Outputs, Dump::Grads, Dump::Params, Dump::Metrics]);
    let batches = goldens::path(&format!("{}/inputs.safetensors", case.graph));
    let what = Replay {
        weights: &weights(case, folder.path()),
        batches: &batches,
        steps,
        total_steps: case.total_steps,
        dump: &dump,
        out: &out,
    };
    replay(&mut session, &what).unwrap_or_else(|error| panic!("{}: {error}", case.graph));
    // Everything is on: what runs is one of the packed programs.
    assert!(session.rows_run(PROGRAM_TRAIN).is_some(), "{}: rows are packed", case.graph);
    goldens::read(&out).expect("what was just written")
}

/// Where a golden run is repeated.
struct On<'a> {
    name: &'a str,
    target: Target,
    /// Opens the device.
    device: &'a dyn Fn() -> Box<dyn Device>,
    /// Most steps.
    steps: usize,
}

fn check(case: &Case, on: &On) {
    let golden = |name: &str| goldens::load(&format!("{}/{name}.safetensors", case.graph));
    let trajectory = golden(case.trajectory);
    let steps = trajectory["f64.loss"].values.len().min(on.steps);
    let trajectory = trajectory.shortened(steps);
    let what = format!("{} {} on {}", case.graph, case.step1, on.name);
    let found = replayed(case, on, steps as u64);
    let metrics = found.section("metrics.");
    for (name, output, expected) in goldens::step1(&golden(case.step1)) {
        let actual = match found.get(output) {
            Some(tensor) => tensor.values.clone(),
            None => vec![metrics[output].values[0]],
        };
        assert_within(&actual, &expected.values, of_largest(STEP_ONE, &expected.values))
            .unwrap_or_else(|wrong| panic!("{what}: {name} {wrong}"));
    }
    if let Some(file) = case.grads {
        goldens::compare_parameters(&found.section("grads."), &golden(file), case.gradient)
            .unwrap_or_else(|wrong| panic!("{what}: gradients\n{wrong}"));
    }
    goldens::compare_trajectory(&metrics, &trajectory).unwrap_or_else(|wrong| panic!("{what}: trajectory\n{wrong}"));
}

/// A device of this machine; none where there is no such.
fn on_device(name: &str, target: &Target) {
    if let Err(why) = choose(name, &DeviceOptions::default()) {
        return skip::skipped_outside_ci(&why.to_string());
    }
    let device = || choose(name, &DeviceOptions::default()).expect("it was there before").device;
    for case in &CASES {
        check(case, &On { name, target: target.clone(), device: &device, steps: usize::MAX });
    }
}

#[test]
fn on_cpu() {
    on_device("cpu", &Target::cpu());
}

#[test]
fn on_wgpu() {
    on_device("wgpu", &Target::wgpu());
}

/// The beginning of each run under the emulator of CUDA; all of it with `ALIP_EMULATED_STEPS=40`, which takes long.
#[test]
#[cfg(target_os = "linux")]
fn on_emulated_cuda() {
    if alip_tests::cuda::Emulator::get().is_none() {
        return;
    }
    let steps = std::env::var("ALIP_EMULATED_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    // Of all the programs for so many rows a run meets one.
    let device = || alip_tests::cuda::device().expect("it was there before");
    // What starts in the middle runs the same kernels.
    for case in CASES.iter().filter(|case| case.grads.is_some()) {
        check(case, &On { name: "the emulator", target: Target::sm_80(), device: &device, steps });
    }
}

//! Values of 16 bits in files: what one device saves another one goes on with, weights of any float type are taken, and a
//! replay writes what there was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_compiler::resolve::Options;
use alip_compiler::training::Keep;
use alip_compiler::{CompileOptions, SpecOptions};
use alip_plan::{DType, PROGRAM_TRAIN, Plan, Target};
use alip_runtime::data::Vocabularies;
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::file::FileError;
use alip_runtime::run::checkpoint::{FORMAT, Header, restore};
use alip_runtime::run::tensors::{Entry, TensorFile, write};
use alip_runtime::run::{DeviceIdentity, NewRun, RunInfo, Writer};
use alip_runtime::tensor::{HostTensor, f32_to_bf16, f32_to_f16};
use alip_runtime::train::replay::{Dump, Replay, replay};
use alip_tests::compiled::{begun, devices};
use safetensors::Dtype;

/// Parameters, a moment and an input of 16 bits, and an average in f32.
const SPEC: &str = r#"Graph(name: "spec", use: ["low", "schedule/constant"], dims: { "B": Batch(3) },
    inputs: { "x": (dtype: Bf16, shape: "[B]") },
    params: { "w": (shape: "[3]", init: "normal(1)", dtype: Bf16), "v": (shape: "[3]", init: "normal(1)", dtype: F16) },
    body: ["h = x * w", "loss = sum(cast(h, 'f32') * cast(v, 'f32'))"],
    metrics: { "loss": "loss" },
    train: (loss: "loss", optimizer: "low()", schedule: "constant(max_lr: 1)", ema: (decay: 0.5)))"#;
const LOW: &str = r#"Module(name: "low", doc: "d", inputs: { "w": "[..S]", "g": "[..S]", "lr": "[]" },
    state: { "m": (shape: "[..S]", init: "0", dtype: Bf16) },
    body: ["m' = cast(0.5 * cast(m, 'f32') + g, 'bf16')", "y = w - lr * cast(m', 'f32')"], outputs: ["y"])"#;

/// A batch, a weight and another one, of which no type of 16 bits holds any.
const X: [f32; 3] = [1.001, -0.3, 3.3];
const W: [f32; 3] = [0.7, -1.1, 2.003];
const V: [f32; 3] = [0.1, 0.3, -1.7];

fn session(device: &str, target: Target) -> Session {
    let files = [("spec.ron", SPEC), ("low.ron", LOW)].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let options = SpecOptions {
        spec: Options { files, ..Options::default() },
        compile: CompileOptions { target, ..CompileOptions::default() },
        keep: Keep { grads: true, values: true },
        ..SpecOptions::default()
    };
    begun("spec", &options, device, 3)
}

fn step(session: &mut Session) {
    let x = HostTensor::f32(&[3], X.to_vec()).expect("three numbers");
    session.run(PROGRAM_TRAIN, &Tensors::from([("x".into(), x)])).expect("a step runs");
}

fn state(session: &mut Session) -> BTreeMap<String, Vec<f32>> {
    let paths: Vec<String> = session.plan().state.iter().map(|state| state.path.clone()).collect();
    paths
        .into_iter()
        .map(|path| (path.clone(), session.read_state(&path).expect("it is there").to_f32().to_vec()))
        .collect()
}

fn saved(root: &Path, session: &mut Session) -> PathBuf {
    let plan: Arc<Plan> = session.plan().clone();
    let device = DeviceIdentity { name: "any".into(), arithmetic: "f32".into() };
    let info = RunInfo::new(&plan, device, 3, 20, None);
    let run = NewRun { plan: &plan, info: &info, vocabularies: &Vocabularies::default(), sources: None };
    let writer = Writer::create(root, &run, 1).expect("a folder of one's own");
    let header = Header { format: FORMAT, spec: plan.name.clone(), step: 1, cursor: 3, seed: 3, plan: String::new() };
    writer.save(session, &header).expect("it is saved").path
}

#[test]
fn what_one_device_saves_another_goes_on_with() {
    for (from, target) in devices() {
        let mut first = session(from, target);
        step(&mut first);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = saved(&folder.path().join("run"), &mut first);
        let before = state(&mut first);
        assert!(before["w"].iter().all(|x| f64::from(*x) == DType::Bf16.rounded(f64::from(*x))), "{from}: {before:?}");
        step(&mut first);
        let after = state(&mut first);
        for (to, target) in devices() {
            let mut second = session(to, target);
            restore(&path, &mut second).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
            assert_eq!(state(&mut second), before, "{from} to {to}");
            let back = saved(&folder.path().join(to), &mut second);
            let mut third = session(from, first.plan().target.clone());
            restore(&back, &mut third).unwrap_or_else(|error| panic!("{to} back to {from}: {error}"));
            assert_eq!(state(&mut third), before, "{to} back to {from}");
            // Sums of one term each, rounded to 16 bits: nothing for devices to differ in.
            step(&mut second);
            assert_eq!(state(&mut second), after, "{from}, then a step on {to}");
        }
    }
}

/// Numbers as a type of a file has them.
fn bytes(dtype: Dtype, numbers: &[f32]) -> Vec<u8> {
    let word = |x: &f32| match dtype {
        Dtype::BF16 => f32_to_bf16(*x).to_le_bytes().to_vec(),
        Dtype::F16 => f32_to_f16(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    numbers.iter().flat_map(word).collect()
}

/// A file of such tensors.
fn file(path: PathBuf, tensors: &[(&str, Dtype, [f32; 3])]) -> PathBuf {
    let entry = |(name, dtype, _): &(&str, Dtype, _)| Entry { name: (*name).into(), dtype: *dtype, shape: vec![3] };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let content = |entry: &Entry| -> Result<Vec<u8>, FileError> {
        let (_, dtype, numbers) = tensors.iter().find(|(name, ..)| *name == entry.name).expect("one of these");
        Ok(bytes(*dtype, numbers))
    };
    write(&path, &[], &entries, content).expect("a temporary folder");
    path
}

#[test]
fn a_replay_takes_any_float_type_and_writes_what_there_was() {
    let (bf16, f16) =
        (|x: f32| DType::Bf16.rounded(f64::from(x)) as f32, |x: f32| DType::F16.rounded(f64::from(x)) as f32);
    let (x, w, v) = (X.map(bf16), W.map(bf16), V.map(f16));
    let each = |f: &dyn Fn(usize) -> f32| [0, 1, 2].map(f);
    let h = each(&|i| bf16(x[i] * w[i]));
    let of_w = each(&|i| x[i] * v[i]);
    let expected = [
        ("outputs.h", Dtype::BF16, h),
        ("grads.w", Dtype::F32, of_w),
        ("grads.v", Dtype::F32, h),
        ("params.w", Dtype::BF16, each(&|i| bf16(w[i] - bf16(of_w[i])))),
        ("params.v", Dtype::F16, each(&|i| f16(v[i] - h[i]))),
        ("state.optimizer.m.w", Dtype::BF16, of_w.map(bf16)),
    ];
    // In a wider type than the graph's, and in its own.
    let given = [[Dtype::F32; 3], [Dtype::BF16, Dtype::F16, Dtype::BF16]];
    for ((device, target), given) in devices().into_iter().flat_map(|at| given.map(|given| (at.clone(), given))) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let weights = file(at("weights"), &[("w", given[0], W), ("v", given[1], V)]);
        let batches = file(at("batches"), &[("batch.0.x", given[2], X)]);
        let dump = BTreeSet::from([Dump::Outputs, Dump::Grads, Dump::Params]);
        let (out, mut session) = (at("out"), session(device, target));
        let what = Replay { weights: &weights, batches: &batches, steps: 1, total_steps: 20, dump: &dump, out: &out };
        replay(&mut session, &what).unwrap_or_else(|error| panic!("{device}, {given:?}: {error}"));
        let mut found = TensorFile::open(&out).expect("what was just written");
        for (name, dtype, numbers) in expected {
            let tensor = found.read(name, DType::F32).unwrap_or_else(|error| panic!("{device}: {error}"));
            assert_eq!(*tensor.to_f32(), numbers, "{device}, {given:?}: {name}");
            // Where only f32 can be stored, it is the same numbers in f32.
            let stored = found.info(name).map(|info| info.dtype);
            assert!(
                stored == Some(dtype) || device == "wgpu" && stored == Some(Dtype::F32),
                "{device}: {name} {stored:?}"
            );
        }
    }
}

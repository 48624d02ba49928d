//! Every variant in `examples/variants`, which are RON files alone, trains a few steps on the embedded data.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::{Feed, SpecOptions, compile_spec, resolve};
use alip_plan::pipeline::Mode;
use alip_plan::{PROGRAM_TRAIN, StateKind};
use alip_runtime::data::{Loader, LoaderOptions, open_source};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::tensor::HostTensor;
use alip_runtime::train::begin;

/// Two batches of the warm-up and one after it.
const STEPS: u64 = 3;
/// Small, so that ten variants take seconds.
const BATCH: u64 = 8;

/// Trains a variant; its parameters before and after.
fn trained(path: &Path) -> BTreeMap<String, (HostTensor, HostTensor)> {
    let name = path.display().to_string();
    let spec = resolve::Options { batch: Some(BATCH), ..Default::default() };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, &name, &SpecOptions { spec, feed: Feed::Loader, ..Default::default() })
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let plan = Arc::new(compiled.plan.expect("no pass was asked to be the last"));
    let train = plan.train.clone().unwrap_or_else(|| panic!("{name} does not train"));
    let pipeline = train.data.unwrap_or_else(|| panic!("{name} names no data"));
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    let mut session = Session::new(Arc::clone(&plan), device).expect("the plan loads");
    begin(&mut session, 1, STEPS).expect("the state is set");
    let params = || plan.state.iter().filter(|state| state.kind == StateKind::Param);
    let read = |session: &mut Session, path: &str| session.read_state(path).expect("a state of the plan");
    let before: Vec<HostTensor> = params().map(|state| read(&mut session, &state.path)).collect();
    let source = open_source(&pipeline.source, Mode::Train).expect("rendered scenes need no files");
    let options = LoaderOptions { workers: 1, ..LoaderOptions::train(1, BATCH as usize) };
    let mut loader = Loader::new(&pipeline, source, &options).expect("a pipeline that was checked");
    for step in 0..STEPS {
        let batch = loader.next().expect("scenes can be rendered").expect("training is endless");
        let outputs = session.run(PROGRAM_TRAIN, &batch.tensors).unwrap_or_else(|error| panic!("{name}: {error}"));
        for metric in &train.metrics {
            let value = outputs[metric].first().expect("metrics are scalars");
            assert!(value.is_finite(), "{name}, step {step}: {metric} is {value}");
        }
        assert!(outputs[&train.loss].first().is_some_and(|loss| loss > 0.0), "{name}: a loss without size");
    }
    params().zip(before).map(|(state, old)| (state.path.clone(), (old, read(&mut session, &state.path)))).collect()
}

/// The loss of an initial model moves every parameter but those frozen, and key biases, whose gradient is zero.
fn check(path: &Path, frozen: &str) {
    for (param, (before, after)) in trained(path) {
        let is_frozen = !frozen.is_empty() && param.starts_with(frozen);
        assert_eq!(before == after, is_frozen, "{}: {param}", path.display());
    }
}

#[test]
fn every_variant_trains() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/variants");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the examples are part of the project") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_some_and(|extension| extension == "ron") {
            let frozen = if path.ends_with("frozen_image.ron") { "visual." } else { "" };
            check(&path, frozen);
            count += 1;
        }
    }
    assert!(count >= 6, "{count} variants in {}", folder.display());
}

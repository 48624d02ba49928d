//! Small specs whose right values are known: what they must yield on the interpreter and on every device, whatever the
//! compiler does to them.
//!
//! # Adding a case
//!
//! Put a spec `NAME.ron` into `tests/cases/`, as one would write it, and `NAME.values.ron` beside it:
//!
//! ```text
//! (
//!     doc: "Where the values come from.",
//!     inputs: { "x": [1, 2, 3] },           // row-major
//!     state: { "w": [0, -2, 2] },           // what is loaded over the initial state
//!     outputs: { "loss": [inf], "grads.w": [0, 0, 0] },
//!     after: { "w": [0, -2, 2] },           // the new state
//! )
//! ```
//!
//! - Outputs are metrics, outputs of the program, gradients `grads.PATH` and named values `outputs.NAME`; the program is
//!   `train` unless `program` names another, and runs `steps` times (once) on the same batch.
//! - Values are written to 7 digits. What is `inf`, `-inf`, `NaN` or 0 must be just that, unless `near: { "loss": 1e-7 }` gives
//!   a distance for one of the results.
//! - Modules and bases lie in `tests/cases/modules/`. What must be refused belongs to `compiler/filetests`, with its message.
//! - `ALIP_CASE=part` runs only cases whose name contains `part`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Model, TensorType, Value};
use alip_compiler::resolve::Options;
use alip_compiler::training::Keep;
use alip_compiler::{CompileOptions, CompiledSpec, SWITCHES, SpecOptions, Switch, compile_spec};
use alip_plan::bounds::{F32, Roundings, assert_within_each, bound};
use alip_plan::{PROGRAM_INIT, PROGRAM_TRAIN, Plan, STATE_TOTAL_STEPS};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::tensor::HostTensor;
use alip_runtime::train::begin;
use alip_tests::compiled::{Numbers, Values, devices, numbers, rounded, tensor};
use alip_tests::packing;

/// Pointwise functions of a few ulps, one after the other: no case goes through more.
const ROUNDINGS: f64 = 64.0;
/// The length of the run, for schedules.
const TOTAL_STEPS: u64 = 100;

/// What goes into a spec and must come out.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Read by people.
    #[serde(rename = "doc")]
    _doc: String,
    #[serde(default = "train")]
    program: String,
    #[serde(default = "once")]
    steps: usize,
    #[serde(default)]
    inputs: Numbers,
    #[serde(default)]
    state: Numbers,
    #[serde(default)]
    outputs: Numbers,
    #[serde(default)]
    after: Numbers,
    #[serde(default)]
    near: BTreeMap<String, f64>,
}

fn train() -> String {
    PROGRAM_TRAIN.into()
}

fn once() -> usize {
    1
}

/// Outputs of the last step, and the state after it.
type Results = (Numbers, Numbers);

impl Case {
    /// From the text of a spec to programs at a level of optimisation.
    fn compiled(&self, spec: &Path, compile: CompileOptions) -> Result<CompiledSpec, String> {
        let any = |prefix: &str| self.outputs.keys().any(|name| name.starts_with(prefix));
        let keep = Keep { grads: any("grads."), values: any("outputs.") };
        let options = SpecOptions {
            spec: Options { files: modules(), ..Options::default() },
            keep,
            compile,
            ..SpecOptions::default()
        };
        let mut sources = SourceMap::new();
        compile_spec(&mut sources, &spec.display().to_string(), &options)
            .map_err(|errors| errors.render(&sources, false))
    }

    /// The batch and the loaded state, under the types that the model has for them.
    fn given(&self, model: &Model) -> Result<(Values, Values), String> {
        let value = |name: &str, ty: &TensorType, numbers: &[f64]| match numbers.len() as u64 == ty.shape.elements() {
            true => Ok((name.to_owned(), Value::new(ty.clone(), numbers.to_vec()))),
            false => Err(format!("`{name}` is {ty}, and the case has {} numbers for it", numbers.len())),
        };
        let graph =
            model.programs.get(&self.program).ok_or_else(|| format!("there is no program `{}`", self.program))?;
        let input = |(name, numbers): (&String, &Vec<f64>)| {
            let id = graph.inputs.get(name).ok_or_else(|| format!("there is no input `{name}`"))?;
            value(name, graph.ty(*id), numbers)
        };
        let state = |(path, numbers): (&String, &Vec<f64>)| {
            let decl = model.state.get(path).ok_or_else(|| format!("there is no state `{path}`"))?;
            value(path, &decl.ty, numbers)
        };
        let inputs: Values = self.inputs.iter().map(input).collect::<Result<_, _>>()?;
        let state: Values = self.state.iter().map(state).collect::<Result<_, _>>()?;
        Ok((rounded(&inputs), rounded(&state)))
    }

    /// The model as rewrites leave it, on the interpreter.
    fn interpreted(&self, model: &Model) -> Result<Results, String> {
        let (inputs, loaded) = self.given(model)?;
        let seed = Values::from([("seed".into(), Value::scalar(DType::I32, 0.0))]);
        let mut state = rounded(&packing::run(model, PROGRAM_INIT, &seed, &Values::new()).0.updates);
        if let Some(total) = state.get_mut(STATE_TOTAL_STEPS) {
            total.data = vec![TOTAL_STEPS as f64];
        }
        state.extend(loaded);
        let mut outputs = Values::new();
        for _ in 0..self.steps {
            let (done, _) = packing::run(model, &self.program, &inputs, &state);
            state.extend(done.updates);
            outputs = done.outputs;
        }
        let numbers = |values: Values| values.into_iter().map(|(name, value)| (name, value.data)).collect();
        Ok((numbers(outputs), numbers(state)))
    }

    /// The plan on a device.
    fn run(&self, model: &Model, plan: Plan, device: &str) -> Result<Results, String> {
        let (inputs, loaded) = self.given(model)?;
        let device = choose(device, &DeviceOptions::default()).map_err(|error| error.to_string())?.device;
        let mut session = Session::new(Arc::new(plan), device).map_err(|error| error.to_string())?;
        begin(&mut session, 0, TOTAL_STEPS).map_err(|error| error.to_string())?;
        for (path, value) in &loaded {
            session.write_state(path, &tensor(value)).map_err(|error| error.to_string())?;
        }
        let inputs = inputs.iter().map(|(name, value)| (name.clone(), tensor(value))).collect();
        let mut outputs = Numbers::new();
        for _ in 0..self.steps {
            let done = session.run(&self.program, &inputs).map_err(|error| error.to_string())?;
            outputs = done.iter().map(|(name, tensor)| (name.clone(), numbers(tensor))).collect();
        }
        let read = |path: &String| Some((path.clone(), numbers(&session.read_state(path).ok()?)));
        Ok((outputs, self.after.keys().filter_map(read).collect()))
    }

    /// Whether these are the results.
    fn admits(&self, (outputs, after): &Results) -> Result<(), String> {
        for (expected, actual) in [(&self.outputs, outputs), (&self.after, after)] {
            for (name, expected) in expected {
                let actual = actual.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
                let near = self.near.get(name).copied().unwrap_or(0.0);
                let relative =
                    |x: &f64| if x.is_finite() { bound(F32, Roundings::pointwise(ROUNDINGS), x.abs()) } else { 0.0 };
                let bounds: Vec<f64> = expected.iter().map(|x| near + relative(x)).collect();
                assert_within_each(actual, expected, &bounds)
                    .map_err(|wrong| format!("`{name}` must be {expected:?}, not {actual:?}: {wrong}"))?;
            }
        }
        Ok(())
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// The files of a folder that have this ending, without it, in order.
fn files(folder: &Path, ending: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    let name = |path: PathBuf| Some((path.file_name()?.to_str()?.strip_suffix(ending)?.to_owned(), path));
    let mut files: Vec<_> = paths.filter_map(name).collect();
    files.sort();
    files
}

/// What all cases may use.
fn modules() -> BTreeMap<String, String> {
    let text =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    files(&folder().join("modules"), ".ron").iter().map(|(name, path)| (format!("{name}.ron"), text(path))).collect()
}

/// Everything on, without each thing that can be turned off, without all of them.
fn levels() -> Vec<(&'static str, CompileOptions)> {
    let without = |switches: &[Switch]| {
        let mut options = CompileOptions::default();
        switches.iter().for_each(|switch| (switch.off)(&mut options));
        options
    };
    let less = SWITCHES.iter().map(|switch| (switch.name, without(std::slice::from_ref(switch))));
    std::iter::once(("all", without(&[]))).chain(less).chain([("nothing", without(SWITCHES))]).collect()
}

/// Runs all cases at these levels and says which are wrong.
fn check(
    levels: &[(&'static str, CompileOptions)],
    run: impl Fn(&Case, &Path, &CompileOptions) -> Result<Results, String>,
) {
    let only = std::env::var("ALIP_CASE").unwrap_or_default();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, values) in files(&folder(), ".values.ron").iter().filter(|(name, _)| name.contains(&only)) {
        let text = std::fs::read_to_string(values).expect("a readable file");
        let case: Case = ron::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", values.display()));
        let spec = folder().join(format!("{name}.ron"));
        for (level, options) in levels {
            let result = run(&case, &spec, options).and_then(|results| case.admits(&results));
            wrong.extend(result.err().map(|why| format!("{name}, {level}: {why}")));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 0, "no case has `{only}` in its name");
}

fn check_on(device: &str) {
    let Some((device, target)) = devices().into_iter().find(|(name, _)| *name == device) else { return };
    let mut levels = levels();
    if device == "wgpu" {
        // Shaders take long to compile: only with everything, and with nothing.
        levels.drain(1..levels.len() - 1);
    }
    check(&levels, |case, spec, options| {
        let compiled = case.compiled(spec, CompileOptions { target: target.clone(), ..options.clone() })?;
        case.run(&compiled.model, compiled.plan.ok_or("there is no plan")?, device)
    });
}

#[test]
fn on_the_interpreter() {
    // Of the others the interpreter sees nothing.
    let seen = ["all", "no-lift", "no-rewrites", "nothing"];
    let levels: Vec<_> = levels().into_iter().filter(|(level, _)| seen.contains(level)).collect();
    check(&levels, |case, spec, options| {
        let compiled = case.compiled(spec, CompileOptions { stop_after: Some("model".into()), ..options.clone() })?;
        case.interpreted(&compiled.model)
    });
}

#[test]
fn on_the_reference_device() {
    check_on("reference");
}

#[test]
fn on_cpu() {
    check_on("cpu");
}

#[test]
fn on_wgpu() {
    check_on("wgpu");
}

/// Not the next launch that writes to a part of a buffer in which an earlier one has left the same.
#[test]
fn the_operation_that_overflowed_is_named() {
    for (device, target) in devices() {
        let spec = folder().join("modules/overflowing_scale.ron");
        let case: Case = ron::from_str(r#"(doc: "")"#).expect("a case");
        let compiled = case.compiled(&spec, CompileOptions { target, ..CompileOptions::default() });
        let plan = compiled.and_then(|compiled| compiled.plan.ok_or("there is no plan".into()));
        let plan = plan.unwrap_or_else(|why| panic!("{why}"));
        let found = choose(device, &DeviceOptions::default()).expect("it was there before").device;
        let mut session = Session::new(Arc::new(plan), found).expect("the plan loads");
        begin(&mut session, 0, TOTAL_STEPS).expect("the state is set");
        let inputs = [("x".to_owned(), HostTensor::f32(&[8, 16], vec![0.5; 128]).expect("a batch"))].into();
        for _ in 0..2 {
            session.run(PROGRAM_TRAIN, &inputs).expect("it runs");
        }
        let first = session.first_nonfinite(PROGRAM_TRAIN, &inputs).expect("it runs").expect("something overflows");
        assert_eq!((first.origin.as_str(), first.value), ("exp", f32::INFINITY), "{device}: {first:?}");
    }
}

/// A case that nothing could fail would be none.
#[test]
fn wrong_values_are_found() {
    let text = r#"(doc: "", outputs: { "y": [1, 0, inf] }, near: { "z": 1 })"#;
    let case: Case = ron::from_str(text).expect("a case");
    let with = |y: [f64; 3]| case.admits(&(Numbers::from([("y".into(), y.to_vec())]), Numbers::new())).is_ok();
    assert!(with([1.000001, 0.0, f64::INFINITY]));
    for y in [[1.0001, 0.0, f64::INFINITY], [1.0, 1e-20, f64::INFINITY], [1.0, 0.0, f64::MAX], [1.0, 0.0, f64::NAN]] {
        assert!(!with(y), "{y:?}");
    }
    assert!(case.admits(&Results::default()).is_err());
}

//! In which order a card is asked to do things. The stand-in of the driver does them as late as it may, so whoever forgets to wait
//! gets wrong numbers every time.

use std::process::Command;
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::{Buffer, PROGRAM_TRAIN, Plan, Program, Target};
use alip_runtime::device::{DeviceOptions, LoadedPlan, Slice, choose};

use super::{bare, stand_in};

/// Two inputs, and launches that come one after the other.
pub(crate) const SPEC: &str = r#"Graph(
    name: "tiny",
    use: ["optim/sgd", "schedule/constant"],
    inputs: { "x": (dtype: F32, shape: "[8, 8]"), "y": (dtype: F32, shape: "[8, 8]") },
    params: { "w": (shape: "[8, 8]", init: "1") },
    body: ["z = (x @ y) @ w", "loss = sum(z * z)"],
    metrics: { "loss": "loss" },
    train: (loss: "loss", optimizer: "sgd(momentum: 0)", schedule: "constant(max_lr: 1e-3)"),
)"#;

/// Whether this process finds the stand-ins. Where it does not, one that does has run the test of this name, with these settings.
fn in_child(name: &str, settings: &[(&str, &str)]) -> bool {
    if std::env::var_os("ALIP_STANDIN_CHILD").is_some() {
        return true;
    }
    let Some(stand_in) = stand_in() else { return false };
    let folder = tempfile::tempdir().unwrap();
    let mut command = bare(Command::new(std::env::current_exe().unwrap()), folder.path());
    stand_in.give(&mut command).env("XDG_CACHE_HOME", folder.path().join("cache"));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("ALIP_STANDIN_CHILD", "1");
    command.args(["--exact", &format!("order::{name}"), "--nocapture"]).envs(settings.iter().copied());
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    false
}

/// The plan on the stand-in of a card.
struct Card {
    plan: Arc<Plan>,
    loaded: Box<dyn LoadedPlan>,
}

impl Card {
    fn new(options: &DeviceOptions) -> Card {
        let files = [("tiny.ron".to_string(), SPEC.to_string())].into();
        let options_of_spec = SpecOptions {
            spec: Options { files, ..Options::default() },
            compile: CompileOptions { target: Target::sm_90a(), ..CompileOptions::default() },
            ..SpecOptions::default()
        };
        let mut sources = SourceMap::new();
        let compiled = compile_spec(&mut sources, "tiny.ron", &options_of_spec);
        let compiled = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
        let plan = Arc::new(compiled.plan.unwrap());
        let loaded = choose("cuda", options).unwrap().device.load(Arc::clone(&plan)).unwrap();
        Card { plan, loaded }
    }

    fn train(&self) -> &Program {
        &self.plan.programs[PROGRAM_TRAIN]
    }

    fn input(&self, name: &str) -> Slice {
        let found = self.train().batch_inputs().find(|(input, _)| *input == name);
        Slice::from(found.unwrap().1)
    }

    /// Gives both inputs this value everywhere.
    fn give(&mut self, value: f32) -> bool {
        let bytes = [value; 64].map(f32::to_le_bytes).concat();
        let inputs = ["x", "y"].map(|name| (self.input(name), bytes.as_slice()));
        self.loaded.write_inputs(&inputs).is_ok()
    }

    /// Overwrites the inputs in all slots, and does all of that which the driver was asked for.
    fn overwrite(&mut self) {
        (0..6).for_each(|number| assert!(self.give(100.0 + number as f32)));
    }

    /// The floats in a slice.
    fn read(&mut self, slice: Slice) -> Vec<f32> {
        floats(&self.loaded.read(&[slice]).unwrap().wait().unwrap())
    }

    /// The first step that reads an input, and what it leaves.
    fn first_reader(&self) -> (usize, Slice) {
        let train = self.train();
        let inputs = ["x", "y"].map(|name| self.input(name));
        let buffer = |operand: &u32| -> &Buffer { &train.buffers[*operand as usize] };
        let reads = |operands: &[u32]| operands.iter().any(|operand| inputs.contains(&Slice::from(buffer(operand))));
        let step = train.steps.iter().position(|step| reads(&step.operands)).unwrap();
        let of = &train.steps[step];
        let written = self.plan.kernels[of.kernel as usize].description.written();
        let position = written.into_iter().next().unwrap();
        (step, Slice::from(buffer(&of.operands[usize::from(position)])))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn an_input_that_is_being_read_is_not_overwritten() {
    if !in_child("an_input_that_is_being_read_is_not_overwritten", &[]) {
        return;
    }
    let mut card = Card::new(&DeviceOptions::default());
    assert!(card.give(2.0));
    let steps = card.train().steps.len();
    card.loaded.run_steps(PROGRAM_TRAIN, 0..steps).unwrap();
    let slice = card.input("x");
    let download = card.loaded.read(&[slice]).unwrap();
    card.overwrite();
    assert_eq!(floats(&download.wait().unwrap()), [2.0; 64]);
}

#[test]
fn inputs_before_one_that_is_refused_arrive() {
    if !in_child("inputs_before_one_that_is_refused_arrive", &[("ALIP_STANDIN_COPY", "2")]) {
        return;
    }
    let mut card = Card::new(&DeviceOptions::default());
    assert!(!card.give(3.0));
    // Were the pinned memory of the first spare already, this would write there.
    let (x, y) = (card.input("x"), card.input("y"));
    assert_eq!(card.read(y), [0.0; 64]);
    assert_eq!(card.read(x), [3.0; 64]);
}

#[test]
fn launches_before_one_that_is_refused_keep_their_inputs() {
    if !in_child("launches_before_one_that_is_refused_keep_their_inputs", &[("ALIP_STANDIN_REFUSE", "2")]) {
        return;
    }
    let mut card = Card::new(&DeviceOptions::default());
    let (first, made) = card.first_reader();
    let steps = card.train().steps.len();
    assert!(card.give(2.0));
    let error = card.loaded.run_steps(PROGRAM_TRAIN, first..steps).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{error}");
    card.overwrite();
    let found = card.read(made);
    let mut again = |value: f32| {
        assert!(card.give(value));
        card.loaded.run_steps(PROGRAM_TRAIN, first..first + 1).unwrap();
        card.read(made)
    };
    let (right, overwritten) = (again(2.0), again(105.0));
    assert_ne!(right, overwritten);
    assert_eq!(found, right);
}

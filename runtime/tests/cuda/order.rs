//! In which order a card is asked to do things. The stand-in of the driver does them as late as it may, so whoever forgets to wait
//! gets wrong numbers every time.

use std::fs;
use std::path::Path;
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

/// A batch of any size, of which most of the memory is.
pub(crate) const WIDE: &str = r#"Graph(
    name: "wide",
    use: ["optim/sgd", "schedule/constant"],
    dims: { "B": Batch(16) },
    inputs: { "x": (dtype: F32, shape: "[B, 256]") },
    params: { "w": (shape: "[256, 8]", init: "1") },
    body: ["z = x @ w", "loss = sum(z * z)"],
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

fn compiled(spec: &str, options: &SpecOptions) -> Plan {
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, spec, options);
    compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).plan.unwrap()
}

/// The tiny graph, for a card.
fn options() -> SpecOptions {
    let files = [("tiny.ron".to_string(), SPEC.to_string())].into();
    SpecOptions {
        spec: Options { files, ..Options::default() },
        compile: CompileOptions { target: Target::sm_90a(), ..CompileOptions::default() },
        ..SpecOptions::default()
    }
}

/// The plan of a spec for a card, as a folder.
pub(crate) fn write_plan(spec: &Path, folder: &Path) {
    let compile = CompileOptions { target: Target::sm_90a(), ..CompileOptions::default() };
    let plan = compiled(&spec.to_string_lossy(), &SpecOptions { compile, ..SpecOptions::default() });
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(alip_runtime::run::PLAN), plan.to_bytes()).unwrap();
}

/// The plan on the stand-in of a card.
struct Card {
    plan: Arc<Plan>,
    loaded: Box<dyn LoadedPlan>,
}

impl Card {
    fn new(options: &DeviceOptions) -> Card {
        let plan = Arc::new(compiled("tiny.ron", &self::options()));
        let loaded = choose("cuda", options).unwrap().device.load(Arc::clone(&plan)).unwrap();
        Card { plan, loaded }
    }

    /// The same with weights that are not nothing.
    fn begun(options: &DeviceOptions) -> Card {
        let mut card = Card::new(options);
        let weights: Vec<u8> = (0..64).flat_map(|n| (n as f32 / 64.0).to_le_bytes()).collect();
        let slice = Slice::from(&card.plan.state("w").unwrap().buffer);
        card.loaded.write(slice, &weights).unwrap();
        card
    }

    /// The loss, and the weights.
    fn results(&self) -> Vec<Slice> {
        let loss = self.train().output("loss").unwrap();
        vec![Slice::from(loss), Slice::from(&self.plan.state("w").unwrap().buffer)]
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
fn steps_are_timed_by_the_card() {
    for driver in ["12080", "12070"] {
        if !in_child("steps_are_timed_by_the_card", &[("ALIP_STANDIN_DRIVER", driver)]) {
            continue;
        }
        let mut card = Card::new(&DeviceOptions::default());
        assert!(card.give(1.0));
        let steps = card.train().steps.len();
        let times = card.loaded.time_steps(PROGRAM_TRAIN, steps).unwrap();
        assert!(times.len() == steps && times.iter().all(|time| !time.is_zero()), "{times:?}");
        return;
    }
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

/// Steps of the training program.
fn launches() -> usize {
    compiled("tiny.ron", &options()).programs[PROGRAM_TRAIN].steps.len()
}

/// Trains nine times, three with the inputs of each slot, all of which are submitted before any result is awaited; metrics and
/// weights after each.
fn train_on_all_slots(card: &mut Card) -> Vec<Vec<f32>> {
    let (steps, wanted) = (card.train().steps.len(), card.results());
    let downloads: Vec<_> = (0..9)
        .map(|number| {
            assert!(card.give(0.25 + number as f32 / 16.0));
            card.loaded.run_steps(PROGRAM_TRAIN, 0..steps).unwrap();
            card.loaded.read(&wanted).unwrap()
        })
        .collect();
    downloads.into_iter().map(|download| floats(&download.wait().unwrap())).collect()
}

#[test]
fn a_program_is_recorded_once_for_each_slot_and_yields_the_same_bits() {
    let name = "a_program_is_recorded_once_for_each_slot_and_yields_the_same_bits";
    // The first time launch by launch, and then a recording for each slot.
    let most = (launches() * 4 + 1).to_string();
    if !in_child(name, &[("ALIP_STANDIN_REFUSE", &most)]) {
        return;
    }
    let recorded = train_on_all_slots(&mut Card::begun(&DeviceOptions::default()));
    let one_by_one = DeviceOptions { launch_by_launch: true, ..DeviceOptions::default() };
    // The launch that is refused is the first of these: had a graph been recorded more often, it would have been in it.
    let mut card = Card::begun(&one_by_one);
    assert!(card.give(0.25));
    let error = card.loaded.run_steps(PROGRAM_TRAIN, 0..launches()).unwrap_err().to_string();
    assert!(error.contains("cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED"), "{error}");
    let launched = train_on_all_slots(&mut Card::begun(&one_by_one));
    assert_eq!(recorded, launched);
    assert!(recorded.windows(2).all(|pair| pair[0] != pair[1]), "{recorded:?}");
}

#[test]
fn a_launch_that_cannot_be_recorded_is_named() {
    let refused = (launches() + 2).to_string();
    if !in_child("a_launch_that_cannot_be_recorded_is_named", &[("ALIP_STANDIN_REFUSE", &refused)]) {
        return;
    }
    let mut card = Card::begun(&DeviceOptions::default());
    let (steps, wanted) = (launches(), card.results());
    let mut run = |value: f32| {
        assert!(card.give(value));
        let ran = card.loaded.run_steps(PROGRAM_TRAIN, 0..steps).map_err(|error| error.to_string());
        ran.map(|()| floats(&card.loaded.read(&wanted).unwrap().wait().unwrap()))
    };
    let first = run(0.5).unwrap();
    let error = run(0.5).unwrap_err();
    let origin = &compiled("tiny.ron", &options()).programs[PROGRAM_TRAIN].steps[1].origin;
    let launch = "device `cuda` failed: cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (too many resources requested for launch), \
                  in `";
    assert_eq!(error, format!("{launch}{origin}`"));
    // Nothing of it ran, and the queue can be used as before.
    let second = run(0.5).unwrap();
    let right: Vec<_> = {
        let mut card = Card::begun(&DeviceOptions { launch_by_launch: true, ..DeviceOptions::default() });
        let run = |_| {
            assert!(card.give(0.5));
            card.loaded.run_steps(PROGRAM_TRAIN, 0..steps).unwrap();
            floats(&card.loaded.read(&wanted).unwrap().wait().unwrap())
        };
        (0..2).map(run).collect()
    };
    assert_eq!([first, second], right[..]);
}

#[test]
fn a_launch_that_fails_in_a_graph_fails_what_waits_for_it() {
    // In the fourth run, of which the first was launch by launch.
    let failing = (launches() * 3 + 2).to_string();
    if !in_child("a_launch_that_fails_in_a_graph_fails_what_waits_for_it", &[("ALIP_STANDIN_FAIL", &failing)]) {
        return;
    }
    let mut card = Card::begun(&DeviceOptions::default());
    let (steps, wanted) = (launches(), card.results());
    let waits = (0..4).map(|_| {
        assert!(card.give(0.5));
        card.loaded.run_steps(PROGRAM_TRAIN, 0..steps).unwrap();
        card.loaded.read(&wanted).unwrap().wait().map(drop).map_err(|error| error.to_string())
    });
    let waits: Vec<_> = waits.collect();
    let error = "device `cuda` failed: cuEventSynchronize: CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)";
    assert_eq!(waits, [Ok(()), Ok(()), Ok(()), Err(error.to_string())]);
}

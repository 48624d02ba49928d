//! Weights in the containers that people have: every file of `tests/goldens/weights` gives the features that the library computes
//! which wrote it, on the `cpu` device and in the f64 interpreter.
//!
//! Bounds. In f32 a result is off by what its roundings move it, which `sensitivity::sampled` finds for roundings of 2^-40, with a
//! margin of 16: those of f32 are 2^16 times as large, and what they do is of first order. Its margin is for sums here, whose
//! rounding grows with the square root of their length, 11 for the longest of these models; and since few draws may be lucky for
//! one element, what moves the features is what moves the one of them that moves most. Weights that were rounded to 16 bits move the
//! features by what random changes of that size do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Model, TensorType, Value, interpret};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::trust::Judged;
use alip_compiler::trust::sensitivity::{Constants, sampled};
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::bounds::{BF16, F16, largest};
use alip_plan::philox::{counter, philox4x32, uniform};
use alip_plan::{StateKind, Target};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::tensor::HostTensor;
use alip_runtime::weights::{Assigned, Weights, assign};
use alip_tests::compiled::{numbers, tensor};
use alip_tests::goldens;

/// From the roundings of `sampled` to those of f32.
const TO_F32: f64 = (1u64 << 16) as f64;

/// Between the changes that were tried and the bound: one chance in a billion per value that three tries are all so lucky.
const MARGIN: f64 = 16.0;

/// Programs with their inputs and outputs, and the names of these in the goldens.
const PROGRAMS: [(&str, &str, &str, &str); 2] =
    [("encode_image", "image", "x", "image"), ("encode_text", "raw", "tr", "text")];

type Values = BTreeMap<String, Value>;

fn golden(file: &str) -> PathBuf {
    goldens::path(&format!("weights/{file}"))
}

fn spec(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("weights/{name}.ron")).display().to_string()
}

fn model(name: &str) -> Model {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, &spec(name), &Options::default());
    resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).model
}

fn session(name: &str) -> Session {
    let mut sources = SourceMap::new();
    let options = SpecOptions {
        compile: CompileOptions { target: Target::cpu(), ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let compiled = compile_spec(&mut sources, &spec(name), &options);
    let compiled = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let plan = compiled.plan.expect("no pass was asked to be the last");
    let device = choose("cpu", &DeviceOptions::default()).expect("every machine has it").device;
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    session.init(1).expect("init runs");
    session
}

/// Inputs of a program.
fn inputs(model: &Model, program: &str, from: &str) -> Values {
    let stored = &goldens::load("weights/inputs.safetensors")[from];
    let graph = &model.programs[program];
    let value = |(name, id)| (String::clone(name), Value::new(TensorType::clone(graph.ty(id)), stored.values.clone()));
    graph.inputs.iter().map(|(name, id)| value((name, *id))).collect()
}

/// The state of a session, exactly.
fn state(session: &mut Session, model: &Model) -> Values {
    let read = |(path, decl): (&String, &alip_compiler::ir::StateDecl)| {
        let tensor = session.read_state(path).expect("every state of the graph");
        (path.clone(), Value::new(decl.ty.clone(), numbers(&tensor)))
    };
    model.state.iter().map(read).collect()
}

/// What a program yields in f64, and how far an f32 may be off.
fn judged(model: &Model, program: &str, inputs: &Values, state: &Values, output: &str) -> (Vec<f64>, f64) {
    let judged = sampled(&model.programs[program], inputs, state, Constants::Written).expect("the program runs");
    let Judged { value, bounds } = judged[output].clone();
    (value, TO_F32 * largest(&bounds))
}

/// How far the features move when all weights change by up to `size`, relative.
fn moved(model: &Model, program: &str, inputs: &Values, state: &Values, output: &str, size: f64) -> f64 {
    let run = |number: u32| {
        let mut state = state.clone();
        for (tensor, (path, value)) in state.iter_mut().enumerate() {
            if number == 0 || model.state[path].kind != StateKind::Param {
                continue;
            }
            for (index, value) in value.data.iter_mut().enumerate() {
                let draw = philox4x32(counter(index as u64 / 4, tensor as u64), [number, 7])[index % 4];
                *value *= 1.0 + size * (2.0 * f64::from(uniform(draw)) - 1.0);
            }
        }
        interpret(&model.programs[program], inputs, &state).expect("the program runs").outputs[output].data.clone()
    };
    let exact = run(0);
    let spread = |other: Vec<f64>| other.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    MARGIN * (1..=3).map(|number| spread(run(number))).fold(0.0, f64::max)
}

/// Weights of a file in a graph: on a device and in the interpreter the features are the stored ones, further off by at most what
/// weights that were rounded by `rounded` move them.
fn check(file: &str, graph: &str, features: &str, rounded: f64) -> Assigned {
    let mut weights = Weights::open_as_ours(&golden(file), None).unwrap_or_else(|error| panic!("{error}"));
    let mut session = session(graph);
    let assigned = assign(&mut session, &mut weights, None).unwrap_or_else(|error| panic!("{error}"));
    let model = model(graph);
    let state = state(&mut session, &model);
    let stored = goldens::load(&format!("weights/{features}.features.safetensors"));
    for (program, input, output, of) in PROGRAMS {
        let inputs = inputs(&model, program, of);
        let (exact, bound) = judged(&model, program, &inputs, &state, output);
        let given = inputs.iter().map(|(name, value)| (name.clone(), tensor(value))).collect();
        assert!(inputs.contains_key(input));
        let found = session.run(program, &given).expect("the program runs");
        let own = numbers(&found[output]);
        let further = if rounded > 0.0 { moved(&model, program, &inputs, &state, output, rounded) } else { 0.0 };
        let (mut worst, mut worst_stored) = (0.0f64, 0.0f64);
        for (index, exact) in exact.iter().enumerate() {
            let (device, library) = ((own[index] - exact).abs(), (stored[of].values[index] - exact).abs());
            assert!(device <= bound, "{file}: {program} {index} on the device: {device} > {bound}");
            assert!(
                library <= bound + further,
                "{file}: {program} {index} of the library: {library} > {bound} + {further}"
            );
            (worst, worst_stored) = (worst.max(device / bound), worst_stored.max(library / (bound + further)));
        }
        println!(
            "{file}, {program}: device {:.0} % of the bound, library {:.0} %; bound up to {:.1e}",
            worst * 100.0,
            worst_stored * 100.0,
            bound + further
        );
    }
    assigned
}

#[test]
fn open_clip_in_all_its_containers() {
    let files = [
        "open_clip_vit.safetensors",
        "open_clip_vit.train_checkpoint.pt",
        "open_clip_vit.alip_style.pt",
        "open_clip_vit.legacy_not_zip.pt",
        "open_clip_vit.shared_storage.pt",
    ];
    for file in files {
        let assigned = check(file, "open_clip_vit", "open_clip_vit", 0.0);
        assert_eq!((assigned.assigned.len(), assigned.kept.len(), assigned.others.len()), (62, 0, 0), "{file}");
    }
}

#[test]
fn weights_of_16_bits() {
    check("open_clip_vit.f16.pt", "open_clip_vit", "open_clip_vit", F16.unit_roundoff);
    check("open_clip_vit.bf16.pt", "open_clip_vit", "open_clip_vit", BF16.unit_roundoff);
}

#[test]
fn torchscript_of_openai() {
    check("openai_vit_quick.torchscript.pt", "openai_vit_quick", "openai_vit_quick", 0.0);
}

#[test]
fn a_resnet_with_its_running_statistics() {
    let assigned = check("open_clip_rn.pt", "open_clip_rn", "open_clip_rn", 0.0);
    assert_eq!(assigned.assigned.len(), 153);
}

#[test]
fn hugging_face_with_other_names_and_layouts() {
    check("hf_clip", "openai_vit_quick", "hf_clip", 0.0);
}

/// The tensors of each container are those of the safetensors file, to the bit, or rounded from them.
#[test]
fn containers_hold_the_same_bits() {
    let mut truth = Weights::open(&golden("open_clip_vit.safetensors")).expect("a golden file");
    let names: Vec<String> = truth.names().map(str::to_string).collect();
    let check = |file: &str, truth: &mut Weights, dtype: DType| {
        let mut weights = Weights::open(&golden(file)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(weights.names().collect::<Vec<_>>(), names, "{file}");
        for name in &names {
            let expected: HostTensor = truth.read_as(name, dtype).expect("a golden tensor");
            assert_eq!(
                weights.read_as(name, dtype).unwrap_or_else(|error| panic!("{error}")),
                expected,
                "{file} {name}"
            );
        }
    };
    for container in ["train_checkpoint", "alip_style", "legacy_not_zip", "shared_storage"] {
        check(&format!("open_clip_vit.{container}.pt"), &mut truth, DType::F32);
    }
    check("open_clip_vit.f16.pt", &mut truth, DType::F16);
    check("open_clip_vit.bf16.pt", &mut truth, DType::Bf16);
}

#[test]
fn hostile_files_are_refused() {
    let check = |file: &str, message: &str| {
        let error = Weights::open(&golden(file)).map(|_| ()).unwrap_err().to_string();
        let shown = error.replace(&golden("").display().to_string(), "");
        assert_eq!(shown, message);
    };
    check(
        "hostile_reduce.pt",
        "hostile_reduce.pt: the pickle in it is refused: it asks for `posix.system`, which is nothing that weights need and may run \
         anything; nothing was run",
    );
    check(
        "hostile_path.pt",
        "hostile_path.pt: the archive has a member `../../escape/data.pkl`, whose name leads out of it; nothing was read of it",
    );
    check(
        "hostile_truncated.pt",
        "hostile_truncated.pt: the archive is cut short or damaged: it has no sound directory at its end (invalid Zip archive: Could \
         not find EOCD)",
    );
    assert!(!Path::new("EVIL_RAN").exists());
}

/// Protocols, nestings, types, views and packings that the large files have not.
#[test]
fn containers_that_are_odd() {
    let path = |file: &str| goldens::path(&format!("containers/{file}"));
    let mut truth = Weights::open(&path("truth.safetensors")).expect("a golden file");
    let names: Vec<String> = truth.names().map(str::to_string).collect();
    let beside = "the weights are those under `model`; left out: `args`, `best`, `epoch`, `scheduler`, `device`";
    let nested = "the weights are those under `state_dict`";
    let prefix = "`module._orig_mod.` before all names was taken away";
    let mut check = |file: &str, notes: &[&str], lacks: &str| {
        let mut weights = Weights::open(&path(file)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(weights.notes(), notes, "{file}");
        assert_eq!(weights.names().count() + usize::from(!lacks.is_empty()), names.len(), "{file}");
        for name in names.iter().filter(|name| *name != lacks) {
            let read = weights.read(name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(read, truth.read(name).expect("a golden tensor"), "{file} {name}");
        }
    };
    check("protocol_5.pt", &[beside], "");
    check("deflated.pt", &[beside], "");
    check("nested.pt", &[nested, nested, prefix], "");
    check("legacy_protocol_4.pt", &[beside], "wide");
    let refused = |file: &str, message: &str| {
        let error = Weights::open(&path(file)).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with(message), "{error}");
    };
    refused(
        "module.pt",
        "it asks for `torch.nn.modules.linear.Linear`, which is nothing that weights need and may run anything; nothing was run",
    );
    refused("mixed.pt", "mixed.pt: `args` among the weights is argparse.Namespace and no tensor");
    refused(
        "none.pt",
        "it holds no weights: neither a dictionary of tensors nor one under `state_dict` or `model`; save `model.state_dict()`",
    );
}

/// A byte of a tensor that fell over is found by the checksum of its member, whichever tensor it is.
#[test]
fn damaged_members_of_archives_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let sound = std::fs::read(golden("open_clip_vit.alip_style.pt")).expect("a golden file");
    for at in [sound.len() / 4, sound.len() / 2] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        let path = folder.path().join("weights.pt");
        std::fs::write(&path, bytes).expect("a temporary file");
        let mut weights = Weights::open(&path).unwrap_or_else(|error| panic!("{error}"));
        let names: Vec<String> = weights.names().map(str::to_string).collect();
        let wrong: Vec<String> = names.iter().filter_map(|name| Some(weights.read(name).err()?.to_string())).collect();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].ends_with("the archive is damaged (Invalid checksum)"), "{}", wrong[0]);
    }
}

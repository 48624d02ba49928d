//! What a user sees when something is wrong: the message, a non-zero exit status, and nothing lost.

#![cfg(feature = "compile")]

use std::fs;
use std::path::Path;
use std::process::Command;

use alip_plan::{DType, Plan, Program};

/// Runs `alip-run` in a folder; exit status, stdout, stderr.
fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_alip-run")).current_dir(folder).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The command fails and says all of this, in this order.
fn check(folder: &Path, args: &[&str], said: &[&str]) {
    let (status, out, err) = run(folder, args);
    assert_eq!(status, Some(1), "{args:?}\n{out}{err}");
    let mut rest = err.as_str();
    for part in said {
        let Some(at) = rest.find(part) else { panic!("{args:?}: no {part:?} in\n{err}") };
        rest = &rest[at + part.len()..];
    }
    assert!(!err.contains("panicked"), "{err}");
}

const SMALL: &str = r#"Graph(
    name: "small",
    base: "alip_shapes",
    dims: { "B": Batch(4), "D": 8 },
    inputs: { "image": (dtype: F32, shape: "[B, 3, 32, 32]") },
    parts: {
        "visual": "vit(image: 32, patch: 16, width: 8, layers: 1, heads: 2, out: D)",
        "text": "text_transformer(vocab: 512, context: T, width: 8, layers: 1, heads: 2, out: D)",
    },
    data: "small_data",
)"#;

const SMALL_DATA: &str = r#"Pipeline(
    name: "small_data",
    source: Shapes(size: 32, scenes: 16, held_out: 8),
    shuffle: (),
    body: [
        "pixels = normalize_rgb(image, mean: 0.5, std: 0.25)",
        "raw_ids = tokenize(raw, 32, vocab: 'words:512')",
        "caption_ids = tokenize(caption, 32, vocab: 'words:512')",
    ],
    outputs: { "image": "pixels", "raw": "raw_ids", "caption": "caption_ids" },
)"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("small.ron"), SMALL).unwrap();
    fs::write(folder.path().join("small_data.ron"), SMALL_DATA).unwrap();
    folder
}

const TRAIN: [&str; 6] = ["train", "small.ron", "--device", "cpu", "--steps", "3"];

#[test]
fn what_cannot_be_trained_is_said_before_the_first_step() {
    let folder = folder();
    let at = folder.path();
    check(at, &["train", "alip_shapez", "--device", "cpu"], &["error: ", "alip_shapez", "alip_shapes"]);
    check(at, &["train", "small.ron", "--device", "cuba"], &["error: device `cuba` cannot be used: this build has "]);
    check(
        at,
        &["train", "small.ron", "--device", "cpu:1"],
        &["error: device `cpu:1` cannot be used: there is one cpu only; call it `cpu`"],
    );
    check(at, &[&TRAIN[..5], &["0"]].concat(), &["error: --steps 0: a run has at least one step"]);
    check(
        at,
        &["train", "small.ron", "--device", "cpu", "--epochs", "0"],
        &["error: --epochs 0: give a number above 0"],
    );
    check(at, &["train", "small.ron", "--device", "cpu", "--set", "train.epoch=3"], &["error: ", "epoch"]);
    check(
        at,
        &[&TRAIN[..], &["--data", "."]].concat(),
        &[
            "error: graph `small`: pipeline `small_data` reads no files; give --data a pipeline whose source does, such as `Folder`",
        ],
    );
    check(
        at,
        &["train", "small.ron", "--device", "cpu", "--seed", "3000000000"],
        &["error: --seed 3000000000 is too large"],
    );
    check(
        at,
        &["train", "alip_flickr8k", "--device", "cpu", "--data", "."],
        &["captions.jsonl: ", "; write one line per image: "],
    );
    fs::write(at.join("no_training.ron"), r#"Graph(name: "no_training", base: "small", train: None, metrics: { "lr": None, "beta1": None, "grad_norm": None, "clip_coef": None, "logit_scale_before": None, "logit_scale_after": None })"#).unwrap();
    check(at, &["train", "no_training.ron", "--device", "cpu"], &["error: graph `no_training`"]);
    // Whatever was wrong, no run was begun.
    assert!(!at.join("runs/small/run.json").exists());
}

#[test]
fn a_run_is_not_overwritten_and_only_a_run_is_resumed() {
    let folder = folder();
    let at = folder.path();
    check(
        at,
        &["train", "small.ron", "--device", "cpu", "--resume"],
        &["error: runs/small holds no run (there is no run.json)"],
    );
    check(at, &["eval", "runs/small"], &["error: runs/small holds no run"]);
    let (status, out, err) = run(at, &TRAIN);
    assert_eq!(status, Some(0), "{out}{err}");
    for line in [
        "small after 3 steps, on 8 held-out samples",
        "image to text R@1",
        "zero-shot accuracy of 72 classes",
        "(AUC)",
        "report: runs/small/report.html",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    for file in [
        "plan.alip",
        "run.json",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "checkpoints/step-00000003.safetensors",
    ] {
        assert!(at.join("runs/small").join(file).exists(), "{file}");
    }
    check(
        at,
        &TRAIN,
        &[
            "error: runs/small already holds a run of `small` (saved at step 3 of 3); continue it with --resume, or choose another directory with --out",
        ],
    );
    check(at, &["report", "runs/small", "--against", "runs/other"], &["error: runs/other holds no run"]);
    let (status, out, err) = run(at, &["report", "runs/small", "--against", "runs/small"]);
    assert_eq!(status, Some(0), "{out}{err}");
    // The same run again is measured the same.
    let (status, again, err) = run(at, &["eval", "runs/small", "--device", "cpu", "--json"]);
    assert_eq!(status, Some(0), "{again}{err}");
    let json: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(json["samples"], 8);
    // A plan that somebody cut short.
    let plan = at.join("runs/small/plan.alip");
    let bytes = fs::read(&plan).unwrap();
    fs::write(&plan, &bytes[..bytes.len() / 2]).unwrap();
    check(at, &["eval", "runs/small", "--device", "cpu"], &["error: runs/small/plan.alip: the plan file is damaged"]);
}

/// Steps compute in 16 bits, and what is measured in f32.
#[test]
fn a_run_of_mixed_precision_is_measured() {
    let folder = folder();
    let at = folder.path();
    let mixed = [&TRAIN[..], &["--target", "cpu_mixed", "--set", "train.precision=Bf16"]].concat();
    let (status, out, err) = run(at, &mixed);
    assert_eq!(status, Some(0), "{out}{err}");
    let first: serde_json::Value =
        serde_json::from_slice(&fs::read(at.join("runs/small/results.json")).unwrap()).unwrap();
    let plan = Plan::from_bytes(&fs::read(at.join("runs/small/plan.alip")).unwrap()).unwrap();
    let stored = |program: &Program| program.buffers.iter().any(|buffer| buffer.dtype == DType::Bf16);
    let low = ["train", "encode_image", "encode_text"].map(|name| stored(&plan.programs[name]));
    assert_eq!(low, [true, false, false]);
    let (status, again, err) = run(at, &["eval", "runs/small", "--device", "cpu", "--json"]);
    assert_eq!(status, Some(0), "{again}{err}");
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["samples"], 8);
    for key in ["graph", "step", "retrieval", "zero_shot"] {
        assert_eq!(again[key], first["results"][key], "{key}");
    }
}

#[test]
fn a_compiled_plan_trains_without_its_spec() {
    let folder = folder();
    let at = folder.path();
    let (status, out, err) = run(at, &TRAIN);
    assert_eq!(status, Some(0), "{out}{err}");
    // A run's directory holds a plan as `alipc compile -o` writes it.
    let args = ["train", "runs/small", "--device", "cpu", "--steps", "3", "--out", "again", "--no-eval"];
    let (status, out, err) = run(at, &args);
    assert_eq!(status, Some(0), "{out}{err}");
    let weights = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000003.safetensors")).unwrap();
    assert!(weights("runs/small") == weights("again"), "the same plan, other weights");
    check(
        at,
        &["train", "runs/small", "--batch", "8", "--device", "cpu", "--out", "x"],
        &[
            "error: the plan in runs/small is compiled: --batch, --set, --target, --no-rule and --no-egraph are for specs",
        ],
    );
    check(
        at,
        &["train", "runs/small", "--out", "x", "--device", "cpu", "--data", "alip_shapes"],
        &["error: `alip_shapes` holds no pipeline"],
    );
    // It normalises images itself, as its own pipeline does.
    let other = SMALL_DATA.replace("mean: 0.5", "mean: 0.25").replace("small_data", "paler");
    fs::write(at.join("paler.ron"), other).unwrap();
    check(
        at,
        &["train", "runs/small", "--out", "x", "--device", "cpu", "--data", "paler.ron"],
        &[
            "error: graph `small` is compiled for its own pipeline: `image` is normalised by mean [0.5, 0.5, 0.5] and std",
            "in pipeline `small_data`, but by mean [0.25, 0.25, 0.25] and std",
            "in `paler`; compile it with this one",
        ],
    );
    check(
        at,
        &[
            &["replay", "runs/small", "--weights", "w", "--batches", "b", "--steps", "1", "--out", "o"][..],
            &["--dump", "params,metrics", "--device", "cpu"],
        ]
        .concat(),
        &["error: the plan in runs/small takes images in bytes, as the loader delivers them; give the spec"],
    );
}

#[test]
fn a_loss_that_is_no_number_names_the_step_and_the_node() {
    let folder = folder();
    let at = folder.path();
    let spec = r#"Graph(name: "breaks", base: "small", train: (schedule: "constant(max_lr: 1e30)", clip_grad_norm: None), use: ["schedule/constant"], metrics: { "beta1": None, "clip_coef": None })"#;
    fs::write(at.join("breaks.ron"), spec).unwrap();
    check(
        at,
        &["train", "breaks.ron", "--device", "cpu", "--steps", "50"],
        &[
            "error: step ",
            "metric `",
            "The first value that is not finite was made by `",
            "The batch was samples ",
            "The state before the step is saved in runs/breaks/checkpoints/step-",
        ],
    );
}

#[test]
fn a_run_is_measured_with_its_own_checkpoints() {
    let folder = folder();
    let at = folder.path();
    let train = |more: &[&str]| {
        let (status, out, err) = run(at, &[&TRAIN[..], &["--no-eval"], more].concat());
        assert_eq!(status, Some(0), "{out}{err}");
    };
    train(&[]);
    train(&["--out", "runs/seed", "--seed", "1"]);
    train(&["--out", "runs/wide", "--set", "dims.D=16"]);
    let check = |other: &str, what: &str| {
        let file = format!("runs/{other}/checkpoints/step-00000003.safetensors");
        let said = format!("error: {file}: a checkpoint of another run: {what}; give one of runs/small/checkpoints");
        check(at, &["eval", "runs/small", "--device", "cpu", "--checkpoint", &file], &[&said]);
    };
    check("seed", "it was trained with the seed 1, and this run is with 0");
    check("wide", "it was trained by another plan");
}

/// Gradients lie as one value, of which each is a part; here the first that is too large is that of `weight`.
#[test]
fn a_gradient_that_is_no_number_names_the_module_of_its_parameter() {
    let folder = folder();
    let at = folder.path();
    let module = r#"Module(
        name: "steep",
        inputs: { "x": "[N, D]" },
        params: { "scale": (shape: "[]", init: "1e38"), "weight": (shape: "[D, D]", init: "zeros") },
        body: ["y = x + 1000 * ((x * scale) @ weight)"],
        outputs: ["y"],
    )"#;
    fs::write(at.join("steep.ron"), module).unwrap();
    let spec = r#"Graph(
        name: "cliff",
        base: "small",
        use: ["steep"],
        parts: { "cliff": "steep()" },
        body: ["x = normalize(cliff(visual(image)))"],
    )"#;
    fs::write(at.join("cliff.ron"), spec).unwrap();
    check(
        at,
        &["train", "cliff.ron", "--device", "cpu", "--steps", "3"],
        &[
            "error: step 1: metric `grad_norm` is inf. The first value that is not finite was made by `cliff` (inf at element ",
        ],
    );
}

/// Whatever adapters this machine has, the driver's loader finds none.
#[test]
#[cfg(target_os = "linux")]
fn a_run_is_continued_on_no_other_kind_of_device_without_a_word() {
    use alip_runtime::run::{DeviceIdentity, RunInfo, Writer};
    let folder = folder();
    let at = folder.path();
    let (status, out, err) = run(at, &[&TRAIN[..], &["--no-eval"]].concat());
    assert_eq!(status, Some(0), "{out}{err}");
    let mut started = Writer::open(&at.join("runs/small"), 3).unwrap();
    let device = DeviceIdentity { name: "wgpu".into(), arithmetic: "an adapter, driver 1.0".into() };
    let info = RunInfo { device, ..started.info().clone() };
    started.set_info(info).unwrap();
    drop(started);
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    command.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null");
    let output = command.current_dir(at).args(["train", "--resume", "runs/small"]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let said =
        "error: the run in runs/small was started on wgpu (an adapter, driver 1.0), and device `wgpu` cannot be used: ";
    assert!(err.starts_with(said), "{err}");
    let advice = ". Continue it where there is one, or accept another device, as with `--device cpu --device-changed`: the run then \
                  no longer ends with the bits of one that was never stopped";
    assert!(err.contains(advice), "{err}");
}

#[test]
fn replay_names_what_does_not_fit() {
    let folder = folder();
    let at = folder.path();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/alip_tiny");
    let file = |name: &str| goldens.join(format!("{name}.safetensors")).display().to_string();
    let (weights, inputs) = (file("weights_initial"), file("inputs"));
    let replay = |graph: &str, weights: &str, batches: &str| -> Vec<String> {
        ["replay", graph, "--device", "cpu", "--weights", weights, "--batches", batches, "--out", "out.safetensors"]
            .map(str::to_string)
            .to_vec()
    };
    let check =
        |args: Vec<String>, said: &[&str]| check(at, &args.iter().map(String::as_str).collect::<Vec<_>>(), said);
    check(
        replay("alip_tiny_rn", &weights, &inputs),
        &["weights_initial.safetensors: the weights do not fit graph `alip_tiny_rn`: parameter `"],
    );
    check(replay("alip_tiny", &weights, &weights), &["there is no batch: tensors are named `batch.0.image`"]);
    check(replay("alip_tiny", "none.safetensors", &inputs), &["error: none.safetensors: cannot read"]);
    check(replay("small.ron", &inputs, &inputs), &["the weights do not fit graph `small`"]);
    let gap = at.join("gap.safetensors");
    let bytes = fs::read(&inputs).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.iter().map(|(name, view)| (name.replace("batch.1.", "batch.7."), view));
    safetensors::serialize_to_file(renamed, None, &gap).unwrap();
    check(
        replay("alip_tiny", &weights, "gap.safetensors"),
        &["gap.safetensors: there are batches 0 to 0, but also `batch.", "batches are numbered from 0 without a gap"],
    );
    let fewer = [replay("alip_tiny", &weights, &inputs), vec!["--batch".into(), "4".into()]].concat();
    let shapes = "tensor `batch.0.image` has the shape [8, 3, 32, 32], but [4, 3, 32, 32] is needed";
    check(fewer, &[&format!("inputs.safetensors: {shapes}")]);
    let bytes = fs::read(&weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let swapped = |name: &str| match name {
        "ln_final.bias" => "text_projection".into(),
        "text_projection" => "ln_final.bias".into(),
        name => name.to_string(),
    };
    let swapped = file.iter().map(|(name, view)| (swapped(name), view));
    safetensors::serialize_to_file(swapped, None, &at.join("swapped.safetensors")).unwrap();
    check(
        replay("alip_tiny", "swapped.safetensors", &inputs),
        &["swapped.safetensors: tensor `ln_final.bias` has the shape [48, 32], but [48] is needed"],
    );
    let help = run(at, &["replay", "--help"]).1;
    assert!(help.contains("batch.0.image            f32 [16, 3, 32, 32]  numbered from 0"), "{help}");
    assert!(!at.join("out.safetensors").exists());
}

#[test]
#[cfg(unix)]
fn a_reader_that_stops_reading_breaks_nothing() {
    let folder = folder();
    let program = env!("CARGO_BIN_EXE_alip-run");
    // `true` reads nothing, so every line of both streams meets a closed pipe.
    let script = format!("set -o pipefail; '{program}' {} 2>&1 | true", TRAIN.join(" "));
    let status = Command::new("bash").current_dir(folder.path()).args(["-c", &script]).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(folder.path().join("runs/small/checkpoints/step-00000003.safetensors").exists());
}

#[test]
fn a_pipeline_runs_alone() {
    let folder = folder();
    let at = folder.path();
    let (status, out, err) = run(at, &["data", "small_data.ron", "--batch", "4", "--batches", "3", "--workers", "2"]);
    assert_eq!(status, Some(0), "{out}{err}");
    for line in [
        "small_data: 12 samples in ",
        "image",
        "u8 [32, 32, 3]",
        "i32 [32]",
        "skipped 0",
        " % of what 2 workers prepare",
        "  source  ",
        "  tokenize",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    check(at, &["data", "small.ron"], &["error: `small.ron` holds no pipeline"]);
    let (status, out, err) = run(at, &["data", "small_data.ron", "--batches", "1", "--html", "shown.html"]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(out.ends_with("samples are shown in shown.html\n"), "{out}");
    let page = std::fs::read_to_string(at.join("shown.html")).unwrap();
    assert_eq!(page.matches("<figcaption>image</figcaption>").count(), 64);
    let why = "error: the page cannot be written to nowhere/shown.html: No such file or directory (os error 2); choose another \
               place with --html";
    check(at, &["data", "small_data.ron", "--html", "nowhere/shown.html"], &[why]);
    check(
        at,
        &["data", "shape"],
        &[
            "error: no spec named `shape`",
            "did you mean `shapes`?",
            "or one of: flickr8k, img2dataset, shapes, yfcc15m_rec",
        ],
    );
    let (status, _, err) = run(at, &["data", "small_data.ron", "--batches", "0"]);
    assert_eq!(status, Some(2), "{err}");
    assert!(err.contains("invalid value '0' for '--batches <BATCHES>': 0 is not in 1.."), "{err}");
    check(at, &["data", "small_data.ron", "--data", "."], &["error: pipeline `small_data` reads no files"]);
    check(at, &["data", "pipelines/flickr8k"], &["the environment variable `DATA` is not set"]);
}

/// Drivers that look for a desktop say nothing where there is none; what each device is as a target stands below it.
#[test]
fn devices_are_shown_without_chatter() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    let output = command.arg("devices").env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.contains("\n           target cpu\n"), "{out}");
    let adapter = out.lines().any(|line| line.starts_with("wgpu:0     "));
    assert!(adapter && out.contains("target wgpu:segment=") || out.contains("no Vulkan"), "{out}");
}

#[test]
fn a_profile_in_json_holds_all_kernels() {
    let bench = ["bench", "small.ron", "--json", "--profile", "--device", "cpu", "--warmup", "1", "--steps", "2"];
    let found = |more: &[&str]| -> serde_json::Value {
        let (status, out, err) = run(folder().path(), &[&bench, more].concat());
        assert_eq!(status, Some(0), "{out}{err}");
        serde_json::from_str(&out).unwrap()
    };
    let (captions, full) = (found(&[]), found(&["--full-texts"]));
    let kernels = captions["kernels"].as_array().unwrap();
    let sum = |key: &str| kernels.iter().map(|kernel| kernel[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(sum("launches"), captions["launches"].as_f64().unwrap());
    assert_eq!(sum("flops"), captions["gflop_per_step"].as_f64().unwrap() * 1e9);
    assert!(sum("bytes") > 0.0 && sum("seconds") > 0.0);
    assert_eq!(captions["losses"].as_array().unwrap().len(), 3);
    assert_ne!(captions["losses"], full["losses"]);
    assert!(captions["rows"].as_u64() < full["rows"].as_u64());
}

#[test]
fn a_device_that_cannot_tell_has_no_largest_batch() {
    let (status, out, err) = run(folder().path(), &["bench", "small.ron", "--largest", "--device", "reference"]);
    assert_eq!((status, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("--largest: device `reference` does not tell how much memory is free; give --batch"), "{err}");
}

/// Kernels go by what they compute, whatever runs them.
#[test]
fn a_profile_says_what_kernels_compute() {
    for (device, target) in [("cpu", "cpu"), ("reference", "wgpu")] {
        let bench = ["bench", "small.ron", "--steps", "1", "--profile", "--device", device, "--target", target];
        let (status, out, err) = run(folder().path(), &bench);
        assert_eq!(status, Some(0), "{out}{err}");
        let (_, tables) = out.split_once("\nby kind of kernel, ").expect("a profile");
        let (kinds, kernels) = tables.split_once("\nby kernel, ").expect("two tables");
        let known = ["map", "reduction", "product", "conv2d", "scatter_add", "attention"];
        for kind in known {
            assert!(kinds.lines().any(|line| line.ends_with(&format!("GB/s  {kind}"))), "no {kind} in\n{out}");
        }
        for line in kernels.lines().skip(1) {
            assert!(known.iter().any(|kind| line.contains(&format!("GB/s  {kind} "))), "{line}");
        }
    }
}

#[test]
fn targets_are_named() {
    let folder = folder();
    let at = folder.path();
    let native = [&TRAIN[..], &["--no-eval", "--target", "native"]].concat();
    let (status, out, err) = run(at, &native);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(err.contains("target: cpu\n"), "{err}");
    check(
        at,
        &[&TRAIN[..], &["--target", "gpu", "--out", "runs/gpu"]].concat(),
        &["error: --target gpu: the targets of this device are native, cpu, cpu_mixed\n"],
    );
    check(
        at,
        &["bench", "small.ron", "--device", "cpu", "--target", "wgpu"],
        &["error: --target wgpu: the targets of "],
    );
    check(
        at,
        &["bench", "small.ron", "--device", "reference", "--target", "gpu"],
        &["error: --target gpu: the targets of this device are native, cpu, cpu_mixed, wgpu, sm_80, sm_90a, sm_100\n"],
    );
    check(
        at,
        &[&TRAIN[..], &["--target", "wgpu:foo=3", "--out", "runs/gpu"]].concat(),
        &[
            "error: --target wgpu:foo=3: there is no limit `foo`, but there are segment, binding, operands, workgroups; the \
             targets of this device are native, cpu, cpu_mixed",
        ],
    );
}

#[test]
fn fewer_samples_than_a_batch_are_told() {
    let folder = folder();
    let (status, out, err) =
        run(folder.path(), &["train", "small.ron", "--device", "cpu", "--steps", "1", "--batch", "20", "--no-eval"]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(err.contains("warning: the data have 16 samples, fewer than a batch of 20: every batch holds"), "{err}");
    let (_, _, err) = run(folder.path(), &["data", "small_data.ron", "--batch", "17", "--batches", "1"]);
    assert!(err.contains("warning: the data have 16 samples, fewer than a batch of 17"), "{err}");
}

/// A loss of one sample against itself is always the same.
#[test]
fn a_batch_of_one_is_told_where_samples_are_compared() {
    let folder = folder();
    let (status, out, err) = run(folder.path(), &[&TRAIN[..], &["--no-eval", "--batch", "1"]].concat());
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(err.contains("warning: a batch of one sample, which is compared with no other"), "{err}");
    assert!(err.contains("this compares f32[") && err.contains("stdlib/losses.ron"), "{err}");
    let (_, _, err) = run(folder.path(), &[&TRAIN[..], &["--no-eval", "--out", "runs/two", "--batch", "2"]].concat());
    assert!(!err.contains("warning: a batch of one"), "{err}");
}

/// Skipped samples are counted by reason, in training and by `data`.
#[test]
fn skips_are_told_by_reason() {
    let folder = folder();
    let at = folder.path();
    fs::create_dir(at.join("images")).unwrap();
    let mut lines = String::new();
    for index in 0..12 {
        let name = format!("images/{index}.png");
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        let pixels = vec![index as u8; 32 * 32 * 3];
        image::ImageEncoder::write_image(encoder, &pixels, 32, 32, image::ExtendedColorType::Rgb8).unwrap();
        fs::write(at.join(&name), if index < 2 { b"nothing".to_vec() } else { png }).unwrap();
        lines += &format!(r#"{{"image": "{name}", "captions": ["a dog", "a cat"], "split": "train"}}"#);
        lines.push('\n');
    }
    fs::write(at.join("captions.jsonl"), lines).unwrap();
    let pipeline =
        SMALL_DATA.replace("Shapes(size: 32, scenes: 16, held_out: 8)", r#"Folder(path: ".", eval_split: "train")"#);
    let pipeline = pipeline.replace("normalize_rgb(image", "normalize_rgb(resize(decode_rgb(jpeg), 32, 32)");
    fs::write(at.join("small_data.ron"), pipeline).unwrap();
    let told = "skipped 2\n  2 x not a JPEG, PNG or WebP file; the first is images/";
    let (status, out, err) = run(at, &["data", "small_data.ron", "--batch", "4", "--batches", "3"]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(out.contains(told), "{out}");
    let (status, out, err) = run(at, &[&TRAIN[..], &["--no-eval"]].concat());
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(err.contains(told), "{err}");
    let (status, out, err) = run(at, &["eval", "runs/small", "--device", "cpu"]);
    assert_eq!(status, Some(0), "{out}{err}");
    for (index, name) in [(0, "images/0.png"), (1, "images/1.png")] {
        let told = format!("left out sample {index} (index {index}, {name}): not a JPEG, PNG or WebP file\n");
        assert!(err.contains(&told), "{err}");
    }
}

/// Held-out samples are judged as those of training are.
#[test]
fn too_many_bad_samples_end_a_measurement() {
    let folder = folder();
    let at = folder.path();
    let image = image::RgbImage::from_pixel(32, 32, image::Rgb([9, 99, 199]));
    image.save(at.join("good.png")).unwrap();
    fs::write(at.join("bad.png"), "nothing").unwrap();
    let line = |image: &str, split: &str| {
        format!(r#"{{"image": "{image}.png", "captions": ["a dog", "a cat"], "split": "{split}"}}"#) + "\n"
    };
    let lines = [
        line("good", "train").repeat(8),
        line("bad", "test").repeat(19),
        line("good", "test").repeat(981),
        line("bad", "test"),
    ];
    fs::write(at.join("captions.jsonl"), lines.concat()).unwrap();
    let pipeline = SMALL_DATA.replace("Shapes(size: 32, scenes: 16, held_out: 8)", r#"Folder(path: ".")"#);
    let pipeline = pipeline.replace("normalize_rgb(image", "normalize_rgb(resize(decode_rgb(jpeg), 32, 32)");
    fs::write(at.join("small_data.ron"), pipeline).unwrap();
    let why = "error: 20 of the 1001 samples read so far could not be used, more than the allowed share of 0.01 (judged from \
               sample 1000 on); the last one: sample 1000 (index 1000, bad.png): not a JPEG, PNG or WebP file. Repair or \
               remove the files named in the log, or raise the share with --max-bad\n";
    check(at, &TRAIN, &["checkpoint: runs/small/checkpoints/step-00000003.safetensors\n", why]);
    check(at, &["eval", "runs/small", "--device", "cpu"], &[why]);
    let (status, out, err) = run(at, &["eval", "runs/small", "--device", "cpu", "--max-bad", "0.02"]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(out.contains("small after 3 steps, on 981 held-out samples"), "{out}");
    let (status, _, err) = run(at, &["eval", "runs/small", "--max-bad", "2"]);
    assert!(status == Some(2) && err.contains("a share of samples between 0 and 1"), "{err}");
}

//! A run that is killed anywhere and resumed ends with the bits of the run that was not.

#![cfg(all(unix, feature = "compile"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Small enough for milliseconds per step; an epoch is 8 1/3 batches, so that kills hit the middle of one, and batches straddle two.
const SPEC: &str = r#"Graph(
    name: "small",
    base: "alip_shapes",
    dims: { "B": Batch(6), "D": 16 },
    inputs: { "image": (dtype: F32, shape: "[B, 3, 16, 16]") },
    parts: {
        "visual": "vit(image: 16, patch: 8, width: 16, layers: 1, heads: 2, out: D)",
        "text": "text_transformer(vocab: 512, context: T, width: 16, layers: 1, heads: 2, out: D)",
    },
    data: "small_data",
)"#;

/// Mirrored at random, so that resuming must also find its place in the augmentation.
const DATA: &str = r#"Pipeline(
    name: "small_data",
    source: Shapes(size: 16, scenes: 50, held_out: 8),
    shuffle: (),
    body: [
        "pixels = normalize_rgb(mirror(image, p: 0.5), mean: 0.5, std: 0.25)",
        "raw_ids = tokenize(raw, 32, vocab: 'words:512')",
        "caption_ids = tokenize(caption, 32, vocab: 'words:512')",
    ],
    outputs: { "image": "pixels", "raw": "raw_ids", "caption": "caption_ids" },
)"#;

const STEPS: u64 = 120;

/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn specs(folder: &Path) -> PathBuf {
    fs::write(folder.join("small_data.ron"), DATA).unwrap();
    let spec = folder.join("small.ron");
    fs::write(&spec, SPEC).unwrap();
    spec
}

fn train(spec: &Path, out: &Path, workers: u32, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_alip-run"))
        .current_dir(spec.parent().unwrap())
        .args(["train".as_ref(), spec.as_os_str(), "--out".as_ref(), out.as_os_str()])
        .args(["--device", "cpu", "--no-eval", "--checkpoint-every", "7", "--workers", &workers.to_string()])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn first(spec: &Path, out: &Path, workers: u32) -> Child {
    train(spec, out, workers, &["--steps", &STEPS.to_string(), "--seed", "3"])
}

/// Waits for the end and gives the exit status and what was said.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn finished(child: Child) {
    let (status, said) = end(child);
    assert_eq!(status, Some(0), "{said}");
}

fn steps_logged(out: &Path) -> usize {
    fs::read(out.join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

/// Waits until the log holds so many steps; whether the run was still going then.
fn wait_for(child: &mut Child, out: &Path, steps: usize) -> bool {
    let start = Instant::now();
    while steps_logged(out) < steps {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < PATIENCE, "no step {steps} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.try_wait().unwrap().is_none()
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join(format!("checkpoints/step-{STEPS:08}.safetensors"))).unwrap()
}

fn log(out: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let timing = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["samples_per_s", "data_wait"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    };
    text.lines().map(timing).collect()
}

#[test]
fn killed_with_four_workers_and_resumed_with_two() {
    let folder = tempfile::tempdir().unwrap();
    let spec = specs(folder.path());
    let unbroken = folder.path().join("unbroken");
    finished(first(&spec, &unbroken, 4));
    assert_eq!(log(&unbroken).len() as u64, STEPS);

    // Before the first checkpoint, right after one, between two, and twice in one run.
    for (number, kills) in [&[3][..], &[14], &[40], &[25, 77]].into_iter().enumerate() {
        let out = folder.path().join(format!("killed-{number}"));
        let mut child = first(&spec, &out, 4);
        for &step in kills {
            assert!(wait_for(&mut child, &out, step), "the run was over before step {step}");
            // SIGKILL: nothing can be tidied up.
            child.kill().unwrap();
            child.wait().unwrap();
            child = train(&spec, &out, 2, &["--resume"]);
        }
        finished(child);
        assert!(weights(&out) == weights(&unbroken), "killed at {kills:?}: other weights");
        assert_eq!(log(&out), log(&unbroken), "killed at {kills:?}: another log");
    }
}

/// In f16 with a scale that is far too large at first: steps that overflow are skipped, and the scale is part of the state.
#[test]
fn a_loss_scale_is_resumed_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let spec = specs(folder.path());
    let scale = "dynamic_loss_scale(init: 1073741824, growth_interval: 9)";
    let half = format!(
        r#"Graph(name: "half", base: "small", use: ["optim/loss_scale"], metrics: {{ "scale": "train.loss_scale" }}, train: (precision: F16, loss_scale: "{scale}"))"#
    );
    let half = (fs::write(folder.path().join("half.ron"), half), spec.with_file_name("half.ron")).1;
    let begin = |out: &Path| train(&half, out, 2, &["--steps", "60", "--target", "cpu_mixed"]);
    let (unbroken, out) = (folder.path().join("unbroken"), folder.path().join("killed"));
    let (status, said) = end(begin(&unbroken));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("step 1: gradients overflowed, the batch is skipped; loss scale 536870912"), "{said}");
    let scales: Vec<f64> = log(&unbroken).iter().map(|step| step["scale"].as_f64().unwrap()).collect();
    assert!(scales.len() == 60 && scales[0] < 1e9, "{scales:?}");
    assert!(scales.windows(2).any(|pair| pair[1] == 2.0 * pair[0]), "it grows again: {scales:?}");
    let mut child = begin(&out);
    assert!(wait_for(&mut child, &out, 12), "the run was over before step 12");
    child.kill().unwrap();
    child.wait().unwrap();
    finished(train(&half, &out, 1, &["--resume"]));
    assert_eq!(log(&out), log(&unbroken));
    let last = |out: &Path| fs::read(out.join("checkpoints/step-00000060.safetensors")).unwrap();
    assert!(last(&out) == last(&unbroken), "other weights, or another scale");
}

#[test]
fn interrupted_runs_save_and_say_how_to_continue() {
    let folder = tempfile::tempdir().unwrap();
    let spec = specs(folder.path());
    let (unbroken, out) = (folder.path().join("unbroken"), folder.path().join("interrupted"));
    finished(first(&spec, &unbroken, 1));
    let mut child = first(&spec, &out, 2);
    assert!(wait_for(&mut child, &out, 10), "the run was over before step 10");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let (status, said) = end(child);
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("stopped at step ") && said.contains("--resume"), "{said}");
    let saved = fs::read_dir(out.join("checkpoints")).unwrap().count();
    assert!(saved > 0, "nothing was saved");
    finished(train(&spec, &out, 1, &["--resume"]));
    assert!(weights(&out) == weights(&unbroken), "other weights after Ctrl-C");
}

#[test]
fn threads_of_the_device_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let spec = specs(folder.path());
    let runs = ["1", "3"].map(|threads| {
        let out = folder.path().join(threads);
        let steps = STEPS.to_string();
        finished(train(&spec, &out, 2, &["--steps", &steps, "--threads", threads]));
        weights(&out)
    });
    assert!(runs[0] == runs[1], "1 and 3 threads give other weights");
}

//! A run that is killed anywhere and resumed ends with the bits of the run that was not.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;
use std::path::Path;
use std::process::Child;

use common::{log, program, said, signal, specs, wait_for, weights};

const STEPS: &str = "120";

/// Trains in the folder `at`, with a checkpoint every seven steps.
fn train(at: &Path, spec: &str, out: &str, workers: u32, more: &[&str]) -> Child {
    let workers = workers.to_string();
    let args = ["train", spec, "--out", out, "--no-eval", "--checkpoint-every", "7", "--workers", &workers];
    program(at, &[&args, more].concat()).spawn().unwrap()
}

fn first(at: &Path, out: &str, workers: u32) -> Child {
    train(at, "small", out, workers, &["--steps", STEPS, "--seed", "3"])
}

fn resumed(at: &Path, spec: &str, out: &str, workers: u32) -> Child {
    train(at, spec, out, workers, &["--resume"])
}

/// Waits for the end, which is a good one; what was said.
fn finished(child: Child) -> String {
    let (status, _, said) = said(child.wait_with_output().unwrap());
    assert_eq!(status, Some(0), "{said}");
    said
}

/// Kills it when it has logged so many steps. Nothing can be tidied up.
fn killed(mut child: Child, run: &Path, steps: usize) {
    wait_for(&mut child, run, steps);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_with_four_workers_and_resumed_with_two() {
    let folder = specs();
    let at = folder.path();
    let unbroken = at.join("unbroken");
    finished(first(at, "unbroken", 4));
    assert_eq!(log(&unbroken).len().to_string(), STEPS);

    // Before the first checkpoint, right after one, between two, and twice in one run.
    for (number, kills) in [&[3][..], &[14], &[40], &[25, 77]].into_iter().enumerate() {
        let name = format!("killed-{number}");
        let run = at.join(&name);
        let mut child = first(at, &name, 4);
        for &step in kills {
            killed(child, &run, step);
            child = resumed(at, "small", &name, 2);
        }
        finished(child);
        assert!(weights(&run) == weights(&unbroken), "killed at {kills:?}: other weights");
        assert_eq!(log(&run), log(&unbroken), "killed at {kills:?}: another log");
    }
}

/// In f16 with a scale that is far too large at first: steps that overflow are skipped, and the scale is part of the state.
#[test]
fn a_loss_scale_is_resumed_where_it_was() {
    let folder = specs();
    let at = folder.path();
    let scale = "dynamic_loss_scale(init: 1073741824, growth_interval: 9)";
    let half = format!(
        r#"Graph(name: "half", base: "small", use: ["optim/loss_scale"], metrics: {{ "scale": "train.loss_scale" }}, train: (precision: F16, loss_scale: "{scale}"))"#
    );
    fs::write(at.join("half.ron"), half).unwrap();
    let begin = |out: &str| train(at, "half", out, 2, &["--steps", "60", "--target", "cpu_mixed"]);
    let (unbroken, run) = (at.join("unbroken"), at.join("killed"));
    let said = finished(begin("unbroken"));
    assert!(said.contains("step 1: gradients overflowed, the batch is skipped; loss scale 536870912"), "{said}");
    let scales: Vec<f64> = log(&unbroken).iter().map(|step| step["scale"].as_f64().unwrap()).collect();
    assert!(scales.len() == 60 && scales[0] < 1e9, "{scales:?}");
    assert!(scales.windows(2).any(|pair| pair[1] == 2.0 * pair[0]), "it grows again: {scales:?}");
    killed(begin("killed"), &run, 12);
    finished(resumed(at, "half", "killed", 1));
    assert_eq!(log(&run), log(&unbroken));
    assert!(weights(&run) == weights(&unbroken), "other weights, or another scale");
}

#[test]
fn interrupted_runs_save_and_say_how_to_continue() {
    let folder = specs();
    let at = folder.path();
    finished(first(at, "unbroken", 1));
    let mut child = first(at, "interrupted", 2);
    wait_for(&mut child, &at.join("interrupted"), 10);
    signal(&child, "INT");
    let (status, _, said) = said(child.wait_with_output().unwrap());
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("stopped at step ") && said.contains("--resume"), "{said}");
    let saved = fs::read_dir(at.join("interrupted/checkpoints")).unwrap().count();
    assert!(saved > 0, "nothing was saved");
    finished(resumed(at, "small", "interrupted", 1));
    assert!(weights(&at.join("interrupted")) == weights(&at.join("unbroken")), "other weights after Ctrl-C");
}

#[test]
fn threads_of_the_device_do_not_matter() {
    let folder = specs();
    let at = folder.path();
    let runs = ["1", "3"].map(|threads| {
        finished(train(at, "small", threads, 2, &["--steps", STEPS, "--threads", threads]));
        weights(&at.join(threads))
    });
    assert!(runs[0] == runs[1], "1 and 3 threads give other weights");
}

//! A model that is measured while it is trained: `train: (evaluate: ..)`.

#![cfg(feature = "compile")]

mod common;

use std::fs;
use std::path::Path;

use common::{fine, photos, refused, specs, weights};

/// A variant of `small` that is measured on the way.
fn measured(folder: &Path, name: &str, evaluate: &str) {
    let graph = format!(r#"Graph(name: "{name}", base: "small", train: (evaluate: ({evaluate})))"#);
    fs::write(folder.join(format!("{name}.ron")), graph).unwrap();
}

fn evaluations(run: &Path) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The tensors of a file.
fn tensors(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let mut all: Vec<_> = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn measuring_changes_no_step() {
    let folder = specs();
    let at = folder.path();
    measured(at, "watched", r#"every: "3 steps", best: "text to image R@5""#);
    let steps = ["--steps", "10", "--no-eval"];
    fine(at, &[&["train", "small", "--out", "plain"][..], &steps[..]].concat());
    let (_, err) = fine(at, &[&["train", "watched", "--out", "watched"][..], &steps[..]].concat());
    assert_eq!(err.matches("measured at step ").count(), 4, "{err}");
    assert_eq!(tensors(&weights(&at.join("plain"))), tensors(&weights(&at.join("watched"))));

    let all = evaluations(&at.join("watched"));
    assert_eq!(all.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 6, 9, 10]);
    let value = |line: &serde_json::Value| line["measures"]["text to image R@5"].as_f64().unwrap();
    // The best is the first of those that are as good.
    let best = all.iter().rev().max_by(|a, b| value(a).total_cmp(&value(b))).unwrap();
    let file = fs::read(at.join("watched/checkpoints/best.safetensors")).unwrap();
    let header = safetensors::SafeTensors::read_metadata(&file).unwrap().1;
    let about: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["alip"]).unwrap();
    assert_eq!(about["step"], best["step"]);

    // It is a checkpoint like any other, and what is measured of the last step is what `eval` says of it.
    let (out, _) =
        fine(at, &["eval", "watched", "--checkpoint", "watched/checkpoints/best.safetensors", "--json", "--out", "r"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["step"], best["step"]);
    assert_eq!(found["retrieval"]["text_to_image"][1]["recall"], best["measures"]["text to image R@5"]);

    // What TensorBoard reads has the names.
    let events = fs::read_dir(at.join("watched")).unwrap().map(|entry| entry.unwrap().path());
    let events = events.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("events.out"));
    let bytes: Vec<u8> = events.flat_map(|path| fs::read(path).unwrap()).collect();
    let tag = b"eval/text to image R@5";
    assert!(bytes.windows(tag.len()).any(|window| window == tag));
}

#[test]
fn a_run_that_goes_on_is_measured_at_the_same_steps() {
    let folder = specs();
    let at = folder.path();
    // 50 samples in batches of 6: half an epoch is four steps.
    measured(at, "watched", r#"every: "0.5 epochs""#);
    fs::write(
        at.join("steady_watched.ron"),
        r#"Graph(name: "steady_watched", base: "steady", train: (evaluate: (every: "0.5 epochs")))"#,
    )
    .unwrap();
    fine(at, &["train", "steady_watched", "--steps", "12", "--no-eval", "--out", "whole"]);
    fine(at, &["train", "steady_watched", "--steps", "6", "--no-eval", "--out", "parts"]);
    fine(at, &["train", "--resume", "parts", "--steps", "12", "--no-eval"]);
    let steps = |run: &str| -> Vec<u64> {
        evaluations(&at.join(run)).iter().map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("whole"), [4, 8, 12]);
    assert_eq!(steps("parts"), [4, 6, 8, 12]);
    let last = |run: &str| evaluations(&at.join(run)).pop().unwrap();
    assert_eq!(last("whole")["measures"], last("parts")["measures"]);
    assert_eq!(weights(&at.join("whole")), weights(&at.join("parts")));
}

#[test]
fn a_suite_is_measured_on_the_way() {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("photos"), |n| format!("shape {n}"));
    for (image, class) in [(0, "red"), (1, "red"), (2, "blue"), (3, "blue"), (4, "blue")] {
        fs::create_dir_all(at.join("sets/colours").join(class)).unwrap();
        fs::copy(at.join(format!("photos/{image}.png")), at.join(format!("sets/colours/{class}/{image}.png"))).unwrap();
    }
    let suite = r#"Suite(name: "mine", sets: [(name: "colours", metric: Top1, data: [Folders(path: "colours")])])"#;
    fs::write(at.join("mine.ron"), suite).unwrap();
    measured(at, "on_sets", r#"every: "2 steps", suite: "mine.ron", data: "sets""#);
    let (_, err) = fine(at, &["train", "on_sets", "--steps", "4", "--no-eval", "--out", "run"]);
    assert!(err.contains("measured at step 2, colours top-1 "), "{err}");
    let (out, _) = fine(at, &["eval", "run", "--suite", "mine.ron", "--data", "sets", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let last = evaluations(&at.join("run")).pop().unwrap();
    assert_eq!(last["step"], 4);
    assert_eq!(last["measures"]["colours top-1"], found["figures"]["colours top-1"], "{found}");

    measured(at, "nowhere", r#"every: "2 steps", suite: "mine.ron""#);
    let why =
        "`evaluate` of graph `nowhere` names a suite and not where its data sets lie: write `data: \"${DATA}/sets\"`";
    refused(at, &["train", "nowhere", "--steps", "2"], why);
    measured(at, "astray", r#"every: "2 steps", suite: "mine.ron", data: "photos""#);
    refused(at, &["train", "astray", "--steps", "2"], "photos");
    assert!(!at.join("runs").exists());
}

#[test]
fn what_cannot_be_measured_is_told_before_the_first_step() {
    let folder = specs();
    let at = folder.path();
    let text = fs::read_to_string(at.join("small_data.ron")).unwrap();
    fs::write(at.join("measured_data.ron"), text).unwrap();
    let graph = r#"Graph(name: "blind", base: "small", programs: { "encode_text": None }, train: (evaluate: (every: "1 epoch")))"#;
    fs::write(at.join("blind.ron"), graph).unwrap();
    refused(
        at,
        &["train", "blind", "--steps", "2"],
        "the plan of `blind` cannot be evaluated: it has no program `encode_text`",
    );
    assert!(!at.join("runs").exists());
    measured(at, "misnamed", r#"every: "2 steps", best: "accuracy""#);
    let (_, err) = fine(at, &["train", "misnamed", "--steps", "2", "--no-eval"]);
    let why = "warning: no measure is called `accuracy`, so no best checkpoint is kept; there are image to text R@1, ";
    assert!(err.contains(why), "{err}");
}

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
    let why = "error: `evaluate` of graph `misnamed` keeps the best by `accuracy`, which is no measure; there are image to text R@1, ";
    refused(at, &["train", "misnamed", "--steps", "2"], why);
    assert!(!at.join("runs").exists());
}

/// What is measured after the last step is what is shown of the run: it is not measured again.
#[test]
fn the_last_step_is_measured_once() {
    let folder = specs();
    let at = folder.path();
    measured(at, "watched", r#"every: "3 steps""#);
    let (_, err) = fine(at, &["train", "watched", "--steps", "4", "--out", "watched"]);
    assert_eq!(err.matches("measured at step ").count(), 2, "{err}");
    let results = fs::read(at.join("watched/results.json")).unwrap();
    fine(at, &["eval", "watched"]);
    assert!(fs::read(at.join("watched/results.json")).unwrap() == results);
    // Every measure has the name that a spec can call it by.
    let names = |line: &serde_json::Value| line["measures"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let found = names(evaluations(&at.join("watched")).last().unwrap());
    for (number, name) in found.iter().enumerate() {
        measured(at, &format!("by_{number}"), &format!(r#"every: "3 steps", best: "{name}""#));
        let (_, err) = fine(
            at,
            &["train", &format!("by_{number}"), "--steps", "1", "--no-eval", "--out", &format!("by/{number}")],
        );
        assert!(err.contains(&format!("measured at step 1, {name} ")), "{err}");
    }
}

/// Averages are measured in the place of the weights, which stay as they are.
#[test]
fn averages_are_measured() {
    let folder = specs();
    let at = folder.path();
    let graph = |name: &str, train: &str| {
        let text = format!(r#"Graph(name: "{name}", base: "small", train: ({train}))"#);
        fs::write(at.join(format!("{name}.ron")), text).unwrap();
    };
    graph("plain", "ema: (decay: 0.5)");
    graph("averaged", r#"ema: (decay: 0.5), evaluate: (every: "3 steps", average: true)"#);
    let steps = ["--steps", "7", "--no-eval"];
    fine(at, &[&["train", "plain", "--out", "plain"][..], &steps[..]].concat());
    fine(at, &[&["train", "averaged", "--out", "averaged"][..], &steps[..]].concat());
    assert_eq!(tensors(&weights(&at.join("plain"))), tensors(&weights(&at.join("averaged"))));
    let last = evaluations(&at.join("averaged")).pop().unwrap();
    let eval = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&fine(at, &[&["eval", "averaged", "--json", "--out", "r"], more].concat()).0).unwrap()
    };
    let recall = |of: &serde_json::Value| of["retrieval"]["text_to_image"][1]["recall"].clone();
    assert_eq!(last["measures"]["text to image R@5"], recall(&eval(&["--average"])));
    graph("none_kept", r#"evaluate: (every: "3 steps", average: true)"#);
    refused(
        at,
        &["train", "none_kept", "--steps", "2"],
        "averages of the weights are to be measured, and none are kept",
    );
}

/// The suite that a run is measured on is part of what it is.
#[test]
fn the_suite_is_the_runs() {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("photos"), |n| format!("shape {n}"));
    for (image, class) in [(0, "red"), (1, "red"), (2, "blue")] {
        fs::create_dir_all(at.join("sets/colours").join(class)).unwrap();
        fs::copy(at.join(format!("photos/{image}.png")), at.join(format!("sets/colours/{class}/{image}.png"))).unwrap();
    }
    let suite = |title: &str| {
        let absent = r#"(name: "absent", metric: Top1, data: [Folders(path: "absent")])"#;
        let colours = format!(r#"(name: "colours", title: "{title}", metric: Top1, data: [Folders(path: "colours")])"#);
        let mean = r#"means: [(name: "mean", of: ["colours", "absent"])]"#;
        fs::write(at.join("mine.ron"), format!(r#"Suite(name: "mine", sets: [{colours}, {absent}], {mean})"#)).unwrap();
    };
    suite("Colours");
    let steady = |name: &str, evaluate: &str| {
        let graph = format!(r#"Graph(name: "{name}", base: "steady", train: (evaluate: ({evaluate})))"#);
        fs::write(at.join(format!("{name}.ron")), graph).unwrap();
    };
    let on = r#"every: "2 steps", suite: "mine.ron", data: "sets""#;
    for (best, why) in [
        ("top-1", "keeps the best by `top-1`, which is no measure; there are mean, colours top-1, absent top-1"),
        ("absent top-1", "keeps the best by `absent top-1`, and the set `absent` is not in "),
        ("mean", "keeps the best by `mean`, and the set `absent` is not in "),
    ] {
        steady("misnamed", &format!(r#"{on}, best: "{best}""#));
        refused(at, &["train", "misnamed", "--steps", "2"], &format!("error: `evaluate` of graph `misnamed` {why}"));
    }
    steady("on_sets", on);
    fine(at, &["train", "on_sets", "--steps", "2", "--no-eval", "--out", "run"]);
    let resume = |steps| ["train", "--resume", "run", "--no-eval", "--steps", steps];
    suite("Other colours");
    let why = "run was started with something else: suite that it is measured on: ";
    refused(at, &resume("4"), why);
    refused(at, &resume("4"), "or accept the change with --suite-changed");
    fine(at, &[&resume("4")[..], &["--suite-changed"]].concat());
    // What was accepted is the run's now.
    fine(at, &resume("6"));
    fs::remove_file(at.join("mine.ron")).unwrap();
    refused(at, &resume("8"), "mine.ron: ");
    suite("Other colours");
    // Data sets may be elsewhere, which stops nothing.
    fs::rename(at.join("sets"), at.join("elsewhere")).unwrap();
    let (_, err) = fine(at, &resume("8"));
    assert!(err.contains("warning: not measured on the way: none of the 2 sets of `mine` is in "), "{err}");
}

//! The stages of `scripts/gpu.sh`, from end to end, with stand-ins in the place of a card and of compute-sanitizer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use safetensors::tensor::{Dtype, TensorView};

use super::{LITTLE_MEMORY, common, order, program, skip};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Calls the program that it is given, as compute-sanitizer does.
const SANITIZER: &str = "#!/bin/sh\nshift 4\n\"$@\" >&2 && echo '========= ERROR SUMMARY: 0 errors'\n";

/// A stage on a tiny graph; what it wrote down and its table. None without stand-ins or Python.
fn stage(at: &Path, name: &str, more: &[&str], settings: &[(&str, &str)]) -> Option<(serde_json::Value, String)> {
    if Command::new("python3").arg("--version").output().is_err() {
        skip::skipped_outside_ci("no python3, which runs the stages");
        return None;
    }
    fs::write(at.join("tiny.ron"), order::WIDE).unwrap();
    fs::write(at.join("sanitizer"), SANITIZER).unwrap();
    let run = env!("CARGO_BIN_EXE_alip-run");
    let sanitizer = at.join("sanitizer").display().to_string();
    assert!(Command::new("chmod").args(["+x", &sanitizer]).status().unwrap().success());
    let out = at.join("results").display().to_string();
    let mut command = Command::new(format!("{ROOT}/scripts/gpu.sh"));
    command.arg(name).args([
        "--alip-run",
        run,
        "--graph",
        "tiny.ron",
        "--small",
        "tiny.ron",
        "--golden-graph",
        "tiny.ron",
    ]);
    command.args(["--specs", &at.display().to_string(), "--golden", &at.join("golden").display().to_string()]);
    command.args([
        "--batches",
        "4,largest",
        "--warmup",
        "1",
        "--steps",
        "2",
        "--check-batch",
        "4",
        "--check-steps",
        "2",
    ]);
    command.args(["--sanitizer", &sanitizer, "--peer-device", "cpu", "--peer-model", "tiny", "--out", &out]).args(more);
    // The environment is that of the program with stand-ins.
    let given = program(
        at,
        &[],
        &[&[("ALIP_STANDIN_MEMORY", LITTLE_MEMORY), ("ALIP_COMMIT", "of a test")], settings].concat(),
    )?;
    for (key, value) in given.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let (status, table, err) = common::said(command.output().unwrap());
    let written = fs::read_dir(at.join("results")).unwrap().map(|entry| entry.unwrap().path());
    let newest = written.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let found: serde_json::Value = serde_json::from_slice(&fs::read(newest.unwrap()).unwrap()).unwrap();
    let failed = parts(&found).values().any(|part| part["status"] == "FAILED");
    assert_eq!(status, Some(i32::from(failed)), "{table}{err}");
    assert!(found["card"].as_str().unwrap().contains("stand-in 0"), "{found}");
    assert_eq!((&found["stage"], &found["commit"]), (&name.into(), &"of a test".into()));
    Some((found, table))
}

/// What came of each part.
fn parts(found: &serde_json::Value) -> BTreeMap<&str, &serde_json::Value> {
    found["parts"].as_array().unwrap().iter().map(|part| (part["part"].as_str().unwrap(), part)).collect()
}

/// The parts that were done.
fn done(found: &serde_json::Value) -> Vec<&str> {
    parts(found).into_iter().filter(|(_, part)| part["status"] == "done").map(|(name, _)| name).collect()
}

/// Weights and a batch of the tiny graph.
fn golden(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let floats = |count: u32| (0..count).flat_map(|n| ((n % 7) as f32 * 0.25 - 0.5).to_le_bytes()).collect::<Vec<u8>>();
    for (file, name, shape) in [("weights_initial", "w", [256, 8]), ("inputs", "batch.0.x", [16, 256])] {
        let bytes = floats((shape[0] * shape[1]) as u32);
        let tensor = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        safetensors::serialize_to_file([(name, tensor)], None, &folder.join(format!("{file}.safetensors"))).unwrap();
    }
}

#[test]
fn check_judges_kernels_goldens_losses_and_accesses() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    golden(&at.join("golden"));
    let Some((found, table)) = stage(at, "check", &[], &[]) else { return };
    let all = parts(&found);
    assert_eq!(done(&found).len(), all.len(), "{table}");
    let said = |part: &str| all[part]["figures"]["says"].to_string();
    assert!(said("golden data of golden").contains("every kernel on its own"), "{table}");
    assert!(said("compute-sanitizer racecheck").contains("0 errors"), "{table}");
    let losses = &all["losses of tiny.ron against the cpu"]["figures"];
    assert_eq!(losses["steps"].as_array().unwrap().len(), 2);
    assert!(losses["of_bound"].as_f64().unwrap() <= 1.0);
    assert!(table.contains("check of tiny.ron on cuda:0"), "{table}");
}

#[test]
fn what_goes_wrong_in_a_part_leaves_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let refused = [("ALIP_STANDIN_REFUSE", "2")];
    let Some((found, table)) = stage(at, "check", &["--sanitizer", "no-such-program"], &refused) else { return };
    let all = parts(&found);
    let why = |part: &str| all[part]["why"].as_str().unwrap();
    assert!(why("losses of tiny.ron against the cpu").contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{table}");
    assert_eq!(why("compute-sanitizer memcheck"), "no no-such-program on the path");
    assert!(why("golden data of golden").starts_with("no golden data in "), "{table}");
    assert_eq!(done(&found), ["the card"]);
}

#[test]
fn bench_and_peers_measure_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let Some((found, table)) = stage(at, "bench", &["--software"], &[]) else { return };
    let all = parts(&found);
    let figures = |part: &str| &all[part]["figures"];
    for batch in ["4", "largest"] {
        let of = figures(&format!("tiny.ron, batch {batch}, texts as captions"));
        assert!(
            of["samples_per_s"].as_f64().unwrap() > 0.0
                && of["device_bytes"].as_u64().unwrap() <= LITTLE_MEMORY.parse().unwrap()
        );
        assert!(of["of_bf16_peak"].as_f64().unwrap() > 0.0 && of["launch_gaps_s"].is_number(), "{of}");
        let kernels = of["kernels"].as_array().unwrap();
        assert!(kernels.iter().all(|kernel| kernel["of_roofline"].as_f64().unwrap() > 0.0), "{of}");
    }
    let largest = &figures("tiny.ron, batch largest, texts of full length")["batch"];
    assert!(largest.as_u64().unwrap() > 16, "{table}");
    let first = figures("first step of tiny.ron");
    assert!(first["cold_s"].is_number() && first["warm_s"].is_number(), "{first}");
    let wgpu = &all["tiny.ron on wgpu"];
    assert!(wgpu["status"] == "done" || wgpu["why"].as_str().unwrap().starts_with("no adapter for wgpu"), "{wgpu}");
    assert!(table.contains(" of its roofline  product "), "{table}");

    for (name, part) in [("peers", "PyTorch, eager"), ("autotune", "PyTorch, torch.compile with max-autotune")] {
        let Some((found, table)) = stage(at, name, &[], &[]) else { return };
        let part = &parts(&found)[part];
        match part["status"].as_str() {
            Some("done") => assert!(part["figures"]["torch"].is_string(), "{table}"),
            _ => assert!(part["why"].as_str().unwrap().contains("has no PyTorch"), "{table}"),
        }
    }
}

#[test]
fn a_stage_ends_within_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let Some((found, table)) = stage(folder.path(), "bench", &["--seconds", "0.001"], &[]) else { return };
    let last = parts(&found)["tiny.ron on wgpu"].clone();
    assert_eq!(last["why"], "the 0.001 s of the stage were over", "{table}");
}

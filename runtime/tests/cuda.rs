//! The device for NVIDIA cards, with stand-ins of the driver, of NVRTC and of cuBLASLt (`tests/cuda_emulator`) where a system has
//! these: what is found, what is said when something is missing or fails, and that training goes as on the cpu. No card is used.

#![cfg(all(target_os = "linux", feature = "compile", feature = "cuda"))]

mod common;
#[path = "../../tests/src/cuda/compiler.rs"]
#[allow(dead_code, unreachable_pub)]
mod compiler;
#[path = "cuda/order.rs"]
mod order;
#[path = "cuda/script.rs"]
mod script;
#[path = "../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub)]
mod skip;
#[path = "../../tests/src/cuda/standin.rs"]
#[allow(dead_code, unreachable_pub)]
mod standin;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alip_compiler::diag::SourceMap;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::Target;
use common::{log, said, specs};
use sha2::Digest;
use standin::StandIn;

fn stand_in() -> Option<&'static StandIn> {
    let found = StandIn::get();
    if found.is_none() {
        skip::skipped_outside_ci("no C++ compiler (c++, g++ or clang++) for the stand-ins of CUDA");
    }
    found
}

/// A program with nothing of CUDA: files that are no libraries hide what the machine has.
fn bare(mut command: Command, folder: &Path) -> Command {
    let versions = |library: &str| ["", ".1", ".12", ".13"].map(|version| format!("{library}.so{version}"));
    for name in ["libcuda", "libnvrtc", "libcublasLt"].into_iter().flat_map(versions) {
        fs::write(folder.join(name), "").unwrap();
    }
    command.current_dir(folder).env("LD_LIBRARY_PATH", folder).env("PATH", folder);
    for variable in ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(variable);
    }
    command
}

/// `alip-run` with nothing of CUDA.
fn without(folder: &Path, args: &[&str]) -> Command {
    let mut command = bare(Command::new(env!("CARGO_BIN_EXE_alip-run")), folder);
    command.args(args);
    command
}

/// The program with stand-ins, whose settings these are; what is compiled is kept in the folder.
fn program(folder: &Path, args: &[&str], settings: &[(&str, &str)]) -> Option<Command> {
    let mut command = without(folder, args);
    stand_in()?.give(&mut command);
    set(&mut command, folder);
    command.envs(settings.iter().copied());
    Some(command)
}

/// Lets stand-ins work in a folder.
fn set(command: &mut Command, folder: &Path) {
    command.env("XDG_CACHE_HOME", folder.join("cache")).env("ALIP_STANDIN_REPORTS", folder.join("reports"));
    // The stand-in of NVRTC runs a compiler.
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
}

/// The command ends well and says all of this on stdout.
fn check_says(mut command: Command, parts: &[&str]) -> String {
    let (status, out, err) = said(command.output().unwrap());
    assert_eq!(status, Some(0), "{out}{err}");
    parts.iter().for_each(|part| assert!(out.contains(part), "no {part:?} in\n{out}{err}"));
    err
}

/// The command fails, in this order saying all of this.
fn check_fails(mut command: Command, parts: &[&str]) {
    let (status, out, err) = said(command.output().unwrap());
    assert_eq!(status, Some(1), "{out}{err}");
    assert!(!err.contains("panicked"), "{err}");
    let mut rest = err.as_str();
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("no {part:?} in\n{err}") };
        rest = &rest[at + part.len()..];
    }
}

/// Opening the device with these settings fails so.
fn check_refused(settings: &[(&str, &str)], parts: &[&str]) {
    let folder = specs();
    let Some(command) = program(folder.path(), &["train", "small.ron", "--device", "cuda"], settings) else { return };
    check_fails(command, parts);
}

/// What the emulator found in the kernels that ran.
fn reports(folder: &Path) -> String {
    fs::read_to_string(folder.join("reports")).unwrap_or_default()
}

const TRAIN: [&str; 10] =
    ["train", "small.ron", "--no-eval", "--seed", "3", "--workers", "1", "--checkpoint-every", "2", "--out"];

/// Trains so many steps on a device.
fn train<'a>(out: &'a str, steps: &'a str, device: &'a str) -> Vec<&'a str> {
    [&TRAIN[..], &[out, "--steps", steps, "--device", device]].concat()
}

#[test]
fn cards_are_listed_with_the_libraries_that_were_found() {
    let folder = specs();
    let Some(command) = program(folder.path(), &["devices"], &[("ALIP_STANDIN_CARDS", "2")]) else { return };
    let card = "(compute capability 9.0, driver for CUDA 12.8), NVRTC 12.8 (libnvrtc.so.12), cuBLASLt 12.8.3 (libcublasLt.so.12)";
    let (first, second) = (format!("cuda:0     stand-in 0 {card}"), format!("cuda:1     stand-in 1 {card}"));
    check_says(command, &[&first, &second, "target sm_90a", "auto       cuda: stand-in 0"]);
}

#[test]
fn nvrtc_is_found_in_a_python_environment() {
    let folder = specs();
    let lib = folder.path().join("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
    fs::create_dir_all(&lib).unwrap();
    let Some(stand_in) = stand_in() else { return };
    fs::copy(stand_in.nvrtc(), lib.join("libnvrtc.so.12")).unwrap();
    let mut command = without(folder.path(), &["devices"]);
    stand_in.give_driver(&mut command).env("VIRTUAL_ENV", folder.path().join("venv"));
    if Path::new("/usr/local/cuda").exists() {
        return skip::skipped("the CUDA toolkit of this machine would be found first");
    }
    check_says(command, &["NVRTC 12.8 (", "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.12)"]);
}

#[test]
fn what_is_missing_is_named() {
    let folder = specs();
    let train = ["train", "small.ron", "--device", "cuda"];
    let no_driver = "error: device `cuda` cannot be used: there is no NVIDIA driver (libcuda.so.1 is not where the system looks for \
                     libraries); install the card's driver";
    check_fails(without(folder.path(), &train), &[no_driver]);
    check_says(
        without(folder.path(), &["devices"]),
        &["cuda       device `cuda` cannot be used: there is no NVIDIA driver"],
    );
    let Some(stand_in) = stand_in() else { return };
    if Path::new("/usr/local/cuda").exists() {
        return skip::skipped("the CUDA toolkit of this machine would be found");
    }
    let environment = folder.path().join("venv/lib/python3.12/site-packages/nvidia/cublas/lib");
    fs::create_dir_all(&environment).unwrap();
    let mut command = without(folder.path(), &train);
    stand_in.give_driver(&mut command).env("VIRTUAL_ENV", folder.path().join("venv"));
    let looked = format!("nor in {}); install the CUDA toolkit", environment.display());
    check_fails(command, &["device `cuda` cannot be used: there is no NVRTC", &looked]);
}

#[test]
fn products_need_their_library_unless_the_plan_does_without() {
    let folder = specs();
    let at = folder.path();
    let Some(stand_in) = stand_in() else { return };
    if Path::new("/usr/local/cuda").exists() {
        return skip::skipped("the CUDA toolkit of this machine would be found");
    }
    let without = |args: &[&str]| {
        let mut command = without(at, args);
        stand_in.give_without_products(&mut command);
        set(&mut command, at);
        command
    };
    check_says(without(&["devices"]), &["NVRTC 12.8 (libnvrtc.so.12), no cuBLASLt"]);
    let missing = [
        "device `cuda` cannot be used: there is no cuBLASLt, which computes products (libcublasLt.so.12 is not where the system \
         looks for libraries); install the CUDA toolkit and set CUDA_HOME, or `pip install nvidia-cublas` in the Python \
         environment that is active; a plan that `alipc compile --no-library` writes does without it",
    ];
    check_fails(without(&train("none", "2", "cuda")), &missing);
    let mut target = Target::sm_90a();
    target.library = None;
    let options =
        SpecOptions { compile: CompileOptions { target, ..CompileOptions::default() }, ..SpecOptions::default() };
    let mut sources = SourceMap::new();
    let spec = at.join("small.ron");
    let compiled = compile_spec(&mut sources, spec.to_str().unwrap(), &options);
    let plan = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).plan.unwrap();
    fs::create_dir(at.join("generated")).unwrap();
    fs::write(at.join("generated/plan.alip"), plan.to_bytes()).unwrap();
    check_says(without(&["bench", "generated", "--device", "cuda", "--warmup", "0", "--steps", "1"]), &[]);
    assert_eq!(reports(at), "");
}

#[test]
fn what_the_library_refuses_is_named_with_its_place() {
    let refused = [
        "device `cuda` failed: `",
        "`: cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_NOT_SUPPORTED for ",
        ", f32 to f32; compile the spec with `alipc compile --no-library` to do without the library",
    ];
    check_refused(&[("ALIP_STANDIN_CUBLASLT_REFUSE", "1")], &refused);
    let old =
        "device `cuda` cannot be used: cuBLASLt is 11.9.2, and 12.0.0 or newer is needed; update CUDA's libraries";
    check_refused(&[("ALIP_STANDIN_CUBLASLT", "110902")], &[old]);
    // Enough for the plan, but not for the 32 MiB that products use beside it.
    let workspace = "cuda has no room for `small` at batch 6: the plan needs 32.";
    check_refused(&[("ALIP_STANDIN_MEMORY", "16000000")], &[workspace, "15.26 MiB are free"]);
}

#[test]
fn what_is_too_old_is_named_with_its_version() {
    check_refused(&[("ALIP_STANDIN_DRIVER", "11080")], &["driver is for CUDA 11.8, and 12.0 or newer is needed"]);
    check_refused(&[("ALIP_STANDIN_CAPABILITY", "75")], &["stand-in 0 has compute capability 7.5", "8.0 (Ampere)"]);
    check_refused(&[("ALIP_STANDIN_NVRTC", "89")], &["compiles for cards up to sm_89, and this one is sm_90a"]);
    check_refused(&[("ALIP_STANDIN_CARDS", "0")], &["the NVIDIA driver knows no card"]);
    let folder = specs();
    let mut old = without(folder.path(), &["train", "small.ron", "--device", "cuda"]);
    let Some(stand_in) = stand_in() else { return };
    stand_in.give_old(&mut old);
    check_fails(old, &["NVRTC 11.1 (libnvrtc.so.12) has no `nvrtcGetNumSupportedArchs`, and 11.2 or newer is needed"]);
}

#[test]
fn a_card_that_is_not_there_is_told_with_those_that_are() {
    let folder = specs();
    let Some(command) = program(folder.path(), &["train", "small.ron", "--device", "cuda:1"], &[]) else { return };
    check_fails(command, &["device `cuda:1` cannot be used: there is cuda:0 (stand-in 0"]);
}

#[test]
fn too_little_memory_is_told_with_what_is_free() {
    let parts = ["cuda has no room for `small` at batch 6: the plan needs ", "are free; not even a batch of 1 fits"];
    check_refused(&[("ALIP_STANDIN_MEMORY", "100000")], &parts);
    // A plan that is given compiled has its batch.
    let folder = specs();
    let at = folder.path();
    let Some(compiled) = program(at, &["bench", "plan", "--device", "cuda"], &[("ALIP_STANDIN_MEMORY", "100000")])
    else {
        return;
    };
    order::write_plan(&at.join("small.ron"), &at.join("plan"));
    check_fails(compiled, &["cuda has no room for the plan: it needs ", " are free; use a smaller --batch"]);
}

/// Of a card: 2 MB beside the 32 MiB that products use.
const LITTLE_MEMORY: &str = "35554432";

#[test]
fn the_largest_batch_that_fits_is_told_and_found() {
    let folder = specs();
    let at = folder.path();
    fs::write(at.join("tiny.ron"), order::WIDE).unwrap();
    let memory = [("ALIP_STANDIN_MEMORY", LITTLE_MEMORY)];
    let bench = |more: &[&str]| {
        let common = ["bench", "tiny.ron", "--device", "cuda", "--warmup", "0", "--steps", "1", "--json"];
        program(at, &[&common, more].concat(), &memory)
    };
    let Some(mut largest) = bench(&["--largest"]) else { return };
    let (status, out, err) = said(largest.output().unwrap());
    assert_eq!(status, Some(0), "{out}{err}");
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let batch = found["batch"].as_u64().unwrap();
    assert!(batch > 1 && found["device_bytes"].as_u64().unwrap() <= LITTLE_MEMORY.parse().unwrap(), "{out}");
    let told = format!("; the largest batch that fits is {batch}: --batch {batch}");
    check_fails(
        bench(&["--batch", "4096"]).unwrap(),
        &["cuda has no room for `wide` at batch 4096: the plan needs ", &told],
    );
    check_says(bench(&["--batch", &batch.to_string()]).unwrap(), &[]);
}

#[test]
fn a_launch_that_is_refused_is_named() {
    let parts = ["device `cuda` failed: cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (too many resources"];
    check_refused(&[("ALIP_STANDIN_REFUSE", "3")], &parts);
}

#[test]
fn training_goes_as_on_the_cpu_and_kernels_are_sound() {
    let folder = specs();
    let at = folder.path();
    let Some(on_card) = program(at, &train("on_card", "4", "cuda"), &[]) else { return };
    let Some(on_cpu) = program(at, &train("on_cpu", "4", "cpu"), &[]) else { return };
    check_says(on_card, &[]);
    check_says(on_cpu, &[]);
    assert_eq!(reports(at), "");
    let logs = [log(&at.join("on_card")), log(&at.join("on_cpu"))];
    assert_eq!(logs[0].len(), 4);
    for (card, cpu) in logs[0].iter().zip(&logs[1]) {
        for (name, value) in cpu.as_object().unwrap() {
            let (card, cpu) = (card[name].as_f64().unwrap(), value.as_f64().unwrap());
            assert!((card - cpu).abs() <= 1e-4 * cpu.abs().max(1e-3), "{name}: {card} on the card, {cpu} on the cpu");
        }
    }
    // What was compiled is found, and made again where it is damaged or the driver does not take it.
    let found = kept(at);
    assert!(found.len() > 1);
    let half = fs::metadata(&found[0]).unwrap().len() / 2;
    fs::File::options().write(true).open(&found[0]).unwrap().set_len(half).unwrap();
    let foreign = b"of another driver";
    let foreign = [sha2::Sha256::digest(foreign).as_slice(), foreign].concat();
    fs::write(&found[1], &foreign).unwrap();
    let Some(again) = program(at, &train("again", "4", "cuda"), &[]) else { return };
    check_says(again, &[]);
    assert_eq!(log(&at.join("again")), logs[0]);
    assert!(fs::metadata(&found[0]).unwrap().len() > half);
    assert_ne!(fs::read(&found[1]).unwrap(), foreign);
}

/// What was compiled and kept in a folder.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder.join("cache/alip/cubins")).unwrap();
    found.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn another_build_of_the_compiler_compiles_again() {
    let folder = specs();
    let at = folder.path();
    fs::write(at.join("tiny.ron"), order::SPEC).unwrap();
    let bench = ["bench", "tiny.ron", "--device", "cuda", "--warmup", "0", "--steps", "1"];
    let mut counts = Vec::new();
    for build in ["8.93", "8.93", "8.94"] {
        let Some(command) = program(at, &bench, &[("ALIP_STANDIN_BUILD", build)]) else { return };
        check_says(command, &[]);
        counts.push(kept(at).len());
    }
    assert_eq!(counts, [counts[0], counts[0], 2 * counts[0]]);
}

#[test]
fn a_card_that_fails_or_is_lost_names_the_last_checkpoint() {
    let folder = specs();
    let at = folder.path();
    let Some(unbroken) = program(at, &train("unbroken", "2", "cuda"), &[]) else { return };
    check_says(unbroken, &[]);
    let launches: u64 = fs::read_to_string(at.join("reports.launches")).unwrap().parse().unwrap();
    // Beyond the steps that were counted, in the fourth.
    let late = (launches * 7 / 4).to_string();
    for (setting, error) in
        [("ALIP_STANDIN_FAIL", "CUDA_ERROR_LAUNCH_FAILED"), ("ALIP_STANDIN_LOSE", "CUDA_ERROR_ECC_UNCORRECTABLE")]
    {
        let Some(lost) = program(at, &train(setting, "8", "cuda"), &[(setting, &late)]) else { return };
        let newest = [
            "device `cuda` failed: cu",
            error,
            "The newest checkpoint is",
            "step-0000000",
            "--resume continues from there",
        ];
        check_fails(lost, &newest);
        let resume = ["train", "--resume", setting, "--device", "cuda", "--no-eval"];
        let Some(resumed) = program(at, &resume, &[]) else { return };
        check_says(resumed, &[]);
        assert_eq!(log(&at.join(setting)).len(), 8);
    }
    assert_eq!(reports(at), "");
}

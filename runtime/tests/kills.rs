//! A run that is killed at random moments while it saves every few steps and others look at it loses nothing.
//!
//! `ALIP_KILLS=200 cargo test -p alip-runtime --test kills -- --nocapture` kills as often as it says, by -9 and -TERM in turn;
//! `ALIP_KILLS_SEED` chooses other moments.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use alip_plan::philox::{counter, philox4x32, stream_key};
use alip_runtime::run::{RunDir, tensors::TensorFile};

use common::{fine, program, run, said, signal, specs};

/// Kills of a usual test run.
const FEW: u64 = 6;

/// The longest life of a run, counted from its start: about what it needs to come up and take twenty steps.
const LIFE: Duration = Duration::from_millis(1200);

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn no_run_is_lost() {
    let (kills, seed) = (number("ALIP_KILLS", FEW), number("ALIP_KILLS_SEED", 0));
    let folder = specs();
    let at = folder.path();
    // No run of this length is over before it was killed often enough: what is left of it after is not trained.
    let begin = ["train", "steady", "--out", "killed", "--steps", "1000000", "--seed", "3", "--no-eval"];
    let often = ["--checkpoint-every", "3", "--checkpoint-minutes", "0.003"];
    let (over, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reached = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                look(at);
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let reached = (0..kills).map(|kill| {
            let exists = RunDir::holds_run(&at.join("killed"));
            let args = if exists { vec!["train", "--resume", "killed", "--no-eval"] } else { begin.to_vec() };
            let mut child = program(at, &[&args[..], &often].concat()).spawn().unwrap();
            let draw = philox4x32(counter(kill, 0), stream_key(seed, 0, 0))[0];
            std::thread::sleep(LIFE.mul_f64(f64::from(draw) / f64::from(u32::MAX)));
            assert!(
                child.try_wait().unwrap().is_none(),
                "kill {kill}: the run ended by itself: {:?}",
                said(child.wait_with_output().unwrap())
            );
            signal(&child, if kill % 2 == 0 { "KILL" } else { "TERM" });
            let (status, _, err) = said(child.wait_with_output().unwrap());
            // By -TERM before it listens it ends as any program does, and after it saves.
            assert!(status.is_none() || status == Some(143), "kill {kill}: {status:?}\n{err}");
            whole(&at.join("killed"))
        });
        let reached = reached.collect::<Vec<u64>>();
        over.store(true, Ordering::Relaxed);
        reached
    });
    assert!(reached.windows(2).all(|pair| pair[0] <= pair[1]), "steps were lost: {reached:?}");
    let last = reached.last().copied().unwrap_or(0);
    println!("{kills} kills, {} looks, {last} steps saved", looks.load(Ordering::Relaxed));
    // Where it stands now it has the bits of a run that was never stopped.
    let steps = (last + 2).to_string();
    fine(at, &["train", "steady", "--out", "unbroken", "--steps", &steps, "--seed", "3", "--no-eval"]);
    if RunDir::holds_run(&at.join("killed")) {
        fine(at, &["train", "--resume", "killed", "--steps", &steps, "--no-eval"]);
    } else {
        fine(at, &["train", "steady", "--out", "killed", "--steps", &steps, "--seed", "3", "--no-eval"]);
    }
    let weights =
        |run: &str| fs::read(at.join(run).join(format!("checkpoints/step-{:08}.safetensors", last + 2))).unwrap();
    assert!(weights("killed") == weights("unbroken"), "other weights after {kills} kills");
    let losses = |run: &str| alip_runtime::run::log::read(&at.join(run)).unwrap().remove("loss");
    assert_eq!(losses("killed"), losses("unbroken"));
}

/// Reads the run as others do, whatever it is doing.
fn look(at: &Path) {
    if !RunDir::holds_run(&at.join("killed")) {
        std::thread::sleep(Duration::from_millis(20));
        return;
    }
    let (status, out, err) = run(at, &["eval", "killed"]);
    assert!(status == Some(0) || err.contains("holds no checkpoint yet"), "{out}{err}");
    if status == Some(0) {
        fine(at, &["report", "killed"]);
    }
}

/// Everything in the directory that has a name of its own is whole; gives the step that is saved.
fn whole(root: &Path) -> u64 {
    if !RunDir::holds_run(root) {
        return 0;
    }
    let found = RunDir::open(root).unwrap();
    found.plan().unwrap();
    found.vocabularies().unwrap();
    found.sources().unwrap();
    let checkpoints = found.checkpoints();
    for (_, path) in &checkpoints {
        TensorFile::open(path).and_then(|mut file| file.verify()).unwrap();
    }
    for name in ["results.json", "results-average.json"] {
        let path = root.join(name);
        assert!(
            !path.exists() || serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).is_ok(),
            "{name}"
        );
    }
    checkpoints.last().map_or(0, |(step, _)| *step)
}

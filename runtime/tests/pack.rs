//! A packing that is killed at random moments and begun again ends with the bytes of one that was not.
//!
//! `ALIP_KILLS=20 cargo test -p alip-runtime --test pack -- --nocapture` kills each output as often as it says;
//! `ALIP_KILLS_SEED` chooses other moments.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use alip_plan::philox::{counter, philox4x32, stream_key};

use common::{fine, program, refused, run, said, signal};

/// Kills of a usual test run, for each kind of output.
const FEW: u64 = 4;

/// So many that a packing writes down how far it is between two kills, which it does every second.
const SCENES_PER_KILL: u64 = 1500;

/// The longest life of a process is this share of what the whole takes, by the number of kills.
const LIVES: f64 = 1.4;

/// Rendered scenes: they need no files, and take long enough to be killed.
const SCENES: &str = r#"Pipeline(
    name: "scenes",
    source: Shapes(size: 96, scenes: 40, held_out: 8),
    body: ["pixels = normalize_rgb(image)", "raw_ids = tokenize(raw, 77)", "caption_ids = tokenize(caption, 77)"],
    outputs: { "image": "pixels", "raw": "raw_ids", "caption": "caption_ids" },
)"#;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap())
}

/// Whether a file of this name is no part and no note of ours.
fn is_final(name: &str) -> bool {
    [".rec", ".idx", ".tar"].iter().any(|ending| name.ends_with(ending)) || name == "sizes.json"
}

/// All files of a folder, by name; none before there is one.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    let mut files: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn no_packing_is_lost() {
    let (kills, seed) = (number("ALIP_KILLS", FEW), number("ALIP_KILLS_SEED", 0));
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scenes = format!("scenes: {}", kills * SCENES_PER_KILL);
    fs::write(at.join("scenes.ron"), SCENES.replace("scenes: 40", &scenes)).unwrap();
    for (kind, to, size) in [(0, "x.rec", &[][..]), (1, "{000..}.tar", &["--shard-size", "70"])] {
        let args = |folder: &str, workers: &str| {
            let to = format!("{folder}/{to}");
            let args = ["pack", "scenes.ron", "--to", &to, "--resize", "48", "--workers", workers];
            args.iter().chain(size).map(|arg| arg.to_string()).collect::<Vec<_>>()
        };
        let command = |folder: &str, workers: &str| {
            let args = args(folder, workers);
            program(at, &args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (whole, parts) = (format!("whole{kind}"), format!("parts{kind}"));
        let started = Instant::now();
        assert!(command(&whole, "2").output().unwrap().status.success());
        // So that the last of them come when most is packed, whatever the machine: each loses a part of its work again.
        let (time, life) = (started.elapsed(), started.elapsed().mul_f64(LIVES / kills as f64));
        let mut alive = 0;
        for kill in 0..kills {
            let mut child = command(&parts, if kill % 2 == 0 { "1" } else { "3" }).spawn().unwrap();
            let draw = philox4x32(counter(kill, kind), stream_key(seed, 0, 0))[0];
            std::thread::sleep(life.mul_f64(f64::from(draw) / f64::from(u32::MAX)));
            if child.try_wait().unwrap().is_none() {
                alive += 1;
                signal(&child, "KILL");
            }
            let (_, out, err) = said(child.wait_with_output().unwrap());
            assert!(!err.contains("error") || err.contains("is there already"), "kill {kill}: {out}{err}");
            // What has its final name is whole, whenever it is looked at.
            let named = files(&at.join(&parts)).into_iter().filter(|(name, _)| is_final(name));
            for (name, bytes) in named {
                assert!(bytes == fs::read(at.join(&whole).join(&name)).unwrap(), "kill {kill}: {name} is not whole");
            }
        }
        let (status, out, err) = said(command(&parts, "2").output().unwrap());
        let last = out.lines().next().unwrap_or_default();
        println!("{to}: {:.1} s for the whole; {alive} of {kills} kills met it alive; {last}", time.as_secs_f64());
        assert!(status == Some(0) || err.contains("is there already"), "{out}{err}");
        let (whole, parts) = (files(&at.join(whole)), files(&at.join(parts)));
        let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&whole), names(&parts));
        assert!(whole == parts, "other bytes after {kills} kills");
    }
}

/// Ctrl-C keeps what is done, and says how to go on.
#[test]
fn a_stopped_packing_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("scenes.ron"), SCENES.replace("scenes: 40", "scenes: 1000000")).unwrap();
    let args = ["pack", "scenes.ron", "--to", "x.rec", "--workers", "1"];
    for begun in [false, true] {
        let child = program(at, &args).spawn().unwrap();
        let start = Instant::now();
        // It listens before it takes the lock, which it gives back at its end.
        while !at.join("x.rec.lock").exists() {
            assert!(start.elapsed() < Duration::from_secs(120), "it does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(&child, "INT");
        let (status, out, err) = said(child.wait_with_output().unwrap());
        assert_eq!(status, Some(130), "{out}{err}");
        assert!(err.contains("stopping; what is packed so far is kept"), "{err}");
        assert!(err.contains(" of 1000000 samples; the same command goes on with it"), "{err}");
        assert!(out.starts_with("went on after ") == begun && out.contains("x.rec: "), "{out}");
        assert!(!at.join("x.rec").exists());
    }
    refused(
        at,
        &["pack", "scenes.ron", "--to", "x.rec", "--resize", "20"],
        "was begun with --resize none, and this is 20 at",
    );
}

#[test]
fn the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("scenes.ron"), SCENES).unwrap();
    let (out, _) = fine(at, &["pack", "scenes.ron", "--to", "a/x.rec", "--texts", "caption", "--context", "32"]);
    assert!(out.starts_with("a/x.rec: 40 samples, ") && out.ends_with("skipped 0\n"), "{out}");
    assert!(out.contains("\ntexts: caption (32 ids of 'clip')\n"), "{out}");
    let (out, _) = fine(at, &["pack", "scenes.ron", "--to", "b", "--eval", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["texts"], serde_json::json!(["raw", "caption"]), "{json}");
    assert_eq!((&json["written"], &json["is_done"]), (&8.into(), &true.into()), "{json}");
    let (out, _) = fine(at, &["pack", "scenes.ron", "--to", "c/", "--texts", "", "--shard-size", "30"]);
    assert!(out.starts_with("c/: 40 samples, ") && at.join("c/00001.tar").exists(), "{out}");
    refused(at, &["pack", "scenes.ron", "--to", "a/x.rec"], "it is there already; give another --to");
    refused(
        at,
        &["pack", "scenes.ron", "--to", "x.parquet"],
        "error: --to x.parquet: write a record file `x.rec`, shards `folder/{00000..}.tar`, or a folder for them",
    );
    refused(
        at,
        &["pack", "shapes", "--to", "y.rec"],
        "error: pipeline `shapes`: 'words:512' has the words that are most frequent in the source",
    );
    let (status, _, err) = run(at, &["pack", "scenes.ron", "--to", "y.rec", "--quality", "80"]);
    assert!(status == Some(2) && err.contains("--resize"), "{err}");
}

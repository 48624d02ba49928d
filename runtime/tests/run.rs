//! A run is one thing: who may write it, what it is continued with, what belongs to it, and that reading it changes nothing.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use common::{fine, photos, program, refused, run, said, signal, specs, wait_for};

fn train<'a>(spec: &'a str, out: &'a str, steps: &'a str) -> Vec<&'a str> {
    vec!["train", spec, "--out", out, "--steps", steps, "--no-eval"]
}

/// Every file of a run with its content.
fn content(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files.extend(content(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

fn results(folder: &Path, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&fine(folder, &[&["eval", "--json"], args].concat()).0).unwrap()
}

#[test]
fn a_second_writer_is_refused_and_readers_change_nothing_but_their_results() {
    let folder = specs();
    let at = folder.path();
    let mut child =
        program(at, &[&train("small", "a", "100000")[..], &["--checkpoint-every", "3"]].concat()).spawn().unwrap();
    wait_for(&mut child, &at.join("a"), 4);
    refused(at, &["train", "--resume", "a"], &format!("error: a is being trained by process {}", child.id()));
    refused(at, &train("small", "a", "5"), "error: a already holds a run of `small` (saved at step ");
    fine(at, &["eval", "a"]);
    fine(at, &["report", "a"]);
    signal(&child, "TERM");
    let (status, out, err) = said(child.wait_with_output().unwrap());
    assert_eq!(status, Some(143), "{out}{err}");
    assert!(err.contains("continue with: alip-run train --resume a"), "{err}");
    let before = content(&at.join("a"));
    fine(at, &["eval", "a", "--out", "elsewhere"]);
    assert!(at.join("elsewhere/results.json").exists() && at.join("elsewhere/report.html").exists());
    assert!(content(&at.join("a")) == before, "an evaluation that goes elsewhere changed the run");
}

/// Whether SIGHUP is ignored here and so in children, as under `nohup`.
fn ignores_hup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn whoever_ends_processes_in_order_finds_the_state_saved() {
    let folder = specs();
    let at = folder.path();
    // Enough steps that none ends before its signal comes.
    fine(at, &train("small", "unbroken", "400"));
    for (name, status) in [("HUP", 129), ("TERM", 143), ("INT", 130)] {
        if name == "HUP" && ignores_hup() {
            println!("skipped: HUP, which these tests were started to ignore");
            continue;
        }
        let mut child = program(at, &train("small", name, "400")).spawn().unwrap();
        wait_for(&mut child, &at.join(name), 5);
        signal(&child, name);
        let (found, out, err) = said(child.wait_with_output().unwrap());
        assert_eq!(found, Some(status), "{out}{err}");
        fine(at, &["train", "--resume", name, "--no-eval"]);
        let weights = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000400.safetensors")).unwrap();
        assert!(weights(name) == weights("unbroken"), "{name}: other weights");
    }
    // `nohup` means that a closed terminal does not matter.
    let args = train("small.ron", "nohup", "400").join(" ");
    let script = format!("trap '' HUP; exec '{}' {args} --device cpu", env!("CARGO_BIN_EXE_alip-run"));
    let mut child = std::process::Command::new("sh").current_dir(at).args(["-c", &script]).spawn().unwrap();
    wait_for(&mut child, &at.join("nohup"), 5);
    signal(&child, "HUP");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn checkpoints_come_by_time_too() {
    let folder = specs();
    let at = folder.path();
    fine(at, &[&train("small", "a", "30")[..], &["--checkpoint-minutes", "0.0000001", "--keep", "100"]].concat());
    assert_eq!(fs::read_dir(at.join("a/checkpoints")).unwrap().count(), 30);
    let (status, _, err) = run(at, &["train", "small", "--checkpoint-minutes", "0"]);
    assert!(status == Some(2) && err.contains("a number of minutes above 0"), "{err}");
}

#[test]
fn a_run_is_resumed_by_its_directory_and_with_what_it_was_started_with() {
    let folder = specs();
    let at = folder.path();
    fine(at, &["train", "small", "--steps", "4", "--no-eval"]);
    // The directory, the name it was made from, and the spec.
    for args in [
        vec!["train", "--resume", "runs/small"],
        vec!["train", "--resume", "small"],
        vec!["train", "small", "--resume"],
    ] {
        let (_, err) = fine(at, &[&args[..], &["--no-eval"]].concat());
        assert!(
            err.contains("resuming small at step 4 of 4\nall its steps are taken; --steps N or --epochs N extends it"),
            "{err}"
        );
    }
    refused(at, &["train", "--resume", "fl"], "error: runs/fl holds no run (there is no run.json)");
    refused(at, &["train", "--resume", "runs/small", "--device", "reference"], "device: cpu (");
    let said =
        fine(at, &["train", "--resume", "runs/small", "--device", "reference", "--device-changed", "--no-eval"]).1;
    assert!(said.contains("accepted: device: cpu (") && said.contains("reference (f64) now"), "{said}");
}

/// What a spec says counts, not what it is called and where it lies.
#[test]
fn a_run_is_resumed_with_its_own_spec_only() {
    let folder = specs();
    let at = folder.path();
    let text = |name: &str| fs::read_to_string(at.join(format!("{name}.ron"))).unwrap();
    for (place, spec) in [("a", "steady"), ("b", "small"), ("copy", "steady")] {
        fs::create_dir(at.join(place)).unwrap();
        fs::write(at.join(place).join("my.ron"), text(spec)).unwrap();
        for used in ["small", "small_data"] {
            fs::write(at.join(place).join(format!("{used}.ron")), text(used)).unwrap();
        }
    }
    fine(at, &["train", "a/my.ron", "--steps", "3", "--no-eval"]);
    let advice = "; `alip-run train --resume runs/my` continues it as it was started; begin another with --out";
    for other in ["b/my.ron", "a/small.ron", "alip_shapes"] {
        let name = if other.ends_with(".ron") { other } else { "graphs/alip_shapes.ron" };
        let why = format!("/a/my.ron, not {name}{advice}");
        let (status, _, err) = run(at, &["train", other, "--resume", "--out", "runs/my"]);
        assert!(status == Some(1) && err.contains("error: the run in runs/my was made from another spec: "), "{err}");
        assert!(err.contains(&why), "no {why:?} in {err}");
    }
    refused(
        at,
        &["train", "none.ron", "--resume", "--out", "runs/my"],
        "error: none.ron cannot be read, so nobody knows",
    );
    let said = fine(at, &["train", "copy/my.ron", "--resume", "--no-eval"]).1;
    assert!(said.contains("resuming steady at step 3 of 3") && !said.contains("changed"), "{said}");
    fs::copy(at.join("copy/my.ron"), at.join("copy/renamed.ron")).unwrap();
    fine(at, &["train", "copy/renamed.ron", "--resume", "--out", "runs/my", "--no-eval"]);
    fine(&at.join("a"), &["train", "my.ron", "--resume", "--out", "../runs/my", "--no-eval"]);
    // Of a plan there is no spec.
    fine(at, &train("runs/my", "planned", "3"));
    fine(at, &["train", "runs/my", "--resume", "--out", "planned", "--no-eval"]);
    refused(
        at,
        &["train", "a/my.ron", "--resume", "--out", "planned"],
        "error: the run in planned was started from a compiled plan, not from a/my.ron; `alip-run train --resume planned`",
    );
    fine(at, &train("small", "other", "3"));
    refused(
        at,
        &["train", "other", "--resume", "--out", "planned"],
        "error: the run in planned was started from another plan than that in other; `alip-run train --resume planned`",
    );
    // A graph by its name is the file that the name found.
    for place in ["graphs", "pipelines"] {
        fs::create_dir(at.join(place)).unwrap();
    }
    fs::copy(at.join("small_data.ron"), at.join("pipelines/small_data.ron")).unwrap();
    fs::write(at.join("graphs/mine.ron"), format!("\u{feff}{}", text("small"))).unwrap();
    fine(at, &train("mine", "named", "3"));
    let said = fine(at, &["train", "--resume", "named", "--no-eval"]).1;
    assert!(!said.contains("changed"), "{said}");
    fs::write(at.join("graphs/mine.ron"), text("small") + "// changed\n").unwrap();
    let why = "error: graphs/mine.ron was changed since the run in named was started; `alip-run train --resume named`";
    refused(at, &["train", "mine", "--resume", "--out", "named"], why);
    // What is changed where it lies is told, from wherever the run is continued.
    for changed in ["a/small_data.ron", "a/my.ron"] {
        let path = at.join(changed);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}// changed\n")).unwrap();
        let why = format!("error: {changed} was changed since the run in runs/my was started{advice}");
        refused(at, &["train", "a/my.ron", "--resume"], &why);
        let said = fine(&at.join("b"), &["train", "--resume", "../runs/my", "--no-eval"]).1;
        let goes_on = format!("{changed} was changed since this run was started; it goes on as it was started\n");
        assert!(said.contains(&goes_on), "{said}");
        fs::write(&path, before).unwrap();
    }
}

/// On any device the plan is compiled for, from what it was compiled from.
#[test]
fn a_run_is_measured_on_another_device() {
    let folder = specs();
    let at = folder.path();
    fine(at, &train("small", "a", "5"));
    let weights = |device: &str| -> Vec<f64> {
        let said = fine(at, &["eval", "a", "--device", device, "--out", device]).1;
        let again = format!("compiling `small` for {device}, since the run was started on another kind of device");
        assert_eq!(said.contains(&again), device == "wgpu", "{said}");
        let results = fs::read(at.join(device).join("results.json")).unwrap();
        let results: serde_json::Value = serde_json::from_slice(&results).unwrap();
        assert_eq!((&results["results"]["samples"], &results["results"]["step"]), (&8.into(), &5.into()));
        let weights = &results["results"]["weights"]["weights"];
        let all = ["right", "wrong"].into_iter().flat_map(|kind| weights[kind].as_array().unwrap());
        all.map(|weight| weight.as_f64().unwrap()).collect()
    };
    let own = weights("cpu");
    assert_eq!(own.len(), 8);
    let wgpu = fine(at, &["devices"]).0.contains("target wgpu:");
    for device in ["reference", "wgpu"].into_iter().take(if wgpu { 2 } else { 1 }) {
        let found = weights(device);
        assert!(own.iter().zip(&found).all(|(own, found)| (own - found).abs() < 1e-4), "{device}: {own:?}, {found:?}");
    }
}

#[test]
fn a_measurement_is_stopped() {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("photos"), |n| format!("shape {n}"));
    // So many that nobody measures them all before the signal comes.
    let list = at.join("photos/captions.jsonl");
    let lines = fs::read_to_string(&list).unwrap();
    let held_out = lines.lines().last().unwrap();
    fs::write(&list, format!("{lines}{}", format!("{held_out}\n").repeat(20_000))).unwrap();
    fine(at, &train("on_photos", "a", "2"));
    for (name, status) in [("TERM", 143), ("INT", 130)] {
        let mut child = program(at, &["eval", "a"]).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        err.read_line(&mut first).unwrap();
        assert!(first.starts_with("device: cpu, "), "{first}");
        signal(&child, name);
        let mut rest = String::new();
        err.read_to_string(&mut rest).unwrap();
        let (found, out, _) = said(child.wait_with_output().unwrap());
        assert_eq!((found, out.as_str()), (Some(status), ""), "{rest}");
        assert!(rest.ends_with("not measured; `alip-run eval a` does it\n"), "{rest}");
    }
    assert!(!at.join("a/results.json").exists());
}

#[test]
fn a_finished_run_is_extended_where_its_steps_do_not_know_their_number() {
    let folder = specs();
    let at = folder.path();
    fine(at, &train("steady", "long", "9"));
    fine(at, &train("steady", "short", "5"));
    let said = fine(at, &["train", "--resume", "short", "--steps", "9", "--no-eval"]).1;
    assert!(said.contains("5 steps become 9; no step depends on how many there are"), "{said}");
    let weights = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000009.safetensors")).unwrap();
    // The plan, the seed and the state are the same, so the files are.
    assert!(weights("short") == weights("long"), "extended, other weights");
    refused(at, &["train", "--resume", "short", "--steps", "3"], "--steps 3: the run has taken 9 steps already");
    fine(at, &train("small", "cycle", "5"));
    let why =
        "--epochs 2, which is 17 steps: the schedule of `small` is laid out over all its 5 steps; with another number";
    refused(at, &["train", "--resume", "cycle", "--epochs", "2"], why);
}

/// Two more words in the captions of the training images would give other ids to all the rest.
#[test]
fn the_words_of_a_run_are_its_own() {
    let folder = specs();
    let at = folder.path();
    let caption = |n: u32| format!("a {} shape of size {n}", ["red", "green", "blue"][n as usize % 3]);
    photos(&at.join("photos"), caption);
    photos(&at.join("wordy"), |n| if n < 8 { format!("aardvark aardvark abacus {}", caption(n)) } else { caption(n) });
    fine(at, &train("on_photos.ron", "a", "6"));
    // With the weight of every sample, which no rank rounds.
    let file = |out: &str| fs::read(at.join(out).join("results.json")).unwrap();
    fine(at, &["eval", "a", "--out", "own"]);
    fine(at, &["eval", "a", "--out", "other", "--data", "wordy"]);
    assert!(file("own") == file("other"), "the words of other data were taken");
    // A run without its words counts others, and reads something else.
    let info = at.join("a/run.json");
    let text = fs::read_to_string(&info).unwrap();
    let mut without: serde_json::Value = serde_json::from_str(&text).unwrap();
    without["vocabulary"] = serde_json::Value::Null;
    fs::write(&info, without.to_string()).unwrap();
    refused(at, &["eval", "a"], "run.json: not what was written (checksum); put the file back");
    without.as_object_mut().unwrap().remove("checksum");
    fs::write(&info, without.to_string()).unwrap();
    fine(at, &["eval", "a", "--out", "counted", "--data", "wordy"]);
    assert!(file("own") != file("counted"), "the test notices nothing");
    fs::write(&info, &text).unwrap();
    let stored = at.join("a/vocabulary.json");
    fs::write(&stored, fs::read_to_string(&stored).unwrap().replacen("red", "abacus", 1)).unwrap();
    refused(at, &["eval", "a"], "vocabulary.json: not the file that the run was started with");
}

#[test]
fn other_data_are_named_and_accepted_when_asked() {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("photos"), |n| format!("shape {n}"));
    photos(&at.join("same"), |n| format!("shape {n}"));
    photos(&at.join("changed"), |n| format!("form {n}"));
    fine(at, &train("on_photos", "a", "3"));
    let resume = ["train", "--resume", "a", "--no-eval", "--data"];
    fine(at, &[&resume[..], &["same"]].concat());
    let why = "a was started with something else: list of training samples (hash): ";
    refused(at, &[&resume[..], &["changed"]].concat(), why);
    let said = fine(at, &[&resume[..], &["changed", "--data-changed"]].concat()).1;
    assert!(said.contains("accepted: list of training samples (hash): "), "{said}");
    let lines = fs::read_to_string(at.join("same/captions.jsonl")).unwrap();
    fs::write(at.join("same/captions.jsonl"), lines.split_once('\n').unwrap().1).unwrap();
    refused(at, &[&resume[..], &["same"]].concat(), "number of training samples: 8 when it was started, 7 now");
}

#[test]
fn a_run_moves_with_its_data() {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("project/photos"), |n| format!("shape {n}"));
    for file in ["on_photos", "photos_data", "small", "small_data"] {
        fs::copy(at.join(format!("{file}.ron")), at.join(format!("project/{file}.ron"))).unwrap();
    }
    fine(&at.join("project"), &train("on_photos", "runs/a", "3"));
    fs::rename(at.join("project"), at.join("moved")).unwrap();
    // From anywhere.
    results(at, &["moved/runs/a"]);
    fine(at, &["train", "--resume", "moved/runs/a", "--no-eval"]);
}

#[test]
fn what_cannot_be_measured_is_said_before_training() {
    let folder = specs();
    let at = folder.path();
    let spec = r#"Graph(name: "blind", base: "small", programs: { "encode_image": None, "encode_text": None, "weigh": None })"#;
    fs::write(at.join("blind.ron"), spec).unwrap();
    let said = fine(at, &["train", "blind", "--steps", "3"]).1;
    let why = said.find("will not be measured at the end: the plan of `blind` cannot be evaluated: it has no program");
    assert!(why.is_some() && why < said.find("step 1/3"), "{said}");
    let images = at.join("photos");
    photos(&images, |n| format!("shape {n}"));
    let list = fs::read_to_string(images.join("captions.jsonl")).unwrap();
    fs::write(images.join("captions.jsonl"), list.replace("\"test\"", "\"train\"")).unwrap();
    let said = fine(at, &["train", "on_photos", "--steps", "2"]).1;
    assert!(
        said.contains("will not be measured at the end: ") && said.contains("no line has the split `test`"),
        "{said}"
    );
}

#[test]
fn results_are_shown_whatever_becomes_of_their_files() {
    let folder = specs();
    let at = folder.path();
    fine(at, &train("small", "a", "2"));
    fs::write(at.join("file"), "").unwrap();
    let (status, out, err) = run(at, &["eval", "a", "--out", "file"]);
    assert_eq!(status, Some(1), "{out}{err}");
    assert!(out.contains("image to text R@1") && err.contains("error: file: "), "{out}{err}");
    let (out, _) = fine(at, &[&train("small", "b", "2")[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["graph"], &json["step"]), (&"small".into(), &2.into()));
    assert!(json["last"]["loss"].is_number() && json["checkpoint"].is_string(), "{json}");
}

#[test]
fn averages_are_measured_when_asked_for() {
    let folder = specs();
    let at = folder.path();
    fs::write(at.join("averaged.ron"), r#"Graph(name: "averaged", base: "small", train: (ema: (decay: 0.9)))"#)
        .unwrap();
    fine(at, &train("averaged", "a", "6"));
    refused(at, &["report", "a", "--average"], "`alip-run eval a --average` does it");
    let (plain, average) = (results(at, &["a"]), results(at, &["a", "--average"]));
    assert_eq!((&plain["average"], &average["average"]), (&false.into(), &true.into()));
    let page = fine(at, &["report", "a", "--average"]).0;
    assert!(
        page.contains("averaged (average of the weights)") && page.contains("report: a/report-average.html"),
        "{page}"
    );
    fine(at, &train("small", "b", "2"));
    refused(at, &["eval", "b", "--average"], "the run of `small` keeps no average of its weights");
}

#[test]
fn damage_offers_the_checkpoint_before() {
    let folder = specs();
    let at = folder.path();
    fine(at, &[&train("small", "a", "6")[..], &["--checkpoint-every", "3"]].concat());
    let newest = at.join("a/checkpoints/step-00000006.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    let why = "is not what was written (checksum); delete it, and step-00000003.safetensors takes its place";
    refused(at, &["train", "--resume", "a"], why);
    refused(at, &["eval", "a"], why);
    fs::remove_file(newest).unwrap();
    fine(at, &["train", "--resume", "a", "--no-eval"]);
}

#[test]
fn numbers_beyond_the_machine_are_refused() {
    let folder = specs();
    let at = folder.path();
    refused(at, &["train", "small", "--threads", "100000"], "error: --threads 100000: this machine runs ");
    refused(at, &["train", "small", "--workers", "0"], "error: --workers 0: this machine runs ");
    refused(at, &["train", "small", "--batch", "1000000"], "use a smaller --batch");
    assert!(!at.join("runs").exists());
}

/// The first screen says what its reader needs, in eighty columns.
#[test]
fn the_first_screen_is_narrow() {
    let folder = specs();
    let said = fine(folder.path(), &["train", "small", "--steps", "3"]);
    let lines: Vec<&str> = said.1.lines().collect();
    assert!(
        lines[0].starts_with("device: cpu, ") && lines[0].ends_with(" threads") || lines[0].ends_with(" thread"),
        "{lines:?}"
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
}

/// A shard of twelve images with texts, in `shards`, and `sharded`, a graph on it.
fn shards(at: &Path, caption: &str) {
    photos(&at.join("photos"), |n| format!("shape {n}"));
    fs::create_dir_all(at.join("shards")).unwrap();
    let mut shard = tar::Builder::new(fs::File::create(at.join("shards/0.tar")).unwrap());
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        shard.append_data(&mut header, name, bytes).unwrap();
    };
    for n in 0..12 {
        add(format!("{n}.png"), &fs::read(at.join(format!("photos/{n}.png"))).unwrap());
        add(format!("{n}.txt"), b"a shape of the web");
        add(format!("{n}.json"), format!(r#"{{"caption": "{caption}"}}"#).as_bytes());
    }
    shard.finish().unwrap();
    fs::write(at.join("words.txt"), "a\nshape\nred\n").unwrap();
    let data = fs::read_to_string(at.join("photos_data.ron")).unwrap();
    let source = r#"Webdataset(path: "shards/*.tar", texts: { "raw": "txt", "caption": "json:caption" })"#;
    let data = data.replace(r#"Folder(path: "photos")"#, source).replace("words:512", "words:512:words.txt");
    fs::write(at.join("shards_data.ron"), &data).unwrap();
    fs::write(at.join("clip_data.ron"), data.replace("words:512:words.txt", "clip")).unwrap();
    fs::write(at.join("sharded.ron"), r#"Graph(name: "sharded", base: "small", data: "shards_data")"#).unwrap();
}

/// Shards are known again by where they lie from the run, and by what is in them.
#[test]
fn a_run_on_shards_moves_with_them_and_knows_them() {
    let folder = specs();
    let at = folder.path().join("here");
    fs::rename(specs().keep(), &at).unwrap();
    shards(&at, "a red shape");
    let said = fine(&at, &["train", "sharded", "--steps", "2", "--out", "run"]).1;
    let why = "`Webdataset` has no held-out samples: a run on it is trained, and measured by none of its data";
    assert!(said.contains("will not be measured at the end: ") && said.contains(why), "{said}");
    refused(&at, &["eval", "run"], why);
    let moved = folder.path().join("there");
    fs::rename(&at, &moved).unwrap();
    fine(folder.path(), &["train", "--resume", "there/run"]);
    shards(&moved, "a blu shape");
    refused(folder.path(), &["train", "--resume", "there/run"], "--data-changed");
}

/// A pipeline that lies beside is found by its path, also for a graph that lies elsewhere.
#[test]
fn another_pipeline_is_found_by_its_path() {
    let folder = specs();
    let at = folder.path();
    shards(at, "a red shape");
    let why = "`raw` has ids up to 49407, but the table that they index has 512 rows";
    refused(at, &["train", "alip_shapes", "--steps", "2", "--data", "./clip_data.ron"], "image");
    refused(at, &["train", "small", "--steps", "2", "--data", "clip_data.ron"], why);
}

/// Results of another checkpoint do not take the place of the run's own.
#[test]
fn results_of_another_checkpoint_lie_beside() {
    let folder = specs();
    let at = folder.path();
    fine(at, &["train", "small", "--steps", "4", "--checkpoint-every", "2", "--out", "a"]);
    let own = || fs::read(at.join("a/results.json")).unwrap();
    let before = own();
    let (out, _) = fine(at, &["eval", "a", "--checkpoint", "a/checkpoints/step-00000002.safetensors"]);
    assert!(out.ends_with("report: a/step-00000002/report.html\n"), "{out}");
    assert!(own() == before && at.join("a/step-00000002/results.json").exists());
    let (out, _) = fine(at, &["eval", "a", "--checkpoint", "a/checkpoints/step-00000004.safetensors"]);
    assert!(out.ends_with("report: a/report.html\n"), "{out}");
}

/// A run of another version of plans is compiled again where only its model is needed.
#[test]
fn a_plan_of_another_version_is_compiled_again() {
    let folder = specs();
    let at = folder.path();
    fine(at, &["train", "small", "--steps", "3", "--out", "a"]);
    let results = fs::read(at.join("a/results.json")).unwrap();
    fine(at, &["export", "a", "--to", "safetensors", "-o", "before.safetensors"]);
    let plan = at.join("a/plan.alip");
    let mut bytes = fs::read(&plan).unwrap();
    let now = alip_plan::FORMAT_VERSION.to_le_bytes();
    let version = bytes.windows(4).position(|window| window == now).unwrap();
    bytes[version..version + 4].copy_from_slice(&1u32.to_le_bytes());
    fs::write(&plan, bytes).unwrap();
    let again = "compiling `small` again, since the plan of the run is of another version";
    let (_, err) = fine(at, &["eval", "a"]);
    assert!(err.contains(again), "{err}");
    assert!(fs::read(at.join("a/results.json")).unwrap() == results);
    let (_, err) = fine(at, &["export", "a", "--to", "safetensors", "-o", "after.safetensors"]);
    assert!(err.contains(again), "{err}");
    assert!(fs::read(at.join("before.safetensors")).unwrap() == fs::read(at.join("after.safetensors")).unwrap());
    // To go on with, it is another plan.
    refused(at, &["train", "--resume", "a", "--steps", "4"], "the run was made by another version of alip-run");
}

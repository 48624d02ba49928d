//! A model that takes milliseconds per step, and the program to train it with.

// Each test file uses its part.
#![allow(dead_code)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Of rendered scenes; an epoch is 8 1/3 batches, so that kills hit the middle of one.
const SMALL: &str = r#"Graph(
    name: "small",
    base: "alip_shapes",
    use: ["schedule/constant"],
    dims: { "B": Batch(6), "D": 16 },
    inputs: { "image": (dtype: F32, shape: "[B, 3, 16, 16]") },
    parts: {
        "visual": "vit(image: 16, patch: 8, width: 16, layers: 1, heads: 2, out: D)",
        "text": "text_transformer(vocab: 512, context: T, width: 16, layers: 1, heads: 2, out: D)",
    },
    data: "small_data",
)"#;

const SMALL_DATA: &str = r#"Pipeline(
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

/// The same on a folder, whose words are counted.
const PHOTOS: &str = r#"Pipeline(
    name: "photos",
    source: Folder(path: "photos"),
    shuffle: (),
    body: [
        "pixels = normalize_rgb(resize(decode_rgb(jpeg), 16, 16), mean: 0.5, std: 0.25)",
        "raw_ids = tokenize(raw, 32, vocab: 'words:512')",
        "caption_ids = tokenize(caption, 32, vocab: 'words:512')",
    ],
    outputs: { "image": "pixels", "raw": "raw_ids", "caption": "caption_ids" },
)"#;

/// A folder with the specs `small` (a schedule that knows its end), `steady` (constant) and `photos`.
pub(crate) fn specs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let without = r#"metrics: { "beta1": None }"#;
    let steady =
        format!(r#"Graph(name: "steady", base: "small", {without}, train: (schedule: "constant(max_lr: 1e-3)"))"#);
    let photos = r#"Graph(name: "on_photos", base: "small", data: "photos_data")"#;
    for (name, text) in [
        ("small", SMALL),
        ("small_data", SMALL_DATA),
        ("steady", &steady),
        ("on_photos", photos),
        ("photos_data", PHOTOS),
    ] {
        fs::write(at.join(format!("{name}.ron")), text).unwrap();
    }
    folder
}

/// A folder of twelve images with captions; `caption` gives the second one of each image.
pub(crate) fn photos(root: &Path, caption: impl Fn(u32) -> String) {
    fs::create_dir_all(root).unwrap();
    let mut lines = String::new();
    for n in 0..12u32 {
        let image =
            image::RgbImage::from_fn(20, 18, |x, y| image::Rgb([(x * 12) as u8, (y * 13) as u8, (n * 20) as u8]));
        image.save(root.join(format!("{n}.png"))).unwrap();
        let split = if n < 8 { "train" } else { "test" };
        let captions = serde_json::json!(["a picture from the web", caption(n)]);
        lines +=
            &format!("{}\n", serde_json::json!({"image": format!("{n}.png"), "captions": captions, "split": split}));
    }
    fs::write(root.join("captions.jsonl"), lines).unwrap();
}

/// Three shards of unequal numbers of samples, 24 in all, in a folder `shards`, packed by `pack`; the pipelines `shards_data` and
/// graph `sharded` on them.
pub(crate) fn sequence(at: &Path, ending: &str, pack: impl Fn(Vec<u8>) -> Vec<u8>) {
    photos(&at.join("photos"), |n| format!("shape {n}"));
    fs::create_dir_all(at.join("shards")).unwrap();
    for (number, samples) in [(0, 0..9), (1, 9..16), (2, 16..24)] {
        let mut shard = tar::Builder::new(Vec::new());
        let mut add = |name: String, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            shard.append_data(&mut header, name, bytes).unwrap();
        };
        for sample in samples {
            add(format!("{sample}.png"), &fs::read(at.join(format!("photos/{}.png", sample % 12))).unwrap());
            add(format!("{sample}.txt"), b"a shape of the web");
            add(format!("{sample}.json"), format!(r#"{{"caption": "a red shape {sample}"}}"#).as_bytes());
        }
        fs::write(at.join(format!("shards/{number}.{ending}")), pack(shard.into_inner().unwrap())).unwrap();
    }
    fs::write(at.join("words.txt"), "a\nshape\nred\n").unwrap();
    let data = fs::read_to_string(at.join("photos_data.ron")).unwrap();
    let source =
        format!(r#"Webdataset(path: "shards/*.{ending}", texts: {{ "raw": "txt", "caption": "json:caption" }})"#);
    let data = data.replace(r#"Folder(path: "photos")"#, &source).replace("words:512", "words:512:words.txt");
    fs::write(at.join("shards_data.ron"), &data).unwrap();
    fs::write(at.join("sharded.ron"), r#"Graph(name: "sharded", base: "steady", data: "shards_data")"#).unwrap();
}

/// Compressed.
pub(crate) fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    gzip.finish().unwrap()
}

/// The weights after the last step.
pub(crate) fn weights(run: &Path) -> Vec<u8> {
    let newest = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max();
    fs::read(newest.unwrap()).unwrap()
}

/// What is logged of each step, but how long it took.
pub(crate) fn log(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let untimed = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["samples_per_s", "data_wait"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    };
    text.lines().map(untimed).collect()
}

/// The program in a folder, on the cpu.
pub(crate) fn program(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    // A spec by its name stands for the file.
    let file = |arg: &&str| args[0] == "train" && folder.join(format!("{arg}.ron")).is_file();
    let all = args
        .iter()
        .enumerate()
        .map(|(at, arg)| if at == 1 && file(arg) { format!("{arg}.ron") } else { arg.to_string() });
    command.current_dir(folder).args(all).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if matches!(args[0], "train" | "eval") && !args.contains(&"--device") {
        command.args(["--device", "cpu"]);
    }
    command
}

/// Runs it; exit status, stdout, stderr.
pub(crate) fn run(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    said(program(folder, args).output().unwrap())
}

/// What became of it.
pub(crate) fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The command succeeds; stdout and stderr.
pub(crate) fn fine(folder: &Path, args: &[&str]) -> (String, String) {
    let (status, out, err) = run(folder, args);
    assert_eq!(status, Some(0), "{args:?}\n{out}{err}");
    (out, err)
}

/// The command fails and says this.
pub(crate) fn refused(folder: &Path, args: &[&str], part: &str) {
    let (status, out, err) = run(folder, args);
    assert_eq!(status, Some(1), "{args:?}\n{out}{err}");
    assert!(err.contains(part), "{args:?}: no {part:?} in\n{err}");
}

/// Lines of the log of a run.
pub(crate) fn steps_logged(run: &Path) -> usize {
    fs::read(run.join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

/// Waits until the log holds so many steps.
pub(crate) fn wait_for(child: &mut Child, run: &Path, steps: usize) {
    let start = Instant::now();
    while steps_logged(run) < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run was over before step {steps}");
        assert!(start.elapsed() < Duration::from_secs(120), "no step {steps}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Sends a signal to a process.
#[cfg(unix)]
pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

//! Training that starts from weights of a file: where it begins, what a run remembers of it, and what is refused.

#![cfg(feature = "compile")]

mod common;

use std::fs;
use std::path::Path;

use alip_runtime::weights::{RawTensor, Weights};
use common::{fine, log, refused, specs, weights};

/// A tower of images that is locked: it starts from a file, and stays.
const LOCKED: &str = r#"Graph(
    name: "locked",
    base: "steady",
    train: (
        start: [(file: "clip.safetensors", select: "visual.*")],
        groups: [(select: "visual.*", freeze: true)],
    ),
)"#;

/// A folder with `locked` and the weights of a short run of `steady` as `clip.safetensors`.
fn folder() -> tempfile::TempDir {
    let folder = specs();
    let at = folder.path();
    fs::write(at.join("locked.ron"), LOCKED).unwrap();
    fine(at, &["train", "steady", "--steps", "3", "--seed", "5", "--out", "first", "--no-eval"]);
    fine(at, &["export", "first", "--to", "safetensors", "-o", "clip.safetensors"]);
    folder
}

fn tensors(path: &Path) -> Vec<(String, RawTensor)> {
    let mut file = Weights::open(path).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<String> = file.names().map(str::to_string).collect();
    names.into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

/// Whether two files have the same bits of tensors, by name.
fn same(a: &Path, b: &Path, names: impl Fn(&str) -> bool) -> (usize, usize) {
    let (a, b) = (tensors(a), tensors(b));
    let shared: Vec<bool> = a
        .iter()
        .filter(|(name, _)| names(name))
        .filter_map(|(name, tensor)| Some(b.iter().find(|(other, _)| other == name)?.1 == *tensor))
        .collect();
    (shared.iter().filter(|same| **same).count(), shared.len())
}

fn newest(run: &Path) -> std::path::PathBuf {
    fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap()
}

#[test]
fn a_locked_tower_keeps_the_bits_of_its_file() {
    let folder = folder();
    let at = folder.path();
    let (_, said) = fine(at, &["train", "locked", "--steps", "4", "--out", "tuned", "--no-eval"]);
    assert!(said.contains("started from clip.safetensors, `visual.*` ("), "{said}");
    let (file, trained) = (at.join("clip.safetensors"), newest(&at.join("tuned")));
    let (equal, all) = same(&file, &trained, |name| name.starts_with("visual."));
    assert!(all > 10 && equal == all, "{equal} of {all}");
    let (equal, all) = same(&file, &trained, |name| name.ends_with("token_embedding.weight"));
    assert_eq!((equal, all), (0, 1), "the tower of texts started from its seed, and was trained");
    // Without the file it starts elsewhere.
    fine(at, &["train", "steady", "--steps", "4", "--out", "plain", "--no-eval"]);
    assert_eq!(same(&file, &newest(&at.join("plain")), |name| name == "visual.conv1.weight"), (0, 1));
}

/// A run needs the file no more once it has begun, wherever it was killed.
#[test]
fn a_run_goes_on_without_the_file() {
    let folder = folder();
    let at = folder.path();
    let train = |out: &str| {
        fine(
            at,
            &["train", "locked", "--steps", "6", "--out", out, "--no-eval", "--checkpoint-every", "2", "--keep", "9"],
        );
    };
    train("unbroken");
    train("broken");
    train("at_once");
    fs::remove_file(at.join("clip.safetensors")).unwrap();
    for (out, kept) in [("broken", 2), ("at_once", 0)] {
        let checkpoints = at.join(out).join("checkpoints");
        for entry in fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()) {
            if !entry.ends_with(format!("step-{kept:08}.safetensors")) {
                fs::remove_file(entry).unwrap();
            }
        }
        fine(at, &["train", "--resume", out, "--no-eval"]);
        assert!(weights(&at.join(out)) == weights(&at.join("unbroken")), "{out}");
        assert_eq!(log(&at.join(out)), log(&at.join("unbroken")), "{out}");
    }
    fs::remove_dir_all(at.join("broken/checkpoints")).unwrap();
    fs::create_dir(at.join("broken/checkpoints")).unwrap();
    let lost = "the run starts from other weights (clip.safetensors, `visual.*` (";
    refused(at, &["train", "--resume", "broken", "--no-eval"], lost);
}

#[test]
fn all_weights_of_a_file() {
    let folder = folder();
    let at = folder.path();
    let (_, said) =
        fine(at, &["train", "steady", "--weights", "clip.safetensors", "--steps", "1", "--out", "from", "--no-eval"]);
    assert!(said.contains("and at their first values: lcg.ema, dcg_raw.ema, dcg_caption.ema"), "{said}");
    let start = at.join("from/checkpoints/step-00000000.safetensors");
    let (equal, all) = same(&at.join("clip.safetensors"), &start, |_| true);
    assert!(all > 20 && equal == all, "{equal} of {all}");
    // A checkpoint of a run will do as it is: what of it are weights.
    let checkpoint = newest(&at.join("first")).display().to_string();
    fine(at, &["train", "steady", "--weights", &checkpoint, "--steps", "1", "--out", "again", "--no-eval"]);
    // Of another model's checkpoint too, but nothing of it is left out in silence: here gates, which a CLIP has not.
    let clip = r#"Graph(name: "ungated", base: "steady", inputs: { "caption": None },
        parts: { "lcg": None, "dcg_raw": None, "dcg_caption": None }, body: ["loss = clip_loss(x, tr, s)"],
        programs: { "weigh": None }, metrics: {
            "loss_raw": None, "loss_caption": None, "text_sim_mean": None, "raw_sim_mean": None, "caption_sim_mean": None,
            "text_momentum": None, "raw_momentum": None, "caption_momentum": None, "sample_weight_mean": None,
            "raw_weight_mean": None, "caption_weight_mean": None, "gate_margin": None })"#;
    fs::write(at.join("ungated.ron"), clip).unwrap();
    let from = |file| ["train", "ungated", "--weights", file, "--steps", "1", "--out", "ungated", "--no-eval"];
    let (_, said) = fine(at, &from(&checkpoint));
    let gates = "states of gates, which the graph has not, left out: dcg_caption.ema, dcg_raw.ema, lcg.ema";
    assert!(said.contains(gates), "{said}");
    // A parameter is no gate.
    fs::write(
        at.join("extra.ron"),
        r#"Graph(name: "extra", base: "steady", params: { "extra": (shape: "[D]", init: "ones") },
            body: ["x = normalize(visual(image) * extra)"])"#,
    )
    .unwrap();
    fine(at, &["train", "extra", "--steps", "1", "--out", "extra", "--no-eval"]);
    let extra = newest(&at.join("extra")).display().to_string();
    let onto = ["train", "steady", "--weights", &extra, "--steps", "1", "--out", "onto", "--no-eval"];
    refused(at, &onto, "left over, for which the graph has no place:\n    `extra` [16]");
    fine(at, &["train", "--resume", "from", "--weights", "clip.safetensors", "--steps", "2", "--no-eval"]);
    fine(at, &["train", "steady", "--steps", "2", "--out", "other", "--no-eval"]);
    fine(at, &["export", "other", "--to", "safetensors", "-o", "other.safetensors"]);
    refused(
        at,
        &["train", "--resume", "from", "--weights", "other.safetensors", "--no-eval"],
        "error: from was started from clip.safetensors (",
    );
    refused(
        at,
        &["train", "--resume", "other", "--weights", "clip.safetensors", "--no-eval"],
        "error: other was started from no file's weights, not from clip.safetensors (",
    );
}

#[test]
fn what_cannot_be_started_from_is_refused_and_leaves_no_run() {
    let folder = folder();
    let at = folder.path();
    let locked = |name: &str, start: &str| {
        let text = format!("Graph(name: \"{name}\", base: \"steady\", train: (start: [{start}]))");
        fs::write(at.join(format!("{name}.ron")), text).unwrap();
    };
    let check = |name: &str, said: &str| {
        refused(at, &["train", name, "--steps", "1", "--no-eval"], said);
        assert!(!at.join("runs").join(name).exists(), "{name}");
    };
    locked("gone", r#"(file: "gone.safetensors")"#);
    check("gone", "gone.safetensors: cannot read: ");
    locked("nothing", r#"(file: "clip.safetensors", select: "visul.*")"#);
    check("nothing", "error: `visul.*` selects nothing of the graph");
    locked("brace", r#"(file: "clip.safetensors", select: "visual.{")"#);
    check("brace", "error: `{` begins the name of a step of a path, `{i}`");
    locked("nameless", r#"(select: "visual.*")"#);
    check("nameless", "error: missing field `file` in an entry of `start`");
    fine(at, &["import", "clip.safetensors", "--select", "visual.*", "-o", "part.safetensors"]);
    locked("part", r#"(file: "part.safetensors")"#);
    check("part", "part.safetensors: the weights do not fit graph `part`:\n  missing in the file:\n");
    // A variant takes it away.
    fs::write(at.join("free.ron"), r#"Graph(name: "free", base: "part", train: (start: None))"#).unwrap();
    fine(at, &["train", "free", "--steps", "1", "--no-eval"]);
}

/// A path is seen from the file that says it.
#[test]
fn files_are_seen_from_the_spec() {
    let folder = folder();
    let at = folder.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let spec = at.join("locked.ron").display().to_string();
    fine(elsewhere.path(), &["train", &spec, "--steps", "1", "--out", "run", "--no-eval"]);
}

/// What a graph has otherwise than the source of its weights says is told of the towers that the weights come to.
#[test]
fn what_the_source_says_otherwise_is_told() {
    let folder = folder();
    let at = folder.path();
    let graph = |name: &str, base: &str, act: &str, heads: u32, train: &str| {
        let text = format!(
            r#"Graph(name: "{name}", base: "{base}", use: ["activation"], parts: {{
                "visual": (set: {{ "act": "{act}" }}),
                "text": (module: "text_transformer(vocab: 512, context: T, width: 16, layers: 1, heads: {heads}, out: D, act: {act})", path: ""),
            }}, train: ({train}))"#
        );
        fs::write(at.join(format!("{name}.ron")), text).unwrap();
    };
    graph("quick", "steady", "quick_gelu", 4, "");
    graph("plain", "steady", "gelu", 2, "");
    graph("half", "steady", "gelu", 2, r#"start: [(file: "quick", select: "visual.*")]"#);
    fine(at, &["train", "quick", "--steps", "1", "--no-eval", "--out", "run"]);
    fine(at, &["export", "run", "--to", "openai", "-o", "quick"]);
    let check = |args: &[&str], told: &[&str]| {
        let (_, err) = fine(at, &[&["train"], args, &["--steps", "1", "--no-eval"]].concat());
        let warnings: Vec<&str> = err.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
        assert_eq!(warnings, told, "{args:?}\n{err}");
    };
    let says = "but open_clip_config.json says";
    let images = format!("the tower of images has the activation gelu, {says} quick_gelu: features will differ");
    let texts = format!("the tower of texts has the activation gelu, {says} quick_gelu: features will differ");
    let heads = format!("the tower of texts has 2 heads, {says} 4: features will differ");
    check(&["quick", "--weights", "quick", "--out", "same"], &[]);
    check(&["plain", "--weights", "quick", "--out", "plain"], &[&images, &texts, &heads]);
    check(&["half", "--out", "half"], &[&images]);
}

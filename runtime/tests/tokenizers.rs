//! Tokenizers of files: what a run is trained with is its own, wherever the file has gone.

#![cfg(all(feature = "compile", feature = "tokenizers"))]

mod common;

use std::fs;

use common::{fine, photos, refused, specs};
use serde_json::json;

/// Pieces of words, with the end as the largest id unless others are added behind it.
fn pieces(more: &[&str]) -> String {
    let vocabulary = ["[PAD]", "[UNK]", "a", "picture", "from", "the", "web", "shape", "##s", "[CLS]", "[SEP]"];
    let ids: serde_json::Map<String, serde_json::Value> =
        vocabulary.iter().chain(more).zip(0..).map(|(piece, id)| (piece.to_string(), json!(id))).collect();
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 10], "cls": ["[CLS]", 9] },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    });
    description.to_string()
}

/// A folder with twelve pictures, a tokenizer, and a graph `filed` that is trained on them with it.
fn folder() -> tempfile::TempDir {
    let folder = specs();
    let at = folder.path();
    photos(&at.join("photos"), |n| format!("shapes {n}"));
    fs::create_dir(at.join("tokens")).unwrap();
    fs::write(at.join("tokens/tokenizer.json"), pieces(&[])).unwrap();
    let data = fs::read_to_string(at.join("photos_data.ron")).unwrap();
    fs::write(at.join("filed_data.ron"), data.replace("words:512", "file:tokens/tokenizer.json")).unwrap();
    let graph = r#"Graph(
        name: "filed", base: "steady", data: "filed_data",
        parts: { "text": (module: "text_transformer(vocab: 11, context: T, width: 16, layers: 1, heads: 2, out: D)", path: "") },
    )"#;
    fs::write(at.join("filed.ron"), graph).unwrap();
    folder
}

const TRAIN: [&str; 6] = ["train", "filed", "--steps", "4", "--out", "runs/filed"];

/// The run has a copy, so that nothing asks for the file again.
#[test]
fn a_run_keeps_its_tokenizer() {
    let folder = folder();
    let at = folder.path();
    let (_, said) = fine(at, &TRAIN);
    assert!(!said.contains("warning: tokenizer.json"), "{said}");
    let embed = ["embed", "--images", "photos", "--text", "shapes", "--out", "with.safetensors"];
    fine(at, &embed);
    let (told, _) = fine(at, &["data", "filed_data.ron", "--batches", "1", "--batch", "4"]);
    assert!(told.contains("tokenize"), "{told}");
    let pack = ["pack", "photos_data.ron", "--vocab", "file:tokens/tokenizer.json", "--context", "8", "--to", "a.rec"];
    let (told, _) = fine(at, &pack);
    let ids = "8 ids of 'file:tokens/tokenizer.json'";
    assert!(told.contains(&format!("texts: raw ({ids}), caption ({ids})")), "{told}");

    fs::rename(at.join("tokens"), at.join("gone")).unwrap();
    let results = fs::read(at.join("runs/filed/results.json")).unwrap();
    fine(at, &["eval", "runs/filed"]);
    assert!(fs::read(at.join("runs/filed/results.json")).unwrap() == results);
    fine(at, &["embed", "--images", "photos", "--text", "shapes", "--out", "without.safetensors"]);
    assert!(fs::read(at.join("with.safetensors")).unwrap() == fs::read(at.join("without.safetensors")).unwrap());
    fine(at, &["search", "shapes", "--images", "with.safetensors"]);
    fine(at, &["weigh", "runs/filed"]);
    fine(at, &["train", "--resume", "runs/filed", "--steps", "5"]);

    fine(at, &["export", "runs/filed", "--to", "huggingface", "-o", "hf"]);
    assert_eq!(fs::read_to_string(at.join("hf/tokenizer.json")).unwrap(), pieces(&[]));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(at.join("hf/config.json")).unwrap()).unwrap();
    assert_eq!(config["text_config"]["eos_token_id"], 10);
}

/// A file that says something else is not the run's, and is told by its name.
#[test]
fn another_tokenizer_is_refused() {
    let folder = folder();
    let at = folder.path();
    fine(at, &[&TRAIN[..], &["--no-eval"]].concat());
    let file = at.join("tokens/tokenizer.json");
    fs::write(&file, pieces(&["more"])).unwrap();
    let resume = ["train", "--resume", "runs/filed", "--steps", "5"];
    refused(at, &resume, "error: runs/filed was started with another tokens/tokenizer.json: it had the hash ");
    refused(at, &resume, "; put it back, or take it away, since the run goes on with the copy that it keeps");
    fs::write(&file, pieces(&[])).unwrap();
    fine(at, &[&resume[..], &["--no-eval"]].concat());
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_step() {
    let folder = folder();
    let at = folder.path();
    let file = at.join("tokens/tokenizer.json");
    let check = |said: &str| {
        refused(at, &TRAIN, said);
        assert!(!at.join("runs").exists());
    };
    fs::write(&file, pieces(&["more"])).unwrap();
    check(
        "error: pipeline `photos`: `raw` has ids of 'file:tokens/tokenizer.json', up to 11, but the table of `filed` that they \
         index has 11 rows; give the table 12 rows, or a tokenizer of at most 11 ids",
    );
    fs::write(&file, "[]").unwrap();
    check("error: tokens/tokenizer.json: no tokenizer: ");
    fs::remove_file(&file).unwrap();
    check("error: tokens/tokenizer.json: No such file or directory (os error 2); give a `tokenizer.json`");
    // A tower that reads a text at its largest id is told where that is not its end.
    fs::write(&file, pieces(&["more"])).unwrap();
    let graph = fs::read_to_string(at.join("filed.ron")).unwrap();
    fs::write(at.join("filed.ron"), graph.replace("vocab: 11", "vocab: 12")).unwrap();
    let (_, said) = fine(at, &[&TRAIN[..], &["--no-eval"]].concat());
    let warning = "warning: tokenizer.json ends a text with the id 10, and has ids up to 11: a tower that reads a text at its largest id";
    assert!(said.contains(warning), "{said}");
}

//! What people do with a trained model: `embed`, `search`, `classify`.

#![cfg(feature = "compile")]

mod common;

use std::fs;
use std::path::Path;

use common::{fine, photos, refused, run, specs, weights};

/// A folder with twelve pictures and a run of three steps on them.
fn trained() -> tempfile::TempDir {
    let folder = specs();
    photos(&folder.path().join("photos"), |n| format!("shape {n}"));
    fine(folder.path(), &["train", "on_photos", "--steps", "3", "--no-eval", "--out", "runs/small"]);
    folder
}

/// The tensor of a file, as f32 rows.
fn rows(path: &Path, name: &str) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    values.chunks(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn what_is_embedded_is_searched() {
    let folder = trained();
    let at = folder.path();
    let (out, err) = fine(at, &["embed", "--images", "photos", "--text", "a shape", "--out", "all.safetensors"]);
    assert_eq!(out, "all.safetensors: 12 images and 1 texts, 16 numbers each; 0 images could not be read\n");
    assert!(err.starts_with("model: runs/small\n"), "{err}");
    let images = rows(&at.join("all.safetensors"), "images");
    let norms = images.iter().map(|row| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>());
    assert!(norms.into_iter().all(|norm| (norm - 1.0).abs() < 1e-5));

    // The order and the cosines are those of the embeddings, and are the same from the file and from the folder.
    let text = &rows(&at.join("all.safetensors"), "texts")[0];
    let cosine = |row: &[f32]| row.iter().zip(text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    // Alphabetical, so 10.png stands after 1.png.
    let mut names: Vec<String> = (0..12).map(|n| format!("photos/{n}.png")).collect();
    names.sort();
    let mut wanted: Vec<(String, f64)> = names.into_iter().zip(images.iter().map(|row| cosine(row))).collect();
    wanted.sort_by(|a, b| b.1.total_cmp(&a.1));
    for images in ["all.safetensors", "photos"] {
        let (out, _) = fine(at, &["search", "a shape", "--images", images, "-k", "3", "--json"]);
        let found: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(found.len(), 3);
        for (found, (name, cosine)) in found.iter().zip(&wanted) {
            assert_eq!(found["image"], *name);
            assert!((found["cosine"].as_f64().unwrap() - cosine).abs() < 1e-5, "{found} {cosine}");
        }
    }
    // An image finds itself.
    let (out, _) = fine(at, &["search", "photos/7.png", "--images", "photos", "-k", "1"]);
    assert_eq!(out, "1.0000  photos/7.png\n");

    // A table holds one kind, with its names beside it.
    fine(at, &["embed", "--images", "photos/3.png", "--images", "photos/4.png", "--out", "two.npy"]);
    assert_eq!(fs::read_to_string(at.join("two.names.txt")).unwrap(), "photos/3.png\nphotos/4.png\n");
    let bytes = fs::read(at.join("two.npy")).unwrap();
    assert_eq!(bytes.len(), 128 + 2 * 16 * 4);

    // Other weights make other embeddings.
    fine(at, &["train", "on_photos", "--steps", "3", "--seed", "7", "--no-eval", "--out", "runs/other"]);
    let why = "all.safetensors was written by another model, or by other weights of this one: embed the images again";
    refused(at, &["search", "a shape", "--images", "all.safetensors"], why);
}

#[test]
fn labels_of_images() {
    let folder = trained();
    let at = folder.path();
    let args = ["classify", "photos/0.png", "photos/1.png", "--labels", "red shape, blue shape,circle", "--json"];
    let (out, _) = fine(at, &args);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, image) in lines.iter().zip(["photos/0.png", "photos/1.png"]) {
        assert_eq!(line["image"], image);
        let labels = line["labels"].as_array().unwrap();
        let shares: Vec<f64> = labels.iter().map(|label| label["probability"].as_f64().unwrap()).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares.is_sorted_by(|a, b| a >= b), "{shares:?}");
        let mut names: Vec<&str> = labels.iter().map(|label| label["label"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["blue shape", "circle", "red shape"]);
    }
    // One that cannot be read is told, and the others are classified.
    fs::write(at.join("photos/bad.png"), "no image").unwrap();
    let (status, out, err) = run(at, &["classify", "photos/0.png", "photos/bad.png", "--labels", "a,b"]);
    assert_eq!((status, out.lines().count()), (Some(1), 2), "{out}{err}");
    assert!(err.contains("left out sample 1 (index 1, photos/bad.png): not a JPEG, PNG or WebP file"), "{err}");
}

#[test]
fn mistakes_are_told() {
    let folder = trained();
    let at = folder.path();
    fs::create_dir(at.join("empty")).unwrap();
    fs::write(at.join("text.png"), "no image").unwrap();
    let check = |args: &[&str], message: &str| refused(at, args, message);
    check(
        &["classify", "photos/0.png", "--labels", "cat"],
        "error: --labels: give two or more, with commas between them: \"cat,dog,boat\"",
    );
    check(
        &["classify", "photos/0.png", "--labels", "a,b", "--prompt", "a photo"],
        "error: --prompt `a photo` has no `{c}`, where the label stands",
    );
    check(
        &["search", "a shape", "--images", "empty"],
        "error: empty: holds no images (.jpg, .jpeg, .png, .webp); give a folder that does",
    );
    check(&["search", "a shape", "--images", "nowhere"], "error: nowhere: cannot be read: ");
    check(
        &["search", "text.png", "--images", "photos"],
        "error: sample 0 (index 0, text.png): not a JPEG, PNG or WebP file; there is no other sample",
    );
    check(
        &["search", "photos/99.png", "--images", "photos"],
        "error: photos/99.png: there is no such image; a text has no ending of an image",
    );
    check(&["search", "a", "--images", "photos.npy"], "photos.npy says nothing of the model that wrote it");
    check(
        &["embed", "--images", "photos", "--out", "no/x.npy"],
        "error: no/x.npy: there is no folder no; make it, or write elsewhere",
    );
    check(
        &["embed", "--text", "a\nb", "--out", "x.npy"],
        r#"error: "a\nb": names beside a .npy are a line each; write .safetensors"#,
    );
    check(
        &["embed", "--images", "photos", "--out", "x.txt"],
        "error: --out x.txt: write a file that ends in .safetensors or .npy",
    );
    check(
        &["embed", "--images", "photos", "--text", "a", "--out", "x.npy"],
        "error: --out x.npy: one table holds images or texts; write .safetensors for both",
    );
    check(
        &["embed", "--images", "photos", "--out", "x.npy", "--average"],
        "keeps no average of its weights: its graph has no `train: (ema: (decay: 0.999))`",
    );
    check(
        &["embed", "--texts", "none.txt", "--out", "x.npy", "--model", "photos"],
        "error: --texts none.txt: No such file",
    );
    check(&["search", "a", "--images", "photos", "--model", "photos"], "photos holds no run");
    fs::rename(at.join("runs"), at.join("elsewhere")).unwrap();
    check(
        &["search", "a", "--images", "photos"],
        "error: there is no run below `runs` here; name one with --model RUN",
    );
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_data_set_is_weighed_and_packed_without_its_worst() {
    let folder = trained();
    let at = folder.path();
    fs::write(at.join("photos/3.png"), "no image").unwrap();
    let args =
        ["weigh", "runs/small", "--keep", "0.5", "--kept", "kept.jsonl", "--html", "page.html", "--out", "w.jsonl"];
    let (out, err) = fine(at, &args);
    assert!(out.starts_with("w.jsonl: 7 samples, 1 could not be read\nmean weight "), "{out}");
    assert!(err.contains("left out sample 3 (index 3, 3.png): not a JPEG, PNG or WebP file"), "{err}");
    let weights = lines(&at.join("w.jsonl"));
    let keys: Vec<&str> = weights.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "7.png"]);

    // Cosines are those of what is embedded, and the weight is that of the gate, which begins at a mean similarity of 1.
    let texts = ["--text", "a picture from the web", "--text", "shape 0", "--text", "shape 5"];
    let embed = ["embed", "--images", "photos/0.png", "--images", "photos/5.png", "--out", "e.safetensors"];
    fine(at, &[&embed[..], &texts[..]].concat());
    let (images, texts) = (rows(&at.join("e.safetensors"), "images"), rows(&at.join("e.safetensors"), "texts"));
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for (line, image, caption) in [(&weights[0], &images[0], &texts[1]), (&weights[4], &images[1], &texts[2])] {
        // The pipeline resizes by another filter than `embed`, so that its images are a little different.
        let near = |name: &str, wanted: f64, bound: f64| {
            let found = line[name].as_f64().unwrap();
            assert!((found - wanted).abs() < bound, "{name}: {found}, {wanted}");
        };
        near("text_similarity", cosine(&texts[0], caption), 1e-5);
        near("raw_similarity", cosine(image, &texts[0]), 0.05);
        near("caption_similarity", cosine(image, caption), 0.05);
    }

    // Half of seven are four: those of largest weight, in the data's order.
    let kept = lines(&at.join("kept.jsonl"));
    let mut wanted: Vec<(f64, f64, &str)> = weights
        .iter()
        .map(|line| {
            (line["weight"].as_f64().unwrap(), line["text_similarity"].as_f64().unwrap(), line["key"].as_str().unwrap())
        })
        .collect();
    wanted.sort_by(|a, b| b.partial_cmp(a).unwrap());
    let mut wanted: Vec<&str> = wanted[..4].iter().map(|(_, _, key)| *key).collect();
    wanted.sort_unstable();
    assert_eq!(kept.iter().map(|line| line["key"].as_str().unwrap()).collect::<Vec<_>>(), wanted);
    let page = fs::read_to_string(at.join("page.html")).unwrap();
    assert_eq!(page.matches("<img src=\"data:image/png;base64,").count(), 7);
    assert!(page.contains("Sample weight") && page.contains("image and caption"), "no histograms");

    let (out, _) = fine(at, &["pack", "photos_data.ron", "--only", "kept.jsonl", "--to", "clean"]);
    assert!(out.starts_with("clean: 4 samples, "), "{out}");
    assert!(out.ends_with("skipped 0\n4 samples are not on the list kept.jsonl\n"), "{out}");
    refused(
        at,
        &["weigh", "runs/small", "--out", "x.jsonl", "--keep", "1", "--kept", "x.jsonl"],
        "x.jsonl is to hold two things",
    );
    fs::write(at.join("kept.jsonl"), "{\"key\": \"other.png\"}\n").unwrap();
    let why = "none of its 8 samples is on the list kept.jsonl; the key of its first is `0.png`";
    refused(at, &["pack", "photos_data.ron", "--only", "kept.jsonl", "--to", "none"], why);
}

#[test]
fn what_cannot_be_weighed_is_told() {
    let folder = trained();
    let at = folder.path();
    let graph = r#"Graph(name: "no_gates", base: "on_photos", programs: { "weigh": None })"#;
    fs::write(at.join("no_gates.ron"), graph).unwrap();
    fine(at, &["train", "no_gates", "--steps", "1", "--no-eval", "--out", "runs/plain"]);
    let check = |args: &[&str], message: &str| refused(at, args, message);
    check(
        &["weigh", "runs/plain"],
        "error: `no_gates` cannot weigh samples: its graph has no program `weigh`; ALIP's graphs can",
    );
    check(
        &["weigh", "runs/small", "--out", "w.csv"],
        "error: --out w.csv: write a file that ends in .jsonl or .parquet",
    );
    let (status, _, err) = run(at, &["weigh", "runs/small", "--keep", "1.5", "--kept", "k"]);
    assert!(status == Some(2) && err.contains("a share of samples above 0, up to 1"), "{err}");
    let other = fs::read_to_string(at.join("photos_data.ron")).unwrap().replace("jpeg), 16, 16)", "jpeg), 8, 8)");
    fs::write(at.join("other.ron"), other).unwrap();
    let why = "pipeline `photos` delivers f32 [3, 8, 8] as `image`, but `on_photos` was trained on f32 [3, 16, 16]";
    check(&["weigh", "runs/small", "--data", "other.ron"], why);
    assert!(!at.join("weights.jsonl").exists());
}

#[test]
fn a_spec_with_weights_of_a_file() {
    let folder = trained();
    let at = folder.path();
    fine(at, &["embed", "--images", "photos", "--out", "run.safetensors"]);
    let checkpoint = "runs/small/checkpoints/step-00000003.safetensors";
    let with = ["--model", "on_photos.ron", "--weights", checkpoint];
    fine(at, &[&["embed", "--images", "photos", "--out", "file.safetensors"][..], &with].concat());
    assert_eq!(rows(&at.join("run.safetensors"), "images"), rows(&at.join("file.safetensors"), "images"));

    // Another model with the same weights does not take them for its own.
    let other = ["--set", "parts.visual.dropout=0.1"];
    let search = ["search", "photos/1.png", "--images", "file.safetensors"];
    fine(at, &[&search[..], &with].concat());
    let why = "file.safetensors was written by another model, or by other weights of this one: embed the images again";
    refused(at, &[&search[..], &with, &other].concat(), why);

    let check = |args: &[&str], message: &str| refused(at, args, message);
    check(
        &[&["embed", "--text", "a", "--out", "x.npy"][..], &with].concat(),
        "error: the words of 'words:512', which `on_photos` reads its texts with, were counted in the data that it was trained on: \
         give the directory of a run, which has kept them",
    );
    check(
        &["weigh", "on_photos.ron", "--weights", checkpoint],
        "error: the words of 'words:512', which `on_photos` reads its texts with, were counted in the data",
    );
    check(
        &["embed", "--images", "photos", "--out", "x.npy", "--model", "on_photos.ron"],
        "error: on_photos.ron is no directory of a run; a graph spec needs weights, with --weights FILE",
    );
    check(
        &["embed", "--images", "photos", "--out", "x.npy", "--model", "runs/small", "--weights", checkpoint],
        "error: runs/small is a run, which has its own weights; --weights is for a graph spec",
    );
}

/// Images need no vocabulary; texts are told when its ids are more than the table has rows.
#[test]
fn a_table_smaller_than_the_vocabulary() {
    let folder = trained();
    let at = folder.path();
    fine(at, &["export", "runs/small", "--to", "safetensors", "-o", "w.safetensors"]);
    fs::write(at.join("bare.ron"), r#"Graph(name: "bare", base: "on_photos", data: None)"#).unwrap();
    let with = ["--model", "bare.ron", "--weights", "w.safetensors"];
    fine(at, &[&["embed", "--images", "photos", "--out", "x.npy"][..], &with].concat());
    refused(
        at,
        &[&["embed", "--text", "a", "--out", "y.npy"][..], &with].concat(),
        "error: `bare` cannot read texts: its table of tokens has 512 rows, and the vocabulary 'clip' 49408 ids; name the vocabulary",
    );
}

#[test]
fn a_model_as_onnx() {
    let folder = trained();
    let at = folder.path();
    let (out, _) = fine(at, &["export", "runs/small", "--to", "onnx", "-o", "onnx"]);
    assert_eq!(out, "onnx\n");
    // The weights stand in the files as they are in the checkpoint.
    let bytes = weights(&at.join("runs/small"));
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (program, weight) in [("encode_image", "visual.proj"), ("encode_text", "text_projection")] {
        let file = fs::read(at.join(format!("onnx/{program}.onnx"))).unwrap();
        let wanted = tensors.tensor(weight).unwrap().data();
        assert!(file.windows(wanted.len()).any(|window| window == wanted), "{weight} is not in {program}");
    }
    let checkpoint = "runs/small/checkpoints/step-00000003.safetensors";
    fine(at, &["export", "runs/small", "--to", "safetensors", "-o", "w.safetensors"]);
    let check = |args: &[&str], message: &str| refused(at, args, message);
    check(
        &["export", "w.safetensors", "--to", "onnx", "-o", "x"],
        "nothing says what is computed with them; give --graph SPEC",
    );
    check(
        &["export", "runs/small", "--to", "onnx", "--dtype", "f16", "-o", "x"],
        "--to onnx writes f32; leave --dtype out",
    );
    check(&["export", "runs/small", "--to", "onnx", "--average", "-o", "x"], "keeps no averages of weights (`ema`)");
    check(&["export", checkpoint, "--to", "onnx", "-o", "x"], "is no run; give the run's directory");
    fine(at, &["export", "w.safetensors", "--graph", "on_photos.ron", "--to", "onnx", "-o", "again"]);
    for program in ["encode_image", "encode_text"] {
        let file = |folder: &str| fs::read(at.join(format!("{folder}/{program}.onnx"))).unwrap();
        assert!(file("onnx") == file("again"), "{program}");
    }
}

/// Images of kinds that are not read are counted, and so told.
#[test]
fn other_images_are_told() {
    let folder = trained();
    let at = folder.path();
    for name in ["a.gif", "b.HEIC", "c.gif", "notes.txt"] {
        fs::write(at.join("photos").join(name), "").unwrap();
    }
    let (_, err) = fine(at, &["embed", "--images", "photos", "--out", "all.safetensors"]);
    let told = "left out of photos: 2 .gif, 1 .heic, which are images of other kinds than .jpg, .png and .webp\n";
    assert!(err.contains(told), "{err}");
    fs::create_dir(at.join("animated")).unwrap();
    fs::copy(at.join("photos/a.gif"), at.join("animated/a.gif")).unwrap();
    let why = "error: animated: holds no images (.jpg, .jpeg, .png, .webp) but 1 .gif; give a folder that does";
    refused(at, &["embed", "--images", "animated", "--out", "none.safetensors"], why);
}

/// Whoever stops a command gets the status that shells give for it, and no half of a file.
#[test]
#[cfg(unix)]
fn stopped_commands_say_so() {
    use std::io::{BufRead, BufReader, Read};
    let folder = trained();
    let at = folder.path();
    // More than are embedded or weighed in the time that a signal takes.
    for n in 0..4000 {
        fs::hard_link(at.join("photos/0.png"), at.join(format!("photos/more_{n}.png"))).unwrap();
    }
    let line =
        |n: u32| format!("{{\"image\": \"more_{n}.png\", \"captions\": [\"a\", \"b\"], \"split\": \"train\"}}\n");
    fs::write(at.join("photos/captions.jsonl"), (0..4000).map(line).collect::<String>()).unwrap();
    for args in [
        &["embed", "--images", "photos", "--out", "out"][..],
        &["weigh", "runs/small", "--out", "out"],
        &["search", "a shape", "--images", "photos"],
    ] {
        let args: Vec<&str> = args
            .iter()
            .map(|arg| match *arg {
                "out" if args[0] == "embed" => "out.safetensors",
                "out" => "out.jsonl",
                arg => arg,
            })
            .collect();
        let mut child = common::program(at, &args).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        // It listens before it says anything.
        let mut said = String::new();
        err.read_line(&mut said).unwrap();
        common::signal(&child, "INT");
        err.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}: {said}");
        assert!(said.contains("error: stopped before all was embedded"), "{said}");
        assert!(!at.join("out.safetensors").exists() && !at.join("out.jsonl").exists());
    }
}

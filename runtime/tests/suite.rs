//! A model on the data sets of a suite: the figures are those that its features give when evaluated another way.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;
use std::path::Path;

use common::{fine, refused, specs};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// An image of stripes, one for each number.
fn image(path: &Path, number: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let level =
        |x: u32, y: u32| if (x * number / 3 + y).is_multiple_of(number + 2) { 255 } else { (number * 37 % 200) as u8 };
    image::RgbImage::from_fn(24, 20, |x, y| image::Rgb([level(x, y), level(y, x), 90])).save(path).unwrap();
}

/// A folder `captions.jsonl` of so many images with five captions each. Images 1 and 2 are the same, and so are a caption of image 0
/// and one of 1.
fn captioned(root: &Path, count: u32) {
    let mut lines = String::new();
    for number in 0..count {
        image(&root.join(format!("{number}.png")), if number == 2 { 1 } else { number });
        let shapes = ["circle", "square", "triangle", "star"];
        let caption = |at: u32| match (number, at) {
            (0 | 1, 4) => "two of a kind".to_string(),
            _ => format!(
                "a {} red {} number {at}",
                if number % 2 == 0 { "large" } else { "small" },
                shapes[number as usize % 4]
            ),
        };
        let captions: Vec<String> = (0..5).map(caption).collect();
        lines += &format!("{}\n", json!({"image": format!("{number}.png"), "captions": captions, "split": "test"}));
    }
    fs::write(root.join("captions.jsonl"), lines).unwrap();
}

const SUITE: &str = r#"Suite(
    name: "mine",
    sets: [
        (name: "four", metric: Retrieval, prompt: "a photo of ", data: [Folder(path: "four")]),
        (name: "two", metric: Retrieval, captions: 3, data: [Folder(path: "two")]),
        (name: "one", metric: Retrieval, data: [Folder(path: "one")]),
        (name: "shapes", title: "Shapes", metric: MeanPerClass, data: [Cifar(path: "no"), Folders(path: "shapes")]),
        (name: "probe", metric: LinearProbe, data: [Folders(path: "shapes", skip: 2)], train: [Folders(path: "shapes", take: 2)]),
        (name: "pets", title: "Pets", metric: Top1, data: [Webdataset(path: "pets"), Folders(path: "more/pets")]),
    ],
    means: [(name: "both", of: ["shapes", "probe"]), (name: "all", of: ["shapes", "pets"])],
)"#;

/// A folder with a trained run `run`, data sets in `data`, and the suite `mine.ron`.
fn prepared() -> tempfile::TempDir {
    let folder = specs();
    let at = folder.path();
    fine(at, &["train", "small", "--out", "run", "--steps", "3", "--no-eval"]);
    for (name, count) in [("four", 4), ("two", 2), ("one", 1)] {
        captioned(&at.join("data").join(name), count);
    }
    for (class, numbers) in [("circle", [3, 4, 5, 6]), ("square", [7, 8, 3, 9]), ("star", [10, 11, 12, 13])] {
        for (place, number) in numbers.into_iter().enumerate() {
            image(&at.join(format!("data/shapes/{class}/{place}.png")), number);
        }
    }
    fs::write(at.join("data/shapes/star/4.png"), b"no image").unwrap();
    fs::write(at.join("data/shapes/zeroshot_classification_templates.txt"), "a {c}\na small {c}\n").unwrap();
    fs::write(at.join("mine.ron"), SUITE).unwrap();
    folder
}

/// One image of a set of seven is none.
const EVAL: [&str; 8] = ["eval", "run", "--suite", "mine.ron", "--data", "data", "--max-bad", "0.2"];

fn eval<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&EVAL, more].concat()
}

/// Features of a set, as they lie in its file.
struct Features {
    images: Vec<Vec<f64>>,
    texts: Vec<Vec<f64>>,
    owner: Vec<usize>,
    labels: Vec<usize>,
    classes: Vec<String>,
    texts_read: Vec<String>,
}

impl Features {
    fn read(path: &Path) -> Features {
        let bytes = fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| {
            file.tensor(name)
                .map(|tensor| tensor.data().chunks(4).map(|word| word.try_into().unwrap()).collect::<Vec<[u8; 4]>>())
        };
        let table = |name: &str| -> Vec<Vec<f64>> {
            let dim = file.tensor(name).unwrap().shape()[1].max(1);
            let values: Vec<f64> =
                words(name).unwrap().into_iter().map(|word| f64::from(f32::from_le_bytes(word))).collect();
            values.chunks(dim).map(<[f64]>::to_vec).collect()
        };
        let whole = |name: &str| {
            words(name).unwrap_or_default().into_iter().map(|word| i32::from_le_bytes(word) as usize).collect()
        };
        let list = |name: &str| serde_json::from_str(&header.metadata().as_ref().unwrap()[name]).unwrap();
        Features {
            images: table("images"),
            texts: table("texts"),
            owner: whole("owner"),
            labels: whole("labels"),
            classes: list("classes"),
            texts_read: list("texts"),
        }
    }

    /// Recall by sorting, right ones last of equals: of images, or of texts.
    fn recall(&self, of_images: bool, k: usize) -> f64 {
        let (queries, items) = if of_images { (&self.images, &self.texts) } else { (&self.texts, &self.images) };
        let is_right =
            |query: usize, item: usize| if of_images { self.owner[item] == query } else { self.owner[query] == item };
        let found = queries.iter().enumerate().filter(|(query, row)| {
            let mut order: Vec<(f64, bool)> =
                items.iter().enumerate().map(|(item, other)| (product(row, other), is_right(*query, item))).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            order.iter().take(k).any(|(_, is_right)| *is_right)
        });
        found.count() as f64 / queries.len() as f64
    }

    /// Top-1 and its mean over classes, by sorting.
    fn accuracy(&self) -> (f64, f64) {
        let class = |class: usize| {
            let own: Vec<Vec<f64>> = self
                .texts
                .iter()
                .zip(&self.owner)
                .filter(|(_, owner)| **owner == class)
                .map(|(text, _)| unit(text))
                .collect();
            unit(
                &(0..own[0].len())
                    .map(|column| own.iter().map(|text| text[column]).sum::<f64>() / own.len() as f64)
                    .collect::<Vec<f64>>(),
            )
        };
        let classes: Vec<Vec<f64>> = (0..self.classes.len()).map(class).collect();
        let is_right = |image: &[f64], label: usize| {
            let mut order: Vec<(f64, usize)> =
                classes.iter().enumerate().map(|(class, row)| (product(image, row), class)).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            order[0].1 == label
        };
        let right: Vec<(usize, bool)> =
            self.images.iter().zip(&self.labels).map(|(image, &label)| (label, is_right(image, label))).collect();
        let share = |of: &dyn Fn(usize) -> bool| {
            let own: Vec<bool> = right.iter().filter(|(label, _)| of(*label)).map(|(_, right)| *right).collect();
            own.iter().filter(|right| **right).count() as f64 / own.len() as f64
        };
        let mean = (0..classes.len()).map(|class| share(&|label| label == class)).sum::<f64>() / classes.len() as f64;
        (share(&|_| true), mean)
    }
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(row: &[f64]) -> Vec<f64> {
    let norm = product(row, row).sqrt();
    row.iter().map(|value| value / norm).collect()
}

#[test]
fn figures_are_those_of_the_features_evaluated_another_way() {
    let folder = prepared();
    let at = folder.path();
    let (out, err) = fine(at, &eval(&["--json", "--features", "kept"]));
    let found: Value = serde_json::from_str(&out).unwrap();
    let figure = |name: &str| found["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {out}"));
    for (set, images, captions) in [("four", 4, 5), ("two", 2, 3), ("one", 1, 5)] {
        let features = Features::read(&at.join(format!("kept/{set}.safetensors")));
        assert_eq!((features.images.len(), features.texts.len()), (images, images * captions), "{set}");
        for k in [1, 5, 10] {
            assert_eq!(figure(&format!("{set} image to text R@{k}")), features.recall(true, k), "{set}");
            assert_eq!(figure(&format!("{set} text to image R@{k}")), features.recall(false, k), "{set}");
        }
    }
    assert_eq!(figure("four text to image R@10"), 1.0);
    let four = Features::read(&at.join("kept/four.safetensors"));
    assert!(four.images[1] == four.images[2] && four.texts[4] == four.texts[9], "what is the same is embedded alike");
    assert_eq!(four.texts_read[0], "a photo of a large red circle number 0");

    let shapes = Features::read(&at.join("kept/shapes.safetensors"));
    assert_eq!((shapes.images.len(), shapes.classes.join(" ")), (12, "circle square star".into()));
    assert_eq!(
        shapes.texts_read,
        ["a circle", "a small circle", "a square", "a small square", "a star", "a small star"]
    );
    assert_eq!((figure("shapes top-1"), figure("shapes mean per class")), shapes.accuracy());
    assert!(err.contains("left out sample 12 (index 12, star/4.png): not a JPEG, PNG or WebP file"), "{err}");
    assert_eq!(found["sets"][3]["found"]["Measured"]["skipped"], 1);
    let confusion = &found["sets"][3]["found"]["Measured"]["figures"]["Classes"]["confusion"];
    let sums = confusion
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>());
    assert_eq!(sums.collect::<Vec<_>>(), [4, 4, 4]);
    let mean = (figure("shapes mean per class") + figure("probe linear probe")) / 2.0;
    assert_eq!(figure("both"), mean);
    assert!(found["figures"].get("all").is_none(), "{out}");

    // The same from what is kept, without the model's programs being run.
    let (again, err) = fine(at, &eval(&["--json", "--features", "kept"]));
    assert_eq!(again, out);
    assert!(err.contains("probe-train: features from kept") && !err.contains("images, "), "{err}");
}

#[test]
fn a_suite_is_shown_as_a_table_a_file_and_a_page() {
    let folder = prepared();
    let at = folder.path();
    fs::create_dir(at.join("eval")).unwrap();
    let row = r#"(method: "Other", backbone: "ViT-B/32", source: "somebody", figures: { "shapes mean per class": 12.5, "nothing top-1": 1 })"#;
    let unused = r#"(method: "Unused", backbone: "B", source: "nobody", figures: { "pets top-1": 12.5 })"#;
    fs::write(at.join("eval/published.ron"), format!("Published(rows: [{row}, {unused}])")).unwrap();
    let (out, _) = fine(at, &eval(&["--features", "kept"]));
    let is_line = |parts: &[&str]| out.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(is_line(&["Shapes", "mean per class", " %", "33.3", "12.5"]), "{out}");
    assert!(is_line(&["Shapes: 1 of 13 images could not be read and are left out"]), "{out}");
    assert!(is_line(&["Pets", "not there (data/pets/test, data/more/pets)"]), "{out}");
    assert!(
        is_line(&["four", "image to text R@1"]) && is_line(&["Other: somebody"]) && !out.contains("Unused"),
        "{out}"
    );
    assert!(is_line(&["all", "1 of 2 sets were not measured"]), "{out}");
    assert!(out.starts_with("mine: small after 3 steps\n") && out.ends_with("report: run/suite-mine.html\n"), "{out}");
    let page = fs::read_to_string(at.join("run/suite-mine.html")).unwrap();
    for part in [
        "What was taken for what",
        "circle taken for star",
        "Found first, most surely",
        "4 of 4",
        "Other",
        "<img src=\"data:image/png;base64,",
    ] {
        assert!(page.contains(part) || part == "4 of 4" && page.contains(" of 4"), "{part}");
    }
    let file: Value = serde_json::from_str(&fs::read_to_string(at.join("run/suite-mine.json")).unwrap()).unwrap();
    assert_eq!(
        (&file["suite"], &file["graph"], &file["step"], &file["logits"]),
        (&json!("mine"), &json!("small"), &json!(3), &json!("Exact"))
    );
    assert!(file["figures"]["shapes top-5"].as_f64() == Some(1.0), "three classes are all among the first five");

    // What is rounded is marked wherever it is shown, and is no other file's place.
    let caution = "classes were ranked by logits without their fractions";
    assert!(!out.contains(caution) && !page.contains(caution) && file.get("caution").is_none());
    let (out, _) = fine(at, &eval(&["--features", "kept", "--published-rounding", "--out", "rounded"]));
    assert!(out.contains(caution) && out.contains("report: rounded/suite-mine-published-rounding.html"), "{out}");
    let read = |name: &str| fs::read_to_string(at.join("rounded").join(name)).unwrap();
    assert!(read("suite-mine-published-rounding.html").contains(caution));
    let file: Value = serde_json::from_str(&read("suite-mine-published-rounding.json")).unwrap();
    assert!(file["caution"].as_str().unwrap().starts_with(caution) && file["logits"] == "Whole");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is() {
    let folder = prepared();
    let at = folder.path();
    let eval_of = |suite: &str, part: &str| {
        fs::write(at.join("other.ron"), suite).unwrap();
        refused(at, &["eval", "run", "--suite", "other.ron", "--data", "data"], part);
    };
    refused(
        at,
        &["eval", "run", "--suite", "mine.ron"],
        "error: the suite `mine` is measured on data sets: give the folder that its data sets lie in with --data ROOT",
    );
    refused(
        at,
        &["eval", "run", "--suite", "alip_tabel", "--data", "data"],
        "there is no suite `alip_tabel`, did you mean `alip_table`?",
    );
    refused(at, &["eval", "run", "--suite", "mine.ron", "--data", "date"], "error: --data date: no such folder");
    refused(
        at,
        &["eval", "run", "--suite", "alip_table", "--data", "data"],
        "error: none of the 13 sets of `alip_table` is in data; docs/evaluation.md says where each is looked for",
    );
    eval_of(
        r#"Suite(name: "s", sets: [(name: "a", metric: Top1, data: [Folder(path: "four")])])"#,
        "error: a: data/four holds captions, and `Top1` is measured on classes",
    );
    eval_of(
        r#"Suite(name: "s", sets: [(name: "a", metric: Retrieval, data: [Folders(path: "shapes")])])"#,
        "error: a: data/shapes holds classes, and `Retrieval` is measured on captions",
    );
    image(&at.join("data/other/circle/1.png"), 1);
    eval_of(
        r#"Suite(name: "s", sets: [(name: "a", metric: LinearProbe, data: [Folders(path: "shapes")], train: [Folders(path: "other")])])"#,
        "error: a: data/other has other classes than data/shapes; give a probe one set in two parts",
    );
    // The second set is wrong, and nothing of the first is measured.
    fs::write(at.join("data/four/captions.jsonl"), r#"{"image": "0.png", "captions": [], "split": "test"}"#).unwrap();
    eval_of(
        r#"Suite(name: "s", sets: [(name: "a", metric: Top1, data: [Folders(path: "shapes")]), (name: "b", metric: Retrieval, data: [Folder(path: "four")])])"#,
        "error: b: data/four/captions.jsonl:1: `0.png` has 0 captions, but 1 are needed",
    );
    assert!(!at.join("run/suite-s.json").exists());
}

/// The second set has too many images that are none, the first an image without a caption.
#[test]
fn a_set_that_cannot_be_measured_loses_no_other() {
    let folder = prepared();
    let at = folder.path();
    for number in [1, 2] {
        image(&at.join(format!("data/lines/{number}.png")), number);
    }
    fs::write(
        at.join("data/lines.json"),
        r#"{"images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}],
            "annotations": [{"image_id": 1, "caption": "a circle"}]}"#,
    )
    .unwrap();
    fs::write(
        at.join("mine.ron"),
        r#"Suite(name: "mine", sets: [
            (name: "lines", metric: Retrieval, data: [Captions(path: "lines.json", images: "lines")]),
            (name: "shapes", metric: Top1, data: [Folders(path: "shapes")]),
        ], means: [])"#,
    )
    .unwrap();
    let (status, out, err) = common::run(at, &EVAL[..6]);
    assert_eq!(status, Some(1), "{out}{err}");
    assert!(out.contains("lines: 1 of 2 images have no caption and search for none"), "{out}");
    let why = "1 of the 13 samples read so far could not be used, more than the allowed share of 0.01";
    assert!(
        out.contains(&format!("not measured: {why}")) && err.contains(&format!("error: shapes: {why}")),
        "{out}{err}"
    );
    let file: Value = serde_json::from_str(&fs::read_to_string(at.join("run/suite-mine.json")).unwrap()).unwrap();
    assert!(file["sets"][1]["found"]["Failed"].as_str().unwrap().starts_with(why), "{file}");
    assert_eq!(file["figures"]["lines text to image R@5"], 1.0);
    assert!(fs::read_to_string(at.join("run/suite-mine.html")).unwrap().contains(why));
}

#[test]
fn features_of_another_model_are_not_used() {
    let folder = prepared();
    let at = folder.path();
    fs::write(
        at.join("mine.ron"),
        r#"Suite(name: "mine", sets: [(name: "two", metric: Retrieval, data: [Folder(path: "two")])])"#,
    )
    .unwrap();
    fine(at, &eval(&["--features", "kept"]));
    fine(at, &["train", "small", "--out", "more", "--steps", "4", "--no-eval"]);
    let other = ["eval", "more", "--suite", "mine.ron", "--data", "data", "--features", "kept"];
    refused(
        at,
        &other,
        "error: kept/two.safetensors holds features of another model: remove it, or give another folder with --features",
    );
    fs::write(
        at.join("mine.ron"),
        r#"Suite(name: "mine", sets: [(name: "two", metric: Retrieval, prompt: "x ", data: [Folder(path: "two")])])"#,
    )
    .unwrap();
    refused(at, &eval(&["--features", "kept"]), "holds features of other texts");
    fs::remove_dir_all(at.join("kept")).unwrap();
    fine(at, &eval(&["--features", "kept"]));
    fine(at, &eval(&["--features", "kept"]));
    // An image that was written again may be another one of the same length.
    let file = fs::File::options().write(true).open(at.join("data/two/0.png")).unwrap();
    let changed = file.metadata().unwrap().modified().unwrap();
    file.set_modified(changed + std::time::Duration::from_secs(10)).unwrap();
    refused(at, &eval(&["--features", "kept"]), "holds features of another data set");
    file.set_modified(changed).unwrap();
    fine(at, &eval(&["--features", "kept"]));
    image(&at.join("data/two/0.png"), 200);
    refused(at, &eval(&["--features", "kept"]), "holds features of another data set");
}

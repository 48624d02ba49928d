//! What is packed of data that other programs wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use alip_plan::pipeline::{Mode, Pipeline, PipelineNode, PipelineOp, Source, Tokenize, Vocab};
use alip_runtime::data::{Field, PackTo, Packed, Packing, RecordioSource, SampleSource, Tokenizer, pack};
use alip_tests::skip;

/// Packs a source into a record file of a folder.
fn packed(source: Source, texts: &[(&str, u32)], to: &Path) -> Packed {
    let tokenize = |(text, context): &(&str, u32)| PipelineNode {
        name: format!("{text}_ids"),
        op: PipelineOp::Tokenize(Tokenize { context: *context, vocab: Vocab::Clip }),
        inputs: vec![text.to_string()],
    };
    let pipeline = Pipeline {
        name: "test".into(),
        source,
        shuffle: None,
        ops: texts.iter().map(tokenize).collect(),
        eval_ops: None,
        outputs: BTreeMap::new(),
        bytes: Default::default(),
    };
    let packing = Packing {
        only: None,
        pipeline,
        mode: Mode::Train,
        to: PackTo::parse(to.to_str().expect("UTF-8"), None).expect("an output"),
        texts: None,
        context: None,
        vocab: None,
        captions: None,
        resize: None,
        workers: 2,
        max_bad: 0.0,
        again: false,
    };
    pack(&packing, &AtomicBool::new(false), |_, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn records(path: &Path, labels: &[(&str, u32)]) -> Source {
    let labels = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    Source::Recordio { path: path.to_str().expect("UTF-8").into(), labels }
}

/// What MXNet wrote is what we write: records in parts, headers of one label or many, keys in any order.
#[test]
fn records_packed_again_are_the_same_bytes() {
    let check = |folder: &str, name: &str, labels: &[(&str, u32)]| {
        let Some(folder) = skip::shared_data(folder) else { return };
        let own = tempfile::tempdir().expect("a folder");
        let made = own.path().join("a.rec");
        assert!(packed(records(&folder.join(name), labels), &[], &made).skips.is_empty(), "{name}");
        for ending in ["rec", "idx"] {
            let read = |path: &Path| fs::read(path.with_extension(ending)).expect("a file");
            assert!(read(&made) == read(&folder.join(name)), "{name}: another .{ending}");
        }
    };
    check("alip_rec", "alip_mini.rec", &[("raw", 77), ("caption", 77)]);
    check("alip_rec", "alip_mini.rec", &[]);
    check("recordio", "dali_extra_train.rec", &[]);
    check("recordio_no_licence", "helmet_train.rec", &[]);
    check("recordio_no_licence", "benz_train.rec", &[]);
}

fn folder_of(path: &Path) -> Source {
    let path = path.to_str().expect("UTF-8").into();
    let (split, eval_split) = (String::new(), String::new());
    Source::Folder { path, split, eval_split, raw: 0, caption: 1, swap_raw: 0.0, swap_seed: 0 }
}

fn open(path: &Path) -> RecordioSource {
    let labels: Vec<(String, u32)> = ROWS.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    RecordioSource::open(path.to_str().expect("UTF-8"), &labels).unwrap_or_else(|error| panic!("{error}"))
}

const ROWS: [(&str, u32); 2] = [("raw", 77), ("caption", 77)];

/// Images of a folder, texts and our tokenizer make what MXNet wrote of them, byte for byte.
#[test]
fn a_folder_is_packed_as_mxnet_packs() {
    let Some(theirs) = skip::shared_data("alip_rec") else { return };
    let own = tempfile::tempdir().expect("a folder");
    fs::create_dir(own.path().join("images")).expect("a folder");
    let source = open(&theirs.join("alip_mini.rec"));
    let texts = fs::read_to_string(theirs.join("alip_mini.texts.json")).expect("texts");
    let texts: Vec<(String, String, String)> = serde_json::from_str(&texts).expect("image, raw, caption");
    let mut lines = String::new();
    for (index, (image, raw, caption)) in (0..).zip(&texts) {
        let Field::Encoded(bytes) = &source.sample(index).expect("a sample").fields["jpeg"] else { panic!("no image") };
        fs::write(own.path().join(image), bytes).expect("an image");
        lines += &format!("{}\n", serde_json::json!({ "image": image, "captions": [raw, caption] }));
    }
    fs::write(own.path().join("captions.jsonl"), lines).expect("a list");
    let made = own.path().join("a.rec");
    assert_eq!(packed(folder_of(own.path()), &ROWS, &made).written, 200);
    for ending in ["rec", "idx"] {
        let read = |path: &Path| fs::read(path.with_extension(ending)).expect("a file");
        assert!(read(&made) == read(&theirs.join("alip_mini.rec")), "another .{ending}");
    }
}

/// What was packed of photographs is read back: their bytes, and the rows of their texts.
#[test]
fn photographs_are_read_back() {
    let Some(folder) = skip::shared_data("flickr8k_aspect") else { return };
    let own = tempfile::tempdir().expect("a folder");
    let made = own.path().join("a.rec");
    assert_eq!(packed(folder_of(&folder), &ROWS, &made).written, 200);
    let source = open(&made);
    assert_eq!(source.len(), 200);
    let list = fs::read_to_string(folder.join("captions.jsonl")).expect("a list");
    for (index, line) in (0..).zip(list.lines()) {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line");
        let fields = source.sample(index).expect("a sample").fields;
        let image = fs::read(folder.join(line["image"].as_str().expect("a path"))).expect("an image");
        assert_eq!(fields["jpeg"], Field::Encoded(image));
        for (at, (name, context)) in ROWS.iter().enumerate() {
            let text = line["captions"][at].as_str().expect("a caption");
            assert_eq!(fields[*name], Field::Tokens(Tokenizer::clip().encode(text, *context as usize)), "{text}");
        }
    }
}

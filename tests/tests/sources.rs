//! Data that other programs wrote: records of MXNet as ALIP's data are, shards of img2dataset's form, and those of other
//! projects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use alip_plan::pipeline::{Mode, Pipeline, PipelineNode, PipelineOp, Source, Vocab};
use alip_runtime::data::{
    DecodeLimits, Field, PackTo, Packed, Packing, RecordioSource, SampleSource, Tokenizer, WebdatasetSource,
    decode_rgb, pack,
};
use alip_tests::skip;

fn open(path: &Path, labels: &[(&str, u32)]) -> RecordioSource {
    let labels: Vec<(String, u32)> = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    RecordioSource::open(path.to_str().expect("UTF-8"), &labels).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads and decodes every sample; each must be an image.
fn check(source: &dyn SampleSource, samples: u64) {
    assert_eq!(source.len(), samples, "{}", source.name(0));
    for index in 0..samples {
        let sample = source.sample(index).unwrap_or_else(|error| panic!("{}: {error}", source.name(index)));
        let Field::Encoded(bytes) = &sample.fields["jpeg"] else { panic!("{}: no image", source.name(index)) };
        let image = decode_rgb(bytes, DecodeLimits::default());
        image.unwrap_or_else(|error| panic!("{}: {error}", source.name(index)));
    }
}

/// Captions of ALIP's records are tokens already: those that our tokenizer makes of their texts.
#[test]
fn records_of_alip_hold_what_our_tokenizer_makes() {
    let Some(folder) = skip::shared_data("alip_rec") else { return };
    let source = open(&folder.join("alip_mini.rec"), &[("raw", 77), ("caption", 77)]);
    check(&source, 200);
    let texts = fs::read_to_string(folder.join("alip_mini.texts.json")).expect("texts");
    let texts: Vec<(String, String, String)> = serde_json::from_str(&texts).expect("image, raw, caption");
    let tokenizer = Tokenizer::clip();
    for (index, (image, raw, caption)) in (0..).zip(&texts) {
        let sample = source.sample(index).expect("a sample");
        for (field, text) in [("raw", raw), ("caption", caption)] {
            assert_eq!(sample.fields[field], Field::Tokens(tokenizer.encode(text, 77)), "{image}: {text}");
        }
    }
    assert_eq!(texts.len(), 200);
}

/// The index that is made of the records alone is the one that MXNet wrote.
#[test]
fn an_index_is_made_as_mxnet_makes_it() {
    let Some(folder) = skip::shared_data("alip_rec") else { return };
    let own = tempfile::tempdir().expect("a folder");
    fs::copy(folder.join("alip_mini.rec"), own.path().join("a.rec")).expect("a copy");
    assert_eq!(open(&own.path().join("a.rec"), &[]).len(), 200);
    let read = |path: &Path| fs::read_to_string(path).expect("an index");
    assert_eq!(read(&own.path().join("a.idx")), read(&folder.join("alip_mini.idx")));
}

/// Large photographs with shuffled keys, and records with nine labels.
#[test]
fn records_of_other_projects() {
    if let Some(folder) = skip::shared_data("recordio") {
        check(&open(&folder.join("dali_extra_train.rec"), &[]), 47);
    }
    let Some(folder) = skip::shared_data("recordio_no_licence") else { return };
    check(&open(&folder.join("helmet_train.rec"), &[]), 16);
    check(&open(&folder.join("benz_train.rec"), &[]), 12);
}

fn shards(path: &Path, texts: &[(&str, &str)]) -> Result<WebdatasetSource, String> {
    let texts: BTreeMap<String, String> =
        texts.iter().map(|(name, from)| (name.to_string(), from.to_string())).collect();
    WebdatasetSource::open(path.to_str().expect("UTF-8"), &texts).map_err(|error| error.to_string())
}

#[test]
fn shards_of_images_and_texts() {
    let Some(folder) = skip::shared_data("wds_selfpacked") else { return };
    let source = shards(&folder.join("{00000..00002}.tar"), &[("raw", "txt"), ("caption", "json:caption")]);
    let source = source.unwrap_or_else(|why| panic!("{why}"));
    check(&source, 144);
    for index in 0..source.len() {
        let sample = source.sample(index).expect("a sample");
        assert_eq!(sample.fields["raw"], sample.fields["caption"], "{}", source.name(index));
        assert!(matches!(&sample.fields["raw"], Field::Text(text) if text.len() > 10), "{}", source.name(index));
    }
    assert_eq!(source.name(143), "`000020047` of 00002.tar");
}

/// Shards of other projects are read where they hold images, and refused for the right reason where not.
#[test]
fn shards_of_other_projects() {
    let Some(folder) = skip::shared_data("wds_upstream") else { return };
    check(&shards(&folder.join("clip_retrieval_image*.tar"), &[]).unwrap_or_else(|why| panic!("{why}")), 11);
    for (shard, samples) in [("mpdata", 100), ("tendata", 100), ("compressed", 3)] {
        let source = shards(&folder.join(format!("webdataset_{shard}.tar")), &[]).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(source.len(), samples, "{shard}");
        let why = source.sample(0).expect_err("no image").to_string();
        assert_eq!(why, "no file `.jpg` or `.jpeg` or `.png` or `.webp`", "{shard}");
    }
    let why = shards(&folder.join("webdataset_sample.tgz"), &[]).err().unwrap_or_default();
    assert!(why.contains("it is compressed, and cannot be read at any place: unpack it (`gunzip`)"), "{why}");
}

/// Packs a source into a record file of a folder.
fn packed(source: Source, texts: &[(&str, u32)], to: &Path) -> Packed {
    let tokenize = |(text, context): &(&str, u32)| PipelineNode {
        name: format!("{text}_ids"),
        op: PipelineOp::Tokenize { context: *context, vocab: Vocab::Clip },
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

const ROWS: [(&str, u32); 2] = [("raw", 77), ("caption", 77)];

/// Images of a folder, texts and our tokenizer make what MXNet wrote of them, byte for byte.
#[test]
fn a_folder_is_packed_as_mxnet_packs() {
    let Some(theirs) = skip::shared_data("alip_rec") else { return };
    let own = tempfile::tempdir().expect("a folder");
    fs::create_dir(own.path().join("images")).expect("a folder");
    let source = open(&theirs.join("alip_mini.rec"), &ROWS);
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
    let source = open(&made, &ROWS);
    check(&source, 200);
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

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use alip_plan::pipeline::{Argument, PipelineNode, PipelineOp, Source, Tokenize};

use super::*;
use crate::data::source::recordio::{RecordHead, RecordWriter, layout};
use crate::data::{DecodeLimits, Field, RecordioSource, SampleSource, Tokenizer, WebdatasetSource, decode_rgb};

/// A JPEG of some pixels.
fn photo(width: u32, height: u32, level: u8) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, level]));
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut bytes).encode_image(&image).unwrap();
    bytes
}

/// A folder `photos` of `n` photographs `images/00.jpg`, each with a raw text and a caption.
fn photos(root: &Path, n: u32) {
    fs::create_dir_all(root.join("photos/images")).unwrap();
    let mut lines = String::new();
    for at in 0..n {
        fs::write(root.join(format!("photos/images/{at:02}.jpg")), photo(20 + at, 18, at as u8)).unwrap();
        let captions = [format!("photo {at} \"from the web\"\n"), format!("a picture, number {at}")];
        let image = format!("images/{at:02}.jpg");
        lines += &format!("{}\n", serde_json::json!({ "image": image, "captions": captions, "split": "train" }));
    }
    fs::write(root.join("photos/captions.jsonl"), lines).unwrap();
}

/// A pipeline that tokenizes both texts of a source.
fn pipeline(source: Source) -> Pipeline {
    let tokenize = |text: &str| PipelineNode {
        name: format!("{text}_ids"),
        op: PipelineOp::Tokenize(Tokenize { context: 16, vocab: Vocab::Clip }),
        inputs: vec![text.into()],
    };
    let texts: &[&str] = if matches!(source, Source::Recordio { .. }) { &[] } else { &["raw", "caption"] };
    Pipeline {
        name: "test".into(),
        source,
        shuffle: None,
        ops: texts.iter().map(|text| tokenize(text)).collect(),
        eval_ops: None,
        outputs: BTreeMap::new(),
        bytes: Default::default(),
    }
}

fn folder_source(root: &Path) -> Source {
    let path = root.join("photos").to_str().unwrap().into();
    let (split, eval_split) = ("train".into(), "test".into());
    Source::Folder { path, split, eval_split, raw: 0, caption: 1, swap_raw: 0.0, swap_seed: 0 }
}

fn shards_source(root: &Path, path: &str) -> Source {
    let texts = [("raw", "txt"), ("caption", "json:caption")];
    let texts = texts.map(|(name, from)| (name.to_string(), from.to_string())).into();
    let path = root.join(path).to_str().unwrap().into();
    Source::Webdataset { path, texts, samples: 0, streams: 256, unpack: false }
}

fn records_source(root: &Path, path: &str, labels: &[(&str, u32)]) -> Source {
    let labels = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    Source::Recordio { path: root.join(path).to_str().unwrap().into(), labels }
}

/// A packing without any options; `to` is below `root`.
fn packing(root: &Path, source: Source, to: &str, shard_size: Option<u64>) -> Packing {
    Packing {
        only: None,
        pipeline: pipeline(source),
        mode: Mode::Train,
        to: PackTo::parse(root.join(to).to_str().unwrap(), shard_size).unwrap(),
        texts: None,
        context: None,
        vocab: None,
        captions: None,
        resize: None,
        workers: 2,
        max_bad: 1.0,
        again: false,
    }
}

fn run(packing: &Packing) -> Result<Packed, String> {
    pack(packing, &AtomicBool::new(false), |_, _| {}).map_err(|error| error.to_string())
}

/// The packing fails with this, where `DIR` is the folder.
fn refused(root: &Path, packing: &Packing, expected: &str) {
    let found = run(packing).err().unwrap_or_else(|| panic!("expected: {expected}"));
    assert_eq!(found.replace(root.to_str().unwrap(), "DIR"), expected);
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_folder_becomes_records() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 5);
    fs::write(root.join("photos/images/03.jpg"), b"no image").unwrap();
    let packed = run(&packing(root, folder_source(root), "out/x.rec", None)).unwrap();
    assert_eq!((packed.samples, packed.seen, packed.written, packed.is_done), (5, 5, 4, true));
    assert_eq!(packed.skips.to_string(), "skipped 1\n  1 x not a JPEG, PNG or WebP file; the first is images/03.jpg");
    assert_eq!(names(&root.join("out")), ["x.idx", "x.rec"]);
    let Source::Recordio { path, labels } = records_source(root, "out/x.rec", &[("raw", 16), ("caption", 16)]) else {
        unreachable!()
    };
    let source = RecordioSource::open(&path, &labels).unwrap();
    let bytes = ["x.rec", "x.idx"].map(|name| fs::metadata(root.join("out").join(name)).unwrap().len());
    assert_eq!(packed.bytes, bytes[0] + bytes[1]);
    for (at, number) in [0, 1, 2, 4].into_iter().enumerate() {
        let fields = source.sample(at as u64).unwrap().fields;
        assert_eq!(fields["jpeg"], Field::Encoded(photo(20 + number, 18, number as u8)), "its bytes are untouched");
        let ids = |text: String| Field::Tokens(Tokenizer::clip().encode(&text, 16));
        assert_eq!(fields["raw"], ids(format!("photo {number} \"from the web\"\n")));
        assert_eq!(fields["caption"], ids(format!("a picture, number {number}")));
        assert_eq!((source.key(at as u64), source.record(at as u64).unwrap().1.id), (at.to_string(), at as u64));
    }
    // Rows that are not wanted are left out.
    let rows = records_source(root, "out/x.rec", &[("raw", 16), ("caption", 16)]);
    run(&Packing { texts: Some(Vec::new()), ..packing(root, rows, "images.rec", None) }).unwrap();
    let images = RecordioSource::open(root.join("images.rec").to_str().unwrap(), &[]).unwrap();
    assert_eq!(images.record(3).unwrap().1, RecordHead { id: 3, ..RecordHead::default() });
}

#[test]
fn a_folder_becomes_shards_and_these_become_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 5);
    let packed = run(&packing(root, folder_source(root), "out", Some(2))).unwrap();
    assert_eq!((packed.written, packed.is_done), (5, true));
    assert_eq!(names(&root.join("out")), ["00000.tar", "00001.tar", "00002.tar", "sizes.json"]);
    let sizes = fs::read_to_string(root.join("out/sizes.json")).unwrap();
    assert_eq!(sizes, "{\n    \"00000.tar\": 2,\n    \"00001.tar\": 2,\n    \"00002.tar\": 1\n}\n");
    let check = |path: &str| {
        let Source::Webdataset { path, texts, .. } = shards_source(root, path) else { unreachable!() };
        let source = WebdatasetSource::open(&path, &texts).unwrap();
        assert_eq!(source.len(), 5);
        for at in 0..5 {
            let fields = source.sample(at).unwrap().fields;
            assert_eq!(source.key(at), format!("images/{at:02}"));
            assert_eq!(fields["jpeg"], Field::Encoded(photo(20 + at as u32, 18, at as u8)));
            // The line's end is no part of a text in a file.
            assert_eq!(fields["raw"], Field::Text(format!("photo {at} \"from the web\"")));
            assert_eq!(fields["caption"], Field::Text(format!("a picture, number {at}")));
        }
    };
    check("out/*.tar");
    let again = packing(root, shards_source(root, "out/*.tar"), "b/train-{7..}.tar", Some(5));
    assert_eq!(run(&again).unwrap().written, 5);
    assert_eq!(names(&root.join("b")), ["sizes.json", "train-7.tar"]);
    check("b/train-7.tar");
    // All is a function of the samples: nothing tells who wrote it when.
    let head = &fs::read(root.join("b/train-7.tar")).unwrap()[..512];
    let numbers = format!("0000644\x000000000\x000000000\x00{:011o}\x0000000000000\x00", photo(20, 18, 0).len());
    assert_eq!(&head[100..148], numbers.as_bytes());
}

/// Headers, keys and labels of records that are no texts stay; several files are numbered anew.
#[test]
fn records_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |name: &str, keys: &[u64]| {
        let (mut records, mut index) = (Vec::new(), Vec::new());
        let mut writer = RecordWriter::new(&mut records, &mut index, 0);
        for &key in keys {
            let labels = vec![7.5f32.to_le_bytes(); (key % 3) as usize];
            let head = RecordHead { label: [1; 4], id: key + 1, id2: 9, labels };
            let image = layout(&head, &photo(9, 9, key as u8)).unwrap();
            writer.write(key, &image).unwrap();
        }
        fs::write(root.join(name).with_extension("rec"), records).unwrap();
        fs::write(root.join(name).with_extension("idx"), index).unwrap();
    };
    write("a", &[12, 5, 7]);
    write("b", &[5]);
    run(&packing(root, records_source(root, "a.rec", &[]), "c.rec", None)).unwrap();
    for ending in ["rec", "idx"] {
        assert!(
            fs::read(root.join("a").with_extension(ending)).unwrap()
                == fs::read(root.join("c").with_extension(ending)).unwrap()
        );
    }
    run(&packing(root, records_source(root, "{b,a}.rec", &[]), "d.rec", None)).unwrap();
    let Source::Recordio { path, labels } = records_source(root, "d.rec", &[]) else { unreachable!() };
    let source = RecordioSource::open(&path, &labels).unwrap();
    let found = [0, 1, 2, 3].map(|at| {
        let head = source.record(at).unwrap().1;
        (source.key(at), head.id, head.id2, head.labels.len())
    });
    let expected = [("0", 0, 9, 2), ("1", 1, 9, 0), ("2", 2, 9, 2), ("3", 3, 9, 1)];
    assert_eq!(found, expected.map(|(key, id, id2, labels)| (key.to_string(), id, id2, labels)));
}

/// Images are turned upright before they are encoded anew; those that are not scaled keep their bytes, and so their EXIF data.
#[test]
fn larger_images_are_scaled_down() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 2);
    // APP1 with an EXIF block of one entry: orientation 6, a quarter turn.
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let turned = |photo: &[u8]| {
        let segment = [&[0xff, 0xe1, 0, exif.len() as u8 + 2], exif.as_slice()].concat();
        [&photo[..2], &segment, &photo[2..]].concat()
    };
    let (large, small) = (turned(&photo(60, 30, 1)), turned(&photo(16, 9, 2)));
    fs::write(root.join("photos/images/00.jpg"), &large).unwrap();
    fs::write(root.join("photos/images/01.jpg"), &small).unwrap();
    let packing = Packing { resize: Some((16, 90)), ..packing(root, folder_source(root), "x.rec", None) };
    run(&packing).unwrap();
    let Source::Recordio { path, labels } = records_source(root, "x.rec", &[]) else { unreachable!() };
    let source = RecordioSource::open(&path, &labels).unwrap();
    let image = |at| match &source.sample(at).unwrap().fields["jpeg"] {
        Field::Encoded(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    };
    let decoded = |bytes: &[u8]| decode_rgb(bytes, DecodeLimits::default()).unwrap();
    let (made, expected) = (decoded(&image(0)), decoded(&large));
    assert_eq!((made.width, made.height), (16, 32));
    let expected = crate::data::resize(&expected, 32, 16, alip_plan::pipeline::Filter::Triangle);
    let far = made.pixels.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b)).map(u64::from).sum::<u64>();
    assert!(far / (made.pixels.len() as u64) < 12, "{far}: the same picture, upright");
    assert_eq!(image(1), small);
}

#[test]
fn captions_are_joined_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 4);
    let line = |key: &str| format!("{}\n", serde_json::json!({ "key": key, "caption": format!("it is {key}") }));
    let lines: String = ["images/02.jpg", "images/00.jpg", "nobody", "images/03.jpg", "none"].map(line).concat();
    fs::write(root.join("c.jsonl"), lines).unwrap();
    let captions = Some(root.join("c.jsonl"));
    let base = packing(root, folder_source(root), "s", None);
    let packed = run(&Packing { captions: captions.clone(), ..base }).unwrap();
    assert_eq!(
        packed.skips.to_string(),
        "skipped 1\n  1 x c.jsonl has no caption of its key; the first is images/01.jpg"
    );
    assert_eq!(packed.unused, Some((2, "nobody".into())));
    let Source::Webdataset { path, texts, .. } = shards_source(root, "s/00000.tar") else { unreachable!() };
    let source = WebdatasetSource::open(&path, &texts).unwrap();
    let texts = (0..3).map(|at| source.sample(at).unwrap().fields["caption"].clone()).collect::<Vec<_>>();
    assert_eq!(texts, [0, 2, 3].map(|at| Field::Text(format!("it is images/{at:02}.jpg"))));
    // Two samples of one key.
    let list = fs::read_to_string(root.join("photos/captions.jsonl")).unwrap();
    fs::write(root.join("photos/captions.jsonl"), list.replace("images/02", "images/00")).unwrap();
    let twice = Packing { captions, ..packing(root, folder_source(root), "t", None) };
    refused(
        root,
        &twice,
        "pipeline `test`: two samples have the key `images/00.jpg`, the second is images/00.jpg: which of them is the caption of?",
    );
}

/// Keys that only differ in what a shard cannot tell apart.
#[test]
fn samples_of_one_key_do_not_share_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 2);
    fs::rename(root.join("photos/images/01.jpg"), root.join("photos/images/00.jpeg")).unwrap();
    let list = fs::read_to_string(root.join("photos/captions.jsonl")).unwrap();
    fs::write(root.join("photos/captions.jsonl"), list.replace("01.jpg", "00.jpeg")).unwrap();
    let packed = run(&packing(root, folder_source(root), "s", None)).unwrap();
    let why = "skipped 1\n  1 x its key is that of another sample of the same shard; the first is images/00.jpeg";
    assert_eq!((packed.written, packed.skips.to_string().as_str()), (1, why));
    assert_eq!(run(&packing(root, folder_source(root), "t", Some(1))).unwrap().written, 2);
    // A path of other spelling.
    fs::write(root.join("photos/captions.jsonl"), list.replace("images/01", "images/.//00")).unwrap();
    let packed = run(&packing(root, folder_source(root), "u", None)).unwrap();
    assert_eq!((packed.written, packed.skips.to_string()), (1, why.replace("/00.jpeg", "/.//00.jpg")));
    let Source::Webdataset { path, texts, .. } = shards_source(root, "u/00000.tar") else { unreachable!() };
    assert_eq!(WebdatasetSource::open(&path, &texts).unwrap().len(), 1);
}

/// Stopped after every chunk and gone on with, by any number of workers, it ends with the same bytes.
#[test]
fn what_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 99);
    fs::write(root.join("photos/images/40.jpg"), b"").unwrap();
    let line = |at| format!("{{\"key\": \"images/{at:02}.jpg\", \"caption\": \"the {at}th\"}}\n");
    fs::write(root.join("c.jsonl"), (0..99).map(line).chain([line(100)]).collect::<String>()).unwrap();
    let source = |to: &str, size, workers| Packing {
        workers,
        captions: Some(root.join("c.jsonl")),
        ..packing(root, folder_source(root), to, size)
    };
    for (to, size) in [("x.rec", None), ("", Some(10))] {
        let [whole, parts] = ["whole", "parts"].map(|folder| format!("{folder}{}", to.len()));
        run(&source(&format!("{whole}/{to}"), size, 3)).unwrap();
        let mut times = 0;
        let packed = loop {
            times += 1;
            let packed = pack(&source(&format!("{parts}/{to}"), size, 1), &AtomicBool::new(true), |_, _| {}).unwrap();
            if packed.is_done {
                break packed;
            }
            // What a killed process wrote after the last word of the journal is cut off.
            let mut names = names(&root.join(&parts)).into_iter().filter(|name| name.ends_with(".part"));
            let last = root.join(&parts).join(names.next_back().unwrap());
            let sound = fs::read(&last).unwrap();
            fs::write(&last, [&sound[..], b"rest"].concat()).unwrap();
        };
        assert_eq!((times, packed.resumed, packed.skips.count()), (7, 96, 1), "{parts}");
        assert_eq!(packed.unused, Some((1, "images/100.jpg".into())), "{parts}");
        let [whole, parts] = [whole, parts].map(|folder| root.join(folder));
        assert_eq!(names(&whole), names(&parts));
        for name in names(&whole) {
            assert!(fs::read(whole.join(&name)).unwrap() == fs::read(parts.join(&name)).unwrap(), "{name}");
        }
    }
}

#[test]
fn what_is_there_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 40);
    let records = |to: &str| Packing { workers: 1, ..packing(root, folder_source(root), to, None) };
    let stopped = |packing: &Packing| pack(packing, &AtomicBool::new(true), |_, _| {}).unwrap();
    // Another command, other data.
    assert!(!stopped(&records("x.rec")).is_done);
    let changed = |packing: &Packing, what: &str| {
        let advice = "give the command that it was begun with, on the same data, or begin anew with --again";
        let what = format!("DIR/x.rec.journal: what is left here of a packing was begun with {what}; {advice}");
        refused(root, packing, &what);
    };
    changed(&Packing { resize: Some((8, 80)), ..records("x.rec") }, "--resize none, and this is 8 at quality 80");
    let (both, one) = ("raw (16 ids of 'clip'), caption (16 ids of 'clip')", "raw (16 ids of 'clip')");
    changed(
        &Packing { texts: Some(vec!["raw".into()]), ..records("x.rec") },
        &format!("--texts {both}, and this is {one}"),
    );
    let list = fs::read_to_string(root.join("photos/captions.jsonl")).unwrap();
    fs::write(root.join("photos/captions.jsonl"), list.replace("number 3", "number three")).unwrap();
    let why = run(&records("x.rec")).unwrap_err();
    assert!(why.contains("was begun with data ") && why.ends_with("--again"), "{why}");
    fs::write(root.join("photos/captions.jsonl"), list).unwrap();
    // Another process.
    let lock = fs::File::create(root.join("x.rec.lock")).unwrap();
    lock.lock().unwrap();
    refused(
        root,
        &records("x.rec"),
        "DIR/x.rec.lock: another process packs into it; wait for it, or give another --to",
    );
    drop(lock);
    // A part that lost its end, a journal that is none.
    let part = fs::OpenOptions::new().write(true).open(root.join("x.rec.part")).unwrap();
    let bytes = part.metadata().unwrap().len();
    part.set_len(5).unwrap();
    let again = "begin anew with --again";
    refused(
        root,
        &records("x.rec"),
        &format!("DIR/x.rec.part: it has 5 bytes, where the journal beside it knows of {bytes}; {again}"),
    );
    fs::write(root.join("x.rec.journal"), "{}").unwrap();
    refused(root, &records("x.rec"), &format!("DIR/x.rec.journal: it is no journal of a packing; {again}"));
    assert!(run(&Packing { again: true, ..records("x.rec") }).unwrap().is_done);
    refused(root, &records("x.rec"), "DIR/x.rec: it is there already; give another --to, or replace it with --again");
    // Of fewer shards no old one is left.
    let shards = |size| packing(root, folder_source(root), "s", Some(size));
    run(&shards(10)).unwrap();
    refused(root, &shards(20), "DIR/s/00000.tar: it is there already; give another --to, or replace it with --again");
    run(&Packing { again: true, ..shards(20) }).unwrap();
    assert_eq!(names(&root.join("s")), ["00000.tar", "00001.tar", "sizes.json"]);
    // Nor is anything that others put there removed, or forgotten.
    for name in ["1.tar", "000007.tar", "val-00000.tar", "00000.tar.gz"] {
        fs::write(root.join("s").join(name), name).unwrap();
    }
    let others = r#"{"val-00000.tar": 4, "00000.tar": 1}"#;
    fs::write(root.join("s/sizes.json"), others).unwrap();
    run(&packing(root, folder_source(root), "s/{00001..}.tar", None)).unwrap_err();
    run(&Packing { again: true, ..packing(root, folder_source(root), "s/{00001..}.tar", None) }).unwrap();
    let all = ["00000.tar", "00000.tar.gz", "000007.tar", "00001.tar", "1.tar", "sizes.json", "val-00000.tar"];
    assert_eq!(names(&root.join("s")), all);
    let sizes: BTreeMap<String, u64> = serde_json::from_slice(&fs::read(root.join("s/sizes.json")).unwrap()).unwrap();
    let expected = [("00000.tar", 1), ("00001.tar", 40), ("val-00000.tar", 4)];
    assert_eq!(sizes, expected.map(|(name, samples)| (name.to_string(), samples)).into());
    fs::write(root.join("s/sizes.json"), "[]").unwrap();
    let why = "DIR/s/sizes.json: it does not say how many samples each shard has; remove it, or give another --to";
    refused(root, &packing(root, folder_source(root), "s/more-{0..}.tar", None), why);
    // Two outputs of one folder do not meet.
    let train = || Packing { workers: 1, ..packing(root, folder_source(root), "both/train-{0..}.tar", None) };
    assert!(!stopped(&train()).is_done);
    assert!(run(&packing(root, folder_source(root), "both/val-{0..}.tar", None)).unwrap().is_done);
    assert!(run(&train()).unwrap().resumed > 0);
    assert_eq!(names(&root.join("both")), ["sizes.json", "train-0.tar", "val-0.tar"]);
}

#[test]
fn options_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 2);
    fs::write(root.join("c.jsonl"), "{\"key\": \"a\", \"caption\": \"b\"}\n").unwrap();
    run(&packing(root, folder_source(root), "x.rec", None)).unwrap();
    let check = |packing: Packing, expected: &str| refused(root, &packing, &format!("pipeline `test`: {expected}"));
    let base = || packing(root, folder_source(root), "y.rec", None);
    let texts = |names: &[&str]| Some(names.iter().map(|name| name.to_string()).collect());
    check(Packing { texts: texts(&["title"]), ..base() }, "there is no text `title`; there are: caption, raw");
    check(Packing { texts: texts(&["raw", "raw"]), ..base() }, "--texts names `raw` twice");
    let mut prefixed = base();
    prefixed.pipeline.ops[1].inputs = vec!["longer".into()];
    let (op, inputs) =
        PipelineOp::from_call("prefix", &[Argument::Name("caption".into()), Argument::Text("a photo of ".into())], &[])
            .unwrap();
    prefixed.pipeline.ops.insert(1, PipelineNode { name: "longer".into(), op, inputs });
    check(
        Packing { texts: texts(&["raw", "caption"]), ..prefixed },
        "pipeline `test` does not tokenize `caption` but what `prefix` makes of it, and records would hold the text as it is; say so \
         with --context, or pack shards, which hold texts",
    );
    check(
        Packing { texts: texts(&["raw"]), captions: Some(root.join("c.jsonl")), ..base() },
        "--captions gives the text `caption`, which --texts leaves out",
    );
    let words = |size, file: Option<&str>| Some(Vocab::Words { size, file: file.map(str::to_string) });
    check(
        Packing { vocab: words(99, None), ..base() },
        "'words:99' has the words that are most frequent in the source, which nobody who reads the records would know; give \
         --vocab clip, or --vocab words:99:FILE with a file of words",
    );
    check(
        Packing { vocab: words(1 << 25, Some("w")), ..base() },
        "a vocabulary of 33554432 ids: labels of records are f32, which has no whole numbers above 16777216",
    );
    let tokens = "`raw` is token ids, of which there is no way back to texts for shards; pack to a `.rec`, or name other texts \
                  with --texts";
    let rows = records_source(root, "x.rec", &[("raw", 16), ("caption", 16)]);
    check(packing(root, rows.clone(), "s", None), tokens);
    let none = "--context and --vocab are for texts that become token ids, and there are none";
    check(Packing { context: Some(7), ..packing(root, rows, "y.rec", None) }, none);
    let images = records_source(root, "x.rec", &[]);
    check(
        Packing { texts: texts(&["raw"]), ..packing(root, images, "y.rec", None) },
        "there is no text `raw`; there are: none; give --captions",
    );
    assert_eq!(names(root), ["c.jsonl", "photos", "x.idx", "x.rec"], "nothing is left");
    let held_out = "its source holds no samples out to evaluate on; leave --eval out";
    let records = records_source(root, "x.rec", &[("raw", 16), ("caption", 16)]);
    check(Packing { mode: Mode::Eval, ..packing(root, records.clone(), "y.rec", None) }, held_out);
    let Source::Webdataset { path, streams, .. } = shards_source(root, "k/*.tar") else { unreachable!() };
    run(&packing(root, folder_source(root), "k", None)).unwrap();
    let keys = [("key".to_string(), "json:key".to_string())].into();
    let keys = Source::Webdataset { path, texts: keys, samples: 0, streams, unpack: false };
    check(
        Packing { texts: texts(&["key"]), ..packing(root, keys, "l", None) },
        "a text `key` would stand where the JSON file of a sample has its key; give it another name in the source, or name other \
         texts with --texts",
    );
    for again in [false, true] {
        let own = Packing { again, ..packing(root, records.clone(), "photos/../x.rec", None) };
        let why = "DIR/photos/../x.rec: the source reads it, and it would be replaced; give another --to";
        refused(root, &own, why);
        let own = Packing { again, ..packing(root, shards_source(root, "k/*.tar"), "k", None) };
        refused(root, &own, "DIR/k/00000.tar: the source reads it, and it would be replaced; give another --to");
    }
}

/// Which texts are packed, and as what, where nobody says.
#[test]
fn texts_that_are_packed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 1);
    fs::write(root.join("c.jsonl"), "{\"key\": \"images/00.jpg\", \"caption\": \"b\"}\n").unwrap();
    fs::write(root.join("0.jsonl"), "{\"key\": 0, \"caption\": \"b\"}\n").unwrap();
    let texts = |packing: &Packing| {
        let packed = run(&Packing { again: true, ..packing.clone() });
        packed.map(|packed| packed.texts.join(", "))
    };
    let check = |packing: &Packing, expected: &str| assert_eq!(texts(packing).as_deref(), Ok(expected));
    let fails = |packing: &Packing, why: &str| assert_eq!(texts(packing), Err(format!("pipeline `test`: {why}")));
    // Not only those that are tokenized as they are.
    let base = |to: &str| packing(root, folder_source(root), to, None);
    let prefixed = |to: &str| {
        let mut base = base(to);
        let arguments = [Argument::Name("raw".into()), Argument::Text("a photo of ".into())];
        let (op, inputs) = PipelineOp::from_call("prefix", &arguments, &[]).unwrap();
        base.pipeline.ops.insert(0, PipelineNode { name: "longer".into(), op, inputs });
        base.pipeline.ops[1].inputs = vec!["longer".into()];
        base
    };
    check(&prefixed("s"), "caption, raw");
    let why = "pipeline `test` does not tokenize `raw` but what `prefix` makes of it, and records would hold the text as it is; say \
               so with --context, or pack shards, which hold texts";
    fails(&prefixed("y.rec"), why);
    check(&Packing { context: Some(8), ..prefixed("y.rec") }, "caption (8 ids of 'clip'), raw (8 ids of 'clip')");
    let mut one = base("s");
    one.pipeline.ops.truncate(1);
    check(&one, "raw, caption");
    one.to = base("y.rec").to;
    check(&one, "raw (16 ids of 'clip')");
    // Captions are made what others are.
    one.captions = Some(root.join("c.jsonl"));
    check(&one, "raw (16 ids of 'clip'), caption (16 ids of 'clip')");
    let mut other = one.pipeline.ops[0].clone();
    other.name = "short".into();
    other.op = PipelineOp::Tokenize(Tokenize { context: 8, vocab: Vocab::Words { size: 99, file: Some("w".into()) } });
    one.pipeline.ops.push(other);
    fails(&one, "other texts have rows of 8 and of 16 ids; give --context for the captions");
    one.context = Some(8);
    fails(&one, "other texts have different vocabularies; give --vocab for the captions");
    run(&base("x.rec")).unwrap();
    let rows = |labels: &[(&str, u32)]| Packing {
        captions: Some(root.join("0.jsonl")),
        ..packing(root, records_source(root, "x.rec", labels), "y.rec", None)
    };
    let row = "raw (token ids as they are)";
    check(&rows(&[("raw", 8), ("caption", 24)]), &format!("{row}, caption (24 ids of 'clip')"));
    check(&rows(&[("raw", 32)]), &format!("{row}, caption (32 ids of 'clip')"));
    let mut tokenizing = rows(&[("raw", 32)]);
    tokenizing.pipeline.ops = one.pipeline.ops.clone();
    tokenizing.context = Some(32);
    let why = "records do not say of what vocabulary their rows are, and other texts are tokenized; give --vocab for the captions";
    fails(&tokenizing, why);
    let why = "its records have labels that it has no names for, which would be lost; name them in `labels`, such as `{ \"raw\": 77 \
               }`; --texts says which of them stay";
    fails(&rows(&[]), why);
    // An empty caption says nothing.
    fs::write(root.join("c.jsonl"), "{\"key\": \"images/00.jpg\", \"caption\": \" \"}\n").unwrap();
    let blank = Packing { captions: Some(root.join("c.jsonl")), ..base("z.rec") };
    fails(
        &blank,
        "none of its 1 samples can be packed: skipped 1\n  1 x c.jsonl has an empty caption; the first is images/00.jpg",
    );
}

#[test]
fn captions_for_records_without_texts() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 2);
    fs::write(root.join("c.jsonl"), "{\"key\": \"a\", \"caption\": \"b\"}\n").unwrap();
    run(&Packing { texts: Some(Vec::new()), ..packing(root, folder_source(root), "x.rec", None) }).unwrap();
    let images = Packing {
        captions: Some(root.join("c.jsonl")),
        ..packing(root, records_source(root, "x.rec", &[]), "y.rec", None)
    };
    let why = "pipeline `test`: none of its 2 samples can be packed: skipped 2\n  2 x c.jsonl has no caption of its key; the first \
               is record 0 of x.rec, at byte 0";
    refused(root, &images, why);
    assert_eq!(names(root), ["c.jsonl", "photos", "x.idx", "x.rec"], "nothing is left");
}

/// From the thousandth sample on a share of bad ones is judged; what is done stays, and goes on when more is allowed.
#[test]
fn too_many_bad_samples() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    photos(root, 1);
    let line = fs::read_to_string(root.join("photos/captions.jsonl")).unwrap();
    fs::write(root.join("photos/images/bad.jpg"), b"bad").unwrap();
    let lines = (0..1200).map(|at| if at % 50 == 1 { line.replace("00.jpg", "bad.jpg") } else { line.clone() });
    fs::write(root.join("photos/captions.jsonl"), lines.collect::<String>()).unwrap();
    let allowed = |max_bad| Packing { max_bad, ..packing(root, folder_source(root), "x.rec", None) };
    let why = run(&allowed(0.01)).unwrap_err();
    assert!(why.starts_with("21 of the 1002 samples read so far could not be used"), "{why}");
    // Given again it gets no further.
    assert_eq!(run(&allowed(0.01)).unwrap_err(), why);
    let packed = run(&allowed(0.05)).unwrap();
    assert_eq!((packed.resumed, packed.written, packed.skips.count()), (1002, 1176, 24));
}

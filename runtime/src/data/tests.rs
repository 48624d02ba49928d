//! The loader on small folders made here, and on sources made up for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use alip_plan::pipeline::{
    Argument, CLIP_MEAN, CLIP_STD, Mode, Pipeline, PipelineNode, PipelineOp, Resize, Shuffle, Source,
};
use image::ImageEncoder;

use super::*;
use crate::tensor::{Data, HostTensor};

mod folder;
mod mixture;
mod work;

/// Says that a test did not run, on the stream that the test harness does not hide.
pub(crate) fn skipped(reason: impl std::fmt::Display) {
    use std::io::Write;
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    // A closed stream is no reason to fail a test.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("alip-data-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("images")).expect("a temporary folder");
        Folder(path)
    }

    /// `count` images of different colours, with two captions each; `bad` ones are no images.
    fn with_images(name: &str, count: usize, bad: &[usize]) -> Folder {
        let folder = Folder::new(name);
        let mut lines = String::new();
        for i in 0..count {
            let image = format!("images/{i}.png");
            let mut bytes = Vec::new();
            let pixels: Vec<u8> = (0..12 * 10 * 3).map(|p| (p * 3 + i * 11) as u8).collect();
            let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            encoder.write_image(&pixels, 12, 10, image::ExtendedColorType::Rgb8).expect("encode");
            if bad.contains(&i) {
                bytes = b"not an image".to_vec();
            }
            fs::write(folder.0.join(&image), bytes).expect("write");
            let line = format!(r#"{{"image": "{image}", "captions": ["raw {i}", "caption {i}"], "split": "train"}}"#);
            lines += &(line + "\n");
        }
        folder.list(&lines);
        folder
    }

    fn list(&self, lines: &str) {
        fs::write(self.0.join("captions.jsonl"), lines).expect("write");
    }

    fn source(&self, swap_raw: f64) -> Source {
        Source::Folder {
            path: self.0.display().to_string(),
            split: "train".into(),
            eval_split: "train".into(),
            raw: 0,
            caption: 1,
            swap_raw,
            swap_seed: 0,
        }
    }

    fn message(&self, error: &DataError) -> String {
        error.to_string().replace(&self.0.display().to_string(), "DIR")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pipeline(source: Source) -> Pipeline {
    let name = |text: &str| Argument::Name(text.into());
    let n = Argument::Number;
    let calls: &[(&str, &str, &[Argument])] = &[
        ("crop", "random_area_crop", &[name("jpeg")]),
        ("whole", "decode_rgb", &[name("jpeg"), name("crop")]),
        ("small", "resize", &[name("whole"), n(8.0), n(8.0)]),
        ("flipped", "mirror", &[name("small")]),
        ("pixels", "normalize_rgb", &[name("flipped")]),
        ("raw_ids", "tokenize", &[name("raw"), n(8.0)]),
        ("caption_ids", "tokenize", &[name("caption"), n(8.0), Argument::Text("words:64".into())]),
    ];
    let node = |(result, op, arguments): &(&str, &str, &[Argument])| {
        let (op, inputs) = PipelineOp::from_call(op, arguments, &[]).expect("a well-formed call");
        PipelineNode { name: result.to_string(), op, inputs }
    };
    let outputs = [("image", "pixels"), ("raw", "raw_ids"), ("caption", "caption_ids")];
    Pipeline {
        name: "test".into(),
        source,
        shuffle: Some(Shuffle::default()),
        ops: calls.iter().map(node).collect(),
        eval_ops: None,
        outputs: outputs.map(|(a, b)| (a.to_string(), b.to_string())).into(),
        bytes: BTreeSet::new(),
    }
}

fn open(source: Source, options: &LoaderOptions) -> Result<Loader, DataError> {
    let samples = open_source(&source, options.mode)?;
    Loader::new(&pipeline(source), samples, options)
}

fn take(loader: &mut Loader, batches: usize) -> Vec<Batch> {
    let mut taken: Vec<Batch> = (0..batches).map_while(|_| loader.next().expect("data")).collect();
    taken.iter_mut().for_each(|batch| batch.waited = std::time::Duration::ZERO);
    taken
}

/// Any number of workers, any prefetch, and resuming at any batch give the same bits.
#[test]
fn batches_do_not_depend_on_workers_or_restarts() {
    let folder = Folder::with_images("workers", 23, &[4, 17]);
    let options = LoaderOptions { workers: 1, max_bad: 1.0, ..LoaderOptions::train(5, 4) };
    let whole = take(&mut open(folder.source(0.3), &options).unwrap(), 14);
    assert!(whole.iter().any(|batch| !batch.skipped.is_empty()), "the bad images were met");
    let many = LoaderOptions { workers: 5, prefetch: 4, ..options.clone() };
    assert_eq!(take(&mut open(folder.source(0.3), &many).unwrap(), 14), whole);
    for start in [1, 6, 11] {
        let resumed = LoaderOptions { start_sample: start as u64 * 4, workers: 3, ..options.clone() };
        assert_eq!(take(&mut open(folder.source(0.3), &resumed).unwrap(), 14 - start), whole[start..], "from {start}");
    }
    let other = LoaderOptions { seed: 6, ..options };
    assert_ne!(take(&mut open(folder.source(0.3), &other).unwrap(), 14), whole);
}

/// The same batches in bytes: the pixels of which the floats are made, and all else.
#[test]
fn images_in_bytes_are_the_pixels() {
    let folder = Folder::with_images("bytes", 23, &[4, 17]);
    let train = LoaderOptions { max_bad: 1.0, workers: 2, ..LoaderOptions::train(5, 4) };
    for (options, batches) in [(train, 14), (LoaderOptions { max_bad: 1.0, ..LoaderOptions::eval(4) }, 6)] {
        let floats = take(&mut open(folder.source(0.3), &options).unwrap(), batches);
        let samples = open_source(&folder.source(0.3), options.mode).unwrap();
        let pipeline = pipeline(folder.source(0.3)).with_bytes();
        let bytes = take(&mut Loader::new(&pipeline, samples, &options).unwrap(), batches);
        for (mut floats, mut bytes) in floats.into_iter().zip(bytes) {
            let [whole, pixels] = [&mut floats, &mut bytes].map(|batch| batch.tensors.remove("image").unwrap());
            let Data::U8(pixels) = pixels.data() else { panic!("{:?}", pixels.dtype()) };
            let row = |pixels: &[u8]| RgbImage { width: 8, height: 8, pixels: pixels.to_vec() };
            let made =
                pixels.chunks_exact(8 * 8 * 3).flat_map(|pixels| normalize_rgb(&row(pixels), CLIP_MEAN, CLIP_STD));
            assert_eq!(whole.data(), &Data::F32(made.collect()));
            assert_eq!(floats, bytes);
        }
    }
}

/// What was delivered is made once more, the last batch of a pass too, while others go on to be delivered.
#[test]
fn a_batch_is_made_again() {
    let folder = Folder::with_images("again", 23, &[4, 17]);
    let train = LoaderOptions { max_bad: 1.0, ..LoaderOptions::train(5, 4) };
    for (options, batches) in [(train, 14), (LoaderOptions { max_bad: 1.0, ..LoaderOptions::eval(4) }, 6)] {
        let whole = take(&mut open(folder.source(0.3), &options).unwrap(), batches);
        let mut loader = open(folder.source(0.3), &options).unwrap();
        for batch in &whole {
            assert_eq!(&take(&mut loader, 1)[0], batch);
            assert_eq!(&loader.batch_at(batch.first_sample).unwrap(), batch);
        }
        assert_eq!(loader.skips().count() as usize, whole.iter().flat_map(|batch| &batch.skipped).count());
    }
}

/// Fills the tensors of a batch with what would be seen if it were delivered, and gives them back.
fn poison(loader: &mut Loader, mut batch: Batch) {
    for tensor in batch.tensors.values_mut() {
        match tensor.data_mut() {
            Data::F32(values) => values.fill(f32::NAN),
            Data::I32(values) => values.fill(i32::MIN),
            Data::U8(values) => values.fill(u8::MAX),
            other => panic!("a tensor of {other:?}"),
        }
    }
    loader.give_back(batch);
}

/// Batches made in the memory of poisoned ones are those that are made in fresh memory: with bad samples, stand-ins, short texts
/// and the rows that fill the last batch of a pass.
#[test]
fn batches_given_back_leave_no_trace() {
    let folder = Folder::with_images("recycled", 23, &[4, 17]);
    let train = LoaderOptions { max_bad: 1.0, workers: 2, ..LoaderOptions::train(5, 4) };
    let eval = LoaderOptions { max_bad: 1.0, ..LoaderOptions::eval(4) };
    for (options, batches) in [(train, 14), (eval, 6)] {
        let fresh = take(&mut open(folder.source(0.3), &options).unwrap(), batches);
        assert_eq!(fresh.len(), batches);
        let mut loader = open(folder.source(0.3), &options).unwrap();
        let mut memory = BTreeSet::new();
        for fresh in &fresh {
            let batch = take(&mut loader, 1).remove(0);
            assert_eq!(&batch, fresh);
            memory.insert(batch.tensors["image"].bytes().as_ptr() as usize);
            poison(&mut loader, batch);
        }
        // All that were given back are kept, so that one place twice is one batch in the memory of another.
        assert!(memory.len() <= options.prefetch + 2, "{} places for {batches} batches", memory.len());
    }
}

/// What is not what the loader made is not used.
#[test]
fn batches_of_others_are_not_filled() {
    let folder = Folder::with_images("others", 8, &[]);
    let options = LoaderOptions::eval(4);
    let fresh = take(&mut open(folder.source(0.0), &options).unwrap(), 2);
    let mut others = open(folder.source(0.0), &LoaderOptions::eval(2)).unwrap();
    let mut loader = open(folder.source(0.0), &LoaderOptions { passes: Passes::Endless, ..options }).unwrap();
    for round in 0..5 {
        others.next().unwrap().into_iter().for_each(|batch| loader.give_back(batch));
        let mut batch = take(&mut loader, 1).remove(0);
        assert_eq!(batch.tensors, fresh[round % 2].tensors);
        if let Some(Data::F32(values)) = batch.tensors.get_mut("image").map(HostTensor::data_mut) {
            values.pop();
        }
        loader.give_back(batch);
    }
}

/// Batches straddle epochs; each epoch still shows every sample once.
#[test]
fn epochs_follow_without_a_gap() {
    let folder = Folder::with_images("epochs", 10, &[]);
    let batches = take(&mut open(folder.source(0.0), &LoaderOptions::train(1, 4)).unwrap(), 5);
    assert_eq!(batches.iter().map(|b| b.first_sample).collect::<Vec<_>>(), [0, 4, 8, 12, 16]);
    let rows: Vec<u64> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
    for epoch in rows.chunks_exact(10) {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, Vec::from_iter(0..10));
    }
    assert_ne!(rows[..10], rows[10..]);
}

/// 20 samples in batches of 8: at the turn of an epoch, too, all are different; a stand-in is not in the batch either.
#[test]
fn no_batch_holds_a_sample_twice() {
    let folder = Folder::with_images("twice", 20, &[3]);
    let options = LoaderOptions { max_bad: 1.0, ..LoaderOptions::train(0, 8) };
    let batches = take(&mut open(folder.source(0.0), &options).unwrap(), 50);
    for batch in &batches {
        let distinct: BTreeSet<&u64> = batch.rows.iter().collect();
        assert_eq!(distinct.len(), 8, "{:?} at {}", batch.rows, batch.first_sample);
    }
    assert_eq!(batches.iter().map(|batch| batch.skipped.len()).sum::<usize>(), 20);
}

/// Whoever else is bad, in a batch or beside it: as long as there are others, no sample stands in a batch twice.
#[test]
fn stand_ins_are_distinct() {
    let bad: Vec<usize> = (0..12).collect();
    let folder = Folder::with_images("stand-ins", 24, &bad);
    let options = LoaderOptions { max_bad: 1.0, ..LoaderOptions::train(3, 8) };
    let batches = take(&mut open(folder.source(0.0), &options).unwrap(), 60);
    assert!(batches.iter().any(|batch| batch.skipped.len() > 4), "many are bad at a time");
    for batch in &batches {
        let distinct: BTreeSet<&u64> = batch.rows.iter().collect();
        assert!(distinct.len() == 8 && batch.rows.iter().all(|&row| row >= 12), "{:?}", batch.rows);
    }
    // One usable sample outside of every batch is found, and what there is not is not asked for.
    let folder = Folder::with_images("one-left", 9, &[2]);
    let options = LoaderOptions { max_bad: 1.0, ..LoaderOptions::train(0, 8) };
    for batch in take(&mut open(folder.source(0.0), &options).unwrap(), 40) {
        let distinct: BTreeSet<&u64> = batch.rows.iter().collect();
        assert_eq!(distinct.len(), 8, "{:?} at {}", batch.rows, batch.first_sample);
    }
    let folder = Folder::with_images("none-left", 4, &[2]);
    for batch in take(&mut open(folder.source(0.0), &LoaderOptions { batch: 4, ..options }).unwrap(), 4) {
        assert!(batch.rows.iter().all(|&row| row != 2), "{:?}", batch.rows);
    }
}

/// Evaluation is in order, without randomness, once; the last batch says how much of it counts.
#[test]
fn evaluation_passes_once() {
    let folder = Folder::with_images("eval", 10, &[]);
    let mut loader = open(folder.source(0.0), &LoaderOptions::eval(4)).unwrap();
    let batches = take(&mut loader, 9);
    let seen: Vec<(usize, Vec<u64>)> = batches.iter().map(|batch| (batch.valid, batch.rows.clone())).collect();
    assert_eq!(seen, [(4, vec![0, 1, 2, 3]), (4, vec![4, 5, 6, 7]), (2, vec![8, 9, 0, 1])]);
    assert_eq!(loader.counts(), (10, 0));
    let shapes: Vec<(&str, &[u64])> = batches[0].tensors.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
    assert_eq!(shapes, [("caption", &[4, 8][..]), ("image", &[4, 3, 8, 8]), ("raw", &[4, 8])]);
    let ids = batches[0].tensors["raw"].as_i32().unwrap();
    assert_eq!(ids[8..16], Tokenizer::clip().encode("raw 1", 8));
    // `caption` and `raw` ten times each, the digits once: ids 2, 3, and 4 to 13; start 62, end 63.
    assert_eq!(batches[0].tensors["caption"].as_i32().unwrap()[8..12], [62, 2, 5, 63]);
}

#[test]
fn a_bad_image_is_named_and_replaced() {
    let folder = Folder::with_images("bad", 20, &[7]);
    let options = LoaderOptions { max_bad: 1.0, ..LoaderOptions::eval(10) };
    let batches = take(&mut open(folder.source(0.0), &options).unwrap(), 2);
    let [skipped] = &batches[0].skipped[..] else { panic!("{:?}", batches[0].skipped) };
    assert_eq!(skipped.to_string(), "sample 7 (index 7, images/7.png): not a JPEG, PNG or WebP file");
    assert_ne!(batches[0].rows[7], 7);
    assert_eq!(batches[0].labels["raw_wrong"].len(), 10);
    assert!(batches[1].skipped.is_empty());
}

#[test]
fn too_many_bad_images_stop_the_run() {
    let folder = Folder::with_images("stop", 20, &[3, 9]);
    let options = LoaderOptions { judge_after: 10, max_bad: 0.05, ..LoaderOptions::eval(10) };
    let error = open(folder.source(0.0), &options).unwrap().next().unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 of the 10 samples read so far could not be used, more than the allowed share of 0.05 (judged from sample \
         10 on); the last one: sample 9 (index 9, images/9.png): not a JPEG, PNG or WebP file. Repair or remove the files named \
         in the log, or raise the share with --max-bad"
    );
    let folder = Folder::with_images("none", 5, &[0, 1, 2, 3, 4]);
    let error = open(folder.source(0.0), &LoaderOptions::eval(2)).unwrap().next().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no usable sample found to replace sample 0 (index 0, images/0.png): not a JPEG, PNG or WebP file after 4 tries; \
         the data set seems to be unreadable"
    );
}

/// A source whose decoder panics on one sample and which has a wrong field in another.
struct Hostile;

impl SampleSource for Hostile {
    fn len(&self) -> u64 {
        8
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        assert_ne!(index, 2, "a decoder's bug");
        let side = if index == 5 { 3 } else { 4 };
        Ok(of_one_level(index, side))
    }

    fn name(&self, index: u64) -> String {
        format!("hostile {index}")
    }
}

/// A sample whose pixels tell its index.
fn of_one_level(index: u64, side: u32) -> RawSample {
    let image = RgbImage { width: side, height: side, pixels: vec![index as u8; (side * side * 3) as usize] };
    let text = || Field::Text("a text".into());
    let fields = [("image", Field::Rgb(image)), ("raw", text()), ("caption", text())];
    let fields = fields.map(|(name, field)| (name.to_string(), field)).into();
    RawSample { fields, labels: BTreeMap::new() }
}

fn hostile() -> Pipeline {
    let mut pipeline = pipeline(Source::Shapes { size: 4, scenes: 8, held_out: 8, seed: 0 });
    let (op, inputs) = PipelineOp::from_call("normalize_rgb", &[Argument::Name("image".into())], &[]).unwrap();
    pipeline.ops = vec![PipelineNode { name: "pixels".into(), op, inputs }];
    pipeline.outputs = BTreeMap::from([("image".to_string(), "pixels".to_string())]);
    pipeline
}

#[test]
fn a_panic_costs_one_sample() {
    let options = LoaderOptions { max_bad: 1.0, ..LoaderOptions::eval(8) };
    let batches = take(&mut Loader::new(&hostile(), Arc::new(Hostile), &options).unwrap(), 1);
    let skipped: Vec<String> = batches[0].skipped.iter().map(Skipped::to_string).collect();
    assert_eq!(
        skipped,
        [
            "sample 2 (index 2, hostile 2): the decoder panicked: assertion `left != right` failed: a decoder's bug",
            "sample 5 (index 5, hostile 5): `image` is not an RGB image 4x4"
        ]
    );
}

/// It costs no word on the terminal either: the test above is run by itself, and what it prints is looked at.
#[test]
fn a_caught_panic_prints_nothing() {
    let run = |test: &str| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args([test, "--exact", "--nocapture", "--include-ignored"]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run("data::tests::a_panic_costs_one_sample"), (true, String::new()));
    let (passed, said) = run("data::tests::other_panics_are_printed");
    assert!(!passed && said.contains("nobody catches this") && !said.contains("somebody catches this"), "{said}");
}

#[test]
#[ignore = "fails; see `a_caught_panic_prints_nothing`"]
fn other_panics_are_printed() {
    assert_eq!(panics::caught(|| panic!("somebody catches this")), Err::<(), _>("somebody catches this".to_string()));
    assert_eq!(panics::caught(|| 3), Ok(3));
    panic!("nobody catches this");
}

/// A source of three batches of four. Sample 0 takes until the second batch was read, if it `waits`.
#[derive(Default)]
struct Slow {
    waits: bool,
    begun: Mutex<BTreeSet<u64>>,
    more: Condvar,
    /// What was begun when sample 0 was done.
    meanwhile: Mutex<BTreeSet<u64>>,
}

impl SampleSource for Slow {
    fn len(&self) -> u64 {
        12
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let mut begun = self.begun.lock().unwrap();
        begun.insert(index);
        self.more.notify_all();
        if self.waits && index == 0 {
            begun = self.more.wait_while(begun, |begun| !(4..8).all(|sample| begun.contains(&sample))).unwrap();
            self.meanwhile.lock().unwrap().clone_from(&begun);
        }
        drop(begun);
        Ok(of_one_level(index, 4))
    }

    fn name(&self, index: u64) -> String {
        format!("slow {index}")
    }
}

/// The next batch is read while one sample of this is not done, the one after it is not begun, and they come in order all the same.
#[test]
fn a_slow_sample_holds_up_its_own_batch_only() {
    let load = |waits, workers| {
        let source = Arc::new(Slow { waits, ..Slow::default() });
        let options = LoaderOptions { workers, prefetch: 1, ..LoaderOptions::eval(4) };
        let batches = take(&mut Loader::new(&hostile(), source.clone(), &options).unwrap(), 4);
        let meanwhile = source.meanwhile.lock().unwrap().clone();
        (batches, meanwhile)
    };
    let (slow, meanwhile) = load(true, 2);
    assert_eq!(meanwhile, (0..8).collect());
    assert_eq!(slow.iter().map(|batch| batch.rows.clone()).collect::<Vec<_>>().concat(), Vec::from_iter(0..12));
    assert_eq!(slow, load(false, 1).0);
    assert_eq!(slow, load(true, 5).0);
}

/// Dropping a loader that waits for room, and one that was never read, both end their threads.
#[test]
fn dropping_ends_the_threads() {
    let folder = Folder::with_images("drop", 6, &[]);
    for taken in [0, 1, 3] {
        let source = folder.source(0.0);
        let samples = open_source(&source, Mode::Train).unwrap();
        let mut loader = Loader::new(&pipeline(source), samples.clone(), &LoaderOptions::train(0, 3)).unwrap();
        take(&mut loader, taken);
        drop(loader);
        assert_eq!(Arc::strong_count(&samples), 1, "no thread holds the source");
    }
}

#[test]
fn errors_of_pipelines() {
    let source = Source::Shapes { size: 4, scenes: 8, held_out: 8, seed: 0 };
    let samples = open_source(&source, Mode::Train).unwrap();
    let mut pipeline = pipeline(source);
    let call = [Argument::Name("raw".into()), Argument::Number(8.0), Argument::Text("words:20".into())];
    let (op, inputs) = PipelineOp::from_call("tokenize", &call, &[]).unwrap();
    pipeline.ops = vec![PipelineNode { name: "ids".into(), op, inputs }];
    pipeline.outputs = BTreeMap::from([("raw".to_string(), "ids".to_string())]);
    let error = Transform::new(&pipeline, Mode::Train, samples.as_ref(), &Vocabularies::default())
        .err()
        .expect("an error")
        .to_string();
    let (words, needed) = (samples.words(usize::MAX).unwrap().len(), samples.words(usize::MAX).unwrap().len() + 4);
    assert_eq!(
        error,
        format!(
            "pipeline `test`: its source has {words} words, more than 'words:20' has room for; write 'words:{needed}' or more"
        )
    );
}

/// A source of three methods is loaded, and has an identity; texts that it does not list are asked for in vain.
#[test]
fn errors_of_sources_without_texts() {
    let source: &dyn SampleSource = &Hostile;
    let message = |error: Option<DataError>| error.expect("an error").to_string();
    assert_eq!(
        message(source.captions(0).err()),
        "this source does not list captions to search for; evaluate on a source that has, such as `Folder`"
    );
    assert_eq!(
        message(
            Vocabularies::open(&pipeline(Source::Shapes { size: 4, scenes: 8, held_out: 8, seed: 0 }), source).err()
        ),
        "this source does not list words to make a vocabulary of; give the vocabulary a file of words, or use 'clip'"
    );
    assert_eq!(source.list_hash().unwrap().len(), 16);
}

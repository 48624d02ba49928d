//! All ops: what each keeps to, whole bodies with their draws, and what others make of the same.

mod others;

use std::collections::{BTreeMap, BTreeSet};

use alip_plan::pipeline::{Argument, PipelineNode, PipelineOp, SIGNATURES, Source};
use image::ImageEncoder;
use serde_json::Value as Json;

use super::*;
use crate::data::RgbImage;

/// A line of `tests/goldens/augment`, which `bench/peers/augment.py` wrote.
pub(super) struct Golden(Json);

impl Golden {
    fn all(lines: &str) -> Vec<Golden> {
        lines.lines().map(|line| Golden(serde_json::from_str(line).expect("a golden line"))).collect()
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or_else(|| panic!("{name} of {}", self.0))
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("{name} of {}", self.0))
    }

    fn pair(&self, name: &str) -> (f64, f64) {
        let at = |index: usize| self.0[name][index].as_f64().unwrap_or_else(|| panic!("{name} of {}", self.0));
        (at(0), at(1))
    }

    /// The image that was changed: all levels and all colours.
    pub(super) fn image(&self) -> RgbImage {
        pattern(self.number("height") as u32, self.number("width") as u32)
    }

    /// What `change` makes of the image of each line of an op is what stands there; lines of which it makes nothing are others'.
    pub(super) fn check(op: &str, change: impl Fn(&Golden) -> Option<RgbImage>) {
        let mut seen = 0;
        let of_op = |golden: &Golden| golden.text("op") == op;
        for golden in
            Golden::all(include_str!("../../../../../tests/goldens/augment/pixels.jsonl")).iter().filter(|g| of_op(g))
        {
            let Some(changed) = change(golden) else { continue };
            let hex: String = changed.pixels.iter().map(|level| format!("{level:02x}")).collect();
            let mut told = golden.0.clone();
            told["pixels"] = "".into();
            assert!(hex == golden.text("pixels"), "{told}:\n{hex}\n{}", golden.text("pixels"));
            seen += 1;
        }
        assert!(seen >= 4, "{seen} lines of {op}");
    }
}

/// `pattern` of `bench/peers/augment.py`.
fn pattern(height: u32, width: u32) -> RgbImage {
    let level = |x: u32, y: u32, c: u32| ((x * x * 31 + y * 57 + c * 101 + x * y * (7 + 4 * c)) % 256) as u8;
    let place = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = place.flat_map(|(x, y)| (0..3).map(move |c| level(x, y, c))).collect();
    RgbImage { width, height, pixels }
}

/// An image whose pixels count.
pub(super) fn numbered(height: u32, width: u32) -> RgbImage {
    let pixels = (0..height * width).flat_map(|i| [i as u8, (i + 1) as u8, (i + 2) as u8]).collect();
    RgbImage { width, height, pixels }
}

fn name(text: &str) -> Argument {
    Argument::Name(text.into())
}

/// A node: its results' names, the op, its arguments.
type Line<'a> = (&'a [&'a str], &'a str, Vec<Argument>);

/// A pipeline of a folder's fields that delivers the values of these names.
fn pipeline(lines: &[Line<'_>], outputs: &[&str]) -> Pipeline {
    let mut ops = Vec::new();
    for (names, op, arguments) in lines {
        let (op, inputs) = PipelineOp::from_call(op, arguments, &[]).expect("a well-formed call");
        ops.push(PipelineNode { name: names[0].to_string(), op, inputs });
        for (index, further) in (1..).zip(&names[1..]) {
            let (op, inputs) = (PipelineOp::Further { index }, vec![names[0].to_string()]);
            ops.push(PipelineNode { name: further.to_string(), op, inputs });
        }
    }
    Pipeline {
        name: "test".into(),
        source: Source::Folder {
            path: String::new(),
            split: String::new(),
            eval_split: String::new(),
            raw: 0,
            caption: 1,
            swap_raw: 0.0,
            swap_seed: 0,
        },
        shuffle: None,
        ops,
        eval_ops: None,
        outputs: outputs.iter().map(|name| (name.to_string(), name.to_string())).collect(),
        bytes: BTreeSet::new(),
    }
}

/// A folder's sample.
#[derive(Clone)]
struct Given {
    image: RgbImage,
    captions: Vec<String>,
}

impl Given {
    fn new(height: u32, width: u32, captions: &[&str]) -> Given {
        Given { image: pattern(height, width), captions: captions.iter().map(|text| text.to_string()).collect() }
    }

    fn sample(&self) -> RawSample {
        let mut png = Vec::new();
        let (image, captions) = (&self.image, &self.captions);
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.write_image(&image.pixels, image.width, image.height, image::ExtendedColorType::Rgb8).expect("encode");
        let text = |index: usize| Field::Text(captions.get(index).cloned().unwrap_or_default());
        let fields = [
            ("jpeg", Field::Encoded(png)),
            ("raw", text(0)),
            ("caption", text(1)),
            ("captions", Field::Texts(captions.clone())),
        ];
        let fields = fields.map(|(name, field)| (name.to_string(), field)).into();
        RawSample { fields, labels: BTreeMap::new() }
    }
}

/// Nobody asks it: the tests tokenise with CLIP's vocabulary.
struct Nothing;

impl SampleSource for Nothing {
    fn len(&self) -> u64 {
        1
    }

    fn sample(&self, _: u64) -> Result<RawSample, SampleError> {
        Err(SampleError("nothing".into()))
    }

    fn name(&self, _: u64) -> String {
        "nothing".into()
    }
}

/// What a pipeline delivers of sample `index`, by output.
fn run(
    pipeline: &Pipeline,
    mode: Mode,
    given: &Given,
    index: u64,
) -> Result<BTreeMap<String, HostTensor>, SampleError> {
    let transform =
        Transform::new(pipeline, mode, &Nothing, &Vocabularies::default()).expect("a pipeline that is checked");
    let mut tensors = transform.allocate(1).expect("tensors");
    let mut rows: Vec<Row<'_>> = tensors
        .iter_mut()
        .map(|tensor| match tensor.data_mut() {
            Data::F32(row) => Row::F32(row),
            Data::I32(row) => Row::I32(row),
            Data::U8(row) => Row::U8(row),
            other => panic!("a tensor of {other:?}"),
        })
        .collect();
    let order = Order::new(1000, 5, true, 1);
    let clock = Clock::new(transform.ops());
    transform.run(given.sample(), (&order, 2, index), &mut rows, &clock)?;
    let names: Vec<String> = transform.outputs().map(|(name, _)| name.to_string()).collect();
    Ok(names.into_iter().zip(tensors).collect())
}

fn floats(tensor: &HostTensor) -> Vec<f32> {
    match tensor.data() {
        Data::F32(values) => values.clone(),
        other => panic!("{other:?}"),
    }
}

/// A body with every op, as hard as each can be, and the outputs that read what it makes.
fn everything() -> Pipeline {
    let n = Argument::Number;
    let tuple = |values: &[f64]| Argument::Tuple(values.to_vec());
    let lines: Vec<Line<'_>> = vec![
        (&["area", "area_drawn"], "random_area_crop", vec![name("jpeg")]),
        (&["cut"], "decode_rgb", vec![name("jpeg"), name("area")]),
        (&["image"], "decode_rgb", vec![name("jpeg")]),
        (&["window", "window_drawn"], "random_resized_crop", vec![name("image")]),
        (&["whole", "whole_drawn"], "whole_window", vec![name("image")]),
        (&["part"], "crop", vec![name("image"), name("window")]),
        (&["all"], "crop", vec![name("image"), name("whole")]),
        (&["jittered", "jitter"], "color_jitter", vec![name("part"), n(0.4), n(0.4), n(0.4), n(0.1)]),
        (&["gray", "is_gray"], "grayscale", vec![name("jittered"), n(0.5)]),
        (&["solar", "is_solar"], "solarize", vec![name("gray"), n(128.0), n(0.5)]),
        (&["blurred", "sigma"], "gaussian_blur", vec![name("solar"), tuple(&[0.1, 9.0]), n(0.9)]),
        (&["turned", "degrees"], "rotate", vec![name("blurred"), tuple(&[-180.0, 180.0]), n(0.9)]),
        (&["wide"], "rotate", vec![name("all"), tuple(&[1.0, 2.0]), n(1.0), Argument::Text("bilinear".into())]),
        (&["shorter"], "resize_shorter", vec![name("wide"), n(3.0)]),
        (&["middle"], "center_crop", vec![name("shorter"), n(3.0), n(2.0)]),
        (&["small"], "resize", vec![name("turned"), n(4.0), n(5.0)]),
        (&["tiny"], "resize", vec![name("cut"), n(4.0), n(5.0)]),
        (&["flipped", "flip"], "mirror", vec![name("small")]),
        (&["one"], "normalize_rgb", vec![name("flipped")]),
        (&["two"], "normalize_rgb", vec![name("tiny")]),
        (&["three"], "normalize_rgb", vec![name("middle")]),
        (&["mask", "order"], "patch_mask", vec![n(3.0), n(4.0), n(0.7)]),
        (&["blocks", "block_order"], "block_mask", vec![n(14.0), n(14.0)]),
        (&["prefixed"], "prefix", vec![name("captions"), Argument::Text("a photo of ".into())]),
        (&["text", "which"], "choose", vec![name("prefixed")]),
        (&["fewer", "dropped"], "drop", vec![name("text"), n(0.5)]),
        (&["other", "swapped"], "swap", vec![name("fewer"), n(0.5)]),
        (&["ids"], "tokenize", vec![name("other"), n(9.0)]),
        (&["masked", "targets", "drawn"], "mask_tokens", vec![name("ids"), n(0.0), n(0.5)]),
        (&["first", "index"], "pick", vec![name("captions"), n(0.0)]),
        (&["first_ids"], "tokenize", vec![name("first"), n(9.0)]),
        (&["rows", "own"], "tokenize_all", vec![name("captions"), n(3.0), n(7.0)]),
    ];
    let tensors = [
        "area_drawn",
        "window_drawn",
        "whole_drawn",
        "jitter",
        "is_gray",
        "is_solar",
        "sigma",
        "degrees",
        "flip",
        "one",
        "two",
        "three",
        "mask",
        "order",
        "blocks",
        "block_order",
        "which",
        "dropped",
        "swapped",
        "ids",
        "masked",
        "targets",
        "drawn",
        "index",
        "first_ids",
        "rows",
        "own",
    ];
    pipeline(&lines, &tensors)
}

/// Every op on images of one pixel, of one row, of one column and on texts of no word: no panic, and what is delivered has its
/// range. Each sample and each place draws for itself; in evaluation nothing draws.
#[test]
fn every_op_on_extreme_samples() {
    let body = everything();
    let used: BTreeSet<&str> = body.ops.iter().map(|node| node.op.name()).collect();
    let all: BTreeSet<&str> = SIGNATURES.iter().map(|signature| signature.name).collect();
    assert_eq!(used.intersection(&all).count(), all.len(), "not run: {:?}", all.difference(&used));
    let texts =
        ["", " ", "word", "two words", "a much longer caption than there is room for in a row of nine", "!! <end>"];
    for (height, width) in [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (3, 2), (40, 60)] {
        for index in 0..40 {
            let given = Given::new(height, width, &[texts[index as usize % texts.len()], "second"]);
            for mode in [Mode::Train, Mode::Eval] {
                let what = format!("{height}x{width}, sample {index}, {mode:?}");
                let made = run(&body, mode, &given, index).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(made, run(&body, mode, &given, index).unwrap(), "{what}: a function of the sample");
                check_ranges(&made, &what);
                if mode == Mode::Eval {
                    check_neutral(&made, &what);
                }
            }
        }
    }
}

fn check_ranges(made: &BTreeMap<String, HostTensor>, what: &str) {
    for window in ["area_drawn", "window_drawn", "whole_drawn"] {
        let drawn = floats(&made[window]);
        let inside = drawn[0] >= 0.0 && drawn[1] >= 0.0 && drawn[0] + drawn[2] <= 1.000_001;
        assert!(inside && drawn[1] + drawn[3] <= 1.000_001 && drawn[2] > 0.0 && drawn[3] > 0.0, "{what}: {drawn:?}");
    }
    let mask = floats(&made["mask"]);
    // 12 patches times 0.3, rounded down, are kept in training.
    let masked = mask.iter().sum::<f32>();
    assert!(masked == 9.0 || masked == 0.0, "{what}: {mask:?}");
    for (mask, order) in [("mask", "order"), ("blocks", "block_order")] {
        let (mask, order) = (floats(&made[mask]), made[order].as_i32().unwrap().to_vec());
        let sorted = BTreeSet::from_iter(order.iter().copied());
        assert_eq!(sorted, (0..mask.len() as i32).collect(), "{what}");
        assert!(order.iter().map(|patch| mask[*patch as usize]).is_sorted(), "{what}: kept ones first");
    }
    let [ids, masked, targets] = ["ids", "masked", "targets"].map(|name| made[name].as_i32().unwrap().to_vec());
    for (place, drawn) in floats(&made["drawn"]).into_iter().enumerate() {
        let (id, masked, target) = (ids[place], masked[place], targets[place]);
        let fits = if drawn == 1.0 { target == id && id < 49_406 } else { target == 0 && masked == id };
        assert!(
            fits && (0..49_406).contains(&masked) || id >= 49_406 && masked == id,
            "{what}: {ids:?} {masked:?} {targets:?}"
        );
    }
    let own = floats(&made["own"]);
    assert_eq!(own, [1.0, 1.0, 0.0], "{what}");
    let rows = made["rows"].as_i32().unwrap();
    assert_eq!(rows[..7], rows[14..], "{what}: the first stands there again");
}

/// What was drawn in evaluation is what does nothing.
fn check_neutral(made: &BTreeMap<String, HostTensor>, what: &str) {
    for window in ["area_drawn", "window_drawn", "whole_drawn"] {
        assert_eq!(floats(&made[window]), [0.0, 0.0, 1.0, 1.0], "{what}: {window}");
    }
    assert_eq!(floats(&made["jitter"]), [1.0, 1.0, 1.0, 0.0], "{what}");
    for zero in
        ["is_gray", "is_solar", "sigma", "degrees", "flip", "which", "dropped", "swapped", "mask", "blocks", "drawn"]
    {
        assert!(floats(&made[zero]).iter().all(|drawn| *drawn == 0.0), "{what}: {zero}");
    }
    assert_eq!(made["masked"], made["ids"], "{what}");
}

/// An op that is written twice draws twice, what was drawn says what was done, and who does not ask for it gets the same images.
#[test]
fn an_op_called_twice_draws_twice() {
    let n = Argument::Number;
    let view = |jitter: &'static [&'static str], flip: &'static [&'static str], image: &'static [&'static str]| {
        vec![
            (jitter, "color_jitter", vec![name("whole"), n(0.5)]),
            (flip, "mirror", vec![name(jitter[0])]),
            (image, "normalize_rgb", vec![name(flip[0]), n(0.0), n(1.0)]),
        ]
    };
    let decode = vec![
        (&["full"] as &[&str], "decode_rgb", vec![name("jpeg")]),
        (&["whole"] as &[&str], "resize", vec![name("full"), n(6.0), n(8.0)]),
    ];
    let told = [
        decode.clone(),
        view(&["a", "a_jitter"], &["b", "b_flip"], &["one"]),
        view(&["c"], &["d", "d_flip"], &["two"]),
    ];
    let told = pipeline(&told.concat(), &["a_jitter", "b_flip", "d_flip", "one", "two"]);
    let untold = [decode, view(&["a"], &["b"], &["one"]), view(&["c"], &["d"], &["two"])];
    let untold = pipeline(&untold.concat(), &["one", "two"]);
    let given = Given::new(6, 8, &[]);
    let (mut differ, mut alike) = (0, 0);
    for index in 0..64 {
        let made = run(&told, Mode::Train, &given, index).unwrap();
        let plain = run(&untold, Mode::Train, &given, index).unwrap();
        assert_eq!((&made["one"], &made["two"]), (&plain["one"], &plain["two"]));
        assert_ne!(made["one"], made["two"]);
        let [brightness, ..] = floats(&made["a_jitter"])[..] else { panic!() };
        let mut image = given.image.clone();
        image.pixels.iter_mut().for_each(|level| *level = (brightness * f32::from(*level)) as u8);
        if floats(&made["b_flip"]) == [1.0] {
            mirror(&mut image);
        }
        assert_eq!(floats(&made["one"]), normalize_rgb(&image, [0.0; 3], [1.0; 3]));
        if made["b_flip"] == made["d_flip"] { alike += 1 } else { differ += 1 }
    }
    // Binomial with 64 and one half: five standard deviations are 20.
    assert!(differ > 12 && alike > 12, "{differ} differ, {alike} are alike");
}

/// Windows and mirroring of the usual body, computed apart from this program (in Python, from Philox on): a run that is resumed
/// goes on with the samples that it would have had.
#[test]
fn draws_stay_what_they_were() {
    let n = Argument::Number;
    let body = pipeline(
        &[
            (&["crop", "window"], "random_area_crop", vec![name("jpeg")]),
            (&["whole"], "decode_rgb", vec![name("jpeg"), name("crop")]),
            (&["small"], "resize", vec![name("whole"), n(4.0), n(4.0)]),
            (&["flipped", "flip"], "mirror", vec![name("small")]),
            (&["image"], "normalize_rgb", vec![name("flipped")]),
        ],
        &["window", "flip", "image"],
    );
    let given = Given::new(40, 60, &[]);
    for (index, window, flip) in [
        (0, [4, 1, 48, 39], 0.0),
        (1, [14, 0, 45, 40], 1.0),
        (2, [2, 1, 45, 39], 0.0),
        (7, [10, 0, 44, 40], 0.0),
        ((1 << 40) + 3, [7, 0, 47, 39], 1.0),
    ] {
        let made = run(&body, Mode::Train, &given, index).unwrap();
        let drawn: Vec<u32> = std::iter::zip(floats(&made["window"]), [60.0, 40.0, 60.0, 40.0])
            .map(|(share, side)| (share * side).round() as u32)
            .collect();
        assert_eq!((drawn.as_slice(), floats(&made["flip"])), (window.as_slice(), vec![flip]), "sample {index}");
    }
}

/// Words are dropped and swapped as often as asked for, and masks are drawn as BERT's.
#[test]
fn texts_change_as_often_as_asked() {
    let n = Argument::Number;
    let words: Vec<String> = (0..20).map(|word| format!("w{word}")).collect();
    let given = Given::new(2, 2, &[&words.join(" "), "", "only"]);
    let body = pipeline(
        &[
            (&["text", "which"], "choose", vec![name("captions")]),
            (&["fewer", "dropped"], "drop", vec![name("raw"), n(0.3)]),
            (&["other", "swapped"], "swap", vec![name("raw"), n(0.15)]),
            (&["ids"], "tokenize", vec![name("raw"), n(77.0)]),
            (&["masked", "targets", "drawn"], "mask_tokens", vec![name("ids"), n(3.0), n(0.5)]),
        ],
        &["which", "dropped", "swapped", "ids", "masked", "drawn"],
    );
    let samples = 2000;
    let (mut which, mut dropped, mut drawn, mut kinds) = ([0.0; 3], Vec::new(), Vec::new(), [0.0; 3]);
    for index in 0..samples {
        let made = run(&body, Mode::Train, &given, index).unwrap();
        which[floats(&made["which"])[0] as usize] += 1.0;
        dropped.push(f64::from(floats(&made["dropped"])[0]));
        assert_eq!(floats(&made["swapped"]), [3.0]);
        let (ids, masked) = (made["ids"].as_i32().unwrap(), made["masked"].as_i32().unwrap());
        for (place, _) in floats(&made["drawn"]).iter().enumerate().filter(|(_, drawn)| **drawn == 1.0) {
            let kind = if masked[place] == 3 {
                0
            } else if masked[place] == ids[place] {
                2
            } else {
                1
            };
            kinds[kind] += 1.0;
        }
        drawn.push(f64::from(floats(&made["drawn"]).iter().sum::<f32>()));
    }
    let share = |found: f64, of: f64, p: f64| {
        let bound = 5.0 * (p * (1.0 - p) / of).sqrt();
        assert!((found / of - p).abs() < bound, "{found} of {of}, not {p} (within {bound})");
    };
    let samples = samples as f64;
    which.iter().for_each(|found| share(*found, samples, 1.0 / 3.0));
    share(dropped.iter().sum(), samples * 20.0, 0.3);
    let tokens = Tokenizer::clip().encode(&words.join(" "), 77).iter().filter(|id| (1..49_406).contains(*id)).count();
    share(drawn.iter().sum(), samples * tokens as f64, 0.5);
    let all = kinds.iter().sum::<f64>();
    std::iter::zip(kinds, [0.8, 0.1, 0.1]).for_each(|(found, p)| share(found, all, p));
}

/// What a text op leaves is made of the words that were there.
#[test]
fn words_stay_words() {
    let n = Argument::Number;
    let given = Given::new(1, 1, &["one two  three\tfour"]);
    let body = pipeline(
        &[
            (&["fewer", "count"], "drop", vec![name("raw"), n(1.0)]),
            (&["ids"], "tokenize", vec![name("fewer"), n(9.0)]),
            (&["other"], "swap", vec![name("raw"), n(0.9)]),
            (&["other_ids"], "tokenize", vec![name("other"), n(9.0)]),
        ],
        &["count", "ids", "other_ids"],
    );
    let encode = |text: &str| Tokenizer::clip().encode(text, 9);
    let all: BTreeSet<Vec<i32>> = ["one", "two", "three", "four"].map(encode).into();
    let sorted = |ids: &[i32]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    let mut seen = BTreeSet::new();
    for index in 0..200 {
        let made = run(&body, Mode::Train, &given, index).unwrap();
        // All would go, so that one stays.
        assert_eq!(floats(&made["count"]), [3.0]);
        seen.insert(made["ids"].as_i32().unwrap().to_vec());
        let other = made["other_ids"].as_i32().unwrap();
        assert_eq!(sorted(other), sorted(&encode("one two three four")));
    }
    assert_eq!(seen, all);
}

/// Samples that an op cannot use, and why.
#[test]
fn errors_of_samples() {
    let n = Argument::Number;
    let (none, one) = (Given::new(2, 2, &[]), Given::new(2, 2, &["a"]));
    let check = |lines: &[Line<'_>], output: &str, given: &Given, expected: &str| {
        let error = run(&pipeline(lines, &[output]), Mode::Train, given, 0).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let ids = || (&["ids"] as &[&str], "tokenize", vec![name("text"), n(9.0)]);
    let pick: Line<'_> = (&["text"], "pick", vec![name("captions"), n(1.0)]);
    check(&[pick, ids()], "ids", &one, "it has 1 texts, but text 1, counted from 0, is asked for");
    let choose: Line<'_> = (&["text"], "choose", vec![name("captions")]);
    check(&[choose, ids()], "ids", &none, "it has 0 texts, but text 0, counted from 0, is asked for");
    let all: Line<'_> = (&["ids"], "tokenize_all", vec![name("captions"), n(2.0)]);
    check(&[all], "ids", &none, "it has no texts");
}

//! Kind rules, errors and the derived evaluation body, as tables.

use super::*;

/// Builds a body from lines `name = op(input, ...)` given as tuples; arguments take their defaults unless named.
type Line<'a> = (&'a str, &'a str, &'a [Argument], &'a [(&'a str, Argument)]);

fn name(text: &str) -> Argument {
    Argument::Name(text.into())
}

fn body(lines: &[Line<'_>]) -> Result<Vec<PipelineNode>, String> {
    lines
        .iter()
        .map(|(result, op, positional, named)| {
            let named: Vec<(String, Argument)> = named.iter().map(|(n, a)| (n.to_string(), a.clone())).collect();
            let (op, inputs) = PipelineOp::from_call(op, positional, &named)?;
            Ok(PipelineNode { name: result.to_string(), op, inputs })
        })
        .collect()
}

fn folder() -> Source {
    Source::Folder {
        path: "photos".into(),
        split: "train".into(),
        eval_split: "test".into(),
        raw: 0,
        caption: 1,
        swap_raw: 0.3,
        swap_seed: 0,
    }
}

fn pipeline(lines: &[Line<'_>], outputs: &[(&str, &str)]) -> Pipeline {
    Pipeline {
        name: "test".into(),
        source: folder(),
        shuffle: Some(Shuffle::default()),
        ops: body(lines).expect("well-formed calls"),
        eval_ops: None,
        outputs: outputs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
        bytes: BTreeSet::new(),
    }
}

fn recipe() -> Pipeline {
    let n = Argument::Number;
    pipeline(
        &[
            ("crop", "random_area_crop", &[name("jpeg")], &[]),
            ("whole", "decode_rgb", &[name("jpeg"), name("crop")], &[]),
            ("rgb", "resize", &[name("whole"), n(224.0), n(224.0)], &[("filter", Argument::Text("triangle".into()))]),
            ("flipped", "mirror", &[name("rgb")], &[]),
            ("image", "normalize_rgb", &[name("flipped")], &[("mean", name("clip_mean"))]),
            ("raw_ids", "tokenize", &[name("raw")], &[]),
            ("caption_ids", "tokenize", &[name("caption"), n(16.0)], &[("vocab", Argument::Text("words:512".into()))]),
        ],
        &[("image", "image"), ("raw", "raw_ids"), ("caption", "caption_ids")],
    )
}

#[test]
fn outputs_of_the_recipe() {
    let outputs = recipe().check().unwrap();
    let stated: Vec<String> =
        outputs.iter().map(|(name, o)| format!("{name}: {} {:?} = {}", o.dtype, o.shape, o.value)).collect();
    let expected = ["caption: i32 [16] = caption_ids", "image: f32 [3, 224, 224] = image", "raw: i32 [77] = raw_ids"];
    assert_eq!(stated, expected);
    let crop = RandomAreaCrop { area: (0.7, 1.0), aspect: (0.8, 1.25), attempts: 100 };
    assert_eq!(recipe().ops[0].op, crop.into());
    let sizes: Vec<Option<u32>> = recipe().vocabularies().iter().map(|vocab| vocab.size()).collect();
    assert_eq!(sizes, [Some(49_408), Some(512)]);
}

#[test]
fn evaluation_is_derived() {
    let nodes = recipe().body(Mode::Eval);
    let text: Vec<String> =
        nodes.iter().take(4).map(|n| format!("{} = {}({})", n.name, n.op.name(), n.inputs.join(", "))).collect();
    let expected = [
        "whole = decode_rgb(jpeg)",
        "rgb'shorter = resize_shorter(whole)",
        "rgb = center_crop(rgb'shorter)",
        "image = normalize_rgb(rgb)",
    ];
    assert_eq!(text, expected);
}

#[test]
fn shorter_side_rounds_down() {
    for (height, width, size, expected) in
        [(480, 640, 224, (224, 298)), (640, 480, 224, (298, 224)), (224, 224, 224, (224, 224)), (2, 3000, 4, (4, 6000))]
    {
        assert_eq!(shorter_side(height, width, size), expected, "{height}x{width} to {size}");
    }
}

#[test]
fn survives_bytes() {
    for recipe in [recipe(), recipe().with_bytes()] {
        let bytes = postcard::to_stdvec(&recipe).unwrap();
        assert_eq!(postcard::from_bytes::<Pipeline>(&bytes).unwrap(), recipe);
    }
}

#[test]
fn images_are_delivered_in_bytes() {
    let recipe = recipe().with_bytes();
    let output = &recipe.check().unwrap()["image"];
    assert_eq!((output.dtype, output.shape.as_slice()), (DType::U8, [224, 224, 3].as_slice()));
    let left = Normalization { mean: CLIP_MEAN, std: [0.26862954, 0.26130258, 0.27577711] };
    assert_eq!(recipe.in_bytes(), BTreeMap::from([("image".to_string(), left)]));

    let normalized = |mean: f64| {
        let image = Argument::Tuple(vec![mean; 3]);
        let args = [("mean", image)];
        let lines: &[Line<'_>] = &[
            ("whole", "decode_rgb", &[name("jpeg")], &[]),
            ("rgb", "resize", &[name("whole"), Argument::Number(8.0), Argument::Number(8.0)], &[]),
            ("image", "normalize_rgb", &[name("rgb")], &args),
        ];
        pipeline(lines, &[("image", "image")])
    };
    // What evaluation normalises otherwise is delivered in floats.
    let apart = Pipeline { eval_ops: Some(normalized(0.25).ops), ..normalized(0.5) };
    assert_eq!(apart.clone().with_bytes(), apart);
    let forced = Pipeline { bytes: BTreeSet::from(["image".to_string()]), ..apart.clone() };
    let why = "output `image`: delivered in bytes, but no image that training and evaluation normalise alike";
    assert_eq!(forced.check().unwrap_err().to_string(), why);

    // Another pipeline for whoever takes bytes of this one.
    let own = normalized(0.5).with_bytes();
    assert_eq!(normalized(0.5).like(&own), Ok(own.clone()));
    assert_eq!(normalized(0.5).like(&normalized(0.25)), Ok(normalized(0.5)));
    let std = CLIP_STD;
    assert_eq!(
        normalized(0.25).like(&own).unwrap_err(),
        format!(
            "`image` is normalised by mean [0.5, 0.5, 0.5] and std {std:?} in pipeline `test`, but by mean [0.25, 0.25, 0.25] \
             and std {std:?} in `test`"
        )
    );
    assert!(apart.like(&own).unwrap_err().ends_with("in pipeline `test`, but not at all, or not alike in `test`"));
}

#[track_caller]
fn check_error(lines: &[Line<'_>], outputs: &[(&str, &str)], expected: &str) {
    assert_eq!(pipeline(lines, outputs).check().unwrap_err().to_string(), expected);
}

#[test]
fn errors_of_bodies() {
    let decode: Line<'_> = ("rgb", "decode_rgb", &[name("jpeg")], &[]);
    check_error(
        &[decode, ("x", "normalize_rgb", &[name("rgb")], &[])],
        &[],
        "`normalize_rgb` needs an image of known size; `resize` or `center_crop` it first",
    );
    check_error(
        &[("x", "mirror", &[name("rbg")], &[])],
        &[],
        "unknown value `rbg`; known here: caption, captions, jpeg, raw",
    );
    check_error(&[("x", "mirror", &[name("raw")], &[])], &[], "`mirror` needs one RGB image, but is given a text");
    check_error(
        &[("raw", "decode_rgb", &[name("jpeg")], &[])],
        &[],
        "`raw` is already the name of a value; give this one another",
    );
    let vocab = |text: &str| Argument::Text(text.into());
    check_error(
        &[
            ("ids", "tokenize", &[name("raw"), Argument::Number(16.0), vocab("words:512")], &[]),
            ("masked", "mask_tokens", &[name("ids"), Argument::Number(1.0)], &[]),
        ],
        &[],
        "`ids` are ids of 'words:512', and masked as those of 'clip': write `vocab: 'words:512'`",
    );
    check_error(&[], &[("raw", "raw")], "output `raw`: `raw` is a text, not a tensor; apply `tokenize` to it");
    check_error(
        &[decode],
        &[("image", "rgb")],
        "output `image`: `rgb` is an RGB image of any size, not a tensor; apply `normalize_rgb` to it",
    );
}

fn check_source(source: Source, shuffle: Option<Shuffle>, expected: Result<&[&str], &str>) {
    let pipeline = Pipeline { source, shuffle, ..pipeline(&[], &[]) };
    let fields = pipeline.source.fields();
    let found = pipeline.check().map(|_| fields.keys().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(found.as_deref().map_err(ToString::to_string), expected.map_err(|why| format!("source: {why}")));
}

#[test]
fn errors_of_sources() {
    let folder = |swap_raw| Source::Folder {
        path: "x".into(),
        split: "train".into(),
        eval_split: "test".into(),
        raw: 0,
        caption: 1,
        swap_raw,
        swap_seed: 0,
    };
    check_source(folder(30.0), None, Err("`swap_raw` is a share of samples between 0 and 1, not 30"));
    let records = |labels: &[(&str, u32)]| Source::Recordio {
        path: "x.rec".into(),
        labels: labels.iter().map(|(name, length)| (name.to_string(), *length)).collect(),
    };
    let named = |entries: &[(&str, f64)]| entries.iter().map(|(name, number)| (name.to_string(), *number)).collect();
    let mix = |sources: &[(&str, Source)], weights: &[(&str, f64)], samples| Source::Mix {
        sources: sources.iter().map(|(name, source)| (name.to_string(), source.clone())).collect(),
        weights: named(weights),
        samples,
    };
    let any = || Some(Shuffle::default());
    let (raw, both) = (records(&[("raw", 77)]), records(&[("raw", 77), ("caption", 77)]));
    let check = |sources: &[(&str, Source)], weights: &[(&str, f64)], samples, expected| {
        check_source(mix(sources, weights, samples), any(), expected);
    };
    check(&[("a", raw.clone()), ("b", both.clone())], &[], 0, Ok(&["jpeg", "raw"]));
    check(&[("a", both.clone()), ("b", folder(0.0))], &[("a", 1.0), ("b", 0.5)], 9, Ok(&["jpeg"]));
    check(
        &[("a", folder(0.0)), ("b", folder(2.0))],
        &[],
        0,
        Err("`b`: `swap_raw` is a share of samples between 0 and 1, not 2"),
    );
    check(&[], &[], 0, Err("`sources` names none"));
    let nested = mix(&[("x", raw.clone())], &[], 0);
    check(&[("a", nested)], &[], 0, Err("`a` is a `Mix` in a `Mix`: name all sources in one"));
    let two = [("a", raw.clone()), ("b", raw.clone())];
    check(&two, &[("a", 1.0)], 0, Err("`weights` says nothing of `b`: give every source one"));
    check(&two, &[("a", 1.0), ("b", 0.0)], 0, Err("the weight of `b` is a positive number, not 0"));
    check(&two, &[("a", 1.0), ("b", 1.0), ("c", 1.0)], 0, Err("`weights` names `c`, which is no source"));
    check(&two, &[], 9, Err("`samples` says how long an epoch of a weighted mixture is: give `weights` too"));
    let weighted = mix(&two, &[("a", 1.0), ("b", 1.0)], 0);
    check_source(weighted, None, Err("`weights` are for samples in random order: write `shuffle: ()`"));
    let table = Source::Table {
        path: "x.csv".into(),
        eval_path: String::new(),
        image: "filepath".into(),
        texts: [("raw".to_string(), "title".to_string())].into(),
        root: String::new(),
        key: String::new(),
        separator: "||".into(),
    };
    let named = Source::Files { path: "x".into(), texts: [("jpeg".to_string(), "txt".to_string())].into() };
    check_source(named, None, Err("`jpeg` is the image: call the text otherwise"));
    check_source(records(&[("jpeg", 77)]), None, Err("`jpeg` is the image: call the labels otherwise"));
    check_source(table, None, Err("`separator` is one character, such as `,` or `;`, not \"||\""));
}

#[test]
fn training_and_evaluation_must_agree() {
    let n = Argument::Number;
    let lines = |size: f64| {
        body(&[
            ("rgb", "decode_rgb", &[name("jpeg")], &[]),
            ("small", "resize", &[name("rgb"), n(size), n(size)], &[]),
            ("image", "normalize_rgb", &[name("small")], &[]),
        ])
        .unwrap()
    };
    let mut pipeline = pipeline(&[], &[("image", "image")]);
    pipeline.ops = lines(64.0);
    pipeline.eval_ops = Some(lines(32.0));
    assert_eq!(
        pipeline.check().unwrap_err().to_string(),
        "output `image`: f32 [3, 64, 64] in training but f32 [3, 32, 32] in evaluation; both bodies must deliver the same"
    );
}

#[test]
fn errors_of_calls() {
    let n = Argument::Number;
    let text = |t: &str| Argument::Text(t.into());
    let cases: &[(Line<'_>, &str)] = &[
        (
            ("", "blur", &[], &[]),
            "unknown pipeline op `blur`; known: random_area_crop, decode_rgb, resize, resize_shorter, center_crop, mirror, \
             normalize_rgb, tokenize, random_resized_crop, whole_window, crop, color_jitter, grayscale, solarize, gaussian_blur, \
             rotate, patch_mask, block_mask, prefix, pick, choose, drop, swap, tokenize_all, mask_tokens",
        ),
        (("", "resize", &[n(3.0)], &[]), "`resize` needs a value `rgb` as its first argument"),
        (("", "resize", &[name("rgb"), n(3.0)], &[]), "`resize` needs an argument `width`"),
        (
            ("", "resize", &[name("rgb"), n(3.5), n(3.0)], &[]),
            "argument `height` of `resize` is a whole number from 1 to 65535, not 3.5",
        ),
        (
            ("", "resize", &[name("rgb"), n(3.0), n(3.0), text("lanczos")], &[]),
            "argument `filter` of `resize` is 'triangle' or 'bicubic', not 'lanczos'",
        ),
        (("", "mirror", &[name("rgb")], &[("q", n(0.5))]), "`mirror` has no argument `q`; it has: p"),
        (("", "mirror", &[name("rgb"), n(0.5)], &[("p", n(0.5))]), "argument `p` of `mirror` is given twice"),
        (("", "mirror", &[name("rgb"), n(0.5), n(1.0)], &[]), "`mirror` takes at most 2 arguments"),
        (("", "mirror", &[name("rgb"), n(1.5)], &[]), "`p` is a probability between 0 and 1, not 1.5"),
        (
            ("", "random_area_crop", &[name("jpeg"), Argument::Tuple(vec![0.0, 1.0])], &[]),
            "`area` is a range (low, high) with 0 < low <= high <= 1, not (0, 1)",
        ),
        (
            ("", "tokenize", &[name("raw")], &[("vocab", text("bert"))]),
            "unknown vocabulary 'bert': write 'clip', 'words:SIZE', 'words:SIZE:FILE' or 'file:FILE' for a tokenizer.json",
        ),
        (("", "tokenize", &[name("raw"), n(2.0)], &[]), "`context` must be at least 3, not 2"),
        (("", "crop", &[name("rgb")], &[]), "`crop` needs a value `window` as its second argument"),
        (("", "color_jitter", &[name("rgb")], &[("hue", n(0.6))]), "`hue` is a number between 0 and 0.5, not 0.6"),
        (
            ("", "block_mask", &[n(4.0), n(4.0)], &[]),
            "`least` of 16 patches: no block fits, since at most 6 of 4 x 4 are masked",
        ),
        (("", "rotate", &[name("rgb")], &[]), "`rotate` needs an argument `degrees`"),
        (
            ("", "rotate", &[name("rgb"), Argument::Tuple(vec![30.0, -30.0])], &[]),
            "`degrees` is a range (low, high) with -360 <= low <= high <= 360, not (30, -30)",
        ),
        (
            ("", "rotate", &[name("rgb"), Argument::Tuple(vec![0.0, 1.0])], &[("filter", text("bicubic"))]),
            "argument `filter` of `rotate` is 'nearest' or 'bilinear', not 'bicubic'",
        ),
        (("", "patch_mask", &[n(1000.0), n(1000.0)], &[]), "a grid of 1000x1000 patches: it has at most 65536"),
        (
            ("", "mask_tokens", &[name("ids"), n(49_406.0)], &[]),
            "argument `mask` of `mask_tokens` is a whole number from 0 to 49405, not 49406",
        ),
        (
            ("", "mask_tokens", &[name("ids"), n(3.0)], &[("vocab", text("file:t.json"))]),
            "`mask_tokens` needs start and end of text to be the last ids, which nobody knows of 'file:t.json'; mask ids of 'clip' \
             or 'words:SIZE'",
        ),
        (("", "prefix", &[name("raw"), n(1.0)], &[]), "argument `words` of `prefix` is a string, not 1"),
    ];
    for (line, expected) in cases {
        assert_eq!(body(std::slice::from_ref(line)).unwrap_err(), *expected);
    }
}

/// A call of every op with what else it needs, the kinds of its results, and what evaluation makes of it: nothing (`-`),
/// another op, or itself (`=`).
fn calls() -> Vec<(Line<'static>, ValueKind, &'static str, &'static str)> {
    const SIZED: ValueKind = ValueKind::Rgb { size: Some((6, 8)) };
    const ANY: ValueKind = ValueKind::Rgb { size: None };
    let ids = row(DType::I32, 9);
    let n = Argument::Number;
    let leak = |arguments: Vec<Argument>| &*Box::leak(arguments.into_boxed_slice());
    let x = || name("x");
    let call = |op: &'static str, arguments: Vec<Argument>| -> Line<'static> { ("y", op, leak(arguments), &[]) };
    let turn = Argument::Tuple(vec![-10.0, 10.0]);
    vec![
        (call("random_area_crop", vec![x()]), ValueKind::Encoded, "a crop, a tensor f32 [4]", "whole_window"),
        (call("random_area_crop", vec![x()]), SIZED, "a crop, a tensor f32 [4]", "whole_window"),
        (call("random_resized_crop", vec![x()]), ANY, "a crop, a tensor f32 [4]", "whole_window"),
        (call("whole_window", vec![x()]), ANY, "a crop, a tensor f32 [4]", "="),
        (call("decode_rgb", vec![x()]), ValueKind::Encoded, "an RGB image of any size", "="),
        (call("crop", vec![x(), name("window")]), SIZED, "an RGB image of any size", "="),
        (call("resize", vec![x(), n(3.0), n(4.0)]), ANY, "an RGB image 3x4", "="),
        (call("resize_shorter", vec![x(), n(3.0)]), SIZED, "an RGB image 3x4", "="),
        (call("center_crop", vec![x(), n(3.0), n(4.0)]), ANY, "an RGB image 3x4", "="),
        (call("mirror", vec![x()]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "-"),
        (call("normalize_rgb", vec![x()]), SIZED, "a tensor f32 [3, 6, 8]", "="),
        (call("color_jitter", vec![x(), n(0.4)]), SIZED, "an RGB image 6x8, a tensor f32 [4]", "-"),
        (call("grayscale", vec![x()]), ANY, "an RGB image of any size, a tensor f32 [1]", "-"),
        (call("grayscale", vec![x(), n(1.0)]), ANY, "an RGB image of any size, a tensor f32 [1]", "="),
        (call("solarize", vec![x()]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "-"),
        (call("solarize", vec![x(), n(9.0), n(1.0)]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "="),
        (call("gaussian_blur", vec![x()]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "-"),
        (call("rotate", vec![x(), turn]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "-"),
        (call("rotate", vec![x(), Argument::Tuple(vec![90.0; 2])]), SIZED, "an RGB image 6x8, a tensor f32 [1]", "="),
        (call("patch_mask", vec![n(7.0), n(5.0)]), ANY, "a tensor f32 [35], a tensor i32 [35]", "patch_mask"),
        (call("block_mask", vec![n(7.0), n(5.0), n(0.6)]), ANY, "a tensor f32 [35], a tensor i32 [35]", "block_mask"),
        (call("prefix", vec![x(), Argument::Text("a ".into())]), ValueKind::Texts, "several texts", "="),
        (call("prefix", vec![x(), Argument::Text("a ".into())]), ValueKind::Text, "a text", "="),
        (call("pick", vec![x(), n(2.0)]), ValueKind::Texts, "a text, a tensor f32 [1]", "="),
        (call("choose", vec![x()]), ValueKind::Texts, "a text, a tensor f32 [1]", "pick"),
        (call("drop", vec![x()]), ValueKind::Text, "a text, a tensor f32 [1]", "-"),
        (call("swap", vec![x()]), ValueKind::Text, "a text, a tensor f32 [1]", "-"),
        (call("tokenize", vec![x(), n(9.0)]), ValueKind::Text, "a tensor i32 [9]", "="),
        (
            call("tokenize_all", vec![x(), n(2.0), n(9.0)]),
            ValueKind::Texts,
            "a tensor i32 [2, 9], a tensor f32 [2]",
            "=",
        ),
        (
            call("mask_tokens", vec![x(), n(0.0)]),
            ids,
            "a tensor i32 [9], a tensor i32 [9], a tensor f32 [9]",
            "mask_tokens",
        ),
    ]
}

/// What each op says of itself fits together: as many results as names for them, the same kinds in evaluation, where it draws
/// nothing, and none of them is forgotten here.
#[test]
fn laws_of_all_ops() {
    let mut seen = BTreeSet::new();
    for (line, kind, results, evaluation) in calls() {
        let (op, inputs) = PipelineOp::from_call(line.1, line.2, &[]).unwrap();
        let kinds: Vec<ValueKind> =
            inputs.iter().map(|name| if name == "window" { ValueKind::Crop } else { kind.clone() }).collect();
        let made = op.results(&kinds).unwrap();
        assert_eq!(made.iter().map(ValueKind::to_string).collect::<Vec<_>>().join(", "), results, "{}", line.1);
        let signature = SIGNATURES.iter().find(|signature| signature.name == op.name()).unwrap();
        assert_eq!(made.len(), 1 + signature.further.len(), "{}: a name for each further result", op.name());
        assert!(!signature.doc.is_empty() && op.name() == line.1);
        let then = match op.evaluation() {
            Evaluation::Same | Evaluation::SameFrame => ("=", op.clone()),
            Evaluation::Nothing(neutral) => ("-", neutral),
            Evaluation::Instead(other) => (other.name(), other),
        };
        assert_eq!(then.0, evaluation, "{}", op.name());
        assert!(!then.1.draws(), "{} in evaluation: {:?}", op.name(), then.1);
        assert_eq!(then.1.results(&kinds), Ok(made), "{} in evaluation: {:?}", op.name(), then.1);
        assert_eq!(op.draws(), evaluation != "=");
        seen.insert(op.name());
        // Every kind that it does not take is refused by name.
        let refused = op.results(&[ValueKind::Crop, ValueKind::Texts, ValueKind::Crop]).unwrap_err();
        assert!(refused.starts_with(&format!("`{}` needs ", op.name())), "{refused}");
    }
    let all: BTreeSet<&str> = SIGNATURES.iter().map(|signature| signature.name).collect();
    assert_eq!(seen, all, "a call of each op stands in the table");
}

fn row(dtype: DType, length: u64) -> ValueKind {
    ValueKind::Tensor { dtype, shape: vec![length] }
}

/// A body in which further results are named, and what it is in evaluation.
#[test]
fn evaluation_of_views() {
    let n = Argument::Number;
    let mut views = pipeline(
        &[
            ("whole", "decode_rgb", &[name("jpeg")], &[]),
            ("window", "random_resized_crop", &[name("whole")], &[]),
            ("crop", "crop", &[name("whole"), name("window")], &[]),
            ("gray", "grayscale", &[name("crop"), n(1.0)], &[]),
            ("jittered", "color_jitter", &[name("gray"), n(0.4)], &[]),
            ("small", "resize", &[name("jittered"), n(8.0), n(8.0)], &[]),
            ("plain", "resize", &[name("whole"), n(8.0), n(8.0)], &[]),
            ("flipped", "mirror", &[name("small")], &[]),
            ("one", "normalize_rgb", &[name("flipped")], &[]),
            ("two", "normalize_rgb", &[name("plain")], &[]),
            ("text", "choose", &[name("captions")], &[]),
            ("fewer", "drop", &[name("text")], &[]),
            ("ids", "tokenize", &[name("fewer"), n(9.0)], &[]),
            ("masked", "mask_tokens", &[name("ids"), n(0.0)], &[]),
        ],
        &[
            ("one", "one"),
            ("two", "two"),
            ("ids", "masked"),
            ("targets", "targets"),
            ("place", "place"),
            ("flip", "flip"),
        ],
    );
    for (name, maker, index) in [("place", "window", 1), ("flip", "flipped", 1), ("targets", "masked", 1)] {
        let at = views.ops.iter().position(|node| node.name == maker).unwrap() + 1;
        let node = PipelineNode { name: name.into(), op: PipelineOp::Further { index }, inputs: vec![maker.into()] };
        views.ops.insert(at, node);
    }
    let outputs = views.check().unwrap();
    let kinds: Vec<String> = outputs.iter().map(|(name, o)| format!("{name} {} {:?}", o.dtype, o.shape)).collect();
    let expected =
        ["flip f32 [1]", "ids i32 [9]", "one f32 [3, 8, 8]", "place f32 [4]", "targets i32 [9]", "two f32 [3, 8, 8]"];
    assert_eq!(kinds, expected);
    assert_eq!([views.ids("masked"), views.ids("targets"), views.ids("one")], [Some(49_408), Some(49_408), None]);
    let nodes = views.body(Mode::Eval);
    let text: Vec<String> =
        nodes.iter().map(|n| format!("{} = {}({})", n.name, n.op.name(), n.inputs.join(", "))).collect();
    let expected = [
        "whole = decode_rgb(jpeg)",
        "window = whole_window(whole)",
        "place = a further result(window)",
        "gray = grayscale(whole)",
        "small'shorter = resize_shorter(gray)",
        "small = center_crop(small'shorter)",
        "plain = resize(whole)",
        "flipped = mirror(small)",
        "flip = a further result(flipped)",
        "one = normalize_rgb(flipped)",
        "two = normalize_rgb(plain)",
        "text = pick(captions)",
        "ids = tokenize(text)",
        "masked = mask_tokens(ids)",
        "targets = a further result(masked)",
    ];
    assert_eq!(text, expected);
    assert_eq!(views.with_bytes().bytes, BTreeSet::from(["one".to_string(), "two".to_string()]));
}

#[test]
fn errors_of_further_results() {
    let further = |index, maker: &str| PipelineNode {
        name: "more".into(),
        op: PipelineOp::Further { index },
        inputs: vec![maker.into()],
    };
    let mut views = pipeline(&[("flipped", "mirror", &[name("rgb")], &[])], &[]);
    views.source = Source::Shapes { size: 8, scenes: 1, held_out: 1, seed: 0 };
    views.ops[0].inputs = vec!["image".into()];
    for node in [further(2, "flipped"), further(0, "image")] {
        let mut views = views.clone();
        views.ops.push(node);
        assert_eq!(views.check().unwrap_err().to_string(), "`more` is no further result of an op");
    }
    let own = Pipeline { eval_ops: Some(views.ops.clone()), ..views };
    assert_eq!(own.check().unwrap_err().to_string(), "`mirror` draws, but evaluation is without randomness");
}

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
    let PipelineOp::RandomAreaCrop { area, aspect, attempts } = recipe().ops[0].op else { panic!("not the crop") };
    assert_eq!((area, aspect, attempts), ((0.7, 1.0), (0.8, 1.25), 100));
    let sizes: Vec<u32> = recipe().vocabularies().iter().map(|vocab| vocab.size()).collect();
    assert_eq!(sizes, [49_408, 512]);
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
    check_error(&[("x", "mirror", &[name("rbg")], &[])], &[], "unknown value `rbg`; known here: caption, jpeg, raw");
    check_error(&[("x", "mirror", &[name("raw")], &[])], &[], "`mirror` needs one RGB image, but is given a text");
    check_error(
        &[("raw", "decode_rgb", &[name("jpeg")], &[])],
        &[],
        "`raw` is already the name of a value; give this one another",
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
        separator: "||".into(),
    };
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
             normalize_rgb, tokenize",
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
            "unknown vocabulary 'bert': write 'clip', 'words:SIZE' or 'words:SIZE:FILE'",
        ),
        (("", "tokenize", &[name("raw"), n(2.0)], &[]), "`context` must be at least 3, not 2"),
    ];
    for (line, expected) in cases {
        assert_eq!(body(std::slice::from_ref(line)).unwrap_err(), *expected);
    }
}

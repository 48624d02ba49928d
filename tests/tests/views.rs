//! The pipeline of the documentation: several views of a sample, and what was drawn for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alip_compiler::diag::SourceMap;
use alip_compiler::{Checked, check, resolve};
use alip_plan::pipeline::{Mode, Pipeline};
use alip_runtime::data::{Loader, LoaderOptions, open_source};
use alip_runtime::tensor::{Data, HostTensor};

const BATCH: usize = 32;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn two_views() -> Pipeline {
    let mut sources = SourceMap::new();
    let path = root("examples/pipelines/two_views.ron");
    let checked = check(&mut sources, path.to_str().expect("UTF-8"), &resolve::Options::default());
    match checked.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))) {
        Checked::Pipeline(pipeline) => pipeline,
        other => panic!("not a pipeline: {other:?}"),
    }
}

fn batch(pipeline: &Pipeline, options: &LoaderOptions) -> BTreeMap<String, HostTensor> {
    let source = open_source(&pipeline.source, options.mode).expect("rendered scenes need no files");
    let mut loader = Loader::new(pipeline, source, options).expect("a pipeline that was checked");
    loader.next().expect("scenes can be rendered").expect("a batch").tensors
}

fn bytes(tensor: &HostTensor) -> &[u8] {
    match tensor.data() {
        Data::U8(bytes) => bytes,
        other => panic!("an image of {other:?}"),
    }
}

fn floats(tensor: &HostTensor) -> &[f32] {
    match tensor.data() {
        Data::F32(numbers) => numbers,
        other => panic!("numbers of {other:?}"),
    }
}

/// In training every sample has two views, in bytes like any image; in evaluation both are the whole image, nothing is masked,
/// and texts are as they were.
#[test]
fn two_views_of_a_sample() {
    let pipeline = two_views().with_bytes();
    assert_eq!(Vec::from_iter(&pipeline.bytes), ["one", "two"]);
    let train = batch(&pipeline, &LoaderOptions { workers: 2, ..LoaderOptions::train(3, BATCH) });
    let pairs = |made: &BTreeMap<String, HostTensor>| {
        let [one, two] = ["one", "two"].map(|view| bytes(&made[view]).chunks(32 * 32 * 3).map(<[u8]>::to_vec));
        one.zip(two).filter(|(one, two)| one == two).count()
    };
    assert_eq!(pairs(&train), 0, "views differ");
    let places: Vec<&[f32]> = floats(&train["place"]).chunks(4).collect();
    assert!(places.iter().all(|place| place[2] * place[3] > 0.25 && place[0] + place[2] <= 1.0), "{places:?}");
    assert!(places.iter().any(|place| place[0] > 0.0), "{places:?}");
    let masked = floats(&train["mask"]).chunks(16).map(|mask| mask.iter().sum::<f32>());
    assert!(masked.into_iter().all(|masked| masked == 8.0));
    assert!(floats(&train["drawn"]).contains(&1.0));

    let eval = batch(&pipeline, &LoaderOptions::eval(BATCH));
    assert_eq!(pairs(&eval), BATCH, "the whole image twice");
    assert!(floats(&eval["place"]).chunks(4).all(|place| place == [0.0, 0.0, 1.0, 1.0]));
    assert_eq!(eval["masked"], eval["ids"]);
    for zero in ["mask", "drawn"] {
        assert!(floats(&eval[zero]).iter().all(|number| *number == 0.0), "{zero}");
    }
    // `other` has no prefix: its words are those behind the three of `a photo of`; the last id may be the end of a text that was cut.
    for (ids, other) in
        std::iter::zip(eval["ids"].as_i32().unwrap().chunks(32), eval["other"].as_i32().unwrap().chunks(32))
    {
        assert_eq!(ids[4..31], other[1..28], "{ids:?} {other:?}");
    }
    assert!(two_views().body(Mode::Eval).iter().all(|node| !node.op.draws()));
}

/// The documentation shows this pipeline and no other.
#[test]
fn the_documentation_shows_it() {
    let read = |path: &str| std::fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (spec, docs) = (read("examples/pipelines/two_views.ron"), read("docs/data.md"));
    let shown = spec
        .lines()
        .skip_while(|line| !line.starts_with("    body"))
        .take_while(|line| !line.starts_with("    outputs"));
    for line in shown {
        assert!(docs.contains(line.trim()), "docs/data.md lacks `{}`", line.trim());
    }
}

//! Models made small, so that a step of any graph takes a test a second.

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::{Options, resolve};

/// The graph that [`small`] describes.
pub const NAME: &str = "small";

/// What makes a model small. A graph takes those that it has a place for, each line as a whole.
const SMALLER: [&[&str]; 5] = [
    &["dims.T=16"],
    &["dims.D=32"],
    &["parts.visual.layers=2", "parts.visual.width=96"],
    &["parts.visual.blocks=[1, 2, 1, 1]", "parts.visual.width=8", "parts.visual.heads=4"],
    &["parts.text.layers=2", "parts.text.width=96", "parts.text.vocab=300"],
];

/// A graph with fewer layers, heads and samples, and without data, whose shapes would not fit.
pub fn small(graph: &str) -> Options {
    let resolves = |options: &Options| resolve(&mut SourceMap::new(), NAME, options).is_ok();
    let image = r#"inputs: { "image": (dtype: F32, shape: "[B, 3, 64, 64]") }"#;
    let data = |data| format!(r#"Graph(name: "small", base: "{graph}", {data} {image})"#);
    let with = |text: String, set: &[&str]| Options {
        batch: Some(4),
        set: set.iter().map(|set| (*set).to_owned()).collect(),
        files: [("small.ron".to_owned(), text)].into(),
        embedded_only: false,
    };
    let text = ["data: None,", ""].map(data).into_iter().find(|text| {
        // The image's size is not the tower's yet.
        resolves(&with(text.clone(), &["parts.visual.image=64"]))
    });
    let text = text.unwrap_or_else(|| panic!("{graph} cannot be made small"));
    let mut set = vec!["parts.visual.image=64"];
    for more in SMALLER {
        let both = [set.as_slice(), more].concat();
        if resolves(&with(text.clone(), &both)) {
            set = both;
        }
    }
    with(text, &set)
}

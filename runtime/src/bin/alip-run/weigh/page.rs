//! The page of a data set that was weighed.

use std::path::Path;

use alip_plan::pipeline::Pipeline;
use alip_runtime::data::{Field, SampleSource, Tokenizer};
use alip_runtime::eval::Weighed;
use alip_runtime::eval::measures::histogram;
use alip_runtime::train::report::Picture;
use alip_runtime::train::report::sheet::{self, Bars, Sheet, Shown};

use crate::{Failure, Outcome};

/// As many as a person looks at.
const SHOWN: usize = 48;

/// Bins of weights and of cosines.
const BINS: usize = 40;

/// A number that every sample has, with its name.
type Column<'a> = (&'a str, fn(&Weighed) -> f32);

/// Writes the page; `ranked` has places in `found`, the most doubted first.
pub(super) fn write(
    path: &Path,
    pipeline: &Pipeline,
    source: &dyn SampleSource,
    found: &[Weighed],
    ranked: &[usize],
) -> Outcome<()> {
    let bars = |title: &str, axis: &str, low: f64, columns: &[Column<'_>]| Bars {
        title: title.into(),
        axis: axis.into(),
        groups: columns
            .iter()
            .map(|(name, of)| {
                let values: Vec<f32> = found.iter().map(of).collect();
                (name.to_string(), histogram(&values, low, 1.0, BINS))
            })
            .collect(),
    };
    let shown = SHOWN.min(ranked.len());
    let sheet = Sheet {
        title: format!("{}, weighed", pipeline.name),
        summary: format!(
            "The sample weight is 1 where raw text and synthetic caption agree as much as they do on average, and less where they \
             do not. Below, the {shown} samples of smallest weight."
        ),
        facts: vec![
            ("source".into(), pipeline.source.kind().into()),
            ("samples".into(), found.len().to_string()),
            ("below one half".into(), found.iter().filter(|sample| sample.weight < 0.5).count().to_string()),
        ],
        bars: vec![
            bars("Sample weight", "sample weight", 0.0, &[("samples", |sample| sample.weight)]),
            bars(
                "Similarities",
                "cosine",
                -1.0,
                &[
                    ("raw text and caption", |sample| sample.text_similarity),
                    ("image and raw text", |sample| sample.raw_similarity),
                    ("image and caption", |sample| sample.caption_similarity),
                ],
            ),
        ],
        samples: ranked[..shown].iter().map(|&at| card(source, &found[at])).collect(),
    };
    sheet::write(&sheet, path).map_err(Failure::message)
}

/// A sample as its source has it, with what was found.
fn card(source: &dyn SampleSource, sample: &Weighed) -> Shown {
    let mut shown = Shown { name: source.name(sample.row), ..Shown::default() };
    // What could be read a moment ago may be gone: then its name and numbers are shown.
    for (name, field) in source.sample(sample.row).map(|read| read.fields).unwrap_or_default() {
        match &field {
            Field::Text(text) => shown.lines.push((name, text.clone())),
            Field::Tokens(ids) => shown.lines.push((name, Tokenizer::clip().decode(ids))),
            Field::Texts(_) => {}
            Field::Encoded(_) | Field::Rgb(_) => {
                shown.pictures.extend(Picture::of(&field).map(|picture| (String::new(), picture)));
            }
        }
    }
    let numbers = [
        ("weight", sample.weight),
        ("text similarity", sample.text_similarity),
        ("image and raw text", sample.raw_similarity),
        ("image and caption", sample.caption_similarity),
    ];
    shown.lines.extend(numbers.map(|(name, value)| (name.to_string(), format!("{value:.3}"))));
    shown
}

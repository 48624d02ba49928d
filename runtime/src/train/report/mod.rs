//! The report of a run: one HTML page that needs nothing else, neither a server nor the network.
//!
//! The page is a function of [`Report`], which is plain data: whoever trained fills it in. All text is escaped here, nowhere
//! else. A comparison is worded from the numbers, in the same words whichever run is ahead.

mod chart;
mod page;
pub mod sheet;
pub mod suite;

use crate::data::{DecodeLimits, Field, RgbImage, decode_rgb, resize};
use crate::file::{FileError, write_bytes};
use alip_plan::pipeline::Filter;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything the page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The headline, e.g. the name of the graph.
    pub title: String,
    /// What was done, in a sentence or two.
    pub summary: String,
    /// Facts about the run, name and value: graph, parameters, device, steps, samples/s, wall time, seed.
    pub facts: Vec<(String, String)>,
    /// What the model can do.
    pub measures: Vec<Measure>,
    /// Another run on the same data whose results stand in [`Measure::other`].
    pub other: Option<Other>,
    /// Metrics over steps.
    pub charts: Vec<Chart>,
    /// How the sample weight tells right raw texts from wrong ones.
    pub weights: Option<Weights>,
    /// A few images with their texts and what the model finds for them.
    pub samples: Vec<Sample>,
    /// Remarks at the end, a paragraph each: skipped samples, warnings, how to repeat the run.
    pub notes: Vec<String>,
}

/// A result against chance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// E.g. "image to text R@1"; no commas, since names are listed in the comparison.
    pub name: String,
    /// The result, 0 to 1; higher is better.
    pub value: f64,
    /// What guessing gives.
    pub chance: f64,
    /// The result of the other run.
    pub other: Option<f64>,
    /// Number of queries or images; of the smaller group for an area under a curve.
    pub count: usize,
    /// How to write the number.
    pub unit: Unit,
}

/// How to write a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// A share, in per cent and as a multiple of chance.
    Share,
    /// An area under the ROC curve, 0.5 by chance.
    Area,
}

/// The run that is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// What is the same and what differs.
    pub summary: String,
}

/// A chart of metrics over steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Lines, up to five.
    pub series: Vec<Series>,
}

/// One line of a chart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Step and value, by step; a value that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
}

/// Sample weights, 0 to 1, of two groups of samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Of samples whose raw text describes their image.
    pub right: Vec<f32>,
    /// Of samples whose raw text describes another one.
    pub wrong: Vec<f32>,
}

/// An image, its texts, and what the model finds for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The image.
    pub picture: Picture,
    /// The web text.
    pub raw: String,
    /// The synthetic caption.
    pub caption: String,
    /// Whether the raw text describes another image.
    pub raw_is_wrong: bool,
    /// The sample weight.
    pub weight: Option<f64>,
    /// The texts nearest to the image, best first.
    pub found: Vec<Found>,
}

/// A text that the model finds for an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The text.
    pub text: String,
    /// Whether it belongs to the image.
    pub is_right: bool,
}

/// An 8-bit RGB image as plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Rows from the top, three bytes per pixel.
    pub pixels: Vec<u8>,
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Picture {
        Picture { width: image.width, height: image.height, pixels: image.pixels }
    }
}

/// The longer side of pictures in pixels.
const SIDE: u32 = 96;

impl Picture {
    /// The image of a field, small enough to show; none of what is no image, or cannot be decoded.
    pub fn of(field: &Field) -> Option<Picture> {
        let image = match field {
            Field::Rgb(image) => image.clone(),
            Field::Encoded(bytes) => decode_rgb(bytes, DecodeLimits::default()).ok()?,
            Field::Text(_) | Field::Texts(_) | Field::Tokens(_) => return None,
        };
        let longest = image.width.max(image.height);
        if longest <= SIDE {
            return Some(image.into());
        }
        let scaled = |side: u32| (u64::from(side) * u64::from(SIDE) / u64::from(longest)).max(1) as u32;
        Some(resize(&image, scaled(image.height), scaled(image.width), Filter::Triangle).into())
    }
}

/// The report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be written to {}: {source}; choose another place with {option}", path.display())]
pub struct WriteError {
    path: PathBuf,
    option: &'static str,
    source: std::io::Error,
}

/// The page as HTML.
pub fn render(report: &Report) -> String {
    page::render(report)
}

/// Writes the page to `path`: beside it first, then renamed, so that no half page is ever seen.
///
/// # Errors
/// When the file cannot be created or renamed.
pub fn write(report: &Report, path: &Path) -> Result<(), WriteError> {
    write_page(&render(report), path, "--report")
}

/// Writes a page, whose place the user says with this option.
fn write_page(page: &str, path: &Path, option: &'static str) -> Result<(), WriteError> {
    write_bytes(path, page.as_bytes()).map_err(|error| {
        let source = match error {
            FileError::Io { source, .. } => source,
            other => std::io::Error::other(other),
        };
        WriteError { path: path.to_path_buf(), option, source }
    })
}

/// Text as HTML, for content and for quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;

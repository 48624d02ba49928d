//! A contact sheet: samples as a model sees them.

use std::fmt::Write;
use std::path::Path;

use super::chart::histograms;
use super::page::{data_uri, document, facts};
use super::{Picture, WriteError, escape, write_page};
use crate::eval::measures::Histogram;

/// Everything the page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    /// The headline, e.g. the name of the pipeline.
    pub title: String,
    /// What it shows, in a sentence or two.
    pub summary: String,
    /// Facts about the data, name and value.
    pub facts: Vec<(String, String)>,
    /// Distributions, above the samples.
    pub bars: Vec<Bars>,
    /// The samples.
    pub samples: Vec<Shown>,
}

/// Histograms over the same bins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bars {
    /// What they show.
    pub title: String,
    /// What the bins are of.
    pub axis: String,
    /// Name and counts of each, up to five.
    pub groups: Vec<(String, Histogram)>,
}

/// A sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// What its source calls it.
    pub name: String,
    /// Its images, by the name of the output.
    pub pictures: Vec<(String, Picture)>,
    /// Whatever else is delivered or known, name and text.
    pub lines: Vec<(String, String)>,
}

/// The page as HTML.
pub fn render(sheet: &Sheet) -> String {
    let mut body = format!("<h1>{}</h1><p class=\"soft\">{}</p>", escape(&sheet.title), escape(&sheet.summary));
    body += &facts(&sheet.facts);
    for Bars { title, axis, groups } in &sheet.bars {
        let groups: Vec<(&str, &Histogram)> = groups.iter().map(|(name, counts)| (name.as_str(), counts)).collect();
        body += &histograms(title, axis, &groups);
    }
    body += "<div class=\"sheet\">";
    body.extend(sheet.samples.iter().map(shown));
    body += "</div>";
    document(&sheet.title, &body)
}

/// Writes the page to `path`: beside it first, then renamed.
///
/// # Errors
/// When the file cannot be created or renamed.
pub fn write(sheet: &Sheet, path: &Path) -> Result<(), WriteError> {
    write_page(&render(sheet), path, "--html")
}

fn shown(sample: &Shown) -> String {
    let mut out = String::from("<div class=\"card\"><div class=\"views\">");
    for (name, picture) in &sample.pictures {
        if let Some(uri) = data_uri(picture) {
            let name = escape(name);
            let _ = write!(out, "<figure><img src=\"{uri}\" alt=\"{name}\"><figcaption>{name}</figcaption></figure>");
        }
    }
    out += "</div>";
    let lines = sample.lines.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    for (name, text) in lines.chain([("sample", sample.name.as_str())]) {
        let _ = write!(out, "<p><span class=\"label\">{}</span>{}</p>", escape(name), escape(text));
    }
    out + "</div>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_shown_with_their_texts() {
        let picture = Picture { width: 2, height: 1, pixels: vec![0, 1, 2, 3, 4, 5] };
        let sheet = Sheet {
            title: "flickr8k".into(),
            summary: "As a model sees them.".into(),
            facts: vec![("samples".into(), "6,000".into())],
            bars: Vec::new(),
            samples: vec![Shown {
                name: "images/a.jpg".into(),
                pictures: vec![("image".into(), picture.clone()), ("second".into(), picture)],
                lines: vec![("raw".into(), "a <b>cat</b>".into())],
            }],
        };
        let page = render(&sheet);
        assert_eq!(page.matches("<img src=\"data:image/png;base64,").count(), 2);
        for part in ["<figcaption>second</figcaption>", "a &lt;b&gt;cat&lt;/b&gt;", "images/a.jpg", "<dd>6,000</dd>"] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("<b>cat"), "texts are no markup");
    }
}

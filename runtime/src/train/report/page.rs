//! The parts of the page.

use super::{Measure, Other, Picture, Report, Sample, Unit, Weights, chart, escape};
use crate::eval::measures::{auc, histogram};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageEncoder;
use image::codecs::png::PngEncoder;
use std::fmt::Write;

/// Bins of the weight histogram.
const BINS: usize = 20;

pub(super) fn render(report: &Report) -> String {
    let mut body = format!("<h1>{}</h1><p class=\"soft\">{}</p>", escape(&report.title), escape(&report.summary));
    body += &facts(&report.facts);
    if !report.measures.is_empty() {
        body += &measures(&report.measures, report.other.as_ref());
    }
    if let Some(weights) = &report.weights {
        body += &weights_section(weights);
    }
    if !report.charts.is_empty() {
        body += "<h2>Training</h2><div class=\"grid\">";
        body.extend(report.charts.iter().map(chart::lines));
        body += "</div>";
    }
    if !report.samples.is_empty() {
        body += "<h2>Samples</h2><div class=\"grid roomy\">";
        body.extend(report.samples.iter().map(sample));
        body += "</div>";
    }
    if !report.notes.is_empty() {
        body += "<footer>";
        body.extend(report.notes.iter().map(|note| format!("<p>{}</p>", escape(note))));
        body += "</footer>";
    }
    document(&report.title, &body)
}

/// A whole page around what it shows.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        escape(title),
        include_str!("style.css")
    )
}

pub(super) fn facts(facts: &[(String, String)]) -> String {
    let items =
        facts.iter().map(|(name, value)| format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value)));
    format!("<dl class=\"facts\">{}</dl>", items.collect::<String>())
}

fn measures(measures: &[Measure], other: Option<&Other>) -> String {
    let mut out = String::from("<h2>Results</h2>");
    if let Some(other) = other {
        let _ = write!(out, "<p>{}</p><p>{}</p>", escape(&other.summary), escape(&verdict(measures, &other.name)));
    }
    out += "<div class=\"card wide\"><table><thead><tr><th>held-out</th><th>this run</th>";
    if let Some(other) = other {
        let _ = write!(out, "<th>{}</th>", escape(&other.name));
    }
    out += "<th>chance</th><th>times chance</th><th></th></tr></thead><tbody>";
    for measure in measures {
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"value\">{}</td>",
            escape(&measure.name),
            number(measure.value, measure.unit)
        );
        if other.is_some() {
            let value = measure.other.map_or("–".into(), |value| number(value, measure.unit));
            let _ = write!(out, "<td>{value}</td>");
        }
        let times = match measure.unit {
            Unit::Share if measure.chance > 0.0 => times(measure.value / measure.chance),
            _ => "–".into(),
        };
        let bar = chart::bar(measure.value, measure.other.filter(|_| other.is_some()), measure.chance);
        let chance = number(measure.chance, measure.unit);
        let _ = write!(out, "<td>{chance}</td><td>{times}</td><td class=\"bar\">{bar}</td></tr>");
    }
    out += "</tbody></table></div><p class=\"label\">Bars run from 0 to 1; the grey mark is chance";
    out + if other.is_some() { ", the thin bar the other run.</p>" } else { ".</p>" }
}

/// How this run stands against another, in words. A difference counts when it exceeds two standard errors; each share's is
/// that of a binomial, which for an area under the ROC curve is an upper bound with the smaller group's size (Birnbaum and
/// Klose 1957).
pub(super) fn verdict(measures: &[Measure], other: &str) -> String {
    const ERRORS: f64 = 2.0;
    let [mut higher, mut lower, mut even] = [const { Vec::new() }; 3];
    for measure in measures {
        let Some(theirs) = measure.other else { continue };
        let variance = |share: f64| share * (1.0 - share) / measure.count.max(1) as f64;
        let error = (variance(measure.value) + variance(theirs)).sqrt();
        let difference = measure.value - theirs;
        if !difference.is_finite() {
            continue;
        }
        let list = match difference {
            d if d > ERRORS * error => &mut higher,
            d if d < -ERRORS * error => &mut lower,
            _ => &mut even,
        };
        list.push(measure.name.as_str());
    }
    let parts = [("this run is ahead on", higher), ("behind on", lower), ("no clear difference on", even)];
    let said: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {}", names.join(", ")))
        .collect();
    if said.is_empty() {
        return format!("No measure of {other} is there to compare.");
    }
    format!("Against {other}: {} (a difference counts from two standard errors).", said.join("; "))
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        _ if !value.is_finite() => "–".into(),
        Unit::Share if value < 0.01 => format!("{:.2}\u{202f}%", 100.0 * value),
        Unit::Share => format!("{:.1}\u{202f}%", 100.0 * value),
        Unit::Area => format!("{value:.3}"),
    }
}

fn times(ratio: f64) -> String {
    if !ratio.is_finite() {
        return "–".into();
    }
    if ratio < 10.0 { format!("{ratio:.1}×") } else { format!("{ratio:.0}×") }
}

fn weights_section(weights: &Weights) -> String {
    let mut out = String::from("<h2>Does the weight know a wrong text?</h2>");
    out += match auc(&weights.right, &weights.wrong) {
        Some(area) => format!(
            "<p>The language-consistency gate weighs a sample by how well its raw text agrees with its caption. A right raw \
             text weighs more than a wrong one with probability <b>{area:.3}</b> (area under the ROC curve, ties counting \
             half; 0.5 is chance).</p>"
        ),
        None => "<p>There are not both right and wrong raw texts to compare.</p>".into(),
    }
    .as_str();
    let (right, wrong) = (histogram(&weights.right, 0.0, 1.0, BINS), histogram(&weights.wrong, 0.0, 1.0, BINS));
    let groups = [("right raw text", &right), ("wrong raw text", &wrong)];
    out + &chart::histograms("Sample weight", "sample weight", &groups)
}

fn sample(sample: &Sample) -> String {
    let picture = match data_uri(&sample.picture) {
        Some(uri) => format!("<img src=\"{uri}\" alt=\"{}\">", escape(&sample.caption)),
        None => "<p class=\"soft\">(no picture: its size does not fit its pixels)</p>".into(),
    };
    let tag = if sample.raw_is_wrong { " · <span class=\"tag\">describes another image</span>" } else { "" };
    let weight = sample.weight.map_or(String::new(), |weight| format!(" · weight {weight:.2}"));
    let found = sample.found.iter().map(|found| {
        let mark = if found.is_right { " <span class=\"hit\">✓</span>" } else { "" };
        format!("<li>{}{mark}</li>", escape(&found.text))
    });
    format!(
        "<div class=\"card sample\">{picture}<div><p><span class=\"label\">caption</span>{}</p>\
         <p><span class=\"label\">raw text{weight}{tag}</span>{}</p>\
         <span class=\"label\">nearest captions</span><ol>{}</ol></div></div>",
        escape(&sample.caption),
        escape(&sample.raw),
        found.collect::<String>()
    )
}

/// The picture as a PNG inside a URI; `None` when its pixels are not width * height * 3.
pub(super) fn data_uri(picture: &Picture) -> Option<String> {
    let expected = u64::from(picture.width) * u64::from(picture.height) * 3;
    if expected == 0 || picture.pixels.len() as u64 != expected {
        return None;
    }
    let mut png = Vec::new();
    let colour = image::ExtendedColorType::Rgb8;
    PngEncoder::new(&mut png).write_image(&picture.pixels, picture.width, picture.height, colour).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

//! The page of a suite: its table beside published figures, and of every set what is behind its figures.

use std::fmt::Write;
use std::path::Path;

use super::page::{data_uri, document, facts};
use super::{Picture, WriteError, chart, escape, write_page};
use crate::eval::measures::ZeroShot;
use crate::eval::results::{Figures, Found, Line, Measured, Pair, SetResults, SuiteResults, Table};

/// Most classes that have a line each; of more, so many of the best and of the worst have.
const MOST_LINES: usize = 60;

/// Finds the picture of an image by the name of its set and its number there.
pub type Pictures<'a> = &'a dyn Fn(&str, u64) -> Option<Picture>;

/// The page as HTML.
pub fn render(results: &SuiteResults, table: &Table, pictures: Pictures<'_>) -> String {
    let title = format!("{} on {}", results.graph, results.suite);
    let mut body = format!("<h1>{}</h1><p class=\"soft\">{}.</p>", escape(&title), escape(&results.model()));
    if let Some(caution) = results.caution() {
        let _ = write!(body, "<p class=\"tag\">{}.</p>", escape(caution));
    }
    let there = results.sets.iter().filter(|set| matches!(set.found, Found::Measured(_))).count();
    let (images, skipped) = results.sets.iter().fold((0, 0), |sum, set| match &set.found {
        Found::Measured(measured) => (sum.0 + measured.images, sum.1 + measured.skipped),
        Found::Absent(_) | Found::Failed(_) => sum,
    });
    body += &facts(&[
        ("suite".into(), results.suite.clone()),
        ("sets".into(), format!("{there} of {}", results.sets.len())),
        ("images".into(), images.to_string()),
        ("could not be read".into(), skipped.to_string()),
    ]);
    body += "<h2>Results</h2>";
    body += &lines(table);
    for (methods, source) in &table.sources {
        let _ = write!(body, "<p class=\"soft\">{}: {}.</p>", escape(&methods.join(", ")), escape(source));
    }
    for (title, remark) in results.remarks() {
        let _ = write!(body, "<p class=\"soft\">{}: {}.</p>", escape(title), escape(remark));
    }
    for set in &results.sets {
        if let Found::Measured(measured) = &set.found {
            body += &section(set, measured, pictures);
        }
    }
    document(&title, &body)
}

/// Writes the page to `path`: beside it first, then renamed.
///
/// # Errors
/// When the file cannot be created or renamed.
pub fn write(results: &SuiteResults, table: &Table, pictures: Pictures<'_>, path: &Path) -> Result<(), WriteError> {
    write_page(&render(results, table, pictures), path, "--out")
}

fn lines(table: &Table) -> String {
    let mut out = String::from(
        "<div class=\"card wide\"><table><thead><tr><th>set</th><th></th><th>this model</th><th>chance</th>",
    );
    table.methods.iter().for_each(|method| {
        let _ = write!(out, "<th>{}</th>", escape(method));
    });
    out += "</tr></thead><tbody>";
    for Line { title, figure, value, chance, published } in &table.lines {
        let _ = write!(out, "<tr><td>{}</td><td class=\"what\">{}</td>", escape(title), escape(figure));
        match value {
            Ok(value) => {
                let _ = write!(
                    out,
                    "<td class=\"value\">{}</td><td>{}</td>",
                    share(*value),
                    chance.map_or("–".into(), share)
                );
                for theirs in published {
                    let _ = write!(out, "<td>{}</td>", theirs.map_or("–".into(), |theirs| format!("{theirs:.1}")));
                }
            }
            Err(why) => {
                let _ = write!(out, "<td class=\"soft\" colspan=\"{}\">{}</td>", 2 + table.methods.len(), escape(why));
            }
        }
        out += "</tr>";
    }
    let named = if table.methods.is_empty() { "" } else { "; published figures are those of the tables named below" };
    out + &format!("</tbody></table></div><p class=\"label\">Per cent{named}.</p>")
}

fn share(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

fn section(set: &SetResults, measured: &Measured, pictures: Pictures<'_>) -> String {
    let mut out = format!("<h2>{}</h2>", escape(&set.title));
    let mut about: Vec<(String, String)> = vec![
        ("images".into(), measured.images.to_string()),
        ("could not be read".into(), measured.skipped.to_string()),
    ];
    about.extend(set.figures().into_iter().map(|figure| (figure.name, format!("{} %", share(figure.value)))));
    match &measured.figures {
        Figures::Classes { names, templates, accuracy, confusion, .. } => {
            about.push(("texts per class".into(), templates.to_string()));
            out += &facts(&about);
            out += &classes(names, accuracy, confusion.as_deref());
        }
        Figures::Probe { names, probe, confusion } => {
            about.push(("trained on".into(), probe.trained_on.to_string()));
            about.push(("c".into(), format!("{:.4}", probe.c)));
            out += &facts(&about);
            out += &classes(names, &probe.accuracy, confusion.as_deref());
        }
        Figures::Retrieval { recall, pairs } => {
            about.push(("captions".into(), recall.texts.to_string()));
            out += &facts(&about);
            let (best, worst): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|pair| pair.rank == 0);
            for (title, pairs) in [("Found first, most surely", best), ("Found last", worst)] {
                if !pairs.is_empty() {
                    let _ = write!(out, "<h3 class=\"part\">{title}</h3><div class=\"pairs\">");
                    out.extend(pairs.into_iter().map(|pair| shown(pair, |image| pictures(&set.name, image))));
                    out += "</div>";
                }
            }
        }
    }
    out + &format!("<p class=\"label\">{}</p>", escape(&measured.place.display().to_string()))
}

/// The share of each class as a bar, the best first, and of few classes what was taken for what.
fn classes(names: &[String], accuracy: &ZeroShot, confusion: Option<&[Vec<usize>]>) -> String {
    let mut order: Vec<(usize, f64)> = accuracy
        .per_class
        .iter()
        .enumerate()
        .filter(|(_, (_, all))| *all > 0)
        .map(|(class, &(right, all))| (class, right as f64 / all as f64))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let row = |&(class, share): &(usize, f64)| {
        let (right, all) = accuracy.per_class[class];
        let bar = chart::bar(share, None, accuracy.chance);
        format!("<tr><td>{}</td><td>{right} of {all}</td><td class=\"bar\">{bar}</td></tr>", escape(&names[class]))
    };
    let mut out = String::from(
        "<div class=\"card wide\"><table><thead><tr><th>class</th><th>right</th><th></th></tr></thead><tbody>",
    );
    if order.len() <= MOST_LINES {
        out.extend(order.iter().map(row));
    } else {
        let half = MOST_LINES / 2;
        out.extend(order[..half].iter().map(row));
        let _ =
            write!(out, "<tr><td class=\"soft\" colspan=\"3\">{} classes between</td></tr>", order.len() - 2 * half);
        out.extend(order[order.len() - half..].iter().map(row));
    }
    out += "</tbody></table></div>";
    out + &confusion.map_or_else(String::new, |table| confused(names, table))
}

/// A table with a row for each right class and a column for each that was found, darker where there are more.
fn confused(names: &[String], table: &[Vec<usize>]) -> String {
    let mut out = String::from(
        "<h3 class=\"part\">What was taken for what</h3><div class=\"card wide\"><table class=\"confusion\"><thead><tr><th></th>",
    );
    names.iter().for_each(|name| {
        let _ = write!(out, "<th>{}</th>", escape(name));
    });
    out += "</tr></thead><tbody>";
    for (name, row) in names.iter().zip(table) {
        let all = row.iter().sum::<usize>().max(1);
        let _ = write!(out, "<tr><td>{}</td>", escape(name));
        for (found, &count) in names.iter().zip(row) {
            let depth = 100 * count / all;
            let _ = write!(
                out,
                "<td style=\"background:color-mix(in srgb, var(--s0) {depth}%, transparent)\" title=\"{} taken for {}\">{}</td>",
                escape(name),
                escape(found),
                if count > 0 { count.to_string() } else { String::new() }
            );
        }
        out += "</tr>";
    }
    out + "</tbody></table></div>"
}

fn shown(pair: &Pair, picture: impl Fn(u64) -> Option<Picture>) -> String {
    let image = |(name, index): &(String, u64), label: &str| {
        let uri = picture(*index).as_ref().and_then(data_uri);
        let name = escape(name);
        let image = uri.map_or_else(
            || format!("<p class=\"soft\">{name}</p>"),
            |uri| format!("<img src=\"{uri}\" alt=\"{name}\">"),
        );
        format!("<figure>{image}<figcaption>{label}</figcaption></figure>")
    };
    let mut views = image(&pair.own, if pair.rank == 0 { "" } else { "its own image" });
    if let Some(found) = &pair.found {
        views += &image(found, "found first");
    }
    let before = if pair.rank == 0 {
        String::new()
    } else {
        format!("<span class=\"label\">{} images before its own</span>", pair.rank)
    };
    format!("<div class=\"card\"><div class=\"views\">{views}</div><p>{}</p>{before}</div>", escape(&pair.text))
}

//! Diagnostics as text, through `annotate-snippets`.

use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Element, Level, Renderer, Snippet};

use super::source::floor_char_boundary;
use super::{Diagnostic, Label, Severity, SourceId, SourceMap};

/// Wide enough that no line of a spec is cut; the same on every terminal, since filetests compare the text.
const WIDTH: usize = 200;

pub(super) fn render(diagnostic: &Diagnostic, sources: &SourceMap, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut elements: Vec<Element<'_>> = Vec::new();
    for source in sources_of(diagnostic) {
        let text = sources.text(source);
        let labels = || diagnostic.labels.iter().filter(|label| label.span.source == source);
        let lines = lines_around(text, labels());
        let annotations = labels().map(|label| {
            let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
            let shown = (!label.text.is_empty()).then_some(label.text.as_str());
            let range = visible_range(text, label);
            kind.span(range.start - lines.start..range.end - lines.start).label(shown)
        });
        let first = text[..lines.start].matches('\n').count() + 1;
        let snippet = Snippet::source(&text[lines.clone()]).line_start(first).path(sources.name(source));
        elements.push(snippet.annotations(annotations).into());
    }
    elements.extend(diagnostic.notes.iter().map(|text| Level::NOTE.message(text).into()));
    elements.extend(diagnostic.help.iter().map(|text| Level::HELP.message(text).into()));
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(WIDTH);
    let group = level.primary_title(diagnostic.message.as_str()).elements(elements);
    let lines = renderer.render(&[group]);
    // The renderer pads some lines; trailing blanks would be lost in editors that trim them, and filetests with them.
    lines.lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// The sources that labels point into, those of primary labels first.
fn sources_of(diagnostic: &Diagnostic) -> Vec<SourceId> {
    let mut found = Vec::new();
    for primary in [true, false] {
        for label in diagnostic.labels.iter().filter(|label| label.primary == primary) {
            if !found.contains(&label.span.source) {
                found.push(label.span.source);
            }
        }
    }
    found
}

/// The bytes of all lines that labels touch, so that the renderer does not have to read a whole file for one of them.
fn lines_around<'a>(text: &str, labels: impl Iterator<Item = &'a Label>) -> Range<usize> {
    let touched = labels.map(|label| visible_range(text, label)).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
    let touched = touched.unwrap_or(0..0);
    let start = text[..touched.start].rfind('\n').map_or(0, |i| i + 1);
    let end = text[touched.end..].find('\n').map_or(text.len(), |i| touched.end + i);
    start..end
}

/// The bytes to underline: inside the text, on character boundaries, and only the first line of a long range, so that
/// an error about a whole `Graph(...)` does not print it.
fn visible_range(text: &str, label: &Label) -> Range<usize> {
    let start = floor_char_boundary(text, label.span.start as usize);
    let end = floor_char_boundary(text, label.span.end as usize).max(start);
    let first_line = text[start..end].find('\n').map_or(end, |i| start + i);
    start..first_line
}

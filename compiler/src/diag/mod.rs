//! Spans, diagnostics and how they are shown.
//!
//! Every failure a user can cause is a [`Diagnostic`]: what is wrong, where, and a way out. Passes return
//! `Result<T, Diagnostics>`; [`Diagnostics`] is never empty, so an `Err` always has something to show. Rendered text is
//! stable (no terminal width, no colour unless asked for), since filetests compare it.
//!
//! Nothing here knows what a spec, a graph or a plan is.

mod render;
mod source;

use std::fmt;

pub use source::{MAX_SOURCE_BYTES, SourceId, SourceMap, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Compilation stops.
    Error,
    /// Compilation goes on.
    Warning,
}

/// A place with a remark. Primary labels get the `^^^` caret, others `---`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// The remark beside the caret, may be empty.
    pub text: String,
    /// Is this where the failure is, rather than context for it?
    pub primary: bool,
}

/// One failure or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// Where. The first primary label gives `file:line:col`.
    pub labels: Vec<Label>,
    /// Facts that help to understand.
    pub notes: Vec<String>,
    /// What to do about it.
    pub help: Vec<String>,
}

impl Diagnostic {
    fn new(severity: Severity, message: impl Into<String>) -> Self {
        Diagnostic { severity, message: message.into(), labels: vec![], notes: vec![], help: vec![] }
    }

    /// An error without a place yet.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self::new(Severity::Error, message)
    }

    /// A warning without a place yet.
    #[must_use]
    pub fn warning(message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, message)
    }

    /// Adds the place of the failure.
    #[must_use]
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: true });
        self
    }

    /// Adds a place that explains the failure, such as the first definition of a duplicate name.
    #[must_use]
    pub fn context(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Adds a way out.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Adds "did you mean `x`?" if one of the candidates is near to `name`, else nothing.
    #[must_use]
    pub fn suggest<'a>(self, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        match did_you_mean(name, candidates) {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    /// The text a user sees, ending in a line break.
    pub fn render(&self, sources: &SourceMap, color: bool) -> String {
        render::render(self, sources, color)
    }
}

/// One or more diagnostics; the error type of all passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// `Ok(value)` if nothing was collected, else the collected diagnostics.
    ///
    /// # Errors
    /// `collected` is not empty.
    pub fn check<T>(value: T, collected: Vec<Diagnostic>) -> Result<T, Self> {
        if collected.is_empty() { Ok(value) } else { Err(Self(collected)) }
    }

    /// The diagnostics in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// The diagnostics, at least one.
    pub fn into_vec(self) -> Vec<Diagnostic> {
        self.0
    }

    /// The same with something added to each.
    #[must_use]
    pub fn map(self, change: impl Fn(Diagnostic) -> Diagnostic) -> Self {
        Self(self.0.into_iter().map(change).collect())
    }

    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Adds those of another pass.
    pub fn extend(&mut self, other: Diagnostics) {
        self.0.extend(other.0);
    }

    /// All of them as a user sees them, with an empty line between two.
    pub fn render(&self, sources: &SourceMap, color: bool) -> String {
        self.0.iter().map(|d| d.render(sources, color)).collect::<Vec<_>>().join("\n")
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    /// Messages without places, for contexts that hold no source map.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}", diagnostic.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The candidate that `name` was most likely meant to be, if any is near enough.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One edit in three letters, begun: a swap in `lr` or `dim` is still found, unrelated names are not. A name of one
    // letter has nothing in common with another one.
    let length = name.chars().count();
    let allowed = if length == 1 { 0 } else { length.div_ceil(3) };
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, candidate)| distance <= allowed && candidate != name)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let fields = ["name", "doc", "inputs", "outputs", "params"];
        assert_eq!(did_you_mean("input", fields), Some("inputs"));
        assert_eq!(did_you_mean("parmas", fields), Some("params"));
        assert_eq!(did_you_mean("Doc", fields), Some("doc"));
        assert_eq!(did_you_mean("weights", fields), None);
        assert_eq!(did_you_mean("x", ["y"]), None);
        assert_eq!(did_you_mean("b", ["A", "B"]), Some("B"));
    }
}

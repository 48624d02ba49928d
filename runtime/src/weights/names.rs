//! Patterns of names, as maps and selections have them.
//!
//! `{i}` stands for one step of a name, which is what lies between two dots; `{rest*}` for one or several; `*` for any
//! characters at all, which only a selection may have, since nothing can be put back in its place.

use std::collections::BTreeMap;

use regex::Regex;

/// What the captures of a pattern stand for.
pub(super) type Captured = BTreeMap<String, String>;

/// A pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
    captures: Vec<String>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        let (mut regex, mut captures, mut rest) = (String::from("^"), Vec::new(), text);
        while let Some(at) = rest.find(['{', '*', '}']) {
            regex += &regex::escape(&rest[..at]);
            if rest[at..].starts_with('*') {
                regex += ".*";
                rest = &rest[at + 1..];
                continue;
            }
            let inner = rest[at..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((capture, after)) = inner else { return Err(format!("`{text}` has a brace without its other")) };
            let (name, steps) = match capture.strip_suffix('*') {
                Some(name) => (name, r"[^.]+(?:\.[^.]+)*"),
                None => (capture, "[^.]+"),
            };
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !is_name || captures.iter().any(|known| known == name) {
                return Err(format!("`{{{capture}}}` in `{text}` is no name of letters, or stands there twice"));
            }
            regex += &format!("(?<{name}>{steps})");
            captures.push(name.to_string());
            rest = after;
        }
        regex += &regex::escape(rest);
        regex.push('$');
        let regex = Regex::new(&regex).map_err(|error| format!("`{text}`: {error}"))?;
        Ok(Pattern { text: text.to_string(), regex, captures })
    }

    /// Names of the captures, sorted.
    pub(super) fn captures(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.captures.iter().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether something of it cannot be put back.
    pub(super) fn is_open(&self) -> bool {
        self.text.replace("*}", "}").contains('*')
    }

    /// Whether a name is one of it.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// What its captures stand for in a name, if that is one of it.
    pub(super) fn capture(&self, name: &str) -> Option<Captured> {
        let found = self.regex.captures(name)?;
        Some(self.captures.iter().map(|key| (key.clone(), found[key.as_str()].to_string())).collect())
    }

    /// The name that it makes of captures.
    pub(super) fn fill(&self, captured: &Captured) -> String {
        captured.iter().fold(self.text.clone(), |text, (key, value)| {
            text.replace(&format!("{{{key}*}}"), value).replace(&format!("{{{key}}}"), value)
        })
    }
}

/// Those of `known` that are most like a name, the nearest first: what somebody may have meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // What begins in the same way is of the same part of a model, which says more than the same end.
    let score = |other: &str| {
        let same = |a: &mut dyn Iterator<Item = (char, char)>| a.take_while(|(a, b)| a == b).count() as i64;
        let front = same(&mut name.chars().zip(other.chars()));
        let back = same(&mut name.chars().rev().zip(other.chars().rev()));
        3 * front + 2 * back - (name.len() as i64 - other.len() as i64).abs()
    };
    let best = known.into_iter().map(|other| (score(other), other)).max_by_key(|(score, _)| *score)?;
    (best.0 >= name.len() as i64).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_capture_and_fill() {
        let check = |pattern: &str, name: &str, other: &str, expected: Option<&str>| {
            let (pattern, other) = (Pattern::new(pattern).unwrap(), Pattern::new(other).unwrap());
            let found = pattern.capture(name).map(|captured| other.fill(&captured));
            assert_eq!(found.as_deref(), expected, "{name}");
        };
        check("a.{i}.w", "a.12.w", "b.{i}", Some("b.12"));
        check("a.{i}.w", "a.1.2.w", "b.{i}", None);
        check("a.{rest*}", "a.1.2.w", "x.{rest*}", Some("x.1.2.w"));
        check("a.{rest*}", "a", "x.{rest*}", None);
        check("a.w", "a_w", "b", None);
        assert!(Pattern::new("visual.*").unwrap().matches("visual.a.b"));
        assert!(!Pattern::new("visual.*").unwrap().matches("not.visual.a"));
    }

    #[test]
    fn wrong_patterns_are_told() {
        let check = |pattern: &str, message: &str| assert_eq!(Pattern::new(pattern).unwrap_err(), message);
        check("a.{i", "`a.{i` has a brace without its other");
        check("a.}", "`a.}` has a brace without its other");
        check("{i}.{i}", "`{i}` in `{i}.{i}` is no name of letters, or stands there twice");
        check("{1}", "`{1}` in `{1}` is no name of letters, or stands there twice");
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["visual.proj", "visual.ln_post.weight", "text_projection", "ln_final.bias"];
        let check = |name: &str, expected: Option<&str>| assert_eq!(nearest(name, known), expected, "{name}");
        check("visual.projection", Some("visual.proj"));
        check("visual.ln_pos.weight", Some("visual.ln_post.weight"));
        check("zebra", None);
    }
}

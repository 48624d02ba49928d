//! The formatter behind `alipc fmt`.
//!
//! House style: four spaces, one field a line with a comma after it, nothing aligned. What stands in brackets stays on
//! one line if it was written so and fits 120 columns; a line break after the opening bracket asks for one entry a
//! line. Whole specs and a `body` of several equations always have one. At most one empty line is kept between entries. Expressions inside
//! strings get the spacing of the grammar's examples (`a * b`, `f(x, axis: -1)`, `x[:, 0]`).
//!
//! It works on all tokens of the file and moves comments but never drops one: formatting changes white space, commas
//! before closing brackets, and nothing else. Formatting twice is formatting once.

use super::syntax::{Kind, Token, tokens};
use super::text::Text;
use super::{respace, tree};
use crate::diag::{Diagnostics, SourceId, SourceMap};

/// Longest line, but for a string that is longer by itself; the width of `rustfmt.toml`.
const WIDTH: usize = 120;

/// The text in house style.
///
/// # Errors
/// The text is not RON; nothing else is asked of it.
pub fn format(sources: &SourceMap, source: SourceId) -> Result<String, Diagnostics> {
    let text = sources.text(source);
    tree::parse(source, text)?;
    let tokens = tokens(source, text)?;
    let mut reader = Reader { source, text, tokens: &tokens, at: 0, path: Vec::new() };
    let mut printer = Printer { out: String::new() };
    let (comments, blank_before) = reader.trivia();
    let mut spec = reader.entry(comments, blank_before);
    let (after, _) = reader.trivia();
    spec.blank_before &= !spec.comments.is_empty();
    printer.entry(&spec, 0, "");
    printer.comments(&after, 0);
    Ok(printer.out)
}

#[derive(Debug)]
struct Comment {
    text: String,
    blank_before: bool,
    /// No line break stands between it and what is before it.
    same_line: bool,
}

/// A field, an entry of a map, an item of a list, or the whole file.
#[derive(Debug)]
struct Entry {
    comments: Vec<Comment>,
    blank_before: bool,
    key: String,
    value: Value,
    /// Comments on the same line, after the value.
    trailing: Vec<String>,
}

#[derive(Debug)]
enum Value {
    Atom(String),
    Group(Group),
}

#[derive(Debug)]
struct Group {
    /// Name and opening bracket.
    open: String,
    close: &'static str,
    entries: Vec<Entry>,
    /// Comments after the last entry.
    dangling: Vec<Comment>,
    /// One entry a line.
    broken: bool,
}

/// Builds entries from tokens. The text is known to be RON, so what is not found is not an error but the end.
struct Reader<'a> {
    source: SourceId,
    text: &'a str,
    tokens: &'a [Token],
    at: usize,
    /// Names of the fields and keys around, the outermost first; tells which strings are expressions.
    path: Vec<String>,
}

impl Reader<'_> {
    fn slice(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |t| &self.text[t.range.clone()])
    }

    fn kind(&self) -> Option<Kind> {
        self.tokens.get(self.at).map(|t| t.kind)
    }

    /// Index of the next token that means something, from `index` on.
    fn meaningful(&self, index: usize) -> usize {
        let skipped = self.tokens.iter().skip(index).take_while(|t| !t.is_meaningful()).count();
        index + skipped
    }

    fn is(&self, punct: &str) -> bool {
        self.kind() == Some(Kind::Punct) && self.slice(self.at) == punct
    }

    /// Takes white space and comments; also says whether an empty line stands before what follows.
    fn trivia(&mut self) -> (Vec<Comment>, bool) {
        let mut comments = Vec::new();
        let (mut breaks, mut same_line) = (0, true);
        loop {
            match self.kind() {
                Some(Kind::Space) => {
                    breaks += self.slice(self.at).matches('\n').count();
                    same_line &= breaks == 0;
                }
                Some(Kind::LineComment | Kind::BlockComment) => {
                    let text = self.slice(self.at).trim_end().to_owned();
                    comments.push(Comment { text, blank_before: breaks > 1, same_line });
                    breaks = 0;
                }
                _ => return (comments, breaks > 1),
            }
            self.at += 1;
        }
    }

    fn entry(&mut self, mut comments: Vec<Comment>, blank_before: bool) -> Entry {
        let colon = self.meaningful(self.at + 1);
        let mut key = String::new();
        let depth = self.path.len();
        if self.slice(colon) == ":" {
            let name = self.slice(self.at).to_owned();
            self.path.push(name.trim_matches('"').to_owned());
            self.at += 1;
            comments.extend(self.trivia().0);
            self.at += 1;
            comments.extend(self.trivia().0);
            key = format!("{name}: ");
        }
        let value = self.value(&mut comments);
        self.path.truncate(depth);
        Entry { comments, blank_before, key, value, trailing: Vec::new() }
    }

    fn value(&mut self, hoisted: &mut Vec<Comment>) -> Value {
        let text = self.slice(self.at).to_owned();
        match self.kind() {
            Some(Kind::Punct) => self.group(String::new()),
            Some(Kind::Ident) if self.slice(self.meaningful(self.at + 1)) == "(" => {
                self.at += 1;
                hoisted.extend(self.trivia().0);
                self.group(text)
            }
            Some(Kind::Str) if is_expression(&self.path) => {
                self.at += 1;
                Value::Atom(self.expression(&text).unwrap_or(text))
            }
            _ => {
                self.at += 1;
                Value::Atom(text)
            }
        }
    }

    /// The string with its expression spaced; none if it has to stay as it is.
    fn expression(&self, literal: &str) -> Option<String> {
        let inside = literal.strip_prefix('"')?.strip_suffix('"')?;
        if inside.contains(['\\', '\n', '\r']) {
            return None;
        }
        respace::respace(&Text::whole(self.source, inside)).map(|spaced| format!("\"{spaced}\""))
    }

    fn group(&mut self, name: String) -> Value {
        let bracket = self.slice(self.at).to_owned();
        let close = match bracket.as_str() {
            "(" => ")",
            "[" => "]",
            _ => "}",
        };
        self.at += 1;
        let whole_spec = ["Graph", "Module", "Pipeline"].contains(&name.as_str());
        let modules = self.path.is_empty() && bracket == "[";
        let body = self.path.last().is_some_and(|key| key == "body");
        let asked = self.kind() == Some(Kind::Space) && self.slice(self.at).contains('\n');
        let mut group = Group { open: name + &bracket, close, entries: vec![], dangling: vec![], broken: false };
        loop {
            let (mut comments, blank_before) = self.trivia();
            if group.entries.is_empty()
                && let Some(first) = comments.first_mut()
            {
                first.blank_before = false;
            }
            if self.is(close) || self.at >= self.tokens.len() {
                group.dangling.extend(comments);
                self.at += 1;
                break;
            }
            let mut entry = self.entry(comments, blank_before && !group.entries.is_empty());
            self.after(&mut entry, close, &mut group.dangling);
            group.entries.push(entry);
        }
        let equations = body && group.entries.len() > 1;
        group.broken = !group.entries.is_empty() && (asked || whole_spec || modules || equations);
        Value::Group(group)
    }

    /// The comma after an entry and the comments around it.
    fn after(&mut self, entry: &mut Entry, close: &str, dangling: &mut Vec<Comment>) {
        let (comments, _) = self.trivia();
        let last = self.is(close);
        for comment in comments {
            if comment.same_line {
                entry.trailing.push(comment.text);
            } else if last {
                dangling.push(comment);
            } else {
                entry.comments.push(comment);
            }
        }
        if last || self.at >= self.tokens.len() {
            return;
        }
        self.at += 1;
        // Comments behind the comma, up to the end of the line, belong to this entry.
        loop {
            let comment = match self.kind() {
                Some(Kind::Space) if !self.slice(self.at).contains('\n') => self.at + 1,
                _ => self.at,
            };
            let is_comment = |t: &Token| matches!(t.kind, Kind::LineComment | Kind::BlockComment);
            if !self.tokens.get(comment).is_some_and(is_comment) {
                return;
            }
            entry.trailing.push(self.slice(comment).trim_end().to_owned());
            self.at = comment + 1;
        }
    }
}

/// Which strings are expressions, by the fields around them.
fn is_expression(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["body"] => true,
        ["parts" | "args" | "metrics" | "inputs" | "outputs", _] => true,
        ["parts", _, field] => *field == "module",
        ["inputs" | "params" | "state", _, field] => ["shape", "init", "clamp"].contains(field),
        ["train", field] => ["loss", "optimizer", "schedule", "loss_scale"].contains(field),
        ["train", _, field] => ["lr", "weight_decay", "decay"].contains(field),
        _ => false,
    }
}

struct Printer {
    out: String,
}

impl Printer {
    fn comments(&mut self, comments: &[Comment], indent: usize) {
        for comment in comments {
            if comment.blank_before && !self.out.is_empty() {
                self.out.push('\n');
            }
            self.line(indent, &comment.text);
        }
    }

    fn line(&mut self, indent: usize, text: &str) {
        self.out.extend(std::iter::repeat_n(' ', indent));
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn entry(&mut self, entry: &Entry, indent: usize, comma: &str) {
        self.comments(&entry.comments, indent);
        if entry.blank_before {
            self.out.push('\n');
        }
        let trailing: String = entry.trailing.iter().flat_map(|comment| [" ", comment.as_str()]).collect();
        let flat = flat(&entry.value).filter(|flat| {
            let width = indent + chars(&entry.key) + chars(flat) + comma.len();
            width <= WIDTH || matches!(entry.value, Value::Atom(_))
        });
        match (flat, &entry.value) {
            (Some(flat), _) => self.line(indent, &format!("{}{flat}{comma}{trailing}", entry.key)),
            (None, Value::Atom(text)) => self.line(indent, text),
            (None, Value::Group(group)) => {
                self.line(indent, &format!("{}{}", entry.key, group.open));
                for entry in &group.entries {
                    self.entry(entry, indent + 4, ",");
                }
                self.comments(&group.dangling, indent + 4);
                self.line(indent, &format!("{}{comma}{trailing}", group.close));
            }
        }
    }
}

/// On one line, if nothing in it asks for more.
fn flat(value: &Value) -> Option<String> {
    let group = match value {
        Value::Atom(text) => return Some(text.clone()),
        Value::Group(group) => group,
    };
    if group.broken || !group.dangling.is_empty() {
        return None;
    }
    let mut items = Vec::new();
    for entry in &group.entries {
        if !entry.comments.is_empty() || !entry.trailing.is_empty() {
            return None;
        }
        items.push(format!("{}{}", entry.key, flat(&entry.value)?));
    }
    let pad = if group.close == "}" && !items.is_empty() { " " } else { "" };
    Some(format!("{}{pad}{}{pad}{}", group.open, items.join(", "), group.close))
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

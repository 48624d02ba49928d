//! From the RON tree to typed values: the helpers that all specs share.
//!
//! Readers collect errors in a [`Reader`] and return `None` for what they could not read, so that one run shows every
//! mistake in a file.

use super::ast::{Map, Removed};
use super::expr::{Equation, Expr, ExprKind, Name, Shape, Spanned};
use super::lexer::is_name;
use super::parser;
use super::text::Text;
use super::tree::{Node, NodeKind};
use crate::diag::{Diagnostic, Span};

/// Collects errors while a file is read.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) errors: Vec<Diagnostic>,
    /// Filled by [`Reader::map`] and [`Fields::get`] where a variant may take entries away.
    pub(super) removed: Vec<Removed>,
}

/// What keys of a map may be.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Keys {
    /// Names that equations can use.
    Names,
    /// Names whose value may be `None`, which elsewhere takes an entry of the base away.
    Args,
    /// Names, of which some may be next values of states: `ema'`.
    Outputs,
    /// Any text that is not empty.
    Any,
}

/// The fields of a struct, checked against those it can have.
pub(super) struct Fields<'a> {
    pub(super) what: &'static str,
    pub(super) head: Span,
    pub(super) span: Span,
    fields: Vec<(&'a Name, &'a Node)>,
}

impl<'a> Fields<'a> {
    /// The value of a field; `None` where it is absent or written as `None`.
    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.written(name).filter(|node| !matches!(node.kind, NodeKind::None))
    }

    /// The value of a field, also when it is `None`.
    pub(super) fn written(&self, name: &str) -> Option<&'a Node> {
        self.fields.iter().find(|(field, _)| field.as_str() == name).map(|(_, node)| *node)
    }

    /// The field's name as it stands in the file.
    pub(super) fn name(&self, name: &str) -> Option<&'a Name> {
        self.fields.iter().find(|(field, _)| field.as_str() == name).map(|(field, _)| *field)
    }

    /// The value of a field that must be there.
    pub(super) fn required(&self, cx: &mut Reader, name: &str, example: &str) -> Option<&'a Node> {
        let found = self.get(name);
        if found.is_none() {
            cx.errors.push(
                Diagnostic::error(format!("missing field `{name}` in {}", self.what))
                    .label(self.head, format!("has no `{name}`"))
                    .help(format!("add `{name}: {example}`")),
            );
        }
        found
    }
}

impl Reader {
    /// "expected X, found Y" at a value.
    pub(super) fn wrong(&mut self, node: &Node, expected: &str, help: &str) {
        let error = Diagnostic::error(format!("expected {expected}, found {}", node.describe()))
            .label(node.head(), format!("expected {expected}"));
        self.errors.push(if help.is_empty() { error } else { error.help(help) });
    }

    /// Opens a struct and complains about fields that are unknown or stand twice.
    pub(super) fn fields<'a>(
        &mut self,
        node: &'a Node,
        what: &'static str,
        known: &[&'static str],
        example: &str,
    ) -> Option<Fields<'a>> {
        let written = match &node.kind {
            NodeKind::Struct(_, fields) => fields.as_slice(),
            NodeKind::Tuple(_, items) if items.is_empty() => &[],
            _ => {
                self.wrong(node, &format!("{what}, `(field: value, ...)`"), &format!("for example `{example}`"));
                return None;
            }
        };
        let mut fields: Vec<(&Name, &Node)> = Vec::new();
        for (name, value) in written {
            if !known.contains(&name.as_str()) {
                let list = known.join("`, `");
                self.errors.push(
                    Diagnostic::error(format!("unknown field `{name}` in {what}"))
                        .label(name.span, "unknown field")
                        .suggest(name, known.iter().copied())
                        .note(format!("the fields are `{list}`")),
                );
            } else if let Some((first, _)) = fields.iter().find(|(field, _)| *field == name) {
                self.errors.push(
                    Diagnostic::error(format!("field `{name}` stands twice in {what}"))
                        .label(name.span, "again here")
                        .context(first.span, "first here")
                        .help("merge the two"),
                );
            } else {
                fields.push((name, value));
            }
        }
        Some(Fields { what, head: node.head(), span: node.span, fields })
    }

    /// Reads an ordered map. A key whose value is `None` goes to [`Reader::removed`].
    pub(super) fn map<V>(
        &mut self,
        node: Option<&Node>,
        field: &'static str,
        keys: Keys,
        mut value: impl FnMut(&mut Reader, &Node) -> Option<V>,
    ) -> Map<V> {
        let mut map = Map::new();
        let Some(node) = node else { return map };
        let NodeKind::Map(entries) = &node.kind else {
            self.wrong(node, &format!("a map for `{field}`"), &format!("write `{field}: {{ \"name\": ..., }}`"));
            return map;
        };
        let mut seen: Vec<&str> = Vec::new();
        let names = entries.iter().map(|(key, _)| self.key(key, field, keys)).collect::<Vec<_>>();
        for (i, (name, (_, node))) in names.iter().zip(entries).enumerate() {
            let Some(name) = name else { continue };
            if seen.contains(&name.as_str()) {
                let first = names[..i].iter().flatten().find(|n| *n == name);
                let error = Diagnostic::error(format!("`{name}` stands twice in `{field}`"))
                    .label(name.span, "again here")
                    .help("rename or remove one of them");
                self.errors.push(match first {
                    Some(first) => error.context(first.span, "first here"),
                    None => error,
                });
                continue;
            }
            seen.push(name);
            if matches!(node.kind, NodeKind::None) && keys != Keys::Args {
                self.removed.push(Removed { field, key: Some(name.clone()), span: node.span });
            } else if let Some(v) = value(self, node) {
                map.insert(name.clone(), v);
            }
        }
        map
    }

    fn key(&mut self, node: &Node, field: &str, keys: Keys) -> Option<Name> {
        let NodeKind::Str(text) = &node.kind else {
            self.wrong(node, &format!("a quoted key in `{field}`"), "keys of maps are strings: `\"name\": ...`");
            return None;
        };
        let name = Name::new(text.as_str(), text.content());
        let fine = if keys == Keys::Any { !name.trim().is_empty() } else { is_name(&name) };
        if fine {
            return Some(name);
        }
        self.bad_name(&name, text.literal);
        None
    }

    fn bad_name(&mut self, name: &str, span: Span) {
        self.errors.push(
            Diagnostic::error(format!("`{}` cannot be a name", name.replace(char::is_control, "\u{fffd}")))
                .label(span, "")
                .help(
                    "names are letters, digits and `_`, begin with a letter and are not words such as `if` or `none`",
                ),
        );
    }

    /// Each item of a list.
    pub(super) fn list<V>(
        &mut self,
        node: Option<&Node>,
        field: &str,
        example: &str,
        mut item: impl FnMut(&mut Reader, &Node) -> Option<V>,
    ) -> Vec<V> {
        let Some(node) = node else { return Vec::new() };
        let NodeKind::List(items) = &node.kind else {
            self.wrong(node, &format!("a list for `{field}`"), &format!("write `{field}: [{example}]`"));
            return Vec::new();
        };
        items.iter().filter_map(|node| item(self, node)).collect()
    }

    /// A list of names, `["x", "y"]`, without duplicates.
    pub(super) fn names(&mut self, node: Option<&Node>, field: &str, keys: Keys) -> Vec<Name> {
        let names = self.list(node, field, "\"name\"", |cx, node| cx.name(node, field, keys));
        for (i, name) in names.iter().enumerate() {
            if let Some(first) = names[..i].iter().find(|n| *n == name) {
                self.errors.push(
                    Diagnostic::error(format!("`{name}` stands twice in `{field}`"))
                        .label(name.span, "again here")
                        .context(first.span, "first here")
                        .help("remove one of them"),
                );
            }
        }
        names
    }

    /// A string that is a name.
    pub(super) fn name(&mut self, node: &Node, field: &str, keys: Keys) -> Option<Name> {
        let text = self.text(node, field, "\"...\"")?;
        let name = Name::new(text.as_str(), text.content());
        let fine = match keys {
            Keys::Any => !name.trim().is_empty(),
            Keys::Outputs => is_name(name.next_of().unwrap_or(&name)),
            Keys::Names | Keys::Args => is_name(&name),
        };
        if fine {
            return Some(name);
        }
        self.bad_name(&name, text.literal);
        None
    }

    fn text<'a>(&mut self, node: &'a Node, field: &str, example: &str) -> Option<&'a Text> {
        match &node.kind {
            NodeKind::Str(text) => Some(text),
            _ => {
                self.wrong(node, &format!("a string for `{field}`"), &format!("write `{field}: {example}`"));
                None
            }
        }
    }

    /// Plain text.
    pub(super) fn string(&mut self, node: &Node, field: &str) -> Option<Spanned<String>> {
        let text = self.text(node, field, "\"...\"")?;
        Some(Spanned::new(text.as_str().to_owned(), text.content()))
    }

    /// An expression: a string in the expression language, or a bare number, truth value, list or tuple.
    pub(super) fn expr(&mut self, node: &Node, field: &str) -> Option<Expr> {
        let kind = match &node.kind {
            NodeKind::Str(text) => return self.ok(parser::expression(text)),
            NodeKind::Int(n) => ExprKind::Int(*n),
            NodeKind::Float(x) => ExprKind::Float(*x),
            NodeKind::Bool(b) => ExprKind::Bool(*b),
            NodeKind::None => ExprKind::None,
            NodeKind::List(items) => ExprKind::List(self.exprs(items, field)?),
            NodeKind::Tuple(None, items) => ExprKind::Tuple(self.exprs(items, field)?),
            _ => {
                let what = format!("an expression for `{field}`");
                self.wrong(node, &what, "write a number, or a string with an expression: `\"ln(1 / 0.07)\"`");
                return None;
            }
        };
        Some(Expr { kind, span: node.span })
    }

    fn exprs(&mut self, nodes: &[Node], field: &str) -> Option<Vec<Expr>> {
        let read: Vec<_> = nodes.iter().map(|node| self.expr(node, field)).collect();
        read.into_iter().collect()
    }

    /// One string of a body.
    pub(super) fn equation(&mut self, node: &Node) -> Option<Equation> {
        match &node.kind {
            NodeKind::Str(text) => self.ok(parser::equation(text)),
            _ => {
                self.wrong(node, "an equation in a string", "write `\"y = f(x)\"`");
                None
            }
        }
    }

    /// A shape: `"[B, T]"`.
    pub(super) fn shape(&mut self, node: &Node, field: &str) -> Option<Shape> {
        let text = self.text(node, field, "\"[B, T]\"")?;
        self.ok(parser::shape(text))
    }

    /// The value, or the error collected.
    pub(super) fn ok<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    /// A whole number from `least` up.
    pub(super) fn whole(&mut self, node: &Node, field: &str, least: u64) -> Option<Spanned<u64>> {
        let found = match node.kind {
            NodeKind::Int(n) => u64::try_from(n).ok().filter(|n| *n >= least),
            _ => None,
        };
        if found.is_none() {
            let help = format!("`{field}` is at least {least}, without a point or quotes");
            self.wrong(node, &format!("a whole number for `{field}`"), &help);
        }
        found.map(|n| Spanned::new(n, node.span))
    }

    /// A number above zero.
    pub(super) fn positive(&mut self, node: &Node, field: &str) -> Option<Spanned<f64>> {
        let found = match node.kind {
            NodeKind::Int(n) => Some(n as f64),
            NodeKind::Float(x) => Some(x),
            _ => None,
        };
        let found = found.filter(|x| *x > 0.0);
        if found.is_none() {
            self.wrong(node, &format!("a number above 0 for `{field}`"), "write it without quotes, such as `1.0`");
        }
        found.map(|x| Spanned::new(x, node.span))
    }

    /// `true` or `false`.
    pub(super) fn truth(&mut self, node: &Node, field: &str) -> Option<Spanned<bool>> {
        match node.kind {
            NodeKind::Bool(b) => Some(Spanned::new(b, node.span)),
            _ => {
                self.wrong(node, &format!("`true` or `false` for `{field}`"), "");
                None
            }
        }
    }

    /// One of a few bare words.
    pub(super) fn choice<T: Copy>(&mut self, node: &Node, what: &str, choices: &[(&str, T)]) -> Option<Spanned<T>> {
        let words = || choices.iter().map(|(word, _)| *word);
        let list = words().collect::<Vec<_>>().join("`, `");
        let NodeKind::Word(name) = &node.kind else {
            self.wrong(node, what, &format!("it is one of `{list}`, without quotes"));
            return None;
        };
        let found = choices.iter().find(|(word, _)| *word == name.as_str());
        if found.is_none() {
            self.errors.push(
                Diagnostic::error(format!("unknown {} `{name}`", what.trim_start_matches("a ")))
                    .label(name.span, format!("expected {what}"))
                    .suggest(name, words())
                    .note(format!("it is one of `{list}`")),
            );
        }
        found.map(|(_, value)| Spanned::new(*value, name.span))
    }
}

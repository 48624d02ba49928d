//! Lossless tokens of RON: every byte of a file is in exactly one token. The tree ([`super::tree`]) and the formatter
//! ([`super::fmt`]) both read them, which is what gives every value its span and every comment its place.

use std::ops::Range;

use super::text::offset;
use crate::diag::{Diagnostic, SourceId, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Space,
    /// `// ...` without its line break
    LineComment,
    /// `/* ... */`, which nest
    BlockComment,
    /// `"..."` or `r#"..."#`, with quotes
    Str,
    Number,
    Ident,
    /// One of `( ) [ ] { } , :`
    Punct,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
}

impl Token {
    /// Does it mean something, rather than being white space or a comment?
    pub(super) fn is_meaningful(&self) -> bool {
        !matches!(self.kind, Kind::Space | Kind::LineComment | Kind::BlockComment)
    }
}

/// All tokens of a text. `source` is only used to place errors.
pub(super) fn tokens(source: SourceId, text: &str) -> Result<Vec<Token>, Diagnostic> {
    let mut lexer = Lexer { source, text, at: 0 };
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push(token);
    }
    Ok(out)
}

struct Lexer<'a> {
    source: SourceId,
    text: &'a str,
    at: usize,
}

/// RON's own definition of white space, which is not Unicode's.
fn is_space(c: char) -> bool {
    matches!(
        c,
        ' ' | '\t' | '\n' | '\r' | '\x0B' | '\x0C' | '\u{85}' | '\u{200E}' | '\u{200F}' | '\u{2028}' | '\u{2029}'
    )
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.source, offset(start), offset(end))
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !accept(c)).unwrap_or(rest.len());
    }

    fn next(&mut self) -> Result<Option<Token>, Diagnostic> {
        let start = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let kind = if is_space(first) {
            self.take_while(is_space);
            Kind::Space
        } else if self.rest().starts_with("//") {
            self.take_while(|c| c != '\n');
            Kind::LineComment
        } else if self.rest().starts_with("/*") {
            self.block_comment()?;
            Kind::BlockComment
        } else if first == '"' {
            self.string()?;
            Kind::Str
        } else if self.rest().starts_with("r\"") || self.rest().starts_with("r#") {
            self.raw_string()?;
            Kind::Str
        } else if first.is_ascii_digit() || matches!(first, '+' | '-' | '.') {
            self.number();
            Kind::Number
        } else if first.is_ascii_alphabetic() || first == '_' {
            self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            Kind::Ident
        } else if "()[]{},:".contains(first) {
            self.at += 1;
            Kind::Punct
        } else {
            return Err(self.unexpected(start, first));
        };
        Ok(Some(Token { kind, range: start..self.at }))
    }

    fn unexpected(&self, start: usize, c: char) -> Diagnostic {
        let shown = if c == '\'' { "'".to_owned() } else { c.escape_debug().to_string() };
        let error = Diagnostic::error(format!("unexpected character `{shown}`"))
            .label(self.span(start, start + c.len_utf8()), "");
        match c {
            '\'' => error.help("strings outside of expressions have double quotes: `\"name\"`"),
            '=' => error.help("a field is written `name: value`; equations are strings in `body: [...]`"),
            '\u{feff}' => error.help("save the file as UTF-8 without a byte order mark"),
            ';' => error.help("separate with `,`"),
            '#' => error.help("extensions such as `#![enable(...)]` are not used; a comment begins with `//`"),
            _ => error.help("a spec is RON: `Graph(name: \"...\", ...)`, `Module(...)` or `Pipeline(...)`"),
        }
    }

    fn block_comment(&mut self) -> Result<(), Diagnostic> {
        let start = self.at;
        self.at += 2;
        let mut open = 1;
        while open > 0 {
            let Some(found) = self.rest().find("*/") else {
                return Err(Diagnostic::error("comment without an end")
                    .label(self.span(start, start + 2), "begins here")
                    .help("close it with `*/`; comments nest"));
            };
            match self.rest()[..found].find("/*") {
                Some(nested) => {
                    open += 1;
                    self.at += nested + 2;
                }
                None => {
                    open -= 1;
                    self.at += found + 2;
                }
            }
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), Diagnostic> {
        let start = self.at;
        self.at += 1;
        loop {
            let Some(found) = self.rest().find(['"', '\\']) else {
                return Err(self.open_string(start, "\""));
            };
            self.at += found;
            if self.rest().starts_with('"') {
                self.at += 1;
                return Ok(());
            }
            self.at += 1;
            self.at += self.rest().chars().next().map_or(0, char::len_utf8);
        }
    }

    fn raw_string(&mut self) -> Result<(), Diagnostic> {
        let start = self.at;
        self.at += 1;
        let hashes = self.rest().len() - self.rest().trim_start_matches('#').len();
        self.at += hashes;
        if !self.rest().starts_with('"') {
            return Err(Diagnostic::error("raw identifiers are not used in specs")
                .label(self.span(start, self.at), "")
                .help("a raw string is written `r#\"...\"#`"));
        }
        self.at += 1;
        let close = format!("\"{}", "#".repeat(hashes));
        match self.rest().find(&close) {
            Some(found) => {
                self.at += found + close.len();
                Ok(())
            }
            None => Err(self.open_string(start, &close)),
        }
    }

    fn open_string(&self, start: usize, close: &str) -> Diagnostic {
        Diagnostic::error("string without an end")
            .label(self.span(start, start + 1), "begins here and runs to the end of the file")
            .help(format!("close it with `{close}`"))
    }

    /// Takes whatever could be a number; the tree says whether it is one.
    fn number(&mut self) {
        self.at += 1;
        while let Some(c) = self.rest().chars().next() {
            let exponent_sign = matches!(c, '+' | '-') && self.text[..self.at].ends_with(['e', 'E']);
            if !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.') || exponent_sign) {
                break;
            }
            self.at += 1;
        }
    }
}

//! Tokens of the expression language.

use super::text::Text;
use crate::diag::{Diagnostic, Span};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tok {
    Int(i64),
    Float(f64),
    Str(String),
    /// Names and keywords.
    Name(String),
    Symbol(&'static str),
    End,
}

impl Tok {
    /// As it is called in an error.
    pub(super) fn describe(&self) -> String {
        match self {
            Tok::Int(n) => format!("`{n}`"),
            Tok::Float(x) => format!("`{x}`"),
            Tok::Str(s) => format!("`'{s}'`"),
            Tok::Name(name) => format!("`{name}`"),
            Tok::Symbol(symbol) => format!("`{symbol}`"),
            Tok::End => "the end of the expression".to_owned(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) tok: Tok,
    pub(super) span: Span,
}

/// Longer ones first, so that `**` is not read as two `*`.
const SYMBOLS: [&str; 23] = [
    "**", "==", "!=", "<=", ">=", "..", "+", "-", "*", "/", "%", "@", "<", ">", "=", "(", ")", "[", "]", ",", ":", ";",
    ".",
];

/// What people write who come from another language, and what it is here.
const FOREIGN: [(&str, &str); 5] = [
    ("^", "a power is written `a ** b`"),
    ("&", "write `and`"),
    ("|", "write `or`"),
    ("!", "write `not a`, or `a != b`"),
    ("{", "expressions have no maps; lists are `[a, b]`, tuples `(a, b)`"),
];

/// The longest expression, in tokens. The longest of the house has 60; see [`super::expr::MAX_DEPTH`] for why bounds.
const MAX_TOKENS: usize = 10_000;

/// All tokens, [`Tok::End`] last.
pub(super) fn tokens(text: &Text) -> Result<Vec<Token>, Diagnostic> {
    let mut lexer = Lexer { text, input: text.as_str(), at: 0 };
    let mut out = Vec::new();
    loop {
        let token = lexer.next()?;
        if out.len() >= MAX_TOKENS {
            return Err(Diagnostic::error("expression too long")
                .label(token.span, format!("more than {MAX_TOKENS} names, numbers and operators"))
                .help("split it into several equations"));
        }
        let end = token.tok == Tok::End;
        out.push(token);
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    text: &'a Text,
    input: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.input[self.at..]
    }

    fn next(&mut self) -> Result<Token, Diagnostic> {
        self.at = self.input.len() - self.rest().trim_start().len();
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Ok(self.token(start, Tok::End));
        };
        if is_name_start(first) {
            return Ok(self.name(start));
        }
        if first.is_ascii_digit() {
            let before = &self.input[..start];
            let is_position = before.ends_with('.') && !before.ends_with("..");
            return if is_position { self.position(start) } else { self.number(start) };
        }
        if first == '\'' {
            return self.string(start);
        }
        if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| self.rest().starts_with(symbol)) {
            self.at += symbol.len();
            return Ok(self.token(start, Tok::Symbol(symbol)));
        }
        Err(self.foreign(start, first))
    }

    fn token(&self, start: usize, tok: Tok) -> Token {
        Token { tok, span: self.text.span(start, self.at) }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.find(|c| !accept(c)).unwrap_or(rest.len());
    }

    fn name(&mut self, start: usize) -> Token {
        self.take_while(is_name_part);
        if self.rest().starts_with('\'') {
            self.at += 1;
        }
        self.token(start, Tok::Name(self.input[start..self.at].to_owned()))
    }

    /// `0` of `blocks.0.attn`, where no fraction can stand.
    fn position(&mut self, start: usize) -> Result<Token, Diagnostic> {
        self.take_while(|c: char| c.is_ascii_digit());
        match self.input[start..self.at].parse() {
            Ok(n) if !self.rest().starts_with(is_name_part) => Ok(self.token(start, Tok::Int(n))),
            _ => {
                self.take_while(is_name_part);
                Err(self.bad_number(start))
            }
        }
    }

    fn number(&mut self, start: usize) -> Result<Token, Diagnostic> {
        let digits = |c: char| c.is_ascii_digit() || c == '_';
        self.take_while(digits);
        let mut float = false;
        // `1..3` is a number and a symbol; `1.` and `1.5` are numbers.
        if self.rest().starts_with('.') && !self.rest().starts_with("..") {
            float = true;
            self.at += 1;
            self.take_while(digits);
        }
        if self.rest().starts_with(['e', 'E']) {
            float = true;
            self.at += 1;
            if self.rest().starts_with(['+', '-']) {
                self.at += 1;
            }
            self.take_while(digits);
        }
        let follows = self.rest().chars().next();
        if follows.is_some_and(is_name_part) || (float && self.rest().starts_with('.')) {
            self.take_while(|c| is_name_part(c) || c == '.');
            return Err(self.bad_number(start));
        }
        let written = self.input[start..self.at].replace('_', "");
        let tok = if float {
            written.parse::<f64>().ok().filter(|x| (*x as f32).is_finite()).map(Tok::Float)
        } else {
            written.parse::<i64>().ok().map(Tok::Int)
        };
        match tok {
            Some(tok) => Ok(self.token(start, tok)),
            None if written.ends_with(|c: char| c.is_ascii_digit()) => Err(self.too_big(start, float)),
            None => Err(self.bad_number(start)),
        }
    }

    fn bad_number(&self, start: usize) -> Diagnostic {
        Diagnostic::error(format!("`{}` is not a number", &self.input[start..self.at]))
            .label(self.text.span(start, self.at), "bad number")
            .help("numbers are written `77`, `0.5` or `1e-3`; names begin with a letter")
    }

    fn too_big(&self, start: usize, float: bool) -> Diagnostic {
        let (kind, limit) = if float { ("f32", format!("{:e}", f32::MAX)) } else { ("i64", i64::MAX.to_string()) };
        Diagnostic::error("number overflow")
            .label(self.text.span(start, self.at), format!("does not fit in {kind}"))
            .help(format!("the largest number is {limit}"))
    }

    fn string(&mut self, start: usize) -> Result<Token, Diagnostic> {
        self.at += 1;
        match self.rest().find('\'') {
            Some(length) => {
                let content = self.rest()[..length].to_owned();
                self.at += length + 1;
                Ok(self.token(start, Tok::Str(content)))
            }
            None => Err(Diagnostic::error("string without an end")
                .label(self.text.span(start, start + 1), "begins here")
                .help("close it with `'`")),
        }
    }

    fn foreign(&self, start: usize, first: char) -> Diagnostic {
        let span = self.text.span(start, start + first.len_utf8());
        if first == '"' {
            return Diagnostic::error("double quotes inside an expression")
                .label(span, "")
                .help("write strings inside expressions with single quotes: `'causal'`");
        }
        let error = Diagnostic::error(format!("unexpected character `{}`", first.escape_debug())).label(span, "");
        match FOREIGN.into_iter().find(|(foreign, _)| foreign.starts_with(first)) {
            Some((_, help)) => error.help(help),
            None => error.help("expressions are made of names, numbers, strings in single quotes and operators"),
        }
    }
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_name_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Can this be used as a name in expressions? A trailing `'` is not part of it.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(is_name_start) && text.chars().all(is_name_part) && !super::parser::KEYWORDS.contains(&text)
}

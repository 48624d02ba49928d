//! RON as a tree in which every value, field and key knows its place.
//!
//! The `ron` crate reads into serde types, which lose the places of fields and keys and stop at the first error; a spec
//! wants both. So the tree is built here, from the formatter's tokens, and the crate is asked afterwards whether the
//! text is RON: what is accepted is always plain RON, for any other tool too.

use super::expr::Name;
use super::syntax::{Kind, Token, tokens};
use super::text::{Text, offset};
use crate::diag::{Diagnostic, SourceId, Span};

/// The deepest nesting of brackets outside of strings. The deepest spec of the house has 5.
const MAX_NESTING: usize = 32;

/// The longest list, map or struct. The longest of the house has 30 entries; the bound keeps passes that compare
/// entries with one another from taking minutes on a broken file.
const MAX_ITEMS: usize = 10_000;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) span: Span,
}

#[derive(Clone, Debug)]
pub(super) enum NodeKind {
    Str(Text),
    Int(i64),
    Float(f64),
    Bool(bool),
    None,
    /// A bare word such as `F32`.
    Word(Name),
    /// `Name(field: value)`, `(field: value)`
    Struct(Option<Name>, Vec<(Name, Node)>),
    /// `Name(value)`, `(value, value)`, `Name()`
    Tuple(Option<Name>, Vec<Node>),
    List(Vec<Node>),
    /// Pairs as written, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// A short place for errors about the whole value: its name or opening bracket.
    pub(super) fn head(&self) -> Span {
        match &self.kind {
            NodeKind::Struct(Some(name), _) | NodeKind::Tuple(Some(name), _) => name.span,
            NodeKind::Struct(..) | NodeKind::Tuple(..) | NodeKind::List(_) | NodeKind::Map(_) => {
                Span { end: self.span.start + 1, ..self.span }
            }
            _ => self.span,
        }
    }

    /// What it is, for "expected ..., found ...".
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            NodeKind::Str(_) => "a string".to_owned(),
            NodeKind::Int(n) => format!("the number {n}"),
            NodeKind::Float(x) => format!("the number {x}"),
            NodeKind::Bool(b) => format!("`{b}`"),
            NodeKind::None => "`None`".to_owned(),
            NodeKind::Word(name) => format!("`{name}`"),
            NodeKind::Struct(Some(name), _) | NodeKind::Tuple(Some(name), _) => format!("`{name}(...)`"),
            NodeKind::Struct(None, _) => "`(field: value)`".to_owned(),
            NodeKind::Tuple(None, _) => "a tuple".to_owned(),
            NodeKind::List(_) => "a list".to_owned(),
            NodeKind::Map(_) => "a map".to_owned(),
        }
    }
}

type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// Reads one value with nothing after it.
pub(super) fn parse(source: SourceId, text: &str) -> Result<Node> {
    let mut tokens = tokens(source, text)?;
    tokens.retain(Token::is_meaningful);
    let mut p = Parser { source, text, tokens, at: 0, open: Vec::new() };
    if p.tokens.is_empty() {
        return Err(Diagnostic::error("empty file")
            .label(Span::new(source, 0, 0), "nothing here")
            .help("a spec holds `Graph(...)`, `Module(...)`, a list of modules, or `Pipeline(...)`"));
    }
    let node = p.value()?;
    if p.at < p.tokens.len() {
        return Err(Diagnostic::error("text after the end of the spec")
            .label(p.span(), "not expected")
            .context(node.head(), "the spec is this value")
            .help("several modules in one file stand in a list: `[Module(...), Module(...)]`"));
    }
    is_plain_ron(source, text)?;
    Ok(node)
}

fn is_plain_ron(source: SourceId, text: &str) -> Result<()> {
    let Err(error) = ron::Options::default().from_str::<serde::de::IgnoredAny>(text) else { return Ok(()) };
    let at = |position: ron::error::Position| {
        let line: usize = text.split_inclusive('\n').take(position.line.saturating_sub(1)).map(str::len).sum();
        let chars = text[line..].chars().take(position.col.saturating_sub(1));
        offset(line + chars.map(char::len_utf8).sum::<usize>())
    };
    Err(Diagnostic::error(format!("not RON: {}", error.code))
        .label(Span::new(source, at(error.span.start), at(error.span.end)), "")
        .help("the format is described at https://docs.rs/ron"))
}

struct Parser<'a> {
    source: SourceId,
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    /// Brackets that are open, the innermost last.
    open: Vec<(Span, &'static str)>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<(Kind, &str)> {
        self.tokens.get(self.at).map(|t| (t.kind, &self.text[t.range.clone()]))
    }

    fn is(&self, punct: &str) -> bool {
        self.peek() == Some((Kind::Punct, punct))
    }

    fn eat(&mut self, punct: &str) -> bool {
        let found = self.is(punct);
        self.at += usize::from(found);
        found
    }

    /// The token at hand, or the end of the text.
    fn span(&self) -> Span {
        self.span_at(self.at)
    }

    fn span_at(&self, index: usize) -> Span {
        let end = self.text.trim_end().len();
        let range = self.tokens.get(index).map_or(end..end, |t| t.range.clone());
        Span::new(self.source, offset(range.start), offset(range.end))
    }

    fn since(&self, start: Span) -> Span {
        start.to(self.span_at(self.at.saturating_sub(1)))
    }

    fn found(&self) -> String {
        self.peek().map_or("the end of the file".to_owned(), |(_, text)| {
            // A string may be long and have line breaks.
            if text.starts_with('"') { "a string".to_owned() } else { format!("`{text}`") }
        })
    }

    fn expected(&self, what: &str) -> Diagnostic {
        let error = Diagnostic::error(format!("expected {what}, found {}", self.found()))
            .label(self.span(), format!("expected {what}"));
        let closes = matches!(self.peek(), None | Some((Kind::Punct, ")" | "]" | "}")));
        match self.open.last() {
            Some(&(open, close)) if closes => {
                error.context(open, "this bracket is open").help(format!("close it with `{close}`"))
            }
            _ => error,
        }
    }

    fn value(&mut self) -> Result<Node> {
        let start = self.span();
        if self.open.len() >= MAX_NESTING {
            return Err(Diagnostic::error("brackets nested too deep")
                .label(start, format!("more than {MAX_NESTING} levels"))
                .help("no field of a spec needs that many; is a bracket closed too late?"));
        }
        let kind = match self.peek() {
            Some((Kind::Str, _)) => NodeKind::Str(self.string()?),
            Some((Kind::Number, _)) => self.number()?,
            Some((Kind::Ident, _)) => self.word()?,
            Some((Kind::Punct, "(")) => self.parenthesised(None)?,
            Some((Kind::Punct, "[")) => NodeKind::List(self.items("]", Self::value)?),
            Some((Kind::Punct, "{")) => NodeKind::Map(self.items("}", Self::entry)?),
            _ => return Err(self.expected("a value")),
        };
        Ok(Node { kind, span: self.since(start) })
    }

    fn word(&mut self) -> Result<NodeKind> {
        let (text, span) = (self.peek().map_or("", |(_, text)| text).to_owned(), self.span());
        self.at += 1;
        if self.is("(") {
            return self.parenthesised(Some(Name::new(text, span)));
        }
        Ok(match text.as_str() {
            "true" => NodeKind::Bool(true),
            "false" => NodeKind::Bool(false),
            "None" => NodeKind::None,
            _ => NodeKind::Word(Name::new(text, span)),
        })
    }

    fn open(&mut self, close: &'static str) {
        self.open.push((self.span(), close));
        self.at += 1;
    }

    /// Is the innermost bracket closed here?
    fn closed(&mut self) -> bool {
        let closed = self.open.last().is_some_and(|&(_, close)| self.is(close));
        if closed {
            self.open.pop();
            self.at += 1;
        }
        closed
    }

    /// After an item, the comma or the end; says whether it was the end.
    fn separator(&mut self) -> Result<bool> {
        if self.eat(",") {
            return Ok(self.closed());
        }
        if self.closed() {
            return Ok(true);
        }
        let close = self.open.last().map_or("", |&(_, close)| close);
        let error = self.expected(&format!("`,` or `{close}`"));
        Err(match self.peek() {
            Some((Kind::Str | Kind::Ident | Kind::Number, _)) => error.help("is a comma missing before it?"),
            _ => error,
        })
    }

    /// Items up to the closing bracket.
    fn items<T>(&mut self, close: &'static str, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.open(close);
        let mut items = Vec::new();
        let mut end = self.closed();
        while !end {
            if items.len() >= MAX_ITEMS {
                return Err(Diagnostic::error("too many entries")
                    .label(self.span(), format!("more than {MAX_ITEMS} in one bracket"))
                    .help("a spec describes a model, not its data; use modules for what repeats"));
            }
            items.push(item(self)?);
            end = self.separator()?;
        }
        Ok(items)
    }

    fn parenthesised(&mut self, name: Option<Name>) -> Result<NodeKind> {
        let is_colon = |t: &Token| &self.text[t.range.clone()] == ":";
        let named = self.tokens.get(self.at + 2).is_some_and(is_colon);
        let first = self.tokens.get(self.at + 1).map(|t| t.kind);
        if named && matches!(first, Some(Kind::Ident | Kind::Str)) {
            return Ok(NodeKind::Struct(name, self.items(")", Self::field)?));
        }
        Ok(NodeKind::Tuple(name, self.items(")", Self::value)?))
    }

    fn field(&mut self) -> Result<(Name, Node)> {
        let name = match self.peek() {
            Some((Kind::Ident, text)) => Name::new(text, self.span()),
            Some((Kind::Str, _)) => {
                let error = self.expected("a field name");
                return Err(error.help("fields have no quotes, `name: value`; quoted keys stand in maps, `{ }`"));
            }
            _ => return Err(self.expected("a field name")),
        };
        self.at += 1;
        if !self.eat(":") {
            return Err(self.expected("`:`").help(format!("a field is written `{name}: value`")));
        }
        Ok((name, self.value()?))
    }

    fn entry(&mut self) -> Result<(Node, Node)> {
        let key = self.value()?;
        if !self.eat(":") {
            return Err(self.expected("`:`").help("an entry of a map is written `\"key\": value`"));
        }
        Ok((key, self.value()?))
    }

    fn number(&mut self) -> Result<NodeKind> {
        let span = self.span();
        let written = self.peek().map_or("", |(_, text)| text).replace('_', "");
        self.at += 1;
        let (sign, digits) = match written.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", written.strip_prefix('+').unwrap_or(&written)),
        };
        let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| digits.starts_with(prefix));
        if let Some((_, radix)) = radix {
            let int = i64::from_str_radix(&format!("{sign}{}", &digits[2..]), radix);
            return int.map(NodeKind::Int).map_err(|_| bad_number(span));
        }
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            let int = format!("{sign}{digits}").parse();
            return int.map(NodeKind::Int).map_err(|_| overflow(span, "i64", &i64::MAX.to_string()));
        }
        let float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        match format!("{sign}{digits}").parse::<f64>() {
            Ok(x) if float && (x as f32).is_finite() => Ok(NodeKind::Float(x)),
            Ok(x) if float && x.is_finite() => Err(overflow(span, "f32", &format!("{:e}", f32::MAX))),
            _ => Err(bad_number(span)),
        }
    }

    fn string(&mut self) -> Result<Text> {
        let span = self.span();
        let range = self.tokens.get(self.at).map_or(0..0, |t| t.range.clone());
        self.at += 1;
        let written = &self.text[range.clone()];
        let mut out = Text::new(span);
        if let Some(raw) = written.strip_prefix('r') {
            let hashes = raw.len() - raw.trim_start_matches('#').len();
            let start = range.start + hashes + 2;
            let end = range.end - hashes - 1;
            out.push(&self.text[start..end], start);
            out.finish(end);
            return Ok(out);
        }
        let (mut at, end) = (range.start + 1, range.end - 1);
        while at < end {
            let rest = &self.text[at..end];
            let plain = rest.find('\\').unwrap_or(rest.len());
            if plain > 0 {
                out.push(&rest[..plain], at);
                at += plain;
            } else {
                let (decoded, length) = unescape(rest).ok_or_else(|| self.bad_escape(at))?;
                out.push(&decoded, at);
                at += length;
            }
        }
        out.finish(end);
        Ok(out)
    }

    fn bad_escape(&self, at: usize) -> Diagnostic {
        let length = self.text[at..].chars().take(2).map(char::len_utf8).sum::<usize>();
        Diagnostic::error("unknown escape in a string")
            .label(Span::new(self.source, offset(at), offset(at + length)), "")
            .help("a backslash is written `\\\\`; others are \\n \\t \\\" \\u{e9}")
    }
}

fn overflow(span: Span, kind: &str, limit: &str) -> Diagnostic {
    Diagnostic::error("number overflow")
        .label(span, format!("does not fit in {kind}"))
        .help(format!("the largest number is {limit}"))
}

fn bad_number(span: Span) -> Diagnostic {
    Diagnostic::error("not a number").label(span, "").help("numbers are written `77`, `0.5`, `1e-3` or `0xff`")
}

/// The escape at the start of `text`: what it stands for and its length.
fn unescape(text: &str) -> Option<(String, usize)> {
    let mut chars = text.chars();
    chars.next()?;
    let simple = |c: char| Some((c.to_string(), 2));
    match chars.next()? {
        c @ ('\\' | '"' | '\'') => simple(c),
        'n' => simple('\n'),
        'r' => simple('\r'),
        't' => simple('\t'),
        '0' => simple('\0'),
        'x' => {
            let digits = text.get(2..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            let byte = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
            Some((char::from(byte).to_string(), 4))
        }
        'u' => {
            let digits = text.get(2..)?.strip_prefix('{')?.split_once('}')?.0;
            let hex = !digits.is_empty() && digits.len() <= 6 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let c = u32::from_str_radix(digits, 16).ok().filter(|_| hex).and_then(char::from_u32)?;
            Some((c.to_string(), 4 + digits.len()))
        }
        // A backslash at the end of a line joins it with the next.
        '\n' | '\r' => {
            let skipped = &text[1..];
            let blank = skipped.len() - skipped.trim_start_matches([' ', '\t', '\n', '\r']).len();
            Some((String::new(), 1 + blank))
        }
        _ => None,
    }
}

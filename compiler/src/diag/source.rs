//! Source texts and places in them.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use super::Diagnostic;

/// The largest spec file that is read, in bytes. The largest graph of the house is 4 kB; a file a thousand times that
/// size is a data file given by mistake, and reading it whole (a checkpoint has gigabytes) would exhaust memory.
pub const MAX_SOURCE_BYTES: u64 = 4 << 20;

/// Names one text of a [`SourceMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u32);

/// A half-open range of bytes `start..end` of one source text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The text.
    pub source: SourceId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The range `start..end` of a source.
    pub fn new(source: SourceId, start: u32, end: u32) -> Self {
        Span { source, start, end: end.max(start) }
    }

    /// The smallest span that holds both. Spans of two different sources have no such span: `self` is returned.
    #[must_use]
    pub fn to(self, other: Span) -> Span {
        if self.source != other.source {
            return self;
        }
        Span { source: self.source, start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}..{}", self.source.0, self.start, self.end)
    }
}

/// One text with its name (a path, `stdlib/gates.ron`, or a made-up one such as `--set`).
#[derive(Debug)]
struct Source {
    name: String,
    text: String,
}

/// All texts that spans can point into. Texts are only ever added.
#[derive(Debug, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

impl SourceMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text under a name that is shown to the user.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> SourceId {
        let id = SourceId(u32::try_from(self.sources.len()).unwrap_or(u32::MAX));
        let mut text = text.into();
        // Some editors begin a file with a mark of its byte order, which is no part of the text.
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        self.sources.push(Source { name: name.into(), text });
        id
    }

    /// Adds bytes that should be UTF-8.
    ///
    /// # Errors
    /// More than [`MAX_SOURCE_BYTES`], or not UTF-8: says the line and byte of the first bad byte.
    pub fn add_bytes(&mut self, name: impl Into<String>, bytes: &[u8]) -> Result<SourceId, Diagnostic> {
        let name = name.into();
        let size = bytes.len() as u64;
        if size > MAX_SOURCE_BYTES {
            return Err(too_large(&name, size));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(self.add(name, text)),
            Err(error) => Err(self.not_utf8(name, bytes, error.valid_up_to())),
        }
    }

    /// Reads a file. Its size is asked before it is read, and no more than the limit is ever read.
    ///
    /// # Errors
    /// Unreadable, larger than [`MAX_SOURCE_BYTES`], or not UTF-8.
    pub fn add_path(&mut self, path: &Path) -> Result<SourceId, Diagnostic> {
        let name = path.display().to_string();
        let size = std::fs::metadata(path).map_err(|e| unreadable(&name, &e))?.len();
        if size > MAX_SOURCE_BYTES {
            return Err(too_large(&name, size));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| unreadable(&name, &e))?;
        // A pipe has no size, and a file may grow: one byte more than allowed is enough to refuse it.
        file.take(MAX_SOURCE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| unreadable(&name, &e))?;
        self.add_bytes(name, &bytes)
    }

    /// The name of a source.
    pub fn name(&self, id: SourceId) -> &str {
        self.sources.get(id.0 as usize).map_or("", |s| &s.name)
    }

    /// The whole text of a source.
    pub fn text(&self, id: SourceId) -> &str {
        self.sources.get(id.0 as usize).map_or("", |s| &s.text)
    }

    /// Name and text of every source that was read from a file: what to compile the same again from, given as
    /// the `files` of the options.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let files = self.sources.iter().filter(|source| !source.name.starts_with("--"));
        files.map(|source| (source.name.as_str(), source.text.as_str()))
    }

    /// The text under a span, empty if the span lies outside of it.
    pub fn slice(&self, span: Span) -> &str {
        self.text(span.source).get(span.start as usize..span.end as usize).unwrap_or("")
    }

    /// Line and column of a span's start, both counted from 1; columns count characters.
    pub fn line_col(&self, span: Span) -> (usize, usize) {
        let text = self.text(span.source);
        let before = &text[..floor_char_boundary(text, span.start as usize)];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// `file:line:col` of a span's start.
    pub fn place(&self, span: Span) -> String {
        let (line, col) = self.line_col(span);
        format!("{}:{line}:{col}", self.name(span.source))
    }

    fn not_utf8(&mut self, name: String, bytes: &[u8], offset: usize) -> Diagnostic {
        let line = bytes[..offset].iter().filter(|&&b| b == b'\n').count() + 1;
        let bad = bytes.get(offset).copied().unwrap_or_default();
        let start = u32::try_from(String::from_utf8_lossy(&bytes[..offset]).len()).unwrap_or(u32::MAX);
        let message = format!("`{name}` is not UTF-8 text: byte {offset} (line {line}) is 0x{bad:02x}");
        let id = self.add(name, String::from_utf8_lossy(bytes));
        // The replacement character stands for the bad byte and is three bytes long.
        Diagnostic::error(message).label(Span::new(id, start, start + 3), "no UTF-8 character starts like this").help(
            match is_latin1(bytes) {
                true => "the file looks like Latin-1 (Windows-1252): save it as UTF-8",
                false => "save the file as UTF-8; if it is a checkpoint or a data set, it is not a spec",
            },
        )
    }
}

/// Whether bytes are text of one byte per character: no control characters but white space.
fn is_latin1(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c))
}

fn unreadable(name: &str, error: &io::Error) -> Diagnostic {
    // The text of the operating system's message varies between systems; its kind does not.
    let why = match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    };
    Diagnostic::error(format!("cannot read `{name}`: {why}")).help("check the path; specs end in `.ron`")
}

fn too_large(name: &str, size: u64) -> Diagnostic {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    Diagnostic::error(format!("`{name}` is too large for a spec: {:.1} MB", mb(size)))
        .note(format!("a spec has a few kB; at most {:.1} MB are read", mb(MAX_SOURCE_BYTES)))
        .help("was a checkpoint or a data file given in place of a spec?")
}

/// The largest character boundary that is not above `index` nor the text's length.
pub(super) fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

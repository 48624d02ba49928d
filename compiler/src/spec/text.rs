//! The text inside a RON string, with the way back to the file.

use crate::diag::{SourceId, Span};

/// A decoded string that knows the place in the file of each of its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    source: SourceId,
    text: String,
    /// `(offset in text, offset in file)` where a run of unescaped bytes, or an escape, begins; sorted. The last entry
    /// is the end of the text.
    pieces: Vec<(u32, u32)>,
    /// The literal with its quotes.
    pub(crate) literal: Span,
}

impl Text {
    /// Starts an empty text whose content begins at `file_offset`.
    pub(crate) fn new(literal: Span) -> Self {
        Text { source: literal.source, text: String::new(), pieces: Vec::new(), literal }
    }

    /// A text that is its own file, such as the value of `--set`.
    pub(crate) fn whole(source: SourceId, text: &str) -> Self {
        let mut whole = Text::new(Span::new(source, 0, offset(text.len())));
        whole.push(text, 0);
        whole.finish(text.len());
        whole
    }

    /// Appends what begins at `file_offset` of the file.
    pub(crate) fn push(&mut self, decoded: &str, file_offset: usize) {
        self.pieces.push((offset(self.text.len()), offset(file_offset)));
        self.text.push_str(decoded);
    }

    /// States where the content ends in the file.
    pub(crate) fn finish(&mut self, file_offset: usize) {
        self.push("", file_offset);
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The place in the file of a range of the text.
    pub(crate) fn span(&self, start: usize, end: usize) -> Span {
        let first = self.file_offset(start);
        // Not the file offset of `end`: white space that a line continuation skips may stand before it.
        let last = if end > start { self.file_offset(end - 1) + 1 } else { first };
        Span::new(self.source, first, last)
    }

    /// The place in the file of the whole content, without quotes.
    pub(crate) fn content(&self) -> Span {
        self.span(0, self.text.len())
    }

    fn file_offset(&self, at: usize) -> u32 {
        let at = offset(at);
        let next = self.pieces.partition_point(|&(in_text, _)| in_text <= at);
        let piece = next.checked_sub(1).and_then(|i| self.pieces.get(i));
        piece.map_or(self.literal.start, |&(in_text, in_file)| in_file + (at - in_text))
    }
}

/// Sources are at most 4 MB, so the conversion does not lose anything.
pub(crate) fn offset(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

//! Tokenizers of Hugging Face's library, as their `tokenizer.json` describes them.
//!
//! What the file's post-processor puts around a text is kept, whatever the length of a row; truncation and padding that the file
//! asks for are not its business, but the row's.

use std::path::Path;

use tokenizers::models::ModelWrapper;
use tokenizers::tokenizer::Result as Made;

use super::clean::{MAX_BYTES, cut};
use crate::data::DataError;
use crate::data::panics::caught;

/// What to do about a file that is none.
pub(super) const ADVICE: &str = "give a `tokenizer.json`, as `tokenizers` and transformers' `save_pretrained` write it";

/// A text that shows what stands around all texts.
const PLAIN: &str = "a photo of 1 dog.";

/// No vocabulary has words for all of these: a tokenizer that fails on what it does not know fails here, and not at some step.
const STRANGE: &str = "zqxjv \u{13080}\u{a66e}\u{2042} \u{e000}\u{10fffd} \u{0}";

/// Names that the token of padding has where the file says nothing of padding.
const PADDING: [&str; 3] = ["[PAD]", "<pad>", "<|pad|>"];

/// A tokenizer of a file.
pub(super) struct FileTokenizer {
    inner: tokenizers::Tokenizer,
    /// The ids before every text.
    before: Vec<i32>,
    /// The ids behind every text.
    after: Vec<i32>,
    /// The id behind those, to the end of a row.
    pad: i32,
    /// One more than the largest id.
    size: u32,
    /// The file's text.
    content: [String; 1],
    /// The file's name.
    name: String,
}

impl FileTokenizer {
    /// Reads a description.
    ///
    /// # Errors
    /// It is none, or of a tokenizer that draws, that fails on some texts, or that makes nothing of any.
    pub(super) fn parse(path: &Path, text: String) -> Result<FileTokenizer, DataError> {
        let fail = |why: String| DataError::file(path, why, ADVICE);
        let opened = caught(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()));
        let mut inner = opened.map_err(&fail)?.map_err(|error| fail(format!("no tokenizer: {error}")))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|p| p > 0.0)
        {
            return Err(fail(
                "it leaves out merges at random (`dropout`), so that a text has no ids of its own".into(),
            ));
        }
        let padding = inner.get_padding().map(|padding| padding.pad_id);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| fail(error.to_string()))?;
        // A text that spells the name of an end is a text, and does not end there.
        inner.set_encode_special_tokens(true);
        let size = inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
        if i32::try_from(size).is_err() {
            return Err(fail(format!("it has ids up to {}, and those of a graph are of 32 bits", size - 1)));
        }
        let named = || PADDING.iter().find_map(|name| inner.token_to_id(name));
        let pad = padding.or_else(named).unwrap_or(0);
        let pad =
            i32::try_from(pad).map_err(|_| fail(format!("it pads with {pad}, and ids of a graph are of 32 bits")))?;
        let ids = |text: &str, framed: bool| match caught(|| encode(&inner, text, framed)) {
            Ok(Ok(ids)) => Ok(ids),
            Ok(Err(error)) => Err(fail(format!("it fails on texts: {error}"))),
            Err(why) => Err(fail(format!("it fails on texts: {why}"))),
        };
        ids(STRANGE, true)?;
        let (plain, framed) = (ids(PLAIN, false)?, ids(PLAIN, true)?);
        if plain.is_empty() {
            return Err(fail(format!("it makes no token of `{PLAIN}`")));
        }
        let at = framed.windows(plain.len()).position(|window| window == plain);
        let at = at.ok_or_else(|| fail("what it puts around a text changes the text's own tokens".into()))?;
        let (before, after) = (framed[..at].to_vec(), framed[at + plain.len()..].to_vec());
        // What stands around texts and behind them need not be of the vocabulary.
        let beside = before.iter().chain(&after).chain([&pad]).filter_map(|id| u32::try_from(*id).ok());
        let size = beside.map(|id| id.saturating_add(1)).chain([size]).max().unwrap_or(size);
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(FileTokenizer { inner, before, after, pad, size, content: [text], name })
    }

    /// Number of ids.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// The text of the file.
    pub(super) fn content(&self) -> &[String] {
        &self.content
    }

    /// How many ids stand around every text.
    pub(super) fn frame(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// The id that ends a text, if there is one.
    pub(super) fn end(&self) -> Option<u32> {
        self.after.first().and_then(|id| u32::try_from(*id).ok())
    }

    /// What a tower that reads a text at its largest id, as CLIP's do, makes of it otherwise than meant.
    pub(super) fn warning(&self) -> Option<String> {
        let Some(end) = self.end() else {
            return Some(format!("{} puts no end behind a text, where CLIP's towers read it", self.name));
        };
        let largest = self.size.saturating_sub(1);
        (end != largest).then(|| {
            format!(
                "{} ends a text with the id {end}, and has ids up to {largest}: a tower that reads a text at its largest id, as \
                 `text_transformer` does, reads it elsewhere",
                self.name
            )
        })
    }

    /// Fills a row. Texts that are too long lose their last tokens, never what stands around them.
    pub(super) fn encode_into(&self, text: &str, row: &mut [i32]) {
        let room = row.len().saturating_sub(self.frame());
        // What fails on some text failed on that of `parse`.
        let ids = caught(|| encode(&self.inner, cut(text, MAX_BYTES), false)).ok().and_then(Result::ok);
        let ids = ids.unwrap_or_default();
        row.fill(self.pad);
        let framed = self.before.iter().chain(ids.iter().take(room)).chain(&self.after);
        row.iter_mut().zip(framed).for_each(|(slot, id)| *slot = *id);
    }

    /// The text of a row.
    pub(super) fn text(&self, ids: &[i32]) -> String {
        let ids = ids.strip_prefix(self.before.as_slice()).unwrap_or(ids);
        let end = match self.after.first() {
            Some(end) => ids.iter().position(|id| id == end),
            None => ids.iter().rposition(|id| *id != self.pad).map(|last| last + 1),
        };
        let ids: Vec<u32> = ids[..end.unwrap_or(ids.len())].iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        caught(|| self.inner.decode(&ids, true)).ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// The ids of a text, with what the post-processor puts around them or without.
fn encode(tokenizer: &tokenizers::Tokenizer, text: &str, framed: bool) -> Made<Vec<i32>> {
    let encoding = tokenizer.encode_fast(text, framed)?;
    let ids = encoding.get_ids().iter().map(|id| i32::try_from(*id));
    ids.collect::<Result<_, _>>().map_err(|_| "an id that is none of 32 bits".into())
}

#[cfg(test)]
mod tests;

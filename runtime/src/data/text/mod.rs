//! Texts to token ids.
//!
//! Invariants:
//! - [`Tokenizer::encode`] gives exactly `context` ids: start, the text's tokens, end, zeros. A longer text is cut and its
//!   last id is the end. The end is the largest id of the vocabulary, so the first largest id marks the end of the text. Of a
//!   tokenizer of a file, start, end and padding are what the file says.
//! - It never fails: every string has ids. No text, however long or strange, takes more than bounded time.

mod clean;
mod clip;
mod files;
#[cfg(feature = "tokenizers")]
mod hugging_face;
#[cfg(not(feature = "tokenizers"))]
#[path = "no_hugging_face.rs"]
mod hugging_face;
mod repair;
mod vocabularies;
mod words;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use alip_plan::pipeline::Vocab;

pub use clean::clean;
pub use vocabularies::Vocabularies;
pub use words::{WordVocabulary, split_words};

use super::lines::read_text;
use super::{DataError, SampleSource, expand};
use clip::ClipTokenizer;
use hugging_face::FileTokenizer;

/// Turns texts into rows of token ids. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Clip(&'static ClipTokenizer),
    Words(Arc<WordVocabulary>),
    File(Arc<FileTokenizer>),
}

impl Tokenizer {
    /// CLIP's byte-pair tokenizer, 49408 ids.
    pub fn clip() -> Tokenizer {
        static CLIP: OnceLock<ClipTokenizer> = OnceLock::new();
        Tokenizer { kind: Kind::Clip(CLIP.get_or_init(ClipTokenizer::new)) }
    }

    /// A tokenizer of whole words.
    pub fn words(vocabulary: WordVocabulary) -> Tokenizer {
        Tokenizer { kind: Kind::Words(Arc::new(vocabulary)) }
    }

    /// The tokenizer of a `tokenize` op; a word list that is not in a file comes from the source.
    ///
    /// # Errors
    /// The word list cannot be read, is empty, or has more words than ids.
    pub fn open(vocab: &Vocab, source: &dyn SampleSource) -> Result<Tokenizer, DataError> {
        if let Some(tokenizer) = Tokenizer::without_source(vocab)? {
            return Ok(tokenizer);
        }
        let size = vocab.size().unwrap_or_default();
        Ok(Tokenizer::words(WordVocabulary::new(source.words(WordVocabulary::room(size))?, size)))
    }

    /// The tokenizer of a vocabulary whose words are not counted in a source; none of one whose words are.
    ///
    /// # Errors
    /// A word list or a tokenizer's file cannot be read.
    pub fn without_source(vocab: &Vocab) -> Result<Option<Tokenizer>, DataError> {
        match vocab {
            Vocab::Clip => Ok(Some(Tokenizer::clip())),
            Vocab::Words { size, file: Some(file) } => {
                Ok(Some(Tokenizer::words(WordVocabulary::read(Path::new(&expand(file)?), *size)?)))
            }
            Vocab::Words { file: None, .. } => Ok(None),
            Vocab::File { file } => {
                let file = expand(file)?;
                let text = read_text(Path::new(&file), hugging_face::ADVICE)?;
                Tokenizer::of_file(Path::new(&file), text).map(Some)
            }
        }
    }

    /// The tokenizer that the text of a `tokenizer.json` describes; `path` is where it was read.
    ///
    /// # Errors
    /// It is none that gives every text the same ids at any time.
    pub fn of_file(path: &Path, text: String) -> Result<Tokenizer, DataError> {
        Ok(Tokenizer { kind: Kind::File(Arc::new(FileTokenizer::parse(path, text)?)) })
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> u32 {
        match &self.kind {
            Kind::Clip(_) => clip::IDS,
            Kind::Words(vocabulary) => vocabulary.size(),
            Kind::File(file) => file.size(),
        }
    }

    /// What it was made of, which belongs to the trained model ([`Vocabularies`]): the word list, or the text of the file; nothing
    /// of a tokenizer that is part of this program.
    pub fn content(&self) -> &[String] {
        match &self.kind {
            Kind::Clip(_) => &[],
            Kind::Words(vocabulary) => vocabulary.list(),
            Kind::File(file) => file.content(),
        }
    }

    /// Whether rows of `context` ids have room for a token beside those that every text gets.
    ///
    /// # Errors
    /// They have not, in a sentence.
    pub fn fits(&self, context: usize) -> Result<(), String> {
        let frame = match &self.kind {
            Kind::Clip(_) | Kind::Words(_) => 2,
            Kind::File(file) => file.frame(),
        };
        let why = || format!("rows of {context} ids have no room for a text: {frame} stand around every one");
        if context > frame { Ok(()) } else { Err(why()) }
    }

    /// The id that ends a text, if there is one.
    pub fn end(&self) -> Option<u32> {
        match &self.kind {
            Kind::Clip(_) | Kind::Words(_) => self.vocab_size().checked_sub(1),
            Kind::File(file) => file.end(),
        }
    }

    /// What whoever reads a text at its largest id, as CLIP's towers do, must know of it.
    pub fn warning(&self) -> Option<String> {
        match &self.kind {
            Kind::Clip(_) | Kind::Words(_) => None,
            Kind::File(file) => file.warning(),
        }
    }

    /// The ids of a text: `context` of them (at least 2).
    pub fn encode(&self, text: &str, context: usize) -> Vec<i32> {
        let mut ids = vec![0; context];
        self.encode_into(text, &mut ids);
        ids
    }

    /// The text that token ids stand for, without start, end and padding; what the text was before it was cleaned and cut
    /// cannot be told.
    pub fn decode(&self, ids: &[i32]) -> String {
        let end = self.vocab_size() as i32 - 1;
        let inner = || -> Vec<i32> {
            ids.iter().copied().skip_while(|&id| id == end - 1).take_while(|&id| id != end).collect()
        };
        match &self.kind {
            Kind::Clip(clip) => clip.text(&inner()),
            Kind::Words(vocabulary) => vocabulary.text(&inner()),
            Kind::File(file) => file.text(ids),
        }
    }

    /// Fills a row with the ids of a text.
    pub fn encode_into(&self, text: &str, row: &mut [i32]) {
        let room = row.len().saturating_sub(2);
        let end = self.vocab_size() as i32 - 1;
        let mut ids = match &self.kind {
            Kind::Clip(clip) => clip.tokens(text, room),
            Kind::Words(vocabulary) => vocabulary.tokens(text, room),
            Kind::File(file) => return file.encode_into(text, row),
        };
        ids.truncate(room);
        row.fill(0);
        let framed = std::iter::once(end - 1).chain(ids).chain(std::iter::once(end));
        for (slot, id) in row.iter_mut().zip(framed) {
            *slot = id;
        }
    }
}

#[cfg(test)]
mod tests;

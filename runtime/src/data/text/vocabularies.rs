//! The word lists and tokenizers' files of a pipeline, which belong to whatever was trained with them: another one gives the same
//! words other ids.

use std::path::Path;

use alip_plan::pipeline::{Mode, Pipeline, PipelineOp, Prefix, Source, Vocab};
use serde::{Deserialize, Serialize};

use super::{Tokenizer, WordVocabulary, clean, split_words};
use crate::data::{DataError, ListHash, SampleSource, expand};

/// What every tokenizer was made of that is no part of this program: its words, or the text of its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vocabularies {
    lists: Vec<(Vocab, Vec<String>)>,
}

impl Vocabularies {
    /// Those of a pipeline, counted in the source or read from files now.
    ///
    /// # Errors
    /// A word list cannot be read.
    pub fn open(pipeline: &Pipeline, source: &dyn SampleSource) -> Result<Vocabularies, DataError> {
        let mut lists = Vec::new();
        for vocab in pipeline.vocabularies() {
            let tokenizer = Vocabularies::count(pipeline, vocab, source)?;
            if !tokenizer.content().is_empty() {
                lists.push((vocab.clone(), tokenizer.content().to_vec()));
            }
        }
        Ok(Vocabularies { lists })
    }

    /// A tokenizer whose words are counted in the source, or that is read from a file now.
    ///
    /// # Errors
    /// The file cannot be read, or the words are a closed list that does not fit.
    pub(in crate::data) fn count(
        pipeline: &Pipeline,
        vocab: &Vocab,
        source: &dyn SampleSource,
    ) -> Result<Tokenizer, DataError> {
        check_room(pipeline, vocab, source)?;
        let Vocab::Words { size, file: None } = vocab else { return Tokenizer::open(vocab, source) };
        let counted = source.words(WordVocabulary::room(*size))?;
        let mut words = put_before(pipeline, &counted);
        words.extend(counted);
        Ok(Tokenizer::words(WordVocabulary::new(words, *size)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The tokenizer of a vocabulary that is known here.
    ///
    /// # Errors
    /// This program was built without what a file's tokenizer needs.
    pub fn tokenizer(&self, vocab: &Vocab) -> Result<Option<Tokenizer>, DataError> {
        let Some((vocab, content)) = self.lists.iter().find(|(known, _)| known == vocab) else { return Ok(None) };
        match vocab {
            Vocab::Clip => Ok(None),
            Vocab::Words { size, .. } => Ok(Some(Tokenizer::words(WordVocabulary::new(content.clone(), *size)))),
            Vocab::File { file } => Tokenizer::of_file(Path::new(file), content.concat()).map(Some),
        }
    }

    /// The first file that reads otherwise now, with hashes of what it said then and says now. One that is no longer there, or can no
    /// longer be read, is not needed.
    pub fn changed(&self) -> Option<(&str, String, String)> {
        self.lists.iter().find_map(|(vocab, then)| {
            let file = vocab.file()?;
            expand(file).ok().filter(|path| Path::new(path).is_file())?;
            let now = Tokenizer::without_source(vocab).ok()?;
            let now = now.as_ref().map_or(&[][..], Tokenizer::content);
            (now != then.as_slice()).then(|| (file, hash(then), hash(now)))
        })
    }
}

fn hash(content: &[String]) -> String {
    let mut hash = ListHash::default();
    content.iter().for_each(|part| hash.add(part.as_bytes()));
    hash.to_string()
}

/// Words that a pipeline puts before its texts and that these do not have: every text has them.
fn put_before(pipeline: &Pipeline, counted: &[String]) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for node in pipeline.body(Mode::Train) {
        let PipelineOp::Prefix(Prefix { words: prefix }) = &node.op else { continue };
        for word in split_words(&clean(prefix)) {
            if !counted.contains(&word) && !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words
}

/// The closed word list of a source that makes its own texts fits in the vocabulary. (The words of other sources are counted,
/// and those that do not fit are the rarest.)
fn check_room(pipeline: &Pipeline, vocab: &Vocab, source: &dyn SampleSource) -> Result<(), DataError> {
    let (Source::Shapes { .. }, Vocab::Words { size, file: None }) = (&pipeline.source, vocab) else { return Ok(()) };
    let words = source.words(usize::MAX)?;
    let words = words.len() + put_before(pipeline, &words).len();
    let missing = words.saturating_sub(WordVocabulary::room(*size));
    if missing == 0 {
        return Ok(());
    }
    let needed = *size as usize + missing;
    let reason =
        format!("its source has {words} words, more than 'words:{size}' has room for; write 'words:{needed}' or more");
    Err(DataError::Pipeline { pipeline: pipeline.name.clone(), reason })
}

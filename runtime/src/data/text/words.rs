//! A vocabulary of whole words, for small models: most rows of CLIP's 49408 would never be trained.
//!
//! Ids: 0 padding, 1 any word that is not in the list, then the list, `size - 2` start of text, `size - 1` end of text.

use std::collections::HashMap;
use std::path::Path;

use super::clean::clean;
use crate::data::DataError;
use crate::data::lines::read_text;

const UNKNOWN: i32 = 1;
const FIRST_WORD: i32 = 2;
/// Padding, unknown, start, end.
const RESERVED: usize = 4;

/// A closed list of words and their ids.
#[derive(Clone, Debug)]
pub struct WordVocabulary {
    size: u32,
    list: Vec<String>,
    ids: HashMap<String, i32>,
}

impl WordVocabulary {
    /// Number of words that `size` ids have room for.
    pub fn room(size: u32) -> usize {
        (size as usize).saturating_sub(RESERVED)
    }

    /// A vocabulary of `size` ids; words beyond its room are left out and have the id of unknown words.
    pub fn new(mut list: Vec<String>, size: u32) -> WordVocabulary {
        list.truncate(WordVocabulary::room(size));
        let ids = (FIRST_WORD..).zip(&list).map(|(id, word)| (word.clone(), id)).collect();
        WordVocabulary { size, list, ids }
    }

    /// Reads one word per line.
    ///
    /// # Errors
    /// The file cannot be read, has no word, a line that is not one word, a repeated word, or more words than fit.
    pub fn read(path: &Path, size: u32) -> Result<WordVocabulary, DataError> {
        let text = read_text(path, "give the path of a word list, one word per line")?;
        let mut vocabulary = WordVocabulary::new(Vec::new(), size);
        for (number, line) in text.lines().enumerate() {
            let fail = |reason| DataError::Line { path: path.to_path_buf(), line: number + 1, reason };
            let word = line.trim();
            if split_words(word) != [word] {
                return Err(fail(format!(
                    "`{word}` is not one word in lower case (letters only, or a single digit); write one word per line"
                )));
            }
            if vocabulary.list.len() == WordVocabulary::room(size) {
                let needed = text.lines().count() + RESERVED;
                return Err(fail(format!("more words than {size} ids have room for; write 'words:{needed}:FILE'")));
            }
            let id = FIRST_WORD + vocabulary.list.len() as i32;
            if vocabulary.ids.insert(word.to_string(), id).is_some() {
                return Err(fail(format!("`{word}` stands here a second time; remove this line")));
            }
            vocabulary.list.push(word.to_string());
        }
        if vocabulary.list.is_empty() {
            return Err(DataError::file(path, "no words in it", "write one word per line"));
        }
        Ok(vocabulary)
    }

    /// Number of ids.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The words, in the order of their ids.
    pub fn list(&self) -> &[String] {
        &self.list
    }

    /// The words of ids; any other word is a question mark.
    pub(super) fn text(&self, ids: &[i32]) -> String {
        let word = |id: &i32| {
            let at = usize::try_from(i64::from(*id) - i64::from(FIRST_WORD)).ok();
            at.and_then(|at| self.list.get(at)).map_or("?", String::as_str)
        };
        ids.iter().filter(|id| **id != 0).map(word).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn tokens(&self, text: &str, room: usize) -> Vec<i32> {
        split_words(&clean(text)).iter().take(room).map(|word| *self.ids.get(word).unwrap_or(&UNKNOWN)).collect()
    }
}

/// The words of a text: lower case, runs of letters, each digit on its own; everything else only separates.
pub fn split_words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in text.chars().flat_map(char::to_lowercase) {
        match words.last_mut() {
            Some(word) if in_word && c.is_alphabetic() => word.push(c),
            _ if c.is_alphanumeric() => words.push(c.to_string()),
            _ => {}
        }
        in_word = c.is_alphabetic();
    }
    words
}

//! Tokenizers of Hugging Face's library, in a program that was built without it.

use std::path::Path;

use crate::data::DataError;

/// What to do about a file that cannot be read.
pub(super) const ADVICE: &str = "build this program with `--features tokenizers`";

/// A tokenizer of a file, of which there is none here.
pub(super) enum FileTokenizer {}

impl FileTokenizer {
    pub(super) fn parse(path: &Path, _: String) -> Result<FileTokenizer, DataError> {
        Err(DataError::file(path, "this program was built without Hugging Face's tokenizers", ADVICE))
    }

    pub(super) fn size(&self) -> u32 {
        match *self {}
    }

    pub(super) fn content(&self) -> &[String] {
        match *self {}
    }

    pub(super) fn frame(&self) -> usize {
        match *self {}
    }

    pub(super) fn end(&self) -> Option<u32> {
        match *self {}
    }

    pub(super) fn warning(&self) -> Option<String> {
        match *self {}
    }

    pub(super) fn encode_into(&self, _: &str, _: &mut [i32]) {
        match *self {}
    }

    pub(super) fn text(&self, _: &[i32]) -> String {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_in_is_told() {
        let error = FileTokenizer::parse(Path::new("t.json"), String::new()).err().unwrap().to_string();
        let said = "t.json: this program was built without Hugging Face's tokenizers; build this program with `--features tokenizers`";
        assert_eq!(error, said);
    }
}

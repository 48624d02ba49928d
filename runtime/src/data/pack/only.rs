//! Which samples are packed, where that is said by a list of keys: lines `{"key": "000000012"}`, as `alip-run weigh` writes.
//!
//! Of every line 8 bytes are kept, a hash of its key.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::DataError;
use super::captions::{LONGEST, key_hash, parsed};
use crate::data::source::ListHash;

/// What a line looks like.
const FORM: &str = r#"{"key": "000000012"}"#;

/// Keys of samples.
pub(super) struct Only {
    path: PathBuf,
    /// Hashes of the keys, rising.
    keys: Vec<u64>,
    /// Of all that is in the file.
    hash: ListHash,
}

impl Only {
    /// Reads a list.
    pub(super) fn open(path: &Path) -> Result<Only, DataError> {
        let advice = || format!("write one line per sample: {FORM}");
        let cannot = |error: std::io::Error| DataError::file(path, error, advice());
        let mut text = BufReader::with_capacity(1 << 20, File::open(path).map_err(cannot)?);
        let (mut keys, mut hash, mut line) = (Vec::new(), ListHash::default(), Vec::new());
        for number in 1.. {
            line.clear();
            if (&mut text).take(LONGEST).read_until(b'\n', &mut line).map_err(cannot)? == 0 {
                break;
            }
            let wrong = |reason: String| DataError::Line { path: path.into(), line: number, reason };
            if line.len() as u64 == LONGEST && line.last() != Some(&b'\n') {
                return Err(wrong("a line of more than 1 MiB".into()));
            }
            hash.add(&line);
            keys.extend(parsed(&line, FORM).map_err(wrong)?.map(|line| key_hash(&line.key)));
        }
        keys.sort_unstable();
        keys.dedup();
        keys.shrink_to_fit();
        if keys.is_empty() {
            return Err(DataError::file(path, "no keys in it", advice()));
        }
        Ok(Only { path: path.into(), keys, hash })
    }

    /// Which key of the list a sample has, if any.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.keys.binary_search(&key_hash(key)).ok()
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// What is in the file, as a number.
    pub(super) fn hash(&self) -> ListHash {
        self.hash
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Only, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.jsonl");
        std::fs::write(&path, text).unwrap();
        Only::open(&path).map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn keys_are_found() {
        let only = open("{\"key\": \"a\", \"weight\": 0.5}\n\n{\"key\": 12}\r\n{\"key\": \"a\"}").unwrap();
        assert_eq!(["a", "12", "b", ""].map(|key| only.find(key).is_some()), [true, true, false, false]);
        assert_eq!(only.len(), 2);
    }

    #[test]
    fn errors() {
        let check = |text: &str, expected: &str| assert_eq!(open(text).err().unwrap(), expected);
        check("\n", &format!("DIR/k.jsonl: no keys in it; write one line per sample: {FORM}"));
        check("{\"image\": \"a\"}", &format!("DIR/k.jsonl:1: not a line of the form {FORM}: missing field `key`"));
        check("000012\n", &format!("DIR/k.jsonl:1: not a line of the form {FORM}: invalid number"));
    }
}

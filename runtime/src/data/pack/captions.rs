//! Captions that come from a file of their own: lines `{"key": "000000012", "caption": "a dog on grass"}`.
//!
//! Of every line 16 bytes are kept, a hash of its key and its place. Lines are read again when they are asked for.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::Error;

use super::DataError;
use crate::data::lines::line_text;
use crate::data::source::ListHash;
use crate::data::source::paths::read_at;

/// What a line looks like.
const FORM: &str = r#"{"key": "000000012", "caption": "a dog on grass"}"#;

/// Longest line: a page of text has some thousand letters.
pub(super) const LONGEST: u64 = 1 << 20;

/// A line, at first as much of it as most of them have.
const USUAL: usize = 512;

/// Captions by key.
pub(super) struct Captions {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Hash of each key and the place of its line, in the order of the hashes.
    lines: Vec<(u64, u64)>,
    /// Of all that is in the file.
    hash: ListHash,
}

/// A line of a list of samples.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, deserialize_with = "key")]
    pub(super) key: Cow<'a, str>,
    #[serde(borrow)]
    caption: Option<Cow<'a, str>>,
}

/// A text or a whole number, as the keys of records are.
fn key<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Cow<'de, str>, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(key) => Ok(key.into()),
        serde_json::Value::Number(key) if key.is_u64() => Ok(key.to_string().into()),
        _ => Err(D::Error::custom("`key` is neither a text nor a whole number")),
    }
}

impl Captions {
    /// Looks where each line begins.
    pub(super) fn open(path: &Path) -> Result<Captions, DataError> {
        let advice = || format!("write one line per sample: {FORM}");
        let cannot = |error: std::io::Error| DataError::file(path, error, advice());
        let file = File::open(path).map_err(cannot)?;
        let mut text = BufReader::with_capacity(1 << 20, File::open(path).map_err(cannot)?);
        let (mut lines, mut hash, mut at, mut line) = (Vec::new(), ListHash::default(), 0, Vec::new());
        for number in 1.. {
            line.clear();
            let read = (&mut text).take(LONGEST).read_until(b'\n', &mut line).map_err(cannot)? as u64;
            if read == 0 {
                break;
            }
            let wrong = |reason: String| DataError::Line { path: path.into(), line: number, reason };
            if read == LONGEST && line.last() != Some(&b'\n') {
                return Err(wrong("a line of more than 1 MiB".into()));
            }
            hash.add(&line);
            if let Some(found) = parse(&line).map_err(wrong)? {
                lines.push((key_hash(&found.key), at));
            }
            at += read;
        }
        lines.sort_unstable();
        lines.shrink_to_fit();
        let captions = Captions { path: path.into(), file, bytes: at, lines, hash };
        captions.check_keys()?;
        if captions.lines.is_empty() {
            return Err(DataError::file(path, "no captions in it", advice()));
        }
        Ok(captions)
    }

    /// Every key stands in it once.
    fn check_keys(&self) -> Result<(), DataError> {
        for pair in self.lines.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let [(_, first), (_, second)] = [pair[0], pair[1]];
            let (key, other) = (self.line(first)?.0, self.line(second)?.0);
            if key == other {
                let line = self.number(second)?;
                let reason = format!("the key `{key}` stands in line {} too; leave one of them", self.number(first)?);
                return Err(DataError::Line { path: self.path.clone(), line, reason });
            }
        }
        Ok(())
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The file's name, to be shown.
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.path.file_name().unwrap_or_default().to_string_lossy()
    }

    /// What is in the file, as a number.
    pub(super) fn hash(&self) -> ListHash {
        self.hash
    }

    /// The caption of a key, and which one that is of all.
    pub(super) fn find(&self, key: &str) -> Result<Option<(usize, String)>, DataError> {
        let hash = key_hash(key);
        let first = self.lines.partition_point(|(other, _)| *other < hash);
        for (at, (_, place)) in self.lines.iter().enumerate().skip(first).take_while(|(_, (other, _))| *other == hash) {
            let (found, caption) = self.line(*place)?;
            if found == key {
                return Ok(Some((at, caption)));
            }
        }
        Ok(None)
    }

    /// Where in the file caption `at` stands.
    pub(super) fn place(&self, at: usize) -> u64 {
        self.lines[at].1
    }

    /// The key of caption `at`.
    pub(super) fn key(&self, at: usize) -> Result<String, DataError> {
        Ok(self.line(self.place(at))?.0)
    }

    /// Key and caption of the line at a place.
    fn line(&self, at: u64) -> Result<(String, String), DataError> {
        let changed = |reason: String| {
            let reason = format!("it was changed after it was opened ({reason})");
            DataError::file(&self.path, reason, "leave it as it is while it is in use")
        };
        let mut line = vec![0; USUAL];
        loop {
            let length = (line.len() as u64).min(self.bytes - at) as usize;
            line.truncate(length);
            read_at(&self.file, &mut line, at).map_err(|error| changed(error.to_string()))?;
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                line.truncate(end);
                break;
            }
            if at + length as u64 == self.bytes {
                break;
            }
            line.resize(length * 2, 0);
        }
        match parse(&line).map_err(&changed)? {
            Some(Line { key, caption }) => Ok((key.into_owned(), caption.unwrap_or_default().into_owned())),
            None => Err(changed("an empty line".into())),
        }
    }

    /// The number of the line at a place.
    fn number(&self, at: u64) -> Result<usize, DataError> {
        let cannot = |error| DataError::file(&self.path, error, "put back what it was");
        let before = File::open(&self.path).map_err(cannot)?.take(at);
        let count = |count, byte: Result<u8, _>| Ok(count + usize::from(byte? == b'\n'));
        Ok(1 + BufReader::with_capacity(1 << 20, before).bytes().try_fold(0, count).map_err(cannot)?)
    }
}

/// A line with a caption; `None` if it is blank.
fn parse(line: &[u8]) -> Result<Option<Line<'_>>, String> {
    match parsed(line, FORM)? {
        Some(Line { caption: None, .. }) => Err(format!("not a line of the form {FORM}: missing field `caption`")),
        line => Ok(line),
    }
}

/// A line; `None` if it is blank. What it should look like is told where it does not.
pub(super) fn parsed<'a>(line: &'a [u8], form: &str) -> Result<Option<Line<'a>>, String> {
    let line = line_text(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii())?;
    if line.is_empty() {
        return Ok(None);
    }
    let wrong = |error: serde_json::Error| {
        let error = error.to_string();
        // All of it is one line.
        let (what, _) = error.split_once(" at line ").unwrap_or((&error, ""));
        format!("not a line of the form {form}: {what}")
    };
    serde_json::from_str(line).map(Some).map_err(wrong)
}

/// What stands for a key.
pub(super) fn key_hash(key: &str) -> u64 {
    let mut hash = ListHash::default();
    hash.add(key.as_bytes());
    hash.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Captions, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.jsonl");
        std::fs::write(&path, text).unwrap();
        Captions::open(&path).map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), "DIR"))
    }

    #[test]
    fn captions_are_found_by_key() {
        let long = "x".repeat(3 * USUAL);
        let text = format!(
            "\u{feff}{{\"key\": \"a\", \"caption\": \"eins\", \"score\": 0.3}}\r\n\n{{\"key\": 12, \"caption\": \"{long}\"}}\n\
             {{\"caption\": \"\\\"drei\\\"\", \"key\": \"c/\\u0064\"}}"
        );
        let captions = open(&text).unwrap();
        assert_eq!(captions.len(), 3);
        let find = |key: &str| {
            captions.find(key).unwrap().map(|(at, caption)| {
                assert_eq!(captions.key(at).unwrap(), key);
                caption
            })
        };
        assert_eq!(find("a").as_deref(), Some("eins"));
        assert_eq!(find("12"), Some(long));
        assert_eq!(find("c/d").as_deref(), Some("\"drei\""));
        assert_eq!(find("b"), None);
    }

    #[test]
    fn errors() {
        let check = |text: &str, expected: &str| assert_eq!(open(text).err().unwrap(), expected);
        let form = format!("not a line of the form {FORM}");
        check("", &format!("DIR/c.jsonl: no captions in it; write one line per sample: {FORM}"));
        check("\n{\"key\": \"a\"}\n", &format!("DIR/c.jsonl:2: {form}: missing field `caption`"));
        check("{\"image\": \"a\"}", &format!("DIR/c.jsonl:1: {form}: missing field `key`"));
        check(
            "{\"key\": 1.5, \"caption\": \"x\"}",
            &format!("DIR/c.jsonl:1: {form}: `key` is neither a text nor a whole number"),
        );
        let a = "{\"key\": \"a\", \"caption\": \"x\"}\n";
        check(
            &format!("{a}\n{}{a}", a.replace("\"a\"", "\"b\"")),
            "DIR/c.jsonl:4: the key `a` stands in line 1 too; leave one of them",
        );
        check(&"x".repeat(LONGEST as usize), "DIR/c.jsonl:1: a line of more than 1 MiB");
    }
}

//! A shard: a tar archive in which the files of a sample stand together.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::cache;
use crate::data::DataError;
use crate::data::source::ListHash;
use crate::data::source::paths::read_at;

/// Tar archives are made of blocks of so many bytes.
pub(super) const BLOCK: u64 = 512;

/// What to do about a shard that is not as it should be.
pub(super) const ADVICE: &str = "write it anew, or leave it out of the source's `path`";

/// Files up to this size are texts, labels, or small enough to be read when a shard is looked into: their bytes are hashed.
const SMALL: u64 = 4096;

/// Most bytes of heads before a file, long names and pax headers among them.
pub(super) const MOST_HEADS: u64 = 1 << 20;

/// An archive of samples with random access. It is opened whenever it is read: there may be more of them than a process may have
/// open.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    bytes: u64,
    contents: Contents,
}

/// What is in a shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// Of names and sizes of all files, and of the bytes of small ones.
    pub(super) hash: u64,
    /// Where each sample begins, in blocks.
    pub(super) starts: Vec<u32>,
}

/// A file of a sample.
pub(super) struct Member {
    /// Its path up to the first dot of the last component.
    pub(super) key: String,
    /// What follows that dot, in lower case.
    pub(super) suffix: String,
    /// Where its bytes begin.
    pub(super) offset: u64,
    /// How many they are.
    pub(super) size: u64,
}

impl Shard {
    /// Looks into an archive, once: what is found is kept as long as the file has its size and time.
    pub(super) fn open(path: &Path, cache: Option<&Path>) -> Result<Shard, DataError> {
        let cannot = |error: io::Error| DataError::file(path, error, "give the shards that there are");
        let file = File::open(path).map_err(cannot)?;
        let about = file.metadata().map_err(cannot)?;
        let bytes = about.len();
        let entry = cache.and_then(|folder| cache::Entry::new(folder, path, &about));
        // A file that takes another's place may have its size and time; its samples lie elsewhere.
        let still = |contents: &Contents| {
            let last = contents.starts.last().map_or(0, |start| u64::from(*start) * BLOCK);
            walk(&file, last, bytes, |_, _| Ok(())).is_ok_and(|end| end > last)
        };
        let contents = match entry.as_ref().and_then(cache::Entry::read).filter(still) {
            Some(contents) => contents,
            None => {
                let contents = scan(&file, bytes).map_err(|reason| DataError::file(path, reason, ADVICE))?;
                if let Some(entry) = entry {
                    entry.write(&contents);
                }
                contents
            }
        };
        Ok(Shard { path: path.to_path_buf(), bytes, contents })
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.contents.starts.len()
    }

    /// Adds to a hash what samples there are.
    pub(super) fn hash(&self, hash: &mut ListHash) {
        hash.add(&self.bytes.to_le_bytes());
        hash.add(&self.contents.hash.to_le_bytes());
    }

    /// The files of a sample.
    pub(super) fn members(&self, at: usize) -> Result<(File, Vec<Member>), String> {
        let starts = &self.contents.starts;
        let from = u64::from(starts[at]) * BLOCK;
        let end = starts.get(at + 1).map_or(self.bytes, |next| u64::from(*next) * BLOCK);
        let file = File::open(&self.path).map_err(|error| format!("cannot be read: {error}"))?;
        let mut members = Vec::new();
        walk(&file, from, end, |member, _| {
            members.push(member);
            Ok(())
        })?;
        Ok((file, members))
    }
}

impl Member {
    /// Its bytes, into an empty buffer.
    pub(super) fn read(&self, shard: &File, into: &mut Vec<u8>) -> io::Result<()> {
        into.resize(self.size as usize, 0);
        read_at(shard, into, self.offset)
    }
}

/// Where samples begin, from the heads of all files.
fn scan(file: &File, bytes: u64) -> Result<Contents, String> {
    let (mut starts, mut keys, mut hash) = (Vec::new(), HashSet::new(), ListHash::default());
    let (mut key, mut suffixes, mut small) = (String::new(), Vec::new(), Vec::new());
    let end = walk(file, 0, bytes, |member, start| {
        let about: [&[u8]; 3] = [member.key.as_bytes(), member.suffix.as_bytes(), &member.size.to_le_bytes()];
        about.into_iter().for_each(|part| hash.add(part));
        if member.size <= SMALL {
            small.clear();
            member.read(file, &mut small).map_err(|error| format!("cannot be read: {error}"))?;
            hash.add(&small);
        }
        if member.key != key {
            if !keys.insert(member.key.clone()) {
                return Err(format!("the files of sample `{}` do not stand together", member.key));
            }
            starts.push(u32::try_from(start / BLOCK).map_err(|_| "an archive of more than 2 TiB".to_string())?);
            key = member.key;
            suffixes.clear();
        }
        if suffixes.contains(&member.suffix) {
            return Err(format!("sample `{key}` has two files `.{}`", member.suffix));
        }
        suffixes.push(member.suffix);
        Ok(())
    })?;
    check_end(file, end, bytes)?;
    match starts.is_empty() {
        true => Err("no samples in it".into()),
        false => Ok(Contents { hash: hash.value(), starts }),
    }
}

/// The keys of the samples in the first `bytes` of an archive, which end with a file.
pub(super) fn keys(file: &File, bytes: u64) -> Result<HashSet<String>, String> {
    let mut keys = HashSet::new();
    walk(file, 0, bytes, |member, _| {
        keys.insert(member.key);
        Ok(())
    })?;
    Ok(keys)
}

/// Behind its last file an archive has a block of zeros, and nothing else: one that was cut off between two files has none, and
/// of two archives in one file the second would be passed over.
fn check_end(file: &File, end: u64, bytes: u64) -> Result<(), String> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = end;
    while at < bytes {
        let length = (bytes - at).min(buffer.len() as u64) as usize;
        read_at(file, &mut buffer[..length], at).map_err(|error| format!("cannot be read: {error}"))?;
        if let Some(more) = buffer[..length].iter().position(|byte| *byte != 0) {
            return Err(format!("something follows the end of the archive, at byte {}", at + more as u64));
        }
        at += length as u64;
    }
    match bytes.checked_sub(end) {
        Some(rest) if rest >= BLOCK => Ok(()),
        _ => Err(format!("it ends at byte {bytes} without the mark of an archive's end: it is cut off")),
    }
}

/// All files that belong to samples between two places, each with where its entry begins; where the last entry ends.
fn walk(
    file: &File,
    from: u64,
    end: u64,
    mut take: impl FnMut(Member, u64) -> Result<(), String>,
) -> Result<u64, String> {
    let left = Cell::new(MOST_HEADS);
    let mut archive = tar::Archive::new(Window { file, from, at: from, end, left: &left });
    let mut start = from;
    let entries = archive.entries_with_seek().map_err(|error| error.to_string())?;
    for entry in entries {
        let entry = entry.map_err(|error| {
            // The crate shows the bytes that it found.
            let shown: String = error.to_string().chars().filter(|letter| !letter.is_control()).take(80).collect();
            format!("no tar archive from byte {start} on: {shown}")
        })?;
        left.set(MOST_HEADS);
        if entry.header().entry_type().is_gnu_sparse() {
            return Err(format!("the file at byte {start} is sparse, which nothing here reads"));
        }
        let (offset, size) = (from + entry.raw_file_position(), entry.size());
        let after = size.checked_next_multiple_of(BLOCK).and_then(|size| offset.checked_add(size));
        let Some(after) = after.filter(|_| offset.checked_add(size).is_some_and(|after| after <= end)) else {
            return Err(format!("the file at byte {start} is cut off"));
        };
        let begins = std::mem::replace(&mut start, after);
        let path = entry.path_bytes();
        if let Some((key, suffix)) = key_and_suffix(&path).filter(|_| entry.header().entry_type().is_file()) {
            take(Member { key, suffix, offset, size }, begins)?;
        }
    }
    Ok(start)
}

/// What a file is of and what it is; `None` for what is no part of a sample: `__name__`, names without a dot or with nothing
/// before it.
pub(super) fn key_and_suffix(path: &[u8]) -> Option<(String, String)> {
    let path = String::from_utf8_lossy(path);
    let path = path.strip_prefix("./").unwrap_or(&path);
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.')?;
    let is_meta = path[name..].starts_with("__") && path.ends_with("__");
    (dot > name && dot + 1 < path.len() && !is_meta).then(|| (path[..dot].to_string(), path[dot + 1..].to_lowercase()))
}

/// A part of a file, read from wherever one is in it.
struct Window<'a> {
    file: &'a File,
    from: u64,
    at: u64,
    end: u64,
    /// How much more may be read before the next file.
    left: &'a Cell<u64>,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (self.end.saturating_sub(self.at)).min(buffer.len() as u64) as usize;
        let left = self.left.get().checked_sub(length as u64);
        self.left.set(left.ok_or_else(|| io::Error::other("heads of more than 1 MiB"))?);
        read_at(self.file, &mut buffer[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => self.from.checked_add(to),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = to.filter(|to| *to >= self.from).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths_up_to_the_first_dot_of_the_name() {
        let check = |path: &str, expected: Option<(&str, &str)>| {
            let found = key_and_suffix(path.as_bytes());
            assert_eq!(found, expected.map(|(key, suffix)| (key.to_string(), suffix.to_string())), "{path}");
        };
        check("a.jpg", Some(("a", "jpg")));
        check("./train.v2/n01/7.left.JPG", Some(("train.v2/n01/7", "left.jpg")));
        check("000.seg.png", Some(("000", "seg.png")));
        check("README", None);
        check("a/.hidden", None);
        check("a.", None);
        check("__url__", None);
        check("__meta.json__", None);
    }
}

//! A shard: a tar archive in which the files of a sample stand together.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::super::{DataError, paths::read_at};
use super::cache;
use crate::data::source::ListHash;

/// Tar archives are made of blocks of so many bytes.
const BLOCK: u64 = 512;

/// What to do about a shard that is not as it should be.
const ADVICE: &str = "write it anew, or leave it out of the source's `path`";

/// An archive of samples with random access.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: File,
    bytes: u64,
    /// Where each sample begins, in blocks.
    starts: Vec<u32>,
}

/// A file of a sample.
pub(super) struct Member {
    /// Its path up to the first dot of the last component.
    pub(super) key: String,
    /// What follows that dot, in lower case.
    pub(super) suffix: String,
    /// Where its bytes begin.
    offset: u64,
    /// How many they are.
    pub(super) size: u64,
}

impl Shard {
    /// Opens an archive. Where its samples begin is looked up once, and kept as long as the file has its size and time.
    pub(super) fn open(path: &Path, cache: Option<&Path>) -> Result<Shard, DataError> {
        let cannot = |error: io::Error| DataError::file(path, error, "give the shards that there are");
        let file = File::open(path).map_err(cannot)?;
        let about = file.metadata().map_err(cannot)?;
        let mut shard = Shard { path: path.to_path_buf(), file, bytes: about.len(), starts: Vec::new() };
        let entry = cache.and_then(|folder| cache::Entry::new(folder, path, &about));
        shard.starts = match entry.as_ref().and_then(cache::Entry::read) {
            Some(starts) => starts,
            None => {
                let starts = shard.scan().map_err(|reason| DataError::file(path, reason, ADVICE))?;
                if let Some(entry) = entry {
                    entry.write(&starts);
                }
                starts
            }
        };
        Ok(shard)
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Adds to a hash what samples there are.
    pub(super) fn hash(&self, hash: &mut ListHash) {
        hash.add(&self.bytes.to_le_bytes());
        self.starts.iter().for_each(|start| hash.add(&start.to_le_bytes()));
    }

    /// The files of a sample, as far as `take` goes on.
    pub(super) fn members(&self, at: usize, take: impl FnMut(Member) -> Result<bool, String>) -> Result<(), String> {
        let from = u64::from(self.starts[at]) * BLOCK;
        let end = self.starts.get(at + 1).map_or(self.bytes, |next| u64::from(*next) * BLOCK);
        let mut take = take;
        self.walk(from, end, |member, _| take(member))
    }

    /// The bytes of a file, into an empty buffer.
    pub(super) fn read(&self, member: &Member, into: &mut Vec<u8>) -> io::Result<()> {
        into.resize(member.size as usize, 0);
        read_at(&self.file, into, member.offset)
    }

    /// Where samples begin, from the heads of all files.
    fn scan(&self) -> Result<Vec<u32>, String> {
        let mut head = [0; 2];
        if self.bytes >= 2 && read_at(&self.file, &mut head, 0).is_ok() && head == [0x1f, 0x8b] {
            return Err("it is compressed, and cannot be read at any place: unpack it (`gunzip`)".into());
        }
        let (mut starts, mut keys) = (Vec::new(), std::collections::HashSet::new());
        let (mut key, mut suffixes) = (String::new(), Vec::new());
        self.walk(0, self.bytes, |member, start| {
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
            Ok(true)
        })?;
        match starts.is_empty() {
            true => Err("no samples in it".into()),
            false => Ok(starts),
        }
    }

    /// All files that belong to samples between two places, each with where its entry begins, as far as `take` goes on.
    fn walk(
        &self,
        from: u64,
        end: u64,
        mut take: impl FnMut(Member, u64) -> Result<bool, String>,
    ) -> Result<(), String> {
        let mut archive = tar::Archive::new(Window { file: &self.file, from, at: from, end });
        let mut start = from;
        let entries = archive.entries_with_seek().map_err(|error| error.to_string())?;
        for entry in entries {
            let entry = entry.map_err(|error| format!("no tar archive from byte {start} on: {error}"))?;
            let (offset, size) = (from + entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|after| after > end) {
                return Err(format!("the file at byte {start} is cut off"));
            }
            let after = offset + size.next_multiple_of(BLOCK);
            let begins = std::mem::replace(&mut start, after);
            let path = entry.path_bytes();
            if let Some((key, suffix)) = key_and_suffix(&path).filter(|_| entry.header().entry_type().is_file())
                && !take(Member { key, suffix, offset, size }, begins)?
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What a file is of and what it is; `None` for what is no part of a sample: `__name__`, names without a dot or with nothing
/// before it.
fn key_and_suffix(path: &[u8]) -> Option<(String, String)> {
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
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (self.end.saturating_sub(self.at)).min(buffer.len() as u64) as usize;
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

//! Shards: tar archives whose bytes are a function of what is in them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path};

use super::shard::{key_and_suffix, keys};
use crate::data::SampleError;

/// What the files of a sample are called in a shard: its key without an image's suffix, and `_` for dots in its last component,
/// since a sample's key ends at the first. Spelled as an archive spells paths (`a//./b` is `a/b`), so that keys which differ here
/// differ there; a path from the root is one from the archive's.
///
/// # Errors
/// A key that no path in an archive can be made of. Which one is not said, so that all of them are one reason.
pub(in crate::data) fn member_key(key: &str) -> Result<String, SampleError> {
    let cannot = || SampleError("its key cannot be the path of a file in an archive".into());
    let mut parts = Vec::new();
    for part in Path::new(key).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(cannot)?),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(cannot()),
        }
    }
    let name = parts.pop().ok_or_else(cannot)?;
    let is_image = |suffix: &str| super::IMAGES.split(';').any(|known| known.eq_ignore_ascii_case(suffix));
    let name = match name.rsplit_once('.') {
        Some((stem, suffix)) if is_image(suffix) => stem,
        _ => name,
    };
    let name = name.replace('.', "_");
    parts.push(&name);
    let member = parts.join("/");
    match key_and_suffix(format!("{member}.jpg").as_bytes()) {
        Some((read, _)) if read == member && !member.contains('\0') => Ok(member),
        _ => Err(cannot()),
    }
}

/// Writes a shard, sample by sample.
pub(in crate::data) struct ShardWriter<W: Write> {
    archive: tar::Builder<W>,
    keys: HashSet<String>,
}

impl<W: Write> ShardWriter<W> {
    /// A new shard.
    pub(in crate::data) fn new(out: W) -> Self {
        ShardWriter { archive: tar::Builder::new(out), keys: HashSet::new() }
    }

    /// Goes on with a shard of which `bytes` are written; `written` reads them.
    ///
    /// # Errors
    /// They are no beginning of a shard.
    pub(in crate::data) fn resume(out: W, written: &File, bytes: u64) -> Result<Self, String> {
        Ok(ShardWriter { archive: tar::Builder::new(out), keys: keys(written, bytes)? })
    }

    /// Whether the shard has a sample of this key, which therefore no other may have.
    pub(in crate::data) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Writes the files of a sample: suffix and bytes of each.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::data) fn write(&mut self, key: &str, files: &[(&str, &[u8])]) -> io::Result<()> {
        for (suffix, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            // Nothing of who wrote it when: the same samples are the same bytes.
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            self.archive.append_data(&mut header, format!("{key}.{suffix}"), *bytes)?;
        }
        self.keys.insert(key.to_string());
        Ok(())
    }

    /// What is written to.
    pub(in crate::data) fn file(&mut self) -> &mut W {
        self.archive.get_mut()
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::data) fn finish(self) -> io::Result<W> {
        self.archive.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_paths() {
        let check = |key: &str, expected: Result<&str, &str>| {
            let found = member_key(key).map_err(|error| error.to_string());
            assert_eq!(found, expected.map(str::to_string).map_err(str::to_string), "{key}");
        };
        check("000000012", Ok("000000012"));
        check("images/a.JPG", Ok("images/a"));
        check("v1.0/a.b.png", Ok("v1.0/a_b"));
        check("a.txt", Ok("a_txt"));
        check("record 3 of a.rec", Ok("record 3 of a_rec"));
        check("./a//b/./c.jpg", Ok("a/b/c"));
        check("/data/a.jpg", Ok("data/a"));
        for key in ["../a.jpg", "a/../b.jpg", "a/.jpg", "/", "", "a\0b"] {
            check(key, Err("its key cannot be the path of a file in an archive"));
        }
    }
}

//! Where samples begin in shards that were opened before. Nothing depends on it but time: what is missing, damaged, or of a
//! file that has changed is looked up again.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::place::About;
use super::shard::Contents;
use crate::data::source::ListHash;
use crate::file::write_bytes;

/// First bytes of an entry; another format has others.
const MAGIC: &[u8; 8] = b"alipwds2";

/// What is kept for a shard.
pub(super) struct Entry {
    path: PathBuf,
    /// Path, size and time of the shard.
    identity: Vec<u8>,
}

impl Entry {
    /// The entry in `folder` for a file as it is now.
    pub(super) fn new(folder: &Path, shard: &Path, about: &Metadata) -> Option<Entry> {
        let shard = shard.canonicalize().ok()?;
        let name = shard.as_os_str().as_encoded_bytes().to_vec();
        let version = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
        Some(Entry::of(folder, &About { name, bytes: about.len(), version }))
    }

    /// The entry in `folder` for a shard of which this is known.
    pub(super) fn of(folder: &Path, about: &About) -> Entry {
        let About { name, bytes, version } = about;
        let length = (name.len() as u64).to_le_bytes();
        let identity = [&MAGIC[..], &length, name, &bytes.to_le_bytes(), &version.to_le_bytes()[..]].concat();
        let mut hash = ListHash::default();
        hash.add(name);
        Entry { path: folder.join(hash.to_string()), identity }
    }

    /// What is in the shard, if it is known.
    pub(super) fn read(&self) -> Option<Contents> {
        let rest = self.kept(&self.path)?;
        let (hash, starts) = rest.split_first_chunk::<8>()?;
        let (starts, []) = starts.as_chunks::<4>() else { return None };
        let starts = starts.iter().map(|start| u32::from_le_bytes(*start)).collect();
        Some(Contents { hash: u64::from_le_bytes(*hash), starts })
    }

    /// Keeps what is in the shard; where that cannot be, it is looked up the next time.
    pub(super) fn write(&self, contents: &Contents) {
        let starts = contents.starts.iter().flat_map(|start| start.to_le_bytes());
        let rest: Vec<u8> = contents.hash.to_le_bytes().into_iter().chain(starts).collect();
        self.keep(&self.path, &rest);
    }

    /// How many samples a shard has that is read in sequence, if it is known.
    pub(super) fn read_size(&self) -> Option<u64> {
        let size = self.kept(&self.size_path())?;
        Some(u64::from_le_bytes(size.try_into().ok()?)).filter(|size| *size > 0)
    }

    /// Keeps how many samples a shard has that is read in sequence.
    pub(super) fn write_size(&self, size: u64) {
        self.keep(&self.size_path(), &size.to_le_bytes());
    }

    fn size_path(&self) -> PathBuf {
        self.path.with_extension("size")
    }

    fn kept(&self, path: &Path) -> Option<Vec<u8>> {
        let bytes = fs::read(path).ok()?;
        let (sum, rest) = bytes.strip_prefix(&*self.identity)?.split_first_chunk::<4>()?;
        (u32::from_le_bytes(*sum) == crc32c::crc32c(rest)).then(|| rest.to_vec())
    }

    fn keep(&self, path: &Path, rest: &[u8]) {
        let bytes = [&*self.identity, &crc32c::crc32c(rest).to_le_bytes(), rest].concat();
        if path.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok()) {
            let _ = write_bytes(path, &bytes);
        }
    }
}

/// The folder of entries: the user's for what can be made again.
pub(in crate::data::source) fn folder() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = given("XDG_CACHE_HOME").or_else(|| given("LOCALAPPDATA"));
    let cache = cache.or_else(|| given("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("alip/shards"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_of_a_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (shard, kept) = (folder.path().join("a.tar"), folder.path().join("kept"));
        let entry = || Entry::new(&kept, &shard, &fs::metadata(&shard).unwrap()).unwrap();
        fs::write(&shard, [0; 512]).unwrap();
        assert_eq!(entry().read(), None);
        let contents = |starts: &[u32]| Contents { hash: 5, starts: starts.to_vec() };
        entry().write(&contents(&[0, 7, u32::MAX]));
        assert_eq!(entry().read(), Some(contents(&[0, 7, u32::MAX])));
        let file = entry().path;
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!(entry().read(), None, "damaged");
        entry().write(&contents(&[0]));
        fs::write(&shard, [0; 1024]).unwrap();
        assert_eq!(entry().read(), None, "another size");
        entry().write(&contents(&[2]));
        let later = UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
        fs::File::options().write(true).open(&shard).unwrap().set_modified(later).unwrap();
        assert_eq!(entry().read(), None, "another time");
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "nothing else is left");
    }
}

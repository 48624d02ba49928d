//! Compiled kernels on disk, so that a model starts at once the second time.
//!
//! A file is named by everything that decides its contents: text, options, the compiler down to its build. It begins with the checksum of the rest;
//! one that does not match it is made again, and a folder that cannot be written costs no more than the time.

use std::path::{Path, PathBuf};
use std::sync::Once;

use sha2::{Digest, Sha256};

use crate::file::write_bytes;

/// A folder of compiled kernels, or none.
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's, for what can be made again.
    pub(super) fn of_user() -> Cache {
        let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = given("XDG_CACHE_HOME").or_else(|| given("LOCALAPPDATA"));
        let cache = cache.or_else(|| given("HOME").map(|home| home.join(".cache")));
        Cache { folder: cache.map(|cache| cache.join("alip/cubins")) }
    }

    /// What was kept for these parts, if it is whole.
    pub(super) fn find(&self, parts: &[&str]) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(parts)?).ok()?;
        let (sum, rest) = bytes.split_at_checked(SUM)?;
        (sum == Sha256::digest(rest).as_slice()).then(|| rest.to_vec())
    }

    /// Keeps something; where that is not possible, says so once.
    pub(super) fn keep(&self, parts: &[&str], cubin: &[u8]) {
        let Some(path) = self.path(parts) else { return };
        if let Err(why) = write(&path, cubin) {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| eprintln!("kernels are compiled again next time: {why}"));
        }
    }

    fn path(&self, parts: &[&str]) -> Option<PathBuf> {
        let mut hash = Sha256::new();
        for part in parts {
            // Lengths keep apart what would read the same joined.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.folder.as_ref()?.join(name))
    }
}

/// Bytes of a checksum.
const SUM: usize = 32;

fn write(path: &Path, cubin: &[u8]) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let sum = Sha256::digest(cubin);
    write_bytes(path, &[sum.as_slice(), cubin].concat()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: Some(folder.path().join("alip/cubins")) };
        let parts = ["text", "sm_90a", "12.8"];
        assert_eq!(cache.find(&parts), None);
        cache.keep(&parts, b"code");
        assert_eq!(cache.find(&parts).as_deref(), Some(b"code".as_slice()));
        assert_eq!(cache.find(&["texts", "m_90a", "12.8"]), None);
        let path = cache.path(&parts).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..10], &whole[..whole.len() - 1], &[whole.as_slice(), b"x"].concat()] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(cache.find(&parts), None);
        }
        cache.keep(&parts, b"code");
        assert_eq!(cache.find(&parts).as_deref(), Some(b"code".as_slice()));
    }

    #[test]
    fn a_folder_that_cannot_be_made_costs_only_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache { folder: Some(file.path().join("cubins")) };
        cache.keep(&["text"], b"code");
        assert_eq!(cache.find(&["text"]), None);
        assert_eq!(Cache { folder: None }.find(&["text"]), None);
    }
}

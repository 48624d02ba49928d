//! Files that appear whole or not at all.
//!
//! Invariants:
//! - A file has its name only when it is complete and on disk: it is written beside under a name of its own, synchronised,
//!   renamed, and the folder synchronised. So whoever reads meets the old file or the new one, and any number of processes may
//!   write the same file.
//! - What is left of a killed writer ends in `.unfinished` and is no file of anybody's.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::tensor::TensorError;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `read`, `write`, `create the folder`.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not those of such a file, or end too early.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No tensor of this name.
    #[error("{}: there is no tensor `{name}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor of another shape than is asked for.
    #[error("{}: tensor `{name}` has the shape {shapes}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// `[8, 3], but [4, 3] is needed`.
        shapes: String,
    },
    /// A tensor that cannot be converted.
    #[error("{}: tensor `{name}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: TensorError,
    },
}

impl FileError {
    /// Of what the system says on trying to `action` (`read`, `write`) a file.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FileError {
        let path = path.to_path_buf();
        move |source| FileError::Io { path, action, source }
    }
}

/// Writes a file under a name of its own in the same folder, synchronises it, and renames it to `path`.
///
/// # Errors
/// What `fill` returns, or the system refuses; the unfinished file is removed.
pub fn write_beside<E: From<FileError>>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let (mut file, beside) = create_beside(path)?;
    let write = || -> Result<(), E> {
        fill(&mut file)?;
        file.sync_all().map_err(FileError::io(&beside, "write"))?;
        fs::rename(&beside, path).map_err(FileError::io(path, "write"))?;
        sync_folder(path.parent());
        Ok(())
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Writes a whole file as [`write_beside`] does.
///
/// # Errors
/// The system refuses; nothing has changed at `path` then.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, |file| file.write_all(bytes).map_err(FileError::io(path, "write")))
}

/// Names in a folder must reach the disk too; systems that cannot open a folder do it on their own.
pub(crate) fn sync_folder(folder: Option<&Path>) {
    let folder = folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    if let Some(Ok(folder)) = folder.map(File::open) {
        let _ = folder.sync_all();
    }
}

/// Suffix of files that are being written.
const UNFINISHED: &str = ".unfinished";

/// A new file beside `path`, whose name no other process and no other thread has.
fn create_beside(path: &Path) -> Result<(File, PathBuf), FileError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{process}-{number}{UNFINISHED}"));
        match File::create_new(&beside) {
            Ok(file) => return Ok((file, beside)),
            // Of a killed process that had the same number, perhaps on another machine.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < u32::MAX => {}
            Err(error) => return Err(FileError::io(path, "write")(error)),
        }
    }
}

/// Removes what killed processes left half written in a folder, if it is this old: a younger file may have a living writer.
pub(crate) fn remove_unfinished(folder: &Path, age: Duration) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_old = || {
            entry.metadata().and_then(|data| data.modified()).is_ok_and(|time| match time.elapsed() {
                Ok(elapsed) => elapsed >= age,
                // A clock that was set back.
                Err(_) => age.is_zero(),
            })
        };
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) && is_old() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what killed processes left half written of this file. Only for who knows that nobody else writes it now.
pub(crate) fn remove_unfinished_of(path: &Path) {
    let ours = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&ours) && name.ends_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::folder;

    #[test]
    fn many_writers_of_one_file_leave_a_whole_one_and_nothing_else() {
        let folder = folder("file_many_writers");
        let path = folder.join("results.json");
        let texts: Vec<Vec<u8>> = (0..4u8).map(|n| vec![b'a' + n; 100_000]).collect();
        std::thread::scope(|scope| {
            for text in &texts {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write_bytes(path, text).unwrap()));
            }
        });
        assert!(texts.contains(&fs::read(&path).unwrap()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_a_young_file_is_not() {
        let folder = folder("file_unfinished");
        let (_, beside) = create_beside(&folder.join("x")).unwrap();
        remove_unfinished(&folder, Duration::from_secs(60));
        assert!(beside.exists());
        remove_unfinished_of(&folder.join("y"));
        assert!(beside.exists());
        remove_unfinished_of(&folder.join("x"));
        assert!(!beside.exists());
        let (_, beside) = create_beside(&folder.join("x")).unwrap();
        remove_unfinished(&folder, Duration::ZERO);
        assert!(!beside.exists());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = folder("file_failed");
        let path = folder.join("x");
        write_bytes(&path, b"old").unwrap();
        let failed = write_beside(&path, |_| Err(FileError::Missing { path: path.clone(), name: "n".into() }));
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}

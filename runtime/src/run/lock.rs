//! One writer per run directory.
//!
//! The lock is the operating system's, on an open file, so that it ends with its process however that ends. What the file says
//! is for people: who holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use super::RunError;
use crate::file::FileError;

/// Name of the file in a run directory.
const FILE: &str = "run.lock";

/// A run directory is this process's to write; until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    /// Whether the file system keeps locks at all.
    is_kept: bool,
}

impl Lock {
    /// Takes the lock of a directory. On a file system without locks every process gets one: see [`Lock::is_kept`].
    ///
    /// # Errors
    /// Another process has it, or the system refuses.
    pub(super) fn take(root: &Path) -> Result<Lock, RunError> {
        Lock::take_by(root, File::try_lock)
    }

    /// The same by the system's means, or what a test has in their place.
    pub(super) fn take_by(
        root: &Path,
        try_lock: impl FnOnce(&File) -> Result<(), TryLockError>,
    ) -> Result<Lock, RunError> {
        let path = root.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(FileError::io(&path, "write"))?;
        let is_kept = match try_lock(&file) {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Where a locked file cannot be read the holder has no name.
                let _ = file.read_to_string(&mut holder);
                return Err(RunError::Busy { path: root.to_path_buf(), holder: holder.trim().to_string() });
            }
            Err(TryLockError::Error(error)) if knows_no_locks(&error) => false,
            Err(TryLockError::Error(error)) => return Err(FileError::io(&path, "lock")(error).into()),
        };
        let holder =
            format!("process {}{}\n", std::process::id(), host().map_or(String::new(), |host| format!(" on {host}")));
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(FileError::io(&path, "write"))?;
        Ok(Lock { _file: file, is_kept })
    }

    /// Whether a second writer would be noticed; not on a file system without locks, as some networks have.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Gives the lock back and removes its file, of a directory that is to be as it was.
    pub(super) fn forget(self, root: &Path) {
        let _ = std::fs::remove_file(root.join(FILE));
    }
}

/// Whether this says that the file system has no locks, and not that somebody holds one: ENOSYS, EOPNOTSUPP, and ENOLCK, of
/// which the library makes no kind of error.
fn knows_no_locks(error: &std::io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ENOLCK) {
        return true;
    }
    error.kind() == ErrorKind::Unsupported
}

/// The name of this machine, where it is easily had.
fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok())?;
    Some(name.trim().to_string()).filter(|name| !name.is_empty())
}

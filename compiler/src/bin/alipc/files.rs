//! Files that commands write: beside their place and then renamed, so that a full disk or a crash leaves either the old or
//! the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use alip_compiler::diag::Diagnostic;

/// Writes a file into a folder, which is made if it is not there; its path.
///
/// # Errors
/// The folder cannot be made, or the file not written; the file is then as it was.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf, Diagnostic> {
    let path = folder.join(name);
    fs::create_dir_all(folder).map_err(|error| {
        Diagnostic::error(format!("cannot make the folder `{}`: {}", folder.display(), why(&error)))
            .help("give a folder that you may write to")
    })?;
    replace(&path, bytes)?;
    Ok(path)
}

/// Writes a file, also in place of another one.
///
/// # Errors
/// It cannot be written; it is then as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    put(path, bytes).map_err(|error| {
        let error = Diagnostic::error(format!("cannot write `{}`: {}", path.display(), why(&error)));
        if path.is_file() { error.note("the file is as it was") } else { error }
            .help("check the permissions and the space of its folder")
    })
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Through a link, the file it points to is replaced, not the link.
    let path = if path.exists() { fs::canonicalize(path)? } else { path.to_owned() };
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let written = fs::write(&beside, bytes)
        .and_then(|()| fs::metadata(&path).map_or(Ok(()), |old| fs::set_permissions(&beside, old.permissions())))
        .and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        // What failed is reported; a leftover that cannot be removed either adds nothing to it.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// The text of the operating system's message varies between systems; its kind does not.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotFound => "no such folder".into(),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "a part of the path is a file".into(),
        io::ErrorKind::IsADirectory => "it is a folder".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the disk is read-only".into(),
        _ => error.to_string(),
    }
}

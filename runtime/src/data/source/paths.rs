//! Files of sources: their paths as specs write them (`${DATA}/part_{000..015}.rec`, `/data/*.rec`), and reading anywhere in one.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::data::DataError;

/// More files than this are a slip of the pen: the largest published sets have some hundred thousand shards.
const MOST_FILES: usize = 1 << 20;

/// A path with its environment variables replaced.
///
/// # Errors
/// A variable that is not set, or a brace that is not closed.
pub fn expand(path: &str) -> Result<String, DataError> {
    let fail = |reason: String| DataError::file(Path::new(path), reason, "set it, or write the path itself");
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, tail)) = after.split_once('}') else {
            return Err(fail("`${` without a closing brace".into()));
        };
        let value = std::env::var(name).map_err(|_| fail(format!("the environment variable `{name}` is not set")))?;
        out.push_str(before);
        out.push_str(&value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// All files that a path stands for: `{000..015}` counts, `{train,val}` lists, in the order written; `*`, `?` and `[..]` find
/// files by name, in alphabetical order. A path that is a file stands for itself, whatever is in its name.
pub(in crate::data) fn files(path: &str) -> Result<Vec<PathBuf>, DataError> {
    found(path, "file", Path::is_file)
}

/// All folders that a path stands for, in the same way.
pub(super) fn folders(path: &str) -> Result<Vec<PathBuf>, DataError> {
    found(path, "folder", Path::is_dir)
}

fn found(path: &str, what: &str, is: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, DataError> {
    let path = expand(path)?;
    if is(Path::new(&path)) {
        return Ok(vec![path.into()]);
    }
    let fail = |reason: String| DataError::file(Path::new(&path), reason, "give the path of what there is");
    let mut found = Vec::new();
    for pattern in alternatives(&path).map_err(fail)? {
        if !pattern.contains(['*', '?', '[']) {
            found.push(PathBuf::from(pattern));
            continue;
        }
        let matches = glob::glob(&pattern).map_err(|error| fail(format!("not a pattern of paths: {error}")))?;
        let before = found.len();
        for one in matches {
            let one = one.map_err(|error| fail(error.to_string()))?;
            // What is something else was not meant; without this, a folder among files is an error that names it.
            if what == "file" || is(&one) {
                found.push(one);
            }
        }
        if found.len() == before {
            return Err(fail(format!("no {what} is named like `{pattern}`")));
        }
    }
    if let Some(missing) = found.iter().find(|one| !is(one)) {
        return Err(DataError::file(missing, format!("no such {what}"), "give the path of what there is"));
    }
    let mut seen = HashSet::new();
    match found.iter().find(|file| !seen.insert(*file)) {
        Some(twice) => Err(DataError::file(twice, "named twice", "name every file once")),
        None => Ok(found),
    }
}

/// All URLs that a URL stands for: variables and braces are those of paths.
#[cfg(feature = "remote")]
pub(super) fn named(url: &str) -> Result<Vec<String>, DataError> {
    let url = expand(url)?;
    let urls = alternatives(&url);
    urls.map_err(|reason| DataError::file(Path::new(&url), reason, "give the URL of what there is"))
}

/// A pattern for all files of a folder with this extension, whatever is in the folder's name.
pub fn all_in(folder: &str, extension: &str) -> String {
    in_folder(folder, &format!("*.{extension}"))
}

/// A pattern for what is named so in a folder, whatever is in the folder's name.
pub fn in_folder(folder: &str, pattern: &str) -> String {
    Path::new(&literal(folder)).join(pattern).to_string_lossy().into_owned()
}

/// A pattern for all folders in a folder, whatever is in its name.
pub fn all_folders(folder: &str) -> String {
    in_folder(folder, "*")
}

/// The one folder of a path without patterns: as it is written, or as [`literal`] writes it.
pub(super) fn folder(path: &str) -> Result<PathBuf, DataError> {
    let path = expand(path)?;
    if Path::new(&path).is_dir() {
        return Ok(path.into());
    }
    let mut out = String::new();
    let mut rest = path.as_str();
    while let Some(letter) = rest.chars().next() {
        let inner = rest.strip_prefix('[').and_then(|rest| rest.chars().next().filter(|c| "*?[]{}".contains(*c)));
        let (letter, length) = match inner {
            Some(inner) if rest[2..].starts_with(']') => (inner, 3),
            _ => (letter, letter.len_utf8()),
        };
        out.push(letter);
        rest = &rest[length..];
    }
    Ok(out.into())
}

/// A pattern that stands for this path alone.
pub(crate) fn literal(path: &str) -> String {
    let mut out = String::new();
    for letter in path.chars() {
        match letter {
            '*' | '?' | '[' | ']' | '{' | '}' => out.extend(['[', letter, ']']),
            letter => out.push(letter),
        }
    }
    out
}

/// Where a pattern is no longer a plain path: at its first brace or wildcard.
pub(crate) fn pattern_from(path: &str) -> Option<usize> {
    path.find(['*', '?', '[', '{'])
}

/// A file's name, to be shown.
pub(super) fn name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// The first brace that is not taken as it is: `[{]` is.
fn brace(path: &str) -> Option<usize> {
    let is_literal = |at: usize| path[..at].ends_with('[') && path[at + 1..].starts_with(']');
    path.match_indices('{').map(|(at, _)| at).find(|at| !is_literal(*at))
}

/// The paths that a path with braces stands for.
fn alternatives(path: &str) -> Result<Vec<String>, String> {
    let Some(at) = brace(path) else { return Ok(vec![path.into()]) };
    let (before, rest) = (&path[..at], &path[at + 1..]);
    let (inner, after) = rest.split_once('}').ok_or("`{` without a closing brace")?;
    let choices = match inner.split_once("..") {
        Some((first, last)) => {
            count(first, last).ok_or_else(|| format!("`{{{inner}}}` is no range; write `{{000..015}}`"))?
        }
        None => inner.split(',').map(str::to_string).collect(),
    };
    let tails = alternatives(after)?;
    if choices.len().saturating_mul(tails.len()) > MOST_FILES {
        return Err(format!("more than {MOST_FILES} files"));
    }
    Ok(choices.iter().flat_map(|choice| tails.iter().map(move |tail| format!("{before}{choice}{tail}"))).collect())
}

/// The numbers of a range, both ends included, as wide as its first.
fn count(first: &str, last: &str) -> Option<Vec<String>> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let (from, to): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let width = first.len();
    (from <= to && to - from < MOST_FILES as u64).then(|| (from..=to).map(|n| format!("{n:0width$}")).collect())
}

/// Fills the buffer from a place in a file, whoever else reads it.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buffer.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_several_paths() {
        let check = |path: &str, expected: &[&str]| assert_eq!(alternatives(path).unwrap(), expected, "{path}");
        check("a.rec", &["a.rec"]);
        check("p{08..11}.rec", &["p08.rec", "p09.rec", "p10.rec", "p11.rec"]);
        check("p{9..10}", &["p9", "p10"]);
        check("{train,val}/{0..1}.tar", &["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]);
        assert_eq!(alternatives("a{0..1").unwrap_err(), "`{` without a closing brace");
        assert_eq!(alternatives("a{0..x}").unwrap_err(), "`{0..x}` is no range; write `{000..015}`");
        assert_eq!(alternatives("a{5..1}").unwrap_err(), "`{5..1}` is no range; write `{000..015}`");
        assert_eq!(alternatives("{0..9999}{0..9999}").unwrap_err(), "more than 1048576 files");
    }

    #[test]
    fn folders_may_be_called_anything() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["[v2]", "{a,b}", "a*", "what?"] {
            let at = folder.path().join(name);
            std::fs::create_dir(&at).unwrap();
            std::fs::write(at.join("x.rec"), "").unwrap();
            assert_eq!(files(&all_in(at.to_str().unwrap(), "rec")).unwrap(), [at.join("x.rec")], "{name}");
        }
    }

    #[test]
    fn patterns_find_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        for name in ["b.rec", "a.rec", "a.idx", "odd[1].rec"] {
            std::fs::write(at(name), "").unwrap();
        }
        let check = |path: &str, expected: Result<&[&str], &str>| {
            let found = files(&at(path)).map_err(|error| error.to_string());
            let expected = expected.map(|names| names.iter().map(|name| PathBuf::from(at(name))).collect::<Vec<_>>());
            match expected {
                Ok(expected) => assert_eq!(found.unwrap(), expected, "{path}"),
                Err(why) => assert!(found.as_ref().unwrap_err().contains(why), "{path}: {found:?}"),
            }
        };
        check("a.rec", Ok(&["a.rec"]));
        check("[ab].rec", Ok(&["a.rec", "b.rec"]));
        check("{b,a}.rec", Ok(&["b.rec", "a.rec"]));
        check("odd[1].rec", Ok(&["odd[1].rec"]));
        check("c*.rec", Err("no file is named like"));
        check("{a,b,a}.rec", Err("a.rec: named twice; name every file once"));
        check("{a,c}.rec", Err("c.rec: no such file; give the path of what there is"));
    }
}

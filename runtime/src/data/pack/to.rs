//! What is packed into: names of files.

use std::fs;
use std::path::{Path, PathBuf};

use super::DataError;

/// Digits of a shard's number where the user says nothing: as img2dataset has them.
const DIGITS: usize = 5;

/// Most digits of a shard's number, so that none of them outgrows its type, whatever the samples.
const MOST_DIGITS: usize = 12;

/// Samples of a shard where the user says nothing: as img2dataset has them.
const SHARD_SIZE: u64 = 10_000;

/// Ending of a file that is not finished.
const PART: &str = ".part";

/// Where packed samples go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackTo {
    /// A record file, with its index beside it.
    Records(PathBuf),
    /// Shards of a folder.
    Shards {
        /// The folder; `sizes.json` in it says how many samples each shard has.
        folder: PathBuf,
        /// What stands before their numbers.
        prefix: String,
        /// The first number.
        first: u64,
        /// The least number of digits.
        digits: usize,
        /// Samples of each shard but the last.
        size: u64,
    },
}

impl PackTo {
    /// `x.rec`, `out/{00000..}.tar`, or a folder for shards.
    ///
    /// # Errors
    /// None of these, or a shard size for a record file.
    pub fn parse(to: &str, shard_size: Option<u64>) -> Result<PackTo, String> {
        let path = Path::new(to);
        let shards = |folder: &Path, prefix: &str, first: u64, digits: usize| {
            let (folder, prefix) = (folder.to_path_buf(), prefix.to_string());
            PackTo::Shards { folder, prefix, first, digits, size: shard_size.unwrap_or(SHARD_SIZE) }
        };
        if let Some((before, number)) = to.strip_suffix("..}.tar").and_then(|rest| rest.rsplit_once('{')) {
            if number.len() > MOST_DIGITS {
                let digits = number.len();
                return Err(format!(
                    "a number of {digits} digits; shards have at most {MOST_DIGITS}, as in `{{00000..}}`"
                ));
            }
            let first = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok()).flatten();
            let first = first.ok_or_else(|| format!("`{{{number}..}}` counts from no number; write `{{00000..}}`"))?;
            let at = before.rfind('/').map_or(0, |slash| slash + 1);
            return Ok(shards(Path::new(&before[..at]), &before[at..], first, number.len()));
        }
        match path.extension() {
            Some(extension) if extension == "rec" && !path.is_dir() => match shard_size {
                None => Ok(PackTo::Records(path.into())),
                Some(_) => Err("a record file has no shards; leave --shard-size out, or give a folder".into()),
            },
            None => Ok(shards(path, "", 0, DIGITS)),
            Some(_) if path.is_dir() || to.ends_with('/') => Ok(shards(path, "", 0, DIGITS)),
            Some(_) => Err("write a record file `x.rec`, shards `folder/{00000..}.tar`, or a folder for them".into()),
        }
    }

    /// Whether these are records.
    pub(super) fn is_records(&self) -> bool {
        matches!(self, PackTo::Records(_))
    }

    /// What its bytes depend on.
    pub(super) fn form(&self) -> String {
        match self {
            PackTo::Records(_) => "a record file".into(),
            PackTo::Shards { prefix, first, digits, size, .. } => {
                format!("shards {prefix}{{{first:0digits$}..}}.tar of {size} samples")
            }
        }
    }

    /// Files `x.rec` and `x.idx`, or shard `number`.
    pub(super) fn files(&self, number: u64) -> Vec<PathBuf> {
        match self {
            PackTo::Records(path) => vec![path.clone(), path.with_extension("idx")],
            PackTo::Shards { folder, prefix, first, digits, .. } => {
                vec![folder.join(format!("{prefix}{:0digits$}.tar", first + number))]
            }
        }
    }

    /// How many samples each shard has, as other readers want to know.
    pub(super) fn sizes(&self) -> Option<PathBuf> {
        match self {
            PackTo::Records(_) => None,
            PackTo::Shards { folder, .. } => Some(folder.join("sizes.json")),
        }
    }

    /// A file of our own beside the output. Outputs of one folder have different ones.
    pub(super) fn beside(&self, what: &str) -> PathBuf {
        match self {
            PackTo::Records(path) => appended(path, &format!(".{what}")),
            PackTo::Shards { folder, prefix, .. } => folder.join(format!("{prefix}pack.{what}")),
        }
    }

    /// The folder of it all.
    pub(super) fn folder(&self) -> &Path {
        let folder = match self {
            PackTo::Records(path) => path.parent().unwrap_or(Path::new("")),
            PackTo::Shards { folder, .. } => folder,
        };
        if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
    }

    /// Files of an output that is finished.
    pub(super) fn finished(&self) -> Result<Vec<PathBuf>, DataError> {
        let existing = |files: Vec<PathBuf>| files.into_iter().filter(|path| path.exists()).collect();
        match self {
            PackTo::Records(_) => Ok(existing(self.files(0))),
            PackTo::Shards { .. } => self.shards(""),
        }
    }

    /// Files of an output that is not.
    pub(super) fn unfinished(&self) -> Result<Vec<PathBuf>, DataError> {
        match self {
            PackTo::Records(_) => Ok(self.files(0).iter().map(|path| part(path)).collect()),
            PackTo::Shards { .. } => self.shards(PART),
        }
    }

    /// Whether one of its shards is, or would be, called so.
    pub(super) fn is_shard(&self, name: &str) -> bool {
        let PackTo::Shards { prefix, first, digits, .. } = self else { return false };
        let number = name.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_suffix(".tar"));
        let is_ours = |text: &str, number: u64| number >= *first && format!("{number:0digits$}") == text;
        number.is_some_and(|text| text.parse().is_ok_and(|number| is_ours(text, number)))
    }

    /// Files of the folder that are called as its shards are, followed by this, in alphabetical order.
    fn shards(&self, after: &str) -> Result<Vec<PathBuf>, DataError> {
        let PackTo::Shards { folder, .. } = self else { return Ok(Vec::new()) };
        let is_shard = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_suffix(after).is_some_and(|name| self.is_shard(name))
        };
        let entries = match fs::read_dir(self.folder()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(DataError::file(folder, error, "give another --to")),
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_shard).collect();
        found.sort();
        Ok(found)
    }
}

/// The name of a file until it is finished.
pub(super) fn part(path: &Path) -> PathBuf {
    appended(path, PART)
}

fn appended(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_told_by_their_names() {
        let check = |to: &str, size: Option<u64>, files: &[&str]| {
            let parsed = PackTo::parse(to, size).unwrap();
            assert_eq!(parsed.files(1), files.iter().map(PathBuf::from).collect::<Vec<_>>(), "{to}");
        };
        check("a/x.rec", None, &["a/x.rec", "a/x.idx"]);
        check("nowhere", None, &["nowhere/00001.tar"]);
        check("nowhere.v2/", Some(3), &["nowhere.v2/00001.tar"]);
        check("a/train-{098..}.tar", None, &["a/train-099.tar"]);
        check("{99..}.tar", None, &["100.tar"]);
        let refused = |to: &str, size: Option<u64>, why: &str| assert_eq!(PackTo::parse(to, size).unwrap_err(), why);
        let forms = "write a record file `x.rec`, shards `folder/{00000..}.tar`, or a folder for them";
        refused("x.tar", None, forms);
        refused("x.parquet", None, forms);
        refused("{a..}.tar", None, "`{a..}` counts from no number; write `{00000..}`");
        refused("{..}.tar", None, "`{..}` counts from no number; write `{00000..}`");
        let digits = "a number of 20 digits; shards have at most 12, as in `{00000..}`";
        refused("{18446744073709551615..}.tar", None, digits);
        refused("x.rec", Some(5), "a record file has no shards; leave --shard-size out, or give a folder");
    }
}

//! A folder of images for each class.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::files::{Known, ListedFiles};
use super::{Dataset, class_names, twice};
use crate::data::{DataError, read_text};
use crate::eval::images::{EXTENSIONS, is_image};

const ADVICE: &str = "give a folder that has a folder of images for each class";

/// Opens the folders in `path`, of each the files from `skip` on, at most `take` of them unless it is 0.
pub(super) fn open(path: &Path, names: Option<&Path>, skip: usize, take: usize) -> Result<Dataset, DataError> {
    let folders = entries(path, true)?;
    if folders.is_empty() {
        return Err(DataError::file(path, "no folders in it", ADVICE));
    }
    let (mut files, mut labels) = (Vec::new(), Vec::new());
    let most = if take == 0 { usize::MAX } else { take };
    for (class, folder) in folders.iter().enumerate() {
        let all = entries(&path.join(folder), false)?;
        if all.is_empty() {
            let known = EXTENSIONS.join("`, `.");
            return Err(DataError::file(&path.join(folder), format!("no file `.{known}` in it"), ADVICE));
        }
        if all.len() <= skip {
            let reason = format!("{} images, of which `skip` leaves out {skip}", all.len());
            return Err(DataError::file(&path.join(folder), reason, "leave out fewer"));
        }
        files.extend(all.into_iter().skip(skip).take(most).map(|file| format!("{folder}/{file}")));
        labels.resize(files.len(), class as u32);
    }
    let names = match names {
        None => {
            let names: Vec<String> = folders.iter().map(|folder| folder.replace('_', " ")).collect();
            if let Some((first, second)) = twice(&names) {
                let reason = format!(
                    "`{}` and `{}` in it are both the class `{}`",
                    folders[first], folders[second], names[first]
                );
                return Err(DataError::file(path, reason, "rename one, or set `names` in the suite"));
            }
            names
        }
        Some(file) if file.extension().is_some_and(|extension| extension == "json") => {
            named_by_json(file, path, &folders)?
        }
        Some(file) => {
            let names = class_names(file)?;
            if names.len() != folders.len() {
                let reason = format!("{} names, and {} has {} folders", names.len(), path.display(), folders.len());
                return Err(DataError::file(file, reason, "give it a line for each folder, in alphabetical order"));
            }
            names
        }
    };
    let source = ListedFiles::new(path, path, files, Known::Classes(labels.clone()))?;
    Dataset::of_classes(Arc::new(source), (names, labels), path)
}

/// The folders in a folder, or else its image files, in alphabetical order. What begins with a dot is nobody's.
fn entries(path: &Path, folders: bool) -> Result<Vec<String>, DataError> {
    let fail = |error: std::io::Error| DataError::file(path, error, ADVICE);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links are followed: sets are put together of them.
        let is_wanted =
            if folders { entry.path().is_dir() } else { is_image(Path::new(&name)) && entry.path().is_file() };
        if is_wanted && !name.starts_with('.') {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// The names that JSON gives the folders: `{"n01440764": "tench", ...}`, or such under the name of the folder that they are in.
fn named_by_json(file: &Path, path: &Path, folders: &[String]) -> Result<Vec<String>, DataError> {
    let advice = r#"give it an object with a name for each folder, as in `{"n01440764": "tench"}`"#;
    let text = read_text(file, advice)?;
    let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let json: BTreeMap<String, Value> =
        serde_json::from_str(&text).map_err(|error| DataError::file(file, error, advice))?;
    let name = |folder: &String| {
        let found = match json.get(&own) {
            Some(Value::Object(of_this)) => of_this.get(folder),
            _ => json.get(folder),
        };
        match found {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(_) => Err(DataError::file(file, format!("what it says of `{folder}` is no text"), advice)),
            None => {
                Err(DataError::file(file, format!("no name for `{folder}`, a folder of {}", path.display()), advice))
            }
        }
    };
    folders.iter().map(name).collect()
}

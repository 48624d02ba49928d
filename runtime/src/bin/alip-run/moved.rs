//! A pipeline on other data than its own: what `--data` puts in the place of a source's path.

use std::path::Path;

use alip_plan::pipeline::{Pipeline, Source, TABLES};
use alip_runtime::data::{all_folders, all_in, in_folder};

/// Endings of files of samples that are no tables.
const OF_SAMPLES: [&str; 4] = [".rec", ".tar", ".tar.gz", ".tgz"];

/// Whether `--data` names data rather than a pipeline: a folder, files of records, shards, or tables.
pub(crate) fn is_data(data: &str) -> bool {
    let is_table = |extension: &std::ffi::OsStr| TABLES.iter().any(|known| extension == *known);
    Path::new(data).is_dir()
        || OF_SAMPLES.iter().any(|ending| data.ends_with(ending))
        || Path::new(data).extension().is_some_and(is_table)
}

/// Whether there are folders in a folder.
fn has_folders(folder: &str) -> bool {
    let is_folder = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|entry| entry.path().is_dir());
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.any(is_folder))
}

/// Endings of compressed shards.
const COMPRESSED: [&str; 2] = ["tar.gz", "tgz"];

/// Whether a folder has files with this ending.
fn has_files(folder: &str, extension: &str) -> bool {
    let ending = format!(".{extension}");
    let files = Path::new(folder).read_dir().into_iter().flatten().flatten();
    files.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(&ending))
}

/// Whether some shards of a folder are compressed and others are not, or by another name.
fn has_both(folder: &str) -> bool {
    ["tar"].iter().chain(&COMPRESSED).filter(|ending| has_files(folder, ending)).count() > 1
}

/// The files of a kind in a folder; shards may all be compressed.
fn files_of(folder: &str, extension: &str) -> String {
    let is_there = |other: &&&str| extension == "tar" && !has_files(folder, extension) && has_files(folder, other);
    all_in(folder, COMPRESSED.iter().find(is_there).copied().unwrap_or(extension))
}

/// The files of a pattern in another folder.
fn named_as(pattern: &str, folder: &str) -> String {
    let name = pattern.rsplit('/').next().unwrap_or(pattern);
    if name.contains(['*', '?', '[', '{']) {
        // The folder's name may have what looks like a pattern.
        return in_folder(folder, name);
    }
    Path::new(folder).join(name).to_string_lossy().into_owned()
}

/// A pipeline on other data; the error says why it cannot be.
pub(crate) fn moved(mut pipeline: Pipeline, data: &str) -> Result<Pipeline, String> {
    let folder = Path::new(data).is_dir();
    let extensions = pipeline.source.extensions();
    let is_table = matches!(pipeline.source, Source::Table { .. });
    let in_folders = matches!(pipeline.source, Source::Files { .. });
    let mixed = matches!(pipeline.source, Source::Mix { .. });
    let name = pipeline.name.clone();
    let fail = |why: &str| Err(format!("pipeline `{name}` {why}"));
    match pipeline.source.path_mut() {
        // Of a folder of folders all of them.
        Some(path) if in_folders && folder && has_folders(data) => *path = all_folders(data),
        // Of a folder of tables those of the same names: others may be held out.
        Some(path) if is_table && folder => *path = named_as(path, data),
        Some(_) if folder && extensions.contains(&"tar") && has_both(data) => {
            return fail(&format!(
                "would read the `.tar` of {data} alone, which has compressed shards too: unpack these, or give --data one kind"
            ));
        }
        Some(path) if folder || !extensions.is_empty() => {
            // Of a folder all files of the kind: as those before, if there are several kinds.
            let is_of = |extension: &&&str| path.ends_with(&format!(".{extension}"));
            let extension = extensions.iter().find(is_of).or(extensions.first());
            *path = extension.filter(|_| folder).map_or(data.to_string(), |extension| files_of(data, extension));
        }
        Some(_) => return fail("reads a folder of images; give --data a folder"),
        None if mixed => return fail("reads several sources; give --data a pipeline that names where they lie"),
        None => return fail("reads no files; give --data a pipeline whose source does, such as `Folder`"),
    }
    Ok(pipeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a source reads when a folder takes the place of its path.
    #[test]
    fn data_in_a_folder_take_the_place_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        std::fs::create_dir_all(at("files/00000")).unwrap();
        let check = |source: &str, data: &str, expected: Result<&str, &str>| {
            let found =
                moved(unchecked(source), &at(data)).map(|mut pipeline| pipeline.source.path_mut().cloned().unwrap());
            let shown = |text: String| text.replace(folder.path().to_str().unwrap(), "..");
            assert_eq!(found.map(shown).map_err(shown).as_deref().map_err(String::as_str), expected, "{source}");
        };
        let table = r#"{"Table":{"path":"a/train.csv","texts":{}}}"#;
        let shards = r#"{"Webdataset":{"path":"a/*.tar","texts":{}}}"#;
        let files = r#"{"Files":{"path":"a/*","texts":{}}}"#;
        check(table, "", Ok("../train.csv"));
        check(r#"{"Table":{"path":"a/{x,y}.csv","texts":{}}}"#, "", Ok("../{x,y}.csv"));
        check(files, "files", Ok("../files/*"));
        check(files, "files/00000", Ok("../files/00000"));
        check(shards, "", Ok("../*.tar"));
        std::fs::write(at("0.tar.gz"), "").unwrap();
        check(shards, "", Ok("../*.tar.gz"));
        std::fs::write(at("1.tar"), "").unwrap();
        let both = "pipeline `p` would read the `.tar` of ../ alone, which has compressed shards too: unpack these, or give --data one \
                    kind";
        check(shards, "", Err(both));
    }

    /// A pipeline with a source as plans hold it.
    fn unchecked(source: &str) -> Pipeline {
        let text =
            format!(r#"{{"name":"p","source":{source},"shuffle":null,"ops":[],"eval_ops":null,"outputs":{{}}}}"#);
        serde_json::from_str(&text).unwrap()
    }
}

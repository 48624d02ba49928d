//! The source `Files`: folders in which the files of a sample have one name, as shards that were unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::folder::read_image;
use super::parts::Parts;
use super::webdataset::{IMAGES, MAX_TEXT, Wanted};
use super::{Field, ListHash, RawSample, SampleSource, hash_sizes, paths};
use crate::data::{DataError, SampleError};

/// Samples whose texts are looked at to know data again: as many as can be read within a second from a slow disk.
const HASHED: u64 = 1_000;

/// Samples of folders; see [`alip_plan::pipeline::Source::Files`].
///
/// Of every sample its key is kept, and 4 bytes. Files are looked for when a sample is asked for, by whatever thread.
pub struct FilesSource {
    folders: Parts<Folder>,
    image: Wanted,
    texts: Vec<(String, Wanted)>,
}

/// One folder.
struct Folder {
    path: PathBuf,
    /// Names up to their first dot, in alphabetical order and without a gap.
    keys: String,
    /// Where each of them ends.
    ends: Vec<u32>,
    /// What follows the dot in names, as it is written.
    suffixes: Vec<String>,
}

impl FilesSource {
    /// Opens the folders that a path stands for; `texts` says for each text field which file it is: `txt`, or `json:caption`.
    ///
    /// # Errors
    /// A folder cannot be read, or there are no files of samples.
    pub fn open(path: &str, texts: &BTreeMap<String, String>) -> Result<FilesSource, DataError> {
        // Of several that are wrong the first is named.
        let folders: Vec<Result<Folder, DataError>> =
            paths::folders(path)?.par_iter().map(|path| Folder::open(path)).collect();
        let folders = Parts::new(folders.into_iter().collect::<Result<_, _>>()?, |folder| folder.ends.len());
        if folders.len() == 0 {
            let advice = "give the folder that the files lie in, as in `FOLDER/*` for all folders in one";
            return Err(DataError::file(
                Path::new(path),
                "no files of samples, such as `0001.jpg` and `0001.txt`",
                advice,
            ));
        }
        let texts = texts.iter().map(|(name, from)| (name.clone(), Wanted::new(from))).collect();
        Ok(FilesSource { folders, image: Wanted::new(IMAGES), texts })
    }

    fn text(&self, folder: &Folder, key: &str, wanted: &Wanted) -> Result<String, SampleError> {
        let (suffix, path) = folder.best(key, wanted)?;
        let fail = |error: std::io::Error| SampleError(format!("its `.{suffix}` cannot be read: {error}"));
        let size = fs::metadata(&path).map_err(fail)?.len();
        if size > MAX_TEXT {
            let (size, most) = (size >> 20, MAX_TEXT >> 20);
            return Err(SampleError(format!("its `.{suffix}` has {size} MiB, more than the allowed {most}")));
        }
        wanted.text(&suffix, fs::read(&path).map_err(fail)?)
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Folder, DataError> {
        let fail = |error: std::io::Error| DataError::file(path, error, "give a folder that can be read");
        let (mut names, mut suffixes) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir(path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let advice = "rename it: keys of samples are UTF-8";
                return Err(DataError::file(&entry.path(), "its name is not UTF-8", advice));
            };
            let Some((key, suffix)) = name.split_once('.') else { continue };
            let is_left_out = key.is_empty() || key.starts_with("__") && key.ends_with("__");
            if !is_left_out && !entry.file_type().map_err(fail)?.is_dir() {
                if !suffixes.contains(suffix) {
                    suffixes.insert(suffix.to_string());
                }
                if !names.contains(key) {
                    names.insert(key.to_string());
                }
            }
        }
        let (mut keys, mut ends) = (String::new(), Vec::with_capacity(names.len()));
        for name in names {
            keys.push_str(&name);
            let end = u32::try_from(keys.len());
            ends.push(end.map_err(|_| DataError::file(path, "names of more than 4 GiB in one folder", "use several"))?);
        }
        keys.shrink_to_fit();
        Ok(Folder { path: path.to_path_buf(), keys, ends, suffixes: suffixes.into_iter().collect() })
    }

    fn key(&self, at: usize) -> &str {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.keys[start..self.ends[at] as usize]
    }

    /// The best file of a sample, and its suffix.
    fn best(&self, key: &str, wanted: &Wanted) -> Result<(String, PathBuf), SampleError> {
        for suffix in &wanted.suffixes {
            let spelled = self.suffixes.iter().filter(|spelled| spelled.to_lowercase() == *suffix);
            let mut there =
                spelled.map(|spelled| self.path.join(format!("{key}.{spelled}"))).filter(|path| path.is_file());
            match (there.next(), there.next()) {
                (Some(path), None) => return Ok((suffix.clone(), path)),
                (Some(_), Some(_)) => return Err(SampleError(format!("two files `.{suffix}`"))),
                (None, _) => {}
            }
        }
        Err(wanted.missing())
    }
}

impl SampleSource for FilesSource {
    fn len(&self) -> u64 {
        self.folders.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (folder, at) = self.folders.place(index);
        let key = folder.key(at);
        let (_, image) = folder.best(key, &self.image)?;
        let mut fields = BTreeMap::from([("jpeg".to_string(), Field::Encoded(read_image(&image)?))]);
        for (name, wanted) in &self.texts {
            fields.insert(name.clone(), Field::Text(self.text(folder, key, wanted)?));
        }
        Ok(RawSample { fields, ..RawSample::default() })
    }

    fn name(&self, index: u64) -> String {
        let (folder, at) = self.folders.place(index);
        // With the folder above, since those of several sets may be called alike.
        let above = folder.path.parent().and_then(|above| above.file_name());
        let above = above.map_or_else(String::new, |above| format!("{}/", above.to_string_lossy()));
        format!("{above}{}/{}", paths::name(&folder.path), folder.key(at))
    }

    fn key(&self, index: u64) -> String {
        let (folder, at) = self.folders.place(index);
        folder.key(at).to_string()
    }

    fn file(&self, index: u64) -> Option<PathBuf> {
        let (folder, at) = self.folders.place(index);
        Some(folder.best(folder.key(at), &self.image).ok()?.1)
    }

    /// Of the names, and of the texts and the sizes of the images of a thousand samples.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for folder in self.folders.iter() {
            hash.add(folder.keys.as_bytes());
            folder.ends.iter().for_each(|end| hash.add(&end.to_le_bytes()));
        }
        hash_sizes(&mut hash, self.len(), |index| self.file(index));
        for index in (0..self.len()).step_by(self.len().div_ceil(HASHED) as usize) {
            let (folder, at) = self.folders.place(index);
            for (_, wanted) in &self.texts {
                // One that is missing is as much what the data are as one that is there.
                hash.add(self.text(folder, folder.key(at), wanted).unwrap_or_default().as_bytes());
            }
        }
        Ok(hash.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn open(at: &tempfile::TempDir, path: &str, texts: &[(&str, &str)]) -> Result<FilesSource, String> {
        let texts = texts.iter().map(|(name, from)| (name.to_string(), from.to_string())).collect();
        let error = |error: DataError| error.to_string().replace(at.path().to_str().unwrap(), "..");
        FilesSource::open(at.path().join(path).to_str().unwrap(), &texts).map_err(error)
    }

    fn samples(source: &FilesSource) -> Vec<String> {
        let show = |index| match source.sample(index) {
            Ok(sample) => format!("{}: {:?}", source.name(index), sample.fields.values().collect::<Vec<_>>()),
            Err(error) => format!("{}: {error}", source.name(index)),
        };
        // Without the name of the folder that was made for the test.
        let show = |index| show(index).trim_start_matches(|c| c != '/').to_string();
        (0..source.len()).map(show).collect()
    }

    /// As img2dataset writes them, and what of it cannot be used.
    #[test]
    fn files_of_one_name_are_a_sample() {
        let at = folders(&[
            ("00000/000000001.JPG", "image"),
            ("00000/000000001.txt", "a cat\n"),
            ("00000/000000001.json", r#"{"caption": "one cat"}"#),
            ("00000/000000000.webp", "other"),
            ("00000/000000000.txt", "a dog"),
            ("00000/000000000.json", r#"{"caption": null}"#),
            ("00000/__meta__.json", "{}"),
            ("00000/.hidden", ""),
            ("00001/000010002.json", r#"{"caption": "a bird"}"#),
            ("00000.parquet", "x"),
            ("00000_stats.json", "{}"),
        ]);
        let source = open(&at, "*", &[("caption", "json:caption"), ("raw", "txt")]).unwrap();
        assert_eq!(
            samples(&source),
            [
                "/00000/000000000: its `.json` has no text `caption`",
                r#"/00000/000000001: [Text("one cat"), Encoded([105, 109, 97, 103, 101]), Text("a cat")]"#,
                "/00001/000010002: no file `.jpg` or `.jpeg` or `.png` or `.webp`",
            ]
        );
        let alone = open(&at, "00000", &[("raw", "txt")]).unwrap();
        assert_eq!(alone.len(), 2);
        let hash = alone.list_hash().unwrap();
        fs::write(at.path().join("00000/000000001.txt"), "a cow\n").unwrap();
        assert_ne!(alone.list_hash().unwrap(), hash);
    }

    #[test]
    fn folders_that_cannot_be_used_are_refused() {
        let at = folders(&[("a/b/0.jpg", ""), ("x.tar", "")]);
        let check =
            |path: &str, expected: &str| assert_eq!(open(&at, path, &[]).err().as_deref(), Some(expected), "{path}");
        check(
            "a",
            "../a: no files of samples, such as `0001.jpg` and `0001.txt`; give the folder that the files lie in, as in \
             `FOLDER/*` for all folders in one",
        );
        check("c", "../c: no such folder; give the path of what there is");
        check("x.tar", "../x.tar: no such folder; give the path of what there is");
        check("c*", "../c*: no folder is named like `../c*`; give the path of what there is");
    }

    #[test]
    fn two_files_of_one_kind_are_a_bad_sample() {
        let at = folders(&[("a/0.jpg", "x"), ("a/0.JPG", "y"), ("a/1.JPG", "z")]);
        let source = open(&at, "a", &[]).unwrap();
        assert_eq!(samples(&source), ["/a/0: two files `.jpg`", "/a/1: [Encoded([122])]"]);
        assert_eq!(source.key(1), "1");
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_are_told() {
        use std::os::unix::ffi::OsStrExt;
        let at = folders(&[("a/0.jpg", "x")]);
        fs::write(at.path().join("a").join(std::ffi::OsStr::from_bytes(b"caf\xe9.jpg")), "y").unwrap();
        let expected = "../a/caf\u{fffd}.jpg: its name is not UTF-8; rename it: keys of samples are UTF-8";
        assert_eq!(open(&at, "a", &[]).err().as_deref(), Some(expected));
    }
}

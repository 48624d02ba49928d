//! Image files as a source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dataset::sample_of;
use crate::data::{DataError, RawSample, SampleError, SampleSource, read_image};

/// Extensions of image files, in lower case.
pub(super) const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Extensions of images that are not read, in lower case: those that cameras, phones and the web write.
const OTHERS: [&str; 17] = [
    "arw", "avif", "bmp", "cr2", "dng", "gif", "heic", "heif", "ico", "jfif", "jp2", "jxl", "nef", "psd", "svg", "tif",
    "tiff",
];

/// The extension of a path in lower case, if it is one of these.
fn extension(path: &Path, known: &[&'static str]) -> Option<&'static str> {
    let extension = path.extension()?.to_string_lossy().to_lowercase();
    known.iter().find(|known| **known == extension).copied()
}

/// Whether a path has the ending of an image.
pub fn is_image(path: &Path) -> bool {
    extension(path, &EXTENSIONS).is_some()
}

/// Image files, in a given order. Field: `jpeg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    files: Vec<PathBuf>,
    /// What names are relative to.
    root: PathBuf,
    /// How many images of kinds that are not read stand beside them, by extension.
    others: BTreeMap<&'static str, usize>,
}

impl ImageFiles {
    /// These files; whether they can be read shows with each.
    ///
    /// # Errors
    /// There is none.
    pub fn new(files: Vec<PathBuf>) -> Result<ImageFiles, DataError> {
        match files.first() {
            Some(_) => Ok(ImageFiles { files, root: PathBuf::new(), others: BTreeMap::new() }),
            None => Err(DataError::file(Path::new("."), "no image is named", "name one, or a folder of images")),
        }
    }

    /// All images in a folder and the folders within it, in alphabetical order of their paths, told by their extension; one file
    /// if that is what `path` is.
    ///
    /// # Errors
    /// There is no such folder, it cannot be read, or it has no images.
    pub fn open(path: &Path) -> Result<ImageFiles, DataError> {
        if path.is_file() {
            return ImageFiles::new(vec![path.to_path_buf()]);
        }
        let (mut files, mut others) = (Vec::new(), BTreeMap::new());
        collect(path, &mut Vec::new(), &mut |path| {
            if is_image(&path) {
                files.push(path);
            } else if let Some(extension) = extension(&path, &OTHERS) {
                *others.entry(extension).or_default() += 1;
            }
        })?;
        if files.is_empty() {
            let read = EXTENSIONS.map(|extension| format!(".{extension}")).join(", ");
            let others = if others.is_empty() { String::new() } else { format!(" but {}", counted(&others)) };
            let why = format!("holds no images ({read}){others}");
            return Err(DataError::file(path, why, "give a folder that does"));
        }
        files.sort();
        Ok(ImageFiles { files, root: path.to_path_buf(), others })
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// How many images of kinds that are not read stand beside them: `2 .gif, 1 .heic`; nothing if there is none.
    pub fn others(&self) -> Option<String> {
        (!self.others.is_empty()).then(|| counted(&self.others))
    }
}

fn counted(others: &BTreeMap<&'static str, usize>) -> String {
    others.iter().map(|(extension, count)| format!("{count} .{extension}")).collect::<Vec<_>>().join(", ")
}

/// Finds the files in a folder; `above` are the folders that it is in, into which no link leads back.
fn collect(folder: &Path, above: &mut Vec<PathBuf>, found: &mut dyn FnMut(PathBuf)) -> Result<(), DataError> {
    let fail =
        |error: std::io::Error| DataError::file(folder, format!("cannot be read: {error}"), "give a folder of images");
    let own = folder.canonicalize().map_err(fail)?;
    if above.contains(&own) {
        return Ok(());
    }
    above.push(own);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() {
            collect(&path, above, found)?;
        } else {
            found(path);
        }
    }
    above.pop();
    Ok(())
}

impl SampleSource for ImageFiles {
    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        Ok(sample_of(read_image(&self.files[index as usize])?, None))
    }

    fn name(&self, index: u64) -> String {
        let file = &self.files[index as usize];
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_link_that_leads_back_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        for name in ["a/1.JPG", "a/b/2.png", "a/b/3.txt"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), at("a/b/back")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("a/again")).unwrap();
        let images = ImageFiles::open(folder.path()).unwrap();
        let names: Vec<String> = (0..images.len()).map(|index| images.name(index)).collect();
        assert_eq!(names, ["a/1.JPG", "a/b/2.png"]);
        assert_eq!(images.others(), None);
    }
}

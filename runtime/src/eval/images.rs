//! Image files as a source.

use std::path::{Path, PathBuf};

use super::dataset::sample_of;
use crate::data::{DataError, RawSample, SampleError, SampleSource, read_image};

/// Extensions of image files, in lower case.
pub(super) const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Whether a path has the ending of an image.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Image files, in a given order. Field: `jpeg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    files: Vec<PathBuf>,
    /// What names are relative to.
    root: PathBuf,
}

impl ImageFiles {
    /// These files; whether they can be read shows with each.
    ///
    /// # Errors
    /// There is none.
    pub fn new(files: Vec<PathBuf>) -> Result<ImageFiles, DataError> {
        match files.first() {
            Some(_) => Ok(ImageFiles { files, root: PathBuf::new() }),
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
        let mut files = Vec::new();
        collect(path, &mut Vec::new(), &mut files)?;
        if files.is_empty() {
            let why = format!("holds no images ({})", EXTENSIONS.map(|extension| format!(".{extension}")).join(", "));
            return Err(DataError::file(path, why, "give a folder that does"));
        }
        files.sort();
        Ok(ImageFiles { files, root: path.to_path_buf() })
    }

    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Adds the images in a folder; `above` are the folders that it is in, into which no link leads back.
fn collect(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
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
            collect(&path, above, files)?;
        } else if is_image(&path) {
            files.push(path);
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
    }
}

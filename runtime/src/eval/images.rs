//! Image files as a source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::data::{DataError, Field, RawSample, SampleError, SampleSource, read_image};

/// Extensions of image files, in lower case.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Folders within folders are looked into so deep; a folder that is linked into itself would never end.
const MAX_DEPTH: usize = 16;

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
        collect(path, MAX_DEPTH, &mut files)?;
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

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let fail =
        |error: std::io::Error| DataError::file(folder, format!("cannot be read: {error}"), "give a folder of images");
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        if path.is_dir() {
            if depth > 0 {
                collect(&path, depth - 1, files)?;
            }
        } else if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            files.push(path);
        }
    }
    Ok(())
}

impl SampleSource for ImageFiles {
    fn len(&self) -> u64 {
        self.files.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let bytes = read_image(&self.files[index as usize])?;
        let fields = BTreeMap::from([("jpeg".to_string(), Field::Encoded(bytes))]);
        Ok(RawSample { fields, ..RawSample::default() })
    }

    fn name(&self, index: u64) -> String {
        let file = &self.files[index as usize];
        file.strip_prefix(&self.root).unwrap_or(file).display().to_string()
    }
}

//! Embeddings of a data set, kept in files so that they need not be made again: by another measure, another program, another day.
//!
//! A file `SET.safetensors` has the tensors `images` f32 \[N, D\], `rows` i32 \[N\] (the number of each in its data set), `labels`
//! i32 \[N\] where images have a class, `texts` f32 \[M, D\] and `owner` i32 \[M\]: the class that a text is of, or the row of
//! `images`. Its header has, as JSON, `names` of the images, `texts` as the model read them, and `classes`. What the features are of
//! stands there too, and has to be the same when they are used.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use alip_plan::DType;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};

use crate::data::{DataError, ListHash, SampleSource};
use crate::file::FileError;
use crate::run::tensors::{Entry, TensorFile, write};

/// Embeddings of the images and texts of a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Numbers of an embedding, D.
    pub dim: usize,
    /// Of the images that could be read, row-major \[N, D\].
    pub images: Vec<f32>,
    /// The number of each image in its data set.
    pub rows: Vec<u64>,
    /// Images that could not be read.
    pub skipped: usize,
    /// Of the texts, row-major \[M, D\].
    pub texts: Vec<f32>,
    /// The class of each text, or the row of `images` that it belongs to.
    pub owner: Vec<usize>,
}

/// What features are of. Everything that they depend on has its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model: its name and its weights.
    pub model: String,
    /// How images and texts were prepared.
    pub preparation: String,
    /// The data set: a hash of its list.
    pub set: String,
    /// The texts: a hash of them.
    pub texts: String,
}

impl Identity {
    /// What is not the same.
    fn difference(&self, other: &Identity) -> Option<&'static str> {
        let parts = |of: &Identity| [of.model.clone(), of.preparation.clone(), of.set.clone(), of.texts.clone()];
        let names = ["another model", "images prepared otherwise", "another data set", "other texts"];
        let differs = parts(self).into_iter().zip(parts(other)).position(|(own, other)| own != other);
        differs.map(|at| names[at])
    }
}

/// What is written beside the features for who reads them without this program.
#[derive(Clone, Debug, Default)]
pub struct Described<'a> {
    /// What the images are called, by row.
    pub names: Vec<String>,
    /// The texts, by row.
    pub texts: &'a [String],
    /// The class of each image, by row; empty where they have none.
    pub labels: &'a [usize],
    /// The names of the classes.
    pub classes: &'a [String],
}

/// Why features cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// They are of something else.
    #[error(
        "{} holds features of {what}: remove it, or give another folder with --features", path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// Of what.
        what: &'static str,
    },
}

/// A folder of features.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// The folder; it is made when something is kept there.
    pub folder: &'a Path,
}

/// The key of the header that says what features are of.
const OF: &str = "features";

impl Store<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.safetensors"))
    }

    /// The features of a name, if there are any; they are of what is asked for: a model with `dim` numbers of an embedding, a data
    /// set of so many `images`, and texts whose owners are those that `owners` tells of the images that could be read.
    ///
    /// # Errors
    /// They are of something else, or the file cannot be read or is not one that [`Store::write`] writes.
    pub fn read(
        &self,
        name: &str,
        wanted: &Identity,
        (dim, images): (usize, u64),
        owners: impl Fn(&Features) -> Vec<usize>,
    ) -> Result<Option<Features>, FeaturesError> {
        let path = self.path(name);
        if !path.exists() {
            return Ok(None);
        }
        let mut file = TensorFile::open(&path)?;
        let damaged = |why: &str| FileError::Damaged { path: path.clone(), why: why.into() };
        if !file.has_checksums() {
            return Err(damaged("it has no checksums, which every file of features is written with").into());
        }
        file.verify()?;
        let of = file.text(OF).and_then(|text| serde_json::from_str::<(Identity, usize)>(text).ok());
        let (found, skipped) = of.ok_or_else(|| damaged("it does not say what its features are of"))?;
        if let Some(what) = wanted.difference(&found) {
            return Err(FeaturesError::Other { path, what });
        }
        let embedded = file.read("images", DType::F32)?;
        let &[count, width] = embedded.shape() else { return Err(damaged("`images` is no table").into()) };
        if width != dim as u64 {
            let why = format!("embeddings of {width} numbers, where the model gives {dim}");
            return Err(damaged(&why).into());
        }
        let mut whole = |name: &str| -> Result<Vec<usize>, FeaturesError> {
            let tensor = file.read(name, DType::I32)?;
            let numbers = tensor.as_i32().unwrap_or_default().iter().map(|&number| usize::try_from(number));
            numbers.collect::<Result<_, _>>().map_err(|_| damaged("a number below 0").into())
        };
        let (rows, owner) = (whole("rows")?, whole("owner")?);
        let texts = file.read("texts", DType::F32)?.to_f32().into_owned();
        if rows.len() as u64 != count || owner.len() * dim != texts.len() {
            return Err(damaged("its tensors have not as many rows as each other").into());
        }
        let rows: Vec<u64> = rows.into_iter().map(|row| row as u64).collect();
        if !rows.is_sorted_by(|a, b| a < b) || rows.last().is_some_and(|last| *last >= images) {
            let why = format!("`rows` does not rise, or goes beyond the {images} images of its set");
            return Err(damaged(&why).into());
        }
        let features = Features { dim, images: embedded.to_f32().into_owned(), rows, skipped, texts, owner };
        if features.owner != owners(&features) {
            return Err(damaged("`owner` is not that of the texts of its set").into());
        }
        Ok(Some(features))
    }

    /// Keeps features under a name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(
        &self,
        name: &str,
        features: &Features,
        of: &Identity,
        with: &Described<'_>,
    ) -> Result<(), FeaturesError> {
        std::fs::create_dir_all(self.folder).map_err(FileError::io(self.folder, "create the folder"))?;
        let (count, texts) = (features.rows.len() as u64, features.owner.len() as u64);
        let entry = |name: &str, dtype, shape: &[u64]| Entry { name: name.into(), dtype, shape: shape.into() };
        let dim = features.dim as u64;
        let mut entries = vec![
            entry("images", Dtype::F32, &[count, dim]),
            entry("owner", Dtype::I32, &[texts]),
            entry("rows", Dtype::I32, &[count]),
            entry("texts", Dtype::F32, &[texts, dim]),
        ];
        if !with.labels.is_empty() {
            entries.push(entry("labels", Dtype::I32, &[count]));
        }
        let text = |value: serde_json::Value| value.to_string();
        let header = [
            (OF, text(serde_json::json!((of, features.skipped)))),
            ("names", text(serde_json::json!(with.names))),
            ("texts", text(serde_json::json!(with.texts))),
            ("classes", text(serde_json::json!(with.classes))),
        ];
        let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        // Data sets have fewer images than an i32 counts.
        let whole =
            |values: &mut dyn Iterator<Item = usize>| values.flat_map(|value| (value as i32).to_le_bytes()).collect();
        write(&self.path(name), &header, &entries, |entry| -> Result<Vec<u8>, FileError> {
            Ok(match entry.name.as_str() {
                "images" => floats(&features.images),
                "texts" => floats(&features.texts),
                "owner" => whole(&mut features.owner.iter().copied()),
                "labels" => whole(&mut with.labels.iter().copied()),
                _ => whole(&mut features.rows.iter().map(|&row| row as usize)),
            })
        })?;
        Ok(())
    }
}

/// A hash of a data set: of its list, and of length and time of the last change of the file of every image, which tell one that was
/// changed in place.
pub(super) fn set_hash(source: &dyn SampleSource) -> Result<String, DataError> {
    let mut hash = ListHash::default();
    hash.add(source.list_hash()?.as_bytes());
    for file in (0..source.len()).filter_map(|index| source.file(index)) {
        let data = std::fs::metadata(file).ok();
        let changed = data.as_ref().and_then(|data| data.modified().ok()?.duration_since(UNIX_EPOCH).ok());
        hash.add(&data.map_or(u64::MAX, |data| data.len()).to_le_bytes());
        hash.add(&changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
    }
    Ok(hash.to_string())
}

/// A hash of texts.
pub(super) fn texts_hash(texts: &[String]) -> String {
    let mut hash = ListHash::default();
    texts.iter().for_each(|text| hash.add(text.as_bytes()));
    hash.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> (Features, Identity) {
        let [model, preparation, set, texts] = ["a", "b", "c", "d"].map(String::from);
        let features = Features {
            dim: 2,
            images: vec![1.0, 0.0, 0.0, 1.0],
            rows: vec![0, 2],
            skipped: 1,
            texts: vec![0.6, 0.8],
            owner: vec![1],
        };
        (features, Identity { model, preparation, set, texts })
    }

    #[test]
    fn features_are_used_for_what_they_are_of_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: &folder.path().join("kept") };
        let (features, of) = features();
        assert_eq!(store.read("pets", &of, (2, 3), |of| of.owner.clone()).unwrap(), None);
        let texts = ["a cat".to_string()];
        let with = Described { names: vec!["x".into(), "y".into()], texts: &texts, labels: &[0, 1], classes: &texts };
        store.write("pets", &features, &of, &with).unwrap();
        assert_eq!(store.read("pets", &of, (2, 3), |of| of.owner.clone()).unwrap(), Some(features.clone()));
        let mut file = TensorFile::open(&store.path("pets")).unwrap();
        assert_eq!(file.text("names"), Some(r#"["x","y"]"#));
        assert_eq!(file.read("labels", DType::I32).unwrap().as_i32(), Some(&[0, 1][..]));

        let check = |change: fn(&mut Identity), what: &str| {
            let mut other = of.clone();
            change(&mut other);
            let said = store.read("pets", &other, (2, 3), |of| of.owner.clone()).unwrap_err().to_string();
            let path = store.path("pets");
            let expected = format!(
                "{} holds features of {what}: remove it, or give another folder with --features",
                path.display()
            );
            assert_eq!(said, expected);
        };
        check(|of| of.model += "x", "another model");
        check(|of| of.preparation += "x", "images prepared otherwise");
        check(|of| of.set += "x", "another data set");
        check(|of| of.texts += "x", "other texts");
        std::fs::copy(store.path("pets"), store.path("cut")).unwrap();
        let bytes = std::fs::read(store.path("cut")).unwrap();
        std::fs::write(store.path("cut"), &bytes[..bytes.len() - 1]).unwrap();
        assert!(
            store
                .read("cut", &of, (2, 3), |of| of.owner.clone())
                .unwrap_err()
                .to_string()
                .contains("the file is cut short")
        );
    }

    #[test]
    fn features_that_fit_nothing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store { folder: folder.path() };
        let check = |change: &dyn Fn(&mut Features), fits: (usize, u64), expected: &str| {
            let (mut features, of) = features();
            change(&mut features);
            store.write("pets", &features, &of, &Described::default()).unwrap();
            let said = store.read("pets", &of, fits, |_| vec![1]).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        };
        check(&|_| (), (3, 3), "embeddings of 2 numbers, where the model gives 3");
        check(&|_| (), (2, 2), "`rows` does not rise, or goes beyond the 2 images of its set");
        check(&|of| of.rows = vec![1, 1], (2, 3), "`rows` does not rise, or goes beyond the 3 images of its set");
        check(&|of| of.owner = vec![7], (2, 3), "`owner` is not that of the texts of its set");
        let (_, of) = features();
        let path = store.path("pets");
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(8).position(|word| word == b"\"crc32c\"").unwrap();
        let bytes = [&bytes[..at], b"\"crc32x\"", &bytes[at + 8..]].concat();
        std::fs::write(&path, bytes).unwrap();
        let said = store.read("pets", &of, (2, 3), |_| vec![1]).unwrap_err().to_string();
        assert!(said.contains("it has no checksums, which every file of features is written with"), "{said}");
    }
}

//! CIFAR-10 and CIFAR-100 in their binary form (Krizhevsky, *Learning multiple layers of features from tiny images*, 2009).
//!
//! A record of CIFAR-10 is a byte of the class and an image, one of CIFAR-100 has a byte of a coarser class before both. An image is
//! 32 rows of 32 red levels, then green, then blue.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::{Dataset, check_labels, class_names, class_of, sample_of};
use crate::data::{DataError, ListHash, RawSample, SampleError, SampleSource, read_at};

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// What tells the two sets apart.
struct Form {
    test: &'static [&'static str],
    train: &'static [&'static str],
    names: &'static str,
    /// Bytes before an image, of which the last is its class.
    head: usize,
}

const CIFAR_10: Form = Form {
    test: &["test_batch.bin"],
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    names: "batches.meta.txt",
    head: 1,
};

const CIFAR_100: Form = Form { test: &["test.bin"], train: &["train.bin"], names: "fine_label_names.txt", head: 2 };

/// Opens the set in a folder, told by its files.
pub(super) fn open(path: &Path, split: &str) -> Result<Dataset, DataError> {
    let form = [&CIFAR_10, &CIFAR_100].into_iter().find(|form| path.join(form.names).is_file());
    let form = form.ok_or_else(|| {
        let reason = format!("neither `{}` nor `{}` in it", CIFAR_10.names, CIFAR_100.names);
        DataError::file(path, reason, "give the folder of the binary version, such as `cifar-10-batches-bin`")
    })?;
    let files = match split {
        "test" => form.test,
        "train" => form.train,
        _ => {
            let reason = format!("no split `{split}`");
            return Err(DataError::file(path, reason, "choose `test` or `train`"));
        }
    };
    let mut cifar = Cifar { files: Vec::new(), head: form.head, labels: Vec::new() };
    files.iter().try_for_each(|file| cifar.add(path.join(file)))?;
    let (names, labels) = (class_names(&path.join(form.names))?, cifar.labels.clone());
    check_labels(&names, &labels, &path.join(form.names), |index| cifar.name(index))?;
    Dataset::of_classes(Arc::new(cifar), (names, labels), path)
}

/// The images of one or several files.
struct Cifar {
    /// Each with the images before its end.
    files: Vec<(PathBuf, File, u64)>,
    head: usize,
    labels: Vec<u32>,
}

impl Cifar {
    /// Adds the records of a file.
    fn add(&mut self, path: PathBuf) -> Result<(), DataError> {
        let record = self.head + 3 * PIXELS;
        let advice = "get it again: it is not what was published";
        let bytes = std::fs::read(&path).map_err(|error| DataError::file(&path, error, advice))?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
            let reason = format!("{} bytes, which are no images of {record} bytes each", bytes.len());
            return Err(DataError::file(&path, reason, advice));
        }
        self.labels.extend(bytes.chunks_exact(record).map(|record| u32::from(record[self.head - 1])));
        let file = File::open(&path).map_err(|error| DataError::file(&path, error, advice))?;
        self.files.push((path, file, self.labels.len() as u64));
        Ok(())
    }

    /// The file of an image, and its place there.
    fn place(&self, index: u64) -> (&Path, &File, u64) {
        let at = self.files.partition_point(|(.., end)| *end <= index);
        let before = at.checked_sub(1).map_or(0, |before| self.files[before].2);
        let (path, file, _) = &self.files[at];
        (path, file, index - before)
    }
}

impl SampleSource for Cifar {
    fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (_, file, at) = self.place(index);
        let mut record = vec![0; self.head + 3 * PIXELS];
        let from = at * record.len() as u64;
        read_at(file, &mut record, from).map_err(|error| SampleError(format!("cannot be read: {error}")))?;
        let planes = &record[self.head..];
        let pixels: Vec<u8> = (0..PIXELS).flat_map(|at| [0, 1, 2].map(|plane| planes[plane * PIXELS + at])).collect();
        // Without loss, and every set has images that are files.
        let mut png = Cursor::new(Vec::new());
        let written = PngEncoder::new(&mut png).write_image(&pixels, SIDE as u32, SIDE as u32, ExtendedColorType::Rgb8);
        written.map_err(|error| SampleError(error.to_string()))?;
        Ok(sample_of(png.into_inner(), class_of(&self.labels, index)))
    }

    fn name(&self, index: u64) -> String {
        let (path, _, at) = self.place(index);
        format!("image {at} of {}", path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Of everything that is in the files.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for (path, ..) in &self.files {
            let bytes = std::fs::read(path).map_err(|error| DataError::file(path, error, "put it back"))?;
            hash.add(&bytes);
        }
        Ok(hash.to_string())
    }
}

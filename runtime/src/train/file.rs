//! Tensors in safetensors files, read and written one at a time.
//!
//! Invariants:
//! - No more than one tensor of a file is in host memory, so a checkpoint needs no second copy of the model.
//! - A file appears under its name only when it is complete and on disk: it is written beside, synchronised, renamed.
//! - Bytes of a file cannot panic; a file that is cut short is told from one that is no safetensors file at all.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use alip_plan::DType;
use safetensors::tensor::{Dtype as FileType, Metadata, TensorInfo, TensorView};

use crate::tensor::{HostTensor, TensorError};

/// Why a tensor file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: `read`, `write`, `create the folder`.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are no safetensors file, or end too early.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No tensor of this name.
    #[error("{}: there is no tensor `{name}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor that cannot be converted.
    #[error("{}: tensor `{name}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: TensorError,
    },
}

impl FileError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FileError {
        let path = path.to_path_buf();
        move |source| FileError::Io { path, action, source }
    }
}

/// Most bytes of a header; safetensors itself refuses longer ones.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file, opened for reading.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the data start, from the beginning of the file.
    data: u64,
}

impl TensorFile {
    /// Reads the header.
    ///
    /// # Errors
    /// The file cannot be read, is no safetensors file, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<TensorFile, FileError> {
        let damaged = |why: String| FileError::Damaged { path: path.to_path_buf(), why };
        let mut file = File::open(path).map_err(FileError::io(path, "read"))?;
        let length = file.metadata().map_err(FileError::io(path, "read"))?.len();
        let mut size = [0u8; 8];
        if length < 8 {
            return Err(damaged(format!("the file has {length} bytes, which is no safetensors file")));
        }
        file.read_exact(&mut size).map_err(FileError::io(path, "read"))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER {
            return Err(damaged("the first bytes are not those of a safetensors file".into()));
        }
        let data = 8 + size;
        if length < data {
            return Err(damaged(format!("the file is cut short: it ends after {length} bytes, inside its header")));
        }
        let mut header = vec![0u8; size as usize];
        file.read_exact(&mut header).map_err(FileError::io(path, "read"))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("the header is not that of a safetensors file ({error})")))?;
        let wanted = data + metadata.data_len() as u64;
        if length != wanted {
            let cut = if length < wanted { "cut short" } else { "too long" };
            return Err(damaged(format!("the file is {cut}: it has {length} bytes, its header says {wanted}")));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, metadata, data })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors.
    pub fn names(&self) -> BTreeSet<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A text of the header.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref().and_then(|texts| texts.get(key)).map(String::as_str)
    }

    /// Reads a tensor as `dtype`, converting as [`HostTensor::from_view`] does.
    ///
    /// # Errors
    /// No such tensor, one that cannot be converted, or the file cannot be read.
    pub fn read(&mut self, name: &str, dtype: DType) -> Result<HostTensor, FileError> {
        let Some(info) = self.metadata.info(name) else {
            return Err(FileError::Missing { path: self.path.clone(), name: name.into() });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0u8; end.saturating_sub(start)];
        let read =
            self.file.seek(SeekFrom::Start(self.data + start as u64)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(FileError::io(&self.path, "read"))?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes)
            .map_err(|error| FileError::Damaged { path: self.path.clone(), why: error.to_string() })?;
        HostTensor::from_view(&view, dtype).map_err(|source| FileError::Tensor {
            path: self.path.clone(),
            name: name.into(),
            source,
        })
    }
}

/// A tensor about to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: FileType,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * (self.dtype.bitsize() as u64 / 8)
    }
}

/// The type that a file stores a tensor of the plan as; truth values are 32 bits wide, as in device memory.
pub fn file_type(dtype: DType) -> FileType {
    match dtype {
        DType::F32 => FileType::F32,
        DType::Bf16 => FileType::BF16,
        DType::F16 => FileType::F16,
        DType::I32 => FileType::I32,
        DType::Bool => FileType::U32,
    }
}

/// Writes a safetensors file: `texts` into its header, then the tensors, whose bytes `data` gives one after the other.
///
/// # Errors
/// The system refuses, or `data` fails; nothing has changed at `path` then.
pub fn write<E: From<FileError>>(
    path: &Path,
    texts: &[(&str, String)],
    entries: &[Entry],
    mut data: impl FnMut(&Entry) -> Result<Vec<u8>, E>,
) -> Result<(), E> {
    let header = header(path, texts, entries)?;
    write_beside(path, |file| {
        let put = |file: &mut File, bytes: &[u8]| file.write_all(bytes).map_err(FileError::io(path, "write"));
        put(file, &header)?;
        for entry in entries {
            let bytes = data(entry)?;
            if bytes.len() as u64 != entry.bytes() {
                let why = format!("{} bytes were given for tensor `{}` of {}", bytes.len(), entry.name, entry.bytes());
                return Err(FileError::Damaged { path: path.to_path_buf(), why }.into());
            }
            put(file, &bytes)?;
        }
        Ok(())
    })
}

fn header(path: &Path, texts: &[(&str, String)], entries: &[Entry]) -> Result<Vec<u8>, FileError> {
    let mut end = 0usize;
    let infos = entries.iter().map(|entry| {
        let start = end;
        end = start.saturating_add(entry.bytes() as usize);
        let shape = entry.shape.iter().map(|&size| size as usize).collect();
        (entry.name.clone(), TensorInfo { dtype: entry.dtype, shape, data_offsets: (start, end) })
    });
    let infos = infos.collect();
    let texts: HashMap<String, String> = texts.iter().map(|(key, text)| (key.to_string(), text.clone())).collect();
    let damaged = |why: String| FileError::Damaged { path: path.to_path_buf(), why };
    let metadata = Metadata::new((!texts.is_empty()).then_some(texts), infos).map_err(|e| damaged(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| damaged(error.to_string()))?;
    // The format allows blanks after the header; aligned data can be mapped and read in place.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// Writes a file under another name in the same folder, synchronises it, and renames it to `path`.
///
/// # Errors
/// What `fill` returns, or the system refuses; the unfinished file is removed.
pub fn write_beside<E: From<FileError>>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let beside = beside(path);
    let write = || -> Result<(), E> {
        let mut file = File::create(&beside).map_err(FileError::io(&beside, "write"))?;
        fill(&mut file)?;
        file.sync_all().map_err(FileError::io(&beside, "write"))?;
        fs::rename(&beside, path).map_err(FileError::io(path, "write"))?;
        // The new name itself must reach the disk; systems that cannot open a folder do it on their own.
        if let Some(Ok(folder)) = path.parent().map(File::open) {
            let _ = folder.sync_all();
        }
        Ok(())
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Writes a whole file as [`write_beside`] does.
///
/// # Errors
/// The system refuses; nothing has changed at `path` then.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_beside(path, |file| file.write_all(bytes).map_err(FileError::io(path, "write")))
}

/// Suffix of files that are being written.
const UNFINISHED: &str = ".unfinished";

fn beside(path: &Path) -> PathBuf {
    let mut name: Cow<'_, std::ffi::OsStr> = path.file_name().unwrap_or_default().into();
    name.to_mut().push(UNFINISHED);
    path.with_file_name(name)
}

/// Removes what a killed process left half written in a folder.
pub(crate) fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::folder;

    fn written(path: &Path) {
        let entries = [
            Entry { name: "a".into(), dtype: FileType::F32, shape: vec![2] },
            Entry { name: "n".into(), dtype: FileType::I32, shape: vec![] },
        ];
        write(path, &[("why", "a test".into())], &entries, |entry| -> Result<_, FileError> {
            Ok(if entry.name == "a" { [1f32, 2.0].map(f32::to_le_bytes).concat() } else { 7i32.to_le_bytes().to_vec() })
        })
        .unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_also_by_the_library() {
        let folder = folder("file_round_trip");
        let path = folder.join("x.safetensors");
        written(&path);
        let mut file = TensorFile::open(&path).unwrap();
        assert_eq!(file.text("why"), Some("a test"));
        assert_eq!(file.names().into_iter().collect::<Vec<_>>(), ["a", "n"]);
        assert_eq!(file.read("a", DType::F32).unwrap(), HostTensor::f32(&[2], vec![1.0, 2.0]).unwrap());
        assert_eq!(file.read("n", DType::I32).unwrap().as_i32(), Some(&[7][..]));
        let error = file.read("b", DType::F32).unwrap_err().to_string();
        assert!(error.ends_with("x.safetensors: there is no tensor `b`"), "{error}");
        let bytes = fs::read(&path).unwrap();
        let library = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(library.tensor("a").unwrap().data().len(), 8);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn damage_is_told() {
        let folder = folder("file_damage");
        let path = folder.join("x.safetensors");
        written(&path);
        let whole = fs::read(&path).unwrap();
        let check = |bytes: &[u8], message: &str| {
            fs::write(&path, bytes).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&whole[..whole.len() - 1], "the file is cut short: it has ");
        check(&whole[..20], "the file is cut short: it ends after 20 bytes, inside its header");
        check(&whole[..5], "the file has 5 bytes, which is no safetensors file");
        check(&[&whole[..], b"more"].concat(), "the file is too long");
        check(b"PK\x03\x04 a zip file, and not a small one", "not those of a safetensors file");
        let mut wrong = whole.clone();
        wrong[8] = b'?';
        check(&wrong, "the header is not that of a safetensors file");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = folder("file_failed_write");
        let path = folder.join("x.safetensors");
        written(&path);
        let before = fs::read(&path).unwrap();
        let entries = [Entry { name: "a".into(), dtype: FileType::F32, shape: vec![2] }];
        let result = write(&path, &[], &entries, |_| -> Result<_, FileError> { Ok(vec![0; 3]) });
        assert!(result.unwrap_err().to_string().contains("3 bytes were given for tensor `a` of 8"));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}

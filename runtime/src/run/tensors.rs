//! Tensors in safetensors files, read and written one at a time.
//!
//! Invariants:
//! - No more than one tensor of a file is in host memory, so a checkpoint needs no second copy of the model.
//! - Bytes of a file cannot panic; a file that is cut short is told from one that is no safetensors file at all.
//! - A file of ours holds a checksum of every tensor and of its texts, and what does not have them is damaged. Files of others
//!   have none and are taken as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use alip_plan::{Buffer, DType};
use safetensors::tensor::{Dtype as FileType, Metadata, TensorInfo, TensorView};

use super::identity::fingerprint;
use crate::data::ListHash;
use crate::file::{FileError, write_beside};
use crate::tensor::HostTensor;

/// Most bytes of a header; safetensors itself refuses longer ones.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file, opened for reading.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// By tensor, in a file of ours.
    checksums: Option<BTreeMap<String, String>>,
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
        let sums = metadata.metadata().as_ref().and_then(|texts| texts.get(CHECKSUMS));
        let checksums = sums.map(|sums| serde_json::from_str(sums)).transpose();
        let checksums = checksums.map_err(|error| damaged(format!("the checksums in its header: {error}")))?;
        Ok(TensorFile { path: path.to_path_buf(), file, metadata, checksums, data })
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

    /// Whether it has checksums, as every file of ours.
    pub fn has_checksums(&self) -> bool {
        self.checksums.is_some()
    }

    /// What is in the file, told from other files by a short hash: of the checksums, where it has them, and of every byte else.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn content(&mut self) -> Result<String, FileError> {
        if let Some(sums) = &self.checksums {
            return Ok(fingerprint(serde_json::json!(sums).to_string().as_bytes()));
        }
        let mut hash = ListHash::default();
        for name in self.names() {
            hash.add(name.as_bytes());
            hash.add(&self.bytes(&name)?.1);
        }
        Ok(hash.to_string())
    }

    /// Reads a tensor as `dtype`, converting as [`HostTensor::from_view`] does.
    ///
    /// # Errors
    /// No such tensor, one that cannot be converted or has another checksum, or the file cannot be read.
    pub fn read(&mut self, name: &str, dtype: DType) -> Result<HostTensor, FileError> {
        let (info, bytes) = self.bytes(name)?;
        let view = TensorView::new(info.dtype, info.shape, &bytes).map_err(|error| self.damaged(error))?;
        HostTensor::from_view(&view, dtype).map_err(|source| FileError::Tensor {
            path: self.path.clone(),
            name: name.into(),
            source,
        })
    }

    /// Reads a tensor of the shape and dtype of a buffer, converting as [`TensorFile::read`] does.
    ///
    /// # Errors
    /// As [`TensorFile::read`]; another shape.
    pub fn read_for(&mut self, name: &str, buffer: &Buffer) -> Result<HostTensor, FileError> {
        let tensor = self.read(name, buffer.dtype)?;
        if tensor.shape() == buffer.shape {
            return Ok(tensor);
        }
        let shapes = format!("{:?}, but {:?} is needed", tensor.shape(), buffer.shape);
        Err(FileError::Shape { path: self.path.clone(), name: name.into(), shapes })
    }

    /// Reads a tensor as it lies in the file: row-major, little-endian.
    ///
    /// # Errors
    /// No such tensor, one that has another checksum, or the file cannot be read.
    pub fn raw(&mut self, name: &str) -> Result<Vec<u8>, FileError> {
        Ok(self.bytes(name)?.1)
    }

    /// Reads everything and compares it with the checksums; a file without any is taken as it is.
    ///
    /// # Errors
    /// Something is not what was written, or the file cannot be read.
    pub fn verify(&mut self) -> Result<(), FileError> {
        let texts = self.metadata.metadata().clone().unwrap_or_default();
        let own = texts.iter().filter(|(key, _)| !key.starts_with(CHECKSUMS));
        let sum = of_texts(own.map(|(key, text)| (key.as_str(), text.as_str())));
        let is_right = match texts.get(OF_TEXTS) {
            Some(wanted) => self.checksums.is_some() && *wanted == sum,
            None => self.checksums.is_none(),
        };
        if !is_right {
            return Err(self.damaged("the texts of its header are not those that were written (checksum)"));
        }
        self.names().iter().try_for_each(|name| self.bytes(name).map(drop))
    }

    fn bytes(&mut self, name: &str) -> Result<(TensorInfo, Vec<u8>), FileError> {
        let Some(info) = self.metadata.info(name).cloned() else {
            return Err(FileError::Missing { path: self.path.clone(), name: name.into() });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0u8; end.saturating_sub(start)];
        let read =
            self.file.seek(SeekFrom::Start(self.data + start as u64)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(FileError::io(&self.path, "read"))?;
        if let Some(sums) = &self.checksums
            && sums.get(name) != Some(&checksum(&bytes))
        {
            return Err(self.damaged(format!("tensor `{name}` is not what was written (checksum)")));
        }
        Ok((info, bytes))
    }

    fn damaged(&self, why: impl ToString) -> FileError {
        FileError::Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

/// Header keys of the checksums: of every tensor by name, and of the other texts.
const CHECKSUMS: &str = "crc32c";
const OF_TEXTS: &str = "crc32c.texts";

/// Eight digits, so that a header has its length before the sums are known.
fn checksum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

fn of_texts<'a>(texts: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    checksum(serde_json::json!(texts.collect::<BTreeMap<_, _>>()).to_string().as_bytes())
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
        DType::U8 => FileType::U8,
    }
}

/// Writes a safetensors file: `texts` into its header, then the tensors, whose bytes `data` gives one after the other. The same
/// content gives the same bytes.
///
/// # Errors
/// The system refuses, or `data` fails; nothing has changed at `path` then.
pub fn write<E: From<FileError>>(
    path: &Path,
    texts: &[(&str, String)],
    entries: &[Entry],
    mut data: impl FnMut(&Entry) -> Result<Vec<u8>, E>,
) -> Result<(), E> {
    let mut sums: BTreeMap<&str, String> = entries.iter().map(|entry| (entry.name.as_str(), checksum(&[]))).collect();
    let room = header(path, texts, entries, &sums)?;
    write_beside(path, |file| {
        let put = |file: &mut File, bytes: &[u8]| file.write_all(bytes).map_err(FileError::io(path, "write"));
        put(file, &room)?;
        for entry in entries {
            let bytes = data(entry)?;
            if bytes.len() as u64 != entry.bytes() {
                let why = format!("{} bytes were given for tensor `{}` of {}", bytes.len(), entry.name, entry.bytes());
                return Err(FileError::Damaged { path: path.to_path_buf(), why }.into());
            }
            put(file, &bytes)?;
            sums.insert(&entry.name, checksum(&bytes));
        }
        // The sums are known last and stand first, in the room that was left for them.
        file.seek(SeekFrom::Start(0)).map_err(FileError::io(path, "write"))?;
        put(file, &header(path, texts, entries, &sums)?)?;
        Ok(())
    })
}

fn header(
    path: &Path,
    texts: &[(&str, String)],
    entries: &[Entry],
    sums: &BTreeMap<&str, String>,
) -> Result<Vec<u8>, FileError> {
    let mut end = 0usize;
    let infos = entries.iter().map(|entry| {
        let start = end;
        end = start.saturating_add(entry.bytes() as usize);
        let shape = entry.shape.iter().map(|&size| size as usize).collect();
        (entry.name.clone(), TensorInfo { dtype: entry.dtype, shape, data_offsets: (start, end) })
    });
    let infos: Vec<(String, TensorInfo)> = infos.collect();
    let damaged = |why: String| FileError::Damaged { path: path.to_path_buf(), why };
    Metadata::new(None, infos.clone()).map_err(|error| damaged(error.to_string()))?;
    let own = texts.iter().map(|(key, text)| (*key, text.as_str()));
    let of_texts = of_texts(own.clone());
    let sums = serde_json::json!(sums).to_string();
    let all: BTreeMap<&str, &str> = own.chain([(CHECKSUMS, sums.as_str()), (OF_TEXTS, of_texts.as_str())]).collect();
    // In the order of names, where the library's own header has that of a hash map: equal content, equal bytes.
    let mut fields = BTreeMap::from([("__metadata__", serde_json::json!(all))]);
    fields.extend(infos.iter().map(|(name, info)| (name.as_str(), serde_json::json!(info))));
    let mut json = serde_json::to_vec(&fields).map_err(|error| damaged(error.to_string()))?;
    // The format allows blanks after the header; aligned data can be mapped and read in place.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    /// One bit that fell over is found, whichever it is.
    #[test]
    fn what_is_not_as_it_was_written_is_told() {
        let folder = folder("file_checksums");
        let path = folder.join("x.safetensors");
        written(&path);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] ^= 1;
            fs::write(&path, &wrong).unwrap();
            let found = TensorFile::open(&path).and_then(|mut file| {
                file.verify()?;
                // A name or a shape that changed is found by whoever asks for it.
                file.read("a", DType::F32)?;
                file.read("n", DType::I32)
            });
            let blank = whole[at] == b' ' || wrong[at] == b' ';
            assert!(found.is_err() || blank, "bit 0 of byte {at} ({:?})", whole[at] as char);
        }
        let mut wrong = whole.clone();
        *wrong.last_mut().unwrap() ^= 1;
        fs::write(&path, &wrong).unwrap();
        let error = TensorFile::open(&path).unwrap().verify().unwrap_err().to_string();
        assert!(error.ends_with("x.safetensors: tensor `n` is not what was written (checksum)"), "{error}");
        written(&path);
        assert!(fs::read(&path).unwrap() == whole, "the same content, other bytes");
    }

    #[test]
    fn wrong_bytes_of_a_tensor_change_nothing() {
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

//! Zip archives as `torch.save` and `torch.jit.save` write them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::error::WeightsError;
use super::most_bytes;
use crate::file::FileError;

/// An archive, opened for reading. No member is ever written anywhere.
pub(super) struct Archive {
    path: PathBuf,
    zip: ZipArchive<File>,
    /// The same file, for parts of members.
    file: File,
    /// What stands before the names of all members, with its slash.
    prefix: String,
    /// Members whose checksum was found right.
    checked: Vec<bool>,
    /// The member that was unpacked last.
    unpacked: Option<(usize, Vec<u8>)>,
    /// Bytes that may still be unpacked: tensors that lie now in one packed member and now in another have it unpacked each time.
    /// PyTorch packs none; of an archive that was packed later, this is enough to read it many times over.
    left: u64,
}

impl Archive {
    /// Reads the directory.
    ///
    /// # Errors
    /// The file cannot be read, is cut short or damaged, or has members that it must not have.
    pub(super) fn open(path: &Path) -> Result<Archive, WeightsError> {
        let refused = |why: String| WeightsError::Refused { path: path.to_path_buf(), why };
        let open = || File::open(path).map_err(FileError::io(path, "read"));
        let (own, file) = (open()?, open()?);
        let length = file.metadata().map_err(FileError::io(path, "read"))?.len();
        let zip = ZipArchive::new(own).map_err(|error| {
            let why = format!("the archive is cut short or damaged: it has no sound directory at its end ({error})");
            FileError::Damaged { path: path.to_path_buf(), why }
        })?;
        if zip.has_duplicate_names() {
            return Err(refused("the archive has several members of one name".into()));
        }
        let mut names = Vec::with_capacity(zip.len());
        let mut bytes = 0u64;
        for index in 0..zip.len() {
            let entry =
                zip.by_index_data(index).map_err(|error| refused(format!("the archive is damaged ({error})")))?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if climbs(&name) {
                let why =
                    format!("the archive has a member `{name}`, whose name leads out of it; nothing was read of it");
                return Err(refused(why));
            }
            names.push(name);
            bytes = bytes.saturating_add(entry.size());
        }
        if bytes > most_bytes(length) {
            return Err(refused(format!("its members say that they have {bytes} bytes, but the file has {length}")));
        }
        let pickles: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix("data.pkl")).collect();
        let own = pickles.iter().filter(|prefix| prefix.is_empty() || prefix.ends_with('/'));
        let prefix = own.min_by_key(|prefix| prefix.len()).map(|prefix| prefix.to_string());
        let prefix = prefix.ok_or_else(|| {
            refused(
                "a zip archive, but not one of PyTorch's: it has no `data.pkl`; give what `torch.save` wrote".into(),
            )
        })?;
        let checked = vec![false; names.len()];
        /// How many times all that the archive may hold is unpacked: a weight is read twice, to be hashed and to be written.
        const TIMES: u64 = 4;
        let left = most_bytes(length).saturating_mul(TIMES);
        Ok(Archive { path: path.to_path_buf(), zip, file, prefix, checked, unpacked: None, left })
    }

    /// The member of this name, without what stands before all names.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.zip.index_for_name(&format!("{}{name}", self.prefix))
    }

    /// Bytes of a member when unpacked.
    pub(super) fn size(&self, member: usize) -> u64 {
        self.zip.by_index_data(member).map_or(0, |entry| entry.size())
    }

    /// A member as a stream.
    ///
    /// # Errors
    /// The file cannot be read, or the member is packed as PyTorch never does.
    pub(super) fn stream(&mut self, member: usize) -> Result<impl Read + '_, WeightsError> {
        let path = self.path.clone();
        self.zip.by_index(member).map_err(|error| damaged(&path, &error).into())
    }

    /// Bytes of a member from `start` on. The checksum of the whole is compared when it is read the first time.
    ///
    /// # Errors
    /// The member ends before, is damaged, or cannot be read.
    pub(super) fn read(&mut self, member: usize, start: u64, length: u64) -> Result<Vec<u8>, WeightsError> {
        let path = self.path.clone();
        let ends = |error: &dyn std::fmt::Display| WeightsError::File(damaged(&path, error));
        let entry = self.zip.by_index_data(member).map_err(|error| ends(&error))?;
        if start.checked_add(length).is_none_or(|end| end > entry.size()) {
            return Err(ends(&"a tensor reaches beyond its member"));
        }
        if entry.compression() == CompressionMethod::Stored {
            return self.read_stored(member, start, length);
        }
        if self.unpacked.as_ref().is_none_or(|(unpacked, _)| *unpacked != member) {
            let mut bytes = Vec::new();
            let size = entry.size();
            self.unpacked = None;
            self.left = self.left.checked_sub(size).ok_or_else(|| {
                let why = "its tensors share packed members, which would be unpacked again and again; save it with PyTorch, which \
                           packs none";
                WeightsError::Refused { path: path.clone(), why: why.into() }
            })?;
            let member_stream = self.zip.by_index(member).map_err(|error| ends(&error))?;
            // A byte more than it says would show that it says too little.
            member_stream.take(size + 1).read_to_end(&mut bytes).map_err(|error| ends(&error))?;
            if bytes.len() as u64 != size {
                return Err(ends(&"a member has not the size that it says"));
            }
            self.unpacked = Some((member, bytes));
        }
        let bytes = self.unpacked.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        Ok(bytes[start as usize..(start + length) as usize].to_vec())
    }

    fn read_stored(&mut self, member: usize, start: u64, length: u64) -> Result<Vec<u8>, WeightsError> {
        let path = self.path.clone();
        let ends = |error: &dyn std::fmt::Display| WeightsError::File(damaged(&path, error));
        let at = {
            let mut stored = self.zip.by_index(member).map_err(|error| ends(&error))?;
            if !self.checked[member] {
                std::io::copy(&mut stored, &mut std::io::sink()).map_err(|error| ends(&error))?;
                self.checked[member] = true;
            }
            stored.data_start().ok_or_else(|| ends(&"a member begins nowhere"))?
        };
        let mut bytes = vec![0; length as usize];
        let read =
            self.file.seek(SeekFrom::Start(at.saturating_add(start))).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| ends(&error))?;
        Ok(bytes)
    }
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> FileError {
    FileError::Damaged { path: path.to_path_buf(), why: format!("the archive is damaged ({why})") }
}

/// Whether a name leads out of the folder in which an archive is unpacked.
fn climbs(name: &str) -> bool {
    let absolute = name.starts_with(['/', '\\']) || name.contains(':') || name.contains('\0');
    absolute || name.split(['/', '\\']).any(|step| step == "..")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// An archive with an empty `data.pkl` and members of so many zeros, deflated, of which next to nothing is left.
    fn packed(path: &Path, sizes: &[u64]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        zip.start_file("a/data.pkl", SimpleFileOptions::default()).unwrap();
        for (number, size) in sizes.iter().enumerate() {
            let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
            zip.start_file(format!("a/data/{number}"), deflated).unwrap();
            let zeros = vec![0; 1 << 20];
            (0..size >> 20).for_each(|_| zip.write_all(&zeros).unwrap());
        }
        zip.finish().unwrap();
    }

    /// The bytes that say a size in the directory and before the member, where they stand.
    fn sizes_of(bytes: &[u8], size: u32) -> Vec<usize> {
        (0..bytes.len() - 3).filter(|at| bytes[*at..at + 4] == size.to_le_bytes()).collect()
    }

    #[test]
    fn a_small_file_fills_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.pt");
        packed(&path, &[200 << 20, 200 << 20]);
        let length = path.metadata().unwrap().len();
        assert!(length < 1 << 20);
        let error = Archive::open(&path).err().unwrap().to_string();
        let said = format!("its members say that they have 419430400 bytes, but the file has {length}");
        assert!(error.contains(&said), "{error}");
    }

    #[test]
    fn members_are_unpacked_a_few_times_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared.pt");
        packed(&path, &[96 << 20, 96 << 20]);
        let mut archive = Archive::open(&path).unwrap();
        let members = ["data/0", "data/1"].map(|name| archive.find(name).unwrap());
        let mut read = |member: usize| archive.read(member, 1 << 20, 4);
        // What lies in the member that is unpacked costs nothing.
        for _ in 0..100 {
            assert_eq!(read(members[0]).unwrap(), [0; 4]);
        }
        let times = (0..100).take_while(|time| read(members[(time + 1) % 2]).is_ok()).count();
        let all = 4 * most_bytes(path.metadata().unwrap().len()) / (96 << 20);
        assert_eq!(times as u64, all - 1);
        let error = read(members[0]).or_else(|_| read(members[1])).unwrap_err().to_string();
        assert!(error.contains("its tensors share packed members, which would be unpacked again and again"), "{error}");
    }

    #[test]
    fn a_member_has_the_size_that_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lies.pt");
        packed(&path, &[8 << 20]);
        let mut bytes = std::fs::read(&path).unwrap();
        for at in sizes_of(&bytes, 8 << 20) {
            bytes[at..at + 4].copy_from_slice(&(1u32 << 20).to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        let mut archive = Archive::open(&path).unwrap();
        let member = archive.find("data/0").unwrap();
        assert_eq!(archive.size(member), 1 << 20);
        let error = archive.read(member, 0, 4).unwrap_err().to_string();
        assert!(error.contains("the archive is damaged ("), "{error}");
    }
}

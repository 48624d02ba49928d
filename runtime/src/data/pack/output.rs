//! What is written: files that grow, get flushed, and are named at the end.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::entry::Entry;
use super::journal::{self, About, Bits, State};
use super::to::{PackTo, part};
use super::{DataError, Skipped, Skips};
use crate::data::SampleError;
use crate::data::source::recordio::{RecordWriter, layout};
use crate::data::source::webdataset::ShardWriter;
use crate::file::{FileError, remove_unfinished_of, sync_folder, write_bytes};

const AGAIN: &str = "begin anew with --again";

/// An output in the making.
pub(super) struct Output {
    to: PackTo,
    about: About,
    state: State,
    /// None before the first sample of a shard.
    writer: Option<Writer>,
    last_skipped: Option<Skipped>,
    _lock: Lock,
}

/// The files that grow.
enum Writer {
    Records(RecordWriter<Part, Part>),
    Shard(Box<ShardWriter<Part>>),
}

/// A file that is not finished.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl Part {
    /// The unfinished file of this name, cut to the bytes that are sound.
    fn open(path: &Path, bytes: u64) -> Result<Part, DataError> {
        let path = part(path);
        let cannot = |error: io::Error| FileError::io(&path, "write")(error);
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(cannot)?;
        let has = file.metadata().map_err(cannot)?.len();
        if has < bytes {
            let reason = format!("it has {has} bytes, where the journal beside it knows of {bytes}");
            return Err(DataError::file(&path, reason, AGAIN));
        }
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::Start(bytes))).map_err(cannot)?;
        Ok(Part { file: BufWriter::with_capacity(1 << 20, file), path, bytes })
    }

    /// All that was written is on disk; how much it is.
    fn sync(&mut self) -> Result<u64, DataError> {
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        done.map_err(FileError::io(&self.path, "write"))?;
        Ok(self.bytes)
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Output {
    /// Begins an output, or goes on with what is left of one that was made of the same; `lines` is the number of captions.
    pub(super) fn begin(to: &PackTo, about: &About, again: bool, lines: usize) -> Result<Output, DataError> {
        let folder = to.folder();
        fs::create_dir_all(folder).map_err(FileError::io(folder, "create the folder"))?;
        let lock = Lock::take(to.beside("lock"))?;
        let journal = to.beside("journal");
        [Some(journal.clone()), to.sizes()].iter().flatten().for_each(|path| remove_unfinished_of(path));
        if again {
            for path in [vec![journal.clone()], to.unfinished()?].concat() {
                remove(&path)?;
            }
        }
        let state = match journal::read(&journal, about)? {
            Some(state) => state,
            None => {
                if let Some(path) = to.finished()?.first().filter(|_| !again) {
                    let advice = "give another --to, or replace it with --again";
                    return Err(DataError::file(path, "it is there already", advice));
                }
                let bytes = vec![0; to.files(0).len()];
                let state = State { used: Bits::new(lines), bytes, ..State::default() };
                journal::write(&journal, about, &state)?;
                state
            }
        };
        let (to, about) = (to.clone(), about.clone());
        let mut output = Output { to, about, state, writer: None, last_skipped: None, _lock: lock };
        // A shard that is begun is gone on with; what stands behind it was written after the last word of the journal.
        if !output.state.is_done && (output.to.is_records() || output.state.in_shard > 0) {
            output.writer = Some(output.open()?);
        }
        Ok(output)
    }

    /// Samples seen.
    pub(super) fn seen(&self) -> u64 {
        self.state.seen
    }

    /// Samples written.
    pub(super) fn written(&self) -> u64 {
        self.state.written
    }

    /// Samples that were not written.
    pub(super) fn skips(&self) -> &Skips {
        &self.state.skips
    }

    /// The last of these, if this process met it.
    pub(super) fn last_skipped(&self) -> Option<&Skipped> {
        self.last_skipped.as_ref()
    }

    /// Lines of the captions that are used.
    pub(super) fn used(&self) -> &Bits {
        &self.state.used
    }

    /// Notes that a line of the captions is used; whether it was not.
    pub(super) fn uses(&mut self, line: usize) -> bool {
        self.state.used.add(line)
    }

    /// Bytes of all that was said to be written.
    pub(super) fn bytes(&self) -> u64 {
        self.state.bytes_before + self.state.bytes.iter().sum::<u64>()
    }

    /// Counts a sample, which was skipped or else written.
    pub(super) fn count(&mut self, skipped: Option<Skipped>) {
        self.state.seen += 1;
        match &skipped {
            Some(skipped) => self.state.skips.add(skipped),
            None => self.state.written += 1,
        }
        self.last_skipped = skipped.or(self.last_skipped.take());
    }

    /// Writes a sample; the inner error says why the output cannot have it.
    pub(super) fn write(&mut self, entry: Entry) -> Result<Result<(), SampleError>, DataError> {
        let opened = match self.writer.take() {
            Some(writer) => writer,
            None => self.open()?,
        };
        let number = self.state.written;
        match self.writer.insert(opened) {
            Writer::Records(records) => {
                let mut head = entry.head;
                let key = entry.number.unwrap_or(number);
                if entry.number.is_none() {
                    head.id = key;
                }
                let record = match layout(&head, &entry.image) {
                    Ok(record) => record,
                    Err(why) => return Ok(Err(why)),
                };
                let written = records.write(key, &record);
                let path = &records.files().0.path;
                written.map_err(FileError::io(path, "write"))?;
            }
            Writer::Shard(shard) => {
                if shard.has(&entry.key) {
                    return Ok(Err(SampleError("its key is that of another sample of the same shard".into())));
                }
                let mut files = vec![(entry.suffix, &*entry.image)];
                files.extend(entry.files.iter().map(|(suffix, bytes)| (*suffix, &**bytes)));
                let written = shard.write(&entry.key, &files);
                written.map_err(FileError::io(&shard.file().path, "write"))?;
                self.state.in_shard += 1;
            }
        }
        if matches!(self.to, PackTo::Shards { size, .. } if self.state.in_shard >= size) {
            self.end_shard()?;
        }
        Ok(Ok(()))
    }

    /// Files of what is to be written next, as far as they are sound.
    fn open(&self) -> Result<Writer, DataError> {
        let (files, bytes) = (self.to.files(self.state.shards), &self.state.bytes);
        match (&files[..], &bytes[..]) {
            ([records, index], [at, index_at]) => {
                let (records, index) = (Part::open(records, *at)?, Part::open(index, *index_at)?);
                Ok(Writer::Records(RecordWriter::new(records, index, *at)))
            }
            ([shard], [0]) => Ok(Writer::Shard(Box::new(ShardWriter::new(Part::open(shard, 0)?)))),
            ([shard], [at]) => {
                let out = Part::open(shard, *at)?;
                let written = out.file.get_ref().try_clone().map_err(FileError::io(&out.path, "read"))?;
                let path = out.path.clone();
                let shard = ShardWriter::resume(out, &written, *at);
                let shard = shard.map_err(|reason| DataError::file(&path, reason, AGAIN))?;
                Ok(Writer::Shard(Box::new(shard)))
            }
            _ => Err(DataError::file(&self.to.beside("journal"), "it is of another kind of output", AGAIN)),
        }
    }

    /// Ends the shard that is being written, if one is.
    fn end_shard(&mut self) -> Result<(), DataError> {
        let Some(Writer::Shard(shard)) = self.writer.take_if(|writer| matches!(writer, Writer::Shard(_))) else {
            return Ok(());
        };
        let path = part(&self.to.files(self.state.shards)[0]);
        let mut shard = shard.finish().map_err(FileError::io(&path, "write"))?;
        self.state.bytes_before += shard.sync()?;
        self.state.shards += 1;
        (self.state.in_shard, self.state.bytes) = (0, vec![0]);
        Ok(())
    }

    /// What is written so far will stay, whatever happens.
    pub(super) fn commit(&mut self) -> Result<(), DataError> {
        match &mut self.writer {
            Some(Writer::Records(records)) => {
                let (records, index) = records.files();
                self.state.bytes = vec![records.sync()?, index.sync()?];
            }
            Some(Writer::Shard(shard)) => self.state.bytes = vec![shard.file().sync()?],
            None => {}
        }
        // Names of new files too.
        sync_folder(Some(self.to.folder()));
        journal::write(&self.to.beside("journal"), &self.about, &self.state)
    }

    /// Nothing more is written. From now on the journal says so, and how many samples the last shard has.
    fn seal(&mut self) -> Result<(), DataError> {
        if self.state.is_done {
            return Ok(());
        }
        let in_last = self.state.in_shard;
        self.end_shard()?;
        self.state.in_shard = in_last;
        self.state.is_done = true;
        self.commit()?;
        self.writer = None;
        Ok(())
    }

    /// Leaves nothing, of an output that would have had no sample.
    pub(super) fn discard(mut self) -> Result<(), DataError> {
        self.writer = None;
        self.to.unfinished()?.iter().chain([&self.to.beside("journal")]).try_for_each(|path| remove(path))
    }

    /// Gives the files their names; how many bytes they have. Who is killed here does it again the next time.
    pub(super) fn finish(mut self) -> Result<u64, DataError> {
        self.seal()?;
        // The index comes first: records without one would be given one.
        let shards = if self.to.is_records() { 1 } else { self.state.shards };
        let files: Vec<PathBuf> = (0..shards).flat_map(|number| self.to.files(number).into_iter().rev()).collect();
        for stale in self.to.finished()?.iter().filter(|path| !files.contains(path)) {
            remove(stale)?;
        }
        for path in &files {
            match fs::rename(part(path), path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
                renamed => renamed.map_err(FileError::io(path, "write"))?,
            }
        }
        if let Some(path) = self.to.sizes() {
            write_bytes(&path, self.sizes(&files).as_bytes())?;
        }
        sync_folder(Some(self.to.folder()));
        remove(&self.to.beside("journal"))?;
        Ok(self.bytes())
    }

    /// How many samples each shard has.
    fn sizes(&self, files: &[PathBuf]) -> String {
        let PackTo::Shards { size, .. } = self.to else { return String::new() };
        let last = if self.state.in_shard > 0 { self.state.in_shard } else { size };
        let mut text = String::from("{");
        for (at, path) in files.iter().enumerate() {
            let (name, samples) =
                (path.file_name().unwrap_or_default(), if at + 1 == files.len() { last } else { size });
            let comma = if at == 0 { "" } else { "," };
            text += &format!("{comma}\n    {}: {samples}", serde_json::json!(name.to_string_lossy()));
        }
        text + "\n}\n"
    }
}

/// One process at a time writes an output, on file systems that know locks.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(path: PathBuf) -> Result<Lock, DataError> {
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(FileError::io(&path, "write"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(DataError::file(&path, "another process packs into it", "wait for it, or give another --to"))
            }
            _ => Ok(Lock { path, _file: file }),
        }
    }
}

impl Drop for Lock {
    /// The lock itself ends with its process; what a killed one leaves is an empty file, which the next one takes.
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io(path, "remove")(error).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Killed while files get their names, the next one gives the rest of them theirs.
    #[test]
    fn names_are_given_by_whoever_comes_next() {
        let folder = tempfile::tempdir().unwrap();
        let names = |to: &str| {
            let to = PackTo::parse(folder.path().join(to).to_str().unwrap(), None).unwrap();
            let begin = || Output::begin(&to, &Vec::new(), false, 0).unwrap();
            let mut output = begin();
            for number in 0..3 {
                let (key, image) = (format!("{number}"), vec![number; 5]);
                let head = Default::default();
                let entry = Entry { key, number: None, head, image, suffix: "jpg", files: Vec::new() };
                output.write(entry).unwrap().unwrap();
                output.count(None);
            }
            output.seal().unwrap();
            // The first name is given, and then its process is gone.
            let first = to.files(0).pop().unwrap();
            fs::rename(part(&first), &first).unwrap();
            drop(output);
            let output = begin();
            assert_eq!((output.seen(), output.written()), (3, 3));
            let bytes = output.finish().unwrap();
            let files = to.finished().unwrap().into_iter().filter(|path| !path.ends_with("sizes.json"));
            assert_eq!(files.map(|path| path.metadata().unwrap().len()).sum::<u64>(), bytes);
            let entries = fs::read_dir(to.folder()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names("a/x.rec"), ["x.idx", "x.rec"]);
        assert_eq!(names("b"), ["00000.tar", "sizes.json"]);
        let sizes = fs::read_to_string(folder.path().join("b/sizes.json")).unwrap();
        assert_eq!(sizes, "{\n    \"00000.tar\": 3\n}\n");
    }
}

//! What is written: files that grow, get flushed, and are named at the end.

use std::collections::BTreeMap;
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
        let lock = Lock::take(to.beside("lock"), false)?;
        let journal = to.beside("journal");
        remove_unfinished_of(&journal);
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
                others(to)?;
                let bytes = vec![0; to.files(0).len()];
                let state = State { used: Bits::new(lines), bytes, ..State::default() };
                journal::write(&journal, about, &state)?;
                state
            }
        };
        let (to, about) = (to.clone(), about.clone());
        let mut output = Output { to, about, state, writer: None, _lock: lock };
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

    /// The last of these, or nothing.
    pub(super) fn last_skipped(&self) -> &str {
        &self.state.last_skipped
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
        self.state.shard_bytes.iter().chain(&self.state.bytes).sum()
    }

    /// Passes over a sample that nobody asked for.
    pub(super) fn pass(&mut self) {
        self.state.seen += 1;
    }

    /// Counts a sample, which was skipped or else written.
    pub(super) fn count(&mut self, skipped: Option<Skipped>) {
        self.state.seen += 1;
        match &skipped {
            Some(skipped) => {
                self.state.skips.add(skipped);
                self.state.last_skipped = skipped.to_string();
            }
            None => self.state.written += 1,
        }
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
        self.state.shard_bytes.push(shard.sync()?);
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
        let mut sizes = if self.to.is_records() { self.state.bytes.clone() } else { self.state.shard_bytes.clone() };
        if self.to.is_records() {
            sizes.reverse();
        }
        let paths = (0..shards).flat_map(|number| self.to.files(number).into_iter().rev());
        let files: Vec<(PathBuf, u64)> = paths.zip(sizes).collect();
        for stale in self.to.finished()?.iter().filter(|path| files.iter().all(|(file, _)| file != *path)) {
            remove(stale)?;
        }
        for (path, bytes) in &files {
            match fs::rename(part(path), path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => check_named(path, *bytes)?,
                renamed => renamed.map_err(FileError::io(path, "write"))?,
            }
        }
        if let Some(path) = self.to.sizes() {
            // Another output of the folder may end now too.
            let _lock = Lock::take(self.to.folder().join("sizes.json.lock"), true)?;
            remove_unfinished_of(&path);
            write_bytes(&path, self.sizes(files.len())?.as_bytes())?;
        }
        sync_folder(Some(self.to.folder()));
        remove(&self.to.beside("journal"))?;
        Ok(self.bytes())
    }

    /// How many samples each of the shards has, those of other outputs in the folder among them.
    fn sizes(&self, shards: usize) -> Result<String, DataError> {
        let PackTo::Shards { size, .. } = self.to else { return Ok(String::new()) };
        let last = if self.state.in_shard > 0 { self.state.in_shard } else { size };
        let mut sizes = others(&self.to)?;
        for number in 0..shards {
            for path in self.to.files(number as u64) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                sizes.insert(name, if number + 1 == shards { last } else { size });
            }
        }
        let lines = sizes.iter().map(|(name, samples)| format!("\n    {}: {samples}", serde_json::json!(name)));
        Ok(format!("{{{}\n}}\n", lines.collect::<Vec<_>>().join(",")))
    }
}

/// What `sizes.json` says of shards that are not of this output.
fn others(to: &PackTo) -> Result<BTreeMap<String, u64>, DataError> {
    let Some(path) = to.sizes() else { return Ok(BTreeMap::new()) };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(FileError::io(&path, "read")(error).into()),
    };
    let wrong = |_| {
        DataError::file(&path, "it does not say how many samples each shard has", "remove it, or give another --to")
    };
    let mut sizes: BTreeMap<String, u64> = serde_json::from_slice(&text).map_err(wrong)?;
    sizes.retain(|name, _| !to.is_shard(name));
    Ok(sizes)
}

/// A file that has its name although no unfinished one is left was named by a process that was killed then, or is an old one.
fn check_named(path: &Path, bytes: u64) -> Result<(), DataError> {
    let has = path.metadata().map_err(FileError::io(path, "read"))?.len();
    if has == bytes {
        return Ok(());
    }
    let reason = format!("it has {has} bytes, where {bytes} were written to {}, which is gone", part(path).display());
    Err(DataError::file(path, reason, AGAIN))
}

/// One process at a time writes an output, on file systems that know locks.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Refuses what another process has, or waits for it.
    fn take(path: PathBuf, waits: bool) -> Result<Lock, DataError> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(FileError::io(&path, "write"))?;
            let locked = if waits { file.lock().map_err(TryLockError::Error) } else { file.try_lock() };
            match locked {
                Err(TryLockError::WouldBlock) => {
                    let advice = "wait for it, or give another --to";
                    return Err(DataError::file(&path, "another process packs into it", advice));
                }
                _ if is_at(&file, &path) => return Ok(Lock { path, _file: file }),
                // Whoever had it removed it before giving it back: who comes next would lock another file.
                _ => {}
            }
        }
    }
}

/// Whether an open file is the one that has this name now.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(file), Ok(named)) = (file.metadata(), path.metadata()) else { return false };
    (file.dev(), file.ino()) == (named.dev(), named.ino())
}

/// Whether an open file is the one that has this name now: what is open cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
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
            // Nor does a file of another size pass for one that was named.
            let sound = fs::read(&first).unwrap();
            fs::write(&first, "old").unwrap();
            let (named, why) = (first.file_name().unwrap().to_string_lossy(), output.finish().unwrap_err().to_string());
            let bytes = sound.len();
            assert!(why.contains(&format!("{named}: it has 3 bytes, where {bytes} were written to ")), "{why}");
            fs::write(&first, sound).unwrap();
            let bytes = begin().finish().unwrap();
            let files = to.finished().unwrap().into_iter();
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

    /// Who opened a lock before its owner removed it has nothing that excludes anybody.
    #[test]
    #[cfg(unix)]
    fn a_removed_lock_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::take(path.clone(), false).unwrap();
        let waiting = File::open(&path).unwrap();
        assert!(is_at(&waiting, &path));
        drop(lock);
        waiting.try_lock().unwrap();
        assert!(!is_at(&waiting, &path));
        let lock = Lock::take(path.clone(), true).unwrap();
        assert!(!is_at(&waiting, &path) && Lock::take(path.clone(), false).is_err());
        assert!(path.exists(), "who is refused removes nothing");
        drop(lock);
        assert!(!path.exists());
    }
}

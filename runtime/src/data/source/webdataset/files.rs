//! The files of an archive that is read from its beginning.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use super::place::Unreachable;
use super::shard::{ADVICE, BLOCK, MOST_HEADS, Member, key_and_suffix};
use super::steady::Steady;
use crate::data::ShardError;

/// What a file of gzip begins with.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The contents of a shard, whether it is compressed or not.
pub(super) fn contents(shard: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut shard = Steady::new(shard);
    let is_gzip = shard.fill_buf()?.starts_with(&GZIP);
    Ok(if is_gzip { Box::new(Steady::new(MultiGzDecoder::new(shard))) } else { Box::new(shard) })
}

/// The files of samples, one after the other.
pub(super) struct Files {
    input: Input,
    /// Bytes of the last file, and what fills its last block, that were not read.
    unread: u64,
    ended: bool,
}

/// The contents of a shard, with how far they were read.
struct Input {
    reader: Box<dyn Read + Send>,
    at: u64,
    /// How much more may be read before the next file.
    left: u64,
    /// What made the reader fail, where it is not the bytes.
    unreachable: Option<Unreachable>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("heads of more than 1 MiB"));
        }
        let length = (buffer.len() as u64).min(self.left) as usize;
        let read = self.reader.read(&mut buffer[..length]).inspect_err(|error| {
            self.unreachable = error.get_ref().and_then(|error| error.downcast_ref()).cloned();
        })?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Input {
    /// Why it is not read any further.
    fn failed(&mut self, reason: String) -> ShardError {
        match self.unreachable.take() {
            Some(Unreachable { reason, advice }) => ShardError::Refused { reason, advice },
            None => ShardError::Damaged(format!("{reason}, after byte {} of its contents", self.at)),
        }
    }
}

fn refused(reason: String) -> ShardError {
    ShardError::Refused { reason, advice: ADVICE.into() }
}

/// What a program says of bytes that it found, to be shown: it may show the bytes.
fn shown(error: &io::Error) -> String {
    error.to_string().chars().filter(|letter| !letter.is_control()).take(80).collect()
}

impl Files {
    /// Of what [`contents`] gives.
    pub(super) fn new(reader: Box<dyn Read + Send>) -> Files {
        Files { input: Input { reader, at: 0, left: 0, unreachable: None }, unread: 0, ended: false }
    }

    /// The next file that belongs to a sample.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ShardError> {
        while !self.ended {
            self.pass_over()?;
            let start = self.input.at;
            self.input.left = MOST_HEADS;
            let Some((path, size, kind)) = self.head()? else {
                self.ended = true;
                self.check_end(start)?;
                break;
            };
            if kind.is_gnu_sparse() {
                return Err(refused(format!("the file at byte {start} is sparse, which nothing here reads")));
            }
            let padded = size.checked_next_multiple_of(BLOCK);
            self.unread = padded.ok_or_else(|| refused(format!("no size of a file at byte {start}")))?;
            let offset = self.input.at;
            if let Some((key, suffix)) = key_and_suffix(&path).filter(|_| kind.is_file()) {
                return Ok(Some(Member { key, suffix, offset, size }));
            }
        }
        Ok(None)
    }

    /// The bytes of the file that came last.
    pub(super) fn read(&mut self, file: &Member) -> Result<Vec<u8>, ShardError> {
        self.input.left = u64::MAX;
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(file.size).read_to_end(&mut bytes);
        self.unread -= bytes.len() as u64;
        match read {
            Ok(read) if read as u64 == file.size => {
                bytes.shrink_to_fit();
                Ok(bytes)
            }
            Ok(_) => Err(self.input.failed(format!("file `{}.{}` is cut off", file.key, file.suffix))),
            Err(error) => Err(self.input.failed(shown(&error))),
        }
    }

    /// Path, size and kind of the next file. Each is read as the first of an archive, so that nothing is borrowed in between.
    fn head(&mut self) -> Result<Option<(Vec<u8>, u64, tar::EntryType)>, ShardError> {
        let mut archive = tar::Archive::new(&mut self.input);
        let head = archive.entries().and_then(|mut entries| {
            let entry = entries.next().transpose()?;
            Ok(entry.map(|entry| (entry.path_bytes().into_owned(), entry.size(), entry.header().entry_type())))
        });
        head.map_err(|error| self.input.failed(format!("no tar archive: {}", shown(&error))))
    }

    /// Passes over what was not read of the last file.
    fn pass_over(&mut self) -> Result<(), ShardError> {
        self.input.left = u64::MAX;
        let passed = io::copy(&mut (&mut self.input).take(self.unread), &mut io::sink());
        match passed {
            Ok(passed) if passed == std::mem::take(&mut self.unread) => Ok(()),
            Ok(_) => Err(self.input.failed("a file is cut off".into())),
            Err(error) => Err(self.input.failed(shown(&error))),
        }
    }

    /// Behind its last file an archive has a block of zeros, and nothing else.
    fn check_end(&mut self, start: u64) -> Result<(), ShardError> {
        if self.input.at == start {
            return Err(self.input.failed("it ends without the mark of an archive's end: it is cut off".into()));
        }
        self.input.left = u64::MAX;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let at = self.input.at;
            match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if let Some(more) = buffer[..read].iter().position(|byte| *byte != 0) {
                        return Err(refused(format!(
                            "something follows the end of the archive, at byte {}",
                            at + more as u64
                        )));
                    }
                }
                Err(error) => return Err(self.input.failed(shown(&error))),
            }
        }
    }
}

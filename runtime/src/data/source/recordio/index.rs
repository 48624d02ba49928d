//! Where the records of a file begin: the `.idx` beside it, a line `key<tab>byte` per record.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use super::records::{HEAD, Head};
use crate::data::DataError;
use crate::data::source::paths;
use crate::file::{FileError, write_beside};

/// Records that are looked for when an index is opened, evenly over it. Where fewer than half are found the index is another
/// file's; what else is wrong is met when it is read, and is a bad sample.
const LOOKED_FOR: usize = 16;

/// More bytes than two numbers of 64 bits take.
const LONGEST_LINE: u64 = 64;

/// Parts of a scan between two looks at the clock.
const BETWEEN_LOOKS: u64 = 4096;

/// Beginnings of records, in the order of the index.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Index {
    keys: Keys,
    /// By position in the index.
    pub(super) offsets: Vec<u64>,
}

/// What the index calls its records.
#[derive(Debug, PartialEq, Eq)]
enum Keys {
    /// Numbered from here on, as most are: 15 million keys would take 120 MB.
    From(u64),
    Listed(Vec<u64>),
}

impl Index {
    /// The index of a record file of `bytes` bytes: the one beside it, or, if there is none, one that is made by reading the
    /// heads of all records, and left there.
    pub(super) fn open(records: &Path, file: &File, bytes: u64) -> Result<Index, DataError> {
        let path = index_of(records);
        let index = match File::open(&path) {
            Ok(list) => Index::read(&path, list, bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let index = Index::scan(records, file, bytes)?;
                // A folder that cannot be written to costs the scan once more, and no run.
                let _ = index.save(&path);
                index
            }
            Err(error) => return Err(DataError::file(&path, error, remake(&path))),
        };
        index.check(&path, file, bytes)?;
        Ok(index)
    }

    /// Number of records.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// What the record at this position is called.
    pub(super) fn key(&self, at: usize) -> u64 {
        match &self.keys {
            Keys::From(first) => first + at as u64,
            Keys::Listed(keys) => keys[at],
        }
    }

    fn read(path: &Path, list: File, bytes: u64) -> Result<Index, DataError> {
        let cannot = |error: std::io::Error| DataError::file(path, error, remake(path));
        let size = list.metadata().map_err(cannot)?.len();
        let mut lines = BufReader::with_capacity(1 << 20, list);
        let mut index = Index { keys: Keys::From(0), offsets: Vec::new() };
        let (mut text, mut number) = (Vec::new(), 0);
        loop {
            text.clear();
            // What is longer is no line of an index.
            if (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut text).map_err(cannot)? == 0 {
                return Ok(index);
            }
            number += 1;
            let wrong = |reason: String| DataError::Line { path: path.to_path_buf(), line: number, reason };
            if number == 1 {
                // Lines grow longer towards the end, so this is no less than there are, and no more than twice as many.
                index.offsets.reserve_exact((size / text.len().max(16) as u64) as usize + 1);
            }
            let Some((key, offset)) = entry(&text) else {
                if text.trim_ascii().is_empty() {
                    continue;
                }
                let shown = String::from_utf8_lossy(text.trim_ascii()).chars().take(40).collect::<String>();
                return Err(wrong(format!("`{shown}` is not `key<tab>byte`, both whole numbers; {}", remake(path))));
            };
            if offset.checked_add(HEAD).is_none_or(|after| after > bytes) {
                let reason = format!("record {key} begins at byte {offset}, beyond the {bytes} bytes of the `.rec`");
                return Err(wrong(format!("{reason}: one of the two is cut off or another's; {}", remake(path))));
            }
            index.push(key, offset);
        }
    }

    fn push(&mut self, key: u64, offset: u64) {
        let at = self.offsets.len() as u64;
        match &mut self.keys {
            Keys::From(first) if at == 0 => *first = key,
            Keys::From(first) if first.checked_add(at) == Some(key) => {}
            Keys::From(first) => {
                let first = *first;
                self.keys = Keys::Listed((0..at).map(|at| first + at).chain([key]).collect());
            }
            Keys::Listed(keys) => keys.push(key),
        }
        self.offsets.push(offset);
    }

    /// The index of a file, from the heads of its records.
    fn scan(records: &Path, file: &File, bytes: u64) -> Result<Index, DataError> {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes}, {eta} left");
        let bar = ProgressBar::new(bytes).with_prefix(format!("making the index of {}", records.display()));
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
        let mut index = Index { keys: Keys::From(0), offsets: Vec::new() };
        let (mut offset, mut parts, mut inside) = (0, 0, false);
        let wrong = |reason: String| {
            let advice =
                "the file is damaged or no RecordIO: fetch it again, or give it an index of the records that are sound";
            DataError::file(records, reason, advice)
        };
        while offset < bytes {
            let head = Head::read(file, offset, bytes).map_err(wrong)?;
            if head.is_first() == inside {
                return Err(wrong(format!("a record that is not whole before byte {offset}")));
            }
            if head.is_first() {
                index.push(index.offsets.len() as u64, offset);
            }
            inside = head.is_followed();
            offset = head.after(offset);
            parts += 1;
            if parts % BETWEEN_LOOKS == 0 {
                bar.set_position(offset);
            }
        }
        bar.finish_and_clear();
        match (inside, index.len()) {
            (true, _) => Err(wrong("its last record is not whole".into())),
            (false, 0) => Err(wrong("it is empty".into())),
            (false, _) => Ok(index),
        }
    }

    /// Puts it into its place.
    fn save(&self, path: &Path) -> Result<(), FileError> {
        write_beside(path, |file| {
            let mut out = BufWriter::new(file);
            let mut lines = self.offsets.iter().enumerate();
            let written = lines.try_for_each(|(at, offset)| writeln!(out, "{}\t{offset}", self.key(at)));
            written.and_then(|()| out.flush()).map_err(FileError::io(path, "write"))
        })
    }

    /// Every record has a key and a beginning of its own, and begins where the index says, as far as that is looked at.
    fn check(&self, path: &Path, file: &File, bytes: u64) -> Result<(), DataError> {
        if self.offsets.is_empty() {
            return Err(DataError::file(path, "no records in it", remake(path)));
        }
        if let Keys::Listed(keys) = &self.keys
            && let Some(twice) = twice(keys)
        {
            return Err(DataError::file(path, format!("the key {twice} stands in it twice"), remake(path)));
        }
        if let Some(twice) = twice(&self.offsets) {
            return Err(DataError::file(path, format!("two records begin at byte {twice}"), remake(path)));
        }
        // At byte 0 a record begins in every file.
        let step = self.len().div_ceil(LOOKED_FOR);
        let looked_for: Vec<u64> = self.offsets.iter().copied().filter(|at| *at > 0).step_by(step).collect();
        let begins = |offset: &&u64| Head::read(file, **offset, bytes).is_ok_and(Head::is_first);
        let found = looked_for.iter().filter(begins).count();
        if 2 * found >= looked_for.len() {
            return self.check_end(path, file, bytes);
        }
        let of = looked_for.len();
        let reason = format!("the index of another file: of {of} places that it names a record begins at {found}");
        Err(DataError::file(path, reason, remake(path)))
    }

    /// The file ends with the last record, or within it: an index that knows only a part of a file would hide the rest.
    fn check_end(&self, path: &Path, file: &File, bytes: u64) -> Result<(), DataError> {
        let mut at = self.offsets.iter().copied().max().unwrap_or(0);
        // What is wrong with the record itself is met when it is read.
        while let Ok(head) = Head::read(file, at, bytes) {
            at = head.after(at);
            if !head.is_followed() {
                let reason = format!("the records go on behind the last that it names, at byte {at}");
                return if at < bytes { Err(DataError::file(path, reason, remake(path))) } else { Ok(()) };
            }
        }
        Ok(())
    }
}

/// `x.idx` of `x.rec`; what is called otherwise keeps its name, so that no two files share an index.
fn index_of(records: &Path) -> PathBuf {
    match records.extension() {
        Some(extension) if extension == "rec" => records.with_extension("idx"),
        _ => records.with_file_name(format!("{}.idx", paths::name(records))),
    }
}

fn remake(path: &Path) -> String {
    format!("remove {}, and it is made again from the records", paths::name(path))
}

/// Key and byte of a line.
fn entry(line: &[u8]) -> Option<(u64, u64)> {
    let (key, rest) = number(line)?;
    let (offset, rest) = number(rest.strip_prefix(b"\t")?)?;
    rest.trim_ascii().is_empty().then_some((key, offset))
}

/// The whole number that a text begins with, and what follows it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    let add = |n: u64, digit: &u8| n.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add))?.map(|n| (n, rest))
}

/// A number that stands in a list more than once.
fn twice(numbers: &[u64]) -> Option<u64> {
    if numbers.is_sorted_by(|a, b| a < b) {
        return None;
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

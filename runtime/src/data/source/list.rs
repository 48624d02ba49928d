//! A text file with a sample per line or row, of which only the places of these are kept in memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use super::paths::{self, read_at};
use super::{ListHash, SampleError};
use crate::data::DataError;
use crate::data::lines::{after_mark, line_text};

/// Bytes of a file that are looked at in one go.
const BLOCK: u64 = 8 << 20;

/// Longest line: the longest page of text is a tenth of it, and what is longer is no list.
const LONGEST: usize = 4 << 20;

/// Lines that are worth a task.
const TASK: usize = 256;

/// The lines of a file that belong to a data set, in the file's order.
///
/// Sixteen bytes a line are kept; a line is read again when it is asked for, and has to be what it was when the list was opened.
pub(super) struct List {
    /// For messages.
    name: String,
    file: File,
    rows: Vec<Row>,
    /// Lines that are not blank, whether or not they belong.
    lines: usize,
}

/// Where a line stands.
pub(super) struct Row {
    pub(super) offset: u64,
    pub(super) length: u32,
    /// CRC-32C of its bytes.
    pub(super) checksum: u32,
}

impl List {
    /// Reads the file once. `belongs` says of each line, on any thread, whether it belongs, or what is wrong with it.
    ///
    /// # Errors
    /// The file cannot be read or is no text; the first line that is wrong.
    pub(super) fn open(
        path: &Path,
        advice: &str,
        belongs: impl Fn(&str) -> Result<bool, String> + Sync,
    ) -> Result<List, DataError> {
        let fail = |error| DataError::file(path, error, advice);
        let mut file = File::open(path).map_err(fail)?;
        let (mut rows, mut lines) = (Vec::new(), 0);
        let (mut block, mut offset, mut number) = (Vec::new(), 0, 0);
        loop {
            let read = (&mut file).take(BLOCK).read_to_end(&mut block).map_err(fail)?;
            // At the end of the file what is left is a line, with or without a newline.
            let newline = block.iter().rposition(|&byte| byte == b'\n');
            let rest = block.len() - newline.map_or(0, |newline| newline + 1);
            if rest > LONGEST {
                let reason = too_long();
                let line = number + 1 + block.iter().filter(|&&byte| byte == b'\n').count();
                return Err(DataError::Line { path: path.to_path_buf(), line, reason });
            }
            let end = if read == 0 { block.len() } else { newline.map_or(0, |newline| newline + 1) };
            let mut whole = &block[..end];
            if offset == 0 && end > 0 {
                whole = after_mark(path, whole)?;
                offset = (end - whole.len()) as u64;
            }
            let found: Vec<_> = whole.split_inclusive(|&byte| byte == b'\n').collect();
            let look = |line: &&[u8]| examine(line, &belongs);
            let judged: Vec<_> = found.par_iter().with_min_len(TASK).map(look).collect();
            for (line, judged) in found.into_iter().zip(judged) {
                number += 1;
                let fail = |reason| DataError::Line { path: path.to_path_buf(), line: number, reason };
                let Verdict { blank, row } = judged.map_err(fail)?;
                lines += usize::from(!blank);
                rows.extend(row.map(|(length, checksum)| Row { offset, length, checksum }));
                offset += line.len() as u64;
            }
            if read == 0 {
                break;
            }
            block.drain(..end);
        }
        Ok(List { lines, ..List::new(path, file, rows) })
    }

    /// The rows of a file that has been looked through.
    pub(super) fn new(path: &Path, file: File, mut rows: Vec<Row>) -> List {
        rows.shrink_to_fit();
        List { name: paths::name(path).into_owned(), file, lines: rows.len(), rows }
    }

    /// The same, to be called by the name of another file in messages.
    #[cfg(feature = "parquet")]
    pub(super) fn named(self, path: &Path) -> List {
        List { name: paths::name(path).into_owned(), ..self }
    }

    /// Adds what is in each line to a hash, by the checksums: nothing is read.
    pub(super) fn hash(&self, hash: &mut ListHash) {
        for row in &self.rows {
            hash.add(&[row.length.to_le_bytes(), row.checksum.to_le_bytes()].concat());
        }
    }

    /// Number of lines that belong.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the file has nothing but blank lines.
    pub(super) fn is_blank(&self) -> bool {
        self.lines == 0
    }

    /// Line `index` of those that belong.
    ///
    /// # Errors
    /// There is no such line, it cannot be read or is no UTF-8, or the file is not what it was when it was opened.
    pub(super) fn line(&self, index: usize) -> Result<String, SampleError> {
        String::from_utf8(self.bytes(index)?).map_err(|error| match line_text(error.as_bytes()) {
            Err(why) => SampleError(why),
            Ok(_) => SampleError("no UTF-8".into()),
        })
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, SampleError> {
        let row = self.rows.get(index).ok_or_else(|| SampleError(format!("there is no sample {index}")))?;
        let mut bytes = vec![0; row.length as usize];
        let changed = || {
            SampleError(format!("{} was changed after it was opened; leave it as it is while it is in use", self.name))
        };
        read_at(&self.file, &mut bytes, row.offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(),
            _ => SampleError(format!("{} cannot be read: {error}", self.name)),
        })?;
        if crc32c::crc32c(&bytes) != row.checksum {
            return Err(changed());
        }
        Ok(bytes)
    }
}

/// What a line is: blank, or in the list with its length and checksum, or in another split.
struct Verdict {
    blank: bool,
    row: Option<(u32, u32)>,
}

fn too_long() -> String {
    format!("a line of more than {} MiB", LONGEST >> 20)
}

fn examine(line: &[u8], belongs: impl Fn(&str) -> Result<bool, String>) -> Result<Verdict, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > LONGEST {
        return Err(too_long());
    }
    let text = line_text(line.strip_suffix(b"\r").unwrap_or(line))?;
    if text.trim().is_empty() {
        return Ok(Verdict { blank: true, row: None });
    }
    let length = u32::try_from(text.len()).map_err(|_| "a line of more than 4 GiB".to_string())?;
    let row = belongs(text)?.then(|| (length, crc32c::crc32c(text.as_bytes())));
    Ok(Verdict { blank: false, row })
}

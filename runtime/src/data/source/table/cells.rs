//! Tables as text: cells between separators, quoted where they hold one, as RFC 4180 describes and pandas reads.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use crate::data::DataError;
use crate::data::lines::{after_mark, line_text};
use crate::data::source::list::{List, Row};

/// Bytes of a file that are looked at in one go.
const BLOCK: usize = 1 << 20;

/// Longest row: the longest page of text is a tenth of it, and what is longer is a quote that nothing closes.
const LONGEST: usize = 1 << 20;

/// Opens a table: the cells of its first row, which name the columns, what separates them, and the other rows.
///
/// # Errors
/// The file cannot be read, is empty, its first row is no text, or a quote is not closed.
pub(super) fn open(path: &Path, separator: Option<u8>) -> Result<(Vec<String>, u8, List), DataError> {
    let fail = |error: std::io::Error| DataError::file(path, error, "give the path of a table");
    let mut file = BufReader::with_capacity(BLOCK, File::open(path).map_err(fail)?);
    let start = file.fill_buf().map_err(fail)?;
    let marked = start.len() - after_mark(path, start)?.len();
    file.consume(marked);
    let first = file.fill_buf().map_err(fail)?;
    let first = &first[..first.iter().position(|&byte| byte == b'\n').unwrap_or(first.len())];
    let separator = separator.unwrap_or(if first.contains(&b'\t') { b'\t' } else { b',' });
    let (mut rows, last) = scan(path, &mut file, marked as u64, separator)?;
    if rows.is_empty() {
        return Err(DataError::file(path, "no rows in it", "write the names of the columns, and a row per image"));
    }
    if is_open(&last, separator) {
        let line = rows.len();
        let reason = format!("row {line} begins a quote that nothing closes: write `\"\"` for a quote in a cell");
        return Err(DataError::file(path, reason, "or quote the whole cell"));
    }
    let header = rows.remove(0);
    let mut bytes = vec![0; header.length as usize];
    let mut file = file.into_inner();
    file.seek(SeekFrom::Start(header.offset)).map_err(fail)?;
    std::io::Read::read_exact(&mut file, &mut bytes).map_err(fail)?;
    let names = line_text(&bytes).map_err(|reason| DataError::Line { path: path.to_path_buf(), line: 1, reason })?;
    Ok((cells(names, separator), separator, List::new(path, file, rows)))
}

/// Where each row begins, and the bytes of the last one.
fn scan(
    path: &Path,
    file: &mut BufReader<File>,
    mut offset: u64,
    separator: u8,
) -> Result<(Vec<Row>, Vec<u8>), DataError> {
    let fail = |reason: String| DataError::file(path, reason, "give the path of a table");
    let mut reader = reader(separator);
    // What is in cells is of no interest here.
    let (mut unread, mut ends) = ([0; 4096], [0; 64]);
    let (mut rows, mut raw, mut last) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let input = file.fill_buf().map_err(|error| fail(error.to_string()))?;
        let (result, read, ..) = reader.read_record(input, &mut unread, &mut ends);
        raw.extend_from_slice(&input[..read]);
        file.consume(read);
        if raw.len() > LONGEST {
            let row = rows.len() + 1;
            return Err(fail(format!(
                "row {row} has more than {} MiB; is there a quote that nothing closes?",
                LONGEST >> 20
            )));
        }
        match result {
            ReadRecordResult::Record => {
                if quotes_lines(&raw, separator) {
                    let row = rows.len() + 1;
                    let reason =
                        format!("row {row}, up to line {}, holds the lines of others between quotes", reader.line());
                    return Err(DataError::file(
                        path,
                        reason,
                        "write `\"\"` for a quote in a cell, and quote the whole cell",
                    ));
                }
                rows.push(Row { offset, length: raw.len() as u32, checksum: crc32c::crc32c(&raw) });
                offset += raw.len() as u64;
                std::mem::swap(&mut last, &mut raw);
                raw.clear();
            }
            ReadRecordResult::End => return Ok((rows, last)),
            ReadRecordResult::InputEmpty | ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
        }
    }
}

/// Whether a row of several lines has text behind a quote that ends a cell: that quote was to begin one, and another before it
/// was none. Programs read such a file without a word, and lose the rows between.
fn quotes_lines(row: &[u8], separator: u8) -> bool {
    let row = row.trim_ascii();
    if !row.contains(&b'\n') {
        return false;
    }
    let (mut quoted, mut begins, mut at) = (false, true, 0);
    while let Some(&byte) = row.get(at) {
        match (quoted, byte, row.get(at + 1)) {
            (true, b'"', Some(b'"')) => at += 1,
            (true, b'"', next) => {
                quoted = false;
                if next.is_some_and(|next| ![separator, b'\r', b'\n'].contains(next)) {
                    return true;
                }
            }
            (false, b'"', _) if begins => quoted = true,
            _ => {}
        }
        begins = !quoted && byte == separator;
        at += 1;
    }
    false
}

fn reader(separator: u8) -> Reader {
    ReaderBuilder::new().delimiter(separator).build()
}

/// Whether a row ends within quotes: what follows it would belong to it.
fn is_open(row: &[u8], separator: u8) -> bool {
    let more = [row, b"\nx\n"].concat();
    let (mut reader, mut at) = (reader(separator), 0);
    let (mut unread, mut ends) = ([0; 4096], [0; 64]);
    loop {
        let (result, read, ..) = reader.read_record(&more[at..], &mut unread, &mut ends);
        at += read;
        match result {
            ReadRecordResult::Record => return at == more.len(),
            ReadRecordResult::InputEmpty => return true,
            ReadRecordResult::End => return false,
            ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {}
        }
    }
}

/// The cells of a row.
pub(super) fn cells(row: &str, separator: u8) -> Vec<String> {
    let mut reader = reader(separator);
    // Cells are no longer than the row, and no more than it has separators and one.
    let mut text = vec![0; row.len()];
    let mut ends = vec![0; row.bytes().filter(|&byte| byte == separator).count() + 1];
    let (mut at, mut written, mut ended) = (0, 0, 0);
    loop {
        let (result, read, wrote, ends_of) =
            reader.read_record(&row.as_bytes()[at..], &mut text[written..], &mut ends[ended..]);
        (at, written, ended) = (at + read, written + wrote, ended + ends_of);
        // The second time there is no input, which ends the row.
        if !matches!(result, ReadRecordResult::InputEmpty) {
            break;
        }
    }
    let mut start = 0;
    let cell = |&end: &usize| String::from_utf8_lossy(&text[std::mem::replace(&mut start, end)..end]).into_owned();
    ends[..ended].iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cells() {
        let check = |row: &str, expected: &[&str]| assert_eq!(cells(row, b','), expected, "{row}");
        check("a,b,c\r\n", &["a", "b", "c"]);
        check("a,,\n", &["a", "", ""]);
        check("\"a, b\",\"say \"\"x\"\"\"", &["a, b", "say \"x\""]);
        check("5\" disk,x", &["5\" disk", "x"]);
        check("\n\"two\nlines\",é\n", &["two\nlines", "é"]);
        assert_eq!(cells("a\tb, c", b'\t'), ["a", "b, c"]);
    }
}

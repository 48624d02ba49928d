//! Records and their index, byte by byte as MXNet's writer makes them.

use std::io::{self, Write};

use super::records::{HEAD, IMAGE_HEAD, ImageRecord, Kind, MAGIC};
use crate::data::SampleError;

/// The largest whole number up to which f32, the type of labels in a record, has all of them.
pub(in crate::data) const LARGEST_ID: i32 = 1 << 24;

/// Most bytes of a record: a part's length has 29 bits, and what holds no magic number is one part.
const LONGEST: u64 = (1 << 29) - 1;

/// What stands before the image in a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct RecordHead {
    /// The label of the header, an f32; MXNet leaves 0 there where there are others.
    pub(in crate::data) label: [u8; 4],
    /// What the record is called; the same as its key in the index, as a rule.
    pub(in crate::data) id: u64,
    /// A second name, which MXNet leaves at 0.
    pub(in crate::data) id2: u64,
    /// The labels behind the header, f32 each. Their number is the header's flag.
    pub(in crate::data) labels: Vec<[u8; 4]>,
}

/// A token id as the label of a record.
///
/// # Errors
/// An id that f32 does not have.
pub(in crate::data) fn label(name: &str, id: i32) -> Result<[u8; 4], SampleError> {
    match (0..=LARGEST_ID).contains(&id) {
        true => Ok((id as f32).to_le_bytes()),
        false => {
            let why = format!("`{name}` holds {id}, and labels of records are f32: ids from 0 to {LARGEST_ID}");
            Err(SampleError(why))
        }
    }
}

impl RecordHead {
    /// That of a record that was read.
    pub(super) fn of(record: &ImageRecord<'_>) -> RecordHead {
        let header = record.header;
        let word = |at: usize| std::array::from_fn(|byte| header[at + byte]);
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
        let has_labels = u32::from_le_bytes(word(0)) > 0;
        let labels = if has_labels { record.labels.to_vec() } else { Vec::new() };
        RecordHead { label: word(4), id: long(8), id2: long(16), labels }
    }
}

/// An image record: header, labels, image.
///
/// # Errors
/// More bytes than the format can hold.
pub(in crate::data) fn layout(head: &RecordHead, image: &[u8]) -> Result<Vec<u8>, SampleError> {
    let bytes = IMAGE_HEAD + 4 * head.labels.len() + image.len();
    check_length(bytes as u64)?;
    let mut record = Vec::with_capacity(bytes);
    record.extend((head.labels.len() as u32).to_le_bytes());
    record.extend(head.label);
    record.extend(head.id.to_le_bytes());
    record.extend(head.id2.to_le_bytes());
    record.extend(head.labels.as_flattened());
    record.extend(image);
    Ok(record)
}

fn check_length(bytes: u64) -> Result<(), SampleError> {
    match bytes <= LONGEST {
        true => Ok(()),
        false => Err(SampleError(format!("a record of {bytes} bytes, more than the {LONGEST} that RecordIO can hold"))),
    }
}

/// Writes records one after another, and beside them where each begins.
pub(in crate::data) struct RecordWriter<R, I> {
    records: R,
    index: I,
    /// Where the next record begins.
    at: u64,
}

impl<R: Write, I: Write> RecordWriter<R, I> {
    /// Goes on behind the first `at` bytes of records, with the index of these.
    pub(in crate::data) fn new(records: R, index: I, at: u64) -> Self {
        RecordWriter { records, index, at }
    }

    /// Writes a record of at most as many bytes as [`layout`] makes.
    ///
    /// # Errors
    /// What the system says.
    pub(in crate::data) fn write(&mut self, key: u64, record: &[u8]) -> io::Result<()> {
        writeln!(self.index, "{key}\t{}", self.at)?;
        let magic = MAGIC.to_le_bytes();
        let words = record.as_chunks::<4>().0;
        let mut from = 0;
        for at in words.iter().enumerate().filter(|(_, word)| **word == magic).map(|(at, _)| 4 * at) {
            let kind = if from == 0 { Kind::First } else { Kind::Middle };
            self.part(kind, &record[from..at])?;
            from = at + magic.len();
        }
        self.part(if from == 0 { Kind::Whole } else { Kind::Last }, &record[from..])
    }

    fn part(&mut self, kind: Kind, data: &[u8]) -> io::Result<()> {
        let word = (kind as u32) << 29 | data.len() as u32;
        let padding = data.len().next_multiple_of(4) - data.len();
        self.records.write_all(&MAGIC.to_le_bytes())?;
        self.records.write_all(&word.to_le_bytes())?;
        self.records.write_all(data)?;
        self.records.write_all(&[0; 3][..padding])?;
        self.at += HEAD + (data.len() + padding) as u64;
        Ok(())
    }

    /// What is written to: records and index.
    pub(in crate::data) fn files(&mut self) -> (&mut R, &mut I) {
        (&mut self.records, &mut self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[&[u8]]) -> (Vec<u8>, String) {
        let mut writer = RecordWriter::new(Vec::new(), Vec::new(), 0);
        (10..).zip(records).for_each(|(key, record)| writer.write(key, record).unwrap());
        (writer.records, String::from_utf8(writer.index).unwrap())
    }

    /// A part as it lies in a file.
    fn part(kind: u32, data: &[u8], padding: usize) -> Vec<u8> {
        let word = kind << 29 | data.len() as u32;
        [&MAGIC.to_le_bytes()[..], &word.to_le_bytes(), data, &[0; 3][..padding]].concat()
    }

    /// As dmlc's writer does: at multiples of four only, and the number itself is left out.
    #[test]
    fn records_are_split_where_the_magic_number_stands() {
        let magic = MAGIC.to_le_bytes();
        let check = |record: &[u8], expected: &[Vec<u8>]| {
            assert_eq!(written(&[record]).0, expected.concat(), "{record:?}");
        };
        check(b"", &[part(0, b"", 0)]);
        check(b"abcde", &[part(0, b"abcde", 3)]);
        check(&[b"abc", &magic[..]].concat(), &[part(0, &[b"abc", &magic[..]].concat(), 1)]);
        check(&[b"abcd", &magic[..], b"ef"].concat(), &[part(1, b"abcd", 0), part(3, b"ef", 2)]);
        check(&[magic, magic].concat(), &[part(1, b"", 0), part(2, b"", 0), part(3, b"", 0)]);
        check(&[&magic[..], &magic[..3]].concat(), &[part(1, b"", 0), part(3, &magic[..3], 1)]);
        let (records, index) = written(&[b"abcd", b"e", b"fg"]);
        assert_eq!((records.len(), index.as_str()), (36, "10\t0\n11\t12\n12\t24\n"));
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        assert_eq!(check_length((1 << 29) - 1), Ok(()));
        let why = "a record of 536870912 bytes, more than the 536870911 that RecordIO can hold";
        assert_eq!(check_length(1 << 29).unwrap_err().to_string(), why);
        assert_eq!(label("raw", 1 << 24), Ok(16_777_216f32.to_le_bytes()));
        let why = "`raw` holds 16777217, and labels of records are f32: ids from 0 to 16777216";
        assert_eq!(label("raw", (1 << 24) + 1).unwrap_err().to_string(), why);
        assert_eq!(label("raw", -1).unwrap_err().to_string(), why.replace("16777217", "-1"));
    }
}

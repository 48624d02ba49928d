//! Records as they lie in a file.
//!
//! A record is one or several parts: the magic number, a word with the kind of part (upper 3 bits) and its length, its bytes,
//! zeros up to a multiple of four. A writer that finds the magic number at a multiple of four in the data begins another part
//! there and leaves the number out; who reads puts it back. So whoever looks for the magic number finds beginnings only.

use std::fs::File;
use std::io;

use crate::data::SampleError;
use crate::data::source::paths::read_at;

/// What every part begins with, little-endian.
pub(super) const MAGIC: u32 = 0xced7_230a;

/// Bytes of magic number, kind and length.
pub(super) const HEAD: u64 = 8;

/// Bytes of the header of MXNet's image records: flag, label, two ids.
pub(super) const IMAGE_HEAD: usize = 24;

/// Largest record that is read: the largest photographs in use are a third of it.
const MAX_RECORD: u64 = 64 << 20;

/// The kind of a part, as the upper bits of its second word say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Whole,
    First,
    Middle,
    Last,
}

/// A part without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Bytes of data.
    pub(super) length: u64,
}

impl Head {
    /// The part that begins at `offset` of a file of `end` bytes.
    pub(super) fn read(file: &File, offset: u64, end: u64) -> Result<Head, String> {
        if offset.checked_add(HEAD).is_none_or(|after| after > end) {
            return Err(format!("byte {offset} is beyond the end of the file"));
        }
        let mut words = [[0; 4]; 2];
        read_at(file, words.as_flattened_mut(), offset).map_err(|error| format!("cannot be read: {error}"))?;
        let [magic, word] = words.map(u32::from_le_bytes);
        let kind = match (magic, word >> 29) {
            (MAGIC, 0) => Kind::Whole,
            (MAGIC, 1) => Kind::First,
            (MAGIC, 2) => Kind::Middle,
            (MAGIC, 3) => Kind::Last,
            _ => return Err(format!("no record begins at byte {offset}")),
        };
        let head = Head { kind, length: u64::from(word & ((1 << 29) - 1)) };
        // The zeros after the last record may be missing.
        match offset + HEAD + head.length > end {
            true => Err(format!("the record at byte {offset} is cut off by the end of the file")),
            false => Ok(head),
        }
    }

    /// Where the next part begins.
    pub(super) fn after(self, offset: u64) -> u64 {
        offset + HEAD + self.length.next_multiple_of(4)
    }

    /// Whether a record may begin with this part.
    pub(super) fn is_first(self) -> bool {
        matches!(self.kind, Kind::Whole | Kind::First)
    }

    /// Whether the record goes on after this part.
    pub(super) fn is_followed(self) -> bool {
        matches!(self.kind, Kind::First | Kind::Middle)
    }
}

/// The bytes of the record that begins at `offset`, into an empty buffer.
pub(super) fn read(file: &File, offset: u64, end: u64, into: &mut Vec<u8>) -> Result<(), SampleError> {
    let mut at = offset;
    let mut head = Head::read(file, at, end).map_err(SampleError)?;
    if !head.is_first() {
        return Err(SampleError(format!("byte {offset} is in the middle of a record")));
    }
    loop {
        let filled = into.len();
        if filled as u64 + head.length > MAX_RECORD {
            return Err(SampleError(format!("a record of more than the allowed {} MiB", MAX_RECORD >> 20)));
        }
        into.resize(filled + head.length as usize, 0);
        let cannot = |error: io::Error| SampleError(format!("cannot be read: {error}"));
        read_at(file, &mut into[filled..], at + HEAD).map_err(cannot)?;
        if !head.is_followed() {
            return Ok(());
        }
        into.extend(MAGIC.to_le_bytes());
        at = head.after(at);
        head = Head::read(file, at, end).map_err(SampleError)?;
        if head.is_first() {
            return Err(SampleError(format!("a part is missing: another record begins at byte {at}")));
        }
    }
}

/// An image record: its labels, and the image's bytes after them.
pub(super) struct ImageRecord<'a> {
    /// The header as it stands.
    pub(super) header: &'a [u8; IMAGE_HEAD],
    /// The labels, f32, little-endian; that of the header where there are no others.
    pub(super) labels: &'a [[u8; 4]],
    /// The image file.
    pub(super) image: &'a [u8],
}

impl<'a> ImageRecord<'a> {
    /// MXNet's header (little-endian `u32 flag, f32 label, u64 id, u64 id2`), `flag` labels more, and the image.
    pub(super) fn parse(record: &'a [u8]) -> Result<ImageRecord<'a>, SampleError> {
        let Some((header, rest)) = record.split_first_chunk::<IMAGE_HEAD>() else {
            let length = record.len();
            return Err(SampleError(format!("a record of {length} bytes, which is no image record of MXNet")));
        };
        let words = header.as_chunks::<4>().0;
        let flag = u32::from_le_bytes(words[0]);
        if flag == 0 {
            return Ok(ImageRecord { header, labels: &words[1..2], image: rest });
        }
        match rest.split_at_checked((flag as usize).saturating_mul(4)) {
            Some((labels, image)) => Ok(ImageRecord { header, labels: labels.as_chunks().0, image }),
            None => Err(SampleError(format!("a header that tells of {flag} labels, in {} bytes", record.len()))),
        }
    }
}

//! How slices that are downloaded together come to lie in one piece of memory.

use std::ops::Range;

use super::Slice;

/// Slices that lie no further apart than this many bytes are copied together with what is between them: that costs less than
/// another copy.
const GAP: u64 = 1024;

/// Copies are of whole words.
pub(super) const WORD: u64 = 4;

/// What is copied of each segment, and where it then lies.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Gathered {
    /// What is copied, one behind the other.
    pub(super) copies: Vec<Slice>,
    /// Where each slice then is.
    pub(super) places: Vec<Range<usize>>,
    /// Bytes of all copies.
    pub(super) bytes: u64,
}

impl Gathered {
    /// The copies for these slices, each of which lies within its segment.
    pub(super) fn new(slices: &[Slice]) -> Gathered {
        let mut gathered = Gathered::default();
        for slice in slices {
            gathered.add(*slice);
        }
        gathered
    }

    fn add(&mut self, slice: Slice) {
        let end = (slice.offset + slice.bytes).next_multiple_of(WORD);
        let near = |last: &&mut Slice| {
            let after = last.offset + last.bytes;
            last.segment == slice.segment && slice.offset >= after && slice.offset - after <= GAP
        };
        let begin = match self.copies.last_mut().filter(near) {
            Some(last) => {
                let begin = self.bytes - last.bytes + slice.offset - last.offset;
                self.bytes += end - last.offset - last.bytes;
                last.bytes = end - last.offset;
                begin
            }
            None => {
                let copy = Slice { bytes: end - slice.offset, ..slice };
                self.copies.push(copy);
                self.bytes += copy.bytes;
                self.bytes - copy.bytes
            }
        };
        self.places.push(begin as usize..(begin + slice.bytes) as usize);
    }

    /// The bytes of all slices one after the other, of those of all copies.
    pub(super) fn pick(&self, copied: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.places.iter().map(Range::len).sum());
        self.places.iter().for_each(|place| bytes.extend_from_slice(&copied[place.clone()]));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_together_is_copied_together() {
        let slice = |segment, offset, bytes| Slice { segment, offset, bytes };
        let found = Gathered::new(&[
            slice(1, 256, 4),
            slice(1, 512, 6),
            slice(0, 0, 4),
            slice(0, 4096, 4),
            // Not behind the last.
            slice(0, 4096, 4),
        ]);
        let copies = vec![slice(1, 256, 264), slice(0, 0, 4), slice(0, 4096, 4), slice(0, 4096, 4)];
        assert_eq!(found, Gathered { copies, places: vec![0..4, 256..262, 264..268, 268..272, 272..276], bytes: 276 });
    }
}

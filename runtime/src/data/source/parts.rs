//! Samples that lie in several files, numbered through all of them.

/// The files of a source, in order, and where the samples of each begin.
pub(super) struct Parts<T> {
    parts: Vec<T>,
    /// How many samples the files before each have.
    starts: Vec<u64>,
    len: u64,
}

impl<T> Parts<T> {
    /// Of files that have so many samples each.
    pub(super) fn new(parts: Vec<T>, samples: impl Fn(&T) -> usize) -> Parts<T> {
        let mut len = 0;
        let mut starts = Vec::with_capacity(parts.len());
        for part in &parts {
            starts.push(len);
            len += samples(part) as u64;
        }
        Parts { parts, starts, len }
    }

    /// Samples of all files.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The files.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.parts.iter()
    }

    /// The file of a sample, and its position there.
    pub(super) fn place(&self, index: u64) -> (&T, usize) {
        let part = self.starts.partition_point(|start| *start <= index) - 1;
        (&self.parts[part], (index - self.starts[part]) as usize)
    }
}

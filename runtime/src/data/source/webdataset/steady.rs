//! Reading in equal steps.

use std::io::{self, BufRead, Read};

/// Bytes of a step: large enough that steps cost nothing, small enough for hundreds of streams.
const STEP: usize = 64 << 10;

/// Reads ahead in steps that depend on nothing but the place in what is read. A decompressor that meets damage says so after
/// more or fewer bytes, as it was asked for more or fewer at a time; behind this it is always the same byte.
pub(super) struct Steady<R> {
    inner: R,
    buffer: Vec<u8>,
    at: usize,
    error: Option<io::Error>,
}

impl<R: Read> Steady<R> {
    pub(super) fn new(inner: R) -> Steady<R> {
        Steady { inner, buffer: Vec::new(), at: 0, error: None }
    }

    /// Reads a whole step, unless the end or an error comes before.
    fn step(&mut self) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.buffer.resize(STEP, 0);
        let (mut filled, mut end) = (0, false);
        while filled < STEP && !end && self.error.is_none() {
            match self.inner.read(&mut self.buffer[filled..]) {
                Ok(read) => (filled, end) = (filled + read, read == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.error = Some(error),
            }
        }
        self.buffer.truncate(filled);
        self.at = 0;
        match self.error.take_if(|_| filled == 0) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl<R: Read> BufRead for Steady<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.step()?;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.buffer.len());
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ahead = self.fill_buf()?;
        let length = ahead.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ahead[..length]);
        self.consume(length);
        Ok(length)
    }
}

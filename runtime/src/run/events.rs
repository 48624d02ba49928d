//! TensorBoard event files: scalars by step.
//!
//! The format is small enough to write: records framed as TFRecord (length, masked CRC-32C of the length, data, masked
//! CRC-32C of the data; all little-endian), each holding a protocol buffer `Event` with a handful of fields. Sources:
//! TensorFlow's `core/lib/io/record_writer.cc` (framing, masking), `core/util/event.proto`, `core/framework/summary.proto`.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::file::FileError;

/// Field numbers and values of the messages that are written.
mod field {
    /// `Event.wall_time`, double.
    pub(super) const WALL_TIME: u64 = 1;
    /// `Event.step`, int64.
    pub(super) const STEP: u64 = 2;
    /// `Event.file_version`, string.
    pub(super) const FILE_VERSION: u64 = 3;
    /// `Event.summary`, message.
    pub(super) const SUMMARY: u64 = 5;
    /// `Event.session_log`, message.
    pub(super) const SESSION_LOG: u64 = 7;
    /// `Summary.value`, message, repeated.
    pub(super) const VALUE: u64 = 1;
    /// `Summary.Value.tag`, string.
    pub(super) const TAG: u64 = 1;
    /// `Summary.Value.simple_value`, float.
    pub(super) const SIMPLE_VALUE: u64 = 2;
    /// `SessionLog.status`, enumeration.
    pub(super) const STATUS: u64 = 1;
    /// `SessionLog.START`: what was logged at this step and later does not count any more.
    pub(super) const START: u64 = 1;
}

/// An event file, open for appending.
#[derive(Debug)]
pub(super) struct EventFile {
    file: File,
    path: std::path::PathBuf,
    /// Bytes of whole records.
    whole: u64,
}

impl EventFile {
    /// Creates a new event file in `folder`. TensorBoard forgets what other files of the folder say about `first_step` and
    /// later ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn create(folder: &Path, first_step: u64) -> Result<EventFile, FileError> {
        let now = wall_time();
        // TensorBoard reads the files of a folder in the order of their names; the counter keeps restarts within a second apart.
        let name = |n: u32| folder.join(format!("events.out.tfevents.{:010}.{n:04}.alip", now as u64));
        let mut number = 0;
        let (file, path) = loop {
            let path = name(number);
            match File::create_new(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 9999 => number += 1,
                Err(error) => return Err(FileError::io(&path, "write")(error)),
            }
        };
        let mut events = EventFile { file, path, whole: 0 };
        events.put(&[double(field::WALL_TIME, now), bytes(field::FILE_VERSION, b"brain.Event:2")].concat())?;
        events.put(&start(now, first_step))?;
        Ok(events)
    }

    /// Appends the values of a step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), FileError> {
        self.put(&event(wall_time(), step, values))
    }

    fn put(&mut self, message: &[u8]) -> Result<(), FileError> {
        // One write, so that a killed process leaves whole records or, at worst, one that TensorBoard recognises as cut.
        let record = record(message);
        if let Err(error) = self.file.write_all(&record) {
            let _ = self.file.set_len(self.whole).and_then(|()| self.file.seek(SeekFrom::End(0)));
            return Err(FileError::io(&self.path, "write")(error));
        }
        self.whole += record.len() as u64;
        Ok(())
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn start(wall_time: f64, step: u64) -> Vec<u8> {
    let log = bytes(field::SESSION_LOG, &varint(field::STATUS, field::START));
    [double(field::WALL_TIME, wall_time), varint(field::STEP, step), log].concat()
}

fn event<'a>(wall_time: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let value = |(tag, value): (&str, f64)| {
        let value = [bytes(field::TAG, tag.as_bytes()), float(field::SIMPLE_VALUE, value as f32)].concat();
        bytes(field::VALUE, &value)
    };
    let summary: Vec<u8> = values.into_iter().flat_map(value).collect();
    [double(field::WALL_TIME, wall_time), varint(field::STEP, step), bytes(field::SUMMARY, &summary)].concat()
}

/// Frames a message as a TFRecord.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

/// A CRC of data that hold CRCs has poor statistics, so the format rotates it and adds a constant.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(10);
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3 | VARINT), number(value)].concat()
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [number(field << 3 | FIXED64), value.to_le_bytes().to_vec()].concat()
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [number(field << 3 | FIXED32), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, data: &[u8]) -> Vec<u8> {
    [number(field << 3 | LENGTH), number(data.len() as u64), data.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also one that was killed before its first checkpoint and begins anew.
    #[test]
    fn whatever_step_a_run_goes_on_from_what_came_after_does_not_count() {
        let folder = crate::train::testing::folder("events_start");
        for first in [1, 8] {
            let path = EventFile::create(&folder, first).unwrap().path;
            let written = std::fs::read(path).unwrap();
            let start = start(f64::from_le_bytes(*written[13..].first_chunk().unwrap()), first);
            assert!(written.ends_with(&record(&start)), "{first}");
        }
    }

    /// The bytes that TensorBoard's own writer (PyPI tensorboard) gives for the same event.
    #[test]
    fn an_event_is_the_one_tensorboard_writes() {
        let hex: String = record(&event(1.5, 300, [("loss", 0.25)])).iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed";
        assert_eq!(hex, expected);
    }
}

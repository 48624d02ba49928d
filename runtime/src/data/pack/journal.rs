//! What of an unfinished output is sound: a small file beside it, which appears whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{DataError, Skips};
use crate::file::write_bytes;

/// What an output is made of, by name: whatever its bytes depend on. In the order in which differences are told.
pub(super) type About = Vec<(String, String)>;

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Samples of the source that were written or skipped, or are not on the list.
    pub(super) seen: u64,
    /// Samples written.
    pub(super) written: u64,
    /// Those that were not.
    pub(super) skips: Skips,
    /// The last of these, to be shown.
    pub(super) last_skipped: String,
    /// Which lines of the captions are used.
    pub(super) used: Bits,
    /// Finished shards.
    pub(super) shards: u64,
    /// Samples of the shard that is being written.
    pub(super) in_shard: u64,
    /// Bytes of each file that is being written.
    pub(super) bytes: Vec<u64>,
    /// Bytes of each finished shard.
    pub(super) shard_bytes: Vec<u64>,
    /// Whether all is written, and files only want their names.
    pub(super) is_done: bool,
}

#[derive(Serialize, Deserialize)]
struct Journal {
    about: About,
    state: State,
}

/// Writes down how far it is; all that is said to be written must be on disk.
pub(super) fn write(path: &Path, about: &About, state: &State) -> Result<(), DataError> {
    let journal = Journal { about: about.clone(), state: state.clone() };
    let text = serde_json::to_vec(&journal).map_err(|error| DataError::file(path, error, "begin anew with --again"))?;
    Ok(write_bytes(path, &text)?)
}

/// How far an output of the same kind is; `None` if it was not begun.
pub(super) fn read(path: &Path, about: &About) -> Result<Option<State>, DataError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataError::file(path, error, "begin anew with --again")),
    };
    let damaged = |_| DataError::file(path, "it is no journal of a packing", "begin anew with --again");
    let journal: Journal = serde_json::from_slice(&text).map_err(damaged)?;
    let then: BTreeMap<&str, &str> = journal.about.iter().map(|(name, value)| (&**name, &**value)).collect();
    for (name, now) in about {
        let then = then.get(&**name).copied().unwrap_or("nothing");
        if then != now {
            let reason = format!("what is left here of a packing was begun with {name} {then}, and this is {now}");
            let advice = "give the command that it was begun with, on the same data, or begin anew with --again";
            return Err(DataError::file(path, reason, advice));
        }
    }
    Ok(Some(journal.state))
}

/// A set of numbers below some limit, a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u8>);

impl Bits {
    /// None of the numbers below `limit`.
    pub(super) fn new(limit: usize) -> Bits {
        Bits(vec![0; limit.div_ceil(8)])
    }

    /// Whether a number is in it.
    pub(super) fn has(&self, number: usize) -> bool {
        self.0.get(number / 8).is_some_and(|byte| byte >> (number % 8) & 1 == 1)
    }

    /// Adds a number; whether it is new.
    pub(super) fn add(&mut self, number: usize) -> bool {
        let is_new = !self.has(number);
        if let Some(byte) = self.0.get_mut(number / 8) {
            *byte |= 1 << (number % 8);
        }
        is_new
    }
}

impl Serialize for Bits {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Bits, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map(Bits).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_a_journal() {
        let mut bits = Bits::new(20);
        assert_eq!([3, 19, 3].map(|number| bits.add(number)), [true, true, false]);
        let again: Bits = serde_json::from_str(&serde_json::to_string(&bits).unwrap()).unwrap();
        assert_eq!(again, bits);
        assert_eq!((0..24).filter(|&number| again.has(number)).collect::<Vec<_>>(), [3, 19]);
    }
}

//! The source `Webdataset`: shards, which are tar archives of samples.
//!
//! Shards on a disk have random access. Those that are compressed or on a server are read in sequence, all of a source if one is;
//! compressed ones on a disk are unpacked once where that is asked for.

mod cache;
mod fields;
mod files;
mod place;
#[cfg_attr(not(feature = "remote"), path = "no_remote.rs")]
mod remote;
mod sequence;
mod shard;
mod sizes;
mod steady;
mod unpack;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

#[cfg(feature = "parquet")]
pub(super) use self::cache::folder as cache_folder;
use self::fields::Fields;
#[cfg(feature = "parquet")]
pub(super) use self::fields::MAX_IMAGE;
pub(super) use self::fields::{IMAGES, MAX_TEXT, Wanted};
use self::place::Place;
use self::sequence::Shards;
use self::shard::{Member, Shard};
pub(in crate::data) use self::write::{ShardWriter, member_key};
use super::parts::Parts;
use super::{ListHash, RawSample, SampleSource, Sequence, paths};
use crate::data::{DataError, SampleError, scratch};

/// Samples of shards; see [`alip_plan::pipeline::Source::Webdataset`].
///
/// Where shards have random access, of every sample only its place is kept, 4 bytes. A sample is read when it is asked for, by
/// whatever thread.
pub struct WebdatasetSource {
    storage: Storage,
    fields: Fields,
}

enum Storage {
    Anywhere(Parts<Shard>),
    InSequence(Arc<Shards>),
}

/// How shards are read; see [`alip_plan::pipeline::Source::Webdataset`].
#[derive(Clone, Copy, Debug)]
pub struct WebdatasetOptions {
    /// Samples of all shards, if they are read in sequence; 0 if nobody says.
    pub samples: u64,
    /// Most streams, if they are read in sequence.
    pub streams: u64,
    /// Whether compressed shards are unpacked.
    pub unpack: bool,
}

impl Default for WebdatasetOptions {
    fn default() -> WebdatasetOptions {
        WebdatasetOptions { samples: 0, streams: 256, unpack: false }
    }
}

impl WebdatasetSource {
    /// Opens the shards that a path stands for; `texts` says for each text field which file it is: `txt`, or `json:caption`.
    ///
    /// # Errors
    /// A shard cannot be read, or is no archive of samples.
    pub fn open(path: &str, texts: &BTreeMap<String, String>) -> Result<WebdatasetSource, DataError> {
        WebdatasetSource::open_as(path, texts, &WebdatasetOptions::default())
    }

    /// The same, with what is said of them.
    ///
    /// # Errors
    /// As [`WebdatasetSource::open`]; or what is said of them does not agree.
    pub fn open_as(
        path: &str,
        texts: &BTreeMap<String, String>,
        options: &WebdatasetOptions,
    ) -> Result<WebdatasetSource, DataError> {
        WebdatasetSource::open_with(path, texts, options, cache::folder().as_deref())
    }

    /// The same, where what is known of shards is kept in this folder.
    fn open_with(
        path: &str,
        texts: &BTreeMap<String, String>,
        options: &WebdatasetOptions,
        cache: Option<&Path>,
    ) -> Result<WebdatasetSource, DataError> {
        let fields = Fields::new(texts);
        let places = Place::all(path)?;
        let in_sequence =
            places.par_iter().map(Place::is_in_sequence).collect::<Result<Vec<bool>, _>>()?.contains(&true);
        let storage = match in_sequence && !options.unpack {
            true => Storage::InSequence(Arc::new(Shards::new(places, fields.clone(), options, cache)?)),
            false => Storage::Anywhere(stated(anywhere(&places, cache)?, path, options.samples)?),
        };
        Ok(WebdatasetSource { storage, fields })
    }
}

impl WebdatasetSource {
    /// A text of a sample, without its image.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(crate) fn text(&self, index: u64, field: &str) -> Result<String, SampleError> {
        let Storage::Anywhere(shards) = &self.storage else { return Err(in_sequence()) };
        let (shard, at) = shards.place(index);
        let (file, members) = shard.members(at).map_err(SampleError)?;
        self.fields.text(field, &members, |member| read(member, &file))
    }
}

fn in_sequence() -> SampleError {
    SampleError("its shard is read in sequence, and has no samples by number".into())
}

/// The bytes of a file of a shard.
fn read(member: &Member, shard: &File) -> Result<Vec<u8>, SampleError> {
    let mut bytes = scratch::take(member.size as usize);
    member.read(shard, &mut bytes).map_err(|error| SampleError(format!("cannot be read: {error}")))?;
    Ok(bytes)
}

/// Shards with random access, those that are compressed unpacked. Of several that are wrong the first is named.
fn anywhere(places: &[Place], cache: Option<&Path>) -> Result<Parts<Shard>, DataError> {
    let open = |place: &Place| {
        let path = place.local().ok_or_else(|| {
            let advice = "leave `unpack` out, or copy the shard to a disk";
            DataError::file(&place.path(), "what lies on a server cannot be unpacked", advice)
        })?;
        match place.is_in_sequence()? {
            true => Shard::open(&unpack::unpacked(path, cache)?, cache),
            false => Shard::open(path, cache),
        }
    };
    let shards: Vec<Result<Shard, DataError>> = places.par_iter().map(open).collect();
    Ok(Parts::new(shards.into_iter().collect::<Result<_, _>>()?, Shard::len))
}

/// Shards of as many samples as somebody says, if anybody does.
fn stated(shards: Parts<Shard>, path: &str, samples: u64) -> Result<Parts<Shard>, DataError> {
    if samples == 0 || samples == shards.len() {
        return Ok(shards);
    }
    let reason = format!("{} samples in all, where `samples` of the source says {samples}", shards.len());
    Err(DataError::file(
        Path::new(path),
        reason,
        "give the shards that are meant, or leave `samples` out: these can be counted",
    ))
}

impl SampleSource for WebdatasetSource {
    fn len(&self) -> u64 {
        match &self.storage {
            Storage::Anywhere(shards) => shards.len(),
            Storage::InSequence(shards) => shards.samples(),
        }
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let Storage::Anywhere(shards) = &self.storage else { return Err(in_sequence()) };
        let (shard, at) = shards.place(index);
        let (file, members) = shard.members(at).map_err(SampleError)?;
        self.fields.sample(&members, |member| read(member, &file))
    }

    fn name(&self, index: u64) -> String {
        let Storage::Anywhere(shards) = &self.storage else { return format!("sample {index}") };
        let (shard, _) = shards.place(index);
        format!("`{}` of {}", self.key(index), paths::name(&shard.path))
    }

    fn key(&self, index: u64) -> String {
        let Storage::Anywhere(shards) = &self.storage else { return format!("sample {index}") };
        let (shard, at) = shards.place(index);
        // A shard that cannot be read any more has a number, if no key.
        let key = shard.members(at).ok().and_then(|(_, members)| Some(members.into_iter().next()?.key));
        key.unwrap_or_else(|| format!("sample {at}"))
    }

    fn sequence(&self) -> Option<Arc<dyn Sequence>> {
        match &self.storage {
            Storage::Anywhere(_) => None,
            Storage::InSequence(shards) => Some(shards.clone()),
        }
    }

    /// Of names and sizes, and of the texts: whatever is small is read when a shard is looked into. Of shards that are read in
    /// sequence, of names and sizes of the shards.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        match &self.storage {
            Storage::Anywhere(shards) => shards.iter().for_each(|shard| shard.hash(&mut hash)),
            Storage::InSequence(shards) => shards.hash(&mut hash),
        }
        Ok(hash.to_string())
    }
}

#[cfg(test)]
mod tests;

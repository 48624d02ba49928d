//! The source `Webdataset`: shards, which are tar archives of samples.

mod cache;
mod shard;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use rayon::prelude::*;

#[cfg(feature = "parquet")]
pub(super) use self::cache::folder as cache_folder;
use self::shard::{Member, Shard};
pub(in crate::data) use self::write::{ShardWriter, member_key};
use super::parts::Parts;
use super::{Field, ListHash, RawSample, SampleSource, paths};
use crate::data::{DataError, SampleError, scratch};

/// Files that are an image, where there are several the first of these.
pub(super) const IMAGES: &str = "jpg;jpeg;png;webp";

/// Largest image file that is read: the largest photographs in use are a third of it.
pub(super) const MAX_IMAGE: u64 = 64 << 20;

/// Largest file with a text: a page has some thousand letters.
pub(super) const MAX_TEXT: u64 = 1 << 20;

/// Samples of local shards; see [`alip_plan::pipeline::Source::Webdataset`].
///
/// Of every sample only its place is kept, 4 bytes. A sample is read when it is asked for, by whatever thread.
pub struct WebdatasetSource {
    shards: Parts<Shard>,
    image: Wanted,
    texts: Vec<(String, Wanted)>,
}

/// Where a field is read from.
pub(super) struct Wanted {
    /// Suffixes, best first.
    pub(super) suffixes: Vec<String>,
    /// The entry of a JSON file that is meant.
    key: Option<String>,
}

impl Wanted {
    /// `txt`, `jpg;jpeg;png`, or `json:caption`: the text of an entry.
    pub(super) fn new(from: &str) -> Wanted {
        let (suffixes, key) = match from.split_once(':') {
            Some((suffixes, key)) => (suffixes, Some(key.to_string())),
            None => (from, None),
        };
        let suffixes = suffixes.split(';').map(|suffix| suffix.trim().trim_start_matches('.').to_lowercase()).collect();
        Wanted { suffixes, key }
    }

    /// The best of these files.
    fn of<'m>(&self, members: &'m [Member]) -> Result<&'m Member, SampleError> {
        let best = self.suffixes.iter().find_map(|suffix| members.iter().find(|member| member.suffix == *suffix));
        best.ok_or_else(|| self.missing())
    }

    /// That there is no such file.
    pub(super) fn missing(&self) -> SampleError {
        SampleError(format!("no file `.{}`", self.suffixes.join("` or `.")))
    }

    /// The text in a file with this suffix.
    pub(super) fn text(&self, suffix: &str, bytes: Vec<u8>) -> Result<String, SampleError> {
        let text = String::from_utf8(bytes).map_err(|_| SampleError(format!("its `.{suffix}` is not UTF-8")))?;
        let Some(key) = &self.key else { return Ok(text.trim_end_matches(['\r', '\n']).to_string()) };
        let json: serde_json::Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|_| SampleError(format!("its `.{suffix}` is no JSON")))?;
        match json.get(key) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            _ => Err(SampleError(format!("its `.{suffix}` has no text `{key}`"))),
        }
    }
}

impl WebdatasetSource {
    /// Opens the shards that a path stands for; `texts` says for each text field which file it is: `txt`, or `json:caption`.
    ///
    /// # Errors
    /// A shard cannot be read, or is no archive of samples.
    pub fn open(path: &str, texts: &BTreeMap<String, String>) -> Result<WebdatasetSource, DataError> {
        WebdatasetSource::open_with(path, texts, cache::folder().as_deref())
    }

    /// The same, where what is known of shards is kept in this folder.
    fn open_with(
        path: &str,
        texts: &BTreeMap<String, String>,
        cache: Option<&Path>,
    ) -> Result<WebdatasetSource, DataError> {
        if let Some((scheme, _)) = path.split_once("://") {
            return Err(DataError::Unsupported {
                what: format!("reading shards over `{scheme}`"),
                advice: "copy them to a disk and give their path".into(),
            });
        }
        // Of several that are wrong the first is named.
        let shards: Vec<Result<Shard, DataError>> =
            paths::files(path)?.par_iter().map(|path| Shard::open(path, cache)).collect();
        let shards = Parts::new(shards.into_iter().collect::<Result<_, _>>()?, Shard::len);
        let texts = texts.iter().map(|(name, from)| (name.clone(), Wanted::new(from))).collect();
        Ok(WebdatasetSource { shards, image: Wanted::new(IMAGES), texts })
    }
}

/// The bytes of a file of a sample, which may have so many.
fn bytes(shard: &File, member: &Member, most: u64) -> Result<Vec<u8>, SampleError> {
    if member.size > most {
        let (size, most) = (member.size >> 20, most >> 20);
        return Err(SampleError(format!("its `.{}` has {size} MiB, more than the allowed {most}", member.suffix)));
    }
    let mut bytes = scratch::take(member.size as usize);
    member.read(shard, &mut bytes).map_err(|error| SampleError(format!("cannot be read: {error}")))?;
    Ok(bytes)
}

impl SampleSource for WebdatasetSource {
    fn len(&self) -> u64 {
        self.shards.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (shard, at) = self.shards.place(index);
        let (file, members) = shard.members(at).map_err(SampleError)?;
        let image = bytes(&file, self.image.of(&members)?, MAX_IMAGE)?;
        let mut fields = BTreeMap::from([("jpeg".to_string(), Field::Encoded(image))]);
        for (name, wanted) in &self.texts {
            let member = wanted.of(&members)?;
            let text = wanted.text(&member.suffix, bytes(&file, member, MAX_TEXT)?)?;
            fields.insert(name.clone(), Field::Text(text));
        }
        Ok(RawSample { fields, ..RawSample::default() })
    }

    fn name(&self, index: u64) -> String {
        let (shard, _) = self.shards.place(index);
        format!("`{}` of {}", self.key(index), paths::name(&shard.path))
    }

    fn key(&self, index: u64) -> String {
        let (shard, at) = self.shards.place(index);
        // A shard that cannot be read any more has a number, if no key.
        let key = shard.members(at).ok().and_then(|(_, members)| Some(members.into_iter().next()?.key));
        key.unwrap_or_else(|| format!("sample {at}"))
    }

    /// Of names and sizes, and of the texts: whatever is small is read when a shard is looked into.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        self.shards.iter().for_each(|shard| shard.hash(&mut hash));
        Ok(hash.to_string())
    }
}

#[cfg(test)]
mod tests;

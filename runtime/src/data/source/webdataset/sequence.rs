//! Shards that are read in sequence.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::WebdatasetOptions;
use super::cache::Entry;
use super::fields::Fields;
use super::files::{Files, contents};
use super::place::{Place, Unreachable};
use super::shard::{ADVICE, Member};
use super::sizes::{self, Sizes};
use crate::data::source::{ListHash, RawSample, Sequence, ShardReader, paths};
use crate::data::{DataError, SampleError, ShardError};

/// Most files of a sample: those of the richest data sets are a tenth of it.
const MOST_FILES: usize = 256;

/// Most samples of a shard, of which each is remembered: published shards have some ten thousand.
pub(super) const MOST_SAMPLES: usize = 1 << 22;

/// Shards, none of which has been looked into.
pub(super) struct Shards {
    shards: Vec<Listed>,
    fields: Fields,
    streams: u64,
    samples: u64,
}

/// A shard, and what is known of it.
struct Listed {
    place: Place,
    bytes: u64,
    /// How many samples it has, said by `sizes.json` or learnt.
    size: OnceLock<u64>,
    /// Where that is kept.
    entry: Option<Entry>,
}

impl Shards {
    /// Of these places, with what is said beside them and what was learnt of them before.
    pub(super) fn new(
        places: Vec<Place>,
        fields: Fields,
        options: &WebdatasetOptions,
        cache: Option<&Path>,
    ) -> Result<Shards, DataError> {
        let stated = stated(&places)?;
        let list = |(place, stated): (Place, Option<u64>)| {
            let about = place.about()?;
            let entry = cache.map(|folder| Entry::of(folder, &about));
            let size = stated.or_else(|| entry.as_ref()?.read_size());
            let size = size.map_or_else(OnceLock::new, OnceLock::from);
            Ok(Listed { place, bytes: about.bytes, size, entry })
        };
        let samples = samples(&places, &stated, options.samples)?;
        let shards: Vec<Result<Listed, DataError>> =
            places.into_par_iter().zip(stated.into_par_iter()).map(list).collect();
        let shards = shards.into_iter().collect::<Result<_, _>>()?;
        Ok(Shards { shards, fields, streams: options.streams, samples })
    }

    /// Samples of all shards, or 0 where nobody says. What was learnt does not count: it would make other data of the same.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Adds to a hash what shards there are.
    pub(super) fn hash(&self, hash: &mut ListHash) {
        for Listed { place, bytes, .. } in &self.shards {
            hash.add(paths::name(&place.path()).as_bytes());
            hash.add(&bytes.to_le_bytes());
        }
    }
}

/// What the files beside the shards say of each.
fn stated(places: &[Place]) -> Result<Vec<Option<u64>>, DataError> {
    let mut folders: BTreeMap<PathBuf, Sizes> = BTreeMap::new();
    let mut all = Vec::with_capacity(places.len());
    for place in places {
        let path = place.path();
        let folder = path.parent().unwrap_or(Path::new(""));
        let sizes = match folders.get(folder) {
            Some(sizes) => sizes,
            None => {
                let sizes = place.sizes(folder)?;
                folders.entry(folder.to_path_buf()).or_insert(sizes)
            }
        };
        all.push(sizes.get(&*paths::name(&path)).copied());
    }
    Ok(all)
}

/// Samples of all shards: as the pipeline says, or the files beside them if they name all; 0 if nobody says.
fn samples(places: &[Place], stated: &[Option<u64>], said: u64) -> Result<u64, DataError> {
    let sum: Option<u64> = stated.iter().copied().sum();
    match (sum, places.first()) {
        (Some(sum), Some(first)) if said != 0 && said != sum => {
            let path = first.path().with_file_name(sizes::FILE);
            let reason = format!("its shards have {sum} samples, but the pipeline's `samples` says {said}");
            Err(DataError::file(&path, reason, "correct one of the two; the file suffices"))
        }
        (sum, _) => Ok(sum.unwrap_or(said)),
    }
}

impl Sequence for Shards {
    fn shards(&self) -> usize {
        self.shards.len()
    }

    fn streams(&self) -> u64 {
        self.streams
    }

    fn size(&self, shard: usize) -> Option<u64> {
        self.shards[shard].size.get().copied()
    }

    fn learn(&self, shard: usize, samples: u64) {
        let Listed { size, entry, .. } = &self.shards[shard];
        if size.set(samples).is_ok()
            && let Some(entry) = entry
        {
            entry.write_size(samples);
        }
    }

    fn open(&self, shard: usize) -> Result<Box<dyn ShardReader>, ShardError> {
        let contents = contents(self.shards[shard].place.open()?).map_err(|error| {
            match error.get_ref().and_then(|error| error.downcast_ref()).cloned() {
                Some(Unreachable { reason, advice }) => ShardError::Refused { reason, advice },
                None => ShardError::Damaged(error.to_string()),
            }
        })?;
        let (files, fields) = (Files::new(contents), self.fields.clone());
        Ok(Box::new(Reader { files, fields, next: None, keys: HashSet::new() }))
    }

    fn path(&self, shard: usize) -> PathBuf {
        self.shards[shard].place.path()
    }
}

/// Reads the samples of a shard.
struct Reader {
    files: Files,
    fields: Fields,
    /// The first file of the next sample.
    next: Option<Member>,
    /// Hashes of the keys so far.
    keys: HashSet<u64>,
}

/// The files of a sample, with the bytes of those that were asked for.
type Parts = (Vec<Member>, Vec<Vec<u8>>);

impl Reader {
    /// The files of the next sample, all of them: where one ends is known by the one behind it.
    fn step(&mut self, keep: bool) -> Result<Option<Parts>, ShardError> {
        let first = match self.next.take() {
            Some(first) => Some(first),
            None => self.files.next()?,
        };
        let Some(mut file) = first else { return Ok(None) };
        let key = file.key.clone();
        self.check_key(&key)?;
        let (mut files, mut contents) = (Vec::new(), Vec::new());
        loop {
            if files.iter().any(|known: &Member| known.suffix == file.suffix) {
                return Err(refused(format!("sample `{key}` has two files `.{}`", file.suffix)));
            }
            if files.len() == MOST_FILES {
                return Err(refused(format!("sample `{key}` has more than {MOST_FILES} files")));
            }
            let wanted = keep && self.fields.want(&file);
            contents.push(if wanted { self.files.read(&file)? } else { Vec::new() });
            files.push(file);
            match self.files.next()? {
                Some(next) if next.key == key => file = next,
                next => {
                    self.next = next;
                    return Ok(Some((files, contents)));
                }
            }
        }
    }

    /// A key comes once.
    fn check_key(&mut self, key: &str) -> Result<(), ShardError> {
        let mut hash = ListHash::default();
        hash.add(key.as_bytes());
        if !self.keys.insert(hash.value()) {
            return Err(refused(format!("the files of sample `{key}` do not stand together")));
        }
        if self.keys.len() > MOST_SAMPLES {
            return Err(refused(format!("more than {MOST_SAMPLES} samples in one shard")));
        }
        Ok(())
    }
}

impl ShardReader for Reader {
    fn next(&mut self) -> Result<Option<Result<RawSample, SampleError>>, ShardError> {
        let Some((files, contents)) = self.step(true)? else { return Ok(None) };
        let read = |file: &Member| {
            let known = files.iter().position(|known| known.offset == file.offset);
            Ok(known.map(|at| contents[at].clone()).unwrap_or_default())
        };
        Ok(Some(self.fields.sample(&files, read)))
    }

    fn skip(&mut self, samples: u64) -> Result<u64, ShardError> {
        for skipped in 0..samples {
            if self.step(false)?.is_none() {
                return Ok(skipped);
            }
        }
        Ok(samples)
    }
}

fn refused(reason: String) -> ShardError {
    ShardError::Refused { reason, advice: ADVICE.into() }
}

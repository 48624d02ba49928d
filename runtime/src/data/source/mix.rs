//! The source `Mix`: several sources as one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alip_plan::pipeline::{Mode, Source};

use super::parts::Parts;
use super::{ListHash, RawSample, SampleSource, Texts, open_source};
use crate::data::{DataError, Mixture, Part, SampleError};

/// The samples of several sources, one after the other; see [`Source::Mix`].
pub struct MixSource {
    sources: Parts<Named>,
    /// What all of them have.
    fields: BTreeSet<String>,
    mixture: Option<Mixture>,
    /// All sources, should some have no held-out samples and so not be open.
    declared: BTreeMap<String, Source>,
    mode: Mode,
}

struct Named {
    name: String,
    source: Arc<dyn SampleSource>,
}

impl MixSource {
    /// Opens a `Source::Mix`: the samples that are trained on, or those that are held out, of the sources that have any.
    ///
    /// # Errors
    /// A source cannot be opened.
    pub fn open(
        sources: &BTreeMap<String, Source>,
        weights: &BTreeMap<String, f64>,
        samples: u64,
        mode: Mode,
    ) -> Result<MixSource, DataError> {
        let held_out = mode == Mode::Eval && sources.values().any(Source::has_held_out);
        let chosen = sources.iter().filter(|(_, source)| !held_out || source.has_held_out());
        let open = |(name, source): (&String, &Source)| {
            let opened = open_source(source, mode)?;
            if opened.sequence().is_some() {
                let what = format!("reading `{name}` of a mixture in sequence");
                let advice = "set `unpack: true` in it, which gives compressed shards on a disk random access".into();
                return Err(DataError::Unsupported { what, advice });
            }
            Ok(Named { name: name.clone(), source: opened })
        };
        let opened = chosen.map(open).collect::<Result<Vec<_>, DataError>>()?;
        let part = |named: &Named| {
            let weight = *weights.get(&named.name)?;
            Some(Part { name: named.name.clone(), len: named.source.len(), weight })
        };
        let parts: Option<Vec<Part>> = opened.iter().map(part).collect();
        let all = opened.iter().map(|named| named.source.len()).sum();
        let samples = if samples == 0 { all } else { samples };
        let mixed = Source::Mix { sources: sources.clone(), weights: BTreeMap::new(), samples: 0 };
        Ok(MixSource {
            declared: sources.clone(),
            mode,
            sources: Parts::new(opened, |named| named.source.len() as usize),
            fields: mixed.fields().into_keys().collect(),
            mixture: parts.filter(|_| mode == Mode::Train).map(|parts| Mixture { parts, samples }),
        })
    }
}

impl SampleSource for MixSource {
    fn len(&self) -> u64 {
        self.sources.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (named, at) = self.sources.place(index);
        let mut fields = named.source.sample(at as u64)?.fields;
        fields.retain(|name, _| self.fields.contains(name));
        // Labels of one source may be none of another's.
        Ok(RawSample { fields, labels: BTreeMap::new() })
    }

    fn name(&self, index: u64) -> String {
        let (named, at) = self.sources.place(index);
        format!("{}: {}", named.name, named.source.name(at as u64))
    }

    fn key(&self, index: u64) -> String {
        let (named, at) = self.sources.place(index);
        named.source.key(at as u64)
    }

    fn mixture(&self) -> Option<&Mixture> {
        self.mixture.as_ref()
    }

    fn texts(&self) -> Option<&dyn Texts> {
        self.sources.iter().all(|named| named.source.texts().is_some()).then_some(self as &dyn Texts)
    }

    /// Of the lists of all.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for named in self.sources.iter() {
            hash.add(named.name.as_bytes());
            hash.add(named.source.list_hash()?.as_bytes());
        }
        Ok(hash.to_string())
    }
}

impl Texts for MixSource {
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        let (named, at) = self.sources.place(index);
        named.source.captions(at as u64)
    }

    /// The most important words of each in turn: how often a word comes is not told by all.
    fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        let lists = match self.mode {
            Mode::Train => self.sources.iter().map(|named| named.source.words(limit)).collect::<Result<Vec<_>, _>>()?,
            Mode::Eval => {
                let words = |source| open_source(source, Mode::Train)?.words(limit);
                self.declared.values().map(words).collect::<Result<_, _>>()?
            }
        };
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let mut seen = BTreeSet::new();
        let turns = (0..longest).flat_map(|rank| lists.iter().filter_map(move |list| list.get(rank)));
        Ok(turns.filter(|word| seen.insert(word.as_str())).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Field;

    fn shapes(scenes: u64, seed: u64) -> Source {
        Source::Shapes { size: 4, scenes, held_out: 2, seed }
    }

    fn mix(weights: &[(&str, f64)], samples: u64, mode: Mode) -> MixSource {
        let sources = [("web", shapes(5, 0)), ("clean", shapes(3, 1))];
        let sources = sources.map(|(name, source)| (name.to_string(), source)).into();
        let weights = weights.iter().map(|(name, weight)| (name.to_string(), *weight)).collect();
        MixSource::open(&sources, &weights, samples, mode).unwrap()
    }

    /// They follow one another in the order of their names.
    #[test]
    fn samples_are_those_of_the_sources() {
        let mixed = mix(&[], 0, Mode::Train);
        assert_eq!((mixed.len(), mixed.mixture()), (8, None));
        let web = open_source(&shapes(5, 0), Mode::Train).unwrap();
        let sample = mixed.sample(3).unwrap();
        assert_eq!(sample.fields, web.sample(0).unwrap().fields);
        assert!(sample.labels.is_empty());
        assert!(matches!(&sample.fields["raw"], Field::Text(_)));
        assert_eq!(mixed.name(3), format!("web: {}", web.name(0)));
        assert_eq!(mixed.captions(7).unwrap(), web.captions(4).unwrap());
    }

    #[test]
    fn weights_say_what_an_epoch_is() {
        let mixed = mix(&[("clean", 1.0), ("web", 3.0)], 20, Mode::Train);
        let parts = [("clean", 3, 1.0), ("web", 5, 3.0)];
        let parts = parts.map(|(name, len, weight)| Part { name: name.into(), len, weight }).into();
        assert_eq!(mixed.mixture(), Some(&Mixture { parts, samples: 20 }));
        assert_eq!((&mixed as &dyn SampleSource).epoch_len(), 20);
        assert_eq!(mix(&[("clean", 1.0), ("web", 3.0)], 0, Mode::Train).mixture().unwrap().samples, 8);
    }

    /// What is held out is not mixed by weights, and words are those that are trained on.
    #[test]
    fn held_out_samples_are_taken_as_they_are() {
        let held_out = mix(&[("clean", 1.0), ("web", 3.0)], 20, Mode::Eval);
        assert_eq!(held_out.len(), 4);
        assert_eq!(held_out.words(5).unwrap(), mix(&[], 0, Mode::Train).words(5).unwrap());
    }

    /// They have no samples by number, of which a share could be drawn.
    #[test]
    fn shards_that_are_read_in_sequence_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &[0; 1024]).unwrap();
        let shard = folder.path().join("0.tar.gz");
        std::fs::write(&shard, packed.finish().unwrap()).unwrap();
        let path = shard.to_str().unwrap().to_string();
        let packed = Source::Webdataset { path, texts: BTreeMap::new(), samples: 9, streams: 256, unpack: false };
        let sources = [("clean".to_string(), shapes(3, 1)), ("web".to_string(), packed)].into();
        let refused = MixSource::open(&sources, &BTreeMap::new(), 0, Mode::Train).err().map(|error| error.to_string());
        let expected = "reading `web` of a mixture in sequence is not supported yet; set `unpack: true` in it, which gives \
                        compressed shards on a disk random access";
        assert_eq!(refused.as_deref(), Some(expected));
    }
}

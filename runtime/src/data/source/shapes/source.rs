//! The data set as a source of the data pipeline.

use super::{Scenes, vocabulary};
use crate::data::{DataError, Field, RawSample, SampleError, SampleSource, Texts};
use std::collections::BTreeMap;

/// Scenes rendered at one size. Fields: `image`, `raw`, `caption`. Labels: `raw_wrong` (0 or 1), `raw_about` (the index of
/// the scene that the raw text describes), `objects` (1 to 3), `class` (the kind of the first object, see
/// [`Kind::class`](super::Kind::class)).
#[derive(Clone, Debug)]
pub struct ShapesSource {
    scenes: Scenes,
    side: u32,
}

impl ShapesSource {
    /// Scenes, rendered `side` pixels wide and high.
    pub fn new(scenes: Scenes, side: u32) -> ShapesSource {
        ShapesSource { scenes, side }
    }

    /// The scenes.
    pub fn scenes(&self) -> &Scenes {
        &self.scenes
    }

    fn labels(&self, index: u64) -> BTreeMap<String, i64> {
        let raw = self.scenes.raw_text(index);
        let description = self.scenes.description(index);
        // A scene always holds an object.
        let class = description.objects.first().map_or(0, |object| object.kind.class());
        let labels = [
            ("raw_wrong", i64::from(raw.is_wrong)),
            ("raw_about", raw.about as i64),
            ("objects", description.objects.len() as i64),
            ("class", class as i64),
        ];
        labels.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

impl SampleSource for ShapesSource {
    fn len(&self) -> u64 {
        self.scenes.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let len = self.scenes.len();
        if index >= len {
            return Err(SampleError(format!("there is no scene {index}, only {len} of them, counted from 0")));
        }
        let fields = [
            ("image", Field::Rgb(self.scenes.scene(index).render(self.side))),
            ("raw", Field::Text(self.scenes.raw_text(index).text)),
            ("caption", Field::Text(self.scenes.caption(index))),
        ];
        let fields = fields.into_iter().map(|(name, field)| (name.to_string(), field)).collect();
        Ok(RawSample { fields, labels: self.labels(index) })
    }

    fn name(&self, index: u64) -> String {
        format!("{} scene {index}", self.scenes.split.name())
    }

    fn key(&self, index: u64) -> String {
        format!("{index:08}")
    }

    fn texts(&self) -> Option<&dyn Texts> {
        Some(self)
    }
}

impl Texts for ShapesSource {
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        Ok(vec![self.scenes.caption(index)])
    }

    fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        Ok(vocabulary().into_iter().take(limit).collect())
    }
}

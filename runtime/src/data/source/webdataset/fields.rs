//! Which files of a sample its fields are read from.

use std::collections::BTreeMap;

use super::shard::Member;
use crate::data::SampleError;
use crate::data::source::{Field, RawSample};

/// Files that are an image, where there are several the first of these.
pub(in crate::data::source) const IMAGES: &str = "jpg;jpeg;png;webp";

/// Largest image file that is read: the largest photographs in use are a third of it.
pub(in crate::data::source) const MAX_IMAGE: u64 = 64 << 20;

/// Largest file with a text: a page has some thousand letters.
pub(in crate::data::source) const MAX_TEXT: u64 = 1 << 20;

/// The fields of a sample.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    image: Wanted,
    texts: Vec<(String, Wanted)>,
}

impl Fields {
    /// The image, and these texts.
    pub(super) fn new(texts: &BTreeMap<String, String>) -> Fields {
        let texts = texts.iter().map(|(name, from)| (name.clone(), Wanted::new(from))).collect();
        Fields { image: Wanted::new(IMAGES), texts }
    }

    /// Whether a field may be read from a file.
    pub(super) fn want(&self, file: &Member) -> bool {
        let image = self.image.is(file) && file.size <= MAX_IMAGE;
        image || self.texts.iter().any(|(_, text)| text.is(file) && file.size <= MAX_TEXT)
    }

    /// Makes a sample of its files, where `read` gives the bytes of one of those wanted.
    pub(super) fn sample(
        &self,
        files: &[Member],
        read: impl Fn(&Member) -> Result<Vec<u8>, SampleError>,
    ) -> Result<RawSample, SampleError> {
        let image = bounded(self.image.of(files)?, MAX_IMAGE, &read)?;
        let mut fields = BTreeMap::from([("jpeg".to_string(), Field::Encoded(image))]);
        for (name, wanted) in &self.texts {
            fields.insert(name.clone(), Field::Text(text_of(wanted, files, &read)?));
        }
        Ok(RawSample { fields, ..RawSample::default() })
    }

    /// The text of this name alone.
    pub(super) fn text(
        &self,
        name: &str,
        files: &[Member],
        read: impl Fn(&Member) -> Result<Vec<u8>, SampleError>,
    ) -> Result<String, SampleError> {
        let wanted = self.texts.iter().find(|(own, _)| own == name).map(|(_, wanted)| wanted);
        text_of(wanted.ok_or_else(|| SampleError(format!("no text `{name}`")))?, files, read)
    }
}

/// The text of the file that is wanted.
fn text_of(
    wanted: &Wanted,
    files: &[Member],
    read: impl Fn(&Member) -> Result<Vec<u8>, SampleError>,
) -> Result<String, SampleError> {
    let file = wanted.of(files)?;
    wanted.text(&file.suffix, bounded(file, MAX_TEXT, read)?)
}

/// The bytes of a file, which may have so many.
fn bounded(
    file: &Member,
    most: u64,
    read: impl Fn(&Member) -> Result<Vec<u8>, SampleError>,
) -> Result<Vec<u8>, SampleError> {
    if file.size > most {
        let (size, most) = (file.size >> 20, most >> 20);
        return Err(SampleError(format!("its `.{}` has {size} MiB, more than the allowed {most}", file.suffix)));
    }
    read(file)
}

/// Where a field is read from.
#[derive(Clone, Debug)]
pub(in crate::data::source) struct Wanted {
    /// Suffixes, best first.
    pub(in crate::data::source) suffixes: Vec<String>,
    /// The entry of a JSON file that is meant.
    key: Option<String>,
}

impl Wanted {
    /// `txt`, `jpg;jpeg;png`, or `json:caption`: the text of an entry.
    pub(in crate::data::source) fn new(from: &str) -> Wanted {
        let (suffixes, key) = match from.split_once(':') {
            Some((suffixes, key)) => (suffixes, Some(key.to_string())),
            None => (from, None),
        };
        let suffixes = suffixes.split(';').map(|suffix| suffix.trim().trim_start_matches('.').to_lowercase()).collect();
        Wanted { suffixes, key }
    }

    /// Whether it may be this file.
    fn is(&self, file: &Member) -> bool {
        self.suffixes.contains(&file.suffix)
    }

    /// The best of these files.
    fn of<'m>(&self, members: &'m [Member]) -> Result<&'m Member, SampleError> {
        let best = self.suffixes.iter().find_map(|suffix| members.iter().find(|member| member.suffix == *suffix));
        best.ok_or_else(|| self.missing())
    }

    /// That there is no such file.
    pub(in crate::data::source) fn missing(&self) -> SampleError {
        SampleError(format!("no file `.{}`", self.suffixes.join("` or `.")))
    }

    /// The text in a file with this suffix.
    pub(in crate::data::source) fn text(&self, suffix: &str, bytes: Vec<u8>) -> Result<String, SampleError> {
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

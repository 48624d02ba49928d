//! Lists of images with captions: COCO's JSON, Karpathy's JSON, the JSON of ALBEF that ALIP's code reads, and lines of text.
//!
//! Which it is is told by what is in the file. All captions of an image are taken, in their order: who wants the first five of
//! COCO's, which some images have six or seven of, says so in the suite.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::Dataset;
use super::files::{Known, ListedFiles};
use crate::data::{DataError, read_text};

const ADVICE: &str = "give COCO's or Karpathy's JSON, or lines `IMAGE.jpg,caption`";

/// What an image file ends with, where a line goes on.
const ENDINGS: [&str; 4] = [".jpg", ".jpeg", ".png", ".webp"];

/// The images of a list and the captions of each, both in the order of the list.
#[derive(Default)]
struct Listed {
    images: Vec<String>,
    captions: Vec<Vec<String>>,
}

/// Opens a list of images that lie in `images`; of Karpathy's the images of a split, and of any list those that the file `only`
/// names.
pub(super) fn open(list: &Path, images: &Path, split: &str, only: Option<&Path>) -> Result<Dataset, DataError> {
    let text = read_text(list, ADVICE)?;
    let mut found = match text.trim_start().chars().next() {
        Some('{') => of_json(list, &text, images, split)?,
        Some('[') => without(list, split).and_then(|()| of_entries(list, &text, images))?,
        _ => without(list, split).and_then(|()| of_lines(list, &text))?,
    };
    let mut seen = HashSet::new();
    if let Some(twice) = found.images.iter().find(|image| !seen.insert(*image)) {
        return Err(DataError::file(list, format!("two images `{twice}`"), ADVICE));
    }
    if let Some(only) = only {
        found = found.only(list, only)?;
    }
    let source = ListedFiles::new(list, images, found.images, Known::Captions(found.captions))?;
    Ok(Dataset::of_captions(Arc::new(source)))
}

/// That no split is asked of a list that has none.
fn without(list: &Path, split: &str) -> Result<(), DataError> {
    if split.is_empty() {
        return Ok(());
    }
    let advice = "leave `split` out, or name the images that are meant in a file `only`";
    Err(DataError::file(list, format!("it says of no image whether it has the split `{split}`"), advice))
}

impl Listed {
    /// The images that a file names, in its order.
    fn only(mut self, list: &Path, only: &Path) -> Result<Listed, DataError> {
        let advice = "write a line with the name of each image";
        let text = read_text(only, advice)?;
        let places: HashMap<&str, usize> =
            self.images.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let (mut seen, mut places_of) = (HashSet::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |reason| DataError::Line { path: only.to_path_buf(), line: number + 1, reason };
            let name = line.trim();
            // Some lists have the number of the photograph alone.
            let place = places.get(name).or_else(|| places.get(format!("{name}.jpg").as_str()));
            let place = *place.ok_or_else(|| fail(format!("{} has no image `{name}`", list.display())))?;
            if !seen.insert(place) {
                return Err(fail(format!("`{name}` stands there twice")));
            }
            places_of.push(place);
        }
        let mut take = |at: &usize| (std::mem::take(&mut self.images[*at]), std::mem::take(&mut self.captions[*at]));
        let (images, captions) = places_of.iter().map(&mut take).unzip();
        Ok(Listed { images, captions })
    }
}

/// A list in JSON, whose images have sentences (Karpathy's), or else annotations that refer to them (COCO's).
#[derive(Deserialize)]
struct Json {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Option<Vec<Annotation>>,
}

#[derive(Deserialize)]
struct Image {
    id: Option<u64>,
    #[serde(alias = "file_name")]
    filename: String,
    /// The folder of the image, in Karpathy's list of COCO.
    filepath: Option<String>,
    split: Option<String>,
    sentences: Option<Vec<Sentence>>,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: String,
}

fn of_json(list: &Path, text: &str, folder: &Path, split: &str) -> Result<Listed, DataError> {
    let fail = |reason: String| DataError::file(list, reason, ADVICE);
    let json: Json = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
    match json.annotations {
        Some(annotations) => without(list, split).and_then(|()| of_annotations(list, json.images, annotations)),
        None => of_sentences(list, json.images, folder, if split.is_empty() { "test" } else { split }),
    }
}

/// An entry of ALBEF's list, `{"image": "val2014/1.jpg", "caption": ["...", ...]}`.
#[derive(Deserialize)]
struct Entry {
    image: String,
    caption: Vec<String>,
}

fn of_entries(list: &Path, text: &str, folder: &Path) -> Result<Listed, DataError> {
    let fail = |error: serde_json::Error| DataError::file(list, error, ADVICE);
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(fail)?;
    let (images, captions) = entries.into_iter().map(|entry| (lying(folder, &entry.image), entry.caption)).unzip();
    Ok(Listed { images, captions })
}

/// A list may say in which folder an image is; people keep them in those, or have one folder.
fn lying(folder: &Path, image: &str) -> String {
    match image.rsplit_once('/') {
        Some((_, name)) if !folder.join(image).is_file() => name.into(),
        _ => image.into(),
    }
}

fn of_annotations(list: &Path, images: Vec<Image>, annotations: Vec<Annotation>) -> Result<Listed, DataError> {
    let fail = |reason: String| DataError::file(list, reason, "get it again: it is not what was published");
    let mut places = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        let id = image.id.ok_or_else(|| fail(format!("`{}` has no `id`", image.filename)))?;
        if places.insert(id, at).is_some() {
            return Err(fail(format!("two images with the id {id}, the second `{}`", image.filename)));
        }
    }
    let mut captions = vec![Vec::new(); images.len()];
    for (at, annotation) in annotations.into_iter().enumerate() {
        let id = annotation.image_id;
        let place =
            places.get(&id).ok_or_else(|| fail(format!("annotation {at} is of image {id}, which is not there")))?;
        captions[*place].push(annotation.caption);
    }
    Ok(Listed { images: images.into_iter().map(|image| image.filename).collect(), captions })
}

fn of_sentences(list: &Path, images: Vec<Image>, folder: &Path, split: &str) -> Result<Listed, DataError> {
    let mut found = Listed::default();
    let mut splits = BTreeSet::new();
    for image in images {
        let fail = |what: &str| DataError::file(list, format!("`{}` has no `{what}`", image.filename), ADVICE);
        let own = image.split.as_deref().ok_or_else(|| fail("split"))?;
        splits.insert(own.to_string());
        if own != split {
            continue;
        }
        let sentences = image.sentences.as_ref().ok_or_else(|| fail("sentences"))?;
        found.captions.push(sentences.iter().map(|sentence| sentence.raw.clone()).collect());
        let inside = image.filepath.as_ref().map(|inside| lying(folder, &format!("{inside}/{}", image.filename)));
        found.images.push(inside.unwrap_or(image.filename));
    }
    if found.images.is_empty() && !splits.is_empty() {
        let known = Vec::from_iter(splits).join("`, `");
        let reason = format!("no image has the split `{split}`; it has `{known}`");
        return Err(DataError::file(list, reason, "choose one as `split` in the suite"));
    }
    Ok(found)
}

/// Lines in which a caption follows its image; captions of one image need not stand together.
fn of_lines(list: &Path, text: &str) -> Result<Listed, DataError> {
    let mut found = Listed::default();
    let mut places = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let Some((image, caption)) = image_and_caption(line) else {
            // The names of the columns. A line with an image that cannot be used is none.
            if number == 0 && image_end(line).is_none() {
                continue;
            }
            let reason = "no image with its caption, as in `1.jpg,A dog runs.`".into();
            return Err(DataError::Line { path: list.to_path_buf(), line: number + 1, reason });
        };
        let place = *places.entry(image.to_string()).or_insert(found.images.len());
        if place == found.images.len() {
            found.images.push(image.to_string());
            found.captions.push(Vec::new());
        }
        found.captions[place].push(caption.into_owned());
    }
    Ok(found)
}

/// `IMAGE.jpg,caption` as CLIP_benchmark has it, with commas in the caption; `IMAGE.jpg#0<tab>caption` as Flickr30k was published;
/// `IMAGE.jpg| 0| caption` as it is passed on, in which one line lacks the second bar.
fn image_and_caption(line: &str) -> Option<(&str, Cow<'_, str>)> {
    let end = image_end(line)?;
    let (image, rest) = (line[..end].trim(), &line[end..]);
    let numbered = |rest: &'_ str| rest.trim_start().trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let caption = match rest.chars().next()? {
        ',' => unquoted(rest[1..].trim()),
        '#' => Cow::from(rest[rest.len() - numbered(&rest[1..])..].trim()),
        '|' => Cow::from(rest[rest.len() - numbered(&rest[1..])..].trim_start().trim_start_matches('|').trim()),
        _ => return None,
    };
    (!caption.trim().is_empty()).then_some((image, caption))
}

/// Where the name of an image ends, in small letters or capitals.
fn image_end(line: &str) -> Option<usize> {
    let small = line.to_ascii_lowercase();
    ENDINGS.iter().filter_map(|ending| Some(small.find(ending)? + ending.len())).min()
}

/// CSV has quotes around a caption with commas, in which a quote is two.
fn unquoted(caption: &str) -> Cow<'_, str> {
    match caption.strip_prefix('"').and_then(|caption| caption.strip_suffix('"')) {
        Some(inner) => Cow::from(inner.replace("\"\"", "\"")),
        None => Cow::from(caption),
    }
}

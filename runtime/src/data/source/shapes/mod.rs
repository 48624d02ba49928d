//! A data set of rendered scenes, made on the fly: the embedded default, which needs no download.
//!
//! A scene holds one to three objects of some shape, colour and size, in a spatial relation, on a background, with noise,
//! blur, jitter and changing light. It comes with a synthetic caption, which is true and complete, and with a raw text as
//! the web would have it: noisy, incomplete, and for [`WRONG_SHARE`] of the samples about another scene.
//!
//! Invariants:
//! - A sample is a pure function of (seed, split, index) and, for pixels, the picture's side.
//! - Within [`Split::HeldOut`] and within [`Split::ZeroShot`] all descriptions, hence all captions, are distinct; no
//!   description of these is one of [`Split::Train`]. Both hold by construction: descriptions are numbered, the numbers are
//!   permuted by the seed, and each split takes its own range.
//! - Every text consists of [`vocabulary`] words, at most [`CONTEXT`] - 2 of them.

mod describe;
mod draws;
mod render;
mod source;
mod text;

pub use describe::{Background, Colour, Description, Ground, Kind, Layout, MAX_OBJECTS, Object, Pattern, Shape, Size};
pub use render::{Placement, Scene};
pub use source::ShapesSource;
pub use text::{CONTEXT, prompts, vocabulary};

use crate::data::order::Bijection;
use draws::{Draws, Purpose, key};

/// Samples of the training split unless asked otherwise.
pub const DEFAULT_TRAIN: u64 = 32_768;

/// The share of samples whose raw text describes another scene.
pub const WRONG_SHARE: f32 = 0.3;

/// Of every four samples one shows one object, two show two, one shows three.
const OBJECTS: [usize; 4] = [1, 2, 2, 3];

/// One description in five is held out.
const HELD_OUT_PART: u64 = 5;

/// Which scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Scenes to learn from; any number of them.
    Train,
    /// Scenes for retrieval, with descriptions that are distinct and never trained on.
    HeldOut,
    /// Scenes of one object, for classification by [`Kind`], with descriptions that are never trained on.
    ZeroShot,
}

impl Split {
    /// What to call it in messages.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::HeldOut => "held-out",
            Split::ZeroShot => "zero-shot",
        }
    }

    /// The largest number of scenes whose descriptions are all distinct; `None` where they may repeat.
    pub fn max_len(self) -> Option<u64> {
        match self {
            Split::Train => None,
            Split::HeldOut => Some(held_out(1) * OBJECTS.len() as u64),
            Split::ZeroShot => Some(held_out(1)),
        }
    }

    /// The number of scenes unless asked otherwise.
    pub fn default_len(self) -> u64 {
        match self {
            Split::Train => DEFAULT_TRAIN,
            Split::HeldOut => 1024,
            Split::ZeroShot => held_out(1),
        }
    }
}

/// Held-out descriptions with a number of objects.
fn held_out(objects: usize) -> u64 {
    describe::count(objects) / HELD_OUT_PART
}

/// More scenes were asked for than there are distinct ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shapes data set has {most} distinct {} scenes, but {asked} were asked for; ask for at most {most}", .split.name())]
pub struct TooManyScenes {
    split: Split,
    asked: u64,
    most: u64,
}

/// A raw text of the web.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawText {
    /// The text.
    pub text: String,
    /// The index of the scene that it describes, in the same split.
    pub about: u64,
    /// Whether that is another scene, one that shares no [`Kind`] with the sample's own.
    pub is_wrong: bool,
}

/// The scenes of a split.
#[derive(Clone, Debug)]
pub struct Scenes {
    split: Split,
    len: u64,
    seed: u64,
    orders: [Bijection; MAX_OBJECTS],
    look: [u32; 2],
    noise: [u32; 2],
    caption: [u32; 2],
    raw: [u32; 2],
    swap: [u32; 2],
}

impl Scenes {
    /// `len` scenes of a split; an error when they could not all be distinct ([`Split::max_len`]).
    pub fn new(seed: u64, split: Split, len: u64) -> Result<Scenes, TooManyScenes> {
        if let Some(most) = split.max_len().filter(|&most| len > most) {
            return Err(TooManyScenes { split, asked: len, most });
        }
        let own = |purpose| key(seed, split as u64, purpose);
        Ok(Scenes {
            split,
            len,
            seed,
            // All splits share these orders, of which each takes its part.
            orders: [1, 2, 3].map(|objects| Bijection::new(describe::count(objects))),
            look: own(Purpose::Look),
            noise: own(Purpose::Noise),
            caption: own(Purpose::Caption),
            raw: own(Purpose::Raw),
            swap: own(Purpose::Swap),
        })
    }

    /// The number of scenes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What scene `index` shows. Defined for every index; distinct for indices below [`Self::len`] outside training.
    pub fn description(&self, index: u64) -> Description {
        let (objects, rank) = self.rank(index);
        let (all, held) = (describe::count(objects), held_out(objects));
        let slot = if self.split == Split::Train { held + rank % (all - held) } else { rank % held };
        describe::description(objects, self.orders[objects - 1].at((self.seed, 0, 0), slot))
    }

    /// The number of objects of scene `index`, and its rank among the scenes with as many.
    fn rank(&self, index: u64) -> (usize, u64) {
        if self.split == Split::ZeroShot {
            return (1, index);
        }
        let cycle = OBJECTS.len() as u64;
        let place = (index % cycle) as usize;
        let objects = OBJECTS[place];
        let same = |places: &[usize]| places.iter().filter(|&&other| other == objects).count() as u64;
        (objects, index / cycle * same(&OBJECTS) + same(&OBJECTS[..place]))
    }

    /// Scene `index`, ready to render.
    pub fn scene(&self, index: u64) -> Scene {
        Scene::new(self.description(index), &mut Draws::new(self.look, index), self.noise, index)
    }

    /// The synthetic caption of scene `index`: true, complete, in one of several wordings.
    pub fn caption(&self, index: u64) -> String {
        text::caption(&self.description(index), &mut Draws::new(self.caption, index))
    }

    /// The raw text of scene `index`.
    pub fn raw_text(&self, index: u64) -> RawText {
        let mut swap = Draws::new(self.swap, index);
        let other = if swap.chance(WRONG_SHARE) { self.unlike(index, &mut swap) } else { None };
        let about = other.unwrap_or(index);
        let text = text::raw_text(&self.description(about), &mut Draws::new(self.raw, index));
        RawText { text, about, is_wrong: other.is_some() }
    }

    /// Another scene of the split that shares no kind of object with scene `index`; `None` if many draws find none, as in a
    /// split of a single scene.
    fn unlike(&self, index: u64, draws: &mut Draws) -> Option<u64> {
        // Three objects meet another three with a chance of about 1/8, so ten draws nearly always suffice.
        const ATTEMPTS: usize = 10;
        let own = self.description(index);
        (0..ATTEMPTS).map(|_| draws.below(self.len as usize) as u64).find(|&other| {
            let other = self.description(other);
            other.objects.iter().all(|object| own.objects.iter().all(|mine| mine.kind != object.kind))
        })
    }
}

#[cfg(test)]
mod tests;

//! Data: sources, order, decoding, augmentation, tokens, prefetch.
//!
//! Invariants:
//! - Which sample stands at which place, and how it is augmented, is a function of (seed, epoch, sample index), see
//!   [`Order`]; of shards that can only be read in sequence, of (seed, global sample index) and what is in them, see
//!   `streams`. It does not depend on the number of workers, on ranks, on restarts or on timing.
//! - The cursor is one number, the global sample index. Epochs follow one another without a gap: global sample `g` is
//!   position `g % n` of epoch `g / n`, so a batch may straddle two epochs and nothing is dropped. No batch holds a sample
//!   twice, unless it is larger than the data set, or than what of it can be read.
//! - A sample that cannot be read is replaced by a function of the same three numbers, named in the batch's
//!   [`Batch::skipped`] and counted; too many of them stop the run. Nothing a file holds can panic, hang or exhaust memory.
//! - Nothing here knows a model or a device.

mod augment;
mod decode;
mod error;
mod lines;
mod loader;
mod maker;
mod order;
mod panics;
mod resize;
mod samples;
mod scratch;
mod skips;
mod source;
mod spares;
mod streams;
mod text;
mod throughput;
mod transform;
mod work;

pub use augment::{Crop, center_crop, mirror, normalize_rgb, random_area_crop};
pub use decode::{DecodeLimits, decode_rgb, upright_size};
pub use error::{DataError, SampleError};
pub use loader::{Batch, Loader, LoaderOptions, Passes};
pub use order::{Order, too_few};
pub use resize::resize;
pub use skips::{Skipped, Skips};
pub use source::paths::all_in;
pub(crate) use source::paths::{literal, pattern_from};
pub use source::{
    Field, FolderSource, ListHash, RawSample, RecordioSource, RgbImage, SampleSource, Sequence, ShardError,
    ShardReader, Texts, WebdatasetOptions, WebdatasetSource, open_source, shapes,
};
pub use text::{Tokenizer, Vocabularies, WordVocabulary, clean, split_words};
pub use throughput::{Throughput, measure};
pub use transform::Transform;
pub use work::Work;

#[cfg(test)]
mod tests;

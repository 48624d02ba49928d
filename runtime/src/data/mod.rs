//! Data: sources, order, decoding, augmentation, tokens, prefetch; and packing, which writes what sources have.
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

mod decode;
mod error;
mod lines;
mod loader;
mod maker;
mod mixture;
mod order;
mod pack;
mod panics;
mod resize;
mod samples;
mod scratch;
mod skips;
mod source;
mod spares;
mod streams;
mod tables;
mod text;
mod throughput;
mod transform;
mod work;

pub use decode::{DecodeLimits, decode_rgb, upright_size};
pub use error::{DataError, SampleError};
pub(crate) use lines::read_text;
pub use loader::{Batch, Loader, LoaderOptions, Passes};
pub use mixture::{Mixture, Part};
pub use order::Order;
pub use pack::{PackTo, Packed, Packing, pack};
pub use resize::resize;
pub use skips::{Skipped, Skips};
pub(crate) use source::folder::read_image;
pub(crate) use source::hash_sizes;
pub use source::paths::{all_folders, all_in, expand, in_folder};
pub(crate) use source::paths::{literal, pattern_from, read_at};
pub use source::{
    Field, FilesSource, FolderSource, ListHash, MixSource, RawSample, RecordioSource, RgbImage, SampleSource, Sequence,
    ShardError, ShardReader, TableSource, Texts, WebdatasetOptions, WebdatasetSource, open_source, shapes,
};
pub use tables::check_tokenizers;
pub(crate) use tables::{Beyond, beyond_table, check_indices};
pub use text::{Tokenizer, Vocabularies, WordVocabulary, clean, split_words};
pub use throughput::{Throughput, measure};
pub use transform::{Crop, Transform, center_crop, mirror, normalize_rgb, random_area_crop, random_resized_crop};
pub use work::Work;

#[cfg(test)]
mod tests;

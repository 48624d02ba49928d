//! What a trained model can do: embeddings of images and texts, and measures of them.
//!
//! [`Encoder`] embeds through the programs of a plan, what is prepared for it by [`Preparation`] or by a pipeline of its own;
//! [`measures`] are functions of embeddings. A [`suite`] names data sets ([`dataset`]) with their measures, [`protocol`] evaluates
//! them as the papers do. Nothing here knows the directory of a run, a terminal or the compiler.

pub mod dataset;
mod embeddings;
mod encoder;
pub mod features;
mod images;
pub mod measures;
mod preparation;
pub mod probe;
pub mod protocol;
pub mod results;
pub mod suite;

pub use embeddings::{Embeddings, Named, npy};
pub use encoder::{ENCODE_IMAGE, ENCODE_TEXT, Embedded, EncodeError, Encoder, Programs, Reading, WEIGH, Weighed};
pub use images::{ImageFiles, is_image};
pub use preparation::{Preparation, normalization, vocabulary};

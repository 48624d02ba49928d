//! What a trained model can do: embeddings of images and texts, and measures of them.
//!
//! [`Encoder`] embeds through the programs of a plan, what is prepared for it by [`Preparation`] or by a pipeline of its own;
//! [`measures`] are functions of embeddings. Nothing here knows a run, a terminal or the compiler.

mod embeddings;
mod encoder;
mod images;
pub mod measures;
mod preparation;

pub use embeddings::{Embeddings, Named, npy};
pub use encoder::{ENCODE_IMAGE, ENCODE_TEXT, Embedded, EncodeError, Encoder, Programs, Reading, WEIGH, Weighed};
pub use images::ImageFiles;
pub use preparation::Preparation;

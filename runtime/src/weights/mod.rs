//! Weights of others: reading them, giving them our names, fitting them to a graph, and writing them for others.
//!
//! - [`Weights`] opens any of the containers that people have, safetensors in one file or several, archives of `torch.save` and
//!   `torch.jit.save`, the older format of PyTorch, and reads one tensor at a time.
//! - [`NameMap`] is a RON file in `stdlib/weights`: names and layouts of others, and ours.
//! - [`Fit`] is what of a file goes where in a graph; [`assign`] puts it into a session.
//!
//! Invariants:
//! - Nothing that a file holds is run, and nothing of it is written anywhere but in the tensors asked for.
//! - Sizes are compared with the length of the file before memory is taken; nothing that a file holds panics or hangs.
//! - Nothing is left out in silence: what is missing, left over or of another shape is said.

mod archive;
mod container;
mod error;
mod export;
mod fit;
mod globals;
mod known;
mod layout;
mod map;
mod names;
mod pickle;
mod positions;
mod raw;
mod safe;
mod shapes;
mod torch;
mod write;

pub use container::{Weights, info_beside};
pub use error::WeightsError;
pub use export::{Clip, Described, Format};
pub use fit::{Assigned, Fit, FitOptions, Wanted, assign};
pub use known::{Known, Tower};
pub use map::{NameMap, SAME};
pub use raw::RawTensor;
pub use shapes::{GUESSED, Guess, Said, Shapes, Stack, Vision};
pub use write::{Floats, save, save_as};

/// Most bytes of all tensors of a file of this length: several names may share a storage, and a few numbers be spread to many, but
/// a small file is not to fill a disk.
fn most_bytes(length: u64) -> u64 {
    /// For the smallest files.
    const SPREAD: u64 = 256 << 20;
    length.saturating_mul(8).saturating_add(SPREAD)
}

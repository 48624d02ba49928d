//! Why weights could not be read, fitted or written.

use std::path::PathBuf;

use crate::exec::ExecError;
use crate::file::FileError;
use crate::tensor::TensorError;

/// Why weights could not be read, fitted or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file cannot be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// A session failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A file that is what it should be, with something in it that is not taken.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What, and what to do.
        why: String,
    },
    /// A tensor that cannot be converted.
    #[error("{}: tensor `{name}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: TensorError,
    },
    /// A map of names that is none.
    #[error("map of names `{map}`: {why}")]
    Map {
        /// Its name or file.
        map: String,
        /// What is wrong with it.
        why: String,
    },
    /// The weights are not those of the graph.
    #[error("{}: the weights do not fit graph `{graph}`:\n{what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Name of the graph.
        graph: String,
        /// What is missing, too much or of another shape, one a line, and what can be done.
        what: String,
    },
}

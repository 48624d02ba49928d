//! Errors of the data pipeline.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the data cannot be delivered. Every message says what, where and what to do.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("{}: {reason}; {advice}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says, or what is wrong with it.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// A line of a text file is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The pipeline is not well formed, or asks for what the data do not have.
    #[error("pipeline `{pipeline}`: {reason}")]
    Pipeline {
        /// Name of the pipeline.
        pipeline: String,
        /// What is wrong.
        reason: String,
    },
    /// A source cannot tell its texts without reading its samples, and they are asked for.
    #[error("this source does not list {wanted}; {advice}")]
    NoTexts {
        /// What is asked for.
        wanted: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// Something that this version does not do.
    #[error("{what} is not supported yet; {advice}")]
    Unsupported {
        /// What.
        what: String,
        /// What does work.
        advice: String,
    },
    /// A token id, or another index, that the graph has no row for.
    #[error(
        "{sample}: `{input}` holds {index}, but the graph's table has {rows} rows: the data are of another vocabulary; give the \
         graph a table as large as theirs, or make them anew"
    )]
    BeyondTable {
        /// What the source calls the sample.
        sample: String,
        /// The input.
        input: String,
        /// The index.
        index: i32,
        /// Rows of the table.
        rows: u64,
    },
    /// More samples than allowed could not be read.
    #[error(
        "{bad} of the {seen} samples read so far could not be used, more than the allowed share of {allowed} (judged from \
         sample {from} on); the last one: {last}. Repair or remove the files named in the log, or raise the share with --max-bad"
    )]
    TooManyBad {
        /// Samples that were replaced.
        bad: u64,
        /// Samples delivered.
        seen: u64,
        /// Allowed share.
        allowed: f64,
        /// Samples that are read before the share is judged.
        from: u64,
        /// The last bad one and why.
        last: String,
    },
    /// No usable sample was found to replace a bad one.
    #[error("{}", no_replacement(first, *attempts))]
    NoReplacement {
        /// The sample that was to be replaced and why.
        first: String,
        /// Replacements tried.
        attempts: u32,
    },
    /// More scenes than there are.
    #[error(transparent)]
    Shapes(#[from] crate::data::shapes::TooManyScenes),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] crate::file::FileError),
    /// A batch has no valid shape.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::TensorError),
    /// The loader's thread ended; a bug, not the user's doing.
    #[error("the data loader stopped without saying why; please report this")]
    Stopped,
}

impl DataError {
    /// An error about a file, with what the system said.
    pub(crate) fn file(path: &Path, reason: impl ToString, advice: impl Into<String>) -> DataError {
        DataError::File { path: path.to_path_buf(), reason: reason.to_string(), advice: advice.into() }
    }
}

/// Why one sample cannot be used. It is skipped and replaced; the run goes on until too many are.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SampleError(
    /// What is wrong with the sample, without its name.
    pub String,
);

fn no_replacement(first: &str, attempts: u32) -> String {
    match attempts {
        0 => format!("{first}; there is no other sample"),
        tries => {
            format!(
                "no usable sample found to replace {first} after {tries} tries; the data set seems to be unreadable"
            )
        }
    }
}

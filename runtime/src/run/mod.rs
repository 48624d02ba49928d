//! A run: its identity, its directory, its lock, its checkpoints, its log.
//!
//! Invariants:
//! - Everything about a run is in its directory, enough to continue and to evaluate it without its spec and whatever became of
//!   its data's words: whoever trains, resumes, evaluates, reports or exports asks [`RunDir`].
//! - Whoever reads changes nothing ([`RunDir`]). Who writes holds the lock of the directory ([`Writer`]), which ends with its
//!   process; a file system without locks is named ([`Writer::warning`]). Results of an evaluation are the reader's own files.
//! - A file appears whole or not at all ([`file`]), `run.json` last: with it the directory holds a run.
//! - What is read is compared with its checksum.
//! - What of a run is not as it was when it was started is named, and refused unless it was asked for.
//!
//! Nothing here knows a terminal, the compiler, or how a step is taken.

pub mod checkpoint;
mod dir;
pub mod evaluations;
mod events;
mod identity;
mod lock;
pub mod log;
mod sources;
pub mod tensors;

pub use dir::{NewRun, PLAN, RunDir, RunError, Writer, read_plan};
pub use identity::{DataIdentity, DeviceIdentity, Difference, RunInfo, StartIdentity, SuiteIdentity, fingerprint};
pub use log::StepRecord;
pub use sources::{SpecFile, SpecSources};

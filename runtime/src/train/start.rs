//! Training that starts from weights of a file, in place of those that its seed makes.
//!
//! What a run was started from is part of its identity, and saved as its checkpoint of step 0: whoever goes on with it needs the
//! file no more.

use std::path::Path;

use alip_plan::Start;

use crate::exec::Session;
use crate::run::checkpoint::{self, CheckpointError, Header};
use crate::run::{StartIdentity, Writer};
use crate::weights::{Assigned, Weights, WeightsError, assign};

/// Weights that a session was started from.
pub struct Started {
    /// What they were.
    pub identity: StartIdentity,
    /// The file, open.
    pub weights: Weights,
    /// What of it went where.
    pub assigned: Assigned,
}

/// Puts weights of files into a session that was just begun, those of later entries over those of earlier ones.
///
/// # Errors
/// A file cannot be read or is damaged, or does not hold what it is to give; of the session nothing can be said then.
pub fn start_from(session: &mut Session, starts: &[Start]) -> Result<Vec<Started>, WeightsError> {
    let start = |start: &Start| -> Result<Started, WeightsError> {
        let mut weights = Weights::open_as_ours(Path::new(&start.file), None)?;
        let assigned = assign(session, &mut weights, start.select.as_deref())?;
        let identity =
            StartIdentity { file: start.file.clone(), select: start.select.clone(), hash: weights.fingerprint()? };
        Ok(Started { identity, weights, assigned })
    };
    starts.iter().map(start).collect()
}

/// Saves what a run starts from, before its first step.
///
/// # Errors
/// The device fails or the file cannot be written.
pub fn save_start(session: &mut Session, run: &Writer) -> Result<(), CheckpointError> {
    let info = run.info();
    let header = Header {
        format: checkpoint::FORMAT,
        spec: info.spec.clone(),
        step: 0,
        cursor: 0,
        seed: info.seed,
        plan: info.plan.clone(),
    };
    run.save(session, &header).map(drop)
}

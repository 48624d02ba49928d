//! Checkpoints: the state of a plan by path, and where in the data the run stands.
//!
//! A checkpoint is a safetensors file with every state tensor under its path, logical and unsharded, so that any device
//! loads it; weights keep the names of PyTorch's state dict. The header key `alip` holds a [`Header`] as JSON.
//!
//! Invariants:
//! - A checkpoint is complete or absent: it is written beside and renamed ([`crate::file`]).
//! - Restoring checks every tensor, its checksum too, before it changes the first one.
//! - Equal state and header, equal bytes: whether two runs are the same is a comparison of files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use alip_plan::{Buffer, Plan, STATE_STEP, StateKind};
use safetensors::tensor::{Dtype as FileType, TensorInfo};
use serde::{Deserialize, Serialize};

use super::tensors::{self, Entry, TensorFile, file_type};
use crate::exec::{ExecError, Session};
use crate::file::{FileError, sync_folder};

/// Version of the checkpoint format; a reader accepts exactly its own.
pub const FORMAT: u32 = 2;

/// Name of the checkpoint that was measured to be the best.
pub const BEST: &str = "best.safetensors";

/// Header key of a checkpoint.
const KEY: &str = "alip";

/// What a checkpoint knows beside the tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the graph spec.
    pub spec: String,
    /// Steps taken.
    pub step: u64,
    /// Global index of the next sample.
    pub cursor: u64,
    /// Seed of the run.
    pub seed: u64,
    /// [`fingerprint`] of the plan that wrote it.
    pub plan: String,
}

/// Why a checkpoint could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(FileError),
    /// The file is not what was written.
    #[error("{file}{}", advice(before.as_deref()))]
    Damaged {
        /// The file and what is wrong with it.
        file: FileError,
        /// The newest of the older checkpoints beside it.
        before: Option<PathBuf>,
    },
    /// The session failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A safetensors file that is no checkpoint.
    #[error("{}: this is no checkpoint of alip-run ({why})", path.display())]
    NoCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// A checkpoint of another run than it is asked for.
    #[error("{}: a checkpoint of another run: {what}; give one of {}", path.display(), own.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// Where those of the run are.
        own: PathBuf,
        /// What shows it.
        what: String,
    },
    /// Written by another version.
    #[error("{}: checkpoint format {found}, but this program reads format {FORMAT}; resume with the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The state of the checkpoint is not that of the plan.
    #[error(
        "{}: the checkpoint does not fit the plan of `{plan}`: state tensor `{tensor}` is {found} in the checkpoint and {wanted} in the \
         plan; compile the spec that the run was started with",
        path.display()
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// Name of the plan's graph.
        plan: String,
        /// The first tensor that differs.
        tensor: String,
        /// What the checkpoint has.
        found: String,
        /// What the plan has.
        wanted: String,
    },
    /// The average of the weights was asked for.
    #[error("the run of `{plan}` keeps no average of its weights: its graph has no `train: (ema: (decay: 0.999))`")]
    NoAverage {
        /// Name of the graph.
        plan: String,
    },
}

fn advice(before: Option<&Path>) -> String {
    match before.and_then(Path::file_name) {
        Some(name) => format!("; delete it, and {} takes its place", name.to_string_lossy()),
        None => "; it has no other before it: delete it to begin the run anew".into(),
    }
}

impl From<FileError> for CheckpointError {
    fn from(file: FileError) -> CheckpointError {
        match &file {
            FileError::Damaged { path, .. } => {
                let before = before(path);
                CheckpointError::Damaged { file, before }
            }
            _ => CheckpointError::File(file),
        }
    }
}

/// The newest checkpoint that is older than this one.
fn before(path: &Path) -> Option<PathBuf> {
    let own = step(path)?;
    list(path.parent()?).into_iter().rev().find(|(step, _)| *step < own).map(|(_, path)| path)
}

/// The step in the name of a checkpoint.
fn step(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// Step and file of every checkpoint in a folder, oldest first.
fn list(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
    found.sort();
    found
}

/// Bytes of a checkpoint of this plan, up to its header.
pub fn size(plan: &Plan) -> u64 {
    plan.state.iter().map(|state| state.buffer.bytes()).sum()
}

/// What was saved.
#[derive(Debug)]
pub struct Saved {
    /// The checkpoint.
    pub path: PathBuf,
    /// Why an older one, beyond the number kept, is still there.
    pub left: Option<FileError>,
}

/// The checkpoints of a run: a folder, and how many of them are kept.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Checkpoints in `folder`, of which the newest `keep` (at least 1) are kept.
    pub fn new(folder: PathBuf, keep: usize) -> Checkpoints {
        Checkpoints { folder, keep: keep.max(1) }
    }

    /// Step and file of every checkpoint, oldest first.
    pub fn list(&self) -> Vec<(u64, PathBuf)> {
        list(&self.folder)
    }

    /// The newest checkpoint.
    pub fn latest(&self) -> Option<PathBuf> {
        self.list().pop().map(|(_, path)| path)
    }

    /// Saves the state of the session, then removes checkpoints beyond the number kept.
    ///
    /// # Errors
    /// The device fails or the file cannot be written; older checkpoints are untouched then.
    pub(super) fn save(&self, session: &mut Session, header: &Header) -> Result<Saved, CheckpointError> {
        let path = self.write(session, header, &format!("step-{:08}.safetensors", header.step))?;
        let mut all = self.list();
        let old = all.drain(..all.len().saturating_sub(self.keep));
        let removed =
            old.map(|(_, old)| fs::remove_file(&old).map_err(FileError::io(&old, "remove the old checkpoint")));
        let left = removed.fold(None, |left, removed| left.or(removed.err()));
        Ok(Saved { path, left })
    }

    /// Saves the state of the session as the best so far, in the place of the one before.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub(super) fn save_best(&self, session: &mut Session, header: &Header) -> Result<PathBuf, CheckpointError> {
        self.write(session, header, BEST)
    }

    fn write(&self, session: &mut Session, header: &Header, name: &str) -> Result<PathBuf, CheckpointError> {
        fs::create_dir_all(&self.folder).map_err(FileError::io(&self.folder, "create the folder"))?;
        sync_folder(self.folder.parent());
        let path = self.folder.join(name);
        let plan = session.plan().clone();
        let entries: Vec<Entry> = plan
            .state
            .iter()
            .map(|state| Entry {
                name: state.path.clone(),
                dtype: file_type(state.buffer.dtype),
                shape: state.buffer.shape.clone(),
            })
            .collect();
        let json = serde_json::to_string(header).map_err(|error| damaged(&path, error))?;
        tensors::write(&path, &[(KEY, json)], &entries, |entry| -> Result<_, CheckpointError> {
            Ok(session.read_state(&entry.name)?.bytes().to_vec())
        })?;
        Ok(path)
    }
}

/// Reads the header of a checkpoint.
///
/// # Errors
/// The file cannot be read, is damaged, or is no checkpoint of this format.
pub fn header(file: &TensorFile) -> Result<Header, CheckpointError> {
    let no_checkpoint = |why: String| CheckpointError::NoCheckpoint { path: file.path().to_path_buf(), why };
    let json = file.text(KEY).ok_or_else(|| no_checkpoint(format!("its header has no `{KEY}`")))?;
    // The version first: a later format may have other fields.
    let value: serde_json::Value = serde_json::from_str(json).map_err(|error| no_checkpoint(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {}
        Some(found) => {
            return Err(CheckpointError::Version { path: file.path().to_path_buf(), found: found as u32 });
        }
        None => return Err(no_checkpoint("it has no format version".into())),
    }
    serde_json::from_value(value).map_err(|error| no_checkpoint(error.to_string()))
}

/// Puts the state of a checkpoint into the session.
///
/// # Errors
/// The file is damaged or no checkpoint, or its state is not the plan's: the first tensor that differs is named, and
/// nothing has changed.
pub fn restore(path: &Path, session: &mut Session) -> Result<Header, CheckpointError> {
    let mut file = TensorFile::open(path)?;
    let header = header(&file)?;
    let plan = session.plan().clone();
    file.verify()?;
    let mut names = file.names();
    for state in &plan.state {
        names.remove(&state.path);
        fits(&file, &state.path, &state.buffer, &plan)?;
    }
    if let Some(extra) = names.first() {
        let found = file.info(extra).map_or_else(String::new, shown_info);
        return Err(differs(&file, &plan, extra, found, "absent".into()));
    }
    for state in &plan.state {
        let tensor = file.read(&state.path, state.buffer.dtype)?;
        session.write_state(&state.path, &tensor)?;
    }
    if plan.state(STATE_STEP).is_some() {
        let step = session.read_state(STATE_STEP)?.first().unwrap_or(-1.0);
        if step != header.step as f64 {
            let why = format!("its header says step {}, its state step {step}", header.step);
            return Err(CheckpointError::NoCheckpoint { path: path.to_path_buf(), why });
        }
    }
    Ok(header)
}

/// Where the weights of a session are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The checkpoint.
    pub path: PathBuf,
    /// What it knows of itself.
    pub header: Header,
    /// Its content, by [`TensorFile::content`].
    pub content: String,
}

/// Puts as much of a checkpoint into the session as its plan has: into programs that use a model and do not train it. With
/// `average`, parameters are the averages that were kept of them.
///
/// # Errors
/// The file is damaged or no checkpoint, it lacks something that the plan has, or it keeps no averages.
pub fn restore_part(path: &Path, session: &mut Session, average: bool) -> Result<Restored, CheckpointError> {
    let mut file = TensorFile::open(path)?;
    let header = header(&file)?;
    let plan = session.plan().clone();
    let averages: BTreeSet<String> = file.names().into_iter().filter(|name| name.starts_with(AVERAGE)).collect();
    if average && averages.is_empty() {
        return Err(CheckpointError::NoAverage { plan: plan.name.clone() });
    }
    let name = |path: &str| match average {
        true => averages.get(&format!("{AVERAGE}{path}")).cloned(),
        false => None,
    };
    for state in &plan.state {
        let name = name(&state.path).unwrap_or_else(|| state.path.clone());
        fits(&file, &name, &state.buffer, &plan)?;
        session.write_state(&state.path, &file.read(&name, state.buffer.dtype)?)?;
    }
    Ok(Restored { path: path.to_path_buf(), header, content: file.content()? })
}

/// Puts the averages of the weights, which the training step keeps beside them, in their place.
///
/// # Errors
/// The plan keeps none, or the device fails.
pub fn use_average(session: &mut Session) -> Result<(), CheckpointError> {
    let plan = session.plan().clone();
    let averages = plan.state.iter().filter(|state| state.kind == StateKind::Average);
    let mut found = false;
    for average in averages {
        let Some(path) = average.path.strip_prefix(AVERAGE) else { continue };
        let value = session.read_state(&average.path)?;
        session.write_state(path, &value)?;
        found = true;
    }
    if found { Ok(()) } else { Err(CheckpointError::NoAverage { plan: plan.name.clone() }) }
}

/// Does some work with the averages of the weights in their place, and puts the weights back, whatever came of it.
///
/// # Errors
/// The plan keeps none, or the device fails.
pub fn with_average<T>(session: &mut Session, work: impl FnOnce(&mut Session) -> T) -> Result<T, CheckpointError> {
    let plan = session.plan().clone();
    let averages = plan.state.iter().filter(|state| state.kind == StateKind::Average);
    let averaged = averages.filter_map(|average| average.path.strip_prefix(AVERAGE));
    let kept =
        averaged.map(|path| Ok((path, session.read_state(path)?))).collect::<Result<Vec<_>, CheckpointError>>()?;
    let done = use_average(session).map(|()| work(session));
    for (path, value) in &kept {
        session.write_state(path, value)?;
    }
    done
}

/// What the path of the average of a parameter begins with.
pub const AVERAGE: &str = "average.";

/// Whether a tensor of the file can be that of a buffer of the plan.
fn fits(file: &TensorFile, name: &str, buffer: &Buffer, plan: &Plan) -> Result<(), CheckpointError> {
    let wanted = shown(&buffer.dtype, &buffer.shape);
    let Some(info) = file.info(name) else {
        return Err(differs(file, plan, name, "absent".into(), wanted));
    };
    // A target without types of 16 bits keeps their values in f32.
    let float = |dtype| matches!(dtype, FileType::F32 | FileType::BF16 | FileType::F16);
    let same = info.dtype == file_type(buffer.dtype);
    let fits = (same || float(info.dtype) && buffer.dtype.is_float())
        && info.shape.iter().map(|&size| size as u64).eq(buffer.shape.iter().copied());
    if fits { Ok(()) } else { Err(differs(file, plan, name, shown_info(info), wanted)) }
}

fn differs(file: &TensorFile, plan: &Plan, tensor: &str, found: String, wanted: String) -> CheckpointError {
    let (path, plan) = (file.path().to_path_buf(), plan.name.clone());
    CheckpointError::Differs { path, plan, tensor: tensor.to_string(), found, wanted }
}

fn shown(dtype: &dyn std::fmt::Display, shape: &dyn std::fmt::Debug) -> String {
    format!("{dtype} {shape:?}")
}

fn shown_info(info: &TensorInfo) -> String {
    shown(&format!("{:?}", info.dtype).to_lowercase(), &info.shape)
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> FileError {
    FileError::Damaged { path: path.to_path_buf(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::identity::fingerprint;
    use super::*;
    use crate::tensor::HostTensor;
    use crate::train::session;
    use crate::train::testing::{folder, linear};

    fn saved(name: &str) -> (PathBuf, Session, Header) {
        let mut session = session(&linear());
        session.init(3).unwrap();
        session.write_state(STATE_STEP, &HostTensor::scalar_i32(5)).unwrap();
        let header = Header {
            format: FORMAT,
            spec: "linear".into(),
            step: 5,
            cursor: 20,
            seed: 3,
            plan: fingerprint(&session.plan().to_bytes()),
        };
        let checkpoints = Checkpoints::new(folder(name), 2);
        let saved = checkpoints.save(&mut session, &header).unwrap();
        assert!(saved.left.is_none());
        (saved.path, session, header)
    }

    #[test]
    fn a_restored_session_has_the_same_state() {
        let (path, mut first, header) = saved("checkpoint_round_trip");
        let mut second = session(&linear());
        assert_eq!(restore(&path, &mut second).unwrap(), header);
        for state in &first.plan().clone().state {
            assert_eq!(first.read_state(&state.path).unwrap(), second.read_state(&state.path).unwrap());
        }
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut session = session(&linear());
        let folder = folder("checkpoint_keep");
        let checkpoints = Checkpoints::new(folder, 2);
        for step in [1, 2, 3] {
            let header =
                Header { format: FORMAT, spec: "linear".into(), step, cursor: step, seed: 0, plan: String::new() };
            checkpoints.save(&mut session, &header).unwrap();
        }
        assert_eq!(checkpoints.list().into_iter().map(|(step, _)| step).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn an_old_one_that_cannot_be_removed_spoils_no_new_one() {
        let (path, mut session, mut header) = saved("checkpoint_stuck");
        // What is no file is removed by nobody.
        let stuck = path.with_file_name("step-00000001.safetensors");
        fs::create_dir(&stuck).unwrap();
        header.step = 5;
        let saved = Checkpoints::new(path.parent().unwrap().into(), 1).save(&mut session, &header).unwrap();
        assert_eq!((&saved.path, restore(&saved.path, &mut session).unwrap()), (&path, header));
        let left = saved.left.unwrap().to_string();
        assert!(left.starts_with(&format!("{}: cannot remove the old checkpoint: ", stuck.display())), "{left}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (path, ..) = saved("checkpoint_differs");
        let check = |change: &dyn Fn(&mut Plan), message: &str| {
            let mut plan = linear();
            change(&mut plan);
            let error = restore(&path, &mut session(&plan)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&|plan| plan.state[0].path = "v".into(), "state tensor `v` is absent in the checkpoint and f32 [");
        check(
            &|plan| plan.state[0].buffer.shape[0] -= 1,
            "state tensor `w` is f32 [48] in the checkpoint and f32 [47] in the plan; compile the spec",
        );
        check(
            &|plan| drop(plan.state.remove(0)),
            "state tensor `w` is f32 [48] in the checkpoint and absent in the plan",
        );
    }

    #[test]
    fn damage_is_told_with_a_way_out() {
        let (path, mut session, mut header) = saved("checkpoint_damage");
        let bytes = fs::read(&path).unwrap();
        let mut check = |message: &str| {
            let error = restore(&path, &mut session).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        };
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        check("its header says 848; it has no other before it: delete it to begin the run anew");
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, flipped).unwrap();
        check("is not what was written (checksum); it has no other before it: delete it to begin the run anew");
        header.step = 2;
        let mut other = crate::train::session(&linear());
        Checkpoints::new(path.parent().unwrap().into(), 9).save(&mut other, &header).unwrap();
        check("(checksum); delete it, and step-00000002.safetensors takes its place");
        tensors::write(&path, &[], &[], |_| -> Result<_, FileError> { Ok(vec![]) }).unwrap();
        check("this is no checkpoint of alip-run (its header has no `alip`)");
        let texts = [(KEY, r#"{"format": 99}"#.to_string())];
        tensors::write(&path, &texts, &[], |_| -> Result<_, FileError> { Ok(vec![]) }).unwrap();
        check("checkpoint format 99, but this program reads format 2; resume with the version that wrote it");
    }
}

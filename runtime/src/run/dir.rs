//! The directory of a run.
//!
//! | file | holds |
//! | --- | --- |
//! | `run.json` | [`RunInfo`]: what the run was asked to do, on what; hashes of the other files, and of itself at its end |
//! | `run.lock` | who writes, while somebody does |
//! | `plan.alip` | the compiled plan |
//! | `spec.json` | what that was compiled from, where it was not given compiled |
//! | `vocabulary.json` | the words of its tokenizers, where it has such |
//! | `checkpoints/` | `step-00001000.safetensors`, ...; `best.safetensors` of a run that is measured on its way |
//! | `metrics.jsonl`, `events.out.tfevents.*` | the log |
//! | `evaluations.jsonl` | what it was measured to be on its way, if it was |
//! | `results.json`, `report.html` | the evaluation |

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alip_plan::pipeline::Pipeline;
use alip_plan::{FORMAT_VERSION, Plan, PlanError};
use indicatif::HumanBytes;
use serde::de::DeserializeOwned;

use super::checkpoint::{self, CheckpointError, Checkpoints, Header, Restored, Saved};
use super::identity::{Difference, FORMAT, RunInfo, fingerprint};
use super::lock::Lock;
use super::log::MetricsLog;
use super::sources::SpecSources;
use super::tensors::TensorFile;
use crate::data::Vocabularies;
use crate::exec::Session;
use crate::file::{FileError, remove_unfinished, sync_folder, write_bytes};

/// Name of the plan in a directory, here and in what `alipc compile -o DIR` writes.
pub const PLAN: &str = "plan.alip";
const INFO: &str = "run.json";
const SOURCES: &str = "spec.json";
const VOCABULARY: &str = "vocabulary.json";
const CHECKPOINTS: &str = "checkpoints";

/// No file takes so long to write: what is older and unfinished has no living writer.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system refused, or a file is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is a run already.
    #[error("{} already holds a run of `{spec}`{progress}; continue it with --resume, or choose another directory with --out", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// What the run trains.
        spec: String,
        /// How far it is.
        progress: String,
    },
    /// Somebody else is writing.
    #[error(
        "{} is being trained by {}; wait for it or stop it, or choose another directory with --out",
        path.display(), if holder.is_empty() { "another process" } else { holder }
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Process and machine; empty where they are not known.
        holder: String,
    },
    /// There is no run.
    #[error("{} holds no run (there is no {INFO}); `alip-run train SPEC --out DIR` makes one", path.display())]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// Checkpoints that belong to no run.
    #[error("{} holds checkpoints but no {INFO}: they are of a run that was taken apart; choose another directory with --out", path.display())]
    Remains {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version.
    #[error("{}: a run of format {found}, but this program reads format {FORMAT}; use the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u64,
    },
    /// Too little room.
    #[error(
        "{} has {} free, but {checkpoints} more checkpoints of {} each will be there at a time; free some space, choose \
         another directory with --out, or keep fewer with --keep",
        path.display(), HumanBytes(*free), HumanBytes(*each)
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Bytes of a checkpoint.
        each: u64,
        /// Checkpoints to come that exist at a time with those that are there, the one being written included.
        checkpoints: u64,
    },
    /// A place that is made of no storage, such as `/proc`.
    #[error("nothing can be written in {}, which is on no disk; choose another directory with --out", path.display())]
    NoDisk {
        /// The directory.
        path: PathBuf,
    },
    /// The run is to be continued with something else than it was started with.
    #[error(
        "{} was started with something else: {difference}. Give it what it was started with, or accept the change with {accept}: \
         the run then no longer ends with the bits of one that was never stopped",
        path.display()
    )]
    Differs {
        /// The directory.
        path: PathBuf,
        /// What.
        difference: Difference,
        /// The option that accepts it.
        accept: &'static str,
    },
    /// The run's plan is of another format version: compiling it again would give another plan, and so another run.
    #[error(
        "{}: the run was made by another version of alip-run: its plan has format version {found}, this program reads \
         {FORMAT_VERSION}. Continue it with the version that made it, or start a new run",
        path.display()
    )]
    OtherVersion {
        /// The plan's file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The plan beside it is no plan.
    #[error("{}: {source}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PlanError,
    },
}

/// A run, for reading: nothing here changes a file.
#[derive(Clone, Debug, PartialEq)]
pub struct RunDir {
    root: PathBuf,
    info: RunInfo,
}

impl RunDir {
    /// The run in `root`.
    ///
    /// # Errors
    /// There is none, or its description cannot be read.
    pub fn open(root: &Path) -> Result<RunDir, RunError> {
        if !RunDir::holds_run(root) {
            return Err(RunError::NoRun { path: root.to_path_buf() });
        }
        let path = root.join(INFO);
        let text = fs::read(&path).map_err(FileError::io(&path, "read"))?;
        let spoilt = |why: String| {
            let why = format!("{why}; put the file back from a copy of the run, or begin another run with --out");
            FileError::Damaged { path: path.clone(), why }
        };
        let damaged = |error: serde_json::Error| spoilt(format!("damaged: {error}"));
        // The version first: another format may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(found) if found != u64::from(FORMAT) => return Err(RunError::Version { path, found }),
            _ if value.get(SEAL).is_some() && !is_sealed(&text) => {
                return Err(spoilt(format!("not what was written ({SEAL})")).into());
            }
            _ => {}
        }
        Ok(RunDir { root: root.to_path_buf(), info: serde_json::from_value(value).map_err(damaged)? })
    }

    /// Whether a run can begin in `root`.
    ///
    /// # Errors
    /// There is a run already, or what is left of one.
    pub fn vacant(root: &Path) -> Result<(), RunError> {
        let path = root.to_path_buf();
        let last = Checkpoints::new(root.join(CHECKPOINTS), 1).list().pop();
        if RunDir::holds_run(root) {
            let (spec, steps) = RunDir::open(root).map_or(("?".into(), 0), |run| (run.info.spec, run.info.steps));
            let progress = last.map_or(String::new(), |(step, _)| format!(" (saved at step {step} of {steps})"));
            return Err(RunError::Occupied { path, spec, progress });
        }
        if last.is_some() { Err(RunError::Remains { path }) } else { Ok(()) }
    }

    /// Whether a directory holds a run.
    pub fn holds_run(root: &Path) -> bool {
        root.join(INFO).is_file()
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the run was asked to do.
    pub fn info(&self) -> &RunInfo {
        &self.info
    }

    /// The plan of the run.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn plan(&self) -> Result<Plan, RunError> {
        let (bytes, plan) = read_plan(&self.root).map_err(|error| match error {
            RunError::Plan { path, source: PlanError::Version { found } } => RunError::OtherVersion { path, found },
            other => other,
        })?;
        self.is_as_written(PLAN, &bytes, &self.info.plan)?;
        Ok(plan)
    }

    /// What the run is trained on, its folder being where it is found from here.
    pub fn pipeline(&self) -> Option<Pipeline> {
        self.info.data.as_ref().map(|data| data.found_from(&self.root))
    }

    /// The words of its tokenizers.
    ///
    /// # Errors
    /// They cannot be read or are damaged.
    pub fn vocabularies(&self) -> Result<Vocabularies, RunError> {
        Ok(self.beside(VOCABULARY, self.info.vocabulary.as_deref())?.unwrap_or_default())
    }

    /// What its plan was compiled from; none of a run that was started from a plan.
    ///
    /// # Errors
    /// They cannot be read or are damaged.
    pub fn sources(&self) -> Result<Option<SpecSources>, RunError> {
        Ok(self.beside(SOURCES, self.info.sources.as_deref())?)
    }

    /// A file that has this fingerprint, if there is one.
    fn beside<T: DeserializeOwned>(&self, name: &str, wanted: Option<&str>) -> Result<Option<T>, FileError> {
        let Some(wanted) = wanted else { return Ok(None) };
        let path = self.root.join(name);
        let text = fs::read(&path).map_err(FileError::io(&path, "read"))?;
        self.is_as_written(name, &text, wanted)?;
        parsed(&path, &text).map(Some)
    }

    /// Step and file of every checkpoint, oldest first.
    pub fn checkpoints(&self) -> Vec<(u64, PathBuf)> {
        self.kept(1).list()
    }

    /// Puts the newest checkpoint into the session; none if there is none yet.
    ///
    /// # Errors
    /// It is damaged or not of the session's plan, or the device fails.
    pub fn restore(&self, session: &mut Session) -> Result<Option<Header>, CheckpointError> {
        self.newest(|path| {
            let header = checkpoint::restore(path, session)?;
            self.owns(path, &header)?;
            Ok(header)
        })
    }

    /// Puts a checkpoint of the run into the session.
    ///
    /// # Errors
    /// As [`RunDir::restore`]; it is of another run.
    pub fn restore_from(&self, path: &Path, session: &mut Session) -> Result<Header, CheckpointError> {
        // Before anything of another model is compared with this one.
        self.owns(path, &checkpoint::header(&TensorFile::open(path)?)?)?;
        checkpoint::restore(path, session)
    }

    /// Puts the newest checkpoint, or that of a file, into programs that use the model, as [`checkpoint::restore_part`] does.
    ///
    /// # Errors
    /// As [`RunDir::restore_from`]; averages are asked for, and there are none.
    pub fn restore_part(
        &self,
        path: Option<&Path>,
        session: &mut Session,
        average: bool,
    ) -> Result<Option<Restored>, CheckpointError> {
        let Some(path) = path else {
            let newest = self.newest(|path| checkpoint::restore_part(path, session, average))?;
            return newest.map(|found| self.owns(&found.path, &found.header).map(|()| found)).transpose();
        };
        self.owns(path, &checkpoint::header(&TensorFile::open(path)?)?)?;
        checkpoint::restore_part(path, session, average).map(Some)
    }

    /// The newest checkpoint, which somebody who trains may take away meanwhile.
    fn newest<T>(
        &self,
        mut restore: impl FnMut(&Path) -> Result<T, CheckpointError>,
    ) -> Result<Option<T>, CheckpointError> {
        loop {
            let Some(path) = self.kept(1).latest() else { return Ok(None) };
            match restore(&path) {
                // Whoever trains has newer ones and took this one away.
                Err(CheckpointError::File(FileError::Io { source, .. }))
                    if source.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {}
                restored => return restored.map(Some),
            }
        }
    }

    /// That a checkpoint is one of this run.
    fn owns(&self, path: &Path, header: &Header) -> Result<(), CheckpointError> {
        let what = match (&self.info, header) {
            (own, found) if own.plan != found.plan => "it was trained by another plan".to_string(),
            (own, found) if own.seed != found.seed => {
                format!("it was trained with the seed {}, and this run is with {}", found.seed, own.seed)
            }
            _ => return Ok(()),
        };
        Err(CheckpointError::OtherRun { path: path.to_path_buf(), own: self.root.join(CHECKPOINTS), what })
    }

    fn kept(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(self.root.join(CHECKPOINTS), keep)
    }

    fn is_as_written(&self, name: &str, bytes: &[u8], wanted: &str) -> Result<(), FileError> {
        let found = fingerprint(bytes);
        if found == wanted {
            return Ok(());
        }
        let why = format!("not the file that the run was started with (hash {found}, {INFO} says {wanted})");
        Err(FileError::Damaged { path: self.root.join(name), why })
    }
}

/// What a new run is made of.
#[derive(Clone, Copy, Debug)]
pub struct NewRun<'a> {
    /// What it is asked to do.
    pub info: &'a RunInfo,
    /// Its plan.
    pub plan: &'a Plan,
    /// What that was compiled from.
    pub sources: Option<&'a SpecSources>,
    /// The words of its tokenizers.
    pub vocabularies: &'a Vocabularies,
}

/// A run that is this process's to write: the lock is held until this is dropped.
#[derive(Debug)]
pub struct Writer {
    run: RunDir,
    keep: usize,
    lock: Lock,
}

impl Deref for Writer {
    type Target = RunDir;

    fn deref(&self) -> &RunDir {
        &self.run
    }
}

impl Writer {
    /// Begins a run in `root`, which is made if need be, of whose checkpoints `keep` are kept. What fails leaves no trace.
    ///
    /// # Errors
    /// A run is there already, the directory cannot be written, or there is too little room.
    pub fn create(root: &Path, new: &NewRun<'_>, keep: usize) -> Result<Writer, RunError> {
        RunDir::vacant(root)?;
        has_room(root, new.plan, keep, 0)?;
        let made = make_folders(root)?;
        let created = Writer::fill(root, new, keep);
        if created.is_err() {
            // Folders that somebody else has put something into stay.
            made.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        }
        created
    }

    fn fill(root: &Path, new: &NewRun<'_>, keep: usize) -> Result<Writer, RunError> {
        let lock = Lock::take(root)?;
        // Somebody else may have been quicker.
        RunDir::vacant(root)?;
        let mut info = new.info.clone();
        let mut files = vec![(PLAN, new.plan.to_bytes())];
        if !new.vocabularies.is_empty() {
            let words = json(new.vocabularies);
            info.vocabulary = Some(fingerprint(&words));
            files.push((VOCABULARY, words));
        }
        if let Some(sources) = new.sources {
            let sources = json(sources);
            info.sources = Some(fingerprint(&sources));
            files.push((SOURCES, sources));
        }
        // The last file: with it the directory holds a run.
        files.push((INFO, sealed(&info)));
        let new: Vec<PathBuf> =
            files.iter().map(|(name, _)| root.join(name)).filter(|path| path.symlink_metadata().is_err()).collect();
        let written = files.iter().try_for_each(|(name, bytes)| write_bytes(&root.join(name), bytes));
        if let Err(error) = written {
            new.iter().for_each(|path| drop(fs::remove_file(path)));
            lock.forget(root);
            return Err(error.into());
        }
        Ok(Writer { run: RunDir { root: root.to_path_buf(), info }, keep, lock })
    }

    /// The run in `root`, to be continued; what killed writers left half written is removed.
    ///
    /// # Errors
    /// There is no run, somebody else writes it, or there is too little room.
    pub fn open(root: &Path, keep: usize) -> Result<Writer, RunError> {
        if !RunDir::holds_run(root) {
            return Err(RunError::NoRun { path: root.to_path_buf() });
        }
        Writer::open_with(root, keep, Lock::take(root)?)
    }

    fn open_with(root: &Path, keep: usize, lock: Lock) -> Result<Writer, RunError> {
        let run = RunDir::open(root)?;
        has_room(root, &run.plan()?, keep, run.checkpoints().len())?;
        // Nobody but the holder of the lock writes checkpoints. Results have other writers.
        remove_unfinished(&root.join(CHECKPOINTS), if lock.is_kept() { Duration::ZERO } else { ABANDONED });
        remove_unfinished(root, ABANDONED);
        Ok(Writer { run, keep, lock })
    }

    /// What to tell people about the directory.
    pub fn warning(&self) -> Option<String> {
        let path = self.root.display();
        let why = "is on a file system without locks: nobody notices if a second process trains there";
        (!self.lock.is_kept()).then(|| format!("{path} {why}"))
    }

    /// Saves the state of a session, then removes checkpoints beyond the number kept.
    ///
    /// # Errors
    /// The device fails or the file cannot be written; older checkpoints are untouched then.
    pub fn save(&self, session: &mut Session, header: &Header) -> Result<Saved, CheckpointError> {
        self.kept(self.keep).save(session, header)
    }

    /// Step of the state that is kept as the best, if one is.
    pub fn best_step(&self) -> Option<u64> {
        let file = TensorFile::open(&self.root.join(CHECKPOINTS).join(checkpoint::BEST)).ok()?;
        checkpoint::header(&file).ok().map(|header| header.step)
    }

    /// Saves the state of the session as the best so far: `checkpoints/best.safetensors`.
    ///
    /// # Errors
    /// The device fails or the file cannot be written.
    pub fn save_best(&self, session: &mut Session, header: &Header) -> Result<PathBuf, CheckpointError> {
        self.kept(self.keep).save_best(session, header)
    }

    /// The log, for what comes after `step` steps.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn log(&self, step: u64) -> Result<MetricsLog, FileError> {
        MetricsLog::open(&self.root, step)
    }

    /// Changes what the run is asked to do.
    ///
    /// # Errors
    /// The file cannot be written; nothing has changed then.
    pub fn set_info(&mut self, info: RunInfo) -> Result<(), FileError> {
        write_bytes(&self.root.join(INFO), &sealed(&info))?;
        self.run.info = info;
        Ok(())
    }
}

/// The checkpoints of a plan fit on the disk: those kept and the one being written, of which some are there already.
fn has_room(root: &Path, plan: &Plan, keep: usize, present: usize) -> Result<(), RunError> {
    let (keep, present) = (keep as u64, present as u64);
    // The best one stands beside them.
    let best = u64::from(plan.train.as_ref().is_some_and(|train| train.evaluate.is_some()));
    let checkpoints = keep.saturating_sub(present).saturating_add(1).saturating_add(best);
    let each = checkpoint::size(plan);
    // A file system that cannot say how much is free is not refused.
    let free = if is_on_disk(root) { fs4::available_space(above(root)).unwrap_or(u64::MAX) } else { u64::MAX };
    if each.saturating_mul(checkpoints) > free {
        return Err(RunError::NoRoom { path: root.to_path_buf(), free, each, checkpoints });
    }
    Ok(())
}

/// The folder itself, or the nearest above it that exists.
fn above(root: &Path) -> PathBuf {
    let there = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
    there.ancestors().find(|folder| folder.is_dir()).unwrap_or(root).to_path_buf()
}

/// Whether a place has any storage, used or not.
fn is_on_disk(root: &Path) -> bool {
    fs4::total_space(above(root)).map_or(true, |total| total > 0)
}

/// Makes a folder and those above it; gives those that were made, innermost first.
fn make_folders(root: &Path) -> Result<Vec<PathBuf>, RunError> {
    let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let made: Vec<PathBuf> = root.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    fs::create_dir_all(root).map_err(|error| match is_on_disk(root) {
        true => FileError::io(root, "create the folder")(error).into(),
        // What the system says of it, such as that there is no such folder, leads astray.
        false => RunError::NoDisk { path: root.to_path_buf() },
    })?;
    made.iter().for_each(|folder| sync_folder(folder.parent()));
    Ok(made)
}

/// Plain data always serialise.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// Key of the checksum in [`INFO`], which stands last.
const SEAL: &str = "checksum";

/// The text of [`INFO`]: the other files are held against what it says, and it against its last line.
fn sealed(info: &RunInfo) -> Vec<u8> {
    let text = json(info);
    let checksum = fingerprint(&text);
    let open = text.strip_suffix(b"\n}").unwrap_or_default();
    [open, format!(",\n  \"{SEAL}\": \"{checksum}\"\n}}").as_bytes()].concat()
}

/// Whether a text is as [`sealed`] made it.
fn is_sealed(text: &[u8]) -> bool {
    let sealed = || {
        let (open, checksum) =
            std::str::from_utf8(text).ok()?.trim_end().rsplit_once(&format!(",\n  \"{SEAL}\": \""))?;
        Some(fingerprint(format!("{open}\n}}").as_bytes()) == checksum.strip_suffix("\"\n}")?)
    };
    sealed().unwrap_or(false)
}

fn parsed<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, FileError> {
    serde_json::from_slice(text)
        .map_err(|error| FileError::Damaged { path: path.to_path_buf(), why: error.to_string() })
}

/// Reads `plan.alip` of a directory that `alipc compile` or a run wrote: its bytes, and what they say.
///
/// # Errors
/// There is none, or it is damaged.
pub fn read_plan(folder: &Path) -> Result<(Vec<u8>, Plan), RunError> {
    let path = folder.join(PLAN);
    let bytes = fs::read(&path).map_err(FileError::io(&path, "read"))?;
    let plan = Plan::from_bytes(&bytes).map_err(|source| RunError::Plan { path, source })?;
    Ok((bytes, plan))
}

#[cfg(test)]
mod tests;

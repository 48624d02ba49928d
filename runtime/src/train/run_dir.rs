//! A run directory: everything about one training run, enough to continue and to evaluate it without its spec.
//!
//! | file | holds |
//! | --- | --- |
//! | `run.json` | [`RunInfo`]: what the run was asked to do |
//! | `plan.alip` | the compiled plan |
//! | `checkpoints/` | `step-00001000.safetensors`, ... |
//! | `metrics.jsonl`, `events.out.tfevents.*` | the log |
//! | `results.json`, `report.html` | the evaluation |

use std::fs;
use std::path::{Path, PathBuf};

use alip_plan::pipeline::Pipeline;
use alip_plan::{Plan, PlanError};
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoints};
use super::file::{self, FileError, write_beside, write_bytes};

/// Version of `run.json`.
const FORMAT: u32 = 1;

/// Name of the plan in a directory, here and in what `alipc compile -o DIR` writes.
pub const PLAN: &str = "plan.alip";
const INFO: &str = "run.json";

/// What a run was asked to do; resuming keeps to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of this file's format.
    pub format: u32,
    /// Name of the graph spec.
    pub spec: String,
    /// Fingerprint of the plan.
    pub plan: String,
    /// Name and description of the device the run was started on.
    pub device: String,
    /// Seed of weights, data order and augmentation.
    pub seed: u64,
    /// Global batch.
    pub batch: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Where the batches come from, with the path that was given.
    pub data: Option<Pipeline>,
}

impl RunInfo {
    /// What a plan is asked to do.
    pub fn new(plan: &Plan, device: String, seed: u64, steps: u64, data: Option<Pipeline>) -> RunInfo {
        RunInfo {
            format: FORMAT,
            spec: plan.name.clone(),
            plan: checkpoint::fingerprint(plan),
            device,
            seed,
            batch: plan.train.as_ref().map_or(0, |train| train.batch),
            steps,
            data,
        }
    }
}

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The system refused, or a file is damaged.
    #[error(transparent)]
    File(#[from] FileError),
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
    /// There is no run.
    #[error("{} holds no run (there is no {INFO}); `alip-run train SPEC --out DIR` makes one", path.display())]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// Too little room.
    #[error(
        "{} has {} free, but {checkpoints} checkpoints of {} each will be kept there at a time; free some space, choose \
         another directory with --out, or keep fewer with --keep",
        path.display(), bytes(*free), bytes(*each)
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Bytes of a checkpoint.
        each: u64,
        /// Checkpoints that exist at a time, the one being written included.
        checkpoints: u64,
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

/// Shows a number of bytes in the largest unit that leaves digits before the point.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A directory that holds a run.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Begins a run in `root`, which is made if need be. Everything that can be known to fail later is tried first:
    /// that files can be written, and that there is room for `checkpoints` of them at a time.
    ///
    /// # Errors
    /// A run is there already, the directory cannot be written, or there is too little room.
    pub fn create(root: &Path, info: &RunInfo, plan: &Plan, checkpoints: u64) -> Result<RunDir, RunDirError> {
        let run = RunDir { root: root.to_path_buf() };
        if run.exists() {
            let (spec, steps) = run.info().map_or_else(|_| ("?".into(), 0), |info| (info.spec, info.steps));
            let last = run.checkpoints(1).list().pop();
            let progress = last.map_or(String::new(), |(step, _)| format!(" (saved at step {step} of {steps})"));
            return Err(RunDirError::Occupied { path: run.root, spec, progress });
        }
        fs::create_dir_all(root).map_err(FileError::io(root, "create the folder"))?;
        run.probe(plan, checkpoints)?;
        write_bytes(&root.join(PLAN), &plan.to_bytes())?;
        // The last file: with it the directory holds a run. Plain data always serialise.
        write_bytes(&run.info_path(), &serde_json::to_vec_pretty(info).unwrap_or_default())?;
        Ok(run)
    }

    /// The run in `root`.
    ///
    /// # Errors
    /// There is none, or its description cannot be read.
    pub fn open(root: &Path) -> Result<(RunDir, RunInfo), RunDirError> {
        let run = RunDir { root: root.to_path_buf() };
        if !run.exists() {
            return Err(RunDirError::NoRun { path: run.root });
        }
        file::remove_unfinished(&run.checkpoint_folder());
        let info = run.info()?;
        Ok((run, info))
    }

    /// Whether a directory holds a run.
    pub fn holds_run(root: &Path) -> bool {
        root.join(INFO).exists()
    }

    fn exists(&self) -> bool {
        RunDir::holds_run(&self.root)
    }

    fn info(&self) -> Result<RunInfo, FileError> {
        let path = self.info_path();
        let text = fs::read(&path).map_err(FileError::io(&path, "read"))?;
        serde_json::from_slice(&text).map_err(|error| FileError::Damaged { path, why: error.to_string() })
    }

    /// Tries whether `checkpoints` of this plan can be written.
    ///
    /// # Errors
    /// The directory cannot be written or has too little room.
    pub fn probe(&self, plan: &Plan, checkpoints: u64) -> Result<(), RunDirError> {
        let path = self.root.join("write.probe");
        write_beside(&path, |_| Ok::<(), FileError>(()))?;
        fs::remove_file(&path).map_err(FileError::io(&path, "remove"))?;
        let each = checkpoint::size(plan);
        // A file system that cannot say how much is free is not refused.
        let free = fs4::available_space(&self.root).unwrap_or(u64::MAX);
        if each.saturating_mul(checkpoints) > free {
            return Err(RunDirError::NoRoom { path: self.root.clone(), free, each, checkpoints });
        }
        Ok(())
    }

    /// The plan of the run.
    ///
    /// # Errors
    /// It cannot be read or is damaged.
    pub fn plan(&self) -> Result<Plan, RunDirError> {
        read_plan(&self.root)
    }

    /// Its checkpoints, of which `keep` are kept.
    pub fn checkpoints(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(self.checkpoint_folder(), keep)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn checkpoint_folder(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    fn info_path(&self) -> PathBuf {
        self.root.join(INFO)
    }
}

/// Reads `plan.alip` of a directory that `alipc compile` or a run wrote.
///
/// # Errors
/// There is none, or it is damaged.
pub fn read_plan(folder: &Path) -> Result<Plan, RunDirError> {
    let path = folder.join(PLAN);
    let bytes = fs::read(&path).map_err(FileError::io(&path, "read"))?;
    Plan::from_bytes(&bytes).map_err(|source| RunDirError::Plan { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{folder, linear};

    fn info(plan: &Plan) -> RunInfo {
        RunInfo::new(plan, "reference".into(), 1, 10, None)
    }

    #[test]
    fn a_run_is_found_again_and_not_overwritten() {
        let root = folder("run_dir").join("a/b");
        let plan = linear();
        RunDir::create(&root, &info(&plan), &plan, 4).unwrap();
        let (run, found) = RunDir::open(&root).unwrap();
        assert_eq!(found, info(&plan));
        assert_eq!(run.plan().unwrap(), plan);
        let error = RunDir::create(&root, &info(&plan), &plan, 4).unwrap_err().to_string();
        assert!(error.contains("already holds a run of `linear`; continue it with --resume"), "{error}");
        let error = RunDir::open(&folder("run_dir_none")).unwrap_err().to_string();
        assert!(error.contains("holds no run (there is no run.json)"), "{error}");
    }

    #[test]
    fn what_cannot_be_written_is_known_before_the_first_step() {
        let plan = linear();
        let root = folder("run_dir_full");
        let error = RunDir::create(&root, &info(&plan), &plan, u64::MAX / 2).unwrap_err().to_string();
        assert!(error.contains(" free, but ") && error.contains("choose another directory with --out"), "{error}");
        assert!(!RunDir::holds_run(&root));
        let occupied = root.join("file");
        fs::write(&occupied, "").unwrap();
        let error = RunDir::create(&occupied.join("run"), &info(&plan), &plan, 1).unwrap_err().to_string();
        assert!(error.contains("cannot create the folder"), "{error}");
        // Root may write anywhere, so a folder without permission proves nothing there; /proc refuses everybody.
        #[cfg(target_os = "linux")]
        {
            let error = RunDir::create(Path::new("/proc/alip"), &info(&plan), &plan, 1).unwrap_err().to_string();
            assert!(error.starts_with("/proc/alip: cannot create the folder: "), "{error}");
        }
    }

    #[test]
    fn a_foreign_plan_is_refused() {
        let root = folder("run_dir_plan");
        fs::write(root.join(PLAN), "no plan").unwrap();
        let error = read_plan(&root).unwrap_err().to_string();
        assert!(error.contains("plan.alip: not a plan file; `alipc compile SPEC -o DIR` writes one"), "{error}");
    }

    #[test]
    fn bytes_are_readable() {
        let shown: Vec<String> = [0, 1023, 1024, 5 << 30, 150 << 20].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "150 MiB"]);
    }
}

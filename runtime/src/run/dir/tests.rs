//! Run directories that are begun, opened, hurt and occupied.

use super::*;
use crate::train::testing::{folder, info, linear};

fn create(root: &Path, keep: usize) -> Result<Writer, RunError> {
    let (plan, vocabularies) = (linear(), Vocabularies::default());
    let new = NewRun { info: &info(&plan), plan: &plan, sources: None, vocabularies: &vocabularies };
    Writer::create(root, &new, keep)
}

fn refused<T: std::fmt::Debug>(found: Result<T, RunError>, said: &str) {
    let error = found.unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
}

#[test]
fn a_run_is_found_again_and_not_overwritten() {
    let root = folder("run_dir").join("a/b");
    drop(create(&root, 3).unwrap());
    let run = RunDir::open(&root).unwrap();
    assert_eq!(run.info(), &info(&linear()));
    assert_eq!(run.plan().unwrap(), linear());
    refused(create(&root, 3), "already holds a run of `linear`; continue it with --resume");
    refused(RunDir::open(&folder("run_dir_none")), "holds no run (there is no run.json)");
}

#[test]
fn one_process_writes_and_any_number_reads() {
    let root = folder("run_dir_lock");
    let writer = create(&root, 3).unwrap();
    let holder = format!("is being trained by process {}", std::process::id());
    refused(Writer::open(&root, 3), &holder);
    let before = listing(&root);
    let run = RunDir::open(&root).unwrap();
    assert!(run.checkpoints().is_empty() && run.plan().is_ok());
    assert_eq!(listing(&root), before);
    drop(writer);
    assert!(Writer::open(&root, 3).is_ok());
}

/// Every file with its size and time.
fn listing(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).unwrap().flatten();
    let shown = |entry: fs::DirEntry| {
        let facts = entry.metadata().unwrap();
        format!("{:?} {} {:?}", entry.path(), facts.len(), facts.modified())
    };
    let mut all: Vec<String> = entries.map(shown).collect();
    all.sort();
    all
}

/// A reader leaves the file that a trainer is writing; the next trainer removes what a killed one left.
#[test]
fn readers_leave_unfinished_checkpoints_alone() {
    let root = folder("run_dir_unfinished");
    drop(create(&root, 3).unwrap());
    let half = root.join("checkpoints/.step-00000007.safetensors.1-1.unfinished");
    fs::create_dir_all(half.parent().unwrap()).unwrap();
    fs::write(&half, "half").unwrap();
    let run = RunDir::open(&root).unwrap();
    assert!(run.checkpoints().is_empty() && half.exists());
    drop(Writer::open(&root, 3).unwrap());
    assert!(!half.exists());
}

/// Where nobody notices a second writer, a young file may be its.
#[test]
fn without_locks_people_are_told_and_young_files_stay() {
    use std::fs::TryLockError;
    use std::io::{Error, ErrorKind};
    let root = folder("run_dir_no_locks");
    drop(create(&root, 3).unwrap());
    let half = root.join("checkpoints/.step-00000007.safetensors.1-1.unfinished");
    fs::create_dir_all(half.parent().unwrap()).unwrap();
    fs::write(&half, "half").unwrap();
    let refusals = [
        Error::from(ErrorKind::Unsupported),
        #[cfg(unix)]
        Error::from_raw_os_error(libc::ENOLCK),
        #[cfg(unix)]
        Error::from_raw_os_error(libc::EOPNOTSUPP),
        #[cfg(unix)]
        Error::from_raw_os_error(libc::ENOSYS),
    ];
    for error in refusals {
        let lock = Lock::take_by(&root, |_| Err(TryLockError::Error(error))).unwrap();
        let writer = Writer::open_with(&root, 3, lock).unwrap();
        let said = writer.warning().unwrap();
        assert!(said.ends_with("on a file system without locks: nobody notices if a second process trains there"));
        assert!(half.exists());
    }
    assert_eq!(Writer::open(&root, 3).unwrap().warning(), None);
    assert!(!half.exists());
    let other = Lock::take_by(&root, |_| Err(TryLockError::Error(Error::from(ErrorKind::PermissionDenied))));
    refused(other, "run.lock: cannot lock: ");
}

#[test]
fn checkpoints_that_are_there_need_no_room() {
    let root = folder("run_dir_room");
    let plan = linear();
    let free = fs4::available_space(&root).unwrap();
    let keep = (free / checkpoint::size(&plan)) as usize * 2;
    refused(has_room(&root, &plan, keep, 0), &format!(" free, but {} more checkpoints of ", keep + 1));
    has_room(&root, &plan, keep, keep).unwrap();
    has_room(&root, &plan, 3, keep).unwrap();
}

#[test]
fn what_fails_leaves_no_trace() {
    let root = folder("run_dir_full").join("a/b");
    refused(create(&root, usize::MAX / 2), " free, but ");
    assert!(!root.parent().unwrap().exists());
    let occupied = folder("run_dir_file").join("file");
    fs::write(&occupied, "").unwrap();
    refused(create(&occupied.join("run"), 1), "cannot create the folder");
    // Root may write anywhere, so a folder without permission proves nothing there; /proc refuses everybody.
    #[cfg(target_os = "linux")]
    refused(
        create(Path::new("/proc/alip"), 1),
        "nothing can be written in /proc/alip, which is on no disk; choose another",
    );
}

#[test]
fn what_is_not_of_this_run_is_told() {
    let root = folder("run_dir_foreign");
    fs::write(root.join(PLAN), "no plan").unwrap();
    refused(read_plan(&root), "plan.alip: not a plan file; `alipc compile SPEC -o DIR` writes one");
    drop(create(&root, 3).unwrap());
    let mut other = linear();
    other.name = "other".into();
    fs::write(root.join(PLAN), other.to_bytes()).unwrap();
    refused(RunDir::open(&root).unwrap().plan(), "plan.alip: not the file that the run was started with (hash ");
    // The version stands behind the eight bytes that say what the file is.
    let mut older = linear().to_bytes();
    older[8] = 5;
    fs::write(root.join(PLAN), older).unwrap();
    let said =
        "plan.alip: the run was made by another version of alip-run: its plan has format version 5, this program reads";
    refused(RunDir::open(&root).unwrap().plan(), said);
    let info = fs::read_to_string(root.join(INFO)).unwrap();
    let way_out = "; put the file back from a copy of the run, or begin another run with --out";
    for (text, said) in [
        (info.replace("\"seed\": 1", "\"seed\": 2"), "run.json: not what was written (checksum)"),
        (info.replace("  \"", "\""), "run.json: not what was written (checksum)"),
        (info[..info.len() / 2].to_string(), "run.json: damaged: EOF while parsing"),
        (String::new(), "run.json: damaged: EOF while parsing"),
    ] {
        fs::write(root.join(INFO), text).unwrap();
        refused(RunDir::open(&root), said);
        refused(RunDir::open(&root), way_out);
    }
    // An editor's line break at the end changes nothing.
    fs::write(root.join(INFO), info + "\n").unwrap();
    assert!(RunDir::open(&root).is_ok());
    fs::write(root.join(INFO), r#"{"format": 1}"#).unwrap();
    refused(RunDir::open(&root), "run.json: a run of format 1, but this program reads format 2");
    fs::remove_file(root.join(INFO)).unwrap();
    fs::create_dir_all(root.join(CHECKPOINTS)).unwrap();
    fs::write(root.join(CHECKPOINTS).join("step-00000007.safetensors"), "").unwrap();
    refused(create(&root, 3), "holds checkpoints but no run.json");
}

//! What makes a run the run it is, and what of it differs from something else.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use alip_plan::Plan;
use alip_plan::pipeline::{Pipeline, Source};
use serde::{Deserialize, Serialize};

use crate::data::{DataError, SampleSource, literal, pattern_from};
use crate::device::Device;

/// Version of `run.json`; a reader accepts exactly its own.
pub(super) const FORMAT: u32 = 2;

/// What a run was asked to do; resuming keeps to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of this file's format.
    pub format: u32,
    /// Name of the graph spec.
    pub spec: String,
    /// [`fingerprint`] of the plan's bytes.
    pub plan: String,
    /// What the run was started on.
    pub device: DeviceIdentity,
    /// Seed of weights, data order and augmentation.
    pub seed: u64,
    /// Global batch.
    pub batch: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// What it is trained on.
    pub data: Option<DataIdentity>,
    /// [`fingerprint`] of the word lists, where its pipeline has any.
    #[serde(default)]
    pub vocabulary: Option<String>,
    /// [`fingerprint`] of what the plan was compiled from, where that is known.
    #[serde(default)]
    pub sources: Option<String>,
    /// What its weights were before the first step, where that is not what the seed makes of them.
    #[serde(default)]
    pub start: Vec<StartIdentity>,
    /// The suite that it is measured on while it is trained, if it is.
    #[serde(default)]
    pub suite: Option<SuiteIdentity>,
}

impl RunInfo {
    /// What a plan is asked to do.
    pub fn new(plan: &Plan, device: DeviceIdentity, seed: u64, steps: u64, data: Option<DataIdentity>) -> RunInfo {
        RunInfo {
            format: FORMAT,
            spec: plan.name.clone(),
            plan: fingerprint(&plan.to_bytes()),
            device,
            seed,
            batch: plan.train.as_ref().map_or(0, |train| train.batch),
            steps,
            data,
            vocabulary: None,
            sources: None,
            start: Vec::new(),
            suite: None,
        }
    }
}

/// A suite that a run is measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuiteIdentity {
    /// Its name, or its path.
    pub name: String,
    /// [`fingerprint`] of its text.
    pub hash: String,
}

impl fmt::Display for SuiteIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.hash)
    }
}

/// Weights that a run was started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartIdentity {
    /// The file, as it was named.
    pub file: String,
    /// Which parameters it gave; all if it is not said.
    pub select: Option<String>,
    /// Fingerprint of the tensors in it, under our names.
    pub hash: String,
}

impl fmt::Display for StartIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let select = self.select.as_ref().map_or(String::new(), |select| format!(", `{select}`"));
        write!(f, "{}{select} ({})", self.file, self.hash)
    }
}

/// What results depend on of a device, down to their last bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Name as in `--device`.
    pub name: String,
    /// Instruction set, or adapter and driver.
    pub arithmetic: String,
}

impl DeviceIdentity {
    /// Of a device of this machine.
    pub fn of(device: &dyn Device) -> DeviceIdentity {
        DeviceIdentity { name: device.name().into(), arithmetic: device.arithmetic() }
    }
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.arithmetic)
    }
}

/// What a run is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// Where batches come from; a folder is named by its absolute path, without links if it was given relative to somewhere.
    pub pipeline: Pipeline,
    /// Of each part of the source: the folder as seen from the run's directory, if it was given relative to somewhere: both can
    /// move together. A link to the data is kept, so that it moves too.
    #[serde(default, deserialize_with = "one_or_several")]
    pub beside: Vec<Option<PathBuf>>,
    /// Number of training samples, or 0 where nobody has said.
    pub samples: u64,
    /// Hash of their list.
    pub list: String,
}

impl DataIdentity {
    /// The training samples of a pipeline, opened as `source`, for a run in `root`.
    ///
    /// # Errors
    /// The list of the samples cannot be read any more.
    pub fn new(mut pipeline: Pipeline, source: &dyn SampleSource, root: &Path) -> Result<DataIdentity, DataError> {
        let beside = pipeline.source.parts_mut().into_iter().map(|part| fixed(part, root)).collect();
        Ok(DataIdentity { pipeline, beside, samples: source.len(), list: source.list_hash()? })
    }

    /// The pipeline, its folder being where the run in `root` finds it now.
    pub(super) fn found_from(&self, root: &Path) -> Pipeline {
        let mut pipeline = self.pipeline.clone();
        for (part, beside) in pipeline.source.parts_mut().into_iter().zip(&self.beside) {
            let files = part.takes_patterns();
            if let (Some(path), Some(beside)) = (part.path_mut(), beside)
                && let found = root.join(beside)
                && found.is_dir()
            {
                *path = joined(&found, in_folder(path, files).1);
            }
        }
        pipeline
    }

    /// What of it is not the same in `now`.
    pub fn difference(&self, now: &DataIdentity) -> Option<Difference> {
        let changed = |what, then: &dyn fmt::Display, now: &dyn fmt::Display| {
            Some(Difference { what, then: then.to_string(), now: now.to_string() })
        };
        let are_counted = self.samples != 0 && now.samples != 0;
        if are_counted && self.samples != now.samples {
            return changed("number of training samples", &self.samples, &now.samples);
        }
        if self.list != now.list {
            return changed("list of training samples (hash)", &self.list, &now.list);
        }
        None
    }
}

/// Names the folder of a source by its absolute path; yields how it is seen from `root`, if it was given relative to somewhere.
fn fixed(source: &mut Source, root: &Path) -> Option<PathBuf> {
    let files = source.takes_patterns();
    let path = source.path_mut()?;
    if Path::new(path.as_str()).is_absolute() || path.contains("${") || path.contains("://") {
        return None;
    }
    let (folder, files) = in_folder(path, files);
    let (folder, root) = (plain(folder).ok()?, plain(root).ok()?);
    let beside = seen_from(&without_links(&root), &folder);
    *path = joined(&without_links(&folder), files);
    Some(beside)
}

/// Runs before there were mixtures have one folder, or none.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Option<PathBuf>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Folders {
        Several(Vec<Option<PathBuf>>),
        One(Option<PathBuf>),
    }
    Ok(match Folders::deserialize(from)? {
        Folders::Several(folders) => folders,
        Folders::One(folder) => vec![folder],
    })
}

/// An absolute path without `..`, which stands for what is above a link's target and not for what the link lies in.
fn plain(path: &Path) -> std::io::Result<PathBuf> {
    let mut plain = if path.is_absolute() { PathBuf::new() } else { std::env::current_dir()?.canonicalize()? };
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain = without_links(&plain);
                plain.pop();
            }
            _ => plain.push(component),
        }
    }
    Ok(plain)
}

/// A plain path with the links resolved in what exists of it.
fn without_links(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, real)) = found else { return path.to_path_buf() };
    match path.strip_prefix(above) {
        // Joined with nothing, a path ends in a slash.
        Ok(rest) if rest.as_os_str().is_empty() => real,
        Ok(rest) => real.join(rest),
        Err(_) => path.to_path_buf(),
    }
}

/// The folder of a source's path, as far as it is one folder, and the files in it that the path names.
fn in_folder(path: &str, files: bool) -> (&Path, Option<&str>) {
    let plain = &path[..pattern_from(path).unwrap_or(path.len())];
    match (files, plain.rfind('/')) {
        (false, _) => (Path::new(path), None),
        (true, Some(slash)) => (Path::new(&path[..=slash]), Some(&path[slash + 1..])),
        (true, None) => (Path::new(""), Some(path)),
    }
}

/// A folder, or files in it by name or pattern.
fn joined(folder: &Path, files: Option<&str>) -> String {
    let folder_name = folder.to_string_lossy();
    match files {
        None => folder_name.into_owned(),
        Some(files) if pattern_from(files).is_some() => {
            Path::new(&literal(&folder_name)).join(files).to_string_lossy().into_owned()
        }
        Some(files) => folder.join(files).to_string_lossy().into_owned(),
    }
}

/// `path` as seen from the folder `from`; both plain, and `from` without links, since `..` leads above their targets.
fn seen_from(from: &Path, path: &Path) -> PathBuf {
    let (from, path): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (from.components().collect(), path.components().collect());
    let common = from.iter().zip(&path).take_while(|(a, b)| a == b).count();
    let up = from.iter().skip(common).map(|_| Component::ParentDir);
    up.chain(path.iter().skip(common).copied()).collect()
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub what: &'static str,
    /// What the run was started with.
    pub then: String,
    /// What there is now.
    pub now: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} when it was started, {} now", self.what, self.then, self.now)
    }
}

/// A short hash: equal bytes, equal fingerprints. FNV-1a, 64 bits; it tells things apart that people mixed up, not things that
/// somebody forged.
pub fn fingerprint(bytes: &[u8]) -> String {
    let mut hash = crate::data::ListHash::default();
    hash.add(bytes);
    hash.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::folder;

    #[test]
    fn a_folder_is_seen_from_the_run() {
        let check = |from: &str, path: &str, seen: &str| {
            assert_eq!(seen_from(Path::new(from), Path::new(path)), Path::new(seen))
        };
        check("/a/runs/x", "/a/data/flickr", "../../data/flickr");
        check("/a", "/a/data", "data");
        check("/a/b", "/c", "../../c");
    }

    /// However run and data are spelled, the run finds its data from where it is.
    #[test]
    #[cfg(unix)]
    fn spellings_do_not_matter() {
        let at = folder("identity_spellings").canonicalize().unwrap();
        for made in ["project/photos", "project/sub", "elsewhere/runs", "disk/images"] {
            std::fs::create_dir_all(at.join(made)).unwrap();
        }
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(at.join(to), at.join(from)).unwrap();
        link("elsewhere/runs", "project/runs");
        link("disk/images", "project/linked");
        link("project/sub", "elsewhere/inside");
        let check = |root: &str, data: &str, seen: &str, real: &str| {
            let (root, data) = (plain(&at.join(root)).unwrap(), plain(&at.join(data)).unwrap());
            let root = without_links(&root);
            assert_eq!(seen_from(&root, &data), Path::new(seen), "{root:?}, {data:?}");
            assert_eq!(without_links(&data), at.join(real));
            std::fs::create_dir_all(&root).unwrap();
            assert_eq!(root.join(seen).canonicalize().unwrap(), at.join(real));
        };
        check("project/out", "project/photos", "../photos", "project/photos");
        check("project/sub/../out", "project/./sub/../photos", "../photos", "project/photos");
        check("project/new/er/../out", "project/photos", "../../photos", "project/photos");
        check("project/runs/a", "project/photos", "../../../project/photos", "project/photos");
        check("project/out", "elsewhere/inside/../photos", "../photos", "project/photos");
        check("project/out", "project/linked", "../linked", "disk/images");
    }
}

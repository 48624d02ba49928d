//! A file of weights, or several, whatever their format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use alip_plan::DType;
use safetensors::tensor::Dtype as FileType;

use super::error::WeightsError;
use super::map::{Meaning, NameMap, SAME};
use super::pickle::Tensor;
use super::raw::RawTensor;
use super::shapes::Shapes;
use super::torch::{FIRST, TorchFile, is_legacy};
use super::{most_bytes, safe};
use crate::data::ListHash;
use crate::file::FileError;
use crate::run::checkpoint::AVERAGE;
use crate::run::tensors::TensorFile;
use crate::tensor::HostTensor;

/// What wrappers put before all names of a model that they hold.
const PREFIXES: [&str; 5] = ["module.", "_orig_mod.", "model.", "state_dict.", "clip."];

/// Text in the header of a checkpoint of a run.
const CHECKPOINT: &str = "alip";

/// Texts in the headers of our own files, whose names are ours.
const OUR_KEYS: [&str; 2] = [CHECKPOINT, "alip.import"];

/// Weights by name, read one tensor at a time.
pub struct Weights {
    path: PathBuf,
    files: Vec<Source>,
    tensors: BTreeMap<String, Entry>,
    notes: Vec<String>,
    map: String,
    /// Names that the map does not know.
    unknown: Vec<String>,
}

enum Source {
    Safe(TensorFile),
    Torch(TorchFile),
}

/// A tensor, made of one or several of the file's.
#[derive(Clone, Debug)]
struct Entry {
    dtype: FileType,
    shape: Vec<u64>,
    parts: Vec<Part>,
    transpose: bool,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
struct Part {
    file: usize,
    name: String,
    dtype: FileType,
    shape: Vec<u64>,
    /// Where it lies, in a file of PyTorch's.
    view: Option<Tensor>,
}

impl Weights {
    /// Opens a file, an index of shards (`model.safetensors.index.json`), or a folder with one of these, with the names that are in
    /// it; what stands before all of them (`module.`) is taken away and said in [`Weights::notes`].
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or holds what is refused.
    pub fn open(path: &Path) -> Result<Weights, WeightsError> {
        let inner = if path.is_dir() { safe::in_folder(path)? } else { path.to_path_buf() };
        let mut weights = Weights {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            notes: Vec::new(),
            map: SAME.into(),
            unknown: Vec::new(),
        };
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        if inner.extension().is_some_and(|extension| extension == "json") {
            let (paths, places) = safe::shards(&inner)?;
            let shards = paths.iter().map(|path| weights.add(path)).collect::<Result<Vec<_>, _>>()?;
            for (name, shard) in places {
                let part = shards.get(shard).and_then(|parts| parts.get(&name)).cloned();
                let missing =
                    || WeightsError::from(FileError::Missing { path: paths[shard].clone(), name: name.clone() });
                parts.insert(name.clone(), part.ok_or_else(missing)?);
            }
        } else {
            parts = weights.add(&inner)?;
        }
        weights.bounded(parts.values())?;
        // Names of our own files begin with what the graph has them begin with.
        let (stripped, parts) = if weights.is_ours() { (None, parts) } else { without_prefixes(parts) };
        weights.notes.extend(stripped);
        weights.tensors = parts.into_iter().map(|(name, part)| (name, Entry::of(part))).collect();
        Ok(weights)
    }

    /// Opens weights as [`Weights::open`] does, with our names: by the map of this name, or by the one that knows most of the names.
    ///
    /// # Errors
    /// As [`Weights::open`]; the map is none, or parts of a tensor are missing or do not belong together.
    pub fn open_as_ours(path: &Path, map: Option<&str>) -> Result<Weights, WeightsError> {
        let weights = Weights::open(path)?;
        let map = match map {
            Some(name) => NameMap::named(name)?,
            None => weights.recognised()?,
        };
        weights.mapped(&map)
    }

    /// The map that knows most of the names; none in particular where that is less than half, or where the file is ours.
    fn recognised(&self) -> Result<NameMap, WeightsError> {
        if self.is_ours() {
            return Ok(NameMap::same());
        }
        let known = |map: &NameMap| map.covers(self.names());
        // The first of those that know equally many.
        let best =
            NameMap::all()?.into_iter().rev().max_by_key(known).filter(|map| 2 * known(map) >= self.tensors.len());
        Ok(best.unwrap_or_else(NameMap::same))
    }

    /// The same weights under our names. Names that the map does not know stay as they are.
    ///
    /// # Errors
    /// Parts of a tensor are missing or do not belong together, or two tensors get one name.
    pub fn mapped(self, map: &NameMap) -> Result<Weights, WeightsError> {
        let Weights { path, files, tensors, mut notes, .. } = self;
        let refused = |why: String| WeightsError::Refused { path: path.clone(), why };
        let (mut dropped, mut unknown) = (Vec::new(), Vec::new());
        let mut joined: BTreeMap<String, (Vec<Option<Part>>, bool)> = BTreeMap::new();
        for (name, entry) in tensors {
            let alone = Meaning::Part { ours: name.clone(), part: 0, parts: 1, transpose: false };
            let meaning = map.meaning(&name).unwrap_or_else(|| {
                unknown.push(name.clone());
                alone
            });
            let Meaning::Part { ours, part, parts, transpose } = meaning else {
                dropped.push(format!("`{name}`"));
                continue;
            };
            let (slots, _) = joined.entry(ours.clone()).or_insert_with(|| (vec![None; parts], transpose));
            match (slots.get_mut(part), entry.parts.into_iter().next()) {
                (Some(slot @ None), Some(part)) => *slot = Some(part),
                _ => {
                    return Err(refused(format!(
                        "map `{}` makes two tensors `{ours}`, one of them of `{name}`",
                        map.name()
                    )));
                }
            }
        }
        let mut mapped = BTreeMap::new();
        for (ours, (slots, transpose)) in joined {
            let theirs = map.theirs(&ours).map(|(names, _)| names).unwrap_or_default();
            if let Some(missing) = slots.iter().position(Option::is_none) {
                let part = theirs.get(missing).cloned().unwrap_or_default();
                return Err(refused(format!("`{ours}` is joined of {}, but `{part}` is missing", theirs.join(", "))));
            }
            let entry = Entry::joined(slots.into_iter().flatten().collect(), transpose);
            let entry =
                entry.map_err(|why| refused(format!("`{ours}` cannot be joined of {}: {why}", theirs.join(", "))))?;
            mapped.insert(ours, entry);
        }
        if !dropped.is_empty() {
            notes.push(format!("no weights, and left out: {}", dropped.join(", ")));
        }
        Ok(Weights { path, files, tensors: mapped, notes, map: map.name().into(), unknown })
    }

    /// Opens one file; its tensors by name.
    fn add(&mut self, path: &Path) -> Result<BTreeMap<String, Part>, WeightsError> {
        let mut start = [0u8; FIRST];
        let mut file = File::open(path).map_err(FileError::io(path, "read"))?;
        let mut length = 0;
        while length < start.len() {
            match file.read(&mut start[length..]).map_err(FileError::io(path, "read"))? {
                0 => break,
                more => length += more,
            }
        }
        let number = self.files.len();
        let torch = match &start[..length] {
            start if start.starts_with(b"PK\x03\x04") => Some(TorchFile::open_archive(path)?),
            start if is_legacy(start) => Some(TorchFile::open_legacy(path)?),
            [0x80, 2..=5, ..] => {
                let why =
                    "a pickle, but not one that `torch.save` wrote; save it with PyTorch, or as safetensors".into();
                return Err(WeightsError::Refused { path: path.to_path_buf(), why });
            }
            _ => None,
        };
        let Some(torch) = torch else {
            let file = TensorFile::open(path)?;
            let part = |name: String| {
                let info = file.info(&name)?;
                let shape = info.shape.iter().map(|&size| size as u64).collect();
                Some((name.clone(), Part { file: number, name, dtype: info.dtype, shape, view: None }))
            };
            let parts = file.names().into_iter().filter_map(part).collect();
            self.files.push(Source::Safe(file));
            return Ok(parts);
        };
        self.notes.extend(torch.notes.iter().cloned());
        let part = |(name, view): &(String, Tensor)| {
            let (dtype, shape) = (view.dtype, view.shape.clone());
            (name.clone(), Part { file: number, name: name.clone(), dtype, shape, view: Some(view.clone()) })
        };
        let parts = torch.tensors.iter().map(part).collect();
        self.files.push(Source::Torch(torch));
        Ok(parts)
    }

    /// Tensors may share what is stored, but not fill memory or a disk with it.
    fn bounded<'a>(&self, parts: impl Iterator<Item = &'a Part>) -> Result<(), WeightsError> {
        let length = self.files.iter().map(|file| match file {
            Source::Safe(file) => file.path().metadata().map_or(0, |data| data.len()),
            Source::Torch(file) => file.path().metadata().map_or(0, |data| data.len()),
        });
        let length: u64 = length.sum();
        let bytes = |part: &Part| {
            let elements = part.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
            elements
                .and_then(|elements| elements.checked_mul(part.dtype.bitsize() as u64))
                .map_or(u64::MAX, |bits| bits / 8)
        };
        let all = parts.fold(0u64, |sum, part| sum.saturating_add(bytes(part)));
        if all <= most_bytes(length) {
            return Ok(());
        }
        let why = format!("its tensors say that they have {all} bytes, but the file has {length}");
        Err(WeightsError::Refused { path: self.path.clone(), why })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name of the map that gave the names.
    pub fn map(&self) -> &str {
        &self.map
    }

    /// Whether it is an archive that `torch.jit.save` wrote.
    pub fn is_torchscript(&self) -> bool {
        self.files.iter().any(|file| matches!(file, Source::Torch(file) if file.is_script()))
    }

    /// The sizes of a CLIP with these weights, which have our names.
    ///
    /// # Errors
    /// They are no CLIP's as we know it; what shows it.
    pub fn shapes(&self) -> Result<Shapes, WeightsError> {
        let shape = |name: &str| self.info(name).map(|(_, shape)| shape.to_vec());
        Shapes::of(&shape).map_err(|why| {
            let why = format!("the weights are no CLIP's, whose sizes could be found: {why}");
            WeightsError::Refused { path: self.path.clone(), why }
        })
    }

    /// [`fingerprint`](crate::run::fingerprint) of names, types, shapes and elements of all tensors, however they are stored.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn fingerprint(&mut self) -> Result<String, WeightsError> {
        let names: Vec<String> = self.names().map(str::to_string).collect();
        let mut hash = ListHash::default();
        for name in names {
            let tensor = self.read(&name)?;
            hash.add(format!("{name} {:?} {:?}", tensor.dtype, tensor.shape).as_bytes());
            hash.add(&tensor.bytes);
        }
        Ok(hash.to_string())
    }

    /// Whether it is a file of our own, whose names are ours.
    pub fn is_ours(&self) -> bool {
        let has =
            |key: &&str| self.files.iter().any(|file| matches!(file, Source::Safe(file) if file.text(key).is_some()));
        OUR_KEYS.iter().any(has)
    }

    /// Whether it is a checkpoint of a run, which holds moments and counters beside the weights.
    pub fn is_checkpoint(&self) -> bool {
        self.files.iter().any(|file| matches!(file, Source::Safe(file) if file.text(CHECKPOINT).is_some()))
    }

    /// Names that the map did not know, and that stayed as they are.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }

    /// What was taken away or left out, and is worth telling, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(FileType, &[u64])> {
        self.tensors.get(name).map(|entry| (entry.dtype, entry.shape.as_slice()))
    }

    /// The file's own names of what a tensor is made of.
    pub fn names_in_file(&self, name: &str) -> impl Iterator<Item = &str> {
        self.tensors.get(name).into_iter().flat_map(|entry| entry.parts.iter().map(|part| part.name.as_str()))
    }

    /// Reads a tensor with the type that the file has.
    ///
    /// # Errors
    /// There is none of this name, or the file cannot be read or is damaged.
    pub fn read(&mut self, name: &str) -> Result<RawTensor, WeightsError> {
        let missing = || FileError::Missing { path: self.path.clone(), name: name.into() };
        let entry = self.tensors.get(name).cloned().ok_or_else(missing)?;
        let mut whole = RawTensor { dtype: entry.dtype, shape: entry.shape, bytes: Vec::new() };
        for part in &entry.parts {
            let tensor = match (&mut self.files[part.file], &part.view) {
                (Source::Torch(file), Some(view)) => file.read(view)?,
                (Source::Safe(file), _) => {
                    let bytes = file.raw(&part.name)?;
                    RawTensor { dtype: part.dtype, shape: part.shape.clone(), bytes }
                }
                (Source::Torch(_), None) => continue,
            };
            let tensor = if entry.transpose { tensor.transposed() } else { tensor };
            if whole.bytes.is_empty() { whole.bytes = tensor.bytes } else { whole.bytes.extend(tensor.bytes) }
        }
        Ok(whole)
    }

    /// The name of a weight in the file, or that of its average if averages are asked for and it has one.
    pub fn stored(&self, name: &str, average: bool) -> String {
        let averaged = format!("{AVERAGE}{name}");
        if average && self.info(&averaged).is_some() { averaged } else { name.to_string() }
    }

    /// Reads a tensor as the runtime holds it, converted as [`HostTensor::from_view`] does.
    ///
    /// # Errors
    /// As [`Weights::read`]; a tensor that cannot be converted.
    pub fn read_as(&mut self, name: &str, dtype: DType) -> Result<HostTensor, WeightsError> {
        let raw = self.read(name)?;
        let fail = |source| WeightsError::Tensor { path: self.path.clone(), name: name.into(), source };
        raw.to_host(dtype).map_err(fail)
    }
}

impl Entry {
    fn of(part: Part) -> Entry {
        Entry { dtype: part.dtype, shape: part.shape.clone(), parts: vec![part], transpose: false }
    }

    /// One of several along the first dimension.
    fn joined(parts: Vec<Part>, transpose: bool) -> Result<Entry, String> {
        let Some(first) = parts.first() else { return Err("nothing".into()) };
        let (dtype, mut shape) = (first.dtype, first.shape.clone());
        if transpose && shape.len() != 2 {
            return Err(format!("a matrix is transposed, and it has the shape {shape:?}"));
        }
        if transpose {
            shape.reverse();
        }
        if parts.len() > 1 {
            let of_part = |part: &Part| part.dtype == dtype && part.shape == first.shape;
            if transpose || shape.is_empty() || !parts.iter().all(of_part) {
                return Err("they have not the same type and shape".into());
            }
            shape[0] = shape[0].checked_mul(parts.len() as u64).ok_or("they are too large")?;
        }
        Ok(Entry { dtype, shape, parts, transpose })
    }
}

/// Takes away what stands before all names; says what.
fn without_prefixes(mut parts: BTreeMap<String, Part>) -> (Option<String>, BTreeMap<String, Part>) {
    let mut taken = String::new();
    while let Some(prefix) =
        PREFIXES.iter().find(|prefix| parts.keys().all(|name| name.len() > prefix.len() && name.starts_with(**prefix)))
        && !parts.is_empty()
    {
        parts = parts.into_iter().map(|(name, part)| (name[prefix.len()..].to_string(), part)).collect();
        taken += prefix;
    }
    let note = (!taken.is_empty()).then(|| format!("`{taken}` before all names was taken away"));
    (note, parts)
}

/// A JSON file of this name beside weights, or in their folder: `config.json`.
pub fn info_beside(weights: &Path, name: &str) -> Option<serde_json::Value> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    let text = std::fs::read_to_string(folder.join(name)).ok()?;
    serde_json::from_str(&text).ok()
}

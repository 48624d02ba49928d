//! What `torch.save` and `torch.jit.save` write: an archive with a pickle and the storages, or, before PyTorch 1.6, a file with
//! pickles and the storages behind them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::error::WeightsError;
use super::pickle::{Id, Pickle, PickleError, Storage, Tensor, Value};
use super::raw::RawTensor;
use crate::file::FileError;

/// The number that begins a file of the older format, as a pickle has it.
const LEGACY: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// Bytes that are enough to know a file by: from protocol 4 on the length of what comes stands before the number.
pub(super) const FIRST: usize = 32;

/// Whether a file that begins so is one of the older format.
pub(super) fn is_legacy(start: &[u8]) -> bool {
    start.starts_with(b"\x80") && start.windows(LEGACY.len()).any(|bytes| bytes == LEGACY)
}

/// Keys under which checkpoints hold the weights, in the order in which they are looked for.
const NESTED: [&str; 6] = ["state_dict", "model_state_dict", "model", "module", "net", "weights"];

/// Deepest nesting of modules or of dictionaries around the weights.
const MAX_DEPTH: usize = 64;

/// Most attributes of the modules of a TorchScript model, each as often as it is met, and most tensors of any file.
const MAX_PARTS: usize = 1 << 18;

/// Longest name of a tensor in bytes: what is longer is no name, and could be there a million times.
const MAX_NAME: usize = 1024;

/// Tensors with their names, in the order of a file.
type Named = Vec<(String, Tensor)>;

/// A file of PyTorch's, opened for reading.
pub(super) struct TorchFile {
    path: PathBuf,
    kept: Kept,
    storages: Vec<Storage>,
    /// Names and tensors in the order of the file.
    pub(super) tensors: Named,
    /// What was left out, or is otherwise worth saying.
    pub(super) notes: Vec<String>,
}

/// Where the storages are.
enum Kept {
    /// Members of an archive, by storage.
    Archive(Archive, Vec<Option<usize>>),
    /// Places in a file, by storage.
    File(File, Vec<Option<u64>>),
}

impl TorchFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or holds what is refused.
    pub(super) fn open_archive(path: &Path) -> Result<TorchFile, WeightsError> {
        let mut archive = Archive::open(path)?;
        if let Some(order) = archive.find("byteorder") {
            let mut text = String::new();
            archive.stream(order)?.take(16).read_to_string(&mut text).map_err(FileError::io(path, "read"))?;
            little(path, text.trim() == "little")?;
        }
        let member = archive.find("data.pkl").unwrap_or_default();
        let pickle = {
            let mut stream = BufReader::new(archive.stream(member)?);
            let pickle = Pickle::read(&mut stream).map_err(|error| explained(path, error))?;
            // At its end the checksum is compared.
            let rest = std::io::copy(&mut stream, &mut std::io::sink());
            rest.map_err(|error| explained(path, PickleError::Io(error)))?;
            pickle
        };
        let member_of = |storage: &Storage| archive.find(&format!("data/{}", storage.key));
        let members: Vec<Option<usize>> = pickle.storages.iter().map(member_of).collect();
        for (storage, member) in pickle.storages.iter().zip(&members) {
            if member.is_some_and(|member| archive.size(member) < storage.bytes) {
                let why = format!(
                    "storage `{}` has {} bytes, fewer than it says",
                    storage.key,
                    archive.size(member.unwrap_or_default())
                );
                return Err(FileError::Damaged { path: path.to_path_buf(), why }.into());
            }
        }
        let (tensors, notes) = named(path, &pickle)?;
        Ok(TorchFile {
            path: path.to_path_buf(),
            kept: Kept::Archive(archive, members),
            storages: pickle.storages,
            tensors,
            notes,
        })
    }

    /// Opens a file of the older format.
    ///
    /// # Errors
    /// As [`TorchFile::open_archive`].
    pub(super) fn open_legacy(path: &Path) -> Result<TorchFile, WeightsError> {
        let file = File::open(path).map_err(FileError::io(path, "read"))?;
        let mut stream = BufReader::new(file);
        let mut next = || Pickle::read(&mut stream).map_err(|error| explained(path, error));
        let (_magic, _protocol, system, pickle, keys) = (next()?, next()?, next()?, next()?, next()?);
        let says_little = |&(key, value): &(Id, Id)| {
            system.text(key) == Some("little_endian") && !matches!(system.get(value), Value::Bool(true))
        };
        little(path, !system.dict(system.root).is_some_and(|entries| entries.iter().any(says_little)))?;
        let places = legacy_places(path, &mut stream, &pickle, &keys)?;
        let (tensors, notes) = named(path, &pickle)?;
        let kept = Kept::File(stream.into_inner(), places);
        Ok(TorchFile { path: path.to_path_buf(), kept, storages: pickle.storages, tensors, notes })
    }

    /// Whether `torch.jit.save` wrote it: beside the pickle of the modules it has one of constants.
    pub(super) fn is_script(&self) -> bool {
        matches!(&self.kept, Kept::Archive(archive, _) if archive.find("constants.pkl").is_some())
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// Its storage is missing or damaged, or the file cannot be read.
    pub(super) fn read(&mut self, tensor: &Tensor) -> Result<RawTensor, WeightsError> {
        let size = tensor.element_bytes();
        let (start, length) = (tensor.offset * size, tensor.span().unwrap_or(0) * size);
        let bytes = self.bytes(tensor.storage as usize, start, length)?;
        let bytes = if tensor.is_dense() { bytes } else { gathered(tensor, &bytes) };
        Ok(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }

    fn bytes(&mut self, storage: usize, start: u64, length: u64) -> Result<Vec<u8>, WeightsError> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let missing = || {
            let key = self.storages.get(storage).map_or("", |storage| storage.key.as_str());
            let why = format!("storage `{key}` of a tensor is not in the file");
            WeightsError::from(FileError::Damaged { path: self.path.clone(), why })
        };
        match &mut self.kept {
            Kept::Archive(archive, members) => {
                let member = members.get(storage).copied().flatten().ok_or_else(missing)?;
                archive.read(member, start, length)
            }
            Kept::File(file, places) => {
                let at = places.get(storage).copied().flatten().ok_or_else(missing)?;
                let size = file.metadata().map_err(FileError::io(&self.path, "read"))?.len();
                let from = at.saturating_add(start);
                if from.checked_add(length).is_none_or(|end| end > size) {
                    let why = "a tensor reaches beyond the end of the file".into();
                    return Err(FileError::Damaged { path: self.path.clone(), why }.into());
                }
                let mut bytes = vec![0; length as usize];
                let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(FileError::io(&self.path, "read"))?;
                Ok(bytes)
            }
        }
    }
}

/// Where the storages lie behind the pickles: one after the other in the order of the keys, each after its number of elements.
fn legacy_places(
    path: &Path,
    stream: &mut BufReader<File>,
    pickle: &Pickle,
    keys: &Pickle,
) -> Result<Vec<Option<u64>>, WeightsError> {
    let damaged = |why: String| WeightsError::from(FileError::Damaged { path: path.to_path_buf(), why });
    let length = stream.get_ref().metadata().map_err(FileError::io(path, "read"))?.len();
    let mut at = stream.stream_position().map_err(FileError::io(path, "read"))?;
    let mut places = vec![None; pickle.storages.len()];
    let mut by_key: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, storage) in pickle.storages.iter().enumerate() {
        by_key.entry(&storage.key).or_default().push(number);
    }
    let Value::List(order) = keys.get(keys.root) else {
        return Err(damaged("the list of its storages is missing".into()));
    };
    for &key in order {
        let key = keys.text(key).unwrap_or_default();
        let Some(numbers) = by_key.remove(key) else { return Err(damaged(format!("storage `{key}` is of no tensor"))) };
        let mut count = [0; 8];
        stream.seek(SeekFrom::Start(at)).map_err(FileError::io(path, "read"))?;
        stream.read_exact(&mut count).map_err(|_| damaged("the file is cut short between its storages".into()))?;
        let elements = u64::from_le_bytes(count);
        let mut bytes = 0;
        for storage in numbers.iter().map(|&number| &pickle.storages[number]) {
            bytes = storage.bytes;
            // PyTorch writes no storage that is read as several types.
            if elements.checked_mul(storage.element.unwrap_or(1)) != Some(bytes) {
                return Err(damaged(format!("storage `{key}` has {elements} elements, other than it says")));
            }
        }
        numbers.iter().for_each(|&number| places[number] = Some(at + 8));
        at = (at + 8).saturating_add(bytes);
        if at > length {
            return Err(damaged(format!(
                "the file is cut short: it has {length} bytes, its storages end at {at} or later"
            )));
        }
    }
    Ok(places)
}

/// Elements of a tensor whose bytes from the first to the last are given, row-major.
fn gathered(tensor: &Tensor, bytes: &[u8]) -> Vec<u8> {
    let size = tensor.element_bytes() as usize;
    let elements = tensor.elements().unwrap_or(0) as usize;
    let mut gathered = Vec::with_capacity(elements * size);
    let mut index = vec![0u64; tensor.shape.len()];
    let mut at = 0u64;
    for _ in 0..elements {
        gathered.extend_from_slice(&bytes[at as usize * size..][..size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += tensor.strides[axis];
            if index[axis] < tensor.shape[axis] {
                break;
            }
            at -= tensor.strides[axis] * tensor.shape[axis];
            index[axis] = 0;
        }
    }
    gathered
}

fn little(path: &Path, is_little: bool) -> Result<(), WeightsError> {
    let why = "it was written on a big-endian machine; save it again on another";
    if is_little { Ok(()) } else { Err(WeightsError::Refused { path: path.to_path_buf(), why: why.into() }) }
}

fn explained(path: &Path, error: PickleError) -> WeightsError {
    let path = path.to_path_buf();
    match error {
        PickleError::Cut => {
            FileError::Damaged { path, why: "the file is cut short: it ends inside its pickle".into() }.into()
        }
        PickleError::Wrong(why) => FileError::Damaged { path, why: format!("its pickle is damaged: {why}") }.into(),
        PickleError::Io(source) => {
            FileError::Damaged { path, why: format!("its pickle cannot be read: {source}") }.into()
        }
        PickleError::Refused(why) => WeightsError::Refused { path, why: format!("the pickle in it is refused: {why}") },
    }
}

/// The tensors of a state dictionary, wherever in the pickle it is, and what is told of the rest.
fn named(path: &Path, pickle: &Pickle) -> Result<(Named, Vec<String>), WeightsError> {
    let mut notes = Vec::new();
    let mut at = pickle.root;
    for _ in 0..MAX_DEPTH {
        let Value::Dict(entries) = pickle.get(at) else { break };
        if entries.iter().any(|&(_, value)| matches!(pickle.get(value), Value::Tensor(_))) {
            break;
        }
        let holds = |wanted: &str| {
            let is_it = |&&(key, value): &&(Id, Id)| {
                pickle.text(key) == Some(wanted) && matches!(pickle.get(value), Value::Dict(_) | Value::Object(_))
            };
            entries.iter().find(is_it).map(|&(_, value)| value)
        };
        let Some((key, inner)) = NESTED.iter().find_map(|key| Some((*key, holds(key)?))) else { break };
        let others: Vec<Id> = entries.iter().filter(|(_, value)| *value != inner).map(|&(name, _)| name).collect();
        let rest = if others.is_empty() { String::new() } else { format!("; left out: {}", listed(pickle, &others)) };
        notes.push(format!("the weights are those under `{key}`{rest}"));
        at = inner;
    }
    let tensors = match pickle.get(at) {
        Value::Object(_) => of_modules(path, pickle, at)?,
        Value::Dict(entries) => of_dict(path, pickle, entries, &mut notes)?,
        _ => Vec::new(),
    };
    if tensors.is_empty() {
        let why = "it holds no weights: neither a dictionary of tensors nor one under `state_dict` or `model`; save `model.state_dict()`";
        return Err(WeightsError::Refused { path: path.to_path_buf(), why: why.into() });
    }
    Ok((tensors, notes))
}

/// Names for people, of many only the first.
fn listed(pickle: &Pickle, names: &[Id]) -> String {
    const SHOWN: usize = 8;
    let first: Vec<String> = names.iter().take(SHOWN).map(|&id| shown(pickle, id)).collect();
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => first.join(", "),
        Some(more) => format!("{} and {more} more", first.join(", ")),
    }
}

fn shown(pickle: &Pickle, id: Id) -> String {
    match pickle.get(id) {
        Value::Str(text) => format!("`{}`", text.chars().take(60).collect::<String>()),
        Value::Int(number) => format!("`{number}`"),
        _ => "an entry without a name".into(),
    }
}

fn of_dict(path: &Path, pickle: &Pickle, entries: &[(Id, Id)], notes: &mut Vec<String>) -> Result<Named, WeightsError> {
    let (mut tensors, mut others) = (Vec::new(), Vec::new());
    for &(key, value) in entries {
        match (pickle.get(key), pickle.get(value)) {
            (Value::Str(name), Value::Tensor(tensor)) if name.len() <= MAX_NAME && tensors.len() < MAX_PARTS => {
                tensors.push((name.clone(), tensor.clone()));
            }
            (_, Value::Tensor(_)) => {
                let why =
                    format!("it has more than {MAX_PARTS} tensors, or one whose name is longer than {MAX_NAME} bytes");
                return Err(WeightsError::Refused { path: path.to_path_buf(), why });
            }
            (_, Value::Opaque(class)) => {
                let why = format!("{} among the weights is {class} and no tensor", shown(pickle, key));
                return Err(WeightsError::Refused { path: path.to_path_buf(), why });
            }
            _ => others.push(key),
        }
    }
    if !others.is_empty() && !tensors.is_empty() {
        notes.push(format!("no tensors, and left out: {}", listed(pickle, &others)));
    }
    Ok(tensors)
}

/// Tensors among the attributes of a module and of those in it, by their paths.
fn of_modules(path: &Path, pickle: &Pickle, root: Id) -> Result<Named, WeightsError> {
    let mut walk = Walk { pickle, tensors: Vec::new(), open: Vec::new(), left: MAX_PARTS };
    let walked = walk.module(root, "");
    walked.map_err(|why| WeightsError::Refused { path: path.to_path_buf(), why })?;
    Ok(walk.tensors)
}

/// A walk through the modules of a model.
struct Walk<'a> {
    pickle: &'a Pickle,
    tensors: Named,
    /// Modules in which the walk is. One that holds itself is not entered again.
    open: Vec<Id>,
    /// Attributes that may still be looked at: modules may be shared, and lead to as many paths as anyone likes.
    left: usize,
}

impl Walk<'_> {
    fn module(&mut self, module: Id, path: &str) -> Result<(), String> {
        let pickle = self.pickle;
        let &Value::Object(Some(attributes)) = pickle.get(module) else { return Ok(()) };
        if self.open.len() > MAX_DEPTH {
            return Err(format!("its modules lie in each other more than {MAX_DEPTH} deep"));
        }
        self.open.push(module);
        for &(key, value) in pickle.dict(attributes).unwrap_or_default() {
            let left = self.left.checked_sub(1);
            self.left = left.ok_or_else(|| format!("its modules have more than {MAX_PARTS} attributes"))?;
            let is_part = match pickle.get(value) {
                Value::Tensor(_) => true,
                Value::Object(_) => !self.open.contains(&value),
                _ => false,
            };
            let Some(name) = pickle.text(key).filter(|_| is_part) else { continue };
            if path.len() + name.len() >= MAX_NAME {
                return Err(format!("it has a tensor or a module whose name is longer than {MAX_NAME} bytes"));
            }
            let name = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            match pickle.get(value) {
                Value::Tensor(tensor) => self.tensors.push((name, tensor.clone())),
                _ => self.module(value, &name)?,
            }
        }
        self.open.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the older format with this pickle, the list of these keys, and these bytes behind it.
    fn legacy(pickle: &[u8], keys: &[u8], storages: &[u8]) -> Vec<u8> {
        let first = [b"\x80\x02", LEGACY, b".", b"\x80\x02M\xe9\x03.", b"\x80\x02}."].concat();
        [&first[..], b"\x80\x02", pickle, b".", b"\x80\x02](", keys, b"e.", storages].concat()
    }

    fn refused(file: &[u8], message: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pt");
        std::fs::write(&path, file).unwrap();
        let error = TorchFile::open_legacy(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    /// A tensor of two elements that lies in storage `0` of this type and size, with this behind its hooks.
    fn tensor(storage: &str, elements: &[u8], more: &[u8]) -> Vec<u8> {
        let kind = format!("((X\x07\0\0\0storagectorch\n{storage}\nX\x01\0\0\x000X\x03\0\0\0cpu");
        let rest = b"tQK\x00K\x02\x85K\x01\x85\x89}";
        [b"ctorch._utils\n_rebuild_tensor_v2\n", kind.as_bytes(), elements, rest, more, b"tR"].concat()
    }

    const KEY: &[u8] = b"X\x01\0\0\x000";
    const TWO: &[u8] = b"\x02\0\0\0\0\0\0\0AAAABBBB";

    #[test]
    fn negated_views_are_refused() {
        let file = |more: &[u8]| {
            let tensor = tensor("FloatStorage", b"K\x02", more);
            legacy(&[b"}X\x01\0\0\0w", &tensor[..], b"s"].concat(), KEY, TWO)
        };
        refused(&file(b"}X\x03\0\0\0neg\x88s"), "it has a tensor that is a negated or conjugate view");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pt");
        for none in [&b""[..], b"N", b"}"] {
            std::fs::write(&path, file(none)).unwrap();
            let mut file = TorchFile::open_legacy(&path).unwrap_or_else(|error| panic!("{error}"));
            let tensor = file.tensors[0].1.clone();
            assert_eq!(file.read(&tensor).unwrap().bytes, b"AAAABBBB");
        }
    }

    /// A storage says how large it is once for each type that it is read as, and the file once.
    #[test]
    fn storages_of_two_sizes_are_refused() {
        let (sound, large) =
            (tensor("FloatStorage", b"K\x02", b""), tensor("ByteStorage", b"\x8a\x08\0\0\0\0\0\0\0\x40", b""));
        let pickle = [b"}(X\x01\0\0\0a", &sound[..], b"X\x01\0\0\0b", &large, b"u"].concat();
        refused(&legacy(&pickle, KEY, TWO), "storage `0` has 2 elements, other than it says");
    }

    /// What is made of few bytes is counted, so that neither memory nor time can be had for nothing.
    #[test]
    fn sharing_is_bounded() {
        let pairs = b"K\0K\0\x86".repeat(50_000);
        let again = b"h\x01h\x00\x85R0".repeat(100);
        let pickle = [b"ccollections\nOrderedDict\nq\x010]q\0(", &pairs[..], b"e0", &again, b"N"].concat();
        refused(&legacy(&pickle, b"", b""), "its tuples, lists and dictionaries have more than");
        let many = [b"c__torch__\nM\n(", &b"N".repeat(17)[..], b"tR"].concat();
        refused(&legacy(&many, b"", b""), "a call has more than 16 arguments");
        let module = |attributes: &[u8]| {
            [b"c__torch__\nM\n)\x81q\0X\x01\0\0\0aq\x010}(", attributes, b"uq\x020h\0h\x02b"].concat()
        };
        refused(&legacy(&module(b"h\x01h\0"), b"", b""), "it holds no weights");
        refused(
            &legacy(&module(&b"h\x01h\0".repeat(300_000)), b"", b""),
            "its modules have more than 262144 attributes",
        );
    }
}

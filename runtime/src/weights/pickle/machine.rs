//! The machine that runs a pickle: it makes values and calls nothing.

use std::collections::HashMap;
use std::io::Read;

use safetensors::tensor::Dtype as FileType;

use super::{Id, MAX_PICKLE, MAX_RANK, Pickle, PickleError, Result, Storage, Tensor, Value, wrong};
use crate::weights::globals::{Global, global};

/// Most values, entries of the stack and memorised values: several times what so large a checkpoint has.
const MAX_VALUES: usize = 2 << 20;

/// Most elements of all tuples, lists and dictionaries together: nearly every value lies in one of them, few in two.
const MAX_ELEMENTS: usize = 2 * MAX_VALUES;

/// Most arguments of a call; what makes a tensor has eight.
const MAX_ARGS: usize = 16;

/// Longest name of a global or key of a storage in bytes: longer than any there is, and short enough to be copied for every value.
const MAX_KEY: usize = 1024;

/// What a pickle is a program for: its instructions put values on a stack.
pub(super) struct Machine<'a> {
    stream: &'a mut dyn Read,
    /// Bytes that may still be read.
    left: u64,
    pickle: Pickle,
    /// Storages by key, several where they are read as several types, and these types.
    by_key: HashMap<String, Vec<u32>>,
    types: Vec<Option<FileType>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Of all that was made.
    elements: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(stream: &'a mut dyn Read) -> Machine<'a> {
        Machine {
            stream,
            left: MAX_PICKLE,
            pickle: Pickle { values: Vec::new(), storages: Vec::new(), root: 0 },
            by_key: HashMap::new(),
            types: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            elements: 0,
        }
    }
}

impl Machine<'_> {
    pub(super) fn run(mut self) -> Result<Pickle> {
        loop {
            let [code] = self.bytes::<1>()?;
            if code == b'.' {
                self.pickle.root = self.pop()?;
                return Ok(self.pickle);
            }
            self.step(code)?;
            if self.stack.len().max(self.memo.len()).max(self.pickle.values.len()) > MAX_VALUES {
                return Err(PickleError::Refused(format!("it has more than {MAX_VALUES} values")));
            }
        }
    }

    /// One instruction, by the names of Python's `pickletools`.
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => match self.bytes::<1>()? {
                [2..=5] => Ok(()),
                [other] => wrong(format!("it is of protocol {other}; 2 to 5 are known")),
            },
            0x95 => self.bytes::<8>().map(drop), // FRAME
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.bytes::<1>().and_then(|[byte]| self.push(Value::Int(byte.into()))),
            b'M' => self.bytes().and_then(|bytes| self.push(Value::Int(u16::from_le_bytes(bytes).into()))),
            b'J' => self.bytes().and_then(|bytes| self.push(Value::Int(i32::from_le_bytes(bytes).into()))),
            0x8a => self.long(),
            b'G' => self.bytes::<8>().and_then(|_| self.push(Value::Float)),
            b'X' => self.length::<4>().and_then(|length| self.string(length)),
            0x8c => self.length::<1>().and_then(|length| self.string(length)),
            0x8d => self.length::<8>().and_then(|length| self.string(length)),
            b'U' => self.length::<1>().and_then(|length| self.string(length)),
            b'T' => self.length::<4>().and_then(|length| self.string(length)),
            b'C' => self.length::<1>().and_then(|length| self.opaque_bytes(length)),
            b'B' => self.length::<4>().and_then(|length| self.opaque_bytes(length)),
            0x8e | 0x96 => self.length::<8>().and_then(|length| self.opaque_bytes(length)),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => self.tuple(usize::from(code) - 0x84),
            b't' | 0x91 => self.marked().and_then(|items| self.push(Value::Tuple(items))),
            b'l' => self.marked().and_then(|items| self.push(Value::List(items))),
            b'd' => self.marked().and_then(|items| self.push(Value::Dict(pairs(items)?))),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' | 0x90 => self.marked().and_then(|items| self.append(items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![(key, value)])
            }
            b'u' => self.marked().and_then(|items| self.set_items(pairs(items)?)),
            b'(' => {
                self.marks.push(self.stack.len());
                if self.marks.len() > MAX_VALUES { wrong("it has too many marks") } else { Ok(()) }
            }
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'2' => self.top().map(|top| self.stack.push(top)),
            b'h' => self.length::<1>().and_then(|index| self.recall(index)),
            b'j' => self.length::<4>().and_then(|index| self.recall(index)),
            b'q' => self.length::<1>().and_then(|index| self.remember(index)),
            b'r' => self.length::<4>().and_then(|index| self.remember(index)),
            0x94 => self.remember(self.memo.len() as u64),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.pickle.text(module), self.pickle.text(name)) {
                    (Some(module), Some(name)) if module.len().max(name.len()) > MAX_KEY => long_name(),
                    (Some(module), Some(name)) => {
                        let (module, name) = (module.to_string(), name.to_string());
                        self.push_global(&module, &name)
                    }
                    _ => wrong("a global has no name"),
                }
            }
            b'R' | 0x81 => {
                let (args, callee) = (self.pop()?, self.pop()?);
                self.apply(callee, args)
            }
            0x92 => {
                let (_, args, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.apply(callee, args)
            }
            b'b' => self.build(),
            b'Q' => self.storage(),
            other => wrong(format!("the byte {other:#04x} is no instruction of protocols 2 to 5")),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.left = self.left.checked_sub(N as u64).ok_or_else(too_long)?;
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(ended)?;
        Ok(bytes)
    }

    fn length<const N: usize>(&mut self) -> Result<u64> {
        let bytes = self.bytes::<N>()?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// So many bytes; memory grows with what is there, whatever the length says.
    fn read(&mut self, length: u64) -> Result<Vec<u8>> {
        self.left = self.left.checked_sub(length).ok_or_else(too_long)?;
        let mut bytes = Vec::new();
        self.stream.take(length).read_to_end(&mut bytes).map_err(ended)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(PickleError::Cut) }
    }

    fn string(&mut self, length: u64) -> Result<()> {
        let bytes = self.read(length)?;
        self.push(Value::Str(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn opaque_bytes(&mut self, length: u64) -> Result<()> {
        self.read(length)?;
        self.push(Value::Bytes)
    }

    fn long(&mut self) -> Result<()> {
        let length = self.length::<1>()?;
        let bytes = self.read(length)?;
        if bytes.len() > 8 {
            return self.push(Value::Long);
        }
        // The sign is that of the last byte.
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut word = [fill; 8];
        word[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(word)))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        loop {
            match self.bytes::<1>()? {
                [b'\n'] => return Ok(String::from_utf8_lossy(&line).into_owned()),
                [_] if line.len() >= MAX_KEY => return long_name(),
                [byte] => line.push(byte),
            }
        }
    }

    fn push(&mut self, value: Value) -> Result<()> {
        self.count(match &value {
            Value::Tuple(items) | Value::List(items) => items.len(),
            Value::Dict(entries) => entries.len(),
            Value::Tensor(tensor) => 2 * tensor.shape.len(),
            _ => 0,
        })?;
        self.stack.push(self.pickle.values.len() as Id);
        self.pickle.values.push(value);
        Ok(())
    }

    /// Counts what a value holds, once for each time that it is copied.
    fn count(&mut self, more: usize) -> Result<()> {
        self.elements = self.elements.saturating_add(more);
        if self.elements <= MAX_ELEMENTS {
            return Ok(());
        }
        let why = format!("its tuples, lists and dictionaries have more than {MAX_ELEMENTS} elements");
        Err(PickleError::Refused(why))
    }

    fn pop(&mut self) -> Result<Id> {
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return wrong("it takes more than there is");
        }
        self.stack.pop().map_or_else(|| wrong("it takes more than there is"), Ok)
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().map_or_else(|| wrong("it takes more than there is"), Ok)
    }

    /// What stands above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => wrong("a mark is missing"),
        }
    }

    fn tuple(&mut self, length: usize) -> Result<()> {
        let mut items = (0..length).map(|_| self.pop()).collect::<Result<Vec<Id>>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, more: Vec<Id>) -> Result<()> {
        self.count(more.len())?;
        let list = self.top()?;
        match self.pickle.values.get_mut(list as usize) {
            Some(Value::List(items)) => items.extend(more),
            Some(Value::Opaque(_)) => {}
            _ => return wrong("it appends to what is no list"),
        }
        Ok(())
    }

    fn set_items(&mut self, more: Vec<(Id, Id)>) -> Result<()> {
        self.count(more.len())?;
        let dict = self.top()?;
        match self.pickle.values.get_mut(dict as usize) {
            Some(Value::Dict(entries)) => entries.extend(more),
            Some(Value::Opaque(_)) => {}
            _ => return wrong("it sets items of what is no dictionary"),
        }
        Ok(())
    }

    fn remember(&mut self, index: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index as u32, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        match self.memo.get(&(index as u32)) {
            Some(&id) => self.stack.push(id),
            None => return wrong(format!("it recalls value {index}, which it never remembered")),
        }
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        match global(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(PickleError::Refused(format!(
                "it asks for `{module}.{name}`, which is nothing that weights need and may run anything; nothing was run"
            ))),
        }
    }

    /// What the application of a global stands for.
    fn apply(&mut self, callee: Id, args: Id) -> Result<()> {
        let Value::Global(callee) = *self.pickle.get(callee) else { return wrong("it calls what is no global") };
        let Some(given) = self.pickle.items(args) else { return wrong("a call has no arguments") };
        if callee == Global::Sequence && !given.is_empty() {
            // A tuple of the arguments is what they are already; nothing is copied.
            self.stack.push(args);
            return Ok(());
        }
        let args = few(given)?.to_vec();
        let value = self.applied(callee, &args)?;
        self.push(value)
    }

    fn applied(&mut self, callee: Global, args: &[Id]) -> Result<Value> {
        let first = args.first().map(|&id| self.pickle.get(id));
        match (callee, first) {
            (Global::Rebuild { dtype_at }, _) => self.tensor(args, dtype_at).map(Value::Tensor),
            (Global::Parameter, Some(value @ Value::Tensor(_))) => Ok(value.clone()),
            (Global::FromType, Some(&Value::Global(Global::Rebuild { dtype_at }))) => {
                let own = args.get(2).and_then(|&id| self.pickle.items(id)).unwrap_or_default();
                self.tensor(few(own)?, dtype_at).map(Value::Tensor)
            }
            (Global::Dict, _) => self.dict(args),
            (Global::Sequence, _) => Ok(Value::Tuple(Vec::new())),
            (Global::Class, _) => Ok(Value::Object(None)),
            (Global::Opaque(name), _) => Ok(Value::Opaque(name)),
            _ => wrong("a call has the wrong arguments"),
        }
    }

    /// `OrderedDict()`, also with a list of pairs, and `defaultdict(factory)`.
    fn dict(&self, args: &[Id]) -> Result<Value> {
        let pair = |&id: &Id| match self.pickle.items(id) {
            Some(&[key, value]) => Ok((key, value)),
            _ => wrong("an entry of a dictionary is no pair"),
        };
        let given = args.first().and_then(|&id| self.pickle.items(id));
        Ok(Value::Dict(given.unwrap_or_default().iter().map(pair).collect::<Result<_>>()?))
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)`; the third version has the type before the
    /// metadata.
    fn tensor(&self, args: &[Id], dtype_at: Option<usize>) -> Result<Tensor> {
        let pickle = &self.pickle;
        let &[storage, offset, shape, strides, ..] = args else { return wrong("a tensor has too few arguments") };
        let &Value::Storage(storage) = pickle.get(storage) else { return wrong("a tensor has no storage") };
        let Some(offset) = pickle.number(offset) else { return wrong("a tensor begins nowhere") };
        let (Some(shape), Some(strides)) = (pickle.numbers(shape), pickle.numbers(strides)) else {
            return wrong("a tensor has no shape");
        };
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return wrong("a tensor's shape and strides do not belong together");
        }
        let given = dtype_at.map(|at| args.get(at).map(|&id| pickle.get(id)));
        let of_storage = self.storage_type(storage);
        let dtype = match given {
            Some(Some(&Value::Global(Global::Dtype(dtype)))) => Some(dtype),
            Some(_) => None,
            None => of_storage,
        };
        let Some(dtype) = dtype else { return wrong("a tensor has no type") };
        // Behind what all tensors have stands whether their elements are to be negated or conjugated.
        let metadata = args.get(dtype_at.map_or(6, |at| at + 1)).map(|&id| pickle.get(id));
        if metadata
            .is_some_and(|data| !matches!(data, Value::None) && !matches!(data, Value::Dict(all) if all.is_empty()))
        {
            return Err(PickleError::Refused(
                "it has a tensor that is a negated or conjugate view, or has other metadata; save `tensor.clone()`, or \
                 `tensor.resolve_neg().resolve_conj()`"
                    .into(),
            ));
        }
        let tensor = Tensor { storage, dtype, offset, shape, strides };
        match pickle.storages.get(storage as usize) {
            Some(storage) if tensor.end().is_some_and(|end| end <= storage.bytes) => Ok(tensor),
            _ => wrong("a tensor is larger than its storage"),
        }
    }

    fn storage_type(&self, storage: u32) -> Option<FileType> {
        self.types.get(storage as usize).copied().flatten()
    }

    /// `build` gives an object its attributes; those of a dictionary or a tensor are nothing to us.
    fn build(&mut self) -> Result<()> {
        let (state, object) = (self.pop()?, self.top()?);
        match self.pickle.values.get_mut(object as usize) {
            Some(Value::Object(attributes)) => *attributes = Some(state),
            Some(Value::Dict(_) | Value::Opaque(_) | Value::Tensor(_)) => {}
            _ => return wrong("it gives attributes to what has none"),
        }
        Ok(())
    }

    /// `('storage', type, key, location, elements)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let items = few(self.pickle.items(id).unwrap_or_default())?.to_vec();
        let &[what, kind, key, _, elements, ref view @ ..] = &items[..] else {
            return wrong("what lies outside of it is no storage");
        };
        let pickle = &self.pickle;
        let (Some("storage"), Value::Global(Global::Storage(dtype)), Some(key), Some(elements)) =
            (pickle.text(what), pickle.get(kind), pickle.text(key), pickle.number(elements))
        else {
            return wrong("what lies outside of it is no storage");
        };
        if view.iter().any(|&view| !matches!(pickle.get(view), Value::None)) {
            return Err(PickleError::Refused(
                "it has a storage that is part of another; save it with a newer PyTorch".into(),
            ));
        }
        if key.len() > MAX_KEY {
            return wrong("the key of a storage is too long");
        }
        let (dtype, key) = (*dtype, key.to_string());
        let element = dtype.map(|dtype| dtype.bitsize() as u64 / 8);
        let Some(bytes) = elements.checked_mul(element.unwrap_or(1)) else { return wrong("a storage has no size") };
        let storage = Storage { key, bytes, element };
        let known = self.by_key.entry(storage.key.clone()).or_default();
        // Two types of one storage are two views of the same bytes.
        let number = match known.iter().find(|&&number| self.types[number as usize] == dtype) {
            Some(&number) => number,
            None => {
                let number = self.pickle.storages.len() as u32;
                known.push(number);
                self.pickle.storages.push(storage);
                self.types.push(dtype);
                number
            }
        };
        self.push(Value::Storage(number))
    }
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => wrong("a key has no value"),
    }
}

/// The arguments of a call, which are copied.
fn few(args: &[Id]) -> Result<&[Id]> {
    if args.len() <= MAX_ARGS { Ok(args) } else { wrong(format!("a call has more than {MAX_ARGS} arguments")) }
}

fn long_name<T>() -> Result<T> {
    wrong("the name of a global is too long")
}

fn too_long() -> PickleError {
    PickleError::Refused(format!("it has more than {MAX_PICKLE} bytes"))
}

fn ended(error: std::io::Error) -> PickleError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => PickleError::Cut,
        _ => PickleError::Io(error),
    }
}

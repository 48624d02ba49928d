//! A reader of pickles that knows tensors and plain containers and nothing else.
//!
//! Invariants:
//! - Nothing is ever called. A global is one that [`super::globals::global`] knows, or it is refused by its name where it is met, used or not.
//! - What is read of a stream is bounded by its length before memory is taken, what it makes by `MAX_VALUES`: values lie in one
//!   list and refer to each other by number, and what they hold is counted (`MAX_ELEMENTS`), so that no nesting, sharing or circle of
//!   them can exhaust anything.
//!
//! Protocols 2 to 5 of Python's `pickle`, as `torch.save` and `torch.jit.save` write them. Here is what they hold; `machine` reads them.

mod machine;

use std::io::Read;

use safetensors::tensor::Dtype as FileType;

use self::machine::Machine;
use super::globals::Global;

/// Most bytes of a pickle: that of a checkpoint with ten thousand tensors and its optimiser has three million.
pub(super) const MAX_PICKLE: u64 = 64 << 20;

/// Most dimensions of a tensor; that of a video model has six.
const MAX_RANK: usize = 16;

/// A value by its number.
pub(super) type Id = u32;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits.
    Long,
    Float,
    Str(String),
    Bytes,
    /// Of a class that checkpoints have beside their weights, by its name.
    Opaque(&'static str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Index into [`Pickle::storages`].
    Storage(u32),
    Tensor(Tensor),
    /// An object of a TorchScript archive, with its attributes.
    Object(Option<Id>),
}

/// A tensor: a view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// Index into [`Pickle::storages`].
    pub(super) storage: u32,
    pub(super) dtype: FileType,
    /// In elements, as the strides.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// Where elements lie, by the key under which the container has them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) bytes: u64,
    /// Bytes of an element where the storage has a type.
    pub(super) element: Option<u64>,
}

/// Why bytes are no pickle of weights.
#[derive(Debug)]
pub(super) enum PickleError {
    /// They end too early.
    Cut,
    /// They are none.
    Wrong(String),
    /// They hold what weights need not.
    Refused(String),
    /// They cannot be read.
    Io(std::io::Error),
}

type Result<T> = std::result::Result<T, PickleError>;

fn wrong<T>(why: impl Into<String>) -> Result<T> {
    Err(PickleError::Wrong(why.into()))
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) storages: Vec<Storage>,
    pub(super) root: Id,
}

impl Pickle {
    /// Reads one pickle; the stream stands behind it then.
    pub(super) fn read(stream: &mut dyn Read) -> Result<Pickle> {
        Machine::new(stream).run()
    }

    /// A value.
    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// A string.
    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Entries of a dictionary.
    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    fn number(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The numbers of a shape.
    fn numbers(&self, id: Id) -> Option<Vec<u64>> {
        let items = self.items(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&item| self.number(item)).collect()
    }
}

impl Tensor {
    /// Number of elements, if 64 bits hold their bytes.
    pub(super) fn elements(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))?;
        elements.checked_mul(self.element_bytes())?;
        Some(elements)
    }

    pub(super) fn element_bytes(&self) -> u64 {
        self.dtype.bitsize() as u64 / 8
    }

    /// Elements from the first to the last that it has, those between included.
    pub(super) fn span(&self) -> Option<u64> {
        if self.elements()? == 0 {
            return Some(0);
        }
        let steps = self.shape.iter().zip(&self.strides);
        let last = steps.map(|(&size, &stride)| (size - 1).checked_mul(stride));
        last.into_iter().try_fold(1u64, |sum, last| sum.checked_add(last?))
    }

    /// Where it ends in its storage, in bytes.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.span()?)?.checked_mul(self.element_bytes())
    }

    /// Whether its elements lie one after the other.
    pub(super) fn is_dense(&self) -> bool {
        if self.elements() == Some(0) {
            return true;
        }
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}

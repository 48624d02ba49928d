//! The globals that a pickle of weights may name.

use safetensors::tensor::Dtype as FileType;

/// What a global stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// Makes a tensor of a storage; its type is an argument of its own, or that of the storage.
    Rebuild {
        /// Which argument.
        dtype_at: Option<usize>,
    },
    /// Makes a parameter of a tensor.
    Parameter,
    /// Makes a tensor that has attributes: of the function that makes it, the type, and that function's arguments.
    FromType,
    /// A dictionary.
    Dict,
    /// A list or tuple.
    Sequence,
    /// A class of a TorchScript archive.
    Class,
    /// The type of a storage; none of one that is bytes.
    Storage(Option<FileType>),
    /// The type of a tensor.
    Dtype(FileType),
    /// What checkpoints have beside their weights; its values are left out.
    Opaque(&'static str),
}

/// Classes of values that checkpoints hold beside their weights: module, names, and the name under which people know them.
const OPAQUE: [(&str, &[&str], &str); 14] = [
    ("argparse", &["Namespace"], "argparse.Namespace"),
    ("types", &["SimpleNamespace"], "types.SimpleNamespace"),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"], "a numpy value"),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"], "a numpy value"),
    ("numpy", &["dtype", "ndarray"], "a numpy value"),
    ("_codecs", &["encode"], "bytes"),
    ("pathlib", &["Path", "PosixPath", "WindowsPath"], "a path"),
    ("pathlib._local", &["Path", "PosixPath", "WindowsPath"], "a path"),
    ("datetime", &["datetime", "date", "time", "timedelta", "timezone"], "a date"),
    ("collections", &["Counter", "deque"], "a collection"),
    (
        "builtins",
        &["set", "frozenset", "complex", "slice", "range", "bytearray", "int", "float", "bool", "str"],
        "a value",
    ),
    (
        "__builtin__",
        &["set", "frozenset", "complex", "slice", "range", "bytearray", "int", "float", "bool", "str"],
        "a value",
    ),
    ("torch", &["device", "memory_format", "layout", "Generator"], "a setting of PyTorch"),
    ("torch.nn.parameter", &["Parameter"], "torch.nn.Parameter"),
];

/// Types of storages and tensors by the names that PyTorch has for them.
const TYPES: [(&str, &str, FileType); 14] = [
    ("DoubleStorage", "float64", FileType::F64),
    ("FloatStorage", "float32", FileType::F32),
    ("HalfStorage", "float16", FileType::F16),
    ("BFloat16Storage", "bfloat16", FileType::BF16),
    ("LongStorage", "int64", FileType::I64),
    ("IntStorage", "int32", FileType::I32),
    ("ShortStorage", "int16", FileType::I16),
    ("CharStorage", "int8", FileType::I8),
    ("ByteStorage", "uint8", FileType::U8),
    ("BoolStorage", "bool", FileType::BOOL),
    ("", "uint16", FileType::U16),
    ("", "uint32", FileType::U32),
    ("", "uint64", FileType::U64),
    ("ComplexFloatStorage", "complex64", FileType::C64),
];

/// What a global stands for, or nothing if weights need none such.
pub(super) fn global(module: &str, name: &str) -> Option<Global> {
    let known = match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Rebuild { dtype_at: None },
        ("torch._utils", "_rebuild_tensor_v3") => Global::Rebuild { dtype_at: Some(6) },
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
        ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => Global::Dict,
        ("torch", "Size") | ("builtins" | "__builtin__", "list" | "tuple") => Global::Sequence,
        ("torch.jit._pickle", name) if name.starts_with("build_") || name == "restore_type_tag" => Global::Sequence,
        ("torch" | "torch.storage", "UntypedStorage") => Global::Storage(None),
        (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Global::Class,
        _ => return typed(module, name).or_else(|| opaque(module, name)),
    };
    Some(known)
}

fn typed(module: &str, name: &str) -> Option<Global> {
    if module != "torch" || name.is_empty() {
        return None;
    }
    TYPES.iter().find_map(|&(storage, tensor, dtype)| match name {
        name if name == storage => Some(Global::Storage(Some(dtype))),
        name if name == tensor => Some(Global::Dtype(dtype)),
        _ => None,
    })
}

fn opaque(module: &str, name: &str) -> Option<Global> {
    let of = OPAQUE.iter().find(|(known, names, _)| *known == module && names.contains(&name));
    of.map(|&(_, _, shown)| Global::Opaque(shown))
}

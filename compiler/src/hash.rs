//! Hash maps of the passes. Their keys are small and made by the compiler, so nobody can choose them to collide, and a hash
//! that resists that costs several per cent of a compilation. Nothing may depend on the order in which they are iterated.

pub(crate) use rustc_hash::{FxHashMap as HashMap, FxHashSet as HashSet};

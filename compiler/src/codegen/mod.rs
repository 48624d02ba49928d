//! From scheduled groups to kernels.

pub mod emit;

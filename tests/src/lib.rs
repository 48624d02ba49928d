//! Tests that need both the compiler and the runtime, and what they share: golden data, random graphs and their
//! judge, how to run a plan, and a loud way to skip.

pub mod compiled;
#[cfg(target_os = "linux")]
pub mod cuda;
pub mod fuzz;
pub mod goldens;
pub mod inlined;
pub mod mutated;
pub mod packing;
pub mod skip;
pub mod small;

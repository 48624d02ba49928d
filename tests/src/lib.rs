//! Tests that need both the compiler and the runtime, and what they share: golden data, random graphs with bounds on their
//! rounding, how to run a plan, and a loud way to skip.

pub mod compiled;
pub mod goldens;
pub mod inlined;
pub mod packing;
pub mod random_graph;
pub mod rounding;
pub mod skip;

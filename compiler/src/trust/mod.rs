//! What judges the rest of the compiler: how far a computed value may lie from the exact one.
//!
//! Nothing here takes part in a compilation; tests and `alip-run bisect` read it.

pub mod rounding;

//! Tests that need both the compiler and the runtime, and what they share: golden data, and a loud way to skip.

pub mod goldens;
pub mod skip;

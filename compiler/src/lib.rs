//! The compiler.

pub mod diag;
pub mod spec;

//! Compiles RON graph specs of language-image models to plans.

pub mod codegen;
pub mod diag;
pub mod spec;

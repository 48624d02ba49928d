//! Compiles RON graph specs of language-image models to plans.

pub mod autodiff;
pub mod codegen;
mod compile;
pub mod diag;
pub mod ir;
pub mod ops;
pub mod resolve;
pub mod schedule;
pub mod spec;

pub use compile::*;

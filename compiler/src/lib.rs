//! Compiles RON graph specs of language-image models to plans.

pub mod autodiff;
pub mod codegen;
pub mod diag;
pub mod ir;
pub mod ops;
pub mod resolve;
pub mod spec;

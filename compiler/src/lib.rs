//! Compiles RON graph specs of language-image models to plans.
//!
//! [`compile_spec`] is the whole of it: `resolve` makes a model of a spec, `lift` finds what its programs mean, `model` adds gradients and the optimiser to its
//! training program, and [`compile_model`] takes the model through the remaining [`PASSES`] to a plan. Nothing here depends
//! on a driver, a clock (timings are only reported) or the machine, so that equal inputs give equal bytes.

pub mod autodiff;
mod check;
pub mod codegen;
mod compile;
pub mod diag;
pub mod diff;
pub mod graph;
mod hash;
pub mod ir;
pub mod launch;
pub mod onnx;
pub mod ops;
pub mod optimize;
mod parallel;
pub mod picture;
pub mod resolve;
pub mod schedule;
pub mod spec;
pub mod training;
pub mod transform;
pub mod trust;

pub use check::*;
pub use compile::*;

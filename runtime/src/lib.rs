//! The runtime.

pub mod data;
pub mod device;
pub mod eval;
pub mod exec;
pub mod file;
pub mod run;
pub mod tensor;
pub mod train;
pub mod weights;

//! The runtime.

pub mod data;
pub mod device;
pub mod exec;
pub mod human;
pub mod run;
pub mod tensor;
pub mod train;

//! The runtime.

pub mod data;

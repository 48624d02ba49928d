//! The compiled plan: the types that `alipc` writes and `alip-run` executes.

pub mod philox;

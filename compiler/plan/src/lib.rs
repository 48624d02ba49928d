//! The compiled plan: everything `alip-run` needs to execute a model, and nothing about how it was found.
//!
//! A [`Plan`] holds named [`Program`]s over one set of state tensors. Each program is a straight list of [`Step`]s; a
//! step applies a [`kernel::Kernel`] to buffers, which are slices of a few device memory segments.
//!
//! Invariants:
//! - A plan depends on nothing but its bytes: no paths, no clocks, no host pointers. Equal inputs of the compiler give
//!   equal bytes, so every collection here is ordered.
//! - Kernels are shared: two steps that compute the same refer to the same entry of [`Plan::kernels`].
//! - This crate holds types, their laws (`check`) and the small pure functions that compiler and runtime must agree on
//!   (`philox`, `bounds`, `packing`, `library`), and `fault`, which is nothing outside of one test. It knows no driver, no graph, no
//!   e-graph, and depends on serde alone.

pub mod bounds;
pub mod check;
pub mod fault;
pub mod kernel;
pub mod library;
pub mod packing;
pub mod philox;
pub mod pipeline;
mod target;
mod types;

pub use target::{Fusion, Library, Packing, Rates, Spacing, Target, TargetKind, Tiles, Waves};
pub use types::*;

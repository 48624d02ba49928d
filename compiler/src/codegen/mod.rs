//! From scheduled groups to kernels and the plan.

mod assemble;
mod domain;
pub mod emit;
mod lower;

pub(crate) use self::assemble::{Assembly, Part};
pub(crate) use self::lower::{Launch, lower};

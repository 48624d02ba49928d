//! From scheduled groups to kernels and the plan.

mod assemble;
mod attention;
mod backend;
mod dense;
mod domain;
pub mod emit;
mod join;
mod lower;
mod operands;

pub(crate) use self::assemble::{Assembly, Part, report_buckets};
pub(crate) use self::backend::{BackEnd, Lowered, Stage, Unwatched, Watch};
pub(crate) use self::join::{join, order};

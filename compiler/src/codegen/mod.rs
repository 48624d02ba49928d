//! From scheduled groups to kernels and the plan.

mod assemble;
mod attention;
mod domain;
pub mod emit;
mod join;
mod lower;

pub(crate) use self::assemble::{Assembly, Part, report_buckets};
pub(crate) use self::join::{join, order};
pub(crate) use self::lower::lower;

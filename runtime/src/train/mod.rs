//! Training and what surrounds it.

pub mod evaluate;
pub mod report;

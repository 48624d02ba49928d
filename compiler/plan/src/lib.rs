//! The compiled plan.

//! Emitters: from a [`alip_plan::kernel::Loop`] to the text of one target.
//!
//! There is no emitter for the cpu target: its device executes loops as they stand.

pub mod wgsl;

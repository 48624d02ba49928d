//! Emitters: from what a kernel computes, an [`alip_plan::kernel::Loop`], to the [`alip_plan::kernel::Implementation`] of one
//! target. The loop goes into the plan as it was given, so an emitter rewrites none: the text computes that very loop on the
//! same operands.
//!
//! There is no emitter for the cpu target: its device executes loops as they stand.

pub mod cuda;
mod terms;
pub mod wgsl;

/// Why a loop cannot become text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmitError(pub String);

impl std::fmt::Display for EmitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EmitError {}

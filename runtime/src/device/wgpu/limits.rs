//! What an adapter allows, in its own terms.

use alip_plan::kernel::Implementation;
use alip_plan::{Plan, Program, Step, Target};

use super::super::DeviceError;

/// The target `wgpu` with an adapter's own limits, as `--target native` asks for.
///
/// Workgroups keep their size: larger ones make no kernel of ours faster. No feature is asked for, since no shader of ours uses
/// one. Operands stay few enough for a shader to keep all their addresses at hand.
pub(super) fn target(limits: &wgpu::Limits) -> Target {
    // Slices of segments begin at multiples of 256 bytes.
    let whole = |bytes: u64| bytes & !255;
    Target::wgpu().with_limits(
        whole(limits.max_buffer_size),
        whole(limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)),
        limits.max_storage_buffers_per_shader_stage.min(MAX_OPERANDS),
        limits.max_compute_workgroups_per_dimension,
    )
}

/// Most operands of a kernel that is compiled for an adapter; software adapters allow a million.
const MAX_OPERANDS: u32 = 32;

/// The plan's memory and launches keep to what the adapter allows.
///
/// # Errors
/// The first thing that does not, and where it is.
pub(super) fn check(plan: &Plan, limits: &wgpu::Limits, adapter: &str) -> Result<(), DeviceError> {
    let within = |what: &str, needed: u64, allowed: u64, limit: &'static str| {
        let (what, device) = (what.to_string(), adapter.to_string());
        if needed <= allowed { Ok(()) } else { Err(DeviceError::Limit { what, needed, device, allowed, limit }) }
    };
    for segment in &plan.segments {
        within("a memory segment in bytes", segment.bytes, limits.max_buffer_size, "max_buffer_size")?;
    }
    for (name, program) in &plan.programs {
        for (number, step) in program.steps.iter().enumerate() {
            let of_step = |what: &str| format!("{what} of launch {number} of `{name}` (`{}`)", step.origin);
            let operands = step.operands.len() as u64;
            let allowed = limits.max_storage_buffers_per_shader_stage.min(limits.max_bindings_per_bind_group);
            within(&of_step("operands"), operands, allowed.into(), "max_storage_buffers_per_shader_stage")?;
            let largest = operands_of(program, step).map(|buffer| buffer.bytes()).max().unwrap_or(0);
            let allowed = limits.max_storage_buffer_binding_size;
            within(&of_step("an operand in bytes"), largest, allowed, "max_storage_buffer_binding_size")?;
            let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
            let remainder =
                operands_of(program, step).map(|buffer| buffer.offset % alignment.max(1)).max().unwrap_or(0);
            let what = of_step(&format!("bytes beyond a multiple of {alignment} where an operand begins,"));
            within(&what, remainder, 0, "min_storage_buffer_offset_alignment")?;
            let kernel = plan.kernels.get(step.kernel as usize);
            if let Some(Implementation::Wgsl { workgroups, .. }) = kernel.map(|kernel| &kernel.implementation) {
                let most = workgroups.iter().copied().max().unwrap_or(0).into();
                let allowed = limits.max_compute_workgroups_per_dimension.into();
                within(&of_step("workgroups"), most, allowed, "max_compute_workgroups_per_dimension")?;
            }
        }
    }
    let threads = u64::from(plan.target.workgroup_size);
    let allowed = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x);
    within("threads of a workgroup", threads, allowed.into(), "max_compute_invocations_per_workgroup")
}

fn operands_of<'a>(program: &'a Program, step: &'a Step) -> impl Iterator<Item = &'a alip_plan::Buffer> {
    step.operands.iter().filter_map(|&operand| program.buffers.get(operand as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_described_by_their_limits() {
        let least = target(&wgpu::Limits::default());
        assert_eq!((least.max_segment_bytes, least.max_binding_bytes), (256 << 20, 128 << 20));
        assert_eq!(least.name, "wgpu:segment=268435456,binding=134217728,operands=8,workgroups=65535");
        let limits = wgpu::Limits {
            max_buffer_size: u64::MAX,
            max_storage_buffer_binding_size: u64::from(u32::MAX),
            max_storage_buffers_per_shader_stage: 1_000_000,
            ..wgpu::Limits::default()
        };
        let native = target(&limits);
        assert_eq!(native.max_binding_bytes, 4_294_967_040);
        assert_eq!(native.max_operands, MAX_OPERANDS);
        assert_eq!(Target::named(&native.name), Some(native));
    }
}

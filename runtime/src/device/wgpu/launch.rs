//! Dispatches of a plan's programs, made when a program first runs.
//!
//! A packed program has a dozen versions by number of rows, of which a run meets a few; a run that trains never encodes a text
//! alone. So pipelines are not made for what a plan holds but for what is asked for, once per kernel; bind groups once per step.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_plan::kernel::Implementation;
use alip_plan::{Buffer, Plan, SegmentKind, Step};

use super::super::DeviceError;
use super::SLOTS;

/// Mesa's software rasteriser leaves all loops of a thread, without a word, after this many iterations together
/// (`LP_MAX_TGSI_LOOP_ITERATIONS` in its gallivm; seen in version 22.3).
const LLVMPIPE_ITERATIONS: u64 = 65_535;

/// One dispatch, ready to be recorded.
pub(super) struct Dispatch {
    pub(super) pipeline: wgpu::ComputePipeline,
    /// By slot of the inputs.
    pub(super) groups: [wgpu::BindGroup; SLOTS],
    pub(super) workgroups: [u32; 3],
}

/// Makes dispatches from steps.
pub(super) struct Launcher {
    device: wgpu::Device,
    /// Name of the adapter.
    adapter: String,
    plan: Arc<Plan>,
    /// By number of operands.
    layouts: BTreeMap<usize, wgpu::BindGroupLayout>,
    /// By kernel.
    pipelines: BTreeMap<u32, wgpu::ComputePipeline>,
}

impl Launcher {
    pub(super) fn new(device: wgpu::Device, adapter: String, plan: Arc<Plan>) -> Launcher {
        Launcher { device, adapter, plan, layouts: BTreeMap::new(), pipelines: BTreeMap::new() }
    }

    /// All steps of a program, whose buffers are slices of the segments of each slot.
    ///
    /// # Errors
    /// A program the plan lacks; a plan that breaks the laws of its format; loops that this adapter would leave early. What
    /// the driver says of a shader comes as its fault.
    pub(super) fn prepare(
        &mut self,
        program: &str,
        slots: &[Vec<wgpu::Buffer>; SLOTS],
    ) -> Result<Vec<Dispatch>, DeviceError> {
        let plan = self.plan.clone();
        let missing = || DeviceError::Misuse(format!("the plan has no program `{program}`"));
        let program = plan.programs.get(program).ok_or_else(missing)?;
        let mut dispatches = Vec::with_capacity(program.steps.len());
        for step in &program.steps {
            let kernel = plan.kernels.get(step.kernel as usize).ok_or_else(|| invalid("a step names no kernel"))?;
            let Implementation::Wgsl { source, workgroups, iterations } = &kernel.implementation else {
                return Err(invalid("a step names a kernel that is not WGSL"));
            };
            self.check_iterations(*iterations)?;
            let layout = self.layout(step.operands.len());
            let pipeline = self.pipelines.entry(step.kernel);
            let pipeline = pipeline.or_insert_with(|| pipeline_of(&self.device, source, &layout)).clone();
            let bind = |slot: &Vec<wgpu::Buffer>| bind(&self.device, &program.buffers, step, &layout, slot);
            let first = bind(&slots[0])?;
            let mut groups = std::array::from_fn(|_| first.clone());
            if reads_inputs(&plan, &program.buffers, step) {
                for (group, slot) in groups.iter_mut().zip(slots).skip(1) {
                    *group = bind(slot)?;
                }
            }
            dispatches.push(Dispatch { pipeline, groups, workgroups: *workgroups });
        }
        Ok(dispatches)
    }

    fn check_iterations(&self, iterations: u64) -> Result<(), DeviceError> {
        if iterations <= LLVMPIPE_ITERATIONS || !self.adapter.contains("llvmpipe") {
            return Ok(());
        }
        Err(DeviceError::Unavailable {
            name: "wgpu".into(),
            why: format!(
                "the adapter {} ends loops after {LLVMPIPE_ITERATIONS} iterations, and a kernel of this program takes \
                 {iterations}; use a smaller --batch or --device cpu",
                self.adapter
            ),
        })
    }

    fn layout(&mut self, operands: usize) -> wgpu::BindGroupLayout {
        let device = &self.device;
        self.layouts.entry(operands).or_insert_with(|| bind_group_layout(device, operands)).clone()
    }
}

/// Whether an operand of a step lies in a segment that slots do not share.
fn reads_inputs(plan: &Plan, buffers: &[Buffer], step: &Step) -> bool {
    let operands = step.operands.iter().filter_map(|operand| buffers.get(*operand as usize));
    let mut segments = operands.filter_map(|buffer| plan.segments.get(buffer.segment as usize));
    segments.any(|segment| segment.kind == SegmentKind::Inputs)
}

fn invalid(what: &str) -> DeviceError {
    DeviceError::InvalidPlan(what.to_string())
}

fn bind(
    device: &wgpu::Device,
    buffers: &[Buffer],
    step: &Step,
    layout: &wgpu::BindGroupLayout,
    segments: &[wgpu::Buffer],
) -> Result<wgpu::BindGroup, DeviceError> {
    let mut entries = Vec::with_capacity(step.operands.len());
    for (binding, operand) in step.operands.iter().enumerate() {
        let buffer = buffers.get(*operand as usize).ok_or_else(|| invalid("a step names no buffer"))?;
        let bytes = buffer.bytes().next_multiple_of(4);
        let segment = segments.get(buffer.segment as usize).ok_or_else(|| invalid("a buffer names no segment"))?;
        if buffer.offset.checked_add(bytes).is_none_or(|end| end > segment.size()) {
            return Err(invalid("a buffer leaves its segment"));
        }
        let size = std::num::NonZeroU64::new(bytes).ok_or_else(|| invalid("an operand is empty"))?;
        entries.push(wgpu::BindGroupEntry {
            binding: binding as u32,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: segment,
                offset: buffer.offset,
                size: Some(size),
            }),
        });
    }
    Ok(device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries }))
}

fn bind_group_layout(device: &wgpu::Device, operands: usize) -> wgpu::BindGroupLayout {
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..operands as u32)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: false },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

fn pipeline_of(device: &wgpu::Device, source: &str, layout: &wgpu::BindGroupLayout) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(layout)],
        immediate_size: 0,
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // Shaders write all workgroup memory before they read it.
            zero_initialize_workgroup_memory: false,
            ..wgpu::PipelineCompilationOptions::default()
        },
        cache: None,
    })
}

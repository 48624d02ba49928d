//! The emulator as a device: plans for NVIDIA cards run on a machine without one, a launch or a call of a library after the other,
//! and whatever the emulator reports is an error of the step.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use alip_plan::kernel::{Implementation, Kernel, Loop};
use alip_plan::library::Matmul;
use alip_plan::{Buffer, Plan, Target, TargetKind};
use alip_runtime::device::{Device, DeviceError, Download, LoadedPlan, MemoryFacts, Slice};

use super::{Emulator, Module, Operand, Outcome, Text};

/// The device; none on a machine without a C++ compiler, which says so.
pub fn device() -> Option<Box<dyn Device>> {
    Some(Box::new(Emulated { emulator: Emulator::get()?, compiled: None }))
}

/// Opens a device.
pub type Open = Box<dyn Fn() -> Box<dyn Device>>;

/// The device for any of these plans, whose kernels are compiled together, which takes a fraction of the time.
///
/// # Panics
/// A kernel that the compiler of this machine refuses.
pub fn device_for<'p>(plans: impl IntoIterator<Item = &'p Plan>) -> Option<Open> {
    let emulator = Emulator::get()?;
    let mut texts = BTreeMap::new();
    for kernel in plans.into_iter().flat_map(|plan| &plan.kernels) {
        texts.extend(text(kernel).map(|text| (text.entry, text)));
    }
    let texts: Vec<Text<'_>> = texts.into_values().collect();
    let compiled = emulator.compile(&texts).unwrap_or_else(|why| panic!("{why}"));
    let compiled = Arc::new(compiled);
    Some(Box::new(move || Box::new(Emulated { emulator, compiled: Some(Arc::clone(&compiled)) })))
}

fn text(kernel: &Kernel) -> Option<Text<'_>> {
    match &kernel.implementation {
        Implementation::Cuda { source, entry, block, shared_bytes, .. } => {
            Some(Text { source, entry, block: *block, shared_bytes: *shared_bytes })
        }
        _ => None,
    }
}

struct Emulated {
    emulator: &'static Emulator,
    /// All kernels of the plans that it is asked to load, if they were compiled before.
    compiled: Option<Arc<Module>>,
}

impl Device for Emulated {
    fn name(&self) -> &'static str {
        "emulator"
    }

    fn description(&self) -> String {
        "CUDA C++ on the processor".into()
    }

    fn target(&self) -> Target {
        Target::sm_80()
    }

    fn runs(&self, kind: TargetKind) -> bool {
        kind == TargetKind::Cuda
    }

    fn summary(&self) -> String {
        "slow and suspicious".into()
    }

    fn arithmetic(&self) -> String {
        "emulated CUDA".into()
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        alip_plan::check::check(&plan).map_err(|violation| DeviceError::InvalidPlan(violation.to_string()))?;
        let segments = plan.segments.iter().map(|segment| vec![0; segment.bytes as usize]).collect();
        let compiled = self.compiled.clone();
        Ok(Box::new(Loaded { emulator: self.emulator, plan, segments, compiled, programs: BTreeMap::new() }))
    }
}

struct Loaded {
    emulator: &'static Emulator,
    plan: Arc<Plan>,
    segments: Vec<Vec<u8>>,
    compiled: Option<Arc<Module>>,
    /// Kernels of the programs that ran before.
    programs: BTreeMap<String, Arc<Module>>,
}

fn failed(why: impl Into<String>) -> DeviceError {
    DeviceError::Driver { device: "emulator".into(), why: why.into() }
}

impl Loaded {
    fn compile(&self, program: &str) -> Result<Arc<Module>, DeviceError> {
        if let Some(compiled) = &self.compiled {
            return Ok(Arc::clone(compiled));
        }
        let used: BTreeSet<u32> = self.plan.programs[program].steps.iter().map(|step| step.kernel).collect();
        // Kernels that differ in words only have one text.
        let texts = used.iter().filter_map(|kernel| text(&self.plan.kernels[*kernel as usize]));
        let texts: BTreeMap<&str, Text<'_>> = texts.map(|text| (text.entry, text)).collect();
        let texts: Vec<Text<'_>> = texts.into_values().collect();
        self.emulator.compile(&texts).map(Arc::new).map_err(failed)
    }

    fn bytes(&mut self, slice: Slice) -> Result<&mut [u8], DeviceError> {
        let (start, end) = (slice.offset as usize, (slice.offset + slice.bytes) as usize);
        let segment = self.segments.get_mut(slice.segment as usize);
        let outside = || DeviceError::Misuse(format!("{slice:?} is outside the plan's memory"));
        segment.and_then(|segment| segment.get_mut(start..end)).ok_or_else(outside)
    }
}

impl Loaded {
    /// Runs a kernel, or calls the library.
    fn launch(&self, program: &str, kernel: &Kernel, operands: Vec<Operand>) -> Result<Outcome, String> {
        match (&kernel.implementation, &kernel.description) {
            (Implementation::Cuda { entry, grid, .. }, _) => Ok(self.programs[program].launch(entry, *grid, operands)),
            (Implementation::CublasLt, Loop::Product(product)) => {
                let workspace = self.plan.target.library.map_or(0, |library| library.workspace_bytes);
                self.emulator.multiply(&Matmul::of(product)?, operands, workspace)
            }
            _ => Err("it is neither a CUDA text nor a call of cuBLASLt".into()),
        }
    }
}

impl LoadedPlan for Loaded {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bytes(slice)?.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        let mut all = Vec::new();
        for slice in slices {
            all.extend_from_slice(self.bytes(*slice)?);
        }
        Ok(Box::new(Ready(all)))
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        if !self.programs.contains_key(program) {
            let module = self.compile(program)?;
            self.programs.insert(program.to_owned(), module);
        }
        let plan = Arc::clone(&self.plan);
        let of = &plan.programs[program];
        for step in &of.steps[steps] {
            let kernel = &plan.kernels[step.kernel as usize];
            let buffers: Vec<&Buffer> = step.operands.iter().map(|index| &of.buffers[*index as usize]).collect();
            let operands = buffers.iter().map(|buffer| {
                let bytes = self.bytes(Slice::from(*buffer))?.to_vec();
                Ok(Operand { bytes, written: true })
            });
            let operands = operands.collect::<Result<Vec<_>, DeviceError>>()?;
            let outcome =
                self.launch(program, kernel, operands).map_err(|why| failed(format!("{}: {why}", step.origin)))?;
            if !outcome.reports.is_empty() {
                let source = match &kernel.implementation {
                    Implementation::Cuda { source, .. } => source.as_str(),
                    _ => "",
                };
                return Err(failed(format!("{}: {}\n{source}", step.origin, outcome.reports.join("\n"))));
            }
            for written in kernel.description.written() {
                let position = usize::from(written);
                self.bytes(Slice::from(buffers[position]))?.copy_from_slice(&outcome.operands[position].bytes);
            }
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> MemoryFacts {
        MemoryFacts { segments: self.segments.iter().map(|segment| segment.len() as u64).sum(), scratch: 0 }
    }
}

struct Ready(Vec<u8>);

impl Download for Ready {
    fn poll(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        Ok(self.0)
    }
}

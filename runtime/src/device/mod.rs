//! The border between the runtime and what computes.
//!
//! A [`Device`] turns a plan into a [`LoadedPlan`]: memory allocated, kernels prepared, every view checked against its
//! buffer, so that running needs no checks. `cpu` is the embedded default; `reference` executes what the kernels
//! of any target describe in f64, one point at a time, to find out who is wrong.
//!
//! Invariants:
//! - Nothing above this border knows a driver, and nothing below it knows what a program means.
//! - Steps take effect in order. `run_steps` may return before they are done; `read` and `synchronize` see them done, and what is
//!   submitted later changes nothing of what was read.
//! - Inputs are uploaded past the steps that still run: each step reads those that were written last before it was submitted,
//!   however many copies of the segments of inputs that takes.
//! - Downloads are asynchronous in form ([`Download`]), so that the same runtime can live where blocking is forbidden.

mod choose;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod gathered;
mod host;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alip_plan::{Plan, Target, TargetKind};
use indicatif::HumanBytes;

pub use choose::{Choice, choose, choose_like, kinds, names};

/// A range of bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index into [`Plan::segments`].
    pub segment: u32,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl From<&alip_plan::Buffer> for Slice {
    fn from(buffer: &alip_plan::Buffer) -> Slice {
        Slice { segment: buffer.segment, offset: buffer.offset, bytes: buffer.bytes() }
    }
}

/// Memory that a loaded plan holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// All segments of the plan.
    pub segments: u64,
    /// What the device allocated beside them: more copies of the inputs, tile registers, packing and download buffers.
    pub scratch: u64,
}

/// Memory that was free and memory that was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Bytes that were free.
    pub bytes: u64,
    /// Bytes of all that the plan allocates.
    pub needed: u64,
}

/// Why a device refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device, or not on this machine.
    #[error("device `{name}` cannot be used: {why}")]
    Unavailable {
        /// The name asked for.
        name: String,
        /// The reason, with a way out.
        why: String,
    },
    /// The plan is for another kind of target.
    #[error(
        "the plan is compiled for target `{target}`, which device `{device}` cannot run; compile the spec with --target {wanted}"
    )]
    WrongTarget {
        /// Name of the plan's target.
        target: String,
        /// Name of the device.
        device: String,
        /// A target the device can run.
        wanted: String,
    },
    /// The plan asks for more than the device allows; it is of another machine.
    #[error(
        "{what}: the plan asks for {needed}, but {device} allows {allowed} ({limit}); compile the spec with --target native \
         on this machine, or with --target wgpu for any"
    )]
    Limit {
        /// Of what, and where.
        what: String,
        /// How much the plan asks for.
        needed: u64,
        /// Name of the device.
        device: String,
        /// How much it allows.
        allowed: u64,
        /// What the device calls this limit.
        limit: &'static str,
    },
    /// The plan breaks a law of its format; only a damaged or foreign plan does.
    #[error("the plan is not valid: {0}; compile the spec again")]
    InvalidPlan(String),
    /// The plan takes more than is free.
    #[error(
        "{device} has no room for the plan: it needs {}, and {} are free; use a smaller --batch",
        HumanBytes(room.needed), HumanBytes(room.bytes)
    )]
    NoRoom {
        /// Name of the device.
        device: String,
        /// What was free before anything was allocated.
        room: Free,
    },
    /// A segment could not be allocated.
    #[error(
        "{device} has no room for a memory segment of {bytes} bytes{}; use a smaller --batch",
        free.map_or_else(String::new, |free| format!(": {} of the {} that the plan needs are free", HumanBytes(free.bytes), HumanBytes(free.needed)))
    )]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Size of the segment.
        bytes: u64,
        /// What was free before anything was allocated, where the device can tell.
        free: Option<Free>,
    },
    /// More than the machine has, whatever else it does.
    #[error("the plan needs {} of memory, and this machine has {}; use a smaller --batch", HumanBytes(*needed), HumanBytes(*there))]
    TooLarge {
        /// Bytes of all segments.
        needed: u64,
        /// Bytes of the machine.
        there: u64,
    },
    /// A slice outside its segment, a program the plan lacks, or a step out of range.
    #[error("{0}")]
    Misuse(String),
    /// The driver failed.
    #[error("device `{device}` failed: {why}")]
    Driver {
        /// Name of the device.
        device: String,
        /// What the driver said.
        why: String,
    },
}

/// Something that can compute.
pub trait Device: Send {
    /// Short name as in `--device`: `cpu`, `wgpu`.
    fn name(&self) -> &'static str;

    /// One line for people: the model of the processor or adapter, threads, instruction set.
    fn description(&self) -> String;

    /// This very device as a target, as `--target native` asks for: the named target of its kind with the device's own limits.
    fn target(&self) -> Target;

    /// What a person who did not ask wants to know: `2 threads`, the name of an adapter.
    fn summary(&self) -> String;

    /// What results depend on down to their last bit: instruction set, or adapter and driver; not the number of threads.
    fn arithmetic(&self) -> String;

    /// Whether it runs plans that are compiled for targets of this kind.
    fn runs(&self, kind: TargetKind) -> bool {
        kind == self.target().kind
    }

    /// What a plan takes of the device's own memory, and what is free of it; none where the device cannot tell.
    fn room(&self, _plan: &Plan) -> Option<Free> {
        None
    }

    /// Allocates the plan's segments (zeroed) and prepares its kernels.
    ///
    /// # Errors
    /// A plan for another target, an invalid plan, too little memory.
    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError>;
}

/// A plan on a device.
pub trait LoadedPlan: Send {
    /// Uploads bytes behind all steps submitted so far; done when it returns or before the next step runs, whichever the device
    /// prefers.
    ///
    /// # Errors
    /// A slice outside its segment, or a number of bytes that is not the slice's.
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Uploads the inputs of the steps that are submitted next, all of them, into segments of inputs. Steps submitted before
    /// read what they were given. The bytes are read before this returns.
    ///
    /// # Errors
    /// As [`LoadedPlan::write`].
    fn write_inputs(&mut self, inputs: &[(Slice, &[u8])]) -> Result<(), DeviceError> {
        inputs.iter().try_for_each(|(slice, bytes)| self.write(*slice, bytes))
    }

    /// Starts a download of what the slices hold after all steps submitted so far, one after the other.
    ///
    /// # Errors
    /// A slice outside its segment.
    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError>;

    /// How many programs the caller may well submit while the device is at one before them, so that it never waits for the host.
    fn ahead(&self) -> usize {
        0
    }

    /// Submits steps of a program, in order.
    ///
    /// # Errors
    /// A program the plan lacks, or steps out of its range.
    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError>;

    /// Runs so many of a program's first steps, and tells how long each took: by the device's own
    /// clock where it has one. Elsewhere the host waits for each, and the way to the device and back counts.
    ///
    /// # Errors
    /// As [`LoadedPlan::run_steps`].
    fn time_steps(&mut self, program: &str, steps: usize) -> Result<Vec<Duration>, DeviceError> {
        time_by_waiting(self, program, steps)
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// The device was lost.
    fn synchronize(&mut self) -> Result<(), DeviceError>;

    /// Memory held.
    fn memory(&self) -> MemoryFacts;
}

/// Runs the first steps of a program one by one, by the clock of the host.
fn time_by_waiting<L: LoadedPlan + ?Sized>(
    loaded: &mut L,
    program: &str,
    steps: usize,
) -> Result<Vec<Duration>, DeviceError> {
    loaded.synchronize()?;
    let mut times = Vec::with_capacity(steps);
    for step in 0..steps {
        let start = Instant::now();
        loaded.run_steps(program, step..step + 1)?;
        loaded.synchronize()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Checks that a device can run a plan at all: that it is for such a device, and keeps to the laws of plans.
fn check_plan(plan: &Plan, device: &dyn Device) -> Result<(), DeviceError> {
    if !device.runs(plan.target.kind) {
        return Err(DeviceError::WrongTarget {
            target: plan.target.name.clone(),
            device: device.name().to_string(),
            wanted: device.target().portable().name,
        });
    }
    alip_plan::check::check(plan).map_err(|violation| DeviceError::InvalidPlan(violation.to_string()))
}

/// Bytes on their way to the host.
pub trait Download: Send {
    /// Whether [`Download::wait`] would return at once; lets the device make progress.
    fn poll(&mut self) -> bool;

    /// The bytes of all slices one after the other, waiting if they are not there yet; not for what was submitted later.
    ///
    /// # Errors
    /// The device was lost.
    fn wait(self: Box<Self>) -> Result<Vec<u8>, DeviceError>;
}

/// What the caller may say about a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Threads of the cpu device; all cores when absent. Results do not depend on it.
    pub threads: Option<usize>,
    /// Every launch is submitted by itself, where a device could record a whole program and submit that (cuda). Results do not
    /// depend on it.
    pub launch_by_launch: bool,
}

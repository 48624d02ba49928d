//! Any Vulkan, Metal or DX12 adapter, through wgpu.
//!
//! A segment of the plan is one storage buffer; an operand of a step is a binding of a slice of it, always read-write,
//! since one buffer cannot be bound both ways in one dispatch. Pipelines and bind groups are made when a program first runs;
//! after that, running only records dispatches. wgpu orders dispatches that touch the same buffers.
//!
//! Segments of inputs are there several times ([`SLOTS`]), and bind groups of the steps that read them: so the copy for the
//! next step depends on none that still runs, and a driver may make it beside them.
//!
//! The adapter's own limits are requested: the defaults are far below what most hardware has.

mod download;
mod launch;
mod limits;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use alip_plan::{Plan, Segment, SegmentKind, Target};

use self::launch::{Dispatch, Launcher};
use super::{Device, DeviceError, DeviceOptions, Download, LoadedPlan, MemoryFacts, Slice, check_plan};

/// Dispatches per submission: long queues trip the watchdogs of desktop drivers, short ones cost a call each.
const STEPS_PER_SUBMISSION: usize = 128;

/// Uploads lie in memory of the driver's until they are submitted and done: a whole state would lie there twice.
const STAGED_BYTES: u64 = 64 << 20;

/// Programs that wait in the queue beside the one that runs: while the host takes the results of that, the adapter goes on with the
/// first, and the second keeps it from waiting for a host that is late for once.
const AHEAD: usize = 2;

/// Copies of the segments of inputs, for the programs that wait and the one that runs: one more is submitted only when that is
/// done, which bounds what lies in memory of the driver's too.
const SLOTS: usize = AHEAD + 1;

/// An opened adapter.
pub struct Wgpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    /// The first error the driver reported outside a call that returns one.
    fault: Arc<Mutex<Option<String>>>,
}

/// Opens the adapter with this index in the order of [`list`], or the one that the system prefers for speed.
///
/// # Errors
/// No adapter, or one that refuses its own limits.
pub fn open(index: Option<usize>, _options: &DeviceOptions) -> Result<Box<dyn Device>, String> {
    let instance = instance();
    let adapter = match index {
        Some(index) => adapters(&instance)?.into_iter().nth(index).ok_or(NO_ADAPTER)?,
        None => {
            let options = wgpu::RequestAdapterOptions {
                power_preference: wgpu::PowerPreference::HighPerformance,
                ..wgpu::RequestAdapterOptions::default()
            };
            pollster::block_on(instance.request_adapter(&options)).map_err(|error| format!("{NO_ADAPTER} ({error})"))?
        }
    };
    Ok(Box::new(Wgpu::open(&adapter)?))
}

/// What the adapters of this machine compute with, in the order of the drivers.
///
/// # Errors
/// There is none.
pub fn list() -> Result<Vec<String>, String> {
    Ok(adapters(&instance())?.iter().map(|adapter| describe(&adapter.get_info())).collect())
}

const NO_ADAPTER: &str = "no Vulkan, Metal or DX12 adapter; install the card's driver, or Mesa's lavapipe for tests";

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
}

fn adapters(instance: &wgpu::Instance) -> Result<Vec<wgpu::Adapter>, String> {
    let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    if all.is_empty() { Err(NO_ADAPTER.into()) } else { Ok(all) }
}

/// Model, interface and driver.
fn describe(info: &wgpu::AdapterInfo) -> String {
    let software = if info.device_type == wgpu::DeviceType::Cpu { format!(", {SOFTWARE}") } else { String::new() };
    format!("{} ({:?}, {} {}{software})", info.name, info.backend, info.driver, info.driver_info)
}

/// Whether `--device auto` may take this device: a software adapter is slower than the cpu device.
///
/// # Errors
/// Why not.
pub fn fit_for_auto(device: &dyn Device) -> Result<(), String> {
    let description = device.description();
    if description.contains(SOFTWARE) { Err(format!("{description}, slower than the cpu device")) } else { Ok(()) }
}

/// How [`Device::description`] marks adapters that run on the processor.
const SOFTWARE: &str = "software adapter";

impl Wgpu {
    fn open(adapter: &wgpu::Adapter) -> Result<Wgpu, String> {
        let limits = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("alip"),
            required_limits: limits.clone(),
            // Segments are few and large; sub-allocation blocks would only waste memory.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| error.to_string())?;
        let fault = Arc::new(Mutex::new(None));
        let report = |fault: &Arc<Mutex<Option<String>>>, why: String| {
            if let Ok(mut slot) = fault.lock() {
                slot.get_or_insert(why);
            }
        };
        let slot = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| report(&slot, error.to_string())));
        let slot = fault.clone();
        device.set_device_lost_callback(move |reason, why| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                report(&slot, format!("the adapter was lost: {why}"));
            }
        });
        Ok(Wgpu { device, queue, info: adapter.get_info(), limits, fault })
    }

    fn check(&self) -> Result<(), DeviceError> {
        check(&self.fault)
    }
}

fn check(fault: &Mutex<Option<String>>) -> Result<(), DeviceError> {
    match fault.lock().ok().and_then(|mut slot| slot.take()) {
        Some(why) => Err(failed(why)),
        None => Ok(()),
    }
}

impl Device for Wgpu {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn description(&self) -> String {
        describe(&self.info)
    }

    fn target(&self) -> Target {
        limits::target(&self.limits)
    }

    fn summary(&self) -> String {
        format!("{} ({:?})", self.info.name, self.info.backend)
    }

    fn arithmetic(&self) -> String {
        self.description()
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        check_plan(&plan, self)?;
        limits::check(&plan, &self.limits, &self.info.name)?;
        let allocate = |segment: &Segment| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: segment.bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let is_input = |segment: &Segment| segment.kind == SegmentKind::Inputs;
        let first: Vec<wgpu::Buffer> = plan.segments.iter().map(allocate).collect();
        let slots = std::array::from_fn(|slot| {
            let own = |(segment, first): (&Segment, &wgpu::Buffer)| match slot > 0 && is_input(segment) {
                true => allocate(segment),
                false => first.clone(),
            };
            plan.segments.iter().zip(&first).map(own).collect()
        });
        let inputs = plan.segments.iter().filter(|segment| is_input(segment)).map(|segment| segment.bytes).sum::<u64>();
        if let Err(error) = self.check() {
            let bytes = plan.segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
            return match error {
                DeviceError::Driver { why, .. } if why.to_lowercase().contains("memory") => {
                    Err(DeviceError::OutOfMemory { device: "wgpu".into(), bytes, free: None })
                }
                other => Err(other),
            };
        }
        Ok(Box::new(Loaded {
            device: self.device.clone(),
            queue: self.queue.clone(),
            fault: self.fault.clone(),
            memory: MemoryFacts {
                segments: plan.segments.iter().map(|segment| segment.bytes).sum(),
                scratch: inputs * (SLOTS as u64 - 1),
            },
            slots,
            turn: Turn::new(),
            launcher: Launcher::new(self.device.clone(), self.info.name.clone(), plan),
            programs: BTreeMap::new(),
            staged: 0,
        }))
    }
}

/// Which slot it is the turn of.
struct Turn<S> {
    /// Where inputs were written last.
    slot: usize,
    /// What was submitted last with the inputs of a slot, if it was not waited for.
    read_by: [Option<S>; SLOTS],
}

impl<S> Turn<S> {
    fn new() -> Turn<S> {
        Turn { slot: 0, read_by: std::array::from_fn(|_| None) }
    }

    /// Goes on to the next slot; what must be done before that is written.
    #[must_use]
    fn next(&mut self) -> Option<S> {
        self.slot = (self.slot + 1) % SLOTS;
        self.read_by[self.slot].take()
    }

    /// Something was submitted that reads the slot.
    fn is_read_by(&mut self, submission: S) {
        self.read_by[self.slot] = Some(submission);
    }
}

/// A plan in the adapter's memory.
struct Loaded {
    device: wgpu::Device,
    queue: wgpu::Queue,
    fault: Arc<Mutex<Option<String>>>,
    /// Segments, by slot; only those of inputs differ.
    slots: [Vec<wgpu::Buffer>; SLOTS],
    turn: Turn<wgpu::SubmissionIndex>,
    launcher: Launcher,
    /// Programs that ran before.
    programs: BTreeMap<String, Vec<Dispatch>>,
    memory: MemoryFacts,
    /// Bytes uploaded since the driver was last waited for.
    staged: u64,
}

impl Loaded {
    fn segment(&self, slice: Slice) -> Result<&wgpu::Buffer, DeviceError> {
        let inside =
            |buffer: &&wgpu::Buffer| slice.offset.checked_add(slice.bytes).is_some_and(|end| end <= buffer.size());
        self.slots[self.turn.slot]
            .get(slice.segment as usize)
            .filter(inside)
            .ok_or_else(|| DeviceError::Misuse(format!("{slice:?} is outside the plan's memory")))
    }

    /// Puts bytes into the queue.
    fn enqueue(&self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        let segment = self.segment(slice)?;
        if bytes.len() as u64 != slice.bytes {
            return Err(DeviceError::Misuse(format!(
                "{} bytes were given for a slice of {}",
                bytes.len(),
                slice.bytes
            )));
        }
        // Words are written: what ends within one is filled up, and nothing else lies there.
        let words = bytes.len().next_multiple_of(4);
        if words == bytes.len() {
            self.queue.write_buffer(segment, slice.offset, bytes);
        } else {
            let mut filled = bytes.to_vec();
            filled.resize(words, 0);
            self.queue.write_buffer(segment, slice.offset, &filled);
        }
        Ok(())
    }
}

impl LoadedPlan for Loaded {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enqueue(slice, bytes)?;
        self.staged += slice.bytes;
        if self.staged > STAGED_BYTES {
            self.queue.submit([]);
            wait(&self.device, None)?;
            self.staged = 0;
        }
        check(&self.fault)
    }

    fn write_inputs(&mut self, inputs: &[(Slice, &[u8])]) -> Result<(), DeviceError> {
        if let Some(submission) = self.turn.next() {
            wait(&self.device, Some(submission))?;
        }
        inputs.iter().try_for_each(|(slice, bytes)| self.enqueue(*slice, bytes))?;
        check(&self.fault)
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        slices.iter().try_for_each(|slice| self.segment(*slice).map(drop))?;
        let download = download::download(&self.device, &self.queue, &self.slots[self.turn.slot], slices);
        check(&self.fault)?;
        Ok(download)
    }

    fn ahead(&self) -> usize {
        AHEAD
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        if !self.programs.contains_key(program) {
            let dispatches = self.launcher.prepare(program, &self.slots)?;
            check(&self.fault)?;
            self.programs.insert(program.to_owned(), dispatches);
        }
        let dispatches = self.programs[program].get(steps.clone());
        let dispatches =
            dispatches.ok_or_else(|| DeviceError::Misuse(format!("program `{program}` has no steps {steps:?}")))?;
        for chunk in dispatches.chunks(STEPS_PER_SUBMISSION) {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in chunk {
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.groups[self.turn.slot], &[]);
                let [x, y, z] = dispatch.workgroups;
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            self.turn.is_read_by(self.queue.submit([encoder.finish()]));
        }
        check(&self.fault)
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        wait(&self.device, None)?;
        check(&self.fault)
    }

    fn memory(&self) -> MemoryFacts {
        self.memory
    }
}

/// Waits for a submission and those before it, by default for all.
fn wait(device: &wgpu::Device, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
    match device.poll(wgpu::PollType::Wait { submission_index, timeout: None }) {
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn failed(why: String) -> DeviceError {
    DeviceError::Driver { device: "wgpu".into(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each step is two submissions, `2 * step` and the one after it.
    #[test]
    fn a_slot_is_written_when_the_last_submission_that_reads_it_is_done() {
        let mut turn = Turn::new();
        let waited_for: Vec<Option<usize>> = (0..6)
            .map(|step| {
                let submission = turn.next();
                turn.is_read_by(2 * step);
                turn.is_read_by(2 * step + 1);
                submission
            })
            .collect();
        assert_eq!(waited_for, [None, None, None, Some(1), Some(3), Some(5)]);
        // Inputs that nothing has read are written over at once.
        let unread: Vec<Option<usize>> = (0..4).map(|_| turn.next()).collect();
        assert_eq!(unread, [Some(7), Some(9), Some(11), None]);
    }
}

//! Any Vulkan, Metal or DX12 adapter, through wgpu.
//!
//! A segment of the plan is one storage buffer; an operand of a step is a binding of a slice of it, always read-write,
//! since one buffer cannot be bound both ways in one dispatch. Pipelines and bind groups are made when a program first runs;
//! after that, running only records dispatches. wgpu orders dispatches that touch the same buffers.
//!
//! The adapter's own limits are requested: the defaults are far below what most hardware has.

mod launch;
mod limits;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, mpsc};

use alip_plan::{Plan, Target, TargetKind};

use self::launch::{Dispatch, Launcher};
use super::{Device, DeviceError, DeviceOptions, Download, LoadedPlan, MemoryFacts, Slice};

/// Dispatches per submission: long queues trip the watchdogs of desktop drivers, short ones cost a call each.
const STEPS_PER_SUBMISSION: usize = 128;

/// Uploads lie in memory of the driver's until they are submitted and done: a whole state would lie there twice.
const STAGED_BYTES: u64 = 64 << 20;

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
        Some(why) => Err(DeviceError::Driver { device: "wgpu".into(), why }),
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
        if plan.target.kind != TargetKind::Wgpu {
            return Err(DeviceError::WrongTarget {
                target: plan.target.name.clone(),
                device: "wgpu".into(),
                wanted: "wgpu".into(),
            });
        }
        alip_plan::check::check(&plan).map_err(|violation| DeviceError::InvalidPlan(violation.to_string()))?;
        limits::check(&plan, &self.limits, &self.info.name)?;
        let segments: Vec<wgpu::Buffer> = plan
            .segments
            .iter()
            .map(|segment| {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: segment.bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })
            .collect();
        if let Err(error) = self.check() {
            let bytes = plan.segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
            return match error {
                DeviceError::Driver { why, .. } if why.to_lowercase().contains("memory") => {
                    Err(DeviceError::OutOfMemory { device: "wgpu".into(), bytes })
                }
                other => Err(other),
            };
        }
        Ok(Box::new(Loaded {
            device: self.device.clone(),
            queue: self.queue.clone(),
            fault: self.fault.clone(),
            memory: MemoryFacts { segments: plan.segments.iter().map(|segment| segment.bytes).sum(), scratch: 0 },
            segments,
            launcher: Launcher::new(self.device.clone(), self.info.name.clone(), plan),
            programs: BTreeMap::new(),
            staged: 0,
        }))
    }
}

/// A plan in the adapter's memory.
struct Loaded {
    device: wgpu::Device,
    queue: wgpu::Queue,
    fault: Arc<Mutex<Option<String>>>,
    segments: Vec<wgpu::Buffer>,
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
        self.segments
            .get(slice.segment as usize)
            .filter(inside)
            .ok_or_else(|| DeviceError::Misuse(format!("{slice:?} is outside the plan's memory")))
    }
}

impl LoadedPlan for Loaded {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        let segment = self.segment(slice)?;
        if bytes.len() as u64 != slice.bytes {
            return Err(DeviceError::Misuse(format!(
                "{} bytes were given for a slice of {}",
                bytes.len(),
                slice.bytes
            )));
        }
        self.queue.write_buffer(segment, slice.offset, bytes);
        self.staged += slice.bytes;
        if self.staged > STAGED_BYTES {
            self.queue.submit([]);
            wait(&self.device)?;
            self.staged = 0;
        }
        check(&self.fault)
    }

    fn read(&mut self, slice: Slice) -> Result<Box<dyn Download>, DeviceError> {
        let segment = self.segment(slice)?;
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: slice.bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(segment, slice.offset, &staging, 0, staging.size());
        self.queue.submit([encoder.finish()]);
        let (sender, done) = mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone when nobody waits any more.
            let _ = sender.send(result.map_err(|error| error.to_string()));
        });
        check(&self.fault)?;
        Ok(Box::new(Pending { device: self.device.clone(), staging, bytes: slice.bytes as usize, done, result: None }))
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        if !self.programs.contains_key(program) {
            let dispatches = self.launcher.prepare(program, &self.segments)?;
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
                pass.set_bind_group(0, &dispatch.group, &[]);
                let [x, y, z] = dispatch.workgroups;
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            self.queue.submit([encoder.finish()]);
        }
        check(&self.fault)
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        wait(&self.device)?;
        check(&self.fault)
    }

    fn memory(&self) -> MemoryFacts {
        self.memory
    }
}

fn wait(device: &wgpu::Device) -> Result<(), DeviceError> {
    match device.poll(wgpu::PollType::wait_indefinitely()) {
        Ok(_) => Ok(()),
        Err(error) => Err(DeviceError::Driver { device: "wgpu".into(), why: error.to_string() }),
    }
}

/// A download: a copy in host-visible memory that is being mapped.
struct Pending {
    device: wgpu::Device,
    staging: wgpu::Buffer,
    bytes: usize,
    done: mpsc::Receiver<Result<(), String>>,
    result: Option<Result<(), String>>,
}

impl Download for Pending {
    fn poll(&mut self) -> bool {
        if self.result.is_none() {
            // Progress only; a failure shows up in the mapping's own result.
            let _ = self.device.poll(wgpu::PollType::Poll);
            self.result = self.done.try_recv().ok();
        }
        self.result.is_some()
    }

    fn wait(mut self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        let failed = |why: String| DeviceError::Driver { device: "wgpu".into(), why };
        if !self.poll() {
            wait(&self.device)?;
            self.result = self.done.recv().ok();
        }
        match self.result.take() {
            Some(Ok(())) => {
                let view = self.staging.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
                Ok(view[..self.bytes].to_vec())
            }
            Some(Err(why)) => Err(failed(why)),
            None => Err(failed("a download was dropped by the driver".into())),
        }
    }
}

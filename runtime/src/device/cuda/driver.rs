//! Calls of the driver: what they need is dropped in order, and what they refuse says which call it was.
//!
//! Every call needs the card's context to be current in its thread, which [`Context::enter`] sees to.

use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::DriverError;
use cudarc::driver::result::{self, event, graph, stream};
use cudarc::driver::sys::{self, CUdevice_attribute, CUevent_flags, CUresult};

use super::super::DeviceError;

/// What a call of the driver says, as an error of the device.
pub(super) fn failed(call: &str, error: DriverError) -> DeviceError {
    DeviceError::Driver { device: "cuda".into(), why: format!("{call}: {}", said(error)) }
}

/// Name and meaning of an error.
pub(super) fn said(error: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| Some(found.ok()?.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("error {}", error.0 as u32),
    }
}

/// Adds the name of a call to what it returns.
pub(super) trait Called<T> {
    /// The value, or an error that names the call.
    fn called(self, call: &str) -> Result<T, DeviceError>;
}

impl<T> Called<T> for Result<T, DriverError> {
    fn called(self, call: &str) -> Result<T, DeviceError> {
        self.map_err(|error| failed(call, error))
    }
}

/// The version of the driver's interface, as 12040 for 12.4.
pub(super) fn version() -> Result<u32, DriverError> {
    let mut version = 0;
    // Safety: it writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version).result()? };
    Ok(version.unsigned_abs())
}

/// The primary context of a card, which other libraries of the process share.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Pinned memory that is used again: to allocate it takes longer than most copies.
    spare: Mutex<Vec<Pinned>>,
}

// Safety: contexts belong to the process, and the driver locks what they share.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn new(device: sys::CUdevice) -> Result<Arc<Context>, DeviceError> {
        // Safety: the device is one that the driver named.
        let context = unsafe { result::primary_ctx::retain(device) }.called("cuDevicePrimaryCtxRetain")?;
        Ok(Arc::new(Context { device, context, spare: Mutex::new(Vec::new()) }))
    }

    /// Makes the context current in this thread.
    pub(super) fn enter(&self) -> Result<(), DeviceError> {
        // Safety: it is retained as long as this lives.
        unsafe { result::ctx::set_current(self.context) }.called("cuCtxSetCurrent")
    }

    /// Bytes of the card's memory that are free.
    pub(super) fn free_memory(&self) -> Result<u64, DeviceError> {
        self.enter()?;
        result::mem_get_info().map(|(free, _)| free as u64).called("cuMemGetInfo")
    }

    /// A property of the card.
    pub(super) fn attribute(&self, attribute: CUdevice_attribute) -> Result<i32, DeviceError> {
        // Safety: the device is one that the driver named.
        unsafe { result::device::get_attribute(self.device, attribute) }.called("cuDeviceGetAttribute")
    }

    /// Pinned memory of at least so many bytes: spare, or new.
    pub(super) fn pinned(self: &Arc<Self>, bytes: usize) -> Result<Lent, DeviceError> {
        let found = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |pinned: &Pinned| pinned.bytes >= bytes && pinned.bytes / 4 <= bytes.max(SMALL);
            spare.iter().position(fits).map(|at| spare.swap_remove(at))
        };
        let pinned = match found {
            Some(pinned) => pinned,
            None => {
                self.enter()?;
                let bytes = bytes.max(SMALL).next_power_of_two();
                // Safety: nothing but bytes will lie there.
                let memory = unsafe { result::malloc_host(bytes, 0) }.called("cuMemHostAlloc")?;
                Pinned { memory: memory.cast(), bytes }
            }
        };
        Ok(Lent { context: self.clone(), pinned: Some(pinned) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            let spare = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
            for pinned in spare {
                // Safety: nobody has it any more. What a lost card says to it helps nobody.
                let _ = unsafe { result::free_host(pinned.memory.cast()) };
            }
        }
        // Safety: it was retained once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Pinned memory is not worth sharing out in smaller pieces.
const SMALL: usize = 4096;

struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

// Safety: it is plain memory of the host.
unsafe impl Send for Pinned {}

/// Pinned memory of the host, which goes back to the spare when dropped.
pub(super) struct Lent {
    context: Arc<Context>,
    pinned: Option<Pinned>,
}

impl Lent {
    /// Its bytes. No copy may be under way that touches them.
    pub(super) fn bytes(&self) -> &[u8] {
        // Safety: the memory has so many bytes, and lives as long as this.
        self.pinned.as_ref().map_or(&[], |pinned| unsafe { std::slice::from_raw_parts(pinned.memory, pinned.bytes) })
    }

    /// Its bytes, to be written. No copy may be under way that touches them.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match &self.pinned {
            // Safety: the memory has so many bytes, lives as long as this, and nobody else has it.
            Some(pinned) => unsafe { std::slice::from_raw_parts_mut(pinned.memory, pinned.bytes) },
            None => &mut [],
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            self.context.spare.lock().unwrap_or_else(PoisonError::into_inner).push(pinned);
        }
    }
}

/// Memory of the card.
pub(super) struct Memory {
    context: Arc<Context>,
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl Memory {
    /// Allocates bytes that hold anything.
    ///
    /// # Errors
    /// Nothing where there is too little memory; otherwise what the driver says.
    pub(super) fn new(context: &Arc<Context>, bytes: u64) -> Result<Option<Memory>, DeviceError> {
        context.enter()?;
        // The driver allocates no empty memory. Safety: nothing but bytes will lie there.
        match unsafe { result::malloc_sync(bytes.max(1) as usize) } {
            Ok(address) => Ok(Some(Memory { context: context.clone(), address, bytes })),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(failed("cuMemAlloc", error)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was allocated once. The driver waits for what still uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A queue of the card.
pub(super) struct Stream {
    context: Arc<Context>,
    pub(super) raw: sys::CUstream,
}

// Safety: streams belong to the context, and one thread at a time has this.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream, DeviceError> {
        context.enter()?;
        let raw = stream::create(stream::StreamKind::NonBlocking).called("cuStreamCreate")?;
        Ok(Stream { context: context.clone(), raw })
    }

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// So many bytes of the card's memory lie there.
    pub(super) unsafe fn clear(&self, address: u64, bytes: u64) -> Result<(), DeviceError> {
        // Safety: as the caller says.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.raw) }.called("cuMemsetD8Async")
    }

    /// Copies to the card.
    ///
    /// # Safety
    /// As many bytes lie there, and pinned ones stay as they are until the copy is done.
    pub(super) unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        // Safety: as the caller says.
        unsafe { result::memcpy_htod_async(address, bytes, self.raw) }.called("cuMemcpyHtoDAsync")
    }

    /// Copies to pinned memory of the host.
    ///
    /// # Safety
    /// As many bytes lie there, and nobody touches those of the host until the copy is done.
    pub(super) unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // Safety: as the caller says.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.raw) }.called("cuMemcpyDtoHAsync")
    }

    /// What is submitted from now on comes after an event.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // Safety: both live.
        unsafe { stream::wait_event(self.raw, event.raw, flags) }.called("cuStreamWaitEvent")
    }

    /// An event that is done when all that was submitted so far is.
    pub(super) fn event(&self) -> Result<Event, DeviceError> {
        self.record(CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// The same, with the time at which it is.
    pub(super) fn mark(&self) -> Result<Event, DeviceError> {
        self.record(CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn record(&self, flags: CUevent_flags) -> Result<Event, DeviceError> {
        let raw = event::create(flags).called("cuEventCreate")?;
        let made = Event { context: self.context.clone(), raw };
        // Safety: both live.
        unsafe { event::record(raw, self.raw) }.called("cuEventRecord")?;
        Ok(made)
    }

    /// Waits until all that was submitted is done.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        // Safety: it lives.
        unsafe { stream::synchronize(self.raw) }.called("cuStreamSynchronize")
    }
}

impl Stream {
    /// Records what is submitted to this stream meanwhile, of which nothing runs, as a graph.
    pub(super) fn capture(&self, submit: impl FnOnce() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        // What other threads do, such as to allocate for another plan, is nothing to this stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // Safety: it lives.
        unsafe { stream::begin_capture(self.raw, mode) }.called("cuStreamBeginCapture")?;
        let submitted = submit();
        // Whatever was submitted, the stream records no longer. Safety: it lives.
        let captured = unsafe { stream::end_capture(self.raw) }.called("cuStreamEndCapture");
        let captured = captured.map(|raw| Captured { context: self.context.clone(), raw });
        submitted?;
        let captured = captured?;
        // Safety: it lives.
        let raw = unsafe { graph::instantiate(captured.raw, sys::CUgraphInstantiate_flags(0)) };
        Ok(Graph { context: self.context.clone(), raw: raw.called("cuGraphInstantiate")? })
    }

    /// Submits all of a graph.
    ///
    /// # Safety
    /// What its launches use still lives.
    pub(super) unsafe fn launch(&self, graph: &Graph) -> Result<(), DeviceError> {
        // Safety: as the caller says.
        unsafe { graph::launch(graph.raw, self.raw) }.called("cuGraphLaunch")
    }
}

/// Launches as they were recorded.
struct Captured {
    context: Arc<Context>,
    raw: sys::CUgraph,
}

impl Drop for Captured {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was captured once.
            let _ = unsafe { graph::destroy(self.raw) };
        }
    }
}

/// Launches that are submitted as one.
pub(super) struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// Safety: graphs belong to the context, and one thread at a time has this.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was instantiated once; the driver destroys it when it has run.
            let _ = unsafe { graph::exec_destroy(self.raw) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was created once; the driver destroys it when its work is done.
            let _ = unsafe { stream::destroy(self.raw) };
        }
    }
}

/// A moment of a stream.
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// Safety: events belong to the context, and one thread at a time has this.
unsafe impl Send for Event {}

impl Event {
    /// Whether it has come; an error counts, since waiting will tell it.
    pub(super) fn is_done(&self) -> bool {
        // Safety: it lives.
        let asked = self.context.enter().is_ok().then(|| unsafe { event::query(self.raw) });
        asked != Some(Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)))
    }

    /// Waits until it has come.
    pub(super) fn wait(&self) -> Result<(), DeviceError> {
        self.context.enter()?;
        // Safety: it lives.
        unsafe { event::synchronize(self.raw) }.called("cuEventSynchronize")
    }

    /// The time from this mark to a later one; both have come.
    pub(super) fn until(&self, later: &Event) -> Result<Duration, DeviceError> {
        self.context.enter()?;
        // Safety: both live.
        let milliseconds = unsafe { event::elapsed(self.raw, later.raw) }.called("cuEventElapsedTime")?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was created once.
            let _ = unsafe { event::destroy(self.raw) };
        }
    }
}

/// Compiled kernels on the card.
pub(super) struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// Safety: modules belong to the context.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

/// A kernel of a module that is kept.
#[derive(Clone)]
pub(super) struct Function {
    module: Arc<Module>,
    raw: sys::CUfunction,
}

// Safety: functions belong to the context.
unsafe impl Send for Function {}

impl Module {
    pub(super) fn new(context: &Arc<Context>, cubin: &[u8]) -> Result<Arc<Module>, DeviceError> {
        context.enter()?;
        // Safety: a cubin says how long it is.
        let raw = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.called("cuModuleLoadData")?;
        Ok(Arc::new(Module { context: context.clone(), raw }))
    }

    pub(super) fn function(self: &Arc<Self>, entry: &str) -> Result<Function, DeviceError> {
        let name = CString::new(entry).map_err(|_| DeviceError::InvalidPlan("a kernel's name holds a zero".into()))?;
        self.context.enter()?;
        // Safety: the module lives.
        let raw = unsafe { result::module::get_function(self.raw, name) }.called("cuModuleGetFunction")?;
        Ok(Function { module: self.clone(), raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // Safety: it was loaded once, and its functions keep it.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

impl Function {
    /// Lets the kernel have so much dynamic shared memory, where that is more than every kernel may have.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<(), DeviceError> {
        const EVERY_KERNEL: u32 = 48 << 10;
        if bytes <= EVERY_KERNEL {
            return Ok(());
        }
        self.module.context.enter()?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // Safety: the function lives.
        unsafe { result::function::set_function_attribute(self.raw, attribute, bytes as i32) }
            .called("cuFuncSetAttribute")
    }

    /// Submits a launch; `parameters` point to the addresses of its operands.
    ///
    /// # Safety
    /// The kernel takes so many operands, and keeps to their bounds.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block, 1, 1));
        // Safety: as the caller says.
        unsafe { result::launch_kernel(self.raw, grid, block, shared_bytes, stream.raw, parameters) }
            .called("cuLaunchKernel")
    }
}

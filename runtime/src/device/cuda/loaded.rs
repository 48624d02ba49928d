//! A plan on a card: its memory, its queues, uploads and downloads.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use alip_plan::kernel::Implementation;
use alip_plan::{Plan, Segment, SegmentKind};

use super::super::gathered::{Gathered, WORD};
use super::super::{DeviceError, Download, Free, LoadedPlan, MemoryFacts, Slice, time_by_waiting};
use super::compile::Compiler;
use super::cublaslt::CublasLt;
use super::driver::{self, Called, Context, Event, Lent, Memory, Stream};
use super::launch::{Launcher, Products};
use super::program::Program;
use super::{AHEAD, SLOTS, libraries};

/// The oldest driver whose events tell the time by the call that there is now.
const OLDEST_CLOCK: u32 = 12_080;

/// Allocates a plan's segments, zeroed. Programs become graphs where that is wanted.
///
/// # Errors
/// Too little memory, a plan with products for a library that is not there, or the driver fails.
pub(super) fn load(
    context: &Arc<Context>,
    compiler: &Arc<Compiler>,
    plan: Arc<Plan>,
    graphs: bool,
) -> Result<Box<dyn LoadedPlan>, DeviceError> {
    let memory = facts(&plan);
    let free = room(context, &plan)?;
    if free.needed > free.bytes {
        return Err(DeviceError::NoRoom { device: "cuda".into(), room: free });
    }
    let stream = Stream::new(context)?;
    let too_little = |bytes| DeviceError::OutOfMemory { device: "cuda".into(), bytes, free: Some(free) };
    let room = |bytes: u64| Memory::new(context, bytes)?.ok_or_else(|| too_little(bytes));
    let library = workspace_bytes(&plan).map(|_| library()).transpose()?;
    let allocate = |segment: &Segment| -> Result<Arc<Memory>, DeviceError> {
        // Downloads are of whole words.
        let memory = room(segment.bytes.next_multiple_of(WORD))?;
        // Safety: the memory has so many bytes.
        unsafe { stream.clear(memory.address, memory.bytes)? };
        Ok(Arc::new(memory))
    };
    let first = plan.segments.iter().map(allocate).collect::<Result<Vec<_>, _>>()?;
    let mut slots = std::array::from_fn(|_| first.clone());
    for slot in slots.iter_mut().skip(1) {
        for (memory, segment) in slot.iter_mut().zip(&plan.segments).filter(|(_, segment)| is_input(segment)) {
            *memory = allocate(segment)?;
        }
    }
    let products = match (library, workspace_bytes(&plan)) {
        (Some(library), Some(bytes)) => Some(Products { library, workspace: Arc::new(room(bytes)?) }),
        _ => None,
    };
    stream.synchronize()?;
    Ok(Box::new(Loaded {
        uploads: Stream::new(context)?,
        launcher: Launcher::new(context.clone(), compiler.clone(), plan, products)?,
        context: context.clone(),
        stream,
        slots,
        slot: 0,
        read_by: std::array::from_fn(|_| None),
        staged: std::array::from_fn(|_| None),
        uploaded: None,
        programs: BTreeMap::new(),
        graphs,
        parameters: Vec::new(),
        memory,
    }))
}

/// What products of the library may use beside their operands; none where a plan has no such products.
fn workspace_bytes(plan: &Plan) -> Option<u64> {
    let calls = plan.kernels.iter().any(|kernel| kernel.implementation == Implementation::CublasLt);
    plan.target.library.filter(|_| calls).map(|library| library.workspace_bytes)
}

/// The library, for the context that is current.
fn library() -> Result<Arc<CublasLt>, DeviceError> {
    let unavailable = |why: String| DeviceError::Unavailable {
        name: "cuda".into(),
        why: format!("{why}; a plan that `alipc compile --no-library` writes does without it"),
    };
    libraries::cublaslt().map_err(unavailable)?;
    CublasLt::new().map_err(unavailable)
}

fn is_input(segment: &Segment) -> bool {
    segment.kind == SegmentKind::Inputs
}

/// What a plan takes of the card's memory.
fn facts(plan: &Plan) -> MemoryFacts {
    let inputs = plan.segments.iter().filter(|segment| is_input(segment)).map(|segment| segment.bytes).sum::<u64>();
    MemoryFacts {
        segments: plan.segments.iter().map(|segment| segment.bytes).sum(),
        scratch: inputs * (SLOTS as u64 - 1) + workspace_bytes(plan).unwrap_or(0),
    }
}

/// What a plan takes of the card's memory, and what is free of it.
pub(super) fn room(context: &Arc<Context>, plan: &Plan) -> Result<Free, DeviceError> {
    let MemoryFacts { segments, scratch } = facts(plan);
    Ok(Free { bytes: context.free_memory()?, needed: segments + scratch })
}

/// A plan in the card's memory. Its queues are dropped before the memory that they use.
struct Loaded {
    context: Arc<Context>,
    /// Launches, and what is read and written in their order.
    stream: Stream,
    /// Inputs on their way.
    uploads: Stream,
    /// Programs that ran before.
    programs: BTreeMap<String, Program>,
    /// Whether programs become graphs.
    graphs: bool,
    launcher: Launcher,
    /// Segments, by slot; only those of inputs differ.
    slots: [Vec<Arc<Memory>>; SLOTS],
    /// Where inputs were written last.
    slot: usize,
    /// The end of what was submitted last with the inputs of a slot.
    read_by: [Option<Event>; SLOTS],
    /// Pinned memory from which a slot was filled last.
    staged: [Option<Lent>; SLOTS],
    /// The end of an upload for which launches do not wait yet.
    uploaded: Option<Event>,
    /// Room for the parameters of a launch.
    parameters: Vec<*mut c_void>,
    memory: MemoryFacts,
}

// Safety: the pointers in `parameters` are used within one call only.
unsafe impl Send for Loaded {}

impl Loaded {
    /// Where a slice begins.
    fn address(&self, slice: Slice) -> Result<u64, DeviceError> {
        let inside =
            |memory: &&Arc<Memory>| slice.offset.checked_add(slice.bytes).is_some_and(|end| end <= memory.bytes);
        let segment = self.slots[self.slot].get(slice.segment as usize).filter(inside);
        let outside = || DeviceError::Misuse(format!("{slice:?} is outside the plan's memory"));
        Ok(segment.ok_or_else(outside)?.address + slice.offset)
    }

    /// Makes what is submitted next come after the inputs that were written last.
    fn follow_uploads(&mut self) -> Result<(), DeviceError> {
        self.context.enter()?;
        self.uploaded.take().map_or(Ok(()), |event| self.stream.wait_for(&event))
    }

    /// Makes the launches of a program, once.
    fn prepare(&mut self, program: &str) -> Result<(), DeviceError> {
        if !self.programs.contains_key(program) {
            let launches = self.launcher.prepare(program, &self.slots)?;
            self.programs.insert(program.to_owned(), Program::new(launches, self.graphs));
        }
        Ok(())
    }

    /// Nothing overwrites the inputs of this slot before all that was submitted so far is done.
    fn keep_slot(&mut self) -> Result<(), DeviceError> {
        self.read_by[self.slot] = Some(self.stream.event()?);
        Ok(())
    }

    /// Goes on to the next slot, once nothing reads it any more.
    fn next_slot(&mut self) -> Result<(), DeviceError> {
        self.slot = (self.slot + 1) % SLOTS;
        if let Some(event) = self.read_by[self.slot].take() {
            event.wait()?;
        }
        // Inputs that nothing has read may still be on their way there.
        if self.staged[self.slot].is_some() {
            self.uploads.synchronize()?;
        }
        Ok(())
    }
}

fn check_length(slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
    if bytes.len() as u64 == slice.bytes {
        return Ok(());
    }
    Err(DeviceError::Misuse(format!("{} bytes were given for a slice of {}", bytes.len(), slice.bytes)))
}

impl LoadedPlan for Loaded {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        let address = self.address(slice)?;
        check_length(slice, bytes)?;
        self.follow_uploads()?;
        // Safety: the slice lies within its segment, and the bytes live until all of them were read.
        unsafe { self.stream.upload(address, bytes) }?;
        self.stream.synchronize()
    }

    fn write_inputs(&mut self, inputs: &[(Slice, &[u8])]) -> Result<(), DeviceError> {
        self.context.enter()?;
        self.next_slot()?;
        let mut rest = 0;
        let mut copies = Vec::with_capacity(inputs.len());
        for (slice, bytes) in inputs {
            check_length(*slice, bytes)?;
            copies.push((self.address(*slice)?, rest..rest + bytes.len()));
            rest += bytes.len();
        }
        // What the slot was filled from last is spare again, since that copy is done.
        self.staged[self.slot] = None;
        let mut staged = self.context.pinned(rest)?;
        for ((_, bytes), (_, place)) in inputs.iter().zip(&copies) {
            staged.bytes_mut()[place.clone()].copy_from_slice(bytes);
        }
        // The slot has them before the first copy, since those before one that is refused go on reading them.
        let staged = self.staged[self.slot].insert(staged);
        let copied = copies.into_iter().try_for_each(|(address, place)| {
            // Safety: the slice lies within its segment, and the slot keeps the pinned bytes until the copy is done.
            unsafe { self.uploads.upload(address, &staged.bytes()[place]) }
        });
        let recorded = self.uploads.event().map(|event| self.uploaded = Some(event));
        copied.and(recorded)
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        slices.iter().try_for_each(|slice| self.address(*slice).map(drop))?;
        self.follow_uploads()?;
        let gathered = Gathered::new(slices);
        let mut pinned = self.context.pinned(gathered.bytes as usize)?;
        let mut rest = pinned.bytes_mut();
        let copied = gathered.copies.iter().try_for_each(|copy| {
            let address = self.address(*copy)?;
            let (own, others) = std::mem::take(&mut rest).split_at_mut(copy.bytes as usize);
            rest = others;
            // Safety: the copy lies within its segment, and the download keeps the pinned bytes until it is done.
            unsafe { self.stream.download(address, own) }
        });
        match copied.and_then(|()| self.keep_slot()).and_then(|()| self.stream.event()) {
            Ok(done) => Ok(Box::new(Pending { gathered, pinned: Some(pinned), done })),
            Err(why) => {
                // The copies before one that is refused go on writing there.
                let _ = self.stream.synchronize();
                Err(why)
            }
        }
    }

    fn ahead(&self) -> usize {
        AHEAD
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        self.prepare(program)?;
        self.follow_uploads()?;
        let missing = || DeviceError::Misuse(format!("program `{program}` has no steps {steps:?}"));
        let found = self.programs.get_mut(program).ok_or_else(missing)?;
        let submitted = found.submit(&steps, &self.stream, self.slot, &mut self.parameters).ok_or_else(missing)?;
        // Those before one that is refused read the inputs too.
        let kept = self.keep_slot();
        submitted.and(kept)
    }

    fn time_steps(&mut self, program: &str, steps: usize) -> Result<Vec<Duration>, DeviceError> {
        if driver::version().called("cuDriverGetVersion")? < OLDEST_CLOCK {
            return time_by_waiting(self, program, steps);
        }
        // Kernels are loaded before the clock runs.
        self.prepare(program)?;
        self.follow_uploads()?;
        let mut marks = vec![self.stream.mark()?];
        for step in 0..steps {
            self.run_steps(program, step..step + 1)?;
            marks.push(self.stream.mark()?);
        }
        self.synchronize()?;
        marks.windows(2).map(|pair| pair[0].until(&pair[1])).collect()
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        self.follow_uploads()?;
        self.stream.synchronize()
    }

    fn memory(&self) -> MemoryFacts {
        self.memory
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Copies may still read pinned memory, which others would be given. A lost card copies nothing.
        if self.context.enter().is_ok() {
            let _ = self.uploads.synchronize();
            let _ = self.stream.synchronize();
        }
    }
}

/// Copies in pinned memory that are being made.
struct Pending {
    gathered: Gathered,
    pinned: Option<Lent>,
    done: Event,
}

impl Download for Pending {
    fn poll(&mut self) -> bool {
        self.done.is_done()
    }

    fn wait(mut self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        self.done.wait()?;
        Ok(self.pinned.take().map_or_else(Vec::new, |pinned| self.gathered.pick(pinned.bytes())))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nobody else is given memory that is still written to.
        if self.pinned.is_some() {
            let _ = self.done.wait();
        }
    }
}

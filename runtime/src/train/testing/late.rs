//! A device that is really asynchronous: steps run on a thread of its own, in the order of their submission, inputs are uploaded past
//! it into the slot that is free next, and downloads come when the thread has got there.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use alip_plan::PROGRAM_TRAIN;

use super::Wrapped;
use crate::device::{Device, DeviceError, Download, LoadedPlan, MemoryFacts, Slice};

/// Copies of the inputs.
const SLOTS: usize = 2;

/// When the thread does what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once, beside the host.
    AtOnce,
    /// Not before the host waits for it.
    WhenWaitedFor,
    /// Before whoever gives it goes on: what the host waits for is always there.
    BeforeItReturns,
}

/// The device; `most` is how many training steps were submitted and not done when there were most of them.
pub(crate) fn late(pace: Pace, most: &Arc<AtomicUsize>) -> Box<dyn Device> {
    let most = Arc::clone(most);
    Box::new(Wrapped(move |inner: Box<dyn LoadedPlan>| -> Box<dyn LoadedPlan> {
        let memory = inner.memory();
        let queue = Queue { at_once: pace != Pace::WhenWaitedFor, ..Queue::default() };
        let shared = Arc::new(Shared { pace, queue: Mutex::new(queue), changed: Condvar::new() });
        let worker = Arc::clone(&shared);
        let thread = std::thread::spawn(move || worker.work(inner));
        let slots = std::array::from_fn(|_| Slot::default());
        Box::new(LoadedLate { shared, thread: Some(thread), slots, slot: 0, memory, most: Arc::clone(&most) })
    }))
}

type Inputs = Arc<Mutex<Vec<(Slice, Vec<u8>)>>>;

enum Command {
    Write(Slice, Vec<u8>),
    Run { program: String, steps: Range<usize>, inputs: Inputs },
    Read(Vec<Slice>, Sender<Vec<u8>>),
}

#[derive(Default)]
struct Queue {
    at_once: bool,
    waiting: VecDeque<Command>,
    /// Commands given, those done, and those that the host has waited for.
    given: u64,
    done: u64,
    wanted: u64,
    /// Training steps given and not done.
    in_flight: usize,
    closed: bool,
    failed: Option<DeviceError>,
}

struct Shared {
    pace: Pace,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap()
    }

    fn work(&self, mut inner: Box<dyn LoadedPlan>) {
        loop {
            let idle = |queue: &mut Queue| {
                !queue.closed && (queue.waiting.is_empty() || !queue.at_once && queue.done >= queue.wanted)
            };
            let mut queue = self.changed.wait_while(self.lock(), idle).unwrap();
            if queue.closed {
                return;
            }
            let command = queue.waiting.pop_front().unwrap();
            drop(queue);
            let trains = matches!(&command, Command::Run { program, .. } if program == PROGRAM_TRAIN);
            let done = execute(inner.as_mut(), command);
            let mut queue = self.lock();
            queue.done += 1;
            queue.in_flight -= usize::from(trains);
            queue.failed = queue.failed.take().or(done.err());
            self.changed.notify_all();
        }
    }

    /// Gives the thread something to do; its number.
    fn push(&self, command: Command) -> u64 {
        let mut queue = self.lock();
        queue.waiting.push_back(command);
        queue.given += 1;
        self.changed.notify_all();
        let number = queue.given;
        if self.pace == Pace::BeforeItReturns {
            drop(self.changed.wait_while(queue, |queue| queue.done < number));
        }
        number
    }

    /// Waits until the command of this number is done.
    fn wait(&self, number: u64) -> Result<(), DeviceError> {
        let mut queue = self.lock();
        queue.wanted = queue.wanted.max(number);
        self.changed.notify_all();
        let queue = self.changed.wait_while(queue, |queue| queue.done < number).unwrap();
        queue.failed.clone().map_or(Ok(()), Err)
    }
}

fn execute(inner: &mut dyn LoadedPlan, command: Command) -> Result<(), DeviceError> {
    match command {
        Command::Write(slice, bytes) => inner.write(slice, &bytes),
        Command::Run { program, steps, inputs } => {
            for (slice, bytes) in inputs.lock().unwrap().iter() {
                inner.write(*slice, bytes)?;
            }
            inner.run_steps(&program, steps)
        }
        Command::Read(slices, reply) => {
            // Nobody may be interested any more.
            let _ = reply.send(inner.read(&slices)?.wait()?);
            Ok(())
        }
    }
}

/// Inputs, and the last command that reads them.
#[derive(Default)]
struct Slot {
    inputs: Inputs,
    read_by: u64,
}

struct LoadedLate {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    slots: [Slot; SLOTS],
    slot: usize,
    memory: MemoryFacts,
    most: Arc<AtomicUsize>,
}

impl LoadedPlan for LoadedLate {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.shared.push(Command::Write(slice, bytes.to_vec()));
        Ok(())
    }

    fn write_inputs(&mut self, inputs: &[(Slice, &[u8])]) -> Result<(), DeviceError> {
        self.slot = (self.slot + 1) % SLOTS;
        let slot = &self.slots[self.slot];
        self.shared.wait(slot.read_by)?;
        *slot.inputs.lock().unwrap() = inputs.iter().map(|(slice, bytes)| (*slice, bytes.to_vec())).collect();
        Ok(())
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        let (reply, bytes) = channel();
        let number = self.shared.push(Command::Read(slices.to_vec(), reply));
        Ok(Box::new(LateDownload { shared: Arc::clone(&self.shared), number, bytes }))
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        if program == PROGRAM_TRAIN {
            let mut queue = self.shared.lock();
            queue.in_flight += 1;
            self.most.fetch_max(queue.in_flight, Ordering::Relaxed);
        }
        let slot = &mut self.slots[self.slot];
        let inputs = Arc::clone(&slot.inputs);
        slot.read_by = self.shared.push(Command::Run { program: program.to_string(), steps, inputs });
        Ok(())
    }

    fn ahead(&self) -> usize {
        2
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        let given = self.shared.lock().given;
        self.shared.wait(given)
    }

    fn memory(&self) -> MemoryFacts {
        self.memory
    }
}

impl Drop for LoadedLate {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct LateDownload {
    shared: Arc<Shared>,
    number: u64,
    bytes: Receiver<Vec<u8>>,
}

impl Download for LateDownload {
    fn poll(&mut self) -> bool {
        self.shared.lock().done >= self.number
    }
    fn wait(self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        self.shared.wait(self.number)?;
        Ok(self.bytes.recv().unwrap())
    }
}

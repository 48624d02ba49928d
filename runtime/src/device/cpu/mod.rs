//! The embedded device: all cores of the processor, nothing installed.
//!
//! Pointwise code and reductions run as register code over tiles that stay in the first-level cache ([`code`], [`run`]),
//! one loop per instruction, compiled for several instruction sets ([`isa`]). Products come from the `gemm` crate,
//! also those of attention ([`attention`]), whose scores stay in cache.
//!
//! Invariants:
//! - How work is cut depends on shapes only, never on the number of threads, so results do not either.
//! - Every view was checked against its buffer when the plan was loaded; hot code checks nothing.
//! - After the first run of a program nothing is allocated but packing buffers of products.

mod attention;
mod code;
mod conv;
mod fold;
mod grid;
mod isa;
mod kernel;
mod math;
mod matrix;
mod pixels;
mod product;
mod reduction;
mod run;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use alip_plan::{Buffer, Plan, Program, Step, Target};

use self::kernel::Prepared;
use self::run::{Operands, Scratch};
use super::host::{HostMemory, check_steps};
use super::{Device, DeviceError, DeviceOptions, Download, LoadedPlan, MemoryFacts, Slice, check_plan};

/// The cpu device.
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    loops: isa::Loops,
}

/// Opens the cpu device with `threads` threads, by default one per core.
///
/// # Errors
/// The system refuses to start threads.
pub fn open(options: &DeviceOptions) -> Result<Box<dyn Device>, String> {
    Ok(Box::new(Cpu::new(options.threads)?))
}

impl Cpu {
    /// A device with this many threads, by default one per core. Results do not depend on it.
    ///
    /// # Errors
    /// The system refuses to start threads.
    pub fn new(threads: Option<usize>) -> Result<Cpu, String> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Cpu { pool: Arc::new(pool), loops: isa::detect() })
    }
}

impl Device for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn description(&self) -> String {
        format!("{}, {}", self.summary(), self.arithmetic())
    }

    fn summary(&self) -> String {
        let threads = self.pool.current_num_threads();
        format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn arithmetic(&self) -> String {
        format!("{} vectors", self.loops.name)
    }

    fn target(&self) -> Target {
        Target::cpu()
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        check_plan(&plan, self)?;
        let mut kernels = Kernels { loops: self.loops, prepared: BTreeMap::new() };
        let mut programs = BTreeMap::new();
        for (name, program) in &plan.programs {
            let launches = program.steps.iter().map(|step| kernels.launch(&plan, program, step));
            let launches = launches.collect::<Result<Vec<_>, _>>().map_err(DeviceError::InvalidPlan)?;
            programs.insert(name.clone(), launches);
        }
        let memory = HostMemory::new(&plan, self.name())?;
        let scratch = (0..self.pool.current_num_threads()).map(|_| Mutex::new(Scratch::new())).collect();
        Ok(Box::new(Loaded { plan, memory, programs, threads: Threads { pool: Arc::clone(&self.pool), scratch } }))
    }
}

/// Kernels prepared so far, shared by the steps that apply them to operands that overlap in the same way.
struct Kernels {
    loops: isa::Loops,
    prepared: BTreeMap<(u32, Vec<usize>), Arc<Prepared>>,
}

/// A step: a prepared kernel and where its operands lie.
struct Launch {
    kernel: Arc<Prepared>,
    /// Segment and offset in bytes.
    operands: Vec<(u32, u64)>,
}

impl Kernels {
    fn launch(&mut self, plan: &Plan, program: &Program, step: &Step) -> Result<Launch, String> {
        // `check` made sure that buffers and kernel exist.
        let buffers: Vec<&Buffer> =
            step.operands.iter().filter_map(|&operand| program.buffers.get(operand as usize)).collect();
        let overlap = |a: &Buffer, b: &Buffer| {
            a.segment == b.segment && a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes()
        };
        let alias: Vec<usize> = buffers
            .iter()
            .enumerate()
            .map(|(index, buffer)| buffers.iter().position(|other| overlap(buffer, other)).unwrap_or(index))
            .collect();
        let key = (step.kernel, alias);
        let kernel = match self.prepared.get(&key) {
            Some(kernel) => Arc::clone(kernel),
            None => {
                let found = plan.kernels.get(step.kernel as usize);
                let found = found.ok_or_else(|| format!("kernel {} of {}", step.kernel, plan.kernels.len()))?;
                let kernel = Prepared::new(&found.description, &key.1, &self.loops);
                let kernel = Arc::new(kernel.map_err(|why| format!("{}: {why}", step.origin))?);
                self.prepared.insert(key, Arc::clone(&kernel));
                kernel
            }
        };
        Ok(Launch { kernel, operands: buffers.iter().map(|buffer| (buffer.segment, buffer.offset)).collect() })
    }
}

/// The device's threads and what each needs.
struct Threads {
    pool: Arc<rayon::ThreadPool>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Threads {
    /// Lends the current thread its scratch. Never held across a point where rayon could run another task.
    fn with_scratch<R>(&self, run: impl FnOnce(&mut Scratch) -> R) -> R {
        let index = self.pool.current_thread_index().unwrap_or(0);
        // A panic in a task poisons the lock; scratch holds nothing that survives a task.
        let mut scratch = self.scratch[index].lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut scratch)
    }

    /// Runs `task(first, last)` over ranges that cover `0..count`, in parallel when there are several; `weight` is the cost
    /// of one in lane operations. Ranges must be independent: how many there are depends on the threads.
    fn ranges(&self, count: usize, weight: usize, task: impl Fn(Range<usize>) + Sync) {
        use rayon::prelude::*;
        /// Lane operations worth waking another thread for: some 20 microseconds.
        const WORTHWHILE: usize = 128 * 1024;
        let least = (WORTHWHILE / weight.max(1)).max(1);
        let parts = (count / least).min(self.scratch.len() * 4);
        if parts <= 1 {
            return task(0..count);
        }
        (0..parts).into_par_iter().for_each(|part| task(part * count / parts..(part + 1) * count / parts));
    }
}

struct Loaded {
    plan: Arc<Plan>,
    memory: HostMemory,
    programs: BTreeMap<String, Vec<Launch>>,
    threads: Threads,
}

impl LoadedPlan for Loaded {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.memory.write(slice, bytes)
    }

    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        self.memory.read(slices)
    }

    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        check_steps(&self.plan, program, &steps)?;
        let launches = self.programs.get(program).and_then(|launches| launches.get(steps)).unwrap_or_default();
        let (memory, threads) = (&self.memory, &self.threads);
        threads.pool.install(|| {
            for launch in launches {
                let base = |&(segment, offset): &(u32, u64)| {
                    // SAFETY: `check` keeps buffers inside their segments.
                    unsafe { memory.base(segment).add(offset as usize) }
                };
                let operands = Operands(launch.operands.iter().map(base).collect());
                launch.kernel.run(&operands, threads);
            }
        });
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn memory(&self) -> MemoryFacts {
        let scratch = |scratch: &Mutex<Scratch>| scratch.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        MemoryFacts { segments: self.memory.bytes(), scratch: self.threads.scratch.iter().map(scratch).sum() }
    }
}

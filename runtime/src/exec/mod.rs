//! Runs the programs of a plan on a device.
//!
//! A [`Session`] owns a loaded plan. It knows names, shapes and dtypes; the device below it knows bytes. Invariant: what
//! leaves a step is in the plan's state or among the program's outputs; a session holds no other state.
//!
//! A program of which the plan has several, by number of rows, runs under one name: the session computes on the host how
//! many rows a batch has and takes the smallest that holds them ([`rows`]).

mod rows;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alip_plan::{Buffer, PROGRAM_INIT, Plan, Program, SegmentKind};

use crate::device::{Device, DeviceError, Download, LoadedPlan, MemoryFacts, Slice};
use crate::tensor::{HostTensor, Shape, TensorError};
use rows::RowCounter;

pub use rows::{RowTotals, RowsRun};

/// Tensors by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// Why a program did not run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExecError {
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The plan has no such program.
    #[error("the plan of `{plan}` has no program `{program}`; it has {known}")]
    NoProgram {
        /// Name of the graph.
        plan: String,
        /// Program asked for.
        program: String,
        /// Programs there are.
        known: String,
    },
    /// An input is missing, or an output or state tensor asked for does not exist.
    #[error("{what} `{name}` {problem}; there is {known}")]
    Name {
        /// `input of train`, `output of train`, `state tensor`.
        what: String,
        /// The name.
        name: String,
        /// `is missing` or `does not exist`.
        problem: &'static str,
        /// The names there are.
        known: String,
    },
    /// A tensor has another shape or dtype than the plan expects.
    #[error("{what} `{name}` must be {expected}, but is {found}")]
    Mismatch {
        /// `input of train`, `state tensor`.
        what: String,
        /// The name.
        name: String,
        /// Dtype and shape expected.
        expected: String,
        /// Dtype and shape found.
        found: String,
    },
    /// A download does not fit its buffer's description.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The first value of a program that is not a number or +infinity.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// Index of the step.
    pub step: usize,
    /// Node path of the step.
    pub origin: String,
    /// Index into the program's buffers.
    pub buffer: usize,
    /// Position in the buffer, row-major.
    pub element: usize,
    /// NaN or infinity.
    pub value: f32,
}

/// When a step is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It has not run.
    Before,
    /// It has.
    After,
}

/// Bytes of an arena that are cleared with one upload.
const CLEARED_AT_ONCE: usize = 4 << 20;

/// A plan on a device, with tensors by name.
pub struct Session {
    plan: Arc<Plan>,
    loaded: Box<dyn LoadedPlan>,
    /// Of packed programs.
    counters: BTreeMap<String, RowCounter>,
}

impl Session {
    /// Loads a plan; its state is zero until [`Session::init`] or [`Session::write_state`].
    ///
    /// # Errors
    /// The device refuses the plan: wrong target, invalid, too little memory.
    pub fn new(plan: Arc<Plan>, device: Box<dyn Device>) -> Result<Session, ExecError> {
        Session::on(device.as_ref(), plan)
    }

    /// The same on a device that is needed again if it refuses.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn on(device: &dyn Device, plan: Arc<Plan>) -> Result<Session, ExecError> {
        let loaded = device.load(Arc::clone(&plan))?;
        let counters = rows::counters(&plan)?;
        Ok(Session { plan, loaded, counters })
    }

    /// How many rows the packed program ran with last; none if it is not packed or has not run.
    pub fn rows_run(&self, program: &str) -> Option<&RowsRun> {
        self.counters.get(program)?.last()
    }

    /// The program that ran last under this name: one of several if it is packed.
    ///
    /// # Errors
    /// The plan has no program of this name.
    pub fn ran(&self, program: &str) -> Result<&Program, ExecError> {
        find(&self.plan, self.name_of(program))
    }

    fn name_of<'a>(&'a self, program: &'a str) -> &'a str {
        self.rows_run(program).map_or(program, |run| &run.program)
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Memory held by the device for this plan.
    pub fn memory(&self) -> MemoryFacts {
        self.loaded.memory()
    }

    /// Sets every state tensor to its first value.
    ///
    /// # Errors
    /// The plan has no program `init`, or the device fails.
    pub fn init(&mut self, seed: i32) -> Result<(), ExecError> {
        let inputs = Tensors::from([("seed".to_string(), HostTensor::scalar_i32(seed))]);
        self.run_for(PROGRAM_INIT, &inputs, &[]).map(|_| ())
    }

    /// Runs a program and downloads all its outputs.
    ///
    /// # Errors
    /// As [`Session::run_for`].
    pub fn run(&mut self, program: &str, inputs: &Tensors) -> Result<Tensors, ExecError> {
        let plan = Arc::clone(&self.plan);
        let outputs: Vec<&str> = find(&plan, program)?.outputs.iter().map(|port| port.name.as_str()).collect();
        self.run_for(program, inputs, &outputs)
    }

    /// Runs a program and downloads the outputs named. Inputs the program does not have are ignored, so that one batch
    /// serves several programs.
    ///
    /// # Errors
    /// An input that is missing or has another shape or dtype, an unknown program or output, or the device fails.
    pub fn run_for(&mut self, program: &str, inputs: &Tensors, outputs: &[&str]) -> Result<Tensors, ExecError> {
        self.submit(program, inputs)?;
        Ok(self.download(program, outputs, &[])?.wait()?.outputs)
    }

    /// Uploads inputs and submits all steps of a program without waiting for them.
    ///
    /// # Errors
    /// As [`Session::run_for`].
    pub fn submit(&mut self, program: &str, inputs: &Tensors) -> Result<(), ExecError> {
        let plan = Arc::clone(&self.plan);
        let (name, found) = self.upload(&plan, program, inputs)?;
        Ok(self.loaded.run_steps(&name, 0..found.steps.len())?)
    }

    /// Starts the download, as one piece, of outputs of the program that was submitted last and of state as it leaves it. What
    /// is submitted later changes nothing of it.
    ///
    /// # Errors
    /// An unknown program, output or state tensor, or the device fails.
    pub fn download(&mut self, program: &str, outputs: &[&str], state: &[&str]) -> Result<Results, ExecError> {
        let found = self.ran(program)?;
        let output = |&name: &&str| match found.output(name) {
            Some(buffer) => Ok((name.to_string(), buffer.clone())),
            None => Err(ExecError::Name {
                what: format!("output of {program}"),
                name: name.to_string(),
                problem: "does not exist",
                known: list(found.outputs.iter().map(|port| &port.name)),
            }),
        };
        let mut tensors = outputs.iter().map(output).collect::<Result<Vec<_>, _>>()?;
        for &path in state {
            tensors.push((path.to_string(), self.state(path)?));
        }
        let slices: Vec<Slice> = tensors.iter().map(|(_, buffer)| Slice::from(buffer)).collect();
        Ok(Results { outputs: outputs.len(), tensors, download: self.loaded.read(&slices)? })
    }

    /// How many more runs of a program may well be submitted before the results of one are waited for: 0 on a device that has
    /// computed what [`Session::submit`] asks for when it returns.
    pub fn ahead(&self) -> usize {
        self.loaded.ahead()
    }

    /// Waits until everything submitted is done.
    ///
    /// # Errors
    /// The device fails.
    pub fn synchronize(&mut self) -> Result<(), ExecError> {
        Ok(self.loaded.synchronize()?)
    }

    /// The current value of a state tensor.
    ///
    /// # Errors
    /// No such tensor, or the device fails.
    pub fn read_state(&mut self, path: &str) -> Result<HostTensor, ExecError> {
        let buffer = self.state(path)?;
        self.value(&buffer)
    }

    /// Replaces the value of a state tensor; a float is rounded to the type in which the plan keeps it.
    ///
    /// # Errors
    /// No such tensor, another shape or kind of dtype, or the device fails.
    pub fn write_state(&mut self, path: &str, tensor: &HostTensor) -> Result<(), ExecError> {
        let buffer = self.state(path)?;
        let tensor = fitting("state tensor", path, &buffer, tensor)?;
        Ok(self.loaded.write(Slice::from(&buffer), tensor.bytes())?)
    }

    /// Runs a program step by step and stops after the first one that makes NaN or +infinity (a mask may legitimately hold
    /// -infinity). State changes as in [`Session::run`] up to there.
    ///
    /// A step may write into a part of a buffer: of what it leaves there, only what it has changed is its own, and nothing
    /// that an earlier launch left is taken for it.
    ///
    /// # Errors
    /// As [`Session::run_for`].
    pub fn first_nonfinite(&mut self, program: &str, inputs: &Tensors) -> Result<Option<NonFinite>, ExecError> {
        let plan = Arc::clone(&self.plan);
        self.clear_arenas(&plan)?;
        let (name, found) = self.upload(&plan, program, inputs)?;
        for (index, step) in found.steps.iter().enumerate() {
            let buffer = |operand: &u32| Some((*operand as usize, found.buffers.get(*operand as usize)?));
            let floats: Vec<(usize, &Buffer)> =
                step.operands.iter().filter_map(buffer).filter(|(_, buffer)| buffer.dtype.is_float()).collect();
            let before = self.values(&floats)?;
            self.loaded.run_steps(&name, index..index + 1)?;
            let after = self.values(&floats)?;
            for ((buffer, _), (before, after)) in floats.iter().zip(before.iter().zip(&after)) {
                let made = |(old, new): (&f32, &f32)| {
                    old.to_bits() != new.to_bits() && (new.is_nan() || *new == f32::INFINITY)
                };
                if let Some(element) = before.iter().zip(after).position(made) {
                    let (origin, buffer, value) = (step.origin.clone(), *buffer, after[element]);
                    return Ok(Some(NonFinite { step: index, origin, buffer, element, value }));
                }
            }
        }
        Ok(None)
    }

    /// The elements of buffers.
    fn values(&mut self, buffers: &[(usize, &Buffer)]) -> Result<Vec<Vec<f32>>, ExecError> {
        buffers.iter().map(|(_, buffer)| Ok(self.value(buffer)?.to_f32().into_owned())).collect()
    }

    /// Zeros where nothing survives a program, a piece at a time: the host may not have the memory that the device has.
    fn clear_arenas(&mut self, plan: &Plan) -> Result<(), ExecError> {
        let zeros = vec![0; CLEARED_AT_ONCE];
        for (segment, of) in plan.segments.iter().enumerate().filter(|(_, of)| of.kind == SegmentKind::Arena) {
            for offset in (0..of.bytes).step_by(CLEARED_AT_ONCE) {
                let bytes = (of.bytes - offset).min(CLEARED_AT_ONCE as u64);
                self.loaded.write(Slice { segment: segment as u32, offset, bytes }, &zeros[..bytes as usize])?;
            }
        }
        Ok(())
    }

    /// Runs a program step by step and tells how long each took. Where the device has no clock of its own, the sum is more than
    /// the time of [`Session::submit`], since the device is waited for after every step.
    ///
    /// # Errors
    /// As [`Session::run_for`].
    pub fn run_each(
        &mut self,
        program: &str,
        inputs: &Tensors,
        mut timed: impl FnMut(usize, Duration),
    ) -> Result<(), ExecError> {
        let plan = Arc::clone(&self.plan);
        let (name, found) = self.upload(&plan, program, inputs)?;
        let times = self.loaded.time_steps(&name, found.steps.len())?;
        times.into_iter().enumerate().for_each(|(index, time)| timed(index, time));
        Ok(())
    }

    /// Runs a program step by step and calls `seen` before and after each, with a way to read buffers of the program.
    ///
    /// # Errors
    /// As [`Session::run_for`], and those of `seen`.
    pub fn observe<E: From<ExecError>>(
        &mut self,
        program: &str,
        inputs: &Tensors,
        mut seen: impl FnMut(usize, Moment, &mut dyn FnMut(u32) -> Result<HostTensor, ExecError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let plan = Arc::clone(&self.plan);
        let (name, found) = self.upload(&plan, program, inputs)?;
        for index in 0..found.steps.len() {
            for moment in [Moment::Before, Moment::After] {
                if moment == Moment::After {
                    self.loaded.run_steps(&name, index..index + 1).map_err(ExecError::from)?;
                }
                seen(index, moment, &mut |buffer| match found.buffers.get(buffer as usize) {
                    Some(buffer) => self.value(buffer),
                    None => Err(DeviceError::Misuse(format!("`{name}` has no buffer {buffer}")).into()),
                })?;
            }
        }
        Ok(())
    }

    /// Uploads what a program reads; the program that is to run, which of a packed one depends on the inputs.
    fn upload<'a>(
        &mut self,
        plan: &'a Plan,
        program: &str,
        inputs: &Tensors,
    ) -> Result<(String, &'a Program), ExecError> {
        let what = format!("input of {program}");
        let (name, made) = match self.counters.get_mut(program) {
            Some(counter) => counter.count(&what, inputs)?,
            None => (program.to_string(), Tensors::new()),
        };
        let found = find(plan, &name)?;
        let mut tensors = Vec::with_capacity(found.inputs.len());
        for port in &found.inputs {
            let Some(buffer) = found.buffers.get(port.buffer as usize) else { continue };
            let given = || given(&what, &port.name, buffer, inputs);
            tensors
                .push((Slice::from(buffer), made.get(&port.name).map_or_else(given, |made| Ok(Cow::Borrowed(made)))?));
        }
        let bytes: Vec<(Slice, &[u8])> = tensors.iter().map(|(slice, tensor)| (*slice, tensor.bytes())).collect();
        self.loaded.write_inputs(&bytes)?;
        Ok((name, found))
    }

    fn state(&self, path: &str) -> Result<Buffer, ExecError> {
        let known = || match self.plan.state.len() {
            0..=8 => list(self.plan.state.iter().map(|state| &state.path)),
            many => format!("{} and {} more", list(self.plan.state[..8].iter().map(|state| &state.path)), many - 8),
        };
        self.plan.state(path).map(|state| state.buffer.clone()).ok_or_else(|| ExecError::Name {
            what: "state tensor".into(),
            name: path.to_string(),
            problem: "does not exist",
            known: known(),
        })
    }

    /// What a buffer holds.
    fn value(&mut self, buffer: &Buffer) -> Result<HostTensor, ExecError> {
        let bytes = self.loaded.read(&[Slice::from(buffer)])?.wait()?;
        Ok(HostTensor::from_bytes(buffer.dtype, &buffer.shape, &bytes)?)
    }
}

/// Tensors on their way to the host, in one piece.
pub struct Results {
    /// Outputs before state, by name and path.
    tensors: Vec<(String, Buffer)>,
    /// How many of them are outputs.
    outputs: usize,
    download: Box<dyn Download>,
}

/// Tensors that were downloaded together.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// Outputs of a program, by name.
    pub outputs: Tensors,
    /// State, by path.
    pub state: Tensors,
}

impl Results {
    /// Whether [`Results::wait`] would return at once.
    pub fn poll(&mut self) -> bool {
        self.download.poll()
    }

    /// The tensors, waiting if they are not there yet; not for what was submitted later.
    ///
    /// # Errors
    /// The device was lost.
    pub fn wait(self) -> Result<Found, ExecError> {
        let bytes = self.download.wait()?;
        let mut rest = bytes.as_slice();
        let mut found = Found { outputs: Tensors::new(), state: Tensors::new() };
        for (index, (name, buffer)) in self.tensors.into_iter().enumerate() {
            let (own, others) = rest.split_at_checked(buffer.bytes() as usize).unwrap_or((rest, &[]));
            rest = others;
            let tensors = if index < self.outputs { &mut found.outputs } else { &mut found.state };
            tensors.insert(name, HostTensor::from_bytes(buffer.dtype, &buffer.shape, own)?);
        }
        Ok(found)
    }
}

fn find<'a>(plan: &'a Plan, program: &str) -> Result<&'a Program, ExecError> {
    plan.programs.get(program).ok_or_else(|| ExecError::NoProgram {
        plan: plan.name.clone(),
        program: program.to_string(),
        known: list(plan.programs.keys()),
    })
}

/// The tensor that the caller gave for an input.
fn given<'a>(what: &str, name: &str, buffer: &Buffer, inputs: &'a Tensors) -> Result<Cow<'a, HostTensor>, ExecError> {
    let tensor = inputs.get(name).ok_or_else(|| ExecError::Name {
        what: what.to_string(),
        name: name.to_string(),
        problem: "is missing",
        known: list(inputs.keys()),
    })?;
    fitting(what, name, buffer, tensor)
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The tensor as the buffer holds it: a target without types of 16 bits has f32 in their place.
fn fitting<'a>(
    what: &str,
    name: &str,
    buffer: &Buffer,
    tensor: &'a HostTensor,
) -> Result<Cow<'a, HostTensor>, ExecError> {
    if let Some(tensor) = tensor.converted(buffer.dtype).filter(|tensor| buffer.shape == tensor.shape()) {
        return Ok(tensor);
    }
    Err(ExecError::Mismatch {
        what: what.to_string(),
        name: name.to_string(),
        expected: format!("{} {}", buffer.dtype, Shape(&buffer.shape)),
        found: format!("{} {}", tensor.dtype(), Shape(tensor.shape())),
    })
}

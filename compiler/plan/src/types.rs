//! Plans, programs, buffers and state.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;
use crate::packing::{Packed, Role};
use crate::pipeline::Pipeline;
use crate::target::Target;

/// Version of the plan's byte format; a reader accepts exactly its own.
pub const FORMAT_VERSION: u32 = 11;

/// First bytes of a plan file.
const MAGIC: &[u8; 8] = b"alipplan";

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: arithmetic is in F32, values are rounded where they are made.
    Bf16,
    /// IEEE half precision: as bfloat16.
    F16,
    /// Signed 32-bit integer; token ids, indices, counters.
    I32,
    /// Truth value, stored as a 32-bit 0 or 1 (WGSL cannot share smaller ones with the host).
    Bool,
    /// A byte, 0 to 255: levels of an image. An input's type only, which programs read and cast; nothing is computed in it or
    /// stored as it.
    U8,
}

impl DType {
    /// Bytes of one element in device memory.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::I32 | DType::Bool => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether this is a floating point type, the only kind that carries gradients.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::Bool => "bool",
            DType::U8 => "u8",
        })
    }
}

/// A real constant, compared and hashed by its bits, so that code holding constants can be a map key.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Real) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Real) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Real {
    fn cmp(&self, other: &Real) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A compiled model: programs over one state, for one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the graph spec.
    pub name: String,
    /// Version of the compiler that wrote the plan.
    pub compiler: String,
    /// What the plan was compiled for.
    pub target: Target,
    /// Device memory, allocated once when the plan is loaded.
    pub segments: Vec<Segment>,
    /// Everything that survives a step, by path: weights, optimiser moments, gate means, counters, the seed.
    pub state: Vec<StateTensor>,
    /// Distinct kernels.
    pub kernels: Vec<Kernel>,
    /// Programs by name: `init`, `train`, `encode_image`, `encode_text`, ...
    pub programs: BTreeMap<String, Program>,
    /// Those of the programs that there are several of, by number of rows.
    pub packed: BTreeMap<String, Packed>,
    /// How to train; absent for graphs without a `train` section.
    pub train: Option<TrainInfo>,
    /// What `alipc compile` prints.
    pub report: Report,
}

/// What a memory segment is for, also the category in memory reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SegmentKind {
    /// State tensors; survives every step.
    State,
    /// Activations, gradients and outputs; shared by all programs, nothing survives a program in it.
    Arena,
    /// What programs read of the caller, shared by all of them; no step writes it. A device may have it several times over, so
    /// that it receives the inputs of the next steps while earlier ones run.
    Inputs,
}

/// One device allocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Use of the memory.
    pub kind: SegmentKind,
    /// Size in bytes.
    pub bytes: u64,
}

/// A slice of a segment that holds one tensor, row-major and dense.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Buffer {
    /// Index into [`Plan::segments`].
    pub segment: u32,
    /// Offset in bytes.
    pub offset: u64,
    /// Element type.
    pub dtype: DType,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl Buffer {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }
}

/// What a state tensor is; decides where it appears in reports and exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StateKind {
    /// A trained parameter.
    Param,
    /// State of the optimiser (moments), of the schedule, or of the step itself (counter, seed, total steps).
    Optimizer,
    /// State declared by a module: gate means, running statistics.
    Buffer,
    /// Exponential average of a parameter.
    Average,
}

/// A named tensor that survives a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateTensor {
    /// Path, equal to PyTorch's state-dict name for parameters: `visual.transformer.resblocks.0.ln_1.weight`.
    pub path: String,
    /// What it is.
    pub kind: StateKind,
    /// Where it lives.
    pub buffer: Buffer,
}

/// Path of the step counter, I32 [], counted from 0: the number of steps taken.
pub const STATE_STEP: &str = "train.step";
/// Path of the total number of steps, I32 []; written by the runtime before the first step, since it depends on the data.
pub const STATE_TOTAL_STEPS: &str = "train.total_steps";
/// Path of the random seed, I32 [], read by random operations.
pub const STATE_SEED: &str = "train.seed";
/// Path of the flag, I32 [], that a step sets when its loss or gradient is not finite and no loss scale can be the reason: 0 in
/// every sound state. While it is set, `train` changes no state, so that steps already submitted do no harm. The runtime clears
/// it once it has seen it.
pub const STATE_HALTED: &str = "train.halted";

/// Path of the loss scale, F32 []; there if the spec asks for one. A step whose gradients overflowed changes it and nothing else.
pub const STATE_LOSS_SCALE: &str = "loss_scale.scale";

/// Name of the program that sets every state tensor to its first value; its input `seed` is I32 [].
pub const PROGRAM_INIT: &str = "init";
/// Name of the program that takes one training step.
pub const PROGRAM_TRAIN: &str = "train";

/// An input or output of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Name in the spec: an input, an output, a metric.
    pub name: String,
    /// Index into [`Program::buffers`].
    pub buffer: u32,
    /// Of an input of indices, used as they are: rows of the smallest table that they are of.
    pub rows: Option<u64>,
}

impl Port {
    /// A port of values that are no indices.
    pub fn new(name: impl Into<String>, buffer: u32) -> Port {
        Port { name: name.into(), buffer, rows: None }
    }
}

/// A straight list of steps from inputs and state to outputs and new state.
///
/// The runtime uploads the inputs, runs the steps in order, and downloads the outputs it wants. New values of state
/// tensors are in the state's own buffers when the last step is done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// What the caller uploads.
    pub inputs: Vec<Port>,
    /// What the caller may download; scalars among them are the metrics of `train`.
    pub outputs: Vec<Port>,
    /// Operands of the steps.
    pub buffers: Vec<Buffer>,
    /// The work, in order.
    pub steps: Vec<Step>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index into [`Plan::kernels`].
    pub kernel: u32,
    /// Operands by position: indices into [`Program::buffers`].
    pub operands: Vec<u32>,
    /// Node path of the application this work belongs to, for errors and explanations: `text#2.transformer.resblocks.3.attn`;
    /// at the top of the graph the name of an op, such as `exp`.
    pub origin: String,
    /// Floating point operations of the launch.
    pub flops: u64,
    /// Bytes that it reads and writes, each element that its views touch once.
    pub bytes: u64,
    /// Nanoseconds that it is predicted to take, by the rates of the target.
    pub predicted_ns: u64,
}

/// Facts of the `train` section that the training loop needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainInfo {
    /// Global batch.
    pub batch: u64,
    /// Passes over the data unless the caller says otherwise.
    pub epochs: f64,
    /// Name of the metric that is the loss.
    pub loss: String,
    /// Metrics in the order of the spec; each is a scalar output of `train`.
    pub metrics: Vec<String>,
    /// The spec's data pipeline: what `train` reads unless the caller names another, and how evaluation prepares
    /// images and texts.
    pub data: Option<Pipeline>,
    /// When a run is measured on its way, and on what.
    pub evaluate: Option<Evaluate>,
    /// Weights that training starts from, in this order.
    pub start: Vec<Start>,
}

/// Measuring a model while it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    /// How often.
    pub every: Every,
    /// A suite of data sets by name or path; the run's own held-out samples without.
    pub suite: Option<String>,
    /// The folder that the suite's data sets lie in; `${VAR}` is an environment variable.
    pub data: Option<String>,
    /// Name of the measure whose best checkpoint is kept; the first of all without.
    pub best: Option<String>,
    /// Whether the averages of the weights are measured in their place.
    pub average: bool,
}

/// A distance between two moments of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Every {
    /// So many steps.
    Steps(u64),
    /// So many passes over the data, or a part of one.
    Epochs(f64),
}

impl Every {
    /// Reads `500 steps`, `1 epoch`, `0.5 epochs`.
    ///
    /// # Errors
    /// What is wrong with it, and how it is written.
    pub fn parse(text: &str) -> Result<Every, String> {
        let mistaken = || format!("`{text}` is no distance: write `500 steps`, `1 epoch` or `0.5 epochs`");
        let (number, unit) = text.trim().split_once(' ').ok_or_else(mistaken)?;
        match unit.trim() {
            "step" | "steps" => match number.parse() {
                Ok(steps) if steps > 0 => Ok(Every::Steps(steps)),
                _ => Err(mistaken()),
            },
            "epoch" | "epochs" => match number.parse::<f64>() {
                Ok(epochs) if epochs > 0.0 && epochs.is_finite() => Ok(Every::Epochs(epochs)),
                _ => Err(mistaken()),
            },
            _ => Err(mistaken()),
        }
    }

    /// As steps of a batch, at least one; none where epochs are meant and nobody knows how long one is.
    pub fn steps(self, batch: u64, epoch_len: Option<u64>) -> Option<u64> {
        match self {
            Every::Steps(steps) => Some(steps),
            Every::Epochs(epochs) => Some(((epochs * epoch_len? as f64 / batch.max(1) as f64).round() as u64).max(1)),
        }
    }
}

/// Weights that training starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The file, as seen from the folder in which the spec was compiled.
    pub file: String,
    /// Which of the graph's parameters and states, `visual.*`; all if it is not said.
    pub select: Option<String>,
}

/// What the compiler knows of the plan; printed by `alipc compile`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Trained scalars.
    pub parameters: u64,
    /// Per program: launches and floating point operations.
    pub programs: BTreeMap<String, ProgramReport>,
    /// Planned peak device memory by category, in bytes. Of the state: `weights`, `optimizer`, `buffers`, `average`. Of the
    /// memory that programs share: `inputs`; when the largest needs most: `activations`, on which the loss depends;
    /// `gradients`, with all else that only the backward pass and the update need; `workspace`, what lies between them and
    /// what smaller programs need elsewhere. `alignment` is what segments are larger than their tensors.
    pub memory: BTreeMap<String, u64>,
}

impl Report {
    /// Planned peak device memory in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.memory.values().sum()
    }
}

/// Size of one program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// Kernel launches.
    pub launches: u64,
    /// Of these, calls of a library.
    pub library_calls: u64,
    /// Floating point operations.
    pub flops: u64,
    /// Bytes that kernels read and write, each element once per kernel.
    pub bytes: u64,
    /// Seconds that the compiler's model of the target predicts.
    pub predicted_seconds: f64,
    /// The same for each bucket of a packed program, by rising rows; what stands above is that of the last.
    pub buckets: Vec<BucketReport>,
}

/// Size of a packed program for one number of rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BucketReport {
    /// Rows of each group.
    pub rows: Vec<u64>,
    /// Kernel launches.
    pub launches: u64,
    /// Of these, calls of a library.
    pub library_calls: u64,
    /// Floating point operations.
    pub flops: u64,
    /// Bytes that kernels read and write.
    pub bytes: u64,
    /// Seconds that the compiler's model of the target predicts.
    pub predicted_seconds: f64,
    /// Bytes of the arena that it uses.
    pub arena_bytes: u64,
}

/// Why bytes are not a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// The first bytes are not a plan's.
    NotAPlan,
    /// Written by another format version.
    Version {
        /// The version found.
        found: u32,
    },
    /// Truncated or corrupt.
    Corrupt(String),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::NotAPlan => {
                write!(f, "not a plan file; `alipc compile SPEC -o DIR` writes one as DIR/plan.alip")
            }
            PlanError::Version { found } => {
                write!(
                    f,
                    "the plan has format version {found}, this program reads {FORMAT_VERSION}; compile the spec again"
                )
            }
            PlanError::Corrupt(why) => write!(f, "the plan file is damaged ({why}); compile the spec again"),
        }
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// The plan as bytes; equal plans give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        // Serialising plain data to a growing vector has no failure to report.
        postcard::to_extend(self, bytes).unwrap_or_default()
    }

    /// Reads what [`Plan::to_bytes`] wrote.
    ///
    /// # Errors
    /// Bytes that are no plan, of another format version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan, PlanError> {
        let rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or(PlanError::NotAPlan)?;
        let (version, body) = rest.split_first_chunk::<4>().ok_or(PlanError::NotAPlan)?;
        let found = u32::from_le_bytes(*version);
        if found != FORMAT_VERSION {
            return Err(PlanError::Version { found });
        }
        postcard::from_bytes(body).map_err(|error| PlanError::Corrupt(error.to_string()))
    }

    /// The state tensor with this path.
    pub fn state(&self, path: &str) -> Option<&StateTensor> {
        self.state.iter().find(|state| state.path == path)
    }
}

impl Program {
    /// The input with this name, as its buffer.
    pub fn input(&self, name: &str) -> Option<&Buffer> {
        Program::port(&self.inputs, name).and_then(|index| self.buffers.get(index))
    }

    /// What the caller gives: inputs without those that the runtime makes of them.
    pub fn batch_inputs(&self) -> impl Iterator<Item = (&str, &Buffer)> {
        let given = self.inputs.iter().filter(|port| Role::of_input(&port.name).is_none());
        given.filter_map(|port| Some((port.name.as_str(), self.buffers.get(port.buffer as usize)?)))
    }

    /// The output with this name, as its buffer.
    pub fn output(&self, name: &str) -> Option<&Buffer> {
        Program::port(&self.outputs, name).and_then(|index| self.buffers.get(index))
    }

    fn port(ports: &[Port], name: &str) -> Option<usize> {
        ports.iter().find(|port| port.name == name).map(|port| port.buffer as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_plan_of_this_version_say_what_to_do() {
        let plan = Plan {
            name: "empty".into(),
            compiler: "by hand".into(),
            target: Target::cpu(),
            segments: vec![],
            state: vec![],
            kernels: vec![],
            programs: BTreeMap::new(),
            packed: BTreeMap::new(),
            train: None,
            report: Report::default(),
        };
        let bytes = plan.to_bytes();
        assert_eq!(Plan::from_bytes(&bytes), Ok(plan));
        let check = |bytes: &[u8], message: &str| {
            let error = Plan::from_bytes(bytes).map(|plan| plan.name).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        };
        check(b"PK\x03\x04", "not a plan file; `alipc compile SPEC -o DIR` writes one as DIR/plan.alip");
        let mut old = bytes.clone();
        old[MAGIC.len()] = 1;
        check(
            &old,
            &format!("the plan has format version 1, this program reads {FORMAT_VERSION}; compile the spec again"),
        );
        check(&bytes[..bytes.len() - 1], "the plan file is damaged (");
    }
}

//! What a spec file says, with the place of everything in it.
//!
//! The AST is faithful: nothing is resolved, defaulted (but for dtypes of state) or checked against another file. An
//! option that was not written is `None`, so that a variant ([`super::merge`]) knows what it overrides.

use alip_plan::Every;
use indexmap::IndexMap;

use super::expr::{Equation, Expr, Name, Shape, Spanned};
use crate::diag::Span;

/// An ordered map whose keys know where they stand.
pub type Map<V> = IndexMap<Name, V>;

/// A file: one graph, one pipeline, or one or several modules. Several modules stand in a RON list:
/// `[Module(..), Module(..)]`.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one per file, and it is taken apart at once")]
pub enum SpecFile {
    /// `Graph(...)`
    Graph(GraphSpec),
    /// `Module(...)` or `[Module(...), ...]`; names are distinct
    Modules(Vec<ModuleSpec>),
    /// `Pipeline(...)`
    Pipeline(PipelineSpec),
}

/// `Graph(...)`: a model with its training.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphSpec {
    /// The whole `Graph(...)`.
    pub span: Span,
    /// Its name.
    pub name: Name,
    /// One or a few sentences.
    pub doc: Option<Spanned<String>>,
    /// The graph this one is a variant of.
    pub base: Option<Name>,
    /// The files whose modules it uses, `vision/vit`.
    pub uses: Vec<Name>,
    /// Named sizes.
    pub dims: Map<Spanned<Dim>>,
    /// What a batch holds.
    pub inputs: Map<InputSpec>,
    /// Module instances.
    pub parts: Map<PartSpec>,
    /// Parameters of the graph itself.
    pub params: Map<ParamSpec>,
    /// State of the graph itself.
    pub state: Map<StateSpec>,
    /// Equations in order.
    pub body: Vec<Equation>,
    /// Programs besides `train`.
    pub programs: Map<ProgramSpec>,
    /// What a step reports, each a scalar.
    pub metrics: Map<Expr>,
    /// How it is trained.
    pub train: Option<TrainSpec>,
    /// The pipeline it trains on by default.
    pub data: Option<Name>,
    /// Arguments that a variant changes of parts of its base, `"visual": (set: { "layers": 3 })`. Empty unless `base` is given.
    pub set: Map<Map<Expr>>,
    /// What a variant takes away from its base: entries written as `"key": None` and fields written as `field: None`.
    /// Empty unless `base` is given.
    pub removed: Vec<Removed>,
}

/// An entry of a map field (`"lcg": None` in `parts`), or a whole field (`train: None`), that a variant takes away.
#[derive(Clone, Debug, PartialEq)]
pub struct Removed {
    /// `parts`, `metrics`, `train.schedule`, ...
    pub field: &'static str,
    /// The entry, or none if all of the field goes.
    pub key: Option<Name>,
    /// Where it is written.
    pub span: Span,
}

/// The size of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// `77`
    Fixed(u64),
    /// `Batch(4096)`: the axis of samples, of the global batch; `--batch` overrides the size
    Batch(u64),
}

impl Dim {
    /// The number of positions.
    pub fn size(self) -> u64 {
        match self {
            Dim::Fixed(n) | Dim::Batch(n) => n,
        }
    }
}

/// Element types a spec can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    U32,
    U8,
    Bool,
}

/// `(dtype: F32, shape: "[B, T]")`, or just the shape.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Always there for a graph's inputs; a module that leaves it out takes any.
    pub dtype: Option<Spanned<Dtype>>,
    /// In a module, names in the shape are pattern variables.
    pub shape: Shape,
}

/// A module instance.
#[derive(Clone, Debug, PartialEq)]
pub struct PartSpec {
    /// `vit(...)`, `[block(...); n]`, or a conditional of such.
    pub module: Expr,
    /// The prefix of its parameters' names if it is not the part's own name; `""` puts them at the top level.
    pub path: Option<Spanned<String>>,
    /// Arguments that take the place of those in `module`; of every one, where it is a list.
    pub set: Map<Expr>,
}

/// An entry of `parts`: a part, or in a variant the arguments that differ from the base's part.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum PartEntry {
    /// `"linear(8, 2)"`, `(module: "linear(8, 2)", set: { "out": 3 })`
    Part(PartSpec),
    /// `(set: { "out": 3 })`
    Set(Map<Expr>),
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Its axes.
    pub shape: Shape,
    /// An initialiser, `normal(std: 0.02)`, or a constant expression.
    pub init: Expr,
    /// Bounds it is kept in after each update.
    pub clamp: Option<(Expr, Expr)>,
    /// F32 unless written.
    pub dtype: Spanned<Dtype>,
}

/// A tensor that survives a step and is not trained.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    /// Its axes.
    pub shape: Shape,
    /// Its first value.
    pub init: Expr,
    /// F32 unless written.
    pub dtype: Spanned<Dtype>,
}

/// A program over the graph's state.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramSpec {
    /// Names among the graph's inputs.
    pub inputs: Vec<Name>,
    /// Names defined in the body.
    pub outputs: Vec<Name>,
}

/// Precision of the products; sums, losses, norms and the optimiser stay in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Precision {
    F32,
    Bf16,
    F16,
}

/// `train: (...)`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// The scalar that is minimised.
    pub loss: Option<Expr>,
    /// An optimiser module with its arguments.
    pub optimizer: Option<Expr>,
    /// A schedule module with its arguments.
    pub schedule: Option<Expr>,
    /// The largest global norm of the gradients.
    pub clip_grad_norm: Option<Spanned<f64>>,
    /// Passes over the data.
    pub epochs: Option<Spanned<u64>>,
    /// Products' precision.
    pub precision: Option<Spanned<Precision>>,
    /// A module with its arguments whose state `scale` multiplies the loss before it is differentiated.
    pub loss_scale: Option<Expr>,
    /// The key of all random numbers.
    pub seed: Option<Spanned<u64>>,
    /// Exceptions by parameter path.
    pub groups: Option<Vec<GroupSpec>>,
    /// An exponential average of the weights beside them.
    pub ema: Option<EmaSpec>,
    /// Measuring the model on the way.
    pub evaluate: Option<EvaluateSpec>,
    /// Weights that training starts from.
    pub start: Option<Vec<StartSpec>>,
}

/// `evaluate: (every: "1 epoch", suite: "alip_table", data: "${DATA}", best: "mscoco image to text R@1")`: the model is measured
/// on the way, without changing what is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// How often.
    pub every: Spanned<Every>,
    /// A suite by name or path; without one it is measured on the run's own held-out samples.
    pub suite: Option<Spanned<String>>,
    /// The folder that the suite's data sets lie in.
    pub data: Option<Spanned<String>>,
    /// The measure whose best checkpoint is kept.
    pub best: Option<Spanned<String>>,
    /// Whether the averages of the weights (`ema`) are measured in their place.
    pub average: Option<Spanned<bool>>,
}

/// `(select: "visual.*", freeze: true)`: what is different for the parameters that a selector names.
///
/// - A selector is a path in which `*` stands for any characters and `{name}` for one step of the path or a part of one,
///   `*.resblocks.{i}.*`; expressions of the group read what it stands for, as a whole number where it is one. `[0]` is `.0`.
/// - Where several groups name a parameter, each field is that of the last group that has it.
/// - A variant's `groups` replace those of its base as a whole; `groups: None` takes them away.
/// - A selector that names nothing is an error.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// Which parameters, and with `frozen_statistics` which states.
    pub select: Spanned<String>,
    /// Not trained.
    pub freeze: Option<Spanned<bool>>,
    /// Whether states of these paths, such as running statistics, stay as they are: the modules that hold them are computed
    /// as in evaluation. If it is not said they move, as in training, and a group that freezes tells so.
    pub frozen_statistics: Option<Spanned<bool>>,
    /// Learning rate: an expression that may read `lr`, the schedule's value, such as `"0.1 * lr"`.
    pub lr: Option<Expr>,
    /// Weight decay, in place of the optimiser's argument.
    pub weight_decay: Option<Expr>,
}

/// `ema: (decay: 0.999)`: after each step `average = decay * average + (1 - decay) * weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmaSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// Between 0 and 1.
    pub decay: Expr,
}

/// `(file: "clip.safetensors", select: "visual.*")`: weights that training starts from, as `alip-run import` reads them.
///
/// - Of several entries the last that has a parameter counts. A variant's `start` replaces that of its base as a whole;
///   `start: None` takes it away.
/// - Parameters that are not selected start as they say themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct StartSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// Seen from the folder of the spec that says it.
    pub file: Spanned<String>,
    /// Which parameters and states, a selector as in groups; all of the graph's if it is not said.
    pub select: Option<Spanned<String>>,
}

/// `Module(...)`: a reusable piece of graph.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleSpec {
    /// The whole `Module(...)`.
    pub span: Span,
    /// Its name.
    pub name: Name,
    /// One or a few sentences.
    pub doc: Option<Spanned<String>>,
    /// The files whose modules it uses.
    pub uses: Vec<Name>,
    /// Compile-time arguments in order.
    pub args: Map<ArgSpec>,
    /// Conditions on the arguments.
    pub require: Vec<Expr>,
    /// Tensors it is applied to, in order.
    pub inputs: Map<InputSpec>,
    /// Submodules.
    pub parts: Map<PartSpec>,
    /// Its parameters.
    pub params: Map<ParamSpec>,
    /// Its state.
    pub state: Map<StateSpec>,
    /// Equations in order.
    pub body: Vec<Equation>,
    /// What an application yields, in order.
    pub outputs: Vec<Name>,
}

/// A module's argument.
#[derive(Clone, Debug, PartialEq)]
pub enum ArgSpec {
    /// Must be given, and be of this kind.
    Required(Spanned<ArgKind>),
    /// May be left out.
    Default(Expr),
}

/// Kinds of compile-time values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArgKind {
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// A string.
    Str,
    /// A list or tuple.
    List,
    /// A module or op by name, such as an activation.
    Module,
}

/// `Pipeline(...)`: from stored samples to a graph's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineSpec {
    /// The whole `Pipeline(...)`.
    pub span: Span,
    /// Its name.
    pub name: Name,
    /// One or a few sentences.
    pub doc: Option<Spanned<String>>,
    /// Where samples come from.
    pub source: SourceSpec,
    /// How they are mixed; the source's order if absent.
    pub shuffle: Option<ShuffleSpec>,
    /// Equations from the source's fields.
    pub body: Vec<Equation>,
    /// The graph's inputs by name.
    pub outputs: Map<Expr>,
}

/// `Recordio(path: "...", ...)`. The fields are checked against [`super::SOURCES`].
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// The whole `Kind(...)`.
    pub span: Span,
    /// `Recordio`, `Folder`, `Shapes`, `Webdataset`.
    pub kind: Name,
    /// Its settings. `${NAME}` in a string is replaced from the environment at run time.
    pub fields: Map<Spanned<Literal>>,
}

/// A plain value in a pipeline's source.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `"text"`
    Str(String),
    /// `77`
    Int(i64),
    /// `0.5`
    Float(f64),
    /// `true`
    Bool(bool),
    /// `[a, b]`
    List(Vec<Spanned<Literal>>),
    /// `{ "raw": 77 }`
    Map(Map<Spanned<Literal>>),
    /// `Folder(path: "...")`
    Source(Box<SourceSpec>),
}

/// `shuffle: (buffer: 16384)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShuffleSpec {
    /// The whole `(...)`.
    pub span: Span,
    /// How many samples are mixed; all of them if absent.
    pub buffer: Option<Spanned<u64>>,
    /// The key of the order; the run's seed if absent.
    pub seed: Option<Spanned<u64>>,
}

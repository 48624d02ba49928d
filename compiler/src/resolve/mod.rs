//! From a spec to graphs: files are found, variants laid over their bases, modules instantiated and applied.
//!
//! - The result is a [`Resolved`]: the programs of one model over one state. Its `train` program is only the forward part
//!   with the loss among its [`Graph::values`](crate::ir::Graph::values); `crate::training` makes it a training step.
//! - Every node has the origin of the expression it stands for; nothing composite is left.
//! - Parameters are named by the parts they belong to, as in PyTorch's state dicts. The same part applied twice shares them.
//! - Evaluation ends: there are no loops but `[part; n]`, and no recursion.
//! - The language has no names for devices, kernels or numbers of steps; nothing here may know of them.

mod apply;
mod call;
mod check;
mod constant;
mod eval;
mod functions;
mod groups;
mod instance;
mod library;
mod needs;
mod noise;
mod pipeline;
mod programs;
mod start;
mod state;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use alip_plan::pipeline::Pipeline;
use alip_plan::{PROGRAM_INIT, PROGRAM_TRAIN, StateKind};

use crate::diag::{Diagnostic, Diagnostics, SourceId, SourceMap, Span};
use crate::ir::{self, Dim, Graph, Model, NodeId, Op, TensorType};
use crate::spec::{
    self, ArgSpec, Dim as SpecDim, Expr, ExprKind, GraphSpec, ModuleSpec, Name, PipelineSpec, Spanned, SpecFile,
    parse_file,
};
use groups::Groups;
use instance::Instance;
use library::{Library, Module, Root, Scope};
use needs::Kept;
use programs::{Top, top_instance};
use state::States;
use value::Value;

pub use check::{FORMS, INITIALISERS};
pub use library::{graph_names, stdlib_names};
pub use pipeline::pipeline;
pub use programs::LOSS;
pub use state::Init;

/// What the training step is built with.
pub(crate) mod training {
    pub(crate) use super::call::Given;
    pub(crate) use super::eval::{Evaluator, Frame, Mode, Result, listed};
    pub(crate) use super::groups::{Given as GroupValue, Group};
    pub(crate) use super::instance::{Instance, Place};
    pub(crate) use super::library::Library;
    pub(crate) use super::programs::{Top, scalar};
    pub(crate) use super::start::starts;
    pub(crate) use super::state::{Entry, Init, States, decl, reads};
    pub(crate) use super::value::{Template, Value, wrong_kind};
}

/// What the command line may change.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The global batch, in place of the one in the spec.
    pub batch: Option<u64>,
    /// `KEY=VALUE`, as [`spec::set`] takes them.
    pub set: Vec<String>,
    /// Files that exist in memory only, by name: `gates.ron`. They come before those on disk.
    pub files: BTreeMap<String, String>,
    /// No file on disk counts, only those in memory and those embedded in the program: what a user keeps under the name of one of
    /// ours is then not taken for it.
    pub embedded_only: bool,
}

/// A spec in which every name has been resolved.
#[derive(Debug)]
pub struct Resolved {
    /// The programs: `init`, the forward part of `train` if the spec trains, and those under `programs`.
    pub model: Model,
    /// The graph with its bases merged in.
    pub spec: GraphSpec,
    /// The pipeline it trains on by default, which delivers its inputs.
    pub pipeline: Option<Pipeline>,
    /// What a batch holds, by name.
    pub inputs: BTreeMap<String, TensorType>,
    /// The global batch.
    pub batch: Option<u64>,
    /// What is odd but not wrong.
    pub warnings: Vec<Diagnostic>,
    pub(crate) states: States,
    pub(crate) library: Library,
    pub(crate) module: Module,
    pub(crate) instance: Instance,
    tables: Vec<pipeline::Table>,
}

/// Resolves a graph given by path or name.
///
/// # Errors
/// Everything that is wrong with the spec or a file it uses, each with its place.
pub fn resolve(sources: &mut SourceMap, graph: &str, options: &Options) -> Result<Resolved, Diagnostics> {
    let mut library = Library::new(options);
    match library.open(sources, Root::Graphs, graph)? {
        SpecFile::Graph(spec) => resolve_graph(sources, library, spec, options),
        SpecFile::Modules(_) => Err(not_a_graph(graph, "modules, which are applied by graphs").into()),
        SpecFile::Pipeline(_) => Err(not_a_graph(graph, "a pipeline, which a graph names as its `data`").into()),
    }
}

/// Resolves the graph in a source.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_source(sources: &mut SourceMap, source: SourceId, options: &Options) -> Result<Resolved, Diagnostics> {
    match parse_file(sources, source)? {
        SpecFile::Graph(spec) => resolve_graph(sources, Library::new(options), spec, options),
        _ => Err(not_a_graph(sources.name(source), "no graph").into()),
    }
}

/// What a spec file holds, with every name resolved.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per file, and it is taken apart at once")]
pub enum Any {
    /// A graph.
    Graph(Box<Resolved>),
    /// Modules: imports, names, states and recursion are right. Shapes show when they are applied.
    Modules(Vec<ModuleSpec>),
    /// A pipeline.
    Pipeline(Pipeline),
}

/// Resolves whatever a file given by path or name holds.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn resolve_any(sources: &mut SourceMap, spec: &str, options: &Options) -> Result<Any, Diagnostics> {
    let mut library = Library::new(options);
    let file = library.open(sources, Root::Graphs, spec)?;
    any_file(sources, library, file, options)
}

/// The pipeline in a file given by path or name.
///
/// # Errors
/// Everything that is wrong with it, each with its place; another file than that of a pipeline.
pub fn resolve_pipeline(sources: &mut SourceMap, spec: &str) -> Result<Pipeline, Diagnostics> {
    pipeline(&pipeline_spec(sources, &mut Library::default(), spec)?)
}

fn pipeline_spec(sources: &mut SourceMap, library: &mut Library, spec: &str) -> Result<PipelineSpec, Diagnostics> {
    match library.open(sources, Root::Pipelines, spec)? {
        SpecFile::Pipeline(spec) => Ok(spec),
        _ => Err(Diagnostic::error(format!("`{spec}` holds no pipeline"))
            .help("give a file that holds `Pipeline(...)`")
            .into()),
    }
}

/// Resolves whatever a source holds.
///
/// # Errors
/// As [`resolve_any`].
pub fn resolve_any_source(sources: &mut SourceMap, source: SourceId, options: &Options) -> Result<Any, Diagnostics> {
    let file = parse_file(sources, source)?;
    any_file(sources, Library::new(options), file, options)
}

fn any_file(
    sources: &mut SourceMap,
    mut library: Library,
    file: SpecFile,
    options: &Options,
) -> Result<Any, Diagnostics> {
    match file {
        SpecFile::Graph(spec) => Ok(Any::Graph(Box::new(resolve_graph(sources, library, spec, options)?))),
        SpecFile::Modules(specs) => {
            library.add(sources, specs.clone())?;
            Ok(Any::Modules(specs))
        }
        SpecFile::Pipeline(spec) => pipeline(&spec).map(Any::Pipeline),
    }
}

/// The modules that ship with alip, by file.
///
/// # Errors
/// A file on disk that takes the place of an embedded one is wrong.
pub fn stdlib(sources: &mut SourceMap) -> Result<Vec<(String, Vec<ModuleSpec>)>, Diagnostics> {
    let mut library = Library::default();
    let mut files = Vec::new();
    for name in stdlib_names() {
        if let SpecFile::Modules(specs) = library.open_stdlib(sources, &name)? {
            files.push((name, specs));
        }
    }
    Ok(files)
}

fn not_a_graph(name: &str, what: &str) -> Diagnostic {
    Diagnostic::error(format!("`{name}` holds {what}")).help("give a file that holds `Graph(...)`")
}

fn resolve_graph(
    sources: &mut SourceMap,
    mut library: Library,
    spec: GraphSpec,
    options: &Options,
) -> Result<Resolved, Diagnostics> {
    let is_variant = spec.base.is_some();
    let mut spec = with_bases(sources, &mut library, spec)?;
    for assignment in &options.set {
        spec::set(sources, &mut spec, assignment)?;
    }
    let batch = set_batch(&mut spec, options.batch)?;
    let scope = library.scope(sources, &spec.uses, &Scope::new())?;
    let module = Module { spec: Arc::new(graph_module(&spec)), scope };
    let id = library.push(module.clone());
    let mut states = States::new(spec.train.is_some());
    states.groups = Arc::new(Groups::new(spec.train.as_ref())?);
    let dims = spec.dims.iter().map(|(name, dim)| (name.text.clone(), Value::Size(Dim::named(dim.size(), name))));
    let instance = top_instance(&library, &mut states, &spec, &module, id, dims.collect());
    // What is wrong with parts is told when all names have been looked at.
    let with_state = instance.as_ref().map(|instance| needs::with_state(instance, &library)).unwrap_or_default();
    // What a variant no longer reads may name what it took away.
    let made = instance.as_ref().ok();
    let kept = if is_variant { needs::prune(&mut spec, made, &library, &with_state) } else { Vec::new() };
    let warnings = needs::unread(&spec, made, &library, &with_state);
    let module = Module { spec: Arc::new(graph_module(&spec)), ..module };
    check_graph(&spec, &module).map_err(|errors| errors.map(|error| Kept::explain(&kept, error)))?;
    let instance = instance?;
    let mut model = Model { name: spec.name.text.clone(), ..Model::default() };
    let top = Top { spec: &spec, module: &module, instance: &instance };
    let train = top.train(&library, &mut states)?;
    let typed = |(name, id): (&String, &NodeId)| (name.clone(), train.ty(*id).clone());
    let tables = pipeline::tables(&train);
    let train_inputs: BTreeMap<String, TensorType> = train.inputs.iter().map(typed).collect();
    if spec.train.is_some() {
        model.programs.insert(PROGRAM_TRAIN.into(), train);
    }
    for (name, program) in &spec.programs {
        let graph = top.program(&library, &mut states, name, program)?;
        model.programs.insert(name.text.clone(), graph);
    }
    model.state = states.decls();
    let init = states.init_program()?;
    model.programs.insert(init.name.clone(), init);
    for (name, program) in &model.programs {
        let of_program = model.tables.entry(name.clone()).or_default();
        for pipeline::Table { input, rows, .. } in pipeline::tables(program) {
            of_program.entry(input).and_modify(|known| *known = rows.min(*known)).or_insert(rows);
        }
    }
    let inputs = train_inputs;
    let mut resolved =
        Resolved { model, spec, pipeline: None, inputs, batch, warnings, states, library, module, instance, tables };
    if let Some(name) = resolved.spec.data.clone() {
        resolved.pipeline = Some(resolved.load_pipeline(sources, &name)?);
    }
    Ok(resolved)
}

impl Resolved {
    /// Without what trains it: the programs under `programs` alone, with all parameters and states of modules, so that weights of others
    /// fit as a whole.
    ///
    /// # Errors
    /// None that a spec can cause.
    pub fn without_training(mut self) -> Result<Resolved, Diagnostics> {
        let Model { state, programs, tables, .. } = &mut self.model;
        programs.shift_remove(PROGRAM_TRAIN);
        tables.remove(PROGRAM_TRAIN);
        let init = programs.shift_remove(PROGRAM_INIT);
        let read: BTreeSet<Arc<str>> = programs.values().flat_map(reads_of).collect();
        let is_of_model = |kind| matches!(kind, StateKind::Param | StateKind::Buffer);
        state.retain(|path, decl| is_of_model(decl.kind) || read.contains(path.as_str()));
        if let Some(mut init) = init {
            init.updates.retain(|path, _| state.contains_key(path));
            programs.insert(PROGRAM_INIT.into(), ir::eliminate_dead(&init)?.graph);
        }
        self.spec.train = None;
        Ok(self)
    }

    /// Another pipeline for this graph, by path or name (`--data`).
    ///
    /// # Errors
    /// There is none, it holds no pipeline, something is wrong with it, or it does not deliver the graph's inputs.
    pub fn pipeline_named(&mut self, sources: &mut SourceMap, name: &str) -> Result<Pipeline, Diagnostics> {
        if Path::new(name).is_file() {
            let spec = pipeline_spec(sources, &mut self.library, name)?;
            return self.checked(&spec, spec.span);
        }
        let source = sources.add("--data", name);
        let name = Name::new(name.strip_suffix(".ron").unwrap_or(name), Span::new(source, 0, name.len() as u32));
        self.load_pipeline(sources, &name)
    }

    /// Names of the values of the body that the training step reads: the loss, and what
    /// metrics of the update are computed from.
    pub(crate) fn values_read_later(&self) -> BTreeSet<String> {
        let top = Top { spec: &self.spec, module: &self.module, instance: &self.instance };
        let mut names = BTreeSet::from([LOSS.to_owned()]);
        for metric in self.spec.metrics.values().filter(|metric| top.is_deferred(&self.library, metric)) {
            check::each_name(metric, &mut |name, _| {
                names.insert(name.to_owned());
            });
        }
        names
    }

    fn load_pipeline(&mut self, sources: &mut SourceMap, name: &Name) -> Result<Pipeline, Diagnostics> {
        let spec = self.library.pipeline(sources, name)?;
        self.checked(&spec, name.span)
    }

    /// A pipeline that delivers what the graph reads; `span` says where it is asked for.
    fn checked(&self, spec: &PipelineSpec, span: Span) -> Result<Pipeline, Diagnostics> {
        let pipeline = pipeline::pipeline(spec)?;
        pipeline::check_inputs(&self.spec, &self.inputs, spec, &pipeline, span)?;
        pipeline::check_tables(&self.spec, &self.tables, spec, &pipeline)?;
        Ok(pipeline)
    }
}

/// Paths of the state tensors that a program reads.
fn reads_of(graph: &Graph) -> impl Iterator<Item = Arc<str>> {
    graph.nodes().iter().filter_map(|node| match &node.op {
        Op::State { path, .. } => Some(Arc::clone(path)),
        _ => None,
    })
}

/// The graph with its base, and that one's base, and so on.
fn with_bases(sources: &mut SourceMap, library: &mut Library, spec: GraphSpec) -> Result<GraphSpec, Diagnostics> {
    let mut variants = vec![spec];
    while let Some(base) = variants.last().and_then(|spec| spec.base.clone()) {
        let graph = library.base(sources, &base)?;
        if let Some(again) = variants.iter().find(|variant| variant.span == graph.span) {
            return Err(Diagnostic::error(format!("`{}` is a variant of itself", again.name))
                .label(base.span, "leads back to it")
                .context(again.name.span, "this graph")
                .into());
        }
        variants.push(graph);
    }
    let merged = variants.into_iter().rev().map(Ok).reduce(|base, variant| spec::merge(base?, variant?));
    merged.unwrap_or_else(|| Err(Diagnostic::error("no graph").into()))
}

/// The size of the batch, which `--batch` may change.
fn set_batch(spec: &mut GraphSpec, batch: Option<u64>) -> Result<Option<u64>, Diagnostics> {
    let mut found: Option<(u64, crate::diag::Span)> = None;
    for dim in spec.dims.values_mut() {
        let SpecDim::Batch(size) = &mut dim.node else { continue };
        if let Some((_, first)) = found {
            return Err(Diagnostic::error("two batch dimensions")
                .label(dim.span, "another one")
                .context(first, "the first")
                .help("only the axis of samples is `Batch(n)`; write other sizes as plain numbers")
                .into());
        }
        *size = batch.unwrap_or(*size);
        found = Some((*size, dim.span));
    }
    match (found, batch) {
        (None, Some(_)) => Err(Diagnostic::error("the graph has no batch dimension, so `--batch` changes nothing")
            .label(spec.name.span, "")
            .help("declare one: `dims: { \"B\": Batch(64) }`")
            .into()),
        (found, _) => Ok(found.map(|(size, _)| size)),
    }
}

/// A graph as a module without arguments and outputs: dims are its arguments.
fn graph_module(spec: &GraphSpec) -> ModuleSpec {
    let size = |dim: &Spanned<SpecDim>| {
        let kind = ExprKind::Int(i64::try_from(dim.size()).unwrap_or(i64::MAX));
        ArgSpec::Default(Expr { kind, span: dim.span })
    };
    ModuleSpec {
        span: spec.span,
        name: spec.name.clone(),
        doc: spec.doc.clone(),
        uses: spec.uses.clone(),
        args: spec.dims.iter().map(|(name, dim)| (name.clone(), size(dim))).collect(),
        inputs: spec.inputs.clone(),
        parts: spec.parts.clone(),
        params: spec.params.clone(),
        state: spec.state.clone(),
        body: spec.body.clone(),
        require: Vec::new(),
        outputs: Vec::new(),
    }
}

fn check_graph(spec: &GraphSpec, module: &Module) -> Result<(), Diagnostics> {
    let mut errors = check::module(&module.spec, &module.scope);
    let next: Vec<String> = spec.params.keys().map(|name| format!("{name}'")).collect();
    if let Some(loss) = spec.train.as_ref().and_then(|train| train.loss.as_ref()) {
        errors.extend(check::after_body(&module.spec, &module.scope, &[], loss));
    }
    for name in spec.programs.keys().filter(|name| [PROGRAM_INIT, PROGRAM_TRAIN].contains(&name.as_str())) {
        errors.push(
            Diagnostic::error(format!("a program cannot be named `{name}`"))
                .label(name.span, "")
                .help("`init` and `train` are made from initialisers and `train: (...)`"),
        );
    }
    for name in spec.metrics.keys().filter(|name| name.starts_with("grads.") || name.starts_with("outputs.")) {
        errors.push(
            Diagnostic::error(format!("a metric cannot be named `{name}`"))
                .label(name.span, "")
                .help("`grads.PATH` and `outputs.NAME` are what a step is asked to dump"),
        );
    }
    let modules = spec.train.iter().flat_map(|train| [&train.optimizer, &train.schedule, &train.loss_scale]);
    for expr in modules.flatten() {
        errors.extend(check::after_body(&module.spec, &module.scope, &[], expr));
    }
    let mut more = next;
    if spec.train.is_some() {
        more.push("train".into());
    }
    for metric in spec.metrics.values() {
        errors.extend(check::after_body(&module.spec, &module.scope, &more, metric));
    }
    Diagnostics::check((), errors)
}

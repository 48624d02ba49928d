//! Finding and reading spec files, and which modules a file sees.
//!
//! A name such as `vision/vit` is looked up beside the file that uses it, then below the working directory (`stdlib/`,
//! `graphs/`, or as written for pipelines), then among the files embedded in this program. A file sees its own modules and those
//! of the files it uses, not the ones that these use.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use include_dir::{Dir, include_dir};
use indexmap::IndexMap;

use super::{Options, check};
use crate::diag::{Diagnostic, Diagnostics, SourceId, SourceMap, Span};
use crate::spec::{GraphSpec, ModuleSpec, Name, PipelineSpec, SpecFile, parse_file};

static STDLIB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../stdlib");
static GRAPHS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../graphs");
static PIPELINES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../pipelines");

/// Index of a module in the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ModuleId(pub(super) usize);

/// The modules that the expressions of a file can name.
pub(crate) type Scope = IndexMap<String, ModuleId>;

/// A module with what it sees.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// As written.
    pub(crate) spec: Arc<ModuleSpec>,
    /// The modules it can name.
    pub(crate) scope: Arc<Scope>,
}

/// What kind of file a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Stdlib,
    Graphs,
    Pipelines,
}

impl Root {
    fn folder(self) -> &'static str {
        match self {
            Root::Stdlib => "stdlib",
            Root::Graphs => "graphs",
            Root::Pipelines => "pipelines",
        }
    }

    fn embedded(self) -> &'static Dir<'static> {
        match self {
            Root::Stdlib => &STDLIB,
            Root::Graphs => &GRAPHS,
            Root::Pipelines => &PIPELINES,
        }
    }

    /// The names of all embedded files that are specs, `vision/vit`; maps of names of weights (`stdlib/weights`) are none.
    fn names(self) -> Vec<String> {
        let mut found = names(self.embedded());
        found.retain(|name| self != Root::Stdlib || !name.starts_with("weights/"));
        found
    }

    /// Names are relative to the folder, whether or not they say so.
    fn relative(self, name: &str) -> &str {
        name.strip_prefix(self.folder()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name)
    }
}

/// All files that were read, by their shown name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Library {
    /// Files in memory, by name.
    memory: BTreeMap<String, String>,
    /// Whether files on disk do not count.
    embedded_only: bool,
    modules: Vec<Module>,
    files: HashMap<String, Arc<Scope>>,
    /// Sources by their shown name, so that no file is read twice.
    sources: HashMap<String, SourceId>,
    folders: HashMap<SourceId, PathBuf>,
    /// Files being read, with the place of the `use` that asked for them.
    open: Vec<(String, Span)>,
}

impl Library {
    /// A path that a spec file says, as seen from the working directory; files that are embedded have no folder.
    pub(crate) fn seen_from(&self, source: SourceId, path: &str) -> PathBuf {
        self.folders.get(&source).map_or_else(|| path.into(), |folder| folder.join(path))
    }

    /// A library that looks for files in memory first.
    pub(crate) fn new(options: &Options) -> Library {
        Library { memory: options.files.clone(), embedded_only: options.embedded_only, ..Library::default() }
    }

    /// Adds a module that no file can name: a graph.
    pub(crate) fn push(&mut self, module: Module) -> ModuleId {
        self.modules.push(module);
        ModuleId(self.modules.len() - 1)
    }

    /// A module.
    pub(crate) fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0]
    }

    /// All modules, in the order in which they were read.
    pub(super) fn modules(&self) -> impl Iterator<Item = &ModuleSpec> {
        self.modules.iter().map(|module| &*module.spec)
    }

    /// Reads the file that a user named: a path, or a name, which is taken for one of `root` before any other.
    pub(crate) fn open(&mut self, sources: &mut SourceMap, root: Root, spec: &str) -> Result<SpecFile, Diagnostics> {
        let path = Path::new(spec);
        if path.extension().is_some_and(|extension| extension == "ron") || self.is_file(path) || path.exists() {
            let source = self.read(sources, path)?;
            return parse_file(sources, source);
        }
        for root in [root, Root::Graphs, Root::Pipelines, Root::Stdlib] {
            if let Some(source) = self.find(sources, None, root, spec)? {
                return parse_file(sources, source);
            }
        }
        let known = root.names();
        Err(Diagnostic::error(format!("no spec named `{spec}`"))
            .suggest(spec, known.iter().map(String::as_str))
            .help(format!("give the path of a `.ron` file, or one of: {}", known.join(", ")))
            .into())
    }

    /// Reads a file of the standard library.
    pub(crate) fn open_stdlib(&mut self, sources: &mut SourceMap, name: &str) -> Result<SpecFile, Diagnostics> {
        match self.find(sources, None, Root::Stdlib, name)? {
            Some(source) => parse_file(sources, source),
            None => Err(Diagnostic::error(format!("there is no `{name}` in the standard library")).into()),
        }
    }

    /// A graph with its bases merged in.
    pub(crate) fn base(&mut self, sources: &mut SourceMap, name: &Name) -> Result<GraphSpec, Diagnostics> {
        let source = self.import(sources, Root::Graphs, name)?;
        match parse_file(sources, source)? {
            SpecFile::Graph(graph) => Ok(graph),
            _ => Err(not_a(name, "graph", "`base` names a graph").into()),
        }
    }

    /// The pipeline that a graph trains on.
    pub(crate) fn pipeline(&mut self, sources: &mut SourceMap, name: &Name) -> Result<PipelineSpec, Diagnostics> {
        let source = self.import(sources, Root::Pipelines, name)?;
        match parse_file(sources, source)? {
            SpecFile::Pipeline(pipeline) => Ok(pipeline),
            _ => Err(not_a(name, "pipeline", "`data` names a pipeline").into()),
        }
    }

    /// The modules that these `use` entries bring into sight, with a file's own ones.
    pub(crate) fn scope(
        &mut self,
        sources: &mut SourceMap,
        uses: &[Name],
        own: &Scope,
    ) -> Result<Arc<Scope>, Diagnostics> {
        let mut scope = own.clone();
        let mut from: HashMap<String, &Name> = HashMap::new();
        let mut errors = Vec::new();
        for name in uses {
            let file = match self.modules_of(sources, name) {
                Ok(file) => file,
                Err(found) => {
                    errors.extend(found.into_vec());
                    continue;
                }
            };
            for (module, id) in file.iter() {
                match scope.insert(module.clone(), *id) {
                    Some(other) if other != *id => {
                        let error = Diagnostic::error(format!("two modules are named `{module}`"))
                            .label(name.span, "this file has one")
                            .context(self.module(other).spec.name.span, "the other one")
                            .help("rename one of them, or leave one of the files out of `use`");
                        errors.push(match from.get(module) {
                            Some(first) => error.context(first.span, "and this file has one"),
                            None => error,
                        });
                    }
                    _ => {
                        from.insert(module.clone(), name);
                    }
                }
            }
        }
        Diagnostics::check(Arc::new(scope), errors)
    }

    /// The modules that a file defines; reads it on first use.
    fn modules_of(&mut self, sources: &mut SourceMap, name: &Name) -> Result<Arc<Scope>, Diagnostics> {
        let source = self.import(sources, Root::Stdlib, name)?;
        let file = sources.name(source).to_owned();
        if let Some(at) = self.open.iter().position(|(open, _)| *open == file) {
            let mut error = Diagnostic::error(format!("import cycle: `{file}` uses itself"))
                .label(name.span, "this file is being read")
                .help("move what both files need to a third one");
            for (_, span) in &self.open[at + 1..] {
                error = error.context(*span, "by way of this");
            }
            return Err(error.into());
        }
        if let Some(scope) = self.files.get(&file) {
            return Ok(scope.clone());
        }
        let SpecFile::Modules(specs) = parse_file(sources, source)? else {
            return Err(not_a(name, "file of modules", "`use` names a file that holds `Module(...)`").into());
        };
        self.open.push((file.clone(), name.span));
        let scope = self.add(sources, specs);
        self.open.pop();
        let scope = scope?;
        self.files.insert(file, scope.clone());
        Ok(scope)
    }

    /// Adds the modules of one file, which see each other.
    pub(crate) fn add(&mut self, sources: &mut SourceMap, specs: Vec<ModuleSpec>) -> Result<Arc<Scope>, Diagnostics> {
        let uses: Vec<Vec<Name>> = specs.iter().map(|spec| spec.uses.clone()).collect();
        let imported: Vec<Arc<Scope>> =
            uses.iter().map(|uses| self.scope(sources, uses, &Scope::new())).collect::<Result<_, _>>()?;
        let first = self.modules.len();
        let own: Scope =
            specs.iter().enumerate().map(|(index, spec)| (spec.name.text.clone(), ModuleId(first + index))).collect();
        for (spec, imported) in specs.into_iter().zip(&imported) {
            let mut scope = own.clone();
            for (name, id) in imported.iter() {
                scope.entry(name.clone()).or_insert(*id);
            }
            self.modules.push(Module { spec: Arc::new(spec), scope: Arc::new(scope) });
        }
        let mut errors: Vec<Diagnostic> =
            self.modules[first..].iter().flat_map(|module| check::module(&module.spec, &module.scope)).collect();
        errors.extend(check::recursion(&self.modules[first..], first));
        Diagnostics::check(Arc::new(own), errors)
    }

    fn import(&mut self, sources: &mut SourceMap, root: Root, name: &Name) -> Result<SourceId, Diagnostics> {
        let folder = self.folders.get(&name.span.source).cloned();
        if let Some(source) = self.find(sources, folder.as_deref(), root, name)? {
            return Ok(source);
        }
        let known = root.names();
        let here = folder.map_or(String::new(), |folder| format!("{}, ", folder.join(name.as_str()).display()));
        Err(Diagnostic::error(format!("there is no `{name}`"))
            .label(name.span, "not found")
            .note(format!(
                "looked for {here}{}/{}.ron in the working directory, and among the embedded files",
                root.folder(),
                root.relative(name)
            ))
            .suggest(name, known.iter().map(String::as_str))
            .help(format!("embedded in `{}` are: {}", root.folder(), known.join(", ")))
            .into())
    }

    /// The file that a name stands for, if there is one.
    fn find(
        &mut self,
        sources: &mut SourceMap,
        folder: Option<&Path>,
        root: Root,
        name: &str,
    ) -> Result<Option<SourceId>, Diagnostic> {
        let file = format!("{}.ron", root.relative(name));
        if let Some(text) = self.memory.get(&format!("{name}.ron")) {
            let shown = format!("{name}.ron");
            let source = *self.sources.entry(shown.clone()).or_insert_with(|| sources.add(shown, text.as_str()));
            return Ok(Some(source));
        }
        let beside = folder.map(|folder| folder.join(format!("{name}.ron")));
        for path in beside.into_iter().chain([Path::new(root.folder()).join(&file)]) {
            if self.is_file(&path) {
                return self.read(sources, &path).map(Some);
            }
        }
        let Some(found) = root.embedded().get_file(&file) else { return Ok(None) };
        let shown = format!("{}/{file}", root.folder());
        if let Some(source) = self.sources.get(&shown) {
            return Ok(Some(*source));
        }
        let source = sources.add_bytes(shown.as_str(), found.contents())?;
        self.sources.insert(shown, source);
        Ok(Some(source))
    }

    /// Whether there is such a file, in memory or on disk.
    fn is_file(&self, path: &Path) -> bool {
        self.memory.contains_key(&path.display().to_string()) || !self.embedded_only && path.is_file()
    }

    fn read(&mut self, sources: &mut SourceMap, path: &Path) -> Result<SourceId, Diagnostic> {
        let shown = path.display().to_string();
        if let Some(source) = self.sources.get(&shown) {
            return Ok(*source);
        }
        let source = match self.memory.get(&shown) {
            Some(text) => sources.add(shown.as_str(), text.as_str()),
            None => sources.add_path(path)?,
        };
        self.sources.insert(shown, source);
        self.folders.insert(source, path.parent().unwrap_or(Path::new("")).to_owned());
        Ok(source)
    }
}

fn not_a(name: &Name, kind: &str, help: &str) -> Diagnostic {
    Diagnostic::error(format!("`{name}` is not a {kind}")).label(name.span, "").help(help)
}

/// The names of all files in an embedded folder, `vision/vit`.
pub(crate) fn names(folder: &Dir<'_>) -> Vec<String> {
    let mut found: Vec<String> = folder
        .files()
        .filter_map(|file| file.path().to_str()?.strip_suffix(".ron").map(|name| name.replace('\\', "/")))
        .chain(folder.dirs().flat_map(names))
        .collect();
    found.sort();
    found
}

/// The modules of the embedded files, each with the name of its file.
pub(super) fn stdlib_modules() -> &'static BTreeMap<String, String> {
    static MODULES: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    MODULES.get_or_init(|| {
        let mut sources = SourceMap::new();
        let mut modules_of = |file: &String| {
            let bytes = STDLIB.get_file(format!("{file}.ron"))?.contents();
            let source = sources.add_bytes(file.as_str(), bytes).ok()?;
            match parse_file(&sources, source).ok()? {
                SpecFile::Modules(specs) => Some(specs.into_iter().map(|spec| spec.name.text).collect::<Vec<_>>()),
                _ => None,
            }
        };
        let all = stdlib_names().into_iter().filter_map(|file| Some((modules_of(&file)?, file)));
        all.flat_map(|(names, file)| names.into_iter().map(move |name| (name, file.clone()))).collect()
    })
}

/// The names of the embedded files of modules.
pub fn stdlib_names() -> Vec<String> {
    Root::Stdlib.names()
}

/// The names of the embedded graphs.
pub fn graph_names() -> Vec<String> {
    names(&GRAPHS)
}

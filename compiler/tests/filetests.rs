//! Runs the files under `compiler/filetests/`.
//!
//! # Adding a test
//!
//! Put a file anywhere below `compiler/filetests/`, run `ALIP_BLESS=1 cargo test -p alip-compiler --test filetests`, and
//! read what was written into it. A file looks like this:
//!
//! ```text
//! // test: parse
//! Graph(name: 3)
//! // expect:
//! // error: expected a string for `name`, found the number 3
//! // ...
//! ```
//!
//! - The first line names the command, a row of [`COMMANDS`], and may give it arguments: `// test: ir after:fuse`.
//! - Everything from the first line (so that line numbers are those of the file) to `// expect:` is the input.
//! - `// file: NAME` begins another file of the test, which commands see as [`Case::files`], numbered from its own line 1.
//! - The rest is what the command must print, as comments. Trailing blanks do not count.
//!
//! `ALIP_FILETEST=part` runs only files whose path contains `part`.
//!
//! # Adding a command
//!
//! Write a function `fn(&Case) -> String` and add its row to [`COMMANDS`]. Output must not depend on the machine. A
//! command shows errors by rendering them: the expected text then has file, line, column and caret.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use alip_compiler::diag::{Diagnostics, SourceId, SourceMap};
use alip_compiler::ir;
use alip_compiler::optimize::{self, OptimizeOptions, Optimized, rule_names};
use alip_compiler::resolve::{self, Options};
use alip_compiler::schedule::{self, Neighbours, ScheduleOptions};
use alip_compiler::spec::{self, GraphSpec, ModuleSpec, SpecFile};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::transform::{self, Applied, Disabled, Results, Rewritten};
use alip_compiler::{Checked, check_source};
use alip_plan::Target;

/// A test file, taken apart.
struct Case {
    /// What stands after the command's name on the first line.
    args: String,
    /// Names and texts; the first is the test itself up to `// file:` or `// expect:`.
    files: Vec<(String, String)>,
}

/// What a command does with a test: the text it prints.
type Run = fn(&Case) -> String;

/// Every command a filetest can name.
const COMMANDS: &[(&str, Run)] = &[
    ("check", check),
    ("parse", parse),
    ("expr", expr),
    ("fmt", fmt),
    ("merge", merge),
    ("set", set),
    ("schedule", groups),
    ("transform", rewritten),
    ("lift", lift),
    ("optimize", optimize),
    ("alipc", alipc),
];

/// Runs `alipc` with the arguments where the test is `graph.ron` and other files have their names; prints what it says.
fn alipc(case: &Case) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (index, (name, text)) in case.files.iter().enumerate() {
        let name = if index == 0 { "graph.ron" } else { name };
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_alipc"));
    let output = command.args(case.args.split_whitespace()).current_dir(folder.path()).output().expect("alipc runs");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Checks a spec, to which the other files are visible; prints its state and programs with warnings, or its errors.
fn check(case: &Case) -> String {
    let mut sources = SourceMap::new();
    let (name, text) = &case.files[0];
    let source = sources.add(name.as_str(), text.as_str());
    let set = case.args.split_whitespace().map(str::to_owned).collect();
    let options = Options { files: case.files[1..].iter().cloned().collect(), set, ..Options::default() };
    let checked = check_source(&mut sources, source, &options).map(|checked| match checked {
        Checked::Graph(resolved, step) => {
            let warnings = resolved.warnings.iter().chain(&step.warnings);
            let mut out: String = warnings.map(|warning| warning.render(&sources, false)).collect();
            let state = step.model.state.iter();
            state.for_each(|(path, decl)| line(&mut out, "state", &format!("{path} {}", decl.ty)));
            for (name, graph) in &step.model.programs {
                let outputs: Vec<String> =
                    graph.outputs.iter().map(|(name, id)| format!("{name} {}", graph.ty(*id))).collect();
                line(&mut out, "program", &format!("{name}: {}", outputs.join(", ")));
            }
            out
        }
        Checked::Modules(modules) => format!("{} modules\n", modules.len()),
        Checked::Pipeline(pipeline) => format!("{} ops\n", pipeline.ops.len()),
    });
    show(&sources, checked)
}

/// Reads a spec and prints it in short, or its errors.
fn parse(case: &Case) -> String {
    let (sources, ids) = load(case);
    show(&sources, spec::parse_file(&sources, ids[0]).map(|file| dump(&file)))
}

/// Parses each line as an equation or expression and prints it with all parentheses.
fn expr(case: &Case) -> String {
    let mut out = String::new();
    for line in case.files[0].1.lines().filter(|line| !line.starts_with("//") && !line.is_empty()) {
        let mut sources = SourceMap::new();
        let id = sources.add("input", line);
        let parsed = spec::parse_equation(&sources, id).map(|equation| format!("{equation:#}"));
        let parsed =
            if line.contains(" = ") { parsed } else { spec::parse_expr(&sources, id).map(|e| format!("{e:#}")) };
        out += &show(&sources, parsed.map(|text| text + "\n"));
    }
    out
}

/// Formats the file.
fn fmt(case: &Case) -> String {
    let (sources, ids) = load(case);
    show(&sources, spec::fmt::format(&sources, ids[0]))
}

/// Lays the first file, a variant, over the second, its base.
fn merge(case: &Case) -> String {
    let (sources, ids) = load(case);
    let graph = |id| match spec::parse_file(&sources, id) {
        Ok(SpecFile::Graph(graph)) => Ok(graph),
        Ok(_) => panic!("merge wants graphs"),
        Err(errors) => Err(errors),
    };
    let merged = graph(ids[1]).and_then(|base| spec::merge(base, graph(ids[0])?));
    show(&sources, merged.map(|graph| dump(&SpecFile::Graph(graph))))
}

/// Applies each `KEY=VALUE` of the arguments.
fn set(case: &Case) -> String {
    let (mut sources, ids) = load(case);
    let Ok(SpecFile::Graph(mut graph)) = spec::parse_file(&sources, ids[0]) else { panic!("set wants a valid graph") };
    let mut out = String::new();
    for assignment in case.args.split_whitespace() {
        if let Err(errors) = spec::set(&mut sources, &mut graph, assignment) {
            out += &errors.render(&sources, false);
        }
    }
    out + &dump(&SpecFile::Graph(graph))
}

/// Shows how a program, the first argument, is grouped into kernels: its nodes in normal form, then one line per kernel.
/// Further arguments: `no-fuse`; `operands:N`, the limit of the target.
fn groups(case: &Case) -> String {
    let mut args = case.args.split_whitespace();
    let program = args.next().expect("schedule wants the name of a program");
    let (mut target, mut options) = (Target::cpu(), ScheduleOptions::default());
    for arg in args {
        match arg.split_once(':') {
            None if arg == "no-fuse" => options.fuse = false,
            Some(("operands", limit)) => target.max_operands = limit.parse().expect("a number"),
            _ => panic!("schedule does not know `{arg}`"),
        }
    }
    let (mut sources, ids) = load(case);
    let text = &case.files[0].1;
    let graph = if text.lines().any(|line| line.starts_with("graph ")) {
        Ok(ir::parse(text).unwrap_or_else(|error| panic!("{error}")))
    } else {
        resolve::resolve_source(&mut sources, ids[0], &Options::default()).and_then(|resolved| {
            let step = training_step(&resolved, resolved.model.clone(), Keep::default())?;
            Ok(step.model.programs[program].clone())
        })
    };
    let scheduled = graph.and_then(|graph| {
        let graph = schedule::normal_form(&graph, &target, options)?;
        let neighbours = Neighbours::find(std::iter::once(&graph), &target);
        let origins = |line: &&str| !line.starts_with("origin ");
        let node = |line: &str| format!("{}\n", line.rsplit_once(" @").map_or(line, |(node, _)| node));
        let nodes: String = ir::print(&graph).lines().filter(origins).map(node).collect();
        Ok(nodes + "\n" + &schedule::schedule(&graph, &neighbours, &target, options)?.table())
    });
    show(&sources, scheduled)
}

/// Runs one rewrite (or several, in their order) on a graph in text form; prints what it gave, and the graph.
fn rewritten(case: &Case) -> String {
    let graph = match ir::parse(&case.files[0].1) {
        Ok(graph) => graph,
        Err(error) => return format!("{error}\n"),
    };
    let wanted: Vec<&str> = case.args.split_whitespace().collect();
    let disabled = Disabled(transform::names().filter(|name| !wanted.contains(name)).map(str::to_owned).collect());
    match transform::rewrite(&graph, &Results::default(), &disabled) {
        Ok((graph, applied)) => {
            let mut out = String::new();
            for Applied { rewrite, places, before, after, .. } in applied {
                let gain =
                    format!("{} to {} flop, {} to {} bytes", before.flops, after.flops, before.bytes, after.bytes);
                line(&mut out, rewrite, &format!("{}: {gain}", places.join("; ")));
            }
            out + &ir::print(&graph)
        }
        Err(errors) => errors.render(&SourceMap::new(), false),
    }
}

/// Shows what `lift` makes of a program, the first argument: what it found and what it did not, then the nodes.
fn lift(case: &Case) -> String {
    let (mut sources, ids) = load(case);
    let lifted = resolve::resolve_source(&mut sources, ids[0], &Options::default()).and_then(|resolved| {
        let options = transform::Options { disabled: Disabled::all(), ..transform::Options::default() };
        let Rewritten { model, report, .. } = transform::forward(&resolved, &options, &Target::cpu().packing)?;
        let mut out = String::new();
        for lifted in report.lifted.iter().filter(|lifted| lifted.program == case.args) {
            line(&mut out, "lifted", &format!("{} in `{}`", lifted.what, lifted.origin.path));
        }
        for missed in report.missed.iter().filter(|missed| missed.program == case.args) {
            line(&mut out, "missed", &format!("{} in `{}`: {}", missed.like, missed.origin.path, missed.why));
        }
        let origins = |line: &&str| !line.starts_with("origin ");
        let node = |line: &str| format!("{}\n", line.rsplit_once(" @").map_or(line, |(node, _)| node));
        let text = ir::print(&model.programs[case.args.as_str()]);
        Ok(out + &text.lines().filter(origins).map(node).collect::<String>())
    });
    show(&sources, lifted)
}

/// Optimises each of the other files, a graph as text; prints it with the rules that applied. Arguments are names of rules
/// and themes to leave out.
fn optimize(case: &Case) -> String {
    let without = case.args.split_whitespace().map(str::to_owned).collect();
    let options = OptimizeOptions { enabled: true, without };
    let one = |(name, text): &(String, String)| {
        let graph = ir::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let optimized = optimize::optimize(&graph, &Target::cpu(), &options);
        let Optimized { graph, report } = optimized.unwrap_or_else(|errors| panic!("{name}: {errors}"));
        let origins = |line: &&str| !line.starts_with("origin ") && !line.starts_with("graph");
        let node = |line: &str| format!("{}\n", line.rsplit_once(" @").map_or(line, |(node, _)| node));
        let nodes: String = ir::print(&graph).lines().filter(origins).map(node).collect();
        let taken = |(rule, _): (&&str, &u32)| {
            format!("{rule}{}", if report.fired.contains_key(*rule) { " (taken)" } else { "" })
        };
        let rules: Vec<String> = report.applied.iter().map(taken).collect();
        format!("== {name}\n{nodes}rules: {}\n\n", rules.join(", "))
    };
    case.files[1..].iter().map(one).collect()
}

fn load(case: &Case) -> (SourceMap, Vec<SourceId>) {
    let mut sources = SourceMap::new();
    let ids = case.files.iter().map(|(name, text)| sources.add(name, text)).collect();
    (sources, ids)
}

fn show(sources: &SourceMap, result: Result<String, Diagnostics>) -> String {
    result.unwrap_or_else(|errors| errors.render(sources, false))
}

/// What a spec says, one thing a line.
fn dump(file: &SpecFile) -> String {
    let mut out = String::new();
    match file {
        SpecFile::Graph(graph) => dump_graph(&mut out, graph),
        SpecFile::Modules(modules) => modules.iter().for_each(|module| dump_module(&mut out, module)),
        SpecFile::Pipeline(pipeline) => {
            line(&mut out, "pipeline", &pipeline.name);
            for (name, value) in &pipeline.source.fields {
                line(&mut out, &pipeline.source.kind, &format!("{name} = {}", literal(value)));
            }
            pipeline.body.iter().for_each(|equation| line(&mut out, "equation", equation));
            pipeline.outputs.iter().for_each(|(name, value)| line(&mut out, "output", &format!("{name} = {value}")));
        }
    }
    out
}

fn literal(value: &spec::Literal) -> String {
    match value {
        spec::Literal::Map(map) => map.iter().map(|(name, value)| format!("{name}: {} ", literal(value))).collect(),
        other => format!("{other:?}"),
    }
}

fn line(out: &mut String, what: &str, value: &dyn std::fmt::Display) {
    writeln!(out, "{what} {value}").expect("a String takes everything");
}

fn dump_graph(out: &mut String, graph: &GraphSpec) {
    line(out, "graph", &graph.name);
    if let Some(base) = &graph.base {
        line(out, "base", base);
    }
    graph.uses.iter().for_each(|name| line(out, "use", name));
    graph.dims.iter().for_each(|(name, dim)| line(out, "dim", &format!("{name} = {:?}", dim.node)));
    for (name, input) in &graph.inputs {
        line(out, "input", &format!("{name}: {:?}{}", input.dtype.map(|d| d.node), input.shape));
    }
    for (name, part) in &graph.parts {
        let path = part.path.as_ref().map(|path| format!(" at {:?}", path.node)).unwrap_or_default();
        let set: String = part.set.iter().map(|(name, value)| format!(" set {name} = {value}")).collect();
        line(out, "part", &format!("{name} = {}{path}{set}", part.module));
    }
    for (name, param) in &graph.params {
        let clamp = param.clamp.as_ref().map(|(low, high)| format!(" in {low} .. {high}")).unwrap_or_default();
        line(out, "param", &format!("{name}{} = {}{clamp}", param.shape, param.init));
    }
    graph.body.iter().for_each(|equation| line(out, "equation", equation));
    graph
        .programs
        .iter()
        .for_each(|(name, p)| line(out, "program", &format!("{name}: {} -> {}", p.inputs.len(), p.outputs.len())));
    graph.metrics.iter().for_each(|(name, value)| line(out, "metric", &format!("{name} = {value}")));
    if let Some(train) = &graph.train {
        let exprs = [("loss", &train.loss), ("optimizer", &train.optimizer), ("schedule", &train.schedule)];
        for (name, value) in exprs {
            value.iter().for_each(|value| line(out, "train", &format!("{name} = {value}")));
        }
        train.clip_grad_norm.iter().for_each(|n| line(out, "train", &format!("clip_grad_norm = {}", n.node)));
        train.epochs.iter().for_each(|n| line(out, "train", &format!("epochs = {}", n.node)));
        train.loss_scale.iter().for_each(|expr| line(out, "train", &format!("loss_scale = {expr}")));
        train.precision.iter().for_each(|p| line(out, "train", &format!("precision = {:?}", p.node)));
        train.ema.iter().for_each(|ema| line(out, "train", &format!("ema = {}", ema.decay)));
        for group in train.groups.iter().flatten() {
            let rate = group.lr.as_ref().map(|lr| format!(" lr {lr}")).unwrap_or_default();
            let freeze = group.freeze.map(|freeze| format!(" freeze {}", freeze.node)).unwrap_or_default();
            line(out, "group", &format!("{}{freeze}{rate}", group.select.node));
        }
    }
    graph.data.iter().for_each(|name| line(out, "data", name));
    for removed in &graph.removed {
        line(out, "removed", &format!("{} {:?}", removed.field, removed.key.as_ref().map(|k| k.as_str())));
    }
}

fn dump_module(out: &mut String, module: &ModuleSpec) {
    line(out, "module", &module.name);
    for (name, arg) in &module.args {
        let arg = match arg {
            spec::ArgSpec::Required(kind) => format!(": {:?}", kind.node),
            spec::ArgSpec::Default(value) => format!(" = {value}"),
        };
        line(out, "arg", &format!("{name}{arg}"));
    }
    module.inputs.iter().for_each(|(name, input)| line(out, "input", &format!("{name}{}", input.shape)));
    module.parts.iter().for_each(|(name, part)| line(out, "part", &format!("{name} = {}", part.module)));
    module.state.iter().for_each(|(name, s)| line(out, "state", &format!("{name}{} = {}", s.shape, s.init)));
    module.body.iter().for_each(|equation| line(out, "equation", equation));
    module.require.iter().for_each(|condition| line(out, "require", &condition.to_string()));
    module.outputs.iter().for_each(|name| line(out, "output", name));
}

#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no test below {}", root.display());
    let filter = std::env::var("ALIP_FILETEST").unwrap_or_default();
    let bless = std::env::var_os("ALIP_BLESS").is_some();
    let mut failures = String::new();
    for path in paths.iter().filter(|path| path.to_string_lossy().contains(&filter)) {
        if let Err(failure) = run(path, bless) {
            let name = path.strip_prefix(&root).unwrap_or(path).display();
            write!(failures, "\n== {name}\n{failure}").expect("a String takes everything");
        }
    }
    assert!(failures.is_empty(), "{failures}\nRun with ALIP_BLESS=1 to write what is printed now into the files.");
}

#[test]
fn every_rule_applies_in_some_filetest() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/optimize");
    let mut paths = Vec::new();
    collect(&folder, &mut paths);
    let texts: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).expect("it is there")).collect();
    let lists = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("// rules: "));
    let applied: Vec<&str> =
        lists.flat_map(|list| list.split(", ")).map(|rule| rule.trim_end_matches(" (taken)")).collect();
    let missing: Vec<_> = rule_names().into_iter().filter(|(_, rule)| !applied.contains(rule)).collect();
    assert!(missing.is_empty(), "rules without a filetest in filetests/optimize: {missing:?}");
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            collect(&path, paths);
        } else {
            paths.push(path);
        }
    }
}

fn run(path: &Path, bless: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (input, expected) = match text.split_once("// expect:\n") {
        Some((input, expected)) => (input, expected.to_owned()),
        None => (text.as_str(), String::new()),
    };
    let header = input.lines().next().and_then(|line| line.strip_prefix("// test: "));
    let header = header.ok_or("the first line must be `// test: COMMAND`")?;
    let (command, args) = header.split_once(' ').unwrap_or((header, ""));
    let known = || COMMANDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, command) = COMMANDS
        .iter()
        .find(|(name, _)| *name == command)
        .ok_or_else(|| format!("unknown command `{command}`; there are {}", known()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let case = Case { args: args.to_owned(), files: split_files(name, input) };
    let actual = as_comments(&command(&case));
    if actual == expected {
        return Ok(());
    }
    if bless {
        let input = if input.ends_with('\n') { input.to_owned() } else { format!("{input}\n") };
        return std::fs::write(path, format!("{input}// expect:\n{actual}")).map_err(|e| e.to_string());
    }
    let diff = similar::TextDiff::from_lines(&expected, &actual);
    Err(diff.unified_diff().context_radius(3).header("expected", "printed").to_string())
}

fn split_files(name: String, input: &str) -> Vec<(String, String)> {
    let mut files = vec![(name, String::new())];
    for line in input.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix("// file: ") {
            files.push((name.trim().to_owned(), String::new()));
        } else if let Some((_, text)) = files.last_mut() {
            text.push_str(line);
        }
    }
    files
}

fn as_comments(text: &str) -> String {
    text.lines().map(|line| format!("// {line}").trim_end().to_owned() + "\n").collect()
}

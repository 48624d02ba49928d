//! The spec language: RON files whose strings are expressions, read into an AST in which everything knows its place.
//!
//! Text -> tokens -> tree -> [`SpecFile`]. The strings inside are parsed by the expression parser;
//! their grammar stands in [`expr`].
//!
//! - One run reports every mistake of a file, or the first one if the brackets or quotes themselves are wrong.
//! - What is accepted is plain RON: the `ron` crate reads it too. The reverse does not hold (no raw identifiers, byte
//!   strings, characters or extensions).
//! - Whatever the bytes, reading returns; depth and size are bounded.
//! - Nothing here looks at another file: imports, bases and names are the resolver's.

mod ast;
mod display;
pub mod expr;
pub mod fmt;
mod graph;
mod lexer;
mod merge;
mod module;
mod parser;
mod pipeline;
mod read;
mod respace;
mod set;
mod syntax;
mod text;
mod tree;

use crate::diag::{Diagnostic, Diagnostics, SourceId, SourceMap};
use read::Reader;
use tree::{Node, NodeKind};

pub use ast::*;
pub use expr::{Arg, BinaryOp, Equation, Expr, ExprKind, Index, MAX_DEPTH, Name, Shape, Spanned, UnaryOp};
pub use merge::merge;
pub use pipeline::{FieldKind, SOURCES, SourceField, SourceKind};
pub use set::set;

pub(crate) use lexer::is_name;

/// A path as it is stored: `blocks.0.attn` for `blocks[0].attn`.
pub fn plain_path(path: &str) -> String {
    path.replace('[', ".").replace(']', "")
}

/// What a file can hold.
const SPECS: [&str; 3] = ["Graph", "Module", "Pipeline"];

/// How many errors of one file are shown. More do not fit on a screen, and mostly follow from the first.
const MAX_ERRORS: usize = 50;

/// Reads a spec file.
///
/// # Errors
/// Everything that is wrong with the text by itself, each with its place.
pub fn parse_file(sources: &SourceMap, source: SourceId) -> Result<SpecFile, Diagnostics> {
    let node = tree::parse(source, sources.text(source))?;
    let mut cx = Reader::default();
    let file = file(&mut cx, &node);
    if cx.errors.len() > MAX_ERRORS {
        let more = cx.errors.len() - MAX_ERRORS;
        cx.errors.truncate(MAX_ERRORS);
        let last = Diagnostic::error(format!("{more} more errors in `{}`", sources.name(source)));
        cx.errors.push(last.help("mend those above first"));
    }
    match file {
        Some(file) => Diagnostics::check(file, cx.errors),
        None => Err(Diagnostics::check((), cx.errors).err().unwrap_or_else(|| {
            // A reader that gives up says why; should one forget, this is still an error with a place.
            Diagnostic::error("this spec cannot be read").label(node.head(), "").into()
        })),
    }
}

/// Parses text as one expression, such as a value from the command line.
///
/// # Errors
/// The text is not an expression.
pub fn parse_expr(sources: &SourceMap, source: SourceId) -> Result<Expr, Diagnostics> {
    Ok(parser::expression(&text::Text::whole(source, sources.text(source)))?)
}

/// Parses text as one equation, `y = f(x)`.
///
/// # Errors
/// The text is not an equation.
pub fn parse_equation(sources: &SourceMap, source: SourceId) -> Result<Equation, Diagnostics> {
    Ok(parser::equation(&text::Text::whole(source, sources.text(source)))?)
}

fn file(cx: &mut Reader, node: &Node) -> Option<SpecFile> {
    let name = match &node.kind {
        NodeKind::List(items) => return modules(cx, node, items),
        NodeKind::Struct(Some(name), _) | NodeKind::Tuple(Some(name), _) => name,
        _ => {
            let help = "a file holds `Graph(...)`, `Module(...)`, a list of modules, or `Pipeline(...)`";
            cx.wrong(node, "`Graph`, `Module` or `Pipeline`", help);
            return None;
        }
    };
    match name.as_str() {
        "Graph" => graph::graph(cx, node).map(SpecFile::Graph),
        "Module" => module::module(cx, node).map(|module| SpecFile::Modules(vec![module])),
        "Pipeline" => pipeline::pipeline(cx, node).map(SpecFile::Pipeline),
        _ => {
            cx.errors.push(
                Diagnostic::error(format!("unknown spec `{name}`"))
                    .label(name.span, "expected `Graph`, `Module` or `Pipeline`")
                    .suggest(name, SPECS),
            );
            None
        }
    }
}

fn modules(cx: &mut Reader, list: &Node, items: &[Node]) -> Option<SpecFile> {
    if items.is_empty() {
        cx.errors.push(
            Diagnostic::error("a file without modules")
                .label(list.span, "empty list")
                .help("write `[Module(...), Module(...)]`"),
        );
    }
    let mut modules: Vec<ModuleSpec> = Vec::new();
    for item in items {
        if !matches!(&item.kind, NodeKind::Struct(Some(name), _) | NodeKind::Tuple(Some(name), _) if **name == *"Module")
        {
            cx.wrong(item, "`Module(...)`", "only modules can stand in a list; a graph or pipeline has its own file");
            continue;
        }
        let Some(module) = module::module(cx, item) else { continue };
        if let Some(first) = modules.iter().find(|m| m.name == module.name) {
            cx.errors.push(
                Diagnostic::error(format!("module `{}` stands twice in this file", module.name))
                    .label(module.name.span, "again here")
                    .context(first.name.span, "first here")
                    .help("rename or remove one of them"),
            );
        }
        modules.push(module);
    }
    Some(SpecFile::Modules(modules))
}

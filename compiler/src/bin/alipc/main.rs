//! `alipc`: checks, formats and compiles specs.
//!
//! Each command stands in its own file, with `Args` (clap) and `run(Args) -> ExitCode`. Results go to stdout, diagnostics
//! and progress to stderr; the exit status is 0 if and only if all went well.

mod bisect;
mod check;
mod compile;
mod diff;
mod explain;
mod figures;
mod files;
mod fmt;
mod graph;
mod ops;
mod options;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use alip_compiler::diag::{Diagnostics, SourceMap};
use clap::{Parser, Subcommand};

/// The compiler of language-image model specs.
#[derive(Parser)]
#[command(name = "alipc", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find the first operation that leaves its bound: `alip-run bisect`
    Bisect(bisect::Args),
    /// Check specs: names, shapes, types, gradients
    Check(check::Args),
    /// Compile a graph to a plan
    Compile(compile::Args),
    /// Show what differs between two graphs
    Diff(diff::Args),
    /// Show what became of a graph's operations: kernels, rules, what kept them apart
    Explain(explain::Args),
    /// Put spec files in house style
    Fmt(fmt::Args),
    /// Draw a graph as a web page
    Graph(graph::Args),
    /// Show the functions, modules and data ops of the language
    Ops(ops::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Bisect(args) => bisect::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Fmt(args) => fmt::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Ops(args) => ops::run(&args),
    }
}

/// Shows diagnostics on stderr, in colour if that is a terminal and `NO_COLOR` is not set.
fn report(diagnostics: &Diagnostics, sources: &SourceMap) {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    eprintln!("{}", diagnostics.render(sources, color));
}

/// Prints a result. A reader that has seen enough (`| head`) is no failure of the command; a full disk is.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write the result: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

//! `alipc`: checks, formats and compiles specs.
//!
//! Each command stands in its own file, with `Args` (clap) and `run(Args) -> ExitCode`. Results go to stdout, diagnostics
//! and progress to stderr; the exit status is 0 if and only if all went well.

mod check;
mod fmt;
mod ops;

use std::io::IsTerminal;
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
    /// Check specs: names, shapes, types, gradients
    Check(check::Args),
    /// Put spec files in house style
    Fmt(fmt::Args),
    /// Show the functions, modules and data ops of the language
    Ops(ops::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Fmt(args) => fmt::run(&args),
        Command::Ops(args) => ops::run(&args),
    }
}

/// Shows diagnostics on stderr, in colour if that is a terminal and `NO_COLOR` is not set.
fn report(diagnostics: &Diagnostics, sources: &SourceMap) {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    eprintln!("{}", diagnostics.render(sources, color));
}

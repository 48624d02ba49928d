//! `alip-run`: trains, evaluates and measures models.
//!
//! Each command stands in its own file, with `Args` (clap) and `run(&Args)`. Results go to stdout, progress and errors to
//! stderr; the exit status is 0 if and only if all went well (130 after Ctrl-C).

mod bench;
mod devices;
mod eval;
mod model;
mod profile;
mod progress;
mod replay;
mod report;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Trains, evaluates and measures language-image models.
#[derive(Parser)]
#[command(name = "alip-run", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model, or continue a run
    Train(train::Args),
    /// Measure the model of a run on held-out data
    Eval(eval::Args),
    /// Write the report of a run, beside another one if wanted
    Report(report::Args),
    /// Train on exactly the batches in a file and dump what happened
    Replay(replay::Args),
    /// Measure training steps on synthetic data
    Bench(bench::Args),
    /// Show the devices of this machine
    Devices(devices::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Devices(args) => devices::run(&args),
    };
    match done {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// What a command returns: its exit status, or what to say on stderr.
type Outcome<T = ExitCode> = Result<T, Failure>;

/// The last words of a command.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    /// Diagnostics that are rendered already.
    #[cfg(feature = "compile")]
    fn rendered(text: String) -> Failure {
        Failure(text)
    }

    fn message(text: impl std::fmt::Display) -> Failure {
        Failure(format!("error: {text}"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::message(error)
    }
}

//! `alip-run`: trains, evaluates and measures models.
//!
//! Each command stands in its own file, with `Args` (clap) and `run(&Args)`. Results go to stdout, progress and errors to
//! stderr; the exit status is 0 if and only if all went well (130 after Ctrl-C).

/// Prints a line of results on stdout.
macro_rules! say {
    ($($arg:tt)*) => { $crate::say(format_args!($($arg)*)) };
}

/// Prints a line for people on stderr.
macro_rules! note {
    ($($arg:tt)*) => { $crate::note(format_args!($($arg)*)) };
}

mod bench;
#[cfg(feature = "compile")]
mod bisect;
mod classify;
mod data;
mod devices;
mod embed;
mod eval;
mod export;
mod fits;
#[cfg(feature = "compile")]
mod graphs;
mod import;
mod model;
mod moved;
mod on_the_way;
#[cfg(feature = "compile")]
mod onnx;
mod open;
mod pack;
mod profile;
mod progress;
mod replay;
mod report;
mod search;
mod sheet;
mod stop;
mod suite;
mod train;
mod weigh;

use std::io::Write;
use std::process::ExitCode;

use alip_plan::fault;
use clap::{Parser, Subcommand};

/// Trains, evaluates and measures language-image models.
#[derive(Parser)]
#[command(name = "alip-run", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Each is described at its arguments.
#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Eval(eval::Args),
    Report(report::Args),
    Embed(embed::Args),
    Search(search::Args),
    Classify(classify::Args),
    Weigh(weigh::Args),
    Replay(replay::Args),
    Bench(bench::Args),
    #[cfg(feature = "compile")]
    Bisect(bisect::Args),
    Data(data::Args),
    Pack(pack::Args),
    Import(import::Args),
    Export(export::Args),
    Devices(devices::Args),
}

fn main() -> ExitCode {
    if fault::PLANTABLE {
        plant();
    }
    hush_drivers();
    let done = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Classify(args) => classify::run(&args),
        Command::Weigh(args) => weigh::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Bench(args) => bench::run(&args),
        #[cfg(feature = "compile")]
        Command::Bisect(args) => bisect::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Devices(args) => devices::run(&args),
    };
    match done {
        Ok(status) => status,
        Err(failure) => {
            note!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Mesa's layer that sorts adapters asks for a desktop, and complains on stderr where there is none. Without one there is
/// nothing to sort by but what the user says, which is left alone.
fn hush_drivers() {
    let desktop = std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| std::path::Path::new(&folder).is_absolute());
    if !desktop && std::env::var_os("MESA_VK_DEVICE_SELECT").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Plants the fault that the environment names, for a test of `bisect`.
fn plant() {
    let name = std::env::var("ALIP_FAULT").unwrap_or_default();
    fault::plant(fault::Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name));
}

/// Prints a line of results. A reader that has seen enough (`| head`) is no reason to lose a run; a full disk ends the
/// program, since what was asked for cannot be given.
fn say(text: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        note(format_args!("error: cannot write the result: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line for people; where nobody reads there is nobody to tell.
fn note(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
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

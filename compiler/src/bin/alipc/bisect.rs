//! `alipc bisect`: says where that is.

use std::process::ExitCode;

/// Find the first operation of a training step that leaves its bound: `alip-run bisect`
///
/// To find it the step has to run on a device, and compiling knows none. `alip-run bisect` takes the same arguments.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// What to give to `alip-run bisect`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let arguments = args.arguments.iter().map(|argument| format!(" {argument}")).collect::<String>();
    eprintln!("error: bisecting runs kernels, which this program cannot\nhelp: use `alip-run bisect{arguments}`");
    ExitCode::FAILURE
}

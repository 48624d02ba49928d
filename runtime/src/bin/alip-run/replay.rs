//! `alip-run replay`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use alip_runtime::exec::Session;
use alip_runtime::train::replay::{Dump, Replay, replay};

use crate::Outcome;
use crate::model::{DeviceArgs, Feed, Keep, ModelArgs};

/// Train on exactly the batches in a file and dump what happened
///
/// Weights and batches are safetensors files. The first holds every parameter under its path, and other state under its path or
/// as `state.PATH`; the second holds `batch.0.NAME`, `batch.1.NAME`, ... for every input of the graph, over which the steps cycle.
/// Once loss or gradient are not finite no further step is taken: the file is written all the same, and the command fails.
///
/// The layout, for a graph with the inputs image, raw and caption and a batch of 16:
///
///   WEIGHTS  visual.conv1.weight      f32 [32, 3, 8, 8]    every parameter under its path
///            state.lcg.ema            f32 []               other state, where it is not to begin as the graph says
///   BATCHES  batch.0.image            f32 [16, 3, 32, 32]  numbered from 0 without a gap
///            batch.0.raw              i32 [16, 16]         wider integers are converted, with a check of their range
///            batch.1.image            ...
///   OUT      metrics.NAME             f64 [steps]
///            outputs.NAME             first step           grads.PATH  first step, before clipping
///            params.PATH              after the last step  state.PATH  after the last step
#[derive(clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Example:\n  alip-run replay alip_tiny --weights weights.safetensors --batches inputs.safetensors --steps 20 \\\n      --device cpu --out replay.safetensors"
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Initial weights
    #[arg(long)]
    weights: PathBuf,
    /// Batches
    #[arg(long)]
    batches: PathBuf,
    /// Steps to take
    #[arg(long, default_value_t = 1)]
    steps: u64,
    /// Length of the learning rate schedule, if longer than the steps taken
    #[arg(long)]
    total_steps: Option<u64>,
    /// What to write: outputs and gradients of the first step, parameters and state after the last, metrics of all
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["outputs", "grads", "params", "metrics"])]
    dump: Vec<Kind>,
    /// The safetensors file to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Kind {
    Outputs,
    Grads,
    Params,
    Metrics,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let dump: BTreeSet<Dump> = args
        .dump
        .iter()
        .map(|kind| match kind {
            Kind::Outputs => Dump::Outputs,
            Kind::Grads => Dump::Grads,
            Kind::Params => Dump::Params,
            Kind::Metrics => Dump::Metrics,
        })
        .collect();
    let device = args.device.open()?;
    let keep = Keep { grads: dump.contains(&Dump::Grads), outputs: dump.contains(&Dump::Outputs) };
    let plan = args.model.plan(&*device, keep, Feed::File)?;
    let mut session = Session::new(Arc::new(plan), device)?;
    let what = Replay {
        weights: &args.weights,
        batches: &args.batches,
        steps: args.steps,
        total_steps: args.total_steps.unwrap_or(args.steps),
        dump: &dump,
        out: &args.out,
    };
    replay(&mut session, &what)?;
    say!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

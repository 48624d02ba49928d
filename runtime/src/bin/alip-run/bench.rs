//! `alip-run bench`.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alip_plan::{DType, PROGRAM_TRAIN, Plan, STATE_TOTAL_STEPS, philox};
use alip_runtime::exec::{RowTotals, Session, Tensors};
use alip_runtime::tensor::{Data, HostTensor};
use indicatif::HumanBytes;

use crate::model::{DeviceArgs, Feed, Keep, ModelArgs};
use crate::{Failure, Outcome, profile};

/// Measure training steps on synthetic data
///
/// Images are noise; texts have 5 to 30 tokens between the start and end tokens and are padded with zeros. The figure is that of the
/// median step, from the end of the step before it to its own; as in training, a device has the next steps before it is done with
/// one. Data loading is not part of it; `train` reports the share of time it waits. With --json there also is the loss of every step:
/// all devices begin with the same weights and take the same batch.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run bench alip_b32 --batch 16 --device cpu\n  alip-run bench alip_shapes --profile\n  \
                  alip-run bench alip_b32 --largest --full-texts --json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Steps before the first measured one
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Steps measured
    #[arg(long, default_value_t = 5)]
    steps: u64,
    /// The largest batch for which there is room on the device, where it can tell (cuda), in place of the spec's
    #[arg(long, conflicts_with = "batch")]
    largest: bool,
    /// Texts that fill the context
    #[arg(long)]
    full_texts: bool,
    /// Run one more step launch by launch, and show where the time goes
    #[arg(long)]
    profile: bool,
    /// One JSON object instead of lines; with --profile, all kernels are in it
    #[arg(long)]
    json: bool,
}

/// What is measured of a run.
struct Figures {
    compile: Duration,
    load: Duration,
    /// Of the first step, which compiles kernels on some devices.
    first: Duration,
    /// Of the measured ones, in order of time.
    steps: Vec<Duration>,
    /// Of all steps, in the order in which they were taken.
    losses: Vec<f64>,
}

impl Figures {
    fn median(&self) -> f64 {
        self.steps[self.steps.len() / 2].as_secs_f64()
    }
}

pub(crate) fn run(args: &Args) -> Outcome {
    let device = args.device.open()?;
    let description = format!("{}: {}", device.name(), device.description());
    let start = Instant::now();
    let how = (Keep::default(), Feed::Loader);
    let plan = Arc::new(match args.largest {
        true => args.model.largest(&*device, how)?,
        false => args.model.plan(&*device, how.0, how.1)?,
    });
    let compile = start.elapsed();
    let Some(train) = &plan.train else {
        return Err(Failure::message(format!(
            "graph `{}` has no `train` section, so there is no step to measure",
            plan.name
        )));
    };
    let batch = train.batch;
    let start = Instant::now();
    let mut session = Session::new(Arc::clone(&plan), device)?;
    session.init(0)?;
    if plan.state(STATE_TOTAL_STEPS).is_some() {
        // The schedule must not end within the run; its length does not change the work.
        session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(1000))?;
    }
    session.synchronize()?;
    let load = start.elapsed();
    let mut figures = Figures { compile, load, first: Duration::ZERO, steps: Vec::new(), losses: Vec::new() };
    let inputs = synthetic(&plan, if args.full_texts { Texts::Full } else { Texts::Captions })?;
    let times = take(&mut session, &inputs, &train.loss, args.warmup + args.steps.max(1), &mut figures.losses)?;
    figures.first = times[0];
    figures.steps = times[args.warmup as usize..].to_vec();
    figures.steps.sort();
    let profile = args.profile.then(|| profile::profile(&mut session, &inputs)).transpose()?;
    let median = figures.median();
    let ran = session.ran(PROGRAM_TRAIN)?;
    let (launches, flops) = (ran.steps.len(), ran.steps.iter().map(|step| step.flops).sum::<u64>());
    let mut rows = RowTotals::default();
    session.rows_run(PROGRAM_TRAIN).into_iter().for_each(|run| rows.add(run));
    if args.json {
        let mut object = serde_json::json!({
            "graph": plan.name, "batch": batch, "device": description, "target": plan.target.name,
            "target_flops_per_s": plan.target.rates.products, "target_bytes_per_s": plan.target.rates.bandwidth,
            "samples_per_s": batch as f64 / median, "step_s": median, "first_step_s": figures.first.as_secs_f64(),
            "steps_s": figures.steps.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            "gflop_per_step": flops as f64 / 1e9, "gflop_per_s": flops as f64 / 1e9 / median, "launches": launches,
            "rows": (rows.runs > 0).then_some(rows.rows), "rows_computed": (rows.runs > 0).then_some(rows.room),
            "compile_s": figures.compile.as_secs_f64(), "load_s": figures.load.as_secs_f64(),
            "planned_peak_bytes": plan.report.peak_bytes(), "device_bytes": session.memory().segments + session.memory().scratch,
            "peak_resident_bytes": peak_resident(), "losses": figures.losses,
        });
        if let Some(profile) = profile {
            object["kernels"] = profile.json();
        }
        say!("{object}");
    } else {
        say!("{} at batch {batch} on {description}", plan.name);
        say!("{:<18} {:.3}", "samples/s", batch as f64 / median);
        let range = (figures.steps[0].as_secs_f64(), figures.steps[figures.steps.len() - 1].as_secs_f64());
        say!(
            "{:<18} {:.1} ms (median of {}, {:.1} to {:.1})",
            "step",
            median * 1e3,
            figures.steps.len(),
            range.0 * 1e3,
            range.1 * 1e3
        );
        say!(
            "{:<18} {:.1} GFLOP in {launches} launches, {:.1} GFLOP/s",
            "work",
            flops as f64 / 1e9,
            flops as f64 / 1e9 / median
        );
        if rows.runs > 0 {
            say!("{:<18} {rows}", "packed rows");
        }
        say!(
            "{:<18} {:.2} s to compile, {:.2} s to load, {:.2} s for the first step",
            "before",
            figures.compile.as_secs_f64(),
            figures.load.as_secs_f64(),
            figures.first.as_secs_f64()
        );
        say!(
            "{:<18} {} planned, {} on the device",
            "memory",
            HumanBytes(plan.report.peak_bytes()),
            HumanBytes(session.memory().segments + session.memory().scratch)
        );
        if let Some(peak) = peak_resident() {
            say!("{:<18} {} (VmHWM)", "peak resident", HumanBytes(peak));
        }
        if let Some(profile) = profile {
            say!("{}", profile.text().trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes steps, the first by itself and then as many ahead as the device wants, as training does; the time from the end of one to
/// the end of the next, and the losses.
fn take(
    session: &mut Session,
    inputs: &Tensors,
    loss: &str,
    steps: u64,
    losses: &mut Vec<f64>,
) -> Outcome<Vec<Duration>> {
    let (mut times, mut waiting, mut last) = (Vec::new(), VecDeque::new(), Instant::now());
    for step in 0..steps {
        session.submit(PROGRAM_TRAIN, inputs)?;
        waiting.push_back(session.download(PROGRAM_TRAIN, &[loss], &[])?);
        let ahead = if step == 0 || step + 1 == steps { 0 } else { session.ahead() };
        while waiting.len() > ahead {
            let Some(results) = waiting.pop_front() else { break };
            let outputs = results.wait()?.outputs;
            losses.extend(outputs.get(loss).and_then(HostTensor::first));
            times.push(last.elapsed());
            last = Instant::now();
        }
    }
    Ok(times)
}

/// How long random texts are.
#[derive(Clone, Copy)]
pub(crate) enum Texts {
    /// 5 to 30 tokens between start and end, as captions are.
    Captions,
    /// All of the context.
    Full,
}

/// A batch of noise and random texts for every input of `train`.
pub(crate) fn synthetic(plan: &Plan, texts: Texts) -> Outcome<Tensors> {
    let Some(train) = plan.programs.get(PROGRAM_TRAIN) else { return Ok(Tensors::new()) };
    let vocabulary = vocabulary(plan);
    let mut inputs = Tensors::new();
    for (number, (name, buffer)) in train.batch_inputs().enumerate() {
        let draw = |index: u64| philox::philox4x32([index as u32, (index >> 32) as u32, number as u32, 0], [0, 0]);
        let elements = buffer.elements();
        let tensor = if buffer.dtype.is_float() {
            let values = (0..elements).map(|index| {
                let bits = draw(index);
                // Irwin and Hall: four uniforms are near enough to a normal for timing.
                bits.iter().map(|bits| philox::uniform(*bits) - 0.5).sum::<f32>() * 3f32.sqrt()
            });
            HostTensor::f32(&buffer.shape, values.collect())
        } else if buffer.dtype == DType::U8 {
            HostTensor::new(&buffer.shape, Data::U8((0..elements).map(|index| draw(index)[0] as u8).collect()))
        } else {
            let context = buffer.shape.last().copied().unwrap_or(1) as usize;
            let mut ids = vec![0i32; elements as usize];
            for (row, ids) in ids.chunks_exact_mut(context.max(1)).enumerate() {
                let most = context.saturating_sub(2);
                let length = match texts {
                    Texts::Captions => (5 + draw(row as u64)[0] as usize % 26).min(most),
                    Texts::Full => most,
                };
                for (place, id) in ids.iter_mut().enumerate().take(length + 2) {
                    *id = match place {
                        0 => vocabulary - 2,
                        last if last == length + 1 => vocabulary - 1,
                        _ => 1 + (draw((row * context + place) as u64 + (1 << 32))[0] % (vocabulary as u32 - 3)) as i32,
                    };
                }
            }
            HostTensor::i32(&buffer.shape, ids)
        };
        inputs.insert(name.to_string(), tensor?);
    }
    Ok(inputs)
}

/// Rows of the token embedding; 512 where the plan has none of the usual name.
fn vocabulary(plan: &Plan) -> i32 {
    let table = plan.state.iter().find(|state| state.path.ends_with("token_embedding.weight"));
    let rows = table.and_then(|state| state.buffer.shape.first().copied()).unwrap_or(512);
    i32::try_from(rows).unwrap_or(i32::MAX).max(8)
}

/// The largest resident size of this process so far, where the system tells it (Linux).
fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

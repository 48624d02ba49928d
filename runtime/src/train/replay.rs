//! Training on exactly the batches in a file, and a record of exactly what happened: the way to compare with any other
//! framework.

use std::collections::BTreeSet;
use std::path::Path;

use alip_plan::{Buffer, PROGRAM_TRAIN, Plan, STATE_HALTED, STATE_TOTAL_STEPS, StateKind};
use safetensors::tensor::Dtype as FileType;

use crate::data::{Beyond, beyond_table};
use crate::exec::{ExecError, Found, Session, Tensors};
use crate::file::FileError;
use crate::run::tensors::{self, Entry, TensorFile, file_type};
use crate::tensor::HostTensor;

/// What is written of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dump {
    /// `outputs.NAME` of the first step.
    Outputs,
    /// `grads.PATH` of the first step, before clipping.
    Grads,
    /// `params.PATH` and `state.PATH` after the last step.
    Params,
    /// `metrics.NAME`, f64 \[steps\].
    Metrics,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file cannot be read or written, or holds no tensor of a name.
    #[error(transparent)]
    File(#[from] FileError),
    /// The session failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The weights are not those of the graph.
    #[error("{}: the weights do not fit graph `{plan}`: {why}", path.display())]
    Weights {
        /// The file.
        path: std::path::PathBuf,
        /// Name of the graph.
        plan: String,
        /// What is missing or too much.
        why: String,
    },
    /// A batch whose number is missing, or that is named in another way.
    #[error("{}: there are batches 0 to {last}, but also `{found}`: batches are numbered from 0 without a gap", path.display())]
    Gap {
        /// The file.
        path: std::path::PathBuf,
        /// The last batch before the gap.
        last: u64,
        /// The name of a tensor behind it.
        found: String,
    },
    /// No batch in the file.
    #[error("{}: there is no batch: tensors are named `batch.0.{input}`, `batch.1.{input}`, ...", path.display())]
    NoBatch {
        /// The file.
        path: std::path::PathBuf,
        /// The first input of the graph.
        input: String,
    },
    /// An index of a batch is beyond its table.
    #[error(
        "{}: `batch.{number}.{input}` holds {index}, but the graph's table has {rows} rows: the batches are of another vocabulary",
        path.display()
    )]
    BeyondTable {
        /// The file.
        path: std::path::PathBuf,
        /// The batch.
        number: u64,
        /// The input.
        input: String,
        /// The index.
        index: i32,
        /// Rows of the table.
        rows: u64,
    },
    /// From a step on none was taken.
    #[error(
        "step {step}: loss or gradient is not finite, so neither this step nor those after it were taken; what happened is in {}",
        path.display()
    )]
    Halted {
        /// The step, counted from 1.
        step: u64,
        /// The file that was written.
        path: std::path::PathBuf,
    },
}

/// What to replay.
#[derive(Debug)]
pub struct Replay<'a> {
    /// Weights by path, every parameter among them; other state by path or as `state.PATH`.
    pub weights: &'a Path,
    /// `batch.0.NAME`, ...; steps cycle over them.
    pub batches: &'a Path,
    /// Steps to take.
    pub steps: u64,
    /// Length of the schedule.
    pub total_steps: u64,
    /// What to write.
    pub dump: &'a BTreeSet<Dump>,
    /// Where to write it.
    pub out: &'a Path,
}

/// Replays; afterwards `out` holds what was asked for. So it does if a step whose loss or gradient is not finite halts the
/// training, of which the metrics may be what is asked for; the steps after it run all the same, on a state that stays.
///
/// # Errors
/// A file or the device fails, names and shapes do not fit the plan, or a step halts the training.
pub fn replay(session: &mut Session, what: &Replay<'_>) -> Result<(), ReplayError> {
    let plan = session.plan().clone();
    session.init(0)?;
    load_weights(session, what.weights)?;
    if plan.state(STATE_TOTAL_STEPS).is_some() {
        let total = i32::try_from(what.total_steps).unwrap_or(i32::MAX);
        session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(total))?;
    }
    let mut batches = TensorFile::open(what.batches)?;
    let names: Vec<String> = plan
        .programs
        .get(PROGRAM_TRAIN)
        .map_or_else(Vec::new, |train| train.outputs.iter().map(|port| port.name.clone()).collect());
    let scalar = |name: &&String| {
        let train = plan.programs.get(PROGRAM_TRAIN);
        train.and_then(|train| train.output(name)).is_some_and(|buffer| buffer.shape.is_empty())
    };
    let kept = |name: &str| name.starts_with("grads.") || name.starts_with("outputs.");
    let metrics: Vec<&String> = names.iter().filter(|name| !kept(name)).filter(scalar).collect();
    let mut series: Vec<Vec<f64>> = vec![Vec::new(); metrics.len()];
    let mut first = Tensors::new();
    let count = count_batches(&plan, &batches, what.batches)?;
    let flag = plan.state(STATE_HALTED).map(|state| state.path.as_str());
    let mut halted = None;
    for step in 0..what.steps {
        let number = step % count;
        let inputs = batch(&plan, &mut batches, number)?;
        let wanted: Vec<&str> = match step {
            0 => names.iter().map(String::as_str).collect(),
            _ => metrics.iter().map(|name| name.as_str()).collect(),
        };
        session.submit(PROGRAM_TRAIN, &inputs)?;
        let Found { outputs, state } = session.download(PROGRAM_TRAIN, &wanted, flag.as_slice())?.wait()?;
        if state.values().any(|flag| flag.first() != Some(0.0)) {
            halted.get_or_insert(step + 1);
        }
        for (name, values) in metrics.iter().zip(&mut series) {
            values.push(outputs.get(*name).and_then(HostTensor::first).unwrap_or(f64::NAN));
        }
        if step == 0 {
            first = outputs;
        }
    }
    let series = metrics.into_iter().cloned().zip(series).collect();
    write(session, &plan, what, first, series)?;
    halted.map_or(Ok(()), |step| Err(ReplayError::Halted { step, path: what.out.to_path_buf() }))
}

/// Puts the tensors of a file into the state: every parameter under its path, other state under its path or as `state.PATH`. A
/// training that halted when the file was written goes on.
///
/// # Errors
/// The file cannot be read, lacks a parameter, or holds what the graph has not.
pub fn load_weights(session: &mut Session, path: &Path) -> Result<(), ReplayError> {
    let plan = session.plan().clone();
    let mut file = TensorFile::open(path)?;
    let fail = |why: String| ReplayError::Weights { path: path.to_path_buf(), plan: plan.name.clone(), why };
    let names = file.names();
    let place = |name: &str| plan.state(name).or_else(|| plan.state(name.strip_prefix("state.")?));
    let missing: Vec<&str> = plan
        .state
        .iter()
        .filter(|state| state.kind == StateKind::Param && !names.contains(&state.path))
        .map(|state| state.path.as_str())
        .collect();
    if let Some(path) = missing.first() {
        let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        return Err(fail(format!("parameter `{path}`{more} is not in the file")));
    }
    for name in names {
        let state = place(&name).ok_or_else(|| fail(format!("`{name}` of the file is no state of the graph")))?;
        let tensor = file.read_for(&name, &state.buffer)?;
        session.write_state(&state.path, &tensor)?;
    }
    if plan.state(STATE_HALTED).is_some() {
        session.write_state(STATE_HALTED, &HostTensor::scalar_i32(0))?;
    }
    Ok(())
}

fn count_batches(plan: &Plan, batches: &TensorFile, path: &Path) -> Result<u64, ReplayError> {
    let first = plan.programs.get(PROGRAM_TRAIN).and_then(|train| train.batch_inputs().next());
    let Some((input, _)) = first else { return Ok(1) };
    let input = input.to_string();
    let names = batches.names();
    let count = (0u64..).take_while(|batch| names.contains(&format!("batch.{batch}.{input}"))).count() as u64;
    if count == 0 {
        return Err(ReplayError::NoBatch { path: path.to_path_buf(), input });
    }
    let beyond = |name: &&String| {
        let number = name.strip_prefix("batch.").and_then(|rest| rest.split_once('.')).map(|(number, _)| number);
        number.is_some_and(|number| number.parse().is_ok_and(|number: u64| number >= count))
    };
    if let Some(found) = names.iter().find(beyond) {
        return Err(ReplayError::Gap { path: path.to_path_buf(), last: count - 1, found: found.clone() });
    }
    Ok(count)
}

/// The inputs of `train` that a file holds as `batch.NUMBER.NAME`.
///
/// # Errors
/// The file lacks one, or holds another type or shape.
pub fn batch(plan: &Plan, batches: &mut TensorFile, number: u64) -> Result<Tensors, ReplayError> {
    let Some(train) = plan.programs.get(PROGRAM_TRAIN) else { return Ok(Tensors::new()) };
    let mut inputs = Tensors::new();
    for (name, buffer) in train.batch_inputs() {
        inputs.insert(name.to_string(), batches.read_for(&format!("batch.{number}.{name}"), buffer)?);
    }
    if let Some(Beyond { input, index, rows, .. }) = beyond_table(train, &inputs) {
        return Err(ReplayError::BeyondTable { path: batches.path().to_path_buf(), number, input, index, rows });
    }
    Ok(inputs)
}

/// A tensor of the result: from a download, from the state, or a series.
enum Content {
    Tensor(HostTensor),
    State(String),
    Series(Vec<f64>),
}

fn write(
    session: &mut Session,
    plan: &Plan,
    what: &Replay<'_>,
    first: Tensors,
    series: Vec<(String, Vec<f64>)>,
) -> Result<(), ReplayError> {
    let mut contents: Vec<(Entry, Content)> = Vec::new();
    let entry = |name: String, buffer: &Buffer| {
        let (dtype, shape) = (file_type(buffer.dtype), buffer.shape.clone());
        Entry { name, dtype, shape }
    };
    for (name, tensor) in first {
        let asked = match name.split_once('.') {
            Some(("outputs", _)) => what.dump.contains(&Dump::Outputs),
            Some(("grads", _)) => what.dump.contains(&Dump::Grads),
            _ => false,
        };
        if asked {
            let shape = tensor.shape().to_vec();
            contents.push((Entry { name, dtype: file_type(tensor.dtype()), shape }, Content::Tensor(tensor)));
        }
    }
    if what.dump.contains(&Dump::Params) {
        for state in &plan.state {
            let kind = if state.kind == StateKind::Param { "params" } else { "state" };
            let entry = entry(format!("{kind}.{}", state.path), &state.buffer);
            contents.push((entry, Content::State(state.path.clone())));
        }
    }
    if what.dump.contains(&Dump::Metrics) {
        for (name, values) in series {
            let shape = vec![values.len() as u64];
            let entry = Entry { name: format!("metrics.{name}"), dtype: FileType::F64, shape };
            contents.push((entry, Content::Series(values)));
        }
    }
    let (entries, mut contents): (Vec<Entry>, Vec<Content>) = contents.into_iter().unzip();
    // `tensors::write` asks for the tensors in the order of the entries.
    let mut contents = contents.drain(..);
    tensors::write(what.out, &[("graph", plan.name.clone())], &entries, |_| match contents.next() {
        Some(Content::Tensor(tensor)) => Ok(tensor.bytes().to_vec()),
        Some(Content::State(path)) => Ok(session.read_state(&path)?.bytes().to_vec()),
        Some(Content::Series(values)) => Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        None => Ok(Vec::new()),
    })
}

#[cfg(test)]
mod tests {
    use alip_plan::STATE_STEP;

    use super::*;
    use crate::train::session;
    use crate::train::testing::{BATCH, CONTEXT, SIDE, folder, linear, linear_scaled};

    fn write_file(path: &Path, tensors: &[(String, HostTensor)]) {
        let entry = |(name, tensor): &(String, HostTensor)| Entry {
            name: name.clone(),
            dtype: file_type(tensor.dtype()),
            shape: tensor.shape().to_vec(),
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        let mut rest = tensors.iter();
        let bytes = |_: &Entry| Ok::<_, FileError>(rest.next().unwrap().1.bytes().to_vec());
        tensors::write(path, &[], &entries, bytes).unwrap();
    }

    /// Replays four steps over three batches, where pixels and ids of the second are these: says `said`, of `OUT`; has taken so many
    /// steps; and whatever it says, `out` holds the metric of each step, which of the second alone is not finite.
    fn check(name: &str, plan: &Plan, (pixel, id): (f32, i32), metric: &str, said: &str, taken: f64) {
        let root = folder(name);
        let [weights, batches, out] =
            ["weights", "batches", "out"].map(|name| root.join(format!("{name}.safetensors")));
        let pixels = 3 * SIDE * SIDE;
        // A flag of a training that halted is no reason not to begin.
        let halted = (format!("state.{STATE_HALTED}"), HostTensor::scalar_i32(1));
        let w = HostTensor::f32(&[pixels], vec![0.01; pixels as usize]).unwrap();
        write_file(&weights, &[("w".into(), w), halted]);
        let batch = |(number, (pixel, id)): (usize, (f32, i32))| {
            let image = HostTensor::f32(&[BATCH, 3, SIDE, SIDE], vec![pixel; (BATCH * pixels) as usize]).unwrap();
            let raw = HostTensor::i32(&[BATCH, CONTEXT], vec![id; (BATCH * CONTEXT) as usize]).unwrap();
            [(format!("batch.{number}.image"), image), (format!("batch.{number}.raw"), raw)]
        };
        let of_batches = [(0.1, 7), (pixel, id), (0.2, 7)].into_iter().enumerate().flat_map(batch);
        write_file(&batches, &of_batches.collect::<Vec<_>>());
        let dump = BTreeSet::from([Dump::Params, Dump::Metrics]);
        let what = Replay { weights: &weights, batches: &batches, steps: 4, total_steps: 4, dump: &dump, out: &out };
        let replayed = replay(&mut session(plan), &what);
        let found = replayed.map_or_else(|error| error.to_string(), |()| "done".into());
        assert_eq!(found.replace(&out.display().to_string(), "OUT"), said, "{name}");
        let mut file = TensorFile::open(&out).unwrap();
        let step = file.read(&format!("state.{STATE_STEP}"), alip_plan::DType::I32).unwrap();
        assert_eq!(step.first(), Some(taken), "{name}");
        let series = file.read(&format!("metrics.{metric}"), alip_plan::DType::F32).unwrap();
        let finite: Vec<bool> = series.to_f32().iter().map(|value| value.is_finite()).collect();
        assert_eq!(finite, [true, false, true, true], "{name}");
    }

    #[test]
    fn a_step_that_halts_is_named() {
        let said = "step 2: loss or gradient is not finite, so neither this step nor those after it were taken; what happened is in \
                    OUT";
        check("replay_halts", &linear(), (f32::NAN, 7), "loss", said, 1.0);
    }

    #[test]
    fn a_metric_that_is_not_finite_halts_nothing() {
        check("replay_odd_metric", &linear_scaled(), (0.0, 0), "grad_norm", "done", 4.0);
    }
}

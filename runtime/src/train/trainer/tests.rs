//! What becomes of the state when something ends a run.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::data::Vocabularies;
use crate::device::{Device, DeviceError, Download, LoadedPlan, MemoryFacts, Slice};
use crate::run::NewRun;
use crate::train::testing::{BATCH, CONTEXT, Pace, SCALE, SIDE, Wrapped, folder, info, late, linear, linear_scaled};

/// Whether a device is lost when it is to run these steps of a program.
type Fails = Arc<dyn Fn(&str, &Range<usize>) -> bool + Send + Sync>;

/// The reference until it is lost.
fn faulty(fails: Fails) -> Box<dyn Device> {
    Box::new(Wrapped(move |inner: Box<dyn LoadedPlan>| -> Box<dyn LoadedPlan> {
        Box::new(LoadedFaulty { inner, fails: fails.clone(), lost: false })
    }))
}

struct LoadedFaulty {
    inner: Box<dyn LoadedPlan>,
    fails: Fails,
    lost: bool,
}

impl LoadedFaulty {
    fn here(&mut self) -> Result<&mut dyn LoadedPlan, DeviceError> {
        let lost = || DeviceError::Driver { device: "faulty".into(), why: "the adapter was lost".into() };
        if self.lost { Err(lost()) } else { Ok(self.inner.as_mut()) }
    }
}

impl LoadedPlan for LoadedFaulty {
    fn write(&mut self, slice: Slice, bytes: &[u8]) -> Result<(), DeviceError> {
        self.here()?.write(slice, bytes)
    }
    fn read(&mut self, slices: &[Slice]) -> Result<Box<dyn Download>, DeviceError> {
        self.here()?.read(slices)
    }
    fn run_steps(&mut self, program: &str, steps: Range<usize>) -> Result<(), DeviceError> {
        self.lost |= (self.fails)(program, &steps);
        self.here()?.run_steps(program, steps)
    }
    fn synchronize(&mut self) -> Result<(), DeviceError> {
        self.here()?.synchronize()
    }
    fn memory(&self) -> MemoryFacts {
        self.inner.memory()
    }
}

/// Gives batches, of pixels `pixel(number)` from 1 on, until the data are too bad. One of pixels 0 has a target of 0, so that its loss
/// is 0 too; one of negative pixels is of another vocabulary.
struct Batches {
    given: u64,
    /// Whether no batch can be made again.
    forgets: bool,
    until: u64,
    pixel: fn(u64) -> f32,
}

impl Feed for Batches {
    fn next(&mut self) -> Result<Batch, DataError> {
        if self.given == self.until {
            let last = "sample 12 (index 2, b.jpg): an empty file".into();
            return Err(DataError::TooManyBad { bad: 3, seen: 12, allowed: 0.1, from: 10, last });
        }
        self.given += 1;
        self.batch((self.given - 1) * BATCH)
    }

    fn again(&mut self, cursor: u64) -> Result<Batch, DataError> {
        if self.forgets { Err(DataError::Stopped) } else { self.batch(cursor) }
    }

    fn epoch_len(&self) -> Option<u64> {
        None
    }
}

impl Batches {
    fn batch(&self, cursor: u64) -> Result<Batch, DataError> {
        let pixel = (self.pixel)(cursor / BATCH + 1);
        let image = HostTensor::f32(&[BATCH, 3, SIDE, SIDE], vec![pixel; (BATCH * 3 * SIDE * SIDE) as usize]);
        let id = match pixel {
            0.0 => 0,
            pixel if pixel < 0.0 => BEYOND,
            _ => 7,
        };
        let raw = HostTensor::i32(&[BATCH, CONTEXT], vec![id; (BATCH * CONTEXT) as usize]);
        Ok(Batch {
            tensors: BTreeMap::from([("image".to_string(), image?), ("raw".to_string(), raw?)]),
            first_sample: cursor,
            valid: BATCH as usize,
            rows: (0..BATCH).collect(),
            labels: BTreeMap::new(),
            skipped: Vec::new(),
            waited: Duration::ZERO,
        })
    }
}

#[derive(Default)]
struct Notes(Vec<String>);

impl Watch for Notes {
    fn step(&mut self, _: &StepRecord, _: u64) {}
    fn note(&mut self, text: &str) {
        self.0.push(text.to_string());
    }
}

/// Trains with a checkpoint every two steps; what came of it, and what people were told.
fn train(root: &Path, batches: Batches, fails: Fails) -> (Result<Summary, TrainError>, Vec<String>) {
    let mut notes = Notes::default();
    (train_on(faulty(fails), linear(), root, batches, &mut notes, &AtomicBool::new(false)), notes.0)
}

fn train_on(
    device: Box<dyn Device>,
    plan: Plan,
    root: &Path,
    mut batches: Batches,
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<Summary, TrainError> {
    let vocabularies = Vocabularies::default();
    let new = NewRun { info: &info(&plan), plan: &plan, sources: None, vocabularies: &vocabularies };
    let run = if RunDir::holds_run(root) { Writer::open(root, 3) } else { Writer::create(root, &new, 3) }.unwrap();
    let mut session = Session::new(Arc::new(plan), device).unwrap();
    let position = resume(&mut session, &run).unwrap();
    batches.given = position.cursor / BATCH;
    let mut trainer = Trainer {
        session: &mut session,
        feed: &mut batches,
        run: &run,
        cadence: Cadence { steps: 2, time: Duration::MAX / 4 },
        stop,
        watch,
        evaluation: None,
    };
    trainer.train(position)
}

fn never() -> Fails {
    Arc::new(|_, _| false)
}

/// Trains in vain: says this, with `ROOT` for the directory, and has these checkpoints.
fn check(root: &Path, batches: Batches, fails: Fails, said: &str, checkpoints: &[u64]) {
    let error = train(root, batches, fails).0.unwrap_err().to_string().replace(&root.display().to_string(), "ROOT");
    assert_eq!(error, said);
    let found: Vec<u64> = RunDir::open(root).unwrap().checkpoints().into_iter().map(|(step, _)| step).collect();
    assert_eq!(found, checkpoints);
}

/// A token that the plan's table has no row for.
const BEYOND: i32 = 8;

const GOOD: fn(u64) -> f32 = |step| step as f32 / 10.0;

#[test]
fn too_many_bad_samples_end_a_run_after_its_state_is_saved() {
    check(
        &folder("trainer_bad"),
        Batches { given: 0, forgets: false, until: 3, pixel: GOOD },
        never(),
        "3 of the 12 samples read so far could not be used, more than the allowed share of 0.1 (judged from sample 10 on); the \
         last one: sample 12 (index 2, b.jpg): an empty file. Repair or remove the files named in the log, or raise the share \
         with --max-bad. The state after step 3 is saved in ROOT/checkpoints/step-00000003.safetensors; --resume continues \
         from there",
        &[2, 3],
    );
}

/// A token that the graph has no row for would be taken for the last that it has.
#[test]
fn another_vocabulary_ends_a_run() {
    let pixel = |step| if step < 3 { GOOD(step) } else { -1.0 };
    check(
        &folder("trainer_vocabulary"),
        Batches { given: 0, forgets: false, until: 99, pixel },
        never(),
        "sample 0: `raw` holds 8, but the graph's table has 8 rows: the data are of another vocabulary; give the graph a table as \
         large as theirs, or make them anew. The state after step 2 is saved in ROOT/checkpoints/step-00000002.safetensors; \
         --resume continues from there",
        &[2],
    );
}

#[test]
fn a_state_that_cannot_be_saved_hides_nothing() {
    let root = folder("trainer_bad_unsaved");
    fs::write(root.join("checkpoints"), "").unwrap();
    let (trained, notes) = train(&root, Batches { given: 0, forgets: false, until: 3, pixel: GOOD }, never());
    let said = trained.unwrap_err().to_string();
    assert!(said.contains("raise the share with --max-bad. The state after step 3 could not be saved: "), "{said}");
    assert!(said.contains("checkpoints: cannot create the folder: "), "{said}");
    assert!(said.ends_with("There is no checkpoint yet; --resume begins anew"), "{said}");
    assert!(notes[0].starts_with("warning: no checkpoint of step 2: "), "{notes:?}");
}

/// Half a step is the state of no step, and a lost device gives nothing back.
#[test]
fn a_lost_device_leaves_the_newest_checkpoint() {
    let steps = AtomicU64::new(0);
    let fails: Fails =
        Arc::new(move |program, _| program == PROGRAM_TRAIN && steps.fetch_add(1, Ordering::Relaxed) == 5);
    check(
        &folder("trainer_lost"),
        Batches { given: 0, forgets: false, until: 9, pixel: GOOD },
        fails,
        "step 6: device `faulty` failed: the adapter was lost. The newest checkpoint is \
         ROOT/checkpoints/step-00000004.safetensors, 1 steps before; --resume continues from there",
        &[2, 4],
    );
}

#[test]
fn a_divergence_is_told_whether_or_not_its_origin_is_found() {
    let diverges =
        || Batches { given: 0, forgets: false, until: 9, pixel: |step| if step == 4 { f32::NAN } else { 0.1 } };
    let said = |origin: &str| {
        format!(
            "step 4: metric `loss` is NaN. {origin} The batch was samples 12 to 15. The state before the step is saved in \
             ROOT/checkpoints/step-00000003.safetensors. A new run with a lower learning rate or a longer warm-up is the usual cure"
        )
    };
    let found = "The first value that is not finite was made by `tower` (NaN at element 0, launch 1 of 7).";
    check(&folder("trainer_nan"), diverges(), never(), &said(found), &[2, 3]);
    let alone: Fails = Arc::new(|_, steps| steps.len() == 1);
    let not_found = "The step could not be run again to find out where that came from (device `faulty` failed: the adapter was \
                     lost).";
    check(&folder("trainer_nan_lost"), diverges(), alone, &said(not_found), &[2, 3]);
    let forgets = Batches { forgets: true, ..diverges() };
    let why = DataError::Stopped;
    let not_again = format!("The step could not be run again to find out where that came from ({why}).");
    check(&folder("trainer_nan_forgotten"), forgets, never(), &said(&not_again), &[2, 3]);
}

#[test]
fn an_old_checkpoint_that_stays_is_a_warning() {
    let root = folder("trainer_stuck");
    let stuck = root.join("checkpoints/step-00000001.safetensors");
    let (plan, vocabularies) = (linear(), Vocabularies::default());
    let new = NewRun { info: &info(&plan), plan: &plan, sources: None, vocabularies: &vocabularies };
    let run = Writer::create(&root, &new, 1).unwrap();
    // What is no file is removed by nobody.
    fs::create_dir_all(&stuck).unwrap();
    let mut session = crate::train::session(&plan);
    let position = begin(&mut session, 1, 10).unwrap();
    let (stop, mut notes) = (AtomicBool::new(false), Notes::default());
    let mut trainer = Trainer {
        session: &mut session,
        feed: &mut Batches { given: 0, forgets: false, until: 99, pixel: GOOD },
        run: &run,
        cadence: Cadence { steps: 99, time: Duration::MAX / 4 },
        stop: &stop,
        watch: &mut notes,
        evaluation: None,
    };
    let summary = trainer.train(position).unwrap();
    assert_eq!(summary.checkpoint, Some(root.join("checkpoints/step-00000010.safetensors")));
    let [told] = &notes.0[..] else { panic!("{:?}", notes.0) };
    let begin = format!("warning: {}: cannot remove the old checkpoint: ", stuck.display());
    assert!(told.starts_with(&begin) && told.ends_with("; the new one is good"), "{told}");
}

/// Lines of a log.
type Log = Vec<serde_json::Value>;

/// What is left of a run: its checkpoints, and what is logged of each step but how long it took.
fn remains(root: &Path) -> (Vec<Vec<u8>>, Log) {
    let checkpoints = RunDir::open(root).unwrap().checkpoints();
    let log = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
    let untimed = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let own = line.as_object_mut().unwrap();
        assert!(own.remove("samples_per_s").is_some() && own["data_wait"].as_f64().unwrap() >= 0.0);
        own.remove("data_wait");
        line
    };
    (checkpoints.iter().map(|(_, path)| fs::read(path).unwrap()).collect(), log.lines().map(untimed).collect())
}

/// An asynchronous device trains the same bits as one that computes each step while it is waited for, and says the same. As many
/// steps are in flight as it asks for. What people are told, notes and the end; and the log.
fn check_late(name: &str, plan: fn() -> Plan, batches: impl Fn() -> Batches, in_flight: usize) -> (Vec<String>, Log) {
    let run = |folder_name: &str, device: Box<dyn Device>| {
        let (root, mut notes) = (folder(folder_name), Notes::default());
        let trained = train_on(device, plan(), &root, batches(), &mut notes, &AtomicBool::new(false));
        notes.0.push(match trained {
            Ok(summary) => format!("{:?} {}", summary.position, summary.finished),
            Err(error) => error.to_string().replace(&root.display().to_string(), "ROOT"),
        });
        (notes.0, remains(&root))
    };
    let expected = run(&format!("{name}_sync"), faulty(never()));
    for pace in [Pace::AtOnce, Pace::WhenWaitedFor] {
        let most = Arc::default();
        let late = run(&format!("{name}_{pace:?}"), late(pace, &most));
        assert_eq!(late, expected, "{name}, {pace:?}");
        let most = most.load(Ordering::Relaxed);
        assert!(most <= in_flight && (pace == Pace::AtOnce || most == in_flight), "{name}: {most} in flight");
    }
    let (told, (_, log)) = expected;
    (told, log)
}

#[test]
fn steps_in_flight_change_nothing() {
    // A checkpoint every two steps empties the queue.
    let check = |name: &str, until, pixel: fn(u64) -> f32| {
        check_late(name, linear, || Batches { given: 0, forgets: false, until, pixel }, 2);
    };
    check("late_good", 99, GOOD);
    check("late_bad_data", 5, GOOD);
    // Another step is in flight behind the one that is not finite; without the flag it would be taken.
    check("late_nan", 99, |step| if step == 7 { f32::NAN } else { 0.1 });
    check("late_nan_last", 99, |step| if step == 8 { f32::NAN } else { 0.1 });
    check("late_nan_at_once", 99, |_| f32::INFINITY);
}

/// Pixels with which the loss is finite, and overflows with the first loss scale.
const LARGE: f32 = 1e6;

/// A run on batches of these pixels tells people `notes` and ends with `end`, with steps in flight or without.
fn check_told(name: &str, plan: fn() -> Plan, pixel: fn(u64) -> f32, notes: &[&str], end: &str) -> Log {
    let (told, log) = check_late(name, plan, || Batches { given: 0, forgets: false, until: 99, pixel }, 2);
    let (last, others) = told.split_last().unwrap();
    assert_eq!(others, notes, "{name}");
    assert!(last.starts_with(end), "{name}: {last}");
    log
}

/// Steps 3 and 4 are in flight together.
#[test]
fn a_step_that_overflows_in_flight_is_skipped_alone() {
    let skipped = |step: u64| {
        format!("step {step}: gradients overflowed, the batch is skipped; loss scale {}", f64::from(SCALE) / 2.0)
    };
    let all = "Position { step: 10, cursor: 44 } true";
    let check = |name, pixel, step, end| check_told(name, linear_scaled, pixel, &[&skipped(step)], end);
    check("skip_amid", |batch| if batch == 3 { LARGE } else { 0.1 }, 3, all);
    check("skip_before_checkpoint", |batch| if batch == 4 { LARGE } else { 0.1 }, 4, all);
    check("skip_last", |batch| if batch == 10 { LARGE } else { 0.1 }, 10, all);
    let then_halts = |batch| match batch {
        3 => LARGE,
        4 => f32::NAN,
        _ => 0.1,
    };
    check("skip_before_halt", then_halts, 3, "step 3: metric `loss` is NaN. ");
}

/// Its loss is 0, so that the metric that is named `grad_norm` is -infinity.
#[test]
fn a_step_that_was_taken_counts_whatever_its_metrics() {
    let pixel = |batch| if batch == 5 { 0.0 } else { 0.1 };
    let all = "Position { step: 10, cursor: 40 } true";
    let unscaled = || {
        let mut plan = linear_scaled();
        plan.state.retain(|state| state.path != STATE_LOSS_SCALE);
        plan
    };
    for (name, plan) in [("odd_metric", unscaled as fn() -> Plan), ("odd_metric_scaled", linear_scaled)] {
        let log = check_told(name, plan, pixel, &[], all);
        assert!(log[4]["grad_norm"].is_null() && log[4]["loss"] == 0.0, "{name}: {}", log[4]);
    }
}

/// Every step before was told when the next batch is asked for.
struct Slow<'a>(Batches, &'a AtomicU64);

impl Feed for Slow<'_> {
    fn next(&mut self) -> Result<Batch, DataError> {
        assert_eq!(self.1.load(Ordering::Relaxed), self.0.given);
        self.0.next()
    }
    fn again(&mut self, cursor: u64) -> Result<Batch, DataError> {
        self.0.again(cursor)
    }
    fn epoch_len(&self) -> Option<u64> {
        None
    }
}

/// The last step that was told.
struct Last<'a>(&'a AtomicU64);

impl Watch for Last<'_> {
    fn step(&mut self, record: &StepRecord, _: u64) {
        self.0.store(record.step, Ordering::Relaxed);
    }
    fn note(&mut self, _: &str) {}
}

#[test]
fn who_waits_for_data_has_heard_of_what_is_done() {
    let (root, told) = (folder("late_slow"), AtomicU64::new(0));
    let (plan, vocabularies) = (linear(), Vocabularies::default());
    let new = NewRun { info: &info(&plan), plan: &plan, sources: None, vocabularies: &vocabularies };
    let run = Writer::create(&root, &new, 1).unwrap();
    let mut session = Session::new(Arc::new(plan), late(Pace::BeforeItReturns, &Arc::default())).unwrap();
    let position = begin(&mut session, 1, 10).unwrap();
    let mut trainer = Trainer {
        session: &mut session,
        feed: &mut Slow(Batches { given: 0, forgets: false, until: 99, pixel: GOOD }, &told),
        run: &run,
        cadence: Cadence { steps: 99, time: Duration::MAX / 4 },
        stop: &AtomicBool::new(false),
        watch: &mut Last(&told),
        evaluation: None,
    };
    assert!(trainer.train(position).unwrap().finished);
}

/// Asks to stop after a step.
struct Stops<'a>(u64, &'a AtomicBool);

impl Watch for Stops<'_> {
    fn step(&mut self, record: &StepRecord, _: u64) {
        self.1.store(record.step >= self.0, Ordering::Relaxed);
    }
    fn note(&mut self, _: &str) {}
}

#[test]
fn who_stops_takes_the_steps_in_flight() {
    let good = || Batches { given: 0, forgets: false, until: 99, pixel: GOOD };
    let (unbroken, root) = (folder("late_unbroken"), folder("late_stopped"));
    train(&unbroken, good(), never()).0.unwrap();
    let device = || late(Pace::WhenWaitedFor, &Arc::default());
    let stop = AtomicBool::new(false);
    let stopped = train_on(device(), linear(), &root, good(), &mut Stops(5, &stop), &stop).unwrap();
    // The sixth step was submitted before anybody heard of the fifth.
    assert_eq!((stopped.finished, stopped.position), (false, Position { step: 6, cursor: 6 * BATCH }));
    train_on(device(), linear(), &root, good(), &mut Notes::default(), &AtomicBool::new(false)).unwrap();
    assert_eq!(remains(&root), remains(&unbroken));
}

#[test]
fn a_rate_counts_what_was_done_meanwhile() {
    let (at, seconds) = (Instant::now(), Duration::from_secs);
    let begun = Mark { at, landed: 3, waited: seconds(1) };
    let ended = Mark { at: at + seconds(4), landed: 5, waited: seconds(2) };
    assert_eq!(ended.since(&begun), (0.5, 0.25));
}

//! What people see of a run in progress: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use alip_runtime::run::StepRecord;
use alip_runtime::train::Watch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between lines where there is no terminal: a log of an hour stays readable.
pub(crate) const LINE_EVERY: Duration = Duration::from_secs(10);

/// Weight of the newest step in the running rates, so that about twenty steps count.
const NEWEST: f64 = 0.05;

/// Watches a run on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    loss: String,
    started: Instant,
    first: u64,
    last_line: Option<Instant>,
    rate: Option<f64>,
    wait: f64,
}

impl Progress {
    /// For a run that continues after `step` of `steps` and reports `loss`.
    pub(crate) fn new(step: u64, steps: u64, loss: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {eta} left");
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(step);
            bar.reset_eta();
            bar
        });
        let started = Instant::now();
        Progress { bar, loss: loss.into(), started, first: step, last_line: None, rate: None, wait: 0.0 }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Leaves the terminal in order.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn left(&self, step: u64, of: u64) -> Duration {
        let done = step.saturating_sub(self.first).max(1);
        self.elapsed().mul_f64(of.saturating_sub(step) as f64 / done as f64)
    }
}

impl Watch for Progress {
    fn step(&mut self, record: &StepRecord, of: u64) {
        let blend = |old: Option<f64>, new: f64| old.map_or(new, |old| old + NEWEST * (new - old));
        // Seconds per sample average, not samples per second: a slow step counts for the time it took.
        let time = blend(self.rate.map(f64::recip), 1.0 / record.samples_per_s.max(1e-9));
        self.wait = blend(self.rate.map(|_| self.wait), record.data_wait);
        self.rate = Some(1.0 / time);
        let loss = record.metric(&self.loss).unwrap_or(f64::NAN);
        let text = format!("loss {loss:.4}  {:.4} samples/s  waiting {:.0} %", Short(1.0 / time), self.wait * 100.0);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(record.step);
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || record.step == of {
            self.last_line = Some(Instant::now());
            note!("step {}/{of}  {text}  {} left", record.step, duration(self.left(record.step, of)));
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{text}")),
            None => note!("{text}"),
        }
    }
}

/// How far something is that counts: a bar on a terminal, a line now and then elsewhere.
pub(crate) struct Counter {
    /// What is counted: `sample`.
    what: &'static str,
    bar: Option<ProgressBar>,
    /// When it began, and after how many.
    began: Option<(Instant, u64)>,
    last_line: Option<Instant>,
}

impl Counter {
    /// Counts things of this name.
    pub(crate) fn of(what: &'static str) -> Counter {
        Counter { what, bar: None, began: None, last_line: None }
    }

    /// `seen` of `of` are done. The first call begins: what an earlier process did tells nothing of this one's pace.
    pub(crate) fn at(&mut self, seen: u64, of: u64) {
        let Some((began, first)) = self.began else {
            self.began = Some((Instant::now(), seen));
            self.last_line = Some(Instant::now());
            self.bar = std::io::stderr().is_terminal().then(|| {
                let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {per_sec}  {eta} left");
                let bar = ProgressBar::with_draw_target(Some(of), ProgressDrawTarget::stderr());
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_position(seen);
                bar.reset_eta();
                bar
            });
            return;
        };
        if let Some(bar) = &self.bar {
            bar.set_position(seen);
        } else if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            let (passed, done) = (began.elapsed(), (seen - first).max(1) as f64);
            let rate = done / passed.as_secs_f64().max(f64::MIN_POSITIVE);
            let left = passed.mul_f64(of.saturating_sub(seen) as f64 / done);
            let what = self.what;
            note!("{what} {seen}/{of}  {rate:.0} {what}s/s  {} left", duration(left));
        }
    }

    /// A line for people above the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{text}")),
            None => note!("{text}"),
        }
    }

    /// Leaves the terminal in order.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number with about as many digits as the precision says.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(3) as i32;
        let before = if self.0.abs() >= 1.0 { self.0.abs().log10().floor() as i32 + 1 } else { 1 };
        write!(f, "{:.*}", (digits - before).max(0) as usize, self.0)
    }
}

/// `1 h 05 min`, `3 min 20 s`, `12 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

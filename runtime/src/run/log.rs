//! The log of a run: JSON lines for programs, TensorBoard events for people.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::events::EventFile;
use crate::file::{FileError, write_bytes};

/// Name of the JSON lines in a run directory.
pub const FILE: &str = "metrics.jsonl";

/// What is logged of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Steps taken, this one included.
    pub step: u64,
    /// Epochs seen: samples consumed over the size of the data set; absent where the data have no size.
    pub epoch: Option<f64>,
    /// The graph's metrics, in the order of the spec.
    pub metrics: Vec<(String, f64)>,
    /// Samples of this step, and of those that were done while it was in flight behind them, over its time.
    pub samples_per_s: f64,
    /// Share of the step's time, 0 to 1, that was spent waiting for data.
    pub data_wait: f64,
}

impl StepRecord {
    /// The value of a metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    fn own(&self) -> [(&'static str, Option<f64>); 3] {
        [("epoch", self.epoch), ("samples_per_s", Some(self.samples_per_s)), ("data_wait", Some(self.data_wait))]
    }
}

/// Keys of a line that are not metrics of the graph; a metric that is called so gets the prefix `metric.`.
const OWN: [&str; 4] = ["step", "epoch", "samples_per_s", "data_wait"];

/// One flat object: `step`, `epoch`, the metrics, `samples_per_s`, `data_wait`. What is not a finite number is null.
impl Serialize for StepRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        for (name, value) in self.own().into_iter().filter_map(|(name, value)| Some((name, value?))) {
            map.serialize_entry(name, &value)?;
        }
        for (name, value) in &self.metrics {
            let prefix = if OWN.contains(&name.as_str()) { "metric." } else { "" };
            map.serialize_entry(&format!("{prefix}{name}"), value)?;
        }
        map.end()
    }
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    lines: File,
    /// Bytes of whole lines.
    whole: u64,
    events: EventFile,
    /// Steps that could not be logged.
    lost: u64,
}

impl MetricsLog {
    /// Opens the log of a run directory for what comes after `step` steps; lines about later ones, of a run that was killed
    /// after its last checkpoint, are removed.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<MetricsLog, FileError> {
        let path = folder.join(FILE);
        if path.exists() {
            let bytes = fs::read(&path).map_err(FileError::io(&path, "read"))?;
            // A damaged byte in the log is no reason to refuse the run.
            let text = String::from_utf8_lossy(&bytes);
            let kept: String = text
                .split_inclusive('\n')
                .filter(|line| line_step(line) <= Some(step) && line.ends_with('\n'))
                .collect();
            if kept.len() != text.len() {
                write_bytes(&path, kept.as_bytes())?;
            }
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path).map_err(FileError::io(&path, "write"))?;
        let whole = lines.metadata().map_err(FileError::io(&path, "read"))?.len();
        Ok(MetricsLog { path, lines, whole, events: EventFile::create(folder, step + 1)?, lost: 0 })
    }

    /// Appends a step; gives what to tell people when the disk begins to refuse, and when it takes again.
    pub fn record(&mut self, record: &StepRecord) -> Option<String> {
        match self.write(record) {
            Err(error) => {
                self.lost += 1;
                let begins = self.lost == 1;
                begins
                    .then(|| format!("warning: {error}; training goes on, and steps are not logged until it is mended"))
            }
            Ok(()) if self.lost > 0 => {
                let lost = std::mem::take(&mut self.lost);
                Some(format!("the log is written again; {lost} steps up to {} are missing in it", record.step - 1))
            }
            Ok(()) => None,
        }
    }

    /// Tells TensorBoard what was measured after a step, as `eval/NAME`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn measured<'a>(&mut self, step: u64, measures: impl Iterator<Item = (&'a str, f64)>) -> Result<(), FileError> {
        let named: Vec<(String, f64)> = measures.map(|(name, value)| (format!("eval/{name}"), value)).collect();
        self.events.scalars(step, named.iter().map(|(name, value)| (name.as_str(), *value)))
    }

    /// Brings the lines to the disk, so that no checkpoint is ahead of them. What cannot be is not worth a word: the next line
    /// will say so.
    pub fn synchronize(&mut self) {
        let _ = self.lines.sync_data();
    }

    /// Appends a step.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&mut self, record: &StepRecord) -> Result<(), FileError> {
        // Numbers and strings always serialise.
        let line = serde_json::to_string(record).unwrap_or_default() + "\n";
        if let Err(error) = self.lines.write_all(line.as_bytes()) {
            // No half line stays, so that whoever reads the log meets whole ones.
            let _ = self.lines.set_len(self.whole);
            return Err(FileError::io(&self.path, "write")(error));
        }
        self.whole += line.len() as u64;
        let metrics = record.metrics.iter().map(|(name, value)| (name.as_str(), *value));
        let own = record.own().into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.events.scalars(record.step, metrics.chain(own))
    }
}

/// The step of a line; `None` for one that is cut or no JSON, which `filter` keeps out.
fn line_step(line: &str) -> Option<u64> {
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
    Some(step(line).unwrap_or(u64::MAX))
}

/// Reads the log of a run: per metric (and per own key of a line) its steps and finite values.
///
/// # Errors
/// The file cannot be read, or a line is no object with a step.
pub fn read(folder: &Path) -> Result<BTreeMap<String, Vec<(u64, f64)>>, FileError> {
    let path = folder.join(FILE);
    let text = fs::read_to_string(&path).map_err(FileError::io(&path, "read"))?;
    // What follows the last line break is being written.
    let text = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut series: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).map_err(|error| {
            FileError::Damaged { path: path.clone(), why: format!("line {} is not an object: {error}", number + 1) }
        })?;
        let step = object.get("step").and_then(serde_json::Value::as_u64).unwrap_or(0);
        for (name, value) in &object {
            if let Some(value) = value.as_f64().filter(|_| name != "step") {
                series.entry(name.clone()).or_default().push((step, value));
            }
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::folder;

    fn record(step: u64) -> StepRecord {
        let metrics =
            vec![("loss".to_string(), 1.0 / step as f64), ("epoch".to_string(), 7.0), ("odd".into(), f64::NAN)];
        StepRecord { step, epoch: Some(0.5), metrics, samples_per_s: 10.0, data_wait: 0.25 }
    }

    #[test]
    fn a_line_is_flat_and_keeps_the_order() {
        let line = serde_json::to_string(&record(4)).unwrap();
        let expected =
            r#"{"step":4,"epoch":0.5,"samples_per_s":10.0,"data_wait":0.25,"loss":0.25,"metric.epoch":7.0,"odd":null}"#;
        assert_eq!(line, expected);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told_once_and_loses_nothing_else() {
        let folder = folder("metrics_full");
        let mut log = MetricsLog::open(&folder, 0).unwrap();
        assert_eq!(log.record(&record(1)), None);
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut log.lines, full);
        let told = log.record(&record(2)).unwrap();
        assert!(told.starts_with("warning: ") && told.contains("metrics.jsonl: cannot write: No space left"), "{told}");
        assert_eq!(log.record(&record(3)), None);
        log.lines = disk;
        assert_eq!(log.record(&record(4)).unwrap(), "the log is written again; 2 steps up to 3 are missing in it");
        assert_eq!(read(&folder).unwrap()["loss"], [(1, 1.0), (4, 0.25)]);
    }

    #[test]
    fn resuming_forgets_what_came_after_the_checkpoint() {
        let folder = folder("metrics_resume");
        let mut log = MetricsLog::open(&folder, 0).unwrap();
        for step in 1..=5 {
            log.write(&record(step)).unwrap();
        }
        drop(log);
        let path = folder.join(FILE);
        fs::write(&path, fs::read_to_string(&path).unwrap() + r#"{"step":6,"lo"#).unwrap();
        let mut log = MetricsLog::open(&folder, 3).unwrap();
        log.write(&record(4)).unwrap();
        let series = read(&folder).unwrap();
        assert_eq!(series["loss"], [(1, 1.0), (2, 0.5), (3, 1.0 / 3.0), (4, 0.25)]);
        assert!(!series.contains_key("odd"));
        // A reader that meets a line in the making reads those before it.
        fs::write(&path, fs::read_to_string(&path).unwrap() + r#"{"step":5,"lo"#).unwrap();
        assert_eq!(read(&folder).unwrap(), series);
    }
}

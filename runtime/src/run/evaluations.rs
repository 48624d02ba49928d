//! What a run was measured to be on its way: `evaluations.jsonl`, a line per measurement.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file::{FileError, write_bytes};

/// Name of the file in a run directory.
pub const FILE: &str = "evaluations.jsonl";

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps that were taken.
    pub step: u64,
    /// Epochs seen; absent where the data have no size.
    pub epoch: Option<f64>,
    /// Values by name; higher is better.
    pub measures: BTreeMap<String, f64>,
    /// Images that could not be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: usize,
    /// The measure for which the state was kept as the best so far, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// Hash of the suite; absent where held-out samples were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// All measurements of a run up to where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluations {
    path: PathBuf,
    list: Vec<Evaluation>,
    /// Hash of the suite that the run is measured on now: figures of another one are no match for its own.
    suite: Option<String>,
}

impl Evaluations {
    /// Those of a run directory up to `step`: later ones are of a run that was killed after its last checkpoint, and will come
    /// again. What comes next is measured on the suite of this hash.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(folder: &Path, step: u64, suite: Option<&str>) -> Result<Evaluations, FileError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Evaluations { path, list: Vec::new(), suite: suite.map(Into::into) });
        }
        let text = fs::read(&path).map_err(FileError::io(&path, "read"))?;
        // A damaged line is no reason to refuse a run: its measurement is made again, or missing.
        let lines = String::from_utf8_lossy(&text);
        let list = lines.lines().filter_map(|line| serde_json::from_str::<Evaluation>(line).ok());
        let list = list.filter(|evaluation| evaluation.step <= step).collect();
        Ok(Evaluations { list, path, suite: suite.map(Into::into) })
    }

    /// Step of the last one; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.list.last().map_or(0, |evaluation| evaluation.step)
    }

    /// The step whose state is kept as the best of the present suite, the measure that it was kept for, and its value.
    pub fn best(&self) -> Option<(u64, &str, f64)> {
        let mut own = self.list.iter().rev().filter(|evaluation| evaluation.suite == self.suite);
        let kept = own.find_map(|evaluation| Some((evaluation, evaluation.best.as_deref()?)));
        let (evaluation, name) = kept?;
        Some((evaluation.step, name, *evaluation.measures.get(name)?))
    }

    /// Adds one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, evaluation: Evaluation) -> Result<(), FileError> {
        self.list.push(Evaluation { suite: self.suite.clone(), ..evaluation });
        // Plain numbers always serialise. The file is a line per measurement, and so always small.
        let lines = self.list.iter().map(|evaluation| serde_json::to_string(evaluation).unwrap_or_default() + "\n");
        write_bytes(&self.path, lines.collect::<String>().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::folder;

    #[test]
    fn a_run_that_is_continued_forgets_what_comes_again() {
        let folder = folder("evaluations");
        let evaluation = |step, value, best: bool| Evaluation {
            step,
            epoch: Some(step as f64 / 10.0),
            measures: BTreeMap::from([("R@1".to_string(), value)]),
            skipped: 0,
            best: best.then(|| "R@1".into()),
            suite: None,
        };
        let mut all = Evaluations::open(&folder, 0, None).unwrap();
        assert_eq!((all.last(), all.best()), (0, None));
        for (step, value, best) in [(10, 0.25, true), (20, 0.5, true), (30, 0.125, false)] {
            all.add(evaluation(step, value, best)).unwrap();
        }
        assert_eq!(Evaluations::open(&folder, 30, None).unwrap(), all);
        assert_eq!((all.last(), all.best()), (30, Some((20, "R@1", 0.5))));
        let mut again = Evaluations::open(&folder, 15, None).unwrap();
        assert_eq!((again.last(), again.best()), (10, Some((10, "R@1", 0.25))));
        // What was best of one suite is not of another.
        let mut other = Evaluations::open(&folder, 15, Some("other")).unwrap();
        assert_eq!((other.last(), other.best()), (10, None));
        other.add(evaluation(20, 0.125, true)).unwrap();
        assert_eq!(other.best(), Some((20, "R@1", 0.125)));
        again.add(evaluation(20, 0.5, true)).unwrap();
        assert_eq!(fs::read_to_string(folder.join(FILE)).unwrap().lines().count(), 2);
    }
}

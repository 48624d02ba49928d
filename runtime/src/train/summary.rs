//! The report of a run, from its log and what was measured.

use std::path::Path;

use alip_plan::Plan;
use alip_plan::pipeline::{Pipeline, Source};
use serde::{Deserialize, Serialize};

use super::measure::{KS, Results};
use super::report::{Chart, Measure, Other, Report, Sample, Series, Unit};
use crate::data::shapes::Kind;
use crate::eval::WEIGH;
use crate::file::{FileError, write_bytes};
use crate::run::{RunDir, log};

/// Name of the results in a run directory, of the model or of the average of its weights.
pub fn results_name(average: bool) -> &'static str {
    if average { "results-average.json" } else { "results.json" }
}

/// Name of the page in a run directory.
pub fn report_name(average: bool) -> &'static str {
    if average { "report-average.html" } else { "report.html" }
}

/// Most points of a line; a chart is a few hundred pixels wide.
const POINTS: usize = 300;

/// What is searched for by what.
const DIRECTIONS: [&str; 2] = ["image to text", "text to image"];

/// The measure of sample weights.
const AREA: &str = "sample weight tells right raw texts from wrong (AUC)";

fn recall_at(direction: &str, k: usize) -> String {
    format!("{direction} R@{k}")
}

fn accuracy_of(classes: usize) -> String {
    format!("zero-shot accuracy of {classes} classes")
}

/// Names of all that a model may be measured to be on the held-out samples of a pipeline, as [`Measured::measures`] has them.
pub fn measures_of(plan: &Plan, pipeline: &Pipeline) -> Vec<String> {
    let recalls = DIRECTIONS.into_iter().flat_map(|direction| KS.map(|k| recall_at(direction, k)));
    let has_classes = matches!(pipeline.source, Source::Shapes { .. });
    let accuracy = has_classes.then(|| accuracy_of(Kind::COUNT));
    // Where the source knows which texts are wrong, which it says of each sample.
    let area = plan.programs.contains_key(WEIGH).then(|| AREA.to_string());
    recalls.chain(accuracy).chain(area).collect()
}

/// What is kept of a measured run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub results: Results,
    /// Samples with what the model finds for them.
    pub samples: Vec<Sample>,
    /// Parameters of the model.
    pub parameters: u64,
    /// Whether the average of the weights was measured in their place.
    #[serde(default)]
    pub average: bool,
}

impl Measured {
    /// What was measured of a plan.
    pub fn new(plan: &Plan, (results, samples): (Results, Vec<Sample>), average: bool) -> Measured {
        Measured { results, samples, parameters: plan.report.parameters, average }
    }

    /// The graph, with what was done to its weights.
    pub fn title(&self) -> String {
        let average = if self.average { " (average of the weights)" } else { "" };
        format!("{}{average}", self.results.graph)
    }

    /// Writes the results into a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(results_name(self.average));
        // Plain data always serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        write_bytes(&path, &json)
    }

    /// Reads the results of a run; none if it was not measured so.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn load(run: &RunDir, average: bool) -> Result<Option<Measured>, FileError> {
        let path = run.root().join(results_name(average));
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(FileError::io(&path, "read"))?;
        let damaged = |error: serde_json::Error| FileError::Damaged { path: path.clone(), why: error.to_string() };
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Every result against chance, in the order of a table.
    pub fn measures(&self) -> Vec<Measure> {
        let results = &self.results;
        let mut measures = Vec::new();
        let [images, texts] = DIRECTIONS;
        let directions = [
            (images, &results.retrieval.image_to_text, results.retrieval.images),
            (texts, &results.retrieval.text_to_image, results.retrieval.texts),
        ];
        for (direction, recalls, count) in directions {
            for recall in recalls {
                let name = recall_at(direction, recall.k);
                let (value, chance) = (recall.recall, recall.chance);
                measures.push(Measure { name, value, chance, other: None, count, unit: Unit::Share });
            }
        }
        if let Some(zero_shot) = &results.zero_shot {
            let name = accuracy_of(zero_shot.per_class.len());
            let (value, chance, count) = (zero_shot.top1, zero_shot.chance, zero_shot.images);
            measures.push(Measure { name, value, chance, other: None, count, unit: Unit::Share });
        }
        if let Some(found) = &results.weights {
            let name = AREA.to_string();
            let count = found.weights.right.len().min(found.weights.wrong.len());
            measures.push(Measure { name, value: found.auc, chance: 0.5, other: None, count, unit: Unit::Area });
        }
        measures
    }
}

/// A run with its results.
pub struct Shown<'a> {
    /// Its directory, which holds the log.
    pub run: &'a RunDir,
    /// What was measured.
    pub measured: &'a Measured,
}

/// The report of a run, beside another one if there is one.
///
/// # Errors
/// A log cannot be read.
pub fn report(own: &Shown<'_>, other: Option<&Shown<'_>>) -> Result<Report, FileError> {
    let (series, info) = (log::read(own.run.root())?, own.run.info());
    let mut measures = own.measured.measures();
    if let Some(other) = other {
        for theirs in other.measured.measures() {
            if let Some(measure) = measures.iter_mut().find(|measure| measure.name == theirs.name) {
                measure.other = Some(theirs.value);
            }
        }
    }
    let lines = |names: &[&str]| -> Vec<Series> {
        let line = |name: &&str| Some(Series { name: name.to_string(), points: thinned(series.get(*name)?) });
        names.iter().filter_map(line).collect()
    };
    let chart = |title: &str, names: &[&str]| Chart { title: title.into(), series: lines(names) };
    let charts = [
        chart("Loss", &["loss", "loss_raw", "loss_caption"]),
        chart("Momenta of the gates", &["text_momentum", "raw_momentum", "caption_momentum"]),
        chart("Mean weights", &["sample_weight_mean", "raw_weight_mean", "caption_weight_mean"]),
        chart("Learning rate", &["lr"]),
        chart("Gradient norm", &["grad_norm"]),
        chart("Samples per second", &["samples_per_s"]),
        chart("Share of time waiting for data", &["data_wait"]),
    ];
    let results = &own.measured.results;
    let mut notes = vec![format!(
        "Measured on {} held-out samples that training never saw{}.",
        results.samples,
        if results.skipped > 0 { format!("; {} more could not be read", results.skipped) } else { String::new() }
    )];
    if own.measured.average {
        notes.push("The weights measured are the exponential average of those that were trained (`ema`).".into());
    }
    if own.measured.results.weights.is_some() {
        notes.push(
            "Shares of right and wrong raw texts are known to the data set and never shown to the model. A weight below 1 \
             lowers a sample's part in the loss."
                .into(),
        );
    }
    Ok(Report {
        title: own.measured.title(),
        summary: format!("{} steps of {} samples, seed {}.", results.step, info.batch, info.seed),
        facts: vec![
            ("graph".into(), info.spec.clone()),
            ("parameters".into(), own.measured.parameters.to_string()),
            ("device".into(), info.device.to_string()),
            ("steps".into(), results.step.to_string()),
            ("batch".into(), info.batch.to_string()),
            ("seed".into(), info.seed.to_string()),
        ],
        measures,
        other: other.map(|other| Other { name: other.measured.title(), summary: difference(own, other) }),
        charts: charts.into_iter().filter(|chart| !chart.series.is_empty()).collect(),
        weights: results.weights.as_ref().map(|found| found.weights.clone()),
        samples: own.measured.samples.clone(),
        notes,
    })
}

/// What is the same and what differs between two runs.
fn difference(own: &Shown<'_>, other: &Shown<'_>) -> String {
    let facts = |shown: &Shown<'_>| {
        let info = shown.run.info();
        let data = info.data.as_ref().map(|data| format!("{:?}", data.pipeline.source));
        [
            ("data", data.unwrap_or_default()),
            ("steps", shown.measured.results.step.to_string()),
            ("batch", info.batch.to_string()),
            ("seed", info.seed.to_string()),
            ("parameters", shown.measured.parameters.to_string()),
        ]
    };
    let (mut same, mut differ) = (Vec::new(), Vec::new());
    for ((name, mine), (_, theirs)) in facts(own).into_iter().zip(facts(other)) {
        if mine == theirs { same.push(name) } else { differ.push(name) }
    }
    let mut text = format!("Compared with a run of {}.", other.measured.title());
    if !same.is_empty() {
        text += &format!(" The same: {}.", same.join(", "));
    }
    if !differ.is_empty() {
        text += &format!(" Different: {}.", differ.join(", "));
    }
    text
}

/// At most [`POINTS`] points, each the mean of its stretch, so that noise does not hide the course.
fn thinned(points: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS).max(1);
    let mean = |points: &[(u64, f64)]| {
        let count = points.len().max(1) as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 as f64, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(stretch).map(mean).collect()
}

//! What was measured on the sets of a suite, and how it stands beside what others have published.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::measures::{Logits, Retrieval, ZeroShot};
use super::probe::Probe;
use super::suite::{Metric, Published, Suite};

/// Most classes of which a table says what was taken for what.
pub(super) const MOST_CONFUSED: usize = 20;

/// What was measured on a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuiteResults {
    /// Name of the suite.
    pub suite: String,
    /// Name of the graph.
    pub graph: String,
    /// Steps that the model was trained.
    pub step: u64,
    /// Whether the average of the weights was measured in their place.
    pub average: bool,
    /// How classes were ranked. Anything but exact logits is for comparison only.
    pub logits: Logits,
    /// Every set of the suite, in its order.
    pub sets: Vec<SetResults>,
    /// Its means.
    pub means: Vec<MeanResult>,
}

/// A set of a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetResults {
    /// Its name.
    pub name: String,
    /// What it is called in tables.
    pub title: String,
    /// What is measured on it.
    pub metric: Metric,
    /// What was found.
    pub found: Found,
}

/// What was found of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Found {
    /// It lies at none of these places.
    Absent(Vec<PathBuf>),
    /// It could not be measured, and why.
    Failed(String),
    /// It was measured.
    Measured(Measured),
}

/// What was measured on a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Where it lies.
    pub place: PathBuf,
    /// Images that could be read.
    pub images: usize,
    /// Images that could not.
    pub skipped: usize,
    /// The figures.
    pub figures: Figures,
    /// What is to be said of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// The figures of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Figures {
    /// Classes were found from their names.
    Classes {
        /// What the classes are called.
        names: Vec<String>,
        /// How many texts each was put into.
        templates: usize,
        /// Accuracy.
        accuracy: ZeroShot,
        /// The share of images whose class is among the first five.
        top5: f64,
        /// Of few classes, how many images of each were taken for each: a row for each right class.
        confusion: Option<Vec<Vec<usize>>>,
    },
    /// Classes were found by a linear probe.
    Probe {
        /// What the classes are called.
        names: Vec<String>,
        /// The probe.
        probe: Probe,
        /// As of classes that are found from their names.
        confusion: Option<Vec<Vec<usize>>>,
    },
    /// Images and captions were searched for each other.
    Retrieval {
        /// Recall.
        recall: Retrieval,
        /// Some texts with their images: the best, then the worst.
        pairs: Vec<Pair>,
    },
}

/// A text with its image, and with the one that is found for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The text, as the model read it.
    pub text: String,
    /// How many images come before its own.
    pub rank: usize,
    /// Its own image: name, and number in the data set.
    pub own: (String, u64),
    /// The image that comes first, if that is another.
    pub found: Option<(String, u64)>,
}

/// A mean over sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanResult {
    /// What it is called.
    pub name: String,
    /// The mean, if all sets were measured.
    pub value: Option<f64>,
    /// Names of the sets that were not.
    pub absent: Vec<String>,
    /// How many sets it is over.
    pub of: usize,
}

/// A figure with its name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What published figures know it by, without the name of its set: `top-1`.
    pub name: String,
    /// From 0 to 1.
    pub value: f64,
    /// What guessing gives.
    pub chance: f64,
}

impl SetResults {
    /// Its figures; the first are those that the suite asks for.
    pub fn figures(&self) -> Vec<Figure> {
        let Found::Measured(measured) = &self.found else { return Vec::new() };
        let figure = |name: &str, value, chance| Figure { name: name.into(), value, chance };
        let of_classes = |accuracy: &ZeroShot, top5: f64, classes: usize| {
            let five = figure("top-5", top5, 5f64.min(classes as f64) / classes.max(1) as f64);
            let mut all = vec![
                figure("top-1", accuracy.top1, accuracy.chance),
                figure("mean per class", accuracy.mean_per_class, accuracy.chance),
                five,
            ];
            if self.metric == Metric::MeanPerClass {
                all.swap(0, 1);
            }
            all
        };
        match &measured.figures {
            Figures::Classes { names, accuracy, top5, .. } => of_classes(accuracy, *top5, names.len()),
            Figures::Probe { names, probe, .. } => {
                let mut all = of_classes(&probe.accuracy, probe.top5, names.len());
                all[0].name = "linear probe".into();
                all
            }
            Figures::Retrieval { recall: found, .. } => {
                let directions = [("image to text", &found.image_to_text), ("text to image", &found.text_to_image)];
                let of = |(direction, recalls): (&str, &Vec<_>)| {
                    let named = |recall: &super::measures::Recall| {
                        figure(&format!("{direction} R@{}", recall.k), recall.recall, recall.chance)
                    };
                    recalls.iter().map(named).collect::<Vec<_>>()
                };
                directions.into_iter().flat_map(of).collect()
            }
        }
    }

    /// How many of its figures a table shows, from the first on: those that the suite asks for.
    pub fn shown(&self) -> usize {
        match self.metric {
            Metric::Retrieval => usize::MAX,
            Metric::Top1 | Metric::MeanPerClass | Metric::LinearProbe => 1,
        }
    }

    /// The one figure of a set that is part of a mean.
    fn value(&self) -> Option<f64> {
        Some(self.figures().first()?.value)
    }
}

/// A line of the table of a suite.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The set, or the mean.
    pub title: String,
    /// Which figure; empty for a mean.
    pub figure: String,
    /// From 0 to 1, or why there is none.
    pub value: Result<f64, String>,
    /// What guessing gives.
    pub chance: Option<f64>,
    /// What others have published, in per cent, in the order of [`Table::methods`].
    pub published: Vec<Option<f64>>,
}

/// The table of a suite.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What others call what they compare with, `ALIP ViT-B/32`.
    pub methods: Vec<String>,
    /// Where their figures stand, each once, with the methods.
    pub sources: Vec<(Vec<String>, String)>,
    /// Figures.
    pub lines: Vec<Line>,
}

impl SuiteResults {
    /// Results of all sets, with the means over them.
    pub fn new(
        suite: &Suite,
        sets: Vec<SetResults>,
        (graph, step): (&str, u64),
        average: bool,
        logits: Logits,
    ) -> SuiteResults {
        let mean = |mean: &super::suite::Mean| {
            let values: Vec<(&String, Option<f64>)> = mean
                .of
                .iter()
                .map(|name| (name, sets.iter().find(|set| set.name == *name).and_then(SetResults::value)))
                .collect();
            let absent: Vec<String> =
                values.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| (*name).clone()).collect();
            let sum: f64 = values.iter().filter_map(|(_, value)| *value).sum();
            let value = (absent.is_empty() && !values.is_empty()).then(|| sum / values.len() as f64);
            MeanResult { name: mean.name.clone(), value, absent, of: mean.of.len() }
        };
        let means = suite.means.iter().map(mean).collect();
        SuiteResults { suite: suite.name.clone(), graph: graph.into(), step, average, logits, sets, means }
    }

    /// Every figure by the name that published ones have, `flickr30k image to text R@1`: means first, then those of each set in
    /// the order of the suite. What is not there is left out.
    pub fn measures(&self) -> Vec<(String, f64)> {
        let means = self.means.iter().filter_map(|mean| Some((mean.name.clone(), mean.value?)));
        let named = |set: &SetResults| {
            let shown = set.figures().into_iter().take(set.shown());
            shown.map(|figure| (format!("{} {}", set.name, figure.name), figure.value)).collect::<Vec<_>>()
        };
        means.chain(self.sets.iter().flat_map(named)).collect()
    }

    /// The model, with what was done to its weights.
    pub fn model(&self) -> String {
        let average = if self.average { " (average of the weights)" } else { "" };
        format!("{}{average} after {} steps", self.graph, self.step)
    }

    /// What is to be said of all figures, if anything is.
    pub fn caution(&self) -> Option<&'static str> {
        (self.logits == Logits::Whole).then_some(
            "classes were ranked by logits without their fractions, as the code published with ALIP does: for comparison with its \
             figures only",
        )
    }

    /// What is to be said of the figures of single sets, each with what its set is called.
    pub fn remarks(&self) -> Vec<(&str, &str)> {
        self.sets
            .iter()
            .filter_map(|set| match &set.found {
                Found::Measured(measured) => Some((set, measured)),
                Found::Absent(_) | Found::Failed(_) => None,
            })
            .flat_map(|(set, measured)| measured.remarks.iter().map(|remark| (set.title.as_str(), remark.as_str())))
            .collect()
    }

    /// The table, beside those published rows that have a figure of it.
    pub fn table(&self, published: &Published) -> Table {
        let mut lines = Vec::new();
        for set in &self.sets {
            let missing = match &set.found {
                Found::Absent(places) => Some(format!("not there ({})", shown(places))),
                Found::Failed(why) => Some(format!("not measured: {why}")),
                Found::Measured(_) => None,
            };
            match missing.map(Err) {
                Some(value) => {
                    lines.push((
                        format!("{} ", set.name),
                        Line {
                            title: set.title.clone(),
                            figure: String::new(),
                            value,
                            chance: None,
                            published: vec![],
                        },
                    ));
                }
                None => {
                    for figure in set.figures().into_iter().take(set.shown()) {
                        let key = format!("{} {}", set.name, figure.name);
                        let (value, chance) = (Ok(figure.value), Some(figure.chance));
                        lines.push((
                            key,
                            Line { title: set.title.clone(), figure: figure.name, value, chance, published: vec![] },
                        ));
                    }
                }
            }
        }
        for mean in &self.means {
            let value =
                mean.value.ok_or_else(|| format!("{} of {} sets were not measured", mean.absent.len(), mean.of));
            let line = Line { title: mean.name.clone(), figure: String::new(), value, chance: None, published: vec![] };
            lines.push((mean.name.clone(), line));
        }
        let is_there = |row: &&super::suite::Row| {
            lines.iter().any(|(key, line)| line.value.is_ok() && row.figures.contains_key(key))
        };
        let rows: Vec<&super::suite::Row> = published.rows.iter().filter(is_there).collect();
        let mut sources: Vec<(Vec<String>, String)> = Vec::new();
        for row in &rows {
            match sources.iter_mut().find(|(_, source)| *source == row.source) {
                Some((methods, _)) => methods.push(row.method.clone()),
                None => sources.push((vec![row.method.clone()], row.source.clone())),
            }
        }
        let with = |(key, line): (String, Line)| Line {
            published: rows.iter().map(|row| row.figures.get(&key).copied()).collect(),
            ..line
        };
        Table {
            methods: rows.iter().map(|row| format!("{} {}", row.method, row.backbone)).collect(),
            sources,
            lines: lines.into_iter().map(with).collect(),
        }
    }

    /// Results as a script wants them: every figure by the name of its set, beside all that is known.
    pub fn json(&self) -> serde_json::Value {
        let mut json = serde_json::json!(self);
        let figures = self.sets.iter().flat_map(|set| {
            set.figures().into_iter().map(|figure| (format!("{} {}", set.name, figure.name), figure.value.into()))
        });
        let means = self.means.iter().filter_map(|mean| Some((mean.name.clone(), mean.value?.into())));
        json["figures"] = serde_json::Value::Object(figures.chain(means).collect());
        if let Some(caution) = self.caution() {
            json["caution"] = caution.into();
        }
        json
    }
}

/// Places of a set that is not there.
fn shown(places: &[PathBuf]) -> String {
    let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    shown.join(", ")
}

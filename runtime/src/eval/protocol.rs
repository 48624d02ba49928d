//! Evaluation as the papers do it.
//!
//! Images come as [`Preparation`] says. A class is put into words by templates and is the mean of their unit embeddings, made unit
//! again; an image is of the class with the highest cosine, which is what logits of 100 times that say. For retrieval any of an image's
//! captions is right; an image without one is among those that are searched, and searches for nothing. Ties are settled as
//! [`super::measures`] says. Images that cannot be read are left out and counted.
//!
//! All sets are opened before any is measured, so that what is wrong with the last comes up first.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dataset::{CLASS, Classes, Dataset, Layout, Truth, twice};
use super::encoder::{EncodeError, Encoder, Reading};
use super::features::{Described, Features, FeaturesError, Identity, Store, set_hash, texts_hash};
use super::measures::{Classified, Logits, MeasuresError, Ranks, Rows, class_embeddings, classify, nearest};
use super::preparation::Preparation;
use super::probe::{ProbeError, probe};
use super::results::{Figures, Found, MOST_CONFUSED, Measured, Pair, SetResults};
use super::suite::{Metric, Set, Suite};
use crate::data::{DataError, SampleSource, Skipped, Tokenizer};

/// Ranks at which recall is measured.
pub(super) const KS: [usize; 3] = [1, 5, 10];

/// How a class is put into words where nobody says.
const TEMPLATE: &str = "a photo of a {c}.";

/// Pairs of a set that are shown, of the best and of the worst.
const SHOWN: usize = 6;

/// Why a suite could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Something could not be embedded.
    #[error("{set}: {source}")]
    Encode {
        /// The set.
        set: String,
        /// Why.
        source: EncodeError,
    },
    /// The data are not as they should be.
    #[error("{set}: {source}")]
    Data {
        /// The set.
        set: String,
        /// Why.
        source: DataError,
    },
    /// The embeddings cannot be compared.
    #[error("{set}: {source}")]
    Measures {
        /// The set.
        set: String,
        /// Why.
        source: MeasuresError,
    },
    /// There is no probe.
    #[error("{set}: {source}")]
    Probe {
        /// The set.
        set: String,
        /// Why.
        source: ProbeError,
    },
    /// Features cannot be kept or used.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// A set holds something else than its metric needs.
    #[error("{set}: {} holds {has}, and `{metric:?}` is measured on {needs}", place.display())]
    Kind {
        /// The set.
        set: String,
        /// Where it lies.
        place: PathBuf,
        /// What it holds.
        has: &'static str,
        /// The metric.
        metric: Metric,
        /// What that needs.
        needs: &'static str,
    },
    /// The images that a probe is trained on have other classes than those that it is measured on.
    #[error("{set}: {} has other classes than {}; give a probe one set in two parts", train.display(), test.display())]
    OtherClasses {
        /// The set.
        set: String,
        /// What is trained on.
        train: PathBuf,
        /// What is measured.
        test: PathBuf,
    },
    /// None of the sets is there.
    #[error("none of the {count} sets of `{suite}` is in {}; docs/evaluation.md says where each is looked for", root.display())]
    Nothing {
        /// The suite.
        suite: String,
        /// How many sets it has.
        count: usize,
        /// The folder of data sets.
        root: PathBuf,
    },
}

impl EvalError {
    /// Whether somebody asked to stop.
    pub fn is_stop(&self) -> bool {
        matches!(self, EvalError::Encode { source: EncodeError::Stopped, .. })
    }

    /// What is wrong, without the name of the set.
    fn why(&self) -> String {
        match self {
            EvalError::Encode { source, .. } => source.to_string(),
            EvalError::Data { source, .. } => source.to_string(),
            EvalError::Measures { source, .. } => source.to_string(),
            EvalError::Probe { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }
}

/// A set that was looked for.
pub struct Opened<'s> {
    set: &'s Set,
    data: Result<Here, Vec<PathBuf>>,
}

/// A set that is there.
struct Here {
    place: PathBuf,
    test: Dataset,
    /// What a probe is trained on, with its classes.
    train: Option<(Dataset, Classes)>,
    /// Of images that are searched by them, as many of each as the suite takes.
    captions: Vec<Vec<String>>,
}

impl Opened<'_> {
    /// The name of the set.
    pub fn name(&self) -> &str {
        &self.set.name
    }

    /// The images that are measured, if the set is there.
    pub fn source(&self) -> Option<&Arc<dyn SampleSource>> {
        Some(&self.data.as_ref().ok()?.test.source)
    }

    /// The results of a set that could not be measured: the others are shown beside them.
    pub fn failed(&self, error: &EvalError) -> SetResults {
        self.results(Found::Failed(error.why()))
    }

    fn results(&self, found: Found) -> SetResults {
        let (name, title, metric) = (self.set.name.clone(), self.set.title().to_string(), self.set.metric);
        SetResults { name, title, metric, found }
    }

    /// How many images it has, of both parts if a probe is trained on one.
    pub fn images(&self) -> u64 {
        let here = self.data.as_ref().ok();
        here.map_or(0, |here| here.test.source.len() + here.train.as_ref().map_or(0, |(train, _)| train.source.len()))
    }
}

/// Looks for the sets of a suite in a folder and opens those that are there.
///
/// # Errors
/// None is; one is not as it should be, or not what its metric is measured on.
pub fn open<'s>(suite: &'s Suite, root: &Path) -> Result<Vec<Opened<'s>>, EvalError> {
    let opened: Vec<Opened<'s>> = suite.sets.iter().map(|set| open_set(set, root)).collect::<Result<_, _>>()?;
    if opened.iter().all(|set| set.data.is_err()) {
        let (suite, count) = (suite.name.clone(), suite.sets.len());
        return Err(EvalError::Nothing { suite, count, root: root.to_path_buf() });
    }
    Ok(opened)
}

fn open_set<'s>(set: &'s Set, root: &Path) -> Result<Opened<'s>, EvalError> {
    let fail = |source| EvalError::Data { set: set.name.clone(), source };
    let there = |layouts: &'s [Layout]| {
        let first = layouts.iter().find(|layout| layout.place(root).exists());
        first.ok_or_else(|| layouts.iter().map(|layout| layout.place(root)).collect::<Vec<_>>())
    };
    let found = there(&set.data).and_then(|test| match set.train.is_empty() {
        true => Ok((test, None)),
        false => Ok((test, Some(there(&set.train)?))),
    });
    let (test, train) = match found {
        Ok(found) => found,
        Err(places) => return Ok(Opened { set, data: Err(places) }),
    };
    let place = test.place(root);
    let test = test.open(root).map_err(fail)?;
    let kind =
        |place: PathBuf, has, needs| EvalError::Kind { set: set.name.clone(), place, has, metric: set.metric, needs };
    match (&test.truth, set.metric == Metric::Retrieval) {
        (Truth::Captions, false) => return Err(kind(place, "captions", "classes")),
        (Truth::Classes(_), true) => return Err(kind(place, "classes", "captions")),
        _ => {}
    }
    let train = train.map(|layout| -> Result<_, EvalError> {
        let (dataset, train) = (layout.open(root).map_err(fail)?, layout.place(root));
        let Truth::Classes(classes) = dataset.truth.clone() else { return Err(kind(train, "captions", "classes")) };
        match &test.truth {
            Truth::Classes(tested) if tested.names != classes.names => {
                Err(EvalError::OtherClasses { set: set.name.clone(), train, test: place.clone() })
            }
            _ => Ok((dataset, classes)),
        }
    });
    let train = train.transpose()?;
    let captions = match test.truth {
        Truth::Captions => test.captions(set.captions).map_err(fail)?,
        Truth::Classes(_) => Vec::new(),
    };
    Ok(Opened { set, data: Ok(Here { place, test, train, captions }) })
}

/// How sets are measured.
pub struct Protocol<'a> {
    /// How images are prepared.
    pub preparation: &'a Preparation,
    /// The tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
    /// How samples are read, and what is told meanwhile.
    pub reading: Reading<'a>,
    /// How classes are ranked.
    pub logits: Logits,
    /// Where features are kept, and what the model is known by there.
    pub store: Option<(Store<'a>, &'a str)>,
    /// Told which images or texts are about to be embedded, and how many they are.
    pub begins: &'a dyn Fn(&str, usize),
}

/// Measures a model on a set that was looked for.
///
/// # Errors
/// The data cannot be delivered, the device fails, the model has diverged, features are of something else, or somebody stopped it.
pub fn evaluate(
    encoder: &mut Encoder<'_>,
    opened: &Opened<'_>,
    protocol: &Protocol<'_>,
) -> Result<SetResults, EvalError> {
    let set = opened.set;
    let here = match &opened.data {
        Ok(here) => here,
        Err(places) => return Ok(opened.results(Found::Absent(places.clone()))),
    };
    let mut work = Work { encoder, set, protocol, remarks: Vec::new() };
    let (features, figures) = match (&here.test.truth, &here.train) {
        (Truth::Classes(classes), Some((train, taught))) => work.probed((&here.test, classes), (train, taught))?,
        (Truth::Classes(classes), None) => work.classified(&here.test, classes)?,
        (Truth::Captions, _) => work.searched(&here.test, &here.captions)?,
    };
    let (place, remarks) = (here.place.clone(), work.remarks);
    let (images, skipped) = (features.rows.len(), features.skipped);
    Ok(opened.results(Found::Measured(Measured { place, images, skipped, figures, remarks })))
}

type Result2 = Result<(Features, Figures), EvalError>;

/// A set under measurement.
struct Work<'w, 'e, 's> {
    encoder: &'w mut Encoder<'e>,
    set: &'w Set,
    protocol: &'w Protocol<'s>,
    /// What is to be said of the figures.
    remarks: Vec<String>,
}

impl Work<'_, '_, '_> {
    fn failed(&self) -> impl Fn(MeasuresError) -> EvalError + use<> {
        let set = self.set.name.clone();
        move |source| EvalError::Measures { set: set.clone(), source }
    }

    /// Classes from their names.
    fn classified(&mut self, data: &Dataset, Classes { names, labels }: &Classes) -> Result2 {
        let templates = match (&self.set.templates, &data.templates) {
            (own, _) if !own.is_empty() => own.clone(),
            (_, Some(templates)) => templates.clone(),
            _ => vec![TEMPLATE.to_string()],
        };
        if let Some((first, second)) = twice(names) {
            let name = &names[first];
            self.remarks
                .push(format!("classes {first} and {second} are both `{name}`: no image is taken for the second"));
        }
        let in_words =
            |name: &String| templates.iter().map(|template| template.replace(CLASS, name)).collect::<Vec<_>>();
        let texts = Texts {
            all: names.iter().flat_map(in_words).collect(),
            owner: (0..names.len()).flat_map(|class| vec![class as u64; templates.len()]).collect(),
            are_of_images: false,
        };
        let features = self.features("", data, &texts)?;
        let (fail, labels) = (self.failed(), of(labels, &features));
        let images = rows("image embeddings", &features.images, &features).map_err(&fail)?;
        let prompts = rows("text embeddings", &features.texts, &features).map_err(&fail)?;
        let classes = class_embeddings(prompts, &features.owner, names.len()).map_err(&fail)?;
        let found = classify(images, &classes, &labels, self.protocol.logits).map_err(&fail)?;
        let figures = Figures::Classes {
            names: names.clone(),
            templates: templates.len(),
            accuracy: found.accuracy(&labels, names.len()),
            top5: found.top(5),
            confusion: confusion(&found, &labels, names.len()),
        };
        Ok((features, figures))
    }

    /// Classes from a linear classifier.
    fn probed(&mut self, (data, tested): (&Dataset, &Classes), (train, taught): (&Dataset, &Classes)) -> Result2 {
        let names = &tested.names;
        let trained = self.features("-train", train, &Texts::default())?;
        let features = self.features("", data, &Texts::default())?;
        let (fail, taught, labels) = (self.failed(), of(&taught.labels, &trained), of(&tested.labels, &features));
        let train = rows("embeddings of training images", &trained.images, &trained).map_err(&fail)?;
        let test = rows("image embeddings", &features.images, &features).map_err(&fail)?;
        let set = self.set.name.clone();
        let stop = self.protocol.reading.stop;
        let fitted = probe((train, &taught), (test, &labels), names.len(), stop);
        let (probe, found) = fitted.map_err(|source| match source {
            ProbeError::Stopped => EvalError::Encode { set, source: EncodeError::Stopped },
            source => EvalError::Probe { set, source },
        })?;
        if probe.unfinished {
            self.remarks.push("the fit of the probe was ended after the most steps that it may take".into());
        }
        let confusion = confusion(&found, &labels, names.len());
        Ok((features, Figures::Probe { names: names.clone(), probe, confusion }))
    }

    /// Images and captions by each other.
    fn searched(&mut self, data: &Dataset, captions: &[Vec<String>]) -> Result2 {
        let without = captions.iter().filter(|own| own.is_empty()).count();
        if without > 0 {
            self.remarks.push(format!("{without} of {} images have no caption and search for none", captions.len()));
        }
        let owner = captions.iter().enumerate().flat_map(|(image, own)| vec![image as u64; own.len()]).collect();
        let prompted = |caption: &String| format!("{}{caption}", self.set.prompt);
        let texts = Texts { all: captions.iter().flatten().map(prompted).collect(), owner, are_of_images: true };
        let features = self.features("", data, &texts)?;
        let fail = self.failed();
        let images = rows("image embeddings", &features.images, &features).map_err(&fail)?;
        let embedded = rows("text embeddings", &features.texts, &features).map_err(&fail)?;
        let ranks = Ranks::new(images, embedded, &features.owner).map_err(&fail)?;
        let pairs = pairs(data, &features, &ranks, &texts.kept(&features)).map_err(&fail)?;
        Ok((features, Figures::Retrieval { recall: ranks.recall(&KS), pairs }))
    }

    /// Features of images and texts: those that are kept, or new ones. Images that are left out are remarked on.
    fn features(&mut self, part: &str, data: &Dataset, texts: &Texts) -> Result<Features, EvalError> {
        let features = self.found(part, data, texts)?;
        if features.skipped > 0 {
            let of = if part.is_empty() { "" } else { " that it is trained on" };
            let all = data.source.len();
            self.remarks.push(format!("{} of {all} images{of} could not be read and are left out", features.skipped));
        }
        Ok(features)
    }

    fn found(&mut self, part: &str, data: &Dataset, texts: &Texts) -> Result<Features, EvalError> {
        let (set, protocol) = (&self.set.name, self.protocol);
        let name = format!("{set}{part}");
        let in_data = |source| EvalError::Data { set: set.clone(), source };
        let of_what = match &protocol.store {
            Some((store, model)) => {
                let of = Identity {
                    model: model.to_string(),
                    preparation: format!("{:?}", protocol.preparation),
                    set: set_hash(data.source.as_ref()).map_err(in_data)?,
                    texts: texts_hash(&texts.all),
                };
                let fits = (self.encoder.programs().dim, data.source.len());
                if let Some(features) = store.read(&name, &of, fits, |features| texts.owners(features))? {
                    (protocol.begins)(&format!("{name}: features from {}", store.folder.display()), 0);
                    return Ok(features);
                }
                Some((store, of))
            }
            None => None,
        };
        let failed = |source| EvalError::Encode { set: set.clone(), source };
        (protocol.begins)(&format!("{name}: images"), data.source.len() as usize);
        let last = RefCell::new(String::new());
        let told = |skipped: &Skipped| {
            last.replace(skipped.to_string());
            (protocol.reading.skipped)(skipped);
        };
        let reading = Reading { skipped: &told, ..protocol.reading };
        let source = Arc::clone(&data.source);
        let embedded = self.encoder.samples(&protocol.preparation.pipeline(), source, &reading).map_err(failed)?;
        // A loader judges none of the first thousand; a set that has fewer is judged when all were read.
        let (bad, seen, allowed) = (embedded.skipped as u64, data.source.len(), protocol.reading.max_bad);
        if bad as f64 > allowed * seen as f64 {
            return Err(in_data(DataError::TooManyBad { bad, seen, allowed, from: seen, last: last.take() }));
        }
        let mut features = Features {
            dim: self.encoder.programs().dim,
            images: embedded.images,
            rows: embedded.rows,
            skipped: embedded.skipped,
            ..Features::default()
        };
        let kept: Vec<String> = texts.kept(&features).into_iter().cloned().collect();
        features.owner = texts.owners(&features);
        if !kept.is_empty() {
            (protocol.begins)(&format!("{name}: texts"), kept.len());
            features.texts = self.encoder.texts(protocol.tokenizer, &kept, &protocol.reading).map_err(failed)?;
        }
        if let Some((store, of_what)) = of_what {
            let (labels, classes) = match &data.truth {
                Truth::Classes(classes) => (of(&classes.labels, &features), &classes.names[..]),
                Truth::Captions => (Vec::new(), &[][..]),
            };
            let names = features.rows.iter().map(|&row| data.source.name(row)).collect();
            store.write(&name, &features, &of_what, &Described { names, texts: &kept, labels: &labels, classes })?;
        }
        Ok(features)
    }
}

/// The best and the worst texts, each with its image and with the one that is found in its place, no image twice. The best are those
/// that come first with the highest cosine, the worst those before whose image most others come.
fn pairs(data: &Dataset, features: &Features, ranks: &Ranks, texts: &[&String]) -> Result<Vec<Pair>, MeasuresError> {
    let images = rows("image embeddings", &features.images, features)?;
    let embedded = rows("text embeddings", &features.texts, features)?;
    let cosine = |text: usize| -> f64 {
        let products = images.row(features.owner[text]).iter().zip(embedded.row(text));
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let rank = |text: usize| ranks.text_to_image[text];
    let mut order: Vec<(usize, f64)> = (0..texts.len()).map(|text| (text, cosine(text))).collect();
    // By number where all else is the same: a page is a function of what was measured.
    order.sort_by(|a, b| rank(a.0).cmp(&rank(b.0)).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));
    let mut seen = HashSet::new();
    let mut first = |texts: &mut dyn Iterator<Item = usize>| -> Vec<usize> {
        texts.filter(|&text| seen.insert(features.owner[text])).take(SHOWN).collect()
    };
    let order: Vec<usize> = order.into_iter().map(|(text, _)| text).collect();
    let best = first(&mut order.iter().copied().take_while(|&text| rank(text) == 0));
    let worst = first(&mut order.iter().rev().copied().take_while(|&text| rank(text) > 0));
    let named = |image: usize| (data.source.name(features.rows[image]), features.rows[image]);
    let pair = |text: usize| -> Result<Pair, MeasuresError> {
        let found = nearest(embedded.row(text), images, 1)?.first().map_or(0, |(image, _)| *image);
        let found = (found != features.owner[text]).then(|| named(found));
        Ok(Pair { text: texts[text].clone(), rank: rank(text), own: named(features.owner[text]), found })
    };
    best.into_iter().chain(worst).map(pair).collect()
}

/// Texts to be embedded.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    /// The class of each, or its image.
    owner: Vec<u64>,
    are_of_images: bool,
}

impl Texts {
    /// Those of images that could be read, or all that are of classes.
    fn kept(&self, features: &Features) -> Vec<&String> {
        let rows: HashSet<u64> = features.rows.iter().copied().collect();
        let kept = |owner: &u64| !self.are_of_images || rows.contains(owner);
        self.all.iter().zip(&self.owner).filter(|(_, owner)| kept(owner)).map(|(text, _)| text).collect()
    }

    /// The class of each of them, or the row of its image.
    fn owners(&self, features: &Features) -> Vec<usize> {
        if !self.are_of_images {
            return self.owner.iter().map(|&class| class as usize).collect();
        }
        let places: HashMap<u64, usize> = features.rows.iter().enumerate().map(|(row, &image)| (image, row)).collect();
        self.owner.iter().filter_map(|image| places.get(image).copied()).collect()
    }
}

fn rows<'f>(what: &'static str, data: &'f [f32], features: &Features) -> Result<Rows<'f>, MeasuresError> {
    Rows::new(what, data, features.dim)
}

/// The class of every image that could be read.
fn of(labels: &[u32], features: &Features) -> Vec<usize> {
    features.rows.iter().map(|&row| labels[row as usize] as usize).collect()
}

/// What was taken for what, of few classes.
fn confusion(found: &Classified, labels: &[usize], classes: usize) -> Option<Vec<Vec<usize>>> {
    (classes <= MOST_CONFUSED).then(|| found.confusion(labels, classes))
}

//! Suites: which data sets a model is evaluated on, and how. And what others have published.
//!
//! Both are RON. Those that are shipped lie in `eval/` and are embedded; a file on disk with the same name wins.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::dataset::{Layout, check_templates};
use super::protocol::KS;

static SHIPPED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../eval");

/// The folder of suites, here and in the working directory.
const FOLDER: &str = "eval";

/// What others have published, unless a file on disk says more.
const PUBLISHED: &str = "published";

/// Data sets, each with its measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its name, of which that of the results is made.
    pub name: String,
    /// What it is, in a sentence.
    #[serde(default)]
    pub doc: String,
    /// The data sets, in the order of the table.
    pub sets: Vec<Set>,
    /// Means over some of them.
    #[serde(default)]
    pub means: Vec<Mean>,
}

/// A data set of a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// Its name, by which published figures and stored features know it.
    pub name: String,
    /// What it is called in tables; its name unless given.
    #[serde(default)]
    pub title: String,
    /// Where it may lie, and how: the first that is there is taken.
    pub data: Vec<Layout>,
    /// Where the images lie that a linear probe is trained on.
    #[serde(default)]
    pub train: Vec<Layout>,
    /// What is measured.
    pub metric: Metric,
    /// What a class is put into words with, `{c}` being its name. Without any they are the data set's, or else one, `a photo of a
    /// {c}.`.
    #[serde(default)]
    pub templates: Vec<String>,
    /// What stands before every caption.
    #[serde(default)]
    pub prompt: String,
    /// How many captions of each image count, the first; 0 means all.
    #[serde(default)]
    pub captions: usize,
}

impl Set {
    /// What it is called in tables.
    pub fn title(&self) -> &str {
        if self.title.is_empty() { &self.name } else { &self.title }
    }
}

/// What is measured on a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// The share of images whose class is found from its name.
    Top1,
    /// The mean of this share over classes.
    MeanPerClass,
    /// The share of queries that find a right item among the first 1, 5 and 10.
    Retrieval,
    /// The share of images whose class is found by a linear classifier, trained on the embeddings of other images.
    LinearProbe,
}

impl Metric {
    /// Names of the figures that it asks for.
    pub(super) fn figures(self) -> Vec<String> {
        let named = |name: &str| vec![name.to_string()];
        match self {
            Metric::Top1 => named("top-1"),
            Metric::MeanPerClass => named("mean per class"),
            Metric::LinearProbe => named("linear probe"),
            Metric::Retrieval => {
                let of = |direction: &'static str| KS.iter().map(move |k| format!("{direction} R@{k}"));
                ["image to text", "text to image"].into_iter().flat_map(of).collect()
            }
        }
    }
}

/// A mean of figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    /// What it is called.
    pub name: String,
    /// The data sets that it is over, each with its one figure.
    pub of: Vec<String>,
}

/// What somebody has published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Rows of tables.
    pub rows: Vec<Row>,
}

/// A row of a published table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// How the model was trained.
    pub method: String,
    /// Its image tower.
    pub backbone: String,
    /// On what it was trained.
    #[serde(default)]
    pub data: String,
    /// Where the figures stand.
    pub source: String,
    /// In per cent, by data set and figure: `mscoco image to text R@1`, `imagenet top-1`, `mean of 11 sets`.
    pub figures: BTreeMap<String, f64>,
}

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// There is none.
    #[error("there is no suite `{name}`{near}; there are `{known}`, or give the path of a RON file")]
    Unknown {
        /// What was asked for.
        name: String,
        /// `, did you mean ...`, if one is near.
        near: String,
        /// All that are shipped.
        known: String,
    },
    /// The file cannot be read.
    #[error("{}: {source}; give the name of a suite, or the path of a RON file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not written as it should be; with its place.
    #[error("{0}")]
    Wrong(String),
}

/// A text with the name that it is shown by.
struct File {
    name: String,
    text: String,
}

impl File {
    /// Of a name, or a path.
    fn open(wanted: &str) -> Result<File, SuiteError> {
        let path = Path::new(wanted);
        let inside = path.strip_prefix(FOLDER).unwrap_or(path).with_extension("ron");
        let beside = Path::new(FOLDER).join(&inside);
        let on_disk = [path, &beside].into_iter().find(|path| path.is_file());
        if let Some(path) = on_disk {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| SuiteError::Read { path: path.to_path_buf(), source })?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_string();
            return Ok(File { name: path.display().to_string(), text });
        }
        if let Some(text) = SHIPPED.get_file(&inside).and_then(|file| file.contents_utf8()) {
            return Ok(File { name: beside.display().to_string(), text: text.into() });
        }
        // What is written as a path is one.
        if path.extension().is_some() || path.components().count() > 1 {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(SuiteError::Read { path: path.to_path_buf(), source });
        }
        let known = Suite::shipped();
        let near = nearest(wanted, known.iter().map(String::as_str));
        let near = near.map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        Err(SuiteError::Unknown { name: wanted.into(), near, known: known.join("`, `") })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, SuiteError> {
        ron::from_str(&self.text).map_err(|error| {
            let (line, column) = (error.span.start.line, error.span.start.col);
            let (what, near) = worded(&error.code);
            // Where a word is wrong the parser stands behind it.
            let (from, length) = match near.as_ref() {
                Some((word, _)) => self.word(line, column, word),
                None => (column.max(1), 1),
            };
            let help = near.and_then(|(_, near)| near).map(|near| format!("did you mean `{near}`?"));
            self.wrong(&what, Some((line, from, length)), help.as_deref())
        })
    }

    /// Where a word stands that ends at a place, or before it in the line.
    fn word(&self, line: usize, column: usize, word: &str) -> (usize, usize) {
        let text = self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let before: String = text.chars().take(column.saturating_sub(1) + word.chars().count()).collect();
        match before.rfind(word) {
            Some(at) => (before[..at].chars().count() + 1, word.chars().count()),
            None => (column.max(1), 1),
        }
    }

    /// The line, from 1, that says `name: "..."`.
    fn line_of(&self, name: &str) -> Option<(usize, usize, usize)> {
        let wanted = format!("\"{name}\"");
        let mut lines = self.text.lines().enumerate();
        let (line, at) = lines.find_map(|(line, text)| Some((line, text.find(&wanted)?)))?;
        let column = self.text.lines().nth(line)?[..at].chars().count() + 1;
        Some((line + 1, column, wanted.chars().count()))
    }

    /// An error with its line and a caret.
    fn wrong(&self, what: &str, at: Option<(usize, usize, usize)>, help: Option<&str>) -> SuiteError {
        let mut said = format!("{what}\n  --> {}", self.name);
        if let Some((line, column, length)) = at {
            let text = self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            let margin = " ".repeat(line.to_string().len());
            said += &format!(":{line}:{column}\n{margin} |\n{line} | {text}\n{margin} | ");
            said += &format!("{}{}", " ".repeat(column.saturating_sub(1)), "^".repeat(length));
        }
        if let Some(help) = help {
            said += &format!("\n  = help: {help}");
        }
        SuiteError::Wrong(said)
    }
}

/// What the parser found, and the word that is wrong with the nearest right one.
fn worded(error: &ron::Error) -> (String, Option<(String, Option<String>)>) {
    let of =
        |expected: &[&'static str], found: &String| Some((found.clone(), nearest(found, expected.iter().copied())));
    let list = |expected: &[&'static str]| expected.join("`, `");
    match error {
        ron::Error::NoSuchStructField { expected, found, .. } => {
            (format!("unknown field `{found}`; there are `{}`", list(expected)), of(expected, found))
        }
        ron::Error::NoSuchEnumVariant { expected, found, .. } => {
            (format!("unknown name `{found}`; there are `{}`", list(expected)), of(expected, found))
        }
        ron::Error::MissingStructField { field, outer } => {
            let outer = outer.as_ref().map_or_else(String::new, |outer| format!(" of `{outer}`"));
            (format!("the field `{field}`{outer} is missing"), None)
        }
        other => (other.to_string(), None),
    }
}

/// The nearest of some words, if one is near.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let scored = known.map(|known| (strsim::jaro_winkler(word, known), known));
    // What the compiler takes for near.
    let best = scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, known)| known.to_string())
}

impl Suite {
    /// The suite of a name, or in a file.
    ///
    /// # Errors
    /// There is none, or what is wrong with it, with its place.
    pub fn open(wanted: &str) -> Result<Suite, SuiteError> {
        Suite::read(wanted).map(|(suite, _)| suite)
    }

    /// The same, with its text.
    ///
    /// # Errors
    /// As [`Suite::open`].
    pub fn read(wanted: &str) -> Result<(Suite, String), SuiteError> {
        let file = File::open(wanted)?;
        let suite: Suite = file.parse()?;
        match suite.mistake() {
            Some((name, what)) => Err(file.wrong(&what, file.line_of(&name), None)),
            None => Ok((suite, file.text)),
        }
    }

    /// Names of all its measures, as [`super::results::SuiteResults::measures`] has them where all sets are there.
    pub fn measures(&self) -> Vec<String> {
        let means = self.means.iter().map(|mean| mean.name.clone());
        let of = |set: &Set| -> Vec<String> {
            set.metric.figures().into_iter().map(|figure| format!("{} {figure}", set.name)).collect()
        };
        means.chain(self.sets.iter().flat_map(of)).collect()
    }

    /// Names of those that are shipped.
    pub fn shipped() -> Vec<String> {
        let names = SHIPPED.files().filter_map(|file| file.path().file_stem()?.to_str().map(String::from));
        let mut names: Vec<String> = names.filter(|name| name != PUBLISHED).collect();
        names.sort();
        names
    }

    /// What the parser does not see: the first mistake, with the name that it is about.
    fn mistake(&self) -> Option<(String, String)> {
        let plain = |name: &str| {
            !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.'))
        };
        let mut seen = HashSet::new();
        for name in [&self.name].into_iter().chain(self.sets.iter().map(|set| &set.name)) {
            if !plain(name) {
                // Files are called by it.
                return Some((
                    name.clone(),
                    format!("the name {name:?} has other than letters, digits, `_`, `-` and `.`"),
                ));
            }
        }
        for set in &self.sets {
            let fail = |what: String| Some((set.name.clone(), format!("set `{}`: {what}", set.name)));
            let is_retrieval = set.metric == Metric::Retrieval;
            if !seen.insert(&set.name) {
                return fail("two sets have this name".into());
            }
            if set.data.is_empty() {
                return fail("`data` names no place where it may lie".into());
            }
            if !is_retrieval && (!set.prompt.is_empty() || set.captions > 0) {
                return fail("`prompt` and `captions` are for retrieval".into());
            }
            if is_retrieval && !set.templates.is_empty() {
                return fail("`templates` are for classes; captions have a `prompt`".into());
            }
            if (set.metric == Metric::LinearProbe) == set.train.is_empty() {
                return fail("`train` names what a linear probe is trained on, and nothing else".into());
            }
            if let (false, Err(why)) = (set.templates.is_empty(), check_templates(&set.templates)) {
                return fail(why);
            }
        }
        for mean in &self.means {
            for name in &mean.of {
                let set = self.sets.iter().find(|set| set.name == *name);
                let Some(set) = set else {
                    return Some((
                        mean.name.clone(),
                        format!("`{}` is a mean over `{name}`, which is no set", mean.name),
                    ));
                };
                if set.metric == Metric::Retrieval {
                    let why = format!("`{}` is a mean over `{name}`, which has several figures", mean.name);
                    return Some((mean.name.clone(), why));
                }
            }
        }
        None
    }
}

impl Published {
    /// What is shipped, or stands in `eval/published.ron` on disk.
    ///
    /// # Errors
    /// The file on disk is not as it should be.
    pub fn open() -> Result<Published, SuiteError> {
        File::open(PUBLISHED)?.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of a suite with this text.
    fn check(text: &str, message: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.ron");
        std::fs::write(&path, text).unwrap();
        let found = Suite::open(path.to_str().unwrap()).unwrap_err().to_string();
        let found = found.replace(&folder.path().display().to_string(), "ROOT");
        assert_eq!(found, message.trim_start_matches('\n'), "{text}");
    }

    #[test]
    fn what_is_shipped_can_be_read() {
        for name in Suite::shipped() {
            let suite = Suite::open(&name).unwrap();
            assert_eq!(suite.name, name);
            // Every figure is one of a set, or a mean.
            let figures = |row: &Row| {
                for key in row.figures.keys() {
                    let known = suite
                        .sets
                        .iter()
                        .any(|set| key.strip_prefix(&set.name).is_some_and(|rest| rest.starts_with(' ')));
                    assert!(known || suite.means.iter().any(|mean| mean.name == *key), "{key} of {}", row.method);
                }
            };
            Published::open().unwrap().rows.iter().for_each(figures);
        }
        assert_eq!(Suite::open("eval/alip_table.ron").unwrap(), Suite::open("alip_table").unwrap());
        assert_eq!(Suite::shipped(), ["alip_table"]);
    }

    #[test]
    fn mistakes_have_a_place_and_a_way_out() {
        let error = |name: &str| Suite::open(name).unwrap_err().to_string();
        let rest = "there are `alip_table`, or give the path of a RON file";
        assert_eq!(error("alip_tabel"), format!("there is no suite `alip_tabel`, did you mean `alip_table`?; {rest}"));
        assert_eq!(error("xyz"), format!("there is no suite `xyz`; {rest}"));
        assert_eq!(
            error("my/suite.ron"),
            "my/suite.ron: entity not found; give the name of a suite, or the path of a RON file"
        );
        check(
            "Suite(\n    name: \"s\",\n    sets: [(name: \"a\", data: [Cifar(path: \"c\")], metric: Top1, promt: \"x\")],\n)",
            r#"
unknown field `promt`; there are `name`, `title`, `data`, `train`, `metric`, `templates`, `prompt`, `captions`
  --> ROOT/s.ron:3:64
  |
3 |     sets: [(name: "a", data: [Cifar(path: "c")], metric: Top1, promt: "x")],
  |                                                                ^^^^^
  = help: did you mean `prompt`?"#,
        );
        check(
            "Suite(name: \"s\", sets: [(name: \"a\", data: [Folder(path: \"c\")], metric: Top2)])",
            r#"
unknown name `Top2`; there are `Top1`, `MeanPerClass`, `Retrieval`, `LinearProbe`
  --> ROOT/s.ron:1:72
  |
1 | Suite(name: "s", sets: [(name: "a", data: [Folder(path: "c")], metric: Top2)])
  |                                                                        ^^^^
  = help: did you mean `Top1`?"#,
        );
        check(
            "Suite(\n    sets: [],\n)",
            r#"
the field `name` of `Suite` is missing
  --> ROOT/s.ron:3:1
  |
3 | )
  | ^"#,
        );
    }

    /// A suite with these fields of a set, and what is said of it; the place is that of the set.
    fn check_set(fields: &str, message: &str) {
        let set = format!("(name: \"a\", data: [Folder(path: \"c\")], {fields})");
        let text = format!("Suite(name: \"s\", sets: [{set}])");
        let place = "\n  --> ROOT/s.ron:1:32\n  |";
        let caret = format!("\n1 | {text}\n  | {}^^^", " ".repeat(31));
        check(&text, &format!("set `a`: {message}{place}{caret}"));
    }

    #[test]
    fn sets_have_what_their_metric_asks_for() {
        check_set("metric: Top1, prompt: \"x\"", "`prompt` and `captions` are for retrieval");
        check_set("metric: Retrieval, templates: [\"{c}\"]", "`templates` are for classes; captions have a `prompt`");
        check_set(
            "metric: Top1, train: [Folder(path: \"d\")]",
            "`train` names what a linear probe is trained on, and nothing else",
        );
        check_set("metric: LinearProbe", "`train` names what a linear probe is trained on, and nothing else");
        check_set(
            "metric: Top1, templates: [\"a photo\"]",
            "the template `a photo` has no `{c}` where the name of the class belongs",
        );
        let set = "(name: \"a\", data: [Folder(path: \"c\")], metric: Retrieval)";
        check(
            &format!("Suite(name: \"s\", sets: [{set},\n{set}])"),
            &format!(
                "set `a`: two sets have this name\n  --> ROOT/s.ron:1:32\n  |\n1 | Suite(name: \"s\", sets: [{set},\n  | {}^^^",
                " ".repeat(31)
            ),
        );
        let mean = |of: &str| format!("Suite(name: \"s\", sets: [{set}],\nmeans: [(name: \"m\", of: [\"{of}\"])])");
        let place = |of: &str| {
            format!("\n  --> ROOT/s.ron:2:16\n  |\n2 | means: [(name: \"m\", of: [\"{of}\"])])\n  |                ^^^")
        };
        check(&mean("b"), &format!("`m` is a mean over `b`, which is no set{}", place("b")));
        check(&mean("a"), &format!("`m` is a mean over `a`, which has several figures{}", place("a")));
        check(
            "Suite(name: \"a/b\", sets: [])",
            "the name \"a/b\" has other than letters, digits, `_`, `-` and `.`\n  --> ROOT/s.ron:1:13\n  |\n1 | Suite(name: \"a/b\", sets: [])\n  |             ^^^^^",
        );
    }
}

//! Tables of images with a class or with captions, by the source `Table`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alip_plan::pipeline::{Mode, Source};

use super::files::{Known, no_words};
use super::{Dataset, Layout, check_labels, class_names, class_of, sample_of, twice};
use crate::data::{DataError, Field, ListHash, RawSample, SampleError, SampleSource, TableSource, Texts, literal};

/// Names of the text fields, in the order in which the source gives them.
const VALUE: &str = "a";
const SPLIT: &str = "b";

/// Opens a `Layout::Table`.
pub(super) fn open(layout: &Layout, data: &Path) -> Result<Dataset, DataError> {
    let Layout::Table { path, root, image, class, captions, names, split_column, split, separator } = layout else {
        return Err(DataError::Unsupported { what: "another layout".into(), advice: "use `Table`".into() });
    };
    let path = data.join(path);
    let fail = |reason: String, advice: &str| DataError::file(&path, reason, advice);
    let column = match (class.is_empty(), captions.is_empty()) {
        (false, true) => class,
        (true, false) => captions,
        _ => return Err(fail("a table of classes or of captions".into(), "set `class` or `captions` in the suite")),
    };
    let mut texts = BTreeMap::from([(VALUE.to_string(), column.clone())]);
    if !split_column.is_empty() {
        texts.insert(SPLIT.into(), split_column.clone());
    }
    let text = |path: &Path| literal(&path.to_string_lossy());
    let table = TableSource::open(
        &Source::Table {
            path: text(&path),
            eval_path: String::new(),
            image: image.clone(),
            texts,
            root: if root.is_empty() { String::new() } else { literal(&absolute(&data.join(root))) },
            key: String::new(),
            separator: separator.clone(),
        },
        Mode::Train,
    )?;
    let (mut rows, mut values) = (Vec::new(), Vec::<Vec<String>>::new());
    let mut of_image = HashMap::new();
    for row in 0..table.len() {
        let mut cells = table.captions(row)?.into_iter();
        let Some(value) = cells.next() else {
            let why = table.sample(row).err().map_or_else(|| "it has no texts".into(), |error| error.to_string());
            return Err(fail(format!("row {} cannot be used: {why}", row + 1), "mend it, or remove it"));
        };
        if !split_column.is_empty() && cells.next().as_ref() != Some(split) {
            continue;
        }
        let own = *of_image.entry(table.name(row)).or_insert(rows.len());
        if own < rows.len() && !class.is_empty() {
            let reason = format!("row {} is of the image of row {}, `{}`", row + 1, rows[own] + 1, table.name(row));
            return Err(fail(reason, "give every image one class"));
        }
        if own == rows.len() {
            rows.push(row);
            values.push(Vec::new());
        }
        values[own].extend(if class.is_empty() { listed(value) } else { vec![value] });
    }
    if rows.is_empty() {
        let reason = format!("no row has `{split}` in column `{split_column}`");
        return Err(fail(reason, "set `split` to one that it has"));
    }
    let source = |known| Arc::new(Rows { table, rows, known });
    if class.is_empty() {
        return Ok(Dataset::of_captions(source(Known::Captions(values))));
    }
    let values: Vec<String> = values.into_iter().flatten().collect();
    let (names, labels) = numbered(
        &path,
        &values,
        Some(names).filter(|names| !names.is_empty()).map(|names| data.join(names)).as_deref(),
    )?;
    let folder = path.parent().unwrap_or(Path::new(""));
    Dataset::of_classes(source(Known::Classes(labels.clone())), (names, labels), folder)
}

/// The folder of a table's images is seen from that of the table.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).to_string_lossy().into_owned()
}

/// A caption, or those of a JSON list.
fn listed(cell: String) -> Vec<String> {
    match serde_json::from_str(&cell) {
        Ok(captions) if cell.trim_start().starts_with('[') => captions,
        _ => vec![cell],
    }
}

/// Names and numbers of classes from the cells of a column.
fn numbered(path: &Path, values: &[String], file: Option<&Path>) -> Result<(Vec<String>, Vec<u32>), DataError> {
    let number = |value: &String| value.trim().parse::<u32>().ok();
    let by_name = |names: &[String]| -> HashMap<String, u32> {
        names.iter().enumerate().map(|(class, name)| (name.clone(), class as u32)).collect()
    };
    let Some(file) = file else {
        if let Some(first) = values.iter().position(|value| number(value).is_some()) {
            let reason = format!("row {} has the class {}, a number without a name", first + 1, values[first].trim());
            return Err(DataError::file(path, reason, "set `names` in the suite to a file with a line for each class"));
        }
        let names: Vec<String> =
            values.iter().map(|value| value.trim().to_string()).collect::<BTreeSet<_>>().into_iter().collect();
        let known = by_name(&names);
        let labels = values.iter().map(|value| known[value.trim()]).collect();
        return Ok((names, labels));
    };
    let names = class_names(file)?;
    let known = by_name(&names);
    // A class may be called `1`: a column has names or numbers, never both.
    let named: Vec<Option<u32>> = values.iter().map(|value| known.get(value.trim()).copied()).collect();
    if let Some(labels) = named.iter().copied().collect() {
        if let Some((first, second)) = twice(&names) {
            let reason = format!("lines {} and {} are both `{}`", first + 1, second + 1, names[first]);
            let advice = format!("{} tells classes by their names: give each its own", path.display());
            return Err(DataError::file(file, reason, advice));
        }
        return Ok((names, labels));
    }
    let numbers: Vec<Option<u32>> = values.iter().map(number).collect();
    let Some(labels) = numbers.iter().copied().collect::<Option<Vec<u32>>>() else {
        return Err(neither(path, values, &named, &numbers, file));
    };
    check_labels(&names, &labels, file, |row| format!("row {} of {}", row + 1, path.display()))?;
    Ok((names, labels))
}

/// Why classes are neither all names nor all numbers.
fn neither(path: &Path, values: &[String], named: &[Option<u32>], numbers: &[Option<u32>], file: &Path) -> DataError {
    let row = |is: &dyn Fn(usize) -> bool| (0..values.len()).find(|&row| is(row));
    let shown = |row: usize| format!("row {} is of class `{}`", row + 1, values[row].trim());
    if let Some(unknown) = row(&|row| named[row].is_none() && numbers[row].is_none()) {
        let reason = format!("{}, which {} does not name", shown(unknown), file.display());
        return DataError::file(path, reason, "name the class there");
    }
    let both = [row(&|row| numbers[row].is_none()), row(&|row| named[row].is_none())];
    let both: Vec<String> = both.into_iter().flatten().map(shown).collect();
    DataError::file(path, both.join(", a name, and ") + ", a number", "write names in all rows, or numbers in all")
}

/// Rows of a table, the first of every image.
struct Rows {
    table: TableSource,
    rows: Vec<u64>,
    known: Known,
}

impl SampleSource for Rows {
    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let class = match &self.known {
            Known::Classes(labels) => class_of(labels, index),
            Known::Captions(_) => None,
        };
        match self.table.sample(self.rows[index as usize])?.fields.remove("jpeg") {
            Some(Field::Encoded(image)) => Ok(sample_of(image, class)),
            _ => Err(SampleError("it has no image".into())),
        }
    }

    fn name(&self, index: u64) -> String {
        self.table.name(self.rows[index as usize])
    }

    fn texts(&self) -> Option<&dyn Texts> {
        matches!(self.known, Known::Captions(_)).then_some(self)
    }

    fn file(&self, index: u64) -> Option<PathBuf> {
        self.table.file(self.rows[index as usize])
    }

    /// Of the table, and which of its rows are meant.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        hash.add(self.table.list_hash()?.as_bytes());
        self.rows.iter().for_each(|row| hash.add(&row.to_le_bytes()));
        Ok(hash.to_string())
    }
}

impl Texts for Rows {
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        match &self.known {
            Known::Captions(captions) => Ok(captions[index as usize].clone()),
            Known::Classes(_) => Ok(Vec::new()),
        }
    }

    fn words(&self, _: usize) -> Result<Vec<String>, DataError> {
        Err(no_words())
    }
}

//! The source `Table`: a row per image.

mod cells;
#[cfg(feature = "parquet")]
mod columns;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use alip_plan::pipeline::{Mode, Source};
use rayon::prelude::*;

use super::folder::read_image;
use super::list::List;
use super::parts::Parts;
use super::words::count_words;
use super::{Field, ListHash, RawSample, SampleSource, Texts, paths};
use crate::data::{DataError, SampleError};

/// Images that are looked for when a table is opened, evenly over it: if there is none of them, the paths are meant otherwise.
const LOOKED_FOR: u64 = 64;

/// Rows of local tables; see [`Source::Table`].
///
/// Of every row only its place is kept, 16 bytes. Cells are read when a sample is asked for, by whatever thread.
pub struct TableSource {
    tables: Parts<Table>,
    /// Names of the text fields, in the order of their columns.
    texts: Vec<String>,
    /// What it was opened from: words are always those of the rows that are trained on.
    declared: Source,
}

/// One file.
struct Table {
    path: PathBuf,
    /// Image files are relative to it.
    root: PathBuf,
    list: List,
    form: Form,
    /// Names of the columns that are read: that of the image's path, if there is one, then the texts.
    wanted: Vec<String>,
    /// The images, where the table itself holds them.
    images: Option<Images>,
}

#[cfg(feature = "parquet")]
use self::columns::Images;

/// Tables as text hold none.
#[cfg(not(feature = "parquet"))]
enum Images {}

#[cfg(feature = "parquet")]
fn read_from(images: &Images, row: usize) -> Result<Vec<u8>, SampleError> {
    images.read(row)
}

#[cfg(not(feature = "parquet"))]
fn read_from(images: &Images, _: usize) -> Result<Vec<u8>, SampleError> {
    match *images {}
}

/// How a row is written.
enum Form {
    /// A JSON object.
    Object,
    /// Cells, and which of them are wanted.
    Cells { separator: u8, width: usize, columns: Vec<usize> },
}

impl TableSource {
    /// Opens a `Source::Table`: the rows that are trained on, or those that are held out, where there are any.
    ///
    /// # Errors
    /// A table cannot be read or has no such columns; none of the images is where the table says.
    pub fn open(source: &Source, mode: Mode) -> Result<TableSource, DataError> {
        let Source::Table { path, eval_path, image, texts, root, separator } = source else {
            return Err(DataError::Unsupported {
                what: format!("reading a `{}` source as a table", source.kind()),
                advice: "use `Table`".into(),
            });
        };
        let mut files = paths::files(path)?;
        if mode == Mode::Eval && !eval_path.is_empty() {
            let beside = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).join(eval_path);
            files = paths::files(&beside.to_string_lossy())?;
        }
        let wanted: Vec<String> = std::iter::once(image).chain(texts.values()).cloned().collect();
        let separator = separator.bytes().next();
        let root = PathBuf::from(paths::expand(root)?);
        let open = |path: &PathBuf| Table::open(path, &root, separator, &wanted);
        // Of several that are wrong the first is named.
        let tables: Vec<Result<Table, DataError>> = files.par_iter().map(open).collect();
        let tables = Parts::new(tables.into_iter().collect::<Result<_, _>>()?, |table| table.list.len());
        let source = TableSource { tables, texts: texts.keys().cloned().collect(), declared: source.clone() };
        source.check_images()?;
        Ok(source)
    }

    /// That the paths of the tables lead to images.
    fn check_images(&self) -> Result<(), DataError> {
        let step = self.len().div_ceil(LOOKED_FOR).max(1) as usize;
        let mut first = None;
        for index in (0..self.len()).step_by(step) {
            let (table, at) = self.tables.place(index);
            if table.images.is_some() {
                return Ok(());
            }
            let Ok(row) = table.row(at) else { continue };
            let Ok(image) = table.image(&row[0]) else { return Ok(()) };
            if image.is_file() {
                return Ok(());
            }
            first.get_or_insert((image, table));
        }
        let Some((image, table)) = first else { return Ok(()) };
        let reason = format!(
            "no such image, nor any other of {} that {} names",
            LOOKED_FOR.min(self.len()),
            paths::name(&table.path)
        );
        let root = table.root.display();
        let advice =
            format!("paths are relative to `{root}`: set `root` of the source to the folder that they are relative to");
        Err(DataError::file(&image, reason, advice))
    }
}

impl Table {
    fn open(path: &Path, root: &Path, separator: Option<u8>, wanted: &[String]) -> Result<Table, DataError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let (list, form) = match extension.to_str() {
            Some("jsonl" | "ndjson") => (List::open(path, "give the path of a table", |_| Ok(true))?, Form::Object),
            Some("parquet") => return Table::of_columns(path, root, wanted),
            Some("csv" | "tsv" | "txt") => {
                let (names, separator, list) = cells::open(path, separator)?;
                let column = |wanted: &String| {
                    let of = |name: &String| name.trim() == wanted;
                    match names.iter().filter(|name| of(name)).count() {
                        0 => Err(no_column(path, wanted, &names)),
                        1 => Ok(names.iter().position(of).unwrap_or_default()),
                        _ => Err(DataError::file(path, format!("two columns `{wanted}`"), "give them different names")),
                    }
                };
                let columns = wanted.iter().map(column).collect::<Result<_, _>>()?;
                (list, Form::Cells { separator, width: names.len(), columns })
            }
            _ => {
                let advice = "give it the extension of what it is: `.csv`, `.tsv`, `.jsonl` or `.parquet`";
                return Err(DataError::file(path, "no kind of table that is known", advice));
            }
        };
        if list.len() == 0 {
            return Err(DataError::file(path, "no rows in it", "give a table with a row per image"));
        }
        let table = Table::new(path, root, (list, form), wanted, None);
        match (&table.form, table.row(0)) {
            // What the first line lacks, others are likely to lack too.
            (Form::Object, Err(error)) => {
                Err(DataError::Line { path: path.to_path_buf(), line: 1, reason: error.to_string() })
            }
            _ => Ok(table),
        }
    }

    fn new(path: &Path, root: &Path, (list, form): (List, Form), wanted: &[String], images: Option<Images>) -> Table {
        let folder = path.parent().unwrap_or(Path::new(""));
        let root = if root.as_os_str().is_empty() { folder.to_path_buf() } else { folder.join(root) };
        Table { path: path.to_path_buf(), root, list, form, wanted: wanted.to_vec(), images }
    }

    #[cfg(feature = "parquet")]
    fn of_columns(path: &Path, root: &Path, wanted: &[String]) -> Result<Table, DataError> {
        let columns::Columns { list, images } = columns::open(path, wanted)?;
        if list.len() == 0 {
            return Err(DataError::file(path, "no rows in it", "give a table with a row per image"));
        }
        let lines = if images.is_some() { &wanted[1..] } else { wanted };
        Ok(Table::new(path, root, (list, Form::Object), lines, images))
    }

    #[cfg(not(feature = "parquet"))]
    fn of_columns(path: &Path, _: &Path, _: &[String]) -> Result<Table, DataError> {
        let advice = "build it with `--features parquet`, or write the table as CSV";
        Err(DataError::file(path, "this program was built without what reads Parquet", advice))
    }

    /// What is wanted of row `at`: the image's path, unless the table holds the image, then the texts.
    fn row(&self, at: usize) -> Result<Vec<String>, SampleError> {
        let line = self.list.line(at)?;
        let row: Vec<String> = match &self.form {
            Form::Object => {
                let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).map_err(|_| {
                    SampleError(r#"no JSON object, as in {"filepath": "a.jpg", "title": "a cat"}"#.into())
                })?;
                let text = |name: &String| match object.get(name) {
                    Some(serde_json::Value::String(text)) => Ok(text.clone()),
                    Some(serde_json::Value::Null) => Ok(String::new()),
                    Some(_) => Err(SampleError(format!("`{name}` is no text"))),
                    None => {
                        let known: Vec<&str> = object.keys().map(String::as_str).collect();
                        Err(SampleError(format!("no `{name}`; it has `{}`", known.join("`, `"))))
                    }
                };
                self.wanted.iter().map(text).collect::<Result<_, _>>()?
            }
            Form::Cells { separator, width, columns } => {
                let cells = cells::cells(&line, *separator);
                if cells.len() != *width {
                    return Err(SampleError(format!(
                        "a row of {} cells, where {width} columns have names",
                        cells.len()
                    )));
                }
                columns.iter().map(|&column| cells[column].clone()).collect()
            }
        };
        match row.iter().zip(&self.wanted).find(|(text, _)| text.trim().is_empty()) {
            Some((_, name)) => Err(SampleError(format!("nothing in column `{name}`"))),
            None => Ok(row),
        }
    }

    /// The texts of row `at`.
    fn texts(&self, at: usize) -> Vec<String> {
        // One that cannot be used has none.
        let mut row = self.row(at).unwrap_or_default();
        if self.images.is_none() && !row.is_empty() {
            row.remove(0);
        }
        row
    }

    /// Where the image of a row is.
    fn image(&self, named: &str) -> Result<PathBuf, SampleError> {
        match named.split_once("://") {
            Some((scheme, _)) => {
                Err(SampleError(format!("its image is an address (`{scheme}://`), not a file: download it first")))
            }
            None => Ok(self.root.join(named)),
        }
    }
}

fn no_column(path: &Path, wanted: &str, names: &[String]) -> DataError {
    let reason = format!("no column `{wanted}`");
    let advice = match names {
        [one] => format!(
            "its first row is one cell, {one:?}: set `separator` of the source, or write names of columns there"
        ),
        _ => format!("it has `{}`: set `image` and `texts` of the source", names.join("`, `")),
    };
    DataError::file(path, reason, advice)
}

impl SampleSource for TableSource {
    fn len(&self) -> u64 {
        self.tables.len()
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        let (table, at) = self.tables.place(index);
        let mut row = table.row(at)?.into_iter();
        let image = match &table.images {
            Some(images) => read_from(images, at)?,
            None => {
                let path = table.image(&row.next().unwrap_or_default())?;
                read_image(&path).map_err(|error| SampleError(format!("its image {error}")))?
            }
        };
        let texts = self.texts.iter().cloned().zip(row.map(Field::Text));
        let fields = std::iter::once(("jpeg".to_string(), Field::Encoded(image))).chain(texts).collect();
        Ok(RawSample { fields, ..RawSample::default() })
    }

    fn name(&self, index: u64) -> String {
        let (table, at) = self.tables.place(index);
        let image = table.row(at).ok().filter(|_| table.images.is_none()).and_then(|row| row.into_iter().next());
        // The names of columns are no row.
        image.unwrap_or_else(|| format!("row {} of {}", at + 1, paths::name(&table.path)))
    }

    fn texts(&self) -> Option<&dyn Texts> {
        Some(self)
    }

    /// Of what the rows hold.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        self.tables.iter().for_each(|table| table.list.hash(&mut hash));
        Ok(hash.to_string())
    }
}

impl Texts for TableSource {
    /// The texts of the row; of one that cannot be used, none.
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        let (table, at) = self.tables.place(index);
        Ok(table.texts(at))
    }

    fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        let trained = TableSource::open(&self.declared, Mode::Train)?;
        let captions = |index| {
            let (table, at) = trained.tables.place(index as u64);
            Ok(table.texts(at))
        };
        let (first, _) = trained.tables.place(0);
        let fail = |error: SampleError| DataError::file(&first.path, error, "put back what it was");
        count_words(trained.len() as usize, captions, limit).map_err(fail)
    }
}

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
use super::{Field, ListHash, RawSample, SampleSource, Texts, hash_sizes, paths};
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
    /// Whether the last column that is read has the keys of the samples.
    has_keys: bool,
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
    /// Names of the columns that are read: that of the image's path, if there is one, then the texts, then that of keys.
    wanted: Vec<String>,
    /// The images, where the table itself holds them.
    images: Option<Images>,
}

#[cfg(feature = "parquet")]
use self::columns::Images;

#[cfg(feature = "parquet")]
fn hash_images(images: &Images, hash: &mut ListHash) {
    images.hash(hash);
}

#[cfg(not(feature = "parquet"))]
fn hash_images(images: &Images, _: &mut ListHash) {
    match *images {}
}

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
        let Source::Table { path, eval_path, image, texts, root, key, separator } = source else {
            return Err(DataError::Unsupported {
                what: format!("reading a `{}` source as a table", source.kind()),
                advice: "use `Table`".into(),
            });
        };
        let mut files = paths::files(path)?;
        if !eval_path.is_empty() {
            let beside = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).join(eval_path);
            let held_out = paths::files(&beside.to_string_lossy())?;
            if let Some(both) = held_out.iter().find(|file| files.iter().any(|other| is_same(file, other))) {
                let advice = "let `path` name others than `eval_path`";
                return Err(DataError::file(both, "rows that are held out would be trained on", advice));
            }
            if mode == Mode::Eval {
                files = held_out;
            }
        }
        let own_key = Some(key).filter(|key| !key.is_empty());
        let wanted: Vec<String> = std::iter::once(image).chain(texts.values()).chain(own_key).cloned().collect();
        let separator = separator.bytes().next();
        let root = paths::folder(root)?;
        let open = |path: &PathBuf| Table::open(path, &root, separator, &wanted);
        // Of several that are wrong the first is named.
        let tables: Vec<Result<Table, DataError>> = files.par_iter().map(open).collect();
        let tables = Parts::new(tables.into_iter().collect::<Result<_, _>>()?, |table| table.list.len());
        let texts = texts.keys().cloned().collect();
        let source = TableSource { tables, texts, has_keys: own_key.is_some(), declared: source.clone() };
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
        // What the first row lacks, others are likely to lack too.
        if let Form::Object = table.form
            && let Err(error) = table.list.line(0).and_then(|line| table.has_columns(&line))
        {
            let advice = "name columns that it has by `image` and `texts` of the source";
            return Err(DataError::file(path, format!("its first row: {error}"), advice));
        }
        Ok(table)
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
            Form::Object => self.object(&line)?,
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

    /// That a row is a JSON object, and has what is wanted, whatever that is.
    fn has_columns(&self, line: &str) -> Result<(), SampleError> {
        let object = parsed(line)?;
        self.wanted.iter().try_for_each(|name| object.get(name).map(|_| ()).ok_or_else(|| lacks(&object, name)))
    }

    /// The same of a row that is a JSON object; what is there and empty is no text.
    fn object(&self, line: &str) -> Result<Vec<String>, SampleError> {
        let object = parsed(line)?;
        let text = |name: &String| match object.get(name) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(serde_json::Value::Null) => Ok(String::new()),
            Some(_) => Err(SampleError(format!("`{name}` is no text"))),
            None => Err(lacks(&object, name)),
        };
        self.wanted.iter().map(text).collect()
    }

    /// The first `count` texts of row `at`; one that cannot be used has none.
    fn texts(&self, at: usize, count: usize) -> Vec<String> {
        let row = self.row(at).unwrap_or_default();
        row.into_iter().skip(usize::from(self.images.is_none())).take(count).collect()
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

type Object = serde_json::Map<String, serde_json::Value>;

fn parsed(line: &str) -> Result<Object, SampleError> {
    let form = r#"no JSON object, as in {"filepath": "a.jpg", "title": "a cat"}"#;
    serde_json::from_str(line).map_err(|_| SampleError(form.into()))
}

fn lacks(object: &Object, name: &str) -> SampleError {
    let known: Vec<&str> = object.keys().map(String::as_str).collect();
    SampleError(format!("no `{name}`; it has `{}`", known.join("`, `")))
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
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

    fn key(&self, index: u64) -> String {
        let (table, at) = self.tables.place(index);
        let key = || table.row(at).ok().filter(|_| self.has_keys)?.pop();
        key().unwrap_or_else(|| self.name(index))
    }

    fn texts(&self) -> Option<&dyn Texts> {
        Some(self)
    }

    fn file(&self, index: u64) -> Option<PathBuf> {
        let (table, at) = self.tables.place(index);
        table.image(table.row(at).ok().filter(|_| table.images.is_none())?.first()?).ok()
    }

    /// Of what the rows hold, of which columns are read, and of the sizes of some images.
    fn list_hash(&self) -> Result<String, DataError> {
        let mut hash = ListHash::default();
        for table in self.tables.iter() {
            table.list.hash(&mut hash);
            if let Form::Cells { separator, width, columns } = &table.form {
                hash.add(&[*separator]);
                columns.iter().chain([width]).for_each(|column| hash.add(&column.to_le_bytes()));
            }
            if let Some(images) = &table.images {
                hash_images(images, &mut hash);
            }
        }
        hash_sizes(&mut hash, self.len(), |index| self.file(index));
        Ok(hash.to_string())
    }
}

impl Texts for TableSource {
    /// The texts of the row; of one that cannot be used, none.
    fn captions(&self, index: u64) -> Result<Vec<String>, DataError> {
        let (table, at) = self.tables.place(index);
        Ok(table.texts(at, self.texts.len()))
    }

    fn words(&self, limit: usize) -> Result<Vec<String>, DataError> {
        let trained = TableSource::open(&self.declared, Mode::Train)?;
        let captions = |index| {
            let (table, at) = trained.tables.place(index as u64);
            Ok(table.texts(at, trained.texts.len()))
        };
        let (first, _) = trained.tables.place(0);
        let fail = |error: SampleError| DataError::file(&first.path, error, "put back what it was");
        count_words(trained.len() as usize, captions, limit).map_err(fail)
    }
}

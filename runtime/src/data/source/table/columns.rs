//! Tables as Parquet files. Their rows cannot be read one by one, so the texts are written out once, as lines of JSON in the user's
//! cache; images that a column holds stay where they are, since the page of one is found by the heads of those before.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::ColumnReader;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::no_column;
use crate::data::panics::caught;
use crate::data::source::list::List;
use crate::data::source::webdataset::{MAX_IMAGE, cache_folder};
use crate::data::source::{ListHash, paths};
use crate::data::{DataError, SampleError};
use crate::file::write_beside;

/// What the first line of a file of texts begins with; another form of these files has another.
const MARK: &str = "{\"alip table 1\":";

/// The texts of a table, and its images if it holds them.
pub(super) struct Columns {
    pub(super) list: List,
    pub(super) images: Option<Images>,
}

/// Opens a table of which columns are wanted: that of the image first.
///
/// # Errors
/// The file cannot be read, is no Parquet file, or has no such columns.
pub(super) fn open(path: &Path, wanted: &[String]) -> Result<Columns, DataError> {
    let advice = "give a Parquet file, not compressed or by snappy, gzip or zstd";
    let fail = |why: String| DataError::file(path, why, advice);
    let file = File::open(path).map_err(|error| fail(error.to_string()))?;
    let about = file.metadata().map_err(|error| fail(error.to_string()))?;
    // A reader that panics on a hostile file refuses it, and nothing else.
    let opened = caught(|| {
        let reader = SerializedFileReader::new(Anywhere { file: Arc::new(file), length: about.len() })?;
        Ok(Arc::new(reader))
    });
    let reader =
        opened.unwrap_or_else(|words| Err(ParquetError::General(words))).map_err(|error| fail(error.to_string()))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let names: Vec<String> = schema.root_schema().get_fields().iter().map(|field| field.name().to_string()).collect();
    for name in wanted {
        let field = schema.root_schema().get_fields().iter().find(|field| field.name() == name);
        let field = field.ok_or_else(|| no_column(path, name, &names))?;
        if !field.is_primitive() || field.get_physical_type() != Physical::BYTE_ARRAY {
            let advice = "name a column of texts, or of the images themselves";
            return Err(DataError::file(path, format!("column `{name}` holds no texts"), advice));
        }
    }
    let images = Images::of(&reader, &wanted[0], path)?;
    let texts = if images.is_some() { &wanted[1..] } else { wanted };
    let kept = kept_at(path, &about, texts);
    let is_known = |kept: &Path| {
        let mut start = vec![0; identity(path, &about).len()];
        File::open(kept).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == identity(path, &about)
    };
    if !is_known(&kept) {
        let written = caught(|| write_texts(&reader, texts, &identity(path, &about), &kept));
        written.unwrap_or_else(Err).map_err(fail)?;
    }
    let list = List::open(&kept, "remove it", |line| Ok(!line.starts_with(MARK)))?.named(path);
    Ok(Columns { list, images })
}

/// What a file of texts begins with: the table that it is of, as it was.
fn identity(path: &Path, about: &fs::Metadata) -> Vec<u8> {
    let time = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let identity = serde_json::json!([path.to_string_lossy(), about.len(), time.as_nanos().to_string()]);
    format!("{MARK}{identity}}}\n").into_bytes()
}

/// Where the texts of a table are kept.
fn kept_at(path: &Path, about: &fs::Metadata, texts: &[String]) -> PathBuf {
    let mut hash = ListHash::default();
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    hash.add(whole.as_os_str().as_encoded_bytes());
    hash.add(&identity(path, about));
    texts.iter().for_each(|name| hash.add(name.as_bytes()));
    let folder = cache_folder().unwrap_or_else(|| std::env::temp_dir().join("alip"));
    folder.with_file_name("tables").join(format!("{hash}.jsonl"))
}

type Reader = SerializedFileReader<Anywhere>;

/// Writes a line with the texts of each row.
fn write_texts(reader: &Reader, texts: &[String], identity: &[u8], kept: &Path) -> Result<(), String> {
    let show = |error: ParquetError| error.to_string();
    let root = reader.metadata().file_metadata().schema_descr().root_schema();
    let chosen = root.get_fields().iter().filter(|field| texts.iter().any(|name| name == field.name())).cloned();
    let chosen = Type::group_type_builder(root.name()).with_fields(chosen.collect()).build().map_err(show)?;
    let rows = reader.get_row_iter(Some(chosen)).map_err(show)?;
    let folder = kept.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let fail = |error: std::io::Error| format!("its texts cannot be kept in {}: {error}", kept.display());
    write_beside(kept, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(identity).map_err(fail).map_err(Kept)?;
        for row in rows {
            let row = row.map_err(show).map_err(Kept)?;
            let mut object = serde_json::Map::new();
            for (name, field) in row.get_column_iter() {
                object.insert(name.clone(), text(field));
            }
            serde_json::to_writer(&mut out, &object).map_err(|error| Kept(fail(error.into())))?;
            out.write_all(b"\n").map_err(fail).map_err(Kept)?;
        }
        out.flush().map_err(fail).map_err(Kept)
    })
    .map_err(|Kept(why)| why)
}

/// Why texts could not be kept.
struct Kept(String);

impl From<crate::file::FileError> for Kept {
    fn from(error: crate::file::FileError) -> Kept {
        Kept(error.to_string())
    }
}

/// A cell as JSON; what is no text is a number, which no text field takes.
fn text(field: &Field) -> serde_json::Value {
    match field {
        Field::Str(text) => text.clone().into(),
        // Some programs do not say that what they write is text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bytes.len().into(),
        },
        _ => serde_json::Value::Null,
    }
}

/// A column of image files.
pub(super) struct Images {
    reader: Arc<Reader>,
    column: usize,
    name: String,
    /// Rows before the end of each group.
    ends: Vec<u64>,
}

impl Images {
    /// The column, if it holds bytes and not the text of a path.
    fn of(reader: &Arc<Reader>, name: &str, path: &Path) -> Result<Option<Images>, DataError> {
        let schema = reader.metadata().file_metadata().schema_descr();
        let Some(column) = (0..schema.num_columns()).find(|&column| schema.column(column).path().string() == name)
        else {
            return Ok(None);
        };
        let described = schema.column(column);
        if described.converted_type() == ConvertedType::UTF8
            || described.logical_type_ref() == Some(&LogicalType::String)
        {
            return Ok(None);
        }
        let mut rows = 0;
        let mut ends = Vec::with_capacity(reader.num_row_groups());
        for group in reader.metadata().row_groups() {
            let more = u64::try_from(group.num_rows()).ok().and_then(|more| u64::checked_add(rows, more));
            rows = more.ok_or_else(|| DataError::file(path, "a group of less than no rows", "write it anew"))?;
            ends.push(rows);
        }
        Ok(Some(Images { reader: reader.clone(), column, name: name.to_string(), ends }))
    }

    /// Adds how many images there are and how much room they take to a hash: other images take another.
    pub(super) fn hash(&self, hash: &mut ListHash) {
        for group in self.reader.metadata().row_groups() {
            let bytes = group.column(self.column).compressed_size();
            [group.num_rows(), bytes].into_iter().for_each(|number| hash.add(&number.to_le_bytes()));
        }
    }

    /// The image of a row.
    pub(super) fn read(&self, row: usize) -> Result<Vec<u8>, SampleError> {
        let fail = |error: ParquetError| SampleError(format!("its `{}` cannot be read: {error}", self.name));
        let group = self.ends.partition_point(|&end| end <= row as u64);
        let before = group.checked_sub(1).map_or(0, |before| self.ends[before]);
        if group == self.ends.len() {
            return Err(SampleError(format!("there is no row {row}")));
        }
        let column =
            self.reader.get_row_group(group).and_then(|group| group.get_column_reader(self.column)).map_err(fail)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = column else {
            return Err(SampleError(format!("its `{}` holds no images", self.name)));
        };
        let skip = (row as u64 - before) as usize;
        let skipped = column.skip_records(skip).map_err(fail)?;
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        column.read_records(1, Some(&mut levels), None, &mut values).map_err(fail)?;
        match values.first() {
            Some(bytes) if skipped == skip && bytes.len() as u64 <= MAX_IMAGE => Ok(bytes.data().to_vec()),
            Some(bytes) if skipped == skip => {
                let (size, most) = (bytes.len() >> 20, MAX_IMAGE >> 20);
                Err(SampleError(format!("its `{}` has {size} MiB, more than the allowed {most}", self.name)))
            }
            _ => Err(SampleError(format!("nothing in column `{}`", self.name))),
        }
    }
}

/// A file that several threads read, each at its own place.
struct Anywhere {
    file: Arc<File>,
    length: u64,
}

/// What follows a place in it.
struct Following {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Length for Anywhere {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Anywhere {
    type T = BufReader<Following>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(Following { file: self.file.clone(), at: start, end: self.length }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.length)));
        }
        let mut bytes = vec![0; length];
        paths::read_at(&self.file, &mut bytes, start)?;
        Ok(bytes.into())
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.end.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        paths::read_at(&self.file, &mut buffer[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

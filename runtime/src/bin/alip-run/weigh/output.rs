//! The files of weights.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use alip_runtime::eval::Weighed;
use alip_runtime::file::{FileError, write_beside};
use serde::Serialize;

use crate::{Failure, Outcome};

/// A kind of file, told by its extension.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON lines.
    Lines,
    /// A Parquet table.
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Kind {
    /// That of a file to be written.
    pub(super) fn of(path: &Path) -> Outcome<Kind> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let why = match extension.as_deref() {
            Some("jsonl" | "ndjson") => return Ok(Kind::Lines),
            #[cfg(feature = "parquet")]
            Some("parquet") => return Ok(Kind::Parquet),
            #[cfg(not(feature = "parquet"))]
            Some("parquet") => "this program was built without `--features parquet`; write .jsonl",
            _ => "write a file that ends in .jsonl or .parquet",
        };
        Err(Failure::message(format!("--out {}: {why}", path.display())))
    }
}

/// A line of JSON; numbers have the fewest digits that tell them from other f32.
#[derive(Default, Serialize)]
struct Line<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    weight: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_similarity: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_similarity: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caption_similarity: Option<f32>,
}

impl Line<'_> {
    fn write(&self, file: &mut impl Write, path: &Path) -> Result<(), FileError> {
        let line = serde_json::to_string(self).unwrap_or_default();
        writeln!(file, "{line}").map_err(FileError::io(path, "write"))
    }
}

/// Weights on their way into a file.
pub(super) enum Output<'a> {
    Lines(&'a Path, BufWriter<&'a mut File>),
    #[cfg(feature = "parquet")]
    Parquet(Box<table::Table<'a>>),
}

impl<'a> Output<'a> {
    /// Into an open file.
    pub(super) fn begin(kind: Kind, path: &'a Path, file: &'a mut File) -> Result<Output<'a>, FileError> {
        match kind {
            Kind::Lines => Ok(Output::Lines(path, BufWriter::new(file))),
            #[cfg(feature = "parquet")]
            Kind::Parquet => Ok(Output::Parquet(Box::new(table::Table::begin(path, file)?))),
        }
    }

    /// Adds a sample.
    pub(super) fn write(&mut self, key: &str, sample: &Weighed) -> Result<(), FileError> {
        match self {
            Output::Lines(path, file) => {
                let Weighed { row, weight, text_similarity, raw_similarity, caption_similarity } = *sample;
                let line = Line {
                    key,
                    index: Some(row),
                    weight,
                    text_similarity: Some(text_similarity),
                    raw_similarity: Some(raw_similarity),
                    caption_similarity: Some(caption_similarity),
                };
                line.write(file, path)
            }
            #[cfg(feature = "parquet")]
            Output::Parquet(table) => table.add(key, sample),
        }
    }

    /// Writes what is left.
    pub(super) fn finish(self) -> Result<(), FileError> {
        match self {
            Output::Lines(path, mut file) => file.flush().map_err(FileError::io(path, "write")),
            #[cfg(feature = "parquet")]
            Output::Parquet(table) => table.finish(),
        }
    }
}

/// Writes lines with the keys and weights of samples.
pub(super) fn write_list(path: &Path, list: impl Iterator<Item = (String, f32)>) -> Result<(), FileError> {
    write_beside(path, |file| {
        let mut file = BufWriter::new(file);
        for (key, weight) in list {
            Line { key: &key, weight, ..Line::default() }.write(&mut file, path)?;
        }
        file.flush().map_err(FileError::io(path, "write"))
    })
}

#[cfg(feature = "parquet")]
pub(super) mod table {
    //! Weights as a Parquet table: `key` (text), `index` (i64), and four columns of f32.

    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use alip_runtime::eval::Weighed;
    use alip_runtime::file::FileError;
    use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
    use parquet::errors::ParquetError;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::schema::parser::parse_message_type;

    const SCHEMA: &str = "message weights {
        REQUIRED BYTE_ARRAY key (UTF8);
        REQUIRED INT64 index;
        REQUIRED FLOAT weight;
        REQUIRED FLOAT text_similarity;
        REQUIRED FLOAT raw_similarity;
        REQUIRED FLOAT caption_similarity;
    }";

    /// Rows that are kept in memory before they are written: some megabytes.
    const GROUP: usize = 1 << 16;

    pub(crate) struct Table<'a> {
        path: &'a Path,
        file: SerializedFileWriter<&'a mut File>,
        keys: Vec<ByteArray>,
        samples: Vec<Weighed>,
    }

    impl<'a> Table<'a> {
        pub(super) fn begin(path: &'a Path, file: &'a mut File) -> Result<Table<'a>, FileError> {
            let schema = parse_message_type(SCHEMA).map_err(|error| failed(path, &error))?;
            let file = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(WriterProperties::default()));
            let file = file.map_err(|error| failed(path, &error))?;
            Ok(Table { path, file, keys: Vec::new(), samples: Vec::new() })
        }

        pub(super) fn add(&mut self, key: &str, sample: &Weighed) -> Result<(), FileError> {
            self.keys.push(key.as_bytes().to_vec().into());
            self.samples.push(*sample);
            if self.samples.len() == GROUP { self.flush() } else { Ok(()) }
        }

        pub(super) fn finish(mut self) -> Result<(), FileError> {
            self.flush()?;
            self.file.close().map(drop).map_err(|error| failed(self.path, &error))
        }

        /// Writes the rows in memory as a group of their own.
        fn flush(&mut self) -> Result<(), FileError> {
            let path = self.path;
            self.write_group().map_err(|error| failed(path, &error))
        }

        fn write_group(&mut self) -> Result<(), ParquetError> {
            let (keys, samples) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.samples));
            if samples.is_empty() {
                return Ok(());
            }
            let floats = |of: fn(&Weighed) -> f32| samples.iter().map(of).collect::<Vec<f32>>();
            let mut group = self.file.next_row_group()?;
            column::<ByteArrayType>(&mut group, &keys)?;
            column::<Int64Type>(&mut group, &samples.iter().map(|sample| sample.row as i64).collect::<Vec<_>>())?;
            column::<FloatType>(&mut group, &floats(|sample| sample.weight))?;
            column::<FloatType>(&mut group, &floats(|sample| sample.text_similarity))?;
            column::<FloatType>(&mut group, &floats(|sample| sample.raw_similarity))?;
            column::<FloatType>(&mut group, &floats(|sample| sample.caption_similarity))?;
            group.close().map(drop)
        }
    }

    /// Writes the next column of a group.
    fn column<T: DataType>(
        group: &mut SerializedRowGroupWriter<'_, &mut File>,
        values: &[T::T],
    ) -> Result<(), ParquetError> {
        let Some(mut column) = group.next_column()? else { return Ok(()) };
        column.typed::<T>().write_batch(values, None, None)?;
        column.close()
    }

    fn failed(path: &Path, error: &ParquetError) -> FileError {
        FileError::io(path, "write")(std::io::Error::other(error.to_string()))
    }
}

//! Embeddings in a file.

use std::path::Path;

use safetensors::tensor::Dtype as FileType;

use crate::file::FileError;
use crate::run::tensors::{self, Entry, TensorFile};
use alip_plan::DType;

/// Header keys: what the embeddings are of, and the names of the rows of a tensor.
const MODEL: &str = "model";
const NAMES: &str = "names.";

/// Unit embeddings with a name for each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    /// A file, or a text.
    pub names: Vec<String>,
    /// Row-major f32 \[names, D\].
    pub rows: Vec<f32>,
}

/// Embeddings of images and texts by one model: tensors `images` and `texts` f32 \[N, D\] of a safetensors file, whose header has
/// the names of the rows as lists in JSON (`names.images`, `names.texts`) and the hash of the model's weights (`model`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// Hash of the weights.
    pub model: String,
    /// Numbers of an embedding.
    pub dim: usize,
    /// Of images; empty if there are none.
    pub images: Named,
    /// Of texts.
    pub texts: Named,
}

impl Embeddings {
    fn parts(&self) -> [(&'static str, &Named); 2] {
        [("images", &self.images), ("texts", &self.texts)]
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let parts = self.parts().into_iter().filter(|(_, named)| !named.names.is_empty());
        let (mut entries, mut texts) = (Vec::new(), vec![(MODEL.to_string(), self.model.clone())]);
        for (name, named) in parts {
            let shape = vec![named.names.len() as u64, self.dim as u64];
            entries.push(Entry { name: name.into(), dtype: FileType::F32, shape });
            texts.push((format!("{NAMES}{name}"), serde_json::json!(named.names).to_string()));
        }
        let texts: Vec<(&str, String)> = texts.iter().map(|(key, text)| (key.as_str(), text.clone())).collect();
        tensors::write(path, &texts, &entries, |entry| -> Result<_, FileError> {
            let named = if entry.name == "images" { &self.images } else { &self.texts };
            Ok(named.rows.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
    }

    /// Reads what [`Embeddings::write`] wrote.
    ///
    /// # Errors
    /// The file cannot be read or is another.
    pub fn read(path: &Path) -> Result<Embeddings, FileError> {
        let damaged = |why: &str| FileError::Damaged { path: path.to_path_buf(), why: why.to_string() };
        let mut file = TensorFile::open(path)?;
        let model = file.text(MODEL).map(str::to_string);
        let model = model.ok_or_else(|| damaged("holds no embeddings that `alip-run embed` wrote"))?;
        let mut found = Embeddings { model, ..Embeddings::default() };
        for name in ["images", "texts"] {
            if file.info(name).is_none() {
                continue;
            }
            let tensor = file.read(name, DType::F32)?;
            let names = file.text(&format!("{NAMES}{name}")).and_then(|names| serde_json::from_str(names).ok());
            let names: Vec<String> = names.ok_or_else(|| damaged("the names of its rows are missing"))?;
            match *tensor.shape() {
                [rows, dim] if rows == names.len() as u64 && (found.dim == 0 || found.dim as u64 == dim) => {
                    found.dim = dim as usize;
                }
                _ => return Err(damaged("the names of its rows are not as many as the rows")),
            }
            let named = Named { names, rows: tensor.to_f32().into_owned() };
            if name == "images" { found.images = named } else { found.texts = named }
        }
        Ok(found)
    }
}

/// A table of f32 in the format of NumPy, version 1.0: `\x93NUMPY`, then a header of a Python literal padded to 64 bytes.
pub fn npy(rows: &[f32], dim: usize) -> Vec<u8> {
    let count = rows.len() / dim.max(1);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}");
    // Magic, version, length and header together are a multiple of 64 bytes, the last of which is a line's end.
    let before = 10;
    let padded = (before + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', padded - before - header.len() - 1));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let images = Named { names: vec!["a.jpg".into(), "b, \"c\".png".into()], rows: vec![0.6, 0.8, -1.0, 0.0] };
        let wanted = Embeddings { model: "m".into(), dim: 2, images, texts: Named::default() };
        wanted.write(&path).unwrap();
        assert_eq!(Embeddings::read(&path).unwrap(), wanted);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let check = |message: &str| {
            let found = Embeddings::read(&path).unwrap_err().to_string();
            assert_eq!(found.replace(path.to_str().unwrap(), "FILE"), message);
        };
        tensors::write(&path, &[], &[], |_| -> Result<_, FileError> { Ok(vec![]) }).unwrap();
        check("FILE: holds no embeddings that `alip-run embed` wrote");
        let entry = Entry { name: "images".into(), dtype: FileType::F32, shape: vec![2, 1] };
        let texts = [("model", "m".to_string()), ("names.images", "[\"a\"]".to_string())];
        tensors::write(&path, &texts, &[entry], |_| -> Result<_, FileError> { Ok(vec![0; 8]) }).unwrap();
        check("FILE: the names of its rows are not as many as the rows");
    }

    #[test]
    fn the_format_of_numpy() {
        let bytes = npy(&[1.0, 2.0, 3.0], 3);
        assert_eq!((bytes.len() - 12) % 64, 0);
        let header = String::from_utf8_lossy(&bytes[10..bytes.len() - 12]).into_owned();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }  "), "{header}");
        assert!(header.ends_with(" \n"));
        assert_eq!(bytes[bytes.len() - 12..], [0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64]);
    }
}

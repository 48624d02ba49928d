//! How an image is turned upright.

use std::io::Cursor;
use std::sync::LazyLock;

use exif::{In, Tag};
use image::metadata::Orientation;
use regex::bytes::Regex;

/// What EXIF data begin with in a JPEG, and by mistake elsewhere.
const PREFIX: &[u8] = b"Exif\0\0";

static XMP: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#"tiff:Orientation(?:="|>)([0-9])"#).ok());

/// The orientation that EXIF data state, or XMP data where EXIF states none; damaged data state what can be read of them.
pub(super) fn find(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let stated = exif.and_then(in_exif).or_else(|| xmp.and_then(in_xmp));
    stated.and_then(|stated| Orientation::from_exif(u8::try_from(stated).ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// The EXIF data of a PNG, which may stand behind the pixels.
pub(super) fn exif_of_png(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut exif = exif::Reader::new();
    exif.continue_on_error(true);
    let found = exif.read_from_container(&mut Cursor::new(bytes));
    found.or_else(|error| error.distill_partial_result(|_| {})).ok().map(|exif| exif.buf().to_vec())
}

fn in_exif(mut data: &[u8]) -> Option<u32> {
    while let Some(rest) = data.strip_prefix(PREFIX) {
        data = rest;
    }
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    let exif = reader.read_raw(data.to_vec()).or_else(|error| error.distill_partial_result(|_| {})).ok()?;
    // A value of another type than a whole number is stated too, and is no orientation.
    exif.get_field(Tag::Orientation, In::PRIMARY).map(|field| field.value.get_uint(0).unwrap_or(1))
}

fn in_xmp(data: &[u8]) -> Option<u32> {
    let digit = XMP.as_ref()?.captures(data)?.get(1)?.as_bytes()[0];
    Some(u32::from(digit - b'0'))
}

//! JPEG, by `zune-jpeg`.

use std::borrow::Cow;

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{DecodeLimits, check_size, fail, orientation, scans};
use crate::data::{RgbImage, SampleError, scratch};

/// What stands before the pixels.
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
}

type Jpeg<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

pub(super) fn open(bytes: &[u8], limits: DecodeLimits) -> Result<(Jpeg<'_>, Header), SampleError> {
    // Not strict: junk between markers and the like, which other decoders pass over, is no reason to lose an image.
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let Some((width, height)) = decoder.dimensions() else { return fail("a JPEG file without a size") };
    let (width, height) = (width as u32, height as u32);
    check_size(width, height, limits)?;
    let orientation = orientation::find(decoder.exif().map(Vec::as_slice), decoder.xmp().map(Vec::as_slice));
    Ok((decoder, Header { width, height, orientation }))
}

fn damaged(error: impl std::fmt::Display) -> SampleError {
    SampleError(format!("a damaged or unusual JPEG file: {}", error.to_string().trim()))
}

pub(super) fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<(RgbImage, Orientation), SampleError> {
    let (mut decoder, header) = open(bytes, limits)?;
    // The decoder fills what is missing with gray, which nobody wants to train on.
    let whole = scans::check(bytes, (header.width, header.height))
        .map_err(|damage| SampleError(format!("a JPEG file {damage}")))?;
    let mut repaired = match &whole {
        Cow::Borrowed(_) => None,
        Cow::Owned(repaired) => Some(open(repaired, limits)?.0),
    };
    let decoder = repaired.as_mut().unwrap_or(&mut decoder);
    let bytes = header.width as usize * header.height as usize * 3;
    if decoder.output_buffer_size() != Some(bytes) {
        return fail("a JPEG file whose pixels do not match its size");
    }
    let mut pixels = scratch::zeros(bytes);
    decoder.decode_into(&mut pixels).map_err(damaged)?;
    let image = RgbImage { width: header.width, height: header.height, pixels };
    Ok((image, header.orientation))
}

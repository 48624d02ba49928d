//! Image files to upright 8-bit RGB.
//!
//! Invariants:
//! - The format is told by content, never by a name. JPEG, PNG and WebP; the first frame of an animation.
//! - Size is checked from the header, before anything is allocated for pixels. A damaged or hostile file gives an error, never
//!   a crash, a hang or an exhausted memory; a file that ends too early is damaged, as for Pillow.
//! - Conversion follows Pillow's `convert('RGB')`: alpha is dropped, gray is repeated, palettes and CMYK are resolved. 16 bits
//!   are scaled to 8 (Pillow clips 16-bit gray at 255, which leaves white).

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{RgbImage, SampleError};

/// What is too large to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels.
    pub max_pixels: u64,
    /// Most bytes of a decoder's buffers.
    pub max_bytes: u64,
}

impl Default for DecodeLimits {
    /// 64 Mi pixels, the largest photographs in use, and 512 MiB: 8 bytes per pixel, which 16-bit RGBA needs.
    fn default() -> Self {
        DecodeLimits { max_pixels: 64 << 20, max_bytes: 512 << 20 }
    }
}

fn fail<T>(reason: impl Into<String>) -> Result<T, SampleError> {
    Err(SampleError(reason.into()))
}

/// Decodes an image file.
///
/// # Errors
/// Not a JPEG, PNG or WebP; damaged; too large.
pub fn decode_rgb(bytes: &[u8], limits: DecodeLimits) -> Result<RgbImage, SampleError> {
    let (image, orientation) = match format(bytes)? {
        ImageFormat::Jpeg => decode_jpeg(bytes, limits)?,
        format => decode_other(bytes, format, limits)?,
    };
    turn(image, orientation)
}

/// (width, height) of an image after it is turned upright, from its header alone.
///
/// # Errors
/// As [`decode_rgb`], as far as the header tells.
pub fn upright_size(bytes: &[u8], limits: DecodeLimits) -> Result<(u32, u32), SampleError> {
    let (width, height, orientation) = match format(bytes)? {
        ImageFormat::Jpeg => {
            let (_, header) = open_jpeg(bytes, limits)?;
            (header.width, header.height, header.orientation)
        }
        format => {
            let (decoder, orientation) = open_other(bytes, format, limits)?;
            let (width, height) = decoder.dimensions();
            (width, height, orientation)
        }
    };
    Ok(if swaps_sides(orientation) { (height, width) } else { (width, height) })
}

fn format(bytes: &[u8]) -> Result<ImageFormat, SampleError> {
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) => Ok(format),
        _ if bytes.is_empty() => fail("an empty file"),
        Ok(other) => fail(format!("a {other:?} file; JPEG, PNG and WebP are read")),
        Err(_) if bytes.starts_with(b"version https://git-lfs") => {
            fail("a Git LFS pointer, not the image itself; fetch it with `git lfs pull`")
        }
        Err(_) => fail("not a JPEG, PNG or WebP file"),
    }
}

fn check_size(width: u32, height: u32, limits: DecodeLimits) -> Result<(), SampleError> {
    match u64::from(width) * u64::from(height) {
        0 => fail(format!("an image of no pixels, {width}x{height}")),
        pixels if pixels > limits.max_pixels => fail(format!(
            "an image of {width}x{height} pixels, more than the allowed {} million",
            limits.max_pixels / 1_000_000
        )),
        _ => Ok(()),
    }
}

struct JpegHeader {
    width: u32,
    height: u32,
    orientation: Orientation,
}

type Jpeg<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

fn open_jpeg(bytes: &[u8], limits: DecodeLimits) -> Result<(Jpeg<'_>, JpegHeader), SampleError> {
    // Not strict: junk between markers and the like, which other decoders pass over, is no reason to lose an image.
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(jpeg_error)?;
    let Some((width, height)) = decoder.dimensions() else { return fail("a JPEG file without a size") };
    let (width, height) = (width as u32, height as u32);
    check_size(width, height, limits)?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok((decoder, JpegHeader { width, height, orientation }))
}

fn jpeg_error(error: impl std::fmt::Display) -> SampleError {
    SampleError(format!("a damaged or unusual JPEG file: {}", error.to_string().trim()))
}

fn decode_jpeg(bytes: &[u8], limits: DecodeLimits) -> Result<(RgbImage, Orientation), SampleError> {
    let (mut decoder, header) = open_jpeg(bytes, limits)?;
    // The decoder fills what is missing with gray, which nobody wants to train on.
    if !has_end_of_image(bytes) {
        return fail("a JPEG file that ends too early");
    }
    let pixels = decoder.decode().map_err(jpeg_error)?;
    let image = RgbImage { width: header.width, height: header.height, pixels };
    if image.pixels.len() != image.stride() * image.height as usize {
        return fail("a JPEG file whose pixels do not match its size");
    }
    Ok((image, header.orientation))
}

/// Whether the end marker follows the first scan. In entropy-coded data FF is always followed by 00 or a restart marker, so
/// this finds no end inside a scan; thumbnails stand before the first scan and are passed over with their segment.
fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let [0xff, marker, rest @ ..] = bytes.get(at..).unwrap_or_default() {
        match marker {
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            0xff => at += 1,
            0x01 | 0xd0..=0xd9 => at += 2,
            _ => match rest {
                [high, low, ..] => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
                _ => return false,
            },
        }
        // Junk between segments.
        at += bytes.get(at..).unwrap_or_default().iter().take_while(|byte| **byte != 0xff).count();
    }
    false
}

fn open_other(
    bytes: &[u8],
    format: ImageFormat,
    limits: DecodeLimits,
) -> Result<(impl ImageDecoder, Orientation), SampleError> {
    let damaged = |error: image::ImageError| SampleError(format!("a damaged or unusual {format:?} file: {error}"));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut bounds = Limits::no_limits();
    bounds.max_alloc = Some(limits.max_bytes);
    reader.limits(bounds);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    limits: DecodeLimits,
) -> Result<(RgbImage, Orientation), SampleError> {
    let (decoder, orientation) = open_other(bytes, format, limits)?;
    if decoder.total_bytes() > limits.max_bytes {
        return fail(format!("an image that needs more than {} MiB to decode", limits.max_bytes >> 20));
    }
    let decoded = DynamicImage::from_decoder(decoder)
        .map_err(|error| SampleError(format!("a damaged or unusual {format:?} file: {error}")))?;
    let rgb = decoded.into_rgb8();
    let (width, height) = rgb.dimensions();
    Ok((RgbImage { width, height, pixels: rgb.into_raw() }, orientation))
}

fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn turn(image: RgbImage, orientation: Orientation) -> Result<RgbImage, SampleError> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let RgbImage { width, height, pixels } = image;
    let Some(buffer) = image::RgbImage::from_raw(width, height, pixels) else {
        return fail("an image whose pixels do not match its size");
    };
    let mut turned = DynamicImage::ImageRgb8(buffer);
    turned.apply_orientation(orientation);
    let turned = turned.into_rgb8();
    let (width, height) = turned.dimensions();
    Ok(RgbImage { width, height, pixels: turned.into_raw() })
}

#[cfg(test)]
mod tests;

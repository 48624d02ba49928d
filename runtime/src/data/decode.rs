//! Image files to upright 8-bit RGB.
//!
//! Invariants:
//! - The format is told by content, never by a name. JPEG, PNG and WebP; the first frame of an animation.
//! - Size is checked from the header, before anything is allocated for pixels. A damaged or hostile file gives an error, never
//!   a crash, a hang or an exhausted memory; a file that ends too early is damaged, as for Pillow, whatever follows its end.
//! - Images are turned upright as EXIF says, or XMP where EXIF says nothing, as Pillow's `exif_transpose` does.
//! - The levels of a JPEG are those of libjpeg-turbo to the last bit, so Pillow's and DALI's, whatever the processor; but where
//!   damage was mended, and of four inks with subsampled colours, which may be a few levels off.
//! - Conversion follows Pillow's `convert('RGB')`: alpha is dropped, gray is repeated, palettes and CMYK are resolved. 16 bits
//!   are scaled to 8 (Pillow clips 16-bit gray at 255, which leaves white).

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{RgbImage, SampleError};

mod huffman;
mod jpeg;
mod orientation;
mod scans;

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
        ImageFormat::Jpeg => jpeg::decode(bytes, limits)?,
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
            let (_, header) = jpeg::open(bytes, limits)?;
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

/// What a file of this image is called by: `jpg`, `png` or `webp`.
///
/// # Errors
/// Not one of the three.
pub(super) fn suffix(bytes: &[u8]) -> Result<&'static str, SampleError> {
    Ok(match format(bytes)? {
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        _ => "jpg",
    })
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
    let (mut exif, xmp) = (decoder.exif_metadata().ok().flatten(), decoder.xmp_metadata().ok().flatten());
    if format == ImageFormat::Png {
        exif = exif.or_else(|| orientation::exif_of_png(bytes));
    }
    Ok((decoder, orientation::find(exif.as_deref(), xmp.as_deref())))
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

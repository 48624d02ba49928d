//! JPEG, by `libjpeg-turbo-rs`, whose pixels are those of libjpeg-turbo to the last bit, with any processor's instructions: so
//! they are Pillow's and DALI's.
//!
//! Its kernels are unsafe code, of which its authors promise no memory safety. Tens of thousands of mutated files and the address
//! sanitizer found nothing but a panic where four inks are sampled in odd ways, which is caught here.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use libjpeg_turbo_rs::{ColorSpace, Decoder, FrameHeader, JpegError, PixelFormat};

use super::{DecodeLimits, check_size, fail, orientation, scans};
use crate::data::{RgbImage, SampleError, scratch};

/// What stands before the pixels.
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
}

pub(super) fn open(bytes: &[u8], limits: DecodeLimits) -> Result<(Decoder<'_>, Header), SampleError> {
    let bounds = libjpeg_turbo_rs::DecodeLimits {
        max_scans: scans::MAX_SCANS as usize,
        ..libjpeg_turbo_rs::DecodeLimits::default()
    };
    let decoder = Decoder::new_with_limits(bytes, bounds).map_err(damaged)?;
    let frame = decoder.header();
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    check_size(width, height, limits)?;
    if frame.is_lossless {
        return fail("a lossless JPEG file, which is not read");
    }
    if decoder.is_arithmetic() {
        return fail("a JPEG file in arithmetic code, which is not read");
    }
    if frame.precision != 8 {
        return fail(format!("a JPEG file of {} bits a level; 8 are read", frame.precision));
    }
    if memory(frame) > limits.max_bytes {
        return fail(format!("an image that needs more than {} MiB to decode", limits.max_bytes >> 20));
    }
    let orientation = orientation::find(decoder.exif_data(), decoder.xmp_data());
    Ok((decoder, Header { width, height, orientation }))
}

/// Bytes of the pixels and of what the decoder computes them from: levels of every component, and of a progressive file all
/// coefficients of two bytes.
fn memory(frame: &FrameHeader) -> u64 {
    let area = |h: u8, v: u8| u64::from(h) * u64::from(v);
    let most = |of: fn(&libjpeg_turbo_rs::ComponentInfo) -> u8| frame.components.iter().map(of).max().unwrap_or(1);
    let whole = area(most(|part| part.horizontal_sampling), most(|part| part.vertical_sampling)).max(1);
    let sampled: u64 = frame.components.iter().map(|part| area(part.horizontal_sampling, part.vertical_sampling)).sum();
    let pixels = u64::from(frame.width) * u64::from(frame.height);
    // Of four inks there are two copies, since the decoder writes its own first.
    let written = if frame.components.len() == 4 { 8 } else { 3 };
    pixels * written + pixels * sampled * if frame.is_progressive { 3 } else { 1 } / whole
}

fn damaged(error: JpegError) -> SampleError {
    SampleError(match error {
        JpegError::UnexpectedEof => "a JPEG file that ends too early".into(),
        error => format!("a damaged or unusual JPEG file: {}", error.to_string().trim()),
    })
}

pub(super) fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<(RgbImage, Orientation), SampleError> {
    let (decoder, header) = open(bytes, limits)?;
    let size = (header.width, header.height);
    let lost = |damage: scans::Damage| SampleError(format!("a JPEG file {damage}"));
    // The decoder does not miss all that a progressive file may lose.
    let whole = match decoder.header().is_progressive {
        true => scans::repair(bytes, size).map(|_| ()),
        false => scans::headers(bytes, size),
    };
    whole.map_err(lost)?;
    let pixels = match pixels(decoder, size) {
        Ok(pixels) => pixels,
        // The decoder refuses what is not all there; perhaps it can be mended.
        Err(error) => match scans::repair(bytes, size).map_err(lost)? {
            Cow::Borrowed(_) => return Err(error),
            Cow::Owned(mended) => pixels(open(&mended, limits)?.0, size)?,
        },
    };
    Ok((RgbImage { width: header.width, height: header.height, pixels }, header.orientation))
}

/// All pixels, as RGB.
fn pixels(mut decoder: Decoder<'_>, (width, height): (u32, u32)) -> Result<Vec<u8>, SampleError> {
    let inks = matches!(decoder.jpeg_color_space(), ColorSpace::Cmyk | ColorSpace::Ycck);
    decoder.set_output_format(if inks { PixelFormat::Cmyk } else { PixelFormat::Rgb });
    let mut pixels = scratch::zeros(width as usize * height as usize * if inks { 4 } else { 3 });
    // It indexes past the planes of inks that are sampled each in its own way.
    let decoded = catch_unwind(AssertUnwindSafe(|| decoder.decode_image_into(&mut pixels)));
    let decoded = decoded.or_else(|_| fail("a JPEG file that the decoder fails on"))?.map_err(damaged)?;
    if (decoded.width, decoded.height, decoded.bytes_written) != (width as usize, height as usize, pixels.len()) {
        return fail("a JPEG file whose pixels do not match its size");
    }
    if inks {
        mix_inks(&mut pixels);
    }
    Ok(pixels)
}

/// From four inks, inverted as Adobe writes them, to RGB in the same buffer; as Pillow does it.
fn mix_inks(pixels: &mut Vec<u8>) {
    let count = pixels.len() / 4;
    for at in 0..count {
        let [cyan, magenta, yellow, black] = [0, 1, 2, 3].map(|ink| pixels[at * 4 + ink]);
        for (to, ink) in pixels[at * 3..].iter_mut().zip([cyan, magenta, yellow]) {
            *to = black - product(255 - ink, black);
        }
    }
    pixels.truncate(count * 3);
}

/// The rounded product of two shares of 255.
fn product(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

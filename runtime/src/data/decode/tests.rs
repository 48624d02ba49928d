//! Decoding of small made images, and of files that hurt decoders.

use std::path::Path;

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType as Color, ImageResult};

use super::*;

/// What becomes of a file: `WxH`, or why not.
fn outcome(bytes: &[u8]) -> String {
    let decoded = decode_rgb(bytes, DecodeLimits::default());
    if let (Ok(image), Ok(size)) = (&decoded, upright_size(bytes, DecodeLimits::default())) {
        assert_eq!((image.width, image.height), size, "the header's size is the image's");
    }
    match decoded {
        Ok(image) => format!("{}x{}", image.width, image.height),
        Err(error) => error.to_string(),
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Png,
    Jpeg,
    WebP,
}

fn encode(encoding: Encoding, pixels: &[u8], (width, height): (u32, u32), color: Color) -> Vec<u8> {
    let mut out = Vec::new();
    let result: ImageResult<()> = match encoding {
        Encoding::Png => PngEncoder::new(&mut out).write_image(pixels, width, height, color),
        Encoding::Jpeg => JpegEncoder::new_with_quality(&mut out, 95).write_image(pixels, width, height, color),
        Encoding::WebP => WebPEncoder::new_lossless(&mut out).write_image(pixels, width, height, color),
    };
    result.expect("encode");
    out
}

/// Two pixels of each layout, and the RGB that they stand for.
#[test]
fn layouts() {
    type Case<'a> = (&'a str, Encoding, Color, &'a [u8], [u8; 6]);
    let cases: [Case<'_>; 7] = [
        ("RGB", Encoding::Png, Color::Rgb8, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ("alpha is dropped", Encoding::Png, Color::Rgba8, &[1, 2, 3, 0, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]),
        ("gray", Encoding::Png, Color::L8, &[7, 250], [7, 7, 7, 250, 250, 250]),
        ("gray and alpha", Encoding::Png, Color::La8, &[7, 0, 250, 9], [7, 7, 7, 250, 250, 250]),
        // Native-endian 16 bits; 257 is 1/255 of the range.
        ("16-bit gray", Encoding::Png, Color::L16, &le16([257, 65535]), [1, 1, 1, 255, 255, 255]),
        (
            "16-bit RGB",
            Encoding::Png,
            Color::Rgb16,
            &le16([0, 257, 514, 65535, 32768, 25700]),
            [0, 1, 2, 255, 128, 100],
        ),
        ("WebP with alpha", Encoding::WebP, Color::Rgba8, &[1, 2, 3, 255, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]),
    ];
    for (name, encoding, color, pixels, expected) in cases {
        let bytes = encode(encoding, pixels, (2, 1), color);
        let image = decode_rgb(&bytes, DecodeLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(image.pixels, expected, "{name}");
    }
}

fn le16<const N: usize>(values: [u16; N]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A JPEG 16 x 8, dark on the left and bright on the right, with an EXIF orientation put in after its start marker.
fn oriented(orientation: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..16 * 8).map(|i| if i % 16 < 8 { 20 } else { 230 }).collect();
    let jpeg = encode(Encoding::Jpeg, &pixels, (16, 8), Color::L8);
    // TIFF header, one entry: tag 0x0112, type SHORT, count 1, value.
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let mut out = jpeg[..2].to_vec();
    out.extend([0xff, 0xe1]);
    out.extend((exif.len() as u16 + 2).to_be_bytes());
    out.extend(exif);
    out.extend(&jpeg[2..]);
    out
}

/// Where the bright half is after the image is turned upright, for each EXIF orientation.
#[test]
fn exif_orientation() {
    let table = ["right", "left", "left", "right", "bottom", "bottom", "top", "top"];
    for (orientation, expected) in (1u8..).zip(table) {
        let bytes = oriented(orientation);
        let image = decode_rgb(&bytes, DecodeLimits::default()).expect("decodes");
        let upright = if orientation >= 5 { (8, 16) } else { (16, 8) };
        assert_eq!((image.width, image.height), upright, "orientation {orientation}");
        assert_eq!(upright_size(&bytes, DecodeLimits::default()), Ok(upright), "orientation {orientation}");
        let bright = |x: u32, y: u32| image.pixels[(y * image.width + x) as usize * 3] > 128;
        let (right, bottom) = (image.width - 1, image.height - 1);
        let side = match (bright(0, 0), bright(right, 0), bright(0, bottom)) {
            (false, true, false) => "right",
            (true, false, true) => "left",
            (false, false, true) => "bottom",
            (true, true, false) => "top",
            other => panic!("orientation {orientation}: {other:?}"),
        };
        assert_eq!(side, expected, "orientation {orientation}");
    }
}

/// Files that are not what they seem, made here.
#[test]
fn refusals() {
    let jpeg = encode(Encoding::Jpeg, &[100; 32 * 32], (32, 32), Color::L8);
    let png = encode(Encoding::Png, &[100; 32 * 32], (32, 32), Color::L8);
    let webp = encode(Encoding::WebP, &[100; 32 * 32 * 3], (32, 32), Color::Rgb8);
    // The size in the frame header follows the marker FF C0, its length and the precision.
    let mut huge = jpeg.clone();
    let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header");
    huge[frame + 5..frame + 9].fill(0xff);
    let mut wide = png.clone();
    wide[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let cases: &[(&[u8], &str)] = &[
        (&jpeg, "32x32"),
        (&png, "32x32"),
        (&webp, "32x32"),
        (b"", "an empty file"),
        (b"hello", "not a JPEG, PNG or WebP file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer, not the image itself; fetch it with `git lfs pull`",
        ),
        (b"GIF89a\0\0\0\0\0\0\0", "a Gif file; JPEG, PNG and WebP are read"),
        (&huge, "an image of 65535x65535 pixels, more than the allowed 67 million"),
        (&jpeg[..jpeg.len() - 2], "a JPEG file that ends too early"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(outcome(bytes), *expected);
    }
    for (name, bytes) in [("JPEG", &jpeg), ("PNG", &png), ("WebP", &webp), ("PNG with a false size", &wide)] {
        // Up to 16 bytes from the end: a PNG without its last chunk still has all its pixels.
        for end in (0..bytes.len() - 16).step_by(7) {
            let got = outcome(&bytes[..end]);
            assert!(!got.starts_with(|c: char| c.is_ascii_digit()), "{name} cut to {end} bytes gives {got}");
        }
    }
}

/// What becomes of each file of `nasty_images`: `WxH` or the start of the reason. Pillow's result is in the folder's LIST.csv;
/// where ours differs, the third column says why.
const NASTY: &[(&str, &str, &str)] = &[
    ("pillow_pil_sample_cmyk.jpg", "100x100", ""),
    ("pillow_truncated_jpeg.jpg", "a JPEG file that ends too early", ""),
    ("pillow_hopper_bad_exif.jpg", "500x500", ""),
    ("pillow_hopper_orientation_5.jpg", "128x128", ""),
    ("pillow_hopper_orientation_8.webp", "128x128", ""),
    ("pillow_xmp_tags_orientation.png", "326x268", ""),
    ("pillow_hopper_16bit_qtables.jpg", "128x128", ""),
    ("pillow_junk_jpeg_header.jpg", "1024x768", ""),
    ("pillow_icc_profile_big.jpg", "425x250", ""),
    ("pillow_ultrahdr.jpg", "a JPEG file that ends too early", ""),
    ("pillow_truncated_image.png", "a damaged or unusual Png file: unexpected end of file", ""),
    ("pillow_truncated_end_chunk.png", "a damaged or unusual Png file: unexpected end of file", ""),
    ("pillow_png_decompression_dos.png", "1x1", "text chunks are not decompressed, so they do no harm"),
    ("pillow_hopper_idat_after_image_end.png", "128x128", ""),
    ("pillow_p_trns_single.png", "64x64", ""),
    ("pillow_pil123p.png", "162x150", ""),
    ("pillow_itxt_chunks.png", "2400x2000", ""),
    ("pillow_iss634.webp", "245x245", ""),
    ("pillow_zero_width.gif", "a Gif file; JPEG, PNG and WebP are read", ""),
    ("imagers_cat.jpg", "320x240", ""),
    ("imagers_basi0g16.png", "32x32", ""),
    ("imagers_advertises_rgba_but_frames_are_rgb.webp", "265x199", ""),
    ("imagers_oss-fuzz-36829.jpeg", "a JPEG file that ends too early", ""),
    ("pngsuite_basi3p02.png", "32x32", ""),
    ("pngsuite_basn4a16.png", "32x32", ""),
    ("pngsuite_xdtn0g01.png", "a damaged or unusual Png file", ""),
    ("pngsuite_xd0n2c08.png", "a damaged or unusual Png file", ""),
    ("dali_411-non-multiple-4-width.jpg", "639x479", ""),
    ("dali_422-odd-width.jpg", "681x454", ""),
    ("dali_cat-3449999_640_grayscale_8bit.jpg", "a damaged or unusual JPEG file", "lossless JPEG is not read"),
    ("dali_jpeg_0_png.jpeg", "640x426", ""),
    ("dali_png_0_jpeg.png", "640x426", ""),
    ("dali_padlock-406986_640_rotate_90.jpg", "426x640", ""),
    ("dali_padlock-406986_640_mirror_horizontal_rotate_270.jpg", "426x640", ""),
    ("dali_1.jpg", "250x188", ""),
    ("dali_lfs_pointer.jpg", "a Git LFS pointer, not the image itself; fetch it with `git lfs pull`", ""),
    ("selfmade_header_claims_65500x65500.jpg", "an image of 65500x65500 pixels, more than the allowed 67 million", ""),
    ("selfmade_zero_bytes.jpg", "an empty file", ""),
    ("selfmade_trailing_garbage.jpg", "320x240", ""),
    ("selfmade_progressive_cut_half.jpg", "a JPEG file that ends too early", ""),
    ("selfmade_3000x2.png", "3000x2", ""),
];

#[test]
fn nasty_images() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/nasty_images");
    let Ok(list) = std::fs::read_to_string(folder.join("LIST.csv")) else {
        eprintln!("skipped: no {}", folder.display());
        return;
    };
    let files: Vec<&str> = list.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let mut wrong = Vec::new();
    for file in &files {
        let bytes = std::fs::read(folder.join(file)).expect("a listed file");
        let start = std::time::Instant::now();
        let got = outcome(&bytes);
        assert!(start.elapsed().as_secs() < 10, "{file} took {:?}", start.elapsed());
        match NASTY.iter().find(|(name, ..)| name == file) {
            Some((_, expected, _)) if got.starts_with(expected) => {}
            _ => wrong.push(format!("    (\"{file}\", \"{got}\", \"\"),")),
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert_eq!(NASTY.len(), files.len(), "every listed file has a row");
}

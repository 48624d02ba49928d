//! Decoding of small made images, and of files that hurt decoders.

use std::path::Path;

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType as Color, ImageResult};

use super::*;
use crate::data::tests::skipped;

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

#[derive(Clone, Copy, Debug)]
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

/// How EXIF data write an orientation.
#[derive(Clone, Copy, Debug)]
enum Written {
    Short,
    Long,
    BigEndian,
    /// After its prefix, which only JPEG asks for.
    Prefixed,
}

/// EXIF data of one entry: tag 0x0112, its type, count 1, value.
fn exif(orientation: u8, written: Written) -> Vec<u8> {
    let little = |kind: u8| {
        let mut data = b"II*\0\x08\0\0\0\x01\0\x12\x01".to_vec();
        data.extend([kind, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0]);
        data
    };
    match written {
        Written::Short => little(3),
        Written::Long => little(4),
        Written::BigEndian => {
            let mut data = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
            data.extend([0, orientation, 0, 0, 0, 0, 0, 0]);
            data
        }
        Written::Prefixed => [b"Exif\0\0".as_slice(), &little(3)].concat(),
    }
}

/// An image 16 x 8, dark on the left and bright on the right, with EXIF data.
fn with_exif(encoding: Encoding, exif: &[u8]) -> Vec<u8> {
    let pixels: Vec<u8> = (0..16 * 8).flat_map(|i| [if i % 16 < 8 { 20 } else { 230 }; 3]).collect();
    fn write(mut encoder: impl ImageEncoder, exif: &[u8], pixels: &[u8]) {
        encoder.set_exif_metadata(exif.to_vec()).expect("EXIF data");
        encoder.write_image(pixels, 16, 8, Color::Rgb8).expect("encode");
    }
    let mut out = Vec::new();
    match encoding {
        Encoding::Jpeg => {
            let jpeg = encode(encoding, &pixels, (16, 8), Color::Rgb8);
            return with_segment(&jpeg, &[b"Exif\0\0".as_slice(), exif].concat());
        }
        Encoding::Png => write(PngEncoder::new(&mut out), exif, &pixels),
        Encoding::WebP => write(WebPEncoder::new_lossless(&mut out), exif, &pixels),
    }
    out
}

/// A JPEG with a segment APP1 after its start marker.
fn with_segment(jpeg: &[u8], body: &[u8]) -> Vec<u8> {
    [&jpeg[..2], &[0xff, 0xe1], &(body.len() as u16 + 2).to_be_bytes(), body, &jpeg[2..]].concat()
}

/// Where the bright half is after the image is turned upright.
fn bright_side(bytes: &[u8]) -> &'static str {
    let image = decode_rgb(bytes, DecodeLimits::default()).expect("decodes");
    assert_eq!(upright_size(bytes, DecodeLimits::default()), Ok((image.width, image.height)));
    let bright = |x: u32, y: u32| image.pixels[(y * image.width + x) as usize * 3] > 128;
    let (right, bottom) = (image.width - 1, image.height - 1);
    match ((image.width, image.height), bright(0, 0), bright(right, 0), bright(0, bottom)) {
        ((16, 8), false, true, false) => "right",
        ((16, 8), true, false, true) => "left",
        ((8, 16), false, false, true) => "bottom",
        ((8, 16), true, true, false) => "top",
        other => panic!("{other:?}"),
    }
}

/// Where the bright half is for each orientation from 1.
const SIDES: [&str; 8] = ["right", "left", "left", "right", "bottom", "bottom", "top", "top"];

#[test]
fn exif_orientation() {
    for encoding in [Encoding::Jpeg, Encoding::Png, Encoding::WebP] {
        for written in [Written::Short, Written::Long, Written::BigEndian, Written::Prefixed] {
            for (orientation, expected) in (1u8..).zip(SIDES) {
                let bytes = with_exif(encoding, &exif(orientation, written));
                assert_eq!(bright_side(&bytes), expected, "{encoding:?} {written:?} {orientation}");
            }
        }
    }
    // No orientations, and data that end before the value.
    for data in [exif(0, Written::Short), exif(9, Written::Long), exif(6, Written::Short)[..17].to_vec(), Vec::new()] {
        assert_eq!(bright_side(&with_exif(Encoding::Jpeg, &data)), "right", "{data:?}");
    }
}

#[test]
fn exif_behind_the_pixels_of_a_png() {
    let png = with_exif(Encoding::Png, &exif(6, Written::Long));
    let name = png.windows(4).position(|name| name == b"eXIf").expect("a chunk");
    let length = u32::from_be_bytes(*png[..name].last_chunk().expect("a length")) as usize;
    // Length, name, data, check sum.
    let chunk = name - 4..name + 4 + length + 4;
    let (rest, end) = png[chunk.end..].split_at(png.len() - chunk.end - 12);
    let moved = [&png[..chunk.start], rest, &png[chunk], end].concat();
    assert_eq!(bright_side(&moved), "bottom");
}

/// XMP counts where EXIF says nothing, as for Pillow.
#[test]
fn xmp_orientation() {
    let plain = with_exif(Encoding::Jpeg, &[]);
    for (xmp, expected) in [
        (r#"<x tiff:Orientation="6"/>"#, "bottom"),
        ("<tiff:Orientation>8</tiff:Orientation>", "top"),
        (r#"<x tiff:Orientation="nine"/>"#, "right"),
    ] {
        let body = [b"http://ns.adobe.com/xap/1.0/\0", xmp.as_bytes()].concat();
        assert_eq!(bright_side(&with_segment(&plain, &body)), expected, "{xmp}");
        let both = with_exif(Encoding::Jpeg, &exif(2, Written::Short));
        assert_eq!(bright_side(&with_segment(&both, &body)), "left", "{xmp} beside EXIF");
    }
}

/// A file of the golden data.
fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/images");
    std::fs::read(folder.join(name)).expect("a golden file")
}

/// Of every sampling, colour space and coding, the levels of JPEG are Pillow's.
#[test]
fn jpegs_are_those_of_pillow() {
    for name in
        ["444", "422", "420", "420_progressive", "420_restarts", "rgb", "gray", "cmyk", "progressive", "restarts"]
    {
        let [ours, pillow] = ["jpg", "png"]
            .map(|suffix| decode_rgb(&golden(&format!("{name}.{suffix}")), DecodeLimits::default()).expect("decodes"));
        assert!(ours == pillow, "{name}: {:?}", ours.pixels.iter().zip(&pillow.pixels).find(|(a, b)| a != b));
    }
}

/// What is no JPEG of 8 bits in Huffman code is named; and what takes too much memory.
#[test]
fn unread_jpegs() {
    let check = |frame: u8, bits: u8, limits: DecodeLimits, expected: &str| {
        let mut jpeg = golden("420.jpg");
        let marker = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header");
        (jpeg[marker + 1], jpeg[marker + 4]) = (frame, bits);
        for got in [decode_rgb(&jpeg, limits).map(|_| ()), upright_size(&jpeg, limits).map(|_| ())] {
            assert_eq!(got, Err(SampleError(expected.into())));
        }
    };
    let (all, few) = (DecodeLimits::default(), DecodeLimits { max_bytes: 37 * 29 * 4, ..DecodeLimits::default() });
    check(0xc1, 12, all, "a JPEG file of 12 bits a level; 8 are read");
    check(0xc9, 8, all, "a JPEG file in arithmetic code, which is not read");
    check(0xc0, 8, few, "an image that needs more than 0 MiB to decode");
}

/// Whatever sampling the inks claim, nothing panics, though the decoder does.
#[test]
fn inks_of_any_sampling() {
    let jpeg = golden("cmyk.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header");
    let mut failed = 0;
    for ink in 0..4 {
        for sampling in (1..=4).flat_map(|h| (1..=4).map(move |v| h << 4 | v)) {
            let mut other = jpeg.clone();
            // Of a component its name, its sampling, its table; the first stands behind the marker and eight bytes.
            other[frame + 11 + 3 * ink] = sampling;
            let got = outcome(&other);
            let fenced = got == "a JPEG file that the decoder fails on";
            assert!(fenced || got == "37x29" || got.starts_with("a JPEG file "), "{ink}, {sampling:02x}: {got}");
            failed += u32::from(fenced);
        }
    }
    assert!(failed > 0, "the decoder no longer panics, so nothing need be caught");
}

/// Where a JPEG's first scan begins: behind its header.
fn first_scan(jpeg: &[u8]) -> usize {
    let marker = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).expect("a scan");
    marker + 2 + usize::from(u16::from_be_bytes([jpeg[marker + 2], jpeg[marker + 3]]))
}

/// However a JPEG is cut, and whatever follows the cut, it is damaged and not gray.
#[test]
fn cut_jpegs_are_damaged() {
    let noise: Vec<u8> = (0..24 * 24 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sequential = encode(Encoding::Jpeg, &noise, (24, 24), Color::Rgb8);
    let other = encode(Encoding::Jpeg, &[100; 64], (8, 8), Color::L8);
    for jpeg in [sequential, golden("progressive.jpg"), golden("restarts.jpg")] {
        assert!(outcome(&jpeg).starts_with(|c: char| c.is_ascii_digit()), "{}", outcome(&jpeg));
        for cut in first_scan(&jpeg)..jpeg.len() - 2 {
            // Two bits of the last byte may be no data, but there is at least one.
            for tail in [&[0xff, 0xd9][..], &[], &[0xff, 0xd9, 1, 2, 3], &[0xff, 0xd0, 0xff, 0xd9], &other] {
                let got = outcome(&[&jpeg[..cut], tail].concat());
                assert!(!got.starts_with(|c: char| c.is_ascii_digit()), "cut to {cut} of {}: {got}", jpeg.len());
            }
        }
    }
}

/// Frames of Motion JPEG leave out the codes when they are the standard ones, which our encoder uses.
#[test]
fn standard_codes_may_be_left_out() {
    let noise: Vec<u8> = (0..24 * 24 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (pixels, color) in [(&noise[..], Color::Rgb8), (&noise[..24 * 24], Color::L8)] {
        let whole = encode(Encoding::Jpeg, pixels, (24, 24), color);
        let expected = decode_rgb(&whole, DecodeLimits::default()).expect("decodes");
        let mut frame = whole.clone();
        while let Some(at) = frame.windows(2).position(|pair| pair == [0xff, 0xc4]) {
            let length = usize::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]]));
            frame.drain(at..at + 2 + length);
        }
        // As the format's writers mark it, for one field or for whole frames, or not at all.
        let marks: [&[u8]; 3] = [b"AVI1\0\0\0\0\0\0\0\0", b"AVI1\x01\0\0\0\0\0\0\0", b""];
        for mark in marks {
            let segment = [&[0xff, 0xe0], &(mark.len() as u16 + 2).to_be_bytes()[..], mark].concat();
            let marked = [&frame[..2], if mark.is_empty() { &[] } else { &segment[..] }, &frame[2..]].concat();
            assert_eq!(decode_rgb(&marked, DecodeLimits::default()).as_ref(), Ok(&expected), "{color:?} {mark:?}");
            assert_eq!(
                outcome(&[&marked[..marked.len() - 40], &[0xff, 0xd9]].concat()),
                "a JPEG file that ends too early"
            );
        }
    }
}

/// A scan less, with all others whole.
#[test]
fn lost_scans_are_damage() {
    let jpeg = golden("progressive.jpg");
    let starts: Vec<usize> = (0..jpeg.len() - 1).filter(|&at| jpeg[at..].starts_with(&[0xff, 0xda])).collect();
    assert_eq!(starts.len(), 10);
    for &start in &starts {
        let body = start + 2 + usize::from(jpeg[start + 3]);
        let end = (body..jpeg.len() - 1).find(|&at| jpeg[at] == 0xff && jpeg[at + 1] != 0).expect("a marker");
        // Without one in the middle, later ones may be misread: they refine coefficients that would not be zero.
        let got = outcome(&[&jpeg[..start], &jpeg[end..]].concat());
        let misread =
            ["a JPEG file whose pixels are damaged", "a JPEG file that ends too early"].contains(&got.as_str());
        assert!(misread || got == "a JPEG file that lost a scan", "{start}: {got}");
        let got = outcome(&[&jpeg[..start], &[0xff, 0xd9]].concat());
        // Without any scan there is no header for the decoder.
        let unread = start == starts[0] && got.starts_with("a damaged or unusual JPEG file");
        assert!(unread || got == "a JPEG file that lost a scan", "{start}: {got}");
    }
}

/// Damage between two restart markers costs the blocks up to the next one; much of it costs the image.
#[test]
fn restart_markers_confine_damage() {
    let jpeg = golden("restarts.jpg");
    let whole = decode_rgb(&jpeg, DecodeLimits::default()).expect("decodes");
    let markers: Vec<usize> =
        (first_scan(&jpeg)..jpeg.len() - 1).filter(|&at| jpeg[at] == 0xff && jpeg[at + 1] & 0xf8 == 0xd0).collect();
    assert_eq!(markers.len(), 11);
    // The third row of blocks: ones only, which is no code; or nothing at all.
    for bad in [[0xff, 0x00].repeat(8), Vec::new()] {
        let hurt = [&jpeg[..markers[1] + 2], &bad, &jpeg[markers[2]..]].concat();
        let image = decode_rgb(&hurt, DecodeLimits::default()).expect("the rest is there");
        for (y, (row, expected)) in image.pixels.chunks(96 * 3).zip(whole.pixels.chunks(96 * 3)).enumerate() {
            assert_eq!(row == expected, !(16..24).contains(&y), "row {y}");
        }
        let hurt =
            [&jpeg[..markers[1] + 2], &bad, &jpeg[markers[2]..markers[3] + 2], &bad, &jpeg[markers[4]..]].concat();
        let expected = if bad.is_empty() { "that ends too early" } else { "whose pixels are damaged" };
        assert_eq!(outcome(&hurt), format!("a JPEG file {expected}"));
    }
    // Behind the last marker nothing tells where to go on.
    let hurt = [&jpeg[..markers[10] + 2], &[0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0xd9]].concat();
    assert_eq!(outcome(&hurt), "a JPEG file whose pixels are damaged");
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
    ("imagers_oss-fuzz-36829.jpeg", "a JPEG file with a damaged header", ""),
    ("pngsuite_basi3p02.png", "32x32", ""),
    ("pngsuite_basn4a16.png", "32x32", ""),
    ("pngsuite_xdtn0g01.png", "a damaged or unusual Png file", ""),
    ("pngsuite_xd0n2c08.png", "a damaged or unusual Png file", ""),
    ("dali_411-non-multiple-4-width.jpg", "639x479", ""),
    ("dali_422-odd-width.jpg", "681x454", ""),
    ("dali_cat-3449999_640_grayscale_8bit.jpg", "a lossless JPEG file, which is not read", "Pillow reads it"),
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
        skipped(format_args!("no {}", folder.display()));
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
    // Mean levels of eighths from the top, by Pillow. Between some restart markers of this file there are codes that are none:
    // Pillow shows noise there, we the last good level.
    let bytes = std::fs::read(folder.join("pillow_hopper_bad_exif.jpg")).expect("a listed file");
    let image = decode_rgb(&bytes, DecodeLimits::default()).expect("decodes");
    for (part, pillow) in [146.0, 110.4, 144.1, 152.4, 136.6, 119.3, 95.4, 100.0].into_iter().enumerate() {
        let rows = part * 500 / 8..(part + 1) * 500 / 8;
        let levels = &image.pixels[rows.start * 1500..rows.end * 1500];
        let mean = levels.iter().map(|&level| f64::from(level)).sum::<f64>() / levels.len() as f64;
        assert!((mean - pillow).abs() < 12.0, "part {part}: {mean}, not {pillow}");
    }
    let bytes = std::fs::read(folder.join("pillow_xmp_tags_orientation.png")).expect("a listed file");
    let (_, orientation) = open_other(&bytes, ImageFormat::Png, DecodeLimits::default()).expect("opens");
    assert_eq!(orientation, Orientation::Rotate180);
}

/// What was found by using the product.
#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/images");
    if !folder.is_dir() {
        skipped(format_args!("no {}", folder.display()));
        return;
    }
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a case");
    assert_eq!(outcome(&read("cut_half_with_end_marker.jpg")), "a JPEG file that ends too early");
    let (_, header) = jpeg::open(&read("exif_orientation_long.jpg"), DecodeLimits::default()).expect("opens");
    assert_eq!(header.orientation, Orientation::Rotate90);
}

//! What others make of the same: windows of DALI and torchvision, masks of BEiT, and images that DALI cut, resized and normalised.

use std::path::Path;

use alip_plan::philox::{counter, philox4x32};
use alip_plan::pipeline::{CLIP_MEAN, CLIP_STD, Filter};

use super::super::windows::cut;
use super::*;
use crate::data::tests::skipped;
use crate::data::{DecodeLimits, decode_rgb, resize};

/// Mean and variance, with their standard errors times the square root of the number of values.
fn moments(values: &[f64]) -> [(f64, f64); 2] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let central = |power: i32| values.iter().map(|value| (value - mean).powi(power)).sum::<f64>() / n;
    let variance = central(2);
    [(mean, variance.sqrt()), (variance, (central(4) - variance * variance).max(0.0).sqrt())]
}

/// Mean and variance of ours are those of a golden line, within five standard errors of their difference.
fn check_moments(golden: &Golden, name: &str, values: &[f64], theirs: f64) {
    let stated = golden.pair(name);
    for ((what, ours, spread), stated) in std::iter::zip(["mean", "variance"], moments(values))
        .map(|(what, (ours, spread))| (what, ours, spread))
        .zip([stated.0, stated.1])
    {
        let bound = 5.0 * spread * (1.0 / values.len() as f64 + 1.0 / theirs).sqrt() + 1e-9;
        assert!(
            (ours - stated).abs() <= bound,
            "{what} of {name}: {ours}, not {stated} (within {bound}), of {}",
            golden.0
        );
    }
}

/// Windows are drawn as by DALI (`random_area_crop`) and by torchvision (`random_resized_crop`): area, aspect, place, and how
/// often they fall back.
#[test]
fn windows_have_the_moments_of_others() {
    let lines = Golden::all(include_str!("../../../../../tests/goldens/augment/windows.jsonl"));
    assert_eq!(lines.len(), 20);
    for golden in lines {
        let (area, aspect, (width, height)) = (golden.pair("area"), golden.pair("aspect"), golden.pair("size"));
        let size = (width as u32, height as u32);
        let (n, attempts) = (20_000, golden.number("attempts") as u32);
        let windows: Vec<Crop> = (0..n)
            .map(|sample| {
                let draw = |block| philox4x32(counter(sample, block), [7, 8]);
                match golden.text("op") {
                    "random_area_crop" => random_area_crop(size, area, aspect, attempts, draw),
                    _ => random_resized_crop(size, area, aspect, draw),
                }
            })
            .collect();
        let all = |of: fn(&Crop) -> (u32, u32)| {
            let of = windows.iter().map(of);
            of.map(|(a, b)| (f64::from(a), f64::from(b))).collect::<Vec<_>>()
        };
        let theirs = golden.number("windows");
        let sides = all(|crop| (crop.width, crop.height));
        let places = all(|crop| (crop.x, crop.y));
        let check = |name: &str, values: Vec<f64>| check_moments(&golden, name, &values, theirs);
        check("share", sides.iter().map(|(w, h)| w * h / (width * height)).collect());
        check("log_aspect", sides.iter().map(|(w, h)| (w / h).ln()).collect());
        check("left", places.iter().map(|(x, _)| x / width).collect());
        check("top", places.iter().map(|(_, y)| y / height).collect());
        let most = &golden.0["most_frequent"];
        let (w, h, stated) = (most[0][0].as_f64(), most[0][1].as_f64(), most[1].as_f64().expect("a share"));
        // Where no size is frequent, the most frequent one is so by chance.
        if stated > 0.01 {
            let found = sides.iter().filter(|(a, b)| (Some(*a), Some(*b)) == (w, h)).count() as f64 / n as f64;
            let bound = 5.0 * (stated * (1.0 - stated) * (1.0 / n as f64 + 1.0 / theirs)).sqrt();
            assert!((found - stated).abs() <= bound, "{found} of the size {most} (within {bound}), of {}", golden.0);
        }
    }
}

/// Masks of blocks have as many patches and as long a border as BEiT's.
#[test]
fn blocks_have_the_moments_of_beit() {
    for golden in Golden::all(include_str!("../../../../../tests/goldens/augment/blocks.jsonl")) {
        let [height, width, ratio, least] =
            ["height", "width", "ratio", "least"].map(|name| Argument::Number(golden.number(name)));
        let columns = golden.number("width") as usize;
        let call = vec![height, width, ratio, least];
        let body = pipeline(&[(&["mask"], "block_mask", call)], &["mask"]);
        let given = Given::new(1, 1, &[]);
        let masks: Vec<Vec<f32>> =
            (0..2000).map(|index| floats(&run(&body, Mode::Train, &given, index).unwrap()["mask"])).collect();
        let edges = |mask: &Vec<f32>| {
            let across = mask.chunks(columns).flat_map(|row| row.windows(2)).filter(|pair| pair[0] != pair[1]).count();
            let down = mask.iter().zip(&mask[columns..]).filter(|(above, below)| above != below).count();
            (across + down) as f64
        };
        let check = |name: &str, values: Vec<f64>| check_moments(&golden, name, &values, golden.number("masks"));
        check("masked", masks.iter().map(|mask| f64::from(mask.iter().sum::<f32>())).collect());
        check("edges", masks.iter().map(edges).collect());
        check("corner", masks.iter().map(|mask| f64::from(mask[0])).collect());
    }
}

/// How far apart two images are: on average, the share of levels further off than 2, at most.
fn apart(ours: &RgbImage, theirs: &[u8]) -> (f64, f64, u8) {
    assert_eq!(ours.pixels.len(), theirs.len());
    let apart: Vec<u8> = std::iter::zip(&ours.pixels, theirs).map(|(a, b)| a.abs_diff(*b)).collect();
    let share = |found: f64| found / apart.len() as f64;
    let far = apart.iter().filter(|levels| **levels > 2).count();
    let sum = apart.iter().map(|levels| f64::from(*levels)).sum();
    (share(sum), share(far as f64), apart.iter().copied().max().unwrap_or(0))
}

fn windowed(image: &RgbImage, golden: &Golden, height: u32, width: u32) -> RgbImage {
    let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| golden.number(name) as u32);
    let part = cut(image, Crop { x, y, width: w, height: h }).expect("a window inside");
    resize(&part, height, width, Filter::Triangle)
}

/// `smooth` of `bench/peers/augment.py`.
fn smooth(height: u32, width: u32) -> RgbImage {
    let triangle = |t: u32, period: u32| (t % period).abs_diff(period / 2) * 255 / (period / 2);
    let level = |x: u32, y: u32, c: u32| {
        ((triangle(3 * x + 2 * y + 40 * c, 128) + triangle(x * (c + 1) + 5 * y, 254) + (x * y + c) % 9) / 2) as u8
    };
    let place = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = place.flat_map(|(x, y)| (0..3).map(move |c| level(x, y, c))).collect();
    RgbImage { width, height, pixels }
}

/// Of given windows DALI makes the same by factors from a half to 1.6. With larger ones it is its own filter, a table of few
/// entries, that is further away (0.2 levels at 3.2).
#[test]
fn windows_are_resized_as_by_dali() {
    let lines = Golden::all(include_str!("../../../../../tests/goldens/augment/resize.jsonl"));
    assert_eq!(lines.len(), 4);
    for golden in lines {
        let [height, width, to_height, to_width] =
            ["height", "width", "to_height", "to_width"].map(|name| golden.number(name) as u32);
        let ours = windowed(&smooth(height, width), &golden, to_height, to_width);
        let text = golden.text("pixels");
        let level = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
        let theirs: Vec<u8> = (0..text.len()).step_by(2).map(level).collect();
        let (mean, far, most) = apart(&ours, &theirs);
        assert!(mean <= 0.1 && far <= 0.001, "{mean} apart, {far} far, {most} at most: {to_height}x{to_width}");
    }
}

/// Photographs, decoded, cut by given windows and resized to 224 x 224, are DALI's within the bounds that its images come with:
/// a quarter of a level on average over each, and of each at most one level in a thousand further off than 2.
#[test]
fn photographs_are_those_of_dali() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let (goldens, photographs) = (shared.join("goldens/dali"), shared.join("data/flickr8k_aspect/images"));
    let Ok(list) = std::fs::read_to_string(goldens.join("crops.json")) else {
        skipped(format_args!("no {}", goldens.display()));
        return;
    };
    let list: Vec<Json> = serde_json::from_str(&list).expect("a list");
    assert_eq!(list.len(), 20);
    for golden in list.into_iter().map(Golden) {
        let read = |path: &Path| {
            let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            decode_rgb(&bytes, DecodeLimits::default()).expect("an image")
        };
        let ours = windowed(&read(&photographs.join(golden.text("image"))), &golden, 224, 224);
        let (mean, far, most) = apart(&ours, &read(&goldens.join(golden.text("out"))).pixels);
        assert!(mean <= 0.25 && far <= 0.001, "{mean} apart, {far} far, {most} at most: {}", golden.0);
    }
}

/// Mirrored and normalised as by DALI's `crop_mirror_normalize`, which multiplies in f32 what is rounded here once: within two
/// roundings of the larger of its terms.
#[test]
fn normalised_images_are_those_of_dali() {
    let lines = Golden::all(include_str!("../../../../../tests/goldens/augment/normalize.jsonl"));
    assert_eq!(lines.len(), 3);
    for golden in lines {
        let mut image = golden.image();
        if golden.number("mirror") == 1.0 {
            mirror(&mut image);
        }
        let ours = normalize_rgb(&image, CLIP_MEAN, CLIP_STD);
        let theirs = golden.0["numbers"].as_array().expect("numbers");
        assert_eq!(ours.len(), theirs.len());
        for (place, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let channel = place / (image.width * image.height) as usize;
            let bound = 2.0 * f64::from(f32::EPSILON) / CLIP_STD[channel];
            let apart = (f64::from(*ours) - theirs.as_f64().expect("a number")).abs();
            assert!(apart <= bound, "{ours}, not {theirs}, at {place} of {}x{}", image.width, image.height);
        }
    }
}

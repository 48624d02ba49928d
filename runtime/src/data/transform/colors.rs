//! Colours, level for level as torchvision changes those of Pillow's images.

use alip_plan::pipeline::{ColorJitter, GaussianBlur, Grayscale, Solarize};

use super::blur::gaussian_blur;
use super::step::{Apply, Draws, Inputs, Made};
use crate::data::order::below;
use crate::data::{RgbImage, SampleError};

impl Apply for ColorJitter {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let mut image = inputs.own_rgb(0)?;
        if !draws.happens(self.p) {
            return Ok(Made::drawn(image, [1.0, 1.0, 1.0, 0.0]));
        }
        let factor = |block, most: f64| match most {
            0.0 => 1.0,
            _ => draws.between(block, ((1.0 - most).max(0.0), 1.0 + most)),
        };
        let [brightness, contrast, saturation] =
            [factor(2, self.brightness), factor(3, self.contrast), factor(4, self.saturation)];
        let hue = if self.hue == 0.0 { 0.0 } else { draws.between(5, (-self.hue, self.hue)) };
        for change in order(draws.block(1)) {
            match change {
                0 if self.brightness > 0.0 => change_brightness(&mut image, brightness as f32),
                1 if self.contrast > 0.0 => change_contrast(&mut image, contrast as f32),
                2 if self.saturation > 0.0 => change_saturation(&mut image, saturation as f32),
                3 if self.hue > 0.0 => turn_hue(&mut image, hue),
                _ => {}
            }
        }
        Ok(Made::drawn(image, [brightness, contrast, saturation, hue].map(|drawn| drawn as f32)))
    }
}

/// A random order of four.
fn order(bits: [u32; 4]) -> [usize; 4] {
    let mut order = [0, 1, 2, 3];
    for last in (1..4).rev() {
        order.swap(last, below(last as u64 + 1, [bits[last], 0, 0, 0]) as usize);
    }
    order
}

/// `factor` of a level and what is missing of a base, in f32 and rounded down, as Pillow's `Image.blend`.
fn blend(base: u8, level: u8, factor: f32) -> u8 {
    // The cast saturates below 0 and above 255.
    (f32::from(base) + factor * (f32::from(level) - f32::from(base))) as u8
}

fn change_levels(image: &mut RgbImage, change: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|level| change(level as u8));
    image.pixels.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
}

fn change_pixels(image: &mut RgbImage, change: impl Fn([u8; 3]) -> [u8; 3]) {
    let (pixels, _) = image.pixels.as_chunks_mut::<3>();
    pixels.iter_mut().for_each(|pixel| *pixel = change(*pixel));
}

fn change_brightness(image: &mut RgbImage, factor: f32) {
    change_levels(image, |level| blend(0, level, factor));
}

/// Blends with the mean luminance.
fn change_contrast(image: &mut RgbImage, factor: f32) {
    let (pixels, _) = image.pixels.as_chunks::<3>();
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luminance(*pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    change_levels(image, |level| blend(mean, level, factor));
}

/// Blends with the luminance of each pixel.
fn change_saturation(image: &mut RgbImage, factor: f32) {
    change_pixels(image, |pixel| {
        let gray = luminance(pixel);
        pixel.map(|level| blend(gray, level, factor))
    });
}

/// Turns the hue by a share of its circle.
fn turn_hue(image: &mut RgbImage, share: f64) {
    // Rounded towards zero, then modulo 256.
    let turn = (share * 255.0) as i32 as u8;
    change_pixels(image, |pixel| {
        let [hue, saturation, value] = hsv(pixel);
        rgb([hue.wrapping_add(turn), saturation, value])
    });
}

/// ITU-R 601-2 luma with 16 bits, Pillow's mode `L`.
fn luminance([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// Hue, saturation and value of 8 bits, Pillow's mode `HSV`: what it computes in f32 and what in f64 decides the last bit.
fn hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [r, g, b] = [red, green, blue].map(|level| f32::from(most - level) / range);
    let hue = if red == most {
        b - g
    } else if green == most {
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let turned = f64::from(hue) / 6.0 + 1.0;
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// The way back from [`hsv`].
fn rgb([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let place = f64::from(hue) * 6.0 / 255.0;
    let sector = place.floor();
    let part = (place - sector) as f32;
    let strength = (f64::from(saturation) / 255.0) as f32;
    let level = |missing: f64| (f64::from(value) * (1.0 - missing)).round() as u8;
    let low = level(f64::from(strength));
    let falling = level(f64::from(strength * part));
    let rising = level(f64::from(strength) * (1.0 - f64::from(part)));
    match sector as u32 % 6 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    }
}

impl Apply for Grayscale {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let mut image = inputs.own_rgb(0)?;
        let gray = draws.happens(self.p);
        if gray {
            change_pixels(&mut image, |pixel| [luminance(pixel); 3]);
        }
        Ok(Made::drawn(image, [f32::from(gray)]))
    }
}

impl Apply for Solarize {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let mut image = inputs.own_rgb(0)?;
        let solarized = draws.happens(self.p);
        if solarized {
            solarize(&mut image, self.threshold);
        }
        Ok(Made::drawn(image, [f32::from(solarized)]))
    }
}

fn solarize(image: &mut RgbImage, threshold: u32) {
    change_levels(image, |level| if u32::from(level) < threshold { level } else { 255 - level });
}

impl Apply for GaussianBlur {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let mut image = inputs.own_rgb(0)?;
        let sigma = if draws.happens(self.p) { draws.between(1, self.sigma) } else { 0.0 };
        if sigma > 0.0 {
            gaussian_blur(&mut image, sigma);
        }
        Ok(Made::drawn(image, [sigma as f32]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Golden;
    use super::*;

    /// Every level of torchvision's on Pillow's images.
    #[test]
    fn changes_as_torchvision() {
        type Change = fn(&mut RgbImage, f64);
        let changes: [(&str, Change); 6] = [
            ("brightness", |image, factor| change_brightness(image, factor as f32)),
            ("contrast", |image, factor| change_contrast(image, factor as f32)),
            ("saturation", |image, factor| change_saturation(image, factor as f32)),
            ("hue", turn_hue),
            ("grayscale", |image, _| change_pixels(image, |pixel| [luminance(pixel); 3])),
            ("solarize", |image, threshold| solarize(image, threshold as u32)),
        ];
        for (name, change) in changes {
            Golden::check(name, |golden| {
                let mut image = golden.image();
                change(&mut image, golden.number("factor"));
                Some(image)
            });
        }
    }

    #[test]
    fn all_orders_are_drawn() {
        let (n, mut seen) = (24_000u64, std::collections::BTreeMap::new());
        for index in 0..n {
            let draws = Draws { key: [1, 2], index, position: 3 };
            *seen.entry(order(draws.block(1))).or_insert(0u64) += 1;
        }
        // Six standard deviations of a count.
        let slack = 6.0 * (n as f64 / 24.0).sqrt();
        assert_eq!(seen.len(), 24);
        assert!(seen.values().all(|count| (*count as f64 - n as f64 / 24.0).abs() < slack), "{seen:?}");
    }
}

//! Gaussian blur by three box filters an axis, level for level Pillow's `ImageFilter.GaussianBlur`.
//!
//! A box of a radius with a fraction weighs all whole pixels of it alike and one more on either side by what is left (Gwosdek et
//! al., *Theoretical foundations of Gaussian convolution by extended box filtering*, 2011). Weights have 24 bits, levels are
//! rounded after each pass, and beyond the border stands the last pixel.

use crate::data::{RgbImage, scratch};

/// Box filters of an axis.
const PASSES: usize = 3;

/// Blurs an image with standard deviation `sigma` in pixels.
pub(super) fn gaussian_blur(image: &mut RgbImage, sigma: f64) {
    let window = BoxFilter::of(sigma as f32);
    let (stride, mut line) = (image.stride(), scratch::zeros(image.stride()));
    for row in image.pixels.chunks_exact_mut(stride) {
        for _ in 0..PASSES {
            line.copy_from_slice(row);
            window.along(&line, row);
        }
    }
    scratch::give(line);
    let mut source = scratch::zeros(image.pixels.len());
    for _ in 0..PASSES {
        std::mem::swap(&mut source, &mut image.pixels);
        window.across(&source, stride, &mut image.pixels);
    }
    scratch::give(source);
}

/// A box filter.
struct BoxFilter {
    /// Pixels on either side that count in full.
    radius: usize,
    /// Weight of one of them, in 2^-24.
    whole: u32,
    /// Weight of the next one on either side.
    part: u32,
}

impl BoxFilter {
    /// That of which three make a Gaussian. In f32 as Pillow does: a radius that is off in its last place is another blur.
    fn of(sigma: f32) -> BoxFilter {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        let part = part / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let radius = whole + part;
        let full = radius as usize;
        let whole = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let part = (1u32 << 24).saturating_sub((2 * full as u32 + 1) * whole) / 2;
        BoxFilter { radius: full, whole, part }
    }

    fn level(&self, sum: u32, ends: u32) -> u8 {
        // Below 2^32: weights sum to 2^24, levels are below 2^8.
        ((sum * self.whole + ends * self.part + (1 << 23)) >> 24) as u8
    }

    /// Filters a row of pixels from left to right.
    fn along(&self, from: &[u8], to: &mut [u8]) {
        let ((pixels, _), (out, _)) = (from.as_chunks::<3>(), to.as_chunks_mut::<3>());
        let (last, radius) = (pixels.len() - 1, self.radius);
        let mut sums = [0u32; 3];
        // What lies around the pixel left of the first.
        for x in 0..radius {
            add(&mut sums, pixels[x.min(last)]);
        }
        (0..=radius).for_each(|_| add(&mut sums, pixels[0]));
        for x in 0..=last {
            add(&mut sums, pixels[(x + radius).min(last)]);
            let gone = if x > radius { pixels[x - radius - 1] } else { pixels[0] };
            for channel in 0..3 {
                sums[channel] -= u32::from(gone[channel]);
            }
            let next = pixels[(x + radius + 1).min(last)];
            out[x] = std::array::from_fn(|c| self.level(sums[c], u32::from(gone[c]) + u32::from(next[c])));
        }
    }

    /// Filters all columns from top to bottom, row by row.
    fn across(&self, from: &[u8], stride: usize, to: &mut [u8]) {
        let (last, radius) = (from.len() / stride - 1, self.radius);
        let row = |y: usize| &from[y * stride..(y + 1) * stride];
        let mut sums = vec![0u32; stride];
        for y in 0..radius {
            sums.iter_mut().zip(row(y.min(last))).for_each(|(sum, level)| *sum += u32::from(*level));
        }
        sums.iter_mut().zip(row(0)).for_each(|(sum, level)| *sum += (radius as u32 + 1) * u32::from(*level));
        for (y, out) in to.chunks_exact_mut(stride).enumerate() {
            let gone = row(if y > radius { y - radius - 1 } else { 0 });
            let (come, next) = (row((y + radius).min(last)), row((y + radius + 1).min(last)));
            for ((((out, sum), gone), come), next) in out.iter_mut().zip(&mut sums).zip(gone).zip(come).zip(next) {
                *sum = *sum + u32::from(*come) - u32::from(*gone);
                *out = self.level(*sum, u32::from(*gone) + u32::from(*next));
            }
        }
    }
}

fn add(sums: &mut [u32; 3], pixel: [u8; 3]) {
    sums.iter_mut().zip(pixel).for_each(|(sum, level)| *sum += u32::from(level));
}

#[cfg(test)]
mod tests {
    use super::super::tests::Golden;
    use super::*;

    /// Weights sum to one, whatever the deviation, so that no sum leaves its 32 bits and even images stay even.
    #[test]
    fn weights_sum_to_one() {
        for step in 0..200_000 {
            let filter = BoxFilter::of((step as f32 * 1e-4).exp2() * 0.001);
            let sum = (2 * filter.radius as u32 + 1) * filter.whole + 2 * filter.part;
            assert!(((1 << 24) - 1..=1 << 24).contains(&sum), "{sum} at step {step}");
        }
        let even = RgbImage { width: 7, height: 3, pixels: [255, 1, 128].repeat(21) };
        for sigma in [0.1, 1.0, 30.0, 1000.0] {
            let mut image = even.clone();
            gaussian_blur(&mut image, sigma);
            assert_eq!(image, even, "{sigma}");
        }
    }

    /// Every level of Pillow's, from a tenth of a pixel to boxes wider than the image.
    #[test]
    fn blurs_as_pillow() {
        Golden::check("gaussian_blur", |golden| {
            let mut image = golden.image();
            gaussian_blur(&mut image, golden.number("sigma"));
            Some(image)
        });
    }
}

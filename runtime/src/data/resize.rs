//! Antialiased resize, as Pillow and PyTorch (`antialias=True`) define it.
//!
//! Output pixel `i` has its centre at `(i + 0.5) * in / out` and is the weighted mean of the input pixels within the filter's
//! support, which is widened by `in / out` when minifying; weights are cut at the border and made to sum to one. Both axes are
//! separate; the intermediate is f32, the result is rounded to u8. Pillow's intermediate is u8: results differ by at most one
//! level, and by more only where bicubic leaves 0 to 255 beside a hard edge between black and white, which Pillow cuts twice.
//!
//! One output row at a time: input rows are added up vertically into an f32 row, which is then reduced horizontally; so the
//! intermediate stays in the first-level cache. All sums have one order whatever the instruction set: results are the same
//! bits on every machine.

use alip_plan::pipeline::Filter;

use super::{RgbImage, scratch};

/// Resizes to `height` x `width` (each at least 1).
pub fn resize(image: &RgbImage, height: u32, width: u32, filter: Filter) -> RgbImage {
    if (image.height, image.width) == (height, width) {
        return image.clone();
    }
    let vertical = Taps::new(image.height, height, filter);
    let horizontal = Taps::new(image.width, width, filter);
    let mut out = RgbImage { width, height, pixels: scratch::zeros(height as usize * width as usize * 3) };
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which was just asked.
        unsafe { resize_rows_avx2(image, &vertical, &horizontal, &mut out.pixels) };
        return out;
    }
    resize_rows(image, &vertical, &horizontal, &mut out.pixels);
    out
}

/// The same code, compiled for wider registers; no fused multiply-add, which would change results.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn resize_rows_avx2(image: &RgbImage, vertical: &Taps, horizontal: &Taps, out: &mut [u8]) {
    resize_rows(image, vertical, horizontal, out);
}

#[inline(always)]
fn resize_rows(image: &RgbImage, vertical: &Taps, horizontal: &Taps, out: &mut [u8]) {
    let stride = image.stride();
    // One more element, so that the last pixel can be read as four.
    let mut sums = vec![0.0f32; stride + 1];
    let out_stride = horizontal.starts.len() * 3;
    for (y, out_row) in out.chunks_exact_mut(out_stride).enumerate() {
        sums.fill(0.0);
        let (start, weights) = vertical.of(y);
        let rows = image.pixels.chunks_exact(stride).skip(start);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += weight * f32::from(level);
            }
        }
        for (x, pixel) in out_row.chunks_exact_mut(3).enumerate() {
            let (start, weights) = horizontal.of(x);
            // Four lanes, the fourth of which is not used: one vector operation per tap.
            let mut total = [0.0f32; 4];
            for (levels, &weight) in sums[start * 3..].windows(4).step_by(3).zip(weights) {
                for (lane, level) in total.iter_mut().zip(levels) {
                    *lane += weight * level;
                }
            }
            for (level, lane) in pixel.iter_mut().zip(total) {
                // Saturates below 0 and above 255, where bicubic overshoots.
                *level = (lane + 0.5) as u8;
            }
        }
    }
}

/// For each output position the first input position and the weights from there on.
struct Taps {
    starts: Vec<usize>,
    offsets: Vec<usize>,
    weights: Vec<f32>,
}

impl Taps {
    fn new(input: u32, output: u32, filter: Filter) -> Taps {
        let scale = f64::from(input) / f64::from(output);
        let widen = scale.max(1.0);
        let support = match filter {
            Filter::Triangle => 1.0,
            Filter::Bicubic => 2.0,
        } * widen;
        let mut taps = Taps { starts: Vec::new(), offsets: vec![0], weights: Vec::new() };
        for i in 0..output {
            let centre = (f64::from(i) + 0.5) * scale;
            let start = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).clamp(start + 1, input as usize);
            let start = start.min(end - 1);
            let weigh = |position: usize| kernel(filter, (position as f64 - centre + 0.5) / widen);
            let total: f64 = (start..end).map(weigh).sum();
            taps.starts.push(start);
            taps.weights.extend((start..end).map(|position| (weigh(position) / total) as f32));
            taps.offsets.push(taps.weights.len());
        }
        taps
    }

    #[inline(always)]
    fn of(&self, position: usize) -> (usize, &[f32]) {
        (self.starts[position], &self.weights[self.offsets[position]..self.offsets[position + 1]])
    }
}

fn kernel(filter: Filter, x: f64) -> f64 {
    let x = x.abs();
    match filter {
        Filter::Triangle => (1.0 - x).max(0.0),
        // Keys 1981, equation 15, a = -0.5.
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        Filter::Bicubic => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pattern that the golden data were made from: a gradient and a hash of the position, away from black and white (see
    /// the module's head).
    fn pattern(height: u32, width: u32) -> RgbImage {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let hash = (x * 73 + y * 151 + c * 199 + x * y * 7) % 97;
                    pixels.push((64 + (x * 5 + y * 3 + c * 40 + hash) % 128) as u8);
                }
            }
        }
        RgbImage { width, height, pixels }
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        input: (u32, u32),
        output: (u32, u32),
        filter: Filter,
        pixels: Vec<u8>,
    }

    /// Within one level of Pillow 13 (`Image.resize` with BILINEAR and BICUBIC), up, down, and by different factors per axis.
    ///
    /// `pillow.jsonl` was written by: for each ((h, w), (H, W)) and filter, `Image.fromarray(pattern(h, w)).resize((W, H), f)`.
    #[test]
    fn agrees_with_pillow() {
        let lines = include_str!("../../../tests/goldens/resize/pillow.jsonl").lines();
        let mut cases = 0;
        for golden in lines.map(|line| serde_json::from_str::<Golden>(line).expect("golden line")) {
            let ((h, w), (height, width)) = (golden.input, golden.output);
            let ours = resize(&pattern(h, w), height, width, golden.filter);
            assert_eq!(ours.pixels.len(), golden.pixels.len());
            let worst = ours.pixels.iter().zip(&golden.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            let different = ours.pixels.iter().zip(&golden.pixels).filter(|(a, b)| a != b).count();
            assert!(worst <= Some(1), "{h}x{w} to {height}x{width} {:?}: off by {worst:?}", golden.filter);
            // Pillow rounds its intermediate, so some levels differ, but not most.
            assert!(different * 2 < golden.pixels.len(), "{different} of {} differ", golden.pixels.len());
            cases += 1;
        }
        assert_eq!(cases, 14);
    }

    #[test]
    fn constant_images_stay_constant() {
        for level in [0u8, 1, 127, 254, 255] {
            let image = RgbImage { width: 31, height: 7, pixels: vec![level; 31 * 7 * 3] };
            for (height, width) in [(1, 1), (3, 100), (50, 2), (7, 31)] {
                for filter in [Filter::Triangle, Filter::Bicubic] {
                    let out = resize(&image, height, width, filter);
                    assert!(out.pixels.iter().all(|out| *out == level), "{level} at {height}x{width}");
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_instruction_sets_give_the_same_bits() {
        let image = pattern(61, 83);
        let (vertical, horizontal) = (Taps::new(61, 24, Filter::Bicubic), Taps::new(83, 30, Filter::Bicubic));
        let mut plain = vec![0; 24 * 30 * 3];
        resize_rows(&image, &vertical, &horizontal, &mut plain);
        assert_eq!(resize(&image, 24, 30, Filter::Bicubic).pixels, plain);
    }
}

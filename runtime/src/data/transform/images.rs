//! Decoding, sizes, turning, and the way to floats.

use std::borrow::Cow;

use alip_plan::pipeline::{DecodeRgb, Filter, Mirror, Resize, ResizeShorter, Rotate, Sampling, shorter_side};

use super::Row;
use super::step::{Apply, Draws, Inputs, Made, mismatch};
use super::windows::cut;
use crate::data::decode::decode_rgb;
use crate::data::{RgbImage, SampleError, resize, scratch};

impl Apply for DecodeRgb {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let (crop, limits) = (inputs.crop(1), inputs.limits);
        let file = inputs.encoded(0)?;
        let image = decode_rgb(&file, limits)?;
        scratch::give_file(file);
        let Some(crop) = crop else { return Ok(image.into()) };
        let part = cut(&image, crop)?;
        scratch::give(image.pixels);
        Ok(part.into())
    }
}

impl Apply for Resize {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        Ok(resized(inputs.rgb(0)?, (self.height, self.width), self.filter).into())
    }
}

impl Apply for ResizeShorter {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let limits = inputs.limits;
        let image = inputs.rgb(0)?;
        let (height, width) = shorter_side(image.height, image.width, self.size);
        // An extreme aspect ratio would blow a sliver up to gigabytes.
        if u64::from(height) * u64::from(width) > limits.max_pixels {
            return Err(SampleError(format!(
                "an image of {}x{} pixels is too long and thin to be resized to {width}x{height}",
                image.width, image.height
            )));
        }
        Ok(resized(image, (height, width), self.filter).into())
    }
}

fn resized(image: Cow<'_, RgbImage>, (height, width): (u32, u32), filter: Filter) -> RgbImage {
    if (image.height, image.width) == (height, width) {
        return image.into_owned();
    }
    let small = resize(&image, height, width, filter);
    scratch::give_image(image);
    small
}

impl Apply for Mirror {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let mut image = inputs.own_rgb(0)?;
        let mirrored = draws.happens(self.p);
        if mirrored {
            mirror(&mut image);
        }
        Ok(Made::drawn(image, [f32::from(mirrored)]))
    }
}

/// Swaps left and right.
pub fn mirror(image: &mut RgbImage) {
    let stride = image.stride();
    for row in image.pixels.chunks_exact_mut(stride) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

impl Apply for Rotate {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let degrees = if draws.happens(self.p) { draws.between(1, self.degrees) } else { 0.0 };
        let mut image = inputs.own_rgb(0)?;
        if degrees != 0.0 {
            let turned = rotate(&image, degrees, self.filter, self.fill);
            scratch::give(std::mem::replace(&mut image, turned).pixels);
        }
        Ok(Made::drawn(image, [degrees as f32]))
    }
}

/// An image turned counter-clockwise about its centre, of the same size, as Pillow turns it (`Image.rotate`).
fn rotate(image: &RgbImage, degrees: f64, sampling: Sampling, fill: u8) -> RgbImage {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    // So that quarter turns are exact: Pillow rounds to 15 digits too.
    let rounded = |x: f64| (x * 1e15).round_ties_even() / 1e15;
    let (cos, sin) = (rounded(libm::cos(angle)), rounded(libm::sin(angle)));
    let (mid_x, mid_y) = (f64::from(image.width) / 2.0, f64::from(image.height) / 2.0);
    let (shift_x, shift_y) = (-cos * mid_x - sin * mid_y + mid_x, sin * mid_x - cos * mid_y + mid_y);
    let mut turned = scratch::zeros(image.pixels.len());
    let (pixels, _) = turned.as_chunks_mut::<3>();
    // 16 bits before the point and 16 behind, as Pillow counts.
    let fixed = |x: f64| (x * 65536.0 + 0.5).floor() as i64;
    let (step_x, step_y) = (fixed(cos), fixed(-sin));
    for (y, row) in pixels.chunks_exact_mut(image.width as usize).enumerate() {
        let (place_x, place_y) = match sampling {
            Sampling::Nearest => (
                fixed(shift_x + cos * 0.5 + sin * 0.5) + y as i64 * fixed(sin),
                fixed(shift_y - sin * 0.5 + cos * 0.5) + y as i64 * fixed(cos),
            ),
            Sampling::Bilinear => (0, 0),
        };
        for (x, pixel) in row.iter_mut().enumerate() {
            let found = match sampling {
                Sampling::Nearest => {
                    let x = x as i64;
                    nearest(image, (place_x + x * step_x) >> 16, (place_y + x * step_y) >> 16)
                }
                Sampling::Bilinear => {
                    let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
                    bilinear(image, cos * x + sin * y + shift_x, -sin * x + cos * y + shift_y)
                }
            };
            *pixel = found.unwrap_or([fill; 3]);
        }
    }
    RgbImage { width: image.width, height: image.height, pixels: turned }
}

fn nearest(image: &RgbImage, x: i64, y: i64) -> Option<[u8; 3]> {
    let inside = (0..i64::from(image.width)).contains(&x) && (0..i64::from(image.height)).contains(&y);
    inside.then(|| pixel(image, x as usize, y as usize))
}

/// What is at a place, pixel centres lying at halves; none outside of the image.
fn bilinear(image: &RgbImage, x: f64, y: f64) -> Option<[u8; 3]> {
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    if !(0.0..width).contains(&x) || !(0.0..height).contains(&y) {
        return None;
    }
    let (x, y) = (x - 0.5, y - 0.5);
    let (right, down) = (x - x.floor(), y - y.floor());
    let column = |x: f64| x.clamp(0.0, width - 1.0) as usize;
    let line = |y: f64| y.clamp(0.0, height - 1.0) as usize;
    let (left, next) = (column(x.floor()), column(x.floor() + 1.0));
    let between = |a: f64, b: f64, d: f64| a + (b - a) * d;
    let rows = [line(y.floor()), line(y.floor() + 1.0)].map(|y| [pixel(image, left, y), pixel(image, next, y)]);
    Some(std::array::from_fn(|channel| {
        let [above, below] = rows.map(|[a, b]| between(f64::from(a[channel]), f64::from(b[channel]), right));
        between(above, below, down) as u8
    }))
}

fn pixel(image: &RgbImage, x: usize, y: usize) -> [u8; 3] {
    let at = (y * image.width as usize + x) * 3;
    [image.pixels[at], image.pixels[at + 1], image.pixels[at + 2]]
}

/// `(x - 255 mean) / (255 std)` of every level of every channel, rounded once from f64.
pub(super) struct LevelTable([[f32; 256]; 3]);

impl LevelTable {
    pub(super) fn new(mean: [f64; 3], std: [f64; 3]) -> LevelTable {
        LevelTable(std::array::from_fn(|channel| {
            std::array::from_fn(|level| ((level as f64 - 255.0 * mean[channel]) / (255.0 * std[channel])) as f32)
        }))
    }

    /// Normalises an image into `out`, f32 `[3, height, width]`.
    fn normalize(&self, image: &RgbImage, out: &mut [f32]) {
        let plane = image.width as usize * image.height as usize;
        let (pixels, _) = image.pixels.as_chunks::<3>();
        for ((channel, levels), out) in self.0.iter().enumerate().zip(out.chunks_exact_mut(plane.max(1))) {
            for (out, pixel) in out.iter_mut().zip(pixels) {
                *out = levels[usize::from(pixel[channel])];
            }
        }
    }

    /// Normalises an image into a row, or leaves that to whoever takes it in bytes.
    pub(super) fn write(&self, image: &RgbImage, row: &mut Row<'_>) -> Result<(), SampleError> {
        let length = match row {
            Row::F32(row) => row.len(),
            Row::U8(row) => row.len(),
            Row::I32(_) => return mismatch("an image", "i32"),
        };
        if length != image.pixels.len() {
            let (width, height) = (image.width, image.height);
            let why = format!("an image of {width}x{height} pixels does not fill a row of {length} numbers");
            return Err(SampleError(why));
        }
        match row {
            Row::U8(row) => row.copy_from_slice(&image.pixels),
            Row::F32(row) => self.normalize(image, row),
            Row::I32(_) => {}
        }
        Ok(())
    }
}

/// An image as f32 `[3, height, width]`: `(x - 255 mean) / (255 std)`.
pub fn normalize_rgb(image: &RgbImage, mean: [f64; 3], std: [f64; 3]) -> Vec<f32> {
    let mut out = vec![0.0; image.pixels.len()];
    LevelTable::new(mean, std).normalize(image, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use alip_plan::pipeline::{CLIP_MEAN, CLIP_STD};

    use super::super::tests::{Golden, numbered};
    use super::*;

    #[test]
    fn mirror_swaps_pixels_and_not_channels() {
        let mut image = numbered(1, 3);
        mirror(&mut image);
        assert_eq!(image.pixels, [2, 3, 4, 1, 2, 3, 0, 1, 2]);
    }

    #[test]
    fn normalised_levels() {
        let image = RgbImage { width: 2, height: 1, pixels: vec![0, 128, 255, 255, 0, 1] };
        let out = normalize_rgb(&image, CLIP_MEAN, CLIP_STD);
        let at = |level: f64, c: usize| ((level / 255.0 - CLIP_MEAN[c]) / CLIP_STD[c]) as f32;
        let expected = [at(0.0, 0), at(255.0, 0), at(128.0, 1), at(0.0, 1), at(255.0, 2), at(1.0, 2)];
        for (out, expected) in out.iter().zip(expected) {
            assert!((out - expected).abs() <= f32::EPSILON * expected.abs().max(1.0), "{out} {expected}");
        }
    }

    /// Every level of Pillow's, which `tests/goldens/augment` has, whatever the angle and the size.
    #[test]
    fn turns_as_pillow() {
        for (filter, sampling) in [("nearest", Sampling::Nearest), ("bilinear", Sampling::Bilinear)] {
            Golden::check("rotate", |golden| {
                (golden.text("filter") == filter)
                    .then(|| rotate(&golden.image(), golden.number("degrees"), sampling, golden.number("fill") as u8))
            });
        }
    }

    #[test]
    fn quarter_turns_are_exact() {
        let image = numbered(5, 5);
        for sampling in [Sampling::Nearest, Sampling::Bilinear] {
            let turned = rotate(&image, 90.0, sampling, 0);
            for (x, y) in (0..5).flat_map(|x| (0..5).map(move |y| (x, y))) {
                assert_eq!(pixel(&turned, x, y), pixel(&image, 4 - y, x), "{sampling:?} at {x}, {y}");
            }
            assert_eq!(rotate(&turned, 270.0, sampling, 0), image);
        }
    }
}

//! Rectangles of an image: drawn, cut out, in the middle. What is random takes its bits from a function `draw(block)`, so that
//! it depends on nothing but (seed, epoch, sample, op).

use alip_plan::philox::uniform_f64;
use alip_plan::pipeline::{self, CenterCrop, RandomAreaCrop, RandomResizedCrop, WholeWindow};

use super::step::{Apply, Draws, Inputs, Made, mismatch};
use crate::data::order::below;
use crate::data::{RgbImage, SampleError, scratch};

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Left edge.
    pub x: u32,
    /// Top edge.
    pub y: u32,
    /// Width, at least 1.
    pub width: u32,
    /// Height, at least 1.
    pub height: u32,
}

/// A random rectangle of a `width` x `height` image: its area a uniform share, its aspect (width / height) log-uniform, its
/// place uniform among all where it lies inside. `draw(i)` gives 128 random bits: block `2 i` for the shape of attempt `i`,
/// block `2 i + 1` for its place.
///
/// As NVIDIA DALI does: an image so long that no allowed rectangle has the least area gives the largest allowed one at once;
/// after `attempts` rectangles that do not fit, or whose whole pixels have another aspect than allowed, it is the largest
/// allowed one too. It stands at a random place like any other (torchvision takes the centre).
pub fn random_area_crop(
    (width, height): (u32, u32),
    area: (f64, f64),
    aspect: (f64, f64),
    attempts: u32,
    draw: impl Fn(u64) -> [u32; 4],
) -> Crop {
    let draws = Shapes::new((width, height), area, aspect);
    let try_shape = |attempt: u64| {
        let (w, h) = draws.at(draw(2 * attempt));
        let (w, h) = ((libm::round(w) as u32).max(1), (libm::round(h) as u32).max(1));
        let allowed = (aspect.0..=aspect.1).contains(&(f64::from(w) / f64::from(h)));
        (w <= width && h <= height && allowed).then_some((attempt, (w, h)))
    };
    let longest = longest_crop((width, height), area.0, aspect);
    let attempts = u64::from(attempts);
    let (attempt, size) = match longest {
        Some(size) => (attempts, size),
        None => (0..attempts)
            .find_map(try_shape)
            .unwrap_or_else(|| (attempts, largest_crop((width, height), area.1, aspect))),
    };
    anywhere((width, height), size, draw(2 * attempt + 1))
}

/// The window of torchvision's `RandomResizedCrop`. `draw(i)` gives 128 random bits, blocks as of [`random_area_crop`].
///
/// After ten rectangles that do not fit it is the middle of the image, cut to an allowed aspect. torchvision draws in f32, and
/// refuses images so small and thin that nothing of them would be left, of which this takes a pixel's width.
pub fn random_resized_crop(
    (width, height): (u32, u32),
    area: (f64, f64),
    aspect: (f64, f64),
    draw: impl Fn(u64) -> [u32; 4],
) -> Crop {
    let draws = Shapes::new((width, height), area, aspect);
    for attempt in 0..10 {
        let (w, h) = draws.at(draw(2 * attempt));
        let (w, h) = (w.round_ties_even() as u32, h.round_ties_even() as u32);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return anywhere((width, height), (w, h), draw(2 * attempt + 1));
        }
    }
    let (w, h) = (f64::from(width), f64::from(height));
    let whole = |side: f64, limit: u32| (side.round_ties_even() as u32).clamp(1, limit);
    let (w, h) = if w / h < aspect.0 {
        (width, whole(w / aspect.0, height))
    } else if w / h > aspect.1 {
        (whole(h * aspect.1, width), height)
    } else {
        (width, height)
    };
    Crop { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h }
}

/// Rectangles by area and aspect.
struct Shapes {
    whole: f64,
    area: (f64, f64),
    log_aspect: (f64, f64),
}

impl Shapes {
    fn new((width, height): (u32, u32), area: (f64, f64), aspect: (f64, f64)) -> Shapes {
        let whole = f64::from(width) * f64::from(height);
        Shapes { whole, area, log_aspect: (libm::log(aspect.0), libm::log(aspect.1)) }
    }

    /// Width and height, not yet whole: the share of the area uniform, width / height log-uniform.
    fn at(&self, bits: [u32; 4]) -> (f64, f64) {
        let (area, (low, high)) = (self.area, self.log_aspect);
        let share = area.0 + (area.1 - area.0) * uniform_f64(bits[0], bits[1]);
        let ratio = libm::exp(low + (high - low) * uniform_f64(bits[2], bits[3]));
        (libm::sqrt(self.whole * share * ratio), libm::sqrt(self.whole * share / ratio))
    }
}

/// A rectangle of a size at any place where it lies inside.
fn anywhere((width, height): (u32, u32), (w, h): (u32, u32), bits: [u32; 4]) -> Crop {
    let x = below(u64::from(width - w) + 1, [bits[0], bits[1], 0, 0]) as u32;
    let y = below(u64::from(height - h) + 1, [bits[2], bits[3], 0, 0]) as u32;
    Crop { x, y, width: w, height: h }
}

/// The largest rectangle of an allowed aspect, where even that has less than the least area; rounded down.
fn longest_crop((width, height): (u32, u32), least: f64, aspect: (f64, f64)) -> Option<(u32, u32)> {
    let (w, h) = (f64::from(width), f64::from(height));
    let (widest, tallest) = ((h * aspect.1).floor().max(1.0), (w / aspect.0).floor().max(1.0));
    if h * widest < w * h * least {
        Some((widest as u32, height))
    } else if w * tallest < w * h * least {
        Some((width, tallest as u32))
    } else {
        None
    }
}

/// The largest rectangle of an allowed aspect, made smaller if it has more than the largest area.
fn largest_crop((width, height): (u32, u32), most: f64, aspect: (f64, f64)) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    let (cut_w, cut_h) = if w / h > aspect.1 {
        (libm::round(h * aspect.1), h)
    } else if w / h < aspect.0 {
        (w, libm::round(w / aspect.0))
    } else {
        (w, h)
    };
    let scale = libm::sqrt((most * w * h / (cut_w * cut_h)).min(1.0));
    let whole = |side: f64, limit: u32| ((side * scale) as u32).clamp(1, limit);
    (whole(cut_w, width), whole(cut_h, height))
}

/// Cuts a rectangle out of an image.
///
/// # Errors
/// It does not lie within the image.
pub(super) fn cut(image: &RgbImage, crop: Crop) -> Result<RgbImage, SampleError> {
    let Crop { x, y, width, height } = crop;
    let inside =
        |at: u32, length: u32, whole: u32| length >= 1 && at.checked_add(length).is_some_and(|end| end <= whole);
    if !inside(x, width, image.width) || !inside(y, height, image.height) {
        return Err(SampleError(format!("a crop {crop:?} outside the image {}x{}", image.width, image.height)));
    }
    let (from, bytes) = (x as usize * 3, width as usize * 3);
    let mut pixels = scratch::take(bytes * height as usize);
    for row in image.pixels.chunks_exact(image.stride()).skip(y as usize).take(height as usize) {
        pixels.extend_from_slice(&row[from..from + bytes]);
    }
    Ok(RgbImage { width, height, pixels })
}

/// The middle of an image; odd margins are divided as torchvision does (half to even).
///
/// # Errors
/// The image is smaller than the crop.
pub fn center_crop(image: &RgbImage, height: u32, width: u32) -> Result<RgbImage, SampleError> {
    if (image.height, image.width) == (height, width) {
        return Ok(image.clone());
    }
    if image.height < height || image.width < width {
        return Err(SampleError(format!(
            "an image of {}x{} pixels is smaller than the centre crop {width}x{height}",
            image.width, image.height
        )));
    }
    let half = |margin: u32| margin / 2 + u32::from(margin % 4 == 3);
    cut(image, Crop { x: half(image.width - width), y: half(image.height - height), width, height })
}

/// A window with its place as shares of the image.
fn window(crop: Crop, (width, height): (u32, u32)) -> Made {
    let share = |length: u32, of: u32| (f64::from(length) / f64::from(of.max(1))) as f32;
    let (x, y) = (share(crop.x, width), share(crop.y, height));
    Made::drawn(crop, [x, y, share(crop.width, width), share(crop.height, height)])
}

impl Apply for RandomAreaCrop {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let size = inputs.size(0)?;
        let crop = random_area_crop(size, self.area, self.aspect, self.attempts, |block| draws.block(block));
        Ok(window(crop, size))
    }
}

impl Apply for RandomResizedCrop {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let size = inputs.size(0)?;
        Ok(window(random_resized_crop(size, self.area, self.aspect, |block| draws.block(block)), size))
    }
}

impl Apply for WholeWindow {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let (width, height) = inputs.size(0)?;
        Ok(window(Crop { x: 0, y: 0, width, height }, (width, height)))
    }
}

impl Apply for pipeline::Crop {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let Some(crop) = inputs.crop(1) else { return mismatch("something else", "a crop") };
        let image = inputs.rgb(0)?;
        let part = cut(&image, crop)?;
        scratch::give_image(image);
        Ok(part.into())
    }
}

impl Apply for CenterCrop {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let image = inputs.rgb(0)?;
        let part = center_crop(&image, self.height, self.width)?;
        scratch::give_image(image);
        Ok(part.into())
    }
}

#[cfg(test)]
mod tests {
    use alip_plan::philox::{counter, philox4x32};

    use super::super::tests::numbered;
    use super::*;

    /// Area and aspect have the stated distributions where every draw fits, and every crop lies inside.
    #[test]
    fn crops_have_the_stated_distribution() {
        let (n, size) = (4_000u64, (1000, 1000));
        let (mut share, mut log_aspect, mut left) = (0.0, 0.0, 0.0);
        for sample in 0..n {
            let crop = random_area_crop(size, (0.3, 0.6), (0.8, 1.25), 100, |i| philox4x32(counter(sample, i), [1, 2]));
            assert!(crop.x + crop.width <= 1000 && crop.y + crop.height <= 1000);
            let area = f64::from(crop.width) * f64::from(crop.height) / 1e6;
            assert!((0.298..=0.602).contains(&area), "{crop:?}");
            share += area / n as f64;
            log_aspect += (f64::from(crop.width) / f64::from(crop.height)).ln() / n as f64;
            left += f64::from(crop.x) / f64::from(1000 - crop.width) / n as f64;
        }
        // Six standard deviations of the mean of n uniforms over each range.
        let bound = |range: f64| 6.0 * range / (12.0 * n as f64).sqrt();
        assert!((share - 0.45).abs() < bound(0.3), "mean share {share}");
        assert!(log_aspect.abs() < bound((1.25f64 / 0.8).ln()), "mean log aspect {log_aspect}");
        assert!((left - 0.5).abs() < bound(1.0), "mean left edge {left}");
    }

    /// An image in which no allowed rectangle has the least area, one in which hardly any has (16:9), and small ones in which
    /// none has whole pixels: the largest allowed rectangle, at any place with the same probability.
    #[test]
    fn crops_that_do_not_fit_fall_back_to_a_random_place() {
        let n = 4_000u64;
        for (size, fallback, share_of_fallbacks) in [
            ((1920, 1080), (1350, 1080), 0.99..=1.0),
            ((1080, 1920), (1080, 1350), 0.99..=1.0),
            ((3000, 100), (125, 100), 1.0..=1.0),
            ((100, 3000), (100, 125), 1.0..=1.0),
        ] {
            let room = [size.0 - fallback.0, size.1 - fallback.1];
            let (mut fallbacks, mut sum, mut squares) = (0.0, 0.0, 0.0);
            for sample in 0..n {
                let crop =
                    random_area_crop(size, (0.7, 1.0), (0.8, 1.25), 100, |i| philox4x32(counter(sample, i), [5, 6]));
                assert!(crop.x + crop.width <= size.0 && crop.y + crop.height <= size.1, "{crop:?}");
                if (crop.width, crop.height) == fallback {
                    fallbacks += 1.0;
                    let place = f64::from(crop.x + crop.y) / f64::from(room[0] + room[1]);
                    sum += place;
                    squares += place * place;
                }
            }
            assert!(share_of_fallbacks.contains(&(fallbacks / n as f64)), "{size:?}: {fallbacks} of {n} fall back");
            let (mean, variance) = (sum / fallbacks, squares / fallbacks - (sum / fallbacks) * (sum / fallbacks));
            // Six standard deviations of mean and variance of uniforms on [0, 1]; 1/room, since places are whole pixels.
            let slack = 1.0 / f64::from(room[0] + room[1]);
            assert!((mean - 0.5).abs() < 6.0 * (1.0 / 12.0 / fallbacks).sqrt() + slack, "{size:?}: mean {mean}");
            assert!(
                (variance - 1.0 / 12.0).abs() < 6.0 * (1.0 / 180.0 / fallbacks).sqrt() + slack,
                "{size:?}: {variance}"
            );
        }
    }

    #[test]
    fn sizes_of_fallbacks() {
        let draw = |i| philox4x32(counter(0, i), [3, 4]);
        let size = |size, area| {
            let crop = random_area_crop(size, area, (0.8, 1.25), 100, draw);
            (crop.width, crop.height)
        };
        // Too long for the least area: the widest allowed, rounded down.
        assert_eq!(size((3000, 2), (0.7, 1.0)), (2, 2));
        assert_eq!(size((2, 3000), (0.7, 1.0)), (2, 2));
        assert_eq!(size((1, 1), (0.7, 1.0)), (1, 1));
        // No whole pixels have an allowed aspect and area: the widest allowed, rounded, and no more than the largest area.
        assert_eq!(size((5, 2), (0.0, 1e-9)), (1, 1));
        assert_eq!(size((1, 2), (0.5, 1.0)), (1, 1));
    }

    #[test]
    fn centre_crops_divide_odd_margins_half_to_even() {
        let image = numbered(9, 12);
        // Margins 1 -> 0, 3 -> 2, 5 -> 2 and 7 -> 4.
        for (height, width, first) in [(8, 12, 0), (6, 11, 24), (4, 7, 2 * 12 + 2), (2, 5, 4 * 12 + 4)] {
            let crop = center_crop(&image, height, width).unwrap();
            assert_eq!((crop.height, crop.width, crop.pixels[0]), (height, width, first as u8), "{height}x{width}");
        }
        let error = center_crop(&image, 10, 12).unwrap_err().to_string();
        assert_eq!(error, "an image of 12x9 pixels is smaller than the centre crop 12x10");
    }
}

//! Pictures of scenes: where things lie exactly, and the pixels.
//!
//! Coordinates are fractions of the picture's side, x to the right, y down. Shapes are signed distance functions in units of
//! their radius; a pixel is covered by the share that the distance at its centre suggests (an edge one pixel wide). Only
//! +, -, *, /, sqrt and `libm` are used, so that every machine makes the same bytes.

use super::describe::{Background, Colour, Description, Ground, Layout, Pattern, Shape, Size};
use super::draws::Draws;
use crate::data::RgbImage;
use alip_plan::philox::{counter, philox4x32};

type Rgb = [f32; 3];

/// An object as drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Horizontal position of the centre, as a fraction of the side.
    pub x: f32,
    /// Vertical position of the centre, as a fraction of the side, downwards.
    pub y: f32,
    /// Radius, as a fraction of the side.
    pub radius: f32,
    turn: (f32, f32),
    colour: Rgb,
}

/// A scene: what it shows ([`Description`]) and how this one picture shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// What a caption tells.
    pub description: Description,
    /// Where each object is drawn, in the order of `description.objects`.
    pub placements: Vec<Placement>,
    ground: [Rgb; 2],
    direction: (f32, f32),
    period: f32,
    phase: f32,
    brightness: f32,
    blur: f32,
    noise: f32,
    noise_key: [u32; 2],
    index: u64,
}

impl Scene {
    /// A picture of `description`, with everything a caption does not tell drawn from `draws`.
    pub(super) fn new(description: Description, draws: &mut Draws, noise_key: [u32; 2], index: u64) -> Scene {
        let radii: Vec<f32> =
            description.objects.iter().map(|object| radius(object.size) * draws.between(0.94, 1.06)).collect();
        let centres = centres(description.layout, &radii, draws);
        let placements = (description.objects.iter().zip(&radii).zip(centres))
            .map(|((object, &radius), (x, y))| {
                // Up to 12 degrees: a square stays a square, not a diamond.
                let angle = draws.between(-0.21, 0.21);
                let colour = jitter(colour_rgb(object.kind.colour), draws);
                Placement { x, y, radius, turn: (libm::cosf(angle), libm::sinf(angle)), colour }
            })
            .collect();
        let angle = draws.between(0.0, std::f32::consts::TAU);
        Scene {
            ground: ground_rgb(description.background, draws),
            direction: (libm::cosf(angle), libm::sinf(angle)),
            period: draws.between(0.2, 0.3),
            phase: draws.unit(),
            brightness: draws.between(0.85, 1.1),
            blur: if draws.chance(0.3) { draws.between(0.0, 0.2) } else { 0.0 },
            noise: draws.between(0.0, 0.16),
            noise_key,
            index,
            placements,
            description,
        }
    }

    /// The picture, `side` pixels wide and high.
    pub fn render(&self, side: u32) -> RgbImage {
        let pixels = side as usize;
        let mut canvas = self.paint_background(pixels);
        for (object, placement) in self.description.objects.iter().zip(&self.placements) {
            paint_object(&mut canvas, pixels, object.kind.shape, placement);
        }
        if self.blur > 0.0 {
            blur(&mut canvas, pixels, self.blur);
        }
        self.develop(&canvas, side)
    }

    fn paint_background(&self, side: usize) -> Vec<Rgb> {
        let [first, second] = self.ground;
        let scale = 1.0 / side as f32;
        let (cos, sin) = self.direction;
        let mut canvas = Vec::with_capacity(side * side);
        for row in 0..side {
            let y = (row as f32 + 0.5) * scale - 0.5;
            for column in 0..side {
                let x = (column as f32 + 0.5) * scale - 0.5;
                let along = x * cos + y * sin;
                let share = match self.description.background.pattern {
                    Pattern::Plain => 0.0,
                    // The diagonal is sqrt(2) long, so this spans 0 to 1 in every direction.
                    Pattern::Shaded => along * std::f32::consts::FRAC_1_SQRT_2 + 0.5,
                    Pattern::Striped => cover(self.band(along) * side as f32),
                    Pattern::Checkered => {
                        let (u, v) = (self.band(along), self.band(y * cos - x * sin));
                        cover(u.abs().min(v.abs()) * (u * v).signum() * side as f32)
                    }
                };
                canvas.push(mix(first, second, share));
            }
        }
        canvas
    }

    /// Signed distance to the nearest edge of bands half a period wide, positive in every other band.
    fn band(&self, along: f32) -> f32 {
        let turns = along / self.period + self.phase;
        let turn = turns - turns.floor();
        (0.25 - (turn - 0.5).abs()) * self.period
    }

    /// Brightness, noise and rounding to bytes.
    fn develop(&self, canvas: &[Rgb], side: u32) -> RgbImage {
        let mut bytes = Vec::with_capacity(canvas.len() * 3);
        let (gain, amplitude) = (255.0 * self.brightness, 255.0 * self.noise / 256.0);
        let mut noise = [0u8; 16];
        for (at, &value) in canvas.as_flattened().iter().enumerate() {
            if at % 16 == 0 {
                let words = philox4x32(counter(self.index, (at / 16) as u64), self.noise_key);
                for (bytes, word) in noise.chunks_exact_mut(4).zip(words) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
            let value = value * gain + (f32::from(noise[at % 16]) - 127.5) * amplitude;
            // `as` saturates at both ends.
            bytes.push((value + 0.5) as u8);
        }
        RgbImage { width: side, height: side, pixels: bytes }
    }
}

/// The radius of a size; two large objects side by side just fit.
fn radius(size: Size) -> f32 {
    match size {
        Size::Small => 0.11,
        Size::Medium => 0.165,
        Size::Large => 0.225,
    }
}

fn colour_rgb(colour: Colour) -> Rgb {
    match colour {
        Colour::Red => [0.86, 0.13, 0.13],
        Colour::Orange => [0.97, 0.53, 0.08],
        Colour::Yellow => [0.97, 0.90, 0.18],
        Colour::Green => [0.16, 0.66, 0.22],
        Colour::Cyan => [0.20, 0.83, 0.87],
        Colour::Blue => [0.15, 0.32, 0.92],
        Colour::Purple => [0.55, 0.20, 0.74],
        Colour::Pink => [0.98, 0.52, 0.74],
    }
}

/// The two colours of a background; a plain one uses the first only.
fn ground_rgb(background: Background, draws: &mut Draws) -> [Rgb; 2] {
    let main = match background.ground {
        Ground::White => [0.93, 0.93, 0.93],
        Ground::Grey => [0.52, 0.52, 0.52],
        Ground::Black => [0.07, 0.07, 0.07],
        Ground::Brown => [0.42, 0.27, 0.15],
        Ground::Navy => [0.07, 0.10, 0.34],
    };
    let main = jitter(main, draws);
    // Light grounds are marked darker, dark ones lighter, always by less than grey and white differ.
    let towards = if main[1] > 0.5 { [0.0; 3] } else { [1.0; 3] };
    [main, mix(main, towards, 0.25)]
}

fn jitter(colour: Rgb, draws: &mut Draws) -> Rgb {
    colour.map(|channel| channel + draws.between(-0.05, 0.05))
}

/// Two segments of half-lengths `first` and `second` at random places along a side, the first before the second.
fn apart(first: f32, second: f32, draws: &mut Draws) -> (f32, f32) {
    let (u, v) = (draws.unit(), draws.unit());
    let slack = 1.0 - 2.0 * (first + second);
    (first + slack * u.min(v), 1.0 - second - slack * (1.0 - u.max(v)))
}

fn anywhere(radius: f32, draws: &mut Draws) -> f32 {
    draws.between(radius, 1.0 - radius)
}

/// Near the middle, so that "left of" is not also "far above".
fn near_middle(radius: f32, draws: &mut Draws) -> f32 {
    draws.between(0.3, 0.7).clamp(radius, 1.0 - radius)
}

fn centres(layout: Layout, radii: &[f32], draws: &mut Draws) -> Vec<(f32, f32)> {
    // Laid out as a row; a column is a row with x and y exchanged.
    let (mut centres, is_column) = match (layout, radii) {
        (Layout::LeftOf | Layout::Above, &[a, b]) => {
            let (first, second) = apart(a, b, draws);
            let places = vec![(first, near_middle(a, draws)), (second, near_middle(b, draws))];
            (places, layout == Layout::Above)
        }
        (Layout::RowAbove | Layout::ColumnLeft, &[a, b, c]) => {
            let (first, second) = apart(a, b, draws);
            let (pair, third) = apart(a.max(b), c, draws);
            (vec![(first, pair), (second, pair), (anywhere(c, draws), third)], layout == Layout::ColumnLeft)
        }
        (Layout::RowBelow | Layout::ColumnRight, &[a, b, c]) => {
            let (first, second) = apart(a, b, draws);
            let (third, pair) = apart(c, a.max(b), draws);
            (vec![(first, pair), (second, pair), (anywhere(c, draws), third)], layout == Layout::ColumnRight)
        }
        _ => (radii.iter().map(|&radius| (anywhere(radius, draws), anywhere(radius, draws))).collect(), false),
    };
    if is_column {
        centres.iter_mut().for_each(|(x, y)| std::mem::swap(x, y));
    }
    centres
}

fn paint_object(canvas: &mut [Rgb], side: usize, shape: Shape, placement: &Placement) {
    // Corners and tips reach past the radius.
    const REACH: f32 = 1.25;
    let scale = side as f32;
    let range = |centre: f32| {
        let low = ((centre - REACH * placement.radius) * scale).floor().max(0.0) as usize;
        let high = ((centre + REACH * placement.radius) * scale).ceil().max(0.0) as usize;
        low..high.min(side)
    };
    let (cos, sin) = placement.turn;
    let per_radius = 1.0 / placement.radius;
    for row in range(placement.y) {
        let dy = (placement.y - (row as f32 + 0.5) / scale) * per_radius; // upwards
        for column in range(placement.x) {
            let dx = ((column as f32 + 0.5) / scale - placement.x) * per_radius;
            let distance = signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx);
            let pixel = &mut canvas[row * side + column];
            *pixel = mix(*pixel, placement.colour, cover(-distance * placement.radius * scale));
        }
    }
}

/// Signed distance (negative inside) to a shape of about unit radius, x to the right, y up. Outside corners it is a lower
/// bound of the distance, which the one-pixel edge cannot tell apart.
fn signed_distance(shape: Shape, x: f32, y: f32) -> f32 {
    match shape {
        Shape::Circle => length(x, y) - 0.93,
        Shape::Square => x.abs().max(y.abs()) - 0.82,
        Shape::Triangle => outermost(&TRIANGLE, x, y + 0.12).0 - 0.56,
        Shape::Diamond => (x.abs() + y.abs() - 1.12) * std::f32::consts::FRAC_1_SQRT_2,
        // A point of a five-pointed star lies outside at most one of the five lines that draw it.
        Shape::Star => outermost(&PENTAGON, x, y).1 - 0.40,
        Shape::Cross => {
            let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
            (long - 0.98).max(short - 0.33)
        }
        Shape::Ring => (length(x, y) - 0.74).abs() - 0.22,
        Shape::Heart => {
            // A square on its tip and two half discs on its upper sides.
            const SIDE: f32 = 1.14;
            const LOBE: f32 = SIDE * 0.353_553_4;
            let (x, y) = (x.abs(), y + 0.08);
            let square = (x + y.abs()) * std::f32::consts::FRAC_1_SQRT_2 - SIDE / 2.0;
            square.min(length(x - LOBE, y - LOBE) - SIDE / 2.0)
        }
        Shape::Crescent => (length(x - 0.1, y) - 1.02).max(0.82 - length(x - 0.52, y)),
    }
}

/// Outward normals of a triangle with its tip up.
const TRIANGLE: [(f32, f32); 3] = [(0.0, -1.0), (0.866_025_4, 0.5), (-0.866_025_4, 0.5)];
/// Normals of the five lines of a star with its tip up.
const PENTAGON: [(f32, f32); 5] = [
    (0.0, 1.0),
    (0.951_056_5, 0.309_017),
    (0.587_785_25, -0.809_017),
    (-0.587_785_25, -0.809_017),
    (-0.951_056_5, 0.309_017),
];

/// The largest and the second largest coordinate of a point along some normals.
fn outermost(normals: &[(f32, f32)], x: f32, y: f32) -> (f32, f32) {
    normals.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), &(nx, ny)| {
        let along = nx * x + ny * y;
        (first.max(along), second.max(along.min(first)))
    })
}

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// The covered share of a pixel whose centre lies `inside` pixels inside an edge.
fn cover(inside: f32) -> f32 {
    (inside + 0.5).clamp(0.0, 1.0)
}

fn mix(from: Rgb, to: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// Rows, then columns, by the kernel [w, 1 - 2w, w]; the border repeats.
fn blur(canvas: &mut [Rgb], side: usize, weight: f32) {
    for (step, line) in [(1, side), (side, 1)] {
        for start in (0..side).map(|n| n * line) {
            let mut before = canvas[start];
            for at in 0..side {
                let here = canvas[start + at * step];
                let after = canvas[start + (at + 1).min(side - 1) * step];
                canvas[start + at * step] =
                    std::array::from_fn(|c| here[c] + weight * (before[c] - 2.0 * here[c] + after[c]));
                before = here;
            }
        }
    }
}

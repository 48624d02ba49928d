//! Positional embeddings for another resolution or another length of texts.

/// Weights of the cubic filter between its points, as Pillow and PyTorch's antialiased resampling have it.
const CUBIC: f64 = -0.5;

/// How positional embeddings `[rows, width]` become others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resampling {
    /// A class token, then a square grid, which is resampled with an antialiased bicubic filter; the token stays.
    Grid {
        /// Side of the grid.
        from: u64,
        /// Side of the new one.
        to: u64,
    },
    /// Positions of a text, cut at their end or followed by zeros.
    Sequence {
        /// Positions.
        from: u64,
        /// New positions.
        to: u64,
    },
}

impl Resampling {
    /// What makes `to` of `from`, if it can be made: embeddings of a tower of images are a grid.
    pub(super) fn between(name: &str, from: &[u64], to: &[u64]) -> Option<Resampling> {
        let (&[from, width], &[to, new_width]) = (from, to) else { return None };
        let is_positions = name == "positional_embedding" || name.ends_with(".positional_embedding");
        if !is_positions || width != new_width {
            return None;
        }
        if !name.starts_with("visual.") {
            return Some(Resampling::Sequence { from, to });
        }
        let side = |rows: u64| rows.checked_sub(1).map(u64::isqrt).filter(|side| side * side + 1 == rows && *side > 0);
        Some(Resampling::Grid { from: side(from)?, to: side(to)? })
    }

    /// The new embeddings, of rows of this width.
    pub(super) fn apply(self, values: &[f32], width: usize) -> Vec<f32> {
        match self {
            Resampling::Sequence { to, .. } => {
                let mut values = values.to_vec();
                values.resize(to as usize * width, 0.0);
                values
            }
            Resampling::Grid { from, to } => {
                let (token, grid) = values.split_at(width);
                [token, &resampled(grid, width, from as usize, to as usize)].concat()
            }
        }
    }
}

impl std::fmt::Display for Resampling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Resampling::Grid { from, to } => write!(f, "resampled from a grid of {from} x {from} to {to} x {to}"),
            Resampling::Sequence { from, to } if to < from => write!(f, "the first {to} of {from} positions"),
            Resampling::Sequence { from, to } => write!(f, "{from} positions, and zeros for {} more", to - from),
        }
    }
}

/// A square grid of vectors with another side: columns first, then rows, as PyTorch does.
fn resampled(grid: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    let taps: Vec<(usize, Vec<f64>)> = (0..to).map(|at| taps(at, from, to)).collect();
    let mut rows = vec![0f32; from * to * width];
    for y in 0..from {
        for (x, (start, weights)) in taps.iter().enumerate() {
            let out = &mut rows[(y * to + x) * width..][..width];
            mix(out, weights, |tap| &grid[(y * from + start + tap) * width..][..width]);
        }
    }
    let mut all = vec![0f32; to * to * width];
    for (y, (start, weights)) in taps.iter().enumerate() {
        for x in 0..to {
            let out = &mut all[(y * to + x) * width..][..width];
            mix(out, weights, |tap| &rows[((start + tap) * to + x) * width..][..width]);
        }
    }
    all
}

fn mix<'a>(out: &mut [f32], weights: &[f64], row: impl Fn(usize) -> &'a [f32]) {
    for (column, value) in out.iter_mut().enumerate() {
        *value =
            weights.iter().enumerate().map(|(tap, weight)| weight * f64::from(row(tap)[column])).sum::<f64>() as f32;
    }
}

/// The first input of an output position, and the weights from there on.
fn taps(at: usize, from: usize, to: usize) -> (usize, Vec<f64>) {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let (centre, support) = ((at as f64 + 0.5) * scale, 2.0 * widened);
    let start = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(from);
    let mut weights: Vec<f64> = (start..end).map(|input| cubic((input as f64 - centre + 0.5) / widened)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    (start, weights)
}

fn cubic(x: f64) -> f64 {
    let x = x.abs();
    match x {
        x if x < 1.0 => ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_resampled_is_told_by_name_and_shape() {
        let check = |name: &str, from: &[u64], to: &[u64], expected: Option<Resampling>| {
            assert_eq!(Resampling::between(name, from, to), expected, "{name} {from:?} {to:?}");
        };
        let grid = |from, to| Some(Resampling::Grid { from, to });
        check("visual.positional_embedding", &[50, 8], &[197, 8], grid(7, 14));
        check("visual.attnpool.positional_embedding", &[50, 8], &[82, 8], grid(7, 9));
        check("positional_embedding", &[77, 8], &[32, 8], Some(Resampling::Sequence { from: 77, to: 32 }));
        check("visual.positional_embedding", &[50, 8], &[197, 9], None);
        check("visual.positional_embedding", &[51, 8], &[197, 8], None);
        check("visual.positional_embedding", &[0, 8], &[1, 8], None);
        check("visual.proj", &[50, 8], &[197, 8], None);
    }

    /// What PyTorch makes of it in f64: `interpolate(x, size, mode='bicubic', antialias=True)`; sums here are rounded to f32 twice.
    #[test]
    fn grids_are_resampled_as_pytorch_does() {
        let check = |from: usize, to: usize, expected: &[f64]| {
            let grid: Vec<f32> = (0..from * from).map(|index| (index as f64).sin() as f32).collect();
            let values = [&[7.0], grid.as_slice()].concat();
            let found = Resampling::Grid { from: from as u64, to: to as u64 }.apply(&values, 1);
            assert_eq!((found[0], found.len()), (7.0, to * to + 1));
            for (found, expected) in found[1..].iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() <= 4.0 * f64::from(f32::EPSILON), "{found} {expected}");
            }
        };
        #[rustfmt::skip]
        check(5, 3, &[
            -0.11083013868896208, 0.7507020111693893, 0.07861907293810633, -0.6090217605515755, -0.3695186758142927,
            0.6248770357180585, 0.6901040927898251, -0.3992325605288122, -0.6729738432627461,
        ]);
        #[rustfmt::skip]
        check(3, 5, &[
            -0.08406535369215107, 0.32658719144482506, 0.9620953685832477, 1.0629152723498094, 1.0569518672354752,
            0.05706301565465374, 0.12295073584571911, 0.2175785165224503, 0.1912861804049035, 0.16295592000503942,
            0.20888773759581025, -0.16477273549161725, -0.756802499294281, -0.9282363134978424, -0.9741787685538238,
            -0.14183212941556017, -0.056084020623858935, 0.0895408618806014, 0.1854030590418933, 0.23237730748584262,
            -0.392274142096755, 0.04915414824851002, 0.7636876578600902, 1.0537987617045115, 1.16452755349605,
        ]);
    }

    #[test]
    fn texts_are_cut_or_followed_by_zeros() {
        let check = |to: u64, expected: &[f32]| {
            assert_eq!(Resampling::Sequence { from: 2, to }.apply(&[1.0, 2.0, 3.0, 4.0], 2), expected);
        };
        check(1, &[1.0, 2.0]);
        check(3, &[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]);
    }
}

//! Long sums of products in parts that are computed side by side, and then added up.
//!
//! A card computes a product in tiles, as many at a time as it has units. The gradient of a weight has few tiles, each with a sum over
//! all rows of the batch: 768 x 768 results are 36 tiles of 128 x 128, and most of 132 units wait for one another. In parts all of them
//! have work. The parts are values of the graph, added up in their order, so the result is always the same.

use alip_plan::{Rates, Waves};

/// What a split must save of the time of the product: the model is not better than that.
const SAVES: f64 = 0.1;

/// Sizes of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: u64,
    pub(super) m: u64,
    pub(super) n: u64,
    /// Terms of a sum.
    pub(super) k: u64,
}

/// Into how many parts sums are cut, each of which has as many of the outermost of the summed dimensions; none where it does not pay.
pub(super) fn parts(sizes: Sizes, outermost: u64, rates: &Rates) -> Option<u64> {
    let waves = rates.waves?;
    let whole = seconds(sizes, 1, waves, rates);
    let possible = |parts: &u64| outermost.is_multiple_of(*parts) && sizes.k / parts >= waves.fewest_terms;
    let candidates = (2..=waves.most_parts).filter(possible);
    let timed = candidates.map(|parts| (parts, seconds(sizes, parts, waves, rates)));
    let (parts, best) = timed.min_by(|a, b| a.1.total_cmp(&b.1))?;
    (best < (1.0 - SAVES) * whole).then_some(parts)
}

/// What the product takes, with adding up its parts.
fn seconds(Sizes { batch, m, n, k }: Sizes, parts: u64, Waves { tile, at_once, .. }: Waves, rates: &Rates) -> f64 {
    let tiles = batch * m.div_ceil(tile) * n.div_ceil(tile) * parts;
    let multiplied = 2.0 * (tiles.next_multiple_of(at_once) * tile * tile) as f64 * (k / parts) as f64;
    let added = if parts == 1 {
        0.0
    } else {
        // Each part is written and read, in f32; without parts the result is written once.
        rates.launch + (2 * parts * batch * m * n * 4) as f64 / rates.bandwidth
    };
    multiplied / rates.products + added
}

#[cfg(test)]
mod tests {
    use alip_plan::Target;

    use super::*;

    fn check(m: u64, n: u64, k: u64, outermost: u64, expected: Option<u64>) {
        let found = parts(Sizes { batch: 1, m, n, k }, outermost, &Target::sm_90a().rates);
        assert_eq!(found, expected, "{m} x {n} of {k} terms");
    }

    #[test]
    fn products_with_few_tiles_are_cut() {
        check(768, 768, 25_600, 512, Some(16));
        check(512, 512, 15_648, 15_648, Some(8));
        // 1,200 tiles keep all units busy.
        check(25_600, 768, 3072, 3072, None);
        // No divisor, and too few terms.
        check(768, 768, 25_601, 25_601, None);
        check(512, 512, 1000, 1000, None);
    }

    #[test]
    fn processors_split_nothing() {
        assert_eq!(parts(Sizes { batch: 1, m: 64, n: 64, k: 1 << 20 }, 1 << 20, &Target::cpu().rates), None);
    }
}

//! Numbers of rows that a packed program is compiled for, from the number of its rows as written alone.
//!
//! Captions use 5 to 30 of 77 positions, or half of a context of 32. A training step has four buckets per doubling (a ratio
//! of 1.19) from an eighth of the rows to all of them: on average 8 % of the rows that run are padding, whatever the texts.
//! With 16 pairs of texts of 14.5 tokens on average the number of rows varies by 7 %, about half a bucket; with 512 by 1 %.
//! Finer ones would cost compile time and plan bytes in proportion. Batches below an eighth are rare and cheap.
//!
//! Programs that are not trained run seldom and cost a third: three buckets per doubling, 10 % of padding.

use alip_plan::packing::Group;

/// Powers of two by fourths and by thirds, in 1024ths.
const FOURTHS: &[u64] = &[1024, 1218, 1448, 1722];
const THIRDS: &[u64] = &[1024, 1290, 1625];

/// The smallest bucket has this part of the rows: a power of two.
const SMALLEST: u64 = 8;

/// Bucket rows are multiples of this: products are computed in tiles of at least so many rows.
const TILE: u64 = 16;

/// Less between two buckets is not worth a program.
const LEAST_STEP: u64 = 32;

/// How close buckets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Four per doubling, for a training step.
    Fine,
    /// Three per doubling.
    Coarse,
}

/// Rows of each group, by rising buckets; the last has all rows. At least one row per sample is always live.
pub fn buckets(groups: &[Group], spacing: Spacing) -> Vec<Vec<u64>> {
    let whole: Vec<u64> = groups.iter().map(|group| group.samples * group.context).collect();
    let mut all: Vec<Vec<u64>> = Vec::new();
    let powers = if spacing == Spacing::Fine { FOURTHS } else { THIRDS };
    let doublings = 0..SMALLEST.ilog2();
    for part in doublings.flat_map(|doubling| powers.iter().map(move |power| power << doubling)) {
        let rows = groups.iter().zip(&whole).map(|(group, whole)| {
            let rows = (whole * part).div_ceil(SMALLEST * 1024).max(group.samples);
            rows.next_multiple_of(TILE).min(*whole)
        });
        let rows: Vec<u64> = rows.collect();
        let far = |next: &[u64], last: &[u64]| next.iter().zip(last).all(|(next, last)| next - last >= LEAST_STEP);
        if all.last().is_none_or(|last| far(&rows, last)) && far(&whole, &rows) {
            all.push(rows);
        }
    }
    all.push(whole);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_few_rise_and_end_with_all_rows() {
        let of = |samples, context| buckets(&[Group { samples, context }], Spacing::Fine).concat();
        assert_eq!(of(32, 77), [320, 368, 448, 528, 624, 736, 880, 1040, 1232, 1472, 1744, 2080, 2464]);
        assert_eq!(of(16, 16), [32, 64, 96, 128, 160, 192, 224, 256]);
        assert_eq!(of(2, 3), [6]);
        let coarse = buckets(&[Group { samples: 32, context: 77 }], Spacing::Coarse).concat();
        assert_eq!(coarse, [320, 400, 496, 624, 784, 992, 1232, 1568, 1968, 2464]);
        let two = buckets(&[Group { samples: 512, context: 77 }, Group { samples: 8, context: 4 }], Spacing::Fine);
        assert_eq!(two, [[39424, 32]]);
    }

    /// What a batch pays on average that has between an eighth of the rows and all, near any number of them.
    #[test]
    fn padding_is_small_at_any_length() {
        for (samples, spacing) in [(32u64, Spacing::Fine), (1024, Spacing::Fine), (1024, Spacing::Coarse)] {
            let rows = buckets(&[Group { samples, context: 77 }], spacing).concat();
            let padding = |live: u64| {
                rows.iter().find(|rows| **rows >= live).map_or(0.0, |rows| (rows - live) as f64 / *rows as f64)
            };
            for occupancy in 15..=90 {
                // Texts vary: a tenth more and a tenth less.
                let near = samples * 77 * occupancy / 100;
                let range = near * 9 / 10..near * 11 / 10;
                let mean = range.clone().map(padding).sum::<f64>() / range.count() as f64;
                assert!(mean < 0.12, "{samples}, {occupancy} %: {mean}");
            }
        }
    }
}

//! Numbers of rows that a packed program is compiled for, from the number of its rows as written alone.
//!
//! Captions use 5 to 30 of 77 positions, so most batches have an eighth to a half of the rows. There, six buckets per
//! doubling (a ratio of 1.12) leave a batch 6 % of padding on average: with 16 pairs of texts of 14.5 tokens on average the
//! number of rows varies by 7 %, about one bucket; with 512 it varies by 1 %, and padding is what it happens to be below
//! 12 %. Finer ones would cost compile time and plan bytes in proportion and save 3 % at most. Batches above a half are of
//! another kind of text (or not text at all); they run with all rows, which is what they would cost without packing.
//! Batches below an eighth are rare and cheap.
//!
//! Programs that are not trained run seldom and cost a third: they have two buckets per doubling, which is 20 % of padding.

use alip_plan::packing::Group;

/// Powers of two by sixths, in 1024ths.
const SIXTHS: [u64; 6] = [1024, 1149, 1290, 1448, 1625, 1825];

/// Bucket rows are multiples of this: products are computed in tiles of at least so many rows.
const TILE: u64 = 16;

/// Less between two buckets is not worth a program.
const LEAST_STEP: u64 = 32;

/// How close buckets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Six per doubling, for a training step.
    Fine,
    /// Two per doubling.
    Coarse,
}

/// Rows of each group, by rising buckets; the last has all rows. At least one row per sample is always live.
pub fn buckets(groups: &[Group], spacing: Spacing) -> Vec<Vec<u64>> {
    let whole: Vec<u64> = groups.iter().map(|group| group.samples * group.context).collect();
    let mut all: Vec<Vec<u64>> = Vec::new();
    let sixths = if spacing == Spacing::Fine { 1 } else { 3 };
    for step in (0..=12).step_by(sixths) {
        let part = (SIXTHS[step % 6] << (step / 6), 8 * 1024);
        let rows = groups.iter().zip(&whole).map(|(group, whole)| {
            let rows = (whole * part.0).div_ceil(part.1).max(group.samples);
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
        assert_eq!(of(32, 77), [320, 352, 400, 448, 496, 560, 624, 704, 784, 880, 992, 1104, 1232, 2464]);
        assert_eq!(of(16, 16), [32, 64, 96, 128, 256]);
        assert_eq!(of(2, 3), [6]);
        let coarse = buckets(&[Group { samples: 32, context: 77 }], Spacing::Coarse).concat();
        assert_eq!(coarse, [320, 448, 624, 880, 1232, 2464]);
        let two = buckets(&[Group { samples: 512, context: 77 }, Group { samples: 8, context: 4 }], Spacing::Fine);
        assert_eq!(two, [[39424, 32]]);
    }

    /// What a batch of mean length 14.5 of 77 pays, whatever its exact number of rows.
    #[test]
    fn padding_is_small_at_the_lengths_of_captions() {
        for samples in [32u64, 1024] {
            let rows = buckets(&[Group { samples, context: 77 }], Spacing::Fine).concat();
            let mean = samples * 29 / 2;
            let range = mean * 9 / 10..mean * 11 / 10;
            let count = range.clone().count() as f64;
            let padded =
                |live: u64| rows.iter().find(|rows| **rows >= live).map_or(0.0, |rows| *rows as f64 / live as f64);
            let padding = range.map(padded).sum::<f64>() / count - 1.0;
            assert!(padding < 0.075, "{samples}: {padding}");
        }
    }
}

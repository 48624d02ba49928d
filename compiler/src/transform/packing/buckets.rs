//! Numbers of rows that a packed program is compiled for, from the number of its rows as written and the target's [`Spacing`]
//! alone.
//!
//! Captions use 5 to 30 of 77 positions, so most batches of such texts have an eighth to a half of the rows. There, six
//! buckets per doubling (a ratio of 1.12) leave a batch 6 % of padding on average: with 16 pairs of texts of 14.5 tokens on
//! average the number of rows varies by 7 %, about one bucket; with 512 it varies by 1 %, and padding is what it happens to be
//! below 12 %. Finer ones would cost compile time and plan bytes in proportion and save 3 % at most. Contexts that were chosen
//! for their texts are fuller: captions of photographs have 54 % of 24 positions. Above a half, four per doubling (a
//! ratio of 1.19) leave 8 % on average and at most 16 %; three would leave more than 12 % to data whose batches all lie just
//! above one. Batches below an eighth are rare and cheap.
//!
//! Programs that are not trained run seldom and cost a third: they have three buckets per doubling, which is 10 % of padding.

use alip_plan::Spacing;
use alip_plan::packing::Group;

/// Powers of two by twelfths, in 1024ths.
const TWELFTHS: [u64; 12] = [1024, 1085, 1149, 1218, 1290, 1367, 1448, 1534, 1625, 1722, 1825, 1933];

/// Rows of each group, by rising buckets; the last has all rows. At least one row per sample is always live.
pub fn buckets(groups: &[Group], spacing: &Spacing) -> Vec<Vec<u64>> {
    let whole: Vec<u64> = groups.iter().map(|group| group.samples * group.context).collect();
    let mut all: Vec<Vec<u64>> = Vec::new();
    let smallest = 1 << spacing.per_doubling.len();
    let parts = spacing.per_doubling.iter().enumerate().flat_map(|(doubling, count)| {
        TWELFTHS.iter().step_by(TWELFTHS.len() / (*count).max(1) as usize).map(move |power| power << doubling)
    });
    for part in parts {
        let rows = groups.iter().zip(&whole).map(|(group, whole)| {
            let rows = (whole * part).div_ceil(smallest * 1024).max(group.samples);
            rows.next_multiple_of(spacing.multiple).min(*whole)
        });
        let rows: Vec<u64> = rows.collect();
        let far =
            |next: &[u64], last: &[u64]| next.iter().zip(last).all(|(next, last)| next - last >= spacing.least_step);
        if all.last().is_none_or(|last| far(&rows, last)) && far(&whole, &rows) {
            all.push(rows);
        }
    }
    all.push(whole);
    all
}

#[cfg(test)]
mod tests {
    use alip_plan::Target;

    use super::*;

    fn trained() -> Spacing {
        Target::cpu().packing.trained
    }

    fn untrained() -> Spacing {
        Target::cpu().packing.untrained
    }

    fn of_one(samples: u64, context: u64, spacing: &Spacing) -> Vec<u64> {
        buckets(&[Group { samples, context }], spacing).concat()
    }

    #[test]
    fn buckets_are_few_rise_and_end_with_all_rows() {
        let fine = [320, 352, 400, 448, 496, 560, 624, 704, 784, 880, 992, 1104, 1232, 1472, 1744, 2080, 2464];
        assert_eq!(of_one(32, 77, &trained()), fine);
        assert_eq!(of_one(16, 16, &trained()), [32, 64, 96, 128, 160, 192, 224, 256]);
        assert_eq!(of_one(2, 3, &trained()), [6]);
        let coarse = [320, 400, 496, 624, 784, 992, 1232, 1568, 1968, 2464];
        assert_eq!(of_one(32, 77, &untrained()), coarse);
        let two = buckets(&[Group { samples: 512, context: 77 }, Group { samples: 8, context: 4 }], &trained());
        assert_eq!(two, [[39424, 32]]);
    }

    /// The largest part of the rows that run which are padding, on average over numbers of live rows that are `spread` around
    /// some number of them from an eighth to all.
    fn worst_padding(samples: u64, spacing: &Spacing, spread: f64) -> f64 {
        let rows = of_one(samples, 77, spacing);
        let whole = samples * 77;
        let padding = |live: u64| {
            let runs = *rows.iter().find(|rows| **rows >= live).expect("the last has all rows");
            (runs - live) as f64 / runs as f64
        };
        let mean = |around: u64| {
            let (low, high) = (around as f64 * (1.0 - spread), around as f64 * (1.0 + spread));
            let range = (low as u64).max(whole / 8)..=(high as u64).min(whole);
            range.clone().map(padding).sum::<f64>() / range.count() as f64
        };
        // Steps much smaller than any bucket.
        (whole / 8..=whole).step_by(samples as usize / 4).map(mean).fold(0.0, f64::max)
    }

    /// A data set has a mean length, and its batches vary around it: 64 pairs of captions by 3.5 % (above), as much as numbers
    /// that are evenly spread over 6 % to both sides. An average over 5 % asks a little more; one over a whole bucket or over all
    /// lengths would say nothing to those whose lengths lie just above a bucket.
    #[test]
    fn padding_of_a_training_step_is_small_at_any_occupancy() {
        for samples in [32, 1024] {
            let padding = worst_padding(samples, &trained(), 0.05);
            assert!(padding <= 0.12, "{samples}: {padding}");
        }
    }

    /// What a batch of mean length 14.5 of 77 pays, whatever its exact number of rows.
    #[test]
    fn padding_is_smaller_at_the_lengths_of_captions() {
        for samples in [32u64, 1024] {
            let rows = of_one(samples, 77, &trained());
            let mean = samples * 29 / 2;
            let range = mean * 9 / 10..mean * 11 / 10;
            let count = range.clone().count() as f64;
            let padded =
                |live: u64| rows.iter().find(|rows| **rows >= live).map_or(0.0, |rows| *rows as f64 / live as f64);
            let padding = range.map(padded).sum::<f64>() / count - 1.0;
            assert!(padding < 0.075, "{samples}: {padding}");
        }
    }

    /// Evaluation goes through batches of any length; over a half to both sides, thirds of a doubling average out.
    #[test]
    fn padding_of_other_programs_is_small_on_average() {
        for samples in [32, 1024] {
            let padding = worst_padding(samples, &untrained(), 0.5);
            assert!(padding <= 0.12, "{samples}: {padding}");
        }
    }
}

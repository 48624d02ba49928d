//! Samples that could not be used.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A sample that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its global sample number.
    pub sample: u64,
    /// Its row in the batch, where another sample stands now.
    pub row: usize,
    /// Its index in the source.
    pub index: u64,
    /// Its name in the source: a file, a record.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample {} (index {}, {}): {}", self.sample, self.index, self.name, self.reason)
    }
}

/// Reasons that are shown; the others are counted together.
const SHOWN: usize = 8;

/// Reasons that are told apart. Some name a place, so that of millions of samples there would be as many.
const KEPT: usize = 1000;

/// How many samples could not be used, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skips {
    /// For each reason how many, and the name of the first.
    reasons: BTreeMap<String, (u64, String)>,
    /// How many have other reasons than these.
    others: u64,
}

impl Skips {
    /// Of a list.
    pub fn of<'a>(skipped: impl IntoIterator<Item = &'a Skipped>) -> Skips {
        let mut skips = Skips::default();
        skipped.into_iter().for_each(|skipped| skips.add(skipped));
        skips
    }

    /// Counts one more.
    pub fn add(&mut self, skipped: &Skipped) {
        if self.reasons.len() >= KEPT && !self.reasons.contains_key(&skipped.reason) {
            self.others += 1;
            return;
        }
        self.reasons.entry(skipped.reason.clone()).or_insert_with(|| (0, skipped.name.clone())).0 += 1;
    }

    /// How many in all.
    pub fn count(&self) -> u64 {
        self.reasons.values().map(|(count, _)| count).sum::<u64>() + self.others
    }

    /// How many for each reason; the rest of very many are `other reasons`.
    pub fn by_reason(&self) -> BTreeMap<&str, u64> {
        let others = (self.others > 0).then_some(("other reasons", self.others));
        self.reasons.iter().map(|(reason, (count, _))| (reason.as_str(), *count)).chain(others).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

/// `skipped 3`, and a line for each reason, the most frequent first.
impl fmt::Display for Skips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped {}", self.count())?;
        let mut reasons: Vec<(&String, &(u64, String))> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, first)) in reasons.iter().take(SHOWN) {
            write!(f, "\n  {count} x {reason}; the first is {first}")?;
        }
        let others: u64 = reasons.iter().skip(SHOWN).map(|(_, (count, _))| count).sum::<u64>() + self.others;
        if others > 0 { write!(f, "\n  {others} x other reasons") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted() {
        let skipped = |name: &str, reason: &str| Skipped {
            sample: 0,
            row: 0,
            index: 0,
            name: name.to_string(),
            reason: reason.to_string(),
        };
        assert_eq!(Skips::default().to_string(), "skipped 0");
        let three = [skipped("a.jpg", "empty"), skipped("b.jpg", "cut"), skipped("c.jpg", "cut")];
        let shown = "skipped 3\n  2 x cut; the first is b.jpg\n  1 x empty; the first is a.jpg";
        assert_eq!(Skips::of(&three).to_string(), shown);
        let many: Vec<Skipped> = (0..11).map(|number| skipped("a", &format!("reason {number}"))).collect();
        assert!(Skips::of(&many).to_string().ends_with("\n  3 x other reasons"), "{}", Skips::of(&many));
        let places: Vec<Skipped> = (0..2 * KEPT).map(|at| skipped("a", &format!("byte {at}"))).collect();
        let skips = Skips::of(&places);
        assert_eq!((skips.count(), skips.reasons.len()), (2 * KEPT as u64, KEPT));
        assert_eq!(skips.by_reason()["other reasons"], KEPT as u64);
    }
}

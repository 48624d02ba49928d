//! Which new forms of regions stay: those with which the whole program costs less.
//!
//! A region by itself does not show what its change costs elsewhere: kernels that join over regions, updates that are one
//! launch as long as all of them are computed alike. So a program is compiled down to its launches with none of the new
//! forms, with all, and with each kind of them, and what stays is the cheapest that has no more launches and takes no
//! longer than the program as it was written. A kind is the set of rules that a form comes of: the same change of many
//! regions stays or goes together. What a program decides holds for the same program with fewer rows.
//!
//! Bounded by a count of kinds: the most valuable ones are tried one by one, all others as one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::rules::RuleId;
use super::solution::{Cuts, Rebuild, Solution, Solved};
use super::tidy::tidy;
use super::{Cost, Optimizer};
use crate::diag::Diagnostics;
use crate::ir::Graph;
use crate::parallel;

/// Most kinds of changes that are tried by themselves.
const MOST_KINDS: usize = 4;

/// The rules that a new form comes of.
type Kind = BTreeSet<RuleId>;

/// New forms that regions take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All that are cheaper by themselves.
    All,
    /// Some of them.
    Only(Only),
}

/// Which ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    kinds: BTreeSet<Kind>,
    /// The regions in question, by their number in the program; of any other nothing changes.
    regions: Option<BTreeSet<usize>>,
}

fn kind(solution: &Solution) -> Kind {
    solution.fired.iter().map(|(rule, _)| *rule).collect()
}

impl Kept {
    pub(crate) fn allows(&self, solution: &Solution) -> bool {
        match self {
            Kept::All => true,
            Kept::Only(Only { kinds, .. }) => kinds.contains(&kind(solution)),
        }
    }

    /// Whether a region may change at all.
    pub(crate) fn looks_at(&self, region: usize) -> bool {
        match self {
            Kept::Only(Only { regions: Some(regions), .. }) => regions.contains(&region),
            _ => true,
        }
    }
}

impl Optimizer {
    /// Decides which new forms the regions of a program take; `cost` is that of the whole program, however it is compiled.
    ///
    /// # Errors
    /// See [`optimize`](super::optimize).
    pub fn decide(
        &mut self,
        graph: &Graph,
        cost: impl Fn(&Graph) -> Result<Cost, Diagnostics> + Sync,
    ) -> Result<Kept, Diagnostics> {
        let only = |kinds| Kept::Only(Only { kinds, regions: None });
        if self.enabled.is_empty() {
            return Ok(Kept::Only(Only { regions: Some(BTreeSet::new()), ..Only::default() }));
        }
        let graph = tidy(graph)?;
        let mut cuts = Cuts::new(&graph);
        let solved = cuts.solve(self, &Kept::All);
        let mut groups = self.kinds(&solved);
        if groups.is_empty() {
            return Ok(Kept::Only(Only { regions: Some(BTreeSet::new()), ..Only::default() }));
        }
        if groups.len() > MOST_KINDS {
            let rest = groups.split_off(MOST_KINDS - 1);
            groups.push(rest.into_iter().flatten().collect());
        }
        let mut costs = |tried: &[BTreeSet<Kind>]| -> Result<Vec<Cost>, Diagnostics> {
            let kept: Vec<Kept> = tried.iter().cloned().map(only).collect();
            let solved: Vec<_> = kept.iter().map(|kept| (cuts.solve(self, kept), kept)).collect();
            let one = |(solved, kept): (Vec<_>, &Kept)| cost(&Rebuild::new(&graph).stamp_all(&solved, kept)?);
            parallel::map(solved, one).into_iter().collect()
        };
        let all: BTreeSet<Kind> = groups.iter().flatten().cloned().collect();
        let mut tried = vec![BTreeSet::new(), all];
        let mut found = costs(&tried)?;
        let none = found[0];
        let fits = |cost: &Cost| cost.launches <= none.launches && cost.seconds <= none.seconds;
        if !fits(&found[1]) && groups.len() > 1 {
            found.extend(costs(&groups)?);
            let good = groups.iter().zip(&found[2..]).filter(|(_, cost)| fits(cost) && **cost != none);
            let good: BTreeSet<Kind> = good.flat_map(|(kinds, _)| kinds.iter().cloned()).collect();
            tried.extend(groups);
            if !tried.contains(&good) {
                found.extend(costs(std::slice::from_ref(&good))?);
                tried.push(good);
            }
        }
        // The first of equals: less is changed.
        let key = |at: usize| (found[at].seconds, f64::from(found[at].launches));
        let order = |a: &usize, b: &usize| key(*a).partial_cmp(&key(*b)).unwrap_or(std::cmp::Ordering::Equal);
        let best = (0..tried.len()).filter(|at| fits(&found[*at])).min_by(order);
        let kinds = tried.swap_remove(best.unwrap_or(0));
        let regions = Some(cuts.changed(self, &only(kinds.clone())));
        Ok(Kept::Only(Only { kinds, regions }))
    }

    /// Kinds of changes, by falling gain of the regions by themselves.
    fn kinds(&self, solved: &[Arc<Solved>]) -> Vec<BTreeSet<Kind>> {
        let mut gains: BTreeMap<Kind, f64> = BTreeMap::new();
        for part in solved {
            if let (Some(changed), Some(report)) = (&part.forms.changed, part.forms.report) {
                let (before, after) = self.regions[report].cost;
                *gains.entry(kind(changed)).or_default() += before.seconds - after.seconds;
            }
        }
        let mut kinds: Vec<(Kind, f64)> = gains.into_iter().collect();
        kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
        kinds.into_iter().map(|(kind, _)| [kind].into()).collect()
    }
}

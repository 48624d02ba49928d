//! Which new forms of regions stay: those with which the whole program costs less.
//!
//! A region by itself does not show what its change costs elsewhere: kernels that join over regions, updates that are one
//! launch as long as all of them are computed alike. So a program is compiled down to its launches without and with the new
//! forms of its regions, and they stay if it takes no longer, and where it has more launches, each buys as much time as
//! [`alip_plan::Rates::dear_launch`] of them take. What a program decides holds for the same program with fewer rows.
//!
//! All or nothing: new forms of neighbouring regions go together (a value that one leaves in another layout the next one
//! reads so). To keep those of a few rules, or of some stretches of the program, was tried and won nothing
//! (`docs/performance.md`).

use std::collections::BTreeSet;

use super::solution::{Cuts, Rebuild};
use super::tidy::tidy;
use super::{Cost, Optimizer};
use crate::diag::Diagnostics;
use crate::ir::Graph;
use crate::parallel;

/// New forms that regions take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All that are cheaper by themselves.
    All,
    /// None.
    Nothing,
    /// All that are cheaper by themselves, in the regions with these numbers; of any other nothing changes.
    Only(BTreeSet<usize>),
}

impl Kept {
    /// Whether a region with a new form takes it.
    pub(crate) fn allows(&self) -> bool {
        *self != Kept::Nothing
    }

    /// Whether a region may change at all.
    pub(crate) fn looks_at(&self, region: usize) -> bool {
        match self {
            Kept::Only(regions) => regions.contains(&region),
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
        if self.enabled.is_empty() {
            return Ok(Kept::Nothing);
        }
        let graph = tidy(graph)?;
        let mut cuts = Cuts::new(&graph, &self.neighbours);
        let changed = cuts.changed(self);
        if changed.is_empty() {
            return Ok(Kept::Nothing);
        }
        let solved = [Kept::Nothing, Kept::All].map(|kept| (cuts.solve(self, &kept), kept));
        let one = |(solved, kept): (Vec<_>, Kept)| cost(&Rebuild::new(&graph).stamp_all(&solved, &kept)?);
        let costs = parallel::map(solved.into(), one).into_iter().collect::<Result<Vec<Cost>, _>>()?;
        let [none, all] = costs[..] else { return Ok(Kept::Nothing) };
        let more = f64::from(all.launches.saturating_sub(none.launches));
        let rates = &self.target.rates;
        let better = all != none && all.seconds + more * rates.dear_launch * rates.launch <= none.seconds;
        Ok(if better { Kept::Only(changed) } else { Kept::Nothing })
    }
}

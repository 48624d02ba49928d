//! Reductions over the same rows and columns that are near each other become one kernel.
//!
//! The gradients of a bias and of a layer norm's weight and bias are sums over the same rows; one of them alone gives a
//! launch too little to do. None waits for another, so one kernel computes them all, where the last of them stood. The
//! others' operands live that much longer, which bounds how far apart they may be.

use std::collections::HashMap;

use super::group::{GroupId, Groups, Kind};

/// Most launches between the first and the last of a kernel's reductions: about two layers of a transformer's backward
/// pass.
const WINDOW: usize = 32;

impl Groups<'_> {
    /// Merges reductions of one domain, given the order in which groups would run.
    pub(super) fn merge_siblings(&mut self, order: &[GroupId]) {
        type Domain = (Vec<u64>, Vec<u64>);
        let mut open: HashMap<Domain, (GroupId, usize)> = HashMap::new();
        for (position, group) in order.iter().enumerate() {
            let here = &self.groups[*group];
            // A kernel of one row has no other way to use many threads than one launch each.
            if here.kind != Kind::Reduction || here.kept.iter().product::<u64>() < 2 {
                continue;
            }
            let domain = (here.kept.clone(), here.reduced.clone());
            match open.get(&domain) {
                Some((into, first)) if position - first <= WINDOW && self.merge(*into, *group) => {}
                _ => {
                    open.insert(domain, (*group, position));
                }
            }
        }
    }
}

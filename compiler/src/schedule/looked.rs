//! How often something is looked at on the way from a graph to launches. Only tests count, which hold that it grows with the
//! number of nodes and no faster; times would depend on the machine.

/// Notes that so many things of a kind are looked at.
#[inline]
pub(crate) fn looked(what: &'static str, count: usize) {
    #[cfg(test)]
    tally::add(what, count);
    #[cfg(not(test))]
    let _ = (what, count);
}

#[cfg(test)]
pub(crate) mod tally {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static COUNTS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(super) fn add(what: &'static str, count: usize) {
        COUNTS.with_borrow_mut(|counts| *counts.entry(what).or_default() += count as u64);
    }

    /// What this thread has counted since it was asked before.
    pub(crate) fn take() -> BTreeMap<&'static str, u64> {
        COUNTS.take()
    }
}

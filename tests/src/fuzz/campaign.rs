//! Many cases, in parallel, and what they hit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use alip_compiler::optimize::rule_names;

use super::judge::{Failure, Place, try_case};
use super::{Case, differentiated, random_case};

/// Steps of a graph: up to about 60 nodes, twice as many with gradients.
pub const STEPS: usize = 18;

/// A case takes a tenth of a second: one that takes so long is named, since it may never end.
const LONG: Duration = Duration::from_secs(120);

/// Which cases to try, and where.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// One case each.
    pub seeds: Range<u64>,
    /// Most steps of a graph.
    pub steps: usize,
    /// The device.
    pub place: Place,
    /// Whether there are cases with NaN and infinities.
    pub wild: bool,
    /// Once so many have failed no more are begun.
    pub enough: usize,
}

/// What a campaign met.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases tried.
    pub cases: u64,
    /// In how many cases each op stood, gradients included.
    pub ops: BTreeMap<&'static str, u64>,
    /// In how many cases each rewrite of the whole graph was used, and what was lifted.
    pub rewrites: BTreeMap<&'static str, u64>,
    /// In how many cases each rule of the optimiser was used.
    pub rules: BTreeMap<&'static str, u64>,
    /// Seeds that failed, with how: all of them, in order.
    pub failures: Vec<(u64, Failure)>,
}

/// Tries cases on as many threads as there are cores.
pub fn campaign(what: &Campaign) -> Report {
    let (next, report) = (AtomicU64::new(what.seeds.start), Mutex::new(Report::default()));
    let lock = || report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= what.seeds.end || lock().failures.len() >= what.enough {
                return;
            }
            let case = random_case(seed, what.steps);
            if case.is_wild() && !what.wild {
                continue;
            }
            let result = named_if_long(seed, || try_case(&case, &what.place));
            let mut report = lock();
            report.cases += 1;
            hit(&mut report.ops, &case);
            match result {
                Ok(used) => {
                    used.rewrites.into_iter().for_each(|name| *report.rewrites.entry(name).or_default() += 1);
                    used.rules.into_iter().for_each(|name| *report.rules.entry(name).or_default() += 1);
                }
                Err(failure) => report.failures.push((seed, failure)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.failures.sort_by_key(|(seed, _)| *seed);
    report
}

/// Says the seed of a case that takes long, so that a compilation without end can be found.
fn named_if_long<T>(seed: u64, work: impl FnOnce() -> T) -> T {
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("seed {seed} takes more than {} s", LONG.as_secs());
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn hit(ops: &mut BTreeMap<&'static str, u64>, case: &Case) {
    let Ok(program) = differentiated(&case.graph) else { return };
    let mut names: Vec<&'static str> = program.nodes().iter().map(|node| node.op.name()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        *ops.entry(name).or_default() += 1;
    }
}

impl Report {
    /// Adds what another campaign met.
    pub fn add(&mut self, other: Report) {
        self.cases += other.cases;
        let Report { ops, rewrites, rules, .. } = self;
        for (all, more) in [(ops, other.ops), (rewrites, other.rewrites), (rules, other.rules)] {
            more.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count);
        }
        self.failures.extend(other.failures);
    }

    /// Rules of the optimiser that no graph took.
    pub fn unused_rules(&self) -> Vec<&'static str> {
        rule_names().into_iter().map(|(_, name)| name).filter(|name| !self.rules.contains_key(name)).collect()
    }

    /// Hits per op, rewrite and rule, the rarest first, and the rules that were never used.
    pub fn table(&self) -> String {
        let list = |hits: &BTreeMap<&'static str, u64>| {
            let mut rows: Vec<(u64, &str)> = hits.iter().map(|(name, count)| (*count, *name)).collect();
            rows.sort_unstable();
            rows.iter().map(|(count, name)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let never = self.unused_rules().join(", ");
        let (ops, rewrites, rules) = (list(&self.ops), list(&self.rewrites), list(&self.rules));
        format!(
            "{} cases\ngraphs with each op: {ops}\nwith each rewrite: {rewrites}\nwith each rule: {rules}\nrules never used: {never}",
            self.cases
        )
    }
}

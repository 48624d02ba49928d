//! Whole-graph rewrites: functions from graph to graph, each exact, each found by analysis of the graph and never by the
//! name of a model or module.
//!
//! - [`expand`]: semantic ops in terms of primitives: their meaning, and what a target without a kernel for them runs.
//!
//! Every rewrite can be turned off by its name ([`Disabled`]).

pub mod expand;

use std::collections::BTreeSet;

/// Names of rules and rewrites that are not to be used (`--no-rule NAME`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disabled(pub BTreeSet<String>);

impl Disabled {
    /// Whether the rule or rewrite of this name may be used.
    pub fn allows(&self, name: &str) -> bool {
        !self.0.contains(name)
    }
}

//! What a plan was compiled from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Everything that went into a compilation but the target: enough to compile the same for another device, whatever became of
/// the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecSources {
    /// The graph, by path or name.
    pub spec: String,
    /// The pipeline that took the place of its own.
    pub data: Option<String>,
    /// Batch in place of the spec's.
    pub batch: Option<u64>,
    /// What was changed of it.
    pub set: Vec<String>,
    /// Rewrites, rules and themes that were left out.
    pub no_rule: Vec<String>,
    /// Whether the e-graph was left out.
    pub no_egraph: bool,
    /// Every file that was read, by the name it was found under; also those that are embedded in the program.
    pub files: BTreeMap<String, String>,
}

impl SpecSources {
    /// The first of its files that reads otherwise on disk now.
    pub fn changed(&self) -> Option<&str> {
        let changed = |(name, text): &(&String, &String)| {
            std::fs::read_to_string(Path::new(name.as_str())).is_ok_and(|now| now != **text)
        };
        self.files.iter().find(changed).map(|(name, _)| name.as_str())
    }
}

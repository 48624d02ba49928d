//! What a plan was compiled from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Everything that went into a compilation but the target: enough to compile the same for another device, whatever became of
/// the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecSources {
    /// The graph, by path or name.
    pub spec: String,
    /// The folder that paths are relative to; none of a run that did not write it down.
    #[serde(default)]
    pub folder: PathBuf,
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

/// A file as it reads now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFile {
    /// Its path, or a name among those that are embedded in the program.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl SpecFile {
    fn is_on_disk(&self) -> bool {
        Path::new(&self.name).is_file()
    }
}

impl SpecSources {
    /// The first of its files that reads otherwise on disk now.
    pub fn changed(&self) -> Option<&str> {
        let changed = |(name, text): &(&String, &String)| {
            std::fs::read_to_string(self.folder.join(name.as_str())).is_ok_and(|now| now != **text)
        };
        self.files.iter().find(changed).map(|(name, _)| name.as_str()).filter(|_| self.folder.is_absolute())
    }

    /// Where the graph lay, or its name.
    pub fn place(&self) -> PathBuf {
        let path = self.folder.join(&self.spec);
        if self.files.contains_key(&self.spec) { path } else { PathBuf::from(&self.spec) }
    }

    /// Whether this is the graph, wherever it lies.
    pub fn is_graph(&self, file: &SpecFile) -> bool {
        let name = self.spec.strip_prefix("graphs/").unwrap_or(&self.spec);
        let names = [self.spec.clone(), format!("{}.ron", self.spec), format!("graphs/{name}.ron")];
        names.iter().find_map(|name| self.files.get(name)) == Some(&file.text)
    }

    /// The first of the files on disk that the plan was not compiled from, as they read now. A file is told by its name without
    /// folders: whoever compares may stand in another one.
    pub fn unknown<'a>(&self, files: &'a [SpecFile]) -> Option<&'a str> {
        let name = |name: &str| Path::new(name).file_name().map(|name| name.to_os_string());
        let known =
            |file: &SpecFile| self.files.iter().any(|(own, text)| name(own) == name(&file.name) && *text == file.text);
        files.iter().find(|file| file.is_on_disk() && !known(file)).map(|file| file.name.as_str())
    }
}

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
            let now = std::fs::read_to_string(self.folder.join(name.as_str()));
            // A byte order mark is no part of the text.
            now.is_ok_and(|now| now.strip_prefix('\u{feff}').unwrap_or(&now) != **text)
        };
        self.files.iter().find(changed).map(|(name, _)| name.as_str()).filter(|_| self.folder.is_absolute())
    }

    /// The file of the graph, by the name it was found under, and its text.
    fn graph(&self) -> Option<(&String, &String)> {
        let name = self.spec.strip_prefix("graphs/").unwrap_or(&self.spec);
        let names = [self.spec.clone(), format!("{}.ron", self.spec), format!("graphs/{name}.ron")];
        names.iter().find_map(|name| self.files.get_key_value(name))
    }

    /// Where the graph lies, or its name.
    pub fn place(&self) -> PathBuf {
        let name = self.graph().map_or(&self.spec, |(name, _)| name);
        Some(self.folder.join(name)).filter(|path| path.is_file()).unwrap_or_else(|| name.into())
    }

    /// Whether this is the graph, wherever it lies.
    pub fn is_graph(&self, file: &SpecFile) -> bool {
        self.graph().is_some_and(|(_, text)| *text == file.text)
    }

    /// Whether this is the graph's file, whatever stands in it now.
    pub fn is_graphs_file(&self, file: &SpecFile) -> bool {
        let there = self.place().canonicalize();
        let same = || there.is_ok_and(|then| Path::new(&file.name).canonicalize().is_ok_and(|now| now == then));
        self.graph().is_some_and(|(name, _)| *name == file.name) && !file.is_on_disk() || same()
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

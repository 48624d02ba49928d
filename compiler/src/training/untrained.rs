//! Parameters that training leaves as they are, because nothing differentiates them.

use alip_plan::StateKind;
use indexmap::IndexMap;

use crate::diag::Diagnostic;
use crate::resolve::training::States;
use crate::spec::GraphSpec;

/// Warns of parameters that the loss does not depend on, once for each part of the graph.
pub(super) fn no_gradients(spec: &GraphSpec, states: &States, untrained: &[String]) -> Vec<Diagnostic> {
    // The part that a parameter belongs to: the first name of the path of the application.
    let part = |path: &str| {
        let entry = states.entries.get(path)?;
        let name = entry.decl.origin.path.split(['.', '#']).next()?.to_owned();
        spec.parts.get_key_value(name.as_str())
    };
    let mut by_part: IndexMap<&str, Vec<&String>> = IndexMap::new();
    for path in untrained {
        by_part.entry(part(path).map_or("", |(name, _)| name.as_str())).or_default().push(path);
    }
    let in_part = |name: &str| {
        let params = states.entries.iter().filter(|(_, entry)| entry.decl.kind == StateKind::Param);
        params.filter(|(path, _)| part(path).map_or("", |(part, _)| part.as_str()) == name).count()
    };
    let warn = |(name, paths): (&str, Vec<&String>)| {
        let span = match (paths.as_slice(), spec.parts.get_key_value(name)) {
            ([path], _) | ([path, ..], None) => {
                states.entries.get(path.as_str()).and_then(|entry| entry.decl.origin.span)
            }
            (_, Some((part, _))) => Some(part.span),
            _ => None,
        };
        let all = if name.is_empty() { "parameters".into() } else { format!("parameters of `{name}`") };
        let count = paths.len();
        let warning = match paths.as_slice() {
            [path] => Diagnostic::warning(format!("parameter `{path}` gets no gradient"))
                .note("it stays as it is: the loss does not depend on it"),
            _ if count == in_part(name) && !name.is_empty() => {
                Diagnostic::warning(format!("the {count} {all} get no gradient"))
                    .note("they stay as they are: the loss does not depend on this part")
            }
            some => Diagnostic::warning(format!("{count} {all} get no gradient: {}", few(some)))
                .note("they stay as they are: the loss does not depend on them"),
        };
        let warning = warning.help("freeze what is meant to stay, with a group: `(select: \"...\", freeze: true)`");
        match span {
            Some(span) => warning.label(span, "declared here"),
            None => warning,
        }
    };
    by_part.into_iter().map(warn).collect()
}

/// The first few of some paths.
fn few(paths: &[&String]) -> String {
    const SHOWN: usize = 4;
    let shown = crate::resolve::training::listed(&paths[..paths.len().min(SHOWN)]);
    match paths.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

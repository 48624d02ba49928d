//! Groups: which parameters and states a selector names, and what the groups of a graph say of a path together.
//!
//! What selectors mean and which group wins is told at [`GroupSpec`]; this is the one place that reads them.

use std::collections::HashSet;

use super::value::Value;
use crate::diag::{Diagnostic, Diagnostics, Span, did_you_mean};
use crate::spec::{Expr, GroupSpec, Spanned, TrainSpec, plain_path};

/// A piece of a selector.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    /// `*`
    Any,
    /// `{i}`: one or more characters of one step.
    Capture(String),
}

/// A path with gaps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Selector(Vec<Piece>);

/// What a selector's captures stand for.
pub(crate) type Captures = Vec<(String, Value)>;

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// A brace that names no step, or a name that stands twice.
    pub(super) fn parse(written: &Spanned<String>) -> Result<Selector, Diagnostic> {
        let wrong = |what: &str| {
            Diagnostic::error(what).label(written.span, "").help("write `visual.*`, or `*.resblocks.{i}.*` to read `i`")
        };
        let (mut pieces, mut text) = (Vec::new(), String::new());
        let path = plain_path(&written.node);
        let mut rest = path.chars();
        while let Some(c) = rest.next() {
            let piece = match c {
                '*' => Piece::Any,
                '{' => {
                    let name: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    if !crate::spec::is_name(&name) || !path.contains(&format!("{{{name}}}")) {
                        return Err(wrong("`{` begins the name of a step of a path, `{i}`"));
                    }
                    if pieces.contains(&Piece::Capture(name.clone())) {
                        return Err(wrong(&format!("`{{{name}}}` stands twice")));
                    }
                    Piece::Capture(name)
                }
                _ => {
                    text.push(c);
                    continue;
                }
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            // Two gaps side by side are one.
            if piece == Piece::Any && pieces.last() == Some(&Piece::Any) {
                continue;
            }
            pieces.push(piece);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Selector(pieces))
    }

    /// What the captures stand for, if the selector names this path. Gaps are as short as they can be,
    /// captures as long: `{i}*` is 11, not 1.
    pub(super) fn captures(&self, path: &str) -> Option<Captures> {
        let mut search = Search { path, found: Vec::new(), failed: HashSet::new() };
        search.fits(&self.0, 0).then_some(search.found)
    }
}

/// A search for what the gaps of a selector stand for.
struct Search<'p> {
    path: &'p str,
    found: Captures,
    /// Pieces left and the place in the path from which they do not fit: looked at once, however many ways lead there.
    failed: HashSet<(usize, usize)>,
}

impl Search<'_> {
    /// Whether the pieces are all of the path from `at` on.
    fn fits(&mut self, pieces: &[Piece], at: usize) -> bool {
        if self.failed.contains(&(pieces.len(), at)) {
            return false;
        }
        let rest = &self.path[at..];
        let fits = match pieces {
            [] => rest.is_empty(),
            [Piece::Text(text), more @ ..] => rest.starts_with(text.as_str()) && self.fits(more, at + text.len()),
            [Piece::Any] => true,
            [Piece::Any, more @ ..] => {
                let mut ends = rest.char_indices().map(|(end, _)| end).chain([rest.len()]);
                ends.any(|end| self.fits(more, at + end))
            }
            [Piece::Capture(name), more @ ..] => {
                let step = rest.find('.').unwrap_or(rest.len());
                let ends = rest[..step].char_indices().map(|(end, c)| end + c.len_utf8());
                ends.rev().any(|end| {
                    let known = self.found.len();
                    self.found.push((name.clone(), captured(&rest[..end])));
                    let fits = self.fits(more, at + end);
                    if !fits {
                        self.found.truncate(known);
                    }
                    fits
                })
            }
        };
        if !fits {
            self.failed.insert((pieces.len(), at));
        }
        fits
    }
}

fn captured(text: &str) -> Value {
    text.parse().map_or_else(|_| Value::Str(text.into()), Value::Int)
}

/// An expression of a group, with what the captures of its selector stand for.
pub(crate) type Given = (Expr, Captures);

/// What the groups say of one path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// Not trained.
    pub(crate) freeze: bool,
    /// Whether states stay.
    pub(crate) frozen_statistics: Option<bool>,
    /// Learning rate.
    pub(crate) lr: Option<Given>,
    /// Weight decay.
    pub(crate) weight_decay: Option<Given>,
}

/// The groups of a graph, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(Vec<(Selector, GroupSpec)>);

impl Groups {
    /// Those of `train`.
    pub(crate) fn new(train: Option<&TrainSpec>) -> Result<Groups, Diagnostics> {
        let specs = train.and_then(|train| train.groups.as_deref()).unwrap_or(&[]);
        let (mut groups, mut errors) = (Vec::new(), Vec::new());
        for spec in specs {
            match Selector::parse(&spec.select) {
                Ok(selector) => groups.push((selector, spec.clone())),
                Err(error) => errors.push(error),
            }
        }
        Diagnostics::check(Groups(groups), errors)
    }

    /// What they say of a path, the last one of each field.
    pub(crate) fn of(&self, path: &str) -> Group {
        let mut group = Group::default();
        for (selector, spec) in &self.0 {
            let Some(captures) = selector.captures(path) else { continue };
            let given = |expr: &Expr| (expr.clone(), captures.clone());
            group.freeze = spec.freeze.map_or(group.freeze, |freeze| freeze.node);
            group.frozen_statistics = spec.frozen_statistics.map(|frozen| frozen.node).or(group.frozen_statistics);
            group.lr = spec.lr.as_ref().map(given).or(group.lr);
            group.weight_decay = spec.weight_decay.as_ref().map(given).or(group.weight_decay);
        }
        group
    }

    /// What is wrong or odd with the selectors for a model of these parameters and states.
    /// `of_part` has the parameters of a part of the graph.
    pub(crate) fn check(
        &self,
        params: &[String],
        states: &[String],
        of_part: impl Fn(&str) -> Vec<String>,
    ) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        for (index, (selector, spec)) in self.0.iter().enumerate() {
            let named = |paths: &[String]| paths.iter().filter(|path| selector.captures(path).is_some()).count();
            if named(params) == 0 && (spec.frozen_statistics.is_none() || named(states) == 0) {
                errors.push(selects_nothing(spec, params, &of_part));
                continue;
            }
            warnings.extend(self.in_vain(index, params));
            let keeps = spec.frozen_statistics.filter(|keeps| keeps.node && named(states) == 0);
            warnings.extend(keeps.map(|keeps| no_statistics(spec, keeps.span)));
            let freezes = spec.freeze.is_some_and(|freeze| freeze.node);
            let unsaid =
                |path: &&String| selector.captures(path).is_some() && self.of(path).frozen_statistics.is_none();
            let moving: Vec<&String> = states.iter().filter(unsaid).collect();
            if let ([first, ..], true) = (moving.as_slice(), freezes) {
                warnings.push(statistics_move(spec, first, moving.len()));
            }
        }
        (errors, warnings)
    }
}

/// Where a group has a field, if it has it.
type Written = fn(&GroupSpec) -> Option<Span>;

/// Fields that are different for some parameters, each with its name.
const FIELDS: [(&str, Written); 3] = [
    ("freeze", |group| group.freeze.as_ref().map(|freeze| freeze.span)),
    ("lr", |group| group.lr.as_ref().map(|lr| lr.span)),
    ("weight_decay", |group| group.weight_decay.as_ref().map(|decay| decay.span)),
];

impl Groups {
    /// Warns of fields of a group that are those of no parameter in the end.
    fn in_vain(&self, index: usize, params: &[String]) -> Vec<Diagnostic> {
        let (selector, spec) = &self.0[index];
        let named: Vec<&String> = params.iter().filter(|path| selector.captures(path).is_some()).collect();
        let warn = |(name, field): (&str, Written)| {
            let span = field(spec).filter(|_| !named.is_empty())?;
            let later = |path: &str| {
                self.0[index + 1..]
                    .iter()
                    .any(|(other, group)| field(group).is_some() && other.captures(path).is_some())
            };
            let left: Vec<&&String> = named.iter().filter(|path| !later(path)).collect();
            let why = match left.as_slice() {
                [] => "later groups say otherwise for all that it names",
                left if name != "freeze" && left.iter().all(|path| self.of(path).freeze) => "what it names is frozen",
                _ => return None,
            };
            let warning = Diagnostic::warning(format!("`{name}` of this group changes nothing")).label(span, why);
            Some(warning.help("where several groups name a parameter, each field is that of the last one that has it"))
        };
        FIELDS.into_iter().filter_map(warn).collect()
    }
}

fn no_statistics(spec: &GroupSpec, span: Span) -> Diagnostic {
    Diagnostic::warning("`frozen_statistics` of this group changes nothing")
        .label(span, format!("`{}` names no state", spec.select.node))
        .help("modules without state are computed as in training, dropout among them")
}

fn statistics_move(spec: &GroupSpec, first: &str, count: usize) -> Diagnostic {
    let states = if count == 1 { "1 state".to_owned() } else { format!("{count} states") };
    Diagnostic::warning(format!("what is frozen has {states} that still move, such as `{first}`"))
        .label(spec.select.span, "freezes parameters alone")
        .help("`frozen_statistics: true` keeps them and uses them, as evaluation does; `false` says that this is meant")
}

fn selects_nothing(spec: &GroupSpec, paths: &[String], of_part: impl Fn(&str) -> Vec<String>) -> Diagnostic {
    let error = Diagnostic::error(format!("no parameter matches `{}`", spec.select.node))
        .label(spec.select.span, "selects nothing");
    let part = spec.select.node.split(['.', '[']).next().unwrap_or_default();
    let mut steps: Vec<String> = of_part(part).iter().map(|path| below_first(path)).collect();
    steps.dedup();
    if !steps.is_empty() && !steps.contains(&format!("{part}.*")) {
        let steps = super::eval::listed(steps);
        return error.help(format!("paths of the part `{part}` do not begin with its name; they are {steps}"));
    }
    // Paths, and what is below each of their steps.
    let below = |path: &String| {
        let dots = path.match_indices('.').map(|(at, _)| format!("{}.*", &path[..at])).collect::<Vec<_>>();
        dots.into_iter().chain([path.clone()])
    };
    let near: Vec<String> = paths.iter().flat_map(below).collect();
    let error = match did_you_mean(&plain_path(&spec.select.node), near.iter().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error,
    };
    let some = super::eval::listed(paths.iter().take(3));
    error.help(format!("`*` stands for any characters; paths look like {some}"))
}

/// `transformer.*` for what lies below `transformer`.
fn below_first(path: &str) -> String {
    path.split_once('.').map_or(path.to_owned(), |(first, _)| format!("{first}.*"))
}

#[cfg(test)]
mod tests {
    use super::Selector;
    use crate::diag::SourceMap;
    use crate::spec::Spanned;

    /// What the captures of a selector are for a path, `i=3, name='attn'`; none if it does not name it.
    fn captures(selector: &str, path: &str) -> Option<String> {
        let source = SourceMap::new().add("", selector);
        let written = Spanned::new(selector.to_owned(), crate::diag::Span::new(source, 0, 0));
        let found = Selector::parse(&written).expect("a selector").captures(path)?;
        Some(found.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn selectors_name_paths() {
        let table = [
            ("visual.*", "visual.proj", true),
            ("visual.*", "text_projection", false),
            ("*.bias", "visual.ln_pre.bias", true),
            ("*.bias", "visual.bias.weight", false),
            ("*ln_*.weight", "transformer.resblocks.0.ln_1.weight", true),
            ("logit_scale", "logit_scale", true),
            ("logit_scale", "logit_scale_2", false),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("*.resblocks[0].*", "visual.resblocks.0.ln_1.bias", true),
            ("*.resblocks[0].*", "visual.resblocks.10.ln_1.bias", false),
            ("***", "anything", true),
            // Tried way by way, this would take hours.
            ("*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*e*x", &"e".repeat(200), false),
        ];
        for (selector, path, expected) in table {
            assert_eq!(captures(selector, path).is_some(), expected, "{selector} on {path}");
        }
    }

    #[test]
    fn captures_stand_for_steps() {
        let table = [
            ("*.resblocks.{i}.*", "visual.resblocks.11.ln_1.bias", Some("i=11")),
            ("*.resblocks.{i}.{part}.*", "visual.resblocks.3.attn.out_proj.bias", Some("i=3, part='attn'")),
            ("*.resblocks[{i}].*", "visual.resblocks.3.attn.bias", Some("i=3")),
            ("*.layer{n}.{block}.*", "visual.layer2.0.conv1.weight", Some("n=2, block=0")),
            ("*.{i}", "visual.proj", Some("i='proj'")),
            ("*.resblocks.{i}*", "visual.resblocks.11.ln_1.bias", Some("i=11")),
            ("{i}.bias", "a.b.bias", None),
        ];
        for (selector, path, expected) in table {
            assert_eq!(captures(selector, path).as_deref(), expected, "{selector} on {path}");
        }
    }
}

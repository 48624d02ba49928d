//! What needs an equation of a graph: those that nothing of a variant needs are taken away, those that nobody reads are told.
//!
//! - What a file itself writes stays, read or not, so that it is checked. Only what its bases alone wrote goes.
//! - What applies a part with state is needed: its state lives on, whoever reads what it yields.

use std::collections::{HashMap, HashSet};

use super::check::{children, each_name};
use super::instance::Instance;
use super::library::Library;
use super::value::Value;
use crate::diag::{Diagnostic, Span};
use crate::spec::{Equation, Expr, ExprKind, GraphSpec, Name};

/// The equations of a body, by position and in order, that the wanted names need or that are needed by themselves; each
/// with the reason.
pub(super) fn reachable<'s, R: Copy>(
    spec: &'s GraphSpec,
    body: &'s [Equation],
    mut wanted: HashMap<&'s str, R>,
    itself: impl Fn(&Equation) -> Option<R>,
) -> Vec<(usize, R)> {
    let mut picked = Vec::new();
    for (index, equation) in body.iter().enumerate().rev() {
        let by_name = equation.targets.iter().find_map(|target| wanted.get(target.as_str()).copied());
        let mut reason = by_name.or_else(|| itself(equation));
        each_name(&equation.value, &mut |name, _| {
            // A part is wanted when one of its values is read: what applies it is needed.
            if spec.parts.contains_key(name) {
                reason = reason.or(wanted.get(name).copied());
            }
        });
        let Some(reason) = reason else { continue };
        want(spec, &equation.value, reason, &mut wanted);
        picked.push((index, reason));
    }
    picked.reverse();
    picked
}

/// Adds what an expression reads.
fn want<'s, R: Copy>(spec: &GraphSpec, expr: &'s Expr, reason: R, wanted: &mut HashMap<&'s str, R>) {
    let mut members = HashSet::new();
    parts_read(expr, &mut members);
    each_name(expr, &mut |name, _| {
        if !spec.parts.contains_key(name) || members.contains(name) {
            wanted.entry(name).or_insert(reason);
        }
    });
}

/// Parts of which an expression reads a value, as in `lcg.sim` or `blocks[0].keep`.
fn parts_read<'e>(expr: &'e Expr, found: &mut HashSet<&'e str>) {
    if let ExprKind::Member(inner, _) = &expr.kind {
        found.extend(root(inner));
    }
    children(expr).into_iter().for_each(|child| parts_read(child, found));
}

/// `blocks` of `blocks[0].attn`.
fn root(expr: &Expr) -> Option<&str> {
    match &expr.kind {
        ExprKind::Name(name) => Some(name),
        ExprKind::Member(inner, _) | ExprKind::Index(inner, _) => root(inner),
        _ => None,
    }
}

/// Parts that hold state, their own or that of their parts.
pub(super) fn with_state<'i>(instance: &'i Instance, library: &Library) -> HashSet<&'i str> {
    fn holds(value: &Value, library: &Library) -> bool {
        match value {
            Value::Instance(part) => {
                let own = &library.module(part.module).spec.state;
                !own.is_empty() || part.parts.values().any(|part| holds(part, library))
            }
            Value::List(parts) => parts.iter().any(|part| holds(part, library)),
            _ => false,
        }
    }
    instance.parts.iter().filter(|(_, part)| holds(part, library)).map(|(name, _)| name.as_str()).collect()
}

/// The first of these parts that an equation applies. Reading a value of a part is not to apply it.
fn applied<'p>(equation: &Equation, parts: &HashSet<&'p str>) -> Option<&'p str> {
    fn find<'p>(expr: &Expr, parts: &HashSet<&'p str>) -> Option<&'p str> {
        match &expr.kind {
            ExprKind::Name(name) => parts.get(name.as_str()).copied(),
            ExprKind::Member(inner, _) if root(inner).is_some() => None,
            _ => children(expr).into_iter().find_map(|child| find(child, parts)),
        }
    }
    find(&equation.value, parts)
}

/// An equation of a base that stays for the state of a part alone.
pub(super) struct Kept {
    /// The equation.
    span: Span,
    /// The part.
    part: String,
}

/// Takes away the equations that only bases wrote and that neither the loss, a metric, a state, a program nor an equation
/// of the graph itself needs.
pub(super) fn prune(spec: &mut GraphSpec, with_state: &HashSet<&str>) -> Vec<Kept> {
    let itself = |equation: &Equation| {
        let own = equation.span.source == spec.span.source;
        (own || applied(equation, with_state).is_some()).then_some(own)
    };
    let next: Vec<String> = spec.state.keys().map(|name| format!("{name}'")).collect();
    let mut wanted: HashMap<&str, bool> = next.iter().map(|name| (name.as_str(), true)).collect();
    wanted.extend(spec.programs.values().flat_map(|program| &program.outputs).map(|name| (name.as_str(), true)));
    let loss = spec.train.as_ref().and_then(|train| train.loss.as_ref());
    for expr in spec.metrics.values().chain(loss) {
        want(spec, expr, true, &mut wanted);
    }
    let keep: HashMap<usize, bool> = reachable(spec, &spec.body, wanted, itself).into_iter().collect();
    let for_state = keep.iter().filter(|(_, wanted)| !**wanted).map(|(index, _)| &spec.body[*index]);
    let kept = for_state
        .filter_map(|equation| {
            applied(equation, with_state).map(|part| Kept { span: equation.span, part: part.to_owned() })
        })
        .collect();
    let mut index = 0..spec.body.len();
    spec.body.retain(|_| index.next().is_some_and(|index| keep.contains_key(&index)));
    kept
}

impl Kept {
    /// Tells, of an error in such an equation, why it is there.
    pub(super) fn explain(kept: &[Kept], error: Diagnostic) -> Diagnostic {
        let inside = |kept: &&Kept| {
            let within = |span: &Span| {
                span.source == kept.span.source && span.start >= kept.span.start && span.end <= kept.span.end
            };
            error.labels.iter().any(|label| label.primary && within(&label.span))
        };
        match kept.iter().find(inside) {
            Some(Kept { part, .. }) => error.help(format!(
                "the part `{part}` of the base has state, so what applies it stays; without the part it goes: \
                 `parts: {{ \"{part}\": None }}`"
            )),
            None => error,
        }
    }
}

/// Warns of equations of the graph's own file that compute something for nobody.
pub(super) fn unread(spec: &GraphSpec, with_state: &HashSet<&str>) -> Vec<Diagnostic> {
    // A graph that only names values is for looking at them.
    if spec.train.is_none() && spec.programs.is_empty() && spec.metrics.is_empty() {
        return Vec::new();
    }
    let (mut names, mut parts) = (HashSet::new(), HashSet::new());
    let after = spec.metrics.values().chain(spec.train.as_ref().and_then(|train| train.loss.as_ref()));
    for expr in spec.body.iter().map(|equation| &equation.value).chain(after) {
        each_name(expr, &mut |name, _| {
            names.insert(name);
        });
        parts_read(expr, &mut parts);
    }
    names.extend(spec.programs.values().flat_map(|program| &program.outputs).map(Name::as_str));
    let is_read = |target: &Name| {
        let meant = target.starts_with('_') || target.next_of().is_some();
        meant || names.contains(target.as_str())
    };
    let for_nobody = |equation: &&Equation| {
        equation.span.source == spec.span.source
            && !equation.targets.iter().any(is_read)
            && applied(equation, with_state).is_none()
            && applied(equation, &parts).is_none()
    };
    spec.body.iter().filter(for_nobody).map(unread_equation).collect()
}

fn unread_equation(equation: &Equation) -> Diagnostic {
    let name = &equation.targets[0];
    Diagnostic::warning(format!("nothing reads `{name}`"))
        .label(name.span, "neither the loss, a metric, a program nor another equation")
        .help(format!("was it meant to be part of the loss? name it `_{name}` if it is only to be looked at"))
}

//! What needs an equation of a graph: those that nothing of a variant needs are taken away, those that nobody reads are told.
//!
//! - What a file itself writes stays, read or not, so that it is checked. Only what its bases alone wrote goes.
//! - What applies a part with state is needed: its state lives on, whoever reads what it yields.

use std::collections::{HashMap, HashSet};

use super::check::each_name;
use super::instance::Instance;
use super::library::Library;
use super::state::States;
use super::value::Value;
use crate::diag::{Diagnostic, Span};
use crate::spec::{Equation, Expr, ExprKind, GraphSpec, ModuleSpec, Name};

/// How expressions of a graph use its parts.
#[derive(Clone, Copy)]
pub(super) struct Uses<'a> {
    pub(super) spec: &'a GraphSpec,
    /// None where something is wrong with the parts.
    pub(super) instance: Option<&'a Instance>,
    pub(super) library: &'a Library,
    /// Parameters and states that are there without what applies their part: in programs beside `train`, what training has
    /// made.
    pub(super) made: Option<&'a States>,
}

/// What an expression does with a part of the graph, or with something inside of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Applies it, or names it for something else to apply.
    Applies,
    /// Reads a value, for which the part must have been applied.
    Reads,
    /// Reads a parameter or state that is there, whatever applies its part.
    ReadsMade,
}

impl<'a> Uses<'a> {
    /// Calls `visit` for each use of a part of the graph: `lcg(x)`, `chain(visual.blocks, x)`, `lcg.sim`.
    fn each<'e>(&self, expr: &'e Expr, visit: &mut impl FnMut(&'e str, Use)) {
        match &expr.kind {
            ExprKind::Name(name) if self.spec.parts.contains_key(name.as_str()) => visit(name, Use::Applies),
            ExprKind::Member(inner, name) => match root(inner).filter(|root| self.spec.parts.contains_key(*root)) {
                Some(root) => visit(root, self.member(expr, inner, name)),
                None => self.each(inner, visit),
            },
            _ => expr.children().into_iter().for_each(|child| self.each(child, visit)),
        }
    }

    fn member(&self, expr: &Expr, inner: &Expr, name: &Name) -> Use {
        match self.instance.and_then(|graph| Some((graph.named(inner)?, graph.named(expr)))) {
            Some((_, Some(_))) => Use::Applies,
            Some((Value::Instance(part), None)) => {
                let spec = &self.library.module(part.module).spec;
                let state = spec.params.contains_key(name.as_str()) || spec.state.contains_key(name.as_str());
                let path = part.place.path(name).filter(|_| state);
                let made = self.made.zip(path).is_some_and(|(made, path)| made.entries.contains_key(&path));
                if made { Use::ReadsMade } else { Use::Reads }
            }
            _ => Use::Reads,
        }
    }

    /// The first of these parts that an equation applies.
    fn applied<'p>(&self, equation: &Equation, parts: &HashSet<&'p str>) -> Option<&'p str> {
        let mut found = None;
        self.each(&equation.value, &mut |part, how| {
            found = found.or(parts.get(part).copied().filter(|_| how == Use::Applies));
        });
        found
    }

    /// Adds what an expression reads.
    fn want<'e, R: Copy>(&self, expr: &'e Expr, reason: R, wanted: &mut HashMap<&'e str, R>) {
        each_name(expr, &mut |name, _| {
            if !self.spec.parts.contains_key(name) {
                wanted.entry(name).or_insert(reason);
            }
        });
        self.each(expr, &mut |part, how| {
            if how == Use::Reads {
                wanted.entry(part).or_insert(reason);
            }
        });
    }

    /// The equations of a body, by position and in order, that the wanted names need or that are needed by themselves; each
    /// with the reason.
    pub(super) fn reachable<'e, R: Copy>(
        &self,
        body: &'e [Equation],
        mut wanted: HashMap<&'e str, R>,
        itself: impl Fn(&Equation) -> Option<R>,
    ) -> Vec<(usize, R)> {
        let mut picked = Vec::new();
        for (index, equation) in body.iter().enumerate().rev() {
            let by_name = equation.targets.iter().find_map(|target| wanted.get(target.as_str()).copied());
            // A part is wanted when one of its values is read: what applies it is needed.
            let parts = wanted.keys().copied().filter(|name| self.spec.parts.contains_key(*name)).collect();
            let by_part = || self.applied(equation, &parts).map(|part| wanted[part]);
            let Some(reason) = by_name.or_else(|| itself(equation)).or_else(by_part) else { continue };
            self.want(&equation.value, reason, &mut wanted);
            picked.push((index, reason));
        }
        picked.reverse();
        picked
    }

    /// The equations that stay of a graph, as [`reachable`](Uses::reachable): `true` for what is read or its own.
    fn kept(&self, with_state: &HashSet<&str>) -> HashMap<usize, bool> {
        let spec = self.spec;
        let itself = |equation: &Equation| {
            let own = equation.span.source == spec.span.source;
            (own || self.applied(equation, with_state).is_some()).then_some(own)
        };
        let next: Vec<String> = spec.state.keys().map(|name| format!("{name}'")).collect();
        let mut wanted: HashMap<&str, bool> = next.iter().map(|name| (name.as_str(), true)).collect();
        wanted.extend(spec.programs.values().flat_map(|program| &program.outputs).map(|name| (name.as_str(), true)));
        for expr in read_after(spec) {
            self.want(expr, true, &mut wanted);
        }
        self.reachable(&spec.body, wanted, itself).into_iter().collect()
    }
}

/// What is read after the body: the loss and the metrics.
fn read_after(spec: &GraphSpec) -> impl Iterator<Item = &Expr> {
    spec.metrics.values().chain(spec.train.as_ref().and_then(|train| train.loss.as_ref()))
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

/// An equation of a base that stays for the state of a part alone.
pub(super) struct Kept {
    /// The equation.
    span: Span,
    /// The part.
    part: String,
}

/// Takes away the equations that only bases wrote and that neither the loss, a metric, a state, a program nor an equation
/// of the graph itself needs.
pub(super) fn prune(
    spec: &mut GraphSpec,
    instance: Option<&Instance>,
    library: &Library,
    with_state: &HashSet<&str>,
) -> Vec<Kept> {
    let uses = Uses { spec, instance, library, made: None };
    let keep = uses.kept(with_state);
    let for_state = keep.iter().filter(|(_, wanted)| !**wanted).map(|(index, _)| &spec.body[*index]);
    let kept = for_state
        .filter_map(|equation| {
            let part = uses.applied(equation, with_state)?.to_owned();
            Some(Kept { span: equation.span, part })
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

/// Warns of equations of the graph's own file, and of modules, that compute something for nobody.
pub(super) fn unread(
    spec: &GraphSpec,
    instance: Option<&Instance>,
    library: &Library,
    with_state: &HashSet<&str>,
) -> Vec<Diagnostic> {
    let mut warnings = unread_in_graph(&Uses { spec, instance, library, made: None }, with_state);
    // Values of a part can be read wherever the part can be named.
    let modules = || library.modules().filter(|module| module.span != spec.span);
    let bodies = modules().map(|module| &module.body).chain([&spec.body]).flatten();
    let mut members = HashSet::new();
    for expr in bodies.map(|equation| &equation.value).chain(read_after(spec)) {
        expr.walk(&mut |expr| {
            if let ExprKind::Member(_, name) = &expr.kind {
                members.insert(name.as_str());
            }
        });
    }
    warnings.extend(modules().flat_map(|module| unread_in_module(module, &members)));
    warnings
}

fn unread_in_graph(uses: &Uses<'_>, with_state: &HashSet<&str>) -> Vec<Diagnostic> {
    let spec = uses.spec;
    // A graph that only names values is for looking at them.
    if spec.train.is_none() && spec.programs.is_empty() && spec.metrics.is_empty() {
        return Vec::new();
    }
    let (mut names, mut parts) = (HashSet::new(), HashSet::new());
    for expr in spec.body.iter().map(|equation| &equation.value).chain(read_after(spec)) {
        each_name(expr, &mut |name, _| {
            names.insert(name);
        });
        uses.each(expr, &mut |part, how| {
            if how != Use::Applies {
                parts.insert(part);
            }
        });
    }
    names.extend(spec.programs.values().flat_map(|program| &program.outputs).map(Name::as_str));
    let for_nobody = |equation: &&Equation| {
        equation.span.source == spec.span.source
            && !is_read(equation, &names)
            && uses.applied(equation, with_state).is_none()
            && uses.applied(equation, &parts).is_none()
    };
    let readers = "neither the loss, a metric, a program nor another equation";
    let unread = spec.body.iter().filter(for_nobody).map(|equation| unread_equation(equation, readers));
    let own_inputs = spec.inputs.keys().filter(|input| input.span.source == spec.span.source);
    let inputs = own_inputs.filter(|input| !names.contains(input.as_str())).map(unread_input);
    let own_parts = spec.parts.keys().filter(|part| part.span.source == spec.span.source);
    unread.chain(inputs).chain(own_parts.filter(|part| !names.contains(part.as_str())).map(unapplied_part)).collect()
}

fn unread_input(input: &Name) -> Diagnostic {
    Diagnostic::warning(format!("nothing reads the input `{input}`"))
        .label(input.span, "delivered for nobody")
        .help("read it in the body, or leave it out")
}

fn unapplied_part(part: &Name) -> Diagnostic {
    Diagnostic::warning(format!("nothing applies the part `{part}`"))
        .label(part.span, "so it has no parameters and computes nothing")
        .help(format!("apply it in the body, `y = {part}(x)`, or leave it out"))
}

/// What applies a part may be there for its state, or for its values: whether it has any is not known before it is made.
fn unread_in_module(module: &ModuleSpec, members: &HashSet<&str>) -> Vec<Diagnostic> {
    let mut names: HashSet<&str> = members.clone();
    names.extend(module.outputs.iter().map(Name::as_str));
    let mut with_parts = HashSet::new();
    for (index, equation) in module.body.iter().enumerate() {
        each_name(&equation.value, &mut |name, _| {
            names.insert(name);
        });
        if applies_part(module, &equation.value) {
            with_parts.insert(index);
        }
    }
    let for_nobody = |(index, equation): &(usize, &Equation)| !with_parts.contains(index) && !is_read(equation, &names);
    let unread = module.body.iter().enumerate().filter(for_nobody);
    unread.map(|(_, equation)| unread_equation(equation, "neither an output nor another equation")).collect()
}

/// Whether an expression applies a part of its module or names one for something else to apply; `f.weight` only reads.
fn applies_part(module: &ModuleSpec, expr: &Expr) -> bool {
    let of_part = |expr: &Expr| root(expr).is_some_and(|root| module.parts.contains_key(root));
    match &expr.kind {
        ExprKind::Name(name) => module.parts.contains_key(name.as_str()),
        ExprKind::Call(callee, args) => {
            let chains = matches!(&callee.kind, ExprKind::Name(name) if name == "chain");
            let given = |arg: &Expr| chains && of_part(arg) || applies_part(module, arg);
            of_part(callee) || args.iter().any(|arg| given(&arg.value))
        }
        ExprKind::Member(..) if of_part(expr) => false,
        _ => expr.children().into_iter().any(|child| applies_part(module, child)),
    }
}

/// Whether one of the values that an equation names is read, is the next one of a state, or is meant to be read by nobody.
fn is_read(equation: &Equation, names: &HashSet<&str>) -> bool {
    let read = |target: &Name| target.starts_with('_') || target.next_of().is_some() || names.contains(target.as_str());
    equation.targets.iter().any(read)
}

fn unread_equation(equation: &Equation, readers: &str) -> Diagnostic {
    let name = &equation.targets[0];
    Diagnostic::warning(format!("nothing reads `{name}`"))
        .label(name.span, readers)
        .help(format!("was it meant to be part of the loss? name it `_{name}` if it is only to be looked at"))
}

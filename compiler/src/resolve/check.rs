//! What can be said of a module by reading it, before it is applied to anything: names, states, recursion.
//!
//! A graph is checked as the module it is ([`super::graph_module`]).

use std::collections::{HashMap, HashSet};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use super::library::{Module, ModuleId, Scope};
use super::noise::{STEP_VALUES, no_step_value};
use crate::diag::{Diagnostic, Span, did_you_mean};
use crate::ops::functions::functions;
use crate::spec::{ArgSpec, Equation, Expr, ExprKind, ModuleSpec, Name};

/// Constants that every expression may name.
pub(crate) const CONSTANTS: [(&str, f64); 1] = [("pi", std::f64::consts::PI)];

/// Forms that look like calls of functions but take parts, with what they mean.
pub const FORMS: [(&str, &str); 3] = [
    ("chain(parts, x, more...)", "Applies each of a list of parts to what the one before it yields, beginning with x."),
    (
        "noise(shape, kind: 'uniform')",
        "Random numbers, drawn anew in every step: 'uniform' in [0, 1), or 'normal'. They depend on the run's seed, the step, \
         and the part and equation that draw them.",
    ),
    ("len(list)", "How many items a list has: parts, or the sizes that `..S` stands for."),
];

/// Initialisers, known only in `init`, with what they mean; any other expression is a constant.
pub const INITIALISERS: [(&str, &str); 4] = [
    ("zeros", "0 everywhere."),
    ("ones", "1 everywhere."),
    ("normal(std)", "Normal with mean 0 and this standard deviation."),
    ("uniform(bound)", "Uniform between -bound and bound."),
];

/// `chain` of `chain(parts, x)`.
fn head(signature: &'static str) -> &'static str {
    signature.split_once('(').map_or(signature, |(name, _)| name)
}

/// What is wrong with a module.
pub(crate) fn module(spec: &ModuleSpec, scope: &Scope) -> Vec<Diagnostic> {
    let mut check = Check::new(spec, scope);
    check.declarations();
    for equation in &spec.body {
        check.equation(equation);
    }
    check.outputs();
    check.states();
    check.errors
}

/// Checks an expression that is read after the body, such as a metric; `more` names are known besides the module's.
pub(crate) fn after_body(spec: &ModuleSpec, scope: &Scope, more: &[String], expr: &Expr) -> Vec<Diagnostic> {
    let mut check = Check::new(spec, scope);
    check.declarations();
    check.errors.clear();
    check
        .known
        .extend(spec.body.iter().flat_map(|equation| &equation.targets).map(|name| (name.text.clone(), name.span)));
    check.known.extend(more.iter().map(|name| (name.clone(), expr.span)));
    check.expr(expr);
    check.errors
}

struct Check<'a> {
    spec: &'a ModuleSpec,
    scope: &'a Scope,
    /// Names of values so far, with their places.
    known: HashMap<String, Span>,
    /// Names that were told to be unknown.
    told: HashSet<String>,
    errors: Vec<Diagnostic>,
}

impl<'a> Check<'a> {
    fn new(spec: &'a ModuleSpec, scope: &'a Scope) -> Check<'a> {
        Check { spec, scope, known: HashMap::new(), told: HashSet::new(), errors: Vec::new() }
    }
}

impl Check<'_> {
    fn declarations(&mut self) {
        let spec = self.spec;
        let declared = spec.args.keys().chain(spec.inputs.keys()).chain(spec.params.keys()).chain(spec.state.keys());
        for name in declared.chain(spec.parts.keys()) {
            self.declare(name);
        }
        let mut patterns: Vec<&Name> = Vec::new();
        for default in spec.args.values() {
            if let ArgSpec::Default(expr) = default {
                self.expr(expr);
            }
        }
        spec.require.iter().for_each(|condition| self.requirement(condition));
        for dim in spec.inputs.values().flat_map(|input| &input.shape.dims) {
            if let ExprKind::Rest(Some(name)) = &dim.kind {
                patterns.push(name);
            }
            if let ExprKind::Name(name) = &dim.kind {
                // A name that nothing else has is a pattern variable: the input's shape gives it its value.
                self.known.entry(name.clone()).or_insert(dim.span);
            }
        }
        for name in patterns {
            self.known.entry(name.text.clone()).or_insert(name.span);
        }
        for dim in spec.inputs.values().flat_map(|input| &input.shape.dims) {
            self.expr(dim);
        }
        for part in spec.parts.values() {
            self.expr(&part.module);
            part.set.values().for_each(|value| self.expr(value));
        }
        for param in spec.params.values() {
            param.shape.dims.iter().for_each(|dim| self.expr(dim));
            self.initialiser(&param.init);
        }
        for state in spec.state.values() {
            state.shape.dims.iter().for_each(|dim| self.expr(dim));
            self.initialiser(&state.init);
        }
    }

    /// A condition on arguments, which are all that is known when it is looked at.
    fn requirement(&mut self, condition: &Expr) {
        self.expr(condition);
        each_name(condition, &mut |name, span| {
            if self.known.contains_key(name) && !self.spec.args.contains_key(name) {
                self.errors.push(
                    Diagnostic::error(format!("`{name}` is no argument"))
                        .label(span, "`require` is about arguments")
                        .context(self.known[name], "declared here"),
                );
            }
        });
    }

    fn declare(&mut self, name: &Name) {
        if let Some(first) = self.known.get(name.as_str()) {
            self.errors.push(
                Diagnostic::error(format!("`{name}` is declared twice"))
                    .label(name.span, "again here")
                    .context(*first, "first here")
                    .help("arguments, inputs, parts, parameters and states of a module share one set of names"),
            );
        }
        self.known.insert(name.text.clone(), name.span);
    }

    fn equation(&mut self, equation: &Equation) {
        self.expr(&equation.value);
        for target in &equation.targets {
            if let Some(state) = target.next_of()
                && !self.spec.state.contains_key(state)
            {
                let states: Vec<&str> = self.spec.state.keys().map(Name::as_str).collect();
                self.errors.push(
                    Diagnostic::error(format!("there is no state `{state}`"))
                        .label(target.span, format!("`{target}` is the next value of a state"))
                        .suggest(state, states.iter().copied())
                        .help("declare it under `state`, or drop the `'`"),
                );
            }
            self.declare_target(target);
        }
    }

    fn declare_target(&mut self, target: &Name) {
        let own = self.spec.args.contains_key(target.as_str()) || self.spec.inputs.contains_key(target.as_str());
        if let Some(first) = self.known.get(target.as_str()) {
            let help = if own { "give the result a name of its own" } else { "equations define each name once" };
            self.errors.push(
                Diagnostic::error(format!("`{target}` is defined twice"))
                    .label(target.span, "again here")
                    .context(*first, "first here")
                    .help(help),
            );
        }
        self.known.insert(target.text.clone(), target.span);
    }

    fn outputs(&mut self) {
        for output in &self.spec.outputs {
            if !self.known.contains_key(output.as_str()) {
                self.errors.push(
                    Diagnostic::error(format!("output `{output}` names nothing"))
                        .label(output.span, "no equation defines it")
                        .suggest(output, self.known.keys().map(String::as_str)),
                );
            }
        }
    }

    fn states(&mut self) {
        for state in self.spec.state.keys() {
            let next = format!("{state}'");
            if !self.known.contains_key(&next) {
                self.errors.push(
                    Diagnostic::error(format!("state `{state}` is never assigned"))
                        .label(state.span, format!("no equation defines `{next}`"))
                        .help(format!(
                            "add an equation such as \"{next} = {state}\", or make it a parameter or argument"
                        )),
                );
            }
        }
    }

    fn initialiser(&mut self, expr: &Expr) {
        for name in INITIALISERS.map(|(name, _)| head(name)) {
            self.known.entry(name.to_owned()).or_insert(expr.span);
        }
        self.expr(expr);
        for name in INITIALISERS.map(|(name, _)| head(name)) {
            self.known.retain(|known, span| known != name || *span != expr.span);
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Name(name) => self.name(name, expr.span),
            ExprKind::Member(inner, name) if self.is_step(inner) => {
                if !STEP_VALUES.contains(&name.as_str()) {
                    self.errors.push(no_step_value(name));
                }
            }
            ExprKind::Call(callee, args) => {
                match &callee.kind {
                    ExprKind::Name(name) => self.callee(name, callee.span),
                    _ => self.expr(callee),
                }
                args.iter().for_each(|arg| self.expr(&arg.value));
            }
            _ => expr.children().into_iter().for_each(|child| self.expr(child)),
        }
        if let ExprKind::Rest(Some(name)) = &expr.kind {
            self.name(name, name.span);
        }
    }

    /// Whether this is the `train` of `train.step`.
    fn is_step(&self, expr: &Expr) -> bool {
        matches!(&expr.kind, ExprKind::Name(name) if name == "train" && !self.known.contains_key("train"))
    }

    fn name(&mut self, name: &str, span: Span) {
        let constant = CONSTANTS.iter().any(|(constant, _)| *constant == name);
        if self.known.contains_key(name) || name == "mode" || constant || self.is_callable(name) {
            return;
        }
        if !self.told.insert(name.to_owned()) {
            return;
        }
        let error = Diagnostic::error(format!("unknown name `{name}`"));
        let later = self.spec.body.iter().flat_map(|equation| &equation.targets).find(|target| target.as_str() == name);
        self.errors.push(match later {
            Some(target) => error
                .label(span, "used before it is defined")
                .context(target.span, "defined here")
                .help("equations are read from top to bottom; move the definition up"),
            None => elsewhere(error.label(span, "nothing here has this name"), name, self.names()),
        });
    }

    fn callee(&mut self, name: &str, span: Span) {
        let part = self.spec.parts.contains_key(name) || self.spec.args.contains_key(name);
        if part || self.is_callable(name) || self.known.contains_key(name) {
            return;
        }
        if !self.told.insert(name.to_owned()) {
            return;
        }
        let callables = functions().iter().map(|function| function.name);
        let known = callables
            .chain(self.scope.keys().map(String::as_str))
            .chain(self.spec.parts.keys().map(Name::as_str))
            .chain(FORMS.map(|(form, _)| head(form)));
        let error = Diagnostic::error(format!("unknown module or function `{name}`"));
        let error = elsewhere(error.label(span, "nothing here has this name"), name, known);
        let general = "modules come from the files in `use`; `alipc ops` lists all of them and the functions";
        self.errors.push(if error.help.is_empty() { error.help(general) } else { error });
    }

    fn is_callable(&self, name: &str) -> bool {
        self.scope.contains_key(name)
            || crate::ops::functions::function(name).is_some()
            || FORMS.iter().any(|(form, _)| head(form) == name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str).chain(self.scope.keys().map(String::as_str))
    }
}

/// What others call what the language has under another name.
const OTHER_NAMES: [(&str, &str); 14] = [
    ("log", "`ln(x)`"),
    ("pow", "`x ** y`"),
    ("matmul", "`a @ b`"),
    ("mm", "`a @ b`"),
    ("where", "`select(condition, a, b)`"),
    ("cat", "`concat(a, b, axis: 0)`"),
    ("concatenate", "`concat(a, b, axis: 0)`"),
    ("permute", "`transpose(x, axes)`"),
    ("expand", "`broadcast_to(x, shape)`"),
    ("clamp", "`min(max(x, low), high)`"),
    ("rand", "`noise(shape)`"),
    ("randn", "`noise(shape, 'normal')`"),
    ("random_uniform", "`noise(shape)`, which the run's seed, the step and the place key"),
    ("detach", "`stop_gradient(x)`"),
];

/// Says where a name is that is not known here: under another name, in a file of the standard library, or near by.
fn elsewhere<'a>(error: Diagnostic, name: &str, known: impl IntoIterator<Item = &'a str>) -> Diagnostic {
    if let Some((_, here)) = OTHER_NAMES.iter().find(|(other, _)| *other == name) {
        return error.help(format!("it is written {here}"));
    }
    if let Some(file) = super::library::stdlib_modules().get(name) {
        return error.help(format!("`{name}` is in `{file}`: add it to `use`"));
    }
    let found = error.help.len();
    let error = error.suggest(name, known);
    if error.help.len() > found {
        return error;
    }
    let modules = super::library::stdlib_modules();
    match did_you_mean(name, modules.keys().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean `{near}`? it is in `{}`: add it to `use`", modules[near])),
        None => error,
    }
}

/// Calls `visit` on every name in an expression, of values and of what is called.
pub(crate) fn each_name<'e>(expr: &'e Expr, visit: &mut impl FnMut(&'e str, Span)) {
    match &expr.kind {
        ExprKind::Name(name) => visit(name, expr.span),
        ExprKind::Rest(Some(name)) => visit(name, name.span),
        _ => {}
    }
    for child in expr.children() {
        each_name(child, visit);
    }
}

/// Modules of one file that contain themselves. Files cannot use each other in a circle, so no other can.
pub(crate) fn recursion(modules: &[Module], first: usize) -> Vec<Diagnostic> {
    let mut graph: DiGraphMap<usize, Span> = DiGraphMap::new();
    for (index, module) in modules.iter().enumerate() {
        let spec = &module.spec;
        let mut visit = |name: &str, span: Span, hidden: bool| {
            if let Some(ModuleId(id)) = module.scope.get(name)
                && *id >= first
                && !hidden
            {
                graph.add_edge(index, id - first, span);
            }
        };
        for part in spec.parts.values() {
            for expr in part.set.values().chain([&part.module]) {
                each_name(expr, &mut |name, span| visit(name, span, spec.args.contains_key(name)));
            }
        }
        for equation in &spec.body {
            // In a body a part hides the module of the same name.
            let hidden = |name: &str| spec.args.contains_key(name) || spec.parts.contains_key(name);
            each_name(&equation.value, &mut |name, span| visit(name, span, hidden(name)));
        }
    }
    let mut errors = Vec::new();
    for cycle in tarjan_scc(&graph) {
        let is_cycle = cycle.len() > 1 || graph.contains_edge(cycle[0], cycle[0]);
        let Some(start) = cycle.iter().copied().min().filter(|_| is_cycle) else { continue };
        let spec = &modules[start].spec;
        let mut error = Diagnostic::error(format!("module `{}` contains itself", spec.name))
            .label(spec.name.span, "a module cannot be part of itself")
            .help("repetition is written `[part; n]` and applied with `chain`");
        for (from, to, span) in graph.all_edges() {
            if cycle.contains(&from) && cycle.contains(&to) {
                error = error.context(*span, format!("`{}` is used here", modules[to].spec.name));
            }
        }
        errors.push(error);
    }
    errors
}

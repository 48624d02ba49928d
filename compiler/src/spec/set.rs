//! `--set KEY=VALUE`: changes one thing of a graph from the command line.
//!
//! Keys follow the spec: `dims.B`, `train.epochs`, `train.ema.decay`, `parts.lcg` (the whole module expression),
//! `params.logit_scale.init`, `metrics.loss`, `data`. One step further names an argument: of a part, however it was
//! given, or of every part of a list, `parts.lcg.gamma`; or of a module of `train`, `train.optimizer.beta2`. Values are expressions, so strings have single quotes (but for `data`);
//! `none` takes an option of `train` away.

use super::ast::{Dim, EmaSpec, GraphSpec, Map, Precision, TrainSpec};
use super::expr::{Arg, Expr, ExprKind, Name, Spanned, UnaryOp};
use super::graph::PRECISIONS;
use super::parser;
use super::text::Text;
use crate::diag::{Diagnostic, Diagnostics, SourceId, SourceMap, Span};

const KEYS: [&str; 6] = ["dims", "parts", "params", "metrics", "train", "data"];
const OPTIONS: [&str; 9] =
    ["loss", "optimizer", "schedule", "clip_grad_norm", "epochs", "precision", "loss_scale", "seed", "ema"];

/// Applies `KEY=VALUE` to a complete graph. The text becomes a source named `--set`, so that later errors about the
/// value point at it.
///
/// # Errors
/// No `=`, a key the graph does not have, or a value of the wrong type.
pub fn set(sources: &mut SourceMap, graph: &mut GraphSpec, assignment: &str) -> Result<(), Diagnostics> {
    let source = sources.add("--set", assignment);
    Ok(apply(source, graph, assignment)?)
}

type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// The value of an assignment.
struct Value<'a> {
    text: &'a str,
    span: Span,
}

fn apply(source: SourceId, graph: &mut GraphSpec, assignment: &str) -> Result<()> {
    let Some((path, value)) = assignment.split_once('=') else {
        return Err(Diagnostic::error("`--set` without a value")
            .label(at(source, assignment, assignment), "has no `=`")
            .help("write `--set train.epochs=3`"));
    };
    let value = Value { text: value, span: at(source, assignment, value) };
    let names: Vec<Name> = path
        .split(['.', '['])
        .map(|name| name.trim().trim_end_matches(']'))
        .map(|name| Name::new(name, at(source, assignment, name)))
        .collect();
    let whole = at(source, assignment, path);
    match names.as_slice() {
        [key] if **key == *"data" => {
            graph.data = Some(Name::new(value.text.trim(), value.span));
            Ok(())
        }
        [key, name] if **key == *"dims" => {
            let dim = entry(&mut graph.dims, name, "dims")?;
            let size = value.whole(1)?;
            *dim = Spanned::new(
                if matches!(dim.node, Dim::Batch(_)) { Dim::Batch(size) } else { Dim::Fixed(size) },
                value.span,
            );
            Ok(())
        }
        [key, name, rest @ ..] if **key == *"parts" => {
            let part = entry(&mut graph.parts, name, "parts")?;
            match rest {
                [argument] => {
                    part.set.insert(argument.clone(), value.expr()?);
                    Ok(())
                }
                _ => {
                    part.set.clear();
                    set_module(&mut part.module, rest, &value)
                }
            }
        }
        [key, name, field] if **key == *"params" && **field == *"init" => {
            entry(&mut graph.params, name, "params")?.init = value.expr()?;
            Ok(())
        }
        [key, name] if **key == *"metrics" => {
            graph.metrics.insert(name.clone(), value.expr()?);
            Ok(())
        }
        [key, option, rest @ ..] if **key == *"train" => match &mut graph.train {
            Some(train) => set_train(train, option, rest, &value, whole),
            None => Err(Diagnostic::error("this graph has no `train`")
                .label(whole, "nothing to set")
                .help("add `train: (...)` to the spec")),
        },
        _ => Err(unknown(&names, whole)),
    }
}

fn unknown(names: &[Name], whole: Span) -> Diagnostic {
    let first = names.first().map_or("", Name::as_str);
    let error = Diagnostic::error("`--set` cannot change this").label(whole, "unknown key");
    let error = if KEYS.contains(&first) { error } else { error.suggest(first, KEYS) };
    error.help(
        "keys are `dims.NAME`, `parts.NAME[.ARGUMENT]`, `params.NAME.init`, `metrics.NAME`, `train.OPTION[.ARGUMENT]` \
         and `data`",
    )
}

/// The place of a piece of the assignment, which must be a slice of it.
fn at(source: SourceId, assignment: &str, piece: &str) -> Span {
    let start = (piece.as_ptr() as usize).saturating_sub(assignment.as_ptr() as usize);
    let place = |index| u32::try_from(index).unwrap_or(u32::MAX);
    Span::new(source, place(start), place(start + piece.len()))
}

fn entry<'a, V>(map: &'a mut Map<V>, name: &Name, field: &str) -> Result<&'a mut V> {
    let known: Vec<String> = map.keys().map(|name| name.text.clone()).collect();
    map.get_mut(name.as_str()).ok_or_else(|| {
        Diagnostic::error(format!("the graph has no `{name}` in `{field}`"))
            .label(name.span, "unknown name")
            .suggest(name, known.iter().map(String::as_str))
            .note(format!("it has `{}`", known.join("`, `")))
    })
}

/// Replaces a module expression, or one named argument of it.
fn set_module(module: &mut Expr, rest: &[Name], value: &Value<'_>) -> Result<()> {
    let [argument] = rest else {
        return match rest.get(1) {
            None => value.expr().map(|expr| *module = expr),
            Some(further) => Err(Diagnostic::error("`--set` reaches one argument deep")
                .label(further.span, "one name too many")
                .help("set the whole expression instead: `--set parts.NAME='module(...)'`")),
        };
    };
    let expr = value.expr()?;
    if let ExprKind::Name(_) = &module.kind {
        let callee = Box::new(module.clone());
        module.kind = ExprKind::Call(callee, Vec::new());
    }
    let ExprKind::Call(_, args) = &mut module.kind else {
        return Err(Diagnostic::error(format!("`{argument}` cannot be set: this is not one module with arguments"))
            .label(argument.span, "")
            .context(module.span, "the expression it would go into")
            .help("set the whole expression instead"));
    };
    match args.iter_mut().find(|arg| arg.name.as_ref() == Some(argument)) {
        Some(arg) => *arg = Arg { name: Some(argument.clone()), value: expr },
        None => args.push(Arg { name: Some(argument.clone()), value: expr }),
    }
    Ok(())
}

fn set_train(train: &mut TrainSpec, option: &Name, rest: &[Name], value: &Value<'_>, whole: Span) -> Result<()> {
    match (option.as_str(), rest) {
        ("loss", []) => train.loss = value.option()?,
        ("optimizer", []) => train.optimizer = value.option()?,
        ("schedule", []) => train.schedule = value.option()?,
        ("loss_scale", []) => train.loss_scale = value.option()?,
        ("optimizer" | "schedule" | "loss_scale", _) => {
            let slot = match option.as_str() {
                "optimizer" => &mut train.optimizer,
                "schedule" => &mut train.schedule,
                _ => &mut train.loss_scale,
            };
            let Some(module) = slot else {
                return Err(Diagnostic::error(format!("`train` has no `{option}`"))
                    .label(option.span, "has no arguments to set")
                    .help(format!("set it first: `--set train.{option}='...'`")));
            };
            set_module(module, rest, value)?;
        }
        ("clip_grad_norm", []) => train.clip_grad_norm = value.unless_none(Value::positive)?,
        ("epochs", []) => train.epochs = Some(Spanned::new(value.whole(1)?, value.span)),
        ("seed", []) => train.seed = Some(Spanned::new(value.whole(0)?, value.span)),
        ("precision", []) => train.precision = Some(Spanned::new(value.precision()?, value.span)),
        ("ema", [decay]) if **decay == *"decay" => {
            train.ema = Some(EmaSpec { span: value.span, decay: value.expr()? });
        }
        ("ema", []) if value.text.trim() == "none" => train.ema = None,
        _ => {
            let known = OPTIONS.join("`, `");
            let error = Diagnostic::error(format!("`train` has no `{option}` that can be set"))
                .label(whole, "unknown key")
                .suggest(option, OPTIONS);
            return Err(error.note(format!("options are `{known}`; the average of weights is `train.ema.decay`")));
        }
    }
    Ok(())
}

impl Value<'_> {
    fn expr(&self) -> Result<Expr> {
        let mut text = Text::new(self.span);
        text.push(self.text, self.span.start as usize);
        text.finish(self.span.end as usize);
        parser::expression(&text)
    }

    fn option(&self) -> Result<Option<Expr>> {
        self.unless_none(|value| value.expr())
    }

    fn unless_none<T>(&self, read: impl Fn(&Self) -> Result<T>) -> Result<Option<T>> {
        if self.text.trim() == "none" { Ok(None) } else { read(self).map(Some) }
    }

    fn wrong<T>(&self, expected: &str) -> Result<T> {
        Err(Diagnostic::error(format!("expected {expected}, found `{}`", self.text))
            .label(self.span, format!("expected {expected}"))
            .help(format!("write {expected} after the `=`, without quotes")))
    }

    fn whole(&self, least: u64) -> Result<u64> {
        match self.expr()?.kind {
            ExprKind::Int(n) if u64::try_from(n).is_ok_and(|n| n >= least) => Ok(n.unsigned_abs()),
            _ => self.wrong(&format!("a whole number of at least {least}")),
        }
    }

    fn positive(&self) -> Result<Spanned<f64>> {
        let number = match self.expr()?.kind {
            ExprKind::Int(n) => n as f64,
            ExprKind::Float(x) => x,
            ExprKind::Unary(UnaryOp::Neg, _) => -1.0,
            _ => f64::NAN,
        };
        if number > 0.0 { Ok(Spanned::new(number, self.span)) } else { self.wrong("a number above 0") }
    }

    fn precision(&self) -> Result<Precision> {
        let found = PRECISIONS.iter().find(|(name, _)| *name == self.text.trim());
        found.map_or_else(|| self.wrong("`F32`, `Bf16` or `F16`"), |(_, precision)| Ok(*precision))
    }
}

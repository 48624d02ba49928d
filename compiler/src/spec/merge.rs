//! Variants: a graph with `base: "other"` is the other graph with what it says itself laid over it.
//!
//! - `name` and `span` are the variant's; `doc` and `data` too where it has them; `use` is the union.
//! - `dims`, `inputs`, `parts`, `params`, `state`, `programs`, `metrics`: an entry of the same key is replaced where it
//!   stands, a new one comes after the others. `"key": None` takes an entry away; `field: None` takes all of them away
//!   before the variant's own are added.
//! - A part that is replaced by another module keeps its `path`, so that parameters keep their names; to change the path,
//!   write one. `"visual": (set: { "layers": 3 })` keeps the module and changes arguments of it.
//! - `train` merges field by field; `groups` is one field, so that a variant's groups replace those of its base. `schedule: None` takes a field away.
//! - `body`: an equation replaces all that define one of its names, at the place of the first. A new one is put before
//!   the first equation that reads one of its names, or at the end. Equations are not taken away: what nobody reads is
//!   not computed.

use super::ast::{GraphSpec, Map, PartSpec, Removed, TrainSpec};
use super::expr::{Equation, Name};
use crate::diag::{Diagnostic, Diagnostics};

/// Lays a variant over its base. The base must be complete: merge it with its own base first.
///
/// # Errors
/// The variant takes something away that the base does not have.
pub fn merge(mut base: GraphSpec, variant: GraphSpec) -> Result<GraphSpec, Diagnostics> {
    let mut errors = Vec::new();
    for removed in &variant.removed {
        errors.extend(remove(&mut base, removed).err());
    }
    let GraphSpec { span, name, doc, uses, dims, inputs, parts, params, state, body, .. } = variant;
    base.span = span;
    base.name = name;
    base.base = None;
    base.doc = doc.or(base.doc);
    base.data = variant.data.or(base.data);
    for file in uses {
        if !base.uses.contains(&file) {
            base.uses.push(file);
        }
    }
    overlay(&mut base.dims, dims);
    overlay(&mut base.inputs, inputs);
    overlay_parts(&mut base.parts, parts);
    for (name, args) in variant.set {
        let known: Vec<String> = base.parts.keys().map(|name| name.text.clone()).collect();
        match base.parts.get_mut(&name) {
            Some(part) => overlay(&mut part.set, args),
            None => errors.push(
                Diagnostic::error(format!("the base has no part `{name}` to change arguments of"))
                    .label(name.span, "not in the base's `parts`")
                    .suggest(&name, known.iter().map(String::as_str))
                    .note(format!("it has {}", list(&known))),
            ),
        }
    }
    overlay(&mut base.params, params);
    overlay(&mut base.state, state);
    overlay(&mut base.programs, variant.programs);
    overlay(&mut base.metrics, variant.metrics);
    merge_body(&mut base.body, body);
    base.train = match (base.train, variant.train) {
        (Some(base), Some(variant)) => Some(merge_train(base, variant)),
        (base, variant) => variant.or(base),
    };
    Diagnostics::check(base, errors)
}

fn overlay<V>(base: &mut Map<V>, variant: Map<V>) {
    for (name, value) in variant {
        let (index, _) = base.insert_full(name.clone(), value);
        // The key of the base stays in the map, but the place to show is where the entry is written now.
        // `replace_index` refuses only keys that stand elsewhere, which this one does not.
        let _ = base.replace_index(index, name);
    }
}

fn overlay_parts(base: &mut Map<PartSpec>, mut variant: Map<PartSpec>) {
    for (name, part) in &mut variant {
        if part.path.is_none() {
            part.path = base.get(name).and_then(|old| old.path.clone());
        }
    }
    overlay(base, variant);
}

fn remove(base: &mut GraphSpec, removed: &Removed) -> Result<(), Diagnostic> {
    let key = removed.key.as_ref();
    match removed.field {
        "dims" => remove_entry(&mut base.dims, key, removed),
        "inputs" => remove_entry(&mut base.inputs, key, removed),
        "parts" => remove_entry(&mut base.parts, key, removed),
        "params" => remove_entry(&mut base.params, key, removed),
        "state" => remove_entry(&mut base.state, key, removed),
        "programs" => remove_entry(&mut base.programs, key, removed),
        "metrics" => remove_entry(&mut base.metrics, key, removed),
        "data" => base.data.take().map(drop).ok_or_else(|| absent(removed, "data")),
        "train" => base.train.take().map(drop).ok_or_else(|| absent(removed, "train")),
        field => {
            let taken = base.train.as_mut().is_some_and(|train| remove_option(train, field));
            if taken { Ok(()) } else { Err(absent(removed, field)) }
        }
    }
}

fn remove_entry<V>(map: &mut Map<V>, key: Option<&Name>, removed: &Removed) -> Result<(), Diagnostic> {
    let Some(key) = key else {
        map.clear();
        return Ok(());
    };
    match map.shift_remove(key.as_str()) {
        Some(_) => Ok(()),
        None => Err(absent(removed, key).suggest(key, map.keys().map(Name::as_str))),
    }
}

/// Takes an option of `train` away; says whether it was there.
fn remove_option(train: &mut TrainSpec, field: &str) -> bool {
    match field {
        "train.loss" => train.loss.take().is_some(),
        "train.optimizer" => train.optimizer.take().is_some(),
        "train.schedule" => train.schedule.take().is_some(),
        "train.clip_grad_norm" => train.clip_grad_norm.take().is_some(),
        "train.epochs" => train.epochs.take().is_some(),
        "train.precision" => train.precision.take().is_some(),
        "train.loss_scale" => train.loss_scale.take().is_some(),
        "train.seed" => train.seed.take().is_some(),
        "train.groups" => train.groups.take().is_some(),
        "train.evaluate" => train.evaluate.take().is_some(),
        "train.start" => train.start.take().is_some(),
        _ => train.ema.take().is_some(),
    }
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn absent(removed: &Removed, name: &str) -> Diagnostic {
    let span = removed.key.as_ref().map_or(removed.span, |key| key.span);
    Diagnostic::error(format!("the base has no `{name}` to take away"))
        .label(span, format!("not in the base's `{}`", removed.field))
        .help("leave it out")
}

fn merge_train(base: TrainSpec, variant: TrainSpec) -> TrainSpec {
    TrainSpec {
        span: variant.span,
        loss: variant.loss.or(base.loss),
        optimizer: variant.optimizer.or(base.optimizer),
        schedule: variant.schedule.or(base.schedule),
        clip_grad_norm: variant.clip_grad_norm.or(base.clip_grad_norm),
        epochs: variant.epochs.or(base.epochs),
        precision: variant.precision.or(base.precision),
        loss_scale: variant.loss_scale.or(base.loss_scale),
        seed: variant.seed.or(base.seed),
        groups: variant.groups.or(base.groups),
        ema: variant.ema.or(base.ema),
        evaluate: variant.evaluate.or(base.evaluate),
        start: variant.start.or(base.start),
    }
}

fn merge_body(body: &mut Vec<Equation>, variant: Vec<Equation>) {
    let (mut new, mut written) = (Vec::new(), Vec::new());
    for equation in variant {
        let shares = |old: &Equation| old.targets.iter().any(|target| defines(&equation, target));
        // Two equations of one variant that define the same name are for the resolver to refuse, not to merge.
        match body.iter().position(|old| shares(old) && !written.contains(old)) {
            Some(place) => {
                let replaced: Vec<_> = body.iter().map(|old| shares(old) && !written.contains(old)).collect();
                let mut replaced = replaced.into_iter();
                body.retain(|_| !replaced.next().unwrap_or(false));
                body.insert(place, equation.clone());
            }
            None => new.push(equation.clone()),
        }
        written.push(equation);
    }
    // Backwards, so that a new equation which another new one reads finds it already in its place.
    let mut end = body.len();
    for equation in new.into_iter().rev() {
        let reads = |user: &Equation| equation.targets.iter().any(|target| user.value.reads(target));
        match body.iter().position(reads) {
            Some(place) => {
                body.insert(place, equation);
                end += usize::from(place < end);
            }
            None => body.insert(end, equation),
        }
    }
}

/// Is the name among those on the left side? `_` names nothing.
fn defines(equation: &Equation, name: &Name) -> bool {
    name.as_str() != "_" && equation.targets.contains(name)
}

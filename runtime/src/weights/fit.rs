//! What of some weights goes where in a graph.

use std::collections::BTreeSet;

use alip_plan::{DType, Plan, StateKind};
use safetensors::tensor::Dtype as FileType;

use super::container::Weights;
use super::error::WeightsError;
use super::names::{Pattern, nearest};
use super::positions::Resampling;
use super::raw::RawTensor;
use crate::exec::Session;
use crate::run::checkpoint::AVERAGE;

/// Most lines of one kind in a message.
const SHOWN: usize = 8;

/// A tensor that survives a step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: StateKind,
    /// Type of its elements.
    pub dtype: DType,
    /// Sizes of its dimensions.
    pub shape: Vec<u64>,
}

impl Wanted {
    /// Those of a plan.
    pub fn of(plan: &Plan) -> Vec<Wanted> {
        let of = |state: &alip_plan::StateTensor| {
            let (dtype, shape) = (state.buffer.dtype, state.buffer.shape.clone());
            Wanted { path: state.path.clone(), kind: state.kind, dtype, shape }
        };
        plan.state.iter().map(of).collect()
    }

    fn is_weight(&self) -> bool {
        matches!(self.kind, StateKind::Param | StateKind::Buffer)
    }
}

/// How weights are fitted to a graph.
#[derive(Clone, Debug, Default)]
pub struct FitOptions<'a> {
    /// Only tensors of these names of ours, `visual.*`, and of those every one.
    pub select: Option<&'a str>,
    /// Positional embeddings of other sizes are resampled.
    pub resize_positions: bool,
}

/// What of some weights goes where in a graph.
#[derive(Clone, Debug, Default)]
pub struct Fit {
    taken: Vec<Taken>,
    kept: Vec<String>,
    gates: Vec<String>,
    others: Vec<String>,
}

#[derive(Clone, Debug)]
struct Taken {
    path: String,
    shape: Vec<u64>,
    resampling: Option<Resampling>,
}

impl Fit {
    /// Fits weights with our names to the tensors of a graph. Every parameter must come, and every state but those that no source of
    /// weights has: counters, and what belongs to modules of which the weights know nothing, such as gates.
    ///
    /// # Errors
    /// Something is missing, left over or of another shape; all of it is said.
    pub fn new(
        weights: &Weights,
        graph: &str,
        wanted: &[Wanted],
        options: &FitOptions<'_>,
    ) -> Result<Fit, WeightsError> {
        let fail = |what: String| WeightsError::Unfit { path: weights.path().to_path_buf(), graph: graph.into(), what };
        let selected = match options.select.map(Pattern::new).transpose() {
            Ok(pattern) => move |name: &str| pattern.as_ref().is_none_or(|pattern| pattern.matches(name)),
            Err(why) => return Err(fail(format!("  the selection is no pattern: {why}"))),
        };
        let mut fit = Fit::default();
        let mut wrong = Wrong::default();
        let modules: BTreeSet<&str> = weights.names().filter_map(module).collect();
        for wanted in wanted.iter().filter(|wanted| wanted.is_weight() && selected(&wanted.path)) {
            match weights.info(&wanted.path) {
                Some((_, shape)) => fit.take(wanted, shape, options, &mut wrong),
                None if can_be_missing(wanted, &modules) => fit.kept.push(wanted.path.clone()),
                None => wrong.missing.push(missing(wanted, weights)),
            }
        }
        for name in weights.names() {
            match wanted.iter().find(|wanted| wanted.path == name) {
                _ if !selected(name) => fit.others.push(name.to_string()),
                // Moments and averages of a checkpoint of our own.
                Some(wanted) if !wanted.is_weight() => fit.others.push(name.to_string()),
                Some(_) => {}
                None if weights.is_checkpoint() && is_of_training(name) => fit.others.push(name.to_string()),
                None if weights.is_checkpoint() && is_gate(name, weights) => fit.gates.push(name.to_string()),
                None => wrong.left_over.push(left_over(name, weights, wanted_names(wanted))),
            }
        }
        if fit.taken.is_empty() && wrong.is_empty() {
            let select = options.select.unwrap_or("*");
            let known = wanted.iter().filter(|wanted| wanted.is_weight()).map(|wanted| wanted.path.as_str());
            let near = nearest(select, known).map_or(String::new(), |near| format!("; nearest is `{near}`"));
            return Err(fail(format!("  `{select}` selects no tensor of the graph{near}")));
        }
        if wrong.is_empty() { Ok(fit) } else { Err(fail(wrong.told(options))) }
    }

    /// All tensors of some weights, or those of these names, whatever they are for.
    ///
    /// # Errors
    /// A name that the map does not know, so that nobody knows what it is, unless names were to stay as they are; or none is selected.
    pub fn all(weights: &Weights, select: Option<&str>) -> Result<Fit, WeightsError> {
        let fail = |why: String| WeightsError::Refused { path: weights.path().to_path_buf(), why };
        let pattern = select.map(Pattern::new).transpose().map_err(fail)?;
        let mut fit = Fit::default();
        for name in weights.names() {
            if pattern.as_ref().is_some_and(|pattern| !pattern.matches(name)) {
                fit.others.push(name.to_string());
                continue;
            }
            let shape = weights.info(name).map_or_else(Vec::new, |(_, shape)| shape.to_vec());
            fit.taken.push(Taken { path: name.into(), shape, resampling: None });
        }
        let unknown: Vec<&str> = weights.unknown().filter(|name| fit.taken().any(|taken| taken == *name)).collect();
        if !unknown.is_empty() {
            let more = unknown.len().saturating_sub(SHOWN);
            let shown = unknown.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let shown = if more > 0 { format!("{shown} and {more} more") } else { shown };
            return Err(fail(format!(
                "map `{}` does not know {shown}; --map same keeps all names as they are, --select takes a part of the weights",
                weights.map()
            )));
        }
        if fit.taken.is_empty() {
            return Err(fail(format!("`{}` selects none of its tensors", select.unwrap_or("*"))));
        }
        Ok(fit)
    }

    fn take(&mut self, wanted: &Wanted, shape: &[u64], options: &FitOptions<'_>, wrong: &mut Wrong) {
        let is_one = |shape: &[u64]| shape.iter().all(|&size| size == 1);
        let same = shape == wanted.shape || is_one(shape) && is_one(&wanted.shape);
        let resampling = Resampling::between(&wanted.path, shape, &wanted.shape).filter(|_| !same);
        if !same && (resampling.is_none() || !options.resize_positions) {
            wrong.positions |= resampling.is_some();
            wrong.shapes.push(format!("`{}` is {shape:?}, and {:?} in the graph", wanted.path, wanted.shape));
            return;
        }
        self.taken.push(Taken { path: wanted.path.clone(), shape: wanted.shape.clone(), resampling });
    }

    /// Paths of what is taken.
    pub fn taken(&self) -> impl Iterator<Item = &str> {
        self.taken.iter().map(|taken| taken.path.as_str())
    }

    /// Paths of states that no source of weights has; they keep their first values.
    pub fn kept(&self) -> &[String] {
        &self.kept
    }

    /// States of a checkpoint's gates, for which the graph has no place.
    pub fn gates(&self) -> &[String] {
        &self.gates
    }

    /// Names of the weights that were not selected, or are no weights: moments, averages.
    pub fn others(&self) -> &[String] {
        &self.others
    }

    /// What was resampled, and how.
    pub fn resampled(&self) -> impl Iterator<Item = String> {
        self.taken.iter().filter_map(|taken| Some(format!("`{}`: {}", taken.path, taken.resampling?)))
    }

    /// Type and shape of a tensor as [`Fit::read`] gives it.
    pub(super) fn info(&self, weights: &Weights, path: &str) -> Option<(FileType, Vec<u64>)> {
        let taken = self.taken.iter().find(|taken| taken.path == path)?;
        let (dtype, _) = weights.info(path)?;
        Some((if taken.resampling.is_some() { FileType::F32 } else { dtype }, taken.shape.clone()))
    }

    /// A tensor that is taken, with the type of the file, or f32 where it was resampled.
    ///
    /// # Errors
    /// It is none of those taken, or the file cannot be read or is damaged.
    pub fn read(&self, weights: &mut Weights, path: &str) -> Result<RawTensor, WeightsError> {
        let raw = weights.read(path)?;
        let Some(taken) = self.taken.iter().find(|taken| taken.path == path) else { return Ok(raw) };
        let Some(resampling) = taken.resampling else { return Ok(RawTensor { shape: taken.shape.clone(), ..raw }) };
        let fail = |source| WeightsError::Tensor { path: weights.path().to_path_buf(), name: path.into(), source };
        let values = raw.to_host(DType::F32).map_err(fail)?;
        let width = taken.shape.last().copied().unwrap_or(1) as usize;
        let values = resampling.apply(&values.to_f32(), width);
        let tensor = crate::tensor::HostTensor::f32(&taken.shape, values).map_err(fail)?;
        Ok(RawTensor::from_host(&tensor))
    }
}

/// The module that a tensor belongs to.
fn module(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(module, _)| module)
}

/// Whether a name in a checkpoint of ours is the optimiser's, the step's or an average, as the compiler names them.
fn is_of_training(name: &str) -> bool {
    ["optimizer.", AVERAGE, "train.", "loss_scale."].iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a name in a checkpoint of ours is a gate's state: of a module that has numbers alone, none of which was trained.
fn is_gate(name: &str, weights: &Weights) -> bool {
    let is_number = |name: &str| weights.info(name).is_some_and(|(_, shape)| shape.is_empty());
    let of_gate = |other: &str| module(other) != module(name) || is_number(other);
    let is_trained = |other: &str| other.starts_with("optimizer.") && other.contains(name);
    module(name).is_some() && weights.names().all(of_gate) && !weights.names().any(is_trained)
}

/// Counters, and states of modules that are not in the weights at all.
fn can_be_missing(wanted: &Wanted, modules: &BTreeSet<&str>) -> bool {
    let is_known = module(&wanted.path).is_some_and(|module| modules.contains(module));
    wanted.kind == StateKind::Buffer && (!is_known || wanted.dtype == DType::I32)
}

fn wanted_names(wanted: &[Wanted]) -> impl Iterator<Item = &str> {
    wanted.iter().filter(|wanted| wanted.is_weight()).map(|wanted| wanted.path.as_str())
}

fn missing(wanted: &Wanted, weights: &Weights) -> String {
    let near = nearest(&wanted.path, weights.names())
        .map_or(String::new(), |near| format!("; nearest in the file is `{near}`"));
    format!("`{}` {:?}{near}", wanted.path, wanted.shape)
}

fn left_over<'a>(name: &str, weights: &Weights, wanted: impl Iterator<Item = &'a str>) -> String {
    let shape = weights.info(name).map_or_else(Vec::new, |(_, shape)| shape.to_vec());
    let near = nearest(name, wanted).map_or(String::new(), |near| format!("; nearest in the graph is `{near}`"));
    format!("`{name}` {shape:?}{near}")
}

/// What does not fit.
#[derive(Default)]
struct Wrong {
    missing: Vec<String>,
    left_over: Vec<String>,
    shapes: Vec<String>,
    /// Whether some of the shapes are of positional embeddings that can be resampled.
    positions: bool,
}

impl Wrong {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.left_over.is_empty() && self.shapes.is_empty()
    }

    fn told(&self, options: &FitOptions<'_>) -> String {
        let kinds = [
            ("missing in the file", &self.missing),
            ("left over, for which the graph has no place", &self.left_over),
            ("of another shape", &self.shapes),
        ];
        let mut text = String::new();
        for (kind, lines) in kinds.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            text += &format!("  {kind}:\n");
            lines.iter().take(SHOWN).for_each(|line| text += &format!("    {line}\n"));
            if lines.len() > SHOWN {
                text += &format!("    and {} more\n", lines.len() - SHOWN);
            }
        }
        let select = "to take a part of the weights alone, select it, as in `visual.*`";
        let positions = "import with --resize-positions resamples the embeddings of positions";
        let advice = match (self.positions && !options.resize_positions, options.select) {
            (true, _) => positions,
            (false, None) => select,
            (false, Some(_)) => "what is selected must be whole",
        };
        text + "  " + advice
    }
}

/// What [`assign`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assigned {
    /// Paths that have values of the file now.
    pub assigned: Vec<String>,
    /// Paths of states that no source of weights has, such as gates'; they are as they were.
    pub kept: Vec<String>,
    /// States of a checkpoint's gates, for which the graph has no place.
    pub gates: Vec<String>,
    /// Names in the file that were not asked for.
    pub others: Vec<String>,
}

/// Puts weights with our names ([`Weights::open_as_ours`]) into the state of a session, all of it or what `select` names
/// (`visual.*`), converted to the types of the plan. An average of a weight starts from the same values. What was there before
/// stays where nothing is assigned, so the session is initialised first.
///
/// # Errors
/// A parameter is missing in the file, something of the file has no place in the graph, or shapes differ: nothing is assigned then.
/// The file is damaged or cannot be read, or the device fails: of the session nothing can be said then.
pub fn assign(session: &mut Session, weights: &mut Weights, select: Option<&str>) -> Result<Assigned, WeightsError> {
    let plan = session.plan().clone();
    let fit = Fit::new(weights, &plan.name, &Wanted::of(&plan), &FitOptions { select, resize_positions: false })?;
    for taken in &fit.taken {
        let Some(state) = plan.state(&taken.path) else { continue };
        let raw = fit.read(weights, &taken.path)?;
        let fail =
            |source| WeightsError::Tensor { path: weights.path().to_path_buf(), name: taken.path.clone(), source };
        let tensor = raw.to_host(state.buffer.dtype).map_err(fail)?;
        session.write_state(&taken.path, &tensor)?;
        let average = format!("{AVERAGE}{}", taken.path);
        if plan.state(&average).is_some_and(|state| state.kind == StateKind::Average) {
            session.write_state(&average, &tensor)?;
        }
    }
    Ok(Assigned {
        assigned: fit.taken().map(str::to_string).collect(),
        kept: fit.kept,
        gates: fit.gates,
        others: fit.others,
    })
}

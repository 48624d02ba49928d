//! Launches that do the same to different tensors become one, where these tensors lie one after another in memory.
//!
//! An optimiser's update is one pointwise kernel per parameter, over the parameter, its moments and its gradient. [`order`]
//! lays state out so that the tensors which such launches go over lie in one order for every role; [`join`] then makes one
//! launch of those that are neighbours in every role. Gradients are neighbours already when they are parts of one value
//! (`schedule::join_sums`).
//!
//! Invariants: a tensor keeps its name and its buffer; every element is computed by the same code as before, so that results
//! are the same bits; a launch moves only to a later place, and only past launches that do not read what it writes.

use alip_plan::kernel::{Code, Loop, Map, ScalarOp};
use alip_plan::{DType, StateTensor, Target};
use indexmap::{IndexMap, IndexSet};

use crate::hash::{HashMap, HashSet};
use crate::ir::{Graph, Model, NodeId};
use crate::launch::{Launch, Neighbours};
use crate::ops::Op;
use crate::schedule::memory::Accesses;

/// What a view of a kernel goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// One element for all points.
    Fixed(NodeId, i64),
    /// A tensor of the state; whether as it was at the start of the step.
    State { old: bool },
    /// Part of a value.
    Part(NodeId),
}

/// What launches have in common that can be one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Form {
    code: Code,
    views: Vec<(u16, DType, Role)>,
}

/// A launch over whole tensors or parts.
struct Part {
    launch: usize,
    elements: u64,
    /// Per view: the state tensor, or the offset in elements of a part.
    at: Vec<u64>,
}

type Forms = IndexMap<Form, Vec<Part>>;

/// The order in which state lies in memory, as indices into [`Model::state`]: neighbours stay together, whatever it costs
/// elsewhere.
pub(crate) fn order(model: &Model, neighbours: &Neighbours, programs: &[(&Graph, &[Launch])]) -> Vec<usize> {
    let mut forms: Vec<(Form, Vec<Part>)> = Vec::new();
    for (graph, launches) in programs {
        let found = Forms::from_iter(self::forms(model, graph, launches));
        forms.extend(found.into_iter().filter(|(_, parts)| parts.len() > 1));
    }
    // What is read and written every step matters more than what is only set.
    let reads = |form: &Form| form.views.iter().any(|(_, _, role)| *role == Role::State { old: true });
    forms.sort_by_key(|(form, _)| !reads(form));
    let mut order: IndexSet<usize> = IndexSet::new();
    for (form, parts) in &forms {
        let roles = form.views.iter().enumerate().filter(|(_, (_, _, role))| matches!(role, Role::State { .. }));
        for (view, _) in roles {
            order.extend(parts.iter().map(|part| part.at[view] as usize));
        }
    }
    order.extend(0..model.state.len());
    together(model, neighbours, order.into_iter())
}

/// The same order with all neighbours at the place of the first.
fn together(model: &Model, neighbours: &Neighbours, order: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut all: IndexSet<usize> = IndexSet::new();
    for index in order {
        let Some((path, _)) = model.state.get_index(index) else { continue };
        all.extend(neighbours.around(path).iter().filter_map(|path| model.state.get_index_of(&**path)));
        all.insert(index);
    }
    all.into_iter().collect()
}

/// Makes one launch of those that do the same to neighbours in memory.
pub(crate) fn join(
    model: &Model,
    graph: &Graph,
    launches: Vec<Launch>,
    state: &[StateTensor],
    target: &Target,
) -> Vec<Launch> {
    let mut runs = Vec::new();
    for (form, parts) in forms(model, graph, &launches) {
        runs.extend(self::runs(&form, parts, state, target));
    }
    let accesses = Accesses::new(graph, &launches);
    runs.retain(|run| run.len() > 1 && independent(&launches, &accesses, run));
    loop {
        let joined = apply(&launches, &runs);
        // The order has changed: do new values still take the place of old ones?
        let accesses = Accesses::new(graph, &joined);
        let stays = |run: &Vec<Part>| {
            let writes: HashSet<NodeId> = run.iter().flat_map(|part| &launches[part.launch].writes).copied().collect();
            let mut updates = graph.updates.iter().filter(|(_, id)| writes.contains(id));
            updates.all(|(path, id)| accesses.in_place(path, *id))
        };
        let count = runs.len();
        runs.retain(stays);
        if runs.len() == count {
            return joined;
        }
    }
}

/// Launches by form, each form's in the order in which their parts of values lie.
fn forms(model: &Model, graph: &Graph, launches: &[Launch]) -> Forms {
    let mut updates: HashMap<NodeId, Option<usize>> = HashMap::default();
    for (path, id) in &graph.updates {
        // The new value of two tensors lies in at most one of them.
        updates.entry(*id).and_modify(|state| *state = None).or_insert(model.state.get_index_of(path));
    }
    let mut forms = Forms::new();
    for (index, launch) in launches.iter().enumerate() {
        if let Loop::Map(map) = &launch.kernel
            && let Some((form, part)) = form(model, graph, &updates, map, &launch.operands)
        {
            forms.entry(form).or_default().push(Part { launch: index, ..part });
        }
    }
    for (form, parts) in &mut forms {
        let part = form.views.iter().position(|(_, _, role)| matches!(role, Role::Part(_)));
        let moving = part.or_else(|| form.views.iter().position(|(_, _, role)| matches!(role, Role::State { .. })));
        if let Some(view) = moving {
            parts.sort_by_key(|part| part.at[view]);
        }
    }
    forms
}

/// The form of a kernel, if all it does is go over whole tensors of the state and dense parts of values.
fn form(
    model: &Model,
    graph: &Graph,
    updates: &HashMap<NodeId, Option<usize>>,
    map: &Map,
    operands: &[NodeId],
) -> Option<(Form, Part)> {
    let [elements] = *map.domain.as_slice() else { return None };
    let placed = |op: &ScalarOp| matches!(op, ScalarOp::Index(_) | ScalarOp::Uniform { .. });
    if map.code.instrs.iter().any(|instr| placed(&instr.op)) {
        return None;
    }
    let (mut views, mut at) = (Vec::new(), Vec::new());
    for view in &map.views {
        let value = *operands.get(view.operand as usize)?;
        let whole = view.offset == 0 && graph.shape(value).elements() == elements;
        let state = match &graph.node(value).op {
            Op::State { path, .. } => Some((model.state.get_index_of(&**path)?, true)),
            _ => updates.get(&value).copied().flatten().map(|state| (state, false)),
        };
        let (role, place) = match (view.strides.as_slice(), state) {
            _ if view.gather.is_some() => return None,
            ([0], _) => (Role::Fixed(value, view.offset), 0),
            ([1], Some((state, old))) if whole => (Role::State { old }, state as u64),
            ([1], None) => (Role::Part(value), u64::try_from(view.offset).ok()?),
            _ => return None,
        };
        views.push((view.operand, view.dtype, role));
        at.push(place);
    }
    Some((Form { code: map.code.clone(), views }, Part { launch: 0, elements, at }))
}

/// Cuts the launches of a form where tensors do not follow one another, or no operand may be larger.
fn runs(form: &Form, mut parts: Vec<Part>, state: &[StateTensor], target: &Target) -> Vec<Vec<Part>> {
    // Segment, start and end of what a view covers; of parts in elements, of state in bytes.
    let span = |part: &Part, view: usize| match form.views[view].2 {
        Role::Fixed(..) => None,
        Role::Part(_) => Some((0, part.at[view], part.at[view] + part.elements)),
        Role::State { .. } => {
            let buffer = &state[part.at[view] as usize].buffer;
            Some((buffer.segment, buffer.offset, buffer.offset + buffer.bytes()))
        }
    };
    let spans =
        |part: &Part| -> Vec<(u32, u64, u64)> { (0..form.views.len()).filter_map(|view| span(part, view)).collect() };
    parts.sort_by_cached_key(spans);
    let limit = target.max_binding_bytes / 4;
    let mut runs: Vec<Vec<Part>> = Vec::new();
    for part in parts {
        let follows = |run: &&mut Vec<Part>| {
            let elements: u64 = run.iter().map(|part| part.elements).sum();
            let Some(last) = run.last() else { return false };
            let mut pairs = spans(last).into_iter().zip(spans(&part));
            elements + part.elements <= limit && pairs.all(|(last, next)| last.0 == next.0 && last.2 == next.1)
        };
        match runs.last_mut().filter(follows) {
            Some(run) => run.push(part),
            None => runs.push(vec![part]),
        }
    }
    runs
}

/// Does nothing up to the last launch of a run read what one of them writes?
fn independent(launches: &[Launch], accesses: &Accesses<'_>, run: &[Part]) -> bool {
    let places = run.iter().map(|part| part.launch);
    let (Some(first), Some(last)) = (places.clone().min(), places.max()) else { return false };
    let mut writes = run.iter().flat_map(|part| &launches[part.launch].writes);
    writes.all(|value| {
        let readers = accesses.readers(*value);
        let next = readers.partition_point(|step| *step < first);
        readers.get(next).is_none_or(|step| *step > last)
    })
}

/// All launches, with one at the place of the last for each run.
fn apply(launches: &[Launch], runs: &[Vec<Part>]) -> Vec<Launch> {
    let mut joined: HashMap<usize, Option<Launch>> = HashMap::default();
    for run in runs {
        joined.extend(run.iter().map(|part| (part.launch, None)));
        let last = run.iter().map(|part| part.launch).max().unwrap_or_default();
        joined.insert(last, Some(one(launches, run)));
    }
    let launch = |(index, launch): (usize, &Launch)| joined.remove(&index).unwrap_or_else(|| Some(launch.clone()));
    launches.iter().enumerate().filter_map(launch).collect()
}

/// One launch for a run.
fn one(launches: &[Launch], run: &[Part]) -> Launch {
    let all: Vec<&Launch> = run.iter().map(|part| &launches[part.launch]).collect();
    let mut joined = all[0].clone();
    if let Loop::Map(map) = &mut joined.kernel {
        map.domain = vec![run.iter().map(|part| part.elements).sum()];
    }
    for (position, first) in all[0].operands.iter().enumerate() {
        let values: Vec<NodeId> = all.iter().map(|launch| launch.operands[position]).collect();
        if values.iter().any(|value| value != first) {
            joined.spans.insert(*first, values);
        }
    }
    let union = |of: fn(&Launch) -> &Vec<NodeId>| -> Vec<NodeId> {
        let values: IndexSet<NodeId> = all.iter().flat_map(|launch| of(launch)).copied().collect();
        values.into_iter().collect()
    };
    joined.reads = union(|launch| &launch.reads);
    joined.writes = union(|launch| &launch.writes);
    joined.in_place = all.iter().flat_map(|launch| &launch.in_place).copied().collect();
    joined.flops = all.iter().map(|launch| launch.flops).sum();
    joined
}

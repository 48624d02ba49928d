//! Where every value of a program lies.
//!
//! State tensors have places of their own. A new value of a state tensor is written straight into them where no later step
//! reads the old value; otherwise into the arena, and copied by a last step. Inputs have memory of their own, which no step
//! writes, so that the next ones can be uploaded while a step runs. Everything else lies in the arena from the step that writes
//! it to the last step that reads it, outputs to the end of the program; scalar outputs lie one after another, so that a
//! device downloads all metrics as one piece. All programs share arena and memory of inputs.
//!
//! Invariants: offsets are multiples of the target's alignment, no segment is larger than its limit, and no operand larger
//! than a binding. What lives at the same time does not overlap; [`super::check`] proves it independently.

use alip_plan::Target;
use alip_plan::fault::{Fault, planted};
use indexmap::IndexSet;

use crate::diag::Diagnostic;
use crate::hash::{HashMap, HashSet};
use crate::ir::{Graph, NodeId};
use crate::launch::Launch;
use crate::ops::Op;

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Home {
    /// In the place of the state tensor with this index.
    State(usize),
    /// In a segment of inputs, at a byte offset.
    Input(usize, u64),
    /// In an arena segment, at a byte offset.
    Arena(usize, u64),
}

/// Places of one program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placement {
    pub(crate) homes: HashMap<NodeId, Home>,
    /// Steps after the last launch: a value and the state tensor it is copied to.
    pub(crate) copies: Vec<(NodeId, usize)>,
    /// Size of each segment of inputs.
    pub(crate) inputs: Vec<u64>,
    /// Size of each arena segment.
    pub(crate) segments: Vec<u64>,
    /// What the arena holds when most of it is in use.
    pub(crate) peak: Peak,
}

/// Bytes that live at the same time, at the step at which they are most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    /// What the loss depends on; in a program without one, everything else.
    pub(crate) activations: u64,
    /// What it does not depend on: gradients, values that are computed again for them, what the update needs.
    pub(crate) gradients: u64,
}

impl Peak {
    fn new(graph: &Graph, lives: &[Life], end: usize, loss: Option<NodeId>) -> Peak {
        let forward = loss.map_or_else(|| vec![true; graph.nodes().len()], |loss| graph.live([&loss]));
        // By step: what begins there less what ended before.
        let mut changes = vec![[0i64; 2]; end + 2];
        for life in lives {
            let kind = usize::from(!forward[life.value.index()]);
            changes[life.first][kind] += life.bytes as i64;
            changes[life.last + 1][kind] -= life.bytes as i64;
        }
        let (mut now, mut most) = ([0i64; 2], [0i64; 2]);
        for change in changes {
            (0..2).for_each(|kind| now[kind] += change[kind]);
            if now.iter().sum::<i64>() > most.iter().sum() {
                most = now;
            }
        }
        let [activations, gradients] = most.map(|bytes| bytes as u64);
        Peak { activations, gradients }
    }

    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        self.activations + self.gradients
    }
}

/// A span of memory that is live from one step to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    value: NodeId,
    bytes: u64,
    first: usize,
    last: usize,
}

impl Life {
    fn new(graph: &Graph, value: NodeId, (first, last): (usize, usize)) -> Life {
        Life { value, bytes: graph.bytes(value), first, last }
    }
}

/// Gives every value of a program its place; `states` finds a state tensor's index by path, `loss` names the output that is
/// minimised.
///
/// # Errors
/// A value is larger than what one kernel operand may cover on the target.
pub(crate) fn place(
    graph: &Graph,
    launches: &[Launch],
    states: &dyn Fn(&str) -> Option<usize>,
    target: &Target,
    loss: Option<&str>,
) -> Result<Placement, Diagnostic> {
    let mut placement = Placement::default();
    let accesses = Accesses::new(graph, launches);
    for id in graph.ids() {
        if let Op::State { path, .. } = &graph.node(id).op
            && let Some(state) = states(path)
        {
            placement.homes.insert(id, Home::State(state));
        }
    }
    for (path, id) in &graph.updates {
        let Some(state) = states(path) else { continue };
        if placement.homes.get(id) == Some(&Home::State(state)) {
            continue; // stays as it is
        }
        if !placement.homes.contains_key(id) && accesses.in_place(path, *id) {
            placement.homes.insert(*id, Home::State(state));
        } else {
            placement.copies.push((*id, state));
        }
    }
    let end = launches.len() + placement.copies.len();
    place_inputs(graph, target, &mut placement)?;
    let mut lives: HashMap<NodeId, (usize, usize)> = HashMap::default();
    for (value, steps) in &accesses.writers {
        let last = accesses.readers.get(value).into_iter().flatten().chain(steps).max().copied().unwrap_or(end);
        let first = steps.iter().min().copied().unwrap_or(0);
        let early = usize::from(planted(Fault::LifeTooShort));
        lives.insert(*value, (first, last.saturating_sub(early).max(first)));
    }
    for id in graph.outputs.values().chain(placement.copies.iter().map(|(id, _)| id)) {
        if let Some(life) = lives.get_mut(id) {
            life.1 = end;
        }
    }
    let mut lives: Vec<Life> = lives
        .into_iter()
        .filter(|(value, _)| !placement.homes.contains_key(value))
        .map(|(value, life)| Life::new(graph, value, life))
        .collect();
    // Largest first: what is hard to place finds the most room.
    lives.sort_by_key(|life| (std::cmp::Reverse(life.bytes), life.first, life.value));
    for life in &lives {
        fits_binding(graph, life, target)?;
    }
    let loss = loss.and_then(|loss| graph.outputs.get(loss).copied());
    placement.peak = Peak::new(graph, &lives, end, loss);
    let scalars = scalar_outputs(graph, &mut lives, target);
    let offsets = pack(&lives, target, &mut placement.segments);
    for (life, (segment, offset)) in lives.iter().zip(offsets) {
        placement.homes.insert(life.value, Home::Arena(segment, offset));
    }
    let block = scalars.first().and_then(|first| placement.homes.get(first)).copied();
    if let Some(Home::Arena(segment, offset)) = block {
        let places = (offset..).step_by(alignment(target) as usize).map(|offset| Home::Arena(segment, offset));
        placement.homes.extend(scalars.into_iter().zip(places));
    }
    Ok(placement)
}

/// Gives inputs their places: all are there during the whole program.
fn place_inputs(graph: &Graph, target: &Target, placement: &mut Placement) -> Result<(), Diagnostic> {
    let inputs: Vec<Life> = graph.inputs.values().map(|id| Life::new(graph, *id, (0, 0))).collect();
    for input in &inputs {
        fits_binding(graph, input, target)?;
    }
    let places = pack(&inputs, target, &mut placement.inputs);
    let homes = places.into_iter().map(|(segment, offset)| Home::Input(segment, offset));
    placement.homes.extend(inputs.iter().map(|input| input.value).zip(homes));
    Ok(())
}

/// The scalars that a program yields out of the arena, in their order. Of their lives one is left, with room for all.
fn scalar_outputs(graph: &Graph, lives: &mut Vec<Life>, target: &Target) -> Vec<NodeId> {
    let in_arena: HashMap<NodeId, Life> = lives.iter().map(|life| (life.value, *life)).collect();
    let is_scalar = |id: &NodeId| graph.shape(*id).rank() == 0 && in_arena.contains_key(id);
    let all: IndexSet<NodeId> = graph.outputs.values().copied().filter(is_scalar).collect();
    let of_all = all.iter().filter_map(|id| in_arena.get(id)).copied().reduce(|all, life| Life {
        bytes: all.bytes.next_multiple_of(alignment(target)) + life.bytes,
        first: all.first.min(life.first),
        last: all.last.max(life.last),
        ..all
    });
    lives.retain(|life| !all.contains(&life.value));
    lives.extend(of_all);
    all.into_iter().collect()
}

impl Placement {
    /// One line per value, by place.
    pub(crate) fn table(&self, graph: &Graph) -> String {
        let mut homes: Vec<(Home, NodeId)> = self.homes.iter().map(|(id, home)| (*home, *id)).collect();
        homes.sort_unstable();
        let line = |(home, id): &(Home, NodeId)| match home {
            Home::State(index) => format!("state {index}: %{} {}\n", id.0, graph.ty(*id)),
            Home::Input(segment, offset) => format!("input {segment} + {offset}: %{} {}\n", id.0, graph.ty(*id)),
            Home::Arena(segment, offset) => format!("arena {segment} + {offset}: %{} {}\n", id.0, graph.ty(*id)),
        };
        homes.iter().map(line).collect()
    }
}

type Steps = HashMap<NodeId, Vec<usize>>;

/// Who writes and reads what, by position in the order of launches.
pub(crate) struct Accesses<'a> {
    /// By step, the pairs of a written and a read value that may share memory.
    in_place: Vec<HashSet<(NodeId, NodeId)>>,
    writers: Steps,
    readers: Steps,
    /// Nodes that are the old value of a state tensor, by path.
    olds: HashMap<&'a str, Vec<NodeId>>,
}

impl<'a> Accesses<'a> {
    pub(crate) fn new(graph: &'a Graph, launches: &[Launch]) -> Accesses<'a> {
        let (mut writers, mut readers) = (Steps::default(), Steps::default());
        for (step, launch) in launches.iter().enumerate() {
            for value in &launch.writes {
                writers.entry(*value).or_default().push(step);
            }
            for value in &launch.reads {
                readers.entry(*value).or_default().push(step);
            }
        }
        let mut olds: HashMap<&str, Vec<NodeId>> = HashMap::default();
        for id in graph.ids() {
            if let Op::State { path, .. } = &graph.node(id).op {
                olds.entry(path).or_default().push(id);
            }
        }
        let in_place = launches.iter().map(|launch| launch.in_place.iter().copied().collect()).collect();
        Accesses { in_place, writers, readers, olds }
    }

    /// The steps that read a value, in order.
    pub(crate) fn readers(&self, value: NodeId) -> &[usize] {
        self.readers.get(&value).map_or(&[], Vec::as_slice)
    }

    /// May the new value of a state tensor be written over the old one?
    pub(crate) fn in_place(&self, path: &str, new: NodeId) -> bool {
        let Some([writer]) = self.writers.get(&new).map(Vec::as_slice) else { return false };
        self.olds.get(path).into_iter().flatten().all(|old| {
            self.readers.get(old).into_iter().flatten().all(|reader| {
                reader < writer
                    || planted(Fault::StaleInPlace)
                    || reader == writer && self.in_place[*writer].contains(&(new, *old))
            })
        })
    }
}

pub(crate) fn fits(what: &str, bytes: u64, target: &Target) -> Result<(), Diagnostic> {
    let limit = target.max_binding_bytes.min(target.max_segment_bytes);
    if bytes <= limit {
        return Ok(());
    }
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let message = format!(
        "{what} takes {}, but a kernel operand on target `{}` has at most {}",
        mib(bytes),
        target.name,
        mib(limit)
    );
    Err(Diagnostic::error(message).help(
        "use a smaller batch (`--batch N`), a smaller model, `--target native` of `alip-run` where the adapter allows more, or \
         `--target cpu`",
    ))
}

fn fits_binding(graph: &Graph, life: &Life, target: &Target) -> Result<(), Diagnostic> {
    let origin = graph.origin(life.value);
    let place = if origin.path.is_empty() { graph.name.as_str() } else { &origin.path };
    let result = fits(&format!("a value {} of `{place}`", graph.ty(life.value)), life.bytes, target);
    match origin.span {
        Some(span) => result.map_err(|error| error.label(span, "computed here")),
        None => result,
    }
}

/// Segment and offset of every life, in the given order; `segments` receives the sizes. Every life is compared with those placed
/// before: which gap is the smallest depends on all that lives meanwhile.
fn pack(lives: &[Life], target: &Target, segments: &mut Vec<u64>) -> Vec<(usize, u64)> {
    let align = alignment(target);
    let mut placed: Vec<Vec<(u64, u64, usize, usize)>> = Vec::new(); // offset, end, first, last; by offset
    let mut result = Vec::new();
    for life in lives {
        let bytes = life.bytes.next_multiple_of(align);
        let mut segment = 0;
        let offset = loop {
            if segment == placed.len() {
                placed.push(Vec::new());
                segments.push(0);
            }
            let alive = placed[segment].iter().filter(|(_, _, first, last)| *first <= life.last && life.first <= *last);
            let offset = best_gap(alive.map(|(offset, end, ..)| (*offset, *end)), bytes);
            if offset + bytes <= target.max_segment_bytes || offset == 0 {
                break offset;
            }
            segment += 1;
        };
        let at = placed[segment].partition_point(|(before, ..)| *before <= offset);
        placed[segment].insert(at, (offset, offset + bytes, life.first, life.last));
        segments[segment] = segments[segment].max(offset + bytes);
        result.push((segment, offset));
    }
    result
}

/// Of the places of values in their segments, in bytes.
fn alignment(target: &Target) -> u64 {
    target.alignment.max(4)
}

/// The smallest gap between busy spans, in their order, that has room, else the end of the last.
fn best_gap(busy: impl Iterator<Item = (u64, u64)>, bytes: u64) -> u64 {
    let mut best: Option<(u64, u64)> = None;
    let mut free = 0;
    for (offset, end) in busy {
        let gap = offset.saturating_sub(free);
        if gap >= bytes && best.is_none_or(|(size, _)| gap < size) {
            best = Some((gap, free));
        }
        free = free.max(end);
    }
    best.map_or(free, |(_, offset)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_live_together_shares_memory() {
        let life = |value, bytes, first, last| Life { value: NodeId(value), bytes, first, last };
        let mut segments = Vec::new();
        let lives = [life(0, 256, 0, 1), life(1, 256, 2, 3), life(2, 128, 1, 2), life(3, 64, 0, 3)];
        let places = pack(&lives, &Target::cpu(), &mut segments);
        assert_eq!(places, [(0, 0), (0, 0), (0, 256), (0, 384)]);
        assert_eq!(segments, [448]);
    }

    #[test]
    fn segments_stay_within_the_limit() {
        let target = Target { max_segment_bytes: 512, ..Target::wgpu() };
        let lives: Vec<Life> =
            (0..5).map(|value| Life { value: NodeId(value), bytes: 200, first: 0, last: 9 }).collect();
        let mut segments = Vec::new();
        let places = pack(&lives, &target, &mut segments);
        assert_eq!(places, [(0, 0), (0, 256), (1, 0), (1, 256), (2, 0)]);
        assert_eq!(segments, [512, 512, 256]);
    }

    #[test]
    fn a_value_that_no_binding_holds_is_an_error_that_says_what_to_do() {
        let error = fits("a value f32[B=4096, 50, 3072] of `visual`", 4096 * 50 * 3072 * 4, &Target::wgpu());
        let error = error.expect_err("2.3 GiB");
        assert_eq!(
            error.message,
            "a value f32[B=4096, 50, 3072] of `visual` takes 2400.0 MiB, but a kernel operand on target `wgpu` has at \
             most 128.0 MiB"
        );
        assert_eq!(error.help.len(), 1);
        // Of ALIP B/32: the hidden layer of 128 images, which no adapter must bind and most can.
        let bytes = 128 * 50 * 3072 * 4;
        assert!(fits("a value", 2 * bytes, &Target::wgpu()).is_err());
        let native = Target::wgpu().with_limits(1 << 31, 1 << 31, 8, 65_535);
        assert!(fits("a value", 2 * bytes, &native).is_ok());
    }
}

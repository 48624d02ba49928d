//! Large values that wait long for their last readers are computed again for them, instead of kept.
//!
//! A training step keeps for its backward pass what the forward pass computed. Some of it is cheap to have again: the result
//! of a gelu is needed once more, as an operand of a weight's gradient, while the gelu's own input is kept anyway, for its
//! derivative. From the finished schedule this pass sees who reads what when, and gives late readers a value of their own;
//! the program is scheduled again with it.
//!
//! A value is computed again if its expression is pointwise and short, if what it is computed from is in memory at that time
//! anyway, and if it is large enough among all that is kept to be worth a launch. The same operations on the same values
//! give the same bits.
//!
//! A program for fewer rows is its program once more, node by node: what that one computes again, it does too, and is
//! scheduled once.

use smallvec::SmallVec;

use super::facts::{base, operations};
use super::{Groups, Schedule, ScheduleOptions, looked};
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::{HashMap, HashSet};
use crate::ir::{Graph, Node, NodeId};
use crate::ops::{Op, OpError};

/// A value that no launch of so many reads is waiting; a layer of a transformer takes about as many.
const LONG: usize = 16;
/// A value is worth a launch if it is at least this part of all that waits; most need none, since a kernel that reads the
/// same computes them beside its own results (`siblings`).
const WORTHWHILE: u64 = 1024;

/// A stored value, and who reads it when.
struct Waiting {
    value: NodeId,
    bytes: u64,
    /// Nodes that read it after the longest wait, and when the first of them does.
    late: HashSet<NodeId>,
    from: usize,
}

/// What a program computes again.
#[derive(Default)]
pub struct Choice {
    /// Values, and the nodes that read them late.
    late: Vec<(NodeId, HashSet<NodeId>)>,
    /// Which nodes are in memory; asked for only where there are such values.
    stored: Vec<bool>,
}

/// A program that computes values again.
pub struct Recomputed {
    /// The program.
    pub graph: Graph,
    /// What is computed again, for late readers alone.
    pub late: Vec<NodeId>,
}

/// The same program with late readers' values computed again; none if there is nothing to gain, or it is turned off.
///
/// # Errors
/// An op refuses its inputs, which only a defect of this pass can cause.
pub fn recompute(schedule: &Schedule<'_>, options: ScheduleOptions) -> Result<Option<Recomputed>, Diagnostics> {
    Choice::of(schedule, options).apply(schedule.groups.graph)
}

impl Choice {
    /// What is worth computing again in a scheduled program; nothing if it is turned off.
    pub fn of(schedule: &Schedule<'_>, options: ScheduleOptions) -> Choice {
        let chosen = if options.fuse && options.recompute { choose(schedule) } else { vec![] };
        if chosen.is_empty() {
            return Choice::default();
        }
        Choice {
            late: chosen.into_iter().map(|waiting| (waiting.value, waiting.late)).collect(),
            stored: schedule.groups.graph.ids().map(|id| is_stored(schedule, id)).collect(),
        }
    }

    /// The program, or one of the same nodes ([`same_nodes`]), with these values computed again; none if there are none.
    ///
    /// # Errors
    /// An op refuses its inputs, which only a defect of this pass can cause.
    pub fn apply(&self, graph: &Graph) -> Result<Option<Recomputed>, Diagnostics> {
        if self.late.is_empty() {
            return Ok(None);
        }
        let late = self.late.iter().flat_map(|(value, late)| late.iter().map(|reader| (*reader, *value)));
        let mut again: HashMap<NodeId, Vec<NodeId>> = HashMap::default();
        late.for_each(|(reader, value)| again.entry(reader).or_default().push(value));
        let values: Vec<NodeId> = self.late.iter().map(|(value, _)| *value).collect();
        let (new, copies) = (graph.successor(), HashMap::default());
        let rebuild = Rebuild { graph, new, moved: Vec::new(), again, copies, stored: &self.stored };
        rebuild.run(&values).map(Some).map_err(|error| {
            let message = format!("internal: computing values of program `{}` again", graph.name);
            Diagnostic::error(message).note(error.message).into()
        })
    }
}

/// Whether two programs have the same nodes, but for their sizes.
pub fn same_nodes(a: &Graph, b: &Graph) -> bool {
    let alike =
        |(a, b): (&Node, &Node)| std::mem::discriminant(&a.op) == std::mem::discriminant(&b.op) && a.inputs == b.inputs;
    a.nodes().len() == b.nodes().len() && a.nodes().iter().zip(b.nodes()).all(alike)
}

fn is_stored(schedule: &Schedule<'_>, id: NodeId) -> bool {
    let given = matches!(schedule.groups.graph.node(id).op, Op::Input { .. } | Op::State { .. });
    given || schedule.groups.adjoined.contains_key(&id) || !schedule.groups.writers(id).is_empty()
}

fn choose(schedule: &Schedule<'_>) -> Vec<Waiting> {
    let groups = &schedule.groups;
    let graph = groups.graph;
    let mut at = vec![0; groups.count()];
    for (position, group) in schedule.order.iter().enumerate() {
        at[*group] = position;
    }
    let position = |member: &usize| at[groups.group_of(*member)];
    let mut total = 0;
    let mut waiting = Vec::new();
    for id in graph.ids() {
        let [writer] = groups.writers(id) else { continue };
        let mut reads: Vec<(usize, NodeId)> =
            groups.loads(id).iter().map(|member| (position(member), groups.member(*member).node)).collect();
        reads.sort_unstable();
        looked("readers of a value", reads.len());
        let mut before = at[groups.find(*writer)];
        let mut longest = (0, 0);
        for (index, (when, _)) in reads.iter().enumerate() {
            longest = longest.max((when.saturating_sub(before), index));
            before = *when;
        }
        if longest.0 < LONG {
            continue;
        }
        let bytes = graph.bytes(id);
        total += bytes;
        let (early, late) = reads.split_at(longest.1);
        let late: HashSet<NodeId> = late.iter().map(|(_, node)| *node).collect();
        let both = early.iter().any(|(_, node)| late.contains(node));
        if !both && !groups.required[id.index()] && matches!(graph.node(id).op, Op::Pointwise(_)) {
            waiting.push(Waiting { value: id, bytes, late, from: reads[longest.1].0 });
        }
    }
    // What another value is computed from again has to stay.
    let mut sources: HashSet<NodeId> = HashSet::default();
    let mut gone: HashSet<NodeId> = HashSet::default();
    waiting.retain(|waiting| {
        let mut found = Vec::new();
        let worth = waiting.bytes.saturating_mul(WORTHWHILE) >= total && !sources.contains(&waiting.value);
        if !worth || !expression(schedule, waiting.value, &mut found) {
            return false;
        }
        let there = |source: &NodeId| {
            let small =
                graph.shape(*source).elements() * groups.fusion.much_smaller <= graph.shape(waiting.value).elements();
            let given = groups.writers(*source).is_empty();
            let last = groups.loads(*source).iter().map(position).max().unwrap_or(0);
            !gone.contains(source) && (small || given || last + LONG >= waiting.from)
        };
        let fits = found.iter().all(there);
        if fits {
            sources.extend(found);
            gone.insert(waiting.value);
        }
        fits
    });
    waiting
}

/// What a value is computed from pointwise, in memory; false if it is not, or not with few operations.
fn expression(schedule: &Schedule<'_>, value: NodeId, sources: &mut Vec<NodeId>) -> bool {
    let graph = schedule.groups.graph;
    let Groups { fusion, rates, .. } = &schedule.groups;
    let mut left = fusion.most_operations;
    let mut seen = HashSet::default();
    let mut open = vec![value];
    while let Some(id) = open.pop() {
        let (id, op) = base(graph, id);
        if !seen.insert(id) {
            continue;
        }
        match op {
            _ if id != value && is_stored(schedule, id) => sources.push(id),
            Op::Const { .. } => {}
            Op::Pointwise(op) if operations(*op, rates) <= left => {
                left -= operations(*op, rates);
                open.extend(&graph.node(id).inputs);
            }
            _ => return false,
        }
    }
    true
}

struct Rebuild<'a> {
    graph: &'a Graph,
    new: Graph,
    moved: Vec<NodeId>,
    /// Readers and the values that are computed again for them.
    again: HashMap<NodeId, Vec<NodeId>>,
    copies: HashMap<NodeId, NodeId>,
    stored: &'a [bool],
}

impl Rebuild<'_> {
    fn run(mut self, values: &[NodeId]) -> Result<Recomputed, OpError> {
        let graph = self.graph;
        for id in graph.ids() {
            let node = graph.node(id);
            let here = self.again.remove(&id).unwrap_or_default();
            let mut inputs = SmallVec::new();
            for input in &node.inputs {
                inputs.push(match here.contains(&base(graph, *input).0) {
                    true => self.copy(*input, base(graph, *input).0)?,
                    false => self.moved[input.index()],
                });
            }
            let new = self.new.copy(self.graph, id, inputs)?;
            self.moved.push(new);
        }
        self.new.take_names(graph, |id| Some(self.moved[id.index()]));
        let late = values.iter().filter_map(|value| self.copies.get(value).copied()).collect();
        Ok(Recomputed { graph: self.new, late })
    }

    /// Adds again what stands between `id` and what is in memory; `value` itself is not.
    fn copy(&mut self, id: NodeId, value: NodeId) -> Result<NodeId, OpError> {
        let node = self.graph.node(id);
        if id != value && self.stored[id.index()] || node.inputs.is_empty() {
            return Ok(self.moved[id.index()]);
        }
        if let Some(copy) = self.copies.get(&id) {
            return Ok(*copy);
        }
        let inputs = node.inputs.iter().map(|input| self.copy(*input, value)).collect::<Result<_, _>>()?;
        let copy = self.new.copy(self.graph, id, inputs)?;
        self.copies.insert(id, copy);
        Ok(copy)
    }
}

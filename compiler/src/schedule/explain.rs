//! What became of each node: the kernel it is computed in, and why a value is stored between two kernels.
//!
//! The reasons are found again from the finished schedule by the same facts that grouping asks, in the order in which it
//! asks them; grouping itself keeps no record.

use crate::ir::{Graph, NodeId};
use crate::launch::{Launch, bytes_moved};
use crate::ops::Op;

use super::group::Refusal;
use super::{GroupId, Kind, Schedule, What};

/// The kernels of a program, in order.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    /// The graph that was scheduled; node ids below are its.
    pub graph: Graph,
    /// One per launch.
    pub kernels: Vec<Explained>,
}

/// A kernel and what it computes.
#[derive(Clone, Debug)]
pub struct Explained {
    /// `map`, `reduction`, `product`, ...
    pub kind: &'static str,
    /// Sizes of the loop, kept dimensions before reduced ones.
    pub domain: (Vec<u64>, Vec<u64>),
    /// Nodes computed in it, in order; a node may be computed in several kernels.
    pub covers: Vec<NodeId>,
    /// Values it stores.
    pub stores: Vec<NodeId>,
    /// Values it reads.
    pub reads: Vec<NodeId>,
    /// Floating point operations.
    pub flops: u64,
    /// Bytes that it reads and writes, each element once.
    pub bytes: u64,
    /// Stored values, with a later kernel (by position) that reads each, and why the two are not one.
    pub blocked: Vec<(NodeId, usize, String)>,
}

/// Explains a schedule and the launches it was lowered to.
pub(crate) fn explain(schedule: &Schedule<'_>, launches: &[Launch]) -> Explanation {
    let graph = schedule.groups.graph;
    let mut at = vec![usize::MAX; schedule.groups.count()];
    for (position, group) in schedule.order.iter().enumerate() {
        at[*group] = position;
    }
    let kernels = schedule.order.iter().zip(launches).map(|(group, launch)| kernel(schedule, *group, launch, &at));
    Explanation { graph: graph.clone(), kernels: kernels.collect() }
}

fn kernel(schedule: &Schedule<'_>, id: GroupId, launch: &Launch, at: &[usize]) -> Explained {
    let groups = &schedule.groups;
    let group = groups.group(id);
    let mut covers: Vec<NodeId> = group.members().iter().map(|member| groups.member(*member).node).collect();
    if let Kind::Conv2d(member, _) = group.kind() {
        covers.extend(groups.prologue(member).into_iter().flat_map(|prologue| prologue.nodes));
    }
    covers.sort_unstable();
    covers.dedup();
    covers.retain(|node| !groups.graph.node(*node).inputs.is_empty());
    let mut blocked = Vec::new();
    for store in group.stores() {
        let mut readers: Vec<GroupId> = groups.readers(store.target).collect();
        readers.sort_by_key(|reader| at[*reader]);
        readers.dedup();
        for reader in readers.iter().filter(|reader| **reader != id) {
            let why = why(schedule, id, store.target, *reader, readers.len());
            blocked.push((store.target, at[*reader], why));
        }
    }
    Explained {
        kind: group.kind().name(),
        domain: (group.space().kept().to_vec(), group.space().reduced().to_vec()),
        covers,
        stores: launch.writes.clone(),
        reads: launch.reads.clone(),
        flops: launch.flops,
        bytes: bytes_moved(&launch.kernel),
        blocked,
    }
}

/// Why a value is stored by one kernel and read by another.
fn why(schedule: &Schedule<'_>, from: GroupId, value: NodeId, to: GroupId, readers: usize) -> String {
    let groups = &schedule.groups;
    let (writer, reader) = (groups.group(from), groups.group(to));
    let name = |id: NodeId| groups.graph.node(id).op.name();
    let whole = groups.loads(value).iter().filter(|member| groups.group_of(**member) == to);
    let whole = whole.map(|member| groups.member(*member)).filter(|member| member.what == What::Node);
    if !groups.fuse {
        return "fusion is off (--no-fuse)".into();
    }
    if let Some(member) = whole.clone().find(|member| groups.reads_memory(member.node)) {
        return format!("`{}` reads its operands from memory", name(member.node));
    }
    if groups.required[value.index()] {
        return "the program yields it".into();
    }
    let dear = !groups.facts[value.index()].cheap;
    let (here, there) = (writer.space(), reader.space());
    match (writer.kind(), reader.kind()) {
        (Kind::Product(..) | Kind::Conv2d(..) | Kind::ScatterAdd(..) | Kind::Attention(_), _) if readers > 1 => {
            format!("{readers} kernels read the result of `{}`", name(value))
        }
        (Kind::Conv2d(..) | Kind::ScatterAdd(..) | Kind::Attention(_), _) => {
            format!("a {} kernel has no epilogue", writer.kind().name())
        }
        (Kind::Product(..), Kind::Reduction) => "a product's epilogue sees no whole rows to reduce".into(),
        (Kind::Product(..), _) => "it is not read at the product's own points".into(),
        _ if readers > 1 && dear => {
            format!("{readers} kernels read it, and computing it again costs more than reading it")
        }
        (Kind::Reduction, _) if here.kept() != there.kept() => {
            format!("rows {:?} and {:?} differ", here.kept(), there.kept())
        }
        _ if here.sizes() != there.sizes() => format!("loops over {:?} and {:?} differ", here.sizes(), there.sizes()),
        _ => groups.room_for_both(from, to).err().unwrap_or(Refusal::Waits).to_string(),
    }
}

/// Whether a node computes, rather than being a view or a source.
pub fn computes(op: &Op) -> bool {
    matches!(
        op,
        Op::Pointwise(_)
            | Op::Reduce { .. }
            | Op::Dot(_)
            | Op::Conv2d(_)
            | Op::Attention(_)
            | Op::Softmax { .. }
            | Op::LogSumExp { .. }
            | Op::LayerNorm { .. }
            | Op::CrossEntropy
            | Op::Gather { .. }
            | Op::ScatterAdd { .. }
            | Op::Random { .. }
    )
}

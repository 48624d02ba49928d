//! Groups: what becomes one kernel.
//!
//! A [`Group`] is a loop over a [`Space`] with [`Member`]s: nodes of the graph as they are computed at a point, or once per
//! row, of that space. One node may be a member of several groups (computed again) or several times of one (under different
//! views). What other groups read is stored once, by one group.
//!
//! Groups are changed here and in the files below alone (`merge` makes one of two, `edges` knows what waits for what), and
//! nothing makes one that cannot be lowered: what is not legal is a [`Refusal`].
//!
//! Invariants:
//! - A member's inputs are members of the same group or loads of stored values; while groups are being made, they may be
//!   pending: the input node has not been placed yet. Nodes are placed from last to first, so that all readers of a node
//!   are placed before it.
//! - The edges from a value's writers to its readers never form a cycle: every decision to store a value in an existing
//!   group asks [`Groups::reaches`] first.
//! - Every access of a group is affine over its space, refined by the space's cuts.
//! - A group never has more operands than the target allows.

mod edges;
mod merge;

use std::collections::BTreeSet;
use std::fmt;

use alip_plan::{Fusion, Rates, Target};
use smallvec::SmallVec;

use super::attention::CallKey;
use super::facts::{Facts, base, facts};
use super::layout::{Chain, ViewOp};
use super::looked;
use super::reads::{Found, Inputs};
use super::space::Space;
use crate::diag::Diagnostic;
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId};
use crate::launch::Neighbours;
use crate::ops::attention::Attention;
use crate::ops::{Conv, Dot, Op};

/// Index of a group.
pub(crate) type GroupId = usize;
/// Index of a member.
pub(crate) type MemberId = usize;

/// What a member computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The node's operation.
    Node,
    /// The node is a view, a concatenation or a padding: the element of this input.
    Copy(usize),
    /// Zero, around the input of a padding.
    Zero,
}

/// Where an operand of a member comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A value not placed yet; it is the operand itself or lies below it through views.
    Pending(NodeId),
    /// Loaded.
    Load(NodeId),
    /// Another member of the group.
    Member(MemberId),
}

impl Input {
    /// The value that is loaded.
    pub(crate) fn loaded(self) -> Option<NodeId> {
        if let Input::Load(value) = self { Some(value) } else { None }
    }
}

/// An operand of a member.
pub(crate) type Use = (MemberId, usize);

/// A node as computed in a group.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) what: What,
    pub(super) group: GroupId,
    /// Once per row rather than at every point.
    pub(crate) row: bool,
    /// From the node's own shape to the space: to its kept dimensions for a row, else to all.
    pub(crate) chain: Chain,
    pub(crate) inputs: SmallVec<[Input; 3]>,
    /// Number of reductions that follow it within the group.
    pub(super) height: u32,
}

impl Member {
    /// A node on a space of its own shape, without inputs so far.
    pub(super) fn new(group: GroupId, node: NodeId, what: What) -> Member {
        let (chain, inputs) = (Chain::new(), SmallVec::new());
        Member { node, what, group, row: false, chain, inputs, height: 0 }
    }
}

/// A value that a group writes.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) member: MemberId,
    /// The stored value.
    pub(crate) target: NodeId,
    /// The part of the target that the member's shape is; all of it if absent.
    region: Option<ViewOp>,
}

/// Archetype of a group, with what the archetypes of one operation are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind<'g> {
    Map,
    Reduction,
    /// The space is `[batch.., m, n]`; other members are the epilogue.
    Product(MemberId, &'g Dot),
    Conv2d(MemberId, &'g Conv),
    /// With the number of batch dimensions, and the rows of a table.
    ScatterAdd(MemberId, usize, u64),
    /// Every member is a result of one call.
    Attention(&'g Attention),
}

impl Kind<'_> {
    /// As schedules and explanations show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Map => "map",
            Kind::Reduction => "reduction",
            Kind::Product(..) => "product",
            Kind::Conv2d(..) => "conv2d",
            Kind::ScatterAdd(..) => "scatter_add",
            Kind::Attention(_) => "attention",
        }
    }
}

/// Why something does not become part of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The group's archetype has no place for it.
    Kind,
    /// Their loops differ.
    Space,
    /// The group would have more than [`Fusion::most_members`] members.
    Members,
    /// The group would have more operands than this.
    Operands(usize),
    /// More reductions would follow one another than a kernel takes.
    Stages,
    /// An access would not be affine over the group's space.
    Access,
    /// Both store into one value, in a way that no kernel can.
    StoredTwice,
    /// It would be computed at many more points than it has elements.
    Repeated,
    /// It would have to run both before and after something else.
    Waits,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Refusal::Kind => "a kernel of this kind has no place for it",
            Refusal::Space => "their loops differ",
            Refusal::Members => "one kernel would be too long",
            Refusal::Operands(most) => {
                return write!(f, "together they have more than the target's {most} operands");
            }
            Refusal::Stages => "too many reductions would follow one another",
            Refusal::Access => "what they read and write is not affine over one space",
            Refusal::StoredTwice => "both store into one value",
            Refusal::Repeated => "it would be computed at many more points than it has elements",
            Refusal::Waits => "one kernel would have to wait for itself",
        };
        f.write_str(text)
    }
}

/// What becomes one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Group<'g> {
    kind: Kind<'g>,
    space: Space,
    members: Vec<MemberId>,
    stores: Vec<Store>,
    /// Values that are stored, loaded or pending.
    operands: BTreeSet<NodeId>,
    /// Groups that must run later although they read nothing from this one.
    before: Vec<GroupId>,
    /// The other ends of `before`.
    after: Vec<GroupId>,
    /// Longest way to a group without readers; falls along every edge.
    level: u32,
    /// Set when merged into another group.
    merged_into: Option<GroupId>,
    late: bool,
}

impl<'g> Group<'g> {
    fn new(kind: Kind<'g>, space: Space) -> Group<'g> {
        Group {
            kind,
            space,
            members: Vec::new(),
            stores: Vec::new(),
            operands: BTreeSet::new(),
            before: Vec::new(),
            after: Vec::new(),
            level: 0,
            merged_into: None,
            late: false,
        }
    }

    pub(crate) fn kind(&self) -> Kind<'g> {
        self.kind
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// In the order in which they joined.
    pub(crate) fn members(&self) -> &[MemberId] {
        &self.members
    }

    pub(crate) fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// Values that are stored, loaded or pending.
    pub(super) fn operands(&self) -> &BTreeSet<NodeId> {
        &self.operands
    }

    /// Whether it computes again what has been computed before: it runs late, and must not draw in what is needed early.
    pub(super) fn is_late(&self) -> bool {
        self.late
    }
}

/// All groups of a graph while they are being made.
pub(crate) struct Groups<'g> {
    pub(crate) graph: &'g Graph,
    pub(super) facts: Vec<Facts>,
    members: Vec<Member>,
    groups: Vec<Group<'g>>,
    /// Operands waiting for a node to be placed.
    uses: Vec<Vec<Use>>,
    /// Members that load a value.
    loads: Vec<Vec<MemberId>>,
    /// Groups that store a value; several only for concatenations and paddings.
    writers: Vec<SmallVec<[GroupId; 1]>>,
    /// Groups of attention by what their results share.
    pub(super) calls: HashMap<CallKey, Vec<GroupId>>,
    /// Outputs and updates.
    pub(super) required: Vec<bool>,
    /// Values that are computed again (`recompute`).
    pub(super) late: Vec<bool>,
    /// Concatenations of state tensors that lie one after another, and these.
    pub(crate) adjoined: HashMap<NodeId, Vec<NodeId>>,
    max_operands: usize,
    pub(super) fusion: Fusion,
    pub(super) rates: Rates,
    pub(super) fuse: bool,
    /// The members that read the node which is being placed.
    readers: Vec<MemberId>,
    visited: Vec<u32>,
    visit: u32,
}

impl<'g> Groups<'g> {
    pub(super) fn new(graph: &'g Graph, target: &Target, fuse: bool) -> Groups<'g> {
        let count = graph.nodes().len();
        let mut required = vec![false; count];
        for id in graph.outputs.values().chain(graph.updates.values()) {
            required[id.index()] = true;
        }
        Groups {
            graph,
            facts: facts(graph, target),
            members: Vec::new(),
            groups: Vec::new(),
            uses: vec![Vec::new(); count],
            loads: vec![Vec::new(); count],
            writers: vec![SmallVec::new(); count],
            calls: HashMap::default(),
            required,
            late: vec![false; count],
            adjoined: HashMap::default(),
            max_operands: target.max_operands as usize,
            fusion: target.fusion,
            rates: target.rates,
            fuse,
            readers: Vec::new(),
            visited: Vec::new(),
            visit: 0,
        }
    }

    /// Concatenations of neighbours are read as they lie; what the program yields is a value of its own.
    pub(super) fn adjoin(&mut self, neighbours: &Neighbours) {
        let all = self.graph.ids().filter(|id| !self.required[id.index()]);
        self.adjoined = all.filter_map(|id| Some((id, neighbours.of(self.graph, id)?))).collect();
    }

    pub(crate) fn group(&self, group: GroupId) -> &Group<'g> {
        &self.groups[group]
    }

    pub(crate) fn member(&self, member: MemberId) -> &Member {
        &self.members[member]
    }

    /// The group that a member is part of.
    pub(super) fn group_of(&self, member: MemberId) -> GroupId {
        self.find(self.members[member].group)
    }

    /// The group that a group has become part of.
    pub(super) fn find(&self, mut group: GroupId) -> GroupId {
        while let Some(into) = self.groups[group].merged_into {
            looked("groups that became others", 1);
            group = into;
        }
        group
    }

    /// Number of groups there have been.
    pub(super) fn count(&self) -> usize {
        self.groups.len()
    }

    pub(super) fn is_alive(&self, group: GroupId) -> bool {
        self.groups[group].merged_into.is_none()
    }

    /// Groups that read a value, once for each member that does.
    pub(super) fn readers(&self, id: NodeId) -> impl Iterator<Item = GroupId> {
        self.loads[id.index()].iter().map(|member| self.group_of(*member))
    }

    /// Members that load a value.
    pub(super) fn loads(&self, id: NodeId) -> &[MemberId] {
        &self.loads[id.index()]
    }

    /// Groups that store a value.
    pub(super) fn writers(&self, id: NodeId) -> &[GroupId] {
        &self.writers[id.index()]
    }

    pub(crate) fn sizes(&self, id: NodeId) -> Vec<u64> {
        self.graph.shape(id).sizes()
    }

    /// From a stored value to the space of the group that stores it.
    pub(crate) fn store_chain(&self, store: &Store) -> Chain {
        store.region.iter().chain(&self.members[store.member].chain).cloned().collect()
    }

    /// The node whose value a group stores: of a concatenation the part.
    pub(crate) fn stored(&self, store: &Store) -> NodeId {
        let member = &self.members[store.member];
        match (member.what, &self.graph.node(member.node).op) {
            (What::Copy(part), Op::Concat { .. } | Op::Pad { .. }) => {
                base(self.graph, self.graph.node(member.node).inputs[part]).0
            }
            (What::Node, Op::Attention(_)) => member.node,
            _ => store.target,
        }
    }

    /// A defect of scheduling, at a node.
    pub(crate) fn fault(&self, id: NodeId, what: &str) -> Diagnostic {
        let node = self.graph.node(id);
        let path = &self.graph.origin(id).path;
        Diagnostic::error(format!("internal: {what}: %{}, `{}` of `{path}`", id.0, node.op.name()))
    }

    /// The uses of a node that is to be placed now.
    pub(super) fn take_uses(&mut self, id: NodeId) -> Vec<Use> {
        let uses = std::mem::take(&mut self.uses[id.index()]);
        self.readers = uses.iter().map(|(member, _)| *member).collect();
        uses
    }

    /// Whether a group with these values beside its own, and without one, has no more operands and members than it may.
    pub(super) fn admits(&self, group: GroupId, more: &[NodeId], without: Option<NodeId>) -> Result<(), Refusal> {
        let group = &self.groups[group];
        let mut new: SmallVec<[NodeId; 4]> = SmallVec::new();
        for id in more {
            if !group.operands.contains(id) && !new.contains(id) {
                new.push(*id);
            }
        }
        let gone = without.is_some_and(|id| group.operands.contains(&id) && !more.contains(&id));
        self.room(group.members.len() + 1, group.operands.len() + new.len() - usize::from(gone))
    }

    /// Whether a group has room for a product and its two factors.
    pub(super) fn admits_factors(&self, group: GroupId) -> Result<(), Refusal> {
        let group = &self.groups[group];
        self.room(group.members.len(), group.operands.len() + 2)
    }

    fn room(&self, members: usize, operands: usize) -> Result<(), Refusal> {
        match () {
            () if members > self.fusion.most_members as usize => Err(Refusal::Members),
            () if operands > self.max_operands => Err(Refusal::Operands(self.max_operands)),
            () => Ok(()),
        }
    }

    pub(super) fn new_group(&mut self, kind: Kind<'g>, space: Space) -> GroupId {
        self.groups.push(Group::new(kind, space));
        self.groups.len() - 1
    }

    /// Adds a member with the inputs found for it in its group as it is.
    pub(super) fn add(&mut self, member: Member, inputs: Inputs) -> MemberId {
        let Member { node, group, row, height, .. } = member;
        let id = self.push(member);
        self.groups[group].space.refine(inputs.cuts);
        let memory = self.reads_memory(node);
        let reduces = matches!(self.graph.node(node).op, Op::Reduce { .. });
        for (operand, Found { value, chain }) in inputs.found.into_iter().enumerate() {
            let input = if self.facts[value.index()].trivial && !memory {
                let row = row && !reduces;
                Input::Member(self.push(Member { row, chain, height, ..Member::new(group, value, What::Node) }))
            } else {
                self.uses[value.index()].push((id, operand));
                self.groups[group].operands.insert(value);
                Input::Pending(value)
            };
            self.members[id].inputs.push(input);
        }
        id
    }

    fn push(&mut self, member: Member) -> MemberId {
        let id = self.members.len();
        self.groups[member.group].members.push(id);
        self.members.push(member);
        id
    }

    /// These uses read a member of their group.
    pub(super) fn wire(&mut self, uses: &[Use], member: MemberId) {
        for (reader, operand) in uses {
            self.members[*reader].inputs[*operand] = Input::Member(member);
        }
    }

    /// A new group for this node alone, as it is known by the member that the node will be.
    ///
    /// # Errors
    /// The node's operands cannot be read as they are, which only a defect of `prepare` can cause.
    pub(super) fn root(
        &mut self,
        kind: impl FnOnce(MemberId) -> Kind<'g>,
        node: NodeId,
        what: What,
        space: Space,
    ) -> Result<MemberId, Diagnostic> {
        let kind = kind(self.members.len());
        let group = self.new_group(kind, space);
        self.groups[group].late = self.late[node.index()];
        let inputs = self.inputs(&self.groups[group].space, node, what, &Chain::new());
        let inputs = inputs.map_err(|why| self.fault(node, &why.to_string()))?;
        let row = kind == Kind::Reduction;
        Ok(self.add(Member { row, ..Member::new(group, node, what) }, inputs))
    }

    /// A member stores what it computes, in all of a value or in a part of it.
    pub(super) fn store(&mut self, member: MemberId, target: NodeId, region: Option<ViewOp>) {
        let group = self.group_of(member);
        self.groups[group].stores.push(Store { member, target, region });
        self.groups[group].operands.insert(target);
        self.writers[target.index()].push(group);
        looked("readers of a value", self.loads[target.index()].len());
        let below = self.readers(target).filter(|reader| *reader != group).map(|reader| self.groups[reader].level);
        if let Some(below) = below.max() {
            self.relevel(group, below);
        }
    }

    /// These uses load the value.
    pub(super) fn load(&mut self, value: NodeId, uses: &[Use]) {
        let mut readers: SmallVec<[GroupId; 4]> = SmallVec::new();
        looked("readers of a value", uses.len() + self.writers[value.index()].len());
        for (member, operand) in uses {
            self.members[*member].inputs[*operand] = Input::Load(value);
            self.loads[value.index()].push(*member);
            readers.push(self.group_of(*member));
        }
        // The reader that runs first, and the first beside its group.
        let first = readers.iter().copied().max_by_key(|reader| self.groups[*reader].level);
        let others = readers.iter().copied().filter(|reader| Some(*reader) != first);
        let second = others.max_by_key(|reader| self.groups[*reader].level);
        for at in 0..self.writers[value.index()].len() {
            let writer = self.find(self.writers[value.index()][at]);
            if let Some(reader) = first.filter(|reader| *reader != writer).or(second) {
                self.relevel(writer, self.groups[reader].level);
            }
        }
    }

    /// A group no longer has an operand that it computes itself.
    pub(super) fn drop_operand(&mut self, group: GroupId, operand: NodeId) {
        self.groups[group].operands.remove(&operand);
    }

    /// A group reads a value after all.
    pub(super) fn keep_operand(&mut self, group: GroupId, operand: NodeId) {
        self.groups[group].operands.insert(operand);
    }

    /// Makes a pointwise group loop over rows: over the same points, or over more at each of them.
    ///
    /// # Errors
    /// [`Refusal::Space`] if these are other rows, [`Refusal::Kind`] if the group is neither pointwise nor a reduction over
    /// them already.
    pub(super) fn make_rows(&mut self, group: GroupId, space: Space) -> Result<(), Refusal> {
        let here = &mut self.groups[group];
        match here.kind {
            Kind::Reduction if here.space.is_like(&space) => return Ok(()),
            Kind::Map if here.space.kept() == space.kept() => {
                // What was computed at a point is computed once per row.
                here.members.iter().for_each(|member| self.members[*member].row = true);
            }
            Kind::Map if *here.space.kept() == space.sizes() => {}
            Kind::Map | Kind::Reduction => return Err(Refusal::Space),
            _ => return Err(Refusal::Kind),
        }
        here.kind = Kind::Reduction;
        here.space = space;
        Ok(())
    }

    /// Makes a pointwise group, perhaps of no members, the epilogue of a product over this space, to which `back` leads from
    /// the group's own; the member that is the product.
    ///
    /// # Errors
    /// The product's operands cannot be read as they are.
    pub(super) fn add_product(
        &mut self,
        group: GroupId,
        node: NodeId,
        dot: &'g Dot,
        space: Space,
        back: &Chain,
    ) -> Result<MemberId, Refusal> {
        if self.groups[group].kind != Kind::Map {
            return Err(Refusal::Kind);
        }
        let inputs = self.inputs(&space, node, What::Node, &Chain::new())?;
        self.rebase(group, back);
        let chain = vec![ViewOp::Reshape(space.sizes())];
        self.groups[group].space = space;
        let product = self.add(Member { chain, ..Member::new(group, node, What::Node) }, inputs);
        self.groups[group].kind = Kind::Product(product, dot);
        Ok(product)
    }

    /// Members are computed at the points of another space, to which `back` leads.
    fn rebase(&mut self, group: GroupId, back: &Chain) {
        for member in &self.groups[group].members {
            self.members[*member].chain.extend(back.iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests;

//! Groups: what becomes one kernel.
//!
//! A [`Group`] is a loop over a domain (`kept` rows, each over `reduced` points) with [`Member`]s: nodes of the graph as
//! they are computed at a point, or once per row, of that domain. One node may be a member of several groups (computed
//! again) or several times of one (under different views). What other groups read is stored once, by one group.
//!
//! Invariants:
//! - A member's inputs are members of the same group or loads of stored values; while groups are being made, they may be
//!   pending: the input node has not been placed yet. Nodes are placed from last to first, so that all readers of a node
//!   are placed before it.
//! - The edges from a value's writers to its readers never form a cycle: every decision to store a value in an existing
//!   group asks [`Groups::reaches`] first.
//! - Every access of a group is affine over the domain refined by the group's cuts.
//! - A group never has more operands than the target allows.

use std::collections::BTreeSet;

use alip_plan::{Fusion, Rates, Target};
use smallvec::{SmallVec, smallvec};

use super::attention::CallKey;
use super::facts::{Facts, base, facts};
use super::layout::{Chain, Cuts, Layout, ViewOp};
use super::reads::{Found, Inputs};
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId};
use crate::launch::Neighbours;
use crate::ops::Op;

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

/// A node as computed in a group.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) what: What,
    pub(crate) group: GroupId,
    /// Once per row rather than at every point.
    pub(crate) row: bool,
    /// From the node's own shape to the domain: `kept` for a row, else `kept` and `reduced`.
    pub(crate) chain: Chain,
    pub(crate) inputs: SmallVec<[Input; 3]>,
    /// Number of reductions that follow it within the group.
    pub(crate) height: u32,
}

/// A value that a group writes.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) member: MemberId,
    /// The stored value.
    pub(crate) target: NodeId,
    /// The part of the target that the member's shape is; all of it if absent.
    pub(crate) region: Option<ViewOp>,
}

/// Archetype of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Map,
    Reduction,
    /// The member is the product; `kept` is `[batch.., m, n]`.
    Product(MemberId),
    Conv2d,
    ScatterAdd,
    /// Every member is a result of one call.
    Attention,
}

impl Kind {
    /// As schedules and explanations show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Map => "map",
            Kind::Reduction => "reduction",
            Kind::Product(_) => "product",
            Kind::Conv2d => "conv2d",
            Kind::ScatterAdd => "scatter_add",
            Kind::Attention => "attention",
        }
    }
}

/// What becomes one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) kind: Kind,
    pub(crate) kept: Vec<u64>,
    pub(crate) reduced: Vec<u64>,
    pub(crate) cuts: Cuts,
    pub(crate) members: Vec<MemberId>,
    pub(crate) stores: Vec<Store>,
    /// Values that are stored, loaded or pending.
    pub(crate) operands: BTreeSet<NodeId>,
    /// Groups that must run later although they read nothing from this one.
    pub(crate) before: Vec<GroupId>,
    /// The other ends of `before`.
    pub(crate) after: Vec<GroupId>,
    /// Longest way to a group without readers; falls along every edge.
    pub(crate) level: u32,
    /// Set when merged into another group.
    pub(crate) merged_into: Option<GroupId>,
    /// Computes again what has been computed before: it runs late, and must not draw in what is needed early.
    pub(crate) late: bool,
}

/// A node seen from one place of a group.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) group: GroupId,
    pub(crate) row: bool,
    pub(crate) chain: Chain,
    pub(crate) layout: Layout,
    pub(crate) uses: Vec<(MemberId, usize)>,
    pub(crate) height: u32,
    /// The group must first become a reduction whose rows start at this dimension.
    pub(crate) split: Option<usize>,
}

/// All groups of a graph while they are being made.
pub(crate) struct Groups<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) facts: Vec<Facts>,
    pub(crate) members: Vec<Member>,
    pub(crate) groups: Vec<Group>,
    /// Operands waiting for a node to be placed.
    pub(crate) uses: Vec<Vec<(MemberId, usize)>>,
    /// Members that load a value.
    pub(crate) loads: Vec<Vec<MemberId>>,
    /// Groups that store a value; several only for concatenations and paddings.
    pub(crate) writers: Vec<SmallVec<[GroupId; 1]>>,
    /// Groups of attention by what their results share.
    pub(crate) calls: HashMap<CallKey, Vec<GroupId>>,
    /// Outputs and updates.
    pub(crate) required: Vec<bool>,
    /// Values that are computed again (`recompute`).
    pub(crate) late: Vec<bool>,
    /// Concatenations of state tensors that lie one after another, and these.
    pub(crate) adjoined: HashMap<NodeId, Vec<NodeId>>,
    pub(crate) max_operands: usize,
    pub(crate) fusion: Fusion,
    pub(crate) rates: Rates,
    pub(crate) fuse: bool,
    /// The members that read the node which is being placed.
    pub(crate) readers: Vec<MemberId>,
    visited: Vec<u32>,
    visit: u32,
}

impl<'g> Groups<'g> {
    pub(crate) fn new(graph: &'g Graph, target: &Target, fuse: bool) -> Groups<'g> {
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
    pub(crate) fn adjoin(&mut self, neighbours: &Neighbours) {
        let all = self.graph.ids().filter(|id| !self.required[id.index()]);
        self.adjoined = all.filter_map(|id| Some((id, neighbours.of(self.graph, id)?))).collect();
    }

    /// The group that a group has become part of.
    pub(crate) fn find(&self, mut group: GroupId) -> GroupId {
        while let Some(into) = self.groups[group].merged_into {
            group = into;
        }
        group
    }

    pub(crate) fn is_alive(&self, group: GroupId) -> bool {
        self.groups[group].merged_into.is_none()
    }

    pub(crate) fn sizes(&self, id: NodeId) -> Vec<u64> {
        self.graph.shape(id).sizes()
    }

    pub(crate) fn new_group(&mut self, kind: Kind, kept: Vec<u64>, reduced: Vec<u64>) -> GroupId {
        let sizes = [kept.as_slice(), &reduced].concat();
        self.groups.push(Group {
            kind,
            cuts: Cuts::new(&sizes),
            kept,
            reduced,
            members: Vec::new(),
            stores: Vec::new(),
            operands: BTreeSet::new(),
            before: Vec::new(),
            after: Vec::new(),
            level: 0,
            merged_into: None,
            late: false,
        });
        self.groups.len() - 1
    }

    /// From a stored value to the domain of the group that stores it.
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

    /// Adds a member with the inputs found for it.
    #[expect(clippy::too_many_arguments, reason = "the fields of a member; a struct would only repeat them")]
    pub(crate) fn add_member(
        &mut self,
        group: GroupId,
        node: NodeId,
        what: What,
        row: bool,
        chain: Chain,
        height: u32,
        inputs: Inputs,
    ) -> MemberId {
        let id = self.members.len();
        self.members.push(Member { node, what, group, row, chain, inputs: SmallVec::new(), height });
        self.groups[group].members.push(id);
        self.groups[group].cuts = inputs.cuts;
        let whole = self.whole_operands(node);
        let reduces = matches!(self.graph.node(node).op, Op::Reduce { .. });
        for (operand, Found { value, chain }) in inputs.found.into_iter().enumerate() {
            let input = if self.facts[value.index()].trivial && !whole {
                let none = Inputs { found: vec![], cuts: self.groups[group].cuts.clone(), operands: smallvec![] };
                let row = row && !reduces;
                Input::Member(self.add_member(group, value, What::Node, row, chain, height, none))
            } else {
                self.uses[value.index()].push((id, operand));
                self.groups[group].operands.insert(value);
                Input::Pending(value)
            };
            self.members[id].inputs.push(input);
        }
        id
    }

    /// A new group that stores this node and nothing else so far.
    pub(crate) fn root(&mut self, kind: Kind, node: NodeId, what: What, kept: Vec<u64>, reduced: Vec<u64>) -> MemberId {
        let row = kind == Kind::Reduction;
        let group = self.new_group(kind, kept, reduced);
        self.groups[group].late = self.late[node.index()];
        let inputs = self.inputs(&self.groups[group], node, what, &Chain::new());
        let inputs = inputs.expect("on its own domain a node reads its operands as they are");
        self.add_member(group, node, what, row, Chain::new(), 0, inputs)
    }

    pub(crate) fn store(&mut self, member: MemberId, target: NodeId, region: Option<ViewOp>) {
        let group = self.find(self.members[member].group);
        self.groups[group].stores.push(Store { member, target, region });
        self.groups[group].operands.insert(target);
        self.writers[target.index()].push(group);
        for reader in self.loads[target.index()].clone() {
            let reader = self.find(self.members[reader].group);
            if reader != group {
                self.edge(group, reader);
            }
        }
    }

    /// These uses load the value.
    pub(crate) fn load(&mut self, value: NodeId, uses: &[(MemberId, usize)]) {
        for (member, operand) in uses {
            self.members[*member].inputs[*operand] = Input::Load(value);
            self.loads[value.index()].push(*member);
            let reader = self.find(self.members[*member].group);
            for writer in self.writers[value.index()].clone() {
                let writer = self.find(writer);
                if writer != reader {
                    self.edge(writer, reader);
                }
            }
        }
    }

    /// Must `to` run after `from`?
    pub(crate) fn reaches(&mut self, from: GroupId, to: GroupId) -> bool {
        self.visit += 1;
        self.visited.resize(self.groups.len(), 0);
        let level = self.groups[to].level;
        let mut stack = vec![from];
        while let Some(group) = stack.pop() {
            // Levels fall along every edge, so that most searches end where they begin.
            if self.groups[group].level <= level || self.visited[group] == self.visit {
                continue;
            }
            self.visited[group] = self.visit;
            let here = &self.groups[group];
            let readers = here.stores.iter().flat_map(|store| self.loads[store.target.index()].iter());
            let next = readers.map(|member| self.members[*member].group).chain(here.before.iter().copied());
            for next in next.map(|group| self.find(group)) {
                if next == to && group != to {
                    return true;
                }
                stack.push(next);
            }
        }
        false
    }

    /// Notes that `to` runs after `from`: its level must be lower.
    fn edge(&mut self, from: GroupId, to: GroupId) {
        self.relevel(from, self.groups[to].level);
    }

    /// Lifts a group, and whatever must run before it, above a level.
    pub(super) fn relevel(&mut self, group: GroupId, below: u32) {
        let mut stack = vec![(group, below)];
        while let Some((group, below)) = stack.pop() {
            if self.groups[group].level > below {
                continue;
            }
            self.groups[group].level = below + 1;
            let members = self.groups[group].members.iter().flat_map(|member| self.members[*member].inputs.iter());
            let loaded = members.filter_map(|input| if let Input::Load(value) = input { Some(*value) } else { None });
            let writers = loaded.flat_map(|value| self.writers[value.index()].iter().copied());
            let before: Vec<GroupId> = writers.chain(self.groups[group].after.iter().copied()).collect();
            stack.extend(before.into_iter().map(|writer| (self.find(writer), below + 1)).filter(|(w, _)| *w != group));
        }
    }

    /// Makes one group run before another.
    pub(crate) fn order(&mut self, first: GroupId, then: GroupId) {
        self.groups[first].before.push(then);
        self.groups[then].after.push(first);
        self.edge(first, then);
    }

    /// Does it store a part of a concatenation that is dense, since it is along the outermost dimension?
    fn is_outer_part(&self, store: &Store) -> bool {
        match &self.graph.node(store.target).op {
            Op::Concat { axis } => {
                store.region.is_some() && (0..*axis).all(|dim| self.graph.shape(store.target).size(dim) == 1)
            }
            _ => false,
        }
    }

    /// Makes one group of two that loop over the same domain and do not depend on each other.
    pub(crate) fn merge(&mut self, a: GroupId, b: GroupId) -> bool {
        let (x, y) = (&self.groups[a], &self.groups[b]);
        let alike = x.kind == y.kind && x.late == y.late && matches!(x.kind, Kind::Map | Kind::Reduction);
        let mut cuts = x.cuts.clone();
        // A kernel stores an operand through one view, or through several that are apart in memory.
        let apart = |a: &Store, b: &Store| {
            a.target != b.target || self.is_outer_part(a) && self.is_outer_part(b) && a.region != b.region
        };
        let twice = x.stores.iter().any(|store| y.stores.iter().any(|other| !apart(store, other)));
        let many = x.members.len() + y.members.len() > self.fusion.most_members as usize;
        if !alike || twice || many || x.kept != y.kept || x.reduced != y.reduced || !cuts.join(&y.cuts) {
            return false;
        }
        if x.operands.union(&y.operands).count() > self.max_operands || self.reaches(a, b) || self.reaches(b, a) {
            return false;
        }
        self.take_in(a, b, cuts);
        true
    }

    /// Moves all that a group has to another one; neither reads what the other stores.
    pub(crate) fn take_in(&mut self, a: GroupId, b: GroupId, cuts: Cuts) {
        let remains = Group { merged_into: Some(a), ..self.groups[a].clone() };
        let gone = std::mem::replace(&mut self.groups[b], remains);
        for member in &gone.members {
            self.members[*member].group = a;
        }
        let into = &mut self.groups[a];
        into.cuts = cuts;
        into.members.extend(gone.members);
        into.stores.extend(gone.stores);
        into.operands.extend(gone.operands);
        into.before.extend(gone.before);
        into.after.extend(gone.after);
        let level = std::mem::take(&mut into.level).max(gone.level);
        if level > 0 {
            self.relevel(a, level - 1);
        }
    }
}

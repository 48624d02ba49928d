//! Shared-weight batching: several applications of the same parameters become one.
//!
//! `f(w, a)` and `f(w, b)` are `f(w, [a b])` taken apart again when `f` works row by row along the batch. A model that reads
//! two texts per image runs its text tower once on twice as many rows: half the launches, products of twice the size, and
//! one gradient per parameter where there were two and a sum. The number of operations stays.
//!
//! *What is found.* Nodes are of one class when they have the same op and operands of the same classes; program inputs are
//! of one class when they have one type, and what does not depend on inputs (parameters, constants, positions) is only
//! like itself. Two members of a class thus compute the same function of different inputs. A class of products with a
//! parameter is a *seed*; each of its members is a lane, and what only lane `i` can reach of the inputs is private to lane `i`.
//! Nodes of one class, one in each lane, are a tuple. A tuple is stacked along the dimension to which the batch went when
//! every op on the way from the inputs is row-wise along it; what couples samples (a reduction over the batch, a product
//! that contracts or crosses it) is not stacked, and neither is what depends on it. Of the stacked tuples those stay on whose
//! results a product with a parameter depends, and those that only read such. Where the inputs of the lanes are computed in different
//! ways (two projections before one tower), no class spans the lanes at first: then the operands of products with the same
//! parameter are taken for inputs, if none of them depends on another.
//!
//! *Layout.* Lanes are joined on a new dimension behind the batch, and merged into it: row `n` of lane `i` of `k` is row
//! `n k + i`. A shard of the batch is then a shard of the stack.
//!
//! *What is weighed.* Joining and taking apart are copies. The rewrite is done when it saves more kernels (products,
//! reductions, lookups; what works point by point is fused into those) than it adds copies, and when at least one product
//! (not only a lookup) is shared.

use super::Changed;
use super::analysis::{along, fault, places};
use crate::diag::Diagnostics;
use crate::hash::{HashMap, HashSet};
use crate::ir::{Builder, Dim, Graph, NodeId, Shape, TensorType, commutes, eliminate_dead};
use crate::ops::{Op, OpError};

const NAME: &str = "batching";

/// More regions than this in one program are left as they are; each takes a pass over the graph.
const MAX_REGIONS: usize = 8;

/// More sets of operands than this are not tried as inputs of lanes.
const MAX_CUTS: usize = 8;

/// What lanes share is computed anew for all of them through this many ops, and joined with itself behind more.
const MAX_DEPTH: usize = 8;

pub(super) fn batching(graph: &Graph) -> Result<Option<Changed>, Diagnostics> {
    let mut current: Option<Graph> = None;
    let mut places = Vec::new();
    for _ in 0..MAX_REGIONS {
        let from = current.as_ref().unwrap_or(graph);
        let Some(region) = Facts::new(from).region() else { break };
        places.push(region.place(from));
        let stacked = Emitter::new(from, &region).run().map_err(|error| fault(graph, NAME, &error))?;
        current = Some(eliminate_dead(&stacked)?.graph);
    }
    Ok(current.map(|graph| Changed { graph, places }))
}

/// What a node is, up to the choice of inputs.
#[derive(PartialEq, Eq, Hash)]
enum Key<'g> {
    /// Does not depend on inputs.
    Same(NodeId),
    /// An input, by its type.
    Input(&'g TensorType),
    /// An operand that is taken for an input.
    Cut,
    Applied(&'g Op, Vec<usize>),
}

/// Nodes of one class, one per lane.
struct Tuple {
    members: Vec<NodeId>,
    /// The dimension along which they are stacked.
    axis: usize,
    /// Whether the members are the inputs of the lanes.
    source: bool,
}

/// Tuples that are to be stacked, operands before users.
struct Region {
    lanes: usize,
    tuples: Vec<Tuple>,
    /// By node.
    tuple_of: HashMap<NodeId, usize>,
    /// Products with a parameter among the tuples.
    shared: Vec<usize>,
}

struct Facts<'g> {
    graph: &'g Graph,
    /// By node: whether it depends on an input, on a state.
    varies: Vec<bool>,
    stateful: Vec<bool>,
}

impl<'g> Facts<'g> {
    fn new(graph: &'g Graph) -> Facts<'g> {
        let depends = |is: fn(&Op) -> bool| {
            let mut depends: Vec<bool> = Vec::with_capacity(graph.nodes().len());
            for node in graph.nodes() {
                depends.push(is(&node.op) || node.inputs.iter().any(|input| depends[input.index()]));
            }
            depends
        };
        let varies = depends(|op| matches!(op, Op::Input { .. }));
        let stateful = depends(|op| matches!(op, Op::State { .. }));
        Facts { graph, varies, stateful }
    }

    /// For a product or lookup with one operand that is a function of parameters alone: that operand, and the other.
    fn seed(&self, id: NodeId) -> Option<(NodeId, NodeId)> {
        let node = self.graph.node(id);
        if !matches!(node.op, Op::Dot(_) | Op::Conv2d(_) | Op::Gather { .. }) {
            return None;
        }
        let parameter = |id: NodeId| self.stateful[id.index()] && !self.varies[id.index()];
        match node.inputs[..] {
            [x, w] if parameter(w) && self.varies[x.index()] => Some((w, x)),
            [w, x] if parameter(w) && self.varies[x.index()] => Some((w, x)),
            _ => None,
        }
    }

    fn region(&self) -> Option<Region> {
        let cuts = || self.cuts().into_iter().take(MAX_CUTS).map(|operands| operands.into_iter().collect());
        std::iter::once(HashSet::default())
            .chain(std::iter::once_with(cuts).flatten())
            .find_map(|cut| self.region_from(&cut))
    }

    /// Operands of products with the same parameter, first in the graph: none depends on another.
    fn cuts(&self) -> Vec<Vec<NodeId>> {
        let mut order = Vec::new();
        let mut found: HashMap<(&Op, NodeId, &TensorType), Vec<NodeId>> = HashMap::default();
        for id in self.graph.ids() {
            let Some((w, x)) = self.seed(id) else { continue };
            let key = (&self.graph.node(id).op, w, self.graph.ty(x));
            let operands = found.entry(key).or_default();
            if operands.is_empty() {
                order.push(key);
            }
            if !operands.contains(&x) {
                operands.push(x);
            }
        }
        let sets = order.into_iter().filter_map(|key| found.remove(&key)).filter(|operands| operands.len() >= 2);
        sets.map(|operands| self.first_of(&operands)).filter(|operands| operands.len() >= 2).collect()
    }

    /// Those nodes that depend on none of the others.
    fn first_of(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let mut reached = vec![false; self.graph.nodes().len()];
        let mut first = Vec::new();
        for (id, node) in self.graph.ids().zip(self.graph.nodes()) {
            let depends = node.inputs.iter().any(|input| reached[input.index()]);
            let wanted = nodes.contains(&id);
            if wanted && !depends {
                first.push(id);
            }
            reached[id.index()] = depends || wanted;
        }
        first
    }

    /// The first region worth stacking, with these operands taken for inputs.
    fn region_from(&self, cut: &HashSet<NodeId>) -> Option<Region> {
        let classes = self.classes(cut);
        let mut members: HashMap<usize, Vec<NodeId>> = HashMap::default();
        let mut order = Vec::new();
        for id in self.graph.ids().filter(|id| self.seed(*id).is_some()) {
            let class = members.entry(classes[id.index()]).or_default();
            if class.is_empty() {
                order.push(classes[id.index()]);
            }
            class.push(id);
        }
        let mut tried: HashSet<Vec<Option<usize>>> = HashSet::default();
        for seeds in order.iter().map(|class| &members[class]).filter(|seeds| seeds.len() >= 2) {
            let Some(lanes) = self.lanes(seeds, cut) else { continue };
            // Seeds further up a tower have the lanes of its first.
            if !tried.insert(lanes.clone()) {
                continue;
            }
            if let Some(region) = self.stackable(seeds.len(), &lanes, &classes, cut) {
                return Some(region);
            }
        }
        None
    }

    /// The class of each node.
    fn classes(&self, cut: &HashSet<NodeId>) -> Vec<usize> {
        let mut known: HashMap<Key<'g>, usize> = HashMap::default();
        let mut classes: Vec<usize> = Vec::with_capacity(self.graph.nodes().len());
        for (id, node) in self.graph.ids().zip(self.graph.nodes()) {
            let key = match &node.op {
                _ if cut.contains(&id) => Key::Cut,
                _ if !self.varies[id.index()] => Key::Same(id),
                Op::Input { ty, .. } => Key::Input(ty),
                op => {
                    let mut operands: Vec<usize> = node.inputs.iter().map(|input| classes[input.index()]).collect();
                    if is_commutative(op) {
                        operands.sort_unstable();
                    }
                    Key::Applied(op, operands)
                }
            };
            let next = known.len();
            classes.push(*known.entry(key).or_insert(next));
        }
        classes
    }

    fn is_source(&self, id: NodeId, cut: &HashSet<NodeId>) -> bool {
        if cut.is_empty() { matches!(self.graph.node(id).op, Op::Input { .. }) } else { cut.contains(&id) }
    }

    /// The lane of each node that depends on private inputs of exactly one seed; `None` when a seed has none.
    fn lanes(&self, seeds: &[NodeId], cut: &HashSet<NodeId>) -> Option<Vec<Option<usize>>> {
        let mut reached_by: HashMap<NodeId, Option<usize>> = HashMap::default();
        for (lane, seed) in seeds.iter().enumerate() {
            for source in self.sources(*seed, cut) {
                // A second lane makes the input common to both.
                reached_by.entry(source).and_modify(|lane| *lane = None).or_insert(Some(lane));
            }
        }
        if (0..seeds.len()).any(|lane| !reached_by.values().any(|of| *of == Some(lane))) {
            return None;
        }
        #[derive(Clone, Copy, PartialEq)]
        enum Lane {
            None,
            One(usize),
            Mixed,
        }
        let mut lanes: Vec<Lane> = Vec::with_capacity(self.graph.nodes().len());
        for (id, node) in self.graph.ids().zip(self.graph.nodes()) {
            let own = match reached_by.get(&id) {
                Some(Some(lane)) => Lane::One(*lane),
                _ => Lane::None,
            };
            let operands: &[NodeId] = if self.is_source(id, cut) { &[] } else { &node.inputs };
            lanes.push(operands.iter().map(|input| lanes[input.index()]).fold(own, |a, b| match (a, b) {
                (Lane::None, other) | (other, Lane::None) => other,
                (a, b) if a == b => a,
                _ => Lane::Mixed,
            }));
        }
        let one = |lane: Lane| if let Lane::One(lane) = lane { Some(lane) } else { None };
        Some(lanes.into_iter().map(one).collect())
    }

    /// Inputs that a node depends on.
    fn sources(&self, id: NodeId, cut: &HashSet<NodeId>) -> Vec<NodeId> {
        let (mut seen, mut open, mut found) = (HashSet::from_iter([id]), vec![id], Vec::new());
        while let Some(id) = open.pop() {
            if self.is_source(id, cut) {
                found.push(id);
                continue;
            }
            let inputs = self.graph.node(id).inputs.iter().filter(|input| self.varies[input.index()]);
            open.extend(inputs.filter(|input| seen.insert(**input)));
        }
        found
    }

    /// The tuples that can be stacked and are worth it.
    fn stackable(
        &self,
        lanes: usize,
        lane_of: &[Option<usize>],
        classes: &[usize],
        cut: &HashSet<NodeId>,
    ) -> Option<Region> {
        let mut by_class: HashMap<usize, Vec<Vec<NodeId>>> = HashMap::default();
        let mut order: Vec<(NodeId, usize)> = Vec::new();
        for id in self.graph.ids() {
            let Some(lane) = lane_of[id.index()] else { continue };
            let class = by_class.entry(classes[id.index()]).or_insert_with(|| vec![Vec::new(); lanes]);
            class[lane].push(id);
            if class.iter().all(|members| members.len() == 1) {
                order.push((id, classes[id.index()]));
            }
        }
        let mut region = Region { lanes, tuples: Vec::new(), tuple_of: HashMap::default(), shared: Vec::new() };
        // In the order of their last members, so that operands come before users in every lane.
        for (_, class) in order {
            let members: Vec<NodeId> = by_class[&class].iter().flatten().copied().collect();
            if members.len() != lanes {
                continue;
            }
            let source = self.is_source(members[0], cut);
            let axis = match source {
                true => (self.graph.shape(members[0]).rank() > 0).then_some(0),
                false => self.stacked_axis(&region, &members, classes),
            };
            let Some(axis) = axis else { continue };
            let index = region.tuples.len();
            region.tuple_of.extend(members.iter().map(|id| (*id, index)));
            if self.seed(members[0]).is_some() && !source {
                region.shared.push(index);
            }
            region.tuples.push(Tuple { members, axis, source });
        }
        self.trim(&mut region);
        self.is_worth_it(&region).then_some(region)
    }

    /// The dimension along which a tuple is stacked when its operands are.
    fn stacked_axis(&self, region: &Region, members: &[NodeId], classes: &[usize]) -> Option<usize> {
        let node = self.graph.node(members[0]);
        // Positions of the operands of each member, in an order that all members share.
        let ordered = |id: &NodeId| {
            let inputs = &self.graph.node(*id).inputs;
            let mut order: Vec<usize> = (0..inputs.len()).collect();
            if is_commutative(&node.op) {
                order.sort_by_key(|position| (classes[inputs[*position].index()], *position));
            }
            order.into_iter().map(|position| (position, inputs[position])).collect::<Vec<_>>()
        };
        let inputs: Vec<Vec<(usize, NodeId)>> = members.iter().map(ordered).collect();
        let mut operands = vec![None; node.inputs.len()];
        for (nth, (position, first)) in inputs[0].iter().enumerate() {
            let lanes = || inputs.iter().map(|operands| operands[nth].1);
            operands[*position] = match region.tuple_of.get(first).map(|tuple| &region.tuples[*tuple]) {
                Some(tuple) if lanes().eq(tuple.members.iter().copied()) => Some(tuple.axis),
                // The same in all lanes.
                None if lanes().all(|input| input == *first) => None,
                _ => return None,
            };
        }
        let runs_along = |axis: &usize| {
            along(self.graph, members[0], *axis).is_some_and(|along| {
                along.iter().zip(&operands).all(|(along, stacked)| stacked.is_none_or(|axis| *along == Some(axis)))
            })
        };
        (0..node.ty.shape.rank()).find(runs_along)
    }

    /// Keeps what products with parameters need, and what reads nothing but that.
    fn trim(&self, region: &mut Region) {
        let mut keep = vec![false; region.tuples.len()];
        region.shared.iter().for_each(|tuple| keep[*tuple] = true);
        let operands = |region: &Region, tuple: usize| -> Vec<Option<usize>> {
            let member = region.tuples[tuple].members[0];
            let inputs = self.graph.node(member).inputs.iter().filter(|input| self.varies[input.index()]);
            inputs.map(|input| region.tuple_of.get(input).copied()).collect()
        };
        for tuple in (0..keep.len()).rev().filter(|tuple| !region.tuples[*tuple].source) {
            if keep[tuple] {
                operands(region, tuple).into_iter().flatten().for_each(|operand| keep[operand] = true);
            }
        }
        for tuple in 0..keep.len() {
            let reads = operands(region, tuple);
            let stacked = |operand: &Option<usize>| operand.is_some_and(|o| keep[o] && !region.tuples[o].source);
            keep[tuple] |= !region.tuples[tuple].source && !reads.is_empty() && reads.iter().all(stacked);
        }
        // A view at the end is had without a copy in each lane.
        let mut read = vec![false; keep.len()];
        for tuple in (0..keep.len()).rev() {
            keep[tuple] &= read[tuple] || !self.graph.node(region.tuples[tuple].members[0]).op.is_view();
            if keep[tuple] {
                operands(region, tuple).into_iter().flatten().for_each(|operand| read[operand] = true);
            }
        }
        let mut moved = HashMap::default();
        let tuples = std::mem::take(&mut region.tuples).into_iter().enumerate().filter(|(old, _)| keep[*old]);
        for (old, tuple) in tuples {
            moved.insert(old, region.tuples.len());
            region.tuples.push(tuple);
        }
        region.tuple_of.retain(|_, tuple| moved.get(tuple).map(|new| *tuple = *new).is_some());
        region.shared.iter_mut().for_each(|tuple| *tuple = moved[tuple]);
    }

    /// Whether it saves more kernels than it takes copies, and shares a product.
    fn is_worth_it(&self, region: &Region) -> bool {
        let op = |tuple: &Tuple| &self.graph.node(tuple.members[0]).op;
        let computes = region.tuples.iter().filter(|tuple| !tuple.source && has_own_kernel(op(tuple))).count();
        let joins = region.tuples.iter().filter(|tuple| tuple.source).count();
        let product = |tuple: &usize| matches!(op(&region.tuples[*tuple]), Op::Dot(_) | Op::Conv2d(_));
        let mut left: HashSet<NodeId> = HashSet::default();
        for id in self.graph.ids().filter(|id| !region.tuple_of.contains_key(id)) {
            left.extend(self.graph.node(id).inputs.iter().filter(|input| region.is_computed(**input)));
        }
        let results = self.graph.outputs.values().chain(self.graph.updates.values());
        left.extend(results.filter(|id| region.is_computed(**id)));
        region.shared.iter().any(product) && computes * (region.lanes - 1) > joins + left.len()
    }
}

impl Region {
    fn is_computed(&self, id: NodeId) -> bool {
        self.tuple_of.get(&id).is_some_and(|tuple| !self.tuples[*tuple].source)
    }

    /// Paths of the lanes: `text, text#2`, or `text + head, text#2 + head#2`.
    fn place(&self, graph: &Graph) -> String {
        let path = |lane: usize, tuple: &usize| &*graph.origin(self.tuples[*tuple].members[lane]).path;
        let lane = |lane: usize| places(self.shared.iter().map(|tuple| path(lane, tuple))).join(" + ");
        (0..self.lanes).map(lane).collect::<Vec<_>>().join(", ")
    }
}

/// What is emitted at once: a node, or a tuple as one stacked node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Node(NodeId),
    Tuple(usize),
}

/// Writes the graph with a region stacked.
struct Emitter<'a> {
    graph: &'a Graph,
    region: &'a Region,
    new: Graph,
    /// By old node: the new node of the same value.
    plain: Vec<Option<NodeId>>,
    /// By tuple.
    stacked: Vec<Option<NodeId>>,
    /// Operands that all lanes share, repeated along a dimension.
    widened: HashMap<(NodeId, usize), NodeId>,
}

impl<'a> Emitter<'a> {
    fn new(graph: &'a Graph, region: &'a Region) -> Emitter<'a> {
        let plain = vec![None; graph.nodes().len()];
        let stacked = vec![None; region.tuples.len()];
        Emitter { graph, region, new: graph.successor(), plain, stacked, widened: HashMap::default() }
    }

    fn run(mut self) -> Result<Graph, OpError> {
        let graph = self.graph;
        // Named nodes; and inputs, which are part of a program's signature also where nothing reads them.
        let results = graph.outputs.values().chain(graph.updates.values());
        let roots: Vec<NodeId> = graph.inputs.values().chain(results).copied().collect();
        for root in roots {
            self.emit(root)?;
            self.value(root)?;
        }
        let plain = std::mem::take(&mut self.plain);
        self.new.take_names(graph, |id| plain[id.index()]);
        Ok(self.new)
    }

    fn unit(&self, id: NodeId) -> Unit {
        match self.region.tuple_of.get(&id) {
            Some(tuple) if !self.region.tuples[*tuple].source => Unit::Tuple(*tuple),
            _ => Unit::Node(id),
        }
    }

    fn is_done(&self, unit: Unit) -> bool {
        match unit {
            Unit::Node(id) => self.plain[id.index()].is_some(),
            Unit::Tuple(tuple) => self.stacked[tuple].is_some(),
        }
    }

    /// Emits what a node is, after all it depends on.
    fn emit(&mut self, id: NodeId) -> Result<(), OpError> {
        let mut open = vec![self.unit(id)];
        while let Some(unit) = open.last().copied() {
            let members = match &unit {
                Unit::Node(id) => std::slice::from_ref(id),
                Unit::Tuple(tuple) => &self.region.tuples[*tuple].members[..],
            };
            let operands = members.iter().flat_map(|id| &self.graph.node(*id).inputs);
            let before = open.len();
            open.extend(operands.map(|id| self.unit(*id)).filter(|unit| !self.is_done(*unit)));
            if open.len() > before {
                continue;
            }
            open.pop();
            match unit {
                _ if self.is_done(unit) => {}
                Unit::Node(id) => self.node(id)?,
                Unit::Tuple(tuple) => self.tuple(tuple)?,
            }
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId) -> Result<(), OpError> {
        let node = self.graph.node(id);
        let inputs = node.inputs.iter().map(|input| self.value(*input)).collect::<Result<_, _>>()?;
        self.plain[id.index()] = Some(self.new.copy(self.graph, id, inputs)?);
        Ok(())
    }

    fn tuple(&mut self, tuple: usize) -> Result<(), OpError> {
        let Tuple { members, axis, .. } = &self.region.tuples[tuple];
        let (axis, member) = (*axis, self.graph.node(members[0]));
        let Some(along) = along(self.graph, members[0], axis) else {
            return Err(OpError::new(format!("`{}` is not row-wise along {axis}", member.op.name())));
        };
        let mut inputs = Vec::new();
        for (input, along) in member.inputs.iter().zip(&along) {
            inputs.push(match (self.region.tuple_of.get(input), along) {
                (Some(tuple), _) => self.stack_of(*tuple)?,
                (None, Some(axis)) => self.widen(*input, *axis, 0)?,
                (None, None) => self.value(*input)?,
            });
        }
        let op = member.op.resized(axis, member.ty.shape.size(axis) * self.region.lanes as u64);
        self.stacked[tuple] = Some(self.new.add(op, &inputs, member.origin)?);
        Ok(())
    }

    /// A tuple as one tensor.
    fn stack_of(&mut self, tuple: usize) -> Result<NodeId, OpError> {
        if let Some(stacked) = self.stacked[tuple] {
            return Ok(stacked);
        }
        let Tuple { members, axis, .. } = &self.region.tuples[tuple];
        let lanes = members.iter().map(|id| self.value(*id)).collect::<Result<Vec<_>, _>>()?;
        let stacked = self.join(&lanes, *axis, self.graph.node(members[0]).origin)?;
        self.stacked[tuple] = Some(stacked);
        Ok(stacked)
    }

    /// Joins lanes on a new dimension behind `axis`, and merges it into that.
    fn join(&mut self, lanes: &[NodeId], axis: usize, origin: crate::ir::OriginId) -> Result<NodeId, OpError> {
        let mut b = Builder::new(&mut self.new, origin);
        let apart = b.graph.shape(lanes[0]).clone();
        let mut behind = apart.clone();
        behind.0.insert(axis + 1, Dim::from(1));
        let lanes = lanes.iter().map(|lane| b.reshape(*lane, behind.clone())).collect::<Result<Vec<_>, _>>()?;
        let joined = b.concat(&lanes, axis + 1)?;
        b.reshape(joined, with_size(&apart, axis, apart.size(axis) * lanes.len() as u64))
    }

    /// The value of an old node, taken out of its stack where it is in one.
    fn value(&mut self, id: NodeId) -> Result<NodeId, OpError> {
        if let Some(value) = self.plain[id.index()] {
            return Ok(value);
        }
        let Some(tuple) = self.region.tuple_of.get(&id) else {
            return Err(OpError::new(format!("%{} is used before it is there", id.0)));
        };
        let Tuple { members, axis, .. } = &self.region.tuples[*tuple];
        let lane = members.iter().position(|member| *member == id).unwrap_or_default() as u64;
        let stacked = self.stack_of(*tuple)?;
        let mut b = Builder::new(&mut self.new, self.graph.node(id).origin);
        let apart = self.graph.shape(id).clone();
        let mut behind = apart.clone();
        behind.0.insert(axis + 1, Dim::from(members.len() as u64));
        let split = b.reshape(stacked, behind)?;
        let own = b.slice_axis(split, axis + 1, lane, lane + 1)?;
        let value = b.reshape(own, apart)?;
        self.plain[id.index()] = Some(value);
        Ok(value)
    }

    /// What all lanes share, repeated for each along a dimension that it has in common with the batch.
    fn widen(&mut self, id: NodeId, axis: usize, depth: usize) -> Result<NodeId, OpError> {
        if let Some(wide) = self.widened.get(&(id, axis)) {
            return Ok(*wide);
        }
        let node = self.graph.node(id);
        let wide = match along(self.graph, id, axis) {
            Some(along) if depth < MAX_DEPTH => {
                let mut inputs = Vec::new();
                for (input, along) in node.inputs.iter().zip(&along) {
                    inputs.push(match along {
                        Some(axis) => self.widen(*input, *axis, depth + 1)?,
                        None => self.value(*input)?,
                    });
                }
                let op = node.op.resized(axis, node.ty.shape.size(axis) * self.region.lanes as u64);
                self.new.add(op, &inputs, node.origin)?
            }
            _ => {
                let value = self.value(id)?;
                self.join(&vec![value; self.region.lanes], axis, node.origin)?
            }
        };
        self.widened.insert((id, axis), wide);
        Ok(wide)
    }
}

/// Whether an op is computed by a kernel of its own, and not as part of another's.
fn has_own_kernel(op: &Op) -> bool {
    let reduces = matches!(op, Op::Reduce { .. } | Op::Softmax { .. } | Op::LogSumExp { .. } | Op::LayerNorm { .. });
    reduces || matches!(op, Op::Dot(_) | Op::Conv2d(_) | Op::Gather { .. } | Op::CrossEntropy | Op::Attention(_))
}

fn is_commutative(op: &Op) -> bool {
    matches!(op, Op::Pointwise(scalar) if commutes(*scalar))
}

fn with_size(shape: &Shape, axis: usize, size: u64) -> Shape {
    let mut shape = shape.clone();
    shape.0[axis] = Dim::from(size);
    shape
}

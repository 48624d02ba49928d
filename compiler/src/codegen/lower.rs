//! From groups to kernels: every group becomes one [`Loop`].
//!
//! Invariants: code is a pure function of the group, so that equal groups (the twelve layers of a tower) give equal kernels;
//! operands are numbered in the order in which the views first name them.

use std::collections::BTreeMap;

use alip_plan::check::register_type;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{
    Conv2d, ConvKind, Lanes, Loop, Map, Product, Reduce, Reduction, ScalarOp, ScatterAdd, Stage, View,
};
use alip_plan::{DType, Real};
use indexmap::IndexSet;

use super::attention::attention;
use super::domain::{Access, Block, Domain, Form, Picked, PreOp};
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId};
use crate::launch::Launch;
use crate::ops::{Op, rounds_to};
use crate::schedule::{Group, GroupId, Groups, Input, Kind, Layout, MemberId, Schedule, ViewOp, What, gather, product};

/// Lowers all groups in order.
pub(crate) fn lower(schedule: &Schedule<'_>) -> Vec<Launch> {
    schedule.order.iter().map(|group| launch(&schedule.groups, *group)).collect()
}

fn launch(groups: &Groups<'_>, id: GroupId) -> Launch {
    let group = &groups.groups[id];
    let mut lowering = Lowering::new(groups, group);
    let mut operands = IndexSet::new();
    let (kernel, flops) = match group.kind {
        Kind::Map => lowering.map(&mut operands),
        Kind::Reduction => lowering.reduction(&mut operands),
        Kind::Product(member) => lowering.product(member, &mut operands),
        Kind::Conv2d => conv2d(groups, group, &mut operands),
        Kind::ScatterAdd => scatter_add(groups, group, &mut operands),
        Kind::Attention => attention(groups, group, &mut operands),
    };
    let writes: IndexSet<NodeId> = group.stores.iter().map(|store| store.target).collect();
    let inputs = group.members.iter().flat_map(|member| groups.members[*member].inputs.iter());
    let loads = inputs.filter_map(|input| if let Input::Load(value) = input { Some(*value) } else { None });
    // A concatenation of neighbours is an operand; what is read is the neighbours.
    let (mut reads, mut spans) = (IndexSet::new(), BTreeMap::new());
    for value in loads {
        match groups.adjoined.get(&value) {
            Some(states) => {
                reads.extend(states.iter().copied());
                spans.insert(value, states.clone());
            }
            None => {
                reads.insert(value);
            }
        }
    }
    let last = writes.iter().max().copied();
    Launch {
        in_place: in_place(&kernel, &operands, &writes),
        kernel,
        operands: operands.into_iter().collect(),
        spans,
        reads: reads.into_iter().collect(),
        writes: writes.into_iter().collect(),
        origin: last.map_or(String::new(), |id| place_of(groups.graph, id)),
        flops,
    }
}

/// Node path of a value; at the top of the graph, where all paths are empty, its op.
fn place_of(graph: &Graph, id: NodeId) -> String {
    let path = &graph.origin(id).path;
    if path.is_empty() { graph.node(id).op.name().to_owned() } else { path.to_string() }
}

/// One group on its way to a loop.
struct Lowering<'a> {
    groups: &'a Groups<'a>,
    group: &'a Group,
    domain: Domain,
    /// Number of refined dimensions that are kept.
    kept: usize,
    /// Slots of row members.
    slots: HashMap<MemberId, u16>,
    times: HashMap<MemberId, i32>,
}

/// A stage before it is finished: once per row or at every point, its code, and the members it leaves in slots.
type RawStage = (bool, Block, Vec<(MemberId, u16)>);

/// Where code stands in a kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At a point of a map, of an epilogue, or of a row.
    Point,
    /// Once per row, after the points of this stage.
    Row(i32),
}

impl<'a> Lowering<'a> {
    fn new(groups: &'a Groups<'a>, group: &'a Group) -> Lowering<'a> {
        let parts = |dims: std::ops::Range<usize>| dims.flat_map(|dim| group.cuts.parts(dim)).collect::<Vec<u64>>();
        let kept = parts(0..group.kept.len());
        let reduced = parts(group.kept.len()..group.kept.len() + group.reduced.len());
        let domain =
            Domain { sizes: [kept.as_slice(), &reduced].concat(), segments: vec![kept.len()], ..Domain::default() };
        Lowering { groups, group, domain, kept: kept.len(), slots: HashMap::default(), times: HashMap::default() }
    }

    fn graph(&self) -> &'a Graph {
        self.groups.graph
    }

    fn form(&self, layout: &Layout) -> Form {
        Form { offset: layout.offset, strides: self.group.cuts.strides(layout) }
    }

    /// The layout that grouping has found readable.
    fn layout(&self, value: NodeId, chain: &[ViewOp]) -> Layout {
        self.groups.layout(value, chain).expect("grouping admits affine accesses only")
    }

    /// The same for what is read from memory even where it could be computed: a constant, a coordinate.
    fn stored_layout(&self, value: NodeId, chain: &[ViewOp]) -> Layout {
        Layout::through(&self.groups.sizes(value), chain).expect("grouping admits affine accesses only")
    }

    fn dtype(&self, id: NodeId) -> DType {
        register_type(self.graph().ty(id).dtype)
    }

    fn input(&mut self, block: &mut Block, place: Place, member: MemberId, operand: usize) -> u16 {
        match self.groups.members[member].inputs[operand] {
            Input::Member(input) => self.value(block, place, input),
            Input::Load(value) | Input::Pending(value) => {
                let layout = self.layout(value, &self.groups.chain_to(member, operand, value));
                let at = self.form(&layout);
                let view = self.domain.view(Access { value, dtype: self.graph().ty(value).dtype, at, gather: None });
                block.push(PreOp::Op(ScalarOp::Load(view)), self.dtype(value), &[])
            }
        }
    }

    /// What a member computes, emitted where the block does not have it yet.
    fn value(&mut self, block: &mut Block, place: Place, id: MemberId) -> u16 {
        if let Some(value) = block.members.get(&id) {
            return *value;
        }
        let value = self.emit(block, place, id);
        block.members.insert(id, value);
        value
    }

    /// Emits what a member computes, or where it has been left.
    fn emit(&mut self, block: &mut Block, place: Place, id: MemberId) -> u16 {
        let member = &self.groups.members[id];
        let node = self.graph().node(member.node);
        let dtype = self.dtype(member.node);
        let trivial = node.inputs.is_empty();
        let here = match place {
            Place::Point => !member.row || self.group.kind != Kind::Reduction,
            Place::Row(now) => self.time(id) == now && !matches!(node.op, Op::Reduce { .. }),
        };
        if !here && !trivial {
            let next = self.slots.len() as u16;
            let slot = *self.slots.entry(id).or_insert(next);
            return block.push(PreOp::Op(ScalarOp::Slot(slot)), dtype, &[]);
        }
        match (member.what, &node.op) {
            (What::Zero, _) => block.push(PreOp::Op(ScalarOp::Const(Real(0.0))), dtype, &[]),
            (What::Copy(_), _) => self.input(block, place, id, 0),
            (_, Op::Const { value, .. }) => block.push(PreOp::Op(ScalarOp::Const(*value)), dtype, &[]),
            (_, Op::Iota { .. }) => {
                let layout = self.layout(member.node, &member.chain);
                let form = self.domain.form(self.form(&layout));
                block.push(form, DType::I32, &[])
            }
            (_, Op::Random { stream, lane, .. }) => {
                let seed = self.input(block, place, id, 0);
                let step = self.input(block, place, id, 1);
                let index = if node.inputs.len() > 2 {
                    self.input(block, place, id, 2)
                } else {
                    let layout = self.layout(member.node, &member.chain);
                    let form = self.domain.form(self.form(&layout));
                    block.push(form, DType::I32, &[])
                };
                let uniform = ScalarOp::Uniform { stream: *stream, lane: *lane };
                block.push(PreOp::Op(uniform), DType::F32, &[seed, step, index])
            }
            (_, Op::Gather { batch }) => self.gather(block, id, *batch),
            (_, Op::Dot(_)) => block.push(PreOp::Op(ScalarOp::Product), DType::F32, &[]),
            (_, Op::Pointwise(op)) => {
                let mut args: Vec<u16> = (0..node.inputs.len()).map(|i| self.input(block, place, id, i)).collect();
                let epilogue = matches!(self.group.kind, Kind::Product(_));
                if epilogue && *op == ScalarOp::Sub && planted(Fault::EpilogueSubSwapped) {
                    args.swap(0, 1);
                }
                let first = if *op == ScalarOp::Select { 1 } else { 0 };
                let of = node.inputs.get(first).map_or(dtype, |input| self.dtype(*input));
                // Registers hold f32, in which a cast to fewer bits rounds.
                let op = &match rounds_to(*op) {
                    Some(_) if planted(Fault::RoundingSkipped) => return args[0],
                    Some(to) => ScalarOp::Cast(to),
                    None => *op,
                };
                let value = block.push(PreOp::Op(*op), of, &args);
                if epilogue
                    && matches!(op, ScalarOp::Tanh | ScalarOp::Exp | ScalarOp::Neg)
                    && planted(Fault::EpilogueTwice)
                {
                    return block.push(PreOp::Op(*op), of, &[value]);
                }
                value
            }
            (_, op) => unreachable!("{op:?} is never computed at a point"),
        }
    }

    fn gather(&mut self, block: &mut Block, id: MemberId, batch: usize) -> u16 {
        let member = &self.groups.members[id];
        let node = self.graph().node(member.node);
        let read = |operand: usize| match member.inputs[operand] {
            Input::Load(value) | Input::Pending(value) => {
                (value, self.stored_layout(value, &self.groups.views(node.inputs[operand], value)))
            }
            Input::Member(_) => unreachable!("a gather reads memory"),
        };
        let ((data, data_layout), (index, index_layout)) = (read(0), read(1));
        let rank = self.graph().shape(node.inputs[1]).rank();
        let gathered = gather(&data_layout, &index_layout, batch, rank, &member.chain)
            .expect("grouping admits affine gathers only");
        let picked =
            Picked { index, at: self.form(&gathered.index), stride: gathered.stride, limit: gathered.limit as i64 };
        let at = self.form(&gathered.data);
        let dtype = self.graph().ty(data).dtype;
        let view = self.domain.view(Access { value: data, dtype, at, gather: Some(picked) });
        block.push(PreOp::Op(ScalarOp::Load(view)), register_type(dtype), &[])
    }

    /// Emits the stores of a member.
    fn store(&mut self, block: &mut Block, place: Place, member: MemberId) {
        for store in self.group.stores.iter().filter(|store| store.member == member) {
            let value = self.value(block, place, member);
            let chain = self.groups.store_chain(store);
            let layout = Layout::through(&self.groups.sizes(store.target), &chain);
            let at = self.form(&layout.expect("grouping stores affine only"));
            let dtype = self.graph().ty(store.target).dtype;
            let view = self.domain.view(Access { value: store.target, dtype, at, gather: None });
            block.push(PreOp::Op(ScalarOp::Store(view)), register_type(dtype), &[value]);
        }
    }

    /// Members that are stored, in the order of their nodes.
    fn stored(&self) -> Vec<MemberId> {
        let mut stored: Vec<MemberId> = self.group.stores.iter().map(|store| store.member).collect();
        stored.sort_by_key(|member| (self.groups.members[*member].node, *member));
        stored.dedup();
        stored
    }

    fn map(&mut self, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
        let mut block = Block::default();
        for member in self.stored() {
            self.store(&mut block, Place::Point, member);
        }
        self.domain.simplify(self.domain.sizes.len());
        let points: u64 = self.domain.sizes.iter().product();
        let views = self.domain.views(operands);
        let code = self.domain.code(&block).0;
        (Loop::Map(Map { domain: self.domain.sizes.clone(), views, code }), points * block.flops())
    }

    /// The stage of a member: a point's own, or the one after whose points a row's value is known (-1: from the start).
    fn time(&mut self, id: MemberId) -> i32 {
        if let Some(time) = self.times.get(&id) {
            return *time;
        }
        let member = &self.groups.members[id];
        let reduces = matches!(self.graph().node(member.node).op, Op::Reduce { .. });
        let at_points = !member.row || reduces;
        let mut time = if at_points { 0 } else { -1 };
        for input in member.inputs.clone() {
            if let Input::Member(input) = input {
                let given = self.time(input);
                time = time.max(if at_points && self.groups.members[input].row { given + 1 } else { given });
            }
        }
        self.times.insert(id, time);
        time
    }

    fn reduction(&mut self, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
        let members = self.group.members.clone();
        let reduces: Vec<MemberId> = members
            .iter()
            .copied()
            .filter(|m| matches!(self.graph().node(self.groups.members[*m].node).op, Op::Reduce { .. }))
            .collect();
        let stored = self.stored();
        let last = reduces.iter().chain(&stored).map(|member| self.time(*member)).max().unwrap_or(0);
        // Backwards, so that every use of a slot is known before what sets it.
        let mut stages: Vec<RawStage> = Vec::new();
        for now in (-1..=last).rev() {
            let mut row = Block::default();
            for member in &stored {
                if self.groups.members[*member].row && self.time(*member) == now {
                    self.store(&mut row, Place::Row(now), *member);
                }
            }
            let mut set = Vec::new();
            for member in &members {
                if self.slots.contains_key(member) && !reduces.contains(member) && self.time(*member) == now {
                    let value = self.value(&mut row, Place::Row(now), *member);
                    set.push((*member, value));
                }
            }
            stages.push((true, row, set));
            if now < 0 {
                continue;
            }
            let mut points = Block::default();
            let mut reduced = Vec::new();
            for member in &reduces {
                if self.time(*member) == now {
                    let next = self.slots.len() as u16;
                    self.slots.entry(*member).or_insert(next);
                    let value = self.input(&mut points, Place::Point, *member, 0);
                    reduced.push((*member, value));
                }
            }
            for member in &stored {
                if !self.groups.members[*member].row && self.time(*member) == now {
                    self.store(&mut points, Place::Point, *member);
                }
            }
            stages.push((false, points, reduced));
        }
        stages.reverse();
        self.finish_reduction(stages, operands)
    }

    fn finish_reduction(&mut self, stages: Vec<RawStage>, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
        self.domain.simplify(self.domain.sizes.len());
        self.kept = self.domain.segments[0];
        let (kept, reduced) = self.domain.sizes.split_at(self.kept);
        let (rows, points): (u64, u64) = (kept.iter().product(), self.domain.sizes.iter().product());
        let mut flops = 0;
        let mut finished = Vec::new();
        for (is_row, block, results) in &stages {
            let (code, moved) = self.domain.code(block);
            let result = |(member, value): &(MemberId, u16)| (moved[*value as usize], self.slots[member], *member);
            if *is_row {
                flops += rows * block.flops();
                let slots = results.iter().map(result).map(|(value, slot, _)| (value, slot)).collect();
                if !block.is_empty() {
                    finished.push(Stage::Row { code, slots });
                }
            } else {
                flops += points * (block.flops() + results.len() as u64);
                let reduce = results.iter().map(result).map(|(value, slot, member)| {
                    let Op::Reduce { kind, .. } = self.graph().node(self.groups.members[member].node).op else {
                        unreachable!("only reductions are reduced")
                    };
                    Reduce { kind, value, slot }
                });
                if !block.is_empty() {
                    finished.push(Stage::Points { reduce: reduce.collect(), code });
                }
            }
        }
        let lanes = self.lanes();
        let reduction = Reduction {
            kept: kept.to_vec(),
            reduced: reduced.to_vec(),
            views: self.domain.views(operands),
            stages: finished,
            slots: self.slots.len() as u16,
            lanes,
        };
        (Loop::Reduction(reduction), flops)
    }

    /// Along the dimension in which the accesses that vary with both rows and points find neighbours in memory.
    fn lanes(&self) -> Lanes {
        let last = self.domain.sizes.len().checked_sub(1);
        let (Some(point), Some(row)) = (last.filter(|dim| *dim >= self.kept), self.kept.checked_sub(1)) else {
            return Lanes::Reduced;
        };
        let moves = |strides: &[i64]| strides.iter().any(|stride| *stride != 0);
        let all = self.domain.accesses.iter().map(|access| access.at.strides.as_slice());
        let full: Vec<&[i64]> =
            all.filter(|strides| moves(&strides[..self.kept]) && moves(&strides[self.kept..])).collect();
        let along = |dim: usize| full.iter().filter(|strides| strides[dim] == 1).count();
        if along(row) > along(point) { Lanes::Kept } else { Lanes::Reduced }
    }

    fn product(&mut self, id: MemberId, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
        let member = &self.groups.members[id];
        let Op::Dot(dot) = &self.graph().node(member.node).op else { unreachable!("a product group has a product") };
        let batch = dot.batch.len();
        let mut sides = Vec::new();
        for operand in 0..2 {
            let (Input::Load(value) | Input::Pending(value)) = member.inputs[operand] else {
                unreachable!("a product reads memory")
            };
            let layout = self.stored_layout(value, &self.groups.chain_to(id, operand, value));
            let side = product(&layout, batch, dot.contract.len()).expect("grouping admits such operands only");
            let over_batch = Layout { offset: side.offset, dims: side.batch.iter().cloned().collect() };
            sides.push((value, self.form(&over_batch), side));
        }
        let k = sides[0].2.contracted.size;
        let mut block = Block::default();
        for member in self.stored() {
            self.store(&mut block, Place::Point, member);
        }
        let (m, n) = (self.domain.sizes.len() - 2, self.domain.sizes.len() - 1);
        // While dimensions merge, the operands take part as accesses over batch, m and n.
        let stored = block.views().find(|(_, stored)| *stored).map(|(view, _)| view as usize);
        let count = self.domain.accesses.len();
        for (side, (value, form, operand)) in sides.iter().enumerate() {
            let mut at = form.clone();
            at.strides[if side == 0 { m } else { n }] = operand.free.stride;
            // A gather that never happens keeps these apart from accesses of the epilogue.
            let picked = Picked { index: *value, at: at.clone(), stride: side as i64, limit: -1 };
            self.domain.view(Access { value: *value, dtype: self.graph().ty(*value).dtype, at, gather: Some(picked) });
        }
        let swap = stored.is_some_and(|view| {
            let strides = &self.domain.accesses[view].at.strides;
            strides[n] != 1 && strides[m] == 1 && self.domain.sizes[n] > 1
        });
        if swap {
            self.domain.swap(m, n);
        }
        self.domain.simplify(m);
        let side = |domain: &mut Domain, operands: &mut IndexSet<NodeId>, index: usize| {
            let access = domain.accesses.get_index(count + index).cloned().expect("added above");
            let (_, _, operand) = &sides[index];
            let mut strides = access.at.strides;
            strides.truncate(strides.len() - 2);
            // Views over (batch, m, k) and (batch, k, n).
            let first = (index == 0) != swap;
            let (free, k) = (operand.free.stride, operand.contracted.stride);
            strides.extend(if first { [free, k] } else { [k, free] });
            let operand = operands.insert_full(access.value).0 as u16;
            View { operand, dtype: access.dtype, offset: access.at.offset, strides, gather: None }
        };
        let (x, y) = (side(&mut self.domain, operands, 0), side(&mut self.domain, operands, 1));
        let (a, b) = if swap { (y, x) } else { (x, y) };
        self.domain.accesses.truncate(count);
        let views = self.domain.views(operands);
        let code = self.domain.code(&block).0;
        let points: u64 = self.domain.sizes.iter().product();
        let mut sizes = self.domain.sizes.clone();
        let tail = sizes.split_off(sizes.len() - 2);
        let product = Product { batch: sizes, m: tail[0], n: tail[1], k, a, b, views, code };
        (Loop::Product(product), points * (2 * k + block.flops()))
    }
}

fn loaded(groups: &Groups<'_>, group: &Group) -> [NodeId; 2] {
    let member = &groups.members[group.members[0]];
    let value = |operand: usize| match member.inputs[operand] {
        Input::Load(value) | Input::Pending(value) => value,
        Input::Member(_) => unreachable!("whole operands are read from memory"),
    };
    [value(0), value(1)]
}

fn conv2d(groups: &Groups<'_>, group: &Group, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
    let node = groups.members[group.members[0]].node;
    let Op::Conv2d(conv) = &groups.graph.node(node).op else { unreachable!("a convolution group has a convolution") };
    operands.extend(loaded(groups, group));
    operands.insert(node);
    let inputs = &groups.graph.node(node).inputs;
    let shape = |id: NodeId| groups.sizes(id);
    let (image, weight, out) = match conv.kind {
        ConvKind::Forward => (shape(inputs[0]), shape(inputs[1]), shape(node)),
        ConvKind::ImageGrad => (shape(node), shape(inputs[1]), shape(inputs[0])),
        ConvKind::WeightGrad => (shape(inputs[0]), shape(node), shape(inputs[1])),
    };
    let kernel = Conv2d {
        kind: conv.kind,
        dtype: groups.graph.ty(inputs[0]).dtype,
        n: image[0],
        c: image[1],
        h: image[2],
        w: image[3],
        o: weight[0],
        kh: weight[2],
        kw: weight[3],
        stride: conv.stride,
        padding: conv.padding,
    };
    let flops = 2 * out.iter().product::<u64>() * weight[1..].iter().product::<u64>();
    (Loop::Conv2d(kernel), flops)
}

fn scatter_add(groups: &Groups<'_>, group: &Group, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
    let node = groups.members[group.members[0]].node;
    let Op::ScatterAdd { batch, rows } = groups.graph.node(node).op else {
        unreachable!("a scatter group has a scatter")
    };
    operands.extend(loaded(groups, group));
    operands.insert(node);
    let inputs = &groups.graph.node(node).inputs;
    let (index, updates) = (groups.sizes(inputs[0]), groups.sizes(inputs[1]));
    let kernel = ScatterAdd {
        batch: index[..batch].iter().product(),
        count: index[batch..].iter().product(),
        rows,
        inner: updates[index.len()..].iter().product(),
    };
    (Loop::ScatterAdd(kernel), updates.iter().product())
}

/// Pairs of a written and a read operand whose elements are read only through the view, and not after the stage, in which
/// they are written.
fn in_place(kernel: &Loop, operands: &IndexSet<NodeId>, writes: &IndexSet<NodeId>) -> Vec<(NodeId, NodeId)> {
    let (views, stages): (&[View], Vec<&alip_plan::kernel::Code>) = match kernel {
        Loop::Map(map) => (&map.views, vec![&map.code]),
        Loop::Product(product) => (&product.views, vec![&product.code]),
        Loop::Reduction(reduction) => {
            let code = |stage| match stage {
                &Stage::Points { ref code, .. } | &Stage::Row { ref code, .. } => code,
            };
            (&reduction.views, reduction.stages.iter().map(code).collect())
        }
        _ => return Vec::new(),
    };
    // Per view: where it is loaded last and stored first, as stage and position in the stage's code.
    let mut loads: Vec<Option<(usize, usize)>> = vec![None; views.len()];
    let mut stores = loads.clone();
    for (stage, code) in stages.iter().enumerate() {
        for (position, instr) in code.instrs.iter().enumerate() {
            let here = (stage, position);
            match instr.op {
                ScalarOp::Load(view) => loads[view as usize] = Some(here),
                ScalarOp::Store(view) => stores[view as usize] = stores[view as usize].or(Some(here)),
                _ => {}
            }
        }
    }
    let gathered = |operand: u16| {
        views
            .iter()
            .any(|view| view.gather.as_ref().is_some_and(|gather| gather.operand == operand || view.operand == operand))
    };
    let multiplied = |operand: u16| matches!(kernel, Loop::Product(product) if product.a.operand == operand || product.b.operand == operand);
    let mut pairs = Vec::new();
    for written in writes {
        let Some(write) = operands.get_index_of(written) else { continue };
        let mut stored = views.iter().zip(&stores).filter(|(view, _)| view.operand as usize == write);
        let (Some((view, Some(stored_at))), None) = (stored.next(), stored.next()) else { continue };
        for (read, value) in operands.iter().enumerate() {
            let operand = read as u16;
            if writes.contains(value) || gathered(operand) || multiplied(operand) {
                continue;
            }
            let fits = |(other, load): (&View, &Option<(usize, usize)>)| {
                other.operand != operand
                    || load.is_none_or(|load| load < *stored_at) && View { operand, ..view.clone() } == *other
            };
            if views.iter().zip(&loads).all(fits) {
                pairs.push((*written, *value));
            }
        }
    }
    pairs
}

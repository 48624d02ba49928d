//! From groups to kernels: every group becomes one [`Loop`].
//!
//! Invariants: code is a pure function of the group, so that equal groups (the twelve layers of a tower) give equal kernels;
//! operands are numbered in the order in which the views first name them.

use std::collections::BTreeMap;

use alip_plan::check::register_type;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Lanes, Loop, Map, Product, Reduce, Reduction, ScalarOp, Stage, View};
use alip_plan::{DType, Real};
use indexmap::IndexSet;

use super::attention::attention;
use super::dense::{conv2d, scatter_add};
use super::domain::{Access, Block, Domain, Form, Picked, PreOp};
use super::operands::Operands;
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId};
use crate::launch::Launch;
use crate::ops::{Dot, Op, rounds_to};
use crate::schedule::{
    Group, GroupId, Groups, Input, Kind, Layout, MemberId, ProductOperand, Schedule, Store, What, gather, looked,
    product,
};

/// Lowers all groups in order.
///
/// # Errors
/// A group that no kernel can be made of, which only a defect of grouping can cause.
pub(crate) fn lower(schedule: &Schedule<'_>) -> Result<Vec<Launch>, Diagnostics> {
    let launches = schedule.order.iter().map(|group| launch(&schedule.groups, *group));
    Ok(launches.collect::<Result<_, Diagnostic>>()?)
}

fn launch(groups: &Groups<'_>, id: GroupId) -> Result<Launch, Diagnostic> {
    let group = groups.group(id);
    let mut operands = Operands::default();
    let mut lowering = Lowering::new(groups, group);
    let (kernel, flops) = match group.kind() {
        Kind::Map => lowering.map(&mut operands)?,
        Kind::Reduction => lowering.reduction(&mut operands)?,
        Kind::Product(member, dot) => lowering.product(member, dot, &mut operands)?,
        Kind::Conv2d(member, conv) => conv2d(groups, group, member, conv, &mut operands)?,
        Kind::ScatterAdd(member, batch, rows) => scatter_add(groups, group, member, (batch, rows), &mut operands)?,
        Kind::Attention(op) => attention(groups, group, op, &mut operands)?,
    };
    let writes: IndexSet<NodeId> = group.stores().iter().map(|store| store.target).collect();
    let inputs = group.members().iter().flat_map(|member| groups.member(*member).inputs.iter());
    // A concatenation of neighbours is an operand; what is read is the neighbours.
    let (mut reads, mut spans) = (IndexSet::new(), BTreeMap::new());
    for value in inputs.filter_map(|input| input.loaded()) {
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
    // All gradients lie as one value, which is the training step's; its parts tell whose they are.
    let of_all = |store: &Store| &*groups.graph.origin(store.target).path == "train";
    let named = |store: &Store| if of_all(store) { groups.stored(store) } else { store.target };
    let last = group.stores().iter().map(named).max();
    Ok(Launch {
        in_place: in_place(&kernel, &operands, &writes),
        kernel,
        operands: operands.iter().collect(),
        spans,
        reads: reads.into_iter().collect(),
        writes: writes.into_iter().collect(),
        origin: last.map_or(String::new(), |id| place_of(groups.graph, id)),
        flops,
    })
}

/// Node path of a value; at the top of the graph, where all paths are empty, its op.
fn place_of(graph: &Graph, id: NodeId) -> String {
    let path = &graph.origin(id).path;
    if path.is_empty() { graph.node(id).op.name().to_owned() } else { path.to_string() }
}

/// One group on its way to a loop.
struct Lowering<'a, 'g> {
    groups: &'a Groups<'g>,
    group: &'a Group<'g>,
    domain: Domain,
    /// Number of refined dimensions that are kept.
    kept: usize,
    /// Slots of row members.
    slots: HashMap<MemberId, u16>,
    times: HashMap<MemberId, i32>,
}

/// A stage before it is finished; values are those of its block.
enum RawStage {
    Row { block: Block, set: Vec<(u16, u16)> },
    Points { block: Block, reduce: Vec<Reduce> },
}

/// A factor of a product: where it lies, and the number of the form by which batch and free dimension walk it.
struct Factor {
    value: NodeId,
    form: usize,
    operand: ProductOperand,
}

/// Where code stands in a kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At a point of a map, of an epilogue, or of a row.
    Point,
    /// Once per row, after the points of this stage.
    Row(i32),
}

impl<'a, 'g> Lowering<'a, 'g> {
    fn new(groups: &'a Groups<'g>, group: &'a Group<'g>) -> Lowering<'a, 'g> {
        let space = group.space();
        let parts = |dims: std::ops::Range<usize>| dims.flat_map(|dim| space.cuts().parts(dim)).collect::<Vec<u64>>();
        let dims = space.kept().len();
        let kept = parts(0..dims);
        let reduced = parts(dims..dims + space.reduced().len());
        let domain =
            Domain { sizes: [kept.as_slice(), &reduced].concat(), segments: vec![kept.len()], ..Domain::default() };
        Lowering { groups, group, domain, kept: kept.len(), slots: HashMap::default(), times: HashMap::default() }
    }

    fn graph(&self) -> &'g Graph {
        self.groups.graph
    }

    fn form(&self, layout: &Layout) -> Form {
        Form { offset: layout.offset, strides: self.group.space().cuts().strides(layout) }
    }

    /// Coordinates of the points at which a member is computed, as a number in the node's own shape.
    fn coordinate(&mut self, member: MemberId) -> Result<PreOp, Diagnostic> {
        let member = self.groups.member(member);
        let layout = self.groups.layout(member.node, &member.chain);
        let layout = layout.ok_or_else(|| self.groups.fault(member.node, "coordinates that are not affine"))?;
        Ok(self.domain.form(self.form(&layout)))
    }

    fn dtype(&self, id: NodeId) -> DType {
        register_type(self.graph().ty(id).dtype)
    }

    /// The view of a value in memory.
    fn view(&mut self, value: NodeId, layout: &Layout, gather: Option<Picked>) -> u16 {
        let (dtype, at) = (self.graph().ty(value).dtype, self.form(layout));
        self.domain.view(Access { value, dtype, at, gather })
    }

    fn input(&mut self, block: &mut Block, place: Place, member: MemberId, operand: usize) -> Result<u16, Diagnostic> {
        if let Some(Input::Member(input)) = self.groups.member(member).inputs.get(operand) {
            return self.value(block, place, *input);
        }
        let (value, layout) = self.groups.access(member, operand)?;
        let view = self.view(value, &layout, None);
        Ok(block.push(PreOp::Op(ScalarOp::Load(view)), self.dtype(value), &[]))
    }

    /// What a member computes, emitted where the block does not have it yet.
    fn value(&mut self, block: &mut Block, place: Place, id: MemberId) -> Result<u16, Diagnostic> {
        if let Some(value) = block.members.get(&id) {
            return Ok(*value);
        }
        let value = self.emit(block, place, id)?;
        block.members.insert(id, value);
        Ok(value)
    }

    /// Emits what a member computes, or where it has been left.
    fn emit(&mut self, block: &mut Block, place: Place, id: MemberId) -> Result<u16, Diagnostic> {
        looked("members that are emitted", 1);
        let member = self.groups.member(id);
        let node = self.graph().node(member.node);
        let dtype = self.dtype(member.node);
        let trivial = node.inputs.is_empty();
        let here = match place {
            Place::Point => !member.row || self.group.kind() != Kind::Reduction,
            Place::Row(now) => self.time(id) == now && !matches!(node.op, Op::Reduce { .. }),
        };
        if !here && !trivial {
            let slot = self.slot(id);
            return Ok(block.push(PreOp::Op(ScalarOp::Slot(slot)), dtype, &[]));
        }
        Ok(match (member.what, &node.op) {
            (What::Zero, _) => block.push(PreOp::Op(ScalarOp::Const(Real(0.0))), dtype, &[]),
            (What::Copy(_), _) => self.input(block, place, id, 0)?,
            (_, Op::Const { value, .. }) => block.push(PreOp::Op(ScalarOp::Const(*value)), dtype, &[]),
            (_, Op::Iota { .. }) => {
                let form = self.coordinate(id)?;
                block.push(form, DType::I32, &[])
            }
            (_, Op::Random { stream, lane, .. }) => {
                let seed = self.input(block, place, id, 0)?;
                let step = self.input(block, place, id, 1)?;
                let index = if node.inputs.len() > 2 {
                    self.input(block, place, id, 2)?
                } else {
                    let form = self.coordinate(id)?;
                    block.push(form, DType::I32, &[])
                };
                let uniform = ScalarOp::Uniform { stream: *stream, lane: *lane };
                block.push(PreOp::Op(uniform), DType::F32, &[seed, step, index])
            }
            (_, Op::Gather { batch }) => self.gather(block, id, *batch)?,
            (_, Op::Dot(_)) => block.push(PreOp::Op(ScalarOp::Product), DType::F32, &[]),
            (_, Op::Pointwise(op)) => self.pointwise(block, place, id, *op)?,
            _ => return Err(self.groups.fault(member.node, "what is never computed at a point")),
        })
    }

    fn pointwise(&mut self, block: &mut Block, place: Place, id: MemberId, op: ScalarOp) -> Result<u16, Diagnostic> {
        let member = self.groups.member(id).node;
        let inputs = &self.graph().node(member).inputs;
        let args = (0..inputs.len()).map(|operand| self.input(block, place, id, operand));
        let mut args = args.collect::<Result<Vec<u16>, _>>()?;
        let epilogue = matches!(self.group.kind(), Kind::Product(..));
        if epilogue && op == ScalarOp::Sub && planted(Fault::EpilogueSubSwapped) {
            args.swap(0, 1);
        }
        let first = if op == ScalarOp::Select { 1 } else { 0 };
        let of = inputs.get(first).map_or(self.dtype(member), |input| self.dtype(*input));
        // Registers hold f32, in which a cast to fewer bits rounds.
        let op = match rounds_to(op) {
            Some(_) if planted(Fault::RoundingSkipped) => return Ok(args[0]),
            Some(to) => ScalarOp::Cast(to),
            None => op,
        };
        let value = block.push(PreOp::Op(op), of, &args);
        if epilogue && matches!(op, ScalarOp::Tanh | ScalarOp::Exp | ScalarOp::Neg) && planted(Fault::EpilogueTwice) {
            return Ok(block.push(PreOp::Op(op), of, &[value]));
        }
        Ok(value)
    }

    fn gather(&mut self, block: &mut Block, id: MemberId, batch: usize) -> Result<u16, Diagnostic> {
        let member = self.groups.member(id);
        let ((data, data_layout), (index, index_layout)) = (self.groups.access(id, 0)?, self.groups.access(id, 1)?);
        let rank = self.graph().node(member.node).inputs.get(1).map_or(0, |index| self.graph().shape(*index).rank());
        let gathered = gather(&data_layout, &index_layout, batch, rank, &member.chain);
        let gathered = gathered.ok_or_else(|| self.groups.fault(member.node, "a gather that is not affine"))?;
        let picked =
            Picked { index, at: self.form(&gathered.index), stride: gathered.stride, limit: gathered.limit as i64 };
        let view = self.view(data, &gathered.data, Some(picked));
        Ok(block.push(PreOp::Op(ScalarOp::Load(view)), self.dtype(data), &[]))
    }

    /// Emits a store.
    fn store(&mut self, block: &mut Block, place: Place, store: &Store) -> Result<(), Diagnostic> {
        let value = self.value(block, place, store.member)?;
        let view = self.view(store.target, &self.groups.store_layout(store)?, None);
        block.push(PreOp::Op(ScalarOp::Store(view)), self.dtype(store.target), &[value]);
        Ok(())
    }

    /// Stores, in the order of the nodes that are stored.
    fn stores(&self) -> Vec<&'a Store> {
        let mut stores: Vec<&Store> = self.group.stores().iter().collect();
        stores.sort_by_key(|store| (self.groups.member(store.member).node, store.member));
        stores
    }

    fn map(&mut self, operands: &mut Operands) -> Result<(Loop, u64), Diagnostic> {
        let mut block = Block::default();
        for store in self.stores() {
            self.store(&mut block, Place::Point, store)?;
        }
        self.domain.simplify(self.domain.sizes.len());
        let points: u64 = self.domain.sizes.iter().product();
        let views = self.domain.views(operands);
        let code = self.domain.code(&block).0;
        Ok((Loop::Map(Map { domain: self.domain.sizes.clone(), views, code }), points * block.flops()))
    }

    /// The slot of a member that is known once per row.
    fn slot(&mut self, id: MemberId) -> u16 {
        let next = self.slots.len() as u16;
        *self.slots.entry(id).or_insert(next)
    }

    /// The stage of a member: a point's own, or the one after whose points a row's value is known (-1: from the start).
    fn time(&mut self, id: MemberId) -> i32 {
        if let Some(time) = self.times.get(&id) {
            return *time;
        }
        let member = self.groups.member(id);
        let reduces = matches!(self.graph().node(member.node).op, Op::Reduce { .. });
        let at_points = !member.row || reduces;
        let mut time = if at_points { 0 } else { -1 };
        for input in member.inputs.clone() {
            if let Input::Member(input) = input {
                let given = self.time(input);
                time = time.max(if at_points && self.groups.member(input).row { given + 1 } else { given });
            }
        }
        self.times.insert(id, time);
        time
    }

    fn reduction(&mut self, operands: &mut Operands) -> Result<(Loop, u64), Diagnostic> {
        let members = self.group.members();
        let kind = |member: &MemberId| match self.graph().node(self.groups.member(*member).node).op {
            Op::Reduce { kind, .. } => Some((*member, kind)),
            _ => None,
        };
        let reduces: Vec<_> = members.iter().filter_map(kind).collect();
        let stores = self.stores();
        let all = reduces.iter().map(|(member, _)| *member).chain(stores.iter().map(|store| store.member));
        let last = all.map(|member| self.time(member)).max().unwrap_or(0);
        // Backwards, so that every use of a slot is known before what sets it.
        let mut stages: Vec<RawStage> = Vec::new();
        for now in (-1..=last).rev() {
            let mut block = Block::default();
            for store in &stores {
                if self.groups.member(store.member).row && self.time(store.member) == now {
                    self.store(&mut block, Place::Row(now), store)?;
                }
            }
            let mut set = Vec::new();
            for member in members {
                let reduces = matches!(self.graph().node(self.groups.member(*member).node).op, Op::Reduce { .. });
                if !reduces
                    && self.time(*member) == now
                    && let Some(slot) = self.slots.get(member).copied()
                {
                    set.push((self.value(&mut block, Place::Row(now), *member)?, slot));
                }
            }
            stages.push(RawStage::Row { block, set });
            if now < 0 {
                continue;
            }
            let mut block = Block::default();
            let mut reduce = Vec::new();
            for (member, kind) in &reduces {
                if self.time(*member) == now {
                    let slot = self.slot(*member);
                    let value = self.input(&mut block, Place::Point, *member, 0)?;
                    reduce.push(Reduce { kind: *kind, value, slot });
                }
            }
            for store in &stores {
                if !self.groups.member(store.member).row && self.time(store.member) == now {
                    self.store(&mut block, Place::Point, store)?;
                }
            }
            stages.push(RawStage::Points { block, reduce });
        }
        stages.reverse();
        Ok(self.finish_reduction(stages, operands))
    }

    fn finish_reduction(&mut self, stages: Vec<RawStage>, operands: &mut Operands) -> (Loop, u64) {
        self.domain.simplify(self.domain.sizes.len());
        self.kept = self.domain.segments[0];
        let (kept, reduced) = self.domain.sizes.split_at(self.kept);
        let (rows, points): (u64, u64) = (kept.iter().product(), self.domain.sizes.iter().product());
        let mut flops = 0;
        let mut finished = Vec::new();
        for stage in stages {
            let (RawStage::Row { ref block, .. } | RawStage::Points { ref block, .. }) = stage;
            let (code, moved) = self.domain.code(block);
            let (empty, moved) = (block.is_empty(), |value: u16| moved[value as usize]);
            let stage = match stage {
                RawStage::Row { block, set } => {
                    flops += rows * block.flops();
                    let slots = set.into_iter().map(|(value, slot)| (moved(value), slot)).collect();
                    Stage::Row { code, slots }
                }
                RawStage::Points { block, reduce } => {
                    flops += points * (block.flops() + reduce.len() as u64);
                    let reduce = reduce.into_iter().map(|item| Reduce { value: moved(item.value), ..item }).collect();
                    Stage::Points { code, reduce }
                }
            };
            if !empty {
                finished.push(stage);
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

    /// An operand of a product; `free` is the dimension of the domain that walks what is free of it.
    fn factor(&mut self, id: MemberId, operand: usize, dot: &Dot, free: usize) -> Result<Factor, Diagnostic> {
        let (value, layout) = self.groups.access(id, operand)?;
        let operand = product(&layout, dot.batch.len(), dot.contract.len())
            .ok_or_else(|| self.groups.fault(value, "a factor that no product can read"))?;
        let over_batch = Layout { offset: operand.offset, dims: operand.batch.iter().cloned().collect() };
        let mut at = self.form(&over_batch);
        at.strides[free] = operand.free.stride;
        Ok(Factor { value, form: self.domain.forms.insert_full(at).0, operand })
    }

    fn product(&mut self, id: MemberId, dot: &Dot, operands: &mut Operands) -> Result<(Loop, u64), Diagnostic> {
        let (m, n) = (self.domain.sizes.len() - 2, self.domain.sizes.len() - 1);
        let mut block = Block::default();
        for store in self.stores() {
            self.store(&mut block, Place::Point, store)?;
        }
        // While dimensions merge, the factors take part as forms over batch, m and n.
        let factors = [self.factor(id, 0, dot, m)?, self.factor(id, 1, dot, n)?];
        let stored = block.views().find(|(_, stored)| *stored).map(|(view, _)| view as usize);
        let swap = stored.is_some_and(|view| {
            let strides = &self.domain.accesses[view].at.strides;
            strides[n] != 1 && strides[m] == 1 && self.domain.sizes[n] > 1
        });
        if swap {
            self.domain.swap(m, n);
        }
        self.domain.simplify(m);
        let [x, y] = [0, 1].map(|side: usize| {
            let Factor { value, form, operand } = &factors[side];
            let Form { offset, strides } = &self.domain.forms[*form];
            let batch = &strides[..strides.len() - 2];
            // Views over (batch, m, k) and (batch, k, n).
            let (free, k) = (operand.free.stride, operand.contracted.stride);
            let tail = if (side == 0) != swap { [free, k] } else { [k, free] };
            let (operand, dtype) = (operands.bind(*value), self.graph().ty(*value).dtype);
            View { operand, dtype, offset: *offset, strides: [batch, &tail].concat(), gather: None }
        });
        let (a, b) = if swap { (y, x) } else { (x, y) };
        let views = self.domain.views(operands);
        let code = self.domain.code(&block).0;
        let points: u64 = self.domain.sizes.iter().product();
        let (batch, tail) = self.domain.sizes.split_at(self.domain.sizes.len() - 2);
        let k = factors[0].operand.contracted.size;
        let product = Product { batch: batch.to_vec(), m: tail[0], n: tail[1], k, a, b, views, code };
        Ok((Loop::Product(product), points * (2 * k + block.flops())))
    }
}

/// Pairs of a written and a read operand whose elements are read only through the view, and not after the stage, in which
/// they are written.
fn in_place(kernel: &Loop, operands: &Operands, writes: &IndexSet<NodeId>) -> Vec<(NodeId, NodeId)> {
    let (views, stages) = kernel.codes();
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
        let Some(write) = operands.number(*written) else { continue };
        let mut stored = views.iter().zip(&stores).filter(|(view, _)| view.operand == write);
        let (Some((view, Some(stored_at))), None) = (stored.next(), stored.next()) else { continue };
        for (read, value) in operands.iter().enumerate() {
            let operand = read as u16;
            if writes.contains(&value) || gathered(operand) || multiplied(operand) {
                continue;
            }
            let fits = |(other, load): (&View, &Option<(usize, usize)>)| {
                other.operand != operand
                    || load.is_none_or(|load| load < *stored_at) && View { operand, ..view.clone() } == *other
            };
            if views.iter().zip(&loads).all(fits) {
                pairs.push((*written, value));
            }
        }
    }
    pairs
}

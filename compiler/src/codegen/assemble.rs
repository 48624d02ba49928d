//! From launches and places to a plan.
//!
//! Invariants: kernels that compute the same are one entry of the plan, buffers of a program are distinct, operands of a
//! step too (a new state value written over the old one is one operand).

use std::collections::BTreeMap;

use alip_plan::kernel::{Code, Implementation, Instr, Kernel, Loop, Map, ScalarOp, View};
use alip_plan::packing::Bucket;
use alip_plan::{
    BucketReport, Buffer, DType, Plan, Port, Program, ProgramReport, Rates, Report, Segment, SegmentKind, StateKind,
    StateTensor, Step, Target, TargetKind, TrainInfo,
};
use indexmap::{IndexMap, IndexSet};

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, Model, NodeId, StateDecl};
use crate::launch::trace::Traced;
use crate::launch::{Launch, Neighbours, bytes_moved, seconds};
use crate::ops::Op;
use crate::schedule::check::{Intent, Intents, Value};
use crate::schedule::memory::{Home, Peak, Placement, fits};

/// A program ready for assembly.
pub(crate) struct Part {
    pub(crate) graph: Graph,
    pub(crate) launches: Vec<Launch>,
    pub(crate) placement: Placement,
}

impl Part {
    fn arena_bytes(&self) -> u64 {
        self.placement.segments.iter().sum()
    }
}

/// Which segments of the plan are those that programs count from 0.
#[derive(Default)]
struct Shared {
    inputs: Vec<u32>,
    arena: Vec<u32>,
}

impl Shared {
    /// The segments of a kind, of which there are as many as sizes, and as large.
    fn grow(all: &mut Vec<u32>, segments: &mut Vec<Segment>, kind: SegmentKind, sizes: &[u64]) {
        for (index, bytes) in sizes.iter().enumerate() {
            if index == all.len() {
                all.push(segments.len() as u32);
                segments.push(Segment { kind, bytes: 0 });
            }
            let segment = &mut segments[all[index] as usize];
            segment.bytes = segment.bytes.max(*bytes);
        }
    }
}

/// A plan under construction.
pub(crate) struct Assembly<'a> {
    target: &'a Target,
    segments: Vec<Segment>,
    /// Indices of the segments that programs share.
    shared: Shared,
    state: Vec<StateTensor>,
    /// By what they compute, so that each is emitted once.
    kernels: IndexMap<Loop, Implementation>,
}

impl<'a> Assembly<'a> {
    /// Places the state, in the given order of its indices; neighbours, which come one after another, in one segment.
    ///
    /// # Errors
    /// A state tensor is larger than what one kernel operand may cover.
    pub(crate) fn new(
        model: &Model,
        order: &[usize],
        neighbours: &Neighbours,
        target: &'a Target,
    ) -> Result<Assembly<'a>, Diagnostic> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut state = BTreeMap::new();
        for (index, (path, decl)) in order.iter().filter_map(|index| Some((*index, model.state.get_index(*index)?))) {
            let size = |decl: &StateDecl| decl.ty.shape.elements() * decl.ty.dtype.bytes();
            let bytes = size(decl);
            let needed = match neighbours.around(path) {
                [] => bytes,
                all @ [first, ..] if **first == **path => {
                    all.iter().filter_map(|path| model.state.get(&**path)).map(size).sum()
                }
                // Found with the first of them.
                _ => 0,
            };
            fits(&format!("state `{path}` {}", decl.ty), bytes, target).map_err(|error| match decl.origin.span {
                Some(span) => error.label(span, "declared here"),
                None => error,
            })?;
            let room = |segment: &Segment| {
                let offset = segment.bytes.next_multiple_of(target.alignment.max(4));
                (offset + needed <= target.max_segment_bytes).then_some(offset)
            };
            let offset = match segments.last().and_then(room) {
                Some(offset) => offset,
                None => {
                    segments.push(Segment { kind: SegmentKind::State, bytes: 0 });
                    0
                }
            };
            let segment = segments.len() - 1;
            segments[segment].bytes = offset + bytes;
            let buffer = Buffer { segment: segment as u32, offset, dtype: decl.ty.dtype, shape: decl.ty.shape.sizes() };
            state.insert(index, StateTensor { path: path.clone(), kind: decl.kind, buffer });
        }
        let state = state.into_values().collect();
        let shared = Shared::default();
        Ok(Assembly { target, segments, shared, state, kernels: IndexMap::new() })
    }

    /// Adds a program; what it means to do is for the check of memory, and which nodes its steps touch for whoever looks for
    /// a fault.
    ///
    /// # Errors
    /// A kernel that the target cannot run.
    pub(crate) fn program(&mut self, part: &Part) -> Result<(Program, Intents, Vec<Traced>), Diagnostics> {
        let Part { graph, launches, placement } = part;
        let Shared { inputs, arena } = &mut self.shared;
        Shared::grow(inputs, &mut self.segments, SegmentKind::Inputs, &placement.inputs);
        Shared::grow(arena, &mut self.segments, SegmentKind::Arena, &placement.segments);
        let rates = &self.target.rates;
        let mut building = Building {
            graph,
            placement,
            shared: &self.shared,
            state: &self.state,
            alignment: self.target.alignment.max(4),
            rates,
            buffers: IndexSet::new(),
        };
        let mut intents = Intents { before: building.old_state(), ..Intents::default() };
        let mut program = Program::default();
        for (name, id) in &graph.inputs {
            let buffer = building.buffer(*id)?;
            intents.inputs.push((buffer, building.value(*id)));
            program.inputs.push(Port::new(name, buffer));
        }
        let (mut loops, mut traced) = (Vec::new(), Vec::new());
        for launch in launches {
            let (step, kernel) = building.step(launch)?;
            let mut nodes = |ids: &[NodeId]| -> Result<Vec<(u32, NodeId)>, Diagnostics> {
                ids.iter().map(|id| Ok((building.buffer(*id)?, *id))).collect()
            };
            traced.push(Traced { reads: nodes(&launch.reads)?, writes: nodes(&launch.writes)? });
            let named = |building: &mut Building<'_>, ids: &[NodeId]| -> Result<Vec<(u32, Value)>, Diagnostics> {
                ids.iter().map(|id| Ok((building.buffer(*id)?, building.value(*id)))).collect()
            };
            let (reads, writes) = (named(&mut building, &launch.reads)?, named(&mut building, &launch.writes)?);
            // Of operands that are several values, those that may be written over are named one by one.
            let pairs = launch.in_place.iter().filter(|(_, old)| placement.homes.contains_key(old));
            let in_place = pairs.map(|(new, old)| Ok((building.buffer(*new)?, building.buffer(*old)?)));
            let in_place = in_place.collect::<Result<_, Diagnostics>>()?;
            intents.steps.push(Intent { reads, writes, in_place });
            program.steps.push(step);
            loops.push(kernel);
        }
        for (id, state) in &placement.copies {
            let (from, value) = (building.buffer(*id)?, building.value(*id));
            let tensor = building.state[*state].buffer.clone();
            let to = building.buffers.insert_full(tensor.clone()).0 as u32;
            intents.steps.push(Intent { reads: vec![(from, value)], writes: vec![(to, value)], in_place: vec![] });
            traced.push(Traced { reads: vec![(from, *id)], writes: Vec::new() });
            let origin = graph.origin(*id).path.to_string();
            // New state that is copied into its place moves twice.
            let bytes = 2 * graph.bytes(*id);
            let predicted_ns = nanoseconds(rates.launch + bytes as f64 / rates.bandwidth);
            program.steps.push(Step { kernel: 0, operands: vec![from, to], origin, flops: 0, bytes, predicted_ns });
            loops.push(copy(tensor.dtype, tensor.elements()));
        }
        for (name, id) in &graph.outputs {
            let buffer = building.buffer(*id)?;
            intents.outputs.push((buffer, building.value(*id)));
            program.outputs.push(Port::new(name, buffer));
        }
        intents.after = building.new_state();
        program.buffers = building.buffers.into_iter().collect();
        for (step, kernel) in program.steps.iter_mut().zip(loops) {
            step.kernel = self.kernel(kernel).map_err(|why| {
                Diagnostic::error(format!(
                    "target `{}` cannot run a kernel of `{}`: {why}",
                    self.target.name, step.origin
                ))
                .help("use `--target cpu`")
            })?;
        }
        Ok((program, intents, traced))
    }

    /// The index of the kernel that computes this.
    fn kernel(&mut self, description: Loop) -> Result<u32, String> {
        if let Some(index) = self.kernels.get_index_of(&description) {
            return Ok(index as u32);
        }
        let implementation = match self.target.kind {
            TargetKind::Cpu => Implementation::AsDescribed,
            TargetKind::Wgpu => {
                super::emit::wgsl::emit(&description, self.target).map_err(|error| error.to_string())?
            }
            TargetKind::Cuda => {
                super::emit::cuda::emit(&description, self.target).map_err(|error| error.to_string())?
            }
        };
        Ok(self.kernels.insert_full(description, implementation).0 as u32)
    }

    /// The plan of all programs added; `parts` are what they were made from.
    pub(crate) fn finish(
        self,
        model: &Model,
        mut programs: BTreeMap<String, Program>,
        parts: &[(String, Part)],
        train: Option<TrainInfo>,
    ) -> Plan {
        for (name, program) in &mut programs {
            let tables = model.tables(name);
            program
                .inputs
                .iter_mut()
                .for_each(|port| port.rows = tables.and_then(|tables| tables.get(&port.name).copied()));
        }
        let report = self.report(&programs, parts);
        let kernels = self.kernels.into_iter();
        let kernels = kernels.map(|(description, implementation)| Kernel { description, implementation });
        Plan {
            name: model.name.clone(),
            compiler: env!("CARGO_PKG_VERSION").into(),
            target: self.target.clone(),
            segments: self.segments,
            state: self.state,
            kernels: kernels.collect(),
            programs,
            packed: BTreeMap::new(),
            train,
            report,
        }
    }

    pub(crate) fn state(&self) -> &[StateTensor] {
        &self.state
    }

    fn report(&self, programs: &BTreeMap<String, Program>, parts: &[(String, Part)]) -> Report {
        let mut report = Report::default();
        for tensor in &self.state {
            let category = match tensor.kind {
                StateKind::Param => "weights",
                StateKind::Optimizer => "optimizer",
                StateKind::Buffer => "buffers",
                StateKind::Average => "average",
            };
            if tensor.kind == StateKind::Param {
                report.parameters += tensor.buffer.elements();
            }
            *report.memory.entry(category.into()).or_default() += tensor.buffer.bytes();
        }
        let total: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        let of_kind = |kind| -> u64 {
            self.segments.iter().filter(|segment| segment.kind == kind).map(|segment| segment.bytes).sum()
        };
        let (inputs, arena) = (of_kind(SegmentKind::Inputs), of_kind(SegmentKind::Arena));
        let largest = parts.iter().map(|(_, part)| part).max_by_key(|part| part.placement.peak.total());
        let peak = largest.map_or(Peak::default(), |part| part.placement.peak);
        let state: u64 = report.memory.values().sum();
        let categories = [
            ("inputs", inputs),
            ("activations", peak.activations),
            ("gradients", peak.gradients),
            ("workspace", arena.saturating_sub(peak.total())),
            ("alignment", total - inputs - arena - state),
        ];
        report.memory.extend(categories.map(|(category, bytes)| (category.to_owned(), bytes)));
        for (name, program) in programs {
            let is_call = |step: &&Step| {
                self.kernels.get_index(step.kernel as usize).is_some_and(|(_, by)| *by == Implementation::CublasLt)
            };
            let sum = |of: fn(&Step) -> u64| program.steps.iter().map(of).sum::<u64>();
            let one = ProgramReport {
                launches: program.steps.len() as u64,
                library_calls: program.steps.iter().filter(is_call).count() as u64,
                flops: sum(|step| step.flops),
                bytes: sum(|step| step.bytes),
                predicted_seconds: sum(|step| step.predicted_ns) as f64 / 1e9,
                buckets: Vec::new(),
            };
            report.programs.insert(name.clone(), one);
        }
        report
    }
}

/// Puts the sizes of packed programs, made from these parts, under the name that they share.
pub(crate) fn report_buckets(plan: &mut Plan, parts: &[(String, Part)]) {
    let arena =
        |program: &str| parts.iter().find(|(name, _)| name == program).map_or(0, |(_, part)| part.arena_bytes());
    let mut reports = std::mem::take(&mut plan.report.programs);
    for (name, packed) in &plan.packed {
        let mut bucket = |bucket: &Bucket| {
            let report =
                if bucket.program == *name { reports.get(name).cloned() } else { reports.remove(&bucket.program) };
            let ProgramReport { launches, library_calls, flops, bytes, predicted_seconds, .. } =
                report.unwrap_or_default();
            let (rows, arena_bytes) = (bucket.rows.clone(), arena(&bucket.program));
            BucketReport { rows, launches, library_calls, flops, bytes, predicted_seconds, arena_bytes }
        };
        let buckets: Vec<BucketReport> = packed.buckets.iter().map(&mut bucket).collect();
        if let Some(report) = reports.get_mut(name) {
            report.buckets = buckets;
        }
    }
    plan.report.programs = reports;
}

/// One program on its way to steps and buffers.
struct Building<'a> {
    graph: &'a Graph,
    placement: &'a Placement,
    shared: &'a Shared,
    state: &'a [StateTensor],
    /// Of buffers in their segments, in bytes.
    alignment: u64,
    rates: &'a Rates,
    buffers: IndexSet<Buffer>,
}

impl Building<'_> {
    fn buffer(&mut self, id: NodeId) -> Result<u32, Diagnostics> {
        let ty = self.graph.ty(id);
        let at = |segments: &[u32], segment: usize, offset| Buffer {
            segment: segments[segment],
            offset,
            dtype: ty.dtype,
            shape: ty.shape.sizes(),
        };
        let buffer = match self.placement.homes.get(&id) {
            Some(Home::State(index)) => self.state[*index].buffer.clone(),
            Some(Home::Input(segment, offset)) => at(&self.shared.inputs, *segment, *offset),
            Some(Home::Arena(segment, offset)) => at(&self.shared.arena, *segment, *offset),
            None => {
                let path = &self.graph.origin(id).path;
                return Err(Diagnostic::error(format!("internal: a value {ty} of `{path}` has no place")).into());
            }
        };
        Ok(self.buffers.insert_full(buffer).0 as u32)
    }

    /// The buffer from the first element on that a kernel uses, if the target can bind it; the kernel's offsets change with
    /// it. So kernels that differ in the part of a value alone (a gradient among others) are one.
    fn part(&mut self, buffer: u32, operand: u16, kernel: &mut Loop) -> u32 {
        let whole = &self.buffers[buffer as usize];
        let mut views = kernel.views_mut();
        if views.iter().any(|view| view.gather.as_ref().is_some_and(|gather| gather.operand == operand)) {
            return buffer;
        }
        views.retain(|view| view.operand == operand);
        let Some(first) = views.iter().map(|view| view.offset).min() else { return buffer };
        let unit = (self.alignment / whole.dtype.bytes()).max(1) as i64;
        let first = first / unit * unit;
        if first <= 0 || views.iter().any(|view| view.strides.iter().any(|stride| *stride < 0)) {
            return buffer;
        }
        views.iter_mut().for_each(|view| view.offset -= first);
        let part = Buffer {
            offset: whole.offset + first as u64 * whole.dtype.bytes(),
            shape: vec![whole.elements() - first as u64],
            ..whole.clone()
        };
        self.buffers.insert_full(part).0 as u32
    }

    /// Values that lie one after another, as one buffer.
    fn span(&mut self, values: &[NodeId]) -> Result<u32, Diagnostics> {
        let mut whole: Option<Buffer> = None;
        for id in values {
            let index = self.buffer(*id)?;
            let next = self.buffers[index as usize].clone();
            whole = Some(match whole {
                None => Buffer { shape: vec![next.elements()], ..next },
                Some(whole) if whole.segment == next.segment && whole.offset + whole.bytes() == next.offset => {
                    Buffer { shape: vec![whole.elements() + next.elements()], ..whole }
                }
                Some(_) => {
                    let path = &self.graph.origin(*id).path;
                    return Err(
                        Diagnostic::error(format!("internal: `{path}` does not lie behind its neighbour")).into()
                    );
                }
            });
        }
        let whole = whole.ok_or_else(|| Diagnostic::error("internal: an operand of no values"))?;
        Ok(self.buffers.insert_full(whole).0 as u32)
    }

    fn old(&self, state: usize) -> Value {
        self.graph.nodes().len() as Value + state as Value
    }

    /// The name of a node's value: old values of state are the same whoever reads them.
    fn value(&self, id: NodeId) -> Value {
        match (&self.graph.node(id).op, self.placement.homes.get(&id)) {
            (Op::State { .. }, Some(Home::State(index))) => self.old(*index),
            _ => Value::from(id.0),
        }
    }

    fn old_state(&self) -> Vec<Value> {
        (0..self.state.len()).map(|index| self.old(index)).collect()
    }

    fn new_state(&self) -> Vec<Value> {
        let new = |(index, tensor): (usize, &StateTensor)| match self.graph.updates.get(&tensor.path) {
            Some(id) => self.value(*id),
            None => self.old(index),
        };
        self.state.iter().enumerate().map(new).collect()
    }

    /// A launch with operands as buffers, each once.
    fn step(&mut self, launch: &Launch) -> Result<(Step, Loop), Diagnostics> {
        let mut operands: IndexSet<u32> = IndexSet::new();
        let mut moved = Vec::new();
        let mut kernel = launch.kernel.clone();
        for (position, id) in launch.operands.iter().enumerate() {
            let buffer = match launch.spans.get(id) {
                Some(values) => self.span(values)?,
                None => self.buffer(*id)?,
            };
            let buffer = self.part(buffer, position as u16, &mut kernel);
            moved.push(operands.insert_full(buffer).0 as u16);
        }
        if operands.len() < moved.len() {
            renumber(&mut kernel, &moved);
        }
        let step = Step {
            kernel: 0,
            operands: operands.into_iter().collect(),
            origin: launch.origin.clone(),
            flops: launch.flops,
            bytes: bytes_moved(&launch.kernel),
            predicted_ns: nanoseconds(seconds(launch, self.rates)),
        };
        Ok((step, kernel))
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// Gives operands other numbers; views that become equal become one.
fn renumber(kernel: &mut Loop, moved: &[u16]) {
    for view in kernel.views_mut() {
        view.operand = moved[view.operand as usize];
        if let Some(gather) = &mut view.gather {
            gather.operand = moved[gather.operand as usize];
        }
    }
    let (Some(views), codes) = kernel.codes_mut() else { return };
    let mut distinct: IndexSet<View> = IndexSet::new();
    let of: Vec<u16> = views.drain(..).map(|view| distinct.insert_full(view).0 as u16).collect();
    views.extend(distinct);
    for instr in codes.into_iter().flat_map(|code| code.instrs.iter_mut()) {
        match &mut instr.op {
            ScalarOp::Load(view) | ScalarOp::Store(view) => *view = of[*view as usize],
            _ => {}
        }
    }
}

/// Copies a dense buffer.
fn copy(dtype: DType, elements: u64) -> Loop {
    let view = |operand| View { operand, dtype, offset: 0, strides: vec![1], gather: None };
    let register = alip_plan::check::register_type(dtype);
    let instr = |op| Instr { op, dtype: register, args: [0; 3] };
    Loop::Map(Map {
        domain: vec![elements],
        views: vec![view(0), view(1)],
        code: Code { instrs: vec![instr(ScalarOp::Load(0)), instr(ScalarOp::Store(1))] },
    })
}

//! What a choice of terms costs on a target: the time that its kernels take.
//!
//! The model follows what the schedule does with a graph, in one pass over the chosen terms:
//! - Views, constants and coordinates cost nothing.
//! - A pointwise value is computed where it is read, unless something needs it in memory (a product, a gather, a result), or
//!   several read it and computing it again is not cheap. Then it is stored by a kernel that computes with it anyway (as the
//!   epilogue of a product, in the rows of a reduction) or by one of its own.
//! - A kernel pays its launch, each value it reads once, each it stores, and its arithmetic.
//!
//! So a term's cost depends on who reads it, and what is shared is paid once. Units: seconds.

use alip_plan::{Fusion, Rates, Target};
use smallvec::SmallVec;

use super::language::Kind;
use crate::ir::TensorType;
use crate::launch::{Cost, weight};
use crate::ops::Op;

/// How a term takes part in kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Lies in memory.
    Leaf,
    /// Constants and coordinates.
    Trivial,
    View,
    /// So many operations per element.
    Point(u32),
    Reduce,
    /// Seconds of arithmetic; pointwise readers of its points can join it.
    Product(f64),
    /// Seconds of arithmetic; nothing joins it.
    Whole(f64),
    /// Parts are written where they are computed; of padding also zeros around it.
    Concat,
    Pad,
}

impl Role {
    pub(crate) fn of(op: &Op, inputs: &[&TensorType], out: &TensorType, splat: bool, rates: &Rates) -> Role {
        if splat {
            return Role::Trivial;
        }
        match op {
            Op::Input { .. } | Op::State { .. } => Role::Leaf,
            Op::Const { .. } | Op::Iota { .. } => Role::Trivial,
            Op::Pointwise(op) => Role::Point(weight(*op, rates)),
            Op::Reduce { .. } => Role::Reduce,
            Op::Dot(_) => Role::Product(op.flops(inputs, out) as f64 / rates.products),
            Op::Conv2d(_) => Role::Whole(op.flops(inputs, out) as f64 / rates.convolutions),
            Op::Concat { .. } => Role::Concat,
            Op::Pad { .. } => Role::Pad,
            Op::StopGradient => Role::View,
            _ if Kind::of(op).is_view() => Role::View,
            Op::Gather { .. } | Op::Random { .. } => Role::Point(rates.transcendental),
            _ => Role::Whole(op.flops(inputs, out) as f64 / rates.products),
        }
    }
}

/// One chosen term, its operands before it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) role: Role,
    pub(crate) elements: f64,
    pub(crate) bytes: f64,
    pub(crate) operands: SmallVec<[u32; 3]>,
    /// Something outside of the region reads it.
    pub(crate) output: bool,
    /// Reads whole tensors at computed places, as a gather does.
    pub(crate) random_access: bool,
    /// Operands of a product that it cannot read as they lie, one bit each.
    pub(crate) copied: u8,
}

/// Number of a kernel.
type KernelId = usize;

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Map,
    Product,
    /// With so many points.
    Rows(f64),
    Whole,
}

struct Kernel {
    shape: Shape,
    elements: f64,
    reads: SmallVec<[u32; 8]>,
}

/// What is known of a step while costs are added up.
#[derive(Clone, Default)]
struct Place {
    /// The first value below views.
    base: u32,
    readers: u32,
    pointwise_readers: u32,
    needed: bool,
    stored: bool,
    /// Where it is computed, if that is one place.
    home: Option<KernelId>,
    /// Values in memory that it is computed from, where it is not stored itself.
    sources: SmallVec<[u32; 4]>,
    operations: u32,
}

/// Adds up what chosen terms cost; keeps its buffers between calls.
#[derive(Default)]
pub(crate) struct Evaluator {
    places: Vec<Place>,
    kernels: Vec<Kernel>,
}

/// Operands that are copied first, with their numbers.
fn copied(step: &Step) -> impl Iterator<Item = (usize, u32)> + '_ {
    step.operands.iter().copied().enumerate().filter(|(at, _)| step.copied & (1 << at) != 0)
}

impl Evaluator {
    /// The cost of steps in order.
    pub(crate) fn cost(&mut self, steps: &[Step], target: &Target) -> Cost {
        let rates = &target.rates;
        self.places.clear();
        self.places.resize(steps.len(), Place::default());
        self.kernels.clear();
        self.count_readers(steps);
        let mut bytes = 0.0;
        let mut arithmetic = 0.0;
        for at in 0..steps.len() {
            let step = &steps[at];
            if step.role == Role::Trivial || step.role == Role::View {
                continue;
            }
            match step.role {
                Role::Leaf => self.places[at].stored = true,
                Role::Point(weight) => {
                    arithmetic += f64::from(weight) * step.elements / rates.points;
                    self.place_point(steps, at, weight, &target.fusion);
                }
                Role::Reduce => {
                    let points = steps[step.operands[0] as usize].elements;
                    arithmetic += points / rates.points;
                    self.place_reduce(steps, at, points);
                }
                Role::Product(seconds) | Role::Whole(seconds) => {
                    arithmetic += seconds;
                    let shape = if matches!(step.role, Role::Product(_)) { Shape::Product } else { Shape::Whole };
                    let mut copies = 0.0;
                    for (_, operand) in copied(step) {
                        let copy = self.kernel(Shape::Map, steps[operand as usize].elements);
                        self.read(copy, self.places[operand as usize].base);
                        copies += 2.0 * steps[operand as usize].bytes;
                    }
                    bytes += copies;
                    let kernel = self.kernel(shape, step.elements);
                    for (at, operand) in step.operands.iter().enumerate() {
                        if step.copied & (1 << at) == 0 {
                            self.read(kernel, self.places[*operand as usize].base);
                        }
                    }
                    let place = &mut self.places[at];
                    place.home = Some(kernel);
                    let epilogue = shape == Shape::Product && place.pointwise_readers == 1 && place.readers == 1;
                    place.stored = place.needed || !epilogue;
                }
                Role::Concat | Role::Pad => {
                    if step.role == Role::Pad {
                        self.kernel(Shape::Map, step.elements);
                        bytes += step.bytes;
                    }
                    for operand in &step.operands {
                        self.place_part(steps, *operand);
                        bytes += if step.role == Role::Pad { steps[*operand as usize].bytes } else { 0.0 };
                    }
                    self.places[at].stored = true;
                }
                Role::Trivial | Role::View => {}
            }
            if self.places[at].stored && step.role != Role::Leaf {
                bytes += step.bytes;
            }
        }
        let read = |kernel: &Kernel| kernel.reads.iter().map(|base| steps[*base as usize].bytes).sum::<f64>();
        bytes += self.kernels.iter().map(read).sum::<f64>();
        let launches = self.kernels.len() as u32;
        let seconds = f64::from(launches) * rates.launch + bytes / rates.bandwidth + arithmetic;
        Cost { seconds, launches }
    }

    fn count_readers(&mut self, steps: &[Step]) {
        for (at, step) in steps.iter().enumerate() {
            self.places[at].base = match step.role {
                Role::View => self.places[step.operands[0] as usize].base,
                _ => at as u32,
            };
            let whole = matches!(step.role, Role::Product(_) | Role::Whole(_)) || step.random_access;
            let part = matches!(step.role, Role::Concat | Role::Pad);
            for operand in step.operands.iter().filter(|_| step.role != Role::View) {
                let base = self.places[*operand as usize].base as usize;
                let same = steps[base].elements == if part { steps[base].elements } else { step.elements };
                let place = &mut self.places[base];
                place.readers += 1;
                place.needed |= whole;
                place.pointwise_readers += u32::from((matches!(step.role, Role::Point(_)) && same) || part);
            }
            if step.output {
                let base = self.places[at].base as usize;
                self.places[base].needed = true;
            }
        }
    }

    fn kernel(&mut self, shape: Shape, elements: f64) -> KernelId {
        self.kernels.push(Kernel { shape, elements, reads: SmallVec::new() });
        self.kernels.len() - 1
    }

    fn read(&mut self, kernel: KernelId, value: u32) {
        // What a kernel computes it need not read.
        if self.places[value as usize].stored
            && self.places[value as usize].home != Some(kernel)
            && !self.kernels[kernel].reads.contains(&value)
        {
            self.kernels[kernel].reads.push(value);
        }
    }

    /// The kernels in which the operands of a step are computed, if the step can be computed there too.
    fn host(&self, step: &Step, elements: f64) -> Option<KernelId> {
        let fits = |base: u32| {
            let place = &self.places[base as usize];
            let kernel = &self.kernels[place.home?];
            let fits = match kernel.shape {
                Shape::Map => kernel.elements == elements,
                Shape::Product => kernel.elements == elements && (!place.stored || place.pointwise_readers > 0),
                Shape::Rows(points) => points == elements || kernel.elements == elements,
                Shape::Whole => false,
            };
            fits.then_some(place.home?)
        };
        // The last one: it runs after the others.
        step.operands.iter().filter_map(|operand| fits(self.places[*operand as usize].base)).max()
    }

    /// Values in memory that a step reads, directly or through values that are computed where they are read.
    fn sources(&self, steps: &[Step], at: usize) -> SmallVec<[u32; 4]> {
        let mut sources = SmallVec::new();
        for operand in &steps[at].operands {
            let base = self.places[*operand as usize].base;
            let place = &self.places[base as usize];
            let own = [base];
            let list: &[u32] = if place.stored { &own } else { &place.sources };
            for source in list {
                if !sources.contains(source) {
                    sources.push(*source);
                }
            }
        }
        sources
    }

    fn place_point(&mut self, steps: &[Step], at: usize, weight: u32, fusion: &Fusion) {
        let step = &steps[at];
        let sources = self.sources(steps, at);
        let below = step.operands.iter().map(|operand| {
            let place = &self.places[self.places[*operand as usize].base as usize];
            if place.stored { 0 } else { place.operations }
        });
        let operations = weight + below.sum::<u32>();
        let host = self.host(step, step.elements);
        // What is much smaller than the value costs nothing to read again.
        let smaller = fusion.much_smaller as f64;
        let large = sources.iter().filter(|source| steps[**source as usize].elements * smaller > step.elements).count();
        let cheap = large <= 1 && operations <= fusion.most_operations && host.is_none();
        let place = &mut self.places[at];
        place.operations = operations;
        place.stored = place.needed || (place.readers > 1 && !cheap);
        let kernel = match host {
            Some(kernel) => Some(kernel),
            None if place.stored => Some(self.kernel(Shape::Map, step.elements)),
            None => None,
        };
        if let Some(kernel) = kernel {
            sources.iter().for_each(|source| self.read(kernel, *source));
        }
        let place = &mut self.places[at];
        place.home = kernel;
        if !place.stored && kernel.is_none() {
            place.sources = sources;
        }
    }

    fn place_reduce(&mut self, steps: &[Step], at: usize, points: f64) {
        let step = &steps[at];
        let sources = self.sources(steps, at);
        let host = self.host(step, points).filter(|kernel| match self.kernels[*kernel].shape {
            Shape::Map => true,
            Shape::Rows(_) => self.kernels[*kernel].elements == step.elements,
            _ => false,
        });
        // Reductions of one value over the same rows are one kernel.
        let beside = |kernel: &Kernel| {
            let alike = kernel.shape == Shape::Rows(points) && kernel.elements == step.elements;
            alike && sources.iter().any(|source| kernel.reads.contains(source))
        };
        let host = host.or_else(|| self.kernels.iter().position(beside));
        let kernel = match host {
            Some(kernel) => kernel,
            None => self.kernel(Shape::Map, step.elements),
        };
        self.kernels[kernel].shape = Shape::Rows(points);
        self.kernels[kernel].elements = step.elements;
        sources.iter().for_each(|source| self.read(kernel, *source));
        let place = &mut self.places[at];
        place.home = Some(kernel);
        place.stored = place.needed || place.readers > 1;
    }

    /// A part of a concatenation: computed into its place, or copied.
    fn place_part(&mut self, steps: &[Step], operand: u32) {
        let base = self.places[operand as usize].base;
        let place = &self.places[base as usize];
        if steps[base as usize].role == Role::Trivial || (!place.stored && place.home.is_some()) {
            return;
        }
        let sources = if place.stored { SmallVec::from_slice(&[base]) } else { place.sources.clone() };
        let kernel = self.kernel(Shape::Map, steps[operand as usize].elements);
        sources.iter().for_each(|source| self.read(kernel, *source));
    }
}

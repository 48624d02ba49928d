//! Random graphs: well typed, small, the same for the same seed.
//!
//! - They compose all families of ops, with new states and inputs where an operand of some shape is wanted, and update states
//!   in ways that tempt a memory plan (swaps, results that are also read later).
//! - Values stay near 1: what may grow goes through tanh.
//! - One graph in sixteen is wild: its inputs hold NaN, infinities and zeros of both signs, and it has only ops that move,
//!   compare and choose, so that every result is known exactly.

use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, Shape, TensorType, Value};
use alip_compiler::ops::{Op, ReduceKind, ScalarOp};
use alip_plan::philox::uniform;

use super::draws::Draws;
use super::steps::STEPS;
use super::{Case, DESCENT, GRADIENT, LOSS};
use crate::compiled::Values;

/// Most elements that a step makes of fewer.
pub(super) const MAX_ELEMENTS: u64 = 1 << 11;
/// Most dimensions of one tensor.
pub(super) const MAX_RANK: usize = 5;
/// Values above this are brought below 1.
pub(super) const MAX_MAGNITUDE: f64 = 2.0;
/// Integers stay below this, so that they are exact in f32.
pub(super) const MAX_INTEGER: f64 = 1e6;

/// The graph of a seed, of up to so many steps of one to ten nodes each.
pub fn random_case(seed: u64, steps: usize) -> Case {
    let mut maker = Maker::new(seed, seed % 16 == 6);
    let steps = steps / 3 + maker.draws.below(steps - steps / 3 + 1);
    for _ in 0..3 {
        let shape = maker.shape();
        maker.fresh(&shape, false);
    }
    for _ in 0..steps {
        maker.step();
    }
    maker.finish(seed % 2 == 1)
}

/// A tensor that may be used.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) id: NodeId,
    /// Nothing was rounded on the way.
    pub(super) exact: bool,
    /// No element is larger.
    pub(super) magnitude: f64,
}

/// A graph in the making.
pub(super) struct Maker {
    case: Case,
    pub(super) draws: Draws,
    pub(super) floats: Vec<Held>,
    pub(super) integers: Vec<Held>,
    pub(super) truths: Vec<NodeId>,
    pub(super) wild: bool,
}

impl Maker {
    fn new(seed: u64, wild: bool) -> Maker {
        let case = Case { graph: Graph::new("random"), inputs: Values::new(), state: Values::new() };
        let draws = Draws::new(seed);
        Maker { case, draws, floats: Vec::new(), integers: Vec::new(), truths: Vec::new(), wild }
    }

    pub(super) fn b(&mut self) -> Builder<'_> {
        Builder::new(&mut self.case.graph, OriginId(0))
    }

    pub(super) fn graph(&self) -> &Graph {
        &self.case.graph
    }

    pub(super) fn op(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        self.b().op(op.clone(), inputs).unwrap_or_else(|error| panic!("{op:?}: {error}"))
    }

    pub(super) fn point(&mut self, op: ScalarOp, inputs: &[NodeId]) -> NodeId {
        self.b().pointwise(op, inputs).unwrap_or_else(|error| panic!("{op:?}: {error}"))
    }

    pub(super) fn scalar(&mut self, value: f64) -> NodeId {
        self.b().scalar(value).expect("a constant")
    }

    pub(super) fn scaled(&mut self, id: NodeId, factor: f64) -> NodeId {
        let factor = self.scalar(factor);
        self.point(ScalarOp::Mul, &[id, factor])
    }

    /// A reduction that keeps its dimensions as ones.
    pub(super) fn along(&mut self, kind: ReduceKind, id: NodeId, axes: &[usize]) -> NodeId {
        self.b().reduce(kind, id, axes, true).expect("axes of the tensor")
    }

    pub(super) fn mean(&mut self, id: NodeId, axes: &[usize]) -> NodeId {
        self.b().mean(id, axes, true).expect("axes of the tensor")
    }

    pub(super) fn cast(&mut self, id: NodeId, to: DType) -> NodeId {
        self.b().cast(id, to).expect("every cast is possible")
    }

    pub(super) fn sizes(&self, id: NodeId) -> Vec<u64> {
        self.case.graph.shape(id).sizes()
    }

    pub(super) fn elements(&self, id: NodeId) -> u64 {
        self.case.graph.shape(id).elements()
    }

    /// A shape of up to four small dimensions; at times one that is longer than a vector, a tile, or a piece of a sum.
    pub(super) fn shape(&mut self) -> Vec<u64> {
        if self.draws.one_in(150) {
            return vec![self.draws.pick(&[8192, 9999, 12_288])];
        }
        let mut sizes: Vec<u64> = (0..self.draws.below(5)).map(|_| self.draws.size(5)).collect();
        if !sizes.is_empty() && self.draws.one_in(8) {
            let at = self.draws.below(sizes.len());
            sizes[at] = self.draws.pick(&[9, 17, 33, 70, 130, 1030]);
            sizes.truncate(if sizes[at] > 50 { 2.max(at + 1) } else { 3.max(at + 1) });
        }
        while sizes.iter().product::<u64>() > MAX_ELEMENTS {
            sizes.remove(usize::from(sizes[0] > 50));
        }
        sizes
    }

    fn source(&mut self, name: char, ty: TensorType, data: Vec<f64>, state: bool) -> NodeId {
        let value = Value::new(ty.clone(), data);
        let values = if state { &mut self.case.state } else { &mut self.case.inputs };
        let name = format!("{name}{}", values.len());
        values.insert(name.clone(), value);
        let id = if state { self.b().state(&name, ty) } else { self.b().input(&name, ty) };
        id.expect("a source has no rule to break")
    }

    /// A tensor of new values in [-1, 1): an input, or a state. One in four holds quarters, so that there are ties and zeros.
    pub(super) fn fresh(&mut self, sizes: &[u64], state: bool) -> Held {
        let float = self.fresh_of(sizes, state, DType::F32);
        self.floats.push(float);
        float
    }

    /// The same of another type of float, which is not held.
    pub(super) fn fresh_of(&mut self, sizes: &[u64], state: bool, dtype: DType) -> Held {
        let ty = TensorType::new(dtype, sizes.iter().copied().collect::<Shape>());
        let grid = self.draws.one_in(4);
        let mut draw = || {
            let value = f64::from(2.0 * uniform(self.draws.word()) - 1.0);
            match self.draws.below(12) {
                0 if self.wild => self.draws.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0]),
                _ if grid => (value * 4.0).floor() / 4.0,
                _ => value,
            }
        };
        let data = (0..ty.shape.elements()).map(|_| dtype.rounded(draw())).collect();
        let id = self.source(if state { 's' } else { 'x' }, ty, data, state);
        Held { id, exact: true, magnitude: 1.0 }
    }

    /// New integers, each made from a draw below 2^32.
    pub(super) fn numbers(&mut self, sizes: &[u64], value: impl Fn(u64, u32) -> f64) -> NodeId {
        let ty = TensorType::new(DType::I32, sizes.iter().copied().collect::<Shape>());
        let data = (0..ty.shape.elements()).map(|i| value(i, self.draws.word())).collect();
        self.source('i', ty, data, false)
    }

    /// New indices for `limit` rows, with repetitions, and a few that lie outside and are clamped.
    pub(super) fn indices(&mut self, sizes: &[u64], limit: u64) -> NodeId {
        let outside = u32::from(self.draws.one_in(4));
        let reach = limit as u32 + 2 * outside;
        self.numbers(sizes, |_, word| f64::from(word % reach) - f64::from(outside))
    }

    /// A value to go on with, preferably a recent one.
    pub(super) fn any(&mut self) -> Held {
        let count = self.floats.len();
        let index = self.draws.below(count).max(self.draws.below(count));
        self.floats[index]
    }

    /// A value that broadcasts to this shape: one that is there, or a new state of its last dimensions.
    pub(super) fn partner(&mut self, sizes: &[u64]) -> Held {
        let fits = |float: &&Held| {
            let own = self.case.graph.shape(float.id).sizes();
            let ends = sizes.iter().rev().zip(own.iter().rev());
            own.len() <= sizes.len() && ends.into_iter().all(|(a, b)| a == b || *b == 1)
        };
        let found: Vec<Held> = self.floats.iter().filter(fits).copied().collect();
        if !found.is_empty() && self.draws.below(4) > 0 {
            return self.draws.pick(&found);
        }
        let mut new = sizes[self.draws.below(sizes.len() + 1)..].to_vec();
        if let Some(size) = new.first_mut()
            && self.draws.one_in(4)
        {
            *size = 1;
        }
        self.fresh(&new, true)
    }

    /// A value of this shape: one of as many elements under another shape, or a new state.
    pub(super) fn shaped(&mut self, sizes: &[u64]) -> Held {
        let count: u64 = sizes.iter().product();
        let found: Vec<Held> = self.floats.iter().filter(|float| self.elements(float.id) == count).copied().collect();
        if found.is_empty() || self.draws.one_in(3) {
            return self.fresh(sizes, true);
        }
        let from = self.draws.pick(&found);
        let id = self.b().reshape(from.id, sizes.iter().copied().collect()).expect("as many elements");
        Held { id, ..from }
    }

    /// Some dimensions, at least one.
    pub(super) fn axes(&mut self, rank: usize) -> Vec<usize> {
        let first = self.draws.below(rank);
        (0..rank).filter(|axis| *axis == first || self.draws.below(3) == 0).collect()
    }

    pub(super) fn keep(&mut self, id: NodeId, exact: bool, magnitude: f64) {
        if exact || magnitude <= MAX_MAGNITUDE {
            return self.floats.push(Held { id, exact, magnitude });
        }
        let id = self.point(ScalarOp::Tanh, &[id]);
        self.floats.push(Held { id, exact: false, magnitude: 1.0 });
    }

    fn step(&mut self) {
        let x = self.any();
        let open = STEPS.iter().filter(|step| step.exact || !self.wild);
        let mut left = self.draws.below(open.clone().map(|step| step.weight).sum());
        for step in open {
            if left < step.weight {
                return (step.make)(self, x);
            }
            left -= step.weight;
        }
    }

    /// Outputs, wishes for gradients, and updates.
    fn finish(mut self, differentiate: bool) -> Case {
        let mut read = vec![false; self.case.graph.nodes().len()];
        self.case.graph.nodes().iter().flat_map(|node| &node.inputs).for_each(|input| read[input.index()] = true);
        let results = self.floats.iter().chain(&self.integers).map(|held| held.id).chain(self.truths.iter().copied());
        for id in results.collect::<Vec<_>>() {
            if !read[id.index()] || self.draws.one_in(8) {
                self.case.graph.outputs.insert(format!("y{}", id.0), id);
            }
        }
        if self.draws.one_in(4) {
            self.read_inside();
        }
        let states: Vec<(NodeId, String)> = (self.case.graph.ids())
            .filter_map(|id| match &self.case.graph.node(id).op {
                Op::State { path, .. } => Some((id, path.to_string())),
                _ => None,
            })
            .collect();
        for (id, path) in &states {
            let same = |float: &&Held| self.case.graph.shape(float.id) == self.case.graph.shape(*id);
            let found: Vec<Held> = self.floats.iter().filter(same).copied().collect();
            if self.draws.below(3) > 0 {
                // None has its shape if it is of 16 bits, and was not kept.
                if found.is_empty() {
                    continue;
                }
                let (new, dtype) = (self.draws.pick(&found), self.case.graph.ty(*id).dtype);
                let new = self.cast(new.id, dtype);
                self.case.graph.updates.insert(path.clone(), new);
            }
        }
        if differentiate && !self.wild {
            self.wish(&states);
        }
        self.case
    }

    /// Makes outputs of values that lie inside of what a step has made, as a metric reads the weights of an attention: what is
    /// read from outside must not be fused away, nor be computed in another sense.
    fn read_inside(&mut self) {
        for _ in 0..1 + self.draws.below(3) {
            let id = NodeId(self.draws.below(self.case.graph.nodes().len()) as u32);
            self.case.graph.outputs.insert(format!("y{}", id.0), id);
        }
    }

    /// A loss of the last values, and wishes for its gradients with respect to three states and an input.
    fn wish(&mut self, states: &[(NodeId, String)]) {
        let mut loss = self.scalar(0.0);
        let last: Vec<Held> = self.floats.iter().rev().take(1 + self.draws.below(3)).copied().collect();
        for (index, held) in last.into_iter().enumerate() {
            // Weights that are no powers of two, and a slope that is not the same everywhere.
            let bent = self.point(ScalarOp::Mul, &[held.id, held.id]);
            let bent = self.point(ScalarOp::Add, &[bent, held.id]);
            let axes: Vec<usize> = (0..self.sizes(bent).len()).collect();
            let part = self.b().mean(bent, &axes, false).expect("all axes");
            let part = self.scaled(part, 0.7 / (index + 1) as f64);
            loss = self.point(ScalarOp::Add, &[loss, part]);
        }
        let mut wishes = vec![(LOSS.to_string(), loss)];
        for (id, path) in states.iter().rev().take(3) {
            let updated = self.case.graph.updates.contains_key(path);
            let prefix = if updated || self.draws.flip() { GRADIENT } else { DESCENT };
            wishes.push((format!("{prefix}{path}"), *id));
        }
        if let Some((name, id)) = self.case.graph.inputs.iter().find(|(name, _)| name.starts_with('x')) {
            wishes.push((format!("{GRADIENT}{name}"), *id));
        }
        self.case.graph.values.extend(wishes);
    }
}

#[cfg(test)]
impl Maker {
    /// A graph of one step alone.
    pub(super) fn alone(seed: u64, step: fn(&mut Maker, Held)) -> Case {
        let mut maker = Maker::new(seed, false);
        let x = maker.fresh(&[2, 3], false);
        step(&mut maker, x);
        maker.finish(false)
    }
}

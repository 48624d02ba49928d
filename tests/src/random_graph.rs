//! Random graphs: well typed, small, the same for the same seed.
//!
//! - They compose all families of ops, with new states and inputs where an operand of some shape is wanted, and update states
//!   in ways that tempt a memory plan (swaps, results that are also read later).
//! - Values stay near 1: what may grow goes through tanh. Values that are not exact in f32 are never compared.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{Builder, DType, Dim, Graph, NodeId, OriginId, Shape, TensorType, Value};
use alip_compiler::ops::{Conv, ConvKind, Dot, Op, ReduceKind, ScalarOp};
use alip_plan::philox::{counter, philox4x32, stream_key, uniform};

/// Most elements of one tensor.
const MAX_ELEMENTS: u64 = 1 << 11;
/// Most dimensions of one tensor.
const MAX_RANK: usize = 5;
/// Values above this are brought below 1.
const MAX_MAGNITUDE: f64 = 2.0;

/// A graph and what it runs on.
pub struct RandomGraph {
    /// The graph; every value that nothing reads is an output.
    pub graph: Graph,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Value>,
    /// State by path.
    pub state: BTreeMap<String, Value>,
}

/// The graph of a seed. Graphs of odd seeds are smooth and yield gradients with respect to some states.
pub fn random_graph(seed: u64, steps: usize) -> RandomGraph {
    let made = RandomGraph { graph: Graph::new("random"), inputs: BTreeMap::new(), state: BTreeMap::new() };
    let mut maker =
        Maker { made, draws: Draws { key: stream_key(seed, 0, 0), at: 0 }, floats: Vec::new(), smooth: seed % 2 == 1 };
    for _ in 0..3 {
        let shape = maker.shape();
        maker.input(&shape);
    }
    for _ in 0..steps {
        maker.step();
    }
    maker.finish()
}

struct Draws {
    key: [u32; 2],
    at: u64,
}

impl Draws {
    fn word(&mut self) -> u32 {
        self.at += 1;
        philox4x32(counter(self.at, 0), self.key)[0]
    }

    fn below(&mut self, limit: usize) -> usize {
        self.word() as usize % limit.max(1)
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A float tensor that may be used.
#[derive(Clone, Copy)]
struct Float {
    id: NodeId,
    /// Nothing was rounded on the way.
    exact: bool,
    /// No element is larger.
    magnitude: f64,
}

struct Maker {
    made: RandomGraph,
    draws: Draws,
    floats: Vec<Float>,
    smooth: bool,
}

impl Maker {
    fn b(&mut self) -> Builder<'_> {
        Builder::new(&mut self.made.graph, OriginId(0))
    }

    fn op(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        self.b().op(op.clone(), inputs).unwrap_or_else(|error| panic!("{op:?}: {error}"))
    }

    fn point(&mut self, op: ScalarOp, inputs: &[NodeId]) -> NodeId {
        self.b().pointwise(op, inputs).unwrap_or_else(|error| panic!("{op:?}: {error}"))
    }

    fn scalar(&mut self, value: f64) -> NodeId {
        self.b().scalar(value).expect("a constant")
    }

    fn sizes(&self, id: NodeId) -> Vec<u64> {
        self.made.graph.shape(id).sizes()
    }

    /// A shape of up to four dimensions.
    fn shape(&mut self) -> Vec<u64> {
        (0..self.draws.below(5)).map(|_| 1 + self.draws.below(5) as u64).collect()
    }

    fn values(&mut self, ty: &TensorType, value: impl Fn(f32) -> f64) -> Value {
        let data = (0..ty.shape.elements()).map(|_| value(uniform(self.draws.word()))).collect();
        Value::new(ty.clone(), data)
    }

    /// A tensor of new values in [-1, 1): an input, or a state.
    fn fresh(&mut self, sizes: &[u64], state: bool) -> Float {
        let ty = TensorType::f32(sizes.iter().copied().collect::<Shape>());
        let value = self.values(&ty, |u| f64::from(2.0 * u - 1.0));
        let id = if state {
            let name = format!("s{}", self.made.state.len());
            self.made.state.insert(name.clone(), value);
            self.b().state(&name, ty)
        } else {
            let name = format!("x{}", self.made.inputs.len());
            self.made.inputs.insert(name.clone(), value);
            self.b().input(&name, ty)
        };
        let float = Float { id: id.expect("a source"), exact: true, magnitude: 1.0 };
        self.floats.push(float);
        float
    }

    fn input(&mut self, sizes: &[u64]) -> Float {
        self.fresh(sizes, false)
    }

    /// Indices below `limit`, with repetitions.
    fn indices(&mut self, sizes: &[u64], limit: u64) -> NodeId {
        let ty = TensorType::new(DType::I32, sizes.iter().copied().collect::<Shape>());
        let value = self.values(&ty, |u| (f64::from(u) * limit as f64).floor());
        let name = format!("i{}", self.made.inputs.len());
        self.made.inputs.insert(name.clone(), value);
        self.b().input(&name, ty).expect("an input")
    }

    /// A value to go on with, preferably a recent one.
    fn any(&mut self) -> Float {
        let count = self.floats.len();
        let index = self.draws.below(count).max(self.draws.below(count));
        self.floats[index]
    }

    /// A value that broadcasts to this shape: one that is there, or a new state of its last dimensions.
    fn partner(&mut self, sizes: &[u64], wanted: impl Fn(&Float) -> bool) -> Float {
        let fits = |float: &&Float| {
            let own = self.made.graph.shape(float.id).sizes();
            let ends = sizes.iter().rev().zip(own.iter().rev());
            wanted(float) && own.len() <= sizes.len() && ends.into_iter().all(|(a, b)| a == b || *b == 1)
        };
        let found: Vec<Float> = self.floats.iter().filter(fits).copied().collect();
        if !found.is_empty() && self.draws.below(4) > 0 {
            return found[self.draws.below(found.len())];
        }
        let mut new = sizes[self.draws.below(sizes.len() + 1)..].to_vec();
        if let Some(size) = new.first_mut()
            && self.draws.below(4) == 0
        {
            *size = 1;
        }
        self.fresh(&new, true)
    }

    fn keep(&mut self, id: NodeId, exact: bool, magnitude: f64) {
        if exact || magnitude <= MAX_MAGNITUDE {
            return self.floats.push(Float { id, exact, magnitude });
        }
        let id = self.point(ScalarOp::Tanh, &[id]);
        self.floats.push(Float { id, exact: false, magnitude: 1.0 });
    }

    fn step(&mut self) {
        let x = self.any();
        let rank = self.sizes(x.id).len();
        match self.draws.below(16) {
            0 | 1 => self.unary(x),
            2..=4 => self.binary(x),
            5 => self.select(x),
            6 | 7 if rank > 0 => self.reduce(x),
            8 if rank > 0 => self.row(x),
            9 | 10 if rank > 0 => self.dot(x),
            11 | 12 => self.view(x),
            13 if rank > 0 => self.pick(x),
            14 if rank > 1 => self.convolve(x),
            _ => self.source(),
        }
    }

    fn unary(&mut self, x: Float) {
        use ScalarOp::{Abs, Cos, Div, Erf, Exp, Floor, Ln, Mul, Neg, Sin, Sqrt, Tanh};
        let square = |maker: &mut Maker, above: f64| {
            let (square, above) = (maker.point(Mul, &[x.id, x.id]), maker.scalar(above));
            maker.point(ScalarOp::Add, &[square, above])
        };
        match self.draws.below(if self.smooth { 9 } else { 11 }) {
            kind @ 0..=3 => {
                let id = self.point([Tanh, Sin, Cos, Erf][kind], &[x.id]);
                self.keep(id, false, 1.0);
            }
            4 => {
                let id = self.point(Neg, &[x.id]);
                self.keep(id, x.exact, x.magnitude);
            }
            5 | 6 if x.magnitude <= MAX_MAGNITUDE => {
                let id = self.point(Exp, &[x.id]);
                self.keep(id, false, x.magnitude.exp());
            }
            7 => {
                let above = square(self, 0.5);
                let op = if self.draws.flip() { Sqrt } else { Ln };
                let id = self.point(op, &[above]);
                self.keep(id, false, x.magnitude + 1.0);
            }
            9 => {
                let id = self.point(Abs, &[x.id]);
                self.keep(id, x.exact, x.magnitude);
            }
            10 if x.exact => {
                let id = self.point(Floor, &[x.id]);
                self.keep(id, true, x.magnitude + 1.0);
            }
            _ => {
                let above = square(self, 1.0);
                let id = self.point(Div, &[x.id, above]);
                self.keep(id, false, 0.5);
            }
        }
    }

    fn binary(&mut self, x: Float) {
        use ScalarOp::{Add, Max, Min, Mul, Sub};
        let y = self.partner(&self.sizes(x.id), |_| true);
        let op = [Add, Sub, Mul, Max, Min][self.draws.below(if self.smooth { 3 } else { 5 })];
        let (a, b) = if self.draws.flip() { (x.id, y.id) } else { (y.id, x.id) };
        let id = self.point(op, &[a, b]);
        let (exact, magnitude) = match op {
            Mul => (false, x.magnitude * y.magnitude),
            Max | Min => (x.exact && y.exact, x.magnitude.max(y.magnitude)),
            _ => (false, x.magnitude + y.magnitude),
        };
        self.keep(id, exact, magnitude);
    }

    fn select(&mut self, x: Float) {
        let sizes = self.sizes(x.id);
        let a = self.partner(&sizes, |float| float.exact);
        let b = self.partner(&sizes, |float| float.exact);
        let y = self.partner(&sizes, |_| true);
        let op = [ScalarOp::Lt, ScalarOp::Le, ScalarOp::Eq][self.draws.below(3)];
        let mut condition = self.point(op, &[a.id, b.id]);
        if self.draws.below(3) == 0 {
            condition = self.point(ScalarOp::Not, &[condition]);
        }
        let id = self.point(ScalarOp::Select, &[condition, x.id, y.id]);
        self.keep(id, x.exact && y.exact, x.magnitude.max(y.magnitude));
    }

    /// Some dimensions, at least one.
    fn axes(&mut self, rank: usize) -> Vec<usize> {
        let first = self.draws.below(rank);
        (0..rank).filter(|axis| *axis == first || self.draws.below(3) == 0).collect()
    }

    fn scaled(&mut self, id: NodeId, factor: f64) -> NodeId {
        let factor = self.scalar(factor);
        self.point(ScalarOp::Mul, &[id, factor])
    }

    fn reduce(&mut self, x: Float) {
        let sizes = self.sizes(x.id);
        let axes = self.axes(sizes.len());
        let kinds = [ReduceKind::Sum, ReduceKind::Max, ReduceKind::Min];
        let kind = kinds[self.draws.below(if self.smooth { 1 } else { 3 })];
        let keep = self.draws.flip();
        let id = self.b().reduce(kind, x.id, &axes, keep).expect("axes of x");
        if kind != ReduceKind::Sum {
            return self.keep(id, x.exact, x.magnitude);
        }
        let terms: u64 = axes.iter().map(|axis| sizes[*axis]).product();
        let id = self.scaled(id, 1.0 / terms as f64);
        self.keep(id, false, x.magnitude);
    }

    /// What has several stages over a row: softmax, layer norm.
    fn row(&mut self, x: Float) {
        use ScalarOp::{Add, Div, Exp, Mul, Sqrt, Sub};
        let sizes = self.sizes(x.id);
        let axes = self.axes(sizes.len());
        if axes.iter().all(|axis| sizes[*axis] == 1) {
            return self.unary(x); // the row would be zero, or one, whatever its element
        }
        if self.draws.flip() {
            let most = self.b().reduce(ReduceKind::Max, x.id, &axes, true).expect("axes of x");
            let most = self.op(Op::StopGradient, &[most]);
            let less = self.point(Sub, &[x.id, most]);
            let powers = self.point(Exp, &[less]);
            let sum = self.b().reduce(ReduceKind::Sum, powers, &axes, true).expect("axes of x");
            let id = self.point(Div, &[powers, sum]);
            return self.keep(id, false, 1.0);
        }
        let mean = self.b().mean(x.id, &axes, true).expect("axes of x");
        let centred = self.point(Sub, &[x.id, mean]);
        let squares = self.point(Mul, &[centred, centred]);
        let variance = self.b().mean(squares, &axes, true).expect("axes of x");
        let epsilon = self.scalar(0.1);
        let above = self.point(Add, &[variance, epsilon]);
        let deviation = self.point(Sqrt, &[above]);
        let id = self.point(Div, &[centred, deviation]);
        self.keep(id, false, 4.0);
    }

    fn dot(&mut self, x: Float) {
        let left = self.sizes(x.id);
        let axis = self.draws.below(left.len());
        let shares = |float: &&Float| self.made.graph.shape(float.id).sizes().contains(&left[axis]);
        let found: Vec<Float> = self.floats.iter().filter(shares).copied().collect();
        let y = if self.draws.flip() {
            found[self.draws.below(found.len())]
        } else {
            let other = 1 + self.draws.below(6) as u64;
            let sizes = if self.draws.flip() { [left[axis], other] } else { [other, left[axis]] };
            self.fresh(&sizes, true)
        };
        let right = self.sizes(y.id);
        let Some(partner) = right.iter().position(|size| *size == left[axis]) else { return };
        let mut dot = Dot { batch: Vec::new(), contract: vec![(axis, partner)] };
        let pairs = (0..left.len()).flat_map(|i| (0..right.len()).map(move |j| (i, j)));
        let same = |(i, j): &(usize, usize)| *i != axis && *j != partner && left[*i] == right[*j];
        let pairs: Vec<(usize, usize)> = pairs.filter(same).collect();
        if !pairs.is_empty() && self.draws.flip() {
            dot.batch.push(pairs[self.draws.below(pairs.len())]);
        }
        let free: u64 = left.iter().chain(&right).product::<u64>() / (left[axis] * left[axis]);
        if free > MAX_ELEMENTS || left.len() + right.len() - 2 > MAX_RANK {
            return;
        }
        let id = self.op(Op::Dot(dot), &[x.id, y.id]);
        let id = self.scaled(id, 1.0 / left[axis] as f64);
        self.keep(id, false, x.magnitude * y.magnitude);
    }

    fn view(&mut self, x: Float) {
        let sizes = self.sizes(x.id);
        let (rank, elements) = (sizes.len(), sizes.iter().product::<u64>());
        let axis = self.draws.below(rank);
        let shape = |sizes: Vec<u64>| sizes.into_iter().collect::<Shape>();
        let op = match self.draws.below(8) {
            0 if rank > 1 && axis + 1 < rank => {
                let mut merged = sizes;
                let next = merged.remove(axis + 1);
                merged[axis] *= next;
                Op::Reshape { shape: shape(merged) }
            }
            1 if rank > 0 && rank < MAX_RANK => {
                let mut split = sizes;
                let divisors: Vec<u64> = (1..=split[axis]).filter(|n| split[axis].is_multiple_of(*n)).collect();
                let inner = divisors[self.draws.below(divisors.len())];
                split[axis] /= inner;
                split.insert(axis + 1, inner);
                Op::Reshape { shape: shape(split) }
            }
            2 | 3 if rank > 1 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                (1..rank).rev().for_each(|i| perm.swap(i, self.draws.below(i + 1)));
                Op::Transpose { perm }
            }
            4 if rank > 0 => {
                let start: Vec<u64> = sizes.iter().map(|size| self.draws.below(*size as usize) as u64).collect();
                let left = sizes.iter().zip(&start).map(|(size, start)| size - start);
                let end: Vec<u64> =
                    left.zip(&start).map(|(n, start)| start + 1 + self.draws.below(n as usize) as u64).collect();
                let step = sizes.iter().map(|_| 1 + self.draws.below(2) as u64).collect();
                Op::Slice { start, end, step }
            }
            5 if rank > 0 && elements <= MAX_ELEMENTS / 32 => {
                let mut few = |limit: usize| (0..rank).map(|_| self.draws.below(limit) as u64).collect::<Vec<_>>();
                Op::Pad { low: few(2), high: few(3), interior: few(2) }
            }
            6 if rank > 0 && elements <= MAX_ELEMENTS / 4 => {
                let y = self.fresh(&sizes, true);
                let parts = [[x.id, y.id, x.id], [y.id, x.id, y.id]][self.draws.below(2)];
                let count = 2 + self.draws.below(2);
                let id = self.op(Op::Concat { axis }, &parts[..count]);
                return self.keep(id, x.exact, x.magnitude);
            }
            _ if rank < MAX_RANK && elements <= MAX_ELEMENTS / 4 => {
                let at = self.draws.below(rank + 1);
                let mut wide = sizes;
                wide.insert(at, 2 + self.draws.below(3) as u64);
                Op::Broadcast { shape: shape(wide), dims: (0..=rank).filter(|dim| *dim != at).collect() }
            }
            _ => return,
        };
        let id = self.op(op, &[x.id]);
        self.keep(id, x.exact, x.magnitude);
    }

    /// Gather, scatter, argmax.
    fn pick(&mut self, x: Float) {
        let sizes = self.sizes(x.id);
        match self.draws.below(4) {
            0 => {
                let count = 1 + self.draws.below(4) as u64;
                let index = self.indices(&[count], sizes[0]);
                let id = self.op(Op::Gather { batch: 0 }, &[x.id, index]);
                self.keep(id, x.exact, x.magnitude);
            }
            1 if sizes.len() > 1 => {
                let index = self.indices(&sizes[..1], sizes[1]);
                let id = self.op(Op::Gather { batch: 1 }, &[x.id, index]);
                self.keep(id, x.exact, x.magnitude);
            }
            2 if x.exact => {
                let axis = self.draws.below(sizes.len());
                let index = self.b().argmax(x.id, axis).expect("an axis of x");
                let id = self.point(ScalarOp::Cast(DType::F32), &[index]);
                self.keep(id, true, sizes[axis] as f64);
            }
            _ => {
                let rows = 1 + self.draws.below(4) as u64;
                let index = self.indices(&sizes[..1], rows);
                let id = self.op(Op::ScatterAdd { batch: 0, rows }, &[index, x.id]);
                let id = self.scaled(id, 1.0 / sizes[0] as f64);
                self.keep(id, false, x.magnitude);
            }
        }
    }

    fn convolve(&mut self, x: Float) {
        let mut sizes = self.sizes(x.id);
        while sizes.len() < 4 {
            sizes.insert(0, 1);
        }
        if sizes.len() > 4 {
            return;
        }
        let image = self.b().reshape(x.id, sizes.iter().copied().collect()).expect("as many elements");
        let (outputs, height, width) =
            (1 + self.draws.below(3) as u64, 1 + self.draws.below(2) as u64, 1 + self.draws.below(2) as u64);
        let weight = self.fresh(&[outputs, sizes[1], height.min(sizes[2]), width.min(sizes[3])], true);
        let stride = 1 + self.draws.below(2) as u64;
        let conv = Conv { kind: ConvKind::Forward, stride, padding: self.draws.below(2) as u64, size: (0, 0) };
        let id = self.op(Op::Conv2d(conv), &[image, weight.id]);
        let id = self.scaled(id, 1.0 / (sizes[1] * 4) as f64);
        self.keep(id, false, x.magnitude);
    }

    /// What comes from nowhere: random numbers, coordinates, new inputs.
    fn source(&mut self) {
        let sizes = self.shape();
        let shape: Shape = sizes.iter().map(|size| Dim::from(*size)).collect();
        match self.draws.below(3) {
            0 => {
                let key = [7.0, 3.0].map(|value| self.b().constant(value, DType::I32).expect("a constant"));
                let (stream, lane) = (self.draws.below(3) as u32, self.draws.below(4) as u8);
                let id = self.op(Op::Random { shape, stream, lane }, &key);
                self.keep(id, true, 1.0);
            }
            1 if !sizes.is_empty() => {
                let axis = self.draws.below(sizes.len());
                let index = self.op(Op::Iota { shape, axis }, &[]);
                let id = self.point(ScalarOp::Cast(DType::F32), &[index]);
                self.keep(id, true, sizes[axis] as f64);
            }
            _ => {
                self.input(&sizes);
            }
        }
    }

    /// Outputs, gradients and updates.
    fn finish(mut self) -> RandomGraph {
        let mut read = vec![false; self.made.graph.nodes().len()];
        self.made.graph.nodes().iter().flat_map(|node| &node.inputs).for_each(|input| read[input.index()] = true);
        for float in self.floats.clone() {
            if !read[float.id.index()] || self.draws.below(8) == 0 {
                self.made.graph.outputs.insert(format!("y{}", float.id.0), float.id);
            }
        }
        let states: Vec<NodeId> =
            self.made.graph.ids().filter(|id| matches!(self.made.graph.node(*id).op, Op::State { .. })).collect();
        if self.smooth {
            self.gradients(&states);
        }
        for id in states {
            let Op::State { path, .. } = self.made.graph.node(id).op.clone() else { continue };
            let same = |float: &&Float| self.made.graph.shape(float.id) == self.made.graph.shape(id);
            let found: Vec<Float> = self.floats.iter().filter(same).copied().collect();
            if self.draws.below(3) > 0 {
                let new = found[self.draws.below(found.len())];
                self.made.graph.updates.insert(path.to_string(), new.id);
            }
        }
        self.made
    }

    /// Gradients of the mean square of the last value with respect to three states.
    fn gradients(&mut self, states: &[NodeId]) {
        let Some(last) = self.floats.last().copied() else { return };
        let square = self.point(ScalarOp::Mul, &[last.id, last.id]);
        let axes: Vec<usize> = (0..self.sizes(square).len()).collect();
        let loss = self.b().mean(square, &axes, false).expect("all axes");
        let wrt: Vec<NodeId> = states.iter().rev().take(3).copied().collect();
        let found = gradients(&mut self.made.graph, loss, &wrt).expect("a scalar loss");
        for (state, gradient) in wrt.iter().zip(found) {
            if let Some(gradient) = gradient {
                self.made.graph.outputs.insert(format!("gradient{}", state.0), gradient);
            }
        }
    }
}

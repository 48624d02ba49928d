//! Random terms of a pattern.

use alip_plan::philox::{counter, philox4x32, stream_key};

use crate::hash::HashMap;
use crate::ir::{DType, Graph, NodeId, OriginId, Shape, TensorType};
use crate::ops::{Conv, ConvKind, Dot, Op, ReduceKind, ScalarOp, constant};
use crate::optimize::language::Kind;
use crate::optimize::pattern::Pat;
use crate::optimize::rules::{Rule, Tag};

struct Draws {
    key: [u32; 2],
    at: u64,
}

impl Draws {
    fn below(&mut self, limit: usize) -> usize {
        self.at += 1;
        philox4x32(counter(self.at, 0), self.key)[0] as usize % limit.max(1)
    }

    fn size(&mut self) -> u64 {
        1 + self.below(4) as u64
    }

    fn sizes(&mut self, rank: usize) -> Vec<u64> {
        (0..rank).map(|_| self.size()).collect()
    }
}

/// Makes terms of a pattern.
struct Maker {
    graph: Graph,
    draws: Draws,
    vars: HashMap<usize, NodeId>,
    /// Attributes that were drawn before, since many rules ask for equal ones: op and types of operands by family and type.
    drawn: Vec<(Kind, TensorType, Op, Vec<TensorType>)>,
    /// Inputs have known bounds.
    bounded: bool,
}

fn ty(dtype: DType, sizes: &[u64]) -> TensorType {
    TensorType::new(dtype, sizes.iter().copied().collect::<Shape>())
}

impl Maker {
    fn add(&mut self, op: Op, inputs: &[NodeId]) -> Option<NodeId> {
        self.graph.add(op, inputs, OriginId::default()).ok()
    }

    fn leaf(&mut self, want: &TensorType) -> Option<NodeId> {
        let name = format!("v{}", self.graph.inputs.len());
        let dtype = if self.bounded && want.dtype == DType::F32 { DType::Bool } else { want.dtype };
        let ty = TensorType::new(dtype, want.shape.clone());
        let id = self.add(Op::Input { name: name.as_str().into(), ty }, &[])?;
        self.graph.inputs.insert(name, id);
        if dtype == want.dtype { Some(id) } else { self.add(Op::Pointwise(ScalarOp::Cast(want.dtype)), &[id]) }
    }

    fn number(&mut self, value: f64, want: &TensorType) -> Option<NodeId> {
        let scalar = self.add(constant(value, want.dtype), &[])?;
        self.add(Op::Broadcast { shape: want.shape.clone(), dims: vec![] }, &[scalar])
    }

    /// A term of this pattern and type; `None` if what was drawn does not fit together.
    fn term(&mut self, pattern: &Pat, want: &TensorType) -> Option<NodeId> {
        match pattern {
            Pat::Num(value) => self.number(*value, want),
            Pat::Var(number) | Pat::Splat(number) => {
                if let Some(id) = self.vars.get(number) {
                    return (self.graph.ty(*id) == want).then_some(*id);
                }
                let drawn = self.draws.below(4);
                let id = match pattern {
                    Pat::Var(_) => self.leaf(want)?,
                    _ if want.dtype == DType::Bool => self.number([0.0, 1.0, 1.0, 0.0][drawn], want)?,
                    // Sums and products of these wrap around.
                    _ if want.dtype == DType::I32 => {
                        self.number([2.0, -3.0, 2147483647.0, -2147483648.0][drawn], want)?
                    }
                    _ => self.number([2.0, -3.0, 5.0, 7.0][drawn], want)?,
                };
                self.vars.insert(*number, id);
                Some(id)
            }
            Pat::Any(_) => None,
            Pat::Point(operands) => {
                use ScalarOp::*;
                let op = match operands.len() {
                    1 => [Neg, Exp, Tanh, Abs][self.draws.below(4)],
                    2 => [Add, Sub, Mul, Max][self.draws.below(4)],
                    _ => Select,
                };
                self.node(Kind::Point(op), operands, want)
            }
            Pat::Node(kind, operands) => self.node(*kind, operands, want),
        }
    }

    fn node(&mut self, kind: Kind, operands: &[Pat], want: &TensorType) -> Option<NodeId> {
        let known = self.drawn.iter().rev().find(|(k, ty, ..)| *k == kind && ty == want).cloned();
        let (op, types) = match known {
            Some((_, _, op, types)) if self.draws.below(4) > 0 => (next_part(op, &types), types),
            _ => self.attributes(kind, operands.len(), want)?,
        };
        self.drawn.push((kind, want.clone(), op.clone(), types.clone()));
        let inputs: Option<Vec<NodeId>> =
            operands.iter().zip(&types).map(|(operand, ty)| self.term(operand, ty)).collect();
        let id = self.add(op, &inputs?)?;
        (self.graph.ty(id) == want).then_some(id)
    }

    /// An op of this family whose result has this type, and the types of its operands.
    fn attributes(&mut self, kind: Kind, count: usize, want: &TensorType) -> Option<(Op, Vec<TensorType>)> {
        let sizes = want.shape.sizes();
        let (rank, dtype) = (sizes.len(), want.dtype);
        let of = |sizes: Vec<u64>| vec![ty(dtype, &sizes)];
        Some(match kind {
            Kind::Point(op) => {
                use ScalarOp::*;
                let operand = |at| match op {
                    Select if at == 0 => DType::Bool,
                    Lt | Le | Eq => DType::F32,
                    Cast(_) => DType::Bool,
                    _ => dtype,
                };
                let op = if matches!(op, Cast(_)) { Cast(dtype) } else { op };
                (Op::Pointwise(op), (0..count).map(|at| ty(operand(at), &sizes)).collect())
            }
            Kind::Transpose => {
                let mut perm: Vec<usize> = (0..rank).collect();
                (1..rank).for_each(|at| perm.swap(at, self.draws.below(at + 1)));
                let mut from = vec![0; rank];
                perm.iter().enumerate().for_each(|(to, axis)| from[*axis] = sizes[to]);
                (Op::Transpose { perm }, of(from))
            }
            Kind::Reshape => (Op::Reshape { shape: want.shape.clone() }, of(self.reshaped(sizes))),
            Kind::Broadcast => {
                let dims: Vec<usize> = (0..rank).filter(|_| self.draws.below(2) == 0).collect();
                let from = dims.iter().map(|dim| if self.draws.below(4) == 0 { 1 } else { sizes[*dim] }).collect();
                (Op::Broadcast { shape: want.shape.clone(), dims }, of(from))
            }
            Kind::Slice => {
                let axis = if self.draws.below(2) == 0 { 0 } else { self.draws.below(rank) };
                let (mut start, mut end, mut step) = (vec![0; rank], sizes.clone(), vec![1; rank]);
                let mut from = sizes.clone();
                if rank > 0 {
                    // One of equal parts, as in a split, or any.
                    let parts = 2 + self.draws.below(2) as u64;
                    let part = self.draws.below(parts as usize) as u64;
                    if self.draws.below(3) == 0 {
                        step[axis] = 2;
                    }
                    start[axis] = part * sizes[axis];
                    end[axis] = start[axis] + (sizes[axis] - 1) * step[axis] + 1;
                    from[axis] = end[axis].max(parts * sizes[axis]);
                }
                (Op::Slice { start, end, step }, of(from))
            }
            Kind::Pad => {
                let axis = (0..rank).find(|axis| sizes[*axis] > 1)?;
                let parts = if sizes[axis].is_multiple_of(3) { 3 } else { sizes[axis] };
                let part = self.draws.below(parts as usize) as u64;
                let (mut low, mut high, mut from) = (vec![0; rank], vec![0; rank], sizes.clone());
                from[axis] = sizes[axis] / parts;
                low[axis] = part * from[axis];
                high[axis] = sizes[axis] - low[axis] - from[axis];
                (Op::Pad { low, high, interior: vec![0; rank] }, of(from))
            }
            Kind::Concat => {
                let axis = (0..rank).find(|axis| sizes[*axis] >= count as u64)?;
                let part = sizes[axis] / count as u64;
                let size = |at: usize| if at + 1 == count { sizes[axis] - part * (count as u64 - 1) } else { part };
                let along = |size: u64| sizes.iter().enumerate().map(move |(at, n)| if at == axis { size } else { *n });
                (Op::Concat { axis }, (0..count).map(|at| ty(dtype, &along(size(at)).collect::<Vec<_>>())).collect())
            }
            Kind::Sum | Kind::Max => {
                let reduce = if kind == Kind::Sum { ReduceKind::Sum } else { ReduceKind::Max };
                let mut axes = Vec::new();
                let mut from = sizes;
                for _ in 0..1 + self.draws.below(2) {
                    let axis = self.draws.below(from.len() + 1);
                    from.insert(axis, self.draws.size());
                    axes.iter_mut().for_each(|other| *other += usize::from(*other >= axis));
                    axes.push(axis);
                }
                axes.sort_unstable();
                (Op::Reduce { kind: reduce, axes }, of(from))
            }
            Kind::Dot => self.product(&sizes),
            Kind::Conv | Kind::ImageGrad | Kind::WeightGrad => return self.convolution(kind, &sizes),
            _ => return None,
        })
    }

    /// Other sizes with as many elements.
    fn reshaped(&mut self, mut sizes: Vec<u64>) -> Vec<u64> {
        for _ in 0..1 + self.draws.below(2) {
            let at = self.draws.below(sizes.len() + 1);
            match self.draws.below(3) {
                0 => sizes.insert(at, 1),
                1 if at + 1 < sizes.len() => {
                    let merged = sizes.remove(at);
                    sizes[at] *= merged;
                }
                _ if at < sizes.len() && sizes[at].is_multiple_of(2) => {
                    sizes[at] /= 2;
                    sizes.insert(at, 2);
                }
                _ => {}
            }
        }
        sizes
    }

    fn product(&mut self, sizes: &[u64]) -> (Op, Vec<TensorType>) {
        let batch = self.draws.below(sizes.len().min(1) + 1);
        let left = batch + self.draws.below(sizes.len() - batch + 1);
        let contract = {
            let count = 1 + self.draws.below(2);
            self.draws.sizes(count)
        };
        // (which kind of dimension, its number), free ones in order.
        let mut mix = |free: std::ops::Range<usize>| -> Vec<(u8, usize)> {
            let mut dims: Vec<(u8, usize)> = free.map(|at| (1, at)).collect();
            for (kind, count) in [(0, batch), (2, contract.len())] {
                for at in 0..count {
                    let place = self.draws.below(dims.len() + 1);
                    dims.insert(place, (kind, at));
                }
            }
            dims
        };
        let dims = [mix(batch..left), mix(left..sizes.len())];
        let shape = |dims: &[(u8, usize)]| {
            let size = |(kind, at): &(u8, usize)| if *kind == 2 { contract[*at] } else { sizes[*at] };
            ty(DType::F32, &dims.iter().map(size).collect::<Vec<_>>())
        };
        let place = |side: usize, what: (u8, usize)| dims[side].iter().position(|dim| *dim == what).unwrap_or(0);
        let pairs = |kind: u8, count: usize| {
            (0..count).map(|at| (place(0, (kind, at)), place(1, (kind, at)))).collect::<Vec<_>>()
        };
        let dot = Dot { batch: pairs(0, batch), contract: pairs(2, contract.len()) };
        (Op::Dot(dot), vec![shape(&dims[0]), shape(&dims[1])])
    }

    /// Mostly with a window as large as its step.
    fn convolution(&mut self, kind: Kind, sizes: &[u64]) -> Option<(Op, Vec<TensorType>)> {
        let [a, b, c, d] = *sizes else { return None };
        let (n, k) = (self.draws.size(), self.draws.size());
        let f32s = |sizes: [u64; 4]| ty(DType::F32, &sizes);
        let conv = |kind, stride, size| Op::Conv2d(Conv { kind, stride, padding: 0, size });
        Some(match kind {
            Kind::Conv => (conv(ConvKind::Forward, k, (0, 0)), vec![f32s([a, n, c * k, d * k]), f32s([b, n, k, k])]),
            Kind::ImageGrad => {
                let k = (2..=4).find(|k| c.is_multiple_of(*k) && d.is_multiple_of(*k)).unwrap_or(1);
                let types = vec![f32s([a, n, c / k, d / k]), f32s([n, b, k, k])];
                (conv(ConvKind::ImageGrad, k, (c, d)), types)
            }
            _ => {
                let k = c.min(d);
                let (h, w) = (self.draws.size(), self.draws.size());
                if c != d {
                    return None;
                }
                let types = vec![f32s([n, b, h * k, w * k]), f32s([n, a, h, w])];
                (conv(ConvKind::WeightGrad, k, (c, d)), types)
            }
        })
    }
}

/// The slice beside a slice; other ops as they are.
fn next_part(op: Op, types: &[TensorType]) -> Op {
    let Op::Slice { mut start, mut end, step } = op else { return op };
    for axis in 0..start.len() {
        let (length, size) = (end[axis] - start[axis], types[0].shape.size(axis));
        if length < size && step[axis] == 1 && end[axis] + length <= size {
            (start[axis], end[axis]) = (end[axis], end[axis] + length);
            break;
        }
    }
    Op::Slice { start, end, step }
}

fn uses(pattern: &Pat, wanted: &impl Fn(Kind) -> bool) -> bool {
    match pattern {
        Pat::Node(kind, operands) => wanted(*kind) || operands.iter().any(|operand| uses(operand, wanted)),
        Pat::Point(operands) => operands.iter().any(|operand| uses(operand, wanted)),
        _ => false,
    }
}

fn root_dtype(rule: &Rule, example: &Pat, draws: &mut Draws) -> DType {
    use ScalarOp::{And, Eq, Le, Lt, Not, Or};
    let logic = |kind: &Kind| matches!(kind, Kind::Point(And | Or | Not | Lt | Le | Eq));
    match example {
        Pat::Node(kind, _) if logic(kind) => DType::Bool,
        _ => {
            let float = |kind| {
                let floats = matches!(kind, Kind::Dot | Kind::Conv | Kind::ImageGrad | Kind::WeightGrad);
                floats || matches!(kind, Kind::Point(ScalarOp::Exp | ScalarOp::Sqrt | ScalarOp::Div))
            };
            let ints = !rule.floats && rule.tag != Tag::FiniteOnly;
            let ints = ints && !uses(example, &float);
            if ints && draws.below(4) == 0 { DType::I32 } else { DType::F32 }
        }
    }
}

/// A random graph whose output is a term of the pattern.
pub(super) fn example(rule: &Rule, pattern: &Pat, seed: u64) -> Option<Graph> {
    let mut draws = Draws { key: stream_key(seed, 0, 77), at: 0 };
    let dtype = root_dtype(rule, pattern, &mut draws);
    let conv = |kind| matches!(kind, Kind::Conv | Kind::ImageGrad | Kind::WeightGrad);
    let rank = if uses(pattern, &conv) { 4 } else { draws.below(4) };
    let sizes = if uses(pattern, &|kind| matches!(kind, Kind::Pad | Kind::Concat)) && draws.below(2) == 0 {
        [vec![3 * draws.size()], draws.sizes(rank.saturating_sub(1))].concat()
    } else {
        draws.sizes(rank)
    };
    let bounded = rule.tag == Tag::FiniteOnly;
    let mut maker = Maker { graph: Graph::new("law"), draws, vars: HashMap::default(), drawn: Vec::new(), bounded };
    let root = maker.term(pattern, &ty(dtype, &sizes))?;
    maker.graph.outputs.insert("y".into(), root);
    Some(maker.graph)
}

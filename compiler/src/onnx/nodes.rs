//! Operations of a graph to nodes of ONNX.
//!
//! A repeated value stays small as long as only scalar operations read it, since those repeat their operands on their own: a
//! [`Value`] knows the shape that it really has.

use std::collections::BTreeMap;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, element as kinds,
};
use super::scalar::operator;
use super::sizes::{Pair, Size};
use super::{Exported, OnnxError, Weight};
use crate::ir::{DType, NodeId, Op};
use crate::ops::{Conv, ConvKind, Dot, ReduceKind};

/// An operator with its settings.
pub(super) struct Emit {
    pub(super) name: &'static str,
    pub(super) attributes: Vec<AttributeProto>,
}

/// The kind of ONNX for an element type that can be exported.
pub(super) fn element(dtype: DType) -> i32 {
    match dtype {
        DType::I32 => kinds::INT32,
        DType::Bool => kinds::BOOL,
        _ => kinds::FLOAT,
    }
}

/// A node of the graph, as it stands in the file.
#[derive(Clone)]
struct Value {
    name: String,
    /// Its real shape, which repeats to that of the node.
    shape: Vec<Size>,
}

pub(super) struct Writer<'a> {
    pair: Pair<'a>,
    out: GraphProto,
    weights: Vec<Weight>,
    values: Vec<Value>,
    /// The file's constants by kind, shape and bytes.
    constants: BTreeMap<(i32, Vec<i64>, Vec<u8>), String>,
    /// The batch, an INT64 \[1\].
    batch: Option<String>,
    /// Where names begin: the path of the node at hand.
    place: String,
    count: usize,
}

type Result<T> = std::result::Result<T, OnnxError>;

impl<'a> Writer<'a> {
    pub(super) fn new(pair: Pair<'a>) -> Writer<'a> {
        let out = GraphProto { name: pair.first.name.clone(), ..GraphProto::default() };
        let (weights, values, constants) = (Vec::new(), Vec::new(), BTreeMap::new());
        Writer { pair, out, weights, values, constants, batch: None, place: String::new(), count: 0 }
    }

    /// The whole graph.
    pub(super) fn write(mut self) -> Result<Exported> {
        for id in self.pair.first.ids() {
            self.place = self.pair.first.origin(id).path.to_string();
            let value = self.node(id)?;
            self.values.push(value);
        }
        for (name, &id) in &self.pair.first.outputs {
            let value = self.full(id)?;
            self.push("Identity", vec![value], vec![name.clone()], Vec::new());
            let kind = self.type_of(id)?;
            self.out.output.push(ValueInfoProto { name: name.clone(), kind: Some(kind) });
        }
        Ok(Exported { graph: self.out, weights: self.weights })
    }

    fn node(&mut self, id: NodeId) -> Result<Value> {
        let node = self.pair.first.node(id);
        let shape = self.pair.shape(id)?;
        let inputs = node.inputs.as_slice();
        if !matches!(node.ty.dtype, DType::F32 | DType::I32 | DType::Bool) {
            return Err(self.unsupported(&format!("values of {}", node.ty.dtype)));
        }
        let name = match &node.op {
            Op::Input { name, .. } => {
                if shape.first() == Some(&Size::Batches(1)) && self.batch.is_none() {
                    let first = [AttributeProto::int("start", 0), AttributeProto::int("end", 1)];
                    self.batch = Some(self.emit("Shape", vec![name.to_string()], first.into()));
                }
                let kind = self.type_of(id)?;
                self.out.input.push(ValueInfoProto { name: name.to_string(), kind: Some(kind) });
                name.to_string()
            }
            Op::State { path, ty } => {
                let shape = ty.shape.sizes();
                self.weights.push(Weight { path: path.to_string(), dtype: ty.dtype, shape });
                path.to_string()
            }
            Op::Const { value, dtype } => self.scalar(value.0, *dtype),
            Op::Pointwise(_) => return self.pointwise(id),
            Op::Broadcast { dims, .. } => return self.broadcast(inputs[0], dims, &shape),
            Op::StopGradient => return Ok(self.values[inputs[0].index()].clone()),
            Op::Reduce { kind, axes } => self.reduce(*kind, inputs[0], axes)?,
            Op::Dot(dot) => self.dot(dot, inputs[0], inputs[1])?,
            Op::Conv2d(conv) => self.conv(conv, inputs[0], inputs[1])?,
            Op::Reshape { .. } => {
                let x = self.full(inputs[0])?;
                self.reshape(x, &shape)?
            }
            Op::Transpose { perm } => {
                let x = self.full(inputs[0])?;
                self.emit("Transpose", vec![x], vec![AttributeProto::ints("perm", as_ints(perm))])
            }
            Op::Slice { start, end, step } => self.slice(inputs[0], (start, end, step))?,
            Op::Pad { low, high, interior } if interior.iter().all(|zeros| *zeros == 0) => {
                let pads = low.iter().chain(high).map(|&zeros| zeros as i64).collect();
                let (x, pads) = (self.full(inputs[0])?, self.ints(pads));
                self.emit("Pad", vec![x, pads], Vec::new())
            }
            Op::Concat { axis } => {
                let inputs = inputs.iter().map(|id| self.full(*id)).collect::<Result<Vec<_>>>()?;
                self.emit("Concat", inputs, vec![AttributeProto::int("axis", *axis as i64)])
            }
            Op::Gather { batch } => self.gather(*batch, inputs[0], inputs[1])?,
            Op::Iota { axis, .. } => return self.iota(*axis, &shape),
            other => return Err(self.unsupported(&format!("`{}`", other.name()))),
        };
        Ok(Value { name, shape })
    }

    fn pointwise(&mut self, id: NodeId) -> Result<Value> {
        let node = self.pair.first.node(id);
        let Op::Pointwise(op) = &node.op else { return Err(self.unsupported("another operation")) };
        let of = node.inputs.first().map_or(DType::F32, |id| self.pair.first.ty(*id).dtype);
        let Some(Emit { name, attributes }) = operator(op, of) else {
            return Err(self.unsupported(&format!("`{}`", node.op.name())));
        };
        let operands: Vec<Value> = node.inputs.iter().map(|id| self.values[id.index()].clone()).collect();
        // Operands repeat along dimensions of size 1.
        let rank = node.ty.shape.rank();
        let larger = |a: Size, b: Size| if a == Size::Fixed(1) { b } else { a };
        let size = |axis| operands.iter().map(|value| value.shape[axis]).fold(Size::Fixed(1), larger);
        let shape = (0..rank).map(size).collect();
        Ok(Value { name: self.emit(name, operands.into_iter().map(|value| value.name).collect(), attributes), shape })
    }

    /// The operand with dimensions of size 1 where it is repeated.
    fn broadcast(&mut self, id: NodeId, dims: &[usize], shape: &[Size]) -> Result<Value> {
        let operand = self.values[id.index()].clone();
        let mut small = vec![Size::Fixed(1); shape.len()];
        dims.iter().zip(&operand.shape).for_each(|(&to, size)| small[to] = *size);
        let name = if small == operand.shape { operand.name } else { self.reshape(operand.name, &small)? };
        Ok(Value { name, shape: small })
    }

    /// A node's value in its whole shape.
    fn full(&mut self, id: NodeId) -> Result<String> {
        let (value, shape) = (self.values[id.index()].clone(), self.pair.shape(id)?);
        if value.shape == shape {
            return Ok(value.name);
        }
        let to = self.shape_tensor(&shape)?;
        let name = self.emit("Expand", vec![value.name, to], Vec::new());
        self.values[id.index()] = Value { name: name.clone(), shape };
        Ok(name)
    }

    fn reshape(&mut self, x: String, shape: &[Size]) -> Result<String> {
        let grows = shape.iter().filter(|size| matches!(size, Size::Batches(_))).count();
        let to = match grows {
            // The one size that is not said is found from the others.
            0 | 1 => {
                let sizes = shape.iter().map(|size| match size {
                    Size::Fixed(size) => *size as i64,
                    Size::Batches(_) => -1,
                });
                let sizes = sizes.collect();
                self.ints(sizes)
            }
            _ => self.shape_tensor(shape)?,
        };
        Ok(self.emit("Reshape", vec![x, to], Vec::new()))
    }

    /// A shape as an INT64 tensor.
    fn shape_tensor(&mut self, shape: &[Size]) -> Result<String> {
        let mut parts = Vec::new();
        for size in shape {
            parts.push(match size {
                Size::Fixed(size) => self.ints(vec![*size as i64]),
                Size::Batches(times) => {
                    let none = || self.unsupported("a batch that none of its inputs has");
                    let batch = self.batch.clone().ok_or_else(none)?;
                    let times = self.ints(vec![*times as i64]);
                    self.emit("Mul", vec![batch, times], Vec::new())
                }
            });
        }
        if shape.iter().all(|size| matches!(size, Size::Fixed(_))) {
            let sizes =
                shape.iter().filter_map(|size| if let Size::Fixed(size) = size { Some(*size as i64) } else { None });
            let sizes = sizes.collect();
            return Ok(self.ints(sizes));
        }
        Ok(self.emit("Concat", parts, vec![AttributeProto::int("axis", 0)]))
    }

    fn reduce(&mut self, kind: ReduceKind, id: NodeId, axes: &[usize]) -> Result<String> {
        let x = self.full(id)?;
        if axes.is_empty() && !matches!(kind, ReduceKind::ArgMax) {
            // To ONNX no axes are all of them.
            return Ok(self.emit("Identity", vec![x], Vec::new()));
        }
        let drop = AttributeProto::int("keepdims", 0);
        let name = match kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Prod => "ReduceProd",
            ReduceKind::Max => "ReduceMax",
            ReduceKind::Min => "ReduceMin",
            ReduceKind::ArgMax => {
                let axis = AttributeProto::int("axis", axes.first().map_or(0, |axis| *axis as i64));
                let index = self.emit("ArgMax", vec![x], vec![axis, drop]);
                return Ok(self.cast(index, kinds::INT32));
            }
        };
        let axes = self.ints(as_ints(axes).collect());
        Ok(self.emit(name, vec![x, axes], vec![drop]))
    }

    fn cast(&mut self, x: String, to: i32) -> String {
        self.emit("Cast", vec![x], vec![AttributeProto::int("to", i64::from(to))])
    }

    fn dot(&mut self, dot: &Dot, left: NodeId, right: NodeId) -> Result<String> {
        let ranks = (self.pair.first.shape(left).rank(), self.pair.first.shape(right).rank());
        let (left, right) = (self.full(left)?, self.full(right)?);
        // As a product of matrices where it is one, which runs faster than a sum of products by letters.
        if let Some((swap_left, swap_right)) = as_product(dot, ranks) {
            let left = if swap_left { self.swapped(left, ranks.0) } else { left };
            let right = if swap_right { self.swapped(right, ranks.1) } else { right };
            return Ok(self.emit("MatMul", vec![left, right], Vec::new()));
        }
        let equation = letters(dot, ranks).ok_or_else(|| self.unsupported("a product of more than 52 dimensions"))?;
        Ok(self.emit("Einsum", vec![left, right], vec![AttributeProto::text("equation", &equation)]))
    }

    /// With its last two dimensions in the place of each other.
    fn swapped(&mut self, x: String, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.emit("Transpose", vec![x], vec![AttributeProto::ints("perm", as_ints(&perm))])
    }

    fn conv(&mut self, conv: &Conv, image: NodeId, weight: NodeId) -> Result<String> {
        if conv.kind != ConvKind::Forward {
            return Err(self.unsupported("the gradient of a convolution"));
        }
        let (image, weight) = (self.full(image)?, self.full(weight)?);
        let (stride, padding) = (conv.stride as i64, conv.padding as i64);
        let attributes = [AttributeProto::ints("strides", [stride; 2]), AttributeProto::ints("pads", [padding; 4])];
        Ok(self.emit("Conv", vec![image, weight], attributes.into()))
    }

    fn slice(&mut self, id: NodeId, (start, end, step): (&[u64], &[u64], &[u64])) -> Result<String> {
        let (x, of) = (self.full(id)?, self.pair.shape(id)?);
        let (mut from, mut to, mut axes, mut by) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (axis, size) in of.iter().enumerate() {
            let whole = self.pair.first.shape(id).size(axis);
            if (start[axis], end[axis], step[axis]) == (0, whole, 1) {
                continue;
            }
            if let Size::Batches(_) = size {
                return Err(OnnxError::KnowsBatch { program: self.out.name.clone(), place: self.place.clone() });
            }
            from.push(start[axis] as i64);
            to.push(end[axis] as i64);
            axes.push(axis as i64);
            by.push(step[axis] as i64);
        }
        let inputs = [from, to, axes, by].map(|ints| self.ints(ints));
        Ok(self.emit("Slice", [vec![x], inputs.into()].concat(), Vec::new()))
    }

    fn gather(&mut self, batch: usize, x: NodeId, index: NodeId) -> Result<String> {
        let rank = self.pair.first.shape(index).rank() as i64;
        let (x, index) = (self.full(x)?, self.full(index)?);
        if batch == 0 {
            return Ok(self.emit("Gather", vec![x, index], vec![AttributeProto::int("axis", 0)]));
        }
        let (index, last) = (self.cast(index, kinds::INT64), self.ints(vec![rank]));
        let index = self.emit("Unsqueeze", vec![index, last], Vec::new());
        Ok(self.emit("GatherND", vec![x, index], vec![AttributeProto::int("batch_dims", batch as i64)]))
    }

    /// Counts along an axis, and has size 1 along all others.
    fn iota(&mut self, axis: usize, shape: &[Size]) -> Result<Value> {
        let Size::Fixed(count) = shape[axis] else {
            return Err(OnnxError::KnowsBatch { program: self.out.name.clone(), place: self.place.clone() });
        };
        let mut small = vec![Size::Fixed(1); shape.len()];
        small[axis] = Size::Fixed(count);
        let dims = (0..shape.len()).map(|at| if at == axis { count as i64 } else { 1 }).collect();
        let bytes = (0..count as i32).flat_map(i32::to_le_bytes).collect();
        Ok(Value { name: self.constant(kinds::INT32, dims, bytes), shape: small })
    }

    fn scalar(&mut self, value: f64, dtype: DType) -> String {
        let bytes = match dtype {
            DType::I32 => (value as i32).to_le_bytes().to_vec(),
            DType::Bool => vec![u8::from(value != 0.0)],
            _ => (value as f32).to_le_bytes().to_vec(),
        };
        self.constant(element(dtype), Vec::new(), bytes)
    }

    fn ints(&mut self, ints: Vec<i64>) -> String {
        let bytes = ints.iter().flat_map(|int| int.to_le_bytes()).collect();
        self.constant(kinds::INT64, vec![ints.len() as i64], bytes)
    }

    fn constant(&mut self, data_type: i32, dims: Vec<i64>, raw_data: Vec<u8>) -> String {
        let key = (data_type, dims, raw_data);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = format!("constant:{}", self.constants.len());
        let (data_type, dims, raw_data) = key.clone();
        self.out.initializer.push(TensorProto { dims, data_type, name: name.clone(), raw_data });
        self.constants.insert(key, name.clone());
        name
    }

    /// Adds a node; the name of its result begins with the path of what it is part of.
    fn emit(&mut self, operator: &str, inputs: Vec<String>, attributes: Vec<AttributeProto>) -> String {
        self.count += 1;
        let name = format!("{}:{operator}:{}", self.place, self.count);
        self.push(operator, inputs, vec![name.clone()], attributes);
        name
    }

    fn push(&mut self, operator: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        let name = output.first().cloned().unwrap_or_default();
        self.out.node.push(NodeProto { input, output, name, op_type: operator.into(), attribute });
    }

    fn type_of(&self, id: NodeId) -> Result<TypeProto> {
        let dim = |size: Size| match size {
            Size::Fixed(size) => DimensionProto { dim_value: Some(size as i64), dim_param: None },
            Size::Batches(1) => DimensionProto { dim_value: None, dim_param: Some("batch".into()) },
            Size::Batches(times) => DimensionProto { dim_value: None, dim_param: Some(format!("{times} * batch")) },
        };
        let dim = self.pair.shape(id)?.into_iter().map(dim).collect();
        let elem_type = element(self.pair.first.ty(id).dtype);
        Ok(TypeProto { tensor_type: Some(TensorTypeProto { elem_type, shape: Some(TensorShapeProto { dim }) }) })
    }

    fn unsupported(&self, what: &str) -> OnnxError {
        OnnxError::Unsupported { program: self.out.name.clone(), place: self.place.clone(), what: what.into() }
    }
}

fn as_ints(sizes: &[usize]) -> impl Iterator<Item = i64> {
    sizes.iter().map(|&size| size as i64)
}

/// Whether a product is one of matrices, with leading dimensions that both have or the right has not; and which of the two is
/// to be transposed for it.
fn as_product(dot: &Dot, (left, right): (usize, usize)) -> Option<(bool, bool)> {
    let [(of_left, of_right)] = dot.contract.as_slice() else { return None };
    let leading = dot.batch.len();
    let in_order = dot.batch.iter().enumerate().all(|(at, pair)| *pair == (at, at));
    match leading {
        0 if right == 2 && left >= 2 && *of_left == left - 1 => Some((false, *of_right == 1)),
        _ if leading > 0 && in_order && left == leading + 2 && right == leading + 2 => {
            Some((*of_left == leading, *of_right == leading + 1))
        }
        _ => None,
    }
}

/// The product as an equation of letters: `abc,cd->abd`.
fn letters(dot: &Dot, (left, right): (usize, usize)) -> Option<String> {
    let mut alphabet = ('a'..='z').chain('A'..='Z');
    let of_left: Vec<char> = (0..left).map(|_| alphabet.next()).collect::<Option<_>>()?;
    let mut of_right = vec![None; right];
    dot.batch.iter().chain(&dot.contract).for_each(|&(one, other)| of_right[other] = Some(of_left[one]));
    let of_right: Vec<char> =
        of_right.into_iter().map(|known| known.or_else(|| alphabet.next())).collect::<Option<_>>()?;
    let is_free = |axis: usize, side: fn(&(usize, usize)) -> usize| {
        dot.batch.iter().chain(&dot.contract).all(|pair| side(pair) != axis)
    };
    let batch = dot.batch.iter().map(|pair| of_left[pair.0]);
    let free_left = (0..left).filter(|&axis| is_free(axis, |pair| pair.0)).map(|axis| of_left[axis]);
    let free_right = (0..right).filter(|&axis| is_free(axis, |pair| pair.1)).map(|axis| of_right[axis]);
    let result: String = batch.chain(free_left).chain(free_right).collect();
    let text = |letters: &[char]| letters.iter().collect::<String>();
    Some(format!("{},{}->{result}", text(&of_left), text(&of_right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products() {
        let check = |batch: &[(usize, usize)], contract: &[(usize, usize)], ranks, product, equation: &str| {
            let dot = Dot { batch: batch.to_vec(), contract: contract.to_vec() };
            assert_eq!((as_product(&dot, ranks), letters(&dot, ranks).as_deref()), (product, Some(equation)));
        };
        check(&[], &[(2, 0)], (3, 2), Some((false, false)), "abc,cd->abd");
        check(&[], &[(2, 1)], (3, 2), Some((false, true)), "abc,dc->abd");
        check(&[], &[(0, 0)], (2, 2), None, "ab,ac->bc");
        check(&[(0, 0), (1, 1)], &[(3, 3)], (4, 4), Some((false, true)), "abcd,abed->abce");
        check(&[(0, 0), (1, 1)], &[(2, 2)], (4, 4), Some((true, false)), "abcd,abce->abde");
        check(&[(0, 0), (2, 1)], &[(3, 3)], (4, 4), None, "abcd,aced->acbe");
    }
}

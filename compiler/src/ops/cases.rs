//! Test cases: small graphs around one op each, with inputs.
//!
//! The same cases judge the interpreter (gradients against finite differences) and every device (values against the
//! interpreter), so a new op is tested everywhere as soon as its family lists a case.

use std::collections::BTreeMap;

use alip_plan::philox;

use super::{Builder, Op, attention, conv, dot, gather, norm, pointwise, reduce, source, views};
use crate::graph::{DType, Graph, NodeId, OriginId, Shape, TensorType, Value};

/// A graph with one op between its inputs and its output `y`.
#[derive(Clone, Debug)]
pub struct Case {
    /// Distinct name: `dot_batched`.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Its inputs by name.
    pub inputs: BTreeMap<String, Value>,
    /// Its state by path, mostly none.
    pub state: BTreeMap<String, Value>,
}

/// The cases of every op.
pub fn cases() -> Vec<Case> {
    [
        source::cases(),
        pointwise::cases(),
        reduce::cases(),
        dot::cases(),
        conv::cases(),
        views::cases(),
        gather::cases(),
        attention::cases(),
        norm::cases(),
    ]
    .concat()
}

/// Makes a case: inputs first, then the op.
pub(super) struct CaseBuilder {
    case: Case,
}

impl CaseBuilder {
    pub(super) fn new(name: &str) -> CaseBuilder {
        let (inputs, state) = (BTreeMap::new(), BTreeMap::new());
        CaseBuilder { case: Case { name: name.into(), graph: Graph::new(name), inputs, state } }
    }

    fn builder(&mut self) -> Builder<'_> {
        Builder::new(&mut self.case.graph, OriginId::default())
    }

    /// Deterministic numbers in [0, 1), different for each input of each case.
    fn draws(&self, input: &str, count: u64) -> impl Iterator<Item = f64> + use<> {
        let text = self.case.name.bytes().chain(input.bytes());
        // FNV-1a, to turn the names into a key.
        let key = text.fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (0..count).map(move |i| f64::from(philox::uniform(philox::philox4x32(philox::counter(i, 0), [key, 1])[0])))
    }

    pub(super) fn input(&mut self, name: &str, ty: TensorType, data: Vec<f64>) -> NodeId {
        assert_eq!(data.len() as u64, ty.shape.elements(), "{}: elements of {name}", self.case.name);
        self.case.inputs.insert(name.into(), Value { ty: ty.clone(), data });
        self.builder().input(name, ty).expect("an input has no rule to break")
    }

    pub(super) fn scalar(&mut self, name: &str, dtype: DType, value: f64) -> NodeId {
        self.input(name, TensorType::new(dtype, Shape::scalar()), vec![value])
    }

    fn uniform_data(&self, name: &str, ty: &TensorType, low: f64, high: f64) -> Vec<f64> {
        let draws = self.draws(name, ty.shape.elements());
        // Rounded to the type, so that devices get the very same inputs: to f32, or to 2^-5, which both types of 16 bits
        // hold up to 8.
        let round = |x: f64| if ty.dtype == DType::F32 { f64::from(x as f32) } else { (x * 32.0).round() / 32.0 };
        draws.map(|u| round(low + u * (high - low))).collect()
    }

    pub(super) fn uniform_of(&mut self, name: &str, ty: TensorType, low: f64, high: f64) -> NodeId {
        let data = self.uniform_data(name, &ty, low, high);
        self.input(name, ty, data)
    }

    pub(super) fn uniform<const N: usize>(&mut self, name: &str, shape: [u64; N], low: f64, high: f64) -> NodeId {
        self.uniform_of(name, TensorType::f32(shape), low, high)
    }

    pub(super) fn state<const N: usize>(&mut self, path: &str, shape: [u64; N], low: f64, high: f64) -> NodeId {
        let ty = TensorType::f32(shape);
        let data = self.uniform_data(path, &ty, low, high);
        self.case.state.insert(path.into(), Value { ty: ty.clone(), data });
        self.builder().state(path, ty).expect("a state has no rule to break")
    }

    /// Integers in `low..high`.
    pub(super) fn integers_of(&mut self, name: &str, shape: Shape, low: i32, high: i32) -> NodeId {
        let draws = self.draws(name, shape.elements());
        let data = draws.map(|u| f64::from(low) + (u * f64::from(high - low)).floor()).collect();
        self.input(name, TensorType::new(DType::I32, shape), data)
    }

    pub(super) fn integers<const N: usize>(&mut self, name: &str, shape: [u64; N], low: i32, high: i32) -> NodeId {
        self.integers_of(name, shape.into(), low, high)
    }

    pub(super) fn bools<const N: usize>(&mut self, name: &str, shape: [u64; N]) -> NodeId {
        let shape = Shape::from(shape);
        let data = self.draws(name, shape.elements()).map(|u| u.round()).collect();
        self.input(name, TensorType::new(DType::Bool, shape), data)
    }

    /// Ends the case with the op under test.
    pub(super) fn op(mut self, op: Op, inputs: &[NodeId]) -> Case {
        let name = self.case.name.clone();
        let y = self.builder().op(op, inputs).unwrap_or_else(|error| panic!("case {name}: {error}"));
        self.case.graph.outputs.insert("y".into(), y);
        self.case
    }
}
